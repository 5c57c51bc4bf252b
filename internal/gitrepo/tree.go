package gitrepo

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"

	"tidelock.dev"
)

// A File is a file at a commit. The content of a symbolic link is its target.
type File struct {
	Blob       tidelock.CommitID
	Path       string
	Mode       string // such as "100644"
	Size       int64
	Content    []byte
	Commit     tidelock.CommitID // what the revision names
	LastCommit tidelock.CommitID // the newest commit, from there back, that changed the file
}

// A TreeEntry is a file, a directory or a submodule in a directory.
type TreeEntry struct {
	ID   tidelock.CommitID
	Type string // "blob", "tree" or "commit", which is a submodule
	Mode string // such as "100644"
	Name string // the last segment of Path
	Path string
	Size int64 // of a blob
}

// File reads a file. One that is larger than limit bytes is of kind TooLarge,
// and its content is not read.
func (r *Repo) File(ctx context.Context, rev, path string, limit int64) (File, error) {
	f, err := r.Content(ctx, rev, path, limit)
	if err != nil {
		return File{}, err
	}
	out, err := r.disk.query(ctx, r.disk.command(r, "rev-list", "--max-count=1", string(f.Commit), "--", path))
	if err != nil {
		return File{}, err
	}
	f.LastCommit = tidelock.CommitID(strings.TrimSpace(string(out)))
	return f, nil
}

// Content is File without LastCommit, which takes a walk through history.
func (r *Repo) Content(ctx context.Context, rev, path string, limit int64) (File, error) {
	if err := validPath(path); err != nil {
		return File{}, err
	}
	commit, err := r.resolveCommit(ctx, rev)
	if err != nil {
		return File{}, err
	}
	out, err := r.disk.query(ctx, r.disk.command(r, "ls-tree", "-z", "-l", string(commit), "--", path))
	if err != nil {
		return File{}, err
	}
	entries, err := parseTree(string(out), "")
	if err != nil {
		return File{}, err
	}
	if len(entries) != 1 || entries[0].Type != "blob" || entries[0].Path != path {
		return File{}, tidelock.Errorf(tidelock.NotFound, "no file %.200q at %.200q", path, rev)
	}
	e := entries[0]
	if e.Size > limit {
		return File{}, tidelock.Errorf(tidelock.TooLarge, "file %.200q is %d bytes, more than %d", path, e.Size, limit)
	}
	content, err := r.disk.query(ctx, r.disk.command(r, "cat-file", "blob", string(e.ID)))
	if err != nil {
		return File{}, err
	}
	return File{Blob: e.ID, Path: path, Mode: e.Mode, Size: e.Size, Content: content, Commit: commit}, nil
}

// Tree lists a directory ("" is the root) in git's order, with all below it
// if recursive.
func (r *Repo) Tree(ctx context.Context, rev, dir string, recursive bool) ([]TreeEntry, error) {
	dir = strings.TrimSuffix(dir, "/")
	if err := validPath(dir); err != nil && dir != "" {
		return nil, err
	}
	commit, err := r.resolveCommit(ctx, rev)
	if err != nil {
		return nil, err
	}
	args := []string{"ls-tree", "-z", "-l"}
	if recursive {
		args = append(args, "-r", "-t")
	}
	out, err := r.disk.query(ctx, r.disk.command(r, append(args, string(commit)+":"+dir)...))
	if complains(err, "Not a valid object name", "not a tree object") {
		return nil, tidelock.Errorf(tidelock.NotFound, "no directory %.200q at %.200q", dir, rev)
	}
	if err != nil {
		return nil, err
	}
	return parseTree(string(out), dir)
}

// parseTree reads the output of ls-tree -z -l, each line of which is
// "<mode> <type> <object> <size>\t<path>".
func parseTree(out, dir string) ([]TreeEntry, error) {
	entries := []TreeEntry{}
	for line := range strings.SplitSeq(strings.TrimSuffix(out, "\x00"), "\x00") {
		if line == "" {
			continue
		}
		facts, name, ok := strings.Cut(line, "\t")
		f := strings.Fields(facts)
		if !ok || len(f) != 4 {
			return nil, fmt.Errorf("read a tree: git printed %q", line)
		}
		e := TreeEntry{Mode: f[0], Type: f[1], ID: tidelock.CommitID(f[2]), Name: path.Base(name), Path: path.Join(dir, name)}
		if e.Type == "blob" {
			size, err := strconv.ParseInt(f[3], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("read a tree: git printed %q", line)
			}
			e.Size = size
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// resolveCommit is resolve, peeled.
func (r *Repo) resolveCommit(ctx context.Context, rev string) (tidelock.CommitID, error) {
	object, err := r.resolve(ctx, rev)
	if err != nil {
		return "", err
	}
	commit, err := r.peel(ctx, tidelock.CommitID(object))
	if err != nil {
		return "", err
	}
	if commit == "" {
		return "", errNoCommit(rev)
	}
	return commit, nil
}

// validPath reports, as an error of kind Invalid, why p cannot be the path of
// a file in a repository.
func validPath(p string) error {
	if p == "" {
		return tidelock.Errorf(tidelock.Invalid, "a path is required")
	}
	if strings.Contains(p, "\x00") || len(p) > 4096 {
		return tidelock.Errorf(tidelock.Invalid, "path %.200q is not valid", p)
	}
	for segment := range strings.SplitSeq(p, "/") {
		switch strings.ToLower(segment) {
		case "", ".", "..", ".git":
			return tidelock.Errorf(tidelock.Invalid, "path %.200q has a segment %q", p, segment)
		}
	}
	return nil
}
