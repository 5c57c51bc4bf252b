package forge_test

import (
	"strconv"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// TestTransferProject asks for what may not be, and then for what may.
func TestTransferProject(t *testing.T) {
	w := newWorld(t)
	from, to := w.group("from", tidelock.Public), w.group("to", tidelock.Public)
	closed := w.group("closed", tidelock.Private)
	project := w.project(from, "site", tidelock.Public)
	id := strconv.FormatInt(int64(project.ID), 10)
	heard := make(chan tidelock.AccessChanged, 10)
	sub, err := forge.Subscribe(w.Forge, func(e tidelock.AccessChanged) { heard <- e })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()

	owner, maintainer, guest := w.user("owner"), w.user("maintainer"), w.user("guest")
	w.member(forge.OnProject(project), owner, tidelock.Owner)
	w.member(forge.OnGroup(to), owner, tidelock.Developer)
	w.member(forge.OnGroup(closed), owner, tidelock.Developer)
	w.member(forge.OnProject(project), maintainer, tidelock.Maintainer)
	w.member(forge.OnGroup(to), maintainer, tidelock.Owner)
	w.member(forge.OnProject(project), guest, tidelock.Owner)
	w.member(forge.OnGroup(to), guest, tidelock.Guest)

	for _, tt := range []struct {
		name string
		by   tidelock.User
		to   string
		kind tidelock.Kind
	}{
		{"not an owner of the project", maintainer, "to", tidelock.Denied},
		{"may not create projects there", guest, "to", tidelock.Denied},
		{"cannot see the group", guest, "closed", tidelock.NotFound},
		{"no such group", owner, "nowhere", tidelock.NotFound},
		{"more visible than the group", owner, "closed", tidelock.Invalid},
		{"where it is", *w.root.User, "from", tidelock.Invalid},
	} {
		if _, err := w.TransferProject(t.Context(), as(tt.by), id, tt.to); tidelock.KindOf(err) != tt.kind {
			t.Errorf("%s: got %v, want kind %v", tt.name, err, tt.kind)
		}
	}
	if got, err := w.Project(t.Context(), w.root, id); err != nil || got.FullPath != "from/site" {
		t.Fatalf("after refusals it is at %q, %v", got.FullPath, err)
	}
	for len(heard) > 0 {
		<-heard
	}

	got, err := w.TransferProject(t.Context(), as(owner), id, "to")
	if err != nil || got.FullPath != "to/site" || got.Namespace != to.ID || got.Visibility != tidelock.Public {
		t.Fatalf("got %+v, %v", got, err)
	}
	select {
	case e := <-heard:
		if e.Project != project.ID {
			t.Errorf("heard of project %d", e.Project)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody was told that access may have changed")
	}
	if old, err := w.Project(t.Context(), w.root, "from/site"); err != nil || old.ID != project.ID {
		t.Errorf("the old path leads to %+v, %v", old, err)
	}
	another := w.project(from, "site", tidelock.Public)
	if old, err := w.Project(t.Context(), w.root, "from/site"); err != nil || old.ID != another.ID {
		t.Errorf("the old path, taken, leads to %+v, %v", old, err)
	}
}
