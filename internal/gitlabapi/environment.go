package gitlabapi

import (
	"net/http"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func (a *API) environmentRoutes() []route {
	return []route{
		{get, "/projects/:id/environments", a.listEnvironments},
		{post, "/projects/:id/environments", a.createEnvironment},
		{get, "/projects/:id/environments/:environment_id", a.showEnvironment},
		{put, "/projects/:id/environments/:environment_id", a.editEnvironment},
		{del, "/projects/:id/environments/:environment_id", a.deleteEnvironment},
		{post, "/projects/:id/environments/:environment_id/stop", a.stopEnvironment},
	}
}

// An environmentBasic is an environment inside a deployment.
type environmentBasic struct {
	ID          tidelock.EnvironmentID `json:"id"`
	Name        string                 `json:"name"`
	Slug        string                 `json:"slug"`
	ExternalURL *string                `json:"external_url"`
	CreatedAt   stamp                  `json:"created_at"`
	UpdatedAt   stamp                  `json:"updated_at"`
}

type environmentShape struct {
	environmentBasic
	Description         *string                   `json:"description"`
	State               tidelock.EnvironmentState `json:"state"`
	Tier                tidelock.Tier             `json:"tier"`
	AutoStopAt          stamp                     `json:"auto_stop_at"`
	AutoStopSetting     string                    `json:"auto_stop_setting"`
	ClusterAgent        *agentShape               `json:"cluster_agent"`
	KubernetesNamespace *string                   `json:"kubernetes_namespace"`
	FluxResourcePath    *string                   `json:"flux_resource_path"`
	LastDeployment      *deploymentBasic          `json:"last_deployment"`
}

func shapeEnvironmentBasic(e tidelock.Environment) environmentBasic {
	return environmentBasic{
		ID: e.ID, Name: e.Name, Slug: e.Slug, ExternalURL: orNull(e.ExternalURL),
		CreatedAt: stamp(e.CreatedAt), UpdatedAt: stamp(e.UpdatedAt),
	}
}

// environmentShapes shapes environments of a project. The agent of one is
// shown to those who may read it where it belongs.
func (a *API) environmentShapes(r *request, p tidelock.Project, envs ...tidelock.Environment) ([]environmentShape, error) {
	last, err := a.forge.LastDeployments(r.ctx(), r.by, p, envs...)
	if err != nil {
		return nil, err
	}
	deployed := map[tidelock.EnvironmentID]tidelock.Deployment{}
	for _, d := range last {
		deployed[d.Environment] = d
	}
	by := a.authors(r)
	return shapes(envs, func(e tidelock.Environment) (environmentShape, error) {
		shape := environmentShape{
			environmentBasic: shapeEnvironmentBasic(e), Description: orNull(e.Description),
			State: e.State, Tier: e.Tier, AutoStopSetting: "always",
			KubernetesNamespace: orNull(e.KubernetesNamespace), FluxResourcePath: orNull(e.FluxResourcePath),
		}
		agent, config, seen, err := a.forge.AgentOf(r.ctx(), r.by, e)
		if err != nil {
			return shape, err
		}
		if seen {
			shape.ClusterAgent = new(shapeAgent(config, agent))
		}
		if d, ok := deployed[e.ID]; ok {
			user, err := by.of(d.By, 0)
			if err != nil {
				return shape, err
			}
			shape.LastDeployment = new(shapeDeploymentBasic(d, user))
		}
		return shape, nil
	})
}

func (a *API) writeEnvironment(w http.ResponseWriter, r *request, status int, p tidelock.Project, e tidelock.Environment) error {
	list, err := a.environmentShapes(r, p, e)
	if err != nil {
		return err
	}
	return writeJSON(w, status, list[0])
}

func (a *API) listEnvironments(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadEnvironments)
	if err != nil {
		return err
	}
	filter := tidelock.EnvironmentFilter{
		Name: r.text("name"), Search: r.text("search"),
		State: tidelock.EnvironmentState(r.word("states", "", "available", "stopping", "stopped")),
	}
	if filter.Name != "" && filter.Search != "" {
		r.note("name, search", "cannot be used together")
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	envs, total, err := a.forge.Environments(r.ctx(), r.by, project, filter, page)
	if err != nil {
		return err
	}
	list, err := a.environmentShapes(r, project, envs...)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, list, total)
}

// environmentEdit reads what is said of an environment. A cluster_agent_id
// that is empty takes the agent away.
func (p *params) environmentEdit() forge.EnvironmentEdit {
	edit := forge.EnvironmentEdit{
		Description: given(p, "description", p.text), ExternalURL: given(p, "external_url", p.text),
		KubernetesNamespace: given(p, "kubernetes_namespace", p.text), FluxResourcePath: given(p, "flux_resource_path", p.text),
	}
	if tier := p.word("tier", "", "production", "staging", "testing", "development", "other"); tier != "" {
		edit.Tier = new(tidelock.Tier(tier))
	}
	if p.has("cluster_agent_id") {
		edit.Agent = new(tidelock.AgentID(p.number("cluster_agent_id")))
	}
	if p.has("slug") {
		p.note("slug", "is automatically generated and cannot be changed")
	}
	p.word("auto_stop_setting", "always", "with_action")
	return edit
}

func (a *API) createEnvironment(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ManageEnvironments)
	if err != nil {
		return err
	}
	r.need("name")
	name, edit := r.text("name"), r.environmentEdit()
	if err := r.err(); err != nil {
		return err
	}
	env, err := a.forge.CreateEnvironment(r.ctx(), r.by, project, name, edit)
	if err != nil {
		return err
	}
	return a.writeEnvironment(w, r, http.StatusCreated, project, env)
}

func (a *API) showEnvironment(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.EnvironmentID](a, r, forge.ReadEnvironments, "environment_id")
	if err != nil {
		return err
	}
	env, err := a.forge.Environment(r.ctx(), r.by, project, n)
	if err != nil {
		return err
	}
	return a.writeEnvironment(w, r, http.StatusOK, project, env)
}

func (a *API) editEnvironment(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.EnvironmentID](a, r, forge.ManageEnvironments, "environment_id")
	if err != nil {
		return err
	}
	edit := r.environmentEdit()
	if err := r.err(); err != nil {
		return err
	}
	env, err := a.forge.EditEnvironment(r.ctx(), r.by, project, n, edit)
	if err != nil {
		return err
	}
	return a.writeEnvironment(w, r, http.StatusOK, project, env)
}

func (a *API) deleteEnvironment(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.EnvironmentID](a, r, forge.ManageEnvironments, "environment_id")
	if err != nil {
		return err
	}
	if err := a.forge.DeleteEnvironment(r.ctx(), r.by, project, n); err != nil {
		return err
	}
	return gone(w)
}

func (a *API) stopEnvironment(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.EnvironmentID](a, r, forge.ManageEnvironments, "environment_id")
	if err != nil {
		return err
	}
	env, err := a.forge.StopEnvironment(r.ctx(), r.by, project, n)
	if err != nil {
		return err
	}
	return a.writeEnvironment(w, r, http.StatusOK, project, env)
}
