package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/flux"
)

// digestEvery is how often both sides compare what was delivered.
const digestEvery = time.Minute

// An announceStream is a stream of announcements from our side.
type announceStream = connect.BidiStreamForClientSimple[agentrpc.AnnounceRequest, agentrpc.AnnounceResponse]

// announce runs one announcement stream until it fails or ctx is done.
func (c *connection) announce(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	stream, err := c.announcements.Announce(ctx)
	if err != nil {
		return err
	}
	feed := c.flux().Subscribe()

	var group sync.WaitGroup
	group.Go(func() { stop(c.sendChanges(ctx, stream, feed)) })
	stop(c.takeAnnouncements(ctx, stream))
	group.Wait()
	return errors.Join(context.Cause(ctx), ignoreEnd(stream.CloseRequest()), ignoreEnd(stream.CloseResponse()))
}

// ignoreEnd drops the errors of closing what is closed already.
func ignoreEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) || connect.CodeOf(err) == connect.CodeCanceled {
		return nil
	}
	return err
}

// takeAnnouncements hands what the server sends to the Flux controller.
func (c *connection) takeAnnouncements(ctx context.Context, stream *announceStream) error {
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return errors.New("the server ended it")
		}
		if err != nil {
			return err
		}
		switch m := m.Message.(type) {
		case *agentrpc.AnnounceResponse_Announcement:
			announcement := announcementOf(m.Announcement)
			known := c.flux().Announce(announcement)
			traceID, _, _ := strings.Cut(strings.TrimPrefix(m.Announcement.Traceparent, "00-"), "-")
			c.log.DebugContext(ctx, "announcement", "source", announcement.Source, "number", announcement.Number,
				"commit", announcement.Commit, "digest", announcement.Digest, "gone", announcement.Gone, "known", known, "trace_id", traceID)
		case *agentrpc.AnnounceResponse_Resolution:
			c.flux().SetServed(tidelock.SourceID(m.Resolution.SourceId), m.Resolution.Served)
		case *agentrpc.AnnounceResponse_Resync:
			c.log.InfoContext(ctx, "the server asks for the whole set of sources", "reason", m.Resync.Reason)
			c.flux().Resend()
		}
	}
}

// sendChanges sends what the feed says, and a digest every minute. The digest
// is of what was sent on this stream, so that messages under way the other
// way do not make it differ.
func (c *connection) sendChanges(ctx context.Context, stream *announceStream, feed *flux.SourceFeed) error {
	sent := make(map[string]int64)
	next := time.Now().Add(digestEvery)
	complete := false
	for {
		wait, cancel := context.WithDeadline(ctx, next)
		changes, err := feed.Next(wait)
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			next = time.Now().Add(digestEvery)
			if !complete {
				continue
			}
			digest := &agentrpc.Digest{Sha256: agentrpc.DigestOf(sent)}
			if err := stream.Send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Digest{Digest: digest}}); err != nil {
				return fmt.Errorf("send a digest: %w", sendError(err))
			}
			continue
		case err != nil:
			return err
		}
		complete = complete || changes.Complete
		for _, m := range requestsOf(changes, sent) {
			if err := stream.Send(m); err != nil {
				return fmt.Errorf("send changes: %w", sendError(err))
			}
		}
	}
}

// sendError finds out why the server ended the stream: Send only says that.
func sendError(err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	return errors.New("the server ended the stream")
}

// requestsOf puts changes into messages, and notes in sent the numbers they
// acknowledge.
func requestsOf(changes flux.SourceChanges, sent map[string]int64) []*agentrpc.AnnounceRequest {
	var requests []*agentrpc.AnnounceRequest
	if changes.Complete || len(changes.Upserts)+len(changes.Removals) > 0 {
		change := &agentrpc.SourceChange{Complete: changes.Complete}
		if changes.Complete {
			clear(sent)
		}
		for _, s := range changes.Upserts {
			change.Upserts = append(change.Upserts, sourceMessage(s))
			sent[string(s.ID)] = s.LastNumber
		}
		for _, id := range changes.Removals {
			change.Removals = append(change.Removals, string(id))
			delete(sent, string(id))
		}
		requests = append(requests, &agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Sources{Sources: change}})
	}
	for _, p := range changes.Progress {
		sent[string(p.Source)] = p.Number
		requests = append(requests, &agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Progress{Progress: progressMessage(p)}})
	}
	return requests
}

func sourceMessage(s flux.Source) *agentrpc.Source {
	return &agentrpc.Source{
		Id:  string(s.ID),
		Uid: s.UID,
		Url: s.URL,
		Ref: &agentrpc.RefSpec{
			Branch: s.Ref.Branch, Tag: s.Ref.Tag, Semver: s.Ref.SemVer, Name: s.Ref.Name, Commit: s.Ref.Commit,
			Digest: s.Ref.Digest, SemverFilter: s.Ref.SemVerFilter,
		},
		Revision:   s.Revision,
		Suspended:  s.Suspended,
		LastNumber: s.LastNumber,
		LastCommit: string(s.LastCommit),
		LastDigest: string(s.LastDigest),
	}
}

func announcementOf(m *agentrpc.Announcement) flux.Announcement {
	return flux.Announcement{
		Source:  tidelock.SourceID(m.SourceId),
		Number:  m.Number,
		Project: tidelock.ProjectID(m.ProjectId),
		Goal: tidelock.Goal{
			Ref:    tidelock.RefName(m.Ref),
			Commit: tidelock.CommitID(m.Commit),
			Digest: tidelock.Digest(m.Digest),
		},
		Gone: m.Gone,
	}
}

var stateMessage = map[tidelock.AnnouncementState]agentrpc.Progress_State{
	tidelock.Delivered: agentrpc.Progress_STATE_DELIVERED,
	tidelock.Parked:    agentrpc.Progress_STATE_PARKED,
	tidelock.Handled:   agentrpc.Progress_STATE_HANDLED,
	tidelock.Failed:    agentrpc.Progress_STATE_FAILED,
	tidelock.Converged: agentrpc.Progress_STATE_CONVERGED,
	tidelock.Gone:      agentrpc.Progress_STATE_GONE,
}

var viaMessage = map[flux.Via]agentrpc.Progress_Via{
	flux.ViaReceiver:   agentrpc.Progress_VIA_RECEIVER,
	flux.ViaAnnotation: agentrpc.Progress_VIA_ANNOTATION,
}

func progressMessage(p flux.Progress) *agentrpc.Progress {
	return &agentrpc.Progress{
		SourceId: string(p.Source),
		Number:   p.Number,
		State:    stateMessage[p.State],
		Message:  p.Message,
		Called:   spanMessage(p.Called),
		Answered: spanMessage(p.Answered),
		Handled:  spanMessage(p.Handled),
		Fetched:  spanMessage(p.Fetched),
		Via:      viaMessage[p.Via],
		Attempts: int32(p.Attempts),
	}
}

// spanMessage leaves out what has not happened yet.
func spanMessage(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}
