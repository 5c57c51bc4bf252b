package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"tidelock.dev"
)

const artifactColumns = `a.image_id, a.digest, a.media_type, a.type, a.size, a.subject, a.annotations, a.commit_id,
	a.pushed_by, a.token_id, a.pushed_at`

func scanArtifact(row scanner) (a tidelock.Artifact, err error) {
	var annotations string
	err = row.Scan(&a.Image, &a.Digest, &a.MediaType, &a.Type, &a.Size, &a.Subject, &annotations, &a.Commit,
		&a.By, &a.Token, (*instant)(&a.PushedAt))
	if err != nil {
		return a, err
	}
	if err := json.Unmarshal([]byte(annotations), &a.Annotations); err != nil {
		return a, fmt.Errorf("read annotations of artifact %s: %w", a.Digest, err)
	}
	return a, nil
}

const (
	selectArtifact = `SELECT ` + artifactColumns + ` FROM artifacts a WHERE a.image_id = ? AND a.digest = ?`
	insertArtifact = `
		INSERT INTO artifacts (image_id, digest, media_type, type, size, subject, annotations, commit_id, pushed_by, token_id, pushed_at, seen_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (image_id, digest) DO UPDATE SET seen_at = excluded.seen_at`
	insertParts = `
		INSERT INTO artifact_parts (image_id, digest, position, part, media_type, size, manifest)
		VALUES %s
		ON CONFLICT (image_id, digest, position) DO NOTHING`
	selectParts = `
		SELECT digest, part, media_type, size, manifest
		FROM artifact_parts
		WHERE image_id = ? AND digest IN %s
		ORDER BY digest, position`
	selectKnownArtifacts = `SELECT digest, size FROM artifacts WHERE image_id = ? AND digest IN `
	deleteArtifact       = `DELETE FROM artifacts WHERE image_id = ? AND digest = ?`
)

// Artifact reads an artifact with its parts.
func (db *DB) Artifact(ctx context.Context, image tidelock.ImageID, digest tidelock.Digest) (tidelock.Artifact, error) {
	var a tidelock.Artifact
	err := db.read(ctx, func(s session) (err error) {
		if a, err = one(ctx, s, "artifact", scanArtifact, selectArtifact, image, digest); err != nil {
			return err
		}
		list := []tidelock.Artifact{a}
		err = s.readParts(ctx, image, list)
		a = list[0]
		return err
	})
	return whole(a, err)
}

// Artifacts lists newest first.
func (db *DB) Artifacts(ctx context.Context, f tidelock.ArtifactFilter, p tidelock.Page) ([]tidelock.Artifact, int, error) {
	l := list{columns: artifactColumns, from: `artifacts a`, order: `a.pushed_at DESC, a.digest`}
	l.filter(`a.image_id = ?`, f.Image)
	if f.Subject != "" {
		l.filter(`a.subject = ? AND a.subject <> ''`, f.Subject)
	}
	if f.Type != "" {
		l.filter(`a.type = ?`, f.Type)
	}
	var artifacts []tidelock.Artifact
	var total int
	err := db.read(ctx, func(s session) (err error) {
		if artifacts, total, err = page(ctx, s, "artifacts", l, p, scanArtifact); err != nil {
			return err
		}
		return s.readParts(ctx, f.Image, artifacts)
	})
	if err != nil {
		return nil, 0, err
	}
	return artifacts, total, nil
}

const (
	selectReferrers = `SELECT ` + artifactColumns + ` FROM artifacts a
		WHERE a.image_id = ? AND a.subject = ? AND a.subject <> '' AND a.digest > ? AND (? = '' OR a.type = ?)
		ORDER BY a.digest LIMIT ?`
	selectHolders = `SELECT DISTINCT digest FROM artifact_parts WHERE image_id = ? AND part = ?`
)

// Referrers reads a few of what may be very many.
func (db *DB) Referrers(ctx context.Context, f tidelock.ArtifactFilter, after tidelock.Digest, limit int) ([]tidelock.Artifact, error) {
	return many(ctx, db.point(ctx), "artifacts", scanArtifact, selectReferrers, f.Image, f.Subject, after, f.Type, f.Type, limit)
}

