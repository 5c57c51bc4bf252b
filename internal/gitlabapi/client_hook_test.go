package gitlabapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
)

func clientHooks(t *testing.T, w *world, c *gitlab.Client) {
	project := w.project(w.group("hooks", tidelock.Private), "site", tidelock.Private)
	w.push(project, map[string]string{"README.md": "hello"})
	const path = "hooks/site"
	var status atomic.Int64
	status.Store(http.StatusOK)
	var last atomic.Pointer[http.Request]
	receiver := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		last.Store(r)
		rw.WriteHeader(int(status.Load()))
		fmt.Fprint(rw, "taken")
	}))
	defer receiver.Close()

	none, _, err := c.Projects.ListProjectHooks(path, nil)
	must(t, err)
	if len(none) != 0 {
		t.Errorf("a new project has the hooks %+v", none)
	}
	made, _, err := c.Projects.AddProjectHook(path, &gitlab.AddProjectHookOptions{
		URL: gitlab.Ptr(receiver.URL + "/x"), Name: gitlab.Ptr("ci"), Description: gitlab.Ptr("tells the CI"), Token: gitlab.Ptr("s3cret"),
		PipelineEvents: gitlab.Ptr(true), IssuesEvents: gitlab.Ptr(true), PushEventsBranchFilter: gitlab.Ptr("release/*"),
		CustomHeaders: &[]*gitlab.HookCustomHeader{{Key: "X-One", Value: "s3cret 1"}},
	})
	must(t, err)
	if made.ID == 0 || made.ProjectID != int64(project.ID) || made.URL != receiver.URL+"/x" || made.Name != "ci" || made.Description != "tells the CI" ||
		!made.PushEvents || made.TagPushEvents || !made.PipelineEvents || made.DeploymentEvents || !made.IssuesEvents || made.NoteEvents ||
		!made.EnableSSLVerification || made.PushEventsBranchFilter != "release/*" || made.BranchFilterStrategy != "wildcard" ||
		made.AlertStatus != "executable" || made.DisabledUntil != nil || made.CreatedAt == nil || len(made.CustomHeaders) != 1 || made.CustomHeaders[0].Key != "X-One" {
		t.Errorf("AddProjectHook = %+v", made)
	}
	edited, _, err := c.Projects.EditProjectHook(path, made.ID, &gitlab.EditProjectHookOptions{
		URL: gitlab.Ptr(receiver.URL + "/x"), TagPushEvents: gitlab.Ptr(true), IssuesEvents: gitlab.Ptr(false), EnableSSLVerification: gitlab.Ptr(false),
	})
	must(t, err)
	if !edited.PushEvents || !edited.TagPushEvents || edited.IssuesEvents || edited.EnableSSLVerification || edited.Name != "ci" {
		t.Errorf("EditProjectHook = %+v", edited)
	}
	_, err = c.Projects.SetProjectCustomHeader(path, made.ID, "X-Two", &gitlab.SetHookCustomHeaderOptions{Value: gitlab.Ptr("2")})
	must(t, err)
	_, err = c.Projects.DeleteProjectCustomHeader(path, made.ID, "x-one")
	must(t, err)
	shown, _, err := c.Projects.GetProjectHook(path, made.ID)
	must(t, err)
	if len(shown.CustomHeaders) != 1 || shown.CustomHeaders[0].Key != "X-Two" || shown.CustomHeaders[0].Value != "" {
		t.Errorf("GetProjectHook = %+v", shown)
	}
	all, _, err := c.Projects.ListProjectHooks(path, &gitlab.ListProjectHooksOptions{ListOptions: gitlab.ListOptions{PerPage: 1}})
	must(t, err)
	if len(all) != 1 || all[0].ID != made.ID {
		t.Errorf("ListProjectHooks = %+v", all)
	}

	_, err = c.Projects.TriggerTestProjectHook(path, made.ID, gitlab.ProjectHookEventPush)
	must(t, err)
	if r := last.Load(); r.Header.Get("X-Gitlab-Token") != "s3cret" || r.Header.Get("X-Gitlab-Event") != "Push Hook" || r.Header.Get("X-Two") != "2" {
		t.Errorf("the test came with the headers %v", r.Header)
	}
	status.Store(http.StatusTeapot)
	resp, err := c.Projects.TriggerTestProjectHook(path, made.ID, gitlab.ProjectHookEventPush)
	if err == nil || resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("a test that fails: %v, want 422", err)
	}
	resp, err = c.Projects.TriggerTestProjectHook(path, made.ID, gitlab.ProjectHookEventPipeline)
	if err == nil || resp.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("a test with nothing to tell: %v, want 422", err)
	}
	resp, err = c.Projects.TriggerTestProjectHook(path, made.ID, gitlab.ProjectHookEventNote)
	if err == nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a test of what never happens: %v, want 400", err)
	}

	// The client knows no recent deliveries.
	events := w.call("GET", fmt.Sprintf("/projects/%d/hooks/%d/events", project.ID, made.ID), "", as(w.token))
	var list []struct {
		ID              int64
		URL             string
		Trigger         string
		RequestHeaders  map[string]string `json:"request_headers"`
		RequestData     map[string]any    `json:"request_data"`
		ResponseHeaders map[string]string `json:"response_headers"`
		ResponseBody    string            `json:"response_body"`
		ResponseStatus  string            `json:"response_status"`
		Duration        float64           `json:"execution_duration"`
		State           string
		Attempts        int
	}
	must(t, json.Unmarshal([]byte(events.body), &list))
	if len(list) != 2 || list[0].ResponseStatus != "418" || list[0].State != "failed" || list[1].ResponseStatus != "200" || list[1].State != "delivered" ||
		list[1].Trigger != "push_hooks" || list[1].ResponseBody != "taken" || list[1].RequestData["object_kind"] != "push" || list[1].Attempts != 1 ||
		list[1].RequestHeaders["X-Gitlab-Token"] != "[REDACTED]" || list[1].URL != receiver.URL+"/x" || list[1].Duration <= 0 {
		t.Errorf("events = %d %s", events.status, events.body)
	}
	if strings.Contains(events.body, "s3cret") {
		t.Errorf("events show a secret: %s", events.body)
	}
	for query, want := range map[string]int{"status=successful": 1, "status=client_failure": 1, "status=server_failure": 0, "status=418": 1, "per_page=1": 1} {
		got := w.call("GET", fmt.Sprintf("/projects/%d/hooks/%d/events?%s", project.ID, made.ID, query), "", as(w.token))
		if n := len(got.json(t).([]any)); n != want {
			t.Errorf("events with %s: got %d, want %d", query, n, want)
		}
	}
	if got := w.call("GET", fmt.Sprintf("/projects/%d/hooks/%d/events?status=bad", project.ID, made.ID), "", as(w.token)); got.status != 400 {
		t.Errorf("events with a bad status: %d", got.status)
	}
	resend := fmt.Sprintf("/projects/%d/hooks/%d/events/%d/resend", project.ID, made.ID, list[0].ID)
	if got := w.call("POST", resend, "", as(w.token)); got.status != 422 {
		t.Errorf("resend to a receiver that fails: %d %s", got.status, got.body)
	}
	status.Store(http.StatusAccepted)
	if got := w.call("POST", resend, "", as(w.token)); got.status != 201 || got.object(t)["response_status"] != float64(202) {
		t.Errorf("resend: %d %s", got.status, got.body)
	}

	_, err = c.Projects.DeleteProjectHook(path, made.ID)
	must(t, err)
	_, resp, err = c.Projects.GetProjectHook(path, made.ID)
	if err == nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("a hook that was deleted: %v", err)
	}
}

