package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"tidelock.dev"
)

const agentColumns = `a.id, a.project_id, a.name, a.creator_id, a.created_at`

func scanAgent(row scanner) (a tidelock.Agent, err error) {
	err = row.Scan(&a.ID, &a.Project, &a.Name, &a.Creator, (*instant)(&a.CreatedAt))
	return a, err
}

const insertAgent = `
	INSERT INTO agents (project_id, name, name_key, creator_id, created_at)
	VALUES (?, ?, ?, ?, ?)
	ON CONFLICT (project_id, name_key) DO NOTHING
	RETURNING id`

func (db *DB) CreateAgent(ctx context.Context, a tidelock.Agent) (tidelock.Agent, error) {
	a.CreatedAt = orNow(a.CreatedAt)
	err := db.write(ctx, func(s session) error {
		err := s.row(ctx, insertAgent, a.Project, a.Name, fold(a.Name), a.Creator, a.CreatedAt).Scan(&a.ID)
		if errors.Is(err, sql.ErrNoRows) {
			return taken("name")
		}
		return s.writeError("agent", "project", err)
	})
	return whole(a, err)
}

const selectAgent = `SELECT ` + agentColumns + ` FROM agents a WHERE a.id = ?`

func (db *DB) Agent(ctx context.Context, id tidelock.AgentID) (tidelock.Agent, error) {
	return one(ctx, db.point(ctx), "agent", scanAgent, selectAgent, id)
}

func (db *DB) Agents(ctx context.Context, f tidelock.AgentFilter, p tidelock.Page) ([]tidelock.Agent, int, error) {
	l := list{columns: agentColumns, from: `agents a`, order: `a.id`}
	if f.Project != 0 {
		l.filter(`a.project_id = ?`, f.Project)
	}
	if f.Name != "" {
		l.filter(`a.name_key = ?`, fold(f.Name))
	}
	return pageOf(ctx, db, "agents", l, p, scanAgent)
}

const deleteAgent = `DELETE FROM agents WHERE id = ?`

// DeleteAgent removes an agent with its tokens, grants, sessions,
// announcements and sources.
func (db *DB) DeleteAgent(ctx context.Context, id tidelock.AgentID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "agent", deleteAgent, id) })
}

const selectAgentConfig = `
	SELECT agent_id, good, good_commit, commit_id, error, warnings, checked_at
	FROM agent_configs
	WHERE agent_id = ?`

func scanAgentConfig(row scanner) (c tidelock.AgentConfig, err error) {
	var warnings []byte
	if err := row.Scan(&c.Agent, &c.Good, &c.GoodCommit, &c.Commit, &c.Error, &warnings, (*instant)(&c.CheckedAt)); err != nil {
		return c, err
	}
	return c, json.Unmarshal(warnings, &c.Warnings)
}

// AgentConfig returns the zero value with the id if none was ever saved.
func (db *DB) AgentConfig(ctx context.Context, agent tidelock.AgentID) (tidelock.AgentConfig, error) {
	c, err := scanAgentConfig(db.point(ctx).row(ctx, selectAgentConfig, agent))
	if errors.Is(err, sql.ErrNoRows) {
		return tidelock.AgentConfig{Agent: agent}, nil
	}
	if err != nil {
		return tidelock.AgentConfig{}, fmt.Errorf("read agent configuration: %w", err)
	}
	return c, nil
}

const saveAgentConfig = `
	INSERT INTO agent_configs (agent_id, good, good_commit, commit_id, error, warnings, checked_at)
	VALUES (?, ?, ?, ?, ?, ?, ?)
	ON CONFLICT (agent_id) DO UPDATE
	SET good = excluded.good, good_commit = excluded.good_commit, commit_id = excluded.commit_id,
		error = excluded.error, warnings = excluded.warnings, checked_at = excluded.checked_at`

func (db *DB) SaveAgentConfig(ctx context.Context, c tidelock.AgentConfig) error {
	warnings, err := json.Marshal(c.Warnings)
	if err != nil {
		return fmt.Errorf("write agent configuration: %w", err)
	}
	return db.write(ctx, func(s session) error {
		_, err := s.exec(ctx, saveAgentConfig, c.Agent, c.Good, c.GoodCommit, c.Commit, c.Error, string(warnings), c.CheckedAt)
		return s.writeError("agent configuration", "agent", err)
	})
}

const insertGrant = `
	INSERT INTO grants (project_id, agent_id, granted_by, created_at)
	VALUES (?, ?, ?, ?)
	ON CONFLICT (project_id, agent_id) DO NOTHING`

func (db *DB) Grant(ctx context.Context, g tidelock.Grant) error {
	return db.write(ctx, func(s session) error {
		_, err := s.exec(ctx, insertGrant, g.Project, g.Agent, g.By, orNow(g.CreatedAt))
		return s.writeError("grant", "project or agent", err)
	})
}

const deleteGrant = `DELETE FROM grants WHERE project_id = ? AND agent_id = ?`

func (db *DB) RevokeGrant(ctx context.Context, project tidelock.ProjectID, agent tidelock.AgentID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "grant", deleteGrant, project, agent) })
}

const selectGrants = `
	SELECT project_id, agent_id, granted_by, created_at
	FROM grants
	WHERE project_id = ?
	ORDER BY agent_id`

func scanGrant(row scanner) (g tidelock.Grant, err error) {
	err = row.Scan(&g.Project, &g.Agent, &g.By, (*instant)(&g.CreatedAt))
	return g, err
}

func (db *DB) Grants(ctx context.Context, project tidelock.ProjectID) ([]tidelock.Grant, error) {
	return many(ctx, db.point(ctx), "grants", scanGrant, selectGrants, project)
}

const selectGrantsTo = `
	SELECT project_id, agent_id, granted_by, created_at
	FROM grants
	WHERE agent_id = ?
	ORDER BY project_id`

func (db *DB) GrantsTo(ctx context.Context, agent tidelock.AgentID) ([]tidelock.Grant, error) {
	return many(ctx, db.point(ctx), "grants", scanGrant, selectGrantsTo, agent)
}

const countGrants = `SELECT COUNT(*) FROM grants WHERE project_id = ? AND agent_id = ?`

func (db *DB) Granted(ctx context.Context, agent tidelock.AgentID, project tidelock.ProjectID) (bool, error) {
	var n int
	if err := db.point(ctx).row(ctx, countGrants, project, agent).Scan(&n); err != nil {
		return false, fmt.Errorf("read grant: %w", err)
	}
	return n > 0, nil
}
