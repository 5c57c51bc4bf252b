package store

import (
	"context"
	"fmt"
	"time"

	"tidelock.dev"
)

const projectColumns = `p.id, p.namespace_id, p.path, p.full_path, p.name, p.full_name, p.description, p.visibility,
	p.default_branch, p.archived, p.creator_id, p.created_at, p.updated_at`

func scanProject(row scanner) (p tidelock.Project, err error) {
	err = row.Scan(&p.ID, &p.Namespace, &p.Path, &p.FullPath, &p.Name, &p.FullName, &p.Description, &p.Visibility,
		&p.DefaultBranch, &p.Archived, &p.Creator, (*instant)(&p.CreatedAt), (*instant)(&p.UpdatedAt))
	return p, err
}

const insertProject = `
	INSERT INTO projects (namespace_id, path, path_key, full_path, name, name_key, full_name, description, visibility,
		default_branch, archived, creator_id, created_at, updated_at)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
	RETURNING id`

// CreateProject makes a project, its owner, the protection of its default
// branch and that of versions among its images' tags.
func (db *DB) CreateProject(ctx context.Context, p tidelock.Project) (tidelock.Project, error) {
	p.CreatedAt = orNow(p.CreatedAt)
	if p.UpdatedAt = kept(p.UpdatedAt); p.UpdatedAt.IsZero() {
		p.UpdatedAt = p.CreatedAt
	}
	err := db.write(ctx, func(s session) error {
		if err := s.changeRoutes(ctx); err != nil {
			return err
		}
		if p.Namespace == 0 {
			return notFound("namespace")
		}
		if err := s.derive(ctx, p.Namespace, p.Path, p.Name, &p.FullPath, &p.FullName); err != nil {
			return err
		}
		err := s.row(ctx, insertProject, p.Namespace, p.Path, fold(p.Path), p.FullPath, p.Name, fold(p.Name), p.FullName, p.Description, p.Visibility,
			p.DefaultBranch, p.Archived, p.Creator, p.CreatedAt, p.UpdatedAt).Scan(&p.ID)
		if err != nil {
			return s.writeError("project", "namespace", err)
		}
		if err := s.claimProject(ctx, p.FullPath, p.ID); err != nil {
			return err
		}
		if p.Creator != 0 {
			owner := tidelock.Member{Holder: tidelock.Holder{Project: p.ID}, User: p.Creator, Level: tidelock.Owner, CreatedAt: p.CreatedAt}
			if err := s.setMember(ctx, owner); err != nil {
				return err
			}
		}
		if _, err := s.saveTagRule(ctx, tidelock.TagRule{Project: p.ID, Pattern: tidelock.SemVerTags}); err != nil {
			return err
		}
		if p.DefaultBranch == "" {
			return nil
		}
		_, err = s.protectBranch(ctx, tidelock.ProtectedBranch{
			Project:    p.ID,
			Pattern:    p.DefaultBranch,
			PushLevel:  tidelock.Maintainer,
			MergeLevel: tidelock.Maintainer,
		})
		return err
	})
	return whole(p, err)
}

const selectProject = `SELECT ` + projectColumns + ` FROM projects p WHERE p.id = ?`

func (db *DB) Project(ctx context.Context, id tidelock.ProjectID) (tidelock.Project, error) {
	return one(ctx, db.point(ctx), "project", scanProject, selectProject, id)
}

const selectProjectByPath = `
	SELECT ` + projectColumns + `
	FROM routes r JOIN projects p ON p.id = r.project_id
	WHERE r.path_key = ?`

func (db *DB) ProjectByPath(ctx context.Context, fullPath string) (tidelock.Project, error) {
	return one(ctx, db.point(ctx), "project", scanProject, selectProjectByPath, fold(fullPath))
}

// projectOrders are the orders of ProjectFilter; ids decide between equals.
var projectOrders = map[string]string{
	"":           `p.id`,
	"id":         `p.id`,
	"name":       `p.name_key`,
	"path":       `p.path_key`,
	"created_at": `p.created_at`,
	"updated_at": `p.updated_at`,
}

