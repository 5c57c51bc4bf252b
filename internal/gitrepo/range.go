package gitrepo

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"tidelock.dev"
)

// A CommitRange is what a ref gained: commits that can be reached from To and
// not from any of Without.
type CommitRange struct {
	To      tidelock.CommitID
	Without []tidelock.CommitID
	Newest  int // bounds how many are read; those left out are only counted
}

// A ChangedCommit is a commit and the paths that it changed against its first
// parent. Paths are valid UTF-8.
type ChangedCommit struct {
	Commit
	Added, Modified, Removed []string
}

// Changed reads the newest commits of a range, newest first, and counts all.
// Objects of Without that are gone leave nothing out.
func (r *Repo) Changed(ctx context.Context, in CommitRange) ([]ChangedCommit, int, error) {
	if err := r.exists(); err != nil {
		return nil, 0, err
	}
	revs := []string{string(in.To)}
	for _, id := range append([]tidelock.CommitID{in.To}, in.Without...) {
		if !isObjectName(id) {
			return nil, 0, fmt.Errorf("read commits of %q: not a full object name", id)
		}
	}
	for _, id := range in.Without {
		if commit, err := r.peel(ctx, id); err != nil {
			return nil, 0, err
		} else if commit != "" {
			revs = append(revs, "^"+string(commit))
		}
	}
	out, err := r.disk.query(ctx, r.disk.command(r, append([]string{"rev-list", "--ignore-missing", "--count"}, append(revs, "--")...)...))
	if err != nil {
		return nil, 0, err
	}
	total, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		return nil, 0, fmt.Errorf("count commits: %w", err)
	}
	if total == 0 {
		return []ChangedCommit{}, 0, nil
	}
	args := append([]string{"log", "-z", "--no-show-signature", "--no-color", "--encoding=UTF-8", "--date=raw",
		"--format=tformat:%H%x00%T%x00%P%x00%an%x00%ae%x00%ad%x00%cn%x00%ce%x00%cd%x00%s%x00%B",
		"--max-count=" + strconv.Itoa(in.Newest)}, append(revs, "--")...)
	out, err = r.disk.query(ctx, r.disk.command(r, args...))
	if err != nil {
		return nil, 0, err
	}
	commits, err := parseCommits(string(out))
	if err != nil {
		return nil, 0, err
	}
	changed := make([]ChangedCommit, len(commits))
	for i, c := range commits {
		changed[i].Commit = c
		if err := r.readChanges(ctx, &changed[i]); err != nil {
			return nil, 0, err
		}
	}
	return changed, total, nil
}

func (r *Repo) readChanges(ctx context.Context, c *ChangedCommit) error {
	args := []string{"diff-tree", "-r", "-z", "--root", "--no-renames", "--name-status", "--no-commit-id"}
	if len(c.Parents) > 0 {
		args = append(args, string(c.Parents[0]))
	}
	out, err := r.disk.query(ctx, r.disk.command(r, append(args, string(c.ID), "--")...))
	if err != nil {
		return err
	}
	fields := strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	for ; len(fields) >= 2; fields = fields[2:] {
		path := strings.ToValidUTF8(fields[1], "\uFFFD")
		switch fields[0] {
		case "A":
			c.Added = append(c.Added, path)
		case "D":
			c.Removed = append(c.Removed, path)
		default: // also a change of mode or type
			c.Modified = append(c.Modified, path)
		}
	}
	return nil
}
