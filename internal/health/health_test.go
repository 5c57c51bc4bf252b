package health_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"tidelock.dev"

	"tidelock.dev/internal/health"
)

const (
	owner = "Kustomization/flux-system/apps"
	other = "Kustomization/flux-system/infra"
)

var web = ref("apps/v1", "Deployment", "shop", "web")

// A workload and what has no status; each is looked at in its own way.
func TestHealth(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put(t, deployment("shop", "web", 1, 1))
	c.put(t, `{apiVersion: v1, kind: ConfigMap, metadata: {namespace: shop, name: settings}}`)
	c.put(t, `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: "shop:reader"}}`)
	c.put(t, `{apiVersion: example.org/v1, kind: Widget, metadata: {namespace: shop, name: w, generation: 1}, status: {conditions: [{type: Ready, status: "True"}]}}`)
	f := follow(t, c)
	f.Follow(owner, []health.Ref{
		web,
		ref("v1", "ConfigMap", "shop", "settings"),
		ref("rbac.authorization.k8s.io/v1", "ClusterRole", "", "shop:reader"),
		ref("example.org/v1beta1", "Widget", "shop", "w"), // a version of before
	})
	if r := f.settledAs(t, owner, tidelock.HealthHealthy); r.Objects != 4 || r.Healthy != 4 || len(r.Unhealthy) != 0 {
		t.Errorf("got %+v, want four healthy objects", r)
	}
	until(t, func() bool { return f.metric(t, "tidelock_agent_health_watches") == 4 }, "a watch for each kind")
	if objects, reads := f.metric(t, "tidelock_agent_health_objects"), f.metric(t, "tidelock_agent_health_reads_total"); objects != 4 || reads != 2 {
		t.Errorf("%v objects counted and %v reads, want 4 and, of those with a status, 2", objects, reads)
	}

	c.put(t, deployment("shop", "web", 2, 0))
	r := f.settledAs(t, owner, tidelock.HealthProgressing)
	if len(r.Unhealthy) != 1 || r.Unhealthy[0].String() != "apps/Deployment shop/web" || r.Unhealthy[0].Reason != "LessAvailable" {
		t.Errorf("got %+v, want the Deployment alone, with a reason", r.Unhealthy)
	}
	c.put(t, deployment("shop", "web", 2, 1))
	f.settledAs(t, owner, tidelock.HealthHealthy)

	for _, resource := range []string{"configmaps", "clusterroles"} {
		if n := c.asked("get "+resource) + c.asked("list whole "+resource) + c.asked("watch whole "+resource); n > 0 {
			t.Errorf("%s were read %d times, want their metadata watched and no more", resource, n)
		}
	}
	if n := c.asked("list whole deployments") + c.asked("watch whole deployments"); n > 0 {
		t.Errorf("whole Deployments were listed or watched %d times", n)
	}
}

func TestHealthOfNobody(t *testing.T) {
	t.Parallel()
	f := follow(t, newCluster(t))
	if r := f.Health("nobody"); r.Health != tidelock.HealthUnknown || r.Settled {
		t.Errorf("got %+v, want unknown and not settled", r)
	}
	f.Follow(owner, nil)
	f.settledAs(t, owner, tidelock.HealthHealthy)
	f.Refresh("nobody")
	f.Forget("nobody")
}

func TestMissing(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct{ ref, yaml, path string }{
		{"v1/ConfigMap", `{apiVersion: v1, kind: ConfigMap, metadata: {namespace: shop, name: x}}`, "v1/configmaps"},
		{"example.org/v1/Widget", `{apiVersion: example.org/v1, kind: Widget, metadata: {namespace: shop, name: x}}`, "example.org/v1/widgets"},
	} {
		t.Run(kind.path, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			f := follow(t, c)
			i := strings.LastIndex(kind.ref, "/")
			x := ref(kind.ref[:i], kind.ref[i+1:], "shop", "x")
			f.Follow(owner, []health.Ref{x})
			r := f.settledAs(t, owner, tidelock.HealthMissing)
			if r.Unhealthy[0].Reason != health.ReasonNotFound {
				t.Errorf("got %+v, want %s", r.Unhealthy, health.ReasonNotFound)
			}
			for range 3 { // it comes, and is made anew
				c.put(t, kind.yaml)
				f.settledAs(t, owner, tidelock.HealthHealthy)
				c.remove(kind.path, "shop", "x")
				f.settledAs(t, owner, tidelock.HealthMissing)
			}
			c.put(t, strings.Replace(kind.yaml, "name: x", "name: x, deletionTimestamp: 2026-01-01T00:00:00Z, finalizers: [example.org/keep]", 1))
			r = f.settledAs(t, owner, tidelock.HealthProgressing)
			if got := r.Unhealthy[0]; got.Reason != health.ReasonTerminating || !strings.Contains(got.Message, "example.org/keep") {
				t.Errorf("got %+v, want %s and the finalizer", got, health.ReasonTerminating)
			}
		})
	}
}

