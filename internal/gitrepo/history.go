package gitrepo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidelock.dev"
)

// A Commit is a commit as git shows it. Text is valid UTF-8.
type Commit struct {
	ID        tidelock.CommitID
	Tree      tidelock.CommitID
	Parents   []tidelock.CommitID
	Author    Signature
	Committer Signature
	Title     string // the first paragraph, on one line
	Message   string // all of it, title included
}

// A Signature says who and when, in the zone they were in.
type Signature struct {
	Name  string
	Email string
	When  time.Time
}

// A CommitQuery asks for part of a history, newest first.
type CommitQuery struct {
	Rev         string            // where to start; required unless All
	All         bool              // start at every branch and tag
	Without     tidelock.CommitID // leave out what can be reached from it; "" for nothing
	Path        string            // only commits that changed it; "" for all
	Author      string            // only commits whose author's name or address has it; "" for all
	FirstParent bool              // follow only the first parent of merges
	Topological bool              // no parent before all its children
	Since       time.Time
	Until       time.Time
	Page        tidelock.Page
}

// Commit reads the commit that rev names: a full ref name, a branch, a tag,
// HEAD or a hexadecimal object name of at least 7 digits, and nothing else.
func (r *Repo) Commit(ctx context.Context, rev string) (Commit, error) {
	commits, err := r.Commits(ctx, CommitQuery{Rev: rev, Page: tidelock.Page{Number: 1, PerPage: 1}})
	if err != nil {
		return Commit{}, err
	}
	if len(commits) == 0 {
		return Commit{}, errNoCommit(rev)
	}
	return commits[0], nil
}

const maxAuthor = 1024

// Commits lists commits, newest first.
func (r *Repo) Commits(ctx context.Context, q CommitQuery) ([]Commit, error) {
	if err := validPath(q.Path); err != nil && q.Path != "" {
		return nil, err
	}
	from := []string{"--branches", "--tags"}
	if q.All {
		if err := r.exists(); err != nil {
			return nil, err
		}
	} else {
		object, err := r.resolve(ctx, q.Rev)
		if err != nil {
			return nil, err
		}
		from = []string{object}
	}
	if q.Without != "" {
		if !isObjectName(q.Without) {
			return nil, errNoCommit(string(q.Without))
		}
		from = append(from, "^"+string(q.Without))
	}
	args := logArgs()
	if q.Page.PerPage > 0 {
		args = append(args,
			"--max-count="+strconv.Itoa(q.Page.PerPage),
			"--skip="+strconv.Itoa(max(0, q.Page.Number-1)*q.Page.PerPage))
	}
	if !q.Since.IsZero() {
		args = append(args, "--max-age="+strconv.FormatInt(q.Since.Unix(), 10))
	}
	if !q.Until.IsZero() {
		args = append(args, "--min-age="+strconv.FormatInt(q.Until.Unix(), 10))
	}
	if len(q.Author) > maxAuthor { // of a text that is too long git makes no pattern, or no argument
		return nil, tidelock.Errorf(tidelock.Invalid, "the author to look for is longer than %d bytes", maxAuthor)
	}
	if q.Author != "" {
		args = append(args, "--fixed-strings", "--regexp-ignore-case", "--author="+q.Author)
	}
	if q.FirstParent {
		args = append(args, "--first-parent")
	}
	if q.Topological {
		args = append(args, "--topo-order")
	}
	args = append(append(args, from...), "--")
	if q.Path != "" {
		args = append(args, q.Path)
	}
	out, err := r.disk.query(ctx, r.disk.command(r, args...))
	if complains(err, "bad object", "unknown revision", "not a commit") {
		return nil, errNoCommit(q.Rev)
	}
	if err != nil {
		return nil, err
	}
	return parseCommits(string(out))
}

// logArgs ask git for commits in the way that parseCommits reads.
func logArgs() []string {
	return []string{"log", "-z", "--no-show-signature", "--no-color", "--encoding=UTF-8", "--date=raw",
		"--format=tformat:%H%x00%T%x00%P%x00%an%x00%ae%x00%ad%x00%cn%x00%ce%x00%cd%x00%s%x00%B"}
}

