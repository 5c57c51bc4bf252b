package gitlabapi_test

import (
	"cmp"
	"os"
	"os/exec"
	"strings"
	"testing"

	"tidelock.dev"
)

// TestPythonGitLab drives the API with python-gitlab, which many tools are
// made of: it follows Links, and wants Content-Type to be exact.
func TestPythonGitLab(t *testing.T) {
	python := cmp.Or(os.Getenv("TIDELOCK_TEST_PYTHON_GITLAB"), "/usr/bin/python3")
	if out, err := exec.Command(python, "-c", "import gitlab").CombinedOutput(); err != nil {
		t.Skipf("%s cannot import gitlab; install Debian's python3-gitlab, or name another python in TIDELOCK_TEST_PYTHON_GITLAB: %v %s", python, err, out)
	}
	w := newWorld(t)
	w.push(w.project(w.group("team", tidelock.Private), "site", tidelock.Private), map[string]string{configPath: "flux: {}\n"})
	cmd := exec.CommandContext(t.Context(), python, "-W", "ignore::DeprecationWarning", "testdata/client.py", w.url, w.token)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "ok" {
		t.Errorf("python-gitlab: %v\n%s", err, strings.ReplaceAll(string(out), w.token, "[token]"))
	}
}
