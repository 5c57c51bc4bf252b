package gitrepo_test

import (
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

// open opens a disk in a fresh directory.
func open(t *testing.T) *gitrepo.Disk {
	t.Helper()
	return openIn(t, t.TempDir())
}

func openIn(t *testing.T, dir string) *gitrepo.Disk {
	t.Helper()
	disk, err := gitrepo.Open(t.Context(), gitrepo.Config{Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return disk
}

// create makes repository 1 with the default branch main.
func create(t *testing.T) *gitrepo.Repo {
	t.Helper()
	disk := open(t)
	if err := disk.Create(t.Context(), 1, "main"); err != nil {
		t.Fatal(err)
	}
	return disk.Repo(1)
}

// git runs a client's git in a directory and returns what it printed.
func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "LC_ALL=C",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_AUTHOR_DATE=1700000000 +0130",
		"GIT_COMMITTER_NAME=Bob", "GIT_COMMITTER_EMAIL=bob@example.com", "GIT_COMMITTER_DATE=1700000100 -0500")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// clone makes a working copy that pushes to the repository.
func clone(t *testing.T, repo *gitrepo.Repo) string {
	t.Helper()
	work := filepath.Join(t.TempDir(), "work")
	git(t, ".", "clone", "-q", repo.Path(), work)
	return work
}

// commit writes a file, commits it and returns the commit.
func commit(t *testing.T, work, path, content, message string) tidelock.CommitID {
	t.Helper()
	file := filepath.Join(work, path)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	git(t, work, "add", "--", path)
	git(t, work, "commit", "-q", "-m", message)
	return tidelock.CommitID(git(t, work, "rev-parse", "HEAD"))
}

func TestCreateAndDelete(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	disk := openIn(t, dir)

	for range 2 { // the second time changes nothing
		if err := disk.Create(ctx, 7, "trunk"); err != nil {
			t.Fatal(err)
		}
	}
	if got := git(t, disk.Repo(7).Path(), "symbolic-ref", "HEAD"); got != "refs/heads/trunk" {
		t.Errorf("HEAD is %s, want refs/heads/trunk", got)
	}
	if err := disk.Repo(7).SetDefaultBranch(ctx, "feature/x"); err != nil {
		t.Fatal(err)
	}
	if got := git(t, disk.Repo(7).Path(), "symbolic-ref", "HEAD"); got != "refs/heads/feature/x" {
		t.Errorf("HEAD is %s, want refs/heads/feature/x", got)
	}
	if ids, err := disk.IDs(ctx); err != nil || !slices.Equal(ids, []tidelock.ProjectID{7}) {
		t.Errorf("IDs() = %v, %v, want [7]", ids, err)
	}
	for range 2 {
		if err := disk.Delete(ctx, 7); err != nil {
			t.Fatal(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("after Delete the directory holds %v, %v", entries, err)
	}
	if _, err := disk.Repo(7).Refs(ctx); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("Refs() of a deleted repository: %v, want not found", err)
	}
}

// What is asked of a repository while it is deleted is answered, or there is
// no repository; it is never another trouble.
func TestDeletedMeanwhile(t *testing.T) {
	ctx := t.Context()
	disk := open(t)
	for range 20 {
		if err := disk.Create(ctx, 7, "main"); err != nil {
			t.Fatal(err)
		}
		repo := disk.Repo(7)
		asked := make(chan error)
		for range 4 {
			go func() {
				for {
					if _, _, err := repo.Containing(ctx, tidelock.CommitID(strings.Repeat("1", 40)), ""); err != nil {
						asked <- err
						return
					}
				}
			}()
		}
		if err := disk.Delete(ctx, 7); err != nil {
			t.Error(err)
		}
		for range 4 {
			if err := <-asked; tidelock.KindOf(err) != tidelock.NotFound {
				t.Errorf("got %v, want not found", err)
			}
		}
	}
}

func TestOpenRemovesLeftovers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"new-123/objects", "deleted-45/repository/refs"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	openIn(t, dir)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("after Open the directory holds %v, %v", entries, err)
	}
}

func TestBadBranchNames(t *testing.T) {
	disk := open(t)
	for _, name := range []string{"", "-x", "../../etc", "a..b", "a b", "HEAD", "x.lock", "a\nb", "--template=/etc"} {
		if err := disk.Create(t.Context(), 1, name); tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("Create with default branch %q: %v, want invalid", name, err)
		}
	}
	if ids, _ := disk.IDs(t.Context()); len(ids) != 0 {
		t.Errorf("IDs() = %v, want none", ids)
	}
}
