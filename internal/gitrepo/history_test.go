package gitrepo_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

func TestCommit(t *testing.T) {
	ctx := t.Context()
	repo := create(t)
	if _, err := repo.Commit(ctx, "main"); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("Commit of an empty repository: %v, want not found", err)
	}
	work := clone(t, repo)
	first := commit(t, work, "a.txt", "one", "First\n\nbody\nof it")
	git(t, work, "tag", "-a", "v1", "-m", "one")
	git(t, work, "tag", "-a", "v1-again", "-m", "tag of a tag", "v1")
	second := commit(t, work, "b.txt", "two", "Second \xff")
	git(t, work, "push", "-q", "origin", "HEAD:main", "HEAD~1:refs/heads/old", "--tags")

	got, err := repo.Commit(ctx, "v1-again")
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != first || got.Title != "First" || got.Message != "First\n\nbody\nof it\n" || len(got.Parents) != 0 ||
		got.Author.Name != "Ada" || got.Committer.Email != "bob@example.com" {
		t.Errorf("Commit(v1-again) = %+v", got)
	}
	if got, want := got.Author.When.Format(time.RFC3339), "2023-11-14T23:43:20+01:30"; got != want {
		t.Errorf("authored at %s, want %s", got, want)
	}
	for rev, want := range map[string]tidelock.CommitID{
		"main": second, "HEAD": second, "refs/heads/main": second, string(second): second, string(second[:7]): second,
		"old": first, "v1": first, "refs/tags/v1": first,
		git(t, work, "rev-parse", "v1"): first, // the tag object
	} {
		if got, err := repo.Commit(ctx, rev); err != nil || got.ID != want {
			t.Errorf("Commit(%q) = %s, %v, want %s", rev, got.ID, err, want)
		}
	}
	blob := git(t, work, "rev-parse", "HEAD:a.txt")
	for _, rev := range []string{
		"", "-", "--all", "--output=/tmp/x", "main~1", "main^", "main..old", "main:a.txt", "@", "@{0}", "HEAD~1", ":/First", "^main",
		"../../HEAD", "refs/heads/../tags/v1", "nope", "main\n", "main\x00", "refs/heads/main.lock",
		string(second[:6]), strings.ToUpper(string(second)), strings.Repeat("0", 40), strings.Repeat("f", 39), blob, blob[:10],
	} {
		if got, err := repo.Commit(ctx, rev); tidelock.KindOf(err) != tidelock.NotFound {
			t.Errorf("Commit(%q) = %s, %v, want not found", rev, got.ID, err)
		}
	}
}

func TestCommits(t *testing.T) {
	ctx := t.Context()
	repo := create(t)
	work := clone(t, repo)
	a := commit(t, work, "a.txt", "1", "a")
	b := commit(t, work, "dir/b.txt", "1", "b")
	c := commit(t, work, "a.txt", "2", "c")
	git(t, work, "push", "-q", "origin", "HEAD:main")

	at := time.Unix(1700000100, 0) // when all were committed
	tests := map[string]struct {
		query gitrepo.CommitQuery
		want  []tidelock.CommitID
	}{
		"all":           {gitrepo.CommitQuery{Rev: "main"}, []tidelock.CommitID{c, b, a}},
		"from":          {gitrepo.CommitQuery{Rev: string(b)}, []tidelock.CommitID{b, a}},
		"path":          {gitrepo.CommitQuery{Rev: "main", Path: "a.txt"}, []tidelock.CommitID{c, a}},
		"directory":     {gitrepo.CommitQuery{Rev: "main", Path: "dir"}, []tidelock.CommitID{b}},
		"glob is plain": {gitrepo.CommitQuery{Rev: "main", Path: "*.txt"}, nil},
		"page 2":        {gitrepo.CommitQuery{Rev: "main", Page: tidelock.Page{Number: 2, PerPage: 2}}, []tidelock.CommitID{a}},
		"since after":   {gitrepo.CommitQuery{Rev: "main", Since: at.Add(time.Hour)}, nil},
		"since before":  {gitrepo.CommitQuery{Rev: "main", Since: at.Add(-time.Hour)}, []tidelock.CommitID{c, b, a}},
		"until before":  {gitrepo.CommitQuery{Rev: "main", Until: at.Add(-time.Hour)}, nil},
	}
	for name, tt := range tests {
		commits, err := repo.Commits(ctx, tt.query)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var got []tidelock.CommitID
		for _, c := range commits {
			got = append(got, c.ID)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %v, want %v", name, got, tt.want)
		}
	}
	// Git makes no pattern of a long text, nor an argument of a longer one.
	for _, length := range []int{2_000, 50_000, 300_000} {
		_, err := repo.Commits(ctx, gitrepo.CommitQuery{Rev: "main", Author: strings.Repeat("é", length)})
		if tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("an author of %d letters: %v", length, err)
		}
	}
}

