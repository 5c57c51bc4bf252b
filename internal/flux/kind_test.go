package flux

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	imagev1 "github.com/fluxcd/image-reflector-controller/api/v1"
	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"tidelock.dev"
)

var (
	digestA = tidelock.Digest("sha256:" + strings.Repeat("a", 64))
	digestB = tidelock.Digest("sha256:" + strings.Repeat("b", 64))
)

func object(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid of " + name), Generation: 1}
}

func local(name string) *meta.LocalObjectReference { return &meta.LocalObjectReference{Name: name} }

func artifact(name string, change ...func(*sourcev1.OCIRepository)) *sourcev1.OCIRepository {
	repo := &sourcev1.OCIRepository{
		ObjectMeta: object(name),
		Spec:       sourcev1.OCIRepositorySpec{URL: "oci://forge.example/team/" + name},
		Status:     sourcev1.OCIRepositoryStatus{Artifact: &meta.Artifact{Revision: "latest@" + string(digestA), Digest: "sha256:x"}},
	}
	for _, f := range change {
		f(repo)
	}
	return repo
}

func chart(name, repository string, change ...func(*sourcev1.HelmChart)) *sourcev1.HelmChart {
	c := &sourcev1.HelmChart{
		ObjectMeta: object(name),
		Spec: sourcev1.HelmChartSpec{
			Chart: name, Version: "1.x",
			SourceRef: sourcev1.LocalHelmChartSourceReference{Kind: sourcev1.HelmRepositoryKind, Name: repository},
		},
		Status: sourcev1.HelmChartStatus{Artifact: &meta.Artifact{Revision: "1.0.0", Digest: "sha256:x"}},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func helmRepository(name string, change ...func(*sourcev1.HelmRepository)) *sourcev1.HelmRepository {
	repo := &sourcev1.HelmRepository{
		ObjectMeta: object(name),
		Spec:       sourcev1.HelmRepositorySpec{Type: "oci", URL: "oci://forge.example/team/charts/"},
	}
	for _, f := range change {
		f(repo)
	}
	return repo
}

// see has the Controller observe a HelmRepository.
func (c *Controller) see(repo *sourcev1.HelmRepository) {
	c.registryObserved(client.ObjectKeyFromObject(repo), readRegistry(repo))
}

func TestObserve(t *testing.T) {
	failed := []metav1.Condition{{Type: meta.ReadyCondition, Status: metav1.ConditionFalse, Reason: "Broken", Message: "no such luck"}}
	requests := meta.ReconcileRequestStatus{LastHandledReconcileAt: "yesterday"}
	marked := func(name string) metav1.ObjectMeta {
		m := object(name)
		m.Labels = map[string]string{"team": "blue"}
		m.Annotations = map[string]string{meta.ReconcileRequestAnnotation: "today"}
		return m
	}
	common := observation{
		uid: "uid of x", generation: 1, labels: map[string]string{"team": "blue"}, suspended: true,
		requestedAt: "today", handledAt: "yesterday", failure: "Broken: no such luck",
		standing: standing{tidelock.ObservedFailed, "Broken", "no such luck"},
	}
	tests := []struct {
		kind   *kind
		object client.Object
		want   observation
	}{
		{gitRepository, &sourcev1.GitRepository{
			ObjectMeta: marked("x"),
			Spec: sourcev1.GitRepositorySpec{
				URL: "https://me:secret@forge.example/team/x", Suspend: true,
				Reference: &sourcev1.GitRepositoryRef{Branch: "a", Tag: "b", SemVer: "c", Name: "d", Commit: "e"},
				SecretRef: local("login"), ProxySecretRef: local("proxy"),
				Verification: &sourcev1.GitRepositoryVerification{SecretRef: *local("keys")},
				Include:      []sourcev1.GitRepositoryInclude{{GitRepositoryRef: *local("base")}},
			},
			Status: sourcev1.GitRepositoryStatus{
				Artifact:          &meta.Artifact{Revision: "r", Digest: "d"},
				IncludedArtifacts: []*meta.Artifact{{Revision: "r2", Digest: "d2"}},
				Conditions:        failed, ReconcileRequestStatus: requests,
			},
		}, observation{
			url: "https://forge.example/team/x", ref: tidelock.RefSpec{Branch: "a", Tag: "b", SemVer: "c", Name: "d", Commit: "e"},
			secrets: []string{"login", "proxy", "keys"}, include: []string{"base"},
			revision: "r", artifact: "r d", included: []string{"r2 d2"},
		}},
		{ociRepository, &sourcev1.OCIRepository{
			ObjectMeta: marked("x"),
			Spec: sourcev1.OCIRepositorySpec{
				URL: "oci://me:secret@forge.example:8443/team/x", Suspend: true,
				Reference: &sourcev1.OCIRepositoryRef{Digest: "a", SemVer: "b", SemverFilter: "c", Tag: "d"},
				SecretRef: local("login"), CertSecretRef: local("ca"), ProxySecretRef: local("proxy"),
				Verify: &sourcev1.OCIRepositoryVerification{Provider: "cosign", SecretRef: local("keys")},
			},
			Status: sourcev1.OCIRepositoryStatus{
				Artifact: &meta.Artifact{Revision: "r", Digest: "d"}, Conditions: failed, ReconcileRequestStatus: requests,
			},
		}, observation{
			url: "oci://forge.example:8443/team/x", ref: tidelock.RefSpec{Digest: "a", SemVer: "b", SemVerFilter: "c", Tag: "d"},
			secrets: []string{"login", "ca", "proxy", "keys"}, revision: "r", artifact: "r d",
		}},
		{helmChart, &sourcev1.HelmChart{
			ObjectMeta: marked("x"),
			Spec: sourcev1.HelmChartSpec{
				Chart: "web", Version: "1.x", Suspend: true,
				SourceRef: sourcev1.LocalHelmChartSourceReference{Kind: "HelmRepository", Name: "charts"},
				Verify:    &sourcev1.OCIRepositoryVerification{Provider: "cosign", SecretRef: local("keys")},
			},
			Status: sourcev1.HelmChartStatus{
				Artifact: &meta.Artifact{Revision: "r", Digest: "d"}, Conditions: failed, ReconcileRequestStatus: requests,
			},
		}, observation{
			ref: tidelock.RefSpec{SemVer: "1.x"}, helmRepository: "charts", chart: "web",
			secrets: []string{"keys"}, revision: "r", artifact: "r d",
		}},
		{imageRepository, &imagev1.ImageRepository{
			ObjectMeta: marked("x"),
			Spec: imagev1.ImageRepositorySpec{
				Image: "forge.example:8443/team/x", Suspend: true,
				SecretRef: local("login"), CertSecretRef: local("ca"), ProxySecretRef: local("proxy"),
			},
			Status: imagev1.ImageRepositoryStatus{
				LastScanResult: &imagev1.ScanResult{Revision: "42", ScanTime: metav1.Unix(1_700_000_000, 0)},
				Conditions:     failed, ReconcileRequestStatus: requests,
			},
		}, observation{url: "oci://forge.example:8443/team/x", secrets: []string{"login", "ca", "proxy"}, scan: "2023-11-14T22:13:20Z 42"}},
	}
	for _, tt := range tests {
		want := tt.want
		want.uid, want.generation, want.labels, want.suspended = common.uid, common.generation, common.labels, common.suspended
		want.requestedAt, want.handledAt, want.failure = common.requestedAt, common.handledAt, common.failure
		want.standing = common.standing
		if got := tt.kind.observe(tt.object); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tt.kind.Kind, got, want)
		}
	}
	if len(tests) != len(kinds) {
		t.Errorf("%d kinds are tested, there are %d", len(tests), len(kinds))
	}
}

