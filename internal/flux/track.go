package flux

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"tidelock.dev"
)

// The clocks of following an announcement.
const (
	retryFirst = 5 * time.Second // after Flux could not; doubles
	retryMax   = 10 * time.Minute

	errorRetryFirst = time.Second // after nothing could be asked of Flux; doubles
	errorRetryMax   = time.Minute

	// unseenAfter is when an accepted request whose annotation never showed
	// is repeated by annotation; unhandledAfter is when one that Flux has not
	// acted on is repeated, doubling up to retryMax.
	unseenAfter    = 5 * time.Second
	unhandledAfter = 30 * time.Second

	// regressGrace is how long an artifact may differ from what was
	// announced and already there: Flux may have fetched a later push before its announcement.
	regressGrace = time.Second
)

// An Announcement says what a source should have now.
type Announcement struct {
	Source  tidelock.SourceID
	Number  int64
	Project tidelock.ProjectID
	tidelock.Goal
	Gone bool // the ref was deleted
}

// Via is how Flux was asked.
type Via string

const (
	ViaReceiver   Via = "receiver"
	ViaAnnotation Via = "annotation"
)

// Progress says how far the announcement of a number came. Spans count from
// its arrival; zero means not yet.
type Progress struct {
	Source   tidelock.SourceID
	Number   int64
	State    tidelock.AnnouncementState
	Message  string
	Called   time.Duration // the first request left
	Answered time.Duration // and was answered
	Handled  time.Duration // Flux acted on it
	Fetched  time.Duration // the artifact is what was announced
	Via      Via           // of the last request
	Attempts int
}

// A hook is a ready Receiver's address and the key that signs calls to it.
type hook struct {
	path string
	key  []byte
}

// A track follows one source: what Flux shows, what the server wants,
// and the one request that is meant to bring them together. Its methods are
// the inputs; each ends in settle, which looks only at the present state, so
// that no input may be missed for good. A track is guarded by its Controller,
// knows no clock of its own and starts nothing: whoever calls it looks at
// wanted and changed afterwards, and calls wake at the time in deadline.
type track struct {
	id   tidelock.SourceID
	seen observation
	ours bool // its URL is the forge's and the selector picks it
	hook *hook

	// includeWant names the artifacts that the source ought to be built with;
	// empty if one is missing or nothing is included.
	includeWant []string

	// scanned is the last announcement after which Flux read the tags of an
	// image; sources of other kinds show themselves what they have.
	scanned Announcement

	announcement *announcement // the latest; nil for none
	request      *request      // the latest that is over; nil for none, or to ask again
	calling      bool          // one is under way
	wanted       bool          // settle wants a call; whoever makes it clears this
	annotate     bool          // the next call is not to rely on a Receiver
	changed      bool          // the progress is news
	failures     int           // in a row, since the last announcement or success
	trouble      string        // why nothing could be asked of Flux
	retryAt      time.Time
	regressedAt  time.Time
	resumed      bool // was suspended while something was wanted

	secretVersion string // of the Secrets it is fetched with, polled while failing

	armed time.Time // the deadline that the Controller has seen

	verdict verdict // of the last attempt to fetch
}

type announcement struct {
	Announcement
	arrived  time.Time
	spec     spec // what the source followed then
	progress Progress
	counted  [4]bool // hops that metrics have seen
}

// A request is one call to Flux, and what it was to bring about.
type request struct {
	number   int64 // of the announcement at the time
	include  []string
	before   string // the annotation before it
	scan     string // the last scan before it was handled
	answered time.Time
	handled  bool
	judged   bool
}

// call describes a request to be made.
type call struct {
	source   tidelock.SourceID
	uid      types.UID
	hook     *hook // nil: by annotation
	announce Announcement
	request  *request
	arrived  time.Time // of the announcement; zero if something else is the reason
}

// outcome is what became of a call.
type outcome struct {
	via      Via
	called   time.Time
	answered time.Time
	attempts int
	err      error
}

