package gitlabapi_test

import (
	"net/http"
	"testing"
	"time"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
)

func clientStatuses(t *testing.T, w *world, c *gitlab.Client) {
	project := w.project(w.group("ci", tidelock.Private), "site", tidelock.Private)
	head := string(w.push(project, map[string]string{"README.md": "hello"}))
	const path = "ci/site"

	none, _, err := c.Commits.GetCommitStatuses(path, head, nil)
	must(t, err)
	if len(none) != 0 {
		t.Errorf("a new commit has the statuses %+v", none)
	}
	running, _, err := c.Commits.SetCommitStatus(path, head, &gitlab.SetCommitStatusOptions{
		State: gitlab.Running, Name: gitlab.Ptr("unit"), Ref: gitlab.Ptr("main"), TargetURL: gitlab.Ptr("https://ci.example/1"),
		Description: gitlab.Ptr("working"), Coverage: gitlab.Ptr(12.5),
	})
	must(t, err)
	if running.ID == 0 || running.SHA != head || running.Ref != "main" || running.Status != "running" || running.Name != "unit" ||
		running.TargetURL != "https://ci.example/1" || running.Description != "working" || running.Coverage != 12.5 || running.AllowFailure ||
		running.PipelineID == 0 || running.CreatedAt == nil || running.StartedAt == nil || running.FinishedAt != nil ||
		running.Author.Username != "root" || running.Author.ID == 0 {
		t.Errorf("SetCommitStatus = %+v", running)
	}
	done, _, err := c.Commits.SetCommitStatus(path, head, &gitlab.SetCommitStatusOptions{
		State: gitlab.Success, Context: gitlab.Ptr("unit"), PipelineID: gitlab.Ptr(running.PipelineID),
	})
	must(t, err)
	if done.ID != running.ID || done.Status != "success" || done.FinishedAt == nil || done.Description != "working" {
		t.Errorf("a status that was running became %+v", done)
	}
	for range 2 {
		_, _, err = c.Commits.SetCommitStatus(path, head, &gitlab.SetCommitStatusOptions{State: gitlab.Failed, Name: gitlab.Ptr("lint")})
		must(t, err)
	}
	latest, _, err := c.Commits.GetCommitStatuses(path, head, nil)
	must(t, err)
	all, _, err := c.Commits.GetCommitStatuses(path, head, &gitlab.GetCommitStatusesOptions{All: gitlab.Ptr(true)})
	must(t, err)
	lint, _, err := c.Commits.GetCommitStatuses(path, head, &gitlab.GetCommitStatusesOptions{
		Name: gitlab.Ptr("lint"), Ref: gitlab.Ptr("main"), Stage: gitlab.Ptr("external"), PipelineID: gitlab.Ptr(running.PipelineID),
	})
	must(t, err)
	if len(latest) != 2 || len(all) != 3 || len(lint) != 1 || lint[0].ID != all[2].ID {
		t.Errorf("%d latest statuses, %d in all, lint %+v", len(latest), len(all), lint)
	}
	if _, resp, err := c.Commits.GetCommitStatuses(path, "4711000000000000000000000000000000000000", nil); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("statuses of no commit: %v", err)
	}

	commit, _, err := c.Commits.GetCommit(path, head, nil)
	must(t, err)
	if commit.Status == nil || *commit.Status != gitlab.Failed || commit.LastPipeline == nil || commit.LastPipeline.ID != running.PipelineID {
		t.Errorf("the commit says status %v, last pipeline %+v", commit.Status, commit.LastPipeline)
	}
	clientPipelines(t, c, path, head, running.PipelineID)
}

