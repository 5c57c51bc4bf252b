package forge_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/registry"
)

// blob uploads content to an image as a client does.
func (w *world) blob(project tidelock.Project, image, content string) tidelock.Part {
	w.t.Helper()
	part, err := w.content.PutBlob(w.t.Context(), registry.Repo(project.ID, image), "", strings.NewReader(content))
	if err == nil {
		err = w.NoteBlob(w.t.Context(), project, image, part)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return part
}

type descriptor struct {
	MediaType string          `json:"mediaType"`
	Digest    tidelock.Digest `json:"digest"`
	Size      int64           `json:"size"`
}

func describe(mediaType string, p tidelock.Part) descriptor {
	return descriptor{mediaType, p.Digest, p.Size}
}

// manifest is one with a config and a layer that are in the image already.
type manifest struct {
	config, layer tidelock.Part
	subject       *descriptor
	annotations   map[string]string
}

func (m manifest) body() []byte {
	body, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": tidelock.MediaTypeManifest,
		"config":      describe(tidelock.MediaTypeFluxConfig, m.config),
		"layers":      []descriptor{describe(tidelock.MediaTypeFluxContent, m.layer)},
		"annotations": m.annotations,
	})
	if m.subject != nil {
		body, err = json.Marshal(map[string]any{
			"schemaVersion": 2, "mediaType": tidelock.MediaTypeManifest,
			"config":      describe(tidelock.MediaTypeFluxConfig, m.config),
			"layers":      []descriptor{describe(tidelock.MediaTypeFluxContent, m.layer)},
			"annotations": m.annotations, "subject": m.subject,
		})
	}
	if err != nil {
		panic(err)
	}
	return body
}

// push uploads a manifest whose layer is a text, under tags.
func (w *world) pushImage(p forge.Principal, project tidelock.Project, image, content string, tags ...string) (tidelock.Artifact, error) {
	w.t.Helper()
	m := manifest{config: w.blob(project, image, "{}"), layer: w.blob(project, image, content)}
	return w.PushManifest(w.t.Context(), p, project, forge.ManifestPush{Image: image, Tags: tags, MediaType: tidelock.MediaTypeManifest, Body: m.body()})
}

func (w *world) mustPush(project tidelock.Project, image, content string, tags ...string) tidelock.Artifact {
	w.t.Helper()
	a, err := w.pushImage(w.root, project, image, content, tags...)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func codeOf(err error) registry.Code {
	if p, ok := errors.AsType[*registry.Problem](err); ok {
		return p.Code
	}
	return ""
}

func TestPushManifest(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "Site", tidelock.Private)
	dev := w.user("dev")
	w.member(forge.OnProject(project), dev, tidelock.Developer)

	heard := make(chan tidelock.Pushed, 10)
	subscription, err := forge.Subscribe(w.Forge, func(e tidelock.Pushed) { heard <- e })
	if err != nil {
		t.Fatal(err)
	}
	defer subscription.Close()

	a, err := w.pushImage(as(dev), project, "app", "one", "latest", "main")
	if err != nil {
		t.Fatal(err)
	}
	if a.Type != tidelock.MediaTypeFluxConfig || a.By != dev.ID || len(a.Parts) != 2 || a.Digest == "" || !a.PushedAt.Equal(w.clock) {
		t.Errorf("the artifact is %+v", a)
	}
	pushes, total, err := w.store.Pushes(t.Context(), tidelock.PushFilter{Project: project.ID}, tidelock.Page{})
	if err != nil || total != 2 {
		t.Fatalf("a push with two tags: got %d pushes, %v, want 2", total, err)
	}
	for i, tag := range []string{"main", "latest"} {
		p := pushes[i]
		want := tidelock.ArtifactUpdate{Image: a.Image, Tag: tag, New: a.Digest}
		if p.Artifact == nil || *p.Artifact != want || len(p.Updates) != 0 || p.By != dev.ID || p.Trace == "" {
			t.Errorf("push %d is %+v with %+v, want %+v", i, p, p.Artifact, want)
		}
	}
	for range pushes {
		select {
		case <-heard:
		case <-time.After(10 * time.Second):
			t.Fatal("a push was not announced")
		}
	}

	again, err := w.pushImage(as(dev), project, "app", "one", "latest")
	if err != nil || again.Digest != a.Digest {
		t.Fatalf("the same again: got %v, %v", again.Digest, err)
	}
	if _, n, _ := w.store.Pushes(t.Context(), tidelock.PushFilter{Project: project.ID}, tidelock.Page{}); n != 2 {
		t.Errorf("the same again made a push: there are %d, want 2", n)
	}

	moved, err := w.pushImage(as(dev), project, "app", "two", "latest")
	if err != nil {
		t.Fatal(err)
	}
	pushes, _, _ = w.store.Pushes(t.Context(), tidelock.PushFilter{Project: project.ID}, tidelock.Page{})
	if u := pushes[0].Artifact; u == nil || u.Old != a.Digest || u.New != moved.Digest {
		t.Errorf("the push that moved a tag has %+v", u)
	}
	for reference, want := range map[string]tidelock.Digest{"latest": moved.Digest, "main": a.Digest, string(a.Digest): a.Digest} {
		got, body, err := w.Manifest(t.Context(), as(dev), project, "app", reference)
		if err != nil || got.Digest != want || tidelock.DigestOf(body) != want {
			t.Errorf("manifest %s: got %s, %v, want %s", reference, got.Digest, err, want)
		}
	}
	tags, err := w.ImageTags(t.Context(), as(dev), project, "app", "", 0)
	if err != nil || len(tags) != 2 || tags[0].Name != "latest" || tags[1].Name != "main" {
		t.Errorf("tags: got %v, %v", tags, err)
	}
}

