package gitserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/bus"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/gitserver"
	"tidelock.dev/internal/limit"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/store"
)

// A world is a git server over a real forge, store and disk, with one public
// project, people/site, and a token for everybody who matters.
type world struct {
	*forge.Forge
	t       testing.TB
	store   *faultyStore
	disk    *gitrepo.Disk
	server  *httptest.Server
	root    forge.Principal
	group   tidelock.Namespace
	project tidelock.Project

	maintainer, developer, guest, outsider person
}

// A person is a user with a token that may push and fetch.
type person struct {
	user  tidelock.User
	token string
}

type options struct {
	maxInput int64
	idle     time.Duration
	longest  time.Duration
	http2    bool
	listener time.Duration // of one request, if it is not git's
	limits   *limit.Guard
	maxPacks int
}

// newWorld also lets the test run beside others: most of each is waiting.
func newWorld(t testing.TB, o options) *world {
	t.Helper()
	if test, ok := t.(*testing.T); ok {
		test.Parallel()
	}
	ctx := t.Context()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	dir := t.TempDir()
	db, err := store.Open(ctx, store.Config{URL: "sqlite:" + filepath.Join(dir, "tidelock.db"), Log: log})
	must(t, err)
	disk, err := gitrepo.Open(ctx, gitrepo.Config{Dir: filepath.Join(dir, "repositories"), Log: log, MaxInputSize: o.maxInput, MaxPacks: o.maxPacks})
	must(t, err)
	content, err := registry.Open(ctx, registry.Config{Dir: filepath.Join(dir, "registry"), Log: log})
	must(t, err)
	hints, err := bus.Open(ctx, bus.Config{Log: log})
	must(t, err)
	t.Cleanup(func() {
		hints.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, store: &faultyStore{Store: db}, disk: disk}
	w.Forge, err = forge.New(forge.Config{Store: w.store, Repos: disk, Registry: content, Bus: hints, Log: log})
	must(t, err)
	git := gitserver.New(gitserver.Config{Forge: w.Forge, Repos: disk, Log: log, Idle: o.idle, Longest: o.longest})
	w.server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !gitserver.Matches(r) {
			http.Error(rw, "not git's", http.StatusTeapot)
			return
		}
		git.ServeHTTP(rw, r)
	}))
	w.server.Config.ReadTimeout, w.server.Config.WriteTimeout = o.listener, o.listener
	if o.http2 {
		w.server.EnableHTTP2 = true
		w.server.StartTLS()
	} else {
		w.server.Start()
	}
	t.Cleanup(w.server.Close)

	root, err := w.Bootstrap(ctx, "root")
	must(t, err)
	w.root = forge.Principal{User: &root}
	w.group, err = w.CreateGroup(ctx, w.root, forge.NewGroup{Path: "people", Visibility: tidelock.Public})
	must(t, err)
	w.project = w.newProject("site", tidelock.Public)
	w.maintainer = w.person("maintainer", tidelock.Maintainer)
	w.developer = w.person("developer", tidelock.Developer)
	w.guest = w.person("guest", tidelock.Guest)
	w.outsider = w.person("outsider", tidelock.NoAccess)
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) newProject(path string, v tidelock.Visibility) tidelock.Project {
	w.t.Helper()
	project, err := w.CreateProject(w.t.Context(), w.root, forge.NewProject{Namespace: w.group.ID, Path: path, Visibility: v})
	must(w.t, err)
	return project
}

// person makes a user with a level in the group and a token.
func (w *world) person(name string, level tidelock.AccessLevel) person {
	w.t.Helper()
	user, err := w.CreateUser(w.t.Context(), w.root, forge.NewUser{Username: name})
	must(w.t, err)
	if level != tidelock.NoAccess {
		_, err = w.SetMember(w.t.Context(), w.root, forge.OnGroup(w.group), user.ID, level, time.Time{})
		must(w.t, err)
	}
	return person{user: user, token: w.token(user, tidelock.ScopeWriteRepository)}
}

func (w *world) token(user tidelock.User, scopes ...tidelock.Scope) string {
	w.t.Helper()
	_, secret, err := w.CreatePersonalToken(w.t.Context(), w.root, user.ID, forge.NewToken{Name: "test", Scopes: scopes})
	must(w.t, err)
	return secret.Reveal()
}

// url is the clone URL of the project, for somebody; the zero person is
// anonymous.
func (w *world) url(p person) string { return w.urlOf("people/site.git", p.user.Username, p.token) }

func (w *world) urlOf(path, username, password string) string {
	u, err := url.Parse(w.server.URL)
	must(w.t, err)
	if username != "" {
		u.User = url.UserPassword(username, password)
	}
	return u.JoinPath(path).String()
}

// repo is the project's repository on disk.
func (w *world) repo() *gitrepo.Repo { return w.disk.Repo(w.project.ID) }

