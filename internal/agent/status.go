package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serveStatus serves probes and metrics until ctx is done.
func (a *Agent) serveStatus(ctx context.Context) error {
	if a.listener == nil {
		<-ctx.Done()
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", a.serveReady)
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	stopped := make(chan struct{})
	defer context.AfterFunc(ctx, func() {
		defer close(stopped)
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(limited) != nil {
			server.Close()
		}
	})()
	err := server.Serve(a.listener)
	if errors.Is(err, http.ErrServerClosed) {
		<-stopped
		return nil
	}
	return fmt.Errorf("serve probes and metrics: %w", err)
}

// serveReady says whether the replica is connected; that Flux is missing is
// told, but is no fault of the replica.
func (a *Agent) serveReady(w http.ResponseWriter, _ *http.Request) {
	status := a.Status()
	if !status.Connected {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprint(w, status)
}

// Status is how a replica does.
type Status struct {
	Connected bool
	Trouble   string // why it is not connected
	Leader    bool
	Flux      string // what is wrong with Flux; only the leader knows
	Sources   int    // of the forge; only the leader knows
}

// String is one line per fact.
func (s Status) String() string {
	var b strings.Builder
	line := func(name, value string) { fmt.Fprintf(&b, "%s: %s\n", name, value) }
	if s.Connected {
		line("server", "connected")
	} else {
		line("server", "not connected: "+s.Trouble)
	}
	if !s.Leader {
		line("leader", "another replica, or none yet")
		return b.String()
	}
	line("leader", "this replica")
	line("sources", fmt.Sprint(s.Sources))
	if s.Flux != "" {
		line("flux", s.Flux)
	}
	return b.String()
}

// Status reports how the replica does.
func (a *Agent) Status() Status {
	a.mu.Lock()
	status := Status{Connected: a.session != nil, Trouble: a.connectError}
	controller := a.controller
	a.mu.Unlock()
	status.Leader, _ = a.leading.load()
	if status.Leader && controller != nil {
		f := controller.Status()
		status.Sources, status.Flux = f.Sources, f.Detail
		if len(f.Stuck) > 0 {
			status.Flux = strings.TrimPrefix(status.Flux+"; receivers wait for notification-controller to be deleted: "+strings.Join(f.Stuck, ", "), "; ")
		}
	}
	return status
}

// metrics are the replica's own; those of Flux are internal/flux's.
type metrics struct {
	connects     *prometheus.CounterVec
	observations prometheus.Counter
}

func newMetrics(a *Agent) *metrics {
	m := &metrics{
		connects: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tidelock_agent_connects_total",
			Help: "Attempts to connect to the server; all ok ones but the first are reconnects.",
		}, []string{"outcome"}),
		observations: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "tidelock_agent_observations_total",
			Help: "Observations of Flux's objects sent to the server, removals included.",
		}),
	}
	for _, outcome := range []string{"ok", "failed"} {
		m.connects.WithLabelValues(outcome)
	}
	flag := func(name, help string, is func(Status) bool) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			if is(a.Status()) {
				return 1
			}
			return 0
		})
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "tidelock_build_info",
		Help:        "1, with the version as labels.",
		ConstLabels: prometheus.Labels{"version": a.config.Version, "commit": a.config.Commit},
	})
	build.Set(1)
	a.registry.MustRegister(m.connects, m.observations, build,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		flag("tidelock_agent_connected", "1 while the tunnel is up.", func(s Status) bool { return s.Connected }),
		flag("tidelock_agent_leader", "1 while this replica leads.", func(s Status) bool { return s.Leader }),
	)
	return m
}
