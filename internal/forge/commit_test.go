package forge_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
)

func put(path, content string) gitrepo.Change {
	return gitrepo.Change{Kind: gitrepo.CreateFile, Path: path, Content: []byte(content)}
}

// codeWorld is a project with a first commit, and its people.
type codeWorld struct {
	*world
	project                       tidelock.Project
	maintainer, developer, reader tidelock.User
}

func newCodeWorld(t *testing.T) codeWorld {
	t.Helper()
	w := codeWorld{world: newWorld(t)}
	group := w.group("team", tidelock.Private)
	var err error
	w.project, err = w.CreateProject(t.Context(), w.root, forge.NewProject{Namespace: group.ID, Path: "site", Readme: true})
	if err != nil {
		t.Fatal(err)
	}
	w.maintainer, w.developer, w.reader = w.user("mia"), w.user("dan"), w.user("ria")
	w.member(forge.OnProject(w.project), w.maintainer, tidelock.Maintainer)
	w.member(forge.OnProject(w.project), w.developer, tidelock.Developer)
	w.member(forge.OnProject(w.project), w.reader, tidelock.Reporter)
	return w
}

// head is what the store has of a ref; "" for nothing.
func (w codeWorld) head(ref tidelock.RefName) tidelock.CommitID {
	w.t.Helper()
	head, err := w.store.Head(w.t.Context(), w.project.ID, ref)
	if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
		w.t.Fatal(err)
	}
	return head.Object
}

func TestCommitIsAPush(t *testing.T) {
	w := newCodeWorld(t)
	first := w.head("refs/heads/main")
	if first == "" {
		t.Fatal("the first commit was not recorded")
	}
	id, err := w.Commit(t.Context(), as(w.maintainer), w.project, forge.NewCommit{
		Branch: "main", Message: "Two files", AuthorName: "Ada", Changes: []gitrepo.Change{put("a", "1"), put("b/c", "2")},
	})
	if err != nil || w.head("refs/heads/main") != id {
		t.Fatalf("Commit = %s, %v; the head is %s", id, err, w.head("refs/heads/main"))
	}
	commit, err := w.repos.Repo(w.project.ID).Commit(t.Context(), "main")
	if err != nil || commit.Author.Name != "Ada" || commit.Committer.Name != "mia" || !slices.Equal(commit.Parents, []tidelock.CommitID{first}) || !commit.Committer.When.Equal(w.clock) {
		t.Errorf("the commit is %+v, %v", commit, err)
	}
	pushes, _, err := w.store.Pushes(t.Context(), tidelock.PushFilter{Project: w.project.ID}, tidelock.Page{})
	if err != nil || len(pushes) != 2 || pushes[0].By != w.maintainer.ID || pushes[0].Updates[0].Old != first || pushes[0].Updates[0].New != id {
		t.Errorf("the pushes are %+v, %v", pushes, err)
	}
}

