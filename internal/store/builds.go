package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"tidelock.dev"
)

// UndeliveredHeads lists in order of project and ref.
func (db *DB) UndeliveredHeads(ctx context.Context, project tidelock.ProjectID, limit int) ([]tidelock.Head, error) {
	text, args := selectUndelivered, []any{}
	if project != 0 {
		text, args = text+` AND h.project_id = ?`, append(args, project)
	}
	return many(ctx, db.point(ctx), "undelivered heads", scanHead, text+` ORDER BY h.project_id, h.ref LIMIT ?`, append(args, limit)...)
}

const selectUndelivered = `
	SELECT h.project_id, h.ref, h.object, h.commit_id, h.push_id, h.moved_at, COALESCE(p.trace, '')
	FROM heads h
	LEFT JOIN pushes p ON p.id = h.push_id
	LEFT JOIN delivered_heads d ON d.project_id = h.project_id AND d.ref = h.ref
	WHERE h.commit_id <> '' AND (d.commit_id IS NULL OR d.commit_id <> h.commit_id)`

const (
	upsertDelivered = `
		INSERT INTO delivered_heads (project_id, ref, commit_id, at)
		VALUES (?, ?, ?, ?)
		ON CONFLICT (project_id, ref) DO UPDATE SET commit_id = excluded.commit_id, at = excluded.at`
	insertBuild = `
		INSERT INTO builds (project_id, ref, commit_id, application, state, image, tags, digest, layer, inputs, watched, findings,
			push_id, created_at, duration, latest)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, TRUE)
		RETURNING id`
	outdateBuilds = `
		UPDATE builds SET latest = FALSE
		WHERE project_id = ? AND ref = ? AND application = ? AND latest AND id <> ?`
	trimBuilds = `
		DELETE FROM builds
		WHERE project_id = ? AND ref = ? AND application = ?
			AND id <= (
				SELECT id FROM builds
				WHERE project_id = ? AND ref = ? AND application = ?
				ORDER BY id DESC LIMIT 1 OFFSET ?)
			AND id <> (
				SELECT COALESCE(MAX(id), 0) FROM builds
				WHERE project_id = ? AND ref = ? AND application = ? AND state IN ('success', 'skipped'))`
)

// keptBuilds is how many builds of an application under one ref are kept.
const keptBuilds = 100

// RecordBuilds writes builds of a head, and that its commit was delivered.
func (db *DB) RecordBuilds(ctx context.Context, h tidelock.Head, builds []tidelock.Build) ([]tidelock.Build, error) {
	recorded := make([]tidelock.Build, len(builds))
	err := db.write(ctx, func(s session) error {
		for i, b := range builds {
			b.Project, b.Ref, b.Commit = h.Project, h.Ref, h.Commit
			if err := s.insertBuild(ctx, &b); err != nil {
				return err
			}
			recorded[i] = b
		}
		if _, err := s.exec(ctx, upsertDelivered, h.Project, []byte(h.Ref), h.Commit, time.Now()); err != nil {
			return s.writeError("delivered head", "project", err)
		}
		return nil
	})
	return whole(recorded, err)
}

func (s session) insertBuild(ctx context.Context, b *tidelock.Build) error {
	b.CreatedAt, b.Duration = orNow(b.CreatedAt), b.Duration.Truncate(time.Microsecond)
	tags, watched, findings, err := buildTexts(*b)
	if err != nil {
		return err
	}
	err = s.row(ctx, insertBuild, b.Project, []byte(b.Ref), b.Commit, b.Application, b.State, b.Image, tags, b.Digest, b.Layer, b.Inputs,
		watched, findings, b.Push, b.CreatedAt, b.Duration.Microseconds()).Scan(&b.ID)
	if err != nil {
		return s.writeError("build", "project", err)
	}
	of := func() []any { return []any{b.Project, []byte(b.Ref), b.Application} }
	if _, err := s.exec(ctx, outdateBuilds, append(of(), b.ID)...); err != nil {
		return fmt.Errorf("outdate builds: %w", err)
	}
	args := append(append(append(of(), of()...), keptBuilds), of()...)
	if _, err := s.exec(ctx, trimBuilds, args...); err != nil {
		return fmt.Errorf("forget old builds: %w", err)
	}
	return nil
}

