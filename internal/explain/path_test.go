package explain

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
)

// Where a commit can be on its way, and what is said of each.
func TestPath(t *testing.T) {
	t.Parallel()
	type change func(*Facts)
	nothing := func(*Facts) {}
	young := func(f *Facts) {
		at := ago(2 * time.Second)
		f.PushedAt, f.Source.UpdatedAt, f.Source.Since, f.Fetch.UpdatedAt = at, at, at, at
		a := f.Announcement
		a.SentAt, a.AnnouncedAt, a.CalledAt, a.AnsweredAt, a.HandledAt = at, at, at, at, at
		if !a.FetchedAt.IsZero() {
			a.FetchedAt = at
		}
	}
	artifact := func(f *Facts) {
		f.Source.Source = "OCIRepository/flux-system/site"
		f.Source.Ref, f.Source.Wanted, f.Head = "refs/tags/latest", older, Before
		f.Fetch.Object = "OCIRepository/flux-system/site"
	}
	for _, c := range []struct {
		name  string
		facts Facts
		with  change
		want  tidelock.CauseCode
		says  string
	}{
		{"live", applied(), nothing, tidelock.CauseNone, "all 4 objects are healthy"},
		{"live, health not seen", applied(), func(f *Facts) { f.Applier.Health = tidelock.HealthUnknown }, tidelock.CauseNone, ""},
		{"live, reconciled again", applied(), func(f *Facts) { f.Applier.State = tidelock.ObservedProgressing }, tidelock.CauseNone, ""},
		{"live, source suspended since", applied(), func(f *Facts) { f.Source.Suspended, f.Fetch.Suspended = true, true }, tidelock.CauseNone, ""},
		{"live, applier suspended since", applied(), func(f *Facts) { f.Applier.Suspended = true }, tidelock.CauseNone, ""},
		{"live, agent gone since", applied(), func(f *Facts) { f.Away = ago(time.Hour) }, tidelock.CauseNone, "not connected since"},
		{"live in a later one", applied(), func(f *Facts) {
			f.Head, f.Fetched, f.Applied, f.Attempted = Contains, Contains, Contains, Contains
			f.Applier.Revision = newerRevision
		}, tidelock.CauseOlder, newerRevision},
		{"live, a later one is rejected", applied(), func(f *Facts) {
			f.Head, f.Fetched, f.Attempted, f.Other, f.Newer = Contains, Contains, Contains, true, true
			f.Applier.State, f.Applier.Reason, f.Applier.Message = tidelock.ObservedFailed, "ReconciliationFailed", "field is immutable"
		}, tidelock.CauseNone, ""},
		{"live, a later one lacks the path", applied(), func(f *Facts) {
			f.Head, f.Fetched, f.Newer = Contains, Contains, true
			f.Applier.State, f.Applier.Reason, f.Applier.Message = tidelock.ObservedFailed, "ArtifactFailed", "kustomization path not found"
		}, tidelock.CauseNone, ""},
		{"applied, and now it fails", applied(), func(f *Facts) {
			f.Applier.State, f.Applier.Reason, f.Applier.Message = tidelock.ObservedFailed, "ReconciliationFailed", "is forbidden: User \"x\" cannot patch resource \"y\""
		}, tidelock.CauseForbidden, ""},
		{"keeps the version of its chart", applied(), func(f *Facts) {
			f.Applier.Object, f.Applier.Chart, f.Kept = "HelmRelease/shop/web", "./charts/web", "it is still version 1.0.0"
		}, tidelock.CauseChartVersionKept, "still version 1.0.0"},
		{"changes nothing there", applied(), func(f *Facts) { f.Untouched = true }, tidelock.CausePathNotTouched, "./deploy"},

		{"not pushed", pushed(), func(f *Facts) { f.Missing = true }, tidelock.CauseCommitUnknown, "1a2b3c4d"},
		{"no source", pushed(), func(f *Facts) { f.Source = tidelock.AgentSource{} }, tidelock.CauseNoSource, "team/site"},
		{"not granted", pushed(), func(f *Facts) {
			f.Source = tidelock.AgentSource{Source: tidelock.SourceID(site), State: tidelock.NotServed}
		}, tidelock.CauseNotServed, "tidelock agent grant ops/infra/prod team/site"},
		{"not granted, agent hidden", pushed(), func(f *Facts) {
			f.Source, f.AgentName, f.AgentPath = tidelock.AgentSource{State: tidelock.NotServed}, "", ""
		}, tidelock.CauseNotServed, "an agent of another project"},

		{"on another branch", pushed(), func(f *Facts) {
			f.Head, f.Refs, f.Source.Wanted = Apart, []tidelock.RefName{"refs/heads/feature"}, newer
		}, tidelock.CauseNotOnWatchedRef, "on branch feature"},
		{"ahead of the branch", pushed(), func(f *Facts) {
			f.Head, f.Refs, f.Source.Wanted = Before, []tidelock.RefName{"refs/heads/feature", "refs/tags/v1"}, older
		}, tidelock.CauseNotOnWatchedRef, "branch feature, tag v1"},
		{"an include is missing", pushed(), func(f *Facts) {
			f.Fetch.State, f.Fetch.Reason, f.Fetch.Message = tidelock.ObservedBlocked, "NotFound", "could not get resource for include 'elsewhere'"
		}, tidelock.CauseSourceFailed, "elsewhere"},
		{"the ref is not there", pushed(), func(f *Facts) {
			f.Head, f.Source.Wanted, f.Source.State, f.Source.Ref, f.Source.Message = None, "", tidelock.Unresolved, "refs/heads/prod", "refs/heads/prod does not exist"
		}, tidelock.CauseNotOnWatchedRef, "refs/heads/prod does not exist"},
		{"pushed just now elsewhere", pushed(), func(f *Facts) { young(f); f.Head = Before }, tidelock.CauseWaiting, "just now"},
		{"the branch was reset", pushed(), func(f *Facts) { f.Head, f.WasHead, f.Source.Wanted = Apart, true, newer }, tidelock.CauseSuperseded, "ffffffff"},
		{"nothing known of the head", pushed(), func(f *Facts) { f.Head, f.Source.Wanted = None, "" }, tidelock.CauseUnknown, ""},

		{"packaging failed", pushed(), func(f *Facts) {
			artifact(f)
			f.Build = &tidelock.Build{Application: "shop", Commit: commit, State: tidelock.StatusFailed, CreatedAt: ago(time.Minute), Findings: []tidelock.Finding{
				{Check: "schema", Path: "shop/ns.yaml", Message: "deprecated", Warning: true},
				{Check: "yaml", Path: "shop/web.yaml", Line: 3, Message: "did not find expected key"},
			}}
		}, tidelock.CauseBuildFailed, "shop/web.yaml:3: did not find expected key"},
		{"being packaged", pushed(), func(f *Facts) { young(f); artifact(f); f.Packs = true }, tidelock.CauseWaiting, "packaged"},
		{"never packaged", pushed(), func(f *Facts) { artifact(f); f.Packs = true }, tidelock.CauseUnknown, "not packaged"},
		{"packaged for another tag", pushed(), func(f *Facts) {
			artifact(f)
			f.Build = &tidelock.Build{Application: "shop", State: tidelock.StatusSuccess}
		}, tidelock.CauseNotOnWatchedRef, "no artifact of the commit has tag latest"},
		{"an artifact without a commit", pushed(), func(f *Facts) { artifact(f); f.Source.Wanted, f.Head = "", None }, tidelock.CauseUnknown, "does not say"},
		{"held", pushed(), func(f *Facts) {
			artifact(f)
			f.Source.Wanted, f.Head, f.Source.State, f.Source.Message = commit, Same, tidelock.Held, "waits for a report of type application/sarif+json"
		}, tidelock.CauseHeld, "application/sarif+json"},

		{"agent offline", pushed(), func(f *Facts) { f.Away, f.AwayWhy = ago(time.Hour), "no heartbeat" }, tidelock.CauseAgentOffline, "no heartbeat"},
		{"agent reconnecting", pushed(), func(f *Facts) { f.Away = ago(5 * time.Second) }, tidelock.CauseWaiting, "not connected at the moment"},
		{"source suspended", pushed(), func(f *Facts) { f.Fetch.Suspended = true }, tidelock.CauseSourceSuspended, "flux resume source git site -n flux-system"},
		{"source suspended, not observed", pushed(), func(f *Facts) { f.Source.Suspended, f.Fetch = true, nil }, tidelock.CauseSourceSuspended, ""},

		{"announced just now", pushed(), func(f *Facts) { young(f); f.Announcement.State = tidelock.Sent }, tidelock.CauseWaiting, "announced"},
		{"about to be announced", pushed(), func(f *Facts) { young(f); f.Announcement = nil }, tidelock.CauseWaiting, "about to be announced"},
		{"never announced", pushed(), func(f *Facts) { f.Announcement = nil }, tidelock.CauseUnknown, "not announced"},
		{"not confirmed", pushed(), func(f *Facts) { f.Announcement.State = tidelock.Sent }, tidelock.CauseUnknown, "not confirmed"},
		{"triggered just now", pushed(), func(f *Facts) { young(f); f.Announcement.HandledAt = time.Time{} }, tidelock.CauseWaiting, "asked to fetch"},
		{"being fetched", pushed(), young, tidelock.CauseWaiting, "is fetching"},
		{"receiver down", pushed(), func(f *Facts) {
			a := f.Announcement
			a.State, a.AnsweredAt, a.HandledAt = tidelock.Delivered, time.Time{}, time.Time{}
			a.Message = "the webhook receiver did not take the call (503 Service Unavailable), and the source could not be annotated: forbidden"
		}, tidelock.CauseReceiverDown, "503"},
		{"nothing can trigger", pushed(), func(f *Facts) {
			a := f.Announcement
			a.State, a.AnsweredAt, a.HandledAt = tidelock.Delivered, time.Time{}, time.Time{}
			a.Message = `gitrepositories "site" is forbidden`
		}, tidelock.CauseIntervalNotReached, "1h0m0s"},
		{"source-controller down", pushed(), func(f *Facts) { f.Announcement.HandledAt = time.Time{} }, tidelock.CauseControllerDown, "source-controller"},
		{"source-controller never looked", pushed(), func(f *Facts) { f.Fetch.State = tidelock.ObservedUnknown }, tidelock.CauseControllerDown, "source-controller"},
		{"handled, and still old", pushed(), nothing, tidelock.CauseUnknown, "says nothing of a failure"},

		{"failed as the agent tells", pushed(), func(f *Facts) {
			f.Fetch.State = tidelock.ObservedProgressing
			f.Announcement.State, f.Announcement.Message = tidelock.Failed, "NotFound: could not get resource for include 'elsewhere'"
		}, tidelock.CauseSourceFailed, "include 'elsewhere'"},
		{"not in the range of versions", pushed(), func(f *Facts) {
			f.Head, f.Source.Ref, f.Source.Spec.SemVer = Before, "refs/tags/v1.0.0", "1.x"
		}, tidelock.CauseNotOnWatchedRef, "the highest version in 1.x, now tag v1.0.0"},

		{"no applier", fetched(), func(f *Facts) { f.Applier = nil }, tidelock.CauseNoApplier, "nothing applies"},
		{"an old agent", fetched(), func(f *Facts) { f.Applier, f.Fetch = nil, nil }, tidelock.CauseUnknown, "does not tell"},
		{"applier suspended", fetched(), func(f *Facts) { f.Applier.Suspended = true }, tidelock.CauseApplierSuspended, "flux resume kustomization apps -n flux-system"},
		{"about to be applied", fetched(), young, tidelock.CauseWaiting, "about to be applied"},
		{"kustomize-controller down", fetched(), nothing, tidelock.CauseControllerDown, "kustomize-controller"},
		{"kustomize-controller busy", fetched(), func(f *Facts) {
			f.Acted = map[tidelock.ObjectKind]time.Time{tidelock.Kustomization: ago(time.Second)}
		}, tidelock.CauseWaiting, "about to be applied"},
		{"helm-controller down", fetched(), func(f *Facts) { f.Applier.Object = web }, tidelock.CauseControllerDown, "helm-controller"},
		{"being applied", fetched(), func(f *Facts) {
			f.Attempted, f.Applier.Attempted, f.Applier.State, f.Applier.Since = Same, revision, tidelock.ObservedProgressing, ago(time.Second)
		}, tidelock.CauseWaiting, "is being applied"},
		{"failed with an earlier one", fetched(), func(f *Facts) {
			young(f)
			f.Applier.State, f.Applier.Reason, f.Applier.Message = tidelock.ObservedFailed, "BuildFailed", "yaml: line 3: x"
		}, tidelock.CauseWaiting, ""},
		{"path missing in an earlier one", fetched(), func(f *Facts) {
			young(f)
			f.Applier.State, f.Applier.Reason, f.Applier.Message = tidelock.ObservedFailed, "ArtifactFailed", "kustomization path not found"
		}, tidelock.CauseWaiting, ""},
		{"path missing", fetched(), func(f *Facts) {
			f.Applier.State, f.Applier.Reason, f.Applier.Message = tidelock.ObservedFailed, "ArtifactFailed", "kustomization path not found"
		}, tidelock.CausePathNotFound, ""},
		{"a later one fails", failed("ReconciliationFailed", "field is immutable"), func(f *Facts) {
			f.Head, f.Fetched, f.Attempted, f.Applier.Attempted = Contains, Contains, Contains, newerRevision
		}, tidelock.CauseImmutableField, "a later commit that contains it"},
		{"tried again after a failure", failed("", ""), func(f *Facts) {
			f.Applier.State, f.Applier.Reason, f.Applier.Message = tidelock.ObservedProgressing, "Progressing", "Building manifests"
			f.Applier.Outcomes = []tidelock.Outcome{{Revision: revision, Reason: "BuildFailed", Message: "/tmp/kustomization-1/a.yaml: yaml: line 3: x", FailedAt: ago(time.Second)}}
		}, tidelock.CauseBuildFailed, "a.yaml:3"},
		{"broken file known from the repository", failed("BuildFailed", "kustomize build failed: MalformedYAMLError"), func(f *Facts) {
			f.Broken = []tidelock.Finding{{Path: "deploy/web.yaml", Line: 9, Message: "could not find expected ':'"}}
		}, tidelock.CauseBuildFailed, "deploy/web.yaml:9"},
		{"stalled by configuration", failed("InvalidCELExpression", "Reconciliation failed terminally due to configuration error: bad"), func(f *Facts) {
			f.Applier.State, f.Attempted = tidelock.ObservedStalled, Before
		}, tidelock.CauseApplyFailed, "terminally"},
		{"source waits for good", fetched(), func(f *Facts) {
			f.Applier.State, f.Applier.Reason, f.Applier.Message, f.Applier.Since = tidelock.ObservedBlocked, "ArtifactFailed", "Source artifact not found", ago(time.Second)
		}, tidelock.CauseWaiting, "waits for its source"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.with(&c.facts)
			check(t, c.facts, c.want, c.says)
		})
	}
}

