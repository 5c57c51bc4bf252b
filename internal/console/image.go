package console

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// artifactsShown is how many artifacts of an image one page shows.
const artifactsShown = 20

// imagePage is one image: what its tags point at, and what is attached to that.
type imagePage struct {
	frame
	Now time.Time

	Project     string
	ProjectLink string
	Path        string
	Address     string // as clients write it

	Tags      int
	Artifacts []artifactRow
	Page      int    // of those with a tag
	Newer     string // links to the pages beside this one; "" for none
	Older     string
}

type artifactRow struct {
	Digest   string
	Tags     []string
	Kind     string // in words
	Type     string // as the manifest has it
	Commit   string // "" when unknown
	Size     int64
	At       time.Time // when it was pushed
	By       string    // "" when not known or not to be shown
	Signed   bool      // by this forge
	Held     string    // why it is not announced; "" for nothing
	Attached []attachedRow
}

type attachedRow struct {
	Digest string
	Kind   string
	Type   string
	Size   int64
	At     time.Time
}

func (c *Console) image(w http.ResponseWriter, r *http.Request, viewer forge.Principal, project tidelock.Project, name string) error {
	view, err := c.forge.ViewImage(r.Context(), viewer, project, name)
	switch kind := tidelock.KindOf(err); {
	case kind == tidelock.NotFound || kind == tidelock.Denied || kind == tidelock.Unauthenticated:
		return errNoPage()
	case err != nil:
		return fmt.Errorf("read image %q of project %d: %w", name, project.ID, err)
	}
	path := view.Path(project)
	page := imagePage{
		frame: c.frame(path, viewer), Now: c.now(),
		Project: project.FullPath, ProjectLink: c.projectLink(project), Path: path, Address: c.host + "/" + path,
		Tags: len(view.Tags), Page: 1,
	}
	if n, err := strconv.Atoi(r.URL.Query().Get("page")); err == nil && n > 0 {
		page.Page = n
	}
	digests := taggedBy(view.Tags)
	shown := cutPage(digests, page.Page, artifactsShown)
	link := c.imageLink(project, view.Image)
	if page.Page > 1 {
		page.Newer = fmt.Sprintf("%s?page=%d", link, page.Page-1)
	}
	if page.Page*artifactsShown < len(digests) {
		page.Older = fmt.Sprintf("%s?page=%d", link, page.Page+1)
	}
	look := c.look(viewer)
	for _, digest := range shown {
		row, err := look.artifact(r.Context(), project, view.Image, digest)
		switch {
		case tidelock.KindOf(err) == tidelock.NotFound:
			continue // removed meanwhile
		case err != nil:
			return err
		}
		page.Artifacts = append(page.Artifacts, row)
	}
	return c.render(w, http.StatusOK, "image", page)
}

// taggedBy lists what tags point at, each once.
func taggedBy(tags []tidelock.Tag) (digests []tidelock.Digest) {
	seen := map[tidelock.Digest]bool{}
	for _, t := range tags {
		if !seen[t.Digest] {
			seen[t.Digest] = true
			digests = append(digests, t.Digest)
		}
	}
	return digests
}

func cutPage[E any](list []E, page, size int) []E {
	if page-1 > len(list)/size {
		return nil
	}
	from := (page - 1) * size
	return list[min(from, len(list)):min(from+size, len(list))]
}

func (l *look) artifact(ctx context.Context, project tidelock.Project, image tidelock.Image, digest tidelock.Digest) (artifactRow, error) {
	view, err := l.console.forge.ViewArtifact(ctx, l.viewer, project, image.Name, string(digest))
	if err != nil {
		return artifactRow{}, fmt.Errorf("read artifact %s of image %d: %w", digest, image.ID, err)
	}
	by, err := l.username(ctx, view.By)
	if err != nil {
		return artifactRow{}, err
	}
	row := artifactRow{
		Digest: string(digest), Tags: view.Tags, Kind: kindOf(view.Artifact), Type: view.Type, Commit: string(view.Commit),
		Size: view.TotalSize(), At: view.PushedAt, By: by, Signed: len(view.Signers) > 0,
	}
	if view.Held != nil {
		row.Held = view.Held.Error()
	}
	for _, a := range view.Attached {
		row.Attached = append(row.Attached, attachedRow{
			Digest: string(a.Digest), Kind: kindOf(a), Type: a.Type, Size: a.TotalSize(), At: a.PushedAt,
		})
	}
	return row, nil
}

// kindOf says in words what an artifact is, by its type.
func kindOf(a tidelock.Artifact) string {
	contains := func(parts ...string) bool {
		return slices.ContainsFunc(parts, func(part string) bool { return strings.Contains(a.Type, part) })
	}
	switch {
	case a.Type == tidelock.MediaTypeFluxConfig:
		return "manifests"
	case contains("vnd.cncf.helm.config"):
		return "chart"
	case contains("spdx", "cyclonedx", "syft"):
		return "SBOM"
	case contains("cosign", "sigstore", "cncf.notary", "pgp-signature"):
		return "signature"
	case contains("sarif", "vuln", "report"):
		return "report"
	case contains("in-toto", "slsa", "provenance"):
		return "provenance"
	case contains("oci.image.config", "docker.container.image"):
		return "container image"
	case a.Type == "" && len(a.Parts) > 0 && a.Parts[0].Manifest:
		return "index"
	}
	return "artifact"
}
