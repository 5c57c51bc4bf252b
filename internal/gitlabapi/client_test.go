package gitlabapi_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
	"tidelock.dev/internal/gitlabapi"
)

// TestOfficialClient calls every route of the table with GitLab's own Go
// client, which decodes strictly, and fails when a route was left out.
func TestOfficialClient(t *testing.T) {
	w := newWorld(t)
	w.audits = map[string]bool{}
	c := w.client()

	t.Run("people", func(t *testing.T) { clientPeople(t, w, c) })
	t.Run("groups", func(t *testing.T) { clientGroups(t, c) })
	t.Run("projects", func(t *testing.T) { clientProjects(t, c) })
	t.Run("members", func(t *testing.T) { clientMembers(t, w, c) })
	t.Run("access tokens", func(t *testing.T) { clientAccessTokens(t, w, c) })
	t.Run("SSH keys", func(t *testing.T) { clientKeys(t, w, c) })
	t.Run("deploy tokens", func(t *testing.T) { clientDeployTokens(t, w, c) })
	t.Run("protected branches", func(t *testing.T) { clientProtectedBranches(t, w, c) })
	t.Run("repository", func(t *testing.T) { clientRepository(t, w, c) })
	t.Run("writing code", func(t *testing.T) { clientCode(t, w, c) })
	t.Run("branches and tags", func(t *testing.T) { clientRefs(t, w, c) })
	t.Run("agents", func(t *testing.T) { clientAgents(t, w, c) })
	t.Run("ours", func(t *testing.T) { clientOurs(t, w, c) })
	t.Run("rotation", func(t *testing.T) { clientRotation(t, w, c) })
	t.Run("shares", func(t *testing.T) { clientShares(t, w, c) })
	t.Run("variables", func(t *testing.T) { clientVariables(t, w, c) })
	t.Run("changes of users", func(t *testing.T) { clientUserChanges(t, w, c) })
	t.Run("audit log", func(t *testing.T) { clientAudit(t, w, c) })
	t.Run("statuses", func(t *testing.T) { clientStatuses(t, w, c) })
	t.Run("environments", func(t *testing.T) { clientEnvironments(t, w, c) })
	t.Run("hooks", func(t *testing.T) { clientHooks(t, w, c) })
	t.Run("integrations", func(t *testing.T) { clientIntegrations(t, w, c) })
	t.Run("registry", func(t *testing.T) { clientRegistry(t, w, c) })
	t.Run("reports", func(t *testing.T) { clientReports(t, w) })
	t.Run("builds", func(t *testing.T) { clientBuilds(t, w) })
	t.Run("rollouts", func(t *testing.T) { clientRollouts(t, w, c) })
	t.Run("live", func(t *testing.T) { clientLive(t, w) })
	t.Run("why", func(t *testing.T) { clientWhy(t, w) })

	for _, route := range gitlabapi.Routes() {
		if !w.served[route] {
			t.Errorf("%s was not called with success", route)
		}
	}
	checkAudits(t, w)
}

func clientPeople(t *testing.T, w *world, c *gitlab.Client) {
	version, _, err := c.Version.GetVersion()
	must(t, err)
	if !strings.HasPrefix(version.Version, "18.") || version.Revision == "" {
		t.Errorf("version is %+v", version)
	}
	meta, _, err := c.Metadata.GetMetadata()
	must(t, err)
	host := strings.TrimPrefix(w.url, "http://")
	if !meta.KAS.Enabled || meta.KAS.ExternalURL != "ws://"+host+"/-/kubernetes-agent/" ||
		meta.KAS.ExternalK8SProxyURL != w.url+"/-/kubernetes-agent/k8s-proxy/" || meta.KAS.Version == "" || meta.Enterprise {
		t.Errorf("metadata is %+v", meta)
	}
	self, _, err := c.Users.CurrentUser()
	must(t, err)
	if self.Username != "root" || !self.IsAdmin || self.State != "active" || self.WebURL != w.url+"/root" || self.CreatedAt == nil || self.NamespaceID == 0 {
		t.Errorf("the current user is %+v", self)
	}
	made, _, err := c.Users.CreateUser(&gitlab.CreateUserOptions{
		Username: gitlab.Ptr("Ada"), Name: gitlab.Ptr("Ada Lovelace"), Email: gitlab.Ptr("ada@example.com"),
		Password: gitlab.Ptr("ignored password"), SkipConfirmation: gitlab.Ptr(true),
	})
	must(t, err)
	if made.Username != "Ada" || made.Email != "ada@example.com" || made.IsAdmin {
		t.Errorf("the new user is %+v", made)
	}
	for _, opts := range []*gitlab.ListUsersOptions{{Username: gitlab.Ptr("ada")}, {Search: gitlab.Ptr("lovelace")}} {
		users, _, err := c.Users.ListUsers(opts)
		must(t, err)
		if len(users) != 1 || users[0].ID != made.ID {
			t.Errorf("ListUsers found %+v", users)
		}
	}
	got, _, err := c.Users.GetUser(made.ID, gitlab.GetUsersOptions{})
	must(t, err)
	if got.Name != "Ada Lovelace" {
		t.Errorf("GetUser = %+v", got)
	}
	if _, resp, err := c.Users.GetUser(4711, gitlab.GetUsersOptions{}); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("GetUser of nobody: %v", err)
	}
	_, _, err = c.Projects.ListUserProjects("Ada", nil)
	must(t, err)

	namespaces, _, err := c.Namespaces.ListNamespaces(&gitlab.ListNamespacesOptions{Search: gitlab.Ptr("ada")})
	must(t, err)
	if len(namespaces) != 1 || namespaces[0].Kind != "user" || namespaces[0].FullPath != "Ada" {
		t.Errorf("ListNamespaces = %+v", namespaces)
	}
	namespace, _, err := c.Namespaces.GetNamespace("ada")
	must(t, err)
	if namespace.ID != namespaces[0].ID {
		t.Errorf("GetNamespace = %+v", namespace)
	}
}

