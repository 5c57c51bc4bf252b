package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidelock.dev/playground/e2e"
)

// A remote is a way to a project: an address, and what git needs to know for
// it. Its git runs in a folder.
type remote struct {
	url string
	env []string
}

// try runs git against the remote with a version of the protocol. It returns
// what git printed, with every packet in it.
func (r remote) try(t *testing.T, dir string, version int, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", fmt.Sprintf("protocol.version=%d", version)}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(append([]string{}, r.env...), "GIT_TRACE_PACKET=1")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// git is try that must succeed, in the protocol's version that was asked for.
func (r remote) git(t *testing.T, dir string, version int, args ...string) {
	t.Helper()
	out, err := r.try(t, dir, version, args...)
	if err != nil {
		t.Fatalf("git %s with protocol %d: %v\n%s", args[0], version, err, out)
	}
	for v := 1; v <= 2; v++ {
		// Pushes have no version 2; git falls back to 0 by itself.
		if got, want := strings.Contains(out, fmt.Sprintf("< version %d", v)), v == version && (args[0] != "push" || v == 1); got != want {
			t.Errorf("git %s with protocol %d: the server speaks version %d is %t, want %t", args[0], version, v, got, want)
		}
	}
}

// TestGit takes the git of this machine through every transport and version of
// the protocol: clone whole and shallow, deepen, fetch, push, delete.
func TestGit(t *testing.T) {
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true})
	p := f.Project("team/site", "private")
	for i := range 5 {
		p.Commit("main", map[string]string{"file": fmt.Sprint(i)})
	}
	p.Git("tag", "v1")
	p.Git("push", "--quiet", "origin", "main", "v1")
	for name, r := range map[string]remote{
		"https": {f.URL + "/team/site.git", gitEnvironment(f, f.Token)},
	} {
		for version := range 3 {
			t.Run(fmt.Sprintf("%s/v%d", name, version), func(t *testing.T) {
				testRemote(t, r, version, fmt.Sprintf("%s-%d", name, version))
			})
		}
	}
}

func testRemote(t *testing.T, r remote, version int, branch string) {
	dir := t.TempDir()
	count := func(clone string) string { return git(t, filepath.Join(dir, clone), "rev-list", "--count", "HEAD") }
	r.git(t, dir, version, "clone", "--quiet", r.url, "whole")
	whole := filepath.Join(dir, "whole")
	total := count("whole")
	if tags := git(t, whole, "tag"); tags != "v1" {
		t.Errorf("a clone has tags %q, want v1", tags)
	}
	r.git(t, dir, version, "clone", "--quiet", "--depth=1", r.url, "shallow")
	shallow := filepath.Join(dir, "shallow")
	if got := count("shallow"); got != "1" {
		t.Errorf("a clone of depth 1 has %s commits", got)
	}
	r.git(t, shallow, version, "fetch", "--quiet", "--deepen=2")
	if got := count("shallow"); got != "3" {
		t.Errorf("deepened by 2 it has %s commits, want 3", got)
	}

	// A push from a shallow clone arrives in the whole one by a fetch.
	if err := os.WriteFile(filepath.Join(shallow, "file"), []byte(branch), 0o600); err != nil {
		t.Fatal(err)
	}
	git(t, shallow, "checkout", "--quiet", "-b", branch)
	git(t, shallow, "commit", "--quiet", "--all", "--message="+branch)
	r.git(t, shallow, version, "push", "--quiet", "origin", branch)
	r.git(t, whole, version, "fetch", "--quiet", "origin")
	if got, want := git(t, whole, "rev-parse", "origin/"+branch), git(t, shallow, "rev-parse", "HEAD"); got != want {
		t.Errorf("fetched %s, want %s", got, want)
	}
	r.git(t, shallow, version, "fetch", "--quiet", "--unshallow")
	if got := git(t, shallow, "rev-list", "--count", "origin/main"); got != total {
		t.Errorf("unshallowed it has %s commits of main, want %s", got, total)
	}
	r.git(t, shallow, version, "push", "--quiet", "origin", "--delete", branch)
	r.git(t, whole, version, "fetch", "--quiet", "--prune", "origin")
	if out := git(t, whole, "branch", "--remotes", "--list", "origin/"+branch); out != "" {
		t.Errorf("the deleted branch is still there: %s", out)
	}
	git(t, whole, "fsck", "--strict")
}
