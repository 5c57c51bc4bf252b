package gitserver_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitserver"
)

// carriers are the ways in which a request may bring a token along. The last
// one is refused whatever the token.
var carriers = map[string]func(r *http.Request, token string){
	"basic":         func(r *http.Request, token string) { r.SetBasicAuth("anything", token) },
	"bearer":        func(r *http.Request, token string) { r.Header.Set("Authorization", "Bearer "+token) },
	"private token": func(r *http.Request, token string) { r.Header.Set("Private-Token", token) },
	"query": func(r *http.Request, token string) {
		q := r.URL.Query()
		q.Set("private_token", token)
		r.URL.RawQuery = q.Encode()
	},
}

// requests are all that a client may ask for, with the right it takes.
var requests = []struct {
	method, path string
	body         string
	push         bool
}{
	{"GET", "info/refs?service=git-upload-pack", "", false},
	{"POST", "git-upload-pack", "0000", false},
	{"GET", "info/refs?service=git-receive-pack", "", true},
	{"POST", "git-receive-pack", "0000", true},
}

func (w *world) ask(method, path, body string) *http.Request {
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+"/"+path, strings.NewReader(body))
	must(w.t, err)
	if service := path[strings.LastIndexByte(path, '/')+1:]; method == "POST" {
		r.Header.Set("Content-Type", "application/x-"+service+"-request")
	}
	return r
}

// Every kind of token, with every scope that matters, in every carrier, for
// every request.
func TestTokens(t *testing.T) {
	w := newWorld(t, options{})
	private := w.newProject("private", tidelock.Private)
	other := w.newProject("other", tidelock.Private)
	ctx := t.Context()

	type token struct {
		name       string
		value      string
		pull, push int // the answer's status
	}
	var tokens []token
	for scope, want := range map[tidelock.Scope][2]int{
		tidelock.ScopeAPI:             {200, 200},
		tidelock.ScopeReadAPI:         {403, 403},
		tidelock.ScopeReadUser:        {403, 403},
		tidelock.ScopeReadRepository:  {200, 403},
		tidelock.ScopeWriteRepository: {200, 200},
		tidelock.ScopeReadRegistry:    {403, 403},
		tidelock.ScopeWriteRegistry:   {403, 403},
		tidelock.ScopeK8sProxy:        {403, 403},
		tidelock.ScopeSelfRotate:      {403, 403},
	} {
		tokens = append(tokens, token{"personal " + string(scope), w.token(w.developer.user, scope), want[0], want[1]})
		if scope == tidelock.ScopeReadUser {
			continue
		}
		_, secret, err := w.CreateAccessToken(ctx, w.root, forge.OnProject(private), forge.NewToken{
			Name: string(scope), Scopes: []tidelock.Scope{scope}, Level: tidelock.Developer})
		must(t, err)
		tokens = append(tokens, token{"project " + string(scope), secret.Reveal(), want[0], want[1]})
	}
	_, elsewhere, err := w.CreateAccessToken(ctx, w.root, forge.OnProject(other), forge.NewToken{
		Name: "x", Scopes: []tidelock.Scope{tidelock.ScopeAPI}, Level: tidelock.Developer})
	must(t, err)
	_, group, err := w.CreateAccessToken(ctx, w.root, forge.OnGroup(w.group), forge.NewToken{
		Name: "x", Scopes: []tidelock.Scope{tidelock.ScopeWriteRepository}, Level: tidelock.Developer})
	must(t, err)
	tokens = append(tokens,
		token{"guest", w.token(w.guest.user, tidelock.ScopeAPI), 403, 403},
		token{"outsider", w.token(w.outsider.user, tidelock.ScopeAPI), 404, 404},
		token{"another project's", elsewhere.Reveal(), 404, 404},
		token{"group", group.Reveal(), 200, 200},
		token{"wrong", "glpat-wrongwrongwrongwrong", 401, 401},
		token{"agent's", "glagent-wrongwrongwrongwrong", 401, 401},
		token{"a password", "hunter2", 401, 401},
		token{"none", "", 401, 401},
	)
	for _, token := range tokens {
		for carrier, carry := range carriers {
			for _, request := range requests {
				r := w.ask(request.method, "people/private.git/"+request.path, request.body)
				carry(r, token.value)
				response, body := w.do(r)
				want := token.pull
				if request.push {
					want = token.push
				}
				if carrier == "query" {
					want = 400
				}
				if response.StatusCode != want {
					t.Errorf("%s token, %s, %s %s: %d %q, want %d", token.name, carrier, request.method, request.path, response.StatusCode, body, want)
				}
				if challenge := response.Header.Get("WWW-Authenticate"); (challenge != "") != (want == 401) {
					t.Errorf("%s token, %s: challenge %q with status %d", token.name, carrier, challenge, want)
				}
				if token.value != "" && strings.Contains(body, token.value) {
					t.Errorf("%s token, %s: the answer repeats the token", token.name, carrier)
				}
			}
		}
	}
}

