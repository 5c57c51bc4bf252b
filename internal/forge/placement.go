package forge

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidelock.dev"
)

// A site is an agent's side of the project that is reported to.
type site struct {
	agent    tidelock.Agent
	trusted  bool // it may report about the project
	observed map[tidelock.ObjectID]tidelock.Observation
	envs     []tidelock.Environment // that name the agent
}

func (r *report) site(ctx context.Context, id tidelock.AgentID) (*site, error) {
	if s := r.sites[id]; s != nil {
		return s, nil
	}
	s := &site{observed: map[tidelock.ObjectID]tidelock.Observation{}}
	var err error
	if s.agent, err = r.f.store.Agent(ctx, id); err != nil {
		return nil, err
	}
	if s.trusted, err = r.f.AgentMayReport(ctx, s.agent, r.project); err != nil {
		return nil, err
	}
	observed, err := r.f.store.Observations(ctx, tidelock.ObservationFilter{
		Agent: id, Project: r.project.ID, Objects: r.appliers[id],
	})
	if err != nil {
		return nil, err
	}
	for _, o := range observed {
		s.observed[o.Object] = o
	}
	s.envs, _, err = r.f.store.Environments(ctx, tidelock.EnvironmentFilter{Project: r.project.ID, Agent: id}, tidelock.Page{})
	if err != nil {
		return nil, err
	}
	r.sites[id] = s
	return s, nil
}

// place finds or makes the environment that a rollout goes to: the one that
// names its object; the one that the object's annotation names; the one that
// names its namespace and no object; and else "<agent>/<namespace>". An agent
// that may not report any more has no say in the names.
func (r *report) place(ctx context.Context, rollout tidelock.Rollout) (tidelock.Environment, error) {
	s, err := r.site(ctx, rollout.Agent)
	if err != nil {
		return tidelock.Environment{}, err
	}
	if i := slices.IndexFunc(s.envs, func(e tidelock.Environment) bool { return pathNames(e.FluxResourcePath, rollout.Applier) }); i >= 0 {
		return s.envs[i], nil
	}
	_, namespace, _ := rollout.Applier.Split()
	seen := s.observed[rollout.Applier]
	for _, said := range []string{seen.Namespace, namespace, "default"} { // strangers chose it
		namespace = said
		if checkEnvironment(r.f.newEnvironment(r.project, s.agent.Name+"/"+said)) == nil {
			break
		}
	}
	if s.trusted {
		for _, name := range []string{seen.Environment, rollout.Environment} {
			if name == "" || checkEnvironment(r.f.newEnvironment(r.project, name)) != nil {
				continue
			}
			env, err := r.f.store.EnvironmentByName(ctx, r.project.ID, name)
			if tidelock.KindOf(err) == tidelock.NotFound {
				return r.newPlace(ctx, s, name, namespace, rollout.Applier)
			}
			return env, err
		}
	}
	i := slices.IndexFunc(s.envs, func(e tidelock.Environment) bool {
		return e.KubernetesNamespace == namespace && e.FluxResourcePath == ""
	})
	if i >= 0 {
		return s.envs[i], nil
	}
	for _, agent := range []string{s.agent.Name, fmt.Sprintf("%s-%d", s.agent.Name, s.agent.ID)} {
		name := agent + "/" + namespace
		env, err := r.f.store.EnvironmentByName(ctx, r.project.ID, name)
		switch {
		case tidelock.KindOf(err) == tidelock.NotFound:
			return r.newPlace(ctx, s, name, namespace, rollout.Applier)
		case err != nil:
			return tidelock.Environment{}, err
		case env.Agent == s.agent.ID:
			return env, nil
		case env.Agent == 0 && s.trusted:
			return r.adopt(ctx, s, env, namespace)
		}
	}
	return tidelock.Environment{}, fmt.Errorf("no name is left for an environment of agent %d", s.agent.ID)
}

// newPlace makes an environment for an applier.
func (r *report) newPlace(ctx context.Context, s *site, name, namespace string, applier tidelock.ObjectID) (tidelock.Environment, error) {
	env := r.f.newEnvironment(r.project, name)
	env.Agent, env.KubernetesNamespace, env.FluxResourcePath = s.agent.ID, namespace, resourcePath(applier)
	if checkEnvironment(env) != nil { // strangers chose the names
		env.KubernetesNamespace, env.FluxResourcePath = "", ""
	}
	env, err := r.f.store.CreateEnvironment(ctx, env)
	if err != nil {
		return tidelock.Environment{}, fmt.Errorf("create environment %q: %w", name, err)
	}
	r.f.log.InfoContext(ctx, "environment created", "project", env.Project, "environment", env.ID, "name", env.Name, "agent", s.agent.ID)
	s.envs = append(s.envs, env)
	r.placed = true
	return env, nil
}

// adopt gives an environment to an agent whose predecessor of the same name
// had it. One that never had an agent stays without.
func (r *report) adopt(ctx context.Context, s *site, env tidelock.Environment, namespace string) (tidelock.Environment, error) {
	if env.KubernetesNamespace != namespace {
		return env, nil
	}
	env.Agent, env.UpdatedAt = s.agent.ID, r.now
	s.envs = append(s.envs, env)
	r.placed = true
	return env, r.f.store.SaveEnvironment(ctx, env)
}

