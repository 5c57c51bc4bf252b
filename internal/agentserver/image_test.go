package agentserver_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"google.golang.org/protobuf/proto"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/artifact"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/registry"
)

const appID = "OCIRepository/flux-system/app"

// draft makes an artifact of a text, ready to be pushed to an image.
func (w *world) draft(project tidelock.Project, image, text string) forge.ManifestPush {
	w.t.Helper()
	layer, err := artifact.Pack([]artifact.File{{Path: "app.yaml", Content: []byte(text)}})
	check(w.t, err)
	made, err := artifact.New(layer, artifact.Source{})
	check(w.t, err)
	for _, blob := range [][]byte{made.Config, made.Layer} {
		_, err := w.images.PutBlob(w.t.Context(), registry.Repo(project.ID, image), "", strings.NewReader(string(blob)))
		check(w.t, err)
	}
	return forge.ManifestPush{Image: image, MediaType: tidelock.MediaTypeManifest, Body: made.Manifest, Digest: made.Digest}
}

// artifact pushes an artifact of a text under tags.
func (w *world) artifact(project tidelock.Project, image, text string, tags ...string) tidelock.Digest {
	w.t.Helper()
	m := w.draft(project, image, text)
	m.Tags = tags
	a, err := w.PushManifest(w.t.Context(), w.root, project, m)
	check(w.t, err)
	return a.Digest
}

// removeTag removes a tag of an image.
func (w *world) removeTag(project tidelock.Project, image, tag string) {
	w.t.Helper()
	check(w.t, w.DeleteReference(w.t.Context(), w.root, project, image, tag))
}

// imageSource is a source of a kind that follows an image of a project.
func imageSource(id string, p tidelock.Project, image string, ref *agentrpc.RefSpec) *agentrpc.Source {
	path := tidelock.Image{Name: image}.Path(p)
	return &agentrpc.Source{Id: id, Uid: "uid-" + id, Url: "oci" + strings.TrimPrefix(base, "https") + "/" + path, Ref: ref}
}

// has adds what a source of an image says of its state.
func has(s *agentrpc.Source, revision string, number int64, last tidelock.Digest) *agentrpc.Source {
	s = proto.CloneOf(s)
	s.Revision, s.LastNumber, s.LastDigest = revision, number, string(last)
	return s
}

// wantsDigest waits for the announcement of an artifact.
func (a *conversation) wantsDigest(id string, digest tidelock.Digest) *agentrpc.Announcement {
	a.t.Helper()
	m := a.announcement()
	if m.GetSourceId() != id || m.GetDigest() != string(digest) || m.GetGone() != (digest == "") {
		a.t.Fatalf("heard %v, want %s at %q", m, id, digest)
	}
	return m
}

func TestAnnounceOnPushOfAnArtifact(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	first := w.artifact(site, "", "one", "latest")
	r := w.register("a")
	src := has(imageSource(appID, site, "", nil), "latest@"+string(first), 0, "")
	a := w.connect(r, "one").announce(src)
	a.served(appID, site.ID)
	a.quiet() // Flux has it
	want := tidelock.AgentSource{
		Source: appID, Project: site.ID, Ref: "refs/tags/latest", Digest: first, Revision: src.GetRevision(), State: tidelock.Converged,
	}
	w.awaitShown(r.ID, want)

	commit := w.push(site, "main") // of the repository with the same path
	a.quiet()
	m := w.draft(site, "", "two")
	m.Tags, m.Commit = []string{"latest", "v2"}, commit
	_, err := w.PushManifest(t.Context(), w.root, site, m)
	check(t, err)
	heard := a.wantsDigest(appID, m.Digest)
	if heard.GetNumber() != 1 || heard.GetRef() != "refs/tags/latest" || heard.GetProjectId() != int64(site.ID) ||
		heard.GetPushId() == 0 || heard.GetAcceptedAt() == nil || heard.GetCommit() != string(commit) {
		t.Errorf("heard %v", heard)
	}
	a.quiet() // one push for each tag, one announcement
	a.delivered(heard)
	got := w.awaitState(r.ID, appID, 1, tidelock.Delivered)
	if got.Digest != m.Digest || got.Commit != commit || got.Project != site.ID || got.AcceptedAt.IsZero() {
		t.Errorf("recorded %+v", got)
	}
	want.Digest, want.Wanted, want.State = m.Digest, commit, tidelock.Delivered
	w.awaitShown(r.ID, want)
	a.progress(&agentrpc.Progress{SourceId: appID, Number: 1, State: agentrpc.Progress_STATE_CONVERGED, Fetched: ms(3)})
	w.awaitState(r.ID, appID, 1, tidelock.Converged)

	w.artifact(site, "", "three", "nightly")
	w.artifact(site, "other", "four", "latest")
	a.quiet() // another tag, another image
}

