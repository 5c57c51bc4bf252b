package agentserver_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"connectrpc.com/connect"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/agentserver"
	"tidelock.dev/internal/forge"
)

func TestAnnounceOnPush(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	first := w.push(site, "main")
	r := w.register("a")
	c := w.connect(r, "one")
	src := source(siteID, site)
	src.Revision = "main@sha1:" + string(first)
	a := c.announce(src)
	a.served(siteID, site.ID)
	a.quiet() // Flux has the head

	second := w.push(site, "main")
	m := a.wants(siteID, second)
	if m.GetNumber() != 1 || m.GetRef() != "refs/heads/main" || m.GetProjectId() != int64(site.ID) || m.GetPushId() == 0 || m.GetAcceptedAt() == nil {
		t.Errorf("heard %v", m)
	}
	w.awaitState(r.ID, siteID, 1, tidelock.Sent)
	a.delivered(m)
	got := w.awaitState(r.ID, siteID, 1, tidelock.Delivered)
	if got.Commit != second || got.Project != site.ID || got.Push == 0 || got.AnnouncedAt.Before(got.SentAt) || got.SentAt.Before(got.AcceptedAt) {
		t.Errorf("recorded %+v", got)
	}

	w.push(site, "other")
	a.quiet() // another branch

	third := w.push(site, "main")
	if m := a.wants(siteID, third); m.GetNumber() != 2 {
		t.Errorf("got number %d, want 2", m.GetNumber())
	}
	a.say(&agentrpc.SourceChange{Removals: []string{siteID}})
	w.awaitState(r.ID, siteID, 2, tidelock.Closed)
	w.push(site, "main")
	a.quiet() // nobody asked
}

// TestAnnounceByRefSpec pushes to one project what each kind of spec.ref
// wants, and what it does not.
func TestAnnounceByRefSpec(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	c := w.connect(w.register("a"), "one")
	specs := map[string]*agentrpc.RefSpec{
		"GitRepository/x/branch": {Branch: "dev"},
		"GitRepository/x/none":   nil, // means master
		"GitRepository/x/tag":    {Tag: "v2.0.0", Branch: "dev"},
		"GitRepository/x/semver": {Semver: "1.x", Tag: "v2.0.0"},
		"GitRepository/x/name":   {Name: "refs/heads/feature", Semver: "1.x"},
		"GitRepository/x/wrong":  {Semver: "not a range"},
	}
	var set []*agentrpc.Source
	for id, ref := range specs {
		s := source(id, site)
		s.Ref = ref
		set = append(set, s)
	}
	a := c.announce(set...)
	for range specs {
		if !a.resolution().GetServed() {
			t.Error("not served")
		}
	}
	a.quiet()
	tag := func(name string, on tidelock.CommitID) {
		w.git(site, "", "-c", "user.name=Ada", "-c", "user.email=ada@example.com", "tag", "-f", "-a", "-m", name, name, string(on))
		w.record(site, tidelock.TagRef(name))
	}
	dev := w.push(site, "dev")
	a.wants("GitRepository/x/branch", dev)
	a.wants("GitRepository/x/none", w.push(site, "master"))
	a.wants("GitRepository/x/name", w.push(site, "feature"))
	tag("v2.0.0", dev)
	a.wants("GitRepository/x/tag", dev)
	tag("v1.0.0", dev)
	a.wants("GitRepository/x/semver", dev)
	tag("v0.9.0", dev)
	a.quiet() // below the range
	fix := w.push(site, "fix")
	tag("v1.0.1", fix)
	a.wants("GitRepository/x/semver", fix)

	pinned := source("GitRepository/x/commit", site)
	later := w.push(site, "hidden")
	pinned.Ref = &agentrpc.RefSpec{Commit: string(later), Branch: "dev"}
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{pinned}})
	a.served(pinned.GetId(), site.ID)
	a.quiet() // not on the branch yet
	w.git(site, "", "update-ref", "refs/heads/dev", string(later))
	w.record(site, tidelock.BranchRef("dev"))
	got := map[string]string{}
	for range 2 {
		m := a.announcement()
		got[m.GetSourceId()] = m.GetCommit()
	}
	if got["GitRepository/x/commit"] != string(later) || got["GitRepository/x/branch"] != string(later) {
		t.Errorf("got %v", got)
	}
}

