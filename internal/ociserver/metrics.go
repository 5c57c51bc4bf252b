package ociserver

import (
	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev/internal/registry"
)

// metrics count what comes and goes. How many requests there are, and how long
// they take, is counted for all surfaces alike.
type metrics struct {
	pushes   prometheus.Counter
	received prometheus.Counter
	sent     prometheus.Counter
	refused  *prometheus.CounterVec // by code
}

func newMetrics(registerer prometheus.Registerer) *metrics {
	m := &metrics{
		pushes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidelock_registry_pushes_total", Help: "Manifests that clients pushed and that were accepted.",
		}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidelock_registry_received_bytes_total", Help: "Bytes of blobs and manifests that clients sent.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidelock_registry_sent_bytes_total", Help: "Bytes of blobs that clients took.",
		}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_registry_refused_total", Help: "Requests that were refused, by the code that the client was told; over a quota is QUOTA.",
		}, []string{"code"}),
	}
	if registerer != nil {
		registerer.MustRegister(m.pushes, m.received, m.sent, m.refused)
	}
	return m
}

// overQuota is the label for what does not fit; clients are told DENIED.
const overQuota registry.Code = "QUOTA"
