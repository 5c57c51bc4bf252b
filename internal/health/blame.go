package health

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

const (
	// patience is how long something may be unwell before its pods are looked
	// at: most rollouts are over by then.
	patience = 2 * time.Second

	// Between looks at the pods of one workload, which take longer and longer
	// turns while they find the same.
	blamePace     = 500 * time.Millisecond
	slowBlamePace = 10 * time.Second

	// Of a workload with very many pods some are looked at; the first that
	// are enough to say what is wrong.
	podPage  = 50
	podPages = 4

	maxEvents = 50

	// maxWards bounds the namespaces whose pods are watched. In others pods
	// are looked at only when their workload itself has changed.
	maxWards = 100
)

var (
	pods        = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	events      = schema.GroupVersionResource{Version: "v1", Resource: "events"}
	replicaSets = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "replicasets"}

	warnings = fields.OneTermEqualSelector("type", corev1.EventTypeWarning)
)

// withPods are the kinds for which pods, or warnings, may tell more.
var withPods = []string{
	"apps/Deployment", "apps/StatefulSet", "apps/DaemonSet", "apps/ReplicaSet", "ReplicationController", "batch/Job",
	"Pod", "PersistentVolumeClaim",
}

// annotationRevision is on a Deployment and on its ReplicaSets.
const annotationRevision = "deployment.kubernetes.io/revision"

// An illness is what is known of a workload that is not well.
type illness struct {
	uid      types.UID
	since    time.Time
	revision string          // of a Deployment: that of its newest ReplicaSet
	selector labels.Selector // of its pods; nil for what has none
	cause    *finding        // nil while none was found
	lookedAt time.Time
	same     uint8 // looks in a row that found the same
}

// wait is how long the next look at the pods has to wait.
func (i *illness) wait(now time.Time) time.Duration {
	if i.lookedAt.IsZero() {
		return max(patience-now.Sub(i.since), blamePace)
	}
	return max(min(blamePace<<i.same, slowBlamePace)-now.Sub(i.lookedAt), blamePace)
}

// A ward watches the pods, and the warnings about them, of a namespace that
// has somebody unwell.
type ward struct {
	unwell map[*object]bool
	stop   context.CancelFunc
}

// ails has the causes looked for of what was read of an object that is not
// well; the lock is held.
func (w *Watcher) ails(o *object, read *unstructured.Unstructured) {
	if !slices.Contains(withPods, o.kind.name) {
		return
	}
	if o.illness == nil || o.illness.uid != read.GetUID() {
		o.illness = &illness{uid: read.GetUID(), since: time.Now()}
	}
	o.illness.revision = read.GetAnnotations()[annotationRevision]
	o.illness.selector = selector(read)
	w.queue.AddAfter(job{o: o, ails: true}, o.illness.wait(time.Now()))
}

// selector reads spec.selector; nil if there is none, or one that selects
// everything.
func selector(object *unstructured.Unstructured) labels.Selector {
	fields, found, err := unstructured.NestedMap(object.Object, "spec", "selector")
	if err != nil || !found {
		return nil
	}
	var read metav1.LabelSelector
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(fields, &read); err != nil {
		return nil
	}
	selector, err := metav1.LabelSelectorAsSelector(&read)
	if err != nil || selector.Empty() {
		return nil
	}
	return selector
}

// recovered ends the search for causes; the lock is held.
func (w *Watcher) recovered(o *object) {
	if o.illness == nil {
		return
	}
	o.illness = nil
	if at := w.wards[o.namespace]; at != nil {
		delete(at.unwell, o)
		if len(at.unwell) == 0 {
			at.stop()
			delete(w.wards, o.namespace)
		}
	}
}

// admit has the namespace of an object watched until it is well; the lock is
// held.
func (w *Watcher) admit(o *object) {
	at := w.wards[o.namespace]
	if at == nil {
		if len(w.wards) >= maxWards || w.ctx == nil {
			return
		}
		ctx, stop := context.WithCancel(w.ctx)
		at = &ward{unwell: make(map[*object]bool), stop: stop}
		w.wards[o.namespace] = at
		w.group.Go(func() {
			w.attend(ctx, at, pods, o.namespace, metav1.ListOptions{}, (*illness).concerns)
		})
		w.group.Go(func() {
			w.attend(ctx, at, events, o.namespace, metav1.ListOptions{FieldSelector: warnings.String()}, nil)
		})
	}
	at.unwell[o] = true
}

