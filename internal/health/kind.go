package health

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	"tidelock.dev"
)

const (
	retryFirst = 500 * time.Millisecond
	retryMax   = 30 * time.Second

	// What is refused or not served is asked for again this often; rights and
	// kinds come without a word.
	refusedFirst = time.Second
	refusedMax   = 5 * time.Minute

	// blindAfter is how long what was seen last is believed while the API
	// server does not answer.
	blindAfter = time.Minute
)

// A kind is a kind of object that somebody follows.
type kind struct {
	schema.GroupKind
	name   string // as tidelock.ObjectHealth has it
	hint   string // the version that the first follower named
	static bool   // healthy by being there

	kick   chan struct{} // wakes whoever waits to try again, or to watch more namespaces
	cancel context.CancelFunc

	resource   schema.GroupVersionResource // once discovered
	namespaced bool
	veil       *finding          // what is said of all its objects, instead of what was seen
	scopes     map[string]*scope // that are watched, by namespace; "" is the whole cluster
	objects    map[key]*object
}

// A scope is what one watch covers.
type scope struct {
	namespace string
	synced    bool     // it was listed, and has been watched since
	veil      *finding // see kind
}

// A key names an object among those of its kind.
type key struct{ namespace, name string }

// An object is one that somebody follows. There may be very many: what is
// known of healthy ones is kept small.
type object struct {
	kind *kind
	key
	owners []*owner
	odd    bool // its name could lead elsewhere

	seen string // the newest resourceVersion heard of, "" for none
	have string // the resourceVersion that was read
	pass uint32 // the last list that showed it

	asked    uint32 // looks asked for
	answered uint32 // the last of them that was answered; 0 for none yet
	failures uint8  // reads in a row
	quiet    uint8  // reads in a row that found it healthy, and so before

	readAt  time.Time
	own     *finding // nil if healthy
	illness *illness // of a workload that is not well
}

// A finding is what was found out about an object.
type finding struct {
	Health  tidelock.Health
	Reason  string
	Message string
	Pod     string
}

var (
	healthy  = finding{Health: tidelock.HealthHealthy}
	nowhere  = finding{Health: tidelock.HealthUnknown, Reason: ReasonUnreadable, Message: "no object of this kind can have this name"}
	unlooked = finding{Health: tidelock.HealthUnknown}
)

// settled reports whether all looks asked for were answered, or cannot be.
func (o *object) settled() bool {
	return o.answered == o.asked || o.veil() != nil
}

// finding is what is known of the object. Bad news is not certain any more
// once another look was asked for.
func (o *object) finding() finding {
	if veil := o.veil(); veil != nil {
		return *veil
	}
	if o.answered == 0 {
		return unlooked
	}
	if o.own == nil {
		return healthy
	}
	f := *o.own
	if o.illness != nil && o.illness.cause != nil {
		f = *o.illness.cause
		f.Health = o.own.Health
	}
	if o.answered != o.asked && (f.Health == tidelock.HealthFailed || f.Health == tidelock.HealthMissing) {
		f.Health = tidelock.HealthProgressing
	}
	return f
}

// impossible reports whether there can be no such object. Whoever writes an
// inventory should not write paths into it.
func (o *object) impossible() bool {
	return o.odd || o.kind.resource.Resource != "" && o.kind.namespaced != (o.namespace != "")
}

// veil is what is said of the object instead of what was seen; nil for none.
func (o *object) veil() *finding {
	if o.impossible() {
		return &nowhere
	}
	if o.kind.veil != nil {
		return o.kind.veil
	}
	if s := o.scope(); s != nil {
		return s.veil
	}
	return nil
}

// scope is what covers the object; nil for none.
func (o *object) scope() *scope {
	if s := o.kind.scopes[""]; s != nil {
		return s
	}
	return o.kind.scopes[o.namespace]
}

