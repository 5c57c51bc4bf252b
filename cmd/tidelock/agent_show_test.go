package main

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestSourcesAndPushesInTables(t *testing.T) {
	commit, digest := strings.Repeat("c0ffee00", 5), "sha256:"+strings.Repeat("deadbeef", 8)
	for _, tc := range []struct {
		row         agentSourceRow
		wanted, has string
	}{
		{agentSourceRow{Source: "GitRepository/a/b"}, "-", "-"},
		{
			agentSourceRow{Source: "GitRepository/a/b", Ref: "refs/heads/main", Wanted: commit, Revision: "main@sha1:" + commit},
			"main@c0ffee00", "c0ffee00",
		},
		{agentSourceRow{Source: "GitRepository/a/b", Ref: "refs/heads/main"}, "main", "-"},
		{
			agentSourceRow{Source: "OCIRepository/a/b", Ref: "refs/tags/latest", Wanted: commit, Digest: digest, Revision: "latest@" + digest},
			"latest@sha256:deadbeef", "sha256:deadbeef",
		},
		{agentSourceRow{Source: "OCIRepository/a/b", Digest: digest}, "sha256:deadbeef", "-"},
		{
			agentSourceRow{Source: "HelmChart/a/b", Ref: "refs/tags/12.10.1-rc.1", Digest: digest, Revision: "12.10.1-rc.1"},
			"12.10.1-rc.1@sha256:deadbeef", "12.10.1-rc.1",
		},
	} {
		if got := tc.row.wanted(); got != tc.wanted {
			t.Errorf("%s: wanted %q, want %q", tc.row.Source, got, tc.wanted)
		}
		if got := tc.row.has(); got != tc.has {
			t.Errorf("%s: has %q, want %q", tc.row.Source, got, tc.has)
		}
	}
	for text, want := range map[string]string{
		`{"updates": [{"ref": "refs/heads/main", "new": "` + commit + `", "commit": "` + commit + `"}, {"ref": "refs/tags/v1"}]}`:                       "main@c0ffee00, v1 deleted",
		`{"updates": [], "artifact": {"image": "team/app", "tag": "latest", "new": "` + digest + `"}}`:                                                  "team/app:latest@sha256:deadbeef",
		`{"updates": [], "artifact": {"image": "team/app", "new": "` + digest + `"}}`:                                                                   "team/app@sha256:deadbeef",
		`{"updates": [], "artifact": {"image": "team/app", "tag": "` + strings.Replace(digest, ":", "-", 1) + `.sig", "new": "sha256:c0ffee00c0ffee"}}`: "signature of team/app@sha256:deadbeef",
		`{"updates": [], "artifact": {"image": "team/app", "tag": "latest", "new": null}}`:                                                              "team/app:latest deleted",
		`{"updates": [], "artifact": {"image": null, "tag": "latest", "new": "` + digest + `"}}`:                                                        "an image that is gone:latest@sha256:deadbeef",
	} {
		var p pushRow
		if err := json.Unmarshal([]byte(text), &p); err != nil {
			t.Fatal(err)
		}
		if got := p.what(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
