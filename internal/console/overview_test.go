package console

import (
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/signing"
)

func TestPushRow(t *testing.T) {
	at := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	push := tidelock.Push{At: at, Updates: []tidelock.RefUpdate{
		{Ref: "refs/heads/main", Old: "a", New: "b", Commit: "b"},
		{Ref: "refs/tags/v1", New: "c", Commit: "d"},
		{Ref: "refs/heads/old", Old: "a"},
		{Ref: "refs/notes/commits", New: "e", Commit: "e"},
	}}
	row := pushRowOf(push, []tidelock.Announcement{
		{State: tidelock.Converged, FetchedAt: at.Add(300 * time.Millisecond)},
		{State: tidelock.Converged, FetchedAt: at.Add(200 * time.Millisecond)},
		{State: tidelock.Closed},
	}, nil)
	want := []move{
		{Name: "main", Kind: "branch", Target: "b"},
		{Name: "v1", Kind: "tag", Change: "created", Target: "d"},
		{Name: "old", Kind: "branch", Change: "deleted"},
	}
	if !slices.Equal(row.Moves, want) || row.More != 1 {
		t.Errorf("got %+v and %d more, want %+v and 1", row.Moves, row.More, want)
	}
	if row.Took != 300*time.Millisecond {
		t.Errorf("got %v, want the slowest source's time", row.Took)
	}
	if got := row.States; len(got) != 2 || got[0] != (stateCount{"fetched", good, 2}) {
		t.Errorf("got %+v", got)
	}

	waiting := pushRowOf(push, []tidelock.Announcement{
		{State: tidelock.Converged, FetchedAt: at.Add(time.Second)}, {State: tidelock.Failed},
	}, nil)
	if waiting.Took != 0 || waiting.States[0].Tone != bad {
		t.Errorf("got %v %+v, want no time and the failure first", waiting.Took, waiting.States)
	}
}

// TestPushRowOfRollouts tells how a push went by what appliers made of it, and
// by its announcement only where nothing applies it.
func TestPushRowOfRollouts(t *testing.T) {
	at := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	announced := []tidelock.Announcement{
		{Agent: 1, Source: "GitRepository/a/site", Commit: "b", State: tidelock.Converged, FetchedAt: at.Add(time.Second)},
		{Agent: 2, Source: "OCIRepository/a/site", State: tidelock.Converged, FetchedAt: at.Add(2 * time.Second)},
	}
	of := func(agent tidelock.AgentID, source tidelock.SourceID, commit tidelock.CommitID, state tidelock.RolloutState, healthy int) tidelock.Rollout {
		return tidelock.Rollout{Agent: agent, Source: source, Commit: commit, State: state, HealthyAt: at.Add(time.Duration(healthy) * time.Second)}
	}
	git := of(1, "GitRepository/a/site", "b", tidelock.RolloutSuccess, 3)
	for name, tc := range map[string]struct {
		rollouts []tidelock.Rollout
		want     []stateCount
		took     time.Duration
	}{
		"nothing applies it": {nil, []stateCount{{"fetched", good, 2}}, 2 * time.Second},
		"of another commit":  {[]tidelock.Rollout{of(1, "GitRepository/a/site", "c", tidelock.RolloutFailed, 3)}, []stateCount{{"fetched", good, 2}}, 2 * time.Second},
		"in one place":       {[]tidelock.Rollout{git}, []stateCount{{"live", good, 1}, {"fetched", good, 1}}, 3 * time.Second},
		"everywhere": {
			[]tidelock.Rollout{git, git, of(2, "OCIRepository/a/site", "b", tidelock.RolloutSuccess, 4)}, []stateCount{{"live", good, 3}}, 4 * time.Second,
		},
		"failed": {[]tidelock.Rollout{git, of(2, "OCIRepository/a/site", "b", tidelock.RolloutFailed, 4)}, []stateCount{{"failed", bad, 1}, {"live", good, 1}}, 0},
	} {
		row := pushRowOf(tidelock.Push{At: at, Artifact: &tidelock.ArtifactUpdate{Commit: "b"}}, announced, tc.rollouts)
		if !slices.Equal(row.States, tc.want) || row.Took != tc.took {
			t.Errorf("%s: got %v after %v, want %v after %v", name, row.States, row.Took, tc.want, tc.took)
		}
	}
}

