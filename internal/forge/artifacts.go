package forge

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

// A ManifestPush is a manifest on its way into an image.
type ManifestPush struct {
	Image     string   // below the project
	Tags      []string // that shall point at it; none for a push by digest alone
	MediaType string
	Body      []byte
	Digest    tidelock.Digest   // that the body must have; "" for any
	Commit    tidelock.CommitID // from which it was made; "" is what its annotations say
	Ref       tidelock.RefName  // for PublishArtifact: the branch or tag from which it was made
}

// maxTags bounds the tags of one push.
const maxTags = 100

var tagName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

func checkTag(name string) error {
	if !tagName.MatchString(name) {
		return registry.Errorf(tidelock.Invalid, registry.TagInvalid, "%.200q cannot be a tag: use up to 128 letters, digits, '_', '.' and '-'", name)
	}
	return nil
}

// PushManifest takes a manifest into an image, which is made if need be. All
// that the manifest names must be there. Once PushManifest has returned, the
// artifact, its tags and one push for each tag that moved survive a power
// failure, and the pushes are announced. What is there already is accepted
// again, without a push.
func (f *Forge) PushManifest(ctx context.Context, p Principal, project tidelock.Project, m ManifestPush) (tidelock.Artifact, error) {
	if err := f.Allow(ctx, p, PushImage, OnProject(project)); err != nil {
		return tidelock.Artifact{}, err
	}
	level, err := f.tagLevel(ctx, p, project)
	if err != nil {
		return tidelock.Artifact{}, err
	}
	user, token := p.ids()
	return f.accept(ctx, project, m, tidelock.Push{By: user, Token: token}, level)
}

// tagLevel is what the rules about tags look at: administrators count as
// owners, and a deploy token, which is nobody's, as a developer.
func (f *Forge) tagLevel(ctx context.Context, p Principal, project tidelock.Project) (tidelock.AccessLevel, error) {
	switch {
	case p.admin():
		return tidelock.Owner, nil
	case p.User == nil:
		return tidelock.Developer, nil
	}
	return f.level(ctx, p, OnProject(project))
}

// PublishArtifact takes a manifest that the forge made itself, because of a
// push whose author and trace it passes on. Rules about tags hold for it, too:
// as they do for the author, unless the ref is a protected one, where who may
// push has been decided already.
func (f *Forge) PublishArtifact(ctx context.Context, project tidelock.Project, m ManifestPush, cause tidelock.Push) (tidelock.Artifact, error) {
	level, err := f.publisherLevel(ctx, project, m.Ref, cause)
	if err != nil {
		return tidelock.Artifact{}, err
	}
	return f.accept(ctx, project, m, tidelock.Push{By: cause.By, Token: cause.Token, Key: cause.Key, Trace: cause.Trace}, level)
}

// publisherLevel is what the forge publishes as when it packages a ref.
// Otherwise whoever may push to some branch could have any tag moved.
func (f *Forge) publisherLevel(ctx context.Context, project tidelock.Project, ref tidelock.RefName, cause tidelock.Push) (tidelock.AccessLevel, error) {
	guarded, err := f.protects(ctx, project.ID, ref)
	switch {
	case err != nil:
		return tidelock.NoAccess, err
	case guarded:
		return tidelock.Owner, nil
	case cause.By == 0:
		return tidelock.Developer, nil // a deploy key or token that may push
	}
	user, err := f.store.User(ctx, cause.By)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.NoAccess, nil
	}
	if err != nil {
		return tidelock.NoAccess, fmt.Errorf("read user %d: %w", cause.By, err)
	}
	if user.Admin {
		return tidelock.Owner, nil
	}
	return f.level(ctx, Principal{User: &user}, OnProject(project))
}

// protects reports whether a branch or tag of a project is protected.
func (f *Forge) protects(ctx context.Context, project tidelock.ProjectID, ref tidelock.RefName) (bool, error) {
	if branch, ok := ref.Branch(); ok {
		protected, err := f.store.ProtectedBranches(ctx, project)
		if err != nil {
			return false, fmt.Errorf("list protected branches of project %d: %w", project, err)
		}
		return slices.ContainsFunc(protected, func(b tidelock.ProtectedBranch) bool { return b.Matches(branch) }), nil
	}
	if tag, ok := ref.Tag(); ok {
		protected, err := f.store.ProtectedTags(ctx, project)
		if err != nil {
			return false, fmt.Errorf("list protected tags of project %d: %w", project, err)
		}
		return slices.ContainsFunc(protected, func(t tidelock.ProtectedTag) bool { return t.Matches(tag) }), nil
	}
	return false, nil
}

