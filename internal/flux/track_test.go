package flux

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"tidelock.dev"
)

var (
	commitA = tidelock.CommitID(strings.Repeat("a", 40))
	commitB = tidelock.CommitID(strings.Repeat("b", 40))
	commitC = tidelock.CommitID(strings.Repeat("c", 40))
)

// A story is a track with a clock and a Flux played by the test.
type story struct {
	t      *testing.T
	track  *track
	now    time.Time
	shown  observation
	call   *call // under way
	stamps int
}

// newStory begins with a source that has commit A and was never asked.
func newStory(t *testing.T) *story {
	s := &story{
		t:     t,
		track: &track{id: "GitRepository/ns/site", ours: true},
		now:   time.Unix(1_700_000_000, 0),
		shown: observation{uid: "uid", generation: 1, url: "https://forge.example/team/site", revision: revision(commitA)},
	}
	s.show(func(*observation) {})
	return s
}

func revision(c tidelock.CommitID) string { return "main@sha1:" + string(c) }

func (s *story) pass(d time.Duration) *story {
	end := s.now.Add(d)
	for {
		due := s.track.deadline()
		if due.IsZero() || due.After(end) {
			break
		}
		if due.After(s.now) {
			s.now = due
		}
		s.track.wake(s.now)
		if s.track.wanted {
			return s
		}
	}
	s.now = end
	return s
}

func (s *story) show(change func(*observation)) *story {
	change(&s.shown)
	s.track.observe(s.shown, s.now)
	return s
}

func (s *story) announce(number int64, commit tidelock.CommitID) *story {
	s.track.announce(Announcement{Source: s.track.id, Number: number, Goal: tidelock.Goal{Commit: commit}, Gone: commit == ""}, s.now)
	return s
}

// begins starts the wanted call.
func (s *story) begins() *story {
	s.t.Helper()
	if !s.track.wanted {
		s.t.Fatalf("no call is wanted; state %s", s.state())
	}
	c := s.track.begin()
	s.call = &c
	return s
}

// answers ends the call with success: the annotation is on the source.
func (s *story) answers() *story {
	s.stamps++
	s.shown.requestedAt = fmt.Sprint("stamp ", s.stamps)
	s.ends(outcome{via: ViaReceiver, called: s.now, answered: s.now, attempts: 1})
	return s.show(func(*observation) {})
}

func (s *story) ends(o outcome) *story {
	c := *s.call
	s.call = nil
	s.track.end(c, o, s.now)
	return s
}

// calls is a call that is made and answered.
func (s *story) calls() *story {
	s.t.Helper()
	return s.begins().answers()
}

// handles has Flux act and end at a commit, or fail if it is none.
func (s *story) handles(commit tidelock.CommitID) *story {
	return s.show(func(o *observation) {
		o.handledAt = o.requestedAt
		o.failure = ""
		if commit == "" {
			o.failure = "GitOperationFailed: no such luck"
		} else {
			o.revision = revision(commit)
		}
	})
}

func (s *story) state() tidelock.AnnouncementState {
	if s.track.announcement == nil {
		return ""
	}
	return s.track.announcement.progress.State
}

func (s *story) is(want tidelock.AnnouncementState) *story {
	s.t.Helper()
	if got := s.state(); got != want {
		s.t.Fatalf("state: got %q (%s), want %q", got, s.track.announcement.progress.Message, want)
	}
	return s
}

func (s *story) quiet() *story {
	s.t.Helper()
	if s.track.wanted || s.track.calling {
		s.t.Fatalf("a call is wanted or under way; state %s", s.state())
	}
	return s
}

func TestTrackConverges(t *testing.T) {
	s := newStory(t).quiet().announce(1, commitB).is(tidelock.Delivered)
	s.now = s.now.Add(time.Millisecond)
	s.calls().is(tidelock.Delivered).quiet()
	s.now = s.now.Add(time.Second)
	s.handles(commitB).is(tidelock.Converged).quiet().pass(24 * time.Hour).quiet().is(tidelock.Converged)
	p := s.track.announcement.progress
	want := Progress{
		Source: "GitRepository/ns/site", Number: 1, State: tidelock.Converged, Via: ViaReceiver, Attempts: 1,
		Called: time.Millisecond, Answered: time.Millisecond, Handled: time.Second + time.Millisecond, Fetched: time.Second + time.Millisecond,
	}
	if p != want {
		t.Errorf("progress:\ngot  %+v\nwant %+v", p, want)
	}
}

