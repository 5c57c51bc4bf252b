package flux

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"tidelock.dev"
)

func testEndpoints(t *testing.T, kube string) *endpoints {
	t.Helper()
	e, err := newEndpoints(&rest.Config{Host: kube, BearerToken: "kube-token"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.close)
	return e
}

func testEndpoint(t *testing.T, base string) *endpoint {
	t.Helper()
	u, err := parseWebhookURL(base)
	if err != nil {
		t.Fatal(err)
	}
	return testEndpoints(t, "http://127.0.0.1:1").open(u)
}

func serve(t *testing.T, handle http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	return server.URL
}

var testHook = &hook{path: "/hook/abc", key: []byte("the key")}

func TestPokeSigns(t *testing.T) {
	var got *http.Request
	var body []byte
	url := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		got = r
		body, _ = io.ReadAll(r.Body)
	})
	c := call{source: "GitRepository/ns/site", announce: Announcement{Number: 7, Project: 3, Goal: tidelock.Goal{Ref: "refs/heads/main", Commit: commitA}}}
	before := time.Now()
	o := testEndpoint(t, url+"/base/").poke(t.Context(), testHook, c.body(), "key")
	if o.err != nil || o.attempts != 1 || o.via != ViaReceiver || o.called.Before(before) || o.answered.Before(o.called) {
		t.Fatalf("outcome: got %+v", o)
	}
	if got.Method != http.MethodPost || got.URL.Path != "/base/hook/abc" {
		t.Errorf("got %s %s", got.Method, got.URL)
	}
	mac := hmac.New(sha256.New, testHook.key)
	mac.Write(body)
	if want := "sha256=" + hex.EncodeToString(mac.Sum(nil)); got.Header.Get("X-Signature") != want {
		t.Errorf("signature: got %q, want %q", got.Header.Get("X-Signature"), want)
	}
	if want := `{"source":"GitRepository/ns/site","number":7,"project":3,"ref":"refs/heads/main","commit":"` + string(commitA) + `"}`; string(body) != want {
		t.Errorf("body: got %s, want %s", body, want)
	}
	if got.Header.Get("Authorization") != "" {
		t.Error("a receiver got the agent's credentials")
	}
}

// The environment's proxies are for the tunnel, not for what goes on in the
// cluster. (They never apply to loopback, so nothing can be seen on the wire.)
func TestNoProxy(t *testing.T) {
	e := testEndpoints(t, "https://kubernetes.example")
	if e.direct.Transport.(*http.Transport).Proxy != nil {
		t.Error("receivers are called through a proxy")
	}
	c, err := New(Config{REST: &rest.Config{Host: "https://kubernetes.example"}, Agent: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HTTPS_PROXY", "http://proxy.example")
	if proxy, err := c.rest.Proxy(httptest.NewRequest(http.MethodGet, "https://kubernetes.example/api", nil)); proxy != nil || err != nil {
		t.Errorf("the API server is called through %v, %v", proxy, err)
	}
}

func TestPokeRetries(t *testing.T) {
	for _, test := range []struct {
		name    string
		answers []int
		calls   int32
		want    error
	}{
		{"good", []int{200}, 1, nil},
		{"not known yet", []int{404, 200}, 2, nil},
		{"restarting", []int{503, 503, 200}, 3, nil},
		{"refused signature", []int{400, 400, 400}, 3, statusError(400)},
		{"broken", []int{500, 500, 500}, 3, statusError(500)},
		{"forbidden", []int{403}, 1, statusError(403)},
		{"redirect", []int{302}, 1, statusError(302)},
		{"no content", []int{204}, 1, statusError(204)},
	} {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int32
			url := serve(t, func(w http.ResponseWriter, r *http.Request) {
				n := calls.Add(1)
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(test.answers[min(int(n), len(test.answers))-1])
			})
			o := testEndpoint(t, url).poke(t.Context(), testHook, nil, "key")
			if !errors.Is(o.err, test.want) || calls.Load() != test.calls || o.attempts != int(test.calls) {
				t.Errorf("got %v after %d calls, want %v after %d", o.err, calls.Load(), test.want, test.calls)
			}
		})
	}
}

func TestPokeRefusedConnection(t *testing.T) {
	url := serve(t, func(http.ResponseWriter, *http.Request) {})
	ep := testEndpoint(t, "http://127.0.0.1:1")
	o := ep.poke(t.Context(), testHook, nil, "key")
	if o.err == nil || o.attempts != attempts || !o.called.IsZero() {
		t.Errorf("got %+v", o)
	}
	if strings.Contains(o.err.Error(), testHook.path) {
		t.Errorf("the error tells the Receiver's path: %v", o.err)
	}
	if usable, _ := ep.usable(time.Now()); usable {
		t.Error("an endpoint that never answered is relied on")
	}
	if usable, _ := testEndpoint(t, url).usable(time.Now()); !usable {
		t.Error("a fresh endpoint is not relied on")
	}
}

