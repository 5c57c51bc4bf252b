package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev"
	"tidelock.dev/internal/flux"
	"tidelock.dev/playground/e2e"
)

// sightings reads the feed of observations of an agent and remembers all of it.
type sightings struct {
	mu      sync.Mutex
	now     map[tidelock.ObjectID]tidelock.Observation
	states  map[tidelock.ObjectID][]tidelock.ObservedState // one after the other
	updates int
}

func watchObservations(t *testing.T, a *fluxAgent) *sightings {
	t.Helper()
	s := &sightings{
		now:    make(map[tidelock.ObjectID]tidelock.Observation),
		states: make(map[tidelock.ObjectID][]tidelock.ObservedState),
	}
	feed := a.SubscribeObservations()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			o, err := feed.Next(ctx)
			if err != nil {
				return
			}
			s.take(o)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return s
}

func (s *sightings) take(o flux.Observations) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.Complete {
		clear(s.now)
	}
	for _, upsert := range o.Upserts {
		s.now[upsert.Object] = upsert
		if states := s.states[upsert.Object]; len(states) == 0 || states[len(states)-1] != upsert.State {
			s.states[upsert.Object] = append(states, upsert.State)
		}
	}
	for _, id := range o.Removals {
		delete(s.now, id)
	}
	s.updates += len(o.Upserts) + len(o.Removals)
}

func (s *sightings) of(id tidelock.ObjectID) (tidelock.Observation, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.now[id]
	return o, ok
}

// await waits until an object is observed as wanted, and returns how.
func (s *sightings) await(t *testing.T, id tidelock.ObjectID, what string, is func(tidelock.Observation) bool) (o tidelock.Observation) {
	t.Helper()
	e2e.Eventually(t, 30*time.Second, func(context.Context) error {
		var ok bool
		if o, ok = s.of(id); !ok || !is(o) {
			return fmt.Errorf("%s is not %s: %+v", id, what, o)
		}
		return nil
	})
	return o
}

// newKustomization makes a Kustomization of a folder of a GitRepository that
// nothing but a new artifact, or a dependency, wakes within the hour.
func newKustomization(t *testing.T, c *e2e.System, ns, name, source, path string, change ...func(*kustomizev1.Kustomization)) (*kustomizev1.Kustomization, tidelock.ObjectID) {
	t.Helper()
	k := &kustomizev1.Kustomization{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: kustomizev1.KustomizationSpec{
			Interval: metav1.Duration{Duration: time.Hour}, Path: path, Prune: true, TargetNamespace: ns,
			SourceRef: kustomizev1.CrossNamespaceSourceReference{Kind: sourcev1.GitRepositoryKind, Name: source},
		},
	}
	for _, f := range change {
		f(k)
	}
	if err := c.Client.Create(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	return k, tidelock.ObjectID("Kustomization/" + ns + "/" + name)
}

// merge changes an object by a JSON merge patch.
func merge(t *testing.T, c *e2e.System, object client.Object, format string, args ...any) {
	t.Helper()
	if err := c.Client.Patch(t.Context(), object, client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, format, args...))); err != nil {
		t.Fatal(err)
	}
}

