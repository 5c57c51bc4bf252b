package flux

import (
	"slices"
	"strings"
	"testing"
	"time"

	helmv2 "github.com/fluxcd/helm-controller/api/v2"
	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"tidelock.dev"
)

// saw returns the one observation that the feed has.
func saw(t *testing.T, f *ObservationFeed) tidelock.Observation {
	t.Helper()
	o := take(t, f)
	if len(o.Upserts) != 1 || len(o.Removals) != 0 {
		t.Fatalf("got %+v, want one observation", o)
	}
	return o.Upserts[0]
}

func kustomize(name, source string, change ...func(*kustomizev1.Kustomization)) *kustomizev1.Kustomization {
	k := &kustomizev1.Kustomization{
		ObjectMeta: object(name),
		Spec: kustomizev1.KustomizationSpec{
			SourceRef: kustomizev1.CrossNamespaceSourceReference{Kind: sourcev1.GitRepositoryKind, Name: source},
			Interval:  metav1.Duration{Duration: time.Hour},
		},
	}
	for _, f := range change {
		f(k)
	}
	return k
}

// applied, tries and fails give states to a Kustomization.
func applied(revision string, inventory ...string) func(*kustomizev1.Kustomization) {
	return func(k *kustomizev1.Kustomization) {
		k.Status.Conditions = []metav1.Condition{{Type: meta.ReadyCondition, Status: metav1.ConditionTrue, Reason: "ReconciliationSucceeded", ObservedGeneration: k.Generation}}
		k.Status.ObservedGeneration = k.Generation
		k.Status.LastAttemptedRevision, k.Status.LastAppliedRevision = revision, revision
		if len(inventory) > 0 {
			k.Status.Inventory = &kustomizev1.ResourceInventory{}
		}
		for _, id := range inventory {
			k.Status.Inventory.Entries = append(k.Status.Inventory.Entries, kustomizev1.ResourceRef{ID: id, Version: "v1"})
		}
	}
}

func tries(revision string) func(*kustomizev1.Kustomization) {
	return func(k *kustomizev1.Kustomization) {
		k.Status.LastAttemptedRevision = revision
		k.Status.Conditions = []metav1.Condition{
			{Type: meta.ReconcilingCondition, Status: metav1.ConditionTrue, Reason: "Progressing", ObservedGeneration: k.Generation,
				Message: "Building manifests for revision " + revision + " with a timeout of 1h"},
			{Type: meta.ReadyCondition, Status: metav1.ConditionUnknown, Reason: "Progressing", ObservedGeneration: k.Generation},
		}
	}
}

func fails(reason, message string) func(*kustomizev1.Kustomization) {
	return func(k *kustomizev1.Kustomization) {
		k.Status.Conditions = append(k.Status.Conditions[:1],
			metav1.Condition{Type: meta.ReadyCondition, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: k.Generation})
	}
}

const siteID = tidelock.SourceID("GitRepository/ns/site")

