package gitlabapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitlabapi"
)

// statusWorld is a project with a commit, and a token of each kind that may
// post statuses of it.
type statusWorld struct {
	*world
	group   tidelock.Namespace
	project tidelock.Project
	head    string
	tokens  map[string]string // secrets by what they are
}

const statusSite = "/projects/flux%2Fsite"

func newStatusWorld(t *testing.T) statusWorld {
	w := newWorld(t)
	s := statusWorld{world: w, group: w.group("flux", tidelock.Private), tokens: map[string]string{"personal": w.token}}
	s.project = w.project(s.group, "site", tidelock.Private)
	s.head = string(w.push(s.project, map[string]string{"README.md": "hello"}))
	api := forge.NewToken{Name: "flux", Scopes: []tidelock.Scope{tidelock.ScopeAPI}}
	targets := map[string]forge.Target{"project": forge.OnProject(s.project), "group": forge.OnGroup(s.group)}
	for name, target := range targets {
		_, secret, err := w.forge.CreateAccessToken(t.Context(), w.root, target, api)
		must(t, err)
		s.tokens[name] = secret.Reveal()
		_, secret, err = w.forge.CreateDeployToken(t.Context(), w.root, target, api)
		must(t, err)
		s.tokens["deploy "+name] = secret.Reveal()
	}
	return s
}

// TestFluxProvider makes the requests of notification-controller's gitlab
// provider: it lists the statuses of one name, and posts one unless the newest
// says the same already.
func TestFluxProvider(t *testing.T) {
	s := newStatusWorld(t)
	for name, secret := range s.tokens {
		t.Run(name, func(t *testing.T) {
			c, err := gitlab.NewClient(secret, gitlab.WithBaseURL(s.url), gitlab.WithCustomRetryMax(0))
			must(t, err)
			check := "kustomization/apps/" + url.QueryEscape(name)
			report := func(state gitlab.BuildStateValue, description string) (posted bool) {
				t.Helper()
				statuses, _, err := c.Commits.GetCommitStatuses("flux/site", s.head, &gitlab.GetCommitStatusesOptions{Name: gitlab.Ptr(check)})
				if err != nil {
					t.Fatalf("list: %v", err)
				}
				for _, known := range statuses {
					if known.SHA == s.head && known.Status == string(state) && known.Description == description && known.Name == check {
						return false
					}
				}
				made, _, err := c.Commits.SetCommitStatus("flux/site", s.head, &gitlab.SetCommitStatusOptions{
					Name: gitlab.Ptr(check), Description: gitlab.Ptr(description), State: state,
				})
				if err != nil {
					t.Fatalf("post: %v", err)
				}
				if made.Author.Username == "" || made.Ref != "main" || made.Status != string(state) {
					t.Errorf("posted %+v", made)
				}
				return true
			}
			for i, step := range []struct {
				state       gitlab.BuildStateValue
				description string
				posts       bool
			}{
				{gitlab.Failed, "health check failed", true},
				{gitlab.Failed, "health check failed", false},
				{gitlab.Success, "reconciliation succeeded", true},
				{gitlab.Success, "reconciliation succeeded", false},
				{gitlab.Failed, "health check failed", true},
			} {
				if got := report(step.state, step.description); got != step.posts {
					t.Errorf("step %d, %s: posted %t, want %t", i, step.description, got, step.posts)
				}
			}
		})
	}
}

// The requests as notification-controller puts them on the wire.
func TestFluxProviderOnTheWire(t *testing.T) {
	s := newStatusWorld(t)
	list := statusSite + "/repository/commits/" + s.head + "/statuses?name=kustomization%2Fapps%2F0c9c2e41"
	if got := s.call("GET", list, "", as(s.token)); got.status != http.StatusOK || got.body != "[]" {
		t.Errorf("a commit without statuses: %d %s, want an empty list", got.status, got.body)
	}
	for name, secret := range s.tokens {
		headers := []string{"Private-Token: " + secret, "User-Agent: go-gitlab", "Accept: application/json"}
		if got := s.call("GET", list, "", headers...); got.status != http.StatusOK {
			t.Errorf("%s: list: %d %s", name, got.status, got.body)
		}
		got := s.call("POST", statusSite+"/statuses/"+s.head, `{"state":"success","name":"kustomization/apps/0c9c2e41","description":"reconciliation succeeded"}`, headers...)
		if got.status != http.StatusCreated || got.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: post: %d %s", name, got.status, got.body)
		}
	}
	missing := statusSite + "/repository/commits/" + strings.Repeat("0", 40) + "/statuses"
	if got := s.call("GET", missing, "", as(s.token)); got.status != 404 || got.body != `{"message":"404 Commit Not Found"}` {
		t.Errorf("statuses of no commit: %d %s", got.status, got.body)
	}
}