func TestDeployTokens(t *testing.T) {
	w := newWorld(t, options{})
	private := w.newProject("private", tidelock.Private)
	w.newProject("other", tidelock.Private)
	_, secret, err := w.CreateDeployToken(t.Context(), w.root, forge.OnProject(private), forge.NewToken{
		Name: "d", Username: "deployer", Scopes: []tidelock.Scope{tidelock.ScopeReadRepository}})
	must(t, err)
	for _, tt := range []struct {
		username, project, service string
		want                       int
	}{
		{"deployer", "people/private", "git-upload-pack", 200},
		{"deployer", "people/private", "git-receive-pack", 403},
		{"somebody", "people/private", "git-upload-pack", 401},
		{"", "people/private", "git-upload-pack", 401},
		{"deployer", "people/other", "git-upload-pack", 404},
	} {
		r := w.ask("GET", tt.project+"/info/refs?service="+tt.service, "")
		r.SetBasicAuth(tt.username, secret.Reveal())
		if response, body := w.do(r); response.StatusCode != tt.want {
			t.Errorf("%+v: %d %q", tt, response.StatusCode, body)
		}
	}
}

// Who may not know of a project cannot tell it from one that does not exist.
func TestProjectsAreHidden(t *testing.T) {
	w := newWorld(t, options{})
	w.newProject("private", tidelock.Private)
	w.newProject("internal", tidelock.InternalOnly)
	for _, request := range requests {
		for _, tt := range []struct {
			project    string
			token      string
			pull, push int
		}{
			{"people/private", "", 401, 401},
			{"people/none", "", 401, 401},
			{"none/none", "", 401, 401},
			{"none", "", 401, 401},
			{"people/internal", "", 401, 401},
			{"people/site", "", 200, 401},
			{"people/private", w.outsider.token, 404, 404},
			{"people/none", w.outsider.token, 404, 404},
			{"people/internal", w.outsider.token, 200, 403},
			{"people/site", w.outsider.token, 200, 403},
			{"PEOPLE/Site", w.developer.token, 200, 200},
		} {
			r := w.ask(request.method, tt.project+"/"+request.path, request.body)
			if tt.token != "" {
				r.SetBasicAuth("x", tt.token)
			}
			want := tt.pull
			if request.push {
				want = tt.push
			}
			response, body := w.do(r)
			if response.StatusCode != want {
				t.Errorf("%s %s/%s: %d %q, want %d", request.method, tt.project, request.path, response.StatusCode, body, want)
			}
			if response.StatusCode == 401 && response.Header.Get("WWW-Authenticate") != `Basic realm="Tidelock", charset="UTF-8"` {
				t.Errorf("challenge %q", response.Header.Get("WWW-Authenticate"))
			}
		}
	}
	hidden, text := w.do(w.ask("GET", "people/private/info/refs?service=git-upload-pack", ""))
	missing, other := w.do(w.ask("GET", "people/none/info/refs?service=git-upload-pack", ""))
	if text != other || hidden.StatusCode != missing.StatusCode || len(hidden.Header) != len(missing.Header) {
		t.Errorf("a private project answers %q, a missing one %q", text, other)
	}
}