func TestCoalescing(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	a := w.connect(w.register("a"), "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	// While heads cannot be read, nothing is lost and nothing piles up.
	w.faults.fail(errors.New("the disk is full"))
	var last tidelock.CommitID
	for range 10 {
		last = w.push(site, "main")
	}
	w.faults.fail(nil)
	if m := a.wants(siteID, last); m.GetNumber() != 1 {
		t.Errorf("got number %d, want 1", m.GetNumber())
	}
	a.quiet()
}

func TestReconnectRepeatsWhatWasNotDelivered(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	first := w.connect(r, "one")
	a := first.announce(source(siteID, site))
	a.served(siteID, site.ID)
	commit := w.push(site, "main")
	if m := a.wants(siteID, commit); m.GetNumber() != 1 {
		t.Errorf("got number %d", m.GetNumber())
	}
	first.tunnel.Close("cut before the agent had it")

	a = w.connect(r, "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	m := a.wants(siteID, commit)
	if m.GetNumber() != 2 {
		t.Errorf("got number %d, want 2", m.GetNumber())
	}
	a.delivered(m)
	w.awaitState(r.ID, siteID, 2, tidelock.Delivered)

	// Delivered, and not repeated, even by a server that was restarted.
	w.stop()
	w.start()
	known := source(siteID, site)
	known.LastNumber, known.LastCommit = 2, string(commit)
	a = w.connect(r, "one").announce(known)
	a.served(siteID, site.ID)
	a.quiet()

	// A push while nobody was connected is announced by comparison.
	w.stop()
	missed := w.push(site, "main")
	w.start()
	a = w.connect(r, "one").announce(known)
	a.served(siteID, site.ID)
	if m := a.wants(siteID, missed); m.GetNumber() != 3 {
		t.Errorf("got number %d, want 3", m.GetNumber())
	}
}

func TestNumbersGoOnForAnAgentThatForgot(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	c := w.connect(r, "one")
	a := c.announce(source(siteID, site))
	a.served(siteID, site.ID)
	for n := range int64(3) {
		m := a.wants(siteID, w.push(site, "main"))
		if m.GetNumber() != n+1 {
			t.Fatalf("got number %d, want %d", m.GetNumber(), n+1)
		}
		a.delivered(m)
	}
	// The stream is replaced before the store knows of all that.
	ahead := source(siteID, site)
	ahead.LastNumber = 17
	a = c.announce(source(siteID, site), source("GitRepository/x/other", site))
	for range 2 {
		a.resolution()
		m := a.announcement()
		if want := map[string]int64{siteID: 4, "GitRepository/x/other": 1}[m.GetSourceId()]; m.GetNumber() != want {
			t.Errorf("%s: got number %d, want %d", m.GetSourceId(), m.GetNumber(), want)
		}
	}
	// Its word is taken when it knows more than we do.
	a = c.announce(ahead)
	a.resolution()
	if m := a.announcement(); m.GetNumber() != 18 {
		t.Errorf("got number %d, want 18", m.GetNumber())
	}
}

func TestProgressIsRecorded(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	a := w.connect(r, "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	m := a.wants(siteID, w.push(site, "main"))
	a.delivered(m)
	w.awaitState(r.ID, siteID, 1, tidelock.Delivered)
	ms := func(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Millisecond) }
	a.progress(&agentrpc.Progress{
		SourceId: siteID, Number: 1, State: agentrpc.Progress_STATE_FAILED, Message: "cannot clone\x00\x1b[31m",
		Called: ms(1), Answered: ms(5), Handled: ms(700), Via: agentrpc.Progress_VIA_ANNOTATION, Attempts: 3,
	})
	got := w.awaitState(r.ID, siteID, 1, tidelock.Failed)
	if got.Message != "cannot clone" || got.Via != "annotation" || got.Attempts != 3 {
		t.Errorf("recorded %+v", got)
	}
	a.progress(&agentrpc.Progress{
		SourceId: siteID, Number: 1, State: agentrpc.Progress_STATE_CONVERGED,
		Called: ms(1), Answered: ms(5), Handled: ms(900), Fetched: ms(800), Via: agentrpc.Progress_VIA_RECEIVER, Attempts: 4,
	})
	got = w.awaitState(r.ID, siteID, 1, tidelock.Converged)
	for _, span := range []struct {
		name string
		at   time.Time
		want time.Duration
	}{
		{"called", got.CalledAt, time.Millisecond}, {"answered", got.AnsweredAt, 5 * time.Millisecond},
		{"handled", got.HandledAt, 900 * time.Millisecond}, {"fetched", got.FetchedAt, 800 * time.Millisecond},
	} {
		if d := span.at.Sub(got.AnnouncedAt); d != span.want {
			t.Errorf("%s after %v, want %v", span.name, d, span.want)
		}
	}
	if got.Message != "" || got.Via != "receiver" {
		t.Errorf("recorded %+v", got)
	}
}

func TestGoneOnceAndBack(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	a := w.connect(r, "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	a.quiet() // there never was a branch
	head := w.push(site, "main")
	a.delivered(a.wants(siteID, head))
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{with(source(siteID, site), head, 1, head)}})

	w.git(site, "", "update-ref", "-d", "refs/heads/main")
	w.record(site, tidelock.BranchRef("main"))
	gone := a.wants(siteID, "")
	if gone.GetRef() != "refs/heads/main" || gone.GetNumber() != 2 {
		t.Errorf("heard %v", gone)
	}
	a.delivered(gone)
	w.awaitState(r.ID, siteID, 2, tidelock.Gone)
	w.push(site, "unrelated")
	a.quiet()
	a = w.connect(r, "one").announce(with(source(siteID, site), head, 2, ""))
	a.served(siteID, site.ID)
	a.quiet() // it has been said

	w.git(site, "", "update-ref", "refs/heads/main", string(head))
	w.record(site, tidelock.BranchRef("main"))
	if m := a.wants(siteID, head); m.GetNumber() != 3 {
		t.Errorf("heard %v", m)
	}
}

// with adds what a source says of its state.
func with(s *agentrpc.Source, revision tidelock.CommitID, number int64, last tidelock.CommitID) *agentrpc.Source {
	s = proto.CloneOf(s)
	s.Revision, s.LastNumber, s.LastCommit = "main@sha1:"+string(revision), number, string(last)
	return s
}

func TestRefMovedBackAndForth(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	before := w.push(site, "main")
	r := w.register("a")
	a := w.connect(r, "one").announce(with(source(siteID, site), before, 0, ""))
	a.served(siteID, site.ID)
	after := w.push(site, "main")
	a.delivered(a.wants(siteID, after))
	// Back before Flux moved: the agent must not go on asking for the other.
	w.git(site, "", "update-ref", "refs/heads/main", string(before))
	w.record(site, tidelock.BranchRef("main"))
	m := a.wants(siteID, before)
	a.delivered(m)
	a.progress(&agentrpc.Progress{SourceId: siteID, Number: m.GetNumber(), State: agentrpc.Progress_STATE_CONVERGED})
	w.awaitState(r.ID, siteID, 2, tidelock.Converged)
	// Flux fetched the other one after all.
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{with(source(siteID, site), after, 2, before)}})
	a.quiet() // the agent was told; it watches the revision
	w.git(site, "", "update-ref", "refs/heads/main", string(after))
	w.record(site, tidelock.BranchRef("main"))
	a.quiet() // Flux is there already
}