// Of two faults the one that a commit meets first is named, and the other
// is not kept quiet.
func TestDoubleFaults(t *testing.T) {
	t.Parallel()
	also := func(v tidelock.Verdict, code tidelock.CauseCode) {
		t.Helper()
		if !slices.ContainsFunc(v.Also, func(o tidelock.Verdict) bool { return o.Code == code }) {
			t.Errorf("%s is not in Also of %s: %v", code, v.Code, v.Also)
		}
	}
	f := pushed()
	f.Fetch.Suspended, f.Applier.Suspended = true, true
	also(check(t, f, tidelock.CauseSourceSuspended, ""), tidelock.CauseApplierSuspended)

	f = pushed()
	f.Away, f.Source.Suspended = ago(time.Hour), true
	also(check(t, f, tidelock.CauseAgentOffline, ""), tidelock.CauseSourceSuspended)

	f = pushed()
	f.Fetch.State, f.Fetch.Reason, f.Fetch.Message = tidelock.ObservedFailed, "GitOperationFailed", "authentication required"
	f.Applier.Suspended = true
	also(check(t, f, tidelock.CauseCredentialRefused, ""), tidelock.CauseApplierSuspended)

	f = pushed()
	f.Source.Suspended, f.Announcement.State, f.Announcement.AnsweredAt = true, tidelock.Parked, time.Time{}
	f.Applier.State, f.Applier.Reason, f.Applier.Message = tidelock.ObservedFailed, "ArtifactFailed", "kustomization path not found: stat /tmp/x/deplyo"
	v := check(t, f, tidelock.CauseSourceSuspended, "")
	also(v, tidelock.CausePathNotFound)
	if len(v.Also) != 1 {
		t.Errorf("of a source that is suspended, Also is %v", v.Also)
	}

	f = pushed()
	f.Fetch.State, f.Fetch.Reason, f.Fetch.Message = tidelock.ObservedFailed, "GitOperationFailed", "authentication required"
	f.Applier.State, f.Applier.Reason, f.Applier.DependsOn = tidelock.ObservedBlocked, "DependencyNotReady", []tidelock.ObjectID{infra}
	f.Applier.Message = "dependency 'flux-system/infra' not found"
	also(check(t, f, tidelock.CauseCredentialRefused, ""), tidelock.CauseDependencyNotReady)

	f = pushed()
	f.Head, f.Source.Suspended = Before, true
	also(check(t, f, tidelock.CauseNotOnWatchedRef, ""), tidelock.CauseSourceSuspended)

	f = pushed()
	f.Build, f.Source.Suspended, f.Away = &tidelock.Build{State: tidelock.StatusFailed, Application: "web"}, true, ago(time.Hour)
	v = check(t, f, tidelock.CauseBuildFailed, "")
	also(v, tidelock.CauseSourceSuspended)
	also(v, tidelock.CauseAgentOffline)

	f = pushed()
	f.Head, f.Fetch.Suspended = Apart, true
	also(check(t, f, tidelock.CauseNotOnWatchedRef, ""), tidelock.CauseSourceSuspended)

	f = pushed()
	f.Source.Source, f.Source.Suspended, f.Fetch = "OCIRepository/flux-system/site", true, nil
	f.Build = &tidelock.Build{Application: "shop", State: tidelock.StatusFailed, CreatedAt: ago(time.Minute)}
	also(check(t, f, tidelock.CauseBuildFailed, "shop"), tidelock.CauseSourceSuspended)

	f = pushed()
	f.Fetch.Suspended = true
	f.Applier = blockedBy(apps, infra, time.Hour)
	also(check(t, f, tidelock.CauseSourceSuspended, ""), tidelock.CauseDependencyNotReady)

	f = failed("ArtifactFailed", "kustomization path not found: stat /tmp/x")
	f.Fetched, f.Attempted, f.Fetch.Suspended, f.Mended = Before, Before, true, true
	if v := check(t, f, tidelock.CauseSourceSuspended, ""); len(v.Also) > 0 {
		t.Errorf("the commit brings the path that was missing, and Also is %v", v.Also)
	}

	f = failed("BuildFailed", "kustomize build failed")
	f.Applier.Suspended = true
	check(t, f, tidelock.CauseApplierSuspended, "")

	f = pushed()
	f.Fetch.Suspended, f.Applier = true, nil
	also(check(t, f, tidelock.CauseSourceSuspended, ""), tidelock.CauseNoApplier)

	f = failed("ReconciliationFailed", "exceeded quota: q")
	f.Away = ago(time.Hour)
	also(check(t, f, tidelock.CauseAgentOffline, ""), tidelock.CauseQuota)
}

