package delivery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/registry"
)

// viewTime is how long one git process serves builds before another one takes
// its place.
const viewTime = laneTime

// A job is the packaging of one head.
type job struct {
	*Packer
	project  tidelock.Project
	head     tidelock.Head
	cause    tidelock.Push
	ref      string // the short name
	found    time.Time
	settings Settings
	last     map[string]tidelock.Build // by application
	builds   []tidelock.Build
}

// deliverHead packages the applications that changed since they were last
// packaged under a branch or, for a release, those that it names. Its error
// says that nothing was recorded and that it has to be done again; what was
// published by then is found the same.
func (p *Packer) deliverHead(ctx context.Context, project tidelock.Project, head tidelock.Head, lane *lane) (err error) {
	ctx = propagation.TraceContext{}.Extract(ctx, propagation.MapCarrier{"traceparent": head.Trace})
	j := &job{Packer: p, project: project, head: head, found: time.Now(), last: map[string]tidelock.Build{}}
	branch, isBranch := head.Ref.Branch()
	tag, isTag := head.Ref.Tag()
	version, isRelease := releaseOf(tag)
	switch {
	case isBranch:
		j.ref = branch
	case isTag && isRelease:
		j.ref = tag
	default:
		return j.record(ctx)
	}
	if head.Push != 0 {
		if j.cause, err = p.builds.Push(ctx, head.Push); err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			return fmt.Errorf("read push %d: %w", head.Push, err)
		}
	}
	var todo []Application
	err = j.view(ctx, func(v *gitrepo.View) error {
		ready, err := j.readSettings(ctx, v)
		switch {
		case err != nil || !ready:
			return err
		case isBranch && !j.settings.delivers(branch, project.DefaultBranch):
			return nil
		case isBranch:
			todo, err = j.changed(ctx, v)
		default:
			for _, app := range j.settings.Applications {
				if version.concerns(app) {
					todo = append(todo, app)
				}
			}
		}
		if err != nil {
			return err
		}
		todo, err = j.makeSome(ctx, v, todo, version)
		return err
	})
	for err == nil && len(todo) > 0 {
		if err = lane.giveWay(ctx); err != nil {
			return err
		}
		err = j.view(ctx, func(v *gitrepo.View) (err error) {
			todo, err = j.makeSome(ctx, v, todo, version)
			return err
		})
	}
	if tidelock.KindOf(err) == tidelock.TooLarge { // and so it will be the next time
		j.warn(ctx, "commit cannot be looked at", err, "project", project.ID, "ref", head.Ref, "commit", head.Commit)
		err = nil
	}
	if err != nil {
		return err
	}
	return j.record(ctx)
}

func (j *job) view(ctx context.Context, fn func(*gitrepo.View) error) error {
	return j.Repos.Repo(j.project.ID).View(ctx, j.head.Commit, fn)
}

// record ends a job.
func (j *job) record(ctx context.Context) error {
	_, err := j.Packer.builds.RecordBuilds(ctx, j.head, j.builds)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return nil // the project is gone
	}
	return err
}

// readSettings reads delivery.yaml, and reports whether there is anything to
// do. Its mistakes are shown on the commit, and nothing is packaged.
func (j *job) readSettings(ctx context.Context, v *gitrepo.View) (ready bool, err error) {
	settings, findings, err := ReadConfig(v)
	if err != nil {
		if tidelock.KindOf(err) == tidelock.NotFound {
			return false, nil
		}
		return false, err
	}
	if len(findings) > 0 {
		j.keep(tidelock.Build{State: tidelock.StatusFailed, Findings: findings})
		return false, j.post(ctx, "", tidelock.StatusFailed, summary(findings))
	}
	j.settings = settings
	latest, _, err := j.Packer.builds.Builds(ctx, tidelock.BuildFilter{
		Project: j.project.ID, Ref: j.head.Ref, State: tidelock.StatusFailed, LatestOfApplications: true,
	}, tidelock.Page{})
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(latest, func(b tidelock.Build) bool { return b.Application == "" }) {
		j.keep(tidelock.Build{State: tidelock.StatusSuccess}) // it was at fault, and is not any more
	}
	return true, nil
}

// changed lists the applications that are not as they were last packaged under
// the branch.
func (j *job) changed(ctx context.Context, v *gitrepo.View) ([]Application, error) {
	last, err := j.Packer.builds.LastBuilds(ctx, j.project.ID, j.head.Ref)
	if err != nil {
		return nil, err
	}
	for _, b := range last {
		j.last[b.Application] = b
	}
	var changed []Application
	for _, app := range j.settings.Applications {
		if len(j.tags(app, release{})) == 0 {
			continue
		}
		b, packaged := j.last[app.Name]
		inputs, err := Inputs(v, app, b.Watched)
		if err != nil {
			return nil, err
		}
		if !packaged || b.Inputs != inputs {
			changed = append(changed, app)
		}
	}
	return changed, nil
}

