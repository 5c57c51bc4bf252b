package server_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/server"
	"tidelock.dev/internal/servertest"
	"tidelock.dev/internal/store/storetest"
)

func TestProbesAndHeaders(t *testing.T) {
	s := servertest.Start(t)
	for path, want := range map[string]string{
		"/-/healthz": "ok\n",
		"/-/readyz":  "running: ok\nstore: ok\nbus: ok\ndisk: ok\n",
	} {
		got := s.Do(http.MethodGet, path, "", nil)
		if got.Status != http.StatusOK || got.Body != want {
			t.Errorf("%s: got %d %q, want 200 %q", path, got.Status, got.Body, want)
		}
	}
}

func TestNotReadyWithoutTheDisk(t *testing.T) {
	s := servertest.Start(t)
	s.Project("team/site", tidelock.Private).Push("main", "a", "b") // whatever starts has started
	gone := s.DataDir + "-gone"
	if err := os.Rename(s.DataDir, gone); err != nil {
		t.Fatal(err)
	}
	got := s.Do(http.MethodGet, "/-/readyz", "", nil)
	if got.Status != http.StatusServiceUnavailable || !strings.Contains(got.Body, "disk: not ready") {
		t.Errorf("got %d %q, want 503 for the disk", got.Status, got.Body)
	}
	if strings.Contains(got.Body, s.DataDir) {
		t.Errorf("got %q, which tells strangers of our folders", got.Body)
	}
	if err := os.Rename(gone, s.DataDir); err != nil {
		t.Fatal(err)
	}
	if got := s.Do(http.MethodGet, "/-/readyz", "", nil); got.Status != http.StatusOK {
		t.Errorf("got %d %q once the disk is back, want 200", got.Status, got.Body)
	}
}

func TestMetricsAreForTheTrusted(t *testing.T) {
	s := servertest.Start(t, func(c *server.Config) { c.MetricsListen = "127.0.0.1:0" })
	ada := s.User("ada")
	for _, tc := range []struct {
		name   string
		token  string
		header []string
		want   int
	}{
		{"local", "", nil, 200},
		{"through a proxy", "", []string{"X-Forwarded-For", "203.0.113.7"}, 403},
		{"through a proxy, a user", ada.Token, []string{"X-Forwarded-For", "203.0.113.7"}, 403},
		{"through a proxy, the administrator", s.Token, []string{"X-Forwarded-For", "203.0.113.7"}, 200},
		{"through a proxy, by bearer", "", []string{"Forwarded", "for=203.0.113.7", "Authorization", "Bearer " + s.Token}, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := s.Do(http.MethodGet, "/-/metrics", tc.token, nil, tc.header...)
			if got.Status != tc.want {
				t.Fatalf("got %d, want %d", got.Status, tc.want)
			}
			if shown := strings.Contains(got.Body, `tidelock_http_requests_in_flight{surface="metrics"} 1`); shown != (tc.want == 200) {
				t.Errorf("got metrics shown: %v", shown)
			}
		})
	}
}

func TestHTTP2AndHTTP1(t *testing.T) {
	s := servertest.Start(t)
	pem, err := os.ReadFile(s.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"h2", "http/1.1"} {
		for _, ip := range []string{"127.0.0.1", "::1"} {
			conn, err := tls.Dial("tcp", net.JoinHostPort(ip, u.Port()), &tls.Config{RootCAs: roots, NextProtos: []string{want}})
			if err != nil {
				t.Errorf("%s: %v", ip, err)
				continue
			}
			if got := conn.ConnectionState().NegotiatedProtocol; got != want {
				t.Errorf("%s: got %q, want %q", ip, got, want)
			}
			conn.Close()
		}
	}
}

