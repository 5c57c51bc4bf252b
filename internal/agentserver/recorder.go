package agentserver

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

const (
	maxRecords  = 100_000 // that wait to be written
	recordBatch = 500     // in one transaction
	flushLimit  = 5 * time.Second
)

// A recorder writes how far announcements came, behind the streams' backs:
// what waits for one number is one write of the newest. Numbers keep their
// order.
type recorder struct {
	forge   *forge.Forge
	log     *slog.Logger
	dropped prometheus.Counter
	wake    chan struct{} // holds a token while something waits

	mu      sync.Mutex
	pending map[recordKey]tidelock.Announcement
	order   []recordKey
	writing []tidelock.Announcement // being written
}

type recordKey struct {
	agent  tidelock.AgentID
	source tidelock.SourceID
	number int64
}

func newRecorder(f *forge.Forge, log *slog.Logger, dropped prometheus.Counter) *recorder {
	return &recorder{
		forge: f, log: log, dropped: dropped,
		wake:    make(chan struct{}, 1),
		pending: map[recordKey]tidelock.Announcement{},
	}
}

// put leaves a record to be written soon. When too many wait, because the
// store has been down for long, the oldest is dropped: the next word of its
// agent repeats what matters.
func (r *recorder) put(a tidelock.Announcement) {
	key := recordKey{a.Agent, a.Source, a.Number}
	r.mu.Lock()
	if _, waits := r.pending[key]; !waits {
		if len(r.order) >= maxRecords {
			delete(r.pending, r.order[0])
			r.order = r.order[1:]
			r.dropped.Inc()
		}
		r.order = append(r.order, key)
	}
	r.pending[key] = a
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *recorder) take() []tidelock.Announcement {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(r.order), recordBatch)
	batch := make([]tidelock.Announcement, 0, n)
	for _, key := range r.order[:n] {
		batch = append(batch, r.pending[key])
		delete(r.pending, key)
	}
	r.order = r.order[n:]
	if len(r.order) == 0 {
		r.order = nil
	}
	r.writing = batch
	return batch
}

// waitingOf lists what of an agent is not in the store yet.
func (r *recorder) waitingOf(id tidelock.AgentID) []tidelock.Announcement {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []tidelock.Announcement
	for _, a := range r.writing {
		if a.Agent == id {
			list = append(list, a)
		}
	}
	for _, key := range r.order {
		if key.agent == id {
			list = append(list, r.pending[key])
		}
	}
	return list
}

// giveBack returns what could not be written, unless something newer waits.
func (r *recorder) giveBack(batch []tidelock.Announcement) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var order []recordKey
	for _, a := range batch {
		key := recordKey{a.Agent, a.Source, a.Number}
		if _, waits := r.pending[key]; waits {
			continue
		}
		r.pending[key] = a
		order = append(order, key)
	}
	r.order = append(order, r.order...)
}

func (r *recorder) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.order)
}

// run writes until ctx is done, and then what is left.
func (r *recorder) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
			defer cancel()
			if err := r.flush(last); err != nil {
				r.log.WarnContext(last, "announcements not recorded", "count", r.waiting(), "error", err)
			}
			return
		case <-r.wake:
		}
		for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
			err := r.flush(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			r.log.WarnContext(ctx, "announcements not recorded: tried again soon", "count", r.waiting(), "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(jitter(delay)):
			}
		}
	}
}

func (r *recorder) flush(ctx context.Context) error {
	for {
		batch := r.take()
		if len(batch) == 0 {
			return nil
		}
		err := r.forge.SaveAnnouncements(ctx, batch...)
		if err != nil {
			r.giveBack(batch)
		}
		r.mu.Lock()
		r.writing = nil
		r.mu.Unlock()
		if err != nil {
			return err
		}
	}
}
