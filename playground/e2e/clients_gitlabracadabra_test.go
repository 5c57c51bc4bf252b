package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidelock.dev/playground/e2e"
	"tidelock.dev/playground/supervisor"
)

// What is wanted of a group and its project, as gitlabracadabra reads it.
const wanted = `
platform/:
  create_object: true
  name: Platform
  description: kept by a robot
  visibility: private
  variables:
    - {key: REGION, value: eu, masked: false, protected: false}
platform/site:
  create_object: true
  description: also kept by a robot
  visibility: private
  default_branch: main
  branches: [main, stable]
  protected_branches:
    main: {push_access_level: maintainer, merge_access_level: developer}
    stable: {push_access_level: maintainer, merge_access_level: maintainer}
  protected_tags:
    v*: maintainer
  members: {ada: developer}
  unknown_members: ignore
  groups: {friends: reporter}
  variables:
    - {key: TOKEN, value: a-masked-value, masked: true, protected: true, variable_type: env_var}
    - {key: FILE, value: "line\n", masked: false, protected: false, variable_type: file}
  webhooks:
    - {url: "https://hooks.example.com/site", push_events: true, tag_push_events: true, enable_ssl_verification: true}
`

// gitlabracadabra brings a group and a project into the state that a file
// describes, and finds nothing to do when it looks again.
func TestGitLabracadabra(t *testing.T) {
	t.Parallel()
	program, err := exec.LookPath("gitlabracadabra")
	if err != nil {
		t.Skip("install Debian's gitlabracadabra, and have it in PATH")
	}
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true})
	f.Call(http.MethodPost, "users", map[string]any{"username": "ada", "name": "Ada", "email": "ada@example.org", "reset_password": true}, nil)
	f.Call(http.MethodPost, "groups", map[string]any{"name": "Friends", "path": "friends"}, nil)

	dir := t.TempDir()
	config, actions := filepath.Join(dir, "config"), filepath.Join(dir, "wanted.yml")
	for name, text := range map[string]string{
		config:  fmt.Sprintf("[global]\ndefault = forge\nssl_verify = %s\n\n[forge]\nurl = %s\nprivate_token = %s\n", f.CAFile, f.URL, f.Token),
		actions: wanted,
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, append(args, "--verbose", "--config-file", config, actions)...)
		cmd.Env = supervisor.Environment(dir)
		out, err := cmd.CombinedOutput()
		text := strings.ReplaceAll(string(out), f.Token, "[token]")
		if err != nil || strings.Contains(text, "ERROR") || strings.Contains(text, "WARNING") {
			t.Fatalf("gitlabracadabra %s: %v\n%s", strings.Join(args, " "), err, text)
		}
		return text
	}
	first := run()
	for _, made := range []string{"Creating group", "Creating project", "Adding user ada", "Sharing group friends", "branch stable", "tag v*", "Adding variable TOKEN", "Adding webhook"} {
		if !strings.Contains(first, made) {
			t.Errorf("the first run does not say %q:\n%s", made, first)
		}
	}
	f.Call(http.MethodPost, "projects/platform%2Fsite/repository/files/README.md", map[string]any{"branch": "main", "content": "# Site\n", "commit_message": "Begin"}, nil)
	if second := run(); !strings.Contains(second, "Creating branch: stable") {
		t.Errorf("the second run makes no branch, though there is a commit now:\n%s", second)
	}
	if third := run("--dry-run"); third != "" {
		t.Errorf("the third run would still do something:\n%s", third)
	}
}
