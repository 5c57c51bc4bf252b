package gitrepo

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func packs(t *testing.T, r *Repo) []string {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(r.dir, "objects/pack/*.pack"))
	if err != nil {
		t.Fatal(err)
	}
	return packs
}

// Many pushes leave many packs; Maintain joins them, and nothing is lost.
func TestMaintain(t *testing.T) {
	disk, err := Open(t.Context(), Config{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Create(t.Context(), 1, "main"); err != nil {
		t.Fatal(err)
	}
	repo := disk.Repo(1)
	ctx, stop := context.WithCancel(t.Context())
	maintained := make(chan error)
	go func() { maintained <- disk.Maintain(ctx) }()
	defer stop()

	git := func(input string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = t.TempDir()
		cmd.Env = append(os.Environ(), "GIT_DIR="+repo.dir, "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
		cmd.Stdin = strings.NewReader(input)
		var complaint bytes.Buffer
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, &complaint)
		}
		return strings.TrimSpace(string(out))
	}
	// A pack per push is what receive-pack leaves behind.
	tree := git("", "write-tree")
	git(tree+"\n", "pack-objects", filepath.Join(repo.dir, "objects/pack/pack"))
	head := ""
	for i := range rollUpAfter {
		args := []string{"commit-tree", "-m", fmt.Sprint(i), tree}
		if head != "" {
			args = append(args, "-p", head)
		}
		head = git("", args...)
		git(head+"\n", "pack-objects", filepath.Join(repo.dir, "objects/pack/pack"))
	}
	git("", "prune-packed")
	git("", "update-ref", "refs/heads/main", head)
	if n := len(packs(t, repo)); n <= rollUpAfter {
		t.Fatalf("%d packs to begin with, want more than %d", n, rollUpAfter)
	}
	for range rollUpAfter {
		disk.notePushed(1)
	}
	deadline := time.After(20 * time.Second)
	for len(packs(t, repo)) > 5 {
		select {
		case <-deadline:
			t.Fatalf("still %d packs", len(packs(t, repo)))
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop() // in whatever it does: that is to be safe too
	if err := <-maintained; err != nil {
		t.Error(err)
	}
	if got := git("", "rev-list", "--count", "main"); got != fmt.Sprint(rollUpAfter) {
		t.Errorf("main has %s commits, want %d", got, rollUpAfter)
	}
	git("", "fsck", "--strict")
}

func TestCollect(t *testing.T) {
	disk, err := Open(t.Context(), Config{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Create(t.Context(), 1, "main"); err != nil {
		t.Fatal(err)
	}
	repo := disk.Repo(1)
	at := func(name, content string, age time.Duration) string {
		t.Helper()
		path := filepath.Join(repo.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		when := time.Now().Add(-age)
		for ; path != filepath.Join(repo.dir, "objects") && strings.HasPrefix(name, "objects/tmp"); path = filepath.Dir(path) {
			if err := os.Chtimes(path, when, when); err != nil {
				t.Fatal(err)
			}
		}
		path = filepath.Join(repo.dir, name)
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
		return path
	}
	old, young := 2*abandonedAfter, time.Hour
	for path, stays := range map[string]bool{
		at("objects/tmp_objdir-incoming-old/x", "", old):                    false,
		at("objects/tmp_objdir-incoming-young/x", "", young):                true,
		at("objects/pack/pack-1.keep", "receive-pack 123 on host\n", old):   false,
		at("objects/pack/pack-2.keep", "receive-pack 123 on host\n", young): true,
		at("objects/pack/pack-3.keep", "kept by hand\n", old):               true,
	} {
		disk.maintain(t.Context(), 1)
		if _, err := os.Stat(path); (err == nil) != stays {
			t.Errorf("%s: %v, want it to stay: %t", path, err, stays)
		}
	}
	if _, err := os.Stat(filepath.Join(repo.dir, collectedFile)); err == nil {
		t.Error("a new repository was collected")
	}
	long := time.Now().Add(-2 * collectEvery)
	if err := os.Chtimes(filepath.Join(repo.dir, "config"), long, long); err != nil {
		t.Fatal(err)
	}
	disk.maintain(t.Context(), 1)
	info, err := os.Stat(filepath.Join(repo.dir, collectedFile))
	if err != nil || time.Since(info.ModTime()) > time.Minute {
		t.Errorf("an old repository was not collected: %v", err)
	}
	disk.maintain(t.Context(), 404) // one that is gone is no trouble
}
