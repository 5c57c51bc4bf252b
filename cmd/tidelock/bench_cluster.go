package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	"tidelock.dev"
)

var (
	namespaces      = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	secrets         = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	configMaps      = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	gitRepositories = schema.GroupVersionResource{Group: "source.toolkit.fluxcd.io", Version: "v1", Resource: "gitrepositories"}
	kustomizations  = schema.GroupVersionResource{Group: "kustomize.toolkit.fluxcd.io", Version: "v1", Resource: "kustomizations"}
	receivers       = schema.GroupVersionResource{Group: "notification.toolkit.fluxcd.io", Version: "v1", Resource: "receivers"}
)

const (
	requestedAt  = "reconcile.fluxcd.io/requestedAt"
	setupTime    = 2 * time.Minute
	fieldManager = "tidelock-bench"
)

// pushBench is two projects with the same commits, each with a GitRepository
// and a Kustomization: one that Tidelock triggers, one that the bench does.
type pushBench struct {
	env      *environment
	server   *connection
	count    int
	timeout  time.Duration
	keep     bool
	kube     dynamic.Interface
	web      *http.Client
	receiver string // base URL of the receivers
	hook     string // path of the twin's Receiver

	name      string // of the group and the namespace
	group     int64
	dir       string
	announced *benchSide
	direct    *benchSide

	stop    context.CancelFunc
	watches sync.WaitGroup
}

// newPushBench sets both sides up and waits until they are ready. On an error
// it leaves nothing behind.
func newPushBench(ctx context.Context, env *environment, c *connection, opts benchPushOptions) (_ *pushBench, err error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = opts.kubeconfig
	rest, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	rest.QPS, rest.Burst = 100, 200
	kube, err := dynamic.NewForConfig(rest)
	if err != nil {
		return nil, err
	}
	suffix := make([]byte, 4)
	rand.Read(suffix)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	b := &pushBench{
		env: env, server: c, count: opts.count, timeout: opts.timeout, keep: opts.keep, kube: kube,
		web:      &http.Client{Timeout: opts.timeout, Transport: &http.Transport{}},
		receiver: strings.TrimSuffix(opts.receiver, "/"),
		name:     "bench-" + hex.EncodeToString(suffix),
		stop:     stop,
	}
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			err = errors.Join(err, b.close(clean))
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, setupTime, fmt.Errorf("the bench was not set up within %s", setupTime))
	defer cancel()
	return b, b.setUp(ctx, running)
}

