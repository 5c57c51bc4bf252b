package agentserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
)

const (
	batchSize   = 64 // sources resolved in one go
	firstRetry  = 200 * time.Millisecond
	lastRetry   = 5 * time.Second
	deliverTime = 30 * time.Second // an announcement not confirmed by then is lost
	maxRefusals = 100              // of one stream
	abortTime   = 5 * time.Second  // a stream that cannot even be told to end is cut
)

// Announce carries the sources of an agent up and announcements down.
func (s *Server) Announce(ctx context.Context, stream *connect.BidiStream[agentrpc.AnnounceRequest, agentrpc.AnnounceResponse]) error {
	c, err := registeredCall(ctx)
	if err != nil {
		return err
	}
	a := &announcer{
		server: s, session: c.session, stream: stream, log: c.session.log,
		refusals:  refusals{log: c.session.log, total: s.metrics.refusals},
		dirty:     map[tidelock.SourceID]reason{},
		sources:   map[tidelock.SourceID]*source{},
		byProject: map[tidelock.ProjectID]map[tidelock.SourceID]struct{}{},
		wake:      make(chan struct{}, 1),
		aborted:   make(chan struct{}),
		done:      make(chan struct{}),
	}
	defer close(a.done)
	if old := s.streams.open(a.session.agent.ID, a); old != nil {
		// Two writers would give one number to two announcements.
		old.giveWay()
		select {
		case <-old.done:
		case <-ctx.Done():
		}
	}
	defer s.streams.close(a.session.agent.ID, a)
	if err := a.loadRecords(ctx); err != nil {
		return err
	}
	a.log.DebugContext(ctx, "announcement stream opened")

	received := make(chan error, 1)
	go func() { received <- a.receive() }()
	err = a.write(ctx, received)
	// The receiver must be gone before the stream is.
	c.response.SetReadDeadline(time.Now())
	if !a.receiverDone {
		<-received
	}
	a.log.DebugContext(ctx, "announcement stream closed", "error", err)
	return err
}

// A reason says why a source is to be looked at.
type reason uint8

const (
	compare reason = iota // its head may differ from what is known
	event                 // something happened to its project
)

// An announcer is one announcement stream. One goroutine receives, one
// resolves and writes, and the bus marks what to look at; what they share is
// under mu, which is never held while anything blocks.
type announcer struct {
	server  *Server
	session *session
	stream  *connect.BidiStream[agentrpc.AnnounceRequest, agentrpc.AnnounceResponse]
	log     *slog.Logger
	wake    chan struct{} // holds a token while there is something to write
	aborted chan struct{}
	abort   sync.Once
	done    chan struct{} // closed when nothing more comes from this stream

	receiverDone bool // the writer's: the receiver's error has been read

	mu        sync.Mutex
	sources   map[tidelock.SourceID]*source
	byProject map[tidelock.ProjectID]map[tidelock.SourceID]struct{} // by source.project
	records   map[tidelock.SourceID]tidelock.Announcement           // from before this stream, until the sources are told
	shown     map[tidelock.SourceID]tidelock.AgentSource            // as recorded last
	dirty     map[tidelock.SourceID]reason
	floor     int64  // the highest number of a source that was removed
	resync    string // why the whole set is to be asked for; "" for not
	complete  bool   // the whole set has come once
	refusals
}

// loadRecords reads what was announced before, so that numbers go on, and
// what is shown of sources, so that only what changed is written.
func (a *announcer) loadRecords(ctx context.Context) error {
	var err error
	if a.records, err = a.server.records.announcementsOf(ctx, a.session.agent.ID); err == nil {
		a.shown, err = a.server.records.sourcesOf(ctx, a.session.agent.ID)
	}
	if err != nil {
		a.log.WarnContext(ctx, "earlier announcements not read", "error", err)
		return connect.NewError(connect.CodeUnavailable, errText("the record of announcements cannot be read now"))
	}
	return nil
}

