package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/port"
	"tidelock.dev/playground/supervisor"
)

// Names of the processes of a [Forge], for Kill and Restart.
const (
	Server = "server"
	Agent  = "agent"
)

// sshPort names the port of git over SSH in the book of ports.
const sshPort = "ssh"

// ForgeConfig says how a Forge differs from the usual one.
type ForgeConfig struct {
	ServerBinary string   // default: built from this tree
	AgentBinary  string   // default: the same
	ServerFlags  []string // added to those of the server
	Link         bool     // the agent dials through a Link that can be cut
	AgentConfig  string   // the agent's config.yaml; default points at the cluster's receivers
	NoAgent      bool     // register no agent, start none
}

// A Forge is a Tidelock server with one agent in the run's cluster, each a
// process of its own that may be killed. Its sources cannot be those of
// another test: each server has its own port and so its own URLs.
type Forge struct {
	Cluster *System
	Dir     string
	URL     string // external
	SSHURL  string // of git over SSH
	Token   string // of the administrator
	CAFile  string
	AgentID int64
	Health  string // address of the agent's probes and metrics
	Link    *Link  // nil unless asked for

	t          testing.TB
	config     ForgeConfig
	supervisor *supervisor.Supervisor
	web        *http.Client
	agents     *Project
	groups     *sync.Mutex // is held by who makes one
}

var build struct {
	once sync.Once
	path string
	err  error
}

// Binary returns this tree's tidelock, built once per run.
func Binary(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		build.path = filepath.Join(Cluster(t).Dir, "tidelock")
		build.err = BuildTidelock("../..", build.path)
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return build.path
}

// BuildTidelock builds cmd/tidelock of a source tree.
func BuildTidelock(tree, path string) error {
	cmd := exec.Command("go", "build", "-o", path, "./cmd/tidelock")
	cmd.Dir = tree
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build tidelock in %q: %w\n%s", tree, err, out)
	}
	return nil
}

// StartForge returns a server that answers and, unless told otherwise, an
// agent that is connected. Both end with the test.
func StartForge(t testing.TB, config ForgeConfig) *Forge {
	t.Helper()
	f := &Forge{t: t, Cluster: Cluster(t), Dir: t.TempDir(), config: config, groups: new(sync.Mutex)}
	if f.config.ServerBinary == "" {
		f.config.ServerBinary = Binary(t)
	}
	if f.config.AgentBinary == "" {
		f.config.AgentBinary = Binary(t)
	}
	var err error
	f.supervisor, err = supervisor.Open(supervisor.Config{
		Dir: filepath.Join(f.Dir, "processes"), Log: slog.New(slog.DiscardHandler),
		Backoff: supervisor.Backoff{Min: 50 * time.Millisecond, Max: time.Second},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.supervisor.Close(); err != nil {
			t.Errorf("stop the forge: %v", err)
		}
		if t.Failed() {
			f.printLogs()
		}
	})
	f.startServer()
	if !config.NoAgent {
		f.startAgent()
	}
	return f
}

// In is the forge in a part of a test, which fails alone.
func (f *Forge) In(t testing.TB) *Forge {
	here := *f
	here.t = t
	return &here
}

func (f *Forge) printLogs() {
	for _, name := range []string{Server, Agent} {
		text, err := os.ReadFile(filepath.Join(f.Dir, "processes", "logs", name+".log"))
		if err != nil {
			continue
		}
		f.t.Logf("the end of the log of the %s:\n%s", name, text[max(0, len(text)-12<<10):])
	}
}

func (f *Forge) startServer() {
	f.t.Helper()
	book, err := port.Open(filepath.Join(f.Dir, "ports.json"))
	if err != nil {
		f.t.Fatal(err)
	}
	p, err := book.Port(Server)
	if err != nil {
		f.t.Fatal(err)
	}
	overSSH, err := book.Port(sshPort)
	if err != nil {
		f.t.Fatal(err)
	}
	data := filepath.Join(f.Dir, "data")
	f.URL = fmt.Sprintf("https://localhost:%d", p)
	f.SSHURL = fmt.Sprintf("ssh://git@localhost:%d", overSSH)
	f.CAFile = filepath.Join(data, "tls", "ca.crt")
	args := append([]string{"server", "--data-dir", data, "--listen", fmt.Sprintf("localhost:%d", p), "--log-level", "debug"}, f.config.ServerFlags...)
	// In the environment, so that older servers, which serve no SSH, start too.
	env := supervisor.Environment(f.Dir, fmt.Sprintf("TIDELOCK_SSH_LISTEN=localhost:%d", overSSH))
	f.start(supervisor.Process{Name: Server, Path: f.config.ServerBinary, Args: args, Env: env, Ready: func(ctx context.Context) error {
		if err := f.trust(); err != nil {
			return err
		}
		return f.get(ctx, f.URL+"/-/readyz")
	}})
	token, err := os.ReadFile(filepath.Join(data, "root.token"))
	if err != nil {
		f.t.Fatal(err)
	}
	f.Token = strings.TrimSpace(string(token))
}