func TestParseID(t *testing.T) {
	for _, k := range kinds {
		want := types.NamespacedName{Namespace: "ns", Name: "site"}
		if got, name, ok := parseID(k.id(want)); !ok || got != k || name != want {
			t.Errorf("%s: got %v, %s, %t", k.Kind, got, name, ok)
		}
		if got := kindOf(k.id(want).Kind()); got != k || !strings.HasSuffix(k.resource, "s") {
			t.Errorf("%s: got %v", k.Kind, got)
		}
	}
	for _, id := range []tidelock.SourceID{"", "GitRepository", "GitRepository/ns", "GitRepository//x", "GitRepository/ns/", "Bucket/ns/x", "HelmRepository/ns/x"} {
		if _, _, ok := parseID(id); ok {
			t.Errorf("%q: taken", id)
		}
	}
}

// TestChartsFollowTheirRepository shows a chart and its HelmRepository in every
// order, and what becomes of the chart.
func TestChartsFollowTheirRepository(t *testing.T) {
	const id = tidelock.SourceID("HelmChart/ns/web")
	c := newController(t, "")
	f := c.Subscribe()
	is := func(when, want string) {
		t.Helper()
		got := ""
		if set := c.Sources(); len(set) > 0 {
			got = set[0].URL
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", when, got, want)
		}
	}
	c.observed(helmChart, chart("web", "charts"))
	is("chart alone", "")
	other := helmRepository("charts")
	other.Namespace = "other"
	c.see(other)
	is("a HelmRepository of another namespace", "")
	c.see(helmRepository("charts"))
	is("both", "oci://forge.example/team/charts/web")
	if changes := take(t, f); len(changes.Upserts) != 1 || changes.Upserts[0].ID != id || changes.Upserts[0].Ref.SemVer != "1.x" || changes.Upserts[0].Revision != "1.0.0" {
		t.Errorf("told %+v", changes)
	}
	c.observed(helmChart, chart("web", "charts", func(c *sourcev1.HelmChart) { c.Generation++ }))
	is("chart seen again", "oci://forge.example/team/charts/web")

	c.see(helmRepository("charts", func(r *sourcev1.HelmRepository) { r.Spec.URL = "oci://forge.example/moved"; r.Generation = 2 }))
	is("moved", "oci://forge.example/moved/web")
	c.see(helmRepository("charts", func(r *sourcev1.HelmRepository) { r.Spec.URL = "oci://other.example/charts"; r.Generation = 3 }))
	is("moved away", "")
	c.see(helmRepository("charts", func(r *sourcev1.HelmRepository) { r.Generation = 4 }))
	is("moved back", "oci://forge.example/team/charts/web")
	c.see(helmRepository("charts", func(r *sourcev1.HelmRepository) { r.Spec.Type = "default"; r.Generation = 5 }))
	is("of another type", "")
	c.see(helmRepository("charts"))
	c.observed(helmChart, chart("web", "charts", func(c *sourcev1.HelmChart) { c.Spec.SourceRef.Kind = "GitRepository" }))
	is("of a GitRepository", "")
	c.observed(helmChart, chart("web", "charts"))
	is("again", "oci://forge.example/team/charts/web")
	c.registryObserved(types.NamespacedName{Namespace: "ns", Name: "charts"}, registry{})
	is("HelmRepository gone", "")
	if len(c.registries) != 1 {
		t.Errorf("%d HelmRepositories are remembered, want the one of another namespace", len(c.registries))
	}
}

