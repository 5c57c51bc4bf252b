package gitserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
)

const (
	// maxRequests is how much a client may ask of a session before it says
	// what the session is for.
	maxRequests = 100

	// exitRefused is how git ends when it cannot go on.
	exitRefused = 128

	// hearOut is how long a client that pushes, and has its answer, may go on
	// sending what nobody needs.
	hearOut = 10 * time.Second

	errNoProjectText = "The project you were looking for could not be found or you don't have permission to view it."
)

// serveSession runs the one command that a session is for.
func (c *connection) serveSession(ctx context.Context, offered ssh.NewChannel, fingerprint string) {
	channel, requests, err := offered.Accept()
	if err != nil {
		return // the client is gone
	}
	t := newTalk(channel, c.ssh.git.idle, c.close)
	defer t.close()
	var protocol string
	for range maxRequests {
		request, ok := <-requests
		if !ok {
			return
		}
		switch request.Type {
		case "env":
			var env struct{ Name, Value string }
			known := ssh.Unmarshal(request.Payload, &env) == nil && env.Name == "GIT_PROTOCOL"
			if known {
				protocol = env.Value
			}
			_ = request.Reply(known, nil)
		case "shell", "exec", "subsystem":
			_ = request.Reply(true, nil)
			t.others.Go(func() { ssh.DiscardRequests(requests) })
			if err := c.answer(ctx, t, request, protocol, fingerprint); err != nil {
				t.refuse(c.ssh.explain(ctx, err))
			}
			return
		default: // terminals, agents, X11
			_ = request.Reply(false, nil)
		}
	}
	// One that is left unread would hold up all else of the connection, its end
	// too.
	t.others.Go(func() { ssh.DiscardRequests(requests) })
}

// answer does what a session was opened for.
func (c *connection) answer(ctx context.Context, t *talk, request *ssh.Request, protocol, fingerprint string) error {
	git := c.ssh.git
	// The handshake may be long ago.
	principal, err := git.forge.AuthenticateKey(ctx, fingerprint)
	if err != nil {
		return err
	}
	principal.From = c.address
	if err := git.admitSSH(principal); err != nil {
		return err
	}
	var payload struct{ Text string }
	if len(request.Payload) > 0 {
		if err := ssh.Unmarshal(request.Payload, &payload); err != nil {
			return errCommand("the request is malformed")
		}
	}
	switch request.Type {
	case "shell":
		if _, err := io.WriteString(t, welcome(principal)+"\r\n"); err != nil {
			return err
		}
		t.finish()
		return nil
	case "subsystem":
		return errCommand("subsystems such as sftp are not offered; only git is")
	}
	command, err := parseCommand(payload.Text)
	if err != nil {
		return err
	}
	project, err := git.forge.ProjectAt(ctx, principal, command.project, command.service.action())
	if err != nil {
		return err
	}
	release, err := git.turns.take(ctx, principal.Allowance(c.address))
	if err != nil {
		return err
	}
	defer release()
	if command.service == uploadPack {
		return git.fetch(ctx, t, project, gitrepo.PackRequest{
			Duplex: true, Protocol: protocol, In: bounded(t, maxFetchRequest), Out: t, Ended: t.ended(),
		})
	}
	return git.receiveSSH(ctx, t, protocol, principal, project)
}

// receiveSSH tells a client where the refs are, and takes its push in.
func (s *Server) receiveSSH(ctx context.Context, t *talk, protocol string, principal forge.Principal, project tidelock.Project) error {
	refs, err := s.receiveRefs(ctx, project, protocol)
	if err != nil {
		return err
	}
	if _, err := t.channel.Write(refs); err != nil {
		return nil // nobody is there to be told
	}
	t.pushes = true
	return s.receive(ctx, t, bounded(t, s.maxPush()), principal, project)
}

