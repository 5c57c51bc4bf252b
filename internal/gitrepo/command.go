package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"tidelock.dev"
)

const (
	// stopGrace is how long a git that was told to stop may take to remove
	// its lock files and quarantined objects.
	stopGrace = 5 * time.Second

	// queryTimeout bounds a command that answers a question.
	queryTimeout = time.Minute

	// maxAnswer bounds what such a command may print.
	maxAnswer = 64 << 20

	// maxComplaint is how much of its standard error is kept.
	maxComplaint = 4 << 10
)

// settings hold for every git process, above the configuration of the
// repository. They are given on the command line so that they are decided
// here, for repositories of any age.
var settings = []string{
	"core.hooksPath=/dev/null",
	"core.useReplaceRefs=false", // a pushed refs/replace must not change what others read

	// A push is taken in beside the repository, which git then searches as if it
	// were another one: it would list all its refs a second time.
	"core.alternateRefsCommand=true",

	// What git acknowledges is on the disk: loose objects and refs too, which
	// it leaves to the kernel by default. Directory entries are ours to sync,
	// see Repo.Sync.
	"core.fsync=loose-object,pack,pack-metadata,reference",
	"core.fsyncMethod=fsync",

	// Objects are checked as they come in, except for three old mistakes of
	// other tools that real histories are full of.
	"transfer.fsckObjects=true",
	"receive.fsck.badTimezone=ignore",
	"receive.fsck.missingSpaceBeforeDate=ignore",
	"receive.fsck.zeroPaddedFilemode=ignore",

	// A pack is kept as it came, which takes half the time of unpacking it
	// into a file per object, each synced on its own. Maintain joins the packs,
	// off the path of a push.
	"receive.unpackLimit=1",
	"receive.autogc=false",
	"receive.advertisePushOptions=true",
	"receive.denyDeleteCurrent=ignore", // rights are decided before git runs
	"uploadpack.allowFilter=true",
	"uploadpack.allowAnySHA1InWant=false",
	"pack.windowMemory=100m",
	"gc.autoDetach=false",
	"maintenance.autoDetach=false",
}

// command prepares a git process on a repository, or on none, that takes
// nothing from the environment of this process but PATH.
func (d *Disk) command(r *Repo, args ...string) *exec.Cmd {
	all := make([]string, 0, 2*len(settings)+4+len(args))
	for _, s := range settings {
		all = append(all, "-c", s)
	}
	cmd := exec.Command(d.git)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + d.dir,
		"LC_ALL=C",
		"TZ=UTC",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_ATTR_NOSYSTEM=1",
		"GIT_DEFAULT_HASH=sha1",
		"GIT_DEFAULT_REF_FORMAT=files",
		"GIT_LITERAL_PATHSPECS=1",
		"GIT_NO_LAZY_FETCH=1",
		"GIT_OPTIONAL_LOCKS=0",
		"GIT_TERMINAL_PROMPT=0",
	}
	cmd.Dir = d.dir
	if r != nil {
		cmd.Dir = r.dir
		cmd.Env = append(cmd.Env, "GIT_DIR="+r.dir)
		// The directory may belong to another user than the one we run as.
		all = append(all, "-c", "safe.directory="+r.dir)
	}
	cmd.Args = append(append(cmd.Args, all...), args...)
	return cmd
}

// run starts a prepared command and waits for it. When ctx ends, the whole
// process group is asked to stop, so that git removes its locks, and killed
// when it does not.
func (d *Disk) run(ctx context.Context, cmd *exec.Cmd) error {
	return d.runThen(ctx, cmd, func(*exec.Cmd) {})
}

// runThen is run, with something to do once the process is there.
func (d *Disk) runThen(ctx context.Context, cmd *exec.Cmd, started func(*exec.Cmd)) error {
	verb := verbOf(cmd)
	var complaint excerpt
	if cmd.Stderr == nil {
		cmd.Stderr = &complaint
	}
	inOwnGroup(cmd)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("run git %s: %w", verb, context.Cause(ctx))
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run git %s: %w", verb, err)
	}
	started(cmd)
	waited := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-waited:
			return
		case <-ctx.Done():
		}
		stopGroup(cmd, false)
		select {
		case <-waited:
		case <-time.After(stopGrace):
			stopGroup(cmd, true)
		}
	}()
	err := cmd.Wait()
	close(waited)
	<-watched
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("run git %s: %w", verb, context.Cause(ctx))
	}
	return &commandError{verb: verb, err: err, complaint: complaint.String()}
}

