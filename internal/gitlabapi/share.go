package gitlabapi

import (
	"net/http"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func (a *API) shareRoutes() []route {
	return []route{
		{post, "/projects/:id/share", a.shareProject},
		{del, "/projects/:id/share/:group_id", a.unshareProject},
		{get, "/projects/:id/invited_groups", a.listInvitedGroups},
		{get, "/groups/:id/projects/shared", a.listSharedProjects},
	}
}

// A sharedShape is a group that a project is shared with, within the project.
type sharedShape struct {
	ID        tidelock.NamespaceID `json:"group_id"`
	Name      string               `json:"group_name"`
	FullPath  string               `json:"group_full_path"`
	Level     tidelock.AccessLevel `json:"group_access_level"`
	ExpiresAt day                  `json:"expires_at"`
}

func newSharedShape(s forge.SharedGroup) sharedShape {
	return sharedShape{ID: s.With.ID, Name: s.With.Name, FullPath: s.With.FullPath, Level: s.Level, ExpiresAt: day(s.ExpiresAt)}
}

// A shareShape is the answer to sharing.
type shareShape struct {
	ProjectID   tidelock.ProjectID   `json:"project_id"`
	GroupID     tidelock.NamespaceID `json:"group_id"`
	GroupAccess tidelock.AccessLevel `json:"group_access"`
	ExpiresAt   day                  `json:"expires_at"`
}

func (a *API) shareProject(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ManageMembers)
	if err != nil {
		return err
	}
	r.need("group_id", "group_access")
	group, level, expires := tidelock.NamespaceID(r.number("group_id")), r.level("group_access"), r.date("expires_at")
	if err := r.err(); err != nil {
		return err
	}
	share, err := a.forge.ShareProject(r.ctx(), r.by, project, group, level, expires)
	if err != nil {
		return err
	}
	return created(w, shareShape{ProjectID: share.Project, GroupID: share.Group, GroupAccess: share.Level, ExpiresAt: day(share.ExpiresAt)})
}

func (a *API) unshareProject(w http.ResponseWriter, r *request) error {
	project, group, err := inProject[tidelock.NamespaceID](a, r, forge.ManageMembers, "group_id")
	if err != nil {
		return err
	}
	if err := a.forge.UnshareProject(r.ctx(), r.by, project, group); err != nil {
		return err
	}
	return gone(w)
}

// A groupBasic is a group in short.
type groupBasic struct {
	ID        tidelock.NamespaceID `json:"id"`
	WebURL    string               `json:"web_url"`
	Name      string               `json:"name"`
	AvatarURL *string              `json:"avatar_url"`
	FullName  string               `json:"full_name"`
	FullPath  string               `json:"full_path"`
}

func (a *API) listInvitedGroups(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadProject)
	if err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	shared, err := a.forge.SharedGroups(r.ctx(), r.by, project.ID)
	if err != nil {
		return err
	}
	groups := each(shared[project.ID], func(s forge.SharedGroup) groupBasic {
		return groupBasic{ID: s.With.ID, WebURL: a.namespaceURL(s.With), Name: s.With.Name, FullName: s.With.FullName, FullPath: s.With.FullPath}
	})
	return writePage(a, w, r, page, cut(page, groups), len(groups))
}

func (a *API) listSharedProjects(w http.ResponseWriter, r *request) error {
	group, err := a.group(r, forge.ReadGroup)
	if err != nil {
		return err
	}
	return a.writeProjects(w, r, tidelock.ProjectFilter{SharedWith: group.ID})
}