// appliers are the kinds that a flux_resource_path can lead to.
var appliers = map[tidelock.ObjectKind]struct{ group, version, resource string }{
	tidelock.Kustomization: {"kustomize.toolkit.fluxcd.io", "v1", "kustomizations"},
	tidelock.HelmRelease:   {"helm.toolkit.fluxcd.io", "v2", "helmreleases"},
}

// resourcePath is the flux_resource_path of an applier; "" when it would be
// longer than GitLab lets one be.
func resourcePath(id tidelock.ObjectID) string {
	kind, namespace, name := id.Split()
	a, ok := appliers[kind]
	if !ok {
		return ""
	}
	path := fmt.Sprintf("%s/%s/namespaces/%s/%s/%s", a.group, a.version, namespace, a.resource, name)
	if len(path) > maxFluxPath {
		return ""
	}
	return path
}

// pathNames reports whether a flux_resource_path leads to an applier, in
// whatever version of its API.
func pathNames(path string, id tidelock.ObjectID) bool {
	kind, namespace, name := id.Split()
	group, rest, _ := strings.Cut(path, "/")
	_, rest, _ = strings.Cut(rest, "/")
	a, ok := appliers[kind]
	return ok && group == a.group && rest == fmt.Sprintf("namespaces/%s/%s/%s", namespace, a.resource, name)
}

// deploy finds or makes the one deployment of the commit in the rollout's
// environment, of which the rollout is a part. Once there, it does not move.
func (r *report) deploy(ctx context.Context, rollout *tidelock.Rollout) error {
	for env, d := range r.deployments {
		if rollout.Deployment != 0 && d.ID == rollout.Deployment {
			r.redeployed(env)
			return nil
		}
	}
	env, err := r.place(ctx, *rollout)
	if err != nil {
		return err
	}
	deployment, ok := r.deployments[env.ID]
	if !ok {
		ref := shortRef(rollout.Ref)
		if ref.name == "" {
			ref = r.ref
		}
		deployment = tidelock.Deployment{
			Project: r.project.ID, Environment: env.ID, Ref: ref.name, Tag: ref.tag, Commit: r.commit,
			State: tidelock.DeploymentCreated, CreatedAt: r.now, UpdatedAt: r.now,
		}
		if rollout.Push != 0 {
			push, err := r.f.store.Push(ctx, rollout.Push)
			if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
				return err
			}
			deployment.By = push.By
		}
		if deployment, err = r.f.store.CreateDeployment(ctx, deployment); err != nil {
			return err
		}
		r.deployments[env.ID] = deployment
		r.placed = true
	}
	rollout.Environment, rollout.Deployment = env.Name, deployment.ID
	r.redeployed(env.ID)
	return nil
}

func (r *report) redeployed(env tidelock.EnvironmentID) {
	if !slices.Contains(r.deployed, env) {
		r.deployed = append(r.deployed, env)
	}
}

// sumUpDeployment derives a deployment from the rollouts that are part of it.
func (r *report) sumUpDeployment(ctx context.Context, d tidelock.Deployment) error {
	state, finished := sumOf(r.rollouts, d.ID)
	if state.Done() {
		finished = cmp.Or(finished, r.now)
	}
	if state == d.State && finished.Equal(d.FinishedAt) {
		return nil
	}
	moved := state != d.State
	d.State, d.FinishedAt, d.UpdatedAt = state, finished, r.now
	if err := r.f.store.SaveDeployment(ctx, d); err != nil {
		return err
	}
	r.deployments[d.Environment] = d
	r.placed = true
	if !moved {
		return nil
	}
	r.hooks = true
	env, err := r.f.store.Environment(ctx, d.Environment)
	if err != nil {
		return err
	}
	return r.f.start(ctx, env, d)
}

// sumOf is the state of a deployment that rollouts are part of, and when the
// last of them ended. It has not ended before all have.
func sumOf(rollouts []*tidelock.Rollout, id tidelock.DeploymentID) (tidelock.DeploymentState, time.Time) {
	count := map[tidelock.RolloutState]int{}
	total, started := 0, false
	var finished time.Time
	for _, r := range rollouts {
		if r.Deployment != id {
			continue
		}
		total++
		count[r.State]++
		started = started || r.State.Done() || !r.RunningAt.IsZero()
		if r.FinishedAt.After(finished) {
			finished = r.FinishedAt
		}
	}
	switch done := count[tidelock.RolloutSuccess] + count[tidelock.RolloutFailed] + count[tidelock.RolloutSuperseded]; {
	case done < total && !started && count[tidelock.RolloutRunning] == 0:
		return tidelock.DeploymentCreated, time.Time{}
	case done < total:
		return tidelock.DeploymentRunning, time.Time{}
	case count[tidelock.RolloutFailed] > 0:
		return tidelock.DeploymentFailed, finished
	case count[tidelock.RolloutSuperseded] > 0 || total == 0:
		return tidelock.DeploymentCanceled, finished
	}
	return tidelock.DeploymentSuccess, finished
}