// blockedBy is an applier that waits for another.
func blockedBy(id, on tidelock.ObjectID, since time.Duration) *tidelock.Observation {
	_, namespace, name := on.Split()
	return &tidelock.Observation{
		Object: id, State: tidelock.ObservedBlocked, Reason: "DependencyNotReady",
		Message: "dependency '" + namespace + "/" + name + "' is not ready", DependsOn: []tidelock.ObjectID{on}, Since: ago(since), UpdatedAt: ago(since),
	}
}

func TestDependencies(t *testing.T) {
	t.Parallel()
	waits := func(others ...*tidelock.Observation) Facts {
		f := fetched()
		was := f.Applier
		f.Applier = blockedBy(apps, infra, 2*time.Minute)
		f.Applier.Revision, f.Applier.Attempted = was.Revision, was.Attempted
		f.Others = map[tidelock.ObjectID]*tidelock.Observation{apps: f.Applier}
		for _, o := range others {
			f.Others[o.Object] = o
		}
		return f
	}
	state := func(id tidelock.ObjectID, state tidelock.ObservedState, reason, message string) *tidelock.Observation {
		return &tidelock.Observation{Object: id, State: state, Reason: reason, Message: message, Since: ago(time.Minute), UpdatedAt: ago(time.Minute)}
	}
	missing := blockedBy(apps, infra, time.Minute)
	missing.Message = `dependency 'flux-system/infra' not found: kustomizations.kustomize.toolkit.fluxcd.io "infra" not found`
	suspendedInfra := state(infra, tidelock.ObservedFailed, "", "")
	suspendedInfra.Suspended = true
	sick := state(infra, tidelock.ObservedProgressing, "Progressing", "Running health checks")
	sick.Health = tidelock.HealthProgressing
	sick.Unhealthy = []tidelock.ObjectHealth{{Kind: "apps/Deployment", Namespace: "a", Name: "b", Reason: "ImagePullBackOff", Health: tidelock.HealthProgressing}}
	helm := fetched()
	helm.Applier = blockedBy(web, "HelmRelease/shop/db", 2*time.Minute)
	helm.Applier.Message = "unable to get 'shop/db' dependency: helmreleases.helm.toolkit.fluxcd.io \"db\" not found"

	for _, c := range []struct {
		name  string
		facts Facts
		want  tidelock.CauseCode
		says  string
		root  tidelock.CauseCode // in Also
	}{
		{"it failed", waits(state(infra, tidelock.ObservedFailed, "BuildFailed", "/tmp/kustomization-9/infra/x.yaml: yaml: line 4: bad")), tidelock.CauseDependencyNotReady, "infra/x.yaml:4", tidelock.CauseBuildFailed},
		{"it is suspended", waits(suspendedInfra), tidelock.CauseDependencyNotReady, "flux resume kustomization infra", tidelock.CauseApplierSuspended},
		{"it is sick", waits(sick), tidelock.CauseDependencyNotReady, "apps/Deployment a/b", tidelock.CauseImagePull},
		{"a chain", waits(blockedBy(infra, dns, time.Minute), state(dns, tidelock.ObservedFailed, "ReconciliationFailed", `no matches for kind "A" in version "b/v1"`)), tidelock.CauseDependencyNotReady, "waits for Kustomization/flux-system/infra, which waits for Kustomization/flux-system/dns", tidelock.CauseCRDMissing},
		{"a circle", waits(blockedBy(infra, apps, time.Minute)), tidelock.CauseDependencyNotReady, "circle", ""},
		{"of itself", func() Facts {
			f := waits()
			f.Applier = blockedBy(apps, apps, time.Minute)
			f.Others[apps] = f.Applier
			return f
		}(), tidelock.CauseDependencyNotReady, "circle", ""},
		{"it does not exist", func() Facts { f := waits(); f.Applier = missing; return f }(), tidelock.CauseDependencyNotReady, "Kustomization/flux-system/infra does not exist", ""},
		{"of a HelmRelease", helm, tidelock.CauseDependencyNotReady, "HelmRelease/shop/db does not exist", ""},
		{"it is not to be seen", waits(), tidelock.CauseDependencyNotReady, "nothing more is known of Kustomization/flux-system/infra", ""},
		{"it is on its way", waits(state(infra, tidelock.ObservedProgressing, "Progressing", "")), tidelock.CauseWaiting, "waits for Kustomization/flux-system/infra", ""},
		{"it was ready just now", waits(state(infra, tidelock.ObservedReady, "", "")), tidelock.CauseWaiting, "waits for", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := check(t, c.facts, c.want, c.says)
			if c.root != "" && (len(v.Also) != 1 || v.Also[0].Code != c.root) {
				t.Errorf("the root %s is not in Also: %v", c.root, v.Also)
			}
		})
	}

	f := waits()
	f.Applier.Since = ago(2 * time.Second)
	check(t, f, tidelock.CauseWaiting, "") // nothing is known of it, and it has not lasted
}

