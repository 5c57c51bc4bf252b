package tidelock

// Events say "look again". They carry no state and may be lost or repeated;
// whoever hears one reads the store.

// Pushed says that heads of a project, or tags of its images, may have changed.
type Pushed struct {
	Project ProjectID
	Push    PushID
}

// AccessChanged says that a project's visibility, path, owner, existence or
// grants may have changed.
type AccessChanged struct {
	Project ProjectID
}

// AgentChanged says that an agent's tokens, configuration or existence may
// have changed.
type AgentChanged struct {
	Agent AgentID
}

// StatusChanged says that the statuses of a commit, and with them a pipeline,
// may have changed.
type StatusChanged struct {
	Project ProjectID
	Commit  CommitID
}

// DeploymentChanged says that an environment of a project, or what is deployed
// to one, may have changed.
type DeploymentChanged struct {
	Project ProjectID
}

// HooksDue says that something may have happened of which hooks of a project
// want to know.
type HooksDue struct {
	Project ProjectID
}

// Observed says that what agents see of a project's objects may have changed.
type Observed struct {
	Project ProjectID
}

// RolloutChanged says that rollouts of a commit may have changed.
type RolloutChanged struct {
	Project ProjectID
	Commit  CommitID
}
