package flux

import (
	"slices"
	"strconv"
	"strings"
	"time"

	imagev1 "github.com/fluxcd/image-reflector-controller/api/v1"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"tidelock.dev"
)

// A kind is a kind of Flux's objects that fetch, and how one is read. All
// that is done with sources is the same for every kind.
type kind struct {
	schema.GroupVersionKind
	resource string        // the plural, as the API server names it
	needs    []string      // other resources of the group that have to be there too
	object   client.Object // an empty one
	read     func(client.Object, *observation)
}

// kinds are all that there are; a cluster may serve only some of them.
var kinds = []*kind{gitRepository, ociRepository, helmChart, imageRepository}

func newKind[T client.Object](gvk schema.GroupVersionKind, resource string, object T, read func(T, *observation), needs ...string) *kind {
	return &kind{
		GroupVersionKind: gvk,
		resource:         resource,
		needs:            needs,
		object:           object,
		read:             func(object client.Object, o *observation) { read(object.(T), o) },
	}
}

var gitRepository = newKind(sourcev1.GroupVersion.WithKind(sourcev1.GitRepositoryKind), "gitrepositories", &sourcev1.GitRepository{},
	func(repo *sourcev1.GitRepository, o *observation) {
		o.url = withoutUser(repo.Spec.URL)
		if ref := repo.Spec.Reference; ref != nil {
			o.ref = tidelock.RefSpec{Branch: ref.Branch, Tag: ref.Tag, SemVer: ref.SemVer, Name: ref.Name, Commit: ref.Commit}
		}
		o.suspended = repo.Spec.Suspend
		o.uses(repo.Spec.SecretRef, repo.Spec.ProxySecretRef)
		if repo.Spec.Verification != nil {
			o.uses(&repo.Spec.Verification.SecretRef)
		}
		for _, include := range repo.Spec.Include {
			o.include = append(o.include, include.GitRepositoryRef.Name)
		}
		o.shows(repo.Status.Artifact, repo.Status.Conditions, repo.Status.ReconcileRequestStatus)
		o.stands(repo.Spec.Interval, repo.Status.ObservedGeneration, repo.Status.Conditions)
		for _, artifact := range repo.Status.IncludedArtifacts {
			o.included = append(o.included, identity(artifact))
		}
	})

var ociRepository = newKind(sourcev1.GroupVersion.WithKind(sourcev1.OCIRepositoryKind), "ocirepositories", &sourcev1.OCIRepository{},
	func(repo *sourcev1.OCIRepository, o *observation) {
		o.url = withoutUser(repo.Spec.URL)
		if ref := repo.Spec.Reference; ref != nil {
			o.ref = tidelock.RefSpec{Digest: ref.Digest, SemVer: ref.SemVer, SemVerFilter: ref.SemverFilter, Tag: ref.Tag}
		}
		o.suspended = repo.Spec.Suspend
		o.uses(repo.Spec.SecretRef, repo.Spec.CertSecretRef, repo.Spec.ProxySecretRef)
		if repo.Spec.Verify != nil {
			o.uses(repo.Spec.Verify.SecretRef)
		}
		o.shows(repo.Status.Artifact, repo.Status.Conditions, repo.Status.ReconcileRequestStatus)
		o.stands(repo.Spec.Interval, repo.Status.ObservedGeneration, repo.Status.Conditions)
	})

// A chart has no URL of its own: it is found below that of its HelmRepository.
var helmChart = newKind(sourcev1.GroupVersion.WithKind(sourcev1.HelmChartKind), "helmcharts", &sourcev1.HelmChart{},
	func(chart *sourcev1.HelmChart, o *observation) {
		if chart.Spec.SourceRef.Kind == sourcev1.HelmRepositoryKind {
			o.helmRepository, o.chart = chart.Spec.SourceRef.Name, chart.Spec.Chart
		}
		if chart.Spec.SourceRef.Kind == sourcev1.GitRepositoryKind {
			o.gitRepository, o.sourceRevision = chart.Spec.SourceRef.Name, chart.Status.ObservedSourceArtifactRevision
			if chart.Spec.ReconcileStrategy != sourcev1.ReconcileStrategyRevision {
				o.byVersion = chart.Spec.Chart
			}
		}
		o.ref = tidelock.RefSpec{SemVer: chart.Spec.Version}
		o.suspended = chart.Spec.Suspend
		if chart.Spec.Verify != nil {
			o.uses(chart.Spec.Verify.SecretRef)
		}
		o.shows(chart.Status.Artifact, chart.Status.Conditions, chart.Status.ReconcileRequestStatus)
		o.stands(chart.Spec.Interval, chart.Status.ObservedGeneration, chart.Status.Conditions)
	}, helmRepositories)