func TestMovesOfImages(t *testing.T) {
	digest := tidelock.Digest("sha256:" + strings.Repeat("deadbeef", 8))
	for _, tc := range []struct {
		update tidelock.ArtifactUpdate
		want   move
	}{
		{tidelock.ArtifactUpdate{Tag: "v1", New: digest}, move{Name: "an image that is gone:v1", Kind: "image", Change: "created", Target: string(digest)}},
		{tidelock.ArtifactUpdate{Tag: "v1", Old: digest}, move{Name: "an image that is gone:v1", Kind: "image", Change: "deleted"}},
		{tidelock.ArtifactUpdate{New: digest}, move{Name: "an image that is gone", Kind: "image", Target: string(digest)}},
		{
			tidelock.ArtifactUpdate{Tag: signing.Tag(digest), Old: "sha256:a", New: "sha256:b"},
			move{Name: "an image that is gone@sha256:deadbeef", Kind: "signature of", Target: "sha256:b"},
		},
	} {
		if got := (&look{}).imageMove(tidelock.Project{}, nil, tc.update); got != tc.want {
			t.Errorf("got %+v, want %+v", got, tc.want)
		}
	}
}

func TestEveryStateHasWords(t *testing.T) {
	for _, s := range []tidelock.AnnouncementState{
		tidelock.Sent, tidelock.Delivered, tidelock.Parked, tidelock.Handled,
		tidelock.Failed, tidelock.Converged, tidelock.Gone, tidelock.Closed,
	} {
		if got := announcementWords(s); got.State == "unknown" {
			t.Errorf("%s: got %+v", s, got)
		}
	}
}

func TestText(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct{ got, want string }{
		{ago(time.Time{}, now), "never"},
		{ago(now.Add(time.Second), now), "just now"}, // clocks differ
		{ago(now.Add(-30*time.Second), now), "30 s ago"},
		{ago(now.Add(-90*time.Second), now), "1 min ago"},
		{ago(now.Add(-47*time.Hour), now), "47 h ago"},
		{ago(now.Add(-72*time.Hour), now), "3 days ago"},
		{took(310 * time.Millisecond), "310 ms"},
		{took(1250 * time.Millisecond), "1.2 s"},
		{took(3 * time.Minute), "3m0s"},
		{count(1, "more ref"), "1 more ref"},
		{count(2, "more ref"), "2 more refs"},
		{plain("a\x1b[2Jb\u202ec\nd"), "a\ufffd[2Jb\ufffdc d"},
		{short("0123456789abcdef"), "01234567"},
		{short(""), ""},
		{short("sha256:0123456789abcdef"), "sha256:01234567"},
		{size(999), "999 B"},
		{size(1000), "1.0 kB"},
		{size(1_250_000), "1.2 MB"},
		{size(3_000_000_000_000_000), "3000.0 TB"},
	} {
		if tc.got != tc.want {
			t.Errorf("got %q, want %q", tc.got, tc.want)
		}
	}
}

func TestSessionsAreBoundedAndExpire(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	var s sessions
	first := s.begin(tidelock.NewSecret("first"), now)
	for range sessionLimit {
		s.begin(tidelock.NewSecret("more"), now.Add(time.Second))
	}
	if len(s.live) != sessionLimit {
		t.Errorf("got %d sessions, want at most %d", len(s.live), sessionLimit)
	}
	if _, ok := s.find(first, now); ok {
		t.Error("the oldest session was not the one to go")
	}
	last := s.begin(tidelock.NewSecret("last"), now.Add(2*time.Second))
	if _, ok := s.find(last, now.Add(sessionLife)); !ok {
		t.Error("a session ended early")
	}
	if _, ok := s.find(last, now.Add(sessionLife+2*time.Second)); ok {
		t.Error("a session outlived its time")
	}
}
