// Package explain says why a commit is not live. It is given what is known of
// the commit in one place, goes along the path that a commit takes, and names
// the first thing there that has to change before anything later can matter.
//
// It is pure: it reads no clock, no store and no cluster, so that each of its
// answers can be had again from a table. What others wrote, such as the
// messages of controllers, is classified by its reason first and by its words
// second, and bounded and made printable before it goes into an answer. An
// answer that blames something always comes with evidence; where there is
// none, the answer is that it cannot be told.
package explain

import (
	"time"

	"tidelock.dev"
)

// A Relation is what a revision has to do with the commit in question.
type Relation int

const (
	None     Relation = iota // there is no revision, or it cannot be told
	Same                     // it is the commit
	Contains                 // it is a later one, which has the commit in its history
	Before                   // it is an earlier one, which the commit has in its history
	Apart                    // neither has the other in its history
)

// has reports whether the revision brings the commit.
func (r Relation) has() bool { return r == Same || r == Contains }

// Facts are what is known of one commit in one place: a source of an agent
// and, if there is one, an applier of that source. What is zero is not known.
// All times are on one clock, that of Now.
type Facts struct {
	Now         time.Time
	Project     string // full path
	Environment string

	Commit   tidelock.CommitID
	Missing  bool               // the forge has no such commit
	Refs     []tidelock.RefName // some of the branches and tags that have it
	PushedAt time.Time

	Agent     tidelock.AgentID
	AgentName string
	AgentPath string    // with its configuration project
	Away      time.Time // since when the agent has not been connected; zero while it is
	AwayWhy   string

	// Source is the zero value where none leads to the project. That of
	// sources which are not served tells only what the viewer may know.
	Source       tidelock.AgentSource
	Head         Relation        // of what the source should have
	Fetched      Relation        // of what it has
	WasHead      bool            // the commit was announced to the source, or rolled out by the applier
	Build        *tidelock.Build // of the artifact that the source follows, at the commit
	Packs        bool            // the project has something packaged, though not this commit yet
	Announcement *tidelock.Announcement
	Fetch        *tidelock.Observation // the source, as the agent sees it

	Applier   *tidelock.Observation // nil: no applier of the source is known
	Applied   Relation              // of Applier.Revision
	Attempted Relation              // of Applier.Attempted
	Other     bool                  // Applier.Attempted is another revision than Applier.Revision
	Newer     bool                  // Source.Revision is another revision than Applier.Revision
	Untouched bool                  // the commit is known to change nothing that Applier applies
	Kept      string                // why Applier does not have what the commit changes in its chart; "" when it does
	Mended    bool                  // the path that Applier could not find is in the commit
	Broken    []tidelock.Finding    // files at the commit that cannot be read, when Applier cannot be built

	// Others are the appliers of the agent that belong to the same project, and
	// Acted when those of each kind were attempted last.
	Others map[tidelock.ObjectID]*tidelock.Observation
	Acted  map[tidelock.ObjectKind]time.Time
}

const (
	// fresh is how long a hop may take before anything is made of it.
	fresh = 10 * time.Second

	// unhandledAfter is when a controller that did not act on what it should
	// is not taken to be merely busy.
	unhandledAfter = 30 * time.Second

	// offlineAfter is when an agent is not taken to be reconnecting.
	offlineAfter = time.Minute

	// defaultTimeout is for how long objects may come up where the applier
	// does not say.
	defaultTimeout = 5 * time.Minute
)

// A rule looks for one thing on the path; nil means that it is not there.
type rule func(*Facts) *tidelock.Verdict

// decisive are the rules after which nothing else matters, atForge those of what
// never leaves the forge, and alongPath the others in the order in which a commit
// meets what they look for.
var (
	decisive  = []rule{commitMissing, live, noSource, notServed}
	atForge   = []rule{buildFailed, notOnRef}
	alongPath = []rule{
		agentOffline,
		held,
		sourceSuspended, sourceFailed, notTriggered,
		noApplier, applierSuspended, dependency, applyFailed, applierIdle, unhealthy,
	}
)

// Explain names what keeps a commit from being live in one place. Other causes
// that would still be there are in Also.
func Explain(f Facts) tidelock.Verdict {
	for _, r := range decisive {
		if v := r(&f); v != nil {
			return f.finish(*v)
		}
	}
	for _, r := range atForge {
		if v := r(&f); v != nil {
			return withAlso(f.finish(*v), f.ahead(*v))
		}
	}
	var blocking []tidelock.Verdict
	var calm *tidelock.Verdict // the first that blocks nothing
	for _, r := range alongPath {
		v := r(&f)
		switch {
		case v == nil:
		case v.Blocking():
			blocking = append(blocking, f.finish(*v))
		case calm == nil:
			calm = v
		}
	}
	switch {
	case len(blocking) > 0:
		return withAlso(blocking[0], append(blocking[1:], f.behind()...))
	case calm != nil:
		return f.finish(*calm)
	}
	return f.finish(*unknown("it cannot be told how far the commit came: nothing that is seen here says so"))
}

// ahead is what would still be in the way of a commit that is kept at the
// forge, as far as it has nothing to do with the commit.
func (f *Facts) ahead(v tidelock.Verdict) (blocking []tidelock.Verdict) {
	if !v.Blocking() {
		return nil
	}
	for _, r := range []rule{agentOffline, sourceSuspended, applierSuspended} {
		if v := r(f); v != nil && v.Blocking() {
			blocking = append(blocking, f.finish(*v))
		}
	}
	return blocking
}

// behind is what is wrong with the applier whatever comes, while the commit
// does not get to it.
func (f *Facts) behind() []tidelock.Verdict {
	o := f.Applier
	if f.Fetched.has() || o == nil || o.Suspended {
		return nil
	}
	arrived := *f
	arrived.Fetched = Same
	var v *tidelock.Verdict
	switch {
	case blocked(o):
		v = dependency(&arrived)
	case o.State.Failed() && early(o) && !f.Mended:
		v = f.failure(o, nil)
	}
	if v == nil || !v.Blocking() {
		return nil
	}
	return []tidelock.Verdict{f.finish(*v)}
}

// finish fills in what all verdicts of a place share, and keeps the promises
// of the package.
func (f *Facts) finish(v tidelock.Verdict) tidelock.Verdict {
	v.Commit, v.Environment, v.Agent, v.AgentName = f.Commit, f.Environment, f.Agent, f.AgentName
	if v.Object == "" {
		v.Object = f.object()
	}
	if o := f.Applier; v.Blocking() && o != nil && v.Object == o.Object && f.Attempted == Contains {
		v.Evidence = append(v.Evidence, field(o, "status.lastAttemptedRevision", o.Attempted+", a later commit that contains it"))
	}
	if v.Blocking() && len(v.Evidence) == 0 {
		v.Code, v.Next = tidelock.CauseUnknown, ""
		v.Sentence = "it cannot be told why the commit is not live: there is no evidence of a cause"
	}
	return bounded(v)
}

// object is what the place is known by.
func (f *Facts) object() tidelock.ObjectID {
	if f.Applier != nil {
		return f.Applier.Object
	}
	return tidelock.ObjectID(f.Source.Source)
}

// age is how long ago something was; of what is not known it is zero, which is
// the patient answer.
func (f *Facts) age(at time.Time) time.Duration {
	if at.IsZero() {
		return 0
	}
	return max(0, f.Now.Sub(at))
}