// accept takes a manifest for somebody of a level, one after the other in each
// image. The bytes are stored first: without rows nobody is given them.
func (f *Forge) accept(ctx context.Context, project tidelock.Project, m ManifestPush, push tidelock.Push, level tidelock.AccessLevel) (_ tidelock.Artifact, err error) {
	began := time.Now()
	a, err := f.parseManifest(ctx, project, m)
	if err != nil {
		return a, err
	}
	ctx, span := f.tracer.Start(ctx, "record artifact", trace.WithTimestamp(began), trace.WithAttributes(
		attribute.Int64("tidelock.project", int64(project.ID)),
		attribute.String("tidelock.image", m.Image),
		attribute.String("tidelock.digest", string(a.Digest)),
	))
	defer func() {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}()
	if push.Trace == "" {
		push.Trace = traceparent(ctx)
	}
	push.Project, push.At = project.ID, f.now().UTC()
	a.By, a.Token, a.PushedAt = push.By, push.Token, push.At

	name := registry.Repo(project.ID, m.Image)
	defer f.images.lock(name)()
	blobs, err := f.requireParts(ctx, project, m.Image, a)
	if err != nil {
		return a, err
	}
	if err := f.checkSignatures(ctx, project.ID, m); err != nil {
		return a, err
	}
	if err := f.mayMoveTags(ctx, project, m, a.Digest, level); err != nil {
		return a, err
	}
	recorded, err := f.takeRoom(ctx, project, append([]tidelock.Part{{Digest: a.Digest, Size: a.Size}}, blobs...))
	if err != nil {
		return a, err
	}
	defer func() { recorded(err == nil) }()
	if err := f.registry.PutManifestAs(ctx, name, a.Digest, a.MediaType, m.Body); err != nil {
		return a, err
	}
	var pushes []tidelock.Push
	err = f.store.Atomically(ctx, func(ctx context.Context) error {
		a, pushes, err = f.recordArtifact(ctx, project, m, a, blobs, push, level)
		return err
	})
	if err != nil {
		return a, err
	}
	for _, p := range pushes {
		span.SetAttributes(attribute.Int64("tidelock.push", int64(p.ID)))
		f.announce(p)
	}
	return a, nil
}

func (f *Forge) parseManifest(ctx context.Context, project tidelock.Project, m ManifestPush) (tidelock.Artifact, error) {
	if err := checkImageName(m.Image); err != nil {
		return tidelock.Artifact{}, err
	}
	if len(m.Tags) > maxTags {
		return tidelock.Artifact{}, registry.Errorf(tidelock.Invalid, registry.TagInvalid, "one push may name up to %d tags", maxTags)
	}
	for _, tag := range m.Tags {
		if err := checkTag(tag); err != nil {
			return tidelock.Artifact{}, err
		}
	}
	a, err := registry.ParseManifest(m.MediaType, m.Body)
	if err != nil {
		return a, err
	}
	if m.Digest != "" {
		a.Digest = m.Digest
	}
	if a.Subject == a.Digest {
		return a, registry.Errorf(tidelock.Invalid, registry.ManifestInvalid, "the manifest names itself as its subject")
	}
	a.Commit = m.Commit
	if a.Commit == "" {
		a.Commit = f.commitOf(ctx, project.ID, a.Annotations[tidelock.AnnotationRevision])
	}
	return a, nil
}

// revision is how a commit is written in an annotation: with a branch or
// without, with the algorithm or without.
var revision = regexp.MustCompile(`^(?:[^@\s]{1,255}@)?(?:sha1:)?([0-9a-f]{7,40}|[0-9a-f]{64})$`)

// commitOf is the commit that a revision names, if the project has it. A short
// one counts if it can mean only one commit.
func (f *Forge) commitOf(ctx context.Context, project tidelock.ProjectID, text string) tidelock.CommitID {
	match := revision.FindStringSubmatch(text)
	if match == nil {
		return ""
	}
	commit, err := f.repos.Repo(project).Commit(ctx, match[1])
	if err != nil || !strings.HasPrefix(string(commit.ID), match[1]) {
		return "" // unknown, ambiguous, or a branch that looks like a commit
	}
	return commit.ID
}

// nondistributable are layers that come from elsewhere and need not be here.
var nondistributable = regexp.MustCompile(`^application/vnd\.(docker\.image\.rootfs\.foreign|oci\.image\.layer\.nondistributable)\.`)

