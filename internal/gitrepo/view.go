package gitrepo

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"strings"

	"tidelock.dev"
)

// A View reads files of one commit by their paths, all with one git process.
// It reads no more of the commit than it is asked for and keeps the
// directories that it has read, up to a bound.
type View struct {
	commit  Commit
	objects *objects
	dirs    map[string][]TreeEntry // by path; "." is the root
	kept    int                    // entries of dirs
}

// maxKept is how many entries of directories a View keeps. One object of Git
// can be a directory under any number of names.
const maxKept = 500_000

// maxTree is the size, in bytes, above which a directory is not read.
const maxTree = 8 << 20

// View runs fn with a View of a commit, which is valid until fn returns.
func (r *Repo) View(ctx context.Context, commit tidelock.CommitID, fn func(*View) error) error {
	if !isObjectName(commit) {
		return errNoCommit(string(commit))
	}
	return r.withObjects(ctx, func(o *objects) error {
		kind, content, err := o.get(commit)
		if err != nil {
			return err
		}
		if kind != "commit" {
			return errNoCommit(string(commit))
		}
		v := &View{commit: parseCommitObject(commit, content), objects: o, dirs: map[string][]TreeEntry{}}
		root, err := v.read(v.commit.Tree, ".")
		if err != nil {
			return err
		}
		v.dirs["."] = root
		return fn(v)
	})
}

// parseCommitObject reads the headers that a View needs.
func parseCommitObject(id tidelock.CommitID, content []byte) Commit {
	c := Commit{ID: id}
	headers, _, _ := bytes.Cut(content, []byte("\n\n"))
	for line := range strings.SplitSeq(string(headers), "\n") {
		switch name, value, _ := strings.Cut(line, " "); name {
		case "tree":
			c.Tree = tidelock.CommitID(value)
		case "committer":
			if i := strings.LastIndex(value, "> "); i >= 0 {
				c.Committer.When = parseRawDate(value[i+2:])
			}
		}
	}
	return c
}

// Commit is the commit that is viewed: its name, its tree, and when it was
// committed.
func (v *View) Commit() Commit { return v.commit }

// Entry finds what is at a path; "." is the root. It does not follow symbolic
// links. Nothing there is of kind NotFound.
func (v *View) Entry(name string) (TreeEntry, error) {
	if name == "." {
		return TreeEntry{ID: v.commit.Tree, Type: "tree", Mode: "040000", Name: ".", Path: "."}, nil
	}
	if err := validPath(name); err != nil {
		return TreeEntry{}, err
	}
	siblings, err := v.Dir(path.Dir(name))
	if err != nil {
		return TreeEntry{}, err
	}
	for _, e := range siblings {
		if e.Path == name {
			return e, nil
		}
	}
	return TreeEntry{}, tidelock.Errorf(tidelock.NotFound, "nothing is at %.200q", name)
}

// Dir lists a directory in git's order, without the sizes of files. Something
// else at the path is of kind NotFound, one of more than maxTree bytes of kind
// TooLarge.
func (v *View) Dir(name string) ([]TreeEntry, error) {
	if entries, known := v.dirs[name]; known {
		return entries, nil
	}
	e, err := v.Entry(name)
	if err != nil {
		return nil, err
	}
	if e.Type != "tree" {
		return nil, tidelock.Errorf(tidelock.NotFound, "%.200q is not a directory", name)
	}
	entries, err := v.read(e.ID, name)
	if err != nil {
		return nil, err
	}
	if v.kept += len(entries); v.kept > maxKept {
		v.kept, v.dirs = len(entries), map[string][]TreeEntry{".": v.dirs["."]}
	}
	v.dirs[name] = entries
	return entries, nil
}

// read reads a tree object, whose entries are "<mode> <name>\0<binary id>".
func (v *View) read(id tidelock.CommitID, dir string) ([]TreeEntry, error) {
	kind, content, err := v.objects.getAtMost(id, maxTree)
	if tidelock.KindOf(err) == tidelock.TooLarge {
		return nil, tidelock.Errorf(tidelock.TooLarge, "the directory %.200q has too many files: %v", dir, err)
	}
	if err != nil {
		return nil, err
	}
	if kind != "tree" {
		return nil, fmt.Errorf("read tree %s: it is a %s", id, kind)
	}
	entries := []TreeEntry{}
	width := len(id) / 2
	for len(content) > 0 {
		header, rest, ok := bytes.Cut(content, []byte{0})
		mode, name, named := strings.Cut(string(header), " ")
		if !ok || !named || len(rest) < width {
			return nil, fmt.Errorf("read tree %s: it is cut short", id)
		}
		e := TreeEntry{ID: tidelock.CommitID(hex.EncodeToString(rest[:width])), Type: "blob", Mode: mode, Name: name, Path: path.Join(dir, name)}
		switch mode {
		case "40000":
			e.Type, e.Mode = "tree", "040000"
		case "160000":
			e.Type = "commit"
		}
		entries = append(entries, e)
		content = rest[width:]
	}
	return entries, nil
}

// Content reads a file of at most limit bytes. What is larger is of kind
// TooLarge, and read past.
func (v *View) Content(e TreeEntry, limit int64) ([]byte, error) {
	kind, content, err := v.objects.getAtMost(e.ID, limit)
	if err != nil {
		return nil, err
	}
	if kind != "blob" {
		return nil, tidelock.Errorf(tidelock.NotFound, "%.200q is not a file", e.Path)
	}
	return content, nil
}

// getAtMost is get with a smaller limit, after which further objects can be
// read.
func (o *objects) getAtMost(id tidelock.CommitID, limit int64) (kind string, content []byte, err error) {
	kind, size, err := o.ask(id)
	if err != nil {
		return "", nil, err
	}
	if size > limit {
		if _, err := io.CopyN(io.Discard, o.out, size+1); err != nil {
			return "", nil, fmt.Errorf("read object %s: %w", id, err)
		}
		return "", nil, tidelock.Errorf(tidelock.TooLarge, "it has %d bytes, more than %d", size, limit)
	}
	content, err = o.content(id, size)
	return kind, content, err
}
