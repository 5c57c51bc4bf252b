package gitserver

import (
	"context"
	"fmt"
	"sync"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/limit"
)

// turns keep one caller from having all of the gits that serve clients: who
// sends and reads slowly enough has one for as long as he likes. Beyond his
// share he waits for himself, and nobody else does.
type turns struct {
	share int
	wait  time.Duration

	mu      sync.Mutex
	callers map[limit.Key]*caller // that have a turn, or wait for one
}

type caller struct {
	running chan struct{}
	present int // requests that have a turn or wait
}

// maxWait is how long somebody waits for a turn, as for a free git.
const maxWait = time.Minute

// newTurns gives a caller half of the gits that there are.
func newTurns(gits int) *turns {
	return &turns{share: max(gits/2, 1), wait: maxWait, callers: map[limit.Key]*caller{}}
}

// take waits until a caller may have another git, until release.
func (t *turns) take(ctx context.Context, who limit.Key) (release func(), err error) {
	c := t.enter(who)
	patience := time.NewTimer(t.wait)
	defer patience.Stop()
	select {
	case c.running <- struct{}{}:
		return func() {
			<-c.running
			t.leave(who)
		}, nil
	case <-ctx.Done():
		err = fmt.Errorf("wait for a turn: %w", context.Cause(ctx))
	case <-patience.C:
		err = tidelock.Errorf(tidelock.Unavailable, "you have %d fetches and pushes running; try again later", t.share)
	}
	t.leave(who)
	return nil, err
}

func (t *turns) enter(who limit.Key) *caller {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.callers[who]
	if c == nil {
		c = &caller{running: make(chan struct{}, t.share)}
		t.callers[who] = c
	}
	c.present++
	return c
}

func (t *turns) leave(who limit.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.callers[who].present--; t.callers[who].present == 0 {
		delete(t.callers, who)
	}
}
