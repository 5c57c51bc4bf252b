package agentserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/agentserver"
	"tidelock.dev/internal/bus"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/tunnel"
)

const (
	// deadline only bounds how long a failure takes. Writing what could not be
	// written is tried every 5 s, and twelve hundred sources take a while
	// with the race detector.
	deadline = 45 * time.Second
	base     = "https://forge.example"
)

// A world is a real forge with a real store and real repositories, and an
// agent server on a real TLS listener.
type world struct {
	*forge.Forge
	t      *testing.T
	repos  *gitrepo.Disk
	images *registry.Registry
	faults *faultyStore
	log    *lockedBuffer
	root   forge.Principal
	group  tidelock.Namespace
	config agentserver.Config

	witness tidelock.Project // see conversation.quiet

	front   *httptest.Server
	mu      sync.Mutex
	server  *agentserver.Server // what front leads to
	metrics *prometheus.Registry
	stop    func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldWith(t, agentserver.Config{})
}

func newWorldWith(t *testing.T, c agentserver.Config) *world {
	t.Helper()
	w := &world{t: t, log: &lockedBuffer{}, stop: func() {}}
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelInfo}))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", w.log)
		}
	})
	dir := t.TempDir()
	db, err := store.Open(t.Context(), store.Config{URL: "sqlite:" + filepath.Join(dir, "tidelock.db"), Log: log})
	check(t, err)
	w.faults = &faultyStore{Store: db}
	w.repos, err = gitrepo.Open(t.Context(), gitrepo.Config{Dir: filepath.Join(dir, "repositories"), Log: log})
	check(t, err)
	w.images, err = registry.Open(t.Context(), registry.Config{Dir: filepath.Join(dir, "registry"), Log: log})
	check(t, err)
	hints, err := bus.Open(t.Context(), bus.Config{Log: log})
	check(t, err)
	t.Cleanup(func() {
		hints.Close()
		db.Close()
	})
	w.Forge, err = forge.New(forge.Config{Store: w.faults, Repos: w.repos, Registry: w.images, Bus: hints, Log: log, Tracer: c.Tracer})
	check(t, err)
	root, err := w.Bootstrap(t.Context(), "root")
	check(t, err)
	// As if root had signed in: a token with every right.
	_, secret, err := w.IssueBootstrapToken(t.Context(), root)
	check(t, err)
	w.root, err = w.Authenticate(t.Context(), secret)
	check(t, err)
	w.group, err = w.CreateGroup(t.Context(), w.root, forge.NewGroup{Path: "team", Visibility: tidelock.Public})
	check(t, err)
	w.witness = w.project("witness", tidelock.Public)

	c.Forge, c.Log, c.Version, c.ForgeURLs = w.Forge, log, "v-test", []string{base, "ssh://git@forge.example:2222"}
	w.config = c
	w.front = httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		server := w.server
		w.mu.Unlock()
		server.ServeHTTP(rw, r)
	}))
	t.Cleanup(w.front.Close)
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start runs a new agent server behind the same address.
func (w *world) start() {
	w.t.Helper()
	c := w.config
	w.metrics = prometheus.NewPedanticRegistry()
	c.Metrics = w.metrics
	server, err := agentserver.New(c)
	check(w.t, err)
	w.mu.Lock()
	w.server = server
	w.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.t.Errorf("run: %v", err)
			}
		case <-time.After(2 * deadline):
			w.t.Error("the server did not stop")
		}
	})
	eventually(w.t, "the server to take agents", func() bool {
		answer, err := w.front.Client().Get(w.front.URL + agentserver.Path)
		check(w.t, err)
		answer.Body.Close()
		return answer.StatusCode != http.StatusServiceUnavailable
	})
}

// logged reports whether the log has a line with a text.
func (w *world) logged(text string) bool { return strings.Contains(w.log.String(), text) }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v for %s", deadline, what)
		}
	}
}

// project makes a project in the group.
func (w *world) project(path string, v tidelock.Visibility) tidelock.Project {
	w.t.Helper()
	p, err := w.CreateProject(w.t.Context(), w.root, forge.NewProject{Namespace: w.group.ID, Path: path, Visibility: v})
	check(w.t, err)
	return p
}

