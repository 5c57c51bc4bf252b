package forge_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// git runs real git in a project's repository, as receive-pack would.
func (w *world) git(project tidelock.Project, args ...string) string {
	w.t.Helper()
	return w.gitInput(project, "", args...)
}

// gitInput is git with something on its standard input.
func (w *world) gitInput(project tidelock.Project, input string, args ...string) string {
	w.t.Helper()
	cmd := exec.Command("git", append([]string{"-C", w.repos.Repo(project.ID).Path(), "-c", "user.name=Ada", "-c", "user.email=ada@example.com", "-c", "safe.directory=*"}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.Output()
	if err != nil {
		if failed, ok := errors.AsType[*exec.ExitError](err); ok {
			w.t.Fatalf("git %s: %v: %s", strings.Join(args, " "), err, failed.Stderr)
		}
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// commit makes a commit and points a ref at it, telling nobody.
func (w *world) commit(project tidelock.Project, ref tidelock.RefName, message string) tidelock.CommitID {
	w.t.Helper()
	const tree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904" // the empty tree
	w.git(project, "hash-object", "-t", "tree", "-w", "/dev/null")
	id := w.git(project, "commit-tree", tree, "-m", message)
	w.git(project, "update-ref", string(ref), id)
	return tidelock.CommitID(id)
}

// pushed makes a commit on a ref and records it.
func (w *world) pushed(project tidelock.Project, ref tidelock.RefName, message string) tidelock.CommitID {
	w.t.Helper()
	id := w.commit(project, ref, message)
	if _, err := w.Pushed(w.t.Context(), project.ID, w.root, []tidelock.RefName{ref}); err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) site() tidelock.Project {
	w.t.Helper()
	return w.project(w.group("team", tidelock.Public), "site", tidelock.Public)
}

// run keeps the forge's Run going until the test ends.
func (w *world) run() {
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	w.t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	})
}

// eventually waits for a state.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestAuthorizePush(t *testing.T) {
	w := newWorld(t)
	group := w.group("team", tidelock.Private)
	project := w.project(group, "site", tidelock.Private)
	developer, maintainer := w.user("dev"), w.user("main")
	w.member(forge.OnGroup(group), developer, tidelock.Developer)
	w.member(forge.OnGroup(group), maintainer, tidelock.Maintainer)
	for _, b := range []tidelock.ProtectedBranch{
		{Pattern: "release/*", PushLevel: tidelock.Maintainer},
		{Pattern: "frozen", PushLevel: tidelock.NoAccess},
		{Pattern: "loose", PushLevel: tidelock.Developer, AllowForce: true},
	} {
		if _, err := w.ProtectBranch(t.Context(), w.root, project.FullPath, b); err != nil {
			t.Fatal(err)
		}
	}
	const old, new = tidelock.CommitID("1111111111111111111111111111111111111111"), tidelock.CommitID("2222222222222222222222222222222222222222")
	tests := []struct {
		name          string
		by            tidelock.User
		ref           string
		old, new      tidelock.CommitID
		refused       string
		noFastForward bool
	}{
		{"a developer moves a branch", developer, "refs/heads/topic", old, new, "", false},
		{"a developer deletes a branch", developer, "refs/heads/topic", old, "", "", false},
		{"a developer makes a tag", developer, "refs/tags/v1", "", new, "", false},
		{"a developer moves the default branch", developer, "refs/heads/main", old, new, "you may not push to this protected branch", false},
		{"a developer creates the default branch", developer, "refs/heads/main", "", new, "you may not push to this protected branch", false},
		{"a maintainer moves the default branch", maintainer, "refs/heads/main", old, new, "", true},
		{"a maintainer creates the default branch", maintainer, "refs/heads/main", "", new, "", false},
		{"a maintainer deletes the default branch", maintainer, "refs/heads/main", old, "", "the default branch cannot be deleted", false},
		{"a maintainer moves a release", maintainer, "refs/heads/release/1", old, new, "", true},
		{"a maintainer deletes a release", maintainer, "refs/heads/release/1", old, "", "protected branches cannot be deleted by git", false},
		{"a developer moves a release", developer, "refs/heads/release/1", old, new, "you may not push to this protected branch", false},
		{"a maintainer moves what nobody may", maintainer, "refs/heads/frozen", old, new, "you may not push to this protected branch", false},
		{"a developer forces where it is allowed", developer, "refs/heads/loose", old, new, "", false},
		{"a ref of the forge", maintainer, "refs/keep-around/x", "", new, "refs under refs/keep-around/ belong to the forge", false},
		{"a ref that traverses", maintainer, "refs/heads/../../config", "", new, "not a ref name", false},
		{"a ref like an option", maintainer, "refs/heads/--upload-pack=x", "", new, "not a ref name", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := w.AuthorizePush(t.Context(), as(test.by), project, []forge.RefCommand{{Ref: tidelock.RefName(test.ref), Old: test.old, New: test.new}})
			if err != nil {
				t.Fatal(err)
			}
			if reason := got.Refused[tidelock.RefName(test.ref)]; reason != test.refused {
				t.Errorf("refused: got %q, want %q", reason, test.refused)
			}
			if got.DenyNonFastForward != test.noFastForward {
				t.Errorf("deny non-fast-forward: got %v, want %v", got.DenyNonFastForward, test.noFastForward)
			}
		})
	}
}

