package forge_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/registry"
)

// An expression that quotes to its end would quote the brackets that are put
// around it, too: it used to bring down the server when its retention was due.
func TestRetentionPatterns(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	a := w.mustPush(project, "app", "one", "v1")
	for _, pattern := range []string{`\Qv1`, `(`, `v1)|(v2`, `[`, `(?`} {
		_, err := w.SetRetention(t.Context(), w.root, project, forge.RetentionFields{Enabled: new(true), Remove: new(pattern)})
		if tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("remove %q: got %v, want invalid", pattern, err)
		}
		_, err = w.SetRetention(t.Context(), w.root, project, forge.RetentionFields{Keep: new(pattern)})
		if tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("keep %q: got %v, want invalid", pattern, err)
		}
		_, err = w.RemoveTags(t.Context(), w.root, project, a.Image, tidelock.Retention{Remove: pattern}, false)
		if tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("remove tags %q: got %v, want invalid", pattern, err)
		}
	}
	if _, err := w.RemoveTags(t.Context(), w.root, project, a.Image, tidelock.Retention{Remove: `\Qv1\E`}, true); err != nil {
		t.Errorf("an expression that ends its quote: got %v", err)
	}
}

// Clients that upload the same layer at once take its room once.
func TestQuotaIsTakenOnce(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	if err := w.SetImageQuota(t.Context(), w.root, project, 1500); err != nil {
		t.Fatal(err)
	}
	name, content := registry.Repo(project.ID, "app"), strings.Repeat("a", 1000)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			part, err := w.content.PutBlob(t.Context(), name, "", strings.NewReader(content))
			if err == nil {
				err = w.NoteBlob(t.Context(), project, "app", part)
			}
			if err != nil {
				t.Errorf("the same layer at once: %v", err)
			}
		})
	}
	group.Wait()
	// Nor does it take more in another image.
	w.blob(project, "other", content)
	if _, err := w.content.StatBlob(t.Context(), name, tidelock.DigestOf([]byte(content))); err != nil {
		t.Errorf("the layer is gone: %v", err)
	}
	w.mustPush(project, "app", content, "v1")
}

// What lies in storage and was not counted yet, because its upload was cut off
// right then, is counted when a manifest names it.
func TestQuotaCountsWhatManifestsName(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	if err := w.SetImageQuota(t.Context(), w.root, project, 1000); err != nil {
		t.Fatal(err)
	}
	layer, err := w.content.PutBlob(t.Context(), registry.Repo(project.ID, "app"), "", strings.NewReader(strings.Repeat("a", 5000)))
	if err != nil {
		t.Fatal(err)
	}
	m := manifest{config: w.blob(project, "app", "{}"), layer: layer}
	_, err = w.PushManifest(t.Context(), w.root, project, forge.ManifestPush{Image: "app", Tags: []string{"v1"}, MediaType: tidelock.MediaTypeManifest, Body: m.body()})
	if tidelock.KindOf(err) != tidelock.TooLarge {
		t.Errorf("a layer over the quota: got %v, want too large", err)
	}
	if used, _, err := w.ImageUsage(t.Context(), w.root, project); err != nil || used > 1000 {
		t.Errorf("the images have %d bytes, %v, and may have 1000", used, err)
	}
}

// Manifests that come at once do not grow past the quota together.
func TestQuotaOfManifestsAtOnce(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	const quota = 10_000
	if err := w.SetImageQuota(t.Context(), w.root, project, quota); err != nil {
		t.Fatal(err)
	}
	bodies := make([][]byte, 16)
	for n := range bodies {
		image := fmt.Sprintf("app%d", n)
		m := manifest{config: w.blob(project, image, "{}"), layer: w.blob(project, image, "layer")}
		m.annotations = map[string]string{"note": strings.Repeat("a", 3000) + image}
		bodies[n] = m.body()
	}
	var taken atomic.Int32
	var group sync.WaitGroup
	for n, body := range bodies {
		group.Go(func() {
			_, err := w.PushManifest(t.Context(), w.root, project, forge.ManifestPush{
				Image: fmt.Sprintf("app%d", n), Tags: []string{"v1"}, MediaType: tidelock.MediaTypeManifest, Body: body,
			})
			switch {
			case err == nil:
				taken.Add(1)
			case tidelock.KindOf(err) != tidelock.TooLarge:
				t.Error(err)
			}
		})
	}
	group.Wait()
	if used, _, err := w.ImageUsage(t.Context(), w.root, project); err != nil || used > quota || taken.Load() != 2 {
		t.Errorf("%d manifests were taken and the images have %d bytes, %v; want 2 and at most %d", taken.Load(), used, err, quota)
	}
}

// What is removed makes room at once.
func TestQuotaAfterRemoval(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	if err := w.SetImageQuota(t.Context(), w.root, project, 3000); err != nil {
		t.Fatal(err)
	}
	a := w.mustPush(project, "app", strings.Repeat("a", 1500), "main")
	if _, err := w.tryPush(project, strings.Repeat("b", 1500), "main", ""); tidelock.KindOf(err) != tidelock.TooLarge {
		t.Fatalf("a second one: got %v, want too large", err)
	}
	if err := w.RemoveImage(t.Context(), w.root, project, a.Image); err != nil {
		t.Fatal(err)
	}
	b := w.mustPush(project, "app", strings.Repeat("b", 1500), "main")
	if err := w.DeleteReference(t.Context(), w.root, project, "app", string(b.Digest)); err != nil {
		t.Fatal(err)
	}
	w.clock = w.clock.Add(30 * 24 * time.Hour)
	if _, err := w.CollectProject(t.Context(), w.root, project, false); err != nil {
		t.Fatal(err)
	}
	w.mustPush(project, "app", strings.Repeat("c", 1500), "main")
}

// A rule keeps tags from being collected, too, whatever they are attached to.
func TestCollectKeepsImmutableTags(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	if _, err := w.SaveTagRule(t.Context(), w.root, project, tidelock.TagRule{Pattern: `^sha256-0`}); err != nil {
		t.Fatal(err)
	}
	kept := "sha256-" + strings.Repeat("0", 64) + ".sbom"
	w.mustPush(project, "app", "kept", kept)
	w.mustPush(project, "app", "not kept", "sha256-"+strings.Repeat("1", 64)+".sbom")
	w.clock = w.clock.Add(30 * 24 * time.Hour)
	dry, err := w.CollectProject(t.Context(), w.root, project, true)
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.CollectProject(t.Context(), w.root, project, false)
	if err != nil || len(c.Artifacts) != 1 || len(dry.Artifacts) != 1 || dry.Blobs != c.Blobs || c.Blobs != 1 {
		t.Errorf("got %+v after %+v, %v; want one artifact and one blob", c, dry, err)
	}
	tags, err := w.ImageTags(t.Context(), w.root, project, "app", "", 0)
	if err != nil || len(tags) != 1 || tags[0].Name != kept {
		t.Errorf("the tags are %+v, %v, want %s", tags, err, kept)
	}
}
