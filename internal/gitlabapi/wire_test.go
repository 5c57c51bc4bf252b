package gitlabapi_test

import (
	"bytes"
	"errors"
	"fmt"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// TestErrors holds status and body of every sort of refusal: clients match on
// both.
func TestErrors(t *testing.T) {
	w := newWorld(t)
	team := w.group("team", tidelock.Public)
	open, secret := w.project(team, "open", tidelock.Public), w.project(team, "secret", tidelock.Private)
	eve := w.user("eve")
	asEve, asRoot := as(w.personal(eve, tidelock.ScopeAPI)), as(w.token)
	readOnly := as(w.personal(*w.root.User, tidelock.ScopeReadAPI))
	w.push(open, map[string]string{"a": "a"})

	for _, c := range []struct {
		name, method, path, body string
		auth                     string
		status                   int
		want                     string
	}{
		{"no token", "GET", "/user", "", "", 401, `{"message":"401 Unauthorized"}`},
		{"no token for the version", "GET", "/version", "", "", 401, `{"message":"401 Unauthorized"}`},
		{"wrong token", "GET", "/user", "", as("glpat-nope"), 401, `{"error":"invalid_token","error_description":"the credential is not valid: it is wrong, expired or revoked"}`},
		{"wrong token where none is needed", "GET", "/projects/team%2Fopen", "", as("glpat-nope"), 401, `{"error":"invalid_token","error_description":"the credential is not valid: it is wrong, expired or revoked"}`},
		{"a sort of credential we do not take", "GET", "/projects/team%2Fopen", "", "Authorization: Basic cm9vdDpyb290", 401, `{"message":"401 Unauthorized"}`},
		{"a job token", "GET", "/projects/team%2Fopen", "", "Job-Token: x", 401, `{"message":"401 Unauthorized"}`},
		{"no scope", "POST", "/projects", `{"name":"x"}`, readOnly, 403, `{"error":"insufficient_scope","error_description":"The request requires higher privileges than provided by the access token.","scope":"api"}`},
		{"not allowed", "PUT", "/projects/team%2Fopen", `{"name":"x"}`, asEve, 403, `{"message":"403 Forbidden - you may not edit project of project team/open: it needs the role maintainer"}`},
		{"anonymous write", "PUT", "/projects/team%2Fopen", `{"name":"x"}`, "", 401, `{"message":"401 Unauthorized"}`},
		{"invisible", "GET", "/projects/team%2Fsecret", "", asEve, 404, `{"message":"404 Project Not Found"}`},
		{"invisible by id", "GET", "/projects/" + itoa(int64(secret.ID)), "", asEve, 404, `{"message":"404 Project Not Found"}`},
		{"invisible to nobody", "GET", "/projects/team%2Fsecret", "", "", 404, `{"message":"404 Project Not Found"}`},
		{"write to what is invisible", "DELETE", "/projects/team%2Fsecret", "", asEve, 404, `{"message":"404 Project Not Found"}`},
		{"missing project", "GET", "/projects/4711", "", asRoot, 404, `{"message":"404 Project Not Found"}`},
		{"missing group", "GET", "/groups/nope", "", asRoot, 404, `{"message":"404 Group Not Found"}`},
		{"missing namespace", "GET", "/namespaces/nope", "", asRoot, 404, `{"message":"404 Namespace Not Found"}`},
		{"missing user", "GET", "/users/4711", "", asRoot, 404, `{"message":"404 User Not Found"}`},
		{"missing commit", "GET", "/projects/team%2Fopen/repository/commits/nope", "", "", 404, `{"message":"404 Commit Not Found"}`},
		{"missing branch", "GET", "/projects/team%2Fopen/repository/branches/nope", "", "", 404, `{"message":"404 Branch Not Found"}`},
		{"missing tag", "GET", "/projects/team%2Fopen/repository/tags/nope", "", "", 404, `{"message":"404 Tag Not Found"}`},
		{"missing tree", "GET", "/projects/team%2Fopen/repository/tree?path=nope", "", "", 404, `{"message":"404 Tree Not Found"}`},
		{"missing file", "GET", "/projects/team%2Fopen/repository/files/nope?ref=main", "", "", 404, `{"message":"404 File Not Found"}`},
		{"missing ref of a file", "GET", "/projects/team%2Fopen/repository/files/a?ref=nope", "", "", 404, `{"message":"404 Commit Not Found"}`},
		{"no ref for a file", "GET", "/projects/team%2Fopen/repository/files/a", "", "", 400, `{"error":"ref is missing"}`},
		{"missing agent", "GET", "/projects/team%2Fopen/cluster_agents/4711", "", asRoot, 404, `{"message":"404 Not found"}`},
		{"missing agent to grant", "POST", "/projects/team%2Fopen/agent_grants", `{"agent_id":4711}`, asRoot, 404, `{"message":"404 Agent Not Found"}`},
		{"missing member", "DELETE", "/projects/team%2Fopen/members/4711", "", asRoot, 404, `{"message":"404 Member Not Found"}`},
		{"missing token", "DELETE", "/projects/team%2Fopen/deploy_tokens/4711", "", asRoot, 404, `{"message":"404 Token Not Found"}`},
		{"id that is none", "GET", "/projects/team%2Fopen/cluster_agents/abc", "", asRoot, 400, `{"error":"agent_id is invalid"}`},
		{"as somebody else", "GET", "/user", "", "Sudo: eve", 403, ""},
		{"as somebody else by query", "GET", "/user?sudo=eve", "", asRoot, 403, `{"message":"403 Forbidden - sudo is not supported"}`},
		{"unknown route", "GET", "/nope", "", asRoot, 404, `{"error":"404 Not Found"}`},
		{"feature of another edition", "GET", "/projects/team%2Fopen/push_rule", "", asRoot, 404, `{"error":"404 Not Found"}`},
		{"wrong method", "PATCH", "/projects/team%2Fopen", "", asRoot, 405, `{"error":"405 Not Allowed"}`},
		{"missing attributes", "POST", "/projects/team%2Fopen/deploy_tokens", `{}`, asRoot, 400, `{"error":"name is missing, scopes is missing"}`},
		{"neither name nor path", "POST", "/projects", `{"description":"x"}`, asRoot, 400, `{"error":"name, path are missing, at least one parameter must be provided"}`},
		{"wrong attributes", "POST", "/projects", `{"name":"x","visibility":"secret","namespace_id":"many"}`, asRoot, 400, `{"error":"namespace_id is invalid, visibility does not have a valid value"}`},
		{"taken", "POST", "/projects", `{"path":"OPEN","namespace_id":` + itoa(int64(team.ID)) + `}`, asRoot, 400, `{"message":{"path":["has already been taken"]}}`},
		{"bad name", "POST", "/projects", `{"path":"-x"}`, asRoot, 400, ""},
		{"bad agent name", "POST", "/projects/team%2Fopen/cluster_agents", `{"name":"Prod_1"}`, asRoot, 400, ""},
		{"bad scope", "POST", "/projects/team%2Fopen/deploy_tokens", `{"name":"x","scopes":["read_api"]}`, asRoot, 400, ""},
		{"no JSON", "POST", "/projects", `{"name":`, asRoot, 400, `{"message":"400 Bad request - the body is not a JSON object"}`},
		{"JSON of another shape", "POST", "/projects", `["name"]`, asRoot, 400, `{"message":"400 Bad request - the body is not a JSON object"}`},
		{"two JSON values", "POST", "/projects", `{"name":"x"}{}`, asRoot, 400, `{"message":"400 Bad request - the body has more than one JSON value"}`},
		{"text with NUL", "POST", "/projects", `{"name":"a\u0000b"}`, asRoot, 400, `{"error":"name is invalid"}`},
		{"object as text", "POST", "/projects", `{"name":{"a":1}}`, asRoot, 400, `{"error":"name is invalid"}`},
		{"broken query", "GET", "/projects?search=%zz", "", asRoot, 400, `{"message":"400 Bad request - the query is malformed"}`},
		{"body over the limit", "POST", "/projects", `{"name":"` + strings.Repeat("x", 1<<20) + `"}`, asRoot, 413, `{"error":"413 Request Entity Too Large"}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			headers := []string{}
			if c.auth != "" {
				headers = append(headers, c.auth)
			}
			got := w.call(c.method, c.path, c.body, headers...)
			if got.status != c.status || (c.want != "" && got.body != c.want) {
				t.Errorf("got %d %s, want %d %s", got.status, got.body, c.status, c.want)
			}
			if ct := got.header.Get("Content-Type"); ct != "application/json" {
				t.Errorf("Content-Type is %q", ct)
			}
			if got.header.Get("X-Request-Id") == "" {
				t.Error("no X-Request-Id")
			}
			if cc := got.header.Get("Cache-Control"); cc != "max-age=0, private, must-revalidate" {
				t.Errorf("Cache-Control is %q", cc)
			}
			got.object(t)
		})
	}
	if log := w.log.String(); log != "" {
		t.Errorf("refusals of clients' mistakes were logged: %s", log)
	}
}

func TestMethodNotAllowedNamesTheOthers(t *testing.T) {
	w := newWorld(t)
	if got := w.call("PATCH", "/projects/1", "").header.Get("Allow"); got != "DELETE, GET, PUT" {
		t.Errorf("Allow is %q", got)
	}
}

// TestBodies writes the same project from every sort of body.
func TestBodies(t *testing.T) {
	w := newWorld(t)
	var form bytes.Buffer
	parts := multipart.NewWriter(&form)
	must(t, parts.WriteField("path", "multi"))
	must(t, parts.WriteField("description", "a b"))
	must(t, parts.Close())
	for _, c := range []struct{ name, path, query, body, kind string }{
		{"JSON", "json", "", `{"path":"json","description":"a b"}`, "application/json"},
		{"JSON with a charset", "json2", "", `{"path":"json2","description":"a b"}`, "application/json; charset=utf-8"},
		{"form", "form", "", "path=form&description=a+b", "application/x-www-form-urlencoded"},
		{"multipart", "multi", "", form.String(), parts.FormDataContentType()},
		{"query", "query", "?path=query&description=a%20b", "", ""},
		{"body over query", "both", "?path=lost", `{"path":"both","description":"a b"}`, "application/json"},
		{"no content type", "bare", "", `{"path":"bare","description":"a b"}`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := w.call("POST", "/projects"+c.query, c.body, as(w.token), "Content-Type: "+c.kind)
			if got.status != http.StatusCreated {
				t.Fatalf("got %d %s", got.status, got.body)
			}
			if project := got.object(t); project["path"] != c.path || project["description"] != "a b" {
				t.Errorf("made %v, %v", project["path"], project["description"])
			}
		})
	}
	if got := w.call("POST", "/projects", "<x/>", as(w.token), "Content-Type: text/xml"); got.status != http.StatusUnsupportedMediaType {
		t.Errorf("XML answers %d %s", got.status, got.body)
	}
	for name, body := range map[string]string{
		"list": "name=a&scopes[]=read_repository&scopes[]=read_registry",
		"text": "name=b&scopes=read_repository,read_registry",
	} {
		got := w.call("POST", "/projects/root%2Fjson/deploy_tokens", body, as(w.token), "Content-Type: application/x-www-form-urlencoded")
		if got.status != http.StatusCreated || len(got.object(t)["scopes"].([]any)) != 2 {
			t.Errorf("scopes as a %s: %d %s", name, got.status, got.body)
		}
	}
	// DELETE may have a body, and null says that nothing is said.
	got := w.call("PUT", "/projects/root%2Fjson", `{"description":null,"name":"New"}`, as(w.token))
	if project := got.object(t); project["description"] != "a b" || project["name"] != "New" {
		t.Errorf("after null: %v, %v", project["description"], project["name"])
	}
}

// TestPaths reaches one project by every spelling that clients use, and
// nothing by those that traverse.
func TestPaths(t *testing.T) {
	w := newWorld(t)
	sub, err := w.forge.CreateGroup(t.Context(), w.root, forge.NewGroup{Parent: w.group("Team", tidelock.Public).ID, Path: "sub.d"})
	must(t, err)
	project := w.project(sub, "Site.x", tidelock.Private)
	w.push(project, map[string]string{configPath: "a: 1\n"})

	for _, p := range []string{
		"Team%2Fsub.d%2FSite.x", "team%2fsub%2Ed%2fsite%2Ex", "%54eam%2Fsub.d%2FSite.x", itoa(int64(project.ID)), "Team%2Fsub.d%2FSite.x/",
	} {
		got := w.call("GET", "/projects/"+p, "", as(w.token))
		if got.status != http.StatusOK || int64(got.object(t)["id"].(float64)) != int64(project.ID) {
			t.Errorf("%s: %d %s", p, got.status, got.body)
		}
	}
	for _, p := range []string{
		"%2Egitlab%2Fagents%2Fprod%2Fconfig%2Eyaml", ".gitlab%2Fagents%2Fprod%2Fconfig.yaml",
	} {
		if got := w.call("GET", "/projects/Team%2Fsub.d%2FSite.x/repository/files/"+p+"/raw", "", as(w.token)); got.body != "a: 1\n" {
			t.Errorf("%s: %d %s", p, got.status, got.body)
		}
	}
	for _, p := range []string{
		"/projects/Team%252Fsub.d%252FSite.x", "/projects/Team/sub.d/Site.x", "/projects//Team%2Fsub.d%2FSite.x", "/projects/..%2F..%2Fuser",
		"/projects/Team%2F..%2FTeam%2Fsub.d%2FSite.x", "/projects/%2E%2E/user", "/projects/../user", "/projects/%2FTeam%2Fsub.d%2FSite.x",
		"/projects/Team%2F%2Fsub.d%2FSite.x", "/projects/Team%2Fsub.d%2FSite.x%00", "/projects/%ff", "/projects/Team%2Fsub.d%2FSite.x%0A",
		"/projects/+" + itoa(int64(project.ID)), "/projects/-1", "/projects/0", "/projects/" + strings.Repeat("9", 30), "", "/", "//",
		"/projects/Team%2Fsub.d%2FSite.x/repository/files/..%2F..%2Fetc%2Fpasswd?ref=main",
		"/projects/Team%2Fsub.d%2FSite.x/repository/files/%2Fetc%2Fpasswd?ref=main",
		"/projects/" + strings.Repeat("x/", 200),
	} {
		got := w.raw("GET", p)
		if got.status != http.StatusNotFound {
			t.Errorf("%q answers %d %s, want 404", p, got.status, got.body)
		}
	}
	for _, rev := range []string{"--all", "main~1", "main:a", "-", "@{0}", "^main"} {
		got := w.call("GET", "/projects/Team%2Fsub.d%2FSite.x/repository/commits/"+url.PathEscape(rev), "", as(w.token))
		if got.status != http.StatusNotFound {
			t.Errorf("revision %q answers %d %s", rev, got.status, got.body)
		}
	}
}

// raw sends a request line exactly as it is written, as root: Go's client
// would clean it.
func (w *world) raw(method, path string) answer {
	w.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	must(w.t, err)
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "%s /api/v4%s HTTP/1.0\r\nPrivate-Token: %s\r\n\r\n", method, path, w.token)
	must(w.t, err)
	var text bytes.Buffer
	_, err = text.ReadFrom(conn)
	must(w.t, err)
	head, body, _ := strings.Cut(text.String(), "\r\n\r\n")
	status := 0
	if _, err := fmt.Sscanf(head, "HTTP/1.0 %d", &status); err != nil {
		w.t.Fatalf("answer to %s: %v\n%s", path, err, text.String())
	}
	return answer{status: status, body: body}
}

func TestPagination(t *testing.T) {
	w := newWorld(t)
	team := w.group("team", tidelock.Private)
	for i := range 5 {
		w.project(team, fmt.Sprintf("p%d", i), tidelock.Private)
	}
	host := strings.TrimPrefix(w.url, "http://")
	base := w.url + "/api/v4/groups/team/projects?order_by=id&page=%d&per_page=2&sort=asc"
	link := func(rel string, page int) string { return "<" + fmt.Sprintf(base, page) + `>; rel="` + rel + `"` }
	for _, c := range []struct {
		page             string
		paths            string
		prev, next, link string
	}{
		{"1", "p0 p1", "", "2", link("next", 2) + ", " + link("first", 1) + ", " + link("last", 3)},
		{"2", "p2 p3", "1", "3", link("prev", 1) + ", " + link("next", 3) + ", " + link("first", 1) + ", " + link("last", 3)},
		{"3", "p4", "2", "", link("prev", 2) + ", " + link("first", 1) + ", " + link("last", 3)},
		{"9", "", "8", "", link("prev", 8) + ", " + link("first", 1) + ", " + link("last", 3)},
	} {
		got := w.call("GET", "/groups/team/projects?sort=asc&order_by=id&per_page=2&page="+c.page, "", as(w.token))
		paths := pathsOf(t, got)
		if strings.Join(paths, " ") != c.paths {
			t.Errorf("page %s has %q, want %q", c.page, paths, c.paths)
		}
		for name, want := range map[string]string{
			"X-Page": c.page, "X-Per-Page": "2", "X-Prev-Page": c.prev, "X-Next-Page": c.next, "X-Total": "5", "X-Total-Pages": "3", "Link": c.link,
		} {
			if values := got.header.Values(name); len(values) != 1 || values[0] != want {
				t.Errorf("page %s: %s is %q, want %q", c.page, name, values, want)
			}
		}
	}
	// An empty list is [], has one page and no next.
	got := w.call("GET", "/groups/team/subgroups", "", as(w.token))
	if got.body != "[]" || got.header.Get("X-Total") != "0" || got.header.Get("X-Total-Pages") != "1" || strings.Contains(got.header.Get("Link"), "next") {
		t.Errorf("an empty list: %s %v", got.body, got.header)
	}
	for query, want := range map[string]string{
		"per_page=1000": "100", "per_page=": "", "page=0&per_page=7": "7", "page=-3&per_page=7": "7",
	} {
		got := w.call("GET", "/groups/team/projects?"+query, "", as(w.token))
		if want == "" {
			if got.status != http.StatusBadRequest {
				t.Errorf("%s answers %d", query, got.status)
			}
		} else if got.header.Get("X-Per-Page") != want || got.header.Get("X-Page") != "1" {
			t.Errorf("%s answers %d, %v", query, got.status, got.header)
		}
	}
	for _, query := range []string{"per_page=0", "per_page=-1", "page=x", "page=99999999999999999999", "page=9223372036854775807", "order_by=secret", "sort=up"} {
		if got := w.call("GET", "/groups/team/projects?"+query, "", as(w.token)); got.status != http.StatusBadRequest {
			t.Errorf("%s answers %d %s", query, got.status, got.body)
		}
	}
	// Links lead to the host that was called, and hold neither a credential
	// nor what clients cut at.
	got = w.call("GET", "/groups/team/projects?per_page=1&search=,%3B&private_token="+w.token, "", "Host: forge.example:8443")
	if l := got.header.Get("Link"); !strings.HasPrefix(l, "<http://forge.example:8443/api/v4/groups/team/projects?") ||
		strings.Contains(l, w.token) || strings.Contains(l, "private_token") || strings.Count(l, ",") != strings.Count(l, ">; ")-1 || strings.Count(l, ";") != strings.Count(l, ">; ") {
		t.Errorf("Link is %q", l)
	}
	got = w.call("GET", "/groups/team/projects?per_page=1", "", as(w.token), "Host: a,b;c")
	if l := got.header.Get("Link"); got.status == http.StatusOK && !strings.HasPrefix(l, "<http://"+host+"/") {
		t.Errorf("Link for a strange host is %q", l)
	}
	got = w.call("GET", "/groups/team/projects?per_page=1", "", as(w.token), "X-Forwarded-Host: evil.example", "X-Forwarded-Proto: https")
	if l := got.header.Get("Link"); !strings.HasPrefix(l, "<"+w.url+"/") {
		t.Errorf("Link trusts forwarded headers: %q", l)
	}
	if got := w.call("HEAD", "/groups/team/projects", "", as(w.token)); got.status != http.StatusOK || got.body != "" || got.header.Get("X-Total") != "5" {
		t.Errorf("HEAD: %+v", got)
	}
}

func TestKeysetPagination(t *testing.T) {
	w := newWorld(t)
	team := w.group("team", tidelock.Private)
	for i := range 5 {
		w.project(team, fmt.Sprintf("p%d", i), tidelock.Private)
	}
	next, seen := "/projects?pagination=keyset&order_by=id&sort=asc&per_page=2", []string{}
	for range 5 {
		got := w.call("GET", next, "", as(w.token))
		for _, name := range []string{"X-Total", "X-Total-Pages", "X-Page", "X-Next-Page"} {
			if _, there := got.header[http.CanonicalHeaderKey(name)]; there {
				t.Errorf("a keyset page has %s", name)
			}
		}
		seen = append(seen, pathsOf(t, got)...)
		link := got.header.Get("Link")
		if link == "" {
			break
		}
		address, rel, _ := strings.Cut(link, ">; ")
		if rel != `rel="next"` {
			t.Fatalf("Link is %q", link)
		}
		next = strings.TrimPrefix(address, "<"+w.url+"/api/v4")
	}
	if want := "p0 p1 p2 p3 p4"; strings.Join(seen, " ") != want {
		t.Errorf("saw %q, want %q", seen, want)
	}
	for _, query := range []string{"order_by=name", "order_by=id&sort=desc"} {
		if got := w.call("GET", "/projects?pagination=keyset&"+query, "", as(w.token)); got.status != http.StatusMethodNotAllowed {
			t.Errorf("%s answers %d", query, got.status)
		}
	}
}

func pathsOf(t *testing.T, a answer) []string {
	t.Helper()
	paths := []string{}
	for _, p := range a.json(t).([]any) {
		paths = append(paths, p.(map[string]any)["path"].(string))
	}
	return paths
}

// TestProjectFilters lists as different people ask.
func TestProjectFilters(t *testing.T) {
	w := newWorld(t)
	team := w.group("team", tidelock.Public)
	w.project(team, "open", tidelock.Public)
	closed := w.project(team, "closed", tidelock.Private)
	dev := w.user("dev")
	_, err := w.forge.SetMember(t.Context(), w.root, forge.OnProject(closed), dev.ID, tidelock.Developer, w.root.User.CreatedAt.AddDate(10, 0, 0))
	must(t, err)
	_, err = w.forge.CreateProject(t.Context(), forge.Principal{User: &dev}, forge.NewProject{Path: "own"})
	must(t, err)
	token := as(w.personal(dev, tidelock.ScopeReadAPI))
	for query, want := range map[string]string{
		"":                                     "closed open own",
		"membership=true":                      "closed own",
		"owned=true":                           "own",
		"min_access_level=30":                  "closed own",
		"min_access_level=50":                  "own",
		"membership=true&min_access_level=40":  "own",
		"visibility=public":                    "open",
		"search=LOSE":                          "closed",
		"archived=true":                        "",
		"archived=false":                       "closed open own",
		"id_after=" + itoa(int64(closed.ID)):   "own",
		"membership=false&search=own":          "own",
		"unknown=whatever&topic=x&search=open": "open",
	} {
		got := pathsOf(t, w.call("GET", "/projects?"+query, "", token))
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%q lists %q, want %q", query, got, want)
		}
	}
	anonymous := w.call("GET", "/projects", "")
	if got := pathsOf(t, anonymous); strings.Join(got, " ") != "open" {
		t.Errorf("anonymous sees %q", got)
	}
	if got := w.call("GET", "/projects?membership=true", ""); got.status != http.StatusUnauthorized {
		t.Errorf("membership of nobody answers %d", got.status)
	}
}

// TestPanics answers 500 and logs where, but never what a client sent.
func TestPanics(t *testing.T) {
	w := newWorld(t)
	w.api.Replace("GET", "/version", func() error { panic("the secret " + w.token) })
	got := w.call("GET", "/version", "", as(w.token))
	if got.status != http.StatusInternalServerError || got.body != `{"message":"500 Internal Server Error"}` {
		t.Errorf("got %d %s", got.status, got.body)
	}
	log := w.log.String()
	if !strings.Contains(log, "handler panicked") || !strings.Contains(log, got.header.Get("X-Request-Id")) || strings.Contains(log, w.token) {
		t.Errorf("the log is %s", log)
	}
}

// TestInternalErrors tells the client nothing and the log everything.
func TestInternalErrors(t *testing.T) {
	w := newWorld(t)
	w.api.Replace("GET", "/version", func() error { return errors.New("read disk 7: it burns") })
	got := w.call("GET", "/version", "", as(w.token))
	if got.status != http.StatusInternalServerError || got.body != `{"message":"500 Internal Server Error"}` {
		t.Errorf("got %d %s", got.status, got.body)
	}
	if log := w.log.String(); !strings.Contains(log, "it burns") || !strings.Contains(log, got.header.Get("X-Request-Id")) {
		t.Errorf("the log is %s", log)
	}
	w.api.Replace("GET", "/version", func() error { return tidelock.Errorf(tidelock.Unavailable, "git is busy") })
	if got := w.call("GET", "/version", "", as(w.token)); got.status != http.StatusServiceUnavailable {
		t.Errorf("unavailable answers %d %s", got.status, got.body)
	}
}

// TestNoSecretInLog makes every sort of token and looks for it in the log.
func TestNoSecretInLog(t *testing.T) {
	w := newWorld(t)
	w.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	for _, c := range [][2]string{
		{"/projects/team%2Fsite/access_tokens", `{"name":"a","scopes":["api"]}`},
		{"/groups/team/access_tokens", `{"name":"a","scopes":["api"]}`},
		{"/projects/team%2Fsite/deploy_tokens", `{"name":"a","scopes":["read_repository"]}`},
		{"/users/1/personal_access_tokens", `{"name":"a","scopes":["api"]}`},
	} {
		got := w.call("POST", c[0], c[1], as(w.token))
		secret, _ := got.object(t)["token"].(string)
		if got.status != http.StatusCreated || secret == "" {
			t.Errorf("%s: %d %s", c[0], got.status, got.body)
		}
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("the secret of %s is in the log", c[0])
		}
	}
}

// TestHostileCommit lists a commit whose dates no calendar has: one such must
// not make a project's history unreadable.
func TestHostileCommit(t *testing.T) {
	w := newWorld(t)
	project := w.project(w.group("team", tidelock.Public), "site", tidelock.Public)
	w.push(project, map[string]string{"a": "a"})
	repo := w.repos.Repo(project.ID).Path()
	git := func(stdin string, args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", repo}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.Output()
		must(t, err)
		return strings.TrimSpace(string(out))
	}
	tree := git("", "rev-parse", "main^{tree}")
	for i, date := range []string{"999999999999999 +0000", "1700000000 +9959", "1700000000 -2359", "-1 +0000", "253402300800 +0000", "x y"} {
		commit := git("tree "+tree+"\nauthor A <a@b> "+date+"\ncommitter \xff <\"> "+date+"\n\n\xff\x01<script>\n", "hash-object", "-w", "-t", "commit", "--literally", "--stdin")
		ref := tidelock.BranchRef(fmt.Sprintf("b%d", i))
		git("", "update-ref", string(ref), commit)
		_, err := w.forge.Pushed(t.Context(), project.ID, w.root, []tidelock.RefName{ref})
		must(t, err)
	}
	branches, _, err := w.client().Branches.ListBranches("team/site", nil)
	must(t, err)
	if len(branches) != 8 {
		t.Errorf("%d branches, want 8", len(branches))
	}
	for _, query := range []string{"since=0001-01-02", "until=9999-12-31", "since=1969-01-01T00:00:00Z", "until=0001-01-02"} {
		if got := w.call("GET", "/projects/team%2Fsite/repository/commits?"+query, ""); got.status != http.StatusOK {
			t.Errorf("%s answers %d %s", query, got.status, got.body)
		}
	}
}
