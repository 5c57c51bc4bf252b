package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"tidelock.dev"
	"tidelock.dev/internal/delivery"
)

var ociRepositories = schema.GroupVersionResource{Group: "source.toolkit.fluxcd.io", Version: "v1", Resource: "ocirepositories"}

type benchDeliveryOptions struct {
	count        int
	applications int
	build        string
	kubeconfig   string
	timeout      time.Duration
	keep         bool
}

func newBenchDeliveryCommand(env *environment, source *sourceFlags) *cobra.Command {
	var opts benchDeliveryOptions
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "delivery",
		Short: "Measure how long a push to a delivery repository takes to reach the cluster",
		Long: `Push commits that change one application of a delivery repository, one after
another, and print how long each hop took, in milliseconds since the server
recorded the push:

  packaged   the artifact was in the registry, with its tags
  announced  the agent had the announcement
  called     its request to the Receiver left
  fetched    the OCIRepository showed the artifact
  applied    a watch saw the object

"called after packaged" is how much of it lies between these two. All polling
intervals are an hour. It needs a cluster with Flux and a connected agent, such
as the playground's, and makes a group and a namespace of its own, which it
removes in the end.`,
		Example: "  . .playground/env && tidelock bench delivery --count 50\n  tidelock bench delivery --build kustomize",
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opts.count < 1 || opts.applications < 1 || opts.applications > 500 {
				return misusef("--count must be at least 1, and --applications from 1 to 500")
			}
			if opts.build != "none" && opts.build != "kustomize" {
				return misusef("--build must be none or kustomize")
			}
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			result, err := benchDelivery(cmd.Context(), env, c, opts)
			if err != nil {
				return err
			}
			return output.print(env.stdout, result)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&opts.count, "count", 20, "pushes")
	flags.IntVar(&opts.applications, "applications", 20, "applications of the repository")
	flags.StringVar(&opts.build, "build", "none", "how they are built: none or kustomize")
	flags.StringVar(&opts.kubeconfig, "kubeconfig", "", "cluster to use (default: KUBECONFIG)")
	flags.DurationVar(&opts.timeout, "timeout", 30*time.Second, "how long one push may take")
	flags.BoolVar(&opts.keep, "keep", false, "leave the group and the namespace behind")
	output.add(cmd)
	return cmd
}

// deliveryResult is what the bench prints.
type deliveryResult struct {
	Count        int               `json:"count"`
	Applications int               `json:"applications"`
	Build        string            `json:"build"`
	Hops         map[string]spread `json:"hops"`
}

var deliveryHops = []string{"packaged", "announced", "called", "called after packaged", "fetched", "applied"}

func (r deliveryResult) table(w io.Writer) error {
	t := newTable(w, "HOP", "MIN", "P50", "P99", "")
	for _, name := range deliveryHops {
		s := r.Hops[name]
		t.row(name, fmt.Sprintf("%.1f", s.Min), fmt.Sprintf("%.1f", s.P50), fmt.Sprintf("%.1f", s.P99), "ms")
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d pushes, each changing one of %d applications (build: %s)\n", r.Count, r.Applications, r.Build)
	return err
}

// deliveryBench is a delivery repository whose first application is followed
// by an OCIRepository and a Kustomization.
type deliveryBench struct {
	*pushBench
	options benchDeliveryOptions
	side    *benchSide
	made    benchProject
}

func benchDelivery(ctx context.Context, env *environment, c *connection, opts benchDeliveryOptions) (_ deliveryResult, err error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = opts.kubeconfig
	rest, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return deliveryResult{}, fmt.Errorf("read the kubeconfig: %w", err)
	}
	rest.QPS, rest.Burst = 100, 200
	kube, err := dynamic.NewForConfig(rest)
	if err != nil {
		return deliveryResult{}, err
	}
	suffix := make([]byte, 4)
	rand.Read(suffix)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	b := &deliveryBench{options: opts, pushBench: &pushBench{
		env: env, server: c, count: opts.count, timeout: opts.timeout, keep: opts.keep, kube: kube, stop: stop,
		name: "bench-" + hex.EncodeToString(suffix),
	}}
	defer func() {
		clean, stop := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer stop()
		err = errors.Join(err, b.close(clean))
	}()
	if err := b.setUp(ctx, running); err != nil {
		return deliveryResult{}, err
	}
	return b.run(ctx)
}

