package webhook

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
)

const (
	maxCommits = 20
	// maxBody bounds a payload: Flux's receiver takes 3 MiB, and every one is
	// kept for a while.
	maxBody = 1 << 20

	noCommit = "0000000000000000000000000000000000000000"
	hidden   = "[REDACTED]" // what GitLab says of an address that is not public
)

// links makes the URLs that payloads carry.
type links struct {
	external url.URL
	ssh      *url.URL
}

func (l links) web(path ...string) string { return l.external.JoinPath(path...).String() }

func (l links) git(p tidelock.Project) (http, ssh string) {
	http = l.web(p.FullPath) + ".git"
	if l.ssh != nil {
		ssh = l.ssh.JoinPath(p.FullPath).String() + ".git"
	}
	return http, ssh
}

type projectShape struct {
	ID                tidelock.ProjectID  `json:"id"`
	Name              string              `json:"name"`
	Description       string              `json:"description"`
	WebURL            string              `json:"web_url"`
	AvatarURL         *string             `json:"avatar_url"`
	GitSSHURL         string              `json:"git_ssh_url"`
	GitHTTPURL        string              `json:"git_http_url"`
	Namespace         string              `json:"namespace"`
	Visibility        tidelock.Visibility `json:"visibility_level"`
	PathWithNamespace string              `json:"path_with_namespace"`
	DefaultBranch     string              `json:"default_branch"`
	CIConfigPath      *string             `json:"ci_config_path"`
}

// projectFull has the older names too, which pushes still carry.
type projectFull struct {
	projectShape
	Homepage string `json:"homepage"`
	URL      string `json:"url"`
	SSHURL   string `json:"ssh_url"`
	HTTPURL  string `json:"http_url"`
}

func (l links) project(f forge.HookFacts) projectShape {
	p := f.Project
	http, ssh := l.git(p)
	return projectShape{
		ID: p.ID, Name: p.Name, Description: p.Description, WebURL: l.web(p.FullPath), GitSSHURL: ssh, GitHTTPURL: http,
		Namespace: f.Namespace.Name, Visibility: p.Visibility, PathWithNamespace: p.FullPath, DefaultBranch: p.DefaultBranch,
	}
}

type userShape struct {
	ID        *tidelock.UserID `json:"id"`
	Name      string           `json:"name"`
	Username  string           `json:"username"`
	AvatarURL *string          `json:"avatar_url"`
	Email     string           `json:"email"`
}

func shapeUser(u tidelock.User) *userShape {
	if u.ID == 0 {
		return nil
	}
	return &userShape{ID: &u.ID, Name: u.Name, Username: u.Username, Email: hidden}
}

type authorShape struct {
	Name  string `json:"name"`
	Email string `json:"email"`
}

type commitShape struct {
	ID        tidelock.CommitID `json:"id"`
	Message   string            `json:"message"`
	Title     string            `json:"title"`
	Timestamp string            `json:"timestamp"`
	URL       string            `json:"url"`
	Author    authorShape       `json:"author"`
}

type changedShape struct {
	commitShape
	Added    []string `json:"added"`
	Modified []string `json:"modified"`
	Removed  []string `json:"removed"`
}

func (l links) commitURL(p tidelock.Project, id tidelock.CommitID) string {
	return l.web(p.FullPath, "-", "commit", string(id))
}

func (l links) commit(p tidelock.Project, c gitrepo.Commit) commitShape {
	return commitShape{
		ID: c.ID, Message: c.Message, Title: c.Title, Timestamp: c.Committer.When.Format(time.RFC3339),
		URL: l.commitURL(p, c.ID), Author: authorShape{c.Author.Name, c.Author.Email},
	}
}

// shapeCommits puts commits in the order of payloads: oldest first.
func (l links) shapeCommits(p tidelock.Project, commits []gitrepo.ChangedCommit) []changedShape {
	shapes := make([]changedShape, 0, len(commits))
	for _, c := range slices.Backward(commits) {
		shapes = append(shapes, changedShape{
			commitShape: l.commit(p, c.Commit), Added: list(c.Added), Modified: list(c.Modified), Removed: list(c.Removed),
		})
	}
	return shapes
}

