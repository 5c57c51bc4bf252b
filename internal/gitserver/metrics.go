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

// sshMetrics is what SSH has besides.
type sshMetrics struct {
	handshakes *prometheus.CounterVec // by result
	turnedAway *prometheus.CounterVec // by reason
	refused    *prometheus.CounterVec // by kind of error
}

func newSSHMetrics(registerer prometheus.Registerer, d *door) *sshMetrics {
	m := &sshMetrics{
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_ssh_handshakes_total", Help: "SSH handshakes by how they ended: proven, failed or revoked.",
		}, []string{"result"}),
		turnedAway: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_ssh_turned_away_total", Help: "SSH connections closed because of a limit, by limit.",
		}, []string{"limit"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_ssh_refused_total", Help: "Commands refused over SSH, by kind of error.",
		}, []string{"kind"}),
	}
	if registerer != nil {
		registerer.MustRegister(m.handshakes, m.turnedAway, m.refused,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "tidelock_ssh_connections", Help: "SSH connections.",
			}, func() float64 { inside, _ := d.count(); return float64(inside) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "tidelock_ssh_unproven_connections", Help: "SSH connections whose client has not proven who it is yet.",
			}, func() float64 { _, unproven := d.count(); return float64(unproven) }))
	}
	return m
}

func (m *sshMetrics) handshake(result string) { m.handshakes.WithLabelValues(result).Inc() }

func (m *sshMetrics) refuse(limit string) { m.turnedAway.WithLabelValues(limit).Inc() }
