package health_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
	"tidelock.dev"

	"tidelock.dev/internal/health"
)

// A cluster is an API server with just enough of the protocol for a Watcher:
// discovery, get, list in pages, watch with history. It keeps what it is given
// and counts what it is asked; the real one is in the playground's tests.
type cluster struct {
	server *httptest.Server

	mu       sync.Mutex
	changed  chan struct{}                // closed at every change
	version  int                          // the last resourceVersion
	oldest   int                          // the first version that a watch may begin after
	objects  map[string]map[string]entity // by resource path such as "apps/v1/deployments", then "namespace/name"
	history  []change
	refuse   func(verb, path, namespace string) int // the status to fail with; 0 for none
	requests map[string]int                         // by verb and resource, such as "get deployments"
	watching map[string]int                         // open watches, by resource and namespace
}

type entity = map[string]any

type change struct {
	version int
	kind    string
	path    string
	object  entity
}

// served are the resources of the cluster, by group and version.
var served = map[string]map[string]string{
	"v1": {
		"configmaps": "ConfigMap", "secrets": "Secret", "pods": "Pod", "events": "Event",
		"persistentvolumeclaims": "PersistentVolumeClaim", "namespaces": "Namespace",
	},
	"apps/v1": {
		"deployments": "Deployment", "replicasets": "ReplicaSet", "statefulsets": "StatefulSet", "daemonsets": "DaemonSet",
	},
	"batch/v1":                     {"jobs": "Job"},
	"rbac.authorization.k8s.io/v1": {"clusterroles": "ClusterRole"},
	"example.org/v1":               {"widgets": "Widget"},
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	c := &cluster{
		changed: make(chan struct{}), objects: make(map[string]map[string]entity),
		requests: make(map[string]int), watching: make(map[string]int),
	}
	c.server = httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(func() {
		c.server.CloseClientConnections()
		c.server.Close()
	})
	return c
}

func (c *cluster) serve(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if parts[0] == "apis" {
		parts = parts[1:]
	} else { // the core: a group without a name
		parts = parts[1:]
		if len(parts) > 0 {
			parts = append([]string{""}, parts...)
		}
	}
	switch {
	case len(parts) == 1:
		c.serveGroup(w, parts[0])
	case len(parts) == 2:
		c.serveResources(w, strings.TrimPrefix(parts[0]+"/"+parts[1], "/"))
	case len(parts) > 2:
		c.serveObjects(w, r, strings.TrimPrefix(parts[0]+"/"+parts[1], "/"), parts[2:])
	}
}

func (c *cluster) serveGroup(w http.ResponseWriter, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	group := metav1.APIGroup{TypeMeta: metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}, Name: name}
	for _, version := range slices.Sorted(maps.Keys(served)) {
		if strings.HasPrefix(version, name+"/") && c.refused("discover", version, "") == 0 {
			v := metav1.GroupVersionForDiscovery{GroupVersion: version, Version: strings.TrimPrefix(version, name+"/")}
			group.Versions = append(group.Versions, v)
			group.PreferredVersion = v
		}
	}
	if len(group.Versions) == 0 {
		fail(w, http.StatusNotFound)
		return
	}
	reply(w, group)
}

func (c *cluster) serveResources(w http.ResponseWriter, version string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests["discover "+version]++
	status := c.refused("discover", version, "")
	if served[version] == nil {
		status = cmp.Or(status, http.StatusNotFound)
	}
	if status != 0 {
		fail(w, status)
		return
	}
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: version}
	for name, kind := range served[version] {
		list.APIResources = append(list.APIResources, metav1.APIResource{
			Name: name, Kind: kind, Namespaced: kind != "Namespace" && kind != "ClusterRole",
		})
	}
	reply(w, list)
}

func (c *cluster) serveObjects(w http.ResponseWriter, r *http.Request, version string, rest []string) {
	namespace := ""
	if rest[0] == "namespaces" && len(rest) > 2 {
		namespace, rest = rest[1], rest[2:]
	}
	path := version + "/" + rest[0]
	name := ""
	if len(rest) > 1 {
		name = rest[1]
	}
	query := r.URL.Query()
	partial := strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
	verb := "list"
	switch {
	case name != "":
		verb = "get"
	case query.Get("watch") != "":
		verb = "watch"
	}
	c.mu.Lock()
	c.requests[verb+" "+rest[0]]++
	if !partial {
		c.requests[verb+" whole "+rest[0]]++
	}
	status := c.refused(verb, path, namespace)
	if served[version][rest[0]] == "" {
		status = cmp.Or(status, http.StatusNotFound)
	}
	c.mu.Unlock()
	if status != 0 {
		fail(w, status)
		return
	}
	switch verb {
	case "get":
		c.mu.Lock()
		o := c.objects[path][namespace+"/"+name]
		c.mu.Unlock()
		if o == nil {
			fail(w, http.StatusNotFound)
			return
		}
		reply(w, shape(o, partial))
	case "list":
		c.list(w, path, namespace, query.Get("limit"), query.Get("continue"), selects(query), partial)
	case "watch":
		c.watch(w, r, path, namespace, query.Get("resourceVersion"), selects(query), partial)
	}
}

