package gitserver_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"tidelock.dev"
	"tidelock.dev/internal/gitserver"
)

// A sshWorld is a world whose git is served over SSH too.
type sshWorld struct {
	*world
	address string
	host    ssh.Signer
	hosts   string // known_hosts
	ssh     *gitserver.SSH
	stop    func() // as the server would, and waits
}

func newSSHWorld(t testing.TB, o options, change ...func(*gitserver.SSHConfig)) *sshWorld {
	t.Helper()
	w := &sshWorld{world: newWorld(t, o)}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	git := gitserver.New(gitserver.Config{Forge: w.Forge, Repos: w.disk, Log: log, Idle: o.idle, Longest: o.longest, Limits: o.limits})
	dir := t.TempDir()
	var err error
	w.host, err = gitserver.OpenHostKey(filepath.Join(dir, "ssh", "host_ed25519"))
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	w.address = l.Addr().String()
	w.hosts = filepath.Join(dir, "known_hosts")
	must(t, os.WriteFile(w.hosts, []byte(knownhosts.Line([]string{w.address}, w.host.PublicKey())+"\n"), 0o600))
	config := gitserver.SSHConfig{Listeners: []net.Listener{l}, HostKey: w.host, Grace: 5 * time.Second, Recheck: 50 * time.Millisecond}
	for _, c := range change {
		c(&config)
	}
	w.ssh = gitserver.NewSSH(git, config)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- w.ssh.Run(ctx) }()
	stopped := false
	w.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("serve SSH: %v", err)
		}
	}
	t.Cleanup(w.stop)
	return w
}

// A key is an SSH key of a test, with its private half in a file.
type key struct {
	ssh.Signer
	file string
}

func newKey(t testing.TB) key {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	return keyOf(t, private)
}

func keyOf(t testing.TB, private any) key {
	t.Helper()
	signer, err := ssh.NewSignerFromKey(private)
	must(t, err)
	block, err := ssh.MarshalPrivateKey(private, "test")
	must(t, err)
	file := filepath.Join(t.TempDir(), "id")
	must(t, os.WriteFile(file, pem.EncodeToMemory(block), 0o600))
	return key{signer, file}
}

func (k key) line() string { return string(ssh.MarshalAuthorizedKey(k.PublicKey())) }

func (k key) fingerprint() string { return ssh.FingerprintSHA256(k.PublicKey()) }

// userKey makes a key of a person.
func (w *sshWorld) userKey(p person) (key, tidelock.Key) {
	w.t.Helper()
	k := newKey(w.t)
	stored, err := w.store.CreateKey(w.t.Context(), tidelock.Key{User: p.user.ID, Title: "test", Public: k.line(), Fingerprint: k.fingerprint()})
	must(w.t, err)
	return k, stored
}

// deployKey makes a deploy key of a project.
func (w *sshWorld) deployKey(project tidelock.Project, canPush bool) (key, tidelock.DeployKey) {
	w.t.Helper()
	k := newKey(w.t)
	stored, err := w.store.EnableDeployKey(w.t.Context(), tidelock.DeployKey{
		Key:    tidelock.Key{Title: "test", Public: k.line(), Fingerprint: k.fingerprint()},
		Holder: tidelock.Holder{Project: project.ID}, CanPush: canPush,
	})
	must(w.t, err)
	return k, stored
}

func (w *sshWorld) sshURL(path string) string { return "ssh://git@" + w.address + "/" + path }

// command is how git runs ssh with a key.
func (w *sshWorld) command(k key) string {
	return "ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=yes -o UserKnownHostsFile=" + w.hosts + " -i " + k.file
}

