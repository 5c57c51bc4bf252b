package gitlabapi

import (
	"net/http"
	"slices"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

type protectionShape struct {
	ID                int64        `json:"id"`
	Name              string       `json:"name"`
	PushLevels        []levelShape `json:"push_access_levels"`
	MergeLevels       []levelShape `json:"merge_access_levels"`
	AllowForcePush    bool         `json:"allow_force_push"`
	UnprotectLevels   []levelShape `json:"unprotect_access_levels"`
	CodeOwnerApproval bool         `json:"code_owner_approval_required"`
}

type levelShape struct {
	ID          int64                `json:"id"`
	AccessLevel tidelock.AccessLevel `json:"access_level"`
	Description string               `json:"access_level_description"`
	DeployKeyID *int64               `json:"deploy_key_id"`
	UserID      *int64               `json:"user_id"`
	GroupID     *int64               `json:"group_id"`
}

func levelsShape(id int64, l tidelock.AccessLevel) []levelShape {
	description := map[tidelock.AccessLevel]string{
		tidelock.NoAccess:   "No one",
		tidelock.Developer:  "Developers + Maintainers",
		tidelock.Maintainer: "Maintainers",
	}[l]
	return []levelShape{{ID: id, AccessLevel: l, Description: description}}
}

func shapeProtection(b tidelock.ProtectedBranch) protectionShape {
	return protectionShape{
		ID: b.ID, Name: b.Pattern, PushLevels: levelsShape(b.ID, b.PushLevel), MergeLevels: levelsShape(b.ID, b.MergeLevel),
		AllowForcePush: b.AllowForce, UnprotectLevels: []levelShape{},
	}
}

func (a *API) listProtectedBranches(w http.ResponseWriter, r *request) error {
	if _, err := a.project(r, forge.ReadProtected); err != nil {
		return err
	}
	wanted := nameFilter(r.text("search"))
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	protected, err := a.forge.ProtectedBranches(r.ctx(), r.by, r.arg("id"))
	if err != nil {
		return err
	}
	protected = slices.DeleteFunc(protected, func(b tidelock.ProtectedBranch) bool { return !wanted(b.Pattern) })
	return writePage(a, w, r, page, each(cut(page, protected), shapeProtection), len(protected))
}

func (a *API) showProtectedBranch(w http.ResponseWriter, r *request) error {
	protected, err := a.forge.ProtectedBranches(r.ctx(), r.by, r.arg("id"))
	if err != nil {
		return err
	}
	for _, b := range protected {
		if b.Pattern == r.arg("name") {
			return ok(w, shapeProtection(b))
		}
	}
	return errNotFound
}

func (a *API) protectBranch(w http.ResponseWriter, r *request) error {
	if _, err := a.project(r, forge.Protect); err != nil {
		return err
	}
	r.need("name")
	branch := tidelock.ProtectedBranch{
		Pattern:    r.text("name"),
		PushLevel:  r.protectionLevel("push_access_level"),
		MergeLevel: r.protectionLevel("merge_access_level"),
		AllowForce: r.flag("allow_force_push"),
	}
	if err := r.err(); err != nil {
		return err
	}
	made, err := a.forge.ProtectBranch(r.ctx(), r.by, r.arg("id"), branch)
	if tidelock.KindOf(err) == tidelock.Conflict {
		return &statusError{status: http.StatusConflict, body: errorBody{
			Message: "Protected branch '" + branch.Pattern + "' already exists",
		}}
	}
	if err != nil {
		return err
	}
	return created(w, shapeProtection(made))
}

// protectionLevel reads a level from which a protected branch may be changed;
// absent is Maintainer, and 0 is nobody.
func (p *params) protectionLevel(name string) tidelock.AccessLevel {
	if !p.has(name) {
		return tidelock.Maintainer
	}
	switch level := p.level(name); level {
	case tidelock.NoAccess, tidelock.Developer, tidelock.Maintainer:
		return level
	}
	p.note(name, "does not have a valid value")
	return tidelock.NoAccess
}

func (a *API) unprotectBranch(w http.ResponseWriter, r *request) error {
	if err := a.forge.UnprotectBranch(r.ctx(), r.by, r.arg("id"), r.arg("name")); err != nil {
		return err
	}
	return gone(w)
}
