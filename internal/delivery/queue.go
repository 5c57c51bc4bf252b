package delivery

import (
	"sync"
	"time"

	"tidelock.dev"
)

// A queue is the projects that wait to be looked at, each once. A project that
// is being looked at waits until that is done.
type queue struct {
	wake chan struct{} // holds at most one "look again"

	mu       sync.Mutex
	order    []tidelock.ProjectID
	projects map[tidelock.ProjectID]*turn
}

// A turn is where a project stands.
type turn struct {
	waiting  bool // in order
	working  bool
	cut      bool          // an earlier one may have been cut off
	notUntil time.Time     // after a failure
	delay    time.Duration // of the last failure
}

const (
	firstRetry = time.Second
	lastRetry  = 5 * time.Minute
)

// add lets a project wait, unless it does.
func (q *queue) add(id tidelock.ProjectID) {
	q.mu.Lock()
	q.put(id)
	q.mu.Unlock()
	q.ring()
}

// addCut is add for a project whose packaging may have been cut off.
func (q *queue) addCut(id tidelock.ProjectID) {
	q.mu.Lock()
	q.put(id)
	q.projects[id].cut = true
	q.mu.Unlock()
	q.ring()
}

// wasCut reports whether an earlier turn of a project that is being looked at
// may have been cut off.
func (q *queue) wasCut(id tidelock.ProjectID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.projects[id].cut
}

func (q *queue) ring() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) put(id tidelock.ProjectID) {
	t := q.projects[id]
	if t == nil {
		t = &turn{}
		q.projects[id] = t
	}
	if !t.waiting {
		t.waiting = true
		q.order = append(q.order, id)
	}
}

// next takes the project that has waited longest and may be looked at. When
// there is none it returns 0 and how long that stays so.
func (q *queue) next(now time.Time) (tidelock.ProjectID, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	wait := time.Hour
	for i, id := range q.order {
		t := q.projects[id]
		if t.working {
			continue
		}
		if left := t.notUntil.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		q.order = append(q.order[:i], q.order[i+1:]...)
		t.waiting, t.working = false, true
		return id, 0
	}
	return 0, wait
}

// done ends the turn of a project. After a failure it waits for another one,
// longer each time.
func (q *queue) done(id tidelock.ProjectID, failed bool, now time.Time) {
	q.mu.Lock()
	t := q.projects[id]
	t.working, t.cut = false, failed
	if failed {
		t.delay = min(max(firstRetry, 2*t.delay), lastRetry)
		t.notUntil = now.Add(t.delay)
		q.put(id)
	} else {
		t.delay, t.notUntil = 0, time.Time{}
		if !t.waiting {
			delete(q.projects, id)
		}
	}
	q.mu.Unlock()
	q.ring()
}