func selects(query map[string][]string) func(entity) bool {
	get := func(name string) string { return strings.Join(query[name], "") }
	byLabel, _ := labels.Parse(get("labelSelector"))
	byField, _ := fields.ParseSelector(get("fieldSelector"))
	return func(o entity) bool {
		u := unstructured.Unstructured{Object: o}
		involved, _, _ := unstructured.NestedString(o, "involvedObject", "uid")
		kind, _, _ := unstructured.NestedString(o, "type")
		return byLabel.Matches(labels.Set(u.GetLabels())) && byField.Matches(fields.Set{
			"metadata.name": u.GetName(), "involvedObject.uid": involved, "type": kind,
		})
	}
}

func (c *cluster) list(w http.ResponseWriter, path, namespace, limit, from string, selected func(entity) bool, partial bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	items := []any{}
	most, _ := strconv.Atoi(limit)
	next := ""
	for _, key := range slices.Sorted(maps.Keys(c.objects[path])) {
		o := c.objects[path][key]
		if from != "" && key <= from || namespace != "" && !strings.HasPrefix(key, namespace+"/") || !selected(o) {
			continue
		}
		if most > 0 && len(items) == most {
			next = (items[most-1].(entity))["at"].(string)
			break
		}
		items = append(items, entity{"at": key, "object": shape(o, partial)})
	}
	for i := range items {
		items[i] = items[i].(entity)["object"]
	}
	kind, version := "List", "v1"
	if partial {
		kind, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
	}
	reply(w, entity{
		"kind": kind, "apiVersion": version, "items": items,
		"metadata": entity{"resourceVersion": strconv.Itoa(c.version), "continue": next},
	})
}

func (c *cluster) watch(w http.ResponseWriter, r *http.Request, path, namespace, from string, selected func(entity) bool, partial bool) {
	at, _ := strconv.Atoi(from)
	c.mu.Lock()
	if from != "" && at < c.oldest {
		c.mu.Unlock()
		fail(w, http.StatusGone)
		return
	}
	var first []change
	if from == "" {
		at = c.version
		for _, o := range c.objects[path] {
			first = append(first, change{kind: "ADDED", path: path, object: o})
		}
	}
	c.watching[path+" "+namespace]++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.watching[path+" "+namespace]--
	}()
	w.Header().Set("Content-Type", "application/json")
	out := json.NewEncoder(w)
	send := func(ch change) {
		u := unstructured.Unstructured{Object: ch.object}
		if ch.path == path && (namespace == "" || u.GetNamespace() == namespace) && selected(ch.object) {
			_ = out.Encode(entity{"type": ch.kind, "object": shape(ch.object, partial)})
		}
	}
	for _, ch := range first {
		send(ch)
	}
	for {
		c.mu.Lock()
		changed, expired := c.changed, at < c.oldest
		var news []change
		i, _ := slices.BinarySearchFunc(c.history, at+1, func(ch change, v int) int { return cmp.Compare(ch.version, v) })
		news = append(news, c.history[i:]...)
		at = c.version
		c.mu.Unlock()
		if expired {
			_ = out.Encode(entity{"type": "ERROR", "object": statusObject(http.StatusGone)})
			return
		}
		for _, ch := range news {
			send(ch)
		}
		w.(http.Flusher).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-changed:
		}
	}
}

// shape is an object as it was asked for.
func shape(o entity, partial bool) entity {
	if !partial {
		return o
	}
	return entity{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": o["metadata"]}
}

func reply(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body)
}

func statusObject(code int) metav1.Status {
	reason := map[int]metav1.StatusReason{
		403: metav1.StatusReasonForbidden, 404: metav1.StatusReasonNotFound, 410: metav1.StatusReasonExpired,
		503: metav1.StatusReasonServiceUnavailable,
	}[code]
	return metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure",
		Code: int32(code), Reason: reason, Message: "the fake says " + strconv.Itoa(code),
	}
}

func fail(w http.ResponseWriter, code int) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(statusObject(code))
}

// refused asks whether a request is to fail; the lock is held.
func (c *cluster) refused(verb, path, namespace string) int {
	if c.refuse == nil {
		return 0
	}
	return c.refuse(verb, path, namespace)
}

// setRefuse has requests fail with the status that f returns, if any.
func (c *cluster) setRefuse(f func(verb, path, namespace string) int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = f
}

// cut breaks the connections of all watches.
func (c *cluster) cut() { c.server.CloseClientConnections() }

// forget has the cluster know its history no more.
func (c *cluster) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	c.oldest = c.version
	c.history = nil
	c.ring()
}

