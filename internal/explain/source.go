package explain

import (
	"fmt"
	"strings"

	"tidelock.dev"
)

// What can be in the way before and at the source.

func commitMissing(f *Facts) *tidelock.Verdict {
	if !f.Missing {
		return nil
	}
	return &tidelock.Verdict{
		Code:     tidelock.CauseCommitUnknown,
		Sentence: fmt.Sprintf("%s has no commit %s", f.Project, short(f.Commit)),
		Next:     "push it: git push origin HEAD",
		Evidence: []tidelock.Evidence{{Where: "repository " + f.Project, What: "no commit " + string(f.Commit), At: f.Now}},
	}
}

func noSource(f *Facts) *tidelock.Verdict {
	if f.Source.Source != "" || f.Refused() {
		return nil
	}
	return &tidelock.Verdict{
		Code:     tidelock.CauseNoSource,
		Sentence: "no cluster follows " + f.Project + ": no source of any agent leads to it",
		Next:     "make a GitRepository or an OCIRepository with the project's URL in a cluster whose agent serves it (see flux.selector in its configuration), and a Kustomization or HelmRelease of it",
		Evidence: []tidelock.Evidence{{Where: "sources of all agents", What: "none leads to " + f.Project, At: f.Now}},
	}
}

// Refused reports whether the agent of the source may not be told of the
// project, or may not report about it.
func (f *Facts) Refused() bool { return f.Source.State == tidelock.NotServed }

func notServed(f *Facts) *tidelock.Verdict {
	if !f.Refused() {
		return nil
	}
	who, named := "an agent of another project", "<project>/<agent>"
	if f.AgentName != "" {
		who, named = "agent "+f.AgentName, f.AgentPath
	}
	what := "its URL leads to " + f.Project + ", which was not granted to " + who
	where := "a source"
	if f.Source.Source != "" {
		where = string(f.Source.Source)
	}
	return &tidelock.Verdict{
		Code:     tidelock.CauseNotServed,
		Sentence: fmt.Sprintf("%s has a source of %s, and was not granted the project", who, f.Project),
		Next:     fmt.Sprintf("let a maintainer of %s grant it: tidelock agent grant %s %s", f.Project, named, f.Project),
		Evidence: []tidelock.Evidence{{Where: where, What: what, At: f.Source.Since}},
		Since:    f.Source.Since,
	}
}

func buildFailed(f *Facts) *tidelock.Verdict {
	if f.Build == nil || f.Build.State != tidelock.StatusFailed || f.Fetched.has() {
		return nil
	}
	name := "application " + f.Build.Application
	if f.Build.Application == "" {
		name = ".tidelock/delivery.yaml"
	}
	v := tidelock.Verdict{
		Code: tidelock.CauseBuildFailed, Sentence: name + " could not be packaged",
		Next:  "correct it and push again; tidelock delivery check finds the same before a push",
		Since: f.Build.CreatedAt,
	}
	where := "packaging of " + name + " at " + short(f.Build.Commit)
	for _, finding := range f.Build.Findings {
		if finding.Warning {
			continue
		}
		if len(v.Evidence) == 0 {
			v.Sentence += ": " + quote(finding.String())
		}
		v.Evidence = append(v.Evidence, tidelock.Evidence{Where: where, What: finding.String(), At: f.Build.CreatedAt})
	}
	if len(v.Evidence) == 0 {
		v.Evidence = []tidelock.Evidence{{Where: where, What: "failed", At: f.Build.CreatedAt}}
	}
	return &v
}