func TestFilesAndTrees(t *testing.T) {
	ctx := t.Context()
	repo := create(t)
	work := clone(t, repo)
	first := commit(t, work, "dir/sub/file.txt", "hello\n", "first")
	commit(t, work, "ünï [*] code", "x", "second")
	if err := os.Symlink("/etc/passwd", filepath.Join(work, "link")); err != nil {
		t.Fatal(err)
	}
	git(t, work, "add", "-A")
	git(t, work, "commit", "-q", "-m", "third")
	head := tidelock.CommitID(git(t, work, "rev-parse", "HEAD"))
	git(t, work, "push", "-q", "origin", "HEAD:main")

	f, err := repo.File(ctx, "main", "dir/sub/file.txt", 100)
	if err != nil {
		t.Fatal(err)
	}
	if string(f.Content) != "hello\n" || f.Mode != "100644" || f.Size != 6 || f.Commit != head || f.LastCommit != first ||
		string(f.Blob) != git(t, work, "rev-parse", "HEAD:dir/sub/file.txt") {
		t.Errorf("File = %+v", f)
	}
	if f, err := repo.File(ctx, "main", "ünï [*] code", 100); err != nil || string(f.Content) != "x" {
		t.Errorf("File with a strange name = %+v, %v", f, err)
	}
	if f, err := repo.File(ctx, "main", "link", 100); err != nil || string(f.Content) != "/etc/passwd" || f.Mode != "120000" {
		t.Errorf("File of a link = %+v, %v", f, err)
	}
	for path, want := range map[string]tidelock.Kind{
		"dir/sub/file.txt": tidelock.TooLarge,
		"dir":              tidelock.NotFound,
		"missing":          tidelock.NotFound,
		"*":                tidelock.NotFound,
		":(top)link":       tidelock.NotFound,
		"link/x":           tidelock.NotFound,
		"":                 tidelock.Invalid,
		"../config":        tidelock.Invalid,
		"dir/../link":      tidelock.Invalid,
		"/etc/passwd":      tidelock.Invalid,
		"dir//sub":         tidelock.Invalid,
		".git/config":      tidelock.Invalid,
		"a/.GIT/b":         tidelock.Invalid,
		"a\x00b":           tidelock.Invalid,
	} {
		if _, err := repo.File(ctx, "main", path, 5); tidelock.KindOf(err) != want {
			t.Errorf("File(%q): %v, want %v", path, err, want)
		}
	}

	names := func(entries []gitrepo.TreeEntry) (paths []string) {
		for _, e := range entries {
			paths = append(paths, e.Type+" "+e.Path)
		}
		return paths
	}
	for _, tt := range []struct {
		dir       string
		recursive bool
		want      []string
	}{
		{"", false, []string{"tree dir", "blob link", "blob ünï [*] code"}},
		{"", true, []string{"tree dir", "tree dir/sub", "blob dir/sub/file.txt", "blob link", "blob ünï [*] code"}},
		{"dir", false, []string{"tree dir/sub"}},
		{"dir/", true, []string{"tree dir/sub", "blob dir/sub/file.txt"}},
	} {
		entries, err := repo.Tree(ctx, "main", tt.dir, tt.recursive)
		if err != nil || !slices.Equal(names(entries), tt.want) {
			t.Errorf("Tree(%q, %t) = %q, %v, want %q", tt.dir, tt.recursive, names(entries), err, tt.want)
		}
	}
	for _, dir := range []string{"missing", "link", "dir/sub/file.txt"} {
		if _, err := repo.Tree(ctx, "main", dir, false); tidelock.KindOf(err) != tidelock.NotFound {
			t.Errorf("Tree(%q): %v, want not found", dir, err)
		}
	}
}

