package flux

import (
	"regexp"
	"slices"
	"strings"
	"time"

	helmv2 "github.com/fluxcd/helm-controller/api/v2"
	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	aclv1 "github.com/fluxcd/pkg/apis/acl"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"tidelock.dev"
)

// An applierKind is a kind of Flux's objects that apply what sources fetch,
// and how one is read. All else is the same for both.
type applierKind struct {
	schema.GroupVersionKind
	resource string
	object   client.Object // an empty one
	read     func(client.Object) application

	// strip takes out of an object what is large or may be secret and is of
	// no use here, before it is kept.
	strip func(client.Object)
}

// applierKinds are all that there are; a cluster may serve only some of them.
var applierKinds = []*applierKind{kustomization, helmRelease}

var kustomization = newApplierKind(kustomizev1.GroupVersion.WithKind(kustomizev1.KustomizationKind), "kustomizations", &kustomizev1.Kustomization{},
	readKustomization,
	func(k *kustomizev1.Kustomization) {
		k.Spec.Patches, k.Spec.Images, k.Spec.PostBuild, k.Spec.CommonMetadata = nil, nil, nil, nil
		k.Spec.HealthChecks, k.Spec.HealthCheckExprs = nil, nil
	})

var helmRelease = newApplierKind(helmv2.GroupVersion.WithKind(helmv2.HelmReleaseKind), "helmreleases", &helmv2.HelmRelease{},
	readHelmRelease,
	func(r *helmv2.HelmRelease) {
		r.Spec.Values, r.Spec.ValuesFrom, r.Spec.PostRenderers, r.Spec.CommonMetadata = nil, nil, nil, nil
	})

func newApplierKind[T client.Object](gvk schema.GroupVersionKind, resource string, object T, read func(T) application, strip func(T)) *applierKind {
	return &applierKind{
		GroupVersionKind: gvk,
		resource:         resource,
		object:           object,
		read:             func(object client.Object) application { return read(object.(T)) },
		strip:            func(object client.Object) { strip(object.(T)) },
	}
}

// id names an applier of the kind.
func (k *applierKind) id(name types.NamespacedName) tidelock.ObjectID {
	return objectID(tidelock.ObjectKind(k.Kind), name)
}

func objectID(kind tidelock.ObjectKind, name types.NamespacedName) tidelock.ObjectID {
	return tidelock.ObjectID(string(kind) + "/" + name.Namespace + "/" + name.Name)
}

// keep is what the cache keeps of an object.
func (k *applierKind) keep(raw any) (any, error) {
	object, ok := raw.(client.Object)
	if !ok {
		return raw, nil
	}
	object.SetManagedFields(nil)
	annotations := object.GetAnnotations()
	for name := range annotations {
		if name != meta.ReconcileRequestAnnotation && name != tidelock.AnnotationEnvironment {
			delete(annotations, name) // such as the whole manifest, again
		}
	}
	k.strip(object)
	return object, nil
}

// An application is what matters of an applier at one moment. Revisions are as
// the applier writes them, which of a HelmRelease is not as its source does.
type application struct {
	uid        types.UID
	generation int64
	suspended  bool
	standing   standing
	requested  bool

	source      tidelock.SourceID // that it names; "" for one of a kind that is never the forge's
	path        string
	namespace   string
	environment string
	dependsOn   []tidelock.ObjectID
	interval    time.Duration
	timeout     time.Duration

	attempted string
	applied   string
	brought   bool               // the objects of attempted are in the cluster, healthy or not
	past      []tidelock.Outcome // as Flux remembers, newest first

	inventory []ObjectRef
	elsewhere bool            // the objects are in another cluster
	health    tidelock.Health // as far as Flux tells
}

// An ObjectRef names an object that an applier brought.
type ObjectRef struct {
	Group, Version, Kind, Namespace, Name string
}

