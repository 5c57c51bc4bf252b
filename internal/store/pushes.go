package store

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tidelock.dev"
)

// batch bounds the rows of one statement, and so its placeholders.
const batch = 100

const (
	lockProject = `SELECT id FROM projects WHERE id = ?`

	insertPush = `
		INSERT INTO pushes (project_id, pushed_by, token_id, key_id, pushed_at, announced, trace)
		VALUES (?, ?, ?, ?, ?, FALSE, ?)
		RETURNING id`
	insertPushUpdates = `INSERT INTO push_updates (push_id, position, ref, old_object, new_object, new_commit) VALUES `
	upsertHeads       = `INSERT INTO heads (project_id, ref, object, commit_id, push_id, moved_at) VALUES `
	onHeadConflict    = `
		ON CONFLICT (project_id, ref) DO UPDATE
		SET object = excluded.object, commit_id = excluded.commit_id, push_id = excluded.push_id, moved_at = excluded.moved_at`
	deleteHeads = `DELETE FROM heads WHERE project_id = ? AND ref IN `
)

// RecordPush writes a push and moves the heads it names. Pushes to one
// project are recorded one after the other.
func (db *DB) RecordPush(ctx context.Context, p tidelock.Push) (tidelock.Push, error) {
	given := p.Updates
	p.At, p.Announced = orNow(p.At), false
	err := db.write(ctx, func(s session) error {
		var locked tidelock.ProjectID
		if err := s.row(ctx, lockProject+s.lockRow, p.Project).Scan(&locked); err != nil {
			return readError("project", err)
		}
		if len(given) > 1 {
			s = s.rarely()
		}
		heads, err := s.headsOf(ctx, p.Project, given)
		if err != nil {
			return err
		}
		p.ID, p.Updates = 0, nil
		var moved []tidelock.RefName // each once, in order
		for _, u := range given {
			head := heads[u.Ref]
			if head.Object == u.New {
				continue
			}
			u.Old = head.Object
			p.Updates = append(p.Updates, u)
			if !slices.Contains(moved, u.Ref) {
				moved = append(moved, u.Ref)
			}
			heads[u.Ref] = tidelock.Head{Project: p.Project, Ref: u.Ref, Object: u.New, Commit: u.Commit, MovedAt: p.At}
		}
		if len(p.Updates) == 0 {
			return nil
		}
		if err := s.row(ctx, insertPush, p.Project, p.By, p.Token, p.Key, p.At, p.Trace).Scan(&p.ID); err != nil {
			return fmt.Errorf("write push: %w", err)
		}
		if err := s.insertUpdates(ctx, p); err != nil {
			return err
		}
		if err := s.moveHeads(ctx, p, moved, heads); err != nil {
			return err
		}
		return s.notePush(ctx, p)
	})
	return whole(p, err)
}

// headsOf reads the heads that updates name.
func (s session) headsOf(ctx context.Context, project tidelock.ProjectID, updates []tidelock.RefUpdate) (map[tidelock.RefName]tidelock.Head, error) {
	heads := make(map[tidelock.RefName]tidelock.Head, len(updates))
	for some := range slices.Chunk(updates, batch) {
		args := []any{project}
		for _, u := range some {
			args = append(args, []byte(u.Ref))
		}
		found, err := many(ctx, s, "heads", scanHead, selectHeads+` AND h.ref IN `+tuples(1, len(some)), args...)
		if err != nil {
			return nil, err
		}
		for _, h := range found {
			heads[h.Ref] = h
		}
	}
	return heads, nil
}

func (s session) insertUpdates(ctx context.Context, p tidelock.Push) error {
	position := 0
	for some := range slices.Chunk(p.Updates, batch) {
		var args []any
		for _, u := range some {
			args = append(args, p.ID, position, []byte(u.Ref), u.Old, u.New, u.Commit)
			position++
		}
		if _, err := s.exec(ctx, insertPushUpdates+tuples(len(some), 6), args...); err != nil {
			return fmt.Errorf("write updates of push: %w", err)
		}
	}
	return nil
}

func (s session) moveHeads(ctx context.Context, p tidelock.Push, refs []tidelock.RefName, heads map[tidelock.RefName]tidelock.Head) error {
	for some := range slices.Chunk(refs, batch) {
		var rows []any
		gone := []any{p.Project}
		for _, ref := range some {
			if h := heads[ref]; h.Object == "" {
				gone = append(gone, []byte(ref))
			} else {
				rows = append(rows, p.Project, []byte(ref), h.Object, h.Commit, p.ID, p.At)
			}
		}
		if n := len(rows) / 6; n > 0 {
			if _, err := s.exec(ctx, upsertHeads+tuples(n, 6)+onHeadConflict, rows...); err != nil {
				return fmt.Errorf("move heads: %w", err)
			}
		}
		if n := len(gone) - 1; n > 0 {
			if _, err := s.exec(ctx, deleteHeads+tuples(1, n), gone...); err != nil {
				return fmt.Errorf("remove heads: %w", err)
			}
		}
	}
	return nil
}

// tuples returns placeholders for rows of a width: "(?, ?), (?, ?)".
func tuples(rows, width int) string {
	row := "(" + strings.Repeat("?, ", width-1) + "?)"
	return strings.Repeat(row+", ", rows-1) + row
}

const selectHeads = `
	SELECT h.project_id, h.ref, h.object, h.commit_id, h.push_id, h.moved_at, COALESCE(p.trace, '')
	FROM heads h LEFT JOIN pushes p ON p.id = h.push_id
	WHERE h.project_id = ?`

func scanHead(row scanner) (h tidelock.Head, err error) {
	err = row.Scan(&h.Project, &h.Ref, &h.Object, &h.Commit, &h.Push, (*instant)(&h.MovedAt), &h.Trace)
	return h, err
}

