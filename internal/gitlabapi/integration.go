package gitlabapi

import (
	"net/http"
	"slices"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// integrationRoutes has each route twice: GitLab's clients still use the name
// that integrations had first.
func (a *API) integrationRoutes() []route {
	var routes []route
	for _, noun := range []string{"integrations", "services"} {
		routes = append(routes,
			route{get, "/projects/:id/" + noun, a.listIntegrations},
			route{get, "/projects/:id/" + noun + "/slack", a.showIntegration(tidelock.Slack)},
			route{put, "/projects/:id/" + noun + "/slack", a.saveIntegration(tidelock.Slack)},
			route{del, "/projects/:id/" + noun + "/slack", a.deleteIntegration(tidelock.Slack)},
		)
	}
	return routes
}

// An integrationShape never holds the URL.
type integrationShape struct {
	ID                 tidelock.IntegrationID   `json:"id"`
	Title              string                   `json:"title"`
	Slug               tidelock.IntegrationKind `json:"slug"`
	CreatedAt          stamp                    `json:"created_at"`
	UpdatedAt          stamp                    `json:"updated_at"`
	Active             bool                     `json:"active"`
	Inherited          bool                     `json:"inherited"`
	Commit             bool                     `json:"commit_events"`
	Push               bool                     `json:"push_events"`
	Issues             bool                     `json:"issues_events"`
	Incident           bool                     `json:"incident_events"`
	Alert              bool                     `json:"alert_events"`
	ConfidentialIssues bool                     `json:"confidential_issues_events"`
	MergeRequests      bool                     `json:"merge_requests_events"`
	TagPush            bool                     `json:"tag_push_events"`
	Deployment         bool                     `json:"deployment_events"`
	Note               bool                     `json:"note_events"`
	ConfidentialNote   bool                     `json:"confidential_note_events"`
	Pipeline           bool                     `json:"pipeline_events"`
	WikiPage           bool                     `json:"wiki_page_events"`
	Job                bool                     `json:"job_events"`
	Vulnerability      bool                     `json:"vulnerability_events"`
	CommentOnEvent     bool                     `json:"comment_on_event_enabled"`

	// Ours.
	AlertStatus string `json:"alert_status"`
	DisabledAt  stamp  `json:"disabled_until"`
}

type integrationDetail struct {
	integrationShape
	Properties integrationProperties `json:"properties"`

	// Ours: how the newest message went. All are null before the first.
	LastAt     stamp   `json:"last_attempt_at"`
	LastStatus *int    `json:"last_response_status"`
	LastError  *string `json:"last_error"`
}

type integrationProperties struct {
	Username          string            `json:"username"`
	Channel           string            `json:"channel"`
	OnlyBroken        bool              `json:"notify_only_broken_pipelines"`
	Branches          tidelock.Branches `json:"branches_to_be_notified"`
	PipelineChannel   string            `json:"pipeline_channel"`
	DeploymentChannel string            `json:"deployment_channel"`
}

func (a *API) shapeIntegration(i tidelock.Integration) integrationShape {
	unused := func(kind string) bool { return slices.Contains(i.Unused, kind) }
	shape := integrationShape{
		ID: i.ID, Title: "Slack notifications", Slug: i.Kind, CreatedAt: stamp(i.CreatedAt), UpdatedAt: stamp(i.UpdatedAt), Active: true,
		Pipeline: i.Pipelines, Deployment: i.Deployments,
		Push: unused("push"), Issues: unused("issues"), Incident: unused("incident"), Alert: unused("alert"),
		ConfidentialIssues: unused("confidential_issues"), MergeRequests: unused("merge_requests"), TagPush: unused("tag_push"),
		Note: unused("note"), ConfidentialNote: unused("confidential_note"), WikiPage: unused("wiki_page"), Job: unused("job"),
		Vulnerability: unused("vulnerability"), AlertStatus: "executable",
	}
	if i.HeldUntil.After(a.now()) {
		shape.AlertStatus, shape.DisabledAt = "temporarily_disabled", stamp(i.HeldUntil)
	}
	return shape
}

func (a *API) detailIntegration(i tidelock.Integration, last tidelock.Attempt) integrationDetail {
	detail := integrationDetail{
		integrationShape: a.shapeIntegration(i),
		Properties: integrationProperties{
			Username: i.Username, Channel: i.Channel, OnlyBroken: i.OnlyBroken, Branches: i.Branches,
			PipelineChannel: i.PipelineChannel, DeploymentChannel: i.DeploymentChannel,
		},
		LastAt: stamp(last.At), LastError: orNull(last.Error),
	}
	if last.Status != 0 {
		detail.LastStatus = &last.Status
	}
	return detail
}

func (a *API) listIntegrations(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadIntegrations)
	if err != nil {
		return err
	}
	all, err := a.forge.Integrations(r.ctx(), r.by, project)
	if err != nil {
		return err
	}
	return ok(w, each(all, a.shapeIntegration))
}

