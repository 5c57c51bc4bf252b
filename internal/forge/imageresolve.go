package forge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	"github.com/Masterminds/semver/v3"

	"tidelock.dev"
)

// maxFilter bounds the regular expression of a source.
const maxFilter = 1000

// ResolveImage finds what a source of a kind should have of an image now, as
// Flux would choose. An OCIRepository follows, of these the first that is set,
// a digest, the highest version that matches, a tag, or "latest"; a HelmChart
// the highest version, without pre-releases unless asked for; an
// ImageRepository all tags, whose goal is a digest of what they are. An error
// of kind NotFound says that nothing matches, Invalid that nothing ever can; a
// *HoldError comes with the head, which is not to be announced yet.
func (f *Forge) ResolveImage(ctx context.Context, project tidelock.ProjectID, image string, kind tidelock.SourceKind, spec tidelock.RefSpec) (tidelock.Head, error) {
	i, err := f.store.ImageByName(ctx, project, image)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Head{}, errNoImage()
	}
	if err != nil {
		return tidelock.Head{}, fmt.Errorf("read image %q of project %d: %w", image, project, err)
	}
	var head tidelock.Head
	switch {
	case kind == tidelock.ImageRepository:
		head, err = f.resolveAllTags(ctx, i)
	case kind == tidelock.HelmChart:
		head, err = f.resolveChart(ctx, i, spec.SemVer)
	case spec.Digest != "":
		head, err = f.resolveDigest(ctx, i, tidelock.Digest(spec.Digest))
	case spec.SemVer != "":
		head, err = f.resolveVersion(ctx, i, spec.SemVer, spec.SemVerFilter)
	case spec.Tag != "":
		head, err = f.tagHead(ctx, i, spec.Tag)
	default:
		head, err = f.tagHead(ctx, i, "latest")
	}
	if err != nil {
		return tidelock.Head{}, err
	}
	head.Project, head.Image = project, i.ID
	if kind == tidelock.ImageRepository {
		return head, nil
	}
	return head, f.held(ctx, i, head.Digest, head.MovedAt)
}

func (f *Forge) tagHead(ctx context.Context, i tidelock.Image, tag string) (tidelock.Head, error) {
	head, err := f.store.TagHead(ctx, i.ID, tag)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Head{}, tidelock.Errorf(tidelock.NotFound, "tag %.200s does not exist", tag)
	}
	if err != nil {
		return tidelock.Head{}, fmt.Errorf("read tag %q of image %d: %w", tag, i.ID, err)
	}
	return head, nil
}

func (f *Forge) tagHeads(ctx context.Context, i tidelock.Image) ([]tidelock.Head, error) {
	heads, err := f.store.TagHeads(ctx, i.ID)
	if err != nil {
		return nil, fmt.Errorf("list the tags of image %d: %w", i.ID, err)
	}
	return heads, nil
}

// resolveDigest finds a fixed artifact; the head names one of its tags, if it
// has any.
func (f *Forge) resolveDigest(ctx context.Context, i tidelock.Image, digest tidelock.Digest) (tidelock.Head, error) {
	if err := tidelock.ValidDigest(digest); err != nil {
		return tidelock.Head{}, err
	}
	a, err := f.artifact(ctx, i, string(digest))
	if err != nil {
		return tidelock.Head{}, err
	}
	head := tidelock.Head{Digest: digest, Commit: a.Commit, MovedAt: a.PushedAt}
	tags, err := f.store.TagsOf(ctx, i.ID, digest)
	if err != nil {
		return tidelock.Head{}, fmt.Errorf("list the tags of artifact %s: %w", digest, err)
	}
	for _, tag := range tags {
		tagged, err := f.store.TagHead(ctx, i.ID, tag.Name)
		switch {
		case err == nil && tagged.Digest == digest:
			return tagged, nil
		case err != nil && tidelock.KindOf(err) != tidelock.NotFound:
			return tidelock.Head{}, fmt.Errorf("read tag %q of image %d: %w", tag.Name, i.ID, err)
		} // it was moved or removed just now, and the artifact is still there
	}
	return head, nil
}

