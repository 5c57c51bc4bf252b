package gitserver_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"tidelock.dev"
	"tidelock.dev/internal/gitserver"
)

// dial connects as a client of our own making, which may misbehave.
func (w *sshWorld) dial(auth ...ssh.AuthMethod) (*ssh.Client, error) {
	return ssh.Dial("tcp", w.address, &ssh.ClientConfig{
		User: "git", Auth: auth, HostKeyCallback: ssh.FixedHostKey(w.host.PublicKey()), Timeout: 5 * time.Second,
	})
}

func (w *sshWorld) mustDial(k key) *ssh.Client {
	w.t.Helper()
	c, err := w.dial(ssh.PublicKeys(k))
	must(w.t, err)
	w.t.Cleanup(func() { c.Close() })
	return c
}

// An impostor has somebody's public key, and signs with another one.
type impostor struct {
	ssh.Signer
	claims ssh.PublicKey
}

func (i impostor) PublicKey() ssh.PublicKey { return i.claims }

// A key that is offered, but not proven, leaves nothing behind: whoever proves
// another one is who that other one says (CVE-2026-24058, CVE-2024-45337).
func TestH1OfferedKeyIsNobody(t *testing.T) {
	w := newSSHWorld(t, options{})
	victim, stored := w.userKey(w.maintainer)
	own, _ := w.userKey(w.guest)

	// OpenSSH with only the public half: it asks whether the key would do, and
	// has to go on to the next.
	public := filepath.Join(t.TempDir(), "victim.pub")
	must(t, os.WriteFile(public, []byte(victim.line()), 0o600))
	out, status := w.run(key{file: public}, "-i", own.file, "-T")
	if !strings.Contains(out, "Welcome to Tidelock, @guest!") || status != 0 {
		t.Errorf("with the victim's public key first, ssh printed %q and exited with %d", out, status)
	}
	// One that signs for it all the same, with a key of its own.
	if _, err := w.dial(ssh.PublicKeys(impostor{own, victim.PublicKey()}, own)); err == nil {
		t.Error("a wrong proof is forgiven")
	}
	if _, err := w.dial(ssh.Password("x")); err == nil {
		t.Error("a password is taken")
	}
	if _, err := w.dial(ssh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) { return nil, nil })); err == nil {
		t.Error("keyboard-interactive is taken")
	}
	if _, err := w.dial(); err == nil {
		t.Error("nothing is taken")
	}
	k, err := w.store.Key(t.Context(), stored.ID)
	must(t, err)
	if !k.LastUsed.IsZero() {
		t.Errorf("the victim's key was used at %v", k.LastUsed)
	}
}

// Clients that prove nothing can neither take all connections, nor keep one,
// nor try for ever (CVE-2026-52814).
func TestH2StalledHandshakes(t *testing.T) {
	const most = 4
	w := newSSHWorld(t, options{}, func(c *gitserver.SSHConfig) {
		c.Handshake = 2 * time.Second
		c.Limits = gitserver.SSHLimits{PerAddress: most, Failures: 50}
	})
	good, _ := w.userKey(w.developer)
	var stalled []net.Conn
	for range most {
		c, err := net.Dial("tcp", w.address)
		must(t, err)
		defer c.Close()
		stalled = append(stalled, c)
		_, err = io.ReadFull(c, make([]byte, 4)) // the server has let it in
		must(t, err)
	}
	if _, err := w.dial(ssh.PublicKeys(good)); err == nil {
		t.Error("one connection more than an address may have is let in")
	}
	for _, c := range stalled { // they are closed, having sent nothing
		must(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a stalled handshake is not ended")
		}
	}
	w.eventually("connections are taken again", func() error {
		c, err := w.dial(ssh.PublicKeys(good))
		if err == nil {
			c.Close()
		}
		return err
	})
}

func TestH2FailedHandshakes(t *testing.T) {
	w := newSSHWorld(t, options{}, func(c *gitserver.SSHConfig) { c.Limits.Failures = 3 })
	good, _ := w.userKey(w.developer)
	for range 20 { // more than are given back meanwhile
		if c, err := w.dial(ssh.PublicKeys(newKey(t))); err == nil {
			c.Close()
			t.Fatal("an unknown key is let in")
		}
	}
	if c, err := w.dial(ssh.PublicKeys(good)); err == nil {
		c.Close()
		t.Error("an address that failed too often is let in")
	}
}

