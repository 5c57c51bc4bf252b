package store

import (
	"context"
	"database/sql"
	"errors"

	"tidelock.dev"
)

const selectProtectedTags = `
	SELECT id, project_id, pattern, create_level
	FROM protected_tags
	WHERE project_id = ?
	ORDER BY id`

func scanProtectedTag(row scanner) (t tidelock.ProtectedTag, err error) {
	err = row.Scan(&t.ID, &t.Project, &t.Pattern, &t.CreateLevel)
	return t, err
}

func (db *DB) ProtectedTags(ctx context.Context, project tidelock.ProjectID) ([]tidelock.ProtectedTag, error) {
	return many(ctx, db.point(ctx), "protected tags", scanProtectedTag, selectProtectedTags, project)
}

const insertProtectedTag = `
	INSERT INTO protected_tags (project_id, pattern, create_level)
	VALUES (?, ?, ?)
	ON CONFLICT (project_id, pattern) DO NOTHING
	RETURNING id`

func (db *DB) ProtectTag(ctx context.Context, t tidelock.ProtectedTag) (tidelock.ProtectedTag, error) {
	err := db.write(ctx, func(s session) error {
		err := s.row(ctx, insertProtectedTag, t.Project, t.Pattern, t.CreateLevel).Scan(&t.ID)
		if errors.Is(err, sql.ErrNoRows) {
			return taken("name")
		}
		return s.writeError("protected tag", "project", err)
	})
	return whole(t, err)
}

const deleteProtectedTag = `DELETE FROM protected_tags WHERE project_id = ? AND pattern = ?`

func (db *DB) UnprotectTag(ctx context.Context, project tidelock.ProjectID, pattern string) error {
	return db.write(ctx, func(s session) error {
		return s.change(ctx, "protected tag", deleteProtectedTag, project, pattern)
	})
}