// Holders reads no more of artifacts than their digests.
func (db *DB) Holders(ctx context.Context, image tidelock.ImageID, part tidelock.Digest) ([]tidelock.Digest, error) {
	return many(ctx, db.point(ctx), "artifacts", scanDigest, selectHolders, image, part)
}

// readParts fills in the parts of artifacts of one image.
func (s session) readParts(ctx context.Context, image tidelock.ImageID, artifacts []tidelock.Artifact) error {
	at := make(map[tidelock.Digest]int, len(artifacts))
	digests := make([]tidelock.Digest, len(artifacts))
	for i, a := range artifacts {
		at[a.Digest], digests[i] = i, a.Digest
	}
	if len(digests) > 1 {
		s = s.rarely()
	}
	for some := range slices.Chunk(digests, batch) {
		parts, err := many(ctx, s, "parts of artifacts", scanPartOf, fmt.Sprintf(selectParts, tuples(1, len(some))), withDigests(image, some)...)
		if err != nil {
			return err
		}
		for _, p := range parts {
			a := &artifacts[at[p.of]]
			a.Parts = append(a.Parts, p.Part)
		}
	}
	return nil
}

// A partOf is a part, and the artifact that names it.
type partOf struct {
	of tidelock.Digest
	tidelock.Part
}

func scanPartOf(row scanner) (p partOf, err error) {
	err = row.Scan(&p.of, &p.Digest, &p.MediaType, &p.Size, &p.Manifest)
	return p, err
}

// KnownArtifacts returns the sizes of those digests that are manifests of an
// image.
func (db *DB) KnownArtifacts(ctx context.Context, image tidelock.ImageID, digests []tidelock.Digest) (map[tidelock.Digest]int64, error) {
	return db.sizes(ctx, "artifacts", selectKnownArtifacts, image, digests)
}

// AddArtifact writes an artifact that is not there yet; one that is there was
// seen again.
func (db *DB) AddArtifact(ctx context.Context, a tidelock.Artifact) error {
	a.PushedAt = orNow(a.PushedAt)
	if a.Annotations == nil {
		a.Annotations = map[string]string{}
	}
	annotations, err := json.Marshal(a.Annotations)
	if err != nil {
		return fmt.Errorf("write annotations of artifact %s: %w", a.Digest, err)
	}
	return db.write(ctx, func(s session) error {
		_, err := s.exec(ctx, insertArtifact, a.Image, a.Digest, a.MediaType, a.Type, a.Size, a.Subject, string(annotations), a.Commit,
			a.By, a.Token, a.PushedAt, a.PushedAt)
		if err != nil {
			return s.writeError("artifact", "image", err)
		}
		if len(a.Parts) > 3 {
			s = s.rarely()
		}
		position := 0
		for some := range slices.Chunk(a.Parts, batch) {
			var args []any
			for _, p := range some {
				args = append(args, a.Image, a.Digest, position, p.Digest, p.MediaType, p.Size, p.Manifest)
				position++
			}
			if _, err := s.exec(ctx, fmt.Sprintf(insertParts, tuples(len(some), 7)), args...); err != nil {
				return fmt.Errorf("write parts of artifact: %w", err)
			}
		}
		return nil
	})
}

// RemoveArtifact removes an artifact that no tag points at.
func (db *DB) RemoveArtifact(ctx context.Context, image tidelock.ImageID, digest tidelock.Digest) error {
	return db.write(ctx, func(s session) error {
		n, err := s.exec(ctx, deleteArtifact, image, digest)
		switch {
		case err != nil && s.missingReference(err):
			return tidelock.Errorf(tidelock.Conflict, "a tag points at %s", digest)
		case err != nil:
			return fmt.Errorf("remove artifact: %w", err)
		case n == 0:
			return notFound("artifact")
		}
		return nil
	})
}