func TestPushManifestRefused(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Public), "site", tidelock.Public)
	reporter := w.user("reporter")
	w.member(forge.OnProject(project), reporter, tidelock.Reporter)
	here := manifest{config: w.blob(project, "", "{}"), layer: w.blob(project, "", "content")}
	elsewhere := w.blob(project, "other", "elsewhere")
	lying := here
	lying.layer.Size++
	missing := here
	missing.layer = elsewhere
	long := strings.Repeat("a", 256)

	for name, tt := range map[string]struct {
		as   forge.Principal
		push forge.ManifestPush
		kind tidelock.Kind
		code registry.Code
	}{
		"anonymous":             {push: forge.ManifestPush{Body: here.body()}, kind: tidelock.Unauthenticated},
		"a reporter":            {as: as(reporter), push: forge.ManifestPush{Body: here.body()}, kind: tidelock.Denied},
		"another image's blob":  {as: w.root, push: forge.ManifestPush{Body: missing.body()}, kind: tidelock.Invalid, code: registry.ManifestBlobUnknown},
		"a size that is a lie":  {as: w.root, push: forge.ManifestPush{Body: lying.body()}, kind: tidelock.Invalid, code: registry.ManifestInvalid},
		"another digest":        {as: w.root, push: forge.ManifestPush{Body: here.body(), Digest: elsewhere.Digest}, kind: tidelock.Invalid, code: registry.DigestInvalid},
		"a tag with a space":    {as: w.root, push: forge.ManifestPush{Body: here.body(), Tags: []string{"a b"}}, kind: tidelock.Invalid, code: registry.TagInvalid},
		"a tag that is a path":  {as: w.root, push: forge.ManifestPush{Body: here.body(), Tags: []string{"../x"}}, kind: tidelock.Invalid, code: registry.TagInvalid},
		"a name with capitals":  {as: w.root, push: forge.ManifestPush{Body: here.body(), Image: "App"}, kind: tidelock.Invalid, code: registry.NameInvalid},
		"a name that climbs":    {as: w.root, push: forge.ManifestPush{Body: here.body(), Image: "../x"}, kind: tidelock.Invalid, code: registry.NameInvalid},
		"a name that is long":   {as: w.root, push: forge.ManifestPush{Body: here.body(), Image: long}, kind: tidelock.Invalid, code: registry.NameInvalid},
		"what is no manifest":   {as: w.root, push: forge.ManifestPush{Body: []byte("{}")}, kind: tidelock.Invalid, code: registry.ManifestInvalid},
		"a type that is a lie":  {as: w.root, push: forge.ManifestPush{Body: here.body(), MediaType: tidelock.MediaTypeIndex}, kind: tidelock.Invalid, code: registry.ManifestInvalid},
		"a blob as a manifest":  {as: w.root, push: forge.ManifestPush{Body: index(here.layer)}, kind: tidelock.Invalid, code: registry.ManifestBlobUnknown},
		"more tags than anyone": {as: w.root, push: forge.ManifestPush{Body: here.body(), Tags: slices.Repeat([]string{"x"}, 101)}, kind: tidelock.Invalid, code: registry.TagInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.PushManifest(t.Context(), tt.as, project, tt.push)
			if tidelock.KindOf(err) != tt.kind || codeOf(err) != tt.code {
				t.Errorf("got %v (%v, %q), want %v, %q", err, tidelock.KindOf(err), codeOf(err), tt.kind, tt.code)
			}
		})
	}
	if _, n, err := w.store.Pushes(t.Context(), tidelock.PushFilter{Project: project.ID}, tidelock.Page{}); err != nil || n != 0 {
		t.Errorf("what was refused left %d pushes, %v", n, err)
	}
}

