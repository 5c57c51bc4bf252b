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
	pushers := levelsShape(b.ID, b.PushLevel)
	if len(b.Keys) > 0 && b.PushLevel == tidelock.NoAccess {
		pushers = pushers[:0] // only the keys may
	}
	for _, key := range b.Keys {
		keyID := int64(key)
		pushers = append(pushers, levelShape{ID: keyID, AccessLevel: tidelock.Maintainer, Description: "Deploy key", DeployKeyID: &keyID})
	}
	return protectionShape{
		ID: b.ID, Name: b.Pattern, PushLevels: pushers, MergeLevels: levelsShape(b.ID, b.MergeLevel),
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
	pushers, mergers := r.allowed("allowed_to_push"), r.allowed("allowed_to_merge")
	branch := tidelock.ProtectedBranch{
		Pattern:    r.text("name"),
		PushLevel:  pushers.or(r.protectionLevel("push_access_level"), r.has("push_access_level")),
		MergeLevel: mergers.or(r.protectionLevel("merge_access_level"), r.has("merge_access_level")),
		AllowForce: r.flag("allow_force_push"),
		Keys:       pushers.keys,
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

// allowed is who GitLab's list of elements such as {"access_level": 30} or
// {"deploy_key_id": 1} lets do something. Of several levels the lowest counts,
// as it does when each of them may.
type allowed struct {
	level *tidelock.AccessLevel
	keys  []tidelock.KeyID
	gone  []int64 // ids to take from the list there is
}

// or is the level, or if the list has none what is given beside it: a list of
// deploy keys alone keeps everybody else out.
func (l allowed) or(level tidelock.AccessLevel, given bool) tidelock.AccessLevel {
	switch {
	case l.level != nil:
		return *l.level
	case len(l.keys) > 0 && !given:
		return tidelock.NoAccess
	}
	return level
}

func (p *params) allowed(name string) allowed {
	var l allowed
	if !p.has(name) {
		return l
	}
	elements, ok := p.values[name].([]any)
	if !ok {
		p.note(name, "is invalid")
		return l
	}
	for _, element := range elements {
		values, ok := element.(map[string]any)
		if !ok {
			p.note(name, "is invalid")
			continue
		}
		one := &params{values: values}
		switch {
		case one.has("_destroy") && one.flag("_destroy"):
			one.need("id")
			l.gone = append(l.gone, one.number("id"))
		case one.number("user_id") != 0, one.number("group_id") != 0:
			one.note("user_id and group_id", "are not supported; use access_level or deploy_key_id")
		case one.number("deploy_key_id") > 0:
			if name != "allowed_to_push" {
				one.note("deploy_key_id", "can only push")
			}
			l.keys = append(l.keys, tidelock.KeyID(one.number("deploy_key_id")))
		case one.has("access_level"):
			level := one.protectionLevel("access_level")
			if l.level == nil || *l.level == tidelock.NoAccess || level != tidelock.NoAccess && level < *l.level {
				l.level = &level
			}
		default:
			one.need("access_level")
		}
		for _, wrong := range one.wrong {
			p.note(name, wrong)
		}
	}
	slices.Sort(l.keys)
	l.keys = slices.Compact(l.keys)
	return l
}

// editProtectedBranch changes a protection. As with GitLab, keys are added to
// those there are, and an element with _destroy and an id takes one away; of
// levels there is one, which the new one replaces.
func (a *API) editProtectedBranch(w http.ResponseWriter, r *request) error {
	if _, err := a.project(r, forge.Protect); err != nil {
		return err
	}
	pushers, mergers := r.allowed("allowed_to_push"), r.allowed("allowed_to_merge")
	edit := forge.ProtectionEdit{
		PushLevel:  given(&r.params, "push_access_level", r.protectionLevel),
		MergeLevel: given(&r.params, "merge_access_level", r.protectionLevel),
		AllowForce: given(&r.params, "allow_force_push", r.flag),
		AddKeys:    pushers.keys,
	}
	if pushers.level != nil {
		edit.PushLevel = pushers.level
	}
	if mergers.level != nil {
		edit.MergeLevel = mergers.level
	}
	for _, id := range pushers.gone {
		edit.RemoveKeys = append(edit.RemoveKeys, tidelock.KeyID(id))
	}
	if err := r.err(); err != nil {
		return err
	}
	edited, err := a.forge.EditProtectedBranch(r.ctx(), r.by, r.arg("id"), r.arg("name"), edit)
	if err != nil {
		return err
	}
	return ok(w, shapeProtection(edited))
}

func (a *API) unprotectBranch(w http.ResponseWriter, r *request) error {
	if err := a.forge.UnprotectBranch(r.ctx(), r.by, r.arg("id"), r.arg("name")); err != nil {
		return err
	}
	return gone(w)
}

type protectedTagShape struct {
	Name         string       `json:"name"`
	CreateLevels []levelShape `json:"create_access_levels"`
}

func shapeProtectedTag(t tidelock.ProtectedTag) protectedTagShape {
	return protectedTagShape{Name: t.Pattern, CreateLevels: levelsShape(t.ID, t.CreateLevel)}
}

func (a *API) listProtectedTags(w http.ResponseWriter, r *request) error {
	if _, err := a.project(r, forge.ReadTagRules); err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	protected, err := a.forge.ProtectedTags(r.ctx(), r.by, r.arg("id"))
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(cut(page, protected), shapeProtectedTag), len(protected))
}

func (a *API) showProtectedTag(w http.ResponseWriter, r *request) error {
	protected, err := a.forge.ProtectedTags(r.ctx(), r.by, r.arg("id"))
	if err != nil {
		return err
	}
	for _, t := range protected {
		if t.Pattern == r.arg("name") {
			return ok(w, shapeProtectedTag(t))
		}
	}
	return errNotFound
}

func (a *API) protectTag(w http.ResponseWriter, r *request) error {
	if _, err := a.project(r, forge.ProtectTags); err != nil {
		return err
	}
	r.need("name")
	creators := r.allowed("allowed_to_create")
	tag := tidelock.ProtectedTag{
		Pattern:     r.text("name"),
		CreateLevel: creators.or(r.protectionLevel("create_access_level"), r.has("create_access_level")),
	}
	if err := r.err(); err != nil {
		return err
	}
	made, err := a.forge.ProtectTag(r.ctx(), r.by, r.arg("id"), tag)
	if tidelock.KindOf(err) == tidelock.Conflict {
		return &statusError{status: http.StatusConflict, body: errorBody{
			Message: "Protected tag '" + tag.Pattern + "' already exists",
		}}
	}
	if err != nil {
		return err
	}
	return created(w, shapeProtectedTag(made))
}

func (a *API) unprotectTag(w http.ResponseWriter, r *request) error {
	if err := a.forge.UnprotectTag(r.ctx(), r.by, r.arg("id"), r.arg("name")); err != nil {
		return err
	}
	return gone(w)
}