// explain is what the client is told of an error, in a line.
func (h *SSH) explain(ctx context.Context, err error) string {
	kind := tidelock.KindOf(err)
	h.metrics.refused.WithLabelValues(kind.String()).Inc()
	e, ok := errors.AsType[*tidelock.Error](err)
	switch {
	case kind == tidelock.NotFound:
		return errNoProjectText
	case ok:
		return e.Error()
	case ctx.Err() != nil:
		return "the connection is closed"
	}
	id := rand.Text()
	h.git.log.ErrorContext(ctx, "request failed", "request", id, "error", err)
	return fmt.Sprintf("internal error; tell your administrator the request %s", id)
}

// A talk is what is said in a session. It may be slow, but not silent: after
// idle without a byte either way its connection is cut.
type talk struct {
	channel ssh.Channel
	watch   *time.Timer
	idle    time.Duration
	pushes  bool

	in      *io.PipeReader // what the client sends
	others  sync.WaitGroup
	pumped  chan struct{} // the client sends nothing more
	read    atomic.Int64
	written atomic.Int64
	exit    sync.Once
}

var _ client = (*talk)(nil)

func newTalk(channel ssh.Channel, idle time.Duration, cut func()) *talk {
	out, in := io.Pipe()
	t := &talk{channel: channel, watch: time.AfterFunc(idle, cut), idle: idle, in: out, pumped: make(chan struct{})}
	go func() {
		defer close(t.pumped)
		_, err := io.Copy(in, (*heard)(t))
		in.CloseWithError(err) // nil is io.EOF
		// What nobody reads any more, so that the client comes to read why.
		_, _ = io.CopyN(io.Discard, (*heard)(t), maxOverrun)
	}()
	return t
}

// A heard talk notes that the client is alive.
type heard talk

func (t *heard) Read(p []byte) (int, error) {
	n, err := t.channel.Read(p)
	if n > 0 {
		t.watch.Reset(t.idle)
		t.read.Add(int64(n))
	}
	return n, err
}

// Read reads what the client sends.
func (t *talk) Read(p []byte) (int, error) {
	n, err := t.in.Read(p)
	if errors.Is(err, io.ErrClosedPipe) {
		err = io.EOF // ended by us
	}
	return n, err
}

// Write answers.
func (t *talk) Write(p []byte) (int, error) {
	n, err := t.channel.Write(p)
	t.watch.Reset(t.idle)
	t.written.Add(int64(n))
	return n, err
}

func (t *talk) answered() bool { return t.written.Load() > 0 }

func (t *talk) moved() (in, out int64) { return t.read.Load(), t.written.Load() }

// ended ends what is read here: the client of a conversation waits for us to
// end it.
func (t *talk) ended() func() { return func() { t.in.Close() } }

// finish ends the answer. A client that pushes may still be sending, and reads
// its answer only then; it knows where that ends. Others may wait for the end
// of the channel.
func (t *talk) finish() {
	t.end(0)
	if !t.pushes {
		return
	}
	timer := time.NewTimer(min(hearOut, t.idle))
	defer timer.Stop()
	select {
	case <-t.pumped:
	case <-timer.C:
	}
}

// refuse says why, on standard error, which git shows as it is.
func (t *talk) refuse(why string) {
	line := "ERROR: " + strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, why) + "\n"
	_, _ = io.WriteString(t.channel.Stderr(), line) // fails only when the client left
	t.end(exitRefused)
}

// end tells the client how it ended.
func (t *talk) end(status uint32) {
	t.exit.Do(func() {
		_, _ = t.channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
		_ = t.channel.CloseWrite()
		t.in.Close()
	})
}

// close lets go of the session, and waits until nothing of it is left.
func (t *talk) close() {
	_ = t.channel.Close()
	t.in.Close()
	<-t.pumped
	t.others.Wait()
	t.watch.Stop()
}

// bounded refuses what goes beyond a limit.
func bounded(in io.Reader, limit int64) io.Reader {
	return &boundedReader{in: in, left: limit, limit: limit}
}
