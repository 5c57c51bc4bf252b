package forge

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"tidelock.dev"
)

// observationStore is what the rules remember of what agents see.
type observationStore interface {
	// SaveObservations writes observations of one agent and removes others;
	// Since stays while State and Health do. Those of an agent that does not
	// exist are dropped.
	SaveObservations(ctx context.Context, agent tidelock.AgentID, upserts []tidelock.Observation, removals []tidelock.ObjectID) error
	// Observations lists in order of agent and object. Project is that of the
	// source now, as AgentSources has it: 0 when it is not served.
	Observations(context.Context, tidelock.ObservationFilter) ([]tidelock.Observation, error)
}

// observeBatch is how many observations are written in one transaction.
const observeBatch = 500

// Observe keeps what an agent sees, and moves the rollouts that it tells of.
// The upserts are the whole set if complete is set: what is not among them is
// gone. An object belongs to the project to which its source leads, if that is
// a source of the agent's that the server serves; what else an agent says of
// projects counts for nothing. To observe the same again changes nothing. An
// agent that tells of the whole set says itself since when things are as they
// are: it may not have looked for a time.
func (f *Forge) Observe(ctx context.Context, agent tidelock.Agent, upserts []tidelock.Observation, removals []tidelock.ObjectID, complete bool) error {
	touched := make([]tidelock.ObjectID, 0, len(upserts)+len(removals))
	seen := make(map[tidelock.ObjectID]bool, len(upserts))
	for _, o := range upserts {
		touched, seen[o.Object] = append(touched, o.Object), true
	}
	filter := tidelock.ObservationFilter{Agent: agent.ID}
	if !complete {
		filter.Objects = append(slices.Clone(touched), removals...)
	}
	before, err := f.store.Observations(ctx, filter)
	if err != nil {
		return fmt.Errorf("read observations of agent %d: %w", agent.ID, err)
	}
	projects := map[tidelock.ProjectID]bool{}
	if complete {
		removals = nil
	}
	known := make(map[tidelock.ObjectID]tidelock.Observation, len(before))
	for _, o := range before {
		known[o.Object], projects[o.Project] = o, true
		if complete && !seen[o.Object] {
			removals = append(removals, o.Object)
		}
	}
	touched = append(touched, removals...)

	now := f.now().UTC()
	for i := range upserts {
		o := &upserts[i]
		o.Agent, o.UpdatedAt, o.HealthSince = agent.ID, now, cmp.Or(o.Since, now)
		if b := known[o.Object]; !complete && b.Revision == o.Revision && becoming(b.Health) == becoming(o.Health) {
			o.HealthSince = cmp.Or(b.HealthSince, o.HealthSince)
		}
	}
	for rest := upserts; len(rest) > observeBatch; rest, upserts = rest[observeBatch:], rest[observeBatch:] {
		if err := f.store.SaveObservations(ctx, agent.ID, rest[:observeBatch], nil); err != nil {
			return err
		}
	}
	for rest := removals; len(rest) > observeBatch; rest, removals = rest[observeBatch:], rest[observeBatch:] {
		if err := f.store.SaveObservations(ctx, agent.ID, nil, rest[:observeBatch]); err != nil {
			return err
		}
	}
	if err := f.store.SaveObservations(ctx, agent.ID, upserts, removals); err != nil {
		return err
	}
	after, err := f.store.Observations(ctx, tidelock.ObservationFilter{Agent: agent.ID, Objects: touched})
	if err != nil {
		return fmt.Errorf("read observations of agent %d: %w", agent.ID, err)
	}
	for _, o := range after {
		projects[o.Project] = true
	}
	delete(projects, 0)
	for _, id := range slices.Sorted(maps.Keys(projects)) {
		if err := f.advance(ctx, advance{project: id, agent: agent.ID, objects: touched, live: true}); err != nil {
			return fmt.Errorf("move rollouts of project %d: %w", id, err)
		}
		publish(f, tidelock.Observed{Project: id})
	}
	return nil
}

// becoming is the health of which one is as good as the other for somebody who
// waits until all is healthy.
func becoming(h tidelock.Health) tidelock.Health {
	if h == tidelock.HealthMissing {
		return tidelock.HealthProgressing
	}
	return h
}

// ObservationsOf lists what agents see, for the server's own use.
func (f *Forge) ObservationsOf(ctx context.Context, filter tidelock.ObservationFilter) ([]tidelock.Observation, error) {
	return f.store.Observations(ctx, filter)
}

// Observations lists what agents see of a project's objects, to its members,
// as Announcements does.
func (f *Forge) Observations(ctx context.Context, p Principal, project tidelock.Project, filter tidelock.ObservationFilter) ([]tidelock.Observation, error) {
	if err := f.Allow(ctx, p, ReadDelivery, OnProject(project)); err != nil {
		return nil, err
	}
	filter.Project = project.ID
	return f.store.Observations(ctx, filter)
}
