package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"tidelock.dev"
)

const (
	requestTimeout = 20 * time.Second
	listPage       = 500

	// maxWatches bounds the watches at a time. Only who must watch each
	// namespace alone comes near.
	maxWatches = 512

	// A watch is opened anew after so long, and up to as much again, so that
	// a connection which is dead on the way is noticed at all.
	watchTimeout = 5 * time.Minute
)

var errTooMany = errors.New("too many watches: allow the agent to list and watch in the whole cluster")

// watchKind watches all that is followed of a kind, until ctx is done or the
// kind is not served, or not to us, any more.
func (w *Watcher) watchKind(ctx context.Context, k *kind) error {
	s := w.open(k, "")
	if k.secret() {
		w.endList(k, s, 0)
		<-ctx.Done()
		return nil
	}
	err := w.watchScope(ctx, k, s)
	if apierrors.IsForbidden(err) && k.namespaced {
		w.close(k, s)
		return w.watchNamespaces(ctx, k)
	}
	return err
}

// watchNamespaces watches each namespace that has an object of a kind.
func (w *Watcher) watchNamespaces(ctx context.Context, k *kind) error {
	ctx, cancel := context.WithCancelCause(ctx)
	running := make(map[string]context.CancelFunc)
	done := make(chan struct{})
	count := 0
	defer func() {
		cancel(nil)
		for range count {
			<-done
		}
	}()
	for {
		needed := w.namespaces(k)
		for namespace, stop := range running {
			if !slices.Contains(needed, namespace) {
				stop()
				delete(running, namespace)
			}
		}
		for _, namespace := range needed {
			if running[namespace] != nil {
				continue
			}
			scoped, stop := context.WithCancel(ctx)
			running[namespace] = stop
			count++
			go func() {
				defer func() { stop(); done <- struct{}{} }()
				if err := w.watchNamespace(scoped, k, namespace); err != nil {
					cancel(err)
				}
			}()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-done:
			count--
		case <-k.kick:
		}
	}
}

// watchNamespace watches a kind in one namespace, and tries again when that
// is refused. It returns an error if the kind is not served any more.
func (w *Watcher) watchNamespace(ctx context.Context, k *kind, namespace string) error {
	s := w.open(k, namespace)
	defer w.close(k, s)
	var t trouble
	for ctx.Err() == nil {
		err := w.watchScope(ctx, k, s)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errNoKind) {
			return err
		}
		t.note(err)
		if veil := t.veil(err); veil != nil {
			w.cover(k, s, veil)
		}
		t.pause(ctx, nil)
	}
	return nil
}

// watchScope lists and watches one scope. It copes with all failures but
// those that say that it cannot be: refused, not served, too many.
func (w *Watcher) watchScope(ctx context.Context, k *kind, s *scope) error {
	select {
	case w.slots <- struct{}{}:
		defer func() { <-w.slots }()
	default:
		return errTooMany
	}
	resource := w.metadata.Resource(k.resource).Namespace(s.namespace)
	var t trouble
	var version string
	var err error
	for ctx.Err() == nil {
		if version == "" {
			version, err = w.list(ctx, k, s, resource)
		}
		if err == nil {
			opened := time.Now()
			version, err = w.watch(ctx, k, s, resource, version)
			if err == nil && time.Since(opened) > retryFirst {
				t = trouble{}
				continue
			}
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			err = errors.New("the API server ends watches at once")
		case apierrors.IsNotFound(err):
			return errNoKind
		case refusal(err):
			return err
		case apierrors.IsResourceExpired(err), apierrors.IsGone(err):
			version = ""
		}
		t.note(err)
		if veil := t.veil(err); veil != nil {
			w.log.WarnContext(ctx, "objects not seen any more", "kind", k.name, "namespace", s.namespace, "error", err)
			w.cover(k, s, veil)
		}
		t.pause(ctx, nil)
		err = nil
	}
	return nil
}

// list looks at all there is, page by page, and returns from where to watch.
func (w *Watcher) list(ctx context.Context, k *kind, s *scope, resource metadata.ResourceInterface) (version string, err error) {
	pass := w.beginList()
	options := metav1.ListOptions{Limit: listPage}
	for {
		w.metrics.lists.Inc()
		page, err := w.listPage(ctx, resource, options)
		if err != nil {
			return "", fmt.Errorf("list %s: %w", k.resource.Resource, err)
		}
		w.mu.Lock()
		for i := range page.Items {
			w.sighted(k, &page.Items[i], pass)
		}
		w.mu.Unlock()
		if options.Continue = page.Continue; options.Continue == "" {
			w.endList(k, s, pass)
			return page.ResourceVersion, nil
		}
	}
}

func (w *Watcher) listPage(ctx context.Context, resource metadata.ResourceInterface, options metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return resource.List(ctx, options)
}

func (w *Watcher) beginList() uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pass++
	return w.pass
}

// endList has every object looked for that a list did not show: it may have
// come after, or be gone.
func (w *Watcher) endList(k *kind, s *scope, pass uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s.synced, s.veil = true, nil
	for _, o := range k.objects {
		if o.scope() != s {
			continue
		}
		if o.pass != pass || pass == 0 {
			w.enqueue(o)
		}
		w.touchOwners(o)
	}
}

