package flux

import (
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

// TestReceiverNamesVersions makes the Receiver of a source say of which version
// each of its resources is: versions of notification-controller differ in what
// they take for granted.
func TestReceiverNamesVersions(t *testing.T) {
	step := &receiverStep{kind: gitRepository, source: types.NamespacedName{Namespace: "ns", Name: "site"}, name: "site-x"}
	resources := step.spec().Resources
	if len(resources) != 1 {
		t.Fatalf("got %d resources, want 1", len(resources))
	}
	if r := resources[0]; r.APIVersion != "source.toolkit.fluxcd.io/v1" || r.Kind != "GitRepository" || r.Name != "site" {
		t.Errorf("the resource is %+v", r)
	}
}
