package store

import (
	"context"
	"database/sql"
	"errors"

	"tidelock.dev"
)

const selectProtectedBranches = `
	SELECT id, project_id, pattern, push_level, merge_level, allow_force
	FROM protected_branches
	WHERE project_id = ?
	ORDER BY id`

func scanProtectedBranch(row scanner) (b tidelock.ProtectedBranch, err error) {
	err = row.Scan(&b.ID, &b.Project, &b.Pattern, &b.PushLevel, &b.MergeLevel, &b.AllowForce)
	return b, err
}

func (db *DB) ProtectedBranches(ctx context.Context, project tidelock.ProjectID) ([]tidelock.ProtectedBranch, error) {
	var branches []tidelock.ProtectedBranch
	err := db.read(ctx, func(s session) (err error) {
		branches, err = many(ctx, s, "protected branches", scanProtectedBranch, selectProtectedBranches, project)
		if err != nil {
			return err
		}
		return s.readBranchKeys(ctx, project, branches)
	})
	return whole(branches, err)
}

func (db *DB) ProtectBranch(ctx context.Context, b tidelock.ProtectedBranch) (tidelock.ProtectedBranch, error) {
	err := db.write(ctx, func(s session) (err error) {
		b, err = s.protectBranch(ctx, b)
		return err
	})
	return whole(b, err)
}

const insertProtectedBranch = `
	INSERT INTO protected_branches (project_id, pattern, push_level, merge_level, allow_force)
	VALUES (?, ?, ?, ?, ?)
	ON CONFLICT (project_id, pattern) DO NOTHING
	RETURNING id`

func (s session) protectBranch(ctx context.Context, b tidelock.ProtectedBranch) (tidelock.ProtectedBranch, error) {
	err := s.row(ctx, insertProtectedBranch, b.Project, b.Pattern, b.PushLevel, b.MergeLevel, b.AllowForce).Scan(&b.ID)
	if errors.Is(err, sql.ErrNoRows) {
		return b, taken("name")
	}
	if err != nil {
		return b, s.writeError("protected branch", "project", err)
	}
	return b, s.writeBranchKeys(ctx, b)
}

const deleteProtectedBranch = `DELETE FROM protected_branches WHERE project_id = ? AND pattern = ?`

func (db *DB) UnprotectBranch(ctx context.Context, project tidelock.ProjectID, pattern string) error {
	return db.write(ctx, func(s session) error {
		return s.change(ctx, "protected branch", deleteProtectedBranch, project, pattern)
	})
}

const updateProtectedBranch = `
	UPDATE protected_branches
	SET push_level = ?, merge_level = ?, allow_force = ?
	WHERE project_id = ? AND pattern = ?
	RETURNING id`

func (db *DB) UpdateProtectedBranch(ctx context.Context, b tidelock.ProtectedBranch) (tidelock.ProtectedBranch, error) {
	err := db.write(ctx, func(s session) error {
		err := s.row(ctx, updateProtectedBranch, b.PushLevel, b.MergeLevel, b.AllowForce, b.Project, b.Pattern).Scan(&b.ID)
		if errors.Is(err, sql.ErrNoRows) {
			return notFound("protected branch")
		}
		if err != nil {
			return s.writeError("protected branch", "project", err)
		}
		return s.writeBranchKeys(ctx, b)
	})
	return whole(b, err)
}