func TestSum(t *testing.T) {
	t.Parallel()
	v := func(code tidelock.CauseCode, object tidelock.ObjectID, also ...tidelock.Verdict) tidelock.Verdict {
		return tidelock.Verdict{
			Environment: "production", Object: object, Code: code, Sentence: string(code), Also: also,
			Evidence: []tidelock.Evidence{{Where: string(object), What: string(code)}},
		}
	}
	elsewhere := v(tidelock.CauseNotOnWatchedRef, "GitRepository/a/other")
	elsewhere.Environment = "review"
	dependent := v(tidelock.CauseDependencyNotReady, apps, v(tidelock.CauseImagePull, infra))
	for _, c := range []struct {
		name   string
		places []tidelock.Verdict
		asked  bool
		want   string // code of each environment, and after : those of Also
	}{
		{"none", nil, false, ""},
		{"all live", []tidelock.Verdict{v(tidelock.CauseNone, apps), v(tidelock.CauseNone, infra)}, false, "live"},
		{"one is older", []tidelock.Verdict{v(tidelock.CauseNone, apps), v(tidelock.CauseOlder, infra)}, false, "live_in_descendant"},
		{"one waits", []tidelock.Verdict{v(tidelock.CauseNone, apps), v(tidelock.CauseWaiting, infra)}, false, "waiting"},
		{"one is unknown", []tidelock.Verdict{v(tidelock.CauseWaiting, apps), v(tidelock.CauseUnknown, infra)}, false, "unknown"},
		{"one is blocked", []tidelock.Verdict{v(tidelock.CauseUnknown, apps), v(tidelock.CauseImagePull, infra)}, false, "image_pull"},
		{"the first on the path", []tidelock.Verdict{v(tidelock.CauseImagePull, apps), v(tidelock.CauseSourceSuspended, infra)}, false, "source_suspended:image_pull"},
		{"the root, not who waits", []tidelock.Verdict{dependent, v(tidelock.CauseImagePull, infra)}, false, "image_pull:dependency_not_ready"},
		{"who waits, when it stands alone", []tidelock.Verdict{dependent, v(tidelock.CauseNone, dns)}, false, "dependency_not_ready:image_pull"},
		{"another branch", []tidelock.Verdict{v(tidelock.CauseNone, apps), elsewhere}, false, "live"},
		{"another branch, asked for", []tidelock.Verdict{elsewhere}, true, "not_on_watched_ref"},
		{"another branch, alone", []tidelock.Verdict{elsewhere}, false, "not_on_watched_ref"},
		{"changes one of two", []tidelock.Verdict{v(tidelock.CausePathNotTouched, apps), v(tidelock.CauseNone, infra)}, false, "live"},
		{"changes none", []tidelock.Verdict{v(tidelock.CausePathNotTouched, apps), v(tidelock.CausePathNotTouched, infra)}, false, "path_not_in_applier"},
		{"the same twice", []tidelock.Verdict{v(tidelock.CauseTLS, site), v(tidelock.CauseTLS, site)}, false, "tls"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []string
			for _, s := range Sum(c.places, c.asked) {
				word := string(s.Code)
				for i, o := range s.Also {
					word += map[bool]string{true: ":", false: ","}[i == 0] + string(o.Code)
				}
				got = append(got, word)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %q, want %q", strings.Join(got, " "), c.want)
			}
		})
	}
	end := v(tidelock.CauseDependencyNotReady, "Kustomization/a/z")
	end.Evidence = append(end.Evidence, end.Evidence...)
	if got := Sum([]tidelock.Verdict{v(tidelock.CauseDependencyNotReady, apps), end}, false); len(got) != 1 || got[0].Object != end.Object {
		t.Errorf("the end of the chain does not tell of it: %v", got)
	}
	if got := Sum([]tidelock.Verdict{v(tidelock.CauseNone, apps), {Environment: "a", Code: tidelock.CauseWaiting}}, false); len(got) != 2 || got[0].Environment != "a" {
		t.Errorf("environments are not apart, in order: %v", got)
	}
}

