package agent_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"k8s.io/client-go/rest"
	"tidelock.dev"
	"tidelock.dev/internal/agent"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/flux"
	"tidelock.dev/internal/tunnel"
)

// A kube is an API server that knows Leases and nothing else: Flux is not
// installed in it.
type kube struct {
	url string

	mu     sync.Mutex
	leases map[string]map[string]any
	writes int
}

func newKube(t *testing.T) *kube {
	t.Helper()
	k := &kube{leases: make(map[string]map[string]any)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"gitVersion": "v1.34.4"})
	})
	const leases = "/apis/coordination.k8s.io/v1/namespaces/agents/leases"
	mux.HandleFunc("GET "+leases+"/{name}", k.get)
	mux.HandleFunc("POST "+leases, k.write)
	mux.HandleFunc("PUT "+leases+"/{name}", k.write)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { notFound(w) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	k.url = server.URL
	return k
}

func (k *kube) get(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if lease := k.leases[r.PathValue("name")]; lease != nil {
		writeJSON(w, http.StatusOK, lease)
		return
	}
	notFound(w)
}

// write is optimistic, as the real one: an old version is a conflict.
func (k *kube) write(w http.ResponseWriter, r *http.Request) {
	var lease map[string]any
	if err := json.NewDecoder(r.Body).Decode(&lease); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	metadata := lease["metadata"].(map[string]any)
	name := metadata["name"].(string)
	k.mu.Lock()
	defer k.mu.Unlock()
	var version any
	if old := k.leases[name]; old != nil {
		version = old["metadata"].(map[string]any)["resourceVersion"]
	}
	if metadata["resourceVersion"] != version {
		writeJSON(w, http.StatusConflict, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409})
		return
	}
	k.writes++
	metadata["resourceVersion"] = fmt.Sprint(k.writes)
	k.leases[name] = lease
	writeJSON(w, http.StatusOK, lease)
}

// holder is who has a Lease; "" for nobody.
func (k *kube) holder(name string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	spec, _ := k.leases[name]["spec"].(map[string]any)
	holder, _ := spec["holderIdentity"].(string)
	return holder
}

func notFound(w http.ResponseWriter) {
	writeJSON(w, http.StatusNotFound, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// A forge is an agent server that does as the test says and remembers what it
// heard.
type forge struct {
	server *httptest.Server
	caFile string
	config chan *agentrpc.WatchResponse // what to send next

	mu        sync.Mutex
	token     string
	agentID   int64
	dials     int
	sessions  map[*tunnel.Session]bool
	registers []*agentrpc.RegisterRequest
	sources   []*agentrpc.SourceChange
	streams   int // announcement streams open
	observed  []*agentrpc.ObserveRequest
	observing int   // observation streams open
	refusal   error // what the next observation stream ends with at once
	closed    []error
}

func newForge(t *testing.T) *forge {
	t.Helper()
	f := &forge{
		token:    "glagent-good",
		agentID:  7,
		config:   make(chan *agentrpc.WatchResponse, 8),
		sessions: make(map[*tunnel.Session]bool),
	}
	rpc := http.NewServeMux()
	rpc.Handle(agentrpc.NewSessionServiceHandler(f))
	rpc.Handle(agentrpc.NewConfigurationServiceHandler(f))
	rpc.Handle(agentrpc.NewAnnouncementServiceHandler(f))
	rpc.Handle(agentrpc.NewObservationServiceHandler(f))
	f.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		f.dials++
		good := r.URL.Path == "/sub/-/kubernetes-agent/" && r.Header.Get("Authorization") == "Bearer "+f.token
		f.mu.Unlock()
		if !good {
			http.Error(w, "the token is unknown", http.StatusUnauthorized)
			return
		}
		session, err := tunnel.Accept(w, r, tunnel.AcceptConfig{})
		if err != nil {
			t.Errorf("accept: %v", err)
			return
		}
		f.mu.Lock()
		f.sessions[session] = true
		f.mu.Unlock()
		if err := session.ServeHTTP2(rpc); err != nil {
			t.Errorf("serve: %v", err)
		}
		session.Close("over")
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.sessions, session)
		f.closed = append(f.closed, session.Err())
	}))
	t.Cleanup(func() {
		f.cut()
		f.server.Close()
	})
	f.caFile = filepath.Join(t.TempDir(), "ca.pem")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.server.Certificate().Raw})
	if err := os.WriteFile(f.caFile, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// cut ends all sessions.
func (f *forge) cut() {
	f.mu.Lock()
	var all []*tunnel.Session
	for s := range f.sessions {
		all = append(all, s)
	}
	f.mu.Unlock()
	for _, s := range all {
		s.Close("cut")
	}
}

// lease is the name of the Lease that the forge's agent stands for.
func (f *forge) lease() string {
	return flux.AgentName(tidelock.AgentID(f.agentID), f.server.URL+"/sub")
}

func (f *forge) Register(_ context.Context, r *agentrpc.RegisterRequest) (*agentrpc.RegisterResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.registers = append(f.registers, r)
	return &agentrpc.RegisterResponse{
		AgentId: f.agentID, AgentName: "production", ProjectId: 1, ProjectPath: "team/infra",
		ServerVersion: "test", ForgeUrls: []string{f.server.URL + "/sub"},
	}, nil
}

func (f *forge) Watch(ctx context.Context, _ *agentrpc.WatchRequest, stream *connect.ServerStream[agentrpc.WatchResponse]) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c := <-f.config:
			if err := stream.Send(c); err != nil {
				return err
			}
		}
	}
}

