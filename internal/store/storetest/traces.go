package storetest

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"tidelock.dev"
)

// claims asks for what is to be traced, and tells it as "commit: hops".
func (w world) claims(project tidelock.ProjectID, limit int) string {
	w.Helper()
	claimed, err := w.ClaimTraces(w.Context(), project, start, limit)
	w.ok(err)
	var words []string
	for _, c := range claimed {
		words = append(words, fmt.Sprintf("%s %s: %v", c.Commit, c.Trace, c.Hops))
	}
	return strings.Join(words, ", ")
}

var traceTests = []test{
	{"are claimed once", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		push, err := w.RecordPush(w.Context(), tidelock.Push{Project: site.ID, Trace: "t", Updates: []tidelock.RefUpdate{update("main", "", "c1")}})
		w.ok(err)
		untraced := w.push(site.ID, "dev=c2")
		n := 0
		save := func(r tidelock.Rollout, reported time.Duration) tidelock.Rollout {
			w.Helper()
			if n++; r.Commit == "" {
				r.Commit = tidelock.CommitID(fmt.Sprint("c", n))
			}
			r.Agent, r.Project, r.Applier, r.Turn = agent.ID, site.ID, "Kustomization/a/b", int64(n)
			saved, err := w.SaveRollouts(w.Context(), r)
			w.ok(err)
			if reported != 0 {
				w.ok(w.RolloutsReported(w.Context(), start.Add(reported), saved...))
			}
			return saved[0]
		}
		save(tidelock.Rollout{Push: push.ID, State: tidelock.RolloutSuccess, AppliedAt: start}, 0)               // not reported
		save(tidelock.Rollout{Push: push.ID, State: tidelock.RolloutRunning}, time.Second)                       // not done
		save(tidelock.Rollout{Push: push.ID, State: tidelock.RolloutSuccess, AppliedAt: start}, -time.Second)    // long ago
		save(tidelock.Rollout{Push: untraced.ID, State: tidelock.RolloutSuccess, AppliedAt: start}, time.Second) // without a trace
		save(tidelock.Rollout{Push: push.ID, State: tidelock.RolloutSuccess, AppliedAt: start, HealthyAt: start}, time.Second)
		failed := save(tidelock.Rollout{Push: push.ID, State: tidelock.RolloutFailed, AppliedAt: start}, time.Second)
		save(tidelock.Rollout{Push: push.ID, State: tidelock.RolloutSuperseded}, time.Second)
		equal(w, w.claims(site.ID+1, 10), "")
		equal(w, w.claims(site.ID, 2), "c5 t: [applied healthy reported], c6 t: [applied reported]")
		equal(w, w.claims(site.ID, 10), "c7 t: [reported]")
		equal(w, w.claims(site.ID, 10), "")

		failed.State, failed.HealthyAt, failed.ReportedAt = tidelock.RolloutSuccess, start, time.Time{}
		save(failed, 0)
		equal(w, w.claims(site.ID, 10), "")
		save(failed, 2*time.Second)
		equal(w, w.claims(site.ID, 10), "c6 t: [healthy]")
		equal(w, w.claims(site.ID, 10), "")
	}},

	{"are claimed by one of many who ask", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		push, err := w.RecordPush(w.Context(), tidelock.Push{Project: site.ID, Trace: "t", Updates: []tidelock.RefUpdate{update("main", "", "c")}})
		w.ok(err)
		const all = 30
		for n := range all {
			saved, err := w.SaveRollouts(w.Context(), tidelock.Rollout{
				Agent: agent.ID, Project: site.ID, Applier: "Kustomization/a/b", Commit: tidelock.CommitID(fmt.Sprint("c", n)), Push: push.ID,
				State: tidelock.RolloutSuccess, Turn: int64(n), AppliedAt: start,
			})
			w.ok(err)
			w.ok(w.RolloutsReported(w.Context(), start.Add(time.Second), saved...))
		}
		var mu sync.Mutex
		claimed := map[tidelock.RolloutID]int{}
		var askers sync.WaitGroup
		for range 4 {
			askers.Go(func() {
				for {
					list, err := w.ClaimTraces(w.Context(), site.ID, start, 7)
					if err != nil {
						w.Error(err)
						return
					}
					mu.Lock()
					for _, c := range list {
						claimed[c.ID]++
					}
					done := len(claimed) == all
					mu.Unlock()
					if done {
						return
					}
				}
			})
		}
		askers.Wait()
		for id, n := range claimed {
			if n != 1 {
				w.Errorf("rollout %d was claimed %d times", id, n)
			}
		}
	}},
}