// CommitsByID reads many commits at once. Those that do not exist are an error
// of kind NotFound.
func (r *Repo) CommitsByID(ctx context.Context, ids ...tidelock.CommitID) (map[tidelock.CommitID]Commit, error) {
	found := make(map[tidelock.CommitID]Commit, len(ids))
	if len(ids) == 0 {
		return found, nil
	}
	in, err := r.lines(ids)
	if err != nil {
		return nil, err
	}
	cmd := r.disk.command(r, append(logArgs(), "--no-walk=unsorted", "--stdin")...)
	cmd.Stdin = strings.NewReader(in)
	out, err := r.disk.query(ctx, cmd)
	if complains(err, "bad object", "not a commit") {
		return nil, errNoCommit(string(ids[0]))
	}
	if err != nil {
		return nil, err
	}
	commits, err := parseCommits(string(out))
	for _, c := range commits {
		found[c.ID] = c
	}
	return found, err
}

// CommitsAmong tells which of many ids are of commits.
func (r *Repo) CommitsAmong(ctx context.Context, ids ...tidelock.CommitID) (map[tidelock.CommitID]bool, error) {
	found := make(map[tidelock.CommitID]bool, len(ids))
	ids = slices.DeleteFunc(slices.Clone(ids), func(id tidelock.CommitID) bool { return !isObjectName(id) })
	for some := range slices.Chunk(ids, commitsAtOnce) {
		in, err := r.lines(some)
		if err != nil {
			return nil, err
		}
		cmd := r.disk.command(r, "cat-file", "--batch-check=%(objectname) %(objecttype)")
		cmd.Stdin = strings.NewReader(in)
		out, err := r.disk.query(ctx, cmd)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(out)) {
			if id, kind, _ := strings.Cut(strings.TrimSpace(line), " "); kind == "commit" {
				found[tidelock.CommitID(id)] = true
			}
		}
	}
	return found, nil
}

// commitsAtOnce is about how many ids one git is asked.
const commitsAtOnce = 10_000

// lines are object names as git reads them from its standard input.
func (r *Repo) lines(ids []tidelock.CommitID) (string, error) {
	var b strings.Builder
	for _, id := range ids {
		if !isObjectName(id) {
			return "", errNoCommit(string(id))
		}
		b.WriteString(string(id) + "\n")
	}
	return b.String(), r.exists()
}

// Stats count the lines that a commit added and took away, against its first
// parent.
type Stats struct {
	Additions int
	Deletions int
}

// Stats counts for many commits at once. Contents larger than 1 MiB count as
// binary: they have no lines. When that takes too long, commits are left out.
func (r *Repo) Stats(ctx context.Context, commits ...tidelock.CommitID) (map[tidelock.CommitID]Stats, error) {
	counted := make(map[tidelock.CommitID]Stats, len(commits))
	if len(commits) == 0 {
		return counted, nil
	}
	in, err := r.lines(commits)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, diffTimeout)
	defer cancel()
	cmd := r.disk.command(r, append(smallDiffs, "diff-tree", "--stdin", "--root", "--always", "-r", "--diff-merges=first-parent", "-M", "--shortstat")...)
	cmd.Stdin = strings.NewReader(in)
	var at tidelock.CommitID
	err = r.stream(ctx, cmd, func(out *bufio.Reader) error {
		for {
			line, err := out.ReadString('\n')
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			line = strings.TrimSpace(line)
			if isObjectName(tidelock.CommitID(line)) {
				at = tidelock.CommitID(line)
				counted[at] = Stats{}
				continue
			}
			// Such as "2 files changed, 3 insertions(+), 1 deletion(-)".
			s := counted[at]
			for part := range strings.SplitSeq(line, ", ") {
				number, what, _ := strings.Cut(part, " ")
				n, err := strconv.Atoi(number)
				switch {
				case err != nil:
				case strings.HasPrefix(what, "insertion"):
					s.Additions = n
				case strings.HasPrefix(what, "deletion"):
					s.Deletions = n
				}
			}
			counted[at] = s
		}
	})
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		delete(counted, at) // which was being counted
		return counted, nil
	case complains(err, "bad object", "not a commit"):
		return nil, errNoCommit(string(commits[0]))
	}
	return counted, err
}

// A Contributor is somebody who wrote commits. Text is valid UTF-8.
type Contributor struct {
	Name    string
	Email   string
	Commits int
}