const (
	insertPushArtifact = `
		INSERT INTO push_artifacts (push_id, image_id, tag, old_digest, new_digest, commit_id)
		VALUES (?, ?, ?, ?, ?, ?)`
	upsertTag = `
		INSERT INTO image_tags (image_id, name, digest, push_id, moved_at)
		VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (image_id, name) DO UPDATE
		SET digest = excluded.digest, push_id = excluded.push_id, moved_at = excluded.moved_at`
	deleteTag = `DELETE FROM image_tags WHERE image_id = ? AND name = ?`
)

// RecordArtifact writes the push of a manifest and moves the tag it names.
func (db *DB) RecordArtifact(ctx context.Context, p tidelock.Push) (tidelock.Push, error) {
	update := *p.Artifact
	p.At, p.Announced, p.Updates = orNow(p.At), false, nil
	err := db.write(ctx, func(s session) error {
		u := update
		p.ID, p.Artifact = 0, &u
		if u.Tag != "" {
			tag, err := one(ctx, s, "tag", scanTag, selectTag, u.Image, u.Tag)
			if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
				return err
			}
			if tag.Digest == u.New {
				return nil
			}
			u.Old = tag.Digest
		}
		if err := s.row(ctx, insertPush, p.Project, p.By, p.Token, p.Key, p.At, p.Trace).Scan(&p.ID); err != nil {
			return s.writeError("push", "project", err)
		}
		if _, err := s.exec(ctx, insertPushArtifact, p.ID, u.Image, u.Tag, u.Old, u.New, u.Commit); err != nil {
			return fmt.Errorf("write artifact of push: %w", err)
		}
		switch {
		case u.Tag == "":
		case u.New == "":
			return s.change(ctx, "tag", deleteTag, u.Image, u.Tag)
		default:
			if _, err := s.exec(ctx, upsertTag, u.Image, u.Tag, u.New, p.ID, p.At); err != nil {
				return s.writeError("tag", "artifact", err)
			}
		}
		return nil
	})
	return whole(p, err)
}

const (
	tagColumns = `t.image_id, t.name, t.digest, t.push_id, t.moved_at`

	selectTag      = `SELECT ` + tagColumns + ` FROM image_tags t WHERE t.image_id = ? AND t.name = ?`
	selectTags     = `SELECT ` + tagColumns + ` FROM image_tags t WHERE t.image_id = ? AND t.name > ? ORDER BY t.name`
	selectTagsOf   = `SELECT ` + tagColumns + ` FROM image_tags t WHERE t.image_id = ? AND t.digest = ? ORDER BY t.name`
	selectTagHeads = `
		SELECT t.image_id, t.name, t.digest, t.push_id, t.moved_at, a.commit_id, COALESCE(p.trace, '')
		FROM image_tags t JOIN artifacts a ON a.image_id = t.image_id AND a.digest = t.digest LEFT JOIN pushes p ON p.id = t.push_id
		WHERE t.image_id = ?`
	countTags = `SELECT COUNT(*) FROM image_tags t WHERE t.image_id = ?`
)

func scanTag(row scanner) (t tidelock.Tag, err error) {
	err = row.Scan(&t.Image, &t.Name, &t.Digest, &t.Push, (*instant)(&t.MovedAt))
	return t, err
}

func (db *DB) Tag(ctx context.Context, image tidelock.ImageID, name string) (tidelock.Tag, error) {
	return one(ctx, db.point(ctx), "tag", scanTag, selectTag, image, name)
}

// Tags lists the tags of an image after a name, by name.
func (db *DB) Tags(ctx context.Context, image tidelock.ImageID, after string, limit int) ([]tidelock.Tag, error) {
	if limit > 0 {
		return many(ctx, db.point(ctx), "tags", scanTag, selectTags+` LIMIT ?`, image, after, limit)
	}
	return many(ctx, db.point(ctx), "tags", scanTag, selectTags, image, after)
}

