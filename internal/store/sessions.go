package store

import (
	"context"
	"time"

	"tidelock.dev"
)

// What sessions say is true only while servers repeat it, so none of it
// waits for the disk.

const saveAgentSession = `
	INSERT INTO agent_sessions (agent_id, instance, server, token_id, version, build_commit,
		pod_namespace, pod_name, kubernetes_version, leader, connected_at, last_seen)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
	ON CONFLICT (agent_id, instance) DO UPDATE
	SET server = excluded.server, token_id = excluded.token_id, version = excluded.version,
		build_commit = excluded.build_commit, pod_namespace = excluded.pod_namespace, pod_name = excluded.pod_name,
		kubernetes_version = excluded.kubernetes_version, leader = excluded.leader,
		connected_at = excluded.connected_at, last_seen = excluded.last_seen
	WHERE excluded.connected_at >= agent_sessions.connected_at`

// SaveAgentSession writes a session unless the same instance has a later
// one: a server that lost an agent to another may notice only much later.
func (db *DB) SaveAgentSession(ctx context.Context, a tidelock.AgentSession) error {
	return db.note(ctx, func(s session) error {
		_, err := s.exec(ctx, saveAgentSession, a.Agent, a.Instance, a.Server, a.Token, a.Version, a.Commit,
			a.PodNamespace, a.PodName, a.KubernetesVersion, a.Leader, a.ConnectedAt, a.LastSeen)
		if err == nil {
			_, err = s.exec(ctx, saveAgentPresence, a.Agent, a.LastSeen, "")
		}
		return s.writeError("agent session", "agent", err)
	})
}

const saveAgentPresence = `
	INSERT INTO agent_presence (agent_id, last_seen, left_why)
	VALUES (?, ?, ?)
	ON CONFLICT (agent_id) DO UPDATE
	SET last_seen = excluded.last_seen, left_why = excluded.left_why
	WHERE excluded.last_seen >= agent_presence.last_seen`

// SaveAgentPresence writes when an agent was connected last.
func (db *DB) SaveAgentPresence(ctx context.Context, a tidelock.AgentPresence) error {
	return db.note(ctx, func(s session) error {
		_, err := s.exec(ctx, saveAgentPresence, a.Agent, a.LastSeen, a.Left)
		return s.writeError("agent presence", "agent", err)
	})
}

const selectAgentPresence = `
	SELECT agent_id, last_seen, left_why
	FROM agent_presence
	WHERE CAST(? AS BIGINT) IN (0, agent_id)
	ORDER BY agent_id`

func scanAgentPresence(row scanner) (a tidelock.AgentPresence, err error) {
	err = row.Scan(&a.Agent, (*instant)(&a.LastSeen), &a.Left)
	return a, err
}

// AgentPresence lists when an agent, or with 0 each of them, was connected last.
func (db *DB) AgentPresence(ctx context.Context, agent tidelock.AgentID) ([]tidelock.AgentPresence, error) {
	return many(ctx, db.point(ctx), "presence of agents", scanAgentPresence, selectAgentPresence, agent)
}

const deleteAgentSession = `DELETE FROM agent_sessions WHERE agent_id = ? AND instance = ? AND server = ?`

// RemoveAgentSession removes a session if the server still holds it.
func (db *DB) RemoveAgentSession(ctx context.Context, agent tidelock.AgentID, instance, server string) error {
	return db.note(ctx, func(s session) error {
		_, err := s.exec(ctx, deleteAgentSession, agent, instance, server)
		return s.writeError("agent session", "agent", err)
	})
}

const deleteStaleSessions = `DELETE FROM agent_sessions WHERE last_seen < ?`

func (db *DB) RemoveStaleSessions(ctx context.Context, before time.Time) error {
	return db.note(ctx, func(s session) error {
		_, err := s.exec(ctx, deleteStaleSessions, before)
		return s.writeError("agent sessions", "agent", err)
	})
}

const selectAgentSessions = `
	SELECT agent_id, instance, server, token_id, version, build_commit,
		pod_namespace, pod_name, kubernetes_version, leader, connected_at, last_seen
	FROM agent_sessions
	WHERE CAST(? AS BIGINT) IN (0, agent_id)
	ORDER BY agent_id, instance`

func scanAgentSession(row scanner) (a tidelock.AgentSession, err error) {
	err = row.Scan(&a.Agent, &a.Instance, &a.Server, &a.Token, &a.Version, &a.Commit,
		&a.PodNamespace, &a.PodName, &a.KubernetesVersion, &a.Leader, (*instant)(&a.ConnectedAt), (*instant)(&a.LastSeen))
	return a, err
}

// AgentSessions lists the sessions of an agent, or with 0 of all.
func (db *DB) AgentSessions(ctx context.Context, agent tidelock.AgentID) ([]tidelock.AgentSession, error) {
	return many(ctx, db.point(ctx), "agent sessions", scanAgentSession, selectAgentSessions, agent)
}
