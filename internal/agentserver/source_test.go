package agentserver

import (
	"testing"

	"tidelock.dev"
)

func TestDue(t *testing.T) {
	const a, b, none = tidelock.CommitID("aaaa"), tidelock.CommitID("bbbb"), tidelock.CommitID("")
	for _, test := range []struct {
		name     string
		head     tidelock.CommitID // none: gone
		revision tidelock.CommitID
		told     bool
		commit   tidelock.CommitID
		state    tidelock.AnnouncementState // of the record; "" for none
		want     bool
	}{
		{"new source without artifact", a, none, false, none, "", true},
		{"new source at the head", a, a, false, none, "", false},
		{"new source behind", a, b, false, none, "", true},
		{"announced, under way", a, b, true, a, tidelock.Delivered, false},
		{"announced, converged", a, a, true, a, tidelock.Converged, false},
		{"moved on", b, a, true, a, tidelock.Converged, true},
		{"moved on before it was fetched", b, none, true, a, tidelock.Sent, true},
		{"moved back before it was fetched", a, a, true, b, tidelock.Handled, true},
		{"Flux found the head by itself", b, b, true, a, tidelock.Converged, false},
		{"Flux found the head by itself, nothing known", b, b, true, a, "", false},
		{"unfinished, then forgotten by the agent", a, a, false, none, tidelock.Delivered, true},
		{"never was there", none, none, false, none, "", false},
		{"gone while away", none, a, false, none, "", true},
		{"gone", none, a, true, a, tidelock.Converged, true},
		{"gone, said", none, a, true, none, tidelock.Gone, false},
		{"back where it was", a, a, true, none, tidelock.Gone, true},
	} {
		s := &source{revision: test.revision, told: test.told, commit: test.commit}
		if test.state != "" {
			s.record = &tidelock.Announcement{State: test.state}
		}
		w := wanted{project: 1, served: true, settled: true, gone: test.head == "", head: tidelock.Head{Commit: test.head}}
		if got := s.due(w); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
		w.served = false
		if s.due(w) {
			t.Errorf("%s: due although not served", test.name)
		}
		w.served, w.settled = true, false
		if s.due(w) {
			t.Errorf("%s: due although nothing is settled", test.name)
		}
	}
}

func TestCommitOf(t *testing.T) {
	const hex = "0123456789012345678901234567890123456789"
	for revision, want := range map[string]tidelock.CommitID{
		"main@sha1:" + hex:         hex,
		"sha1:" + hex:              hex,
		"feature/x@sha1:" + hex:    hex,
		"refs/tags/v1@sha1:" + hex: hex,
		"main/" + hex:              hex,
		hex:                        hex,
		"main@sha256:" + hex + "012345678901234567890123": hex + "012345678901234567890123",
		"":                       "",
		"main":                   "",
		"main@sha1:":             "",
		"main@sha1:xyz":          "",
		"main@sha1:" + hex + "0": "",
	} {
		if got := commitOf(revision); got != want {
			t.Errorf("%q: got %q, want %q", revision, got, want)
		}
	}
}