// An image repository has no artifact: Flux reads the tags of an image, for
// others to choose from.
var imageRepository = newKind(imagev1.GroupVersion.WithKind(imagev1.ImageRepositoryKind), "imagerepositories", &imagev1.ImageRepository{},
	func(repo *imagev1.ImageRepository, o *observation) {
		o.url = withoutUser("oci://" + repo.Spec.Image)
		o.suspended = repo.Spec.Suspend
		o.uses(repo.Spec.SecretRef, repo.Spec.CertSecretRef, repo.Spec.ProxySecretRef)
		o.shows(nil, repo.Status.Conditions, repo.Status.ReconcileRequestStatus)
		o.stands(repo.Spec.Interval, repo.Status.ObservedGeneration, repo.Status.Conditions)
		if scan := repo.Status.LastScanResult; scan != nil {
			o.scan = scan.ScanTime.UTC().Format(time.RFC3339) + " " + scan.Revision
		}
	})

// helmRepositories is the resource of HelmRepository, which is no source of
// ours: those of type oci only say where their charts are.
const helmRepositories = "helmrepositories"

// kindOf returns a kind by its name; nil if there is none.
func kindOf(name tidelock.SourceKind) *kind {
	i := slices.IndexFunc(kinds, func(k *kind) bool { return k.Kind == string(name) })
	if i < 0 {
		return nil
	}
	return kinds[i]
}

// id names a source of the kind.
func (k *kind) id(name types.NamespacedName) tidelock.SourceID {
	return tidelock.SourceID(k.Kind + "/" + name.Namespace + "/" + name.Name)
}

// parseID is the reverse of id.
func parseID(id tidelock.SourceID) (k *kind, name types.NamespacedName, ok bool) {
	_, rest, _ := strings.Cut(string(id), "/")
	namespace, simple, _ := strings.Cut(rest, "/")
	k = kindOf(id.Kind())
	return k, types.NamespacedName{Namespace: namespace, Name: simple}, k != nil && namespace != "" && simple != ""
}

func (k *kind) observe(object client.Object) observation {
	o := observation{
		uid:         object.GetUID(),
		generation:  object.GetGeneration(),
		labels:      object.GetLabels(),
		requestedAt: object.GetAnnotations()[meta.ReconcileRequestAnnotation],
	}
	k.read(object, &o)
	return o
}

// uses notes Secrets without which the source cannot be fetched.
func (o *observation) uses(secrets ...*meta.LocalObjectReference) {
	for _, secret := range secrets {
		if secret != nil && secret.Name != "" {
			o.secrets = append(o.secrets, secret.Name)
		}
	}
}

// shows takes what sources have in common in their status.
func (o *observation) shows(artifact *meta.Artifact, conditions []metav1.Condition, requests meta.ReconcileRequestStatus) {
	if artifact != nil {
		o.revision = artifact.Revision
		o.artifact = identity(artifact)
	}
	if ready := apimeta.FindStatusCondition(conditions, meta.ReadyCondition); ready != nil && ready.Status == metav1.ConditionFalse {
		o.failure = clip(ready.Reason + ": " + ready.Message)
	}
	o.handledAt = requests.LastHandledReconcileAt
}

// stands takes how the source stands with its newest generation.
func (o *observation) stands(interval metav1.Duration, observed int64, conditions []metav1.Condition) {
	o.interval = interval.Duration
	o.standing = judgement{generation: o.generation, observed: observed, suspended: o.suspended, conditions: conditions}.standing()
}

func identity(artifact *meta.Artifact) string {
	if artifact == nil {
		return ""
	}
	return artifact.Revision + " " + artifact.Digest
}

// A registry is what charts take from their HelmRepository; the zero registry
// stands for one that is not there or not of type oci.
type registry struct {
	url     string
	edition string // changes with every edit
	secrets []string
}

func readRegistry(repo *sourcev1.HelmRepository) registry {
	if repo.Spec.Type != sourcev1.HelmRepositoryTypeOCI {
		return registry{}
	}
	var o observation
	o.uses(repo.Spec.SecretRef, repo.Spec.CertSecretRef)
	return registry{
		url:     strings.TrimRight(withoutUser(repo.Spec.URL), "/"),
		edition: string(repo.UID) + "/" + strconv.FormatInt(repo.Generation, 10),
		secrets: o.secrets,
	}
}

// registryID names a HelmRepository, as if it were a source.
func registryID(name types.NamespacedName) tidelock.SourceID {
	return tidelock.SourceID(sourcev1.HelmRepositoryKind + "/" + name.Namespace + "/" + name.Name)
}

// registryID names the HelmRepository of a chart; it is empty for all else.
func (o *observation) registryID(namespace string) tidelock.SourceID {
	if o.helmRepository == "" {
		return ""
	}
	return registryID(types.NamespacedName{Namespace: namespace, Name: o.helmRepository})
}

// locate tells a chart where it is found.
func (o *observation) locate(r registry) {
	o.registry = r
	o.url = ""
	if r.url != "" && o.chart != "" {
		o.url = r.url + "/" + o.chart
	}
}
