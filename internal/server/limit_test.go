package server_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/server"
	"tidelock.dev/internal/servertest"
)

// surfaces are one path of each, and how it answers who asks too much.
var surfaces = []struct {
	name, path, contentType, says string
}{
	{"api", "/api/v4/projects", "application/json", `{"message":{"error":"This endpoint has been requested too many times. Try again later."}}`},
	{"git", "/team/site.git/info/refs?service=git-upload-pack", "text/plain; charset=utf-8", "too many requests; try again in "},
	{"console", "/", "text/html; charset=utf-8", "Too many requests"},
}

func TestAnonymousRequestsAreLimited(t *testing.T) {
	s := servertest.Start(t, func(c *server.Config) { c.RateLimitAnonymous = 5 })
	s.Project("team/site", tidelock.Public)
	for _, surface := range surfaces {
		var got servertest.Response
		for range 20 { // the address may be that of IPv4 or of IPv6
			if got = s.Do(http.MethodGet, surface.path, "", nil); got.Status == http.StatusTooManyRequests {
				break
			}
		}
		refused(t, surface.name, got, surface.contentType, surface.says)
		if got := got.Header.Get("RateLimit-Name"); got != "anonymous" {
			t.Errorf("%s: got the limit %q, want anonymous", surface.name, got)
		}
	}
	// Who signs in is not anonymous, and nobody limits probes.
	if got := s.Do(http.MethodGet, "/api/v4/projects", s.Token, nil); got.Status != http.StatusOK {
		t.Errorf("signed in: got %d", got.Status)
	}
	for _, path := range []string{"/-/healthz", "/-/readyz", "/-/metrics"} {
		for range 10 {
			if got := s.Do(http.MethodGet, path, "", nil); got.Status != http.StatusOK {
				t.Errorf("%s: got %d", path, got.Status)
			}
		}
	}
	metrics := s.Do(http.MethodGet, "/-/metrics", "", nil).Body
	for _, surface := range surfaces {
		if want := `tidelock_rate_limited_total{limit="anonymous",surface="` + surface.name + `"} `; !strings.Contains(metrics, want) {
			t.Errorf("the metrics do not have %s", want)
		}
	}
}

// refused checks an answer 429.
func refused(t *testing.T, surface string, got servertest.Response, contentType, says string) {
	t.Helper()
	if got.Status != http.StatusTooManyRequests || got.Header.Get("Content-Type") != contentType || !strings.Contains(got.Body, says) {
		t.Errorf("%s: got %d %s %q, want 429 %s %q", surface, got.Status, got.Header.Get("Content-Type"), got.Body, contentType, says)
	}
	wait, err := strconv.Atoi(got.Header.Get("Retry-After"))
	if err != nil || wait < 1 || wait > 60 {
		t.Errorf("%s: got Retry-After %q, want 1 to 60", surface, got.Header.Get("Retry-After"))
	}
	if got.Header.Get("RateLimit-Remaining") != "0" || got.Header.Get("X-Request-Id") == "" {
		t.Errorf("%s: got headers %v", surface, got.Header)
	}
}

