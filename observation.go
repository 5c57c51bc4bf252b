package tidelock

import (
	"strings"
	"time"
)

// An ObjectID names an object of Flux's in a cluster, such as
// "Kustomization/flux-system/apps". Every SourceID is one.
type ObjectID string

// An ObjectKind is the kind in an ObjectID.
type ObjectKind string

// The kinds that apply what sources fetch: the appliers.
const (
	Kustomization ObjectKind = "Kustomization"
	HelmRelease   ObjectKind = "HelmRelease"
)

// Split returns the parts of the id; they are empty if it is none.
func (id ObjectID) Split() (kind ObjectKind, namespace, name string) {
	k, rest, _ := strings.Cut(string(id), "/")
	namespace, name, ok := strings.Cut(rest, "/")
	if !ok || k == "" || namespace == "" || name == "" || strings.Contains(name, "/") {
		return "", "", ""
	}
	return ObjectKind(k), namespace, name
}

// Applies reports whether the object is an applier, and not a source.
func (id ObjectID) Applies() bool {
	kind, _, _ := id.Split()
	return kind == Kustomization || kind == HelmRelease
}

// An ObservedState is how an object of Flux's stands with its newest
// generation and newest revision. Suspension is told apart.
type ObservedState string

const (
	ObservedUnknown     ObservedState = "unknown"     // Flux has not looked at this generation yet
	ObservedProgressing ObservedState = "progressing" // Flux is at it
	ObservedBlocked     ObservedState = "blocked"     // waits for a dependency or for its source
	ObservedReady       ObservedState = "ready"
	ObservedFailed      ObservedState = "failed"  // tried again by itself
	ObservedStalled     ObservedState = "stalled" // not tried again before something changes
)

// Failed reports whether Flux could not do what it tried.
func (s ObservedState) Failed() bool { return s == ObservedFailed || s == ObservedStalled }

// A Health is how objects in a cluster are, in the sense of kstatus.
type Health string

const (
	HealthUnknown     Health = "unknown" // not looked at, or not to be seen
	HealthHealthy     Health = "healthy"
	HealthProgressing Health = "progressing"
	HealthFailed      Health = "failed"
	HealthMissing     Health = "missing"
)

// An ObjectHealth is one object that an applier brought, and how it is.
type ObjectHealth struct {
	Kind      string // with group: "apps/Deployment"; of the core group "Pod"
	Namespace string // "" for cluster-wide
	Name      string
	Health    Health
	Reason    string // a word: "ImagePullBackOff", "QuotaExceeded", "ProgressDeadlineExceeded"
	Message   string
	Pod       string // the pod behind it that shows the reason; "" for none
}

// String names the object: "apps/Deployment shop/web".
func (o ObjectHealth) String() string {
	if o.Namespace == "" {
		return o.Kind + " " + o.Name
	}
	return o.Kind + " " + o.Namespace + "/" + o.Name
}

// An Outcome is what became of one revision in one applier. Times are on the
// server's clock, zero when they did not come about or nobody saw them.
type Outcome struct {
	Revision    string
	State       ObservedState // ready, failed, stalled; progressing or blocked while it lasts
	Reason      string
	Message     string
	Health      Health
	AttemptedAt time.Time
	AppliedAt   time.Time
	HealthyAt   time.Time
	FailedAt    time.Time // last
}

// An Observation is what an agent sees of one object of Flux's, a source or an
// applier. It is a level: a newer one replaces it whole.
type Observation struct {
	Agent     AgentID
	Object    ObjectID
	UID       string
	Project   ProjectID // of the source; 0 when it leads to none that the agent may serve
	Suspended bool
	State     ObservedState
	Reason    string        // of the condition that decided State, in Flux's words
	Message   string        // bounded, printable
	Revision  string        // of a source its artifact's, of an applier the last applied one, as Flux writes it
	Interval  time.Duration // spec.interval
	Requested bool          // a reconcile request is not handled yet

	// Of appliers only.
	Attempted   string   // the last attempted revision
	Source      SourceID // the source of the forge's that it applies
	Path        string   // spec.path of a Kustomization
	Chart       string   // the folder of a chart that Flux packages from Source only when its version changes; "" for any other
	Namespace   string   // where it brings things by default: spec.targetNamespace or its own
	Environment string   // the annotation tidelock.dev/environment; "" for none
	DependsOn   []ObjectID
	Timeout     time.Duration // spec.timeout, else spec.interval, as Flux has it
	Health      Health        // of everything in the inventory together: the worst
	HealthSince time.Time     // since when Health is so with Revision, as forge keeps it
	Objects     int           // in the inventory
	Unhealthy   []ObjectHealth
	Outcomes    []Outcome // of the last few revisions, newest first

	Since     time.Time // when State or Health changed last
	UpdatedAt time.Time
}

// AnnotationEnvironment on an applier names the environment that it deploys to.
const AnnotationEnvironment = "tidelock.dev/environment"

// An ObservationFilter narrows a list of observations; zero fields do not.
type ObservationFilter struct {
	Agent   AgentID
	Project ProjectID
	Source  SourceID // appliers of it
	Objects []ObjectID
}
