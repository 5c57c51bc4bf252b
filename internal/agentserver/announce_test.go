package agentserver_test

import (
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
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
