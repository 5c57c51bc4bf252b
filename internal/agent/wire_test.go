package agent

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/flux"
	"tidelock.dev/internal/tunnel"
)

func TestRequestsOf(t *testing.T) {
	sent := map[string]int64{"old": 3}
	requests := requestsOf(flux.SourceChanges{
		Complete: true,
		Upserts:  []flux.Source{{ID: "a", LastNumber: 5, Ref: tidelock.RefSpec{SemVer: "1.x"}}, {ID: "b"}},
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

	requests = requestsOf(flux.SourceChanges{Removals: []tidelock.SourceID{"a"}}, sent)
	if len(requests) != 1 || requests[0].GetSources().Complete || len(sent) != 1 {
		t.Errorf("removal: got %v, then %v", requests, sent)
	}
	if got := requestsOf(flux.SourceChanges{Complete: true}, sent); len(got) != 1 || !got[0].GetSources().Complete {
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

// Nothing of an observation is lost on the way; times become spans.
func TestObservationMessage(t *testing.T) {
	now := time.Now()
	at := func(seconds int) time.Time { return now.Add(-time.Duration(seconds) * time.Second) }
	span := func(seconds int) *durationpb.Duration { return durationpb.New(time.Duration(seconds) * time.Second) }
	got := observationMessage(tidelock.Observation{
		Object: "Kustomization/ns/app", UID: "u", Suspended: true, State: tidelock.ObservedStalled, Reason: "r", Message: "m",
		Revision: "a", Interval: time.Minute, Requested: true, Attempted: "b", Source: "GitRepository/ns/site", Path: "p",
		Namespace: "n", Environment: "e", DependsOn: []tidelock.ObjectID{"Kustomization/ns/base"}, Timeout: time.Hour,
		Health: tidelock.HealthMissing, Objects: 3, Since: at(9),
		Unhealthy: []tidelock.ObjectHealth{{Kind: "apps/Deployment", Namespace: "ns", Name: "web", Health: tidelock.HealthFailed, Reason: "x", Message: "y", Pod: "z"}},
		Outcomes: []tidelock.Outcome{{Revision: "b", State: tidelock.ObservedFailed, Reason: "r", Message: "m", Health: tidelock.HealthProgressing,
			AttemptedAt: at(4), AppliedAt: at(3), HealthyAt: at(2), FailedAt: now.Add(time.Second)}},
	}, now)
	want := &agentrpc.Observation{
		Object: "Kustomization/ns/app", Uid: "u", Suspended: true, State: agentrpc.Observation_OBSERVED_STATE_STALLED, Reason: "r", Message: "m",
		Revision: "a", Interval: span(60), Requested: true, Attempted: "b", Source: "GitRepository/ns/site", Path: "p",
		Namespace: "n", Environment: "e", DependsOn: []string{"Kustomization/ns/base"}, Timeout: span(3600),
		Health: agentrpc.Observation_HEALTH_MISSING, Objects: 3, Since: span(9),
		Unhealthy: []*agentrpc.ObjectHealth{{Kind: "apps/Deployment", Namespace: "ns", Name: "web", Health: agentrpc.Observation_HEALTH_FAILED, Reason: "x", Message: "y", Pod: "z"}},
		Outcomes: []*agentrpc.Outcome{{Revision: "b", State: agentrpc.Observation_OBSERVED_STATE_FAILED, Reason: "r", Message: "m", Health: agentrpc.Observation_HEALTH_PROGRESSING,
			Attempted: span(4), Applied: span(3), Healthy: span(2), Failed: span(0)}},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if empty := observationMessage(tidelock.Observation{Outcomes: []tidelock.Outcome{{}}}, now); empty.Since != nil || empty.Outcomes[0].Applied != nil || empty.Interval != nil {
		t.Errorf("what nobody saw: %v", empty)
	}
}

func TestObserveRequests(t *testing.T) {
	if got := observeRequests(flux.Observations{Complete: true}, time.Now()); len(got) != 1 || !got[0].Begin || !got[0].End {
		t.Errorf("the empty set: %v", got)
	}
	change := observeRequests(flux.Observations{Removals: []tidelock.ObjectID{"a"}, Upserts: []tidelock.Observation{{Object: "b"}}}, time.Now())
	if len(change) != 1 || change[0].Begin || change[0].End || len(change[0].Removals) != 1 || len(change[0].Upserts) != 1 {
		t.Errorf("a change: %v", change)
	}
	// The most that an observation may be, many times.
	large := tidelock.Observation{Message: strings.Repeat("m", 4096)}
	for range 20 {
		large.Unhealthy = append(large.Unhealthy, tidelock.ObjectHealth{Message: strings.Repeat("u", 1024)})
	}
	for range 8 {
		large.Outcomes = append(large.Outcomes, tidelock.Outcome{Message: strings.Repeat("o", 1024)})
	}
	set := flux.Observations{Complete: true}
	for i := range 100 {
		large.Object = tidelock.ObjectID(fmt.Sprint("Kustomization/ns/", i))
		set.Upserts = append(set.Upserts, large)
	}
	requests := observeRequests(set, time.Now())
	var objects []string
	for i, r := range requests {
		if proto.Size(r) > maxObserveRequest || r.Begin != (i == 0) || r.End != (i == len(requests)-1) {
			t.Errorf("message %d of %d: %d bytes, begin %t, end %t", i, len(requests), proto.Size(r), r.Begin, r.End)
		}
		for _, o := range r.Upserts {
			objects = append(objects, o.Object)
		}
	}
	if len(requests) < 2 || len(objects) != 100 || objects[99] != "Kustomization/ns/99" {
		t.Errorf("%d messages with %d objects", len(requests), len(objects))
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
	for _, state := range []tidelock.ObservedState{
		tidelock.ObservedProgressing, tidelock.ObservedBlocked, tidelock.ObservedReady, tidelock.ObservedFailed, tidelock.ObservedStalled,
	} {
		if observedMessage[state] == agentrpc.Observation_OBSERVED_STATE_UNSPECIFIED {
			t.Errorf("%s has none", state)
		}
	}
	for _, health := range []tidelock.Health{tidelock.HealthHealthy, tidelock.HealthProgressing, tidelock.HealthFailed, tidelock.HealthMissing} {
		if healthMessage[health] == agentrpc.Observation_HEALTH_UNSPECIFIED {
			t.Errorf("%s has none", health)
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
