package explain

import (
	"cmp"
	"maps"
	"slices"

	"tidelock.dev"
)

// order is the path of a commit: what stands earlier has to change before
// anything later can matter. What blocks nothing stands at the end, the least
// certain first.
var order = func() map[tidelock.CauseCode]int {
	ranks := map[tidelock.CauseCode]int{}
	for i, code := range []tidelock.CauseCode{
		tidelock.CauseCommitUnknown, tidelock.CauseNoSource, tidelock.CauseNotServed, tidelock.CauseNotOnWatchedRef, tidelock.CauseSuperseded,
		tidelock.CauseAgentOffline, tidelock.CauseHeld, tidelock.CauseSourceSuspended,
		tidelock.CauseVerifyFailed, tidelock.CauseTLS, tidelock.CauseCredentialRefused, tidelock.CauseSourceUnreachable, tidelock.CauseSourceFailed,
		tidelock.CauseReceiverDown, tidelock.CauseIntervalNotReached, tidelock.CauseControllerDown,
		tidelock.CauseNoApplier, tidelock.CauseApplierSuspended,
		tidelock.CausePathNotFound, tidelock.CauseBuildFailed, tidelock.CauseDecryptionFailed, tidelock.CauseSubstitutionFailed,
		tidelock.CauseNamespaceMissing, tidelock.CauseCRDMissing, tidelock.CauseForbidden, tidelock.CauseImmutableField, tidelock.CauseObjectRejected,
		tidelock.CauseHelmValues, tidelock.CauseHelmFailed, tidelock.CauseApplyFailed, tidelock.CauseChartVersionKept,
		tidelock.CauseQuota, tidelock.CauseImagePull, tidelock.CauseConfigMissing, tidelock.CauseCrashLoop, tidelock.CauseUnschedulable,
		tidelock.CauseProbeFailing, tidelock.CauseUnhealthy,
		tidelock.CauseDependencyNotReady,

		tidelock.CauseUnknown, tidelock.CauseWaiting, tidelock.CauseOlder, tidelock.CauseNone, tidelock.CausePathNotTouched,
	} {
		ranks[code] = i
	}
	return ranks
}()

// elsewhere are verdicts about places that the commit is not meant for. They
// count only where it is meant for no other.
func elsewhere(v tidelock.Verdict) bool {
	switch v.Code {
	case tidelock.CauseNotOnWatchedRef, tidelock.CauseNotServed, tidelock.CauseNoApplier:
		return true
	}
	return false
}

// Sum makes one verdict of those of all places of each environment, in order
// of environment: the cause that stands first on the path, with the others in
// Also. Places that the commit is not meant for are left out where there are
// others; asked tells that one environment was asked for, which is then told
// of in any case.
func Sum(places []tidelock.Verdict, asked bool) []tidelock.Verdict {
	meant := slices.DeleteFunc(slices.Clone(places), elsewhere)
	byEnvironment := map[string][]tidelock.Verdict{}
	for _, v := range places {
		if elsewhere(v) && len(meant) > 0 && !asked {
			continue
		}
		byEnvironment[v.Environment] = append(byEnvironment[v.Environment], v)
	}
	sums := []tidelock.Verdict{}
	for _, name := range slices.Sorted(maps.Keys(byEnvironment)) {
		sums = append(sums, sum(byEnvironment[name]))
	}
	return sums
}

func sum(places []tidelock.Verdict) tidelock.Verdict {
	if meant := slices.DeleteFunc(slices.Clone(places), elsewhere); len(meant) > 0 {
		places = append(meant, slices.DeleteFunc(slices.Clone(places), func(v tidelock.Verdict) bool { return !elsewhere(v) })...)
		slices.SortStableFunc(places[:len(meant)], first)
		return withAlso(places[0], blockers(places[1:len(meant)]))
	}
	places = slices.SortedStableFunc(slices.Values(places), first)
	return withAlso(places[0], blockers(places[1:]))
}

// first orders verdicts along the path. Of those who wait for others, the one at
// the end of the longest chain tells of the whole chain.
func first(a, b tidelock.Verdict) int {
	longest := 0
	if a.Code == tidelock.CauseDependencyNotReady {
		longest = cmp.Compare(len(b.Evidence), len(a.Evidence))
	}
	return cmp.Or(
		cmp.Compare(order[a.Code], order[b.Code]), longest,
		cmp.Compare(a.AgentName, b.AgentName), cmp.Compare(a.Object, b.Object))
}

func blockers(list []tidelock.Verdict) []tidelock.Verdict {
	return slices.DeleteFunc(slices.Clone(list), func(v tidelock.Verdict) bool {
		return !v.Blocking() || v.Code == tidelock.CausePathNotTouched
	})
}