func index(parts ...tidelock.Part) []byte {
	list := []descriptor{}
	for _, p := range parts {
		list = append(list, describe(tidelock.MediaTypeManifest, p))
	}
	body, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": tidelock.MediaTypeIndex, "manifests": list})
	if err != nil {
		panic(err)
	}
	return body
}

func TestProjectOfImage(t *testing.T) {
	w := newWorld(t)
	team := w.group("Team", tidelock.Public)
	site := w.project(team, "Site", tidelock.Public)
	deep, err := w.CreateGroup(t.Context(), w.root, forge.NewGroup{Path: "deep", Parent: team.ID, Visibility: tidelock.Public})
	if err != nil {
		t.Fatal(err)
	}
	inner := w.project(deep, "site", tidelock.Public)
	moved := w.project(team, "old", tidelock.Public)
	path := "fresh"
	if _, err := w.EditProject(t.Context(), w.root, moved.FullPath, forge.ProjectEdit{Path: &path}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path    string
		project tidelock.ProjectID
		name    string
	}{
		{"team/site", site.ID, ""},
		{"team/site/app", site.ID, "app"},
		{"team/site/a/b/c", site.ID, "a/b/c"},
		{"team/deep/site", inner.ID, ""},
		{"team/deep/site/x", inner.ID, "x"},
		{"team/old", moved.ID, ""},
		{"team/old/app", moved.ID, "app"},
		{"team/fresh/app", moved.ID, "app"},
		{"team/deep", 0, ""},
		{"team", 0, ""},
		{"", 0, ""},
		{"nobody/site", 0, ""},
		{strings.Repeat("a/", 5000) + "a", 0, ""},
	} {
		project, name, err := w.ProjectOfImage(t.Context(), tt.path)
		if project.ID != tt.project || name != tt.name || (tt.project == 0) != (codeOf(err) == registry.NameUnknown) {
			t.Errorf("%.40q: got project %d, %q, %v, want %d, %q", tt.path, project.ID, name, err, tt.project, tt.name)
		}
	}
	// A project may come to stand where the group of another one was: its own
	// path goes before the old, longer one.
	if _, err := w.TransferProject(t.Context(), w.root, inner.FullPath, "team"); tidelock.KindOf(err) != tidelock.Invalid && tidelock.KindOf(err) != tidelock.Conflict {
		t.Fatalf("two projects of one path: got %v", err)
	}
	other := w.group("other", tidelock.Public)
	if _, err := w.TransferProject(t.Context(), w.root, inner.FullPath, other.FullPath); err != nil {
		t.Fatal(err)
	}
	if err := w.DeleteGroup(t.Context(), w.root, deep.FullPath); err != nil {
		t.Fatal(err)
	}
	heir := w.project(team, "deep", tidelock.Public)
	if project, name, err := w.ProjectOfImage(t.Context(), "team/deep/site"); err != nil || project.ID != heir.ID || name != "site" {
		t.Errorf("where a group was: got %d, %q, %v, want %d, site", project.ID, name, err, heir.ID)
	}
}

