package tunnel_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"tidelock.dev"
	"tidelock.dev/internal/tunnel"
)

const deadline = 10 * time.Second

// A pair is both ends of a tunnel over TLS on loopback.
type pair struct {
	agent  *tunnel.Session
	server *tunnel.Session
}

// A forge accepts tunnels on a real TLS listener and hands them out.
type forge struct {
	*httptest.Server
	sessions chan *tunnel.Session
}

func newForge(t *testing.T, c tunnel.AcceptConfig) *forge {
	t.Helper()
	checkGoroutines(t)
	f := &forge{sessions: make(chan *tunnel.Session, 16)}
	c.Log = testLog(t)
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch auth := r.Header.Get("Authorization"); {
		case r.URL.Path == "/busy":
			w.Header().Set("Retry-After", "7")
			http.Error(w, "too many connections", http.StatusTooManyRequests)
		case r.URL.Path == "/moved":
			http.Redirect(w, r, "/elsewhere", http.StatusMovedPermanently)
		case auth != "Bearer good":
			http.Error(w, "the token is\nunknown", http.StatusUnauthorized)
		default:
			s, err := tunnel.Accept(w, r, c)
			if err != nil {
				t.Logf("accept: %v", err)
				return
			}
			f.sessions <- s
		}
	}))
	f.Config.ErrorLog = slog.NewLogLogger(testLog(t).Handler(), slog.LevelDebug)
	f.EnableHTTP2 = true // the tunnel must ask for HTTP/1.1 by itself
	f.StartTLS()
	t.Cleanup(f.Close)
	return f
}

func (f *forge) dialConfig(t *testing.T) tunnel.DialConfig {
	roots := x509.NewCertPool()
	roots.AddCert(f.Certificate())
	return tunnel.DialConfig{
		URL:    "wss" + strings.TrimPrefix(f.URL, "https") + "/-/kubernetes-agent/",
		Header: http.Header{"Authorization": {"Bearer good"}},
		TLS:    &tls.Config{RootCAs: roots},
		Log:    testLog(t),
	}
}

func (f *forge) connect(t *testing.T, c tunnel.DialConfig) pair {
	t.Helper()
	agent, err := tunnel.Dial(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { agent.Close("test over") })
	server := <-f.sessions
	t.Cleanup(func() { server.Close("test over") })
	return pair{agent, server}
}

func connected(t *testing.T) pair {
	t.Helper()
	f := newForge(t, tunnel.AcceptConfig{})
	return f.connect(t, f.dialConfig(t))
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// checkGoroutines fails the test if it leaves goroutines of ours behind. It
// is registered first, so that it looks last.
func checkGoroutines(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		var left string
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if left = ourGoroutines(); left == "" {
				return
			}
		}
		t.Errorf("goroutines left behind:\n%s", left)
	})
}

func ourGoroutines() string {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for g := range strings.SplitSeq(string(buf), "\n\n") {
		if strings.Contains(g, "ourGoroutines") || strings.Contains(g, "testing.(*T).Run") {
			continue
		}
		for _, ours := range []string{"internal/tunnel.", "hashicorp/yamux", "coder/websocket"} {
			if strings.Contains(g, ours) {
				left = append(left, g)
				break
			}
		}
	}
	return strings.Join(left, "\n\n")
}

func await(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(deadline):
		t.Fatalf("waited %v for %s", deadline, what)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited %v for %s", deadline, what)
}

// echo answers every stream with what came over it.
func echo(s *tunnel.Session) {
	for {
		conn, err := s.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}

func say(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	back := make([]byte, len(text))
	if _, err := io.ReadFull(conn, back); err != nil {
		t.Fatal(err)
	}
	if string(back) != text {
		t.Fatalf("got %q back, want %q", back, text)
	}
}

func TestStreamsFlowBothWays(t *testing.T) {
	p := connected(t)
	go echo(p.agent)
	go echo(p.server)
	for _, s := range []*tunnel.Session{p.agent, p.server} {
		conn, err := s.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		say(t, conn, "hello")
		say(t, conn, strings.Repeat("a large piece ", 1<<16))
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after close: %v, want %v", err, net.ErrClosed)
		}
		if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: %v, want %v", err, net.ErrClosed)
		}
	}
}

