package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tidelock.dev/playground/e2e"
)

// The long form of the fault test in `make test`, and its control.
const (
	faultPushes   = 200
	faultProjects = 5
)

// 200 commits are pushed to several projects while server, agent and
// notification-controller are killed and started again at random and the
// agent's connection is cut: in the end every source has its head, and every
// head a handled announcement. Polling intervals are an hour.
func TestFaultsLoseNothing(t *testing.T) {
	w := newFaultWorld(t, faultSeed(t, runSeed))
	w.run(faultPushes)
	if err := w.settled(90 * time.Second); err != nil {
		t.Fatalf("seed %d: %v", w.seed, err)
	}
}

// The control: with the same seed, and without looking again after a gap, a
// push is lost. It shows that the faults above are ones that matter.
func TestFaultsControl(t *testing.T) {
	w := newFaultWorld(t, faultSeed(t, runSeed), "--disable-resync")
	w.run(faultPushes / 4)
	if err := w.settled(15 * time.Second); err == nil {
		t.Fatalf("seed %d: nothing was lost without resync; the faults test nothing", w.seed)
	} else {
		t.Logf("lost, as it should be: %v", err)
	}
}

// TestSoakFaults repeats the fault test with new seeds for TIDELOCK_SOAK.
func TestSoakFaults(t *testing.T) {
	for seed := range soakSeeds(t) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			w := newFaultWorld(t, seed)
			w.silences = true
			w.run(faultPushes)
			if err := w.settled(3 * time.Minute); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		})
	}
}

// runSeed is the seed of a test and of its control.
var runSeed = sync.OnceValue(newSeed)

func newSeed() uint64 { return uint64(time.Now().UnixNano()) }

// faultSeed is TIDELOCK_SEED, or one that otherwise gives; it is printed.
func faultSeed(t *testing.T, otherwise func() uint64) uint64 {
	t.Helper()
	seed := otherwise()
	if text := os.Getenv("TIDELOCK_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("TIDELOCK_SEED: %v", err)
		}
	}
	fmt.Printf("%s: seed %d (set TIDELOCK_SEED to repeat it)\n", t.Name(), seed)
	return seed
}

func soakSeeds(t *testing.T) func(func(uint64) bool) {
	t.Helper()
	text := os.Getenv("TIDELOCK_SOAK")
	if text == "" {
		t.Skip("set TIDELOCK_SOAK to a duration, or run make soak")
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("TIDELOCK_SOAK: %v", err)
	}
	return func(yield func(uint64) bool) {
		for end := time.Now().Add(length); time.Now().Before(end) && !t.Failed(); {
			if !yield(faultSeed(t, newSeed)) {
				return
			}
		}
	}
}

type faultWorld struct {
	*e2e.Forge
	t         *testing.T
	seed      uint64
	random    *rand.Rand
	link      *e2e.Link
	namespace string
	projects  []*e2e.Project
	silences  bool
}

func newFaultWorld(t *testing.T, seed uint64, serverFlags ...string) *faultWorld {
	t.Helper()
	w := &faultWorld{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 0))}
	w.Forge = e2e.StartForge(t, e2e.ForgeConfig{ServerFlags: serverFlags, Link: true})
	w.link = w.Forge.Link
	w.namespace = w.Cluster.Namespace(t)
	w.Trust(w.namespace)
	for i := range faultProjects {
		p := w.Project(fmt.Sprintf("team/site-%d", i), "public")
		p.Push("main", e2e.ConfigMap("site", "0"))
		w.Source(w.namespace, fmt.Sprint("site-", i), p, e2e.Branch("main"))
		w.projects = append(w.projects, p)
	}
	for i, p := range w.projects {
		name := fmt.Sprint("site-", i)
		w.WaitFetched(w.namespace, name, p.Git("rev-parse", "HEAD"), soon)
		w.WaitServed(w.namespace, name)
	}
	return w
}

