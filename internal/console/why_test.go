package console_test

import (
	"database/sql"
	"net/http"
	"path/filepath"
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

// TestWhyCannotBeTold looks at a commit when what agents observed cannot be
// read: all else about the commit is shown.
func TestWhyCannotBeTold(t *testing.T) {
	s := servertest.Start(t)
	commit := s.Project("team/site", tidelock.Public).Push("main", "app.yaml", "one")
	db, err := sql.Open("sqlite", "file:"+filepath.Join(s.DataDir, "tidelock.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "ALTER TABLE observations RENAME TO gone"); err != nil {
		t.Fatal(err)
	}
	b := newBrowser(t, s)
	b.signIn(s.Token)
	answer := b.get("/team/site/-/commit/" + string(commit) + "/timeline")
	if answer.Status != http.StatusOK {
		t.Fatalf("got %d", answer.Status)
	}
	page := mainOf(t, answer)
	for _, want := range []string{"Is it live?", "cannot be told now", "Where it came from"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
}
