package webhook_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func TestPipelineAndDeploymentPayloads(t *testing.T) {
	w := newWorld(t)
	head := w.commit("first\n\nof all\n", nil, "a=1")
	w.push("refs/heads/main=" + head)
	rec := newReceiver(t, nil)
	hook := w.hook(rec.URL, kinds("pipeline", "deployment"))
	w.run()
	ctx := t.Context()

	description := "works"
	status, err := w.PostStatus(ctx, w.root, w.project, head, forge.NewStatus{State: tidelock.StatusRunning, Name: "unit", Description: &description})
	must(t, err)
	w.eventually("the pipeline runs", func() bool { return len(rec.received()) >= 1 })
	_, err = w.PostStatus(ctx, w.root, w.project, head, forge.NewStatus{State: tidelock.StatusSuccess, Name: "unit"})
	must(t, err)
	w.eventually("the pipeline ends", func() bool {
		calls := rec.received()
		return strings.Contains(string(calls[len(calls)-1].body), `"status":"success"`)
	})
	calls := rec.received()
	last := calls[len(calls)-1]
	body := last.json(t)
	attributes := body["object_attributes"].(map[string]any)
	build := body["builds"].([]any)[0].(map[string]any)
	for name, tt := range map[string][2]any{
		"header":       {last.header.Get("X-Gitlab-Event"), "Pipeline Hook"},
		"object_kind":  {body["object_kind"], "pipeline"},
		"id":           {attributes["id"], float64(status.Pipeline)},
		"iid":          {attributes["iid"], float64(1)},
		"ref":          {attributes["ref"], "main"},
		"tag":          {attributes["tag"], false},
		"sha":          {attributes["sha"], head},
		"source":       {attributes["source"], "external"},
		"status":       {attributes["status"], "success"},
		"detailed":     {attributes["detailed_status"], "passed"},
		"stages":       {fmt.Sprint(attributes["stages"]), "[external]"},
		"url":          {attributes["url"], fmt.Sprintf("https://forge.example/base/team/site/-/pipelines/%d", status.Pipeline)},
		"user":         {body["user"].(map[string]any)["username"], "root"},
		"email":        {body["user"].(map[string]any)["email"], "[REDACTED]"},
		"project":      {body["project"].(map[string]any)["path_with_namespace"], "team/site"},
		"commit":       {body["commit"].(map[string]any)["title"], "first"},
		"build":        {build["name"], "unit"},
		"build status": {build["status"], "success"},
		"build id":     {build["id"], float64(status.ID)},
	} {
		if tt[0] != tt[1] {
			t.Errorf("pipeline, %s: got %v, want %v", name, tt[0], tt[1])
		}
	}
	if at, _ := attributes["finished_at"].(string); !strings.HasSuffix(at, " UTC") {
		t.Errorf("finished_at: got %v", attributes["finished_at"])
	}

	deployment, err := w.Deploy(ctx, w.root, w.project, forge.NewDeployment{
		Environment: "production", Commit: head, Ref: "main", State: tidelock.DeploymentRunning,
	})
	must(t, err)
	w.eventually("the deployment", func() bool {
		calls = rec.received()
		return calls[len(calls)-1].header.Get("X-Gitlab-Event") == "Deployment Hook"
	})
	body = calls[len(calls)-1].json(t)
	for name, want := range map[string]any{
		"object_kind": "deployment", "status": "running", "deployment_id": float64(deployment.ID), "environment": "production",
		"environment_tier": "production", "environment_slug": "production", "short_sha": head[:8], "commit_title": "first", "ref": "main",
		"commit_url": "https://forge.example/base/team/site/-/commit/" + head, "user_url": "https://forge.example/base/root",
	} {
		if body[name] != want {
			t.Errorf("deployment, %s: got %v, want %v", name, body[name], want)
		}
	}

	worker := w.worker()
	for _, kind := range []tidelock.HookKind{tidelock.HookPipeline, tidelock.HookDeployment} {
		attempt, err := worker.Test(ctx, w.root, w.project, hook.ID, kind)
		if err != nil || !attempt.Delivered() {
			t.Errorf("a test with a %s: got %+v, %v", kind, attempt, err)
		}
	}
}

// documented are the fields that GitLab's documentation lists of the payloads
// of pipelines and deployments, by their path.
var documented = map[string][]string{
	"Pipeline Hook": {
		"object_kind", "object_attributes.id", "object_attributes.iid", "object_attributes.name", "object_attributes.ref", "object_attributes.tag",
		"object_attributes.sha", "object_attributes.before_sha", "object_attributes.source", "object_attributes.status",
		"object_attributes.detailed_status", "object_attributes.stages", "object_attributes.created_at", "object_attributes.finished_at",
		"object_attributes.duration", "object_attributes.queued_duration", "object_attributes.variables", "object_attributes.url", "merge_request",
		"user", "project.id", "project.name", "project.description", "project.web_url", "project.avatar_url", "project.git_ssh_url",
		"project.git_http_url", "project.namespace", "project.visibility_level", "project.path_with_namespace", "project.default_branch",
		"commit.id", "commit.message", "commit.title", "commit.timestamp", "commit.url", "commit.author.name", "commit.author.email",
		"builds.0.id", "builds.0.stage", "builds.0.name", "builds.0.status", "builds.0.created_at", "builds.0.started_at", "builds.0.finished_at",
		"builds.0.duration", "builds.0.queued_duration", "builds.0.failure_reason", "builds.0.when", "builds.0.manual", "builds.0.allow_failure",
		"builds.0.user", "builds.0.runner", "builds.0.artifacts_file.filename", "builds.0.artifacts_file.size", "builds.0.environment.name",
		"builds.0.environment.action", "builds.0.environment.deployment_tier",
	},
	"Deployment Hook": {
		"object_kind", "status", "status_changed_at", "deployment_id", "deployable_id", "deployable_url", "environment", "environment_tier",
		"environment_slug", "environment_external_url", "project.id", "project.name", "project.description", "project.web_url",
		"project.avatar_url", "project.git_ssh_url", "project.git_http_url", "project.namespace", "project.visibility_level",
		"project.path_with_namespace", "project.default_branch", "project.ci_config_path", "ref", "short_sha", "user", "user_url", "commit_url",
		"commit_title",
	},
}

