package gitlabapi

import (
	"net/http"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// rolloutRoutes are ours: how far each commit came in each cluster.
func (a *API) rolloutRoutes() []route {
	return []route{
		{get, "/projects/:id/rollouts", a.listRollouts},
	}
}

// A rolloutShape has a time for every step; null is not yet, or not seen.
type rolloutShape struct {
	ID           tidelock.RolloutID     `json:"id"`
	AgentID      tidelock.AgentID       `json:"agent_id"`
	Agent        string                 `json:"agent"` // its name
	Applier      tidelock.ObjectID      `json:"applier"`
	Source       tidelock.SourceID      `json:"source"`
	SHA          tidelock.CommitID      `json:"sha"`
	Digest       *tidelock.Digest       `json:"digest"` // of the artifact that carried the commit; null for Git
	Ref          *tidelock.RefName      `json:"ref"`
	PushID       *tidelock.PushID       `json:"push_id"`
	Environment  *string                `json:"environment"`
	State        tidelock.RolloutState  `json:"state"`
	Reason       string                 `json:"reason"`
	Message      string                 `json:"message"`
	Newest       bool                   `json:"newest"`
	PendingAt    exact                  `json:"pending_at"`
	RunningAt    exact                  `json:"running_at"`
	AppliedAt    exact                  `json:"applied_at"`
	HealthyAt    exact                  `json:"healthy_at"`
	FinishedAt   exact                  `json:"finished_at"`
	ReportedAt   exact                  `json:"reported_at"`
	UpdatedAt    exact                  `json:"updated_at"`
	JobID        *tidelock.StatusID     `json:"job_id"`
	DeploymentID *tidelock.DeploymentID `json:"deployment_id"`
}

func shapeRollout(r tidelock.Rollout) rolloutShape {
	return rolloutShape{
		ID: r.ID, AgentID: r.Agent, Agent: r.AgentName, Applier: r.Applier, Source: r.Source, SHA: r.Commit, Digest: orNull(r.Digest),
		Ref: orNull(r.Ref), PushID: orNull(r.Push), Environment: orNull(r.Environment),
		State: r.State, Reason: r.Reason, Message: r.Message, Newest: r.Newest,
		PendingAt: exact(r.PendingAt), RunningAt: exact(r.RunningAt), AppliedAt: exact(r.AppliedAt), HealthyAt: exact(r.HealthyAt),
		FinishedAt: exact(r.FinishedAt), ReportedAt: exact(r.ReportedAt), UpdatedAt: exact(r.UpdatedAt),
		JobID: orNull(r.Status), DeploymentID: orNull(r.Deployment),
	}
}

var rolloutStates = []string{"pending", "running", "success", "failed", "superseded", "unknown"}

func (a *API) listRollouts(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadDelivery)
	if err != nil {
		return err
	}
	filter := tidelock.RolloutFilter{
		Agent: tidelock.AgentID(r.number("agent_id")), Applier: tidelock.ObjectID(r.text("applier")), Source: tidelock.SourceID(r.text("source")),
		Commit: tidelock.CommitID(r.text("sha")), Push: tidelock.PushID(r.number("push_id")), Environment: r.text("environment"),
		Newest: r.flag("newest"),
	}
	if state := r.word("state", append([]string{""}, rolloutStates...)...); state != "" {
		filter.States = []tidelock.RolloutState{tidelock.RolloutState(state)}
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	rollouts, total, err := a.forge.Rollouts(r.ctx(), r.by, project, filter, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(rollouts, shapeRollout), total)
}
