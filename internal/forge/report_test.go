package forge_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// reported is a world in which an agent follows a project that granted it.
type reported struct {
	*world
	project tidelock.Project
	agent   tidelock.Agent
	commits []tidelock.CommitID
}

func newReported(t *testing.T) *reported {
	t.Helper()
	return newReportedOn(t, func(s forge.Store) forge.Store { return s })
}

func newReportedOn(t *testing.T, engine func(forge.Store) forge.Store) *reported {
	t.Helper()
	external, err := url.Parse("https://forge.example/tide")
	if err != nil {
		t.Fatal(err)
	}
	w := &reported{world: newWorldTuned(t, engine, func(c *forge.Config) { c.ExternalURL = external })}
	w.project = w.site()
	for _, text := range []string{"first", "second"} {
		w.commits = append(w.commits, w.pushed(w.project, "refs/heads/main", text))
	}
	w.agent = w.newAgent("agents", "prod", true)
	return w
}

// newAgent makes an agent in a configuration project of its own, beside the
// project unless it is a stranger's.
func (w *reported) newAgent(path, name string, granted bool) tidelock.Agent {
	w.t.Helper()
	in, err := w.store.Namespace(w.t.Context(), w.project.Namespace)
	if err != nil {
		w.t.Fatal(err)
	}
	if !granted {
		in = w.group("strangers", tidelock.Private)
	}
	agent, err := w.CreateAgent(w.t.Context(), w.root, w.world.project(in, path, tidelock.Private), name)
	if err == nil && granted {
		_, err = w.GrantAgent(w.t.Context(), w.root, w.project, agent.ID)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return agent
}

// save writes a rollout; what is not given is that of main's first commit in
// Kustomization/flux-system/shop.
func (w *reported) save(r tidelock.Rollout) tidelock.Rollout {
	w.t.Helper()
	or := func(a, b tidelock.ObjectID) tidelock.ObjectID {
		if a == "" {
			return b
		}
		return a
	}
	r.Project, r.Applier = w.project.ID, or(r.Applier, "Kustomization/flux-system/shop")
	if r.Agent == 0 {
		r.Agent = w.agent.ID
	}
	if r.Commit == "" {
		r.Commit = w.commits[0]
	}
	if r.Ref == "" {
		r.Ref = "refs/heads/main"
	}
	r.Source, r.UpdatedAt = "GitRepository/flux-system/shop", w.clock
	saved, err := w.store.SaveRollouts(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return saved[0]
}

// report saves rollouts and reports them.
func (w *reported) report(rollouts ...tidelock.Rollout) []tidelock.Rollout {
	w.t.Helper()
	for _, r := range rollouts {
		w.save(r)
	}
	if err := w.ReportRollouts(w.t.Context(), w.project.ID); err != nil {
		w.t.Fatal(err)
	}
	all, _, err := w.store.Rollouts(w.t.Context(), tidelock.RolloutFilter{Project: w.project.ID}, tidelock.Page{})
	if err != nil {
		w.t.Fatal(err)
	}
	slices.Reverse(all)
	for _, r := range all {
		if r.ReportedAt.IsZero() || r.Status == 0 || r.Deployment == 0 || r.Environment == "" {
			w.t.Errorf("not all reported: %+v", r)
		}
	}
	return all
}

// jobs lists the jobs of a commit that stand for rollouts, replaced ones
// included.
func (w *reported) jobs(commit tidelock.CommitID) []tidelock.Status {
	w.t.Helper()
	jobs, _, err := w.store.Statuses(w.t.Context(), tidelock.StatusFilter{
		Project: w.project.ID, Commit: commit, Stage: tidelock.DeployStage,
	}, tidelock.Page{})
	if err != nil {
		w.t.Fatal(err)
	}
	return jobs
}

func (w *reported) names(commit tidelock.CommitID) string {
	w.t.Helper()
	var list []string
	for _, j := range w.jobs(commit) {
		list = append(list, fmt.Sprintf("%s=%s", j.Name, j.State))
	}
	slices.Sort(list)
	return strings.Join(list, "; ")
}

func (w *reported) deployments() []tidelock.Deployment {
	w.t.Helper()
	list, _, err := w.store.Deployments(w.t.Context(), tidelock.DeploymentFilter{Project: w.project.ID}, tidelock.Page{})
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// environments writes "name agent namespace path" of each.
func (w *reported) environments() string {
	w.t.Helper()
	list, _, err := w.store.Environments(w.t.Context(), tidelock.EnvironmentFilter{Project: w.project.ID}, tidelock.Page{})
	if err != nil {
		w.t.Fatal(err)
	}
	var lines []string
	for _, e := range list {
		lines = append(lines, fmt.Sprintf("%s %d %s %s", e.Name, e.Agent, e.KubernetesNamespace, e.FluxResourcePath))
	}
	return strings.Join(lines, "\n")
}

// A rollout is one job from beginning to end, whatever way it takes, and its
// deployment follows.
func TestReportFollowsARollout(t *testing.T) {
	w := newReported(t)
	at := func(seconds int) time.Time { return w.clock.Add(time.Duration(seconds) * time.Second) }
	never := time.Time{}
	steps := []struct {
		rollout           tidelock.Rollout
		job               tidelock.StatusState
		text              string
		started, finished time.Time
		pipeline          tidelock.StatusState
		deployment        tidelock.DeploymentState
	}{
		{tidelock.Rollout{State: tidelock.RolloutPending, PendingAt: at(0)},
			"pending", "", never, never, "pending", "created"},
		{tidelock.Rollout{State: tidelock.RolloutUnknown, PendingAt: at(0), Message: "the agent is away"},
			"pending", "unknown: the agent is away", never, never, "pending", "created"},
		{tidelock.Rollout{State: tidelock.RolloutRunning, PendingAt: at(0), RunningAt: at(1), Message: "waits for Kustomization/a/b"},
			"running", "waits for Kustomization/a/b", at(1), never, "running", "running"},
		{tidelock.Rollout{State: tidelock.RolloutUnknown, PendingAt: at(0), RunningAt: at(1), Message: "unknown: the agent is away"},
			"running", "unknown: the agent is away", at(1), never, "running", "running"},
		{tidelock.Rollout{State: tidelock.RolloutFailed, PendingAt: at(0), RunningAt: at(1), FinishedAt: at(2), Message: "dry-run failed:\n\tno \x1b[31mmatches\x1b[0m for kind"},
			"failed", "dry-run failed: no matches for kind", at(1), at(2), "failed", "failed"},
		{tidelock.Rollout{State: tidelock.RolloutRunning, PendingAt: at(0), RunningAt: at(3)},
			"running", "", at(3), never, "running", "running"},
		{tidelock.Rollout{State: tidelock.RolloutSuccess, PendingAt: at(0), RunningAt: at(3), AppliedAt: at(4), HealthyAt: at(5), FinishedAt: at(5), Message: "Applied revision: main"},
			"success", "Applied revision: main", at(3), at(5), "success", "success"},
		{tidelock.Rollout{State: tidelock.RolloutFailed, PendingAt: at(0), RunningAt: at(3), AppliedAt: at(4), FinishedAt: at(6), Reason: "HealthCheckFailed"},
			"failed", "HealthCheckFailed", at(3), at(6), "failed", "failed"},
		{tidelock.Rollout{State: tidelock.RolloutSuperseded, PendingAt: at(0), FinishedAt: at(7), Message: "superseded by 1a2b3c4d"},
			"canceled", "superseded by 1a2b3c4d", never, at(7), "canceled", "canceled"},
		{tidelock.Rollout{State: tidelock.RolloutSuccess, PendingAt: at(0), FinishedAt: at(9)},
			"success", "", at(9), at(9), "success", "success"},
	}
	var first tidelock.StatusID
	for i, step := range steps {
		w.clock = w.clock.Add(time.Second)
		rollout := w.report(step.rollout)[0]
		jobs := w.jobs(w.commits[0])
		if len(jobs) != 1 || jobs[0].ID != rollout.Status || first != 0 && jobs[0].ID != first {
			t.Fatalf("step %d: the jobs are %+v; want one, always the same", i, jobs)
		}
		job := jobs[0]
		first = job.ID
		if job.State != step.job || job.Description != step.text || !job.StartedAt.Equal(step.started) || !job.FinishedAt.Equal(step.finished) {
			t.Errorf("step %d: got %s %q from %v to %v, want %s %q from %v to %v", i,
				job.State, job.Description, job.StartedAt, job.FinishedAt, step.job, step.text, step.started, step.finished)
		}
		if job.CreatedAt.After(job.StartedAt) && !job.StartedAt.IsZero() {
			t.Errorf("step %d: the job started %v, before it was made", i, job.StartedAt)
		}
		pipeline := w.pipelineOf(w.project, w.commits[0])
		if pipeline.State != step.pipeline || pipeline.Source != tidelock.ExternalSource || pipeline.Ref != "main" || pipeline.Tag {
			t.Errorf("step %d: the pipeline is %+v, want one of main that is %s", i, pipeline, step.pipeline)
		}
		deployments := w.deployments()
		if len(deployments) != 1 || deployments[0].State != step.deployment || deployments[0].Commit != w.commits[0] ||
			deployments[0].FinishedAt.IsZero() == step.deployment.Done() {
			t.Errorf("step %d: the deployments are %+v, want one that is %s", i, deployments, step.deployment)
		}
	}
	job := w.jobs(w.commits[0])[0]
	want := "https://forge.example/tide/" + w.project.FullPath + "/-/commit/" + string(w.commits[0]) + "/timeline"
	if job.Name != "flux/prod/flux-system/shop" || job.TargetURL != want || job.By != 0 || job.Token != 0 {
		t.Errorf("the job is %+v, want one that leads to %s", job, want)
	}
	if got, want := w.environments(), fmt.Sprintf(
		"prod/flux-system %d flux-system kustomize.toolkit.fluxcd.io/v1/namespaces/flux-system/kustomizations/shop", w.agent.ID); got != want {
		t.Errorf("the environments are %q, want %q", got, want)
	}
}

// What did not change is neither written nor told again.
func TestReportTellsOfChangesOnly(t *testing.T) {
	w := newReported(t)
	running := tidelock.Rollout{State: tidelock.RolloutRunning, RunningAt: w.clock}
	w.report(running)
	before := w.jobs(w.commits[0])[0]
	w.clock = w.clock.Add(time.Minute)
	w.report(running)
	w.report()
	if after := w.jobs(w.commits[0])[0]; after != before {
		t.Errorf("the job went from %+v to %+v", before, after)
	}
}

// A rollout that changes while it is reported is reported again.
func TestReportLosesNothing(t *testing.T) {
	w := newReported(t)
	w.save(tidelock.Rollout{State: tidelock.RolloutRunning, RunningAt: w.clock})
	stale, _, err := w.store.Rollouts(t.Context(), tidelock.RolloutFilter{Project: w.project.ID, Unreported: true}, tidelock.Page{})
	if err != nil || len(stale) != 1 {
		t.Fatalf("unreported: %+v, %v", stale, err)
	}
	w.clock = w.clock.Add(time.Second)
	w.save(tidelock.Rollout{State: tidelock.RolloutSuccess, RunningAt: w.clock, FinishedAt: w.clock})
	if err := w.store.RolloutsReported(t.Context(), w.clock, stale...); err != nil {
		t.Fatal(err)
	}
	w.report()
	if got := w.names(w.commits[0]); got != "flux/prod/flux-system/shop=success" {
		t.Errorf("the jobs are %s", got)
	}
}

// Whoever reports at the same time, and whatever changes meanwhile, there is
// one job for each object, and in the end it says how that ended.
func TestReportAtOnce(t *testing.T) {
	engines := map[string]func(forge.Store) forge.Store{
		"SQLite":     func(s forge.Store) forge.Store { return s },
		"PostgreSQL": openPostgres(t),
	}
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			w := newReportedOn(t, engine)
			const objects, reporters = 6, 3
			states := []tidelock.RolloutState{
				tidelock.RolloutPending, tidelock.RolloutRunning, tidelock.RolloutFailed, tidelock.RolloutUnknown, tidelock.RolloutSuccess,
			}
			errs := make([]error, objects+reporters)
			var wg sync.WaitGroup
			for i := range objects {
				wg.Go(func() {
					for _, state := range states {
						r := tidelock.Rollout{
							Agent: w.agent.ID, Applier: tidelock.ObjectID(fmt.Sprintf("Kustomization/apps/%d", i)), Project: w.project.ID,
							Commit: w.commits[0], Ref: "refs/heads/main", State: state, UpdatedAt: w.clock,
						}
						if state.Done() {
							r.FinishedAt = w.clock
						}
						_, err := w.store.SaveRollouts(t.Context(), r)
						errs[i] = errors.Join(errs[i], err)
					}
				})
			}
			for i := range reporters {
				wg.Go(func() {
					for range 2 * len(states) {
						errs[objects+i] = errors.Join(errs[objects+i], w.ReportRollouts(t.Context(), w.project.ID))
					}
				})
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			w.report()
			jobs := w.jobs(w.commits[0])
			for _, j := range jobs {
				if j.State != tidelock.StatusSuccess {
					t.Errorf("%s ended as %s", j.Name, j.State)
				}
			}
			if len(jobs) != objects {
				t.Errorf("there are %d jobs of %d objects", len(jobs), objects)
			}
			if state := w.pipelineOf(w.project, w.commits[0]).State; state != tidelock.StatusSuccess {
				t.Errorf("the pipeline is %s", state)
			}
			if d := w.deployments(); len(d) != 1 || d[0].State != tidelock.DeploymentSuccess {
				t.Errorf("the deployments are %+v", d)
			}
		})
	}
}

func TestAgentMayReport(t *testing.T) {
	w := newWorld(t)
	ours := w.group("ours", tidelock.Public)
	site := w.project(ours, "site", tidelock.Public)
	secret := w.project(ours, "secret", tidelock.Private)
	agentIn := func(p tidelock.Project) tidelock.Agent {
		agent, err := w.CreateAgent(t.Context(), w.root, p, "prod")
		if err != nil {
			t.Fatal(err)
		}
		return agent
	}
	beside := agentIn(w.project(ours, "agents", tidelock.Private))
	stranger := agentIn(w.project(w.group("our", tidelock.Public), "agents", tidelock.Private))
	granted := agentIn(w.project(w.group("theirs", tidelock.Public), "agents", tidelock.Private))
	for _, p := range []tidelock.Project{site, secret} {
		if _, err := w.GrantAgent(t.Context(), w.root, p, granted.ID); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		name    string
		agent   tidelock.Agent
		project tidelock.Project
		want    bool
	}{
		{"of the group", beside, site, true},
		{"of the group, of a private project", beside, secret, false},
		{"of strangers", stranger, site, false},
		{"of strangers, granted", granted, site, true},
		{"of strangers, granted a private project", granted, secret, true},
		{"of the project itself", agentIn(secret), secret, true},
	} {
		if got, err := w.AgentMayReport(t.Context(), row.agent, row.project); err != nil || got != row.want {
			t.Errorf("an agent %s may report: got %v, %v; want %v", row.name, got, err, row.want)
		}
	}
}

func TestReportChoosesTheEnvironment(t *testing.T) {
	const kustomizations = "kustomize.toolkit.fluxcd.io/v1/namespaces/flux-system/kustomizations/"
	w := newReported(t)
	stranger := w.newAgent("elsewhere", "prod", false)
	ctx := t.Context()
	id, ns := w.agent.ID, "web"
	make := func(name string, e forge.EnvironmentEdit) {
		t.Helper()
		if _, err := w.CreateEnvironment(ctx, w.root, w.project, name, e); err != nil {
			t.Fatal(err)
		}
	}
	path := "kustomize.toolkit.fluxcd.io/v1beta2/namespaces/flux-system/kustomizations/named"
	make("by path", forge.EnvironmentEdit{Agent: &id, KubernetesNamespace: &ns, FluxResourcePath: &path})
	make("by namespace", forge.EnvironmentEdit{Agent: &id, KubernetesNamespace: &ns})
	make("by hand", forge.EnvironmentEdit{})
	make("prod/theirs", forge.EnvironmentEdit{})
	for _, row := range []struct {
		agent     tidelock.AgentID
		name      string
		namespace string // spec.targetNamespace
		annotated string
		want      string
	}{
		{id, "named", "web", "by hand", "by path"},
		{id, "a", "web", "by hand", "by hand"},
		{id, "b", "web", "", "by namespace"},
		{id, "c", "web", "/no name/", "by namespace"},
		{id, "d", "", "", "prod/flux-system"},
		{id, "e", "", "", "prod/flux-system"},
		{id, "f", "db", "live", "live"},
		{id, "g", "db", "", "prod/db"},
		{id, "h", "theirs", "", "prod/theirs"},
		{id, "i", "<script>", "", "prod/flux-system"},
		{id, "j", "db/", "", "prod/flux-system"},
		{stranger.ID, "a", "web", "by hand", "prod/web"},
		{stranger.ID, "b", "db", "", fmt.Sprintf("prod-%d/db", stranger.ID)},
		{stranger.ID, "c", "theirs", "", fmt.Sprintf("prod-%d/theirs", stranger.ID)},
	} {
		applier := tidelock.ObjectID("Kustomization/flux-system/" + row.name)
		source := tidelock.SourceID("GitRepository/flux-system/shop")
		err := w.store.SaveAgentSources(ctx, row.agent, []tidelock.AgentSource{{Agent: row.agent, Source: source, Project: w.project.ID}}, nil)
		if err == nil {
			err = w.store.SaveObservations(ctx, row.agent, []tidelock.Observation{{
				Agent: row.agent, Object: applier, Project: w.project.ID, Source: source, Environment: row.annotated, Namespace: row.namespace,
			}}, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, commit := range w.commits {
			w.report(tidelock.Rollout{Agent: row.agent, Applier: applier, Commit: commit, State: tidelock.RolloutSuccess, FinishedAt: w.clock})
			got, _, err := w.store.Rollouts(ctx, tidelock.RolloutFilter{Agent: row.agent, Applier: applier, Commit: commit}, tidelock.Page{})
			if err != nil || len(got) != 1 || got[0].Environment != row.want {
				t.Errorf("%s of agent %d, in %q, annotated %q: goes to %+v, %v; want %q", row.name, row.agent, row.namespace, row.annotated, got, err, row.want)
			}
		}
	}
	want := fmt.Sprintf(`by path %[1]d web %[2]s
by namespace %[1]d web 
by hand 0  
prod/theirs 0  
prod/flux-system %[1]d flux-system %[3]sd
live %[1]d db %[3]sf
prod/db %[1]d db %[3]sg
prod/web %[4]d web %[3]sa
prod-%[4]d/db %[4]d db %[3]sb
prod-%[4]d/theirs %[4]d theirs %[3]sc`, id, path, kustomizations, stranger.ID)
	if got := w.environments(); got != want {
		t.Errorf("the environments are\n%s\nwant\n%s", got, want)
	}
	// One deployment for each commit and environment.
	seen := map[string]bool{}
	for _, d := range w.deployments() {
		key := fmt.Sprint(d.Environment, d.Commit)
		if seen[key] || d.State != tidelock.DeploymentSuccess {
			t.Errorf("deployment %+v is not the only one, or no success", d)
		}
		seen[key] = true
	}
}

func TestReportSumsUpDeployments(t *testing.T) {
	w := newReported(t)
	table := `
pending                        | created
pending unknown                | created
pending running                | running
pending success                | running
success running                | running
failed running                 | running
unknown success                | running
success                        | success
success success                | success
success failed                 | failed
superseded failed              | failed
superseded success             | canceled
superseded                     | canceled
`
	for i, line := range strings.Split(strings.TrimSpace(table), "\n") {
		given, want, _ := strings.Cut(line, "|")
		states := strings.Fields(given)
		commit := tidelock.CommitID(fmt.Sprintf("%040x", i+1))
		var rollouts []tidelock.Rollout
		for n, state := range states {
			r := tidelock.Rollout{Applier: tidelock.ObjectID(fmt.Sprintf("Kustomization/apps/%d", n)), Commit: commit, State: tidelock.RolloutState(state)}
			if r.State.Done() {
				r.FinishedAt = w.clock.Add(time.Duration(n) * time.Second)
			}
			if r.State == tidelock.RolloutRunning {
				r.RunningAt = w.clock
			}
			rollouts = append(rollouts, r)
		}
		w.report(rollouts...)
		all, _, err := w.store.Deployments(t.Context(), tidelock.DeploymentFilter{Project: w.project.ID, Descending: true}, tidelock.Page{Number: 1, PerPage: 1})
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		d := all[0]
		if d.Commit != commit || string(d.State) != strings.TrimSpace(want) {
			t.Errorf("%v: got %+v, want %s", states, d, want)
		}
		if last := w.clock.Add(time.Duration(len(states)-1) * time.Second); d.State.Done() && !d.FinishedAt.Equal(last) {
			t.Errorf("%v: finished at %v, want %v", states, d.FinishedAt, last)
		}
	}
}

// A branch that is reset to an older commit has that one deployed again.
func TestReportOfACommitThatCameBack(t *testing.T) {
	w := newReported(t)
	success := func(commit tidelock.CommitID) tidelock.Rollout {
		w.clock = w.clock.Add(time.Minute)
		return tidelock.Rollout{Commit: commit, State: tidelock.RolloutSuccess, FinishedAt: w.clock}
	}
	for i, commit := range []int{0, 1, 0} {
		w.report(success(w.commits[commit]))
		env, err := w.store.EnvironmentByName(t.Context(), w.project.ID, "prod/flux-system")
		if err != nil {
			t.Fatal(err)
		}
		last, err := w.LastDeployments(t.Context(), w.root, w.project, env)
		if err != nil || len(last) != 1 || last[0].Commit != w.commits[commit] {
			t.Errorf("%d: the last deployment is %+v, %v; want of commit %d", i, last, err, commit)
		}
	}
	if n := len(w.deployments()); n != 2 {
		t.Errorf("there are %d deployments, want one of each commit", n)
	}
}

// A refusingStore cannot write statuses of one commit.
type refusingStore struct {
	forge.Store
	commit tidelock.CommitID
}

func (s *refusingStore) CreateStatus(ctx context.Context, status tidelock.Status) (tidelock.Status, error) {
	if status.Commit == s.commit {
		return tidelock.Status{}, errors.New("out of order")
	}
	return s.Store.CreateStatus(ctx, status)
}

// Many that cannot be reported do not hide those before them.
func TestReportOfOthersWhenSomeFail(t *testing.T) {
	t.Parallel()
	refusing := &refusingStore{}
	w := newReportedOn(t, func(s forge.Store) forge.Store { refusing.Store = s; return refusing })
	refusing.commit = w.commits[1]
	older := w.save(tidelock.Rollout{State: tidelock.RolloutRunning, RunningAt: w.clock})
	many := make([]tidelock.Rollout, 450)
	for i := range many {
		many[i] = older
		many[i].Applier, many[i].Commit = tidelock.ObjectID(fmt.Sprintf("Kustomization/apps/%d", i)), refusing.commit
	}
	if _, err := w.store.SaveRollouts(t.Context(), many...); err != nil {
		t.Fatal(err)
	}
	if err := w.ReportRollouts(t.Context(), w.project.ID); err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("what was not reported is told by %v", err)
	}
	if got := w.names(older.Commit); got != "flux/prod/flux-system/shop=running" {
		t.Errorf("the jobs are %q", got)
	}
	refusing.commit = ""
	if got := len(w.report()); got != len(many)+1 {
		t.Errorf("%d were reported in the end", got)
	}
}

// Hooks hear of pipelines and deployments that moved, once for each move.
func TestReportCallsHooks(t *testing.T) {
	w := newReported(t)
	ctx := t.Context()
	_, err := w.CreateHook(ctx, w.root, w.project, forge.HookFields{
		URL: ptr("https://hooks.example/x"), Kinds: map[string]bool{"push": false, "pipeline": true, "deployment": true},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.report(tidelock.Rollout{State: tidelock.RolloutRunning, RunningAt: w.clock})
	w.clock = w.clock.Add(time.Second)
	w.report(tidelock.Rollout{State: tidelock.RolloutSuccess, RunningAt: w.clock, FinishedAt: w.clock})
	w.clock = w.clock.Add(time.Second)
	w.report(tidelock.Rollout{State: tidelock.RolloutSuccess, RunningAt: w.clock, FinishedAt: w.clock, Message: "once more"})
	events, err := w.store.HookEvents(ctx, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprintf("%s %s", e.Kind, e.State))
	}
	slices.Sort(got)
	if want := "deployment running, deployment success, pipeline running, pipeline success"; strings.Join(got, ", ") != want {
		t.Errorf("the hooks heard %v, want %s", got, want)
	}
}
