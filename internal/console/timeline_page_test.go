package console_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/servertest"
)

func TestTimelineOfACommit(t *testing.T) {
	s := servertest.Start(t)
	site := s.Project("Team/Site", tidelock.Public)
	first := site.Push("main", "app.yaml", "one")
	second := site.Push("main", "app.yaml", "two")
	third := site.Push("feature/x", "app.yaml", "three")
	b := newBrowser(t, s)

	if link := `href="/Team/Site/-/commit/` + string(third) + `/timeline"`; !strings.Contains(mainOf(t, b.get("/Team/Site")), link) {
		t.Errorf("the project lacks %s", link)
	}
	page := mainOf(t, b.get("/Team/Site/-/commit/"+string(first)+"/timeline"))
	for _, want := range []string{string(first), "main", "pushed", `href="/Team/Site"`, "shown to members"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s:\n%s", want, page)
		}
	}
	b.signIn(s.Token)
	for query, want := range map[string]string{"": `href="?hold"`, "?hold": "stands still"} {
		page := b.get("/Team/Site/-/commit/" + string(third) + "/timeline" + query).Body
		if again := strings.Contains(page, `http-equiv="refresh"`); again != (query == "") || !strings.Contains(page, want) {
			t.Errorf("%q: it is read again: %t, or it lacks %s:\n%s", query, again, want, page)
		}
	}
	for path, want := range map[string]string{
		"/Team/Site/-/commit/main":                               string(second), // a name for it, the bare commit
		"/Team/Site/-/commit/feature/x/timeline":                 string(third),
		"/Team/Site/-/commit/" + string(first[:9]) + "/timeline": string(first),
		"/team/site/-/commit/" + string(first) + "/timeline":     string(first),
	} {
		if page := mainOf(t, b.get(path)); !strings.Contains(page, "<code>"+want+"</code>") {
			t.Errorf("%s does not lead to %s", path, want)
		}
	}
	for _, path := range []string{
		"/Team/Site/-/commit/", "/Team/Site/-/commit/nope/timeline", "/Team/Site/-/commit/" + strings.Repeat("1", 40) + "/timeline",
		"/Team/Site/-/commit/" + string(first) + "/other", "/Team/Nope/-/commit/" + string(first) + "/timeline",
		"/Team/Site/-/images/x/-/commit/" + string(first) + "/timeline",
	} {
		if answer := b.get(path); answer.Status != http.StatusNotFound {
			t.Errorf("%s: got %d", path, answer.Status)
		}
	}
}

// TestPipelineLeadsToItsCommit follows the URL that the API and hooks have for
// a pipeline.
func TestPipelineLeadsToItsCommit(t *testing.T) {
	s := servertest.Start(t)
	site := s.Project("team/site", tidelock.Private)
	commit := site.Push("main", "app.yaml", "one")
	s.Call(s.Token, http.MethodPost, fmt.Sprintf("projects/%d/statuses/%s", site.ID, commit), map[string]any{"state": "success"}, nil)
	var pipelines []struct {
		WebURL string `json:"web_url"`
	}
	s.Call(s.Token, http.MethodGet, fmt.Sprintf("projects/%d/pipelines", site.ID), nil, &pipelines)
	if len(pipelines) != 1 {
		t.Fatalf("got %d pipelines", len(pipelines))
	}
	path := strings.TrimPrefix(pipelines[0].WebURL, s.URL)
	b := newBrowser(t, s)
	if answer := b.get(path); answer.Status != http.StatusNotFound {
		t.Errorf("a stranger got %d", answer.Status)
	}
	b.signIn(s.Token)
	if page := mainOf(t, b.get(path)); !strings.Contains(page, "<code>"+string(commit)+"</code>") {
		t.Errorf("%s does not lead to %s:\n%s", path, commit, page)
	}
	for _, path := range []string{path + "0", path + "/x", "/team/site/-/pipelines/", "/team/site/-/pipelines/x"} {
		if answer := b.get(path); answer.Status != http.StatusNotFound {
			t.Errorf("%s: got %d", path, answer.Status)
		}
	}
}
