package server_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"tidelock.dev"
	"tidelock.dev/internal/servertest"
)

// A caller is one column of the expanded table: who asks, with what.
type caller struct {
	kind  tidelock.TokenKind   // "" for an anonymous one
	level tidelock.AccessLevel // of a user in every place, of a bot in its holder
	admin bool
	home  home           // of project, group and deploy tokens
	scope tidelock.Scope // the only one that the token has
}

// A home is what a token was made for.
type home string

const (
	thisProject home = "the project"
	thisGroup   home = "the group"
	thisShare   home = "a group that the project is shared with" // of people
	elsewhere   home = "another project"
	otherGroup  home = "another group"
)

func (c caller) String() string {
	who := "an administrator"
	switch {
	case c.kind == deployKey:
		return fmt.Sprintf("a deploy key of %s to %s", c.home, c.scope)
	case c.kind == "":
		return "nobody"
	case c.kind == tidelock.DeployToken:
		return fmt.Sprintf("a deploy token of %s with %s", c.home, c.scope)
	case c.kind != tidelock.PersonalToken:
		return fmt.Sprintf("a %s token (%s) of %s with %s", c.kind, c.level, c.home, c.scope)
	case c.home == thisShare:
		who = fmt.Sprintf("a %s through a share", c.level)
	case !c.admin && c.level == tidelock.NoAccess:
		who = "a stranger"
	case !c.admin:
		who = "a " + c.level.String()
	}
	if c.scope == "" {
		return who + "'s key"
	}
	return fmt.Sprintf("%s with %s", who, c.scope)
}

func (c caller) signedIn() bool {
	return c.kind != "" && c.kind != tidelock.DeployToken && c.kind != deployKey
}
func (c caller) bot() bool {
	return c.kind == tidelock.ProjectToken || c.kind == tidelock.GroupToken
}

var (
	personalScopes = readScopes("api read_api read_user read_repository write_repository read_registry write_registry k8s_proxy self_rotate admin_mode sudo")
	botScopes      = readScopes("api read_api read_repository write_repository read_registry write_registry k8s_proxy self_rotate")
	deployScopes   = readScopes("api read_repository read_registry write_registry")

	levels = []tidelock.AccessLevel{
		tidelock.Guest, tidelock.Planner, tidelock.Reporter, tidelock.Developer, tidelock.Maintainer, tidelock.Owner,
	}
)

// Every project is shared with a group of friends for sharedLevel. A friend has
// that, or what they have in the group if it is less; here by what comes out.
const sharedLevel = tidelock.Developer

var friends = map[tidelock.AccessLevel]tidelock.AccessLevel{
	tidelock.Developer: tidelock.Owner,
	tidelock.Guest:     tidelock.Guest,
}

// callers are everybody. The race detector, under which all of them would take
// minutes, makes do with one scope and one place.
func callers() []caller {
	personalScopes, botScopes := personalScopes, botScopes
	if raced {
		personalScopes, botScopes = readScopes("api"), readScopes("api")
	}
	all := []caller{{}}
	for _, scope := range personalScopes {
		all = append(all, caller{kind: tidelock.PersonalToken, admin: true, scope: scope}, caller{kind: tidelock.PersonalToken, scope: scope})
		for _, level := range levels {
			all = append(all, caller{kind: tidelock.PersonalToken, level: level, scope: scope})
		}
		for level := range friends {
			all = append(all, caller{kind: tidelock.PersonalToken, level: level, home: thisShare, scope: scope})
		}
	}
	for _, scope := range botScopes {
		for _, level := range levels {
			all = append(all,
				caller{kind: tidelock.ProjectToken, level: level, home: thisProject, scope: scope},
				caller{kind: tidelock.GroupToken, level: level, home: thisGroup, scope: scope})
		}
		all = append(all,
			caller{kind: tidelock.ProjectToken, level: tidelock.Owner, home: elsewhere, scope: scope},
			caller{kind: tidelock.GroupToken, level: tidelock.Owner, home: otherGroup, scope: scope})
	}
	for _, scope := range deployScopes {
		for _, home := range []home{thisProject, thisGroup, elsewhere, otherGroup} {
			all = append(all, caller{kind: tidelock.DeployToken, home: home, scope: scope})
		}
	}
	return all
}