func TestH2SessionsOfOneConnection(t *testing.T) {
	w := newSSHWorld(t, options{}, func(c *gitserver.SSHConfig) { c.Limits.Sessions, c.Limits.PerKey = 2, 2 })
	good, _ := w.userKey(w.developer)
	c := w.mustDial(good)
	for range 2 {
		s, err := c.NewSession()
		must(t, err)
		defer s.Close()
	}
	if _, err := c.NewSession(); err == nil || !strings.Contains(err.Error(), "too many sessions") {
		t.Errorf("a third session: %v", err)
	}
	w.mustDial(good)
	third, err := w.dial(ssh.PublicKeys(good))
	if err != nil {
		return
	}
	defer third.Close()
	if err := third.Wait(); err == nil {
		t.Error("a third connection of one key is kept")
	}
}

// A client that asks a session for more than it may is not heard any more, and
// holds nothing back: neither its connection nor the end of the server.
func TestH2RequestsOfOneSession(t *testing.T) {
	w := newSSHWorld(t, options{idle: time.Second}, func(c *gitserver.SSHConfig) { c.Grace = time.Second })
	good, _ := w.userKey(w.developer)
	c := w.mustDial(good)
	channel, requests, err := c.OpenChannel("session", nil)
	must(t, err)
	go ssh.DiscardRequests(requests)
	for range 300 {
		if _, err := channel.SendRequest("env", false, ssh.Marshal(struct{ Name, Value string }{"A", "b"})); err != nil {
			break // the connection is cut already
		}
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_ = c.Wait()
		w.stop()
	}()
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Fatal("the connection is still there")
	}
}

// Keys that are weak are refused at the handshake too, should one ever get
// into the store (CVE-2026-39829).
func TestH2WeakKeys(t *testing.T) {
	w := newSSHWorld(t, options{})
	private, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	weak := keyOf(t, private)
	_, err = w.store.CreateKey(t.Context(), tidelock.Key{User: w.maintainer.user.ID, Public: weak.line(), Fingerprint: weak.fingerprint()})
	must(t, err)
	if c, err := w.dial(ssh.PublicKeys(weak)); err == nil {
		c.Close()
		t.Error("an RSA key of 1024 bits is let in")
	}
}

