package flux

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	helmv2 "github.com/fluxcd/helm-controller/api/v2"
	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	kustomizeapi "github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/apis/meta"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"tidelock.dev"
)

// load reads an object as a real Flux left it.
func load[T client.Object](t *testing.T, name string) T {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	object, _, err := serializer.NewCodecFactory(scheme).UniversalDeserializer().Decode(text, nil, nil)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	typed, ok := object.(T)
	if !ok {
		t.Fatalf("%s is a %T", name, object)
	}
	return typed
}

// readApplier reads an applier of either kind.
func readApplier(t *testing.T, name string) application {
	t.Helper()
	if strings.HasPrefix(name, "kustomization") {
		return kustomization.read(load[*kustomizev1.Kustomization](t, name))
	}
	return helmRelease.read(load[*helmv2.HelmRelease](t, name))
}

// TestStanding reads what real controllers wrote, at every step of their work.
// Revisions are compared by their last six characters.
func TestStanding(t *testing.T) {
	const (
		unknown     = tidelock.ObservedUnknown
		progressing = tidelock.ObservedProgressing
		blocked     = tidelock.ObservedBlocked
		ready       = tidelock.ObservedReady
		failed      = tidelock.ObservedFailed
		stalled     = tidelock.ObservedStalled
	)
	tests := []struct {
		name      string
		state     tidelock.ObservedState
		reason    string
		message   string // a part of it
		attempted string
		applied   string
		brought   bool
		health    tidelock.Health
	}{
		{"kustomization-new", unknown, "", "", "", "", false, "unknown"},
		{"kustomization-source-not-ready", blocked, "ArtifactFailed", "Source artifact not found", "", "", false, "unknown"},
		{"kustomization-blocked", blocked, "DependencyNotReady", "dependency 'shop/broken'", "dbf2a7", "dbf2a7", true, "unknown"},
		{"kustomization-fetching", progressing, "Progressing", "Fetching manifests", "9f43d3", "", false, "unknown"},
		{"kustomization-health-checks", progressing, "Progressing", "Running health checks", "676e87d", "", true, "progressing"},
		{"kustomization-ready-first", progressing, "ReconciliationSucceeded", "Applied revision", "9f43d3", "", false, "unknown"},
		{"kustomization-ready", ready, "ReconciliationSucceeded", "Applied revision", "9f43d3", "9f43d3", true, "unknown"},
		{"kustomization-suspended-unseen", unknown, "", "generation 2", "9f43d3", "9f43d3", true, "unknown"},
		{"kustomization-suspended", ready, "ReconciliationSucceeded", "Applied revision", "9f43d3", "9f43d3", true, "unknown"},
		{"kustomization-generation-unseen", unknown, "", "generation 3", "9f43d3", "9f43d3", true, "unknown"},
		{"kustomization-generation-fetching", progressing, "Progressing", "Fetching manifests", "134b69", "134b69", true, "unknown"},
		{"kustomization-build-failed", failed, "BuildFailed", "good/one.yaml", "5bd741", "134b69", false, "unknown"},
		{"kustomization-rejected", failed, "ReconciliationFailed", "spec.selector: Required value", "ad11a0", "134b69", false, "unknown"},
		{"kustomization-path-missing", failed, "ArtifactFailed", "kustomization path not found", "3dfc6b", "134b69", false, "unknown"},
		{"helmrelease-source-not-ready", blocked, "SourceNotReady", "OCIRepository 'shop/web' is not ready", "", "", false, "unknown"},
		{"helmrelease-blocked", blocked, "DependencyNotReady", "shop/nobody", "", "", false, "unknown"},
		{"helmrelease-ready", ready, "InstallSucceeded", "web@1.0.0", "c451a1", "c451a1", true, "healthy"},
		{"helmrelease-looking-again", progressing, "Progressing", "Fulfilling prerequisites", "c451a1", "c451a1", true, "unknown"},
		{"helmrelease-upgrading-first", progressing, "Progressing", "Running 'upgrade'", "c451a1", "c451a1", true, "unknown"},
		{"helmrelease-upgrading", progressing, "Progressing", "Running 'upgrade'", "604580", "c451a1", false, "unknown"},
		{"helmrelease-upgraded", ready, "UpgradeSucceeded", "web@1.1.0", "604580", "604580", true, "healthy"},
		{"helmrelease-of-chart", ready, "InstallSucceeded", "web@1.0.0", "1.0.0", "1.0.0", true, "healthy"},
		{"helmrelease-upgrade-failed", failed, "UpgradeFailed", "spec.selector: Required value", "d54821", "e666f6", false, "unknown"},
		{"helmrelease-rolled-back", stalled, "UpgradeFailed", "spec.selector: Required value", "d54821", "e666f6", false, "unknown"},
		{"helmrelease-values-missing", failed, "ValuesError", `configmaps "missing" not found`, "", "", true, "unknown"},
	}
	for _, tt := range tests {
		a := readApplier(t, tt.name)
		if a.standing.state != tt.state || a.standing.reason != tt.reason || !strings.Contains(a.standing.message, tt.message) {
			t.Errorf("%s: stands %+v, want %s, %q, %q", tt.name, a.standing, tt.state, tt.reason, tt.message)
		}
		if tt.name != "helmrelease-values-missing" && (!ends(a.attempted, tt.attempted) || !ends(a.applied, tt.applied)) {
			t.Errorf("%s: attempted %q, applied %q, want %q, %q", tt.name, a.attempted, a.applied, tt.attempted, tt.applied)
		}
		if a.brought != tt.brought || a.health != tt.health {
			t.Errorf("%s: brought %t, %s, want %t, %s", tt.name, a.brought, a.health, tt.brought, tt.health)
		}
		if early := tt.reason == "ValuesError"; a.early() != early {
			t.Errorf("%s: early %t", tt.name, a.early())
		}
	}
}

