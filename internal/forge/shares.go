package forge

import (
	"context"
	"fmt"
	"time"

	"tidelock.dev"
)

// shareStore is what the rules remember of projects shared with groups.
type shareStore interface {
	// CreateShare is a Conflict for a project and group that are shared.
	CreateShare(context.Context, tidelock.Share) (tidelock.Share, error)
	DeleteShare(context.Context, tidelock.ProjectID, tidelock.NamespaceID) error
	// Shares lists those of some projects, in order of project and group.
	Shares(context.Context, ...tidelock.ProjectID) ([]tidelock.Share, error)
}

// maxShares of one project are all read to show it.
const maxShares = 200

// ShareProject makes the members of a group, which the caller must see, members
// of a project up to a level. Nobody gives more than they have themselves.
func (f *Forge) ShareProject(ctx context.Context, p Principal, project tidelock.Project, group tidelock.NamespaceID, level tidelock.AccessLevel, expires time.Time) (tidelock.Share, error) {
	if err := f.Allow(ctx, p, ManageMembers, OnProject(project)); err != nil {
		return tidelock.Share{}, err
	}
	with, err := f.namespace(ctx, p, group, ReadGroup)
	if err != nil {
		return tidelock.Share{}, err
	}
	now := f.now().UTC()
	switch {
	case with.Kind != tidelock.GroupNamespace:
		return tidelock.Share{}, errNoGroup()
	case !level.Valid():
		return tidelock.Share{}, tidelock.FieldErrorf(tidelock.Invalid, "group_access", "is not included in the list")
	case !expires.IsZero() && !expires.After(now):
		return tidelock.Share{}, tidelock.FieldErrorf(tidelock.Invalid, "expires_at", "cannot be a date in the past")
	case isBelow(project.FullPath, with.FullPath):
		return tidelock.Share{}, tidelock.Errorf(tidelock.Invalid, "Project cannot be shared with the group it is in or one of its ancestors.")
	}
	if err := f.mayGive(ctx, p, OnProject(project), level); err != nil {
		return tidelock.Share{}, err
	}
	share := tidelock.Share{Project: project.ID, Group: group, Level: level, ExpiresAt: expires, CreatedAt: now}
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		if err := f.store.LockProject(ctx, project.ID); err != nil {
			return change{}, err
		}
		shares, err := f.store.Shares(ctx, project.ID)
		if err != nil {
			return change{}, fmt.Errorf("list the shares of project %d: %w", project.ID, err)
		}
		if len(shares) >= maxShares {
			return change{}, tidelock.Errorf(tidelock.Invalid, "Project is shared with %d groups, which is the most there can be.", len(shares))
		}
		share, err = f.store.CreateShare(ctx, share)
		return change{act: "project shared", on: OnProject(project), subject: groupSubject(with), detail: levelDetail(level, expires)}, err
	})
	return share, err
}

// UnshareProject ends a share. A group that gave more than the caller has
// stays.
func (f *Forge) UnshareProject(ctx context.Context, p Principal, project tidelock.Project, group tidelock.NamespaceID) error {
	if err := f.Allow(ctx, p, ManageMembers, OnProject(project)); err != nil {
		return err
	}
	shares, err := f.store.Shares(ctx, project.ID)
	if err != nil {
		return fmt.Errorf("list the shares of project %d: %w", project.ID, err)
	}
	for _, share := range shares {
		if share.Group != group {
			continue
		}
		if err := f.mayGive(ctx, p, OnProject(project), share.Level); err != nil {
			return err
		}
		with, err := f.store.Namespace(ctx, group)
		if err != nil {
			return fmt.Errorf("read group %d: %w", group, err)
		}
		return f.audited(ctx, p, func(ctx context.Context) (change, error) {
			err := f.store.DeleteShare(ctx, project.ID, group)
			return change{act: "share ended", on: OnProject(project), subject: groupSubject(with)}, err
		})
	}
	return errNoShare()
}

func errNoShare() error { return tidelock.Errorf(tidelock.NotFound, "Group Link Not Found") }

// A SharedGroup is a share and its group.
type SharedGroup struct {
	tidelock.Share
	With tidelock.Namespace
}

// SharedGroups finds the groups that projects are shared with, as far as the
// caller may see them, by project: whoever sees a project need not learn of
// every group.
func (f *Forge) SharedGroups(ctx context.Context, p Principal, projects ...tidelock.ProjectID) (map[tidelock.ProjectID][]SharedGroup, error) {
	shares, err := f.store.Shares(ctx, projects...)
	if err != nil {
		return nil, fmt.Errorf("list the shares of projects: %w", err)
	}
	seen := map[tidelock.ProjectID][]SharedGroup{}
	groups := map[tidelock.NamespaceID]*tidelock.Namespace{} // each is read once; nil for those not to be seen
	for _, share := range shares {
		group, known := groups[share.Group]
		if !known {
			with, err := f.namespace(ctx, p, share.Group, ReadGroup)
			if err != nil && !unseen(err) {
				return nil, err
			}
			if err == nil {
				group = &with
			}
			groups[share.Group] = group
		}
		if group != nil {
			seen[share.Project] = append(seen[share.Project], SharedGroup{share, *group})
		}
	}
	return seen, nil
}

func groupSubject(n tidelock.Namespace) string { return fmt.Sprintf("group %d %q", n.ID, n.FullPath) }

func levelDetail(level tidelock.AccessLevel, expires time.Time) string {
	return fmt.Sprintf("role %s, expires %s", level, expiry(expires))
}
