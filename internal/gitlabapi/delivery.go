package gitlabapi

import (
	"net/http"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// These routes are ours: what GitLab does not tell about agents and about how
// far a push came.

type agentStatus struct {
	ID            tidelock.AgentID  `json:"id"`
	Name          string            `json:"name"`
	Connected     bool              `json:"connected"`
	Connections   []connectionShape `json:"connections"`
	Configuration configShape       `json:"configuration"`
}

type connectionShape struct {
	Instance          string                `json:"instance"`
	TokenID           tidelock.AgentTokenID `json:"token_id"`
	Version           string                `json:"version"`
	Commit            string                `json:"commit"`
	PodNamespace      string                `json:"pod_namespace"`
	PodName           string                `json:"pod_name"`
	KubernetesVersion string                `json:"kubernetes_version"`
	Leader            bool                  `json:"leader"`
	ConnectedAt       exact                 `json:"connected_at"`
	LastSeenAt        exact                 `json:"last_seen_at"`
}

// A configShape says which configuration is in force (good_commit) and what
// is wrong with the newest one, if anything.
type configShape struct {
	Commit     *tidelock.CommitID `json:"commit"`
	GoodCommit *tidelock.CommitID `json:"good_commit"`
	Error      *string            `json:"error"`
	Warnings   []string           `json:"warnings"`
	CheckedAt  exact              `json:"checked_at"`
}

func (a *API) showAgentStatus(w http.ResponseWriter, r *request) error {
	_, agent, err := a.agent(r)
	if err != nil {
		return err
	}
	sessions, err := a.forge.AgentSessions(r.ctx(), agent.ID)
	if err != nil {
		return err
	}
	config, err := a.forge.AgentConfig(r.ctx(), agent.ID)
	if err != nil {
		return err
	}
	return ok(w, agentStatus{
		ID: agent.ID, Name: agent.Name, Connected: len(sessions) > 0,
		Connections: each(sessions, func(s tidelock.AgentSession) connectionShape {
			return connectionShape{
				Instance: s.Instance, TokenID: s.Token, Version: s.Version, Commit: s.Commit,
				PodNamespace: s.PodNamespace, PodName: s.PodName, KubernetesVersion: s.KubernetesVersion,
				Leader: s.Leader, ConnectedAt: exact(s.ConnectedAt), LastSeenAt: exact(s.LastSeen),
			}
		}),
		Configuration: configShape{
			Commit: orNull(config.Commit), GoodCommit: orNull(config.GoodCommit), Error: orNull(config.Error),
			Warnings: list(config.Warnings), CheckedAt: exact(config.CheckedAt),
		},
	})
}

// A grantShape names both sides, as far as the caller may see them.
type grantShape struct {
	AgentID      tidelock.AgentID   `json:"agent_id"`
	AgentName    *string            `json:"agent_name"`
	AgentProject *string            `json:"agent_project"` // full path of the configuration project
	ProjectID    tidelock.ProjectID `json:"project_id"`
	Project      string             `json:"project"` // full path
	GrantedBy    tidelock.UserID    `json:"granted_by_user_id"`
	CreatedAt    exact              `json:"created_at"`
}

// grantShape shapes a grant of a project, whose agent may be hidden.
func (a *API) grantShape(r *request, p tidelock.Project, g tidelock.Grant) (grantShape, error) {
	shape := grantShape{
		AgentID: g.Agent, ProjectID: g.Project, Project: p.FullPath, GrantedBy: g.By, CreatedAt: exact(g.CreatedAt),
	}
	agent, err := a.forge.AgentByID(r.ctx(), g.Agent)
	if err != nil {
		return grantShape{}, err
	}
	config, err := a.forge.ProjectByID(r.ctx(), agent.Project)
	if err != nil {
		return grantShape{}, err
	}
	if a.forge.Allow(r.ctx(), r.by, forge.ReadAgents, forge.OnProject(config)) == nil {
		shape.AgentName, shape.AgentProject = &agent.Name, &config.FullPath
	}
	return shape, nil
}

func (a *API) listGrants(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadGrants)
	if err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	grants, err := a.forge.Grants(r.ctx(), r.by, project)
	if err != nil {
		return err
	}
	shapes := []grantShape{}
	for _, g := range cut(page, grants) {
		shape, err := a.grantShape(r, project, g)
		if err != nil {
			return err
		}
		shapes = append(shapes, shape)
	}
	return writePage(a, w, r, page, shapes, len(grants))
}

// listAgentGrants is the same list from the agent's side.
func (a *API) listAgentGrants(w http.ResponseWriter, r *request) error {
	config, agent, err := inProject[tidelock.AgentID](a, r, forge.ReadAgents, "agent_id")
	if err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	grants, err := a.forge.AgentGrants(r.ctx(), r.by, config, agent)
	if err != nil {
		return err
	}
	shapes := []grantShape{}
	for _, g := range cut(page, grants) {
		project, err := a.forge.ProjectByID(r.ctx(), g.Project)
		if err != nil {
			return err
		}
		shape, err := a.grantShape(r, project, g)
		if err != nil {
			return err
		}
		shapes = append(shapes, shape)
	}
	return writePage(a, w, r, page, shapes, len(grants))
}