// TestTagMovesBack tells of an artifact again that was told before, once Flux
// had another one in between that it found by itself.
func TestTagMovesBack(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	src := imageSource(appID, site, "", nil)
	c := w.connect(r, "one")
	a := c.announce(src)
	a.served(appID, site.ID)
	a.quiet()
	// reach has Flux arrive at an artifact, announced or not.
	reach := func(digest tidelock.Digest, number int64, last tidelock.Digest) {
		src = has(src, "latest@"+string(digest), number, last)
		a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{src}})
	}
	converge := func(m *agentrpc.Announcement) {
		reach(tidelock.Digest(m.GetDigest()), m.GetNumber(), tidelock.Digest(m.GetDigest()))
		a.progress(&agentrpc.Progress{SourceId: appID, Number: m.GetNumber(), State: agentrpc.Progress_STATE_CONVERGED})
		w.awaitState(r.ID, appID, m.GetNumber(), tidelock.Converged)
	}
	first := w.artifact(site, "", "one", "latest")
	converge(a.wantsDigest(appID, first))

	// While the agent was away the tag moved, and Flux found that.
	c.tunnel.Close("away")
	a.ends()
	second := w.artifact(site, "", "two", "latest")
	src = has(src, "latest@"+string(second), 1, first)
	c = w.connect(r, "one")
	a = c.announce(src)
	a.served(appID, site.ID)
	a.quiet()
	w.artifact(site, "", "one", "latest")
	converge(a.wantsDigest(appID, first))

	// It moved there and back, and Flux stayed where it was in between.
	c.tunnel.Close("away")
	a.ends()
	src = has(src, "latest@"+string(second), 2, first)
	a = w.connect(r, "one").announce(src)
	a.served(appID, site.ID)
	if m := a.wantsDigest(appID, first); m.GetNumber() != 3 {
		t.Errorf("heard %v", m)
	}
}

// TestAnnounceByTagRule pushes to one image what each rule wants, and what it
// does not.
func TestAnnounceByTagRule(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	const pinnedID = "OCIRepository/x/pinned"
	pinned := w.draft(site, "app", "pinned")
	specs := map[string]*agentrpc.RefSpec{
		"OCIRepository/x/none":     nil, // means latest
		"OCIRepository/x/tag":      {Tag: "stable"},
		"OCIRepository/x/semver":   {Semver: "1.x", Tag: "stable"},
		"OCIRepository/x/filtered": {Semver: ">=1.0.0-0", SemverFilter: ".*-rc.*"},
		"OCIRepository/x/wrong":    {Semver: "1.x", SemverFilter: "("},
		pinnedID:                   {Digest: string(pinned.Digest), Semver: "1.x"},
		"HelmChart/x/chart":        {Semver: "^1.0.0"},
		"HelmChart/x/newest":       nil,
	}
	set := []*agentrpc.Source{}
	for id, ref := range specs {
		set = append(set, imageSource(id, site, "app", ref))
	}
	a := w.connect(w.register("a"), "one").announce(set...)
	for range specs {
		if !a.resolution().GetServed() {
			t.Error("not served")
		}
	}
	a.quiet()
	told := map[string]string{}
	expect := func(digest tidelock.Digest, ids ...string) {
		t.Helper()
		got := []string{}
		for range ids {
			m := a.announcement()
			got = append(got, m.GetSourceId())
			told[m.GetSourceId()] = m.GetRef()
			if m.GetDigest() != string(digest) {
				t.Errorf("%s: announced %s, want %s", m.GetSourceId(), m.GetDigest(), digest)
			}
		}
		slices.Sort(got)
		if !slices.Equal(got, ids) {
			t.Errorf("announced to %v, want %v", got, ids)
		}
		a.quiet()
	}
	expect(w.artifact(site, "app", "1", "latest"), "OCIRepository/x/none")
	expect(w.artifact(site, "app", "2", "stable"), "OCIRepository/x/tag")
	expect(w.artifact(site, "app", "3", "1.0.0"), "HelmChart/x/chart", "HelmChart/x/newest", "OCIRepository/x/semver")
	expect(w.artifact(site, "app", "4", "1.1.0-rc.1"), "OCIRepository/x/filtered")
	expect(w.artifact(site, "app", "5", "0.9.0"))
	expect(w.artifact(site, "app", "6", "2.0.0"), "HelmChart/x/newest")
	expect(w.artifact(site, "app", "7", "1.2.0_build.7"), "HelmChart/x/chart")
	if got := told["HelmChart/x/chart"]; got != "refs/tags/1.2.0_build.7" {
		t.Errorf("the chart is at %s", got)
	}
	_, err := w.PushManifest(t.Context(), w.root, site, pinned)
	check(t, err)
	expect(pinned.Digest, pinnedID)
}