func (b *deliveryBench) setUp(ctx, running context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, setupTime, fmt.Errorf("the bench was not set up within %s", setupTime))
	defer cancel()
	b.env.warnf("set up group and namespace %s", b.name)
	if b.dir, err = os.MkdirTemp("", "tidelock-bench-"); err != nil {
		return err
	}
	if b.group, err = b.server.createGroup(ctx, b.name); err != nil {
		return err
	}
	if b.made, err = b.server.createProject(ctx, b.group, "delivery"); err != nil {
		return err
	}
	if err := b.apply(ctx, namespaces, object("v1", "Namespace", b.name, "", nil)); err != nil {
		return err
	}
	trusted := map[string]any{}
	if file := b.server.source.CAFile; file != "" {
		ca, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read the CA of %s: %w", b.server.source.from, err)
		}
		trusted["ca.crt"] = string(ca)
	}
	if err := b.apply(ctx, secrets, object("v1", "Secret", "forge-ca", b.name, map[string]any{"stringData": trusted})); err != nil {
		return err
	}
	b.side = &benchSide{bench: b.pushBench, name: benchApplication(0), project: b.made.ID, clone: filepath.Join(b.dir, "delivery"),
		changed: make(chan struct{}), seen: map[string]time.Time{}}
	b.side.watch(running, configMaps, b.side.sawObject)
	commit, err := b.firstPush(ctx)
	if err != nil {
		return err
	}
	if _, err := b.packaged(ctx, commit, b.options.applications); err != nil {
		return err
	}
	server, err := url.Parse(b.made.CloneURL)
	if err != nil {
		return fmt.Errorf("parse the clone URL: %w", err)
	}
	if err := b.apply(ctx, ociRepositories, object("source.toolkit.fluxcd.io/v1", "OCIRepository", b.side.name, b.name, map[string]any{"spec": map[string]any{
		"url":      "oci://" + server.Host + strings.TrimSuffix(server.Path, ".git") + "/" + b.side.name,
		"interval": "1h", "timeout": "30s", "ref": map[string]any{"tag": "latest"}, "certSecretRef": map[string]any{"name": "forge-ca"},
	}})); err != nil {
		return err
	}
	if err := b.apply(ctx, kustomizations, object("kustomize.toolkit.fluxcd.io/v1", "Kustomization", b.side.name, b.name, map[string]any{"spec": map[string]any{
		"interval": "1h", "retryInterval": "1h", "prune": true, "path": "./", "targetNamespace": b.name,
		"sourceRef": map[string]any{"kind": "OCIRepository", "name": b.side.name},
	}})); err != nil {
		return err
	}
	b.env.warnf("wait until %s is applied", b.side.name)
	if _, err := b.side.applied(ctx, 0); err != nil {
		return err
	}
	b.env.warnf("wait for the receiver")
	if _, err := b.readyReceiver(ctx, b.side.name, ""); err != nil {
		return fmt.Errorf("the agent keeps no Receiver for the bench's source; is it connected, and does its flux.selector match? %w", err)
	}
	return b.side.settle(ctx)
}

func benchApplication(i int) string { return fmt.Sprintf("app-%03d", i) }

func (b *deliveryBench) firstPush(ctx context.Context) (tidelock.CommitID, error) {
	var settings strings.Builder
	settings.WriteString("applications:\n")
	for i := range b.options.applications {
		name := benchApplication(i)
		fmt.Fprintf(&settings, "- {name: %s, path: apps/%s, build: %s}\n", name, name, b.options.build)
		if err := b.write(name, 0); err != nil {
			return "", err
		}
	}
	file := filepath.Join(b.side.clone, filepath.FromSlash(delivery.ConfigPath))
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(file, []byte(settings.String()), 0o600); err != nil {
		return "", err
	}
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"},
		{"config", "user.name", "Tidelock bench"}, {"config", "user.email", "bench@tidelock.invalid"},
		{"config", "commit.gpgsign", "false"}, {"remote", "add", "origin", b.made.CloneURL},
	} {
		if _, err := b.side.git(ctx, args...); err != nil {
			return "", err
		}
	}
	return b.commit(ctx, 0)
}

// write gives an application's ConfigMap a number.
func (b *deliveryBench) write(name string, n int) error {
	dir := filepath.Join(b.side.clone, "apps", name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if b.options.build == string(delivery.BuildKustomize) {
		if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte("resources: [configmap.yaml]\n"), 0o600); err != nil {
			return err
		}
	}
	manifest := fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: %s\ndata:\n  push: %q\n", name, fmt.Sprint(n))
	return os.WriteFile(filepath.Join(dir, "configmap.yaml"), []byte(manifest), 0o600)
}

