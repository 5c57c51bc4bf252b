package gitlabapi_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/signing"
)

// blob uploads a part of an image.
func (w *world) blob(project tidelock.Project, image string, body []byte) tidelock.Part {
	w.t.Helper()
	part, err := w.registry.PutBlob(w.t.Context(), registry.Repo(project.ID, image), "", bytes.NewReader(body))
	must(w.t, err)
	must(w.t, w.forge.NoteBlob(w.t.Context(), project, image, part))
	return part
}

// attach pushes an artifact with one part, attached to a subject unless that
// is nil.
func (w *world) attach(project tidelock.Project, image, tag, artifactType, content string, subject *tidelock.Artifact) tidelock.Artifact {
	w.t.Helper()
	part := w.blob(project, image, []byte(content))
	config := w.blob(project, image, []byte("{}"))
	type descriptor struct {
		MediaType string          `json:"mediaType"`
		Digest    tidelock.Digest `json:"digest"`
		Size      int64           `json:"size"`
	}
	manifest := map[string]any{
		"schemaVersion": 2, "mediaType": tidelock.MediaTypeManifest, "artifactType": artifactType,
		"config": descriptor{"application/vnd.oci.empty.v1+json", config.Digest, config.Size},
		"layers": []descriptor{{"application/json", part.Digest, part.Size}},
	}
	if subject != nil {
		manifest["subject"] = descriptor{subject.MediaType, subject.Digest, subject.Size}
	}
	body, err := json.Marshal(manifest)
	must(w.t, err)
	push := forge.ManifestPush{Image: image, MediaType: tidelock.MediaTypeManifest, Body: body}
	if tag != "" {
		push.Tags = []string{tag}
	}
	made, err := w.forge.PushManifest(w.t.Context(), w.root, project, push)
	must(w.t, err)
	return made
}

// sign pushes a signature of an artifact, as "cosign sign" does.
func (w *world) sign(project tidelock.Project, image string, signer *signing.Signer, a tidelock.Artifact) error {
	w.t.Helper()
	s, err := signer.Sign("forge.example/"+image, a, nil)
	must(w.t, err)
	for _, b := range s.Blobs {
		w.blob(project, image, b.Body)
	}
	_, err = w.forge.PushManifest(w.t.Context(), w.root, project, forge.ManifestPush{Image: image, Tags: []string{s.Tag}, MediaType: s.MediaType, Body: s.Manifest})
	return err
}

type keyRow struct {
	ID        string     `json:"id"`
	PublicKey string     `json:"public_key"`
	InUse     bool       `json:"in_use"`
	RetiredAt *time.Time `json:"retired_at"`
}

type artifactRow struct {
	Image    string            `json:"image"`
	Digest   tidelock.Digest   `json:"digest"`
	Type     string            `json:"artifact_type"`
	Tags     []string          `json:"tags"`
	Parts    []json.RawMessage `json:"parts"`
	SignedBy []string          `json:"signed_by"`
	Attached []struct {
		Digest tidelock.Digest `json:"digest"`
		Type   string          `json:"artifact_type"`
	} `json:"attached"`
	Held *struct {
		Type    string    `json:"artifact_type"`
		Signed  bool      `json:"signed"`
		Since   time.Time `json:"since"`
		Message string    `json:"message"`
	} `json:"held"`
}

