package store

import (
	"context"
	"fmt"
	"time"

	"tidelock.dev"
)

const memberColumns = `COALESCE(m.project_id, 0), COALESCE(m.namespace_id, 0), m.user_id, m.level, m.expires_at, m.created_at`

func scanMember(row scanner) (m tidelock.Member, err error) {
	err = row.Scan(&m.Project, &m.Namespace, &m.User, &m.Level, (*instant)(&m.ExpiresAt), (*instant)(&m.CreatedAt))
	return m, err
}

// SetMember adds a member or changes its level and expiry.
func (db *DB) SetMember(ctx context.Context, m tidelock.Member) error {
	return db.write(ctx, func(s session) error { return s.setMember(ctx, m) })
}

const (
	insertMember = `
		INSERT INTO members (user_id, project_id, namespace_id, level, expires_at, created_at)
		VALUES (?, ?, ?, ?, ?, ?)`
	setProjectMember = insertMember + `
		ON CONFLICT (user_id, project_id) DO UPDATE SET level = excluded.level, expires_at = excluded.expires_at`
	setNamespaceMember = insertMember + `
		ON CONFLICT (user_id, namespace_id) DO UPDATE SET level = excluded.level, expires_at = excluded.expires_at`
)

func (s session) setMember(ctx context.Context, m tidelock.Member) error {
	text, referents := setProjectMember, "user or project"
	if m.Project == 0 {
		text, referents = setNamespaceMember, "user or group"
	}
	if (m.Project == 0) == (m.Namespace == 0) {
		return fmt.Errorf("write member: holder %+v is not exactly one project or namespace", m.Holder)
	}
	_, err := s.exec(ctx, text, m.User, orNull(m.Project), orNull(m.Namespace), m.Level, m.ExpiresAt, orNow(m.CreatedAt))
	return s.writeError("member", referents, err)
}

const deleteMember = `DELETE FROM members WHERE user_id = ? AND (project_id = ? OR namespace_id = ?)`

func (db *DB) RemoveMember(ctx context.Context, h tidelock.Holder, user tidelock.UserID) error {
	return db.write(ctx, func(s session) error {
		return s.change(ctx, "member", deleteMember, user, orNull(h.Project), orNull(h.Namespace))
	})
}

func (db *DB) Members(ctx context.Context, h tidelock.Holder, p tidelock.Page) ([]tidelock.Member, int, error) {
	l := list{columns: memberColumns, from: `members m`, order: `m.user_id`}
	l.filter(`(m.project_id = ? OR m.namespace_id = ?)`, orNull(h.Project), orNull(h.Namespace))
	return pageOf(ctx, db, "members", l, p, scanMember)
}

// aboveHolder begins a query with what holds a holder, given as a project and
// as a namespace of which one is 0: a group counts as its own.
const aboveHolder = `
	WITH RECURSIVE above (id) AS (
		SELECT namespace_id FROM projects WHERE id = ?
		UNION
		SELECT id FROM namespaces WHERE id = ?
		UNION
		SELECT n.parent_id FROM namespaces n JOIN above ON n.id = above.id WHERE n.parent_id IS NOT NULL
	)`

const selectAccessLevel = aboveHolder + `, invited (id, level) AS (
		SELECT namespace_id, level FROM shares WHERE project_id = ? AND (expires_at = 0 OR expires_at > ?)
		UNION
		SELECT n.parent_id, invited.level FROM namespaces n JOIN invited ON n.id = invited.id WHERE n.parent_id IS NOT NULL
	)
	SELECT COALESCE(MAX(level), 0) FROM (
		SELECT level FROM members
		WHERE user_id = ? AND project_id = ? AND (expires_at = 0 OR expires_at > ?)
		UNION ALL
		SELECT level FROM members -- apart: with OR, SQLite reads all of which the user is a member
		WHERE user_id = ? AND namespace_id IN (SELECT id FROM above) AND (expires_at = 0 OR expires_at > ?)
		UNION ALL
		SELECT 50 FROM namespaces WHERE owner_id = ? AND id IN (SELECT id FROM above)
		UNION ALL
		SELECT CASE WHEN m.level < invited.level THEN m.level ELSE invited.level END
		FROM invited CROSS JOIN members m -- in this order: most often none are invited
		WHERE m.namespace_id = invited.id AND m.user_id = ? AND (m.expires_at = 0 OR m.expires_at > ?)
	) AS levels`

