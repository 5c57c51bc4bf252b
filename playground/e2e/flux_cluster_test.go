package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev"
	"tidelock.dev/internal/flux"
	"tidelock.dev/playground/component"
	"tidelock.dev/playground/controlplane"
	"tidelock.dev/playground/e2e"
	"tidelock.dev/playground/fluxsystem"
)

func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

// Two agents serve one source, each through a Receiver of its own; a selector
// takes the source away from one of them.
func TestFluxTwoAgents(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	git := newRepository(t)
	repo, id := newSource(t, c, ns, "site", git.url)
	awaitCommit(t, c, repo, git.push(t, map[string]string{"file": "1"}))
	settings := flux.Settings{WebhookURL: c.Flux.ReceiverURL()}
	one := startFlux(t, c, settings, git.url)
	two := startFlux(t, c, settings, git.url)
	for _, a := range []*fluxAgent{one, two} {
		a.awaitSource(t, id)
		a.SetServed(id, true)
	}
	before := awaitReceivers(t, c, ns, 2)
	one.pushUntilVia(t, git, id, flux.ViaReceiver)
	two.pushUntilVia(t, git, id, flux.ViaReceiver)
	for _, was := range before {
		var now notificationv1.Receiver
		if err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(&was), &now); err != nil {
			t.Fatal(err)
		}
		if now.Generation != was.Generation || now.UID != was.UID {
			t.Errorf("%s: the agents fight over it", was.Name)
		}
	}

	settings.Selector = "team=blue"
	if err := two.Configure(settings); err != nil {
		t.Fatal(err)
	}
	left := awaitReceivers(t, c, ns, 1)[0]
	if !strings.HasPrefix(left.Name, fmt.Sprintf("tidelock-%d-", one.id)) {
		t.Errorf("left is %s, want agent %d's", left.Name, one.id)
	}
	if _, known := two.source(id); known {
		t.Error("the source is still in the set of the agent whose selector excludes it")
	}
	label := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"team":"blue"}}}`))
	if err := c.Client.Patch(t.Context(), repo, label); err != nil {
		t.Fatal(err)
	}
	two.awaitSource(t, id)
	two.SetServed(id, true)
	awaitReceivers(t, c, ns, 2)
}

// A Receiver and a Secret that were deleted or spoilt by hand come back; a
// Secret that is not ours is never taken over.
func TestFluxRepairsItsObjects(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	git := newRepository(t)
	repo, id := newSource(t, c, ns, "site", git.url)
	awaitCommit(t, c, repo, git.push(t, map[string]string{"file": "1"}))
	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, git.url)
	a.awaitSource(t, id)
	a.SetServed(id, true)
	receiver := awaitReceivers(t, c, ns, 1)[0]
	a.pushUntilVia(t, git, id, flux.ViaReceiver)

	t.Run("receiver deleted", func(t *testing.T) {
		if err := c.Client.Delete(t.Context(), &receiver); err != nil {
			t.Fatal(err)
		}
		e2e.Eventually(t, 10*time.Second, func(ctx context.Context) error {
			list, err := receivers(ctx, c, ns)
			if err == nil && (len(list) != 1 || list[0].UID == receiver.UID) {
				err = errors.New("it is not back")
			}
			return err
		})
		a.pushUntilVia(t, git, id, flux.ViaReceiver)
	})
	t.Run("receiver edited", func(t *testing.T) {
		edit := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"type":"generic"}}`))
		receiver := awaitReceivers(t, c, ns, 1)[0]
		if err := c.Client.Patch(t.Context(), &receiver, edit); err != nil {
			t.Fatal(err)
		}
		e2e.Eventually(t, 10*time.Second, func(ctx context.Context) error {
			if err := c.Client.Get(ctx, client.ObjectKeyFromObject(&receiver), &receiver); err != nil {
				return err
			}
			if receiver.Spec.Type != notificationv1.GenericHMACReceiver {
				return fmt.Errorf("type is %s", receiver.Spec.Type)
			}
			return nil
		})
	})
	t.Run("secret deleted", func(t *testing.T) {
		awaitReceivers(t, c, ns, 1) // else what is left of the edit brings the Secret back at once
		key := client.ObjectKey{Namespace: ns, Name: receiver.Spec.SecretRef.Name}
		var secret corev1.Secret
		if err := c.Client.Get(t.Context(), key, &secret); err != nil {
			t.Fatal(err)
		}
		if err := c.Client.Delete(t.Context(), &secret); err != nil {
			t.Fatal(err)
		}
		// The next push finds out; it arrives all the same.
		commit := git.push(t, map[string]string{"file": "no secret"})
		p := a.await(t, id, a.announce(t, id, commit), tidelock.Converged, 20*time.Second)
		if p.Via != flux.ViaAnnotation {
			t.Errorf("got %+v, want the annotation", p)
		}
		a.pushUntilVia(t, git, id, flux.ViaReceiver)
		var made corev1.Secret
		if err := c.Client.Get(t.Context(), key, &made); err != nil {
			t.Fatal(err)
		}
		if made.UID == secret.UID || string(made.Data["token"]) == string(secret.Data["token"]) {
			t.Error("the Secret was not made anew")
		}
	})
	t.Run("foreign secret", func(t *testing.T) {
		key := client.ObjectKey{Namespace: ns, Name: receiver.Spec.SecretRef.Name}
		var secret corev1.Secret
		if err := c.Client.Get(t.Context(), key, &secret); err != nil {
			t.Fatal(err)
		}
		if err := c.Client.Delete(t.Context(), &secret); err != nil {
			t.Fatal(err)
		}
		foreign := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name},
			StringData: map[string]string{"token": "theirs"},
		}
		if err := c.Client.Create(t.Context(), foreign); err != nil {
			t.Fatal(err)
		}
		for i := range 2 {
			commit := git.push(t, map[string]string{"file": fmt.Sprint("foreign ", i)})
			a.await(t, id, a.announce(t, id, commit), tidelock.Converged, 20*time.Second)
		}
		var now corev1.Secret
		if err := c.Client.Get(t.Context(), key, &now); err != nil {
			t.Fatal(err)
		}
		if now.UID != foreign.UID || string(now.Data["token"]) != "theirs" {
			t.Error("a Secret that is not ours was taken over")
		}
	})
	t.Run("source deleted", func(t *testing.T) {
		if err := c.Client.Delete(t.Context(), repo); err != nil {
			t.Fatal(err)
		}
		// A young cluster's garbage collector learns of new kinds only every
		// 30 s.
		e2e.Eventually(t, time.Minute, func(ctx context.Context) error {
			list, err := receivers(ctx, c, ns)
			if err == nil && len(list) > 0 {
				err = fmt.Errorf("%d receivers are left", len(list))
			}
			return err
		})
		if _, known := a.source(id); known {
			t.Error("the source is still in the set")
		}
		if a.Announce(flux.Announcement{Source: id, Number: 1000, Goal: tidelock.Goal{Commit: tidelock.CommitID(strings.Repeat("0", 40))}}) {
			t.Error("an announcement of a deleted source was taken")
		}
		err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(repo), repo)
		if client.IgnoreNotFound(err) != nil || err == nil {
			t.Errorf("the deleted source is back: %v", err)
		}
	})
}

