package flux

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"
)

// TestReceiverNamesVersions makes the Receiver of a source say of which version
// each of its resources is: versions of notification-controller differ in what
// they take for granted.
func TestReceiverNamesVersions(t *testing.T) {
	for _, k := range kinds {
		step := &receiverStep{kind: k, source: types.NamespacedName{Namespace: "ns", Name: "site"}, uid: "u", name: "site-x"}
		resources := step.spec().Resources
		if len(resources) != 1 {
			t.Fatalf("%s: got %d resources, want 1", k.Kind, len(resources))
		}
		if r := resources[0]; r.APIVersion != k.GroupVersion().String() || r.Kind != k.Kind || r.Name != "site" || r.Namespace != "" {
			t.Errorf("%s: the resource is %+v", k.Kind, r)
		}
		if o := step.ownerReference(); o.APIVersion != k.GroupVersion().String() || o.Kind != k.Kind || o.Name != "site" || o.UID != "u" {
			t.Errorf("%s: the owner is %+v", k.Kind, o)
		}
	}
	if got := gitRepository.GroupVersion().String(); got != "source.toolkit.fluxcd.io/v1" {
		t.Errorf("GitRepository is of %s", got)
	}
}

// TestReleasedNames holds the names to what agents of the first release gave: with
// others, every Receiver would be made anew at an upgrade. Sources of one name
// and of several kinds have several uids.
func TestReleasedNames(t *testing.T) {
	o := newOwner(7, "https://forge.example")
	for _, tt := range []struct {
		source string
		uid    types.UID
		want   string
	}{
		{"site", "6f1c0f0e-5d8f-4f0a-9d3e-000000000001", "tidelock-7-site-e5e7ee70"},
		{"site", "6f1c0f0e-5d8f-4f0a-9d3e-000000000002", "tidelock-7-site-0763d3aa"},
		{strings.Repeat("x", 40) + ".-" + strings.Repeat("y", 40), "6f1c0f0e-5d8f-4f0a-9d3e-000000000001", "tidelock-7-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.-y-e5e7ee70"},
	} {
		if got := o.name(tt.source, tt.uid); got != tt.want {
			t.Errorf("%s of %s: got %q, want %q", tt.source, tt.uid, got, tt.want)
		}
	}
}