// TestRepairedHelmRepository changes what a failing chart is fetched with;
// Flux itself would wait for the chart's interval.
func TestRepairedHelmRepository(t *testing.T) {
	c := newController(t, "")
	c.see(helmRepository("charts", func(r *sourcev1.HelmRepository) { r.Spec.SecretRef = local("login") }))
	broken := chart("web", "charts", func(c *sourcev1.HelmChart) {
		c.Status.Conditions = []metav1.Condition{{Type: meta.ReadyCondition, Status: metav1.ConditionFalse, Reason: "x"}}
	})
	c.observed(helmChart, broken)
	c.mu.Lock()
	track := c.tracks["HelmChart/ns/web"]
	track.failures, track.request = 3, &request{handled: true}
	c.mu.Unlock()
	failing := c.failing()["HelmChart/ns/web"]
	if !slices.Equal(failing, []types.NamespacedName{{Namespace: "ns", Name: "login"}}) {
		t.Errorf("failing for want of %v, want the HelmRepository's Secret", failing)
	}
	c.see(helmRepository("charts", func(r *sourcev1.HelmRepository) {
		r.Spec.SecretRef = local("login")
		r.Spec.Insecure = true
		r.Generation++
	}))
	c.mu.Lock()
	defer c.mu.Unlock()
	if track.request != nil {
		t.Error("the chart is not asked for anew")
	}
}