func TestAccessOnLiveStreams(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	secret := w.project("secret", tidelock.Private)
	r := w.register("a")
	const secretID, nowhereID = "GitRepository/x/secret", "GitRepository/x/nowhere"
	nowhere := source(nowhereID, secret)
	nowhere.Url = base + "/team/nowhere"
	own := source("GitRepository/x/own", r.project)
	a := w.connect(r, "one").announce(source(siteID, site), source(secretID, secret), nowhere, own)
	heard := map[string]*agentrpc.Resolution{}
	for range 4 {
		m := a.resolution()
		heard[m.GetSourceId()] = m
	}
	hidden, absent := proto.CloneOf(heard[secretID]), proto.CloneOf(heard[nowhereID])
	hidden.SourceId, absent.SourceId = "", ""
	if !proto.Equal(hidden, absent) || hidden.GetServed() {
		t.Errorf("a private project is told from none: %v, %v", hidden, absent)
	}
	if !heard[siteID].GetServed() || !heard[own.GetId()].GetServed() {
		t.Errorf("heard %v", heard)
	}
	w.push(secret, "main")
	a.quiet()

	m := a.wants(siteID, w.push(site, "main"))
	private, public := tidelock.Private, tidelock.Public
	edit := func(p tidelock.Project, v tidelock.Visibility) {
		t.Helper()
		_, err := w.EditProject(t.Context(), w.root, fmt.Sprint(p.ID), forge.ProjectEdit{Visibility: &v})
		check(t, err)
	}
	edit(site, private)
	a.served(siteID, 0)
	w.awaitState(r.ID, siteID, m.GetNumber(), tidelock.Closed)
	hiddenPush := w.push(site, "main")
	a.quiet()
	a.progress(&agentrpc.Progress{SourceId: siteID, Number: m.GetNumber(), State: agentrpc.Progress_STATE_CONVERGED})
	a.quiet()
	w.awaitState(r.ID, siteID, m.GetNumber(), tidelock.Closed) // it had no effect

	_, err := w.GrantAgent(t.Context(), w.root, site, r.ID)
	check(t, err)
	a.served(siteID, site.ID)
	a.wants(siteID, hiddenPush)
	check(t, w.RevokeGrant(t.Context(), w.root, site, r.ID))
	a.served(siteID, 0)
	edit(site, public)
	a.served(siteID, site.ID)
	a.wants(siteID, hiddenPush) // what it has been told since then is void

	check(t, w.DeleteProject(t.Context(), w.root, fmt.Sprint(site.ID)))
	a.served(siteID, 0)

	// A project that comes to be is found by its path.
	created := w.project("nowhere", tidelock.Public)
	a.served(nowhereID, created.ID)
	a.wants(nowhereID, w.push(created, "main"))
}

