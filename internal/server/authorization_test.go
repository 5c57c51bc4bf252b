package server_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/gitlabapi"
	"tidelock.dev/internal/gitserver"
)

// TestAuthorization holds a real server against the committed table of who may
// do what: every row is asked by everybody, with every kind of token, every
// role and every scope alone, about a private, an internal and a public
// project and group. A route or a verb without a row fails, and so does a row
// without one.
func TestAuthorization(t *testing.T) {
	rows := readAuthorization(t)
	checkRows(t, rows)
	m := newMatrix(t)
	var cells atomic.Int64
	for _, row := range rows {
		if row.surface == onForge {
			cells.Add(int64(m.checkForge(t, row)))
		}
	}
	visibilities := visibilities
	if raced {
		visibilities = visibilities[:1]
	}
	t.Run("places", func(t *testing.T) {
		for _, v := range visibilities {
			t.Run(v.String(), func(t *testing.T) {
				t.Parallel()
				p := m.newPlace(t, "in-"+v.String(), v)
				for _, row := range rows {
					cells.Add(int64(p.check(t, row)))
				}
			})
		}
	})
	t.Logf("%d cells tested: %d rows by %d callers and %d keys, in %d places",
		cells.Load(), len(rows), len(m.callers), len(m.keyholders), len(visibilities))
}

// checkRows compares the rows with what the server serves.
func checkRows(t *testing.T, rows []row) {
	served := map[string]bool{}
	for _, route := range gitlabapi.Routes() {
		served[route] = false
	}
	for _, row := range rows {
		switch row.surface {
		case onForge, onGroups, onProject:
			if _, ok := served[row.route]; !ok {
				t.Errorf("the table has a row for %s, which is no route", row.route)
			}
			served[row.route] = true
		}
	}
	for _, service := range gitserver.Commands() {
		for surface, routes := range map[surface][]string{
			overHTTP: {"GET info/refs " + service, "POST " + service},
			overSSH:  {service},
		} {
			for _, route := range routes {
				if !slices.ContainsFunc(rows, func(r row) bool { return r.surface == surface && r.route == route }) {
					t.Errorf("%s: %s has no row in testdata/authorization.txt", surface, route)
				}
			}
		}
	}
	for route, hasRow := range served {
		if !hasRow {
			t.Errorf("%s has no row in testdata/authorization.txt", route)
		}
	}
}

// A verdict is what a caller has to hear: the status of the row's answer, or
// that of a refusal and what refuses.
type verdict struct {
	status int
	why    string // "", "hidden" or "scope"
}

// judge reads a verdict off an answer.
func judge(got reply) verdict {
	var told struct {
		Message any
		Error   string
	}
	_ = json.Unmarshal(got.body, &told) // what is no JSON is none of ours
	switch {
	case told.Error == "insufficient_scope":
		return verdict{got.status, "scope"}
	case got.status == http.StatusNotFound && slices.Contains([]any{"404 Project Not Found", "404 Group Not Found", "404 Namespace Not Found"}, told.Message):
		return verdict{got.status, "hidden"}
	}
	return verdict{got.status, ""}
}

// wantOnForge is the verdict on what is about no place.
func wantOnForge(r row, c caller) verdict {
	who := r.who[tidelock.Private]
	switch {
	case who.word == "bearer" && c.signedIn():
		return verdict{r.answer, ""}
	case c.kind == tidelock.DeployToken && c.scope == tidelock.ScopeAPI:
		return verdict{http.StatusForbidden, "scope"}
	case c.kind == tidelock.DeployToken:
		return verdict{http.StatusUnauthorized, ""}
	case !c.signedIn() && who.word != "anyone":
		return verdict{http.StatusUnauthorized, ""}
	case c.signedIn() && r.scopes != nil && !slices.Contains(r.scopes, c.scope):
		return verdict{http.StatusForbidden, "scope"}
	case who.word == "itself" && c.bot():
		return verdict{http.StatusBadRequest, ""} // it has a route of its own
	case who.word == "admin" && !c.admin, (who.word == "person" || who.people) && c.bot():
		return verdict{http.StatusForbidden, ""}
	}
	return verdict{r.answer, ""}
}

// signInFirst are routes that tell nobody anything without signing in.
var signInFirst = []string{"POST /groups", "POST /projects", "GET /namespaces/:id"}

