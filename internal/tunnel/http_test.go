package tunnel_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidelock.dev/internal/tunnel"
)

// serving runs an accept loop of a session and waits for it at the end.
func serving(t *testing.T, s *tunnel.Session, serve func(http.Handler) error, h http.Handler) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := serve(h); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	t.Cleanup(func() {
		s.Close("test over")
		await(t, "the server to return", done)
	})
}

func TestRPCSharesOneStream(t *testing.T) {
	p := connected(t)
	arrived := make(chan struct{}, 50)
	release := make(chan struct{})
	serving(t, p.server, p.server.ServeHTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("got %s, want HTTP/2", r.Proto)
		}
		arrived <- struct{}{}
		<-release
		io.Copy(w, r.Body)
	}))
	client := p.agent.Client()
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			text := fmt.Sprintf("call %d", i)
			resp, err := client.Post("http://agent.invalid/", "text/plain", strings.NewReader(text))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if got, err := io.ReadAll(resp.Body); string(got) != text || err != nil {
				t.Errorf("got %q and %v, want %q", got, err, text)
			}
		})
	}
	for range 50 {
		<-arrived
	}
	if got := p.agent.OpenStreams(); got != 1 {
		t.Errorf("50 calls at once opened %d streams, want 1", got)
	}
	close(release)
	all.Wait()
}

func TestRPCBidirectionalStream(t *testing.T) {
	p := connected(t)
	serving(t, p.server, p.server.ServeHTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "you said %s\n", lines.Text())
			rc.Flush()
		}
	}))
	up, writer := io.Pipe()
	defer writer.Close()
	go io.WriteString(writer, "0\n")
	resp, err := p.agent.Client().Post("http://x/", "text/plain", up)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf("you said %d", i) {
			t.Fatalf("got %q and %v", lines.Text(), lines.Err())
		}
		fmt.Fprintf(writer, "%d\n", i+1)
	}
}

// TestCancelEndsASilentStream cancels a call whose body has nothing to say;
// net/http alone would wait for the body's next piece.
func TestCancelEndsASilentStream(t *testing.T) {
	p := connected(t)
	ended := make(chan struct{})
	serving(t, p.server, p.server.ServeHTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(ended)
	}))
	ctx, cancel := context.WithCancel(t.Context())
	body, writer := io.Pipe()
	defer writer.Close()
	req, _ := http.NewRequestWithContext(ctx, "POST", "http://x/", body)
	resp, err := p.agent.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	read := make(chan struct{})
	go func() {
		io.Copy(io.Discard, resp.Body)
		close(read)
	}()
	cancel()
	await(t, "the answer to end", read)
	await(t, "the handler's context to end", ended)
}

func TestHandlerContextEndsWithTheSession(t *testing.T) {
	p := connected(t)
	running, ended := make(chan struct{}), make(chan struct{})
	serving(t, p.server, p.server.ServeHTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(running)
		<-r.Context().Done()
		close(ended)
	}))
	go p.agent.Client().Get("http://x/")
	await(t, "the handler to run", running)
	p.agent.Close("going")
	await(t, "the handler's context to end", ended)
}

// api is what an agent serves to its server's kube proxy.
func api(t *testing.T) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			t.Errorf("got %s, want HTTP/1.1", r.Proto)
		}
		io.WriteString(w, "v1")
	})
	mux.HandleFunc("GET /flood", func(w http.ResponseWriter, r *http.Request) {
		piece := make([]byte, 64<<10)
		for {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("GET /watch", func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprintf(w, "event %d\n", i)
			http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	})
	mux.HandleFunc("GET /exec", func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
		io.Copy(conn, rw)
	})
	return mux
}

// proxied serves the agent's api through a reverse proxy, as the kube proxy does.
func proxied(t *testing.T) (*url.URL, pair) {
	t.Helper()
	tunnel.ShortenCloseLimit(t, 100*time.Millisecond)
	p := connected(t)
	serving(t, p.agent, p.agent.ServeHTTP1, api(t))
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Transport:     p.server.RoundTripper(),
		FlushInterval: -1,
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "agent"}) },
		ErrorLog:      nil,
	})
	t.Cleanup(proxy.Close)
	u, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u, p
}

func get(t *testing.T, u *url.URL, path string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", u.JoinPath(path).String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestProxyStreams(t *testing.T) {
	u, _ := proxied(t)
	lines := bufio.NewScanner(get(t, u, "/watch").Body)
	for i := range 3 {
		if !lines.Scan() || lines.Text() != fmt.Sprintf("event %d", i) {
			t.Fatalf("got %q and %v", lines.Text(), lines.Err())
		}
	}
}