func clientGroups(t *testing.T, c *gitlab.Client) {
	top, _, err := c.Groups.CreateGroup(&gitlab.CreateGroupOptions{
		Name: gitlab.Ptr("Team"), Path: gitlab.Ptr("team"), Visibility: gitlab.Ptr(gitlab.PublicVisibility), Description: gitlab.Ptr("all of us"),
	})
	must(t, err)
	if top.FullPath != "team" || top.Visibility != gitlab.PublicVisibility || top.Description != "all of us" || top.ParentID != 0 || top.CreatedAt == nil {
		t.Errorf("CreateGroup = %+v", top)
	}
	sub, _, err := c.Groups.CreateGroup(&gitlab.CreateGroupOptions{
		Name: gitlab.Ptr("Sub"), Path: gitlab.Ptr("sub.group"), ParentID: gitlab.Ptr(top.ID),
	})
	must(t, err)
	if sub.FullPath != "team/sub.group" || sub.FullName != "Team / Sub" || sub.ParentID != top.ID {
		t.Errorf("CreateGroup = %+v", sub)
	}
	for _, name := range []any{"team/sub.group", "TEAM/Sub.Group", sub.ID} {
		got, _, err := c.Groups.GetGroup(name, nil)
		must(t, err)
		if got.ID != sub.ID {
			t.Errorf("GetGroup(%v) = %+v", name, got)
		}
	}
	groups, _, err := c.Groups.ListGroups(&gitlab.ListGroupsOptions{TopLevelOnly: gitlab.Ptr(true)})
	must(t, err)
	if len(groups) != 1 || groups[0].ID != top.ID {
		t.Errorf("ListGroups = %+v", groups)
	}
	groups, _, err = c.Groups.ListSubGroups("team", nil)
	must(t, err)
	if len(groups) != 1 || groups[0].ID != sub.ID {
		t.Errorf("ListSubGroups = %+v", groups)
	}
	groups, _, err = c.Groups.ListDescendantGroups("team", nil)
	must(t, err)
	if len(groups) != 1 || groups[0].ID != sub.ID {
		t.Errorf("ListDescendantGroups = %+v", groups)
	}
	edited, _, err := c.Groups.UpdateGroup(sub.ID, &gitlab.UpdateGroupOptions{Path: gitlab.Ptr("other"), Name: gitlab.Ptr("Other")})
	must(t, err)
	if edited.FullPath != "team/other" || edited.FullName != "Team / Other" {
		t.Errorf("UpdateGroup = %+v", edited)
	}
	_, err = c.Groups.DeleteGroup(sub.ID, nil)
	must(t, err)
	if _, resp, err := c.Groups.GetGroup(sub.ID, nil); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("GetGroup after its deletion: %v", err)
	}
	if _, resp, err := c.Groups.GetGroup("root", nil); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("a user namespace is a group: %v", err)
	}
}

func clientProjects(t *testing.T, c *gitlab.Client) {
	team, _, err := c.Groups.GetGroup("team", nil)
	must(t, err)
	// As flux bootstrap asks: a name alone, in a group.
	flux, _, err := c.Projects.CreateProject(&gitlab.CreateProjectOptions{
		Name: gitlab.Ptr("Fleet Infra"), DefaultBranch: gitlab.Ptr("main"), Description: gitlab.Ptr(""),
		Visibility: gitlab.Ptr(gitlab.PrivateVisibility), NamespaceID: gitlab.Ptr(team.ID),
	})
	must(t, err)
	if flux.PathWithNamespace != "team/fleet-infra" || flux.NameWithNamespace != "Team / Fleet Infra" || flux.DefaultBranch != "main" ||
		flux.Visibility != gitlab.PrivateVisibility || flux.Namespace == nil || flux.Namespace.Kind != "group" || flux.Namespace.ID != team.ID ||
		!flux.EmptyRepo || flux.ImportStatus != "none" || flux.Owner != nil || flux.Permissions == nil ||
		flux.Permissions.ProjectAccess == nil && flux.Permissions.GroupAccess == nil || flux.LastActivityAt == nil {
		t.Errorf("CreateProject = %+v", flux)
	}
	// And --personal: neither path nor namespace.
	own, _, err := c.Projects.CreateProject(&gitlab.CreateProjectOptions{Name: gitlab.Ptr("mine")})
	must(t, err)
	if own.PathWithNamespace != "root/mine" || own.Owner == nil || own.Owner.Username != "root" || own.Owner.ID == 0 {
		t.Errorf("CreateProject in the own namespace = %+v", own)
	}
	byPath, _, err := c.Projects.CreateProject(&gitlab.CreateProjectOptions{Path: gitlab.Ptr("42"), NamespaceID: gitlab.Ptr(team.ID)})
	must(t, err)
	for _, name := range []any{"team/42", byPath.ID} {
		got, _, err := c.Projects.GetProject(name, nil)
		must(t, err)
		if got.ID != byPath.ID || got.Name != "42" {
			t.Errorf("GetProject(%v) = %+v", name, got)
		}
	}
	both, _, err := c.Projects.CreateProject(&gitlab.CreateProjectOptions{Name: gitlab.Ptr("Both"), Path: gitlab.Ptr("b.o-th")})
	must(t, err)
	if both.Name != "Both" || both.Path != "b.o-th" {
		t.Errorf("CreateProject with both = %+v", both)
	}
	_, resp, err := c.Projects.CreateProject(&gitlab.CreateProjectOptions{Path: gitlab.Ptr("B.O-th")})
	if err == nil || resp.StatusCode != http.StatusBadRequest || !strings.Contains(err.Error(), "[has already been taken]") {
		t.Errorf("CreateProject twice: %v", err)
	}

	projects, _, err := c.Projects.ListProjects(&gitlab.ListProjectsOptions{Owned: gitlab.Ptr(true), OrderBy: gitlab.Ptr("path"), Sort: gitlab.Ptr("asc")})
	must(t, err)
	if len(projects) != 2 || projects[0].Path != "b.o-th" || projects[1].Path != "mine" {
		t.Errorf("ListProjects owned = %+v", projects)
	}
	projects, _, err = c.Projects.ListProjects(&gitlab.ListProjectsOptions{Simple: gitlab.Ptr(true), Search: gitlab.Ptr("FLEET"), Membership: gitlab.Ptr(true)})
	must(t, err)
	if len(projects) != 1 || projects[0].ID != flux.ID {
		t.Errorf("ListProjects by search = %+v", projects)
	}
	projects, _, err = c.Groups.ListGroupProjects("team", &gitlab.ListGroupProjectsOptions{IncludeSubGroups: gitlab.Ptr(true)})
	must(t, err)
	if len(projects) != 2 {
		t.Errorf("ListGroupProjects = %+v", projects)
	}

	edited, _, err := c.Projects.EditProject(flux.ID, &gitlab.EditProjectOptions{
		Name: gitlab.Ptr("Fleet"), Path: gitlab.Ptr("fleet"), Description: gitlab.Ptr("ships"),
		Visibility: gitlab.Ptr(gitlab.PublicVisibility), DefaultBranch: gitlab.Ptr("trunk"),
	})
	must(t, err)
	if edited.PathWithNamespace != "team/fleet" || edited.Name != "Fleet" || edited.Description != "ships" ||
		edited.Visibility != gitlab.PublicVisibility || edited.DefaultBranch != "trunk" {
		t.Errorf("EditProject = %+v", edited)
	}
	old, _, err := c.Projects.GetProject("Team/Fleet-Infra", nil)
	must(t, err)
	if old.ID != flux.ID {
		t.Errorf("the old path leads to %+v", old)
	}
	there, _, err := c.Projects.TransferProject(flux.ID, &gitlab.TransferProjectOptions{Namespace: "root"})
	must(t, err)
	if there.PathWithNamespace != "root/fleet" {
		t.Errorf("TransferProject = %+v", there)
	}
	_, _, err = c.Projects.TransferProject(flux.ID, &gitlab.TransferProjectOptions{Namespace: "team"})
	must(t, err)
	archived, _, err := c.Projects.ArchiveProject(flux.ID)
	must(t, err)
	restored, _, err := c.Projects.UnarchiveProject("team/fleet")
	must(t, err)
	if !archived.Archived || restored.Archived {
		t.Errorf("archived %t, then %t", archived.Archived, restored.Archived)
	}
	resp, err = c.Projects.DeleteProject(flux.ID, nil)
	must(t, err)
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("DeleteProject answers %d", resp.StatusCode)
	}
	if _, resp, err := c.Projects.GetProject(flux.ID, nil); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("GetProject after its deletion: %v", err)
	}
}