// object returns what ref names, followed from now on; the lock is held.
func (w *Watcher) object(ref Ref) *object {
	gk := schema.GroupKind{Group: ref.Group, Kind: ref.Kind}
	k := w.kinds[gk]
	if k == nil {
		k = newKind(gk, ref.Version)
		w.kinds[gk] = k
		if w.ctx != nil {
			w.start(k)
		}
	}
	id := key{ref.Namespace, ref.Name}
	o := k.objects[id]
	if o != nil {
		return o
	}
	o = &object{kind: k, key: id, asked: 1}
	o.odd = o.name == "" || len(path.IsValidPathSegmentName(o.name))+len(path.IsValidPathSegmentName(o.namespace)) > 0
	k.objects[id] = o
	if s := o.scope(); s == nil {
		ring(k.kick)
	} else if s.synced {
		w.enqueue(o)
	}
	return o
}

// leave ends that an owner follows an object; the lock is held.
func (w *Watcher) leave(o *object, own *owner) {
	o.owners = slices.DeleteFunc(o.owners, func(other *owner) bool { return other == own })
	if len(o.owners) > 0 {
		return
	}
	w.recovered(o)
	k := o.kind
	delete(k.objects, o.key)
	if len(k.objects) > 0 {
		ring(k.kick)
		return
	}
	delete(w.kinds, k.GroupKind)
	if k.cancel != nil {
		k.cancel()
	}
}

// again asks for a look at an object; the lock is held. One that is healthy
// by being there is known to be: its watch would have told otherwise.
func (w *Watcher) again(o *object) {
	if o.kind.static && !o.kind.secret() && o.own == nil {
		return
	}
	o.asked++
	if s := o.scope(); s != nil && s.synced {
		w.enqueue(o)
	}
}

func newKind(gk schema.GroupKind, version string) *kind {
	name := gk.Kind
	if gk.Group != "" {
		name = gk.Group + "/" + gk.Kind
	}
	return &kind{
		GroupKind: gk,
		name:      name,
		hint:      version,
		static:    static(gk),
		kick:      make(chan struct{}, 1),
		scopes:    make(map[string]*scope),
		objects:   make(map[key]*object),
	}
}

// secret reports whether the kind must not be listed or watched.
func (k *kind) secret() bool { return k.Group == "" && k.Kind == "Secret" }

// definition reports whether its objects define kinds.
func (k *kind) definition() bool {
	return k.Group == "apiextensions.k8s.io" && k.Kind == "CustomResourceDefinition"
}

// reset forgets what was seen; the lock is held.
func (k *kind) reset() {
	k.veil = nil
	clear(k.scopes)
	for _, o := range k.objects {
		*o = object{kind: k, key: o.key, owners: o.owners, odd: o.odd, asked: 1}
	}
}

// start watches a kind for as long as it is needed; the lock is held.
func (w *Watcher) start(k *kind) {
	ctx, cancel := context.WithCancel(w.ctx)
	k.cancel = cancel
	w.group.Go(func() {
		defer cancel()
		w.serve(ctx, k)
	})
}

// errNoKind is that the API server serves no such kind.
var errNoKind = errors.New("not served")

// serve watches a kind through thick and thin.
func (w *Watcher) serve(ctx context.Context, k *kind) {
	var t trouble
	for ctx.Err() == nil {
		started := time.Now()
		err := w.discover(ctx, k)
		if err == nil {
			err = w.watchKind(ctx, k)
		}
		if time.Since(started) > retryMax {
			t = trouble{} // that went well for a while
		}
		if ctx.Err() != nil {
			return
		}
		t.note(err)
		if veil := t.veil(err); veil != nil {
			w.cover(k, nil, veil)
		}
		t.pause(ctx, k.kick)
	}
}

// A trouble is a run of failures.
type trouble struct {
	failures int
	since    time.Time
	refused  bool // by rights or by kind, and not by accident
}

