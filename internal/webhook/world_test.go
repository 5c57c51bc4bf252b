package webhook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
	"tidelock.dev/internal/bus"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/seal"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/webhook"
)

// A world is a forge with one project, team/site, a worker, and a receiver.
type world struct {
	*forge.Forge
	t       *testing.T
	url     string // of the store
	store   *store.DB
	repos   *gitrepo.Disk
	hints   *bus.Bus
	log     *slog.Logger
	guard   *webhook.Guard
	root    forge.Principal
	project tidelock.Project
	timeout time.Duration // of one call
	metrics *prometheus.Registry
	stop    func() // the worker that runs
}

func newWorld(t *testing.T) *world {
	t.Helper()
	t.Parallel() // most of each is waiting
	ctx := t.Context()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	dir := t.TempDir()
	box, err := seal.New(make([]byte, 32))
	must(t, err)
	database := "sqlite:" + filepath.Join(dir, "tidelock.db")
	db, err := store.Open(ctx, store.Config{URL: database, Seal: box, Log: log})
	must(t, err)
	repos, err := gitrepo.Open(ctx, gitrepo.Config{Dir: filepath.Join(dir, "repositories"), Log: log})
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
	w := &world{t: t, url: database, store: db, repos: repos, hints: hints, log: log, timeout: 10 * time.Second}
	w.guard, err = webhook.NewGuard(webhook.GuardConfig{Allow: []string{"127.0.0.0/8"}})
	must(t, err)
	w.Forge, err = forge.New(forge.Config{
		Store: db, Repos: repos, Registry: content, Bus: hints, Log: log, CheckHookURL: w.guard.CheckURL, ExternalURL: external,
	})
	must(t, err)
	root, err := w.Bootstrap(ctx, "root")
	must(t, err)
	w.root = forge.Principal{User: &root}
	group, err := w.CreateGroup(ctx, w.root, forge.NewGroup{Path: "team", Visibility: tidelock.Private})
	must(t, err)
	w.project, err = w.CreateProject(ctx, w.root, forge.NewProject{Namespace: group.ID, Path: "site", Visibility: tidelock.Private})
	must(t, err)
	return w
}

// external is where clients of a world reach it.
var external = &url.URL{Scheme: "https", Host: "forge.example", Path: "/base"}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// worker makes a worker whose waits are short.
func (w *world) worker() *webhook.Worker {
	w.t.Helper()
	w.metrics = prometheus.NewRegistry()
	ssh, err := url.Parse("ssh://git@forge.example:2222")
	must(w.t, err)
	worker, err := webhook.New(webhook.Config{
		Forge: w.Forge, Guard: w.guard, Log: w.log, ExternalURL: external, SSHURL: ssh, Version: "1.2", Metrics: w.metrics,
		Timeout: w.timeout, Retry: 2 * time.Millisecond, Window: 20 * time.Millisecond,
	})
	must(w.t, err)
	return worker
}

// run starts a worker; stop, or the end of the test, ends it.
func (w *world) run() {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	worker := w.worker()
	go func() { done <- worker.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		must(w.t, <-done)
	})
	w.t.Cleanup(w.stop)
}

// hook makes a hook for a URL.
func (w *world) hook(url string, change ...func(*forge.HookFields)) tidelock.Hook {
	w.t.Helper()
	fields := forge.HookFields{URL: &url}
	for _, c := range change {
		c(&fields)
	}
	hook, err := w.CreateHook(w.t.Context(), w.root, w.project, fields)
	must(w.t, err)
	return hook
}

func kinds(words ...string) func(*forge.HookFields) {
	return func(f *forge.HookFields) {
		f.Kinds = map[string]bool{"push": false}
		for _, word := range words {
			f.Kinds[word] = true
		}
	}
}

// git runs git in the project's repository.
func (w *world) git(stdin string, args ...string) string {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), "git", append([]string{"--git-dir", w.repos.Repo(w.project.ID).Path()}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.org",
		"GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@example.org", "GIT_AUTHOR_DATE=1700000000 +0130", "GIT_COMMITTER_DATE=1700000000 +0130")
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("git %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out))
}

// commit makes a commit that holds exactly the files, "name=content".
func (w *world) commit(message string, parents []string, files ...string) string {
	w.t.Helper()
	var tree strings.Builder
	for _, file := range files {
		name, content, _ := strings.Cut(file, "=")
		fmt.Fprintf(&tree, "100644 blob %s\t%s\n", w.git(content, "hash-object", "-w", "--stdin"), name)
	}
	args := []string{"commit-tree", "-m", message, w.git(tree.String(), "mktree")}
	for _, p := range parents {
		args = append(args, "-p", p)
	}
	return w.git("", args...)
}

// push moves refs, given as "name=object"; no object deletes. It is told to
// the forge as git's own server does.
func (w *world) push(refs ...string) {
	w.t.Helper()
	var names []tidelock.RefName
	for _, ref := range refs {
		name, object, _ := strings.Cut(ref, "=")
		if object == "" {
			w.git("", "update-ref", "-d", name)
		} else {
			w.git("", "update-ref", name, object)
		}
		names = append(names, tidelock.RefName(name))
	}
	_, err := w.Pushed(w.t.Context(), w.project.ID, w.root, names)
	must(w.t, err)
}

// pushes makes one commit after the other on a branch.
func (w *world) pushes(branch string, n int) {
	w.t.Helper()
	for i := range n {
		w.push("refs/heads/" + branch + "=" + w.commit(fmt.Sprint(branch, i), nil, fmt.Sprintf("f=%s%d", branch, i)))
	}
}

// eventually waits for a condition, but not for ever.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// metric is what one of the worker's metrics, with the values of its labels
// behind its name, shows now.
func (w *world) metric(want string) float64 {
	w.t.Helper()
	families, err := w.metrics.Gather()
	must(w.t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			if name == want {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return 0
}

func (w *world) deliveries(hook tidelock.HookID) []tidelock.Delivery {
	w.t.Helper()
	deliveries, _, err := w.Deliveries(w.t.Context(), w.root, w.project, tidelock.DeliveryFilter{Hook: hook}, tidelock.Page{})
	must(w.t, err)
	return deliveries
}

// A receiver remembers what it was called with.
type receiver struct {
	*httptest.Server
	answer func(n int, w http.ResponseWriter, r *http.Request) // the n-th call, from 1; nil answers 200

	mu    sync.Mutex
	calls []call
}

type call struct {
	uri    string
	header http.Header
	body   []byte
}

func (c call) json(t testing.TB) (body map[string]any) {
	t.Helper()
	must(t, json.Unmarshal(c.body, &body))
	return body
}

func newReceiver(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) *receiver {
	t.Helper()
	rec := &receiver{answer: answer}
	rec.Server = httptest.NewServer(rec)
	t.Cleanup(rec.Close)
	return rec
}

func (rec *receiver) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	rec.mu.Lock()
	rec.calls = append(rec.calls, call{r.RequestURI, r.Header.Clone(), body})
	n := len(rec.calls)
	rec.mu.Unlock()
	if rec.answer != nil {
		rec.answer(n, w, r)
	}
}

func (rec *receiver) received() []call {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	return append([]call(nil), rec.calls...)
}

// messages lists the message of the newest commit of each call, in order.
func (rec *receiver) messages(t testing.TB) (all []string) {
	t.Helper()
	for _, c := range rec.received() {
		body := c.json(t)
		commits := body["commits"].([]any)
		if len(commits) > 0 {
			all = append(all, strings.TrimSpace(commits[len(commits)-1].(map[string]any)["message"].(string)))
		}
	}
	return all
}