func (w *world) git(project tidelock.Project, stdin string, args ...string) string {
	w.t.Helper()
	cmd := exec.CommandContext(w.t.Context(), "git", append([]string{"-C", w.repos.Repo(project.ID).Path(), "-c", "safe.directory=*"}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		if failed, ok := errors.AsType[*exec.ExitError](err); ok {
			w.t.Fatalf("git %v: %v: %s", args, err, failed.Stderr)
		}
		w.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// push makes a commit with files on a branch and records it.
func (w *world) push(project tidelock.Project, branch string, files ...string) tidelock.CommitID {
	w.t.Helper()
	var script strings.Builder
	fmt.Fprintf(&script, "commit refs/heads/%s\ncommitter Ada <ada@example.com> %d +0000\ndata 4\npush\n", branch, time.Now().UnixNano()/1000)
	if head := w.git(project, "", "for-each-ref", "--format=%(objectname)", "refs/heads/"+branch); head != "" {
		fmt.Fprintf(&script, "from %s\n", head)
	}
	for i := 0; i+1 < len(files); i += 2 {
		fmt.Fprintf(&script, "M 100644 inline %s\ndata %d\n%s\n", files[i], len(files[i+1]), files[i+1])
	}
	w.git(project, script.String(), "fast-import", "--quiet")
	id := w.git(project, "", "rev-parse", "refs/heads/"+branch)
	w.record(project, tidelock.BranchRef(branch))
	return tidelock.CommitID(id)
}

// record tells the forge that refs may have moved, as a push does.
func (w *world) record(project tidelock.Project, refs ...tidelock.RefName) {
	w.t.Helper()
	_, err := w.Pushed(w.t.Context(), project.ID, w.root, refs)
	check(w.t, err)
}

// An agentUnderTest is an agent's registration with one token.
type registration struct {
	tidelock.Agent
	project tidelock.Project
	token   tidelock.AgentToken
	secret  tidelock.Secret
}

func (w *world) register(name string) registration {
	w.t.Helper()
	config := w.project("config-"+name, tidelock.Private)
	agent, err := w.CreateAgent(w.t.Context(), w.root, config, name)
	check(w.t, err)
	r := registration{Agent: agent, project: config}
	r.token, r.secret = w.token(r)
	return r
}

func (w *world) token(r registration) (tidelock.AgentToken, tidelock.Secret) {
	w.t.Helper()
	token, secret, err := w.CreateAgentToken(w.t.Context(), w.root, r.project, r.ID, "test", "")
	check(w.t, err)
	return token, secret
}

// A client is the other end of the wire: a scripted agent.
type client struct {
	t       *testing.T
	world   *world
	tunnel  *tunnel.Session
	session agentrpc.SessionServiceClient
	configs agentrpc.ConfigurationServiceClient
	sources agentrpc.AnnouncementServiceClient
}

func (w *world) dial(secret tidelock.Secret) (*tunnel.Session, error) {
	return tunnel.Dial(w.t.Context(), tunnel.DialConfig{
		URL:    "wss" + strings.TrimPrefix(w.front.URL, "https") + agentserver.Path,
		Header: http.Header{"Authorization": {"Bearer " + secret.Reveal()}},
		TLS:    w.front.Client().Transport.(*http.Transport).TLSClientConfig,
	})
}

// connect dials and registers.
func (w *world) connect(r registration, instance string) *client {
	w.t.Helper()
	s, err := w.dial(r.secret)
	check(w.t, err)
	w.t.Cleanup(func() { s.Close("test over") })
	c := w.over(s)
	_, err = c.session.Register(w.t.Context(), &agentrpc.RegisterRequest{Instance: instance, Version: "v-agent", Leader: true})
	check(w.t, err)
	return c
}

func (w *world) over(s *tunnel.Session) *client {
	http := s.Client()
	return &client{
		t: w.t, world: w, tunnel: s,
		session: agentrpc.NewSessionServiceClient(http, "http://forge"),
		configs: agentrpc.NewConfigurationServiceClient(http, "http://forge"),
		sources: agentrpc.NewAnnouncementServiceClient(http, "http://forge"),
	}
}

// A conversation is one announcement stream, read in the background.
type conversation struct {
	t      *testing.T
	stream *connect.BidiStreamForClientSimple[agentrpc.AnnounceRequest, agentrpc.AnnounceResponse]
	cancel context.CancelFunc
	heard  chan *agentrpc.AnnounceResponse
	err    chan error

	world     *world
	witnessed bool // quiet has added its source
}

// announce opens a stream with a whole set of sources.
func (c *client) announce(set ...*agentrpc.Source) *conversation {
	c.t.Helper()
	a := c.announceSilently()
	a.say(&agentrpc.SourceChange{Complete: true, Upserts: set})
	return a
}

func (c *client) announceSilently() *conversation {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := c.sources.Announce(ctx)
	check(c.t, err)
	a := &conversation{t: c.t, world: c.world, stream: stream, cancel: cancel,
		heard: make(chan *agentrpc.AnnounceResponse, 100_000), err: make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			m, err := stream.Receive()
			if err != nil {
				a.err <- err
				return
			}
			a.heard <- m
		}
	}()
	c.t.Cleanup(func() {
		cancel()
		<-done
	})
	return a
}

func (a *conversation) send(m *agentrpc.AnnounceRequest) {
	a.t.Helper()
	check(a.t, a.stream.Send(m))
}

func (a *conversation) say(m *agentrpc.SourceChange) {
	a.t.Helper()
	a.send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Sources{Sources: m}})
}