func (b *deliveryBench) commit(ctx context.Context, n int) (tidelock.CommitID, error) {
	for _, args := range [][]string{{"add", "-A"}, {"commit", "-q", "-m", fmt.Sprintf("push %d", n)}, {"push", "-q", "origin", "main"}} {
		if _, err := b.side.git(ctx, args...); err != nil {
			return "", err
		}
	}
	commit, err := b.side.git(ctx, "rev-parse", "HEAD")
	return tidelock.CommitID(commit), err
}

// packaged waits until exactly so many applications were packaged of a commit.
func (b *deliveryBench) packaged(ctx context.Context, commit tidelock.CommitID, want int) ([]buildRow, error) {
	query := struct {
		Commit tidelock.CommitID `url:"commit"`
	}{commit}
	for {
		answers, err := list[buildRow](ctx, b.server, at("projects/%d/deliveries", b.made.ID), query, want+1)
		if err != nil {
			return nil, err
		}
		if len(answers) > want {
			return nil, fmt.Errorf("%d applications were packaged of commit %s, want %d", len(answers), commit, want)
		}
		if len(answers) == want {
			builds := make([]buildRow, want)
			for i, a := range answers {
				if builds[i] = a.value; builds[i].Status != "success" {
					return nil, fmt.Errorf("%s of commit %s: %s %v", builds[i].name(), commit, builds[i].Status, builds[i].Findings)
				}
			}
			return builds, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("commit %s was not packaged: %w", commit, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (b *deliveryBench) run(ctx context.Context) (deliveryResult, error) {
	hops := map[string][]time.Duration{}
	for i := range b.count {
		if i%10 == 0 {
			b.env.warnf("push %d of %d", i+1, b.count)
		}
		times, err := b.once(ctx, i+1)
		if err != nil {
			return deliveryResult{}, fmt.Errorf("push %d: %w", i+1, err)
		}
		for name, took := range times {
			hops[name] = append(hops[name], took)
		}
	}
	result := deliveryResult{Count: b.count, Applications: b.options.applications, Build: b.options.build, Hops: map[string]spread{}}
	for _, name := range deliveryHops {
		result.Hops[name] = spreadOf(hops[name])
	}
	return result, nil
}

// once pushes a change of one application and returns the time of every hop
// since the push was recorded.
func (b *deliveryBench) once(ctx context.Context, n int) (map[string]time.Duration, error) {
	ctx, stop := context.WithTimeout(ctx, b.timeout)
	defer stop()
	if err := b.write(b.side.name, n); err != nil {
		return nil, err
	}
	commit, err := b.commit(ctx, n)
	if err != nil {
		return nil, err
	}
	applied, err := b.side.applied(ctx, n)
	if err != nil {
		return nil, err
	}
	builds, err := b.packaged(ctx, commit, 1)
	if err != nil {
		return nil, err
	}
	a, err := b.announcementOf(ctx, builds[0].Digest)
	if err != nil {
		return nil, err
	}
	if a.Via != "receiver" {
		return nil, fmt.Errorf("commit %s was triggered by %s, not by the receiver: the figures would not compare", commit, cmp.Or(a.Via, "nothing"))
	}
	// The push of the commit, and not that of the artifact, is where it began.
	packaged := time.Duration(builds[0].Duration * float64(time.Second))
	pushed := builds[0].CreatedAt.Add(-packaged)
	return map[string]time.Duration{
		"packaged":              packaged,
		"announced":             a.AnnouncedAt.Sub(pushed),
		"called":                a.CalledAt.Sub(pushed),
		"called after packaged": a.CalledAt.Sub(pushed) - packaged,
		"fetched":               a.FetchedAt.Sub(pushed),
		"applied":               applied.Sub(pushed),
	}, nil
}

// announcementOf waits until the record of an artifact's one announcement is
// complete.
func (b *deliveryBench) announcementOf(ctx context.Context, digest string) (announcementRow, error) {
	query := struct {
		Digest string `url:"digest"`
	}{digest}
	for {
		found, err := list[announcementRow](ctx, b.server, at("projects/%d/announcements", b.made.ID), query, 10)
		if err != nil {
			return announcementRow{}, err
		}
		if len(found) > 1 {
			return announcementRow{}, fmt.Errorf("artifact %s was announced to %d sources, want one", digest, len(found))
		}
		if len(found) == 1 {
			a := found[0].value
			if a.AnnouncedAt != nil && a.CalledAt != nil && a.FetchedAt != nil {
				return a, nil
			}
		}
		select {
		case <-ctx.Done():
			return announcementRow{}, fmt.Errorf("the announcement of %s is not complete: %w", digest, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
