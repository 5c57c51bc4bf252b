package gitrepo_test

import (
	"strings"
	"testing"
	"time"

	"tidelock.dev"
)

func TestTag(t *testing.T) {
	ctx := t.Context()
	repo := create(t)
	work := clone(t, repo)
	first := commit(t, work, "a.txt", "one", "First")
	git(t, work, "tag", "-a", "v1", "-m", "The first\n\nof many \xff")
	git(t, work, "tag", "light")
	git(t, work, "push", "-q", "origin", "HEAD:main", "--tags")

	object := tidelock.CommitID(git(t, work, "rev-parse", "v1"))
	tag, err := repo.Tag(ctx, object)
	if err != nil {
		t.Fatal(err)
	}
	if tag.Object != object || tag.Target != first || tag.Message != "The first\n\nof many \uFFFD" || !strings.HasPrefix(tag.Tagger, "Bob <") {
		t.Errorf("Tag = %+v", tag)
	}
	if tag.When.IsZero() || tag.When.After(time.Now().Add(time.Hour)) {
		t.Errorf("tagged at %s", tag.When)
	}
	for _, object := range []tidelock.CommitID{first, "", "v1", "-", tidelock.CommitID(strings.Repeat("0", 40))} {
		if _, err := repo.Tag(ctx, object); tidelock.KindOf(err) != tidelock.NotFound {
			t.Errorf("Tag(%q): %v, want not found", object, err)
		}
	}
}