func TestRenamedProject(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	a := w.connect(w.register("a"), "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	path := "moved"
	_, err := w.EditProject(t.Context(), w.root, fmt.Sprint(site.ID), forge.ProjectEdit{Path: &path})
	check(t, err)
	a.wants(siteID, w.push(site, "main")) // the old path leads there

	taker := w.project("site", tidelock.Public)
	a.served(siteID, taker.ID)
	w.push(site, "main")
	a.quiet()
	a.wants(siteID, w.push(taker, "main"))
}

func TestSourceURLs(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	urls := map[string]bool{
		"https://FORGE.example:443/Team/Site/":         true,
		"http://forge.example/team/site":               true,
		"ssh://git@forge.example:2222/team/site.git":   true,
		"https://elsewhere.example/team/site":          false,
		"https://forge.example/team/site/../../secret": false,
	}
	var set []*agentrpc.Source
	want := map[string]bool{}
	for url, served := range urls {
		s := source(fmt.Sprintf("GitRepository/x/s%d", len(set)), site)
		s.Url = url
		want[s.GetId()] = served
		set = append(set, s)
	}
	a := w.connect(w.register("a"), "one").announce(set...)
	for range set {
		m := a.resolution()
		if m.GetServed() != want[m.GetSourceId()] {
			t.Errorf("%s: served %v", m.GetSourceId(), m.GetServed())
		}
	}
}

func TestChangedSource(t *testing.T) {
	w := newWorld(t)
	site, blog := w.project("site", tidelock.Public), w.project("blog", tidelock.Public)
	head, post := w.push(site, "main"), w.push(blog, "main")
	r := w.register("a")
	a := w.connect(r, "one").announce(with(source(siteID, site), head, 0, ""))
	a.served(siteID, site.ID)
	// Another URL.
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{with(source(siteID, blog), head, 0, "")}})
	a.served(siteID, blog.ID)
	a.delivered(a.wants(siteID, post))
	w.push(site, "main")
	a.quiet()
	// Another object of the same name has been told nothing.
	again := with(source(siteID, blog), "", 0, "")
	again.Uid = "another"
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{again}})
	if m := a.wants(siteID, post); m.GetNumber() != 2 {
		t.Errorf("got number %d, want 2", m.GetNumber())
	}
}

func TestSecondStreamTakesOver(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	first := w.connect(r, "one").announce(source(siteID, site))
	first.served(siteID, site.ID)
	second := w.connect(r, "two").announce(source(siteID, site))
	second.served(siteID, site.ID)
	if code := first.ends(); code != connect.CodeAborted {
		t.Errorf("got %v, want %v", code, connect.CodeAborted)
	}
	second.wants(siteID, w.push(site, "main"))
}

