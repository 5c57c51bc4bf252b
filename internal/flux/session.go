package flux

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"github.com/go-logr/logr"
	authorizationv1 "k8s.io/api/authorization/v1"
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
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"tidelock.dev"
)

const (
	absentPollFirst = 500 * time.Millisecond // while Flux is not installed; doubles
	absentPollMax   = 5 * time.Second
	presentPoll     = 15 * time.Second // to notice that Flux was removed
	discoverTimeout = 10 * time.Second
	syncTimeout     = 30 * time.Second
	stopTimeout     = 3 * time.Second
)

// An installation is what of Flux's APIs the cluster serves and we may read.
type installation struct {
	kinds     []*kind // of sources
	appliers  []*applierKind
	receivers bool
	refused   []string // resources that are served, and not to us
}

func (i installation) same(other installation) bool {
	return slices.Equal(i.kinds, other.kinds) && slices.Equal(i.appliers, other.appliers) && i.receivers == other.receivers && slices.Equal(i.refused, other.refused)
}

// missing says in a sentence what is not there; empty if all is.
func (i installation) missing() string {
	switch {
	case len(i.refused) > 0:
		return "the agent may not watch " + strings.Join(i.refused, ", ") + ": apply the manifests of this version of the agent"
	case len(i.kinds) == 0:
		return "Flux is not installed: the cluster serves no sources of " + sourcev1.GroupVersion.String()
	case !i.receivers:
		return "notification-controller is not installed: sources are triggered by annotation"
	}
	var absent []string
	for _, k := range kinds {
		// Whoever has no use for image-reflector-controller does without.
		if k != imageRepository && !slices.Contains(i.kinds, k) {
			absent = append(absent, k.Kind)
		}
	}
	if len(absent) > 0 {
		return "the cluster does not serve " + strings.Join(absent, ", ") + " of " + sourcev1.GroupVersion.String()
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
		if err == nil && len(found.kinds) > 0 {
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

// discover asks the API server what it serves, and to us.
func (c *Controller) discover(ctx context.Context) (found installation, err error) {
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	served := make(map[schema.GroupVersion][]string)
	usable := func(version schema.GroupVersion, needed ...string) (bool, error) {
		names, known := served[version]
		if !known {
			var err error
			if names, err = c.resources(ctx, version); err != nil {
				return false, err
			}
			served[version] = names
		}
		for _, resource := range needed {
			if !slices.Contains(names, resource) {
				return false, nil
			}
		}
		for _, resource := range needed {
			may, err := c.mayWatch(ctx, version.Group, resource)
			if err != nil {
				return false, err
			}
			if !may {
				found.refused = append(found.refused, resource)
				return false, nil
			}
		}
		return true, nil
	}
	for _, k := range kinds {
		ok, err := usable(k.GroupVersion(), append([]string{k.resource}, k.needs...)...)
		if err != nil {
			return installation{}, err
		}
		if ok {
			found.kinds = append(found.kinds, k)
		}
	}
	if len(found.kinds) == 0 {
		return found, nil
	}
	for _, k := range applierKinds {
		ok, err := usable(k.GroupVersion(), k.resource)
		if err != nil {
			return installation{}, err
		}
		if ok {
			found.appliers = append(found.appliers, k)
		}
	}
	found.receivers, err = usable(notificationv1.GroupVersion, "receivers")
	return found, err
}

// resources lists what the API server serves of a version, none if it does
// not know it.
func (c *Controller) resources(ctx context.Context, version schema.GroupVersion) ([]string, error) {
	var list metav1.APIResourceList
	err := c.discovery.RESTClient().Get().AbsPath("/apis", version.Group, version.Version).Do(ctx).Into(&list)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask the API server for %s: %w", version, err)
	}
	var names []string
	for _, r := range list.APIResources {
		names = append(names, r.Name)
	}
	return names, nil
}

// mayWatch asks the API server if we may list and watch a resource. Rights
// come with the agent's manifests, which may be older than the agent: a kind
// that is not ours to see must not keep the others waiting.
func (c *Controller) mayWatch(ctx context.Context, group, resource string) (bool, error) {
	for _, verb := range []string{"list", "watch"} {
		review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
			ResourceAttributes: &authorizationv1.ResourceAttributes{Group: group, Resource: resource, Verb: verb},
		}}
		err := c.client.Create(ctx, review)
		if apierrors.IsForbidden(err) {
			return true, nil // we may not even ask; the watch will tell
		}
		if err != nil {
			return false, fmt.Errorf("ask the API server if %s may be watched: %w", resource, err)
		}
		if !review.Status.Allowed {
			return false, nil
		}
	}
	return true, nil
}