func clientMembers(t *testing.T, w *world, c *gitlab.Client) {
	group := w.group("members", tidelock.Private)
	project := w.project(group, "site", tidelock.Private)
	bob, eve := w.user("bob"), w.user("eve")

	inGroup, _, err := c.GroupMembers.AddGroupMember("members", &gitlab.AddGroupMemberOptions{
		UserID: gitlab.Ptr(int64(bob.ID)), AccessLevel: gitlab.Ptr(gitlab.DeveloperPermissions), ExpiresAt: gitlab.Ptr("2099-12-31"),
	})
	must(t, err)
	if inGroup.Username != "bob" || inGroup.AccessLevel != gitlab.DeveloperPermissions || inGroup.ExpiresAt == nil || inGroup.ExpiresAt.String() != "2099-12-31" {
		t.Errorf("AddGroupMember = %+v", inGroup)
	}
	inProject, _, err := c.ProjectMembers.AddProjectMember("members/site", &gitlab.AddProjectMemberOptions{
		UserID: eve.ID, AccessLevel: gitlab.Ptr(gitlab.ReporterPermissions),
	})
	must(t, err)
	if inProject.Username != "eve" || inProject.AccessLevel != gitlab.ReporterPermissions || inProject.ExpiresAt != nil {
		t.Errorf("AddProjectMember = %+v", inProject)
	}
	if _, resp, err := c.ProjectMembers.AddProjectMember(int64(project.ID), &gitlab.AddProjectMemberOptions{
		UserID: eve.ID, AccessLevel: gitlab.Ptr(gitlab.OwnerPermissions),
	}); err == nil || resp.StatusCode != http.StatusConflict {
		t.Errorf("AddProjectMember twice: %v", err)
	}

	direct, _, err := c.ProjectMembers.ListProjectMembers("members/site", nil)
	must(t, err)
	all, _, err := c.ProjectMembers.ListAllProjectMembers("members/site", nil)
	must(t, err)
	if len(direct) != 2 || len(all) != 3 { // root made both
		t.Errorf("%d direct and %d members in all, want 2 and 3", len(direct), len(all))
	}
	_, _, err = c.ProjectMembers.GetProjectMember("members/site", int64(eve.ID))
	must(t, err)
	if _, resp, err := c.ProjectMembers.GetProjectMember("members/site", int64(bob.ID)); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("GetProjectMember of an inherited one: %v", err)
	}
	inherited, _, err := c.ProjectMembers.GetInheritedProjectMember("members/site", int64(bob.ID))
	must(t, err)
	if inherited.AccessLevel != gitlab.DeveloperPermissions {
		t.Errorf("GetInheritedProjectMember = %+v", inherited)
	}
	edited, _, err := c.ProjectMembers.EditProjectMember("members/site", int64(eve.ID), &gitlab.EditProjectMemberOptions{AccessLevel: gitlab.Ptr(gitlab.MaintainerPermissions)})
	must(t, err)
	if edited.AccessLevel != gitlab.MaintainerPermissions {
		t.Errorf("EditProjectMember = %+v", edited)
	}
	_, err = c.ProjectMembers.DeleteProjectMember("members/site", int64(eve.ID))
	must(t, err)

	groupMembers, _, err := c.Groups.ListGroupMembers("members", nil)
	must(t, err)
	allGroupMembers, _, err := c.Groups.ListAllGroupMembers("members", nil)
	must(t, err)
	if len(groupMembers) != 2 || len(allGroupMembers) != 2 {
		t.Errorf("%d and %d members of the group, want 2", len(groupMembers), len(allGroupMembers))
	}
	_, _, err = c.GroupMembers.GetGroupMember("members", int64(bob.ID))
	must(t, err)
	_, _, err = c.GroupMembers.GetInheritedGroupMember("members", int64(bob.ID))
	must(t, err)
	kept, _, err := c.GroupMembers.EditGroupMember("members", int64(bob.ID), &gitlab.EditGroupMemberOptions{AccessLevel: gitlab.Ptr(gitlab.GuestPermissions)})
	must(t, err)
	if kept.ExpiresAt == nil || kept.AccessLevel != gitlab.GuestPermissions {
		t.Errorf("EditGroupMember = %+v, want a guest whose expiry stays", kept)
	}
	_, err = c.GroupMembers.RemoveGroupMember("members", int64(bob.ID), nil)
	must(t, err)
}

