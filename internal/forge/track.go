package forge

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"tidelock.dev"
)

// Reasons of rollouts whose state the forge decides, and not Flux.
const (
	reasonAway       = "AgentAway"
	reasonNotServed  = "NotServed"
	reasonSuperseded = "Superseded"
	reasonSuspended  = "Suspended"
	reasonFetch      = "FetchFailed"
	reasonHealth     = "Unhealthy"
	reasonHeld       = "Held"
)

const (
	// maxRolloutMessage bounds the message of a rollout, in bytes.
	maxRolloutMessage = 4096
	// defaultHealthWait is how long what an applier brought may take to become
	// healthy when the applier does not say.
	defaultHealthWait = 5 * time.Minute
	// fetchPatience is how long after a push a source that had failed before
	// may go on failing until that is taken for the push's failure.
	fetchPatience = time.Minute
	// turnStep leaves room between turns for commits that are found out late.
	turnStep = 64
)

// A track is the rollouts of one applier: what was pushed for it, and how far
// each commit came. It is pure: the same pushes and observations make the same
// track, whenever they are looked at.
type track struct {
	agent    tidelock.AgentID
	applier  tidelock.ObjectID
	source   tidelock.SourceID
	project  tidelock.ProjectID // where the source leads now
	now      time.Time
	rollouts []*tidelock.Rollout // in order of turn; also of other projects
	before   map[*tidelock.Rollout]tidelock.Rollout
	fresh    map[*tidelock.Rollout]bool // made of what was seen, and not of a push
}

func newTrack(agent tidelock.AgentID, applier tidelock.ObjectID, source tidelock.SourceID, project tidelock.ProjectID, now time.Time, known []tidelock.Rollout) *track {
	t := &track{
		agent: agent, applier: applier, source: source, project: project, now: now,
		before: map[*tidelock.Rollout]tidelock.Rollout{}, fresh: map[*tidelock.Rollout]bool{},
	}
	for _, r := range known {
		t.before[&r] = r
		t.rollouts = append(t.rollouts, &r)
	}
	t.sort()
	return t
}

func (t *track) sort() {
	slices.SortStableFunc(t.rollouts, func(a, b *tidelock.Rollout) int { return cmp.Compare(a.Turn, b.Turn) })
}

// An arrival is a commit that a source should have from a moment on.
type arrival struct {
	commit tidelock.CommitID
	digest tidelock.Digest
	ref    tidelock.RefName
	push   tidelock.PushID
	at     time.Time
}

// newest is the rollout of the last commit that is known; nil for none.
func (t *track) newest() *tidelock.Rollout {
	for _, r := range t.rollouts {
		if r.Newest {
			return r
		}
	}
	return nil
}

func (t *track) find(commit tidelock.CommitID) *tidelock.Rollout {
	if commit == "" {
		return nil
	}
	for _, r := range t.rollouts {
		if r.Project == t.project && r.Commit == commit {
			return r
		}
	}
	return nil
}

// pushed takes in that a push moved the ref which the source follows. A push
// that was taken in before changes nothing.
func (t *track) pushed(a arrival) {
	for _, r := range t.rollouts {
		if r.Project == t.project && r.Push >= a.push {
			return
		}
	}
	t.wants(a)
}

// wants takes in what the source should have.
func (t *track) wants(a arrival) {
	newest := t.newest()
	again := newest != nil && newest.Digest != "" && a.digest != "" && newest.Digest != a.digest // packaged once more
	if newest == nil || newest.Project != t.project || newest.Commit != a.commit || again {
		t.arrive(a)
		return
	}
	newest.Push = max(newest.Push, a.push)
	newest.Ref = cmp.Or(a.ref, newest.Ref)
	newest.Digest = cmp.Or(a.digest, newest.Digest)
}

