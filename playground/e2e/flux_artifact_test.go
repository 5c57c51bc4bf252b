package e2e_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"strings"
	"testing"
	"time"

	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	ociremote "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev"
	"tidelock.dev/internal/flux"
	"tidelock.dev/playground/e2e"
)

// An artifactStore is a registry of the test's own.
type artifactStore struct{ host string }

func newArtifactStore(t *testing.T) artifactStore {
	t.Helper()
	url := serve(t, registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	return artifactStore{strings.TrimPrefix(url, "http://")}
}

func (s artifactStore) url(path string) string { return "oci://" + s.host + "/" + path }

// push puts files under a tag, and returns what a source that follows the tag
// should have then.
func (s artifactStore) push(t *testing.T, path, tag string, config, layer types.MediaType, files map[string]string) tidelock.Goal {
	t.Helper()
	var packed bytes.Buffer
	zipped := gzip.NewWriter(&packed)
	archive := tar.NewWriter(zipped)
	for name, content := range files {
		header := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}
		if err := archive.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(archive, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zipped.Close(); err != nil {
		t.Fatal(err)
	}
	image, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), config), static.NewLayer(packed.Bytes(), layer))
	if err != nil {
		t.Fatal(err)
	}
	target, err := name.NewTag(s.host + "/" + path + ":" + tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := ociremote.Write(target, image, ociremote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return tidelock.Goal{Ref: tidelock.TagRef(tag), Digest: tidelock.Digest(digest.String())}
}

func (s artifactStore) pushManifests(t *testing.T, path, tag, content string) tidelock.Goal {
	t.Helper()
	return s.push(t, path, tag, tidelock.MediaTypeFluxConfig, tidelock.MediaTypeFluxContent, map[string]string{"site.yaml": content})
}

func (s artifactStore) pushChart(t *testing.T, path, chart, version string) tidelock.Goal {
	t.Helper()
	return s.push(t, path+"/"+chart, version, "application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
		map[string]string{chart + "/Chart.yaml": fmt.Sprintf("apiVersion: v2\nname: %s\nversion: %s\n", chart, version)})
}

var hourly = metav1.Duration{Duration: time.Hour}

// newOCIRepository makes one that Flux polls once an hour.
func newOCIRepository(t *testing.T, c *e2e.System, ns, name, url string, ref *sourcev1.OCIRepositoryRef) (*sourcev1.OCIRepository, tidelock.SourceID) {
	t.Helper()
	repo := &sourcev1.OCIRepository{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec:       sourcev1.OCIRepositorySpec{URL: url, Reference: ref, Interval: hourly, Insecure: true},
	}
	if err := c.Client.Create(t.Context(), repo); err != nil {
		t.Fatal(err)
	}
	return repo, tidelock.SourceID("OCIRepository/" + ns + "/" + name)
}

// newHelmChart makes one, and the HelmRepository it is found in.
func newHelmChart(t *testing.T, c *e2e.System, ns, name, url, chart, version string) (*sourcev1.HelmRepository, *sourcev1.HelmChart, tidelock.SourceID) {
	t.Helper()
	repository := &sourcev1.HelmRepository{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec:       sourcev1.HelmRepositorySpec{Type: sourcev1.HelmRepositoryTypeOCI, URL: url, Insecure: true},
	}
	object := &sourcev1.HelmChart{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: sourcev1.HelmChartSpec{
			Chart: chart, Version: version, Interval: hourly,
			SourceRef: sourcev1.LocalHelmChartSourceReference{Kind: sourcev1.HelmRepositoryKind, Name: name},
		},
	}
	for _, o := range []client.Object{repository, object} {
		if err := c.Client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	return repository, object, tidelock.SourceID("HelmChart/" + ns + "/" + name)
}

// A source is an object of Flux's with an artifact.
type fluxSource interface {
	client.Object
	GetArtifact() *meta.Artifact
}

// awaitGoal waits until Flux has what a source should have.
func awaitGoal(t *testing.T, c *e2e.System, kind tidelock.SourceKind, source fluxSource, goal tidelock.Goal) {
	t.Helper()
	e2e.Eventually(t, 20*time.Second, func(ctx context.Context) error {
		if err := c.Client.Get(ctx, client.ObjectKeyFromObject(source), source); err != nil {
			return err
		}
		artifact := source.GetArtifact()
		if artifact == nil || !tidelock.ParseRevision(kind, artifact.Revision).Meets(goal) {
			return fmt.Errorf("artifact is %+v, want %+v", artifact, goal)
		}
		return nil
	})
}

// pushGoalUntilVia is pushUntilVia of anything that a source may follow.
func (a *fluxAgent) pushGoalUntilVia(t *testing.T, id tidelock.SourceID, via flux.Via, push func(i int) tidelock.Goal) flux.Progress {
	t.Helper()
	deadline := time.Now().Add(soon)
	for i := 0; time.Now().Before(deadline); i++ {
		p := a.await(t, id, a.announceGoal(t, id, push(i)), tidelock.Converged, 20*time.Second)
		if p.Via == via {
			return p
		}
	}
	t.Fatalf("no push went via %s within %s", via, soon)
	return flux.Progress{}
}

// Sources of three kinds have one name; each has a Receiver of its own, and a
// push to one wakes it and no other.
func TestFluxKindsOfOneName(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	git, store := newRepository(t), newArtifactStore(t)
	repo, gitID := newSource(t, c, ns, "site", git.url)
	awaitCommit(t, c, repo, git.push(t, map[string]string{"file": "1"}))
	first := store.pushManifests(t, "team/site", "latest", "one")
	artifact, ociID := newOCIRepository(t, c, ns, "site", store.url("team/site"), nil)
	awaitGoal(t, c, tidelock.OCIRepository, artifact, first)
	_, chart, chartID := newHelmChart(t, c, ns, "site", store.url("team/charts"), "web", "~1")
	awaitGoal(t, c, tidelock.HelmChart, chart, store.pushChart(t, "team/charts", "web", "1.0.0"))

	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, git.url, store.url(""))
	for _, id := range []tidelock.SourceID{gitID, ociID, chartID} {
		a.awaitSource(t, id)
		a.SetServed(id, true)
	}
	if s, _ := a.source(chartID); s.URL != store.url("team/charts/web") || s.Ref.SemVer != "~1" || s.Revision != "1.0.0" {
		t.Errorf("chart: got %+v", s)
	}
	if s, _ := a.source(ociID); s.URL != store.url("team/site") || s.Revision != "latest@"+string(first.Digest) {
		t.Errorf("artifact: got %+v", s)
	}
	kinds := make(map[string]bool)
	for _, r := range awaitReceivers(t, c, ns, 3) {
		resource := r.Spec.Resources[0]
		kinds[resource.Kind] = true
		if resource.APIVersion != "source.toolkit.fluxcd.io/v1" || resource.Name != "site" || r.OwnerReferences[0].Kind != resource.Kind {
			t.Errorf("receiver %s: %+v of %+v", r.Name, resource, r.OwnerReferences)
		}
	}
	if len(kinds) != 3 {
		t.Errorf("receivers are of %v, want three kinds", kinds)
	}

	requested := func(o client.Object) string {
		if err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Fatal(err)
		}
		return o.GetAnnotations()[meta.ReconcileRequestAnnotation]
	}
	p := a.pushGoalUntilVia(t, ociID, flux.ViaReceiver, func(i int) tidelock.Goal {
		return store.pushManifests(t, "team/site", "latest", fmt.Sprint("two ", i))
	})
	t.Logf("artifact: called %s, answered %s, handled %s, fetched %s", p.Called, p.Answered, p.Handled, p.Fetched)
	if requested(repo) != "" || requested(chart) != "" {
		t.Error("a push of an artifact woke sources of other kinds")
	}
	p = a.pushGoalUntilVia(t, chartID, flux.ViaReceiver, func(i int) tidelock.Goal {
		return store.pushChart(t, "team/charts", "web", fmt.Sprintf("1.1.%d", i))
	})
	t.Logf("chart: called %s, answered %s, handled %s, fetched %s", p.Called, p.Answered, p.Handled, p.Fetched)
	if requested(repo) != "" {
		t.Error("a push of a chart woke a source of another kind")
	}
	a.pushUntilVia(t, git, gitID, flux.ViaReceiver)
}

