package flux

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	helmv2 "github.com/fluxcd/helm-controller/api/v2"
	imagev1 "github.com/fluxcd/image-reflector-controller/api/v1"
	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	crlog "sigs.k8s.io/controller-runtime/pkg/log"
	"tidelock.dev"
)

// Config is what a Controller is made of.
type Config struct {
	REST  *rest.Config     // required; HTTP proxies of the environment are not used
	Agent tidelock.AgentID // required

	// Forge tells agents of equal id on different forges apart, such as the
	// forge's external URL. Objects made under another Forge are not ours.
	Forge string

	Log     *slog.Logger          // required
	Metrics prometheus.Registerer // default none
}

// Settings are what the agent's configuration file says about Flux.
type Settings struct {
	WebhookURL string // flux.webhook_receiver_url; default DefaultWebhookURL
	Selector   string // flux.selector, a label selector; default all sources
}

// Status is what a person may want to know of a Controller.
type Status struct {
	Running   bool
	Installed bool     // the cluster serves sources of some kind
	Detail    string   // a sentence when something is missing
	Sources   int      // of the forge
	Appliers  int      // of what the forge serves
	Stuck     []string // Receivers whose deletion waits for notification-controller
}

// A Controller follows the sources of a forge. All its methods may be
// called at any time, from any goroutine; none but Run blocks.
type Controller struct {
	owner     owner
	log       *slog.Logger
	rest      *rest.Config
	client    client.Client // not cached
	discovery *discovery.DiscoveryClient
	endpoints *endpoints
	metrics   *metrics
	bell      chan struct{} // wakes dispatch

	annotating chan struct{} // has an entry for each annotation under way

	mu           sync.Mutex
	running      bool
	settings     Settings
	endpoint     *endpoint
	selector     labels.Selector
	matches      func(kind tidelock.SourceKind, url string) bool // nil until known
	tracks       map[tidelock.SourceID]*track
	registries   map[tidelock.SourceID]registry // by HelmRepository
	told         map[tidelock.SourceID]Source   // what the feed was told
	resolutions  map[tidelock.SourceID]bool     // whether the server serves it
	keys         map[tidelock.SourceID]receiverKey
	cleaned      map[tidelock.SourceID]types.UID // sources known to have no Secret of ours
	foreign      map[tidelock.SourceID]types.UID // sources whose Secret's name is taken
	nudged       map[tidelock.SourceID]time.Time // when its Receiver was last asked to be looked at
	stuck        map[types.NamespacedName]types.UID
	calls        []call // ready to be made
	feed         *SourceFeed
	synced       bool // the set of sources is known
	appliers     map[tidelock.ObjectID]*applier
	users        map[tidelock.SourceID]map[tidelock.ObjectID]*applier // by the sources that concern them
	packages     map[tidelock.SourceID][]packaged                     // by chart, newest first
	sightings    map[tidelock.ObjectID]tidelock.Observation           // all that is to be told
	observeBy    time.Time                                            // the observations begin then; zero when they have, or are not asked for
	observations *ObservationFeed
	health       HealthWatcher
	enqueue      func(tidelock.SourceID) // asks the session for a Reconcile; nil between sessions
	status       Status
}

// A receiverKey is the content of a source's Secret, held in memory only.
type receiverKey struct {
	uid    types.UID // of the source
	key    []byte
	readAt time.Time
}

var silenceGlobalLog = sync.OnceFunc(func() { crlog.SetLogger(logr.Discard()) })

var scheme = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		authorizationv1.AddToScheme, corev1.AddToScheme, sourcev1.AddToScheme, imagev1.AddToScheme, notificationv1.AddToScheme,
		kustomizev1.AddToScheme, helmv2.AddToScheme,
	} {
		if err := add(s); err != nil {
			panic(err) // two types of one name in our own dependencies
		}
	}
	return s
}()

