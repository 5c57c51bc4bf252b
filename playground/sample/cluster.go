package sample

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/manifest"
)

// Namespace is where the sample's Flux objects are; what they apply is in the
// namespace of its Way.
const (
	Namespace    = "sample"
	GreetingName = "greeting"
	GreetingKey  = "message"
)

// The source's interval is long on purpose: a change that shows within a
// second was announced, not polled for. The Kustomization's repairs drift.
const (
	sourceInterval = "1h"
	driftInterval  = "10m"
)

// ApplySources has Flux follow the deployment project and, verified by the
// forge's key, the artifact of the delivery project.
func (f *Forge) ApplySources(ctx context.Context, c client.Client) error {
	ca, err := os.ReadFile(f.CAFile)
	if err != nil {
		return fmt.Errorf("read the server's CA: %w", err)
	}
	keys, err := f.signingKeys(ctx)
	if err != nil {
		return err
	}
	_, host, _ := strings.Cut(f.URL, "://")
	host, _, _ = strings.Cut(host, "/")
	objects := []map[string]any{
		{
			"apiVersion": "v1", "kind": "Namespace",
			"metadata": map[string]any{"name": Namespace},
		},
		{
			"apiVersion": "v1", "kind": "Secret",
			"metadata":   named("forge-ca"),
			"stringData": map[string]any{"ca.crt": string(ca)},
		},
		{
			"apiVersion": "v1", "kind": "Secret",
			"metadata":   named("forge-signing-keys"),
			"stringData": keys,
		},
		{
			"apiVersion": gitKind.GroupVersion().String(), "kind": gitKind.Kind,
			"metadata": named("deployment"),
			"spec": map[string]any{
				"url": f.URL + "/" + Deployment + ".git", "interval": sourceInterval, "timeout": "30s",
				"ref":       map[string]any{"branch": "main"},
				"secretRef": map[string]any{"name": "forge-ca"},
			},
		},
		kustomization("deployment", gitKind.Kind),
		{
			"apiVersion": imageKind.GroupVersion().String(), "kind": imageKind.Kind,
			"metadata": named("greeting"),
			"spec": map[string]any{
				"url": "oci://" + host + "/" + Delivery + "/greeting", "interval": sourceInterval, "timeout": "30s",
				"ref":           map[string]any{"tag": "latest"},
				"certSecretRef": map[string]any{"name": "forge-ca"},
				"verify":        map[string]any{"provider": "cosign", "secretRef": map[string]any{"name": "forge-signing-keys"}},
			},
		},
		kustomization("greeting", imageKind.Kind),
	}
	for _, object := range objects {
		if err := manifest.Apply(ctx, c, &unstructured.Unstructured{Object: object}); err != nil {
			return err
		}
	}
	return nil
}

func named(name string) map[string]any {
	return map[string]any{"name": name, "namespace": Namespace}
}

// kustomization applies what the source of the same name has.
func kustomization(name, sourceKind string) map[string]any {
	return map[string]any{
		"apiVersion": kustomizationKind.GroupVersion().String(), "kind": kustomizationKind.Kind,
		"metadata": named(name),
		"spec": map[string]any{
			"interval": driftInterval, "retryInterval": "30s", "timeout": "2m",
			// Without "wait": while Flux waits for one change to become
			// healthy, which it looks at every five seconds, it does not
			// apply the next.
			"path": "./", "prune": true,
			"sourceRef": map[string]any{"kind": sourceKind, "name": name},
		},
	}
}

var (
	gitKind           = schema.GroupVersionKind{Group: "source.toolkit.fluxcd.io", Version: "v1", Kind: "GitRepository"}
	imageKind         = schema.GroupVersionKind{Group: "source.toolkit.fluxcd.io", Version: "v1", Kind: "OCIRepository"}
	receiverKind      = schema.GroupVersionKind{Group: "notification.toolkit.fluxcd.io", Version: "v1", Kind: "Receiver"}
	kustomizationKind = schema.GroupVersionKind{Group: "kustomize.toolkit.fluxcd.io", Version: "v1", Kind: "Kustomization"}
)

// AwaitReady waits until Flux has applied what it fetched of both sources, and
// the agent can trigger them: their Receivers are ready.
func AwaitReady(ctx context.Context, c client.Client) error {
	last := "it was not looked at"
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (done bool, err error) {
		if done, last = applied(ctx, c, gitKind, "deployment"); done {
			if done, last = applied(ctx, c, imageKind, "greeting"); done {
				done, last = receiversReady(ctx, c)
			}
		}
		return done, nil
	})
	if err != nil {
		return fmt.Errorf("wait until the sample is ready: %w; %s", err, last)
	}
	return nil
}

func receiversReady(ctx context.Context, c client.Client) (done bool, why string) {
	const wanted = 2
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(receiverKind)
	if err := c.List(ctx, list, client.InNamespace(Namespace)); err != nil {
		return false, err.Error()
	}
	ready := 0
	why = fmt.Sprintf("the agent has made %d of %d Receivers", len(list.Items), wanted)
	for _, receiver := range list.Items {
		if ok, message := readiness(&receiver); ok {
			ready++
		} else {
			why = fmt.Sprintf("Receiver %s/%s: %s", Namespace, receiver.GetName(), message)
		}
	}
	return ready >= wanted, why
}

// applied reports whether the Kustomization of a source has applied what the
// source has.
func applied(ctx context.Context, c client.Client, source schema.GroupVersionKind, name string) (done bool, why string) {
	var revisions []string
	for _, look := range []struct {
		kind     schema.GroupVersionKind
		revision []string
	}{
		{source, []string{"status", "artifact", "revision"}},
		{kustomizationKind, []string{"status", "lastAppliedRevision"}},
	} {
		object := &unstructured.Unstructured{}
		object.SetGroupVersionKind(look.kind)
		if err := c.Get(ctx, client.ObjectKey{Namespace: Namespace, Name: name}, object); err != nil {
			return false, err.Error()
		}
		if ready, message := readiness(object); !ready {
			return false, fmt.Sprintf("%s %s/%s: %s", look.kind.Kind, Namespace, name, message)
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
