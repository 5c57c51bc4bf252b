package rollout

import (
	"testing"
	"testing/synctest"
	"time"

	"tidelock.dev"
)

// A plan that waits for its turn does not keep what is to be reported waiting.
func TestReportsDoNotWaitForPlans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const id = tidelock.ProjectID(1)
		q := newQueue(time.Second)
		expect := func(want task, after time.Duration) {
			t.Helper()
			began := time.Now()
			_, what, ok := q.next(t.Context())
			if took := time.Since(began); !ok || what != want || took != after {
				t.Fatalf("got task %d after %v, want %d after %v", what, took, want, after)
			}
			q.done(id, what, false)
		}
		q.add(id, plan)
		expect(plan, 0)
		q.add(id, report)
		q.add(id, replan)
		expect(report, 0)
		expect(replan, time.Second)
		q.add(id, replan)
		q.add(id, report)
		expect(report, 0)
		q.add(id, plan)
		expect(plan, 0)
	})
}