// H8: one ref that is allowed must not carry another that is not.
func TestH8EveryRefIsDecided(t *testing.T) {
	w := newWorld(t)
	group := w.group("team", tidelock.Private)
	project := w.project(group, "site", tidelock.Private)
	developer := w.user("dev")
	w.member(forge.OnGroup(group), developer, tidelock.Developer)
	const id = tidelock.CommitID("2222222222222222222222222222222222222222")
	got, err := w.AuthorizePush(t.Context(), as(developer), project, []forge.RefCommand{
		{Ref: "refs/heads/topic", New: id}, {Ref: "refs/heads/main", New: id}, {Ref: "refs/heads/other", New: id},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Refused) != 1 || got.Refused["refs/heads/main"] == "" {
		t.Errorf("got %v, want only main refused", got.Refused)
	}
}

func TestPushedReadsTheDisk(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	first := w.pushed(project, "refs/heads/main", "one")
	second := w.commit(project, "refs/heads/main", "two")
	push, err := w.Pushed(t.Context(), project.ID, w.root, []tidelock.RefName{"refs/heads/main", "refs/heads/never"})
	if err != nil {
		t.Fatal(err)
	}
	if len(push.Updates) != 1 || push.Updates[0].Old != first || push.Updates[0].New != second {
		t.Errorf("updates: got %+v, want main from %s to %s", push.Updates, first, second)
	}
	again, err := w.Pushed(t.Context(), project.ID, w.root, []tidelock.RefName{"refs/heads/main"})
	if err != nil || again.ID != 0 {
		t.Errorf("nothing moved: got push %d, %v; want none", again.ID, err)
	}
}

func TestAnnotatedTagIsPeeled(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "one")
	w.git(project, "tag", "-a", "v1.0.0", "-m", "first", string(commit))
	if _, err := w.Pushed(t.Context(), project.ID, w.root, []tidelock.RefName{"refs/tags/v1.0.0"}); err != nil {
		t.Fatal(err)
	}
	head, err := w.Resolve(t.Context(), project.ID, tidelock.RefSpec{Tag: "v1.0.0"})
	if err != nil || head.Commit != commit || head.Object == commit {
		t.Errorf("got %+v, %v; want the commit %s behind another object", head, err, commit)
	}
}

