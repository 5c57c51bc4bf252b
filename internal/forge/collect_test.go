package forge_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/registry"
)

func TestRetention(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	for i := range 6 {
		w.mustPush(project, "", fmt.Sprint("build", i), fmt.Sprintf("build-%d", i))
		w.clock = w.clock.Add(24 * time.Hour)
	}
	w.mustPush(project, "", "kept", "keep-me")
	w.mustPush(project, "", "v", "1.0.0", "latest")
	w.mustPush(project, "", "release", "release-1")
	used := w.mustPush(project, "", "used", "build-used")
	w.clock = w.clock.Add(30 * 24 * time.Hour)
	agent, err := w.CreateAgent(t.Context(), w.root, project, "prod")
	if err != nil {
		t.Fatal(err)
	}
	source := tidelock.AgentSource{Agent: agent.ID, Source: "OCIRepository/apps/site", Project: project.ID, Revision: "x@" + string(used.Digest)}
	if err := w.SaveAgentSources(t.Context(), agent.ID, []tidelock.AgentSource{source}, nil); err != nil {
		t.Fatal(err)
	}
	newest := w.mustPush(project, "", "newest", "build-newest")
	w.clock = w.clock.Add(time.Hour)
	enabled, keep, newestN, older := true, "keep-.*", 1, 7*24*time.Hour
	remove := "build-.*|keep-.*|1.0.0|latest"
	if _, err := w.SetRetention(t.Context(), w.root, project, forge.RetentionFields{
		Enabled: &enabled, Keep: &keep, KeepNewest: &newestN, OlderThan: &older, Remove: &remove,
	}); err != nil {
		t.Fatal(err)
	}

	want := map[string]string{
		"build-newest": "among the newest 1", "build-used": "a cluster uses it", "keep-me": "matches what is kept",
		"1.0.0": "protected by a tag rule", "latest": "latest always stays", "release-1": "does not match what is removed",
	}
	for _, dry := range []bool{true, false} {
		fates, err := w.ApplyRetention(t.Context(), w.root, project, dry)
		if err != nil {
			t.Fatal(err)
		}
		removed := 0
		for _, fate := range fates {
			if fate.Remove {
				removed++
			}
			if stays, ok := want[fate.Tag.Name]; ok != !fate.Remove || ok && fate.Why != stays {
				t.Errorf("dry %v: %s: remove %v because %q, want %q", dry, fate.Tag.Name, fate.Remove, fate.Why, stays)
			}
		}
		if removed != 6 {
			t.Errorf("dry %v: %d tags go, want 6", dry, removed)
		}
		tags, _ := w.ImageTags(t.Context(), w.root, project, "", "", 0)
		if got, left := len(tags), map[bool]int{true: 12, false: 6}[dry]; got != left {
			t.Errorf("dry %v: %d tags are left, want %d", dry, got, left)
		}
	}
	if got, _, err := w.Manifest(t.Context(), w.root, project, "", "build-newest"); err != nil || got.Digest != newest.Digest {
		t.Errorf("the newest: got %v, %v", got.Digest, err)
	}
	for name, bad := range map[string]forge.RetentionFields{
		"a broken pattern": {Remove: ptr("(")}, "nothing to remove": {Remove: ptr("")}, "a negative number": {KeepNewest: ptr(-1)}, "no pause": {Every: ptr(time.Second)},
	} {
		if _, err := w.SetRetention(t.Context(), w.root, project, bad); tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("%s: got %v, want invalid", name, err)
		}
	}
}