// grantAgent answers 201 however often it is asked.
func (a *API) grantAgent(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.GrantAgents)
	if err != nil {
		return err
	}
	r.need("agent_id")
	agent := tidelock.AgentID(r.number("agent_id"))
	if err := r.err(); err != nil {
		return err
	}
	grant, err := a.forge.GrantAgent(r.ctx(), r.by, project, agent)
	if err != nil {
		return err
	}
	shape, err := a.grantShape(r, project, grant)
	if err != nil {
		return err
	}
	return created(w, shape)
}

func (a *API) revokeGrant(w http.ResponseWriter, r *request) error {
	project, agent, err := inProject[tidelock.AgentID](a, r, forge.GrantAgents, "agent_id")
	if err != nil {
		return err
	}
	if err := a.forge.RevokeGrant(r.ctx(), r.by, project, agent); err != nil {
		return missing("Grant", err)
	}
	return gone(w)
}

// An announcementShape has a time for every hop of a push; null is not yet.
type announcementShape struct {
	AgentID     tidelock.AgentID           `json:"agent_id"`
	Source      tidelock.SourceID          `json:"source"`
	Number      int64                      `json:"number"`
	ProjectID   tidelock.ProjectID         `json:"project_id"`
	Ref         tidelock.RefName           `json:"ref"`
	Commit      *tidelock.CommitID         `json:"commit"`
	Digest      *tidelock.Digest           `json:"digest"`
	PushID      *tidelock.PushID           `json:"push_id"`
	State       tidelock.AnnouncementState `json:"state"`
	Message     string                     `json:"message"`
	AcceptedAt  exact                      `json:"accepted_at"`
	SentAt      exact                      `json:"sent_at"`
	AnnouncedAt exact                      `json:"announced_at"`
	CalledAt    exact                      `json:"called_at"`
	AnsweredAt  exact                      `json:"answered_at"`
	HandledAt   exact                      `json:"handled_at"`
	FetchedAt   exact                      `json:"fetched_at"`
	Via         *string                    `json:"via"`
	Attempts    int                        `json:"attempts"`
}

func shapeAnnouncement(n tidelock.Announcement) announcementShape {
	return announcementShape{
		AgentID: n.Agent, Source: n.Source, Number: n.Number, ProjectID: n.Project, Ref: n.Ref,
		Commit: orNull(n.Commit), Digest: orNull(n.Digest), PushID: orNull(n.Push), State: n.State, Message: n.Message,
		AcceptedAt: exact(n.AcceptedAt), SentAt: exact(n.SentAt), AnnouncedAt: exact(n.AnnouncedAt),
		CalledAt: exact(n.CalledAt), AnsweredAt: exact(n.AnsweredAt), HandledAt: exact(n.HandledAt),
		FetchedAt: exact(n.FetchedAt), Via: orNull(n.Via), Attempts: n.Attempts,
	}
}

// announcementFilter reads the parameters that both lists have.
func (p *params) announcementFilter() tidelock.AnnouncementFilter {
	return tidelock.AnnouncementFilter{
		Source: tidelock.SourceID(p.text("source")),
		Commit: tidelock.CommitID(p.text("commit")),
		Digest: tidelock.Digest(p.text("digest")),
		Push:   tidelock.PushID(p.number("push_id")),
		Latest: p.flag("latest"),
	}
}

func (a *API) listAnnouncements(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadDelivery)
	if err != nil {
		return err
	}
	filter, page := r.announcementFilter(), r.page()
	filter.Agent = tidelock.AgentID(r.number("agent_id"))
	if err := r.err(); err != nil {
		return err
	}
	announcements, total, err := a.forge.Announcements(r.ctx(), r.by, project, filter, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(announcements, shapeAnnouncement), total)
}

func (a *API) listAgentAnnouncements(w http.ResponseWriter, r *request) error {
	project, agent, err := a.agent(r)
	if err != nil {
		return err
	}
	filter, page := r.announcementFilter(), r.page()
	if err := r.err(); err != nil {
		return err
	}
	announcements, total, err := a.forge.AgentAnnouncements(r.ctx(), r.by, project, agent.ID, filter, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(announcements, shapeAnnouncement), total)
}

