package console

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// What one page shows at most; the rest is counted.
const (
	agentsShown   = 50
	projectsShown = 50
	pushesShown   = 20
)

// overviewPage is everything at a glance: agents, pushes, projects.
type overviewPage struct {
	frame
	Now time.Time

	Agents     []agentRow
	MoreAgents int
	Connected  int // of all agents, shown or not
	AllAgents  int

	Pushes pushTable

	Projects     []projectRow
	MoreProjects int
}

// A tone is how a state is coloured; the words beside it say the same.
type tone string

const (
	good tone = "good"
	busy tone = "busy"
	warn tone = "warn"
	bad  tone = "bad"
	idle tone = "idle"
)

type agentRow struct {
	Name       string
	Project    string
	State      string
	Tone       tone
	Replicas   int
	Version    string // of the agent
	Kubernetes string
	LastSeen   time.Time
	Sources    []stateCount // by how far the latest announcement of each came
	Problem    string       // what is wrong with its configuration
	Warnings   []string
}

type projectRow struct {
	Path          string
	Link          string
	Description   string
	Visibility    tidelock.Visibility
	DefaultBranch string
	Archived      bool
	UpdatedAt     time.Time
}

func (c *Console) overview(w http.ResponseWriter, r *http.Request, viewer forge.Principal) error {
	ctx := r.Context()
	page := overviewPage{frame: c.frame("Overview", viewer), Now: c.now()}
	look := c.look(viewer)
	if err := look.agents(ctx, &page); err != nil {
		return err
	}
	pushes, _, err := c.forge.RecentPushes(ctx, viewer, tidelock.Page{Number: 1, PerPage: pushesShown})
	if err != nil {
		return fmt.Errorf("list pushes: %w", err)
	}
	if page.Pushes, err = look.pushes(ctx, pushes); err != nil {
		return err
	}
	if err := look.listProjects(ctx, &page); err != nil {
		return err
	}
	return c.render(w, http.StatusOK, "overview", page)
}

// A look is one viewer's reading of the forge for one page. It asks for each
// project, user and image once.
type look struct {
	console  *Console
	viewer   forge.Principal
	projects map[tidelock.ProjectID]*tidelock.Project // nil: not to be seen
	users    map[tidelock.UserID]string
	images   map[tidelock.ImageID]*tidelock.Image // nil: gone
}

func (c *Console) look(viewer forge.Principal) *look {
	return &look{
		console: c, viewer: viewer,
		projects: map[tidelock.ProjectID]*tidelock.Project{},
		users:    map[tidelock.UserID]string{},
		images:   map[tidelock.ImageID]*tidelock.Image{},
	}
}

// project returns nil for what the viewer may not see or has gone.
func (l *look) project(ctx context.Context, id tidelock.ProjectID) (*tidelock.Project, error) {
	if p, ok := l.projects[id]; ok {
		return p, nil
	}
	p, err := l.console.forge.Project(ctx, l.viewer, fmt.Sprint(int64(id)))
	switch tidelock.KindOf(err) {
	case tidelock.NotFound, tidelock.Denied, tidelock.Unauthenticated:
		l.projects[id] = nil
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read project %d: %w", id, err)
	}
	l.projects[id] = &p
	return &p, nil
}

// username returns "" for those that the viewer may not see.
func (l *look) username(ctx context.Context, id tidelock.UserID) (string, error) {
	if id == 0 || l.viewer.User == nil {
		return "", nil
	}
	if name, ok := l.users[id]; ok {
		return name, nil
	}
	user, err := l.console.forge.User(ctx, l.viewer, id)
	switch kind := tidelock.KindOf(err); {
	case kind == tidelock.NotFound || kind == tidelock.Denied:
	case err != nil:
		return "", fmt.Errorf("read user %d: %w", id, err)
	}
	l.users[id] = user.Username
	return user.Username, nil
}