func clientAccessTokens(t *testing.T, w *world, c *gitlab.Client) {
	group := w.group("tokens", tidelock.Private)
	project := w.project(group, "site", tidelock.Private)
	ada := w.user("tokenuser")
	until := gitlab.ISOTime(time.Now().AddDate(0, 1, 0).UTC().Truncate(24 * time.Hour))

	own, _, err := c.Users.CreatePersonalAccessTokenForCurrentUser(&gitlab.CreatePersonalAccessTokenForCurrentUserOptions{
		Name: gitlab.Ptr("kubeconfig"), Scopes: gitlab.Ptr([]string{"k8s_proxy"}), ExpiresAt: &until,
	})
	must(t, err)
	if !strings.HasPrefix(own.Token, "glpat-") || own.ExpiresAt == nil || own.ExpiresAt.String() != until.String() || !own.Active || own.CreatedAt == nil {
		t.Errorf("CreatePersonalAccessTokenForCurrentUser = %+v", own)
	}
	if _, resp, err := c.Users.CreatePersonalAccessTokenForCurrentUser(&gitlab.CreatePersonalAccessTokenForCurrentUserOptions{
		Name: gitlab.Ptr("too much"), Scopes: gitlab.Ptr([]string{"api"}),
	}); err == nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a token with the scope api was made by its own user: %v", err)
	}
	personal, _, err := c.Users.CreatePersonalAccessToken(int64(ada.ID), &gitlab.CreatePersonalAccessTokenOptions{
		Name: gitlab.Ptr("api"), Scopes: gitlab.Ptr([]string{"api", "read_repository"}),
	})
	must(t, err)
	if personal.UserID != int64(ada.ID) || len(personal.Scopes) != 2 || personal.ExpiresAt == nil {
		t.Errorf("CreatePersonalAccessToken = %+v", personal)
	}
	listed, _, err := c.PersonalAccessTokens.ListPersonalAccessTokens(&gitlab.ListPersonalAccessTokensOptions{UserID: gitlab.Ptr(int64(ada.ID)), State: gitlab.Ptr("active")})
	must(t, err)
	if len(listed) != 1 || listed[0].ID != personal.ID || listed[0].Token != "" {
		t.Errorf("ListPersonalAccessTokens = %+v", listed)
	}
	one, _, err := c.PersonalAccessTokens.GetSinglePersonalAccessTokenByID(own.ID)
	must(t, err)
	if one.Token != "" || one.Name != "kubeconfig" {
		t.Errorf("GetSinglePersonalAccessTokenByID = %+v", one)
	}
	_, err = c.PersonalAccessTokens.RevokePersonalAccessTokenByID(own.ID)
	must(t, err)

	asAda, err := gitlab.NewClient(personal.Token, gitlab.WithBaseURL(w.url), gitlab.WithCustomRetryMax(0))
	must(t, err)
	self, _, err := asAda.PersonalAccessTokens.GetSinglePersonalAccessToken()
	must(t, err)
	if self.ID != personal.ID {
		t.Errorf("GetSinglePersonalAccessToken = %+v", self)
	}
	_, err = asAda.PersonalAccessTokens.RevokePersonalAccessTokenSelf()
	must(t, err)
	if _, resp, err := asAda.Users.CurrentUser(); err == nil || resp.StatusCode != http.StatusUnauthorized || !strings.Contains(err.Error(), "Token was revoked") {
		t.Errorf("a revoked token: %v", err)
	}

	forProject, _, err := c.ProjectAccessTokens.CreateProjectAccessToken(int64(project.ID), &gitlab.CreateProjectAccessTokenOptions{
		Name: gitlab.Ptr("ci"), Scopes: gitlab.Ptr([]string{"api"}), AccessLevel: gitlab.Ptr(gitlab.DeveloperPermissions), ExpiresAt: &until,
	})
	must(t, err)
	if forProject.Token == "" || forProject.AccessLevel != gitlab.DeveloperPermissions || forProject.UserID == 0 {
		t.Errorf("CreateProjectAccessToken = %+v", forProject)
	}
	projectTokens, _, err := c.ProjectAccessTokens.ListProjectAccessTokens("tokens/site", nil)
	must(t, err)
	again, _, err := c.ProjectAccessTokens.GetProjectAccessToken("tokens/site", forProject.ID)
	must(t, err)
	if len(projectTokens) != 1 || projectTokens[0].Token != "" || again.Token != "" {
		t.Errorf("project tokens %+v, %+v", projectTokens, again)
	}
	_, err = c.ProjectAccessTokens.RevokeProjectAccessToken("tokens/site", forProject.ID)
	must(t, err)

	forGroup, _, err := c.GroupAccessTokens.CreateGroupAccessToken(int64(group.ID), &gitlab.CreateGroupAccessTokenOptions{
		Name: gitlab.Ptr("ci"), Scopes: gitlab.Ptr([]string{"read_api"}),
	})
	must(t, err)
	if forGroup.AccessLevel != gitlab.MaintainerPermissions || forGroup.ExpiresAt == nil {
		t.Errorf("CreateGroupAccessToken = %+v", forGroup)
	}
	groupTokens, _, err := c.GroupAccessTokens.ListGroupAccessTokens("tokens", nil)
	must(t, err)
	if len(groupTokens) != 1 {
		t.Errorf("ListGroupAccessTokens = %+v", groupTokens)
	}
	_, _, err = c.GroupAccessTokens.GetGroupAccessToken("tokens", forGroup.ID)
	must(t, err)
	_, err = c.GroupAccessTokens.RevokeGroupAccessToken("tokens", forGroup.ID)
	must(t, err)
}

