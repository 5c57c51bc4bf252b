package render

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strings"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// init makes this process the child, if it was started as one. It is done here
// and not in main, so that every program that renders, tests too, is its own
// child.
func init() {
	if len(os.Args) == 0 || os.Args[0] != childName {
		return
	}
	if err := confine(); err != nil {
		fmt.Fprintln(os.Stderr, "confine the renderer:", err)
		os.Exit(1)
	}
	debug.SetMaxStack(256 << 20)
	http.DefaultTransport = noNetwork{}
	log.SetOutput(io.Discard)
	if err := serve(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// noNetwork says what a limit on open files would say less clearly.
type noNetwork struct{}

func (noNetwork) RoundTrip(r *http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("%s is not in the repository, and nothing is fetched", r.URL)
}

// serve does the one thing that is asked.
func serve(in io.Reader, out io.Writer) (err error) {
	parent := &parent{encoder: gob.NewEncoder(out), decoder: gob.NewDecoder(in)}
	var req request
	if err := parent.decoder.Decode(&req); err != nil {
		return fmt.Errorf("hear what to render: %w", err)
	}
	done := perform(req, parent)
	return parent.encoder.Encode(done)
}

// perform renders; a library that panics has refused.
func perform(req request, parent *parent) (done question) {
	defer func() {
		if r := recover(); r != nil {
			done = question{Refused: fmt.Sprintf("it cannot be rendered: %v", r)}
		}
	}()
	if req.Chart != nil {
		output, unstable, err := renderChart(*req.Chart)
		if err != nil {
			return question{Refused: err.Error()}
		}
		return question{Output: output, Unstable: unstable}
	}
	output, err := kustomize(parent, req.Kustomize)
	if err != nil {
		return question{Refused: strings.ReplaceAll(err.Error(), root+"/", "")}
	}
	return question{Output: output}
}

func kustomize(p *parent, dir string) ([]byte, error) {
	options := krusty.MakeDefaultOptions()
	options.PluginConfig = types.DisabledPluginConfig()
	// The file system ends at the repository, within which a kustomization may
	// share files with others.
	options.LoadRestrictions = types.LoadRestrictionsNone
	built, err := krusty.MakeKustomizer(options).Run(files{p}, path.Join(root, dir))
	if err != nil {
		return nil, err
	}
	return built.AsYaml()
}

// parent is who started this process.
type parent struct {
	encoder *gob.Encoder
	decoder *gob.Decoder
}

// ask asks about an absolute path.
func (p *parent) ask(op, name string) (answer, error) {
	name, err := relative(name)
	if err != nil {
		return answer{}, err
	}
	if err := p.encoder.Encode(question{Op: op, Path: name}); err != nil {
		return answer{}, err
	}
	var a answer
	if err := p.decoder.Decode(&a); err != nil {
		return answer{}, err
	}
	if a.Missing {
		return answer{}, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return a, nil
}

// files is the repository as kustomize sees it.
type files struct{ parent *parent }

var errReadOnly = errors.New("the repository cannot be written to")

func (files) Create(string) (filesys.File, error) { return nil, errReadOnly }
func (files) Open(string) (filesys.File, error)   { return nil, errReadOnly }
func (files) Mkdir(string) error                  { return errReadOnly }
func (files) MkdirAll(string) error               { return errReadOnly }
func (files) RemoveAll(string) error              { return errReadOnly }
func (files) WriteFile(string, []byte) error      { return errReadOnly }

func (f files) IsDir(name string) bool {
	a, err := f.parent.ask("isdir", name)
	return err == nil && a.Dir
}

func (f files) Exists(name string) bool {
	_, err := f.parent.ask("isdir", name)
	return err == nil
}

func (f files) ReadFile(name string) ([]byte, error) {
	a, err := f.parent.ask("read", name)
	return a.Content, err
}

func (f files) ReadDir(name string) ([]string, error) {
	a, err := f.parent.ask("list", name)
	return a.Names, err
}

func (f files) CleanedAbs(name string) (filesys.ConfirmedDir, string, error) {
	if !path.IsAbs(name) {
		name = path.Join(root, name)
	}
	name = path.Clean(name)
	a, err := f.parent.ask("isdir", name)
	if err != nil {
		return "", "", err
	}
	if a.Dir {
		return filesys.ConfirmedDir(name), "", nil
	}
	return filesys.ConfirmedDir(path.Dir(name)), path.Base(name), nil
}

// Glob finds the files of one directory that match.
func (f files) Glob(pattern string) ([]string, error) {
	names, err := f.ReadDir(path.Dir(pattern))
	if err != nil {
		return nil, nil
	}
	var found []string
	for _, name := range names {
		full := path.Join(path.Dir(pattern), name)
		matches, err := path.Match(pattern, full)
		if err != nil {
			return nil, err
		}
		if matches && !f.IsDir(full) {
			found = append(found, full)
		}
	}
	return found, nil
}

func (files) Walk(string, filepath.WalkFunc) error {
	return errors.New("the repository cannot be walked through")
}
