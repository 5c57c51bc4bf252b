package gitlabapi_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// TestScopes tries every kind of token with every scope alone, in every
// carrier, on routes that read and write. The table says which scopes open a
// route to a token whose user may use it; everything else is refused.
func TestScopes(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	group := w.group("team", tidelock.Private)
	project := w.project(group, "site", tidelock.Private)
	w.push(project, map[string]string{"a.yaml": "a: 1\n"})
	lead := w.user("lead")
	_, err := w.forge.SetMember(ctx, w.root, forge.OnGroup(group), lead.ID, tidelock.Maintainer, w.root.User.CreatedAt.AddDate(1, 0, 0))
	must(t, err)

	const (
		anyScope = "api read_api read_user read_repository write_repository read_registry write_registry k8s_proxy self_rotate"
		site     = "/projects/team%2Fsite"
	)
	agents := 0
	routes := []struct {
		method, path, body string
		scopes             string
	}{
		{"GET", "/version", "", "api read_api read_user"},
		{"GET", "/user", "", "api read_api read_user"},
		{"GET", "/users", "", "api read_api read_user"},
		{"GET", "/personal_access_tokens/self", "", anyScope},
		{"GET", "/personal_access_tokens", "", "api read_api"},
		{"GET", "/projects", "", "api read_api"},
		{"GET", "/groups", "", "api read_api"},
		{"GET", "/namespaces", "", "api read_api"},
		{"GET", site, "", "api read_api"},
		{"GET", "/groups/team", "", "api read_api"},
		{"GET", site + "/members", "", "api read_api"},
		{"GET", site + "/repository/files/a.yaml?ref=main", "", "api read_api read_repository"},
		{"GET", site + "/repository/commits", "", "api read_api read_repository"},
		{"GET", site + "/repository/archive.tar", "", "api read_api read_repository"},
		{"GET", site + "/repository/compare?from=main&to=v1", "", "api read_api read_repository"},
		{"GET", site + "/protected_tags", "", "api read_api"},
		{"POST", site + "/repository/branches", `{"branch":"b%d","ref":"main"}`, "api"},
		{"POST", site + "/repository/tags", `{"tag_name":"t%d","ref":"main"}`, "api"},
		{"GET", site + "/cluster_agents", "", "api read_api"},
		{"GET", site + "/announcements", "", "api read_api"},
		{"GET", site + "/cluster_agents/1/sources", "", "api read_api"},
		{"GET", site + "/deploy_tokens", "", "api read_api"},
		{"GET", site + "/hooks", "", "api read_api"},
		{"GET", site + "/variables", "", "api read_api"},
		{"GET", site + "/invited_groups", "", "api read_api"},
		{"GET", site + "/audit_events", "", "api read_api"},
		{"GET", site + "/repository/commits/main/statuses", "", "api read_api"},
		{"GET", site + "/pipelines", "", "api read_api"},
		{"GET", site + "/environments", "", "api read_api"},
		{"GET", site + "/deployments", "", "api read_api"},
		{"POST", site + "/statuses/main", `{"state":"success"}`, "api"},
		{"POST", site + "/cluster_agents", `{"name":"a%d"}`, "api"},
		{"POST", site + "/variables", `{"key":"a%d","value":"x"}`, "api"},
		{"PUT", site, `{"description":"x"}`, "api"},
		{"POST", site + "/agent_grants", `{"agent_id":1}`, "api"},
	}
	w.call("POST", site+"/cluster_agents", `{"name":"first"}`, as(w.token))

	scopesOf := map[tidelock.TokenKind][]tidelock.Scope{
		tidelock.PersonalToken: split(anyScope),
		tidelock.ProjectToken:  split("api read_api read_repository write_repository read_registry write_registry k8s_proxy self_rotate"),
		tidelock.GroupToken:    split("api read_api read_repository write_repository read_registry write_registry k8s_proxy self_rotate"),
		tidelock.DeployToken:   split("read_repository read_registry write_registry"),
	}
	carriers := []string{"private-token", "bearer", "?private_token", "?access_token", "basic"}
	cells := 0
	for kind, scopes := range scopesOf {
		for _, scope := range scopes {
			secret, username := w.tokenOf(kind, scope, lead, project, group)
			for _, route := range routes {
				for _, carrier := range carriers {
					cells++
					path, headers := carry(carrier, route.path, secret, username)
					body := route.body
					if strings.Contains(body, "%d") {
						agents++
						body = fmt.Sprintf(body, agents)
					}
					got := w.call(route.method, path, body, headers...)
					what := fmt.Sprintf("%s %s by a %s token with %s in %s", route.method, route.path, kind, scope, carrier)
					switch {
					case carrier == "basic", kind == tidelock.DeployToken:
						if got.status != http.StatusUnauthorized {
							t.Errorf("%s: %d %s, want 401", what, got.status, got.body)
						}
					case kind == tidelock.ProjectToken && route.path == "/groups/team":
						// Its bot is a member of the project alone, and the group is private.
						if got.status != http.StatusNotFound {
							t.Errorf("%s: %d %s, want 404", what, got.status, got.body)
						}
					case slices.Contains(strings.Fields(route.scopes), string(scope)):
						if got.status >= 300 {
							t.Errorf("%s: %d %s, want success", what, got.status, got.body)
						}
					default:
						if got.status != http.StatusForbidden || got.object(t)["error"] != "insufficient_scope" || got.object(t)["scope"] != route.scopes {
							t.Errorf("%s: %d %s, want insufficient_scope of %s", what, got.status, got.body, route.scopes)
						}
					}
				}
			}
		}
	}
	t.Logf("%d cells", cells)
}

