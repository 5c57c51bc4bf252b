package console

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// imagesShown is how many images of a project one page shows.
const imagesShown = 50

// projectPage is one project: its images and its newest pushes.
type projectPage struct {
	frame
	Now time.Time

	Path        string
	Description string
	Visibility  tidelock.Visibility
	Archived    bool

	ImagesHidden bool // from this viewer
	Images       []imageRow
	MoreImages   int

	PushesHidden bool
	Pushes       pushTable
}

type imageRow struct {
	Path    string
	Link    string
	Tags    int
	Newest  string // the tag that moved last; "" without any
	MovedAt time.Time
}

// imagesBelow stands between the path of a project and the name of an image.
const imagesBelow = "/-/images"

func (c *Console) projectLink(p tidelock.Project) string {
	return c.root + "/" + escapePath(p.FullPath)
}

func (c *Console) imageLink(p tidelock.Project, i tidelock.Image) string {
	link := c.projectLink(p) + imagesBelow
	if i.Name != "" {
		link += "/" + escapePath(i.Name)
	}
	return link
}

func escapePath(path string) string { return (&url.URL{Path: path}).EscapedPath() }

// below answers for what lies under the path of a project.
func (c *Console) below(w http.ResponseWriter, r *http.Request, viewer forge.Principal) error {
	path := strings.TrimSuffix(r.PathValue("path"), "/")
	path, commit, ofCommit := strings.Cut(path, commitBelow)
	path, pipeline, ofPipeline := strings.Cut(path, pipelinesBelow)
	path, image, ofImage := strings.Cut(path, imagesBelow)
	if image != "" && image[0] != '/' || ofImage && (ofCommit || ofPipeline) || ofCommit && ofPipeline || !strings.Contains(path, "/") {
		return errNoPage()
	}
	image = strings.TrimPrefix(image, "/")
	project, err := c.forge.Project(r.Context(), viewer, path)
	switch kind := tidelock.KindOf(err); {
	case kind == tidelock.NotFound || kind == tidelock.Denied || kind == tidelock.Unauthenticated:
		return errNoPage() // which of them is nobody's business
	case err != nil:
		return fmt.Errorf("read project %q: %w", path, err)
	case !strings.EqualFold(project.FullPath, path): // it has moved
		to := c.projectLink(project)
		switch {
		case ofImage:
			to = c.imageLink(project, tidelock.Image{Name: image})
		case ofCommit:
			to += commitBelow + escapePath(commit)
		case ofPipeline:
			to += pipelinesBelow + escapePath(pipeline)
		}
		http.Redirect(w, r, to, http.StatusFound)
		return nil
	case ofImage:
		return c.image(w, r, viewer, project, image)
	case ofCommit:
		return c.commit(w, r, viewer, project, commit)
	case ofPipeline:
		return c.pipeline(w, r, viewer, project, pipeline)
	}
	return c.project(w, r, viewer, project)
}

func (c *Console) project(w http.ResponseWriter, r *http.Request, viewer forge.Principal, project tidelock.Project) error {
	page := projectPage{
		frame: c.frame(project.FullPath, viewer), Now: c.now(),
		Path: project.FullPath, Description: project.Description, Visibility: project.Visibility, Archived: project.Archived,
	}
	look := c.look(viewer)
	look.projects[project.ID] = &project
	if err := look.listImages(r.Context(), project, &page); err != nil {
		return err
	}
	if err := look.listPushes(r.Context(), project, &page); err != nil {
		return err
	}
	return c.render(w, http.StatusOK, "project", page)
}

func (l *look) listImages(ctx context.Context, project tidelock.Project, page *projectPage) error {
	images, total, err := l.console.forge.ViewImages(ctx, l.viewer, project, tidelock.Page{Number: 1, PerPage: imagesShown})
	switch kind := tidelock.KindOf(err); {
	case kind == tidelock.NotFound || kind == tidelock.Denied || kind == tidelock.Unauthenticated:
		page.ImagesHidden = true
		return nil
	case err != nil:
		return fmt.Errorf("list the images of project %d: %w", project.ID, err)
	}
	for _, i := range images {
		row := imageRow{Path: i.Path(project), Link: l.console.imageLink(project, i.Image), Tags: len(i.Tags), MovedAt: i.CreatedAt}
		if len(i.Tags) > 0 {
			row.Newest, row.MovedAt = i.Tags[0].Name, i.Tags[0].MovedAt
		}
		page.Images = append(page.Images, row)
	}
	page.MoreImages = total - len(images)
	return nil
}

func (l *look) listPushes(ctx context.Context, project tidelock.Project, page *projectPage) error {
	pushes, _, err := l.console.forge.Pushes(ctx, l.viewer, project, tidelock.Page{Number: 1, PerPage: pushesShown})
	switch kind := tidelock.KindOf(err); {
	case kind == tidelock.NotFound || kind == tidelock.Denied || kind == tidelock.Unauthenticated:
		page.PushesHidden = true
		return nil
	case err != nil:
		return fmt.Errorf("list the pushes of project %d: %w", project.ID, err)
	}
	page.Pushes, err = l.pushes(ctx, pushes)
	page.Pushes.OfOneProject = true
	return err
}