// TestPayloadsOfRollouts reads what hooks hear of a sync that no user made.
func TestPayloadsOfRollouts(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	head := w.commit("first\n\nof all\n", nil, "a=1")
	w.push("refs/heads/main=" + head)
	agent, err := w.store.CreateAgent(ctx, tidelock.Agent{Project: w.project.ID, Name: "prod"})
	must(t, err)
	rec := newReceiver(t, nil)
	w.hook(rec.URL, kinds("pipeline", "deployment"))
	w.run()
	now := time.Now().UTC().Add(-time.Minute)
	rollout := tidelock.Rollout{
		Agent: agent.ID, Applier: "Kustomization/flux-system/apps", Source: "GitRepository/flux-system/site", Project: w.project.ID,
		Commit: tidelock.CommitID(head), Ref: "refs/heads/main", Newest: true, PendingAt: now, RunningAt: now.Add(time.Second), UpdatedAt: now.Add(time.Second),
	}
	report := func(state tidelock.RolloutState, at time.Duration, reason, message string) {
		t.Helper()
		rollout.State, rollout.Reason, rollout.Message, rollout.UpdatedAt = state, reason, message, now.Add(at)
		if state.Done() {
			rollout.FinishedAt = rollout.UpdatedAt
		}
		_, err := w.store.SaveRollouts(ctx, rollout)
		must(t, err)
		must(t, w.ReportRollouts(ctx, w.project.ID))
	}
	// last is the newest call of a kind with a status, once it is there.
	last := func(kind, status string) (body map[string]any) {
		t.Helper()
		w.eventually("a "+kind+" that is "+status, func() bool {
			for _, c := range rec.received() {
				if c.header.Get("X-Gitlab-Event") == kind && strings.Contains(string(c.body), fmt.Sprintf(`"status":%q`, status)) {
					body = c.json(t)
				}
			}
			return body != nil
		})
		return body
	}
	report(tidelock.RolloutRunning, 0, "", "")
	last("Pipeline Hook", "running")
	last("Deployment Hook", "running")
	report(tidelock.RolloutFailed, 30*time.Second, "BuildFailed", "no such file")
	for kind, fields := range documented {
		body := last(kind, "failed")
		for _, field := range fields {
			var at any = body
			for name := range strings.SplitSeq(field, ".") {
				var ok bool
				switch v := at.(type) {
				case map[string]any:
					at, ok = v[name]
				case []any:
					ok = len(v) == 1 && name == "0"
					if ok {
						at = v[0]
					}
				}
				if !ok {
					t.Errorf("%s: has no %s", kind, field)
					break
				}
			}
		}
		if body["user"] != nil {
			t.Errorf("%s: got the user %v, want null: nobody did it", kind, body["user"])
		}
	}
	body := last("Pipeline Hook", "failed")
	build := body["builds"].([]any)[0].(map[string]any)
	environment, _ := build["environment"].(map[string]any)
	for name, tt := range map[string][2]any{
		"stages":      {fmt.Sprint(body["object_attributes"].(map[string]any)["stages"]), "[deploy]"},
		"stage":       {build["stage"], "deploy"},
		"name":        {build["name"], "flux/prod/flux-system/apps"},
		"status":      {build["status"], "failed"},
		"environment": {environment["name"], "prod/flux-system"},
		"action":      {environment["action"], "start"},
	} {
		if tt[0] != tt[1] {
			t.Errorf("pipeline, %s: got %v, want %v", name, tt[0], tt[1])
		}
	}
	body = last("Deployment Hook", "failed")
	for name, want := range map[string]any{
		"environment": "prod/flux-system", "short_sha": head[:8], "ref": "main", "user_url": nil, "deployable_id": build["id"],
		"deployable_url": "https://forge.example/base/team/site/-/commit/" + head + "/timeline",
		"commit_url":     "https://forge.example/base/team/site/-/commit/" + head,
	} {
		if body[name] != want {
			t.Errorf("deployment, %s: got %v, want %v", name, body[name], want)
		}
	}
	if at, err := time.Parse("2006-01-02 15:04:05 -0700", fmt.Sprint(body["status_changed_at"])); err != nil || time.Since(at) > time.Hour {
		t.Errorf("deployment, status_changed_at: got %v", body["status_changed_at"])
	}
	report(tidelock.RolloutSuccess, 50*time.Second, "", "")
	last("Pipeline Hook", "success")
	last("Deployment Hook", "success")
}
