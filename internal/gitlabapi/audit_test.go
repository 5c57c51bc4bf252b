package gitlabapi_test

import (
	"net/http"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitlabapi"
)

// changesNoAccess are the routes that change something, but not who may do
// what, so that the audit log need not tell of them.
var changesNoAccess = map[string]string{
	"POST /projects/:id/repository/commits":            "the push says who wrote",
	"POST /projects/:id/repository/branches":           "the push says who wrote",
	"DELETE /projects/:id/repository/branches/:branch": "the push says who wrote",
	"DELETE /projects/:id/repository/merged_branches":  "the push says who wrote",
	"POST /projects/:id/repository/tags":               "the push says who wrote",
	"DELETE /projects/:id/repository/tags/:tag_name":   "the push says who wrote",
	"POST /projects/:id/repository/files/:file_path":   "the push says who wrote",
	"PUT /projects/:id/repository/files/:file_path":    "the push says who wrote",
	"DELETE /projects/:id/repository/files/:file_path": "the push says who wrote",

	"DELETE /projects/:id/registry/repositories/:repository_id/tags":           "the push says who removed",
	"DELETE /projects/:id/registry/repositories/:repository_id/tags/:tag_name": "the push says who removed",
	"POST /projects/:id/registry/retention":                                    "the pushes say who removed",
	"POST /projects/:id/registry/collect":                                      "what goes could not be reached",
	"POST /registry/collect":                                                   "what goes could not be reached",

	"POST /projects/:id/statuses/:sha":                               "a status says who set it",
	"DELETE /projects/:id/pipelines/:pipeline_id":                    "it tells of what ran elsewhere",
	"POST /projects/:id/environments":                                "it gives nobody anything",
	"PUT /projects/:id/environments/:environment_id":                 "it gives nobody anything",
	"DELETE /projects/:id/environments/:environment_id":              "it takes nothing from anybody",
	"POST /projects/:id/environments/:environment_id/stop":           "it takes nothing from anybody",
	"POST /projects/:id/deployments":                                 "a deployment says who made it",
	"PUT /projects/:id/deployments/:deployment_id":                   "a deployment says who made it",
	"DELETE /projects/:id/deployments/:deployment_id":                "it tells of what ran elsewhere",
	"POST /projects/:id/hooks/:hook_id/test/:trigger":                "it calls a hook that is there",
	"POST /projects/:id/hooks/:hook_id/events/:hook_event_id/resend": "it calls a hook that is there",
}

// checkAudits wants an event in the audit log from every route that changes
// who may do what.
func checkAudits(t *testing.T, w *world) {
	known := map[string]bool{}
	for _, route := range gitlabapi.Routes() {
		known[route] = true
		method, _, _ := strings.Cut(route, " ")
		if method == http.MethodGet || !w.served[route] {
			continue
		}
		reason, exempt := changesNoAccess[route]
		switch audited := w.audits[route]; {
		case exempt && audited:
			t.Errorf("%s writes to the audit log, though %q", route, reason)
		case !exempt && !audited:
			t.Errorf("%s writes nothing to the audit log: use audited, or say in changesNoAccess why not", route)
		}
	}
	for route := range changesNoAccess {
		if !known[route] {
			t.Errorf("changesNoAccess names %s, which is no route", route)
		}
	}
}

// H11: what a client says of its address changes nothing.
func TestAuditNamesThePeer(t *testing.T) {
	w := newWorld(t)
	got := w.call("POST", "/groups", `{"name":"a","path":"a"}`, as(w.token),
		"X-Forwarded-For: 198.51.100.1", "X-Real-Ip: 198.51.100.1", "Forwarded: for=198.51.100.1")
	if got.status != http.StatusCreated {
		t.Fatalf("got %d %s", got.status, got.body)
	}
	events, _, err := w.forge.AuditLog(t.Context(), w.root, forge.OnForge, tidelock.AuditFilter{}, tidelock.Page{Number: 1, PerPage: 1})
	must(t, err)
	if e := events[0]; e.Act != "group created" || e.From != "127.0.0.1" || e.Token == 0 {
		t.Errorf("the event is %+v, want it from the peer with its token", e)
	}
}

// H11, CVE-2025-69413: who has an account is told to nobody who has none.
func TestH11UsersAreForUsers(t *testing.T) {
	w := newWorld(t)
	w.user("ada")
	for _, path := range []string{"/users", "/users?username=ada", "/users?username=nobody", "/users/2", "/users/4711", "/users/ada/projects",
		"/users/nobody/projects", "/namespaces", "/namespaces/ada", "/namespaces/nobody", "/user"} {
		if got := w.call("GET", path, ""); got.status != http.StatusUnauthorized || strings.Contains(got.body, "ada") {
			t.Errorf("GET %s without a token: %d %s, want 401", path, got.status, got.body)
		}
	}
	// Nor does an administrator's route tell ids apart.
	for _, path := range []string{"/users/2/block", "/users/4711/block", "/users/2/unblock"} {
		if got := w.call("POST", path, ""); got.status != http.StatusUnauthorized {
			t.Errorf("POST %s without a token: %d %s, want 401", path, got.status, got.body)
		}
	}
}