func TestHooksRefused(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	other := w.project(w.group("crew", tidelock.Private), "site", tidelock.Private)
	elsewhere := w.call("POST", fmt.Sprintf("/projects/%d/hooks", other.ID), `{"url":"https://ci.example"}`, as(w.token)).object(t)["id"]
	hooks := fmt.Sprintf("/projects/%d/hooks", project.ID)
	for _, tt := range []struct {
		body string
		want int
		says string
	}{
		{`{}`, 400, "url is missing"},
		{`{"url":""}`, 422, "url"},
		{`{"url":"ftp://ci.example"}`, 422, "url"},
		{`{"url":"http://169.254.169.254/"}`, 422, "is blocked"},
		{`{"url":"http://[::1]/"}`, 422, "is blocked"},
		{`{"url":"https://ci.example","token":"a\nb"}`, 422, "line breaks"},
		{`{"url":"https://ci.example","token":" a"}`, 422, "space"},
		{`{"url":"https://ci.example","push_events_branch_filter":"a..b"}`, 422, "branch name"},
		{`{"url":"https://ci.example","push_events_branch_filter":"(","branch_filter_strategy":"regex"}`, 422, "regular expression"},
		{`{"url":"https://ci.example","push_events_branch_filter":"(?=x)","branch_filter_strategy":"regex"}`, 422, "regular expression"},
		{`{"url":"https://ci.example","branch_filter_strategy":"some"}`, 400, "branch_filter_strategy"},
		{`{"url":"https://ci.example","push_events":"perhaps"}`, 400, "push_events is invalid"},
		{`{"url":"https://ci.example","custom_headers":"x"}`, 400, "custom_headers"},
		{`{"url":"https://ci.example","custom_headers":[{"key":"Host","value":"x"}]}`, 422, "must not set Host"},
		{`{"url":"https://ci.example","custom_headers":[{"key":"x-gitlab-token","value":"x"}]}`, 422, "must not set"},
		{`{"url":"https://ci.example","custom_headers":[{"key":"Transfer-Encoding","value":"chunked"}]}`, 422, "must not set"},
		{`{"url":"https://ci.example","custom_headers":[{"key":"A b","value":"x"}]}`, 422, "key"},
		{`{"url":"https://ci.example","custom_headers":[{"key":"A","value":"x\r\nHost: y"}]}`, 422, "line breaks"},
		{`{"url":"https://ci.example","custom_headers":[{"key":"A","value":"x"},{"key":"a","value":"y"}]}`, 422, "twice"},
	} {
		got := w.call("POST", hooks, tt.body, as(w.token))
		if got.status != tt.want || !strings.Contains(got.body, tt.says) {
			t.Errorf("%s: %d %s, want %d that says %q", tt.body, got.status, got.body, tt.want, tt.says)
		}
	}
	for _, path := range []string{"/999", "/x", "/-1", fmt.Sprintf("/%v", elsewhere), fmt.Sprintf("/%v/events", elsewhere)} {
		if got := w.call("GET", hooks+path, "", as(w.token)); got.status != 404 && got.status != 400 {
			t.Errorf("GET %s: %d %s, want 404 or 400", path, got.status, got.body)
		}
	}

	// With another URL a hook loses what was made for the first one.
	made := w.call("POST", hooks, `{"url":"https://ada:pw@ci.example/x","token":"s3cret","custom_headers":[{"key":"A","value":"1"}]}`, as(w.token)).object(t)
	if made["url"] != "https://xxxxx@ci.example/x" || made["token"] != nil {
		t.Errorf("a new hook: %v", made)
	}
	hook := fmt.Sprintf("%s/%v", hooks, made["id"])
	same := w.call("PUT", hook, `{"url":"https://xxxxx@ci.example/x","description":"as it was shown"}`, as(w.token)).object(t)
	if n := len(same["custom_headers"].([]any)); n != 1 {
		t.Errorf("written back as it was shown: %v", same)
	}
	moved := w.call("PUT", hook, `{"url":"https://evil.example"}`, as(w.token)).object(t)
	if n := len(moved["custom_headers"].([]any)); n != 0 || moved["url"] != "https://evil.example" {
		t.Errorf("with another URL: %v", moved)
	}
	read, err := w.forge.Hook(t.Context(), w.root, project, tidelock.HookID(made["id"].(float64)))
	must(t, err)
	if read.Token.Reveal() != "" {
		t.Error("the token went to another URL")
	}
}

