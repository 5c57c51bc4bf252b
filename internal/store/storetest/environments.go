package storetest

import (
	"fmt"
	"time"

	"tidelock.dev"
)

func (w world) environment(project tidelock.ProjectID, name string) tidelock.Environment {
	w.Helper()
	e, err := w.CreateEnvironment(w.Context(), tidelock.Environment{
		Project: project, Name: name, Slug: "slug-of-" + name, State: tidelock.EnvironmentAvailable, Tier: tidelock.TierOther, CreatedAt: start, UpdatedAt: start,
	})
	w.ok(err)
	return e
}

func (w world) deployment(e tidelock.Environment, commit tidelock.CommitID, state tidelock.DeploymentState) tidelock.Deployment {
	w.Helper()
	d, err := w.CreateDeployment(w.Context(), tidelock.Deployment{
		Project: e.Project, Environment: e.ID, Ref: "main", Commit: commit, State: state, CreatedAt: start, UpdatedAt: start,
	})
	w.ok(err)
	return d
}

var environmentTests = []test{
	{"an environment is read as it was saved", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		want := tidelock.Environment{
			Project: site.ID, Name: "review/Ä 1", Slug: "review-1-abcdef", Description: "for you", ExternalURL: "https://site.example",
			State: tidelock.EnvironmentAvailable, Tier: tidelock.TierDevelopment, Agent: agent.ID,
			KubernetesNamespace: "apps", FluxResourcePath: "a/b", CreatedAt: start, UpdatedAt: start,
		}
		made, err := w.CreateEnvironment(w.Context(), want)
		w.ok(err)
		want.ID, want.CreatedAt, want.UpdatedAt = made.ID, at(0), at(0)
		equal(w, made, want)
		got, err := w.EnvironmentByName(w.Context(), site.ID, want.Name)
		w.ok(err)
		equal(w, got, want)

		want.Description, want.ExternalURL, want.State, want.Tier = "", "", tidelock.EnvironmentStopped, tidelock.TierProduction
		want.Agent, want.KubernetesNamespace, want.FluxResourcePath, want.UpdatedAt = 0, "", "", at(time.Hour)
		w.ok(w.SaveEnvironment(w.Context(), want))
		got, err = w.Environment(w.Context(), made.ID)
		w.ok(err)
		equal(w, got, want)

		want.Agent = 4711
		w.kind(w.SaveEnvironment(w.Context(), want), tidelock.NotFound)
		w.kind(w.SaveEnvironment(w.Context(), tidelock.Environment{ID: 4711}), tidelock.NotFound)
		_, err = w.EnvironmentByName(w.Context(), site.ID, "other")
		w.kind(err, tidelock.NotFound)
	}},
	{"names of environments are unique letter by letter", func(w world) {
		site := w.site()
		w.environment(site.ID, "prod")
		w.environment(site.ID, "Prod")
		w.environment(w.project(site.Namespace, "shop").ID, "prod")
		_, err := w.CreateEnvironment(w.Context(), tidelock.Environment{Project: site.ID, Name: "prod", Slug: "x"})
		w.taken(err, "name")
		_, err = w.CreateEnvironment(w.Context(), tidelock.Environment{Project: 4711, Name: "prod", Slug: "x"})
		w.kind(err, tidelock.NotFound)
		list := names(w, func(e tidelock.Environment) string { return e.Name })
		for filter, want := range map[tidelock.EnvironmentFilter]string{
			{}:                                     "prod Prod",
			{Name: "prod"}:                         "prod",
			{Search: "RO"}:                         "prod Prod",
			{Search: "%"}:                          "",
			{State: tidelock.EnvironmentStopped}:   "",
			{State: tidelock.EnvironmentAvailable}: "prod Prod",
		} {
			filter.Project = site.ID
			if got := list(w.Environments(w.Context(), filter, everything)); got != want {
				w.Errorf("environments %+v: got %q, want %q", filter, got, want)
			}
		}
		paged(w, 2, func(e tidelock.Environment) string { return e.Name }, func(p tidelock.Page) ([]tidelock.Environment, int, error) {
			return w.Environments(w.Context(), tidelock.EnvironmentFilter{Project: site.ID}, p)
		})
	}},
	{"an environment outlives its agent, but not its project", func(w world) {
		site := w.site()
		agent := w.agent(w.project(site.Namespace, "agents").ID, "prod")
		env := w.environment(site.ID, "prod")
		env.Agent = agent.ID
		w.ok(w.SaveEnvironment(w.Context(), env))
		w.environment(site.ID, "stage")
		of := tidelock.EnvironmentFilter{Project: site.ID, Agent: agent.ID}
		list := names(w, func(e tidelock.Environment) string { return e.Name })
		equal(w, list(w.Environments(w.Context(), of, everything)), "prod")
		w.ok(w.DeleteAgent(w.Context(), agent.ID))
		equal(w, list(w.Environments(w.Context(), of, everything)), "")
		got, err := w.Environment(w.Context(), env.ID)
		w.ok(err)
		equal(w, got.Agent, 0)
		w.deployment(env, "c1", tidelock.DeploymentSuccess)
		w.ok(w.DeleteProject(w.Context(), site.ID))
		_, err = w.Environment(w.Context(), env.ID)
		w.kind(err, tidelock.NotFound)
	}},
	{"a deployment is read as it was saved", func(w world) {
		env := w.environment(w.site().ID, "prod")
		want := tidelock.Deployment{
			Project: env.Project, Environment: env.ID, Ref: "v1", Tag: true, Commit: "c1", State: tidelock.DeploymentRunning, By: 3,
			CreatedAt: start, UpdatedAt: start,
		}
		made, err := w.CreateDeployment(w.Context(), want)
		w.ok(err)
		want.ID, want.IID, want.CreatedAt, want.UpdatedAt = made.ID, 1, at(0), at(0)
		equal(w, made, want)
		want.State, want.UpdatedAt, want.FinishedAt = tidelock.DeploymentSuccess, at(time.Hour), at(time.Hour)
		w.ok(w.SaveDeployment(w.Context(), want))
		got, err := w.Deployment(w.Context(), made.ID)
		w.ok(err)
		equal(w, got, want)

		w.ok(w.DeleteDeployment(w.Context(), made.ID))
		w.kind(w.DeleteDeployment(w.Context(), made.ID), tidelock.NotFound)
		w.kind(w.SaveDeployment(w.Context(), want), tidelock.NotFound)
		_, err = w.Deployment(w.Context(), made.ID)
		w.kind(err, tidelock.NotFound)
		equal(w, w.deployment(env, "c2", tidelock.DeploymentRunning).IID, 2)
		_, err = w.CreateDeployment(w.Context(), tidelock.Deployment{Project: env.Project, Environment: 4711})
		w.kind(err, tidelock.NotFound)
	}},
	{"deployments are filtered and ordered, and the last of each environment found", func(w world) {
		site := w.site()
		prod, stage, idle := w.environment(site.ID, "prod"), w.environment(site.ID, "stage"), w.environment(site.ID, "idle")
		w.deployment(prod, "c1", tidelock.DeploymentSuccess)
		two := w.deployment(prod, "c2", tidelock.DeploymentSuccess)
		w.deployment(prod, "c3", tidelock.DeploymentFailed)
		four := w.deployment(stage, "c3", tidelock.DeploymentSuccess)
		w.deployment(idle, "c3", tidelock.DeploymentRunning)
		two.UpdatedAt, two.FinishedAt = start.Add(time.Hour), start.Add(time.Hour)
		w.ok(w.SaveDeployment(w.Context(), two))
		w.deployment(w.environment(w.project(site.Namespace, "shop").ID, "prod"), "c1", tidelock.DeploymentSuccess)

		list := names(w, func(d tidelock.Deployment) string { return fmt.Sprint(d.IID) })
		for filter, want := range map[tidelock.DeploymentFilter]string{
			{}:                                         "1 2 3 4 5",
			{Descending: true}:                         "5 4 3 2 1",
			{Environment: "prod"}:                      "1 2 3",
			{EnvironmentID: stage.ID}:                  "4",
			{Environment: "other"}:                     "",
			{Commit: "c3"}:                             "3 4 5",
			{Commit: "c3", EnvironmentID: prod.ID}:     "3",
			{State: tidelock.DeploymentSuccess}:        "1 2 4",
			{UpdatedAfter: start.Add(time.Minute)}:     "2",
			{UpdatedBefore: start.Add(time.Minute)}:    "1 3 4 5",
			{FinishedAfter: start}:                     "2",
			{FinishedBefore: start.Add(2 * time.Hour)}: "2",
			{OrderBy: "updated_at"}:                    "1 3 4 5 2",
		} {
			filter.Project = site.ID
			if got := list(w.Deployments(w.Context(), filter, everything)); got != want {
				w.Errorf("deployments %+v: got %q, want %q", filter, got, want)
			}
		}
		_, _, err := w.Deployments(w.Context(), tidelock.DeploymentFilter{OrderBy: "x"}, everything)
		w.kind(err, tidelock.Invalid)

		last, err := w.LastDeployments(w.Context(), stage.ID, prod.ID, idle.ID)
		w.ok(err)
		equal(w, list(last, len(last), nil), fmt.Sprint(two.IID, four.IID))

		// A commit that came back finished last, though it was there first.
		back, _, err := w.Deployments(w.Context(), tidelock.DeploymentFilter{Project: site.ID, EnvironmentID: prod.ID, Commit: "c1"}, everything)
		w.ok(err)
		back[0].FinishedAt = start.Add(2 * time.Hour)
		w.ok(w.SaveDeployment(w.Context(), back[0]))
		last, err = w.LastDeployments(w.Context(), prod.ID)
		w.ok(err)
		equal(w, list(last, len(last), nil), fmt.Sprint(back[0].IID))
		last, err = w.LastDeployments(w.Context())
		w.ok(err)
		equal(w, len(last), 0)
		w.ok(w.DeleteEnvironment(w.Context(), prod.ID))
		w.kind(w.DeleteEnvironment(w.Context(), prod.ID), tidelock.NotFound)
		equal(w, list(w.Deployments(w.Context(), tidelock.DeploymentFilter{Project: site.ID}, everything)), "4 5")
	}},
}
