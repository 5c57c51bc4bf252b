package forge

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/bus"
)

// CreateAgent registers an agent in its configuration project.
func (f *Forge) CreateAgent(ctx context.Context, p Principal, project tidelock.Project, name string) (tidelock.Agent, error) {
	if err := f.Allow(ctx, p, ManageAgents, OnProject(project)); err != nil {
		return tidelock.Agent{}, err
	}
	if !agentPattern.MatchString(name) {
		return tidelock.Agent{}, tidelock.FieldErrorf(tidelock.Invalid, "name",
			"can contain only lowercase letters, digits, and '-', but cannot start or end with '-', and is at most 63 characters long")
	}
	by, _ := p.ids()
	var made tidelock.Agent
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		made, err = f.store.CreateAgent(ctx, tidelock.Agent{Project: project.ID, Name: name, Creator: by, CreatedAt: f.now().UTC()})
		return change{act: "agent created", on: OnProject(project), subject: agentSubject(made)}, err
	})
	if err != nil {
		return tidelock.Agent{}, err
	}
	return made, nil
}

func agentSubject(a tidelock.Agent) string { return fmt.Sprintf("agent %d %q", a.ID, a.Name) }

// Agents lists the agents of a configuration project.
func (f *Forge) Agents(ctx context.Context, p Principal, project tidelock.Project, page tidelock.Page) ([]tidelock.Agent, int, error) {
	if err := f.Allow(ctx, p, ReadAgents, OnProject(project)); err != nil {
		return nil, 0, err
	}
	return f.store.Agents(ctx, tidelock.AgentFilter{Project: project.ID}, page)
}

// AllAgents lists every agent, for an administrator and for the server itself.
func (f *Forge) AllAgents(ctx context.Context) ([]tidelock.Agent, error) {
	agents, _, err := f.store.Agents(ctx, tidelock.AgentFilter{}, tidelock.Page{})
	return agents, err
}

// Agent reads an agent of a configuration project.
func (f *Forge) Agent(ctx context.Context, p Principal, project tidelock.Project, id tidelock.AgentID) (tidelock.Agent, error) {
	return f.agent(ctx, p, project, id, ReadAgents)
}

func (f *Forge) agent(ctx context.Context, p Principal, project tidelock.Project, id tidelock.AgentID, a Action) (tidelock.Agent, error) {
	if err := f.Allow(ctx, p, a, OnProject(project)); err != nil {
		return tidelock.Agent{}, err
	}
	agent, err := f.store.Agent(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && agent.Project != project.ID) {
		return tidelock.Agent{}, tidelock.Errorf(tidelock.NotFound, "Not found")
	}
	return agent, err
}

// DeleteAgent removes an agent; its sessions end within 5 s. The cluster is
// not touched.
func (f *Forge) DeleteAgent(ctx context.Context, p Principal, project tidelock.Project, id tidelock.AgentID) error {
	agent, err := f.agent(ctx, p, project, id, ManageAgents)
	if err != nil {
		return err
	}
	var ended []*report
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		if ended, err = f.endReports(ctx, id); err != nil {
			return change{}, err
		}
		return change{act: "agent deleted", on: OnProject(project), subject: agentSubject(agent)}, f.store.DeleteAgent(ctx, id)
	})
	if err != nil {
		return err
	}
	for _, r := range ended {
		r.tell(ctx)
	}
	publish(f, tidelock.AgentChanged{Agent: id})
	return nil
}

// CreateAgentToken makes a token for an agent; a third active one is refused.
func (f *Forge) CreateAgentToken(ctx context.Context, p Principal, project tidelock.Project, id tidelock.AgentID, name, description string) (tidelock.AgentToken, tidelock.Secret, error) {
	agent, err := f.agent(ctx, p, project, id, ManageAgents)
	if err != nil {
		return tidelock.AgentToken{}, tidelock.Secret{}, err
	}
	if err := checkName("name", name); err != nil {
		return tidelock.AgentToken{}, tidelock.Secret{}, err
	}
	if len(description) > 1024 {
		return tidelock.AgentToken{}, tidelock.Secret{}, tidelock.FieldErrorf(tidelock.Invalid, "description", "is too long (maximum is 1024 characters)")
	}
	secret := newSecret(prefixAgent, 50)
	by, _ := p.ids()
	var token tidelock.AgentToken
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		token, err = f.store.CreateAgentToken(ctx, tidelock.AgentToken{
			Agent: id, Name: name, Description: description, Creator: by, CreatedAt: f.now().UTC(),
		}, hashOf(secret))
		return change{act: "agent token created", on: OnProject(project), subject: agentSubject(agent), detail: agentTokenDetail(token)}, err
	})
	if err != nil {
		return tidelock.AgentToken{}, tidelock.Secret{}, err
	}
	f.log.InfoContext(ctx, "agent token created", "agent", id, "token", token.ID, "by", by)
	return token, secret, nil
}

