package tidelock

import "time"

type RolloutID int64

// A RolloutState is how far a commit came in one applier.
type RolloutState string

const (
	RolloutPending    RolloutState = "pending"    // pushed; Flux does not have it yet
	RolloutRunning    RolloutState = "running"    // Flux has it, and applies it or waits for health
	RolloutSuccess    RolloutState = "success"    // applied and healthy
	RolloutFailed     RolloutState = "failed"     // may still succeed when Flux tries again
	RolloutSuperseded RolloutState = "superseded" // another commit took its place before it was done
	RolloutUnknown    RolloutState = "unknown"    // unfinished, and nobody tells how it goes on
)

// Done reports whether the rollout has ended. One that failed, or succeeded,
// may change once more while its commit is the newest of its applier.
func (s RolloutState) Done() bool {
	return s == RolloutSuccess || s == RolloutFailed || s == RolloutSuperseded
}

// A Rollout is one commit on its way through one applier of one agent. There
// is exactly one for each (Agent, Applier, Project, Commit). Times are on the
// server's clock; zero means not yet, or not seen.
type Rollout struct {
	ID          RolloutID
	Agent       AgentID
	AgentName   string // as it is now, for display; not stored
	Applier     ObjectID
	Source      SourceID
	Project     ProjectID
	Commit      CommitID
	Digest      Digest // of the artifact that carried the commit; "" for Git
	Ref         RefName
	Push        PushID // which brought it; 0 when unknown
	Trace       string // of Push
	Environment string // name; see forge
	State       RolloutState
	Reason      string
	Message     string // the real error text, bounded, printable
	Newest      bool   // no later commit is known of this applier
	Turn        int64  // orders the commits of an applier: the later one has a greater one

	PendingAt  time.Time
	RunningAt  time.Time
	AppliedAt  time.Time
	HealthyAt  time.Time
	FinishedAt time.Time // when State became what it is, if it is Done
	ReportedAt time.Time // when the present State was written to the commit
	UpdatedAt  time.Time // grows with every change

	Status     StatusID     // the job; 0 before it is made
	Deployment DeploymentID // 0 before it is made
}

// JobName is the name of the rollout's job in the commit's pipeline.
func (r Rollout) JobName() string {
	_, namespace, name := r.Applier.Split()
	return "flux/" + r.AgentName + "/" + namespace + "/" + name
}

// A RolloutFilter narrows a list of rollouts; zero fields do not.
type RolloutFilter struct {
	Agent       AgentID
	Applier     ObjectID
	Source      SourceID
	Project     ProjectID
	Commit      CommitID
	Push        PushID
	Environment string
	States      []RolloutState
	Newest      bool // only the newest of each applier
	LastSuccess bool // only the last that succeeded, of each applier whose newest has not; of one Project
	Applied     bool // only what was applied, the last first, of one Applier of an Agent
	Unreported  bool
}

// A RolloutSum counts rollouts.
type RolloutSum struct {
	Newest           map[RolloutState]int // the newest of each applier
	Unreported       int
	OldestUnreported time.Time // when it came to be so; zero for none
}
