package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/server"
)

// A benchForge is the server that a measurement talks to, with a group and a
// folder of the measurement's own. Close removes both.
type benchForge struct {
	*connection
	dir   string
	name  string // of the group
	group int64
	stop  func() error // the server, when it is ours

	knownHosts string // the line of a server of ours for SSH clients
}

// named reports whether the command line or the environment names a server; a
// current context does not count, so that nothing is measured by accident.
func (f *sourceFlags) named(env *environment) bool {
	return f.context != "" || f.url != "" || env.getenv("TIDELOCK_URL") != ""
}

// newBenchForge connects to the server that was named, or starts one in this
// process on a temporary folder.
func newBenchForge(ctx context.Context, env *environment, f *sourceFlags) (_ *benchForge, err error) {
	dir, err := os.MkdirTemp("", "tidelock-bench-")
	if err != nil {
		return nil, err
	}
	suffix := make([]byte, 4)
	rand.Read(suffix)
	b := &benchForge{dir: dir, name: "bench-" + hex.EncodeToString(suffix), stop: func() error { return nil }}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close(ctx))
		}
	}()
	if f.named(env) {
		b.connection, err = f.connect(env)
	} else {
		err = b.startOwn(ctx)
	}
	if err != nil {
		return nil, err
	}
	b.group, err = b.createGroup(ctx, b.name)
	return b, err
}

func (b *benchForge) startOwn(ctx context.Context) error {
	s, err := server.New(ctx, server.Config{
		DataDir: filepath.Join(b.dir, "forge"), Listen: "localhost:0", SSHListen: "localhost:0", ShutdownTimeout: 10 * time.Second,
		Log: slog.New(slog.DiscardHandler), Version: buildVersion(), Commit: buildCommit(),
	})
	if err != nil {
		return fmt.Errorf("start a server: %w", err)
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ran := make(chan error, 1)
	go func() { ran <- s.Run(running) }()
	b.stop = func() error {
		cancel()
		return <-ran
	}
	b.knownHosts = s.KnownHosts()
	token, err := os.ReadFile(s.TokenFile())
	if err != nil {
		return err
	}
	b.connection, err = source{
		URL: s.URL(), CAFile: s.CAFile(), from: "the bench's own server",
		Token: tidelock.NewSecret(strings.TrimSpace(string(token))),
	}.connect()
	return err
}

// close removes what the measurement made.
func (b *benchForge) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var err error
	if b.group != 0 {
		err = b.deleteGroup(ctx, b.group)
	}
	return errors.Join(err, b.stop(), os.RemoveAll(b.dir))
}

// What measurements ask of a forge.

func (c *connection) createGroup(ctx context.Context, name string) (int64, error) {
	group, err := call[struct {
		ID int64 `json:"id"`
	}](ctx, c, http.MethodPost, "groups", map[string]any{"name": name, "path": name, "visibility": "public"})
	return group.value.ID, err
}

func (c *connection) deleteGroup(ctx context.Context, id int64) error {
	return send(ctx, c, http.MethodDelete, at("groups/%d", id), nil)
}

// A benchProject is what measurements need to know of a project.
type benchProject struct {
	ID       int64  `json:"id"`
	CloneURL string `json:"http_url_to_repo"`
	SSHURL   string `json:"ssh_url_to_repo"`
}

func (c *connection) createProject(ctx context.Context, group int64, name string) (benchProject, error) {
	project, err := call[benchProject](ctx, c, http.MethodPost, "projects", map[string]any{
		"name": name, "path": name, "namespace_id": group, "visibility": "public",
	})
	return project.value, err
}

// git runs git in a folder. The credential goes by the environment, so that no
// process list shows it.
func (c *connection) git(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	basic := base64.StdEncoding.EncodeToString([]byte("bench:" + c.source.Token.Reveal()))
	cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0", "GIT_CONFIG_COUNT=1",
		"GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Basic "+basic)
	if c.source.CAFile != "" {
		cmd.Env = append(cmd.Env, "GIT_SSL_CAINFO="+c.source.CAFile)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}