func (c *Controller) setInstallation(found installation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Installed = len(found.kinds) > 0
	c.status.Detail = found.missing()
	for id := range c.tracks {
		if k, _, _ := parseID(id); !slices.Contains(found.kinds, k) {
			c.drop(id)
		}
	}
	for id, a := range c.appliers {
		if len(found.kinds) == 0 || !slices.Contains(found.appliers, a.kind) {
			c.dropApplier(id)
		}
	}
	if len(found.kinds) == 0 {
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
	c.startObservations(time.Now())
}

// A session is the time in which one installation of Flux stays as it is.
type session struct {
	*Controller
	installation
	cache   cache.Cache
	adopted chan struct{} // closed when the set of sources is known
	missing chan struct{} // has an entry if a watch found its kind gone

	present  map[tidelock.ObjectID]bool // what there was at the beginning; guarded by the Controller's mutex
	failedAt time.Time                  // when a watch broke last; likewise
}

// errUnsynced ends a session whose kinds may be others than discovery said.
var errUnsynced = errors.New("the API server did not list all sources in time")

// runSession watches Flux until ctx is done, the installation changes, or the
// watching fails.
func (c *Controller) runSession(ctx context.Context, found installation) error {
	s := &session{
		Controller:   c,
		installation: found,
		adopted:      make(chan struct{}),
		missing:      make(chan struct{}, 1),
		present:      make(map[tidelock.ObjectID]bool),
	}
	m, err := s.newManager()
	if err != nil {
		return err
	}
	synced, err := s.watchAll(ctx)
	if err != nil {
		return err
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
	soon, cancel := context.WithTimeoutCause(ctx, syncTimeout, errUnsynced)
	defer cancel()
	if !toolscache.WaitForCacheSync(soon.Done(), synced...) {
		return context.Cause(soon)
	}
	s.adopt()
	c.log.InfoContext(ctx, "watching Flux", "sources", c.Status().Sources, "receivers", found.receivers)
	poll := presentPoll
	if found.missing() != "" {
		poll = absentPollMax
	}
	for s.wait(ctx, poll) {
		now, err := c.discover(ctx)
		switch {
		case err != nil:
		case !now.same(found):
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
	mapper.Add(authorizationv1.SchemeGroupVersion.WithKind("SelfSubjectAccessReview"), apimeta.RESTScopeRoot)
	mapper.Add(sourcev1.GroupVersion.WithKind(sourcev1.HelmRepositoryKind), apimeta.RESTScopeNamespace)
	mapper.Add(notificationv1.GroupVersion.WithKind(notificationv1.ReceiverKind), apimeta.RESTScopeNamespace)
	for _, k := range kinds {
		mapper.Add(k.GroupVersionKind, apimeta.RESTScopeNamespace)
	}
	for _, k := range applierKinds {
		mapper.Add(k.GroupVersionKind, apimeta.RESTScopeNamespace)
	}
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
				kustomization.object:       {Transform: kustomization.keep},
				helmRelease.object:         {Transform: helmRelease.keep},
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
	if !s.receivers {
		return m, nil
	}
	err = builder.TypedControllerManagedBy[tidelock.SourceID](m).
		Named("receiver").
		Watches(&notificationv1.Receiver{}, handler.TypedEnqueueRequestsFromMapFunc(sourcesOf)).
		WatchesRawSource(s).
		WithLogConstructor(func(id *tidelock.SourceID) logr.Logger {
			logger := s.quietLog()
			if id != nil {
				logger = logger.WithValues("source", *id)
			}
			return logger
		}).
		Complete(s)
	if err != nil {
		return nil, fmt.Errorf("make the receivers' controller: %w", err)
	}
	return m, nil
}

// sourcesOf names the sources that a Receiver belongs to.
func sourcesOf(_ context.Context, receiver client.Object) (ids []tidelock.SourceID) {
	for _, owner := range receiver.GetOwnerReferences() {
		if k := kindOf(tidelock.SourceKind(owner.Kind)); k != nil && owner.APIVersion == k.GroupVersion().String() {
			ids = append(ids, k.id(types.NamespacedName{Namespace: receiver.GetNamespace(), Name: owner.Name}))
		}
	}
	return ids
}

// quietLog is for controller-runtime, whose information is our debugging.
func (s *session) quietLog() logr.Logger {
	return logr.FromSlogHandler(s.log.Handler()).V(int(slog.LevelInfo - slog.LevelDebug))
}

// Start lets the Controller ask for reconciliations.
func (s *session) Start(_ context.Context, queue workqueue.TypedRateLimitingInterface[tidelock.SourceID]) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enqueue = queue.Add
	for id := range s.tracks {
		queue.Add(id)
	}
	return nil
}

// WaitForSync holds reconciliations back until it is known of every source
// whether it is the forge's: before, a chart may lack its HelmRepository.
func (s *session) WaitForSync(ctx context.Context) error {
	select {
	case <-s.adopted:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// watchAll has tracks told of every change of their sources. What it returns
// say whether all has been told that there is.
func (s *session) watchAll(ctx context.Context) (synced []toolscache.InformerSynced, err error) {
	for _, k := range s.kinds {
		has, err := s.watchKind(ctx, k.object,
			func(object client.Object) { s.observed(k, object) },
			func(name types.NamespacedName) { s.vanished(k.id(name)) },
			func(name types.NamespacedName) tidelock.ObjectID { return tidelock.ObjectID(k.id(name)) })
		if err != nil {
			return nil, err
		}
		synced = append(synced, has)
	}
	for _, k := range s.installation.appliers {
		has, err := s.watchKind(ctx, k.object,
			func(object client.Object) { s.applierObserved(k, object) },
			func(name types.NamespacedName) { s.applierVanished(k.id(name)) },
			k.id)
		if err != nil {
			return nil, err
		}
		synced = append(synced, has)
	}
	if !slices.Contains(s.kinds, helmChart) {
		return synced, nil
	}
	has, err := s.watchKind(ctx, &sourcev1.HelmRepository{},
		func(object client.Object) {
			s.registryObserved(client.ObjectKeyFromObject(object), readRegistry(object.(*sourcev1.HelmRepository)))
		},
		func(name types.NamespacedName) { s.registryObserved(name, registry{}) },
		func(name types.NamespacedName) tidelock.ObjectID { return tidelock.ObjectID(registryID(name)) })
	return append(synced, has), err
}

// watchKind is the direct way from a watch event to what wants to know.
func (s *session) watchKind(ctx context.Context, object client.Object, observed func(client.Object), vanished func(types.NamespacedName), id func(types.NamespacedName) tidelock.ObjectID) (toolscache.InformerSynced, error) {
	informer, err := s.cache.GetInformer(ctx, object, cache.BlockUntilSynced(false))
	if err != nil {
		return nil, fmt.Errorf("watch %T: %w", object, err)
	}
	registration, err := informer.AddEventHandler(toolscache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(added any, initial bool) {
			object := added.(client.Object)
			if initial {
				s.note(id(client.ObjectKeyFromObject(object)))
			}
			observed(object)
		},
		UpdateFunc: func(_, updated any) { observed(updated.(client.Object)) },
		DeleteFunc: func(deleted any) {
			if unknown, ok := deleted.(toolscache.DeletedFinalStateUnknown); ok {
				deleted = unknown.Obj
			}
			if object, ok := deleted.(client.Object); ok {
				vanished(client.ObjectKeyFromObject(object))
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("watch %T: %w", object, err)
	}
	return registration.HasSynced, nil
}

// note takes that something is there at the beginning of the session.
func (s *session) note(id tidelock.ObjectID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.present[id] = true
}

// adopt drops what an earlier session knew and this one does not.
func (s *session) adopt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.registries {
		if !s.present[tidelock.ObjectID(id)] {
			s.relocate(id, registry{})
		}
	}
	for id := range s.tracks {
		if !s.present[tidelock.ObjectID(id)] {
			s.drop(id)
		}
	}
	for id := range s.Controller.appliers {
		if !s.present[id] {
			s.dropApplier(id)
		}
	}
	s.present = nil
	s.setSynced()
	close(s.adopted)
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