// announce takes what the server says. An older number than the latest is
// late and dropped; the same number is a repetition and answered as such.
func (t *track) announce(a Announcement, now time.Time) {
	if latest := t.announcement; latest != nil && a.Number <= latest.Number {
		t.changed = t.changed || a.Number == latest.Number
		return
	}
	t.announcement = &announcement{
		Announcement: a,
		arrived:      now,
		spec:         t.seen.spec(),
		progress:     Progress{Source: a.Source, Number: a.Number, State: tidelock.Delivered},
	}
	t.changed = true
	t.calm()
	t.settle(now)
}

// dismiss forgets the announcement: the source is not served any more.
func (t *track) dismiss(now time.Time) {
	t.announcement = nil
	t.changed = false
	t.calm()
	t.settle(now)
}

// setOurs takes whether the source is ours to trigger. One that is not has no
// announcement: should it come back, the server will say what holds then.
func (t *track) setOurs(ours bool, now time.Time) {
	if t.ours == ours {
		return
	}
	t.ours = ours
	if ours {
		t.settle(now)
	} else {
		t.dismiss(now)
	}
}

// observe takes what Flux shows.
func (t *track) observe(o observation, now time.Time) {
	before := t.seen
	t.seen = o
	if before.uid != o.uid && before.uid != "" {
		// Another object of the same name: nothing of the old one holds.
		t.announcement, t.request, t.hook, t.changed = nil, nil, nil, false
		t.scanned = Announcement{}
		t.calm()
	}
	if before.spec() != o.spec() {
		t.scanned = Announcement{}
	}
	if !slices.Equal(before.secretNames(), o.secretNames()) {
		t.secretVersion = ""
	}
	if o.edited(&before) && t.failures > 0 {
		t.again()
	}
	if a := t.announcement; a != nil {
		switch live := t.has(a); {
		case live && a.progress.Fetched == 0:
			a.progress.Fetched = a.since(now)
		case !live && a.progress.State != tidelock.Converged:
			a.progress.Fetched = 0
		}
	}
	t.settle(now)
}

// setIncludeWant takes what the included sources show.
func (t *track) setIncludeWant(want []string, now time.Time) {
	if !slices.Equal(t.includeWant, want) {
		t.includeWant = want
		t.settle(now)
	}
}

// secretSeen takes the version of the Secrets that Flux fetches the source with.
func (t *track) secretSeen(version string, now time.Time) {
	known := t.secretVersion
	t.secretVersion = version
	if known != "" && known != version && t.failures > 0 {
		t.again()
		t.settle(now)
	}
}

// begin starts the wanted call.
func (t *track) begin() call {
	t.wanted, t.calling, t.resumed = false, true, false
	c := call{source: t.id, uid: t.seen.uid, hook: t.hook}
	if t.annotate {
		c.hook = nil
	}
	c.request = &request{include: t.includeWant, before: t.seen.requestedAt, scan: t.seen.scan}
	if a := t.announcement; a != nil {
		c.announce, c.arrived = a.Announcement, a.arrived
		c.request.number = a.Number
	}
	return c
}

// end takes the outcome of the call.
func (t *track) end(c call, o outcome, now time.Time) {
	t.calling = false
	if c.uid != t.seen.uid {
		t.settle(now)
		return
	}
	if a := t.announcement; a != nil && a.Number == c.request.number && a.open() {
		p := &a.progress
		p.Attempts += o.attempts
		if o.via != "" {
			p.Via = o.via
		}
		if p.Called == 0 && !o.called.IsZero() {
			p.Called = a.since(o.called)
		}
		if p.Answered == 0 && o.err == nil {
			p.Answered = a.since(o.answered)
		}
		t.changed = true
	}
	if o.err != nil {
		t.failures++
		t.trouble = clip(o.err.Error())
		t.retryAt = now.Add(backoff(errorRetryFirst, errorRetryMax, t.failures))
	} else {
		t.trouble = ""
		c.request.answered = now
		t.request = c.request
		t.retryAt = now.Add(unseenAfter)
	}
	t.settle(now)
}