// A source that includes another is built again when the other has a new
// artifact, and only then.
func TestFluxInclude(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	base, top := newRepository(t), newRepository(t)
	baseRepo, baseID := newSource(t, c, ns, "base", base.url)
	awaitCommit(t, c, baseRepo, base.push(t, map[string]string{"base": "1"}))
	topCommit := top.push(t, map[string]string{"top": "1"})
	topRepo, topID := newSource(t, c, ns, "top", top.url, func(r *sourcev1.GitRepository) {
		r.Spec.Include = []sourcev1.GitRepositoryInclude{{GitRepositoryRef: meta.LocalObjectReference{Name: "base"}}}
	})
	awaitCommit(t, c, topRepo, topCommit)
	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, base.url, top.url)
	a.awaitSource(t, baseID)
	a.awaitSource(t, topID)
	if err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(topRepo), topRepo); err != nil {
		t.Fatal(err)
	}
	asked := topRepo.Annotations[meta.ReconcileRequestAnnotation]
	if asked != "" {
		t.Errorf("a source that is up to date was triggered: %q", asked)
	}
	commit := base.push(t, map[string]string{"base": "2"})
	a.await(t, baseID, a.announce(t, baseID, commit), tidelock.Converged, 20*time.Second)
	e2e.Eventually(t, 20*time.Second, func(ctx context.Context) error {
		if err := c.Client.Get(ctx, client.ObjectKeyFromObject(topRepo), topRepo); err != nil {
			return err
		}
		included := topRepo.Status.IncludedArtifacts
		if len(included) != 1 || !isCommit(included[0].Revision, commit) {
			return fmt.Errorf("included: %+v, want %s", included, commit)
		}
		return nil
	})
}

