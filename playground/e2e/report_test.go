package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	notificationv1beta3 "github.com/fluxcd/notification-controller/api/v1beta3"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/e2e"
)

// A reporting is a forge, and a namespace in which Flux applies its projects.
type reporting struct {
	*e2e.Forge
	ns string
}

// What Flux makes of a commit comes back to it: for sources of Git and of OCI,
// for what goes well and for what does not, and beside Flux's own Provider.
func TestReports(t *testing.T) {
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	w := reporting{Forge: f, ns: f.Cluster.Namespace(t)}
	f.Trust(w.ns, "root", f.Token)
	t.Run("outcomes", func(t *testing.T) {
		for name, run := range map[string]func(reporting, *testing.T){
			"failures": reporting.failures, "superseded": reporting.superseded, "artifacts": reporting.artifacts,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				run(reporting{f.In(t), w.ns}, t)
			})
		}
	})
	for _, kind := range []string{sourcev1.GitRepositoryKind, sourcev1.OCIRepositoryKind} {
		t.Run("speed of "+kind, func(t *testing.T) { w.speed(t, kind) })
	}
}

// project makes a private project that is granted to the agent.
func (w reporting) project(name string) *e2e.Project {
	p := w.Project("team/"+name, "private")
	p.Grant()
	return p
}

// apply makes a Kustomization of the folder of its name that is quick to try
// again.
func (w reporting) apply(t *testing.T, kind, source, name string, change ...func(*kustomizev1.Kustomization)) {
	t.Helper()
	k := &kustomizev1.Kustomization{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.ns},
		Spec: kustomizev1.KustomizationSpec{
			Interval: metav1.Duration{Duration: time.Hour}, RetryInterval: &metav1.Duration{Duration: 2 * time.Second},
			Timeout: &metav1.Duration{Duration: 4 * time.Second}, Path: "./" + name, Prune: true, TargetNamespace: w.ns,
			SourceRef: kustomizev1.CrossNamespaceSourceReference{Kind: kind, Name: source},
		},
	}
	for _, c := range change {
		c(k)
	}
	create(t, w.Forge, k)
}

// A status is the same as a status.
type status struct {
	ID                        int64
	Name, Status, Description string
	PipelineID                int64  `json:"pipeline_id"`
	TargetURL                 string `json:"target_url"`
}

func (w reporting) statuses(ctx context.Context, p *e2e.Project, commit, stage string) (list []status, err error) {
	query := url.Values{"stage": {stage}, "all": {"true"}, "per_page": {"100"}}
	err = w.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/repository/commits/%s/statuses?%s", p.ID, commit, query.Encode()), nil, &list)
	return list, err
}

// jobOf names the job of a Kustomization.
func (w reporting) jobOf(name string) string { return "flux/test/" + w.ns + "/" + name }

// An outcome is what the job of a Kustomization comes to.
type outcome struct{ state, text string }

// waitJobs waits until exactly the jobs of some Kustomizations are on a commit,
// each with a state and a text in its description.
func (w reporting) waitJobs(t *testing.T, p *e2e.Project, commit string, want map[string]outcome) {
	t.Helper()
	// Flux looks again at what waited for another only after half a minute.
	e2e.Eventually(t, 3*soon, func(ctx context.Context) error {
		got, err := w.statuses(ctx, p, commit, "deploy")
		if err != nil {
			return err
		}
		if len(got) != len(want) {
			return fmt.Errorf("%d jobs on %.8s, want %d: %+v", len(got), commit, len(want), got)
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			i := slices.IndexFunc(got, func(s status) bool { return s.Name == w.jobOf(name) })
			if i < 0 || got[i].Status != want[name].state || !strings.Contains(got[i].Description, want[name].text) {
				return fmt.Errorf("the job of %s on %.8s is to be %v; there are %+v", name, commit, want[name], got)
			}
			page := fmt.Sprintf("%s/%s/-/commit/%s/timeline", w.URL, p.Path, commit)
			if got[i].TargetURL != page {
				return fmt.Errorf("the job of %s leads to %q, want %q", name, got[i].TargetURL, page)
			}
		}
		return nil
	})
}

// wake asks Flux to look at a Kustomization now.
func (w reporting) wake(t *testing.T, name string) {
	t.Helper()
	k := &kustomizev1.Kustomization{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: name}}
	text := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, meta.ReconcileRequestAnnotation, time.Now().Format(time.RFC3339Nano))
	if err := w.Cluster.Client.Patch(t.Context(), k, client.RawPatch("application/merge-patch+json", text)); err != nil {
		t.Fatal(err)
	}
}