// note takes a failure.
func (t *trouble) note(err error) {
	if t.failures == 0 {
		t.since = time.Now()
	}
	t.failures++
	t.refused = errors.Is(err, errNoKind) || errors.Is(err, errTooMany) || refusal(err)
}

// veil is what a failure means for the objects concerned; nil while what was
// seen last is to be believed.
func (t *trouble) veil(err error) *finding {
	unknown := finding{Health: tidelock.HealthUnknown, Message: clip(err.Error())}
	switch {
	case errors.Is(err, errNoKind):
		return &finding{Health: tidelock.HealthMissing, Reason: ReasonNoKind, Message: "the API server serves no such kind"}
	case refusal(err):
		unknown.Reason = ReasonForbidden
	case errors.Is(err, errTooMany):
		unknown.Reason = ReasonTooMany
	case time.Since(t.since) < blindAfter:
		return nil
	default:
		unknown.Reason = ReasonUnreachable
	}
	return &unknown
}

// refusal reports whether an error means that we may not look.
func refusal(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsMethodNotSupported(err)
}

// pause waits before the next try, or until kicked.
func (t *trouble) pause(ctx context.Context, kick <-chan struct{}) {
	wait := backoff(retryFirst, retryMax, t.failures)
	if t.refused {
		wait = backoff(refusedFirst, refusedMax, t.failures)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-kick:
		// Whoever kicks may do so often.
		pause(ctx, retryFirst)
	}
}

// cover has a veil over a scope, or, for nil, over all of the kind.
func (w *Watcher) cover(k *kind, s *scope, veil *finding) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s == nil {
		k.veil = veil
		clear(k.scopes)
	} else {
		s.veil = veil
	}
	for _, o := range k.objects {
		if s == nil || o.scope() == s {
			w.touchOwners(o)
		}
	}
}

func (w *Watcher) touchOwners(o *object) {
	for _, own := range o.owners {
		w.touch(own)
	}
}

// discover finds the resource of a kind: in the version that was named, else
// in whichever the API server prefers.
func (w *Watcher) discover(ctx context.Context, k *kind) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if k.Group != "" && len(validation.IsDNS1123Subdomain(k.Group)) > 0 {
		return errNoKind
	}
	if len(validation.IsDNS1035Label(k.hint)) == 0 {
		err := w.discoverIn(ctx, k, k.hint)
		if !errors.Is(err, errNoKind) {
			return err
		}
	}
	if k.Group == "" {
		return errNoKind // there is one version of the core
	}
	var group metav1.APIGroup
	err := w.discovery.RESTClient().Get().AbsPath("/apis", k.Group).Do(ctx).Into(&group)
	if apierrors.IsNotFound(err) {
		return errNoKind
	}
	if err != nil {
		return fmt.Errorf("ask the API server for the versions of %s: %w", k.Group, err)
	}
	versions := []string{group.PreferredVersion.Version}
	for _, v := range group.Versions {
		versions = append(versions, v.Version)
	}
	for _, version := range versions {
		if version == "" || version == k.hint {
			continue
		}
		if err := w.discoverIn(ctx, k, version); !errors.Is(err, errNoKind) {
			return err
		}
	}
	return errNoKind
}

func (w *Watcher) discoverIn(ctx context.Context, k *kind, version string) error {
	from := []string{"/apis", k.Group, version}
	if k.Group == "" {
		from = []string{"/api", version}
	}
	var list metav1.APIResourceList
	err := w.discovery.RESTClient().Get().AbsPath(from...).Do(ctx).Into(&list)
	if apierrors.IsNotFound(err) {
		return errNoKind
	}
	if err != nil {
		return fmt.Errorf("ask the API server for %s: %w", strings.Join(from, "/"), err)
	}
	for _, r := range list.APIResources {
		if r.Kind != k.Kind || strings.Contains(r.Name, "/") {
			continue
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		k.resource = schema.GroupVersionResource{Group: k.Group, Version: version, Resource: r.Name}
		k.namespaced = r.Namespaced
		return nil
	}
	return errNoKind
}
