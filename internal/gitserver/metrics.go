package gitserver

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A result is how a push ended.
type result string

const (
	accepted   result = "accepted"   // some ref moved, and the push is recorded
	unchanged  result = "unchanged"  // no ref moved: git refused, or all was there
	unrecorded result = "unrecorded" // refs may have moved; comparing will tell
	refused    result = "refused"    // a rule forbids it
	failed     result = "failed"     // git did not run
)

type metrics struct {
	pushes   *prometheus.CounterVec // by result
	refused  *prometheus.CounterVec // by HTTP status
	duration prometheus.Histogram
	received prometheus.Counter
	sent     prometheus.Counter
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_git_pushes_total", Help: "Pushes by how they ended.",
		}, []string{"result"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_git_errors_total", Help: "Git requests answered with an HTTP error, by its text.",
		}, []string{"status"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidelock_git_push_seconds", Help: "Time from the commands of a push to its answer.",
			Buckets: []float64{.005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60, 300, 1800},
		}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidelock_git_received_bytes_total", Help: "Bytes of pushes.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidelock_git_sent_bytes_total", Help: "Bytes of fetches.",
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.pushes, m.refused, m.duration, m.received, m.sent)
	}
	return m
}

func (m *metrics) push(r result, bytes int64, took time.Duration) {
	m.pushes.WithLabelValues(string(r)).Inc()
	m.received.Add(float64(bytes))
	m.duration.Observe(took.Seconds())
}
