package agentserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
)

const (
	maxObserveMessage = 1 << 20  // bytes; agents send a quarter of it at once
	maxObjects        = 20_000   // of one agent
	maxObserved       = 64 << 20 // bytes of all of them
)

// Observe carries what an agent sees of Flux. What it says is kept for a
// writer, the newest of each object, so that neither waits for the other for
// long.
func (s *Server) Observe(ctx context.Context, stream *connect.ClientStream[agentrpc.ObserveRequest]) (*agentrpc.ObserveResponse, error) {
	c, err := registeredCall(ctx)
	if err != nil {
		return nil, err
	}
	o := &observer{
		server: s, session: c.session, log: c.session.log,
		refusals: refusals{log: c.session.log, total: s.metrics.refusals},
		known:    map[tidelock.ObjectID]int{},
		pending:  newSightings(),
		wake:     make(chan struct{}, 1),
		done:     make(chan struct{}),
		aborted:  make(chan struct{}),
	}
	defer close(o.done)
	old := s.observers.open(c.session.agent.ID, o)
	defer s.observers.close(c.session.agent.ID, o)
	if old != nil {
		// Two writers might undo each other's work. So whoever waits for this
		// stream has to wait for the one before as well, even if this one is
		// cut off meanwhile.
		old.giveWay()
		<-old.done
	}
	o.log.DebugContext(ctx, "observation stream opened")

	received := make(chan error, 1)
	go func() { received <- o.receive(stream) }()
	err, receiving := o.write(ctx, received)
	// The receiver must be gone before the stream is.
	c.response.SetReadDeadline(time.Now())
	if receiving {
		<-received
	}
	o.log.DebugContext(ctx, "observation stream closed", "error", err)
	if err != nil {
		return nil, err
	}
	return &agentrpc.ObserveResponse{}, nil
}

// An observer is one observation stream. One goroutine receives, one writes;
// what they share is under mu, which is never held while anything blocks.
type observer struct {
	server  *Server
	session *session
	log     *slog.Logger
	wake    chan struct{} // holds a token while something is pending
	aborted chan struct{}
	abort   sync.Once
	done    chan struct{} // closed when nothing more comes from this stream

	// The receiver's.
	known    map[tidelock.ObjectID]int // the size of each object, as it was told last
	size     int                       // of all of them
	set      *sightings                // between begin and end
	complete bool                      // the whole set has come once
	refusals

	mu      sync.Mutex
	pending sightings
}

// giveWay ends the stream in favour of a newer one of the same agent.
func (o *observer) giveWay() { o.abort.Do(func() { close(o.aborted) }) }

