package forge

import (
	"context"
	"fmt"
	"slices"
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
	return f.createUser(ctx, p, n)
}

func (f *Forge) createUser(ctx context.Context, p Principal, n NewUser) (tidelock.User, error) {
	if n.Name == "" {
		n.Name = n.Username
	}
	if err := checkPath("username", n.Username, true); err != nil {
		return tidelock.User{}, err
	}
	user := tidelock.User{Username: n.Username, Name: n.Name, Email: n.Email, Admin: n.Admin, CreatedAt: f.now().UTC()}
	if err := checkUser(user); err != nil {
		return tidelock.User{}, err
	}
	var made tidelock.User
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		made, err = f.store.CreateUser(ctx, user)
		return change{act: "user created", subject: userSubject(made), detail: userDetail(made)}, err
	})
	if err != nil {
		return tidelock.User{}, err
	}
	return made, nil
}

func checkUser(u tidelock.User) error {
	if err := checkName("name", u.Name); err != nil {
		return err
	}
	if u.Email == "" {
		return nil
	}
	return checkName("email", u.Email)
}

func userSubject(u tidelock.User) string { return fmt.Sprintf("user %d %q", u.ID, u.Username) }

func userDetail(u tidelock.User) string {
	if u.Admin {
		return "administrator"
	}
	return ""
}

// userStore is what the rules remember of changes to users.
type userStore interface {
	// ChangeUser has a function change the name, the email, and whether the
	// user is an administrator or blocked, and writes that unless the function
	// returns an error. Nobody else changes the user meanwhile.
	ChangeUser(context.Context, tidelock.UserID, func(*tidelock.User) error) (tidelock.User, error)
	// Administrators lists those who can act. Until the transaction it is part
	// of ends, others that ask wait, and so does who would change one of them.
	Administrators(context.Context) ([]tidelock.UserID, error)
	// HasOwner reports whether a group has an owner who can act, by itself or
	// by a group above it: no bot, and nobody who is blocked or whose
	// membership has ended. Until the transaction it is part of ends, others
	// that ask of the same group wait.
	HasOwner(context.Context, tidelock.NamespaceID, time.Time) (bool, error)
}

// UserEdit changes a user; nil fields stay.
type UserEdit struct {
	Name, Email    *string
	Admin, Blocked *bool
	// Username may be said again, but not changed: it is part of the addresses
	// of the user's projects.
	Username *string
}

// EditUser changes a user, for an administrator. What a blocked user holds,
// such as tokens and keys, is refused from then on and good again once the
// user is unblocked. Administrators can neither block nor demote themselves,
// so that one is always left.
func (f *Forge) EditUser(ctx context.Context, p Principal, id tidelock.UserID, e UserEdit) (tidelock.User, error) {
	if err := f.Allow(ctx, p, Administer, OnForge); err != nil {
		return tidelock.User{}, err
	}
	self := p.User.ID == id
	switch {
	case self && e.Blocked != nil && *e.Blocked:
		return tidelock.User{}, tidelock.Errorf(tidelock.Denied, "you cannot block yourself")
	case self && e.Admin != nil && !*e.Admin:
		return tidelock.User{}, tidelock.Errorf(tidelock.Denied, "you cannot stop being an administrator yourself; ask another one")
	}
	var user tidelock.User
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		admins, err := f.store.Administrators(ctx)
		if err != nil {
			return change{}, err
		}
		if !slices.Contains(admins, p.User.ID) { // another one was faster
			return change{}, tidelock.Errorf(tidelock.Denied, "you are no administrator any more")
		}
		var before tidelock.User
		user, err = f.store.ChangeUser(ctx, id, func(u *tidelock.User) error {
			before = *u
			if e.Username != nil && !strings.EqualFold(*e.Username, u.Username) {
				return tidelock.FieldErrorf(tidelock.Invalid, "username", "cannot be changed")
			}
			set(&u.Name, e.Name)
			set(&u.Email, e.Email)
			set(&u.Admin, e.Admin)
			set(&u.Blocked, e.Blocked)
			if u.Bot && (u.Admin || e.Name != nil || e.Email != nil) {
				return tidelock.Errorf(tidelock.Invalid, "a bot can only be blocked and unblocked")
			}
			return checkUser(*u)
		})
		return change{act: userAct(before, user), subject: userSubject(user), detail: differences(
			"name", before.Name, user.Name, "email", before.Email, user.Email,
			"administrator", fmt.Sprint(before.Admin), fmt.Sprint(user.Admin),
		)}, err
	})
	if err != nil {
		return tidelock.User{}, err
	}
	return user, nil
}

