package agentserver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
	"tidelock.dev/internal/tunnel"
)

// Path is where agents connect.
const Path = "/-/kubernetes-agent/"

// A Config is what a Server is made of. Intervals that are zero take their
// defaults; tests shorten them.
type Config struct {
	Forge   *forge.Forge          // required
	Log     *slog.Logger          // required
	Metrics prometheus.Registerer // default: not registered
	Tracer  trace.TracerProvider  // default: nothing is traced
	Version string                // of this server, told to agents
	// ForgeURLs are the URLs under which this forge serves git: external URL,
	// aliases, ssh. A source belongs to the forge if its URL lies under one.
	ForgeURLs []string

	// Limits says how many tokens that are not valid an address may try.
	Limits *limit.Guard // default: any number

	// DisableResync leaves only live events to announce a change: nothing is
	// compared on connect, on a timer or by digest. It exists to show that
	// the comparisons are needed.
	DisableResync bool

	ResyncEvery   time.Duration // default 10m: heads are compared although nothing was heard
	CompareEvery  time.Duration // default 5m: configuration files are compared
	CheckEvery    time.Duration // default 3s: tokens of live sessions are checked
	PresenceEvery time.Duration // default 30s: presence is repeated
	RegisterLimit time.Duration // default 30s: a session that did not register by then is closed

	HeartbeatEvery time.Duration // default tunnel.DefaultHeartbeat
	SilenceLimit   time.Duration // default tunnel.DefaultSilence
}

func (c *Config) setDefaults() {
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider()
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.ResyncEvery, 10 * time.Minute},
		{&c.CompareEvery, 5 * time.Minute},
		{&c.CheckEvery, 3 * time.Second},
		{&c.PresenceEvery, 30 * time.Second},
		{&c.RegisterLimit, 30 * time.Second},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
}

const (
	// maxMessage bounds what an agent may say at once. The largest set of
	// sources takes some 300 bytes each.
	maxMessage = 16 << 20
	// compressFrom is the size of an answer from which compressing it pays.
	compressFrom = 4 << 10
)

// A Server serves agents. It is an http.Handler for Path; Run does its work.
type Server struct {
	Config
	log  *slog.Logger
	id   string // random, names this process in presence rows
	urls tidelock.URLSet
	rpc  http.Handler

	sessions  *registry
	streams   *hub[*announcer]
	observers *hub[*observer]
	configs   *configWatcher
	records   *recorder
	metrics   *metrics
	tracer    trace.Tracer

	mu      sync.Mutex
	running bool
	live    sync.WaitGroup // sessions; added to only while running
}

// New makes a Server. It answers "try again" until Run runs.
func New(c Config) (*Server, error) {
	if c.Forge == nil || c.Log == nil {
		return nil, errors.New("agentserver: Forge and Log are required")
	}
	c.setDefaults()
	urls, err := tidelock.ParseURLSet(c.ForgeURLs...)
	if err != nil {
		return nil, fmt.Errorf("agentserver: %w", err)
	}
	log := c.Log.With("component", "agentserver")
	s := &Server{
		Config:    c,
		log:       log,
		id:        rand.Text(),
		urls:      urls,
		sessions:  newRegistry(),
		streams:   newHub[*announcer](),
		observers: newHub[*observer](),
		tracer:    c.Tracer.Tracer("tidelock.dev/internal/agentserver"),
	}
	s.configs = newConfigWatcher(c.Forge, log, c.CompareEvery)
	s.metrics = newMetrics(s)
	s.records = newRecorder(c.Forge, log, s.metrics.recordsDropped)
	if c.Metrics != nil {
		if err := c.Metrics.Register(s.metrics); err != nil {
			return nil, fmt.Errorf("agentserver: register metrics: %w", err)
		}
	}
	options := connect.WithHandlerOptions(
		connect.WithReadMaxBytes(maxMessage),
		connect.WithCompressMinBytes(compressFrom),
	)
	mux := http.NewServeMux()
	mux.Handle(agentrpc.NewSessionServiceHandler(s, options))
	mux.Handle(agentrpc.NewConfigurationServiceHandler(s, options))
	mux.Handle(agentrpc.NewAnnouncementServiceHandler(s, options))
	mux.Handle(agentrpc.NewObservationServiceHandler(s, options, connect.WithReadMaxBytes(maxObserveMessage)))
	s.rpc = mux
	return s, nil
}

// ServeHTTP takes an agent's connection, once its token has been checked.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := s.serve(w, r); err != nil {
		s.writeError(w, r, err)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	if r.URL.Path != Path {
		return tidelock.Errorf(tidelock.NotFound, "agents connect at %s", Path)
	}
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "agents connect by a WebSocket", http.StatusMethodNotAllowed)
		return nil
	}
	if !s.isRunning() {
		return errNotRunning()
	}
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || secret == "" {
		return tidelock.Errorf(tidelock.Unauthenticated, "no agent token was given: send the header \"Authorization: Bearer glagent-…\"")
	}
	var agent tidelock.Agent
	token, err := limit.SignIn(s.Limits, "agent", r.RemoteAddr, secret, func() (token tidelock.AgentToken, err error) {
		agent, token, err = s.Forge.AuthenticateAgent(r.Context(), tidelock.NewSecret(strings.TrimSpace(secret)))
		return token, err
	})
	if err != nil {
		return err
	}
	if wait := s.sessions.admit(token.ID, agent.ID, time.Now()); wait > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(max(1, int(wait.Round(time.Second).Seconds()))))
		return errTooMany
	}
	// From here on the connection belongs to the session, which Run waits for.
	s.mu.Lock()
	if !s.running {
		s.mu.Unlock()
		return errNotRunning()
	}
	s.live.Add(1)
	s.mu.Unlock()
	log := s.log.With("agent", agent.ID)
	t, err := tunnel.Accept(w, r, tunnel.AcceptConfig{
		HeartbeatEvery: s.HeartbeatEvery, SilenceLimit: s.SilenceLimit, Log: log,
	})
	if err != nil {
		s.live.Done()
		log.DebugContext(r.Context(), "agent not connected", "error", err)
		return nil // the answer has been written
	}
	go func() {
		defer s.live.Done()
		s.runSession(&session{
			server: s, tunnel: t, agent: agent, token: token.ID, log: log,
			remote: r.RemoteAddr, connectedAt: time.Now(),
		})
	}()
	return nil
}