// Git shows its user what we say.
func TestGitShowsTheReason(t *testing.T) {
	w := newWorld(t, options{})
	w.newProject("private", tidelock.Private)
	work := w.work(w.developer)
	readOnly := w.token(w.developer.user, tidelock.ScopeReadRepository)
	w.refusedGit([]string{"remote: the token cannot push code: it needs one of the scopes api, write_repository", "403"},
		work, "push", w.urlOf("people/site.git", "x", readOnly), "main")
	w.refusedGit([]string{"remote: there is no such project, or you may not see it", "not found"},
		work, "push", w.urlOf("people/private.git", "x", w.outsider.token), "main")
	w.refusedGit([]string{"could not read Username"}, work, "push", w.urlOf("people/none.git", "", ""), "main")
}

func TestServiceConfusion(t *testing.T) {
	w := newWorld(t, options{})
	readOnly := w.token(w.developer.user, tidelock.ScopeReadRepository)
	const uploadType, receiveType = "application/x-git-upload-pack-request", "application/x-git-receive-pack-request"
	for _, tt := range []struct {
		method, path, contentType string
		want                      int
	}{
		{"POST", "git-receive-pack?service=git-upload-pack", receiveType, 400},
		{"POST", "git-upload-pack?service=git-receive-pack", uploadType, 400},
		{"POST", "git-receive-pack", uploadType, 415},
		{"POST", "git-upload-pack", receiveType, 415},
		{"POST", "git-receive-pack", "", 415},
		{"POST", "git-receive-pack", "text/plain", 415},
		{"POST", "git-receive-pack", receiveType, 403},
		{"GET", "info/refs?service=git-upload-pack&service=git-receive-pack", "", 400},
		{"GET", "info/refs?service=git-receive-pack&service=git-upload-pack", "", 400},
		{"GET", "info/refs?service=git-receive-pack", "", 403},
		{"GET", "info/refs", "", 403},
		{"GET", "info/refs?service=", "", 403},
		{"GET", "info/refs?service=git-upload-archive", "", 403},
		{"GET", "info/refs?service=git-upload-pack;x", "", 400},
		{"POST", "info/refs?service=git-upload-pack", uploadType, 405},
		{"GET", "git-upload-pack", "", 405},
		{"GET", "git-receive-pack", "", 405},
		{"PUT", "git-receive-pack", receiveType, 405},
	} {
		r := w.ask(tt.method, "people/site.git/"+tt.path, "0000")
		r.Header.Set("Content-Type", tt.contentType)
		r.SetBasicAuth("x", readOnly)
		if response, body := w.do(r); response.StatusCode != tt.want {
			t.Errorf("%s %s as %q: %d %q, want %d", tt.method, tt.path, tt.contentType, response.StatusCode, body, tt.want)
		}
	}
	// The body of a push on the service of a fetch, and the reverse.
	push := pkt(zero+" "+strings.Repeat("1", 40)+" refs/heads/x\x00 report-status", "")
	if response, body := w.post("people/site.git", "git-upload-pack", push, nil); response.StatusCode != 400 {
		t.Errorf("a push sent to git-upload-pack: %d %q", response.StatusCode, body)
	}
	fetch := pkt("want "+strings.Repeat("1", 40)+" ofs-delta\n", "", "done\n")
	if response, body := w.post("people/site.git", "git-receive-pack", fetch, http.Header{"Private-Token": {w.developer.token}}); response.StatusCode != 400 {
		t.Errorf("a fetch sent to git-receive-pack: %d %q", response.StatusCode, body)
	}
	w.intact()
}

