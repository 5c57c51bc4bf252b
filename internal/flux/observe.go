package flux

import (
	"reflect"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"tidelock.dev"
)

const (
	// observePatience bounds how long the first set of observations waits for
	// the server to say which sources it serves, and for objects to be looked
	// at. A set without them would say that they are gone.
	observePatience = 10 * time.Second

	// earlyGrace is how long an applier that fails before it looks at a
	// revision is given to look at the next one, and fail anew.
	earlyGrace = 2 * time.Second

	// What is told is bounded, in bytes.
	maxObserved       = 4096 // the message of an observation
	maxOutcomeMessage = 1024
	maxPath           = 1024
	maxEnvironment    = 255

	maxDependencies = 32
	maxPackaged     = 2 * maxOutcomes // versions of a chart whose revisions are known
)

// A HealthWatcher follows the objects that appliers brought. Its methods do not
// block, and it calls HealthChanged without holding a lock of its own.
type HealthWatcher interface {
	Follow(owner tidelock.ObjectID, refs []ObjectRef)

	// Refresh looks at all of an owner's objects anew: they were applied.
	Refresh(owner tidelock.ObjectID)
	Forget(owner tidelock.ObjectID)
	Health(owner tidelock.ObjectID) HealthReport
}

// A HealthReport is how the objects of an applier are, together.
type HealthReport struct {
	Health    tidelock.Health // the worst
	Unhealthy []tidelock.ObjectHealth
	Settled   bool // all have been looked at since Follow or Refresh
}

// An applier is what the Controller knows of a Kustomization or HelmRelease.
type applier struct {
	kind *applierKind
	name types.NamespacedName
	id   tidelock.ObjectID
	seen application

	links     []tidelock.SourceID // sources whose changes concern it
	followed  []ObjectRef         // what the HealthWatcher follows for it; nil for nothing
	refreshed version             // for which the HealthWatcher looked anew

	verdict verdict
	last    moment

	// earlyRevision is what the source had when it failed early; see early.
	earlyRevision string
	revisitAt     time.Time // to take note of the revision that it fails with by now; zero for never

	outcomes []tidelock.Outcome
}

// packaged is a version of a chart, and the revision of the GitRepository that
// it was made from.
type packaged struct{ version, revision string }

// SubscribeObservations opens an ObservationFeed; the one before it ends, and
// this one does when Run ends. The first Observations come when it is known
// which sources are served, and how the objects are that their appliers
// brought; or after a few seconds without that.
func (c *Controller) SubscribeObservations() *ObservationFeed {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.observations != nil {
		c.observations.close()
	}
	c.observations = newFeed[tidelock.ObjectID, tidelock.Observation]()
	c.observeBy = time.Time{}
	c.startObservations(time.Now())
	return c.observations
}

// startObservations hands the whole set to the feed as soon as it is known; the
// lock is held.
func (c *Controller) startObservations(now time.Time) {
	if c.observations == nil || !c.synced || c.observations.started {
		return
	}
	if c.observeBy.IsZero() {
		c.observeBy = now.Add(observePatience)
		c.ring()
	}
	if c.observable() || !now.Before(c.observeBy) {
		c.observeBy = time.Time{}
		c.observations.start(c.sightings)
	}
}

// observable reports whether all is known that there is to be told; the lock
// is held.
func (c *Controller) observable() bool {
	for id, t := range c.tracks {
		if _, resolved := c.resolutions[id]; t.ours && !resolved {
			return false
		}
	}
	for id, a := range c.appliers {
		if a.followed != nil && !c.health.Health(id).Settled {
			return false
		}
	}
	return true
}

// SetHealth takes who follows the objects that appliers bring; nil for nobody.
func (c *Controller) SetHealth(h HealthWatcher) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.health = h
	for _, a := range c.appliers {
		a.followed, a.refreshed = nil, version{}
		c.survey(a)
	}
}

// HealthChanged takes that the HealthWatcher has another report of an owner.
func (c *Controller) HealthChanged(owner tidelock.ObjectID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.appliers[owner]; a != nil {
		c.survey(a)
		c.startObservations(time.Now())
	}
}

// applierObserved takes what Flux shows of an applier.
func (c *Controller) applierObserved(k *applierKind, object client.Object) {
	name := client.ObjectKeyFromObject(object)
	if object.GetDeletionTimestamp() != nil {
		c.applierVanished(k.id(name))
		return
	}
	seen := k.read(object)
	c.mu.Lock()
	defer c.mu.Unlock()
	id := k.id(name)
	a := c.appliers[id]
	if a != nil && a.seen.uid != seen.uid {
		c.dropApplier(id) // another one of the same name
		a = nil
	}
	if a == nil {
		a = &applier{kind: k, name: name, id: id}
		c.appliers[id] = a
	}
	a.seen = seen
	if seen.early() {
		a.earlyRevision = c.offered(a)
	}
	a.revisitAt = time.Time{}
	c.survey(a)
}

// applierVanished takes that an applier is no more.
func (c *Controller) applierVanished(id tidelock.ObjectID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropApplier(id)
}

