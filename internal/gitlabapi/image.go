package gitlabapi

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// imageRoutes are GitLab's for the registry, which calls an image a
// repository, and below them ours.
func (a *API) imageRoutes() []route {
	return []route{
		{get, "/projects/:id/registry/repositories", a.listImages},
		{del, "/projects/:id/registry/repositories/:repository_id", a.deleteImage},
		{get, "/projects/:id/registry/repositories/:repository_id/tags", a.listImageTags},
		{del, "/projects/:id/registry/repositories/:repository_id/tags", a.deleteImageTags},
		{get, "/projects/:id/registry/repositories/:repository_id/tags/:tag_name", a.showImageTag},
		{del, "/projects/:id/registry/repositories/:repository_id/tags/:tag_name", a.deleteImageTag},
		{get, "/groups/:id/registry/repositories", a.listGroupImages},
		{get, "/registry/repositories/:repository_id", a.showImage},

		{get, "/projects/:id/registry/protection/tag/rules", a.listTagRules},
		{post, "/projects/:id/registry/protection/tag/rules", a.createTagRule},
		{patch, "/projects/:id/registry/protection/tag/rules/:rule_id", a.editTagRule},
		{del, "/projects/:id/registry/protection/tag/rules/:rule_id", a.deleteTagRule},

		{get, "/projects/:id/registry/usage", a.showImageUsage},
		{put, "/projects/:id/registry/quota", a.setImageQuota},
		{post, "/projects/:id/registry/retention", a.applyRetention},
		{post, "/projects/:id/registry/collect", a.collectProject},
		{post, "/registry/collect", a.collectImages},
	}
}

type imageShape struct {
	ID             tidelock.ImageID   `json:"id"`
	Name           string             `json:"name"`
	Path           string             `json:"path"`
	ProjectID      tidelock.ProjectID `json:"project_id"`
	Location       string             `json:"location"`
	CreatedAt      stamp              `json:"created_at"`
	CleanupStarted *stamp             `json:"cleanup_policy_started_at"`
	Status         *string            `json:"status"`
	TagsCount      *int               `json:"tags_count,omitempty"`
	Tags           *[]imageTagShape   `json:"tags,omitempty"`
}

type imageTagShape struct {
	Name     string `json:"name"`
	Path     string `json:"path"`
	Location string `json:"location"`
}

// An imageTagDetail has a revision, which is the hash of the artifact's config.
type imageTagDetail struct {
	imageTagShape
	Revision      string          `json:"revision"`
	ShortRevision string          `json:"short_revision"`
	Digest        tidelock.Digest `json:"digest"`
	CreatedAt     stamp           `json:"created_at"`
	TotalSize     int64           `json:"total_size"`
}

// imageWants is which parts of an image are asked for.
type imageWants struct{ tags, count bool }

func (p *params) imageWants() imageWants { return imageWants{p.flag("tags"), p.flag("tags_count")} }

func (a *API) imageShape(r *request, project tidelock.Project, i tidelock.Image, wants imageWants) (imageShape, error) {
	path := i.Path(project)
	shape := imageShape{
		ID: i.ID, Name: i.Name, Path: path, ProjectID: project.ID, Location: a.url.Host + "/" + path, CreatedAt: stamp(i.CreatedAt),
	}
	if wants.count {
		n, err := a.forge.CountTags(r.ctx(), i.ID)
		if err != nil {
			return shape, err
		}
		shape.TagsCount = &n
	}
	if wants.tags {
		tags, err := a.forge.TagsOfImage(r.ctx(), r.by, project, i.ID)
		if err != nil {
			return shape, err
		}
		shape.Tags = new(list(each(tags, a.imageTagShapes(path))))
	}
	return shape, nil
}

// imageTagShapes shows tags of the image at a path.
func (a *API) imageTagShapes(path string) func(tidelock.Tag) imageTagShape {
	return func(t tidelock.Tag) imageTagShape {
		return imageTagShape{Name: t.Name, Path: path + ":" + t.Name, Location: a.url.Host + "/" + path + ":" + t.Name}
	}
}