func TestHundredStreams(t *testing.T) {
	p := connected(t)
	go echo(p.agent)
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			conn, err := p.server.Open(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			text := fmt.Sprintf("stream %d ", i)
			for range 20 {
				if _, err := io.WriteString(conn, text); err != nil {
					t.Error(err)
					return
				}
				back := make([]byte, len(text))
				if _, err := io.ReadFull(conn, back); err != nil || string(back) != text {
					t.Errorf("got %q and %v, want %q", back, err, text)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestCloseWakesABlockedReader(t *testing.T) {
	p := connected(t)
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, _ := p.agent.Accept()
		accepted <- conn
	}()
	conn, err := p.server.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer (<-accepted).Close()
	done := make(chan struct{})
	go func() {
		conn.Read(make([]byte, 1))
		close(done)
	}()
	conn.Close()
	await(t, "the reader to return", done)
}

func TestSlowReaderStallsNobodyElse(t *testing.T) {
	tunnel.ShortenCloseLimit(t, 100*time.Millisecond)
	p := connected(t)
	var slow net.Conn
	slowReady := make(chan struct{})
	go func() {
		slow, _ = p.agent.Accept()
		close(slowReady)
		echo(p.agent)
	}()
	flood, err := p.server.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var sent atomic.Int64
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		piece := make([]byte, 64<<10)
		for {
			n, err := flood.Write(piece)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	}()
	await(t, "the slow stream", slowReady)
	eventually(t, "the window to fill", func() bool { return sent.Load() >= 4<<20-64<<10 })

	quick, err := p.server.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		say(t, quick, "still quick")
	}
	if sent.Load() > 5<<20 {
		t.Errorf("a reader that never reads took %d bytes", sent.Load())
	}
	// A closed reader frees its writer, although it never read.
	slow.Close()
	await(t, "the flooding writer to stop", stopped)
	flood.Close()
	quick.Close()
}

func TestHeartbeatMeasuresAndKeepsAlive(t *testing.T) {
	f := newForge(t, tunnel.AcceptConfig{HeartbeatEvery: 20 * time.Millisecond, SilenceLimit: 200 * time.Millisecond})
	c := f.dialConfig(t)
	c.HeartbeatEvery, c.SilenceLimit = 20*time.Millisecond, 200*time.Millisecond
	p := f.connect(t, c)
	begin := time.Now()
	eventually(t, "a measured round trip", func() bool { return p.agent.RTT() > 0 && p.server.RTT() > 0 })
	eventually(t, "three times the silence limit to pass", func() bool { return time.Since(begin) > 600*time.Millisecond })
	if p.agent.Err() != nil || p.server.Err() != nil {
		t.Errorf("an idle session ended: %v, %v", p.agent.Err(), p.server.Err())
	}
	if age := time.Since(p.server.LastSeen()); age > 200*time.Millisecond {
		t.Errorf("last seen %v ago", age)
	}
}

func TestSilenceEndsASession(t *testing.T) {
	f := newForge(t, tunnel.AcceptConfig{HeartbeatEvery: 20 * time.Millisecond, SilenceLimit: 150 * time.Millisecond})
	relay := newRelay(t, f.Listener.Addr().String())
	c := f.dialConfig(t)
	c.URL = strings.Replace(c.URL, f.Listener.Addr().String(), relay.addr(), 1)
	c.HeartbeatEvery, c.SilenceLimit = 20*time.Millisecond, 150*time.Millisecond
	p := f.connect(t, c)
	go echo(p.server)
	conn, err := p.agent.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	say(t, conn, "alive")

	relay.freeze()
	for name, s := range map[string]*tunnel.Session{"agent": p.agent, "server": p.server} {
		await(t, "the "+name+" to notice the silence", s.Done())
		if !errors.Is(s.Err(), tunnel.ErrSilent) {
			t.Errorf("the %s ended with %v, want %v", name, s.Err(), tunnel.ErrSilent)
		}
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Error("wrote to a stream of a dead session")
	}
}

func TestCutConnectionEndsBothSides(t *testing.T) {
	f := newForge(t, tunnel.AcceptConfig{})
	relay := newRelay(t, f.Listener.Addr().String())
	c := f.dialConfig(t)
	c.URL = strings.Replace(c.URL, f.Listener.Addr().String(), relay.addr(), 1)
	p := f.connect(t, c)
	conn, err := p.agent.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		conn.Read(make([]byte, 1))
		close(read)
	}()
	relay.cut()
	await(t, "the agent to notice", p.agent.Done())
	await(t, "the server to notice", p.server.Done())
	await(t, "the stream's reader to return", read)
	if p.agent.Err() == nil || p.server.Err() == nil {
		t.Errorf("ended without an error: %v, %v", p.agent.Err(), p.server.Err())
	}
	if _, err := p.agent.Open(t.Context()); err == nil {
		t.Error("opened a stream on a dead session")
	}
}

func TestCloseTellsThePeerWhy(t *testing.T) {
	p := connected(t)
	p.server.Close("the token was revoked")
	await(t, "the agent to notice", p.agent.Done())
	got, ok := errors.AsType[*tunnel.CloseError](p.agent.Err())
	if !ok || !got.Peer || got.Reason != "the token was revoked" {
		t.Errorf("the agent ended with %v", p.agent.Err())
	}
	own, ok := errors.AsType[*tunnel.CloseError](p.server.Err())
	if !ok || own.Peer {
		t.Errorf("the server ended with %v", p.server.Err())
	}
	p.server.Close("again")
}

// Whoever serves a session closes it when serving ends; that must not hide
// why it ended.
func TestServerLearnsWhyThePeerClosed(t *testing.T) {
	for range 50 {
		p := connected(t)
		served := make(chan struct{})
		go func() {
			defer close(served)
			p.server.ServeHTTP2(http.NotFoundHandler())
			p.server.Close("served")
		}()
		p.agent.Close("had enough")
		await(t, "the end of serving", served)
		got, ok := errors.AsType[*tunnel.CloseError](p.server.Err())
		if !ok || !got.Peer || got.Reason != "had enough" {
			t.Fatalf("the server's session ended with %v", p.server.Err())
		}
	}
}

func TestCloseOfALongReason(t *testing.T) {
	p := connected(t)
	p.server.Close(strings.Repeat("ä", 500))
	await(t, "the agent to notice", p.agent.Done())
	got, ok := errors.AsType[*tunnel.CloseError](p.agent.Err())
	if !ok || got.Reason != strings.Repeat("ä", 60) {
		t.Errorf("the agent ended with %v", p.agent.Err())
	}
}

func TestDialRefused(t *testing.T) {
	f := newForge(t, tunnel.AcceptConfig{})
	for _, test := range []struct {
		name, path, token string
		status            int
		kind              tidelock.Kind
		message           string
		retryAfter        time.Duration
	}{
		{"bad token", "/-/kubernetes-agent/", "bad", 401, tidelock.Unauthenticated, "the token is unknown", 0},
		{"busy", "/busy", "good", 429, tidelock.Unavailable, "too many connections", 7 * time.Second},
		{"redirect", "/moved", "good", 301, tidelock.Internal, "it redirects to /elsewhere; give that address instead", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := f.dialConfig(t)
			c.URL = "wss" + strings.TrimPrefix(f.URL, "https") + test.path
			c.Header = http.Header{"Authorization": {"Bearer " + test.token}}
			_, err := tunnel.Dial(t.Context(), c)
			refused, ok := errors.AsType[*tunnel.RefusedError](err)
			if !ok {
				t.Fatalf("got %v, want a RefusedError", err)
			}
			if refused.StatusCode != test.status || refused.Message != test.message || refused.RetryAfter != test.retryAfter {
				t.Errorf("got %+v", refused)
			}
			if got := tidelock.KindOf(err); got != test.kind {
				t.Errorf("got kind %v, want %v", got, test.kind)
			}
			if strings.Contains(err.Error(), "Bearer") {
				t.Errorf("the error shows the token: %v", err)
			}
		})
	}
}

