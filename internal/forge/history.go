package forge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"tidelock.dev"
)

// historyStore is how the rules forget what is past.
type historyStore interface {
	// PruneHistory removes, of one sort, what happened before a time and is not
	// needed any more; of what has an id after the given one, at most limit. It
	// returns the id to go on after, 0 when there is no more, and how many it
	// removed. Needed are
	//   - of rollouts the newest 20 of each applier, the last that succeeded, and
	//     what is not done or not reported;
	//   - of announcements the latest of each source;
	//   - of builds the newest of each application and ref, and the last one
	//     that did not fail;
	//   - of pushes those of heads and of tags of images, those that are not
	//     announced or not planned, and those of which a rollout, an
	//     announcement, a build or an event for hooks is left.
	PruneHistory(ctx context.Context, sort tidelock.HistorySort, before time.Time, after int64, limit int) (next int64, removed int, err error)
}

var historySorts = []tidelock.HistorySort{
	tidelock.HistoryRollouts, tidelock.HistoryAnnouncements, tidelock.HistoryBuilds, tidelock.HistoryPushes,
}

// Pruning goes in batches, each as large as can be removed in about
// pruneTarget, so that nobody who writes waits for long.
const (
	firstBatch  = 50
	leastBatch  = 10
	mostBatch   = 200
	pruneTarget = 20 * time.Millisecond
)

// PruneHistory forgets pushes, announcements, rollouts and builds that are
// older than they are to be kept, except what is current. It returns how many
// records of each sort went.
func (f *Forge) PruneHistory(ctx context.Context) (map[tidelock.HistorySort]int, error) {
	pruned := map[tidelock.HistorySort]int{}
	if f.historyKeep <= 0 {
		return pruned, nil
	}
	before := f.now().Add(-f.historyKeep)
	batch := firstBatch
	for _, sort := range historySorts {
		for after := int64(0); ; {
			began := time.Now()
			next, removed, err := f.store.PruneHistory(ctx, sort, before, after, batch)
			if err != nil {
				return pruned, fmt.Errorf("forget old %s: %w", sort, err)
			}
			pruned[sort] += removed
			if next == 0 {
				break
			}
			after = next
			took := time.Since(began)
			switch {
			case took > pruneTarget:
				batch = max(batch/2, leastBatch)
			case took < pruneTarget/2:
				batch = min(2*batch, mostBatch)
			}
			select { // leave the disk to others for as long
			case <-ctx.Done():
				return pruned, ctx.Err()
			case <-time.After(took):
			}
		}
	}
	return pruned, nil
}

// How often history is pruned, and how long after the start at most.
const (
	pruneEvery = 24 * time.Hour
	pruneFirst = 10 * time.Minute
)

// runHistory prunes history soon after the start and then daily, until ctx is
// done. Servers that share a database do not begin together.
func (f *Forge) runHistory(ctx context.Context) {
	if f.historyKeep <= 0 {
		return
	}
	for wait := rand.N(pruneFirst); ; wait = pruneEvery + rand.N(pruneFirst) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		began := time.Now()
		pruned, err := f.PruneHistory(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			f.log.WarnContext(ctx, "history not pruned to the end: tried again tomorrow", "error", err)
		default:
			f.log.InfoContext(ctx, "history pruned", "rollouts", pruned[tidelock.HistoryRollouts], "announcements", pruned[tidelock.HistoryAnnouncements],
				"builds", pruned[tidelock.HistoryBuilds], "pushes", pruned[tidelock.HistoryPushes], "took", time.Since(began))
		}
	}
}
