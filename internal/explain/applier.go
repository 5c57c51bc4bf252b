package explain

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"tidelock.dev"
)

// What can be in the way at what applies a source.

// live is the good end: the applier has the commit, or a later one that
// contains it, and what it brought is well.
func live(f *Facts) *tidelock.Verdict {
	o := f.Applier
	if o == nil || !f.Applied.has() || !f.applied() || !f.well() {
		return nil
	}
	v := tidelock.Verdict{
		Code: tidelock.CauseNone, Sentence: "the commit is live in " + string(o.Object),
		Evidence: []tidelock.Evidence{field(o, "status.lastAppliedRevision", o.Revision)},
		Since:    o.Since,
	}
	if o.Health == tidelock.HealthHealthy && o.Objects > 0 {
		v.Sentence += fmt.Sprintf(", and all %d objects are healthy", o.Objects)
	}
	if f.Applied == Contains {
		v.Code, v.Sentence = tidelock.CauseOlder, "a later commit that contains it is live in "+string(o.Object)+": "+quote(o.Revision)
	}
	switch {
	case f.Applied == Same && f.Kept != "":
		f.keptChart(&v)
	case f.Applied == Same && f.Untouched:
		f.changesNothing(&v)
	}
	if !f.Away.IsZero() {
		v.Evidence = append(v.Evidence, tidelock.Evidence{Where: "agent " + f.AgentName, What: "not connected since " + stamp(f.Away), At: f.Away})
	}
	return &v
}

// keptChart says of a commit that is live that its chart is not.
func (f *Facts) keptChart(v *tidelock.Verdict) {
	v.Code = tidelock.CauseChartVersionKept
	v.Sentence = fmt.Sprintf("%s has the commit, and still the chart from before it", f.Applier.Object)
	v.Next = "raise version in " + path.Join(f.Applier.Chart, "Chart.yaml") + ", or set reconcileStrategy: Revision in the HelmRelease's spec.chart.spec"
	v.Evidence = append([]tidelock.Evidence{{Where: "commit " + short(f.Commit), What: f.Kept, At: f.Now}}, v.Evidence...)
}

// changesNothing says of a commit that is live that there is nothing to see of
// it.
func (f *Facts) changesNothing(v *tidelock.Verdict) {
	v.Code = tidelock.CausePathNotTouched
	o := f.Applier
	if f.Build != nil {
		v.Sentence = fmt.Sprintf("the commit changes nothing that application %s is packaged from: %s has what was packaged before", f.Build.Application, o.Object)
		v.Next = "change files below the application's path, or correct the path in .tidelock/delivery.yaml"
		v.Evidence = append(v.Evidence, tidelock.Evidence{
			Where: "packaging of " + f.Build.Application, What: "the last artifact was made from " + string(f.Build.Commit) + ", and holds what is there now", At: f.Build.CreatedAt,
		})
		return
	}
	v.Sentence = fmt.Sprintf("%s has the commit, which changes nothing below %s, the only path that it applies", o.Object, shownPath(o.Path))
	v.Next = "change files below that path, or let a Kustomization apply the path that was changed"
	v.Evidence = append(v.Evidence, field(o, "spec.path", shownPath(o.Path)),
		tidelock.Evidence{Where: "commit " + short(f.Commit), What: "changes no file below " + shownPath(o.Path), At: f.Now})
}

func shownPath(p string) string { return quote(cmp.Or(p, "./")) }

// applied reports whether the revision that the applier applied last stands.
// That it fails with a newer one is that one's trouble.
func (f *Facts) applied() bool {
	switch o := f.Applier; o.State {
	case tidelock.ObservedReady, tidelock.ObservedProgressing, tidelock.ObservedBlocked:
		return true
	case tidelock.ObservedFailed, tidelock.ObservedStalled:
		return f.Other || f.Newer && early(o)
	}
	return f.Other || f.Newer
}

// early reports whether an applier fails before it attempts anything, which
// leaves the revision of the last attempt in place.
func early(o *tidelock.Observation) bool {
	switch o.Reason {
	case "ArtifactFailed", "AccessDenied", "SourceNotReady", "ValuesError", "InvalidCELExpression", "FeatureGateDisabled", "RESTClientError":
		return true
	}
	return false
}