func (a *API) listImages(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadImages)
	if err != nil {
		return err
	}
	wants, page := r.imageWants(), r.page()
	if err := r.err(); err != nil {
		return err
	}
	images, total, err := a.forge.Images(r.ctx(), r.by, project, page)
	if err != nil {
		return err
	}
	shapes := make([]imageShape, len(images))
	for n, i := range images {
		if shapes[n], err = a.imageShape(r, project, i, wants); err != nil {
			return err
		}
	}
	return writePage(a, w, r, page, shapes, total)
}

func (a *API) listGroupImages(w http.ResponseWriter, r *request) error {
	group, err := a.group(r, forge.ReadGroup)
	if err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	images, total, err := a.forge.GroupImages(r.ctx(), r.by, group, page)
	if err != nil {
		return err
	}
	shapes := make([]imageShape, len(images))
	projects := map[tidelock.ProjectID]tidelock.Project{}
	for n, i := range images {
		if _, ok := projects[i.Project]; !ok {
			if projects[i.Project], err = a.forge.ProjectByID(r.ctx(), i.Project); err != nil {
				return err
			}
		}
		if shapes[n], err = a.imageShape(r, projects[i.Project], i, imageWants{count: true}); err != nil {
			return err
		}
	}
	return writePage(a, w, r, page, shapes, total)
}

func (a *API) showImage(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.Browse, forge.OnForge); err != nil {
		return err
	}
	n, err := id[tidelock.ImageID](r, "repository_id")
	if err != nil {
		return err
	}
	image, project, err := a.forge.ImageFor(r.ctx(), r.by, n, forge.ReadImages)
	if err != nil {
		return missing("ContainerRepository", err)
	}
	wants := r.imageWants()
	if err := r.err(); err != nil {
		return err
	}
	shape, err := a.imageShape(r, project, image, wants)
	if err != nil {
		return err
	}
	return ok(w, shape)
}

func (a *API) deleteImage(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.ImageID](a, r, forge.ManageImages, "repository_id")
	if err != nil {
		return err
	}
	if err := a.forge.RemoveImage(r.ctx(), r.by, project, n); err != nil {
		return missing("ContainerRepository", err)
	}
	return writeJSON(w, http.StatusAccepted, http.StatusAccepted)
}

// image is the one that a route names, for one action on its project.
func (a *API) image(r *request, action forge.Action) (tidelock.Project, tidelock.Image, error) {
	project, n, err := inProject[tidelock.ImageID](a, r, action, "repository_id")
	if err != nil {
		return project, tidelock.Image{}, err
	}
	image, err := a.forge.ImageIn(r.ctx(), r.by, project, n, action)
	return project, image, missing("ContainerRepository", err)
}

func (a *API) listImageTags(w http.ResponseWriter, r *request) error {
	project, image, err := a.image(r, forge.ReadImages)
	if err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	tags, err := a.forge.TagsOfImage(r.ctx(), r.by, project, image.ID)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(cut(page, tags), a.imageTagShapes(image.Path(project))), len(tags))
}

func (a *API) showImageTag(w http.ResponseWriter, r *request) error {
	project, image, err := a.image(r, forge.ReadImages)
	if err != nil {
		return err
	}
	tag, err := a.forge.TagOfImage(r.ctx(), r.by, project, image.ID, r.arg("tag_name"))
	if err != nil {
		return missing("Tag", err)
	}
	detail := imageTagDetail{
		imageTagShape: a.imageTagShapes(image.Path(project))(tag.Tag), Digest: tag.Digest,
		CreatedAt: stamp(tag.MovedAt), TotalSize: tag.Artifact.TotalSize(),
	}
	if len(tag.Artifact.Parts) > 0 && !tag.Artifact.Parts[0].Manifest {
		_, detail.Revision, _ = strings.Cut(string(tag.Artifact.Parts[0].Digest), ":")
		detail.ShortRevision = detail.Revision[:9]
	}
	return ok(w, detail)
}

func (a *API) deleteImageTag(w http.ResponseWriter, r *request) error {
	project, image, err := a.image(r, forge.DeleteTag)
	if err != nil {
		return err
	}
	name := r.arg("tag_name")
	if strings.Contains(name, ":") {
		return errMissing("Tag")
	}
	if err := a.forge.DeleteReference(r.ctx(), r.by, project, image.Name, name); err != nil {
		return missing("Tag", err)
	}
	return ok(w, http.StatusOK)
}

