package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"

	"tidelock.dev"
)

// ErrNotStarted is in the error of a fetch or push for which no git was
// started, so that nothing can have happened.
var ErrNotStarted = errors.New("git was not started")

// A PackRequest is one request of a client that fetches.
type PackRequest struct {
	Advertise bool      // the answer to info/refs of stateless HTTP; otherwise a round of the negotiation
	Duplex    bool      // all of a fetch in one conversation, as over SSH
	Protocol  string    // the client's Git-Protocol; ignored unless it is version=0, 1 or 2
	In        io.Reader // what the client sends; not read for an advertisement
	Out       io.Writer

	// Ended, if set, is called when git has ended, and must end In. Without it
	// In is read to its end even when git stops early, so the caller bounds it
	// in size and time.
	Ended func()
}

// UploadPack serves a fetch. An error that began in In keeps its kind. A
// request that git does not understand, and does not answer, is of kind
// Invalid.
func (r *Repo) UploadPack(ctx context.Context, req PackRequest) error {
	args := []string{"upload-pack", "--strict"}
	if !req.Duplex {
		args = append(args, "--stateless-rpc")
	}
	if req.Advertise {
		args = append(args, "--http-backend-info-refs")
		req.In = nil
	}
	cmd := r.disk.command(r, append(args, r.dir)...)
	out := &sink{out: req.Out}
	err := r.serve(ctx, cmd, conversation{protocol: req.Protocol, in: req.In, out: out, ended: req.Ended})
	if !req.Advertise && !out.used && tidelock.KindOf(err) == tidelock.Internal && died(err) {
		r.disk.log.WarnContext(ctx, "fetch not understood", "project", r.id, "error", err)
		return tidelock.Errorf(tidelock.Invalid, "git does not understand the request")
	}
	return err
}

// A sink remembers whether anything went through.
type sink struct {
	out  io.Writer
	used bool
}

func (s *sink) Write(p []byte) (int, error) {
	s.used = true
	return s.out.Write(p)
}

// A ReceiveRequest is one push.
type ReceiveRequest struct {
	// In is the list of commands, push options if any, and the pack, as
	// git-receive-pack reads them.
	In    io.Reader
	Out   io.Writer
	Ended func() // as in a PackRequest

	// Refs are the refs the commands name.
	Refs []tidelock.RefName

	// DenyNonFastForward refuses every update of the push that would lose
	// commits.
	DenyNonFastForward bool
}

// ReceivePack lets git take a push in. An error says that git did not end
// well, not that nothing happened, unless it is ErrNotStarted: the refs tell.
// What happened survives power loss once Sync has returned.
func (r *Repo) ReceivePack(ctx context.Context, req ReceiveRequest) error {
	r.removeStaleLocks(req.Refs)
	cmd := r.disk.command(r,
		"-c", "receive.maxInputSize="+strconv.FormatInt(r.disk.maxInput, 10),
		"-c", "receive.denyNonFastForwards="+strconv.FormatBool(req.DenyNonFastForward),
		"receive-pack", "--stateless-rpc", r.dir)
	err := r.serve(ctx, cmd, conversation{in: req.In, out: req.Out, ended: req.Ended})
	r.disk.notePushed(r.id)
	return err
}

var protocolVersion = regexp.MustCompile(`^version=[012]$`)

// A conversation is what git and a client have to say to each other.
type conversation struct {
	protocol string
	in       io.Reader // nil for none
	out      io.Writer
	ended    func()
}

// serve runs a git that talks to a client.
func (r *Repo) serve(ctx context.Context, cmd *exec.Cmd, c conversation) error {
	if err := r.exists(); err != nil {
		return notStarted(err)
	}
	release, err := r.disk.packs.take(ctx)
	if err != nil {
		return notStarted(err)
	}
	defer release()
	if protocolVersion.MatchString(c.protocol) {
		cmd.Env = append(cmd.Env, "GIT_PROTOCOL="+c.protocol)
	}
	cmd.Stdout = c.out
	started := false
	run := func() error {
		err := r.disk.runThen(ctx, cmd, func(*exec.Cmd) { started = true })
		if !started {
			return notStarted(err)
		}
		return err
	}
	if c.in == nil {
		return run()
	}

	// Not cmd.Stdin: Wait would give up on a client that is still sending
	// after git has ended, and the client would not read why.
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("run git %s: %w", verbOf(cmd), err)
	}
	client := &source{in: c.in}
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		_, _ = io.Copy(stdin, client) // git may end before it has read all
		stdin.Close()
		if c.ended == nil {
			_, _ = io.Copy(io.Discard, client)
		}
	}()
	err = run()
	stdin.Close() // also when git did not start
	if c.ended != nil {
		c.ended()
	}
	<-fed
	if err == nil {
		return nil
	}
	if client.err != nil { // it explains why git complains
		return errors.Join(client.err, err)
	}
	return err
}

func notStarted(err error) error { return fmt.Errorf("%w: %w", ErrNotStarted, err) }

// A source remembers why it could not be read to its end.
type source struct {
	in  io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.in.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// Sync makes durable what was done to refs: git has synced the files, but not
// the names that it gave them. On file systems that keep the order of renames,
// the objects' names are then durable too, because git moves objects into
// place before refs.
func (r *Repo) Sync(names ...tidelock.RefName) error {
	dirs := map[string]bool{r.dir: true} // packed-refs, when a ref was deleted
	for _, name := range names {
		dirs[filepath.Dir(filepath.Join(r.dir, filepath.FromSlash(string(name))))] = true
	}
	var errs []error
	for dir := range dirs {
		if err := syncDir(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("sync refs of repository %d: %w", r.id, err))
		}
	}
	return errors.Join(errs...)
}

// removeStaleLocks removes lock files from before this process opened the
// disk. Nobody holds them any more: the machine, or git, was stopped without
// a chance to remove them, and they would block the ref for ever.
func (r *Repo) removeStaleLocks(names []tidelock.RefName) {
	paths := []string{filepath.Join(r.dir, "packed-refs.lock")}
	for _, name := range names {
		paths = append(paths, filepath.Join(r.dir, filepath.FromSlash(string(name))+".lock"))
	}
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil || !info.Mode().IsRegular() || !info.ModTime().Before(r.disk.opened.Add(-time.Second)) {
			continue
		}
		err = os.Remove(path)
		r.disk.log.Warn("stale lock removed", "project", r.id, "lock", path, "error", err)
	}
}
