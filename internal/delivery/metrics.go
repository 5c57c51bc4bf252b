package delivery

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
)

type metrics struct {
	builds  *prometheus.CounterVec
	seconds prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		builds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_delivery_builds_total", Help: "Applications of delivery repositories that were packaged, by what came of it.",
		}, []string{"state"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidelock_delivery_seconds", Help: "From a recorded push to its artifact in the registry.",
			Buckets: []float64{.025, .05, .1, .15, .25, .5, 1, 2.5, 5, 10, 30},
		}),
	}
	if r != nil {
		r.MustRegister(m.builds, m.seconds)
	}
	return m
}

func (m *metrics) count(b tidelock.Build, took time.Duration) {
	m.builds.WithLabelValues(string(b.State)).Inc()
	if b.State == tidelock.StatusSuccess {
		m.seconds.Observe(took.Seconds())
	}
}