// notOnRef is about commits that the source is not meant to have.
func notOnRef(f *Facts) *tidelock.Verdict {
	if f.Head.has() {
		return nil
	}
	ref, since := f.follows(), f.Source.Since
	evidence := tidelock.Evidence{Where: string(f.Source.Source), What: "follows " + ref, At: since}
	if f.Source.Wanted != "" {
		evidence.What += ", which is at " + short(f.Source.Wanted)
	}
	young := f.age(f.PushedAt) < fresh && !f.PushedAt.IsZero() || f.Build != nil && !f.Build.CreatedAt.IsZero() && f.age(f.Build.CreatedAt) < fresh
	switch {
	case f.Head == Apart && f.WasHead:
		return &tidelock.Verdict{
			Code:     tidelock.CauseSuperseded,
			Sentence: fmt.Sprintf("%s does not have the commit any more: %s took its place", ref, short(f.Source.Wanted)),
			Next:     "push the commit again if it is still wanted, on top of what is there now",
			Evidence: []tidelock.Evidence{evidence}, Since: since,
		}
	case f.Source.State == tidelock.Unresolved:
		evidence.What = quote(f.Source.Message)
		return &tidelock.Verdict{
			Code:     tidelock.CauseNotOnWatchedRef,
			Sentence: fmt.Sprintf("%s follows %s, and there is none: %s", f.Source.Source, ref, evidence.What),
			Next:     f.pushThere(ref),
			Evidence: []tidelock.Evidence{evidence}, Since: since,
		}
	case f.packaged() && (f.Build != nil && !f.Build.State.Done() || f.Build == nil && f.Packs):
		return f.notPackaged(young)
	case f.packaged() && f.Source.Wanted == "":
		return unknown(fmt.Sprintf("%s follows an artifact that does not say from which commit it was made", f.Source.Source), evidence)
	case (f.Head == Before || f.Head == Apart) && young:
		return waiting("the commit was pushed just now, and is on its way to "+string(f.Source.Source), evidence)
	case f.Head == Before || f.Head == Apart:
		v := &tidelock.Verdict{
			Code:     tidelock.CauseNotOnWatchedRef,
			Sentence: fmt.Sprintf("the commit is not on %s, which %s follows", ref, f.Source.Source),
			Next:     f.pushThere(ref),
			Evidence: []tidelock.Evidence{evidence},
		}
		if f.packaged() {
			v.Sentence = fmt.Sprintf("no artifact of the commit has %s, which %s follows", ref, f.Source.Source)
			v.Next = "push an artifact of it with that tag: tidelock artifact push"
		}
		on := "on no branch or tag"
		if len(f.Refs) > 0 {
			on = "on " + someRefs(f.Refs)
		}
		v.Evidence = append(v.Evidence, tidelock.Evidence{Where: "commit " + short(f.Commit), What: on, At: f.Now})
		return v
	case young:
		return waiting("the commit was pushed just now", evidence)
	}
	return unknown("it is not known what "+string(f.Source.Source)+" should have", evidence)
}

// follows is what the source follows, in words.
func (f *Facts) follows() string {
	ref := plain(shortRef(f.Source.Ref), 100)
	switch spec := f.Source.Spec; {
	case spec.Commit != "":
		return "commit " + plain(spec.Commit, 100)
	case spec.Digest != "":
		return "artifact " + plain(spec.Digest, 100)
	case spec.Name == "" && spec.SemVer != "":
		ref = strings.TrimSuffix("the highest version in "+plain(spec.SemVer, 100)+", now "+ref, ", now ")
	}
	return ref
}

// packaged reports whether the source follows an artifact.
func (f *Facts) packaged() bool { return f.Source.Source.Kind().OfImage() }

func (f *Facts) pushThere(ref string) string {
	if versions := f.Source.Spec.SemVer; versions != "" {
		return "tag the commit with a higher version in " + plain(versions, 100) + ", or let the source follow another ref"
	}
	if branch, ok := f.Source.Ref.Branch(); ok && f.Source.Spec.Commit == "" && isName(strings.NewReplacer("/", "", "_", "").Replace(branch)) {
		return fmt.Sprintf("bring the commit there (git push origin %s:%s, or merge it), or let the source follow another ref", short(f.Commit), branch)
	}
	return "bring the commit to " + ref + ", or let the source follow another ref"
}

// notPackaged is about a commit of which there is no artifact yet.
func (f *Facts) notPackaged(young bool) *tidelock.Verdict {
	e := tidelock.Evidence{Where: "packaging at " + short(f.Commit), What: "nothing was made yet", At: f.Now}
	if b := f.Build; b != nil {
		e.What, e.At = fmt.Sprintf("application %s is %s", b.Application, b.State), b.CreatedAt
	}
	if young {
		return waiting("the commit is being packaged", e)
	}
	return unknown("the commit was not packaged: no head of a branch or release is at it, or its packaging is late", e)
}

func agentOffline(f *Facts) *tidelock.Verdict {
	if f.Away.IsZero() {
		return nil
	}
	if f.age(f.Away) < offlineAfter {
		return waiting("agent "+f.AgentName+" is not connected at the moment", tidelock.Evidence{Where: "agent " + f.AgentName, What: "last seen " + stamp(f.Away), At: f.Away})
	}
	v := tidelock.Verdict{
		Code: tidelock.CauseAgentOffline, Object: tidelock.ObjectID(f.Source.Source),
		Sentence: fmt.Sprintf("agent %s has not been connected since %s (%s ago)", f.AgentName, stamp(f.Away), took(f.age(f.Away))),
		Next:     "look at the agent in its cluster (kubectl -n tidelock-agent get pods, and its log), and at the network from there to the forge",
		Evidence: []tidelock.Evidence{{Where: "agent " + f.AgentName, What: "last seen " + stamp(f.Away), At: f.Away}},
		Since:    f.Away,
	}
	if f.AwayWhy != "" {
		v.Evidence = append(v.Evidence, tidelock.Evidence{Where: "its last connection", What: "ended: " + f.AwayWhy, At: f.Away})
	}
	return &v
}

