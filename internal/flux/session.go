package flux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"
)

const (
	absentPollFirst = 500 * time.Millisecond // while Flux is not installed; doubles
	absentPollMax   = 5 * time.Second
	presentPoll     = 15 * time.Second // to notice that Flux was removed
	discoverTimeout = 10 * time.Second
	syncTimeout     = 30 * time.Second
	stopTimeout     = 3 * time.Second
)

// An installation is which of Flux's APIs the cluster serves.
type installation struct {
	sources   bool
	receivers bool
}

// missing says in a sentence what is not there; empty if all is.
func (i installation) missing() string {
	switch {
	case !i.sources:
		return "Flux is not installed: the cluster does not serve GitRepository of " + sourcev1.GroupVersion.String()
	case !i.receivers:
		return "notification-controller is not installed: sources are triggered by annotation"
	}
	return ""
}

// watch runs one session after the other until ctx is done.
func (c *Controller) watch(ctx context.Context) {
	var told string
	warn := func(reason string) {
		if reason != told && reason != "" && ctx.Err() == nil {
			c.log.WarnContext(ctx, "cannot work with all of Flux", "reason", reason)
		}
		told = reason
	}
	for failures := 1; ctx.Err() == nil; failures++ {
		found, err := c.discover(ctx)
		if err == nil {
			c.setInstallation(found)
			warn(found.missing())
		}
		if found.sources {
			started := time.Now()
			err = c.runSession(ctx, found)
			if time.Since(started) > syncTimeout {
				failures = 0
			}
		}
		if err != nil {
			c.setDetail(err.Error())
			warn(err.Error())
		}
		pause(ctx, backoff(absentPollFirst, absentPollMax, failures))
	}
}

// discover asks the API server what it serves.
func (c *Controller) discover(ctx context.Context) (found installation, err error) {
	found.sources, err = c.serves(ctx, sourcev1.GroupVersion, "gitrepositories")
	if err != nil || !found.sources {
		return installation{}, err
	}
	found.receivers, err = c.serves(ctx, notificationv1.GroupVersion, "receivers")
	return found, err
}

func (c *Controller) serves(ctx context.Context, version schema.GroupVersion, resource string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	var list metav1.APIResourceList
	err := c.discovery.RESTClient().Get().AbsPath("/apis", version.Group, version.Version).Do(ctx).Into(&list)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask the API server for %s: %w", version, err)
	}
	for _, r := range list.APIResources {
		if r.Name == resource {
			return true, nil
		}
	}
	return false, nil
}

func (c *Controller) setInstallation(found installation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Installed = found.sources
	c.status.Detail = found.missing()
	if !found.sources {
		for key := range c.tracks {
			c.drop(key)
		}
		c.setSynced()
	}
}

func (c *Controller) setDetail(detail string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Detail = detail
}

// setSynced notes that the set of sources is known; the lock is held.
func (c *Controller) setSynced() {
	if c.synced {
		return
	}
	c.synced = true
	if c.feed != nil {
		c.startFeed()
	}
}

// A session is the time in which one installation of Flux stays as it is.
type session struct {
	*Controller
	cache     cache.Cache
	receivers bool          // Receivers exist
	missing   chan struct{} // has an entry if a watch found its kind gone

	failedAt time.Time // when a watch broke last; guarded by the Controller's mutex
}

// runSession watches Flux until ctx is done, the installation changes, or the
// watching fails.
func (c *Controller) runSession(ctx context.Context, found installation) error {
	s := &session{Controller: c, receivers: found.receivers, missing: make(chan struct{}, 1)}
	m, err := s.newManager()
	if err != nil {
		return err
	}
	informer, err := s.cache.GetInformer(ctx, &sourcev1.GitRepository{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch sources: %w", err)
	}
	registration, err := informer.AddEventHandler(s.events())
	if err != nil {
		return fmt.Errorf("watch sources: %w", err)
	}

	ctx, stop := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		stop(m.Start(ctx))
	}()
	defer func() {
		stop(nil)
		<-done
		s.end()
	}()
	if !toolscache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
		return context.Cause(ctx)
	}
	if err := s.adopt(ctx); err != nil {
		return err
	}
	c.log.InfoContext(ctx, "watching Flux", "sources", c.Status().Sources, "receivers", found.receivers)
	poll := presentPoll
	if found.missing() != "" {
		poll = absentPollMax
	}
	for s.wait(ctx, poll) {
		now, err := c.discover(ctx)
		switch {
		case err != nil:
		case now != found:
			c.log.InfoContext(ctx, "the installation of Flux has changed")
			return nil
		case s.quietFor(2 * poll):
			c.setDetail(found.missing())
		}
	}
	return context.Cause(ctx)
}

// wait waits until it is time to see if Flux is still there.
func (s *session) wait(ctx context.Context, poll time.Duration) bool {
	timer := time.NewTimer(jitter(poll))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-s.missing:
	case <-timer.C:
	}
	return true
}