// wake is called when the deadline has passed.
func (t *track) wake(now time.Time) {
	if !t.retryAt.IsZero() && !now.Before(t.retryAt) {
		t.retryAt = time.Time{}
		t.trouble = ""
		r := t.request
		switch {
		case r == nil:
		case r.handled:
			t.request = nil
		case t.seen.requestedAt == r.before:
			// Somebody said yes, and nothing happened.
			t.annotate = true
			t.failures++
			t.request = nil
		case now.Sub(r.answered) >= t.unhandledAfter():
			t.failures++
			t.request = nil
		default:
			t.retryAt = r.answered.Add(t.unhandledAfter())
		}
	}
	if !t.regressedAt.IsZero() && now.Sub(t.regressedAt) >= regressGrace {
		t.regressedAt = time.Time{}
		if a := t.announcement; a != nil && a.progress.State == tidelock.Converged && !t.has(a) {
			t.report(tidelock.Failed, fmt.Sprintf("Flux went from %s to %q", inWords(a.Goal), t.revision()))
			t.request = nil
		}
	}
	t.settle(now)
}

// deadline is when wake is due; zero for never.
func (t *track) deadline() time.Time {
	due := t.retryAt
	if !t.regressedAt.IsZero() {
		if end := t.regressedAt.Add(regressGrace); due.IsZero() || end.Before(due) {
			due = end
		}
	}
	return due
}

// settle compares what is wanted with what is, and decides.
func (t *track) settle(now time.Time) {
	t.wanted = false
	if r := t.request; r != nil && !r.handled {
		if t.seen.requestedAt != r.before && t.seen.requestedAt == t.seen.handledAt {
			t.handled(r, now)
		} else {
			r.scan = t.seen.scan
		}
	}

	a := t.announcement
	if r := t.request; a != nil && r != nil && r.handled && r.number == a.Number && t.seen.scan != r.scan {
		// That it is ready would not do: after a scan that failed, Flux calls an
		// image ready again without having read its tags.
		t.scanned = a.Announcement
		if a.progress.Fetched == 0 {
			a.progress.Fetched = a.since(now)
		}
	}
	if a != nil && a.Gone {
		t.report(tidelock.Gone, "")
	}
	moved := t.headMissing(now)
	includes := t.includeMissing()
	pending := t.calling || t.request != nil && !t.request.handled
	switch {
	case !moved && !includes && !pending:
		if a != nil && t.has(a) {
			if a.progress.Fetched == 0 {
				a.progress.Fetched = 1
			}
			t.report(tidelock.Converged, "")
		}
		t.calm()
	case t.seen.suspended:
		if moved && !t.has(a) {
			t.report(tidelock.Parked, "the source is suspended")
		}
		t.resumed = t.resumed || moved || includes
		t.retryAt = time.Time{}
	case t.calling:
	case t.trouble != "":
		if a != nil && moved {
			t.report(a.progress.State, t.trouble)
		}
	case (moved || includes) && (t.resumed || t.unasked(moved, includes)):
		if a != nil && a.progress.State == tidelock.Parked {
			t.report(tidelock.Delivered, "")
		}
		t.wanted = true
	case pending:
	default:
		t.judge(moved, now)
	}
}

// handled notes that Flux has acted on the request.
func (t *track) handled(r *request, now time.Time) {
	r.handled = true
	t.annotate = false
	t.retryAt = time.Time{}
	if a := t.announcement; a != nil && a.Number == r.number && a.progress.Handled == 0 && a.open() {
		a.progress.Handled = a.since(now)
		t.changed = true
	}
}

// unasked reports whether something is wanted that the last request, if any,
// was not about.
func (t *track) unasked(moved, includes bool) bool {
	r := t.request
	return r == nil ||
		moved && r.number < t.announcement.Number ||
		includes && !slices.Equal(r.include, t.includeWant)
}

// has reports whether the source is where the announcement wants it.
func (t *track) has(a *announcement) bool {
	if t.id.Kind() == tidelock.ImageRepository {
		return !a.Gone && a.Number == t.scanned.Number
	}
	return tidelock.ParseRevision(t.id.Kind(), t.seen.revision).Meets(a.Goal)
}

