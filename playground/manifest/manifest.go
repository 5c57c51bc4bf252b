// Package manifest reads Kubernetes YAML and applies it server-side. It is how
// the playground brings Flux's CRDs, rights and sample objects into a cluster.
package manifest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// FieldManager owns the fields that Apply sets.
const FieldManager = "tidelock-playground"

// Parse reads all documents of a YAML text.
func Parse(text []byte) ([]*unstructured.Unstructured, error) {
	reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	var objects []*unstructured.Unstructured
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read YAML: %w", err)
		}
		object := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(document, &object.Object); err != nil {
			return nil, fmt.Errorf("parse YAML: %w", err)
		}
		switch {
		case len(object.Object) == 0: // only comments
		case object.GetKind() == "" || object.GetName() == "":
			return nil, errors.New("parse YAML: a document has no kind or no name")
		default:
			objects = append(objects, object)
		}
	}
}

// ReadFiles parses files in their order.
func ReadFiles(paths ...string) ([]*unstructured.Unstructured, error) {
	var all []*unstructured.Unstructured
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read manifest: %w", err)
		}
		objects, err := Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		all = append(all, objects...)
	}
	return all, nil
}

// Apply applies objects in their order and waits until the cluster serves
// those that are definitions of new kinds. Conflicts are won, as the playground
// is the owner of what it applies.
func Apply(ctx context.Context, c client.Client, objects ...*unstructured.Unstructured) error {
	for _, object := range objects {
		err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(object.DeepCopy()), client.FieldOwner(FieldManager), client.ForceOwnership)
		if err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), name(object), err)
		}
	}
	for _, object := range objects {
		if object.GetKind() != "CustomResourceDefinition" {
			continue
		}
		if err := awaitEstablished(ctx, c, object); err != nil {
			return err
		}
	}
	return nil
}

func awaitEstablished(ctx context.Context, c client.Client, definition *unstructured.Unstructured) error {
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, 30*time.Second, true, func(ctx context.Context) (bool, error) {
		now := definition.DeepCopy()
		if err := c.Get(ctx, client.ObjectKeyFromObject(definition), now); err != nil {
			return false, err
		}
		// Until the apiserver has looked at it, conditions may be null.
		conditions, _, _ := unstructured.NestedSlice(now.Object, "status", "conditions")
		return slices.ContainsFunc(conditions, func(c any) bool {
			condition, ok := c.(map[string]any)
			return ok && condition["type"] == "Established" && condition["status"] == "True"
		}), nil
	})
	if err != nil {
		return fmt.Errorf("wait until the cluster serves %s: %w", definition.GetName(), err)
	}
	// A mapper that was asked before the kind existed asks again on its own,
	// but not for a version of a group it knows.
	if resetter, ok := c.RESTMapper().(meta.ResettableRESTMapper); ok {
		resetter.Reset()
	}
	return nil
}

func name(object *unstructured.Unstructured) string {
	if ns := object.GetNamespace(); ns != "" {
		return ns + "/" + object.GetName()
	}
	return object.GetName()
}
