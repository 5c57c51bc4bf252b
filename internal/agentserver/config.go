package agentserver

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/forge"
)

// Watch sends an agent its configuration: the last good one at once, and then
// whenever what is in force, or what is wrong with a newer one, changes.
func (s *Server) Watch(ctx context.Context, _ *agentrpc.WatchRequest, stream *connect.ServerStream[agentrpc.WatchResponse]) error {
	c, err := registeredCall(ctx)
	if err != nil {
		return err
	}
	agent := c.session.agent
	w := s.configs.entry(agent.ID)
	if _, err := s.configs.check(ctx, agent); err != nil && ctx.Err() == nil {
		c.session.log.WarnContext(ctx, "agent's configuration not compared", "error", err)
		s.configs.agentChanged(agent.ID) // again, soon; what is known is sent meanwhile
	}
	var last *agentrpc.WatchResponse
	for {
		changed := w.changed() // before reading, so that no change is missed
		known, err := s.Forge.AgentConfig(ctx, agent.ID)
		if err != nil {
			return connect.NewError(connect.CodeUnavailable, errText("the configuration cannot be read now"))
		}
		next := &agentrpc.WatchResponse{
			Yaml: known.Good, Commit: string(known.GoodCommit), Error: known.Error, Warnings: known.Warnings,
		}
		if last == nil || next.Yaml != last.Yaml || next.Error != last.Error || !slices.Equal(next.Warnings, last.Warnings) {
			if err := stream.Send(next); err != nil {
				return err
			}
			last = next
		}
		select {
		case <-changed:
		case <-c.session.tunnel.Draining():
			return errStopping()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func errStopping() error {
	return connect.NewError(connect.CodeUnavailable, errText("the server is stopping"))
}

// retryCheck is when a configuration that could not be read is looked at again.
const retryCheck = 2 * time.Second

// A configWatcher compares every agent's configuration file with what is known
// of it, connected or not, and remembers the last good one.
type configWatcher struct {
	forge *forge.Forge
	log   *slog.Logger
	every time.Duration
	wake  chan struct{} // holds a token while something is to be looked at

	mu       sync.Mutex
	entries  map[tidelock.AgentID]*configEntry
	projects map[tidelock.ProjectID]struct{} // their agents are to be looked at
	agents   map[tidelock.AgentID]struct{}   // to be looked at
	all      bool
}

// A configEntry is what this process knows of one agent's configuration.
type configEntry struct {
	checking sync.Mutex // held while the file is compared

	mu        sync.Mutex
	evaluated bool     // by this process, whose rules may be newer than the record
	seen      [32]byte // a hash of what watchers were told of last
	notify    chan struct{}
}

// changed returns a channel that is closed at the next change.
func (e *configEntry) changed() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.notify
}

// saw tells the watchers if what is known has changed, be it by this server or
// by another one.
func (e *configEntry) saw(known tidelock.AgentConfig) {
	hash := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", known.Good, known.Error, known.Warnings))
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.seen != hash {
		e.seen = hash
		close(e.notify)
		e.notify = make(chan struct{})
	}
}

func newConfigWatcher(f *forge.Forge, log *slog.Logger, every time.Duration) *configWatcher {
	return &configWatcher{
		forge: f, log: log, every: every,
		wake:     make(chan struct{}, 1),
		entries:  map[tidelock.AgentID]*configEntry{},
		projects: map[tidelock.ProjectID]struct{}{},
		agents:   map[tidelock.AgentID]struct{}{},
		all:      true,
	}
}

func (w *configWatcher) entry(id tidelock.AgentID) *configEntry {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := w.entries[id]
	if e == nil {
		e = &configEntry{notify: make(chan struct{})}
		w.entries[id] = e
	}
	return e
}

// pushed has the agents that a project configures looked at.
func (w *configWatcher) pushed(id tidelock.ProjectID) {
	w.mu.Lock()
	w.projects[id] = struct{}{}
	w.mu.Unlock()
	w.ring()
}

func (w *configWatcher) agentChanged(id tidelock.AgentID) {
	w.mu.Lock()
	w.agents[id] = struct{}{}
	w.mu.Unlock()
	w.ring()
}

func (w *configWatcher) lookAtAll() {
	w.mu.Lock()
	w.all = true
	w.mu.Unlock()
	w.ring()
}

func (w *configWatcher) ring() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *configWatcher) run(ctx context.Context) {
	slow := time.NewTicker(w.every)
	defer slow.Stop()
	retry := time.NewTimer(0) // at once: everything is new to this process
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-retry.C:
		case <-slow.C:
			w.lookAtAll()
		}
		if !w.look(ctx) {
			retry.Reset(retryCheck)
		}
	}
}

