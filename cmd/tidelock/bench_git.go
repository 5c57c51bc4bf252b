package main

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"
)

type benchGitOptions struct {
	files  int
	rounds int
}

func newBenchGitCommand(env *environment, source *sourceFlags) *cobra.Command {
	var opts benchGitOptions
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "git",
		Short: "Measure clones and pushes beside git over file://",
		Long: `Push a repository of many files to a new project and clone it again, over HTTPS
and over SSH, beside the same git doing the same over file://, which is the least
that any server can take. The sides take turns in every round, and the medians
are compared. Clones are bare and copy everything: what a checkout costs, it
costs all sides.

Without --url, --context and TIDELOCK_URL the bench starts a server of its own in
its own process, on a temporary folder. It makes a group with its projects, and
removes it in the end.`,
		Example: `  tidelock bench git
  tidelock bench git --files 10000 --rounds 9 -o json`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.files < 1 || opts.rounds < 1 {
				return misusef("--files and --rounds must be at least 1")
			}
			result, err := benchGit(cmd.Context(), env, source, opts)
			if err != nil {
				return err
			}
			return output.print(env.stdout, result)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&opts.files, "files", 10_000, "files in the repository")
	flags.IntVar(&opts.rounds, "rounds", 7, "how often each side does it")
	output.add(cmd)
	return cmd
}

// gitTimes are the medians of one way to reach a repository, in milliseconds,
// and how many times those of file:// they are.
type gitTimes struct {
	Clone      float64 `json:"clone"`
	Push       float64 `json:"push"`
	CloneRatio float64 `json:"clone_ratio"`
	PushRatio  float64 `json:"push_ratio"`
}

// gitResult is what the bench prints.
type gitResult struct {
	Files  int                 `json:"files"`
	Rounds int                 `json:"rounds"`
	Sides  map[string]gitTimes `json:"sides"`
}

var gitSides = []string{"file", "https", "ssh"}

func (r gitResult) table(w io.Writer) error {
	t := newTable(w, "SIDE", "CLONE", "RATIO", "PUSH", "RATIO", "")
	for _, name := range gitSides {
		if s, ok := r.Sides[name]; ok {
			t.row(name, fmt.Sprintf("%.0f", s.Clone), fmt.Sprintf("%.2f", s.CloneRatio), fmt.Sprintf("%.0f", s.Push), fmt.Sprintf("%.2f", s.PushRatio), "ms")
		}
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d files, medians of %d rounds\n", r.Files, r.Rounds)
	return err
}

// gitBench is a repository, and the sides that it goes to and comes from.
type gitBench struct {
	*benchForge
	work string // the repository that is pushed
	made int    // how many targets there are
	ssh  string // the command with the key of this measurement
	key  int64  // of that key
}

func benchGit(ctx context.Context, env *environment, source *sourceFlags, opts benchGitOptions) (_ gitResult, err error) {
	forge, err := newBenchForge(ctx, env, source)
	if err != nil {
		return gitResult{}, err
	}
	defer func() { err = errors.Join(err, forge.close(ctx)) }()
	b := &gitBench{benchForge: forge}
	defer func() { err = errors.Join(err, b.removeKey(ctx)) }()
	env.warnf("make a repository of %d files", opts.files)
	if err := b.makeRepository(ctx, opts.files); err != nil {
		return gitResult{}, err
	}
	sides, err := b.sides(ctx, env)
	if err != nil {
		return gitResult{}, err
	}
	clones, pushes := map[string][]time.Duration{}, map[string][]time.Duration{}
	for round := range opts.rounds + 1 { // the first one warms up
		env.warnf("round %d of %d", round, opts.rounds)
		for i := range sides {
			side := sides[(i+round)%len(sides)]
			clone, push, err := b.turn(ctx, side)
			if err != nil {
				return gitResult{}, fmt.Errorf("over %s: %w", side, err)
			}
			if round > 0 {
				clones[side], pushes[side] = append(clones[side], clone), append(pushes[side], push)
			}
		}
	}
	result := gitResult{Files: opts.files, Rounds: opts.rounds, Sides: map[string]gitTimes{}}
	floor := gitTimes{Clone: median(clones["file"]), Push: median(pushes["file"])}
	for _, side := range sides {
		t := gitTimes{Clone: median(clones[side]), Push: median(pushes[side])}
		t.CloneRatio, t.PushRatio = t.Clone/floor.Clone, t.Push/floor.Push
		result.Sides[side] = t
	}
	return result, nil
}

func median(times []time.Duration) float64 {
	sorted := slices.Sorted(slices.Values(times))
	return float64(sorted[len(sorted)/2].Microseconds()) / 1000
}

// makeRepository makes one commit of files, a hundred to a folder.
func (b *gitBench) makeRepository(ctx context.Context, files int) error {
	b.work = filepath.Join(b.dir, "work")
	for i := range files {
		dir := filepath.Join(b.work, fmt.Sprintf("app-%03d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
		}
		manifest := fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings-%d\n  labels:\n    number: %q\ndata:\n%s",
			i, fmt.Sprint(i), strings.Repeat(fmt.Sprintf("  key-%d: value-%d\n", i*7919%10007, i*104729%100003), 12))
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("settings-%05d.yaml", i)), []byte(manifest), 0o600); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"}, {"add", "-A"},
		append(slices.Clone(benchAuthor), "commit", "-q", "-m", "first"),
		{"repack", "-a", "-d", "-q"}, // as a repository that somebody works in is
	} {
		if _, err := b.git(ctx, b.work, args...); err != nil {
			return err
		}
	}
	return nil
}

