// Package delivery packages delivery repositories: what .tidelock/delivery.yaml
// names as an application becomes an artifact in the registry whenever its
// files change. ParseConfig, Make and Inputs are pure and serve the command
// line, too; a Packer does it for the server.
//
// A push is only a hint. The record says for each branch and tag which commit
// was delivered last, and whatever differs from the heads is delivered: after
// a crash, after events were lost, and once for several pushes that came
// faster than they could be packaged.
package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/registry"
)

// Config is what a Packer is made of.
type Config struct {
	Forge       *forge.Forge       // required
	Repos       *gitrepo.Disk      // required
	Registry    *registry.Registry // required
	Log         *slog.Logger       // required
	ExternalURL *url.URL           // required: where clients reach the repositories and images

	// Workers is how many projects are packaged at once, and how many more of
	// those that take long.
	Workers int // default: one for each processor
	// LookEvery is how often the heads are compared although no push was heard
	// of.
	LookEvery time.Duration // default 1m

	Metrics prometheus.Registerer // default: not registered anywhere
	Tracer  trace.TracerProvider  // default: nothing is traced
}

// A Packer packages what is pushed. It is safe for concurrent use.
type Packer struct {
	Config
	log     *slog.Logger
	builds  forge.BuildLog
	metrics *metrics
	tracer  trace.Tracer
	queue   queue
}

// New makes a Packer. It does nothing until Run.
func New(c Config) (*Packer, error) {
	if c.Forge == nil || c.Repos == nil || c.Registry == nil || c.Log == nil || c.ExternalURL == nil {
		return nil, errors.New("delivery: Forge, Repos, Registry, Log and ExternalURL are required")
	}
	if c.Workers <= 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	c.LookEvery = cmp.Or(c.LookEvery, time.Minute)
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider()
	}
	return &Packer{
		Config: c, log: c.Log.With("component", "delivery"), builds: c.Forge.BuildLog(),
		metrics: newMetrics(c.Metrics), tracer: c.Tracer.Tracer("tidelock.dev/internal/delivery"),
		queue: queue{wake: make(chan struct{}, 1), projects: map[tidelock.ProjectID]*turn{}},
	}, nil
}

const (
	// someHeads is how many heads are read at once.
	someHeads = 200
	// tidyEvery is how often what is known of refs that are gone is removed.
	tidyEvery = time.Hour
)

// Run packages until ctx is done. What is under way then is given up, and done
// again by the next one.
func (p *Packer) Run(ctx context.Context) error {
	pushed, err := forge.Subscribe(p.Forge, func(e tidelock.Pushed) { p.queue.add(e.Project) })
	if err != nil {
		return fmt.Errorf("hear of pushes: %w", err)
	}
	defer pushed.Close()
	lag := make(chan struct{}, 1)
	defer p.Forge.OnLag(func() {
		select {
		case lag <- struct{}{}:
		default:
		}
	})()

	var working sync.WaitGroup
	defer working.Wait()
	fast, slow := make(chan struct{}, p.Workers), make(chan struct{}, p.Workers)
	look := time.NewTicker(p.LookEvery)
	defer look.Stop()
	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	p.look(ctx)
	for {
		again := time.NewTimer(p.start(ctx, fast, slow, &working))
		select {
		case <-ctx.Done():
		case <-p.queue.wake:
		case <-again.C:
		case <-lag:
			p.look(ctx)
		case <-look.C:
			p.look(ctx)
		case <-tidy.C:
			if err := p.builds.ForgetDelivered(ctx); err != nil {
				p.warn(ctx, "refs that are gone not forgotten", err)
			}
		}
		again.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// start begins on projects that wait, as long as there are free slots. It
// returns how long to wait for the next one, unless somebody wakes the queue.
func (p *Packer) start(ctx context.Context, fast, slow chan struct{}, working *sync.WaitGroup) time.Duration {
	for len(fast) < cap(fast) {
		project, wait := p.queue.next(time.Now())
		if project == 0 {
			return wait
		}
		fast <- struct{}{} // there is room: only this goroutine takes slots
		lane := newLane(fast, slow, p.queue.ring)
		working.Go(func() {
			err := p.deliverProject(ctx, project, lane)
			if err != nil {
				p.warn(ctx, "project not packaged: it is tried again", err, "project", project)
			}
			lane.leave()
			p.queue.done(project, err != nil, time.Now())
		})
	}
	return time.Hour // whoever ends wakes the queue
}

// look finds the projects that have something to deliver.
func (p *Packer) look(ctx context.Context) {
	heads, err := p.builds.UndeliveredHeads(ctx, 0, 10*someHeads)
	if err != nil {
		p.warn(ctx, "heads not compared", err)
		return
	}
	for _, h := range heads {
		p.queue.addCut(h.Project)
	}
}

// deliverProject delivers all heads of a project that are not. Each is
// recorded as soon as it is.
func (p *Packer) deliverProject(ctx context.Context, id tidelock.ProjectID, lane *lane) error {
	heads, err := p.builds.UndeliveredHeads(ctx, id, someHeads)
	if err != nil || len(heads) == 0 {
		return err
	}
	project, err := p.Forge.ProjectByID(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read project %d: %w", id, err)
	}
	var failed error
	cut := p.queue.wasCut(id)
	for _, h := range heads {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := lane.giveWay(ctx); err != nil {
			return err
		}
		if cut {
			if err := p.Forge.AbandonOwnStatuses(ctx, project, h, statusName, "a newer commit took its place"); err != nil {
				return err
			}
		}
		if err := p.deliverHead(ctx, project, h, lane); err != nil {
			failed = errors.Join(failed, fmt.Errorf("deliver %s of project %d: %w", h.Ref, id, err))
		}
	}
	if len(heads) == someHeads && failed == nil {
		p.queue.add(id)
	}
	return failed
}

func (p *Packer) warn(ctx context.Context, message string, err error, args ...any) {
	if ctx.Err() == nil {
		p.log.WarnContext(ctx, message, append(args, "error", err)...)
	}
}
