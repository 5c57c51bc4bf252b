package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	sourcev1 "github.com/fluxcd/source-controller/api/v1"

	"tidelock.dev/playground/e2e"
)

// Commits are pushed while the server, the agent and Flux's controllers are
// killed in the middle of applying them. In the end each commit has exactly one
// job for each applier, done, and that of the last commit says what Flux made
// of it.
func TestRolloutsThroughFaults(t *testing.T) {
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	w := reporting{Forge: f, ns: f.Cluster.Namespace(t)}
	f.Trust(w.ns, "root", f.Token)
	random := rand.New(rand.NewPCG(faultSeed(t, newSeed), 0))
	p := w.project("rolling")
	names := []string{"one", "two", "three"}
	files := func(n int, broken bool) map[string]string {
		all := map[string]string{}
		for _, name := range names {
			all[name+"/config.yaml"] = fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: rolling-%s\ndata:\n  n: \"%d\"\n", name, n)
		}
		if broken {
			all["two/config.yaml"] = "apiVersion: v1\nkind: Boat\nmetadata:\n  name: rolling-two\n"
		}
		return all
	}
	commits := []string{p.Push("main", files(0, false))}
	f.Source(w.ns, "rolling", p, e2e.Branch("main"))
	for _, name := range names {
		w.apply(t, sourcev1.GitRepositoryKind, "rolling", name)
	}
	live := map[string]outcome{"one": {"success", ""}, "two": {"success", ""}, "three": {"success", ""}}
	w.waitJobs(t, p, commits[0], live)

	const pushes = 8
	var pushing sync.WaitGroup
	pushing.Go(func() {
		for n := 1; n <= pushes; n++ {
			if err := p.TryCommit(t.Context(), "main", files(n, n%2 == 1)); err != nil {
				t.Error(err)
				return
			}
			id, err := p.TryGit(t.Context(), "rev-parse", "HEAD")
			if err != nil {
				t.Error(err)
				return
			}
			commits = append(commits, id)
			for {
				if _, err = p.TryGit(t.Context(), "push", "--quiet", "origin", "main"); err == nil {
					break
				}
				select {
				case <-t.Context().Done():
					t.Error(err)
					return
				case <-time.After(100 * time.Millisecond):
				}
			}
			select {
			case <-t.Context().Done():
			case <-time.After(time.Second):
			}
		}
	})
	flux := f.Cluster.Flux
	for _, fault := range []func(){
		func() { f.Kill(e2e.Server); f.Restart(e2e.Server) },
		func() { f.Kill(e2e.Agent); f.Restart(e2e.Agent) },
		func() {
			must(t, flux.Kill("kustomize-controller"))
			must(t, flux.Restart(context.Background(), "kustomize-controller"))
		},
		func() { f.Kill(e2e.Agent); f.Kill(e2e.Server); f.Restart(e2e.Server); f.Restart(e2e.Agent) },
		func() {
			must(t, flux.Kill("source-controller"))
			must(t, flux.Restart(context.Background(), "source-controller"))
		},
	} {
		select {
		case <-t.Context().Done():
		case <-time.After(time.Duration(random.IntN(1000)) * time.Millisecond):
		}
		fault()
	}
	pushing.Wait()

	// The last push is one of a good commit, and nothing happens any more.
	last := commits[len(commits)-1]
	w.waitJobs(t, p, last, live)
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		for n, commit := range commits {
			jobs, err := w.statuses(ctx, p, commit, "deploy")
			if err != nil {
				return err
			}
			of := map[string]string{}
			for _, j := range jobs {
				of[j.Name] = j.Status
			}
			if len(jobs) != len(names) || len(of) != len(names) {
				return fmt.Errorf("commit %d has the jobs %+v", n, jobs)
			}
			for _, name := range names {
				switch state := of[w.jobOf(name)]; {
				case state != "success" && state != "failed" && state != "canceled":
					return fmt.Errorf("the job of %s on commit %d is %q", name, n, state)
				case state == "success" && name == "two" && n%2 == 1:
					return fmt.Errorf("commit %d is broken, and the job of %s says success", n, name)
				}
			}
		}
		return nil
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
