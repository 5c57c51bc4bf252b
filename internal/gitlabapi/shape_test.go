package gitlabapi_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
)

// TestShapes holds the raw JSON against lists of fields with their types,
// which were written down from what clients read; the official client would
// not notice a field that is missing.
//
// Types: id (a positive whole number), number, text, bool, list, object, time
// (RFC 3339 to the millisecond in UTC), zoned (the same in any zone), exact (to
// the microsecond), date, and null or "type?" where null is as good.
func TestShapes(t *testing.T) {
	w := newWorld(t)
	group := w.group("team", tidelock.Public)
	project := w.project(group, "site", tidelock.Private)
	head := w.push(project, map[string]string{"a.yaml": "a: 1\n"})
	auth := as(w.token)
	post := func(path, body string) map[string]any {
		t.Helper()
		got := w.call("POST", path, body, auth)
		if got.status != 201 {
			t.Fatalf("POST %s: %d %s", path, got.status, got.body)
		}
		return got.object(t)
	}
	const site = "/projects/team%2Fsite"
	agent := post(site+"/cluster_agents", `{"name":"prod"}`)
	agentPath := fmt.Sprintf("%s/cluster_agents/%v", site, agent["id"])
	agentToken := post(agentPath+"/tokens", `{"name":"one"}`)
	personal := post("/users/1/personal_access_tokens", `{"name":"one","scopes":["api"]}`)
	access := post(site+"/access_tokens", `{"name":"one","scopes":["api"]}`)
	deploy := post(site+"/deploy_tokens", `{"name":"one","scopes":["read_repository"],"expires_at":"2099-01-01"}`)
	sshKeyMade := post("/user/keys", fmt.Sprintf(`{"title":"laptop","key":%q}`, newPublicKey(t)))
	post(site+"/deploy_keys", fmt.Sprintf(`{"title":"flux","key":%q}`, newPublicKey(t)))
	own := post("/projects", `{"name":"own"}`)
	post(site+"/protected_tags", `{"name":"v*"}`)
	post("/groups", `{"name":"dev","path":"dev"}`)
	shared := post(site+"/share", fmt.Sprintf(`{"group_id":%v,"group_access":30,"expires_at":"2099-01-01"}`, w.call("GET", "/groups/dev", "", auth).object(t)["id"]))
	post(site+"/variables", `{"key":"A","value":"x","description":"y"}`)
	post(site+"/variables", `{"key":"B","value":"12345678","masked_and_hidden":true}`)
	post(site+"/agent_grants", fmt.Sprintf(`{"agent_id":%v}`, agent["id"]))
	must(t, w.forge.SaveAnnouncements(t.Context(), tidelock.Announcement{
		Agent: tidelock.AgentID(agent["id"].(float64)), Source: "GitRepository/a/b", Number: 1, Project: project.ID, Ref: "refs/heads/main", State: tidelock.Sent,
	}))
	agentID := tidelock.AgentID(agent["id"].(float64))
	must(t, w.forge.SaveAgentSources(t.Context(), agentID, []tidelock.AgentSource{{
		Agent: agentID, Source: "GitRepository/a/b", State: tidelock.NotServed, Since: time.Now(), UpdatedAt: time.Now(),
	}}, nil))

	const (
		user    = "id:id username:text name:text state:text avatar_url:text? web_url:text locked:bool"
		userAll = user + " created_at:time bot:bool bio:text public_email:text email:text commit_email:text is_admin:bool namespace_id:id " +
			"can_create_group:bool can_create_project:bool external:bool two_factor_enabled:bool identities:list"
		namespace = "id:id name:text path:text kind:text full_path:text parent_id:id? avatar_url:text? web_url:text"
		groups    = "id:id name:text path:text full_name:text full_path:text parent_id:id? visibility:text description:text web_url:text " +
			"marked_for_deletion_on:null created_at:time avatar_url:text? shared_with_groups:list project_creation_level:text subgroup_creation_level:text " +
			"share_with_group_lock:bool require_two_factor_authentication:bool lfs_enabled:bool request_access_enabled:bool default_branch_protection:number " +
			"emails_disabled:bool mentions_disabled:bool"
		simple = "id:id description:text name:text name_with_namespace:text path:text path_with_namespace:text created_at:time default_branch:text " +
			"tag_list:list topics:list ssh_url_to_repo:text http_url_to_repo:text web_url:text readme_url:text? avatar_url:text? forks_count:number " +
			"star_count:number last_activity_at:time namespace:object visibility:text"
		projects = simple + " updated_at:time creator_id:id archived:bool empty_repo:bool permissions:object import_status:text import_url:text? mirror:bool " +
			"container_registry_image_prefix:text _links:object shared_with_groups:list forked_from_project:null marked_for_deletion_at:null " +
			"marked_for_deletion_on:null merge_method:text squash_option:text open_issues_count:number repository_access_level:text merge_requests_access_level:text " +
			"forking_access_level:text issues_access_level:text builds_access_level:text wiki_access_level:text snippets_access_level:text pages_access_level:text " +
			"container_registry_access_level:text environments_access_level:text issues_enabled:bool merge_requests_enabled:bool wiki_enabled:bool " +
			"jobs_enabled:bool snippets_enabled:bool container_registry_enabled:bool shared_runners_enabled:bool lfs_enabled:bool request_access_enabled:bool " +
			"only_allow_merge_if_pipeline_succeeds:bool only_allow_merge_if_all_discussions_are_resolved:bool remove_source_branch_after_merge:bool"
		variable     = "variable_type:text key:text hidden:bool protected:bool masked:bool raw:bool environment_scope:text description:text?"
		audit        = "id:id author_id:id entity_id:id entity_type:text event_name:text details:object created_at:time"
		member       = user + " access_level:number created_at:time expires_at:date? membership_state:text"
		token        = "id:id name:text description:text? revoked:bool created_at:time scopes:list user_id:id last_used_at:time? active:bool expires_at:date"
		accessToken  = token + " access_level:number"
		deployToken  = "id:id name:text username:text expires_at:time? scopes:list revoked:bool expired:bool"
		sshKey       = "id:id title:text key:text usage_type:text created_at:time expires_at:time? last_used_at:time?"
		anyDeployKey = "id:id title:text key:text fingerprint:text fingerprint_sha256:text created_at:time expires_at:time? last_used_at:time?"
		deployKey    = anyDeployKey + " can_push:bool"
		agents       = "id:id name:text config_project:object created_at:time created_by_user_id:id is_receptive:bool"
		agentTokens  = "id:id name:text description:text? agent_id:id status:text created_at:time created_by_user_id:id"
		agentTokenID = agentTokens + " last_used_at:time?"
		protection   = "id:id name:text push_access_levels:list merge_access_levels:list allow_force_push:bool unprotect_access_levels:list code_owner_approval_required:bool"
		commits      = "id:text short_id:text created_at:zoned parent_ids:list title:text message:text author_name:text author_email:text authored_date:zoned " +
			"committer_name:text committer_email:text committed_date:zoned trailers:object extended_trailers:object web_url:text"
		commitAlone = commits + " stats:object status:null project_id:id last_pipeline:null"
		branch      = "name:text merged:bool protected:bool default:bool developers_can_push:bool developers_can_merge:bool can_push:bool web_url:text commit:object"
		tag         = "name:text message:text? target:text commit:object release:null protected:bool created_at:zoned?"
		diff        = "diff:text new_path:text old_path:text a_mode:text b_mode:text new_file:bool renamed_file:bool deleted_file:bool generated_file:bool? collapsed:bool too_large:bool"
		// "a: 1\n", as git names it
		blobOfA      = "a8926a52d8dcba5c4386945476ab6a2ad008afd4"
		protectedTag = "name:text create_access_levels:list"
		tree         = "id:text name:text type:text path:text mode:text"
		file         = "file_name:text file_path:text size:number encoding:text content_sha256:text ref:text blob_id:text commit_id:text last_commit_id:text execute_filemode:bool content:text"
		status       = "id:id name:text connected:bool connections:list configuration:object"
		grant        = "agent_id:id agent_name:text? agent_project:text? project_id:id project:text granted_by_user_id:id created_at:exact"
		announced    = "agent_id:id source:text number:number project_id:id ref:text commit:text? digest:text? push_id:id? state:text message:text accepted_at:exact? " +
			"sent_at:exact? announced_at:exact? called_at:exact? answered_at:exact? handled_at:exact? fetched_at:exact? via:text? attempts:number"
		sources = "source:text project_id:id? ref:text? wanted:text? digest:text? revision:text? suspended:bool state:text message:text since:exact updated_at:exact"
		push    = "id:id project_id:id at:exact user:object? updates:list artifact:object?"
	)
	for _, c := range []struct{ path, fields string }{
		{"/version", "version:text revision:text"},
		{"/metadata", "version:text revision:text kas:object enterprise:bool ssh:null"},
		{"/user", userAll},
		{"/users", userAll},
		{"/users/1", userAll},
		{"/namespaces", namespace},
		{"/namespaces/team", namespace},
		{"/groups", groups},
		{"/groups/team", groups},
		{"/groups/team/projects", projects},
		{"/groups/team/members", member},
		{"/projects?search=site", projects},
		{"/projects?simple=true", simple},
		{site, projects + " container_expiration_policy:object tag_immutability:list"},
		{fmt.Sprintf("/projects/%v", own["id"]), projects + " owner:object container_expiration_policy:object tag_immutability:list"},
		{site + "/members", member},
		{site + "/members/all/1", member},
		{"/personal_access_tokens", token},
		{"/personal_access_tokens/self", token},
		{fmt.Sprintf("/personal_access_tokens/%v", personal["id"]), token},
		{site + "/access_tokens", accessToken},
		{fmt.Sprintf("%s/access_tokens/%v", site, access["id"]), accessToken},
		{site + "/deploy_tokens", deployToken},
		{fmt.Sprintf("%s/deploy_tokens/%v", site, deploy["id"]), deployToken},
		{"/deploy_tokens", deployToken},
		{"/user/keys", sshKey},
		{fmt.Sprintf("/keys/%v", sshKeyMade["id"]), sshKey + " user:object"},
		{site + "/deploy_keys", deployKey},
		{"/deploy_keys", anyDeployKey + " projects_with_write_access:list projects_with_readonly_access:list groups_with_write_access:list groups_with_readonly_access:list"},
		{site + "/cluster_agents", agents},
		{agentPath, agents},
		{agentPath + "/tokens", agentTokens},
		{fmt.Sprintf("%s/tokens/%v", agentPath, agentToken["id"]), agentTokenID},
		{site + "/protected_branches", protection},
		{site + "/protected_branches/main", protection},
		{site + "/repository/commits", commits},
		{site + "/repository/commits/" + string(head), commitAlone},
		{site + "/repository/commits?with_stats=true", commits + " stats:object"},
		{site + "/repository/commits/" + string(head) + "/diff", diff},
		{site + "/repository/commits/" + string(head) + "/refs", "type:text name:text"},
		{site + "/repository/compare?from=main&to=feature/x", "commit:object? commits:list diffs:list compare_timeout:bool compare_same_ref:bool web_url:text"},
		{site + "/repository/merge_base?refs[]=main&refs[]=v1", commits},
		{site + "/repository/contributors", "name:text email:text commits:number additions:number deletions:number"},
		{site + "/repository/blobs/" + blobOfA, "size:number encoding:text content:text sha:text"},
		{site + "/protected_tags", protectedTag},
		{site + "/protected_tags/v*", protectedTag},
		{site + "/repository/branches", branch},
		{site + "/repository/branches/main", branch},
		{site + "/repository/tags", tag},
		{site + "/repository/tags/v1", tag},
		{site + "/repository/tree", tree},
		{site + "/repository/files/a.yaml?ref=main", file},
		{agentPath + "/status", status},
		{agentPath + "/announcements", announced},
		{agentPath + "/sources", sources},
		{site + "/agent_grants", grant},
		{agentPath + "/grants", grant},
		{site + "/announcements", announced},
		{site + "/pushes", push},
		{site + "/invited_groups", "id:id web_url:text name:text avatar_url:text? full_name:text full_path:text"},
		{"/groups/dev/projects/shared", projects},
		{site + "/variables", variable + " value:text"},
		{site + "/variables/B", variable + " value:null"},
		{"/audit_events", audit},
		{site + "/audit_events", audit},
	} {
		t.Run(c.path, func(t *testing.T) {
			got := w.call("GET", c.path, "", auth)
			if got.status != 200 {
				t.Fatalf("got %d %s", got.status, got.body)
			}
			checkShape(t, firstOf(t, got), c.fields)
		})
	}
	// The secret is in the answer that made it, and in no other.
	for what, made := range map[string]map[string]any{"agent": agentToken, "personal": personal, "access": access, "deploy": deploy} {
		if secret, _ := made["token"].(string); len(secret) < 30 {
			t.Errorf("the %s token came as %q", what, secret)
		}
	}
	checkShape(t, agentToken, agentTokenID+" token:text")
	checkShape(t, personal, token+" token:text")
	checkShape(t, access, accessToken+" token:text")
	checkShape(t, deploy, deployToken+" token:text")

	checkShape(t, shared, "project_id:id group_id:id group_access:number expires_at:date")
	checkShape(t, firstOf(t, w.call("GET", site+"/audit_events", "", auth))["details"].(map[string]any),
		"custom_message:text author_name:text target_details:text ip_address:text entity_path:text event_name:text token_id:id? detail:text")

	got := w.call("GET", site, "", auth).object(t)
	checkShape(t, got["shared_with_groups"].([]any)[0].(map[string]any), "group_id:id group_name:text group_full_path:text group_access_level:number expires_at:date?")
	checkShape(t, got["namespace"].(map[string]any), namespace)
	checkShape(t, got["permissions"].(map[string]any), "project_access:object? group_access:object?")
	checkShape(t, got["_links"].(map[string]any), "self:text repo_branches:text members:text cluster_agents:text")
	checkShape(t, agent["config_project"].(map[string]any), "id:id description:text name:text name_with_namespace:text path:text path_with_namespace:text created_at:time")
	checkShape(t, w.call("GET", "/metadata", "", auth).object(t)["kas"].(map[string]any), "enabled:bool externalUrl:text externalK8sProxyUrl:text version:text")
	checkShape(t, w.call("GET", site+"/protected_branches/main", "", auth).object(t)["push_access_levels"].([]any)[0].(map[string]any),
		"id:id access_level:number access_level_description:text deploy_key_id:null user_id:null group_id:null")
	if got["http_url_to_repo"] != w.url+"/team/site.git" || got["web_url"] != w.url+"/team/site" ||
		got["container_registry_image_prefix"] != strings.TrimPrefix(w.url, "http://")+"/team/site" {
		t.Errorf("the project's addresses are %v, %v, %v", got["http_url_to_repo"], got["web_url"], got["container_registry_image_prefix"])
	}
}

