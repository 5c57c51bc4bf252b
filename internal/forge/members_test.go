package forge_test

import (
	"fmt"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func TestAllMembers(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	hidden := w.group("hidden", tidelock.Private)
	team, err := w.CreateGroup(ctx, w.root, forge.NewGroup{Parent: hidden.ID, Path: "team"})
	if err != nil {
		t.Fatal(err)
	}
	project := w.project(team, "site", tidelock.Private)
	ada, bob, eve, past := w.user("ada"), w.user("bob"), w.user("eve"), w.user("past")
	w.member(forge.OnGroup(hidden), ada, tidelock.Maintainer)
	w.member(forge.OnProject(project), ada, tidelock.Developer)
	w.member(forge.OnProject(project), bob, tidelock.Reporter)
	if _, err := w.SetMember(ctx, w.root, forge.OnProject(project), past.ID, tidelock.Owner, w.clock.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	w.clock = w.clock.Add(2 * time.Hour)

	for _, by := range []forge.Principal{w.root, as(bob)} {
		members, err := w.AllMembers(ctx, by, forge.OnProject(project))
		if err != nil {
			t.Fatal(err)
		}
		got := map[tidelock.UserID]tidelock.Member{}
		for _, m := range members {
			got[m.User] = m
		}
		if m := got[ada.ID]; m.Level != tidelock.Maintainer || m.Namespace != hidden.ID {
			t.Errorf("ada is %+v, want a maintainer by the group at the top", m)
		}
		if got[bob.ID].Level != tidelock.Reporter {
			t.Errorf("bob is %+v, want a reporter", got[bob.ID])
		}
		if _, there := got[past.ID]; there {
			t.Error("an expired membership is listed")
		}
	}
	if _, err := w.AllMembers(ctx, as(eve), forge.OnProject(project)); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("a stranger lists the members: %v, want not found", err)
	}
	if m, err := w.EffectiveMember(ctx, as(bob), forge.OnProject(project), ada.ID); err != nil || m.Level != tidelock.Maintainer {
		t.Errorf("EffectiveMember = %+v, %v", m, err)
	}
	if m, err := w.Member(ctx, as(bob), forge.OnProject(project), ada.ID); err != nil || m.Level != tidelock.Developer {
		t.Errorf("Member = %+v, %v", m, err)
	}
	if _, err := w.Member(ctx, as(bob), forge.OnProject(project), eve.ID); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("Member of a stranger: %v, want not found", err)
	}
}

// A maintainer could once demote an owner, because only the level given was
// compared with their own.
func TestMembersAboveOneselfAreSafe(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	on := forge.OnProject(project)
	boss, second := w.user("boss"), w.user("second")
	w.member(on, boss, tidelock.Owner)
	w.member(on, second, tidelock.Maintainer)

	if _, err := w.SetMember(ctx, as(second), on, boss.ID, tidelock.Guest, time.Time{}); tidelock.KindOf(err) != tidelock.Denied {
		t.Errorf("a maintainer demotes an owner: %v, want denied", err)
	}
	if _, err := w.EditMember(ctx, as(second), on, boss.ID, tidelock.Guest, nil); tidelock.KindOf(err) != tidelock.Denied {
		t.Errorf("a maintainer edits an owner: %v, want denied", err)
	}
	if err := w.RemoveMember(ctx, as(second), on, boss.ID); tidelock.KindOf(err) != tidelock.Denied {
		t.Errorf("a maintainer removes an owner: %v, want denied", err)
	}
	if _, err := w.AddMember(ctx, as(boss), on, second.ID, tidelock.Guest, time.Time{}); tidelock.KindOf(err) != tidelock.Conflict {
		t.Errorf("a member is added twice: %v, want a conflict", err)
	}
	if m, err := w.EditMember(ctx, as(boss), on, second.ID, tidelock.Developer, nil); err != nil || m.Level != tidelock.Developer {
		t.Errorf("EditMember = %+v, %v", m, err)
	}
}

func TestListsNeedAScope(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	user := w.user("ada")
	by := withScope(user, tidelock.ScopeReadRepository)
	_, _, projects := w.Projects(ctx, by, tidelock.ProjectFilter{}, tidelock.Page{})
	_, _, groups := w.Groups(ctx, by, tidelock.NamespaceFilter{}, tidelock.Page{})
	_, _, pushes := w.RecentPushes(ctx, by, tidelock.Page{})
	for what, err := range map[string]error{"projects": projects, "groups": groups, "pushes": pushes} {
		if answer(err) != "scope" {
			t.Errorf("%s are listed with read_repository: %v, want a ScopeError", what, err)
		}
	}
}

func TestBranches(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	project := w.project(w.group("team", tidelock.Public), "site", tidelock.Public)
	on := forge.OnProject(project)
	dev, lead := w.user("dev"), w.user("lead")
	w.member(on, dev, tidelock.Developer)
	w.member(on, lead, tidelock.Maintainer)
	commit := tidelock.CommitID("1111111111111111111111111111111111111111")
	if _, err := w.store.RecordPush(ctx, tidelock.Push{Project: project.ID, At: w.clock, Updates: []tidelock.RefUpdate{
		{Ref: "refs/heads/main", New: commit, Commit: commit},
		{Ref: "refs/heads/topic", New: commit, Commit: commit},
		{Ref: "refs/tags/v1", New: commit, Commit: commit},
	}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name        string
		by          forge.Principal
		main, topic bool // may push
	}{
		{"anonymous", forge.Principal{}, false, false},
		{"developer", as(dev), false, true},
		{"maintainer", as(lead), true, true},
		{"administrator", w.root, true, true},
	} {
		branches, err := w.Branches(ctx, c.by, project)
		if err != nil {
			t.Fatal(err)
		}
		if len(branches) != 2 {
			t.Fatalf("%s sees %+v, want two branches", c.name, branches)
		}
		main, topic := branches[0], branches[1]
		if main.Name != "main" || !main.Default || !main.Protected || main.DevelopersCanPush || main.Commit != commit {
			t.Errorf("main is %+v", main)
		}
		if topic.Name != "topic" || topic.Default || topic.Protected || !topic.DevelopersCanPush {
			t.Errorf("topic is %+v", topic)
		}
		if main.CanPush != c.main || topic.CanPush != c.topic {
			t.Errorf("%s may push main %t and topic %t, want %t and %t", c.name, main.CanPush, topic.CanPush, c.main, c.topic)
		}
	}
	if _, err := w.Branch(ctx, as(dev), project, "v1"); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("a tag is found as a branch: %v", err)
	}
	if b, err := w.Branch(ctx, as(dev), project, "topic"); err != nil || b.Name != "topic" || !b.CanPush {
		t.Errorf("Branch = %+v, %v", b, err)
	}
}

// Whoever reads a project reads its shares, so there is an end to them.
func TestSharesAreBounded(t *testing.T) {
	w := newWorld(t)
	site := w.site()
	for i := range 201 {
		group, err := w.store.CreateNamespace(t.Context(), tidelock.Namespace{Kind: tidelock.GroupNamespace, Path: fmt.Sprint("g", i)}, w.root.User.ID)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.ShareProject(t.Context(), w.root, site, group.ID, tidelock.Guest, time.Time{})
		if i < 200 && err != nil || i == 200 && tidelock.KindOf(err) != tidelock.Invalid {
			t.Fatalf("share %d: %v", i+1, err)
		}
	}
	shared, err := w.SharedGroups(t.Context(), w.root, site.ID)
	if err != nil || len(shared[site.ID]) != 200 {
		t.Errorf("got %d groups, %v; want 200", len(shared[site.ID]), err)
	}
}
