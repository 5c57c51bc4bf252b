// Package render makes manifests of a kustomization or of a Helm chart. Both
// come from strangers and are programs: a template can loop for ever or write
// until memory ends, and neither library can be interrupted. So each runs in a
// child process, this program started again, which may use so much time and
// memory and no more, and can open no file and no connection: what it reads,
// it asks its parent for.
package render

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"regexp"
	"runtime"
	"strings"
	"time"

	"tidelock.dev"
)

const (
	// Timeout is how long one rendering may take.
	Timeout = 10 * time.Second

	// MaxOutput bounds what comes out, in bytes.
	MaxOutput = 16 << 20

	maxMemory  = 1 << 30
	maxSeconds = 5 // of processor time
	maxReads   = 20_000
	maxMessage = 2 * MaxOutput
)

// A File is one file of a chart; its path is relative to the chart.
type File struct {
	Path    string
	Content []byte
}

// A Chart is a Helm chart and how it is to be rendered.
type Chart struct {
	Files     []File
	Values    []File // later ones win
	Release   string
	Namespace string
}

// A Repository is what a kustomization may read: paths are relative to the
// root of the repository, which is ".". Errors of kind NotFound are what the
// kustomization may try next to; all others end the rendering.
type Repository interface {
	IsDir(path string) (bool, error) // NotFound when nothing is there
	Read(path string) ([]byte, error)
	List(dir string) ([]string, error)
}

// Kustomize builds the kustomization in a directory of a repository. It reads
// nothing outside: bases that are URLs, plugins and charts are refused.
func Kustomize(ctx context.Context, repository Repository, dir string) ([]byte, error) {
	answer, err := run(ctx, request{Kustomize: dir}, repository)
	return answer.Output, err
}

// Helm renders a chart as "helm template" does, without hooks' order, tests
// and notes, and knows no cluster. Charts that it depends on have to be in its
// files. Unstable reports that a second rendering gave something else, such as
// a random password.
func Helm(ctx context.Context, chart Chart) (manifests []byte, unstable bool, err error) {
	answer, err := run(ctx, request{Chart: &chart}, nil)
	return answer.Output, answer.Unstable, err
}

// A request begins a rendering.
type request struct {
	Kustomize string
	Chart     *Chart
}

// A question is what the child says: it asks for a path, or it is done.
type question struct {
	Op   string // isdir, read, list; "" when done
	Path string

	Output   []byte
	Unstable bool
	Refused  string
}

// An answer is to a question.
type answer struct {
	Dir     bool
	Content []byte
	Names   []string
	Missing bool
}

// childName is what the child finds as its own name.
const childName = "tidelock-render"

// run starts a child and answers it until it is done.
func run(asked context.Context, req request, repository Repository) (question, error) {
	ctx, cancel := context.WithTimeout(asked, Timeout)
	defer cancel()
	self, err := executable()
	if err != nil {
		return question{}, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Args = []string{childName}
	cmd.Env = []string{"GOMAXPROCS=2", fmt.Sprintf("GOMEMLIMIT=%d", maxMemory*3/4), "TZ=UTC"}
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	var complaint bytes.Buffer
	cmd.Stderr = &limitedWriter{out: &complaint, left: 4 << 10}
	in, err := cmd.StdinPipe()
	if err != nil {
		return question{}, fmt.Errorf("start a renderer: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return question{}, fmt.Errorf("start a renderer: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return question{}, fmt.Errorf("start a renderer: %w", err)
	}
	done, err := converse(req, repository, in, out)
	in.Close()
	out.Close()
	if err != nil && tidelock.KindOf(err) != tidelock.Internal {
		cancel()
	}
	waited := cmd.Wait()
	switch {
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return question{}, tidelock.Errorf(tidelock.TooLarge, "it was not done after %v", Timeout)
	case tidelock.KindOf(err) != tidelock.Internal:
		return question{}, err // the repository's own word
	case done.Refused != "":
		return question{}, tidelock.Errorf(tidelock.Invalid, "%s", done.Refused)
	case outOfMemory.MatchString(complaint.String()):
		return question{}, tidelock.Errorf(tidelock.TooLarge, "it needs more than %d MiB of memory", maxMemory>>20)
	case waited != nil && overtime(cmd.ProcessState):
		return question{}, tidelock.Errorf(tidelock.TooLarge, "it was not done after %d s of processor time", maxSeconds)
	case asked.Err() != nil:
		return question{}, fmt.Errorf("render: %w", context.Cause(asked))
	case waited != nil: // it would end so every time
		return question{}, tidelock.Errorf(tidelock.Invalid, "the renderer ended with %v: %.200s", waited, complaint.String())
	case err != nil:
		return question{}, fmt.Errorf("render: %w", err)
	}
	return done, nil
}

// outOfMemory is how a child says that it has reached its limit.
var outOfMemory = regexp.MustCompile(`out of memory|cannot allocate memory|failed to allocate|stack exceeds`)

func converse(req request, repository Repository, in io.Writer, out io.Reader) (question, error) {
	encoder, decoder := gob.NewEncoder(in), gob.NewDecoder(&limitedReader{in: out, left: maxMessage})
	if err := encoder.Encode(req); err != nil {
		return question{}, fmt.Errorf("ask a renderer: %w", err)
	}
	for range maxReads {
		var q question
		if err := decoder.Decode(&q); err != nil {
			return question{}, fmt.Errorf("hear a renderer: %w", err)
		}
		if q.Op == "" {
			if len(q.Output) > MaxOutput {
				return question{}, tidelock.Errorf(tidelock.TooLarge, "the manifests are larger than %d MiB", MaxOutput>>20)
			}
			return q, nil
		}
		a, err := ask(repository, q)
		if err != nil {
			return question{}, err
		}
		if err := encoder.Encode(a); err != nil {
			return question{}, fmt.Errorf("answer a renderer: %w", err)
		}
	}
	return question{}, tidelock.Errorf(tidelock.TooLarge, "it reads more than %d files", maxReads)
}

func ask(repository Repository, q question) (answer, error) {
	var a answer
	var err error
	switch q.Op {
	case "isdir":
		a.Dir, err = repository.IsDir(q.Path)
	case "read":
		a.Content, err = repository.Read(q.Path)
	case "list":
		a.Names, err = repository.List(q.Path)
	}
	if tidelock.KindOf(err) == tidelock.NotFound {
		return answer{Missing: true}, nil
	}
	return a, err
}

// executable is this very program, also when its file was replaced since.
func executable() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	return self, nil
}

// root is where the repository lies for the child: not at the top, where
// "../.." would lead nowhere and be taken for a path inside.
const root = "/repository"

// relative is a path of the child from the root of the repository.
func relative(p string) (string, error) {
	if !path.IsAbs(p) {
		p = path.Join(root, p)
	}
	p = path.Clean(p)
	switch rest, inside := strings.CutPrefix(p, root+"/"); {
	case p == root:
		return ".", nil
	case inside:
		return rest, nil
	}
	return "", &fs.PathError{Op: "open", Path: p, Err: errOutside}
}

var errOutside = errors.New("leads out of the repository")

type limitedWriter struct {
	out  io.Writer
	left int
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	n, err := w.out.Write(p[:min(len(p), w.left)])
	w.left -= n
	return len(p), err
}

// A limitedReader fails where io.LimitedReader would seem to end.
type limitedReader struct {
	in   io.Reader
	left int
}

func (r *limitedReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, tidelock.Errorf(tidelock.TooLarge, "the manifests are larger than %d MiB", MaxOutput>>20)
	}
	n, err := r.in.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}