// query runs a command that answers a question and returns what it printed. A
// repository that was deleted before git had read it is NotFound.
func (d *Disk) query(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	release, err := d.queries.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	out := limitedBuffer{limit: maxAnswer}
	cmd.Stdout = &out
	err = d.run(ctx, cmd)
	if err != nil && ctx.Err() == nil {
		if _, gone := os.Stat(cmd.Dir); errors.Is(gone, fs.ErrNotExist) {
			return nil, tidelock.Errorf(tidelock.NotFound, "the repository was deleted")
		}
	}
	if out.overflowed {
		return nil, tidelock.Errorf(tidelock.TooLarge, "the answer of git is larger than %d MiB", maxAnswer>>20)
	}
	return out.Bytes(), err
}

func verbOf(cmd *exec.Cmd) string {
	for i := 1; i < len(cmd.Args); i++ {
		if cmd.Args[i] == "-c" {
			i++
			continue
		}
		return cmd.Args[i]
	}
	return ""
}

// A commandError is a git that ended with a complaint.
type commandError struct {
	verb      string
	err       error
	complaint string
}

func (e *commandError) Error() string {
	if e.complaint == "" {
		return fmt.Sprintf("git %s: %v", e.verb, e.err)
	}
	return fmt.Sprintf("git %s: %v: %s", e.verb, e.err, e.complaint)
}

func (e *commandError) Unwrap() error { return e.err }

// complains reports whether err is a git that ended saying any of the phrases.
func complains(err error, phrases ...string) bool {
	e, ok := errors.AsType[*commandError](err)
	if !ok {
		return false
	}
	for _, phrase := range phrases {
		if strings.Contains(e.complaint, phrase) {
			return true
		}
	}
	return false
}

// died reports whether err is a git that gave up in the way it does when it
// cannot go on, rather than one that was killed or could not start.
func died(err error) bool {
	const fatal = 128
	exit, ok := errors.AsType[*exec.ExitError](err)
	return ok && exit.ExitCode() == fatal
}

// exitCode is what a git that ended by itself ended with; -1 for another error
// or none.
func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return -1
}

// slots bound how many processes run at once.
type slots struct {
	free chan struct{}
	wait time.Duration
}

func newSlots(n int, wait time.Duration) slots {
	return slots{free: make(chan struct{}, n), wait: wait}
}

func (s slots) take(ctx context.Context) (release func(), err error) {
	release = func() { <-s.free }
	select {
	case s.free <- struct{}{}:
		return release, nil
	default:
	}
	patience := time.NewTimer(s.wait)
	defer patience.Stop()
	select {
	case s.free <- struct{}{}:
		return release, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to run git: %w", context.Cause(ctx))
	case <-patience.C:
		return nil, tidelock.Errorf(tidelock.Unavailable, "the server is busy; try again later")
	}
}

var errAnswerTooLarge = errors.New("answer too large")

// A limitedBuffer refuses what goes beyond its limit, which ends the writer.
type limitedBuffer struct {
	bytes.Buffer
	limit      int
	overflowed bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.limit {
		b.overflowed = true
		return 0, errAnswerTooLarge
	}
	return b.Buffer.Write(p)
}

// ReadFrom hides that of bytes.Buffer, which knows no limit.
func (b *limitedBuffer) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{b}, r)
}

// An excerpt keeps the beginning and counts the rest of what is written to it.
type excerpt struct {
	kept    bytes.Buffer
	dropped int
}

func (e *excerpt) Write(p []byte) (int, error) {
	keep := min(len(p), maxComplaint-e.kept.Len())
	e.kept.Write(p[:keep])
	e.dropped += len(p) - keep
	return len(p), nil
}

func (e *excerpt) String() string {
	s := strings.ToValidUTF8(strings.TrimSpace(e.kept.String()), "\uFFFD")
	if e.dropped > 0 {
		s += " … (" + strconv.Itoa(e.dropped) + " bytes more)"
	}
	return s
}