// New makes a Controller that does nothing before Run.
func New(config Config) (*Controller, error) {
	silenceGlobalLog()
	kube := rest.CopyConfig(config.REST)
	kube.QPS = -1 // the API server's own fairness applies
	kube.UserAgent = cmp.Or(kube.UserAgent, "tidelock-agent")
	if kube.Proxy == nil {
		kube.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	}
	endpoints, err := newEndpoints(kube)
	if err != nil {
		return nil, err
	}
	direct, err := client.New(kube, client.Options{Scheme: scheme, Mapper: restMapper()})
	if err != nil {
		return nil, fmt.Errorf("make a Kubernetes client: %w", err)
	}
	discovery, err := discovery.NewDiscoveryClientForConfig(kube)
	if err != nil {
		return nil, fmt.Errorf("make a discovery client: %w", err)
	}
	c := &Controller{
		owner:     newOwner(config.Agent, config.Forge),
		log:       config.Log,
		rest:      kube,
		client:    direct,
		discovery: discovery,
		endpoints: endpoints,
		bell:      make(chan struct{}, 1),

		annotating: make(chan struct{}, annotateSlots),

		selector: labels.Everything(),
	}
	webhook, err := parseWebhookURL("")
	if err != nil {
		return nil, err
	}
	c.endpoint = endpoints.open(webhook)
	c.reset()
	c.metrics = newMetrics(config.Metrics, c)
	return c, nil
}

// Configure takes new settings, live. Settings that do not hold are refused
// whole, and the ones before stay.
func (c *Controller) Configure(settings Settings) error {
	webhook, err := parseWebhookURL(settings.WebhookURL)
	if err != nil {
		return err
	}
	selector, err := labels.Parse(settings.Selector)
	if err != nil {
		return tidelock.Errorf(tidelock.Invalid, "flux.selector %q: %v", settings.Selector, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if settings.WebhookURL != c.settings.WebhookURL {
		c.endpoint = c.endpoints.open(webhook)
	}
	c.settings = settings
	c.selector = selector
	c.reconsider()
	return nil
}

// SetForge says which URLs of sources are the forge's.
func (c *Controller) SetForge(matches func(kind tidelock.SourceKind, url string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.matches = matches
	c.reconsider()
}

// SetServed takes the server's answer for a source. Until there is one, the
// source's Receiver, if any, stays as it is.
func (c *Controller) SetServed(id tidelock.SourceID, served bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resolve(id, served)
	if t := c.tracks[id]; t != nil && !served {
		t.dismiss(time.Now())
		c.follow(t)
	}
}

// resolve notes an answer; the lock is held.
func (c *Controller) resolve(id tidelock.SourceID, served bool) {
	before, known := c.resolutions[id]
	c.resolutions[id] = served
	if !known || before != served {
		c.lookAgain(id)
		c.surveySource(id)
		c.startObservations(time.Now())
	}
}

// lookAgain has a source's Receiver reconciled; the lock is held.
func (c *Controller) lookAgain(id tidelock.SourceID) {
	if c.enqueue != nil {
		c.enqueue(id)
	}
}

// Announce takes an announcement and, if it needs one, has a request on its
// way to Flux before anything else happens. It reports whether the source is
// one of ours.
func (c *Controller) Announce(a Announcement) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tracks[a.Source]
	if t == nil || !t.ours {
		return false
	}
	if served, known := c.resolutions[a.Source]; !known || !served {
		c.resolve(a.Source, true)
	}
	t.announce(a, time.Now())
	c.follow(t)
	return true
}

// Subscribe opens a SourceFeed; the one before it ends, and this one does when Run
// ends. The first changes come when the set of sources is known.
func (c *Controller) Subscribe() *SourceFeed {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.feed != nil {
		c.feed.close()
	}
	c.feed = newFeed[tidelock.SourceID, Source]()
	if c.synced {
		c.startFeed()
	}
	return c.feed
}

// Resend has the SourceFeed begin again with the whole set.
func (c *Controller) Resend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.feed != nil && c.synced {
		c.startFeed()
	}
}

// startFeed hands the whole set to the feed; the lock is held.
func (c *Controller) startFeed() {
	clear(c.told)
	for id, t := range c.tracks {
		if t.ours {
			c.told[id] = t.source()
		}
	}
	for id := range c.resolutions {
		if c.tracks[id] == nil {
			delete(c.resolutions, id)
		}
	}
	c.feed.start(c.told)
	for _, t := range c.tracks {
		if t.ours && t.announcement != nil {
			c.feed.advance(t.id, t.announcement.progress)
		}
	}
}

// Sources returns the set of sources, in order.
func (c *Controller) Sources() []Source {
	c.mu.Lock()
	defer c.mu.Unlock()
	var set []Source
	for _, t := range c.tracks {
		if t.ours {
			set = append(set, t.source())
		}
	}
	slices.SortFunc(set, func(a, b Source) int { return cmp.Compare(a.ID, b.ID) })
	return set
}

// Status reports how things stand.
func (c *Controller) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	status := c.status
	status.Running = c.running
	for _, t := range c.tracks {
		if t.ours {
			status.Sources++
		}
	}
	for id := range c.sightings {
		if id.Applies() {
			status.Appliers++
		}
	}
	for key := range c.stuck {
		status.Stuck = append(status.Stuck, key.String())
	}
	slices.Sort(status.Stuck)
	return status
}

