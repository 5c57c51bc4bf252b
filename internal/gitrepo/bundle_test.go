package gitrepo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

func bundleOf(t *testing.T, repo *gitrepo.Repo) ([]byte, gitrepo.Bundle) {
	t.Helper()
	var text bytes.Buffer
	b, err := repo.WriteBundle(t.Context(), &text)
	if err != nil {
		t.Fatal(err)
	}
	return text.Bytes(), b
}

func TestBundleAndBack(t *testing.T) {
	repo := create(t)
	work := clone(t, repo)
	first := commit(t, work, "app.yaml", "one", "first")
	git(t, work, "tag", "-m", "release", "v1")
	git(t, work, "tag", "light")
	git(t, work, "switch", "-q", "-c", "feature/x")
	commit(t, work, "dir/b.yaml", "two", "second")
	git(t, work, "push", "-q", "--all", "origin")
	git(t, work, "push", "-q", "--tags", "origin")
	git(t, repo.Path(), "update-ref", "refs/keep-around/"+string(first), string(first))
	git(t, repo.Path(), "update-ref", "refs/tidelock/blob", string(first)+":app.yaml")
	if err := repo.SetDefaultBranch(t.Context(), "feature/x"); err != nil {
		t.Fatal(err)
	}

	text, b := bundleOf(t, repo)
	if b.DefaultBranch != "feature/x" || b.Refs != 6 {
		t.Errorf("got %+v, want 6 refs and feature/x", b)
	}
	disk := open(t)
	if _, err := disk.Unbundle(t.Context(), 9, bytes.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	restored := disk.Repo(9)
	list := []string{"for-each-ref", "--format=%(refname) %(objectname) %(*objectname)"}
	if got, want := git(t, restored.Path(), list...), git(t, repo.Path(), list...); got != want {
		t.Errorf("got refs\n%s\nwant\n%s", got, want)
	}
	git(t, restored.Path(), "fsck", "--strict")
	want, err := repo.Refs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := restored.Refs(t.Context())
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}

	// It is a bundle for everybody else, too.
	file := filepath.Join(t.TempDir(), "site.bundle")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	git(t, ".", "bundle", "verify", "-q", file)
	copied := filepath.Join(t.TempDir(), "copy")
	git(t, ".", "clone", "-q", file, copied)
	if got := git(t, copied, "symbolic-ref", "--short", "HEAD"); got != "feature/x" {
		t.Errorf("a clone is on %s, want feature/x", got)
	}

	if _, err := disk.Unbundle(t.Context(), 9, bytes.NewReader(text)); tidelock.KindOf(err) != tidelock.Conflict {
		t.Errorf("over an existing repository: got %v, want a conflict", err)
	}
}

func TestBundleOfNothing(t *testing.T) {
	repo := create(t)
	text, b := bundleOf(t, repo)
	if len(text) != 0 || b.Refs != 0 || b.DefaultBranch != "main" {
		t.Errorf("got %d bytes and %+v of an empty repository", len(text), b)
	}
	_, err := open(t).Repo(5).WriteBundle(t.Context(), io.Discard)
	if tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("got %v of a missing repository, want not found", err)
	}
}

// "git bundle create" would leave out a branch that moves while it runs.
func TestBundleWhileRefsMove(t *testing.T) {
	repo := create(t)
	work := clone(t, repo)
	commit(t, work, "a", "0", "first")
	git(t, work, "push", "-q", "origin", "HEAD:main")
	moved := make(chan struct{})
	var pushing sync.WaitGroup
	pushing.Go(func() {
		defer close(moved)
		for i := range 15 {
			commit(t, work, "a", fmt.Sprint("next ", i), "next")
			git(t, work, "push", "-q", "origin", "HEAD:main")
			git(t, work, "push", "-q", "origin", fmt.Sprintf("HEAD:refs/heads/b%d", i))
		}
	})
	defer pushing.Wait()
	last := 0
	for n := 0; ; n++ {
		text, b := bundleOf(t, repo)
		disk := open(t)
		if _, err := disk.Unbundle(t.Context(), 1, bytes.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		refs, err := disk.Repo(1).Refs(t.Context())
		if err != nil || len(refs) != b.Refs || len(refs) < max(last, 1) {
			t.Fatalf("bundle %d: got %d refs, %v, want %d and no fewer than before", n, len(refs), err, b.Refs)
		}
		last = len(refs)
		select {
		case <-moved:
			return
		default:
		}
	}
}

func TestBundleCannotBeWritten(t *testing.T) {
	repo := create(t)
	work := clone(t, repo)
	commit(t, work, "a", strings.Repeat("x", 1<<16), "first")
	git(t, work, "push", "-q", "origin", "HEAD:main")
	full := errors.New("disk full")
	if _, err := repo.WriteBundle(t.Context(), &failing{after: 100, err: full}); !errors.Is(err, full) && err == nil {
		t.Errorf("got %v, want %v", err, full)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := repo.WriteBundle(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

type failing struct {
	after int
	err   error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		return 0, f.err
	}
	return len(p), nil
}

func TestH7BadBundles(t *testing.T) {
	repo := create(t)
	work := clone(t, repo)
	head := string(commit(t, work, "a", "one", "first"))
	git(t, work, "push", "-q", "origin", "HEAD:main")
	whole, _ := bundleOf(t, repo)
	header, pack, _ := bytes.Cut(whole, []byte("\n\n"))
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-30] ^= 1
	missing := strings.Repeat("1", 40)
	with := func(lines ...string) []byte {
		return append([]byte("# v2 git bundle\n"+strings.Join(lines, "\n")+"\n\n"), pack...)
	}
	for name, text := range map[string][]byte{
		"empty":              {},
		"no header":          pack,
		"another version":    bytes.Replace(whole, []byte("v2"), []byte("v3"), 1),
		"header cut":         header,
		"pack cut":           whole[:len(whole)-40],
		"no pack":            append(bytes.Clone(header), "\n\n"...),
		"bit flipped":        flipped,
		"no refs":            with(),
		"not an object":      with("zzzz refs/heads/main"),
		"missing object":     with(head+" refs/heads/main", missing+" refs/heads/other"),
		"outside of refs":    with(head + " ../../outside"),
		"traversal":          with(head + " refs/heads/../../../outside"),
		"twice":              with(head+" refs/heads/main", head+" refs/heads/main"),
		"file and folder":    with(head+" refs/heads/a", head+" refs/heads/a-b", head+" refs/heads/a/b"),
		"prerequisite":       with("-"+head+" refs/heads/x", head+" refs/heads/main"),
		"line without end":   []byte("# v2 git bundle\n" + strings.Repeat("a", 1<<20)),
		"an option as a ref": with(head + " --upload-pack=x"),
	} {
		t.Run(name, func(t *testing.T) {
			disk := open(t)
			if _, err := disk.Unbundle(t.Context(), 3, bytes.NewReader(text)); err == nil {
				t.Error("it was taken")
			}
			if ids, err := disk.IDs(t.Context()); err != nil || len(ids) != 0 {
				t.Errorf("it left %v, %v", ids, err)
			}
		})
	}
}

func TestOpenBesideTidiesNothing(t *testing.T) {
	dir := t.TempDir()
	openIn(t, dir)
	if err := os.Mkdir(filepath.Join(dir, "new-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := gitrepo.OpenBeside(t.Context(), gitrepo.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new-1")); err != nil {
		t.Error("it removed what the owner is making")
	}
	if _, err := gitrepo.OpenBeside(t.Context(), gitrepo.Config{Dir: dir + "/none", Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("it made a directory")
	}
}
