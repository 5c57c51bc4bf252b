package flux

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"tidelock.dev"
)

// metrics are the Controller's own; times are in seconds since an
// announcement arrived.
type metrics struct {
	triggers *prometheus.CounterVec
	hops     *prometheus.HistogramVec
}

func newMetrics(registerer prometheus.Registerer, c *Controller) *metrics {
	m := &metrics{
		triggers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_agent_triggers_total",
			Help: "Requests to Flux for a reconciliation, by way and outcome.",
		}, []string{"via", "outcome"}),
		hops: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tidelock_agent_hop_seconds",
			Help:    "Time from the arrival of an announcement to each hop after it.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 300},
		}, []string{"hop"}),
	}
	for _, via := range []Via{ViaReceiver, ViaAnnotation} {
		for _, outcome := range []string{"ok", "failed"} {
			m.triggers.WithLabelValues(string(via), outcome)
		}
	}
	if registerer == nil {
		return m
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	registerer.MustRegister(m.triggers, m.hops,
		gauge("tidelock_agent_sources", "Sources of the forge, whether served or not.",
			func() float64 { return float64(c.Status().Sources) }),
		gauge("tidelock_agent_sources_served", "Sources whose pushes are announced to this agent.",
			func() float64 { return float64(c.count(func(t *track) bool { return c.resolutions[t.id] })) }),
		gauge("tidelock_agent_appliers", "Kustomizations and HelmReleases that apply what is served.",
			func() float64 { return float64(c.Status().Appliers) }),
		gauge("tidelock_agent_receivers_ready", "Sources whose Receiver can be called.",
			func() float64 { return float64(c.count(func(t *track) bool { return t.hook != nil })) }),
		gauge("tidelock_agent_receivers_stuck", "Receivers whose deletion waits for notification-controller.",
			func() float64 { return float64(len(c.Status().Stuck)) }),
		gauge("tidelock_agent_oldest_unhandled_seconds", "Age of the oldest announcement that Flux has not acted on.",
			func() float64 { return c.oldest((*announcement).unhandled) }),
		gauge("tidelock_agent_oldest_unconverged_seconds", "Age of the oldest announcement whose commit or artifact is not live.",
			func() float64 { return c.oldest((*announcement).open) }),
	)
	return m
}

// unhandled reports whether Flux has yet to act.
func (a *announcement) unhandled() bool { return a.open() && a.progress.Handled == 0 }

// count counts sources of the forge.
func (c *Controller) count(counts func(*track) bool) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tracks {
		if t.ours && counts(t) {
			n++
		}
	}
	return n
}

// oldest returns the age of the oldest announcement of a kind, 0 for none.
// Parked ones wait for a person, not for us.
func (c *Controller) oldest(counts func(*announcement) bool) (age float64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tracks {
		a := t.announcement
		if a != nil && a.progress.State != tidelock.Parked && counts(a) {
			age = max(age, time.Since(a.arrived).Seconds())
		}
	}
	return age
}

func (m *metrics) triggered(via Via, err error) {
	outcome := "ok"
	if err != nil {
		outcome = "failed"
	}
	m.triggers.WithLabelValues(string(via), outcome).Inc()
}

// advanced counts each hop of an announcement once.
func (m *metrics) advanced(a *announcement) {
	for i, hop := range []struct {
		name string
		took time.Duration
	}{
		{"called", a.progress.Called},
		{"answered", a.progress.Answered},
		{"handled", a.progress.Handled},
		{"fetched", a.progress.Fetched},
	} {
		if hop.took > 1 && !a.counted[i] {
			a.counted[i] = true
			m.hops.WithLabelValues(hop.name).Observe(hop.took.Seconds())
		}
	}
}