func (b *pushBench) setUp(ctx, running context.Context) error {
	b.env.warnf("set up group and namespace %s", b.name)
	var err error
	if b.dir, err = os.MkdirTemp("", "tidelock-bench-"); err != nil {
		return err
	}
	if b.group, err = b.server.createGroup(ctx, b.name); err != nil {
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
	if b.announced, err = b.newSide(ctx, running, "announced"); err != nil {
		return err
	}
	if b.direct, err = b.newSide(ctx, running, "direct"); err != nil {
		return err
	}
	if err := b.apply(ctx, secrets, object("v1", "Secret", "direct-token", b.name, map[string]any{
		"stringData": map[string]any{"token": rand.Text()},
	})); err != nil {
		return err
	}
	if err := b.apply(ctx, receivers, object("notification.toolkit.fluxcd.io/v1", "Receiver", "direct", b.name, map[string]any{
		"spec": map[string]any{
			"type": "generic", "interval": "1h",
			"secretRef": map[string]any{"name": "direct-token"},
			"resources": []any{map[string]any{"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "GitRepository", "name": "direct"}},
		},
	})); err != nil {
		return err
	}
	for _, side := range []*benchSide{b.announced, b.direct} {
		b.env.warnf("wait until %s is applied", side.name)
		if _, err := side.applied(ctx, 0); err != nil {
			return err
		}
	}
	b.env.warnf("wait for the receivers")
	own, err := b.readyReceiver(ctx, "direct", "direct")
	if err != nil {
		return err
	}
	b.hook = own
	if _, err := b.readyReceiver(ctx, "announced", ""); err != nil {
		return fmt.Errorf("the agent keeps no Receiver for the bench's source; is it connected, and does its flux.selector match? %w", err)
	}
	for _, side := range []*benchSide{b.announced, b.direct} {
		if err := side.settle(ctx); err != nil {
			return err
		}
	}
	return nil
}

// close removes what the bench made.
func (b *pushBench) close(ctx context.Context) error {
	b.stop()
	b.watches.Wait()
	var errs []error
	if b.dir != "" {
		errs = append(errs, os.RemoveAll(b.dir))
	}
	if b.keep {
		return errors.Join(errs...)
	}
	err := b.kube.Resource(namespaces).Delete(ctx, b.name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		errs = append(errs, fmt.Errorf("delete namespace %s: %w", b.name, err))
	}
	if b.group != 0 {
		errs = append(errs, b.server.deleteGroup(ctx, b.group))
	}
	return errors.Join(errs...)
}

func object(apiVersion, kind, name, namespace string, rest map[string]any) *unstructured.Unstructured {
	metadata := map[string]any{"name": name}
	if namespace != "" {
		metadata["namespace"] = namespace
	}
	content := map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": metadata}
	for key, value := range rest {
		content[key] = value
	}
	return &unstructured.Unstructured{Object: content}
}

func (b *pushBench) apply(ctx context.Context, kind schema.GroupVersionResource, o *unstructured.Unstructured) error {
	var client dynamic.ResourceInterface = b.kube.Resource(kind)
	if o.GetNamespace() != "" {
		client = b.kube.Resource(kind).Namespace(o.GetNamespace())
	}
	if _, err := client.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: fieldManager}); err != nil {
		return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

// readyReceiver waits for a Receiver of a source that is ready and returns its
// path: the named one, or one that somebody else keeps when name is empty.
func (b *pushBench) readyReceiver(ctx context.Context, source, name string) (string, error) {
	for {
		list, err := b.kube.Resource(receivers).Namespace(b.name).List(ctx, metav1.ListOptions{})
		if err != nil && ctx.Err() == nil {
			return "", fmt.Errorf("list receivers: %w", err)
		}
		for _, r := range listItems(list) {
			resources, _, _ := unstructured.NestedSlice(r.Object, "spec", "resources")
			path, _, _ := unstructured.NestedString(r.Object, "status", "webhookPath")
			if len(resources) != 1 || !isReady(r) || path == "" {
				continue
			}
			first, _ := resources[0].(map[string]any)
			if first["name"] == source && (name == "" || r.GetName() == name) {
				return path, nil
			}
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func listItems(list *unstructured.UnstructuredList) []unstructured.Unstructured {
	if list == nil {
		return nil
	}
	return list.Items
}

func isReady(o unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(o.Object, "status", "conditions")
	for _, c := range conditions {
		condition, _ := c.(map[string]any)
		if condition["type"] == "Ready" {
			return condition["status"] == "True"
		}
	}
	return false
}

// benchSide is one of the two projects with its clone and its objects.
type benchSide struct {
	bench   *pushBench
	name    string
	project int64
	clone   string

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced when something below changed
	seen      map[string]time.Time
	requested string // the last value of requestedAt
	requests  int    // how often it changed
}

func (b *pushBench) newSide(ctx, running context.Context, name string) (*benchSide, error) {
	s := &benchSide{bench: b, name: name, clone: filepath.Join(b.dir, name), changed: make(chan struct{}), seen: map[string]time.Time{}}
	made, err := b.server.createProject(ctx, b.group, name)
	if err != nil {
		return nil, err
	}
	s.project = made.ID
	if err := os.Mkdir(s.clone, 0o700); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"},
		{"config", "user.name", "Tidelock bench"}, {"config", "user.email", "bench@tidelock.invalid"},
		{"config", "commit.gpgsign", "false"}, {"remote", "add", "origin", made.CloneURL},
	} {
		if _, err := s.git(ctx, args...); err != nil {
			return nil, err
		}
	}
	if _, err := s.push(ctx, 0); err != nil {
		return nil, err
	}
	s.watch(running, gitRepositories, s.sawSource)
	s.watch(running, configMaps, s.sawObject)

	source := object("source.toolkit.fluxcd.io/v1", "GitRepository", name, b.name, map[string]any{"spec": map[string]any{
		"url": made.CloneURL, "interval": "1h", "timeout": "30s",
		"ref":       map[string]any{"branch": "main"},
		"secretRef": map[string]any{"name": "forge-ca"},
	}})
	if name == "direct" {
		metadata := source.Object["metadata"].(map[string]any)
		metadata["labels"] = map[string]any{"tidelock.dev/trigger": "none"}
	}
	if err := b.apply(ctx, gitRepositories, source); err != nil {
		return nil, err
	}
	return s, b.apply(ctx, kustomizations, object("kustomize.toolkit.fluxcd.io/v1", "Kustomization", name, b.name, map[string]any{"spec": map[string]any{
		"interval": "1h", "retryInterval": "1h", "prune": true, "path": "./deploy", "targetNamespace": b.name,
		"sourceRef": map[string]any{"kind": "GitRepository", "name": name},
	}}))
}

func (s *benchSide) source() string { return "GitRepository/" + s.bench.name + "/" + s.name }

func (s *benchSide) git(ctx context.Context, args ...string) (string, error) {
	return s.bench.server.git(ctx, s.clone, args...)
}

// push commits the number n as the value of the side's ConfigMap and pushes it.
func (s *benchSide) push(ctx context.Context, n int) (tidelock.CommitID, error) {
	manifest := fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: %s\ndata:\n  push: %q\n", s.name, fmt.Sprint(n))
	dir := filepath.Join(s.clone, "deploy")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "configmap.yaml"), []byte(manifest), 0o600); err != nil {
		return "", err
	}
	for _, args := range [][]string{{"add", "-A"}, {"commit", "-q", "-m", fmt.Sprintf("push %d", n)}, {"push", "-q", "origin", "main"}} {
		if _, err := s.git(ctx, args...); err != nil {
			return "", err
		}
	}
	commit, err := s.git(ctx, "rev-parse", "HEAD")
	return tidelock.CommitID(commit), err
}

// applied waits until the watch has seen the object of push n and returns when.
func (s *benchSide) applied(ctx context.Context, n int) (time.Time, error) {
	key := fmt.Sprint(n)
	for {
		s.mu.Lock()
		at, ok := s.seen[key]
		changed := s.changed
		s.mu.Unlock()
		if ok {
			return at, nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("%s: push %d was not applied in time: %w", s.name, n, context.Cause(ctx))
		case <-changed:
		}
	}
}

// settle begins to count triggers, once those of the set-up are over.
func (s *benchSide) settle(ctx context.Context) error {
	for {
		s.mu.Lock()
		s.requests = 0
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		case <-time.After(2 * time.Second):
			return nil
		}
	}
}

// triggers counts how often a reconciliation was asked for since settle.
func (s *benchSide) triggers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests
}

func (s *benchSide) sawSource(o *unstructured.Unstructured) {
	if value := o.GetAnnotations()[requestedAt]; value != s.requested {
		s.requested = value
		s.requests++
	}
}

func (s *benchSide) sawObject(o *unstructured.Unstructured) {
	value, ok, _ := unstructured.NestedString(o.Object, "data", "push")
	if _, before := s.seen[value]; ok && !before {
		s.seen[value] = time.Now()
	}
}

// watch calls saw, under the side's lock, for every state of the side's object
// of a kind, until the bench closes. A watch that ends is begun again.
func (s *benchSide) watch(ctx context.Context, kind schema.GroupVersionResource, saw func(*unstructured.Unstructured)) {
	options := metav1.ListOptions{FieldSelector: "metadata.name=" + s.name}
	client := s.bench.kube.Resource(kind).Namespace(s.bench.name)
	s.bench.watches.Go(func() {
		for ctx.Err() == nil {
			w, err := client.Watch(ctx, options)
			if err != nil {
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
				continue
			}
			for event := range w.ResultChan() {
				o, ok := event.Object.(*unstructured.Unstructured)
				if !ok || event.Type == watch.Deleted || event.Type == watch.Bookmark {
					continue
				}
				s.mu.Lock()
				saw(o)
				close(s.changed)
				s.changed = make(chan struct{})
				s.mu.Unlock()
			}
			w.Stop()
		}
	})
}

func (b *pushBench) announcements(ctx context.Context, project int64, commit tidelock.CommitID) ([]answer[announcementRow], error) {
	query := struct {
		Commit string `url:"commit,omitempty"`
	}{string(commit)}
	return list[announcementRow](ctx, b.server, at("projects/%d/announcements", project), query, 100)
}