// trust makes the client that knows the server's authority, once there is one.
func (f *Forge) trust() error {
	if f.web != nil {
		return nil
	}
	ca, err := os.ReadFile(f.CAFile)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return fmt.Errorf("no certificate in %q", f.CAFile)
	}
	f.web = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	return nil
}

func (f *Forge) get(ctx context.Context, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := f.web.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		return fmt.Errorf("%s: %s: %s", address, resp.Status, text)
	}
	return nil
}

func (f *Forge) start(p supervisor.Process) {
	f.t.Helper()
	if p.Env == nil {
		p.Env = supervisor.Environment(f.Dir)
	}
	p.Grace = 10 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := f.supervisor.Start(ctx, p); err != nil {
		f.t.Fatalf("start the %s: %v", p.Name, err)
	}
}

// Kill ends a process at once; it stays down until Restart.
func (f *Forge) Kill(name string) {
	f.t.Helper()
	if err := f.supervisor.Kill(name); err != nil {
		f.t.Fatal(err)
	}
}

// PID is the process id of a running process.
func (f *Forge) PID(name string) int {
	f.t.Helper()
	for _, s := range f.supervisor.Status() {
		if s.Name == name && s.PID != 0 {
			return s.PID
		}
	}
	f.t.Fatalf("the %s does not run", name)
	return 0
}

// Restart starts a process again and waits until it is ready.
func (f *Forge) Restart(name string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := f.supervisor.Restart(ctx, name); err != nil {
		f.t.Fatalf("restart the %s: %v", name, err)
	}
}

// startAgent registers an agent named "test" in ops/agents and runs it with
// exactly the rights of its manifests.
func (f *Forge) startAgent() {
	f.t.Helper()
	f.agents = f.Project("ops/agents", "private")
	config := f.config.AgentConfig
	if config == "" {
		config = f.ReceiverConfig()
	}
	f.Configure("test", config)
	f.StartAgent(Agent, "test", f.config.AgentBinary)
}

// ReceiverConfig is a configuration that points at the cluster's receivers.
func (f *Forge) ReceiverConfig() string {
	return "flux:\n  webhook_receiver_url: " + f.Cluster.Flux.ReceiverURL() + "\n"
}

// Configure pushes an agent's configuration file.
func (f *Forge) Configure(agent, text string) {
	f.t.Helper()
	f.agents.Push("main", map[string]string{".gitlab/agents/" + agent + "/config.yaml": text})
}