// deployed waits until an environment has a commit, and its newest deployment
// is in a state.
func (w reporting) deployed(t *testing.T, p *e2e.Project, environment, commit, path string) {
	t.Helper()
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		var list []struct {
			State          string
			Path           string                        `json:"flux_resource_path"`
			Namespace      string                        `json:"kubernetes_namespace"`
			Agent          *struct{ ID int64 }           `json:"cluster_agent"`
			LastDeployment *struct{ SHA, Status string } `json:"last_deployment"`
		}
		query := url.Values{"name": {environment}}
		if err := w.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/environments?%s", p.ID, query.Encode()), nil, &list); err != nil {
			return err
		}
		if len(list) != 1 || list[0].LastDeployment == nil || list[0].LastDeployment.SHA != commit || list[0].State != "available" ||
			list[0].Agent == nil || list[0].Agent.ID != w.AgentID || list[0].Namespace != w.ns || !strings.HasSuffix(list[0].Path, path) {
			return fmt.Errorf("environment %q is %+v, want one with %.8s", environment, list, commit)
		}
		return nil
	})
}

const (
	unschedulable = `apiVersion: apps/v1
kind: Deployment
metadata: {name: %s}
spec:
  progressDeadlineSeconds: 1
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      nodeSelector: {no: such-node}
      containers: [{name: main, image: example.org/main:1}]
`
	placed = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: missing, namespace: %s}\ndata: {value: %q}\n"
	frozen = "apiVersion: v1\nkind: ConfigMap\nimmutable: true\nmetadata: {name: immutable}\ndata: {value: %q}\n"
)