// TestObservations: who is observed, and how long.
func TestObservations(t *testing.T) {
	c := newController(t, "")
	feed := c.SubscribeObservations()
	if o := take(t, feed); !o.Complete || len(o.Upserts) != 0 {
		t.Fatalf("nothing there: got %+v", o)
	}
	// The applier comes before its source, and that before it is known to be served.
	c.applierObserved(kustomization, kustomize("app", "site", applied(revision(commitA))))
	c.applierObserved(kustomization, kustomize("other", "elsewhere", applied(revision(commitA))))
	c.observed(gitRepository, repository("site"))
	if o := take(t, feed); len(o.Upserts) != 0 {
		t.Errorf("before it is served: got %+v", o)
	}
	c.SetServed(siteID, true)
	if o := take(t, feed); o.Complete || len(o.Upserts) != 2 {
		t.Errorf("served: got %+v, want the source and one applier", o)
	}
	if got := c.Status().Appliers; got != 1 {
		t.Errorf("status tells of %d appliers", got)
	}

	// Nothing new is no news; a look for the interval is none either.
	c.applierObserved(kustomization, kustomize("app", "site", applied(revision(commitA))))
	c.applierObserved(kustomization, kustomize("app", "site", applied(revision(commitA)), tries(revision(commitA))))
	c.observed(gitRepository, repository("site"))
	if o := take(t, feed); len(o.Upserts)+len(o.Removals) != 0 {
		t.Errorf("nothing new: got %+v", o)
	}

	// A newer revision fails while the older one is live.
	c.applierObserved(kustomization, kustomize("app", "site", applied(revision(commitA)), tries(revision(commitB))))
	if o := saw(t, feed); o.State != tidelock.ObservedProgressing || o.Attempted != revision(commitB) || o.Revision != revision(commitA) || o.Since.IsZero() {
		t.Errorf("begun: got %+v", o)
	}
	bad := kustomize("app", "site", applied(revision(commitA)), tries(revision(commitB)), fails("BuildFailed", "\x1b[31mno\x1b[0m\n"+strings.Repeat("x", 1<<20)))
	c.applierObserved(kustomization, bad)
	o := saw(t, feed)
	if o.State != tidelock.ObservedFailed || o.Reason != "BuildFailed" || !strings.HasPrefix(o.Message, "no\nxx") || len(o.Message) > maxObserved ||
		o.Attempted != revision(commitB) || o.Revision != revision(commitA) {
		o.Message = o.Message[:10]
		t.Errorf("failed: got %+v", o)
	}
	if len(o.Outcomes) != 2 || o.Outcomes[0].State != tidelock.ObservedFailed || len(o.Outcomes[0].Message) > maxOutcomeMessage || o.Outcomes[1].State != tidelock.ObservedReady {
		t.Errorf("outcomes: %v", o.Outcomes)
	}

	// It follows another source, that is not served, and comes back.
	c.applierObserved(kustomization, kustomize("app", "elsewhere"))
	if o := take(t, feed); !slices.Equal(o.Removals, []tidelock.ObjectID{"Kustomization/ns/app"}) {
		t.Errorf("moved away: got %+v", o)
	}
	c.applierObserved(kustomization, kustomize("app", "site", applied(revision(commitB))))
	if o := saw(t, feed); len(o.Outcomes) != 1 || !o.Outcomes[0].AppliedAt.IsZero() {
		t.Errorf("back: got %+v, want what nobody saw come about to have no time", o)
	}
	if len(c.users) != 2 { // other's source, and app's
		t.Errorf("users of %d sources are remembered", len(c.users))
	}

	// Another object of the same name knows nothing of the one before.
	c.applierObserved(kustomization, kustomize("app", "site", func(k *kustomizev1.Kustomization) { k.UID = "new" }))
	if o := take(t, feed); len(o.Upserts) != 1 || o.Upserts[0].UID != "new" || len(o.Upserts[0].Outcomes) != 0 || len(o.Removals) != 0 {
		t.Errorf("made anew: got %+v", o)
	}

	c.SetServed(siteID, false)
	if o := take(t, feed); len(o.Removals) != 2 {
		t.Errorf("not served any more: got %+v", o)
	}
	c.SetServed(siteID, true)
	take(t, feed)
	c.vanished(siteID)
	if o := take(t, feed); len(o.Removals) != 2 {
		t.Errorf("the source is gone: got %+v", o)
	}
	c.applierVanished("Kustomization/ns/app")
	c.applierVanished("Kustomization/ns/other")
	if len(c.users)+len(c.appliers)+len(c.sightings) != 0 {
		t.Errorf("remembered: %v, %v, %v", c.users, c.appliers, c.sightings)
	}
}

// TestObservationFeedWaits: the first set says what is gone, so it must not come
// before it is known what is served.
func TestObservationFeedWaits(t *testing.T) {
	c := newController(t, "")
	c.observed(gitRepository, repository("site"))
	c.observed(gitRepository, repository("other"))
	c.applierObserved(kustomization, kustomize("app", "site", applied(revision(commitA))))
	feed := c.SubscribeObservations()
	c.SetServed(siteID, true)
	if o := take(t, feed); o.Complete || len(o.Upserts) != 0 {
		t.Errorf("one source is not resolved: got %+v", o)
	}
	c.SetServed("GitRepository/ns/other", false)
	if o := take(t, feed); !o.Complete || len(o.Upserts) != 2 {
		t.Errorf("all are resolved: got %+v", o)
	}
	again := c.SubscribeObservations()
	if o := take(t, again); !o.Complete || len(o.Upserts) != 2 {
		t.Errorf("opened again: got %+v", o)
	}
	if _, _, err := feed.take(); err != ErrFeedEnded {
		t.Errorf("two feeds at a time: %v", err)
	}

	// A server that never answers keeps the others waiting for a while only.
	c.observed(gitRepository, repository("third"))
	late := c.SubscribeObservations()
	c.mu.Lock()
	c.revisit(time.Now().Add(observePatience - time.Second))
	c.mu.Unlock()
	if o := take(t, late); o.Complete {
		t.Error("it was not waited for the server")
	}
	c.mu.Lock()
	c.revisit(time.Now().Add(observePatience + time.Second))
	c.mu.Unlock()
	if o := take(t, late); !o.Complete || len(o.Upserts) != 2 {
		t.Errorf("waited long enough: got %+v", o)
	}
}

