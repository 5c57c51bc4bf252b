package tidelock

import "time"

type (
	PipelineID int64
	StatusID   int64
)

// A StatusState is how far a status or a pipeline is, in GitLab's words.
type StatusState string

const (
	StatusCreated  StatusState = "created" // nothing was said yet
	StatusPending  StatusState = "pending"
	StatusRunning  StatusState = "running"
	StatusSuccess  StatusState = "success"
	StatusFailed   StatusState = "failed"
	StatusCanceled StatusState = "canceled"
	StatusSkipped  StatusState = "skipped"
)

// Done reports whether a status or pipeline in this state has ended. A
// pipeline may begin again when another status joins it.
func (s StatusState) Done() bool {
	switch s {
	case StatusSuccess, StatusFailed, StatusCanceled, StatusSkipped:
		return true
	}
	return false
}

// ExternalStage is the stage that all statuses posted from outside stand in,
// and ExternalSource the source of the pipelines they make.
const (
	ExternalStage  = "external"
	ExternalSource = "external"

	// DeployStage is the stage of the jobs that stand for rollouts.
	DeployStage = "deploy"
)

// A Pipeline holds the statuses that were posted to one commit under one ref,
// and sums them up.
type Pipeline struct {
	ID         PipelineID
	IID        int64 // counts within the project, from 1
	Project    ProjectID
	Commit     CommitID
	Ref        string // short name of a branch or tag
	Tag        bool   // Ref is a tag
	Source     string
	State      StatusState
	By         UserID  // 0 for a deploy token
	Token      TokenID // that made it; 0 for none
	CreatedAt  time.Time
	UpdatedAt  time.Time
	StartedAt  time.Time     // zero until a status runs or ends
	FinishedAt time.Time     // zero while it is not done
	Duration   time.Duration // in which at least one status was running
	Coverage   *float64      // the mean over its latest statuses; nil for none
}

// A Status is what somebody outside says of one commit: a named check and its
// state. The newest status of a name in a stage of a pipeline is the latest;
// those before it are kept.
type Status struct {
	ID           StatusID
	Project      ProjectID
	Pipeline     PipelineID
	Commit       CommitID
	Ref          string // that of the pipeline
	Tag          bool
	Stage        string
	Name         string
	State        StatusState
	TargetURL    string
	Description  string
	Coverage     *float64
	AllowFailure bool
	Latest       bool
	By           UserID  // 0 for a deploy token
	Token        TokenID // that posted it first; 0 for none
	CreatedAt    time.Time
	UpdatedAt    time.Time
	StartedAt    time.Time // zero if it never ran
	FinishedAt   time.Time // zero while it is not done
}

// A StatusFilter narrows a list of statuses; zero fields do not.
type StatusFilter struct {
	Project    ProjectID
	Commit     CommitID
	Pipeline   PipelineID
	Ref        string
	Stage      string
	Name       string
	States     []StatusState
	Latest     bool   // only the newest of each name in a stage of a pipeline
	OrderBy    string // id (default), pipeline_id
	Descending bool
}

// A PipelineFilter narrows a list of pipelines; zero fields do not.
type PipelineFilter struct {
	Project       ProjectID
	Commit        CommitID
	Ref           string
	Tag           *bool
	States        []StatusState
	Source        string
	Username      string
	UpdatedAfter  time.Time
	UpdatedBefore time.Time
	CreatedAfter  time.Time
	CreatedBefore time.Time
	// LatestOfRefs keeps only the newest pipeline of each ref.
	LatestOfRefs bool
	OrderBy      string // id (default), status, ref, updated_at, user_id
	Ascending    bool
}
