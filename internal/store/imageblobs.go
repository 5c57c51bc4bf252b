package store

import (
	"context"
	"fmt"

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