// head is where a ref of the project points on disk; empty when nowhere.
func (w *world) head(name tidelock.RefName) tidelock.CommitID {
	w.t.Helper()
	refs, err := w.repo().ReadRefs(w.t.Context(), name)
	must(w.t, err)
	if len(refs) == 0 {
		return ""
	}
	return refs[0].Object
}

// recorded is where the forge knows a ref of the project to point.
func (w *world) recorded(name tidelock.RefName) tidelock.CommitID {
	w.t.Helper()
	head, err := w.store.Head(w.t.Context(), w.project.ID, name)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return ""
	}
	must(w.t, err)
	return head.Object
}

// intact fails the test unless the repository is sound and the server still
// serves it, and waits until git has let go of it.
func (w *world) intact() {
	w.t.Helper()
	for line := range strings.Lines(w.git(w.repo().Path(), "fsck", "--strict", "--no-dangling")) {
		if !strings.HasPrefix(line, "notice: ") { // that there are no refs yet
			w.t.Errorf("git fsck says: %s", line)
		}
	}
	w.eventually("no quarantine and no locks are left", func() error {
		for _, pattern := range []string{"objects/tmp_objdir-*", "objects/pack/tmp_*", "refs/heads/*.lock", "*.lock"} {
			if left, _ := filepath.Glob(filepath.Join(w.repo().Path(), pattern)); len(left) > 0 {
				return fmt.Errorf("left behind: %v", left)
			}
		}
		return nil
	})
	w.git(".", "ls-remote", w.url(w.developer))
}

// eventually polls until check is satisfied.
func (w *world) eventually(what string, check func() error) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			w.t.Fatalf("%s: %v", what, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// git runs a client's git, which must succeed, and returns what it printed.
func (w *world) git(dir string, args ...string) string {
	w.t.Helper()
	out, err := w.tryGit(dir, args...)
	if err != nil {
		w.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// refusedGit runs a client's git, which must fail saying each of the words.
func (w *world) refusedGit(words []string, dir string, args ...string) {
	w.t.Helper()
	out, err := w.tryGit(dir, args...)
	if err == nil {
		w.t.Errorf("git %s succeeded: %s", strings.Join(args, " "), out)
	}
	for _, word := range words {
		if !strings.Contains(out, word) {
			w.t.Errorf("git %s printed\n%s\nwant %q in it", strings.Join(args, " "), out, word)
		}
	}
}

func (w *world) tryGit(dir string, args ...string) (string, error) {
	w.t.Helper()
	cmd := clientGit(w.t, dir, args...)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func clientGit(t testing.TB, dir string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C",
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_SSL_NO_VERIFY=1",
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com",
		"GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.com",
	}
	return cmd
}

// work makes a working copy with one commit, whose origin is the project as
// somebody sees it.
func (w *world) work(p person) string {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), "work")
	w.git(".", "init", "-q", "-b", "main", dir)
	w.git(dir, "remote", "add", "origin", w.url(p))
	w.commit(dir, "README.md", "hello\n")
	return dir
}

// commit writes a file, commits it and returns the commit.
func (w *world) commit(dir, path, content string) tidelock.CommitID {
	w.t.Helper()
	must(w.t, os.WriteFile(filepath.Join(dir, path), []byte(content), 0o644))
	w.git(dir, "add", "--", path)
	w.git(dir, "commit", "-q", "-m", "change "+path)
	return tidelock.CommitID(w.git(dir, "rev-parse", "HEAD"))
}

// packOf packs everything a commit needs, as a client would send it.
func (w *world) packOf(dir string, commit tidelock.CommitID) []byte {
	w.t.Helper()
	cmd := clientGit(w.t, dir, "pack-objects", "--revs", "--stdout", "-q")
	cmd.Stdin = strings.NewReader(string(commit) + "\n")
	pack, err := cmd.Output()
	must(w.t, err)
	return pack
}

// A faultyStore fails to record pushes on demand.
type faultyStore struct {
	forge.Store
	broken   atomic.Bool
	liveKeys atomic.Pointer[func()] // called once, as keys are looked at again
}

var errBroken = errors.New("disk full")

func (s *faultyStore) RecordPush(ctx context.Context, p tidelock.Push) (tidelock.Push, error) {
	if s.broken.Load() {
		return tidelock.Push{}, errBroken
	}
	return s.Store.RecordPush(ctx, p)
}

func (s *faultyStore) LiveKeys(ctx context.Context, ids []tidelock.KeyID, at time.Time) ([]tidelock.KeyID, error) {
	if call := s.liveKeys.Swap(nil); call != nil {
		(*call)()
	}
	return s.Store.LiveKeys(ctx, ids, at)
}

// pkt frames lines as git does; an empty one is flush.
func pkt(lines ...string) []byte {
	var b bytes.Buffer
	for _, l := range lines {
		if l == "" {
			b.WriteString("0000")
			continue
		}
		fmt.Fprintf(&b, "%04x%s", len(l)+4, l)
	}
	return b.Bytes()
}

const zero = "0000000000000000000000000000000000000000"
