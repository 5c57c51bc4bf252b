package gitrepo_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

var ada = gitrepo.Signature{Name: "Ada", Email: "ada@example.com", When: time.Unix(1700000000, 0).In(time.FixedZone("", -5400))}

// land drafts a commit on main and moves main to it.
func land(t *testing.T, repo *gitrepo.Repo, changes ...gitrepo.Change) (tidelock.CommitID, error) {
	t.Helper()
	refs, err := repo.ReadRefs(t.Context(), "refs/heads/main")
	if err != nil {
		t.Fatal(err)
	}
	var parent tidelock.CommitID
	if len(refs) > 0 {
		parent = refs[0].Object
	}
	draft, err := repo.Draft(t.Context(), gitrepo.NewCommit{Parent: parent, Message: "Change\n", Author: ada, Committer: ada, Changes: changes})
	if err != nil {
		return "", err
	}
	return draft.ID, repo.Move(t.Context(), gitrepo.MoveRequest{
		Moves: []gitrepo.Move{{Ref: "refs/heads/main", Old: parent, New: draft.ID}}, Draft: &draft,
	})
}

func write(path, content string) gitrepo.Change {
	return gitrepo.Change{Kind: gitrepo.CreateFile, Path: path, Content: []byte(content)}
}

// files are what git finds at main: "mode path content" of each.
func files(t *testing.T, repo *gitrepo.Repo) []string {
	t.Helper()
	var all []string
	for line := range strings.SplitSeq(git(t, repo.Path(), "ls-tree", "-r", "main"), "\n") {
		facts, path, ok := strings.Cut(line, "\t")
		if f := strings.Fields(facts); ok {
			all = append(all, f[0]+" "+path+" "+git(t, repo.Path(), "cat-file", "-p", f[2]))
		}
	}
	return all
}

func TestDraftAndMove(t *testing.T) {
	repo := create(t)
	yes, no := true, false
	for _, step := range []struct {
		name    string
		changes []gitrepo.Change
		want    []string
	}{
		{"the first commit", []gitrepo.Change{write("a", "1"), write("dir/sub/b", "2"), write("dir.x", "3"), write("dir-x", "4")},
			[]string{"100644 a 1", "100644 dir-x 4", "100644 dir.x 3", "100644 dir/sub/b 2"}},
		{"all kinds at once", []gitrepo.Change{
			{Kind: gitrepo.UpdateFile, Path: "a", Content: []byte("one"), Executable: &yes},
			{Kind: gitrepo.MoveFile, From: "dir/sub/b", Path: "other/b"},
			{Kind: gitrepo.DeleteFile, Path: "dir-x"},
			{Kind: gitrepo.ChmodFile, Path: "dir.x", Executable: &yes},
			write("dir/sub/c", "5"),
		}, []string{"100755 a one", "100755 dir.x 3", "100644 dir/sub/c 5", "100644 other/b 2"}},
		{"a move with content, and steps that build on each other", []gitrepo.Change{
			{Kind: gitrepo.MoveFile, From: "other/b", Path: "b", Content: []byte("two"), Executable: &yes},
			{Kind: gitrepo.ChmodFile, Path: "b", Executable: &no},
			write("tmp/x/y", ""), {Kind: gitrepo.DeleteFile, Path: "tmp/x/y"},
			{Kind: gitrepo.DeleteFile, Path: "dir.x"}, write("dir.x/now/a/directory", "6"),
			{Kind: gitrepo.DeleteFile, Path: "dir/sub/c"}, write("dir", "now a file"),
		}, []string{"100755 a one", "100644 b two", "100644 dir now a file", "100644 dir.x/now/a/directory 6"}},
		{"everything is deleted", []gitrepo.Change{
			{Kind: gitrepo.DeleteFile, Path: "a"}, {Kind: gitrepo.DeleteFile, Path: "b"}, {Kind: gitrepo.DeleteFile, Path: "dir"},
			{Kind: gitrepo.DeleteFile, Path: "dir.x/now/a/directory"},
		}, nil},
		{"nothing at all", nil, nil},
	} {
		id, err := land(t, repo, step.changes...)
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := files(t, repo); !slices.Equal(got, step.want) {
			t.Errorf("%s: got %q, want %q", step.name, got, step.want)
		}
		if got := git(t, repo.Path(), "rev-parse", "main"); got != string(id) {
			t.Errorf("%s: main is %s, want %s", step.name, got, id)
		}
	}
	git(t, repo.Path(), "fsck", "--strict")
	commit, err := repo.Commit(t.Context(), "main")
	if err != nil || commit.Author.Name != "Ada" || commit.Author.When.Format(time.RFC3339) != "2023-11-14T20:43:20-01:30" || commit.Message != "Change\n" {
		t.Errorf("the commit is %+v, %v", commit, err)
	}
}

