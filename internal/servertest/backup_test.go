package servertest_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/backup"
	"tidelock.dev/internal/server"
	"tidelock.dev/internal/servertest"
	"tidelock.dev/internal/store/storetest"
)

// What was acknowledged before a backup began is in it, whatever goes on
// meanwhile, and a server that is made of it goes on from there, in the other
// database too.
func TestBackupWhileServing(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) {
		backUpAndRestore(t, 1, "", func(i int) string {
			if i%2 == 1 {
				return storetest.Postgres(t)
			}
			return ""
		})
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		backUpAndRestore(t, 2, storetest.Postgres(t), func(int) string { return "" })
	})
}

// TestSoakBackup is the same for as long as TIDELOCK_SOAK says, each round
// with other timing.
func TestSoakBackup(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("TIDELOCK_SOAK"))
	if err != nil {
		t.Skip("set TIDELOCK_SOAK to a duration")
	}
	for end := time.Now().Add(length); time.Now().Before(end); {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			from, flip := "", seed%2 == 0
			if flip {
				from = storetest.Postgres(t)
			}
			backUpAndRestore(t, seed, from, func(i int) string {
				if i%2 == 0 {
					return storetest.Postgres(t)
				}
				return ""
			})
		})
	}
}

// A made backup is an archive and what was acknowledged before it began.
type madeBackup struct {
	archive []byte
	pushes  []acknowledged
	newest  int64 // id of a project
	users   []string
}

type acknowledged struct {
	project tidelock.ProjectID
	branch  string
	commit  string
}

// backUpAndRestore makes backups of a busy server, and then servers of them.
func backUpAndRestore(t *testing.T, seed uint64, database string, into func(i int) string) {
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := servertest.Start(t, servertest.PostgreSQL(database))
	b := startBusy(t, s)
	backups := make([]madeBackup, 3)
	for i := range backups {
		b.waitFor(b.count() + 1 + random.IntN(4))
		made := b.before()
		var archive bytes.Buffer
		summary, err := backup.Create(t.Context(), server.Data(s.DataDir, database), &archive, backup.Options{Version: "test", Scratch: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("backup %d: %v", i, summary)
		made.archive = archive.Bytes()
		backups[i] = made
	}
	b.stop()
	s.Stop()
	for i, made := range backups {
		t.Run(fmt.Sprint("backup ", i), func(t *testing.T) { b.check(t, made, into(i)) })
	}
}

// busy is what goes on on a server: two people push, a third makes and
// removes projects and users.
type busy struct {
	t        *testing.T
	server   *servertest.Server
	projects []*servertest.Project
	ada      servertest.User
	stopped  atomic.Bool
	working  sync.WaitGroup

	mu     sync.Mutex
	pushes []acknowledged
	newest int64
	users  []string
	failed error
}

func startBusy(t *testing.T, s *servertest.Server) *busy {
	b := &busy{t: t, server: s, ada: s.User("ada")}
	for _, path := range []string{"team/one", "team/two"} {
		p := s.Project(path, tidelock.Private)
		p.Member(b.ada, tidelock.Maintainer)
		p.Push("main", "app.yaml", "kind: ConfigMap\n")
		s.Call(s.Token, http.MethodPost, fmt.Sprintf("projects/%d/variables", p.ID),
			map[string]any{"key": "PASSWORD", "value": "s3cret of " + path}, nil)
		b.projects = append(b.projects, p)
	}
	s.Project("team/empty", tidelock.Private)
	for _, p := range b.projects {
		dir := p.Dir()
		b.working.Go(func() { b.push(p, dir) })
	}
	b.working.Go(b.change)
	t.Cleanup(b.stop)
	return b
}

func (b *busy) stop() {
	b.stopped.Store(true)
	b.working.Wait()
	if b.failed != nil {
		b.t.Fatal(b.failed)
	}
}

func (b *busy) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failed == nil {
		b.failed = err
	}
	b.stopped.Store(true)
}

// push goes on pushing commits to main, and each to a branch of its own.
func (b *busy) push(p *servertest.Project, dir string) {
	for i := 0; !b.stopped.Load(); i++ {
		own := fmt.Sprint("b", i)
		for _, args := range [][]string{
			{"commit", "--quiet", "--allow-empty", "--message", own},
			{"push", "--quiet", "origin", "HEAD:main", "HEAD:refs/heads/" + own},
		} {
			if out, err := b.server.Git(dir, args...); err != nil {
				b.fail(fmt.Errorf("git %v: %w: %s", args, err, out))
				return
			}
		}
		commit, err := b.server.Git(dir, "rev-parse", "HEAD")
		if err != nil {
			b.fail(err)
			return
		}
		b.mu.Lock()
		b.pushes = append(b.pushes, acknowledged{p.ID, "main", commit}, acknowledged{p.ID, own, commit})
		b.mu.Unlock()
	}
}

// change goes on making users, and projects that it deletes again.
func (b *busy) change() {
	team := b.server.Group("team")
	for i := 0; !b.stopped.Load(); i++ {
		name := fmt.Sprint("user", i)
		user := b.server.User(name)
		brief := b.server.Project(fmt.Sprint("team/brief", i), tidelock.Private)
		b.mu.Lock()
		b.users = append(b.users, user.Token)
		b.newest = int64(brief.ID)
		b.mu.Unlock()
		if got := b.server.Do(http.MethodDelete, fmt.Sprintf("/api/v4/projects/%d", brief.ID), b.server.Token, nil); got.Status != http.StatusAccepted {
			b.fail(fmt.Errorf("delete a project of group %d: got %d %s", team, got.Status, got.Body))
			return
		}
	}
}

func (b *busy) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.pushes)
}

