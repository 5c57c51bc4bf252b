package gitrepo

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidelock.dev"
)

func newRepo(t *testing.T, c Config) *Repo {
	t.Helper()
	c.Dir, c.Log = t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil))
	disk, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.Create(t.Context(), 1, "main"); err != nil {
		t.Fatal(err)
	}
	return disk.Repo(1)
}

// A git that waits for its client is ended with its context.
func TestContextEndsGit(t *testing.T) {
	repo := newRepo(t, Config{})
	ctx, cancel := context.WithCancelCause(t.Context())
	in, never := io.Pipe()
	ended := make(chan error)
	go func() {
		ended <- repo.ReceivePack(ctx, ReceiveRequest{In: in, Out: io.Discard})
	}()
	// Part of a request: git has read it and waits for the rest.
	if _, err := never.Write([]byte("0091")); err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	cancel(why)
	never.CloseWithError(why) // the client's side is the caller's to end
	select {
	case err := <-ended:
		if !errors.Is(err, why) {
			t.Errorf("ReceivePack: %v, want %v", err, why)
		}
	case <-time.After(stopGrace / 2):
		t.Error("git runs on")
	}
}

// More processes than there may be wait for their turn, not for ever.
func TestSlots(t *testing.T) {
	repo := newRepo(t, Config{MaxPacks: 1, MaxWait: 50 * time.Millisecond})
	in, client := io.Pipe()
	ended := make(chan error)
	go func() {
		ended <- repo.UploadPack(t.Context(), PackRequest{In: in, Out: io.Discard})
	}()
	if _, err := client.Write([]byte("00")); err != nil { // it has its slot
		t.Fatal(err)
	}
	err := repo.UploadPack(t.Context(), PackRequest{Advertise: true, Out: io.Discard})
	if tidelock.KindOf(err) != tidelock.Unavailable {
		t.Errorf("beyond the limit: %v, want unavailable", err)
	}
	client.Close()
	<-ended
	if err := repo.UploadPack(t.Context(), PackRequest{Advertise: true, Out: io.Discard}); err != nil {
		t.Errorf("after the other ended: %v", err)
	}
}

// A lock that a stopped machine left behind does not block its ref for ever;
// one that git may still hold is left alone.
func TestStaleLocks(t *testing.T) {
	repo := newRepo(t, Config{})
	before := repo.disk.opened.Add(-time.Hour)
	for name, stays := range map[string]bool{
		"refs/heads/stale.lock": false,
		"refs/heads/held.lock":  true,
		"packed-refs.lock":      false,
		"refs/heads/other.lock": true, // not of this push
	} {
		path := filepath.Join(repo.dir, name)
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if name != "refs/heads/held.lock" {
			if err := os.Chtimes(path, before, before); err != nil {
				t.Fatal(err)
			}
		}
		repo.removeStaleLocks([]tidelock.RefName{"refs/heads/stale", "refs/heads/held"})
		if _, err := os.Stat(path); (err == nil) != stays {
			t.Errorf("%s: %v, want it to stay: %t", name, err, stays)
		}
	}
}

// Nothing of the environment or the configuration around reaches git.
func TestGitIsAlone(t *testing.T) {
	home := t.TempDir()
	for name, value := range map[string]string{
		"HOME": home, "XDG_CONFIG_HOME": home, "GIT_DIR": "/nonexistent", "GIT_CONFIG_COUNT": "1",
		"GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "from the environment", "GIT_CONFIG_PARAMETERS": "'user.name=parameters'",
		"GIT_TRACE": filepath.Join(home, "trace"), "GIT_OBJECT_DIRECTORY": home, "GIT_EXEC_PATH": home,
	} {
		t.Setenv(name, value)
	}
	for _, name := range []string{".gitconfig", "git/config"} {
		path := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("[user]\nname = from the home\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	repo := newRepo(t, Config{})
	out, err := repo.disk.query(t.Context(), repo.disk.command(repo, "config", "--list", "--show-origin"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if !strings.HasPrefix(line, "command line:") && !strings.HasPrefix(line, "file:"+repo.dir) {
			t.Errorf("git reads %s", line)
		}
		if strings.Contains(line, "user.name") {
			t.Errorf("git knows %s", line)
		}
	}
	for _, want := range settings {
		if !strings.Contains(strings.ToLower(string(out)), "\t"+strings.ToLower(want)+"\n") {
			t.Errorf("git does not know %s", want)
		}
	}
	if _, err := os.Stat(filepath.Join(home, "trace")); err == nil {
		t.Error("git writes a trace that the environment asks for")
	}
}

func TestOpenNeedsAGoodGit(t *testing.T) {
	bin := t.TempDir()
	c := Config{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	t.Setenv("PATH", bin)
	if _, err := Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), "install git 2.39 or newer") {
		t.Errorf("Open without git: %v", err)
	}
	script := []byte("#!/bin/sh\necho git version 2.20.1\n")
	if err := os.WriteFile(filepath.Join(bin, "git"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), "is version 2.20.1; git 2.39 or newer is needed") {
		t.Errorf("Open with an old git: %v", err)
	}
}

// Asked to stop, git removes what it has begun.
func TestStopIsGentle(t *testing.T) {
	repo := newRepo(t, Config{})
	cmd := repo.disk.command(repo, "cat-file", "--batch")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	ctx, cancel := context.WithCancel(t.Context())
	err = repo.disk.runThen(ctx, cmd, func(*exec.Cmd) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v, want it canceled", err)
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGTERM {
		t.Errorf("git ended by %v, want SIGTERM", cmd.ProcessState)
	}
}

// A ref whose directory git removed with it is no trouble to sync.
func TestSync(t *testing.T) {
	repo := newRepo(t, Config{})
	if err := repo.Sync("refs/heads/main", "refs/heads/gone/with/it", "refs/tags/v1"); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(repo.dir); err != nil {
		t.Fatal(err)
	}
	if err := repo.Sync("refs/heads/main"); err != nil {
		t.Errorf("after the repository was deleted: %v", err)
	}
}
