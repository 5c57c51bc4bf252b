package gitserver

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
)

// recordTimeout bounds the recording of a push that is on the disk.
const recordTimeout = 30 * time.Second

// A client is the far end of one fetch or push, over HTTP or SSH. Writing to
// it is the answer.
type client interface {
	io.Writer

	// answered reports whether a part of the answer is sent; before, an error
	// can be told instead.
	answered() bool

	// moved is how many bytes came from the client, and went to it.
	moved() (in, out int64)

	// ended ends what the client sends, when git has ended; nil if its end is
	// to be waited for.
	ended() func()

	// finish completes the answer, which may be empty, and hears the client
	// out.
	finish()
}

// maxPush bounds what a client sends in one push.
func (s *Server) maxPush() int64 { return s.repos.MaxInputSize() + maxOverrun }

// receive takes a push in, from a client that knows where the refs are: its
// commands are decided here, then git does it, then the forge records it, and
// only then the client hears git's verdict.
func (s *Server) receive(ctx context.Context, to client, body io.Reader, principal forge.Principal, project tidelock.Project) error {
	started := time.Now()
	in := bufio.NewReaderSize(body, 64<<10)
	push, err := readPush(in)
	if err != nil {
		return err
	}
	if len(push.commands) == 0 {
		to.finish() // the client only wanted to know whether it may
		return nil
	}
	// The pack may have arrived together with the commands. From here on the
	// push outlives its client: once the pack is complete it is taken in and
	// recorded, whether or not somebody waits for the answer.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.longest)
	defer cancel()
	ctx, span := s.tracer.Start(ctx, "git push", trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.Int64("tidelock.project", int64(project.ID)),
		attribute.Int("tidelock.refs", len(push.commands)),
	))
	defer span.End()

	decision, err := s.forge.AuthorizePush(ctx, principal, project, push.commands)
	if err != nil {
		return err
	}
	result := refused
	if len(decision.Refused) == 0 {
		result, err = s.take(ctx, to, in, push, principal, project, decision)
	} else {
		err = s.refuse(ctx, to, push, project, decision)
	}
	span.SetAttributes(attribute.String("tidelock.result", string(result)))
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	read, _ := to.moved()
	s.metrics.push(result, read, time.Since(started))
	if err != nil {
		return err
	}
	to.finish()
	return nil
}

// refuse tells the client which refs may not move. None does: a push is what
// its author meant only as a whole.
func (s *Server) refuse(ctx context.Context, to client, push *pushRequest, project tidelock.Project, decision forge.PushDecision) error {
	s.log.InfoContext(ctx, "push refused", "project", project.ID, "refs", len(push.commands), "refused", len(decision.Refused))
	if !push.wantsReport() {
		for ref, reason := range decision.Refused {
			return tidelock.Errorf(tidelock.Denied, "%s: %s", ref, reason)
		}
	}
	answer := &report{out: to, sideBand: push.sideBand()}
	if err := answer.refuse(push, decision.Refused); err != nil {
		s.lost(ctx, project, err)
	}
	return nil
}

// take lets git take the push in, has the forge record what git did, and only
// then gives the client git's verdict.
func (s *Server) take(ctx context.Context, to client, in io.Reader, push *pushRequest, principal forge.Principal,
	project tidelock.Project, decision forge.PushDecision) (result, error) {
	request := io.Reader(bytes.NewReader(push.encode()))
	if push.sendsPack() {
		request = io.MultiReader(request, in)
	}
	patient := &patient{out: to}
	answer := &report{out: patient, sideBand: push.sideBand()}
	repo := s.repos.Repo(project.ID)
	gitErr := repo.ReceivePack(ctx, gitrepo.ReceiveRequest{
		In:                 request,
		Out:                answer,
		Ended:              to.ended(),
		Refs:               push.refs(),
		DenyNonFastForward: decision.DenyNonFastForward,
	})
	if errors.Is(gitErr, gitrepo.ErrNotStarted) {
		return failed, gitErr
	}
	if gitErr != nil {
		s.log.InfoContext(ctx, "git did not end well", "project", project.ID, "error", gitErr)
	}

	// Disk and store sync side by side, which halves the wait. After a loss of
	// power in between, which the client was not told "ok" before, comparing
	// refs with heads puts the store right.
	synced := make(chan error, 1)
	go func() { synced <- repo.Sync(push.refs()...) }()
	recordCtx, cancelRecord := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancelRecord()
	recorded, err := s.forge.Pushed(recordCtx, project.ID, principal, push.refs())
	result := accepted
	switch {
	case err != nil:
		result = unrecorded
		s.log.ErrorContext(ctx, "push not recorded: it will be when the repository is compared", "project", project.ID, "error", err)
		_ = answer.say("warning: the push is stored, but not announced yet; this will happen by itself")
	case recorded.ID == 0:
		result = unchanged
	default:
		read, _ := to.moved()
		s.log.InfoContext(ctx, "push received", "project", project.ID, "push", recorded.ID, "refs", len(recorded.Updates), "bytes", read)
	}
	if gitErr != nil && result == unchanged && tidelock.KindOf(gitErr) != tidelock.Internal && !answer.begun() && !to.answered() {
		<-synced
		return failed, gitErr // the client's own doing, and it has not been told
	}
	if err := <-synced; err != nil {
		s.log.ErrorContext(ctx, "push not synced: it may not survive a loss of power", "project", project.ID, "error", err)
		_ = answer.say("warning: the server's disk is in trouble; keep your copy of what you pushed")
	}
	_ = answer.finish()
	if patient.err != nil {
		s.lost(ctx, project, patient.err)
	}
	return result, nil
}

// lost notes a client that left before it had its answer.
func (s *Server) lost(ctx context.Context, project tidelock.Project, err error) {
	s.log.InfoContext(ctx, "client left before the end of its push", "project", project.ID, "error", err)
}

// A patient writer drops what follows after its first error: a client that
// left must not end the git that serves it.
type patient struct {
	out io.Writer
	err error
}

func (p *patient) Write(b []byte) (int, error) {
	if p.err == nil {
		_, p.err = p.out.Write(b)
	}
	return len(b), nil
}