// TagsOf lists the tags that point at an artifact, by name.
func (db *DB) TagsOf(ctx context.Context, image tidelock.ImageID, digest tidelock.Digest) ([]tidelock.Tag, error) {
	return many(ctx, db.point(ctx), "tags", scanTag, selectTagsOf, image, digest)
}

func (db *DB) CountTags(ctx context.Context, image tidelock.ImageID) (int, error) {
	var n int
	if err := db.point(ctx).row(ctx, countTags, image).Scan(&n); err != nil {
		return 0, fmt.Errorf("count tags: %w", err)
	}
	return n, nil
}

// scanTagHead reads a tag as what a source follows.
func scanTagHead(row scanner) (h tidelock.Head, err error) {
	var name string
	err = row.Scan(&h.Image, &name, &h.Digest, &h.Push, (*instant)(&h.MovedAt), &h.Commit, &h.Trace)
	h.Ref = tidelock.TagRef(name)
	return h, err
}

// TagHeads lists the tags of an image, by name, as what sources follow.
func (db *DB) TagHeads(ctx context.Context, image tidelock.ImageID) ([]tidelock.Head, error) {
	return many(ctx, db.point(ctx), "tags", scanTagHead, selectTagHeads+` ORDER BY t.name`, image)
}

func (db *DB) TagHead(ctx context.Context, image tidelock.ImageID, name string) (tidelock.Head, error) {
	return one(ctx, db.point(ctx), "tag", scanTagHead, selectTagHeads+` AND t.name = ?`, image, name)
}

const selectUsed = `SELECT source, revision, digest FROM agent_sources WHERE project_id = ?`

func (db *DB) UsedDigests(ctx context.Context, project tidelock.ProjectID) ([]tidelock.Digest, error) {
	type use struct {
		source   tidelock.SourceID
		revision string
		wanted   tidelock.Digest
	}
	uses, err := many(ctx, db.point(ctx), "sources", func(row scanner) (u use, err error) {
		err = row.Scan(&u.source, &u.revision, &u.wanted)
		return u, err
	}, selectUsed, project)
	digests := []tidelock.Digest{}
	for _, u := range uses {
		if u.wanted != "" {
			digests = append(digests, u.wanted)
		}
		if has := tidelock.ParseRevision(u.source.Kind(), u.revision).Digest; has != "" && has != u.wanted {
			digests = append(digests, has)
		}
	}
	return digests, err
}

const (
	selectContent = `
		SELECT a.image_id, a.digest, a.media_type, a.type, a.size, a.subject, '{}', a.commit_id, a.pushed_by, a.token_id, a.pushed_at, a.seen_at
		FROM artifacts a WHERE a.image_id = ?`
	selectHeld = `SELECT digest, part, media_type, size, manifest FROM artifact_parts WHERE image_id = ? AND manifest ORDER BY digest, position`
)

// ImageContent reads an image as a whole, but not what its artifacts say of
// themselves, which may be very long.
func (db *DB) ImageContent(ctx context.Context, image tidelock.ImageID) ([]tidelock.Content, error) {
	var content []tidelock.Content
	err := db.read(ctx, func(s session) error {
		if _, err := one(ctx, s, "image", scanImage, selectImage, image); err != nil {
			return err
		}
		var err error
		content, err = many(ctx, s, "artifacts", scanContent, selectContent, image)
		if err != nil {
			return err
		}
		at := make(map[tidelock.Digest]*tidelock.Content, len(content))
		for i := range content {
			at[content[i].Artifact.Digest] = &content[i]
		}
		held, err := many(ctx, s, "parts of artifacts", scanPartOf, selectHeld, image)
		if err != nil {
			return err
		}
		for _, p := range held {
			a := &at[p.of].Artifact
			a.Parts = append(a.Parts, p.Part)
		}
		tags, err := many(ctx, s, "tags", scanTag, selectTags, image, "")
		for _, t := range tags {
			c := at[t.Digest]
			c.Tags = append(c.Tags, t)
		}
		return err
	})
	return whole(content, err)
}