func split(words string) []tidelock.Scope {
	var scopes []tidelock.Scope
	for word := range strings.FieldsSeq(words) {
		scopes = append(scopes, tidelock.Scope(word))
	}
	return scopes
}

// tokenOf makes a token of a kind with one scope.
func (w *world) tokenOf(kind tidelock.TokenKind, scope tidelock.Scope, user tidelock.User, p tidelock.Project, g tidelock.Namespace) (secret, username string) {
	w.t.Helper()
	ctx := w.t.Context()
	n := forge.NewToken{Name: "test", Scopes: []tidelock.Scope{scope}}
	var s tidelock.Secret
	var token tidelock.Token
	var err error
	switch kind {
	case tidelock.PersonalToken:
		token, s, err = w.forge.CreatePersonalToken(ctx, w.root, user.ID, n)
	case tidelock.ProjectToken:
		token, s, err = w.forge.CreateAccessToken(ctx, w.root, forge.OnProject(p), n)
	case tidelock.GroupToken:
		token, s, err = w.forge.CreateAccessToken(ctx, w.root, forge.OnGroup(g), n)
	case tidelock.DeployToken:
		token, s, err = w.forge.CreateDeployToken(ctx, w.root, forge.OnProject(p), n)
	}
	must(w.t, err)
	return s.Reveal(), token.Username
}

func carry(carrier, path, secret, username string) (string, []string) {
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	if name, ok := strings.CutPrefix(carrier, "?"); ok {
		return path + sep + name + "=" + secret, nil
	}
	switch carrier {
	case "private-token":
		return path, []string{"PRIVATE-TOKEN: " + secret}
	case "bearer":
		return path, []string{"Authorization: Bearer " + secret}
	}
	basic := base64.StdEncoding.EncodeToString([]byte(username + ":" + secret))
	return path, []string{"Authorization: Basic " + basic}
}

// TestTokensThatDoNotCount uses what only looks like a credential.
func TestTokensThatDoNotCount(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Public), "site", tidelock.Public)
	agent, err := w.forge.CreateAgent(t.Context(), w.root, project, "prod")
	must(t, err)
	_, agentSecret, err := w.forge.CreateAgentToken(t.Context(), w.root, project, agent.ID, "x", "")
	must(t, err)
	for name, secret := range map[string]string{
		"an agent's token": agentSecret.Reveal(), "a prefix": "glpat-", "another case": strings.ToUpper(w.token),
		"more than a token": w.token + "x", "part of a token": w.token[:len(w.token)-1],
	} {
		for _, carrier := range []string{"private-token", "bearer", "?private_token", "?access_token"} {
			path, headers := carry(carrier, "/projects/team%2Fsite", secret, "")
			if got := w.call("GET", path, "", headers...); got.status != http.StatusUnauthorized {
				t.Errorf("%s in %s: %d %s", name, carrier, got.status, got.body)
			}
		}
	}
	// A bad token is not covered by a good one in another carrier.
	if got := w.call("GET", "/user?private_token="+w.token, "", as("glpat-wrong")); got.status != http.StatusUnauthorized {
		t.Errorf("a wrong header with a good query: %d", got.status)
	}
}

// TestDeliveryIsForMembers asks for what names sources in clusters.
func TestDeliveryIsForMembers(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Public), "site", tidelock.Public)
	stranger, err := w.forge.CreateUser(t.Context(), w.root, forge.NewUser{Username: "stranger"})
	must(t, err)
	secret, _ := w.tokenOf(tidelock.PersonalToken, tidelock.ScopeAPI, stranger, project, tidelock.Namespace{})
	const path = "/projects/team%2Fsite/announcements"
	if got := w.call("GET", path, ""); got.status != http.StatusUnauthorized {
		t.Errorf("anonymous: %d %s", got.status, got.body)
	}
	if got := w.call("GET", path, "", as(secret)); got.status != http.StatusForbidden {
		t.Errorf("a stranger: %d %s", got.status, got.body)
	}
	if got := w.call("GET", path, "", as(w.token)); got.status != http.StatusOK {
		t.Errorf("an owner: %d %s", got.status, got.body)
	}
}

// TestNarrowTokenRevokesNoOther has a token for clusters try to end one for
// the API.
func TestNarrowTokenRevokesNoOther(t *testing.T) {
	w := newWorld(t)
	ada, err := w.forge.CreateUser(t.Context(), w.root, forge.NewUser{Username: "ada"})
	must(t, err)
	issue := func(scope tidelock.Scope) (tidelock.Token, string) {
		token, secret, err := w.forge.CreatePersonalToken(t.Context(), w.root, ada.ID, forge.NewToken{Name: "x", Scopes: []tidelock.Scope{scope}})
		must(t, err)
		return token, secret.Reveal()
	}
	wide, wideSecret := issue(tidelock.ScopeAPI)
	_, narrow := issue(tidelock.ScopeK8sProxy)
	path := fmt.Sprintf("/personal_access_tokens/%d", wide.ID)
	if got := w.call("DELETE", path, "", as(narrow)); got.status != http.StatusForbidden {
		t.Errorf("by a token for clusters: %d %s", got.status, got.body)
	}
	if got := w.call("DELETE", path, "", as(wideSecret)); got.status != http.StatusNoContent {
		t.Errorf("by one for the API: %d %s", got.status, got.body)
	}
}
