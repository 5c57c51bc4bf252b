package forge

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/Masterminds/semver/v3"

	"tidelock.dev"
)

// Resolve finds the head that a source's spec.ref means now, with Flux's
// precedence: commit, name, semver, tag, branch, and "master" when all are
// empty. An error of kind NotFound says that nothing matches, Invalid that
// the spec can never match.
func (f *Forge) Resolve(ctx context.Context, project tidelock.ProjectID, spec tidelock.RefSpec) (tidelock.Head, error) {
	switch {
	case spec.Commit != "":
		return f.resolveCommit(ctx, project, spec)
	case spec.Name != "":
		return f.head(ctx, project, tidelock.RefName(spec.Name))
	case spec.SemVer != "":
		return f.resolveSemVer(ctx, project, spec.SemVer)
	case spec.Tag != "":
		return f.head(ctx, project, tidelock.TagRef(spec.Tag))
	case spec.Branch != "":
		return f.head(ctx, project, tidelock.BranchRef(spec.Branch))
	}
	return f.head(ctx, project, tidelock.BranchRef("master"))
}

func (f *Forge) head(ctx context.Context, project tidelock.ProjectID, ref tidelock.RefName) (tidelock.Head, error) {
	head, err := f.store.Head(ctx, project, ref)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Head{}, tidelock.Errorf(tidelock.NotFound, "%s does not exist", ref)
	}
	if err != nil {
		return tidelock.Head{}, fmt.Errorf("read head %s of project %d: %w", ref, project, err)
	}
	return head, nil
}

// resolveCommit finds a fixed commit once it can be fetched: source-controller
// clones the branch, or all of them, and then looks for it there.
func (f *Forge) resolveCommit(ctx context.Context, project tidelock.ProjectID, spec tidelock.RefSpec) (tidelock.Head, error) {
	commit := tidelock.CommitID(spec.Commit)
	if err := tidelock.ValidCommit(commit); err != nil {
		return tidelock.Head{}, tidelock.Errorf(tidelock.Invalid, "%q is not a full commit id", spec.Commit)
	}
	ref, found, err := f.repos.Repo(project).Containing(ctx, commit, spec.Branch)
	if err != nil {
		return tidelock.Head{}, fmt.Errorf("look for commit %s in project %d: %w", commit, project, err)
	}
	if !found {
		return tidelock.Head{}, tidelock.Errorf(tidelock.NotFound, "commit %s is on no branch or tag", commit)
	}
	head, err := f.head(ctx, project, ref)
	if err != nil {
		return tidelock.Head{}, err
	}
	head.Object, head.Commit = commit, commit
	return head, nil
}

// resolveSemVer picks the highest tag in the range, as source-controller does:
// a version has three parts, and of tags with one version, which differ in
// their build alone, the one with the newest commit is taken.
func (f *Forge) resolveSemVer(ctx context.Context, project tidelock.ProjectID, text string) (tidelock.Head, error) {
	heads, err := f.store.Heads(ctx, project)
	if err != nil {
		return tidelock.Head{}, fmt.Errorf("list heads of project %d: %w", project, err)
	}
	best, err := tagsWithin(heads, text)
	if err != nil {
		return tidelock.Head{}, err
	}
	return f.newest(ctx, project, best)
}

// tagsWithin are the tags of the highest version in a range.
func tagsWithin(heads []tidelock.Head, text string) ([]tidelock.Head, error) {
	within, err := semver.NewConstraint(text)
	if err != nil {
		return nil, tidelock.Errorf(tidelock.Invalid, "%q is not a semver range", text)
	}
	var best []tidelock.Head
	var highest *semver.Version
	for _, h := range heads {
		tag, ok := h.Ref.Tag()
		if !ok || strings.Count(tag, ".") < 2 {
			continue
		}
		v, err := semver.NewVersion(tag)
		if err != nil || !within.Check(v) {
			continue
		}
		switch {
		case highest == nil || v.GreaterThan(highest):
			best, highest = []tidelock.Head{h}, v
		case v.Equal(highest):
			best = append(best, h)
		}
	}
	if highest == nil {
		return nil, tidelock.Errorf(tidelock.NotFound, "no tag is within %s", text)
	}
	return best, nil
}