// A healthWatcher reports what the test says.
type healthWatcher struct {
	follows   map[tidelock.ObjectID][]ObjectRef
	refreshes int
	report    HealthReport
}

func (h *healthWatcher) Follow(id tidelock.ObjectID, refs []ObjectRef) { h.follows[id] = refs }
func (h *healthWatcher) Refresh(tidelock.ObjectID)                     { h.refreshes++ }
func (h *healthWatcher) Forget(id tidelock.ObjectID)                   { delete(h.follows, id) }
func (h *healthWatcher) Health(tidelock.ObjectID) HealthReport         { return h.report }

// TestObservedHealth: what was known of objects before they were applied
// decides nothing.
func TestObservedHealth(t *testing.T) {
	const id = tidelock.ObjectID("Kustomization/ns/app")
	c := newController(t, "")
	h := &healthWatcher{follows: make(map[tidelock.ObjectID][]ObjectRef), report: HealthReport{Health: tidelock.HealthHealthy}}
	c.SetHealth(h)
	c.observed(gitRepository, repository("site"))
	c.SetServed(siteID, true)
	c.applierObserved(kustomization, kustomize("app", "site", applied(revision(commitA), "ns_a__ConfigMap", "ns_b_apps_Deployment")))
	if len(h.follows[id]) != 2 || h.refreshes != 0 {
		t.Errorf("follows %v, %d refreshes", h.follows, h.refreshes)
	}
	feed := c.SubscribeObservations()
	if o := take(t, feed); o.Complete {
		t.Error("the set came before its objects were looked at")
	}
	h.report.Settled = true
	c.HealthChanged(id)
	o := take(t, feed)
	i := slices.IndexFunc(o.Upserts, func(o tidelock.Observation) bool { return o.Object == id })
	if !o.Complete || i < 0 || o.Upserts[i].Health != tidelock.HealthHealthy || o.Upserts[i].Objects != 2 {
		t.Errorf("looked at: got %+v", o)
	}

	// A new revision, whose objects nobody has looked at yet.
	h.report.Settled = false
	next := kustomize("app", "site", applied(revision(commitB), "ns_a__ConfigMap", "ns_b_apps_Deployment"))
	c.applierObserved(kustomization, next)
	if o := saw(t, feed); h.refreshes != 1 || o.Health != tidelock.HealthProgressing || !o.Outcomes[0].HealthyAt.IsZero() {
		t.Errorf("applied: %d refreshes, got %+v", h.refreshes, o)
	}
	h.report = HealthReport{Health: tidelock.HealthFailed, Settled: true, Unhealthy: []tidelock.ObjectHealth{{Name: "b"}}}
	c.HealthChanged(id)
	if o := saw(t, feed); o.Health != tidelock.HealthFailed || len(o.Unhealthy) != 1 || o.Outcomes[0].Health != tidelock.HealthFailed {
		t.Errorf("unhealthy: got %+v", o)
	}
	h.report = HealthReport{Health: tidelock.HealthHealthy, Settled: true}
	c.HealthChanged(id)
	if o := saw(t, feed); o.Health != tidelock.HealthHealthy || o.Outcomes[0].HealthyAt.IsZero() {
		t.Errorf("healthy: got %+v", o)
	}
	c.applierObserved(kustomization, next.DeepCopy())
	if o := take(t, feed); len(o.Upserts) != 0 || h.refreshes != 1 {
		t.Errorf("nothing new: got %+v, %d refreshes", o, h.refreshes)
	}

	// In another cluster there is nothing to look at.
	c.applierObserved(kustomization, kustomize("app", "site", applied(revision(commitB), "ns_a__ConfigMap"), func(k *kustomizev1.Kustomization) {
		k.Spec.KubeConfig = &meta.KubeConfigReference{}
	}))
	if o := saw(t, feed); len(h.follows) != 0 || o.Health != tidelock.HealthUnknown {
		t.Errorf("elsewhere: follows %v, got %+v", h.follows, o)
	}
	c.applierObserved(kustomization, next)
	c.SetServed(siteID, false)
	if len(h.follows) != 0 {
		t.Errorf("not served: follows %v", h.follows)
	}
}