// StartAgent registers an agent and starts a process for it that is known to
// Kill and Restart by the given name. It returns when the agent is connected
// and leads.
func (f *Forge) StartAgent(process, agent, binary string) (id int64) {
	f.t.Helper()
	var created struct {
		ID int64 `json:"id"`
	}
	f.Call(http.MethodPost, fmt.Sprintf("projects/%d/cluster_agents", f.agents.ID), map[string]any{"name": agent}, &created)
	var token struct {
		ID    int64  `json:"id"`
		Token string `json:"token"`
	}
	f.Call(http.MethodPost, fmt.Sprintf("projects/%d/cluster_agents/%d/tokens", f.agents.ID, created.ID), map[string]any{"name": "e2e"}, &token)
	tokenFile := filepath.Join(f.Dir, process+".token")
	if err := os.WriteFile(tokenFile, []byte(token.Token), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if process == Agent {
		f.AgentID = created.ID
	}
	book, err := port.Open(filepath.Join(f.Dir, "ports.json"))
	if err != nil {
		f.t.Fatal(err)
	}
	health, err := book.Addr(process + "-health")
	if err != nil {
		f.t.Fatal(err)
	}
	if process == Agent {
		f.Health = health
	}
	dial := f.URL
	if f.config.Link {
		if f.Link == nil {
			f.Link = NewLink(f.t, f.URL)
		}
		dial = f.Link.URL
	}
	namespace, kubeconfig := f.Cluster.AgentAccess(f.t)
	f.start(supervisor.Process{
		Name: process, Path: binary,
		Args: []string{"agent", "run", "--server-url", dial, "--token-file", tokenFile, "--ca-file", f.CAFile,
			"--kubeconfig", kubeconfig, "--lease-namespace", namespace, "--listen", health, "--log-level", "debug"},
		Ready: func(ctx context.Context) error { return f.get(ctx, "http://"+health+"/readyz") },
	})
	Eventually(f.t, 30*time.Second, func(ctx context.Context) error {
		var status struct {
			Connections []struct {
				Leader bool `json:"leader"`
			} `json:"connections"`
		}
		if err := f.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/cluster_agents/%d/status", f.agents.ID, created.ID), nil, &status); err != nil {
			return err
		}
		for _, c := range status.Connections {
			if c.Leader {
				return nil
			}
		}
		return fmt.Errorf("no replica of agent %s leads: %d connections", agent, len(status.Connections))
	})
	return created.ID
}

// AgentProject returns the agents' configuration project.
func (f *Forge) AgentProject() *Project { return f.agents }

// API calls the forge's REST API as its administrator. An answer other than
// 2xx is a *[StatusError].
func (f *Forge) API(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, f.URL+"/api/v4/"+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("PRIVATE-TOKEN", f.Token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := f.web.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return &StatusError{Code: resp.StatusCode, Text: fmt.Sprintf("%s %s: %s: %s", method, path, resp.Status, text)}
	}
	if out == nil || len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, out)
}

// A StatusError is an answer of the API that is not 2xx.
type StatusError struct {
	Code int
	Text string
}

func (e *StatusError) Error() string { return e.Text }

// Call is API that must succeed.
func (f *Forge) Call(method, path string, in, out any) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := f.API(ctx, method, path, in, out); err != nil {
		f.t.Fatal(err)
	}
}

// A Project is one of the forge's, with a clone to push from.
type Project struct {
	ID    int64
	Path  string
	URL   string // to clone
	clone string
	forge *Forge
}

