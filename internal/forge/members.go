package forge

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"tidelock.dev"
)

// Level is the access level that a principal has in a target as a member of it
// or of a group above it. Seeing a target is another question: ask Allow.
func (f *Forge) Level(ctx context.Context, p Principal, t Target) (tidelock.AccessLevel, error) {
	return f.level(ctx, p, t)
}

// NamespaceByID reads a namespace, for the server's own use: whoever may see a
// project may see where it is.
func (f *Forge) NamespaceByID(ctx context.Context, id tidelock.NamespaceID) (tidelock.Namespace, error) {
	return f.store.Namespace(ctx, id)
}

// GroupFor finds a group or user namespace by id or full path for one action
// on it.
func (f *Forge) GroupFor(ctx context.Context, p Principal, idOrPath string, a Action) (tidelock.Namespace, error) {
	return f.group(ctx, p, idOrPath, a)
}

// UserByID reads a user, for the server's own use: whoever may see a membership
// may see whose it is.
func (f *Forge) UserByID(ctx context.Context, id tidelock.UserID) (tidelock.User, error) {
	return f.store.User(ctx, id)
}

// AddMember is SetMember for a user who is not a member of exactly the target
// yet; it is a Conflict when they are.
func (f *Forge) AddMember(ctx context.Context, p Principal, t Target, user tidelock.UserID, level tidelock.AccessLevel, expires time.Time) (tidelock.Member, error) {
	switch _, err := f.Member(ctx, p, t, user); {
	case err == nil:
		return tidelock.Member{}, tidelock.Errorf(tidelock.Conflict, "Member already exists")
	case tidelock.KindOf(err) != tidelock.NotFound:
		return tidelock.Member{}, err
	}
	return f.SetMember(ctx, p, t, user, level, expires)
}

// EditMember is SetMember for a user who is a member of exactly the target; a
// nil expiry stays.
func (f *Forge) EditMember(ctx context.Context, p Principal, t Target, user tidelock.UserID, level tidelock.AccessLevel, expires *time.Time) (tidelock.Member, error) {
	before, err := f.Member(ctx, p, t, user)
	if err != nil {
		return tidelock.Member{}, err
	}
	set(&before.ExpiresAt, expires)
	member, err := f.SetMember(ctx, p, t, user, level, before.ExpiresAt)
	member.CreatedAt = before.CreatedAt
	return member, err
}

// AllMembers lists the members of the target, of the groups above it, and of
// those it is shared with, by user id: each user once, with the highest level
// and where it comes from.
// Nothing is more visible than what holds it, so whoever may see the target's
// members may see those above.
func (f *Forge) AllMembers(ctx context.Context, p Principal, t Target) ([]tidelock.Member, error) {
	if err := f.Allow(ctx, p, t.pick(ReadMembers, ReadGroupMembers), t); err != nil {
		return nil, err
	}
	now := f.now()
	highest := map[tidelock.UserID]tidelock.Member{}
	add := func(m tidelock.Member) {
		expired := !m.ExpiresAt.IsZero() && !now.Before(m.ExpiresAt)
		if known, ok := highest[m.User]; !expired && (!ok || m.Level > known.Level) {
			highest[m.User] = m
		}
	}
	addAll := func(h tidelock.Holder, most tidelock.AccessLevel) error {
		members, _, err := f.store.Members(ctx, h, tidelock.Page{})
		if err != nil {
			return fmt.Errorf("list members: %w", err)
		}
		for _, m := range members {
			m.Level = min(m.Level, most)
			add(m)
		}
		return nil
	}
	addAbove := func(next tidelock.NamespaceID, most tidelock.AccessLevel) error {
		for next != 0 {
			namespace, err := f.store.Namespace(ctx, next)
			if err != nil {
				return fmt.Errorf("read namespace %d: %w", next, err)
			}
			if namespace.Kind == tidelock.UserNamespace {
				add(tidelock.Member{
					Holder: tidelock.Holder{Namespace: namespace.ID}, User: namespace.Owner,
					Level: tidelock.Owner, CreatedAt: namespace.CreatedAt,
				})
			}
			if err := addAll(tidelock.Holder{Namespace: namespace.ID}, most); err != nil {
				return err
			}
			next = namespace.Parent
		}
		return nil
	}

	if t.Group != nil {
		if err := addAbove(t.Group.ID, tidelock.Owner); err != nil {
			return nil, err
		}
	} else {
		if err := addAll(t.holder(), tidelock.Owner); err != nil {
			return nil, err
		}
		if err := addAbove(t.Project.Namespace, tidelock.Owner); err != nil {
			return nil, err
		}
		shares, err := f.store.Shares(ctx, t.Project.ID)
		if err != nil {
			return nil, fmt.Errorf("list the shares of project %d: %w", t.Project.ID, err)
		}
		for _, share := range shares {
			if !share.ExpiresAt.IsZero() && !now.Before(share.ExpiresAt) {
				continue
			}
			seen, err := f.seesShare(ctx, p, t, share)
			if err != nil {
				return nil, err
			}
			if !seen {
				continue
			}
			if err := addAbove(share.Group, share.Level); err != nil {
				return nil, err
			}
		}
	}
	return slices.SortedFunc(maps.Values(highest), func(a, b tidelock.Member) int {
		return cmp.Compare(a.User, b.User)
	}), nil
}

// seesShare reports whether a principal may learn who the members of the group
// are: those who may see the group, and those who answer for the project's
// members.
func (f *Forge) seesShare(ctx context.Context, p Principal, t Target, share tidelock.Share) (bool, error) {
	level, err := f.level(ctx, p, t)
	if err != nil || p.admin() || level >= tidelock.Maintainer {
		return err == nil, err
	}
	_, err = f.namespace(ctx, p, share.Group, ReadGroup)
	if unseen(err) {
		return false, nil
	}
	return err == nil, err
}

// Member reads the membership of a user in exactly the target.
func (f *Forge) Member(ctx context.Context, p Principal, t Target, user tidelock.UserID) (tidelock.Member, error) {
	members, _, err := f.Members(ctx, p, t, tidelock.Page{})
	if err != nil {
		return tidelock.Member{}, err
	}
	return memberOf(members, user)
}

// EffectiveMember reads the membership that gives a user its level in the
// target, be it the target's or one of a group above it.
func (f *Forge) EffectiveMember(ctx context.Context, p Principal, t Target, user tidelock.UserID) (tidelock.Member, error) {
	members, err := f.AllMembers(ctx, p, t)
	if err != nil {
		return tidelock.Member{}, err
	}
	return memberOf(members, user)
}

func memberOf(members []tidelock.Member, user tidelock.UserID) (tidelock.Member, error) {
	i := slices.IndexFunc(members, func(m tidelock.Member) bool { return m.User == user })
	if i < 0 {
		return tidelock.Member{}, tidelock.Errorf(tidelock.NotFound, "Member Not Found")
	}
	return members[i], nil
}
