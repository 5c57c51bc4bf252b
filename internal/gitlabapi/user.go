package gitlabapi

import (
	"net/http"
	"strconv"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func (a *API) showSelf(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.ReadSelf, forge.OnForge); err != nil {
		return err
	}
	return ok(w, a.userSelf(*r.by.User))
}

func (a *API) listUsers(w http.ResponseWriter, r *request) error {
	filter := tidelock.UserFilter{
		Username: r.text("username"),
		Search:   r.text("search"),
		NoBots:   r.flag("exclude_internal") || r.flag("humans") || r.flag("without_project_bots"),
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	users, total, err := a.forge.Users(r.ctx(), r.by, filter, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(users, func(u tidelock.User) any { return a.userFor(r, u) }), total)
}

func (a *API) showUser(w http.ResponseWriter, r *request) error {
	n, err := id[tidelock.UserID](r, "user_id")
	if err != nil {
		return err
	}
	user, err := a.forge.User(r.ctx(), r.by, n)
	if err != nil {
		return missing("User", err)
	}
	return ok(w, a.userFor(r, user))
}

// createUser makes a user for an administrator. Passwords are taken and
// ignored: users sign in with tokens.
func (a *API) createUser(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.Administer, forge.OnForge); err != nil {
		return err
	}
	r.need("email", "name", "username")
	user := forge.NewUser{
		Username: r.text("username"), Name: r.text("name"), Email: r.text("email"), Admin: r.flag("admin"),
	}
	if err := r.err(); err != nil {
		return err
	}
	made, err := a.forge.CreateUser(r.ctx(), r.by, user)
	if err != nil {
		return err
	}
	return created(w, a.userSelf(made))
}

func (a *API) listUserProjects(w http.ResponseWriter, r *request) error {
	user, err := a.userByIDOrName(r)
	if err != nil {
		return err
	}
	return a.writeProjects(w, r, tidelock.ProjectFilter{Owner: user.ID})
}

func (a *API) userByIDOrName(r *request) (tidelock.User, error) {
	name := r.arg("user_id")
	if n, err := strconv.ParseInt(name, 10, 64); err == nil {
		user, err := a.forge.User(r.ctx(), r.by, tidelock.UserID(n))
		return user, missing("User", err)
	}
	return a.userByName(r, name)
}

func (a *API) userByName(r *request, name string) (tidelock.User, error) {
	users, _, err := a.forge.Users(r.ctx(), r.by, tidelock.UserFilter{Username: name}, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil {
		return tidelock.User{}, err
	}
	if len(users) == 0 {
		return tidelock.User{}, errMissing("User")
	}
	return users[0], nil
}

// editUser changes a user for an administrator.
func (a *API) editUser(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.Administer, forge.OnForge); err != nil {
		return err
	}
	n, err := id[tidelock.UserID](r, "user_id")
	if err != nil {
		return err
	}
	p := &r.params
	edit := forge.UserEdit{Username: given(p, "username", p.text), Name: given(p, "name", p.text), Email: given(p, "email", p.text), Admin: given(p, "admin", p.flag)}
	if err := r.err(); err != nil {
		return err
	}
	user, err := a.forge.EditUser(r.ctx(), r.by, n, edit)
	if err != nil {
		return missing("User", err)
	}
	return ok(w, a.userSelf(user))
}

// setBlocked blocks or unblocks a user, and answers true as GitLab does.
func (a *API) setBlocked(blocked bool) handler {
	return func(w http.ResponseWriter, r *request) error {
		if err := a.forge.Allow(r.ctx(), r.by, forge.Administer, forge.OnForge); err != nil {
			return err
		}
		n, err := id[tidelock.UserID](r, "user_id")
		if err != nil {
			return err
		}
		if _, err := a.forge.EditUser(r.ctx(), r.by, n, forge.UserEdit{Blocked: &blocked}); err != nil {
			return missing("User", err)
		}
		return created(w, true)
	}
}