// list is never null in JSON.
func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

type pushPayload struct {
	ObjectKind   string             `json:"object_kind"`
	EventName    string             `json:"event_name"`
	Before       tidelock.CommitID  `json:"before"`
	After        tidelock.CommitID  `json:"after"`
	Ref          string             `json:"ref"`
	CheckoutSHA  *tidelock.CommitID `json:"checkout_sha"`
	Message      *string            `json:"message"`
	UserID       *tidelock.UserID   `json:"user_id"`
	UserName     string             `json:"user_name"`
	UserUsername string             `json:"user_username"`
	UserEmail    string             `json:"user_email"`
	UserAvatar   *string            `json:"user_avatar"`
	ProjectID    tidelock.ProjectID `json:"project_id"`
	Project      projectFull        `json:"project"`
	Commits      []changedShape     `json:"commits"`
	TotalCommits int                `json:"total_commits_count"`
	PushOptions  struct{}           `json:"push_options"`
	Repository   repositoryShape    `json:"repository"`
}

type repositoryShape struct {
	Name        string              `json:"name"`
	URL         string              `json:"url"`
	Description string              `json:"description"`
	Homepage    string              `json:"homepage"`
	GitHTTPURL  string              `json:"git_http_url"`
	GitSSHURL   string              `json:"git_ssh_url"`
	Visibility  tidelock.Visibility `json:"visibility_level"`
}

func (l links) push(f forge.HookFacts, u tidelock.RefUpdate) *pushPayload {
	p := l.project(f)
	cloneURL := p.GitSSHURL
	if cloneURL == "" {
		cloneURL = p.GitHTTPURL
	}
	kind := u.HookKind()
	payload := &pushPayload{
		ObjectKind: string(kind), EventName: string(kind),
		Before: orZeros(u.Old), After: orZeros(u.New), Ref: strings.ToValidUTF8(string(u.Ref), "\uFFFD"),
		ProjectID: f.Project.ID,
		Project:   projectFull{projectShape: p, Homepage: p.WebURL, URL: cloneURL, SSHURL: p.GitSSHURL, HTTPURL: p.GitHTTPURL},
		Commits:   []changedShape{},
		Repository: repositoryShape{
			Name: p.Name, URL: cloneURL, Description: p.Description, Homepage: p.WebURL,
			GitHTTPURL: p.GitHTTPURL, GitSSHURL: p.GitSSHURL, Visibility: p.Visibility,
		},
	}
	if u.Commit != "" {
		payload.CheckoutSHA = &u.Commit
	}
	if f.User.ID != 0 {
		payload.UserID, payload.UserName, payload.UserUsername, payload.UserEmail = &f.User.ID, f.User.Name, f.User.Username, hidden
	}
	return payload
}

func orZeros(id tidelock.CommitID) tidelock.CommitID {
	if id == "" {
		return noCommit
	}
	return id
}

func (p *pushPayload) list(commits []changedShape, total int) {
	p.Commits, p.TotalCommits = commits, total
}

// shrink leaves out what matters least, first the paths, then the length of
// messages, then commits. It is false when nothing more can go.
func (p *pushPayload) shrink() bool {
	for i := range p.Commits {
		if c := &p.Commits[i]; len(c.Added)+len(c.Modified)+len(c.Removed) > 0 {
			c.Added, c.Modified, c.Removed = []string{}, []string{}, []string{}
			return true
		}
	}
	const enough = 1 << 10
	for i := range p.Commits {
		if c := &p.Commits[i]; len(c.Message) > 2*enough || len(c.Title) > 2*enough {
			c.Message, c.Title = cut(c.Message, enough), cut(c.Title, enough)
			return true
		}
	}
	if len(p.Commits) == 0 {
		return false
	}
	p.Commits = p.Commits[1:]
	return true
}

func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return strings.ToValidUTF8(text[:n], "") + "…"
}