func ends(text, end string) bool {
	return text == end || end != "" && strings.HasSuffix(text, end)
}

// TestStandingOfConditions is about what Flux does not do every day.
func TestStandingOfConditions(t *testing.T) {
	c := func(kind string, status metav1.ConditionStatus, generation int64, reason string) metav1.Condition {
		return metav1.Condition{Type: kind, Status: status, ObservedGeneration: generation, Reason: reason, Message: "of " + reason}
	}
	const yes, no, maybe = metav1.ConditionTrue, metav1.ConditionFalse, metav1.ConditionUnknown
	tests := []struct {
		name string
		j    judgement
		want standing
	}{
		{"nothing", judgement{generation: 1, observed: -1}, standing{state: tidelock.ObservedUnknown}},
		{"an old Ready", judgement{generation: 2, observed: 1, conditions: []metav1.Condition{c("Ready", yes, 1, "Fine")}},
			standing{tidelock.ObservedUnknown, "", "Flux has not looked at generation 2 yet"}},
		{"an old failure", judgement{generation: 2, observed: 1, conditions: []metav1.Condition{c("Ready", no, 1, "Bad")}},
			standing{tidelock.ObservedUnknown, "", "Flux has not looked at generation 2 yet"}},
		{"an old failure of a suspended one", judgement{generation: 2, observed: 1, suspended: true, conditions: []metav1.Condition{c("Ready", no, 1, "Bad")}},
			standing{tidelock.ObservedFailed, "Bad", "of Bad"}},
		{"an old Ready of a suspended one", judgement{generation: 2, observed: 1, suspended: true, conditions: []metav1.Condition{c("Ready", yes, 1, "Fine")}},
			standing{tidelock.ObservedUnknown, "", "Flux has not looked at generation 2 yet"}},
		{"an old Ready, and at work", judgement{generation: 2, observed: 1, conditions: []metav1.Condition{c("Ready", yes, 1, "Fine"), c("Reconciling", yes, 2, "Progressing")}},
			standing{tidelock.ObservedProgressing, "Progressing", "of Progressing"}},
		{"an old Stalled, and at work", judgement{generation: 2, observed: 1, conditions: []metav1.Condition{c("Stalled", yes, 1, "Bad"), c("Ready", maybe, 2, "Progressing")}},
			standing{tidelock.ObservedProgressing, "Progressing", "of Progressing"}},
		{"a failure that leaves observedGeneration behind", judgement{generation: 2, observed: 1, conditions: []metav1.Condition{c("Reconciling", yes, 2, "ProgressingWithRetry"), c("Ready", no, 2, "Bad")}},
			standing{tidelock.ObservedFailed, "Bad", "of Bad"}},
		{"conditions without a generation", judgement{generation: 2, observed: 2, conditions: []metav1.Condition{c("Ready", yes, 0, "Fine")}},
			standing{tidelock.ObservedReady, "Fine", "of Fine"}},
		{"stalled alone", judgement{generation: 1, observed: 1, conditions: []metav1.Condition{c("Stalled", yes, 1, "InvalidURL")}},
			standing{tidelock.ObservedStalled, "InvalidURL", "of InvalidURL"}},
		{"stalled, with the error in Ready", judgement{generation: 1, observed: 1, conditions: []metav1.Condition{c("Ready", no, 1, "Bad"), c("Stalled", yes, 1, "RetriesExceeded")}},
			standing{tidelock.ObservedStalled, "Bad", "of Bad"}},
		{"an include that is missing", judgement{generation: 1, observed: 1, conditions: []metav1.Condition{c("Ready", no, 1, "NotFound"), c("IncludeUnavailable", yes, 1, "NotFound")}},
			standing{tidelock.ObservedBlocked, "NotFound", "of NotFound"}},
		{"tests that failed, and were rolled back", judgement{generation: 1, observed: 1, conditions: []metav1.Condition{
			c("Ready", no, 1, "RollbackSucceeded"), c("Released", yes, 1, "UpgradeSucceeded"), c("TestSuccess", no, 1, "TestFailed")}},
			standing{tidelock.ObservedFailed, "TestFailed", "of TestFailed\nof RollbackSucceeded"}},
	}
	for _, tt := range tests {
		if got := tt.j.standing(); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

// TestReadAppliers reads what is not about how they stand.
func TestReadAppliers(t *testing.T) {
	k := load[*kustomizev1.Kustomization](t, "kustomization-ready")
	k.Annotations = map[string]string{tidelock.AnnotationEnvironment: "production\x1b[31m", meta.ReconcileRequestAnnotation: "now"}
	k.Spec.SourceRef = kustomizev1.CrossNamespaceSourceReference{Kind: "OCIRepository", Name: "site", Namespace: "sources"}
	k.Spec.DependsOn = []kustomizev1.DependencyReference{{Name: "crds"}, {Name: "base", Namespace: "infra"}}
	k.Spec.TargetNamespace, k.Spec.Timeout = "elsewhere", nil
	k.Status.Inventory.Entries = []kustomizev1.ResourceRef{
		{ID: "shop_web_apps_Deployment", Version: "v1"},
		{ID: "_system__controller__x_rbac.authorization.k8s.io_ClusterRole", Version: "v1"},
		{ID: "shop_a_b_under__ConfigMap", Version: "v1"},
		{ID: "nonsense", Version: "v1"},
	}
	a := kustomization.read(k)
	if a.source != "OCIRepository/sources/site" || a.namespace != "elsewhere" || a.environment != "production" || !a.requested ||
		a.interval != time.Hour || a.timeout != 59*time.Minute+30*time.Second {
		t.Errorf("got %+v", a)
	}
	if want := []tidelock.ObjectID{"Kustomization/shop/crds", "Kustomization/infra/base"}; !reflect.DeepEqual(a.dependsOn, want) {
		t.Errorf("depends on %v, want %v", a.dependsOn, want)
	}
	want := []ObjectRef{
		{"apps", "v1", "Deployment", "shop", "web"},
		{"rbac.authorization.k8s.io", "v1", "ClusterRole", "", "system:controller:x"},
		{"", "v1", "ConfigMap", "shop", "a_b_under"},
	}
	if !reflect.DeepEqual(a.inventory, want) {
		t.Errorf("inventory %v, want %v", a.inventory, want)
	}
	k.Spec.SourceRef.Kind = "Bucket"
	if a := kustomization.read(k); a.source != "" {
		t.Errorf("of a Bucket: %q", a.source)
	}

	r := load[*helmv2.HelmRelease](t, "helmrelease-of-chart")
	if a := helmRelease.read(r); a.source != "HelmChart/shop/shop-template" || a.timeout != 5*time.Minute {
		t.Errorf("got %+v", a)
	}
	r.Spec.Chart.Spec.SourceRef.Namespace = "sources"
	if a := helmRelease.read(r); a.source != "HelmChart/sources/shop-template" {
		t.Errorf("got %q", a.source)
	}
	r.Spec.Install = &helmv2.Install{DisableWait: true}
	if a := helmRelease.read(r); a.health != tidelock.HealthUnknown {
		t.Errorf("not waited for, and %s", a.health)
	}
	if got := readApplier(t, "helmrelease-upgraded"); got.source != "OCIRepository/shop/web" || len(got.past) != 2 ||
		!strings.HasPrefix(got.attempted, "1.1.0@sha256:4791a49dbcc8") || !strings.HasPrefix(got.past[1].Revision, "1.0.0@sha256:636dabc0a6f9") {
		t.Errorf("got %+v", got)
	}
}

// What may be secret, or is large, is not kept.
func TestKeepOfAppliers(t *testing.T) {
	const secret = "hunter2"
	objects := []struct {
		kind   *applierKind
		object client.Object
	}{
		{kustomization, &kustomizev1.Kustomization{Spec: kustomizev1.KustomizationSpec{
			PostBuild: &kustomizev1.PostBuild{Substitute: map[string]string{"x": secret}},
			Patches:   []kustomizeapi.Patch{{Patch: secret}},
		}}},
		{helmRelease, &helmv2.HelmRelease{Spec: helmv2.HelmReleaseSpec{Values: &apiextensionsv1.JSON{Raw: []byte(secret)}}}},
	}
	for _, o := range objects {
		o.object.SetAnnotations(map[string]string{"kubectl.kubernetes.io/last-applied-configuration": secret, tidelock.AnnotationEnvironment: "x"})
		o.object.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: secret}})
		kept, err := o.kind.keep(o.object)
		if err != nil {
			t.Fatal(err)
		}
		if text := dump(t, kept.(client.Object)); strings.Contains(text, secret) || !strings.Contains(text, tidelock.AnnotationEnvironment) {
			t.Errorf("%s keeps %s", o.kind.Kind, text)
		}
	}
}

