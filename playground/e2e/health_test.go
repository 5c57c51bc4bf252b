package e2e_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
	"tidelock.dev"

	"tidelock.dev/internal/health"
	"tidelock.dev/playground/e2e"
)

// healthOf runs a Watcher with the rights of kube.
func healthOf(t *testing.T, kube *rest.Config) *health.Watcher {
	t.Helper()
	w, err := health.New(health.Config{
		REST: kube, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Notify: func(string) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var group sync.WaitGroup
	group.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		group.Wait()
	})
	return w
}

// awaitHealth waits until a report is settled and as wanted.
func awaitHealth(t *testing.T, w *health.Watcher, owner string, good func(health.Report) bool) (r health.Report) {
	t.Helper()
	e2e.Eventually(t, 30*time.Second, func(context.Context) error {
		if r = w.Health(owner); !r.Settled || !good(r) {
			return fmt.Errorf("%s is %+v", owner, r)
		}
		return nil
	})
	return r
}

func isHealthy(r health.Report) bool { return r.Health == tidelock.HealthHealthy }

// bring applies manifests in a namespace and returns what names them.
func bring(t *testing.T, c *e2e.System, ns, manifests string) (refs []health.Ref) {
	t.Helper()
	for _, text := range strings.Split(manifests, "\n---\n") {
		var object unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(text), &object.Object); err != nil {
			t.Fatalf("%v in:\n%s", err, text)
		}
		gvk := object.GroupVersionKind()
		if gvk.Kind != "CustomResourceDefinition" {
			object.SetNamespace(ns)
		}
		e2e.Eventually(t, 10*time.Second, func(ctx context.Context) error { // a kind may be new
			return c.Client.Patch(ctx, &object, client.Apply, client.FieldOwner("test"), client.ForceOwnership) //nolint:staticcheck // of unstructured objects
		})
		refs = append(refs, health.Ref{
			Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind, Namespace: object.GetNamespace(), Name: object.GetName(),
		})
	}
	return refs
}

// workload is a Deployment, or the like, with something more in its pods.
func workload(kind, more string) string {
	spec := "replicas: 1"
	switch kind {
	case "StatefulSet":
		spec += ", serviceName: web"
	case "DaemonSet":
		spec = "updateStrategy: {type: RollingUpdate}"
	}
	return fmt.Sprintf(`{apiVersion: apps/v1, kind: %s, metadata: {name: web}, spec: {%s, selector: {matchLabels: {app: web}}, template: {%s}}}`, kind, spec, more)
}

// played is a pod whose state KWOK plays: there is no kubelet here.
func played(plays, reason, message string) string {
	return fmt.Sprintf(`metadata: {labels: {app: web, playground.tidelock.dev/plays: %s}, annotations: {playground.tidelock.dev/reason: %q, playground.tidelock.dev/message: %q}},
  spec: {containers: [{name: app, image: "example.org/web:1"}]}`, plays, reason, message)
}

const ordinary = `metadata: {labels: {app: web}}, spec: {containers: [{name: app, image: "example.org/web:1"}]}`

