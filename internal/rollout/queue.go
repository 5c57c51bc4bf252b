package rollout

import (
	"context"
	"sync"
	"time"

	"tidelock.dev"
)

// A task is what is to be done for a project; each holds those before it.
type task int

const (
	none   task = iota
	report      // write what changed to the commits
	replan      // and plan, though not at once after the last plan
	plan        // and plan at once
)

const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = time.Minute
)

// A queue is the projects with something to do, each once, oldest first. A
// project that is worked on waits until that is done.
type queue struct {
	pause time.Duration

	mu       sync.Mutex
	wake     chan struct{} // closed when something may have become due
	order    []tidelock.ProjectID
	projects map[tidelock.ProjectID]*turn
}

// A turn is where a project stands.
type turn struct {
	todo     task
	reports  bool // also something to report, which need not wait for a plan
	working  bool
	planned  time.Time // last
	notUntil time.Time // after a failure
	delay    time.Duration
}

func newQueue(pause time.Duration) *queue {
	return &queue{pause: pause, wake: make(chan struct{}), projects: map[tidelock.ProjectID]*turn{}}
}

// add lets a project wait for a task, unless it waits for one that holds it.
func (q *queue) add(id tidelock.ProjectID, what task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.put(id, what)
	q.ring()
}

func (q *queue) put(id tidelock.ProjectID, what task) {
	t := q.projects[id]
	if t == nil {
		t = &turn{}
		q.projects[id] = t
	}
	if t.todo == none {
		q.order = append(q.order, id)
	}
	t.todo = max(t.todo, what)
	t.reports = t.reports || what == report
}

func (q *queue) ring() {
	close(q.wake)
	q.wake = make(chan struct{})
}

// next waits for a project that is due; ok is false when ctx is done.
func (q *queue) next(ctx context.Context) (id tidelock.ProjectID, what task, ok bool) {
	for {
		id, what, wait, wake := q.take(time.Now())
		if what != none {
			return id, what, true
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return 0, none, false
		case <-wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (q *queue) take(now time.Time) (id tidelock.ProjectID, what task, wait time.Duration, wake <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	wait = time.Hour
	for i, id := range q.order {
		t := q.projects[id]
		if t.working {
			continue
		}
		left := t.notUntil.Sub(now)
		if t.todo == replan {
			pause := t.planned.Add(q.pause).Sub(now)
			if t.reports && left <= 0 && pause > 0 {
				t.reports, t.working = false, true
				return id, report, 0, nil
			}
			left = max(left, pause)
		}
		if left > 0 {
			wait = min(wait, left)
			continue
		}
		q.order = append(q.order[:i], q.order[i+1:]...)
		what, t.todo, t.reports, t.working = t.todo, none, false, true
		if what >= replan {
			t.planned = now
		}
		return id, what, 0, nil
	}
	q.forget(now)
	return 0, none, wait, q.wake
}

// forget drops projects about which nothing is to be remembered; the lock is
// held.
func (q *queue) forget(now time.Time) {
	for id, t := range q.projects {
		if t.todo == none && !t.working && t.planned.Add(q.pause).Before(now) {
			delete(q.projects, id)
		}
	}
}

// done ends the turn of a project. After a failure the task waits for another
// one, longer each time.
func (q *queue) done(id tidelock.ProjectID, what task, failed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	t := q.projects[id]
	t.working = false
	if failed {
		t.delay = min(max(firstRetry, 2*t.delay), lastRetry)
		t.notUntil = time.Now().Add(t.delay)
		q.put(id, what)
	} else {
		t.delay, t.notUntil = 0, time.Time{}
	}
	q.ring()
}
