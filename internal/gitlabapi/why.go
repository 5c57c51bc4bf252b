package gitlabapi

import (
	"net/http"
	"slices"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// whyRoutes are ours: what keeps a commit from being live.
func (a *API) whyRoutes() []route {
	return []route{{get, "/projects/:id/repository/commits/:sha/why", a.showWhy}}
}

type whyShape struct {
	SHA         tidelock.CommitID `json:"sha"`
	Environment *string           `json:"environment"` // null for all
	Blocked     bool              `json:"blocked"`     // somewhere
	Verdicts    []verdictShape    `json:"verdicts"`    // one for each environment
}

type verdictShape struct {
	Environment *string            `json:"environment"` // null when it holds for all of them
	Code        tidelock.CauseCode `json:"code"`
	Blocking    bool               `json:"blocking"`
	Sentence    string             `json:"sentence"`
	Next        *string            `json:"next"`
	AgentID     *tidelock.AgentID  `json:"agent_id"`
	Agent       *string            `json:"agent"`
	Object      *tidelock.ObjectID `json:"object"`
	Since       exact              `json:"since"`
	Evidence    []evidenceShape    `json:"evidence"`
	Also        []verdictShape     `json:"also"`
}

type evidenceShape struct {
	Where string `json:"where"`
	What  string `json:"what"`
	At    exact  `json:"at"`
}

func shapeVerdict(v tidelock.Verdict) verdictShape {
	return verdictShape{
		Environment: orNull(v.Environment), Code: v.Code, Blocking: v.Blocking(), Sentence: v.Sentence, Next: orNull(v.Next),
		AgentID: orNull(v.Agent), Agent: orNull(v.AgentName), Object: orNull(v.Object), Since: exact(v.Since),
		Evidence: each(v.Evidence, func(e tidelock.Evidence) evidenceShape { return evidenceShape{e.Where, e.What, exact(e.At)} }),
		Also:     each(v.Also, shapeVerdict),
	}
}

func (a *API) showWhy(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadDelivery)
	if err != nil {
		return err
	}
	environment := r.text("environment")
	if err := r.err(); err != nil {
		return err
	}
	verdicts, err := a.forge.Why(r.ctx(), r.by, project, r.arg("sha"), environment)
	if err != nil {
		return missing("Commit", err)
	}
	shape := whyShape{
		Environment: orNull(environment), Blocked: slices.ContainsFunc(verdicts, tidelock.Verdict.Blocking),
		Verdicts: each(verdicts, shapeVerdict),
	}
	if len(verdicts) > 0 {
		shape.SHA = verdicts[0].Commit
	}
	return ok(w, shape)
}
