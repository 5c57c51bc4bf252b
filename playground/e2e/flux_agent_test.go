package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev"
	deploy "tidelock.dev/deploy/agent"
	"tidelock.dev/internal/flux"
	"tidelock.dev/playground/e2e"
)

// A fluxAgent is a flux.Controller under the rights of deploy/agent, and a
// reader of its feed that remembers the latest of everything.
type fluxAgent struct {
	*flux.Controller
	id   tidelock.AgentID
	stop func()

	mu       sync.Mutex
	synced   bool
	sources  map[tidelock.SourceID]flux.Source
	progress map[tidelock.SourceID]flux.Progress
	numbers  atomic.Int64
}

// lastAgent numbers agents, so that tests do not meet each other's objects.
var lastAgent atomic.Int64

// startFlux runs a controller for the sources whose URL begins with one of
// the prefixes.
func startFlux(t *testing.T, c *e2e.System, settings flux.Settings, prefixes ...string) *fluxAgent {
	t.Helper()
	return startFluxOn(t, agentREST(t, c), settings, prefixes...)
}

func startFluxOn(t *testing.T, config *rest.Config, settings flux.Settings, prefixes ...string) *fluxAgent {
	t.Helper()
	id := tidelock.AgentID(lastAgent.Add(1))
	controller, err := flux.New(flux.Config{
		REST:  config,
		Agent: id,
		Forge: "https://forge.example",
		Log:   slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := controller.Configure(settings); err != nil {
		t.Fatal(err)
	}
	controller.SetForge(func(_ tidelock.SourceKind, url string) bool {
		for _, prefix := range prefixes {
			if strings.HasPrefix(url, prefix) {
				return true
			}
		}
		return false
	})
	a := &fluxAgent{
		Controller: controller,
		id:         id,
		sources:    make(map[tidelock.SourceID]flux.Source),
		progress:   make(map[tidelock.SourceID]flux.Progress),
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var group sync.WaitGroup
	started := make(chan struct{})
	group.Go(func() {
		if err := controller.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	group.Go(func() {
		for !controller.Status().Running {
			time.Sleep(time.Millisecond)
		}
		feed := controller.Subscribe()
		close(started)
		for {
			changes, err := feed.Next(ctx)
			if err != nil {
				return
			}
			a.take(changes)
		}
	})
	<-started
	a.stop = sync.OnceFunc(func() {
		cancel()
		group.Wait()
	})
	t.Cleanup(a.stop)
	return a
}

func (a *fluxAgent) take(changes flux.SourceChanges) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if changes.Complete {
		clear(a.sources)
		a.synced = true
	}
	for _, s := range changes.Upserts {
		a.sources[s.ID] = s
	}
	for _, id := range changes.Removals {
		delete(a.sources, id)
	}
	for _, p := range changes.Progress {
		a.progress[p.Source] = p
	}
}

func (a *fluxAgent) source(id tidelock.SourceID) (flux.Source, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.sources[id]
	return s, ok
}

func (a *fluxAgent) latest(id tidelock.SourceID) flux.Progress {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.progress[id]
}

// awaitSource waits until the agent knows a source.
func (a *fluxAgent) awaitSource(t *testing.T, id tidelock.SourceID) {
	t.Helper()
	e2e.Eventually(t, 10*time.Second, func(context.Context) error {
		if _, ok := a.source(id); !ok {
			return fmt.Errorf("%s is not in the set", id)
		}
		return nil
	})
}

// announce announces a commit and returns the number.
func (a *fluxAgent) announce(t *testing.T, id tidelock.SourceID, commit string) int64 {
	t.Helper()
	return a.announceGoal(t, id, tidelock.Goal{Ref: "refs/heads/main", Commit: tidelock.CommitID(commit)})
}

// announceGoal announces what a source of any kind should have.
func (a *fluxAgent) announceGoal(t *testing.T, id tidelock.SourceID, goal tidelock.Goal) int64 {
	t.Helper()
	n := a.numbers.Add(1)
	if !a.Announce(flux.Announcement{Source: id, Number: n, Project: 1, Goal: goal}) {
		t.Fatalf("announced %s, which the agent does not know", id)
	}
	return n
}

// await waits for a state of a number, and returns the progress.
func (a *fluxAgent) await(t *testing.T, id tidelock.SourceID, number int64, state tidelock.AnnouncementState, within time.Duration) flux.Progress {
	t.Helper()
	e2e.Eventually(t, within, func(context.Context) error {
		if p := a.latest(id); p.Number != number || p.State != state {
			return fmt.Errorf("progress is %+v, want number %d %s", p, number, state)
		}
		return nil
	})
	return a.latest(id)
}

// agentREST acts as the account of deploy/agent's manifests.
func agentREST(t *testing.T, c *e2e.System) *rest.Config {
	t.Helper()
	namespace, _ := c.AgentAccess(t)
	config := c.REST()
	config.Impersonate.UserName = "system:serviceaccount:" + namespace + ":" + deploy.ServiceAccount
	config.Impersonate.Groups = []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"}
	return config
}

// newSource makes a GitRepository that Flux polls once an hour.
func newSource(t *testing.T, c *e2e.System, ns, name, url string, change ...func(*sourcev1.GitRepository)) (*sourcev1.GitRepository, tidelock.SourceID) {
	t.Helper()
	repo := &sourcev1.GitRepository{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: sourcev1.GitRepositorySpec{
			URL: url, Interval: metav1.Duration{Duration: time.Hour},
			Reference: &sourcev1.GitRepositoryRef{Branch: "main"},
		},
	}
	for _, f := range change {
		f(repo)
	}
	if err := c.Client.Create(t.Context(), repo); err != nil {
		t.Fatal(err)
	}
	return repo, tidelock.SourceID("GitRepository/" + ns + "/" + name)
}

// awaitCommit waits until Flux has a commit.
func awaitCommit(t *testing.T, c *e2e.System, repo *sourcev1.GitRepository, commit string) {
	t.Helper()
	e2e.Eventually(t, 20*time.Second, func(ctx context.Context) error {
		if err := c.Client.Get(ctx, client.ObjectKeyFromObject(repo), repo); err != nil {
			return err
		}
		if repo.Status.Artifact == nil || !isCommit(repo.Status.Artifact.Revision, commit) {
			return fmt.Errorf("artifact is %+v, want commit %s", repo.Status.Artifact, commit)
		}
		return nil
	})
}

// receivers lists those in a namespace.
func receivers(ctx context.Context, c *e2e.System, ns string) ([]notificationv1.Receiver, error) {
	var list notificationv1.ReceiverList
	err := c.Client.List(ctx, &list, client.InNamespace(ns))
	return list.Items, err
}

// awaitReceivers waits for a number of ready Receivers in a namespace.
func awaitReceivers(t *testing.T, c *e2e.System, ns string, want int) []notificationv1.Receiver {
	t.Helper()
	var list []notificationv1.Receiver
	e2e.Eventually(t, 20*time.Second, func(ctx context.Context) (err error) {
		if list, err = receivers(ctx, c, ns); err != nil {
			return err
		}
		ready := 0
		for _, r := range list {
			if r.Status.WebhookPath != "" && r.Status.ObservedGeneration == r.Generation {
				ready++
			}
		}
		if ready != want || len(list) != want {
			return fmt.Errorf("%d receivers, %d of them ready; want %d", len(list), ready, want)
		}
		return nil
	})
	return list
}

// pushUntilVia pushes until a push goes by way of the Receiver: the agent may
// learn of it a moment after us, and of an endpoint that is back within seconds.
func (a *fluxAgent) pushUntilVia(t *testing.T, repo repository, id tidelock.SourceID, via flux.Via) flux.Progress {
	t.Helper()
	return a.pushGoalUntilVia(t, id, via, func(int) tidelock.Goal {
		commit := repo.push(t, map[string]string{"file": fmt.Sprint(a.numbers.Load(), time.Now())})
		return tidelock.Goal{Ref: "refs/heads/main", Commit: tidelock.CommitID(commit)}
	})
}

// The ordinary case: a Receiver is made, becomes ready, and a push goes
// through it to a converged source.
func TestFluxPushGoesThroughTheReceiver(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	git := newRepository(t)
	first := git.push(t, map[string]string{"file": "1"})
	repo, id := newSource(t, c, ns, "site", git.url)
	awaitCommit(t, c, repo, first)
	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, git.url)
	a.awaitSource(t, id)
	if list, err := receivers(t.Context(), c, ns); err != nil || len(list) != 0 {
		t.Fatalf("receivers before the source is served: %d, %v; want none", len(list), err)
	}
	a.SetServed(id, true)
	receiver := awaitReceivers(t, c, ns, 1)[0]
	p := a.pushUntilVia(t, git, id, flux.ViaReceiver)
	t.Logf("called %s, answered %s, handled %s, fetched %s", p.Called, p.Answered, p.Handled, p.Fetched)
	if p.Attempts != 1 || p.Called <= 0 || p.Answered < p.Called || p.Handled < p.Called || p.Fetched < p.Called {
		t.Errorf("progress: got %+v", p)
	}
	if s, _ := a.source(id); s.UID != string(repo.UID) || s.URL != git.url || s.Ref.Branch != "main" {
		t.Errorf("source: got %+v", s)
	}

	if receiver.Spec.Type != notificationv1.GenericHMACReceiver || receiver.Spec.Interval.Duration != time.Hour {
		t.Errorf("receiver: got %+v", receiver.Spec)
	}
	if len(receiver.Name) > 63 || !strings.HasPrefix(receiver.Name, fmt.Sprintf("tidelock-%d-site-", a.id)) {
		t.Errorf("receiver's name: got %q", receiver.Name)
	}
	owners := receiver.OwnerReferences
	if len(owners) != 1 || owners[0].UID != repo.UID || owners[0].BlockOwnerDeletion != nil {
		t.Errorf("receiver's owners: got %+v", owners)
	}
	var secret corev1.Secret
	if err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: receiver.Spec.SecretRef.Name}, &secret); err != nil {
		t.Fatal(err)
	}
	if len(secret.Data["token"]) < 43 {
		t.Errorf("the key has %d characters, want 43", len(secret.Data["token"]))
	}

	// Nothing is left when the server says the source is not served any more.
	a.SetServed(id, false)
	awaitReceivers(t, c, ns, 0)
	e2e.Eventually(t, 5*time.Second, func(ctx context.Context) error {
		err := c.Client.Get(ctx, client.ObjectKeyFromObject(&secret), &secret)
		if client.IgnoreNotFound(err) != nil {
			return err
		}
		if err == nil {
			return errors.New("the Secret is still there")
		}
		return nil
	})
}

// With notification-controller down, a push still arrives, by annotation, and
// the forge knows. Flux's other controllers, which want to tell it of what they
// do, are a quarter of a minute late then with all that they do.
func TestFluxWithoutNotificationController(t *testing.T) {
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	s := newSite(t, "public")
	git := newRepository(t)
	repo, id := newSource(t, c, ns, "site", git.url)
	awaitCommit(t, c, repo, git.push(t, map[string]string{"file": "1"}))
	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, git.url)
	a.awaitSource(t, id)
	a.SetServed(id, true)
	awaitReceivers(t, c, ns, 1)
	a.pushUntilVia(t, git, id, flux.ViaReceiver)

	if err := c.Flux.Kill("notification-controller"); err != nil {
		t.Fatal(err)
	}
	restart := sync.OnceValue(func() error {
		return c.Flux.Restart(context.WithoutCancel(t.Context()), "notification-controller")
	})
	t.Cleanup(func() {
		if err := restart(); err != nil {
			t.Error(err)
		}
	})
	second := s.p.Push("main", e2e.ConfigMap("site", "two"))
	commit := git.push(t, map[string]string{"file": "down"})
	p := a.await(t, id, a.announce(t, id, commit), tidelock.Converged, soon)
	if p.Via != flux.ViaAnnotation || p.Attempts != 4 {
		t.Errorf("got %+v, want three calls and the annotation", p)
	}
	t.Logf("fallback: called %s, answered %s, fetched %s", p.Called, p.Answered, p.Fetched)
	s.WaitFetched(s.ns, "site", second, soon)
	if told := waitAnnouncement(t, s.Forge, s.p, second, "converged"); told.Via != "annotation" {
		t.Errorf("the forge says triggered via %q, want the annotation", told.Via)
	}
	// The endpoint is known to be down: no time is lost with it now.
	n := a.announce(t, id, git.push(t, map[string]string{"file": "still down"}))
	e2e.Eventually(t, 10*time.Second, func(context.Context) error {
		if p = a.latest(id); p.Number != n || p.Answered == 0 {
			return fmt.Errorf("progress is %+v, want number %d triggered", p, n)
		}
		return nil
	})
	if p.Via != flux.ViaAnnotation || p.Attempts != 1 {
		t.Errorf("got %+v, want the annotation at once", p)
	}
	t.Logf("known down: called %s, answered %s", p.Called, p.Answered)

	// A Receiver to be deleted waits for its finalizer; it is not forced.
	a.SetServed(id, false)
	e2e.Eventually(t, 10*time.Second, func(ctx context.Context) error {
		list, err := receivers(ctx, c, ns)
		if err != nil || len(list) != 1 || list[0].DeletionTimestamp == nil {
			return fmt.Errorf("receivers: %v, %v; want one being deleted", list, err)
		}
		return nil
	})
	if err := restart(); err != nil {
		t.Fatal(err)
	}
	awaitReceivers(t, c, ns, 0)
	a.SetServed(id, true)
	awaitReceivers(t, c, ns, 1)
	a.pushUntilVia(t, git, id, flux.ViaReceiver)
}

