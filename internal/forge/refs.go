package forge

import (
	"context"
	"fmt"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

// CreateBranch makes a branch at what rev names, a branch, tag or commit.
func (f *Forge) CreateBranch(ctx context.Context, p Principal, project tidelock.Project, name, rev string) error {
	if err := f.Allow(ctx, p, WriteCode, OnProject(project)); err != nil {
		return err
	}
	ref := tidelock.BranchRef(name)
	if tidelock.ValidRef(ref) != nil {
		return tidelock.Errorf(tidelock.Invalid, "Branch name is invalid")
	}
	if _, err := f.authorizeMove(ctx, p, project, RefCommand{Ref: ref, New: newObject}); err != nil {
		return err
	}
	repo := f.repos.Repo(project.ID)
	if there, err := repo.ReadRefs(ctx, ref); err != nil {
		return fmt.Errorf("read branch %q of project %d: %w", name, project.ID, err)
	} else if len(there) > 0 {
		return tidelock.Errorf(tidelock.Invalid, "Branch already exists")
	}
	commit, err := repo.Commit(ctx, rev)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Errorf(tidelock.Invalid, "Invalid reference name: %s", rev)
	}
	if err != nil {
		return err
	}
	return f.land(ctx, p, project, gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: ref, New: commit.ID}}})
}

// DeleteBranch removes a branch; maintainers may remove a protected one, and
// nobody the default branch.
func (f *Forge) DeleteBranch(ctx context.Context, p Principal, project tidelock.Project, name string) error {
	return f.deleteRef(ctx, p, project, tidelock.BranchRef(name), "Branch")
}

// DeleteTag removes a tag; maintainers may remove a protected one.
func (f *Forge) DeleteTag(ctx context.Context, p Principal, project tidelock.Project, name string) error {
	return f.deleteRef(ctx, p, project, tidelock.TagRef(name), "Tag")
}

func (f *Forge) deleteRef(ctx context.Context, p Principal, project tidelock.Project, ref tidelock.RefName, noun string) error {
	if err := f.Allow(ctx, p, WriteCode, OnProject(project)); err != nil {
		return err
	}
	if tidelock.ValidRef(ref) != nil {
		return tidelock.Errorf(tidelock.NotFound, "%s Not Found", noun)
	}
	there, err := f.repos.Repo(project.ID).ReadRefs(ctx, ref)
	switch {
	case err != nil:
		return fmt.Errorf("read %s of project %d: %w", ref, project.ID, err)
	case len(there) == 0:
		return tidelock.Errorf(tidelock.NotFound, "%s Not Found", noun)
	}
	if _, err := f.authorizeMove(ctx, p, project, RefCommand{Ref: ref, Old: there[0].Object}); err != nil {
		return err
	}
	return f.land(ctx, p, project, gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: ref, Old: there[0].Object}}})
}

// DeleteMergedBranches removes the branches whose commits the default branch
// has, except protected ones.
func (f *Forge) DeleteMergedBranches(ctx context.Context, p Principal, project tidelock.Project) error {
	if err := f.Allow(ctx, p, WriteCode, OnProject(project)); err != nil {
		return err
	}
	repo := f.repos.Repo(project.ID)
	merged, err := f.MergedBranches(ctx, project)
	if err != nil || len(merged) == 0 {
		return err
	}
	refs, err := repo.ReadRefs(ctx, merged...)
	if err != nil {
		return fmt.Errorf("read the merged branches of project %d: %w", project.ID, err)
	}
	commands := make([]RefCommand, len(refs))
	for i, r := range refs {
		commands[i] = RefCommand{Ref: r.Name, Old: r.Object}
	}
	decision, err := f.AuthorizePush(ctx, p, project, commands)
	if err != nil {
		return err
	}
	var moves []gitrepo.Move
	for _, c := range commands {
		if _, refused := decision.Refused[c.Ref]; !refused {
			moves = append(moves, gitrepo.Move{Ref: c.Ref, Old: c.Old})
		}
	}
	if len(moves) == 0 {
		return nil
	}
	return f.land(ctx, p, project, gitrepo.MoveRequest{Moves: moves})
}

// MergedBranches lists the branches whose commits the default branch has; none
// while there is no default branch. Whoever asks may read the code.
func (f *Forge) MergedBranches(ctx context.Context, project tidelock.Project) ([]tidelock.RefName, error) {
	head, err := f.Resolve(ctx, project.ID, tidelock.RefSpec{Branch: project.DefaultBranch})
	if tidelock.KindOf(err) == tidelock.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return f.repos.Repo(project.ID).Merged(ctx, head.Commit)
}

// CreateTag makes a tag of what rev names, a branch, tag or commit; with a
// message, which makes it an annotated one, or without.
func (f *Forge) CreateTag(ctx context.Context, p Principal, project tidelock.Project, name, rev, message string) error {
	if err := f.Allow(ctx, p, WriteCode, OnProject(project)); err != nil {
		return err
	}
	ref := tidelock.TagRef(name)
	switch {
	case tidelock.ValidRef(ref) != nil:
		return tidelock.Errorf(tidelock.Invalid, "Tag name invalid")
	case len(message) > maxMessage:
		return tidelock.Errorf(tidelock.TooLarge, "the tag's message is longer than %d bytes", maxMessage)
	}
	if _, err := f.authorizeMove(ctx, p, project, RefCommand{Ref: ref, New: newObject}); err != nil {
		return err
	}
	repo := f.repos.Repo(project.ID)
	if there, err := repo.ReadRefs(ctx, ref); err != nil {
		return fmt.Errorf("read tag %q of project %d: %w", name, project.ID, err)
	} else if len(there) > 0 {
		return tidelock.Errorf(tidelock.Invalid, "Tag %s already exists", name)
	}
	commit, err := repo.Commit(ctx, rev)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Errorf(tidelock.Invalid, "Target %s is invalid", rev)
	}
	if err != nil {
		return err
	}
	move := gitrepo.MoveRequest{Moves: []gitrepo.Move{{Ref: ref, New: commit.ID}}}
	if message != "" {
		draft, err := repo.DraftTag(name, commit.ID, signature(p, f.now()), message)
		if err != nil {
			return err
		}
		move.Moves[0].New, move.Draft = draft.ID, &draft
	}
	return f.land(ctx, p, project, move)
}