// Nothing of a command reaches a program as an option or a second word
// (CVE-2026-45570 and its like), and no path leads out of where projects are
// (CVE-2025-22130).
func TestH5H6SSHCommands(t *testing.T) {
	w := newSSHWorld(t, options{})
	w.newProject("private", tidelock.Private)
	mine, _ := w.userKey(w.outsider)
	const (
		hidden   = "ERROR: The project you were looking for could not be found"
		quotes   = "ERROR: the path is not quoted as git quotes it"
		options  = "takes no options"
		commands = "ERROR: only git-upload-pack and git-receive-pack may be run here"
	)
	for _, tt := range []struct{ command, want string }{
		{"git-upload-pack '--upload-pack=touch /tmp/x'", options},
		{"git-upload-pack --timeout=1 'people/site'", quotes},
		{"git-upload-pack -h", options},
		{"git-upload-pack 'people/site' 'people/private'", quotes},
		{"git-upload-pack 'people/site'; id", quotes},
		{"git-upload-pack 'people/site' && id", quotes},
		{"git-upload-pack 'people/site", quotes},
		{`git-upload-pack "people/site"`, quotes},
		{"git-upload-pack people/$(id)", quotes},
		{"git-upload-pack `id`", quotes},
		{`git-upload-pack 'people/site'\''; id'`, hidden},
		{"git-upload-pack 'people/site\nid'", hidden},
		{"git-upload-pack ''", "needs the path"},
		{"git-upload-pack", "needs the path"},
		{"git-upload-pack 'people/private'", hidden},
		{"git-receive-pack 'people/private'", hidden},
		{"git-upload-pack '../../etc/passwd'", hidden},
		{"git-upload-pack '/people/../people/site'", hidden},
		{"git-upload-pack '/people/site/../site'", hidden},
		{"git-upload-pack '/people/site.git/config'", hidden},
		{"git-upload-pack '//people/site'", hidden},
		{"git-upload-pack '~/people/site'", hidden},
		{"git-upload-pack '/people/%73ite'", hidden},
		{"git-upload-pack '" + w.repo().Path() + "'", hidden},
		{"git-upload-pack '" + fmt.Sprint(w.project.ID) + ".git'", hidden},
		{"git-shell", commands},
		{"git config --list", commands},
		{"GIT-UPLOAD-PACK 'people/site'", commands},
		{"sh -c id", commands},
		{"id", commands},
		{"/bin/sh", commands},
		{"git-upload-pack\t'people/site'", commands},
		{"git-upload-pack 'people/site" + strings.Repeat("x", 9000) + "'", "longer than"},
		{"git-receive-pack 'people/site'", "ERROR: you may not push code of project people/site"},
	} {
		out, status := w.run(mine, tt.command)
		if !strings.Contains(out, tt.want) || status != 128 || strings.Count(out, "\n") != 1 {
			t.Errorf("%.100s: printed %q and exited with %d, want %q and 128", tt.command, out, status, tt.want)
		}
	}
	for _, command := range []string{"git-upload-pack 'people/site'", "git-upload-pack /people/site.git", "git upload-pack people/site"} {
		if out, status := w.run(mine, command); strings.Contains(out, "ERROR") || !strings.Contains(out, "0000") {
			t.Errorf("%s: printed %q and exited with %d", command, out, status)
		}
	}
}

// What other servers offer over SSH is not offered, in any spelling
// (CVE-2026-58423).
func TestH9OnlyGit(t *testing.T) {
	w := newSSHWorld(t, options{})
	mine, _ := w.userKey(w.maintainer)
	for command, want := range map[string]string{
		"git-lfs-authenticate people/site.git download": "Git LFS is not offered",
		"git-lfs-authenticate people/site.git bogus":    "Git LFS is not offered",
		"git lfs-authenticate people/site.git upload":   "Git LFS is not offered",
		"git-lfs-transfer 'people/site.git' upload":     "Git LFS is not offered",
		"git-upload-archive 'people/site.git'":          "git archive over SSH is not offered",
		"scp -t /tmp":                                   "copying files is not offered",
		"rsync --server . /tmp":                         "copying files is not offered",
	} {
		if out, status := w.run(mine, command); !strings.Contains(out, "ERROR: "+want) || status != 128 {
			t.Errorf("%s: printed %q and exited with %d", command, out, status)
		}
	}
	if out, status := w.run(mine, "-s", "sftp"); !strings.Contains(out, "subsystems such as sftp are not offered") || status != 128 {
		t.Errorf("sftp: printed %q and exited with %d", out, status)
	}
	c := w.mustDial(mine)
	if _, err := c.Dial("tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "nothing is forwarded") {
		t.Errorf("a forwarded connection: %v", err)
	}
	if l, err := c.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close()
		t.Error("a port is forwarded back")
	}
	s, err := c.NewSession()
	must(t, err)
	defer s.Close()
	if err := s.RequestPty("xterm", 24, 80, nil); err == nil {
		t.Error("a terminal is given")
	}
	for _, name := range []string{"PATH", "LD_PRELOAD", "GIT_DIR", "GIT_CONFIG_PARAMETERS"} {
		if err := s.Setenv(name, "x"); err == nil {
			t.Errorf("the variable %s is taken", name)
		}
	}
	must(t, s.Setenv("GIT_PROTOCOL", "version=2"))
	for _, request := range []string{"auth-agent-req@openssh.com", "x11-req", "signal", "window-change"} {
		if ok, err := s.SendRequest(request, true, nil); ok || err != nil {
			t.Errorf("request %s: %t, %v", request, ok, err)
		}
	}
}

