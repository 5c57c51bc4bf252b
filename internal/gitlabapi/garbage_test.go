package gitlabapi_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitlabapi"
)

// garbage is what clients may send where another value is expected: of another
// type, out of range, at the limits of what databases can hold, or with a
// meaning of its own to whoever reads it next.
var garbage = []any{
	"", " ", "x", "\x00", "a\nb", "\xff", "\U0010ffff\u202e", "0", "-1", 2147483648, "9223372036854775807", "9223372036854775808",
	json.Number("1e400"), 1.5, true, "--all", "../../x", "refs/heads/main", "HEAD~1", "*", "%", "'\"\\<&;,", "9999-12-31", "0001-01-01T00:00:00Z",
	"http://[::1", "[(", strings.Repeat("é", 70_000), []any{}, []any{nil}, []any{[]any{}}, []any{map[string]any{}}, []any{"x", "\x00"}, map[string]any{"x": []any{}},
}

// garbageSegments stand in a path where a name or an id is expected, as they
// are written there.
var garbageSegments = []string{
	"0", "-1", "1.5", "x", "9223372036854775807", "9223372036854775808", "%00", "%ff", "%0A", "%2F", "a%2Fb", "..", "%2E%2E", "a%2F..%2Fb", "%20",
	"--all", "HEAD", "HEAD~1", "@%7B0%7D", "%5Emain", "main:a.yaml", "refs%2Fheads%2Fmain", "*", "%25", "%F0%9F%92%A5", "a,b;c", strings.Repeat("x", 5000), strings.Repeat("0", 40),
}

// garbageQueries are queries that say nothing.
var garbageQueries = []string{
	"%zz", "a=%ff", "%00=1", "per_page=x", "page=9223372036854775807", "pagination=keyset&order_by=x&cursor=%00", "[]=1", "a[b]=1&a=2", ";",
}

// garbageBodies are bodies that say nothing, by content type.
var garbageBodies = [][2]string{
	{"application/json", "{"}, {"application/json", "null"}, {"application/json", "[]"}, {"application/json", `"x"`}, {"application/json", "{}{}"},
	{"application/json", "\xff"}, {"application/json", `{"\u0000":1}`}, {"application/json", strings.Repeat("[", 100)}, {"application/json", ""},
	{"application/x-www-form-urlencoded", "%zz"}, {"application/x-www-form-urlencoded", "[]=&[a]=1&a[b][]=2"}, {"multipart/form-data", "x"},
	{"multipart/form-data; boundary=b", "--b\r\n\r\n"}, {"text/xml", "<a/>"}, {";;;", "x"}, {"\x00", ""},
}

// good are values of parameters that routes accept; of those not listed it is
// found out.
func (m *mistakes) good(pattern, name string) []any {
	tomorrow := m.root.User.CreatedAt.AddDate(0, 0, 2).Format("2006-01-02")
	switch {
	case name == "key" && strings.HasSuffix(pattern, "keys"):
		return []any{m.newKey()}
	case name == "username" && pattern == "/users":
		return []any{"ada"}
	case name == "path" && strings.Contains(pattern, "/repository/"):
		return []any{"a.yaml"}
	}
	if v, ok := map[string]any{
		"actions": []any{
			map[string]any{"action": "create", "file_path": "new", "content": "eA==", "encoding": "base64", "execute_filemode": true},
			map[string]any{"action": "update", "file_path": "a.yaml", "content": "x", "last_commit_id": m.head},
			map[string]any{"action": "move", "file_path": "c.yaml", "previous_path": "b.yaml"},
			map[string]any{"action": "chmod", "file_path": "a.yaml", "execute_filemode": true},
			map[string]any{"action": "delete", "file_path": "d.yaml"},
		},
		"access_level": 30, "agent_id": m.args["agent_id"], "allowed_to_push": []any{map[string]any{"access_level": 30}, map[string]any{"id": 1, "_destroy": true}},
		"allowed_to_create": []any{map[string]any{"access_level": 30}}, "branch": "main", "cluster_agent_id": m.args["agent_id"],
		"custom_headers": []any{map[string]any{"key": "X-A", "value": "b"}}, "environment": "prod", "expires_at": tomorrow, "from": "v1", "group_access": 30,
		"group_id": m.other, "key": "NEW", "namespace": "team", "namespace_id": nil, "parent_id": nil, "filter": map[string]any{"environment_scope": "*"},
		"push_access_level": 40, "ref": "main", "ref_name": "main", "refs": []any{"main", "v1"}, "scopes": []any{"api"}, "sha": m.head, "start_branch": nil,
		"to": "main", "url": "http://127.0.0.1:9/x", "user_id": m.args["user_id"], "tag_name": "t1", "name": "n1",
		"pagination": nil, "visibility": "private", "start_sha": nil, "last_commit_id": nil, "pipeline_id": nil, "username": nil,
	}[name]; ok {
		return []any{v}
	}
	return []any{"1", "true", "2030-01-01", "https://x.example", "asc", "id", "success", "active", "branch", "default", "production", "env_var", "text", "wildcard", nil}
}

