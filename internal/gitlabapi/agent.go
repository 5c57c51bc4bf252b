package gitlabapi

import (
	"net/http"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

type agentShape struct {
	ID          tidelock.AgentID `json:"id"`
	Name        string           `json:"name"`
	Config      agentProject     `json:"config_project"`
	CreatedAt   stamp            `json:"created_at"`
	CreatedBy   tidelock.UserID  `json:"created_by_user_id"`
	IsReceptive bool             `json:"is_receptive"`
}

type agentProject struct {
	ID                tidelock.ProjectID `json:"id"`
	Description       string             `json:"description"`
	Name              string             `json:"name"`
	NameWithNamespace string             `json:"name_with_namespace"`
	Path              string             `json:"path"`
	PathWithNamespace string             `json:"path_with_namespace"`
	CreatedAt         stamp              `json:"created_at"`
}

func shapeAgent(p tidelock.Project, a tidelock.Agent) agentShape {
	return agentShape{
		ID: a.ID, Name: a.Name, CreatedAt: stamp(a.CreatedAt), CreatedBy: a.Creator,
		Config: agentProject{
			ID: p.ID, Description: p.Description, Name: p.Name, NameWithNamespace: p.FullName,
			Path: p.Path, PathWithNamespace: p.FullPath, CreatedAt: stamp(p.CreatedAt),
		},
	}
}

func (a *API) listAgents(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadAgents)
	if err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	agents, total, err := a.forge.Agents(r.ctx(), r.by, project, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(agents, func(g tidelock.Agent) agentShape { return shapeAgent(project, g) }), total)
}

func (a *API) createAgent(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ManageAgents)
	if err != nil {
		return err
	}
	r.need("name")
	name := r.text("name")
	if err := r.err(); err != nil {
		return err
	}
	agent, err := a.forge.CreateAgent(r.ctx(), r.by, project, name)
	if err != nil {
		return err
	}
	return created(w, shapeAgent(project, agent))
}

// agent is the agent that a route names, to read it.
func (a *API) agent(r *request) (tidelock.Project, tidelock.Agent, error) {
	project, n, err := inProject[tidelock.AgentID](a, r, forge.ReadAgents, "agent_id")
	if err != nil {
		return tidelock.Project{}, tidelock.Agent{}, err
	}
	agent, err := a.forge.Agent(r.ctx(), r.by, project, n)
	return project, agent, err
}

func (a *API) showAgent(w http.ResponseWriter, r *request) error {
	project, agent, err := a.agent(r)
	if err != nil {
		return err
	}
	return ok(w, shapeAgent(project, agent))
}

func (a *API) deleteAgent(w http.ResponseWriter, r *request) error {
	project, agent, err := inProject[tidelock.AgentID](a, r, forge.ManageAgents, "agent_id")
	if err != nil {
		return err
	}
	if err := a.forge.DeleteAgent(r.ctx(), r.by, project, agent); err != nil {
		return err
	}
	return gone(w)
}

// An agentTokenShape is an agent's token in lists; one alone adds when it was
// last used, and the answer that made it the secret.
type agentTokenShape struct {
	ID          tidelock.AgentTokenID `json:"id"`
	Name        string                `json:"name"`
	Description *string               `json:"description"`
	AgentID     tidelock.AgentID      `json:"agent_id"`
	Status      string                `json:"status"`
	CreatedAt   stamp                 `json:"created_at"`
	CreatedBy   tidelock.UserID       `json:"created_by_user_id"`
}

type agentTokenAlone struct {
	agentTokenShape
	LastUsedAt stamp  `json:"last_used_at"`
	Secret     string `json:"token,omitempty"`
}

func shapeAgentToken(t tidelock.AgentToken) agentTokenShape {
	status := "active"
	if t.Revoked {
		status = "revoked"
	}
	return agentTokenShape{
		ID: t.ID, Name: t.Name, Description: orNull(t.Description), AgentID: t.Agent,
		Status: status, CreatedAt: stamp(t.CreatedAt), CreatedBy: t.Creator,
	}
}

func (a *API) listAgentTokens(w http.ResponseWriter, r *request) error {
	project, agent, err := inProject[tidelock.AgentID](a, r, forge.ReadAgents, "agent_id")
	if err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	tokens, err := a.forge.AgentTokens(r.ctx(), r.by, project, agent)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(cut(page, tokens), shapeAgentToken), len(tokens))
}

func (a *API) createAgentToken(w http.ResponseWriter, r *request) error {
	project, agent, err := inProject[tidelock.AgentID](a, r, forge.ManageAgents, "agent_id")
	if err != nil {
		return err
	}
	r.need("name")
	name, description := r.text("name"), r.text("description")
	if err := r.err(); err != nil {
		return err
	}
	token, secret, err := a.forge.CreateAgentToken(r.ctx(), r.by, project, agent, name, description)
	if err != nil {
		return err
	}
	return created(w, agentTokenAlone{shapeAgentToken(token), stamp(token.LastUsed), secret.Reveal()})
}

func (a *API) showAgentToken(w http.ResponseWriter, r *request) error {
	project, agent, err := inProject[tidelock.AgentID](a, r, forge.ReadAgents, "agent_id")
	if err != nil {
		return err
	}
	n, err := id[tidelock.AgentTokenID](r, "token_id")
	if err != nil {
		return err
	}
	token, err := a.forge.AgentToken(r.ctx(), r.by, project, agent, n)
	if err != nil {
		return err
	}
	return ok(w, agentTokenAlone{agentTokenShape: shapeAgentToken(token), LastUsedAt: stamp(token.LastUsed)})
}

func (a *API) revokeAgentToken(w http.ResponseWriter, r *request) error {
	project, agent, err := inProject[tidelock.AgentID](a, r, forge.ManageAgents, "agent_id")
	if err != nil {
		return err
	}
	n, err := id[tidelock.AgentTokenID](r, "token_id")
	if err != nil {
		return err
	}
	if err := a.forge.RevokeAgentToken(r.ctx(), r.by, project, agent, n); err != nil {
		return err
	}
	return gone(w)
}
