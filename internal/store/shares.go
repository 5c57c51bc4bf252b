package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"tidelock.dev"
)

const shareColumns = `s.project_id, s.namespace_id, s.level, s.expires_at, s.created_at`

func scanShare(row scanner) (s tidelock.Share, err error) {
	err = row.Scan(&s.Project, &s.Group, &s.Level, (*instant)(&s.ExpiresAt), (*instant)(&s.CreatedAt))
	return s, err
}

const insertShare = `
	INSERT INTO shares (project_id, namespace_id, level, expires_at, created_at)
	VALUES (?, ?, ?, ?, ?)
	ON CONFLICT (project_id, namespace_id) DO NOTHING
	RETURNING level`

// CreateShare shares a project with a group that it is not shared with yet.
func (db *DB) CreateShare(ctx context.Context, share tidelock.Share) (tidelock.Share, error) {
	share.CreatedAt, share.ExpiresAt = orNow(share.CreatedAt), kept(share.ExpiresAt)
	err := db.write(ctx, func(s session) error {
		err := s.row(ctx, insertShare, share.Project, share.Group, share.Level, share.ExpiresAt, share.CreatedAt).Scan(&share.Level)
		if errors.Is(err, sql.ErrNoRows) {
			return tidelock.Errorf(tidelock.Conflict, "already shared with this group")
		}
		return s.writeError("share", "project or group", err)
	})
	return whole(share, err)
}

const deleteShare = `DELETE FROM shares WHERE project_id = ? AND namespace_id = ?`

func (db *DB) DeleteShare(ctx context.Context, project tidelock.ProjectID, group tidelock.NamespaceID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "share", deleteShare, project, group) })
}

const selectShares = `SELECT ` + shareColumns + ` FROM shares s WHERE s.project_id IN (%s) ORDER BY s.project_id, s.namespace_id`

// Shares lists the shares of projects, in order of project and group.
func (db *DB) Shares(ctx context.Context, projects ...tidelock.ProjectID) ([]tidelock.Share, error) {
	return many(ctx, db.point(ctx), "shares", scanShare, fmt.Sprintf(selectShares, db.in), idList(projects))
}
