package forge

import (
	"context"
	"fmt"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

// Images lists the images of a project that hold something, by id.
func (f *Forge) Images(ctx context.Context, p Principal, project tidelock.Project, page tidelock.Page) ([]tidelock.Image, int, error) {
	if err := f.Allow(ctx, p, ReadImages, OnProject(project)); err != nil {
		return nil, 0, err
	}
	return f.store.Images(ctx, tidelock.ImageFilter{Project: project.ID}, page)
}

// GroupImages lists the images of all projects in a group, and below it, whose
// images the caller may read.
func (f *Forge) GroupImages(ctx context.Context, p Principal, group tidelock.Namespace, page tidelock.Page) ([]tidelock.Image, int, error) {
	if err := f.Allow(ctx, p, ReadGroup, OnGroup(group)); err != nil {
		return nil, 0, err
	}
	return f.store.Images(ctx, tidelock.ImageFilter{Below: group.ID, Viewer: p.Viewer(), MinLevel: rules[ReadImages].member}, page)
}

// ImageFor reads an image for one action on its project, which it returns
// too.
func (f *Forge) ImageFor(ctx context.Context, p Principal, id tidelock.ImageID, a Action) (tidelock.Image, tidelock.Project, error) {
	image, err := f.store.Image(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Image{}, tidelock.Project{}, errNoImage()
	}
	if err != nil {
		return tidelock.Image{}, tidelock.Project{}, fmt.Errorf("read image %d: %w", id, err)
	}
	project, err := f.store.Project(ctx, image.Project)
	if err == nil {
		err = f.Allow(ctx, p, a, OnProject(project))
	}
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
		return tidelock.Image{}, tidelock.Project{}, errNoImage()
	case err != nil:
		return tidelock.Image{}, tidelock.Project{}, err
	}
	return image, project, nil
}

// ImageIn reads an image of a project by its id.
func (f *Forge) ImageIn(ctx context.Context, p Principal, project tidelock.Project, id tidelock.ImageID, a Action) (tidelock.Image, error) {
	if err := f.Allow(ctx, p, a, OnProject(project)); err != nil {
		return tidelock.Image{}, err
	}
	return f.imageIn(ctx, project, id)
}

// A TaggedArtifact is a tag and what it points at.
type TaggedArtifact struct {
	tidelock.Tag
	Artifact tidelock.Artifact
}

// TagOfImage reads a tag with its artifact, for those who may read images.
func (f *Forge) TagOfImage(ctx context.Context, p Principal, project tidelock.Project, id tidelock.ImageID, name string) (TaggedArtifact, error) {
	i, err := f.ImageIn(ctx, p, project, id, ReadImages)
	if err != nil {
		return TaggedArtifact{}, err
	}
	tag, err := f.store.Tag(ctx, i.ID, name)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return TaggedArtifact{}, errNoManifest(name)
	}
	if err != nil {
		return TaggedArtifact{}, fmt.Errorf("read tag %q of image %d: %w", name, id, err)
	}
	a, err := f.artifact(ctx, i, string(tag.Digest))
	return TaggedArtifact{tag, a}, err
}

// TagsOfImage lists the tags of an image by name, for those who may read
// images.
func (f *Forge) TagsOfImage(ctx context.Context, p Principal, project tidelock.Project, id tidelock.ImageID) ([]tidelock.Tag, error) {
	i, err := f.ImageIn(ctx, p, project, id, ReadImages)
	if err != nil {
		return nil, err
	}
	return f.store.Tags(ctx, i.ID, "", 0)
}

// RemoveImage removes an image with all that it holds, unless a rule keeps one
// of its tags. Its content is collected later.
func (f *Forge) RemoveImage(ctx context.Context, p Principal, project tidelock.Project, id tidelock.ImageID) error {
	i, err := f.ImageIn(ctx, p, project, id, ManageImages)
	if err != nil {
		return err
	}
	level, err := f.tagLevel(ctx, p, project)
	if err != nil {
		return err
	}
	push := f.removal(ctx, p, project)

	defer f.images.lock(registry.Repo(i.Project, i.Name))()
	var pushes []tidelock.Push
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		pushes = nil
		if _, err := f.store.MakeImage(ctx, i); err != nil {
			return change{}, fmt.Errorf("read image %d: %w", id, err)
		}
		tags, err := f.store.Tags(ctx, id, "", 0)
		if err != nil {
			return change{}, fmt.Errorf("list the tags of image %d: %w", id, err)
		}
		rules, err := f.tagRules(ctx, project.ID)
		if err != nil {
			return change{}, err
		}
		for _, tag := range tags {
			if err := rules.mayDelete(tag.Name, level); err != nil {
				return change{}, err
			}
			gone, err := f.untag(ctx, tag, push)
			if err != nil {
				return change{}, err
			}
			pushes = append(pushes, gone)
		}
		return change{act: "image deleted", on: OnProject(project), subject: i.Path(project)}, f.store.RemoveImage(ctx, id)
	})
	if err != nil {
		return err
	}
	for _, p := range pushes {
		f.announce(p)
	}
	f.freeRoom(project.ID)
	return nil
}

// CountTags counts the tags of an image that the caller was shown.
func (f *Forge) CountTags(ctx context.Context, id tidelock.ImageID) (int, error) {
	return f.store.CountTags(ctx, id)
}