// A source that is suspended is parked, and triggered when it is resumed.
func TestFluxSuspendedSource(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	git := newRepository(t)
	repo, id := newSource(t, c, ns, "site", git.url)
	awaitCommit(t, c, repo, git.push(t, map[string]string{"file": "1"}))
	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, git.url)
	a.awaitSource(t, id)
	suspend := func(value bool) {
		patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"suspend":%v}}`, value))
		if err := c.Client.Patch(t.Context(), repo, patch); err != nil {
			t.Fatal(err)
		}
		e2e.Eventually(t, 5*time.Second, func(context.Context) error {
			if s, _ := a.source(id); s.Suspended != value {
				return fmt.Errorf("suspended: %v", s.Suspended)
			}
			return nil
		})
	}
	suspend(true)
	commit := git.push(t, map[string]string{"file": "2"})
	n := a.announce(t, id, commit)
	if p := a.await(t, id, n, tidelock.Parked, 5*time.Second); p.Attempts != 0 {
		t.Errorf("a suspended source was triggered: %+v", p)
	}
	suspend(false)
	a.await(t, id, n, tidelock.Converged, 20*time.Second)
}

// Credentials that do not work, and are repaired while the back-off is long.
func TestFluxBrokenCredentials(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	git := newRepository(t)
	first := git.push(t, map[string]string{"file": "1"})
	address := withPassword(t, git.url, "right")
	credentials := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "credentials"},
		Data:       map[string][]byte{"username": []byte("git"), "password": []byte("right")},
	}
	if err := c.Client.Create(t.Context(), credentials); err != nil {
		t.Fatal(err)
	}
	repo, id := newSource(t, c, ns, "site", address, func(r *sourcev1.GitRepository) {
		r.Spec.SecretRef = &meta.LocalObjectReference{Name: "credentials"}
	})
	awaitCommit(t, c, repo, first)
	a := startFlux(t, c, flux.Settings{WebhookURL: c.Flux.ReceiverURL()}, address)
	a.awaitSource(t, id)
	setPassword := func(value string) {
		patch := client.MergeFrom(credentials.DeepCopy())
		credentials.Data = map[string][]byte{"username": []byte("git"), "password": []byte(value)}
		if err := c.Client.Patch(t.Context(), credentials, patch); err != nil {
			t.Fatal(err)
		}
	}
	setPassword("wrong")
	commit := git.push(t, map[string]string{"file": "2"})
	n := a.announce(t, id, commit)
	p := a.await(t, id, n, tidelock.Failed, 20*time.Second)
	if !strings.Contains(p.Message, "Git") && !strings.Contains(strings.ToLower(p.Message), "auth") {
		t.Errorf("message: got %q, want Flux's reason", p.Message)
	}
	// By now the second attempt has failed, the third is 10 s away.
	e2e.Eventually(t, 20*time.Second, func(context.Context) error {
		if p := a.latest(id); p.Attempts < 2 {
			return fmt.Errorf("attempts: %d", p.Attempts)
		}
		return nil
	})
	setPassword("right")
	a.await(t, id, n, tidelock.Converged, 12*time.Second)
}

// withPassword puts a server before another that asks for a password.
func withPassword(t *testing.T, behind, password string) string {
	t.Helper()
	target, err := url.Parse(behind)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: target.Scheme, Host: target.Host})
	return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, got, _ := r.BasicAuth(); got != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="git"`)
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		proxy.ServeHTTP(w, r)
	})) + target.Path
}

// isCommit reports whether a revision of a GitRepository is that commit.
func isCommit(revision, commit string) bool {
	return tidelock.ParseRevision(tidelock.GitRepository, revision).Meets(tidelock.Goal{Commit: tidelock.CommitID(commit)})
}