// Over SSH callers come with keys. A person's acts as the person, and has the
// kind of a personal token here; a deploy key's scope is "read" or "write".
const deployKey tidelock.TokenKind = "deploy key"

// keyholders are everybody who has a key.
func keyholders() []caller {
	all := []caller{{kind: tidelock.PersonalToken, admin: true}, {kind: tidelock.PersonalToken}}
	for _, level := range levels {
		all = append(all, caller{kind: tidelock.PersonalToken, level: level})
	}
	for level := range friends {
		all = append(all, caller{kind: tidelock.PersonalToken, level: level, home: thisShare})
	}
	for _, home := range []home{thisProject, thisGroup, elsewhere, otherGroup} {
		all = append(all, caller{kind: deployKey, home: home, scope: "read"}, caller{kind: deployKey, home: home, scope: "write"})
	}
	return all
}

// A credential is a token's secret and the user name that goes with it.
type credential struct{ username, secret string }

// matrix is the server that the table is held against, and who asks it.
type matrix struct {
	*servertest.Server
	t       testing.TB
	handler http.Handler
	callers []caller
	users   map[caller]int64 // by caller without scope

	keyholders []caller

	friends int64  // the group that every project is shared with
	other   *place // where tokens are from that have no business here

	mu     sync.Mutex
	tokens map[caller]credential // of people and of elsewhere
	keys   map[caller]ssh.Signer
}

// A place is a group and a project in it of one visibility, in which there is a
// member of every role.
type place struct {
	*matrix
	t          testing.TB
	visibility tidelock.Visibility
	name       string // of the group; the project is called site
	group      int64
	project    int64
	agent      int64
	member     int64  // a guest of both
	manifest   []byte // of an image that the project has
	commit     string
	blob       string
	tokens     map[caller]credential // of the group's and the project's bots
	keys       map[caller]ssh.Signer // of the group and the project
}

func newMatrix(t *testing.T) *matrix {
	s := servertest.Start(t)
	m := &matrix{
		Server: s, t: t, handler: s.Handler(), callers: callers(), keyholders: keyholders(),
		users: map[caller]int64{}, tokens: map[caller]credential{}, keys: map[caller]ssh.Signer{},
	}
	for _, c := range m.callers {
		if c.kind != tidelock.PersonalToken {
			continue
		}
		who := c
		who.scope = ""
		if m.users[who] == 0 {
			name := strings.ReplaceAll(fmt.Sprintf("%s-%t-%t", c.level, c.admin, c.home == thisShare), " ", "-")
			m.users[who] = m.create("users", map[string]any{
				"username": name, "name": name, "email": name + "@forge.example", "admin": c.admin,
			}).ID
		}
		m.mint(nil, c)
	}
	m.friends = m.create("groups", map[string]any{"name": "friends", "path": "friends", "visibility": "private"}).ID
	for level, inside := range friends {
		friend := m.users[caller{kind: tidelock.PersonalToken, level: level, home: thisShare}]
		m.create(fmt.Sprintf("groups/%d/members", m.friends), map[string]any{"user_id": friend, "access_level": inside})
	}
	m.other = m.newPlace(t, "elsewhere", tidelock.Private)
	for _, c := range m.callers {
		if c.home == elsewhere || c.home == otherGroup {
			m.mint(nil, c)
		}
	}
	for _, c := range m.keyholders {
		switch {
		case c.kind == tidelock.PersonalToken:
			m.keys[c] = m.addKey(fmt.Sprintf("users/%d/keys", m.users[c]), c)
		case c.home == elsewhere:
			m.keys[c] = m.addKey(fmt.Sprintf("projects/%d/deploy_keys", m.other.project), c)
		case c.home == otherGroup:
			m.keys[c] = m.addKey(fmt.Sprintf("groups/%d/deploy_keys", m.other.group), c)
		}
	}
	return m
}

// addKey makes a key and tells the server of it.
func (m *matrix) addKey(path string, c caller) ssh.Signer {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		m.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		m.t.Fatal(err)
	}
	m.create(path, map[string]any{
		"title": c.String(), "key": string(ssh.MarshalAuthorizedKey(signer.PublicKey())), "can_push": c.scope == "write",
	})
	return signer
}

// made is what the matrix reads of an answer that made something.
type made struct {
	ID       int64
	Username string
	Token    string
}

