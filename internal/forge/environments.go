package forge

import (
	"context"
	"crypto/rand"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"tidelock.dev"
)

// environmentStore is what the rules remember of environments and of what is
// deployed to them.
type environmentStore interface {
	// CreateEnvironment refuses a name or slug that the project has already.
	// Unlike others, these names are compared letter by letter.
	CreateEnvironment(context.Context, tidelock.Environment) (tidelock.Environment, error)
	// SaveEnvironment writes everything but the name, the slug and creation.
	SaveEnvironment(context.Context, tidelock.Environment) error
	Environment(context.Context, tidelock.EnvironmentID) (tidelock.Environment, error)
	EnvironmentByName(ctx context.Context, project tidelock.ProjectID, name string) (tidelock.Environment, error)
	Environments(context.Context, tidelock.EnvironmentFilter, tidelock.Page) ([]tidelock.Environment, int, error)
	// DeleteEnvironment removes an environment and its deployments.
	DeleteEnvironment(context.Context, tidelock.EnvironmentID) error

	// CreateDeployment gives the deployment the next number in its project; a
	// number is never used again. It and SaveDeployment leave word for hooks
	// when the state changes, from DeploymentCreated to begin with.
	CreateDeployment(context.Context, tidelock.Deployment) (tidelock.Deployment, error)
	// SaveDeployment writes the state and the times.
	SaveDeployment(context.Context, tidelock.Deployment) error
	Deployment(context.Context, tidelock.DeploymentID) (tidelock.Deployment, error)
	Deployments(context.Context, tidelock.DeploymentFilter, tidelock.Page) ([]tidelock.Deployment, int, error)
	// LastDeployments lists the successful deployment of each of the
	// environments that finished last, in their order.
	LastDeployments(context.Context, ...tidelock.EnvironmentID) ([]tidelock.Deployment, error)
	DeleteDeployment(context.Context, tidelock.DeploymentID) error
}

const (
	maxEnvironmentName = 255
	maxDescription     = 10_000
	maxNamespace       = 63
	maxFluxPath        = 255
)

var (
	environmentPattern = regexp.MustCompile(`^[a-zA-Z0-9_\\$\{\}\. -]([a-zA-Z0-9_/\\$\{\}\. -]*[a-zA-Z0-9_\\$\{\}\. -])?$`)
	namespacePattern   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)
	fluxPathPattern    = regexp.MustCompile(`^[a-zA-Z0-9_-][a-zA-Z0-9_.-]*(/[a-zA-Z0-9_-][a-zA-Z0-9_.-]*)+$`)
)

// EnvironmentEdit is what is said of an environment; nil fields stay.
type EnvironmentEdit struct {
	Description         *string
	ExternalURL         *string
	Tier                *tidelock.Tier
	Agent               *tidelock.AgentID // 0 takes the agent away, and what depends on it
	KubernetesNamespace *string           // needs an agent
	FluxResourcePath    *string           // needs a namespace
}

// apply changes an environment. Taking away what another field needs takes
// that away too, unless it was given.
func (e EnvironmentEdit) apply(env *tidelock.Environment) {
	set(&env.Description, e.Description)
	set(&env.ExternalURL, e.ExternalURL)
	set(&env.Tier, e.Tier)
	set(&env.Agent, e.Agent)
	set(&env.KubernetesNamespace, e.KubernetesNamespace)
	set(&env.FluxResourcePath, e.FluxResourcePath)
	if env.Agent == 0 && e.KubernetesNamespace == nil {
		env.KubernetesNamespace = ""
	}
	if env.KubernetesNamespace == "" && e.FluxResourcePath == nil {
		env.FluxResourcePath = ""
	}
}