func buildTexts(b tidelock.Build) (tags, watched, findings string, err error) {
	for _, field := range []struct {
		value any
		text  *string
	}{{b.Tags, &tags}, {b.Watched, &watched}, {b.Findings, &findings}} {
		text, err := json.Marshal(field.value)
		if err != nil {
			return "", "", "", fmt.Errorf("write build: %w", err)
		}
		*field.text = string(text)
	}
	return tags, watched, findings, nil
}

const buildColumns = `b.id, b.project_id, b.ref, b.commit_id, b.application, b.state, b.image, b.tags, b.digest, b.layer, b.inputs,
	b.watched, b.findings, b.push_id, b.created_at, b.duration`

func scanBuild(row scanner) (b tidelock.Build, err error) {
	var tags, watched, findings string
	var duration int64
	err = row.Scan(&b.ID, &b.Project, &b.Ref, &b.Commit, &b.Application, &b.State, &b.Image, &tags, &b.Digest, &b.Layer, &b.Inputs,
		&watched, &findings, &b.Push, (*instant)(&b.CreatedAt), &duration)
	if err != nil {
		return b, err
	}
	b.Duration = time.Duration(duration) * time.Microsecond
	for _, field := range []struct {
		text  string
		value any
	}{{tags, &b.Tags}, {watched, &b.Watched}, {findings, &b.Findings}} {
		if err := json.Unmarshal([]byte(field.text), field.value); err != nil {
			return b, fmt.Errorf("read build %d: %w", b.ID, err)
		}
	}
	return b, nil
}

const selectLastBuilds = `
	SELECT ` + buildColumns + `
	FROM builds b
	WHERE b.project_id = ? AND b.ref = ? AND b.id IN (
		SELECT MAX(id) FROM builds
		WHERE project_id = ? AND ref = ? AND state IN ('success', 'skipped')
		GROUP BY application)
	ORDER BY b.application`

// LastBuilds lists in order of application.
func (db *DB) LastBuilds(ctx context.Context, project tidelock.ProjectID, ref tidelock.RefName) ([]tidelock.Build, error) {
	return many(ctx, db.point(ctx), "builds", scanBuild, selectLastBuilds, project, []byte(ref), project, []byte(ref))
}

// Builds lists newest first.
func (db *DB) Builds(ctx context.Context, f tidelock.BuildFilter, p tidelock.Page) ([]tidelock.Build, int, error) {
	l := list{columns: buildColumns, from: `builds b`, order: `b.id DESC`}
	l.filter(`b.project_id = ?`, f.Project)
	if f.Ref != "" {
		l.filter(`b.ref = ?`, []byte(f.Ref))
	}
	if f.Commit != "" {
		l.filter(`b.commit_id = ?`, f.Commit)
	}
	if f.Application != "" {
		l.filter(`b.application = ?`, f.Application)
	}
	if f.Digest != "" {
		l.filter(`b.digest = ? AND b.digest <> ''`, f.Digest)
	}
	if f.State != "" {
		l.filter(`b.state = ?`, f.State)
	}
	if f.LatestOfApplications {
		l.filter(`b.latest`)
	}
	return pageOf(ctx, db, "builds", l, p, scanBuild)
}

const forgetDelivered = `
	DELETE FROM delivered_heads
	WHERE NOT EXISTS (SELECT 1 FROM heads h WHERE h.project_id = delivered_heads.project_id AND h.ref = delivered_heads.ref)`

// ForgetDelivered removes what is known of refs that are gone.
func (db *DB) ForgetDelivered(ctx context.Context) error {
	return db.write(ctx, func(s session) error {
		if _, err := s.exec(ctx, forgetDelivered); err != nil {
			return fmt.Errorf("forget refs that are gone: %w", err)
		}
		return nil
	})
}
