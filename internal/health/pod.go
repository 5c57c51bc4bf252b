package health

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// gravity orders the causes that pods show, the most telling last: when
// several pods of a workload are unwell, it is the gravest that is named.
var gravity = []string{
	ReasonStarting,
	ReasonPodFailed,
	ReasonEvicted, // and replaced by a pod that has more to say
	ReasonProbe,
	ReasonFailedMount,
	ReasonNodeLost,
	ReasonUnschedulable,
	ReasonCrashLoop,
	ReasonRunContainer,
	ReasonCreateContainer,
	ReasonImageNeverPull,
	ReasonErrImagePull,
	ReasonImagePullBackOff,
	ReasonInvalidImage,
	ReasonConfigMissing,
}

func (f *finding) gravity() int {
	if f == nil {
		return -2
	}
	return slices.Index(gravity, f.Reason) // -1 for others
}

// ailing says what is wrong with a pod, as far as its status shows; nil if
// nothing is. The finding's health is for the caller to set.
func ailing(p *corev1.Pod) *finding {
	f := ailment(p)
	if f != nil {
		f.Message = clip(f.Message)
		f.Pod = p.Name
	}
	return f
}

func ailment(p *corev1.Pod) *finding {
	if p.Status.Phase == corev1.PodSucceeded {
		return nil
	}
	if f := ended(p); f != nil {
		return f
	}
	if f := placeless(p); f != nil {
		return f
	}
	// Containers start after the init containers, in turn: the first that
	// does not come along holds up the rest.
	for _, c := range p.Status.InitContainerStatuses {
		if f := containerAils(c, "init container "+c.Name, true); f != nil {
			return f
		}
		if c.State.Running != nil && !c.Ready && (!isSidecar(p, c.Name) || c.Started != nil && !*c.Started) {
			return &finding{Reason: ReasonStarting, Message: "init container " + c.Name + " is at it"}
		}
	}
	var worst *finding
	for _, c := range p.Status.ContainerStatuses {
		if f := containerAils(c, "container "+c.Name, false); f.gravity() > worst.gravity() {
			worst = f
		}
	}
	if worst != nil {
		return worst
	}
	ready := condition(p, corev1.PodReady)
	switch {
	case ready != nil && ready.Status == corev1.ConditionTrue:
		return nil
	case p.Status.Phase == corev1.PodRunning && ready != nil && ready.Reason == "ReadinessGatesNotReady":
		return &finding{Reason: ReasonProbe, Message: "readiness gates are not met: " + ready.Message}
	case p.Status.Phase == corev1.PodPending && len(p.Status.ContainerStatuses) == 0 && p.Spec.NodeName != "":
		return &finding{Reason: ReasonStarting, Message: "node " + p.Spec.NodeName + " has not started it yet"}
	}
	return nil
}

// ended reads why a pod is over, or lost with its node.
func ended(p *corev1.Pod) *finding {
	if p.Status.Phase == corev1.PodFailed {
		if p.Status.Reason == "Evicted" || disrupted(p) {
			return &finding{Reason: ReasonEvicted, Message: or(p.Status.Message, "was evicted")}
		}
		for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			if t := c.State.Terminated; t != nil && t.ExitCode != 0 {
				return &finding{Reason: ReasonPodFailed, Message: "container " + c.Name + " " + exit(t)}
			}
		}
		return &finding{Reason: ReasonPodFailed, Message: or(p.Status.Message, or(p.Status.Reason, "has failed"))}
	}
	ready := condition(p, corev1.PodReady)
	if p.Status.Reason == "NodeLost" || p.Status.Phase == corev1.PodUnknown ||
		ready != nil && ready.Status != corev1.ConditionTrue && ready.Reason == "NodeNotReady" ||
		p.DeletionTimestamp != nil && disrupted(p) {
		return &finding{Reason: ReasonNodeLost, Message: or(p.Status.Message, "node "+p.Spec.NodeName+" does not answer")}
	}
	return nil
}

