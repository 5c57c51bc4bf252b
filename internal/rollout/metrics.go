package rollout

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
)

// scrapeLimit bounds what a scrape may ask of the store.
const scrapeLimit = 2 * time.Second

// metrics asks at each scrape how things stand.
type metrics struct {
	loop *Loop

	rollouts, unreported, oldestUnreported *prometheus.Desc
}

func newMetrics(l *Loop) *metrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tidelock_rollout_"+name, help, labels, nil)
	}
	return &metrics{
		loop:     l,
		rollouts: desc("rollouts", "The newest rollout of each applier in a cluster, by state.", "state"),
		unreported: desc("unreported_rollouts",
			"Rollouts whose present state is not written to their commits yet."),
		oldestUnreported: desc("oldest_unreported_rollout_seconds",
			"For how long the oldest of those has been so; 0 when there is none."),
	}
}

func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.rollouts, m.unreported, m.oldestUnreported} {
		ch <- d
	}
}

var states = []tidelock.RolloutState{
	tidelock.RolloutPending, tidelock.RolloutRunning, tidelock.RolloutSuccess, tidelock.RolloutFailed,
	tidelock.RolloutSuperseded, tidelock.RolloutUnknown,
}

func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	sum, err := m.loop.Forge.RolloutSum(ctx)
	if err != nil {
		for _, d := range []*prometheus.Desc{m.rollouts, m.unreported, m.oldestUnreported} {
			ch <- prometheus.NewInvalidMetric(d, err)
		}
		return
	}
	for _, state := range states {
		ch <- prometheus.MustNewConstMetric(m.rollouts, prometheus.GaugeValue, float64(sum.Newest[state]), string(state))
	}
	age := time.Duration(0)
	if !sum.OldestUnreported.IsZero() {
		age = max(time.Since(sum.OldestUnreported), 0)
	}
	ch <- prometheus.MustNewConstMetric(m.unreported, prometheus.GaugeValue, float64(sum.Unreported))
	ch <- prometheus.MustNewConstMetric(m.oldestUnreported, prometheus.GaugeValue, age.Seconds())
}
