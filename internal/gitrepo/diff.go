package gitrepo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"tidelock.dev"
)

// What a Diff gives at most: beyond, files are named without their patches,
// and then not at all. GitLab's limits are of this order.
const (
	maxDiffFiles  = 3000
	maxPatchFiles = 1000
	maxPatch      = 200 << 10 // bytes of one file's patch
	maxPatches    = 5 << 20   // bytes of all patches
	diffTimeout   = 20 * time.Second
)

// smallDiffs let git take contents larger than 1 MiB for binary, so that no
// diff costs more memory or time than they are worth to a reader.
var smallDiffs = []string{"-c", "core.bigFileThreshold=1m", "-c", "diff.renameLimit=400"}

// A FileDiff is how one file differs between two commits. Text is valid UTF-8.
type FileDiff struct {
	Old, New         string // paths; the same unless renamed
	OldMode, NewMode string // "0" where there is no file
	Added            bool
	Deleted          bool
	Renamed          bool
	Patch            string // hunks only
	Binary           bool   // there is no patch
	TooLarge         bool   // its patch alone is over the limit, and left out
	Collapsed        bool   // the patches before it used the limit up
}

// Diff compares the trees of two commits; from "" is the empty tree. It never
// fails because of size: what is over the limits is left out and marked, and
// more says that files are missing at the end.
func (r *Repo) Diff(ctx context.Context, from, to tidelock.CommitID) (files []FileDiff, more bool, err error) {
	if from == "" {
		from = emptyTree
	}
	if !isObjectName(from) || !isObjectName(to) {
		return nil, false, errNoCommit(string(to))
	}
	ctx, cancel := context.WithTimeout(ctx, diffTimeout)
	defer cancel()
	args := append(append([]string{}, smallDiffs...), "diff-tree", "-r", "-M", "--no-color", "--no-ext-diff", "--no-textconv", "--full-index")
	err = r.stream(ctx, r.disk.command(r, append(args, "-z", "--raw", string(from), string(to))...), func(out *bufio.Reader) (err error) {
		files, more, err = readRawDiff(out)
		return err
	})
	switch {
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil:
		return files, true, nil
	case err != nil:
		return nil, false, err
	}
	err = r.stream(ctx, r.disk.command(r, append(args, "--patch", string(from), string(to))...), func(out *bufio.Reader) error {
		return readPatches(out, files)
	})
	if errors.Is(err, context.DeadlineExceeded) { // too much to read in time: the rest is collapsed
		err = nil
	}
	return files, more, err
}

// emptyTree is the name of the tree without entries, which git knows without
// having it.
const emptyTree tidelock.CommitID = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

// errEnough ends a git of which no more is wanted.
var errEnough = errors.New("enough")

// stream runs a git and lets fn read what it prints, while it does. When fn
// returns errEnough, git is stopped and that is no error.
func (r *Repo) stream(ctx context.Context, cmd *exec.Cmd, fn func(*bufio.Reader) error) error {
	if err := r.exists(); err != nil {
		return err
	}
	release, err := r.disk.queries.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, out := io.Pipe()
	cmd.Stdout = out
	ended := make(chan error, 1)
	go func() {
		err := r.disk.run(ctx, cmd)
		out.Close()
		ended <- err
	}()
	err = fn(bufio.NewReaderSize(in, 64<<10))
	if err != nil {
		cancel()
		in.CloseWithError(errEnough)
	}
	runErr := <-ended
	switch {
	case err == nil:
		return runErr
	case errors.Is(err, errEnough):
		return nil
	}
	return err
}

// readRawDiff reads fields such as ":100644 100644 <old> <new> M\0path\0", with
// a second path for a rename.
func readRawDiff(out *bufio.Reader) (files []FileDiff, more bool, err error) {
	files = []FileDiff{}
	next := func() (string, error) {
		field, err := out.ReadString(0)
		return strings.TrimSuffix(field, "\x00"), err
	}
	for {
		facts, err := next()
		if err == io.EOF {
			return files, false, nil
		}
		if err != nil {
			return files, false, err
		}
		f := strings.Fields(strings.TrimPrefix(facts, ":"))
		if len(f) != 5 {
			return nil, false, fmt.Errorf("read a diff: git printed %q", facts)
		}
		if len(files) == maxDiffFiles {
			return files, true, errEnough
		}
		old, err := next()
		if err != nil {
			return nil, false, err
		}
		d := FileDiff{Old: old, New: old, OldMode: shortMode(f[0]), NewMode: shortMode(f[1]), Collapsed: true}
		switch f[4][0] {
		case 'A':
			d.Added = true
		case 'D':
			d.Deleted = true
		case 'R', 'C':
			d.Renamed = true
			if d.New, err = next(); err != nil {
				return nil, false, err
			}
		}
		d.Old, d.New = strings.ToValidUTF8(d.Old, "\uFFFD"), strings.ToValidUTF8(d.New, "\uFFFD")
		files = append(files, d)
	}
}

// shortMode is "0" for the mode of no file.
func shortMode(mode string) string {
	if strings.Trim(mode, "0") == "" {
		return "0"
	}
	return mode
}

// readPatches fills in the patches of files, which git prints in the same
// order: one each, or two where the type of a file changed.
func readPatches(out *bufio.Reader, files []FileDiff) error {
	at, left := -1, maxPatches
	var patch strings.Builder
	inHunk, second, large := false, false, false
	finish := func() error {
		if at < 0 {
			return nil
		}
		d := &files[at]
		d.Collapsed = false
		switch {
		case large || patch.Len() > maxPatch:
			d.TooLarge, d.Patch = true, ""
		case patch.Len() > left:
			d.Collapsed = true
			return errEnough
		default:
			d.Patch = strings.ToValidUTF8(patch.String(), "\uFFFD")
			left -= patch.Len()
		}
		return nil
	}
	begins := true // the next piece begins a line
	for {
		piece, err := out.ReadSlice('\n')
		line := string(piece)
		whole := strings.HasSuffix(line, "\n")
		switch {
		case begins && strings.HasPrefix(line, "diff --git "):
			if at >= 0 && !second && typeChanged(files[at]) {
				second, inHunk = true, false
				break
			}
			if err := finish(); err != nil {
				return err
			}
			at++
			if at >= len(files) || at >= maxPatchFiles {
				return errEnough
			}
			patch.Reset()
			inHunk, second, large = false, false, false
		case begins && !inHunk && strings.HasPrefix(line, "Binary files "):
			files[at].Binary = true
		case begins && !inHunk && !strings.HasPrefix(line, "@@ "):
		case at >= 0:
			inHunk = true
			if patch.Len()+len(line) > maxPatch {
				large = true
			} else if !large {
				patch.WriteString(line)
			}
		}
		begins = whole
		switch {
		case err == bufio.ErrBufferFull:
		case err == io.EOF:
			return finish()
		case err != nil:
			return err
		}
	}
}

// typeChanged reports whether a file became a link or the like, which git
// shows as two patches.
func typeChanged(d FileDiff) bool {
	kind := func(mode string) string { return mode[:min(2, len(mode))] }
	return !d.Added && !d.Deleted && kind(d.OldMode) != kind(d.NewMode)
}
