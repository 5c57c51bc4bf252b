package store

import (
	"context"
	"strings"
	"time"

	"tidelock.dev"
)

const tokenColumns = `t.id, t.kind, t.name, COALESCE(t.user_id, 0), COALESCE(t.project_id, 0), COALESCE(t.namespace_id, 0),
	t.username, t.level, t.scopes, t.creator_id, t.created_at, t.expires_at, t.last_used, t.revoked`

func scanToken(row scanner) (t tidelock.Token, err error) {
	var scopes string
	err = row.Scan(&t.ID, &t.Kind, &t.Name, &t.User, &t.Project, &t.Namespace,
		&t.Username, &t.Level, &scopes, &t.Creator, (*instant)(&t.CreatedAt), (*instant)(&t.ExpiresAt), (*instant)(&t.LastUsed), &t.Revoked)
	for scope := range strings.FieldsSeq(scopes) {
		t.Scopes = append(t.Scopes, tidelock.Scope(scope))
	}
	return t, err
}

func joinScopes(scopes []tidelock.Scope) string {
	words := make([]string, len(scopes))
	for i, s := range scopes {
		words[i] = string(s)
	}
	return strings.Join(words, " ")
}

const insertToken = `
	INSERT INTO tokens (hash, kind, name, user_id, project_id, namespace_id, username, level, scopes,
		creator_id, created_at, expires_at, last_used, revoked)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
	RETURNING id`

// CreateToken stores a token by the hash of its secret, and makes the bot it
// acts as, if any.
func (db *DB) CreateToken(ctx context.Context, t tidelock.Token, hash string, bot *tidelock.User) (tidelock.Token, error) {
	t.CreatedAt, t.ExpiresAt, t.LastUsed = orNow(t.CreatedAt), kept(t.ExpiresAt), kept(t.LastUsed)
	err := db.write(ctx, func(s session) error {
		if bot != nil {
			u := *bot
			u.Bot = true
			u, err := s.createUser(ctx, u)
			if err != nil {
				return err
			}
			t.User = u.ID
			err = s.setMember(ctx, tidelock.Member{Holder: t.Holder, User: u.ID, Level: t.Level, ExpiresAt: t.ExpiresAt, CreatedAt: t.CreatedAt})
			if err != nil {
				return err
			}
		}
		err := s.row(ctx, insertToken, hash, t.Kind, t.Name, orNull(t.User), orNull(t.Project), orNull(t.Namespace), t.Username, t.Level, joinScopes(t.Scopes),
			t.Creator, t.CreatedAt, t.ExpiresAt, t.LastUsed, t.Revoked).Scan(&t.ID)
		return s.writeError("token", "user, project or group", err)
	})
	return whole(t, err)
}

const selectToken = `SELECT ` + tokenColumns + ` FROM tokens t WHERE t.id = ?`

func (db *DB) Token(ctx context.Context, id tidelock.TokenID) (tidelock.Token, error) {
	return one(ctx, db.point(ctx), "token", scanToken, selectToken, id)
}

const selectTokenByHash = `SELECT ` + tokenColumns + ` FROM tokens t WHERE t.hash = ?`

func (db *DB) TokenByHash(ctx context.Context, hash string) (tidelock.Token, error) {
	return one(ctx, db.point(ctx), "token", scanToken, selectTokenByHash, hash)
}

func (db *DB) Tokens(ctx context.Context, f tidelock.TokenFilter, p tidelock.Page) ([]tidelock.Token, int, error) {
	l := list{columns: tokenColumns, from: `tokens t`, order: `t.id`}
	if f.Kind != "" {
		l.filter(`t.kind = ?`, f.Kind)
	}
	if f.User != 0 {
		l.filter(`t.user_id = ?`, f.User)
	}
	if f.Holder.Project != 0 {
		l.filter(`t.project_id = ?`, f.Holder.Project)
	}
	if f.Holder.Namespace != 0 {
		l.filter(`t.namespace_id = ?`, f.Holder.Namespace)
	}
	if f.Active != nil {
		active := `(NOT t.revoked AND (t.expires_at = 0 OR t.expires_at > ?))`
		if !*f.Active {
			active = `NOT ` + active
		}
		l.filter(active, orNow(f.Now))
	}
	return pageOf(ctx, db, "tokens", l, p, scanToken)
}

const revokeToken = `UPDATE tokens SET revoked = TRUE WHERE id = ?`

func (db *DB) RevokeToken(ctx context.Context, id tidelock.TokenID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "token", revokeToken, id) })
}

const (
	tokenLastUsed = `SELECT last_used FROM tokens WHERE id = ?`
	touchToken    = `UPDATE tokens SET last_used = ? WHERE id = ? AND last_used < ?`
)

// TouchToken records a use, unless one within the last minute is recorded.
func (db *DB) TouchToken(ctx context.Context, id tidelock.TokenID, at time.Time) error {
	return db.touch(ctx, "token", tokenLastUsed, touchToken, int64(id), at)
}

// touch writes a use at most once a minute, and never an earlier one.
func (db *DB) touch(ctx context.Context, noun, lastUsed, touch string, id int64, at time.Time) error {
	var last time.Time
	if err := db.point(ctx).row(ctx, lastUsed, id).Scan((*instant)(&last)); err != nil {
		return readError(noun, err)
	}
	if at.Before(last.Add(time.Minute)) {
		return nil
	}
	return db.note(ctx, func(s session) error {
		_, err := s.exec(ctx, touch, at, id, at)
		return s.writeError(noun, noun, err)
	})
}
