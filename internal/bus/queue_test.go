package bus

import (
	"context"
	"testing"
)

func TestQueueDropsTheOldest(t *testing.T) {
	q := newQueue[int](3)
	for i := range 5 {
		if got, want := q.push(i), i >= 3; got != want {
			t.Errorf("push %d: got dropped %v, want %v", i, got, want)
		}
	}
	for want := 2; want < 5; want++ {
		if got, ok := q.pop(t.Context()); !ok || got != want {
			t.Errorf("got %d %v, want %d", got, ok, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got, ok := q.pop(ctx); ok {
		t.Errorf("got %d from an empty queue", got)
	}
}
