package forge_test

import (
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/registry"
)

// TestPublishForWhoPushed refuses to move protected tags for somebody who may
// push to some branch, but not those tags.
func TestPublishForWhoPushed(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	dev, maintainer, gone := w.user("dev"), w.user("maintainer"), w.user("gone")
	w.member(forge.OnProject(project), dev, tidelock.Developer)
	w.member(forge.OnProject(project), maintainer, tidelock.Maintainer)
	if _, err := w.ProtectBranch(t.Context(), w.root, project.FullPath, tidelock.ProtectedBranch{Pattern: "stable", PushLevel: tidelock.Developer}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.ProtectTag(t.Context(), w.root, project.FullPath, tidelock.ProtectedTag{Pattern: "rel-*", CreateLevel: tidelock.Developer}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.SaveTagRule(t.Context(), w.root, project, tidelock.TagRule{Pattern: "^prod", PushLevel: tidelock.Maintainer, DeleteLevel: tidelock.Maintainer}); err != nil {
		t.Fatal(err)
	}
	body := manifest{config: w.blob(project, "", "{}"), layer: w.blob(project, "", "a")}.body()
	parsed, err := registry.ParseManifest(tidelock.MediaTypeManifest, body)
	if err != nil {
		t.Fatal(err)
	}
	admin := w.root.User
	for _, tt := range []struct {
		ref  tidelock.RefName
		by   tidelock.UserID
		tag  string
		want registry.Code
	}{
		{"refs/heads/feature", dev.ID, "prod-dev", registry.Denied},
		{"refs/tags/v1.0.0", dev.ID, "prod-dev", registry.Denied},
		{"", dev.ID, "prod-dev", registry.Denied},
		{"refs/heads/feature", gone.ID, "prod-gone", registry.Denied},
		{"refs/heads/feature", 0, "prod-key", registry.Denied},
		{"refs/heads/feature", dev.ID, "feature", ""},
		{"refs/heads/feature", maintainer.ID, "prod-maintainer", ""},
		{"refs/heads/feature", admin.ID, "prod-admin", ""},
		{"refs/heads/stable", dev.ID, "prod-stable", ""},
		{"refs/tags/rel-1", dev.ID, "prod-rel", ""},
		{"refs/heads/stable", 0, "prod-stable-key", ""},
	} {
		push := forge.ManifestPush{Tags: []string{tt.tag}, MediaType: tidelock.MediaTypeManifest, Body: body, Digest: parsed.Digest, Ref: tt.ref}
		cause := tidelock.Push{By: tt.by}
		if err := w.MayPublish(t.Context(), project, push, cause); codeOf(err) != tt.want {
			t.Errorf("%s by %d: may publish %s: got %v, want %q", tt.ref, tt.by, tt.tag, err, tt.want)
		}
		if _, err := w.PublishArtifact(t.Context(), project, push, cause); codeOf(err) != tt.want {
			t.Errorf("%s by %d: publish %s: got %v, want %q", tt.ref, tt.by, tt.tag, err, tt.want)
		}
	}
}
