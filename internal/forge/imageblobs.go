package forge

import (
	"context"
	"fmt"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

// blobStore is what the rules remember of the blobs that images have.
type blobStore interface {
	// ForgetBlob removes what is known of a blob of an image. While an artifact
	// names the blob it is a Conflict.
	ForgetBlob(context.Context, tidelock.ImageID, tidelock.Digest) error
	// ContentIn returns those of some blobs and manifests that any image of a
	// project has.
	ContentIn(context.Context, tidelock.ProjectID, []tidelock.Digest) (map[tidelock.Digest]bool, error)
}

// DeleteBlob takes a blob out of an image, unless one of its artifacts needs
// it.
func (f *Forge) DeleteBlob(ctx context.Context, p Principal, project tidelock.Project, image string, digest tidelock.Digest) error {
	i, err := f.imageOf(ctx, p, project, image, DeleteImage)
	if err != nil {
		return err
	}
	name := registry.Repo(project.ID, image)
	defer f.images.lock(name)()
	if _, err := f.registry.StatBlob(ctx, name, digest); err != nil {
		return err
	}
	// The row goes first: a blob that has a row is taken to be there.
	err = f.store.ForgetBlob(ctx, i.ID, digest)
	switch {
	case tidelock.KindOf(err) == tidelock.Conflict:
		return registry.Errorf(tidelock.Conflict, registry.Denied, "an artifact of the image needs %s; delete that first", digest)
	case err != nil:
		return fmt.Errorf("forget blob %s of image %d: %w", digest, i.ID, err)
	}
	f.freeRoom(project.ID)
	return f.registry.RemoveBlob(ctx, name, digest)
}