func dump(t *testing.T, object client.Object) string {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestRecord follows an applier through revisions.
func TestRecord(t *testing.T) {
	began := time.Now()
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	outcomes := []tidelock.Outcome{{Revision: "a", State: tidelock.ObservedReady}}
	last := moment{standing: standing{state: tidelock.ObservedReady}, attempted: "a", applied: "a", brought: true, health: "unknown"}
	step := func(seconds int, state tidelock.ObservedState, attempted, applied string, brought bool, health tidelock.Health) []tidelock.Outcome {
		before := slices.Clone(outcomes)
		m := moment{
			standing: standing{state, "R", "m"}, attempted: attempted, applied: applied, brought: brought, health: health, now: at(seconds),
		}
		after := record(outcomes, last, m)
		last = m
		if !reflect.DeepEqual(outcomes, before) {
			t.Errorf("at %d: the outcomes before were changed", seconds)
		}
		outcomes = after
		return after
	}
	check := func(when string, want ...tidelock.Outcome) {
		t.Helper()
		var got []tidelock.Outcome
		for _, o := range outcomes {
			o.Reason, o.Message = "", ""
			got = append(got, o)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", when, got, want)
		}
	}
	a := tidelock.Outcome{Revision: "a", State: tidelock.ObservedReady}

	step(1, tidelock.ObservedBlocked, "a", "a", false, "unknown")
	check("a newer one waits", a)
	step(2, tidelock.ObservedProgressing, "b", "a", false, "unknown")
	check("begun", tidelock.Outcome{Revision: "b", State: "progressing", Health: "unknown", AttemptedAt: at(2)}, a)
	step(3, tidelock.ObservedFailed, "b", "a", false, "unknown")
	step(4, tidelock.ObservedFailed, "b", "a", false, "unknown")
	b := tidelock.Outcome{Revision: "b", State: "failed", Health: "unknown", AttemptedAt: at(2), FailedAt: at(3)}
	check("failed", b, a)
	step(5, tidelock.ObservedProgressing, "c", "a", false, "unknown")
	step(6, tidelock.ObservedProgressing, "c", "a", true, "progressing")
	step(7, tidelock.ObservedReady, "c", "c", true, "progressing")
	check("applied", tidelock.Outcome{Revision: "c", State: "ready", Health: "progressing", AttemptedAt: at(5), AppliedAt: at(6)}, b, a)
	step(8, tidelock.ObservedReady, "c", "c", true, "healthy")
	c := tidelock.Outcome{Revision: "c", State: "ready", Health: "healthy", AttemptedAt: at(5), AppliedAt: at(6), HealthyAt: at(8)}
	check("healthy", c, b, a)
	step(9, tidelock.ObservedReady, "c", "c", true, "failed")
	step(10, tidelock.ObservedReady, "c", "c", true, "healthy")
	check("recovered", c, b, a)
	step(11, tidelock.ObservedProgressing, "b", "c", false, "healthy")
	check("tried again", tidelock.Outcome{Revision: "b", State: "progressing", Health: "unknown", AttemptedAt: at(11)}, c, a)
	for i := range 20 {
		step(20+i, tidelock.ObservedReady, string(rune('d'+i)), string(rune('d'+i)), true, "healthy")
	}
	if len(outcomes) != maxOutcomes || outcomes[0].Revision != "w" || outcomes[7].Revision != "p" {
		t.Errorf("got %d outcomes, of %s to %s", len(outcomes), outcomes[0].Revision, outcomes[len(outcomes)-1].Revision)
	}
}

func TestVerdictHolds(t *testing.T) {
	var v verdict
	first, second := version{"u", 1, "a"}, version{"u", 1, "b"}
	work, ready := standing{state: tidelock.ObservedProgressing}, standing{tidelock.ObservedReady, "Fine", "all well"}
	bad := standing{tidelock.ObservedFailed, "Bad", "no"}
	for i, step := range []struct {
		show standing
		of   version
		want standing
	}{
		{work, first, work}, {ready, first, ready}, {work, first, ready}, // a look for the interval
		{work, second, work}, {bad, second, bad}, {work, second, bad}, // another try
		{work, version{"u", 2, "b"}, work},                               // a new specification
		{work, version{"w", 1, "b"}, work},                               // another object of the name
		{standing{state: "blocked"}, second, standing{state: "blocked"}}, // said as it is
	} {
		if got := v.hold(step.show, step.of); got != step.want {
			t.Errorf("step %d: got %+v, want %+v", i, got, step.want)
		}
	}
}
