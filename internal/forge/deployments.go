package forge

import (
	"context"
	"fmt"
	"slices"
	"time"

	"tidelock.dev"
)

// NewDeployment is what is said of a deployment to record.
type NewDeployment struct {
	Environment string // its name; it is made if there is none
	Commit      string // an object name
	Ref         string // short name of a branch or tag
	Tag         bool   // Ref is a tag
	State       tidelock.DeploymentState
}

// Deployments lists a project's deployments, oldest first unless the filter
// says otherwise.
func (f *Forge) Deployments(ctx context.Context, p Principal, project tidelock.Project, filter tidelock.DeploymentFilter, page tidelock.Page) ([]tidelock.Deployment, int, error) {
	if err := f.Allow(ctx, p, ReadDeployments, OnProject(project)); err != nil {
		return nil, 0, err
	}
	filter.Project = project.ID
	return f.store.Deployments(ctx, filter, page)
}

// Deployment reads one deployment of a project.
func (f *Forge) Deployment(ctx context.Context, p Principal, project tidelock.Project, id tidelock.DeploymentID) (tidelock.Deployment, error) {
	if err := f.Allow(ctx, p, ReadDeployments, OnProject(project)); err != nil {
		return tidelock.Deployment{}, err
	}
	return f.deployment(ctx, project, id)
}

func (f *Forge) deployment(ctx context.Context, project tidelock.Project, id tidelock.DeploymentID) (tidelock.Deployment, error) {
	deployment, err := f.store.Deployment(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && deployment.Project != project.ID) {
		err = tidelock.Errorf(tidelock.NotFound, "Deployment Not Found")
	}
	if err != nil {
		return tidelock.Deployment{}, err
	}
	return deployment, nil
}

// LastDeployments lists the newest successful deployment of each environment
// that has one, of environments that the caller could read.
func (f *Forge) LastDeployments(ctx context.Context, p Principal, project tidelock.Project, environments ...tidelock.Environment) ([]tidelock.Deployment, error) {
	if err := f.Allow(ctx, p, ReadDeployments, OnProject(project)); err != nil {
		return nil, err
	}
	ids := []tidelock.EnvironmentID{}
	for _, e := range environments {
		if e.Project == project.ID {
			ids = append(ids, e.ID)
		}
	}
	return f.store.LastDeployments(ctx, ids...)
}

// EnvironmentOf reads the environment of a deployment that the caller could
// read.
func (f *Forge) EnvironmentOf(ctx context.Context, p Principal, project tidelock.Project, d tidelock.Deployment) (tidelock.Environment, error) {
	if err := f.Allow(ctx, p, ReadDeployments, OnProject(project)); err != nil {
		return tidelock.Environment{}, err
	}
	return f.environment(ctx, project, d.Environment)
}

// Deploy records a deployment, and the environment if it is new. A success
// starts a stopped environment again.
func (f *Forge) Deploy(ctx context.Context, p Principal, project tidelock.Project, n NewDeployment) (tidelock.Deployment, error) {
	if err := f.Allow(ctx, p, WriteDeployments, OnProject(project)); err != nil {
		return tidelock.Deployment{}, err
	}
	if err := checkEnvironment(f.newEnvironment(project, n.Environment)); err != nil {
		return tidelock.Deployment{}, err
	}
	commit, err := f.deployedCommit(ctx, project, n)
	if err != nil {
		return tidelock.Deployment{}, err
	}
	by, _ := p.ids()
	var deployment tidelock.Deployment
	err = f.store.Atomically(ctx, func(ctx context.Context) error {
		if err := f.store.LockProject(ctx, project.ID); err != nil {
			return err
		}
		env, err := f.store.EnvironmentByName(ctx, project.ID, n.Environment)
		if tidelock.KindOf(err) == tidelock.NotFound {
			env, err = f.store.CreateEnvironment(ctx, f.newEnvironment(project, n.Environment))
		}
		if err != nil {
			return err
		}
		now := f.now().UTC()
		deployment = tidelock.Deployment{
			Project: project.ID, Environment: env.ID, Ref: n.Ref, Tag: n.Tag, Commit: commit,
			State: tidelock.DeploymentCreated, By: by, CreatedAt: now, UpdatedAt: now,
		}
		if err := moveDeployment(&deployment, n.State, now); err != nil {
			return err
		}
		if deployment, err = f.store.CreateDeployment(ctx, deployment); err != nil {
			return err
		}
		return f.start(ctx, env, deployment)
	})
	if err != nil {
		return tidelock.Deployment{}, err
	}
	f.deploymentChanged(ctx, p, deployment)
	return deployment, nil
}

// start makes an environment available again once something was deployed.
func (f *Forge) start(ctx context.Context, env tidelock.Environment, d tidelock.Deployment) error {
	if d.State != tidelock.DeploymentSuccess || env.State == tidelock.EnvironmentAvailable {
		return nil
	}
	env.State, env.UpdatedAt = tidelock.EnvironmentAvailable, d.UpdatedAt
	return f.store.SaveEnvironment(ctx, env)
}

func (f *Forge) deploymentChanged(ctx context.Context, p Principal, d tidelock.Deployment) {
	by, _ := p.ids()
	f.log.InfoContext(ctx, "deployment changed", "project", d.Project, "deployment", d.ID, "environment", d.Environment,
		"commit", d.Commit, "state", d.State, "by", by)
	publish(f, tidelock.DeploymentChanged{Project: d.Project})
	publish(f, tidelock.HooksDue{Project: d.Project})
}

