package forge

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

// imageStore is what the rules remember of images and artifacts.
type imageStore interface {
	// MakeImage finds an image by project and name, or makes it. Within
	// Atomically nobody else changes what is in it until the end.
	MakeImage(context.Context, tidelock.Image) (tidelock.Image, error)
	Image(context.Context, tidelock.ImageID) (tidelock.Image, error)
	ImageByName(ctx context.Context, project tidelock.ProjectID, name string) (tidelock.Image, error)
	Images(context.Context, tidelock.ImageFilter, tidelock.Page) ([]tidelock.Image, int, error)
	// RemoveImage removes an image with its artifacts, tags and blobs. The
	// pushes that made them stay.
	RemoveImage(context.Context, tidelock.ImageID) error

	// NoteBlob writes that an image, which is made if need be, had a blob at a
	// time. It does not wait for the disk.
	NoteBlob(ctx context.Context, i tidelock.Image, blob tidelock.Part, at time.Time) error
	// BlobSeen is when NoteBlob last told of a blob.
	BlobSeen(context.Context, tidelock.ImageID, tidelock.Digest) (time.Time, error)
	// KnownBlobs returns the sizes of those blobs that the image has.
	KnownBlobs(context.Context, tidelock.ImageID, []tidelock.Digest) (map[tidelock.Digest]int64, error)
	// ImageUsage counts the bytes of blobs and manifests in all images of a
	// project, each once.
	ImageUsage(context.Context, tidelock.ProjectID) (int64, error)

	Artifact(context.Context, tidelock.ImageID, tidelock.Digest) (tidelock.Artifact, error)
	// Artifacts lists newest first, with their parts.
	Artifacts(context.Context, tidelock.ArtifactFilter, tidelock.Page) ([]tidelock.Artifact, int, error)
	// Referrers lists, in order of digest and without parts, artifacts after a
	// digest that are attached to the filter's subject.
	Referrers(ctx context.Context, f tidelock.ArtifactFilter, after tidelock.Digest, limit int) ([]tidelock.Artifact, error)
	// Holders lists the artifacts of an image that have one as a part.
	Holders(context.Context, tidelock.ImageID, tidelock.Digest) ([]tidelock.Digest, error)
	// KnownArtifacts returns the sizes of those manifests that the image has.
	KnownArtifacts(context.Context, tidelock.ImageID, []tidelock.Digest) (map[tidelock.Digest]int64, error)
	// AddArtifact writes an artifact, or that it was seen once more.
	AddArtifact(context.Context, tidelock.Artifact) error
	// RemoveArtifact is a Conflict while a tag points at the artifact.
	RemoveArtifact(context.Context, tidelock.ImageID, tidelock.Digest) error
	// RecordArtifact writes the push of a manifest, unannounced, and moves the
	// tag that it names, or removes it when New is empty. Old is replaced by
	// what the tag was; if that is New, nothing is written and the push has
	// id 0.
	RecordArtifact(context.Context, tidelock.Push) (tidelock.Push, error)

	Tag(ctx context.Context, image tidelock.ImageID, name string) (tidelock.Tag, error)
	// Tags lists tags after a name, in order of name; limit 0 is all.
	Tags(ctx context.Context, image tidelock.ImageID, after string, limit int) ([]tidelock.Tag, error)
	TagsOf(context.Context, tidelock.ImageID, tidelock.Digest) ([]tidelock.Tag, error)
	CountTags(context.Context, tidelock.ImageID) (int, error)
	// TagHead and TagHeads read tags as what sources follow; Project is left
	// zero.
	TagHead(ctx context.Context, image tidelock.ImageID, name string) (tidelock.Head, error)
	TagHeads(context.Context, tidelock.ImageID) ([]tidelock.Head, error)

	// CreateProject makes a rule that keeps tags matching SemVerTags as they
	// are.
	TagRules(context.Context, tidelock.ProjectID) ([]tidelock.TagRule, error)
	// SaveTagRule makes a rule when its id is 0. A second rule of one pattern
	// is a Conflict.
	SaveTagRule(context.Context, tidelock.TagRule) (tidelock.TagRule, error)
	RemoveTagRule(ctx context.Context, project tidelock.ProjectID, id int64) error

	// ImageSettings is NotFound until they were saved.
	ImageSettings(context.Context, tidelock.ProjectID) (tidelock.ImageSettings, error)
	SaveImageSettings(context.Context, tidelock.ImageSettings) error
	// RetentionDone says when a retention is due next.
	RetentionDone(ctx context.Context, project tidelock.ProjectID, next time.Time) error
	// DueRetentions lists settings whose retention is enabled and due.
	DueRetentions(ctx context.Context, at time.Time, limit int) ([]tidelock.ImageSettings, error)

	// UsedDigests lists the artifacts that sources in clusters have, or should
	// have, of a project.
	UsedDigests(context.Context, tidelock.ProjectID) ([]tidelock.Digest, error)
	// ImageContent lists all artifacts of an image, without annotations.
	ImageContent(context.Context, tidelock.ImageID) ([]tidelock.Content, error)
	// LooseBlobs lists the blobs of an image that were seen last before a time
	// and that only dead artifacts name, or none, and counts all that it has.
	LooseBlobs(ctx context.Context, image tidelock.ImageID, dead map[tidelock.Digest]bool, before time.Time) (loose []tidelock.Digest, all int, err error)
	// RemoveContent removes artifacts, and those of some blobs that none that is
	// left names and that were seen last before a time, which it returns.
	RemoveContent(ctx context.Context, image tidelock.ImageID, dead, blobs []tidelock.Digest, before time.Time) (gone []tidelock.Digest, err error)
	// RemoveEmptyImage removes an image that was made before a time and has
	// nothing any more.
	RemoveEmptyImage(ctx context.Context, image tidelock.ImageID, before time.Time) (removed bool, err error)
}