// A receiver's endpoint that hangs delays nobody for long, and one that
// redirects gets nothing of what it asks for.
func TestFluxHostileEndpoints(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	git := newRepository(t)
	repo, id := newSource(t, c, ns, "site", git.url)
	awaitCommit(t, c, repo, git.push(t, map[string]string{"file": "1"}))
	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, git.url)
	a.awaitSource(t, id)
	a.SetServed(id, true)
	awaitReceivers(t, c, ns, 1)
	a.pushUntilVia(t, git, id, flux.ViaReceiver)

	t.Run("redirect", func(t *testing.T) {
		var followed atomic.Int32
		elsewhere := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { followed.Add(1) }))
		redirecting := serve(t, http.RedirectHandler(elsewhere, http.StatusTemporaryRedirect))
		if err := a.Configure(flux.Settings{WebhookURL: redirecting}); err != nil {
			t.Fatal(err)
		}
		commit := git.push(t, map[string]string{"file": "redirect"})
		p := a.await(t, id, a.announce(t, id, commit), tidelock.Converged, 20*time.Second)
		if followed.Load() != 0 || p.Via != flux.ViaAnnotation {
			t.Errorf("followed %d times, via %s", followed.Load(), p.Via)
		}
	})
	t.Run("yes-sayer", func(t *testing.T) {
		saysYes := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		if err := a.Configure(flux.Settings{WebhookURL: saysYes}); err != nil {
			t.Fatal(err)
		}
		commit := git.push(t, map[string]string{"file": "yes"})
		a.await(t, id, a.announce(t, id, commit), tidelock.Converged, 20*time.Second)
	})
	t.Run("hangs", func(t *testing.T) {
		release := make(chan struct{})
		hanging := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}))
		defer close(release)
		if err := a.Configure(flux.Settings{WebhookURL: hanging}); err != nil {
			t.Fatal(err)
		}
		commit := git.push(t, map[string]string{"file": "hang"})
		p := a.await(t, id, a.announce(t, id, commit), tidelock.Converged, 20*time.Second)
		t.Logf("first: %s", p.Fetched)
		commit = git.push(t, map[string]string{"file": "hang again"})
		p = a.await(t, id, a.announce(t, id, commit), tidelock.Converged, 20*time.Second)
		if p.Answered > time.Second {
			t.Errorf("the second push waited %s for an endpoint known to hang", p.Answered)
		}
	})
}

// The webhook URL's service-proxy form goes through the API server, with the
// agent's rights.
func TestFluxServiceProxy(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	git := newRepository(t)
	repo, id := newSource(t, c, ns, "site", git.url)
	awaitCommit(t, c, repo, git.push(t, map[string]string{"file": "1"}))

	receiver, err := newProxiedService(t, c, ns, strings.TrimPrefix(c.Flux.ReceiverURL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	a := startFlux(t, c, flux.Settings{WebhookURL: receiver}, git.url)
	a.awaitSource(t, id)
	a.SetServed(id, true)
	awaitReceivers(t, c, ns, 1)
	p := a.pushUntilVia(t, git, id, flux.ViaReceiver)
	t.Logf("called %s, answered %s", p.Called, p.Answered)
	if p.Attempts != 1 {
		t.Errorf("got %+v, want one call", p)
	}
	// The agent may call no other service.
	other := strings.Replace(receiver, "webhook-receiver", "another", 1)
	if err := a.Configure(flux.Settings{WebhookURL: other}); err != nil {
		t.Fatal(err)
	}
	commit := git.push(t, map[string]string{"file": "2"})
	p = a.await(t, id, a.announce(t, id, commit), tidelock.Converged, 20*time.Second)
	if p.Via != flux.ViaAnnotation || p.Attempts != 2 {
		t.Errorf("got %+v, want one refused call and the annotation", p)
	}
}

// newProxiedService makes a Service whose endpoint the API server agrees to
// call, which is not on loopback, and returns its proxy path.
func newProxiedService(t *testing.T, c *e2e.System, ns, target string) (string, error) {
	t.Helper()
	address, err := outsideAddress()
	if err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return "", err
	}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: target})
	server := &httptest.Server{Listener: listener, Config: &http.Server{Handler: forward}}
	server.Start()
	t.Cleanup(server.Close)
	port := int32(listener.Addr().(*net.TCPAddr).Port)
	meta := metav1.ObjectMeta{Namespace: ns, Name: "webhook-receiver"}

	// The API server calls addresses of Pods only. This one is never
	// scheduled, and is said to have our address.
	pod := &corev1.Pod{
		ObjectMeta: meta,
		Spec: corev1.PodSpec{
			SchedulerName: "nobody",
			Containers:    []corev1.Container{{Name: "receiver", Image: "example.org/receiver:1"}},
		},
	}
	if err := c.Client.Create(t.Context(), pod); err != nil {
		return "", err
	}
	pod.Status.PodIP = address
	pod.Status.PodIPs = []corev1.PodIP{{IP: address}}
	if err := c.Client.Status().Update(t.Context(), pod); err != nil {
		return "", err
	}
	service := &corev1.Service{
		ObjectMeta: meta,
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
	}
	endpoints := &corev1.Endpoints{ //lint:ignore SA1019 the API server's proxy reads these
		ObjectMeta: meta,
		//lint:ignore SA1019 as above
		Subsets: []corev1.EndpointSubset{{
			Addresses: []corev1.EndpointAddress{{IP: address, TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: ns, Name: pod.Name}}},
			Ports:     []corev1.EndpointPort{{Name: "http", Port: port, Protocol: corev1.ProtocolTCP}},
		}},
	}
	for _, object := range []client.Object{service, endpoints} {
		if err := c.Client.Create(t.Context(), object); err != nil {
			return "", err
		}
	}
	return "/api/v1/namespaces/" + ns + "/services/http:webhook-receiver:80/proxy", nil
}