func (db *DB) Projects(ctx context.Context, f tidelock.ProjectFilter, p tidelock.Page) ([]tidelock.Project, int, error) {
	order, ok := projectOrders[f.OrderBy]
	if !ok {
		return nil, 0, tidelock.FieldErrorf(tidelock.Invalid, "order_by", "does not have a valid value")
	}
	if f.Descending {
		order += ` DESC, p.id DESC`
	} else {
		order += `, p.id`
	}
	l := list{columns: projectColumns, from: `projects p`, order: order}
	const sharedWith = `p.id IN (SELECT project_id FROM shares WHERE (expires_at = 0 OR expires_at > ?) AND namespace_id `
	now := time.Now()
	switch {
	case f.Namespace != 0 && f.WithShared:
		l.filter(`(p.namespace_id = ? OR `+sharedWith+`= ?))`, f.Namespace, now, f.Namespace)
	case f.Namespace != 0:
		l.filter(`p.namespace_id = ?`, f.Namespace)
	}
	switch {
	case f.Below != 0 && f.WithShared:
		l.filter(`(p.namespace_id IN (`+below+`) OR `+sharedWith+`IN (`+below+`)))`, f.Below, now, f.Below)
	case f.Below != 0:
		l.filter(`p.namespace_id IN (`+below+`)`, f.Below)
	}
	if f.SharedWith != 0 {
		l.filter(sharedWith+`= ?)`, now, f.SharedWith)
	}
	l.search(f.Search, `p.path_key`, `p.name_key`)
	if f.Visibility != nil {
		l.filter(`p.visibility = ?`, *f.Visibility)
	}
	if f.Archived != nil {
		l.filter(`p.archived = ?`, *f.Archived)
	}
	if f.Member != 0 {
		condition, args := memberAt(f.Member, f.MinLevel).condition(`p.id`, `p.namespace_id`)
		l.filter(`(`+condition+`)`, args...)
	}
	if f.Owner != 0 {
		l.filter(`p.namespace_id IN (SELECT id FROM namespaces WHERE owner_id = ?)`, f.Owner)
	}
	if f.IDAfter != 0 {
		l.filter(`p.id > ?`, f.IDAfter)
	}
	if f.VisibleTo != nil {
		condition, args := visibleTo(*f.VisibleTo, `p.visibility`, `p.id`, `p.namespace_id`)
		l.filter(condition, args...)
	}
	return pageOf(ctx, db, "projects", l, p, scanProject)
}

const updateProject = `
	UPDATE projects
	SET path = ?, path_key = ?, full_path = ?, name = ?, name_key = ?, full_name = ?, description = ?, visibility = ?,
		default_branch = ?, archived = ?, updated_at = ?
	WHERE id = ?`

// UpdateProject writes everything but id, namespace and creation.
func (db *DB) UpdateProject(ctx context.Context, p tidelock.Project) (tidelock.Project, error) {
	p.UpdatedAt = orNow(p.UpdatedAt)
	err := db.write(ctx, func(s session) error {
		if err := s.changeRoutes(ctx); err != nil {
			return err
		}
		before, err := one(ctx, s, "project", scanProject, selectProject, p.ID)
		if err != nil {
			return err
		}
		p.Namespace, p.Creator, p.CreatedAt = before.Namespace, before.Creator, before.CreatedAt
		if err := s.derive(ctx, p.Namespace, p.Path, p.Name, &p.FullPath, &p.FullName); err != nil {
			return err
		}
		_, err = s.exec(ctx, updateProject, p.Path, fold(p.Path), p.FullPath, p.Name, fold(p.Name), p.FullName, p.Description, p.Visibility,
			p.DefaultBranch, p.Archived, p.UpdatedAt, p.ID)
		if err != nil {
			return fmt.Errorf("write project: %w", err)
		}
		return s.moveProject(ctx, before, p)
	})
	return whole(p, err)
}

const moveProject = `
	UPDATE projects
	SET namespace_id = ?, full_path = ?, full_name = ?, updated_at = ?
	WHERE id = ?`

// MoveProject puts a project into another namespace; its old path stays as a
// redirect.
func (db *DB) MoveProject(ctx context.Context, id tidelock.ProjectID, to tidelock.NamespaceID) (tidelock.Project, error) {
	var p tidelock.Project
	err := db.write(ctx, func(s session) error {
		if err := s.changeRoutes(ctx); err != nil {
			return err
		}
		before, err := one(ctx, s, "project", scanProject, selectProject, id)
		if err != nil {
			return err
		}
		p = before
		p.Namespace, p.UpdatedAt = to, orNow(time.Time{})
		if err := s.derive(ctx, p.Namespace, p.Path, p.Name, &p.FullPath, &p.FullName); err != nil {
			return err
		}
		if _, err := s.exec(ctx, moveProject, p.Namespace, p.FullPath, p.FullName, p.UpdatedAt, p.ID); err != nil {
			return fmt.Errorf("move project: %w", err)
		}
		return s.moveProject(ctx, before, p)
	})
	return whole(p, err)
}

const (
	// The bots of a project's tokens are members of nothing else.
	deleteProjectBots = `DELETE FROM users WHERE bot AND id IN (SELECT user_id FROM tokens WHERE project_id = ?)`
	deleteProject     = `DELETE FROM projects WHERE id = ?`
)

// DeleteProject removes the row and all that hangs on it. Announcements of
// the project stay with the agents they were made to.
func (db *DB) DeleteProject(ctx context.Context, id tidelock.ProjectID) error {
	return db.write(ctx, func(s session) error {
		if err := s.changeRoutes(ctx); err != nil {
			return err
		}
		if _, err := s.exec(ctx, deleteProjectBots, id); err != nil {
			return fmt.Errorf("delete bots of project: %w", err)
		}
		if err := s.change(ctx, "project", deleteProject, id); err != nil {
			return err
		}
		return s.removeUnusedKeys(ctx)
	})
}