// What a deploy token posted is shown under its name.
func TestDeployTokenIsTheAuthor(t *testing.T) {
	s := newStatusWorld(t)
	made := s.call("POST", statusSite+"/deploy_tokens", `{"name":"Flux in prod","username":"flux-prod","scopes":["api"]}`, as(s.token)).object(t)
	got := s.call("POST", statusSite+"/statuses/"+s.head, `{"state":"running"}`, as(made["token"].(string))).object(t)
	want := map[string]any{
		"id": 0.0, "username": "flux-prod", "name": "Flux in prod", "state": "active", "locked": false, "avatar_url": nil, "web_url": s.url + "/",
	}
	for what, author := range map[string]any{
		"status":   got["author"],
		"pipeline": s.call("GET", fmt.Sprintf("%s/pipelines/%v", statusSite, got["pipeline_id"]), "", as(s.token)).object(t)["user"],
		"job":      s.call("GET", fmt.Sprintf("%s/jobs/%v", statusSite, got["id"]), "", as(s.token)).object(t)["user"],
	} {
		if fmt.Sprint(author) != fmt.Sprint(want) {
			t.Errorf("the author of a %s is %v, want %v", what, author, want)
		}
	}
}

var routeArg = regexp.MustCompile(`:[a-z_]+`)

// A deploy token with api may read and post statuses of its own project or
// group, and nothing else; without it, it may not call the API at all.
func TestDeployTokenDoesOnlyStatuses(t *testing.T) {
	s := newStatusWorld(t)
	open := map[string]bool{
		"GET /projects/:id/repository/commits/:sha/statuses": true,
		"POST /projects/:id/statuses/:sha":                   true,
	}
	other := s.world.project(s.world.group("other", tidelock.Private), "site", tidelock.Private)
	head := s.push(other, map[string]string{"README.md": "other"})
	shop := s.world.project(s.world.group("market", tidelock.Public), "shop", tidelock.Public)
	forSale := s.push(shop, map[string]string{"README.md": "shop"})
	_, readOnly, err := s.forge.CreateDeployToken(t.Context(), s.root, forge.OnProject(s.project), forge.NewToken{
		Name: "git", Scopes: []tidelock.Scope{tidelock.ScopeReadRepository},
	})
	must(t, err)

	routes := 0
	for _, route := range gitlabapi.Routes() {
		routes++
		method, pattern, _ := strings.Cut(route, " ")
		group := strings.HasPrefix(pattern, "/groups") || strings.HasPrefix(pattern, "/namespaces")
		path := routeArg.ReplaceAllStringFunc(pattern, func(arg string) string {
			switch {
			case arg == ":id" && group:
				return "flux"
			case arg == ":id":
				return "flux%2Fsite"
			case arg == ":sha":
				return s.head
			}
			return "1"
		})
		if got := s.call(method, path, "", as(readOnly.Reveal())); got.status != http.StatusUnauthorized {
			t.Errorf("%s by a deploy token without api: %d %s, want 401", route, got.status, got.body)
		}
		for _, name := range []string{"deploy project", "deploy group"} {
			body := ""
			if open[route] && method == "POST" {
				body = `{"state":"success"}`
			}
			got := s.call(method, path, body, as(s.tokens[name]))
			switch {
			case open[route]:
				if got.status >= 300 {
					t.Errorf("%s by a %s token: %d %s, want success", route, name, got.status, got.body)
				}
			case got.status == http.StatusNotFound && group && name == "deploy project": // to which the group is hidden
			case got.status != http.StatusForbidden || got.object(t)["error"] != "insufficient_scope":
				t.Errorf("%s by a %s token: %d %s, want 403 insufficient_scope", route, name, got.status, got.body)
			}
		}
	}
	t.Logf("%d routes", routes)

	for _, name := range []string{"deploy project", "deploy group"} {
		for _, call := range []struct {
			method, path string
			want         int
		}{
			{"GET", "/projects/other%2Fsite/repository/commits/" + string(head) + "/statuses", 404},
			{"POST", "/projects/other%2Fsite/statuses/" + string(head), 404},
			{"GET", "/projects/market%2Fshop/repository/commits/" + string(forSale) + "/statuses", 200}, // as anybody may
			{"POST", "/projects/market%2Fshop/statuses/" + string(forSale), 403},
		} {
			got := s.call(call.method, call.path, "", as(s.tokens[name]))
			if got.status != call.want {
				t.Errorf("%s %s by a %s token: %d %s, want %d", call.method, call.path, name, got.status, got.body, call.want)
			}
		}
	}
}

