package gitlabapi_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/registry"
)

// artifact pushes an artifact of a text to an image.
func (w *world) artifact(p tidelock.Project, image, text, tag string) tidelock.Digest {
	w.t.Helper()
	layer, err := artifact.Pack([]artifact.File{{Path: "app.yaml", Content: []byte(text)}})
	must(w.t, err)
	made, err := artifact.New(layer, artifact.Source{})
	must(w.t, err)
	for _, blob := range [][]byte{made.Config, made.Layer} {
		_, err := w.registry.PutBlob(w.t.Context(), registry.Repo(p.ID, image), "", strings.NewReader(string(blob)))
		must(w.t, err)
	}
	m := forge.ManifestPush{Image: image, MediaType: tidelock.MediaTypeManifest, Body: made.Manifest}
	if tag != "" {
		m.Tags = []string{tag}
	}
	a, err := w.forge.PushManifest(w.t.Context(), w.root, p, m)
	must(w.t, err)
	return a.Digest
}

// TestDeliveryOfArtifacts reads how far a push of an artifact came.
func TestDeliveryOfArtifacts(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	app := w.project(w.group("Ours", tidelock.Private), "App", tidelock.Private)
	agent, err := w.forge.CreateAgent(ctx, w.root, app, "prod")
	must(t, err)
	first, second := w.artifact(app, "", "one", "latest"), w.artifact(app, "", "two", "latest")
	pinned := w.artifact(app, "api", "three", "")
	must(t, w.forge.DeleteReference(ctx, w.root, app, "", "latest"))

	get := func(path string, into any) {
		t.Helper()
		got := w.call("GET", path, "", as(w.token))
		if got.status != 200 {
			t.Fatalf("GET %s answers %d %s", path, got.status, got.body)
		}
		must(t, json.Unmarshal([]byte(got.body), into))
	}
	type update struct {
		Image, Tag, Old, New, Commit *string
	}
	var pushes []struct {
		ID       int64 `json:"id"`
		Updates  []any
		Artifact *update
	}
	project := "/projects/ours%2Fapp"
	get(project+"/pushes", &pushes)
	text := func(s string) *string { return &s }
	want := []update{
		{Image: text("ours/app"), Tag: text("latest"), Old: text(string(second))},
		{Image: text("ours/app/api"), New: text(string(pinned))},
		{Image: text("ours/app"), Tag: text("latest"), Old: text(string(first)), New: text(string(second))},
		{Image: text("ours/app"), Tag: text("latest"), New: text(string(first))},
	}
	if len(pushes) != len(want) {
		t.Fatalf("got %d pushes, want %d", len(pushes), len(want))
	}
	show := func(u *update) string {
		out, err := json.Marshal(u)
		must(t, err)
		return string(out)
	}
	for i, p := range pushes {
		if p.Artifact == nil || p.Updates == nil || len(p.Updates) != 0 || show(p.Artifact) != show(&want[i]) {
			t.Errorf("push %d: got %s and %v, want %s", i, show(p.Artifact), p.Updates, show(&want[i]))
		}
	}

	at := time.Now().UTC().Truncate(time.Microsecond)
	const source = "OCIRepository/flux-system/app"
	must(t, w.forge.SaveAnnouncements(ctx, tidelock.Announcement{
		Agent: agent.ID, Source: source, Number: 1, Project: app.ID, Ref: "refs/tags/latest", Digest: second,
		Push: tidelock.PushID(pushes[2].ID), State: tidelock.Converged, SentAt: at,
	}))
	must(t, w.forge.SaveAgentSources(ctx, agent.ID, []tidelock.AgentSource{{
		Agent: agent.ID, Source: source, Project: app.ID, Ref: "refs/tags/latest", Digest: second,
		Revision: "latest@" + string(second), State: tidelock.Converged, Since: at, UpdatedAt: at,
	}}, nil))
	type told struct {
		Source, Ref    string
		Commit, Digest *string
		Wanted         *string
		Revision       string
	}
	agentPath := fmt.Sprintf("%s/cluster_agents/%d", project, agent.ID)
	for path, n := range map[string]int{
		project + "/announcements":                            1,
		project + "/announcements?digest=" + string(second):   1,
		project + "/announcements?digest=" + string(first):    0,
		agentPath + "/announcements?digest=" + string(second): 1,
		agentPath + "/announcements?digest=sha256%3Anonsense": 0,
		agentPath + "/sources":                                1,
	} {
		var list []told
		get(path, &list)
		if len(list) != n {
			t.Fatalf("GET %s lists %d, want %d", path, len(list), n)
		}
		if n == 0 {
			continue
		}
		got := list[0]
		if got.Source != source || got.Ref != "refs/tags/latest" || got.Commit != nil || got.Wanted != nil || got.Digest == nil || *got.Digest != string(second) {
			t.Errorf("GET %s = %+v", path, got)
		}
	}
}