func TestImageRepositoryIsToldOfEveryTag(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	const id = "ImageRepository/x/app"
	w.artifact(site, "app", "one", "v1")
	r := w.register("a")
	a := w.connect(r, "one").announce(imageSource(id, site, "app", nil))
	a.served(id, site.ID)
	seen := map[string]bool{}
	announced := func() *agentrpc.Announcement {
		t.Helper()
		m := a.announcement()
		if m.GetSourceId() != id || m.GetGone() || seen[m.GetDigest()] {
			t.Fatalf("heard %v", m)
		}
		seen[m.GetDigest()] = true
		return m
	}
	announced()
	digest := w.artifact(site, "app", "two", "v2")
	announced()
	w.artifact(site, "app", "two", "v3") // another tag of the same
	announced()
	check(t, w.DeleteReference(t.Context(), w.root, site, "app", "v3"))
	m := a.announcement()
	if !seen[m.GetDigest()] || m.GetDigest() == string(digest) {
		t.Errorf("without v3: heard %v, want what was announced with v2", m)
	}
	// What it was told is known by its word after a reconnect.
	known := has(imageSource(id, site, "app", nil), "", m.GetNumber(), tidelock.Digest(m.GetDigest()))
	a = w.connect(r, "one").announce(known)
	a.served(id, site.ID)
	a.quiet()
}

func TestRemovedTagIsGoneOnceAndBack(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	digest := w.artifact(site, "app", "one", "latest", "other")
	r := w.register("a")
	src := imageSource(appID, site, "app", nil)
	a := w.connect(r, "one").announce(src)
	a.served(appID, site.ID)
	a.delivered(a.wantsDigest(appID, digest))
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{has(src, "latest@"+string(digest), 1, digest)}})

	w.removeTag(site, "app", "other")
	a.quiet()
	w.removeTag(site, "app", "latest")
	gone := a.wantsDigest(appID, "")
	if gone.GetRef() != "refs/tags/latest" || gone.GetNumber() != 2 || gone.GetCommit() != "" {
		t.Errorf("heard %v", gone)
	}
	a.delivered(gone)
	w.awaitState(r.ID, appID, 2, tidelock.Gone)
	w.awaitShown(r.ID, tidelock.AgentSource{
		Source: appID, Project: site.ID, Ref: "refs/tags/latest", Revision: "latest@" + string(digest), State: tidelock.Gone,
	})
	w.artifact(site, "app", "two", "unrelated")
	a.quiet()
	a = w.connect(r, "one").announce(has(src, "latest@"+string(digest), 2, ""))
	a.served(appID, site.ID)
	a.quiet() // it has been said

	w.artifact(site, "app", "one", "latest")
	if m := a.wantsDigest(appID, digest); m.GetNumber() != 3 {
		t.Errorf("heard %v", m)
	}
}

// TestArtifactsArePushedWhileNobodyListens covers what reconnects and
// restarts have to find by comparison.
func TestArtifactsArePushedWhileNobodyListens(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	first := w.artifact(site, "app", "one", "latest")
	src := imageSource(appID, site, "app", nil)
	c := w.connect(r, "one")
	a := c.announce(src)
	a.served(appID, site.ID)
	a.wantsDigest(appID, first)
	c.tunnel.Close("cut before the agent had it")

	a = w.connect(r, "one").announce(src)
	a.served(appID, site.ID)
	m := a.wantsDigest(appID, first)
	a.delivered(m)
	w.awaitState(r.ID, appID, m.GetNumber(), tidelock.Delivered)
	known := has(src, "", m.GetNumber(), first)
	w.stop()
	w.start()
	a = w.connect(r, "one").announce(known)
	a.served(appID, site.ID)
	a.quiet() // delivered, and not repeated

	w.stop()
	second := w.artifact(site, "app", "two", "latest")
	w.start()
	a = w.connect(r, "one").announce(known)
	a.served(appID, site.ID)
	m = a.wantsDigest(appID, second)
	w.stop()
	w.start()
	// Converged while the stream was broken.
	a = w.connect(r, "one").announce(has(src, "latest@"+string(second), m.GetNumber(), second))
	a.served(appID, site.ID)
	w.awaitState(r.ID, appID, m.GetNumber(), tidelock.Converged)
	a.quiet()
}

