package gitlabapi_test

import (
	"crypto/sha1"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/gitlabapi"
	"tidelock.dev/internal/limit"
)

func TestLargeRoutesExist(t *testing.T) {
	for _, name := range gitlabapi.LargeRoutes() {
		if method, path, _ := strings.Cut(name, " "); routeOf(method, path) != name {
			t.Errorf("%s has a limit of its own, but is not in the table", name)
		}
	}
}

func routeOf(method, path string) string {
	route, _ := gitlabapi.RouteOf(method, path)
	return route
}

// Who may write to a repository may send large commits; nobody else may make
// us read so much, and there is an end for everybody.
func TestSizesOfBodies(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Public), "site", tidelock.Public)
	w.push(project, map[string]string{"a.yaml": "a: 1\n"})
	commit := func(size int) string {
		return fmt.Sprintf(`{"branch":"main","commit_message":"x","actions":[{"action":"create","encoding":"base64","file_path":"f%d","content":"%s"}]}`,
			size, strings.Repeat("AAAA", (size+2)/3))
	}
	const commits = "/projects/team%2Fsite/repository/commits"
	asRoot := []string{"Private-Token: " + w.token}
	asOther := []string{"Private-Token: " + w.personal(w.user("other"), tidelock.ScopeAPI)}
	form := append(asRoot, "Content-Type: application/x-www-form-urlencoded")
	for _, tc := range []struct {
		name, path, body string
		headers          []string
		want             int
	}{
		{"large, by who may write", commits, commit(3 << 20), asRoot, 201},
		{"larger than all", commits, commit(49 << 20), asRoot, 413},
		{"large, by who may not write", commits, commit(3 << 20), asOther, 413},
		{"small, by who may not write", commits, commit(1), asOther, 403},
		{"large, by nobody", commits, commit(3 << 20), nil, 413},
		{"large, somewhere else", "/projects", `{"name":"` + strings.Repeat("x", 3<<20) + `"}`, asRoot, 413},
		{"large form", "/projects", "name=" + strings.Repeat("x", 3<<20), form, 413},
		{"many names in JSON", "/projects", "{" + names(1001, `"p%d":1`, ",") + "}", asRoot, 400},
		{"many names in a form", "/projects", names(1001, "p%d=1", "&"), form, 400},
		{"many names in the query", "/projects?" + names(1001, "p%d=1", "&"), "", asRoot, 400},
		{"many values", commits, `{"n":[` + strings.Repeat("{},", 200_000) + `0],` + commit(2)[1:], asRoot, 400},
		{"many values in a text", commits, `{"n":"` + strings.Repeat("{},", 200_000) + `",` + commit(2)[1:], asRoot, 201},
		{"deep JSON", "/projects", `{"name":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}", asRoot, 400},
		{"deep only in a text", "/projects", `{"path":"deep","description":"` + strings.Repeat("[{", 50) + `\""}`, asRoot, 201},
	} {
		if got := w.call("POST", tc.path, tc.body, tc.headers...); got.status != tc.want {
			t.Errorf("%s: got %d %.200s, want %d", tc.name, got.status, got.body, tc.want)
		}
	}
}

func names(n int, format, between string) string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf(format, i)
	}
	return strings.Join(all, between)
}

// Of requests that cost much a caller has only a few running, and others are
// served meanwhile.
func TestLargeRequestsAtATime(t *testing.T) {
	w := newWorld(t)
	w.project(w.group("team", tidelock.Public), "site", tidelock.Public)
	external, err := url.Parse("http://forge.example")
	must(t, err)
	api, err := gitlabapi.New(gitlabapi.Config{
		Forge: w.forge, Repos: w.repos, Log: slog.New(slog.DiscardHandler), ExternalURL: external,
		Limits: limit.NewGuard(limit.Config{Large: 2}),
	})
	must(t, err)
	const pattern = "/projects/:id/repository/compare"
	entered, leave := make(chan struct{}), make(chan struct{})
	api.Replace(http.MethodGet, pattern, func() error {
		entered <- struct{}{}
		<-leave
		return nil
	})
	call := func(token string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/v4/projects/team%2Fsite/repository/compare?from=a&to=b", nil)
		r.Header.Set("Private-Token", token)
		answer := httptest.NewRecorder()
		api.ServeHTTP(answer, r)
		return answer
	}
	other := w.personal(w.user("other"), tidelock.ScopeAPI)
	var running sync.WaitGroup
	for _, token := range []string{w.token, w.token, other} {
		running.Go(func() { call(token) })
		<-entered
	}
	got := call(w.token)
	if want := `{"message":{"error":"This endpoint has been requested too many times. Try again later."}}`; got.Code != http.StatusTooManyRequests ||
		got.Body.String() != want || got.Header().Get("Retry-After") != "1" {
		t.Errorf("a third at a time: got %d %s %v", got.Code, got.Body, got.Header())
	}
	close(leave)
	running.Wait()
	go func() { <-entered }()
	if got := call(w.token); got.Code != http.StatusOK {
		t.Errorf("afterwards: got %d %s", got.Code, got.Body)
	}
}

// What is large is known only from what is asked for; whatever is small is
// served beside it.
func TestLargeFilesAtATime(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Public), "site", tidelock.Public)
	w.push(project, map[string]string{"small": "a", "large": strings.Repeat("a", 2<<20)})
	external, err := url.Parse("http://forge.example")
	must(t, err)
	api, err := gitlabapi.New(gitlabapi.Config{
		Forge: w.forge, Repos: w.repos, Log: slog.New(slog.DiscardHandler), ExternalURL: external,
		Limits: limit.NewGuard(limit.Config{Large: 1}),
	})
	must(t, err)
	entered, leave := make(chan struct{}), make(chan struct{})
	api.Replace(http.MethodGet, "/projects/:id/repository/compare", func() error {
		close(entered)
		<-leave
		return nil
	})
	get := func(path string) int {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/api/v4/projects/team%2Fsite/repository"+path, nil)
		r.Header.Set("Private-Token", w.token)
		answer := httptest.NewRecorder()
		api.ServeHTTP(answer, r)
		return answer.Code
	}
	small := []string{"/files/small?ref=main", "/files/small/raw", "/tree", "/blobs/" + blobName("a"), "/blobs/" + blobName("a") + "/raw"}
	big := blobName(strings.Repeat("a", 2<<20))
	large := []string{"/files/large?ref=main", "/files/large/raw", "/tree?recursive=true", "/blobs/" + big, "/blobs/" + big + "/raw"}
	var running sync.WaitGroup
	running.Go(func() { get("/compare?from=a&to=b") })
	<-entered
	for _, path := range small {
		if got := get(path); got != http.StatusOK {
			t.Errorf("%s beside a large request: got %d", path, got)
		}
	}
	for _, path := range large {
		if got := get(path); got != http.StatusTooManyRequests {
			t.Errorf("%s beside a large request: got %d", path, got)
		}
	}
	close(leave)
	running.Wait()
	for _, path := range large {
		if got := get(path); got != http.StatusOK {
			t.Errorf("%s: got %d", path, got)
		}
	}
}

// blobName is the name that git gives a content.
func blobName(content string) string {
	return fmt.Sprintf("%x", sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(content), content)))
}
