package gitlabapi

import (
	"cmp"
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A projectBasic is a project in lists asked for with simple=true, and to
// callers that are not signed in.
type projectBasic struct {
	ID                tidelock.ProjectID `json:"id"`
	Description       string             `json:"description"`
	Name              string             `json:"name"`
	NameWithNamespace string             `json:"name_with_namespace"`
	Path              string             `json:"path"`
	PathWithNamespace string             `json:"path_with_namespace"`
	CreatedAt         stamp              `json:"created_at"`
	DefaultBranch     string             `json:"default_branch"`
	TagList           []string           `json:"tag_list"`
	Topics            []string           `json:"topics"`
	SSHURL            string             `json:"ssh_url_to_repo"`
	HTTPURL           string             `json:"http_url_to_repo"`
	WebURL            string             `json:"web_url"`
	ReadmeURL         *string            `json:"readme_url"`
	AvatarURL         *string            `json:"avatar_url"`
	ForksCount        int                `json:"forks_count"`
	StarCount         int                `json:"star_count"`
	LastActivityAt    stamp              `json:"last_activity_at"`
	Namespace         namespaceShape     `json:"namespace"`
	Visibility        string             `json:"visibility"`
}

// A projectShape is a whole project. Parts of GitLab that are not built are
// said to be "disabled" or off, and those that clients insist on are there.
type projectShape struct {
	projectBasic
	UpdatedAt       stamp           `json:"updated_at"`
	CreatorID       tidelock.UserID `json:"creator_id"`
	Owner           *userShape      `json:"owner,omitempty"` // in user namespaces only
	Archived        bool            `json:"archived"`
	EmptyRepo       bool            `json:"empty_repo"`
	Permissions     permissions     `json:"permissions"`
	ImportStatus    string          `json:"import_status"`
	ImportURL       *string         `json:"import_url"`
	Mirror          bool            `json:"mirror"`
	RegistryPrefix  string          `json:"container_registry_image_prefix"`
	Links           projectLinks    `json:"_links"`
	SharedWith      []sharedShape   `json:"shared_with_groups"`
	ForkedFrom      *struct{}       `json:"forked_from_project"`
	DeletedAt       *string         `json:"marked_for_deletion_at"`
	DeletedOn       *string         `json:"marked_for_deletion_on"`
	MergeMethod     string          `json:"merge_method"`
	SquashOption    string          `json:"squash_option"`
	OpenIssuesCount int             `json:"open_issues_count"`

	// Of one project, not of those in a list.
	Expiration *expirationShape `json:"container_expiration_policy,omitempty"`
	Immutable  *[]string        `json:"tag_immutability,omitempty"` // ours
	Statistics *statisticsShape `json:"statistics,omitempty"`

	RepositoryAccess    string `json:"repository_access_level"`
	MergeRequestsAccess string `json:"merge_requests_access_level"`
	ForkingAccess       string `json:"forking_access_level"`
	IssuesAccess        string `json:"issues_access_level"`
	BuildsAccess        string `json:"builds_access_level"`
	WikiAccess          string `json:"wiki_access_level"`
	SnippetsAccess      string `json:"snippets_access_level"`
	PagesAccess         string `json:"pages_access_level"`
	RegistryAccess      string `json:"container_registry_access_level"`
	EnvironmentsAccess  string `json:"environments_access_level"`

	IssuesEnabled        bool `json:"issues_enabled"`
	MergeRequestsEnabled bool `json:"merge_requests_enabled"`
	WikiEnabled          bool `json:"wiki_enabled"`
	JobsEnabled          bool `json:"jobs_enabled"`
	SnippetsEnabled      bool `json:"snippets_enabled"`
	RegistryEnabled      bool `json:"container_registry_enabled"`
	SharedRunners        bool `json:"shared_runners_enabled"`
	LFSEnabled           bool `json:"lfs_enabled"`
	RequestAccess        bool `json:"request_access_enabled"`

	OnlyMergeIfPipeline    bool `json:"only_allow_merge_if_pipeline_succeeds"`
	OnlyMergeIfDiscussions bool `json:"only_allow_merge_if_all_discussions_are_resolved"`
	RemoveSourceBranch     bool `json:"remove_source_branch_after_merge"`
}

type permissions struct {
	Project *access `json:"project_access"`
	Group   *access `json:"group_access"`
}

type access struct {
	Level        tidelock.AccessLevel `json:"access_level"`
	Notification int                  `json:"notification_level"`
}

type projectLinks struct {
	Self          string `json:"self"`
	RepoBranches  string `json:"repo_branches"`
	Members       string `json:"members"`
	ClusterAgents string `json:"cluster_agents"`
}

// project is the project that a route names, by id or full path, for one action
// on it: asking for that very action makes the answer name the scope or role
// that is lacking.
func (a *API) project(r *request, action forge.Action) (tidelock.Project, error) {
	return a.forge.ProjectFor(r.ctx(), r.by, r.arg("id"), action)
}

// inProject is the project that a route names, for one action on it, and the
// id of something in it, which the act that follows looks for.
func inProject[ID ~int64](a *API, r *request, action forge.Action, name string) (tidelock.Project, ID, error) {
	project, err := a.project(r, action)
	if err != nil {
		return tidelock.Project{}, 0, err
	}
	n, err := id[ID](r, name)
	return project, n, err
}

func (a *API) projectBasic(p tidelock.Project, n tidelock.Namespace) projectBasic {
	ssh := ""
	if a.ssh != nil {
		ssh = a.ssh.JoinPath(p.FullPath).String() + ".git"
	}
	return projectBasic{
		ID: p.ID, Description: p.Description, Name: p.Name, NameWithNamespace: p.FullName,
		Path: p.Path, PathWithNamespace: p.FullPath, CreatedAt: stamp(p.CreatedAt),
		DefaultBranch: p.DefaultBranch, TagList: []string{}, Topics: []string{},
		SSHURL: ssh, HTTPURL: a.webURL(p.FullPath) + ".git", WebURL: a.webURL(p.FullPath),
		LastActivityAt: stamp(p.UpdatedAt), Namespace: a.namespaceShape(n), Visibility: p.Visibility.String(),
	}
}

// A home is the namespace that projects are in, with the caller's level there.
type home struct {
	tidelock.Namespace
	level tidelock.AccessLevel
}

func (a *API) home(r *request, id tidelock.NamespaceID) (home, error) {
	n, err := a.forge.NamespaceByID(r.ctx(), id)
	if err != nil {
		return home{}, err
	}
	level, err := a.forge.Level(r.ctx(), r.by, forge.OnGroup(n))
	return home{n, level}, err
}

func (a *API) projectShape(r *request, p tidelock.Project, n home, shared []forge.SharedGroup) (projectShape, error) {
	granted, err := a.permissions(r, p, n)
	if err != nil {
		return projectShape{}, err
	}
	empty, err := a.isEmpty(r.ctx(), r.by, p)
	if err != nil {
		return projectShape{}, err
	}
	self := a.url.JoinPath(Prefix, "projects", strconv.FormatInt(int64(p.ID), 10))
	shape := projectShape{
		projectBasic: a.projectBasic(p, n.Namespace), UpdatedAt: stamp(p.UpdatedAt), CreatorID: p.Creator,
		Archived: p.Archived, EmptyRepo: empty, Permissions: granted, ImportStatus: "none",
		RegistryPrefix: strings.ToLower(a.url.Host + "/" + p.FullPath),
		Links: projectLinks{
			Self:          self.String(),
			RepoBranches:  self.JoinPath("repository/branches").String(),
			Members:       self.JoinPath("members").String(),
			ClusterAgents: self.JoinPath("cluster_agents").String(),
		},
		SharedWith: each(shared, newSharedShape), MergeMethod: "merge", SquashOption: "default_off",
		RepositoryAccess: "enabled", MergeRequestsAccess: "enabled", ForkingAccess: "disabled",
		IssuesAccess: "disabled", BuildsAccess: "disabled", WikiAccess: "disabled", SnippetsAccess: "disabled",
		PagesAccess: "disabled", RegistryAccess: "enabled", RegistryEnabled: true, EnvironmentsAccess: "disabled",
	}
	if n.Kind == tidelock.UserNamespace {
		owner := a.userShape(tidelock.User{ID: n.Owner, Username: n.Path, Name: n.Name})
		shape.Owner = &owner
	}
	return shape, nil
}

// permissions says from where the caller has its level: a level above the
// group's can only come from the project itself.
func (a *API) permissions(r *request, p tidelock.Project, n home) (permissions, error) {
	var granted permissions
	if r.by.User == nil {
		return granted, nil
	}
	own, err := a.forge.Level(r.ctx(), r.by, forge.OnProject(p))
	if err != nil {
		return granted, err
	}
	group := n.level
	if n.Kind == tidelock.UserNamespace {
		group = tidelock.NoAccess
	}
	if group != tidelock.NoAccess {
		granted.Group = &access{Level: group, Notification: 3}
	}
	if own > group {
		granted.Project = &access{Level: own, Notification: 3}
	}
	return granted, nil
}

// isEmpty reports whether a project has no branch. Almost always one head
// decides it.
func (a *API) isEmpty(ctx context.Context, by forge.Principal, p tidelock.Project) (bool, error) {
	_, err := a.forge.Resolve(ctx, p.ID, tidelock.RefSpec{Branch: p.DefaultBranch})
	if tidelock.KindOf(err) != tidelock.NotFound {
		return false, err
	}
	heads, err := a.forge.Heads(ctx, by, p)
	if tidelock.KindOf(err) == tidelock.Denied { // may see the project, but not its code
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, h := range heads {
		if _, isBranch := h.Ref.Branch(); isBranch {
			return false, nil
		}
	}
	return true, nil
}

func (a *API) writeProject(w http.ResponseWriter, r *request, status int, p tidelock.Project) error {
	namespace, err := a.home(r, p.Namespace)
	if err != nil {
		return err
	}
	shared, err := a.forge.SharedGroups(r.ctx(), r.by, p.ID)
	if err != nil {
		return err
	}
	shape, err := a.projectShape(r, p, namespace, shared[p.ID])
	if err != nil {
		return err
	}
	if err := a.addImages(r, p, &shape); err != nil {
		return err
	}
	return writeJSON(w, status, shape)
}

func (a *API) listProjects(w http.ResponseWriter, r *request) error {
	filter := tidelock.ProjectFilter{}
	if r.flag("membership") || r.flag("owned") || r.has("min_access_level") {
		user, err := r.user()
		if err != nil {
			return err
		}
		if r.flag("owned") {
			filter.Owner = user.ID
		}
		if level := r.level("min_access_level"); level != tidelock.NoAccess || r.flag("membership") {
			filter.Member, filter.MinLevel = user.ID, level
		}
	}
	return a.writeProjects(w, r, filter)
}

func (a *API) listGroupProjects(w http.ResponseWriter, r *request) error {
	group, err := a.group(r, forge.ReadGroup)
	if err != nil {
		return err
	}
	shared := !r.has("with_shared") || r.flag("with_shared")
	if r.flag("include_subgroups") {
		return a.writeProjects(w, r, tidelock.ProjectFilter{Below: group.ID, WithShared: shared})
	}
	return a.writeProjects(w, r, tidelock.ProjectFilter{Namespace: group.ID, WithShared: shared})
}

// writeProjects answers with the part of a list that the common parameters
// ask for.
func (a *API) writeProjects(w http.ResponseWriter, r *request, filter tidelock.ProjectFilter) error {
	p := &r.params
	filter.Search = r.text("search")
	filter.Visibility = given(p, "visibility", p.visibility)
	filter.Archived = given(p, "archived", p.flag)
	filter.IDAfter = tidelock.ProjectID(r.number("id_after"))
	order := r.word("order_by", "created_at", "id", "name", "path", "updated_at", "last_activity_at", "similarity", "star_count")
	switch order {
	case "last_activity_at":
		order = "updated_at"
	case "similarity", "star_count":
		order = "created_at"
	}
	filter.OrderBy = order
	filter.Descending = r.word("sort", "desc", "asc") == "desc"
	page := r.page()
	keyset := r.word("pagination", "offset", "keyset") == "keyset"
	if err := r.err(); err != nil {
		return err
	}
	if keyset {
		return a.writeProjectsAfter(w, r, filter, page.PerPage)
	}
	projects, total, err := a.forge.Projects(r.ctx(), r.by, filter, page)
	if err != nil {
		return err
	}
	shapes, err := a.projectShapes(r, projects)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, shapes, total)
}

var errKeysetOrder = &statusError{
	status: http.StatusMethodNotAllowed,
	body:   errorBody{Error: "Keyset pagination is only available with order_by=id and sort=asc"},
}

// writeProjectsAfter lists by keyset: the next page begins after the last id,
// so that changes in between neither repeat nor hide a project.
func (a *API) writeProjectsAfter(w http.ResponseWriter, r *request, filter tidelock.ProjectFilter, perPage int) error {
	if filter.OrderBy != "id" || filter.Descending && r.has("sort") {
		return errKeysetOrder
	}
	filter.Descending = false
	projects, total, err := a.forge.Projects(r.ctx(), r.by, filter, tidelock.Page{Number: 1, PerPage: perPage})
	if err != nil {
		return err
	}
	shapes, err := a.projectShapes(r, projects)
	if err != nil {
		return err
	}
	var next url.Values
	if total > len(projects) && len(projects) > 0 {
		next = url.Values{"id_after": {strconv.FormatInt(int64(projects[len(projects)-1].ID), 10)}}
	}
	return writeKeyset(a, w, r, perPage, shapes, next)
}

func (a *API) projectShapes(r *request, projects []tidelock.Project) ([]any, error) {
	simple := r.flag("simple") || r.by.User == nil
	var shared map[tidelock.ProjectID][]forge.SharedGroup
	if !simple {
		ids := each(projects, func(p tidelock.Project) tidelock.ProjectID { return p.ID })
		var err error
		if shared, err = a.forge.SharedGroups(r.ctx(), r.by, ids...); err != nil {
			return nil, err
		}
	}
	homes := map[tidelock.NamespaceID]home{}
	shapes := make([]any, 0, len(projects))
	for _, p := range projects {
		n, known := homes[p.Namespace]
		if !known {
			var err error
			if n, err = a.home(r, p.Namespace); err != nil {
				return nil, err
			}
			homes[p.Namespace] = n
		}
		if simple {
			shapes = append(shapes, a.projectBasic(p, n.Namespace))
			continue
		}
		shape, err := a.projectShape(r, p, n, shared[p.ID])
		if err != nil {
			return nil, err
		}
		shapes = append(shapes, shape)
	}
	return shapes, nil
}

func (a *API) showProject(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadProject)
	if err != nil {
		return err
	}
	return a.writeProject(w, r, http.StatusOK, project)
}