// concerns reports whether a pod may belong to the workload.
func (i *illness) concerns(pod *metav1.PartialObjectMetadata) bool {
	return i.selector != nil && i.selector.Matches(labels.Set(pod.Labels))
}

// attend has those in a ward looked at again whenever something of theirs
// changes.
func (w *Watcher) attend(ctx context.Context, at *ward, resource schema.GroupVersionResource, namespace string,
	options metav1.ListOptions, concerns func(*illness, *metav1.PartialObjectMetadata) bool,
) {
	var t trouble
	timeout := int64(watchTimeout.Seconds())
	options.TimeoutSeconds = &timeout
	for ctx.Err() == nil {
		opened := time.Now()
		// Without a version the watch begins with all that there is.
		changes, err := w.metadata.Resource(resource).Namespace(namespace).Watch(ctx, options)
		if err == nil {
			w.metrics.watches.Inc()
			for event := range changes.ResultChan() {
				if meta, ok := event.Object.(*metav1.PartialObjectMetadata); ok && event.Type != watch.Error {
					w.metrics.events.Inc()
					w.noticed(at, meta, concerns)
				}
			}
			changes.Stop()
			w.metrics.watches.Dec()
			err = fmt.Errorf("watch of %s ended", resource.Resource)
		}
		if time.Since(opened) > retryMax {
			t = trouble{}
		}
		t.note(err)
		t.pause(ctx, nil)
	}
}

// noticed has whoever a pod or a warning is about looked at again. A warning
// is named after what it is about, which may be a pod, or a ReplicaSet, named
// after the workload.
func (w *Watcher) noticed(at *ward, meta *metav1.PartialObjectMetadata, concerns func(*illness, *metav1.PartialObjectMetadata) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.queue == nil {
		return
	}
	for o := range at.unwell {
		about := strings.HasPrefix(meta.Name, o.name)
		if concerns != nil {
			about = concerns(o.illness, meta)
		}
		if about {
			w.queue.AddAfter(job{o: o, ails: true}, o.illness.wait(time.Now()))
		}
	}
}

// diagnose looks for what keeps an object from being well.
func (w *Watcher) diagnose(ctx context.Context, o *object) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	w.mu.Lock()
	ill := o.illness
	if ill == nil || len(o.owners) == 0 {
		w.mu.Unlock()
		return
	}
	w.admit(o)
	patient := *ill
	own := *o.own
	w.mu.Unlock()

	w.metrics.diagnoses.Inc()
	cause, err := w.cause(ctx, o, patient, own)
	if err != nil {
		w.log.DebugContext(ctx, "cause not found", "kind", o.kind.name, "namespace", o.namespace, "name", o.name, "error", err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if o.illness != ill {
		return // it has recovered, or is another one by now
	}
	if cause == ill.cause || cause != nil && ill.cause != nil && *cause == *ill.cause {
		ill.same = min(ill.same+1, 8)
	} else {
		ill.same = 0
	}
	ill.cause, ill.lookedAt = cause, time.Now()
	w.touchOwners(o)
}

// cause finds what keeps an object from being well; nil if there is nothing
// to be seen.
func (w *Watcher) cause(ctx context.Context, o *object, ill illness, own finding) (*finding, error) {
	switch o.kind.Kind {
	case "Pod":
		if own.Reason != ReasonStarting && own.Reason != ReasonProbe {
			return nil, nil
		}
		return w.warning(ctx, o.namespace, ill.uid)
	case "PersistentVolumeClaim":
		return w.warning(ctx, o.namespace, ill.uid)
	}
	maker := ill.uid // of its pods
	if o.kind.Kind == "Deployment" {
		newest, err := w.newestReplicaSet(ctx, o.namespace, ill)
		if err != nil {
			return nil, err
		}
		if newest == "" {
			return nil, nil // it has not come to that yet
		}
		maker = newest
	}
	worst, pod, err := w.worstPod(ctx, o.namespace, ill.selector, maker)
	if err != nil {
		return nil, err
	}
	switch {
	case worst == nil:
		return w.warning(ctx, o.namespace, maker)
	case worst.Reason == ReasonStarting || worst.Reason == ReasonProbe:
		told, err := w.warning(ctx, o.namespace, pod)
		if err != nil || told == nil {
			return worst, nil // without its events, then
		}
		told.Pod = worst.Pod
		return told, nil
	case own.Reason == ReasonJobFailed:
		worst.Reason = own.Reason
		worst.Message = clip(own.Message + "; " + worst.Message)
	}
	return worst, nil
}

// newestReplicaSet finds the one that a Deployment rolls out; "" for none.
func (w *Watcher) newestReplicaSet(ctx context.Context, namespace string, ill illness) (types.UID, error) {
	if ill.selector == nil {
		return "", nil
	}
	// A Deployment keeps ten old ones, if it is not told otherwise.
	sets, err := w.metadata.Resource(replicaSets).Namespace(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: ill.selector.String(), Limit: listPage,
	})
	if err != nil {
		return "", fmt.Errorf("list replica sets: %w", err)
	}
	var newest types.UID
	highest := int64(-1)
	for i := range sets.Items {
		set := &sets.Items[i]
		if owner := metav1.GetControllerOfNoCopy(set); owner == nil || owner.UID != ill.uid {
			continue
		}
		revision, _ := strconv.ParseInt(set.Annotations[annotationRevision], 10, 64)
		if set.Annotations[annotationRevision] == ill.revision {
			return set.UID, nil
		}
		if revision > highest {
			highest, newest = revision, set.UID
		}
	}
	return newest, nil
}