func (a *conversation) progress(p *agentrpc.Progress) {
	a.t.Helper()
	a.send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Progress{Progress: p}})
}

// delivered confirms an announcement.
func (a *conversation) delivered(m *agentrpc.Announcement) {
	a.t.Helper()
	a.progress(&agentrpc.Progress{SourceId: m.GetSourceId(), Number: m.GetNumber(), State: agentrpc.Progress_STATE_DELIVERED})
}

func (a *conversation) digest(delivered map[string]int64) {
	a.t.Helper()
	a.send(&agentrpc.AnnounceRequest{Message: &agentrpc.AnnounceRequest_Digest{Digest: &agentrpc.Digest{Sha256: agentrpc.DigestOf(delivered)}}})
}

// next waits for the next message.
func (a *conversation) next() *agentrpc.AnnounceResponse {
	a.t.Helper()
	select {
	case m := <-a.heard:
		return m
	case err := <-a.err:
		a.err <- err
		a.t.Fatalf("the stream ended: %v", err)
	case <-time.After(deadline):
		a.t.Fatalf("heard nothing for %v", deadline)
	}
	return nil
}

func (a *conversation) announcement() *agentrpc.Announcement {
	a.t.Helper()
	m := a.next()
	if m.GetAnnouncement() == nil {
		a.t.Fatalf("heard %v, want an announcement", m)
	}
	return m.GetAnnouncement()
}

func (a *conversation) resolution() *agentrpc.Resolution {
	a.t.Helper()
	m := a.next()
	if m.GetResolution() == nil {
		a.t.Fatalf("heard %v, want a resolution", m)
	}
	return m.GetResolution()
}

// served waits for the resolution that a source is served by a project.
func (a *conversation) served(id string, project tidelock.ProjectID) {
	a.t.Helper()
	r := a.resolution()
	if r.GetSourceId() != id || r.GetServed() != (project != 0) || r.GetProjectId() != int64(project) {
		a.t.Fatalf("heard %v, want %s served by project %d", r, id, project)
	}
}

// wants waits for the announcement of a commit.
func (a *conversation) wants(id string, commit tidelock.CommitID) *agentrpc.Announcement {
	a.t.Helper()
	m := a.announcement()
	if m.GetSourceId() != id || m.GetCommit() != string(commit) || m.GetGone() != (commit == "") {
		a.t.Fatalf("heard %v, want %s at %q", m, id, commit)
	}
	return m
}