// receive takes what the agent says until it ends or must not go on.
func (a *announcer) receive() error {
	for {
		m, err := a.stream.Receive()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		switch m := m.GetMessage().(type) {
		case *agentrpc.AnnounceRequest_Sources:
			err = a.change(m.Sources)
		case *agentrpc.AnnounceRequest_Progress:
			err = a.progress(m.Progress)
		case *agentrpc.AnnounceRequest_Digest:
			a.digest(m.Digest)
		} // anything else is newer than we are
		if err != nil {
			return err
		}
	}
}

// change takes over a set of sources, or changes of it.
func (a *announcer) change(m *agentrpc.SourceChange) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.complete && !m.GetComplete() {
		return connect.NewError(connect.CodeInvalidArgument, errText("the whole set of sources comes first"))
	}
	if m.GetComplete() {
		a.complete = true
		keep := make(map[tidelock.SourceID]bool, len(m.GetUpserts()))
		for _, u := range m.GetUpserts() {
			keep[tidelock.SourceID(u.GetId())] = true
		}
		for id := range a.sources {
			if !keep[id] {
				a.remove(id)
			}
		}
		for id, r := range a.records {
			if !keep[id] && unfinished(r.State) {
				a.closeRecord(&r, "the source was removed")
			}
		}
		for id := range a.shown {
			if !keep[id] {
				a.hide(id)
			}
		}
	}
	for _, id := range m.GetRemovals() {
		a.remove(tidelock.SourceID(id))
	}
	for _, u := range m.GetUpserts() {
		if err := checkSource(u); err != nil {
			if err := a.refuse(err); err != nil {
				return err
			}
			continue
		}
		id := tidelock.SourceID(u.GetId())
		src := a.sources[id]
		if src == nil {
			if len(a.sources) >= maxSources {
				a.log.Warn("agent has too many sources", "limit", maxSources, "given", len(m.GetUpserts()))
				return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("an agent may have at most %d sources", maxSources))
			}
			// Should it be one that was removed, its numbers go on.
			src = &source{id: id, uid: u.GetUid(), number: a.floor}
			if r, ok := a.records[id]; ok {
				src.number, src.record, src.traced = r.Number, &r, tracedBefore(r)
			}
			a.sources[id] = src
		}
		src.change(u, pathOf(a.server.urls, id.Kind(), u.GetUrl()), m.GetComplete())
		if m.GetComplete() {
			a.catchUp(src)
		}
		a.mark(id, compare)
	}
	if m.GetComplete() {
		a.records = nil
	}
	return nil
}

// catchUp records what a source's own words tell of an announcement that was
// under way when the last stream broke.
func (a *announcer) catchUp(src *source) {
	r := src.record
	if r == nil || !unfinished(r.State) || src.delivered < r.Number {
		return
	}
	switch {
	case src.revision.Meets(r.Goal()):
		r.State, r.Message = tidelock.Converged, ""
	case r.State == tidelock.Sent:
		r.State = tidelock.Delivered
	default:
		return
	}
	if r.AnnouncedAt.IsZero() {
		r.AnnouncedAt = time.Now()
	}
	a.server.records.put(*r)
	a.server.trace(src)
}

func (a *announcer) remove(id tidelock.SourceID) {
	src := a.sources[id]
	if src == nil {
		return
	}
	if src.unfinished() {
		a.closeRecord(src.record, "the source was removed")
	}
	a.floor = max(a.floor, src.number)
	a.lead(src, 0)
	a.hide(id)
	delete(a.sources, id)
	delete(a.dirty, id)
}

// show records how things stand with a source, if that is new.
func (a *announcer) show(src *source) {
	if !src.answered {
		return // it is not known yet
	}
	now, before := src.show(a.session.agent.ID), a.shown[src.id]
	now.Since, now.UpdatedAt = before.Since, before.UpdatedAt
	if now == before {
		return
	}
	now.UpdatedAt = time.Now().UTC()
	if now.State != before.State {
		now.Since = now.UpdatedAt
	}
	a.shown[src.id] = now
	a.server.records.putSource(sourceRecord{AgentSource: now})
}

// hide forgets what was recorded of a source.
func (a *announcer) hide(id tidelock.SourceID) {
	if _, ok := a.shown[id]; ok {
		delete(a.shown, id)
		a.server.records.putSource(sourceRecord{AgentSource: tidelock.AgentSource{Agent: a.session.agent.ID, Source: id}, removed: true})
	}
}