func clientDeployTokens(t *testing.T, w *world, c *gitlab.Client) {
	group := w.group("deploy", tidelock.Private)
	project := w.project(group, "site", tidelock.Private)
	until := time.Now().AddDate(0, 1, 0).UTC().Truncate(time.Second)

	forProject, _, err := c.DeployTokens.CreateProjectDeployToken(int64(project.ID), &gitlab.CreateProjectDeployTokenOptions{
		Name: gitlab.Ptr("flux-system-main-flux-system-./clusters"), Scopes: gitlab.Ptr([]string{"read_repository"}),
	})
	must(t, err)
	if !strings.HasPrefix(forProject.Token, "gldt-") || !strings.HasPrefix(forProject.Username, "gitlab+deploy-token-") ||
		forProject.ExpiresAt != nil || forProject.Revoked || forProject.Expired {
		t.Errorf("CreateProjectDeployToken = %+v", forProject)
	}
	listed, _, err := c.DeployTokens.ListProjectDeployTokens("deploy/site", nil)
	must(t, err)
	one, _, err := c.DeployTokens.GetProjectDeployToken("deploy/site", forProject.ID)
	must(t, err)
	if len(listed) != 1 || listed[0].Token != "" || one.Token != "" || one.Name != forProject.Name {
		t.Errorf("deploy tokens %+v, %+v", listed, one)
	}
	_, err = c.DeployTokens.DeleteProjectDeployToken("deploy/site", forProject.ID)
	must(t, err)

	forGroup, _, err := c.DeployTokens.CreateGroupDeployToken("deploy", &gitlab.CreateGroupDeployTokenOptions{
		Name: gitlab.Ptr("pull"), Username: gitlab.Ptr("puller"), Scopes: gitlab.Ptr([]string{"read_registry", "write_registry"}), ExpiresAt: &until,
	})
	must(t, err)
	if forGroup.Username != "puller" || forGroup.ExpiresAt == nil || !forGroup.ExpiresAt.Equal(until) || len(forGroup.Scopes) != 2 {
		t.Errorf("CreateGroupDeployToken = %+v", forGroup)
	}
	_, _, err = c.DeployTokens.GetGroupDeployToken("deploy", forGroup.ID)
	must(t, err)
	listed, _, err = c.DeployTokens.ListGroupDeployTokens("deploy", nil)
	must(t, err)
	all, _, err := c.DeployTokens.ListAllDeployTokens()
	must(t, err)
	if len(listed) != 1 || len(all) != 2 {
		t.Errorf("%d deploy tokens of the group and %d in all, want 1 and 2", len(listed), len(all))
	}
	_, err = c.DeployTokens.DeleteGroupDeployToken("deploy", forGroup.ID)
	must(t, err)
}

func clientProtectedBranches(t *testing.T, w *world, c *gitlab.Client) {
	w.project(w.group("protected", tidelock.Private), "site", tidelock.Private)
	const path = "protected/site"
	listed, _, err := c.ProtectedBranches.ListProtectedBranches(path, nil)
	must(t, err)
	if len(listed) != 1 || listed[0].Name != "main" || len(listed[0].PushAccessLevels) != 1 ||
		listed[0].PushAccessLevels[0].AccessLevel != gitlab.MaintainerPermissions || listed[0].PushAccessLevels[0].AccessLevelDescription != "Maintainers" {
		t.Errorf("ListProtectedBranches = %+v", listed)
	}
	made, _, err := c.ProtectedBranches.ProtectRepositoryBranches(path, &gitlab.ProtectRepositoryBranchesOptions{
		Name: gitlab.Ptr("release/*"), PushAccessLevel: gitlab.Ptr(gitlab.NoPermissions),
		MergeAccessLevel: gitlab.Ptr(gitlab.DeveloperPermissions), AllowForcePush: gitlab.Ptr(true),
	})
	must(t, err)
	if made.Name != "release/*" || made.PushAccessLevels[0].AccessLevel != gitlab.NoPermissions ||
		made.MergeAccessLevels[0].AccessLevel != gitlab.DeveloperPermissions || !made.AllowForcePush {
		t.Errorf("ProtectRepositoryBranches = %+v", made)
	}
	if _, resp, err := c.ProtectedBranches.ProtectRepositoryBranches(path, &gitlab.ProtectRepositoryBranchesOptions{Name: gitlab.Ptr("main")}); err == nil || resp.StatusCode != http.StatusConflict {
		t.Errorf("main is protected twice: %v", err)
	}
	_, _, err = c.ProtectedBranches.GetProtectedBranch(path, "release/*")
	must(t, err)
	_, err = c.ProtectedBranches.UnprotectRepositoryBranches(path, "release/*")
	must(t, err)
	if _, resp, err := c.ProtectedBranches.GetProtectedBranch(path, "release/*"); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("GetProtectedBranch after its removal: %v", err)
	}
}

const configPath = ".gitlab/agents/prod/config.yaml"