// write puts files into folders of the repository's tree, to be pushed.
func (r repository) write(t *testing.T, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(r.tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func valueMap(name, value string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: %s}\ndata: {value: %q}\n", name, value)
}

// What Flux does with good and bad revisions is observed as it is.
func TestObserveKustomizations(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	repo := newRepository(t)
	repo.write(t, map[string]string{
		"good/one.yaml":   valueMap("one", "1"),
		"other/two.yaml":  valueMap("two", "1"),
		"broken/bad.yaml": "apiVersion: v1\nkind: [ConfigMap\n",
	})
	first := "main@sha1:" + repo.push(t, nil)
	source, sourceID := newSource(t, c, ns, "site", repo.url)
	k, good := newKustomization(t, c, ns, "good", "site", "./good", func(k *kustomizev1.Kustomization) {
		k.Annotations = map[string]string{tidelock.AnnotationEnvironment: "production"}
	})
	_, broken := newKustomization(t, c, ns, "broken", "site", "./broken")
	dependent, waiting := newKustomization(t, c, ns, "waiting", "site", "./other", func(k *kustomizev1.Kustomization) {
		k.Spec.DependsOn = []kustomizev1.DependencyReference{{Name: "broken"}}
	})
	_, foreign := newKustomization(t, c, ns, "foreign", "elsewhere", "./good")

	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, repo.url)
	s := watchObservations(t, a)
	a.awaitSource(t, sourceID)
	if _, ok := s.of(good); ok {
		t.Errorf("%s is observed before its source is known to be served", good)
	}
	a.SetServed(sourceID, true)

	ready := func(revision string) func(tidelock.Observation) bool {
		return func(o tidelock.Observation) bool {
			return o.State == tidelock.ObservedReady && o.Revision == revision && o.Attempted == revision
		}
	}
	o := s.await(t, good, "ready", ready(first))
	if o.Source != sourceID || o.Path != "./good" || o.Namespace != ns || o.Environment != "production" || o.Objects != 1 ||
		o.Interval != time.Hour || o.Timeout == 0 || o.UID == "" || o.Suspended {
		t.Errorf("good: got %+v", o)
	}
	if len(o.Outcomes) != 1 || o.Outcomes[0].Revision != first || o.Outcomes[0].State != tidelock.ObservedReady {
		t.Errorf("good: outcomes %+v", o.Outcomes)
	}
	o = s.await(t, broken, "failed", func(o tidelock.Observation) bool { return o.State == tidelock.ObservedFailed })
	if o.Reason != "BuildFailed" || !strings.Contains(o.Message, "bad.yaml") || o.Attempted != first || o.Revision != "" {
		t.Errorf("broken: got %+v", o)
	}
	o = s.await(t, waiting, "blocked", func(o tidelock.Observation) bool { return o.State == tidelock.ObservedBlocked })
	if o.Reason != "DependencyNotReady" || len(o.DependsOn) != 1 || o.DependsOn[0] != broken {
		t.Errorf("waiting: got %+v", o)
	}
	o = s.await(t, tidelock.ObjectID(sourceID), "ready", func(o tidelock.Observation) bool { return o.State == tidelock.ObservedReady })
	if o.Revision != first {
		t.Errorf("source: got %+v", o)
	}

	// Suspended, it stays as it is; resumed, it goes on.
	merge(t, c, k, `{"spec":{"suspend":true}}`)
	s.await(t, good, "suspended", func(o tidelock.Observation) bool { return o.Suspended && o.State == tidelock.ObservedReady })
	repo.write(t, map[string]string{"good/one.yaml": valueMap("one", "2"), "broken/bad.yaml": valueMap("bad", "1")})
	commit := repo.push(t, nil)
	second := "main@sha1:" + commit
	c.Wake(t, ns, source.Name)
	s.await(t, tidelock.ObjectID(sourceID), "fetched", func(o tidelock.Observation) bool { return o.Revision == second })
	s.await(t, broken, "recovered", ready(second))
	merge(t, c, dependent, `{"metadata":{"annotations":{%q:"now"}}}`, meta.ReconcileRequestAnnotation)
	s.await(t, waiting, "released", func(o tidelock.Observation) bool { return ready(second)(o) && !o.Requested })
	if o, _ := s.of(good); o.Revision != first || !o.Suspended {
		t.Errorf("suspended: got %+v", o)
	}
	merge(t, c, k, `{"spec":{"suspend":false}}`)
	o = s.await(t, good, "resumed", func(o tidelock.Observation) bool { return ready(second)(o) && !o.Suspended })
	if len(o.Outcomes) != 2 || o.Outcomes[0].AttemptedAt.IsZero() || o.Outcomes[0].AppliedAt.Before(o.Outcomes[0].AttemptedAt) ||
		o.Outcomes[0].HealthyAt.Before(o.Outcomes[0].AppliedAt) {
		t.Errorf("resumed: outcomes %+v", o.Outcomes)
	}

	// A new generation of the same revision.
	merge(t, c, k, `{"spec":{"path":"./other"}}`)
	s.await(t, good, "at its new path", func(o tidelock.Observation) bool { return ready(second)(o) && o.Path == "./other" })

	// A newer revision fails while an older one is live, in each of the ways
	// that Flux has of telling so.
	merge(t, c, k, `{"spec":{"path":"./good"}}`)
	s.await(t, good, "back", func(o tidelock.Observation) bool { return ready(second)(o) && o.Path == "./good" })
	fails := func(name, reason, text string, files map[string]string) string {
		t.Helper()
		repo.write(t, files)
		revision := "main@sha1:" + repo.push(t, nil)
		c.Wake(t, ns, source.Name)
		o := s.await(t, good, name, func(o tidelock.Observation) bool {
			return o.State == tidelock.ObservedFailed && o.Attempted == revision
		})
		if o.Revision != second || o.Reason != reason || !strings.Contains(o.Message, text) {
			t.Errorf("%s: got %+v", name, o)
		}
		if len(o.Outcomes) < 2 || o.Outcomes[0].Revision != revision || o.Outcomes[0].State != tidelock.ObservedFailed ||
			o.Outcomes[0].FailedAt.IsZero() || !o.Outcomes[0].AppliedAt.IsZero() {
			t.Errorf("%s: outcomes %+v", name, o.Outcomes)
		}
		return revision
	}
	fails("unbuildable", "BuildFailed", "one.yaml", map[string]string{"good/one.yaml": "a: [\n"})
	fails("rejected", "ReconciliationFailed", "spec.selector: Required value", map[string]string{"good/one.yaml": "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec: {}\n"})
	if err := os.RemoveAll(filepath.Join(repo.tree, "good")); err != nil {
		t.Fatal(err)
	}
	fails("without its path", "ArtifactFailed", "path not found", nil)

	// Repaired, and gone.
	repo.write(t, map[string]string{"good/one.yaml": valueMap("one", "3")})
	third := "main@sha1:" + repo.push(t, nil)
	c.Wake(t, ns, source.Name)
	s.await(t, good, "repaired", ready(third))
	if err := c.Client.Delete(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	e2e.Eventually(t, 10*time.Second, func(context.Context) error {
		if o, ok := s.of(good); ok {
			return fmt.Errorf("deleted, and still observed: %+v", o)
		}
		return nil
	})
	if o, ok := s.of(foreign); ok {
		t.Errorf("observed what applies nothing of the forge's: %+v", o)
	}

	// What is not served any more is not observed either.
	a.SetServed(sourceID, false)
	e2e.Eventually(t, 10*time.Second, func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.now) > 0 {
			return fmt.Errorf("not served, and still observed: %v", s.now)
		}
		return nil
	})
}

