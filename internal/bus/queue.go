package bus

import (
	"context"
	"sync"
)

// A queue holds a bounded number of events between one writer that never
// waits and one reader that does. When it is full, the oldest event goes.
type queue[E any] struct {
	filled chan struct{} // holds a token while there may be something to read

	mu     sync.Mutex
	events []E // a ring
	first  int
	length int
}

func newQueue[E any](size int) *queue[E] {
	return &queue[E]{filled: make(chan struct{}, 1), events: make([]E, size)}
}

// push adds an event and reports whether an older one had to go for it.
func (q *queue[E]) push(event E) (dropped bool) {
	q.mu.Lock()
	if q.length == len(q.events) {
		q.first = (q.first + 1) % len(q.events)
		q.length--
		dropped = true
	}
	q.events[(q.first+q.length)%len(q.events)] = event
	q.length++
	q.mu.Unlock()

	select {
	case q.filled <- struct{}{}:
	default:
	}
	return dropped
}

// pop waits for the oldest event; it reports false when ctx is done.
func (q *queue[E]) pop(ctx context.Context) (E, bool) {
	for {
		if ctx.Err() != nil {
			var none E
			return none, false
		}
		if event, ok := q.take(); ok {
			return event, true
		}
		select {
		case <-ctx.Done():
		case <-q.filled:
		}
	}
}

func (q *queue[E]) take() (event E, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.length == 0 {
		return event, false
	}
	var none E
	event, q.events[q.first] = q.events[q.first], none
	q.first = (q.first + 1) % len(q.events)
	q.length--
	return event, true
}