func TestDigestMismatchAsksForEverything(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	a := w.connect(w.register("a"), "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	commit := w.push(site, "main")
	a.delivered(a.wants(siteID, commit))
	a.digest(map[string]int64{siteID: 1})
	a.digest(map[string]int64{siteID: 1, "GitRepository/x/never": 0})
	a.quiet()
	// A digest that overtakes newer announcements is no mismatch.
	second := a.wants(siteID, w.push(site, "main"))
	a.wants(siteID, w.push(site, "main"))
	a.delivered(second)
	a.digest(map[string]int64{siteID: 2})
	a.quiet()
	a.digest(map[string]int64{}) // it lost the announcement
	if m := a.next(); m.GetResync() == nil {
		t.Fatalf("heard %v, want a resync", m)
	}
	a.say(&agentrpc.SourceChange{Complete: true, Upserts: []*agentrpc.Source{source(siteID, site)}})
	if m := a.announcement(); m.GetNumber() != 4 {
		t.Errorf("heard %v, want number 4", m)
	}
}

func TestSlowComparisonFindsWhatNoEventTold(t *testing.T) {
	w := newWorldWith(t, agentserver.Config{ResyncEvery: 50 * time.Millisecond})
	site := w.project("site", tidelock.Public)
	a := w.connect(w.register("a"), "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	// Recorded by a server that died before it rang the bus.
	commit := tidelock.CommitID("1234567890123456789012345678901234567890")
	_, err := w.faults.Store.RecordPush(t.Context(), tidelock.Push{Project: site.ID, At: time.Now(), Updates: []tidelock.RefUpdate{
		{Ref: "refs/heads/main", New: commit, Commit: commit},
	}})
	check(t, err)
	a.wants(siteID, commit)
}

func TestDisableResync(t *testing.T) {
	w := newWorldWith(t, agentserver.Config{DisableResync: true, ResyncEvery: 20 * time.Millisecond})
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	w.push(site, "main") // unheard
	a := w.connect(r, "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	w.push(w.witness, "main")
	a.digest(map[string]int64{siteID: 99})
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{source("GitRepository/x/other", site)}})
	a.served("GitRepository/x/other", site.ID)
	commit := w.push(site, "main") // live
	for range 2 {
		if m := a.announcement(); m.GetCommit() != string(commit) {
			t.Errorf("heard %v", m)
		}
	}
}

func TestSourceRemovedWhileAwayIsClosed(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	c := w.connect(r, "one")
	a := c.announce(source(siteID, site))
	a.served(siteID, site.ID)
	a.delivered(a.wants(siteID, w.push(site, "main")))
	w.awaitState(r.ID, siteID, 1, tidelock.Delivered)
	c.tunnel.Close("away")
	w.connect(r, "one").announce()
	if got := w.awaitState(r.ID, siteID, 1, tidelock.Closed); got.Message != "the source was removed" {
		t.Errorf("recorded %+v", got)
	}
}

func TestConvergedWhileAway(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	c := w.connect(r, "one")
	a := c.announce(source(siteID, site))
	a.served(siteID, site.ID)
	commit := w.push(site, "main")
	a.wants(siteID, commit)
	w.awaitState(r.ID, siteID, 1, tidelock.Sent)
	c.tunnel.Close("away")
	w.connect(r, "one").announce(with(source(siteID, site), commit, 1, commit))
	got := w.awaitState(r.ID, siteID, 1, tidelock.Converged)
	if got.AnnouncedAt.IsZero() {
		t.Errorf("recorded %+v", got)
	}
}

// What a server that was killed had sent and not yet written is recorded by
// the word of the agent.
func TestUnwrittenAnnouncementIsRecorded(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	commit := w.push(site, "main")
	fetched := with(source(siteID, site), commit, 7, commit)
	late := with(source("GitRepository/x/late", site), "", 3, commit)
	a := w.connect(r, "one").announce(fetched, late)
	a.progress(&agentrpc.Progress{SourceId: "GitRepository/x/late", Number: 3, State: agentrpc.Progress_STATE_FAILED, Message: "no access"})
	got := w.awaitState(r.ID, siteID, 7, tidelock.Converged)
	if got.Commit != commit || got.Push == 0 || got.AcceptedAt.IsZero() || got.AnnouncedAt.IsZero() {
		t.Errorf("recorded %+v", got)
	}
	if got = w.awaitState(r.ID, "GitRepository/x/late", 3, tidelock.Failed); got.Message != "no access" {
		t.Errorf("recorded %+v", got)
	}
}

func TestThousandSources(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	var set []*agentrpc.Source
	for i := range 1000 {
		set = append(set, source(fmt.Sprintf("GitRepository/tenant-%d/site", i), site))
	}
	a := w.connect(r, "one").announce(set...)
	for range set {
		if !a.resolution().GetServed() {
			t.Fatal("not served")
		}
	}
	begin := time.Now()
	commit := w.push(site, "main")
	seen := map[string]bool{}
	for range set {
		m := a.announcement()
		if m.GetCommit() != string(commit) || seen[m.GetSourceId()] {
			t.Fatalf("heard %v", m)
		}
		seen[m.GetSourceId()] = true
		a.delivered(m)
	}
	t.Logf("announced to 1000 sources %v after the push began", time.Since(begin))
	eventually(t, "all to be recorded", func() bool {
		list, err := w.LatestAnnouncements(t.Context(), r.ID)
		check(t, err)
		for _, a := range list {
			if a.State != tidelock.Delivered {
				return false
			}
		}
		return len(list) == len(set)
	})
}

func TestRecordingSurvivesAFailingStore(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	a := w.connect(r, "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	m := a.wants(siteID, w.push(site, "main"))
	w.awaitState(r.ID, siteID, 1, tidelock.Sent)
	w.faults.fail(errors.New("the disk is full"))
	a.delivered(m)
	eventually(t, "a failed write", func() bool { return w.logged("announcements not recorded") })
	w.faults.fail(nil)
	w.awaitState(r.ID, siteID, 1, tidelock.Delivered)
}

func TestStopWritesWhatIsLeft(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	c := w.connect(r, "one")
	a := c.announce(source(siteID, site))
	a.served(siteID, site.ID)
	a.delivered(a.wants(siteID, w.push(site, "main")))
	a.quiet() // the server has read it
	w.stop()
	if code := a.ends(); code != connect.CodeUnavailable {
		t.Errorf("the stream ended with %v, want %v", code, connect.CodeUnavailable)
	}
	<-c.tunnel.Done()
	if got := w.latest(r.ID, siteID); got.State != tidelock.Delivered {
		t.Errorf("recorded %+v", got)
	}
}

// TestFollowingAnotherRefIsAnnouncedAnew repairs a source that could not be
// fetched: the agent drops what it was told for the old ref.
func TestFollowingAnotherRefIsAnnouncedAnew(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	a := w.connect(w.register("a"), "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	head := w.push(site, "main")
	m := a.wants(siteID, head)
	a.progress(&agentrpc.Progress{SourceId: siteID, Number: m.GetNumber(), State: agentrpc.Progress_STATE_FAILED, Message: "no access"})
	named := with(source(siteID, site), "", m.GetNumber(), head)
	named.Ref = &agentrpc.RefSpec{Name: "refs/heads/main"}
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{named}})
	if m = a.wants(siteID, head); m.GetNumber() != 2 {
		t.Errorf("by another ref: got number %d, want 2", m.GetNumber())
	}
	elsewhere := proto.CloneOf(named)
	elsewhere.LastNumber, elsewhere.Url = m.GetNumber(), strings.TrimSuffix(named.GetUrl(), ".git")
	a.delivered(m)
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{elsewhere}})
	if m = a.wants(siteID, head); m.GetNumber() != 3 {
		t.Errorf("by another URL: got number %d, want 3", m.GetNumber())
	}
	a.progress(&agentrpc.Progress{SourceId: siteID, Number: m.GetNumber(), State: agentrpc.Progress_STATE_CONVERGED})
	back := with(source(siteID, site), head, m.GetNumber(), head)
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{back}})
	a.quiet() // Flux has it
}