// requireParts refuses a manifest that names what its image does not have. It
// returns the blobs of which the record did not know.
func (f *Forge) requireParts(ctx context.Context, project tidelock.Project, image string, a tidelock.Artifact) (unknown []tidelock.Part, err error) {
	var blobs, manifests []tidelock.Digest
	for _, p := range a.Parts {
		switch {
		case p.Manifest:
			manifests = append(manifests, p.Digest)
		default:
			blobs = append(blobs, p.Digest)
		}
	}
	sizes, known := map[tidelock.Digest]int64{}, map[tidelock.Digest]int64{}
	i, err := f.store.ImageByName(ctx, project.ID, image)
	if err == nil {
		if sizes, err = f.store.KnownBlobs(ctx, i.ID, blobs); err == nil {
			known, err = f.store.KnownArtifacts(ctx, i.ID, manifests)
		}
	}
	if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
		return nil, fmt.Errorf("look for the parts of a manifest: %w", err)
	}
	name := registry.Repo(project.ID, image)
	for _, p := range a.Parts {
		size, ok := sizes[p.Digest]
		if p.Manifest {
			size, ok = known[p.Digest]
		} else if !ok {
			size, err = f.registry.StatBlob(ctx, name, p.Digest)
			if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
				return nil, err
			}
			if ok = err == nil; ok {
				sizes[p.Digest] = size
				unknown = append(unknown, tidelock.Part{Digest: p.Digest, Size: size})
			}
		}
		switch {
		case !ok && nondistributable.MatchString(p.MediaType):
		case !ok:
			return nil, registry.Errorf(tidelock.Invalid, registry.ManifestBlobUnknown, "the manifest names %s, which the image does not have; push that first", p.Digest)
		case size != p.Size:
			return nil, registry.Errorf(tidelock.Invalid, registry.ManifestInvalid, "the manifest says that %s has %d bytes, and it has %d", p.Digest, p.Size, size)
		}
	}
	return unknown, nil
}

// mayMoveTags refuses tags that rules protect. It is asked before any bytes
// are stored, and again where it counts, in the transaction.
func (f *Forge) mayMoveTags(ctx context.Context, project tidelock.Project, m ManifestPush, digest tidelock.Digest, level tidelock.AccessLevel) error {
	if len(m.Tags) == 0 {
		return nil
	}
	rules, err := f.tagRules(ctx, project.ID)
	if err != nil || len(rules) == 0 {
		return err
	}
	i, err := f.store.ImageByName(ctx, project.ID, m.Image)
	if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
		return fmt.Errorf("read image %q of project %d: %w", m.Image, project.ID, err)
	}
	for _, name := range m.Tags {
		tag, err := f.store.Tag(ctx, i.ID, name)
		if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			return fmt.Errorf("read tag %q of image %d: %w", name, i.ID, err)
		}
		if tag.Digest == digest {
			continue
		}
		if err := rules.mayPush(name, tag.Digest != "", level); err != nil {
			return err
		}
	}
	return nil
}

// recordArtifact writes all rows of an accepted manifest.
func (f *Forge) recordArtifact(ctx context.Context, project tidelock.Project, m ManifestPush, a tidelock.Artifact, blobs []tidelock.Part, push tidelock.Push, level tidelock.AccessLevel) (tidelock.Artifact, []tidelock.Push, error) {
	image, err := f.store.MakeImage(ctx, tidelock.Image{Project: project.ID, Name: m.Image, CreatedAt: push.At})
	if err != nil {
		return a, nil, fmt.Errorf("make image %q of project %d: %w", m.Image, project.ID, err)
	}
	if err := f.mayMoveTags(ctx, project, m, a.Digest, level); err != nil {
		return a, nil, err
	}
	for _, blob := range blobs {
		if err := f.store.NoteBlob(ctx, image, blob, push.At); err != nil {
			return a, nil, fmt.Errorf("note blob %s: %w", blob.Digest, err)
		}
	}
	a.Image = image.ID
	known, err := f.store.KnownArtifacts(ctx, image.ID, []tidelock.Digest{a.Digest})
	if err != nil {
		return a, nil, fmt.Errorf("look for artifact %s: %w", a.Digest, err)
	}
	if err := f.store.AddArtifact(ctx, a); err != nil {
		return a, nil, fmt.Errorf("write artifact %s: %w", a.Digest, err)
	}
	tags := m.Tags
	if _, there := known[a.Digest]; there {
		if a, err = f.store.Artifact(ctx, image.ID, a.Digest); err != nil {
			return a, nil, fmt.Errorf("read artifact %s: %w", a.Digest, err)
		}
	} else if len(tags) == 0 {
		tags = []string{""}
	}
	var pushes []tidelock.Push
	for _, tag := range tags {
		push.Artifact = &tidelock.ArtifactUpdate{Image: image.ID, Tag: tag, New: a.Digest, Commit: a.Commit}
		recorded, err := f.store.RecordArtifact(ctx, push)
		if err != nil {
			return a, nil, fmt.Errorf("record the push of artifact %s: %w", a.Digest, err)
		}
		if recorded.ID != 0 {
			pushes = append(pushes, recorded)
		}
	}
	return a, pushes, nil
}

