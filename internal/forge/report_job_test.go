package forge_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func TestReportText(t *testing.T) {
	w := newReported(t)
	for text, want := range map[string]string{
		strings.Repeat("ä", 300):               strings.Repeat("ä", 254) + "…",
		strings.Repeat("x", 255):               strings.Repeat("x", 255),
		"<script>alert(1)</script>":            "<script>alert(1)</script>",
		"a\x00b\u202egnp.exe\r\n\r\n   c":      "a�bgnp.exe c",
		strings.Repeat("long \x1b[31m", 1<<17): strings.TrimSpace(strings.Repeat("long ", 51))[:254] + "…",
		"\xff\xfe not text":                    "� not text",
		"":                                     "failed",
	} {
		w.clock = w.clock.Add(time.Second)
		w.report(tidelock.Rollout{State: tidelock.RolloutFailed, FinishedAt: w.clock, Message: text})
		got := w.jobs(w.commits[0])[0].Description
		if got != want || utf8.RuneCountInString(got) > 255 {
			t.Errorf("%.40q: got %q, want %q", text, got, want)
		}
	}
}

// Jobs of one commit have names of their own, and keep them.
func TestReportNames(t *testing.T) {
	w := newReported(t)
	other := w.newAgent("more-agents", "prod", true)
	long := tidelock.ObjectID("Kustomization/flux-system/" + strings.Repeat("a", 250))
	longer := long[:len(long)-1] + "b"
	running := func(agent tidelock.AgentID, applier tidelock.ObjectID) tidelock.Rollout {
		return tidelock.Rollout{Agent: agent, Applier: applier, State: tidelock.RolloutRunning, RunningAt: w.clock}
	}
	w.report(
		running(other.ID, "HelmRelease/apps/shop"), running(w.agent.ID, "HelmRelease/apps/shop"),
		running(w.agent.ID, "Kustomization/apps/shop"), running(other.ID, "Kustomization/apps/shop"),
		running(w.agent.ID, long), running(w.agent.ID, longer),
	)
	want := fmt.Sprintf("flux/prod/apps/shop (HelmRelease)=running; flux/prod/apps/shop (HelmRelease, agent %d)=running; "+
		"flux/prod/apps/shop (Kustomization)=running; flux/prod/apps/shop=running", other.ID)
	got := w.names(w.commits[0])
	if !strings.HasPrefix(got, want) {
		t.Errorf("the names are %s; want %s", got, want)
	}
	names := map[string]bool{}
	for _, j := range w.jobs(w.commits[0]) {
		if names[j.Name] || len(j.Name) > 255 || !utf8.ValidString(j.Name) {
			t.Errorf("the name %q is twice there, or of %d bytes", j.Name, len(j.Name))
		}
		names[j.Name] = true
	}
	w.clock = w.clock.Add(time.Second)
	w.report(running(w.agent.ID, "Kustomization/apps/shop"), running(other.ID, "HelmRelease/apps/shop"))
	if again := w.names(w.commits[0]); again != got {
		t.Errorf("the names went from %s to %s", got, again)
	}
}

// What somebody posts under the name of a job stands beside it.
func TestReportIsNotForged(t *testing.T) {
	w := newReported(t)
	failed := tidelock.Rollout{State: tidelock.RolloutFailed, FinishedAt: w.clock, Message: "no such kind"}
	own := w.report(tidelock.Rollout{State: tidelock.RolloutRunning, RunningAt: w.clock})[0].Status
	const name = "flux/prod/flux-system/shop"
	developer := w.user("mallory")
	w.member(forge.OnProject(w.project), developer, tidelock.Maintainer)
	forged := w.post(as(developer), w.project, w.commits[0], name, tidelock.StatusSuccess)
	canceled := w.post(as(developer), w.project, w.commits[0], name, tidelock.StatusCanceled)
	if forged.ID == own || canceled.ID == own {
		t.Fatal("a status that was posted took the place of the job")
	}
	if state := w.pipelineOf(w.project, w.commits[0]).State; state != tidelock.StatusRunning {
		t.Errorf("the pipeline is %s, though the job runs", state)
	}
	if err := w.AbandonOwnStatuses(t.Context(), w.project, tidelock.Head{Ref: "refs/heads/main", Commit: w.commits[1]}, "flux", "gone"); err != nil {
		t.Fatal(err)
	}
	if got := w.names(w.commits[0]); got != name+"=running" {
		t.Errorf("the job is %s", got)
	}
	w.clock = w.clock.Add(time.Second)
	w.report(failed)
	w.post(as(developer), w.project, w.commits[0], name, tidelock.StatusSuccess)
	if state := w.pipelineOf(w.project, w.commits[0]).State; state != tidelock.StatusFailed {
		t.Errorf("the pipeline is %s, though the job failed", state)
	}
	if jobs := w.jobs(w.commits[0]); len(jobs) != 1 || jobs[0].ID != own || !jobs[0].Latest {
		t.Errorf("the jobs are %+v, want number %d alone", jobs, own)
	}
	if _, err := w.SetDeploymentState(t.Context(), w.root, w.project, w.deployments()[0].ID, tidelock.DeploymentSuccess); tidelock.KindOf(err) != tidelock.Denied {
		t.Errorf("somebody set the state of a deployment that is reported: %v", err)
	}
}

