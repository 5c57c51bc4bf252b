package forge

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"tidelock.dev"
)

// protectionStore is what the rules remember of protected refs, beside what
// Store has.
type protectionStore interface {
	// UpdateProtectedBranch writes everything but the pattern, by project and
	// pattern.
	UpdateProtectedBranch(context.Context, tidelock.ProtectedBranch) (tidelock.ProtectedBranch, error)

	ProtectedTags(context.Context, tidelock.ProjectID) ([]tidelock.ProtectedTag, error)
	ProtectTag(context.Context, tidelock.ProtectedTag) (tidelock.ProtectedTag, error)
	UnprotectTag(ctx context.Context, project tidelock.ProjectID, pattern string) error
}

// Reasons why a protected ref stays, which hold for git; by API maintainers
// may delete it, as with GitLab.
const (
	keepsBranch = "protected branches cannot be deleted by git"
	keepsTag    = "protected tags cannot be deleted by git"
)

// protectedTagsFor reads the protected tags of a project if one of the
// commands is about a tag.
func (f *Forge) protectedTagsFor(ctx context.Context, project tidelock.Project, commands []RefCommand) ([]tidelock.ProtectedTag, error) {
	for _, c := range commands {
		if _, ok := c.Ref.Tag(); ok {
			tags, err := f.store.ProtectedTags(ctx, project.ID)
			if err != nil {
				return nil, fmt.Errorf("list protected tags of project %d: %w", project.ID, err)
			}
			return tags, nil
		}
	}
	return nil, nil
}

// refuseTag is refuse for what protected tags say.
func refuseTag(c RefCommand, protected []tidelock.ProtectedTag, level tidelock.AccessLevel) string {
	name, ok := c.Ref.Tag()
	if !ok {
		return ""
	}
	matched := false
	for _, t := range protected {
		if !t.Matches(name) {
			continue
		}
		matched = true
		if c.Old == "" && c.New != "" && t.CreateLevel != tidelock.NoAccess && level >= t.CreateLevel {
			return ""
		}
	}
	switch {
	case !matched:
		return ""
	case c.New == "":
		return keepsTag
	case c.Old != "":
		return "protected tags cannot be moved"
	}
	return "you may not create this protected tag"
}

// ProtectedTags lists a project's protected tags.
func (f *Forge) ProtectedTags(ctx context.Context, p Principal, idOrPath string) ([]tidelock.ProtectedTag, error) {
	project, err := f.ProjectFor(ctx, p, idOrPath, ReadTagRules)
	if err != nil {
		return nil, err
	}
	return f.store.ProtectedTags(ctx, project.ID)
}

// TagIsProtected tells which of a project's tags are protected, to those who
// may read the code.
func (f *Forge) TagIsProtected(ctx context.Context, p Principal, project tidelock.Project) (func(tag string) bool, error) {
	if err := f.Allow(ctx, p, ReadCode, OnProject(project)); err != nil {
		return nil, err
	}
	protected, err := f.store.ProtectedTags(ctx, project.ID)
	if err != nil {
		return nil, fmt.Errorf("list protected tags of project %d: %w", project.ID, err)
	}
	return func(tag string) bool {
		for _, t := range protected {
			if t.Matches(tag) {
				return true
			}
		}
		return false
	}, nil
}

// ProtectTag protects the tags that a pattern matches.
func (f *Forge) ProtectTag(ctx context.Context, p Principal, idOrPath string, t tidelock.ProtectedTag) (tidelock.ProtectedTag, error) {
	project, err := f.ProjectFor(ctx, p, idOrPath, ProtectTags)
	if err != nil {
		return tidelock.ProtectedTag{}, err
	}
	if t.Pattern == "" {
		return tidelock.ProtectedTag{}, tidelock.FieldErrorf(tidelock.Invalid, "name", "can't be blank")
	}
	if err := tidelock.ValidRef(tidelock.TagRef(strings.ReplaceAll(t.Pattern, "*", "x"))); err != nil {
		return tidelock.ProtectedTag{}, tidelock.FieldErrorf(tidelock.Invalid, "name", "is not a tag name or pattern")
	}
	t.Project = project.ID
	var made tidelock.ProtectedTag
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		made, err = f.store.ProtectTag(ctx, t)
		return change{
			act: "tag protected", on: OnProject(project), subject: fmt.Sprintf("tag %q", t.Pattern),
			detail: fmt.Sprintf("create %s", t.CreateLevel),
		}, err
	})
	if err != nil {
		return tidelock.ProtectedTag{}, err
	}
	return made, nil
}

