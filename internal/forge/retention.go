package forge

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

// A TagFate is what a retention does with a tag, and why.
type TagFate struct {
	Image  tidelock.Image
	Tag    tidelock.Tag
	Remove bool
	Why    string
}

// ApplyRetention removes the tags of a project's images that its retention
// lets go, be it enabled or not; with dry it only says which. What the tags
// pointed at is collected later.
func (f *Forge) ApplyRetention(ctx context.Context, p Principal, project tidelock.Project, dry bool) ([]TagFate, error) {
	if err := f.Allow(ctx, p, ManageImages, OnProject(project)); err != nil {
		return nil, err
	}
	settings, err := f.imageSettings(ctx, project.ID)
	if err != nil {
		return nil, err
	}
	user, token := p.ids()
	return f.retainProject(ctx, project.ID, settings.Retention, tidelock.Push{By: user, Token: token}, dry)
}

func (f *Forge) retainProject(ctx context.Context, project tidelock.ProjectID, r tidelock.Retention, push tidelock.Push, dry bool) ([]TagFate, error) {
	images, _, err := f.store.Images(ctx, tidelock.ImageFilter{Project: project}, tidelock.Page{})
	if err != nil {
		return nil, fmt.Errorf("list the images of project %d: %w", project, err)
	}
	fates := []TagFate{}
	for _, i := range images {
		of, err := f.retainImage(ctx, i, r, push, dry)
		fates = append(fates, of...)
		if err != nil {
			return fates, err
		}
	}
	return fates, nil
}

// RemoveTags removes tags of one image, as a retention would that is made for
// it alone; with dry it only says which.
func (f *Forge) RemoveTags(ctx context.Context, p Principal, project tidelock.Project, image tidelock.ImageID, r tidelock.Retention, dry bool) ([]TagFate, error) {
	if err := f.Allow(ctx, p, ManageImages, OnProject(project)); err != nil {
		return nil, err
	}
	i, err := f.imageIn(ctx, project, image)
	if err != nil {
		return nil, err
	}
	r.Every = DefaultRetention.Every // it has none, and needs none
	user, token := p.ids()
	return f.retainImage(ctx, i, r, tidelock.Push{By: user, Token: token}, dry)
}

// retainImage removes tags of one image.
func (f *Forge) retainImage(ctx context.Context, i tidelock.Image, r tidelock.Retention, push tidelock.Push, dry bool) ([]TagFate, error) {
	fates, err := f.planRetention(ctx, i, r)
	if err != nil || dry {
		return fates, err
	}
	push.Project, push.Trace = i.Project, traceparent(ctx)
	for n, fate := range fates {
		if !fate.Remove {
			continue
		}
		push.At = f.now().UTC()
		switch err := f.retainTag(ctx, i, fate.Tag, push); {
		case tidelock.KindOf(err) == tidelock.NotFound, tidelock.KindOf(err) == tidelock.Conflict:
			fates[n].Remove, fates[n].Why = false, "moved meanwhile"
		case err != nil:
			return fates[:n], err
		}
	}
	return fates, nil
}

// retainTag removes a tag if it has not moved, and no rule came to protect it,
// since that was decided.
func (f *Forge) retainTag(ctx context.Context, i tidelock.Image, tag tidelock.Tag, push tidelock.Push) error {
	defer f.images.lock(registry.Repo(i.Project, i.Name))()
	err := f.store.Atomically(ctx, func(ctx context.Context) error {
		if _, err := f.store.MakeImage(ctx, i); err != nil {
			return fmt.Errorf("read image %d: %w", i.ID, err)
		}
		now, err := f.store.Tag(ctx, i.ID, tag.Name)
		if err != nil {
			return err
		}
		rules, err := f.tagRules(ctx, i.Project)
		if err != nil {
			return err
		}
		if now.Push != tag.Push || rules.keeps(tag.Name) {
			return tidelock.Errorf(tidelock.Conflict, "the tag has moved")
		}
		push, err = f.untag(ctx, now, push)
		return err
	})
	if err == nil {
		f.announce(push)
	}
	return err
}

// attachedTag is how signatures and the like are attached by clients that do
// not use a subject: to the artifact with that hash.
var attachedTag = regexp.MustCompile(`^sha256-([0-9a-f]{64})(\.[a-z0-9]+)?$`)

