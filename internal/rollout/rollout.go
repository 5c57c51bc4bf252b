package rollout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// Config is what a Loop is made of.
type Config struct {
	Forge   *forge.Forge          // required
	Log     *slog.Logger          // required
	Metrics prometheus.Registerer // default: not registered anywhere
	Tracer  trace.TracerProvider  // default: nothing is traced

	// LookEvery is how often the store is looked through although nothing was
	// heard.
	LookEvery time.Duration // default 10s
	// Silence is for how long an agent may be away before its rollouts that
	// are not done are unknown.
	Silence time.Duration // default 60s
	// Workers is how many projects are worked on at once.
	Workers int // default 2
	// Pause is the least time between two plans of one project because of what
	// agents observed: their observations move rollouts by themselves.
	Pause time.Duration // default 1s
}

// A Loop keeps rollouts moving. Run does its work.
type Loop struct {
	Config
	log    *slog.Logger
	queue  *queue
	tracer trace.Tracer // nil: nothing is traced
}

// New makes a Loop. It does nothing until Run.
func New(c Config) (*Loop, error) {
	if c.Forge == nil || c.Log == nil {
		return nil, errors.New("rollout: Forge and Log are required")
	}
	c.LookEvery = cmp.Or(c.LookEvery, 10*time.Second)
	c.Silence = cmp.Or(c.Silence, 60*time.Second)
	c.Workers = cmp.Or(c.Workers, 2)
	c.Pause = cmp.Or(c.Pause, time.Second)
	l := &Loop{Config: c, log: c.Log.With("component", "rollout"), queue: newQueue(c.Pause)}
	if _, off := c.Tracer.(noop.TracerProvider); c.Tracer != nil && !off {
		l.tracer = c.Tracer.Tracer("tidelock.dev/internal/rollout")
	}
	if c.Metrics != nil {
		if err := c.Metrics.Register(newMetrics(l)); err != nil {
			return nil, fmt.Errorf("rollout: register metrics: %w", err)
		}
	}
	return l, nil
}

// Run works until ctx is done.
func (l *Loop) Run(ctx context.Context) error {
	lag := make(chan struct{}, 1)
	unsubscribe, err := l.subscribe(lag)
	if err != nil {
		return fmt.Errorf("rollout: %w", err)
	}
	defer unsubscribe()
	var working sync.WaitGroup
	defer working.Wait()
	for range l.Workers {
		working.Go(func() { l.work(ctx) })
	}
	listening := time.Now()
	look := time.NewTicker(l.LookEvery)
	defer look.Stop()
	all := true
	for {
		l.look(ctx, all, listening)
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
			all = false
		case <-lag:
			all = true
		}
	}
}

// subscribe hears what may leave something to do.
func (l *Loop) subscribe(lag chan<- struct{}) (unsubscribe func(), err error) {
	var undo []func()
	unsubscribe = func() {
		for _, u := range undo {
			u()
		}
	}
	hear := func(close func(), err error) error {
		if err == nil {
			undo = append(undo, close)
		}
		return err
	}
	err = errors.Join(
		hear(subscribe(l.Forge, func(e tidelock.Pushed) { l.queue.add(e.Project, plan) })),
		hear(subscribe(l.Forge, func(e tidelock.AccessChanged) { l.queue.add(e.Project, plan) })),
		hear(subscribe(l.Forge, func(e tidelock.Observed) { l.queue.add(e.Project, replan) })),
		hear(subscribe(l.Forge, func(e tidelock.RolloutChanged) { l.queue.add(e.Project, report) })),
		hear(subscribe(l.Forge, func(tidelock.AgentChanged) { ring(lag) })),
	)
	undo = append(undo, l.Forge.OnLag(func() { ring(lag) }))
	if err != nil {
		unsubscribe()
	}
	return unsubscribe, err
}

func subscribe[E any](f *forge.Forge, fn func(E)) (closer func(), err error) {
	s, err := forge.Subscribe(f, fn)
	if err != nil {
		return nil, err
	}
	return s.Close, nil
}

func ring(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// look finds what is left to do, of whatever was not heard.
func (l *Loop) look(ctx context.Context, all bool, listening time.Time) {
	if err := l.Forge.DoubtRollouts(ctx, l.Silence, listening); err != nil {
		l.warn(ctx, "rollouts of agents that are away not doubted", err)
	}
	projects, err := l.Forge.UnsettledProjects(ctx, all)
	if err != nil {
		l.warn(ctx, "rollouts not looked through", err)
		return
	}
	for _, id := range projects {
		l.queue.add(id, plan)
	}
}

// work takes one project after the other.
func (l *Loop) work(ctx context.Context) {
	for {
		id, what, ok := l.queue.next(ctx)
		if !ok {
			return
		}
		err := l.settle(ctx, id, what)
		if err != nil {
			l.warn(ctx, "rollouts of a project not settled: tried again", err, "project", id)
		}
		l.queue.done(id, what, err != nil)
	}
}

// settle does all it can of a task: what fails holds up nothing else.
func (l *Loop) settle(ctx context.Context, id tidelock.ProjectID, what task) error {
	var planned error
	if what >= replan {
		planned = l.Forge.PlanRollouts(ctx, id)
	}
	return errors.Join(planned, l.Forge.ReportRollouts(ctx, id), l.trace(ctx, id))
}

func (l *Loop) warn(ctx context.Context, message string, err error, args ...any) {
	if ctx.Err() == nil {
		l.log.WarnContext(ctx, message, append(args, "error", err)...)
	}
}
