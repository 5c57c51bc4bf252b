package gitrepo_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

func TestRefs(t *testing.T) {
	ctx := t.Context()
	repo := create(t)
	if refs, err := repo.Refs(ctx); err != nil || refs == nil || len(refs) != 0 {
		t.Errorf("Refs() of an empty repository = %v, %v, want an empty list", refs, err)
	}
	work := clone(t, repo)
	one := commit(t, work, "a", "1", "one")
	two := commit(t, work, "a", "2", "two")
	git(t, work, "tag", "light", string(one))
	git(t, work, "tag", "-a", "heavy", "-m", "x", string(one))
	git(t, work, "tag", "-a", "heavier", "-m", "x", "heavy")
	git(t, work, "tag", "blob", string(one)+":a")
	git(t, work, "push", "-q", "origin", "HEAD:main", string(one)+":refs/heads/feature/x", "--tags")
	object := func(name string) tidelock.CommitID { return tidelock.CommitID(git(t, work, "rev-parse", name)) }
	all := []gitrepo.Ref{
		{"refs/heads/feature/x", one, one},
		{"refs/heads/main", two, two},
		{"refs/tags/blob", object("blob"), ""},
		{"refs/tags/heavier", object("heavier"), one},
		{"refs/tags/heavy", object("heavy"), one},
		{"refs/tags/light", one, one},
	}

	check := func(t *testing.T) {
		if got, err := repo.Refs(ctx); err != nil || !slices.Equal(got, all) {
			t.Errorf("Refs() = %v, %v, want %v", got, err, all)
		}
		tips, err := repo.Tips(ctx)
		if err != nil || len(tips) != len(all) {
			t.Fatalf("Tips() = %v, %v", tips, err)
		}
		for i := range tips {
			if tips[i].Name != all[i].Name || tips[i].Object != all[i].Object {
				t.Errorf("Tips()[%d] = %v, want %v", i, tips[i], all[i])
			}
		}
		for _, tt := range []struct {
			names []tidelock.RefName
			want  []gitrepo.Ref
		}{
			{[]tidelock.RefName{"refs/heads/main"}, all[1:2]},
			{[]tidelock.RefName{"refs/heads/main", "refs/heads/feature/x", "refs/heads/main"}, all[:2]},
			{[]tidelock.RefName{"refs/heads/feature", "refs/heads/main/x", "refs/heads/none"}, nil},
			{[]tidelock.RefName{"refs/tags/heavier", "refs/heads/main", "refs/heads/feature"}, []gitrepo.Ref{all[1], all[3]}},
		} {
			if got, err := repo.ReadRefs(ctx, tt.names...); err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("ReadRefs(%v) = %v, %v, want %v", tt.names, got, err, tt.want)
			}
		}
	}
	t.Run("loose", check)
	git(t, repo.Path(), "pack-refs", "--all", "--prune")
	t.Run("packed", check)
	git(t, work, "push", "-q", "-f", "origin", string(one)+":refs/heads/main")
	git(t, work, "push", "-q", "-f", "origin", string(two)+":refs/heads/main")
	t.Run("both", check)
	git(t, repo.Path(), "symbolic-ref", "refs/heads/alias", "refs/heads/main")
	all = slices.Insert(all, 0, gitrepo.Ref{"refs/heads/alias", two, two})
	t.Run("with a symbolic one", func(t *testing.T) {
		if got, err := repo.Refs(ctx); err != nil || !slices.Equal(got, all) {
			t.Errorf("Refs() = %v, %v, want %v", got, err, all)
		}
		if got, err := repo.ReadRefs(ctx, "refs/heads/alias"); err != nil || !slices.Equal(got, all[:1]) {
			t.Errorf("ReadRefs(alias) = %v, %v, want %v", got, err, all[:1])
		}
	})
}

func TestReadRefsRefusesBadNames(t *testing.T) {
	repo := create(t)
	for _, name := range []tidelock.RefName{"HEAD", "refs/heads/../../config", "refs/heads/a.lock", "--all", ""} {
		if _, err := repo.ReadRefs(t.Context(), name); tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("ReadRefs(%q): %v, want invalid", name, err)
		}
	}
}

func TestReadManyTags(t *testing.T) {
	repo := create(t)
	work := clone(t, repo)
	one := commit(t, work, "a", "1", "one")
	git(t, work, "push", "-q", "origin", "HEAD:main", "HEAD:refs/tags/v1")
	names := []tidelock.RefName{"refs/tags/v1"}
	for range 3000 {
		names = append(names, tidelock.TagRef(strings.Repeat("x", len(names)%200+1)))
	}
	got, err := repo.ReadRefs(t.Context(), names...)
	if want := []gitrepo.Ref{{"refs/tags/v1", one, one}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("ReadRefs of 3001 tags = %v, %v, want %v", got, err, want)
	}
}

// A half-written lock file is no ref.
func TestRefsIgnoreLocks(t *testing.T) {
	repo := create(t)
	if err := os.WriteFile(filepath.Join(repo.Path(), "refs/heads/main.lock"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if refs, err := repo.Refs(t.Context()); err != nil || len(refs) != 0 {
		t.Errorf("Refs() = %v, %v, want none", refs, err)
	}
}