// ProjectOfImage finds the project that an image's path leads to, and the
// image's name below it. Of projects that the path may mean, the one with the
// longest path has it; a project's own path goes before one it had in the past.
func (f *Forge) ProjectOfImage(ctx context.Context, path string) (tidelock.Project, string, error) {
	var moved tidelock.Project
	var movedName string
	prefix, name := path, ""
	if strings.Count(path, "/") > maxImageDepth {
		return tidelock.Project{}, "", errNoImage()
	}
	for strings.Contains(prefix, "/") {
		project, err := f.store.ProjectByPath(ctx, prefix)
		switch {
		case err == nil && strings.EqualFold(project.FullPath, prefix):
			return project, name, nil
		case err == nil && moved.ID == 0:
			moved, movedName = project, name
		case err != nil && tidelock.KindOf(err) != tidelock.NotFound:
			return tidelock.Project{}, "", fmt.Errorf("look for the project of image %q: %w", path, err)
		}
		prefix, name = path[:strings.LastIndexByte(prefix, '/')], path[strings.LastIndexByte(prefix, '/')+1:]
	}
	if moved.ID == 0 {
		return tidelock.Project{}, "", errNoImage()
	}
	return moved, movedName, nil
}

func errNoImage() error {
	return registry.Errorf(tidelock.NotFound, registry.NameUnknown, "there is no such image, or you may not see it")
}

// imageName is what an image may be called below its project: what clients
// take as part of a reference.
var imageName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

const (
	maxImageName  = 255
	maxImageDepth = 40 // slashes in the whole path
)

func checkImageName(name string) error {
	if name != "" && (len(name) > maxImageName || !imageName.MatchString(name)) {
		return registry.Errorf(tidelock.Invalid, registry.NameInvalid, "%.300q cannot be the name of an image", name)
	}
	return nil
}