// deployedCommit checks that the commit and the ref are there.
func (f *Forge) deployedCommit(ctx context.Context, project tidelock.Project, n NewDeployment) (tidelock.CommitID, error) {
	commit, err := f.commitAt(ctx, project, n.Commit)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return "", tidelock.FieldErrorf(tidelock.Invalid, "sha", "The commit does not exist")
	}
	if err != nil {
		return "", err
	}
	ref := tidelock.BranchRef(n.Ref)
	if n.Tag {
		ref = tidelock.TagRef(n.Ref)
	}
	_, err = f.store.Head(ctx, project.ID, ref)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return "", tidelock.FieldErrorf(tidelock.Invalid, "ref", "The branch or tag does not exist")
	}
	if err != nil {
		return "", fmt.Errorf("read %s of project %d: %w", ref, project.ID, err)
	}
	return commit, nil
}

// SetDeploymentState moves a deployment on. One that has ended may end
// otherwise, but not run again; one that agents report is Denied.
func (f *Forge) SetDeploymentState(ctx context.Context, p Principal, project tidelock.Project, id tidelock.DeploymentID, state tidelock.DeploymentState) (tidelock.Deployment, error) {
	if err := f.Allow(ctx, p, WriteDeployments, OnProject(project)); err != nil {
		return tidelock.Deployment{}, err
	}
	var deployment tidelock.Deployment
	err := f.store.Atomically(ctx, func(ctx context.Context) (err error) {
		if err := f.store.LockProject(ctx, project.ID); err != nil {
			return err
		}
		if deployment, err = f.deployment(ctx, project, id); err != nil {
			return err
		}
		if err := f.mayMove(ctx, deployment); err != nil {
			return err
		}
		if err := moveDeployment(&deployment, state, f.now().UTC()); err != nil {
			return err
		}
		if err := f.store.SaveDeployment(ctx, deployment); err != nil {
			return err
		}
		env, err := f.store.Environment(ctx, deployment.Environment)
		if err != nil {
			return err
		}
		return f.start(ctx, env, deployment)
	})
	if err != nil {
		return tidelock.Deployment{}, err
	}
	f.deploymentChanged(ctx, p, deployment)
	return deployment, nil
}

// mayMove refuses to have a deployment moved that follows rollouts.
func (f *Forge) mayMove(ctx context.Context, d tidelock.Deployment) error {
	rollouts, _, err := f.store.Rollouts(ctx, tidelock.RolloutFilter{Project: d.Project, Commit: d.Commit}, tidelock.Page{})
	if err != nil {
		return err
	}
	if slices.ContainsFunc(rollouts, func(r tidelock.Rollout) bool { return r.Deployment == d.ID }) {
		return tidelock.Errorf(tidelock.Denied, "the state of deployment %d follows what agents report; it cannot be set", d.ID)
	}
	return nil
}

var deploymentEvents = map[tidelock.DeploymentState]string{
	tidelock.DeploymentRunning:  "run",
	tidelock.DeploymentSuccess:  "succeed",
	tidelock.DeploymentFailed:   "drop",
	tidelock.DeploymentCanceled: "cancel",
}

// moveDeployment follows GitLab's transitions: only a new deployment may run,
// and any may end in another way than it has.
func moveDeployment(d *tidelock.Deployment, wanted tidelock.DeploymentState, now time.Time) error {
	event, ok := deploymentEvents[wanted]
	switch {
	case !ok:
		return tidelock.FieldErrorf(tidelock.Invalid, "status", "does not have a valid value")
	case d.State == wanted, wanted == tidelock.DeploymentRunning && d.State != tidelock.DeploymentCreated:
		return tidelock.FieldErrorf(tidelock.Invalid, "status", "cannot transition via %q", event)
	}
	d.State, d.UpdatedAt = wanted, now
	if wanted.Done() {
		d.FinishedAt = now
	}
	return nil
}

// DeleteDeployment removes a deployment that neither runs nor is what its
// environment has now.
func (f *Forge) DeleteDeployment(ctx context.Context, p Principal, project tidelock.Project, id tidelock.DeploymentID) error {
	if err := f.Allow(ctx, p, DeleteDeployment, OnProject(project)); err != nil {
		return err
	}
	err := f.store.Atomically(ctx, func(ctx context.Context) error {
		if err := f.store.LockProject(ctx, project.ID); err != nil {
			return err
		}
		deployment, err := f.deployment(ctx, project, id)
		if err != nil {
			return err
		}
		if deployment.State == tidelock.DeploymentRunning {
			return tidelock.Errorf(tidelock.Invalid, "Cannot destroy running deployment")
		}
		last, err := f.store.LastDeployments(ctx, deployment.Environment)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(last, func(l tidelock.Deployment) bool { return l.ID == id }) {
			return tidelock.Errorf(tidelock.Invalid, "Deployment currently deployed to environment")
		}
		return f.store.DeleteDeployment(ctx, id)
	})
	if err != nil {
		return err
	}
	by, _ := p.ids()
	f.log.InfoContext(ctx, "deployment deleted", "project", project.ID, "deployment", id, "by", by)
	publish(f, tidelock.DeploymentChanged{Project: project.ID})
	return nil
}
