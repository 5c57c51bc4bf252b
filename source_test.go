package tidelock_test

import (
	"strings"
	"testing"

	"tidelock.dev"
)

const (
	someCommit = "0123456789abcdef0123456789abcdef01234567"
	someDigest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

func TestParseRevision(t *testing.T) {
	commit := tidelock.Revision{Commit: someCommit}
	artifact := tidelock.Revision{Digest: someDigest}
	tests := []struct {
		kind tidelock.SourceKind
		text string
		want tidelock.Revision
	}{
		{tidelock.GitRepository, "main@sha1:" + someCommit, commit},
		{tidelock.GitRepository, "feature/a@b@sha1:" + someCommit, commit},
		{tidelock.GitRepository, "sha1:" + someCommit, commit},
		{tidelock.GitRepository, "main/" + someCommit, commit},
		{tidelock.GitRepository, "refs/pull/1@sha256:" + strings.Repeat("a", 64), tidelock.Revision{Commit: tidelock.CommitID(strings.Repeat("a", 64))}},
		{tidelock.GitRepository, "main@sha1:0123", tidelock.Revision{}},
		{tidelock.GitRepository, "", tidelock.Revision{}},
		{tidelock.GitRepository, "main@sha1:" + strings.ToUpper(someCommit), tidelock.Revision{}},
		{tidelock.OCIRepository, "latest@" + someDigest, artifact},
		{tidelock.OCIRepository, "1.2.3@" + someDigest, artifact},
		{tidelock.OCIRepository, someDigest, artifact},
		{tidelock.OCIRepository, "latest", tidelock.Revision{}},
		{tidelock.OCIRepository, "main@sha1:" + someCommit, tidelock.Revision{}},
		{tidelock.HelmChart, "6.5.4+3", tidelock.Revision{Version: "6.5.4+3"}},
		{tidelock.HelmChart, "", tidelock.Revision{}},
		{"Bucket", "latest@" + someDigest, tidelock.Revision{}},
	}
	for _, tt := range tests {
		if got := tidelock.ParseRevision(tt.kind, tt.text); got != tt.want {
			t.Errorf("%s %q: got %+v, want %+v", tt.kind, tt.text, got, tt.want)
		}
	}
}

func TestRevisionMeets(t *testing.T) {
	tests := []struct {
		revision tidelock.Revision
		goal     tidelock.Goal
		want     bool
	}{
		{tidelock.Revision{Commit: "a"}, tidelock.Goal{Commit: "a"}, true},
		{tidelock.Revision{Commit: "a"}, tidelock.Goal{Commit: "b"}, false},
		{tidelock.Revision{Commit: "a"}, tidelock.Goal{}, false},
		{tidelock.Revision{}, tidelock.Goal{}, false},
		{tidelock.Revision{Commit: "a"}, tidelock.Goal{Commit: "a", Digest: "d"}, false},
		{tidelock.Revision{Digest: "d"}, tidelock.Goal{Commit: "a", Digest: "d"}, true},
		{tidelock.Revision{Digest: "d"}, tidelock.Goal{Digest: "e"}, false},
		{tidelock.Revision{Version: "6.5.4"}, tidelock.Goal{Ref: "refs/tags/6.5.4", Digest: "d"}, true},
		{tidelock.Revision{Version: "6.5.4+2"}, tidelock.Goal{Ref: "refs/tags/v6.5.4", Digest: "d"}, true},
		{tidelock.Revision{Version: "6.5.4+2"}, tidelock.Goal{Ref: "refs/tags/6.5.4_build", Digest: "d"}, true},
		{tidelock.Revision{Version: "6.5.4"}, tidelock.Goal{Ref: "refs/tags/6.5.5", Digest: "d"}, false},
	}
	for _, tt := range tests {
		if got := tt.revision.Meets(tt.goal); got != tt.want {
			t.Errorf("%+v of %+v: got %t", tt.revision, tt.goal, got)
		}
	}
}

func TestValidDigest(t *testing.T) {
	for digest, valid := range map[tidelock.Digest]bool{
		someDigest: true,
		tidelock.Digest("sha512:" + strings.Repeat("ab", 64)): true,
		"":                        false,
		"sha256:":                 false,
		"sha256:0123":             false,
		someDigest + "0":          false,
		"sha1:" + someCommit:      false,
		"sha256:../" + someDigest: false,
		tidelock.Digest(strings.ToUpper(someDigest)): false,
	} {
		if err := tidelock.ValidDigest(digest); (err == nil) != valid {
			t.Errorf("%q: got %v", digest, err)
		}
	}
}

func TestImagePath(t *testing.T) {
	set, err := tidelock.ParseURLSet("https://forge.example:8443/root", "http://plain.example", "ssh://git@forge.example:2222")
	if err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]string{
		"oci://forge.example:8443/team/app":          "team/app",
		"OCI://Forge.Example:8443/Team/App/api/":     "team/app/api",
		"oci://forge.example:8443/team/app.git":      "team/app.git",
		"oci://plain.example/team/app":               "team/app",
		"oci://plain.example:80/team/app":            "team/app",
		"oci://forge.example/team/app":               "",
		"oci://forge.example:2222/team/app":          "",
		"oci://forge.example:8443/app":               "",
		"oci://forge.example:8443/team/../app":       "",
		"oci://forge.example:8443/team//app":         "",
		"oci://forge.example:8443/team/app:latest":   "",
		"oci://forge.example:8443/team/app@sha256:a": "",
		"oci://forge.example:8443/team/app?x":        "",
		"https://forge.example:8443/team/app":        "",
		"oci:":                                       "",
	} {
		if got, ok := set.ImagePath(url); got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %t; want %q", url, got, ok, want)
		}
	}
}
