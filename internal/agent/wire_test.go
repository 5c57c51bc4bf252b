package agent

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/flux"
	"tidelock.dev/internal/tunnel"
)

func TestRequestsOf(t *testing.T) {
	sent := map[string]int64{"old": 3}
	requests := requestsOf(flux.Changes{
		Complete: true,
		Sources:  []flux.Source{{ID: "a", LastNumber: 5, Ref: tidelock.RefSpec{SemVer: "1.x"}}, {ID: "b"}},
		Progress: []flux.Progress{{
			Source: "b", Number: 2, State: tidelock.Failed, Message: "no", Via: flux.ViaAnnotation, Attempts: 4,
			Called: time.Millisecond,
		}},
	}, sent)
	if len(requests) != 2 {
		t.Fatalf("got %d messages, want 2", len(requests))
	}
	set := requests[0].GetSources()
	if !set.Complete || len(set.Upserts) != 2 || set.Upserts[0].LastNumber != 5 || set.Upserts[0].Ref.Semver != "1.x" {
		t.Errorf("set: got %v", set)
	}
	p := requests[1].GetProgress()
	if p.State != agentrpc.Progress_STATE_FAILED || p.Via != agentrpc.Progress_VIA_ANNOTATION || p.Attempts != 4 ||
		p.Called.AsDuration() != time.Millisecond || p.Answered != nil || p.Fetched != nil {
		t.Errorf("progress: got %v", p)
	}
	want := agentrpc.DigestOf(map[string]int64{"a": 5, "b": 2})
	if got := agentrpc.DigestOf(sent); !bytes.Equal(got, want) {
		t.Errorf("the digest is of %v", sent)
	}

	requests = requestsOf(flux.Changes{Removals: []tidelock.SourceID{"a"}}, sent)
	if len(requests) != 1 || requests[0].GetSources().Complete || len(sent) != 1 {
		t.Errorf("removal: got %v, then %v", requests, sent)
	}
	if got := requestsOf(flux.Changes{Complete: true}, sent); len(got) != 1 || !got[0].GetSources().Complete {
		t.Errorf("the empty set: got %v", got)
	}
}

// Nothing of a source or an announcement of an artifact is lost on the way.
func TestArtifactMessages(t *testing.T) {
	got := sourceMessage(flux.Source{
		ID: "OCIRepository/ns/site", UID: "u", URL: "oci://forge.example/team/site", Revision: "1.0.0@sha256:a", Suspended: true,
		Ref:        tidelock.RefSpec{Branch: "a", Tag: "b", SemVer: "c", SemVerFilter: "d", Name: "e", Commit: "f", Digest: "g"},
		LastNumber: 7, LastCommit: "h", LastDigest: "i",
	})
	want := &agentrpc.Source{
		Id: "OCIRepository/ns/site", Uid: "u", Url: "oci://forge.example/team/site", Revision: "1.0.0@sha256:a", Suspended: true,
		Ref:        &agentrpc.RefSpec{Branch: "a", Tag: "b", Semver: "c", SemverFilter: "d", Name: "e", Commit: "f", Digest: "g"},
		LastNumber: 7, LastCommit: "h", LastDigest: "i",
	}
	if !proto.Equal(got, want) {
		t.Errorf("source:\ngot  %v\nwant %v", got, want)
	}
	announced := announcementOf(&agentrpc.Announcement{SourceId: "OCIRepository/ns/site", Number: 8, ProjectId: 3, Ref: "refs/tags/x", Commit: "c", Digest: "d"})
	if announced != (flux.Announcement{Source: "OCIRepository/ns/site", Number: 8, Project: 3, Goal: tidelock.Goal{Ref: "refs/tags/x", Commit: "c", Digest: "d"}}) {
		t.Errorf("announcement: got %+v", announced)
	}
}

func TestIsOurs(t *testing.T) {
	urls, err := tidelock.ParseURLSet("https://forge.example/root")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kind tidelock.SourceKind
		url  string
		want bool
	}{
		{tidelock.GitRepository, "https://forge.example/root/team/site", true},
		{tidelock.GitRepository, "oci://forge.example/team/site", false},
		{tidelock.OCIRepository, "oci://forge.example/team/site", true},
		{tidelock.OCIRepository, "https://forge.example/root/team/site", false},
		{tidelock.HelmChart, "oci://forge.example/team/charts/web", true},
		{tidelock.HelmChart, "https://forge.example/root/team/charts/web", false},
		{tidelock.ImageRepository, "oci://forge.example/team/site", true},
		{tidelock.ImageRepository, "oci://other.example/team/site", false},
		{tidelock.HelmChart, "", false},
	} {
		if got := isOurs(urls, tt.kind, tt.url); got != tt.want {
			t.Errorf("%s %q: got %t", tt.kind, tt.url, got)
		}
	}
}

// Every state of the vocabulary that an agent reports has its message.
func TestStatesHaveMessages(t *testing.T) {
	for _, state := range []tidelock.AnnouncementState{
		tidelock.Delivered, tidelock.Parked, tidelock.Handled, tidelock.Failed, tidelock.Converged, tidelock.Gone,
	} {
		if stateMessage[state] == agentrpc.Progress_STATE_UNSPECIFIED {
			t.Errorf("%s has none", state)
		}
	}
}

func TestReconnectAfter(t *testing.T) {
	plain := errors.New("refused")
	for failures := 1; failures < 40; failures++ {
		wait, most := reconnectAfter(plain, failures), min(reconnectFirst<<min(failures-1, 20), reconnectMax)
		if wait < most/2 || wait > most {
			t.Errorf("after %d failures: got %s, want %s to %s", failures, wait, most/2, most)
		}
	}
	denied := fmt.Errorf("dial: %w", &tunnel.RefusedError{StatusCode: 401})
	if wait := reconnectAfter(denied, 1); wait < refusedAgain {
		t.Errorf("after a refused token: got %s, want at least %s", wait, refusedAgain)
	}
	busy := fmt.Errorf("dial: %w", &tunnel.RefusedError{StatusCode: 429, RetryAfter: 45 * time.Second})
	if wait := reconnectAfter(busy, 1); wait < 45*time.Second {
		t.Errorf("when asked to wait 45 s: got %s", wait)
	}
}

func TestTunnelURL(t *testing.T) {
	for text, want := range map[string]string{
		"https://forge.example":                        "wss://forge.example/-/kubernetes-agent/",
		"https://forge.example/":                       "wss://forge.example/-/kubernetes-agent/",
		"https://forge.example:8443/sub/":              "wss://forge.example:8443/sub/-/kubernetes-agent/",
		"wss://forge.example/-/kubernetes-agent/":      "wss://forge.example/-/kubernetes-agent/",
		"wss://forge.example/sub/-/kubernetes-agent":   "wss://forge.example/sub/-/kubernetes-agent/",
		"http://127.0.0.1:8080":                        "ws://127.0.0.1:8080/-/kubernetes-agent/",
		"wss://forge.example/-/kubernetes-agent/extra": "wss://forge.example/-/kubernetes-agent/extra/-/kubernetes-agent/",
	} {
		if got, err := tunnelURL(text); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", text, got, err, want)
		}
	}
}