func userAct(before, after tidelock.User) string {
	switch {
	case after.Blocked && !before.Blocked:
		return "user blocked"
	case before.Blocked && !after.Blocked:
		return "user unblocked"
	}
	return "user edited"
}

// Bootstrap makes sure that the administrator exists and returns it.
func (f *Forge) Bootstrap(ctx context.Context, username string) (tidelock.User, error) {
	user, err := f.store.UserByName(ctx, username)
	if tidelock.KindOf(err) != tidelock.NotFound {
		return user, err
	}
	return f.createUser(ctx, Principal{}, NewUser{Username: username, Name: "Administrator", Admin: true})
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
	var made tidelock.Namespace
	err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		made, err = f.store.CreateNamespace(ctx, group, p.User.ID)
		return change{act: "group created", on: OnGroup(made), subject: groupSubject(made), detail: made.Visibility.String()}, err
	})
	if err != nil {
		return tidelock.Namespace{}, err
	}
	return made, nil
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
	before := group
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
	var after tidelock.Namespace
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		after, err = f.store.UpdateNamespace(ctx, group)
		return change{act: "group edited", on: OnGroup(after), subject: groupSubject(after), detail: differences(
			"path", before.FullPath, after.FullPath, "name", before.Name, after.Name,
			"description", "", changedOnly(before.Description, after.Description),
			"visibility", before.Visibility.String(), after.Visibility.String(),
		)}, err
	})
	if err != nil {
		return tidelock.Namespace{}, err
	}
	f.accessChangedBelow(ctx, after.ID)
	return after, nil
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
		if err := f.deleteProject(ctx, p, project); err != nil {
			return err
		}
	}
	below, _, err := f.store.Namespaces(ctx, tidelock.NamespaceFilter{Descendants: group.ID}, tidelock.Page{})
	if err != nil {
		return fmt.Errorf("list groups below %q: %w", group.FullPath, err)
	}
	for _, g := range append(deepestFirst(below), group) {
		err := f.audited(ctx, p, func(ctx context.Context) (change, error) {
			return change{act: "group deleted", on: OnGroup(g), subject: groupSubject(g)}, f.store.DeleteNamespace(ctx, g.ID)
		})
		if err != nil {
			return fmt.Errorf("delete group %q: %w", g.FullPath, err)
		}
	}
	return nil
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
	who, err := f.store.User(ctx, user)
	if err != nil {
		if tidelock.KindOf(err) == tidelock.NotFound {
			return tidelock.Member{}, tidelock.Errorf(tidelock.NotFound, "User Not Found")
		}
		return tidelock.Member{}, fmt.Errorf("read user %d: %w", user, err)
	}
	member := tidelock.Member{Holder: t.holder(), User: user, Level: level, ExpiresAt: expires, CreatedAt: f.now().UTC()}
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		c := change{act: "member set", on: t, subject: userSubject(who), detail: levelDetail(level, expires)}
		return c, f.keepingOwner(ctx, t, func() error { return f.store.SetMember(ctx, member) })
	})
	if err != nil {
		return tidelock.Member{}, err
	}
	return member, nil
}

// keepingOwner does, within a transaction, what must not leave a group that has
// an owner who can act without one.
func (f *Forge) keepingOwner(ctx context.Context, t Target, act func() error) error {
	if t.Group == nil || t.Group.Kind != tidelock.GroupNamespace {
		return act()
	}
	before, err := f.store.HasOwner(ctx, t.Group.ID, f.now())
	if err != nil {
		return fmt.Errorf("look for an owner of group %d: %w", t.Group.ID, err)
	}
	if err := act(); err != nil || !before {
		return err
	}
	after, err := f.store.HasOwner(ctx, t.Group.ID, f.now())
	if err != nil {
		return fmt.Errorf("look for an owner of group %d: %w", t.Group.ID, err)
	}
	if !after {
		return tidelock.Errorf(tidelock.Denied, "%s needs an owner: make somebody else one first", t)
	}
	return nil
}

// RemoveMember ends a membership.
func (f *Forge) RemoveMember(ctx context.Context, p Principal, t Target, user tidelock.UserID) error {
	if err := f.Allow(ctx, p, t.pick(ManageMembers, ManageGroupMembers), t); err != nil {
		return err
	}
	if err := f.mayTake(ctx, p, t, user); err != nil {
		return err
	}
	who, err := f.store.User(ctx, user)
	if err != nil {
		return err
	}
	return f.audited(ctx, p, func(ctx context.Context) (change, error) {
		c := change{act: "member removed", on: t, subject: userSubject(who)}
		return c, f.keepingOwner(ctx, t, func() error { return f.store.RemoveMember(ctx, t.holder(), user) })
	})
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
