package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidelock.dev"
)

const imageColumns = `i.id, i.project_id, i.name, i.created_at`

func scanImage(row scanner) (i tidelock.Image, err error) {
	err = row.Scan(&i.ID, &i.Project, &i.Name, (*instant)(&i.CreatedAt))
	return i, err
}

const (
	selectImage       = `SELECT ` + imageColumns + ` FROM images i WHERE i.id = ?`
	selectImageByName = `SELECT ` + imageColumns + ` FROM images i WHERE i.project_id = ? AND i.name = ?`
	insertImage       = `
		INSERT INTO images (project_id, name, created_at)
		VALUES (?, ?, ?)
		ON CONFLICT (project_id, name) DO NOTHING`
)

func (db *DB) Image(ctx context.Context, id tidelock.ImageID) (tidelock.Image, error) {
	return one(ctx, db.point(ctx), "image", scanImage, selectImage, id)
}

func (db *DB) ImageByName(ctx context.Context, project tidelock.ProjectID, name string) (tidelock.Image, error) {
	return one(ctx, db.point(ctx), "image", scanImage, selectImageByName, project, name)
}

// MakeImage finds or makes an image, and keeps it as it is until the
// transaction ends.
func (db *DB) MakeImage(ctx context.Context, i tidelock.Image) (tidelock.Image, error) {
	i.CreatedAt = orNow(i.CreatedAt)
	err := db.write(ctx, func(s session) (err error) {
		i, err = s.makeImage(ctx, i)
		return err
	})
	return whole(i, err)
}

func (s session) makeImage(ctx context.Context, i tidelock.Image) (tidelock.Image, error) {
	found, err := one(ctx, s, "image", scanImage, selectImageByName+s.lockRow, i.Project, i.Name)
	if tidelock.KindOf(err) != tidelock.NotFound {
		return found, err
	}
	if _, err := s.exec(ctx, insertImage, i.Project, i.Name, i.CreatedAt); err != nil {
		return i, s.writeError("image", "project", err)
	}
	return one(ctx, s, "image", scanImage, selectImageByName+s.lockRow, i.Project, i.Name)
}

func (db *DB) Images(ctx context.Context, f tidelock.ImageFilter, p tidelock.Page) ([]tidelock.Image, int, error) {
	l := list{columns: imageColumns, from: `images i`, order: `i.id`}
	if f.Project != 0 {
		l.filter(`i.project_id = ?`, f.Project)
	}
	if !f.Empty {
		l.filter(`EXISTS (SELECT 1 FROM artifacts a WHERE a.image_id = i.id)`)
	}
	if f.Below != 0 {
		l.filter(`i.project_id IN (SELECT r.id FROM projects r WHERE r.namespace_id IN (`+below+`))`, f.Below)
		if f.Viewer != nil {
			condition, args := visibleFrom(*f.Viewer, f.MinLevel, `r.visibility`, `r.id`, `r.namespace_id`)
			l.filter(`i.project_id IN (SELECT r.id FROM projects r WHERE `+condition+`)`, args...)
		}
	}
	return pageOf(ctx, db, "images", l, p, scanImage)
}

const deleteImage = `DELETE FROM images WHERE id = ?`

// RemoveImage removes an image with all its artifacts and tags.
func (db *DB) RemoveImage(ctx context.Context, id tidelock.ImageID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "image", deleteImage, id) })
}

const (
	upsertBlob = `
		INSERT INTO image_blobs (image_id, digest, size, seen_at)
		VALUES (?, ?, ?, ?)
		ON CONFLICT (image_id, digest) DO UPDATE
		SET size = excluded.size, seen_at = excluded.seen_at`
	selectBlobSeen = `SELECT seen_at FROM image_blobs WHERE image_id = ? AND digest = ?`
	selectBlobs    = `SELECT digest, size FROM image_blobs WHERE image_id = ? AND digest IN `
)

// NoteBlob does not wait for the disk: a blob whose row is lost is found again
// by the push of a manifest that names it.
func (db *DB) NoteBlob(ctx context.Context, i tidelock.Image, blob tidelock.Part, at time.Time) error {
	return db.note(ctx, func(s session) error {
		image, err := s.makeImage(ctx, tidelock.Image{Project: i.Project, Name: i.Name, CreatedAt: orNow(at)})
		if err != nil {
			return err
		}
		_, err = s.exec(ctx, upsertBlob, image.ID, blob.Digest, blob.Size, orNow(at))
		return s.writeError("blob", "image", err)
	})
}