func TestPaths(t *testing.T) {
	w := newWorld(t, options{})
	for path, want := range map[string]int{
		"people/site.git":              200,
		"people/site":                  200,
		"people/site.git.git":          404,
		"people//site":                 404,
		"people/./site":                404,
		"people/x/../site":             404,
		"people/%2e%2e/people/site":    404,
		"people%2fsite":                404,
		"people/site%00":               404,
		"people/site%0a":               404,
		"people/sit%65":                404,
		"people/-site":                 404,
		"people/--upload-pack=x":       404,
		"people/site.git/..":           404,
		"..":                           404,
		"../../etc":                    404,
		"1.git":                        404,
		fmt.Sprint(w.project.ID):       404,
		"people/" + long("x", 5000):    404,
		"people/site\\x":               404,
		"people/s%C3%AFte":             404,
		"people/site.git/../site.git/": 404,
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/info/refs?service=git-upload-pack", nil)
		r.URL.Path = "/" + path + "/info/refs"
		if strings.Contains(path, "%") {
			r = httptest.NewRequestWithContext(t.Context(), "GET", "/"+path+"/info/refs?service=git-upload-pack", nil)
		}
		r.SetBasicAuth("x", w.developer.token)
		rec := httptest.NewRecorder()
		w.server.Config.Handler.ServeHTTP(rec, r)
		if rec.Code != want {
			t.Errorf("%s: %d %q, want %d", path, rec.Code, rec.Body, want)
		}
	}
}

func long(s string, n int) string { return strings.Repeat(s, n) }

func TestCredentialsInTheWrongPlace(t *testing.T) {
	w := newWorld(t, options{})
	token := w.developer.token
	for name, change := range map[string]func(r *http.Request){
		"two headers":      func(r *http.Request) { r.SetBasicAuth("x", token); r.Header.Set("Private-Token", token) },
		"twice":            func(r *http.Request) { r.Header["Private-Token"] = []string{token, "glpat-other"} },
		"access_token":     func(r *http.Request) { r.URL.RawQuery += "&access_token=" + token },
		"job_token":        func(r *http.Request) { r.URL.RawQuery += "&job_token=" + token },
		"empty in a query": func(r *http.Request) { r.URL.RawQuery += "&private_token=" },
	} {
		r := w.ask("GET", "people/site/info/refs?service=git-upload-pack", "")
		change(r)
		if response, body := w.do(r); response.StatusCode != 400 || strings.Contains(body, token) {
			t.Errorf("%s: %d %q, want 400", name, response.StatusCode, body)
		}
	}
	for _, authorization := range []string{
		"", "Basic", "Basic !", "Bearer", "Bearer  ", "Digest x", "Token " + token, "Basic " + base64.StdEncoding.EncodeToString([]byte("no colon")),
		"Basic " + base64.StdEncoding.EncodeToString([]byte(":"+token)),
	} {
		r := w.ask("GET", "people/site/info/refs?service=git-receive-pack", "")
		r.Header["Authorization"] = []string{authorization}
		if response, body := w.do(r); response.StatusCode != 401 {
			t.Errorf("authorization %q: %d %q, want 401", authorization, response.StatusCode, body)
		}
	}
}

func TestMatches(t *testing.T) {
	for path, want := range map[string]bool{
		"/a/b.git/info/refs":            true,
		"/a/b/git-upload-pack":          true,
		"/a/b/c/d.git/git-receive-pack": true,
		"/info/refs":                    true,
		"/a/b":                          false,
		"/a/b/info":                     false,
		"/a/b.git/HEAD":                 false,
		"/a/b%2Finfo%2Frefs":            false,
		"/a/b/info%2Frefs":              false,
		"/a/b/-/tree/main/info/refs":    false,
		"/git-upload-packs":             false,
		"/":                             false,
	} {
		if got := gitserver.Matches(httptest.NewRequestWithContext(t.Context(), "GET", path, nil)); got != want {
			t.Errorf("Matches(%s) = %t, want %t", path, got, want)
		}
	}
}
