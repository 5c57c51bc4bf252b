package store

import (
	"context"
	"fmt"
	"unicode/utf8"

	"tidelock.dev"
)

// changeRoutes must come first in every transaction that changes the tree of
// namespaces and projects. It lets no other do so, so that a group renamed
// while a project is made in it leaves no path behind.
func (s session) changeRoutes(ctx context.Context) error {
	if s.lockRoutes == "" {
		return nil
	}
	if _, err := s.exec(ctx, s.lockRoutes); err != nil {
		return fmt.Errorf("lock routes: %w", err)
	}
	return nil
}

// claimRoute takes a path unless something has it now; a redirect gives way.
const claimRoute = `
	INSERT INTO routes (path_key, namespace_id, project_id, redirect)
	VALUES (?, ?, ?, FALSE)
	ON CONFLICT (path_key) DO UPDATE
	SET namespace_id = excluded.namespace_id, project_id = excluded.project_id, redirect = FALSE
	WHERE routes.redirect`

func (s session) claimNamespace(ctx context.Context, field, fullPath string, id tidelock.NamespaceID) error {
	return s.claim(ctx, field, fullPath, orNull(id), nil)
}

func (s session) claimProject(ctx context.Context, fullPath string, id tidelock.ProjectID) error {
	return s.claim(ctx, "path", fullPath, nil, orNull(id))
}

func (s session) claim(ctx context.Context, field, fullPath string, namespace, project any) error {
	n, err := s.exec(ctx, claimRoute, fold(fullPath), namespace, project)
	if err != nil {
		return fmt.Errorf("claim path: %w", err)
	}
	if n == 0 {
		return taken(field)
	}
	return nil
}

const redirectRoute = `UPDATE routes SET redirect = TRUE WHERE path_key = ?`

// moveProject gives a project its new path and makes the old one a redirect.
func (s session) moveProject(ctx context.Context, before, after tidelock.Project) error {
	if fold(before.FullPath) == fold(after.FullPath) {
		return nil
	}
	if _, err := s.exec(ctx, redirectRoute, fold(before.FullPath)); err != nil {
		return fmt.Errorf("redirect path: %w", err)
	}
	return s.claimProject(ctx, after.FullPath, after.ID)
}

// What is below a namespace is found by its routes: current keys from the
// namespace's key and "/" up to, not including, its key and "0", the next
// byte. In these texts the arguments come as new prefix, where the rest
// starts, and that range.
const (
	routesBelow = `NOT redirect AND path_key > ? AND path_key < ?`

	moveNamespacesBelow = `
		UPDATE namespaces
		SET full_path = ? || substr(full_path, ?), full_name = ? || substr(full_name, ?)
		WHERE id IN (SELECT namespace_id FROM routes WHERE ` + routesBelow + `)`
	moveProjectsBelow = `
		UPDATE projects
		SET full_path = ? || substr(full_path, ?), full_name = ? || substr(full_name, ?)
		WHERE id IN (SELECT project_id FROM routes WHERE ` + routesBelow + `)`

	deleteRoute          = `DELETE FROM routes WHERE path_key = ?`
	deleteRedirectsInWay = `
		DELETE FROM routes
		WHERE redirect AND path_key IN (SELECT ? || substr(path_key, ?) FROM routes WHERE ` + routesBelow + `)`
	copyRoutesBelow = `
		INSERT INTO routes (path_key, namespace_id, project_id, redirect)
		SELECT ? || substr(path_key, ?), namespace_id, project_id, FALSE FROM routes WHERE ` + routesBelow
	deleteNamespaceRoutesBelow = `DELETE FROM routes WHERE namespace_id IS NOT NULL AND ` + routesBelow
	redirectProjectRoutesBelow = `UPDATE routes SET redirect = TRUE WHERE project_id IS NOT NULL AND ` + routesBelow
)

// moveNamespace carries a new path or name of a namespace to everything
// below it. The projects' old paths become redirects.
func (s session) moveNamespace(ctx context.Context, before, after tidelock.Namespace) error {
	oldKey, newKey := fold(before.FullPath), fold(after.FullPath)
	from, to := oldKey+"/", oldKey+"0"
	moveRow := []any{
		after.FullPath, restAfter(before.FullPath), after.FullName, restAfter(before.FullName), from, to,
	}
	moveKey := []any{newKey, restAfter(oldKey), from, to}

	type step struct {
		text string
		args []any
	}
	var steps []step
	if before.FullPath != after.FullPath || before.FullName != after.FullName {
		steps = append(steps, step{moveNamespacesBelow, moveRow}, step{moveProjectsBelow, moveRow})
	}
	if oldKey != newKey {
		if err := s.claimNamespace(ctx, "path", after.FullPath, after.ID); err != nil {
			return err
		}
		steps = append(steps,
			step{deleteRoute, []any{oldKey}},
			step{deleteRedirectsInWay, moveKey},
			step{copyRoutesBelow, moveKey},
			step{deleteNamespaceRoutesBelow, []any{from, to}},
			step{redirectProjectRoutesBelow, []any{from, to}},
		)
	}
	for _, step := range steps {
		if _, err := s.exec(ctx, step.text, step.args...); err != nil {
			return fmt.Errorf("move what is below namespace: %w", err)
		}
	}
	return nil
}

// restAfter is where, counted in characters from 1, the text after a prefix
// starts.
func restAfter(prefix string) int { return utf8.RuneCountInString(prefix) + 1 }
