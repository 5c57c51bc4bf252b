package gitrepo_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

func TestView(t *testing.T) {
	repo := create(t)
	work := clone(t, repo)
	commit(t, work, "apps/shop/a.yaml", "a: 1\n", "one")
	commit(t, work, "apps/large.bin", strings.Repeat("x", 5000), "two")
	if err := os.Symlink("/etc/passwd", filepath.Join(work, "link")); err != nil {
		t.Fatal(err)
	}
	git(t, work, "add", "link")
	git(t, work, "update-index", "--add", "--cacheinfo", "160000,"+strings.Repeat("1", 40)+",module")
	head := commit(t, work, "run.sh", "true\n", "three")
	git(t, work, "push", "-q", "origin", "HEAD:main")

	err := repo.View(t.Context(), head, func(v *gitrepo.View) error {
		if c := v.Commit(); c.ID != head || string(c.Tree) != git(t, work, "rev-parse", "HEAD^{tree}") || c.Committer.When.Unix() != 1700000100 {
			t.Errorf("got commit %+v", c)
		}
		root, err := v.Dir(".")
		if err != nil {
			return err
		}
		var names []string
		for _, e := range root {
			names = append(names, e.Mode+" "+e.Type+" "+e.Path)
		}
		want := "040000 tree apps,120000 blob link,160000 commit module,100644 blob run.sh"
		if got := strings.Join(names, ","); got != want {
			t.Errorf("got %s, want %s", got, want)
		}

		shop, err := v.Entry("apps/shop")
		if err != nil || shop.Type != "tree" || string(shop.ID) != git(t, work, "rev-parse", "HEAD:apps/shop") {
			t.Errorf("got %+v, %v", shop, err)
		}
		large, err := v.Entry("apps/large.bin")
		if err != nil {
			return err
		}
		if _, err := v.Content(large, 4999); tidelock.KindOf(err) != tidelock.TooLarge {
			t.Errorf("got error %v for a file over the limit", err)
		}
		if content, err := v.Content(large, 5000); err != nil || len(content) != 5000 {
			t.Errorf("got %d bytes, %v", len(content), err)
		}
		file, err := v.Entry("apps/shop/a.yaml")
		if err != nil {
			return err
		}
		if content, err := v.Content(file, 100); err != nil || string(content) != "a: 1\n" {
			t.Errorf("got %q, %v", content, err)
		}
		for _, name := range []string{"none", "apps/none", "run.sh/below", "link/passwd", "module/x"} {
			if e, err := v.Entry(name); tidelock.KindOf(err) != tidelock.NotFound {
				t.Errorf("%s: got %+v, %v", name, e, err)
			}
		}
		for _, name := range []string{"", "..", "../x", "/etc/passwd", "apps/../x", "apps//shop", ".git/config"} {
			if e, err := v.Entry(name); tidelock.KindOf(err) != tidelock.Invalid {
				t.Errorf("%s: got %+v, %v", name, e, err)
			}
		}
		if _, err := v.Dir("run.sh"); tidelock.KindOf(err) != tidelock.NotFound {
			t.Errorf("got error %v for the entries of a file", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	never := func(*gitrepo.View) error { t.Error("a view of nothing"); return nil }
	for _, id := range []tidelock.CommitID{"", "main", tidelock.CommitID(strings.Repeat("0", 40)), tidelock.CommitID(git(t, work, "rev-parse", "HEAD^{tree}"))} {
		if err := repo.View(t.Context(), id, never); tidelock.KindOf(err) != tidelock.NotFound {
			t.Errorf("%q: got error %v", id, err)
		}
	}
}

// A directory that is too large spoils nothing of what is read after it.
func TestViewOfALargeDirectory(t *testing.T) {
	repo := create(t)
	work := clone(t, repo)
	commit(t, work, "a.yaml", "a: 1\n", "one")
	blob := git(t, work, "rev-parse", "HEAD:a.yaml")
	list := filepath.Join(t.TempDir(), "list")
	var entries strings.Builder
	for i := range 80_000 {
		fmt.Fprintf(&entries, "100644 %s\tlarge/%0100d\n", blob, i)
	}
	if err := os.WriteFile(list, []byte(entries.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	input, err := os.Open(list)
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	index := exec.CommandContext(t.Context(), "git", "-C", work, "update-index", "--index-info")
	index.Stdin = input
	if out, err := index.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	head := commit(t, work, "b.yaml", "b: 1\n", "two")
	git(t, work, "push", "-q", "origin", "HEAD:main")
	err = repo.View(t.Context(), head, func(v *gitrepo.View) error {
		if _, err := v.Dir("large"); tidelock.KindOf(err) != tidelock.TooLarge {
			t.Errorf("got error %v for a large directory", err)
		}
		e, err := v.Entry("b.yaml")
		if err != nil {
			return err
		}
		content, err := v.Content(e, 100)
		if string(content) != "b: 1\n" {
			t.Errorf("got %q", content)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
