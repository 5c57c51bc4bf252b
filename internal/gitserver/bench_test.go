package gitserver_test

import (
	"fmt"
	"net/http/cgi"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"tidelock.dev"
)

// BenchmarkPush compares how many pushes per second eight real git clients get
// through us and through git's own http-backend behind a bare HTTP server,
// both over plain HTTP with the same git and the same settings for fsync and for
// unpacking. Rounds alternate, so that both see the same machine. Ours also
// checks a token, syncs directories and records the push in SQLite.
func BenchmarkPush(b *testing.B) {
	const clients, each = 8, 3
	w := newWorld(b, options{})
	bare := b.TempDir()
	backend := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(w.git(".", "--exec-path"), "git-http-backend"),
		Dir:  bare,
		Env: append([]string{"GIT_PROJECT_ROOT=" + bare, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null"},
			settingsFor(b, "http.receivepack=true", "core.fsync=loose-object,pack,pack-metadata,reference", "core.fsyncMethod=fsync",
				"transfer.fsckObjects=true", "receive.autogc=false", "receive.unpackLimit=1", "core.hooksPath=/dev/null")...),
		InheritEnv: []string{"PATH"},
	})
	defer backend.Close()

	type side struct {
		name  string
		works []string
		spent time.Duration
	}
	ours, theirs := &side{name: "tidelock"}, &side{name: "http-backend"}
	for i := range clients {
		project := w.newProject(fmt.Sprintf("bench-%d", i), tidelock.Public)
		work := w.work(w.maintainer)
		w.git(work, "remote", "set-url", "origin", w.urlOf(project.FullPath+".git", "maintainer", w.maintainer.token))
		ours.works = append(ours.works, work)

		name := fmt.Sprintf("bench-%d.git", i)
		w.git(bare, "init", "-q", "--bare", "--initial-branch=main", name)
		work = w.work(w.maintainer)
		w.git(work, "remote", "set-url", "origin", backend.URL+"/"+name)
		theirs.works = append(theirs.works, work)
	}
	rounds := 0
	push := func(s *side) {
		for _, work := range s.works { // commits are not what is measured
			for i := range each {
				w.commit(work, "file", fmt.Sprintf("%d.%d\n", rounds, i))
				w.git(work, "branch", "-f", fmt.Sprint(i))
			}
		}
		var pushing sync.WaitGroup
		started := time.Now()
		for _, work := range s.works {
			pushing.Go(func() {
				for i := range each {
					if out, err := w.tryGit(work, "push", "-q", "origin", fmt.Sprintf("%d:main", i)); err != nil {
						b.Errorf("push to %s: %v: %s", s.name, err, out)
					}
				}
			})
		}
		pushing.Wait()
		s.spent += time.Since(started)
	}
	push(ours) // the first pushes create the branch
	push(theirs)
	ours.spent, theirs.spent = 0, 0
	for b.Loop() {
		rounds++
		if rounds%2 == 0 {
			push(ours)
			push(theirs)
		} else {
			push(theirs)
			push(ours)
		}
	}
	pushes := float64(rounds * clients * each)
	rate := func(s *side) float64 { return pushes / s.spent.Seconds() }
	b.ReportMetric(rate(ours), "pushes/s")
	b.ReportMetric(rate(theirs), "http-backend-pushes/s")
	b.ReportMetric(rate(ours)/rate(theirs), "ratio")
	if _, total, err := w.store.Pushes(b.Context(), tidelock.PushFilter{}, tidelock.Page{Number: 1, PerPage: 1}); err != nil || total < int(pushes) {
		b.Errorf("%d pushes are recorded, %v, want %v", total, err, pushes)
	}
}

// settingsFor gives git settings by its environment, which its children keep.
func settingsFor(tb testing.TB, settings ...string) []string {
	tb.Helper()
	env := []string{fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(settings))}
	for i, s := range settings {
		key, value, ok := strings.Cut(s, "=")
		if !ok {
			tb.Fatalf("setting %q has no value", s)
		}
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, key), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, value))
	}
	return env
}