// A kept connection that died is no reason for a second attempt.
func TestPokeDeadConnection(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(server.Close)
	ep := testEndpoint(t, server.URL)
	if o := ep.poke(t.Context(), testHook, []byte("{}"), "1"); o.err != nil {
		t.Fatal(o.err)
	}
	server.CloseClientConnections()
	if o := ep.poke(t.Context(), testHook, []byte("{}"), "2"); o.err != nil || o.attempts != 1 {
		t.Errorf("got %+v", o)
	}
}

func TestServiceProxyGoesToTheAPIServer(t *testing.T) {
	var got *http.Request
	kube := serve(t, func(_ http.ResponseWriter, r *http.Request) { got = r })
	u, err := parseWebhookURL("/api/v1/namespaces/flux-system/services/http:webhook-receiver:80/proxy/")
	if err != nil {
		t.Fatal(err)
	}
	o := testEndpoints(t, kube+"/cluster").open(u).poke(t.Context(), testHook, nil, "key")
	if o.err != nil {
		t.Fatal(o.err)
	}
	if want := "/cluster/api/v1/namespaces/flux-system/services/http:webhook-receiver:80/proxy/hook/abc"; got.URL.Path != want || got.Method != http.MethodPost {
		t.Errorf("got %s %s, want POST %s", got.Method, got.URL.Path, want)
	}
	if got.Header.Get("Authorization") != "Bearer kube-token" {
		t.Errorf("authorization: got %q", got.Header.Get("Authorization"))
	}
}

func TestParseWebhookURL(t *testing.T) {
	for text, want := range map[string]webhookURL{
		"":                         {base: DefaultWebhookURL},
		"http://receiver.example":  {base: "http://receiver.example"},
		"https://r.example:8443/a": {base: "https://r.example:8443/a"},
		"https://r.example/a//":    {base: "https://r.example/a"},
		"/api/v1/namespaces/flux-system/services/webhook-receiver/proxy":        {base: "/api/v1/namespaces/flux-system/services/webhook-receiver/proxy", proxied: true},
		"/api/v1/namespaces/flux-system/services/webhook-receiver/proxy/":       {base: "/api/v1/namespaces/flux-system/services/webhook-receiver/proxy", proxied: true},
		"/api/v1/namespaces/a/services/https:b:443/proxy/sub":                   {base: "/api/v1/namespaces/a/services/https:b:443/proxy/sub", proxied: true},
		"http://evil.example/api/v1/namespaces/flux-system/services/evil/proxy": {base: "http://evil.example/api/v1/namespaces/flux-system/services/evil/proxy"},
	} {
		if got, err := parseWebhookURL(text); err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"receiver.example", "ftp://receiver.example", "http://", "http://u:p@receiver.example", "http://r.example?x", "http://r.example#x",
		"/", "/api/v1/secrets", "/api/v1/namespaces/a/services/b", "/api/v1/namespaces/a/pods/b/proxy",
		"/x/api/v1/namespaces/a/services/b/proxy", "/api/v1/namespaces/a/services/b/proxyx",
		"/api/v1/namespaces/a/services/b/proxy/../../../../secrets", "/api/v1/namespaces/a/services/b/proxy/./x",
		"/api/v1/namespaces/a/services/b/proxy//x", "/api/v1/namespaces//services/b/proxy",
		"/api/v1/namespaces/a/services/b/proxy/%2e%2e", "/api/v1/namespaces/a/services/b/proxy?x=y",
		"/api/v1/namespaces/a/services/b/proxy#x", "/api/v1/namespaces/a/services/b\\c/proxy",
		"/api/v1/namespaces/a/services/b\nc/proxy", "/api/v1/namespaces/a/services/b c/proxy", "//evil.example/api/v1/namespaces/a/services/b/proxy",
	} {
		if got, err := parseWebhookURL(text); tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("%q: got %+v, %v, want it refused", text, got, err)
		}
	}
}

// A hanging receiver: every call takes as long as it is allowed to.
type hanging struct{ calls atomic.Int32 }