func TestBelowAPath(t *testing.T) {
	s := servertest.Start(t, func(c *server.Config) { c.ExternalURL = "https://forge.example/tide" })
	base := s.HTTPURL // https://forge.example leads nowhere here
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	get := func(path string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, strings.TrimSuffix(base, "/tide")+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("PRIVATE-TOKEN", s.Token)
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, answer.Header.Get("Location") + string(body)
	}
	for _, tc := range []struct {
		path   string
		status int
		holds  string
	}{
		{"/tide/api/v4/version", 200, "version"},
		{"/api/v4/version", 404, ""},
		{"/tide/", 200, `href="/tide/-/sign_in"`},
		{"/tide", 302, "/tide/"},
		{"/", 302, "/tide/"},
		{"/tidenote/", 404, ""},
		{"/t%69de/api/v4/version", 404, ""},
		{"/tide/api/v4/projects/root%2Fnone", 404, "Project Not Found"},
		{"/tide/-/readyz", 200, "store: ok"},
		{"/-/readyz", 200, "store: ok"},
		{"/tide/root/none.git/info/refs?service=git-upload-pack", 404, "no such project"},
	} {
		if status, text := get(tc.path); status != tc.status || !strings.Contains(text, tc.holds) {
			t.Errorf("%s: got %d %.200q, want %d with %q", tc.path, status, text, tc.status, tc.holds)
		}
	}
}

func TestSecondServerKeepsOut(t *testing.T) {
	s := servertest.Start(t)
	_, err := server.New(t.Context(), server.Config{
		DataDir: s.DataDir, Listen: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if tidelock.KindOf(err) != tidelock.Conflict || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("got %v, want to hear who uses the folder", err)
	}
	s.Restart() // the first one is not disturbed
}

// TestFailedStartLetsGo opens a server that cannot start, and then one that
// can, on the same folder and port.
func TestFailedStartLetsGo(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	config := server.Config{DataDir: dir, Listen: address, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	broken := config
	broken.DatabaseURL = "sqlite:" + filepath.Join(dir, "server.lock", "db") // a file is no folder
	if _, err := server.New(t.Context(), broken); err == nil {
		t.Fatal("started without a database")
	}
	s, err := server.New(t.Context(), config)
	if err != nil {
		t.Fatalf("the failed start left something behind: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestFirstTokenIsMadeOnce(t *testing.T) {
	s := servertest.Start(t)
	first := s.Token
	file := filepath.Join(s.DataDir, "root.token")
	s.Restart()
	if s.Token != first {
		t.Fatal("a restart made another token")
	}

	// Lost before anybody used it: made again, or nobody could get in.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.Restart()
	if s.Token == first {
		t.Fatal("the file came back with a token that only its hash was kept of")
	}

	// Used, and then taken away on purpose: not made again.
	s.Call(s.Token, http.MethodGet, "user", nil, nil)
	used := s.Token
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the use to be noted", func() bool {
		var tokens []struct {
			LastUsedAt *time.Time `json:"last_used_at"`
		}
		s.Call(used, http.MethodGet, "personal_access_tokens", nil, &tokens)
		for _, t := range tokens {
			if t.LastUsedAt != nil {
				return true
			}
		}
		return false
	})
	s.Stop()
	again, err := server.New(t.Context(), server.Config{
		DataDir: s.DataDir, Listen: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("got %v, want the file to stay away", err)
	}
}

// TestStoppingLetsRequestsFinish begins a request, stops the server, and then
// ends the request.
func TestStoppingLetsRequestsFinish(t *testing.T) {
	s := servertest.Start(t)
	body, send := io.Pipe()
	answered := make(chan string, 1)
	go func() {
		r, err := http.NewRequestWithContext(context.Background(), http.MethodPost, s.HTTPURL+"/api/v4/groups", body)
		if err != nil {
			answered <- err.Error()
			return
		}
		r.Header.Set("PRIVATE-TOKEN", s.Token)
		r.Header.Set("Content-Type", "application/json")
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			answered <- err.Error()
			return
		}
		answer.Body.Close()
		answered <- answer.Status
	}()
	if _, err := io.WriteString(send, `{"name": "team", `); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the request to arrive", func() bool {
		return strings.Contains(s.Do(http.MethodGet, "/-/metrics", "", nil).Body, `tidelock_http_requests_in_flight{surface="api"} 1`)
	})
	stopped := make(chan struct{})
	go func() {
		s.Stop()
		close(stopped)
	}()
	s.Eventually("new connections to be refused", func() bool {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.HTTPURL, "http://"))
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if _, err := io.WriteString(send, `"path": "team"}`); err != nil {
		t.Fatal(err)
	}
	send.Close()
	if got := <-answered; got != "201 Created" {
		t.Errorf("got %q, want the request to be finished", got)
	}
	<-stopped
}

