package rollout

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"tidelock.dev"
)

func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		q := newQueue(time.Second)
		next := func(id tidelock.ProjectID, what task, after time.Duration) {
			t.Helper()
			begin := time.Now()
			gotID, got, ok := q.next(ctx)
			if !ok || gotID != id || got != what || time.Since(begin) != after {
				t.Fatalf("project %d comes for %d after %v, want %d for %d after %v", gotID, got, time.Since(begin), id, what, after)
			}
		}
		q.add(1, report)
		q.add(2, plan)
		q.add(1, replan) // more is to be done, and it has waited longest
		q.add(2, report)
		next(1, replan, 0)
		q.add(1, report) // while it is worked on
		next(2, plan, 0)
		go func() {
			time.Sleep(100 * time.Millisecond)
			q.done(1, replan, false)
		}()
		next(1, report, 100*time.Millisecond)
		q.done(1, report, false)

		// Observations do not hurry the next plan; a push does.
		q.add(1, replan)
		next(1, replan, 900*time.Millisecond)
		q.done(1, replan, false)
		q.add(1, plan)
		next(1, plan, 0)

		// What failed is tried again, later each time.
		q.done(1, plan, true)
		next(1, plan, firstRetry)
		q.done(1, plan, true)
		next(1, plan, 2*firstRetry)
		q.done(1, plan, false)
		q.add(1, plan)
		next(1, plan, 0)
		q.done(1, plan, false)
		q.done(2, plan, false)

		time.Sleep(time.Minute)
		q.take(time.Now())
		if len(q.projects) != 0 {
			t.Errorf("%d projects are remembered for nothing", len(q.projects))
		}
		cancel()
		if _, _, ok := q.next(ctx); ok {
			t.Error("a project comes although nobody waits any more")
		}
	})
}