func (db *DB) BlobSeen(ctx context.Context, image tidelock.ImageID, digest tidelock.Digest) (time.Time, error) {
	var at time.Time
	err := db.point(ctx).row(ctx, selectBlobSeen, image, digest).Scan((*instant)(&at))
	if err != nil {
		return time.Time{}, readError("blob", err)
	}
	return at, nil
}

// KnownBlobs returns the sizes of those digests that an image is known to have.
func (db *DB) KnownBlobs(ctx context.Context, image tidelock.ImageID, digests []tidelock.Digest) (map[tidelock.Digest]int64, error) {
	return db.sizes(ctx, "blobs", selectBlobs, image, digests)
}

// sizes reads digests and sizes, of those digests that a table has.
func (db *DB) sizes(ctx context.Context, nouns, text string, image tidelock.ImageID, digests []tidelock.Digest) (map[tidelock.Digest]int64, error) {
	s := db.point(ctx)
	if len(digests) > 3 {
		s = s.rarely()
	}
	known := map[tidelock.Digest]int64{}
	for some := range slices.Chunk(digests, batch) {
		found, err := many(ctx, s, nouns, scanSize, text+tuples(1, len(some)), withDigests(image, some)...)
		if err != nil {
			return nil, err
		}
		for _, p := range found {
			known[p.Digest] = p.Size
		}
	}
	return known, nil
}

func scanSize(row scanner) (p tidelock.Part, err error) {
	err = row.Scan(&p.Digest, &p.Size)
	return p, err
}

// withDigests is the arguments of a list of digests in an image.
func withDigests(image tidelock.ImageID, digests []tidelock.Digest) []any {
	args := []any{image}
	for _, d := range digests {
		args = append(args, d)
	}
	return args
}

const selectImageUsage = `
	SELECT COALESCE(SUM(size), 0) FROM (
		SELECT b.digest, b.size FROM image_blobs b JOIN images i ON i.id = b.image_id WHERE i.project_id = ?
		UNION
		SELECT a.digest, a.size FROM artifacts a JOIN images i ON i.id = a.image_id WHERE i.project_id = ?
	) AS content`

// ImageUsage counts the bytes of all images of a project, each content once.
func (db *DB) ImageUsage(ctx context.Context, project tidelock.ProjectID) (int64, error) {
	var bytes int64
	if err := db.point(ctx).row(ctx, selectImageUsage, project, project).Scan(&bytes); err != nil {
		return 0, fmt.Errorf("count the bytes of images: %w", err)
	}
	return bytes, nil
}

const tagRuleColumns = `r.id, r.project_id, r.pattern, r.push_level, r.delete_level`

func scanTagRule(row scanner) (r tidelock.TagRule, err error) {
	err = row.Scan(&r.ID, &r.Project, &r.Pattern, &r.PushLevel, &r.DeleteLevel)
	return r, err
}

const (
	selectTagRules = `SELECT ` + tagRuleColumns + ` FROM tag_rules r WHERE r.project_id = ? ORDER BY r.id`
	insertTagRule  = `
		INSERT INTO tag_rules (project_id, pattern, push_level, delete_level)
		VALUES (?, ?, ?, ?)
		ON CONFLICT (project_id, pattern) DO NOTHING
		RETURNING id`
	updateTagRule = `UPDATE tag_rules SET pattern = ?, push_level = ?, delete_level = ? WHERE id = ? AND project_id = ?`
	tagRuleTaken  = `SELECT COUNT(*) FROM tag_rules WHERE project_id = ? AND pattern = ? AND id <> ?`
	deleteTagRule = `DELETE FROM tag_rules WHERE project_id = ? AND id = ?`
)

func (db *DB) TagRules(ctx context.Context, project tidelock.ProjectID) ([]tidelock.TagRule, error) {
	return many(ctx, db.point(ctx), "tag rules", scanTagRule, selectTagRules, project)
}