func (h *hanging) RoundTrip(r *http.Request) (*http.Response, error) {
	h.calls.Add(1)
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestHangingEndpointDelaysNobodyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := &hanging{}
		ep := &endpoint{base: "http://receiver", client: &http.Client{Transport: transport}, slots: make(chan struct{}, endpointSlots)}
		began := time.Now()
		var all sync.WaitGroup
		for range 500 {
			all.Go(func() { ep.poke(t.Context(), testHook, nil, "key") })
		}
		all.Wait()
		if took := time.Since(began); took > 2*callTimeout+time.Second {
			t.Errorf("500 sources waited %s", took)
		}
		if n := transport.calls.Load(); n > 2*endpointSlots {
			t.Errorf("%d calls were made", n)
		}

		// From now on nobody waits; one in a while looks if it is back.
		probes := 0
		for range 100 {
			usable, probe := ep.usable(time.Now())
			if usable {
				t.Fatal("it is relied on")
			}
			if probe {
				probes++
			}
			time.Sleep(100 * time.Millisecond)
		}
		if probes < 1 || probes > 3 {
			t.Errorf("probed %d times in 10 s", probes)
		}
		ep.record(nil, time.Now())
		if usable, _ := ep.usable(time.Now()); !usable {
			t.Error("it is back, but not relied on")
		}
	})
}

// Answers that speak of one Receiver say nothing of the others.
func TestBreakerKeepsToTheEndpoint(t *testing.T) {
	ep := &endpoint{}
	now := time.Now()
	for range 10 {
		ep.record(statusError(404), now)
		ep.record(statusError(400), now)
	}
	if usable, _ := ep.usable(now); !usable {
		t.Error("404 and 400 count against the endpoint")
	}
	for _, err := range []error{statusError(503), context.DeadlineExceeded, errors.New("refused")} {
		if usable, _ := ep.usable(now); !usable {
			t.Fatal("given up too early")
		}
		ep.record(err, now)
	}
	if usable, _ := ep.usable(now); usable {
		t.Error("three misses in a row, and it is relied on")
	}
}

func TestNames(t *testing.T) {
	o := newOwner(42, "https://forge.example")
	seen := make(map[string]string)
	long := strings.Repeat("x", 200)
	for _, source := range []string{"a", "site", "a.b-c", long, long + "y", long[:40] + "." + long[:40], long[:41] + "-" + long[:40]} {
		name := o.name(source, types.UID("uid of "+source))
		if len(name) > maxName || !strings.HasPrefix(name, "tidelock-42-") {
			t.Errorf("%q: got %q", source, name)
		}
		if strings.Contains(name, "--") || strings.Contains(name, ".-") {
			t.Errorf("%q: got %q", source, name)
		}
		if other, taken := seen[name]; taken {
			t.Errorf("%q and %q are both %q", source, other, name)
		}
		seen[name] = source
	}
	if newOwner(1, "https://a.example").name("x", "uid") == newOwner(1, "https://b.example").name("x", "uid") {
		t.Error("agents of two forges have one name")
	}
	labels := o.labelsFor("uid")
	if !o.made(labels, "uid") || o.made(labels, "other") || newOwner(42, "https://other.example").made(labels, "uid") || newOwner(43, "https://forge.example").made(labels, "uid") {
		t.Error("it does not know its own objects")
	}
}

func TestFeed(t *testing.T) {
	next := func(f *SourceFeed) SourceChanges {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		changes, err := f.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return changes
	}
	f := newFeed[tidelock.SourceID, Source]()
	f.start(nil)
	if c := next(f); !c.Complete || len(c.Upserts) != 0 {
		t.Errorf("got %+v, want the empty set", c)
	}
	for i := range 1000 {
		f.upsert("a", Source{ID: "a", Revision: fmt.Sprint(i)})
		f.advance("a", Progress{Source: "a", Number: int64(i)})
	}
	if c := next(f); c.Complete || len(c.Upserts) != 1 || c.Upserts[0].Revision != "999" || len(c.Progress) != 1 || c.Progress[0].Number != 999 {
		t.Errorf("got %+v, want the newest only", c)
	}
	f.upsert("a", Source{ID: "a"})
	f.remove("a")
	if c := next(f); len(c.Upserts) != 0 || len(c.Removals) != 1 {
		t.Errorf("got %+v, want the removal only", c)
	}
	f.remove("b")
	f.start(map[tidelock.SourceID]Source{"a": {ID: "a"}})
	if c := next(f); !c.Complete || len(c.Upserts) != 1 || len(c.Removals) != 0 {
		t.Errorf("got %+v, want the set only", c)
	}
	f.close()
	if _, err := f.Next(t.Context()); !errors.Is(err, ErrFeedEnded) {
		t.Errorf("got %v, want %v", err, ErrFeedEnded)
	}
}
