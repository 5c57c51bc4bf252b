package health

// Words that may stand in tidelock.ObjectHealth.Reason. Others are those of
// the object's own conditions, in its controller's words.
const (
	// Of an object, whatever its kind.
	ReasonNotFound    = "NotFound"    // it is gone, or never came
	ReasonTerminating = "Terminating" // it is being deleted
	ReasonUnobserved  = "LatestGenerationNotObserved"
	ReasonForbidden   = "Forbidden"     // the agent may not see it
	ReasonNoKind      = "KindNotServed" // the API server knows no such kind
	ReasonUnreachable = "Unreachable"   // the API server does not answer, or not usefully
	ReasonUnreadable  = "Unreadable"    // its status does not make sense
	ReasonTooMany     = "TooMany"       // more than the agent follows

	// Of a workload, from its own status or from events about it.
	ReasonPaused       = "DeploymentPaused"
	ReasonQuota        = "QuotaExceeded"
	ReasonLimitRange   = "LimitRangeViolated"
	ReasonPodSecurity  = "PodSecurityViolated"
	ReasonFailedCreate = "FailedCreate" // pods are refused for any other reason
	ReasonUnbound      = "Unbound"      // a PersistentVolumeClaim
	ReasonJobFailed    = "JobFailed"
	ReasonJobRunning   = "JobRunning"

	// Of a pod. The kubelet's own words are kept as they are.
	ReasonErrImagePull     = "ErrImagePull"
	ReasonImagePullBackOff = "ImagePullBackOff"
	ReasonInvalidImage     = "InvalidImageName"
	ReasonImageNeverPull   = "ErrImageNeverPull"
	ReasonCrashLoop        = "CrashLoopBackOff"           // the message has exit code and reason, such as OOMKilled
	ReasonConfigMissing    = "CreateContainerConfigError" // a ConfigMap or Secret that is not there
	ReasonCreateContainer  = "CreateContainerError"
	ReasonRunContainer     = "RunContainerError"
	ReasonUnschedulable    = "Unschedulable"
	ReasonProbe            = "ProbeFailing" // it runs, and is not ready
	ReasonEvicted          = "Evicted"
	ReasonNodeLost         = "NodeLost"
	ReasonFailedMount      = "FailedMount"
	ReasonPodFailed        = "PodFailed"
	ReasonStarting         = "ContainerCreating"
)
