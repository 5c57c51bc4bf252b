package store

import (
	"context"
	"fmt"

	"tidelock.dev"
)

const namespaceColumns = `n.id, n.kind, COALESCE(n.parent_id, 0), n.path, n.full_path, n.name, n.full_name,
	n.description, n.visibility, COALESCE(n.owner_id, 0), n.created_at`

func scanNamespace(row scanner) (n tidelock.Namespace, err error) {
	err = row.Scan(&n.ID, &n.Kind, &n.Parent, &n.Path, &n.FullPath, &n.Name, &n.FullName,
		&n.Description, &n.Visibility, &n.Owner, (*instant)(&n.CreatedAt))
	return n, err
}

// CreateNamespace makes a group, with its creator, unless 0, as its Owner.
func (db *DB) CreateNamespace(ctx context.Context, n tidelock.Namespace, creator tidelock.UserID) (tidelock.Namespace, error) {
	err := db.write(ctx, func(s session) (err error) {
		if err := s.changeRoutes(ctx); err != nil {
			return err
		}
		if n, err = s.createNamespace(ctx, "path", n); err != nil || creator == 0 {
			return err
		}
		return s.setMember(ctx, tidelock.Member{
			Holder:    tidelock.Holder{Namespace: n.ID},
			User:      creator,
			Level:     tidelock.Owner,
			CreatedAt: n.CreatedAt,
		})
	})
	return whole(n, err)
}

const insertNamespace = `
	INSERT INTO namespaces (kind, parent_id, path, path_key, full_path, name, name_key, full_name,
		description, visibility, owner_id, created_at)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
	RETURNING id`

// createNamespace makes a namespace of either kind; field is what is at
// fault if its path is taken.
func (s session) createNamespace(ctx context.Context, field string, n tidelock.Namespace) (tidelock.Namespace, error) {
	if err := s.derive(ctx, n.Parent, n.Path, n.Name, &n.FullPath, &n.FullName); err != nil {
		return n, err
	}
	if n.Kind == "" {
		n.Kind = tidelock.GroupNamespace
	}
	n.CreatedAt = orNow(n.CreatedAt)
	err := s.row(ctx, insertNamespace, n.Kind, orNull(n.Parent), n.Path, fold(n.Path), n.FullPath, n.Name, fold(n.Name), n.FullName,
		n.Description, n.Visibility, orNull(n.Owner), n.CreatedAt).Scan(&n.ID)
	if err != nil {
		return n, s.writeError("namespace", "user", err)
	}
	return n, s.claimNamespace(ctx, field, n.FullPath, n.ID)
}

// derive fills in a full path and name from those of the parent.
func (s session) derive(ctx context.Context, parent tidelock.NamespaceID, path, name string, fullPath, fullName *string) error {
	*fullPath, *fullName = path, name
	if parent == 0 {
		return nil
	}
	p, err := one(ctx, s, "namespace", scanNamespace, selectNamespace, parent)
	if err != nil {
		return err
	}
	*fullPath, *fullName = p.FullPath+"/"+path, p.FullName+" / "+name
	return nil
}

const selectNamespace = `SELECT ` + namespaceColumns + ` FROM namespaces n WHERE n.id = ?`

func (db *DB) Namespace(ctx context.Context, id tidelock.NamespaceID) (tidelock.Namespace, error) {
	return one(ctx, db.point(ctx), "namespace", scanNamespace, selectNamespace, id)
}

const selectNamespaceByPath = `
	SELECT ` + namespaceColumns + `
	FROM routes r JOIN namespaces n ON n.id = r.namespace_id
	WHERE r.path_key = ?`

func (db *DB) NamespaceByPath(ctx context.Context, fullPath string) (tidelock.Namespace, error) {
	return one(ctx, db.point(ctx), "namespace", scanNamespace, selectNamespaceByPath, fold(fullPath))
}

// below is the set of a namespace and everything under it.
const below = `
	WITH RECURSIVE tree (id) AS (
		SELECT CAST(? AS BIGINT)
		UNION
		SELECT child.id FROM namespaces child JOIN tree ON child.parent_id = tree.id
	)
	SELECT id FROM tree`