// Whatever others write, an answer is short, printable and has evidence.
func TestHostileMessages(t *testing.T) {
	t.Parallel()
	for _, message := range []string{
		strings.Repeat("x", 1<<20),
		strings.Repeat("authentication required\n", 50_000),
		"\x1b]0;title\x07\x1b[31mred\x1b[0m field is immutable \x00\x01\x02",
		"<script>alert(1)</script> is invalid: <img src=x>: ",
		"\u202ereversed\u2066 is immutable \u200b\ufeff\u2028x",
		"\xff\xfe\xfd is forbidden: User \"\xff\" cannot patch resource \"\xff\" in the namespace \"\xff\"",
		`dependency '../../x' is not ready`, `dependency '` + strings.Repeat("a", 1<<16) + `/b' is not ready`,
		"/tmp/kustomization-1/../../../etc/passwd.yaml: yaml: line 99999999999999999999",
		strings.Repeat("accumulating resources from '", 10_000),
		strings.Repeat("(", 100_000), "\n\n\n", " ",
	} {
		for _, reason := range []string{"BuildFailed", "ReconciliationFailed", "DependencyNotReady", "InstallFailed", message} {
			f := failed(reason, message)
			promises(t, Explain(f))
			f.Applier.State = tidelock.ObservedBlocked
			promises(t, Explain(f))
			f = pushed()
			f.Fetch.State, f.Fetch.Reason, f.Fetch.Message = tidelock.ObservedFailed, reason, message
			f.AgentName, f.AwayWhy, f.Project = message, message, message
			promises(t, Explain(f))
			f.Away = ago(time.Hour)
			promises(t, Explain(f))
			promises(t, Explain(ill(time.Minute, tidelock.HealthFailed, reason, message)))
		}
		CheckYAML("a.yaml", []byte(message))
	}
	f := failed("BuildFailed", "x")
	f.Applier.Object = "Kustomization/$(reboot)/;rm -rf"
	f.Applier.Suspended = true
	if v := Explain(f); strings.Contains(v.Next, "flux") {
		t.Errorf("a command to paste holds a stranger's words: %q", v.Next)
	}
}

