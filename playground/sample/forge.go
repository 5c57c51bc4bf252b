package sample

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	gitlab "gitlab.com/gitlab-org/api/client-go"

	"tidelock.dev"
	"tidelock.dev/playground/supervisor"
)

// A Forge is a Tidelock server as an administrator sees it from outside.
type Forge struct {
	URL    string // such as https://localhost:8443
	CAFile string

	token  tidelock.Secret
	client *gitlab.Client
}

// Open prepares to speak to the server at url; it sends nothing yet.
func Open(url, tokenFile, caFile string) (*Forge, error) {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return nil, fmt.Errorf("read the administrator's token: %w", err)
	}
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read the server's CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%q holds no certificate", caFile)
	}
	f := &Forge{URL: url, CAFile: caFile, token: tidelock.NewSecret(strings.TrimSpace(string(token)))}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	f.client, err = gitlab.NewClient(f.token.Reveal(), gitlab.WithBaseURL(url+"/api/v4"),
		gitlab.WithHTTPClient(&http.Client{Transport: transport}))
	return f, err
}

// signingKeys returns the public keys of what the forge signs, as Flux wants
// them in a Secret: each in an entry that ends with ".pub".
func (f *Forge) signingKeys(ctx context.Context) (map[string]any, error) {
	req, err := f.client.NewRequest(http.MethodGet, "signing_keys", nil, []gitlab.RequestOptionFunc{gitlab.WithContext(ctx)})
	if err != nil {
		return nil, err
	}
	var keys []struct {
		PublicKey string `json:"public_key"`
	}
	if _, err := f.client.Do(req, &keys); err != nil {
		return nil, fmt.Errorf("read the forge's signing keys: %w", err)
	}
	entries := map[string]any{}
	for i, k := range keys {
		entries[fmt.Sprintf("forge-%d.pub", i)] = k.PublicKey
	}
	return entries, nil
}

// Push adds one commit with files to a project's default branch, and returns
// it. It clones first, so a repository with history is fine.
func (f *Forge) Push(ctx context.Context, project, message string, files map[string]string) (commit string, err error) {
	tree, err := f.Clone(ctx, project)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, tree.Remove()) }()
	if commit, err = tree.Commit(ctx, message, files); err != nil {
		return "", err
	}
	return commit, tree.Push(ctx)
}

// A Tree is a clone of a project in a temporary folder.
type Tree struct {
	Dir   string
	forge *Forge
}

// Clone clones a project with the administrator's rights.
func (f *Forge) Clone(ctx context.Context, project string) (*Tree, error) {
	dir, err := os.MkdirTemp("", "tidelock-playground-")
	if err != nil {
		return nil, fmt.Errorf("clone %s: %w", project, err)
	}
	t := &Tree{Dir: dir, forge: f}
	if _, err := t.git(ctx, "clone", "--quiet", "--no-local", "--", f.URL+"/"+project+".git", "."); err != nil {
		return nil, errors.Join(fmt.Errorf("clone %s: %w", project, err), t.Remove())
	}
	// An empty repository says what its default branch will be to a new git
	// only, so the name is made sure of.
	if _, err := t.git(ctx, "rev-parse", "--verify", "--quiet", "HEAD"); err != nil {
		if _, err := t.git(ctx, "symbolic-ref", "HEAD", "refs/heads/main"); err != nil {
			return nil, errors.Join(fmt.Errorf("clone %s: %w", project, err), t.Remove())
		}
	}
	return t, nil
}

// Commit writes files and commits them.
func (t *Tree) Commit(ctx context.Context, message string, files map[string]string) (commit string, err error) {
	for name, text := range files {
		target := filepath.Join(t.Dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return "", fmt.Errorf("write %s: %w", name, err)
		}
		if err := os.WriteFile(target, []byte(text), 0o644); err != nil {
			return "", fmt.Errorf("write %s: %w", name, err)
		}
	}
	if _, err := t.git(ctx, "add", "--all"); err != nil {
		return "", err
	}
	if _, err := t.git(ctx, "commit", "--quiet", "--message", message); err != nil {
		return "", err
	}
	return t.git(ctx, "rev-parse", "HEAD")
}

// Push pushes the current branch.
func (t *Tree) Push(ctx context.Context) error {
	_, err := t.git(ctx, "push", "--quiet", "origin", "HEAD")
	return err
}

// Remove deletes the clone.
func (t *Tree) Remove() error { return os.RemoveAll(t.Dir) }

// git runs git with nothing of the user's: not their configuration, not their
// credentials, not their editor. The token travels in the environment, where
// other users cannot see it.
func (t *Tree) git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = t.Dir
	basic := base64.StdEncoding.EncodeToString([]byte("root:" + t.forge.token.Reveal()))
	cmd.Env = supervisor.Environment(t.Dir,
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_AUTHOR_NAME=Playground", "GIT_AUTHOR_EMAIL=playground@localhost",
		"GIT_COMMITTER_NAME=Playground", "GIT_COMMITTER_EMAIL=playground@localhost",
		"GIT_SSL_CAINFO="+t.forge.CAFile,
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Basic "+basic,
	)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