// resolveVersion picks the highest version in a range, of the tags that a
// filter lets through.
func (f *Forge) resolveVersion(ctx context.Context, i tidelock.Image, text, filter string) (tidelock.Head, error) {
	heads, err := f.tagHeads(ctx, i)
	if err != nil {
		return tidelock.Head{}, err
	}
	return versionAmong(heads, text, filter)
}

func versionAmong(heads []tidelock.Head, text, filter string) (tidelock.Head, error) {
	within, err := semver.NewConstraint(text)
	if err != nil {
		return tidelock.Head{}, tidelock.Errorf(tidelock.Invalid, "%.200q is not a semver range", text)
	}
	if len(filter) > maxFilter {
		return tidelock.Head{}, tidelock.Errorf(tidelock.Invalid, "the semver filter is longer than %d bytes", maxFilter)
	}
	lets, err := regexp.Compile(filter)
	if err != nil {
		return tidelock.Head{}, tidelock.Errorf(tidelock.Invalid, "%.200q is not a regular expression", filter)
	}
	return highest(heads, text, func(tag string) *semver.Version {
		if !lets.MatchString(tag) {
			return nil
		}
		v, err := semver.NewVersion(tag)
		if err != nil || !within.Check(v) {
			return nil
		}
		return v
	})
}

// resolveChart picks the version of a chart.
func (f *Forge) resolveChart(ctx context.Context, i tidelock.Image, text string) (tidelock.Head, error) {
	heads, err := f.tagHeads(ctx, i)
	if err != nil {
		return tidelock.Head{}, err
	}
	return chartAmong(heads, text)
}

// chartAmong reads tags as Helm writes them: registries have no "+" there, so
// that it writes "_".
func chartAmong(heads []tidelock.Head, text string) (tidelock.Head, error) {
	if text == "" {
		text = "*"
	}
	within, err := semver.NewConstraint(text)
	if err != nil {
		return tidelock.Head{}, tidelock.Errorf(tidelock.Invalid, "%.200q is not a version or a range of versions", text)
	}
	for _, h := range heads { // an exact version goes before what a range would find
		if tag, _ := h.Ref.Tag(); strings.ReplaceAll(tag, "_", "+") == text {
			return h, nil
		}
	}
	return highest(heads, text, func(tag string) *semver.Version {
		v, err := semver.StrictNewVersion(strings.ReplaceAll(tag, "_", "+"))
		if err != nil || !within.Check(v) {
			return nil
		}
		return v
	})
}

// highest picks the head of the highest version; of equal ones, the last.
func highest(heads []tidelock.Head, within string, versionOf func(tag string) *semver.Version) (tidelock.Head, error) {
	var best tidelock.Head
	var top *semver.Version
	for _, h := range heads {
		tag, _ := h.Ref.Tag()
		if v := versionOf(tag); v != nil && (top == nil || !v.LessThan(top)) {
			best, top = h, v
		}
	}
	if top == nil {
		return tidelock.Head{}, tidelock.Errorf(tidelock.NotFound, "no tag is within %.200s", within)
	}
	return best, nil
}

// resolveAllTags gives all tags of an image one digest, which changes with any
// of them.
func (f *Forge) resolveAllTags(ctx context.Context, i tidelock.Image) (tidelock.Head, error) {
	heads, err := f.tagHeads(ctx, i)
	if err != nil {
		return tidelock.Head{}, err
	}
	if len(heads) == 0 {
		return tidelock.Head{}, tidelock.Errorf(tidelock.NotFound, "the image has no tags")
	}
	sum := sha256.New()
	latest := heads[0]
	for _, h := range heads {
		fmt.Fprintf(sum, "%s %s\n", h.Ref, h.Digest)
		if h.Push > latest.Push {
			latest = h
		}
	}
	latest.Ref, latest.Commit = "", ""
	latest.Digest = tidelock.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil)))
	return latest, nil
}
