package gitlabapi

import (
	"net/http"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func (a *API) deploymentRoutes() []route {
	return []route{
		{get, "/projects/:id/deployments", a.listDeployments},
		{post, "/projects/:id/deployments", a.createDeployment},
		{get, "/projects/:id/deployments/:deployment_id", a.showDeployment},
		{put, "/projects/:id/deployments/:deployment_id", a.editDeployment},
		{del, "/projects/:id/deployments/:deployment_id", a.deleteDeployment},
	}
}

// A deploymentBasic is a deployment inside its environment. Nothing here made
// it, so there is never a deployable job.
type deploymentBasic struct {
	ID         tidelock.DeploymentID    `json:"id"`
	IID        int64                    `json:"iid"`
	Ref        string                   `json:"ref"`
	SHA        tidelock.CommitID        `json:"sha"`
	Status     tidelock.DeploymentState `json:"status"`
	CreatedAt  stamp                    `json:"created_at"`
	UpdatedAt  stamp                    `json:"updated_at"`
	User       *userShape               `json:"user"`
	Deployable *struct{}                `json:"deployable"`
}

type deploymentShape struct {
	deploymentBasic
	Environment environmentBasic `json:"environment"`
}

func shapeDeploymentBasic(d tidelock.Deployment, user *userShape) deploymentBasic {
	return deploymentBasic{
		ID: d.ID, IID: d.IID, Ref: d.Ref, SHA: d.Commit, Status: d.State,
		CreatedAt: stamp(d.CreatedAt), UpdatedAt: stamp(d.UpdatedAt), User: user,
	}
}

// deploymentShapes shapes deployments of a project.
func (a *API) deploymentShapes(r *request, p tidelock.Project, deployments ...tidelock.Deployment) ([]deploymentShape, error) {
	by := a.authors(r)
	envs := map[tidelock.EnvironmentID]environmentBasic{}
	return shapes(deployments, func(d tidelock.Deployment) (deploymentShape, error) {
		user, err := by.of(d.By, 0)
		if err != nil {
			return deploymentShape{}, err
		}
		env, known := envs[d.Environment]
		if !known {
			read, err := a.forge.EnvironmentOf(r.ctx(), r.by, p, d)
			if err != nil {
				return deploymentShape{}, err
			}
			env = shapeEnvironmentBasic(read)
			envs[d.Environment] = env
		}
		return deploymentShape{shapeDeploymentBasic(d, user), env}, nil
	})
}

func (a *API) writeDeployment(w http.ResponseWriter, r *request, status int, p tidelock.Project, d tidelock.Deployment) error {
	list, err := a.deploymentShapes(r, p, d)
	if err != nil {
		return err
	}
	return writeJSON(w, status, list[0])
}

func (a *API) listDeployments(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadDeployments)
	if err != nil {
		return err
	}
	filter := tidelock.DeploymentFilter{
		Environment:  r.text("environment"),
		State:        tidelock.DeploymentState(r.word("status", "", "created", "running", "success", "failed", "canceled", "skipped", "blocked")),
		UpdatedAfter: r.when("updated_after"), UpdatedBefore: r.when("updated_before"),
		FinishedAfter: r.when("finished_after"), FinishedBefore: r.when("finished_before"),
		OrderBy:    r.word("order_by", "id", "iid", "created_at", "updated_at", "finished_at", "ref"),
		Descending: r.word("sort", "asc", "desc") == "desc",
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	deployments, total, err := a.forge.Deployments(r.ctx(), r.by, project, filter, page)
	if err != nil {
		return err
	}
	list, err := a.deploymentShapes(r, project, deployments...)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, list, total)
}

// deploymentState reads the state that a deployment shall have.
func (p *params) deploymentState() tidelock.DeploymentState {
	return tidelock.DeploymentState(p.oneOf("status", "running", "success", "failed", "canceled"))
}

func (a *API) createDeployment(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.WriteDeployments)
	if err != nil {
		return err
	}
	r.need("environment", "sha", "ref", "tag")
	wanted := forge.NewDeployment{
		Environment: r.text("environment"), Commit: r.text("sha"), Ref: r.text("ref"), Tag: r.flag("tag"), State: r.deploymentState(),
	}
	if err := r.err(); err != nil {
		return err
	}
	deployment, err := a.forge.Deploy(r.ctx(), r.by, project, wanted)
	if err != nil {
		return err
	}
	return a.writeDeployment(w, r, http.StatusCreated, project, deployment)
}

func (a *API) showDeployment(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.DeploymentID](a, r, forge.ReadDeployments, "deployment_id")
	if err != nil {
		return err
	}
	deployment, err := a.forge.Deployment(r.ctx(), r.by, project, n)
	if err != nil {
		return err
	}
	return a.writeDeployment(w, r, http.StatusOK, project, deployment)
}

func (a *API) editDeployment(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.DeploymentID](a, r, forge.WriteDeployments, "deployment_id")
	if err != nil {
		return err
	}
	state := r.deploymentState()
	if err := r.err(); err != nil {
		return err
	}
	deployment, err := a.forge.SetDeploymentState(r.ctx(), r.by, project, n, state)
	if err != nil {
		return err
	}
	return a.writeDeployment(w, r, http.StatusOK, project, deployment)
}

func (a *API) deleteDeployment(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.DeploymentID](a, r, forge.DeleteDeployment, "deployment_id")
	if err != nil {
		return err
	}
	if err := a.forge.DeleteDeployment(r.ctx(), r.by, project, n); err != nil {
		return plainly(err)
	}
	return gone(w)
}
