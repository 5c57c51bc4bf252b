package gitlabapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
	"tidelock.dev/internal/bus"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitlabapi"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/seal"
	"tidelock.dev/internal/signing"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/webhook"
)

// world is the API over a real forge, a real store and real repositories,
// served on loopback.
type world struct {
	t     *testing.T
	forge *forge.Forge
	repos *gitrepo.Disk

	registry *registry.Registry
	api      *gitlabapi.API
	url      string // of the server
	root     forge.Principal
	token    string // root's, with the scope api
	log      *lockedBuffer

	mu     sync.Mutex
	served map[string]bool // routes that were answered with success

	// audits notes, of the routes that change something and were answered with
	// success, which wrote to the audit log; nil notes nothing.
	audits map[string]bool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOn(t, "sqlite:"+filepath.Join(t.TempDir(), "tidelock.db"))
}

// newWorldOn is newWorld with its data in another database.
func newWorldOn(t *testing.T, database string) *world {
	t.Helper()
	w := &world{t: t, log: &lockedBuffer{}, served: map[string]bool{}}
	log := slog.New(slog.NewTextHandler(io.MultiWriter(w.log, t.Output()), &slog.HandlerOptions{Level: slog.LevelWarn}))
	box, err := seal.New(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Config{URL: database, Seal: box, Log: log})
	must(t, err)
	w.repos, err = gitrepo.Open(t.Context(), gitrepo.Config{Dir: filepath.Join(t.TempDir(), "repositories"), Log: log})
	must(t, err)
	w.registry, err = registry.Open(t.Context(), registry.Config{Dir: filepath.Join(t.TempDir(), "registry"), Log: log})
	must(t, err)
	signer, err := signing.Open(filepath.Join(t.TempDir(), "signing"))
	must(t, err)
	hints, err := bus.Open(t.Context(), bus.Config{Log: log})
	must(t, err)
	guard, err := webhook.NewGuard(webhook.GuardConfig{Allow: []string{"127.0.0.0/8"}})
	must(t, err)
	w.forge, err = forge.New(forge.Config{Store: db, Repos: w.repos, Registry: w.registry, Signer: signer, Bus: hints, Log: log, CheckHookURL: guard.CheckURL})
	must(t, err)

	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.forge.Run(ctx) }()

	server := httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
	external, err := url.Parse("http://" + server.Listener.Addr().String())
	must(t, err)
	hooks, err := webhook.New(webhook.Config{Forge: w.forge, Guard: guard, Log: log, ExternalURL: external})
	must(t, err)
	w.api, err = gitlabapi.New(gitlabapi.Config{Forge: w.forge, Repos: w.repos, Hooks: hooks, Log: log, ExternalURL: external})
	must(t, err)
	server.Start()
	w.url = server.URL
	t.Cleanup(func() {
		server.Close()
		stop()
		if err := <-done; err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		hints.Close()
		must(t, db.Close())
	})

	root, err := w.forge.Bootstrap(t.Context(), "root")
	must(t, err)
	w.root = forge.Principal{User: &root}
	w.token = w.personal(root, tidelock.ScopeAPI)
	return w
}

// serve notes which routes were served.
func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	noted := &noting{ResponseWriter: rw}
	before := w.auditLength(r)
	w.api.ServeHTTP(noted, r)
	if noted.status < 300 {
		after := w.auditLength(r)
		route, _ := gitlabapi.RouteOf(r.Method, strings.TrimPrefix(r.URL.EscapedPath(), gitlabapi.Prefix))
		w.mu.Lock()
		defer w.mu.Unlock()
		w.served[route] = true
		if after > before {
			w.audits[route] = true
		}
	}
}

