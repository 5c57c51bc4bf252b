package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"tidelock.dev"
)

const (
	upsertAgentSource = `
		INSERT INTO agent_sources (agent_id, source, project_id, ref, wanted, digest, revision, suspended, state, message, since, updated_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (agent_id, source) DO UPDATE
		SET project_id = excluded.project_id, ref = excluded.ref, wanted = excluded.wanted, digest = excluded.digest,
			revision = excluded.revision, suspended = excluded.suspended, state = excluded.state, message = excluded.message,
			since = CASE WHEN agent_sources.state = excluded.state THEN agent_sources.since ELSE excluded.since END,
			updated_at = excluded.updated_at`
	deleteAgentSource = `DELETE FROM agent_sources WHERE agent_id = ? AND source = ?`
)

// SaveAgentSources writes in order of source, so that two writers of one
// agent do not wait for each other in a circle.
func (db *DB) SaveAgentSources(ctx context.Context, agent tidelock.AgentID, upserts []tidelock.AgentSource, removals []tidelock.SourceID) error {
	if len(upserts)+len(removals) == 0 {
		return nil
	}
	upserts = slices.SortedFunc(slices.Values(upserts), func(a, b tidelock.AgentSource) int { return cmp.Compare(a.Source, b.Source) })
	removals = slices.Sorted(slices.Values(removals))
	err := db.note(ctx, func(s session) error {
		for _, id := range removals {
			if _, err := s.exec(ctx, deleteAgentSource, agent, id); err != nil {
				return err
			}
		}
		for _, a := range upserts {
			if _, err := s.exec(ctx, upsertAgentSource, agent, a.Source, a.Project, []byte(a.Ref), a.Wanted, a.Digest, a.Revision,
				a.Suspended, a.State, a.Message, a.Since, a.UpdatedAt); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !db.missingReference(err) { // else the agent was deleted meanwhile
		return fmt.Errorf("write sources of agent %d: %w", agent, err)
	}
	return nil
}

const selectAgentSources = `
	SELECT agent_id, source, project_id, ref, wanted, digest, revision, suspended, state, message, since, updated_at
	FROM agent_sources
	WHERE agent_id = ?
	ORDER BY source`

func scanAgentSource(row scanner) (a tidelock.AgentSource, err error) {
	err = row.Scan(&a.Agent, &a.Source, &a.Project, &a.Ref, &a.Wanted, &a.Digest, &a.Revision, &a.Suspended, &a.State, &a.Message,
		(*instant)(&a.Since), (*instant)(&a.UpdatedAt))
	return a, err
}

func (db *DB) AgentSources(ctx context.Context, agent tidelock.AgentID) ([]tidelock.AgentSource, error) {
	return many(ctx, db.point(ctx), "sources of the agent", scanAgentSource, selectAgentSources, agent)
}
