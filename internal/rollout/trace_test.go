package rollout

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"tidelock.dev"
	"tidelock.dev/internal/bus"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/seal"
	"tidelock.dev/internal/store"
)

// traced is a forge over a real store, and loops that trace what they report.
type traced struct {
	t       *testing.T
	store   forge.Store
	forge   *forge.Forge
	log     *slog.Logger
	spans   *tracetest.InMemoryExporter
	project tidelock.Project
	agent   tidelock.Agent
}

func newTraced(t *testing.T) *traced {
	t.Helper()
	w := &traced{t: t, log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})), spans: tracetest.NewInMemoryExporter()}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	box, err := seal.New(make([]byte, 32))
	must(err)
	db, err := store.Open(t.Context(), store.Config{URL: "sqlite:" + filepath.Join(dir, "tidelock.db"), Seal: box, Log: w.log})
	must(err)
	repos, err := gitrepo.Open(t.Context(), gitrepo.Config{Dir: filepath.Join(dir, "repositories"), Log: w.log})
	must(err)
	content, err := registry.Open(t.Context(), registry.Config{Dir: filepath.Join(dir, "registry"), Log: w.log})
	must(err)
	hints, err := bus.Open(t.Context(), bus.Config{Log: w.log})
	must(err)
	t.Cleanup(func() {
		hints.Close()
		must(db.Close())
	})
	w.store = db
	w.forge, err = forge.New(forge.Config{Store: db, Repos: repos, Registry: content, Bus: hints, Log: w.log})
	must(err)
	user, err := w.forge.Bootstrap(t.Context(), "root")
	must(err)
	root := forge.Principal{User: &user}
	group, err := w.forge.CreateGroup(t.Context(), root, forge.NewGroup{Path: "team"})
	must(err)
	w.project, err = w.forge.CreateProject(t.Context(), root, forge.NewProject{Namespace: group.ID, Path: "site"})
	must(err)
	w.agent, err = w.forge.CreateAgent(t.Context(), root, w.project, "prod")
	must(err)
	return w
}

func (w *traced) loop() *Loop {
	w.t.Helper()
	l, err := New(Config{Forge: w.forge, Log: w.log, Tracer: sdktrace.NewTracerProvider(sdktrace.WithSyncer(w.spans))})
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// push records a push with a trace.
func (w *traced) push(n int, trace string) tidelock.Push {
	w.t.Helper()
	commit := tidelock.CommitID(fmt.Sprintf("%040x", n))
	p, err := w.store.RecordPush(w.t.Context(), tidelock.Push{Project: w.project.ID, Trace: trace, Updates: []tidelock.RefUpdate{
		{Ref: "refs/heads/main", New: commit, Commit: commit},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *traced) save(r tidelock.Rollout) tidelock.Rollout {
	w.t.Helper()
	r.Agent, r.Project = w.agent.ID, w.project.ID
	saved, err := w.store.SaveRollouts(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return saved[0]
}

// told are the spans since the last call, as "trace name from–to".
func (w *traced) told(began time.Time) (lines []string) {
	for _, s := range w.spans.GetSpans() {
		line := fmt.Sprintf("%s %s %s", s.Parent.TraceID().String()[31:], s.Name, s.StartTime.Sub(began))
		if s.Name != "report" {
			line += fmt.Sprintf("–%s", s.EndTime.Sub(began))
		}
		if s.Status.Code == codes.Error {
			line += " " + s.Status.Description
		}
		lines = append(lines, line)
	}
	w.spans.Reset()
	slices.Sort(lines)
	return lines
}

func TestTraceOfRollouts(t *testing.T) {
	w := newTraced(t)
	began := time.Now().Add(-time.Minute).UTC().Truncate(time.Microsecond)
	at := func(after time.Duration) time.Time { return began.Add(after * time.Second) }
	traceOf := func(n int) string { return fmt.Sprintf("00-%032x-%016x-01", n, n) }
	first, second, silent := w.push(1, traceOf(1)), w.push(2, traceOf(2)), w.push(3, "")
	running := tidelock.Rollout{
		Applier: "Kustomization/flux-system/a", Commit: first.Updates[0].Commit, Push: first.ID, State: tidelock.RolloutRunning, Newest: true, Turn: 1, RunningAt: at(1),
	}
	w.save(running)
	oci := w.save(tidelock.Rollout{
		Applier: "Kustomization/flux-system/b", Commit: first.Updates[0].Commit, Push: first.ID, Digest: "sha256:a", State: tidelock.RolloutSuccess, Newest: true,
		Turn: 1, RunningAt: at(2), AppliedAt: at(3), HealthyAt: at(5), FinishedAt: at(5),
	})
	failed := w.save(tidelock.Rollout{
		Applier: "Kustomization/flux-system/c", Commit: second.Updates[0].Commit, Push: second.ID, State: tidelock.RolloutFailed, Message: "image pull", Newest: true,
		Turn: 1, AppliedAt: at(3), FinishedAt: at(9),
	})
	w.save(tidelock.Rollout{
		Applier: "Kustomization/flux-system/d", Commit: silent.Updates[0].Commit, Push: silent.ID, State: tidelock.RolloutSuccess, Newest: true, Turn: 1, AppliedAt: at(1),
	})
	settle := func(want ...string) {
		t.Helper()
		// Two servers and more may do the same work at once.
		var both sync.WaitGroup
		for range 2 {
			l := w.loop()
			both.Go(func() {
				if err := l.settle(context.WithoutCancel(t.Context()), w.project.ID, report); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		if got := w.told(began); !slices.Equal(got, want) {
			t.Errorf("got spans\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	settle(
		"1 apply 2s–3s", "1 become healthy 3s–5s", "1 report 5s",
		"2 apply 3s–3s", "2 report 9s image pull",
	)
	settle()

	// What failed becomes healthy after all; what was healthy fails.
	failed.State, failed.HealthyAt, failed.FinishedAt, failed.ReportedAt, failed.Message = tidelock.RolloutSuccess, at(12), at(12), time.Time{}, ""
	oci.State, oci.Message, oci.ReportedAt, oci.FinishedAt = tidelock.RolloutFailed, "crash loop", time.Time{}, at(20)
	w.save(failed)
	w.save(oci)
	running.State, running.AppliedAt, running.HealthyAt, running.FinishedAt = tidelock.RolloutSuccess, at(4), at(3), at(4)
	w.save(running)
	settle("1 apply 1s–4s", "1 become healthy 3s–3s", "1 report 4s", "2 become healthy 3s–12s")
	settle()
}

func TestNothingIsTracedWithoutATracer(t *testing.T) {
	w := newTraced(t)
	push := w.push(1, "00-00000000000000000000000000000001-0000000000000001-01")
	w.save(tidelock.Rollout{Applier: "Kustomization/flux-system/a", Commit: push.Updates[0].Commit, Push: push.ID, State: tidelock.RolloutSuccess, Newest: true, Turn: 1, HealthyAt: time.Now()})
	l, err := New(Config{Forge: w.forge, Log: w.log})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.settle(t.Context(), w.project.ID, report); err != nil {
		t.Fatal(err)
	}
	claimed, err := w.store.ClaimTraces(t.Context(), w.project.ID, time.Time{}, 10)
	if err != nil || len(claimed) != 1 {
		t.Errorf("got %+v, %v, want the rollout to be untold", claimed, err)
	}
}
