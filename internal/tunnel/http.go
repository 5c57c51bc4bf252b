package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Client returns an HTTP client whose requests all travel as HTTP/2 on one
// stream to the peer, which runs ServeHTTP2. Any http:// URL will do; its host
// only fills the Host header. Call it once per session.
func (s *Session) Client() *http.Client {
	t := s.transport()
	t.MaxConnsPerHost = 1
	t.Protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: cancelling{t}}
}

// cancelling makes the end of a request's context end its body. net/http waits
// for the next piece of a streamed body before it looks at the context, so a
// call that is cancelled while it has nothing to say would hang.
type cancelling struct{ next http.RoundTripper }

func (c cancelling) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return c.next.RoundTrip(req)
	}
	stop := context.AfterFunc(req.Context(), func() { req.Body.Close() })
	resp, err := c.next.RoundTrip(req)
	if err != nil {
		stop()
		return nil, err
	}
	resp.Body = watchedBody{resp.Body, stop}
	return resp, nil
}

func (c cancelling) CloseIdleConnections() {
	if t, ok := c.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// A watchedBody stops watching the request's context when the answer is done
// with.
type watchedBody struct {
	io.ReadCloser
	stop func() bool
}

func (b watchedBody) Close() error {
	b.stop()
	return b.ReadCloser.Close()
}

// RoundTripper sends requests as HTTP/1.1, each on a stream of its own at a
// time, to the peer, which runs ServeHTTP1. Upgrades work: the body of a 101
// is an io.ReadWriteCloser. Call it once per session.
func (s *Session) RoundTripper() http.RoundTripper {
	t := s.transport()
	t.MaxIdleConnsPerHost = 8
	t.IdleConnTimeout = 30 * time.Second
	t.DisableCompression = true
	t.ReadBufferSize = 32 << 10
	t.WriteBufferSize = 32 << 10
	t.Protocols.SetHTTP1(true)
	return t
}

func (s *Session) transport() *http.Transport {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.Open(ctx)
		},
		Protocols: new(http.Protocols),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients = append(s.clients, t)
	return t
}

// ServeHTTP2 serves the peer's Client until the session ends, and returns nil
// when all handlers have returned. A request's context ends with its stream
// and with the session.
func (s *Session) ServeHTTP2(h http.Handler) error {
	server := &http.Server{Protocols: new(http.Protocols)}
	server.Protocols.SetUnencryptedHTTP2(true)
	return s.serve(server, h)
}

// ServeHTTP1 serves the peer's RoundTripper until the session ends, and
// returns nil when all handlers have returned.
func (s *Session) ServeHTTP1(h http.Handler) error {
	server := &http.Server{Protocols: new(http.Protocols), IdleTimeout: 2 * time.Minute}
	server.Protocols.SetHTTP1(true)
	return s.serve(server, h)
}

func (s *Session) serve(server *http.Server, h http.Handler) error {
	handlers := &handlerGroup{handler: h}
	server.Handler = handlers
	server.ReadHeaderTimeout = 30 * time.Second
	server.MaxHeaderBytes = 1 << 20
	server.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	base, cancel := context.WithCancel(context.Background())
	defer cancel()
	server.BaseContext = func(net.Listener) context.Context { return base }

	s.mu.Lock()
	s.servers = append(s.servers, server)
	s.mu.Unlock()
	err := server.Serve(newListener(s))
	// Shutdown, as Drain calls it, ends Serve early; streams go on.
	if errors.Is(err, http.ErrServerClosed) {
		<-s.done
	}
	cancel()
	server.Close()
	handlers.wait()
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serve the tunnel: %w", err)
}

// A listener hands a session's streams to an http.Server. Closing it only
// stops that: the session belongs to someone else.
type listener struct {
	session *Session
	closed  context.Context
	close   context.CancelFunc
}

func newListener(s *Session) *listener {
	l := &listener{session: s}
	l.closed, l.close = context.WithCancel(context.Background())
	return l
}

func (l *listener) Accept() (net.Conn, error) { return l.session.accept(l.closed) }
func (l *listener) Addr() net.Addr            { return l.session.wire.raw.LocalAddr() }

func (l *listener) Close() error {
	l.close()
	return nil
}

// A handlerGroup counts the handlers that run, so that the server's owner can
// wait for them; http.Server does not.
type handlerGroup struct {
	handler http.Handler

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

func (g *handlerGroup) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		http.Error(w, "the tunnel is closed", http.StatusServiceUnavailable)
		return
	}
	g.running.Add(1)
	g.mu.Unlock()
	defer g.running.Done()
	g.handler.ServeHTTP(w, r)
}

func (g *handlerGroup) wait() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.running.Wait()
}