// TestWhoMayMoveWhat tries every act on refs, by role, against protected and
// unprotected ones, and then looks at what moved.
func TestWhoMayMoveWhat(t *testing.T) {
	w := newCodeWorld(t)
	ctx := t.Context()
	for _, pattern := range []string{"release/*", "nobody"} {
		level := tidelock.Maintainer
		if pattern == "nobody" {
			level = tidelock.NoAccess
		}
		if _, err := w.ProtectBranch(ctx, w.root, "team/site", tidelock.ProtectedBranch{Pattern: pattern, PushLevel: level}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.ProtectTag(ctx, w.root, "team/site", tidelock.ProtectedTag{Pattern: pattern, CreateLevel: level}); err != nil {
			t.Fatal(err)
		}
	}
	at := 0
	commit := func(branch string, force bool) func(forge.Principal) error {
		return func(p forge.Principal) error {
			at++
			n := forge.NewCommit{Branch: branch, Message: "x", Changes: []gitrepo.Change{put(fmt.Sprint("f", at), "x")}, Force: force}
			if force {
				n.StartBranch = "main"
			}
			_, err := w.Commit(ctx, p, w.project, n)
			return err
		}
	}
	branch := func(name string) func(forge.Principal) error {
		return func(p forge.Principal) error { return w.CreateBranch(ctx, p, w.project, name, "main") }
	}
	noBranch := func(name string) func(forge.Principal) error {
		return func(p forge.Principal) error { return w.DeleteBranch(ctx, p, w.project, name) }
	}
	tag := func(name, message string) func(forge.Principal) error {
		return func(p forge.Principal) error { return w.CreateTag(ctx, p, w.project, name, "main", message) }
	}
	noTag := func(name string) func(forge.Principal) error {
		return func(p forge.Principal) error { return w.DeleteTag(ctx, p, w.project, name) }
	}
	const ok = tidelock.Kind(-1)
	for _, c := range []struct {
		name string
		act  func(forge.Principal) error
		// by a reader, a developer and a maintainer, in this order
		want [3]tidelock.Kind
	}{
		{"commit to the default branch", commit("main", false), [3]tidelock.Kind{tidelock.Denied, tidelock.Denied, ok}},
		{"create a branch", branch("free"), [3]tidelock.Kind{tidelock.Denied, ok, tidelock.Invalid}},
		{"commit to a branch", commit("free", false), [3]tidelock.Kind{tidelock.Denied, ok, ok}},
		{"rewrite a branch", commit("free", true), [3]tidelock.Kind{tidelock.Denied, ok, ok}},
		{"delete a branch", noBranch("free"), [3]tidelock.Kind{tidelock.Denied, ok, tidelock.NotFound}},
		{"create a protected branch", branch("release/1"), [3]tidelock.Kind{tidelock.Denied, tidelock.Denied, ok}},
		{"commit to a protected branch", commit("release/1", false), [3]tidelock.Kind{tidelock.Denied, tidelock.Denied, ok}},
		{"rewrite a protected branch", commit("release/1", true), [3]tidelock.Kind{tidelock.Denied, tidelock.Denied, tidelock.Denied}},
		{"delete a protected branch", noBranch("release/1"), [3]tidelock.Kind{tidelock.Denied, tidelock.Denied, ok}},
		{"create a branch that is nobody's", branch("nobody"), [3]tidelock.Kind{tidelock.Denied, tidelock.Denied, tidelock.Denied}},
		{"delete the default branch", noBranch("main"), [3]tidelock.Kind{tidelock.Denied, tidelock.Denied, tidelock.Denied}},
		{"create a tag", tag("free", ""), [3]tidelock.Kind{tidelock.Denied, ok, tidelock.Invalid}},
		{"delete a tag", noTag("free"), [3]tidelock.Kind{tidelock.Denied, ok, tidelock.NotFound}},
		{"create a protected tag", tag("release/1", "annotated"), [3]tidelock.Kind{tidelock.Denied, tidelock.Denied, ok}},
		{"delete a protected tag", noTag("release/1"), [3]tidelock.Kind{tidelock.Denied, tidelock.Denied, ok}},
		{"create a tag that is nobody's", tag("nobody", ""), [3]tidelock.Kind{tidelock.Denied, tidelock.Denied, tidelock.Denied}},
	} {
		for i, user := range []tidelock.User{w.reader, w.developer, w.maintainer} {
			err := c.act(as(user))
			if (err == nil) != (c.want[i] == ok) || err != nil && tidelock.KindOf(err) != c.want[i] {
				t.Errorf("%s by %s: got %v, want %v", c.name, user.Username, err, c.want[i])
			}
		}
		if err := c.act(forge.Principal{}); tidelock.KindOf(err) != tidelock.NotFound {
			t.Errorf("%s by a stranger: got %v, want not found", c.name, err)
		}
		write := withScope(w.maintainer, tidelock.ScopeWriteRepository)
		if err := c.act(write); answer(err) != "scope" {
			t.Errorf("%s by a token for git alone: got %v, want a scope error", c.name, err)
		}
	}
	refs, err := w.repos.Repo(w.project.ID).Refs(ctx)
	if err != nil || len(refs) != 1 || refs[0].Name != "refs/heads/main" || refs[0].Object != w.head("refs/heads/main") {
		t.Errorf("what is left is %+v, %v", refs, err)
	}
}

// TestProtectedTagsHoldForGit asks as a push by git does.
func TestProtectedTagsHoldForGit(t *testing.T) {
	w := newCodeWorld(t)
	if _, err := w.ProtectTag(t.Context(), w.root, "team/site", tidelock.ProtectedTag{Pattern: "v*", CreateLevel: tidelock.Maintainer}); err != nil {
		t.Fatal(err)
	}
	a, b := tidelock.CommitID(strings.Repeat("a", 40)), tidelock.CommitID(strings.Repeat("b", 40))
	for _, c := range []struct {
		name    string
		command forge.RefCommand
		by      tidelock.User
		want    string
	}{
		{"create", forge.RefCommand{Ref: "refs/tags/v1", New: a}, w.maintainer, ""},
		{"create, as a developer", forge.RefCommand{Ref: "refs/tags/v1", New: a}, w.developer, "you may not create this protected tag"},
		{"another", forge.RefCommand{Ref: "refs/tags/other", New: a}, w.developer, ""},
		{"move", forge.RefCommand{Ref: "refs/tags/v1", Old: a, New: b}, w.maintainer, "protected tags cannot be moved"},
		{"delete", forge.RefCommand{Ref: "refs/tags/v1", Old: a}, w.maintainer, "protected tags cannot be deleted by git"},
		{"a branch of that name", forge.RefCommand{Ref: "refs/heads/v1", New: a}, w.developer, ""},
	} {
		decision, err := w.AuthorizePush(t.Context(), as(c.by), w.project, []forge.RefCommand{c.command})
		if got := decision.Refused[c.command.Ref]; err != nil || got != c.want {
			t.Errorf("%s: got %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}

// TestCommitsAtOnce races commits on one branch and on several: on one branch
// every file that was reported as written is there, and no other.
func TestCommitsAtOnce(t *testing.T) {
	w := newCodeWorld(t)
	const many = 5
	errs := make([]error, 2*many)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			n := forge.NewCommit{Branch: "main", Message: "x", Changes: []gitrepo.Change{put(fmt.Sprint("f", i), "x")}}
			if i >= many {
				n.Branch, n.StartBranch = fmt.Sprint("b", i), "main"
			}
			_, errs[i] = w.Commit(t.Context(), as(w.maintainer), w.project, n)
		})
	}
	all.Wait()
	repo := w.repos.Repo(w.project.ID)
	for i, err := range errs {
		switch {
		case i >= many && err != nil:
			t.Errorf("a commit on a branch of its own: %v", err)
		case err != nil && tidelock.KindOf(err) != tidelock.Conflict:
			t.Errorf("commit %d: got %v, want a conflict", i, err)
		case i < many:
			_, missing := repo.Content(t.Context(), "main", fmt.Sprint("f", i), 10)
			if (missing == nil) != (err == nil) {
				t.Errorf("commit %d was told %v, and its file: %v", i, err, missing)
			}
		}
	}
	disk, err := repo.Refs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range disk {
		if w.head(r.Name) != r.Object {
			t.Errorf("%s is recorded at %s, and is at %s", r.Name, w.head(r.Name), r.Object)
		}
	}
}

func TestCommitRefusals(t *testing.T) {
	w := newCodeWorld(t)
	change := []gitrepo.Change{put("x", "x")}
	for _, c := range []struct {
		name string
		n    forge.NewCommit
		want string
	}{
		{"no message", forge.NewCommit{Branch: "main", Changes: change}, "commit_message can't be blank"},
		{"H5 a branch like an option", forge.NewCommit{Branch: "--upload-pack=x", Message: "x", Changes: change}, "Branch name is invalid"},
		{"H6 a branch like a path", forge.NewCommit{Branch: "../../x", Message: "x", Changes: change}, "Branch name is invalid"},
		{"no branch", forge.NewCommit{Message: "x", Changes: change}, "Branch name is invalid"},
		{"a branch that is missing", forge.NewCommit{Branch: "nope", Message: "x", Changes: change}, "You can only create or edit files when you are on a branch"},
		{"a start that is missing", forge.NewCommit{Branch: "new", StartBranch: "nope", Message: "x", Changes: change}, `Cannot start from "nope"`},
		{"H5 a start like an option", forge.NewCommit{Branch: "new", StartCommit: "--all", Message: "x", Changes: change}, `Cannot start from "--all"`},
		{"a start for what exists", forge.NewCommit{Branch: "main", StartCommit: "HEAD", Message: "x", Changes: change}, "A branch called 'main' already exists"},
		{"a file twice", forge.NewCommit{Branch: "main", Message: "x", Changes: append(change, change...)}, "A file with this name already exists"},
	} {
		if _, err := w.Commit(t.Context(), w.root, w.project, c.n); tidelock.KindOf(err) != tidelock.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	yes := true
	if _, err := w.EditProject(t.Context(), w.root, "team/site", forge.ProjectEdit{Archived: &yes}); err != nil {
		t.Fatal(err)
	}
	archived, err := w.Project(t.Context(), w.root, "team/site")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(t.Context(), w.root, archived, forge.NewCommit{Branch: "main", Message: "x", Changes: change}); tidelock.KindOf(err) != tidelock.Denied {
		t.Errorf("to an archived project: got %v, want denied", err)
	}
}

func TestDeleteMergedBranches(t *testing.T) {
	w := newCodeWorld(t)
	ctx := t.Context()
	for _, name := range []string{"merged", "kept", "ahead"} {
		if err := w.CreateBranch(ctx, w.root, w.project, name, "main"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.ProtectBranch(ctx, w.root, "team/site", tidelock.ProtectedBranch{Pattern: "kept", PushLevel: tidelock.Maintainer}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(ctx, w.root, w.project, forge.NewCommit{Branch: "ahead", Message: "x", Changes: []gitrepo.Change{put("x", "")}}); err != nil {
		t.Fatal(err)
	}
	if err := w.DeleteMergedBranches(ctx, as(w.developer), w.project); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"main": true, "merged": false, "kept": true, "ahead": true} {
		if got := w.head(tidelock.BranchRef(name)) != ""; got != want {
			t.Errorf("branch %s is there: %t, want %t", name, got, want)
		}
	}
}
