package forge_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func TestPruneHistory(t *testing.T) {
	w := newWorldTuned(t, func(s forge.Store) forge.Store { return s }, func(c *forge.Config) { c.HistoryKeep = 90 * 24 * time.Hour })
	project := w.site()
	const pushes = 120 // more than goes in one batch
	for n := range pushes {
		w.pushed(project, "refs/heads/main", fmt.Sprint("number ", n))
	}
	list, _, err := w.store.Pushes(t.Context(), tidelock.PushFilter{}, tidelock.Page{})
	if err != nil || len(list) != pushes {
		t.Fatalf("got %d pushes, %v", len(list), err)
	}
	for _, p := range list {
		if err := errors.Join(w.store.MarkAnnounced(t.Context(), p.ID), w.store.PushPlanned(t.Context(), project.ID, p.ID)); err != nil {
			t.Fatal(err)
		}
	}
	prune := func(want int) {
		t.Helper()
		pruned, err := w.PruneHistory(t.Context())
		if err != nil || pruned[tidelock.HistoryPushes] != want {
			t.Errorf("got %v, %v, want %d pushes to go", pruned, err, want)
		}
	}
	w.clock = w.clock.Add(89 * 24 * time.Hour)
	prune(0)
	w.clock = w.clock.Add(2 * 24 * time.Hour)
	prune(pushes - 1)
	prune(0)
	if _, err := w.Timeline(t.Context(), w.root, project, "main"); err != nil {
		t.Errorf("the timeline of what is left: %v", err)
	}

	ever := newWorld(t)
	ever.pushed(ever.site(), "refs/heads/main", "one")
	if pruned, err := ever.PruneHistory(t.Context()); err != nil || len(pruned) != 0 {
		t.Errorf("what is kept for ever: got %v, %v", pruned, err)
	}
}
