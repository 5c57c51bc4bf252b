package rollout_test

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/servertest"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/store/storetest"
)

// TestFaults pushes to projects that are applied in a cluster, and breaks what
// is in between at any moment. In the end every commit has exactly one rollout
// and one status for each applier, in the state that the cluster saw.
func TestFaults(t *testing.T) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		t.Run(database, func(t *testing.T) {
			t.Parallel()
			faults{seed: 1, pushes: 8, appliers: 4, faults: 5}.run(t, database)
		})
	}
}

// TestSoakFaults is the same for as long as TIDELOCK_SOAK says, each round
// with other timing.
func TestSoakFaults(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("TIDELOCK_SOAK"))
	if err != nil {
		t.Skip("set TIDELOCK_SOAK to a duration")
	}
	for end := time.Now().Add(length); time.Now().Before(end); {
		seed := rand.Uint64()
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			database := []string{"SQLite", "PostgreSQL"}[seed%2]
			faults{seed: seed, pushes: 40, appliers: 25, faults: 30}.run(t, database)
		})
	}
}

type faults struct {
	seed             uint64
	pushes, appliers int // of each of two projects
	faults           int
}

func (f faults) run(t *testing.T, database string) {
	t.Logf("seed %d", f.seed)
	var options []servertest.Option
	name := fmt.Sprintf("faults-%d-%d", os.Getpid(), f.seed)
	var address string
	if database == "PostgreSQL" {
		address = named(t, storetest.Postgres(t), name)
		options = append(options, servertest.PostgreSQL(address))
	}
	s := servertest.Start(t, options...)
	breakDatabase := func() { terminate(t, address, name) }
	if address == "" {
		address = "sqlite:" + filepath.Join(s.DataDir, "tidelock.db")
		breakDatabase = func() { hold(t, address) }
	}

	c := newCluster(f.seed)
	projects := []*tree{f.project(t, s, c, "team/site"), f.project(t, s, c, "team/shop")}
	_, token := s.Project("team/ops", tidelock.Private).Agent("prod")
	a := newAgent(t, c, s.URL, s.CAFile, token)

	ctx, stop := context.WithTimeout(t.Context(), 10*time.Minute)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { a.run(ctx) })
	db, err := store.Open(t.Context(), store.Config{URL: address})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	// Only what is known to follow a project is planned for.
	s.Eventually("the forge to know of all appliers", func() bool {
		seen, err := db.Observations(t.Context(), tidelock.ObservationFilter{Project: projects[0].ID})
		also, err2 := db.Observations(t.Context(), tidelock.ObservationFilter{Project: projects[1].ID})
		return err == nil && err2 == nil && len(seen)+len(also) == 2*(f.appliers+1)
	})

	busy, quiet := context.WithCancel(ctx)
	var working, pushing sync.WaitGroup
	working.Go(func() { // the cluster goes on, at a speed of its own
		random := rand.New(rand.NewPCG(f.seed, 2))
		for busy.Err() == nil {
			c.step()
			pause(busy, time.Duration(random.IntN(20))*time.Millisecond)
		}
	})
	for i, p := range projects {
		pushing.Go(func() {
			random := rand.New(rand.NewPCG(f.seed, 3+uint64(i)))
			for n := range f.pushes {
				p.push(busy, n)
				pause(busy, time.Duration(random.IntN(150))*time.Millisecond)
			}
		})
	}
	random := rand.New(rand.NewPCG(f.seed, 9))
	for range f.faults {
		pause(ctx, time.Duration(random.IntN(300))*time.Millisecond)
		switch random.IntN(4) {
		case 0, 1:
			t.Log("the server is killed")
			s.Kill()
			pause(ctx, time.Duration(random.IntN(100))*time.Millisecond)
			s.Start()
		case 2:
			t.Log("the agent's connection is cut")
			a.cut()
		case 3:
			t.Log("the database fails")
			breakDatabase()
		}
	}
	pushing.Wait()
	quiet()
	working.Wait()
	for c.step() {
	}

	var wrong []string
	for end := time.Now().Add(3 * time.Minute); ; pause(ctx, 100*time.Millisecond) {
		wrong = nil
		for _, p := range projects {
			wrong = append(wrong, p.check(t, db, c)...)
		}
		if len(wrong) == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("in the end %d things are wrong:\n%s", len(wrong), strings.Join(wrong[:min(len(wrong), 40)], "\n"))
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// A tree is a working tree of a project, and the source that follows it.
type tree struct {
	*servertest.Project
	t       *testing.T
	source  *source
	cluster *cluster
	dir     string
	env     []string
}

func (f faults) project(t *testing.T, s *servertest.Server, c *cluster, path string) *tree {
	p := s.Project(path, tidelock.Public)
	_, name, _ := strings.Cut(path, "/")
	tr := &tree{
		Project: p, t: t, cluster: c, dir: t.TempDir(),
		source: c.follow(name, s.URL+"/"+path+".git", f.appliers),
		env: append(os.Environ(), "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_SSL_CAINFO="+s.CAFile,
			"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@forge.example", "GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@forge.example"),
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"remote", "add", "origin", p.CloneURL("root", s.Token)}} {
		if out, err := tr.git(t.Context(), args...); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	return tr
}

func (p *tree) git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env = p.dir, p.env
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// push makes a commit and pushes it until that is acknowledged.
func (p *tree) push(ctx context.Context, n int) {
	if out, err := p.git(ctx, "commit", "-q", "--allow-empty", "-m", fmt.Sprint(n)); err != nil {
		p.t.Errorf("commit: %v: %s", err, out)
		return
	}
	for ctx.Err() == nil {
		if _, err := p.git(ctx, "push", "-q", "origin", "main"); err == nil {
			break
		}
		pause(ctx, 20*time.Millisecond)
	}
	head, err := p.git(ctx, "rev-parse", "HEAD")
	if err != nil {
		p.t.Errorf("read the head: %v", err)
		return
	}
	p.cluster.pushed(p.source, tidelock.CommitID(head))
}

// check compares what the forge recorded with what happened.
func (p *tree) check(t *testing.T, db forge.Store, c *cluster) (wrong []string) {
	say := func(format string, args ...any) {
		wrong = append(wrong, p.Path+": "+fmt.Sprintf(format, args...))
	}
	must := func(err error) {
		if err != nil {
			say("%v", err)
		}
	}
	ctx := t.Context()
	pushes, _, err := db.Pushes(ctx, tidelock.PushFilter{Project: p.ID}, tidelock.Page{})
	must(err)
	rollouts, _, err := db.Rollouts(ctx, tidelock.RolloutFilter{Project: p.ID}, tidelock.Page{})
	must(err)
	type key struct {
		applier string
		commit  tidelock.CommitID
	}
	found := map[key][]tidelock.Rollout{}
	for _, r := range rollouts {
		k := key{string(r.Applier), r.Commit}
		found[k] = append(found[k], r)
		if r.ReportedAt.IsZero() {
			say("%s of %.8s is not reported", r.Applier, r.Commit)
		}
	}
	// Of two pushes that came while the database failed, only the last one is
	// recorded; the other one is known of if the cluster had it.
	commits := map[tidelock.CommitID]bool{} // whether it was recorded
	for _, r := range rollouts {
		commits[r.Commit] = false
	}
	for _, push := range pushes {
		for _, u := range push.Updates {
			commits[u.Commit] = true
		}
	}
	if !commits[p.source.head] {
		say("the head %.8s was never recorded", p.source.head)
	}
	count := 0
	for commit, recorded := range commits {
		statuses, _, err := db.Statuses(ctx, tidelock.StatusFilter{Project: p.ID, Commit: commit}, tidelock.Page{})
		must(err)
		jobs := map[string][]tidelock.StatusState{}
		for _, s := range statuses {
			jobs[s.Name] = append(jobs[s.Name], s.State)
		}
		for _, a := range c.appliers {
			if a.source != p.source {
				continue
			}
			list := found[key{a.id, commit}]
			if len(list) == 0 && !recorded {
				continue
			}
			count++
			if len(list) != 1 {
				say("%s has %d rollouts of %.8s", a.id, len(list), commit)
				continue
			}
			r := list[0]
			if want := a.end(commit); r.State != want {
				say("%s of %.8s is %s, want %s", a.id, commit, r.State, want)
			}
			if r.Newest != (commit == p.source.head) {
				say("%s of %.8s is the newest: %t", a.id, commit, r.Newest)
			}
			want := []tidelock.StatusState{map[tidelock.RolloutState]tidelock.StatusState{
				tidelock.RolloutSuccess: tidelock.StatusSuccess, tidelock.RolloutFailed: tidelock.StatusFailed, tidelock.RolloutSuperseded: tidelock.StatusCanceled,
			}[r.State]}
			if got := jobs[r.JobName()]; !slices.Equal(got, want) {
				say("%.8s has the jobs %s %v, want %v", commit, r.JobName(), got, want)
			}
			delete(jobs, r.JobName())
		}
		if len(jobs) > 0 {
			say("%.8s has other jobs: %v", commit, jobs)
		}
	}
	if count != len(rollouts) {
		say("there are %d rollouts, want %d", len(rollouts), count)
	}
	return wrong
}

// end is what became of a commit in an applier.
func (a *applier) end(commit tidelock.CommitID) tidelock.RolloutState {
	for _, o := range append(slices.Clone(a.history), a.outcomes[:min(1, len(a.outcomes))]...) {
		if o.commit == commit {
			switch {
			case o.state == failed:
				return tidelock.RolloutFailed
			case o.state == ready && o.health == healthy:
				return tidelock.RolloutSuccess
			}
		}
	}
	return tidelock.RolloutSuperseded
}

// named gives the connections of a server to a database a name.
func named(t *testing.T, address, name string) string {
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("application_name", name)
	u.RawQuery = q.Encode()
	return u.String()
}

// terminate ends all connections of a name.
func terminate(t *testing.T, address, name string) {
	db, err := sql.Open("pgx", named(t, address, "terminator"))
	if err != nil {
		t.Error(err)
		return
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1`, name); err != nil {
		t.Error(err)
	}
}

// hold keeps everybody else from writing to a SQLite database for a moment.
func hold(t *testing.T, address string) {
	db, err := store.Open(t.Context(), store.Config{URL: address})
	if err != nil {
		t.Error(err)
		return
	}
	defer db.Close()
	if err := db.Atomically(t.Context(), func(ctx context.Context) error {
		pause(ctx, 300*time.Millisecond)
		return nil
	}); err != nil {
		t.Error(err)
	}
}
