package gitlabapi

import (
	"net/http"
	"slices"
)

const (
	get   = http.MethodGet
	post  = http.MethodPost
	put   = http.MethodPut
	patch = http.MethodPatch
	del   = http.MethodDelete
)

// Routes lists the route table as "METHOD /pattern", for tests that hold it
// against a list of what they know.
func Routes() []string {
	var routes []string
	for _, r := range (&API{}).table() {
		routes = append(routes, r.method+" "+r.pattern)
	}
	return routes
}

// table is every route below Prefix. HEAD is answered as GET without a body.
// Each has a row in docs/gitlab-compat.md.
func (a *API) table() []route {
	routes := []route{
		{get, "/version", a.showVersion},
		{get, "/metadata", a.showMetadata},

		{get, "/user", a.showSelf},
		{get, "/users", a.listUsers},
		{post, "/users", a.createUser},
		{get, "/users/:user_id", a.showUser},
		{put, "/users/:user_id", a.editUser},
		{post, "/users/:user_id/block", a.setBlocked(true)},
		{post, "/users/:user_id/unblock", a.setBlocked(false)},
		{get, "/users/:user_id/projects", a.listUserProjects},

		{get, "/namespaces", a.listNamespaces},
		{get, "/namespaces/:id", a.showNamespace},

		{get, "/groups", a.listGroups},
		{post, "/groups", a.createGroup},
		{get, "/groups/:id", a.showGroup},
		{put, "/groups/:id", a.editGroup},
		{del, "/groups/:id", a.deleteGroup},
		{get, "/groups/:id/subgroups", a.listSubgroups},
		{get, "/groups/:id/descendant_groups", a.listDescendants},
		{get, "/groups/:id/projects", a.listGroupProjects},

		{get, "/projects", a.listProjects},
		{post, "/projects", a.createProject},
		{get, "/projects/:id", a.showProject},
		{put, "/projects/:id", a.editProject},
		{del, "/projects/:id", a.deleteProject},
		{post, "/projects/:id/archive", a.archiveProject},
		{post, "/projects/:id/unarchive", a.unarchiveProject},
		{put, "/projects/:id/transfer", a.transferProject},

		{get, "/projects/:id/members", a.listMembers(onProject)},
		{post, "/projects/:id/members", a.addMember(onProject)},
		{get, "/projects/:id/members/all", a.listAllMembers(onProject)},
		{get, "/projects/:id/members/all/:user_id", a.showMember(onProject, a.forge.EffectiveMember)},
		{get, "/projects/:id/members/:user_id", a.showMember(onProject, a.forge.Member)},
		{put, "/projects/:id/members/:user_id", a.editMember(onProject)},
		{del, "/projects/:id/members/:user_id", a.removeMember(onProject)},

		{get, "/groups/:id/members", a.listMembers(onGroup)},
		{post, "/groups/:id/members", a.addMember(onGroup)},
		{get, "/groups/:id/members/all", a.listAllMembers(onGroup)},
		{get, "/groups/:id/members/all/:user_id", a.showMember(onGroup, a.forge.EffectiveMember)},
		{get, "/groups/:id/members/:user_id", a.showMember(onGroup, a.forge.Member)},
		{put, "/groups/:id/members/:user_id", a.editMember(onGroup)},
		{del, "/groups/:id/members/:user_id", a.removeMember(onGroup)},

		{get, "/personal_access_tokens", a.listPersonalTokens},
		{get, "/personal_access_tokens/self", a.showOwnToken},
		{del, "/personal_access_tokens/self", a.revokeOwnToken},
		{get, "/personal_access_tokens/:token_id", a.showPersonalToken},
		{del, "/personal_access_tokens/:token_id", a.revokePersonalToken},
		{post, "/user/personal_access_tokens", a.createOwnToken},
		{post, "/users/:user_id/personal_access_tokens", a.createPersonalToken},

		{get, "/projects/:id/access_tokens", a.listAccessTokens(onProject)},
		{post, "/projects/:id/access_tokens", a.createAccessToken(onProject)},
		{get, "/projects/:id/access_tokens/:token_id", showToken(a, onProject, readAccess, accessKind, a.tokenShape)},
		{del, "/projects/:id/access_tokens/:token_id", a.revokeToken(onProject, accessKind)},

		{get, "/groups/:id/access_tokens", a.listAccessTokens(onGroup)},
		{post, "/groups/:id/access_tokens", a.createAccessToken(onGroup)},
		{get, "/groups/:id/access_tokens/:token_id", showToken(a, onGroup, readAccess, accessKind, a.tokenShape)},
		{del, "/groups/:id/access_tokens/:token_id", a.revokeToken(onGroup, accessKind)},

		{get, "/deploy_tokens", a.listAllDeployTokens},
		{get, "/projects/:id/deploy_tokens", a.listDeployTokens(onProject)},
		{post, "/projects/:id/deploy_tokens", a.createDeployToken(onProject)},
		{get, "/projects/:id/deploy_tokens/:token_id", showToken(a, onProject, readDeploy, deployKind, a.deployShape)},
		{del, "/projects/:id/deploy_tokens/:token_id", a.revokeToken(onProject, deployKind)},

		{get, "/groups/:id/deploy_tokens", a.listDeployTokens(onGroup)},
		{post, "/groups/:id/deploy_tokens", a.createDeployToken(onGroup)},
		{get, "/groups/:id/deploy_tokens/:token_id", showToken(a, onGroup, readDeploy, deployKind, a.deployShape)},
		{del, "/groups/:id/deploy_tokens/:token_id", a.revokeToken(onGroup, deployKind)},

		{get, "/projects/:id/protected_branches", a.listProtectedBranches},
		{post, "/projects/:id/protected_branches", a.protectBranch},
		{get, "/projects/:id/protected_branches/:name", a.showProtectedBranch},
		{del, "/projects/:id/protected_branches/:name", a.unprotectBranch},

		{get, "/projects/:id/repository/branches", a.listBranches},
		{get, "/projects/:id/repository/branches/:branch", a.showBranch},
		{get, "/projects/:id/repository/tags", a.listTags},
		{get, "/projects/:id/repository/tags/:tag_name", a.showTag},
		{get, "/projects/:id/repository/commits", a.listCommits},
		{get, "/projects/:id/repository/commits/:sha", a.showCommit},
		{get, "/projects/:id/repository/tree", a.listTree},
		{get, "/projects/:id/repository/files/:file_path", a.showFile},
		{get, "/projects/:id/repository/files/:file_path/raw", a.rawFile},

		{get, "/projects/:id/cluster_agents", a.listAgents},
		{post, "/projects/:id/cluster_agents", a.createAgent},
		{get, "/projects/:id/cluster_agents/:agent_id", a.showAgent},
		{del, "/projects/:id/cluster_agents/:agent_id", a.deleteAgent},
		{get, "/projects/:id/cluster_agents/:agent_id/tokens", a.listAgentTokens},
		{post, "/projects/:id/cluster_agents/:agent_id/tokens", a.createAgentToken},
		{get, "/projects/:id/cluster_agents/:agent_id/tokens/:token_id", a.showAgentToken},
		{del, "/projects/:id/cluster_agents/:agent_id/tokens/:token_id", a.revokeAgentToken},

		// Ours, under the same envelope.
		{get, "/projects/:id/cluster_agents/:agent_id/status", a.showAgentStatus},
		{get, "/projects/:id/cluster_agents/:agent_id/announcements", a.listAgentAnnouncements},
		{get, "/projects/:id/cluster_agents/:agent_id/sources", a.listAgentSources},
		{get, "/projects/:id/cluster_agents/:agent_id/grants", a.listAgentGrants},
		{get, "/projects/:id/agent_grants", a.listGrants},
		{post, "/projects/:id/agent_grants", a.grantAgent},
		{del, "/projects/:id/agent_grants/:agent_id", a.revokeGrant},
		{get, "/projects/:id/announcements", a.listAnnouncements},
		{get, "/projects/:id/pushes", a.listPushes},
	}
	return slices.Concat(routes,
		a.repositoryRoutes(),
		a.keyRoutes(),
		a.rotateRoutes(),
		a.shareRoutes(),
		a.variableRoutes(),
		a.auditRoutes(),
		a.signingRoutes(),
		a.reportRoutes(),
		a.imageRoutes(),
		a.buildRoutes(),
		a.liveRoutes(),
		a.whyRoutes(),
		a.rolloutRoutes(),
		a.statusRoutes(),
		a.pipelineRoutes(),
		a.environmentRoutes(),
		a.deploymentRoutes(),
		a.hookRoutes(),
		a.integrationRoutes(),
	)
}
