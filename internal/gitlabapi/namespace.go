package gitlabapi

import (
	"net/http"
	"strconv"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A namespaceShape is a group or user namespace, alone and within a project.
type namespaceShape struct {
	ID        tidelock.NamespaceID  `json:"id"`
	Name      string                `json:"name"`
	Path      string                `json:"path"`
	Kind      string                `json:"kind"`
	FullPath  string                `json:"full_path"`
	ParentID  *tidelock.NamespaceID `json:"parent_id"`
	AvatarURL *string               `json:"avatar_url"`
	WebURL    string                `json:"web_url"`
}

func (a *API) namespaceShape(n tidelock.Namespace) namespaceShape {
	return namespaceShape{
		ID: n.ID, Name: n.Name, Path: n.Path, Kind: string(n.Kind), FullPath: n.FullPath,
		ParentID: orNull(n.Parent), WebURL: a.namespaceURL(n),
	}
}

func (a *API) namespaceURL(n tidelock.Namespace) string {
	if n.Kind == tidelock.UserNamespace {
		return a.webURL(n.FullPath)
	}
	return a.webURL("groups", n.FullPath)
}

func (a *API) listNamespaces(w http.ResponseWriter, r *request) error {
	filter := tidelock.NamespaceFilter{Search: r.text("search"), TopLevel: r.flag("top_level_only")}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	if _, err := r.user(); err != nil {
		return err
	}
	namespaces, total, err := a.forge.Groups(r.ctx(), r.by, filter, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(namespaces, a.namespaceShape), total)
}

func (a *API) showNamespace(w http.ResponseWriter, r *request) error {
	if _, err := r.user(); err != nil {
		return err
	}
	namespace, err := a.forge.Group(r.ctx(), r.by, r.arg("id"))
	if err != nil {
		return missing("Namespace", err)
	}
	return ok(w, a.namespaceShape(namespace))
}

// A groupShape is a group; what we do not have is said to be off.
type groupShape struct {
	ID                      tidelock.NamespaceID  `json:"id"`
	WebURL                  string                `json:"web_url"`
	Name                    string                `json:"name"`
	Path                    string                `json:"path"`
	Description             string                `json:"description"`
	Visibility              string                `json:"visibility"`
	FullName                string                `json:"full_name"`
	FullPath                string                `json:"full_path"`
	CreatedAt               stamp                 `json:"created_at"`
	ParentID                *tidelock.NamespaceID `json:"parent_id"`
	AvatarURL               *string               `json:"avatar_url"`
	MarkedForDeletionOn     *string               `json:"marked_for_deletion_on"`
	SharedWithGroups        []struct{}            `json:"shared_with_groups"`
	ProjectCreationLevel    string                `json:"project_creation_level"`
	SubgroupCreationLevel   string                `json:"subgroup_creation_level"`
	ShareWithGroupLock      bool                  `json:"share_with_group_lock"`
	RequireTwoFactor        bool                  `json:"require_two_factor_authentication"`
	LFSEnabled              bool                  `json:"lfs_enabled"`
	RequestAccessEnabled    bool                  `json:"request_access_enabled"`
	DefaultBranchProtection int                   `json:"default_branch_protection"`
	EmailsDisabled          bool                  `json:"emails_disabled"`
	MentionsDisabled        bool                  `json:"mentions_disabled"`
}

func (a *API) groupShape(n tidelock.Namespace) groupShape {
	return groupShape{
		ID: n.ID, WebURL: a.namespaceURL(n), Name: n.Name, Path: n.Path, Description: n.Description,
		Visibility: n.Visibility.String(), FullName: n.FullName, FullPath: n.FullPath,
		CreatedAt: stamp(n.CreatedAt), ParentID: orNull(n.Parent), SharedWithGroups: []struct{}{},
		ProjectCreationLevel: "developer", SubgroupCreationLevel: "maintainer",
		DefaultBranchProtection: 2, // fully protected
	}
}

// group is the group that a route names, for one action on it; user namespaces
// are none.
func (a *API) group(r *request, action forge.Action) (tidelock.Namespace, error) {
	group, err := a.forge.GroupFor(r.ctx(), r.by, r.arg("id"), action)
	if err != nil {
		return tidelock.Namespace{}, err
	}
	if group.Kind != tidelock.GroupNamespace {
		return tidelock.Namespace{}, errMissing("Group")
	}
	return group, nil
}

func (a *API) listGroups(w http.ResponseWriter, r *request) error {
	return a.writeGroups(w, r, tidelock.NamespaceFilter{TopLevel: r.flag("top_level_only")})
}

func (a *API) listSubgroups(w http.ResponseWriter, r *request) error {
	group, err := a.group(r, forge.ReadGroup)
	if err != nil {
		return err
	}
	return a.writeGroups(w, r, tidelock.NamespaceFilter{Parent: group.ID})
}

func (a *API) listDescendants(w http.ResponseWriter, r *request) error {
	group, err := a.group(r, forge.ReadGroup)
	if err != nil {
		return err
	}
	return a.writeGroups(w, r, tidelock.NamespaceFilter{Descendants: group.ID})
}

func (a *API) writeGroups(w http.ResponseWriter, r *request, filter tidelock.NamespaceFilter) error {
	filter.Kind = tidelock.GroupNamespace
	filter.Search = r.text("search")
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	groups, total, err := a.forge.Groups(r.ctx(), r.by, filter, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(groups, a.groupShape), total)
}

func (a *API) showGroup(w http.ResponseWriter, r *request) error {
	group, err := a.group(r, forge.ReadGroup)
	if err != nil {
		return err
	}
	return ok(w, a.groupShape(group))
}

func (a *API) createGroup(w http.ResponseWriter, r *request) error {
	if _, err := r.user(); err != nil {
		return err
	}
	parent := tidelock.NamespaceID(r.number("parent_id"))
	may := a.forge.Allow(r.ctx(), r.by, forge.CreateTopGroup, forge.OnForge)
	if parent != 0 {
		may = a.mayCreateIn(r, parent, forge.CreateSubgroup)
	}
	if may != nil {
		return may
	}
	r.need("name", "path")
	group := forge.NewGroup{
		Parent: parent, Name: r.text("name"), Path: r.text("path"),
		Description: r.text("description"), Visibility: r.visibility("visibility"),
	}
	if err := r.err(); err != nil {
		return err
	}
	made, err := a.forge.CreateGroup(r.ctx(), r.by, group)
	if err != nil {
		return err
	}
	return created(w, a.groupShape(made))
}

// mayCreateIn asks, before anything else is read of a request, whether the
// caller may make something in a namespace.
func (a *API) mayCreateIn(r *request, n tidelock.NamespaceID, action forge.Action) error {
	_, err := a.forge.GroupFor(r.ctx(), r.by, strconv.FormatInt(int64(n), 10), action)
	return err
}

func (a *API) editGroup(w http.ResponseWriter, r *request) error {
	if _, err := a.group(r, forge.EditGroup); err != nil {
		return err
	}
	r.needOneOf("name", "path", "description", "visibility")
	p := &r.params
	edit := forge.GroupEdit{
		Name: given(p, "name", p.text), Path: given(p, "path", p.text),
		Description: given(p, "description", p.text), Visibility: given(p, "visibility", p.visibility),
	}
	if err := r.err(); err != nil {
		return err
	}
	group, err := a.forge.EditGroup(r.ctx(), r.by, r.arg("id"), edit)
	if err != nil {
		return err
	}
	return ok(w, a.groupShape(group))
}

func (a *API) deleteGroup(w http.ResponseWriter, r *request) error {
	if err := a.forge.DeleteGroup(r.ctx(), r.by, r.arg("id")); err != nil {
		return err
	}
	return accepted(w)
}

// A place is what members and tokens belong to; routes on projects and on
// groups differ in nothing else.
type place func(*API, *request, acts) (forge.Target, error)

// acts are one action under its names on projects and on groups.
type acts struct{ project, group forge.Action }

var (
	readMembers   = acts{forge.ReadMembers, forge.ReadGroupMembers}
	manageMembers = acts{forge.ManageMembers, forge.ManageGroupMembers}
	readAccess    = acts{forge.ReadTokens, forge.ReadGroupBots}
	readDeploy    = acts{forge.ReadTokens, forge.ReadGroupTokens}
	manageTokens  = acts{forge.ManageTokens, forge.ManageGroupTokens}
)

func onProject(a *API, r *request, to acts) (forge.Target, error) {
	project, err := a.project(r, to.project)
	return forge.OnProject(project), err
}

func onGroup(a *API, r *request, to acts) (forge.Target, error) {
	group, err := a.group(r, to.group)
	return forge.OnGroup(group), err
}
