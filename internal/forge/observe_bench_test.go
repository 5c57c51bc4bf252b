package forge_test

import (
	"fmt"
	"testing"
	"time"

	"tidelock.dev"
)

// BenchmarkObserve takes in the observations of a thousand appliers that all
// come to a new commit, written to a SQLite file.
func BenchmarkObserve(b *testing.B) {
	const appliers = 1000
	w := newWorld(b)
	site := w.site()
	agent, err := w.CreateAgent(b.Context(), w.root, site, "prod")
	if err != nil {
		b.Fatal(err)
	}
	const source = "GitRepository/flux-system/site"
	if err := w.SaveAgentSources(b.Context(), agent.ID, []tidelock.AgentSource{{
		Agent: agent.ID, Source: source, Project: site.ID, Spec: tidelock.RefSpec{Branch: "main"}, State: tidelock.Converged, UpdatedAt: w.clock,
	}}, nil); err != nil {
		b.Fatal(err)
	}
	observed := func(state tidelock.ObservedState, revision string) []tidelock.Observation {
		list := make([]tidelock.Observation, appliers)
		for i := range list {
			list[i] = tidelock.Observation{
				Object: tidelock.ObjectID(fmt.Sprintf("Kustomization/flux-system/app-%d", i)), Source: source, State: state,
				Health: tidelock.HealthHealthy, Attempted: revision, Interval: time.Minute, Timeout: time.Minute, Path: "./app", Message: "Applied revision: " + revision,
				Outcomes: []tidelock.Outcome{{Revision: revision, State: state, AttemptedAt: w.clock}},
			}
			if state == tidelock.ObservedReady {
				list[i].Revision = revision
			}
		}
		return list
	}
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		w.clock = w.clock.Add(time.Second)
		revision := "main@sha1:" + string(w.pushed(site, "refs/heads/main", fmt.Sprint("commit ", n)))
		if err := w.PlanRollouts(b.Context(), site.ID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		for _, state := range []tidelock.ObservedState{tidelock.ObservedProgressing, tidelock.ObservedReady} {
			if err := w.Observe(b.Context(), agent, observed(state, revision), nil, false); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(2*appliers*float64(n)/b.Elapsed().Seconds(), "observations/s")
}