func (w *sshWorld) trySSHGit(k key, dir string, args ...string) (string, error) {
	w.t.Helper()
	cmd := clientGit(w.t, dir, args...)
	cmd.Env = append(cmd.Env, "GIT_SSH_COMMAND="+w.command(k))
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (w *sshWorld) sshGit(k key, dir string, args ...string) string {
	w.t.Helper()
	out, err := w.trySSHGit(k, dir, args...)
	if err != nil {
		w.t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (w *sshWorld) refusedSSHGit(words string, k key, dir string, args ...string) {
	w.t.Helper()
	out, err := w.trySSHGit(k, dir, args...)
	if err == nil {
		w.t.Errorf("git %s succeeded: %s", strings.Join(args, " "), out)
	}
	if !strings.Contains(out, words) {
		w.t.Errorf("git %s printed\n%s\nwant %q in it", strings.Join(args, " "), out, words)
	}
}

// run runs OpenSSH itself and returns what it printed, and its exit status.
func (w *sshWorld) run(k key, args ...string) (string, int) {
	w.t.Helper()
	host, port, err := net.SplitHostPort(w.address)
	must(w.t, err)
	words := append(strings.Fields(w.command(k))[1:], "-p", port, "git@"+host)
	cmd := exec.CommandContext(w.t.Context(), "ssh", append(words, args...)...)
	out, err := cmd.CombinedOutput()
	status := 0
	if err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			w.t.Fatalf("ssh: %v", err)
		}
		status = exit.ExitCode()
	}
	return string(out), status
}

func TestSSH(t *testing.T) {
	w := newSSHWorld(t, options{})
	mine, stored := w.userKey(w.maintainer)
	work := w.work(w.maintainer)
	w.git(work, "remote", "set-url", "origin", w.sshURL("people/site.git"))

	for _, protocol := range []string{"0", "1", "2"} {
		want := w.commit(work, "a", "protocol "+protocol)
		w.sshGit(mine, work, "-c", "protocol.version="+protocol, "push", "-q", "origin", "main")
		if got := w.recorded("refs/heads/main"); got != want {
			t.Errorf("protocol %s: main is recorded at %s, want %s", protocol, got, want)
		}
		clone := filepath.Join(t.TempDir(), "clone")
		w.sshGit(mine, ".", "-c", "protocol.version="+protocol, "clone", "-q", w.sshURL("people/site"), clone)
		if got := tidelock.CommitID(w.git(clone, "rev-parse", "HEAD")); got != want {
			t.Errorf("protocol %s: the clone is at %s, want %s", protocol, got, want)
		}
		want = w.commit(work, "a", "again")
		w.sshGit(mine, work, "push", "-q", "origin", "main")
		w.sshGit(mine, clone, "-c", "protocol.version="+protocol, "fetch", "-q")
		if got := tidelock.CommitID(w.git(clone, "rev-parse", "origin/main")); got != want {
			t.Errorf("protocol %s: the clone fetched %s, want %s", protocol, got, want)
		}
		shallow := filepath.Join(t.TempDir(), "shallow")
		w.sshGit(mine, ".", "-c", "protocol.version="+protocol, "clone", "-q", "--depth=1", w.sshURL("people/site"), shallow)
		if got := w.git(shallow, "rev-list", "--count", "HEAD"); got != "1" {
			t.Errorf("protocol %s: a shallow clone has %s commits", protocol, got)
		}
		w.sshGit(mine, shallow, "-c", "protocol.version="+protocol, "fetch", "-q", "--unshallow")
		want = w.commit(shallow, "b", "from a clone "+protocol)
		w.sshGit(mine, shallow, "push", "-q", "origin", "main")
		if got := w.head("refs/heads/main"); got != want {
			t.Errorf("protocol %s: main is at %s, want %s", protocol, got, want)
		}
		w.sshGit(mine, work, "pull", "-q", "--ff-only", "origin", "main")
	}
	pushes, _, err := w.store.Pushes(t.Context(), tidelock.PushFilter{Project: w.project.ID}, tidelock.Page{})
	must(t, err)
	if p := pushes[0]; p.By != w.maintainer.user.ID || p.Key != stored.ID || p.Token != 0 {
		t.Errorf("the last push is %+v, want one by key %d", p, stored.ID)
	}
	w.sshGit(mine, work, "push", "-q", "origin", "main:refs/heads/gone")
	w.sshGit(mine, work, "push", "-q", "origin", ":gone")
	if got := w.recorded("refs/heads/gone"); got != "" {
		t.Errorf("a deleted branch is at %s", got)
	}
	w.sshGit(mine, work, "push", "-q", "-o", "ci.skip", "origin", "main:refs/heads/options")
	w.refusedSSHGit("[remote rejected] main (the default branch cannot be deleted)", mine, work, "push", "origin", ":main")
	w.intact()
}

func TestSSHGreeting(t *testing.T) {
	w := newSSHWorld(t, options{})
	mine, _ := w.userKey(w.guest)
	if out, status := w.run(mine, "-T"); out != "Welcome to Tidelock, @guest!\r\n" || status != 0 {
		t.Errorf("ssh -T printed %q and exited with %d", out, status)
	}
	if out, status := w.run(mine, "-tt"); !strings.Contains(out, "PTY allocation request failed") || status == 0 {
		t.Errorf("ssh -tt printed %q and exited with %d", out, status)
	}
	deploy, _ := w.deployKey(w.project, false)
	if out, status := w.run(deploy, "-T"); !strings.Contains(out, "deploy key") || status != 0 {
		t.Errorf("ssh -T with a deploy key printed %q and exited with %d", out, status)
	}
}

func TestDeployKeys(t *testing.T) {
	w := newSSHWorld(t, options{})
	private := w.newProject("private", tidelock.Private)
	other := w.newProject("other", tidelock.Private)
	reads, _ := w.deployKey(private, false)
	pushes, stored := w.deployKey(private, true)
	elsewhere, _ := w.deployKey(other, true)
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", w.urlOf("people/private.git", "x", w.maintainer.token), "main")
	url := w.sshURL("people/private")
	head := w.commit(work, "a", "1")

	w.sshGit(reads, ".", "ls-remote", url)
	w.refusedSSHGit("ERROR: this deploy key may only read project people/private", reads, work, "push", url, "main:refs/heads/new")
	w.sshGit(pushes, work, "push", "-q", url, "main:refs/heads/new")
	record, _, err := w.store.Pushes(t.Context(), tidelock.PushFilter{Project: private.ID}, tidelock.Page{})
	must(t, err)
	if p := record[0]; p.By != 0 || p.Key != stored.ID || p.Updates[0].New != head {
		t.Errorf("the push is recorded as %+v", p)
	}
	w.refusedSSHGit("you may not push to this protected branch", pushes, work, "push", url, "main")
	w.refusedSSHGit("could not be found", elsewhere, work, "push", url, "main:refs/heads/x")
	w.refusedSSHGit("could not be found", elsewhere, ".", "ls-remote", url)
	w.refusedSSHGit("could not be found", elsewhere, ".", "ls-remote", w.sshURL("people/none"))
	w.sshGit(elsewhere, ".", "ls-remote", w.sshURL("people/site")) // which is public
	w.refusedSSHGit("you may not push code of project people/site", elsewhere, work, "push", w.sshURL("people/site"), "main:refs/heads/x")

	// A protected branch that names the key lets it push.
	protected, err := w.store.ProtectedBranches(t.Context(), private.ID)
	must(t, err)
	must(t, w.store.UnprotectBranch(t.Context(), private.ID, "main"))
	b := protected[0]
	b.Keys = []tidelock.KeyID{stored.ID}
	_, err = w.store.ProtectBranch(t.Context(), b)
	must(t, err)
	w.sshGit(pushes, work, "push", "-q", url, "main")
	w.git(work, "commit", "-q", "--amend", "-m", "rewritten")
	w.refusedSSHGit("non-fast-forward", pushes, work, "push", "--force", url, "main")
}

func TestSSHKeysThatAreNoGood(t *testing.T) {
	w := newSSHWorld(t, options{})
	work := w.work(w.maintainer)
	expired, blocked, unknown := newKey(t), newKey(t), newKey(t)
	_, err := w.store.CreateKey(t.Context(), tidelock.Key{
		User: w.maintainer.user.ID, Public: expired.line(), Fingerprint: expired.fingerprint(), ExpiresAt: time.Now().Add(-time.Hour)})
	must(t, err)
	eve, err := w.store.CreateUser(t.Context(), tidelock.User{Username: "eve", Blocked: true, Admin: true})
	must(t, err)
	_, err = w.store.CreateKey(t.Context(), tidelock.Key{User: eve.ID, Public: blocked.line(), Fingerprint: blocked.fingerprint()})
	must(t, err)
	for name, k := range map[string]key{"expired": expired, "blocked": blocked, "unknown": unknown} {
		t.Run(name, func(t *testing.T) {
			w.refusedSSHGit("Permission denied (publickey)", k, work, "ls-remote", w.sshURL("people/site"))
		})
	}
	good, _ := w.userKey(w.developer)
	out, err := w.trySSHGit(good, work, "ls-remote", fmt.Sprintf("ssh://ada@%s/people/site", w.address))
	if err == nil || !strings.Contains(out, `the user name is "git"`) {
		t.Errorf("another user name: %v, %q", err, out)
	}
}