func (a *API) deleteImageTags(w http.ResponseWriter, r *request) error {
	project, image, err := a.image(r, forge.ManageImages)
	if err != nil {
		return err
	}
	r.needOneOf("name_regex", "name_regex_delete")
	retention := tidelock.Retention{
		Remove: r.text("name_regex_delete"), Keep: r.text("name_regex_keep"),
		KeepNewest: int(r.number("keep_n")), OlderThan: r.days("older_than"),
	}
	if retention.Remove == "" {
		retention.Remove = r.text("name_regex")
	}
	dry := r.flag("dry_run")
	if err := r.err(); err != nil {
		return err
	}
	fates, err := a.forge.RemoveTags(r.ctx(), r.by, project, image.ID, retention, dry)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusAccepted, each(fates, fateShapes(project)))
}

// A fateShape is what a retention does with a tag.
type fateShape struct {
	Image   string          `json:"image"`
	Tag     string          `json:"tag"`
	Digest  tidelock.Digest `json:"digest"`
	MovedAt stamp           `json:"moved_at"`
	Remove  bool            `json:"remove"`
	Reason  string          `json:"reason"`
}

func fateShapes(project tidelock.Project) func(forge.TagFate) fateShape {
	return func(f forge.TagFate) fateShape {
		return fateShape{f.Image.Path(project), f.Tag.Name, f.Tag.Digest, stamp(f.Tag.MovedAt), f.Remove, f.Why}
	}
}

// days reads a length of time such as 12h, 7d or 1month; a month has 30 days.
func (p *params) days(name string) time.Duration {
	text := p.text(name)
	for _, unit := range []struct {
		name string
		of   time.Duration
	}{{"month", 30 * 24 * time.Hour}, {"d", 24 * time.Hour}, {"h", time.Hour}} {
		number, ok := strings.CutSuffix(text, unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 32)
		if err != nil || n < 0 || n > 100*365*24 {
			break
		}
		return time.Duration(n) * unit.of
	}
	if text != "" {
		p.note(name, "is invalid")
	}
	return 0
}

// daysText writes what days reads.
func daysText(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d == 0:
		return ""
	case d == 30*day, d == 90*day:
		return strconv.Itoa(int(d/day)) + "d"
	case d%day == 0:
		return strconv.Itoa(int(d/day)) + "d"
	}
	return strconv.Itoa(int(d/time.Hour)) + "h"
}

// A tagRuleShape has no levels when it makes tags immutable.
type tagRuleShape struct {
	ID          int64              `json:"id"`
	ProjectID   tidelock.ProjectID `json:"project_id"`
	Pattern     string             `json:"tag_name_pattern"`
	PushLevel   *string            `json:"minimum_access_level_for_push"`
	DeleteLevel *string            `json:"minimum_access_level_for_delete"`
	Immutable   bool               `json:"immutable"`
}

func newTagRuleShape(t tidelock.TagRule) tagRuleShape {
	shape := tagRuleShape{ID: t.ID, ProjectID: t.Project, Pattern: t.Pattern, Immutable: t.Immutable()}
	if !shape.Immutable {
		shape.PushLevel, shape.DeleteLevel = new(t.PushLevel.String()), new(t.DeleteLevel.String())
	}
	return shape
}

// ruleLevel reads a role of a tag rule, by name; absent is nobody.
func (p *params) ruleLevel(name string) tidelock.AccessLevel {
	switch p.text(name) {
	case "":
		return tidelock.NoAccess
	case "maintainer":
		return tidelock.Maintainer
	case "owner", "admin":
		return tidelock.Owner
	}
	p.note(name, "does not have a valid value")
	return tidelock.NoAccess
}

func (a *API) listTagRules(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadTagRules)
	if err != nil {
		return err
	}
	rules, err := a.forge.TagRules(r.ctx(), r.by, project)
	if err != nil {
		return err
	}
	return ok(w, list(each(rules, newTagRuleShape)))
}

