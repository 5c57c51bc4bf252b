package store

import (
	"context"
	"fmt"
	"time"

	"tidelock.dev"
)

// maxAgentTokens is how many tokens of an agent may be active, so that one
// can take the place of another.
const maxAgentTokens = 2

const agentTokenColumns = `t.id, t.agent_id, t.name, t.description, t.creator_id, t.created_at, t.last_used, t.revoked`

func scanAgentToken(row scanner) (t tidelock.AgentToken, err error) {
	err = row.Scan(&t.ID, &t.Agent, &t.Name, &t.Description, &t.Creator, (*instant)(&t.CreatedAt), (*instant)(&t.LastUsed), &t.Revoked)
	return t, err
}

const (
	lockAgent              = `SELECT id FROM agents WHERE id = ?`
	countActiveAgentTokens = `SELECT COUNT(*) FROM agent_tokens WHERE agent_id = ? AND NOT revoked`
	insertAgentToken       = `
		INSERT INTO agent_tokens (agent_id, hash, name, description, creator_id, created_at, last_used, revoked)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		RETURNING id`
)

func (db *DB) CreateAgentToken(ctx context.Context, t tidelock.AgentToken, hash string) (tidelock.AgentToken, error) {
	t.CreatedAt, t.LastUsed = orNow(t.CreatedAt), kept(t.LastUsed)
	err := db.write(ctx, func(s session) error {
		var locked tidelock.AgentID
		if err := s.row(ctx, lockAgent+s.lockRow, t.Agent).Scan(&locked); err != nil {
			return readError("agent", err)
		}
		var active int
		if err := s.row(ctx, countActiveAgentTokens, t.Agent).Scan(&active); err != nil {
			return fmt.Errorf("count agent tokens: %w", err)
		}
		if active >= maxAgentTokens && !t.Revoked {
			return tidelock.Errorf(tidelock.Invalid, "an agent can have only two active tokens at a time; revoke one first")
		}
		err := s.row(ctx, insertAgentToken, t.Agent, hash, t.Name, t.Description, t.Creator, t.CreatedAt, t.LastUsed, t.Revoked).Scan(&t.ID)
		return s.writeError("agent token", "agent", err)
	})
	return whole(t, err)
}

const selectAgentToken = `SELECT ` + agentTokenColumns + ` FROM agent_tokens t WHERE t.id = ?`

func (db *DB) AgentToken(ctx context.Context, id tidelock.AgentTokenID) (tidelock.AgentToken, error) {
	return one(ctx, db.point(ctx), "agent token", scanAgentToken, selectAgentToken, id)
}

const selectAgentTokenByHash = `SELECT ` + agentTokenColumns + ` FROM agent_tokens t WHERE t.hash = ?`

func (db *DB) AgentTokenByHash(ctx context.Context, hash string) (tidelock.AgentToken, error) {
	return one(ctx, db.point(ctx), "agent token", scanAgentToken, selectAgentTokenByHash, hash)
}

const selectAgentTokens = `SELECT ` + agentTokenColumns + ` FROM agent_tokens t WHERE t.agent_id = ? AND NOT t.revoked ORDER BY t.id`

func (db *DB) AgentTokens(ctx context.Context, agent tidelock.AgentID) ([]tidelock.AgentToken, error) {
	return many(ctx, db.point(ctx), "agent tokens", scanAgentToken, selectAgentTokens, agent)
}

const selectLiveAgentTokens = `SELECT id FROM agent_tokens WHERE NOT revoked AND id IN (%s) ORDER BY id`

func (db *DB) LiveAgentTokens(ctx context.Context, ids []tidelock.AgentTokenID) ([]tidelock.AgentTokenID, error) {
	s := db.point(ctx)
	return many(ctx, s, "agent tokens", func(row scanner) (id tidelock.AgentTokenID, err error) {
		err = row.Scan(&id)
		return id, err
	}, fmt.Sprintf(selectLiveAgentTokens, s.in), idList(ids))
}

const revokeAgentToken = `UPDATE agent_tokens SET revoked = TRUE WHERE id = ?`

func (db *DB) RevokeAgentToken(ctx context.Context, id tidelock.AgentTokenID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "agent token", revokeAgentToken, id) })
}

const (
	agentTokenLastUsed = `SELECT last_used FROM agent_tokens WHERE id = ?`
	touchAgentToken    = `UPDATE agent_tokens SET last_used = ? WHERE id = ? AND last_used < ?`
)

// TouchAgentToken records a use, unless one within the last minute is
// recorded.
func (db *DB) TouchAgentToken(ctx context.Context, id tidelock.AgentTokenID, at time.Time) error {
	return db.touch(ctx, "agent token", agentTokenLastUsed, touchAgentToken, int64(id), at)
}