// mistakes makes the mistakes that a client can make with a route.
type mistakes struct {
	*world
	token  string
	args   map[string]string // of the routes being tried
	group  int64
	site   int64
	other  int64
	head   string
	params []string // every name that the API's text holds
	calls  int
	last   string      // what was called last
	seen   map[int]int // answers by status
	nth    int         // of the mistakes at one place, one in so many is made
	turn   int
}

// some are every nth of the mistakes at a place, beginning with another one at
// every place, so that all are made at some.
func some[T any](m *mistakes, all []T) []T {
	var chosen []T
	for i := m.turn % m.nth; i < len(all); i += m.nth {
		chosen = append(chosen, all[i])
	}
	m.turn++
	return chosen
}

// neverFails has every route of the table called with bodies, parameters and
// ids that are wrong in every way, and wants an answer that tells the client
// so: clients call again, five times, after any 5xx, and nothing redirects.
//
// What it learned of the routes is returned; given back, it is not learned
// again, and only what reaches a database is wrong. With TIDELOCK_SOAK set all
// mistakes are made everywhere, which takes a minute.
func neverFails(t *testing.T, database string, turn int, learned map[string]map[string]any) map[string]map[string]any {
	w := newWorldOn(t, database)
	m := &mistakes{world: w, token: w.token, args: map[string]string{}, seen: map[int]int{}, nth: 12, turn: turn}
	if learned != nil {
		m.nth = 24
	}
	switch {
	case raced:
		m.nth = 32
	case os.Getenv("TIDELOCK_SOAK") != "":
		m.nth = 1
	}
	m.settle()
	routes := gitlabapi.Routes()
	slices.SortStableFunc(routes, func(a, b string) int { return ends(a) - ends(b) })
	known := map[string]map[string]any{}
	for i, route := range routes {
		if raced && i%8 != 0 { // the race detector takes its time
			continue
		}
		known[route] = m.route(route, learned[route])
	}
	if log := w.log.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("clients' mistakes were logged as ours: %.2000s", log)
	}
	t.Logf("%d routes, %d calls; answers by status: %v", len(routes), m.calls, m.seen)
	return known
}

// ends orders routes, so that what others need is removed last.
func ends(route string) int {
	switch {
	case strings.Contains(route, "/self"):
		return 100
	case strings.HasPrefix(route, "DELETE "):
		return 50 - strings.Count(route, "/")
	}
	return 0
}