// TestForgottenAnnouncementIsRepeated has an agent lose what it had confirmed:
// a source left its selector and came back before the stream could say so.
func TestForgottenAnnouncementIsRepeated(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	a := w.connect(w.register("a"), "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	head := w.push(site, "main")
	a.delivered(a.wants(siteID, head))
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{source(siteID, site)}})
	if m := a.wants(siteID, head); m.GetNumber() != 2 {
		t.Errorf("got number %d, want 2", m.GetNumber())
	}
}

// TestNumbersOfASourceMadeAnewGoOn makes a source again on the same stream:
// the record of the old one must not be the latest for ever.
func TestNumbersOfASourceMadeAnewGoOn(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	a := w.connect(r, "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	a.delivered(a.wants(siteID, w.push(site, "main")))
	head := w.push(site, "main")
	a.delivered(a.wants(siteID, head))
	a.say(&agentrpc.SourceChange{Removals: []string{siteID}})
	w.awaitState(r.ID, siteID, 2, tidelock.Closed)
	again := source(siteID, site)
	again.Uid = "another"
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{again}})
	a.served(siteID, site.ID)
	m := a.wants(siteID, head)
	if m.GetNumber() != 3 {
		t.Errorf("got number %d, want 3", m.GetNumber())
	}
	a.delivered(m)
	w.awaitState(r.ID, siteID, m.GetNumber(), tidelock.Delivered)
}
