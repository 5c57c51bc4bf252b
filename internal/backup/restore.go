package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"tidelock.dev"
)

// Restore makes the data of an archive that of a server that does not run. The
// folder and the database must be empty; the caller keeps servers away. All of
// the archive is read and checked before anything is put in its place, and on
// an error, also by cancelling, everything is empty again.
func Restore(ctx context.Context, d Data, archive io.Reader, o Options) (_ Summary, err error) {
	if err := d.vacant(); err != nil {
		return Summary{}, err
	}
	stage := filepath.Join(d.Dir, Unfinished)
	if err := os.Mkdir(stage, 0o700); err != nil {
		return Summary{}, fmt.Errorf("restore: %w", err)
	}
	r := &restoration{data: d, stage: stage}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.undo())
		}
	}()
	x := &extraction{files: d.Files, dir: stage, keep: true, options: o, begun: func(h header) error {
		return h.Database.Vacant(ctx, d.Database)
	}}
	if err := x.run(ctx, archive); err != nil {
		return Summary{}, err
	}
	if err := r.finishRepositories(ctx, x); err != nil {
		return Summary{}, err
	}
	o.Progress.say("loading the database")
	if err := r.finish(ctx, x); err != nil {
		return Summary{}, err
	}
	if err := errors.Join(os.RemoveAll(stage), syncDir(d.Dir)); err != nil {
		return Summary{}, fmt.Errorf("tidy up after the restore: %w", err)
	}
	return x.summary(), nil
}

// notData may be in an empty folder: the lock that the caller holds, and what
// a file system puts at its root.
var notData = []string{"server.lock", "lost+found"}

func (d Data) vacant() error {
	entries, err := os.ReadDir(d.Dir)
	if err != nil {
		return fmt.Errorf("look into the data folder: %w", err)
	}
	for _, e := range entries {
		switch {
		case e.Name() == Unfinished:
			return tidelock.Errorf(tidelock.Conflict, "an earlier restore into %s was cut short; empty the folder and its database first", d.Dir)
		case !slices.Contains(notData, e.Name()):
			return tidelock.Errorf(tidelock.Conflict, "%s is not empty: it has %q; restore into an empty folder", d.Dir, e.Name())
		}
	}
	return nil
}

// A restoration puts what was extracted in its place.
type restoration struct {
	data  Data
	stage string
	made  []string // below the data folder, or the database
}

// finishRepositories adds the empty ones, and sets what each HEAD names.
// Those that are missing the server makes at its start.
func (r *restoration) finishRepositories(ctx context.Context, x *extraction) error {
	for _, to := range x.manifest.Repositories {
		if to.Missing {
			continue
		}
		branch := to.DefaultBranch
		if branch == "" {
			branch = "main"
		}
		if err := x.disk.Create(ctx, to.ID, branch); err != nil {
			return err
		}
		if err := x.disk.Repo(to.ID).SetDefaultBranch(ctx, branch); err != nil {
			return err
		}
	}
	return nil
}

// finish loads the database and moves the rest. What comes last, a commit or
// the renaming of one file, makes the restore done.
func (r *restoration) finish(ctx context.Context, x *extraction) error {
	open := func(table string) (io.ReadCloser, error) { return os.Open(x.tableFile(table)) }
	name, isFile := strings.CutPrefix(r.data.Database, "sqlite:")
	if !isFile {
		return x.header.Database.Load(ctx, r.data.Database, open, func() error { return r.move(x) })
	}
	temp := name + ".restore"
	if err := removeDatabase(temp); err != nil {
		return err
	}
	r.made = append(r.made, temp)
	if err := x.header.Database.Load(ctx, "sqlite:"+temp, open, nil); err != nil {
		return err
	}
	if err := r.move(x); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.Rename(temp, name); err != nil {
		return fmt.Errorf("restore the database: %w", err)
	}
	r.made = append(r.made, name)
	return syncDir(filepath.Dir(name))
}

// move takes repositories and files out of the stage.
func (r *restoration) move(x *extraction) error {
	moves := [][2]string{{filepath.Join(r.stage, repositories), r.data.repositories()}}
	if from := filepath.Join(r.stage, content); exists(from) {
		moves = append(moves, [2]string{from, r.data.content()})
	}
	for _, name := range r.data.Files {
		from := filepath.Join(r.stage, "files", filepath.FromSlash(name))
		if !exists(from) {
			continue
		}
		moves = append(moves, [2]string{from, r.data.file(name)})
	}
	for _, m := range moves {
		top, _, _ := strings.Cut(strings.TrimPrefix(m[1], r.data.Dir+string(filepath.Separator)), string(filepath.Separator))
		r.made = append(r.made, filepath.Join(r.data.Dir, top))
		if err := os.MkdirAll(filepath.Dir(m[1]), 0o700); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		if err := os.Rename(m[0], m[1]); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		if err := syncDir(filepath.Dir(m[1])); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// undo removes what was made; the folder was empty before.
func (r *restoration) undo() error {
	var errs []error
	for _, path := range r.made {
		errs = append(errs, os.RemoveAll(path), removeDatabase(path))
	}
	return errors.Join(append(errs, os.RemoveAll(r.stage))...)
}

// removeDatabase removes a SQLite database and what it leaves beside it.
func removeDatabase(path string) error {
	var errs []error
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