func newApplication(object client.Object, conditions []metav1.Condition, observed int64, suspended bool, handled string) application {
	requestedAt := object.GetAnnotations()[meta.ReconcileRequestAnnotation]
	j := judgement{generation: object.GetGeneration(), observed: observed, suspended: suspended, conditions: conditions}
	return application{
		uid:         object.GetUID(),
		generation:  object.GetGeneration(),
		suspended:   suspended,
		standing:    j.standing(),
		requested:   requestedAt != "" && requestedAt != handled,
		environment: tidelock.Printable(object.GetAnnotations()[tidelock.AnnotationEnvironment], maxEnvironment),
		health:      tidelock.HealthUnknown,
	}
}

// sourceID names a source by a reference to it; "" if it is of a kind that is
// never the forge's.
func sourceID(kind, namespace, name, ownNamespace string) tidelock.SourceID {
	k := kindOf(tidelock.SourceKind(kind))
	if k == nil || name == "" {
		return ""
	}
	if namespace == "" {
		namespace = ownNamespace
	}
	return k.id(types.NamespacedName{Namespace: namespace, Name: name})
}

// dependencies names the appliers of its own kind that one waits for.
func dependencies(kind tidelock.ObjectKind, refs []meta.NamespacedObjectReference, ownNamespace string) (ids []tidelock.ObjectID) {
	for _, ref := range refs[:min(len(refs), maxDependencies)] {
		if ref.Namespace == "" {
			ref.Namespace = ownNamespace
		}
		ids = append(ids, objectID(kind, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}))
	}
	return ids
}

func readKustomization(k *kustomizev1.Kustomization) application {
	a := newApplication(k, k.Status.Conditions, k.Status.ObservedGeneration, k.Spec.Suspend, k.Status.LastHandledReconcileAt)
	ref := k.Spec.SourceRef
	a.source = sourceID(ref.Kind, ref.Namespace, ref.Name, k.Namespace)
	a.path = tidelock.Printable(k.Spec.Path, maxPath)
	a.namespace = k.Namespace
	if k.Spec.TargetNamespace != "" {
		a.namespace = k.Spec.TargetNamespace
	}
	a.dependsOn = dependencies(tidelock.Kustomization, k.GetDependsOn(), k.Namespace)
	a.interval, a.timeout = k.Spec.Interval.Duration, k.GetTimeout()

	a.attempted, a.applied = k.Status.LastAttemptedRevision, k.Status.LastAppliedRevision
	if reconciling := apimeta.FindStatusCondition(k.Status.Conditions, meta.ReconcilingCondition); isTrue(reconciling) {
		// A revision that cannot be unpacked, or lacks the path, is named here
		// and nowhere else.
		if m := attempting.FindStringSubmatch(reconciling.Message); m != nil {
			a.attempted = m[2]
			a.brought = m[1] == "Running health checks"
		}
	}
	a.brought = a.brought || a.attempted != "" && a.attempted == a.applied
	if a.standing.state == tidelock.ObservedReady && a.applied != a.attempted {
		// Conditions are written first: what was applied, and what that
		// brought, is about to follow.
		a.standing.state = tidelock.ObservedProgressing
	}
	for _, h := range k.Status.History {
		o := tidelock.Outcome{Revision: h.Metadata["revision"], State: tidelock.ObservedReady, Reason: h.LastReconciledStatus}
		if h.LastReconciledStatus != meta.ReconciliationSucceededReason {
			o.State = tidelock.ObservedFailed
		}
		a.past = remember(a.past, o)
	}

	if k.Status.Inventory != nil {
		for _, entry := range k.Status.Inventory.Entries {
			if ref, ok := parseInventoryID(entry.ID, entry.Version); ok {
				a.inventory = append(a.inventory, ref)
			}
		}
	}
	a.elsewhere = k.Spec.KubeConfig != nil
	switch healthy := apimeta.FindStatusCondition(k.Status.Conditions, meta.HealthyCondition); {
	case healthy == nil:
	case isTrue(healthy):
		a.health = tidelock.HealthHealthy
	case isFalse(healthy):
		a.health = tidelock.HealthFailed
	default:
		a.health = tidelock.HealthProgressing
	}
	return a
}

// attempting is how kustomize-controller tells what it is doing with which
// revision.
var attempting = regexp.MustCompile(`^(.+) for revision (\S+) with a timeout of `)