func (db *DB) Heads(ctx context.Context, project tidelock.ProjectID) ([]tidelock.Head, error) {
	return many(ctx, db.point(ctx), "heads", scanHead, selectHeads+` ORDER BY h.ref`, project)
}

func (db *DB) Head(ctx context.Context, project tidelock.ProjectID, ref tidelock.RefName) (tidelock.Head, error) {
	return one(ctx, db.point(ctx), "head", scanHead, selectHeads+` AND h.ref = ?`, project, []byte(ref))
}

const (
	pushColumns = `p.id, p.project_id, p.pushed_by, p.token_id, p.key_id, p.pushed_at, p.announced, p.trace,
		COALESCE(a.image_id, 0), COALESCE(a.tag, ''), COALESCE(a.old_digest, ''), COALESCE(a.new_digest, ''), COALESCE(a.commit_id, '')`
	fromPushes = `pushes p LEFT JOIN push_artifacts a ON a.push_id = p.id`

	selectPush        = `SELECT ` + pushColumns + ` FROM ` + fromPushes + ` WHERE p.id = ?`
	selectUnannounced = `SELECT ` + pushColumns + ` FROM ` + fromPushes + ` WHERE NOT p.announced ORDER BY p.id LIMIT ?`
	selectPushUpdates = `
		SELECT push_id, ref, old_object, new_object, new_commit
		FROM push_updates
		WHERE push_id IN (%s)
		ORDER BY push_id, position`
)

func scanPush(row scanner) (p tidelock.Push, err error) {
	var a tidelock.ArtifactUpdate
	err = row.Scan(&p.ID, &p.Project, &p.By, &p.Token, &p.Key, (*instant)(&p.At), &p.Announced, &p.Trace,
		&a.Image, &a.Tag, &a.Old, &a.New, &a.Commit)
	if a.Image != 0 {
		p.Artifact = &a
	}
	return p, err
}

func (db *DB) Push(ctx context.Context, id tidelock.PushID) (tidelock.Push, error) {
	var push tidelock.Push
	err := db.read(ctx, func(s session) (err error) {
		if push, err = one(ctx, s, "push", scanPush, selectPush, id); err != nil {
			return err
		}
		pushes := []tidelock.Push{push}
		err = s.readUpdates(ctx, pushes)
		push = pushes[0]
		return err
	})
	return whole(push, err)
}

// Unannounced lists the oldest pushes that the bus has not been told of.
func (db *DB) Unannounced(ctx context.Context, limit int) ([]tidelock.Push, error) {
	var pushes []tidelock.Push
	err := db.read(ctx, func(s session) (err error) {
		if pushes, err = many(ctx, s, "pushes", scanPush, selectUnannounced, limit); err != nil {
			return err
		}
		return s.readUpdates(ctx, pushes)
	})
	return whole(pushes, err)
}

func (db *DB) Pushes(ctx context.Context, f tidelock.PushFilter, p tidelock.Page) ([]tidelock.Push, int, error) {
	l := list{columns: pushColumns, from: fromPushes, order: `p.id DESC`}
	if f.Project != 0 {
		l.filter(`p.project_id = ?`, f.Project)
	}
	if f.Commit != "" {
		l.filter(`p.id IN (
			SELECT push_id FROM push_updates WHERE new_object = ?
			UNION
			SELECT push_id FROM push_updates WHERE new_commit = ?
			UNION
			SELECT push_id FROM push_artifacts WHERE commit_id = ? AND commit_id <> '')`, f.Commit, f.Commit, f.Commit)
	}
	if f.VisibleTo != nil {
		condition, args := visibleTo(*f.VisibleTo, `r.visibility`, `r.id`, `r.namespace_id`)
		l.filter(`p.project_id IN (SELECT r.id FROM projects r WHERE `+condition+`)`, args...)
	}
	var pushes []tidelock.Push
	var total int
	err := db.read(ctx, func(s session) (err error) {
		if pushes, total, err = page(ctx, s, "pushes", l, p, scanPush); err != nil {
			return err
		}
		return s.readUpdates(ctx, pushes)
	})
	if err != nil {
		return nil, 0, err
	}
	return pushes, total, nil
}

// readUpdates fills in the updates of pushes.
func (s session) readUpdates(ctx context.Context, pushes []tidelock.Push) error {
	ids := make([]tidelock.PushID, len(pushes))
	at := make(map[tidelock.PushID]int, len(pushes))
	for i, p := range pushes {
		ids[i], at[p.ID] = p.ID, i
	}
	type update struct {
		push tidelock.PushID
		tidelock.RefUpdate
	}
	updates, err := many(ctx, s, "updates of pushes", func(row scanner) (u update, err error) {
		err = row.Scan(&u.push, &u.Ref, &u.Old, &u.New, &u.Commit)
		return u, err
	}, fmt.Sprintf(selectPushUpdates, s.in), idList(ids))
	if err != nil {
		return err
	}
	for _, u := range updates {
		p := &pushes[at[u.push]]
		p.Updates = append(p.Updates, u.RefUpdate)
	}
	return nil
}

const markAnnounced = `UPDATE pushes SET announced = TRUE WHERE NOT announced AND id IN (%s)`

// MarkAnnounced does not wait for the disk: a push whose mark is lost is
// announced again.
func (db *DB) MarkAnnounced(ctx context.Context, ids ...tidelock.PushID) error {
	if len(ids) == 0 {
		return nil
	}
	return db.note(ctx, func(s session) error {
		if _, err := s.exec(ctx, fmt.Sprintf(markAnnounced, s.in), idList(ids)); err != nil {
			return fmt.Errorf("mark pushes announced: %w", err)
		}
		return nil
	})
}