func TestImmutableTags(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	first := w.mustPush(project, "", "one", "1.2.3", "v1.2.3", "1.2.3-rc.1", "1.2.3_4", "stable")

	for _, tag := range []string{"1.2.3", "v1.2.3", "1.2.3-rc.1", "1.2.3_4"} {
		if _, err := w.pushImage(w.root, project, "", "one", tag); err != nil {
			t.Errorf("the same again as %s: %v", tag, err)
		}
		_, err := w.pushImage(w.root, project, "", "two", tag)
		if tidelock.KindOf(err) != tidelock.Denied || codeOf(err) != registry.Denied || !strings.Contains(err.Error(), "immutable") {
			t.Errorf("move %s: got %v, want denied", tag, err)
		}
		if err := w.DeleteReference(t.Context(), w.root, project, "", tag); codeOf(err) != registry.Denied {
			t.Errorf("delete %s: got %v, want denied", tag, err)
		}
	}
	// Nothing of a push whose second tag is refused may stay.
	if _, err := w.pushImage(w.root, project, "", "three", "fresh", "1.2.3"); codeOf(err) != registry.Denied {
		t.Errorf("a push with a tag that may not move: got %v, want denied", err)
	}
	if _, _, err := w.Manifest(t.Context(), w.root, project, "", "fresh"); codeOf(err) != registry.ManifestUnknown {
		t.Errorf("the other tag of a refused push: got %v, want unknown", err)
	}
	if err := w.DeleteReference(t.Context(), w.root, project, "", string(first.Digest)); codeOf(err) != registry.Denied {
		t.Errorf("delete by digest what immutable tags point at: got %v, want denied", err)
	}
	if _, err := w.pushImage(w.root, project, "", "two", "stable"); err != nil {
		t.Errorf("move a tag that is no version: %v", err)
	}

	// What an immutable tag needs, by way of an index, stays too.
	child := w.mustPush(project, "", "child")
	body := index(tidelock.Part{Digest: child.Digest, Size: child.Size})
	if _, err := w.PushManifest(t.Context(), w.root, project, forge.ManifestPush{Tags: []string{"2.0.0"}, Body: body}); err != nil {
		t.Fatal(err)
	}
	if err := w.DeleteReference(t.Context(), w.root, project, "", string(child.Digest)); codeOf(err) != registry.Denied {
		t.Errorf("delete a part of an immutable index: got %v, want denied", err)
	}

	// The rule can be taken away by those who manage images, and that is noted.
	rules, err := w.TagRules(t.Context(), w.root, project)
	if err != nil || len(rules) != 1 || rules[0].Pattern != tidelock.SemVerTags || !rules[0].Immutable() {
		t.Fatalf("a new project's rules: got %+v, %v", rules, err)
	}
	if err := w.RemoveTagRule(t.Context(), w.root, project, rules[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := w.DeleteReference(t.Context(), w.root, project, "", string(first.Digest)); err != nil {
		t.Errorf("delete without the rule: %v", err)
	}
	events, _, err := w.AuditLog(t.Context(), w.root, forge.OnProject(project), tidelock.AuditFilter{}, tidelock.Page{})
	if err != nil || events[0].Act != "image tag rule deleted" {
		t.Errorf("the audit log: got %+v, %v", events[0], err)
	}
}

// Of pushes of one new immutable tag at once, one wins; the others are told.
func TestImmutableTagRace(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	for round := range 5 {
		tag := fmt.Sprintf("1.0.%d", round)
		var won sync.Map
		var wg sync.WaitGroup
		for n := range 8 {
			content := fmt.Sprint(round, n)
			m := manifest{config: w.blob(project, "", "{}"), layer: w.blob(project, "", content)}
			wg.Go(func() {
				a, err := w.PushManifest(t.Context(), w.root, project, forge.ManifestPush{Tags: []string{tag}, Body: m.body()})
				switch {
				case err == nil:
					won.Store(a.Digest, true)
				case codeOf(err) != registry.Denied:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		winners := 0
		won.Range(func(digest, _ any) bool {
			winners++
			if got, _, err := w.Manifest(t.Context(), w.root, project, "", tag); err != nil || got.Digest != digest {
				t.Errorf("%s is %v, %v, want the winner %v", tag, got.Digest, err, digest)
			}
			return true
		})
		if winners != 1 {
			t.Errorf("%d pushes of %s were accepted, want 1", winners, tag)
		}
	}
}

func TestProtectedTags(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	dev, maintainer := w.user("dev"), w.user("maintainer")
	w.member(forge.OnProject(project), dev, tidelock.Developer)
	w.member(forge.OnProject(project), maintainer, tidelock.Maintainer)
	rule, err := w.SaveTagRule(t.Context(), as(maintainer), project, tidelock.TagRule{Pattern: "^prod", PushLevel: tidelock.Maintainer, DeleteLevel: tidelock.Owner})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.pushImage(as(dev), project, "", "one", "prod"); codeOf(err) != registry.Denied {
		t.Errorf("push by a developer: got %v, want denied", err)
	}
	if _, err := w.pushImage(as(maintainer), project, "", "one", "prod"); err != nil {
		t.Errorf("push by a maintainer: %v", err)
	}
	if err := w.DeleteReference(t.Context(), as(maintainer), project, "", "prod"); codeOf(err) != registry.Denied {
		t.Errorf("delete by a maintainer: got %v, want denied", err)
	}
	if err := w.DeleteReference(t.Context(), w.root, project, "", "prod"); err != nil {
		t.Errorf("delete by an administrator: %v", err)
	}
	for name, bad := range map[string]tidelock.TagRule{
		"an empty pattern": {},
		"a broken pattern": {Pattern: "("},
		"a long pattern":   {Pattern: strings.Repeat("a", 101)},
		"half a level":     {Pattern: "x", PushLevel: tidelock.Owner},
	} {
		if _, err := w.SaveTagRule(t.Context(), as(maintainer), project, bad); tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("%s: got %v, want invalid", name, err)
		}
	}
	if _, err := w.SaveTagRule(t.Context(), as(maintainer), project, tidelock.TagRule{Pattern: "^prod"}); tidelock.KindOf(err) != tidelock.Conflict {
		t.Errorf("a second rule of one pattern: got %v, want conflict", err)
	}
	if _, err := w.SaveTagRule(t.Context(), as(dev), project, tidelock.TagRule{Pattern: "x"}); tidelock.KindOf(err) != tidelock.Denied {
		t.Errorf("a rule by a developer: got %v, want denied", err)
	}
	rule.PushLevel = tidelock.Owner
	if _, err := w.SaveTagRule(t.Context(), as(maintainer), project, rule); err != nil {
		t.Errorf("change a rule: %v", err)
	}
}

func TestDeleteReference(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	a := w.mustPush(project, "", "one", "a", "b")
	if err := w.DeleteReference(t.Context(), w.root, project, "", "a"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.Manifest(t.Context(), w.root, project, "", "b"); err != nil {
		t.Errorf("the other tag: %v", err)
	}
	if err := w.DeleteReference(t.Context(), w.root, project, "", string(a.Digest)); err != nil {
		t.Fatal(err)
	}
	for _, reference := range []string{"a", "b", string(a.Digest)} {
		if _, _, err := w.Manifest(t.Context(), w.root, project, "", reference); codeOf(err) != registry.ManifestUnknown {
			t.Errorf("manifest %s afterwards: got %v, want unknown", reference, err)
		}
		if err := w.DeleteReference(t.Context(), w.root, project, "", reference); codeOf(err) != registry.ManifestUnknown {
			t.Errorf("delete %s again: got %v, want unknown", reference, err)
		}
	}
	pushes, _, err := w.store.Pushes(t.Context(), tidelock.PushFilter{Project: project.ID}, tidelock.Page{})
	if err != nil || len(pushes) != 4 {
		t.Fatalf("got %d pushes, %v, want 4", len(pushes), err)
	}
	for i, tag := range []string{"b", "a"} {
		want := tidelock.ArtifactUpdate{Image: a.Image, Tag: tag, Old: a.Digest}
		if got := pushes[i].Artifact; got == nil || *got != want {
			t.Errorf("the removal of %s is %+v, want %+v", tag, got, want)
		}
	}
}

func TestCommitOfArtifact(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	commit := w.pushed(project, "refs/heads/main", "first")
	config, layer := w.blob(project, "", "{}"), w.blob(project, "", "layer")
	absent := strings.Repeat("0", 40)
	for revision, want := range map[string]tidelock.CommitID{
		"main@sha1:" + string(commit):     commit,
		"sha1:" + string(commit):          commit,
		string(commit):                    commit,
		string(commit[:8]):                commit,
		"main@sha1:" + string(commit[:7]): commit,
		"main":                            "",
		"HEAD":                            "",
		"main@sha1:" + absent:             "",
		absent:                            "",
		string(commit) + "0":              "",
		"--all":                           "",
		"":                                "",
	} {
		m := manifest{config: config, layer: layer, annotations: map[string]string{tidelock.AnnotationRevision: revision}}
		a, err := w.PushManifest(t.Context(), w.root, project, forge.ManifestPush{Body: m.body(), Tags: []string{"t"}})
		if err != nil || a.Commit != want {
			t.Errorf("revision %q: got commit %q, %v, want %q", revision, a.Commit, err, want)
		}
	}
}

func TestResolveImage(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	digests := map[string]tidelock.Digest{}
	for _, tag := range []string{"latest", "main", "1.0.0", "1.2.0", "1.10.0", "v2.0.0", "2.1.0-rc.1", "3.0.0_b1", "dev-1.9.9", "5"} {
		digests[tag] = w.mustPush(project, "app", tag, tag).Digest
	}
	loose := w.mustPush(project, "app", "loose").Digest
	const never = tidelock.Digest("sha256:0000000000000000000000000000000000000000000000000000000000000000")

	for _, tt := range []struct {
		kind tidelock.SourceKind
		spec tidelock.RefSpec
		tag  string
		want tidelock.Digest
		err  tidelock.Kind
	}{
		{kind: tidelock.OCIRepository, tag: "latest"},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{Tag: "main"}, tag: "main"},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{Tag: "nope"}, err: tidelock.NotFound},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{SemVer: "1.x"}, tag: "1.10.0"},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{SemVer: ">=1.0.0", SemVerFilter: `^\d`}, tag: "5"},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{SemVer: ">=1.0.0-0 <3", SemVerFilter: `-rc`}, tag: "2.1.0-rc.1"},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{SemVer: ">=2.0.0 <3", Tag: "main"}, tag: "v2.0.0"},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{SemVer: ">=9"}, err: tidelock.NotFound},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{SemVer: "no range"}, err: tidelock.Invalid},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{SemVer: "*", SemVerFilter: "("}, err: tidelock.Invalid},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{SemVer: "*", SemVerFilter: strings.Repeat("a", 2000)}, err: tidelock.Invalid},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{Digest: string(loose), SemVer: "1.x"}, want: loose},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{Digest: string(digests["main"])}, tag: "main"},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{Digest: string(never)}, err: tidelock.NotFound},
		{kind: tidelock.OCIRepository, spec: tidelock.RefSpec{Digest: "main"}, err: tidelock.Invalid},
		{kind: tidelock.HelmChart, tag: "3.0.0_b1"},
		{kind: tidelock.HelmChart, spec: tidelock.RefSpec{SemVer: "3.0.0+b1"}, tag: "3.0.0_b1"},
		{kind: tidelock.HelmChart, spec: tidelock.RefSpec{SemVer: "^1.0"}, tag: "1.10.0"},
		{kind: tidelock.HelmChart, spec: tidelock.RefSpec{SemVer: "2.x"}, err: tidelock.NotFound},
		{kind: tidelock.HelmChart, spec: tidelock.RefSpec{SemVer: "2.1.0-rc.1"}, tag: "2.1.0-rc.1"},
		{kind: tidelock.HelmChart, spec: tidelock.RefSpec{SemVer: "x y"}, err: tidelock.Invalid},
	} {
		name := fmt.Sprintf("%s %+v", tt.kind, tt.spec)
		head, err := w.ResolveImage(t.Context(), project.ID, "app", tt.kind, tt.spec)
		if tt.err != 0 {
			if tidelock.KindOf(err) != tt.err {
				t.Errorf("%s: got %v, %v, want %v", name, head, err, tt.err)
			}
			continue
		}
		want, ref := tt.want, tidelock.RefName("")
		if tt.tag != "" {
			want, ref = digests[tt.tag], tidelock.TagRef(tt.tag)
		}
		if err != nil || head.Digest != want || head.Ref != ref || head.Project != project.ID || head.Image == 0 {
			t.Errorf("%s: got %s %s, %v, want %s %s", name, head.Ref, head.Digest, err, ref, want)
		}
	}

	all, err := w.ResolveImage(t.Context(), project.ID, "app", tidelock.ImageRepository, tidelock.RefSpec{})
	if err != nil || all.Digest == "" {
		t.Fatalf("all tags: got %v, %v", all, err)
	}
	w.mustPush(project, "app", "another", "another")
	more, err := w.ResolveImage(t.Context(), project.ID, "app", tidelock.ImageRepository, tidelock.RefSpec{})
	if err != nil || more.Digest == all.Digest || more.Push <= all.Push {
		t.Errorf("all tags after a push: got %v, %v, want another digest than %v", more, err, all)
	}
	if _, err := w.ResolveImage(t.Context(), project.ID, "nope", tidelock.OCIRepository, tidelock.RefSpec{}); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("no image: got %v, want not found", err)
	}
}