// What keeps workloads from being well is named, whoever says so: real
// controllers, the scheduler and admission, and, where the name of a case has
// "played", KWOK in place of a kubelet.
func TestHealthNamesCauses(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	w := healthOf(t, c.REST())
	for _, test := range []struct {
		name      string
		before    string // manifests that are in the namespace already
		labels    map[string]string
		manifests string
		want      tidelock.Health
		reason    string
		says      string
		pod       bool
	}{
		{name: "image, played", manifests: workload("Deployment", played("waiting", "ImagePullBackOff", "manifest for example.org/web:1 not found")),
			want: tidelock.HealthProgressing, reason: health.ReasonImagePullBackOff, says: "manifest for example.org/web:1 not found", pod: true},
		{name: "crash, played", manifests: workload("StatefulSet", played("crashing", "OOMKilled", "")),
			want: tidelock.HealthProgressing, reason: health.ReasonCrashLoop, says: "exit code 137 (OOMKilled)", pod: true},
		{name: "configuration, played", manifests: workload("DaemonSet", played("waiting", "CreateContainerConfigError", `secret "key" not found`)),
			want: tidelock.HealthProgressing, reason: health.ReasonConfigMissing, says: `secret "key" not found`, pod: true},
		{name: "probe, played", manifests: workload("Deployment", played("unready", "", "")),
			want: tidelock.HealthProgressing, reason: health.ReasonProbe, says: "container app", pod: true},
		{name: "quota of a Deployment",
			before:    `{apiVersion: v1, kind: ResourceQuota, metadata: {name: small}, spec: {hard: {pods: "0"}}}`,
			manifests: workload("Deployment", ordinary), want: tidelock.HealthProgressing, reason: health.ReasonQuota, says: "exceeded quota: small"},
		{name: "quota of a StatefulSet",
			before:    `{apiVersion: v1, kind: ResourceQuota, metadata: {name: small}, spec: {hard: {pods: "0"}}}`,
			manifests: workload("StatefulSet", ordinary), want: tidelock.HealthProgressing, reason: health.ReasonQuota, says: "exceeded quota: small"},
		{name: "quota of a Job",
			before:    `{apiVersion: v1, kind: ResourceQuota, metadata: {name: small}, spec: {hard: {pods: "0"}}}`,
			manifests: `{apiVersion: batch/v1, kind: Job, metadata: {name: web}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: app, image: "example.org/web:1"}]}}}}`,
			want:      tidelock.HealthProgressing, reason: health.ReasonQuota, says: "exceeded quota: small"},
		{name: "limit range",
			before: `{apiVersion: v1, kind: LimitRange, metadata: {name: small}, spec: {limits: [{type: Container, max: {memory: 1Mi}}]}}`,
			manifests: workload("Deployment", `metadata: {labels: {app: web}}, spec: {containers: [{name: app, image: "example.org/web:1",
			  resources: {requests: {memory: 1Gi}, limits: {memory: 1Gi}}}]}`),
			want: tidelock.HealthProgressing, reason: health.ReasonLimitRange, says: "memory"},
		{name: "pod security", labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
			manifests: workload("Deployment", ordinary), want: tidelock.HealthProgressing, reason: health.ReasonPodSecurity, says: "restricted"},
		{name: "no node", manifests: workload("Deployment", `metadata: {labels: {app: web}}, spec: {nodeSelector: {disk: none}, containers: [{name: app, image: x}]}`),
			want: tidelock.HealthProgressing, reason: health.ReasonUnschedulable, says: "node", pod: true},
		{name: "service account missing", manifests: workload("StatefulSet", `metadata: {labels: {app: web}}, spec: {serviceAccountName: nobody, containers: [{name: app, image: x}]}`),
			want: tidelock.HealthProgressing, reason: health.ReasonFailedCreate, says: `serviceaccount "nobody" not found`},
		{name: "volume unbound",
			manifests: `{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], storageClassName: none, resources: {requests: {storage: 1Gi}}}}`,
			want:      tidelock.HealthProgressing, reason: health.ReasonUnbound, says: `"none" not found`},
		{name: "paused", manifests: `{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {paused: true, selector: {matchLabels: {app: web}}, template: {` + ordinary + `}}}`,
			want: tidelock.HealthProgressing, reason: health.ReasonPaused, says: "spec.paused"},
		{name: "all well", manifests: strings.Join([]string{
			workload("Deployment", ordinary),
			`{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}}`,
			`{apiVersion: v1, kind: Secret, metadata: {name: key}}`,
			`{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80}]}}`,
			`{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: web}, spec: {defaultBackend: {service: {name: web, port: {number: 80}}}}}`,
			`{apiVersion: autoscaling/v2, kind: HorizontalPodAutoscaler, metadata: {name: web}, spec: {maxReplicas: 2, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}}`,
			`{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: web}, spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}}`,
			`{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: "web:reader"}}`,
			`{apiVersion: batch/v1, kind: CronJob, metadata: {name: web}, spec: {schedule: "0 0 1 1 *", jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: app, image: x}]}}}}}}`,
			`{apiVersion: batch/v1, kind: Job, metadata: {name: web}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: app, image: x}]}}}}`,
		}, "\n---\n"), want: tidelock.HealthHealthy},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ns := c.Namespace(t)
			if test.labels != nil {
				patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"labels":{%q:%q}}}`,
					"pod-security.kubernetes.io/enforce", test.labels["pod-security.kubernetes.io/enforce"]))
				if err := c.Client.Patch(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, patch); err != nil {
					t.Fatal(err)
				}
			}
			if test.before != "" {
				bring(t, c, ns, test.before)
			}
			refs := bring(t, c, ns, test.manifests)
			w.Follow(ns, refs)
			defer w.Forget(ns)
			r := awaitHealth(t, w, ns, func(r health.Report) bool {
				if test.reason == "" {
					return r.Health == test.want
				}
				return len(r.Unhealthy) == 1 && r.Unhealthy[0].Reason == test.reason && strings.Contains(r.Unhealthy[0].Message, test.says)
			})
			if r.Objects != len(refs) {
				t.Errorf("got %d objects, want %d", r.Objects, len(refs))
			}
			if test.reason == "" {
				return
			}
			if got := r.Unhealthy[0]; got.Health != test.want || (got.Pod != "") != test.pod {
				t.Errorf("got %#v, want %s, and a pod: %t", got, test.want, test.pod)
			}
		})
	}
}

// A rollout goes from healthy to healthy by way of what keeps it, and the
// report with it.
func TestHealthOfRollout(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	w := healthOf(t, c.REST())
	refs := bring(t, c, ns, workload("Deployment", ordinary)+"\n---\n"+`{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}}`)
	w.Follow(ns, refs)
	awaitHealth(t, w, ns, isHealthy)

	bring(t, c, ns, workload("Deployment", played("waiting", "ErrImagePull", "denied")))
	w.Refresh(ns)
	if r := w.Health(ns); r.Settled && isHealthy(r) {
		t.Error("settled and healthy, of what was there before")
	}
	r := awaitHealth(t, w, ns, func(r health.Report) bool {
		return len(r.Unhealthy) == 1 && r.Unhealthy[0].Reason == health.ReasonErrImagePull
	})
	var pod corev1.Pod
	if err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: r.Unhealthy[0].Pod}, &pod); err != nil {
		t.Errorf("the pod named: %v", err)
	}

	bring(t, c, ns, workload("Deployment", ordinary))
	w.Refresh(ns)
	awaitHealth(t, w, ns, isHealthy)

	// What somebody deletes is missing until it is brought again.
	if err := c.Client.Delete(t.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "web"}}); err != nil {
		t.Fatal(err)
	}
	if err := c.Client.Delete(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "settings"}}); err != nil {
		t.Fatal(err)
	}
	awaitHealth(t, w, ns, func(r health.Report) bool { return r.Health == tidelock.HealthMissing && len(r.Unhealthy) == 2 })
	bring(t, c, ns, workload("Deployment", ordinary)+"\n---\n"+`{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}}`)
	awaitHealth(t, w, ns, isHealthy)
}

const tide = `{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: tides.health.example.org}, spec: {
  group: health.example.org, scope: Namespaced, names: {kind: Tide, plural: tides, singular: tide, listKind: TideList},
  versions: [{name: v1, served: true, storage: true, subresources: {status: {}},
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}`

// A kind that nobody has heard of comes with its definition, and goes with it.
func TestHealthOfNewKind(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	w := healthOf(t, c.REST())
	high := health.Ref{Group: "health.example.org", Version: "v1", Kind: "Tide", Namespace: ns, Name: "high"}
	w.Follow("early", []health.Ref{high})
	awaitHealth(t, w, "early", func(r health.Report) bool {
		return r.Health == tidelock.HealthMissing && r.Unhealthy[0].Reason == health.ReasonNoKind
	})

	definition := bring(t, c, ns, tide)
	drop := func() error {
		object := &unstructured.Unstructured{}
		object.SetAPIVersion("apiextensions.k8s.io/v1")
		object.SetKind("CustomResourceDefinition")
		object.SetName("tides.health.example.org")
		return c.Client.Delete(context.WithoutCancel(t.Context()), object)
	}
	t.Cleanup(func() { _ = drop() })
	w.Follow("definition", definition)
	awaitHealth(t, w, "definition", isHealthy)

	object := `{apiVersion: health.example.org/v1, kind: Tide, metadata: {name: high}, spec: {metres: 4}}`
	w.Follow(ns, bring(t, c, ns, object))
	awaitHealth(t, w, ns, isHealthy)
	awaitHealth(t, w, "early", isHealthy)

	var live unstructured.Unstructured
	live.SetAPIVersion("health.example.org/v1")
	live.SetKind("Tide")
	live.SetNamespace(ns)
	live.SetName("high")
	status := func(text string) {
		t.Helper()
		if err := c.Client.Status().Patch(t.Context(), &live, client.RawPatch("application/merge-patch+json", []byte(text))); err != nil {
			t.Fatal(err)
		}
	}
	status(`{"status":{"conditions":[{"type":"Ready","status":"False","reason":"Ebb","message":"water\u001b[31m is low"}]}}`)
	r := awaitHealth(t, w, ns, func(r health.Report) bool { return r.Health == tidelock.HealthProgressing })
	if got := r.Unhealthy[0]; got.Reason != "Ebb" || got.Message != "water is low" {
		t.Errorf("got %+v, want the condition's own words, printable", got)
	}
	status(`{"status":{"conditions":[{"type":"Stalled","status":"True","reason":"Dry","message":"no sea"}]}}`)
	awaitHealth(t, w, ns, func(r health.Report) bool { return r.Health == tidelock.HealthFailed })

	if err := drop(); err != nil {
		t.Fatal(err)
	}
	awaitHealth(t, w, ns, func(r health.Report) bool { return r.Health == tidelock.HealthMissing })
}

// Whoever may see one namespace only sees what is there; the rest is unknown,
// and not more.
func TestHealthWithFewRights(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	mine, foreign := c.Namespace(t), c.Namespace(t)
	subject := rbacv1.Subject{Kind: rbacv1.UserKind, Name: "health-of-" + mine, APIGroup: rbacv1.GroupName}
	for _, object := range []client.Object{
		&rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: mine, Name: "see"}, Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{"apps"}, Resources: []string{"deployments", "replicasets"}, Verbs: []string{"get", "list", "watch"}},
			{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch"}},
			{APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"list", "watch"}},
		}},
		&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: mine, Name: "see"}, Subjects: []rbacv1.Subject{subject},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "see"}},
	} {
		if err := c.Client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	kube := rest.CopyConfig(c.REST())
	kube.Impersonate = rest.ImpersonationConfig{UserName: subject.Name}
	limited, err := client.New(kube, client.Options{Scheme: e2e.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	e2e.Eventually(t, 10*time.Second, func(ctx context.Context) error { // rights take effect after a moment
		return limited.List(ctx, new(corev1.ConfigMapList), client.InNamespace(mine))
	})
	w := healthOf(t, kube)

	manifests := strings.Join([]string{
		workload("Deployment", ordinary),
		`{apiVersion: v1, kind: ConfigMap, metadata: {name: settings}}`,
		`{apiVersion: v1, kind: Secret, metadata: {name: key}}`,
	}, "\n---\n")
	w.Follow(mine, bring(t, c, mine, manifests))
	w.Follow(foreign, bring(t, c, foreign, manifests))
	awaitHealth(t, w, mine, isHealthy)
	r := awaitHealth(t, w, foreign, func(r health.Report) bool { return r.Health == tidelock.HealthUnknown })
	if r.Healthy != 1 || len(r.Unhealthy) != 2 || r.Unhealthy[0].Reason != health.ReasonForbidden {
		t.Errorf("got %+v, want the Secret taken to be there and the rest unknown because forbidden", r)
	}

	// A new object is found by list: its kind may not be got.
	w.Follow(mine, append(bring(t, c, mine, manifests), bring(t, c, mine, `{apiVersion: v1, kind: ConfigMap, metadata: {name: more}}`)...))
	awaitHealth(t, w, mine, isHealthy)
	bring(t, c, mine, workload("Deployment", played("waiting", "ImagePullBackOff", "denied")))
	awaitHealth(t, w, mine, func(r health.Report) bool {
		return len(r.Unhealthy) == 1 && r.Unhealthy[0].Reason == health.ReasonImagePullBackOff
	})
}
