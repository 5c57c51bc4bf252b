package forge

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

// NewCommit is what is said of a commit to make without git.
type NewCommit struct {
	Branch string // what it is put on

	// StartBranch or StartCommit, a branch, tag or commit, makes Branch begin
	// there; it must not exist yet, unless Force.
	StartBranch string
	StartCommit string
	Force       bool

	Message     string
	AuthorName  string // default: the caller's
	AuthorEmail string // default: the caller's
	Changes     []gitrepo.Change
}

const (
	maxMessage = 1 << 20 // bytes of a commit's or tag's message
	maxChanges = 10_000  // of one commit

	// landTimeout bounds what goes on without its caller once a commit or a ref
	// is on its way to the disk, and recordTimeout the recording of it.
	landTimeout   = 5 * time.Minute
	recordTimeout = 30 * time.Second
)

// newObject stands for the name of a commit or tag that is yet to be made:
// whether a ref may move is decided before the work.
const newObject tidelock.CommitID = "ffffffffffffffffffffffffffffffffffffffff"

// Commit makes one commit of several changes and moves its branch there, as if
// it were pushed: the same rules decide, and it is recorded and announced. All
// of it happens or nothing; when somebody else moved the branch meanwhile, that
// is a Conflict.
func (f *Forge) Commit(ctx context.Context, p Principal, project tidelock.Project, n NewCommit) (tidelock.CommitID, error) {
	if err := f.Allow(ctx, p, WriteCode, OnProject(project)); err != nil {
		return "", err
	}
	return f.commit(ctx, p, project, n)
}

// commit is Commit for those who may write the code at all.
func (f *Forge) commit(ctx context.Context, p Principal, project tidelock.Project, n NewCommit) (tidelock.CommitID, error) {
	ref := tidelock.BranchRef(n.Branch)
	if err := tidelock.ValidRef(ref); err != nil {
		return "", tidelock.Errorf(tidelock.Invalid, "Branch name is invalid: %s", err)
	}
	switch {
	case n.Message == "":
		return "", tidelock.Errorf(tidelock.Invalid, "commit_message can't be blank")
	case len(n.Message) > maxMessage:
		return "", tidelock.Errorf(tidelock.TooLarge, "the commit message is longer than %d bytes", maxMessage)
	case len(n.Changes) > maxChanges:
		return "", tidelock.Errorf(tidelock.TooLarge, "the commit has more than %d actions; push it by git", maxChanges)
	}
	repo := f.repos.Repo(project.ID)
	head, parent, err := f.startOf(ctx, project, repo, n)
	if err != nil {
		return "", err
	}
	decision, err := f.authorizeMove(ctx, p, project, RefCommand{Ref: ref, Old: head, New: newObject})
	if err != nil {
		return "", err
	}
	by := signature(p, f.now())
	author := by
	author.Name, author.Email = cmp.Or(n.AuthorName, by.Name), cmp.Or(n.AuthorEmail, by.Email)
	draft, err := repo.Draft(ctx, gitrepo.NewCommit{
		Parent: parent, Message: n.Message, Author: author, Committer: by, Changes: n.Changes,
	})
	if err != nil {
		return "", err
	}
	return draft.ID, f.land(ctx, p, project, gitrepo.MoveRequest{
		Moves: []gitrepo.Move{{Ref: ref, Old: head, New: draft.ID}}, Draft: &draft,
		DenyNonFastForward: decision.DenyNonFastForward,
	})
}

// writeReadme makes the first commit of a project for whoever created it. That
// its default branch is protected does not matter: nothing is there yet.
func (f *Forge) writeReadme(ctx context.Context, p Principal, project tidelock.Project) error {
	by := signature(p, f.now())
	text := "# " + project.Name + "\n"
	if project.Description != "" {
		text += "\n" + project.Description + "\n"
	}
	draft, err := f.repos.Repo(project.ID).Draft(ctx, gitrepo.NewCommit{
		Message: "Initial commit", Author: by, Committer: by,
		Changes: []gitrepo.Change{{Kind: gitrepo.CreateFile, Path: "README.md", Content: []byte(text)}},
	})
	if err != nil {
		return err
	}
	return f.land(ctx, p, project, gitrepo.MoveRequest{
		Moves: []gitrepo.Move{{Ref: tidelock.BranchRef(project.DefaultBranch), New: draft.ID}}, Draft: &draft,
	})
}

