package tidelock

import "time"

// A CauseCode names why a commit is not live. Codes are stable: programs may
// compare them.
type CauseCode string

const (
	CauseNone    CauseCode = "live"    // nothing is wrong: it is live and healthy
	CauseUnknown CauseCode = "unknown" // it cannot be told; Evidence says what is missing
	CauseWaiting CauseCode = "waiting" // all goes well, it is on its way

	CauseCommitUnknown      CauseCode = "commit_unknown"       // the forge has no such commit
	CauseNotOnWatchedRef    CauseCode = "not_on_watched_ref"   // no source follows a ref that has it
	CauseNoSource           CauseCode = "no_source"            // no source of any agent follows the project
	CauseNotServed          CauseCode = "not_served"           // sources follow it, but their agent was not granted the project
	CauseAgentOffline       CauseCode = "agent_offline"        //
	CauseBuildFailed        CauseCode = "build_failed"         // packaging, or kustomize/helm in Flux: file and line if known
	CauseHeld               CauseCode = "held"                 // a rule wants a report on the artifact first
	CauseSourceSuspended    CauseCode = "source_suspended"     //
	CauseCredentialRefused  CauseCode = "credential_refused"   // Flux may not fetch
	CauseTLS                CauseCode = "tls"                  // Flux does not trust the forge's certificate
	CauseSourceUnreachable  CauseCode = "source_unreachable"   // DNS, network
	CauseVerifyFailed       CauseCode = "verify_failed"        // signature
	CauseSourceFailed       CauseCode = "source_failed"        // any other reason why a source is not fetched
	CauseReceiverDown       CauseCode = "receiver_down"        // the webhook receiver does not answer and nothing else triggered
	CauseIntervalNotReached CauseCode = "interval_not_reached" // nothing triggers the object; it waits for its interval
	CauseControllerDown     CauseCode = "controller_down"      // a Flux controller does not act on what it should
	CauseNoApplier          CauseCode = "no_applier"           // a source fetches it, nothing applies it
	CauseApplierSuspended   CauseCode = "applier_suspended"    //
	CauseDependencyNotReady CauseCode = "dependency_not_ready" //
	CausePathNotFound       CauseCode = "path_not_found"       // spec.path is not in the repository
	CausePathNotTouched     CauseCode = "path_not_in_applier"  // the commit changes nothing that an applier applies
	CauseChartVersionKept   CauseCode = "chart_version_kept"   // Flux packages the changed chart only when its version changes
	CauseObjectRejected     CauseCode = "object_rejected"      // by the API server: schema, admission
	CauseImmutableField     CauseCode = "immutable_field"      //
	CauseForbidden          CauseCode = "forbidden"            // RBAC of the applier's service account
	CauseNamespaceMissing   CauseCode = "namespace_missing"    //
	CauseCRDMissing         CauseCode = "crd_missing"          // no matches for kind
	CauseDecryptionFailed   CauseCode = "decryption_failed"    //
	CauseSubstitutionFailed CauseCode = "substitution_failed"  // postBuild variables
	CauseHelmFailed         CauseCode = "helm_failed"          // install or upgrade
	CauseHelmValues         CauseCode = "helm_values"          // values missing or not fitting the chart's schema
	CauseImagePull          CauseCode = "image_pull"           //
	CauseCrashLoop          CauseCode = "crash_loop"           //
	CauseQuota              CauseCode = "quota_exceeded"       //
	CauseUnschedulable      CauseCode = "unschedulable"        //
	CauseConfigMissing      CauseCode = "config_missing"       // a pod names a ConfigMap or Secret that is not there
	CauseProbeFailing       CauseCode = "probe_failing"        // runs, never ready
	CauseUnhealthy          CauseCode = "unhealthy"            // any other object that is not healthy
	CauseApplyFailed        CauseCode = "apply_failed"         // any other failure of an applier
	CauseSuperseded         CauseCode = "superseded"           // a newer commit without it took its place
	CauseOlder              CauseCode = "live_in_descendant"   // a newer commit that contains it is live
)

// A Verdict answers "why isn't it live?" for one commit in one place.
type Verdict struct {
	Commit      CommitID
	Environment string // "" when it holds for all of them
	Agent       AgentID
	AgentName   string
	Object      ObjectID // the source or applier that it is about; "" for none
	Code        CauseCode
	Sentence    string     // one line: what is the matter
	Next        string     // one line: what to do about it; "" when nothing is to be done
	Evidence    []Evidence // what it was concluded from, most telling first
	Also        []Verdict  // other causes that would still be there, without Evidence of their own
	Since       time.Time  // zero when not known
}

// Blocking reports whether something keeps the commit from going live.
func (v Verdict) Blocking() bool {
	switch v.Code {
	case CauseNone, CauseUnknown, CauseWaiting, CauseOlder:
		return false
	}
	return true
}

// Evidence is one fact, and where it was read.
type Evidence struct {
	Where string // such as "Kustomization/flux-system/apps status.conditions[Ready]"
	What  string // bounded, printable
	At    time.Time
}
