package tidelock

import "time"

type (
	EnvironmentID int64
	DeploymentID  int64
)

// An EnvironmentState is whether something is deployed to an environment, in
// GitLab's words.
type EnvironmentState string

const (
	EnvironmentAvailable EnvironmentState = "available"
	EnvironmentStopped   EnvironmentState = "stopped"
)

// A Tier is what an environment is for, in GitLab's words.
type Tier string

const (
	TierProduction  Tier = "production"
	TierStaging     Tier = "staging"
	TierTesting     Tier = "testing"
	TierDevelopment Tier = "development"
	TierOther       Tier = "other"
)

// An Environment is a place that a project is deployed to, such as
// "production" or "review/login". It may name an agent, a namespace of the
// agent's cluster and the Flux object there that brings the project.
type Environment struct {
	ID                  EnvironmentID
	Project             ProjectID
	Name                string // unique in its project
	Slug                string // made once from Name: a DNS label of at most 24 bytes
	Description         string
	ExternalURL         string
	State               EnvironmentState
	Tier                Tier
	Agent               AgentID // 0 for none
	KubernetesNamespace string
	FluxResourcePath    string // such as kustomize.toolkit.fluxcd.io/v1/namespaces/flux-system/kustomizations/apps
	CreatedAt           time.Time
	UpdatedAt           time.Time
}

// An EnvironmentFilter narrows a list of environments; zero fields do not.
type EnvironmentFilter struct {
	Project ProjectID
	Name    string // exact
	Search  string // in the name
	State   EnvironmentState
	Agent   AgentID
}

// A DeploymentState is how far a deployment is, in GitLab's words.
type DeploymentState string

const (
	DeploymentCreated  DeploymentState = "created"
	DeploymentRunning  DeploymentState = "running"
	DeploymentSuccess  DeploymentState = "success"
	DeploymentFailed   DeploymentState = "failed"
	DeploymentCanceled DeploymentState = "canceled"
)

// Done reports whether a deployment in this state has ended.
func (s DeploymentState) Done() bool {
	switch s {
	case DeploymentSuccess, DeploymentFailed, DeploymentCanceled:
		return true
	}
	return false
}

// A Deployment is one commit on its way to, or in, one environment.
type Deployment struct {
	ID          DeploymentID
	IID         int64 // counts within the project, from 1
	Project     ProjectID
	Environment EnvironmentID
	Ref         string // short name of a branch or tag
	Tag         bool   // Ref is a tag
	Commit      CommitID
	State       DeploymentState
	By          UserID
	CreatedAt   time.Time
	UpdatedAt   time.Time
	FinishedAt  time.Time // zero while it is not done
}

// A DeploymentFilter narrows a list of deployments; zero fields do not.
type DeploymentFilter struct {
	Project        ProjectID
	Environment    string // its name
	EnvironmentID  EnvironmentID
	Commit         CommitID
	State          DeploymentState
	UpdatedAfter   time.Time
	UpdatedBefore  time.Time
	FinishedAfter  time.Time
	FinishedBefore time.Time
	OrderBy        string // id (default), iid, created_at, updated_at, finished_at, ref
	Descending     bool
}