// create makes something as the administrator.
func (m *matrix) create(path string, body map[string]any) made {
	m.t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		m.t.Fatal(err)
	}
	got := m.ask(http.MethodPost, "/api/v4/"+path, string(data), credential{secret: m.Token}, 0)
	var out made
	if got.status != http.StatusCreated {
		m.t.Errorf("POST %s: %d %s", path, got.status, got.body)
	} else if err := json.Unmarshal(got.body, &out); err != nil {
		m.t.Error(err)
	}
	return out
}

// mint makes the token of a caller, in a place unless it is a person's.
func (m *matrix) mint(p *place, c caller) {
	body := map[string]any{"name": "matrix", "scopes": []tidelock.Scope{c.scope}}
	if c.home == elsewhere || c.home == otherGroup {
		p = m.other
	}
	var holder string
	switch c.home {
	case thisProject, elsewhere:
		holder = fmt.Sprintf("projects/%d/", p.project)
	case thisGroup, otherGroup:
		holder = fmt.Sprintf("groups/%d/", p.group)
	}
	var got made
	switch c.kind {
	case tidelock.PersonalToken:
		who := c
		who.scope = ""
		got = m.create(fmt.Sprintf("users/%d/personal_access_tokens", m.users[who]), body)
	case tidelock.DeployToken:
		got = m.create(holder+"deploy_tokens", body)
	default:
		body["access_level"] = c.level
		got = m.create(holder+"access_tokens", body)
	}
	made := credential{username: got.Username, secret: got.Token}
	if got.Username == "" {
		made.username = "anything"
	}
	if c.home == thisProject || c.home == thisGroup {
		p.tokens[c] = made
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[c] = made
}

// credential finds a caller's token for questions about a place.
func (m *matrix) credential(p *place, c caller) credential {
	if found, ok := p.tokens[c]; ok {
		return found
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tokens[c]
}

func (m *matrix) newPlace(t testing.TB, name string, v tidelock.Visibility) *place {
	p := &place{matrix: m, t: t, name: name, visibility: v}
	p.makeGroup()
	return p
}

// makeGroup makes the group with its members and tokens, and the project.
func (p *place) makeGroup() {
	p.tokens, p.keys = map[caller]credential{}, map[caller]ssh.Signer{}
	p.group = p.create("groups", map[string]any{"name": p.name, "path": p.name, "visibility": p.visibility.String()}).ID
	members := fmt.Sprintf("groups/%d/members", p.group)
	for who, id := range p.users {
		if who.level != tidelock.NoAccess && who.home == "" {
			p.create(members, map[string]any{"user_id": id, "access_level": who.level})
		}
	}
	p.member = p.users[caller{kind: tidelock.PersonalToken, level: tidelock.Guest}]
	for _, c := range p.callers {
		if c.home == thisGroup {
			p.mint(p, c)
		}
	}
	for _, c := range p.keyholders {
		if c.home == thisGroup {
			p.keys[c] = p.addKey(fmt.Sprintf("groups/%d/deploy_keys", p.group), c)
		}
	}
	p.makeProject()
}

// makeProject makes the project, with a commit, a tag, an agent and tokens.
func (p *place) makeProject() {
	p.project = p.create("projects", map[string]any{
		"name": "site", "path": "site", "namespace_id": p.group, "visibility": p.visibility.String(),
	}).ID
	site := fmt.Sprintf("projects/%d/", p.project)
	p.create(site+"members", map[string]any{"user_id": p.member, "access_level": tidelock.Guest})
	p.create(site+"share", map[string]any{"group_id": p.friends, "group_access": sharedLevel})
	p.agent = p.create(site+"cluster_agents", map[string]any{"name": "first"}).ID
	dir := p.t.TempDir()
	p.MustGit(dir, "init", "--quiet", "--initial-branch=main")
	p.MustGit(dir, "commit", "--quiet", "--allow-empty", "--message", "first")
	if err := writeFile(dir, "a.yaml", "kind: ConfigMap\n"); err != nil {
		p.t.Fatal(err)
	}
	p.MustGit(dir, "add", "--all")
	p.MustGit(dir, "commit", "--quiet", "--message", "second")
	p.MustGit(dir, "tag", "v1")
	to, err := url.Parse(p.URL)
	if err != nil {
		p.t.Fatal(err)
	}
	to.User = url.UserPassword("root", p.Token)
	p.MustGit(dir, "push", "--quiet", to.String()+"/"+p.name+"/site.git", "main", "v1")
	p.commit, p.blob = p.MustGit(dir, "rev-parse", "HEAD"), p.MustGit(dir, "rev-parse", "HEAD:a.yaml")
	for _, c := range p.callers {
		if c.home == thisProject {
			p.mint(p, c)
		}
	}
	for _, c := range p.keyholders {
		if c.home == thisProject {
			p.keys[c] = p.addKey(site+"deploy_keys", c)
		}
	}
	p.makeImage()
}

// A reply is what the matrix reads of an answer.
type reply struct {
	status int
	body   []byte
}

// ask calls the server's handler as the carrier-th way to send a token does.
func (m *matrix) ask(method, path, body string, with credential, carrier int) reply {
	header := http.Header{}
	switch {
	case with.secret == "":
	case carrier%4 == 0:
		header.Set("Private-Token", with.secret)
	case carrier%4 == 1:
		header.Set("Authorization", "Bearer "+with.secret)
	default:
		name := "private_token"
		if carrier%4 == 3 {
			name = "access_token"
		}
		sep := "?"
		if strings.Contains(path, "?") {
			sep = "&"
		}
		path += sep + name + "=" + with.secret
	}
	var content io.Reader = http.NoBody
	if body != "" {
		content = strings.NewReader(body)
		header.Set("Content-Type", "application/json")
	}
	r, err := http.NewRequestWithContext(context.Background(), method, m.URL+path, content)
	if err != nil {
		return reply{body: []byte(err.Error())}
	}
	r.Header, r.RemoteAddr = header, "127.0.0.1:1"
	w := httptest.NewRecorder()
	m.handler.ServeHTTP(w, r)
	return reply{w.Code, w.Body.Bytes()}
}

// askGit makes a request of git's, over a real connection.
func (m *matrix) askGit(p *place, row row, with credential, carrier int) (reply, error) {
	verb, service, _ := strings.Cut(row.pattern(), " ")
	method, path, content := http.MethodGet, "/info/refs?service="+service, []byte(nil)
	if service == "" {
		service = verb
		method, path, content = http.MethodPost, "/"+service, []byte("0000")
	}
	r, err := http.NewRequestWithContext(context.Background(), method, m.HTTPURL+"/"+p.name+"/site.git"+path, bytes.NewReader(content))
	if err != nil {
		return reply{}, err
	}
	if content != nil {
		r.Header.Set("Content-Type", "application/x-"+service+"-request")
	}
	switch {
	case with.secret == "":
	case carrier == 0:
		r.Header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(with.username+":"+with.secret)))
	case carrier == 1:
		r.Header.Set("Authorization", "Bearer "+with.secret)
	case carrier == 2:
		r.Header.Set("Private-Token", with.secret)
	}
	answer, err := m.Client().Do(r)
	if err != nil {
		return reply{}, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return reply{answer.StatusCode, body}, err
}

// askSSH opens a session and reads how it begins: with what there is, or with
// why not.
func (m *matrix) askSSH(p *place, row row, c caller) (verdict, error) {
	key := p.keys[c]
	if key == nil {
		key = m.keys[c]
	}
	base, err := url.Parse(m.SSHURL)
	if err != nil {
		return verdict{}, err
	}
	_, _, host, _, _, err := ssh.ParseKnownHosts([]byte(m.KnownHosts))
	if err != nil {
		return verdict{}, err
	}
	client, err := ssh.Dial("tcp", base.Host, &ssh.ClientConfig{
		User: "git", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.FixedHostKey(host), Timeout: 10 * time.Second,
	})
	if err != nil {
		return verdict{}, err
	}
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return verdict{}, err
	}
	var out, told bytes.Buffer
	session.Stdin, session.Stdout, session.Stderr = strings.NewReader("0000"), &out, &told
	err = session.Run(row.route + " '/" + p.name + "/site.git'")
	if failed, ok := errors.AsType[*ssh.ExitError](err); ok {
		refused := verdict{http.StatusForbidden, ""}
		if failed.ExitStatus() != 128 || out.Len() > 0 {
			return verdict{failed.ExitStatus(), told.String()}, nil
		}
		if strings.Contains(told.String(), "could not be found or you don't have permission to view it") {
			refused = verdict{http.StatusNotFound, "hidden"}
		}
		return refused, nil
	}
	return verdict{}, err
}