// dropApplier forgets an applier; the lock is held.
func (c *Controller) dropApplier(id tidelock.ObjectID) {
	a := c.appliers[id]
	if a == nil {
		return
	}
	delete(c.appliers, id)
	c.link(a)
	c.unfollow(a)
	c.unobserve(id)
}

// source returns where an applier's revisions come from, and the object that it
// names, which is another one if that is a chart packaged from the source. The
// lock is held.
func (c *Controller) source(a *applier) (id tidelock.SourceID, named *track) {
	named = c.tracks[a.seen.source]
	if named != nil && named.seen.gitRepository != "" {
		return named.gitRepository(), named
	}
	return a.seen.source, named
}

// offered is the revision that an applier's source has for it; the lock is held.
func (c *Controller) offered(a *applier) string {
	_, named := c.source(a)
	if named == nil {
		return ""
	}
	return c.madeFrom(named, named.seen.revision)
}

// name is "<namespace>/<name>".
func (t *track) name() string {
	_, name, _ := parseID(t.id)
	return name.String()
}

// gitRepository is what a chart is packaged from.
func (t *track) gitRepository() tidelock.SourceID {
	_, name, _ := parseID(t.id)
	return gitRepository.id(types.NamespacedName{Namespace: name.Namespace, Name: t.seen.gitRepository})
}

// served reports whether a source is one of the forge's that the server
// serves; the lock is held.
func (c *Controller) served(id tidelock.SourceID) bool {
	t := c.tracks[id]
	return t != nil && t.ours && c.resolutions[id]
}

// link has an applier looked at when one of some sources changes, and none but
// these; the lock is held.
func (c *Controller) link(a *applier, sources ...tidelock.SourceID) {
	sources = slices.Compact(sources)
	if slices.Equal(a.links, sources) {
		return
	}
	for _, id := range a.links {
		delete(c.users[id], a.id)
		if len(c.users[id]) == 0 {
			delete(c.users, id)
		}
	}
	a.links = sources
	for _, id := range sources {
		if c.users[id] == nil {
			c.users[id] = make(map[tidelock.ObjectID]*applier)
		}
		c.users[id][a.id] = a
	}
}

// surveySource brings up to date what is observed of a source, and of what
// uses it; the lock is held.
func (c *Controller) surveySource(id tidelock.SourceID) {
	object := tidelock.ObjectID(id)
	before, was := c.sightings[object]
	is := c.served(id)
	var after tidelock.Observation
	if is {
		after = c.tracks[id].observation()
		c.observe(before, was, after)
	} else {
		c.unobserve(object)
	}
	for _, a := range c.users[id] {
		if a.seen.early() && a.revisitAt.IsZero() && before.Revision != after.Revision {
			a.revisitAt = time.Now().Add(earlyGrace)
			c.ring()
		}
		if was != is || id.Kind() == tidelock.HelmChart {
			c.survey(a)
		}
	}
}

// observation is what is told of a source.
func (t *track) observation() tidelock.Observation {
	standing := t.verdict.hold(t.seen.standing, version{t.seen.uid, t.seen.generation, t.seen.revision})
	return tidelock.Observation{
		Object:    tidelock.ObjectID(t.id),
		UID:       string(t.seen.uid),
		Suspended: t.seen.suspended,
		State:     standing.state,
		Reason:    tidelock.Printable(standing.reason, maxEnvironment),
		Message:   printable(standing.message, maxObserved),
		Revision:  t.seen.revision,
		Interval:  t.seen.interval,
		Requested: t.seen.requestedAt != "" && t.seen.requestedAt != t.seen.handledAt,
		Health:    tidelock.HealthUnknown,
	}
}

// survey brings up to date what is observed of an applier; the lock is held.
func (c *Controller) survey(a *applier) {
	source, named := c.source(a)
	c.link(a, a.seen.source, source)
	if !c.served(source) || a.seen.oversized() {
		c.unfollow(a)
		c.unobserve(a.id)
		return
	}
	before, known := c.sightings[a.id]
	now := time.Now()
	if !known {
		a.outcomes, a.verdict, a.last = nil, verdict{}, moment{}
	}
	m := moment{
		standing:  a.seen.standing,
		attempted: c.madeFrom(named, a.seen.attempted),
		applied:   c.madeFrom(named, a.seen.applied),
		brought:   a.seen.brought,
	}
	if named.seen.gitRepository != "" && named.seen.standing.state.Failed() && named.seen.sourceRevision != m.applied {
		// What applies the chart does not know that there should be a newer one.
		m.standing, m.attempted, m.brought = named.seen.standing, named.seen.sourceRevision, false
		m.message = "HelmChart " + named.name() + ": " + m.message
	}
	if a.seen.early() {
		m.attempted, m.brought = a.earlyRevision, a.earlyRevision == m.applied
	}
	attempt := version{a.seen.uid, a.seen.generation, m.attempted}
	m.standing = a.verdict.hold(m.standing, attempt)

	report := c.look(a, attempt, m)
	m.health = report.Health
	if known {
		m.now = now
	} else {
		for _, o := range a.seen.past {
			o.Revision = c.madeFrom(named, o.Revision)
			a.outcomes = remember(a.outcomes, o)
		}
	}
	a.outcomes = record(a.outcomes, a.last, m)
	a.last = m

	c.observe(before, known, tidelock.Observation{
		Object:      a.id,
		UID:         string(a.seen.uid),
		Suspended:   a.seen.suspended,
		State:       m.state,
		Reason:      tidelock.Printable(m.reason, maxEnvironment),
		Message:     printable(m.message, maxObserved),
		Revision:    m.applied,
		Interval:    a.seen.interval,
		Requested:   a.seen.requested,
		Attempted:   m.attempted,
		Source:      source,
		Path:        a.seen.path,
		Chart:       named.seen.byVersion,
		Namespace:   a.seen.namespace,
		Environment: a.seen.environment,
		DependsOn:   a.seen.dependsOn,
		Timeout:     a.seen.timeout,
		Health:      report.Health,
		Objects:     len(a.seen.inventory),
		Unhealthy:   report.Unhealthy,
		Outcomes:    a.outcomes,
	})
}