// errTooMany refuses a token that connects too often; the answer names the
// wait.
var errTooMany = errors.New("this agent's token connects too often")

func errNotRunning() error {
	return tidelock.Errorf(tidelock.Unavailable, "this server is not taking agents now; try again")
}

func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	status, text, reason := http.StatusInternalServerError, "internal error", "error"
	e, exceeded := errors.AsType[*limit.Exceeded](err)
	switch kind := tidelock.KindOf(err); {
	case exceeded:
		e.Tell(w.Header())
		status, text, reason = http.StatusTooManyRequests, err.Error(), "too_many"
	case errors.Is(err, errTooMany):
		status, text, reason = http.StatusTooManyRequests, err.Error(), "too_many"
	case kind == tidelock.Unauthenticated:
		w.Header().Set("WWW-Authenticate", `Bearer realm="agent"`)
		status, text, reason = http.StatusUnauthorized, err.Error(), "unauthenticated"
	case kind == tidelock.NotFound:
		status, text, reason = http.StatusNotFound, err.Error(), "not_found"
	case kind == tidelock.Unavailable:
		w.Header().Set("Retry-After", "1")
		status, text, reason = http.StatusServiceUnavailable, err.Error(), "unavailable"
	default:
		s.log.ErrorContext(r.Context(), "agent not admitted", "error", err, "remote", r.RemoteAddr)
	}
	s.metrics.refused.WithLabelValues(reason).Inc()
	if status < 500 {
		s.log.InfoContext(r.Context(), "agent refused", "reason", text, "remote", r.RemoteAddr)
	}
	http.Error(w, text, status)
}

func (s *Server) isRunning() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running
}

// Run serves until ctx is done; then it lets every agent finish what it is
// saying, at most tunnel.DrainLimit, and writes what is not yet written.
func (s *Server) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	unsubscribe, err := s.subscribe(work)
	if err != nil {
		return fmt.Errorf("agentserver: %w", err)
	}
	var loops sync.WaitGroup
	loops.Go(func() { s.configs.run(work) })
	loops.Go(func() { s.checkTokens(work) })
	loops.Go(func() { s.repeatPresence(work) })
	var recording sync.WaitGroup
	record, stopRecording := context.WithCancel(context.WithoutCancel(ctx))
	defer stopRecording()
	recording.Go(func() { s.records.run(record) })

	s.mu.Lock()
	s.running = true
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.running = false
	s.mu.Unlock()

	var drains sync.WaitGroup
	for _, live := range s.sessions.all() {
		drains.Go(func() { live.tunnel.Drain(context.WithoutCancel(ctx), "the server is stopping") })
	}
	drains.Wait()
	s.live.Wait()
	unsubscribe()
	stop()
	loops.Wait()
	stopRecording()
	recording.Wait()
	return nil
}

// subscribe listens to the bus. Its functions only mark what to look at.
func (s *Server) subscribe(ctx context.Context) (unsubscribe func(), err error) {
	var undo []func()
	unsubscribe = func() {
		for _, u := range undo {
			u()
		}
	}
	defer func() {
		if err != nil {
			unsubscribe()
		}
	}()
	pushed, err := forge.Subscribe(s.Forge, func(e tidelock.Pushed) {
		s.streams.each(func(a *announcer) { a.pushed(e.Project) })
		s.configs.pushed(e.Project)
	})
	if err != nil {
		return unsubscribe, err
	}
	undo = append(undo, pushed.Close)
	access, err := forge.Subscribe(s.Forge, func(e tidelock.AccessChanged) { s.accessChanged(ctx, e.Project) })
	if err != nil {
		return unsubscribe, err
	}
	undo = append(undo, access.Close)
	agents, err := forge.Subscribe(s.Forge, func(e tidelock.AgentChanged) {
		s.sessions.suspect(e.Agent)
		s.configs.agentChanged(e.Agent)
	})
	if err != nil {
		return unsubscribe, err
	}
	undo = append(undo, agents.Close, s.Forge.OnLag(func() {
		s.log.WarnContext(ctx, "events may have been lost: everything is compared again")
		if !s.DisableResync {
			s.streams.each(func(a *announcer) { a.lookAtAll() })
		}
		s.configs.lookAtAll()
		s.sessions.suspectAll()
	}))
	return unsubscribe, nil
}

// accessChanged makes streams look again at what leads to a project: by its
// id, and by the path it has now, which may have led elsewhere before.
func (s *Server) accessChanged(ctx context.Context, id tidelock.ProjectID) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	project, err := s.Forge.ProjectByID(ctx, id)
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound: // deleted
	case err != nil:
		s.log.WarnContext(ctx, "project not read after its access changed: all sources are compared", "project", id, "error", err)
		s.streams.each(func(a *announcer) { a.lookAtAll() })
		return
	}
	s.streams.each(func(a *announcer) { a.accessChanged(id, project.FullPath) })
}
