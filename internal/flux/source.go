package flux

import (
	"net/url"
	"strings"

	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"tidelock.dev"
)

const (
	// maxMessage bounds what is repeated of Flux's own words.
	maxMessage = 1024

	// maxSpec bounds the URL and the ref of a source, in bytes. The server
	// refuses longer ones and, after enough of them, the whole stream: whoever
	// may make sources in one namespace must not silence all others.
	maxSpec = 1024
)

// A Source is a GitRepository of the forge, as the server needs to know it.
type Source struct {
	ID         tidelock.SourceID
	UID        string
	URL        string // without user info
	Ref        tidelock.RefSpec
	Revision   string // of the artifact, as Flux writes it
	Suspended  bool
	LastNumber int64 // of the last announcement, 0 for none
	LastCommit tidelock.CommitID
}

// sourceID names a GitRepository.
func sourceID(key types.NamespacedName) tidelock.SourceID {
	return tidelock.SourceID("GitRepository/" + key.Namespace + "/" + key.Name)
}

// sourceKey is the reverse of sourceID.
func sourceKey(id tidelock.SourceID) (types.NamespacedName, bool) {
	kind, rest, _ := strings.Cut(string(id), "/")
	namespace, name, ok := strings.Cut(rest, "/")
	if kind != sourcev1.GitRepositoryKind || !ok || namespace == "" || name == "" {
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: namespace, Name: name}, true
}

// CommitOf returns the hash in a revision as Flux writes it, such as
// "main@sha1:<40 hex>" or "sha1:<40 hex>"; empty if there is none.
func CommitOf(revision string) tidelock.CommitID {
	_, digest, found := cutLast(revision, "@")
	if !found {
		digest = revision
	}
	algorithm, hash, _ := strings.Cut(digest, ":")
	switch {
	case algorithm == "sha1" && len(hash) == 40:
	case algorithm == "sha256" && len(hash) == 64:
	default:
		return ""
	}
	for _, c := range hash {
		if !strings.ContainsRune("0123456789abcdef", c) {
			return ""
		}
	}
	return tidelock.CommitID(hash)
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// An observation is what matters of a GitRepository at one moment.
type observation struct {
	uid        types.UID
	generation int64
	labels     map[string]string
	url        string // without user info
	ref        tidelock.RefSpec
	secret     string // name of spec.secretRef
	include    []string
	suspended  bool

	revision    string
	artifact    string   // revision and digest of the artifact
	included    []string // the same of the artifacts it was built with
	requestedAt string   // the annotation
	handledAt   string   // status.lastHandledReconcileAt
	failure     string   // the message of Ready=False, empty otherwise
}

// spec is what decides which commit the source follows.
type spec struct {
	url string
	ref tidelock.RefSpec
}

// oversized reports whether a source is too long to be told of.
func (o *observation) oversized() bool {
	r := o.ref
	return len(o.url)+len(r.Branch)+len(r.Tag)+len(r.SemVer)+len(r.Name)+len(r.Commit) > maxSpec || len(o.revision) > maxSpec
}

func (o *observation) spec() spec { return spec{withoutUser(o.url), o.ref} }

func (o *observation) commit() tidelock.CommitID { return CommitOf(o.revision) }

func observe(repo *sourcev1.GitRepository) observation {
	o := observation{
		uid:         repo.UID,
		generation:  repo.Generation,
		labels:      repo.Labels,
		url:         withoutUser(repo.Spec.URL),
		suspended:   repo.Spec.Suspend,
		requestedAt: repo.Annotations[meta.ReconcileRequestAnnotation],
		handledAt:   repo.Status.LastHandledReconcileAt,
	}
	if ref := repo.Spec.Reference; ref != nil {
		o.ref = tidelock.RefSpec{Branch: ref.Branch, Tag: ref.Tag, SemVer: ref.SemVer, Name: ref.Name, Commit: ref.Commit}
	}
	if ref := repo.Spec.SecretRef; ref != nil {
		o.secret = ref.Name
	}
	for _, include := range repo.Spec.Include {
		o.include = append(o.include, include.GitRepositoryRef.Name)
	}
	if artifact := repo.Status.Artifact; artifact != nil {
		o.revision = artifact.Revision
		o.artifact = identity(artifact)
	}
	for _, artifact := range repo.Status.IncludedArtifacts {
		o.included = append(o.included, identity(artifact))
	}
	if ready := apimeta.FindStatusCondition(repo.Status.Conditions, meta.ReadyCondition); ready != nil && ready.Status == metav1.ConditionFalse {
		o.failure = clip(ready.Reason + ": " + ready.Message)
	}
	return o
}

func identity(artifact *meta.Artifact) string {
	if artifact == nil {
		return ""
	}
	return artifact.Revision + " " + artifact.Digest
}

func clip(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage], "") + "…"
}

// withoutUser strips the credentials of a URL; what does not parse is dropped.
func withoutUser(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	u.User = nil
	return u.String()
}