func (a *API) createProject(w http.ResponseWriter, r *request) error {
	caller, err := r.user()
	if err != nil {
		return err
	}
	namespace := cmp.Or(tidelock.NamespaceID(r.number("namespace_id")), caller.Namespace)
	if namespace != 0 { // a bot has none of its own
		if err := a.mayCreateIn(r, namespace, forge.CreateProject); err != nil {
			return err
		}
	}
	r.needOneOf("name", "path")
	project := forge.NewProject{
		Namespace: namespace, Name: r.text("name"), Path: r.text("path"),
		Description: r.text("description"), Visibility: r.visibility("visibility"), DefaultBranch: r.text("default_branch"),
		Readme: r.flag("initialize_with_readme"),
	}
	if err := r.err(); err != nil {
		return err
	}
	made, err := a.forge.CreateProject(r.ctx(), r.by, project)
	if err != nil {
		return err
	}
	return a.writeProject(w, r, http.StatusCreated, made)
}

func (a *API) editProject(w http.ResponseWriter, r *request) error {
	before, err := a.project(r, forge.EditProject)
	if err != nil {
		return err
	}
	p := &r.params
	edit := forge.ProjectEdit{
		Name: given(p, "name", p.text), Path: given(p, "path", p.text),
		Description: given(p, "description", p.text), DefaultBranch: given(p, "default_branch", p.text),
		Visibility: given(p, "visibility", p.visibility), Archived: given(p, "archived", p.flag),
	}
	retention := p.expiration()
	immutable := given(p, "tag_immutability", p.list)
	if err := r.err(); err != nil {
		return err
	}
	if immutable != nil {
		if err := a.forge.SetImmutableTags(r.ctx(), r.by, before, *immutable); err != nil {
			return err
		}
	}
	if retention != nil {
		if _, err := a.forge.SetRetention(r.ctx(), r.by, before, *retention); err != nil {
			return err
		}
	}
	project, err := a.forge.EditProject(r.ctx(), r.by, r.arg("id"), edit)
	if err != nil {
		return err
	}
	return a.writeProject(w, r, http.StatusOK, project)
}

