// Package servertest gives tests a real server in one call: on loopback, with
// TLS and without, in a temporary folder, with SQLite and an administrator's
// token. It also has what tests need around it: projects, users, tokens, and
// real git that trusts the server.
//
//	s := servertest.Start(t)
//	site := s.Project("team/site", tidelock.Public)
//	commit := site.Push("main", "app.yaml", "kind: ConfigMap")
//
// Everything it cannot do fails the test.
package servertest

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"tidelock.dev/internal/server"
)

// An Option changes the configuration before the server starts.
type Option func(*server.Config)

// PostgreSQL keeps the data in a database instead of a file.
func PostgreSQL(databaseURL string) Option {
	return func(c *server.Config) { c.DatabaseURL = databaseURL }
}

// A Server is a running server and a client of it.
type Server struct {
	URL     string // HTTPS
	HTTPURL string // the same without TLS
	SSHURL  string // of git over SSH
	CAFile  string
	DataDir string

	KnownHosts string // the line by which SSH clients know the server

	Token string // of the administrator

	t      testing.TB
	config server.Config
	client *http.Client
	server *server.Server
	cancel context.CancelFunc
	ran    chan error
}

// Start starts a server that is stopped when the test ends.
func Start(t testing.TB, options ...Option) *Server {
	t.Helper()
	s := &Server{t: t, DataDir: t.TempDir()}
	s.config = server.Config{
		DataDir: s.DataDir, Listen: "localhost:0", HTTPListen: "localhost:0", SSHListen: "localhost:0",
		ShutdownTimeout: 10 * time.Second,
		Log:             slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	for _, option := range options {
		option(&s.config)
	}
	s.DataDir = s.config.DataDir
	s.start()
	t.Cleanup(s.Stop)
	// Later starts keep the ports, so that clients find the server again.
	s.config.Listen, s.config.HTTPListen, s.config.SSHListen = hostOf(s.URL), hostOf(s.HTTPURL), hostOf(s.SSHURL)
	return s
}

func hostOf(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		panic(err) // the server made it
	}
	return "localhost:" + u.Port()
}

func (s *Server) start() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	opened, err := server.New(ctx, s.config)
	if err != nil {
		cancel()
		s.t.Fatalf("start a server: %v", err)
	}
	s.server, s.cancel, s.ran = opened, cancel, make(chan error, 1)
	go func() { s.ran <- opened.Run(ctx) }()
	s.URL, s.HTTPURL, s.CAFile = opened.URL(), opened.HTTPURL(), opened.CAFile()
	s.SSHURL, s.KnownHosts = opened.SSHURL(), opened.KnownHosts()

	token, err := os.ReadFile(opened.TokenFile())
	if err != nil {
		s.t.Fatalf("read the administrator's token: %v", err)
	}
	s.Token = strings.TrimSpace(string(token))
	s.client = s.newClient()
}

// Stop ends the server as a signal would; it is safe to call more than once.
func (s *Server) Stop() {
	s.t.Helper()
	if s.server == nil {
		return
	}
	s.client.CloseIdleConnections() // HTTP/2 would linger for a second
	s.cancel()
	select {
	case err := <-s.ran:
		if err != nil {
			s.t.Errorf("stop the server: %v", err)
		}
	case <-time.After(30 * time.Second):
		s.t.Fatal("the server did not stop within 30 s")
	}
	s.server = nil
}

// Restart stops the server and starts it again on the same data and ports.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.start()
}

// Kill cuts every connection and stops without draining. For a real SIGKILL a
// test needs a process of its own.
func (s *Server) Kill() {
	s.t.Helper()
	s.server.Abort()
	s.Stop()
}

// Start starts a server that was stopped or killed, as it was before.
func (s *Server) Start() {
	s.t.Helper()
	s.start()
}

func (s *Server) newClient() *http.Client {
	s.t.Helper()
	pool := x509.NewCertPool()
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			s.t.Fatalf("read the CA: %v", err)
		}
		pool.AppendCertsFromPEM(pem)
	}
	return &http.Client{
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: pool},
			ForceAttemptHTTP2: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       30 * time.Second,
	}
}

// Handler is what the server answers with, for tests that ask more than
// connections would carry. It is gone when the server stops.
func (s *Server) Handler() http.Handler { return s.server }

// Client trusts the server's certificate and follows no redirects.
func (s *Server) Client() *http.Client { return s.client }

// A Response is an answer that was read to its end.
type Response struct {
	Status int
	Header http.Header
	Body   string
}

// Do makes a request to a path below the server's URL. A token of "" is sent
// as none.
func (s *Server) Do(method, path, token string, body io.Reader, header ...string) Response {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	if token != "" {
		r.Header.Set("PRIVATE-TOKEN", token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := s.client.Do(r)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return Response{answer.StatusCode, answer.Header, string(text)}
}

// Call makes an API call in the name of a token and decodes the answer into
// out, unless that is nil. Anything but success fails the test.
func (s *Server) Call(token, method, path string, body, out any) {
	s.t.Helper()
	var encoded io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			s.t.Fatalf("encode the body of %s %s: %v", method, path, err)
		}
		encoded = bytes.NewReader(data)
	}
	answer := s.Do(method, "/api/v4/"+path, token, encoded, "Content-Type", "application/json")
	if answer.Status >= 300 {
		s.t.Fatalf("%s %s: got %d %s", method, path, answer.Status, answer.Body)
	}
	if out != nil {
		if err := json.Unmarshal([]byte(answer.Body), out); err != nil {
			s.t.Fatalf("%s %s: %v in %q", method, path, err, answer.Body)
		}
	}
}

// Eventually polls until ok reports true, at most 15 s.
func (s *Server) Eventually(what string, ok func() bool) {
	s.t.Helper()
	deadline := time.NewTimer(15 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			s.t.Fatalf("waited 15 s for %s", what)
		case <-tick.C:
		}
	}
}

// id is the part of an API answer that most helpers want.
type id struct {
	ID int64 `json:"id"`
}

func escaped(path string) string { return url.PathEscape(path) }

func (i id) String() string { return fmt.Sprint(i.ID) }
