package agentserver_test

import (
	"encoding/json"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/registry"
)

// report attaches a report of a type to an artifact.
func (w *world) report(project tidelock.Project, reportType string, subject forge.ManifestPush) {
	w.t.Helper()
	type descriptor struct {
		MediaType string          `json:"mediaType"`
		Digest    tidelock.Digest `json:"digest"`
		Size      int             `json:"size"`
	}
	const empty = "{}"
	_, err := w.images.PutBlob(w.t.Context(), registry.Repo(project.ID, subject.Image), "", strings.NewReader(empty))
	check(w.t, err)
	part := descriptor{"application/vnd.oci.empty.v1+json", tidelock.DigestOf([]byte(empty)), len(empty)}
	body, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": tidelock.MediaTypeManifest, "artifactType": reportType,
		"config": part, "layers": []descriptor{part},
		"subject": descriptor{subject.MediaType, subject.Digest, len(subject.Body)},
	})
	check(w.t, err)
	_, err = w.PushManifest(w.t.Context(), w.root, project, forge.ManifestPush{Image: subject.Image, MediaType: tidelock.MediaTypeManifest, Body: body})
	check(w.t, err)
}

// TestHeldUntilReported tells of an artifact only once the report is there that
// a rule wants, and then at once.
func TestHeldUntilReported(t *testing.T) {
	w := newWorld(t)
	const sarif = "application/sarif+json"
	site := w.project("site", tidelock.Public)
	first := w.artifact(site, "", "one", "latest")
	r := w.register("a")
	src := has(imageSource(appID, site, "", nil), "latest@"+string(first), 0, "")
	a := w.connect(r, "one").announce(src)
	a.served(appID, site.ID)
	rule, err := w.AddReportRule(t.Context(), w.root, site.FullPath, tidelock.ReportRule{Type: sarif})
	check(t, err)
	a.quiet() // what Flux has waits for nothing
	w.awaitShown(r.ID, tidelock.AgentSource{
		Source: appID, Project: site.ID, Ref: "refs/tags/latest", Digest: first, Revision: src.GetRevision(), State: tidelock.Converged,
	})

	push := func(text string) forge.ManifestPush {
		m := w.draft(site, "", text)
		m.Tags = []string{"latest"}
		_, err := w.PushManifest(t.Context(), w.root, site, m)
		check(t, err)
		return m
	}
	second := push("two")
	a.quiet()
	shown := w.awaitShown(r.ID, tidelock.AgentSource{
		Source: appID, Project: site.ID, Ref: "refs/tags/latest", Digest: second.Digest, Revision: src.GetRevision(), State: tidelock.Held,
		Message: "waits for a report of type " + sarif + " since " + w.tagged(site, "latest"),
	})
	if shown.Since.IsZero() {
		t.Error("nobody knows since when")
	}
	w.report(site, "application/spdx+json", second)
	a.quiet()
	w.report(site, sarif, second)
	a.delivered(a.wantsDigest(appID, second.Digest))

	// A newer artifact needs a report of its own, and none without the rule.
	third := push("three")
	a.quiet()
	check(t, w.RemoveReportRule(t.Context(), w.root, site.FullPath, rule.ID))
	a.wantsDigest(appID, third.Digest)
}

// tagged is when a tag got its artifact.
func (w *world) tagged(project tidelock.Project, tag string) string {
	w.t.Helper()
	tags, err := w.ImageTags(w.t.Context(), w.root, project, "", "", 0)
	check(w.t, err)
	for _, t := range tags {
		if t.Name == tag {
			return t.MovedAt.UTC().Format("2006-01-02T15:04:05Z07:00")
		}
	}
	w.t.Fatalf("there is no tag %s", tag)
	return ""
}