// well reports whether nothing is wrong with what the applier brought. Where
// nobody looked, that Flux is content is enough.
func (f *Facts) well() bool {
	switch f.Applier.Health {
	case tidelock.HealthHealthy, tidelock.HealthUnknown, "":
		return true
	}
	return false
}

func noApplier(f *Facts) *tidelock.Verdict {
	if f.Applier != nil {
		return nil
	}
	if f.Fetch == nil {
		if f.Fetched.has() {
			return unknown(fmt.Sprintf("%s has the commit; the agent does not tell what applies it", f.Source.Source),
				tidelock.Evidence{Where: string(f.Source.Source), What: f.Source.Revision, At: f.Source.UpdatedAt})
		}
		return nil
	}
	id := tidelock.ObjectID(f.Source.Source)
	return &tidelock.Verdict{
		Code: tidelock.CauseNoApplier, Object: id,
		Sentence: fmt.Sprintf("nothing applies %s: no Kustomization or HelmRelease names it", id),
		Next:     "make a Kustomization or a HelmRelease whose sourceRef names it",
		Evidence: []tidelock.Evidence{
			{Where: string(id), What: "no applier has it as its source", At: f.Fetch.UpdatedAt},
			field(f.Fetch, "status.artifact.revision", f.Fetch.Revision),
		},
	}
}

func applierSuspended(f *Facts) *tidelock.Verdict {
	if f.Applier == nil || !f.Applier.Suspended {
		return nil
	}
	return suspended(f.Applier)
}

func suspended(o *tidelock.Observation) *tidelock.Verdict {
	return &tidelock.Verdict{
		Code: tidelock.CauseApplierSuspended, Object: o.Object,
		Sentence: string(o.Object) + " is suspended",
		Next:     run("resume it", flux("resume", o.Object)),
		Evidence: []tidelock.Evidence{field(o, "spec.suspend", "true")},
	}
}

// blocked reports whether an applier waits for others that it depends on.
func blocked(o *tidelock.Observation) bool {
	return !o.Suspended && (o.Reason == "DependencyNotReady" ||
		o.State == tidelock.ObservedBlocked && len(o.DependsOn) > 0 && read(dependsOn, o.Message) != nil)
}

// dependency follows what an applier waits for down to the root.
func dependency(f *Facts) *tidelock.Verdict {
	if f.Applier == nil || !f.Fetched.has() || !blocked(f.Applier) {
		return nil
	}
	root, chain := f.chase(f.Applier)
	v := tidelock.Verdict{Object: f.Applier.Object, Evidence: []tidelock.Evidence{conditions(f.Applier)}, Since: f.Applier.Since}
	for _, o := range chain[1:] {
		if seen := f.Others[o]; seen != nil && blocked(seen) {
			v.Evidence = append(v.Evidence, conditions(seen))
		}
	}
	waits := string(f.Applier.Object)
	for i, id := range chain[1:] {
		if i == 0 {
			waits += " waits for " + string(id)
		} else {
			waits += ", which waits for " + string(id)
		}
	}
	if root == nil && f.age(f.Applier.Since) <= defaultTimeout {
		v.Code, v.Sentence = tidelock.CauseWaiting, waits
		return &v
	}
	if root == nil {
		v.Code, v.Sentence = tidelock.CauseDependencyNotReady, waits+", for "+took(f.age(f.Applier.Since))
		v.Next = "look at what it depends on: " + cmp.Or(flux("get", chain[len(chain)-1]), "flux get all -A")
		return &v
	}
	v.Code = tidelock.CauseDependencyNotReady
	v.Sentence, v.Next = waits+"; "+root.Sentence, root.Next
	v.Evidence = append(v.Evidence, root.Evidence...)
	if root.Code != tidelock.CauseDependencyNotReady {
		v.Also = []tidelock.Verdict{f.finish(*root)}
	}
	return &v
}

const maxChain = 50