func (c *cluster) ring() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// put stores objects, given as YAML.
func (c *cluster) put(t testing.TB, text string) {
	t.Helper()
	for _, one := range strings.Split(text, "\n---\n") {
		var o entity
		if err := yaml.Unmarshal([]byte(one), &o); err != nil {
			t.Fatalf("%v in:\n%s", err, one)
		}
		c.store(t, o)
	}
}

func (c *cluster) store(t testing.TB, o entity) {
	t.Helper()
	// Numbers come out of JSON as the clients expect them.
	u := &unstructured.Unstructured{}
	text, err := json.Marshal(o)
	if err == nil {
		err = u.UnmarshalJSON(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	path := c.path(t, u)
	key := u.GetNamespace() + "/" + u.GetName()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	u.SetResourceVersion(strconv.Itoa(c.version))
	kind := "ADDED"
	if c.objects[path][key] != nil {
		kind = "MODIFIED"
	}
	if c.objects[path] == nil {
		c.objects[path] = make(map[string]entity)
	}
	c.objects[path][key] = u.Object
	c.history = append(c.history, change{c.version, kind, path, u.Object})
	c.ring()
}

func (c *cluster) path(t testing.TB, u *unstructured.Unstructured) string {
	t.Helper()
	for resource, kind := range served[u.GetAPIVersion()] {
		if kind == u.GetKind() {
			return u.GetAPIVersion() + "/" + resource
		}
	}
	t.Fatalf("the cluster serves no %s %s", u.GetAPIVersion(), u.GetKind())
	return ""
}

// remove takes an object away; path is such as "apps/v1/deployments".
func (c *cluster) remove(path, namespace, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := namespace + "/" + name
	o := c.objects[path][key]
	if o == nil {
		return
	}
	delete(c.objects[path], key)
	c.version++
	last := unstructured.Unstructured{Object: o}
	last = *last.DeepCopy()
	last.SetResourceVersion(strconv.Itoa(c.version))
	c.history = append(c.history, change{c.version, "DELETED", path, last.Object})
	c.ring()
}

// asked counts requests such as "get deployments" or "get whole secrets".
func (c *cluster) asked(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests[what]
}

// watched counts open watches of a resource, such as "v1/pods", in a namespace.
func (c *cluster) watched(path, namespace string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.watching[path+" "+namespace]
}

// A follower runs a Watcher and hears what it tells.
type follower struct {
	*health.Watcher
	metrics  *prometheus.Registry
	told     chan string
	notified atomic.Int64
}

func follow(t testing.TB, c *cluster) *follower {
	t.Helper()
	f := &follower{told: make(chan string, 1), metrics: prometheus.NewRegistry()}
	var err error
	f.Watcher, err = health.New(health.Config{
		REST:    &rest.Config{Host: c.server.URL},
		Log:     slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: f.metrics,
		Notify: func(owner string) {
			f.notified.Add(1)
			select {
			case f.told <- owner:
			default: // whoever waits looks at what he waits for, whoever is named
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx := t.Context()
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() { // ctx is done by now
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return f
}

// wait hears reports of an owner until one is good.
func (f *follower) wait(t testing.TB, owner string, good func(health.Report) bool) health.Report {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		report := f.Health(owner)
		if good(report) {
			return report
		}
		select {
		case <-f.told:
		case <-deadline:
			t.Fatalf("never as wanted; the last report of %s: %+v", owner, report)
		}
	}
}

// settledAs waits until an owner's report is settled and of a health.
func (f *follower) settledAs(t testing.TB, owner string, h tidelock.Health) health.Report {
	t.Helper()
	return f.wait(t, owner, func(r health.Report) bool { return r.Settled && r.Health == h })
}

func ref(apiVersion, kind, namespace, name string) health.Ref {
	group, version, found := strings.Cut(apiVersion, "/")
	if !found {
		group, version = "", apiVersion
	}
	return health.Ref{Group: group, Version: version, Kind: kind, Namespace: namespace, Name: name}
}

// deployment is a Deployment of one pod, with as many available as given.
func deployment(namespace, name string, generation, available int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {namespace: %s, name: %s, uid: uid-%s, generation: %d, annotations: {deployment.kubernetes.io/revision: "1"}}
spec: {replicas: 1, progressDeadlineSeconds: 600, selector: {matchLabels: {app: %s}}}
status:
  observedGeneration: %d
  replicas: 1
  updatedReplicas: 1
  readyReplicas: %d
  availableReplicas: %d
  conditions:
  - {type: Available, status: "%s"}
  - {type: Progressing, status: "True", reason: NewReplicaSetAvailable}`,
		namespace, name, name, generation, name, generation, available, available, map[bool]string{true: "True", false: "False"}[available > 0])
}

// metric reads a metric without labels.
func (f *follower) metric(t testing.TB, name string) float64 {
	t.Helper()
	families, err := f.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetGauge().GetValue() + family.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