func clientReports(t *testing.T, w *world) {
	ask := func(method, path, body string, status int, into any) {
		t.Helper()
		got := w.call(method, path, body, as(w.token))
		if got.status != status {
			t.Fatalf("%s %s answers %d %s, want %d", method, path, got.status, got.body, status)
		}
		if into != nil {
			must(t, json.Unmarshal([]byte(got.body), into))
		}
	}

	var keys []keyRow
	must(t, json.Unmarshal([]byte(w.call("GET", "/signing_keys", "").body), &keys))
	if len(keys) != 1 || !keys[0].InUse || keys[0].RetiredAt != nil {
		t.Fatalf("keys are %+v, want one in use", keys)
	}
	var next keyRow
	ask("POST", "/signing_keys/rotate", `{}`, http.StatusBadRequest, nil)
	ask("POST", "/signing_keys/rotate", `{"id":"`+keys[0].ID+`"}`, http.StatusCreated, &next)
	ask("POST", "/signing_keys/rotate", `{"id":"`+keys[0].ID+`"}`, http.StatusConflict, nil)
	old := keys[0]
	ask("GET", "/signing_keys", "", http.StatusOK, &keys)
	if len(keys) != 2 || keys[0].ID != next.ID || !keys[0].InUse || keys[1].ID != old.ID || keys[1].InUse || keys[1].RetiredAt == nil || keys[1].PublicKey != old.PublicKey {
		t.Errorf("keys after the rotation are %+v", keys)
	}

	project := w.project(w.group("scanned", tidelock.Private), "shop", tidelock.Private)
	const rules = "/projects/scanned%2Fshop/registry/report_rules"
	const show = "/projects/scanned%2Fshop/registry/artifacts/latest?image=web"
	resolve := func() error {
		_, err := w.forge.ResolveImage(t.Context(), project.ID, "web", tidelock.OCIRepository, tidelock.RefSpec{})
		return err
	}
	app := w.attach(project, "web", "latest", tidelock.MediaTypeFluxConfig, "app", nil)
	push := forge.ManifestPush{Image: "web", MediaType: app.MediaType}
	_, body, err := w.forge.Manifest(t.Context(), w.root, project, "web", "latest")
	must(t, err)
	push.Body = body
	for range 2 { // again changes nothing
		must(t, w.forge.SignManifest(t.Context(), project, push, "forge.example/scanned/shop/web", tidelock.Push{}))
	}
	var shown artifactRow
	ask("GET", show, "", http.StatusOK, &shown)
	if shown.Image != "scanned/shop/web" || shown.Digest != app.Digest || shown.Held != nil || len(shown.Parts) != 2 ||
		!slices.Equal(shown.Tags, []string{"latest"}) || !slices.Equal(shown.SignedBy, []string{next.ID}) ||
		len(shown.Attached) != 1 || shown.Attached[0].Type != signing.TypeSignature {
		t.Errorf("the artifact is %+v", shown)
	}
	must(t, resolve())

	// A scanner's report, of anybody.
	var rule struct {
		ID        int64   `json:"id"`
		Type      string  `json:"artifact_type"`
		PublicKey *string `json:"public_key"`
	}
	ask("POST", rules, `{"artifact_type":"application/sarif+json"}`, http.StatusCreated, &rule)
	ask("POST", rules, `{"artifact_type":"application/sarif+json"}`, http.StatusBadRequest, nil) // it is taken
	ask("POST", rules, `{"artifact_type":"application/x","public_key":"nonsense"}`, http.StatusBadRequest, nil)
	ask("GET", show, "", http.StatusOK, &shown)
	if shown.Held == nil || shown.Held.Type != "application/sarif+json" || shown.Held.Signed || shown.Held.Since.IsZero() {
		t.Errorf("the artifact without a report is %+v", shown)
	}
	if err := resolve(); err == nil || err.Error() != shown.Held.Message {
		t.Errorf("to announce it: %v, want %q", err, shown.Held.Message)
	}
	w.attach(project, "web", "", "application/spdx+json", "sbom", &app)
	if resolve() == nil {
		t.Error("a report of another type releases the artifact")
	}
	w.attach(project, "web", "", "application/sarif+json", "findings", &app)
	must(t, resolve())
	ask("GET", show, "", http.StatusOK, &shown)
	if len(shown.Attached) != 3 {
		t.Errorf("attached are %+v", shown.Attached)
	}

	// One that is signed by the scanner.
	scanner, err := signing.Open(t.TempDir())
	must(t, err)
	quoted, err := json.Marshal(scanner.Keys()[0].PEM())
	must(t, err)
	ask("DELETE", rules+"/"+itoa(rule.ID), "", http.StatusNoContent, nil)
	ask("DELETE", rules+"/"+itoa(rule.ID), "", http.StatusNotFound, nil)
	ask("POST", rules, `{"artifact_type":"application/sarif+json","public_key":`+string(quoted)+`}`, http.StatusCreated, &rule)
	var list []json.RawMessage
	ask("GET", rules, "", http.StatusOK, &list)
	if len(list) != 1 || rule.PublicKey == nil {
		t.Errorf("rules are %s", list)
	}
	if resolve() == nil {
		t.Error("a report without a signature releases the artifact")
	}
	stranger, err := signing.Open(t.TempDir())
	must(t, err)
	forged := w.attach(project, "web", "", "application/sarif+json", "no findings", &app)
	must(t, w.sign(project, "web", stranger, forged))
	if resolve() == nil {
		t.Error("a report that a stranger signed releases the artifact")
	}
	report := w.attach(project, "web", "", "application/sarif+json", "all findings", &app)
	must(t, w.sign(project, "web", scanner, report))
	must(t, resolve())

	// H30: a good signature under the tag of something else.
	evil := w.attach(project, "web", "latest", tidelock.MediaTypeFluxConfig, "evil", nil)
	_, signatures, err := w.forge.Manifest(t.Context(), w.root, project, "web", signing.Tag(app.Digest))
	must(t, err)
	_, err = w.forge.PushManifest(t.Context(), w.root, project, forge.ManifestPush{
		Image: "web", Tags: []string{signing.Tag(evil.Digest)}, MediaType: tidelock.MediaTypeManifest, Body: signatures,
	})
	if tidelock.KindOf(err) != tidelock.Invalid {
		t.Errorf("a signature of another artifact: %v, want it refused", err)
	}
	if tidelock.DigestOf(body) != app.Digest {
		t.Errorf("the artifact's manifest has changed")
	}
}