// A Job that has ended well may be removed, and is well then.
func TestFinishedJobRemoved(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	job := ref("batch/v1", "Job", "shop", "migrate")
	f := follow(t, c)
	f.Follow(owner, []health.Ref{job})
	f.settledAs(t, owner, tidelock.HealthUnknown) // who knows whether it ran

	const text = `{apiVersion: batch/v1, kind: Job, metadata: {namespace: shop, name: migrate}, status: {startTime: "2026-01-01T00:00:00Z"%s}}`
	c.put(t, fmt.Sprintf(text, ", active: 1"))
	r := f.settledAs(t, owner, tidelock.HealthProgressing)
	if r.Unhealthy[0].Reason != health.ReasonJobRunning {
		t.Errorf("got %+v, want %s", r.Unhealthy, health.ReasonJobRunning)
	}
	c.put(t, fmt.Sprintf(text, `, succeeded: 1, conditions: [{type: Complete, status: "True"}]`))
	f.settledAs(t, owner, tidelock.HealthHealthy)
	c.remove("batch/v1/jobs", "shop", "migrate")
	c.put(t, `{apiVersion: batch/v1, kind: Job, metadata: {namespace: shop, name: sign}}`)
	f.Follow(owner, []health.Ref{job, ref("batch/v1", "Job", "shop", "sign")})
	r = f.wait(t, owner, func(r health.Report) bool { return r.Settled && r.Objects == 2 })
	if r.Healthy != 1 {
		t.Errorf("got %+v, want the Job that is over to be healthy", r)
	}
}

func TestOwners(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for _, name := range []string{"web", "api", "db"} {
		c.put(t, deployment("shop", name, 1, 1))
	}
	api, db := ref("apps/v1", "Deployment", "shop", "api"), ref("apps/v1", "Deployment", "shop", "db")
	f := follow(t, c)
	f.Follow(owner, []health.Ref{web, api, web}) // twice, as an inventory with two versions has it
	f.Follow(other, []health.Ref{api, db})
	if r := f.settledAs(t, owner, tidelock.HealthHealthy); r.Objects != 2 {
		t.Errorf("got %d objects, want 2: one was named twice", r.Objects)
	}
	f.settledAs(t, other, tidelock.HealthHealthy)

	c.put(t, deployment("shop", "api", 2, 0))
	f.settledAs(t, owner, tidelock.HealthProgressing)
	f.settledAs(t, other, tidelock.HealthProgressing)

	f.Follow(other, []health.Ref{db})
	f.settledAs(t, other, tidelock.HealthHealthy)
	if r := f.Health(owner); r.Health != tidelock.HealthProgressing {
		t.Errorf("got %+v, want what the first owner still follows", r)
	}
	f.Forget(owner)
	if r := f.Health(owner); r.Settled || r.Objects != 0 {
		t.Errorf("got %+v of a forgotten owner", r)
	}
	c.put(t, deployment("shop", "db", 2, 0))
	f.settledAs(t, other, tidelock.HealthProgressing)

	f.Forget(other)
	until(t, func() bool { return c.watched("apps/v1/deployments", "") == 0 }, "the watch to end with the last who needs it")
	f.Follow(other, []health.Ref{api})
	f.settledAs(t, other, tidelock.HealthProgressing)
}

// Secrets are asked for by name, and nothing but that.
func TestSecrets(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put(t, `{apiVersion: v1, kind: Secret, metadata: {namespace: shop, name: key}, data: {key: c2VjcmV0}}`)
	f := follow(t, c)
	key, gone := ref("v1", "Secret", "shop", "key"), ref("v1", "Secret", "shop", "gone")
	f.Follow(owner, []health.Ref{key})
	f.settledAs(t, owner, tidelock.HealthHealthy)
	f.Follow(other, []health.Ref{gone})
	f.settledAs(t, other, tidelock.HealthMissing)

	c.setRefuse(func(verb, path, _ string) int {
		if path == "v1/secrets" {
			return http.StatusForbidden
		}
		return 0
	})
	f.Refresh(other)
	f.settledAs(t, other, tidelock.HealthHealthy)
	for _, verb := range []string{"list", "watch", "get whole", "list whole"} {
		if n := c.asked(verb + " secrets"); n > 0 {
			t.Errorf("%s secrets: asked %d times", verb, n)
		}
	}
}