func (a *API) showIntegration(kind tidelock.IntegrationKind) func(http.ResponseWriter, *request) error {
	return func(w http.ResponseWriter, r *request) error {
		project, err := a.project(r, forge.ReadIntegrations)
		if err != nil {
			return err
		}
		i, last, err := a.forge.Integration(r.ctx(), r.by, project, kind)
		if err != nil {
			return err
		}
		return ok(w, a.detailIntegration(i, last))
	}
}

func (a *API) saveIntegration(kind tidelock.IntegrationKind) func(http.ResponseWriter, *request) error {
	return func(w http.ResponseWriter, r *request) error {
		project, err := a.project(r, forge.ManageIntegrations)
		if err != nil {
			return err
		}
		fields := r.integrationFields()
		if err := r.err(); err != nil {
			return err
		}
		i, err := a.forge.SaveIntegration(r.ctx(), r.by, project, kind, fields)
		if err != nil {
			return err
		}
		return ok(w, a.detailIntegration(i, tidelock.Attempt{}))
	}
}

// integrationFields reads what an integration may be given; absent fields stay
// nil.
func (r *request) integrationFields() forge.IntegrationFields {
	f := forge.IntegrationFields{
		URL:               given(&r.params, "webhook", func(name string) tidelock.Secret { return tidelock.NewSecret(r.text(name)) }),
		Username:          given(&r.params, "username", r.text),
		Channel:           given(&r.params, "channel", r.text),
		Pipelines:         given(&r.params, "pipeline_events", r.flag),
		PipelineChannel:   given(&r.params, "pipeline_channel", r.text),
		Deployments:       given(&r.params, "deployment_events", r.flag),
		DeploymentChannel: given(&r.params, "deployment_channel", r.text),
		OnlyBroken:        given(&r.params, "notify_only_broken_pipelines", r.flag),
		Unused:            map[string]bool{},
	}
	f.Branches = given(&r.params, "branches_to_be_notified", func(name string) tidelock.Branches { return tidelock.Branches(r.text(name)) })
	if only := given(&r.params, "notify_only_default_branch", r.flag); only != nil && *only && f.Branches == nil {
		branches := tidelock.DefaultBranch // as GitLab's older clients say it
		f.Branches = &branches
	}
	for _, kind := range forge.UnusedIntegrationKinds {
		if wants := given(&r.params, kind+"_events", r.flag); wants != nil {
			f.Unused[kind] = *wants
		}
	}
	return f
}

func (a *API) deleteIntegration(kind tidelock.IntegrationKind) func(http.ResponseWriter, *request) error {
	return func(w http.ResponseWriter, r *request) error {
		project, err := a.project(r, forge.ManageIntegrations)
		if err != nil {
			return err
		}
		if err := a.forge.DeleteIntegration(r.ctx(), r.by, project, kind); err != nil {
			return err
		}
		return gone(w)
	}
}