func (db *DB) Namespaces(ctx context.Context, f tidelock.NamespaceFilter, p tidelock.Page) ([]tidelock.Namespace, int, error) {
	l := list{columns: namespaceColumns, from: `namespaces n`, order: `n.id`}
	if f.Kind != "" {
		l.filter(`n.kind = ?`, f.Kind)
	}
	if f.Parent != 0 {
		l.filter(`n.parent_id = ?`, f.Parent)
	}
	if f.Descendants != 0 {
		l.filter(`n.id <> ? AND n.id IN (`+below+`)`, f.Descendants, f.Descendants)
	}
	if f.TopLevel {
		l.filter(`n.parent_id IS NULL`)
	}
	l.search(f.Search, `n.path_key`, `n.name_key`)
	if f.VisibleTo != nil {
		condition, args := visibleTo(*f.VisibleTo, `n.visibility`, ``, `n.id`)
		l.filter(condition, args...)
	}
	return pageOf(ctx, db, "namespaces", l, p, scanNamespace)
}

const updateNamespace = `
	UPDATE namespaces
	SET path = ?, path_key = ?, full_path = ?, name = ?, name_key = ?, full_name = ?, description = ?, visibility = ?
	WHERE id = ?`

// UpdateNamespace writes what may change of a namespace, and what follows
// from it below.
func (db *DB) UpdateNamespace(ctx context.Context, n tidelock.Namespace) (tidelock.Namespace, error) {
	var after tidelock.Namespace
	err := db.write(ctx, func(s session) error {
		if err := s.changeRoutes(ctx); err != nil {
			return err
		}
		before, err := one(ctx, s, "namespace", scanNamespace, selectNamespace, n.ID)
		if err != nil {
			return err
		}
		after = before
		after.Path, after.Name, after.Description, after.Visibility = n.Path, n.Name, n.Description, n.Visibility
		if err := s.derive(ctx, after.Parent, after.Path, after.Name, &after.FullPath, &after.FullName); err != nil {
			return err
		}
		_, err = s.exec(ctx, updateNamespace, after.Path, fold(after.Path), after.FullPath, after.Name, fold(after.Name), after.FullName,
			after.Description, after.Visibility, after.ID)
		if err != nil {
			return fmt.Errorf("write namespace: %w", err)
		}
		return s.moveNamespace(ctx, before, after)
	})
	return whole(after, err)
}

const (
	countInside     = `SELECT (SELECT COUNT(*) FROM namespaces WHERE parent_id = ?) + (SELECT COUNT(*) FROM projects WHERE namespace_id = ?)`
	deleteNamespace = `DELETE FROM namespaces WHERE id = ?`
	// The bots of a group's tokens are members of nothing else.
	deleteNamespaceBots = `DELETE FROM users WHERE bot AND id IN (SELECT user_id FROM tokens WHERE namespace_id = ?)`
)

// DeleteNamespace removes an empty group with its members, tokens and bots.
func (db *DB) DeleteNamespace(ctx context.Context, id tidelock.NamespaceID) error {
	return db.write(ctx, func(s session) error {
		if err := s.changeRoutes(ctx); err != nil {
			return err
		}
		n, err := one(ctx, s, "namespace", scanNamespace, selectNamespace, id)
		if err != nil {
			return err
		}
		if n.Kind == tidelock.UserNamespace {
			return tidelock.Errorf(tidelock.Conflict, "the namespace of a user stays as long as the user")
		}
		var inside int
		if err := s.row(ctx, countInside, id, id).Scan(&inside); err != nil {
			return fmt.Errorf("look into namespace: %w", err)
		}
		if inside > 0 {
			return tidelock.Errorf(tidelock.Conflict, "group is not empty; delete its projects and subgroups first")
		}
		for _, text := range []string{deleteNamespaceBots, deleteNamespace} {
			if _, err := s.exec(ctx, text, id); err != nil {
				return fmt.Errorf("delete namespace: %w", err)
			}
		}
		return s.removeUnusedKeys(ctx)
	})
}