// An artifact by tag, by range, and by digest, each of which Flux polls once
// an hour.
func TestFluxArtifactRefs(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	store := newArtifactStore(t)
	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, store.url(""))
	store.pushManifests(t, "team/site", "1.0.0", "one")
	missing := store.pushManifests(t, "other/site", "x", "not there yet")
	for name, tt := range map[string]struct {
		ref  sourcev1.OCIRepositoryRef
		tag  string
		want tidelock.RefSpec
	}{
		"tag":    {sourcev1.OCIRepositoryRef{Tag: "main"}, "main", tidelock.RefSpec{Tag: "main"}},
		"semver": {sourcev1.OCIRepositoryRef{SemVer: ">=1.0.0", SemverFilter: `^\d`}, "1.2.0", tidelock.RefSpec{SemVer: ">=1.0.0", SemVerFilter: `^\d`}},
		"digest": {sourcev1.OCIRepositoryRef{Digest: string(missing.Digest)}, "x", tidelock.RefSpec{Digest: string(missing.Digest)}},
	} {
		t.Run(name, func(t *testing.T) {
			ref := tt.ref
			repo, id := newOCIRepository(t, c, ns, name, store.url("team/site"), &ref)
			a.awaitSource(t, id)
			if s, _ := a.source(id); s.Ref != tt.want {
				t.Errorf("got %+v, want %+v", s.Ref, tt.want)
			}
			content := name
			if name == "digest" {
				content = "not there yet"
			}
			goal := store.pushManifests(t, "team/site", tt.tag, content)
			n := a.announceGoal(t, id, goal)
			a.await(t, id, n, tidelock.Converged, 20*time.Second)
			awaitGoal(t, c, tidelock.OCIRepository, repo, goal)
		})
	}
}

