// Package gitrepo owns the bare repositories on disk and is the only code that
// runs git. It creates, removes and maintains them, serves packs, moves no ref
// by itself, and reads refs, commits and files.
//
// It knows nothing of people, rights or HTTP: whoever calls it has already
// decided. A repository is named by its project's id, so that a project can be
// renamed without touching the disk. One process owns a directory of
// repositories at a time.
//
//	disk, err := gitrepo.Open(ctx, gitrepo.Config{Dir: dir, Log: log})
//	err = disk.Create(ctx, 42, "main")
//	file, err := disk.Repo(42).File(ctx, "main", "README.md", 1<<20)
package gitrepo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"tidelock.dev"
)

// Config is what a Disk is made of.
type Config struct {
	Dir string       // required; made when missing
	Log *slog.Logger // required

	// MaxInputSize bounds the pack of one push, in bytes.
	MaxInputSize int64 // default 1 GiB

	// MaxPacks bounds the git processes that serve clients, MaxQueries those
	// that answer questions. More of them wait their turn, at most MaxWait.
	MaxPacks   int           // default 16 per CPU
	MaxQueries int           // default 4 per CPU
	MaxWait    time.Duration // default 1m

	// MaintainEvery is how often Maintain looks at repositories that were
	// pushed to; those with many pushes do not wait for it.
	MaintainEvery time.Duration // default 1h
}

// Disk is a directory of bare repositories. It is safe for concurrent use.
type Disk struct {
	dir           string
	log           *slog.Logger
	git           string // path of the executable
	version       string // such as "2.39.5"
	maxInput      int64
	maintainEvery time.Duration
	opened        time.Time
	packs         slots
	queries       slots
	archives      slots

	busy   chan struct{} // some repository has had many pushes
	mu     sync.Mutex
	pushes map[tidelock.ProjectID]int // since Maintain last looked
}

// The oldest git that the flags used here work with.
var oldestGit = [2]int{2, 39}

const (
	repoSuffix    = ".git"
	newPrefix     = "new-"
	deletedPrefix = "deleted-"
)

// Open prepares a directory of repositories, checks that git is there and
// recent enough, and removes what an interrupted Create or Delete left behind.
func Open(ctx context.Context, c Config) (*Disk, error) {
	d, err := open(ctx, c)
	if err != nil {
		return nil, err
	}
	return d, d.removeLeftovers()
}

// OpenBeside prepares a directory of repositories that another process owns,
// to read them while they change. It tidies nothing up.
func OpenBeside(ctx context.Context, c Config) (*Disk, error) {
	if _, err := os.Stat(c.Dir); err != nil {
		return nil, fmt.Errorf("find the directory of repositories: %w", err)
	}
	return open(ctx, c)
}