// revision is what the source has, as Flux writes it, or would.
func (t *track) revision() string {
	if t.id.Kind() == tidelock.ImageRepository {
		return inWords(t.scanned.Goal)
	}
	return t.seen.revision
}

// inWords writes a goal as Flux does.
func inWords(g tidelock.Goal) string {
	if tag, ok := g.Ref.Tag(); ok && g.Digest != "" {
		return tag + "@" + string(g.Digest)
	}
	return cmp.Or(string(g.Digest), string(g.Commit))
}

// headMissing reports whether the source is to be brought to what was
// announced. A request in flight counts: what Flux shows may be about to change
// to what an older request found.
func (t *track) headMissing(now time.Time) bool {
	regressedAt := t.regressedAt
	t.regressedAt = time.Time{}
	a := t.announcement
	switch {
	case a == nil || a.Gone || !t.ours:
		return false
	case t.has(a):
		return t.calling && (t.request == nil || t.request.number < a.Number) ||
			t.request != nil && !t.request.handled
	case a.spec != t.seen.spec():
		// It follows another ref by now; the server is about to say what that is.
		return false
	case a.progress.State == tidelock.Converged:
		if t.regressedAt = regressedAt; t.regressedAt.IsZero() {
			t.regressedAt = now
		}
		return false
	}
	return true
}

// includeMissing reports whether the source was built with other artifacts
// than the ones its included sources have.
func (t *track) includeMissing() bool {
	return t.ours && len(t.includeWant) > 0 && !slices.Equal(t.includeWant, t.seen.included)
}

// judge says what it means that Flux has acted and the source is not where it
// should be, and sets the time of the next attempt.
func (t *track) judge(moved bool, now time.Time) {
	if r := t.request; !r.judged {
		r.judged = true
		t.failures++
		t.retryAt = now.Add(backoff(retryFirst, retryMax, t.failures))
	}
	if !moved {
		return
	}
	switch a := t.announcement; {
	case t.seen.failure != "":
		t.report(tidelock.Failed, t.seen.failure)
	case t.failures > 1 || a.progress.State == tidelock.Failed:
		t.report(tidelock.Failed, fmt.Sprintf("Flux has %q, not %s", t.revision(), inWords(a.Goal)))
	default:
		// Flux has fetched something else without trouble: likely a later
		// push, whose announcement is on its way.
		t.report(tidelock.Handled, fmt.Sprintf("Flux has %q, not %s", t.revision(), inWords(a.Goal)))
	}
}

// report sets the state of the announcement, if there is one.
func (t *track) report(state tidelock.AnnouncementState, message string) {
	a := t.announcement
	if a == nil || a.progress.State == state && a.progress.Message == message {
		return
	}
	a.progress.State, a.progress.Message = state, message
	t.changed = true
}

// again asks for a new request at once.
func (t *track) again() {
	t.request = nil
	t.trouble = ""
	t.failures = 0
	t.retryAt = time.Time{}
}

// calm ends all retrying.
func (t *track) calm() {
	t.trouble = ""
	t.failures = 0
	t.retryAt = time.Time{}
	t.resumed = false
	t.secretVersion = ""
}

// failing reports whether Flux could not fetch, so that a change of the
// source's Secrets may be the repair.
func (t *track) failing() bool {
	return t.ours && t.seen.failure != "" && t.failures > 0 && len(t.seen.secretNames()) > 0 && !t.seen.suspended
}

// unhandledAfter grows with the failures.
func (t *track) unhandledAfter() time.Duration {
	return min(unhandledAfter<<min(t.failures, 10), retryMax)
}

// open reports whether there is still something to be done for it; requests
// after that have other reasons.
func (a *announcement) open() bool {
	return a.progress.State != tidelock.Converged && a.progress.State != tidelock.Gone
}

// since is how long after its arrival something happened; never zero.
func (a *announcement) since(at time.Time) time.Duration {
	return max(at.Sub(a.arrived), 1)
}

// backoff doubles from first to most, less up to a fifth of it.
func backoff(first, most time.Duration, failures int) time.Duration {
	d := min(first<<min(max(failures-1, 0), 16), most)
	return d - rand.N(d/5+1)
}
