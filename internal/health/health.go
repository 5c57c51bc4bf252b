package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	"tidelock.dev"
)

const (
	// maxUnhealthy bounds the objects that a Report names.
	maxUnhealthy = 20

	// gather is how long changes of an owner are collected before it is told
	// of; an apply changes many objects at once.
	gather = 20 * time.Millisecond
)

// A Ref names an object that an applier brought. Version is a hint: another
// one of the group is used if it is not served any more.
type Ref struct {
	Group, Version, Kind, Namespace, Name string
}

// A Report is how the objects of an owner are, together.
type Report struct {
	Health    tidelock.Health // the worst: failed, missing, progressing, unknown, healthy
	Objects   int
	Healthy   int                     // of Objects
	Unhealthy []tidelock.ObjectHealth // worst first, the first 20

	// Settled says that every object has been looked at since Follow brought
	// it and since the last Refresh. Until then what was found failed or
	// missing before counts as progressing.
	Settled bool
}

// Config says what to follow, and whom to tell.
type Config struct {
	REST *rest.Config // required
	Log  *slog.Logger // required

	// Notify is called, from one goroutine, when an owner's Report is not any
	// more what Health returned last, or Notify was called for; once for all
	// that changed meanwhile. It must not block.
	Notify func(owner string) // required

	Metrics prometheus.Registerer // default none
}

// A Watcher follows objects. All its methods may be called at any time, from
// any goroutine; none but Run blocks.
type Watcher struct {
	log       *slog.Logger
	notify    func(owner string)
	metadata  metadata.Interface
	dynamic   dynamic.Interface
	discovery *discovery.DiscoveryClient
	metrics   *metrics
	bell      chan struct{}  // wakes tell
	slots     chan struct{}  // has an entry for each watch under way
	group     sync.WaitGroup // of what Run started

	mu     sync.Mutex
	ctx    context.Context // of Run; nil when it does not run
	queue  workqueue.TypedDelayingInterface[job]
	pass   uint32 // the last list that began
	owners map[string]*owner
	kinds  map[schema.GroupKind]*kind
	wards  map[string]*ward // by namespace
	dirty  map[*owner]struct{}
}

// An owner is whoever follows objects.
type owner struct {
	name    string
	objects []*object
	told    Report // what its follower knows, or was told to ask for
}

// New makes a Watcher that looks at nothing before Run.
func New(config Config) (*Watcher, error) {
	kube := rest.CopyConfig(config.REST)
	kube.QPS = -1 // we bound what is under way; the API server's own fairness does the rest
	kube.UserAgent = cmp.Or(kube.UserAgent, "tidelock-agent")
	if kube.Proxy == nil {
		kube.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	}
	client, err := rest.HTTPClientFor(kube)
	if err != nil {
		return nil, fmt.Errorf("make a client of the API server: %w", err)
	}
	w := &Watcher{
		log:    config.Log,
		notify: config.Notify,
		bell:   make(chan struct{}, 1),
		slots:  make(chan struct{}, maxWatches),
		owners: make(map[string]*owner),
		kinds:  make(map[schema.GroupKind]*kind),
		wards:  make(map[string]*ward),
		dirty:  make(map[*owner]struct{}),
	}
	if w.metadata, err = metadata.NewForConfigAndClient(kube, client); err != nil {
		return nil, fmt.Errorf("make a client for metadata: %w", err)
	}
	if w.dynamic, err = dynamic.NewForConfigAndClient(kube, client); err != nil {
		return nil, fmt.Errorf("make a client for objects: %w", err)
	}
	if w.discovery, err = discovery.NewDiscoveryClientForConfigAndClient(kube, client); err != nil {
		return nil, fmt.Errorf("make a discovery client: %w", err)
	}
	w.metrics = newMetrics(config.Metrics, w)
	return w, nil
}

// Follow has refs be the objects of an owner, in place of those it had.
func (w *Watcher) Follow(name string, refs []Ref) {
	w.mu.Lock()
	defer w.mu.Unlock()
	own := w.owners[name]
	if own == nil {
		own = &owner{name: name}
		w.owners[name] = own
	}
	before := own.objects
	kept := make(map[*object]bool, len(refs))
	own.objects = make([]*object, 0, len(refs))
	for _, ref := range refs {
		o := w.object(ref)
		if kept[o] {
			continue
		}
		kept[o] = true
		own.objects = append(own.objects, o)
		if slices.Contains(o.owners, own) {
			continue
		}
		if len(o.owners) > 0 {
			w.again(o) // what others were told of it may be from before
		}
		o.owners = append(o.owners, own)
	}
	for _, o := range before {
		if !kept[o] {
			w.leave(o, own)
		}
	}
	w.touch(own)
}