// fit writes a payload that is not too large.
func fit(payload interface{ shrink() bool }) ([]byte, error) {
	for {
		text, err := json.Marshal(payload)
		if err != nil {
			return nil, fmt.Errorf("write the payload of a hook: %w", err)
		}
		if len(text) <= maxBody {
			return text, nil
		}
		if !payload.shrink() {
			return nil, fmt.Errorf("write the payload of a hook: it has %d bytes", len(text))
		}
	}
}

// A when is a time as payloads of pipelines write it; null for none.
type when time.Time

func (t when) MarshalJSON() ([]byte, error) {
	if time.Time(t).IsZero() {
		return []byte("null"), nil
	}
	return []byte(time.Time(t).UTC().Format(`"2006-01-02 15:04:05 UTC"`)), nil
}

type pipelinePayload struct {
	ObjectKind   string          `json:"object_kind"`
	Attributes   pipelineShape   `json:"object_attributes"`
	MergeRequest *struct{}       `json:"merge_request"`
	User         *userShape      `json:"user"`
	Project      projectShape    `json:"project"`
	Commit       *commitShape    `json:"commit"`
	Builds       []pipelineBuild `json:"builds"`
}

type pipelineShape struct {
	ID             tidelock.PipelineID  `json:"id"`
	IID            int64                `json:"iid"`
	Name           *string              `json:"name"`
	Ref            string               `json:"ref"`
	Tag            bool                 `json:"tag"`
	SHA            tidelock.CommitID    `json:"sha"`
	BeforeSHA      tidelock.CommitID    `json:"before_sha"`
	Source         string               `json:"source"`
	Status         tidelock.StatusState `json:"status"`
	DetailedStatus string               `json:"detailed_status"`
	Stages         []string             `json:"stages"`
	CreatedAt      when                 `json:"created_at"`
	FinishedAt     when                 `json:"finished_at"`
	Duration       *int                 `json:"duration"`
	QueuedDuration *int                 `json:"queued_duration"`
	Variables      []struct{}           `json:"variables"`
	URL            string               `json:"url"`
}

type pipelineBuild struct {
	ID             tidelock.StatusID    `json:"id"`
	Stage          string               `json:"stage"`
	Name           string               `json:"name"`
	Status         tidelock.StatusState `json:"status"`
	CreatedAt      when                 `json:"created_at"`
	StartedAt      when                 `json:"started_at"`
	FinishedAt     when                 `json:"finished_at"`
	Duration       *float64             `json:"duration"`
	QueuedDuration *float64             `json:"queued_duration"`
	FailureReason  *string              `json:"failure_reason"`
	When           string               `json:"when"`
	Manual         bool                 `json:"manual"`
	AllowFailure   bool                 `json:"allow_failure"`
	User           *userShape           `json:"user"`
	Runner         *struct{}            `json:"runner"`
	ArtifactsFile  artifactsShape       `json:"artifacts_file"`
	Environment    *buildPlace          `json:"environment"`
}

// A buildPlace is where a job deploys to.
type buildPlace struct {
	Name   string        `json:"name"`
	Action string        `json:"action"`
	Tier   tidelock.Tier `json:"deployment_tier"`
}

type artifactsShape struct {
	Filename *string `json:"filename"`
	Size     *int64  `json:"size"`
}

