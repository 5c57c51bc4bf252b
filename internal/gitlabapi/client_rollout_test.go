package gitlabapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
)

type rollout struct {
	AgentID                                    int64 `json:"agent_id"`
	Agent, Applier, Source, SHA, State, Reason string
	Message                                    string
	Digest, Ref, Environment                   *string
	PushID                                     *int64     `json:"push_id"`
	JobID                                      *int64     `json:"job_id"`
	DeploymentID                               *int64     `json:"deployment_id"`
	ReportedAt                                 *time.Time `json:"reported_at"`
	FinishedAt                                 *time.Time `json:"finished_at"`
	Newest                                     bool
}

// clientRollouts lets an agent see what became of a commit, and asks for it as
// GitLab's client does, and by the route that is ours.
func clientRollouts(t *testing.T, w *world, c *gitlab.Client) {
	ctx := t.Context()
	project := w.project(w.group("rollouts", tidelock.Private), "site", tidelock.Private)
	const path = "rollouts/site"
	agent, err := w.forge.CreateAgent(ctx, w.root, project, "prod")
	must(t, err)
	const source = tidelock.SourceID("GitRepository/flux-system/site")
	must(t, w.forge.SaveAgentSources(ctx, agent.ID, []tidelock.AgentSource{{
		Agent: agent.ID, Source: source, Project: project.ID, Ref: "refs/heads/main", Spec: tidelock.RefSpec{Branch: "main"}, State: tidelock.Converged,
	}}, nil))
	observe := func(name string, commit tidelock.CommitID, state tidelock.ObservedState, message string) {
		t.Helper()
		revision := "main@sha1:" + string(commit)
		now := time.Now()
		must(t, w.forge.Observe(ctx, agent, []tidelock.Observation{{
			Agent: agent.ID, Object: tidelock.ObjectID(source), Project: project.ID, State: tidelock.ObservedReady, Revision: revision,
		}, {
			Agent: agent.ID, Object: tidelock.ObjectID("Kustomization/flux-system/" + name), Project: project.ID, Source: source, Namespace: "apps",
			State: state, Reason: "ReconciliationFailed", Message: message, Revision: revision, Attempted: revision, Health: tidelock.HealthHealthy,
			Outcomes: []tidelock.Outcome{{
				Revision: revision, State: state, Message: message, Health: tidelock.HealthHealthy, AttemptedAt: now, AppliedAt: now, HealthyAt: now, FailedAt: now,
			}},
		}}, nil, false))
		must(t, w.forge.PlanRollouts(ctx, project.ID))
		must(t, w.forge.ReportRollouts(ctx, project.ID))
	}
	first := w.push(project, map[string]string{"README.md": "one"})
	observe("shop", first, tidelock.ObservedReady, "")
	next, _, err := c.Commits.CreateCommit(path, &gitlab.CreateCommitOptions{
		Branch: gitlab.Ptr("main"), CommitMessage: gitlab.Ptr("two"), Actions: []*gitlab.CommitActionOptions{
			{Action: gitlab.Ptr(gitlab.FileUpdate), FilePath: gitlab.Ptr("README.md"), Content: gitlab.Ptr("two")},
		},
	})
	must(t, err)
	second := tidelock.CommitID(next.ID)
	observe("shop", second, tidelock.ObservedFailed, "no matches for kind")

	route := "/projects/" + fmt.Sprint(project.ID) + "/rollouts"
	var all []rollout
	w.ask(http.MethodGet, route, "", http.StatusOK, &all)
	if len(all) != 2 {
		t.Fatalf("the rollouts are %+v, want two", all)
	}
	newest := all[0]
	if newest.SHA != string(second) || newest.State != "failed" || newest.Message != "no matches for kind" || newest.Agent != "prod" || newest.AgentID != int64(agent.ID) ||
		newest.Applier != "Kustomization/flux-system/shop" || newest.Source != string(source) || newest.Digest != nil || newest.Ref == nil || *newest.Ref != "refs/heads/main" ||
		newest.Environment == nil || *newest.Environment != "prod/apps" || newest.JobID == nil || newest.DeploymentID == nil || newest.PushID == nil ||
		newest.ReportedAt == nil || newest.FinishedAt == nil || !newest.Newest || all[1].Newest {
		t.Errorf("the newest rollout is %+v", newest)
	}
	for query, want := range map[string]int{
		"sha=" + string(first): 1, "sha=" + string(second): 1, "state=failed": 1, "state=running": 0, "environment=prod/apps": 2, "environment=other": 0,
		"applier=" + url.QueryEscape("Kustomization/flux-system/shop"): 2, "applier=x": 0, fmt.Sprintf("agent_id=%d", agent.ID): 2, "agent_id=4711": 0,
		"newest=true": 1, "source=" + url.QueryEscape(string(source)): 2, "per_page=1": 1, "per_page=1&page=3": 0,
		fmt.Sprintf("push_id=%d", *newest.PushID): 1,
	} {
		var some []rollout
		w.ask(http.MethodGet, route+"?"+query, "", http.StatusOK, &some)
		if len(some) != want || some == nil {
			t.Errorf("%s: got %+v, want %d", query, some, want)
		}
	}
	for _, query := range []string{"state=dancing", "agent_id=x", "newest=perhaps"} {
		w.ask(http.MethodGet, route+"?"+query, "", http.StatusBadRequest, nil)
	}

	statuses, _, err := c.Commits.GetCommitStatuses(path, string(second), nil)
	must(t, err)
	if len(statuses) != 1 || statuses[0].Name != "flux/prod/flux-system/shop" || statuses[0].Status != "failed" || statuses[0].Description != "no matches for kind" ||
		statuses[0].ID != *newest.JobID || statuses[0].Author.Username != "" {
		t.Fatalf("the statuses are %+v", statuses)
	}
	job, _, err := c.Jobs.GetJob(path, *newest.JobID)
	must(t, err)
	if job.Stage != "deploy" || job.Status != "failed" || job.Commit == nil || job.Commit.ID != string(second) || job.User != nil {
		t.Errorf("the job is %+v", job)
	}
	envs, _, err := c.Environments.ListEnvironments(path, &gitlab.ListEnvironmentsOptions{Name: gitlab.Ptr("prod/apps")})
	must(t, err)
	if len(envs) != 1 || envs[0].ClusterAgent == nil || envs[0].ClusterAgent.Name != "prod" || envs[0].KubernetesNamespace != "apps" ||
		envs[0].FluxResourcePath != "kustomize.toolkit.fluxcd.io/v1/namespaces/flux-system/kustomizations/shop" ||
		envs[0].LastDeployment == nil || envs[0].LastDeployment.SHA != string(first) {
		t.Fatalf("the environments are %+v", envs)
	}
	deployment, _, err := c.Deployments.GetProjectDeployment(path, *newest.DeploymentID)
	must(t, err)
	if deployment.Status != "failed" || deployment.SHA != string(second) || deployment.Ref != "main" || deployment.Environment.Name != "prod/apps" ||
		deployment.User == nil || deployment.User.Username != "root" {
		t.Errorf("the deployment is %+v", deployment)
	}
	_, resp, err := c.Deployments.UpdateProjectDeployment(path, *newest.DeploymentID, &gitlab.UpdateProjectDeploymentOptions{Status: gitlab.Ptr(gitlab.DeploymentStatusSuccess)})
	if err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("the state of a deployment that is reported was set: %v", err)
	}
}