// A clock that is off gives patience, not blame.
func TestTimesInTheFuture(t *testing.T) {
	t.Parallel()
	f := fetched()
	ahead := now.Add(10 * time.Minute)
	f.Announcement.FetchedAt, f.Applier.Since, f.Fetch.UpdatedAt, f.PushedAt = ahead, ahead, ahead, ahead
	check(t, f, tidelock.CauseWaiting, "")
	check(t, Facts{Now: now}, tidelock.CauseNoSource, "")
	check(t, Facts{}, tidelock.CauseNoSource, "")
}

func TestCheckYAML(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, content string
		line          int // 0: it can be read
	}{
		{"a.yaml", "a: 1\nb: [1, 2]\n---\nc: {d: e}\n", 0},
		{"a.yaml", "", 0},
		{"a.txt", "a: b: c", 0},
		{"a.yaml", "a: b: c\n", 1},
		{"a.yaml", "a: 1\n---\nb: 2\nc: [1\nd: 2\n", 4},
		{"a.yml", "a:\n\t- b\n", 2},
		{"a.yaml", "a: &x [*x]\n", 0},
	} {
		finding, ok := CheckYAML(c.name, []byte(c.content))
		if ok != (c.line == 0) || finding.Line != c.line {
			t.Errorf("%q: got %v at line %d (%s), want line %d", c.content, ok, finding.Line, finding.Message, c.line)
		}
	}
}