func (b *busy) waitFor(pushes int) {
	b.server.Eventually("pushes", func() bool { return b.count() >= pushes || b.stopped.Load() })
}

// before is what has been acknowledged so far.
func (b *busy) before() madeBackup {
	b.mu.Lock()
	defer b.mu.Unlock()
	return madeBackup{pushes: append([]acknowledged(nil), b.pushes...), newest: b.newest, users: append([]string(nil), b.users...)}
}

// check restores a backup and looks at everything.
func (b *busy) check(t *testing.T, made madeBackup, database string) {
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := server.Restore(t.Context(), dir, database, bytes.NewReader(made.archive), backup.Options{}); err != nil {
		t.Fatal(err)
	}
	// The administrator's first token was used, so it is not in the backup, and
	// none is made again; it is put there for the helpers.
	if err := os.WriteFile(filepath.Join(dir, "root.token"), []byte(b.server.Token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := servertest.Start(t, servertest.PostgreSQL(database), func(c *server.Config) { c.DataDir = dir })
	repo := func(id tidelock.ProjectID) string {
		return filepath.Join(dir, "repositories", fmt.Sprintf("%d.git", id))
	}
	for _, p := range made.pushes {
		if out, err := s.Git(repo(p.project), "merge-base", "--is-ancestor", p.commit, "refs/heads/"+p.branch); err != nil {
			t.Errorf("project %d: %s was acknowledged on %s and is lost: %v %s", p.project, p.commit, p.branch, err, out)
		}
	}
	for _, p := range b.projects {
		s.MustGit(repo(p.ID), "fsck", "--strict")
		// The server finds out what the repository has and the rows have not.
		s.Eventually("heads to be what the refs are", func() bool { return heads(s, p.ID) == refs(s, repo(p.ID)) })
		var variable struct{ Value string }
		s.Call(b.ada.Token, http.MethodGet, fmt.Sprintf("projects/%d/variables/PASSWORD", p.ID), nil, &variable)
		if want := "s3cret of " + p.Path; variable.Value != want {
			t.Errorf("got the secret %q, want %q", variable.Value, want)
		}
		s.MustGit(t.TempDir(), "clone", "--quiet", strings.Replace(p.CloneURL("ada", b.ada.Token), b.host(), hostOf(s), 1))
	}
	for _, token := range made.users {
		if got := s.Do(http.MethodGet, "/api/v4/user", token, nil); got.Status != http.StatusOK {
			t.Errorf("a token made before: got %d %s", got.Status, got.Body)
		}
	}
	next := s.Project("team/next", tidelock.Private)
	if int64(next.ID) <= made.newest {
		t.Errorf("a new project has id %d, which was given before: %d had been", next.ID, made.newest)
	}
	next.Push("main", "app.yaml", "kind: Secret\n")
}

func (b *busy) host() string { return hostOf(b.server) }

func hostOf(s *servertest.Server) string { return strings.TrimPrefix(s.URL, "https://") }

// heads are the branches of a project as the database has them.
func heads(s *servertest.Server, id tidelock.ProjectID) string {
	var all strings.Builder
	for page := 1; ; page++ {
		var branches []struct {
			Name   string
			Commit struct{ ID string }
		}
		s.Call(s.Token, http.MethodGet, fmt.Sprintf("projects/%d/repository/branches?per_page=100&page=%d", id, page), nil, &branches)
		for _, b := range branches {
			fmt.Fprintln(&all, b.Commit.ID, b.Name)
		}
		if len(branches) < 100 {
			return strings.TrimSpace(all.String())
		}
	}
}

// refs are the branches of a repository as git has them.
func refs(s *servertest.Server, dir string) string {
	return s.MustGit(dir, "for-each-ref", "--format=%(objectname) %(refname:short)", "refs/heads")
}