func agentTokenDetail(t tidelock.AgentToken) string { return fmt.Sprintf("token %d %q", t.ID, t.Name) }

// AgentTokens lists an agent's active tokens.
func (f *Forge) AgentTokens(ctx context.Context, p Principal, project tidelock.Project, id tidelock.AgentID) ([]tidelock.AgentToken, error) {
	if _, err := f.agent(ctx, p, project, id, ReadAgents); err != nil {
		return nil, err
	}
	return f.store.AgentTokens(ctx, id)
}

// AgentToken reads one active token of an agent.
func (f *Forge) AgentToken(ctx context.Context, p Principal, project tidelock.Project, id tidelock.AgentID, token tidelock.AgentTokenID) (tidelock.AgentToken, error) {
	return f.agentToken(ctx, p, project, id, token, ReadAgents)
}

func (f *Forge) agentToken(ctx context.Context, p Principal, project tidelock.Project, id tidelock.AgentID, token tidelock.AgentTokenID, a Action) (tidelock.AgentToken, error) {
	if _, err := f.agent(ctx, p, project, id, a); err != nil {
		return tidelock.AgentToken{}, err
	}
	t, err := f.store.AgentToken(ctx, token)
	if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && (t.Agent != id || t.Revoked)) {
		return tidelock.AgentToken{}, tidelock.Errorf(tidelock.NotFound, "Not found")
	}
	return t, err
}

// RevokeAgentToken ends a token; live sessions that use it end within 5 s.
func (f *Forge) RevokeAgentToken(ctx context.Context, p Principal, project tidelock.Project, id tidelock.AgentID, token tidelock.AgentTokenID) error {
	t, err := f.agentToken(ctx, p, project, id, token, ManageAgents)
	if err != nil {
		return err
	}
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		return change{act: "agent token revoked", on: OnProject(project), subject: fmt.Sprintf("agent %d", id), detail: agentTokenDetail(t)},
			f.store.RevokeAgentToken(ctx, token)
	})
	if err != nil {
		return err
	}
	by, _ := p.ids()
	f.log.InfoContext(ctx, "agent token revoked", "agent", id, "token", token, "by", by)
	publish(f, tidelock.AgentChanged{Agent: id})
	return nil
}

// LiveAgentTokens returns those of the ids that are still good.
func (f *Forge) LiveAgentTokens(ctx context.Context, ids []tidelock.AgentTokenID) ([]tidelock.AgentTokenID, error) {
	return f.store.LiveAgentTokens(ctx, ids)
}

// GrantAgent lets an agent be told of a project's pushes.
func (f *Forge) GrantAgent(ctx context.Context, p Principal, project tidelock.Project, agent tidelock.AgentID) (tidelock.Grant, error) {
	if err := f.Allow(ctx, p, GrantAgents, OnProject(project)); err != nil {
		return tidelock.Grant{}, err
	}
	to, err := f.store.Agent(ctx, agent)
	if err != nil {
		if tidelock.KindOf(err) == tidelock.NotFound {
			return tidelock.Grant{}, tidelock.Errorf(tidelock.NotFound, "Agent Not Found")
		}
		return tidelock.Grant{}, err
	}
	by, _ := p.ids()
	grant := tidelock.Grant{Project: project.ID, Agent: agent, By: by, CreatedAt: f.now().UTC()}
	granted, err := f.store.Granted(ctx, agent, project.ID)
	if err != nil {
		return tidelock.Grant{}, err
	}
	if granted { // again, nothing changes
		return f.grant(ctx, grant)
	}
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		return change{act: "agent granted", on: OnProject(project), subject: agentSubject(to)}, f.store.Grant(ctx, grant)
	})
	if err != nil {
		return tidelock.Grant{}, err
	}
	publish(f, tidelock.AccessChanged{Project: project.ID})
	return f.grant(ctx, grant)
}

// grant reads a grant as it was first given.
func (f *Forge) grant(ctx context.Context, given tidelock.Grant) (tidelock.Grant, error) {
	grants, err := f.store.GrantsTo(ctx, given.Agent)
	if err != nil {
		return tidelock.Grant{}, err
	}
	for _, g := range grants {
		if g.Project == given.Project {
			return g, nil
		}
	}
	return given, nil
}

