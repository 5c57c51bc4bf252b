package forge_test

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func (w *world) environment(project tidelock.Project, name string) tidelock.Environment {
	w.t.Helper()
	e, err := w.CreateEnvironment(w.t.Context(), w.root, project, name, forge.EnvironmentEdit{})
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

func (w *world) deploy(project tidelock.Project, env string, commit tidelock.CommitID, state tidelock.DeploymentState) tidelock.Deployment {
	w.t.Helper()
	d, err := w.Deploy(w.t.Context(), w.root, project, forge.NewDeployment{Environment: env, Commit: string(commit), Ref: "main", State: state})
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func TestEnvironmentNames(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	for _, tt := range []struct {
		name string
		slug string // a pattern; "" for a name that is refused
		tier tidelock.Tier
	}{
		{"production", "production", tidelock.TierProduction},
		{"live", "live", tidelock.TierProduction},
		{"Production", "production-[a-z0-9]{6}", tidelock.TierProduction},
		{"review/login", "review-login-[a-z0-9]{6}", tidelock.TierDevelopment},
		{"stage", "stage", tidelock.TierStaging},
		{"staging", "staging", tidelock.TierStaging},
		{"stg", "stg", tidelock.TierStaging},
		{"pre-prod", "pre-prod", tidelock.TierStaging},
		{"qa", "qa", tidelock.TierTesting},
		{"dev-qa", "dev-qa", tidelock.TierDevelopment},
		{"eu", "eu", tidelock.TierOther},
		{"1", "env-1-[a-z0-9]{6}", tidelock.TierOther},
		{"$x{y}.z  9", "env-x-y-z-9-[a-z0-9]{6}", tidelock.TierOther},
		{"a-very-long-name-of-an-environment", "a-very-long-name--?[a-z0-9]{6}", tidelock.TierOther},
		{"", "", ""},
		{"/a", "", ""},
		{"a/", "", ""},
		{"a\nb", "", ""},
		{"a?b", "", ""},
		{"ä", "", ""},
		{strings.Repeat("a", 256), "", ""},
	} {
		e, err := w.CreateEnvironment(t.Context(), w.root, project, tt.name, forge.EnvironmentEdit{})
		if tt.slug == "" {
			if e, ok := errors.AsType[*tidelock.Error](err); !ok || e.Field != "name" {
				t.Errorf("environment %.20q: got %v, want an error of name", tt.name, err)
			}
			continue
		}
		if err != nil || !regexp.MustCompile("^"+tt.slug+"$").MatchString(e.Slug) || len(e.Slug) > 24 || e.Tier != tt.tier || e.State != tidelock.EnvironmentAvailable {
			t.Errorf("environment %q: got slug %q, tier %s, %v; want %s, %s", tt.name, e.Slug, e.Tier, err, tt.slug, tt.tier)
		}
	}
}

func TestEnvironmentFields(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	agent, err := w.CreateAgent(t.Context(), w.root, project, "prod")
	if err != nil {
		t.Fatal(err)
	}
	const flux = "kustomize.toolkit.fluxcd.io/v1/namespaces/flux-system/kustomizations/apps"
	for _, tt := range []struct {
		name  string
		edit  forge.EnvironmentEdit
		field string // at fault; "" for none
	}{
		{"all", forge.EnvironmentEdit{Agent: &agent.ID, KubernetesNamespace: ptr("apps"), FluxResourcePath: ptr(flux)}, ""},
		{"short path", forge.EnvironmentEdit{Agent: &agent.ID, KubernetesNamespace: ptr("apps"), FluxResourcePath: ptr("HelmRelease/apps")}, ""},
		{"no agent", forge.EnvironmentEdit{KubernetesNamespace: ptr("apps")}, "kubernetes_namespace"},
		{"bad namespace", forge.EnvironmentEdit{Agent: &agent.ID, KubernetesNamespace: ptr("Apps")}, "kubernetes_namespace"},
		{"long namespace", forge.EnvironmentEdit{Agent: &agent.ID, KubernetesNamespace: ptr(strings.Repeat("a", 64))}, "kubernetes_namespace"},
		{"no namespace", forge.EnvironmentEdit{Agent: &agent.ID, FluxResourcePath: ptr(flux)}, "flux_resource_path"},
		{"path that climbs", forge.EnvironmentEdit{Agent: &agent.ID, KubernetesNamespace: ptr("apps"), FluxResourcePath: ptr("a/../../b")}, "flux_resource_path"},
		{"path with a query", forge.EnvironmentEdit{Agent: &agent.ID, KubernetesNamespace: ptr("apps"), FluxResourcePath: ptr("a/b?x=1")}, "flux_resource_path"},
		{"script", forge.EnvironmentEdit{ExternalURL: ptr("javascript:alert(1)")}, "external_url"},
		{"long text", forge.EnvironmentEdit{Description: ptr(strings.Repeat("a", 10_001))}, "description"},
		{"bad tier", forge.EnvironmentEdit{Tier: ptr(tidelock.Tier("gold"))}, "tier"},
	} {
		_, err := w.CreateEnvironment(t.Context(), w.root, project, tt.name, tt.edit)
		field := ""
		if e, ok := errors.AsType[*tidelock.Error](err); ok {
			field = e.Field
		}
		if (err == nil) != (tt.field == "") || field != tt.field {
			t.Errorf("%s: got %v, want a fault of %q", tt.name, err, tt.field)
		}
	}

	full, _, err := w.Environments(t.Context(), w.root, project, tidelock.EnvironmentFilter{Name: "all"}, tidelock.Page{})
	if err != nil || len(full) != 1 {
		t.Fatal(full, err)
	}
	got, err := w.EditEnvironment(t.Context(), w.root, project, full[0].ID, forge.EnvironmentEdit{Agent: ptr(tidelock.AgentID(0))})
	if err != nil || got.Agent != 0 || got.KubernetesNamespace != "" || got.FluxResourcePath != "" {
		t.Errorf("without its agent the environment is %+v, %v", got, err)
	}
	_, err = w.EditEnvironment(t.Context(), w.root, project, full[0].ID, forge.EnvironmentEdit{KubernetesNamespace: ptr("apps")})
	if e, ok := errors.AsType[*tidelock.Error](err); !ok || e.Field != "kubernetes_namespace" {
		t.Errorf("a namespace without agent: %v", err)
	}
}

// An environment may name an agent of its project, one that was granted it, or
// one that who asks may read; others are as good as missing.
func TestEnvironmentAgent(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	private := w.project(w.group("ops", tidelock.Private), "agents", tidelock.Private)
	agents := map[string]tidelock.AgentID{"missing": 4711}
	for name, of := range map[string]tidelock.Project{"own": project, "foreign": private, "granted": private} {
		agent, err := w.CreateAgent(t.Context(), w.root, of, name)
		if err != nil {
			t.Fatal(err)
		}
		agents[name] = agent.ID
	}
	if _, err := w.GrantAgent(t.Context(), w.root, project, agents["granted"]); err != nil {
		t.Fatal(err)
	}
	insider, outsider := w.user("insider"), w.user("outsider")
	for _, u := range []tidelock.User{insider, outsider} {
		w.member(forge.OnProject(project), u, tidelock.Developer)
	}
	w.member(forge.OnProject(private), insider, tidelock.Developer)
	for _, tt := range []struct {
		by          tidelock.User
		agent       string
		may, showed bool
	}{
		{outsider, "own", true, true},
		{outsider, "granted", true, false},
		{outsider, "foreign", false, false},
		{outsider, "missing", false, false},
		{insider, "foreign", true, true},
		{insider, "missing", false, false},
	} {
		name := tt.by.Username + " " + tt.agent
		env, err := w.CreateEnvironment(t.Context(), as(tt.by), project, name, forge.EnvironmentEdit{Agent: ptr(agents[tt.agent])})
		if (err == nil) != tt.may {
			t.Errorf("%s: got %v, may %t", name, err, tt.may)
		}
		if err != nil {
			if want := "cluster agent doesn't exist or cannot be associated with this environment"; err.Error() != want {
				t.Errorf("%s: got %q, want %q: it must not tell whether the agent exists", name, err, want)
			}
			continue
		}
		if _, _, seen, err := w.AgentOf(t.Context(), as(tt.by), env); err != nil || seen != tt.showed {
			t.Errorf("%s: the agent is shown: %t, %v; want %t", name, seen, err, tt.showed)
		}
	}
}

func TestEnvironmentStopsAndStarts(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	env := w.environment(project, "prod")
	if err := w.DeleteEnvironment(t.Context(), w.root, project, env.ID); tidelock.KindOf(err) != tidelock.Denied {
		t.Errorf("deleting an environment that is available: %v", err)
	}
	for range 2 {
		if got, err := w.StopEnvironment(t.Context(), w.root, project, env.ID); err != nil || got.State != tidelock.EnvironmentStopped {
			t.Errorf("stop: %+v, %v", got, err)
		}
	}
	w.deploy(project, "prod", commit, tidelock.DeploymentFailed)
	if got, _ := w.Environment(t.Context(), w.root, project, env.ID); got.State != tidelock.EnvironmentStopped {
		t.Errorf("after a deployment that failed it is %s", got.State)
	}
	w.deploy(project, "prod", commit, tidelock.DeploymentSuccess)
	if got, _ := w.Environment(t.Context(), w.root, project, env.ID); got.State != tidelock.EnvironmentAvailable {
		t.Errorf("after a deployment it is %s", got.State)
	}
	shop := w.project(w.group("other", tidelock.Private), "shop", tidelock.Private)
	for what, err := range map[string]error{
		"read":   second(w.Environment(t.Context(), w.root, shop, env.ID)),
		"edit":   second(w.EditEnvironment(t.Context(), w.root, shop, env.ID, forge.EnvironmentEdit{})),
		"stop":   second(w.StopEnvironment(t.Context(), w.root, shop, env.ID)),
		"delete": w.DeleteEnvironment(t.Context(), w.root, shop, env.ID),
	} {
		if tidelock.KindOf(err) != tidelock.NotFound {
			t.Errorf("%s across projects: %v, want not found", what, err)
		}
	}
}

// deploymentTable is GitLab's: the state before (left), the one asked for
// (top); y, or the event that is refused.
const deploymentTable = `
before   | running | success | failed | canceled
running  | run     | y       | y      | y
success  | run     | succeed | y      | y
failed   | run     | y       | drop   | y
canceled | run     | y       | y      | cancel
`

func TestDeploymentMachine(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	lines := strings.Split(strings.TrimSpace(deploymentTable), "\n")
	states := strings.Split(lines[0], "|")[1:]
	for _, line := range lines[1:] {
		row := strings.Split(line, "|")
		for i, cell := range row[1:] {
			before, asked, want := tidelock.DeploymentState(strings.TrimSpace(row[0])), tidelock.DeploymentState(strings.TrimSpace(states[i])), strings.TrimSpace(cell)
			d := w.deploy(project, "prod", commit, before)
			w.clock = w.clock.Add(time.Minute)
			got, err := w.SetDeploymentState(t.Context(), w.root, project, d.ID, asked)
			if want == "y" {
				if err != nil || got.State != asked || !got.FinishedAt.Equal(w.clock) {
					t.Errorf("from %s to %s: got %+v, %v", before, asked, got, err)
				}
				continue
			}
			if want := `status cannot transition via "` + want + `"`; err == nil || err.Error() != want {
				t.Errorf("from %s to %s: got %v, want %q", before, asked, err, want)
			}
		}
	}
}

func TestDeploymentNeedsItsCommit(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := string(w.pushed(project, "refs/heads/main", "first"))
	for field, n := range map[string]forge.NewDeployment{
		"sha":    {Environment: "a", Commit: strings.Repeat("0", 40), Ref: "main", State: tidelock.DeploymentSuccess},
		"ref":    {Environment: "a", Commit: commit, Ref: "main", Tag: true, State: tidelock.DeploymentSuccess},
		"status": {Environment: "a", Commit: commit, Ref: "main", State: tidelock.DeploymentCreated},
		"name":   {Environment: "a?", Commit: commit, Ref: "main", State: tidelock.DeploymentSuccess},
	} {
		_, err := w.Deploy(t.Context(), w.root, project, n)
		if e, ok := errors.AsType[*tidelock.Error](err); !ok || e.Field != field {
			t.Errorf("bad %s: %v", field, err)
		}
	}
	if all, _, _ := w.Environments(t.Context(), w.root, project, tidelock.EnvironmentFilter{}, tidelock.Page{}); len(all) != 0 {
		t.Errorf("deployments that were refused made the environments %+v", all)
	}
}

func TestDeleteDeployment(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	old := w.deploy(project, "prod", commit, tidelock.DeploymentSuccess)
	now := w.deploy(project, "prod", commit, tidelock.DeploymentSuccess)
	runs := w.deploy(project, "prod", commit, tidelock.DeploymentRunning)
	for id, want := range map[tidelock.DeploymentID]string{
		runs.ID: "Cannot destroy running deployment",
		now.ID:  "Deployment currently deployed to environment",
		4711:    "Deployment Not Found",
	} {
		if err := w.DeleteDeployment(t.Context(), w.root, project, id); err == nil || err.Error() != want {
			t.Errorf("deleting %d: got %v, want %q", id, err, want)
		}
	}
	if err := w.DeleteDeployment(t.Context(), w.root, project, old.ID); err != nil {
		t.Error(err)
	}
	left, _, err := w.Deployments(t.Context(), w.root, project, tidelock.DeploymentFilter{}, tidelock.Page{})
	if err != nil || !slices.EqualFunc(left, []int64{2, 3}, func(d tidelock.Deployment, iid int64) bool { return d.IID == iid }) {
		t.Errorf("left are %+v, %v", left, err)
	}
}