// restMapper knows the few kinds there are, so that a cluster without them
// need not be asked.
func restMapper() apimeta.RESTMapper {
	mapper := apimeta.NewDefaultRESTMapper(nil)
	mapper.Add(corev1.SchemeGroupVersion.WithKind("Secret"), apimeta.RESTScopeNamespace)
	mapper.Add(sourcev1.GroupVersion.WithKind(sourcev1.GitRepositoryKind), apimeta.RESTScopeNamespace)
	mapper.Add(notificationv1.GroupVersion.WithKind(notificationv1.ReceiverKind), apimeta.RESTScopeNamespace)
	return mapper
}

func (s *session) newManager() (manager.Manager, error) {
	timeout, gone, recovers := stopTimeout, true, true
	m, err := manager.New(s.rest, manager.Options{
		Scheme:                  scheme,
		MapperProvider:          func(*rest.Config, *http.Client) (apimeta.RESTMapper, error) { return restMapper(), nil },
		Logger:                  s.quietLog(),
		Metrics:                 metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress:  "0",
		GracefulShutdownTimeout: &timeout,
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(),
			ByObject: map[client.Object]cache.ByObject{
				&notificationv1.Receiver{}: {Label: labels.SelectorFromSet(s.owner.labels())},
			},
			DefaultWatchErrorHandler: s.watchFailed,
		},
		Controller: config.Controller{
			SkipNameValidation:      &gone, // the sessions before are over
			RecoverPanic:            &recovers,
			MaxConcurrentReconciles: 4,
			CacheSyncTimeout:        syncTimeout,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make a manager: %w", err)
	}
	s.cache = m.GetCache()
	build := builder.ControllerManagedBy(m).
		Named("receiver").
		For(&sourcev1.GitRepository{}, builder.WithPredicates(
			predicate.Or(predicate.GenerationChangedPredicate{}, predicate.LabelChangedPredicate{}))).
		WatchesRawSource(source.Func(s.takeQueue)).
		WithLogConstructor(func(request *reconcile.Request) logr.Logger {
			logger := s.quietLog()
			if request != nil {
				logger = logger.WithValues("source", sourceID(request.NamespacedName))
			}
			return logger
		}).
		WithOptions(controller.Options{})
	if s.receivers {
		build = build.Watches(&notificationv1.Receiver{},
			handler.EnqueueRequestForOwner(scheme, restMapper(), &sourcev1.GitRepository{}))
	}
	if err := build.Complete(s); err != nil {
		return nil, fmt.Errorf("make the receivers' controller: %w", err)
	}
	return m, nil
}

// quietLog is for controller-runtime, whose information is our debugging.
func (s *session) quietLog() logr.Logger {
	return logr.FromSlogHandler(s.log.Handler()).V(int(slog.LevelInfo - slog.LevelDebug))
}

// takeQueue lets the Controller ask for reconciliations.
func (s *session) takeQueue(_ context.Context, queue workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enqueue = func(key types.NamespacedName) { queue.Add(reconcile.Request{NamespacedName: key}) }
	return nil
}

// events is the direct way from a watch event to the source's track.
func (s *session) events() toolscache.ResourceEventHandler {
	observed := func(object any) {
		if repo, ok := object.(*sourcev1.GitRepository); ok {
			s.observed(repo)
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    observed,
		UpdateFunc: func(_, object any) { observed(object) },
		DeleteFunc: func(object any) {
			if unknown, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
				object = unknown.Obj
			}
			if repo, ok := object.(*sourcev1.GitRepository); ok {
				s.vanished(client.ObjectKeyFromObject(repo))
			}
		},
	}
}

// adopt drops what an earlier session knew and this one does not.
func (s *session) adopt(ctx context.Context) error {
	var list sourcev1.GitRepositoryList
	if err := s.cache.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list sources: %w", err)
	}
	present := make(map[types.NamespacedName]bool, len(list.Items))
	for i := range list.Items {
		present[client.ObjectKeyFromObject(&list.Items[i])] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.tracks {
		if !present[key] {
			s.drop(key)
		}
	}
	s.setSynced()
	return nil
}

// end takes back what the session gave the Controller.
func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enqueue = nil
	for _, t := range s.tracks {
		t.hook = nil
	}
}

// watchFailed takes note of a watch that broke; it is started again without
// our doing, so there is nothing to repair.
func (s *session) watchFailed(ctx context.Context, _ *toolscache.Reflector, err error) {
	if apierrors.IsResourceExpired(err) || apierrors.IsGone(err) || errors.Is(err, context.Canceled) {
		return // the reflector lists again
	}
	if apierrors.IsNotFound(err) {
		select {
		case s.missing <- struct{}{}:
		default:
		}
	}
	s.mu.Lock()
	s.failedAt = time.Now()
	s.mu.Unlock()
	s.setDetail("watching Flux: " + err.Error())
	s.log.WarnContext(ctx, "watching Flux was interrupted", "error", err)
}

// quietFor reports whether no watch broke lately.
func (s *session) quietFor(d time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.failedAt) > d
}
