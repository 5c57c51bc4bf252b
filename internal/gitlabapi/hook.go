package gitlabapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A HookCaller calls hooks while somebody waits.
type HookCaller interface {
	// Test calls a hook with a sample of what is in the project.
	Test(ctx context.Context, p forge.Principal, project tidelock.Project, hook tidelock.HookID, kind tidelock.HookKind) (tidelock.Attempt, error)
	// Resend sends a delivery once more.
	Resend(ctx context.Context, p forge.Principal, project tidelock.Project, hook tidelock.HookID, delivery tidelock.DeliveryID) (tidelock.Attempt, error)
}

// noHooks is for servers that call none.
type noHooks struct{}

var errNoHooks = tidelock.Errorf(tidelock.Unavailable, "this server calls no hooks")

func (noHooks) Test(context.Context, forge.Principal, tidelock.Project, tidelock.HookID, tidelock.HookKind) (tidelock.Attempt, error) {
	return tidelock.Attempt{}, errNoHooks
}

func (noHooks) Resend(context.Context, forge.Principal, tidelock.Project, tidelock.HookID, tidelock.DeliveryID) (tidelock.Attempt, error) {
	return tidelock.Attempt{}, errNoHooks
}

func (a *API) hookRoutes() []route {
	return []route{
		{get, "/projects/:id/hooks", a.listHooks},
		{post, "/projects/:id/hooks", a.createHook},
		{get, "/projects/:id/hooks/:hook_id", a.showHook},
		{put, "/projects/:id/hooks/:hook_id", a.editHook},
		{del, "/projects/:id/hooks/:hook_id", a.deleteHook},
		{put, "/projects/:id/hooks/:hook_id/custom_headers/:key", a.setHookHeader},
		{del, "/projects/:id/hooks/:hook_id/custom_headers/:key", a.removeHookHeader},
		{post, "/projects/:id/hooks/:hook_id/test/:trigger", a.testHook},
		{get, "/projects/:id/hooks/:hook_id/events", a.listHookEvents},
		{post, "/projects/:id/hooks/:hook_id/events/:hook_event_id/resend", a.resendHookEvent},
	}
}

// A hookShape never holds the token or the value of a header.
type hookShape struct {
	ID           tidelock.HookID      `json:"id"`
	ProjectID    tidelock.ProjectID   `json:"project_id"`
	URL          string               `json:"url"`
	Name         *string              `json:"name"`
	Description  *string              `json:"description"`
	CreatedAt    stamp                `json:"created_at"`
	AlertStatus  string               `json:"alert_status"`
	DisabledAt   stamp                `json:"disabled_until"`
	URLVariables []struct{}           `json:"url_variables"`
	Headers      []hookHeaderShape    `json:"custom_headers"`
	Template     *string              `json:"custom_webhook_template"`
	Verify       bool                 `json:"enable_ssl_verification"`
	BranchFilter string               `json:"push_events_branch_filter"`
	BranchMatch  tidelock.BranchMatch `json:"branch_filter_strategy"`

	Push                bool `json:"push_events"`
	TagPush             bool `json:"tag_push_events"`
	Pipeline            bool `json:"pipeline_events"`
	Deployment          bool `json:"deployment_events"`
	Issues              bool `json:"issues_events"`
	ConfidentialIssues  bool `json:"confidential_issues_events"`
	MergeRequests       bool `json:"merge_requests_events"`
	Note                bool `json:"note_events"`
	ConfidentialNote    bool `json:"confidential_note_events"`
	Job                 bool `json:"job_events"`
	WikiPage            bool `json:"wiki_page_events"`
	Releases            bool `json:"releases_events"`
	Milestone           bool `json:"milestone_events"`
	FeatureFlag         bool `json:"feature_flag_events"`
	ResourceAccessToken bool `json:"resource_access_token_events"`
	ResourceDeployToken bool `json:"resource_deploy_token_events"`
	Emoji               bool `json:"emoji_events"`
	Vulnerability       bool `json:"vulnerability_events"`
	RepositoryUpdate    bool `json:"repository_update_events"`
}

type hookHeaderShape struct {
	Key string `json:"key"`
}

func (a *API) hookShape(h tidelock.Hook) hookShape {
	unused := func(kind string) bool { return slices.Contains(h.Unused, kind) }
	shape := hookShape{
		ID: h.ID, ProjectID: h.Project, URL: h.ShownURL(), Name: orNull(h.Name), Description: orNull(h.Description),
		CreatedAt: stamp(h.CreatedAt), AlertStatus: "executable", URLVariables: []struct{}{},
		Headers: each(h.Headers, func(h tidelock.HookHeader) hookHeaderShape { return hookHeaderShape{h.Name} }),
		Verify:  !h.SkipVerify, BranchFilter: h.BranchFilter, BranchMatch: h.BranchMatch,
		Push: h.Wants(tidelock.HookPush), TagPush: h.Wants(tidelock.HookTagPush),
		Pipeline: h.Wants(tidelock.HookPipeline), Deployment: h.Wants(tidelock.HookDeployment),
		Issues: unused("issues"), ConfidentialIssues: unused("confidential_issues"), MergeRequests: unused("merge_requests"),
		Note: unused("note"), ConfidentialNote: unused("confidential_note"), Job: unused("job"), WikiPage: unused("wiki_page"),
		Releases: unused("releases"), Milestone: unused("milestone"), FeatureFlag: unused("feature_flag"),
		ResourceAccessToken: unused("resource_access_token"), ResourceDeployToken: unused("resource_deploy_token"),
		Emoji: unused("emoji"), Vulnerability: unused("vulnerability"), RepositoryUpdate: unused("repository_update"),
	}
	if h.HeldUntil.After(a.now()) {
		shape.AlertStatus, shape.DisabledAt = "temporarily_disabled", stamp(h.HeldUntil)
	}
	return shape
}