func TestImageQuota(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	if err := w.SetImageQuota(t.Context(), w.root, project, 1000); err != nil {
		t.Fatal(err)
	}
	w.mustPush(project, "", strings.Repeat("a", 200), "a")
	big, err := w.content.PutBlob(t.Context(), registry.Repo(project.ID, ""), "", strings.NewReader(strings.Repeat("b", 900)))
	if err != nil {
		t.Fatal(err)
	}
	err = w.NoteBlob(t.Context(), project, "", big)
	if tidelock.KindOf(err) != tidelock.TooLarge || codeOf(err) != registry.Denied || !strings.Contains(err.Error(), "administrator") {
		t.Errorf("a blob over the quota: got %v, want too large", err)
	}
	// The same content in another image of the project is not counted again.
	before, quota, err := w.ImageUsage(t.Context(), w.root, project)
	if err != nil || quota != 1000 || before < 200 {
		t.Fatalf("usage: got %d of %d, %v", before, quota, err)
	}
	w.blob(project, "other", strings.Repeat("a", 200))
	if after, _, _ := w.ImageUsage(t.Context(), w.root, project); after != before {
		t.Errorf("usage after the same content: got %d, want %d", after, before)
	}
	owner := w.user("owner")
	w.member(forge.OnProject(project), owner, tidelock.Owner)
	if err := w.SetImageQuota(t.Context(), as(owner), project, -1); tidelock.KindOf(err) != tidelock.Denied {
		t.Errorf("an owner lifting the quota: got %v, want denied", err)
	}
	if err := w.SetImageQuota(t.Context(), w.root, project, -1); err != nil {
		t.Fatal(err)
	}
	if err := w.NoteBlob(t.Context(), project, "", big); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("a blob that did not fit: got %v, want not found", err)
	}
	w.blob(project, "", strings.Repeat("b", 900))
}