func open(ctx context.Context, c Config) (*Disk, error) {
	if c.Dir == "" || c.Log == nil {
		return nil, errors.New("gitrepo: Dir and Log are required")
	}
	cpus := runtime.GOMAXPROCS(0)
	d := &Disk{
		log:           c.Log.With("component", "gitrepo"),
		maxInput:      defaultTo(c.MaxInputSize, 1<<30),
		maintainEvery: defaultTo(c.MaintainEvery, time.Hour),
		opened:        time.Now(),
		packs:         newSlots(defaultTo(c.MaxPacks, 16*cpus), defaultTo(c.MaxWait, time.Minute)),
		queries:       newSlots(defaultTo(c.MaxQueries, 4*cpus), defaultTo(c.MaxWait, time.Minute)),
		archives:      newSlots(16*cpus, defaultTo(c.MaxWait, time.Minute)),
		busy:          make(chan struct{}, 1),
		pushes:        map[tidelock.ProjectID]int{},
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of repositories: %w", err)
	}
	// The real path, because git compares it with safe.directory.
	dir, err := filepath.Abs(c.Dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, fmt.Errorf("find the directory of repositories: %w", err)
	}
	d.dir = dir
	if err := d.findGit(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// MaxPacks is how many gits serve clients at a time.
func (d *Disk) MaxPacks() int { return cap(d.packs.free) }

func defaultTo[T int | int64 | time.Duration](value, otherwise T) T {
	if value <= 0 {
		return otherwise
	}
	return value
}

func (d *Disk) findGit(ctx context.Context) error {
	path, err := exec.LookPath("git")
	if err != nil {
		return fmt.Errorf("find git: install git %d.%d or newer: %w", oldestGit[0], oldestGit[1], err)
	}
	d.git = path
	out, err := d.query(ctx, d.command(nil, "version"))
	if err != nil {
		return err
	}
	var major, minor int
	d.version, _ = strings.CutPrefix(strings.TrimSpace(string(out)), "git version ")
	if _, err := fmt.Sscanf(d.version, "%d.%d", &major, &minor); err != nil {
		return fmt.Errorf("read the version of %s from %q: %w", path, out, err)
	}
	if major < oldestGit[0] || major == oldestGit[0] && minor < oldestGit[1] {
		return fmt.Errorf("%s is version %s; git %d.%d or newer is needed", path, d.version, oldestGit[0], oldestGit[1])
	}
	return nil
}

// GitVersion is the version of the git that runs here, such as "2.39.5".
func (d *Disk) GitVersion() string { return d.version }

// MaxInputSize is the most bytes that the pack of one push may have.
func (d *Disk) MaxInputSize() int64 { return d.maxInput }

func (d *Disk) removeLeftovers() error {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return fmt.Errorf("list the repositories: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), newPrefix) || strings.HasPrefix(e.Name(), deletedPrefix) {
			if err := os.RemoveAll(filepath.Join(d.dir, e.Name())); err != nil {
				return fmt.Errorf("remove the leftover %s: %w", e.Name(), err)
			}
		}
	}
	return nil
}

// Create makes an empty repository whose HEAD names defaultBranch. It appears
// whole or not at all, and survives power loss once Create has returned; that
// it exists already is no error and changes nothing.
func (d *Disk) Create(ctx context.Context, id tidelock.ProjectID, defaultBranch string) error {
	if err := tidelock.ValidRef(tidelock.BranchRef(defaultBranch)); err != nil {
		return err
	}
	final := d.path(id)
	if _, err := os.Stat(final); err == nil {
		return nil
	}
	temp, err := os.MkdirTemp(d.dir, newPrefix)
	if err != nil {
		return fmt.Errorf("create repository %d: %w", id, err)
	}
	defer os.RemoveAll(temp)
	init := d.command(nil, "init", "--quiet", "--bare", "--template=", "--initial-branch="+defaultBranch, temp)
	if _, err := d.query(ctx, init); err != nil {
		return fmt.Errorf("create repository %d: %w", id, err)
	}
	if err := syncTree(temp); err != nil {
		return fmt.Errorf("create repository %d: %w", id, err)
	}
	if err := os.Rename(temp, final); err != nil {
		if _, statErr := os.Stat(final); statErr == nil {
			return nil // somebody else was faster
		}
		return fmt.Errorf("create repository %d: %w", id, err)
	}
	return syncDir(d.dir)
}

// Delete removes a repository; that it is missing is no error. It is gone for
// every later caller before its files are.
func (d *Disk) Delete(ctx context.Context, id tidelock.ProjectID) error {
	grave, err := os.MkdirTemp(d.dir, deletedPrefix)
	if err != nil {
		return fmt.Errorf("delete repository %d: %w", id, err)
	}
	defer os.RemoveAll(grave) // what cannot be removed now is removed by the next Open
	err = os.Rename(d.path(id), filepath.Join(grave, "repository"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete repository %d: %w", id, err)
	}
	return syncDir(d.dir)
}

// IDs lists the repositories there are, in no particular order.
func (d *Disk) IDs(ctx context.Context) ([]tidelock.ProjectID, error) {
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return nil, fmt.Errorf("list the repositories: %w", err)
	}
	ids := make([]tidelock.ProjectID, 0, len(entries))
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), repoSuffix)
		if !ok {
			continue
		}
		if id, err := strconv.ParseInt(name, 10, 64); err == nil {
			ids = append(ids, tidelock.ProjectID(id))
		}
	}
	return ids, nil
}

// Repo names a repository, whether or not it exists. Reading one that does
// not is an error of kind NotFound.
func (d *Disk) Repo(id tidelock.ProjectID) *Repo {
	return &Repo{disk: d, id: id, dir: d.path(id)}
}

func (d *Disk) path(id tidelock.ProjectID) string {
	return filepath.Join(d.dir, strconv.FormatInt(int64(id), 10)+repoSuffix)
}

// A Repo is one repository on a Disk.
type Repo struct {
	disk *Disk
	id   tidelock.ProjectID
	dir  string
}

// Path is the repository's directory.
func (r *Repo) Path() string { return r.dir }

// exists reports, as an error of kind NotFound, that there is no repository.
func (r *Repo) exists() error {
	if _, err := os.Stat(r.dir); errors.Is(err, fs.ErrNotExist) {
		return tidelock.Errorf(tidelock.NotFound, "project %d has no repository", r.id)
	} else if err != nil {
		return fmt.Errorf("open repository %d: %w", r.id, err)
	}
	return nil
}

// SetDefaultBranch makes HEAD name a branch, which need not exist yet.
func (r *Repo) SetDefaultBranch(ctx context.Context, branch string) error {
	name := tidelock.BranchRef(branch)
	if err := tidelock.ValidRef(name); err != nil {
		return err
	}
	if err := r.exists(); err != nil {
		return err
	}
	if _, err := r.disk.query(ctx, r.disk.command(r, "symbolic-ref", "HEAD", string(name))); err != nil {
		return err
	}
	return syncDir(r.dir)
}

// syncTree makes a directory and all below it durable.
func syncTree(root string) error {
	return filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncDir(path)
	})
}

// syncDir makes what a directory (or file) holds durable: git syncs the files
// it writes, but not the directory entries that name them.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