// outsideAddress is an address of this machine that is not on loopback.
func outsideAddress() (string, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() && !ip.IP.IsLoopback() {
			return ip.IP.String(), nil
		}
	}
	return "", errors.New("this machine has no address but loopback")
}

// Flux arrives after the agent, and a controller of it that few have still
// later; it leaves, and comes back.
func TestFluxArrivesLate(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("needs a cluster of its own; run without -short")
	}
	set, err := component.Default(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	plane, err := controlplane.Start(t.Context(), controlplane.Config{
		Dir: filepath.Join(dir, "controlplane"), Components: set, Log: log, Expendable: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	admin, err := client.NewWithWatch(plane.REST(), client.Options{Scheme: e2e.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	c := &e2e.System{Plane: plane, Client: admin, Dir: dir}
	git := newRepository(t)
	store, broken := newTagStore(t)
	first := git.push(t, map[string]string{"file": "1"})
	a := startFlux(t, c, flux.Settings{}, git.url, store.url(""))
	e2e.Eventually(t, 10*time.Second, func(context.Context) error {
		if s := a.Status(); s.Installed || !strings.Contains(s.Detail, "not installed") {
			return fmt.Errorf("status: %+v", s)
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if !a.synced {
			return errors.New("the empty set was not told")
		}
		return nil
	})

	system, err := fluxsystem.Start(t.Context(), fluxsystem.Config{
		Dir: filepath.Join(dir, "flux"), Components: set, Cluster: plane.REST(), Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := system.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := a.Configure(flux.Settings{WebhookURL: system.ReceiverURL()}); err != nil {
		t.Fatal(err)
	}
	c.Flux = system
	ns := c.Namespace(t)
	repo, id := newSource(t, c, ns, "site", git.url)
	awaitCommit(t, c, repo, first)
	a.awaitSource(t, id)
	a.SetServed(id, true)
	awaitReceivers(t, c, ns, 1)
	a.pushUntilVia(t, git, id, flux.ViaReceiver)

	t.Run("image-reflector-controller", func(t *testing.T) { reflectorArrives(t, c, a, store, broken) })

	// It leaves: its kinds are deleted, and all that is of them.
	if err := admin.Delete(t.Context(), repo); err != nil {
		t.Fatal(err)
	}
	e2e.Eventually(t, 10*time.Second, func(ctx context.Context) error {
		if err := admin.Get(ctx, client.ObjectKeyFromObject(repo), repo); !apierrors.IsNotFound(err) {
			return fmt.Errorf("the source is still there: %w", err)
		}
		return nil
	})
	definition := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: "gitrepositories.source.toolkit.fluxcd.io"}}
	definition.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	if err := admin.Delete(t.Context(), definition); err != nil {
		t.Fatal(err)
	}
	e2e.Eventually(t, 40*time.Second, func(context.Context) error {
		if s := a.Status(); !strings.Contains(s.Detail, "does not serve GitRepository") || s.Sources != 0 {
			return fmt.Errorf("status: %+v", s)
		}
		return nil
	})

	// And it comes back.
	if err := system.ApplyCRDs(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, id = newSource(t, c, ns, "site", git.url)
	a.awaitSource(t, id)
	n := a.announce(t, id, git.push(t, map[string]string{"file": "back"}))
	e2e.Eventually(t, 10*time.Second, func(context.Context) error {
		if p := a.latest(id); p.Number != n || p.Answered == 0 {
			return fmt.Errorf("progress: %+v", p)
		}
		return nil
	})
}
