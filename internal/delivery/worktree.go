package delivery

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

// OpenDir makes a Tree of a directory, as it would be if all of it were
// committed. Nothing outside is read, wherever links lead.
func OpenDir(dir string) (*Dir, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open working tree: %w", err)
	}
	return &Dir{root}, nil
}

// A Dir is a working tree.
type Dir struct{ root *os.Root }

// Close ends the use of the tree.
func (d *Dir) Close() error { return d.root.Close() }

func (d *Dir) Entry(name string) (gitrepo.TreeEntry, error) {
	if !fs.ValidPath(name) {
		return gitrepo.TreeEntry{}, tidelock.Errorf(tidelock.Invalid, "path %.200q is not valid", name)
	}
	// What is below a link is not in the tree, even if the link leads inside.
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if info, err := d.root.Lstat(dir); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return gitrepo.TreeEntry{}, tidelock.Errorf(tidelock.NotFound, "%.200q is a symbolic link", dir)
		}
	}
	info, err := d.root.Lstat(name)
	if err != nil {
		return gitrepo.TreeEntry{}, notFound(err)
	}
	return treeEntry(info, name), nil
}

func treeEntry(info fs.FileInfo, name string) gitrepo.TreeEntry {
	e := gitrepo.TreeEntry{Type: "blob", Mode: "100644", Name: path.Base(name), Path: name, Size: info.Size()}
	switch mode := info.Mode(); {
	case mode.IsDir():
		e.Type, e.Mode = "tree", "040000"
	case mode&fs.ModeSymlink != 0, !mode.IsRegular():
		e.Mode = linkMode // a pipe or a device cannot be committed; it is refused as a link is
	case mode&0o100 != 0:
		e.Mode = executableMode
	}
	return e
}

func (d *Dir) Dir(name string) ([]gitrepo.TreeEntry, error) {
	e, err := d.Entry(name)
	if err != nil {
		return nil, err
	}
	if e.Type != "tree" {
		return nil, tidelock.Errorf(tidelock.NotFound, "%.200q is not a directory", name)
	}
	found, err := fs.ReadDir(d.root.FS(), name)
	if err != nil {
		return nil, notFound(err)
	}
	entries := make([]gitrepo.TreeEntry, 0, len(found))
	for _, f := range found {
		if strings.EqualFold(f.Name(), ".git") {
			continue
		}
		info, err := f.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		entries = append(entries, treeEntry(info, path.Join(name, f.Name())))
	}
	return entries, nil
}

func (d *Dir) Content(e gitrepo.TreeEntry, limit int64) ([]byte, error) {
	f, err := d.root.Open(e.Path)
	if err != nil {
		return nil, notFound(err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(content)) > limit {
		return nil, tidelock.Errorf(tidelock.TooLarge, "it has more than %d bytes", limit)
	}
	return content, err
}

func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return tidelock.Errorf(tidelock.NotFound, "%v", err)
	}
	return err
}