// Contributors lists the authors of a history, merges left out, by the number
// of their commits.
func (r *Repo) Contributors(ctx context.Context, rev string) ([]Contributor, error) {
	commit, err := r.resolveCommit(ctx, rev)
	if err != nil {
		return nil, err
	}
	out, err := r.disk.query(ctx, r.disk.command(r, "shortlog", "--summary", "--numbered", "--email", "--no-merges", string(commit)))
	if err != nil {
		return nil, err
	}
	people := []Contributor{}
	for line := range strings.Lines(strings.ToValidUTF8(string(out), "\uFFFD")) {
		count, who, ok := strings.Cut(strings.TrimSpace(line), "\t")
		n, err := strconv.Atoi(count)
		if !ok || err != nil {
			return nil, fmt.Errorf("read contributors: git printed %q", line)
		}
		c := Contributor{Name: who, Commits: n}
		if i := strings.LastIndex(who, " <"); i >= 0 {
			c.Name, c.Email = who[:i], strings.TrimSuffix(who[i+2:], ">")
		}
		people = append(people, c)
	}
	return people, nil
}

// MergeBase finds the best commit that all of the revisions have in their
// history; its kind is NotFound when there is none.
func (r *Repo) MergeBase(ctx context.Context, revs ...string) (tidelock.CommitID, error) {
	args := []string{"merge-base", "--octopus"}
	for _, rev := range revs {
		commit, err := r.resolveCommit(ctx, rev)
		if err != nil {
			return "", err
		}
		args = append(args, string(commit))
	}
	out, err := r.disk.query(ctx, r.disk.command(r, args...))
	if exitCode(err) == 1 {
		return "", tidelock.Errorf(tidelock.NotFound, "no common history")
	}
	return tidelock.CommitID(strings.TrimSpace(string(out))), err
}

// RefsContaining lists the branches and tags from which a commit can be
// reached, in order of name.
func (r *Repo) RefsContaining(ctx context.Context, commit tidelock.CommitID) ([]tidelock.RefName, error) {
	if !isObjectName(commit) {
		return nil, errNoCommit(string(commit))
	}
	return r.refNames(ctx, "--contains="+string(commit), "refs/heads", "refs/tags")
}

// Merged lists the branches of which every commit is in the history of into.
func (r *Repo) Merged(ctx context.Context, into tidelock.CommitID) ([]tidelock.RefName, error) {
	if !isObjectName(into) {
		return nil, errNoCommit(string(into))
	}
	return r.refNames(ctx, "--merged="+string(into), "refs/heads")
}

func (r *Repo) refNames(ctx context.Context, args ...string) ([]tidelock.RefName, error) {
	if err := r.exists(); err != nil {
		return nil, err
	}
	out, err := r.disk.query(ctx, r.disk.command(r, append([]string{"for-each-ref", "--format=%(refname)"}, args...)...))
	if complains(err, "no such commit", "malformed object name") {
		return nil, tidelock.Errorf(tidelock.NotFound, "no such commit")
	}
	if err != nil {
		return nil, err
	}
	names := []tidelock.RefName{}
	for name := range strings.Lines(string(out)) {
		names = append(names, tidelock.RefName(strings.TrimSuffix(name, "\n")))
	}
	return names, nil
}

// Contains reports whether a commit has another in its history, or is that.
// A commit that the repository does not have is an error of kind NotFound.
func (r *Repo) Contains(ctx context.Context, commit, ancestor tidelock.CommitID) (bool, error) {
	for _, id := range []tidelock.CommitID{commit, ancestor} {
		if !isObjectName(id) {
			return false, errNoCommit(string(id))
		}
	}
	if err := r.exists(); err != nil {
		return false, err
	}
	_, err := r.disk.query(ctx, r.disk.command(r, "merge-base", "--is-ancestor", string(ancestor), string(commit)))
	switch {
	case exitCode(err) == 1:
		return false, nil
	case complains(err, "Not a valid commit name", "not a commit"):
		return false, errNoCommit(string(commit))
	}
	return err == nil, err
}

// parseCommits reads what logArgs asked git to print.
func parseCommits(out string) ([]Commit, error) {
	const fields = 11
	commits := []Commit{}
	if out == "" {
		return commits, nil
	}
	f := strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")
	if len(f)%fields != 0 {
		return nil, fmt.Errorf("read commits: git printed %d fields", len(f))
	}
	for i, text := range f {
		f[i] = strings.ToValidUTF8(text, "\uFFFD")
	}
	for ; len(f) > 0; f = f[fields:] {
		c := Commit{
			ID:        tidelock.CommitID(f[0]),
			Tree:      tidelock.CommitID(f[1]),
			Parents:   []tidelock.CommitID{},
			Author:    Signature{Name: f[3], Email: f[4], When: parseRawDate(f[5])},
			Committer: Signature{Name: f[6], Email: f[7], When: parseRawDate(f[8])},
			Title:     f[9],
			Message:   f[10],
		}
		for _, parent := range strings.Fields(f[2]) {
			c.Parents = append(c.Parents, tidelock.CommitID(parent))
		}
		commits = append(commits, c)
	}
	return commits, nil
}

