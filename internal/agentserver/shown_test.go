package agentserver_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
)

// shown reads what is recorded of a source; the zero value is nothing.
func (w *world) shown(agent tidelock.AgentID, id string) tidelock.AgentSource {
	w.t.Helper()
	list, err := w.SourcesOf(w.t.Context(), agent)
	check(w.t, err)
	i := slices.IndexFunc(list, func(s tidelock.AgentSource) bool { return s.Source == tidelock.SourceID(id) })
	if i < 0 {
		return tidelock.AgentSource{}
	}
	return list[i]
}

// awaitShown waits until a source is recorded as it should be. Times and the
// agent do not count in want.
func (w *world) awaitShown(agent tidelock.AgentID, want tidelock.AgentSource) (got tidelock.AgentSource) {
	w.t.Helper()
	want.Agent = agent
	for end := time.Now().Add(deadline); ; time.Sleep(5 * time.Millisecond) {
		got = w.shown(agent, string(want.Source))
		want.Since, want.UpdatedAt = got.Since, got.UpdatedAt
		want.Spec, want.Image, want.Refused = got.Spec, got.Image, got.Refused
		if got == want {
			break
		}
		if time.Now().After(end) {
			w.t.Fatalf("recorded\n%+v, want\n%+v", got, want)
		}
	}
	if got.Since.IsZero() || got.UpdatedAt.Before(got.Since) {
		w.t.Errorf("recorded %+v", got)
	}
	return got
}

func TestShownFromConnectToConverged(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	first := w.push(site, "main")
	r := w.register("a")
	c := w.connect(r, "one")
	src := with(source(siteID, site), first, 0, "")
	a := c.announce(src)
	want := tidelock.AgentSource{
		Source: siteID, Project: site.ID, Ref: "refs/heads/main", Wanted: first, Revision: "main@sha1:" + string(first),
		State: tidelock.Converged,
	}
	// Nothing was announced, yet it is there.
	before := w.awaitShown(r.ID, want)
	a.served(siteID, site.ID)

	second := w.push(site, "main")
	m := a.wants(siteID, second)
	want.Wanted, want.State = second, tidelock.Sent
	if got := w.awaitShown(r.ID, want); !got.Since.After(before.Since) {
		t.Errorf("sent since %v, at its head since %v", got.Since, before.Since)
	}
	a.delivered(m)
	want.State = tidelock.Delivered
	w.awaitShown(r.ID, want)

	fail := func(message string) tidelock.AgentSource {
		a.progress(&agentrpc.Progress{SourceId: siteID, Number: m.GetNumber(), State: agentrpc.Progress_STATE_FAILED, Message: message})
		want.State, want.Message = tidelock.Failed, message
		return w.awaitShown(r.ID, want)
	}
	failed := fail("no route")
	if again := fail("no host"); !again.Since.Equal(failed.Since) || !again.UpdatedAt.After(failed.UpdatedAt) {
		t.Errorf("failed since %v, and then since %v", failed.Since, again.Since)
	}

	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{with(src, second, m.GetNumber(), second)}})
	want.Revision, want.State, want.Message = "main@sha1:"+string(second), tidelock.Converged, ""
	converged := w.awaitShown(r.ID, want)
	if !converged.Since.After(failed.Since) {
		t.Errorf("converged since %v, failed since %v", converged.Since, failed.Since)
	}

	// It is not news to a server that was restarted.
	w.stop()
	w.start()
	a = w.connect(r, "one").announce(with(src, second, m.GetNumber(), second))
	a.served(siteID, site.ID)
	a.quiet()
	if got := w.awaitShown(r.ID, want); !got.Since.Equal(converged.Since) || !got.UpdatedAt.Equal(converged.UpdatedAt) {
		t.Errorf("recorded %+v, before %+v", got, converged)
	}

	a.say(&agentrpc.SourceChange{Removals: []string{siteID}})
	eventually(t, "the removed source to be forgotten", func() bool { return w.shown(r.ID, siteID).Source == "" })
	w.awaitShown(r.ID, tidelock.AgentSource{
		Source: witnessID, Project: w.witness.ID, Ref: "refs/heads/main", Wanted: w.latest(r.ID, witnessID).Commit, State: tidelock.Sent,
	})
	// A set without it does the same.
	w.connect(r, "one").announce(src).served(siteID, site.ID)
	eventually(t, "a source that is not in the set to be forgotten", func() bool { return w.shown(r.ID, witnessID).Source == "" })
}

