package agentserver

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
)

// scrapeLimit bounds what a scrape may ask of the store.
const scrapeLimit = 2 * time.Second

// metrics counts what happened, and asks at each scrape how things stand.
type metrics struct {
	server *Server

	sent, delivered, converged, failed prometheus.Counter
	resyncs, refusals, recordsDropped  prometheus.Counter
	observed                           prometheus.Counter
	refused                            *prometheus.CounterVec

	counters []prometheus.Collector

	agents, sessions, streams, sources, recordsWaiting *prometheus.Desc
	oldestUndelivered, oldestUnconverged               *prometheus.Desc
	observationStreams, observationsWaiting            *prometheus.Desc
}

func newMetrics(s *Server) *metrics {
	const prefix = "tidelock_agentserver_"
	m := &metrics{server: s}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name, Help: help})
		m.counters = append(m.counters, c)
		return c
	}
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(prefix+name, help, nil, nil)
	}
	m.sent = counter("announcements_sent_total", "Announcements written to agents.")
	m.delivered = counter("announcements_delivered_total", "Announcements that agents confirmed.")
	m.converged = counter("announcements_converged_total", "Announcements whose commit or artifact Flux has fetched.")
	m.failed = counter("announcements_failed_total", "Announcements that Flux could not fetch, each time it began to fail.")
	m.resyncs = counter("resyncs_total", "Times an agent was asked for all its sources because something was missing.")
	m.refusals = counter("messages_refused_total", "Messages of agents that were refused.")
	m.recordsDropped = counter("records_dropped_total", "Records of announcements and sources dropped because the store was down for long.")
	m.observed = counter("observations_total", "Observations of agents that were kept.")
	m.refused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: prefix + "connections_refused_total", Help: "Connections of agents that were refused.",
	}, []string{"reason"})
	m.counters = append(m.counters, m.refused)
	m.agents = desc("agents", "Agents connected to this server.")
	m.sessions = desc("sessions", "Connections of agents to this server.")
	m.streams = desc("announcement_streams", "Open announcement streams.")
	m.sources = desc("sources", "Sources of the agents with an open announcement stream.")
	m.recordsWaiting = desc("records_waiting", "Records of announcements and sources that wait to be written.")
	m.observationStreams = desc("observation_streams", "Open observation streams.")
	m.observationsWaiting = desc("observations_waiting", "Observations of agents that wait to be kept.")
	m.oldestUndelivered = desc("oldest_undelivered_announcement_seconds",
		"Age of the oldest latest announcement, of any agent, that its agent has not confirmed; 0 when there is none.")
	m.oldestUnconverged = desc("oldest_unconverged_announcement_seconds",
		"Age of the oldest latest announcement, of any agent, whose commit or artifact Flux has not fetched and that is not suspended; 0 when there is none.")
	return m
}

func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.counters {
		c.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{
		m.agents, m.sessions, m.streams, m.sources, m.recordsWaiting, m.oldestUndelivered, m.oldestUnconverged,
		m.observationStreams, m.observationsWaiting,
	} {
		ch <- d
	}
}

func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.counters {
		c.Collect(ch)
	}
	gauge := func(d *prometheus.Desc, value float64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value)
	}
	sessions := m.server.sessions.all()
	agents := map[tidelock.AgentID]bool{}
	for _, l := range sessions {
		agents[l.agent.ID] = true
	}
	var streams, sources int
	m.server.streams.each(func(a *announcer) {
		a.mu.Lock()
		defer a.mu.Unlock()
		streams++
		sources += len(a.sources)
	})
	gauge(m.agents, float64(len(agents)))
	gauge(m.sessions, float64(len(sessions)))
	gauge(m.streams, float64(streams))
	gauge(m.sources, float64(sources))
	gauge(m.recordsWaiting, float64(m.server.records.waiting()))
	var observing, waiting int
	m.server.observers.each(func(o *observer) {
		observing++
		waiting += o.waiting()
	})
	gauge(m.observationStreams, float64(observing))
	gauge(m.observationsWaiting, float64(waiting))

	undelivered, unconverged, err := m.oldest(time.Now())
	if err != nil {
		ch <- prometheus.NewInvalidMetric(m.oldestUndelivered, err)
		ch <- prometheus.NewInvalidMetric(m.oldestUnconverged, err)
		return
	}
	gauge(m.oldestUndelivered, undelivered.Seconds())
	gauge(m.oldestUnconverged, unconverged.Seconds())
}

// oldest is read from the store, not from the streams: an agent that is gone
// is the one to worry about.
func (m *metrics) oldest(now time.Time) (undelivered, unconverged time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	list, err := m.server.Forge.LatestAnnouncements(ctx, 0)
	if err != nil {
		return 0, 0, err
	}
	for _, a := range list {
		since := a.AcceptedAt
		if since.IsZero() {
			since = a.SentAt
		}
		age := max(now.Sub(since), 0)
		switch a.State {
		case tidelock.Sent:
			undelivered, unconverged = max(undelivered, age), max(unconverged, age)
		case tidelock.Delivered, tidelock.Handled, tidelock.Failed:
			unconverged = max(unconverged, age)
		}
	}
	return undelivered, unconverged, nil
}