func checkEnvironment(e tidelock.Environment) error {
	switch {
	case e.Name == "":
		return tidelock.FieldErrorf(tidelock.Invalid, "name", "can't be blank")
	case len(e.Name) > maxEnvironmentName:
		return tooLong("name", maxEnvironmentName)
	case !environmentPattern.MatchString(e.Name):
		return tidelock.FieldErrorf(tidelock.Invalid, "name",
			"can contain only letters, digits, '-', '_', '/', '$', '{', '}', '.', and spaces, but it cannot start or end with '/'")
	case utf8.RuneCountInString(e.Description) > maxDescription:
		return tooLong("description", maxDescription)
	}
	if err := checkWebURL("external_url", e.ExternalURL); err != nil {
		return err
	}
	switch e.Tier {
	case tidelock.TierProduction, tidelock.TierStaging, tidelock.TierTesting, tidelock.TierDevelopment, tidelock.TierOther:
	default:
		return tidelock.FieldErrorf(tidelock.Invalid, "tier", "does not have a valid value")
	}
	switch ns, path := e.KubernetesNamespace, e.FluxResourcePath; {
	case ns != "" && e.Agent == 0:
		return tidelock.FieldErrorf(tidelock.Invalid, "kubernetes_namespace", "cannot be set without a cluster agent")
	case len(ns) > maxNamespace:
		return tooLong("kubernetes_namespace", maxNamespace)
	case ns != "" && !namespacePattern.MatchString(ns):
		return tidelock.FieldErrorf(tidelock.Invalid, "kubernetes_namespace",
			"can contain only lowercase letters, digits, and '-'. Must start with a letter or digit, and cannot end with '-'")
	case path != "" && ns == "":
		return tidelock.FieldErrorf(tidelock.Invalid, "flux_resource_path", "cannot be set without a kubernetes namespace")
	case len(path) > maxFluxPath:
		return tooLong("flux_resource_path", maxFluxPath)
	case path != "" && !fluxPathPattern.MatchString(path):
		return tidelock.FieldErrorf(tidelock.Invalid, "flux_resource_path",
			"must look like kustomize.toolkit.fluxcd.io/v1/namespaces/flux-system/kustomizations/apps")
	}
	return nil
}

// tierWords are what GitLab looks for in a name to guess its tier, in this
// order.
var tierWords = []struct {
	tier  tidelock.Tier
	words *regexp.Regexp
}{
	{tidelock.TierDevelopment, regexp.MustCompile(`(?i)dev|review|trunk`)},
	{tidelock.TierTesting, regexp.MustCompile(`(?i)test|tst|int|ac(ce|)pt|qa|qc|control|quality`)},
	{tidelock.TierStaging, regexp.MustCompile(`(?i)st(a|)g|mod(e|)l|pre|demo|non`)},
	{tidelock.TierProduction, regexp.MustCompile(`(?i)pr(o|)d|live`)},
}

func guessTier(name string) tidelock.Tier {
	for _, t := range tierWords {
		if t.words.MatchString(name) {
			return t.tier
		}
	}
	return tidelock.TierOther
}

const maxSlug = 24

// slugOf makes a DNS label of an environment's name, by GitLab's rule: a name
// that had to be changed gets a random end, so that slugs stay apart.
func slugOf(name string) string {
	var b strings.Builder
	for i, c := range []byte(strings.ToLower(name)) {
		letter := c >= 'a' && c <= 'z'
		if i == 0 && !letter {
			b.WriteString("env-")
		}
		switch text := b.String(); {
		case letter, c >= '0' && c <= '9':
			b.WriteByte(c)
		case !strings.HasSuffix(text, "-"):
			b.WriteByte('-')
		}
	}
	slug := strings.TrimSuffix(b.String()[:min(b.Len(), maxSlug)], "-")
	if slug == name {
		return slug
	}
	const end = 6
	slug = slug[:min(len(slug), maxSlug-end-1)]
	if !strings.HasSuffix(slug, "-") {
		slug += "-"
	}
	return slug + strings.ToLower(rand.Text()[:end])
}

func errNoEnvironment() error {
	return tidelock.Errorf(tidelock.NotFound, "Environment Not Found")
}