// want is the verdict on what is about a place.
func (p *place) want(r row, c caller) verdict {
	who := r.who[p.visibility]
	level := c.level
	switch {
	case c.home == elsewhere, c.home == otherGroup:
		level = tidelock.NoAccess
	case (c.home == thisProject || c.home == thisShare) && r.aboutGroup():
		level = tidelock.NoAccess
	}
	git := r.surface == overHTTP || r.surface == overSSH || r.surface == inRegistry // which ask for passwords
	deploys := (c.kind == tidelock.DeployToken || c.kind == deployKey) && (c.home == thisProject && !r.aboutGroup() || c.home == thisGroup)
	visible := p.visibility == tidelock.Public || p.visibility == tidelock.InternalOnly && c.signedIn() ||
		level != tidelock.NoAccess || c.admin || deploys
	switch {
	case c.kind == "" && git && who.word != "anyone":
		return verdict{http.StatusUnauthorized, ""} // git asks for a password before it says anything
	case c.kind == tidelock.DeployToken && !git && c.scope != tidelock.ScopeAPI:
		return verdict{http.StatusUnauthorized, ""} // is for git, and so as good as none
	case who.word == "itself":
		return p.wantOfItself(r, c)
	case c.kind == "" && slices.Contains(signInFirst, r.route):
		return verdict{http.StatusUnauthorized, ""}
	case c.kind == tidelock.DeployToken && slices.Contains(signInFirst, r.route):
		return verdict{http.StatusForbidden, "scope"}
	case !visible:
		return verdict{http.StatusNotFound, "hidden"}
	case c.kind == tidelock.DeployToken && !slices.Contains(r.deploy, c.scope):
		return verdict{http.StatusForbidden, "scope"}
	case c.signedIn() && r.scopes != nil && !slices.Contains(r.scopes, c.scope):
		return verdict{http.StatusForbidden, "scope"}
	}
	allowed := c.admin
	switch {
	case who.word == "anyone":
		allowed = true
	case who.word == "user":
		allowed = allowed || c.signedIn() || deploys
	case who.level > 0:
		allowed = allowed || level >= who.level || deploys
	}
	switch {
	case allowed && !(who.people && c.bot()):
		return verdict{r.answer, ""}
	case c.kind == "":
		return verdict{http.StatusUnauthorized, ""}
	}
	return verdict{http.StatusForbidden, ""}
}

// wantOfItself is the verdict on what a token asks about itself. It is asked
// for before the token is known to be of the place that the route names.
func (p *place) wantOfItself(r row, c caller) verdict {
	kind, home := tidelock.ProjectToken, thisProject
	if r.surface == onGroups {
		kind, home = tidelock.GroupToken, thisGroup
	}
	switch {
	case c.kind == "":
		return verdict{http.StatusUnauthorized, ""}
	case !slices.Contains(r.scopes, c.scope), c.kind == tidelock.DeployToken:
		return verdict{http.StatusForbidden, "scope"}
	case c.kind != kind:
		return verdict{http.StatusBadRequest, ""}
	case c.home != home:
		return verdict{http.StatusNotFound, "hidden"}
	}
	return verdict{r.answer, ""}
}

// mayBeWrong is how many wrong cells of one row are told in full.
const mayBeWrong = 6

// A tally counts the cells of one row and tells the first wrong ones.
type tally struct {
	t            *testing.T
	row          row
	cells, wrong int
}

func (n *tally) expect(c caller, how string, got reply, want verdict) {
	n.t.Helper()
	n.cells++
	if judge(got) == want {
		return
	}
	if n.wrong++; n.wrong <= mayBeWrong {
		body := string(got.body[:min(len(got.body), 200)])
		n.t.Errorf("%s by %s%s: got %d %s, want %d %s", n.row, c, how, got.status, body, want.status, want.why)
	}
}

func (n *tally) done() int {
	if n.wrong > mayBeWrong {
		n.t.Errorf("%s: %d cells are wrong", n.row, n.wrong)
	}
	return n.cells
}

// nonsense is a body that names the same place, and is otherwise wrong.
func nonsense(body string) string {
	wrong := map[string]any{"name": []int{1}, "visibility": "sideways", "access_level": "x", "scopes": 5, "user_id": "x", "url": 7}
	var given map[string]any
	_ = json.Unmarshal([]byte(body), &given) // there may be none
	for _, name := range []string{"namespace_id", "parent_id"} {
		if id, ok := given[name]; ok {
			wrong[name] = id
		}
	}
	text, err := json.Marshal(wrong)
	if err != nil {
		panic(err) // it is made here
	}
	return string(text)
}

func (m *matrix) checkForge(t *testing.T, r row) int {
	n := &tally{t: t, row: r}
	for i, c := range m.callers {
		m.checkCell(n, m.other, i, c, wantOnForge(r, c))
	}
	return n.done()
}

// check asks one row about a place.
func (p *place) check(t *testing.T, r row) int {
	n := &tally{t: t, row: r}
	for i, c := range p.callers {
		switch r.surface {
		case onGroups, onProject:
			p.checkCell(n, p, i, c, p.want(r, c))
		case inLists:
			p.checkList(n, i, c)
		case overHTTP:
			p.checkGit(n, c)
		case inRegistry:
			p.checkRegistry(n, i, c)
		}
	}
	if r.surface == overSSH {
		for _, c := range p.keyholders {
			p.checkSSH(n, c)
		}
	}
	return n.done()
}

// checkCell asks one question of the API. A refusal is asked for again with
// nonsense: who may not do it must not hear what is wrong with it. That a bot
// may not do what its role may is no secret.
func (m *matrix) checkCell(n *tally, p *place, i int, c caller, want verdict) {
	r := n.row
	path, body := p.request(r)
	if r.query != "" {
		path += "?" + r.query
	}
	got := m.ask(r.method(), path, body, m.credential(p, c), i)
	n.expect(c, "", got, want)
	if r.again && got.status < 300 {
		m.makeAgain(p, r, c)
	}
	if want != (verdict{r.answer, ""}) && r.method() != http.MethodGet && r.method() != http.MethodDelete && !(r.forPeople() && c.bot()) {
		n.expect(c, ", asking nonsense", m.ask(r.method(), path, nonsense(body), m.credential(p, c), i+1), want)
	}
}