func TestDialErrors(t *testing.T) {
	f := newForge(t, tunnel.AcceptConfig{})
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	unknownCA := f.dialConfig(t)
	unknownCA.TLS = &tls.Config{RootCAs: x509.NewCertPool()}
	nobody := f.dialConfig(t)
	nobody.URL = "wss://" + closed.Addr().String() + "/"
	badScheme := f.dialConfig(t)
	badScheme.URL = "ftp://localhost/"
	for name, c := range map[string]tunnel.DialConfig{"unknown CA": unknownCA, "nobody": nobody, "bad scheme": badScheme} {
		t.Run(name, func(t *testing.T) {
			_, err := tunnel.Dial(t.Context(), c)
			if err == nil {
				t.Fatal("dialled")
			}
			if _, ok := errors.AsType[*tunnel.RefusedError](err); ok {
				t.Errorf("got %v, want an error that is not an answer", err)
			}
			t.Log(err)
		})
	}
}

func TestDialThroughAProxy(t *testing.T) {
	f := newForge(t, tunnel.AcceptConfig{})
	var connects atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := parseProxyAuth(r)
		if r.Method != http.MethodConnect || user != "u" || password != "p" {
			http.Error(w, "no", http.StatusProxyAuthRequired)
			return
		}
		connects.Add(1)
		up, err := net.Dial("tcp", r.Host)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		down, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(down, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func() {
			io.Copy(up, rw)
			up.Close()
		}()
		io.Copy(down, up)
		down.Close()
	}))
	t.Cleanup(proxy.Close)
	c := f.dialConfig(t)
	c.Proxy = func(*http.Request) (*url.URL, error) {
		return url.Parse("http://u:p@" + proxy.Listener.Addr().String())
	}
	p := f.connect(t, c)
	go echo(p.server)
	conn, err := p.agent.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	say(t, conn, "through the proxy")
	conn.Close()
	if connects.Load() != 1 {
		t.Errorf("got %d CONNECTs, want 1", connects.Load())
	}
	c.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse("http://" + proxy.Listener.Addr().String()) }
	if _, err := tunnel.Dial(t.Context(), c); err == nil || !strings.Contains(err.Error(), "Proxy Authentication Required") {
		t.Errorf("without credentials: got %v", err)
	}
}