// TestStatusShapes holds every field of the answers against a list, so that
// one that went missing is noticed: strict clients may not tell.
func TestStatusShapes(t *testing.T) {
	s := newStatusWorld(t)
	auth := as(s.token)
	post := func(path, body string) map[string]any {
		t.Helper()
		got := s.call("POST", statusSite+path, body, auth)
		if got.status != http.StatusCreated {
			t.Fatalf("POST %s: %d %s", path, got.status, got.body)
		}
		return got.object(t)
	}
	agent := post("/cluster_agents", `{"name":"prod"}`)
	bare := post("/statuses/"+s.head, `{"state":"pending","name":"bare"}`)
	post("/statuses/"+s.head, `{"state":"running","name":"full","coverage":1.5,"target_url":"https://ci.example","description":"x"}`)
	full := post("/statuses/"+s.head, `{"state":"failed","name":"full"}`)
	envBare := post("/environments", `{"name":"bare"}`)
	env := post("/environments", fmt.Sprintf(`{"name":"full","description":"x","external_url":"https://x.example","cluster_agent_id":%v,`+
		`"kubernetes_namespace":"apps","flux_resource_path":"HelmRelease/apps"}`, agent["id"]))
	deployment := post("/deployments", fmt.Sprintf(`{"environment":"full","sha":%q,"ref":"main","tag":false,"status":"success"}`, s.head))

	const (
		status = "id:id sha:text ref:text status:text name:text target_url:text? description:text? created_at:time started_at:time? finished_at:time? " +
			"allow_failure:bool coverage:real? pipeline_id:id author:object"
		pipeline      = "id:id iid:id project_id:id sha:text ref:text status:text source:text created_at:time updated_at:time web_url:text name:null"
		pipelineAlone = pipeline + " before_sha:text tag:bool yaml_errors:null user:object started_at:time? finished_at:time? committed_at:null " +
			"duration:number? queued_duration:number? coverage:text? detailed_status:object archived:bool"
		job = "id:id status:text stage:text name:text ref:text tag:bool coverage:real? allow_failure:bool created_at:time started_at:time? finished_at:time? " +
			"erased_at:null duration:real? queued_duration:real? user:object commit:object pipeline:object web_url:text artifacts:list runner:null " +
			"runner_manager:null artifacts_expire_at:null archived:bool tag_list:list"
		environmentBasic = "id:id name:text slug:text external_url:text? created_at:time updated_at:time"
		environment      = environmentBasic + " description:text? state:text tier:text auto_stop_at:null auto_stop_setting:text cluster_agent:object? " +
			"kubernetes_namespace:text? flux_resource_path:text? last_deployment:object?"
		deploymentBasic = "id:id iid:id ref:text sha:text status:text created_at:time updated_at:time user:object deployable:null"
		agents          = "id:id name:text config_project:object created_at:time created_by_user_id:id is_receptive:bool"
	)
	checkShape(t, bare, status)
	checkShape(t, full, status)
	checkShape(t, envBare, environment)
	checkShape(t, env, environment)
	checkShape(t, deployment, deploymentBasic+" environment:object")
	checkShape(t, deployment["environment"].(map[string]any), environmentBasic)
	pipelineID := full["pipeline_id"]
	for _, c := range []struct{ path, fields string }{
		{"/repository/commits/" + s.head + "/statuses", status},
		{"/pipelines", pipeline},
		{fmt.Sprintf("/pipelines/%v", pipelineID), pipelineAlone},
		{"/pipelines/latest", pipelineAlone},
		{fmt.Sprintf("/pipelines/%v/jobs", pipelineID), job + " failure_reason:text"},
		{fmt.Sprintf("/jobs/%v", bare["id"]), job},
		{"/environments", environment},
		{fmt.Sprintf("/environments/%v", env["id"]), environment},
		{"/deployments", deploymentBasic + " environment:object"},
		{fmt.Sprintf("/deployments/%v", deployment["id"]), deploymentBasic + " environment:object"},
	} {
		t.Run(c.path, func(t *testing.T) {
			got := s.call("GET", statusSite+c.path, "", auth)
			if got.status != http.StatusOK {
				t.Fatalf("got %d %s", got.status, got.body)
			}
			checkShape(t, firstOf(t, got), c.fields)
		})
	}
	shown := s.call("GET", fmt.Sprintf("%s/environments/%v", statusSite, env["id"]), "", auth).object(t)
	checkShape(t, shown["last_deployment"].(map[string]any), deploymentBasic)
	checkShape(t, shown["cluster_agent"].(map[string]any), agents)

	commit := s.call("GET", statusSite+"/repository/commits/"+s.head, "", auth).object(t)
	checkShape(t, commit["last_pipeline"].(map[string]any), pipeline)
	if commit["status"] != "running" {
		t.Errorf("the commit's status is %v", commit["status"])
	}
}

