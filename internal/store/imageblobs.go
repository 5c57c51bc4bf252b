package store

import (
	"context"
	"fmt"
	"slices"

	"tidelock.dev"
)

const (
	deleteBlob = `
		DELETE FROM image_blobs
		WHERE image_id = ? AND digest = ?
		AND NOT EXISTS (SELECT 1 FROM artifact_parts WHERE artifact_parts.image_id = image_blobs.image_id AND part = image_blobs.digest)`
	countUses = `SELECT COUNT(*) FROM artifact_parts WHERE image_id = ? AND part = ?`
)

// ForgetBlob removes what is known of a blob that no artifact of its image
// names.
func (db *DB) ForgetBlob(ctx context.Context, image tidelock.ImageID, digest tidelock.Digest) error {
	return db.write(ctx, func(s session) error {
		n, err := s.exec(ctx, deleteBlob, image, digest)
		if err != nil {
			return fmt.Errorf("forget blob: %w", err)
		}
		if n > 0 {
			return nil
		}
		var uses int
		if err := s.row(ctx, countUses, image, digest).Scan(&uses); err != nil {
			return fmt.Errorf("count what uses a blob: %w", err)
		}
		if uses > 0 {
			return tidelock.Errorf(tidelock.Conflict, "an artifact names %s", digest)
		}
		return nil
	})
}

const (
	selectBlobsIn = `
		SELECT b.digest FROM images i JOIN image_blobs b ON b.image_id = i.id
		WHERE i.project_id = ? AND b.digest IN `
	selectArtifactsIn = `
		SELECT a.digest FROM images i JOIN artifacts a ON a.image_id = i.id
		WHERE i.project_id = ? AND a.digest IN `
)

// ContentIn looks into all images of a project.
func (db *DB) ContentIn(ctx context.Context, project tidelock.ProjectID, digests []tidelock.Digest) (map[tidelock.Digest]bool, error) {
	there := map[tidelock.Digest]bool{}
	s := db.point(ctx)
	if len(digests) > 3 {
		s = s.rarely()
	}
	for some := range slices.Chunk(digests, batch) {
		args := []any{project}
		for _, d := range some {
			args = append(args, d)
		}
		for _, text := range []string{selectBlobsIn, selectArtifactsIn} {
			found, err := many(ctx, s, "content of images", scanDigest, text+tuples(1, len(some)), args...)
			if err != nil {
				return nil, err
			}
			for _, d := range found {
				there[d] = true
			}
		}
	}
	return there, nil
}
