package sample

import (
	"context"
	"fmt"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/manifest"
)

// Namespace is where the sample's Flux objects are; what they apply is in
// DemoNamespace.
const (
	Namespace     = "sample"
	DemoNamespace = "demo"
	GreetingName  = "greeting"
	GreetingKey   = "message"
	GreetingFile  = "greeting.yaml"
)

// The source's interval is long on purpose: a change that shows within a
// second was announced, not polled for. The Kustomization's repairs drift.
const (
	sourceInterval = "1h"
	driftInterval  = "10m"
)

// ApplySource has Flux follow the deployment project.
func (f *Forge) ApplySource(ctx context.Context, c client.Client) error {
	ca, err := os.ReadFile(f.CAFile)
	if err != nil {
		return fmt.Errorf("read the server's CA: %w", err)
	}
	meta := func(name string) map[string]any {
		return map[string]any{"name": name, "namespace": Namespace}
	}
	objects := []map[string]any{
		{
			"apiVersion": "v1", "kind": "Namespace",
			"metadata": map[string]any{"name": Namespace},
		},
		{
			"apiVersion": "v1", "kind": "Secret",
			"metadata":   meta("forge-ca"),
			"stringData": map[string]any{"ca.crt": string(ca)},
		},
		{
			"apiVersion": sourceKind.GroupVersion().String(), "kind": sourceKind.Kind,
			"metadata": meta("deployment"),
			"spec": map[string]any{
				"url": f.URL + "/" + Deployment + ".git", "interval": sourceInterval, "timeout": "30s",
				"ref":       map[string]any{"branch": "main"},
				"secretRef": map[string]any{"name": "forge-ca"},
			},
		},
		{
			"apiVersion": kustomizationKind.GroupVersion().String(), "kind": kustomizationKind.Kind,
			"metadata": meta("deployment"),
			"spec": map[string]any{
				"interval": driftInterval, "retryInterval": "30s", "timeout": "2m",
				// Without "wait": while Flux waits for one change to become
				// healthy, which it looks at every five seconds, it does not
				// apply the next.
				"path": "./", "prune": true,
				"sourceRef": map[string]any{"kind": sourceKind.Kind, "name": "deployment"},
			},
		},
	}
	for _, object := range objects {
		if err := manifest.Apply(ctx, c, &unstructured.Unstructured{Object: object}); err != nil {
			return err
		}
	}
	return nil
}

var (
	sourceKind        = schema.GroupVersionKind{Group: "source.toolkit.fluxcd.io", Version: "v1", Kind: "GitRepository"}
	receiverKind      = schema.GroupVersionKind{Group: "notification.toolkit.fluxcd.io", Version: "v1", Kind: "Receiver"}
	kustomizationKind = schema.GroupVersionKind{Group: "kustomize.toolkit.fluxcd.io", Version: "v1", Kind: "Kustomization"}
)

// AwaitReady waits until Flux has applied what it fetched of the deployment
// project, and the agent can trigger it: its Receiver is ready.
func AwaitReady(ctx context.Context, c client.Client) error {
	last := "it was not looked at"
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (done bool, err error) {
		if done, last = applied(ctx, c); done {
			done, last = receiverReady(ctx, c)
		}
		return done, nil
	})
	if err != nil {
		return fmt.Errorf("wait until the sample is ready: %w; %s", err, last)
	}
	return nil
}

func receiverReady(ctx context.Context, c client.Client) (done bool, why string) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(receiverKind)
	if err := c.List(ctx, list, client.InNamespace(Namespace)); err != nil {
		return false, err.Error()
	}
	why = "the agent has made no Receiver"
	for _, receiver := range list.Items {
		ready, message := readiness(&receiver)
		if ready {
			return true, ""
		}
		why = fmt.Sprintf("Receiver %s/%s: %s", Namespace, receiver.GetName(), message)
	}
	return false, why
}

func applied(ctx context.Context, c client.Client) (done bool, why string) {
	var revisions []string
	for _, look := range []struct {
		kind     schema.GroupVersionKind
		revision []string
	}{
		{sourceKind, []string{"status", "artifact", "revision"}},
		{kustomizationKind, []string{"status", "lastAppliedRevision"}},
	} {
		object := &unstructured.Unstructured{}
		object.SetGroupVersionKind(look.kind)
		if err := c.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: "deployment"}, object); err != nil {
			return false, err.Error()
		}
		if ready, message := readiness(object); !ready {
			return false, fmt.Sprintf("%s %s/deployment: %s", look.kind.Kind, Namespace, message)
		}
		revision, _, _ := unstructured.NestedString(object.Object, look.revision...)
		revisions = append(revisions, revision)
	}
	return revisions[0] == revisions[1], fmt.Sprintf("fetched %q, applied %q", revisions[0], revisions[1])
}

// readiness reads the Ready condition, if it speaks of the newest spec.
func readiness(object *unstructured.Unstructured) (ready bool, message string) {
	conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	for _, c := range conditions {
		condition, _ := c.(map[string]any)
		if condition["type"] != "Ready" {
			continue
		}
		message, _ = condition["message"].(string)
		observed, _ := condition["observedGeneration"].(int64)
		return condition["status"] == "True" && observed == object.GetGeneration(), message
	}
	return false, "no status yet"
}
