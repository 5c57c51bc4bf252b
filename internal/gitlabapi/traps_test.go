package gitlabapi_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
	"tidelock.dev/internal/store/storetest"
)

// TestTraps holds us against what GitLab's clients fall over, where no other
// test does. docs/clients.md lists all of it.
func TestTraps(t *testing.T) {
	var learned map[string]map[string]any
	t.Run("never 500", func(t *testing.T) {
		learned = neverFails(t, "sqlite:"+filepath.Join(t.TempDir(), "tidelock.db"), 0, nil)
	})
	t.Run("never 500 with PostgreSQL", func(t *testing.T) {
		neverFails(t, storetest.Postgres(t), 4, learned)
	})

	w := newWorld(t)
	group := w.group("Team", tidelock.Private)
	site := w.project(group, "Site", tidelock.Private)
	head := string(w.push(site, map[string]string{"README.md": "hello"}))
	auth := as(w.token)
	get := func(t *testing.T, path string) answer {
		t.Helper()
		got := w.call("GET", path, "", auth)
		if got.status != http.StatusOK {
			t.Fatalf("GET %s: %d %s", path, got.status, got.body)
		}
		return got
	}
	post := func(t *testing.T, path, body string) map[string]any {
		t.Helper()
		got := w.call("POST", path, body, auth)
		if got.status != http.StatusCreated {
			t.Fatalf("POST %s: %d %s", path, got.status, got.body)
		}
		return got.object(t)
	}

	// A name of digits alone would be taken for an id.
	t.Run("numbers are ids", func(t *testing.T) {
		made := post(t, "/projects", fmt.Sprintf(`{"path":"4711","namespace_id":%d}`, group.ID))
		if got := w.call("GET", "/projects/4711", "", auth); got.status != http.StatusNotFound {
			t.Errorf("by its name: %d %s", got.status, got.body)
		}
		for _, id := range []string{fmt.Sprint(made["id"]), "Team%2F4711", "team%2F4711"} {
			if got := get(t, "/projects/"+id).object(t); got["id"] != made["id"] {
				t.Errorf("%s leads to project %v, want %v", id, got["id"], made["id"])
			}
		}
	})

	// More than a column of PostgreSQL holds would be an error of ours.
	t.Run("no such level", func(t *testing.T) {
		for _, level := range []string{"-1", "101", "2147483648", "9223372036854775807"} {
			if got := w.call("GET", "/projects?min_access_level="+level, "", auth); got.status != http.StatusBadRequest {
				t.Errorf("%s: %d %s", level, got.status, got.body)
			}
		}
	})

	// flux bootstrap looks for a project in lower case, and for its group, its
	// tokens and keys as its user wrote them.
	t.Run("letter case", func(t *testing.T) {
		for _, path := range []string{"team%2Fsite", "Team%2FSite", "TEAM%2FSITE"} {
			project := "/projects/" + path
			if got := get(t, project).object(t); got["path_with_namespace"] != "Team/Site" {
				t.Errorf("%s is %v", path, got["path_with_namespace"])
			}
			token := post(t, project+"/deploy_tokens", `{"name":"case","scopes":["read_repository"]}`)
			key := post(t, project+"/deploy_keys", fmt.Sprintf(`{"title":"case","key":%q}`, newPublicKey(t)))
			for _, made := range []string{fmt.Sprintf("/deploy_tokens/%v", token["id"]), fmt.Sprintf("/deploy_keys/%v", key["id"])} {
				get(t, "/projects/tEAM%2FsITE"+made)
				if got := w.call("DELETE", project+made, "", auth); got.status != http.StatusNoContent {
					t.Errorf("DELETE %s%s: %d %s", project, made, got.status, got.body)
				}
			}
		}
		for _, path := range []string{"team", "TEAM"} {
			for _, kind := range []string{"/groups/", "/namespaces/"} {
				if got := get(t, kind+path).object(t); got["path"] != "Team" || int64(got["id"].(float64)) != int64(group.ID) {
					t.Errorf("%s%s is %v", kind, path, got)
				}
			}
			get(t, "/groups/"+path+"/deploy_tokens")
		}
	})

	// Clients find deploy tokens and keys by name among those that are listed.
	t.Run("equal names", func(t *testing.T) {
		const tokens, keys = "/projects/Team%2FSite/deploy_tokens", "/projects/Team%2FSite/deploy_keys"
		one, two := post(t, tokens, `{"name":"flux","scopes":["read_repository"]}`), post(t, tokens, `{"name":"flux","scopes":["read_repository"]}`)
		if one["id"] == two["id"] || one["username"] == two["username"] || one["token"] == two["token"] {
			t.Errorf("two tokens of one name are %v and %v", one, two)
		}
		if got := w.call("DELETE", fmt.Sprintf("%s/%v", tokens, one["id"]), "", auth); got.status != http.StatusNoContent {
			t.Errorf("revoke one: %d %s", got.status, got.body)
		}
		valid := slices.DeleteFunc(get(t, tokens).json(t).([]any), func(listed any) bool { return listed.(map[string]any)["revoked"] == true })
		if len(valid) != 1 || valid[0].(map[string]any)["id"] != two["id"] {
			t.Errorf("after one was revoked these look valid: %v", valid)
		}
		for range 2 {
			post(t, keys, fmt.Sprintf(`{"title":"flux","key":%q}`, newPublicKey(t)))
		}
		if listed := get(t, keys).json(t).([]any); len(listed) != 2 {
			t.Errorf("two keys of one title are %v", listed)
		}
	})

	// flux bootstrap caches by what the headers say, and would take a list of
	// before its own change.
	t.Run("nothing is cached", func(t *testing.T) {
		const variables = "/projects/Team%2FSite/variables"
		for _, path := range []string{
			variables, "/projects", "/projects/Team%2FSite", "/groups/Team", "/user", "/projects/Team%2FSite/deploy_tokens",
			"/projects/Team%2FSite/repository/branches", "/projects/Team%2FSite/repository/files/README.md?ref=main",
			"/projects/Team%2FSite/repository/files/README.md/raw?ref=main", "/projects/Team%2FSite/repository/archive.tar",
		} {
			header := get(t, path).header
			if got := header.Get("Cache-Control"); got != "max-age=0, private, must-revalidate" {
				t.Errorf("GET %s: Cache-Control is %q", path, got)
			}
			for _, name := range []string{"Etag", "Last-Modified", "Expires"} {
				if got := header.Get(name); got != "" {
					t.Errorf("GET %s: %s is %q", path, name, got)
				}
			}
			for _, condition := range []string{"If-None-Match: *", `If-None-Match: W/"x"`, "If-Modified-Since: Fri, 31 Dec 2100 23:59:59 GMT"} {
				if got := w.call("GET", path, "", auth, condition); got.status != http.StatusOK || got.body == "" {
					t.Errorf("GET %s with %s: %d, want all of it", path, condition, got.status)
				}
			}
		}
	})

	// Flux's documentation advises providers to name projects by number.
	t.Run("statuses by number", func(t *testing.T) {
		project := itoa(int64(site.ID))
		if got := get(t, "/projects/"+project+"/repository/commits/"+head+"/statuses?name=one"); got.body != "[]" {
			t.Errorf("before any: %s", got.body)
		}
		post(t, "/projects/"+project+"/statuses/"+head, `{"state":"success","name":"one","description":"x"}`)
		if got := get(t, "/projects/"+project+"/repository/commits/"+head+"/statuses?name=one").json(t).([]any); len(got) != 1 {
			t.Errorf("afterwards: %v", got)
		}
	})

	// What is only read in another spelling is not written there.
	t.Run("singular and plural", func(t *testing.T) {
		for _, path := range []string{"/projects/Team%2FSite/repository/commits/" + head + "/statuses", "/projects/Team%2FSite/pipelines"} {
			if got := w.call("POST", path, `{"state":"success","ref":"main"}`, auth); got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "GET" {
				t.Errorf("POST %s: %d %s", path, got.status, got.body)
			}
		}
	})

	t.Run("version", func(t *testing.T) {
		version, _, _ := strings.Cut(get(t, "/version").object(t)["version"].(string), "-")
		if !regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+$`).MatchString(version) {
			t.Errorf("version is %q, want a semantic one before any hyphen", version)
		}
	})

	// glab reads what it makes through pointers that it does not check.
	t.Run("never null", func(t *testing.T) {
		c := w.client()
		token, _, err := c.Users.CreatePersonalAccessTokenForCurrentUser(&gitlab.CreatePersonalAccessTokenForCurrentUserOptions{
			Name: gitlab.Ptr("glab"), Scopes: &[]string{"k8s_proxy"},
		})
		must(t, err)
		if token.ExpiresAt == nil || token.CreatedAt == nil {
			t.Errorf("a token made without an expiry is %+v", token)
		}
		agent, _, err := c.ClusterAgents.RegisterAgent("Team/Site", &gitlab.RegisterAgentOptions{Name: gitlab.Ptr("prod")})
		must(t, err)
		secret, _, err := c.ClusterAgents.CreateAgentToken("Team/Site", agent.ID, &gitlab.CreateAgentTokenOptions{Name: gitlab.Ptr("one")})
		must(t, err)
		agents, _, err := c.ClusterAgents.ListAgents("Team/Site", nil)
		must(t, err)
		secrets, _, err := c.ClusterAgents.ListAgentTokens("Team/Site", agent.ID, nil)
		must(t, err)
		if agent.CreatedAt == nil || secret.CreatedAt == nil || len(agents) != 1 || agents[0].CreatedAt == nil || len(secrets) != 1 || secrets[0].CreatedAt == nil {
			t.Errorf("agents %+v, %+v, tokens %+v, %+v", agent, agents, secret, secrets)
		}
	})

	// A ref may hold what clients cut a Link at.
	t.Run("links", func(t *testing.T) {
		post(t, "/projects/Team%2FSite/repository/branches", `{"branch":"a,b;c","ref":"main"}`)
		for _, path := range []string{
			"/projects/Team%2FSite/repository/commits/a,b;c/refs?per_page=1", "/projects/Team%2FSite/repository/commits/a%2Cb%3Bc/refs?per_page=1",
			"/projects/Team%2FSite/repository/tree?ref=a,b%3Bc&per_page=1&path=", "/projects/Team%2FSite/repository/branches?per_page=1&search=,%3B",
			"/projects?per_page=1&pagination=keyset&order_by=id&sort=asc&search=",
		} {
			link := get(t, path).header.Get("Link")
			if link == "" {
				t.Errorf("%s has no Link", path)
			}
			checkLink(t, path, link)
		}
	})

	// Clients send a POST again after an answer that got lost or was a 429 or
	// 5xx; what was made is there once, or the second says that it is.
	t.Run("replays", func(t *testing.T) {
		const project = "/projects/Team%2FSite"
		other := w.group("other", tidelock.Private)
		key := newPublicKey(t)
		for _, c := range []struct {
			path, body string
			again      int
			list       string // where it is counted
			name       string // by a text in it
		}{
			{"/projects", fmt.Sprintf(`{"name":"once","namespace_id":%d}`, group.ID), 400, "/groups/Team/projects", `"path":"once"`},
			{"/groups", `{"name":"once","path":"once"}`, 400, "/groups", `"path":"once"`},
			{"/users", `{"username":"ada","name":"Ada","email":"ada@example.com","reset_password":true}`, 400, "/users", `"username":"ada"`},
			{project + "/repository/branches", `{"branch":"once","ref":"main"}`, 400, project + "/repository/branches", `"name":"once"`},
			{project + "/repository/tags", `{"tag_name":"once","ref":"main"}`, 400, project + "/repository/tags", `"name":"once"`},
			{project + "/repository/files/once", `{"branch":"main","content":"x","commit_message":"once"}`, 400, project + "/repository/commits", `"title":"once"`},
			{project + "/repository/commits", `{"branch":"main","commit_message":"twice","actions":[{"action":"create","file_path":"two","content":"x"}]}`, 400,
				project + "/repository/commits", `"title":"twice"`},
			{project + "/protected_branches", `{"name":"once"}`, 409, project + "/protected_branches", `"name":"once"`},
			{project + "/protected_tags", `{"name":"once"}`, 409, project + "/protected_tags", `"name":"once"`},
			{project + "/deploy_keys", fmt.Sprintf(`{"title":"once","key":%q}`, key), 201, project + "/deploy_keys", `"title":"once"`},
			{project + "/variables", `{"key":"ONCE","value":"x"}`, 400, project + "/variables", `"key":"ONCE"`},
			{project + "/cluster_agents", `{"name":"once"}`, 400, project + "/cluster_agents", `"name":"once"`},
			{project + "/environments", `{"name":"once"}`, 400, project + "/environments", `"name":"once"`},
			{project + "/share", fmt.Sprintf(`{"group_id":%d,"group_access":30}`, other.ID), 409, project + "/invited_groups", `"full_path":"other"`},
			{project + "/statuses/" + head, `{"state":"running","name":"once"}`, 400, project + "/repository/commits/" + head + "/statuses?all=true", `"name":"once"`},
		} {
			post(t, c.path, c.body)
			if got := w.call("POST", c.path, c.body, auth); got.status != c.again {
				t.Errorf("POST %s %s again: %d %s, want %d", c.path, c.body, got.status, got.body, c.again)
			}
			if listed := get(t, c.list).body; strings.Count(listed, c.name) != 1 {
				t.Errorf("POST %s %s twice: made %d times in %s", c.path, c.body, strings.Count(listed, c.name), listed)
			}
		}
		// Archiving, blocking and deleting again change nothing more.
		for range 2 {
			post(t, project+"/archive", "")
		}
		post(t, project+"/unarchive", "")
	})

	t.Run("deleted is gone", func(t *testing.T) {
		made := post(t, "/groups", `{"name":"gone","path":"gone"}`)
		below := post(t, "/projects", fmt.Sprintf(`{"name":"site","namespace_id":%v}`, made["id"]))
		if below["import_status"] != "none" {
			t.Errorf("import_status is %v", below["import_status"])
		}
		if got := w.call("DELETE", "/groups/gone", "", auth); got.status != http.StatusAccepted {
			t.Errorf("delete the group: %d %s", got.status, got.body)
		}
		for _, path := range []string{"/groups/gone", fmt.Sprintf("/groups/%v", made["id"]), "/namespaces/gone", "/projects/gone%2Fsite", fmt.Sprintf("/projects/%v", below["id"])} {
			if got := w.call("GET", path, "", auth); got.status != http.StatusNotFound {
				t.Errorf("GET %s: %d %s", path, got.status, got.body)
			}
		}
		if slices.Contains(pathsOf(t, get(t, "/groups")), "gone") {
			t.Error("the group is listed")
		}
	})
}
