package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev/playground/e2e"
)

// bearer signs in as terraform does.
type bearer struct{ token string }

func (bearer) Init(context.Context, *gitlab.Client) error { return nil }

func (b bearer) Header(context.Context) (name, value string, err error) {
	return "Authorization", "Bearer " + b.token, nil
}

// newClient returns GitLab's own Go client, which glab, the terraform provider
// and Flux are made of, trusting the forge's generated authority.
func newClient(t *testing.T, f *e2e.Forge, auth gitlab.AuthSource) *gitlab.Client {
	t.Helper()
	ca, err := os.ReadFile(f.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := gitlab.NewAuthSourceClient(auth, gitlab.WithBaseURL(f.URL), gitlab.WithHTTPClient(&http.Client{Transport: transport, Timeout: 20 * time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ok returns a call's result, and fails the test with its error.
func ok[T any](t *testing.T) func(T, *gitlab.Response, error) T {
	return func(v T, _ *gitlab.Response, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// done fails the test with a call's error.
func done(t *testing.T) func(*gitlab.Response, error) {
	return func(_ *gitlab.Response, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// gone fails the test unless a call was answered 404, from which clients
// conclude that they have to make what they asked for.
func gone[T any](t *testing.T) func(T, *gitlab.Response, error) {
	return func(_ T, resp *gitlab.Response, err error) {
		t.Helper()
		if err == nil || resp == nil || resp.StatusCode != http.StatusNotFound {
			t.Fatalf("got %v, want 404", err)
		}
	}
}

// TestGlabReplayed makes the calls of `glab auth status` and `glab cluster
// agent bootstrap`, twice, `list`, `get-token`, `update-kubeconfig` and `token
// revoke`, in their order and with their parameters, because glab itself can be
// had neither as a Go module nor from Debian where the tests run. It is made of
// the same Go client.
func TestGlabReplayed(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true})
	f.Project("ops/fleet", "private").Push("main", map[string]string{"README.md": "# Fleet\n"})
	c := newClient(t, f, gitlab.AccessTokenAuthSource{Token: f.Token})
	const project = "ops/fleet"
	if user := ok[*gitlab.User](t)(c.Users.CurrentUser()); user.Username != "root" {
		t.Errorf("signed in as %q", user.Username)
	}

	first := glabBootstrap(t, c, project)
	second := glabBootstrap(t, c, project)
	if first.agent != second.agent || first.environment != second.environment || first.token == second.token {
		t.Errorf("bootstrapped as %+v, then %+v; want the same with another token", first, second)
	}
	third := glabBootstrap(t, c, project)
	if _, resp, err := c.ClusterAgents.GetAgentToken(project, first.agent, first.token); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("the oldest of three tokens: %v, want it revoked", err)
	}

	agents := ok[[]*gitlab.Agent](t)(c.ClusterAgents.ListAgents(project, &gitlab.ListAgentsOptions{ListOptions: gitlab.ListOptions{PerPage: 30}}))
	if len(agents) != 1 || agents[0].CreatedAt == nil || agents[0].ConfigProject.PathWithNamespace != project {
		t.Errorf("agents: got %+v", agents)
	}
	tomorrow := gitlab.ISOTime(time.Now().AddDate(0, 0, 1))
	proxy := ok[*gitlab.PersonalAccessToken](t)(c.Users.CreatePersonalAccessTokenForCurrentUser(&gitlab.CreatePersonalAccessTokenForCurrentUserOptions{
		Name: gitlab.Ptr("glab"), Scopes: &[]string{"k8s_proxy"}, ExpiresAt: &tomorrow,
	}))
	if proxy.Token == "" || proxy.ExpiresAt == nil {
		t.Errorf("get-token made %+v", proxy)
	}
	self := newClient(t, f, gitlab.AccessTokenAuthSource{Token: proxy.Token})
	if seen := ok[*gitlab.PersonalAccessToken](t)(self.PersonalAccessTokens.GetSinglePersonalAccessToken()); seen.ID != proxy.ID || seen.Revoked {
		t.Errorf("the token sees itself as %+v", seen)
	}
	done(t)(c.PersonalAccessTokens.RevokePersonalAccessTokenByID(proxy.ID))
	if _, resp, err := self.PersonalAccessTokens.GetSinglePersonalAccessToken(); err == nil || resp.StatusCode != http.StatusUnauthorized || !strings.Contains(err.Error(), "Token was revoked.") {
		t.Errorf("a revoked token sees itself: %v, want 401 in the words by which glab knows that it has to make another", err)
	}

	// update-kubeconfig
	if agent := ok[*gitlab.Agent](t)(c.ClusterAgents.GetAgent(project, first.agent)); agent.Name != "prod" || agent.ConfigProject.PathWithNamespace != project {
		t.Errorf("the agent is %+v", agent)
	}
	ok[*gitlab.Metadata](t)(c.Metadata.GetMetadata())
	done(t)(c.ClusterAgents.RevokeAgentToken(project, third.agent, third.token))

	// check_manifest_usage
	ok[[]*gitlab.Group](t)(c.Groups.ListDescendantGroups("ops", &gitlab.ListDescendantGroupsOptions{}))
	if projects := ok[[]*gitlab.Project](t)(c.Groups.ListGroupProjects("ops", &gitlab.ListGroupProjectsOptions{})); len(projects) != 1 {
		t.Errorf("projects of the group: got %d, want 1", len(projects))
	}
}

// bootstrapped is what a run of glab cluster agent bootstrap made or found.
type bootstrapped struct{ agent, environment, token int64 }

func glabBootstrap(t *testing.T, c *gitlab.Client, project string) (b bootstrapped) {
	t.Helper()
	const name = "prod"
	branch := ok[*gitlab.Project](t)(c.Projects.GetProject(project, &gitlab.GetProjectOptions{License: gitlab.Ptr(true), WithCustomAttributes: gitlab.Ptr(true)})).DefaultBranch

	for page := int64(1); b.agent == 0 && page != 0; {
		agents, resp, err := c.ClusterAgents.ListAgents(project, &gitlab.ListAgentsOptions{ListOptions: gitlab.ListOptions{Page: page, PerPage: 100}})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range agents {
			if a.Name == name {
				b.agent = a.ID
			}
		}
		page = resp.NextPage
	}
	if b.agent == 0 {
		b.agent = ok[*gitlab.Agent](t)(c.ClusterAgents.RegisterAgent(project, &gitlab.RegisterAgentOptions{Name: gitlab.Ptr(name)})).ID
	}

	config := ".gitlab/agents/" + name + "/config.yaml"
	writeFile(t, c, project, branch, config, "user_access:\n  access_as:\n    agent: {}\n", func() (*gitlab.Response, error) {
		_, resp, err := c.RepositoryFiles.GetFile(project, config, &gitlab.GetFileOptions{Ref: &branch})
		return resp, err
	})

	environment := "flux-system/" + name
	found := ok[[]*gitlab.Environment](t)(c.Environments.ListEnvironments(project, &gitlab.ListEnvironmentsOptions{Name: &environment}))
	resource := "helm.toolkit.fluxcd.io/v2/namespaces/flux-system/helmreleases/" + name
	if len(found) == 0 {
		b.environment = ok[*gitlab.Environment](t)(c.Environments.CreateEnvironment(project, &gitlab.CreateEnvironmentOptions{
			Name: &environment, ClusterAgentID: &b.agent, KubernetesNamespace: gitlab.Ptr("flux-system"), FluxResourcePath: &resource,
		})).ID
	} else {
		b.environment = ok[*gitlab.Environment](t)(c.Environments.EditEnvironment(project, found[0].ID, &gitlab.EditEnvironmentOptions{
			ClusterAgentID: &b.agent, KubernetesNamespace: gitlab.Ptr("flux-system"), FluxResourcePath: &resource,
		})).ID
	}
	made := ok[*gitlab.Environment](t)(c.Environments.GetEnvironment(project, b.environment))
	if made.ClusterAgent == nil || made.ClusterAgent.ID != b.agent || made.KubernetesNamespace != "flux-system" || made.FluxResourcePath != resource {
		t.Errorf("environment: got %+v, want that of the agent", made)
	}

	tokens := ok[[]*gitlab.AgentToken](t)(c.ClusterAgents.ListAgentTokens(project, b.agent, &gitlab.ListAgentTokensOptions{ListOptions: gitlab.ListOptions{PerPage: 2}}))
	if len(tokens) == 2 {
		oldest := tokens[0]
		if tokens[1].CreatedAt.Before(*oldest.CreatedAt) {
			oldest = tokens[1]
		}
		done(t)(c.ClusterAgents.RevokeAgentToken(project, b.agent, oldest.ID))
	}
	token := ok[*gitlab.AgentToken](t)(c.ClusterAgents.CreateAgentToken(project, b.agent, &gitlab.CreateAgentTokenOptions{Name: gitlab.Ptr("default")}))
	if !strings.HasPrefix(token.Token, "glagent-") {
		t.Error("an agent's token has no token")
	}
	b.token = token.ID

	if metadata := ok[*gitlab.Metadata](t)(c.Metadata.GetMetadata()); !metadata.KAS.Enabled || !strings.HasPrefix(metadata.KAS.ExternalURL, "wss://") {
		t.Errorf("metadata: got %+v, want an address for agents", metadata.KAS)
	}
	for _, file := range []string{"helm-repository.yaml", "helm-release.yaml"} {
		path := "clusters/" + name + "/" + file
		writeFile(t, c, project, branch, path, "apiVersion: v1\n", func() (*gitlab.Response, error) {
			_, resp, err := c.RepositoryFiles.GetFileMetaData(project, path, &gitlab.GetFileMetaDataOptions{Ref: &branch})
			return resp, err
		})
	}
	return b
}

// writeFile makes or changes a file, whichever a look at it says.
func writeFile(t *testing.T, c *gitlab.Client, project, branch, path, text string, look func() (*gitlab.Response, error)) {
	t.Helper()
	message := gitlab.Ptr("Configure " + path)
	switch resp, err := look(); {
	case err == nil:
		ok[*gitlab.FileInfo](t)(c.RepositoryFiles.UpdateFile(project, path, &gitlab.UpdateFileOptions{Branch: &branch, Content: &text, CommitMessage: message}))
	case resp != nil && resp.StatusCode == http.StatusNotFound:
		ok[*gitlab.FileInfo](t)(c.RepositoryFiles.CreateFile(project, path, &gitlab.CreateFileOptions{Branch: &branch, Content: &text, CommitMessage: message}))
	default:
		t.Fatalf("look at %s: %v", path, err)
	}
	raw, _, err := c.RepositoryFiles.GetRawFile(project, path, &gitlab.GetRawFileOptions{Ref: &branch})
	if err != nil || !bytes.Equal(raw, []byte(text)) {
		t.Errorf("%s holds %q: %v", path, raw, err)
	}
}

// TestTerraformReplayed makes the calls of the GitLab provider's resources in
// terraform's order: create, read, change, read, delete, and a read that has to
// find nothing. What is read has to be what was written, or every plan would
// show a change. The provider itself can be had neither as a Go module nor from
// Debian where the tests run. It signs in with a Bearer token.
func TestTerraformReplayed(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true})
	c := newClient(t, f, bearer{f.Token})
	ok[*gitlab.User](t)(c.Users.CurrentUser())
	if version := ok[*gitlab.Version](t)(c.Version.GetVersion()); strings.Count(version.Version, ".") < 2 {
		t.Errorf("version %q is not a semantic one", version.Version)
	}
	same := func(what string, got, want any) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: read %v, wrote %v", what, got, want)
		}
	}

	group := ok[*gitlab.Group](t)(c.Groups.CreateGroup(&gitlab.CreateGroupOptions{
		Name: gitlab.Ptr("Infra"), Path: gitlab.Ptr("infra"), Description: gitlab.Ptr("made by terraform"), Visibility: gitlab.Ptr(gitlab.PrivateVisibility),
	}))
	read := ok[*gitlab.Group](t)(c.Groups.GetGroup(group.ID, nil))
	same("group", []any{read.Name, read.Path, read.Description, read.Visibility}, []any{"Infra", "infra", "made by terraform", "private"})
	ok[*gitlab.Group](t)(c.Groups.UpdateGroup(group.ID, &gitlab.UpdateGroupOptions{Description: gitlab.Ptr("")}))
	same("group", ok[*gitlab.Group](t)(c.Groups.GetGroup(group.ID, nil)).Description, "")

	made := ok[*gitlab.Project](t)(c.Projects.CreateProject(&gitlab.CreateProjectOptions{
		Name: gitlab.Ptr("Site"), Path: gitlab.Ptr("site"), NamespaceID: &group.ID, Description: gitlab.Ptr("one"),
		Visibility: gitlab.Ptr(gitlab.PrivateVisibility), DefaultBranch: gitlab.Ptr("main"),
	}))
	project := ok[*gitlab.Project](t)(c.Projects.GetProject(made.ID, nil))
	same("project", []any{project.Name, project.PathWithNamespace, project.Description, project.Visibility, project.ImportStatus}, []any{"Site", "infra/site", "one", "private", "none"})
	gone[*gitlab.ProjectPushRules](t)(c.Projects.GetProjectPushRules(made.ID)) // an edition that we are not
	ok[*gitlab.Project](t)(c.Projects.EditProject(made.ID, &gitlab.EditProjectOptions{Description: gitlab.Ptr("two")}))
	same("project", ok[*gitlab.Project](t)(c.Projects.GetProject(made.ID, nil)).Description, "two")

	file := "deploy/site.yaml"
	ok[*gitlab.FileInfo](t)(c.RepositoryFiles.CreateFile(made.ID, file, &gitlab.CreateFileOptions{
		Branch: gitlab.Ptr("main"), Content: gitlab.Ptr("b25lCg=="), Encoding: gitlab.Ptr("base64"), CommitMessage: gitlab.Ptr("Create"),
	}))
	stored := ok[*gitlab.File](t)(c.RepositoryFiles.GetFile(made.ID, file, &gitlab.GetFileOptions{Ref: gitlab.Ptr("main")}))
	same("file", []any{stored.Content, stored.Encoding, stored.FilePath}, []any{"b25lCg==", "base64", file})
	ok[*gitlab.FileInfo](t)(c.RepositoryFiles.UpdateFile(made.ID, file, &gitlab.UpdateFileOptions{
		Branch: gitlab.Ptr("main"), Content: gitlab.Ptr("dHdvCg=="), Encoding: gitlab.Ptr("base64"), CommitMessage: gitlab.Ptr("Update"), LastCommitID: &stored.LastCommitID,
	}))

	key := ok[*gitlab.ProjectDeployKey](t)(c.DeployKeys.AddDeployKey(made.ID, &gitlab.AddDeployKeyOptions{
		Title: gitlab.Ptr("flux"), Key: gitlab.Ptr(publicKey(t, newKey(t))), CanPush: gitlab.Ptr(true),
	}))
	same("deploy key", ok[*gitlab.ProjectDeployKey](t)(c.DeployKeys.GetDeployKey(made.ID, key.ID)).CanPush, true)
	done(t)(c.DeployKeys.DeleteDeployKey(made.ID, key.ID))
	gone[*gitlab.ProjectDeployKey](t)(c.DeployKeys.GetDeployKey(made.ID, key.ID))

	expiry := time.Now().AddDate(0, 1, 0).UTC().Truncate(time.Second)
	token := ok[*gitlab.DeployToken](t)(c.DeployTokens.CreateProjectDeployToken(made.ID, &gitlab.CreateProjectDeployTokenOptions{
		Name: gitlab.Ptr("pull"), Username: gitlab.Ptr("puller"), Scopes: &[]string{"read_repository"}, ExpiresAt: &expiry,
	}))
	held := ok[*gitlab.DeployToken](t)(c.DeployTokens.GetProjectDeployToken(made.ID, token.ID))
	same("deploy token", []any{held.Username, held.Scopes, held.ExpiresAt.UTC()}, []any{"puller", []string{"read_repository"}, expiry})
	done(t)(c.DeployTokens.DeleteProjectDeployToken(made.ID, token.ID))

	variable := &gitlab.CreateProjectVariableOptions{
		Key: gitlab.Ptr("REGION"), Value: gitlab.Ptr("eu"), Protected: gitlab.Ptr(true), VariableType: gitlab.Ptr(gitlab.FileVariableType), EnvironmentScope: gitlab.Ptr("prod"),
	}
	ok[*gitlab.ProjectVariable](t)(c.ProjectVariables.CreateVariable(made.ID, variable))
	filter := &gitlab.VariableFilter{EnvironmentScope: "prod"}
	set := ok[*gitlab.ProjectVariable](t)(c.ProjectVariables.GetVariable(made.ID, "REGION", &gitlab.GetProjectVariableOptions{Filter: filter}))
	same("variable", []any{set.Value, set.Protected, set.VariableType, set.EnvironmentScope}, []any{"eu", true, "file", "prod"})
	ok[*gitlab.ProjectVariable](t)(c.ProjectVariables.UpdateVariable(made.ID, "REGION", &gitlab.UpdateProjectVariableOptions{Value: gitlab.Ptr("us"), Filter: filter}))
	same("variable", ok[*gitlab.ProjectVariable](t)(c.ProjectVariables.GetVariable(made.ID, "REGION", &gitlab.GetProjectVariableOptions{Filter: filter})).Value, "us")
	done(t)(c.ProjectVariables.RemoveVariable(made.ID, "REGION", &gitlab.RemoveProjectVariableOptions{Filter: filter}))
	gone[*gitlab.ProjectVariable](t)(c.ProjectVariables.GetVariable(made.ID, "REGION", &gitlab.GetProjectVariableOptions{Filter: filter}))

	hook := ok[*gitlab.ProjectHook](t)(c.Projects.AddProjectHook(made.ID, &gitlab.AddProjectHookOptions{
		URL: gitlab.Ptr("https://hooks.example.com/one"), Token: gitlab.Ptr("secret"), PushEvents: gitlab.Ptr(false), PipelineEvents: gitlab.Ptr(true), EnableSSLVerification: gitlab.Ptr(true),
	}))
	wired := ok[*gitlab.ProjectHook](t)(c.Projects.GetProjectHook(made.ID, hook.ID))
	same("hook", []any{wired.URL, wired.PushEvents, wired.PipelineEvents, wired.EnableSSLVerification}, []any{"https://hooks.example.com/one", false, true, true})
	ok[*gitlab.ProjectHook](t)(c.Projects.EditProjectHook(made.ID, hook.ID, &gitlab.EditProjectHookOptions{URL: gitlab.Ptr("https://hooks.example.com/two"), TagPushEvents: gitlab.Ptr(true)}))
	same("hook", ok[*gitlab.ProjectHook](t)(c.Projects.GetProjectHook(made.ID, hook.ID)).TagPushEvents, true)
	done(t)(c.Projects.DeleteProjectHook(made.ID, hook.ID))
	gone[*gitlab.ProjectHook](t)(c.Projects.GetProjectHook(made.ID, hook.ID))

	agent := ok[*gitlab.Agent](t)(c.ClusterAgents.RegisterAgent(made.ID, &gitlab.RegisterAgentOptions{Name: gitlab.Ptr("prod")}))
	agentToken := ok[*gitlab.AgentToken](t)(c.ClusterAgents.CreateAgentToken(made.ID, agent.ID, &gitlab.CreateAgentTokenOptions{Name: gitlab.Ptr("one"), Description: gitlab.Ptr("by terraform")}))
	same("agent's token", ok[*gitlab.AgentToken](t)(c.ClusterAgents.GetAgentToken(made.ID, agent.ID, agentToken.ID)).Description, "by terraform")
	done(t)(c.ClusterAgents.DeleteAgent(made.ID, agent.ID))
	gone[*gitlab.Agent](t)(c.ClusterAgents.GetAgent(made.ID, agent.ID))

	other := ok[*gitlab.Group](t)(c.Groups.CreateGroup(&gitlab.CreateGroupOptions{Name: gitlab.Ptr("Other"), Path: gitlab.Ptr("other")}))
	done(t)(c.Projects.ShareProjectWithGroup(made.ID, &gitlab.ShareWithGroupOptions{GroupID: &other.ID, GroupAccess: gitlab.Ptr(gitlab.MaintainerPermissions)}))
	shared := ok[*gitlab.Project](t)(c.Projects.GetProject(made.ID, nil)).SharedWithGroups
	if len(shared) != 1 || shared[0].GroupID != other.ID || shared[0].GroupAccessLevel != 40 {
		t.Errorf("shared with %+v", shared)
	}
	done(t)(c.Projects.DeleteSharedProjectFromGroup(made.ID, other.ID))

	done(t)(c.Projects.DeleteProject(made.ID, nil))
	gone[*gitlab.Project](t)(c.Projects.GetProject(made.ID, nil))
	done(t)(c.Groups.DeleteGroup(group.ID, nil))
	gone[*gitlab.Group](t)(c.Groups.GetGroup(group.ID, nil))
}