func TestDraftRefusals(t *testing.T) {
	repo := create(t)
	work := clone(t, repo)
	first := commit(t, work, "dir/a.txt", "1", "one")
	if err := os.Symlink("../../outside", filepath.Join(work, "link")); err != nil {
		t.Fatal(err)
	}
	git(t, work, "add", "-A")
	second := commit(t, work, "b.txt", "1", "two")
	git(t, work, "push", "-q", "origin", "HEAD:main")
	yes := true
	for _, c := range []struct {
		name   string
		change gitrepo.Change
		want   string
	}{
		{"create what exists", write("dir/a.txt", ""), "A file with this name already exists"},
		{"create over a directory", write("dir", ""), "A directory with this name already exists"},
		{"create below a file", write("b.txt/x", ""), `"b.txt/x" leads through "b.txt", which is not a directory`},
		{"H6 create below a symbolic link", write("link/x", ""), `"link/x" leads through "link", which is not a directory`},
		{"H6 update below a symbolic link", gitrepo.Change{Kind: gitrepo.UpdateFile, Path: "link/x"}, "A file with this name doesn't exist"},
		{"update what does not exist", gitrepo.Change{Kind: gitrepo.UpdateFile, Path: "nope"}, "A file with this name doesn't exist"},
		{"update a directory", gitrepo.Change{Kind: gitrepo.UpdateFile, Path: "dir"}, "A file with this name doesn't exist"},
		{"delete what does not exist", gitrepo.Change{Kind: gitrepo.DeleteFile, Path: "x/y/z"}, "A file with this name doesn't exist"},
		{"move onto itself's neighbour", gitrepo.Change{Kind: gitrepo.MoveFile, From: "b.txt", Path: "dir/a.txt"}, "A file with this name already exists"},
		{"chmod a link", gitrepo.Change{Kind: gitrepo.ChmodFile, Path: "link", Executable: &yes}, "link is a symbolic link: it cannot be executable"},
		{"of another kind", gitrepo.Change{Kind: "append", Path: "b.txt"}, "Unknown action 'append'"},
		{"changed meanwhile", gitrepo.Change{Kind: gitrepo.UpdateFile, Path: "b.txt", LastCommit: first}, "The file has changed since you started editing it: b.txt"},
		{"as expected", gitrepo.Change{Kind: gitrepo.UpdateFile, Path: "b.txt", LastCommit: second}, ""},
		{"as expected, elsewhere", gitrepo.Change{Kind: gitrepo.MoveFile, From: "dir/a.txt", Path: "c.txt", LastCommit: first}, ""},
	} {
		_, err := repo.Draft(t.Context(), gitrepo.NewCommit{Parent: second, Message: "x", Author: ada, Committer: ada, Changes: []gitrepo.Change{c.change}})
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if tidelock.KindOf(err) != tidelock.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

// TestH6Paths refuses every spelling of .git that git, with the protections of
// of all file systems on: what it would not check out is refused, and every
// moved one, and leaves nothing behind. What git accepts is accepted.
func TestH6Paths(t *testing.T) {
	repo := create(t)
	if _, err := land(t, repo, write("ok", "1")); err != nil {
		t.Fatal(err)
	}
	objects := git(t, repo.Path(), "count-objects", "-v")
	blob := git(t, repo.Path(), "rev-parse", "main:ok")
	for _, path := range []string{
		"", "/", "/etc/passwd", "a//b", "a/", ".", "..", "../x", "a/../b", "a/./b", "a/..", "a\x00b",
		".git", ".git/config", "a/.git/hooks/post-update", ".GIT/config", ".Git", ".gIT/x",
		"git~1", "GIT~1/config", ".git ", ".git.", ".git. . ./x", ".git::$INDEX_ALLOCATION/config", ".git:x",
		".g\u200cit/config", "\ufeff.git", ".gi\u206ft", ".git\u200d", "a/.G\u202eIT/x",
		`.git\config`, `a\.git\config`, `a\git~1\x`,
		strings.Repeat("d/", 100) + "f", "a\nb", "a\x1b[31mb", "a\u009bb", "a\xffb", strings.Repeat("x", 5000),
	} {
		for _, change := range []gitrepo.Change{write(path, "x"), {Kind: gitrepo.MoveFile, From: "ok", Path: path}} {
			if _, err := land(t, repo, change); tidelock.KindOf(err) != tidelock.Invalid {
				t.Errorf("%s to %q: got %v, want invalid", change.Kind, path, err)
			}
		}
	}
	if got := git(t, repo.Path(), "count-objects", "-v"); got != objects {
		t.Errorf("objects were left behind: %s, before %s", got, objects)
	}
	for _, path := range []string{"git", ".gitignore", ".github/x", "b.git", "a.git/x", ".git2", "git~2", "...", "-f", "--output=x", `back\slash`, "späce x", ".gitlab/agents/a/config.yaml", "ok2"} {
		refusesGit := exec.Command("git", "-c", "core.protectHFS=true", "-c", "core.protectNTFS=true",
			"update-index", "--add", "--cacheinfo", "100644,"+blob+","+path)
		refusesGit.Env = append(os.Environ(), "GIT_DIR="+repo.Path(), "GIT_INDEX_FILE="+filepath.Join(t.TempDir(), "index"))
		if out, err := refusesGit.CombinedOutput(); err != nil {
			t.Fatalf("the list of good paths has %q, which git refuses: %s", path, out)
		}
		if _, err := land(t, repo, write(path, "x")); err != nil {
			t.Errorf("create %q: %v", path, err)
		}
	}
	git(t, repo.Path(), "fsck", "--strict")
}

// TestH6GitChecksToo moves a symbolic link to where it would lead git out of a
// checkout: what is not refused here, git refuses when it takes the commit in.
func TestH6GitChecksToo(t *testing.T) {
	repo := create(t)
	work := clone(t, repo)
	if err := os.Symlink("/etc/passwd", filepath.Join(work, "link")); err != nil {
		t.Fatal(err)
	}
	git(t, work, "add", "-A")
	head := commit(t, work, "a", "1", "one")
	git(t, work, "push", "-q", "origin", "HEAD:main")
	_, err := land(t, repo, gitrepo.Change{Kind: gitrepo.MoveFile, From: "link", Path: ".gitmodules"})
	if tidelock.KindOf(err) != tidelock.Invalid || !strings.Contains(err.Error(), "gitmodulesSymlink") {
		t.Errorf("got %v, want git's complaint", err)
	}
	if got := git(t, repo.Path(), "rev-parse", "main"); got != string(head) {
		t.Errorf("main moved to %s", got)
	}
	// As any other file a link may be moved, and is not followed.
	if _, err := land(t, repo, gitrepo.Change{Kind: gitrepo.MoveFile, From: "link", Path: "dir/link"}, gitrepo.Change{Kind: gitrepo.UpdateFile, Path: "dir/link", Content: []byte("elsewhere")}); err != nil {
		t.Error(err)
	}
	if got := files(t, repo); !slices.Contains(got, "120000 dir/link elsewhere") {
		t.Errorf("the files are %q", got)
	}
}

// TestConcurrentCommits lands many commits drafted on one parent at once: one
// wins, the others are told, and all that is there is whole.
func TestConcurrentCommits(t *testing.T) {
	repo := create(t)
	parent, err := land(t, repo, write("a", "0"))
	if err != nil {
		t.Fatal(err)
	}
	const many = 6
	drafts := make([]gitrepo.Draft, many)
	for i := range drafts {
		drafts[i], err = repo.Draft(t.Context(), gitrepo.NewCommit{Parent: parent, Message: fmt.Sprint(i), Author: ada, Committer: ada,
			Changes: []gitrepo.Change{{Kind: gitrepo.UpdateFile, Path: "a", Content: fmt.Append(nil, i)}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	errs := make([]error, many)
	var all sync.WaitGroup
	for i := range drafts {
		all.Go(func() {
			errs[i] = repo.Move(t.Context(), gitrepo.MoveRequest{
				Moves: []gitrepo.Move{{Ref: "refs/heads/main", Old: parent, New: drafts[i].ID}}, Draft: &drafts[i]})
		})
	}
	all.Wait()
	winners := 0
	for i, err := range errs {
		switch {
		case err == nil:
			winners++
			if got := git(t, repo.Path(), "rev-parse", "main"); got != string(drafts[i].ID) {
				t.Errorf("main is %s, and not the winner %s", got, drafts[i].ID)
			}
		case tidelock.KindOf(err) != tidelock.Conflict:
			t.Errorf("a loser was told %v, want a conflict", err)
		}
	}
	if winners != 1 {
		t.Errorf("%d commits won", winners)
	}
	git(t, repo.Path(), "fsck", "--strict")
}

func TestMoveRefs(t *testing.T) {
	repo := create(t)
	one, err := land(t, repo, write("a", "1"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := land(t, repo, write("b", "2"))
	if err != nil {
		t.Fatal(err)
	}
	tag, err := repo.DraftTag("v1", one, ada, "the first")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		req  gitrepo.MoveRequest
		want tidelock.Kind // -1 for none
	}{
		{"create a branch", gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: "refs/heads/x", New: one}}}, -1},
		{"create it twice", gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: "refs/heads/x", New: one}}}, tidelock.Conflict},
		{"create a tag", gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: "refs/tags/v1", New: tag.ID}}, Draft: &tag}, -1},
		{"create below a branch", gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: "refs/heads/x/y", New: one}}}, tidelock.Invalid},
		{"move back", gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: "refs/heads/main", Old: two, New: one}}, DenyNonFastForward: true}, tidelock.Denied},
		{"delete what moved", gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: "refs/heads/main", Old: one}}}, tidelock.Conflict},
		{"two, one of which cannot", gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: "refs/heads/z", New: one}, {Ref: "refs/heads/main", Old: one, New: two}}}, tidelock.Conflict},
		{"delete two", gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: "refs/heads/x", Old: one}, {Ref: "refs/tags/v1", Old: tag.ID}}}, -1},
		{"H5 an option", gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: "refs/heads/-x", New: one}}}, tidelock.Invalid},
		{"an object that is missing", gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: "refs/heads/q", New: tidelock.CommitID(strings.Repeat("1", 40))}}}, tidelock.Invalid},
	} {
		err := repo.Move(t.Context(), c.req)
		if (err == nil) != (c.want == -1) || err != nil && tidelock.KindOf(err) != c.want {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
	refs, err := repo.Refs(t.Context())
	if err != nil || len(refs) != 1 || refs[0].Object != two {
		t.Errorf("the refs are %+v, %v, want main alone at %s", refs, err, two)
	}
}

// TestCommitIsBounded asks for commits that would take all memory, or a walk
// through history for each file.
func TestCommitIsBounded(t *testing.T) {
	repo := create(t)
	parent, err := land(t, repo, write("a", "1"))
	if err != nil {
		t.Fatal(err)
	}
	deep := make([]gitrepo.Change, 2000)
	for i := range deep {
		deep[i] = write(fmt.Sprint(i)+strings.Repeat("/d", 80)+"/f", "")
	}
	checked := slices.Repeat([]gitrepo.Change{{Kind: gitrepo.UpdateFile, Path: "a", LastCommit: parent}}, 101)
	for name, changes := range map[string][]gitrepo.Change{"directories": deep, "checks": checked} {
		_, err := repo.Draft(t.Context(), gitrepo.NewCommit{Parent: parent, Message: "x", Author: ada, Committer: ada, Changes: changes})
		if tidelock.KindOf(err) != tidelock.TooLarge {
			t.Errorf("too many %s: got %v, want too large", name, err)
		}
	}
}

func TestDiffIsBounded(t *testing.T) {
	repo := create(t)
	yes := true
	many := []gitrepo.Change{write("a", "one\ntwo\n"), write("gone", "x\n"), write("old/name", strings.Repeat("same\n", 20)), write("mode", "m\n"), write("bin", "a\x00b")}
	one, err := land(t, repo, many...)
	if err != nil {
		t.Fatal(err)
	}
	lines := func(n int) []byte { return bytes.Repeat([]byte("diff --git a/x b/x\n"), n) }
	two, err := land(t, repo,
		gitrepo.Change{Kind: gitrepo.UpdateFile, Path: "a", Content: []byte("one\n2\n")},
		gitrepo.Change{Kind: gitrepo.DeleteFile, Path: "gone"},
		gitrepo.Change{Kind: gitrepo.MoveFile, From: "old/name", Path: "new/name"},
		gitrepo.Change{Kind: gitrepo.ChmodFile, Path: "mode", Executable: &yes},
		gitrepo.Change{Kind: gitrepo.UpdateFile, Path: "bin", Content: []byte("b\x00c")},
		gitrepo.Change{Kind: gitrepo.CreateFile, Path: "large", Content: lines(20_000)},
		gitrepo.Change{Kind: gitrepo.CreateFile, Path: "huge", Content: lines(200_000)},
		gitrepo.Change{Kind: gitrepo.CreateFile, Path: "tricky", Content: lines(2)},
	)
	if err != nil {
		t.Fatal(err)
	}
	diffs, more, err := repo.Diff(t.Context(), one, two)
	if err != nil || more {
		t.Fatal(err, more)
	}
	got := map[string]gitrepo.FileDiff{}
	for _, d := range diffs {
		got[d.New] = d
	}
	for path, want := range map[string]gitrepo.FileDiff{
		"a":        {Old: "a", New: "a", OldMode: "100644", NewMode: "100644", Patch: "@@ -1,2 +1,2 @@\n one\n-two\n+2\n"},
		"gone":     {Old: "gone", New: "gone", OldMode: "100644", NewMode: "0", Deleted: true, Patch: "@@ -1 +0,0 @@\n-x\n"},
		"new/name": {Old: "old/name", New: "new/name", OldMode: "100644", NewMode: "100644", Renamed: true},
		"mode":     {Old: "mode", New: "mode", OldMode: "100644", NewMode: "100755"},
		"bin":      {Old: "bin", New: "bin", OldMode: "100644", NewMode: "100644", Binary: true},
		"large":    {Old: "large", New: "large", OldMode: "0", NewMode: "100644", Added: true, TooLarge: true},
		"huge":     {Old: "huge", New: "huge", OldMode: "0", NewMode: "100644", Added: true, Binary: true},
		"tricky":   {Old: "tricky", New: "tricky", OldMode: "0", NewMode: "100644", Added: true, Patch: "@@ -0,0 +1,2 @@\n+diff --git a/x b/x\n+diff --git a/x b/x\n"},
	} {
		if got[path] != want {
			t.Errorf("%s: got %+v, want %+v", path, got[path], want)
		}
	}
	stats, err := repo.Stats(t.Context(), one, two)
	if err != nil || stats[one] != (gitrepo.Stats{Additions: 24}) || stats[two].Deletions != 2 || stats[two].Additions != 1+20_000+2 {
		t.Errorf("Stats = %+v, %v", stats, err)
	}

	flood := make([]gitrepo.Change, 0, 60)
	for i := range 60 {
		flood = append(flood, write(fmt.Sprintf("flood/%02d", i), string(bytes.Repeat([]byte(fmt.Sprintf("line of %d\n", i)), 15_000))))
	}
	three, err := land(t, repo, flood...)
	if err != nil {
		t.Fatal(err)
	}
	diffs, _, err = repo.Diff(t.Context(), two, three)
	if err != nil || len(diffs) != 60 || diffs[0].Patch == "" || diffs[0].Collapsed || !diffs[59].Collapsed || diffs[59].Patch != "" {
		t.Errorf("a flood of %d: %v", len(diffs), err)
	}
}