// parseInventoryID reads "<namespace>_<name>_<group>_<kind>". A name may have
// underscores of its own, where it has colons they are doubled.
func parseInventoryID(id, version string) (ref ObjectRef, ok bool) {
	parts := strings.Split(id, "_")
	if len(parts) < 4 {
		return ObjectRef{}, false
	}
	last := len(parts) - 1
	ref = ObjectRef{
		Group: parts[last-1], Version: version, Kind: parts[last], Namespace: parts[0],
		Name: strings.ReplaceAll(strings.Join(parts[1:last-1], "_"), "__", ":"),
	}
	return ref, ref.Kind != "" && ref.Name != ""
}

func readHelmRelease(r *helmv2.HelmRelease) application {
	a := newApplication(r, r.Status.Conditions, r.Status.ObservedGeneration, r.Spec.Suspend, r.Status.LastHandledReconcileAt)
	switch {
	case r.Spec.ChartRef != nil:
		a.source = sourceID(r.Spec.ChartRef.Kind, r.Spec.ChartRef.Namespace, r.Spec.ChartRef.Name, r.Namespace)
	case r.Spec.Chart != nil:
		// The chart is made where the source is.
		a.source = sourceID(sourcev1.HelmChartKind, r.Spec.Chart.Spec.SourceRef.Namespace, r.GetHelmChartName(), r.Namespace)
	}
	a.namespace = r.GetReleaseNamespace()
	a.dependsOn = dependencies(tidelock.HelmRelease, r.GetDependsOn(), r.Namespace)
	a.interval, a.timeout = r.Spec.Interval.Duration, r.GetTimeout().Duration

	a.attempted = releaseRevision(r.Status.LastAttemptedRevision, r.Status.LastAttemptedRevisionDigest)
	history := slices.DeleteFunc(slices.Clone(r.Status.History), func(s *helmv2.Snapshot) bool { return s == nil })
	history.SortByVersion()
	for _, s := range history {
		o := tidelock.Outcome{Revision: releaseRevision(s.ChartVersion, s.OCIDigest), Reason: s.Status}
		switch s.Status {
		case "deployed":
			o.State = tidelock.ObservedReady
			if a.applied == "" {
				a.applied = o.Revision
			}
		case "superseded":
			o.State = tidelock.ObservedReady
		case "failed":
			o.State = tidelock.ObservedFailed
		default: // in the middle of something
			continue
		}
		a.past = remember(a.past, o)
	}
	a.brought = a.attempted != "" && a.attempted == a.applied

	a.elsewhere = true // what a release brought is not told
	wait := !r.GetInstall().DisableWait
	if r.Status.LastAttemptedReleaseAction == helmv2.ReleaseActionUpgrade {
		wait = !r.GetUpgrade().DisableWait
	}
	if wait && a.standing.state == tidelock.ObservedReady {
		a.health = tidelock.HealthHealthy
	}
	return a
}

// releaseRevision writes the revision of a release that was made from an
// OCIRepository as the repository does: "<version>@<digest>".
// helm-controller has the digest apart, and its beginning in the version.
func releaseRevision(version, digest string) string {
	if version == "" || digest == "" {
		return version
	}
	version, _, _ = strings.Cut(version, "+")
	return version + "@" + digest[strings.LastIndexByte(digest, '@')+1:]
}

// oversized reports whether an applier is too long to be told of.
func (a *application) oversized() bool {
	return len(a.attempted) > maxSpec || len(a.applied) > maxSpec
}

// early reports whether the applier failed before it looked at a revision, so
// that it has failed with whatever its source has.
func (a *application) early() bool {
	return a.standing.state.Failed() && earlyReasons[a.standing.reason]
}

var earlyReasons = map[string]bool{
	aclv1.AccessDeniedReason:        true,
	meta.InvalidCELExpressionReason: true,
	meta.FeatureGateDisabledReason:  true,
	// And of helm-controller, which notes the revision last of all:
	"ValuesError":      true,
	"ChartMutateError": true,
	"RESTClientError":  true,
}