// Run follows Flux until ctx is done, from a clean sheet. It survives Flux
// being absent, arriving and vanishing, and the API server being away.
func (c *Controller) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.running {
		c.mu.Unlock()
		return fmt.Errorf("the Flux controller runs already")
	}
	c.reset()
	c.running = true
	c.mu.Unlock()

	var group sync.WaitGroup
	group.Go(func() { c.dispatch(ctx) })
	group.Go(func() { c.pollSecrets(ctx) })
	group.Go(func() { c.watch(ctx) })
	group.Wait()
	c.endpoints.close()

	c.mu.Lock()
	defer c.mu.Unlock()
	c.running = false
	c.reset()
	if c.feed != nil {
		c.feed.close()
		c.feed = nil
	}
	if c.observations != nil {
		c.observations.close()
		c.observations = nil
	}
	return nil
}

// reset forgets all but the settings; the lock is held, or nobody else has
// the Controller yet.
func (c *Controller) reset() {
	c.tracks = make(map[tidelock.SourceID]*track)
	c.registries = make(map[tidelock.SourceID]registry)
	c.told = make(map[tidelock.SourceID]Source)
	c.resolutions = make(map[tidelock.SourceID]bool)
	c.keys = make(map[tidelock.SourceID]receiverKey)
	c.cleaned = make(map[tidelock.SourceID]types.UID)
	c.foreign = make(map[tidelock.SourceID]types.UID)
	c.nudged = make(map[tidelock.SourceID]time.Time)
	c.stuck = make(map[types.NamespacedName]types.UID)
	for _, a := range c.appliers {
		c.unfollow(a)
	}
	c.appliers = make(map[tidelock.ObjectID]*applier)
	c.users = make(map[tidelock.SourceID]map[tidelock.ObjectID]*applier)
	c.packages = make(map[tidelock.SourceID][]packaged)
	c.sightings = make(map[tidelock.ObjectID]tidelock.Observation)
	c.calls = nil
	c.synced = false
	c.status = Status{Detail: "not looked yet"}
}

// belongs reports whether a source is ours to trigger; the lock is held.
func (c *Controller) belongs(id tidelock.SourceID, o *observation) bool {
	return c.matches != nil && !o.oversized() && c.matches(id.Kind(), o.url) && c.selector.Matches(labels.Set(o.labels))
}

// reconsider asks of every source anew whether it is ours; the lock is held.
func (c *Controller) reconsider() {
	now := time.Now()
	for id, t := range c.tracks {
		t.setOurs(c.belongs(id, &t.seen), now)
		c.follow(t)
		c.lookAgain(id)
		c.surveySource(id)
	}
	c.startObservations(now)
}

// observed takes what Flux shows of a source.
func (c *Controller) observed(k *kind, object client.Object) {
	name := client.ObjectKeyFromObject(object)
	if object.GetDeletionTimestamp() != nil {
		c.vanished(k.id(name))
		return
	}
	o := k.observe(object)
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tracks[k.id(name)]
	if t == nil {
		t = &track{id: k.id(name)}
		c.tracks[t.id] = t
	}
	if id := o.registryID(name.Namespace); id != "" {
		o.locate(c.registries[id])
	}
	c.show(name.Namespace, t, o)
}

// show has a track take what there is to be seen of its source, and those
// that include the source look again; the lock is held.
func (c *Controller) show(namespace string, t *track, o observation) {
	before, wasOurs, now := t.seen, t.ours, time.Now()
	if o.oversized() && !before.oversized() {
		c.log.Warn("source left out: its URL and ref are too long", "source", t.id, "limit", maxSpec)
	}
	t.setOurs(c.belongs(t.id, &o), now)
	t.setIncludeWant(c.includeWant(namespace, o.include), now)
	t.observe(o, now)
	c.follow(t)
	c.notePackaged(t)
	c.surveySource(t.id)
	if o.uid != before.uid || t.ours != wasOurs {
		c.lookAgain(t.id)
	}
	if o.artifact == before.artifact {
		return
	}
	for _, includer := range c.tracks {
		if includer.includes(t.id) {
			includer.setIncludeWant(c.includeWant(namespace, includer.seen.include), now)
			c.follow(includer)
		}
	}
}