// RevokeGrant takes a grant back.
func (f *Forge) RevokeGrant(ctx context.Context, p Principal, project tidelock.Project, agent tidelock.AgentID) error {
	if err := f.Allow(ctx, p, GrantAgents, OnProject(project)); err != nil {
		return err
	}
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		return change{act: "grant revoked", on: OnProject(project), subject: fmt.Sprintf("agent %d", agent)}, f.store.RevokeGrant(ctx, project.ID, agent)
	})
	if err != nil {
		return err
	}
	publish(f, tidelock.AccessChanged{Project: project.ID})
	return nil
}

// Grants lists the agents that were granted a project.
func (f *Forge) Grants(ctx context.Context, p Principal, project tidelock.Project) ([]tidelock.Grant, error) {
	if err := f.Allow(ctx, p, ReadGrants, OnProject(project)); err != nil {
		return nil, err
	}
	return f.store.Grants(ctx, project.ID)
}

// AgentGrants lists the projects that an agent of a configuration project was
// granted, as far as the caller may see them.
func (f *Forge) AgentGrants(ctx context.Context, p Principal, project tidelock.Project, id tidelock.AgentID) ([]tidelock.Grant, error) {
	if _, err := f.agent(ctx, p, project, id, ReadAgents); err != nil {
		return nil, err
	}
	all, err := f.store.GrantsTo(ctx, id)
	if err != nil {
		return nil, err
	}
	seen := []tidelock.Grant{}
	for _, g := range all {
		granted, err := f.store.Project(ctx, g.Project)
		if err == nil {
			err = f.Allow(ctx, p, ReadProject, OnProject(granted))
		}
		if tidelock.KindOf(err) == tidelock.NotFound {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read project %d granted to agent %d: %w", g.Project, id, err)
		}
		seen = append(seen, g)
	}
	return seen, nil
}

// AgentMayServe decides whether an agent may be told of a project: its own
// configuration project, public ones, and those it was granted.
func (f *Forge) AgentMayServe(ctx context.Context, agent tidelock.Agent, project tidelock.Project) (bool, error) {
	if project.ID == agent.Project || project.Visibility == tidelock.Public {
		return true, nil
	}
	return f.store.Granted(ctx, agent.ID, project.ID)
}

// AgentMayReport decides whether what an agent sees of a project counts there:
// becomes statuses, deployments and answers. Anybody's agent may be told of a
// public project, but only one that belongs to the project's owners, or was
// granted it, may say what became of a commit: its configuration project is
// this one or is in the same top-level group.
func (f *Forge) AgentMayReport(ctx context.Context, agent tidelock.Agent, project tidelock.Project) (bool, error) {
	if project.ID == agent.Project {
		return true, nil
	}
	granted, err := f.store.Granted(ctx, agent.ID, project.ID)
	if err != nil || granted {
		return granted, err
	}
	if project.Visibility != tidelock.Public {
		return false, nil
	}
	config, err := f.store.Project(ctx, agent.Project)
	if err != nil {
		if tidelock.KindOf(err) == tidelock.NotFound {
			err = nil // being deleted
		}
		return false, err
	}
	theirs, _, _ := strings.Cut(config.FullPath, "/")
	ours, _, _ := strings.Cut(project.FullPath, "/")
	return strings.EqualFold(theirs, ours), nil
}

// ConfigFileLimit is the size, in bytes, above which a configuration file is
// refused.
const ConfigFileLimit = 128 << 10

// A ConfigFile is an agent's configuration file as it is on the default branch
// of the configuration project.
type ConfigFile struct {
	Text   string            // "" when there is none
	Commit tidelock.CommitID // the head of the default branch; "" when it does not exist
}

// ReadConfigFile reads .gitlab/agents/<name>/config.yaml of an agent. A
// missing file is empty; one over ConfigFileLimit is an error of kind
// TooLarge, with the commit still told.
func (f *Forge) ReadConfigFile(ctx context.Context, agent tidelock.Agent) (ConfigFile, error) {
	project, err := f.store.Project(ctx, agent.Project)
	if err != nil {
		return ConfigFile{}, fmt.Errorf("read the configuration project of agent %d: %w", agent.ID, err)
	}
	head, err := f.store.Head(ctx, project.ID, tidelock.BranchRef(project.DefaultBranch))
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
		return ConfigFile{}, nil
	case err != nil:
		return ConfigFile{}, fmt.Errorf("read the head of project %d: %w", project.ID, err)
	}
	found := ConfigFile{Commit: head.Commit}
	path := ".gitlab/agents/" + agent.Name + "/config.yaml"
	file, err := f.repos.Repo(project.ID).Content(ctx, string(head.Commit), path, ConfigFileLimit)
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
		return found, nil
	case tidelock.KindOf(err) == tidelock.TooLarge:
		return found, tidelock.Errorf(tidelock.TooLarge, "%s is larger than %d bytes", path, ConfigFileLimit)
	case err != nil:
		return found, fmt.Errorf("read %s of agent %d: %w", path, agent.ID, err)
	}
	found.Text = string(file.Content)
	return found, nil
}

