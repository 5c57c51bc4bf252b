package forge

import (
	"context"
	"fmt"
	"slices"

	"tidelock.dev"
	"tidelock.dev/internal/signing"
)

// An ImageView is an image and its tags, those that moved last first. Tags
// that hold the signatures of artifacts are no part of it.
type ImageView struct {
	tidelock.Image
	Tags []tidelock.Tag
}

// ViewImages lists the images of a project that hold something, oldest first,
// to those who may read them.
func (f *Forge) ViewImages(ctx context.Context, p Principal, project tidelock.Project, page tidelock.Page) ([]ImageView, int, error) {
	if err := f.Allow(ctx, p, ReadImages, OnProject(project)); err != nil {
		return nil, 0, err
	}
	images, total, err := f.store.Images(ctx, tidelock.ImageFilter{Project: project.ID}, page)
	if err != nil {
		return nil, 0, fmt.Errorf("list the images of project %d: %w", project.ID, err)
	}
	views := make([]ImageView, len(images))
	for n, i := range images {
		if views[n], err = f.viewImage(ctx, i); err != nil {
			return nil, 0, err
		}
	}
	return views, total, nil
}

// ViewImage reads an image of a project by its name.
func (f *Forge) ViewImage(ctx context.Context, p Principal, project tidelock.Project, name string) (ImageView, error) {
	i, err := f.imageOf(ctx, p, project, name, ReadImages)
	if err != nil {
		return ImageView{}, err
	}
	return f.viewImage(ctx, i)
}

func (f *Forge) viewImage(ctx context.Context, i tidelock.Image) (ImageView, error) {
	tags, err := f.store.Tags(ctx, i.ID, "", 0)
	if err != nil {
		return ImageView{}, fmt.Errorf("list the tags of image %d: %w", i.ID, err)
	}
	tags = slices.DeleteFunc(tags, func(t tidelock.Tag) bool {
		_, signs := signing.SubjectOf(t.Name)
		return signs
	})
	slices.SortStableFunc(tags, func(a, b tidelock.Tag) int { return b.MovedAt.Compare(a.MovedAt) })
	return ImageView{i, tags}, nil
}
