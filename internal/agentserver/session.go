package agentserver

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/tunnel"
)

const (
	// A token may connect this often at once, and then once per connectEvery.
	connectBurst = 20
	connectEvery = time.Second
	// maxSessions is how many replicas of an agent may be connected.
	maxSessions = 64
	// maxWord bounds what an agent says of itself.
	maxWord = 253
)

// A session is one live connection of one replica of an agent.
type session struct {
	server      *Server
	tunnel      *tunnel.Session
	agent       tidelock.Agent
	token       tidelock.AgentTokenID
	log         *slog.Logger
	remote      string
	connectedAt time.Time

	mu   sync.Mutex
	said tidelock.AgentSession // Instance is "" until it has registered
}

func (l *session) presence() (tidelock.AgentSession, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	said := l.said
	said.LastSeen = l.tunnel.LastSeen().UTC().Truncate(time.Microsecond)
	return said, said.Instance != ""
}

// A call is one RPC in progress. Connect hands its context to the services.
type call struct {
	session  *session
	response *http.ResponseController
}

type callKey struct{}

func callOf(ctx context.Context) call { return ctx.Value(callKey{}).(call) }

// registeredCall is callOf for what only a registered session may ask.
func registeredCall(ctx context.Context) (call, error) {
	c := callOf(ctx)
	if _, ok := c.session.presence(); !ok {
		return c, connect.NewError(connect.CodeFailedPrecondition, errText("register first"))
	}
	return c, nil
}

type errText string

func (e errText) Error() string { return string(e) }

// runSession serves a connection until it ends.
func (s *Server) runSession(l *session) {
	ctx := context.Background()
	s.sessions.add(l)
	if !s.isRunning() { // Run may have looked for sessions to drain before this one was added
		l.tunnel.Close("the server is stopping")
	}
	l.log.InfoContext(ctx, "agent connected", "token", l.token, "remote", l.remote)
	unregistered := time.AfterFunc(s.RegisterLimit, func() {
		if _, ok := l.presence(); !ok {
			l.tunnel.Close("the agent did not register")
		}
	})
	err := l.tunnel.ServeHTTP2(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := call{session: l, response: http.NewResponseController(w)}
		s.rpc.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
	}))
	unregistered.Stop()
	l.tunnel.Close("")
	s.sessions.remove(l)
	reason := cmp.Or(err, l.tunnel.Err())
	s.forgetPresence(ctx, l, reason)
	l.log.InfoContext(ctx, "agent disconnected", "reason", reason, "after", time.Since(l.connectedAt).Round(time.Millisecond))
}

// Register notes who is at the other end, and answers who it is to us.
func (s *Server) Register(ctx context.Context, req *agentrpc.RegisterRequest) (*agentrpc.RegisterResponse, error) {
	l := callOf(ctx).session
	if req.GetInstance() == "" || req.GetInstance() != word(req.GetInstance()) {
		return nil, connect.NewError(connect.CodeInvalidArgument, errText("the instance must be a short printable text"))
	}
	project, err := s.Forge.ProjectByID(ctx, l.agent.Project)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, errText("the configuration project cannot be read now"))
	}
	l.mu.Lock()
	if l.said.Instance != "" && l.said.Instance != req.GetInstance() {
		l.mu.Unlock()
		return nil, connect.NewError(connect.CodeInvalidArgument, errText("the instance changed within a session"))
	}
	first := l.said.Instance == ""
	l.said = tidelock.AgentSession{
		Agent: l.agent.ID, Instance: req.GetInstance(), Server: s.id, Token: l.token,
		Version: word(req.GetVersion()), Commit: word(req.GetCommit()),
		PodNamespace: word(req.GetPodNamespace()), PodName: word(req.GetPodName()),
		KubernetesVersion: word(req.GetKubernetesVersion()), Leader: req.GetLeader(),
		ConnectedAt: l.connectedAt.UTC().Truncate(time.Microsecond),
	}
	l.mu.Unlock()
	if first {
		if old := s.sessions.claim(l, req.GetInstance()); old != nil {
			// It is of the same process, so it is a leftover of a broken connection.
			old.tunnel.Close("a newer connection of the same instance took its place")
		}
	}
	said, _ := l.presence()
	if err := s.Forge.SaveAgentSession(ctx, said); err != nil {
		l.log.WarnContext(ctx, "presence not saved", "error", err) // repeated soon
	}
	l.log.InfoContext(ctx, "agent registered", "instance", said.Instance, "version", said.Version,
		"kubernetes", said.KubernetesVersion, "leader", said.Leader, "pod", said.PodNamespace+"/"+said.PodName)
	return &agentrpc.RegisterResponse{
		AgentId: int64(l.agent.ID), AgentName: l.agent.Name,
		ProjectId: int64(project.ID), ProjectPath: project.FullPath,
		ServerVersion: s.Version, ForgeUrls: s.ForgeURLs,
	}, nil
}

// word makes a stranger's text fit a line and a column.
func word(text string) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(text, ""))
	if len(text) > maxWord {
		text = strings.ToValidUTF8(text[:maxWord], "")
	}
	return text
}

