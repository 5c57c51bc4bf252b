package forge

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidelock.dev"
)

// NewUser is what an administrator says of a user to create.
type NewUser struct {
	Username string // required
	Name     string // default Username
	Email    string
	Admin    bool
}

// CreateUser makes a user and its namespace.
func (f *Forge) CreateUser(ctx context.Context, p Principal, n NewUser) (tidelock.User, error) {
	if err := f.Allow(ctx, p, Administer, OnForge); err != nil {
		return tidelock.User{}, err
	}
	return f.createUser(ctx, n)
}

func (f *Forge) createUser(ctx context.Context, n NewUser) (tidelock.User, error) {
	if n.Name == "" {
		n.Name = n.Username
	}
	if err := checkPath("username", n.Username, true); err != nil {
		return tidelock.User{}, err
	}
	if err := checkName("name", n.Name); err != nil {
		return tidelock.User{}, err
	}
	if n.Email != "" {
		if err := checkName("email", n.Email); err != nil {
			return tidelock.User{}, err
		}
	}
	return f.store.CreateUser(ctx, tidelock.User{
		Username: n.Username, Name: n.Name, Email: n.Email, Admin: n.Admin, CreatedAt: f.now().UTC(),
	})
}

// Bootstrap makes sure that the administrator exists and returns it.
func (f *Forge) Bootstrap(ctx context.Context, username string) (tidelock.User, error) {
	user, err := f.store.UserByName(ctx, username)
	if tidelock.KindOf(err) != tidelock.NotFound {
		return user, err
	}
	return f.createUser(ctx, NewUser{Username: username, Name: "Administrator", Admin: true})
}

// User reads a user that any signed-in user may see.
func (f *Forge) User(ctx context.Context, p Principal, id tidelock.UserID) (tidelock.User, error) {
	if err := f.Allow(ctx, p, ReadUsers, OnForge); err != nil {
		return tidelock.User{}, err
	}
	return f.store.User(ctx, id)
}

// Users lists users.
func (f *Forge) Users(ctx context.Context, p Principal, filter tidelock.UserFilter, page tidelock.Page) ([]tidelock.User, int, error) {
	if err := f.Allow(ctx, p, ReadUsers, OnForge); err != nil {
		return nil, 0, err
	}
	return f.store.Users(ctx, filter, page)
}

// NewGroup is what is said of a group to create.
type NewGroup struct {
	Parent      tidelock.NamespaceID // 0 for the top
	Name        string               // default Path
	Path        string               // default derived from Name
	Description string
	Visibility  tidelock.Visibility
}

// CreateGroup makes a group whose owner is the caller.
func (f *Forge) CreateGroup(ctx context.Context, p Principal, n NewGroup) (tidelock.Namespace, error) {
	if n.Parent == 0 {
		if err := f.Allow(ctx, p, CreateTopGroup, OnForge); err != nil {
			return tidelock.Namespace{}, err
		}
	} else {
		parent, err := f.namespace(ctx, p, n.Parent, CreateSubgroup)
		if err != nil {
			return tidelock.Namespace{}, err
		}
		if parent.Kind != tidelock.GroupNamespace {
			return tidelock.Namespace{}, tidelock.FieldErrorf(tidelock.Invalid, "parent_id", "must be a group")
		}
		if n.Visibility > parent.Visibility {
			return tidelock.Namespace{}, tidelock.FieldErrorf(tidelock.Invalid, "visibility_level",
				"%s is not allowed in a %s group", n.Visibility, parent.Visibility)
		}
	}
	if n.Path == "" {
		n.Path = pathFromName(n.Name)
	}
	if n.Name == "" {
		n.Name = n.Path
	}
	group := tidelock.Namespace{
		Kind: tidelock.GroupNamespace, Parent: n.Parent, Path: n.Path, Name: n.Name,
		Description: n.Description, Visibility: n.Visibility, CreatedAt: f.now().UTC(),
	}
	if err := checkNamespace(group); err != nil {
		return tidelock.Namespace{}, err
	}
	return f.store.CreateNamespace(ctx, group, p.User.ID)
}

func checkNamespace(n tidelock.Namespace) error {
	if err := checkName("name", n.Name); err != nil {
		return err
	}
	if err := checkPath("path", n.Path, n.Parent == 0); err != nil {
		return err
	}
	return checkDescription(n.Description)
}