// look compares what is to be looked at and reports whether all could be.
func (w *configWatcher) look(ctx context.Context) (ok bool) {
	w.mu.Lock()
	all, projects, ids := w.all, w.projects, w.agents
	w.all, w.projects, w.agents = false, map[tidelock.ProjectID]struct{}{}, map[tidelock.AgentID]struct{}{}
	w.mu.Unlock()

	var agents []tidelock.Agent
	var failed error
	if all {
		list, err := w.forge.AllAgents(ctx)
		if err != nil {
			failed = err
			w.mu.Lock()
			w.all = true
			w.mu.Unlock()
		}
		agents = list
	} else {
		for id := range projects {
			list, err := w.forge.AgentsOf(ctx, id)
			if err != nil {
				failed = err
				w.mu.Lock()
				w.projects[id] = struct{}{}
				w.mu.Unlock()
			}
			agents = append(agents, list...)
		}
		for id := range ids {
			agent, err := w.forge.AgentByID(ctx, id)
			switch {
			case tidelock.KindOf(err) == tidelock.NotFound:
				w.forget(id)
			case err != nil:
				failed = err
				w.mu.Lock()
				w.agents[id] = struct{}{}
				w.mu.Unlock()
			default:
				agents = append(agents, agent)
			}
		}
	}
	for _, agent := range agents {
		if ctx.Err() != nil {
			return true
		}
		if _, err := w.check(ctx, agent); err != nil {
			failed = err
			w.mu.Lock()
			w.agents[agent.ID] = struct{}{}
			w.mu.Unlock()
		}
	}
	if failed != nil && ctx.Err() == nil {
		w.log.WarnContext(ctx, "configurations not compared: tried again soon", "error", failed)
	}
	return failed == nil
}

func (w *configWatcher) forget(id tidelock.AgentID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.entries, id)
}

// check compares an agent's file with what is known of it, and keeps what is
// new: a good file comes into force, a bad one only leaves its error.
func (w *configWatcher) check(ctx context.Context, agent tidelock.Agent) (tidelock.AgentConfig, error) {
	e := w.entry(agent.ID)
	e.checking.Lock()
	defer e.checking.Unlock()

	known, err := w.forge.AgentConfig(ctx, agent.ID)
	if err != nil {
		return known, fmt.Errorf("read the configuration of agent %d: %w", agent.ID, err)
	}
	e.mu.Lock()
	evaluated := e.evaluated
	e.mu.Unlock()
	if evaluated {
		same, err := w.headIs(ctx, agent.Project, known.Commit)
		if same {
			e.saw(known)
		}
		if err != nil || same {
			return known, err
		}
	}
	found, err := w.forge.ReadConfigFile(ctx, agent)
	if err != nil && tidelock.KindOf(err) != tidelock.TooLarge {
		return known, err
	}
	next := evaluate(known, found, err)
	if !sameConfig(known, next) {
		next.CheckedAt = time.Now().UTC().Truncate(time.Microsecond)
		if err := w.forge.SaveAgentConfig(ctx, next); err != nil {
			return known, fmt.Errorf("save the configuration of agent %d: %w", agent.ID, err)
		}
		w.logChange(ctx, agent, known, next)
	}
	e.saw(next)
	e.mu.Lock()
	e.evaluated = true
	e.mu.Unlock()
	return next, nil
}

// headIs reports whether the default branch of a project is still at a commit.
func (w *configWatcher) headIs(ctx context.Context, id tidelock.ProjectID, commit tidelock.CommitID) (bool, error) {
	project, err := w.forge.ProjectByID(ctx, id)
	if err != nil {
		return false, fmt.Errorf("read project %d: %w", id, err)
	}
	head, err := w.forge.Resolve(ctx, id, tidelock.RefSpec{Branch: project.DefaultBranch})
	if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
		return false, err
	}
	return head.Commit == commit, nil
}

// evaluate says what follows from a file, or from the reason why there is none
// to read.
func evaluate(known tidelock.AgentConfig, found forge.ConfigFile, tooLarge error) tidelock.AgentConfig {
	next := known
	next.Commit, next.Error, next.Warnings = found.Commit, "", nil
	if tooLarge != nil {
		next.Error = tooLarge.Error()
		return next
	}
	_, warnings, err := agentrpc.ParseConfig([]byte(found.Text))
	next.Warnings = warnings
	if err != nil {
		next.Error = err.Error()
		return next
	}
	if next.Good != found.Text || next.GoodCommit == "" {
		next.Good, next.GoodCommit = found.Text, found.Commit
	}
	return next
}

func sameConfig(a, b tidelock.AgentConfig) bool {
	return a.Good == b.Good && a.GoodCommit == b.GoodCommit && a.Commit == b.Commit && a.Error == b.Error &&
		slices.Equal(a.Warnings, b.Warnings) && !a.CheckedAt.IsZero()
}

func (w *configWatcher) logChange(ctx context.Context, agent tidelock.Agent, before, now tidelock.AgentConfig) {
	log := w.log.With("agent", agent.ID, "name", agent.Name, "commit", now.Commit)
	if now.Error != "" && now.Error != before.Error {
		log.WarnContext(ctx, "agent's configuration is wrong: the last good one stays in force",
			"error", now.Error, "good_commit", now.GoodCommit)
	}
	if now.Error == "" && (now.Good != before.Good || before.Error != "") {
		log.InfoContext(ctx, "agent's configuration changed", "warnings", len(now.Warnings))
	}
	for _, warning := range now.Warnings {
		if !slices.Contains(before.Warnings, warning) {
			log.WarnContext(ctx, "agent's configuration", "warning", warning)
		}
	}
}