// receive takes what the agent says until it ends or must not go on.
func (o *observer) receive(stream *connect.ClientStream[agentrpc.ObserveRequest]) error {
	for stream.Receive() {
		if err := o.take(stream.Msg(), time.Now()); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// take takes over a part of the whole set, or changes of it.
func (o *observer) take(m *agentrpc.ObserveRequest, now time.Time) error {
	into, err := o.part(m)
	if err != nil {
		return err
	}
	for _, id := range m.GetRemovals() {
		before, known := o.known[tidelock.ObjectID(id)]
		if o.set != nil || !known {
			continue // nothing is kept of it
		}
		o.size -= before
		delete(o.known, tidelock.ObjectID(id))
		into.remove(tidelock.ObjectID(id))
	}
	for _, u := range m.GetUpserts() {
		seen, err := observation(u, now)
		if err != nil {
			if err := o.refuse(err); err != nil {
				return err
			}
			continue
		}
		if err := o.count(seen.Object, proto.Size(u)); err != nil {
			return err
		}
		into.upsert(seen)
	}
	if o.set != nil {
		if !m.GetEnd() {
			return nil
		}
		into = *o.set
		into.complete = true
		o.set, o.complete = nil, true
	}
	o.mu.Lock()
	o.pending.merge(into)
	waiting := len(o.pending.removals)
	o.mu.Unlock()
	if waiting > maxObjects { // others took their place, and so on, faster than they are kept
		return o.exceeds("an agent may take back at most %d objects at once", maxObjects)
	}
	o.ring()
	return nil
}

// part returns what a message adds to: the whole set, or changes of it.
func (o *observer) part(m *agentrpc.ObserveRequest) (sightings, error) {
	switch {
	case m.GetBegin():
		set := newSightings()
		o.set, o.known, o.size = &set, map[tidelock.ObjectID]int{}, 0
	case o.set != nil: // it goes on
	case !o.complete:
		return sightings{}, connect.NewError(connect.CodeInvalidArgument, errText("the whole set of observations comes first"))
	case m.GetEnd():
		return sightings{}, connect.NewError(connect.CodeInvalidArgument, errText("a set ends that never began"))
	default:
		return newSightings(), nil
	}
	return *o.set, nil
}

// count takes note of the size of an object, in place of the one that it had.
func (o *observer) count(id tidelock.ObjectID, size int) error {
	before, known := o.known[id]
	if !known && len(o.known) >= maxObjects {
		return o.exceeds("an agent may observe at most %d objects", maxObjects)
	}
	if o.size += size - before; o.size > maxObserved {
		return o.exceeds("what an agent observes may have at most %d bytes", maxObserved)
	}
	o.known[id] = size
	return nil
}

// exceeds ends the stream of an agent that tells more than is kept.
func (o *observer) exceeds(rule string, limit int) error {
	err := fmt.Errorf(rule, limit)
	o.log.Warn("agent observes too much", "error", err)
	return connect.NewError(connect.CodeResourceExhausted, err)
}

func (o *observer) ring() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// write keeps what is pending until the stream has to end; what came before
// the end is kept, too. Receiving says that the receiver has not ended.
func (o *observer) write(ctx context.Context, received <-chan error) (err error, receiving bool) {
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	defer retry.Stop()
	delay := firstRetry
	for {
		select {
		case <-o.aborted:
			return connect.NewError(connect.CodeAborted, errText("a newer stream of the same agent took its place")), true
		case <-o.session.tunnel.Draining():
			o.last(ctx)
			return errStopping(), true
		case <-ctx.Done():
			return ctx.Err(), true
		case err := <-received:
			o.last(ctx)
			return err, false
		case <-retry.C:
		case <-o.wake:
		}
		err := o.flush(ctx)
		switch {
		case err == nil:
			delay = firstRetry
			retry.Stop()
		case ctx.Err() != nil:
			return ctx.Err(), true
		default:
			o.log.WarnContext(ctx, "observations not kept: tried again soon", "error", err)
			retry.Reset(jitter(delay))
			delay = min(2*delay, lastRetry)
		}
	}
}

// last keeps what came before the end of the stream, if that can be done now:
// the agent tells it again otherwise.
func (o *observer) last(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
	defer cancel()
	if err := o.flush(ctx); err != nil {
		o.log.WarnContext(ctx, "observations not kept", "error", err)
	}
}

// flush keeps what is pending. What could not be kept is pending again, unless
// something newer is.
func (o *observer) flush(ctx context.Context) error {
	o.mu.Lock()
	batch := o.pending
	o.pending = newSightings()
	o.mu.Unlock()
	if batch.empty() {
		return nil
	}
	upserts, removals := batch.lists()
	err := o.server.Forge.Observe(ctx, o.session.agent, upserts, removals, batch.complete)
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		batch.merge(o.pending)
		o.pending = batch
		return err
	}
	o.server.metrics.observed.Add(float64(len(upserts)))
	return nil
}

// A sightings is what an agent told and is not kept yet: the newest of each
// object.
type sightings struct {
	complete bool // what is not among the upserts is gone
	upserts  map[tidelock.ObjectID]tidelock.Observation
	removals map[tidelock.ObjectID]bool
}

func newSightings() sightings {
	return sightings{upserts: map[tidelock.ObjectID]tidelock.Observation{}, removals: map[tidelock.ObjectID]bool{}}
}

func (s *sightings) empty() bool { return !s.complete && len(s.upserts) == 0 && len(s.removals) == 0 }

func (s *sightings) upsert(o tidelock.Observation) {
	s.upserts[o.Object] = o
	delete(s.removals, o.Object)
}

func (s *sightings) remove(id tidelock.ObjectID) {
	delete(s.upserts, id)
	s.removals[id] = true
}

// merge adds what was told later.
func (s *sightings) merge(later sightings) {
	if later.complete {
		*s = later
		return
	}
	for id := range later.removals {
		s.remove(id)
	}
	for _, o := range later.upserts {
		s.upsert(o)
	}
}

func (s *sightings) lists() (upserts []tidelock.Observation, removals []tidelock.ObjectID) {
	for _, o := range s.upserts {
		upserts = append(upserts, o)
	}
	for id := range s.removals {
		removals = append(removals, id)
	}
	return upserts, removals
}

// waiting is how many observations and removals are not kept yet.
func (o *observer) waiting() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.pending.upserts) + len(o.pending.removals)
}