func parseProxyAuth(r *http.Request) (user, password string, ok bool) {
	fake := &http.Request{Header: http.Header{"Authorization": r.Header["Proxy-Authorization"]}}
	return fake.BasicAuth()
}

// TestGarbage sends what no tunnel sends; the server ends that session and
// keeps serving others.
func TestGarbage(t *testing.T) {
	f := newForge(t, tunnel.AcceptConfig{SilenceLimit: 5 * time.Second})
	c := f.dialConfig(t)
	frame := func(version, kind byte, flags uint16, id, length uint32) []byte {
		return []byte{version, kind, byte(flags >> 8), byte(flags),
			byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id),
			byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}
	}
	const syn, ack, fin, rst = 1, 2, 4, 8
	flood := bytes.Repeat(frame(0, 1, syn, 0, 0), 2000)
	for i := range 2000 {
		copy(flood[i*12+4:], []byte{0, 0, byte((2*i + 1) >> 8), byte(2*i + 1)})
	}
	for name, messages := range map[string][][]byte{
		"noise":              {bytes.Repeat([]byte("garbage!"), 4096)},
		"bad version":        {frame(9, 0, 0, 0, 0)},
		"bad type":           {frame(0, 77, 0, 0, 0)},
		"window exceeded":    {frame(0, 1, syn, 1, 0), frame(0, 0, 0, 1, 1<<31)},
		"duplicate stream":   {frame(0, 1, syn, 1, 0), frame(0, 1, syn, 1, 0)},
		"fin twice":          {frame(0, 1, syn, 1, 0), frame(0, 1, fin, 1, 0), frame(0, 1, fin, 1, 0)},
		"ack of nothing":     {frame(0, 1, syn|ack|fin|rst, 2, 1), frame(0, 1, ack, 2, 0), frame(0, 3, 0, 0, 1)},
		"stream flood":       {flood},
		"ping flood":         slices.Repeat([][]byte{bytes.Repeat(frame(0, 2, syn, 0, 7), 11), frame(0, 2, ack, 0, 7)}, 100),
		"huge message":       {make([]byte, 2<<20)},
		"goodbye":            {frame(0, 3, 0, 0, 1)},
		"text":               nil,
		"unexpected go away": {frame(0, 3, 0, 0, 99)},
	} {
		t.Run(name, func(t *testing.T) {
			ws, _, err := websocket.Dial(t.Context(), c.URL, &websocket.DialOptions{
				HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: c.TLS}},
				HTTPHeader: c.Header,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer ws.CloseNow()
			s := <-f.sessions
			defer s.Close("test over")
			go s.ServeHTTP2(http.NotFoundHandler())
			if messages == nil {
				ws.Write(t.Context(), websocket.MessageText, []byte("hello"))
			}
			for _, m := range messages {
				ws.Write(t.Context(), websocket.MessageBinary, m)
			}
			go func() { // read what the server has to say
				for {
					if _, _, err := ws.Read(t.Context()); err != nil {
						return
					}
				}
			}()
			await(t, "the server to end the session", s.Done())
			if s.Err() == nil {
				t.Error("no error")
			}
			t.Log(s.Err())
		})
	}
	// The server still serves.
	p := f.connect(t, c)
	go echo(p.server)
	conn, err := p.agent.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	say(t, conn, "still here")
	conn.Close()
}

