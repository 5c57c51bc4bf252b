// Package sample fills a forge and a cluster with the playground's example: a
// group with an agent configuration project, a public deployment project and a
// public delivery project that Flux applies, one from Git and one from the
// registry, and an application project. It speaks to the forge as any
// client does, by GitLab's API and git, and may run again and again: it makes
// what is missing and leaves alone what users changed.
package sample

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go"
)

// What the sample consists of.
const (
	Group      = "sample"
	Agents     = Group + "/agents"
	Deployment = Group + "/deployment"
	Delivery   = Group + "/delivery"
	App        = Group + "/app"
	AgentName  = "playground"
)

// A Way is how a change comes into the cluster: the greeting in a file of a
// project becomes that of a ConfigMap.
type Way struct {
	Project   string
	File      string
	Namespace string // of the ConfigMap
	Source    string // which Flux follows, as the agent names it
}

// The sample shows a greeting in two ways.
var (
	ByGit   = Way{Deployment, "greeting.yaml", "demo", "GitRepository/" + Namespace + "/deployment"}
	ByImage = Way{Delivery, "apps/greeting/greeting.yaml", "demo-image", "OCIRepository/" + Namespace + "/greeting"}
)

//go:embed deployment app all:delivery
var content embed.FS

const configPath = ".gitlab/agents/" + AgentName + "/config.yaml"

// A project of the sample. Files are pushed only into an empty repository.
type project struct {
	path, description string
	visibility        gitlab.VisibilityValue
	files             map[string]string
}

// CreateProjects makes the group and its projects. The agent configuration
// project stays empty until Configure.
func (f *Forge) CreateProjects(ctx context.Context) error {
	group, err := f.ensureGroup(ctx)
	if err != nil {
		return err
	}
	deployment, err := files("deployment")
	if err != nil {
		return err
	}
	delivery, err := files("delivery")
	if err != nil {
		return err
	}
	app, err := files("app")
	if err != nil {
		return err
	}
	for _, p := range []project{
		{Agents, "Configuration of the agents", gitlab.PrivateVisibility, nil},
		{Deployment, "What Flux applies to the cluster", gitlab.PublicVisibility, deployment},
		{Delivery, "What is packaged for Flux", gitlab.PublicVisibility, delivery},
		{App, "The application that is deployed", gitlab.PrivateVisibility, app},
	} {
		if err := f.ensureProject(ctx, group, p); err != nil {
			return err
		}
	}
	return nil
}

// files reads an embedded folder.
func files(dir string) (map[string]string, error) {
	all := map[string]string{}
	err := fs.WalkDir(content, dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := content.ReadFile(name)
		all[strings.TrimPrefix(name, dir+"/")] = string(text)
		return err
	})
	return all, err
}

func (f *Forge) ensureGroup(ctx context.Context) (*gitlab.Group, error) {
	group, resp, err := f.client.Groups.GetGroup(Group, nil, gitlab.WithContext(ctx))
	if err == nil {
		return group, nil
	}
	if resp == nil || resp.StatusCode != http.StatusNotFound {
		return nil, fmt.Errorf("look for group %s: %w", Group, err)
	}
	group, _, err = f.client.Groups.CreateGroup(&gitlab.CreateGroupOptions{
		Name: gitlab.Ptr("Sample"), Path: gitlab.Ptr(Group), Visibility: gitlab.Ptr(gitlab.PublicVisibility),
	}, gitlab.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("create group %s: %w", Group, err)
	}
	return group, nil
}

func (f *Forge) ensureProject(ctx context.Context, group *gitlab.Group, p project) error {
	_, resp, err := f.client.Projects.GetProject(p.path, nil, gitlab.WithContext(ctx))
	if err != nil {
		if resp == nil || resp.StatusCode != http.StatusNotFound {
			return fmt.Errorf("look for project %s: %w", p.path, err)
		}
		_, _, err = f.client.Projects.CreateProject(&gitlab.CreateProjectOptions{
			Name: gitlab.Ptr(path.Base(p.path)), NamespaceID: gitlab.Ptr(group.ID),
			Description: gitlab.Ptr(p.description), Visibility: gitlab.Ptr(p.visibility),
		}, gitlab.WithContext(ctx))
		if err != nil {
			return fmt.Errorf("create project %s: %w", p.path, err)
		}
	}
	if len(p.files) == 0 {
		return nil
	}
	branches, _, err := f.client.Branches.ListBranches(p.path, nil, gitlab.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("list branches of %s: %w", p.path, err)
	}
	if len(branches) > 0 {
		return nil
	}
	_, err = f.Push(ctx, p.path, "Begin", p.files)
	return err
}

var receiverLine = regexp.MustCompile(`(?m)^(\s*webhook_receiver_url:)[^\n]*$`)

// Configure makes sure that the agent's configuration names the address where
// Flux's receivers listen. What else users wrote into the file stays.
func (f *Forge) Configure(ctx context.Context, receiverURL string) error {
	want := "# The playground's Flux runs beside the cluster, so its service has no name here.\n" +
		"flux:\n  webhook_receiver_url: " + receiverURL + "\n" +
		"  # Label a source so to keep the agent away from it.\n" +
		"  selector: tidelock.dev/trigger!=none\n"
	text, resp, err := f.client.RepositoryFiles.GetRawFile(Agents, configPath,
		&gitlab.GetRawFileOptions{Ref: gitlab.Ptr("HEAD")}, gitlab.WithContext(ctx))
	switch {
	case err == nil:
		want = receiverLine.ReplaceAllString(string(text), "${1} "+strings.ReplaceAll(receiverURL, "$", "$$"))
	case resp == nil || resp.StatusCode != http.StatusNotFound:
		return fmt.Errorf("read the agent's configuration: %w", err)
	}
	if err == nil && want == string(text) {
		return nil
	}
	_, err = f.Push(ctx, Agents, "Tell the agent where Flux listens", map[string]string{configPath: want})
	return err
}