// startPush opens a push over SSH and reads where the refs are.
func (w *sshWorld) startPush(c *ssh.Client, path string) (*ssh.Session, io.WriteCloser, io.Reader) {
	w.t.Helper()
	s, err := c.NewSession()
	must(w.t, err)
	in, err := s.StdinPipe()
	must(w.t, err)
	out, err := s.StdoutPipe()
	must(w.t, err)
	must(w.t, s.Start("git-receive-pack '"+path+"'"))
	for {
		var header [4]byte
		_, err := io.ReadFull(out, header[:])
		must(w.t, err)
		var size int
		_, err = fmt.Sscanf(string(header[:]), "%04x", &size)
		must(w.t, err)
		if size == 0 {
			return s, in, out
		}
		_, err = io.CopyN(io.Discard, out, int64(size-4))
		must(w.t, err)
	}
}

func TestH7BadPacksOverSSH(t *testing.T) {
	w := newSSHWorld(t, options{})
	mine, _ := w.userKey(w.developer)
	work := w.work(w.maintainer)
	head := w.commit(work, "a", "1")
	good := w.packOf(work, head)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 0x10
	c := w.mustDial(mine)
	for name, pack := range map[string][]byte{
		"nothing": nil, "garbage": []byte("this is no pack"), "cut": good[:len(good)-30], "flipped": flipped,
		"long garbage": bytes.Repeat([]byte("PACK"), 1<<20),
	} {
		_, in, out := w.startPush(c, "people/site")
		go func() {
			in.Write(append(create(head, "bad"), pack...))
			in.Close()
		}()
		answer, _ := io.ReadAll(out)
		if !bytes.Contains(answer, []byte("ng refs/heads/bad ")) {
			t.Errorf("%s: answered with %q", name, answer)
		}
		if got := w.head("refs/heads/bad"); got != "" {
			t.Errorf("%s: the branch is at %s", name, got)
		}
	}
	for name, request := range map[string]string{
		"no packets":  "GET / HTTP/1.1\r\n\r\n",
		"a fetch":     string(pkt("want "+string(head), "", "done\n")),
		"half a line": "0100" + zero,
	} {
		s, in, out := w.startPush(c, "people/site")
		fmt.Fprint(in, request)
		in.Close()
		io.ReadAll(out)
		if exit, ok := errors.AsType[*ssh.ExitError](s.Wait()); !ok || exit.ExitStatus() != 128 {
			t.Errorf("%s: ended with %v, want exit status 128", name, exit)
		}
	}
	w.intact()
}

// Once the pack is here, a push outlives its client, as over HTTP.
func TestSSHPushOutlivesClient(t *testing.T) {
	w := newSSHWorld(t, options{})
	mine, _ := w.userKey(w.developer)
	work := w.work(w.maintainer)
	head := w.commit(work, "a", "1")
	c := w.mustDial(mine)
	_, in, _ := w.startPush(c, "people/site")
	_, err := in.Write(append(create(head, "kept"), w.packOf(work, head)...))
	must(t, err)
	// An answer to a request says that all before it has arrived.
	_, _, err = c.SendRequest("keepalive@openssh.com", true, nil)
	must(t, err)
	must(t, c.Close())
	w.eventually("the push is recorded", func() error {
		if got := w.recorded("refs/heads/kept"); got != head {
			return fmt.Errorf("the branch is at %q", got)
		}
		return nil
	})
	w.intact()
}

// A key that is deleted, and the keys of a user who is blocked, are cut.
func TestSSHRevocation(t *testing.T) {
	w := newSSHWorld(t, options{})
	mine, stored := w.userKey(w.developer)
	deploy, enabled := w.deployKey(w.project, false)
	keep, _ := w.userKey(w.maintainer)
	ours, theirs, kept := w.mustDial(mine), w.mustDial(deploy), w.mustDial(keep)
	must(t, w.store.DeleteKey(t.Context(), stored.ID))
	must(t, w.store.DisableDeployKey(t.Context(), enabled.ID, enabled.Holder))
	for _, c := range []*ssh.Client{ours, theirs} {
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Fatal("a connection outlived its key for 5 s")
		}
	}
	if _, _, err := kept.SendRequest("keepalive@openssh.com", true, nil); err != nil {
		t.Errorf("the connection of another key: %v", err)
	}
	if c, err := w.dial(ssh.PublicKeys(mine)); err == nil {
		c.Close()
		t.Error("a deleted key is let in")
	}
}