// quiet checks that nothing is said about what happened so far. Events arrive
// in order, so once a later push to another project is announced, and what was
// marked with it is dealt with, there is nothing more to come.
func (a *conversation) quiet() {
	a.t.Helper()
	const id = witnessID
	w := a.world
	if !a.witnessed {
		a.witnessed = true
		a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{source(id, w.witness)}})
		a.served(id, w.witness.ID)
		if head := w.git(w.witness, "", "for-each-ref", "--format=%(objectname)", "refs/heads/main"); head != "" {
			a.wants(id, tidelock.CommitID(head))
		}
	}
	a.wants(id, w.push(w.witness, "main"))
	marker := fmt.Sprintf("GitRepository/test/marker-%d", time.Now().UnixNano())
	a.say(&agentrpc.SourceChange{Upserts: []*agentrpc.Source{{Id: marker, Uid: marker, Url: base + "/no/where"}}})
	a.served(marker, 0)
	a.say(&agentrpc.SourceChange{Removals: []string{marker}})
}

// ends waits for the stream's end and returns its code.
func (a *conversation) ends() connect.Code {
	a.t.Helper()
	for {
		select {
		case err := <-a.err:
			a.err <- err
			return connect.CodeOf(err)
		case <-a.heard:
		case <-time.After(deadline):
			a.t.Fatalf("the stream did not end within %v", deadline)
		}
	}
}

const witnessID = "GitRepository/test/witness"

const siteID = "GitRepository/flux-system/site"

// source is a GitRepository of a project's branch main.
func source(id string, p tidelock.Project) *agentrpc.Source {
	return &agentrpc.Source{Id: id, Uid: "uid-" + id, Url: base + "/" + p.FullPath + ".git", Ref: &agentrpc.RefSpec{Branch: "main"}}
}

// state reads the newest recorded announcement of a source.
func (w *world) latest(agent tidelock.AgentID, id string) tidelock.Announcement {
	w.t.Helper()
	list, err := w.LatestAnnouncements(w.t.Context(), agent)
	check(w.t, err)
	i := slices.IndexFunc(list, func(a tidelock.Announcement) bool { return a.Source == tidelock.SourceID(id) })
	if i < 0 {
		return tidelock.Announcement{}
	}
	return list[i]
}

func (w *world) awaitState(agent tidelock.AgentID, id string, number int64, state tidelock.AnnouncementState) tidelock.Announcement {
	w.t.Helper()
	var a tidelock.Announcement
	eventually(w.t, fmt.Sprintf("number %d of %s to be %s", number, id, state), func() bool {
		a = w.latest(agent, id)
		return a.Number == number && a.State == state
	})
	return a
}

// A faultyStore fails where a test says so.
type faultyStore struct {
	forge.Store
	mu     sync.Mutex
	err    error
	saving error // of saving alone
}

func (s *faultyStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *faultyStore) failSaving(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saving = err
}

func (s *faultyStore) savingFault() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.err, s.saving)
}

func (s *faultyStore) fault() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *faultyStore) Head(ctx context.Context, id tidelock.ProjectID, ref tidelock.RefName) (tidelock.Head, error) {
	if err := s.fault(); err != nil {
		return tidelock.Head{}, err
	}
	return s.Store.Head(ctx, id, ref)
}

func (s *faultyStore) SaveAnnouncements(ctx context.Context, list ...tidelock.Announcement) error {
	if err := s.savingFault(); err != nil {
		return err
	}
	return s.Store.SaveAnnouncements(ctx, list...)
}

func (s *faultyStore) SaveAgentSources(ctx context.Context, agent tidelock.AgentID, upserts []tidelock.AgentSource, removals []tidelock.SourceID) error {
	if err := s.savingFault(); err != nil {
		return err
	}
	return s.Store.SaveAgentSources(ctx, agent, upserts, removals)
}

func (s *faultyStore) SaveObservations(ctx context.Context, agent tidelock.AgentID, upserts []tidelock.Observation, removals []tidelock.ObjectID) error {
	if err := s.savingFault(); err != nil {
		return err
	}
	return s.Store.SaveObservations(ctx, agent, upserts, removals)
}

func (s *faultyStore) SaveRollouts(ctx context.Context, list ...tidelock.Rollout) ([]tidelock.Rollout, error) {
	if err := s.savingFault(); err != nil {
		return nil, err
	}
	return s.Store.SaveRollouts(ctx, list...)
}

// A lockedBuffer takes the log of all goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