func (l links) pipeline(f forge.HookFacts) *pipelinePayload {
	p := f.Pipeline
	payload := &pipelinePayload{
		ObjectKind: string(tidelock.HookPipeline),
		Attributes: pipelineShape{
			ID: p.ID, IID: p.IID, Ref: p.Ref, Tag: p.Tag, SHA: p.Commit, BeforeSHA: noCommit, Source: p.Source,
			Status: p.State, DetailedStatus: string(p.State), Stages: []string{}, CreatedAt: when(p.CreatedAt), FinishedAt: when(p.FinishedAt),
			Variables: []struct{}{}, URL: l.web(f.Project.FullPath, "-", "pipelines", fmt.Sprint(p.ID)),
		},
		User: shapeUser(f.User), Project: l.project(f), Builds: []pipelineBuild{},
	}
	if p.State == tidelock.StatusSuccess {
		payload.Attributes.DetailedStatus = "passed" // GitLab's label, the only one that differs
	}
	if !p.FinishedAt.IsZero() {
		seconds := int(p.Duration.Seconds())
		payload.Attributes.Duration = &seconds
	}
	if f.Commit.ID != "" {
		shape := l.commit(f.Project, f.Commit)
		payload.Commit = &shape
	}
	for _, s := range f.Statuses {
		if !slices.Contains(payload.Attributes.Stages, s.Stage) {
			payload.Attributes.Stages = append(payload.Attributes.Stages, s.Stage)
		}
		build := pipelineBuild{
			ID: s.ID, Stage: s.Stage, Name: s.Name, Status: s.State, CreatedAt: when(s.CreatedAt), StartedAt: when(s.StartedAt),
			FinishedAt: when(s.FinishedAt), When: "on_success", AllowFailure: s.AllowFailure,
		}
		if env, ok := f.Places[s.ID]; ok {
			build.Environment = &buildPlace{Name: env.Name, Action: "start", Tier: env.Tier}
		}
		if !s.FinishedAt.IsZero() && !s.StartedAt.IsZero() {
			seconds := s.FinishedAt.Sub(s.StartedAt).Seconds()
			build.Duration = &seconds
		}
		payload.Builds = append(payload.Builds, build)
	}
	slices.SortStableFunc(payload.Attributes.Stages, func(a, b string) int { return stageOrder(a) - stageOrder(b) })
	return payload
}

// stageOrder puts what is deployed after what was checked of it.
func stageOrder(stage string) int {
	if stage == tidelock.DeployStage {
		return 1
	}
	return 0
}

func (p *pipelinePayload) shrink() bool {
	const enough = 1 << 10
	if c := p.Commit; c != nil && len(c.Message)+len(c.Title) > 2*enough+2*len("…") {
		c.Message, c.Title = cut(c.Message, enough), cut(c.Title, enough)
		return true
	}
	if len(p.Builds) == 0 {
		return false
	}
	p.Builds = p.Builds[:len(p.Builds)/2]
	return true
}

type deploymentPayload struct {
	ObjectKind      string                   `json:"object_kind"`
	Status          tidelock.DeploymentState `json:"status"`
	StatusChangedAt string                   `json:"status_changed_at"`
	ID              tidelock.DeploymentID    `json:"deployment_id"`
	DeployableID    *tidelock.StatusID       `json:"deployable_id"`
	DeployableURL   *string                  `json:"deployable_url"`
	Environment     string                   `json:"environment"`
	EnvironmentSlug string                   `json:"environment_slug"`
	EnvironmentTier tidelock.Tier            `json:"environment_tier"`
	EnvironmentURL  *string                  `json:"environment_external_url"`
	Project         projectShape             `json:"project"`
	ShortSHA        string                   `json:"short_sha"`
	User            *userShape               `json:"user"`
	UserURL         *string                  `json:"user_url"`
	CommitURL       string                   `json:"commit_url"`
	CommitTitle     string                   `json:"commit_title"`
	Ref             string                   `json:"ref"`
}

func (l links) deployment(f forge.HookFacts) *deploymentPayload {
	d, e := f.Deployment, f.Environment
	payload := &deploymentPayload{
		ObjectKind: string(tidelock.HookDeployment), Status: d.State, StatusChangedAt: d.UpdatedAt.Format("2006-01-02 15:04:05 -0700"),
		ID: d.ID, Environment: e.Name, EnvironmentSlug: e.Slug, EnvironmentTier: e.Tier, Project: l.project(f),
		ShortSHA: string(d.Commit[:min(8, len(d.Commit))]), User: shapeUser(f.User),
		CommitURL: l.commitURL(f.Project, d.Commit), CommitTitle: cut(f.Commit.Title, 1<<10), Ref: d.Ref,
	}
	if e.ExternalURL != "" {
		payload.EnvironmentURL = &e.ExternalURL
	}
	if f.User.ID != 0 {
		u := l.web(f.User.Username)
		payload.UserURL = &u
	}
	if f.Job.ID != 0 {
		payload.DeployableID, payload.DeployableURL = &f.Job.ID, &f.Job.TargetURL
	}
	return payload
}

func (p *deploymentPayload) shrink() bool { return false }