// Manifest reads an artifact of an image, by tag or digest, and the bytes of
// its manifest.
func (f *Forge) Manifest(ctx context.Context, p Principal, project tidelock.Project, image, reference string) (tidelock.Artifact, []byte, error) {
	a, err := f.artifactFor(ctx, p, project, image, reference)
	if err != nil {
		return tidelock.Artifact{}, nil, err
	}
	body, err := f.registry.ManifestBody(ctx, registry.Repo(project.ID, image), a.Digest)
	if err != nil {
		return tidelock.Artifact{}, nil, err
	}
	return a, body, nil
}

// StatManifest is Manifest for those who do not want the bytes.
func (f *Forge) StatManifest(ctx context.Context, p Principal, project tidelock.Project, image, reference string) (tidelock.Artifact, error) {
	a, err := f.artifactFor(ctx, p, project, image, reference)
	if err == nil {
		err = f.registry.StatManifest(ctx, registry.Repo(project.ID, image), a.Digest)
	}
	if err != nil {
		return tidelock.Artifact{}, err
	}
	return a, nil
}

func (f *Forge) artifactFor(ctx context.Context, p Principal, project tidelock.Project, image, reference string) (tidelock.Artifact, error) {
	i, err := f.imageOf(ctx, p, project, image, PullImage)
	if err != nil {
		return tidelock.Artifact{}, err
	}
	return f.artifact(ctx, i, reference)
}

// artifact finds what a tag or digest means in an image.
func (f *Forge) artifact(ctx context.Context, i tidelock.Image, reference string) (tidelock.Artifact, error) {
	digest := tidelock.Digest(reference)
	if !strings.Contains(reference, ":") {
		if err := checkTag(reference); err != nil {
			return tidelock.Artifact{}, err
		}
		tag, err := f.store.Tag(ctx, i.ID, reference)
		switch {
		case tidelock.KindOf(err) == tidelock.NotFound:
			return tidelock.Artifact{}, errNoManifest(reference)
		case err != nil:
			return tidelock.Artifact{}, fmt.Errorf("read tag %q of image %d: %w", reference, i.ID, err)
		}
		digest = tag.Digest
	} else if err := tidelock.ValidDigest(digest); err != nil {
		return tidelock.Artifact{}, registry.Errorf(tidelock.Invalid, registry.DigestInvalid, "%v", err)
	}
	a, err := f.store.Artifact(ctx, i.ID, digest)
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
		return a, errNoManifest(reference)
	case err != nil:
		return a, fmt.Errorf("read artifact %s of image %d: %w", digest, i.ID, err)
	}
	return a, nil
}

func errNoManifest(reference string) error {
	return registry.Errorf(tidelock.NotFound, registry.ManifestUnknown, "the image has no %s", reference)
}

// DeleteReference removes a tag, or an artifact with all its tags. What hung on
// it is collected later. Tags that rules keep stay, and so does what they
// need.
func (f *Forge) DeleteReference(ctx context.Context, p Principal, project tidelock.Project, image, reference string) error {
	i, err := f.imageOf(ctx, p, project, image, DeleteImage)
	if err != nil {
		return err
	}
	level, err := f.tagLevel(ctx, p, project)
	if err != nil {
		return err
	}
	push := f.removal(ctx, p, project)
	if !strings.Contains(reference, ":") {
		return f.removeTag(ctx, i, reference, push, level)
	}
	return f.removeArtifact(ctx, i, tidelock.Digest(reference), push, level)
}

// removal is the push of somebody who takes something out of a project's
// images.
func (f *Forge) removal(ctx context.Context, p Principal, project tidelock.Project) tidelock.Push {
	user, token := p.ids()
	return tidelock.Push{Project: project.ID, By: user, Token: token, At: f.now().UTC(), Trace: traceparent(ctx)}
}

