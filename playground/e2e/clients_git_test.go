package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"tidelock.dev/playground/e2e"
	"tidelock.dev/playground/supervisor"
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
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true})
	p := f.Project("team/site", "private")
	for i := range 5 {
		p.Commit("main", map[string]string{"file": fmt.Sprint(i)})
	}
	p.Git("tag", "v1")
	p.Git("push", "--quiet", "origin", "main", "v1")
	user := newKey(t)
	f.Call(http.MethodPost, "user/keys", map[string]any{"title": "laptop", "key": publicKey(t, user)}, nil)
	for name, r := range map[string]remote{
		"https": {f.URL + "/team/site.git", gitEnvironment(f, f.Token)},
		"ssh":   {f.SSHURL + "/team/site.git", sshEnvironment(t, f, user, knownHosts(t, f))},
	} {
		for version := range 3 {
			t.Run(fmt.Sprintf("%s/v%d", name, version), func(t *testing.T) {
				testRemote(t, r, version, fmt.Sprintf("%s-%d", name, version))
			})
		}
	}
}

// TestGitWithDeployKeys takes the git of this machine to a project with keys of
// its own, and with a host that is not the one it knows.
func TestGitWithDeployKeys(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true})
	p := f.Project("team/site", "private")
	p.Push("main", map[string]string{"file": "one"})
	f.Project("team/other", "private").Push("main", map[string]string{"file": "one"})
	known := knownHosts(t, f)
	impostor := known[:strings.LastIndex(known, " ")] + " " + strings.Fields(publicKey(t, newKey(t)))[1] + "\n"
	for name, canPush := range map[string]bool{"reads": false, "writes": true} {
		key := newKey(t)
		f.Call(http.MethodPost, fmt.Sprintf("projects/%d/deploy_keys", p.ID), map[string]any{"title": name, "key": publicKey(t, key), "can_push": canPush}, nil)
		r := remote{f.SSHURL + "/team/site", sshEnvironment(t, f, key, known)}
		dir := t.TempDir()
		r.git(t, dir, 2, "clone", "--quiet", r.url, ".")
		git(t, dir, "commit", "--quiet", "--allow-empty", "--message="+name)
		out, err := r.try(t, dir, 2, "push", "origin", "HEAD:refs/heads/"+name)
		if pushed := err == nil; pushed != canPush {
			t.Errorf("a key that %s: pushed is %t: %v\n%s", name, pushed, err, out)
		}
		other := remote{f.SSHURL + "/team/other", r.env}
		if out, err := other.try(t, dir, 2, "ls-remote", other.url); err == nil || strings.Contains(out, "refs/heads/main") {
			t.Errorf("a key that %s also reads another project:\n%s", name, out)
		}
		stranger := remote{r.url, sshEnvironment(t, f, key, impostor)}
		if out, err := stranger.try(t, dir, 2, "ls-remote", r.url); err == nil || !strings.Contains(out, "Host key verification failed") {
			t.Errorf("a host with another key was taken: %v\n%s", err, out)
		}
	}
	nobody := remote{f.SSHURL + "/team/site", sshEnvironment(t, f, newKey(t), known)}
	if out, err := nobody.try(t, t.TempDir(), 2, "ls-remote", nobody.url); err == nil || !strings.Contains(out, "Permission denied") {
		t.Errorf("a key that nobody has was taken: %v\n%s", err, out)
	}
}

// knownHosts is what tidelock server info tells SSH clients of the server.
func knownHosts(t *testing.T, f *e2e.Forge) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), e2e.Binary(t), "server", "info")
	cmd.Env = append(supervisor.Environment(t.TempDir()), "TIDELOCK_URL="+f.URL, "TIDELOCK_CA_FILE="+f.CAFile, "TIDELOCK_TOKEN="+f.Token)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("tidelock server info: %v\n%s", err, out)
	}
	line := regexp.MustCompile(`\[localhost\]:[0-9]+ ssh-ed25519 \S+`).FindString(string(out))
	if line == "" {
		t.Fatalf("tidelock server info tells of no host key:\n%s", out)
	}
	return line + "\n"
}

// sshEnvironment is that of a git whose ssh has one key and knows what a line
// says, and nothing of the user's own.
func sshEnvironment(t *testing.T, f *e2e.Forge, key, known string) []string {
	t.Helper()
	hosts := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(hosts, []byte(known), 0o600); err != nil {
		t.Fatal(err)
	}
	return append(gitEnvironment(f, ""), "GIT_SSH_COMMAND=ssh -F /dev/null -i "+key+
		" -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=/dev/null -o UserKnownHostsFile="+hosts)
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

// publicKey is the line of the public half of a key.
func publicKey(t *testing.T, private string) string {
	t.Helper()
	text, err := os.ReadFile(private + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// newKey makes an SSH key pair and returns the file of the private one.
func newKey(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "id")
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "e2e", "-f", path).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	return path
}