// AgentConfig reads what is known of an agent's configuration.
func (f *Forge) AgentConfig(ctx context.Context, id tidelock.AgentID) (tidelock.AgentConfig, error) {
	return f.store.AgentConfig(ctx, id)
}

// SaveAgentConfig keeps what is known of an agent's configuration.
func (f *Forge) SaveAgentConfig(ctx context.Context, c tidelock.AgentConfig) error {
	return f.store.SaveAgentConfig(ctx, c)
}

// SessionLife is how long after it was last seen a session still counts.
const SessionLife = 90 * time.Second

// SaveAgentSession keeps one live connection of an agent.
func (f *Forge) SaveAgentSession(ctx context.Context, s tidelock.AgentSession) error {
	return f.store.SaveAgentSession(ctx, s)
}

// RemoveAgentSession forgets a connection, unless another server holds it now.
func (f *Forge) RemoveAgentSession(ctx context.Context, s tidelock.AgentSession) error {
	return f.store.RemoveAgentSession(ctx, s.Agent, s.Instance, s.Server)
}

// RemoveStaleSessions forgets the connections of servers that died.
func (f *Forge) RemoveStaleSessions(ctx context.Context) error {
	return f.store.RemoveStaleSessions(ctx, f.now().Add(-SessionLife))
}

// AgentSessions lists the live connections of an agent, or of all agents when
// the id is 0.
func (f *Forge) AgentSessions(ctx context.Context, id tidelock.AgentID) ([]tidelock.AgentSession, error) {
	sessions, err := f.store.AgentSessions(ctx, id)
	if err != nil {
		return nil, err
	}
	live := sessions[:0]
	oldest := f.now().Add(-SessionLife)
	for _, s := range sessions {
		if s.LastSeen.After(oldest) {
			live = append(live, s)
		}
	}
	return live, nil
}

// AgentLeft keeps that a connection of an agent ended, and why.
func (f *Forge) AgentLeft(ctx context.Context, s tidelock.AgentSession, why string) error {
	return f.store.SaveAgentPresence(ctx, tidelock.AgentPresence{Agent: s.Agent, LastSeen: s.LastSeen, Left: why})
}

// AgentAway says since when an agent has not been connected: zero while it is,
// and when it was registered if it never was.
func (f *Forge) AgentAway(ctx context.Context, id tidelock.AgentID) (since time.Time, err error) {
	since, _, err = f.agentAway(ctx, id)
	return since, err
}

// agentAway is AgentAway, and why the last connection ended.
func (f *Forge) agentAway(ctx context.Context, id tidelock.AgentID) (since time.Time, why string, err error) {
	live, err := f.AgentSessions(ctx, id)
	if err != nil || len(live) > 0 {
		return time.Time{}, "", err
	}
	presence, err := f.store.AgentPresence(ctx, id)
	if err != nil {
		return time.Time{}, "", err
	}
	if len(presence) > 0 {
		return presence[0].LastSeen, presence[0].Left, nil
	}
	agent, err := f.store.Agent(ctx, id)
	return agent.CreatedAt, "it never connected", err
}

// AgentByID reads an agent, for the server's own use.
func (f *Forge) AgentByID(ctx context.Context, id tidelock.AgentID) (tidelock.Agent, error) {
	return f.store.Agent(ctx, id)
}

// ProjectByID reads a project, for the server's own use.
func (f *Forge) ProjectByID(ctx context.Context, id tidelock.ProjectID) (tidelock.Project, error) {
	return f.store.Project(ctx, id)
}

// ProjectByPath reads a project by its full path or an old one, for the
// server's own use.
func (f *Forge) ProjectByPath(ctx context.Context, fullPath string) (tidelock.Project, error) {
	return f.store.ProjectByPath(ctx, fullPath)
}

// Subscribe hears events of one type; see bus.Subscribe.
func Subscribe[E any](f *Forge, fn func(E)) (*bus.Subscription, error) {
	return bus.Subscribe(f.bus, fn)
}

// OnLag hears that events were lost; see bus.OnLag.
func (f *Forge) OnLag(fn func()) (cancel func()) { return f.bus.OnLag(fn) }
