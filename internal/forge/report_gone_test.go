package forge_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
)

// What people delete or stop is made again by the next news, and by nothing
// else.
func TestReportAfterDeletions(t *testing.T) {
	w := newReported(t)
	ctx := t.Context()
	report := func(state tidelock.RolloutState) {
		t.Helper()
		w.clock = w.clock.Add(time.Second)
		w.report(tidelock.Rollout{State: state, RunningAt: w.clock, FinishedAt: w.clock})
	}
	env := func() tidelock.Environment {
		t.Helper()
		env, err := w.store.EnvironmentByName(ctx, w.project.ID, "prod/flux-system")
		if err != nil {
			t.Fatal(err)
		}
		return env
	}
	report(tidelock.RolloutFailed)
	if err := w.DeletePipeline(ctx, w.root, w.project, w.pipelineOf(w.project, w.commits[0]).ID); err != nil {
		t.Fatal(err)
	}
	if err := w.DeleteDeployment(ctx, w.root, w.project, w.deployments()[0].ID); err != nil {
		t.Fatal(err)
	}
	w.report()
	if got := w.names(w.commits[0]); got != "" || len(w.deployments()) != 0 {
		t.Errorf("without news, the jobs are %s and the deployments %+v", got, w.deployments())
	}
	report(tidelock.RolloutSuccess)
	if got := w.names(w.commits[0]); got != "flux/prod/flux-system/shop=success" || len(w.deployments()) != 1 {
		t.Errorf("the jobs are %s and the deployments %+v", got, w.deployments())
	}

	if _, err := w.StopEnvironment(ctx, w.root, w.project, env().ID); err != nil {
		t.Fatal(err)
	}
	report(tidelock.RolloutSuccess)
	if got := env().State; got != tidelock.EnvironmentStopped {
		t.Errorf("old news made the environment %s", got)
	}
	report(tidelock.RolloutFailed)
	report(tidelock.RolloutSuccess)
	if got := env().State; got != tidelock.EnvironmentAvailable {
		t.Errorf("after a success the environment is %s", got)
	}
	if _, err := w.StopEnvironment(ctx, w.root, w.project, env().ID); err != nil {
		t.Fatal(err)
	}
	if err := w.DeleteEnvironment(ctx, w.root, w.project, env().ID); err != nil {
		t.Fatal(err)
	}
	report(tidelock.RolloutFailed)
	if len(w.deployments()) != 1 || env().State != tidelock.EnvironmentAvailable {
		t.Errorf("after the environment was deleted, the deployments are %+v", w.deployments())
	}
}

func (w *reported) agentProject(agent tidelock.Agent) tidelock.Project {
	w.t.Helper()
	project, err := w.store.Project(w.t.Context(), agent.Project)
	if err != nil {
		w.t.Fatal(err)
	}
	return project
}

// Nobody would move the jobs of an agent on that is gone.
func TestReportOfDeletedAgents(t *testing.T) {
	for _, row := range []struct {
		name   string
		remove func(*reported) error
	}{
		{"the agent", func(w *reported) error {
			return w.DeleteAgent(w.t.Context(), w.root, w.agentProject(w.agent), w.agent.ID)
		}},
		{"its project", func(w *reported) error {
			return w.DeleteProject(w.t.Context(), w.root, w.agentProject(w.agent).FullPath)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := newReported(t)
			other := w.newAgent("others", "stage", true)
			open := tidelock.Rollout{State: tidelock.RolloutRunning, RunningAt: w.clock}
			done := tidelock.Rollout{Applier: "Kustomization/apps/done", State: tidelock.RolloutSuccess, FinishedAt: w.clock}
			kept := open
			kept.Agent = other.ID
			w.report(open, done, kept)
			if err := row.remove(w); err != nil {
				t.Fatal(err)
			}
			want := "flux/prod/apps/done=success; flux/prod/flux-system/shop=canceled; flux/stage/flux-system/shop=running"
			if got := w.names(w.commits[0]); got != want {
				t.Errorf("the jobs are %s, want %s", got, want)
			}
			var states []string
			for _, d := range w.deployments() {
				states = append(states, string(d.State))
			}
			slices.Sort(states)
			if got := strings.Join(states, " "); got != "canceled running success" {
				t.Errorf("the deployments are %s", got)
			}
		})
	}
}

func TestReportOfArchivedProject(t *testing.T) {
	w := newReported(t)
	ctx := t.Context()
	w.save(tidelock.Rollout{State: tidelock.RolloutSuccess, FinishedAt: w.clock})
	archive := func(archived bool) {
		t.Helper()
		p := w.project
		p.Archived = archived
		if _, err := w.store.UpdateProject(ctx, p); err != nil {
			t.Fatal(err)
		}
		if err := w.ReportRollouts(ctx, w.project.ID); err != nil {
			t.Fatal(err)
		}
	}
	archive(true)
	if got := w.names(w.commits[0]); got != "" {
		t.Errorf("an archived project got the jobs %s", got)
	}
	archive(false)
	if got := w.names(w.commits[0]); got != "flux/prod/flux-system/shop=success" {
		t.Errorf("the jobs are %s", got)
	}
	if err := w.ReportRollouts(ctx, 4711); err != nil {
		t.Errorf("a project that is gone: %v", err)
	}
}