// sides are the ways that this forge can be reached by. For SSH the user gets a
// key.
func (b *gitBench) sides(ctx context.Context, env *environment) ([]string, error) {
	probe, err := b.createProject(ctx, b.group, "probe")
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("ssh"); err != nil || probe.SSHURL == "" {
		env.warnf("leave SSH out: the server does not offer it, or there is no ssh here")
		return gitSides[:2], nil
	}
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, b.name)
	if err != nil {
		return nil, err
	}
	authorized, err := ssh.NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	keyFile, hosts := filepath.Join(b.dir, "id"), filepath.Join(b.dir, "known_hosts")
	err = errors.Join(os.WriteFile(keyFile, pem.EncodeToMemory(block), 0o600), os.WriteFile(hosts, []byte(b.knownHosts+"\n"), 0o600))
	if err != nil {
		return nil, err
	}
	made, err := call[struct {
		ID int64 `json:"id"`
	}](ctx, b.connection, http.MethodPost, "user/keys", map[string]any{"title": b.name, "key": string(ssh.MarshalAuthorizedKey(authorized))})
	if err != nil {
		return nil, err
	}
	b.key = made.value.ID
	trust := "yes"
	if b.knownHosts == "" {
		trust = "accept-new" // a server that was named is known by its certificate only
	}
	b.ssh = fmt.Sprintf("ssh -F /dev/null -i '%s' -o IdentitiesOnly=yes -o BatchMode=yes -o UserKnownHostsFile='%s' -o StrictHostKeyChecking=%s", keyFile, hosts, trust)
	return gitSides, nil
}

func (b *gitBench) removeKey(ctx context.Context) error {
	if b.key == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	return send(ctx, b.connection, http.MethodDelete, at("user/keys/%d", b.key), nil)
}

// git runs git with the key of this measurement.
func (b *gitBench) git(ctx context.Context, dir string, args ...string) (string, error) {
	if b.ssh != "" {
		args = append([]string{"-c", "core.sshCommand=" + b.ssh}, args...)
	}
	return b.benchForge.git(ctx, dir, args...)
}

// target makes an empty repository on one side and returns its URL.
func (b *gitBench) target(ctx context.Context, side string) (string, error) {
	b.made++
	name := fmt.Sprintf("%s-%d", side, b.made)
	if side == "file" {
		dir := filepath.Join(b.dir, name+".git")
		_, err := b.git(ctx, b.dir, "init", "-q", "--bare", "-b", "main", dir)
		return "file://" + dir, err
	}
	project, err := b.createProject(ctx, b.group, name)
	if side == "ssh" {
		return project.SSHURL, err
	}
	return project.CloneURL, err
}

// turn pushes to a new repository of one side and clones it.
func (b *gitBench) turn(ctx context.Context, side string) (clone, push time.Duration, err error) {
	url, err := b.target(ctx, side)
	if err != nil {
		return 0, 0, err
	}
	began := time.Now()
	if _, err := b.git(ctx, b.work, "push", "-q", url, "main"); err != nil {
		return 0, 0, err
	}
	push = time.Since(began)
	into := filepath.Join(b.dir, "clone")
	began = time.Now()
	// --no-local: a path or a file:// must be read, not linked.
	if _, err := b.git(ctx, b.dir, "clone", "-q", "--bare", "--no-local", url, into); err != nil {
		return 0, 0, err
	}
	clone = time.Since(began)
	return clone, push, os.RemoveAll(into)
}
