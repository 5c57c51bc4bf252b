package agentserver

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
)

// A hub knows the open streams of one sort, one for each agent.
type hub[S comparable] struct {
	mu      sync.Mutex
	streams map[tidelock.AgentID]S
}

func newHub[S comparable]() *hub[S] { return &hub[S]{streams: map[tidelock.AgentID]S{}} }

// open makes s the stream of an agent and returns the one before, or zero.
func (h *hub[S]) open(agent tidelock.AgentID, s S) (old S) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old = h.streams[agent]
	h.streams[agent] = s
	return old
}

// close forgets a stream, unless a newer one took its place.
func (h *hub[S]) close(agent tidelock.AgentID, s S) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.streams[agent] == s {
		delete(h.streams, agent)
	}
}

func (h *hub[S]) each(fn func(S)) {
	h.mu.Lock()
	all := slices.Collect(maps.Values(h.streams))
	h.mu.Unlock()
	for _, s := range all {
		fn(s)
	}
}

// refusals counts what a stream said that no honest agent says.
type refusals struct {
	log   *slog.Logger
	total prometheus.Counter // of all streams
	count int
}

// refuse logs it and, when it is too much, ends the stream.
func (r *refusals) refuse(err error) error {
	r.count++
	r.total.Inc()
	if r.count > maxRefusals {
		return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("too much was refused; at last: %w", err))
	}
	r.log.Warn("agent's message refused", "error", err)
	return nil
}
