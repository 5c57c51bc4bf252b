package gitlabapi_test

import (
	"net/http"
	"strings"
	"testing"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
)

func clientIntegrations(t *testing.T, w *world, c *gitlab.Client) {
	w.project(w.group("chats", tidelock.Private), "site", tidelock.Private)
	const path = "chats/site"
	const secret = "https://chat.example/services/T0/B0/s3cret"

	none, _, err := c.Services.ListServices(path)
	must(t, err)
	if len(none) != 0 {
		t.Errorf("a new project has the integrations %+v", none)
	}
	if _, resp, err := c.Services.GetSlackService(path); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("GetSlackService of none: %v, want 404", err)
	}
	made, _, err := c.Services.SetSlackService(path, &gitlab.SetSlackServiceOptions{
		WebHook: gitlab.Ptr(secret), Username: gitlab.Ptr("Tidelock"), Channel: gitlab.Ptr("#deploys"), PushEvents: gitlab.Ptr(true),
		PipelineChannel: gitlab.Ptr("#ci"),
	})
	must(t, err)
	if made.ID == 0 || made.Slug != "slack" || made.Title != "Slack notifications" || !made.Active || made.CreatedAt == nil || made.UpdatedAt == nil ||
		!made.PipelineEvents || !made.DeploymentEvents || !made.PushEvents || made.NoteEvents {
		t.Errorf("SetSlackService = %+v", made.Service)
	}
	if p := made.Properties; p.WebHook != "" || p.Username != "Tidelock" || p.Channel != "#deploys" || p.PipelineChannel != "#ci" ||
		bool(p.NotifyOnlyBrokenPipelines) || p.BranchesToBeNotified != "all" {
		t.Errorf("SetSlackService = %+v", made.Properties)
	}
	changed, _, err := c.Services.SetSlackService(path, &gitlab.SetSlackServiceOptions{
		DeploymentEvents: gitlab.Ptr(false), PushEvents: gitlab.Ptr(false), NotifyOnlyBrokenPipelines: gitlab.Ptr(true),
		BranchesToBeNotified: gitlab.Ptr("default_and_protected"),
	})
	must(t, err)
	shown, _, err := c.Services.GetSlackService(path)
	must(t, err)
	for _, got := range []*gitlab.SlackService{changed, shown} {
		if p := got.Properties; got.ID != made.ID || !got.PipelineEvents || got.DeploymentEvents || got.PushEvents || p.Channel != "#deploys" ||
			!bool(p.NotifyOnlyBrokenPipelines) || p.BranchesToBeNotified != "default_and_protected" {
			t.Errorf("got %+v with %+v", got.Service, got.Properties)
		}
	}
	some, _, err := c.Services.ListServices(path)
	must(t, err)
	if len(some) != 1 || some[0].Slug != "slack" {
		t.Errorf("ListServices = %+v", some)
	}
	hooks, _, err := c.Projects.ListProjectHooks(path, nil)
	must(t, err)
	if len(hooks) != 0 {
		t.Errorf("the integration is among the hooks: %+v", hooks[0])
	}
	for _, id := range []string{"1", "2", "3", "4"} {
		if got := w.call("GET", "/projects/chats%2Fsite/hooks/"+id, "", as(w.token)); got.status != http.StatusNotFound {
			t.Errorf("its hook can be read as hook %s: %d %s", id, got.status, got.body)
		}
	}

	for body, field := range map[string]string{
		`{"webhook":""}`:                     "webhook",
		`{"webhook":"http://127.1/x"}`:       "webhook",
		`{"webhook":"file:///etc/passwd"}`:   "webhook",
		`{"webhook":"http://[fe80::1]/"}`:    "webhook",
		`{"channel":"<!here>"}`:              "channel",
		`{"pipeline_channel":"a b"}`:         "pipeline_channel",
		`{"username":"a\u202eb"}`:            "username",
		`{"branches_to_be_notified":"some"}`: "branches_to_be_notified",
	} {
		if got := w.call("PUT", "/projects/chats%2Fsite/integrations/slack", body, as(w.token)); got.status != http.StatusBadRequest || !strings.Contains(got.body, field) {
			t.Errorf("PUT %s: %d %s, want 400 for %s", body, got.status, got.body, field)
		}
	}

	// The newer name of the same.
	for _, tt := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", "", "", http.StatusOK},
		{"GET", "/slack", "", http.StatusOK},
		{"PUT", "/slack", `{"channel":""}`, http.StatusOK},
		{"DELETE", "/slack", "", http.StatusNoContent},
		{"PUT", "/slack", `{"channel":"#x"}`, http.StatusBadRequest}, // it has no URL
		{"PUT", "/slack", `{"webhook":"` + secret + `"}`, http.StatusOK},
	} {
		got := w.call(tt.method, "/projects/chats%2Fsite/integrations"+tt.path, tt.body, as(w.token))
		if got.status != tt.status || strings.Contains(got.body, "s3cret") {
			t.Errorf("%s %s: %d %s, want %d", tt.method, tt.path, got.status, got.body, tt.status)
		}
	}
	_, err = c.Services.DeleteSlackService(path)
	must(t, err)
	if _, resp, err := c.Services.GetSlackService(path); err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("GetSlackService of one that is gone: %v, want 404", err)
	}
	audit := w.call("GET", "/projects/chats%2Fsite/audit_events", "", as(w.token))
	for _, act := range []string{"integration_created", "integration_changed", "integration_deleted"} {
		if !strings.Contains(audit.body, act) {
			t.Errorf("the audit log does not tell that %s: %s", act, audit.body)
		}
	}
	if strings.Contains(audit.body, "s3cret") {
		t.Errorf("the audit log tells the URL: %s", audit.body)
	}
}