// UnprotectTag removes a protection by its pattern.
func (f *Forge) UnprotectTag(ctx context.Context, p Principal, idOrPath, pattern string) error {
	project, err := f.ProjectFor(ctx, p, idOrPath, ProtectTags)
	if err != nil {
		return err
	}
	return f.audited(ctx, p, func(ctx context.Context) (change, error) {
		return change{act: "tag unprotected", on: OnProject(project), subject: fmt.Sprintf("tag %q", pattern)},
			f.store.UnprotectTag(ctx, project.ID, pattern)
	})
}

// protectionDetail is what the audit log says of a protected branch.
func protectionDetail(b tidelock.ProtectedBranch) string {
	detail := fmt.Sprintf("push %s, merge %s, force %t", b.PushLevel, b.MergeLevel, b.AllowForce)
	for _, key := range b.Keys {
		detail += fmt.Sprintf(", deploy key %d", key)
	}
	return detail
}

// ProtectionEdit changes a protected branch; nil fields stay.
type ProtectionEdit struct {
	PushLevel, MergeLevel *tidelock.AccessLevel
	AllowForce            *bool
	AddKeys, RemoveKeys   []tidelock.KeyID
}

// checkKeys refuses keys that may not push to the project anyway.
func (f *Forge) checkKeys(ctx context.Context, project tidelock.Project, keys []tidelock.KeyID) error {
	for _, key := range keys {
		_, push, err := f.store.KeyRights(ctx, key, tidelock.Holder{Project: project.ID})
		if err != nil {
			return fmt.Errorf("read what key %d may do in project %d: %w", key, project.ID, err)
		}
		if !push {
			return tidelock.Errorf(tidelock.Invalid, "%d is not a deploy key that may push to this project", key)
		}
	}
	return nil
}

// EditProtectedBranch changes a protection by its pattern.
func (f *Forge) EditProtectedBranch(ctx context.Context, p Principal, idOrPath, pattern string, e ProtectionEdit) (tidelock.ProtectedBranch, error) {
	project, err := f.ProjectFor(ctx, p, idOrPath, Protect)
	if err != nil {
		return tidelock.ProtectedBranch{}, err
	}
	if err := f.checkKeys(ctx, project, e.AddKeys); err != nil {
		return tidelock.ProtectedBranch{}, err
	}
	var after tidelock.ProtectedBranch
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		protected, err := f.store.ProtectedBranches(ctx, project.ID)
		if err != nil {
			return change{}, err
		}
		for _, b := range protected {
			if b.Pattern != pattern {
				continue
			}
			set(&b.PushLevel, e.PushLevel)
			set(&b.MergeLevel, e.MergeLevel)
			set(&b.AllowForce, e.AllowForce)
			b.Keys = slices.DeleteFunc(append(b.Keys, e.AddKeys...), func(key tidelock.KeyID) bool { return slices.Contains(e.RemoveKeys, key) })
			slices.Sort(b.Keys)
			b.Keys = slices.Compact(b.Keys)
			after, err = f.store.UpdateProtectedBranch(ctx, b)
			return change{
				act: "branch protection edited", on: OnProject(project), subject: fmt.Sprintf("branch %q", pattern),
				detail: protectionDetail(b),
			}, err
		}
		return change{}, tidelock.Errorf(tidelock.NotFound, "no protected branch %q", pattern)
	})
	if err != nil {
		return tidelock.ProtectedBranch{}, err
	}
	return after, nil
}
