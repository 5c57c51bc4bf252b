package flux

import (
	"context"
	"sync"

	"tidelock.dev"
)

// Observations is what is new since the last call of Next. Times are those of
// this process, with their monotonic part; an observation has no Agent and no
// Project.
type Observations struct {
	Complete bool // Upserts is the whole set
	Upserts  []tidelock.Observation
	Removals []tidelock.ObjectID
}

// An ObservationFeed hands out what is observed once, and then what changes.
// It coalesces by object, newest wins, so a slow reader holds at most one
// entry per object.
type ObservationFeed struct {
	wake chan struct{}

	mu       sync.Mutex
	closed   bool
	started  bool
	complete bool
	upserts  map[tidelock.ObjectID]tidelock.Observation
	removals map[tidelock.ObjectID]bool
}

func newObservationFeed() *ObservationFeed {
	f := &ObservationFeed{wake: make(chan struct{}, 1)}
	f.clear()
	return f
}

// Next waits for changes. The first has the complete set, be it empty. It
// returns ErrFeedEnded when a newer feed was opened or the Controller stopped.
func (f *ObservationFeed) Next(ctx context.Context) (Observations, error) {
	for {
		select {
		case <-ctx.Done():
			return Observations{}, ctx.Err()
		case <-f.wake:
		}
		if o, ok, err := f.take(); ok || err != nil {
			return o, err
		}
	}
}

func (f *ObservationFeed) take() (o Observations, ok bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return Observations{}, false, ErrFeedEnded
	}
	o.Complete = f.complete
	for _, upsert := range f.upserts {
		o.Upserts = append(o.Upserts, upsert)
	}
	for id := range f.removals {
		o.Removals = append(o.Removals, id)
	}
	f.clear()
	return o, o.Complete || len(o.Upserts)+len(o.Removals) > 0, nil
}

// clear forgets what was handed out; the lock is held.
func (f *ObservationFeed) clear() {
	f.complete = false
	f.upserts = make(map[tidelock.ObjectID]tidelock.Observation)
	f.removals = make(map[tidelock.ObjectID]bool)
}

// start hands out the whole set. What comes before is part of it.
func (f *ObservationFeed) start(set map[tidelock.ObjectID]tidelock.Observation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clear()
	f.started, f.complete = true, true
	for id, o := range set {
		f.upserts[id] = o
	}
	f.ring()
}

func (f *ObservationFeed) upsert(o tidelock.Observation) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.started {
		return
	}
	f.upserts[o.Object] = o
	delete(f.removals, o.Object)
	f.ring()
}

func (f *ObservationFeed) remove(id tidelock.ObjectID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.started {
		return
	}
	delete(f.upserts, id)
	if !f.complete {
		f.removals[id] = true
	}
	f.ring()
}

func (f *ObservationFeed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.ring()
}

// ring wakes the reader; the lock is held.
func (f *ObservationFeed) ring() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}