// worstPod finds the gravest ailment among the pods that a controller made.
func (w *Watcher) worstPod(ctx context.Context, namespace string, selector labels.Selector, maker types.UID) (worst *finding, uid types.UID, err error) {
	if selector == nil {
		return nil, "", nil
	}
	options := metav1.ListOptions{LabelSelector: selector.String(), Limit: podPage}
	for range podPages {
		page, err := w.dynamic.Resource(pods).Namespace(namespace).List(ctx, options)
		if err != nil {
			return nil, "", fmt.Errorf("list pods: %w", err)
		}
		for i := range page.Items {
			var pod corev1.Pod
			if runtime.DefaultUnstructuredConverter.FromUnstructured(page.Items[i].Object, &pod) != nil {
				continue // nothing that the API server would let in
			}
			owner := metav1.GetControllerOfNoCopy(&pod)
			if owner == nil || owner.UID != maker {
				continue
			}
			if f := ailing(&pod); f != nil && f.gravity() > worst.gravity() {
				worst, uid = f, pod.UID
			}
		}
		options.Continue = page.GetContinue()
		if options.Continue == "" || worst.gravity() >= enough {
			break
		}
	}
	return worst, uid, nil
}

// enough is the gravity from which on no worse pod is looked for.
var enough = slices.Index(gravity, ReasonUnschedulable)

// warning reads from the newest event about an object what keeps it; nil if
// that says nothing, or something else has gone well since.
func (w *Watcher) warning(ctx context.Context, namespace string, about types.UID) (*finding, error) {
	list, err := w.dynamic.Resource(events).Namespace(namespace).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("involvedObject.uid", string(about)).String(), Limit: maxEvents,
	})
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	var newest *finding
	var at time.Time
	for i := range list.Items {
		var event corev1.Event
		if runtime.DefaultUnstructuredConverter.FromUnstructured(list.Items[i].Object, &event) != nil {
			continue
		}
		f, telling := told(&event)
		// Times are in seconds: of what happened in one, the bad counts.
		if when := last(&event); telling && (when.After(at) || when.Equal(at) && f != nil) {
			newest, at = f, when
		}
	}
	return newest, nil
}

// told reads what an event says; nil if it says that all is well. Those that
// say nothing to the purpose are not telling.
func told(event *corev1.Event) (f *finding, telling bool) {
	f = &finding{Message: clip(event.Message)}
	switch event.Reason {
	case "FailedCreate":
		f = refused("", event.Reason, event.Message)
	case "FailedMount", "FailedAttachVolume", "FailedMapVolume", "FailedBinding", "VolumeFailedDelete":
		f.Reason = ReasonFailedMount
		if event.InvolvedObject.Kind == "PersistentVolumeClaim" {
			f.Reason = ReasonUnbound
		}
	case "ProvisioningFailed":
		f.Reason = ReasonUnbound
	case "Unhealthy":
		f.Reason = ReasonProbe
	case "FailedCreatePodSandBox", "NetworkNotReady":
		f.Reason = ReasonStarting
	case "SuccessfulCreate", "SuccessfulAttachVolume", "ProvisioningSucceeded", "Started":
		return nil, true
	default:
		return nil, false
	}
	return f, true
}

func last(event *corev1.Event) time.Time {
	if event.Series != nil {
		return event.Series.LastObservedTime.Time
	}
	if !event.LastTimestamp.IsZero() {
		return event.LastTimestamp.Time
	}
	return event.EventTime.Time
}