// Others do not see what is private of a user.
func TestUserShapes(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada")
	token := as(w.personal(ada, tidelock.ScopeReadUser))
	if got := w.call("GET", "/users/1", "", token).object(t); got["email"] != nil || got["is_admin"] != nil || got["username"] != "root" {
		t.Errorf("ada sees of root: %v", got)
	}
	if got := w.call("GET", "/user", "", token).object(t); got["email"] != "ada@example.com" || got["is_admin"] != false {
		t.Errorf("ada sees of herself: %v", got)
	}
}

func firstOf(t *testing.T, a answer) map[string]any {
	t.Helper()
	switch v := a.json(t).(type) {
	case map[string]any:
		return v
	case []any:
		if len(v) > 0 {
			return v[0].(map[string]any)
		}
	}
	t.Fatalf("nothing to look at: %s", a.body)
	return nil
}

var shapes = map[string]*regexp.Regexp{
	"id":     regexp.MustCompile(`^[1-9][0-9]*$`),
	"number": regexp.MustCompile(`^-?[0-9]+$`),
	"real":   regexp.MustCompile(`^-?[0-9]+([.]|e|$)`),
	"text":   regexp.MustCompile(`^"`),
	"bool":   regexp.MustCompile(`^(true|false)$`),
	"list":   regexp.MustCompile(`^\[`),
	"object": regexp.MustCompile(`^\{`),
	"time":   regexp.MustCompile(`^"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"$`),
	"zoned":  regexp.MustCompile(`^"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}(Z|[+-]\d\d:\d\d)"$`),
	"exact":  regexp.MustCompile(`^"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"$`),
	"date":   regexp.MustCompile(`^"\d{4}-\d\d-\d\d"$`),
	"null":   regexp.MustCompile(`^null$`),
}

func checkShape(t *testing.T, got map[string]any, fields string) {
	t.Helper()
	wanted := map[string]bool{}
	for field := range strings.FieldsSeq(fields) {
		name, kind, _ := strings.Cut(field, ":")
		wanted[name] = true
		value, there := got[name]
		if !there {
			t.Errorf("field %q is missing", name)
			continue
		}
		kind, nullable := strings.CutSuffix(kind, "?")
		text, err := json.Marshal(value)
		must(t, err)
		if !(nullable && value == nil) && !shapes[kind].Match(text) {
			t.Errorf("field %q is %s, want %s", name, text, kind)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if !wanted[name] {
			t.Errorf("field %q is new: list it here and in docs/gitlab-compat.md", name)
		}
	}
}
