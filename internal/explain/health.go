package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidelock.dev"
)

// What can be wrong with what an applier brought.

// A symptom tells what an object's reason means. Some pass by themselves and
// are worth a word only after a while, or when the object has given up.
type symptom struct {
	code     tidelock.CauseCode
	patience time.Duration
}

const soon = 30 * time.Second

var symptoms = map[string]symptom{
	"ErrImagePull":      {tidelock.CauseImagePull, 0},
	"ImagePullBackOff":  {tidelock.CauseImagePull, 0},
	"InvalidImageName":  {tidelock.CauseImagePull, 0},
	"ErrImageNeverPull": {tidelock.CauseImagePull, 0},
	"ImageInspectError": {tidelock.CauseImagePull, 0},

	"CrashLoopBackOff":  {tidelock.CauseCrashLoop, 0},
	"RunContainerError": {tidelock.CauseCrashLoop, 0},
	"StartError":        {tidelock.CauseCrashLoop, 0},
	"OOMKilled":         {tidelock.CauseCrashLoop, 0},
	"PodFailed":         {tidelock.CauseCrashLoop, soon},

	"CreateContainerConfigError": {tidelock.CauseConfigMissing, 0},
	"CreateContainerError":       {tidelock.CauseUnhealthy, 0},
	"FailedMount":                {tidelock.CauseConfigMissing, soon},

	"QuotaExceeded":       {tidelock.CauseQuota, 0},
	"LimitRangeViolated":  {tidelock.CauseObjectRejected, 0},
	"PodSecurityViolated": {tidelock.CauseObjectRejected, 0},
	"Unschedulable":       {tidelock.CauseUnschedulable, fresh},

	"ProbeFailing": {tidelock.CauseProbeFailing, 2 * soon},

	"JobFailed":   {tidelock.CauseUnhealthy, 0},
	"Evicted":     {tidelock.CauseUnhealthy, soon},
	"NodeLost":    {tidelock.CauseUnhealthy, soon},
	"NotFound":    {tidelock.CauseUnhealthy, soon},
	"Terminating": {tidelock.CauseUnhealthy, 2 * soon},
}

// inText are symptoms by words of a message, for objects whose reason says only
// that something is wrong.
var inText = []sign{
	{tidelock.CauseQuota, nil, []string{"exceeded quota"}},
	{tidelock.CauseImagePull, nil, []string{"back-off pulling image", "failed to pull image", "errimagepull", "imagepullbackoff"}},
	{tidelock.CauseCrashLoop, nil, []string{"crashloopbackoff", "back-off restarting failed"}},
	{tidelock.CauseConfigMissing, nil, []string{`configmap "`, `secret "`, "couldn't find key"}},
	{tidelock.CauseUnschedulable, nil, []string{"nodes are available", "unschedulable"}},
	{tidelock.CauseObjectRejected, nil, []string{"violates podsecurity"}},
	{tidelock.CauseProbeFailing, nil, []string{"readiness probe", "liveness probe", "startup probe"}},
}

// healthProse says what each means and what to do.
var healthProse = map[tidelock.CauseCode]struct{ says, next string }{
	tidelock.CauseImagePull:      {"the image cannot be pulled", "push the image, correct its name, or give the pod a pull secret"},
	tidelock.CauseCrashLoop:      {"a container ends again and again", "read its log: kubectl logs --previous"},
	tidelock.CauseConfigMissing:  {"a ConfigMap or Secret, or a key in it, is missing", "make what the pod names, or correct the name"},
	tidelock.CauseQuota:          {"a quota is used up", "raise the quota, or ask for less"},
	tidelock.CauseUnschedulable:  {"no node takes the pod", "add nodes, or correct the pod's requests, selectors and tolerations"},
	tidelock.CauseProbeFailing:   {"a container runs and does not become ready", "look at its readiness probe and at its log"},
	tidelock.CauseObjectRejected: {"its pods are refused", "correct the pod as the message says"},
	tidelock.CauseUnhealthy:      {"it is not healthy", "look at the object: kubectl describe"},
}

// unhealthy is about what was applied and is not, or not yet, well.
func unhealthy(f *Facts) *tidelock.Verdict {
	o := f.Applier
	if o == nil || o.Suspended {
		return nil
	}
	switch {
	case f.Applied.has():
	case o.State == tidelock.ObservedProgressing && f.Attempted.has():
	default:
		return nil
	}
	if v := f.sick(o); v != nil {
		return v
	}
	if !f.Applied.has() || !f.applied() {
		return nil
	}
	return waiting(fmt.Sprintf("%s has applied the commit, and waits for its objects to be healthy", o.Object), field(o, "health", string(o.Health)))
}

