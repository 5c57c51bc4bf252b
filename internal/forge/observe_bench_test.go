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
	c := newCrowd(b)
	n := 0
	for b.Loop() {
		b.StopTimer()
		n++
		c.push(fmt.Sprint("commit ", n))
		b.StartTimer()
		for _, state := range []tidelock.ObservedState{tidelock.ObservedProgressing, tidelock.ObservedReady} {
			c.observe(c.observed(appliers, state))
		}
	}
	b.ReportMetric(2*appliers*float64(n)/b.Elapsed().Seconds(), "observations/s")
}

// BenchmarkObserveOneOfMany takes in what became of one applier beside
// thousands of one source that have come to two commits.
func BenchmarkObserveOneOfMany(b *testing.B) {
	const appliers = 5000
	c := newCrowd(b)
	for _, message := range []string{"one", "two"} {
		c.push(message)
		c.observe(c.observed(appliers, tidelock.ObservedReady))
	}
	states := []tidelock.ObservedState{tidelock.ObservedFailed, tidelock.ObservedReady}
	for n := 0; b.Loop(); n++ {
		c.clock = c.clock.Add(time.Second)
		c.observe(c.observed(1, states[n%2]))
	}
}

// A crowd is an agent whose appliers all follow one branch.
type crowd struct {
	*world
	b         *testing.B
	site      tidelock.Project
	agent     tidelock.Agent
	revisions []string // newest first
}

const crowdSource = "GitRepository/flux-system/site"

func newCrowd(b *testing.B) *crowd {
	b.Helper()
	c := &crowd{world: newWorld(b), b: b}
	c.site = c.world.site()
	var err error
	if c.agent, err = c.CreateAgent(b.Context(), c.root, c.site, "prod"); err != nil {
		b.Fatal(err)
	}
	if err := c.SaveAgentSources(b.Context(), c.agent.ID, []tidelock.AgentSource{{
		Agent: c.agent.ID, Source: crowdSource, Project: c.site.ID, Spec: tidelock.RefSpec{Branch: "main"}, State: tidelock.Converged, UpdatedAt: c.clock,
	}}, nil); err != nil {
		b.Fatal(err)
	}
	return c
}

func (c *crowd) push(message string) {
	c.b.Helper()
	c.clock = c.clock.Add(time.Second)
	c.revisions = append([]string{"main@sha1:" + string(c.pushed(c.site, "refs/heads/main", message))}, c.revisions...)
	if err := c.PlanRollouts(c.b.Context(), c.site.ID); err != nil {
		c.b.Fatal(err)
	}
}

// observed are appliers that attempted the newest revision.
func (c *crowd) observed(n int, state tidelock.ObservedState) []tidelock.Observation {
	list := make([]tidelock.Observation, n)
	revision := c.revisions[0]
	for i := range list {
		list[i] = tidelock.Observation{
			Object: tidelock.ObjectID(fmt.Sprintf("Kustomization/flux-system/app-%d", i)), Source: crowdSource, State: state,
			Health: tidelock.HealthHealthy, Attempted: revision, Interval: time.Minute, Timeout: time.Minute, Path: "./app", Message: "Applied revision: " + revision,
			Outcomes: []tidelock.Outcome{{Revision: revision, State: state, AttemptedAt: c.clock}},
		}
		if state == tidelock.ObservedReady {
			list[i].Revision = revision
		}
		if len(c.revisions) > 1 {
			list[i].Outcomes = append(list[i].Outcomes, tidelock.Outcome{Revision: c.revisions[1], State: tidelock.ObservedReady})
		}
	}
	return list
}

func (c *crowd) observe(observations []tidelock.Observation) {
	c.b.Helper()
	if err := c.Observe(c.b.Context(), c.agent, observations, nil, false); err != nil {
		c.b.Fatal(err)
	}
}
