package webhook_test

import (
	"fmt"
	"strings"
	"testing"

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