// watch takes changes from a version on. It returns the version that it came
// to, with no error if the watch has ended as watches do.
func (w *Watcher) watch(ctx context.Context, k *kind, s *scope, resource metadata.ResourceInterface, version string) (string, error) {
	timeout := int64((watchTimeout + rand.N(watchTimeout)).Seconds())
	changes, err := resource.Watch(ctx, metav1.ListOptions{
		ResourceVersion: version, AllowWatchBookmarks: true, TimeoutSeconds: &timeout,
	})
	if err != nil {
		return version, fmt.Errorf("watch %s: %w", k.resource.Resource, err)
	}
	defer changes.Stop()
	w.metrics.watches.Inc()
	defer w.metrics.watches.Dec()
	if s.veil != nil {
		w.cover(k, s, nil)
	}
	for event := range changes.ResultChan() {
		if event.Type == watch.Error {
			return version, fmt.Errorf("watch %s: %w", k.resource.Resource, apierrors.FromObject(event.Object))
		}
		meta, ok := event.Object.(*metav1.PartialObjectMetadata)
		if !ok {
			return version, fmt.Errorf("watch %s: got a %T", k.resource.Resource, event.Object)
		}
		w.metrics.events.Inc()
		w.mu.Lock()
		switch event.Type {
		case watch.Added, watch.Modified:
			w.sighted(k, meta, 0)
		case watch.Deleted:
			w.vanished(k, meta)
		}
		w.mu.Unlock()
		version = meta.ResourceVersion
	}
	return version, nil
}

// open makes a scope. What was said of all objects of the kind holds in it
// until it was listed.
func (w *Watcher) open(k *kind, namespace string) *scope {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &scope{namespace: namespace, veil: k.veil}
	if namespace == "" {
		clear(k.scopes)
	}
	k.scopes[namespace] = s
	if namespace == "" {
		k.veil = nil
	}
	return s
}

func (w *Watcher) close(k *kind, s *scope) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if k.scopes[s.namespace] == s {
		delete(k.scopes, s.namespace)
	}
}

// namespaces lists those that have an object of a kind.
func (w *Watcher) namespaces(k *kind) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	needed := make(map[string]bool)
	for _, o := range k.objects {
		if !o.impossible() {
			needed[o.namespace] = true
		}
	}
	return sortedKeys(needed)
}

// sighted takes what a list, or a watch if pass is 0, shows of an object,
// followed or not; the lock is held.
func (w *Watcher) sighted(k *kind, meta *metav1.PartialObjectMetadata, pass uint32) {
	o := k.objects[key{meta.Namespace, meta.Name}]
	if o == nil || pass == 0 && o.knowsBetter(meta) {
		return
	}
	// A list is never behind of what was read before, save that a cluster was
	// restored from a backup.
	changed := moved(meta.ResourceVersion, o.have)
	if pass != 0 {
		o.pass = pass
		changed = meta.ResourceVersion != o.have
	}
	o.seen = meta.ResourceVersion
	switch {
	case meta.DeletionTimestamp != nil:
		o.answered, o.have = o.asked, meta.ResourceVersion
		w.settle(o, terminating(meta.Finalizers), nil)
	case k.static:
		o.answered, o.have = o.asked, meta.ResourceVersion
		w.settle(o, nil, nil)
	case o.answered != o.asked || o.failures > 0 || changed:
		w.enqueue(o)
	}
}

// vanished takes that an object is gone; the lock is held. Whether it is still
// gone when somebody asked for a look only now, that look will tell.
func (w *Watcher) vanished(k *kind, meta *metav1.PartialObjectMetadata) {
	o := k.objects[key{meta.Namespace, meta.Name}]
	if o == nil || o.knowsBetter(meta) {
		return
	}
	o.seen, o.have = meta.ResourceVersion, meta.ResourceVersion
	w.settle(o, k.missing(o), nil)
}

// knowsBetter reports whether the object was read when it was newer than meta:
// a watch may be behind of that.
func (o *object) knowsBetter(meta *metav1.PartialObjectMetadata) bool {
	order, ok := compare(o.have, meta.ResourceVersion)
	return ok && order > 0
}

func terminating(finalizers []string) *finding {
	f := &finding{Health: tidelock.HealthProgressing, Reason: ReasonTerminating, Message: "is being deleted"}
	if len(finalizers) > 0 {
		f.Message = clip("is being deleted, and waits for " + strings.Join(finalizers, ", "))
	}
	return f
}

// missing says that an object is not there. A Job that has done its work may
// be removed by the cluster (ttlSecondsAfterFinished).
func (k *kind) missing(o *object) *finding {
	if k.Group == "batch" && k.Kind == "Job" {
		if o.answered > 0 && o.own == nil {
			return nil
		}
		return &finding{
			Health: tidelock.HealthUnknown, Reason: ReasonNotFound,
			Message: "is not there; it may have finished and been removed",
		}
	}
	return &finding{Health: tidelock.HealthMissing, Reason: ReasonNotFound, Message: "is not there"}
}

// moved reports whether an object at version a has changed since version b.
// An older one can come late, through a cache.
func moved(a, b string) bool {
	order, ok := compare(a, b)
	return ok && order > 0 || !ok && a != b
}

// compare orders two resourceVersions, if they are numbers; those of all
// servers that keep their objects in etcd are.
func compare(a, b string) (order int, ok bool) {
	x, err := strconv.ParseUint(a, 10, 64)
	if err != nil {
		return 0, false
	}
	y, err := strconv.ParseUint(b, 10, 64)
	return cmp.Compare(x, y), err == nil
}