// RegisterAgent makes sure that the agent exists, and returns the file in dir
// that holds a token of its.
func (f *Forge) RegisterAgent(ctx context.Context, dir string) (tokenFile string, err error) {
	agents, _, err := f.client.ClusterAgents.ListAgents(Agents, nil, gitlab.WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("list agents: %w", err)
	}
	var agent *gitlab.Agent
	if i := slices.IndexFunc(agents, func(a *gitlab.Agent) bool { return a.Name == AgentName }); i >= 0 {
		agent = agents[i]
	} else {
		agent, _, err = f.client.ClusterAgents.RegisterAgent(Agents, &gitlab.RegisterAgentOptions{Name: gitlab.Ptr(AgentName)}, gitlab.WithContext(ctx))
		if err != nil {
			return "", fmt.Errorf("register agent: %w", err)
		}
	}
	tokens, _, err := f.client.ClusterAgents.ListAgentTokens(Agents, agent.ID, nil, gitlab.WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("list tokens of the agent: %w", err)
	}
	// The file is named by the token, so that one that was revoked meanwhile
	// is not taken for good.
	name := func(id int64) string {
		return filepath.Join(dir, fmt.Sprintf("agent-%d-token-%d", agent.ID, id))
	}
	for _, t := range tokens {
		if _, err := os.Stat(name(t.ID)); err == nil && t.Status == "active" {
			return name(t.ID), nil
		}
	}
	// An agent has at most two tokens. Ours of an earlier state folder go.
	for _, t := range tokens {
		if t.Name == tokenName {
			if _, err := f.client.ClusterAgents.RevokeAgentToken(Agents, agent.ID, t.ID, gitlab.WithContext(ctx)); err != nil {
				return "", fmt.Errorf("revoke an old token of the agent: %w", err)
			}
		}
	}
	token, _, err := f.client.ClusterAgents.CreateAgentToken(Agents, agent.ID, &gitlab.CreateAgentTokenOptions{
		Name: gitlab.Ptr(tokenName), Description: gitlab.Ptr("Made by tidelock-playground"),
	}, gitlab.WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("create a token of the agent: %w", err)
	}
	return name(token.ID), writeSecret(name(token.ID), token.Token)
}

const tokenName = "playground"

// CloneToken returns the file in dir that holds a token which can read and
// push the deployment project, and nothing else.
func (f *Forge) CloneToken(ctx context.Context, dir string) (tokenFile string, err error) {
	tokens, _, err := f.client.ProjectAccessTokens.ListProjectAccessTokens(Deployment, nil, gitlab.WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("list tokens of %s: %w", Deployment, err)
	}
	name := func(id int64) string { return filepath.Join(dir, fmt.Sprintf("clone-token-%d", id)) }
	for _, t := range tokens {
		soon := t.ExpiresAt != nil && time.Until(time.Time(*t.ExpiresAt)) < 24*time.Hour
		if _, err := os.Stat(name(t.ID)); err == nil && t.Active && !t.Revoked && !soon {
			return name(t.ID), nil
		}
	}
	token, _, err := f.client.ProjectAccessTokens.CreateProjectAccessToken(Deployment, &gitlab.CreateProjectAccessTokenOptions{
		Name: gitlab.Ptr(tokenName), AccessLevel: gitlab.Ptr(gitlab.MaintainerPermissions),
		Scopes:    gitlab.Ptr([]string{"read_repository", "write_repository"}),
		ExpiresAt: gitlab.Ptr(gitlab.ISOTime(time.Now().AddDate(0, 11, 0))),
	}, gitlab.WithContext(ctx))
	if err != nil {
		return "", fmt.Errorf("create a token for %s: %w", Deployment, err)
	}
	return name(token.ID), writeSecret(name(token.ID), token.Token)
}

func writeSecret(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("make folder of tokens: %w", err)
	}
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		return fmt.Errorf("keep token: %w", err)
	}
	return nil
}

// An Announcement is how far an agent's source came with a commit. Times are
// on the server's clock; nil means not yet.
type Announcement struct {
	AgentID     int64      `json:"agent_id"`
	Source      string     `json:"source"`
	Ref         string     `json:"ref"`
	Commit      string     `json:"commit"`
	State       string     `json:"state"`
	Message     string     `json:"message"`
	Via         string     `json:"via"`
	Attempts    int        `json:"attempts"`
	AcceptedAt  *time.Time `json:"accepted_at"`
	SentAt      *time.Time `json:"sent_at"`
	AnnouncedAt *time.Time `json:"announced_at"`
	CalledAt    *time.Time `json:"called_at"`
	AnsweredAt  *time.Time `json:"answered_at"`
	HandledAt   *time.Time `json:"handled_at"`
	FetchedAt   *time.Time `json:"fetched_at"`
}

// Announcements returns what became of a commit of a project.
func (f *Forge) Announcements(ctx context.Context, project, commit string) ([]Announcement, error) {
	if commit == "" {
		return nil, errors.New("list announcements: no commit is named")
	}
	query := struct {
		Commit string `url:"commit"`
	}{commit}
	req, err := f.client.NewRequest(http.MethodGet, "projects/"+gitlab.PathEscape(project)+"/announcements", query,
		[]gitlab.RequestOptionFunc{gitlab.WithContext(ctx)})
	if err != nil {
		return nil, err
	}
	var all []Announcement
	if _, err := f.client.Do(req, &all); err != nil {
		return nil, fmt.Errorf("list announcements of %s: %w", project, err)
	}
	return all, nil
}
