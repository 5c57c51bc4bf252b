package console_test

import (
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/servertest"
)

func TestWhyACommitIsNotLive(t *testing.T) {
	s := servertest.Start(t)
	commit := s.Project("team/site", tidelock.Public).Push("main", "app.yaml", "one")
	b := newBrowser(t, s)
	path := "/team/site/-/commit/" + string(commit) + "/timeline"
	if page := mainOf(t, b.get(path)); strings.Contains(page, "Why it is not live") {
		t.Errorf("it is told to everybody:\n%s", page)
	}
	b.signIn(s.Token)
	page := mainOf(t, b.get(path))
	for _, want := range []string{"Why it is not live", "no cluster follows team/site", "Next:", "sources of all agents"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
}
