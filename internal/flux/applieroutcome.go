package flux

import (
	"slices"
	"time"

	"tidelock.dev"
)

// maxOutcomes is of how many revisions an applier's outcome is kept.
const maxOutcomes = 8

// remember adds what Flux tells of an older revision. Flux may tell of one
// revision several times, the last time first.
func remember(outcomes []tidelock.Outcome, o tidelock.Outcome) []tidelock.Outcome {
	if o.Revision == "" || len(outcomes) == maxOutcomes || indexOutcome(outcomes, o.Revision) >= 0 {
		return outcomes
	}
	o.Health = tidelock.HealthUnknown
	return append(outcomes, o)
}

func indexOutcome(outcomes []tidelock.Outcome, revision string) int {
	return slices.IndexFunc(outcomes, func(o tidelock.Outcome) bool { return o.Revision == revision })
}

// A moment is what decides the outcomes of an applier.
type moment struct {
	standing
	attempted string
	applied   string
	brought   bool
	health    tidelock.Health
	now       time.Time // zero of the first: nobody knows since when it is so
}

// well reports whether all is done: what Flux applied is healthy, or nobody
// but Flux looks at that.
func (m moment) well() bool {
	return m.state == tidelock.ObservedReady && m.brought &&
		(m.health == tidelock.HealthHealthy || m.health == tidelock.HealthUnknown)
}

// shownAgain reports whether Flux only shows again what had become of an older
// revision, without another attempt.
func (m moment) shownAgain(before moment, o tidelock.Outcome) bool {
	return m.state.Failed() && o.State.Failed() ||
		m.state == tidelock.ObservedReady && o.State == tidelock.ObservedReady && m.applied == before.applied
}

// record returns the outcomes after a moment that follows another one. It does
// not change those that it is given.
func record(outcomes []tidelock.Outcome, before, m moment) []tidelock.Outcome {
	outcomes = slices.Clone(outcomes)
	if m.applied != "" && m.applied != m.attempted && indexOutcome(outcomes, m.applied) < 0 {
		outcomes = slices.Insert(outcomes, 0, tidelock.Outcome{Revision: m.applied, State: tidelock.ObservedReady, Health: tidelock.HealthUnknown})
	}
	if m.attempted == "" {
		return outcomes
	}
	i := indexOutcome(outcomes, m.attempted)
	if i > 0 && m.shownAgain(before, outcomes[i]) {
		return outcomes
	}
	// One that is attempted again after another is a new attempt.
	if i != 0 {
		o := tidelock.Outcome{Revision: m.attempted, State: tidelock.ObservedProgressing, Health: tidelock.HealthUnknown, AttemptedAt: m.now}
		if i > 0 && m.now.IsZero() {
			o = outcomes[i]
		}
		if i > 0 {
			outcomes = slices.Delete(outcomes, i, i+1)
		}
		outcomes = slices.Insert(outcomes, 0, o)
		outcomes = outcomes[:min(len(outcomes), maxOutcomes)]
	}
	if before.attempted != m.attempted {
		before = moment{}
	}
	advance(&outcomes[0], before, m)
	return outcomes
}

// advance takes a moment of an attempt, and the one before in it, into the
// outcome of its revision.
func advance(o *tidelock.Outcome, before, m moment) {
	switch m.state {
	case tidelock.ObservedReady:
		if m.applied == o.Revision {
			o.State, o.Reason, o.Message = m.state, m.reason, m.message
		}
	case tidelock.ObservedFailed, tidelock.ObservedStalled:
		if o.State != m.state || o.Message != m.message {
			o.FailedAt = m.now
		}
		o.State, o.Reason, o.Message = m.state, m.reason, m.message
	case tidelock.ObservedProgressing:
		o.State, o.Reason, o.Message = m.state, m.reason, m.message
	case tidelock.ObservedBlocked:
		if !decided(o.State) { // else it is another revision that waits
			o.State, o.Reason, o.Message = m.state, m.reason, m.message
		}
	}
	o.Message = printable(o.Message, maxOutcomeMessage)
	if !m.brought {
		return
	}
	o.Health = m.health
	if !before.brought && o.AppliedAt.IsZero() {
		o.AppliedAt = m.now
	}
	if m.well() && !before.well() && o.HealthyAt.IsZero() {
		o.HealthyAt = m.now
	}
}
