package flux

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"tidelock.dev"
)

// ErrFeedEnded is what a Feed's reader gets when a newer Feed of its kind was
// opened or the Controller has stopped.
var ErrFeedEnded = errors.New("the feed has ended")

type (
	// A SourceFeed hands out the sources, and how announcements come along.
	SourceFeed    = Feed[tidelock.SourceID, Source]
	SourceChanges = Changes[tidelock.SourceID, Source]

	// An ObservationFeed hands out what is observed. Times are those of this
	// process, with their monotonic part; an observation has no Agent and no
	// Project.
	ObservationFeed = Feed[tidelock.ObjectID, tidelock.Observation]
	Observations    = Changes[tidelock.ObjectID, tidelock.Observation]
)

// Changes is what is new in a set since the last call of Next, in no order.
type Changes[K comparable, V any] struct {
	Complete bool // Upserts is the whole set
	Upserts  []V
	Removals []K
	Progress []Progress // of announcements, which only sources have
}

// A Feed hands out a set once, and then what changes in it. It coalesces by
// key, newest wins, so a slow reader holds at most one entry of each kind per
// key. What comes before the set is part of it.
type Feed[K comparable, V any] struct {
	wake chan struct{}

	mu       sync.Mutex
	started  bool // the set is known
	closed   bool
	complete bool
	upserts  map[K]V
	removals map[K]bool
	progress map[K]Progress
}

func newFeed[K comparable, V any]() *Feed[K, V] {
	f := &Feed[K, V]{wake: make(chan struct{}, 1)}
	f.clear()
	return f
}

// Next waits for changes. The first has the complete set, be it empty. It
// returns ErrFeedEnded when the feed is at its end.
func (f *Feed[K, V]) Next(ctx context.Context) (Changes[K, V], error) {
	for {
		select {
		case <-ctx.Done():
			return Changes[K, V]{}, ctx.Err()
		case <-f.wake:
		}
		if changes, ok, err := f.take(); ok || err != nil {
			return changes, err
		}
	}
}

func (f *Feed[K, V]) take() (changes Changes[K, V], ok bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return changes, false, ErrFeedEnded
	}
	changes = Changes[K, V]{
		Complete: f.complete,
		Upserts:  slices.Collect(maps.Values(f.upserts)),
		Removals: slices.Collect(maps.Keys(f.removals)),
		Progress: slices.Collect(maps.Values(f.progress)),
	}
	f.clear()
	return changes, changes.Complete || len(changes.Upserts)+len(changes.Removals)+len(changes.Progress) > 0, nil
}

// clear forgets what was handed out; the lock is held.
func (f *Feed[K, V]) clear() {
	f.complete = false
	f.upserts = make(map[K]V)
	f.removals = make(map[K]bool)
	f.progress = make(map[K]Progress)
}

// start hands out the whole set, at first or anew.
func (f *Feed[K, V]) start(set map[K]V) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clear()
	f.started, f.complete = true, true
	maps.Copy(f.upserts, set)
	f.ring()
}

func (f *Feed[K, V]) upsert(key K, value V) {
	f.change(func() {
		f.upserts[key] = value
		delete(f.removals, key)
	})
}

func (f *Feed[K, V]) remove(key K) {
	f.change(func() {
		delete(f.upserts, key)
		delete(f.progress, key)
		if !f.complete {
			f.removals[key] = true
		}
	})
}

func (f *Feed[K, V]) advance(key K, p Progress) {
	f.change(func() { f.progress[key] = p })
}

// change has the reader told what do changes, if the set is known.
func (f *Feed[K, V]) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.started {
		do()
		f.ring()
	}
}

func (f *Feed[K, V]) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.ring()
}

// ring wakes the reader; the lock is held.
func (f *Feed[K, V]) ring() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}
