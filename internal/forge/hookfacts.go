package forge

import (
	"context"
	"fmt"
	"slices"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

// HookFacts are what hooks are told of an event. Which fields are set goes by
// its kind.
type HookFacts struct {
	Project   tidelock.Project
	Namespace tidelock.Namespace
	User      tidelock.User // who did it; zero when unknown

	Push tidelock.Push

	Pipeline tidelock.Pipeline
	Statuses []tidelock.Status // the latest of each name, in order of id
	// Places are where statuses deploy to, of those that stand for rollouts.
	Places map[tidelock.StatusID]tidelock.Environment

	Deployment  tidelock.Deployment
	Environment tidelock.Environment
	Job         tidelock.Status // the first that stands for a rollout of the deployment; zero for none

	Commit gitrepo.Commit // of a pipeline or deployment; zero when it is gone
}

// HookFacts reads what an event is about. Of something that is gone it is
// NotFound.
func (f *Forge) HookFacts(ctx context.Context, e tidelock.HookEvent) (HookFacts, error) {
	facts, err := f.hookFacts(ctx, e)
	if err != nil {
		return HookFacts{}, fmt.Errorf("read what hook event %d is about: %w", e.ID, err)
	}
	return facts, nil
}

func (f *Forge) hookFacts(ctx context.Context, e tidelock.HookEvent) (facts HookFacts, err error) {
	if facts.Project, err = f.store.Project(ctx, e.Project); err != nil {
		return facts, err
	}
	if facts.Namespace, err = f.store.Namespace(ctx, facts.Project.Namespace); err != nil {
		return facts, err
	}
	var by tidelock.UserID
	var commit tidelock.CommitID
	switch e.Kind {
	case tidelock.HookPush, tidelock.HookTagPush:
		if facts.Push, err = f.store.Push(ctx, e.Push); err != nil {
			return facts, err
		}
		by = facts.Push.By
	case tidelock.HookPipeline:
		if facts.Pipeline, err = f.store.Pipeline(ctx, e.Pipeline); err != nil {
			return facts, err
		}
		facts.Statuses, _, err = f.store.Statuses(ctx, tidelock.StatusFilter{
			Project: e.Project, Pipeline: e.Pipeline, Latest: true,
		}, tidelock.Page{Number: 1, PerPage: 100})
		if err != nil {
			return facts, err
		}
		if facts.Places, err = f.placesOf(ctx, facts.Pipeline); err != nil {
			return facts, err
		}
		if e.State != "" {
			facts.Pipeline.State = tidelock.StatusState(e.State)
		}
		by, commit = facts.Pipeline.By, facts.Pipeline.Commit
	case tidelock.HookDeployment:
		if facts.Deployment, err = f.store.Deployment(ctx, e.Deployment); err != nil {
			return facts, err
		}
		if facts.Environment, err = f.store.Environment(ctx, facts.Deployment.Environment); err != nil {
			return facts, err
		}
		if facts.Job, err = f.jobOf(ctx, facts.Deployment); err != nil {
			return facts, err
		}
		if e.State != "" {
			facts.Deployment.State = tidelock.DeploymentState(e.State)
		}
		by, commit = facts.Deployment.By, facts.Deployment.Commit
	default:
		return facts, fmt.Errorf("no hook knows the kind %q", e.Kind)
	}
	if by != 0 {
		if facts.User, err = f.store.User(ctx, by); err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			return facts, err
		}
	}
	if commit != "" {
		facts.Commit, err = f.repos.Repo(e.Project).Commit(ctx, string(commit))
		if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			return facts, err
		}
	}
	return facts, nil
}

// placesOf finds the environments of the jobs that stand for rollouts.
func (f *Forge) placesOf(ctx context.Context, p tidelock.Pipeline) (map[tidelock.StatusID]tidelock.Environment, error) {
	rollouts, _, err := f.store.Rollouts(ctx, tidelock.RolloutFilter{Project: p.Project, Commit: p.Commit}, tidelock.Page{})
	if err != nil {
		return nil, err
	}
	places := map[tidelock.StatusID]tidelock.Environment{}
	known := map[string]tidelock.Environment{}
	for _, r := range rollouts {
		env, ok := known[r.Environment]
		if !ok && r.Environment != "" {
			env, err = f.store.EnvironmentByName(ctx, p.Project, r.Environment)
			if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
				return nil, err
			}
			known[r.Environment] = env
		}
		if env.ID != 0 && r.Status != 0 {
			places[r.Status] = env
		}
	}
	return places, nil
}

// jobOf is the first job that stands for a rollout of a deployment; zero for
// one that nobody's agent made.
func (f *Forge) jobOf(ctx context.Context, d tidelock.Deployment) (tidelock.Status, error) {
	rollouts, _, err := f.store.Rollouts(ctx, tidelock.RolloutFilter{Project: d.Project, Commit: d.Commit}, tidelock.Page{})
	if err != nil {
		return tidelock.Status{}, err
	}
	var first tidelock.StatusID
	for _, r := range rollouts {
		if r.Deployment == d.ID && r.Status != 0 && (first == 0 || r.Status < first) {
			first = r.Status
		}
	}
	if first == 0 {
		return tidelock.Status{}, nil
	}
	job, err := f.store.Status(ctx, first)
	if tidelock.KindOf(err) == tidelock.NotFound { // its pipeline was deleted
		return tidelock.Status{}, nil
	}
	return job, err
}

