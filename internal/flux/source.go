package flux

import (
	"net/url"
	"slices"
	"strings"
	"time"

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

// A Source is a source of the forge's, as the server needs to know it.
type Source struct {
	ID         tidelock.SourceID
	UID        string
	URL        string // without user info; of an image "oci://<host>/<path>"
	Ref        tidelock.RefSpec
	Revision   string // of the artifact, as Flux writes it; of an image what was announced before its tags were read
	Suspended  bool
	LastNumber int64 // of the last announcement, 0 for none
	LastCommit tidelock.CommitID
	LastDigest tidelock.Digest
}

// An observation is what matters of a source at one moment.
type observation struct {
	uid        types.UID
	generation int64
	labels     map[string]string
	url        string // without user info
	ref        tidelock.RefSpec
	secrets    []string // names of those it is fetched with
	include    []string // names of GitRepositories
	suspended  bool

	helmRepository string // that a chart names
	chart          string // its name in there
	registry       registry
	gitRepository  string // that a chart is packaged from; "" for any other source of it
	sourceRevision string // of that, when the chart was last packaged, or could not be
	byVersion      string // folder of the chart, when it is packaged anew only with a new version

	revision    string
	artifact    string   // revision and digest of the artifact
	included    []string // the same of the artifacts it was built with
	requestedAt string   // the annotation
	handledAt   string   // status.lastHandledReconcileAt
	failure     string   // the message of Ready=False, empty otherwise
	scan        string   // of an image: when its tags were read last, and their hash
	standing    standing
	interval    time.Duration
}

// spec is what decides which revision the source follows.
type spec struct {
	url string
	ref tidelock.RefSpec
}

// oversized reports whether a source is too long to be told of.
func (o *observation) oversized() bool {
	r := o.ref
	return len(o.url)+len(r.Branch)+len(r.Tag)+len(r.SemVer)+len(r.SemVerFilter)+len(r.Name)+len(r.Commit)+len(r.Digest) > maxSpec ||
		len(o.revision) > maxSpec
}

func (o *observation) spec() spec { return spec{o.url, o.ref} }

// edited reports whether a person changed what the source is fetched by.
func (o *observation) edited(before *observation) bool {
	return o.generation != before.generation || o.registry.edition != before.registry.edition
}

// secretNames are of all Secrets that the source is fetched with.
func (o *observation) secretNames() []string { return slices.Concat(o.secrets, o.registry.secrets) }

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
