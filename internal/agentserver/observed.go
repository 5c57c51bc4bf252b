package agentserver

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
)

const (
	maxSaid         = 4096 // the message of an observation, in bytes
	maxDetail       = 1024 // one of an outcome or of an object's health
	maxDependencies = 32
	maxUnhealthy    = 20
	maxOutcomes     = 8
	maxCount        = 1 << 20
	maxPeriod       = 366 * 24 * time.Hour      // an interval or a timeout
	maxPast         = 10 * 366 * 24 * time.Hour // how long ago something was
)

// observedKinds are what observations are of.
var observedKinds = []tidelock.ObjectKind{
	tidelock.Kustomization, tidelock.HelmRelease,
	tidelock.ObjectKind(tidelock.GitRepository), tidelock.ObjectKind(tidelock.OCIRepository),
	tidelock.ObjectKind(tidelock.HelmChart), tidelock.ObjectKind(tidelock.ImageRepository),
}

// observation reads what an agent says of one object. It refuses what names
// nothing, and bounds and cleans all else: no text of a cluster is trusted.
func observation(m *agentrpc.Observation, now time.Time) (tidelock.Observation, error) {
	o := tidelock.Observation{
		Object:    tidelock.ObjectID(m.GetObject()),
		UID:       word(m.GetUid()),
		Suspended: m.GetSuspended(),
		State:     observedState(m.GetState()),
		Reason:    word(m.GetReason()),
		Message:   said(m.GetMessage(), maxSaid),
		Revision:  revisionText(m.GetRevision()),
		Interval:  period(m.GetInterval()),
		Requested: m.GetRequested(),
		Health:    health(m.GetHealth()),
		Since:     ago(m.GetSince(), now),
	}
	if !isObserved(o.Object) {
		return o, fmt.Errorf("%q is not the id of an object that is observed", shorten(m.GetObject()))
	}
	if o.Since.IsZero() {
		o.Since = now.UTC()
	}
	if !o.Object.Applies() {
		return o, nil
	}
	o.Source = tidelock.SourceID(m.GetSource())
	if id := tidelock.ObjectID(o.Source); !isObserved(id) || id.Applies() {
		return o, fmt.Errorf("%s applies %q, which is not the id of a source", o.Object, shorten(m.GetSource()))
	}
	o.Attempted = revisionText(m.GetAttempted())
	o.Path = tidelock.Printable(m.GetPath(), maxDetail)
	o.Chart = tidelock.Printable(m.GetChart(), maxDetail)
	o.Namespace = word(m.GetNamespace())
	o.Environment = tidelock.Printable(m.GetEnvironment(), maxWord)
	o.Timeout = period(m.GetTimeout())
	o.Objects = int(min(max(m.GetObjects(), 0), maxCount))
	for _, id := range m.GetDependsOn()[:min(len(m.GetDependsOn()), maxDependencies)] {
		if isObserved(tidelock.ObjectID(id)) {
			o.DependsOn = append(o.DependsOn, tidelock.ObjectID(id))
		}
	}
	for _, u := range m.GetUnhealthy()[:min(len(m.GetUnhealthy()), maxUnhealthy)] {
		o.Unhealthy = append(o.Unhealthy, tidelock.ObjectHealth{
			Kind: word(u.GetKind()), Namespace: word(u.GetNamespace()), Name: word(u.GetName()), Health: health(u.GetHealth()),
			Reason: word(u.GetReason()), Message: said(u.GetMessage(), maxDetail), Pod: word(u.GetPod()),
		})
	}
	for _, u := range m.GetOutcomes()[:min(len(m.GetOutcomes()), maxOutcomes)] {
		o.Outcomes = append(o.Outcomes, tidelock.Outcome{
			Revision: revisionText(u.GetRevision()), State: observedState(u.GetState()), Reason: word(u.GetReason()),
			Message: said(u.GetMessage(), maxDetail), Health: health(u.GetHealth()),
			AttemptedAt: ago(u.GetAttempted(), now), AppliedAt: ago(u.GetApplied(), now),
			HealthyAt: ago(u.GetHealthy(), now), FailedAt: ago(u.GetFailed(), now),
		})
	}
	return o, nil
}

// said makes a message fit to be kept and shown to all who may read the
// project. What is cut off must not be half a password.
func said(text string, limit int) string {
	return tidelock.Printable(tidelock.WithoutPasswords(tidelock.Printable(text, 2*limit)), limit)
}

func isObserved(id tidelock.ObjectID) bool {
	kind, _, _ := id.Split()
	return validSourceID(string(id)) && slices.Contains(observedKinds, kind)
}

// revisionText drops what is longer than any revision: a part of it would be
// another one.
func revisionText(text string) string {
	if len(text) > maxText {
		return ""
	}
	return tidelock.Printable(text, maxText)
}

func period(d *durationpb.Duration) time.Duration { return min(max(d.AsDuration(), 0), maxPeriod) }

// ago turns a span back from now into a time on the server's clock; the zero
// time if there is none.
func ago(span *durationpb.Duration, now time.Time) time.Time {
	if span == nil {
		return time.Time{}
	}
	return now.Add(-min(max(span.AsDuration(), 0), maxPast)).UTC().Truncate(time.Microsecond)
}

func observedState(s agentrpc.Observation_ObservedState) tidelock.ObservedState {
	switch s {
	case agentrpc.Observation_OBSERVED_STATE_PROGRESSING:
		return tidelock.ObservedProgressing
	case agentrpc.Observation_OBSERVED_STATE_BLOCKED:
		return tidelock.ObservedBlocked
	case agentrpc.Observation_OBSERVED_STATE_READY:
		return tidelock.ObservedReady
	case agentrpc.Observation_OBSERVED_STATE_FAILED:
		return tidelock.ObservedFailed
	case agentrpc.Observation_OBSERVED_STATE_STALLED:
		return tidelock.ObservedStalled
	}
	return tidelock.ObservedUnknown
}

func health(h agentrpc.Observation_Health) tidelock.Health {
	switch h {
	case agentrpc.Observation_HEALTH_HEALTHY:
		return tidelock.HealthHealthy
	case agentrpc.Observation_HEALTH_PROGRESSING:
		return tidelock.HealthProgressing
	case agentrpc.Observation_HEALTH_FAILED:
		return tidelock.HealthFailed
	case agentrpc.Observation_HEALTH_MISSING:
		return tidelock.HealthMissing
	}
	return tidelock.HealthUnknown
}