// arrive makes a commit the newest. One that was there before begins anew,
// unless all that is known of it is that Flux had it before its push was
// looked at.
func (t *track) arrive(a arrival) {
	r := t.find(a.commit)
	switch {
	case r == nil:
		r = t.add(a.commit)
		r.State, r.PendingAt = tidelock.RolloutPending, a.at
	case r.Push != 0 || r.State.Done():
		id, status, deployment, environment := r.ID, r.Status, r.Deployment, r.Environment
		agentName, updated := r.AgentName, r.UpdatedAt
		*r = tidelock.Rollout{
			ID: id, Agent: t.agent, AgentName: agentName, Applier: t.applier, Project: t.project, Commit: a.commit,
			Environment: environment, Status: status, Deployment: deployment, UpdatedAt: updated,
			State: tidelock.RolloutPending, PendingAt: a.at,
		}
	}
	r.Source, r.Digest, r.Ref, r.Push = t.source, cmp.Or(a.digest, r.Digest), a.ref, a.push
	if r.PendingAt.IsZero() {
		r.PendingAt = a.at
	}
	t.lead(r)
}

// add makes a rollout that stands nowhere yet.
func (t *track) add(commit tidelock.CommitID) *tidelock.Rollout {
	r := &tidelock.Rollout{
		Agent: t.agent, Applier: t.applier, Source: t.source, Project: t.project, Commit: commit, State: tidelock.RolloutPending,
	}
	t.rollouts = append(t.rollouts, r)
	return r
}

// lead makes a rollout the newest.
func (t *track) lead(r *tidelock.Rollout) {
	turn := int64(0)
	for _, other := range t.rollouts {
		if other != r {
			turn = max(turn, other.Turn)
			other.Newest = false
		}
	}
	r.Newest, r.Turn = true, turn+turnStep
	t.sort()
}

// tuck puts a rollout before the newest: its commit was there earlier.
func (t *track) tuck(r *tidelock.Rollout) {
	newest := t.newest()
	below := newest.Turn - turnStep
	for _, other := range t.rollouts {
		if other != r && other.Turn < newest.Turn {
			below = max(below, other.Turn)
		}
	}
	r.Turn = min(below+1, newest.Turn-1)
	t.sort()
}

// A sight is what an agent sees of an applier and of its source.
type sight struct {
	applier tidelock.Observation
	source  *tidelock.Observation // nil when it is not seen
	follows tidelock.AgentSource
	live    bool // it was told just now
	wanted  bool // the newest rollout is what the source should have
	gone    bool // the ref that the source follows is no more
	held    string
	kept    string           // why the commit that the applier has is not what it brought; "" when it is
	cargoes map[string]cargo // by revision, as Flux writes it
}

func (s sight) commit(revision string) tidelock.CommitID { return s.cargoes[revision].commit }

func (s sight) attempted() tidelock.CommitID {
	if s.applier.Attempted == "" {
		return s.commit(s.applier.Revision)
	}
	return s.commit(s.applier.Attempted)
}

func (s sight) fetched() tidelock.CommitID {
	if s.source == nil {
		return ""
	}
	return s.commit(s.source.Revision)
}

// current leaves out earlier artifacts of the newest commit, which was packaged
// once more since.
func (t *track) current(cargoes map[string]cargo) map[string]cargo {
	newest := t.newest()
	if newest == nil || newest.Digest == "" {
		return cargoes
	}
	cargoes = maps.Clone(cargoes)
	maps.DeleteFunc(cargoes, func(_ string, c cargo) bool {
		return c.commit == newest.Commit && c.digest != "" && c.digest != newest.Digest
	})
	return cargoes
}

// blank reports whether the applier was made anew, perhaps with its cluster:
// whatever another one of its name applied may be gone.
func (s sight) blank() bool { return s.applier.Revision == "" && s.applier.Attempted == "" }