func TestCollect(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	kept := w.mustPush(project, "", "kept", "main")
	child := w.mustPush(project, "", "child")
	held := index(tidelock.Part{Digest: child.Digest, Size: child.Size})
	if _, err := w.PushManifest(t.Context(), w.root, project, forge.ManifestPush{Tags: []string{"multi"}, Body: held}); err != nil {
		t.Fatal(err)
	}
	config := w.blob(project, "", "{}")
	attach := func(to tidelock.Artifact, content string, tags ...string) tidelock.Artifact {
		m := manifest{config: config, layer: w.blob(project, "", content)}
		if len(tags) == 0 {
			m.subject = &descriptor{to.MediaType, to.Digest, to.Size}
		}
		a, err := w.PushManifest(t.Context(), w.root, project, forge.ManifestPush{Body: m.body(), Tags: tags})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	sbom := attach(kept, "sbom")
	onSBOM := attach(sbom, "signature of the sbom")
	signed := attach(kept, "signature", "sha256-"+strings.TrimPrefix(string(kept.Digest), "sha256:")+".sbom")
	gone := w.mustPush(project, "", "gone", "old")
	onGone := attach(gone, "sbom of what goes")
	goneSignature := attach(gone, "signature of what goes", "sha256-"+strings.TrimPrefix(string(gone.Digest), "sha256:")+".sbom")
	if err := w.DeleteReference(t.Context(), w.root, project, "", "old"); err != nil {
		t.Fatal(err)
	}
	loose := w.blob(project, "", "never named")

	collect := func(dry bool) forge.Collected {
		t.Helper()
		c, err := w.Collect(t.Context(), w.root, dry)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := collect(false); len(c.Artifacts) != 0 || c.Blobs != 0 || c.Strays != 0 || c.Swept.Blobs != 0 {
		t.Errorf("within the grace: got %+v, want nothing", c)
	}
	w.clock = time.Now().Add(48 * time.Hour)
	if c := collect(true); len(c.Artifacts) != 3 || c.Blobs != 4 {
		t.Errorf("dry: got %d artifacts and %d blobs, want 3 and 4", len(c.Artifacts), c.Blobs)
	}
	if _, _, err := w.Manifest(t.Context(), w.root, project, "", string(gone.Digest)); err != nil {
		t.Errorf("a dry run removed something: %v", err)
	}
	if c := collect(false); len(c.Artifacts) != 3 || c.Blobs != 4 || c.Swept.Blobs != 7 || c.Swept.Bytes == 0 {
		t.Errorf("got %d artifacts, %d blobs, %+v swept, want 3, 4 and 7", len(c.Artifacts), c.Blobs, c.Swept)
	}
	for _, a := range []tidelock.Artifact{kept, child, sbom, onSBOM, signed} {
		got, _, err := w.Manifest(t.Context(), w.root, project, "", string(a.Digest))
		if err != nil {
			t.Errorf("%s went: %v", a.Digest, err)
		}
		for _, p := range got.Parts {
			if _, err := w.content.StatBlob(t.Context(), registry.Repo(project.ID, ""), p.Digest); err != nil {
				t.Errorf("a part of %s went: %v", a.Digest, err)
			}
		}
	}
	for _, a := range []tidelock.Artifact{gone, onGone, goneSignature} {
		if _, _, err := w.Manifest(t.Context(), w.root, project, "", string(a.Digest)); codeOf(err) != registry.ManifestUnknown {
			t.Errorf("%s stayed: %v", a.Digest, err)
		}
	}
	if _, err := w.content.StatBlob(t.Context(), registry.Repo(project.ID, ""), loose.Digest); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("a blob that nothing names: got %v, want not found", err)
	}

	// With its project goes all that an image had.
	if err := w.DeleteProject(t.Context(), w.root, project.FullPath); err != nil {
		t.Fatal(err)
	}
	if c := collect(false); c.Strays == 0 || c.Swept.Bytes == 0 {
		t.Errorf("after the project: got %+v", c)
	}
	if c := collect(false); c.Strays != 0 || c.Swept.Blobs != 0 {
		t.Errorf("a second time: got %+v, want nothing", c)
	}
}

// Pushes and deletions go on while garbage is collected, with a grace shorter
// than a push may take: one that was too slow is told what it lacks and tries
// again, and whatever was accepted and has a tag stays whole.
func TestCollectRacesPushes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	w := newWorldTuned(t, func(s forge.Store) forge.Store { return s }, func(c *forge.Config) {
		c.ImageGrace, c.Now = 2*time.Millisecond, time.Now
	})
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	var mu sync.Mutex
	want := map[string]tidelock.Digest{}

	ctx, stop := context.WithCancel(t.Context())
	var collectors sync.WaitGroup
	runs, removed, swept := 0, 0, 0
	collectors.Go(func() {
		for ctx.Err() == nil {
			c, err := w.Collect(t.Context(), w.root, false)
			if err != nil {
				t.Error(err)
				return
			}
			runs, removed, swept = runs+1, removed+len(c.Artifacts)+c.Blobs+c.Strays, swept+c.Swept.Blobs
		}
	})
	var retries atomic.Int64
	var pushers sync.WaitGroup
	for n := range 4 {
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		pushers.Go(func() {
			for i := range 25 {
				tag, content := fmt.Sprintf("t%d-%d", n, random.IntN(3)), fmt.Sprint("shared", random.IntN(4))
				a, err := w.tryPush(project, content, tag, fmt.Sprint(n, i))
				for tidelock.KindOf(err) == tidelock.NotFound || codeOf(err) == registry.ManifestBlobUnknown {
					retries.Add(1)
					a, err = w.tryPush(project, content, tag, fmt.Sprint(n, i))
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				want[tag] = a.Digest
				mu.Unlock()
				if random.IntN(4) == 0 {
					if err := w.DeleteReference(t.Context(), w.root, project, "", tag); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					delete(want, tag)
					mu.Unlock()
				}
			}
		})
	}
	pushers.Wait()
	stop()
	collectors.Wait()
	if _, err := w.Collect(t.Context(), w.root, false); err != nil {
		t.Fatal(err)
	}
	for tag, digest := range want {
		a, _, err := w.Manifest(t.Context(), w.root, project, "", tag)
		if err != nil || a.Digest != digest {
			t.Errorf("%s: got %s, %v, want %s", tag, a.Digest, err, digest)
			continue
		}
		for _, p := range a.Parts {
			content, _, err := w.content.Blob(t.Context(), registry.Repo(project.ID, ""), p.Digest)
			if err != nil {
				t.Errorf("a part of %s is gone: %v", tag, err)
				continue
			}
			content.Close()
		}
	}
	if removed == 0 || swept == 0 {
		t.Error("nothing was collected: the race did not take place")
	}
	t.Logf("%d collections removed %d things and swept %d, %d pushes began again", runs, removed, swept, retries.Load())
}

// tryPush uploads a manifest and what it names, as fast as that goes.
func (w *world) tryPush(project tidelock.Project, content, tag, note string) (tidelock.Artifact, error) {
	name := registry.Repo(project.ID, "")
	var m manifest
	for into, text := range map[*tidelock.Part]string{&m.config: "{}", &m.layer: content} {
		part, err := w.content.PutBlob(w.t.Context(), name, "", strings.NewReader(text))
		if err == nil {
			err = w.NoteBlob(w.t.Context(), project, "", part)
		}
		if err != nil {
			return tidelock.Artifact{}, err
		}
		*into = part
	}
	m.annotations = map[string]string{"note": note}
	return w.PushManifest(w.t.Context(), w.root, project, forge.ManifestPush{Tags: []string{tag}, Body: m.body()})
}