// scanContent reads an artifact and when it was seen.
func scanContent(row scanner) (c tidelock.Content, err error) {
	c.Artifact, err = scanArtifact(rowAnd{row, (*instant)(&c.SeenAt)})
	return c, err
}

// rowAnd is a row with one column more than its reader knows.
type rowAnd struct {
	scanner
	last any
}

func (r rowAnd) Scan(into ...any) error { return r.scanner.Scan(append(into, r.last)...) }

const (
	selectOldBlobs = `
		SELECT b.digest, COALESCE(p.digest, '')
		FROM image_blobs b LEFT JOIN artifact_parts p ON p.image_id = b.image_id AND p.part = b.digest
		WHERE b.image_id = ? AND b.seen_at < ?
		ORDER BY b.digest`
	countBlobs      = `SELECT COUNT(*) FROM image_blobs WHERE image_id = ?`
	deleteLooseBlob = `
		DELETE FROM image_blobs
		WHERE image_id = ? AND digest = ? AND seen_at < ?
			AND NOT EXISTS (SELECT 1 FROM artifact_parts p WHERE p.image_id = image_blobs.image_id AND p.part = image_blobs.digest)`
	deleteEmpty = `
		DELETE FROM images
		WHERE id = ? AND created_at < ?
			AND NOT EXISTS (SELECT 1 FROM artifacts a WHERE a.image_id = images.id)
			AND NOT EXISTS (SELECT 1 FROM image_blobs b WHERE b.image_id = images.id)`
)

// LooseBlobs does not keep in memory what names blobs, of which there may be
// very much.
func (db *DB) LooseBlobs(ctx context.Context, image tidelock.ImageID, dead map[tidelock.Digest]bool, before time.Time) (loose []tidelock.Digest, all int, err error) {
	loose = []tidelock.Digest{}
	err = db.read(ctx, func(s session) error {
		if err := s.row(ctx, countBlobs, image).Scan(&all); err != nil {
			return fmt.Errorf("count blobs: %w", err)
		}
		rows, err := s.rows(ctx, selectOldBlobs, image, before)
		if err != nil {
			return fmt.Errorf("read blobs: %w", err)
		}
		defer rows.Close()
		var needed tidelock.Digest // the last one that something alive names
		for rows.Next() {
			var blob, by tidelock.Digest
			if err := rows.Scan(&blob, &by); err != nil {
				return fmt.Errorf("read blobs: %w", err)
			}
			last := len(loose) - 1
			switch {
			case by != "" && !dead[by]:
				if needed = blob; last >= 0 && loose[last] == blob {
					loose = loose[:last]
				}
			case blob != needed && (last < 0 || loose[last] != blob):
				loose = append(loose, blob)
			}
		}
		return rows.Err()
	})
	return loose, all, err
}

func (db *DB) RemoveContent(ctx context.Context, image tidelock.ImageID, dead, blobs []tidelock.Digest, before time.Time) (gone []tidelock.Digest, err error) {
	err = db.write(ctx, func(s session) error {
		gone = nil
		for _, digest := range dead {
			if err := s.change(ctx, "artifact", deleteArtifact, image, digest); err != nil {
				return err
			}
		}
		for _, digest := range blobs {
			n, err := s.exec(ctx, deleteLooseBlob, image, digest, before)
			if err != nil {
				return fmt.Errorf("remove blob: %w", err)
			}
			if n > 0 {
				gone = append(gone, digest)
			}
		}
		return nil
	})
	return whole(gone, err)
}

func (db *DB) RemoveEmptyImage(ctx context.Context, image tidelock.ImageID, before time.Time) (removed bool, err error) {
	err = db.write(ctx, func(s session) error {
		n, err := s.exec(ctx, deleteEmpty, image, before)
		if err != nil {
			return fmt.Errorf("remove empty image: %w", err)
		}
		removed = n > 0
		return nil
	})
	return whole(removed, err)
}

func scanDigest(row scanner) (d tidelock.Digest, err error) {
	err = row.Scan(&d)
	return d, err
}