// TestSourcesOfReceivers maps a Receiver to the source that owns it.
func TestSourcesOfReceivers(t *testing.T) {
	for _, k := range kinds {
		receiver := &notificationv1.Receiver{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "v1", Kind: k.Kind, Name: "not Flux's"},
			{APIVersion: "source.toolkit.fluxcd.io/v1", Kind: "Bucket", Name: "not ours"},
			{APIVersion: k.GroupVersion().String(), Kind: k.Kind, Name: "site"},
		}}}
		if got := sourcesOf(t.Context(), receiver); !slices.Equal(got, []tidelock.SourceID{k.id(types.NamespacedName{Namespace: "ns", Name: "site"})}) {
			t.Errorf("%s: got %v", k.Kind, got)
		}
	}
}

// An apiServer answers what a Controller asks before it watches.
type apiServer struct {
	served  map[string][]string // resources by group and version
	refused []string            // resources that we may not watch
	silent  bool                // about what we may
}

func (s apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.Method == http.MethodPost {
		body, _ := io.ReadAll(r.Body)
		var review authorizationv1.SelfSubjectAccessReview
		_, kind, err := serializer.NewCodecFactory(scheme).UniversalDeserializer().Decode(body, nil, &review)
		if err != nil || s.silent {
			w.WriteHeader(http.StatusForbidden)
			json.NewEncoder(w).Encode(metav1.Status{Status: "Failure", Reason: metav1.StatusReasonForbidden, Code: http.StatusForbidden})
			return
		}
		review.Status.Allowed = !slices.Contains(s.refused, review.Spec.ResourceAttributes.Resource)
		review.SetGroupVersionKind(*kind)
		json.NewEncoder(w).Encode(review)
		return
	}
	names, ok := s.served[strings.TrimPrefix(r.URL.Path, "/apis/")]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		json.NewEncoder(w).Encode(metav1.Status{Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound})
		return
	}
	var list metav1.APIResourceList
	for _, name := range names {
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: name})
	}
	json.NewEncoder(w).Encode(list)
}

