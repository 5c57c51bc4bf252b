package flux

import (
	"context"
	"errors"
	"sync"

	"tidelock.dev"
)

// ErrFeedEnded is what a Feed's reader gets when a newer Feed was opened or
// the Controller has stopped.
var ErrFeedEnded = errors.New("the feed has ended")

// Changes is what is new since the last call of Next.
type Changes struct {
	Complete bool // Sources is the whole set
	Sources  []Source
	Removals []tidelock.SourceID
	Progress []Progress
}

// A Feed hands out the set of sources once, and then what changes in it and
// how announcements come along. It coalesces by source, newest wins, so a slow
// reader holds at most one entry of each kind per source.
type Feed struct {
	wake chan struct{}

	mu       sync.Mutex
	closed   bool
	complete bool
	sources  map[tidelock.SourceID]Source
	removals map[tidelock.SourceID]bool
	progress map[tidelock.SourceID]Progress
}

func newFeed() *Feed {
	f := &Feed{wake: make(chan struct{}, 1)}
	f.clear()
	return f
}

// Next waits for changes. The first has the complete set, be it empty.
func (f *Feed) Next(ctx context.Context) (Changes, error) {
	for {
		select {
		case <-ctx.Done():
			return Changes{}, ctx.Err()
		case <-f.wake:
		}
		if changes, ok, err := f.take(); ok || err != nil {
			return changes, err
		}
	}
}

func (f *Feed) take() (changes Changes, ok bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return Changes{}, false, ErrFeedEnded
	}
	changes.Complete = f.complete
	for _, s := range f.sources {
		changes.Sources = append(changes.Sources, s)
	}
	for id := range f.removals {
		changes.Removals = append(changes.Removals, id)
	}
	for _, p := range f.progress {
		changes.Progress = append(changes.Progress, p)
	}
	ok = changes.Complete || len(changes.Sources)+len(changes.Removals)+len(changes.Progress) > 0
	f.clear()
	return changes, ok, nil
}

// clear forgets what was handed out; the lock is held.
func (f *Feed) clear() {
	f.complete = false
	f.sources = make(map[tidelock.SourceID]Source)
	f.removals = make(map[tidelock.SourceID]bool)
	f.progress = make(map[tidelock.SourceID]Progress)
}

func (f *Feed) start(set []Source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clear()
	f.complete = true
	for _, s := range set {
		f.sources[s.ID] = s
	}
	f.ring()
}

func (f *Feed) upsert(s Source) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sources[s.ID] = s
	delete(f.removals, s.ID)
	f.ring()
}

func (f *Feed) remove(id tidelock.SourceID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sources, id)
	delete(f.progress, id)
	if !f.complete {
		f.removals[id] = true
	}
	f.ring()
}

func (f *Feed) advance(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.progress[p.Source] = p
	f.ring()
}

func (f *Feed) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.ring()
}

// ring wakes the reader; the lock is held.
func (f *Feed) ring() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}