// chase follows an applier's dependencies. It returns what is wrong with the
// last of them, nil if that is on its way, and all that were met.
func (f *Facts) chase(from *tidelock.Observation) (root *tidelock.Verdict, chain []tidelock.ObjectID) {
	chain = []tidelock.ObjectID{from.Object}
	for o := from; ; {
		next := f.waitsFor(o)
		if next == "" {
			return f.beyond(o, "it is not known for which"), chain
		}
		circle := slices.Contains(chain, next)
		chain = append(chain, next)
		if circle {
			return &tidelock.Verdict{
				Code: tidelock.CauseDependencyNotReady, Object: next,
				Sentence: "they depend on each other in a circle",
				Next:     "take one of them out of the other's spec.dependsOn",
				Evidence: []tidelock.Evidence{field(o, "spec.dependsOn", string(next))},
			}, chain
		}
		on := f.Others[next]
		switch {
		case strings.Contains(o.Message, "not found"):
			return &tidelock.Verdict{
				Code: tidelock.CauseDependencyNotReady, Object: next, Sentence: string(next) + " does not exist",
				Next:     "make it, or correct spec.dependsOn of " + string(o.Object),
				Evidence: []tidelock.Evidence{conditions(o)},
			}, chain
		case on == nil:
			return f.beyond(o, "nothing more is known of "+string(next)), chain
		case len(chain) > maxChain:
			return f.beyond(o, "the chain goes on"), chain
		case !blocked(on):
			return f.wrong(on), chain
		}
		o = on
	}
}

// beyond is for a dependency that cannot be looked into: it may be well and on
// its way, so that it is blamed only after a while.
func (f *Facts) beyond(o *tidelock.Observation, what string) *tidelock.Verdict {
	if f.age(o.Since) <= unhandledAfter {
		return nil
	}
	return &tidelock.Verdict{
		Code: tidelock.CauseDependencyNotReady, Object: o.Object, Sentence: what,
		Next:     "look at what it depends on: " + cmp.Or(flux("get", o.Object), "flux get all -A"),
		Evidence: []tidelock.Evidence{conditions(o)},
	}
}

// waitsFor is the dependency that keeps an applier waiting: the one that its
// message names, or else the first that is not ready.
func (f *Facts) waitsFor(o *tidelock.Observation) tidelock.ObjectID {
	kind, _, _ := o.Object.Split()
	if m := read(dependsOn, o.Message); m != nil {
		return tidelock.ObjectID(string(kind) + "/" + cmp.Or(m[1], m[3]) + "/" + cmp.Or(m[2], m[4]))
	}
	for _, id := range o.DependsOn {
		if on := f.Others[id]; on != nil && (on.State != tidelock.ObservedReady || on.Suspended) {
			return id
		}
	}
	if len(o.DependsOn) == 1 {
		return o.DependsOn[0]
	}
	return ""
}

// wrong is what is the matter with an applier, whatever revision it is at; nil
// if nothing is.
func (f *Facts) wrong(o *tidelock.Observation) *tidelock.Verdict {
	switch {
	case o.Suspended:
		return suspended(o)
	case o.State.Failed():
		return f.failure(o, nil)
	}
	return f.sick(o)
}

// sourceWaits are reasons of appliers whose source is not there yet; the
// source itself has been looked at by then.
func sourceWaits(o *tidelock.Observation) bool {
	return o.State == tidelock.ObservedBlocked && !blocked(o)
}

// applyFailed is about an applier that could not apply the commit, or a later
// one that contains it.
func applyFailed(f *Facts) *tidelock.Verdict {
	o := f.Applier
	if o == nil || o.Suspended || !f.Fetched.has() && !f.Attempted.has() {
		return nil
	}
	switch {
	case o.State.Failed(), sourceWaits(o) && f.age(o.Since) > fresh:
	case o.State == tidelock.ObservedProgressing && !f.Applied.has():
		return f.triedBefore(o)
	default:
		return nil
	}
	if !f.Attempted.has() {
		fetched := f.fetchedAt()
		switch {
		case !early(o) && f.Attempted != None:
			return nil // it failed with an earlier commit
		case o.Since.Before(fetched) && f.age(fetched) < fresh:
			return nil // it is about to look at this one
		}
	}
	return f.failure(o, f.Broken)
}