func TestTrackOfWhatIsLiveIsNotCalled(t *testing.T) {
	newStory(t).announce(1, commitA).is(tidelock.Converged).quiet()
}

func TestTrackOldNumbersAreDropped(t *testing.T) {
	s := newStory(t).announce(5, commitB).calls().handles(commitB).is(tidelock.Converged)
	s.announce(4, commitC).is(tidelock.Converged).quiet()
	s.track.changed = false
	if s.announce(5, commitB).quiet(); !s.track.changed {
		t.Error("a repeated announcement was not answered")
	}
}

// The ref goes from A to B and back while Flux may be fetching B: what Flux
// shows now is not proof, only what it shows after having acted.
func TestTrackBackAndForth(t *testing.T) {
	s := newStory(t).announce(1, commitB).calls()
	s.announce(2, commitA).is(tidelock.Delivered).calls().is(tidelock.Delivered)
	s.show(func(o *observation) { o.handledAt, o.revision = "stamp 1", revision(commitB) }).is(tidelock.Delivered)
	s.handles(commitA).is(tidelock.Converged).quiet()
}

// The same, but the second announcement arrives while the first call is
// under way: that call may have come too early for it.
func TestTrackAnnouncementDuringACall(t *testing.T) {
	s := newStory(t).announce(1, commitB).begins().announce(2, commitA)
	if s.track.wanted {
		t.Fatal("two calls at once")
	}
	s.answers().is(tidelock.Delivered).calls().handles(commitA).is(tidelock.Converged)
	if got := s.track.announcement.progress.Attempts; got != 1 {
		t.Errorf("attempts of the second: got %d, want 1", got)
	}
}

// Flux publishes an older fetch after the announcement was found to be live.
func TestTrackRegress(t *testing.T) {
	s := newStory(t).announce(1, commitA).is(tidelock.Converged)
	s.show(func(o *observation) { o.revision = revision(commitB) }).quiet()
	s.pass(2 * time.Second).is(tidelock.Failed).calls().handles(commitA).is(tidelock.Converged)

	// A later push that Flux found by itself is not a regress.
	s.show(func(o *observation) { o.revision = revision(commitC) }).pass(regressGrace / 2).quiet()
	s.announce(2, commitC).is(tidelock.Converged).pass(time.Hour).quiet()
}

func TestTrackFailureBacksOff(t *testing.T) {
	s := newStory(t).announce(1, commitB).calls().handles("").is(tidelock.Failed).quiet()
	if got := s.track.announcement.progress.Message; !strings.Contains(got, "no such luck") {
		t.Errorf("message: got %q", got)
	}
	var waits []time.Duration
	for range 12 {
		before := s.now
		s.pass(time.Hour)
		waits = append(waits, s.now.Sub(before))
		s.calls().handles("").is(tidelock.Failed)
	}
	for i, wait := range waits {
		most := min(retryFirst<<i, retryMax)
		if wait > most || wait < most*4/5 {
			t.Errorf("wait %d: got %s, want at most %s and at least 4/5 of it", i, wait, most)
		}
	}
	s.show(func(o *observation) { o.failure, o.revision = "", revision(commitB) }).is(tidelock.Converged)
	// The next one begins anew.
	before := s.announce(2, commitC).calls().handles("").now
	if s.pass(time.Hour); s.now.Sub(before) > retryFirst {
		t.Errorf("the wait of a new announcement: got %s", s.now.Sub(before))
	}
}

// Flux fetched something else without trouble; only after a second attempt is
// that called a failure.
func TestTrackHandledWithAnotherCommit(t *testing.T) {
	s := newStory(t).announce(1, commitB).calls().handles(commitC).is(tidelock.Handled).quiet()
	s.pass(time.Minute).calls().handles(commitC).is(tidelock.Failed)
}