// see takes in what is seen.
func (t *track) see(s sight) {
	if s.wanted {
		s.cargoes = t.current(s.cargoes)
	}
	t.discover(s)
	at, fetched := t.find(s.attempted()), t.find(s.fetched())
	newest := t.newest()
	if s.blank() && newest != nil && newest.Project == t.project && newest.State == tidelock.RolloutSuccess {
		newest.State, newest.Reason, newest.Message = tidelock.RolloutPending, "", ""
		newest.RunningAt, newest.AppliedAt, newest.HealthyAt = time.Time{}, time.Time{}, time.Time{}
	}
	for _, r := range t.rollouts {
		switch {
		case r.Project != t.project:
			if !r.State.Done() {
				t.become(r, tidelock.RolloutSuperseded, reasonSuperseded, string(t.source)+" leads to another project now")
			}
			continue
		case r.State == tidelock.RolloutUnknown && r.Reason == reasonAway && !s.live:
			continue
		case r != newest && r.State.Done() && r.State != tidelock.RolloutSuperseded:
			continue // it had its time
		}
		t.stamp(r, s)
		switch {
		case r == at:
			t.judge(r, s)
		case at != nil && at.Turn > r.Turn:
			t.passed(r, s, at)
		case r == fetched:
			t.offered(r, s, at)
		case r.State == tidelock.RolloutSuperseded:
		case fetched != nil && fetched.Turn > r.Turn:
			t.supersede(r, fetched)
		default:
			t.awaited(r, s)
		}
	}
}

// discover makes rollouts of commits that are seen and were not known of: from
// before the applier was, or put there by hand.
func (t *track) discover(s sight) {
	var seen []string
	for _, o := range slices.Backward(s.applier.Outcomes) {
		if o.State != tidelock.ObservedUnknown {
			seen = append(seen, o.Revision)
		}
	}
	seen = append(seen, s.applier.Revision, s.applier.Attempted)
	if s.source != nil {
		seen = append(seen, s.source.Revision)
	}
	for _, revision := range seen {
		c := s.cargoes[revision]
		if c.commit == "" {
			continue
		}
		r := t.find(c.commit)
		if r == nil {
			r = t.add(c.commit)
			t.fresh[r] = true
			if newest := t.newest(); newest == nil || newest.Project != t.project || !s.wanted {
				t.lead(r)
			} else {
				t.tuck(r)
			}
		}
		if r.Digest == "" {
			r.Digest = c.digest
		}
	}
}

// outcome is what became of a rollout; ok is false when nothing is known, or
// only of a time before its commit came again.
func (t *track) outcome(r *tidelock.Rollout, s sight) (outcome tidelock.Outcome, ok bool) {
	for _, o := range s.applier.Outcomes {
		is := t.find(s.commit(o.Revision))
		switch {
		case is == nil:
		case is == r:
			return o, true
		case is.Turn < r.Turn:
			return outcome, false // attempted later than that
		}
	}
	return outcome, false
}

// stamp notes when what.
func (t *track) stamp(r *tidelock.Rollout, s sight) {
	o, _ := t.outcome(r, s)
	note := func(field *time.Time, is bool, told time.Time) {
		if field.IsZero() && (is || !told.IsZero()) {
			if told.IsZero() || told.After(t.now) {
				told = t.now
			}
			*field = told
		}
	}
	attempted := s.attempted() == r.Commit
	note(&r.RunningAt, attempted || s.fetched() == r.Commit, o.AttemptedAt)
	if s.kept != "" {
		return // what Flux calls applied is not
	}
	note(&r.AppliedAt, attempted && s.commit(s.applier.Revision) == r.Commit, o.AppliedAt)
	note(&r.HealthyAt, false, o.HealthyAt)
}

// become moves a rollout to a state.
func (t *track) become(r *tidelock.Rollout, state tidelock.RolloutState, reason, message string) {
	if state == r.State && state == tidelock.RolloutSuperseded {
		return // by what came first
	}
	r.State, r.Reason, r.Message = state, reason, tidelock.Printable(message, maxRolloutMessage)
}