func TestProxySlowReaderStallsNobodyElse(t *testing.T) {
	u, p := proxied(t)
	slow := get(t, u, "/flood") // and never read
	if _, err := io.ReadFull(slow.Body, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		body, err := io.ReadAll(get(t, u, "/version").Body)
		if string(body) != "v1" || err != nil {
			t.Fatalf("got %q and %v", body, err)
		}
	}
	// When the slow reader leaves, its stream ends on both sides.
	slow.Body.Close()
	eventually(t, "the flood's stream to end", func() bool { return p.agent.OpenStreams() <= 1 && p.server.OpenStreams() <= 1 })
}

func TestProxyUpgrade(t *testing.T) {
	u, _ := proxied(t)
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	req, _ := http.NewRequestWithContext(ctx, "GET", u.JoinPath("/exec").String(), nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "SPDY/3.1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %s", resp.Status)
	}
	conn := resp.Body.(io.ReadWriteCloser)
	defer conn.Close()
	for range 3 {
		io.WriteString(conn, "typed")
		back := make([]byte, 5)
		if _, err := io.ReadFull(conn, back); err != nil || string(back) != "typed" {
			t.Fatalf("got %q and %v", back, err)
		}
	}
}

func TestDrainLetsStreamsFinish(t *testing.T) {
	p := connected(t)
	running, release := make(chan struct{}), make(chan struct{})
	var draining atomic.Bool
	serving(t, p.server, p.server.ServeHTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(running)
		<-p.server.Draining()
		draining.Store(true)
		<-release
		io.WriteString(w, "finished")
	}))
	answer := make(chan string, 1)
	client := p.agent.Client()
	go func() {
		resp, err := client.Get("http://x/")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answer <- string(body)
	}()
	await(t, "the handler to run", running)
	drained := make(chan struct{})
	go func() {
		p.server.Drain(context.Background(), "restarting")
		close(drained)
	}()
	eventually(t, "the handler to hear of it", draining.Load)
	eventually(t, "new streams to be refused", func() bool {
		conn, err := p.agent.Open(t.Context())
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, tunnel.ErrDraining)
	})
	if _, err := p.server.Open(t.Context()); !errors.Is(err, tunnel.ErrDraining) {
		t.Errorf("open while draining: %v, want %v", err, tunnel.ErrDraining)
	}
	select {
	case <-drained:
		t.Fatal("drained with a call in flight")
	default:
	}
	close(release)
	if got := <-answer; got != "finished" {
		t.Errorf("the call in flight got %q", got)
	}
	await(t, "the drain", drained)
	await(t, "the agent to notice", p.agent.Done())
	if e, ok := errors.AsType[*tunnel.CloseError](p.agent.Err()); !ok || e.Reason != "restarting" {
		t.Errorf("the agent ended with %v", p.agent.Err())
	}
}

func TestDrainOfAnIdleClientIsQuick(t *testing.T) {
	p := connected(t)
	serving(t, p.server, p.server.ServeHTTP2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	resp, err := p.agent.Client().Get("http://x/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	begin := time.Now()
	p.agent.Drain(t.Context(), "stopping")
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
	await(t, "the server to notice", p.server.Done())
}

func TestDrainGivesUp(t *testing.T) {
	p := connected(t)
	go echo(p.agent)
	conn, err := p.server.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	say(t, conn, "and then nothing")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	p.server.Drain(ctx, "restarting")
	await(t, "the server to end", p.server.Done())
}

func BenchmarkStream(b *testing.B) {
	f := newBenchForge(b)
	conn, err := f.agent.Open(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	piece := make([]byte, 64<<10)
	b.SetBytes(int64(len(piece)))
	for b.Loop() {
		if _, err := conn.Write(piece); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCall(b *testing.B) {
	f := newBenchForge(b)
	client := f.agent.Client()
	for b.Loop() {
		resp, err := client.Get("http://x/")
		if err != nil {
			b.Fatal(err)
		}
		resp.Body.Close()
	}
}

// newBenchForge connects a pair whose server answers calls and swallows the rest.
func newBenchForge(b *testing.B) pair {
	b.Helper()
	sessions := make(chan *tunnel.Session, 1)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s, err := tunnel.Accept(w, r, tunnel.AcceptConfig{})
		if err != nil {
			b.Error(err)
			return
		}
		sessions <- s
	}))
	b.Cleanup(server.Close)
	agent, err := tunnel.Dial(b.Context(), tunnel.DialConfig{
		URL: "wss" + strings.TrimPrefix(server.URL, "https"),
		TLS: server.Client().Transport.(*http.Transport).TLSClientConfig,
	})
	if err != nil {
		b.Fatal(err)
	}
	p := pair{agent, <-sessions}
	b.Cleanup(func() {
		p.agent.Close("over")
		p.server.Close("over")
	})
	if b.Name() == "BenchmarkCall" {
		go p.server.ServeHTTP2(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		return p
	}
	go func() {
		for {
			conn, err := p.server.Accept()
			if err != nil {
				return
			}
			go io.Copy(io.Discard, conn)
		}
	}()
	return p
}