// PushedCommits reads the newest commits that an update of a push brought to
// its branch, newest first, and counts all. Of a new branch these are those
// that the default branch does not have.
func (f *Forge) PushedCommits(ctx context.Context, project tidelock.Project, u tidelock.RefUpdate, newest int) ([]gitrepo.ChangedCommit, int, error) {
	if u.New == "" {
		return nil, 0, nil
	}
	in := gitrepo.CommitRange{To: u.Commit, Newest: newest}
	if u.Old != "" {
		in.Without = []tidelock.CommitID{u.Old}
	} else if base := tidelock.BranchRef(project.DefaultBranch); base != u.Ref {
		head, err := f.store.Head(ctx, project.ID, base)
		switch {
		case err == nil:
			in.Without = []tidelock.CommitID{head.Commit}
		case tidelock.KindOf(err) != tidelock.NotFound:
			return nil, 0, err
		}
	}
	return f.repos.Repo(project.ID).Changed(ctx, in)
}

// HookSample makes an event of what last happened in a project, to test a hook
// with. When nothing of the kind ever did, it is Invalid.
func (f *Forge) HookSample(ctx context.Context, p Principal, project tidelock.Project, kind tidelock.HookKind) (HookFacts, error) {
	if err := f.Allow(ctx, p, ManageHooks, OnProject(project)); err != nil {
		return HookFacts{}, err
	}
	event := tidelock.HookEvent{Project: project.ID, Kind: kind, At: f.now().UTC()}
	newest := tidelock.Page{Number: 1, PerPage: 1}
	switch kind {
	case tidelock.HookPush, tidelock.HookTagPush:
		return f.samplePush(ctx, p, project, kind)
	case tidelock.HookPipeline:
		found, _, err := f.store.Pipelines(ctx, tidelock.PipelineFilter{Project: project.ID}, newest)
		if err != nil {
			return HookFacts{}, err
		}
		if len(found) == 0 {
			return HookFacts{}, tidelock.Errorf(tidelock.Invalid, "Ensure the project has CI pipelines.")
		}
		event.Pipeline = found[0].ID
	case tidelock.HookDeployment:
		found, _, err := f.store.Deployments(ctx, tidelock.DeploymentFilter{Project: project.ID, Descending: true}, newest)
		if err != nil {
			return HookFacts{}, err
		}
		if len(found) == 0 {
			return HookFacts{}, tidelock.Errorf(tidelock.Invalid, "Ensure the project has deployments.")
		}
		event.Deployment = found[0].ID
	}
	return f.HookFacts(ctx, event)
}

// samplePush makes up the push that a newest head would have come by.
func (f *Forge) samplePush(ctx context.Context, p Principal, project tidelock.Project, kind tidelock.HookKind) (HookFacts, error) {
	heads, err := f.store.Heads(ctx, project.ID)
	if err != nil {
		return HookFacts{}, err
	}
	var sample tidelock.RefUpdate
	var newest tidelock.Head
	for _, h := range heads {
		u := tidelock.RefUpdate{Ref: h.Ref, New: h.Object, Commit: h.Commit}
		preferred := h.Ref == tidelock.BranchRef(project.DefaultBranch)
		if u.HookKind() == kind && (sample.Ref == "" || preferred || h.MovedAt.After(newest.MovedAt) && newest.Ref != tidelock.BranchRef(project.DefaultBranch)) {
			sample, newest = u, h
		}
	}
	if sample.Ref == "" {
		return HookFacts{}, tidelock.Errorf(tidelock.Invalid, "Ensure the project has at least one %s.",
			map[tidelock.HookKind]string{tidelock.HookPush: "commit", tidelock.HookTagPush: "tag"}[kind])
	}
	if kind == tidelock.HookPush {
		commit, err := f.repos.Repo(project.ID).Commit(ctx, string(sample.Commit))
		if err != nil {
			return HookFacts{}, err
		}
		if len(commit.Parents) > 0 {
			sample.Old = commit.Parents[0]
		}
	}
	facts := HookFacts{Project: project, Push: tidelock.Push{
		ID: newest.Push, Project: project.ID, At: newest.MovedAt, Updates: []tidelock.RefUpdate{sample},
	}}
	if p.User != nil {
		facts.User = *p.User
	}
	facts.Namespace, err = f.store.Namespace(ctx, project.Namespace)
	return facts, err
}

// HooksFor lists the hooks of a project that want to know of an event's kind.
func (f *Forge) HooksFor(ctx context.Context, e tidelock.HookEvent) ([]tidelock.Hook, error) {
	hooks, _, err := f.store.Hooks(ctx, e.Project, tidelock.Page{})
	if err != nil {
		return nil, fmt.Errorf("list the hooks of project %d: %w", e.Project, err)
	}
	return slices.DeleteFunc(hooks, func(h tidelock.Hook) bool { return !h.Wants(e.Kind) }), nil
}
