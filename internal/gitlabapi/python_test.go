package gitlabapi_test

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidelock.dev"
)

// TestPythonGitLab drives the API with python-gitlab, which many tools are
// made of: it follows Links, and wants Content-Type to be exact.
func TestPythonGitLab(t *testing.T) {
	python := pythonGitLab(t)
	w := newWorld(t)
	w.push(w.project(w.group("team", tidelock.Private), "site", tidelock.Private), map[string]string{configPath: "flux: {}\n"})
	cmd := exec.CommandContext(t.Context(), python, "-W", "ignore::DeprecationWarning", "testdata/client.py", w.url, w.token)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Errorf("python-gitlab: %v\n%s", err, strings.ReplaceAll(string(out), w.token, "[token]"))
	}
}

// TestGitLabCommand drives the API with the gitlab command, which is a part of
// python-gitlab.
func TestGitLabCommand(t *testing.T) {
	python := pythonGitLab(t)
	w := newWorld(t)
	w.push(w.project(w.group("team", tidelock.Private), "site", tidelock.Private), map[string]string{configPath: "flux: {}\n"})
	config := filepath.Join(t.TempDir(), "python-gitlab.cfg")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "[global]\ndefault = here\n\n[here]\nurl = %s\nprivate_token = %s\n", w.url, w.token), 0o600))
	for _, step := range []struct {
		args []string
		want string
	}{
		{[]string{"current-user", "get"}, `"username": "root"`},
		{[]string{"project", "get", "--id", "team/site"}, `"path_with_namespace": "team/site"`},
		{[]string{"project", "list", "--get-all"}, `"path_with_namespace": "team/site"`},
		{[]string{"group", "create", "--name", "Made", "--path", "made"}, `"full_path": "made"`},
		{[]string{"project-branch", "create", "--project-id", "team/site", "--branch", "topic", "--ref", "main"}, `"name": "topic"`},
		{[]string{"project-commit", "list", "--project-id", "team/site", "--ref-name", "topic"}, `"title": "First"`},
		{[]string{"project-branch", "delete", "--project-id", "team/site", "--name", "topic"}, ""},
		{[]string{"group", "delete", "--id", "made"}, ""},
	} {
		cmd := exec.CommandContext(t.Context(), python, append([]string{"-W", "ignore", "-m", "gitlab", "--config-file", config, "--output", "json"}, step.args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), step.want) {
			t.Errorf("gitlab %s: %v, want %s in\n%s", strings.Join(step.args, " "), err, step.want, out)
		}
	}
}

// pythonGitLab is a python that has python-gitlab.
func pythonGitLab(t *testing.T) string {
	t.Helper()
	python := cmp.Or(os.Getenv("TIDELOCK_TEST_PYTHON_GITLAB"), "/usr/bin/python3")
	if out, err := exec.Command(python, "-c", "import gitlab").CombinedOutput(); err != nil {
		t.Skipf("%s cannot import gitlab; install Debian's python3-gitlab, or name another python in TIDELOCK_TEST_PYTHON_GITLAB: %v %s", python, err, out)
	}
	return python
}