func FuzzExplain(f *testing.F) {
	f.Add("BuildFailed", "yaml: line 3: x in File: a.yaml", "Kustomization/a/b", "failed", uint16(0))
	f.Add("DependencyNotReady", "dependency 'a/b' is not ready", "Kustomization/a/b", "blocked", uint16(1))
	f.Add("GitOperationFailed", "x509: unknown", "HelmRelease/a/b", "stalled", uint16(0x3ff))
	f.Add("", "namespaces \"x\" not found", "x", "ready", uint16(77))
	f.Fuzz(func(t *testing.T, reason, message, object, state string, bits uint16) {
		relation := func(shift int) Relation { return Relation(bits >> shift % 5) }
		facts := failed(reason, message)
		facts.Head, facts.Fetched, facts.Applied, facts.Attempted = relation(0), relation(2), relation(4), relation(6)
		facts.Other, facts.Newer, facts.Untouched = bits&1 != 0, bits&2 != 0, bits&4 != 0
		o := facts.Applier
		o.Object, o.State, o.Suspended = tidelock.ObjectID(object), tidelock.ObservedState(state), bits&0x100 != 0
		o.Unhealthy = []tidelock.ObjectHealth{{Kind: object, Name: object, Reason: reason, Message: message, Health: tidelock.Health(state)}}
		o.Health = tidelock.HealthProgressing
		facts.Others = map[tidelock.ObjectID]*tidelock.Observation{o.Object: o}
		facts.Fetch.State, facts.Fetch.Reason, facts.Fetch.Message = tidelock.ObservedState(state), reason, message
		v := Explain(facts)
		promises(t, v)
		for _, s := range Sum([]tidelock.Verdict{v, v}, bits&8 != 0) {
			promises(t, s)
		}
		CheckYAML("a.yaml", []byte(message))
	})
}