// TestShownUnserved checks that a private project looks like none, before and
// after the agent may be told of it.
func TestShownUnserved(t *testing.T) {
	w := newWorld(t)
	secret := w.project("secret", tidelock.Private)
	head := w.push(secret, "main")
	r := w.register("a")
	const secretID, missingID, foreignID = "GitRepository/x/secret", "GitRepository/x/missing", "GitRepository/x/foreign"
	missing := source(missingID, secret)
	missing.Url = base + "/team/missing.git"
	foreign := source(foreignID, secret)
	foreign.Url = "https://elsewhere.example/team/secret.git"
	a := w.connect(r, "one").announce(with(source(secretID, secret), head, 0, ""), with(missing, head, 0, ""), with(foreign, head, 0, ""))
	for range 3 {
		a.resolution()
	}
	for _, id := range []tidelock.SourceID{secretID, missingID, foreignID} {
		w.awaitShown(r.ID, tidelock.AgentSource{
			Source: id, Revision: "main@sha1:" + string(head),
			State: tidelock.NotServed, Message: "the URL leads to no project that the agent may be told of",
		})
	}
	_, err := w.GrantAgent(t.Context(), w.root, secret, r.ID)
	check(t, err)
	served := tidelock.AgentSource{
		Source: secretID, Project: secret.ID, Ref: "refs/heads/main", Wanted: head, Revision: "main@sha1:" + string(head),
		State: tidelock.Converged,
	}
	w.awaitShown(r.ID, served)
	check(t, w.RevokeGrant(t.Context(), w.root, secret, r.ID))
	w.awaitShown(r.ID, tidelock.AgentSource{
		Source: secretID, Revision: served.Revision,
		State: tidelock.NotServed, Message: "the URL leads to no project that the agent may be told of",
	})
}

func TestShownUnresolvedSuspendedAndGone(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	const rangeID = "GitRepository/x/range"
	wrong := source(rangeID, site)
	wrong.Ref = &agentrpc.RefSpec{Semver: "not a range"}
	src := source(siteID, site)
	a := w.connect(r, "one").announce(src, wrong)
	for range 2 {
		a.resolution()
	}
	want := tidelock.AgentSource{
		Source: siteID, Project: site.ID, Ref: "refs/heads/main", State: tidelock.Unresolved, Message: "refs/heads/main does not exist",
	}
	w.awaitShown(r.ID, want)
	w.awaitShown(r.ID, tidelock.AgentSource{
		Source: rangeID, Project: site.ID, Ref: "refs/tags/*", State: tidelock.Unresolved, Message: `"not a range" is not a semver range`,
	})

	head := w.push(site, "main")
	m := a.wants(siteID, head)
	src.Suspended, src.LastNumber, src.LastCommit = true, m.GetNumber(), string(head)
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{src}})
	want.Wanted, want.Suspended, want.State, want.Message = head, true, tidelock.Parked, ""
	w.awaitShown(r.ID, want)
	a.progress(&agentrpc.Progress{SourceId: siteID, Number: m.GetNumber(), State: agentrpc.Progress_STATE_PARKED, Message: "it is suspended"})
	want.Message = "it is suspended"
	w.awaitShown(r.ID, want)
	// At its head it does not wait for anything.
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{with(src, head, m.GetNumber(), head)}})
	want.Revision, want.State, want.Message = "main@sha1:"+string(head), tidelock.Converged, ""
	w.awaitShown(r.ID, want)

	w.git(site, "", "update-ref", "-d", "refs/heads/main")
	w.record(site, tidelock.BranchRef("main"))
	a.delivered(a.wants(siteID, ""))
	want.Wanted, want.State = "", tidelock.Gone
	w.awaitShown(r.ID, want)
}

// TestShownManyWhileTheStoreIsDown has a whole set recorded once that is
// possible, and announcements go out meanwhile.
func TestShownManyWhileTheStoreIsDown(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	head := w.push(site, "main")
	r := w.register("a")
	const count = 1200 // more than is written at once
	set := []*agentrpc.Source{}
	for n := range count {
		set = append(set, source(fmt.Sprintf("GitRepository/x/s%d", n), site))
	}
	c := w.connect(r, "one")
	w.faults.failSaving(errors.New("the disk is full"))
	a := c.announce(set...)
	for range 2 * count {
		a.next()
	}
	w.faults.failSaving(nil)
	eventually(t, "all sources to be recorded", func() bool {
		list, err := w.SourcesOf(t.Context(), r.ID)
		check(t, err)
		return len(list) == count && !slices.ContainsFunc(list, func(s tidelock.AgentSource) bool {
			return s.State != tidelock.Sent || s.Wanted != head
		})
	})
}

// TestShownAgainBeforeItsRemovalIsWritten takes a source away and back while
// nothing can be written.
func TestShownAgainBeforeItsRemovalIsWritten(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	head := w.push(site, "main")
	r := w.register("a")
	c := w.connect(r, "one")
	src := with(source(siteID, site), head, 0, "")
	a := c.announce(src)
	a.served(siteID, site.ID)
	want := tidelock.AgentSource{
		Source: siteID, Project: site.ID, Ref: "refs/heads/main", Wanted: head, Revision: src.GetRevision(), State: tidelock.Converged,
	}
	w.awaitShown(r.ID, want)
	w.faults.failSaving(errors.New("the disk is full"))
	a.say(&agentrpc.SourceChange{Removals: []string{siteID}})
	a.quiet()

	const otherID = "GitRepository/x/other"
	other := with(source(otherID, site), head, 0, "")
	a = c.announce(src, other)
	for range 2 {
		a.resolution()
	}
	a.quiet()
	w.faults.failSaving(nil)
	// What came later is written, so the removal would be, too.
	last := want
	last.Source = otherID
	w.awaitShown(r.ID, last)
	w.awaitShown(r.ID, want)
}