func TestNotAWebSocket(t *testing.T) {
	f := newForge(t, tunnel.AcceptConfig{})
	req, _ := http.NewRequestWithContext(t.Context(), "GET", f.URL+"/", nil)
	req.Header.Set("Authorization", "Bearer good")
	resp, err := f.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("got %s, want 426", resp.Status)
	}
}

// A relay is a TCP proxy that a test can freeze or cut.
type relay struct {
	net.Listener
	mu     sync.Mutex
	frozen chan struct{} // closed when frozen
	conns  []net.Conn
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l, frozen: make(chan struct{})}
	t.Cleanup(func() {
		l.Close()
		r.cut()
	})
	go func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", to)
			if err != nil {
				down.Close()
				continue
			}
			r.mu.Lock()
			r.conns = append(r.conns, down, up)
			r.mu.Unlock()
			go r.copy(up, down)
			go r.copy(down, up)
		}
	}()
	return r
}

func (r *relay) addr() string { return r.Listener.Addr().String() }

func (r *relay) copy(to, from net.Conn) {
	br := bufio.NewReader(from)
	buf := make([]byte, 32<<10)
	for {
		n, err := br.Read(buf)
		select {
		case <-r.frozen:
			return // swallow it, and leave both connections open
		default:
		}
		if err != nil {
			to.Close()
			return
		}
		to.Write(buf[:n])
	}
}

func (r *relay) freeze() { close(r.frozen) }

func (r *relay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
}
