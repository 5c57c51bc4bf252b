package component

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Cache is a folder of built components. Several processes may use one at
// the same time; each component is built once.
type Cache struct {
	// Dir is the folder; see [DefaultDir].
	Dir string
	// Modules is the repository's playground/components.
	Modules string
	// Progress is told of each step, and every second of a running build.
	// It is called from one goroutine at a time. Nil tells nobody.
	Progress func(Event)
}

// An Event says how far a component is.
type Event struct {
	Component Name          `json:"component"`
	Step      Step          `json:"step"`
	Elapsed   time.Duration `json:"elapsed"`
	Note      string        `json:"note,omitempty"` // what the build says, or why it failed
}

// A Step is one of a component's build.
type Step string

const (
	Found    Step = "found" // it was in the cache
	Awaiting Step = "awaiting another build"
	Building Step = "building"
	Done     Step = "built"
	Failed   Step = "failed"
)

// DefaultDir is the folder below the user's cache folder.
func DefaultDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder (set HOME or XDG_CACHE_HOME): %w", err)
	}
	return filepath.Join(dir, "tidelock", "components"), nil
}

// FindModules looks for playground/components in dir and the folders above it.
func FindModules(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		for _, candidate := range []string{filepath.Join(at, "playground", "components"), filepath.Join(at, "components")} {
			if _, err := os.Stat(filepath.Join(candidate, "kube", "go.mod")); err == nil {
				return candidate, nil
			}
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no playground/components in %q or above: run inside a clone of Tidelock", dir)
		}
	}
}

// A Set holds built components by name.
type Set map[Name]Built

// Ensure returns the named components, or all if none is named, after
// building those that the cache does not have. What was finished before an
// error or a cancellation is kept.
func (c *Cache) Ensure(ctx context.Context, names ...Name) (Set, error) {
	if len(names) == 0 {
		names = All()
	}
	set := Set{}
	for _, name := range names {
		built, err := c.ensure(ctx, name)
		if err != nil {
			return nil, err
		}
		set[name] = built
	}
	return set, nil
}

func (c *Cache) ensure(ctx context.Context, name Name) (Built, error) {
	r, err := recipeOf(name)
	if err != nil {
		return Built{}, err
	}
	began := time.Now()
	tell := func(step Step, note string) {
		if c.Progress != nil {
			c.Progress(Event{Component: name, Step: step, Elapsed: time.Since(began), Note: note})
		}
	}
	moduleDir := filepath.Join(c.Modules, r.module)
	version, err := goVersion(ctx, moduleDir)
	if err != nil {
		return Built{}, err
	}
	hash, err := r.hash(moduleDir, version)
	if err != nil {
		return Built{}, err
	}
	built := Built{Name: name, Dir: filepath.Join(c.Dir, string(name)+"-"+hash)}
	if built.present() {
		tell(Found, "")
		return built, nil
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return Built{}, fmt.Errorf("make cache of components: %w", err)
	}
	unlock, err := lock(ctx, built.Dir+".lock", func() { tell(Awaiting, "") })
	if err != nil {
		return Built{}, fmt.Errorf("wait for the build of %s: %w", name, err)
	}
	defer unlock()
	if built.present() { // by whom we waited for
		tell(Found, "")
		return built, nil
	}
	tell(Building, "")
	if err := c.build(ctx, r, moduleDir, built, tell); err != nil {
		err = fmt.Errorf("build %s: %w", name, err)
		tell(Failed, err.Error())
		return Built{}, err
	}
	tell(Done, "")
	c.prune(built)
	return built, nil
}

// present reports whether b is in the cache, and marks it as in use.
func (b Built) present() bool {
	if _, err := os.Stat(b.Binary()); err != nil {
		return false
	}
	now := time.Now()
	_ = os.Chtimes(b.Dir, now, now) // only delays prune
	return true
}

// build makes the component in a folder of its own and renames it into place,
// so that the cache never holds half of one.
func (c *Cache) build(ctx context.Context, r recipe, moduleDir string, built Built, tell func(Step, string)) error {
	work, err := os.MkdirTemp(c.Dir, "."+string(r.name)+"-*")
	if err != nil {
		return fmt.Errorf("make work folder: %w", err)
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	buildDir := moduleDir
	if len(r.lacks) > 0 {
		buildDir = filepath.Join(work, "module")
		if err := completeModule(ctx, moduleDir, r, buildDir); err != nil {
			return err
		}
	}
	ldflags := strings.Join(append([]string{"-s", "-w"}, r.ldflags...), " ")
	binary := filepath.Join(work, string(r.name))
	if err := goBuild(ctx, buildDir, tell, "build", "-ldflags", ldflags, "-o", binary, r.pkg); err != nil {
		return err
	}
	if buildDir != moduleDir {
		if err := os.RemoveAll(buildDir); err != nil {
			return err
		}
	}
	if len(r.files) > 0 {
		if err := copyFiles(ctx, moduleDir, r, work); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(built.Dir); err != nil { // remains without a binary
		return err
	}
	return os.Rename(work, built.Dir)
}

// completeModule makes a copy of a build-only module that takes the recipe's
// source from a copy too, in which nothing is missing. Go refuses to replace
// files in its module cache. Everything is what go.mod and go.sum pin, and the
// source was checked against go.sum when it came into the module cache.
func completeModule(ctx context.Context, moduleDir string, r recipe, into string) error {
	original, err := sourceDir(ctx, moduleDir, r)
	if err != nil {
		return err
	}
	source := filepath.Join(into, "source")
	if err := os.CopyFS(source, os.DirFS(original)); err != nil {
		return fmt.Errorf("copy module %s: %w", r.source, err)
	}
	for _, name := range r.lacks {
		path := filepath.Join(source, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			return err
		}
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(moduleDir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(into, name), text, 0o644)
		}
		if err != nil {
			return fmt.Errorf("copy %s: %w", name, err)
		}
	}
	if out, err := goCommand(ctx, into, "mod", "edit", "-replace="+r.source+"=./source").CombinedOutput(); err != nil {
		return fmt.Errorf("replace module %s: %w: %s", r.source, err, bytes.TrimSpace(out))
	}
	return nil
}

// sourceDir is where the module cache has the recipe's source module.
func sourceDir(ctx context.Context, moduleDir string, r recipe) (string, error) {
	// Listing does not download; a fresh machine has nothing yet.
	if out, err := goCommand(ctx, moduleDir, "mod", "download", r.source).CombinedOutput(); err != nil {
		return "", fmt.Errorf("download module %s: %w: %s", r.source, err, bytes.TrimSpace(out))
	}
	out, err := goCommand(ctx, moduleDir, "list", "-m", "-f", "{{.Dir}}", r.source).Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", r.source, withStderr(err))
	}
	return strings.TrimSpace(string(out)), nil
}