func TestPostgreSQL(t *testing.T) {
	s := servertest.Start(t, servertest.PostgreSQL(storetest.Postgres(t)))
	site := s.Project("team/site", tidelock.Public)
	site.Push("main", "a", "b")
	s.Restart()
	site.Push("main", "a", "c")
	var pushes []struct{ ID int64 }
	s.Call(s.Token, http.MethodGet, "projects/team%2Fsite/pushes", nil, &pushes)
	if len(pushes) != 2 {
		t.Errorf("got %d pushes, want 2", len(pushes))
	}
	if _, err := os.Stat(filepath.Join(s.DataDir, "tidelock.db")); !os.IsNotExist(err) {
		t.Errorf("got %v, want no SQLite file beside PostgreSQL", err)
	}
}

// TestTracesAreExported follows a push until an agent says that it converged.
// The collector does not decode what it gets: names are text in protobuf.
func TestTracesAreExported(t *testing.T) {
	exported := make(chan string, 100)
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("got %s and %v, want traces", r.URL.Path, err)
		}
		exported <- string(body)
	}))
	defer collector.Close()
	s := servertest.Start(t, func(c *server.Config) { c.OTLPEndpoint = collector.URL })
	site := s.Project("team/site", tidelock.Public)
	_, token := site.Agent("production")
	session, err := dialAgent(t, s, token)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close("test is over")
	if _, err := agentrpc.NewSessionServiceClient(session.Client(), "http://server").
		Register(t.Context(), &agentrpc.RegisterRequest{Instance: "one", Leader: true}); err != nil {
		t.Fatal(err)
	}
	stream, err := agentrpc.NewAnnouncementServiceClient(session.Client(), "http://server").Announce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Sources{Sources: &agentrpc.SourceChange{
		Complete: true, Upserts: []*agentrpc.Source{{
			Id: "GitRepository/flux-system/site", Uid: "one", Url: s.URL + "/team/site.git", Ref: &agentrpc.RefSpec{Branch: "main"},
		}},
	}}}); err != nil {
		t.Fatal(err)
	}
	commit := site.Push("main", "a", "b")
	var heard *agentrpc.Announcement
	for heard == nil {
		m, err := stream.Receive()
		if err != nil {
			t.Fatal(err)
		}
		heard = m.GetAnnouncement()
	}
	if heard.GetCommit() != string(commit) || heard.GetTraceparent() == "" {
		t.Fatalf("heard %v, want %s and its trace", heard, commit)
	}
	if err := stream.Send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Progress{Progress: &agentrpc.Progress{
		SourceId: heard.GetSourceId(), Number: heard.GetNumber(), State: agentrpc.Progress_STATE_CONVERGED,
	}}}); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the announcement to be recorded as converged", func() bool {
		var announcements []struct{ State string }
		s.Call(s.Token, http.MethodGet, fmt.Sprintf("projects/%d/announcements", site.ID), nil, &announcements)
		return len(announcements) == 1 && announcements[0].State == "converged"
	})

	s.Stop() // sends what is queued
	collector.Close()
	close(exported)
	var all strings.Builder
	for body := range exported {
		all.WriteString(body)
	}
	for _, name := range []string{"git push", "record push", "announce"} {
		if !strings.Contains(all.String(), name) {
			t.Errorf("no span %q was exported", name)
		}
	}
}