func TestHookShapes(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	w.push(project, map[string]string{"a": "1"})
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer receiver.Close()
	const fields = "id:id project_id:id url:text name:text? description:text? created_at:time alert_status:text disabled_until:time? url_variables:list " +
		"custom_headers:list custom_webhook_template:null enable_ssl_verification:bool push_events_branch_filter:text branch_filter_strategy:text " +
		"push_events:bool tag_push_events:bool pipeline_events:bool deployment_events:bool issues_events:bool confidential_issues_events:bool " +
		"merge_requests_events:bool note_events:bool confidential_note_events:bool job_events:bool wiki_page_events:bool releases_events:bool " +
		"milestone_events:bool feature_flag_events:bool resource_access_token_events:bool resource_deploy_token_events:bool emoji_events:bool " +
		"vulnerability_events:bool repository_update_events:bool"
	hooks := fmt.Sprintf("/projects/%d/hooks", project.ID)
	made := w.call("POST", hooks, fmt.Sprintf(`{"url":%q,"token":"s3cret","custom_headers":[{"key":"A","value":"1"}]}`, receiver.URL), as(w.token))
	if strings.Contains(made.body, "s3cret") {
		t.Errorf("a new hook shows its token: %s", made.body)
	}
	checkShape(t, made.object(t), fields)
	checkShape(t, made.object(t)["custom_headers"].([]any)[0].(map[string]any), "key:text")
	checkShape(t, firstOf(t, w.call("GET", hooks, "", as(w.token))), fields)
	hook := fmt.Sprintf("%s/%v", hooks, made.object(t)["id"])
	checkShape(t, w.call("GET", hook, "", as(w.token)).object(t), fields)
	if got := w.call("GET", hook+"/events", "", as(w.token)); got.body != "[]" {
		t.Errorf("events of a new hook: %s", got.body)
	}
	if got := w.call("POST", hook+"/test/push_events", "", as(w.token)); got.status != 201 || got.object(t)["message"] != "201 Created" {
		t.Errorf("a test: %d %s", got.status, got.body)
	}
	checkShape(t, firstOf(t, w.call("GET", hook+"/events", "", as(w.token))),
		"id:id url:text trigger:text request_headers:object request_data:object response_headers:object response_body:text execution_duration:real "+
			"response_status:text created_at:time state:text attempts:number next_attempt_at:time? error:text?")
}