func TestStatusAnswers(t *testing.T) {
	s := newStatusWorld(t)
	auth := as(s.token)
	post := statusSite + "/statuses/" + s.head
	full := s.call("POST", post, `{"state":"running","name":"ci"}`, auth).object(t)
	for _, tt := range []struct {
		name, path, body string
		status           int
		want             string
	}{
		{"no state", post, `{}`, 400, `{"error":"state is missing"}`},
		{"empty state", post, `{"state":""}`, 400, `{"error":"state does not have a valid value"}`},
		{"bad state", post, `{"state":"created"}`, 400, `{"error":"state does not have a valid value"}`},
		{"a step back", post, `{"state":"pending","name":"ci"}`, 400, `{"message":"Cannot transition status via :enqueue from :running (Reason(s): Status cannot transition via \"enqueue\")"}`},
		{"twice", post, `{"state":"running","name":"ci"}`, 400, `{"message":"Cannot transition status via :run from :running (Reason(s): Status cannot transition via \"run\")"}`},
		{"script as target", post, `{"state":"success","target_url":"javascript:alert(1)"}`, 400, `{"message":{"target_url":["is blocked: Only allowed schemes are http, https"]}}`},
		{"long name", post, `{"state":"success","name":"` + strings.Repeat("n", 256) + `"}`, 400, `{"message":{"name":["is too long (maximum is 255 characters)"]}}`},
		{"bad coverage", post, `{"state":"success","coverage":"NaN"}`, 400, `{"error":"coverage is invalid"}`},
		{"no commit", statusSite + "/statuses/" + strings.Repeat("0", 40), `{"state":"success"}`, 404, `{"message":"404 Commit Not Found"}`},
		{"no pipeline", post, `{"state":"success","pipeline_id":4711}`, 404, `{"message":"404 Pipeline for pipeline_id, sha and ref Not Found"}`},
		{"pipeline of another ref", post, fmt.Sprintf(`{"state":"success","ref":"other","pipeline_id":%v}`, full["pipeline_id"]), 404, ""},
		{"form", post + "?state=success&name=form", ``, 201, ""},
		{"by branch", statusSite + "/statuses/main", `{"state":"success","context":"c"}`, 201, ""},
	} {
		got := s.call("POST", tt.path, tt.body, auth)
		if got.status != tt.status || tt.want != "" && got.body != tt.want {
			t.Errorf("%s: got %d %s, want %d %s", tt.name, got.status, got.body, tt.status, tt.want)
		}
	}
}