// triedBefore is about an applier that is at it again after it failed with the
// commit: the condition tells of the new attempt only.
func (f *Facts) triedBefore(o *tidelock.Observation) *tidelock.Verdict {
	if !f.Attempted.has() || len(o.Outcomes) == 0 {
		return nil
	}
	last := o.Outcomes[0]
	if last.Revision != o.Attempted || last.FailedAt.IsZero() || last.Message == "" || last.Reason == "" {
		return nil
	}
	before := *o
	before.State, before.Reason, before.Message, before.Since = tidelock.ObservedFailed, last.Reason, last.Message, last.FailedAt
	switch before.Reason {
	case "Progressing", "ProgressingWithRetry", "DependencyNotReady", "HealthCheckFailed":
		return nil
	}
	return f.failure(&before, f.Broken)
}

// failureProse says what each failure of an applier means and what to do.
var failureProse = map[tidelock.CauseCode]struct{ says, next string }{
	tidelock.CausePathNotFound:       {"its path is not in the source", "correct spec.path, or push the files that belong there"},
	tidelock.CauseBuildFailed:        {"it cannot be built", "correct the file and push again"},
	tidelock.CauseDecryptionFailed:   {"a secret cannot be decrypted", "give the Kustomization the key (spec.decryption), or encrypt the secret for the key that it has"},
	tidelock.CauseSubstitutionFailed: {"a variable cannot be substituted", "define it in spec.postBuild, or in the ConfigMap or Secret named there"},
	tidelock.CauseForbidden:          {"the cluster does not permit it", "give the service account of the applier the right, by a Role and a RoleBinding"},
	tidelock.CauseImmutableField:     {"a field cannot be changed once it is set", "give the object another name, delete it first, or let Flux recreate it: annotation kustomize.toolkit.fluxcd.io/force: enabled"},
	tidelock.CauseNamespaceMissing:   {"a namespace does not exist", "make the namespace, or let what makes it go first by spec.dependsOn"},
	tidelock.CauseCRDMissing:         {"the cluster does not know a kind", "install the CustomResourceDefinition first, and let this depend on it by spec.dependsOn"},
	tidelock.CauseObjectRejected:     {"the API server refuses an object", "correct the object as the message says"},
	tidelock.CauseQuota:              {"a quota is used up", "raise the quota, or ask for less"},
	tidelock.CauseHelmValues:         {"the values do not fit the chart, or are missing", "correct spec.values, or what spec.valuesFrom names"},
	tidelock.CauseHelmFailed:         {"Helm could not install or upgrade the release", "read the message; then retry it"},
	tidelock.CauseApplyFailed:        {"it cannot be applied", "read the message, and correct what it names"},
}

// failure explains a failed applier. Broken are files that are known not to
// be readable.
func (f *Facts) failure(o *tidelock.Observation, broken []tidelock.Finding) *tidelock.Verdict {
	code := failureOf(o)
	if code == tidelock.CauseUnhealthy {
		return f.failedHealth(o)
	}
	prose := failureProse[code]
	v := &tidelock.Verdict{
		Code: code, Object: o.Object, Next: prose.next, Since: o.Since,
		Sentence: string(o.Object) + ": " + prose.says + ": " + quote(cmp.Or(o.Message, o.Reason)),
		Evidence: []tidelock.Evidence{conditions(o)},
	}
	if code == tidelock.CauseBuildFailed {
		f.locate(v, o, broken)
	}
	if detail := detailOf(code, o); detail != "" {
		v.Sentence = string(o.Object) + ": " + detail
	}
	if object := group(objectAtHand, o.Message, 1); object != "" {
		v.Sentence += ", in " + object
	}
	return v
}

// locate names the file and line of a failed build.
func (f *Facts) locate(v *tidelock.Verdict, o *tidelock.Observation, broken []tidelock.Finding) {
	file, line := place(o.Message, o.Path)
	message := o.Message
	for _, finding := range broken { // what was read in the repository knows the line in the file
		v.Evidence = append(v.Evidence, tidelock.Evidence{Where: "repository at " + short(f.Commit), What: finding.String(), At: f.Now})
	}
	if len(broken) > 0 {
		file, line, message = broken[0].Path, broken[0].Line, broken[0].Message
	}
	if file == "" {
		return
	}
	at := file
	if line > 0 {
		at = fmt.Sprintf("%s:%d", file, line)
	}
	v.Sentence = fmt.Sprintf("%s cannot be built: %s: %s", o.Object, at, quote(message))
	v.Evidence = append(v.Evidence, tidelock.Evidence{Where: "the build of " + string(o.Object), What: "at " + at, At: o.Since})
}

