package agent

import "sync"

// A watched is a value that says when it changed.
type watched[T comparable] struct {
	mu      sync.Mutex
	value   T
	changed chan struct{}
}

func newWatched[T comparable](value T) *watched[T] {
	return &watched[T]{value: value, changed: make(chan struct{})}
}

// load returns the value and a channel that is closed when it is another.
func (w *watched[T]) load() (T, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.value, w.changed
}

func (w *watched[T]) store(value T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.value == value {
		return
	}
	w.value = value
	close(w.changed)
	w.changed = make(chan struct{})
}