// A job of a rollout that was forgotten is taken over by the next one of the
// same name.
func TestReportTakesOverAJob(t *testing.T) {
	w := newReported(t)
	w.report(tidelock.Rollout{State: tidelock.RolloutFailed, FinishedAt: w.clock})
	if err := w.DeleteAgent(t.Context(), w.root, w.agentProject(w.agent), w.agent.ID); err != nil {
		t.Fatal(err)
	}
	again, err := w.CreateAgent(t.Context(), w.root, w.agentProject(w.agent), "prod")
	if err == nil {
		_, err = w.GrantAgent(t.Context(), w.root, w.project, again.ID)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.report(tidelock.Rollout{Agent: again.ID, State: tidelock.RolloutSuccess, FinishedAt: w.clock})
	if got := w.names(w.commits[0]); got != "flux/prod/flux-system/shop=success" {
		t.Errorf("the jobs are %s", got)
	}
	if got, want := w.environments(), fmt.Sprintf("prod/flux-system %d flux-system ", again.ID); !strings.HasPrefix(got, want) {
		t.Errorf("the environments are %q, want %q", got, want)
	}
}

// Jobs of one commit under two refs stand in two pipelines; one that does not
// know its ref stands under one that has the commit.
func TestReportRefs(t *testing.T) {
	w := newReported(t)
	gone := tidelock.CommitID(strings.Repeat("a", 40))
	w.report(
		tidelock.Rollout{Applier: "Kustomization/apps/a", Ref: "refs/tags/v1", State: tidelock.RolloutSuccess, FinishedAt: w.clock},
		tidelock.Rollout{Applier: "Kustomization/apps/b", Ref: "refs/heads/old", State: tidelock.RolloutSuccess, FinishedAt: w.clock},
		tidelock.Rollout{Applier: "Kustomization/apps/c", Ref: "HEAD", Commit: w.commits[1], State: tidelock.RolloutSuccess, FinishedAt: w.clock},
		tidelock.Rollout{Applier: "Kustomization/apps/d", Ref: "HEAD", Commit: gone, State: tidelock.RolloutSuccess, FinishedAt: w.clock},
	)
	for _, commit := range []tidelock.CommitID{w.commits[0], w.commits[1], gone} {
		for _, j := range w.jobs(commit) {
			want := map[string]string{"a": "v1 true", "b": "old false", "c": "main false", "d": "main false"}[j.Name[len(j.Name)-1:]]
			if got := fmt.Sprint(j.Ref, " ", j.Tag); got != want {
				t.Errorf("%s stands under %s, want %s", j.Name, got, want)
			}
		}
	}
}

// A pipeline that is full is followed by another; jobs that are there are
// changed where they are.
func TestReportBeyondAPipeline(t *testing.T) {
	w := newReported(t)
	const many = 1005
	var rollouts []tidelock.Rollout
	for i := range many {
		r := tidelock.Rollout{
			Agent: w.agent.ID, Applier: tidelock.ObjectID(fmt.Sprintf("Kustomization/apps/%d", i)), Project: w.project.ID, Commit: w.commits[0],
			Ref: "refs/heads/main", Source: "GitRepository/flux-system/shop", State: tidelock.RolloutRunning, RunningAt: w.clock,
		}
		rollouts = append(rollouts, r)
	}
	for _, state := range []tidelock.RolloutState{tidelock.RolloutRunning, tidelock.RolloutSuccess} {
		w.clock = w.clock.Add(time.Second)
		for i := range rollouts {
			rollouts[i].State, rollouts[i].UpdatedAt = state, w.clock
			if state.Done() {
				rollouts[i].FinishedAt = w.clock
			}
		}
		if _, err := w.store.SaveRollouts(t.Context(), rollouts...); err != nil {
			t.Fatal(err)
		}
		w.report()
		pipelines, _, err := w.Pipelines(t.Context(), w.root, w.project, tidelock.PipelineFilter{Commit: w.commits[0]}, tidelock.Page{})
		if err != nil || len(pipelines) != 2 {
			t.Fatalf("the pipelines are %+v, %v; want two", pipelines, err)
		}
		for _, p := range pipelines {
			if string(p.State) != string(state) {
				t.Errorf("pipeline %d is %s, want %s", p.ID, p.State, state)
			}
		}
		if n := len(w.jobs(w.commits[0])); n != many {
			t.Errorf("there are %d jobs, want %d", n, many)
		}
	}
}