// settle makes one of everything that a path can name.
func (m *mistakes) settle() {
	t := m.t
	group := m.world.group("team", tidelock.Private)
	site := m.world.project(group, "site", tidelock.Private)
	m.group, m.site, m.other = int64(group.ID), int64(site.ID), int64(m.world.group("other", tidelock.Private).ID)
	m.head = string(m.push(site, map[string]string{"a.yaml": "a: 1\n", "b.yaml": "b", "d.yaml": "d"}))
	eve := m.user("eve")
	m.args["user_id"] = itoa(int64(eve.ID))
	_, err := m.forge.SetMember(t.Context(), m.root, forge.OnProject(site), eve.ID, tidelock.Developer, m.root.User.CreatedAt.AddDate(1, 0, 0))
	must(t, err)
	_, err = m.forge.SetMember(t.Context(), m.root, forge.OnGroup(group), eve.ID, tidelock.Developer, m.root.User.CreatedAt.AddDate(1, 0, 0))
	must(t, err)

	at := "/projects/" + itoa(m.site)
	m.args["agent_id"] = m.made(at+"/cluster_agents", map[string]any{"name": "prod"})
	m.made(at+"/agent_grants", map[string]any{"agent_id": m.args["agent_id"]})
	m.made(at+"/statuses/"+m.head, map[string]any{"state": "running"})
	m.args["job_id"], m.args["pipeline_id"] = m.first(at+"/jobs"), m.first(at+"/pipelines")
	m.args["environment_id"] = m.made(at+"/environments", map[string]any{"name": "prod"})
	m.args["deployment_id"] = m.made(at+"/deployments", map[string]any{"environment": "prod", "sha": m.head, "ref": "main", "tag": false, "status": "running"})
	m.args["hook_id"] = m.made(at+"/hooks", map[string]any{"url": "http://127.0.0.1:9/x", "custom_headers": []any{map[string]any{"key": "KEY", "value": "x"}}})
	m.world.call("POST", at+"/hooks/"+m.args["hook_id"]+"/test/push_events", "", as(m.token))
	m.args["hook_event_id"] = m.first(at + "/hooks/" + m.args["hook_id"] + "/events")
	m.made(at+"/variables", map[string]any{"key": "KEY", "value": "x"})
	m.made("/groups/"+itoa(m.group)+"/variables", map[string]any{"key": "KEY", "value": "x"})
	m.made(at+"/protected_tags", map[string]any{"name": "v*"})
	m.made(at+"/share", map[string]any{"group_id": m.other, "group_access": 30})
	m.args["event_id"] = m.first("/audit_events")
	maps.Copy(m.args, map[string]string{
		"branch": "main", "file_path": "a.yaml", "group_id": itoa(m.other), "key": "KEY", "sha": m.head, "tag_name": "v1", "trigger": "push_events",
	})

	literal := regexp.MustCompile(`"([a-z_]+)"`)
	files, err := fs.Glob(os.DirFS("."), "*.go")
	must(t, err)
	names := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		must(t, err)
		for _, found := range literal.FindAllStringSubmatch(string(text), -1) {
			names[found[1]] = true
		}
	}
	for _, kind := range append(slices.Clone(forge.UnusedHookKinds), "push", "tag_push", "pipeline", "deployment") {
		names[kind+"_events"] = true
	}
	for _, name := range []string{"private_token", "access_token", "job_token", "sudo"} {
		delete(names, name)
	}
	m.params = slices.Sorted(maps.Keys(names))
}

func (m *mistakes) newKey() string { return newPublicKey(m.t) }

func (m *mistakes) made(path string, body map[string]any) string {
	m.t.Helper()
	text, err := json.Marshal(body)
	must(m.t, err)
	got := m.world.call("POST", path, string(text), as(m.token))
	if got.status != http.StatusCreated {
		m.t.Fatalf("POST %s: %d %s", path, got.status, got.body)
	}
	object := got.object(m.t)
	if id, ok := object["id"].(float64); ok {
		return itoa(int64(id))
	}
	return ""
}

func (m *mistakes) first(path string) string {
	m.t.Helper()
	return itoa(int64(firstOf(m.t, m.world.call("GET", path, "", as(m.token)))["id"].(float64)))
}