// What was applied is looked at anew, even if the watch has told of nothing.
func TestRefresh(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put(t, deployment("shop", "web", 1, 1))
	f := follow(t, c)
	f.Follow(owner, []health.Ref{web})
	f.settledAs(t, owner, tidelock.HealthHealthy)

	c.setRefuse(func(verb, _, _ string) int {
		if verb == "watch" || verb == "list" {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	c.cut()
	c.put(t, deployment("shop", "web", 2, 0))
	f.Refresh(owner)
	if f.Health(owner).Settled && f.Health(owner).Health == tidelock.HealthHealthy {
		t.Error("settled and healthy before anything was looked at")
	}
	f.settledAs(t, owner, tidelock.HealthProgressing)
}

func TestForbidden(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put(t, deployment("shop", "web", 1, 1))
	c.put(t, deployment("bank", "web", 1, 1))
	allowed := map[string]bool{"shop": true}
	c.setRefuse(func(verb, path, namespace string) int {
		if verb == "discover" || allowed[namespace] {
			return 0
		}
		return http.StatusForbidden
	})
	f := follow(t, c)
	f.Follow(owner, []health.Ref{web})
	f.settledAs(t, owner, tidelock.HealthHealthy)
	if c.watched("apps/v1/deployments", "shop") != 1 {
		t.Error("the one namespace that may be watched is not")
	}
	f.Follow(other, []health.Ref{ref("apps/v1", "Deployment", "bank", "web"), ref("rbac.authorization.k8s.io/v1", "ClusterRole", "", "x")})
	r := f.wait(t, other, func(r health.Report) bool { return r.Settled && len(r.Unhealthy) == 2 })
	for _, o := range r.Unhealthy {
		if o.Health != tidelock.HealthUnknown || o.Reason != health.ReasonForbidden {
			t.Errorf("got %+v, want unknown because forbidden", o)
		}
	}
	f.settledAs(t, owner, tidelock.HealthHealthy)

	c.mu.Lock()
	allowed["bank"], allowed[""] = true, true
	c.mu.Unlock()
	r = f.wait(t, other, func(r health.Report) bool { return r.Settled && r.Healthy == 1 })
	c.put(t, `{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: x}}`)
	f.settledAs(t, other, tidelock.HealthHealthy)

	f.Forget(owner)
	until(t, func() bool { return c.watched("apps/v1/deployments", "shop") == 0 }, "the watch of a namespace to end")
}

func TestWatchInterrupted(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name      string
		interrupt func(*cluster)
	}{
		{"connections broken", func(c *cluster) { c.cut() }},
		{"history gone", func(c *cluster) { c.forget() }},
		{"history gone while away", func(c *cluster) { c.cut(); c.forget() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.put(t, deployment("shop", "web", 1, 1))
			c.put(t, `{apiVersion: v1, kind: ConfigMap, metadata: {namespace: shop, name: a}}`)
			c.put(t, `{apiVersion: v1, kind: ConfigMap, metadata: {namespace: shop, name: b}}`)
			f := follow(t, c)
			f.Follow(owner, []health.Ref{web, ref("v1", "ConfigMap", "shop", "a"), ref("v1", "ConfigMap", "shop", "b")})
			f.settledAs(t, owner, tidelock.HealthHealthy)

			down := true
			c.setRefuse(func(string, string, string) int {
				if down {
					return http.StatusServiceUnavailable
				}
				return 0
			})
			c.put(t, deployment("shop", "web", 2, 0))
			c.remove("v1/configmaps", "shop", "b")
			test.interrupt(c)
			c.mu.Lock()
			down = false
			c.mu.Unlock()
			f.wait(t, owner, func(r health.Report) bool { return r.Settled && r.Healthy == 1 && len(r.Unhealthy) == 2 })

			c.put(t, deployment("shop", "web", 2, 1))
			c.put(t, `{apiVersion: v1, kind: ConfigMap, metadata: {namespace: shop, name: b}}`)
			f.settledAs(t, owner, tidelock.HealthHealthy)
		})
	}
}

// A kind goes with its definition, and comes back with it.
func TestKindRemoved(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const widget = `{apiVersion: example.org/v1, kind: Widget, metadata: {namespace: shop, name: %s}}`
	c.put(t, fmt.Sprintf(widget, "w"))
	f := follow(t, c)
	f.Follow(owner, []health.Ref{ref("example.org/v1", "Widget", "shop", "w")})
	f.settledAs(t, owner, tidelock.HealthHealthy)

	served := false
	c.setRefuse(func(verb, path, _ string) int {
		if !served && strings.HasPrefix(path, "example.org/v1") {
			return http.StatusNotFound
		}
		return 0
	})
	c.remove("example.org/v1/widgets", "shop", "w")
	c.cut()
	f.wait(t, owner, func(r health.Report) bool {
		return r.Settled && len(r.Unhealthy) == 1 && r.Unhealthy[0].Reason == health.ReasonNoKind
	})
	c.mu.Lock()
	served = true
	c.mu.Unlock()
	c.put(t, fmt.Sprintf(widget, "w"))
	c.put(t, fmt.Sprintf(widget, "v"))
	// Whoever brings more of a kind has it looked for at once.
	f.Follow(other, []health.Ref{ref("example.org/v1", "Widget", "shop", "v")})
	f.settledAs(t, owner, tidelock.HealthHealthy)
}

// What nobody can have applied asks for no odd paths, and breaks nothing.
func TestOddRefs(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	f := follow(t, c)
	f.Follow(owner, []health.Ref{
		{Group: "../../api", Version: "v1", Kind: "Secret", Namespace: "x", Name: "y"},
		{Group: "example.org", Version: "../v1", Kind: "Nothing", Namespace: "x", Name: "y"},
		{Group: "example.org", Version: "v1", Kind: "Widget", Namespace: "x", Name: "../y"},
		{Group: "", Version: "v1", Kind: "Secret", Namespace: "x", Name: "../../y"},
		{},
	})
	r := f.wait(t, owner, func(r health.Report) bool { return r.Settled })
	if r.Healthy > 0 || r.Objects != 5 {
		t.Errorf("got %+v, want five objects and none of them healthy", r)
	}
}

// A Report names some objects, the worst of them first, and counts all.
func TestReportBounded(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var refs []health.Ref
	for i := range 40 {
		name := fmt.Sprintf("web-%02d", i)
		c.put(t, deployment("shop", name, 2, 0))
		refs = append(refs, ref("apps/v1", "Deployment", "shop", name))
	}
	c.put(t, deployment("shop", "well", 1, 1))
	c.put(t, strings.Replace(deployment("shop", "worst", 1, 0), "reason: NewReplicaSetAvailable", "reason: ProgressDeadlineExceeded", 1))
	refs = append(refs, ref("apps/v1", "Deployment", "shop", "well"), ref("apps/v1", "Deployment", "shop", "worst"))
	f := follow(t, c)
	f.Follow(owner, refs)
	r := f.settledAs(t, owner, tidelock.HealthFailed)
	if r.Objects != 42 || r.Healthy != 1 || len(r.Unhealthy) != 20 {
		t.Fatalf("got %d objects, %d healthy, %d named; want 42, 1, 20", r.Objects, r.Healthy, len(r.Unhealthy))
	}
	if r.Unhealthy[0].Name != "worst" || r.Unhealthy[1].Name != "web-00" || r.Unhealthy[19].Name != "web-18" {
		t.Errorf("got %v, want the worst first and the others in order", r.Unhealthy)
	}
}

// A list comes in pages, and says all about what is there; what has a status
// is read meanwhile.
func TestLargeList(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var maps, widgets []health.Ref
	for i := range 1200 { // more than two pages
		name := fmt.Sprintf("x-%04d", i)
		c.put(t, fmt.Sprintf(`{apiVersion: v1, kind: ConfigMap, metadata: {namespace: shop, name: %s}}`, name))
		c.put(t, fmt.Sprintf(`{apiVersion: example.org/v1, kind: Widget, metadata: {namespace: shop, name: %s}}`, name))
		maps = append(maps, ref("v1", "ConfigMap", "shop", name))
		widgets = append(widgets, ref("example.org/v1", "Widget", "shop", name))
	}
	f := follow(t, c)
	f.Follow(owner, maps)
	f.Follow(other, widgets)
	f.settledAs(t, owner, tidelock.HealthHealthy)
	f.settledAs(t, other, tidelock.HealthHealthy)
	if n := c.asked("list configmaps"); n != 3 {
		t.Errorf("listed %d times, want three pages and none of the objects again", n)
	}
	if n := c.asked("get widgets"); n != 1200 {
		t.Errorf("read %d times, want once each", n)
	}
}
