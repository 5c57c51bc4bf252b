package health_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tidelock.dev"

	"tidelock.dev/internal/health"
)

// until waits for what no report tells.
func until(t testing.TB, good func() bool, what string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !good() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

const (
	oldSet = `{apiVersion: apps/v1, kind: ReplicaSet, metadata: {namespace: shop, name: web-old, uid: uid-old, labels: {app: web},
  annotations: {deployment.kubernetes.io/revision: "0"}, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: uid-web, controller: true}]}}`
	newSet = `{apiVersion: apps/v1, kind: ReplicaSet, metadata: {namespace: shop, name: web-new, uid: uid-new, labels: {app: web},
  annotations: {deployment.kubernetes.io/revision: "1"}, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: uid-web, controller: true}]}}`
)

func pod(name, uid, maker, status string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: %s, uid: %s, labels: {app: web},
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: %s, uid: uid-%s, controller: true}]}, spec: {nodeName: node-1}, status: %s}`,
		name, uid, maker, maker, status)
}

func event(name, kind, about, reason, message, at string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Event, metadata: {namespace: shop, name: %q}, type: Warning, reason: %s, message: %q,
  involvedObject: {kind: %s, namespace: shop, uid: %s}, lastTimestamp: %q}`, name, reason, message, kind, about, at)
}

const crashing = `{phase: Running, containerStatuses: [{name: app, ready: false, restartCount: 4,
  state: {waiting: {reason: CrashLoopBackOff, message: back-off}}, lastState: {terminated: {exitCode: 137, reason: OOMKilled}}}]}`

// A Deployment that is not well is told of by its pods, those of its newest
// ReplicaSet; nobody looks at pods before and after.
func TestPodsOfDeployment(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put(t, deployment("shop", "web", 1, 1))
	c.put(t, oldSet+"\n---\n"+newSet)
	c.put(t, pod("web-old-a", "a", "old", `{phase: Pending, containerStatuses: [{name: app, image: x, state: {waiting: {reason: InvalidImageName}}}]}`))
	c.put(t, pod("web-foreign", "f", "somebody-else", `{phase: Pending, containerStatuses: [{name: app, image: x, state: {waiting: {reason: InvalidImageName}}}]}`))
	c.put(t, pod("web-new-a", "b", "new", `{phase: Running, conditions: [{type: Ready, status: "True"}], containerStatuses: [{name: app, ready: true, state: {running: {}}}]}`))
	c.put(t, pod("web-new-b", "c", "new", crashing))
	f := follow(t, c)
	f.Follow(owner, []health.Ref{web})
	f.settledAs(t, owner, tidelock.HealthHealthy)
	if n := c.asked("list pods") + c.asked("watch pods"); n > 0 {
		t.Errorf("pods were looked at %d times while all was well", n)
	}

	c.put(t, deployment("shop", "web", 2, 0))
	reason := func(want string) health.Report {
		return f.wait(t, owner, func(r health.Report) bool { return len(r.Unhealthy) == 1 && r.Unhealthy[0].Reason == want })
	}
	got := reason(health.ReasonCrashLoop).Unhealthy[0]
	if got.Pod != "web-new-b" || got.Health != tidelock.HealthProgressing || got.Name != "web" {
		t.Errorf("got %+v, want the Deployment, progressing, and its crashing pod", got)
	}
	for _, part := range []string{"app", "137", "OOMKilled", "4"} {
		if !strings.Contains(got.Message, part) {
			t.Errorf("the message %q does not tell of %s", got.Message, part)
		}
	}

	// A change of a pod alone is noticed.
	c.put(t, pod("web-new-b", "c", "new", `{phase: Pending, containerStatuses: [{name: app, image: "r.example/web:2", state: {waiting: {reason: ImagePullBackOff, message: "not found"}}}]}`))
	if got := reason(health.ReasonImagePullBackOff).Unhealthy[0]; !strings.Contains(got.Message, "r.example/web:2") || !strings.Contains(got.Message, "not found") {
		t.Errorf("the message %q does not have the image and the registry's words", got.Message)
	}

	// What runs and is not ready is told of by the kubelet's warning.
	c.put(t, pod("web-new-b", "c", "new", `{phase: Running, conditions: [{type: Ready, status: "False", reason: ContainersNotReady}], containerStatuses: [{name: app, ready: false, started: true, state: {running: {}}}]}`))
	reason(health.ReasonProbe)
	c.put(t, event("web-new-b.1", "Pod", "c", "Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 503", "2026-01-01T00:00:00Z"))
	f.wait(t, owner, func(r health.Report) bool {
		return len(r.Unhealthy) == 1 && strings.Contains(r.Unhealthy[0].Message, "503") && r.Unhealthy[0].Pod == "web-new-b"
	})

	c.put(t, deployment("shop", "web", 2, 1))
	f.settledAs(t, owner, tidelock.HealthHealthy)
	until(t, func() bool { return c.watched("v1/pods", "shop")+c.watched("v1/events", "shop") == 0 }, "the watches on pods and events to end")
}

// Nobody is told for sure before the pods may be seen, nor is anything broken.
func TestPodsForbidden(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.setRefuse(func(_, path, _ string) int {
		if path == "v1/pods" || path == "v1/events" {
			return http.StatusForbidden
		}
		return 0
	})
	c.put(t, deployment("shop", "web", 1, 0))
	c.put(t, newSet)
	f := follow(t, c)
	f.Follow(owner, []health.Ref{web})
	f.settledAs(t, owner, tidelock.HealthProgressing)
	until(t, func() bool { return c.asked("list pods") > 0 }, "pods to be asked for")
	c.put(t, deployment("shop", "web", 2, 1))
	f.settledAs(t, owner, tidelock.HealthHealthy)
}

// Refusals of pods that no condition tells of are in warnings.
func TestRefusalsOfStatefulSet(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put(t, `{apiVersion: apps/v1, kind: StatefulSet, metadata: {namespace: shop, name: db, uid: uid-db, generation: 1},
  spec: {replicas: 1, selector: {matchLabels: {app: db}}}, status: {observedGeneration: 1, replicas: 0}}`)
	c.put(t, event("db.1", "StatefulSet", "uid-db", "SuccessfulCreate", "create Pod db-0", "2026-01-01T00:00:00Z"))
	c.put(t, event("db.2", "StatefulSet", "uid-db", "FailedCreate", `create Pod db-0 failed error: pods "db-0" is forbidden: exceeded quota: small, requested: pods=1, used: pods=0, limited: pods=0`, "2026-01-01T00:00:01Z"))
	f := follow(t, c)
	f.Follow(owner, []health.Ref{ref("apps/v1", "StatefulSet", "shop", "db")})
	r := f.wait(t, owner, func(r health.Report) bool {
		return len(r.Unhealthy) == 1 && r.Unhealthy[0].Reason == health.ReasonQuota
	})
	if got := r.Unhealthy[0]; got.Pod != "" || got.Health != tidelock.HealthProgressing || !strings.Contains(got.Message, "pods=1") {
		t.Errorf("got %+v, want the quota's words and no pod", got)
	}
	c.put(t, event("db.3", "StatefulSet", "uid-db", "SuccessfulCreate", "create Pod db-0", "2026-01-01T00:00:02Z"))
	c.put(t, event("db.4", "StatefulSet", "uid-db", "Unrelated", "by the way", "2026-01-01T00:00:03Z"))
	f.wait(t, owner, func(r health.Report) bool { return len(r.Unhealthy) == 1 && r.Unhealthy[0].Reason == "LessReplicas" })
}