func (f *Forge) removeTag(ctx context.Context, i tidelock.Image, name string, push tidelock.Push, level tidelock.AccessLevel) error {
	if err := checkTag(name); err != nil {
		return err
	}
	defer f.images.lock(registry.Repo(i.Project, i.Name))()
	err := f.store.Atomically(ctx, func(ctx context.Context) error {
		if _, err := f.store.MakeImage(ctx, i); err != nil {
			return fmt.Errorf("read image %d: %w", i.ID, err)
		}
		tag, err := f.store.Tag(ctx, i.ID, name)
		switch {
		case tidelock.KindOf(err) == tidelock.NotFound:
			return errNoManifest(name)
		case err != nil:
			return fmt.Errorf("read tag %q of image %d: %w", name, i.ID, err)
		}
		rules, err := f.tagRules(ctx, i.Project)
		if err != nil {
			return err
		}
		if err := rules.mayDelete(name, level); err != nil {
			return err
		}
		push, err = f.untag(ctx, tag, push)
		return err
	})
	if err == nil {
		f.announce(push)
	}
	return err
}

// untag removes a tag, as a push.
func (f *Forge) untag(ctx context.Context, tag tidelock.Tag, push tidelock.Push) (tidelock.Push, error) {
	push.Artifact = &tidelock.ArtifactUpdate{Image: tag.Image, Tag: tag.Name, Old: tag.Digest}
	push, err := f.store.RecordArtifact(ctx, push)
	if err != nil {
		return push, fmt.Errorf("record that tag %q of image %d is gone: %w", tag.Name, tag.Image, err)
	}
	return push, nil
}

func (f *Forge) removeArtifact(ctx context.Context, i tidelock.Image, digest tidelock.Digest, push tidelock.Push, level tidelock.AccessLevel) error {
	if err := tidelock.ValidDigest(digest); err != nil {
		return registry.Errorf(tidelock.Invalid, registry.DigestInvalid, "%v", err)
	}
	name := registry.Repo(i.Project, i.Name)
	defer f.images.lock(name)()
	var pushes []tidelock.Push
	err := f.store.Atomically(ctx, func(ctx context.Context) error {
		pushes = nil
		if _, err := f.store.MakeImage(ctx, i); err != nil {
			return fmt.Errorf("read image %d: %w", i.ID, err)
		}
		if _, err := f.artifact(ctx, i, string(digest)); err != nil {
			return err
		}
		if err := f.mayRemove(ctx, i, digest, level); err != nil {
			return err
		}
		tags, err := f.store.TagsOf(ctx, i.ID, digest)
		if err != nil {
			return fmt.Errorf("list the tags of artifact %s: %w", digest, err)
		}
		for _, tag := range tags {
			p, err := f.untag(ctx, tag, push)
			if err != nil {
				return err
			}
			pushes = append(pushes, p)
		}
		return f.store.RemoveArtifact(ctx, i.ID, digest)
	})
	if err != nil {
		return err
	}
	for _, p := range pushes {
		f.announce(p)
	}
	f.freeRoom(i.Project)
	if err := f.registry.RemoveManifest(ctx, name, digest); err != nil {
		f.log.WarnContext(ctx, "manifest left in storage", "image", i.ID, "digest", digest, "error", err)
	}
	return nil
}

// mayRemove refuses to remove an artifact that a protected tag points at, be it
// by way of indexes that hold it.
func (f *Forge) mayRemove(ctx context.Context, i tidelock.Image, digest tidelock.Digest, level tidelock.AccessLevel) error {
	rules, err := f.tagRules(ctx, i.Project)
	if err != nil || len(rules) == 0 {
		return err
	}
	seen := map[tidelock.Digest]bool{digest: true}
	for next := []tidelock.Digest{digest}; len(next) > 0; next = next[1:] {
		tags, err := f.store.TagsOf(ctx, i.ID, next[0])
		if err != nil {
			return fmt.Errorf("list the tags of artifact %s: %w", next[0], err)
		}
		for _, tag := range tags {
			if err := rules.mayDelete(tag.Name, level); err != nil {
				return err
			}
		}
		holders, err := f.store.Holders(ctx, i.ID, next[0])
		if err != nil {
			return fmt.Errorf("list what holds artifact %s: %w", next[0], err)
		}
		for _, digest := range holders {
			if !seen[digest] {
				seen[digest] = true
				next = append(next, digest)
			}
		}
	}
	return nil
}
