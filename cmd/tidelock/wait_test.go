package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidelock.dev"
)

func TestProjectOfRemote(t *testing.T) {
	for _, tc := range []struct{ remote, server, want string }{
		{"https://forge.example/team/site.git", "https://forge.example", "team/site"},
		{"https://forge.example/team/site", "https://forge.example/", "team/site"},
		{"https://forge.example:8443/team/site.git", "https://forge.example:8443", "team/site"},
		{"https://forge.example:8443/team/site.git", "https://forge.example", ""},
		{"https://forge.example/tide/team/site.git", "https://forge.example/tide", "team/site"},
		{"https://forge.example/tides/team/site.git", "https://forge.example/tide", ""},
		{"https://other.example/team/site.git", "https://forge.example", ""},
		{"ssh://git@forge.example:2222/team/site.git", "https://forge.example/tide", "team/site"},
		{"git@forge.example:team/site.git", "https://forge.example", "team/site"},
		{"git@other.example:team/site.git", "https://forge.example", ""},
		{"/srv/git/site.git", "https://forge.example", ""},
		{"", "https://forge.example", ""},
	} {
		if got := projectOf(tc.remote, tc.server); got != tc.want {
			t.Errorf("projectOf(%q, %q) = %q, want %q", tc.remote, tc.server, got, tc.want)
		}
	}
}

// waitOn runs a wait against a server that answers by a function.
func waitOn(t *testing.T, timeout time.Duration, answer func(n int, w http.ResponseWriter, r *http.Request)) (stderr string, err error) {
	t.Helper()
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer(int(asked.Add(1)), w, r)
	}))
	defer server.Close()
	c, err := source{URL: server.URL, from: "the test"}.connect()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	w := wait{env: &environment{stderr: &out}, connection: c, project: "team/site", commit: "main", timeout: timeout}
	_, err = w.run(t.Context())
	return out.String(), err
}

func liveAnswer(w http.ResponseWriter, state, version string) {
	json.NewEncoder(w).Encode(map[string]any{"sha": strings.Repeat("a", 40), "state": state, "version": version, "message": "it is " + state, "rollouts": []any{}})
}

func TestWaitOutlivesItsServer(t *testing.T) {
	t.Parallel()
	stderr, err := waitOn(t, time.Minute, func(n int, w http.ResponseWriter, r *http.Request) {
		switch {
		case n == 1:
			if r.URL.EscapedPath() != "/api/v4/projects/team%2Fsite/repository/commits/main/live" {
				t.Errorf("asked for %s", r.URL.EscapedPath())
			}
			liveAnswer(w, "waiting", "1")
		case n < 10: // the client tries more than once each time
			if n == 2 { // a branch may move on
				if want := "/commits/" + strings.Repeat("a", 40) + "/live"; !strings.HasSuffix(r.URL.Path, want) || r.URL.Query().Get("version") != "1" {
					t.Errorf("asked for %s", r.URL)
				}
			}
			if n%2 == 0 {
				panic(http.ErrAbortHandler)
			}
			w.WriteHeader(http.StatusBadGateway)
		default:
			liveAnswer(w, "live", "2")
		}
	})
	if err != nil {
		t.Fatalf("got %v, want that it is live", err)
	}
	for _, want := range []string{"aaaaaaaa waiting: it is waiting", "trying again for", "the server is back", "aaaaaaaa live: it is live"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q lacks %q", stderr, want)
		}
	}
}

func TestHowWaitingEnds(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		answer func(w http.ResponseWriter)
		exit   int
		text   string
	}{
		{"live", func(w http.ResponseWriter) { liveAnswer(w, "live", "1") }, exitDone, ""},
		{"failed", func(w http.ResponseWriter) { liveAnswer(w, "failed", "1") }, exitFailed, "aaaaaaaa is not live: it is failed"},
		{"superseded", func(w http.ResponseWriter) { liveAnswer(w, "superseded", "1") }, exitFailed, "aaaaaaaa is not live: it is superseded"},
		{"waiting", func(w http.ResponseWriter) { liveAnswer(w, "waiting", "1") }, exitNotReady, "aaaaaaaa is not live after 0s: it is waiting"},
		{"unknown", func(w http.ResponseWriter) { liveAnswer(w, "unknown", "1") }, exitNotReady, "aaaaaaaa is not live after 0s: it is unknown"},
		{"no such project", func(w http.ResponseWriter) { http.Error(w, `{"message":"404 Project Not Found"}`, http.StatusNotFound) }, exitFailed, "not found, or not visible"},
		{"a token that may not", func(w http.ResponseWriter) { http.Error(w, `{"message":"403 Forbidden"}`, http.StatusForbidden) }, exitFailed, "not allowed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			stderr, err := waitOn(t, 0, func(_ int, w http.ResponseWriter, _ *http.Request) { tc.answer(w) })
			if stderr != "" && err != nil {
				t.Errorf("%q is said before %v", stderr, err)
			}
			if got := exitCode(t.Context(), err); got != tc.exit || tc.text != "" && !strings.Contains(fmt.Sprint(err), tc.text) {
				t.Errorf("got %d, %v, want %d and %q", got, err, tc.exit, tc.text)
			}
		})
	}
}

// TestWaitTellsAFailureOnce lets a commit fail while somebody waits: what is
// told on the way does not say what the end says.
func TestWaitTellsAFailureOnce(t *testing.T) {
	t.Parallel()
	stderr, err := waitOn(t, time.Minute, func(n int, w http.ResponseWriter, r *http.Request) {
		if n == 1 {
			liveAnswer(w, "waiting", "1")
			return
		}
		liveAnswer(w, "failed", "2")
	})
	if want := "tidelock: aaaaaaaa waiting: it is waiting\n"; stderr != want || fmt.Sprint(err) != "aaaaaaaa is not live: it is failed" {
		t.Errorf("got %q and %v, want %q", stderr, err, want)
	}
}

func TestWaitWithoutAServer(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{&url.Error{Op: "Get", Err: errors.New("connection reset by peer")}, true},
		{fmt.Errorf("ask: %w", context.DeadlineExceeded), true},
		{tidelock.Errorf(tidelock.Denied, "no"), false},
	} {
		if got := passes(tc.err); got != tc.want {
			t.Errorf("%v passes: got %t", tc.err, got)
		}
	}
}
