package health

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"tidelock.dev"
)

// withStatus are the kinds of Kubernetes's own groups that there is something
// to wait for. All others of these groups are healthy by being there: they
// have no status, or none that says whether they are well.
var withStatus = map[string][]string{
	"":                             {"Pod", "PersistentVolumeClaim", "ReplicationController"},
	"apps":                         {"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"},
	"batch":                        {"Job"},
	"policy":                       {"PodDisruptionBudget"},
	"apiextensions.k8s.io":         {"CustomResourceDefinition"},
	"apiregistration.k8s.io":       {"APIService"},
	"admissionregistration.k8s.io": nil,
	"autoscaling":                  nil,
	"certificates.k8s.io":          nil,
	"coordination.k8s.io":          nil,
	"discovery.k8s.io":             nil,
	"events.k8s.io":                nil,
	"flowcontrol.apiserver.k8s.io": nil,
	"networking.k8s.io":            nil,
	"node.k8s.io":                  nil,
	"rbac.authorization.k8s.io":    nil,
	"resource.k8s.io":              nil,
	"scheduling.k8s.io":            nil,
	"storage.k8s.io":               nil,
}

// static reports whether objects of a kind are healthy by being there.
func static(gk schema.GroupKind) bool {
	kinds, ours := withStatus[gk.Group]
	return ours && !slices.Contains(kinds, gk.Kind)
}

// judge says what is wrong with an object; nil when nothing is. It is what
// kstatus says, save that
//   - a Job is not done before it is complete, as Flux has it too;
//   - a Deployment that is paused before its pods are renewed says so;
//   - a Pod that failed is not well because it is over, and one that waits for
//     a node has not failed;
//   - conditions of an older generation do not count;
//   - quotas and refusals that keep pods from being made are named.
//
// A Service whose load balancer has no address yet is healthy, for kstatus and
// Flux, and so here: many clusters have nothing that would give it one.
func judge(object *unstructured.Unstructured) (verdict *finding) {
	defer func() {
		// kstatus trusts the API server to have checked the types of fields.
		if p := recover(); p != nil {
			verdict = unreadable(fmt.Errorf("%v", p))
		}
	}()
	result, err := status.Compute(object)
	if err != nil {
		return unreadable(err)
	}
	switch result.Status {
	case status.CurrentStatus:
		verdict = stale(object)
	case status.TerminatingStatus:
		return terminating(object.GetFinalizers())
	case status.InProgressStatus:
		verdict = found(tidelock.HealthProgressing, result)
	case status.FailedStatus:
		verdict = found(tidelock.HealthFailed, result)
	default:
		verdict = found(tidelock.HealthUnknown, result)
	}
	switch gk := object.GroupVersionKind().GroupKind(); gk.Group + "/" + gk.Kind {
	case "apps/Deployment":
		return refine(object, verdict, judgeDeployment)
	case "apps/StatefulSet":
		return refine(object, verdict, judgeStatefulSet)
	case "apps/ReplicaSet":
		return refine(object, verdict, judgeReplicaSet)
	case "/ReplicationController":
		return refine(object, verdict, judgeReplicationController)
	case "batch/Job":
		return refine(object, verdict, judgeJob)
	case "/Pod":
		return refine(object, verdict, judgePod)
	case "/PersistentVolumeClaim":
		if verdict != nil {
			verdict.Reason = ReasonUnbound
		}
	case "apiregistration.k8s.io/APIService":
		return judgeAPIService(object, verdict)
	}
	return verdict
}

func unreadable(err error) *finding {
	return &finding{Health: tidelock.HealthUnknown, Reason: ReasonUnreadable, Message: clip(err.Error())}
}

func found(health tidelock.Health, result *status.Result) *finding {
	f := &finding{Health: health, Reason: string(result.Status), Message: clip(result.Message)}
	if len(result.Conditions) > 0 {
		condition := result.Conditions[0]
		f.Message = clip(condition.Message)
		if word := tidelock.Printable(condition.Reason, maxReason); word != "" {
			f.Reason = word
		}
	}
	return f
}

// refine has a built-in object's own rule look at the verdict of kstatus.
func refine[T any](object *unstructured.Unstructured, verdict *finding, rule func(*T, *finding) *finding) *finding {
	typed := new(T)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, typed); err != nil {
		return unreadable(err)
	}
	return rule(typed, verdict)
}

// stale finds out that an object which looks well was last looked at by its
// controller when it was another one.
func stale(object *unstructured.Unstructured) *finding {
	generation := object.GetGeneration()
	conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	for _, c := range conditions {
		condition, ok := c.(map[string]any)
		if !ok || condition["type"] != "Ready" {
			continue
		}
		observed, ok := condition["observedGeneration"].(int64)
		if ok && observed > 0 && observed < generation {
			return &finding{
				Health: tidelock.HealthProgressing, Reason: ReasonUnobserved,
				Message: fmt.Sprintf("its condition Ready is of generation %d, and it is at %d", observed, generation),
			}
		}
	}
	return nil
}

// unobserved reports that the controller of a workload has not looked at it at
// all; kstatus checks only what it has looked at.
func unobserved(generation, observed int64) *finding {
	if observed >= generation {
		return nil
	}
	return &finding{
		Health: tidelock.HealthProgressing, Reason: ReasonUnobserved,
		Message: fmt.Sprintf("its controller has seen generation %d of %d", observed, generation),
	}
}

