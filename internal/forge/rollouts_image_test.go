package forge_test

import (
	"fmt"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// An imageStory is a story of an applier of artifacts.
type imageStory struct {
	*story
	kind    tidelock.SourceKind
	digests map[string]tidelock.Digest
}

// follow lets the source follow the image "app" of the project.
func newImageStory(t *testing.T, kind tidelock.SourceKind, spec tidelock.RefSpec) *imageStory {
	s := &imageStory{story: newStory(t), kind: kind, digests: map[string]tidelock.Digest{}}
	s.artifact("first", "", "0.0.1") // so that there is an image
	image, err := s.store.ImageByName(t.Context(), s.site.ID, "app")
	s.ok(err)
	s.ok(s.SaveAgentSources(t.Context(), s.agent.ID, nil, []tidelock.SourceID{s.source.Source}))
	s.source.Source, s.source.Spec, s.source.Image = tidelock.SourceID(string(kind)+"/flux-system/app"), spec, image.ID
	s.ok(s.Observe(t.Context(), s.agent, nil, nil, true))
	s.fetched.Object, s.applier.Source = tidelock.ObjectID(s.source.Source), s.source.Source
	if kind == tidelock.HelmChart {
		s.applier.Object = "HelmRelease/shop/web"
	}
	s.follow()
	s.plan()
	s.observe()
	return s
}

// artifact pushes one that says from which commit it was made, under tags.
func (s *imageStory) artifact(label, revision string, tags ...string) {
	s.t.Helper()
	m := manifest{config: s.blob(s.site, "app", "{}"), layer: s.blob(s.site, "app", label)}
	if revision != "" {
		m.annotations = map[string]string{tidelock.AnnotationRevision: revision}
	}
	a, err := s.PushManifest(s.t.Context(), s.root, s.site, forge.ManifestPush{Image: "app", Tags: tags, MediaType: tidelock.MediaTypeManifest, Body: m.body()})
	s.ok(err)
	s.digests[label] = a.Digest
}

// sees tells that an artifact was fetched and, with a state, attempted.
func (s *imageStory) sees(revision string, state tidelock.ObservedState) {
	s.t.Helper()
	s.story.fetched.Revision = revision
	if state != "" {
		s.applier.Attempted, s.applier.State, s.applier.Since = revision, state, s.clock
	}
	if state == tidelock.ObservedReady {
		s.applier.Revision = revision
	}
	s.observe()
}

func TestRolloutsOfArtifacts(t *testing.T) {
	t.Parallel()
	s := newImageStory(t, tidelock.OCIRepository, tidelock.RefSpec{Tag: "latest"})
	for _, label := range []string{"A", "B", "C"} {
		s.line("push " + label)
	}
	s.want("")
	at := func(label, tag string) string { return fmt.Sprintf("%s@%s", tag, s.digests[label]) }

	s.artifact("a", "main@sha1:"+string(s.commits["A"]), "latest")
	s.plan()
	s.want("A pending*")
	s.sees(at("a", "latest"), "")
	s.want("A running*")
	s.sees(at("a", "latest"), tidelock.ObservedReady)
	s.want("A success*")
	rollouts, _, err := s.Rollouts(t.Context(), s.root, s.site, tidelock.RolloutFilter{}, tidelock.Page{})
	s.ok(err)
	if r := rollouts[0]; r.Digest != s.digests["a"] || r.Ref != "refs/tags/latest" || r.Push == 0 {
		t.Errorf("the rollout is %+v", r)
	}

	// Two at once, another tag, and one that says nothing or something untrue.
	s.artifact("b", string(s.commits["B"]), "latest")
	s.artifact("nightly", string(s.commits["B"]), "nightly")
	s.artifact("c", string(s.commits["C"]), "latest")
	s.plan()
	s.want("A success, B superseded superseded by C, C pending*")
	s.artifact("mute", "", "latest")
	s.artifact("foreign", "main@sha1:"+string(s.commits["X"]), "latest")
	s.plan()
	for _, label := range []string{"mute", "foreign"} {
		s.sees(at(label, "latest"), tidelock.ObservedFailed)
		s.want("A success, B superseded, C pending*")
	}
	s.sees("latest@sha256:0000000000000000000000000000000000000000000000000000000000000000", tidelock.ObservedReady)
	s.want("A success, B superseded, C pending*")

	// The forge packaged it, and the artifact does not say of what.
	_, err = s.store.RecordBuilds(t.Context(), tidelock.Head{Project: s.site.ID, Ref: "refs/heads/main", Commit: s.commits["C"]}, []tidelock.Build{{
		Project: s.site.ID, Ref: "refs/heads/main", Commit: s.commits["C"], Application: "app", State: tidelock.StatusSuccess, Image: "app", Digest: s.digests["mute"],
	}})
	s.ok(err)
	s.sees(at("mute", "latest"), tidelock.ObservedReady)
	s.want("A success, B superseded, C success*")

	// One commit in two artifacts is one rollout.
	s.artifact("a again", string(s.commits["A"]), "latest")
	s.plan()
	s.want("B superseded, C success, A pending*")
	s.sees(at("a again", "latest"), tidelock.ObservedReady)
	s.want("B superseded, C success, A success*")
}

func TestRolloutsOfVersions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		kind     tidelock.SourceKind
		spec     tidelock.RefSpec
		revision func(tag string, d tidelock.Digest) string
	}{
		{tidelock.OCIRepository, tidelock.RefSpec{SemVer: "^1.0.0"}, func(tag string, d tidelock.Digest) string { return tag + "@" + string(d) }},
		{tidelock.HelmChart, tidelock.RefSpec{SemVer: "1.x"}, func(tag string, d tidelock.Digest) string { return tag }},
		{tidelock.HelmChart, tidelock.RefSpec{SemVer: "1.x"}, func(tag string, d tidelock.Digest) string { return tag + "+2" }},
	} {
		s := newImageStory(t, tt.kind, tt.spec)
		for _, label := range []string{"A", "B", "C", "D"} {
			s.line("push " + label)
		}
		s.artifact("a", string(s.commits["A"]), "1.0.0")
		s.plan()
		s.want("A pending*")
		s.sees(tt.revision("1.0.0", s.digests["a"]), tidelock.ObservedReady)
		s.want("A success*")
		s.artifact("b", string(s.commits["B"]), "1.2.0")
		s.artifact("c", string(s.commits["C"]), "2.0.0") // out of range
		s.artifact("d", string(s.commits["D"]), "1.1.0") // lower
		s.artifact("d too", string(s.commits["D"]), "1.3.0")
		s.plan()
		s.want("A success, B superseded, D pending*")
		s.sees(tt.revision("1.3.0", s.digests["d too"]), tidelock.ObservedFailed)
		s.want("A success, B superseded, D failed*")
	}
}

// A commit that is packaged once more goes its way once more.
func TestCommitPackagedAgain(t *testing.T) {
	t.Parallel()
	s := newImageStory(t, tidelock.OCIRepository, tidelock.RefSpec{Tag: "latest"})
	s.line("push A")
	at := func(label string) string { return "latest@" + string(s.digests[label]) }
	s.artifact("a", string(s.commits["A"]), "latest")
	s.plan()
	s.sees(at("a"), tidelock.ObservedReady)
	s.want("A success*")
	s.artifact("again", string(s.commits["A"]), "latest")
	s.plan()
	s.want("A pending*")
	s.sees(at("a"), tidelock.ObservedReady)
	s.want("A pending*")
	s.applier.State = tidelock.ObservedReady
	s.sees(at("again"), "")
	s.want("A running*")
	s.sees(at("again"), tidelock.ObservedFailed)
	s.want("A failed*")
	s.sees(at("again"), tidelock.ObservedReady)
	s.want("A success*")
}