func TestResolve(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	main := w.pushed(project, "refs/heads/main", "main")
	master := w.pushed(project, "refs/heads/master", "master")
	byTag := map[string]tidelock.CommitID{}
	for _, tag := range []string{"v1.0.0", "v1.9.0", "v1.10.0", "v2.0.0-rc.1", "not-a-version"} {
		byTag[tag] = w.pushed(project, tidelock.TagRef(tag), tag)
	}
	tests := []struct {
		name string
		spec tidelock.RefSpec
		want tidelock.CommitID // empty: not found
		kind tidelock.Kind
	}{
		{"nothing means master, not the default branch", tidelock.RefSpec{}, master, 0},
		{"branch", tidelock.RefSpec{Branch: "main"}, main, 0},
		{"no such branch", tidelock.RefSpec{Branch: "gone"}, "", tidelock.NotFound},
		{"tag over branch", tidelock.RefSpec{Branch: "main", Tag: "v1.0.0"}, byTag["v1.0.0"], 0},
		{"semver over tag, by number and not by letter", tidelock.RefSpec{SemVer: "1.x", Tag: "v1.0.0"}, byTag["v1.10.0"], 0},
		{"semver leaves pre-releases out", tidelock.RefSpec{SemVer: ">=1.0.0"}, byTag["v1.10.0"], 0},
		{"semver with pre-releases", tidelock.RefSpec{SemVer: ">=1.0.0-0"}, byTag["v2.0.0-rc.1"], 0},
		{"semver without a match", tidelock.RefSpec{SemVer: ">=3"}, "", tidelock.NotFound},
		{"not a range", tidelock.RefSpec{SemVer: "one"}, "", tidelock.Invalid},
		{"name over semver", tidelock.RefSpec{Name: "refs/heads/main", SemVer: "1.x"}, main, 0},
		{"commit over all", tidelock.RefSpec{Commit: string(main), Name: "refs/heads/master"}, main, 0},
		{"commit on its branch", tidelock.RefSpec{Commit: string(main), Branch: "main"}, main, 0},
		{"commit not on that branch", tidelock.RefSpec{Commit: string(main), Branch: "master"}, "", tidelock.NotFound},
		{"commit that is not there", tidelock.RefSpec{Commit: strings.Repeat("a", 40)}, "", tidelock.NotFound},
		{"not a commit", tidelock.RefSpec{Commit: "--all"}, "", tidelock.Invalid},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			head, err := w.Resolve(t.Context(), project.ID, test.spec)
			if test.want == "" {
				if tidelock.KindOf(err) != test.kind {
					t.Errorf("got %+v, %v; want an error of kind %v", head, err, test.kind)
				}
				return
			}
			if err != nil || head.Commit != test.want {
				t.Errorf("got %s, %v; want %s", head.Commit, err, test.want)
			}
		})
	}
}

// TestSemVerAsFluxReadsIt has tags of which Flux takes another one than their
// names suggest; announcing the wrong one would leave the right one unannounced.
func TestSemVerAsFluxReadsIt(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	resolves := func(what string, want tidelock.CommitID) {
		t.Helper()
		head, err := w.Resolve(t.Context(), project.ID, tidelock.RefSpec{SemVer: ">=1.0.0"})
		if err != nil || head.Commit != want {
			t.Errorf("%s: got %s of %s, %v; want %s", what, head.Commit, head.Ref, err, want)
		}
	}
	tag := func(name, at string) tidelock.CommitID {
		t.Setenv("GIT_COMMITTER_DATE", at+" +0000")
		return w.pushed(project, tidelock.TagRef(name), name)
	}
	first := tag("v1.0.0", "1700000000")
	tag("2024", "1700000001")
	tag("v3", "1700000002")
	tag("v3.1", "1700000003")
	resolves("what has not three parts is no version", first)
	tag("v1.2.0+9", "1700000010")
	newest := tag("v1.2.0+10", "1700000020")
	resolves("of builds of one version the newest", newest)
	tag("v1.2.0+11", "1700000015")
	resolves("newest by its commit, not by its name or push", newest)
}

func TestFirstBranchBecomesDefault(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	w.pushed(project, "refs/heads/trunk", "one")
	got, err := w.Project(t.Context(), w.root, project.FullPath)
	if err != nil || got.DefaultBranch != "trunk" {
		t.Fatalf("default branch: got %q, %v; want trunk", got.DefaultBranch, err)
	}
	if head := w.git(project, "symbolic-ref", "HEAD"); head != "refs/heads/trunk" {
		t.Errorf("HEAD: got %s", head)
	}
	developer := w.user("dev")
	w.member(forge.OnProject(project), developer, tidelock.Developer)
	decision, err := w.AuthorizePush(t.Context(), as(developer), got, []forge.RefCommand{{Ref: "refs/heads/trunk", Old: strings40("1"), New: strings40("2")}})
	if err != nil || decision.Refused["refs/heads/trunk"] == "" {
		t.Errorf("a developer pushing the adopted branch: got %v, %v; want it protected", decision, err)
	}
	w.pushed(project, "refs/heads/topic", "two")
	if got, _ := w.Project(t.Context(), w.root, project.FullPath); got.DefaultBranch != "trunk" {
		t.Errorf("after another branch: got %q, want trunk", got.DefaultBranch)
	}
}

func strings40(c string) tidelock.CommitID { return tidelock.CommitID(strings.Repeat(c, 40)) }

// brokenStore refuses to record pushes while broken is set.
type brokenStore struct {
	forge.Store
	broken atomic.Bool
}

var errDiskFull = errors.New("database or disk is full")