// lead notes to which project a source leads, so that its pushes are heard.
func (a *announcer) lead(src *source, to tidelock.ProjectID) {
	if src.project == to {
		return
	}
	if of := a.byProject[src.project]; of != nil {
		delete(of, src.id)
		if len(of) == 0 {
			delete(a.byProject, src.project)
		}
	}
	src.project = to
	if to == 0 {
		return
	}
	if a.byProject[to] == nil {
		a.byProject[to] = map[tidelock.SourceID]struct{}{}
	}
	a.byProject[to][src.id] = struct{}{}
}

func (a *announcer) closeRecord(r *tidelock.Announcement, why string) {
	r.State, r.Message = tidelock.Closed, why
	a.server.records.put(*r)
}

// progress records how far an announcement came. It only ever touches what
// this server announced for this agent, and may still be told of.
func (a *announcer) progress(p *agentrpc.Progress) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	src := a.sources[tidelock.SourceID(p.GetSourceId())]
	switch state, known := states[p.GetState()]; {
	case src == nil:
		return a.refuse(fmt.Errorf("progress of %q, which is not a source of this agent", shorten(p.GetSourceId())))
	case p.GetNumber() <= 0 || p.GetNumber() > src.number:
		return a.refuse(fmt.Errorf("progress of number %d of %s, which was never announced", p.GetNumber(), src.id))
	case !known:
		return a.refuse(fmt.Errorf("progress of %s in the unknown state %d", src.id, p.GetState()))
	case p.GetNumber() < src.number, src.record == nil, src.record.State == tidelock.Closed:
		// A newer one took its place, or nothing is known of it here; that
		// the agent has it counts all the same.
		src.delivered = p.GetNumber()
		if src.record == nil {
			src.unrecorded = p
		}
		return nil
	default:
		before := src.record.State
		src.delivered = p.GetNumber()
		now := src.progress(p, time.Now().UTC(), a.session.tunnel.RTT())
		if before == tidelock.Sent {
			a.server.metrics.delivered.Inc()
		}
		if before != tidelock.Converged && state == tidelock.Converged {
			a.server.metrics.converged.Inc()
		}
		if before != tidelock.Failed && state == tidelock.Failed {
			a.server.metrics.failed.Inc()
		}
		a.server.records.put(now)
		a.server.trace(src)
		a.show(src)
		return nil
	}
}

// digest compares what both sides believe to have been delivered.
func (a *announcer) digest(m *agentrpc.Digest) {
	if a.server.DisableResync {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delivered := make(map[string]int64, len(a.sources))
	overdue := time.Now().Add(-deliverTime)
	for id, src := range a.sources {
		delivered[string(id)] = src.delivered
		if src.delivered < src.number && !src.sentAt.IsZero() && src.sentAt.Before(overdue) {
			a.resync = "an announcement was not confirmed"
		}
	}
	if !slices.Equal(agentrpc.DigestOf(delivered), m.GetSha256()) {
		a.resync = "the digests differ"
	}
	if a.resync != "" {
		a.ring()
	}
}

// pushed has the sources of a project looked at.
func (a *announcer) pushed(id tidelock.ProjectID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for sid := range a.byProject[id] {
		a.mark(sid, event)
	}
}

// accessChanged has the sources looked at that lead to a project, or may do so
// from now on by the path that it has.
func (a *announcer) accessChanged(id tidelock.ProjectID, path string) {
	path = strings.ToLower(path)
	a.mu.Lock()
	defer a.mu.Unlock()
	for sid, src := range a.sources {
		if src.project == id || (path != "" && src.mayLeadTo(path)) {
			a.mark(sid, event)
		}
	}
}

func (a *announcer) lookAtAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range a.sources {
		a.mark(id, compare)
	}
}

// mark notes that a source is to be looked at. Many marks make one look.
func (a *announcer) mark(id tidelock.SourceID, why reason) {
	a.dirty[id] = max(a.dirty[id], why)
	a.ring()
}