// sick names the worst object that keeps an applier from being healthy; nil
// when there is none, or when it may still come up by itself.
func (f *Facts) sick(o *tidelock.Observation) *tidelock.Verdict {
	switch o.Health {
	case tidelock.HealthProgressing, tidelock.HealthFailed, tidelock.HealthMissing:
	default:
		return nil
	}
	if o.State == tidelock.ObservedProgressing || o.State == tidelock.ObservedReady {
		if at := lastTouched(o); !at.IsZero() && f.age(at) < fresh {
			return nil // what is seen may be of the revision before
		}
	}
	late := f.age(o.Since) > cmp.Or(o.Timeout, defaultTimeout)
	var worst *tidelock.ObjectHealth
	var code tidelock.CauseCode
	for i, object := range o.Unhealthy {
		s := symptomOf(object)
		given := object.Health == tidelock.HealthFailed || object.Health == tidelock.HealthMissing && f.age(o.Since) > soon
		if s.code == "" || !given && !late && (s.patience < 0 || f.age(o.Since) < s.patience) {
			continue
		}
		// An object that says what is the matter goes before one that does not.
		if worst == nil || code == tidelock.CauseUnhealthy && s.code != tidelock.CauseUnhealthy {
			worst, code = &o.Unhealthy[i], s.code
		}
	}
	switch {
	case worst != nil:
		return illness(o, *worst, code)
	case o.Health == tidelock.HealthFailed || late:
		return &tidelock.Verdict{
			Code: tidelock.CauseUnhealthy, Object: o.Object, Since: o.Since,
			Sentence: fmt.Sprintf("objects of %s are %s", o.Object, o.Health),
			Next:     "look at them: " + cmp.Or(flux("tree", o.Object), "kubectl get all"),
			Evidence: []tidelock.Evidence{field(o, "health", string(o.Health)), conditions(o)},
		}
	}
	return nil
}

// lastTouched is when an applier last did something to its objects.
func lastTouched(o *tidelock.Observation) time.Time {
	var at time.Time
	for _, outcome := range o.Outcomes {
		for _, t := range []time.Time{outcome.AttemptedAt, outcome.AppliedAt} {
			if t.After(at) {
				at = t
			}
		}
	}
	return at
}

// symptomOf reads what an object says of itself. Patience below zero means
// that the object has to fail before anything is made of it.
func symptomOf(object tidelock.ObjectHealth) symptom {
	s, known := symptoms[object.Reason]
	if known && s.code != tidelock.CauseUnhealthy {
		return s
	}
	if code, ok := classify(inText, object.Reason, object.Message); ok {
		patience := time.Duration(0)
		if code == tidelock.CauseProbeFailing || code == tidelock.CauseUnschedulable {
			patience = 2 * soon
		}
		return symptom{code, patience}
	}
	if known {
		return s
	}
	return symptom{tidelock.CauseUnhealthy, -1}
}

func illness(o *tidelock.Observation, object tidelock.ObjectHealth, code tidelock.CauseCode) *tidelock.Verdict {
	prose := healthProse[code]
	name := object.String()
	if object.Pod != "" && !strings.HasSuffix(name, "/"+object.Pod) {
		name += " (pod " + object.Pod + ")"
	}
	v := &tidelock.Verdict{
		Code: code, Object: o.Object, Since: o.Since, Next: prose.next,
		Sentence: fmt.Sprintf("%s of %s: %s", quote(name), o.Object, prose.says),
	}
	what := object.Reason
	if object.Message != "" {
		what = strings.TrimPrefix(what+": "+object.Message, ": ")
		v.Sentence += ": " + quote(object.Message)
	}
	v.Evidence = []tidelock.Evidence{{Where: name, What: cmp.Or(what, string(object.Health)), At: o.Since}}
	if o.State.Failed() {
		v.Evidence = append(v.Evidence, conditions(o))
	}
	return v
}

// failedHealth is about an applier that waited for its objects in vain.
func (f *Facts) failedHealth(o *tidelock.Observation) *tidelock.Verdict {
	given := *o
	given.Health = tidelock.HealthFailed // Flux has given up on them
	given.Unhealthy = slices.Clone(o.Unhealthy)
	for i := range given.Unhealthy {
		given.Unhealthy[i].Health = tidelock.HealthFailed
	}
	if len(given.Unhealthy) > 0 {
		return f.sick(&given)
	}
	v := &tidelock.Verdict{
		Code: tidelock.CauseUnhealthy, Object: o.Object, Since: o.Since,
		Sentence: string(o.Object) + " waited in vain for its objects: " + quote(cmp.Or(o.Message, o.Reason)),
		Next:     "look at them: " + cmp.Or(flux("tree", o.Object), "kubectl get all"),
		Evidence: []tidelock.Evidence{conditions(o)},
	}
	if kind, _, _ := o.Object.Split(); kind == tidelock.HelmRelease {
		v.Code = tidelock.CauseHelmFailed
	}
	if code, ok := classify(inText, o.Reason, o.Message); ok {
		v.Code, v.Next = code, healthProse[code].next
	}
	if m := read(waitingFor, o.Message); m != nil {
		v.Sentence = fmt.Sprintf("%s waited in vain for %s, which is %s", o.Object, m[1], m[2])
	}
	return v
}