func held(f *Facts) *tidelock.Verdict {
	if f.Source.State != tidelock.Held || f.Fetched.has() {
		return nil
	}
	return &tidelock.Verdict{
		Code:     tidelock.CauseHeld,
		Sentence: "the artifact is held back by a rule of its project: it " + quote(f.Source.Message),
		Next:     "attach the report to the artifact, or remove the rule: tidelock artifact rule list " + f.Project,
		Evidence: []tidelock.Evidence{{Where: string(f.Source.Source), What: f.Source.Message, At: f.Source.Since}},
		Since:    f.Source.Since,
	}
}

func sourceSuspended(f *Facts) *tidelock.Verdict {
	seen := f.Fetch != nil && f.Fetch.Suspended
	if !f.Source.Suspended && !seen || f.Fetched.has() {
		return nil
	}
	e := tidelock.Evidence{Where: string(f.Source.Source) + " spec.suspend", What: "true", At: f.Source.UpdatedAt}
	if seen {
		e.At = f.Fetch.UpdatedAt
	}
	return &tidelock.Verdict{
		Code: tidelock.CauseSourceSuspended, Object: tidelock.ObjectID(f.Source.Source),
		Sentence: string(f.Source.Source) + " is suspended",
		Next:     run("resume it", flux("resume", tidelock.ObjectID(f.Source.Source))),
		Evidence: []tidelock.Evidence{e},
	}
}

// sourceNext says what to do about each failure of a source.
var sourceNext = map[tidelock.CauseCode]struct{ says, next string }{
	tidelock.CauseCredentialRefused: {"may not fetch: its credential is refused or missing",
		"make a deploy token with read_repository (read_registry for artifacts) and put it into the Secret that the source names"},
	tidelock.CauseTLS: {"does not trust the forge's certificate, or cannot agree on TLS",
		"put the authority of the forge's certificate into the Secret of the source as ca.crt"},
	tidelock.CauseSourceUnreachable: {"cannot reach the forge",
		"look at DNS and the network between source-controller and the forge"},
	tidelock.CauseVerifyFailed: {"refuses the revision: its signature cannot be verified",
		"sign it with a key that the source trusts, or correct spec.verify and its Secret"},
	tidelock.CauseSourceFailed: {"cannot be fetched", "read the message, and correct the source or what it names"},
}

// failing is how a source fails; "" when it does not.
func (f *Facts) failing() (code tidelock.CauseCode, message string, e tidelock.Evidence) {
	reason := ""
	switch o := f.Fetch; {
	case o != nil && o.State.Failed(),
		o != nil && o.State == tidelock.ObservedBlocked && f.age(o.Since) > fresh: // what it includes is not there
		reason, message, e = o.Reason, o.Message, conditions(o)
	case f.Announcement != nil && f.Announcement.State == tidelock.Failed && f.Announcement.Message != "":
		message = f.Announcement.Message
		e = tidelock.Evidence{Where: string(f.Source.Source), What: message, At: f.Announcement.HandledAt}
	default:
		return "", "", e
	}
	code, ok := classify(sourceSigns, reason, message)
	if !ok {
		code = tidelock.CauseSourceFailed
	}
	return code, message, e
}

func sourceFailed(f *Facts) *tidelock.Verdict {
	if f.Fetched.has() {
		return nil
	}
	code, message, e := f.failing()
	if code == "" {
		return nil
	}
	prose := sourceNext[code]
	v := &tidelock.Verdict{
		Code: code, Object: tidelock.ObjectID(f.Source.Source),
		Sentence: fmt.Sprintf("%s %s: %s", f.Source.Source, prose.says, quote(message)),
		Next:     prose.next,
		Evidence: []tidelock.Evidence{e},
	}
	if f.Fetch != nil {
		v.Since = f.Fetch.Since
	}
	return v
}