// tags are those that an application's artifact gets.
func (j *job) tags(app Application, version release) []string {
	if version.tag != "" {
		return []string{version.tag}
	}
	return j.settings.branchTags(app, j.ref, j.project.DefaultBranch, j.head.Commit)
}

// makeSome packages and publishes applications for as long as the view may
// last, and returns those that are left.
func (j *job) makeSome(ctx context.Context, v *gitrepo.View, todo []Application, version release) ([]Application, error) {
	until := time.Now().Add(viewTime)
	for len(todo) > 0 && time.Now().Before(until) {
		if err := j.application(ctx, v, todo[0], version); err != nil {
			return todo, err
		}
		todo = todo[1:]
	}
	return todo, nil
}

// application brings one application into the registry, and says on the commit
// how that went.
func (j *job) application(ctx context.Context, v *gitrepo.View, app Application, version release) (err error) {
	ctx, span := j.tracer.Start(ctx, "package application", trace.WithAttributes(
		attribute.Int64("tidelock.project", int64(j.project.ID)),
		attribute.String("tidelock.application", app.Name),
	))
	defer func() {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}()
	b := tidelock.Build{Application: app.Name, Image: app.Image}
	if version.tag != "" {
		promoted, err := j.promote(ctx, v, app, version, &b)
		if err != nil || promoted {
			return err
		}
	}
	if err := j.post(ctx, app.Name, tidelock.StatusRunning, "packaging "+app.Path); err != nil {
		return err
	}
	made, err := Make(ctx, v, app)
	if err != nil {
		return err
	}
	b.Findings, b.Layer, b.Watched = made.Findings, made.Layer.Digest, made.Watched
	if b.Inputs, err = Inputs(v, app, b.Watched); err != nil {
		return err
	}
	if made.Refused() {
		return j.end(ctx, b, tidelock.StatusFailed)
	}
	b.Tags = j.tags(app, version)
	if last := j.last[app.Name]; version.tag == "" && last.Layer == b.Layer && last.Image == b.Image && followed(b.Tags, last.Tags, j.head.Commit) {
		b.Digest, b.Tags = last.Digest, last.Tags
		return j.end(ctx, b, tidelock.StatusSkipped)
	}
	image, err := artifact.New(made.Layer, artifact.Source{
		URL:      j.ExternalURL.JoinPath(j.project.FullPath).String(),
		Revision: artifact.Revision(j.ref, j.head.Commit),
		Created:  v.Commit().Committer.When,
		Extra:    map[string]string{tidelock.AnnotationTitle: app.Name},
	})
	if err != nil {
		return err
	}
	b.Digest = image.Digest
	err = j.publish(ctx, image, forge.ManifestPush{
		Image: app.Image, Tags: b.Tags, MediaType: tidelock.MediaTypeManifest, Body: image.Manifest, Digest: image.Digest, Commit: j.head.Commit, Ref: j.head.Ref,
	})
	return j.published(ctx, b, err)
}

// followed reports whether all tags that outlive a commit are among those that
// were set before.
func followed(tags, before []string, commit tidelock.CommitID) bool {
	for _, tag := range tags {
		if tag != string(commit[:shortCommit]) && !slices.Contains(before, tag) {
			return false
		}
	}
	return true
}

// promote gives a release the very artifact that a branch was given for the
// same files, if there is one: what was tried is what is released.
func (j *job) promote(ctx context.Context, v *gitrepo.View, app Application, version release, b *tidelock.Build) (done bool, err error) {
	before, _, err := j.Packer.builds.Builds(ctx, tidelock.BuildFilter{Project: j.project.ID, Application: app.Name}, tidelock.Page{Number: 1, PerPage: 50})
	if err != nil {
		return false, err
	}
	for _, old := range before {
		if old.Digest == "" || old.State == tidelock.StatusFailed || old.Image != app.Image {
			continue
		}
		inputs, err := Inputs(v, app, old.Watched)
		if err != nil {
			return false, err
		}
		if inputs != old.Inputs {
			continue
		}
		mediaType, body, err := j.Registry.Manifest(ctx, registry.Repo(j.project.ID, app.Image), old.Digest)
		if tidelock.KindOf(err) == tidelock.NotFound {
			continue // removed since
		}
		if err != nil {
			return false, err
		}
		b.Digest, b.Layer, b.Inputs, b.Watched, b.Tags = old.Digest, old.Layer, inputs, old.Watched, []string{version.tag}
		b.Findings = append(b.Findings, old.Findings...)
		_, err = j.Forge.PublishArtifact(ctx, j.project, forge.ManifestPush{
			Image: app.Image, Tags: b.Tags, MediaType: mediaType, Body: body, Digest: old.Digest, Ref: j.head.Ref,
		}, j.cause)
		if tidelock.KindOf(err) == tidelock.Invalid {
			*b = tidelock.Build{Application: app.Name, Image: app.Image}
			continue // its files were collected as garbage since
		}
		return true, j.published(ctx, *b, err)
	}
	return false, nil
}