// TestDiscover asks API servers that have more or less of Flux, and that let
// us see more or less of it.
func TestDiscover(t *testing.T) {
	const sources, images, receivers = "source.toolkit.fluxcd.io/v1", "image.toolkit.fluxcd.io/v1", "notification.toolkit.fluxcd.io/v1"
	all := []string{"gitrepositories", "ocirepositories", "helmcharts", "helmrepositories", "buckets"}
	tests := []struct {
		name      string
		server    apiServer
		kinds     string
		receivers bool
		missing   string
	}{
		{"nothing", apiServer{}, "", false, "Flux is not installed"},
		{"receivers alone", apiServer{served: map[string][]string{receivers: {"receivers"}}}, "", false, "Flux is not installed"},
		{"sources alone", apiServer{served: map[string][]string{sources: all}}, "GitRepository OCIRepository HelmChart", false, "notification-controller is not installed"},
		{"all", apiServer{served: map[string][]string{sources: all, receivers: {"alerts", "receivers"}}}, "GitRepository OCIRepository HelmChart", true, ""},
		{"images too", apiServer{served: map[string][]string{sources: all, images: {"imagerepositories"}, receivers: {"receivers"}}},
			"GitRepository OCIRepository HelmChart ImageRepository", true, ""},
		{"older rights of images", apiServer{served: map[string][]string{sources: all, images: {"imagerepositories"}, receivers: {"receivers"}}, refused: []string{"imagerepositories"}},
			"GitRepository OCIRepository HelmChart", true, "may not watch imagerepositories"},
		{"older", apiServer{served: map[string][]string{sources: {"gitrepositories", "helmcharts", "helmrepositories"}, receivers: {"receivers"}}},
			"GitRepository HelmChart", true, "does not serve OCIRepository of source.toolkit.fluxcd.io/v1"},
		{"charts without repositories", apiServer{served: map[string][]string{sources: {"ocirepositories", "helmcharts"}, receivers: {"receivers"}}},
			"OCIRepository", true, "does not serve GitRepository, HelmChart"},
		{"older rights", apiServer{served: map[string][]string{sources: all, receivers: {"receivers"}}, refused: []string{"ocirepositories", "helmrepositories"}},
			"GitRepository", true, "may not watch ocirepositories, helmrepositories"},
		{"no rights", apiServer{served: map[string][]string{sources: all, receivers: {"receivers"}}, refused: append([]string{"receivers"}, all...)},
			"", false, "may not watch gitrepositories, ocirepositories, helmcharts"},
		{"may not ask", apiServer{served: map[string][]string{sources: all, receivers: {"receivers"}}, silent: true},
			"GitRepository OCIRepository HelmChart", true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := New(Config{REST: &rest.Config{Host: serve(t, tt.server.ServeHTTP)}, Agent: 1, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			found, err := c.discover(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, k := range found.kinds {
				names = append(names, k.Kind)
			}
			if got := strings.Join(names, " "); got != tt.kinds || found.receivers != tt.receivers {
				t.Errorf("got %q, receivers %t; want %q, %t", got, found.receivers, tt.kinds, tt.receivers)
			}
			if got := found.missing(); !strings.Contains(got, tt.missing) || tt.missing == "" && got != "" {
				t.Errorf("missing: got %q, want %q", got, tt.missing)
			}
			again, err := c.discover(context.Background())
			if err != nil || !found.same(again) {
				t.Errorf("asked again: got %+v, %v", again, err)
			}
		})
	}
}

// TestKindsVanishAndReturn takes what discovery finds, kind by kind.
func TestKindsVanishAndReturn(t *testing.T) {
	c := newController(t, "")
	c.see(helmRepository("charts"))
	show := func() {
		c.observed(gitRepository, repository("site"))
		c.observed(ociRepository, artifact("site"))
		c.observed(helmChart, chart("site", "charts"))
	}
	show()
	if got := len(c.Sources()); got != 3 {
		t.Fatalf("%d sources, want 3", got)
	}
	f := c.Subscribe()
	take(t, f)
	c.setInstallation(installation{kinds: []*kind{gitRepository, helmChart}, receivers: true})
	if changes := take(t, f); !slices.Equal(changes.Removals, []tidelock.SourceID{"OCIRepository/ns/site"}) {
		t.Errorf("one kind less: told %+v", changes)
	}
	c.setInstallation(installation{kinds: kinds, receivers: true})
	show()
	if changes := take(t, f); len(changes.Upserts) != 1 || changes.Upserts[0].ID != "OCIRepository/ns/site" {
		t.Errorf("it is back: told %+v", changes)
	}
	c.setInstallation(installation{})
	if status := c.Status(); status.Installed || status.Sources != 0 {
		t.Errorf("none left: %+v", status)
	}
}