// Refresh has everything of an owner looked at anew, and its Report is not
// Settled before that is done. It is for whoever learns that objects were
// applied: the watches may be behind of what tells so.
func (w *Watcher) Refresh(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	own := w.owners[name]
	if own == nil {
		return
	}
	for _, o := range own.objects {
		w.again(o)
	}
	w.touch(own)
}

// Forget follows nothing for an owner any more.
func (w *Watcher) Forget(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	own := w.owners[name]
	if own == nil {
		return
	}
	delete(w.owners, name)
	delete(w.dirty, own)
	for _, o := range own.objects {
		w.leave(o, own)
	}
}

// Health reports how the objects of an owner are, as far as it is known now.
// That of an owner who follows nothing is unknown, and not Settled.
func (w *Watcher) Health(name string) Report {
	w.mu.Lock()
	defer w.mu.Unlock()
	own := w.owners[name]
	if own == nil {
		return Report{Health: tidelock.HealthUnknown}
	}
	own.told = own.report()
	return own.told
}

// Run looks at what is followed until ctx is done. It may be called again
// then, and looks at everything anew.
func (w *Watcher) Run(ctx context.Context) error {
	w.mu.Lock()
	if w.ctx != nil {
		w.mu.Unlock()
		return errors.New("the health watcher runs already")
	}
	w.ctx = ctx
	w.queue = workqueue.NewTypedDelayingQueue[job]()
	queue := w.queue
	w.group.Go(func() { w.tell(ctx) })
	for range readers {
		w.group.Go(func() { w.read(ctx, queue) })
	}
	for _, k := range w.kinds {
		w.start(k)
	}
	w.mu.Unlock()

	<-ctx.Done()
	queue.ShutDown()
	w.mu.Lock()
	w.ctx = nil // nothing is started from here on
	w.mu.Unlock()
	w.group.Wait()

	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = nil
	clear(w.wards)
	for _, k := range w.kinds {
		k.reset()
	}
	return nil
}

// touch notes that the report of an owner may have changed; the lock is held.
func (w *Watcher) touch(own *owner) {
	w.dirty[own] = struct{}{}
	select {
	case w.bell <- struct{}{}:
	default:
	}
}

// tell tells of reports that changed, after having waited for more.
func (w *Watcher) tell(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.bell:
		}
		if !pause(ctx, gather) {
			return
		}
		for _, name := range w.changed() {
			w.metrics.notifications.Inc()
			w.notify(name)
		}
	}
}

// changed takes the owners whose reports are not what they were told.
func (w *Watcher) changed() (names []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for own := range w.dirty {
		if report := own.report(); !report.same(own.told) {
			own.told = report
			names = append(names, own.name)
		}
	}
	clear(w.dirty)
	return names
}

// report sums up; the lock is held.
func (own *owner) report() Report {
	r := Report{Health: tidelock.HealthHealthy, Objects: len(own.objects), Settled: true}
	var unwell []*object
	for _, o := range own.objects {
		f := o.finding()
		if !o.settled() {
			r.Settled = false
		}
		if badness(f.Health) > badness(r.Health) {
			r.Health = f.Health
		}
		switch {
		case f.Health == tidelock.HealthHealthy:
			r.Healthy++
		case f.Reason != "": // else it was not looked at yet
			unwell = append(unwell, o)
		}
	}
	if len(unwell) == 0 {
		return r
	}
	slices.SortFunc(unwell, func(a, b *object) int {
		return cmp.Or(
			badness(b.finding().Health)-badness(a.finding().Health),
			cmp.Compare(a.kind.name, b.kind.name), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
	for _, o := range unwell[:min(len(unwell), maxUnhealthy)] {
		f := o.finding()
		r.Unhealthy = append(r.Unhealthy, tidelock.ObjectHealth{
			Kind: o.kind.name, Namespace: o.namespace, Name: o.name,
			Health: f.Health, Reason: f.Reason, Message: f.Message, Pod: f.Pod,
		})
	}
	return r
}

func (r Report) same(other Report) bool {
	return r.Health == other.Health && r.Objects == other.Objects && r.Healthy == other.Healthy &&
		r.Settled == other.Settled && slices.Equal(r.Unhealthy, other.Unhealthy)
}

// badness orders healths, the worst last.
func badness(h tidelock.Health) int {
	switch h {
	case tidelock.HealthHealthy:
		return 0
	case tidelock.HealthUnknown:
		return 1
	case tidelock.HealthProgressing:
		return 2
	case tidelock.HealthMissing:
		return 3
	default:
		return 4
	}
}