// Environments lists a project's environments.
func (f *Forge) Environments(ctx context.Context, p Principal, project tidelock.Project, filter tidelock.EnvironmentFilter, page tidelock.Page) ([]tidelock.Environment, int, error) {
	if err := f.Allow(ctx, p, ReadEnvironments, OnProject(project)); err != nil {
		return nil, 0, err
	}
	filter.Project = project.ID
	return f.store.Environments(ctx, filter, page)
}

// Environment reads one environment of a project.
func (f *Forge) Environment(ctx context.Context, p Principal, project tidelock.Project, id tidelock.EnvironmentID) (tidelock.Environment, error) {
	if err := f.Allow(ctx, p, ReadEnvironments, OnProject(project)); err != nil {
		return tidelock.Environment{}, err
	}
	return f.environment(ctx, project, id)
}

func (f *Forge) environment(ctx context.Context, project tidelock.Project, id tidelock.EnvironmentID) (tidelock.Environment, error) {
	env, err := f.store.Environment(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && env.Project != project.ID) {
		err = errNoEnvironment()
	}
	if err != nil {
		return tidelock.Environment{}, err
	}
	return env, nil
}

// CreateEnvironment makes an environment. Without a tier it gets the one that
// its name suggests.
func (f *Forge) CreateEnvironment(ctx context.Context, p Principal, project tidelock.Project, name string, e EnvironmentEdit) (tidelock.Environment, error) {
	if err := f.Allow(ctx, p, ManageEnvironments, OnProject(project)); err != nil {
		return tidelock.Environment{}, err
	}
	env := f.newEnvironment(project, name)
	e.apply(&env)
	if err := checkEnvironment(env); err != nil {
		return tidelock.Environment{}, err
	}
	if err := f.mayUseAgent(ctx, p, project, env.Agent); err != nil {
		return tidelock.Environment{}, err
	}
	env, err := f.store.CreateEnvironment(ctx, env)
	if err != nil {
		return tidelock.Environment{}, err
	}
	f.environmentChanged(ctx, p, "environment created", env)
	return env, nil
}

func (f *Forge) newEnvironment(project tidelock.Project, name string) tidelock.Environment {
	now := f.now().UTC()
	return tidelock.Environment{
		Project: project.ID, Name: name, Slug: slugOf(name), Tier: guessTier(name),
		State: tidelock.EnvironmentAvailable, CreatedAt: now, UpdatedAt: now,
	}
}

// environmentChanged logs a change of an environment, and tells of it.
func (f *Forge) environmentChanged(ctx context.Context, p Principal, what string, env tidelock.Environment) {
	by, _ := p.ids()
	f.log.InfoContext(ctx, what, "project", env.Project, "environment", env.ID, "name", env.Name, "by", by)
	publish(f, tidelock.DeploymentChanged{Project: env.Project})
}

// mayUseAgent refuses an agent that is neither of the project, nor granted to
// it, nor one that the caller may read where it belongs.
func (f *Forge) mayUseAgent(ctx context.Context, p Principal, project tidelock.Project, id tidelock.AgentID) error {
	if id == 0 {
		return nil
	}
	refused := tidelock.Errorf(tidelock.Invalid, "cluster agent doesn't exist or cannot be associated with this environment")
	agent, err := f.store.Agent(ctx, id)
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
		return refused
	case err != nil:
		return fmt.Errorf("read agent %d: %w", id, err)
	case agent.Project == project.ID:
		return nil
	}
	granted, err := f.store.Granted(ctx, id, project.ID)
	if err != nil {
		return fmt.Errorf("read whether agent %d was granted project %d: %w", id, project.ID, err)
	}
	if granted {
		return nil
	}
	_, seen, err := f.agentSeen(ctx, p, agent)
	if err == nil && !seen {
		err = refused
	}
	return err
}

// agentSeen reads the configuration project of an agent; false when the caller
// may not read its agents.
func (f *Forge) agentSeen(ctx context.Context, p Principal, agent tidelock.Agent) (tidelock.Project, bool, error) {
	project, err := f.store.Project(ctx, agent.Project)
	if err == nil {
		err = f.Allow(ctx, p, ReadAgents, OnProject(project))
	}
	if unseen(err) {
		return tidelock.Project{}, false, nil
	}
	return project, err == nil, err
}