// The HelmRepository of a chart says where the chart is: it may come later
// than the chart, move, and go.
func TestFluxChartFollowsItsRepository(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	store := newArtifactStore(t)
	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, store.url(""))
	repository, _, id := newHelmChart(t, c, ns, "web", store.url("team/charts"), "web", "")
	a.awaitSource(t, id)
	a.SetServed(id, true)
	awaitReceivers(t, c, ns, 1)

	patch := func(text string) {
		t.Helper()
		if err := c.Client.Patch(t.Context(), repository, client.RawPatch("application/merge-patch+json", []byte(text))); err != nil {
			t.Fatal(err)
		}
	}
	patch(fmt.Sprintf(`{"spec":{"url":%q}}`, store.url("team/moved/")))
	e2e.Eventually(t, 10*time.Second, func(context.Context) error {
		if s, _ := a.source(id); s.URL != store.url("team/moved/web") {
			return fmt.Errorf("URL is %q", s.URL)
		}
		return nil
	})
	goal := store.pushChart(t, "team/moved", "web", "2.0.0")
	a.await(t, id, a.announceGoal(t, id, goal), tidelock.Converged, 20*time.Second)

	if err := c.Client.Delete(t.Context(), repository); err != nil {
		t.Fatal(err)
	}
	awaitReceivers(t, c, ns, 0)
	if _, known := a.source(id); known {
		t.Error("a chart without its HelmRepository is still in the set")
	}
	repository.ObjectMeta = metav1.ObjectMeta{Namespace: ns, Name: "web"}
	repository.Spec.URL = store.url("team/charts")
	if err := c.Client.Create(t.Context(), repository); err != nil {
		t.Fatal(err)
	}
	a.awaitSource(t, id)
}

// An agent under the rights that the first release's manifests gave goes on
// with the kinds that it may see, says what it may not, and takes up the rest
// once the manifests are applied.
func TestFluxOlderRights(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	const account = "agent-of-the-first-release"
	role := &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: account},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{"source.toolkit.fluxcd.io"}, Resources: []string{"gitrepositories"}, Verbs: []string{"list", "watch", "patch"}},
			{APIGroups: []string{"notification.toolkit.fluxcd.io"}, Resources: []string{"receivers"}, Verbs: []string{"list", "watch", "create", "patch", "delete"}},
			{APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get", "create", "delete"}},
		},
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: account},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: account},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: account}},
	}
	for _, o := range []client.Object{role, binding} {
		if err := c.Client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Client.Delete(context.WithoutCancel(t.Context()), o); err != nil {
				t.Error(err)
			}
		})
	}
	config := c.REST()
	config.Impersonate.UserName = account

	git, store := newRepository(t), newArtifactStore(t)
	repo, gitID := newSource(t, c, ns, "site", git.url)
	awaitCommit(t, c, repo, git.push(t, map[string]string{"file": "1"}))
	first := store.pushManifests(t, "team/site", "latest", "one")
	artifact, ociID := newOCIRepository(t, c, ns, "site", store.url("team/site"), nil)
	awaitGoal(t, c, tidelock.OCIRepository, artifact, first)
	a := startFluxOn(t, config, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, git.url, store.url(""))
	a.awaitSource(t, gitID)
	a.SetServed(gitID, true)
	awaitReceivers(t, c, ns, 1)
	a.pushUntilVia(t, git, gitID, flux.ViaReceiver)
	if _, known := a.source(ociID); known {
		t.Error("it knows what it may not see")
	}
	if got := a.Status().Detail; !strings.Contains(got, "may not watch ocirepositories") {
		t.Errorf("detail: got %q", got)
	}

	role.Rules[0].Resources = append(role.Rules[0].Resources, "ocirepositories")
	if err := c.Client.Update(t.Context(), role); err != nil {
		t.Fatal(err)
	}
	a.awaitSource(t, ociID)
	a.SetServed(ociID, true)
	awaitReceivers(t, c, ns, 2)
	a.pushGoalUntilVia(t, ociID, flux.ViaReceiver, func(i int) tidelock.Goal {
		return store.pushManifests(t, "team/site", "latest", fmt.Sprint("two ", i))
	})
	a.pushUntilVia(t, git, gitID, flux.ViaReceiver)
}