func TestTrackRetriesAtOnceWhenTheCauseMayBeGone(t *testing.T) {
	failed := func(t *testing.T) *story {
		s := newStory(t)
		s.shown.secrets = []string{"credentials"}
		s.show(func(*observation) {}).announce(1, commitB).calls().handles("").is(tidelock.Failed)
		for range 6 {
			s.pass(time.Hour).calls().handles("")
		}
		return s.quiet()
	}
	t.Run("spec changed", func(t *testing.T) {
		failed(t).show(func(o *observation) { o.generation++ }).calls().handles(commitB).is(tidelock.Converged)
	})
	t.Run("secret changed", func(t *testing.T) {
		s := failed(t)
		if !s.track.failing() {
			t.Fatal("its Secret is not looked at")
		}
		s.track.secretSeen("1", s.now)
		s.quiet()
		s.track.secretSeen("1", s.now)
		s.quiet()
		s.track.secretSeen("2", s.now)
		s.calls().handles(commitB).is(tidelock.Converged)
		if s.track.failing() {
			t.Error("its Secret is still looked at")
		}
	})
	t.Run("another ref", func(t *testing.T) {
		// What was announced is not what the source follows now.
		s := failed(t).show(func(o *observation) { o.generation++; o.ref.Branch = "dev" }).quiet().pass(time.Hour).quiet()
		s.announce(2, commitC).calls().handles(commitC).is(tidelock.Converged)
	})
}

func TestTrackSuspended(t *testing.T) {
	s := newStory(t).show(func(o *observation) { o.suspended = true })
	s.announce(1, commitB).is(tidelock.Parked).quiet().pass(time.Hour).quiet()
	s.announce(2, commitC).is(tidelock.Parked).quiet()
	s.show(func(o *observation) { o.suspended = false; o.generation++ }).is(tidelock.Delivered).calls().handles(commitC).is(tidelock.Converged)

	// Suspended while the request is under way: source-controller notes the
	// request and does nothing.
	s.announce(3, commitA).begins().show(func(o *observation) { o.suspended = true }).answers().is(tidelock.Parked)
	s.show(func(o *observation) { o.handledAt = o.requestedAt }).is(tidelock.Parked).quiet()
	s.show(func(o *observation) { o.suspended = false }).calls().handles(commitA).is(tidelock.Converged)

	// What is live needs no resuming.
	s.show(func(o *observation) { o.suspended = true }).announce(4, commitA).is(tidelock.Converged)
}

func TestTrackGone(t *testing.T) {
	s := newStory(t).announce(1, commitB).calls()
	s.announce(2, "").is(tidelock.Gone).quiet().handles(commitB).is(tidelock.Gone).pass(time.Hour).quiet()
	s.announce(3, commitC).calls().handles(commitC).is(tidelock.Converged)
}

// The endpoint says yes and is no notification-controller.
func TestTrackAnswerWithoutAnnotation(t *testing.T) {
	s := newStory(t)
	s.track.hook = &hook{path: "/hook/x"}
	s.announce(1, commitB).begins()
	if s.call.hook == nil {
		t.Fatal("the Receiver is not used")
	}
	s.ends(outcome{via: ViaReceiver, called: s.now, answered: s.now, attempts: 1}).quiet()
	s.pass(unseenAfter).begins()
	if s.call.hook != nil {
		t.Error("the second call relies on the Receiver again")
	}
	s.answers().handles(commitB).is(tidelock.Converged)
}

// source-controller is away: the request is repeated, ever more rarely, and
// needs no repeating to be handled.
func TestTrackUnhandled(t *testing.T) {
	s := newStory(t).announce(1, commitB).calls()
	began, repeats := s.now, 0
	for s.now.Sub(began) < 6*time.Hour {
		if s.pass(time.Hour); s.track.wanted {
			repeats++
			s.calls()
		}
	}
	if repeats < 6 || repeats > 60 {
		t.Errorf("repeated %d times in %s", repeats, s.now.Sub(began))
	}
	s.handles(commitB).is(tidelock.Converged)
}

// Nothing could be asked of Flux at all: neither the Receiver nor the API
// server answers.
func TestTrackTrouble(t *testing.T) {
	s := newStory(t).announce(1, commitB).begins()
	s.ends(outcome{via: ViaAnnotation, attempts: 4, err: fmt.Errorf("annotate the source: it is raining")}).is(tidelock.Delivered).quiet()
	if got := s.track.announcement.progress.Message; !strings.Contains(got, "raining") {
		t.Errorf("message: got %q", got)
	}
	before := s.now
	if s.pass(time.Hour); s.now.Sub(before) > errorRetryFirst {
		t.Errorf("tried again after %s, want %s", s.now.Sub(before), errorRetryFirst)
	}
	s.calls().handles(commitB).is(tidelock.Converged)
}

