package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidelock.dev"
)

const tokenColumns = `t.id, t.family_id, t.kind, t.name, COALESCE(t.user_id, 0), COALESCE(t.project_id, 0), COALESCE(t.namespace_id, 0),
	t.username, t.level, t.scopes, t.creator_id, t.created_at, t.expires_at, t.last_used, t.revoked`

func scanToken(row scanner) (t tidelock.Token, err error) {
	var scopes string
	err = row.Scan(&t.ID, &t.Family, &t.Kind, &t.Name, &t.User, &t.Project, &t.Namespace,
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
	INSERT INTO tokens (hash, family_id, kind, name, name_key, user_id, project_id, namespace_id, username, level, scopes,
		creator_id, created_at, expires_at, last_used, revoked)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
	RETURNING id`

func (s session) createToken(ctx context.Context, t *tidelock.Token, hash string) error {
	err := s.row(ctx, insertToken, hash, t.Family, t.Kind, t.Name, fold(t.Name), orNull(t.User), orNull(t.Project), orNull(t.Namespace), t.Username, t.Level,
		joinScopes(t.Scopes), t.Creator, t.CreatedAt, t.ExpiresAt, t.LastUsed, t.Revoked).Scan(&t.ID)
	return s.writeError("token", "user, project or group", err)
}

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
		return s.createToken(ctx, &t, hash)
	})
	return whole(t, err)
}

const (
	// lockFamily keeps one token at a time from being added to a family, or
	// all from being revoked.
	lockFamily    = `SELECT id FROM tokens WHERE id = ?`
	replaceToken  = `UPDATE tokens SET revoked = TRUE WHERE id = ? AND NOT revoked`
	extendMembers = `UPDATE members SET expires_at = ? WHERE user_id = ? AND (project_id = ? OR namespace_id = ?)`
	revokeFamily  = `UPDATE tokens SET revoked = TRUE WHERE (id = ? OR family_id = ?) AND NOT revoked`
)

// RotateToken revokes a token and stores the one that takes its place; a bot's
// membership lasts as long as the new one.
func (db *DB) RotateToken(ctx context.Context, id tidelock.TokenID, next tidelock.Token, hash string) (tidelock.Token, error) {
	next.CreatedAt, next.ExpiresAt, next.LastUsed = orNow(next.CreatedAt), kept(next.ExpiresAt), kept(next.LastUsed)
	err := db.write(ctx, func(s session) error {
		old, err := one(ctx, s, "token", scanToken, selectToken, id)
		if err != nil {
			return err
		}
		next.Family = old.Line()
		if err := s.lockFamily(ctx, next.Family); err != nil {
			return err
		}
		n, err := s.exec(ctx, replaceToken, id)
		if err != nil {
			return fmt.Errorf("revoke token: %w", err)
		}
		if n == 0 {
			return tidelock.Errorf(tidelock.Conflict, "the token was revoked")
		}
		if old.Project != 0 || old.Namespace != 0 {
			_, err := s.exec(ctx, extendMembers, next.ExpiresAt, old.User, orNull(old.Project), orNull(old.Namespace))
			if err != nil {
				return fmt.Errorf("extend the membership of a bot: %w", err)
			}
		}
		return s.createToken(ctx, &next, hash)
	})
	return whole(next, err)
}

func (s session) lockFamily(ctx context.Context, first tidelock.TokenID) error {
	var locked tidelock.TokenID
	if err := s.row(ctx, lockFamily+s.lockRow, first).Scan(&locked); err != nil {
		return readError("token", err)
	}
	return nil
}

// RevokeFamily revokes all that was rotated from a token, and the token.
func (db *DB) RevokeFamily(ctx context.Context, first tidelock.TokenID) (revoked int, err error) {
	err = db.write(ctx, func(s session) error {
		if err := s.lockFamily(ctx, first); err != nil {
			return err
		}
		n, err := s.exec(ctx, revokeFamily, first, first)
		if err != nil {
			return fmt.Errorf("revoke tokens: %w", err)
		}
		revoked = int(n)
		return nil
	})
	return revoked, err
}

const selectToken = `SELECT ` + tokenColumns + ` FROM tokens t WHERE t.id = ?`

func (db *DB) Token(ctx context.Context, id tidelock.TokenID) (tidelock.Token, error) {
	return one(ctx, db.point(ctx), "token", scanToken, selectToken, id)
}

const selectTokenByHash = `SELECT ` + tokenColumns + ` FROM tokens t WHERE t.hash = ?`

func (db *DB) TokenByHash(ctx context.Context, hash string) (tidelock.Token, error) {
	return one(ctx, db.point(ctx), "token", scanToken, selectTokenByHash, hash)
}

// tokenOrders are the orders of TokenFilter; ids decide between equals.
var tokenOrders = map[string]string{
	"":             `t.id`,
	"id":           `t.id`,
	"name":         `t.name_key`,
	"created_at":   `t.created_at`,
	"last_used_at": `t.last_used`,
	"expires_at":   `t.expires_at`,
}

func (db *DB) Tokens(ctx context.Context, f tidelock.TokenFilter, p tidelock.Page) ([]tidelock.Token, int, error) {
	order, ok := tokenOrders[f.OrderBy]
	if !ok {
		return nil, 0, tidelock.FieldErrorf(tidelock.Invalid, "sort", "does not have a valid value")
	}
	if f.Descending {
		order += ` DESC, t.id DESC`
	} else {
		order += `, t.id`
	}
	l := list{columns: tokenColumns, from: `tokens t`, order: order}
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
	if f.Family != 0 {
		l.filter(`(t.id = ? OR t.family_id = ?)`, f.Family, f.Family)
	}
	if f.Revoked != nil {
		l.filter(`t.revoked = ?`, *f.Revoked)
	}
	l.search(f.Search, `t.name_key`)
	l.span(f.Created, `t.created_at`)
	l.span(f.Used, `t.last_used`)
	l.span(f.Expires, `t.expires_at`)
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