// SaveTagRule makes a rule, or changes the one with its id.
func (db *DB) SaveTagRule(ctx context.Context, r tidelock.TagRule) (tidelock.TagRule, error) {
	err := db.write(ctx, func(s session) (err error) {
		r, err = s.saveTagRule(ctx, r)
		return err
	})
	return whole(r, err)
}

func (s session) saveTagRule(ctx context.Context, r tidelock.TagRule) (tidelock.TagRule, error) {
	if r.ID == 0 {
		err := s.row(ctx, insertTagRule, r.Project, r.Pattern, r.PushLevel, r.DeleteLevel).Scan(&r.ID)
		if errors.Is(err, sql.ErrNoRows) {
			return r, taken("tag_name_pattern")
		}
		return r, s.writeError("tag rule", "project", err)
	}
	var others int
	if err := s.row(ctx, tagRuleTaken, r.Project, r.Pattern, r.ID).Scan(&others); err != nil {
		return r, fmt.Errorf("read tag rules: %w", err)
	}
	if others > 0 {
		return r, taken("tag_name_pattern")
	}
	return r, s.change(ctx, "tag rule", updateTagRule, r.Pattern, r.PushLevel, r.DeleteLevel, r.ID, r.Project)
}

func (db *DB) RemoveTagRule(ctx context.Context, project tidelock.ProjectID, id int64) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "tag rule", deleteTagRule, project, id) })
}

const settingsColumns = `s.project_id, s.quota, s.retain, s.every, s.keep_newest, s.older_than, s.keep_pattern, s.remove_pattern, s.next_at`

func scanImageSettings(row scanner) (i tidelock.ImageSettings, err error) {
	var every, older int64
	r := &i.Retention
	err = row.Scan(&i.Project, &i.Quota, &r.Enabled, &every, &r.KeepNewest, &older, &r.Keep, &r.Remove, (*instant)(&r.NextAt))
	r.Every, r.OlderThan = time.Duration(every)*time.Microsecond, time.Duration(older)*time.Microsecond
	return i, err
}

const (
	selectImageSettings = `SELECT ` + settingsColumns + ` FROM image_settings s WHERE s.project_id = ?`
	selectDueRetentions = `SELECT ` + settingsColumns + ` FROM image_settings s WHERE s.retain AND s.next_at <= ? ORDER BY s.next_at LIMIT ?`
	upsertImageSettings = `
		INSERT INTO image_settings (project_id, quota, retain, every, keep_newest, older_than, keep_pattern, remove_pattern, next_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (project_id) DO UPDATE
		SET quota = excluded.quota, retain = excluded.retain, every = excluded.every, keep_newest = excluded.keep_newest,
			older_than = excluded.older_than, keep_pattern = excluded.keep_pattern, remove_pattern = excluded.remove_pattern,
			next_at = excluded.next_at`
)

func (db *DB) ImageSettings(ctx context.Context, project tidelock.ProjectID) (tidelock.ImageSettings, error) {
	return one(ctx, db.point(ctx), "image settings", scanImageSettings, selectImageSettings, project)
}

// DueRetentions lists settings whose retention is to be applied at a time.
func (db *DB) DueRetentions(ctx context.Context, at time.Time, limit int) ([]tidelock.ImageSettings, error) {
	return many(ctx, db.point(ctx), "image settings", scanImageSettings, selectDueRetentions, at, limit)
}

func (db *DB) SaveImageSettings(ctx context.Context, i tidelock.ImageSettings) error {
	r := i.Retention
	return db.write(ctx, func(s session) error {
		_, err := s.exec(ctx, upsertImageSettings, i.Project, i.Quota, r.Enabled, r.Every.Microseconds(), r.KeepNewest, r.OlderThan.Microseconds(),
			r.Keep, r.Remove, r.NextAt)
		return s.writeError("image settings", "project", err)
	})
}

const updateRetentionDue = `UPDATE image_settings SET next_at = ? WHERE project_id = ?`

func (db *DB) RetentionDone(ctx context.Context, project tidelock.ProjectID, next time.Time) error {
	return db.write(ctx, func(s session) error {
		return s.change(ctx, "image settings", updateRetentionDue, next, project)
	})
}
