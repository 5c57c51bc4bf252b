package agentserver

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

const flushLimit = 5 * time.Second

// A recorder writes how far announcements came and how things stand with
// sources, behind the streams' backs. Numbers of announcements keep their
// order.
type recorder struct {
	forge   *forge.Forge
	log     *slog.Logger
	dropped prometheus.Counter
	wake    chan struct{} // holds a token while something waits

	announcements *backlog[announcementKey, tidelock.Announcement]
	sources       *backlog[sourceKey, sourceRecord]
}

type announcementKey struct {
	agent  tidelock.AgentID
	source tidelock.SourceID
	number int64
}

type sourceKey struct {
	agent  tidelock.AgentID
	source tidelock.SourceID
}

// A sourceRecord is how things stand with a source, or that it was removed.
type sourceRecord struct {
	tidelock.AgentSource
	removed bool
}

func newRecorder(f *forge.Forge, log *slog.Logger, dropped prometheus.Counter) *recorder {
	return &recorder{
		forge: f, log: log, dropped: dropped,
		wake: make(chan struct{}, 1),
		announcements: newBacklog(func(a tidelock.Announcement) announcementKey {
			return announcementKey{a.Agent, a.Source, a.Number}
		}),
		sources: newBacklog(func(s sourceRecord) sourceKey { return sourceKey{s.Agent, s.Source} }),
	}
}

// put leaves a record to be written soon. When too many wait, because the
// store has been down for long, the oldest is dropped: the next word of its
// agent repeats what matters.
func (r *recorder) put(a tidelock.Announcement) { r.ring(r.announcements.put(a)) }

// putSource does the same for a source.
func (r *recorder) putSource(s sourceRecord) { r.ring(r.sources.put(s)) }

func (r *recorder) ring(dropped bool) {
	if dropped {
		r.dropped.Inc()
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// announcementsOf reads the newest announcement of each source of an agent,
// whether or not it is written yet.
func (r *recorder) announcementsOf(ctx context.Context, id tidelock.AgentID) (map[tidelock.SourceID]tidelock.Announcement, error) {
	// First what waits: what is written meanwhile is then found in the store.
	waiting := r.announcements.unwritten(func(a tidelock.Announcement) bool { return a.Agent == id })
	list, err := r.forge.LatestAnnouncements(ctx, id)
	if err != nil {
		return nil, err
	}
	records := make(map[tidelock.SourceID]tidelock.Announcement, len(list))
	for _, a := range append(list, waiting...) {
		if known, ok := records[a.Source]; !ok || a.Number >= known.Number {
			records[a.Source] = a
		}
	}
	return records, nil
}

// sourcesOf reads the sources of an agent, whether or not they are written yet.
func (r *recorder) sourcesOf(ctx context.Context, id tidelock.AgentID) (map[tidelock.SourceID]tidelock.AgentSource, error) {
	waiting := r.sources.unwritten(func(s sourceRecord) bool { return s.Agent == id })
	list, err := r.forge.SourcesOf(ctx, id)
	if err != nil {
		return nil, err
	}
	sources := make(map[tidelock.SourceID]tidelock.AgentSource, len(list))
	for _, s := range list {
		sources[s.Source] = s
	}
	for _, s := range waiting {
		if s.removed {
			delete(sources, s.Source)
		} else {
			sources[s.Source] = s.AgentSource
		}
	}
	return sources, nil
}

func (r *recorder) waiting() int { return r.announcements.len() + r.sources.len() }

// run writes until ctx is done, and then what is left.
func (r *recorder) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
			defer cancel()
			if err := r.flush(last); err != nil {
				r.log.WarnContext(last, "announcements not recorded", "count", r.waiting(), "error", err)
			}
			return
		case <-r.wake:
		}
		for delay := firstRetry; ; delay = min(2*delay, lastRetry) {
			err := r.flush(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			r.log.WarnContext(ctx, "announcements not recorded: tried again soon", "count", r.waiting(), "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(jitter(delay)):
			}
		}
	}
}

// flush writes until nothing waits, announcements before sources: numbers go
// on from those.
func (r *recorder) flush(ctx context.Context) error {
	for r.waiting() > 0 {
		if err := errors.Join(
			r.announcements.write(func(batch []tidelock.Announcement) error {
				return r.forge.SaveAnnouncements(ctx, batch...)
			}),
			r.sources.write(func(batch []sourceRecord) error { return r.saveSources(ctx, batch) }),
		); err != nil {
			return err
		}
	}
	return nil
}

func (r *recorder) saveSources(ctx context.Context, batch []sourceRecord) error {
	type change struct {
		upserts  []tidelock.AgentSource
		removals []tidelock.SourceID
	}
	changes := map[tidelock.AgentID]change{}
	for _, s := range batch {
		c := changes[s.Agent]
		if s.removed {
			c.removals = append(c.removals, s.Source)
		} else {
			c.upserts = append(c.upserts, s.AgentSource)
		}
		changes[s.Agent] = c
	}
	for agent, c := range changes {
		if err := r.forge.SaveAgentSources(ctx, agent, c.upserts, c.removals); err != nil {
			return err
		}
	}
	return nil
}
