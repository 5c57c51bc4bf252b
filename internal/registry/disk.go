package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/distribution/distribution/v3/registry/storage/driver"
)

// A disk is a medium in a folder. Unlike distribution's own it makes durable
// only what somebody is told of, which spares most of the waiting for the disk
// that a push is made of.
type disk struct {
	dir string

	// folders is held for writing while a folder is made that others will use,
	// until it is there for good.
	folders sync.RWMutex
}

func openDisk(dir string) (*disk, error) {
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = syncFolders([]string{filepath.Dir(dir)})
	}
	if err != nil {
		return nil, fmt.Errorf("make the folder of the registry: %w", err)
	}
	return &disk{dir: dir}, nil
}

func (d *disk) full(path string) string { return filepath.Join(d.dir, path) }

func pathError(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return driver.PathNotFoundError{Path: path, DriverName: "disk"}
	}
	return err
}

func (d *disk) GetContent(_ context.Context, path string) ([]byte, error) {
	content, err := os.ReadFile(d.full(path))
	return content, pathError(path, err)
}

// PutContent puts a file in the place of what was there, whole or not at all:
// others may be reading it. A crash may leave its beginning among the uploads.
func (d *disk) PutContent(_ context.Context, path string, content []byte) error {
	f, err := d.newUpload()
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = d.rename(f.Name(), d.full(path))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func (d *disk) newUpload() (*os.File, error) {
	f, err := os.CreateTemp(d.full(uploads), "content-")
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(d.full(uploads), 0o700); err != nil {
			return nil, err
		}
		f, err = os.CreateTemp(d.full(uploads), "content-")
	}
	return f, err
}

// rename moves a file to where it stays.
func (d *disk) rename(from, to string) error {
	folder := filepath.Dir(to)
	for {
		if err := d.makeFolder(folder); err != nil {
			return err
		}
		switch err := os.Rename(from, to); {
		case err == nil:
			return syncFolders([]string{folder, filepath.Dir(folder)})
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if _, err := os.Lstat(from); err != nil {
			return err
		}
		// The folder was removed in between.
	}
}

func (d *disk) Reader(_ context.Context, path string, offset int64) (io.ReadCloser, error) {
	f, err := os.Open(d.full(path))
	if err != nil {
		return nil, pathError(path, err)
	}
	if offset > 0 {
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

func (d *disk) Writer(_ context.Context, path string, append bool) (driver.FileWriter, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND
	if !append {
		flags |= os.O_TRUNC
	}
	f, err := os.OpenFile(d.full(path), flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(d.full(path)), 0o700); err != nil {
			return nil, err
		}
		f, err = os.OpenFile(d.full(path), flags, 0o600)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &diskWriter{File: f, size: info.Size()}, nil
}

// A diskWriter appends to a file, which reaches the disk with Commit.
type diskWriter struct {
	*os.File
	size int64
}

func (w *diskWriter) Write(p []byte) (int, error) {
	n, err := w.File.Write(p)
	w.size += int64(n)
	return n, err
}

func (w *diskWriter) Size() int64 { return w.size }

func (w *diskWriter) Commit(context.Context) error { return w.Sync() }

func (w *diskWriter) Cancel(context.Context) error {
	return errors.Join(w.Close(), os.Remove(w.Name()))
}

func (d *disk) Stat(_ context.Context, path string) (driver.FileInfo, error) {
	info, err := os.Stat(d.full(path))
	if err != nil {
		return nil, pathError(path, err)
	}
	return diskFile{path, info}, nil
}

type diskFile struct {
	path string
	os.FileInfo
}

func (f diskFile) Path() string { return f.path }

func (d *disk) List(_ context.Context, path string) ([]string, error) {
	entries, err := os.ReadDir(d.full(path))
	if err != nil {
		return nil, pathError(path, err)
	}
	paths := make([]string, len(entries))
	for i, e := range entries {
		paths[i] = path + "/" + e.Name()
	}
	return paths, nil
}

func (d *disk) Move(_ context.Context, from, to string) error {
	return pathError(from, d.rename(d.full(from), d.full(to)))
}

func (d *disk) Delete(_ context.Context, path string) error {
	if _, err := os.Lstat(d.full(path)); err != nil {
		return pathError(path, err)
	}
	return os.RemoveAll(d.full(path))
}

// Walk calls f for every file and folder below a path; what is removed
// meanwhile is passed over.
func (d *disk) Walk(ctx context.Context, path string, f driver.WalkFn, _ ...func(*driver.WalkOptions)) error {
	err := filepath.WalkDir(d.full(path), func(full string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case full == d.full(path):
			return err
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		below, err := filepath.Rel(d.dir, full)
		if err != nil {
			return err
		}
		err = f(diskFile{"/" + filepath.ToSlash(below), info})
		if errors.Is(err, driver.ErrSkipDir) {
			return fs.SkipDir
		}
		return err
	})
	return pathError(path, err)
}

// makeFolder makes a folder for one file. Those above it, in which others make
// theirs at the same time, have reached the disk when it returns.
func (d *disk) makeFolder(folder string) error {
	for {
		d.folders.RLock()
		err := os.Mkdir(folder, 0o700)
		d.folders.RUnlock()
		switch {
		case err == nil, errors.Is(err, fs.ErrExist):
			return nil
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		if err := d.makeShared(filepath.Dir(folder)); err != nil {
			return err
		}
	}
}

// makeShared makes a folder and those above it, which nobody else finds before
// they have reached the disk.
func (d *disk) makeShared(folder string) error {
	d.folders.Lock()
	defer d.folders.Unlock()
	var absent []string
	for at := folder; ; at = filepath.Dir(at) {
		if _, err := os.Lstat(at); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		absent = append(absent, at)
	}
	for _, folder := range slices.Backward(absent) {
		if err := os.Mkdir(folder, 0o700); err != nil {
			return err
		}
		if err := syncFolders([]string{filepath.Dir(folder)}); err != nil {
			return err
		}
	}
	return nil
}

// syncFolders makes the entries of folders durable.
func syncFolders(folders []string) error {
	for _, folder := range folders {
		f, err := os.Open(folder)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
