package forge

import (
	"context"
	"fmt"

	"tidelock.dev"
)

// A Branch is a branch's head and how the caller stands to it.
type Branch struct {
	tidelock.Head
	Name              string
	Default           bool
	Protected         bool
	CanPush           bool // the caller may update it
	DevelopersCanPush bool
}

// Branches lists a project's branches by name, to those who may read the code.
func (f *Forge) Branches(ctx context.Context, p Principal, project tidelock.Project) ([]Branch, error) {
	heads, err := f.Heads(ctx, p, project)
	if err != nil {
		return nil, err
	}
	describe, err := f.branchFor(ctx, p, project)
	if err != nil {
		return nil, err
	}
	branches := []Branch{}
	for _, h := range heads {
		if b, ok := describe(h); ok {
			branches = append(branches, b)
		}
	}
	return branches, nil
}

// Branch reads one branch, to those who may read the code.
func (f *Forge) Branch(ctx context.Context, p Principal, project tidelock.Project, name string) (Branch, error) {
	if err := f.Allow(ctx, p, ReadCode, OnProject(project)); err != nil {
		return Branch{}, err
	}
	head, err := f.store.Head(ctx, project.ID, tidelock.BranchRef(name))
	if tidelock.KindOf(err) == tidelock.NotFound {
		return Branch{}, tidelock.Errorf(tidelock.NotFound, "Branch Not Found")
	}
	if err != nil {
		return Branch{}, fmt.Errorf("read branch %q of project %d: %w", name, project.ID, err)
	}
	describe, err := f.branchFor(ctx, p, project)
	if err != nil {
		return Branch{}, err
	}
	branch, _ := describe(head)
	return branch, nil
}

// branchFor reads once what decides about a project's branches, and returns
// what makes a Branch of a head; it is false for heads of other refs.
func (f *Forge) branchFor(ctx context.Context, p Principal, project tidelock.Project) (func(tidelock.Head) (Branch, bool), error) {
	protected, err := f.store.ProtectedBranches(ctx, project.ID)
	if err != nil {
		return nil, fmt.Errorf("list protected branches of project %d: %w", project.ID, err)
	}
	level, err := f.level(ctx, p, OnProject(project))
	if err != nil {
		return nil, err
	}
	if p.admin() {
		level = tidelock.Owner
	}
	mayPush := f.Allow(ctx, p, PushCode, OnProject(project)) == nil
	return func(h tidelock.Head) (Branch, bool) {
		name, ok := h.Ref.Branch()
		update := RefCommand{Ref: h.Ref, Old: h.Object, New: h.Object}
		b := Branch{
			Head: h, Name: name, Default: name == project.DefaultBranch,
			CanPush:           mayPush && refuse(update, project, protected, level) == "",
			DevelopersCanPush: refuse(update, project, protected, tidelock.Developer) == "",
		}
		for _, pattern := range protected {
			b.Protected = b.Protected || pattern.Matches(name)
		}
		return b, ok
	}, nil
}
