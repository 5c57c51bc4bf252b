package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"tidelock.dev"
)

const (
	upsertObservation = `
		INSERT INTO observations (agent_id, object, source, state, health, body, since, updated_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (agent_id, object) DO UPDATE
		SET source = excluded.source, state = excluded.state, health = excluded.health, body = excluded.body,
			since = CASE WHEN observations.state = excluded.state AND observations.health = excluded.health
				THEN observations.since ELSE excluded.since END,
			updated_at = excluded.updated_at`
	deleteObservation = `DELETE FROM observations WHERE agent_id = ? AND object = ?`
)

// SaveObservations does not wait for the disk: the agent tells all of it again
// when it connects. It writes in order of object, so that two writers of one
// agent do not wait for each other in a circle.
func (db *DB) SaveObservations(ctx context.Context, agent tidelock.AgentID, upserts []tidelock.Observation, removals []tidelock.ObjectID) error {
	if len(upserts)+len(removals) == 0 {
		return nil
	}
	type row struct {
		tidelock.Observation
		body string
	}
	rows := make([]row, len(upserts))
	for i, o := range upserts {
		kept := o
		kept.Agent, kept.Object, kept.Project, kept.Since, kept.UpdatedAt = 0, "", 0, time.Time{}, time.Time{}
		body, err := json.Marshal(kept)
		if err != nil {
			return fmt.Errorf("write observations of agent %d: %w", agent, err)
		}
		rows[i] = row{o, string(body)}
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.Object, b.Object) })
	removals = slices.Sorted(slices.Values(removals))
	err := db.note(ctx, func(s session) error {
		for _, id := range removals {
			if _, err := s.exec(ctx, deleteObservation, agent, id); err != nil {
				return err
			}
		}
		for _, o := range rows {
			if _, err := s.exec(ctx, upsertObservation, agent, o.Object, sourceOf(o.Observation), o.State, o.Health, o.body,
				orNow(o.Since), orNow(o.UpdatedAt)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !db.missingReference(err) { // else the agent was deleted meanwhile
		return fmt.Errorf("write observations of agent %d: %w", agent, err)
	}
	return nil
}

// sourceOf is the source by which an observation belongs to a project.
func sourceOf(o tidelock.Observation) tidelock.SourceID {
	if o.Object.Applies() {
		return o.Source
	}
	return tidelock.SourceID(o.Object)
}

const (
	observationColumns = `o.agent_id, o.object, COALESCE(s.project_id, 0), o.body, o.since, o.updated_at`
	observationTables  = `observations o LEFT JOIN agent_sources s ON s.agent_id = o.agent_id AND s.source = o.source`
)

func scanObservation(row scanner) (tidelock.Observation, error) {
	var key tidelock.Observation
	var body []byte
	if err := row.Scan(&key.Agent, &key.Object, &key.Project, &body, (*instant)(&key.Since), (*instant)(&key.UpdatedAt)); err != nil {
		return key, err
	}
	var o tidelock.Observation
	if err := json.Unmarshal(body, &o); err != nil {
		return o, fmt.Errorf("read the body of %s: %w", key.Object, err)
	}
	o.Agent, o.Object, o.Project, o.Since, o.UpdatedAt = key.Agent, key.Object, key.Project, key.Since, key.UpdatedAt
	return o, nil
}

func (db *DB) Observations(ctx context.Context, f tidelock.ObservationFilter) ([]tidelock.Observation, error) {
	l := list{columns: observationColumns, from: observationTables, order: `o.agent_id, o.object`}
	if f.Agent != 0 {
		l.filter(`o.agent_id = ?`, f.Agent)
	}
	if f.Project != 0 {
		l.filter(`s.project_id = ?`, f.Project)
	}
	if f.Source != "" {
		l.filter(`o.source = ? AND o.object <> ?`, f.Source, f.Source)
	}
	if f.Objects == nil {
		found, _, err := pageOf(ctx, db, "observations", l, tidelock.Page{}, scanObservation)
		return found, err
	}
	found := []tidelock.Observation{}
	err := db.read(ctx, func(s session) error {
		for some := range slices.Chunk(slices.Compact(slices.Sorted(slices.Values(f.Objects))), batch) {
			args := make([]any, len(some))
			for i, id := range some {
				args[i] = id
			}
			part := l
			part.where, part.args = slices.Clone(l.where), slices.Clone(l.args)
			part.filter(`o.object IN `+tuples(1, len(some)), args...)
			list, _, err := page(ctx, s, "observations", part, tidelock.Page{}, scanObservation)
			if err != nil {
				return err
			}
			found = append(found, list...)
		}
		return nil
	})
	return found, err
}