// detailOf says what a failure is about, where its message can be read; "" else.
func detailOf(code tidelock.CauseCode, o *tidelock.Observation) string {
	m := o.Message
	switch code {
	case tidelock.CauseForbidden:
		if g := read(deniedUser, m); g != nil {
			where := "in the whole cluster"
			if g[4] != "" {
				where = "in namespace " + g[4]
			}
			return fmt.Sprintf("%s may not %s %s %s", strings.Replace(g[1], ":", "/", 1), g[2], g[3], where)
		}
	case tidelock.CauseCRDMissing:
		if g := read(missingKind, m); g != nil {
			return fmt.Sprintf("the cluster has no kind %s of %s", g[1], g[2])
		}
	case tidelock.CauseNamespaceMissing:
		if name := group(namespaceMissing, m, 1); name != "" {
			return "namespace " + name + " does not exist"
		}
	case tidelock.CausePathNotFound:
		if o.Path != "" {
			return "path " + shownPath(o.Path) + " is not in the source"
		}
	case tidelock.CauseQuota:
		if g := read(quotaPart, m); g != nil {
			return fmt.Sprintf("quota %s is used up: requested %s, limited %s", g[1], g[2], g[3])
		}
	case tidelock.CauseSubstitutionFailed:
		if name := group(variable, m, 1); name != "" {
			return "variable " + name + " is not set"
		}
	case tidelock.CauseImmutableField:
		if name := group(fieldAtFault, m, 1); name != "" {
			return name + " cannot be changed once it is set"
		}
	case tidelock.CauseObjectRejected:
		name := cmp.Or(group(unknownField, m, 1), group(fieldAtFault, m, 1), strings.TrimPrefix(group(typedField, m, 1), "."))
		if name == "" {
			return ""
		}
		if _, after, ok := strings.Cut(m, name+": "); ok {
			m = after // what is before it names the object, as the sentence does
		}
		return "the API server refuses " + name + ": " + quote(m)
	}
	return ""
}

// applierIdle is about an applier that is well and not at the commit yet.
func applierIdle(f *Facts) *tidelock.Verdict {
	o := f.Applier
	if o == nil || o.Suspended || !f.Fetched.has() || blocked(o) {
		return nil
	}
	if f.Applied.has() && f.applied() {
		return nil // health decides
	}
	at := field(o, "status.lastAttemptedRevision", cmp.Or(o.Attempted, "none"))
	switch {
	case o.State == tidelock.ObservedProgressing:
		return waiting(string(o.Object)+" is being applied", conditions(o), at)
	case sourceWaits(o):
		return waiting(string(o.Object)+" waits for its source", conditions(o))
	case o.State.Failed() && (f.Attempted.has() || f.Attempted == None):
		return nil // it has been explained
	}
	fetched := f.fetchedAt()
	waited := f.age(fetched)
	if o.State == tidelock.ObservedUnknown {
		waited = max(waited, f.age(o.Since))
	}
	if waited <= unhandledAfter || f.controllerActs(o.Object, fetched) {
		return waiting(string(o.Object)+" is about to be applied", at)
	}
	what := "has not attempted the commit, which has been in " + string(f.Source.Source) + " for " + took(waited)
	if o.Requested {
		what = "has not acted on a request to reconcile it"
	}
	return controllerDown(o.Object, what, at, tidelock.Evidence{Where: string(f.Source.Source), What: "has " + f.Source.Revision, At: fetched})
}

// fetchedAt is when the source had the commit; zero when nobody saw it.
func (f *Facts) fetchedAt() time.Time {
	if a := f.Announcement; a != nil && !a.FetchedAt.IsZero() {
		return a.FetchedAt
	}
	if f.Fetch != nil {
		return f.Fetch.UpdatedAt
	}
	return f.Source.UpdatedAt
}

// controllerActs reports whether the controller of an applier was seen at work
// since a time: then it is busy, and not down.
func (f *Facts) controllerActs(id tidelock.ObjectID, since time.Time) bool {
	kind, _, _ := id.Split()
	at := f.Acted[kind]
	return at.After(since) && f.age(at) < 2*unhandledAfter
}