// fill makes anew what the route may use up, and returns its path's values.
func (m *mistakes) fill(pattern string) map[string]string {
	args := maps.Clone(m.args)
	args["id"] = itoa(m.site)
	if strings.HasPrefix(pattern, "/groups") || strings.HasPrefix(pattern, "/namespaces") {
		args["id"] = itoa(m.group)
	}
	args["name"] = "main"
	if strings.Contains(pattern, "protected_tags") {
		args["name"] = "v*"
	}
	if strings.Contains(pattern, "blobs") {
		args["sha"] = "a8926a52d8dcba5c4386945476ab6a2ad008afd4"
	}
	parent, _, _ := strings.Cut(pattern, "/:token_id")
	if strings.Contains(pattern, ":token_id") {
		body := map[string]any{"name": "x", "scopes": []any{"read_api"}}
		switch parent {
		case "/projects/:id/deploy_tokens", "/groups/:id/deploy_tokens":
			body["scopes"] = []any{"read_repository"}
		case "/personal_access_tokens":
			parent = "/users/1/personal_access_tokens"
		case "/projects/:id/cluster_agents/:agent_id/tokens":
			agent := "/projects/" + args["id"] + "/cluster_agents/" + args["agent_id"] + "/tokens/"
			for _, old := range m.world.call("GET", strings.TrimSuffix(agent, "/"), "", as(m.token)).json(m.t).([]any) {
				m.world.call("DELETE", fmt.Sprint(agent, old.(map[string]any)["id"]), "", as(m.token))
			}
		}
		args["token_id"] = m.made(pathOf(parent, args), body)
	}
	if strings.Contains(pattern, ":key_id") {
		parent, _, _ := strings.Cut(pattern, "/:key_id")
		if parent == "/keys" {
			parent = "/user/keys"
		}
		args["key_id"] = m.made(pathOf(parent, args), map[string]any{"title": "x", "key": m.newKey()})
	}
	return args
}

func pathOf(pattern string, args map[string]string) string {
	return routeArg.ReplaceAllStringFunc(pattern, func(arg string) string { return url.PathEscape(args[arg[1:]]) })
}

func (m *mistakes) route(route string, base map[string]any) map[string]any {
	m.token = m.personal(*m.root.User, tidelock.ScopeAPI) // the route may end it
	method, pattern, _ := strings.Cut(route, " ")
	if base == nil {
		base = m.learn(method, pattern)
		m.around(route, m.fill(pattern), base)
	}
	path := pathOf(pattern, m.fill(pattern))
	for _, wrong := range m.mutations(base) {
		m.check(route, m.send(method, path, wrong.(map[string]any)))
	}
	m.check(route, m.send(method, path, base))
	return base
}

// around makes mistakes beside the parameters: in the path, the query and the
// form of the body.
func (m *mistakes) around(route string, args map[string]string, params map[string]any) {
	method, pattern, _ := strings.Cut(route, " ")
	path := pathOf(pattern, args)
	for _, name := range routeArg.FindAllString(pattern, -1) {
		for _, segment := range some(m, garbageSegments) {
			wrong := strings.Replace(pathOf(strings.Replace(pattern, name, "\x01", 1), args), "\x01", segment, 1)
			m.check(route, m.send(method, wrong, params))
		}
	}
	for _, query := range some(m, garbageQueries) {
		m.check(route, m.request(method, path+"?"+query, "", ""))
	}
	if method == http.MethodGet {
		return
	}
	for _, body := range some(m, garbageBodies) {
		m.check(route, m.request(method, path, body[0], body[1]))
	}
}

// mutations are a value with each of its parts in turn replaced by garbage.
func (m *mistakes) mutations(v any) []any {
	var all []any
	inside := func(part any, replaced func(any) any) {
		for _, g := range some(m, garbage) {
			all = append(all, replaced(g))
		}
		switch part.(type) {
		case map[string]any, []any:
			for _, deeper := range m.mutations(part) {
				all = append(all, replaced(deeper))
			}
		}
	}
	switch v := v.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(v)) {
			inside(v[name], func(by any) any {
				changed := maps.Clone(v)
				changed[name] = by
				return changed
			})
		}
	case []any:
		for i, part := range v {
			inside(part, func(by any) any {
				changed := slices.Clone(v)
				changed[i] = by
				return changed
			})
		}
	}
	return all
}

var complaint = regexp.MustCompile(`([a-z_]+)(?:\[[0-9]+\])? (?:is invalid|is not supported|is automatically|must|does not|has a value|cannot)`)

// learn finds the parameters that a route reads, by what it says of a NUL in
// each that the API knows, and values of them that it takes.
func (m *mistakes) learn(method, pattern string) map[string]any {
	base := map[string]any{}
	for range 4 {
		probe := map[string]any{}
		for _, name := range m.params {
			probe[name] = "\x00"
		}
		maps.Copy(probe, base)
		found := 0
		for _, name := range m.wrong(method, pattern, probe) {
			if _, known := base[name]; known || !slices.Contains(m.params, name) {
				continue
			}
			found++
			for _, value := range m.good(pattern, name) {
				base[name] = value
				if value == nil || !slices.Contains(m.wrong(method, pattern, map[string]any{name: value}), name) {
					break
				}
			}
		}
		if found == 0 {
			break
		}
	}
	for range 3 { // what is good alone may not be good together
		for _, name := range m.wrong(method, pattern, base) {
			if value, known := base[name]; known && value != "n1" {
				base[name] = nil
			}
		}
	}
	return base
}