func (l *look) agents(ctx context.Context, page *overviewPage) error {
	if l.viewer.User == nil {
		return nil // agents are for members
	}
	f := l.console.forge
	all, err := f.AllAgents(ctx)
	if err != nil {
		return fmt.Errorf("list agents: %w", err)
	}
	live, err := f.AgentSessions(ctx, 0)
	if err != nil {
		return fmt.Errorf("list the sessions of agents: %w", err)
	}
	sessions := map[tidelock.AgentID][]tidelock.AgentSession{}
	for _, s := range live {
		sessions[s.Agent] = append(sessions[s.Agent], s)
	}
	mayRead := map[tidelock.ProjectID]bool{}
	for _, agent := range all {
		project, err := l.project(ctx, agent.Project)
		if err != nil {
			return err
		}
		if project == nil {
			continue
		}
		allowed, known := mayRead[project.ID]
		if !known {
			allowed = f.Allow(ctx, l.viewer, forge.ReadAgents, forge.OnProject(*project)) == nil
			mayRead[project.ID] = allowed
		}
		if !allowed {
			continue
		}
		page.AllAgents++
		if len(sessions[agent.ID]) > 0 {
			page.Connected++
		}
		if len(page.Agents) == agentsShown {
			page.MoreAgents++
			continue
		}
		row, err := l.agent(ctx, agent, *project, sessions[agent.ID])
		if err != nil {
			return err
		}
		page.Agents = append(page.Agents, row)
	}
	return nil
}

func (l *look) agent(ctx context.Context, agent tidelock.Agent, project tidelock.Project, sessions []tidelock.AgentSession) (agentRow, error) {
	f := l.console.forge
	row := agentRow{Name: agent.Name, Project: project.FullPath, Replicas: len(sessions), State: "not connected", Tone: bad}
	if len(sessions) > 0 {
		// The leader speaks for all; without one any replica does.
		leader := slices.MaxFunc(sessions, func(a, b tidelock.AgentSession) int {
			switch {
			case a.Leader != b.Leader && a.Leader:
				return 1
			case a.Leader != b.Leader:
				return -1
			}
			return a.LastSeen.Compare(b.LastSeen)
		})
		row.State, row.Tone = "connected", good
		if !leader.Leader {
			row.State, row.Tone = "connected, no leader yet", busy
		}
		row.Version, row.Kubernetes, row.LastSeen = leader.Version, leader.KubernetesVersion, leader.LastSeen
	}
	config, err := f.AgentConfig(ctx, agent.ID)
	if err != nil {
		return row, fmt.Errorf("read the configuration of agent %d: %w", agent.ID, err)
	}
	row.Problem, row.Warnings = config.Error, config.Warnings
	latest, _, err := f.AgentAnnouncements(ctx, l.viewer, project, agent.ID, tidelock.AnnouncementFilter{Latest: true}, tidelock.Page{})
	if err != nil {
		return row, fmt.Errorf("list the announcements of agent %d: %w", agent.ID, err)
	}
	for _, a := range latest {
		row.Sources = append(row.Sources, announcementWords(a.State))
	}
	row.Sources = tally(row.Sources)
	return row, nil
}

func (l *look) listProjects(ctx context.Context, page *overviewPage) error {
	found, total, err := l.console.forge.Projects(ctx, l.viewer, tidelock.ProjectFilter{OrderBy: "updated_at", Descending: true}, tidelock.Page{Number: 1, PerPage: projectsShown})
	if err != nil {
		return fmt.Errorf("list projects: %w", err)
	}
	for _, p := range found {
		page.Projects = append(page.Projects, projectRow{
			Path: p.FullPath, Link: l.console.projectLink(p), Description: p.Description, Visibility: p.Visibility,
			DefaultBranch: p.DefaultBranch, Archived: p.Archived, UpdatedAt: p.UpdatedAt,
		})
	}
	slices.SortFunc(page.Projects, func(a, b projectRow) int { return cmp.Compare(a.Path, b.Path) })
	page.MoreProjects = total - len(found)
	return nil
}