// parseRawDate reads a date such as "1700000000 +0130". Histories hold all
// sorts of dates; one that makes no sense is the zero time.
func parseRawDate(s string) time.Time {
	seconds, zone, _ := strings.Cut(s, " ")
	unix, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return time.Time{}
	}
	t := time.Unix(unix, 0).UTC()
	if z, err := strconv.Atoi(zone); err == nil && z > -2400 && z < 2400 {
		offset := (z/100)*3600 + (z%100)*60
		if offset != 0 {
			t = t.In(time.FixedZone("", offset))
		}
	}
	return t
}

// Containing finds a ref from which commit can be reached: the branch, if one
// is given, or else any branch or tag. It is false when there is none, or no
// such commit.
func (r *Repo) Containing(ctx context.Context, commit tidelock.CommitID, branch string) (tidelock.RefName, bool, error) {
	if !isObjectName(commit) {
		return "", false, nil
	}
	if err := r.exists(); err != nil {
		return "", false, err
	}
	args := []string{"for-each-ref", "--count=1", "--format=%(refname)", "--contains=" + string(commit)}
	if branch == "" {
		args = append(args, "refs/heads", "refs/tags")
	} else {
		name := tidelock.BranchRef(branch)
		if err := tidelock.ValidRef(name); err != nil {
			return "", false, err
		}
		args = append(args, string(name))
	}
	out, err := r.disk.query(ctx, r.disk.command(r, args...))
	if complains(err, "no such commit", "malformed object name") {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	name := tidelock.RefName(strings.TrimSpace(string(out)))
	if branch != "" && name != tidelock.BranchRef(branch) {
		return "", false, nil // a branch below that name
	}
	return name, name != "", nil
}

func errNoCommit(rev string) error {
	return tidelock.Errorf(tidelock.NotFound, "no branch, tag or commit %.200q", rev)
}

const shortestAbbreviation = 7

// resolve turns a revision of a user into the full name of an object, which
// is all that git ever sees of it.
func (r *Repo) resolve(ctx context.Context, rev string) (string, error) {
	if err := r.exists(); err != nil {
		return "", err
	}
	// A full object name is not looked up as a ref, so that nobody can hide a
	// commit behind a branch of that name.
	if isObjectName(tidelock.CommitID(rev)) {
		return rev, nil
	}
	var names []tidelock.RefName
	switch {
	case rev == "HEAD":
		head, err := r.head()
		if err != nil {
			return "", err
		}
		names = []tidelock.RefName{head}
	case strings.HasPrefix(rev, "refs/"):
		names = []tidelock.RefName{tidelock.RefName(rev)}
	default:
		names = []tidelock.RefName{tidelock.BranchRef(rev), tidelock.TagRef(rev)}
	}
	for _, name := range names {
		if tidelock.ValidRef(name) != nil {
			return "", errNoCommit(rev)
		}
		refs, err := r.readTips([]tidelock.RefName{name})
		if errors.Is(err, errUnusualRef) {
			refs, err = r.forEachRef(ctx, []tidelock.RefName{name})
		}
		if err != nil {
			return "", err
		}
		if len(refs) > 0 {
			return string(refs[0].Object), nil
		}
	}
	if len(rev) >= shortestAbbreviation && len(rev) < 40 && isHex(rev) {
		commit, err := r.peel(ctx, tidelock.CommitID(rev))
		if err != nil {
			return "", err
		}
		if commit != "" {
			return string(commit), nil
		}
	}
	return "", errNoCommit(rev)
}

// head reads which branch HEAD names.
func (r *Repo) head() (tidelock.RefName, error) {
	content, err := os.ReadFile(filepath.Join(r.dir, "HEAD"))
	if err != nil {
		return "", fmt.Errorf("read HEAD of repository %d: %w", r.id, err)
	}
	name, ok := strings.CutPrefix(strings.TrimSpace(string(content)), "ref: ")
	if !ok {
		return "", fmt.Errorf("read HEAD of repository %d: it names no branch", r.id)
	}
	return tidelock.RefName(name), nil
}