func clientRepository(t *testing.T, w *world, c *gitlab.Client) {
	project := w.project(w.group("code", tidelock.Private), "site", tidelock.Private)
	const path = "code/site"

	commits, _, err := c.Commits.ListCommits(path, nil)
	must(t, err)
	if len(commits) != 0 {
		t.Errorf("an empty repository has commits %+v", commits)
	}
	head := string(w.push(project, map[string]string{configPath: "flux: {}\n", "README.md": "hello", "deploy/a.yaml": "a: 1\n"}))

	commits, _, err = c.Commits.ListCommits(path, &gitlab.ListCommitsOptions{RefName: gitlab.Ptr("feature/x"), Path: gitlab.Ptr("deploy")})
	must(t, err)
	if len(commits) != 1 || commits[0].ID != head {
		t.Errorf("ListCommits = %+v", commits)
	}
	for _, rev := range []string{"main", "feature/x", "v1", head, head[:8], "HEAD"} {
		commit, _, err := c.Commits.GetCommit(path, rev, nil)
		must(t, err)
		if commit.ID != head || commit.ShortID != head[:8] || commit.Title != "First" || commit.Message != "First\n\nbody\n" ||
			commit.AuthorName != "Ada" || commit.CommitterEmail != "bob@example.com" || commit.ProjectID != int64(project.ID) ||
			commit.WebURL != w.url+"/code/site/-/commit/"+head {
			t.Errorf("GetCommit(%s) = %+v", rev, commit)
		}
		if got, want := commit.AuthoredDate.Format(time.RFC3339), "2023-11-14T23:43:20+01:30"; got != want {
			t.Errorf("authored at %s, want %s", got, want)
		}
	}
	branches, _, err := c.Branches.ListBranches(path, &gitlab.ListBranchesOptions{Search: gitlab.Ptr("^feat")})
	must(t, err)
	if len(branches) != 1 || branches[0].Name != "feature/x" || branches[0].Commit.ID != head || branches[0].Protected {
		t.Errorf("ListBranches = %+v", branches)
	}
	branch, _, err := c.Branches.GetBranch(path, "feature/x")
	must(t, err)
	if branch.Default || !branch.CanPush || branch.WebURL != w.url+"/code/site/-/tree/feature/x" {
		t.Errorf("GetBranch = %+v", branch)
	}
	tags, _, err := c.Tags.ListTags(path, nil)
	must(t, err)
	if len(tags) != 2 || tags[0].Name != "light" || tags[0].Target != head || tags[0].Message != "" {
		t.Errorf("ListTags = %+v", tags)
	}
	tag, _, err := c.Tags.GetTag(path, "v1")
	must(t, err)
	if tag.Message != "the first" || tag.Target == head || tag.Commit.ID != head || tag.CreatedAt == nil {
		t.Errorf("GetTag = %+v", tag)
	}
	tree, _, err := c.Repositories.ListTree(path, &gitlab.ListTreeOptions{Recursive: gitlab.Ptr(true)})
	must(t, err)
	paths := []string{}
	for _, node := range tree {
		paths = append(paths, node.Type+" "+node.Path)
	}
	want := []string{"tree .gitlab", "tree .gitlab/agents", "tree .gitlab/agents/prod", "blob " + configPath, "blob README.md", "tree deploy", "blob deploy/a.yaml"}
	if !slices.Equal(paths, want) {
		t.Errorf("ListTree = %q, want %q", paths, want)
	}
	tree, _, err = c.Repositories.ListTree(path, &gitlab.ListTreeOptions{Path: gitlab.Ptr("deploy"), Ref: gitlab.Ptr("v1")})
	must(t, err)
	if len(tree) != 1 || tree[0].Path != "deploy/a.yaml" || tree[0].Name != "a.yaml" || tree[0].Mode != "100644" {
		t.Errorf("ListTree below = %+v", tree)
	}
	file, _, err := c.RepositoryFiles.GetFile(path, configPath, &gitlab.GetFileOptions{Ref: gitlab.Ptr("main")})
	must(t, err)
	if file.Content != "Zmx1eDoge30K" || file.Encoding != "base64" || file.FileName != "config.yaml" || file.FilePath != configPath ||
		file.Size != 9 || file.CommitID != head || file.LastCommitID != head || len(file.SHA256) != 64 || file.Ref != "main" {
		t.Errorf("GetFile = %+v", file)
	}
	meta, _, err := c.RepositoryFiles.GetFileMetaData(path, configPath, &gitlab.GetFileMetaDataOptions{Ref: gitlab.Ptr("HEAD")})
	must(t, err)
	if meta.BlobID != file.BlobID || meta.Size != 9 || meta.FilePath != configPath || meta.LastCommitID != head {
		t.Errorf("GetFileMetaData = %+v", meta)
	}
	raw, _, err := c.RepositoryFiles.GetRawFile(path, configPath, nil)
	must(t, err)
	if string(raw) != "flux: {}\n" {
		t.Errorf("GetRawFile = %q", raw)
	}
	got, _, err := c.Projects.GetProject(path, nil)
	must(t, err)
	if got.EmptyRepo {
		t.Error("a project with commits is said to be empty")
	}
}