// notTriggered is about sources that are well and do not have the commit.
func notTriggered(f *Facts) *tidelock.Verdict {
	if f.Fetched.has() || sourceSuspended(f) != nil {
		return nil
	}
	id := tidelock.ObjectID(f.Source.Source)
	if o := f.Fetch; o != nil && o.State == tidelock.ObservedUnknown && f.age(o.Since) > unhandledAfter {
		return controllerDown(id, "has not looked at it", conditions(o))
	}
	a := f.Announcement
	if a == nil {
		e := tidelock.Evidence{Where: string(id), What: "nothing was announced to it", At: f.Source.Since}
		if f.age(f.PushedAt) < fresh || f.age(f.Source.Since) < fresh {
			return waiting("the commit is about to be announced to "+string(id), e)
		}
		return unknown("the commit was not announced to "+string(id), e)
	}
	e := tidelock.Evidence{Where: fmt.Sprintf("announcement %d to %s", a.Number, id), What: "state: " + string(a.State), At: a.AnnouncedAt}
	if a.Message != "" {
		e.What += ": " + a.Message
	}
	switch {
	case a.State == tidelock.Sent && f.age(a.SentAt) < unhandledAfter:
		return waiting("the commit is announced to "+string(id), e)
	case a.State == tidelock.Sent:
		return unknown("the agent has not confirmed that it was told of the commit", e)
	case a.AnsweredAt.IsZero() && a.Message != "" && f.age(a.AnnouncedAt) >= fresh:
		return f.notAsked(*a, e)
	case a.AnsweredAt.IsZero() && f.age(a.AnnouncedAt) < unhandledAfter:
		return waiting("Flux is being asked to fetch "+string(id), e)
	case a.AnsweredAt.IsZero():
		return f.notAsked(*a, e)
	case a.HandledAt.IsZero() && f.age(a.AnsweredAt) < unhandledAfter:
		return waiting("Flux was asked to fetch "+string(id), e)
	case a.HandledAt.IsZero():
		e.What = fmt.Sprintf("asked at %s by %s, %d times, and not handled", stamp(a.AnsweredAt), a.Via, a.Attempts)
		return controllerDown(id, "has not acted on the request to fetch it for "+took(f.age(a.AnsweredAt)), e)
	case f.age(a.HandledAt) < unhandledAfter:
		return waiting("Flux is fetching "+string(id), e)
	}
	return unknown("Flux acted on the request to fetch "+string(id)+" and does not have the commit; it says nothing of a failure", e)
}

// notAsked is about a source of which Flux could not be told.
func (f *Facts) notAsked(a tidelock.Announcement, e tidelock.Evidence) *tidelock.Verdict {
	id := tidelock.ObjectID(f.Source.Source)
	v := &tidelock.Verdict{
		Code: tidelock.CauseIntervalNotReached, Object: id,
		Sentence: fmt.Sprintf("nothing could tell Flux to fetch %s; it looks by itself", id),
		Next: run("let the agent patch sources (the ClusterRole of tidelock agent manifest), or look now",
			flux("reconcile", id)),
		Evidence: []tidelock.Evidence{e}, Since: a.AnnouncedAt,
	}
	if f.Fetch != nil && f.Fetch.Interval > 0 {
		v.Sentence += fmt.Sprintf(" every %s", f.Fetch.Interval)
		v.Evidence = append(v.Evidence, field(f.Fetch, "spec.interval", f.Fetch.Interval.String()))
	}
	if strings.Contains(a.Message, "receiver did not take the call") {
		v.Code = tidelock.CauseReceiverDown
		v.Sentence = fmt.Sprintf("the webhook receiver of Flux does not answer, and nothing else could tell it to fetch %s", id)
		v.Next = "look at notification-controller, at flux.webhook_receiver_url in the agent's configuration, and at the agent's right to patch sources"
	}
	return v
}

// controllers are the parts of Flux that look after each kind.
var controllers = map[tidelock.ObjectKind]string{
	tidelock.Kustomization: "kustomize-controller",
	tidelock.HelmRelease:   "helm-controller",
}

func controllerOf(id tidelock.ObjectID) string {
	kind, _, _ := id.Split()
	if name := controllers[kind]; name != "" {
		return name
	}
	return "source-controller"
}

// controllerDown blames a controller that does not act. Each caller has waited
// long enough for one that is busy.
func controllerDown(id tidelock.ObjectID, what string, evidence ...tidelock.Evidence) *tidelock.Verdict {
	name := controllerOf(id)
	return &tidelock.Verdict{
		Code: tidelock.CauseControllerDown, Object: id,
		Sentence: fmt.Sprintf("%s does not act on %s: it %s", name, id, what),
		Next:     "look at the controller: kubectl -n flux-system get deployment " + name + ", and its log",
		Evidence: evidence,
	}
}

func waiting(sentence string, evidence ...tidelock.Evidence) *tidelock.Verdict {
	return &tidelock.Verdict{Code: tidelock.CauseWaiting, Sentence: sentence, Evidence: evidence}
}

func unknown(sentence string, evidence ...tidelock.Evidence) *tidelock.Verdict {
	return &tidelock.Verdict{Code: tidelock.CauseUnknown, Sentence: sentence, Evidence: evidence}
}