// includes reports whether the source is built with another one.
func (t *track) includes(other tidelock.SourceID) bool {
	if len(t.seen.include) == 0 {
		return false
	}
	_, name, _ := parseID(t.id)
	return slices.ContainsFunc(t.seen.include, func(included string) bool {
		return other == gitRepository.id(types.NamespacedName{Namespace: name.Namespace, Name: included})
	})
}

// includeWant names the artifacts of included sources, in order; it is empty
// if any has none. The lock is held.
func (c *Controller) includeWant(namespace string, include []string) []string {
	var want []string
	for _, name := range include {
		included := c.tracks[gitRepository.id(types.NamespacedName{Namespace: namespace, Name: name})]
		if included == nil || included.seen.artifact == "" {
			return nil
		}
		want = append(want, included.seen.artifact)
	}
	return want
}

// registryObserved takes what a HelmRepository says; the zero registry stands
// for one that is gone.
func (c *Controller) registryObserved(name types.NamespacedName, r registry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.relocate(registryID(name), r)
}

// relocate tells charts of their HelmRepository; the lock is held.
func (c *Controller) relocate(id tidelock.SourceID, r registry) {
	if r.edition == "" {
		delete(c.registries, id)
	} else {
		c.registries[id] = r
	}
	for _, t := range c.tracks {
		_, name, _ := parseID(t.id)
		if t.seen.registryID(name.Namespace) == id {
			o := t.seen
			o.locate(r)
			c.show(name.Namespace, t, o)
		}
	}
}

// vanished takes that a source is gone or about to go.
func (c *Controller) vanished(id tidelock.SourceID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(id)
}

// drop forgets a source; the lock is held.
func (c *Controller) drop(id tidelock.SourceID) {
	delete(c.tracks, id)
	delete(c.keys, id)
	delete(c.cleaned, id)
	delete(c.foreign, id)
	delete(c.nudged, id)
	delete(c.packages, id)
	c.untell(id)
	c.surveySource(id)
}

// follow does what a track wants after any of its methods; the lock is held.
func (c *Controller) follow(t *track) {
	c.tell(t)
	if t.changed {
		t.changed = false
		if t.announcement != nil {
			c.metrics.advanced(t.announcement)
			if c.feed != nil {
				c.feed.advance(t.id, t.announcement.progress)
			}
		}
	}
	if t.wanted && c.running {
		c.calls = append(c.calls, t.begin())
		c.ring()
	}
	if due := t.deadline(); due != t.armed {
		t.armed = due
		c.ring()
	}
}

// tell brings the feed's set of sources up to date; the lock is held.
func (c *Controller) tell(t *track) {
	if !t.ours {
		c.untell(t.id)
		return
	}
	s := t.source()
	told, known := c.told[t.id]
	if !c.synced || c.feed == nil || known && told.same(s) {
		return
	}
	c.told[t.id] = s
	c.feed.upsert(t.id, s)
}

// untell takes a source out of the feed's set; the lock is held.
func (c *Controller) untell(id tidelock.SourceID) {
	if _, known := c.told[id]; !known {
		return
	}
	delete(c.told, id)
	if c.feed != nil {
		c.feed.remove(id)
	}
}

func (c *Controller) ring() {
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

// source is what the server is to know of the track.
func (t *track) source() Source {
	s := Source{
		ID:        t.id,
		UID:       string(t.seen.uid),
		URL:       t.seen.url,
		Ref:       t.seen.ref,
		Revision:  t.revision(),
		Suspended: t.seen.suspended,
	}
	if a := t.announcement; a != nil {
		s.LastNumber = a.Number
		if a.spec == t.seen.spec() || t.has(a) {
			s.LastCommit, s.LastDigest = a.Commit, a.Digest
		} // else it was about another ref, and is not acted on any more
	}
	return s
}

// same reports whether nothing changed but what the server said itself.
func (s Source) same(other Source) bool {
	other.LastNumber, other.LastCommit, other.LastDigest = s.LastNumber, s.LastCommit, s.LastDigest
	return s == other
}

// jitter takes up to a tenth off d.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/10+1) }