func (s *brokenStore) RecordPush(ctx context.Context, p tidelock.Push) (tidelock.Push, error) {
	if s.broken.Load() {
		return tidelock.Push{}, errDiskFull
	}
	return s.Store.RecordPush(ctx, p)
}

// SQL fails between the ref update and its record: the push is an error to the
// caller now and recorded as soon as the store works again.
func TestUnrecordedPushIsRecordedLater(t *testing.T) {
	broken := &brokenStore{}
	w := newWorldWith(t, func(s forge.Store) forge.Store { broken.Store = s; return broken })
	project := w.site()
	w.run()
	broken.broken.Store(true)
	commit := w.commit(project, "refs/heads/main", "one")
	if _, err := w.Pushed(t.Context(), project.ID, w.root, []tidelock.RefName{"refs/heads/main"}); !errors.Is(err, errDiskFull) {
		t.Fatalf("got %v, want %v", err, errDiskFull)
	}
	if w.Dirty() != 1 {
		t.Errorf("dirty: got %d, want 1", w.Dirty())
	}
	heard := make(chan tidelock.Pushed, 16)
	sub, err := forge.Subscribe(w.Forge, func(e tidelock.Pushed) { heard <- e })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	broken.broken.Store(false)
	eventually(t, "the head is recorded", func() bool {
		head, err := w.store.Head(t.Context(), project.ID, "refs/heads/main")
		return err == nil && head.Commit == commit
	})
	select {
	case e := <-heard:
		if e.Project != project.ID {
			t.Errorf("heard of project %d, want %d", e.Project, project.ID)
		}
	case <-time.After(10 * time.Second):
		t.Error("nobody was told")
	}
	eventually(t, "nothing is dirty", func() bool { return w.Dirty() == 0 })
	eventually(t, "the push is marked announced", func() bool {
		waiting, err := w.store.Unannounced(t.Context(), 10)
		return err == nil && len(waiting) == 0
	})
}

// A crash between git and SQL, and one between SQL and the bus, are both found
// at the next start.
func TestStartFindsWhatACrashLeft(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	deleted := w.pushed(project, "refs/heads/old", "old")
	w.pushed(project, "refs/heads/main", "one") // recorded, never marked
	commit := w.commit(project, "refs/heads/main", "two")
	w.git(project, "update-ref", "-d", "refs/heads/old", string(deleted))

	heard := make(chan tidelock.Pushed, 16)
	sub, err := forge.Subscribe(w.Forge, func(e tidelock.Pushed) { heard <- e })
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	w.run()
	eventually(t, "the heads are the refs", func() bool {
		heads, err := w.store.Heads(t.Context(), project.ID)
		return err == nil && len(heads) == 1 && heads[0].Commit == commit
	})
	select {
	case <-heard:
	case <-time.After(10 * time.Second):
		t.Error("nobody was told")
	}
}

// Pushes of one ref at once are recorded in the order of the disk: the head is
// the ref, and each push begins where another ended.
func TestConcurrentPushesOfOneRef(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	w.pushed(project, "refs/heads/main", "start")
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			for j := range 4 {
				id := w.git(project, "commit-tree", "4b825dc642cb6eb9a060e54bf8d69288fbee4904", "-m", fmt.Sprintf("%d.%d", i, j))
				for {
					cmd := exec.Command("git", "-C", w.repos.Repo(project.ID).Path(), "-c", "safe.directory=*", "update-ref", "refs/heads/main", id)
					if cmd.Run() == nil {
						break // else another one held the lock
					}
				}
				if _, err := w.Pushed(context.Background(), project.ID, w.root, []tidelock.RefName{"refs/heads/main"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	head, err := w.store.Head(t.Context(), project.ID, "refs/heads/main")
	if err != nil || string(head.Object) != w.git(project, "rev-parse", "refs/heads/main") {
		t.Errorf("head: got %s, %v; want the ref", head.Object, err)
	}
	pushes, _, err := w.store.Pushes(t.Context(), tidelock.PushFilter{Project: project.ID}, tidelock.Page{})
	if err != nil {
		t.Fatal(err)
	}
	next := head.Object
	for _, p := range pushes {
		if p.Updates[0].New != next {
			t.Fatalf("push %d ends at %s, want %s", p.ID, p.Updates[0].New, next)
		}
		next = p.Updates[0].Old
	}
	if next != "" {
		t.Errorf("the first push begins at %q, want nothing", next)
	}
}
