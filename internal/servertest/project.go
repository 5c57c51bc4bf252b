package servertest

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidelock.dev"
)

// Group makes a group, and those above it, unless they exist; all are public,
// so that anything may be inside.
func (s *Server) Group(path string) tidelock.NamespaceID {
	s.t.Helper()
	var group id
	if found := s.Do(http.MethodGet, "/api/v4/groups/"+escaped(path), s.Token, nil); found.Status == http.StatusOK {
		s.Call(s.Token, http.MethodGet, "groups/"+escaped(path), nil, &group)
		return tidelock.NamespaceID(group.ID)
	}
	body := map[string]any{"visibility": "public"}
	name := path
	if i := strings.LastIndex(path, "/"); i >= 0 {
		body["parent_id"] = s.Group(path[:i])
		name = path[i+1:]
	}
	body["name"], body["path"] = name, name
	s.Call(s.Token, http.MethodPost, "groups", body, &group)
	return tidelock.NamespaceID(group.ID)
}

// A User is a person with a token for everything.
type User struct {
	ID       tidelock.UserID
	Username string
	Token    string
}

// User makes a user.
func (s *Server) User(username string) User {
	s.t.Helper()
	var user id
	s.Call(s.Token, http.MethodPost, "users", map[string]any{
		"username": username, "name": username, "email": username + "@forge.example", "skip_confirmation": true,
		"force_random_password": true,
	}, &user)
	u := User{ID: tidelock.UserID(user.ID), Username: username}
	u.Token = s.PersonalToken(u.ID, tidelock.ScopeAPI, tidelock.ScopeReadRepository, tidelock.ScopeWriteRepository)
	return u
}

// PersonalToken makes a token that acts as a user.
func (s *Server) PersonalToken(user tidelock.UserID, scopes ...tidelock.Scope) string {
	s.t.Helper()
	return s.token(fmt.Sprintf("users/%d/personal_access_tokens", user), map[string]any{"name": "test", "scopes": scopes})
}

func (s *Server) token(path string, body map[string]any) string {
	s.t.Helper()
	var answer struct{ Token string }
	s.Call(s.Token, http.MethodPost, path, body, &answer)
	return answer.Token
}

// A Project is a project and a clone of it.
type Project struct {
	ID   tidelock.ProjectID
	Path string

	server *Server
	t      testing.TB
	dir    string // the clone, made with the first push
}

// Project makes a project, and the groups above it unless they exist.
func (s *Server) Project(path string, visibility tidelock.Visibility) *Project {
	s.t.Helper()
	i := strings.LastIndex(path, "/")
	if i < 0 {
		s.t.Fatalf("project %q names no group", path)
	}
	name := path[i+1:]
	var project id
	s.Call(s.Token, http.MethodPost, "projects", map[string]any{
		"name": name, "path": name, "namespace_id": s.Group(path[:i]), "visibility": visibility.String(),
	}, &project)
	return &Project{ID: tidelock.ProjectID(project.ID), Path: path, server: s, t: s.t}
}

// Member gives a user an access level in the project.
func (p *Project) Member(user User, level tidelock.AccessLevel) {
	p.t.Helper()
	p.server.Call(p.server.Token, http.MethodPost, fmt.Sprintf("projects/%d/members", p.ID),
		map[string]any{"user_id": user.ID, "access_level": level}, nil)
}

// DeployToken makes a deploy token and returns its user name and secret.
func (p *Project) DeployToken(scopes ...tidelock.Scope) (username, token string) {
	p.t.Helper()
	var answer struct{ Username, Token string }
	p.server.Call(p.server.Token, http.MethodPost, fmt.Sprintf("projects/%d/deploy_tokens", p.ID),
		map[string]any{"name": "test", "scopes": scopes}, &answer)
	return answer.Username, answer.Token
}

// Agent registers an agent in the project and returns its id and a token.
func (p *Project) Agent(name string) (agent tidelock.AgentID, token string) {
	p.t.Helper()
	path := fmt.Sprintf("projects/%d/cluster_agents", p.ID)
	var made id
	p.server.Call(p.server.Token, http.MethodPost, path, map[string]any{"name": name}, &made)
	return tidelock.AgentID(made.ID), p.server.token(fmt.Sprintf("%s/%d/tokens", path, made.ID), map[string]any{"name": "test"})
}

// CloneURL is the project's URL with a user name and token in it; without a
// token it is the plain one.
func (p *Project) CloneURL(username, token string) string {
	u, err := url.Parse(p.server.URL + "/" + p.Path + ".git")
	if err != nil {
		p.t.Fatal(err)
	}
	if token != "" {
		u.User = url.UserPassword(username, token)
	}
	return u.String()
}

// Push writes files, as pairs of name and content, commits them to a branch
// and pushes it as the administrator. It returns the commit.
func (p *Project) Push(branch string, files ...string) tidelock.CommitID {
	p.t.Helper()
	dir := p.Dir()
	if p.git("rev-parse", "--verify", "--quiet", "refs/heads/"+branch) == nil {
		p.MustGit("switch", "--quiet", branch)
	} else {
		p.MustGit("switch", "--quiet", "--create", branch)
	}
	for i := 0; i+1 < len(files); i += 2 {
		name := filepath.Join(dir, filepath.FromSlash(files[i]))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			p.t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(files[i+1]), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
	p.MustGit("add", "--all")
	p.MustGit("commit", "--quiet", "--allow-empty", "--message", "change")
	p.MustGit("push", "--quiet", "origin", branch)
	return p.Head()
}

// Head is the commit that the clone is at.
func (p *Project) Head() tidelock.CommitID {
	p.t.Helper()
	return tidelock.CommitID(p.MustGit("rev-parse", "HEAD"))
}

// Dir is a working copy whose origin is the project, as the administrator.
func (p *Project) Dir() string {
	p.t.Helper()
	if p.dir == "" {
		dir := p.t.TempDir()
		p.server.MustGit(dir, "init", "--quiet", "--initial-branch=main")
		p.server.MustGit(dir, "remote", "add", "origin", p.CloneURL("root", p.server.Token))
		p.dir = dir
	}
	return p.dir
}

// MustGit runs git in the working copy and returns what it printed.
func (p *Project) MustGit(args ...string) string {
	p.t.Helper()
	return p.server.MustGit(p.Dir(), args...)
}

func (p *Project) git(args ...string) error {
	_, err := p.server.Git(p.Dir(), args...)
	return err
}

// MustGit runs git in a folder and fails the test if git fails.
func (s *Server) MustGit(dir string, args ...string) string {
	s.t.Helper()
	out, err := s.Git(dir, args...)
	if err != nil {
		s.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Git runs git in a folder, with nothing of the machine's configuration and
// with the server's CA. It returns all output, trimmed.
func (s *Server) Git(dir string, args ...string) (string, error) {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		"GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C",
		"GIT_SSL_CAINFO="+s.CAFile,
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@forge.example",
		"GIT_COMMITTER_NAME=Ada", "GIT_COMMITTER_EMAIL=ada@forge.example",
	)
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}