// Project makes a project, and its group if that is missing.
func (f *Forge) Project(path, visibility string) *Project {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	p, err := f.TryProject(ctx, path, visibility)
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

// Grant lets the agent be told of a project, and report about it.
func (p *Project) Grant() {
	p.forge.t.Helper()
	if err := p.TryGrant(context.Background()); err != nil {
		p.forge.t.Fatal(err)
	}
}

// TryGrant is Grant that may fail.
func (p *Project) TryGrant(ctx context.Context) error {
	return p.forge.API(ctx, http.MethodPost, fmt.Sprintf("projects/%d/agent_grants", p.ID), map[string]any{"agent_id": p.forge.AgentID}, nil)
}

// TryProject is Project that may fail.
func (f *Forge) TryProject(ctx context.Context, path, visibility string) (*Project, error) {
	group, name, ok := strings.Cut(path, "/")
	if !ok {
		return nil, fmt.Errorf("project path %q has no group", path)
	}
	parent, err := f.group(ctx, group)
	if err != nil {
		return nil, err
	}
	var made struct {
		ID  int64  `json:"id"`
		URL string `json:"http_url_to_repo"`
	}
	if err := f.API(ctx, http.MethodPost, "projects", map[string]any{"name": name, "path": name, "namespace_id": parent, "visibility": visibility}, &made); err != nil {
		return nil, err
	}
	p := &Project{ID: made.ID, Path: path, URL: made.URL, forge: f, clone: filepath.Join(f.Dir, "clones", strings.ReplaceAll(path, "/", "-"))}
	if err := os.MkdirAll(p.clone, 0o700); err != nil {
		return nil, err
	}
	if _, err := p.TryGit(ctx, "init", "--quiet", "--initial-branch=main"); err != nil {
		return nil, err
	}
	_, err = p.TryGit(ctx, "remote", "add", "origin", made.URL)
	return p, err
}

// group finds a group and makes it if it is missing.
func (f *Forge) group(ctx context.Context, path string) (id int64, err error) {
	f.groups.Lock()
	defer f.groups.Unlock()
	var found struct {
		ID int64 `json:"id"`
	}
	err = f.API(ctx, http.MethodGet, "groups/"+path, nil, &found)
	if missing, ok := errors.AsType[*StatusError](err); ok && missing.Code == http.StatusNotFound {
		err = f.API(ctx, http.MethodPost, "groups", map[string]any{"name": path, "path": path, "visibility": "public"}, &found)
	}
	return found.ID, err
}

// Git runs git in the project's clone as the administrator.
func (p *Project) Git(args ...string) string {
	p.forge.t.Helper()
	out, err := p.TryGit(context.Background(), args...)
	if err != nil {
		p.forge.t.Fatal(err)
	}
	return out
}

// TryGit is Git that may fail.
func (p *Project) TryGit(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = p.clone
	basic := base64.StdEncoding.EncodeToString([]byte("root:" + p.forge.Token))
	cmd.Env = append(supervisor.Environment(p.forge.Dir),
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_SSL_CAINFO="+p.forge.CAFile, "GIT_CONFIG_COUNT=1",
		"GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Basic "+basic,
		"GIT_AUTHOR_NAME=Test", "GIT_AUTHOR_EMAIL=test@example.org", "GIT_COMMITTER_NAME=Test", "GIT_COMMITTER_EMAIL=test@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("git %s in %s: %w\n%s", strings.Join(args, " "), p.Path, err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// Commit writes files on a branch of the clone and commits them; it returns
// the commit.
func (p *Project) Commit(branch string, files map[string]string) string {
	p.forge.t.Helper()
	if err := p.TryCommit(context.Background(), branch, files); err != nil {
		p.forge.t.Fatal(err)
	}
	return p.Git("rev-parse", "HEAD")
}

// TryCommit is Commit that may fail.
func (p *Project) TryCommit(ctx context.Context, branch string, files map[string]string) error {
	if _, err := p.TryGit(ctx, "checkout", "--quiet", branch); err != nil {
		if _, err := p.TryGit(ctx, "checkout", "--quiet", "-B", branch); err != nil {
			return err
		}
	}
	for name, text := range files {
		path := filepath.Join(p.clone, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	if _, err := p.TryGit(ctx, "add", "--all"); err != nil {
		return err
	}
	_, err := p.TryGit(ctx, "commit", "--quiet", "--allow-empty", "--message=change")
	return err
}

// Push commits files on a branch and pushes it; it returns the commit.
func (p *Project) Push(branch string, files map[string]string) string {
	p.forge.t.Helper()
	commit := p.Commit(branch, files)
	p.Git("push", "--quiet", "origin", branch)
	return commit
}

// ConfigMap is a manifest for Push: one ConfigMap with one value.
func ConfigMap(name, value string) map[string]string {
	return map[string]string{"deploy/" + name + ".yaml": fmt.Sprintf(
		"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: %s\ndata:\n  value: %q\n", name, value)}
}

// Trust makes the Secret "forge" in a namespace that lets Flux trust the
// forge's authority, with a user name and password if given.
func (f *Forge) Trust(namespace string, credentials ...string) {
	f.t.Helper()
	ca, err := os.ReadFile(f.CAFile)
	if err != nil {
		f.t.Fatal(err)
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "forge", Namespace: namespace}, Data: map[string][]byte{"ca.crt": ca}}
	if len(credentials) == 2 {
		secret.Data["username"], secret.Data["password"] = []byte(credentials[0]), []byte(credentials[1])
	}
	err = f.Cluster.Client.Create(context.Background(), secret)
	if client.IgnoreAlreadyExists(err) != nil {
		f.t.Fatal(err)
	}
	if err != nil {
		if err := f.Cluster.Client.Update(context.Background(), secret); err != nil {
			f.t.Fatal(err)
		}
	}
}

// Source makes a GitRepository that only its Receiver wakes within the hour.
func (f *Forge) Source(namespace, name string, p *Project, ref *sourcev1.GitRepositoryRef, change ...func(*sourcev1.GitRepository)) *sourcev1.GitRepository {
	f.t.Helper()
	source := &sourcev1.GitRepository{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: sourcev1.GitRepositorySpec{
			URL: p.URL, Interval: metav1.Duration{Duration: time.Hour}, Timeout: &metav1.Duration{Duration: 20 * time.Second},
			Reference: ref, SecretRef: &meta.LocalObjectReference{Name: "forge"},
		},
	}
	for _, c := range change {
		c(source)
	}
	if err := f.Cluster.Client.Create(context.Background(), source); err != nil {
		f.t.Fatal(err)
	}
	return source
}

// Branch is the ref of a branch.
func Branch(name string) *sourcev1.GitRepositoryRef { return &sourcev1.GitRepositoryRef{Branch: name} }

// Apply makes a Kustomization of the folder deploy of a source that only a new
// artifact wakes within the hour.
func (f *Forge) Apply(namespace, name string) {
	f.t.Helper()
	f.ApplyEvery(namespace, name, time.Hour)
}

// ApplyEvery is Apply with another interval.
func (f *Forge) ApplyEvery(namespace, name string, interval time.Duration) {
	f.t.Helper()
	f.applyFrom(sourcev1.GitRepositoryKind, namespace, name, interval)
}

// ApplyImage is Apply for an OCIRepository.
func (f *Forge) ApplyImage(namespace, name string) {
	f.t.Helper()
	f.applyFrom(sourcev1.OCIRepositoryKind, namespace, name, time.Hour)
}

func (f *Forge) applyFrom(kind, namespace, name string, interval time.Duration) {
	f.t.Helper()
	k := &kustomizev1.Kustomization{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: kustomizev1.KustomizationSpec{
			Interval: metav1.Duration{Duration: interval}, Path: "./deploy", Prune: true, TargetNamespace: namespace,
			SourceRef: kustomizev1.CrossNamespaceSourceReference{Kind: kind, Name: name},
		},
	}
	if err := f.Cluster.Client.Create(context.Background(), k); err != nil {
		f.t.Fatal(err)
	}
}

// GitRepository reads a source.
func (s *System) GitRepository(ctx context.Context, namespace, name string) (*sourcev1.GitRepository, error) {
	source := &sourcev1.GitRepository{}
	err := s.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, source)
	return source, err
}

// WaitFetched waits until a source's artifact is a commit.
func (f *Forge) WaitFetched(namespace, name, commit string, within time.Duration) *sourcev1.GitRepository {
	f.t.Helper()
	var found *sourcev1.GitRepository
	Eventually(f.t, within, func(ctx context.Context) error {
		source, err := f.Cluster.GitRepository(ctx, namespace, name)
		if err != nil {
			return err
		}
		if revision := source.Status.Artifact; revision == nil || !strings.HasSuffix(revision.Revision, ":"+commit) {
			return fmt.Errorf("%s/%s has artifact %v, want %s; conditions %v", namespace, name, revision, commit, source.Status.Conditions)
		}
		found = source
		return nil
	})
	return found
}

// An Announcement is what the forge tells of one.
type Announcement struct {
	Source      string     `json:"source"`
	AgentID     int64      `json:"agent_id"`
	Number      int64      `json:"number"`
	Ref         string     `json:"ref"`
	Commit      string     `json:"commit"`
	Digest      string     `json:"digest"`
	State       string     `json:"state"`
	Message     string     `json:"message"`
	Via         string     `json:"via"`
	AcceptedAt  *time.Time `json:"accepted_at"`
	AnnouncedAt *time.Time `json:"announced_at"`
	CalledAt    *time.Time `json:"called_at"`
	AnsweredAt  *time.Time `json:"answered_at"`
	HandledAt   *time.Time `json:"handled_at"`
	FetchedAt   *time.Time `json:"fetched_at"`
}

// Announcements lists what was announced of a project, newest first.
func (f *Forge) Announcements(ctx context.Context, p *Project, query url.Values) ([]Announcement, error) {
	if query == nil {
		query = url.Values{}
	}
	query.Set("per_page", "100")
	var list []Announcement
	err := f.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/announcements?%s", p.ID, query.Encode()), nil, &list)
	return list, err
}

// WaitServed waits until the agent keeps a ready Receiver for a source.
func (f *Forge) WaitServed(namespace, name string) {
	f.t.Helper()
	Eventually(f.t, 30*time.Second, func(ctx context.Context) error {
		n, err := f.Cluster.ReadyReceivers(ctx, namespace, name)
		if err == nil && n == 0 {
			err = fmt.Errorf("no ready Receiver for %s/%s", namespace, name)
		}
		return err
	})
}