func (a *announcer) ring() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// giveWay ends the stream in favour of a newer one of the same agent.
func (a *announcer) giveWay() { a.abort.Do(func() { close(a.aborted) }) }

// write resolves and writes whatever is marked until the stream has to end.
// It is the only one that writes, so a slow agent delays nobody else.
func (a *announcer) write(ctx context.Context, received <-chan error) error {
	slow := time.NewTimer(jitter(a.server.ResyncEvery))
	defer slow.Stop()
	retry := time.NewTimer(time.Hour)
	retry.Stop()
	defer retry.Stop()
	defer a.guard(callOf(ctx).response)()
	delay, waiting := firstRetry, false
	for {
		select {
		case <-a.aborted:
			return connect.NewError(connect.CodeAborted, errText("a newer stream of the same agent took its place"))
		case <-a.session.tunnel.Draining():
			return errStopping()
		case <-ctx.Done():
			return ctx.Err()
		case err := <-received:
			a.receiverDone = true
			return err
		case <-slow.C:
			slow.Reset(jitter(a.server.ResyncEvery))
			if !a.server.DisableResync {
				a.lookAtAll()
			}
			continue
		case <-retry.C:
			waiting = false
		case <-a.wake:
		}
		again, err := a.writeMarked(ctx)
		switch {
		case err != nil:
			return err
		case !again:
			delay = firstRetry
		case !waiting: // events in between neither hurry nor put off the next try
			waiting = true
			retry.Reset(jitter(delay))
			delay = min(2*delay, lastRetry)
		}
	}
}

// guard cuts the stream when it has to end but its writer is stuck, because
// the agent does not read. The returned function ends the guard.
func (a *announcer) guard(response *http.ResponseController) (end func()) {
	stop := make(chan struct{})
	var guard sync.WaitGroup
	guard.Go(func() {
		select {
		case <-stop:
			return
		case <-a.aborted:
		case <-a.session.tunnel.Draining():
		}
		cut := time.NewTimer(abortTime)
		defer cut.Stop()
		select {
		case <-stop:
		case <-cut.C:
			response.SetWriteDeadline(time.Now())
		}
	})
	return func() {
		close(stop)
		guard.Wait()
	}
}

func jitter(d time.Duration) time.Duration {
	return d - d/10 + time.Duration(rand.Int64N(int64(d/5)+1))
}

// writeMarked deals with a batch of what is marked; again says that some could
// not be resolved and stays marked until a later try.
func (a *announcer) writeMarked(ctx context.Context) (again bool, err error) {
	batch, resync := a.takeBatch()
	if resync != "" {
		a.log.InfoContext(ctx, "agent is asked for all its sources", "reason", resync)
		a.server.metrics.resyncs.Inc()
		if err := a.send(&agentrpc.AnnounceResponse{Message: &agentrpc.AnnounceResponse_Resync{
			Resync: &agentrpc.Resync{Reason: resync},
		}}); err != nil {
			return false, err
		}
	}
	look := newLookup(a.server.Forge, a.session.agent)
	if a.follow(ctx, look, batch) {
		// What happened to a project before its events were heard is in a
		// fresh look only.
		look = newLookup(a.server.Forge, a.session.agent)
	}
	for _, item := range batch {
		w, err := look.find(ctx, item)
		if err != nil {
			if ctx.Err() != nil {
				return false, ctx.Err()
			}
			a.log.WarnContext(ctx, "source not resolved: tried again soon", "source", item.id, "error", err)
			a.keep(item)
			again = true
			continue
		}
		for _, m := range a.settle(ctx, item, w) {
			if err := a.send(m); err != nil {
				return false, err
			}
		}
	}
	return again, nil
}

// follow finds where the sources of a batch lead, so that from now on events
// of those projects mark them, and reports whether any led elsewhere before.
func (a *announcer) follow(ctx context.Context, look *lookup, batch []item) (moved bool) {
	for _, item := range batch {
		p, err := look.project(ctx, item.kind, item.path)
		if err != nil {
			continue // found again, and dealt with, by find
		}
		a.mu.Lock()
		if src := a.sources[item.id]; src != nil && src.version == item.version && src.project != p.project {
			a.lead(src, p.project)
			moved = true
		}
		a.mu.Unlock()
	}
	return moved
}