// A connection that signs in while the keys of others are looked at is kept.
func TestSSHRevocationBesideSignIn(t *testing.T) {
	w := newSSHWorld(t, options{})
	first, _ := w.userKey(w.developer)
	second, _ := w.userKey(w.maintainer)
	w.mustDial(first)
	conn, err := net.Dial("tcp", w.address)
	must(t, err)
	defer conn.Close()
	look := func(during func()) {
		t.Helper()
		done := make(chan struct{})
		call := func() { during(); close(done) }
		w.store.liveKeys.Store(&call)
		<-done
	}
	look(func() {}) // the server has the connection by now
	var requests ssh.Conn
	look(func() {
		c, channels, answers, err := ssh.NewClientConn(conn, w.address, &ssh.ClientConfig{
			User: gitserver.SSHUser, Auth: []ssh.AuthMethod{ssh.PublicKeys(second)}, HostKeyCallback: ssh.FixedHostKey(w.host.PublicKey()),
		})
		if err != nil {
			t.Errorf("sign in: %v", err)
			return
		}
		requests = ssh.NewClient(c, channels, answers)
	})
	look(func() {}) // the one before has ended
	if requests == nil {
		return
	}
	if _, _, err := requests.SendRequest("keepalive@openssh.com", true, nil); err != nil {
		t.Errorf("the connection that signed in meanwhile: %v", err)
	}
}

// A client that falls silent is cut; one that has nothing to do too.
func TestSSHIdle(t *testing.T) {
	w := newSSHWorld(t, options{idle: 300 * time.Millisecond})
	mine, _ := w.userKey(w.developer)
	idle, silent := w.mustDial(mine), w.mustDial(mine)
	w.startPush(silent, "people/site")
	for name, c := range map[string]*ssh.Client{"idle": idle, "silent": silent} {
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("the %s client is not cut", name)
		}
	}
}

// When the server stops, idle connections end at once, and a push in flight
// comes to its end.
func TestSSHStops(t *testing.T) {
	w := newSSHWorld(t, options{})
	mine, _ := w.userKey(w.developer)
	work := w.work(w.maintainer)
	head := w.commit(work, "a", "1")
	w.mustDial(mine)
	pushing := w.mustDial(mine)
	_, in, out := w.startPush(pushing, "people/site")
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		w.stop()
	}()
	w.eventually("no connection is taken any more", func() error {
		c, err := net.Dial("tcp", w.address)
		if err != nil {
			return nil
		}
		c.Close()
		return errors.New("one is")
	})
	_, err := in.Write(append(create(head, "last"), w.packOf(work, head)...))
	must(t, err)
	in.Close()
	answer, _ := io.ReadAll(out)
	if !bytes.Contains(answer, []byte("ok refs/heads/last")) {
		t.Errorf("the push is answered with %q", answer)
	}
	<-stopped
	if got := w.recorded("refs/heads/last"); got != head {
		t.Errorf("the branch is recorded at %q", got)
	}
}

func TestHostKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ssh", "host")
	made, err := gitserver.OpenHostKey(path)
	must(t, err)
	again, err := gitserver.OpenHostKey(path)
	must(t, err)
	if !bytes.Equal(made.PublicKey().Marshal(), again.PublicKey().Marshal()) || made.PublicKey().Type() != ssh.KeyAlgoED25519 {
		t.Errorf("the key is %s, then %s", ssh.FingerprintSHA256(made.PublicKey()), ssh.FingerprintSHA256(again.PublicKey()))
	}
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %o", info.Mode().Perm())
	}
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-y", "-f", path).CombinedOutput(); err != nil ||
		!strings.HasPrefix(string(out), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(made.PublicKey())))) {
		t.Errorf("ssh-keygen reads %q, %v", out, err)
	}
	must(t, os.WriteFile(path, []byte("nonsense"), 0o600))
	if _, err := gitserver.OpenHostKey(path); err == nil {
		t.Error("a spoilt key is replaced without a word")
	}
}