func (f *forge) Announce(_ context.Context, stream *connect.BidiStream[agentrpc.AnnounceRequest, agentrpc.AnnounceResponse]) error {
	f.mu.Lock()
	f.streams++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.streams--
	}()
	for {
		m, err := stream.Receive()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if change := m.GetSources(); change != nil {
			f.mu.Lock()
			f.sources = append(f.sources, change)
			f.mu.Unlock()
			if err := stream.Send(&agentrpc.AnnounceResponse{Message: &agentrpc.AnnounceResponse_Resolution{
				Resolution: &agentrpc.Resolution{SourceId: "GitRepository/a/b"},
			}}); err != nil {
				return err
			}
		}
	}
}

func (f *forge) Observe(_ context.Context, stream *connect.ClientStream[agentrpc.ObserveRequest]) (*agentrpc.ObserveResponse, error) {
	f.mu.Lock()
	refusal := f.refusal
	f.refusal = nil
	f.observing++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.observing--
	}()
	if refusal != nil {
		return nil, refusal
	}
	for stream.Receive() {
		f.mu.Lock()
		f.observed = append(f.observed, stream.Msg())
		f.mu.Unlock()
	}
	return nil, stream.Err()
}

// heard reports something of the forge, under its lock.
func heard[T any](f *forge, what func() T) T {
	f.mu.Lock()
	defer f.mu.Unlock()
	return what()
}

// A replica is a running agent.
type replica struct {
	*agent.Agent
	level *slog.LevelVar
	log   *logged
	stop  func() error // waits for the end
	ended chan struct{}
	err   error
}

func start(t *testing.T, f *forge, k *kube, change ...func(*agent.Config)) *replica {
	t.Helper()
	r := &replica{level: new(slog.LevelVar), log: &logged{}, ended: make(chan struct{})}
	config := agent.Config{
		ServerURL:    f.server.URL + "/sub",
		Token:        tidelock.NewSecret(f.token),
		CAFile:       f.caFile,
		REST:         &rest.Config{Host: k.url, ContentConfig: rest.ContentConfig{ContentType: "application/json"}},
		PodNamespace: "agents",
		PodName:      "pod",
		Version:      "1.2.3",
		ListenAddr:   "127.0.0.1:0",
		Log:          slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), r.log), &slog.HandlerOptions{Level: r.level})),
		Level:        r.level,
	}
	for _, f := range change {
		f(&config)
	}
	var err error
	if r.Agent, err = agent.New(config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	go func() {
		defer close(r.ended)
		r.err = r.Run(ctx)
	}()
	r.stop = func() error {
		cancel()
		<-r.ended
		return r.err
	}
	t.Cleanup(func() { r.stop() })
	return r
}

// logged is what was logged.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !check() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