// makeAgain undoes what a cell did.
func (m *matrix) makeAgain(p *place, r row, c caller) {
	switch r.route {
	case "DELETE /groups/:id":
		p.makeGroup()
	case "DELETE /projects/:id":
		p.makeProject()
	case "POST /projects/:id/archive":
		m.ask(http.MethodPost, fmt.Sprintf("/api/v4/projects/%d/unarchive", p.project), "", credential{secret: m.Token}, 0)
	default: // the token itself is gone
		m.mint(p, c)
	}
}

// request makes the path and the body of a row for a place.
func (p *place) request(r row) (path, body string) {
	values := strings.NewReplacer("$user", fmt.Sprint(p.member), "$group", fmt.Sprint(p.group),
		"$project", fmt.Sprint(p.project), "$agent", fmt.Sprint(p.agent), "$commit", p.commit, "$blob", p.blob)
	var b strings.Builder
	b.WriteString(gitlabapi.Prefix)
	for segment := range strings.SplitSeq(strings.TrimPrefix(r.pattern(), "/"), "/") {
		b.WriteByte('/')
		name, isArg := strings.CutPrefix(segment, ":")
		if !isArg {
			b.WriteString(segment)
			continue
		}
		value, given := r.args[name]
		switch {
		case given:
			value = values.Replace(value)
		case name == "id" && r.surface == onGroups:
			value = fmt.Sprint(p.group)
		case name == "id" && r.surface == onProject:
			value = fmt.Sprint(p.project)
		default:
			value = "987654321"
		}
		b.WriteString(url.PathEscape(value))
	}
	return b.String(), values.Replace(r.body)
}

// checkList looks for the place in a list. Nobody is refused a list for what
// they may not see in it.
func (p *place) checkList(n *tally, i int, c caller) {
	r := n.row
	want, shown := p.want(r, c), true
	if want.why == "hidden" || c.kind == "" && r.who[p.visibility].word != "user" {
		shown = want == verdict{r.answer, ""}
		want = verdict{r.answer, ""}
	}
	if c.kind == tidelock.DeployToken && c.scope == tidelock.ScopeAPI {
		want = verdict{http.StatusForbidden, "scope"}
	}
	if c.kind == "" && r.route == "GET /namespaces" {
		want = verdict{http.StatusUnauthorized, ""}
	}
	if c.signedIn() && !slices.Contains(r.scopes, c.scope) {
		want = verdict{http.StatusForbidden, "scope"}
	}
	got := p.ask(r.method(), gitlabapi.Prefix+r.pattern()+"?"+r.query, "", p.credential(p, c), i)
	n.expect(c, "", got, want)
	name := fmt.Sprintf("%q:%q", "full_path", p.name)
	if !r.aboutGroup() {
		name = fmt.Sprintf("%q:%q", "path_with_namespace", p.name+"/site")
	}
	if found := strings.Contains(string(got.body), name); got.status == r.answer && found != shown {
		n.wrong++
		n.t.Errorf("%s by %s: finding %s is %t, want %t", r, c, name, found, shown)
	}
}

// checkSSH asks one question of git over SSH.
func (p *place) checkSSH(n *tally, c caller) {
	r := n.row
	want := p.want(r, c)
	if c.kind == deployKey && want.why == "" {
		if deploys := c.home == thisProject || c.home == thisGroup; deploys {
			want = verdict{http.StatusForbidden, ""}
			if slices.Contains(r.deploy, c.scope) {
				want = verdict{r.answer, ""}
			}
		}
	}
	got, err := p.askSSH(p, r, c)
	if err != nil {
		n.t.Fatal(err)
	}
	n.cells++
	if got != want {
		n.wrong++
		n.t.Errorf("%s by %s: got %v, want %v", r, c, got, want)
	}
}

// checkGit asks one question of git over HTTP, with every carrier.
func (p *place) checkGit(n *tally, c caller) {
	want := p.want(n.row, c)
	carriers := []string{"Basic", "Bearer", "Private-Token"}
	if c.kind == "" {
		carriers = carriers[:1]
	}
	for i, name := range carriers {
		if c.kind == tidelock.DeployToken && i > 0 {
			continue // see TestDeployTokens of gitserver
		}
		got, err := p.askGit(p, n.row, p.credential(p, c), i)
		if err != nil {
			n.t.Fatal(err)
		}
		// git's client shows text, so only the status tells.
		n.cells++
		if got.status != want.status {
			if n.wrong++; n.wrong <= mayBeWrong {
				n.t.Errorf("%s by %s in %s: got %d %q, want %d %s", n.row, c, name, got.status, got.body, want.status, want.why)
			}
		}
	}
}

func writeFile(dir, name, content string) error {
	return os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644)
}