// NoteBlob remembers that an image has a blob: it was uploaded, mounted, or
// asked for by somebody who may push. For ImageGrace from then on it stays
// without a manifest that names it. A blob that is gone meanwhile is NotFound.
// One for which the project has no room is TooLarge, and the image's no more.
func (f *Forge) NoteBlob(ctx context.Context, project tidelock.Project, image string, blob tidelock.Part) (err error) {
	if err := checkImageName(image); err != nil {
		return err
	}
	now := f.now()
	seen, err := f.blobSeen(ctx, project, image, blob.Digest)
	if err != nil || now.Sub(seen) < f.imageGrace/4 {
		return err
	}

	name := registry.Repo(project.ID, image)
	defer f.images.lock(name)()
	if blob.Size, err = f.registry.StatBlob(ctx, name, blob.Digest); err != nil {
		return err
	}
	// Others may have brought it, and taken room for it, while this one waited.
	if seen, err = f.blobSeen(ctx, project, image, blob.Digest); err != nil {
		return err
	}
	if seen.IsZero() {
		recorded, full := f.takeRoom(ctx, project, []tidelock.Part{blob})
		if tidelock.KindOf(full) == tidelock.TooLarge {
			return errors.Join(full, f.registry.RemoveBlob(context.WithoutCancel(ctx), name, blob.Digest))
		}
		if full != nil {
			return full
		}
		defer func() { recorded(err == nil) }()
	}
	err = f.store.NoteBlob(ctx, tidelock.Image{Project: project.ID, Name: image}, blob, now.UTC())
	if err != nil {
		return fmt.Errorf("note blob %s of project %d: %w", blob.Digest, project.ID, err)
	}
	return nil
}

// blobSeen is when NoteBlob last told of a blob of an image, zero when it never
// did.
func (f *Forge) blobSeen(ctx context.Context, project tidelock.Project, image string, digest tidelock.Digest) (time.Time, error) {
	var seen time.Time
	i, err := f.store.ImageByName(ctx, project.ID, image)
	if err == nil {
		seen, err = f.store.BlobSeen(ctx, i.ID, digest)
	}
	if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
		return time.Time{}, fmt.Errorf("look for blob %s: %w", digest, err)
	}
	return seen, nil
}

// imageOf finds an image of a project for somebody who may do an action there.
func (f *Forge) imageOf(ctx context.Context, p Principal, project tidelock.Project, name string, a Action) (tidelock.Image, error) {
	if err := f.Allow(ctx, p, a, OnProject(project)); err != nil {
		return tidelock.Image{}, err
	}
	image, err := f.store.ImageByName(ctx, project.ID, name)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Image{}, errNoImage()
	}
	if err != nil {
		return tidelock.Image{}, fmt.Errorf("read image %q of project %d: %w", name, project.ID, err)
	}
	return image, nil
}

// imageIn finds an image of a project by its id.
func (f *Forge) imageIn(ctx context.Context, project tidelock.Project, id tidelock.ImageID) (tidelock.Image, error) {
	image, err := f.store.Image(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound || err == nil && image.Project != project.ID {
		return tidelock.Image{}, errNoImage()
	}
	if err != nil {
		return tidelock.Image{}, fmt.Errorf("read image %d: %w", id, err)
	}
	return image, nil
}

// ImageTags lists the tags of an image after a name, in order of name; limit 0
// is all.
func (f *Forge) ImageTags(ctx context.Context, p Principal, project tidelock.Project, image, after string, limit int) ([]tidelock.Tag, error) {
	i, err := f.imageOf(ctx, p, project, image, PullImage)
	if err != nil {
		return nil, err
	}
	return f.store.Tags(ctx, i.ID, after, limit)
}

// Referrers lists up to limit artifacts that are attached to another one, after
// a digest and in order of digest; of one type, unless that is empty. Their
// parts are left out.
func (f *Forge) Referrers(ctx context.Context, p Principal, project tidelock.Project, image string, subject tidelock.Digest, artifactType string, after tidelock.Digest, limit int) ([]tidelock.Artifact, error) {
	i, err := f.imageOf(ctx, p, project, image, PullImage)
	if err != nil {
		return nil, err
	}
	return f.store.Referrers(ctx, tidelock.ArtifactFilter{Image: i.ID, Subject: subject, Type: artifactType}, after, limit)
}
