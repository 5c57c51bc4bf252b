package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"tidelock.dev"
)

const (
	upsertAgentSource = `
		INSERT INTO agent_sources (agent_id, source, project_id, ref, wanted, digest, revision, suspended, state, message, since, updated_at, refused, spec, image_id)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (agent_id, source) DO UPDATE
		SET project_id = excluded.project_id, ref = excluded.ref, wanted = excluded.wanted, digest = excluded.digest,
			revision = excluded.revision, suspended = excluded.suspended, state = excluded.state, message = excluded.message,
			since = CASE WHEN agent_sources.state = excluded.state THEN agent_sources.since ELSE excluded.since END,
			updated_at = excluded.updated_at, refused = excluded.refused, spec = excluded.spec, image_id = excluded.image_id`
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
			spec, err := json.Marshal(a.Spec)
			if err != nil {
				return err
			}
			if _, err := s.exec(ctx, upsertAgentSource, agent, a.Source, a.Project, []byte(a.Ref), a.Wanted, a.Digest, a.Revision,
				a.Suspended, a.State, a.Message, a.Since, a.UpdatedAt, a.Refused, string(spec), a.Image); err != nil {
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

const (
	agentSourceColumns = `agent_id, source, project_id, ref, wanted, digest, revision, suspended, state, message, since, updated_at, refused, spec, image_id`
	selectAgentSources = `
		SELECT ` + agentSourceColumns + `
		FROM agent_sources
		WHERE agent_id = ?
		ORDER BY source`
	selectSourcesOfProject = `
		SELECT ` + agentSourceColumns + `
		FROM agent_sources
		WHERE project_id = ? OR refused = ?
		ORDER BY agent_id, source
		LIMIT ?`
)

func scanAgentSource(row scanner) (a tidelock.AgentSource, err error) {
	var spec []byte
	err = row.Scan(&a.Agent, &a.Source, &a.Project, &a.Ref, &a.Wanted, &a.Digest, &a.Revision, &a.Suspended, &a.State, &a.Message,
		(*instant)(&a.Since), (*instant)(&a.UpdatedAt), &a.Refused, &spec, &a.Image)
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(spec, &a.Spec)
}

func (db *DB) AgentSources(ctx context.Context, agent tidelock.AgentID) ([]tidelock.AgentSource, error) {
	return many(ctx, db.point(ctx), "sources of the agent", scanAgentSource, selectAgentSources, agent)
}

// SourcesOfProject lists, at most limit, the sources of all agents that lead
// to a project, also those whose agent may not be told of it.
func (db *DB) SourcesOfProject(ctx context.Context, project tidelock.ProjectID, limit int) ([]tidelock.AgentSource, error) {
	return many(ctx, db.point(ctx), "sources of the project", scanAgentSource, selectSourcesOfProject, project, project, limit)
}