func (a *API) archiveProject(w http.ResponseWriter, r *request) error {
	return a.setArchived(w, r, true)
}

func (a *API) unarchiveProject(w http.ResponseWriter, r *request) error {
	return a.setArchived(w, r, false)
}

func (a *API) setArchived(w http.ResponseWriter, r *request, archived bool) error {
	project, err := a.forge.EditProject(r.ctx(), r.by, r.arg("id"), forge.ProjectEdit{Archived: &archived})
	if err != nil {
		return err
	}
	return a.writeProject(w, r, http.StatusCreated, project)
}

func (a *API) transferProject(w http.ResponseWriter, r *request) error {
	if _, err := a.project(r, forge.DeleteProject); err != nil {
		return err
	}
	r.params.need("namespace")
	namespace := r.params.text("namespace")
	if err := r.err(); err != nil {
		return err
	}
	project, err := a.forge.TransferProject(r.ctx(), r.by, r.arg("id"), namespace)
	if err != nil {
		return err
	}
	return a.writeProject(w, r, http.StatusOK, project)
}

func (a *API) deleteProject(w http.ResponseWriter, r *request) error {
	if err := a.forge.DeleteProject(r.ctx(), r.by, r.arg("id")); err != nil {
		return err
	}
	return accepted(w)
}