func (a *API) listHooks(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadHooks)
	if err != nil {
		return err
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	hooks, total, err := a.forge.Hooks(r.ctx(), r.by, project, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(hooks, a.hookShape), total)
}

func (a *API) showHook(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.HookID](a, r, forge.ReadHooks, "hook_id")
	if err != nil {
		return err
	}
	hook, err := a.forge.Hook(r.ctx(), r.by, project, n)
	if err != nil {
		return err
	}
	return ok(w, a.hookShape(hook))
}

func (a *API) createHook(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ManageHooks)
	if err != nil {
		return err
	}
	r.need("url")
	fields := r.hookFields()
	if err := r.err(); err != nil {
		return err
	}
	hook, err := a.forge.CreateHook(r.ctx(), r.by, project, fields)
	if err != nil {
		return unprocessable(err)
	}
	return created(w, a.hookShape(hook))
}

func (a *API) editHook(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.HookID](a, r, forge.ManageHooks, "hook_id")
	if err != nil {
		return err
	}
	fields := r.hookFields()
	if err := r.err(); err != nil {
		return err
	}
	hook, err := a.forge.EditHook(r.ctx(), r.by, project, n, fields)
	if err != nil {
		return unprocessable(err)
	}
	return ok(w, a.hookShape(hook))
}

// hookFields reads what a hook may be given; absent fields stay nil.
func (r *request) hookFields() forge.HookFields {
	f := forge.HookFields{
		URL:          given(&r.params, "url", r.text),
		Name:         given(&r.params, "name", r.text),
		Description:  given(&r.params, "description", r.text),
		Token:        given(&r.params, "token", func(name string) tidelock.Secret { return tidelock.NewSecret(r.text(name)) }),
		BranchFilter: given(&r.params, "push_events_branch_filter", r.text),
		Headers:      given(&r.params, "custom_headers", r.hookHeaders),
		Kinds:        map[string]bool{},
	}
	f.BranchMatch = given(&r.params, "branch_filter_strategy", func(name string) tidelock.BranchMatch {
		return tidelock.BranchMatch(r.word(name, string(tidelock.BranchWildcard), string(tidelock.BranchRegex), string(tidelock.AllBranches)))
	})
	if verify := given(&r.params, "enable_ssl_verification", r.flag); verify != nil {
		skip := !*verify
		f.SkipVerify = &skip
	}
	kinds := slices.Clone(forge.UnusedHookKinds)
	for _, kind := range tidelock.HookKinds {
		kinds = append(kinds, string(kind))
	}
	for _, kind := range kinds {
		if wants := given(&r.params, kind+"_events", r.flag); wants != nil {
			f.Kinds[kind] = *wants
		}
	}
	return f
}

// hookHeaders reads a list of objects with key and value.
func (p *params) hookHeaders(name string) []tidelock.HookHeader {
	elements, ok := p.values[name].([]any)
	if !ok {
		p.note(name, "is invalid")
		return nil
	}
	headers := make([]tidelock.HookHeader, 0, len(elements))
	for _, e := range elements {
		object, _ := e.(map[string]any)
		key, keyOK := object["key"].(string)
		value, valueOK := object["value"].(string)
		if !keyOK || !valueOK {
			p.note(name, "is invalid")
			return nil
		}
		headers = append(headers, tidelock.HookHeader{Name: key, Value: tidelock.NewSecret(value)})
	}
	return headers
}

// unprocessable answers with 422 where most routes answer with 400, as
// GitLab does for hooks.
func unprocessable(err error) error {
	if tidelock.KindOf(err) != tidelock.Invalid {
		return err
	}
	told := *answer(err, false)
	told.status = http.StatusUnprocessableEntity
	return &told
}

func (a *API) deleteHook(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.HookID](a, r, forge.ManageHooks, "hook_id")
	if err != nil {
		return err
	}
	if err := a.forge.DeleteHook(r.ctx(), r.by, project, n); err != nil {
		return err
	}
	return gone(w)
}

func (a *API) setHookHeader(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.HookID](a, r, forge.ManageHooks, "hook_id")
	if err != nil {
		return err
	}
	r.need("value")
	header := tidelock.HookHeader{Name: r.arg("key"), Value: tidelock.NewSecret(r.text("value"))}
	if err := r.err(); err != nil {
		return err
	}
	if err := a.forge.SetHookHeader(r.ctx(), r.by, project, n, header); err != nil {
		return unprocessable(err)
	}
	return gone(w)
}