// AccessLevel is the highest level a user has in a holder at a time.
func (db *DB) AccessLevel(ctx context.Context, user tidelock.UserID, h tidelock.Holder, at time.Time) (tidelock.AccessLevel, error) {
	var level tidelock.AccessLevel
	err := db.point(ctx).row(ctx, selectAccessLevel, h.Project, h.Namespace, h.Project, at, user, h.Project, at, user, at, user, user, at).Scan(&level)
	if err != nil {
		return tidelock.NoAccess, fmt.Errorf("read access level: %w", err)
	}
	return level, nil
}

const (
	lockNamespace = `SELECT id FROM namespaces WHERE id = ?`
	countOwners   = `
		WITH RECURSIVE above (id) AS (
			SELECT id FROM namespaces WHERE id = ?
			UNION
			SELECT n.parent_id FROM namespaces n JOIN above ON n.id = above.id WHERE n.parent_id IS NOT NULL
		)
		SELECT COUNT(*)
		FROM members m JOIN users u ON u.id = m.user_id
		WHERE m.namespace_id IN (SELECT id FROM above) AND m.level >= 50 AND (m.expires_at = 0 OR m.expires_at > ?)
			AND NOT u.bot AND NOT u.blocked`
)

// HasOwner reports whether a group has an owner who can act, by itself or by a
// group above it.
func (db *DB) HasOwner(ctx context.Context, id tidelock.NamespaceID, at time.Time) (bool, error) {
	var n int
	err := db.write(ctx, func(s session) error { // of two that end each other's ownership, the later waits
		var locked tidelock.NamespaceID
		if err := s.row(ctx, lockNamespace+s.lockRow, id).Scan(&locked); err != nil {
			return readError("namespace", err)
		}
		if err := s.row(ctx, countOwners, id, at).Scan(&n); err != nil {
			return fmt.Errorf("count the owners of a group: %w", err)
		}
		return nil
	})
	return n > 0, err
}

// A membership asks for what a user has at least a level in, by itself or by
// a group above.
type membership struct {
	user  tidelock.UserID
	level tidelock.AccessLevel
	at    time.Time
}

func memberAt(user tidelock.UserID, level tidelock.AccessLevel) membership {
	return membership{user: user, level: max(level, 1), at: time.Now()}
}

// condition asks whether the row of two columns, a project and the namespace
// it is in, is within the membership; an empty project asks for namespaces.
func (m membership) condition(project, namespace string) (string, []any) {
	const mine = `
		WITH RECURSIVE mine (id) AS (
			SELECT namespace_id FROM members
			WHERE user_id = ? AND namespace_id IS NOT NULL AND level >= ? AND (expires_at = 0 OR expires_at > ?)
			UNION
			SELECT id FROM namespaces WHERE owner_id = ? AND ? <= 50
			UNION
			SELECT child.id FROM namespaces child JOIN mine ON child.parent_id = mine.id
		)`
	text := namespace + ` IN (` + mine + `
		SELECT id FROM mine)`
	args := []any{m.user, m.level, m.at, m.user, m.level}
	if project != "" {
		text += ` OR ` + project + ` IN (
			SELECT project_id FROM members
			WHERE user_id = ? AND project_id IS NOT NULL AND level >= ? AND (expires_at = 0 OR expires_at > ?))
			OR ` + project + ` IN (` + mine + `
			SELECT shares.project_id FROM shares JOIN mine ON mine.id = shares.namespace_id
			WHERE shares.level >= ? AND (shares.expires_at = 0 OR shares.expires_at > ?))`
		args = append(args, m.user, m.level, m.at)
		args = append(args, m.user, m.level, m.at, m.user, m.level, m.level, m.at)
	}
	return text, args
}

// visibleTo asks whether a viewer may see the row of those columns.
func visibleTo(v tidelock.Viewer, visibility, project, namespace string) (string, []any) {
	return visibleFrom(v, tidelock.NoAccess, visibility, project, namespace)
}

// visibleFrom is visibleTo where being a member counts only from a level on.
func visibleFrom(v tidelock.Viewer, level tidelock.AccessLevel, visibility, project, namespace string) (string, []any) {
	if v.User == 0 {
		return visibility + ` >= ?`, []any{tidelock.Public}
	}
	text, args := memberAt(v.User, level).condition(project, namespace)
	return `(` + visibility + ` >= ? OR ` + text + `)`, append([]any{tidelock.InternalOnly}, args...)
}