// run pushes while one fault after another happens. It ends with a push that
// is made while the agent is away, and everything running again.
func (w *faultWorld) run(pushes int) {
	w.t.Helper()
	picks := make([]int, pushes)
	for i := range picks {
		picks[i] = w.random.IntN(len(w.projects))
	}
	done := make(chan error, 1)
	go func() { done <- w.pushAll(picks) }()
	for pushing := true; pushing; {
		w.fault()
		select {
		case err := <-done:
			if err != nil {
				w.t.Fatalf("seed %d: %v", w.seed, err)
			}
			pushing = false
		case <-time.After(time.Duration(w.random.IntN(500)) * time.Millisecond):
		}
	}
	w.link.Cut()
	if err := w.push(w.projects[0], pushes); err != nil {
		w.t.Fatalf("seed %d: %v", w.seed, err)
	}
	w.link.Mend()
}

func (w *faultWorld) pushAll(picks []int) error {
	for i, pick := range picks {
		if err := w.push(w.projects[pick], i+1); err != nil {
			return err
		}
	}
	return nil
}

// push tries until the forge has acknowledged, as a person would.
func (w *faultWorld) push(p *e2e.Project, n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := p.TryCommit(ctx, "main", e2e.ConfigMap("site", fmt.Sprint(n))); err != nil {
		return err
	}
	for {
		_, err := p.TryGit(ctx, "push", "--quiet", "origin", "main")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("push %d: %w", n, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// fault breaks one thing and mends it.
func (w *faultWorld) fault() {
	w.t.Helper()
	wait := func(most int) { time.Sleep(time.Duration(w.random.IntN(most)) * time.Millisecond) }
	kinds := 5
	if w.silences {
		kinds = 6
	}
	switch w.random.IntN(kinds) {
	case 0:
		w.Kill(e2e.Server)
		wait(500)
		w.Restart(e2e.Server)
	case 1:
		w.Kill(e2e.Agent)
		wait(500)
		w.Restart(e2e.Agent)
	case 2:
		if err := w.Cluster.Flux.Kill("notification-controller"); err != nil {
			w.t.Fatal(err)
		}
		wait(500)
		if err := w.Cluster.Flux.Restart(context.Background(), "notification-controller"); err != nil {
			w.t.Fatal(err)
		}
	case 3:
		w.link.Cut()
		wait(1500)
		w.link.Mend()
	case 4:
		w.link.Delay(w.random.IntN(300))
		wait(1500)
		w.link.Cut()
		w.link.Mend()
	case 5:
		w.link.Silence()
		wait(60_000)
		w.link.Cut()
		w.link.Mend()
	}
}

// settled waits until every source has its project's head and every head a
// handled announcement, and otherwise says which has not.
func (w *faultWorld) settled(within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	for {
		var missing []error
		for i, p := range w.projects {
			if err := w.projectSettled(ctx, p, fmt.Sprint("site-", i)); err != nil {
				missing = append(missing, fmt.Errorf("%s: %w", p.Path, err))
			}
		}
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("after %s: %w", within, errors.Join(missing...))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (w *faultWorld) projectSettled(ctx context.Context, p *e2e.Project, name string) error {
	listed, err := p.TryGit(context.WithoutCancel(ctx), "ls-remote", "origin", "refs/heads/main")
	if err != nil {
		return err
	}
	head, _, _ := strings.Cut(listed, "\t")
	source, err := w.Cluster.GitRepository(context.WithoutCancel(ctx), w.namespace, name)
	if err != nil {
		return err
	}
	if a := source.Status.Artifact; a == nil || !strings.HasSuffix(a.Revision, ":"+head) {
		return fmt.Errorf("head %s, artifact %v", head, source.Status.Artifact)
	}
	list, err := w.Announcements(context.WithoutCancel(ctx), p, url.Values{"commit": {head}, "latest": {"true"}})
	if err != nil {
		return err
	}
	for _, a := range list {
		if a.State == "handled" || a.State == "converged" {
			return nil
		}
	}
	return fmt.Errorf("head %s has no handled announcement: %+v", head, list)
}
