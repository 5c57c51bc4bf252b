package health

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	watches       prometheus.Gauge
	lists         prometheus.Counter
	events        prometheus.Counter
	reads         prometheus.Counter
	failedReads   prometheus.Counter
	diagnoses     prometheus.Counter
	notifications prometheus.Counter
}

func newMetrics(registerer prometheus.Registerer, w *Watcher) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "tidelock_agent_health_" + name, Help: help})
	}
	m := &metrics{
		watches: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "tidelock_agent_health_watches", Help: "Watches on metadata under way.",
		}),
		lists:         counter("list_pages_total", "Pages of metadata listed."),
		events:        counter("events_total", "Changes that watches told of, of objects followed or not."),
		reads:         counter("reads_total", "Objects read one by one."),
		failedReads:   counter("failed_reads_total", "Reads that the API server did not answer."),
		diagnoses:     counter("diagnoses_total", "Looks at the pods of workloads that are not well."),
		notifications: counter("notifications_total", "Changed reports told of."),
	}
	if registerer == nil {
		return m
	}
	registerer.MustRegister(m.watches, m.lists, m.events, m.reads, m.failedReads, m.diagnoses, m.notifications,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tidelock_agent_health_objects", Help: "Objects followed.",
		}, func() float64 { return float64(w.followed()) }))
	return m
}

// followed counts objects.
func (w *Watcher) followed() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.kinds {
		n += len(k.objects)
	}
	return n
}