func judgeDeployment(d *appsv1.Deployment, verdict *finding) *finding {
	if f := unobserved(d.Generation, d.Status.ObservedGeneration); f != nil {
		return f
	}
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue && verdict != nil {
			return refused(verdict.Health, c.Reason, c.Message)
		}
	}
	if !d.Spec.Paused || verdict == nil || verdict.Health != tidelock.HealthProgressing {
		return verdict
	}
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	if d.Status.UpdatedReplicas >= want && d.Status.AvailableReplicas >= want && d.Status.Replicas == want {
		return nil // what is to run does run
	}
	return &finding{
		Health: tidelock.HealthProgressing, Reason: ReasonPaused,
		Message: fmt.Sprintf("is paused (spec.paused); %d of %d pods are of its present template", d.Status.UpdatedReplicas, want),
	}
}

func judgeStatefulSet(s *appsv1.StatefulSet, verdict *finding) *finding {
	if f := unobserved(s.Generation, s.Status.ObservedGeneration); f != nil {
		return f
	}
	return verdict
}

func judgeReplicaSet(r *appsv1.ReplicaSet, verdict *finding) *finding {
	if f := unobserved(r.Generation, r.Status.ObservedGeneration); f != nil {
		return f
	}
	for _, c := range r.Status.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue && verdict != nil {
			return refused(verdict.Health, c.Reason, c.Message)
		}
	}
	return verdict
}

func judgeReplicationController(r *corev1.ReplicationController, verdict *finding) *finding {
	if f := unobserved(r.Generation, r.Status.ObservedGeneration); f != nil {
		return f
	}
	for _, c := range r.Status.Conditions {
		if c.Type == corev1.ReplicationControllerReplicaFailure && c.Status == corev1.ConditionTrue {
			return refused(tidelock.HealthProgressing, c.Reason, c.Message)
		}
	}
	want := int32(1)
	if r.Spec.Replicas != nil {
		want = *r.Spec.Replicas
	}
	if verdict == nil && r.Status.AvailableReplicas < want {
		return &finding{
			Health: tidelock.HealthProgressing, Reason: "LessAvailable",
			Message: fmt.Sprintf("Available: %d/%d", r.Status.AvailableReplicas, want),
		}
	}
	return verdict
}

func judgeJob(j *batchv1.Job, verdict *finding) *finding {
	for _, c := range j.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			continue
		}
		switch c.Type {
		case batchv1.JobComplete, batchv1.JobSuccessCriteriaMet:
			return verdict
		case batchv1.JobFailed, batchv1.JobFailureTarget:
			return &finding{Health: tidelock.HealthFailed, Reason: ReasonJobFailed, Message: clip(strings.TrimSpace(c.Reason + ": " + c.Message))}
		case batchv1.JobSuspended:
			return &finding{Health: tidelock.HealthProgressing, Reason: "JobSuspended", Message: "is suspended (spec.suspend)"}
		}
	}
	if verdict != nil {
		return verdict
	}
	return &finding{
		Health: tidelock.HealthProgressing, Reason: ReasonJobRunning,
		Message: fmt.Sprintf("is not complete: %d pods active, %d succeeded, %d failed", j.Status.Active, j.Status.Succeeded, j.Status.Failed),
	}
}

// judgePod judges a Pod that somebody brought without a workload.
func judgePod(p *corev1.Pod, verdict *finding) *finding {
	switch {
	case p.Status.Phase == corev1.PodFailed:
		verdict = &finding{Health: tidelock.HealthFailed, Reason: ReasonPodFailed}
	case verdict == nil:
		return nil
	case p.Status.Phase == corev1.PodPending:
		// kstatus gives up on one without a node after 15 s, by our clock; a
		// node may come.
		verdict.Health = tidelock.HealthProgressing
	}
	if cause := ailing(p); cause != nil {
		cause.Health = verdict.Health
		cause.Pod = ""
		return cause
	}
	return verdict
}

// kstatus knows no APIService, and its condition is not called Ready.
func judgeAPIService(object *unstructured.Unstructured, verdict *finding) *finding {
	conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	for _, c := range conditions {
		condition, ok := c.(map[string]any)
		if !ok || condition["type"] != "Available" || condition["status"] == "True" {
			continue
		}
		reason, _ := condition["reason"].(string)
		message, _ := condition["message"].(string)
		return &finding{Health: tidelock.HealthProgressing, Reason: orWord(reason, "NotAvailable"), Message: clip(message)}
	}
	return verdict
}

// refused reads why pods of a workload are not even made, from a condition or
// from an event.
func refused(health tidelock.Health, reason, message string) *finding {
	f := &finding{Health: health, Reason: orWord(reason, ReasonFailedCreate), Message: clip(message)}
	switch lower := strings.ToLower(message); {
	case strings.Contains(lower, "exceeded quota"), strings.Contains(lower, "failed quota"):
		f.Reason = ReasonQuota
	case strings.Contains(lower, "violates podsecurity"):
		f.Reason = ReasonPodSecurity
	case strings.Contains(lower, "usage per container"), strings.Contains(lower, "usage per pod"),
		strings.Contains(lower, "limit to request ratio"):
		f.Reason = ReasonLimitRange
	}
	return f
}

// orWord is a reason as it may stand in a report, or another one for none.
func orWord(reason, other string) string {
	if word := tidelock.Printable(reason, maxReason); word != "" {
		return word
	}
	return other
}

// curable reports whether pods or events may tell more than the verdict does.
func (f *finding) curable() bool {
	if f.Health == tidelock.HealthMissing || f.Health == tidelock.HealthUnknown {
		return false
	}
	switch f.Reason {
	case ReasonQuota, ReasonPodSecurity, ReasonLimitRange, ReasonPaused, ReasonTerminating:
		return false
	}
	return true
}

// Bounds of texts, in bytes.
const (
	maxMessage = 1 << 10
	maxReason  = 128
)

func clip(text string) string { return tidelock.Printable(text, maxMessage) }