func clientAgents(t *testing.T, w *world, c *gitlab.Client) {
	project := w.project(w.group("agents", tidelock.Private), "config", tidelock.Private)
	const path = "agents/config"
	made, _, err := c.ClusterAgents.RegisterAgent(path, &gitlab.RegisterAgentOptions{Name: gitlab.Ptr("prod")})
	must(t, err)
	if made.Name != "prod" || made.CreatedAt == nil || made.CreatedByUserID == 0 || made.ConfigProject.PathWithNamespace != path ||
		made.ConfigProject.ID != int64(project.ID) || made.ConfigProject.CreatedAt == nil {
		t.Errorf("RegisterAgent = %+v", made)
	}
	if _, resp, err := c.ClusterAgents.RegisterAgent(path, &gitlab.RegisterAgentOptions{Name: gitlab.Ptr("prod")}); err == nil ||
		resp.StatusCode != http.StatusBadRequest || !strings.Contains(err.Error(), "name: [has already been taken]") {
		t.Errorf("RegisterAgent twice: %v", err)
	}
	agents, _, err := c.ClusterAgents.ListAgents(path, nil)
	must(t, err)
	one, _, err := c.ClusterAgents.GetAgent(path, made.ID)
	must(t, err)
	if len(agents) != 1 || agents[0].CreatedAt == nil || one.ID != made.ID {
		t.Errorf("agents %+v, %+v", agents, one)
	}
	token, _, err := c.ClusterAgents.CreateAgentToken(path, made.ID, &gitlab.CreateAgentTokenOptions{Name: gitlab.Ptr("first"), Description: gitlab.Ptr("of two")})
	must(t, err)
	if !strings.HasPrefix(token.Token, "glagent-") || token.Description != "of two" || token.Status != "active" || token.CreatedAt == nil || token.AgentID != made.ID {
		t.Errorf("CreateAgentToken = %+v", token)
	}
	_, _, err = c.ClusterAgents.CreateAgentToken(path, made.ID, &gitlab.CreateAgentTokenOptions{Name: gitlab.Ptr("second")})
	must(t, err)
	if _, resp, err := c.ClusterAgents.CreateAgentToken(path, made.ID, &gitlab.CreateAgentTokenOptions{Name: gitlab.Ptr("third")}); err == nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a third token: %v", err)
	}
	_, err = c.ClusterAgents.RevokeAgentToken(path, made.ID, token.ID)
	must(t, err)
	if _, resp, err := c.ClusterAgents.GetAgentToken(path, made.ID, token.ID); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("a revoked token is shown: %v", err)
	}
	tokens, _, err := c.ClusterAgents.ListAgentTokens(path, made.ID, nil)
	must(t, err)
	if len(tokens) != 1 || tokens[0].Name != "second" || tokens[0].Token != "" {
		t.Errorf("ListAgentTokens = %+v", tokens)
	}
	second, _, err := c.ClusterAgents.GetAgentToken(path, made.ID, tokens[0].ID)
	must(t, err)
	if second.Token != "" || second.LastUsedAt != nil {
		t.Errorf("GetAgentToken = %+v", second)
	}
	_, err = c.ClusterAgents.DeleteAgent(path, made.ID)
	must(t, err)
	if _, resp, err := c.ClusterAgents.GetAgent(path, made.ID); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("GetAgent after its deletion: %v", err)
	}
}