func (a *announcer) send(m *agentrpc.AnnounceResponse) error {
	if err := a.stream.Send(m); err != nil {
		return fmt.Errorf("write to the agent: %w", err)
	}
	return nil
}

// An item is a marked source as it was when the batch was taken.
type item struct {
	id      tidelock.SourceID
	version int
	why     reason
	kind    tidelock.SourceKind
	path    string
	spec    tidelock.RefSpec
}

func (a *announcer) takeBatch() (batch []item, resync string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	resync, a.resync = a.resync, ""
	// Events first: somebody waits for those.
	for _, why := range []reason{event, compare} {
		for id, is := range a.dirty {
			if is != why {
				continue
			}
			if len(batch) == batchSize {
				a.ring()
				return batch, resync
			}
			delete(a.dirty, id)
			if src := a.sources[id]; src != nil {
				batch = append(batch, item{id: id, version: src.version, why: why, kind: id.Kind(), path: src.path, spec: src.spec})
			}
		}
	}
	return batch, resync
}

// keep leaves an item marked without ringing: it waits for the retry.
func (a *announcer) keep(it item) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sources[it.id] != nil {
		a.dirty[it.id] = max(a.dirty[it.id], it.why)
	}
}

// settle takes over where a source should be and returns what the agent has to
// be told.
func (a *announcer) settle(ctx context.Context, it item, w wanted) (out []*agentrpc.AnnounceResponse) {
	a.mu.Lock()
	defer a.mu.Unlock()
	src := a.sources[it.id]
	if src == nil || src.version != it.version {
		return nil // it changed meanwhile, and is marked again
	}
	if src.project != w.project {
		a.lead(src, w.project)
		a.mark(src.id, it.why) // its events were not heard while we looked
		return nil
	}
	if src.servedAs != 0 && (!w.served || src.servedAs != w.project) {
		// Whatever comes next starts from what Flux has then.
		src.told, src.goal = false, tidelock.Goal{}
		if src.unfinished() {
			a.closeRecord(src.record, "the source no longer leads to a project that the agent may be told of")
		}
	}
	defer a.show(src)
	if src.answer(w) {
		out = append(out, resolution(src.id, w))
	}
	if src.overtaken(w) {
		src.told, src.goal = false, tidelock.Goal{}
	}
	if !src.due(w) || (a.server.DisableResync && it.why != event) {
		if src.recall(a.session.agent.ID, w, time.Now().UTC()) {
			a.server.records.put(*src.record)
		}
		return out
	}
	record := src.announce(a.session.agent.ID, w, time.Now().UTC())
	a.server.records.put(record)
	a.server.metrics.sent.Inc()
	a.log.InfoContext(ctx, "announced", "source", src.id, "number", record.Number, "project", record.Project,
		"ref", record.Ref, "commit", record.Commit, "digest", record.Digest)
	return append(out, announcement(record))
}

func resolution(id tidelock.SourceID, w wanted) *agentrpc.AnnounceResponse {
	r := &agentrpc.Resolution{SourceId: string(id), Served: w.served}
	if w.served {
		r.ProjectId = int64(w.project)
	}
	return &agentrpc.AnnounceResponse{Message: &agentrpc.AnnounceResponse_Resolution{Resolution: r}}
}

func announcement(r tidelock.Announcement) *agentrpc.AnnounceResponse {
	m := &agentrpc.Announcement{
		SourceId: string(r.Source), Number: r.Number, ProjectId: int64(r.Project),
		Ref: string(r.Ref), Commit: string(r.Commit), Digest: string(r.Digest), Gone: r.Goal().None(), PushId: int64(r.Push),
		Traceparent: r.Trace,
	}
	if !r.AcceptedAt.IsZero() {
		m.AcceptedAt = timestamppb.New(r.AcceptedAt)
	}
	return &agentrpc.AnnounceResponse{Message: &agentrpc.AnnounceResponse_Announcement{Announcement: m}}
}