// disrupted reports whether the cluster, and not its own container, ended a
// pod.
func disrupted(p *corev1.Pod) bool {
	c := condition(p, corev1.DisruptionTarget)
	return c != nil && c.Status == corev1.ConditionTrue
}

// placeless reads why a pod has no node.
func placeless(p *corev1.Pod) *finding {
	c := condition(p, corev1.PodScheduled)
	if c == nil || c.Status != corev1.ConditionFalse {
		return nil
	}
	if c.Reason == corev1.PodReasonSchedulingGated {
		return &finding{Reason: ReasonUnschedulable, Message: "waits for its scheduling gates: " + c.Message}
	}
	return &finding{Reason: ReasonUnschedulable, Message: or(c.Message, c.Reason)}
}

// containerAils says what keeps a container from running, or from being
// ready.
func containerAils(c corev1.ContainerStatus, who string, init bool) *finding {
	if w := c.State.Waiting; w != nil {
		f := &finding{Reason: w.Reason, Message: fmt.Sprintf("%s: %s", who, or(w.Message, w.Reason))}
		switch w.Reason {
		case ReasonErrImagePull, ReasonImagePullBackOff, ReasonInvalidImage, ReasonImageNeverPull,
			"ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed":
			if !strings.Contains(f.Message, c.Image) {
				f.Message = fmt.Sprintf("%s: image %q: %s", who, c.Image, or(w.Message, w.Reason))
			}
		case ReasonCrashLoop:
			if t := c.LastTerminationState.Terminated; t != nil {
				f.Message = fmt.Sprintf("%s %s; restarted %d times", who, exit(t), c.RestartCount)
			}
		case "PodInitializing":
			return nil // an init container is at it
		case "", ReasonStarting:
			if crashed(c) {
				return crash(c, who)
			}
			f.Reason = ReasonStarting
		}
		f.Reason = orWord(f.Reason, ReasonStarting)
		return f
	}
	if t := c.State.Terminated; t != nil {
		if t.ExitCode == 0 && (init || t.Reason == "Completed") {
			return nil
		}
		return &finding{Reason: ReasonCrashLoop, Message: fmt.Sprintf("%s %s; restarted %d times", who, exit(t), c.RestartCount)}
	}
	if c.State.Running == nil || c.Ready || init {
		return nil
	}
	switch {
	case crashed(c):
		return crash(c, who)
	case c.Started != nil && !*c.Started:
		return &finding{Reason: ReasonProbe, Message: who + " runs, and its startup probe has not succeeded"}
	}
	return &finding{Reason: ReasonProbe, Message: who + " runs, and is not ready"}
}

// isSidecar reports whether an init container is one that stays.
func isSidecar(p *corev1.Pod, name string) bool {
	return slices.ContainsFunc(p.Spec.InitContainers, func(c corev1.Container) bool {
		return c.Name == name && c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	})
}

// crashed reports whether a container that is being started, or not ready, has
// been so before.
func crashed(c corev1.ContainerStatus) bool {
	t := c.LastTerminationState.Terminated
	return t != nil && c.RestartCount > 0 && t.ExitCode != 0
}

func crash(c corev1.ContainerStatus, who string) *finding {
	return &finding{
		Reason:  ReasonCrashLoop,
		Message: fmt.Sprintf("%s %s; restarted %d times", who, exit(c.LastTerminationState.Terminated), c.RestartCount),
	}
}

// exit tells how a container ended.
func exit(t *corev1.ContainerStateTerminated) string {
	text := fmt.Sprintf("ended with exit code %d", t.ExitCode)
	if t.Signal != 0 {
		text += fmt.Sprintf(", signal %d", t.Signal)
	}
	if t.Reason != "" && t.Reason != "Error" && t.Reason != "Completed" {
		text += " (" + t.Reason + ")"
	}
	if message := strings.TrimSpace(t.Message); message != "" {
		text += ": " + message
	}
	return text
}

func condition(p *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == kind {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

func or(text, other string) string {
	if strings.TrimSpace(text) != "" {
		return text
	}
	return other
}