func TestTrackNotServed(t *testing.T) {
	s := newStory(t).announce(1, commitB).calls().handles("")
	s.track.dismiss(s.now)
	s.quiet().pass(24 * time.Hour).quiet().is("")
	s.announce(2, commitC).calls().handles(commitC).is(tidelock.Converged)
	s.track.setOurs(false, s.now)
	s.quiet().is("")
	s.show(func(o *observation) { o.revision = revision(commitA) }).pass(time.Hour).quiet()
}

// A source that was deleted and made anew has nothing of the old one.
func TestTrackAnotherObject(t *testing.T) {
	s := newStory(t).announce(1, commitB).begins()
	s.track.hook = &hook{}
	s.show(func(o *observation) { o.uid = types.UID("other") }).is("")
	if s.track.hook != nil {
		t.Error("it has the Receiver of the old one")
	}
	s.ends(outcome{via: ViaReceiver, answered: s.now, attempts: 1}).quiet().is("")
	s.announce(1, commitB).calls().handles(commitB).is(tidelock.Converged)
}

func TestTrackInclude(t *testing.T) {
	want := func(s *story, artifacts ...string) *story {
		s.track.setIncludeWant(artifacts, s.now)
		return s
	}
	built := func(artifacts ...string) func(*observation) {
		return func(o *observation) {
			o.handledAt = o.requestedAt
			o.included = slices.Clone(artifacts)
		}
	}
	s := newStory(t).show(func(o *observation) { o.include = []string{"base"}; o.included = []string{"base 1"} })
	want(s, "base 1").quiet()
	want(s, "base 2").calls().quiet().show(built("base 2")).quiet().pass(time.Hour).quiet()

	// It changes again while Flux is at it.
	want(s, "base 3").calls()
	want(s, "base 4").calls()
	s.show(built("base 3")).pass(2 * retryFirst).calls().show(built("base 4")).quiet()

	// Both move: the announcement does not wait for the included one.
	s.announce(1, commitB).calls()
	want(s, "base 5").calls().show(func(o *observation) {
		o.handledAt, o.revision, o.included = o.requestedAt, revision(commitB), []string{"base 5"}
	}).is(tidelock.Converged).quiet()

	// One that is suspended waits.
	s.show(func(o *observation) { o.suspended = true })
	want(s, "base 6").quiet().is(tidelock.Converged)
	s.show(func(o *observation) { o.suspended = false }).calls().show(built("base 6")).quiet()

	// None is triggered for ever.
	began, calls := s.now, 0
	want(s, "base 7").calls().show(built("base 6"))
	for s.now.Sub(began) < 6*time.Hour {
		if s.pass(time.Hour); s.track.wanted {
			calls++
			s.calls().show(built("base 6"))
		}
	}
	if calls < 6 || calls > 60 {
		t.Errorf("called %d times in 6 h", calls)
	}
}

