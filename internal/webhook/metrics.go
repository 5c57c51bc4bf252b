package webhook

import (
	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
)

// A result is how a call ended.
type result string

const (
	delivered result = "delivered"
	refused   result = "refused" // the receiver answered, with no success
	failed    result = "failed"  // nobody answered, or the guard let nobody be asked
)

type metrics struct {
	calls    *prometheus.CounterVec // by result
	givenUp  prometheus.Counter
	stuck    prometheus.Gauge
	duration prometheus.Histogram
}

func newMetrics(registerer prometheus.Registerer, sending func() int) *metrics {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_webhook_calls_total", Help: "Calls of webhooks by how they ended: delivered, refused or failed.",
		}, []string{"result"}),
		givenUp: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidelock_webhook_given_up_total", Help: "Deliveries that were given up after several calls.",
		}),
		stuck: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidelock_webhook_stuck_projects", Help: "Projects with an event that cannot be made into deliveries.",
		}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "tidelock_webhook_call_seconds", Help: "Time from the call of a webhook to the end of the answer.",
			Buckets: []float64{.005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10},
		}),
	}
	if registerer != nil {
		registerer.MustRegister(m.calls, m.givenUp, m.stuck, m.duration,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "tidelock_webhook_sending", Help: "Deliveries on their way.",
			}, func() float64 { return float64(sending()) }))
	}
	return m
}

// called counts a call that had the time to end.
func (m *metrics) called(a tidelock.Attempt) {
	r := failed
	switch {
	case a.Delivered():
		r = delivered
	case a.Status != 0:
		r = refused
	}
	m.calls.WithLabelValues(string(r)).Inc()
	m.duration.Observe(a.Took.Seconds())
}