func clientPipelines(t *testing.T, c *gitlab.Client, path, head string, id int64) {
	pipelines, _, err := c.Pipelines.ListProjectPipelines(path, &gitlab.ListProjectPipelinesOptions{
		SHA: gitlab.Ptr(head), Ref: gitlab.Ptr("main"), Status: gitlab.Ptr(gitlab.Failed), Source: gitlab.Ptr("external"), Scope: gitlab.Ptr("finished"),
		Username: gitlab.Ptr("root"), UpdatedAfter: gitlab.Ptr(time.Unix(1, 0)), OrderBy: gitlab.Ptr("updated_at"), Sort: gitlab.Ptr("asc"),
	})
	must(t, err)
	if len(pipelines) != 1 || pipelines[0].ID != id || pipelines[0].IID != 1 || pipelines[0].Ref != "main" || pipelines[0].WebURL == "" {
		t.Fatalf("ListProjectPipelines = %+v", pipelines)
	}
	for _, filter := range []gitlab.ListProjectPipelinesOptions{
		{Scope: gitlab.Ptr("running")}, {Scope: gitlab.Ptr("tags")}, {SHA: gitlab.Ptr("0000")}, {Username: gitlab.Ptr("nobody")},
		{Status: gitlab.Ptr(gitlab.Success), Scope: gitlab.Ptr("pending")},
	} {
		if none, _, err := c.Pipelines.ListProjectPipelines(path, &filter); err != nil || len(none) != 0 {
			t.Errorf("pipelines %+v: %+v, %v", filter, none, err)
		}
	}
	one, _, err := c.Pipelines.GetPipeline(path, id)
	must(t, err)
	if one.Status != "failed" || one.SHA != head || one.Tag || one.User == nil || one.User.Username != "root" || one.StartedAt == nil ||
		one.FinishedAt == nil || one.Coverage != "12.50" || one.DetailedStatus == nil || one.DetailedStatus.Text != "Failed" {
		t.Errorf("GetPipeline = %+v", one)
	}
	newest, _, err := c.Pipelines.GetLatestPipeline(path, &gitlab.GetLatestPipelineOptions{Ref: gitlab.Ptr("main")})
	must(t, err)
	if newest.ID != id {
		t.Errorf("GetLatestPipeline = %+v", newest)
	}
	if _, resp, err := c.Pipelines.GetLatestPipeline(path, &gitlab.GetLatestPipelineOptions{Ref: gitlab.Ptr("light")}); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("the latest pipeline of a ref without one: %v", err)
	}

	jobs, _, err := c.Jobs.ListPipelineJobs(path, id, nil)
	must(t, err)
	every, _, err := c.Jobs.ListProjectJobs(path, &gitlab.ListJobsOptions{Scope: &[]gitlab.BuildStateValue{gitlab.Failed, gitlab.Success}})
	must(t, err)
	if len(jobs) != 2 || len(every) != 3 || every[0].Name != "lint" || every[2].Name != "unit" {
		t.Fatalf("jobs %+v, in all %+v", jobs, every)
	}
	job, _, err := c.Jobs.GetJob(path, every[2].ID)
	must(t, err)
	if job.Status != "success" || job.Stage != "external" || job.Commit == nil || job.Commit.ID != head || job.Pipeline.ID != id ||
		job.Pipeline.Status != "failed" || job.WebURL != "https://ci.example/1" || job.User.Username != "root" || job.Coverage != 12.5 {
		t.Errorf("GetJob = %+v", job)
	}
	_, err = c.Pipelines.DeletePipeline(path, id)
	must(t, err)
	if _, resp, err := c.Pipelines.GetPipeline(path, id); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("a deleted pipeline: %v", err)
	}
}