// clientOurs reads our own routes, which no client knows, into shapes that are
// written down here a second time.
func clientOurs(t *testing.T, w *world, c *gitlab.Client) {
	ctx := t.Context()
	config := w.project(w.group("ours", tidelock.Private), "config", tidelock.Private)
	namespace, err := w.forge.NamespaceByID(ctx, config.Namespace)
	must(t, err)
	app := w.project(namespace, "app", tidelock.Private)
	commit := w.push(app, map[string]string{"a.yaml": "a: 1\n"})
	agent, _, err := c.ClusterAgents.RegisterAgent("ours/config", &gitlab.RegisterAgentOptions{Name: gitlab.Ptr("prod")})
	must(t, err)

	do := func(method, path, body string, into any) answer {
		t.Helper()
		got := w.call(method, path, body, as(w.token))
		if got.status >= 300 {
			t.Fatalf("%s %s answers %d %s", method, path, got.status, got.body)
		}
		if into != nil {
			must(t, json.Unmarshal([]byte(got.body), into))
		}
		return got
	}

	type grant struct {
		AgentID   int64     `json:"agent_id"`
		Agent     string    `json:"agent_name"`
		Config    string    `json:"agent_project"`
		ProjectID int64     `json:"project_id"`
		Project   string    `json:"project"`
		GrantedBy int64     `json:"granted_by_user_id"`
		CreatedAt time.Time `json:"created_at"`
	}
	var given grant
	for range 2 { // granting again is no error
		do("POST", "/projects/ours%2Fapp/agent_grants", `{"agent_id":`+itoa(agent.ID)+`}`, &given)
	}
	if given.AgentID != agent.ID || given.ProjectID != int64(app.ID) || given.GrantedBy != int64(w.root.User.ID) || given.CreatedAt.IsZero() {
		t.Errorf("grant = %+v", given)
	}
	var grants []grant
	for _, path := range []string{"/projects/ours%2Fapp/agent_grants", "/projects/ours%2Fconfig/cluster_agents/" + itoa(agent.ID) + "/grants"} {
		grants = nil
		do("GET", path, "", &grants)
		if len(grants) != 1 || grants[0] != given || given.Agent != "prod" || given.Config != "ours/config" || given.Project != "ours/app" {
			t.Errorf("GET %s = %+v", path, grants)
		}
	}
	resp := do("DELETE", "/projects/ours%2Fapp/agent_grants/"+itoa(agent.ID), "", nil)
	if resp.status != http.StatusNoContent {
		t.Errorf("revoking a grant answers %d", resp.status)
	}

	at := time.Now().UTC().Truncate(time.Microsecond)
	pushes, _, err := w.forge.Pushes(ctx, w.root, app, tidelock.Page{})
	must(t, err)
	must(t, w.forge.SaveAnnouncements(ctx, tidelock.Announcement{
		Agent: tidelock.AgentID(agent.ID), Source: "GitRepository/flux-system/app", Number: 1, Project: app.ID, Ref: "refs/heads/main",
		Commit: commit, Push: pushes[0].ID, State: tidelock.Converged, SentAt: at, AnnouncedAt: at.Add(1500 * time.Microsecond),
		CalledAt: at.Add(2 * time.Millisecond), Via: "receiver", Attempts: 1,
	}))
	type announcement struct {
		AgentID     int64      `json:"agent_id"`
		Source      string     `json:"source"`
		Number      int64      `json:"number"`
		Ref         string     `json:"ref"`
		Commit      string     `json:"commit"`
		PushID      int64      `json:"push_id"`
		State       string     `json:"state"`
		AcceptedAt  *time.Time `json:"accepted_at"`
		SentAt      *time.Time `json:"sent_at"`
		AnnouncedAt *time.Time `json:"announced_at"`
		CalledAt    *time.Time `json:"called_at"`
		AnsweredAt  *time.Time `json:"answered_at"`
		Via         string     `json:"via"`
		Attempts    int        `json:"attempts"`
	}
	for _, path := range []string{
		"/projects/ours%2Fapp/announcements?latest=true&commit=" + string(commit) + "&source=GitRepository%2Fflux-system%2Fapp&agent_id=" + itoa(agent.ID),
		"/projects/ours%2Fconfig/cluster_agents/" + itoa(agent.ID) + "/announcements",
	} {
		var list []announcement
		do("GET", path, "", &list)
		if len(list) != 1 {
			t.Fatalf("GET %s = %+v", path, list)
		}
		n := list[0]
		if n.Source != "GitRepository/flux-system/app" || n.Commit != string(commit) || n.State != "converged" || n.Via != "receiver" ||
			n.PushID != int64(pushes[0].ID) || n.AcceptedAt == nil || n.AnsweredAt != nil || n.CalledAt == nil ||
			n.AnnouncedAt.Sub(*n.SentAt) != 1500*time.Microsecond {
			t.Errorf("GET %s = %+v", path, n)
		}
	}
	var none []announcement
	do("GET", "/projects/ours%2Fapp/announcements?commit="+strings.Repeat("0", 40), "", &none)
	if len(none) != 0 {
		t.Errorf("announcements of another commit: %+v", none)
	}

	must(t, w.forge.SaveAgentSources(ctx, tidelock.AgentID(agent.ID), []tidelock.AgentSource{
		{
			Agent: tidelock.AgentID(agent.ID), Source: "GitRepository/flux-system/app", Project: app.ID, Ref: "refs/heads/main",
			Wanted: commit, Revision: "main@sha1:" + string(commit), State: tidelock.Converged, Since: at, UpdatedAt: at,
		},
		{
			Agent: tidelock.AgentID(agent.ID), Source: "GitRepository/flux-system/other", Suspended: true,
			State: tidelock.NotServed, Message: "not for you", Since: at, UpdatedAt: at,
		},
	}, nil))
	sources := "/projects/ours%2Fconfig/cluster_agents/" + itoa(agent.ID) + "/sources"
	micros := at.Format("2006-01-02T15:04:05.000000Z")
	if got, want := do("GET", sources, "", nil).body, `[{"source":"GitRepository/flux-system/app","project_id":`+itoa(int64(app.ID))+
		`,"ref":"refs/heads/main","wanted":"`+string(commit)+`","digest":null,"revision":"main@sha1:`+string(commit)+`","suspended":false,"state":"converged",`+
		`"message":"","since":"`+micros+`","updated_at":"`+micros+`"},`+
		`{"source":"GitRepository/flux-system/other","project_id":null,"ref":null,"wanted":null,"digest":null,"revision":null,"suspended":true,"state":"not served",`+
		`"message":"not for you","since":"`+micros+`","updated_at":"`+micros+`"}]`; strings.TrimSpace(got) != want {
		t.Errorf("GET %s:\n%s\nwant\n%s", sources, got, want)
	}
	var second []struct{ Source string }
	do("GET", sources+"?per_page=1&page=2", "", &second)
	if len(second) != 1 || second[0].Source != "GitRepository/flux-system/other" {
		t.Errorf("the second page holds %+v", second)
	}

	type push struct {
		ID   int64     `json:"id"`
		At   time.Time `json:"at"`
		User *struct {
			Username string `json:"username"`
		} `json:"user"`
		Updates []struct {
			Ref string  `json:"ref"`
			Old *string `json:"old"`
			New *string `json:"new"`
		} `json:"updates"`
	}
	var listed []push
	do("GET", "/projects/ours%2Fapp/pushes", "", &listed)
	if len(listed) != 1 || listed[0].User == nil || listed[0].User.Username != "root" || len(listed[0].Updates) != 4 || listed[0].Updates[0].Old != nil {
		t.Errorf("pushes = %+v", listed)
	}

	must(t, w.forge.SaveAgentSession(ctx, tidelock.AgentSession{
		Agent: tidelock.AgentID(agent.ID), Instance: "i1", Server: "s1", Version: "1.2.3", PodNamespace: "tidelock-agent", PodName: "agent-0",
		KubernetesVersion: "v1.34.4", Leader: true, ConnectedAt: at, LastSeen: at,
	}))
	must(t, w.forge.SaveAgentConfig(ctx, tidelock.AgentConfig{
		Agent: tidelock.AgentID(agent.ID), Commit: commit, Error: "line 3: unknown key", Warnings: []string{"gitops is not supported yet"}, CheckedAt: at,
	}))
	var status struct {
		Connected   bool `json:"connected"`
		Connections []struct {
			PodName string `json:"pod_name"`
			Leader  bool   `json:"leader"`
		} `json:"connections"`
		Configuration struct {
			Commit     string   `json:"commit"`
			GoodCommit *string  `json:"good_commit"`
			Error      string   `json:"error"`
			Warnings   []string `json:"warnings"`
		} `json:"configuration"`
	}
	do("GET", "/projects/ours%2Fconfig/cluster_agents/"+itoa(agent.ID)+"/status", "", &status)
	if !status.Connected || len(status.Connections) != 1 || status.Connections[0].PodName != "agent-0" || !status.Connections[0].Leader ||
		status.Configuration.Error != "line 3: unknown key" || status.Configuration.GoodCommit != nil || len(status.Configuration.Warnings) != 1 {
		t.Errorf("status = %+v", status)
	}
}