func (a *API) createTagRule(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ManageImages)
	if err != nil {
		return err
	}
	r.need("tag_name_pattern")
	rule := tidelock.TagRule{
		Pattern: r.text("tag_name_pattern"), PushLevel: r.ruleLevel("minimum_access_level_for_push"),
		DeleteLevel: r.ruleLevel("minimum_access_level_for_delete"),
	}
	if err := r.err(); err != nil {
		return err
	}
	made, err := a.forge.SaveTagRule(r.ctx(), r.by, project, rule)
	if err != nil {
		return err
	}
	return created(w, newTagRuleShape(made))
}

func (a *API) editTagRule(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[int64](a, r, forge.ManageImages, "rule_id")
	if err != nil {
		return err
	}
	rules, err := a.forge.TagRules(r.ctx(), r.by, project)
	if err != nil {
		return err
	}
	for _, rule := range rules {
		if rule.ID != n {
			continue
		}
		if r.has("tag_name_pattern") {
			rule.Pattern = r.text("tag_name_pattern")
		}
		if r.has("minimum_access_level_for_push") {
			rule.PushLevel = r.ruleLevel("minimum_access_level_for_push")
		}
		if r.has("minimum_access_level_for_delete") {
			rule.DeleteLevel = r.ruleLevel("minimum_access_level_for_delete")
		}
		if err := r.err(); err != nil {
			return err
		}
		saved, err := a.forge.SaveTagRule(r.ctx(), r.by, project, rule)
		if err != nil {
			return err
		}
		return ok(w, newTagRuleShape(saved))
	}
	return errMissing("Tag Rule")
}

func (a *API) deleteTagRule(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[int64](a, r, forge.ManageImages, "rule_id")
	if err != nil {
		return err
	}
	if err := a.forge.RemoveTagRule(r.ctx(), r.by, project, n); err != nil {
		return missing("Tag Rule", err)
	}
	return gone(w)
}

type imageUsageShape struct {
	Used  int64  `json:"used_bytes"`
	Quota *int64 `json:"quota_bytes"` // null without a limit
}

func (a *API) showImageUsage(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadImages)
	if err != nil {
		return err
	}
	return a.writeImageUsage(w, r, project)
}

func (a *API) writeImageUsage(w http.ResponseWriter, r *request, project tidelock.Project) error {
	used, quota, err := a.forge.ImageUsage(r.ctx(), r.by, project)
	if err != nil {
		return err
	}
	shape := imageUsageShape{Used: used}
	if quota >= 0 {
		shape.Quota = &quota
	}
	return ok(w, shape)
}

func (a *API) setImageQuota(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadProject)
	if err != nil {
		return err
	}
	if err := a.forge.Allow(r.ctx(), r.by, forge.Administer, forge.OnForge); err != nil {
		return err
	}
	r.need("bytes")
	bytes := r.number("bytes")
	if err := r.err(); err != nil {
		return err
	}
	if err := a.forge.SetImageQuota(r.ctx(), r.by, project, bytes); err != nil {
		return err
	}
	return a.writeImageUsage(w, r, project)
}

func (a *API) applyRetention(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ManageImages)
	if err != nil {
		return err
	}
	dry := r.flag("dry_run")
	if err := r.err(); err != nil {
		return err
	}
	fates, err := a.forge.ApplyRetention(r.ctx(), r.by, project, dry)
	if err != nil {
		return err
	}
	return ok(w, list(each(fates, fateShapes(project))))
}

type collectedShape struct {
	Artifacts  []collectedArtifact `json:"artifacts"`
	Blobs      int                 `json:"blobs"`
	Strays     int                 `json:"strays"`
	Images     int                 `json:"images"`
	FreedBlobs int                 `json:"freed_blobs"`
	FreedBytes int64               `json:"freed_bytes"`
}

type collectedArtifact struct {
	Image  tidelock.ImageID `json:"repository_id"`
	Digest tidelock.Digest  `json:"digest"`
	Type   string           `json:"artifact_type"`
	Size   int64            `json:"size"`
}

func newCollectedShape(c forge.Collected) collectedShape {
	return collectedShape{
		Artifacts: list(each(c.Artifacts, func(a tidelock.Artifact) collectedArtifact {
			return collectedArtifact{a.Image, a.Digest, a.Type, a.Size}
		})),
		Blobs: c.Blobs, Strays: c.Strays, Images: c.Images, FreedBlobs: c.Swept.Blobs, FreedBytes: c.Swept.Bytes,
	}
}

