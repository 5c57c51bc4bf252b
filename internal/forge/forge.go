// Package forge is the rules: who may do what, what happened, and what has to
// be told to whom. It owns projects, people, tokens and agents, authorizes
// every act in one table (access.go), records pushes and publishes hints on
// the bus.
//
// It does not speak any protocol: surfaces (git, REST, the agent server, the
// console) read a credential, call Authenticate, and then a method named after
// the act. What it remembers lives behind Store; what is on disk behind
// gitrepo.
package forge

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"tidelock.dev"
	"tidelock.dev/internal/bus"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/signing"
)

// Config is what a Forge is made of.
type Config struct {
	Store Store         // required
	Repos *gitrepo.Disk // required
	Bus   *bus.Bus      // required
	Log   *slog.Logger  // required

	Registry *registry.Registry // required

	// ImageQuota is how many bytes the images of a project may have, unless
	// the project has a quota of its own.
	ImageQuota int64 // default: no limit

	// ImageGrace is for how long content stays that no tag leads to.
	ImageGrace time.Duration // default 24h

	// CollectEvery is how often such content is looked for.
	CollectEvery time.Duration // default 6h

	// ExternalURL is where people reach the pages that the forge's own jobs
	// lead to.
	ExternalURL *url.URL // default: they lead nowhere

	// Signer signs what the forge itself makes.
	Signer *signing.Signer // default: nothing is signed

	// HistoryKeep is for how long pushes, announcements, rollouts and builds
	// are remembered that nothing needs any more.
	HistoryKeep time.Duration // default: for ever

	// CompareEvery is how often refs on disk are compared with the recorded
	// heads although nothing called for it.
	CompareEvery time.Duration // default 10m

	// CheckHookURL says, as an error of kind Invalid, why the operator does not
	// want the URL of a hook to be called.
	CheckHookURL func(*url.URL) error // default: any may be

	// Now is the clock.
	Now func() time.Time // default time.Now

	Tracer trace.TracerProvider // default: nothing is traced

	Metrics prometheus.Registerer // default: nothing is registered
}

// A Forge applies the rules. It is safe for concurrent use.
type Forge struct {
	store Store
	repos *gitrepo.Disk
	bus   *bus.Bus
	log   *slog.Logger
	now   func() time.Time

	checkHookURL func(*url.URL) error
	external     *url.URL // nil: jobs of the forge's own lead nowhere
	tracer       trace.Tracer
	compareEvery time.Duration
	historyKeep  time.Duration             // 0: for ever
	recording    locks[tidelock.ProjectID] // what must see refs and heads together
	marks        chan tidelock.PushID      // pushes the bus has heard of
	touches      chan func(context.Context) error
	wake         chan struct{} // something became dirty

	registry     *registry.Registry
	metrics      *imageMetrics
	signer       *signing.Signer           // nil: nothing is signed
	images       locks[registry.Name]      // what changes an image, in rows and in storage
	counting     locks[tidelock.ProjectID] // what a project's images hold
	usages       usages
	imageQuota   int64
	imageGrace   time.Duration
	collectEvery time.Duration

	ancestries ancestries
	waiters    *waiters

	mu    sync.Mutex
	dirty map[tidelock.ProjectID]*dirtiness
}

// New makes a Forge. It reads and writes nothing until used.
func New(c Config) (*Forge, error) {
	if c.Store == nil || c.Repos == nil || c.Bus == nil || c.Log == nil || c.Registry == nil {
		return nil, errors.New("forge: Store, Repos, Bus, Log and Registry are required")
	}
	if c.ImageGrace <= 0 {
		c.ImageGrace = 24 * time.Hour
	}
	if c.CollectEvery <= 0 {
		c.CollectEvery = 6 * time.Hour
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.CompareEvery <= 0 {
		c.CompareEvery = 10 * time.Minute
	}
	if c.CheckHookURL == nil {
		c.CheckHookURL = func(*url.URL) error { return nil }
	}
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider()
	}
	return &Forge{
		store: c.Store, repos: c.Repos, bus: c.Bus, now: c.Now,
		log:          c.Log.With("component", "forge"),
		checkHookURL: c.CheckHookURL, external: c.ExternalURL,
		tracer:       c.Tracer.Tracer("tidelock.dev/internal/forge"),
		compareEvery: c.CompareEvery,
		historyKeep:  c.HistoryKeep,
		marks:        make(chan tidelock.PushID, 4096),
		touches:      make(chan func(context.Context) error, 256),
		wake:         make(chan struct{}, 1),
		dirty:        map[tidelock.ProjectID]*dirtiness{},
		waiters:      newWaiters(),

		metrics:  newImageMetrics(c.Metrics),
		registry: c.Registry, signer: c.Signer, imageQuota: c.ImageQuota, imageGrace: c.ImageGrace, collectEvery: c.CollectEvery,
	}, nil
}

// Ping reports whether the forge can read what it remembers.
func (f *Forge) Ping(ctx context.Context) error { return f.store.Ping(ctx) }

// publish rings the bus. A failure is only logged: whoever missed the hint
// finds the state when it looks again.
func publish[E any](f *Forge, event E) bool {
	if err := bus.Publish(f.bus, event); err != nil {
		f.log.Warn("hint not published", "event", event, "error", err)
		return false
	}
	return true
}
