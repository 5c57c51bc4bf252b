package delivery

import (
	"context"
	"time"
)

// laneTime is how long work goes on before that of others comes first.
const laneTime = 20 * time.Second

// A lane is where the work of one turn has its slot. All begins in the fast
// one; what takes long goes on in the slow one, round and round with
// everything else that does, so that no project makes the others wait.
type lane struct {
	fast, slow chan struct{} // a slot is taken by sending
	freed      func()        // is called when there is room in the fast one

	in    chan struct{} // where the slot is; nil while there is none
	since time.Time
}

// newLane takes over a slot of the fast lane.
func newLane(fast, slow chan struct{}, freed func()) *lane {
	return &lane{fast: fast, slow: slow, freed: freed, in: fast, since: time.Now()}
}

// giveWay is called between two pieces of work. When the time is over it waits
// for a slot of the slow lane; an error says that there will be none.
func (l *lane) giveWay(ctx context.Context) error {
	if time.Since(l.since) < laneTime {
		return nil
	}
	l.leave()
	select {
	case l.slow <- struct{}{}:
		l.in, l.since = l.slow, time.Now()
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// leave gives the slot back.
func (l *lane) leave() {
	if l.in == nil {
		return
	}
	<-l.in
	if l.in == l.fast {
		l.freed()
	}
	l.in = nil
}