func (a *API) collectProject(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ManageImages)
	if err != nil {
		return err
	}
	dry := r.flag("dry_run")
	if err := r.err(); err != nil {
		return err
	}
	c, err := a.forge.CollectProject(r.ctx(), r.by, project, dry)
	if err != nil {
		return err
	}
	return ok(w, newCollectedShape(c))
}

func (a *API) collectImages(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.Administer, forge.OnForge); err != nil {
		return err
	}
	dry := r.flag("dry_run")
	if err := r.err(); err != nil {
		return err
	}
	c, err := a.forge.Collect(r.ctx(), r.by, dry)
	if err != nil {
		return err
	}
	return ok(w, newCollectedShape(c))
}

// An expirationShape is a retention in GitLab's words.
type expirationShape struct {
	Cadence   string `json:"cadence"`
	Enabled   bool   `json:"enabled"`
	KeepN     int    `json:"keep_n"`
	OlderThan string `json:"older_than"`
	Regex     string `json:"name_regex"`
	Delete    string `json:"name_regex_delete"`
	Keep      string `json:"name_regex_keep"`
	NextRunAt *stamp `json:"next_run_at"`
}

func newExpirationShape(r tidelock.Retention) expirationShape {
	shape := expirationShape{
		Cadence: daysText(r.Every), Enabled: r.Enabled, KeepN: r.KeepNewest, OlderThan: daysText(r.OlderThan),
		Regex: r.Remove, Delete: r.Remove, Keep: r.Keep,
	}
	if r.Enabled {
		shape.NextRunAt = new(stamp(r.NextAt))
	}
	return shape
}

// expiration reads container_expiration_policy_attributes, which JSON spells
// as an object and a form with brackets; nil when there are none.
func (p *params) expiration() *forge.RetentionFields {
	const name = "container_expiration_policy_attributes"
	inner := params{values: map[string]any{}}
	if object, ok := p.values[name].(map[string]any); ok {
		inner.values = object
	}
	for key, v := range p.values {
		if field, ok := strings.CutPrefix(key, name+"["); ok {
			inner.values[strings.TrimSuffix(field, "]")] = v
		}
	}
	if len(inner.values) == 0 {
		return nil
	}
	fields := &forge.RetentionFields{
		Enabled: given(&inner, "enabled", inner.flag), Every: given(&inner, "cadence", inner.days),
		OlderThan: given(&inner, "older_than", inner.days), Keep: given(&inner, "name_regex_keep", inner.text),
		KeepNewest: given(&inner, "keep_n", func(name string) int { return int(inner.number(name)) }),
		Remove:     given(&inner, "name_regex", inner.text),
	}
	if inner.has("name_regex_delete") {
		fields.Remove = new(inner.text("name_regex_delete"))
	}
	if err := inner.err(); err != nil {
		p.note(name, err.Error())
	}
	return fields
}

// A statisticsShape has the sizes that are known.
type statisticsShape struct {
	StorageSize  int64 `json:"storage_size"`
	RegistrySize int64 `json:"container_registry_size"`
}

// addImages adds what a project says of its images, to those who may read
// them: the retention, to maintainers which tags are immutable, and with
// statistics=true what they hold.
func (a *API) addImages(r *request, p tidelock.Project, shape *projectShape) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.ReadImages, forge.OnProject(p)); err != nil {
		if tidelock.KindOf(err) == tidelock.Internal {
			return err
		}
		return nil
	}
	if r.by.User != nil {
		settings, err := a.forge.ImageSettings(r.ctx(), r.by, p)
		if err != nil {
			return err
		}
		shape.Expiration = new(newExpirationShape(settings.Retention))
	}
	if rules, err := a.forge.TagRules(r.ctx(), r.by, p); err == nil {
		immutable := []string{}
		for _, rule := range rules {
			if rule.Immutable() {
				immutable = append(immutable, rule.Pattern)
			}
		}
		shape.Immutable = &immutable
	} else if tidelock.KindOf(err) == tidelock.Internal {
		return err
	}
	if r.flag("statistics") {
		used, _, err := a.forge.ImageUsage(r.ctx(), r.by, p)
		if err != nil {
			return err
		}
		shape.Statistics = &statisticsShape{used, used}
	}
	return nil
}