// repeatPresence says every now and then who is connected, so that the
// presence of a server that died grows stale.
func (s *Server) repeatPresence(ctx context.Context) {
	ticker := time.NewTicker(s.PresenceEvery)
	defer ticker.Stop()
	for {
		if err := s.Forge.RemoveStaleSessions(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "stale presence not removed", "error", err)
		}
		for _, l := range s.sessions.all() {
			said, ok := l.presence()
			if !ok || ctx.Err() != nil {
				continue
			}
			if err := s.Forge.SaveAgentSession(ctx, said); err != nil && ctx.Err() == nil {
				l.log.WarnContext(ctx, "presence not saved", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// forgetPresence removes a session's row, unless the instance is already
// back on another connection.
func (s *Server) forgetPresence(ctx context.Context, l *session, reason error) {
	said, ok := l.presence()
	if !ok || s.sessions.current(said.Agent, said.Instance) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := s.Forge.RemoveAgentSession(ctx, said); err != nil {
		l.log.WarnContext(ctx, "presence not removed", "error", err) // it grows stale by itself
	}
	why := ""
	if reason != nil {
		why = word(reason.Error())
	}
	if err := s.Forge.AgentLeft(ctx, said, why); err != nil && tidelock.KindOf(err) != tidelock.NotFound { // else it was deleted
		l.log.WarnContext(ctx, "end of a connection not saved", "error", err)
	}
	if back := s.sessions.current(said.Agent, said.Instance); back != nil {
		if said, ok := back.presence(); ok {
			if err := s.Forge.SaveAgentSession(ctx, said); err != nil {
				l.log.WarnContext(ctx, "presence not saved", "error", err)
			}
		}
	}
}

// checkTokens closes sessions whose token is no longer good: at once when an
// agent changed, and regularly in case that was not heard.
func (s *Server) checkTokens(ctx context.Context) {
	ticker := time.NewTicker(s.CheckEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.sessions.suspectAll()
		case <-s.sessions.suspicion:
		}
		suspects := s.sessions.takeSuspects()
		if len(suspects) == 0 {
			continue
		}
		tokens := map[tidelock.AgentTokenID]bool{}
		for _, l := range suspects {
			tokens[l.token] = false
		}
		good, err := s.Forge.LiveAgentTokens(ctx, slices.Sorted(maps.Keys(tokens)))
		if err != nil {
			if ctx.Err() == nil {
				s.log.WarnContext(ctx, "tokens of connected agents not checked", "error", err)
			}
			continue
		}
		for _, id := range good {
			tokens[id] = true
		}
		var closing sync.WaitGroup
		for _, l := range suspects {
			if !tokens[l.token] {
				l.log.InfoContext(ctx, "agent's token was revoked", "token", l.token)
				closing.Go(func() { l.tunnel.Close("the token was revoked") })
			}
		}
		closing.Wait()
	}
}

// A registry knows the live sessions.
type registry struct {
	suspicion chan struct{} // holds a token while there are suspects

	mu        sync.Mutex
	sessions  map[*session]struct{}
	instances map[instanceKey]*session
	limits    map[tidelock.AgentTokenID]*rate.Limiter
	suspects  map[*session]struct{}
}

type instanceKey struct {
	agent    tidelock.AgentID
	instance string
}

func newRegistry() *registry {
	return &registry{
		suspicion: make(chan struct{}, 1),
		sessions:  map[*session]struct{}{},
		instances: map[instanceKey]*session{},
		limits:    map[tidelock.AgentTokenID]*rate.Limiter{},
		suspects:  map[*session]struct{}{},
	}
}

// admit decides whether a token may connect now; if not, it says how long to
// wait.
func (r *registry) admit(token tidelock.AgentTokenID, agent tidelock.AgentID, now time.Time) (wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	connected := 0
	for l := range r.sessions {
		if l.agent.ID == agent {
			connected++
		}
	}
	if connected >= maxSessions {
		return 10 * time.Second
	}
	limit := r.limits[token]
	if limit == nil {
		if len(r.limits) >= 10_000 { // forget those that are not limiting anybody
			maps.DeleteFunc(r.limits, func(_ tidelock.AgentTokenID, l *rate.Limiter) bool {
				return l.TokensAt(now) >= connectBurst
			})
		}
		limit = rate.NewLimiter(rate.Every(connectEvery), connectBurst)
		r.limits[token] = limit
	}
	if limit.AllowN(now, 1) {
		return 0
	}
	return connectEvery
}

func (r *registry) add(l *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions[l] = struct{}{}
}

func (r *registry) remove(l *session) {
	said, _ := l.presence()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.sessions, l)
	delete(r.suspects, l)
	if key := (instanceKey{l.agent.ID, said.Instance}); r.instances[key] == l {
		delete(r.instances, key)
	}
}

// claim makes l the session of its instance and returns the one before.
func (r *registry) claim(l *session, instance string) (old *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := instanceKey{l.agent.ID, instance}
	old = r.instances[key]
	r.instances[key] = l
	return old
}

func (r *registry) current(agent tidelock.AgentID, instance string) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.instances[instanceKey{agent, instance}]
}

func (r *registry) all() []*session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.sessions))
}

// suspect has the tokens of an agent's sessions checked.
func (r *registry) suspect(agent tidelock.AgentID) {
	r.suspectIf(func(l *session) bool { return l.agent.ID == agent })
}

func (r *registry) suspectAll() {
	r.suspectIf(func(*session) bool { return true })
}

func (r *registry) suspectIf(which func(*session) bool) {
	r.mu.Lock()
	for l := range r.sessions {
		if which(l) {
			r.suspects[l] = struct{}{}
		}
	}
	r.mu.Unlock()
	select {
	case r.suspicion <- struct{}{}:
	default:
	}
}

func (r *registry) takeSuspects() []*session {
	r.mu.Lock()
	defer r.mu.Unlock()
	suspects := slices.Collect(maps.Keys(r.suspects))
	clear(r.suspects)
	return suspects
}