// Group finds a group or user namespace by id or full path.
func (f *Forge) Group(ctx context.Context, p Principal, idOrPath string) (tidelock.Namespace, error) {
	return f.group(ctx, p, idOrPath, ReadGroup)
}

func (f *Forge) group(ctx context.Context, p Principal, idOrPath string, a Action) (tidelock.Namespace, error) {
	var group tidelock.Namespace
	var err error
	if id, ok := number(idOrPath); ok {
		group, err = f.store.Namespace(ctx, tidelock.NamespaceID(id))
	} else {
		group, err = f.store.NamespaceByPath(ctx, strings.Trim(idOrPath, "/"))
	}
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
		return tidelock.Namespace{}, errNoGroup()
	case err != nil:
		return tidelock.Namespace{}, fmt.Errorf("read group %q: %w", idOrPath, err)
	}
	return group, f.Allow(ctx, p, a, OnGroup(group))
}

func (f *Forge) namespace(ctx context.Context, p Principal, id tidelock.NamespaceID, a Action) (tidelock.Namespace, error) {
	return f.group(ctx, p, fmt.Sprint(int64(id)), a)
}

// Groups lists what the caller may see.
func (f *Forge) Groups(ctx context.Context, p Principal, filter tidelock.NamespaceFilter, page tidelock.Page) ([]tidelock.Namespace, int, error) {
	if err := f.Allow(ctx, p, Browse, OnForge); err != nil {
		return nil, 0, err
	}
	filter.VisibleTo = p.Viewer()
	return f.store.Namespaces(ctx, filter, page)
}

// GroupEdit changes a group; nil fields stay.
type GroupEdit struct {
	Name, Path, Description *string
	Visibility              *tidelock.Visibility
}

// EditGroup changes a group. A new path moves everything below; projects keep
// their old paths as redirects.
func (f *Forge) EditGroup(ctx context.Context, p Principal, idOrPath string, e GroupEdit) (tidelock.Namespace, error) {
	group, err := f.group(ctx, p, idOrPath, EditGroup)
	if err != nil {
		return tidelock.Namespace{}, err
	}
	if group.Kind != tidelock.GroupNamespace {
		return tidelock.Namespace{}, errNoGroup()
	}
	set(&group.Name, e.Name)
	set(&group.Path, e.Path)
	set(&group.Description, e.Description)
	set(&group.Visibility, e.Visibility)
	if err := checkNamespace(group); err != nil {
		return tidelock.Namespace{}, err
	}
	if e.Visibility != nil {
		if err := f.checkGroupVisibility(ctx, group); err != nil {
			return tidelock.Namespace{}, err
		}
	}
	group, err = f.store.UpdateNamespace(ctx, group)
	if err != nil {
		return tidelock.Namespace{}, err
	}
	f.accessChangedBelow(ctx, group.ID)
	return group, nil
}

// checkGroupVisibility keeps the order "nothing is more visible than what
// holds it" in both directions.
func (f *Forge) checkGroupVisibility(ctx context.Context, group tidelock.Namespace) error {
	if group.Parent != 0 {
		parent, err := f.store.Namespace(ctx, group.Parent)
		if err != nil {
			return fmt.Errorf("read the parent of group %q: %w", group.FullPath, err)
		}
		if group.Visibility > parent.Visibility {
			return tidelock.FieldErrorf(tidelock.Invalid, "visibility_level", "%s is not allowed since the parent group has a %s visibility", group.Visibility, parent.Visibility)
		}
	}
	groups, _, err := f.store.Namespaces(ctx, tidelock.NamespaceFilter{Descendants: group.ID}, tidelock.Page{})
	if err != nil {
		return fmt.Errorf("list groups below %q: %w", group.FullPath, err)
	}
	for _, g := range groups {
		if g.Visibility > group.Visibility {
			return tidelock.FieldErrorf(tidelock.Invalid, "visibility_level", "%s is not allowed since there are sub-groups with higher visibility", group.Visibility)
		}
	}
	projects, _, err := f.store.Projects(ctx, tidelock.ProjectFilter{Below: group.ID}, tidelock.Page{})
	if err != nil {
		return fmt.Errorf("list projects below %q: %w", group.FullPath, err)
	}
	for _, p := range projects {
		if p.Visibility > group.Visibility {
			return tidelock.FieldErrorf(tidelock.Invalid, "visibility_level", "%s is not allowed since this group contains projects with higher visibility", group.Visibility)
		}
	}
	return nil
}