// newest picks the head with the newest commit, and of equals the last one.
func (f *Forge) newest(ctx context.Context, project tidelock.ProjectID, heads []tidelock.Head) (tidelock.Head, error) {
	if len(heads) == 1 {
		return heads[0], nil
	}
	var newest tidelock.Head
	var latest time.Time
	for _, h := range heads {
		commit, err := f.repos.Repo(project).Commit(ctx, string(h.Commit))
		if err != nil {
			return tidelock.Head{}, fmt.Errorf("read the commit of %s of project %d: %w", h.Ref, project, err)
		}
		if newest.Ref == "" || !commit.Committer.When.Before(latest) {
			newest, latest = h, commit.Committer.When
		}
	}
	return newest, nil
}

// SaveAnnouncements keeps how far announcements came.
func (f *Forge) SaveAnnouncements(ctx context.Context, list ...tidelock.Announcement) error {
	return f.store.SaveAnnouncements(ctx, list...)
}

// Announcements lists what was announced of a project, newest first, to its
// members: whose clusters follow it, and what goes wrong there, is not for
// everybody who may see the project.
func (f *Forge) Announcements(ctx context.Context, p Principal, project tidelock.Project, filter tidelock.AnnouncementFilter, page tidelock.Page) ([]tidelock.Announcement, int, error) {
	if err := f.Allow(ctx, p, ReadDelivery, OnProject(project)); err != nil {
		return nil, 0, err
	}
	filter.Project = project.ID
	return f.store.Announcements(ctx, filter, page)
}

// AgentAnnouncements lists what was announced to an agent, newest first, to
// those who may read the agent.
func (f *Forge) AgentAnnouncements(ctx context.Context, p Principal, project tidelock.Project, agent tidelock.AgentID, filter tidelock.AnnouncementFilter, page tidelock.Page) ([]tidelock.Announcement, int, error) {
	if _, err := f.Agent(ctx, p, project, agent); err != nil {
		return nil, 0, err
	}
	filter.Agent = agent
	return f.store.Announcements(ctx, filter, page)
}

// AgentSources lists the sources of an agent, by name, as they were when they
// were last heard of, to those who may read the agent.
func (f *Forge) AgentSources(ctx context.Context, p Principal, project tidelock.Project, agent tidelock.AgentID) ([]tidelock.AgentSource, error) {
	if _, err := f.Agent(ctx, p, project, agent); err != nil {
		return nil, err
	}
	sources, err := f.store.AgentSources(ctx, agent)
	for i := range sources {
		sources[i].Refused = 0
	}
	return sources, err
}

// Pushes lists the pushes of a project, newest first.
func (f *Forge) Pushes(ctx context.Context, p Principal, project tidelock.Project, page tidelock.Page) ([]tidelock.Push, int, error) {
	if err := f.Allow(ctx, p, ReadHistory, OnProject(project)); err != nil {
		return nil, 0, err
	}
	return f.store.Pushes(ctx, tidelock.PushFilter{Project: project.ID}, page)
}

// RecentPushes lists the newest pushes of all projects that the caller may
// see.
func (f *Forge) RecentPushes(ctx context.Context, p Principal, page tidelock.Page) ([]tidelock.Push, int, error) {
	if err := f.Allow(ctx, p, Browse, OnForge); err != nil {
		return nil, 0, err
	}
	return f.store.Pushes(ctx, tidelock.PushFilter{VisibleTo: p.Viewer()}, page)
}

// ImageByID finds an image, for the server's own use. It is NotFound once the
// image was removed; pushes to it are remembered for longer.
func (f *Forge) ImageByID(ctx context.Context, id tidelock.ImageID) (tidelock.Image, error) {
	return f.store.Image(ctx, id)
}

// Heads lists the branches and tags of a project, by ref name.
func (f *Forge) Heads(ctx context.Context, p Principal, project tidelock.Project) ([]tidelock.Head, error) {
	if err := f.Allow(ctx, p, ReadCode, OnProject(project)); err != nil {
		return nil, err
	}
	return f.store.Heads(ctx, project.ID)
}