// AgentOf reads the agent of an environment and its configuration project;
// false when there is none, or when the caller may not see it.
func (f *Forge) AgentOf(ctx context.Context, p Principal, env tidelock.Environment) (tidelock.Agent, tidelock.Project, bool, error) {
	if env.Agent == 0 {
		return tidelock.Agent{}, tidelock.Project{}, false, nil
	}
	agent, err := f.store.Agent(ctx, env.Agent)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Agent{}, tidelock.Project{}, false, nil
	}
	if err != nil {
		return tidelock.Agent{}, tidelock.Project{}, false, fmt.Errorf("read agent %d: %w", env.Agent, err)
	}
	project, seen, err := f.agentSeen(ctx, p, agent)
	return agent, project, seen, err
}

// EditEnvironment changes an environment; its name stays.
func (f *Forge) EditEnvironment(ctx context.Context, p Principal, project tidelock.Project, id tidelock.EnvironmentID, e EnvironmentEdit) (tidelock.Environment, error) {
	return f.changeEnvironment(ctx, p, project, id, "environment changed", func(ctx context.Context, env *tidelock.Environment) error {
		before := env.Agent
		e.apply(env)
		if err := checkEnvironment(*env); err != nil {
			return err
		}
		if env.Agent == before {
			return nil
		}
		return f.mayUseAgent(ctx, p, project, env.Agent)
	})
}

// StopEnvironment says that nothing is deployed to an environment any more. It
// may be said twice.
func (f *Forge) StopEnvironment(ctx context.Context, p Principal, project tidelock.Project, id tidelock.EnvironmentID) (tidelock.Environment, error) {
	return f.changeEnvironment(ctx, p, project, id, "environment stopped", func(_ context.Context, env *tidelock.Environment) error {
		env.State = tidelock.EnvironmentStopped
		return nil
	})
}

// changeEnvironment reads, changes and writes an environment while nobody else
// does.
func (f *Forge) changeEnvironment(ctx context.Context, p Principal, project tidelock.Project, id tidelock.EnvironmentID, what string, change func(context.Context, *tidelock.Environment) error) (tidelock.Environment, error) {
	if err := f.Allow(ctx, p, ManageEnvironments, OnProject(project)); err != nil {
		return tidelock.Environment{}, err
	}
	var env tidelock.Environment
	err := f.store.Atomically(ctx, func(ctx context.Context) (err error) {
		if err := f.store.LockProject(ctx, project.ID); err != nil {
			return err
		}
		if env, err = f.environment(ctx, project, id); err != nil {
			return err
		}
		if err := change(ctx, &env); err != nil {
			return err
		}
		env.UpdatedAt = f.now().UTC()
		return f.store.SaveEnvironment(ctx, env)
	})
	if err != nil {
		return tidelock.Environment{}, err
	}
	f.environmentChanged(ctx, p, what, env)
	return env, nil
}

// DeleteEnvironment removes a stopped environment and its deployments.
func (f *Forge) DeleteEnvironment(ctx context.Context, p Principal, project tidelock.Project, id tidelock.EnvironmentID) error {
	if err := f.Allow(ctx, p, ManageEnvironments, OnProject(project)); err != nil {
		return err
	}
	var env tidelock.Environment
	err := f.store.Atomically(ctx, func(ctx context.Context) (err error) {
		if err := f.store.LockProject(ctx, project.ID); err != nil {
			return err
		}
		if env, err = f.environment(ctx, project, id); err != nil {
			return err
		}
		if env.State != tidelock.EnvironmentStopped {
			return tidelock.Errorf(tidelock.Denied, "environment %q must be stopped before it is deleted", env.Name)
		}
		return f.store.DeleteEnvironment(ctx, id)
	})
	if err != nil {
		return err
	}
	f.environmentChanged(ctx, p, "environment deleted", env)
	return nil
}
