package tidelock

import (
	"slices"
	"strings"
)

// A SourceID names a Flux source in a cluster: "GitRepository/namespace/name".
type SourceID string

// A SourceKind is the kind in a SourceID.
type SourceKind string

const (
	GitRepository   SourceKind = "GitRepository"
	OCIRepository   SourceKind = "OCIRepository"
	HelmChart       SourceKind = "HelmChart" // of a HelmRepository of type oci
	ImageRepository SourceKind = "ImageRepository"
)

// Kind returns the kind, which may be one that this build does not know.
func (id SourceID) Kind() SourceKind {
	kind, _, _ := strings.Cut(string(id), "/")
	return SourceKind(kind)
}

// OfImage reports whether sources of the kind follow an image of the registry
// and not a repository of code.
func (k SourceKind) OfImage() bool {
	return slices.Contains([]SourceKind{OCIRepository, HelmChart, ImageRepository}, k)
}

// A RefSpec is what a source says about which revision it follows.
//
// Of a GitRepository it is spec.ref, with Flux's precedence: Commit, Name,
// SemVer, Tag, Branch; all empty means the branch "master". Of an
// OCIRepository, likewise: Digest, SemVer (of tags that match SemVerFilter),
// Tag; all empty means the tag "latest". Of a HelmChart it is SemVer alone, the
// chart's version or range; empty means the newest release. An ImageRepository
// follows all tags.
type RefSpec struct {
	Branch       string
	Tag          string
	SemVer       string
	SemVerFilter string // a regular expression
	Name         string
	Commit       string
	Digest       string
}

// A Goal is what a source should have: the commit of a ref, or the artifact
// behind a tag. The zero Goal says that nothing is there to be had.
type Goal struct {
	Ref    RefName  // a tag of an image is written as a Git tag is: refs/tags/<tag>
	Commit CommitID // of an artifact: from which it was made, "" when unknown
	Digest Digest   // "" for a commit
}

// None reports whether there is nothing to be had.
func (g Goal) None() bool { return g.Commit == "" && g.Digest == "" }

// Same reports whether two goals ask for the same content.
func (g Goal) Same(other Goal) bool {
	if g.Digest != "" || other.Digest != "" {
		return g.Digest == other.Digest
	}
	return g.Commit == other.Commit
}

// A Revision is what a source has now, as its status tells it.
type Revision struct {
	Commit  CommitID // of a GitRepository
	Digest  Digest   // of an OCIRepository or ImageRepository
	Version string   // of a HelmChart
}

// ParseRevision reads status.artifact.revision of a source of a kind. Flux
// writes "main@sha1:<40 hex>" or "sha1:<40 hex>" for a commit (before v1
// "main/<40 hex>"), "latest@sha256:<64 hex>" for an artifact, and the version
// of a chart, to which it adds "+<n>" when it packaged the chart anew. What is
// none of these gives the zero Revision.
func ParseRevision(kind SourceKind, text string) Revision {
	last := text[strings.LastIndexByte(text, '@')+1:]
	switch {
	case kind == GitRepository:
		commit := CommitID(last[strings.LastIndexAny(last, ":/")+1:])
		if ValidCommit(commit) == nil {
			return Revision{Commit: commit}
		}
	case kind == HelmChart:
		return Revision{Version: text}
	case kind.OfImage() && ValidDigest(Digest(last)) == nil:
		return Revision{Digest: Digest(last)}
	}
	return Revision{}
}

// None reports whether the source has nothing.
func (r Revision) None() bool { return r == Revision{} }

// Meets reports whether the source has what it should. Of a chart only the
// version can be compared: registries know no other mark of it.
func (r Revision) Meets(g Goal) bool {
	switch {
	case g.None():
		return false
	case r.Version != "":
		tag, _ := g.Ref.Tag()
		return withoutBuild(strings.ReplaceAll(tag, "_", "+")) == withoutBuild(r.Version)
	case g.Digest != "":
		return r.Digest == g.Digest
	}
	return r.Commit == g.Commit
}

func withoutBuild(version string) string {
	version, _, _ = strings.Cut(strings.TrimPrefix(version, "v"), "+")
	return version
}
