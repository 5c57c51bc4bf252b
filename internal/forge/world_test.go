package forge_test

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

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

// world is a forge over a real store and real repositories, with a clock that
// a test may move.
type world struct {
	*forge.Forge
	t       testing.TB
	store   forge.Store
	repos   *gitrepo.Disk
	content *registry.Registry
	clock   time.Time
	spans   *tracetest.InMemoryExporter
	root    forge.Principal
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, func(s forge.Store) forge.Store { return s })
}

// newWorldWith lets a test stand between the forge and its store.
func newWorldWith(t testing.TB, wrap func(forge.Store) forge.Store) *world {
	t.Helper()
	return newWorldTuned(t, wrap, func(*forge.Config) {})
}

// newWorldTuned lets a test change the configuration, too.
func newWorldTuned(t testing.TB, wrap func(forge.Store) forge.Store, tune func(*forge.Config)) *world {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	dir := t.TempDir()
	box, err := seal.New(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Config{URL: "sqlite:" + filepath.Join(dir, "tidelock.db"), Seal: box, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	repos, err := gitrepo.Open(t.Context(), gitrepo.Config{Dir: filepath.Join(dir, "repositories"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	content, err := registry.Open(t.Context(), registry.Config{Dir: filepath.Join(dir, "registry"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	hints, err := bus.Open(t.Context(), bus.Config{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hints.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, store: wrap(db), repos: repos, content: content, clock: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), spans: tracetest.NewInMemoryExporter()}
	config := forge.Config{
		Store: w.store, Repos: repos, Registry: content, Bus: hints, Log: log, Now: func() time.Time { return w.clock },
		Tracer: sdktrace.NewTracerProvider(sdktrace.WithSyncer(w.spans)),
	}
	tune(&config)
	w.Forge, err = forge.New(config)
	if err != nil {
		t.Fatal(err)
	}
	root, err := w.Bootstrap(t.Context(), "root")
	if err != nil {
		t.Fatal(err)
	}
	w.root = as(root)
	return w
}

func (w *world) user(name string) tidelock.User {
	w.t.Helper()
	user, err := w.CreateUser(w.t.Context(), w.root, forge.NewUser{Username: name})
	if err != nil {
		w.t.Fatal(err)
	}
	return user
}

func (w *world) group(path string, v tidelock.Visibility) tidelock.Namespace {
	w.t.Helper()
	group, err := w.CreateGroup(w.t.Context(), w.root, forge.NewGroup{Path: path, Visibility: v})
	if err != nil {
		w.t.Fatal(err)
	}
	return group
}

func (w *world) project(in tidelock.Namespace, path string, v tidelock.Visibility) tidelock.Project {
	w.t.Helper()
	project, err := w.CreateProject(w.t.Context(), w.root, forge.NewProject{Namespace: in.ID, Path: path, Visibility: v})
	if err != nil {
		w.t.Fatal(err)
	}
	return project
}

func (w *world) member(t forge.Target, u tidelock.User, level tidelock.AccessLevel) {
	w.t.Helper()
	if _, err := w.SetMember(w.t.Context(), w.root, t, u.ID, level, time.Time{}); err != nil {
		w.t.Fatal(err)
	}
}