// startOf finds where the branch of a new commit is, "" when it does not exist,
// and what the commit's parent is to be, "" for none.
func (f *Forge) startOf(ctx context.Context, project tidelock.Project, repo *gitrepo.Repo, n NewCommit) (head, parent tidelock.CommitID, err error) {
	refs, err := repo.ReadRefs(ctx, tidelock.BranchRef(n.Branch))
	if err != nil {
		return "", "", fmt.Errorf("read branch %q of project %d: %w", n.Branch, project.ID, err)
	}
	if len(refs) > 0 {
		head = refs[0].Object
	}
	from := n.StartCommit
	if n.StartBranch != "" && n.StartBranch != n.Branch {
		from = string(tidelock.BranchRef(n.StartBranch))
	}
	switch {
	case from != "" && head != "" && !n.Force:
		return "", "", tidelock.Errorf(tidelock.Invalid, "A branch called '%s' already exists. Switch to that branch in order to make changes", n.Branch)
	case from != "":
		commit, err := repo.Commit(ctx, from)
		if tidelock.KindOf(err) == tidelock.NotFound {
			return "", "", tidelock.Errorf(tidelock.Invalid, "Cannot start from %q: there is no such branch or commit", cmp.Or(n.StartBranch, n.StartCommit))
		}
		return head, commit.ID, err
	case head != "":
		return head, head, nil
	}
	tips, err := repo.Tips(ctx)
	if err != nil {
		return "", "", fmt.Errorf("list the refs of project %d: %w", project.ID, err)
	}
	for _, tip := range tips {
		if _, ok := tip.Name.Branch(); ok {
			return "", "", tidelock.Errorf(tidelock.Invalid, "You can only create or edit files when you are on a branch")
		}
	}
	return "", "", nil // the first commit
}

// authorizeMove decides a change of one ref by API. It is AuthorizePush, but
// that maintainers may delete what is protected.
func (f *Forge) authorizeMove(ctx context.Context, p Principal, project tidelock.Project, c RefCommand) (PushDecision, error) {
	decision, err := f.AuthorizePush(ctx, p, project, []RefCommand{c})
	if err != nil {
		return decision, err
	}
	reason, refused := decision.Refused[c.Ref]
	if !refused {
		return decision, nil
	}
	if reason == keepsBranch || reason == keepsTag {
		level, err := f.level(ctx, p, OnProject(project))
		if err != nil {
			return decision, err
		}
		if p.admin() || level >= tidelock.Maintainer {
			return PushDecision{}, nil
		}
	}
	return decision, tidelock.Errorf(tidelock.Denied, "%s: %s", c.Ref, reason)
}

// land moves refs on the disk and records it as a push. From here on it goes
// on without its caller.
func (f *Forge) land(ctx context.Context, p Principal, project tidelock.Project, req gitrepo.MoveRequest) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), landTimeout)
	defer cancel()
	repo := f.repos.Repo(project.ID)
	names := make([]tidelock.RefName, len(req.Moves))
	for i, m := range req.Moves {
		names[i] = m.Ref
	}
	if err := repo.Move(ctx, req); err != nil {
		switch tidelock.KindOf(err) {
		case tidelock.Conflict, tidelock.Invalid, tidelock.Denied, tidelock.TooLarge, tidelock.NotFound:
		default:
			f.MarkDirty(project.ID) // a ref may have moved all the same
		}
		return err
	}
	// As with a push, disk and store sync side by side. What is on the disk has
	// happened: trouble from here on is ours to put right, and a caller that
	// tried again would do it twice.
	synced := make(chan error, 1)
	go func() { synced <- repo.Sync(names...) }()
	recordCtx, cancelRecord := context.WithTimeout(ctx, recordTimeout)
	defer cancelRecord()
	if _, err := f.Pushed(recordCtx, project.ID, p, names); err != nil {
		f.log.ErrorContext(ctx, "push not recorded: it will be when the repository is compared", "project", project.ID, "error", err)
	}
	if err := <-synced; err != nil {
		f.log.ErrorContext(ctx, "push not synced: it may not survive a loss of power", "project", project.ID, "error", err)
	}
	return nil
}

// signature is who a principal is in git's words.
func signature(p Principal, now time.Time) gitrepo.Signature {
	s := gitrepo.Signature{Name: "Tidelock", Email: "tidelock@noreply.invalid", When: now.UTC()}
	if p.User != nil {
		s.Name = cmp.Or(p.User.Name, p.User.Username)
		s.Email = cmp.Or(p.User.Email, strings.ToLower(p.User.Username)+"@noreply.invalid")
	}
	return s
}