// The page for users has every code.
func TestEveryCodeIsDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/why.md")
	if err != nil {
		t.Fatal(err)
	}
	for code := range order {
		if !strings.Contains(string(page), "| `"+string(code)+"` |") {
			t.Errorf("docs/why.md has no row for %s", code)
		}
	}
}

// TestNamesAreNoSigns: what things are called says nothing of what is the
// matter with them.
func TestNamesAreNoSigns(t *testing.T) {
	source := func(message string) Facts {
		f := pushed()
		f.Fetch.State, f.Fetch.Reason, f.Fetch.Message, f.Fetch.Since = tidelock.ObservedFailed, "GitOperationFailed", message, ago(5*time.Minute)
		return f
	}
	for _, tt := range []struct {
		facts Facts
		want  tidelock.CauseCode
	}{
		{source("failed to checkout and determine revision: unable to clone 'https://forge.example/team/certificate-app': authentication required: Unauthorized"), tidelock.CauseCredentialRefused},
		{source("failed to checkout and determine revision: unable to clone 'https://forge.example/team/forbidden': dial tcp: lookup forge.example: no such host"), tidelock.CauseSourceUnreachable},
		{source("failed to checkout and determine revision: unable to clone 'https://forge.example/team/certificate-app': dial tcp 10.0.0.1:443: i/o timeout"), tidelock.CauseSourceUnreachable},
		{failed("BuildFailed", "kustomize build failed: accumulating resources: accumulation err='accumulating resources from 'secret.sops.yaml': MalformedYAMLError: yaml: line 4: mapping values are not allowed in this context in File: secret.sops.yaml'"), tidelock.CauseBuildFailed},
		{failed("BuildFailed", "kustomize build failed: accumulating resources from './decrypted/substitutes.yml': evalsymlink failure on '/tmp/kustomization-1/sops/decrypted/substitutes.yml' : lstat /tmp/kustomization-1/sops/decrypted/substitutes.yml: no such file or directory"), tidelock.CauseBuildFailed},
		{failed("BuildFailed", "decryption failed for '/v1, Kind=Secret/db': cannot get sops data key: 0 successful groups required, got 0"), tidelock.CauseDecryptionFailed},
		{failed("ReconciliationFailed", "Deployment/shop/schema-registry apply failed: the server is currently unable to handle the request"), tidelock.CauseApplyFailed},
		{failed("ReconciliationFailed", "Deployment/shop/web dry-run failed (Invalid): .spec.x: field not declared in schema"), tidelock.CauseObjectRejected},
	} {
		if got := Explain(tt.facts); got.Code != tt.want {
			t.Errorf("got %s, want %s: %s", got.Code, tt.want, got.Sentence)
		}
	}
}