// attachedTo is the digest that a tag says it belongs to, if it says so.
func attachedTo(tag string) (tidelock.Digest, bool) {
	match := attachedTag.FindStringSubmatch(tag)
	if match == nil {
		return "", false
	}
	return tidelock.Digest("sha256:" + match[1]), true
}

// planRetention decides about every tag of an image, newest first.
func (f *Forge) planRetention(ctx context.Context, i tidelock.Image, r tidelock.Retention) ([]TagFate, error) {
	if err := checkRetention(r); err != nil {
		return nil, err
	}
	remove, err := wholeName(r.Remove)
	if err != nil {
		return nil, err
	}
	keep, err := wholeName(r.Keep)
	if err != nil {
		return nil, err
	}
	tags, err := f.store.Tags(ctx, i.ID, "", 0)
	if err != nil {
		return nil, fmt.Errorf("list the tags of image %d: %w", i.ID, err)
	}
	rules, err := f.tagRules(ctx, i.Project)
	if err != nil {
		return nil, err
	}
	used, err := f.usedDigests(ctx, i.Project)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(tags, func(a, b tidelock.Tag) int {
		return cmp.Or(b.MovedAt.Compare(a.MovedAt), cmp.Compare(b.Push, a.Push))
	})
	oldest := f.now().Add(-r.OlderThan)
	fates := make([]TagFate, 0, len(tags))
	left := r.KeepNewest
	for _, tag := range tags {
		fate := TagFate{Image: i, Tag: tag}
		subject, attached := attachedTo(tag.Name)
		switch {
		case tag.Name == "latest":
			fate.Why = "latest always stays"
		case attached:
			fate.Why = fmt.Sprintf("goes with %s", subject)
		case remove == nil || !remove.MatchString(tag.Name):
			fate.Why = "does not match what is removed"
		case keep != nil && keep.MatchString(tag.Name):
			fate.Why = "matches what is kept"
		case rules.keeps(tag.Name):
			fate.Why = "protected by a tag rule"
		case left > 0:
			left--
			fate.Why = fmt.Sprintf("among the newest %d", r.KeepNewest)
		case r.OlderThan > 0 && tag.MovedAt.After(oldest):
			fate.Why = fmt.Sprintf("moved less than %s ago", r.OlderThan)
		case used[tag.Digest]:
			fate.Why = "a cluster uses it"
		default:
			fate.Remove, fate.Why = true, "past the newest, and old enough"
		}
		fates = append(fates, fate)
	}
	return fates, nil
}

// wholeName compiles a pattern of whole names, nil for "".
func wholeName(pattern string) (*regexp.Regexp, error) {
	if pattern == "" {
		return nil, nil
	}
	// What is an expression alone need not be one in brackets: \Q quotes to the
	// end, brackets included.
	if _, err := regexp.Compile(pattern); err != nil {
		return nil, err
	}
	return regexp.Compile(`^(?:` + pattern + `)$`)
}

// usedDigests are the artifacts of a project that a cluster has, or is about
// to have.
func (f *Forge) usedDigests(ctx context.Context, project tidelock.ProjectID) (map[tidelock.Digest]bool, error) {
	digests, err := f.store.UsedDigests(ctx, project)
	if err != nil {
		return nil, fmt.Errorf("list what clusters use of project %d: %w", project, err)
	}
	used := make(map[tidelock.Digest]bool, len(digests))
	for _, d := range digests {
		used[d] = true
	}
	return used, nil
}

// retainDue applies the retentions that are due.
func (f *Forge) retainDue(ctx context.Context) {
	due, err := f.store.DueRetentions(ctx, f.now(), 100)
	if err != nil {
		if ctx.Err() == nil {
			f.log.WarnContext(ctx, "due retentions not read", "error", err)
		}
		return
	}
	for _, settings := range due {
		fates, err := f.retainProject(ctx, settings.Project, settings.Retention, tidelock.Push{}, false)
		removed := 0
		for _, fate := range fates {
			if fate.Remove {
				removed++
			}
		}
		f.metrics.retained.Add(float64(removed))
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			f.log.WarnContext(ctx, "retention not applied", "project", settings.Project, "removed", removed, "error", err)
		case removed > 0:
			f.log.InfoContext(ctx, "retention applied", "project", settings.Project, "removed", removed)
		}
		next := f.now().UTC().Add(settings.Retention.Every)
		if err := f.store.RetentionDone(ctx, settings.Project, next); err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			f.log.WarnContext(ctx, "retention not put off", "project", settings.Project, "error", err)
		}
	}
}