// gitChart is a chart of a GitRepository.
func gitChart(version, message, from string, ready metav1.ConditionStatus) *sourcev1.HelmChart {
	return chart("ns-web", "", func(c *sourcev1.HelmChart) {
		c.Spec.Chart, c.Spec.SourceRef = "./charts/web", sourcev1.LocalHelmChartSourceReference{Kind: sourcev1.GitRepositoryKind, Name: "site"}
		c.Status.Artifact.Revision = version
		c.Status.ObservedSourceArtifactRevision = from
		c.Status.ObservedGeneration = 1
		c.Status.Conditions = []metav1.Condition{{Type: meta.ReadyCondition, Status: ready, Reason: "R", Message: message, ObservedGeneration: 1}}
	})
}

func release(version string, change ...func(*helmv2.HelmRelease)) *helmv2.HelmRelease {
	r := &helmv2.HelmRelease{
		ObjectMeta: object("web"),
		Spec: helmv2.HelmReleaseSpec{Chart: &helmv2.HelmChartTemplate{Spec: helmv2.HelmChartTemplateSpec{
			SourceRef: helmv2.CrossNamespaceObjectReference{Kind: sourcev1.GitRepositoryKind, Name: "site"}}}},
		Status: helmv2.HelmReleaseStatus{
			ObservedGeneration: 1, LastAttemptedRevision: version,
			History:    helmv2.Snapshots{{Version: 1, ChartVersion: version, Status: "deployed"}},
			Conditions: []metav1.Condition{{Type: meta.ReadyCondition, Status: metav1.ConditionTrue, Reason: "UpgradeSucceeded", ObservedGeneration: 1}},
		},
	}
	for _, f := range change {
		f(r)
	}
	return r
}

// TestChartsOfGit: of a chart that is packaged from Git the revisions are
// Git's, told only when Flux's status fits together.
func TestChartsOfGit(t *testing.T) {
	const id = tidelock.ObjectID("HelmRelease/ns/web")
	c := newController(t, "")
	feed := c.SubscribeObservations()
	take(t, feed)
	a, b := revision(commitA), revision(commitB)
	const one, two = "packaged 'web' chart with version '1.0.0'", "packaged 'web' chart with version '2.0.0'"
	revisions := func(when, attempted, live string, state tidelock.ObservedState) {
		t.Helper()
		o := c.sightings[id]
		if o.Source != siteID || o.Attempted != attempted || o.Revision != live || o.State != state {
			t.Errorf("%s: got %+v", when, o)
		}
	}
	c.applierObserved(helmRelease, release("1.0.0"))
	c.observed(gitRepository, repository("site"))
	c.SetServed(siteID, true)
	if _, ok := c.sightings[id]; ok {
		t.Error("observed without its chart")
	}
	c.observed(helmChart, gitChart("1.0.0", one, a, metav1.ConditionTrue))
	revisions("packaged", a, a, tidelock.ObservedReady)

	// Flux writes the revision first, then that the chart is ready, then which.
	c.observed(helmChart, gitChart("1.0.0", "building", b, metav1.ConditionUnknown))
	revisions("the next is being packaged", a, a, tidelock.ObservedReady)
	c.observed(helmChart, gitChart("1.0.0", two, b, metav1.ConditionTrue))
	revisions("the next is about to be there", a, a, tidelock.ObservedReady)
	c.observed(helmChart, gitChart("2.0.0", two, b, metav1.ConditionTrue))
	revisions("the next is there", a, a, tidelock.ObservedReady)
	c.applierObserved(helmRelease, release("2.0.0"))
	revisions("and applied", b, b, tidelock.ObservedReady)

	// The chart of the next commit cannot be packaged; its release has no idea.
	broken := revision(tidelock.CommitID(strings.Repeat("c", 40)))
	c.observed(helmChart, gitChart("2.0.0", "no Chart.yaml", broken, metav1.ConditionFalse))
	revisions("not packaged", broken, b, tidelock.ObservedFailed)
	if o := c.sightings[id]; o.Message != "HelmChart ns/ns-web: no Chart.yaml" || o.Outcomes[0].Revision != broken || o.Outcomes[1].State != tidelock.ObservedReady {
		t.Errorf("not packaged: got %+v", o)
	}
	c.observed(helmChart, gitChart("2.0.0", two, a, metav1.ConditionTrue))
	revisions("a commit that leaves the version as it is", a, a, tidelock.ObservedReady)
	if o := c.sightings[id]; o.Chart != "./charts/web" {
		t.Errorf("packaged by version, and the chart is said to be in %q", o.Chart)
	}
	every := gitChart("2.0.0", two, a, metav1.ConditionTrue)
	every.Spec.ReconcileStrategy = sourcev1.ReconcileStrategyRevision
	c.observed(helmChart, every)
	if o := c.sightings[id]; o.Chart != "" {
		t.Errorf("packaged with every commit, and the chart is said to be in %q", o.Chart)
	}

	c.vanished("HelmChart/ns/ns-web")
	if _, ok := c.sightings[id]; ok || len(c.packages) != 0 {
		t.Errorf("the chart is gone: %v", c.packages)
	}
}