// DeleteGroup removes a group and everything below it.
func (f *Forge) DeleteGroup(ctx context.Context, p Principal, idOrPath string) error {
	group, err := f.group(ctx, p, idOrPath, DeleteGroup)
	if err != nil {
		return err
	}
	if group.Kind != tidelock.GroupNamespace {
		return errNoGroup()
	}
	projects, _, err := f.store.Projects(ctx, tidelock.ProjectFilter{Below: group.ID}, tidelock.Page{})
	if err != nil {
		return fmt.Errorf("list projects below %q: %w", group.FullPath, err)
	}
	for _, project := range projects {
		if err := f.deleteProject(ctx, project); err != nil {
			return err
		}
	}
	below, _, err := f.store.Namespaces(ctx, tidelock.NamespaceFilter{Descendants: group.ID}, tidelock.Page{})
	if err != nil {
		return fmt.Errorf("list groups below %q: %w", group.FullPath, err)
	}
	for _, g := range deepestFirst(below) {
		if err := f.store.DeleteNamespace(ctx, g.ID); err != nil {
			return fmt.Errorf("delete group %q: %w", g.FullPath, err)
		}
	}
	return f.store.DeleteNamespace(ctx, group.ID)
}

// SetMember adds a member or changes its level. Nobody gives more than they
// have themselves.
func (f *Forge) SetMember(ctx context.Context, p Principal, t Target, user tidelock.UserID, level tidelock.AccessLevel, expires time.Time) (tidelock.Member, error) {
	if err := f.Allow(ctx, p, t.pick(ManageMembers, ManageGroupMembers), t); err != nil {
		return tidelock.Member{}, err
	}
	if !level.Valid() {
		return tidelock.Member{}, tidelock.FieldErrorf(tidelock.Invalid, "access_level", "is not included in the list")
	}
	if err := f.mayGive(ctx, p, t, level); err != nil {
		return tidelock.Member{}, err
	}
	if err := f.mayTake(ctx, p, t, user); err != nil {
		return tidelock.Member{}, err
	}
	if _, err := f.store.User(ctx, user); err != nil {
		if tidelock.KindOf(err) == tidelock.NotFound {
			return tidelock.Member{}, tidelock.Errorf(tidelock.NotFound, "User Not Found")
		}
		return tidelock.Member{}, fmt.Errorf("read user %d: %w", user, err)
	}
	member := tidelock.Member{Holder: t.holder(), User: user, Level: level, ExpiresAt: expires, CreatedAt: f.now().UTC()}
	if err := f.store.SetMember(ctx, member); err != nil {
		return tidelock.Member{}, err
	}
	return member, nil
}

// RemoveMember ends a membership.
func (f *Forge) RemoveMember(ctx context.Context, p Principal, t Target, user tidelock.UserID) error {
	if err := f.Allow(ctx, p, t.pick(ManageMembers, ManageGroupMembers), t); err != nil {
		return err
	}
	if err := f.mayTake(ctx, p, t, user); err != nil {
		return err
	}
	return f.store.RemoveMember(ctx, t.holder(), user)
}

// Members lists the members of exactly the target.
func (f *Forge) Members(ctx context.Context, p Principal, t Target, page tidelock.Page) ([]tidelock.Member, int, error) {
	if err := f.Allow(ctx, p, t.pick(ReadMembers, ReadGroupMembers), t); err != nil {
		return nil, 0, err
	}
	return f.store.Members(ctx, t.holder(), page)
}

// mayGive refuses to hand out a level above the caller's own.
func (f *Forge) mayGive(ctx context.Context, p Principal, t Target, level tidelock.AccessLevel) error {
	if p.admin() {
		return nil
	}
	own, err := f.level(ctx, p, t)
	if err != nil {
		return err
	}
	if level > own {
		return tidelock.Errorf(tidelock.Denied, "you have the role %s in %s and cannot give or take the role %s", own, t, level)
	}
	return nil
}

// mayTake refuses to change or end a membership above the caller's own level.
func (f *Forge) mayTake(ctx context.Context, p Principal, t Target, user tidelock.UserID) error {
	level, err := f.store.AccessLevel(ctx, user, t.holder(), f.now())
	if err != nil {
		return fmt.Errorf("read the access level of user %d: %w", user, err)
	}
	return f.mayGive(ctx, p, t, level)
}

func (t Target) pick(project, group Action) Action {
	if t.Project != nil {
		return project
	}
	return group
}