// TestWhoIsServedWhat asks for every visibility, with and without a grant, and
// of the agent's own project, whether sources of images and of code are served.
// Both have the same answers, and what may not be known looks like nothing.
func TestWhoIsServedWhat(t *testing.T) {
	w := newWorld(t)
	r := w.register("a")
	own := r.project
	w.artifact(own, "app", "own", "latest")
	w.push(own, "main")
	type row struct {
		project tidelock.Project
		served  bool
	}
	rows := []row{{own, true}} // which is private
	for _, v := range []tidelock.Visibility{tidelock.Public, tidelock.InternalOnly, tidelock.Private} {
		for _, granted := range []bool{false, true} {
			p := w.project(fmt.Sprintf("p-%d-%t", v, granted), v)
			w.artifact(p, "app", p.Path, "latest")
			w.push(p, "main")
			if granted {
				_, err := w.GrantAgent(t.Context(), w.root, p, r.ID)
				check(t, err)
			}
			rows = append(rows, row{p, granted || v == tidelock.Public})
		}
	}
	want, set := map[string]tidelock.ProjectID{}, []*agentrpc.Source{}
	add := func(s *agentrpc.Source, p tidelock.ProjectID) {
		want[s.GetId()] = p
		set = append(set, s)
	}
	for _, row := range rows {
		p, serving := row.project, tidelock.ProjectID(0)
		if row.served {
			serving = p.ID
		}
		add(source("GitRepository/x/"+p.Path, p), serving)
		for _, kind := range []string{"OCIRepository", "HelmChart", "ImageRepository"} {
			add(imageSource(kind+"/x/"+p.Path, p, "app", nil), serving)
			// An image that is not there yet has a project all the same.
			add(imageSource(kind+"/missing/"+p.Path, p, "missing", nil), serving)
		}
	}
	nowhere := imageSource("OCIRepository/x/nowhere", own, "", nil)
	nowhere.Url = "oci://forge.example/team/nowhere/app"
	add(nowhere, 0)

	a := w.connect(r, "one").announce(set...)
	resolved := map[string]bool{}
	for len(resolved) < len(set) {
		m := a.next()
		if n := m.GetAnnouncement(); n != nil {
			if want[n.GetSourceId()] == 0 {
				t.Errorf("%s is announced", n.GetSourceId())
			}
			continue
		}
		got := m.GetResolution()
		resolved[got.GetSourceId()] = true
		if p := want[got.GetSourceId()]; got.GetServed() != (p != 0) || got.GetProjectId() != int64(p) {
			t.Errorf("%s: heard %v, want project %d", got.GetSourceId(), got, p)
		}
	}
	eventually(t, "all sources to be shown", func() bool {
		list, err := w.SourcesOf(t.Context(), r.ID)
		check(t, err)
		return len(list) == len(set)
	})
	hidden := w.shown(r.ID, nowhere.GetId())
	for id, p := range want {
		got := w.shown(r.ID, id)
		got.Source, got.Since, got.UpdatedAt, got.Refused = hidden.Source, hidden.Since, hidden.UpdatedAt, hidden.Refused // never listed
		if p == 0 && got != hidden {
			t.Errorf("%s is shown as %+v, and what does not exist as %+v", id, got, hidden)
		}
	}
}

func TestAccessToImagesOnLiveStreams(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Private)
	first := w.artifact(site, "deep/app", "one", "latest")
	r := w.register("a")
	src := imageSource(appID, site, "deep/app", nil)
	a := w.connect(r, "one").announce(src)
	a.served(appID, 0)
	w.artifact(site, "deep/app", "two", "latest")
	a.quiet()

	_, err := w.GrantAgent(t.Context(), w.root, site, r.ID)
	check(t, err)
	a.served(appID, site.ID)
	second := w.artifact(site, "deep/app", "two", "latest")
	m := a.wantsDigest(appID, second)
	a.delivered(m)
	check(t, w.RevokeGrant(t.Context(), w.root, site, r.ID))
	a.served(appID, 0)
	w.awaitState(r.ID, appID, m.GetNumber(), tidelock.Closed)
	w.artifact(site, "deep/app", "one", "latest")
	a.quiet()
	public := tidelock.Public
	_, err = w.EditProject(t.Context(), w.root, fmt.Sprint(site.ID), forge.ProjectEdit{Visibility: &public})
	check(t, err)
	a.served(appID, site.ID)
	a.wantsDigest(appID, first)

	check(t, w.DeleteProject(t.Context(), w.root, fmt.Sprint(site.ID)))
	a.served(appID, 0)
	// A project that comes to be is found by the path above the image's.
	again := w.project("site", tidelock.Public)
	a.served(appID, again.ID)
	a.quiet()
	a.wantsDigest(appID, w.artifact(again, "deep/app", "three", "latest"))
}