// wrong are the parameters that an answer complains of.
func (m *mistakes) wrong(method, pattern string, params map[string]any) []string {
	got := m.send(method, pathOf(pattern, m.fill(pattern)), params)
	m.check(method+" "+pattern, got)
	var body struct {
		Error   string
		Message any
	}
	if got.Code != http.StatusBadRequest || json.Unmarshal(got.Body.Bytes(), &body) != nil {
		return nil
	}
	var names []string
	if byName, ok := body.Message.(map[string]any); ok {
		for name, texts := range byName {
			if fmt.Sprint(texts) != "[has already been taken]" {
				names = append(names, name)
			}
		}
	}
	for _, found := range complaint.FindAllStringSubmatch(body.Error, -1) {
		names = append(names, found[1])
	}
	return names
}

func (m *mistakes) send(method, path string, params map[string]any) *httptest.ResponseRecorder {
	if method != http.MethodGet {
		text, err := json.Marshal(params)
		must(m.t, err)
		return m.request(method, path, "application/json", string(text))
	}
	query := url.Values{}
	for name, value := range params {
		if list, ok := value.([]any); ok {
			for _, element := range list {
				query.Add(name+"[]", fmt.Sprint(element))
			}
		} else if value != nil {
			query.Set(name, fmt.Sprint(value))
		}
	}
	return m.request(method, path+"?"+query.Encode(), "", "")
}

// request calls the API without a connection between.
func (m *mistakes) request(method, path, kind, body string) *httptest.ResponseRecorder {
	target, err := url.Parse(m.url + gitlabapi.Prefix + path)
	if err != nil { // Go's server refuses what it cannot parse
		rec := httptest.NewRecorder()
		rec.Code = http.StatusBadRequest
		return rec
	}
	r := httptest.NewRequestWithContext(m.t.Context(), method, m.url, strings.NewReader(body))
	r.URL, r.RequestURI = target, target.RequestURI()
	r.Header.Set("Private-Token", m.token)
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	rec := httptest.NewRecorder()
	m.api.ServeHTTP(rec, r)
	m.calls++
	m.last = method + " " + path + " " + body
	m.seen[rec.Code]++
	return rec
}

func (m *mistakes) check(route string, got *httptest.ResponseRecorder) {
	m.t.Helper()
	switch {
	case got.Code >= 500:
		m.t.Errorf("%s answers a client's mistake with %d %s: %.300s", route, got.Code, got.Body, m.last)
	case got.Code >= 300 && got.Code < 400:
		m.t.Errorf("%s redirects to %s", route, got.Header().Get("Location"))
	case got.Code >= 400 && got.Body.Len() > 0 && (got.Header().Get("Content-Type") != "application/json" || !json.Valid(got.Body.Bytes())):
		m.t.Errorf("%s refuses with %d %q, which is not JSON", route, got.Code, got.Body)
	}
	checkLink(m.t, route, got.Header().Get("Link"))
}

// checkLink reads a Link as GitLab's Go client does: cut at commas, then at
// semicolons.
func checkLink(t *testing.T, route, link string) {
	t.Helper()
	if link == "" {
		return
	}
	for part := range strings.SplitSeq(link, ",") {
		address, rel, _ := strings.Cut(strings.TrimSpace(part), ";")
		u, err := url.Parse(strings.Trim(address, "<>"))
		if !strings.HasPrefix(address, "<") || !strings.HasSuffix(address, ">") || err != nil || !u.IsAbs() ||
			!slices.Contains([]string{`rel="prev"`, `rel="next"`, `rel="first"`, `rel="last"`}, strings.TrimSpace(rel)) {
			t.Errorf("%s: a client cannot read the Link %q", route, link)
			return
		}
	}
}