// publish stores and signs an artifact and moves its tags, all at once. Rules
// are asked first, so that what they refuse leaves nothing behind.
func (j *job) publish(ctx context.Context, image artifact.Image, m forge.ManifestPush) error {
	if err := j.Forge.MayPublish(ctx, j.project, m, j.cause); err != nil {
		return err
	}
	room, err := j.Forge.ImageRoom(ctx, j.project)
	if err != nil {
		return err
	}
	if int64(len(image.Layer)+len(image.Config)+len(image.Manifest)) > room {
		return tidelock.Errorf(tidelock.TooLarge, "the images of the project may grow by %d bytes only: remove some, or ask for a larger quota", room)
	}
	name := registry.Repo(j.project.ID, m.Image)
	for _, blob := range [][]byte{image.Config, image.Layer} {
		part, err := j.Registry.PutBlob(ctx, name, tidelock.DigestOf(blob), bytes.NewReader(blob))
		if err != nil {
			return fmt.Errorf("store a blob of image %q: %w", m.Image, err)
		}
		if err := j.Forge.NoteBlob(ctx, j.project, m.Image, part); err != nil {
			return err
		}
	}
	known := j.ExternalURL.Host + "/" + tidelock.Image{Name: m.Image}.Path(j.project)
	if err := j.Forge.SignManifest(ctx, j.project, m, known, j.cause); err != nil {
		return err
	}
	_, err = j.Forge.PublishArtifact(ctx, j.project, m, j.cause)
	return err
}

// published ends a build whose artifact was taken, or refused.
func (j *job) published(ctx context.Context, b tidelock.Build, err error) error {
	switch tidelock.KindOf(err) {
	case tidelock.Invalid, tidelock.Denied, tidelock.Conflict, tidelock.TooLarge:
		b.Findings = append(b.Findings, tidelock.Finding{Check: "publish", Message: shorten(err.Error())})
		b.Digest, b.Tags = "", nil
		return j.end(ctx, b, tidelock.StatusFailed)
	}
	if err != nil {
		return fmt.Errorf("publish application %q: %w", b.Application, err)
	}
	return j.end(ctx, b, tidelock.StatusSuccess)
}

// end keeps a build and says on the commit what came of it.
func (j *job) end(ctx context.Context, b tidelock.Build, state tidelock.StatusState) error {
	b.State = state
	b = j.keep(b)
	j.metrics.count(b, b.Duration)
	j.log.InfoContext(ctx, "application packaged", "project", j.project.ID, "ref", j.head.Ref, "commit", j.head.Commit,
		"application", b.Application, "state", b.State, "digest", b.Digest, "tags", b.Tags, "findings", len(b.Findings), "took", b.Duration)
	switch state {
	case tidelock.StatusFailed:
		return j.post(ctx, b.Application, state, summary(refusals(b.Findings)))
	case tidelock.StatusSkipped:
		return j.post(ctx, b.Application, tidelock.StatusSuccess, "nothing new, still "+string(b.Digest))
	}
	said := string(b.Digest) + " as " + strings.Join(b.Tags, ", ")
	if len(b.Findings) > 0 {
		said += "; " + summary(b.Findings)
	}
	return j.post(ctx, b.Application, state, said)
}

// keep adds a build to what is recorded at the end.
func (j *job) keep(b tidelock.Build) tidelock.Build {
	since := j.head.MovedAt
	if since.IsZero() || since.After(j.found) {
		since = j.found
	}
	b.Push, b.CreatedAt = j.head.Push, time.Now()
	b.Duration = b.CreatedAt.Sub(since)
	j.builds = append(j.builds, b)
	return b
}

func refusals(findings []tidelock.Finding) []tidelock.Finding {
	return slices.DeleteFunc(slices.Clone(findings), func(f tidelock.Finding) bool { return f.Warning })
}

// summary is the first finding, and how many more there are.
func summary(findings []tidelock.Finding) string {
	if len(findings) == 0 {
		return ""
	}
	text := findings[0].String()
	if len(findings) > 1 {
		return fmt.Sprintf("(1 of %d) %s", len(findings), text)
	}
	return text
}

// statusName is that of the status of delivery.yaml, and with "/" and a name
// that of an application's.
const statusName = "delivery"

// post says on the commit how an application stands; "" is delivery.yaml.
func (j *job) post(ctx context.Context, application string, state tidelock.StatusState, text string) error {
	const limit = 255 // characters, GitLab's
	if runes := []rune(text); len(runes) > limit {
		text = string(runes[:limit-1]) + "…"
	}
	name := statusName
	if application != "" {
		name += "/" + application
	}
	_, err := j.Forge.PostOwnStatus(ctx, j.project, j.head.Commit, forge.NewStatus{
		State: state, Name: name, Ref: j.ref, Description: &text,
	})
	if tidelock.KindOf(err) == tidelock.Invalid {
		// Such as "running" where a job that was cut off has said so already.
		j.log.DebugContext(ctx, "status not posted", "project", j.project.ID, "commit", j.head.Commit, "name", name, "error", err)
		return nil
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("post the status of %q: %w", name, err)
	}
	return err
}