func TestAgentPullsWhatItServes(t *testing.T) {
	w := newWorld(t)
	closed := w.group("closed", tidelock.Private)
	config, served, other := w.project(closed, "config", tidelock.Private), w.project(closed, "served", tidelock.Private), w.project(closed, "other", tidelock.Private)
	public := w.project(w.group("open", tidelock.Public), "site", tidelock.Public)
	agent, err := w.CreateAgent(t.Context(), w.root, config, "prod")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.GrantAgent(t.Context(), w.root, served, agent.ID); err != nil {
		t.Fatal(err)
	}
	p := forge.Principal{Agent: &agent}
	for _, tt := range []struct {
		action  forge.Action
		project tidelock.Project
		want    string
	}{
		{forge.PullImage, config, "y"}, {forge.PullImage, served, "y"}, {forge.PullImage, public, "y"}, {forge.PullImage, other, "404"},
		{forge.PushImage, served, "403"}, {forge.DeleteImage, served, "403"}, {forge.ReadImages, served, "403"},
		{forge.PullCode, served, "403"}, {forge.PullCode, other, "404"}, {forge.PushImage, public, "403"},
	} {
		if got := answer(w.Allow(t.Context(), p, tt.action, forge.OnProject(tt.project))); got != tt.want {
			t.Errorf("%s of %s by an agent: got %s, want %s", tt.action, tt.project.FullPath, got, tt.want)
		}
	}
	if err := w.RevokeGrant(t.Context(), w.root, served, agent.ID); err != nil {
		t.Fatal(err)
	}
	if got := answer(w.Allow(t.Context(), p, forge.PullImage, forge.OnProject(served))); got != "404" {
		t.Errorf("after the grant was revoked: got %s, want 404", got)
	}
}

// Pushes of manifests are marked as announced like any other.
func TestArtifactPushesAreMarked(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	w.mustPush(project, "", "one", "a")
	pushes, err := w.store.Unannounced(t.Context(), 10)
	if err != nil || len(pushes) != 1 || pushes[0].Artifact == nil || pushes[0].Artifact.Tag != "a" {
		t.Fatalf("unannounced: got %+v, %v", pushes, err)
	}
	w.run()
	eventually(t, "the push is marked", func() bool {
		left, err := w.store.Unannounced(t.Context(), 10)
		return err == nil && len(left) == 0
	})
}