func TestImageOfARenamedProject(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	src := imageSource(appID, site, "app", nil)
	a := w.connect(w.register("a"), "one").announce(src)
	a.served(appID, site.ID)
	path := "moved"
	_, err := w.EditProject(t.Context(), w.root, fmt.Sprint(site.ID), forge.ProjectEdit{Path: &path})
	check(t, err)
	a.wantsDigest(appID, w.artifact(site, "app", "one", "latest")) // the old path leads there

	taker := w.project("site", tidelock.Public)
	a.served(appID, taker.ID)
	w.artifact(site, "app", "two", "latest")
	a.quiet()
	a.wantsDigest(appID, w.artifact(taker, "app", "three", "latest"))
}

func TestChartIsAtItsVersion(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	const id = "HelmChart/x/podinfo"
	first := w.artifact(site, "charts/podinfo", "one", "1.0.0")
	r := w.register("a")
	src := imageSource(id, site, "charts/podinfo", &agentrpc.RefSpec{Semver: "1.x"})
	a := w.connect(r, "one").announce(has(src, "1.0.0", 0, ""))
	a.served(id, site.ID)
	a.quiet()
	want := tidelock.AgentSource{
		Source: id, Project: site.ID, Ref: "refs/tags/1.0.0", Digest: first, Revision: "1.0.0", State: tidelock.Converged,
	}
	w.awaitShown(r.ID, want)
	second := w.artifact(site, "charts/podinfo", "two", "1.1.0")
	m := a.wantsDigest(id, second)
	a.delivered(m)
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{has(src, "1.1.0", m.GetNumber(), second)}})
	want.Ref, want.Digest, want.Revision = "refs/tags/1.1.0", second, "1.1.0"
	w.awaitShown(r.ID, want)
}

func TestTraceOfAnArtifact(t *testing.T) {
	w := newTraced(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	a := w.connect(r, "one").announce(imageSource(appID, site, "app", nil))
	a.served(appID, site.ID)
	digest := w.artifact(site, "app", "one", "latest")
	m := a.wantsDigest(appID, digest)
	id, parent := traceOf(t, m)
	a.delivered(m)
	a.progress(&agentrpc.Progress{
		SourceId: appID, Number: 1, State: agentrpc.Progress_STATE_CONVERGED,
		Called: ms(1), Answered: ms(5), Handled: ms(900), Fetched: ms(800), Via: agentrpc.Progress_VIA_RECEIVER, Attempts: 1,
	})
	spans := w.awaitTrace(id, "announce", "call receiver", "fetch", "reconcile", "record artifact")
	if got := spans["record artifact"].SpanContext.SpanID().String(); got != parent {
		t.Errorf("announced under %s, want the record %s", parent, got)
	}
	for _, hop := range []string{"announce", "call receiver", "fetch", "reconcile"} {
		if !slices.Contains(spans[hop].Attributes, attribute.String("tidelock.digest", string(digest))) {
			t.Errorf("%s has %v, want the digest", hop, spans[hop].Attributes)
		}
	}
}

func TestSourcesOfImagesThatNoHonestAgentSends(t *testing.T) {
	w := newWorld(t)
	site := w.project("site", tidelock.Public)
	long := strings.Repeat("x", 4096)
	good := imageSource(appID, site, "app", nil)
	digest := "sha256:" + strings.Repeat("a", 64)
	for name, change := range map[string]func(*agentrpc.Source){
		"last digest":   func(s *agentrpc.Source) { s.LastDigest = "sha256:../../x" },
		"digest":        func(s *agentrpc.Source) { s.Ref = &agentrpc.RefSpec{Digest: long} },
		"semver filter": func(s *agentrpc.Source) { s.Ref = &agentrpc.RefSpec{Semver: "1.x", SemverFilter: long} },
	} {
		bad := proto.CloneOf(good)
		bad.Id += "-bad"
		change(bad)
		fine := proto.CloneOf(good)
		fine.LastNumber, fine.LastDigest = 1, digest
		a := w.connect(w.register(strings.ReplaceAll(name, " ", "-")), "one").announce(bad, fine)
		a.served(appID, site.ID)
		if m := a.wantsDigest(appID, ""); m.GetNumber() != 2 {
			t.Errorf("%s: heard %v", name, m)
		}
		a.quiet() // the bad one has no answer
	}
}
