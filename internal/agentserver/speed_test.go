package agentserver_test

import (
	"slices"
	"testing"
	"time"

	"tidelock.dev"
)

// TestAnnouncementIsQuick measures from the push's record to the agent, which
// is our side of the path; the limit is far above what it takes.
func TestAnnouncementIsQuick(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	a := w.connect(w.register("a"), "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	var took []time.Duration
	for range 30 {
		w.push(site, "main")
		m := a.announcement()
		took = append(took, time.Since(m.GetAcceptedAt().AsTime()))
		a.delivered(m)
	}
	slices.Sort(took)
	t.Logf("accepted to announced: min %v, p50 %v, max %v", took[0], took[len(took)/2], took[len(took)-1])
	if p50 := took[len(took)/2]; p50 > 500*time.Millisecond {
		t.Errorf("p50 is %v", p50)
	}
}