func (a *API) removeHookHeader(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.HookID](a, r, forge.ManageHooks, "hook_id")
	if err != nil {
		return err
	}
	if err := a.forge.RemoveHookHeader(r.ctx(), r.by, project, n, r.arg("key")); err != nil {
		return err
	}
	return gone(w)
}

// hookTriggers are what a hook can be tested with.
var hookTriggers = map[string]tidelock.HookKind{
	"push_events":       tidelock.HookPush,
	"tag_push_events":   tidelock.HookTagPush,
	"pipeline_events":   tidelock.HookPipeline,
	"deployment_events": tidelock.HookDeployment,
}

func (a *API) testHook(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.HookID](a, r, forge.ManageHooks, "hook_id")
	if err != nil {
		return err
	}
	kind, ok := hookTriggers[r.arg("trigger")]
	if !ok {
		r.note("trigger", "does not have a valid value")
		return r.err()
	}
	attempt, err := a.hooks.Test(r.ctx(), r.by, project, n, kind)
	if err != nil {
		return unprocessable(err)
	}
	if !attempt.Delivered() {
		return errHookFailed(attempt)
	}
	return created(w, errorBody{Message: "201 Created"})
}

// errHookFailed repeats nothing of an answer's body, which may be the page of
// a host that the caller cannot reach.
func errHookFailed(a tidelock.Attempt) error {
	message := a.Error
	if message == "" {
		message = fmt.Sprintf("the receiver answered with %d", a.Status)
	}
	return &statusError{status: http.StatusUnprocessableEntity, body: errorBody{Message: message}}
}

type hookEventShape struct {
	ID       tidelock.DeliveryID `json:"id"`
	URL      string              `json:"url"`
	Trigger  string              `json:"trigger"`
	Request  map[string]string   `json:"request_headers"`
	Data     json.RawMessage     `json:"request_data"`
	Response map[string]string   `json:"response_headers"`
	Answer   string              `json:"response_body"`
	Took     float64             `json:"execution_duration"` // seconds
	Status   string              `json:"response_status"`
	At       stamp               `json:"created_at"`

	// Ours.
	State  tidelock.DeliveryState `json:"state"`
	Tries  int                    `json:"attempts"`
	NextAt stamp                  `json:"next_attempt_at"`
	Error  *string                `json:"error"`
}

// hookTriggerNames are GitLab's words for what made a delivery.
var hookTriggerNames = map[tidelock.HookKind]string{
	tidelock.HookPush:       "push_hooks",
	tidelock.HookTagPush:    "tag_push_hooks",
	tidelock.HookPipeline:   "pipeline_hooks",
	tidelock.HookDeployment: "deployment_hooks",
}

func shapeHookEvent(d tidelock.Delivery) hookEventShape {
	shape := hookEventShape{
		ID: d.ID, URL: d.Attempt.URL, Trigger: hookTriggerNames[d.Kind], Request: d.Attempt.Request, Data: d.Body,
		Response: d.Attempt.Response, Answer: d.Attempt.Answer, Took: d.Attempt.Took.Seconds(), Status: "internal error",
		At: stamp(d.Attempt.At), State: d.State, Tries: d.Tries, Error: orNull(d.Attempt.Error),
	}
	if d.Attempt.Status != 0 {
		shape.Status = strconv.Itoa(d.Attempt.Status)
	}
	if d.State == tidelock.DeliveryWaiting {
		shape.NextAt = stamp(d.NextAt)
	}
	return shape
}

func (a *API) listHookEvents(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.HookID](a, r, forge.ReadHooks, "hook_id")
	if err != nil {
		return err
	}
	filter := tidelock.DeliveryFilter{Hook: n}
	filter.FromStatus, filter.ToStatus = r.statusRange("status")
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	deliveries, total, err := a.forge.Deliveries(r.ctx(), r.by, project, filter, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(deliveries, shapeHookEvent), total)
}

// statusRange reads a status of HTTP, or one of GitLab's words for a hundred
// of them. Absent is 0 to 0.
func (p *params) statusRange(name string) (from, to int) {
	switch text := p.text(name); text {
	case "":
		return 0, 0
	case "successful":
		return 200, 299
	case "client_failure":
		return 400, 499
	case "server_failure":
		return 500, 599
	default:
		n, err := strconv.Atoi(text)
		if err != nil || n < 100 || n > 599 {
			p.note(name, "does not have a valid value")
		}
		return n, n
	}
}

func (a *API) resendHookEvent(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.HookID](a, r, forge.ManageHooks, "hook_id")
	if err != nil {
		return err
	}
	delivery, err := id[tidelock.DeliveryID](r, "hook_event_id")
	if err != nil {
		return err
	}
	attempt, err := a.hooks.Resend(r.ctx(), r.by, project, n, delivery)
	if err != nil {
		return err
	}
	if !attempt.Delivered() {
		return errHookFailed(attempt)
	}
	return created(w, struct {
		Status int `json:"response_status"`
	}{attempt.Status})
}