func TestUsersAreLimitedOnAllSurfacesTogether(t *testing.T) {
	s := servertest.Start(t, func(c *server.Config) { c.RateLimitUser = 200 })
	site := s.Project("team/site", tidelock.Private)
	ada, bob := s.User("ada"), s.User("bob")
	site.Member(ada, tidelock.Developer)
	site.Member(bob, tidelock.Developer)
	gitRefs := "/team/site.git/info/refs?service=git-upload-pack"
	first := s.Do(http.MethodGet, "/api/v4/user", ada.Token, nil)
	for name, want := range map[string]string{
		"RateLimit-Limit": "200", "RateLimit-Remaining": "199", "RateLimit-Observed": "1", "RateLimit-Name": "user", "Retry-After": "",
	} {
		if got := first.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	reset, err := http.ParseTime(first.Header.Get("RateLimit-ResetTime"))
	if unix := first.Header.Get("RateLimit-Reset"); err != nil || strconv.FormatInt(reset.Unix(), 10) != unix || time.Until(reset) > time.Minute {
		t.Errorf("got reset %q and %q, %v", unix, first.Header.Get("RateLimit-ResetTime"), err)
	}
	// Each token of hers uses the same allowance.
	other := s.PersonalToken(ada.ID, tidelock.ScopeAPI, tidelock.ScopeReadRepository)
	var last servertest.Response
	for i := range 1000 {
		path, token := "/api/v4/user", ada.Token
		if i%2 == 1 {
			path, token = gitRefs, other
		}
		if last = s.Do(http.MethodGet, path, token, nil); last.Status == http.StatusTooManyRequests {
			break
		}
		if last.Status != http.StatusOK {
			t.Fatalf("%s: got %d %s", path, last.Status, last.Body)
		}
	}
	if last.Status != http.StatusTooManyRequests {
		t.Fatalf("1000 requests of 200 a minute went through")
	}
	if got := s.Do(http.MethodGet, gitRefs, bob.Token, nil); got.Status != http.StatusOK {
		t.Errorf("somebody else: got %d %s", got.Status, got.Body)
	}
	// What git shows to its user, unless only its second request is refused.
	for range 50 {
		out, err := s.Git(t.TempDir(), "ls-remote", site.CloneURL("ada", ada.Token))
		if err != nil && strings.Contains(out, "remote: too many requests; try again in ") {
			return
		}
		if err != nil && !strings.Contains(out, "429") {
			t.Fatalf("git showed %q", out)
		}
	}
	t.Error("git did not say why it was refused")
}

func TestGuessesAreLimited(t *testing.T) {
	s := servertest.Start(t, func(c *server.Config) { c.RateLimitSignIn = 5 })
	site := s.Project("team/site", tidelock.Private)
	_, agent := site.Agent("production")
	gitRefs := "/team/site.git/info/refs?service=git-upload-pack"
	for _, tc := range []struct {
		surface, path string
		bad, good     []string // headers
	}{
		{"api", "/api/v4/user", []string{"Private-Token", "glpat-wrong"}, []string{"Private-Token", s.Token}},
		{"git", gitRefs, []string{"Private-Token", "glpat-wrong"}, []string{"Private-Token", s.Token}},
		{"agent", "/-/kubernetes-agent/", []string{"Authorization", "Bearer glagent-wrong"}, []string{"Authorization", "Bearer " + agent}},
		{"metrics", "/-/metrics", []string{"Private-Token", "glpat-wrong", "Via", "proxy"}, []string{"Private-Token", s.Token, "Via", "proxy"}},
	} {
		var bad servertest.Response
		for range 30 {
			if bad = s.Do(http.MethodGet, tc.path, "", nil, tc.bad...); bad.Status == http.StatusTooManyRequests {
				break
			}
		}
		if bad.Status != http.StatusTooManyRequests || bad.Header.Get("Retry-After") == "" || bad.Header.Get("RateLimit-Name") != "sign_in" {
			t.Errorf("%s: got %d %v for guesses", tc.surface, bad.Status, bad.Header)
		}
		if good := s.Do(http.MethodGet, tc.path, "", nil, tc.good...); good.Status == http.StatusTooManyRequests || good.Status == http.StatusUnauthorized {
			t.Errorf("%s: got %d %s for a good token from the same address", tc.surface, good.Status, good.Body)
		}
	}
	form := func(token string) servertest.Response {
		body := strings.NewReader(url.Values{"token": {token}}.Encode())
		return s.Do(http.MethodPost, "/-/sign_in", "", body, "Content-Type", "application/x-www-form-urlencoded")
	}
	if got := form("glpat-wrong"); got.Status != http.StatusTooManyRequests || !strings.Contains(got.Body, "Too many requests") {
		t.Errorf("console: got %d %q for a guess", got.Status, got.Body)
	}
	if got := form(s.Token); got.Status != http.StatusSeeOther {
		t.Errorf("console: got %d for a good token", got.Status)
	}
}

func TestLimitsAreChecked(t *testing.T) {
	err := server.Config{
		DataDir: "/x", Log: slog.New(slog.DiscardHandler), RateLimitUser: -1, RateLimitAnonymous: -1, RateLimitSignIn: -1,
	}.Validate()
	want := "bad configuration: --rate-limit-user: must not be negative; 0 sets no limit; --rate-limit-anonymous: must not be negative; 0 sets no limit; --rate-limit-sign-in: must not be negative; 0 sets no limit"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// lines is a log that can be read.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// requests are the ids that were logged with answers.
func (l *lines) requests() map[string]bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	ids := map[string]bool{}
	for line := range strings.Lines(l.text.String()) {
		var record struct{ Msg, Request string }
		if json.Unmarshal([]byte(line), &record) == nil && record.Msg == "request answered" {
			ids[record.Request] = true
		}
	}
	return ids
}

func TestRequestIDsOnEverySurface(t *testing.T) {
	log := &lines{}
	s := servertest.Start(t, func(c *server.Config) {
		c.Log = slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.ExternalURL = "https://localhost:8443/tidelock"
	})
	base, err := url.Parse(s.HTTPURL)
	if err != nil {
		t.Fatal(err)
	}
	do := func(method, path, id string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+base.Host+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if id != "" {
			r.Header["X-Request-Id"] = []string{id}
		}
		answer, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		return answer
	}
	seen := map[string]string{} // where, by id
	for _, path := range []string{
		"/-/healthz", "/-/readyz", "/-/metrics", "/outside", "/tidelock",
		"/tidelock/", "/tidelock/nothing", "/tidelock/-/sign_in",
		"/tidelock/api/v4/version", "/tidelock/api/v4/nothing", "/tidelock/api/v4/user",
		"/tidelock/team/none.git/info/refs?service=git-upload-pack", "/tidelock/team/none.git/info/refs",
		"/tidelock/-/kubernetes-agent/", "/tidelock/" + strings.Repeat("a", 20<<10),
	} {
		for _, tc := range []struct {
			given string
			kept  bool
		}{
			{"", false},
			{"8f14e45f-ceea-467f-a0e6-4b7a9c2d6f31", true},
			{"run_42.a", true},
			{strings.Repeat("x", 64), true},
			{strings.Repeat("x", 65), false},
			{"a b", false},
			{"a=b", false},
			{`a"b`, false},
			{"ü", false},
			{"<script>", false},
		} {
			for _, method := range []string{http.MethodGet, http.MethodPut} {
				got := do(method, path, tc.given).Header.Get("X-Request-Id")
				if tc.kept && got != tc.given {
					t.Errorf("%s %.40s: got request id %q, want that given, %q", method, path, got, tc.given)
				}
				if !tc.kept && (len(got) < 20 || seen[got] != "") {
					t.Errorf("%s %.40s: got request id %q for %q, want a new one", method, path, got, tc.given)
				}
				seen[got] = fmt.Sprintf("%s %.40s", method, path)
			}
		}
	}
	logged := log.requests()
	for id, where := range seen {
		if !logged[id] {
			t.Errorf("%s: request id %q is not in the log", where, id)
		}
	}
	if got := do(http.MethodGet, "/tidelock/"+strings.Repeat("a", 20<<10), ""); got.StatusCode != http.StatusRequestURITooLong {
		t.Errorf("a long address: got %d, want 414", got.StatusCode)
	}
	if got := do(http.MethodGet, "/tidelock/?"+strings.Repeat("a", 20<<10), ""); got.StatusCode != http.StatusRequestURITooLong {
		t.Errorf("a long query: got %d, want 414", got.StatusCode)
	}
	if got := do(http.MethodGet, "/tidelock/"+strings.Repeat("a", 80<<10), ""); got.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a longer address: got %d, want 431", got.StatusCode)
	}
}

func TestProblemPagesNameTheRequest(t *testing.T) {
	s := servertest.Start(t)
	got := s.Do(http.MethodGet, "/nothing", "", nil, "X-Request-Id", "mine-7")
	if !strings.Contains(got.Body, "mine-7") {
		t.Errorf("got page %q, which does not name the request", got.Body)
	}
}