// chart is a chart of one ConfigMap.
func chart(version string, more map[string]string) map[string]string {
	files := map[string]string{
		"web/Chart.yaml":               "apiVersion: v2\nname: web\nversion: " + version + "\n",
		"web/values.yaml":              "greeting: hello\n",
		"web/templates/configmap.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\ndata: {greeting: {{ .Values.greeting | quote }}}\n",
	}
	maps.Copy(files, more)
	return files
}

// A HelmRelease of a chart in Git is told by the revisions of the repository.
func TestObserveHelmReleaseOfGit(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	repo := newRepository(t)
	repo.write(t, chart("1.0.0", nil))
	first := "main@sha1:" + repo.push(t, nil)
	source, sourceID := newSource(t, c, ns, "site", repo.url)
	release := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease",
		"metadata": map[string]any{"namespace": ns, "name": "web"},
		"spec": map[string]any{
			"interval": "1h",
			"chart": map[string]any{"spec": map[string]any{
				"chart": "./web", "interval": "1h", "reconcileStrategy": "Revision",
				"sourceRef": map[string]any{"kind": "GitRepository", "name": "site"},
			}},
			"upgrade": map[string]any{"remediation": map[string]any{"remediateLastFailure": true}},
		},
	}}
	if err := c.Client.Create(t.Context(), release); err != nil {
		t.Fatal(err)
	}
	id := tidelock.ObjectID("HelmRelease/" + ns + "/web")

	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, repo.url)
	s := watchObservations(t, a)
	a.awaitSource(t, sourceID)
	a.SetServed(sourceID, true)
	ready := func(revision string) func(tidelock.Observation) bool {
		return func(o tidelock.Observation) bool {
			return o.State == tidelock.ObservedReady && o.Revision == revision && o.Attempted == revision
		}
	}
	push := func(files map[string]string) string {
		t.Helper()
		repo.write(t, files)
		revision := "main@sha1:" + repo.push(t, nil)
		c.Wake(t, ns, source.Name)
		return revision
	}
	o := s.await(t, id, "ready", ready(first))
	if o.Source != sourceID || o.Health != tidelock.HealthHealthy {
		t.Errorf("ready: got %+v", o)
	}
	second := push(map[string]string{"web/templates/configmap.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\ndata: {greeting: again}\n"})
	s.await(t, id, "upgraded", ready(second))

	// Rejected by the API server, and rolled back.
	third := push(map[string]string{"web/templates/bad.yaml": "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: bad}\nspec: {}\n"})
	o = s.await(t, id, "stalled", func(o tidelock.Observation) bool { return o.State == tidelock.ObservedStalled })
	if o.Attempted != third || o.Revision != second || o.Reason != "UpgradeFailed" || !strings.Contains(o.Message, "spec.selector: Required value") {
		t.Errorf("stalled: got %+v", o)
	}
	// Not a chart any more.
	fourth := push(map[string]string{"web/Chart.yaml": "name: [\n"})
	o = s.await(t, id, "not packaged", func(o tidelock.Observation) bool { return o.Attempted == fourth })
	if o.Revision != second || o.State != tidelock.ObservedStalled || !strings.Contains(o.Message, "Chart.yaml") {
		t.Errorf("not packaged: got %+v", o)
	}
	if err := os.Remove(filepath.Join(repo.tree, "web/templates/bad.yaml")); err != nil {
		t.Fatal(err)
	}
	fifth := push(chart("1.1.0", nil))
	o = s.await(t, id, "repaired", ready(fifth))
	var revisions []string
	for _, outcome := range o.Outcomes {
		revisions = append(revisions, outcome.Revision+" "+string(outcome.State))
	}
	want := []string{fifth + " ready", fourth + " stalled", third + " stalled", second + " ready", first + " ready"}
	if !slices.Equal(revisions, want) {
		t.Errorf("outcomes: got %q, want %q", revisions, want)
	}
	// It fails before it looks at a revision.
	merge(t, c, release, `{"spec":{"valuesFrom":[{"kind":"ConfigMap","name":"missing"}]}}`)
	o = s.await(t, id, "without values", func(o tidelock.Observation) bool { return o.State == tidelock.ObservedFailed })
	if o.Reason != "ValuesError" || o.Attempted != fifth || o.Revision != fifth {
		t.Errorf("without values: got %+v", o)
	}
	sixth := push(map[string]string{"web/values.yaml": "greeting: hi\n"})
	s.await(t, id, "without values again", func(o tidelock.Observation) bool {
		return o.State == tidelock.ObservedFailed && o.Attempted == sixth && o.Revision == fifth
	})
}