// failures breaks everything that can be broken by one commit, each in a
// Kustomization of its own, and mends it by the next.
func (w reporting) failures(t *testing.T) {
	p := w.project("site")
	const folders = "good broken unparsed waited unwaited missing denied immutable dependent lonely"
	names := strings.Fields(folders)
	manifest := func(name, value string) string { return e2e.ConfigMap(name, value)["deploy/"+name+".yaml"] }
	files := func(value string) map[string]string {
		made := map[string]string{}
		for _, name := range names {
			made[name+"/manifest.yaml"] = manifest(name, value)
		}
		made["immutable/manifest.yaml"] = fmt.Sprintf(frozen, "1")
		made["missing/manifest.yaml"] = fmt.Sprintf(placed, w.ns, value)
		return made
	}
	provider := w.provider(t, p)
	first := p.Push("main", files("first"))
	w.Source(w.ns, "site", p, e2e.Branch("main"))
	w.mayApplyConfigMaps(t, "limited")
	for _, name := range names {
		w.apply(t, sourcev1.GitRepositoryKind, "site", name, func(k *kustomizev1.Kustomization) {
			switch name {
			case "good":
				k.Annotations = map[string]string{"tidelock.dev/environment": "production"}
			case "waited":
				k.Spec.Wait = true
			case "missing":
				k.Spec.TargetNamespace = ""
			case "denied":
				k.Spec.ServiceAccountName = "limited"
			case "dependent":
				k.Spec.DependsOn = []kustomizev1.DependencyReference{{Name: "broken"}}
			}
		})
	}
	all := func(state string) map[string]outcome {
		want := map[string]outcome{}
		for _, name := range names {
			want[name] = outcome{state: state}
		}
		return want
	}
	// One that waited for another looks again after half a minute by itself.
	others := all("success")
	w.waitReady(t, first, "broken")
	w.wake(t, "dependent")
	w.waitJobs(t, p, first, others)
	w.deployed(t, p, "production", first, "/kustomizations/good")
	w.deployed(t, p, "test/"+w.ns, first, "")

	needs := func(text string) {
		t.Helper()
		k := &kustomizev1.Kustomization{ObjectMeta: metav1.ObjectMeta{Namespace: w.ns, Name: "lonely"}}
		patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"dependsOn":`+text+`}}`))
		if err := w.Cluster.Client.Patch(t.Context(), k, patch); err != nil {
			t.Fatal(err)
		}
	}
	needs(`[{"name":"nobody"}]`)
	bad := files("second")
	bad["broken/manifest.yaml"] = "apiVersion: v1\nkind: NoSuchKind\nmetadata: {name: broken}\n"
	bad["unparsed/manifest.yaml"] = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: [unparsed\n"
	bad["waited/manifest.yaml"] = fmt.Sprintf(unschedulable, "waited")
	bad["unwaited/manifest.yaml"] = fmt.Sprintf(unschedulable, "unwaited")
	bad["missing/manifest.yaml"] = fmt.Sprintf(placed, "nowhere", "second")
	bad["denied/manifest.yaml"] = "apiVersion: v1\nkind: Secret\nmetadata: {name: denied}\n"
	bad["immutable/manifest.yaml"] = fmt.Sprintf(frozen, "2")
	second := p.Push("main", bad)
	want := map[string]outcome{
		"good":      {"success", ""},
		"broken":    {"failed", "NoSuchKind"},
		"unparsed":  {"failed", "manifest.yaml"},
		"waited":    {"failed", "Deployment/" + w.ns + "/waited"},
		"unwaited":  {"failed", "unwaited"},
		"missing":   {"failed", `namespaces "nowhere" not found`},
		"denied":    {"failed", "forbidden"},
		"immutable": {"failed", "immutable"},
		"dependent": {"running", "broken"},
		"lonely":    {"failed", "dependency '" + w.ns + "/nobody' not found"},
	}
	w.waitJobs(t, p, second, want)
	w.waitPipeline(t, p, second, "running")
	w.deployed(t, p, "production", second, "/kustomizations/good")

	third := p.Push("main", files("third"))
	w.waitReady(t, third, "broken")
	w.wake(t, "dependent")
	needs("null")
	w.waitJobs(t, p, third, all("success"))
	w.waitPipeline(t, p, third, "success")
	w.deployed(t, p, "test/"+w.ns, third, "")

	// What was unfinished was superseded; what had failed stays failed.
	want["dependent"] = outcome{"canceled", third[:8]}
	w.waitJobs(t, p, second, want)
	w.waitPipeline(t, p, second, "failed")
	w.sideBySide(t, p, provider, names, first, second, third)
}

// provider makes a Provider of type gitlab and an Alert for all Kustomizations
// of the namespace, and returns how the names of its statuses end.
func (w reporting) provider(t *testing.T, p *e2e.Project) string {
	t.Helper()
	named := metav1.ObjectMeta{Name: "forge-" + p.Path[len("team/"):], Namespace: w.ns}
	provider := &notificationv1beta3.Provider{ObjectMeta: named, Spec: notificationv1beta3.ProviderSpec{
		Type: notificationv1beta3.GitLabProvider, Address: p.URL,
		SecretRef: &meta.LocalObjectReference{Name: named.Name}, CertSecretRef: &meta.LocalObjectReference{Name: "forge"},
	}}
	create(t, w.Forge,
		&corev1.Secret{ObjectMeta: named, StringData: map[string]string{"token": w.Token}}, provider,
		&notificationv1beta3.Alert{ObjectMeta: named, Spec: notificationv1beta3.AlertSpec{
			ProviderRef:  meta.LocalObjectReference{Name: named.Name},
			EventSources: []notificationv1.CrossNamespaceObjectReference{{Kind: "Kustomization", Name: "*"}},
		}},
	)
	return fmt.Sprintf("%.8s", provider.UID)
}

// sideBySide holds what Flux's Provider posted last of each Kustomization and
// commit against the job: never has one succeeded where the other failed. Only
// of what Flux does not wait for may the job know better.
func (w reporting) sideBySide(t *testing.T, p *e2e.Project, provider string, names []string, commits ...string) {
	t.Helper()
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		var lines, silent []string
		for n, commit := range commits {
			jobs, err := w.statuses(ctx, p, commit, "deploy")
			if err != nil {
				return err
			}
			posted, err := w.statuses(ctx, p, commit, "external")
			if err != nil {
				return err
			}
			last := map[string]string{}
			for _, s := range posted {
				// Flux tells of a dependency as of a success.
				if s.Description != "dependency not ready" {
					last[s.Name] = s.Status
				}
			}
			for _, name := range names {
				i := slices.IndexFunc(jobs, func(s status) bool { return s.Name == w.jobOf(name) })
				if i < 0 {
					return fmt.Errorf("no job of %s on %.8s", name, commit)
				}
				ours, theirs := jobs[i].Status, last[fmt.Sprintf("kustomization/%s/%s", name, provider)]
				switch {
				case theirs == "":
					silent = append(silent, fmt.Sprintf("%s of commit %d (%s)", name, n+1, ours))
				case ours == theirs, ours == "canceled", name == "unwaited" && ours == "failed":
				default:
					return fmt.Errorf("%s of commit %d is %s by us, and %s by Flux: %+v", name, n+1, ours, theirs, posted)
				}
				lines = append(lines, fmt.Sprintf("%s/%s", ours, theirs))
			}
		}
		if len(silent) == len(lines) {
			return fmt.Errorf("Flux posted nothing")
		}
		t.Logf("%d jobs agree with Flux's statuses; Flux told nothing of %d: %v", len(lines)-len(silent), len(silent), silent)
		return nil
	})
}

// mayApplyConfigMaps makes a ServiceAccount for Flux to apply with.
func (w reporting) mayApplyConfigMaps(t *testing.T, name string) {
	t.Helper()
	named := metav1.ObjectMeta{Name: name, Namespace: w.ns}
	create(t, w.Forge,
		&corev1.ServiceAccount{ObjectMeta: named},
		&rbacv1.Role{ObjectMeta: named, Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"*"}}}},
		&rbacv1.RoleBinding{
			ObjectMeta: named, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: name, Namespace: w.ns}},
		},
	)
}

// waitReady waits until Flux says that a Kustomization is ready with a commit.
func (w reporting) waitReady(t *testing.T, commit, name string) {
	t.Helper()
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		k := &kustomizev1.Kustomization{}
		if err := w.Cluster.Client.Get(ctx, client.ObjectKey{Namespace: w.ns, Name: name}, k); err != nil {
			return err
		}
		if !readyWith(k, commit) {
			return fmt.Errorf("%s is not ready with %.8s: %+v", name, commit, k.Status)
		}
		return nil
	})
}

func readyWith(k *kustomizev1.Kustomization, commit string) bool {
	return (strings.HasSuffix(k.Status.LastAppliedRevision, ":"+commit) || strings.HasSuffix(k.Status.LastAppliedOriginRevision, ":"+commit)) && k.Status.ObservedGeneration == k.Generation &&
		slices.ContainsFunc(k.Status.Conditions, func(c metav1.Condition) bool {
			return c.Type == meta.ReadyCondition && c.Status == metav1.ConditionTrue
		})
}

func (w reporting) waitPipeline(t *testing.T, p *e2e.Project, commit, state string) {
	t.Helper()
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		var list []struct{ Status, Source, Ref string }
		if err := w.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/pipelines?sha=%s", p.ID, commit), nil, &list); err != nil {
			return err
		}
		if len(list) != 1 || list[0].Status != state || list[0].Source != "external" || list[0].Ref != "main" {
			return fmt.Errorf("the pipelines of %.8s are %+v, want one that is %s", commit, list, state)
		}
		return nil
	})
}

// superseded pushes two commits while Flux does not look: the first is never
// applied, and its job says why.
func (w reporting) superseded(t *testing.T) {
	p := w.project("overtaken")
	first := p.Push("main", map[string]string{"overtaken/a.yaml": e2e.ConfigMap("a", "1")["deploy/a.yaml"]})
	source := w.Source(w.ns, "overtaken", p, e2e.Branch("main"))
	w.apply(t, sourcev1.GitRepositoryKind, "overtaken", "overtaken")
	w.waitJobs(t, p, first, map[string]outcome{"overtaken": {state: "success"}})
	suspend := func(yes bool) {
		t.Helper()
		text := fmt.Appendf(nil, `{"spec":{"suspend":%v}}`, yes)
		if err := w.Cluster.Client.Patch(t.Context(), source, client.RawPatch("application/merge-patch+json", text)); err != nil {
			t.Fatal(err)
		}
	}
	suspend(true)
	second := p.Push("main", map[string]string{"overtaken/a.yaml": e2e.ConfigMap("a", "2")["deploy/a.yaml"]})
	w.waitJobs(t, p, second, map[string]outcome{"overtaken": {state: "pending"}})
	third := p.Push("main", map[string]string{"overtaken/a.yaml": e2e.ConfigMap("a", "3")["deploy/a.yaml"]})
	suspend(false)
	w.waitJobs(t, p, third, map[string]outcome{"overtaken": {state: "success"}})
	w.waitJobs(t, p, second, map[string]outcome{"overtaken": {"canceled", third[:8]}})
	w.waitJobs(t, p, first, map[string]outcome{"overtaken": {state: "success"}})
}

// speed prints how long after Flux is ready its commit says so, of a source of
// a kind.
func (w reporting) speed(t *testing.T, kind string) {
	name := strings.ToLower(kind)
	p, image := w.project(name), w.Image("team/"+name+"/app")
	push := func(value int) (commit string) {
		files := map[string]string{name + "/a.yaml": e2e.ConfigMap(name, fmt.Sprint(value))["deploy/"+name+".yaml"]}
		commit = p.Push("main", files)
		if kind == sourcev1.OCIRepositoryKind {
			image.Push("latest", w.Manifests(files, commit))
		}
		return commit
	}
	commit := push(0)
	if kind == sourcev1.OCIRepositoryKind {
		w.imageSource(name, p, image)
	} else {
		w.Source(w.ns, name, p, e2e.Branch("main"))
	}
	w.apply(t, kind, name, name)
	w.waitJobs(t, p, commit, map[string]outcome{name: {state: "success"}})

	watch, err := w.Cluster.Client.Watch(t.Context(), &kustomizev1.KustomizationList{}, client.InNamespace(w.ns), client.MatchingFields{"metadata.name": name})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	var took []time.Duration
	for i := range 12 {
		commit := push(i + 1)
		var ready time.Time
		for ready.IsZero() {
			select {
			case e := <-watch.ResultChan():
				if k, ok := e.Object.(*kustomizev1.Kustomization); ok && readyWith(k, commit) {
					ready = time.Now()
				}
			case <-time.After(soon):
				t.Fatalf("Flux is not ready with %.8s", commit)
			}
		}
		w.waitJobs(t, p, commit, map[string]outcome{name: {state: "success"}})
		var list []struct {
			State, Applier string
			ReportedAt     time.Time `json:"reported_at"`
		}
		w.Call(http.MethodGet, fmt.Sprintf("projects/%d/rollouts?sha=%s", p.ID, commit), nil, &list)
		if len(list) != 1 || list[0].State != "success" || list[0].Applier != "Kustomization/"+w.ns+"/"+name {
			t.Fatalf("the rollouts of %.8s are %+v", commit, list)
		}
		took = append(took, list[0].ReportedAt.Sub(ready))
	}
	slices.Sort(took)
	t.Logf("%s: from Flux being ready to the commit saying so: p50 %s, max %s of %d", kind,
		took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond), len(took))
}

// imageSource makes a source of a private project's image, and what it may be
// pulled with.
func (w reporting) imageSource(name string, p *e2e.Project, image *e2e.Image) {
	username, token := p.DeployToken("read_registry")
	w.PullSecret(w.ns, "pull-"+name, username, token)
	w.ImageSource(w.ns, name, image, nil, func(o *sourcev1.OCIRepository) {
		o.Spec.SecretRef = &meta.LocalObjectReference{Name: "pull-" + name}
	})
}

// artifacts deploys commits by artifacts that say of which commit they are.
func (w reporting) artifacts(t *testing.T) {
	p := w.project("packed")
	image := w.Image("team/packed/app")
	push := func(text string) string {
		t.Helper()
		files := map[string]string{"app/manifest.yaml": text}
		commit := p.Push("main", files)
		image.Push("latest", w.Manifests(files, commit))
		return commit
	}
	good := func(value string) string { return e2e.ConfigMap("app", value)["deploy/app.yaml"] }
	first := push(good("1"))
	w.imageSource("packed", p, image)
	w.apply(t, sourcev1.OCIRepositoryKind, "packed", "app")
	w.waitJobs(t, p, first, map[string]outcome{"app": {state: "success"}})
	w.deployed(t, p, "test/"+w.ns, first, "/kustomizations/app")
	second := push("apiVersion: v1\nkind: NoSuchKind\nmetadata: {name: app}\n")
	w.waitJobs(t, p, second, map[string]outcome{"app": {"failed", "NoSuchKind"}})
	third := push(good("3"))
	w.waitJobs(t, p, third, map[string]outcome{"app": {state: "success"}})
	w.waitJobs(t, p, second, map[string]outcome{"app": {"failed", "NoSuchKind"}})
	w.deployed(t, p, "test/"+w.ns, third, "/kustomizations/app")
}