// look asks how the objects are that an applier brought; the lock is held.
// Until all have been looked at since they were applied, they are on their way:
// what is known of them may be from before.
func (c *Controller) look(a *applier, attempt version, m moment) HealthReport {
	if c.health == nil || a.seen.elsewhere || len(a.seen.inventory) == 0 {
		c.unfollow(a)
		return HealthReport{Health: a.seen.health}
	}
	if !slices.Equal(a.followed, a.seen.inventory) {
		a.followed = a.seen.inventory
		c.health.Follow(a.id, a.followed)
	}
	if m.brought && a.refreshed != attempt && (decided(m.state) || m.attempted != m.applied) {
		if a.refreshed != (version{}) {
			c.health.Refresh(a.id)
		}
		a.refreshed = attempt
	}
	report := c.health.Health(a.id)
	if !report.Settled {
		return HealthReport{Health: tidelock.HealthProgressing}
	}
	return report
}

// unfollow has nobody look at an applier's objects; the lock is held.
func (c *Controller) unfollow(a *applier) {
	if a.followed != nil && c.health != nil {
		c.health.Forget(a.id)
	}
	a.followed, a.refreshed = nil, version{}
}

// observe takes a new observation in place of the one before, if there was
// one; the lock is held.
func (c *Controller) observe(before tidelock.Observation, known bool, after tidelock.Observation) {
	after.Since = before.Since
	if known && (before.State != after.State || before.Health != after.Health || before.UID != after.UID) {
		after.Since = time.Now()
	}
	if known && reflect.DeepEqual(before, after) {
		return
	}
	c.sightings[after.Object] = after
	if c.observations != nil {
		c.observations.upsert(after.Object, after)
	}
}

// printable is for messages of Flux's, some of which end in a line break, or
// name the URL of a source with the password that somebody wrote into it.
func printable(message string, limit int) string {
	return strings.TrimSpace(tidelock.Printable(tidelock.WithoutPasswords(message), limit))
}

// unobserve takes an object out of what is observed; the lock is held.
func (c *Controller) unobserve(id tidelock.ObjectID) {
	if _, known := c.sightings[id]; !known {
		return
	}
	delete(c.sightings, id)
	if c.observations != nil {
		c.observations.remove(id)
	}
}

// notePackaged remembers from which revision a chart was made; the lock is
// held. Flux writes its conditions, the revision and the artifact one after the
// other; they belong together when the chart is ready and says of which version.
func (c *Controller) notePackaged(t *track) {
	p := packaged{t.seen.revision, t.seen.sourceRevision}
	if t.seen.gitRepository == "" || p.version == "" || p.revision == "" || t.seen.standing.state != tidelock.ObservedReady ||
		!strings.Contains(t.seen.standing.message, "'"+p.version+"'") {
		return
	}
	known := slices.DeleteFunc(c.packages[t.id], func(k packaged) bool { return k.version == p.version })
	known = slices.Insert(known, 0, p)
	c.packages[t.id] = known[:min(len(known), maxPackaged)]
}

// madeFrom is the revision that a version of a chart was packaged from, as far
// as that is known. Of all else the revision is what it is. The lock is held.
func (c *Controller) madeFrom(named *track, version string) string {
	for _, p := range c.packages[named.id] {
		if p.version == version {
			return p.revision
		}
	}
	return version
}

// revisit looks again at appliers that are due, and returns when the next is;
// the lock is held.
func (c *Controller) revisit(now time.Time) (next time.Time) {
	c.startObservations(now)
	next = c.observeBy
	for _, a := range c.appliers {
		if a.revisitAt.IsZero() {
			continue
		}
		if !now.Before(a.revisitAt) {
			a.revisitAt = time.Time{}
			a.earlyRevision = c.offered(a)
			c.survey(a)
			continue
		}
		if next.IsZero() || a.revisitAt.Before(next) {
			next = a.revisitAt
		}
	}
	return next
}