func clientEnvironments(t *testing.T, w *world, c *gitlab.Client) {
	project := w.project(w.group("envs", tidelock.Private), "site", tidelock.Private)
	head := string(w.push(project, map[string]string{"README.md": "hello"}))
	const path = "envs/site"
	agent, _, err := c.ClusterAgents.RegisterAgent(path, &gitlab.RegisterAgentOptions{Name: gitlab.Ptr("prod")})
	must(t, err)

	env, _, err := c.Environments.CreateEnvironment(path, &gitlab.CreateEnvironmentOptions{
		Name: gitlab.Ptr("production"), Description: gitlab.Ptr("for everybody"), ExternalURL: gitlab.Ptr("https://site.example"),
		ClusterAgentID: gitlab.Ptr(agent.ID), KubernetesNamespace: gitlab.Ptr("apps"),
		FluxResourcePath: gitlab.Ptr("kustomize.toolkit.fluxcd.io/v1/namespaces/flux-system/kustomizations/apps"), AutoStopSetting: gitlab.Ptr("always"),
	})
	must(t, err)
	if env.Name != "production" || env.Slug != "production" || env.Tier != "production" || env.State != "available" || env.Description != "for everybody" ||
		env.ExternalURL != "https://site.example" || env.ClusterAgent == nil || env.ClusterAgent.ID != agent.ID || env.ClusterAgent.ConfigProject.PathWithNamespace != path ||
		env.KubernetesNamespace != "apps" || env.FluxResourcePath == "" || env.CreatedAt == nil || env.LastDeployment != nil {
		t.Errorf("CreateEnvironment = %+v", env)
	}
	if _, resp, err := c.Environments.CreateEnvironment(path, &gitlab.CreateEnvironmentOptions{Name: gitlab.Ptr("production")}); err == nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("the same environment again: %v", err)
	}
	edited, _, err := c.Environments.EditEnvironment(path, env.ID, &gitlab.EditEnvironmentOptions{
		Tier: gitlab.Ptr("staging"), ExternalURL: gitlab.Ptr(""), FluxResourcePath: gitlab.Ptr("HelmRelease/flux-system"),
	})
	must(t, err)
	if edited.Tier != "staging" || edited.ExternalURL != "" || edited.FluxResourcePath != "HelmRelease/flux-system" || edited.KubernetesNamespace != "apps" || edited.Description != "for everybody" {
		t.Errorf("EditEnvironment = %+v", edited)
	}

	made, _, err := c.Deployments.CreateProjectDeployment(path, &gitlab.CreateProjectDeploymentOptions{
		Environment: gitlab.Ptr("production"), SHA: gitlab.Ptr(head), Ref: gitlab.Ptr("main"), Tag: gitlab.Ptr(false), Status: gitlab.Ptr(gitlab.DeploymentStatusRunning),
	})
	must(t, err)
	if made.IID != 1 || made.SHA != head || made.Ref != "main" || made.Status != "running" || made.User.Username != "root" || made.Environment.Name != "production" {
		t.Errorf("CreateProjectDeployment = %+v", made)
	}
	done, _, err := c.Deployments.UpdateProjectDeployment(path, made.ID, &gitlab.UpdateProjectDeploymentOptions{Status: gitlab.Ptr(gitlab.DeploymentStatusSuccess)})
	must(t, err)
	if done.Status != "success" {
		t.Errorf("UpdateProjectDeployment = %+v", done)
	}
	got, _, err := c.Environments.GetEnvironment(path, env.ID)
	must(t, err)
	if got.LastDeployment == nil || got.LastDeployment.ID != made.ID || got.LastDeployment.SHA != head {
		t.Errorf("GetEnvironment = %+v, last deployment %+v", got, got.LastDeployment)
	}
	if _, resp, err := c.Deployments.UpdateProjectDeployment(path, made.ID, &gitlab.UpdateProjectDeploymentOptions{Status: gitlab.Ptr(gitlab.DeploymentStatusRunning)}); err == nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a deployment that has ended runs again: %v", err)
	}
	review, _, err := c.Deployments.CreateProjectDeployment(path, &gitlab.CreateProjectDeploymentOptions{
		Environment: gitlab.Ptr("review/x"), SHA: gitlab.Ptr(head), Ref: gitlab.Ptr("v1"), Tag: gitlab.Ptr(true), Status: gitlab.Ptr(gitlab.DeploymentStatusFailed),
	})
	must(t, err)
	all, _, err := c.Deployments.ListProjectDeployments(path, &gitlab.ListProjectDeploymentsOptions{OrderBy: gitlab.Ptr("iid"), Sort: gitlab.Ptr("desc")})
	must(t, err)
	of, _, err := c.Deployments.ListProjectDeployments(path, &gitlab.ListProjectDeploymentsOptions{Environment: gitlab.Ptr("review/x"), Status: gitlab.Ptr("failed")})
	must(t, err)
	if len(all) != 2 || all[0].ID != review.ID || len(of) != 1 || of[0].ID != review.ID {
		t.Errorf("deployments %+v, of review/x %+v", all, of)
	}
	one, _, err := c.Deployments.GetProjectDeployment(path, review.ID)
	must(t, err)
	if one.Ref != "v1" || one.Environment.Slug == "review/x" {
		t.Errorf("GetProjectDeployment = %+v", one)
	}
	if resp, err := c.Deployments.DeleteProjectDeployment(path, made.ID); err == nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("deleting what is deployed: %v", err)
	}
	_, err = c.Deployments.DeleteProjectDeployment(path, review.ID)
	must(t, err)

	for _, opts := range []*gitlab.ListEnvironmentsOptions{{Name: gitlab.Ptr("production")}, {Search: gitlab.Ptr("PROD")}, {States: gitlab.Ptr("available"), Search: gitlab.Ptr("prod")}} {
		list, _, err := c.Environments.ListEnvironments(path, opts)
		must(t, err)
		if len(list) != 1 || list[0].ID != env.ID {
			t.Errorf("ListEnvironments = %+v", list)
		}
	}
	if resp, err := c.Environments.DeleteEnvironment(path, env.ID); err == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("deleting an environment that is available: %v", err)
	}
	stopped, _, err := c.Environments.StopEnvironment(path, env.ID, nil)
	must(t, err)
	if stopped.State != "stopped" {
		t.Errorf("StopEnvironment = %+v", stopped)
	}
	_, err = c.Environments.DeleteEnvironment(path, env.ID)
	must(t, err)
	if _, resp, err := c.Environments.GetEnvironment(path, env.ID); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("a deleted environment: %v", err)
	}
}