// A sourceShape is one Flux source of an agent; null stands for what is not
// there.
type sourceShape struct {
	Source    tidelock.SourceID          `json:"source"`
	ProjectID *tidelock.ProjectID        `json:"project_id"`
	Ref       *tidelock.RefName          `json:"ref"`
	Wanted    *tidelock.CommitID         `json:"wanted"`
	Digest    *tidelock.Digest           `json:"digest"` // wanted, of sources of images
	Revision  *string                    `json:"revision"`
	Suspended bool                       `json:"suspended"`
	State     tidelock.AnnouncementState `json:"state"`
	Message   string                     `json:"message"`
	Since     exact                      `json:"since"`
	UpdatedAt exact                      `json:"updated_at"`
}

func shapeSource(s tidelock.AgentSource) sourceShape {
	return sourceShape{
		Source: s.Source, ProjectID: orNull(s.Project), Ref: orNull(s.Ref), Wanted: orNull(s.Wanted), Digest: orNull(s.Digest),
		Revision: orNull(s.Revision), Suspended: s.Suspended, State: s.State, Message: s.Message, Since: exact(s.Since), UpdatedAt: exact(s.UpdatedAt),
	}
}

func (a *API) listAgentSources(w http.ResponseWriter, r *request) error {
	project, agent, err := inProject[tidelock.AgentID](a, r, forge.ReadAgents, "agent_id")
	if err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	sources, err := a.forge.AgentSources(r.ctx(), r.by, project, agent)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(cut(page, sources), shapeSource), len(sources))
}

type pushShape struct {
	ID        tidelock.PushID    `json:"id"`
	ProjectID tidelock.ProjectID `json:"project_id"`
	At        exact              `json:"at"`
	User      *pusherShape       `json:"user"` // null when unknown, or a deploy token
	Updates   []updateShape      `json:"updates"`
	Artifact  *artifactUpdate    `json:"artifact"` // null for a push of commits
}

type pusherShape struct {
	ID       tidelock.UserID `json:"id"`
	Username string          `json:"username"`
	Name     string          `json:"name"`
}

// An updateShape is one ref that moved; null stands for its absence before or
// after.
type updateShape struct {
	Ref    tidelock.RefName   `json:"ref"`
	Old    *tidelock.CommitID `json:"old"`
	New    *tidelock.CommitID `json:"new"`
	Commit *tidelock.CommitID `json:"commit"`
}

// An artifactUpdate is what a push of a manifest changed; null stands for the
// tag's absence before or after, for a push by digest alone, and for an image
// that was removed since.
type artifactUpdate struct {
	ImageID tidelock.ImageID   `json:"image_id"`
	Image   *string            `json:"image"`
	Tag     *string            `json:"tag"`
	Old     *tidelock.Digest   `json:"old"`
	New     *tidelock.Digest   `json:"new"`
	Commit  *tidelock.CommitID `json:"commit"`
}

// artifactShapes shapes the artifacts of a project's pushes. It asks for each
// image once.
func (a *API) artifactShapes(r *request, project tidelock.Project) func(*tidelock.ArtifactUpdate) (*artifactUpdate, error) {
	paths := map[tidelock.ImageID]*string{}
	return func(u *tidelock.ArtifactUpdate) (*artifactUpdate, error) {
		if u == nil {
			return nil, nil
		}
		path, known := paths[u.Image]
		if !known {
			switch image, err := a.forge.ImageByID(r.ctx(), u.Image); {
			case err == nil:
				path = new(image.Path(project))
			case tidelock.KindOf(err) != tidelock.NotFound:
				return nil, err
			}
			paths[u.Image] = path
		}
		return &artifactUpdate{
			ImageID: u.Image, Image: path, Tag: orNull(u.Tag), Old: orNull(u.Old), New: orNull(u.New), Commit: orNull(u.Commit),
		}, nil
	}
}

func (a *API) listPushes(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadHistory)
	if err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	pushes, total, err := a.forge.Pushes(r.ctx(), r.by, project, page)
	if err != nil {
		return err
	}
	artifactOf := a.artifactShapes(r, project)
	pushers := map[tidelock.UserID]*pusherShape{0: nil}
	shapes := make([]pushShape, len(pushes))
	for i, p := range pushes {
		pusher, known := pushers[p.By]
		if !known {
			switch user, err := a.forge.UserByID(r.ctx(), p.By); {
			case err == nil:
				pusher = &pusherShape{ID: user.ID, Username: user.Username, Name: user.Name}
			case tidelock.KindOf(err) != tidelock.NotFound:
				return err
			}
			pushers[p.By] = pusher
		}
		artifact, err := artifactOf(p.Artifact)
		if err != nil {
			return err
		}
		shapes[i] = pushShape{ID: p.ID, ProjectID: p.Project, At: exact(p.At), User: pusher, Artifact: artifact,
			Updates: each(p.Updates, func(u tidelock.RefUpdate) updateShape {
				return updateShape{Ref: u.Ref, Old: orNull(u.Old), New: orNull(u.New), Commit: orNull(u.Commit)}
			}),
		}
	}
	return writePage(a, w, r, page, shapes, total)
}
