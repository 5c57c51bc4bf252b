package flux

import (
	"fmt"
	"strings"

	helmv2 "github.com/fluxcd/helm-controller/api/v2"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"tidelock.dev"
)

// A standing is how an object stands, by its conditions.
type standing struct {
	state   tidelock.ObservedState
	reason  string // in Flux's words
	message string
}

// A judgement is what Flux says of an object, and of which generation of it.
type judgement struct {
	generation int64 // metadata.generation
	observed   int64 // status.observedGeneration
	suspended  bool
	conditions []metav1.Condition
}

// What a Flux controller says while it waits for another object. Neither is
// the fault of the revision that it is about to apply.
var (
	waitReasons = map[string]bool{
		meta.DependencyNotReadyReason: true,
		"SourceNotReady":              true, // helm-controller
		"NoSourceArtifact":            true, // source-controller, of a chart
	}
	waitMessages = []string{ // of ArtifactFailed, which has other reasons too
		"Source artifact not found",
		"Source is not ready",
		"Source not ready",
	}
)

// standing says how the object stands with its newest generation. What Flux
// said of an older one does not count, except of a suspended object, at which
// Flux does not look: there the last failure still holds.
//
// A controller that fails leaves status.observedGeneration behind and tells the
// generation with the condition; one that skips a suspended object does the
// reverse. So either will do.
func (j judgement) standing() standing {
	stalled, reconciling, ready := j.find(meta.StalledCondition), j.find(meta.ReconcilingCondition), j.find(meta.ReadyCondition)
	switch {
	case isTrue(stalled):
		s := standing{tidelock.ObservedStalled, stalled.Reason, stalled.Message}
		if isFalse(ready) { // which has the error; Stalled may only count the attempts
			s.reason, s.message = j.cause(ready)
		}
		return s
	case isFalse(ready) && j.waits(ready):
		return standing{tidelock.ObservedBlocked, ready.Reason, ready.Message}
	case isFalse(ready):
		reason, message := j.cause(ready)
		return standing{tidelock.ObservedFailed, reason, message}
	case isTrue(ready) && !isTrue(reconciling):
		return standing{tidelock.ObservedReady, ready.Reason, ready.Message}
	case isTrue(reconciling): // helm-controller leaves Ready as it was for a while
		return standing{tidelock.ObservedProgressing, reconciling.Reason, reconciling.Message}
	case ready != nil:
		return standing{tidelock.ObservedProgressing, ready.Reason, ready.Message}
	}
	s := standing{state: tidelock.ObservedUnknown}
	if len(j.conditions) > 0 {
		s.message = fmt.Sprintf("Flux has not looked at generation %d yet", j.generation)
	}
	return s
}

// find returns a condition that holds for the newest generation; nil if there
// is none.
func (j judgement) find(kind string) *metav1.Condition {
	c := apimeta.FindStatusCondition(j.conditions, kind)
	switch {
	case c == nil:
	case c.ObservedGeneration >= j.generation, j.observed >= j.generation:
		return c
	case j.suspended && c.Type != meta.ReconcilingCondition && c.Status != metav1.ConditionUnknown &&
		(c.Type != meta.ReadyCondition || c.Status == metav1.ConditionFalse):
		return c
	}
	return nil
}

// waits reports whether an object is not ready only because another is not.
func (j judgement) waits(ready *metav1.Condition) bool {
	if waitReasons[ready.Reason] || isTrue(j.find(sourcev1.IncludeUnavailableCondition)) {
		return true
	}
	if ready.Reason != meta.ArtifactFailedReason {
		return false
	}
	for _, prefix := range waitMessages {
		if strings.HasPrefix(ready.Message, prefix) {
			return true
		}
	}
	return false
}

// cause says why an object is not ready. A HelmRelease that was rolled back or
// uninstalled says so in its condition Ready, and what had failed in another.
func (j judgement) cause(ready *metav1.Condition) (reason, message string) {
	switch ready.Reason {
	case helmv2.RollbackSucceededReason, helmv2.RollbackFailedReason, helmv2.UninstallSucceededReason, helmv2.UninstallFailedReason:
		for _, kind := range []string{helmv2.TestSuccessCondition, helmv2.ReleasedCondition} {
			if c := j.find(kind); isFalse(c) {
				return c.Reason, c.Message + "\n" + ready.Message
			}
		}
	}
	return ready.Reason, ready.Message
}

func isTrue(c *metav1.Condition) bool  { return c != nil && c.Status == metav1.ConditionTrue }
func isFalse(c *metav1.Condition) bool { return c != nil && c.Status == metav1.ConditionFalse }

// A version is what Flux attempts with an object: a revision, under a
// generation of the object's own specification.
type version struct {
	uid        types.UID
	generation int64
	revision   string
}

// A verdict is how the last attempt ended, and of what.
type verdict struct {
	standing
	of version
}

// hold returns how an object stands when Flux shows s. When Flux looks again at
// what it has decided, for its interval or because somebody asked, it stands as
// it stood until that is over.
func (v *verdict) hold(s standing, of version) standing {
	switch {
	case decided(s.state):
		*v = verdict{s, of}
	case s.state == tidelock.ObservedProgressing && v.of == of:
		return v.standing
	}
	return s
}

// decided reports whether the state is the end of an attempt.
func decided(s tidelock.ObservedState) bool { return s == tidelock.ObservedReady || s.Failed() }
