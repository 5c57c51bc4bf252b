package health

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/util/workqueue"
	"tidelock.dev"
)

const (
	readers = 8 // objects read at a time

	// An object that changes all the time is read once in pace; one that
	// stays healthy meanwhile less and less often, down to once in slowPace.
	pace     = 250 * time.Millisecond
	slowPace = 2 * time.Second
	calm     = 10 * time.Second // without a change it counts as one that never changed

	// patientReads is how many reads in a row may fail, some 15 s of them,
	// before the object counts as unknown.
	patientReads = 5
)

// A job is a look to be taken at an object: at itself, or at what ails it.
type job struct {
	o    *object
	ails bool
}

// enqueue has an object read soon; the lock is held.
func (w *Watcher) enqueue(o *object) {
	if w.queue == nil || o.impossible() {
		return
	}
	wait := time.Duration(0)
	if since := time.Since(o.readAt); o.answered == o.asked && since < slowPace {
		wait = min(pace<<min(o.quiet, 8), slowPace) - since
	}
	w.queue.AddAfter(job{o: o}, wait)
}

// read takes jobs until the queue is shut down.
func (w *Watcher) read(ctx context.Context, queue workqueue.TypedDelayingInterface[job]) {
	for {
		j, down := queue.Get()
		if down {
			return
		}
		if j.ails {
			w.diagnose(ctx, j.o)
		} else {
			w.look(ctx, j.o)
		}
		queue.Done(j)
	}
}

// look reads an object and judges it.
func (w *Watcher) look(ctx context.Context, o *object) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	w.mu.Lock()
	if len(o.owners) == 0 || o.scope() == nil {
		w.mu.Unlock()
		return // a list will bring it up again, if it is still wanted
	}
	asked, seen, resource := o.asked, o.seen, o.kind.resource
	// Whatever the watch has told of, the API server has in its memory. A look
	// that was asked for has to be up to date.
	var options metav1.GetOptions
	if asked == o.answered && o.failures == 0 {
		options.ResourceVersion = seen
	}
	w.mu.Unlock()

	w.metrics.reads.Inc()
	meta, object, err := w.fetch(ctx, o, resource, options)
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	var verdict *finding
	switch {
	case err != nil:
	case meta.GetDeletionTimestamp() != nil:
		verdict = terminating(meta.GetFinalizers())
	case object != nil:
		verdict = judge(object)
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	if len(o.owners) == 0 || w.queue == nil {
		return
	}
	before := o.readAt
	o.readAt = time.Now()
	if err != nil {
		w.unread(o, asked, seen, err)
		return
	}
	o.failures = 0
	if o.answered == 0 || verdict != nil || o.own != nil || o.readAt.Sub(before) > calm {
		o.quiet = 0
	} else {
		o.quiet = min(o.quiet+1, 8)
	}
	o.answered = asked
	behind := moved(o.seen, meta.GetResourceVersion()) // more has happened meanwhile
	if behind || o.answered != o.asked {
		w.enqueue(o)
	}
	if behind && o.own != nil && o.own.Reason == ReasonNotFound {
		return // that is what has happened
	}
	o.have = meta.GetResourceVersion()
	w.settle(o, verdict, object)
}

// fetch gets an object; of one that has no status, its metadata only.
func (w *Watcher) fetch(ctx context.Context, o *object, resource schema.GroupVersionResource, options metav1.GetOptions) (metav1.Object, *unstructured.Unstructured, error) {
	switch {
	case o.kind.secret():
		meta, err := w.metadata.Resource(resource).Namespace(o.namespace).Get(ctx, o.name, options)
		return meta, nil, err
	case o.kind.static:
		meta, err := w.find(ctx, resource, o.key)
		return meta, nil, err
	}
	object, err := w.dynamic.Resource(resource).Namespace(o.namespace).Get(ctx, o.name, options)
	return object, object, err
}

// unread takes that an object could not be read; the lock is held.
func (w *Watcher) unread(o *object, asked uint32, seen string, err error) {
	var verdict *finding
	switch {
	case apierrors.IsNotFound(err):
		if o.seen != seen {
			w.enqueue(o) // it came, or came back, meanwhile
			return
		}
		o.failures = 0
		verdict = o.kind.missing(o)
	case apierrors.IsForbidden(err) && o.kind.secret():
		o.failures = 0 // it is there, for all we know: Flux applied it
	case apierrors.IsForbidden(err):
		o.failures = min(o.failures+1, 100)
		w.queue.AddAfter(job{o: o}, backoff(refusedFirst, refusedMax, int(o.failures)))
		verdict = &finding{Health: tidelock.HealthUnknown, Reason: ReasonForbidden, Message: clip(err.Error())}
	default:
		w.metrics.failedReads.Inc()
		o.failures = min(o.failures+1, 100)
		w.queue.AddAfter(job{o: o}, backoff(retryFirst, retryMax, int(o.failures)))
		if o.failures < patientReads {
			return
		}
		verdict = &finding{Health: tidelock.HealthUnknown, Reason: ReasonUnreachable, Message: clip(err.Error())}
	}
	o.answered = asked
	if o.answered != o.asked {
		w.enqueue(o)
	}
	w.settle(o, verdict, nil)
}

// find looks for an object of a kind that we list and watch, and need not be
// allowed to get.
func (w *Watcher) find(ctx context.Context, resource schema.GroupVersionResource, id key) (metav1.Object, error) {
	list, err := w.metadata.Resource(resource).Namespace(id.namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, id.name).String(),
	})
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", resource.Resource, err)
	}
	for i := range list.Items {
		if item := &list.Items[i]; item.Name == id.name && item.Namespace == id.namespace {
			return item, nil
		}
	}
	return nil, apierrors.NewNotFound(resource.GroupResource(), id.name)
}

// settle takes what was found out about an object, nil for healthy, and what
// was read for that, if anything; the lock is held.
func (w *Watcher) settle(o *object, verdict *finding, read *unstructured.Unstructured) {
	if o.kind.definition() && verdict == nil {
		w.established(o)
	}
	if verdict != nil && o.own != nil && *verdict == *o.own {
		verdict = o.own
	}
	o.own = verdict
	if verdict == nil || read == nil || !verdict.curable() {
		w.recovered(o)
	} else {
		w.ails(o, read)
	}
	w.touchOwners(o)
}

// established has kinds looked for whose definition is good now; the lock is
// held.
func (w *Watcher) established(o *object) {
	_, group, _ := strings.Cut(o.name, ".")
	for gk, k := range w.kinds {
		if gk.Group == group && k.veil != nil {
			ring(k.kick)
		}
	}
}

// backoff doubles from first to most, with jitter.
func backoff(first, most time.Duration, failures int) time.Duration {
	wait := min(first<<min(max(failures-1, 0), 16), most)
	return wait - rand.N(wait/5+1)
}

// pause waits, and reports whether it was not for nothing: ctx is not done.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// ring wakes whoever waits at a bell.
func ring(bell chan struct{}) {
	select {
	case bell <- struct{}{}:
	default:
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
