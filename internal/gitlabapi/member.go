package gitlabapi

import (
	"context"
	"net/http"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

type memberShape struct {
	userShape
	AccessLevel     tidelock.AccessLevel `json:"access_level"`
	CreatedAt       stamp                `json:"created_at"`
	ExpiresAt       day                  `json:"expires_at"`
	MembershipState string               `json:"membership_state"`
}

func (a *API) memberShape(r *request, m tidelock.Member) (memberShape, error) {
	user, err := a.forge.UserByID(r.ctx(), m.User)
	if err != nil {
		return memberShape{}, err
	}
	return memberShape{
		userShape: a.userShape(user), AccessLevel: m.Level,
		CreatedAt: stamp(m.CreatedAt), ExpiresAt: day(m.ExpiresAt), MembershipState: "active",
	}, nil
}

func (a *API) writeMember(w http.ResponseWriter, r *request, status int, m tidelock.Member) error {
	shape, err := a.memberShape(r, m)
	if err != nil {
		return err
	}
	return writeJSON(w, status, shape)
}

func (a *API) writeMembers(w http.ResponseWriter, r *request, page tidelock.Page, members []tidelock.Member, total int) error {
	shapes := make([]memberShape, len(members))
	for i, m := range members {
		shape, err := a.memberShape(r, m)
		if err != nil {
			return err
		}
		shapes[i] = shape
	}
	return writePage(a, w, r, page, shapes, total)
}

func (a *API) listMembers(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, readMembers)
		if err != nil {
			return err
		}
		page := r.page()
		if err := r.err(); err != nil {
			return err
		}
		members, total, err := a.forge.Members(r.ctx(), r.by, target, page)
		if err != nil {
			return err
		}
		return a.writeMembers(w, r, page, members, total)
	}
}

func (a *API) listAllMembers(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, readMembers)
		if err != nil {
			return err
		}
		page := r.page()
		if err := r.err(); err != nil {
			return err
		}
		members, err := a.forge.AllMembers(r.ctx(), r.by, target)
		if err != nil {
			return err
		}
		return a.writeMembers(w, r, page, cut(page, members), len(members))
	}
}

// A memberReader finds one member of a target.
type memberReader func(context.Context, forge.Principal, forge.Target, tidelock.UserID) (tidelock.Member, error)

func (a *API) showMember(in place, read memberReader) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, readMembers)
		if err != nil {
			return err
		}
		user, err := id[tidelock.UserID](r, "user_id")
		if err != nil {
			return err
		}
		member, err := read(r.ctx(), r.by, target, user)
		if err != nil {
			return err
		}
		return a.writeMember(w, r, http.StatusOK, member)
	}
}

func (a *API) addMember(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, manageMembers)
		if err != nil {
			return err
		}
		r.need("access_level")
		r.needOneOf("user_id", "username")
		user, level, expires := tidelock.UserID(r.number("user_id")), r.level("access_level"), r.date("expires_at")
		name := r.text("username")
		if err := r.err(); err != nil {
			return err
		}
		if user == 0 {
			found, err := a.userByName(r, name)
			if err != nil {
				return err
			}
			user = found.ID
		}
		member, err := a.forge.AddMember(r.ctx(), r.by, target, user, level, expires)
		if err != nil {
			return err
		}
		return a.writeMember(w, r, http.StatusCreated, member)
	}
}

func (a *API) editMember(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, manageMembers)
		if err != nil {
			return err
		}
		user, err := id[tidelock.UserID](r, "user_id")
		if err != nil {
			return err
		}
		r.need("access_level")
		level := r.level("access_level")
		p := &r.params
		expires := given(p, "expires_at", p.date)
		if err := r.err(); err != nil {
			return err
		}
		member, err := a.forge.EditMember(r.ctx(), r.by, target, user, level, expires)
		if err != nil {
			return err
		}
		return a.writeMember(w, r, http.StatusOK, member)
	}
}

func (a *API) removeMember(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, manageMembers)
		if err != nil {
			return err
		}
		user, err := id[tidelock.UserID](r, "user_id")
		if err != nil {
			return err
		}
		if err := a.forge.RemoveMember(r.ctx(), r.by, target, user); err != nil {
			return missing("Member", err)
		}
		return gone(w)
	}
}