func TestContaining(t *testing.T) {
	ctx := t.Context()
	repo := create(t)
	work := clone(t, repo)
	base := commit(t, work, "a", "1", "base")
	git(t, work, "push", "-q", "origin", "HEAD:main")
	tagged := commit(t, work, "a", "2", "tagged")
	git(t, work, "tag", "v1")
	git(t, work, "push", "-q", "origin", "v1", "HEAD:refs/heads/deep/er")
	git(t, repo.Path(), "update-ref", "-d", "refs/heads/deep/er")
	stray := git(t, repo.Path(), "commit-tree", "-m", "stray", string(base)+"^{tree}")

	tests := []struct {
		commit tidelock.CommitID
		branch string
		want   tidelock.RefName
	}{
		{base, "main", "refs/heads/main"},
		{base, "", "refs/heads/main"},
		{tagged, "", "refs/tags/v1"},
		{tagged, "main", ""},
		{base, "deep", ""},
		{tidelock.CommitID(stray), "", ""},
		{tidelock.CommitID(strings.Repeat("0", 40)), "", ""},
		{tidelock.CommitID(strings.Repeat("1", 40)), "main", ""},
		{"main", "", ""},
		{"--all", "", ""},
	}
	for _, tt := range tests {
		got, ok, err := repo.Containing(ctx, tt.commit, tt.branch)
		if err != nil || got != tt.want || ok != (tt.want != "") {
			t.Errorf("Containing(%s, %q) = %q, %t, %v, want %q", tt.commit, tt.branch, got, ok, err, tt.want)
		}
	}
}

func TestContains(t *testing.T) {
	ctx := t.Context()
	repo := create(t)
	work := clone(t, repo)
	base := commit(t, work, "a", "1", "base")
	main := commit(t, work, "a", "2", "main")
	git(t, work, "push", "-q", "origin", "HEAD:main")
	git(t, work, "reset", "-q", "--hard", string(base))
	side := commit(t, work, "a", "3", "side")
	git(t, work, "push", "-q", "origin", "HEAD:side")
	tree := tidelock.CommitID(git(t, repo.Path(), "rev-parse", string(base)+"^{tree}"))
	gone := tidelock.CommitID(strings.Repeat("1", 40))

	for _, tt := range []struct {
		commit, ancestor tidelock.CommitID
		want             bool
		kind             tidelock.Kind
	}{
		{main, base, true, tidelock.Internal},
		{main, main, true, tidelock.Internal},
		{base, main, false, tidelock.Internal},
		{main, side, false, tidelock.Internal},
		{main, gone, false, tidelock.NotFound},
		{gone, main, false, tidelock.NotFound},
		{main, tree, false, tidelock.NotFound},
		{"main", base, false, tidelock.NotFound},
		{main, "--all", false, tidelock.NotFound},
	} {
		got, err := repo.Contains(ctx, tt.commit, tt.ancestor)
		if got != tt.want || (err != nil) != (tt.kind != tidelock.Internal) || err != nil && tidelock.KindOf(err) != tt.kind {
			t.Errorf("Contains(%s, %s) = %t, %v, want %t", tt.commit, tt.ancestor, got, err, tt.want)
		}
	}
}