// TestEarlyFailures: what fails before it looks at a revision fails with the
// one that is there, and with the next when it has had time to look.
func TestEarlyFailures(t *testing.T) {
	const id = tidelock.ObjectID("Kustomization/ns/app")
	c := newController(t, "")
	c.observed(gitRepository, repository("site"))
	c.SetServed(siteID, true)
	c.applierObserved(kustomization, kustomize("app", "site", func(k *kustomizev1.Kustomization) {
		k.Status.ObservedGeneration = 1
		k.Status.Conditions = []metav1.Condition{{Type: meta.StalledCondition, Status: metav1.ConditionTrue, Reason: meta.InvalidCELExpressionReason, ObservedGeneration: 1}}
	}))
	attempted := func(when, want string) {
		t.Helper()
		if o := c.sightings[id]; o.State != tidelock.ObservedStalled || o.Attempted != want {
			t.Errorf("%s: got %+v, want %s", when, o, want)
		}
	}
	attempted("at once", revision(commitA))
	c.observed(gitRepository, repository("site", func(r *sourcev1.GitRepository) { r.Status.Artifact.Revision = revision(commitB) }))
	attempted("another is there", revision(commitA))
	c.mu.Lock()
	next := c.revisit(time.Now())
	c.revisit(next.Add(time.Millisecond))
	c.mu.Unlock()
	attempted("after a while", revision(commitB))
}

func TestOversizedAppliersAreLeftOut(t *testing.T) {
	c := newController(t, "")
	c.observed(gitRepository, repository("site"))
	c.SetServed(siteID, true)
	c.applierObserved(kustomization, kustomize("app", "site", applied(strings.Repeat("x", maxSpec+1))))
	if len(c.sightings) != 1 {
		t.Errorf("got %v", c.sightings)
	}
	c.applierObserved(kustomization, kustomize("app", "site", func(k *kustomizev1.Kustomization) {
		k.Spec.Path = strings.Repeat("p", 1<<16)
		for range 1000 {
			k.Spec.DependsOn = append(k.Spec.DependsOn, kustomizev1.DependencyReference{Name: "x"})
		}
	}))
	if o := c.sightings["Kustomization/ns/app"]; len(o.Path) > maxPath || len(o.DependsOn) > maxDependencies {
		t.Errorf("a path of %d bytes, %d dependencies", len(o.Path), len(o.DependsOn))
	}
}

// BenchmarkSurvey takes one event of an applier among a thousand, whose
// revision is another each time.
func BenchmarkSurvey(b *testing.B) {
	c := newController(b, "")
	c.observed(gitRepository, repository("site"))
	c.SetServed(siteID, true)
	var all []*kustomizev1.Kustomization
	for i := range 1000 {
		k := kustomize("app-"+string(rune('a'+i%26))+string(rune('a'+i/26)), "site", applied(revision(commitA)))
		k.UID = types.UID(k.Name)
		all = append(all, k)
		c.applierObserved(kustomization, k)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		k := all[i%len(all)]
		applied(revision([]tidelock.CommitID{commitA, commitB}[i/len(all)%2]))(k)
		c.applierObserved(kustomization, k)
	}
}