// TestTrackOfEveryKind brings a source of each kind from what it has to what
// is announced, through a failure, and back.
func TestTrackOfEveryKind(t *testing.T) {
	goal := func(tag string, digest tidelock.Digest) tidelock.Goal {
		return tidelock.Goal{Ref: tidelock.TagRef(tag), Digest: digest}
	}
	tests := []struct {
		kind     tidelock.SourceKind
		has      string
		now      tidelock.Goal // what it has
		next     tidelock.Goal
		shows    string // then
		nextName string // in messages
	}{
		{tidelock.GitRepository, revision(commitA), tidelock.Goal{Ref: "refs/heads/main", Commit: commitA},
			tidelock.Goal{Ref: "refs/heads/main", Commit: commitB}, revision(commitB), string(commitB)},
		{tidelock.OCIRepository, "latest@" + string(digestA), goal("latest", digestA), goal("latest", digestB), "latest@" + string(digestB), "latest@" + string(digestB)},
		{tidelock.OCIRepository, "1.0.0@" + string(digestA), goal("1.0.0", digestA), goal("1.1.0", digestB), "1.1.0@" + string(digestB), "1.1.0@" + string(digestB)},
		{tidelock.HelmChart, "1.0.0", goal("1.0.0", digestA), goal("v1.1.0", digestB), "1.1.0+2", "v1.1.0@" + string(digestB)},
	}
	for _, tt := range tests {
		t.Run(string(tt.kind), func(t *testing.T) {
			s := newStory(t)
			s.track = &track{id: tidelock.SourceID(tt.kind + "/ns/site"), ours: true}
			s.show(func(o *observation) { o.revision = tt.has })
			number := int64(0)
			announce := func(goal tidelock.Goal) *story {
				number++
				s.track.announce(Announcement{Source: s.track.id, Number: number, Goal: goal, Gone: goal.None()}, s.now)
				return s
			}
			announce(tt.now).is(tidelock.Converged).quiet()
			announce(tt.next).is(tidelock.Delivered).calls()
			s.show(func(o *observation) { o.handledAt = o.requestedAt }).is(tidelock.Handled).quiet()
			if got := s.track.announcement.progress.Message; !strings.Contains(got, tt.has) || !strings.Contains(got, tt.nextName) {
				t.Errorf("message: got %q, want both %q and %q in it", got, tt.has, tt.nextName)
			}
			s.pass(time.Minute).calls().show(func(o *observation) { o.handledAt, o.failure = o.requestedAt, "OCIPullFailed: x" }).is(tidelock.Failed)
			s.pass(time.Minute).calls().show(func(o *observation) { o.handledAt, o.failure, o.revision = o.requestedAt, "", tt.shows }).is(tidelock.Converged).quiet()
			if source := s.track.source(); source.LastNumber != number || source.LastCommit != tt.next.Commit || source.LastDigest != tt.next.Digest {
				t.Errorf("told %+v", source)
			}
			announce(tidelock.Goal{Ref: tt.next.Ref}).is(tidelock.Gone).quiet()
		})
	}
}

// TestTrackOfAnImage follows an ImageRepository, which has no artifact to show:
// it has what was announced once Flux has read the tags after it.
func TestTrackOfAnImage(t *testing.T) {
	s := newStory(t)
	s.track = &track{id: "ImageRepository/ns/site", ours: true}
	s.show(func(o *observation) { o.revision = "" })
	announce := func(number int64, digest tidelock.Digest) *story {
		goal := tidelock.Goal{Ref: "refs/tags/main", Digest: digest}
		s.track.announce(Announcement{Source: s.track.id, Number: number, Goal: goal, Gone: digest == ""}, s.now)
		return s
	}
	count := 0
	scans := func() *story {
		count++
		return s.show(func(o *observation) {
			o.handledAt, o.failure, o.scan = o.requestedAt, "", fmt.Sprint("scan ", count)
		})
	}
	fails := func() *story {
		s.show(func(o *observation) { o.handledAt = o.requestedAt }).quiet()
		return s.show(func(o *observation) { o.failure = "ReadOperationFailed: x" }).is(tidelock.Failed).quiet()
	}
	announce(1, digestA).is(tidelock.Delivered).calls()
	s.now = s.now.Add(time.Second)
	scans().is(tidelock.Converged).quiet().pass(time.Hour).quiet()
	if got := s.track.source(); got.Revision != "main@"+string(digestA) || got.LastNumber != 1 || got.LastDigest != digestA {
		t.Errorf("told %+v", got)
	}
	if p := s.track.announcement.progress; p.Handled != time.Second || p.Fetched != time.Second {
		t.Errorf("progress: got %+v", p)
	}

	// A tag that points at the same artifact is news too.
	announce(2, digestA).is(tidelock.Delivered).calls()
	scans().is(tidelock.Converged)

	// Flux reads the tags on its own: nothing to us.
	s.show(func(o *observation) { o.scan = "its own" }).is(tidelock.Converged).quiet()

	// It cannot read them, and then says it is ready without having tried.
	announce(3, digestB).calls()
	fails().pass(time.Minute).calls()
	fails().show(func(o *observation) { o.failure = "" }).is(tidelock.Failed)
	s.pass(time.Minute).calls()
	scans().is(tidelock.Converged).quiet()

	// The next one comes while the scan for this one is under way.
	announce(4, digestA).calls()
	announce(5, digestB).calls()
	s.show(func(o *observation) { o.handledAt, o.scan = "stamp 0", "for 4" }).is(tidelock.Delivered)
	fails().pass(time.Minute).calls()
	scans().is(tidelock.Converged)

	announce(6, "").is(tidelock.Gone).quiet()
	s.show(func(o *observation) { o.url = "oci://forge.example/team/other" })
	if got := s.track.source().Revision; got != "" {
		t.Errorf("of another image it has %q", got)
	}
}