// judge decides a rollout whose commit the applier attempted last.
func (t *track) judge(r *tidelock.Rollout, s sight) {
	o := s.applier
	applied := s.commit(o.Revision) == r.Commit || o.Revision == ""
	done := r.State == tidelock.RolloutSuccess || r.State == tidelock.RolloutFailed
	switch {
	case o.State == tidelock.ObservedReady && applied && s.kept != "":
		t.become(r, tidelock.RolloutFailed, reasonVersionKept, s.kept)
	case o.State == tidelock.ObservedReady && applied:
		t.judgeHealth(r, o)
	case o.State.Failed():
		t.become(r, tidelock.RolloutFailed, o.Reason, o.Message)
	case done: // it is looked at again, and how that goes shows soon
	case r.State == tidelock.RolloutSuperseded && !r.Newest: // until it has ended after all
	case o.Suspended:
		t.become(r, tidelock.RolloutRunning, reasonSuspended, string(o.Object)+" is suspended")
	default:
		t.become(r, tidelock.RolloutRunning, o.Reason, o.Message)
	}
}

// judgeHealth decides a rollout that was applied well.
func (t *track) judgeHealth(r *tidelock.Rollout, o tidelock.Observation) {
	wait := o.Timeout
	if wait <= 0 {
		wait = defaultHealthWait
	}
	switch o.Health {
	case tidelock.HealthFailed:
		t.become(r, tidelock.RolloutFailed, worst(o).reason(), worst(o).message())
	case tidelock.HealthProgressing, tidelock.HealthMissing:
		switch {
		case o.HealthSince.IsZero() || t.now.Sub(o.HealthSince) < wait:
			if !r.State.Done() || r.State == tidelock.RolloutSuperseded && r.Newest {
				t.become(r, tidelock.RolloutRunning, worst(o).reason(), "waits for health: "+worst(o).message())
			}
		default:
			t.become(r, tidelock.RolloutFailed, worst(o).reason(), "not healthy after "+wait.String()+": "+worst(o).message())
		}
	default:
		if r.HealthyAt.IsZero() {
			r.HealthyAt = t.now
		}
		t.become(r, tidelock.RolloutSuccess, o.Reason, o.Message)
	}
}

// worst is the object that tells best why an applier is not healthy.
func worst(o tidelock.Observation) ailing {
	if len(o.Unhealthy) == 0 {
		return ailing{}
	}
	return ailing(o.Unhealthy[0])
}

type ailing tidelock.ObjectHealth

func (a ailing) reason() string { return cmp.Or(a.Reason, reasonHealth) }

func (a ailing) message() string {
	if a.Kind == "" {
		return "what it brought is not healthy"
	}
	text := tidelock.ObjectHealth(a).String() + " is " + string(a.Health)
	if a.Reason != "" {
		text += ": " + a.Reason
	}
	if a.Message != "" {
		text += ": " + a.Message
	}
	return text
}

// passed decides a rollout whose commit the applier has left behind.
func (t *track) passed(r *tidelock.Rollout, s sight, by *tidelock.Rollout) {
	o, known := t.outcome(r, s)
	switch {
	case known && o.State.Failed():
		t.become(r, tidelock.RolloutFailed, o.Reason, o.Message)
	case s.kept != "": // nor may this one have been packaged
		t.supersede(r, by)
	case known && o.State == tidelock.ObservedReady && o.Health == tidelock.HealthFailed && o.HealthyAt.IsZero():
		t.become(r, tidelock.RolloutFailed, reasonHealth, "it was applied, and what it brought was not healthy")
	case known && o.State == tidelock.ObservedReady && o.Health != tidelock.HealthProgressing && o.Health != tidelock.HealthMissing,
		known && !o.HealthyAt.IsZero(),
		t.fresh[r] && s.commit(s.applier.Revision) == r.Commit: // still the last one that Flux applied
		t.become(r, tidelock.RolloutSuccess, o.Reason, o.Message)
	default:
		t.supersede(r, by)
	}
}