// copyFiles takes manifests out of the module cache, so that nothing needs Go
// once the component is built.
func copyFiles(ctx context.Context, moduleDir string, r recipe, into string) error {
	source, err := sourceDir(ctx, moduleDir, r)
	if err != nil {
		return err
	}
	for _, pattern := range r.files {
		paths, err := filepath.Glob(filepath.Join(source, filepath.FromSlash(pattern)))
		if err != nil || len(paths) == 0 {
			return fmt.Errorf("module %s has no %s", r.source, pattern)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(filepath.Join(into, filepath.Base(path)), text, 0o644)
			}
			if err != nil {
				return fmt.Errorf("copy manifest: %w", err)
			}
		}
	}
	return nil
}

// goCommand runs go in a module with nothing that could loosen go.sum: not
// the user's flags, not their exemptions from verification.
func goCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"GOFLAGS", "GOWORK", "CGO_ENABLED", "GONOSUMDB", "GONOSUMCHECK", "GOINSECURE", "PWD"}, name)
	})
	cmd.Env = append(cmd.Env, "GOFLAGS=-mod=readonly", "GOWORK=off", "CGO_ENABLED=0", "PWD="+dir)
	// go starts compilers; they end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func goVersion(ctx context.Context, dir string) (string, error) {
	out, err := goCommand(ctx, dir, "env", "GOVERSION").Output()
	if err != nil {
		return "", fmt.Errorf("ask go for its version: %w", withStderr(err))
	}
	return strings.TrimSpace(string(out)), nil
}

func withStderr(err error) error {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return err
}

// goBuild runs go and tells every second that it still does, with the last
// line it said.
func goBuild(ctx context.Context, dir string, tell func(Step, string), args ...string) error {
	cmd := goCommand(ctx, dir, args...)
	output, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w

	var said lines
	var reader sync.WaitGroup
	reader.Go(func() { said.readFrom(output) })
	result := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		w.Close()
		reader.Wait()
		return fmt.Errorf("start go: %w", err)
	}
	go func() {
		err := cmd.Wait()
		w.Close()
		reader.Wait()
		result <- err
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			tell(Building, said.last())
		case err := <-result:
			switch {
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case err != nil:
				return fmt.Errorf("%w\n%s", err, said.all())
			}
			return nil
		}
	}
}

// lines keeps the end of what a command says.
type lines struct {
	mu   sync.Mutex
	kept []string
}

const linesKept = 40

func (l *lines) readFrom(r io.Reader) {
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		l.mu.Lock()
		l.kept = append(l.kept, scanner.Text())
		if len(l.kept) > linesKept {
			l.kept = l.kept[1:]
		}
		l.mu.Unlock()
	}
	_, _ = io.Copy(io.Discard, r) // a line over the limit must not block the build
}

func (l *lines) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.kept) == 0 {
		return ""
	}
	return l.kept[len(l.kept)-1]
}

func (l *lines) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.kept, "\n")
}

// lock takes an exclusive lock on a file and calls waiting once if somebody
// else has it.
func lock(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			file.Close()
			return nil, err
		}
		if first {
			waiting()
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// keepUnused is how long a build that nobody asks for stays in the cache.
const keepUnused = 30 * 24 * time.Hour

// prune removes other builds of the same component that were not used for
// long. They are large; failing to remove one costs only the space.
func (c *Cache) prune(built Built) {
	others, _ := filepath.Glob(filepath.Join(c.Dir, string(built.Name)+"-*"))
	unfinished, _ := filepath.Glob(filepath.Join(c.Dir, "."+string(built.Name)+"-*"))
	for _, dir := range append(others, unfinished...) {
		info, err := os.Stat(dir)
		if err == nil && info.IsDir() && dir != built.Dir && time.Since(info.ModTime()) > keepUnused {
			_ = os.RemoveAll(dir)
		}
	}
}

// Default returns components from the user's cache for a caller that works
// somewhere inside a clone of Tidelock, such as a test.
func Default(ctx context.Context, names ...Name) (Set, error) {
	dir, err := DefaultDir()
	if err != nil {
		return nil, err
	}
	modules, err := FindModules(".")
	if err != nil {
		return nil, err
	}
	cache := Cache{Dir: dir, Modules: modules}
	return cache.Ensure(ctx, names...)
}