// auditLength is how many events there are, 0 when nobody asks.
func (w *world) auditLength(r *http.Request) int {
	if w.audits == nil || r.Method == http.MethodGet || r.Method == http.MethodHead {
		return 0
	}
	_, n, err := w.forge.AuditLog(r.Context(), w.root, forge.OnForge, tidelock.AuditFilter{}, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil {
		w.t.Errorf("read the audit log: %v", err)
	}
	return n
}

type noting struct {
	http.ResponseWriter
	status int
}

func (n *noting) WriteHeader(status int) {
	n.status = status
	n.ResponseWriter.WriteHeader(status)
}

// personal makes a personal access token.
func (w *world) personal(user tidelock.User, scopes ...tidelock.Scope) string {
	w.t.Helper()
	_, secret, err := w.forge.CreatePersonalToken(w.t.Context(), w.root, user.ID, forge.NewToken{Name: "test", Scopes: scopes})
	must(w.t, err)
	return secret.Reveal()
}

func (w *world) user(name string) tidelock.User {
	w.t.Helper()
	user, err := w.forge.CreateUser(w.t.Context(), w.root, forge.NewUser{Username: name, Email: name + "@example.com"})
	must(w.t, err)
	return user
}

func (w *world) group(path string, v tidelock.Visibility) tidelock.Namespace {
	w.t.Helper()
	group, err := w.forge.CreateGroup(w.t.Context(), w.root, forge.NewGroup{Path: path, Visibility: v})
	must(w.t, err)
	return group
}

func (w *world) project(in tidelock.Namespace, path string, v tidelock.Visibility) tidelock.Project {
	w.t.Helper()
	project, err := w.forge.CreateProject(w.t.Context(), w.root, forge.NewProject{Namespace: in.ID, Path: path, Visibility: v})
	must(w.t, err)
	return project
}

// push puts files into a project by real git, as one commit on main with the
// annotated tag v1 and the lightweight tag light, and has the forge record it.
func (w *world) push(project tidelock.Project, files map[string]string) tidelock.CommitID {
	w.t.Helper()
	work := w.t.TempDir()
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = work
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
			"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_AUTHOR_DATE=2023-11-14T23:43:20+0130",
			"GIT_COMMITTER_NAME=Bob", "GIT_COMMITTER_EMAIL=bob@example.com", "GIT_COMMITTER_DATE=2023-11-14T22:13:20Z")
		out, err := cmd.CombinedOutput()
		if err != nil {
			w.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", "-b", "main")
	for name, content := range files {
		must(w.t, os.MkdirAll(filepath.Dir(filepath.Join(work, name)), 0o755))
		must(w.t, os.WriteFile(filepath.Join(work, name), []byte(content), 0o644))
	}
	git("add", "-A")
	git("commit", "-q", "-m", "First\n\nbody")
	git("tag", "-a", "v1", "-m", "the first")
	git("tag", "light")
	git("branch", "feature/x")
	git("push", "-q", w.repos.Repo(project.ID).Path(), "--all")
	git("push", "-q", w.repos.Repo(project.ID).Path(), "--tags")
	_, err := w.forge.Pushed(w.t.Context(), project.ID, w.root, []tidelock.RefName{
		"refs/heads/main", "refs/heads/feature/x", "refs/tags/v1", "refs/tags/light",
	})
	must(w.t, err)
	return tidelock.CommitID(git("rev-parse", "HEAD"))
}

// client is the official client, as root.
func (w *world) client() *gitlab.Client {
	w.t.Helper()
	c, err := gitlab.NewClient(w.token, gitlab.WithBaseURL(w.url), gitlab.WithCustomRetryMax(0))
	must(w.t, err)
	return c
}

// An answer is what came back of a call.
type answer struct {
	status int
	header http.Header
	body   string
}

func (a answer) json(t *testing.T) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		t.Fatalf("answer %d is not JSON: %v\n%s", a.status, err, a.body)
	}
	return v
}

func (a answer) object(t *testing.T) map[string]any {
	t.Helper()
	v, ok := a.json(t).(map[string]any)
	if !ok {
		t.Fatalf("answer %d is no object: %s", a.status, a.body)
	}
	return v
}

// call sends a request below Prefix, as it is written, with headers given as
// "Name: value"; a body is JSON unless a header says otherwise.
func (w *world) call(method, path, body string, headers ...string) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), method, w.url+gitlabapi.Prefix+path, strings.NewReader(body))
	must(w.t, err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
		if name == "Host" {
			req.Host = value
		}
	}
	client := &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       30 * time.Second,
	}
	resp, err := client.Do(req)
	must(w.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(w.t, err)
	return answer{resp.StatusCode, resp.Header, string(text)}
}

// as is the header of a token, by the name that most clients use.
func as(token string) string { return "Private-Token: " + token }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func itoa(id int64) string { return strconv.FormatInt(id, 10) }