// offered decides a rollout whose commit the source has and the applier has
// not begun with.
func (t *track) offered(r *tidelock.Rollout, s sight, at *tidelock.Rollout) {
	o := s.applier
	failing := o.State.Failed()
	switch {
	case failing && at != nil && at.State == tidelock.RolloutSuccess && !o.Since.Before(r.RunningAt):
		// The older one is live; what fails is to bring the newer one.
		t.become(r, tidelock.RolloutFailed, o.Reason, o.Message)
	case r.State == tidelock.RolloutSuccess || r.State == tidelock.RolloutFailed && failing:
	case o.Suspended:
		t.become(r, tidelock.RolloutRunning, reasonSuspended, string(o.Object)+" is suspended")
	case o.State == tidelock.ObservedBlocked && lacksDependency(o):
		t.become(r, tidelock.RolloutFailed, o.Reason, o.Message)
	case o.State == tidelock.ObservedBlocked:
		t.become(r, tidelock.RolloutRunning, o.Reason, o.Message)
	default:
		t.become(r, tidelock.RolloutRunning, "", "")
	}
}

// lacksDependency reports whether an applier waits for one that is not there:
// somebody has to do something. Flux has no reason of its own for this.
func lacksDependency(o tidelock.Observation) bool {
	return o.Reason == "DependencyNotReady" && strings.Contains(o.Message, "not found")
}

// awaited decides a rollout whose commit nobody has seen in the cluster, or
// not any more.
func (t *track) awaited(r *tidelock.Rollout, s sight) {
	newest := t.newest()
	waiting := tidelock.RolloutPending
	if !r.RunningAt.IsZero() {
		waiting = tidelock.RolloutRunning
	}
	failed, failure := s.cannotFetch(r, t.now)
	switch {
	case r.State == tidelock.RolloutSuccess:
	case r != newest && waiting == tidelock.RolloutPending:
		t.supersede(r, newest)
	case s.gone && waiting == tidelock.RolloutPending:
		t.become(r, tidelock.RolloutSuperseded, reasonSuperseded, "what "+string(t.source)+" follows was removed")
	case r == newest && failed:
		t.become(r, tidelock.RolloutFailed, reasonFetch, failure)
	case r.State == tidelock.RolloutFailed:
	case s.held != "":
		t.become(r, waiting, reasonHeld, s.held)
	case s.source != nil && s.source.Suspended || s.source == nil && s.follows.Suspended:
		t.become(r, waiting, reasonSuspended, string(t.source)+" is suspended")
	case s.applier.Suspended:
		t.become(r, waiting, reasonSuspended, string(s.applier.Object)+" is suspended")
	default:
		t.become(r, waiting, "", "")
	}
}

// cannotFetch reports whether a source failed to fetch a commit, and how.
func (s sight) cannotFetch(r *tidelock.Rollout, now time.Time) (failed bool, message string) {
	said := string(s.follows.Source) + ": "
	if s.follows.State == tidelock.Failed && s.follows.Wanted == r.Commit {
		return true, said + s.follows.Message
	}
	o := s.source
	if o == nil || o.Suspended || !o.State.Failed() {
		return false, ""
	}
	return o.Since.After(r.PendingAt) || now.Sub(r.PendingAt) > fetchPatience, said + o.Message
}

func (t *track) supersede(r, by *tidelock.Rollout) {
	t.become(r, tidelock.RolloutSuperseded, reasonSuperseded, "superseded by "+short(by.Commit))
}

func short(commit tidelock.CommitID) string { return string(commit[:min(8, len(commit))]) }

// changes are the rollouts that are not as they were, ready to be saved.
func (t *track) changes() (changed []tidelock.Rollout) {
	for _, r := range t.rollouts {
		before := t.before[r]
		if *r == before {
			continue
		}
		if r.State != before.State || r.Turn != before.Turn && r.Newest {
			r.FinishedAt = time.Time{}
			if r.State.Done() {
				r.FinishedAt = t.now
			}
		}
		if before.ID == 0 || r.State != before.State || r.Reason != before.Reason || r.Message != before.Message || r.Turn != before.Turn {
			r.ReportedAt = time.Time{}
		}
		r.UpdatedAt = t.now
		changed = append(changed, *r)
	}
	return changed
}
