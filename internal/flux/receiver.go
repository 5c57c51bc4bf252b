package flux

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	"github.com/fluxcd/pkg/apis/meta"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"tidelock.dev"
)

const (
	tokenKey         = "token"
	tokenBytes       = 32
	receiverInterval = time.Hour

	// resyncReceivers is how often a Secret is looked at although nothing
	// happened: nobody tells us when one goes missing.
	resyncReceivers = 10 * time.Minute

	// awaitReceiver is how often a Receiver that should become ready is
	// looked at beside the events it sends.
	awaitReceiver = 10 * time.Second

	// stuckAfter is when a deletion that waits for a finalizer is reported.
	stuckAfter = 30 * time.Second
)

// Reconcile keeps the Secret and the Receiver of one source, or sees to it
// that there are none.
func (s *session) Reconcile(ctx context.Context, id tidelock.SourceID) (reconcile.Result, error) {
	wish, uid, ok := s.wish(id)
	if !ok {
		return reconcile.Result{}, nil // what belonged to a deleted source is collected with it
	}
	kind, source, _ := parseID(id)
	r := &receiverStep{session: s, id: id, kind: kind, source: source, uid: uid, name: s.owner.name(source.Name, uid)}
	if err := r.find(ctx); err != nil {
		return reconcile.Result{}, err
	}
	switch wish {
	case wantReceiver:
		return r.ensure(ctx)
	case wantNoReceiver:
		return r.remove(ctx)
	}
	// Nobody has said yet whether the source is served: leave all as it is,
	// and use what is there.
	if r.receiver != nil {
		return r.ensure(ctx)
	}
	return reconcile.Result{}, nil
}

// A receiverStep is one reconciliation of one source's Receiver.
type receiverStep struct {
	*session
	id       tidelock.SourceID
	kind     *kind
	source   types.NamespacedName
	uid      types.UID
	name     string                   // of the Receiver and its Secret
	receiver *notificationv1.Receiver // nil if there is none of ours
}

func (r *receiverStep) key() types.NamespacedName {
	return types.NamespacedName{Namespace: r.source.Namespace, Name: r.name}
}

func (r *receiverStep) find(ctx context.Context) error {
	var receiver notificationv1.Receiver
	err := r.cache.Get(ctx, r.key(), &receiver)
	switch {
	case apierrors.IsNotFound(err):
		r.unstuck(r.key())
		return nil
	case err != nil:
		return fmt.Errorf("read receiver %s: %w", r.key(), err)
	}
	if r.owner.made(receiver.Labels, r.uid) {
		r.receiver = &receiver
	}
	return nil
}

func (r *receiverStep) ensure(ctx context.Context) (reconcile.Result, error) {
	if r.receiver != nil && r.receiver.DeletionTimestamp != nil {
		return r.awaitDeletion()
	}
	if r.receiver != nil && r.broken() {
		r.forgetKey(r.id) // likely the Secret is gone
	}
	key, err := r.ensureSecret(ctx)
	if errors.Is(err, errForeign) {
		r.setHook(r.id, r.uid, nil)
		if r.firstForeign(r.id, r.uid) {
			r.log.WarnContext(ctx, "secret of the receiver's name is not ours; the source is triggered by annotation", "source", r.id, "secret", r.name)
		}
		return reconcile.Result{RequeueAfter: jitter(resyncReceivers)}, nil
	}
	if err != nil {
		r.setHook(r.id, r.uid, nil)
		return reconcile.Result{}, err
	}
	if r.receiver == nil || !r.asWanted() {
		r.setHook(r.id, r.uid, nil)
		if err := r.apply(ctx, ""); err != nil {
			return reconcile.Result{}, err
		}
		return reconcile.Result{RequeueAfter: awaitReceiver}, nil
	}
	if !r.ready() {
		r.setHook(r.id, r.uid, nil)
		return r.nudge(ctx)
	}
	if r.receiver.Status.WebhookPath != r.receiver.GetWebhookPath(string(key)) {
		// The path is of another key. notification-controller does not watch
		// the Secret: it has to be told.
		r.setHook(r.id, r.uid, nil)
		return r.nudge(ctx)
	}
	r.setHook(r.id, r.uid, &hook{path: r.receiver.Status.WebhookPath, key: key})
	return reconcile.Result{RequeueAfter: jitter(resyncReceivers)}, nil
}

var errForeign = errors.New("the object is not ours")

// ensureSecret returns the key of the source's Receiver. A Secret is made
// once and keeps its key; it is immutable, and one that is not whole is made
// anew. One of the same name that is not ours stays untouched.
func (r *receiverStep) ensureSecret(ctx context.Context) ([]byte, error) {
	if key := r.rememberedKey(r.id, r.uid); key != nil {
		return key, nil
	}
	var secret corev1.Secret
	err := r.client.Get(ctx, r.key(), &secret)
	if apierrors.IsNotFound(err) {
		return r.createSecret(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", r.key(), err)
	}
	if !r.owner.made(secret.Labels, r.uid) {
		return nil, errForeign
	}
	if key := secret.Data[tokenKey]; secret.DeletionTimestamp == nil && len(key) == base64.RawURLEncoding.EncodedLen(tokenBytes) {
		r.rememberKey(r.id, r.uid, key)
		return key, nil
	}
	if err := r.deleteExactly(ctx, &secret); err != nil {
		return nil, err
	}
	return r.createSecret(ctx)
}

// createSecret is not server-side apply: only a creation fails if somebody
// else's Secret got there first.
func (r *receiverStep) createSecret(ctx context.Context) ([]byte, error) {
	random := make([]byte, tokenBytes)
	rand.Read(random) // never fails
	key := []byte(base64.RawURLEncoding.EncodeToString(random))
	immutable := true
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       r.source.Namespace,
			Name:            r.name,
			Labels:          r.owner.labelsFor(r.uid),
			OwnerReferences: []metav1.OwnerReference{r.ownerReference()},
		},
		Immutable: &immutable,
		Data:      map[string][]byte{tokenKey: key},
	}
	if err := r.client.Create(ctx, secret, client.FieldOwner(fieldManager)); err != nil {
		return nil, fmt.Errorf("create secret %s: %w", r.key(), err)
	}
	r.log.InfoContext(ctx, "receiver secret created", "source", r.id, "secret", r.name)
	r.rememberKey(r.id, r.uid, key)
	return key, nil
}

// ownerReference does not block the owner's deletion and is not exclusive.
func (r *receiverStep) ownerReference() metav1.OwnerReference {
	return metav1.OwnerReference{
		APIVersion: r.kind.GroupVersion().String(),
		Kind:       r.kind.Kind,
		Name:       r.source.Name,
		UID:        r.uid,
	}
}

func (r *receiverStep) spec() notificationv1.ReceiverSpec {
	return notificationv1.ReceiverSpec{
		Type:     notificationv1.GenericHMACReceiver,
		Interval: &metav1.Duration{Duration: receiverInterval},
		Resources: []notificationv1.CrossNamespaceObjectReference{{
			APIVersion: r.kind.GroupVersion().String(),
			Kind:       r.kind.Kind,
			Name:       r.source.Name,
		}},
		SecretRef: meta.LocalObjectReference{Name: r.name},
	}
}

// asWanted reports whether the Receiver needs no repair. Whoever suspends it
// may: its spec.suspend is not ours.
func (r *receiverStep) asWanted() bool {
	spec := r.receiver.Spec
	spec.Suspend = false
	if !equality.Semantic.DeepEqual(spec, r.spec()) {
		return false
	}
	for _, reference := range r.receiver.OwnerReferences {
		if reference.UID == r.uid {
			return true
		}
	}
	return false
}

func (r *receiverStep) ready() bool {
	return r.receiver.Status.ObservedGeneration == r.receiver.Generation &&
		apimeta.IsStatusConditionTrue(r.receiver.Status.Conditions, meta.ReadyCondition) &&
		r.receiver.Status.WebhookPath != "" &&
		!r.receiver.Spec.Suspend
}

// broken reports whether notification-controller could not make sense of the
// Receiver.
func (r *receiverStep) broken() bool {
	return apimeta.IsStatusConditionFalse(r.receiver.Status.Conditions, meta.ReadyCondition)
}

// nudge asks notification-controller to look at the Receiver again, unless it
// is about to, or was asked a moment ago.
func (r *receiverStep) nudge(ctx context.Context) (reconcile.Result, error) {
	status := r.receiver.Status
	waiting := r.receiver.Spec.Suspend ||
		status.ObservedGeneration != r.receiver.Generation && !r.broken() ||
		status.LastHandledReconcileAt != r.receiver.Annotations[meta.ReconcileRequestAnnotation]
	if !waiting && r.mayNudge(r.id) {
		if err := r.apply(ctx, requestStamp(time.Now())); err != nil {
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{RequeueAfter: awaitReceiver}, nil
}

// apply writes the Receiver. One that is not known to be ours is not forced:
// fields that somebody else holds are a conflict, and stay.
func (r *receiverStep) apply(ctx context.Context, requestedAt string) error {
	spec := r.spec()
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&spec)
	if err != nil {
		return fmt.Errorf("convert receiver %s: %w", r.key(), err)
	}
	object := &unstructured.Unstructured{Object: map[string]any{"spec": fields}}
	object.SetGroupVersionKind(notificationv1.GroupVersion.WithKind(notificationv1.ReceiverKind))
	object.SetNamespace(r.source.Namespace)
	object.SetName(r.name)
	object.SetLabels(r.owner.labelsFor(r.uid))
	object.SetOwnerReferences([]metav1.OwnerReference{r.ownerReference()})
	if requestedAt != "" {
		object.SetAnnotations(map[string]string{meta.ReconcileRequestAnnotation: requestedAt})
	}
	options := []client.ApplyOption{client.FieldOwner(fieldManager)}
	if r.receiver != nil {
		object.SetUID(r.receiver.UID)
		options = append(options, client.ForceOwnership)
	}
	if err := r.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), options...); err != nil {
		return fmt.Errorf("apply receiver %s: %w", r.key(), err)
	}
	if r.receiver == nil {
		r.log.InfoContext(ctx, "receiver created", "source", r.id, "receiver", r.name)
	} else {
		r.log.DebugContext(ctx, "receiver applied", "source", r.id, "receiver", r.name)
	}
	return nil
}

// remove deletes the Secret, then the Receiver: a Receiver that is left over
// is found again, a Secret would not be.
func (r *receiverStep) remove(ctx context.Context) (reconcile.Result, error) {
	r.setHook(r.id, r.uid, nil)
	if r.receiver == nil && r.clean(r.id, r.uid) {
		return reconcile.Result{}, nil
	}
	r.forgetKey(r.id)
	var secret corev1.Secret
	err := r.client.Get(ctx, r.key(), &secret)
	if client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("read secret %s: %w", r.key(), err)
	}
	if err == nil && r.owner.made(secret.Labels, r.uid) {
		if err := r.deleteExactly(ctx, &secret); err != nil {
			return reconcile.Result{}, err
		}
	}
	if r.receiver == nil {
		r.setClean(r.id, r.uid)
		return reconcile.Result{}, nil
	}
	if r.receiver.DeletionTimestamp != nil {
		return r.awaitDeletion()
	}
	if err := r.deleteExactly(ctx, r.receiver); err != nil {
		return reconcile.Result{}, err
	}
	r.log.InfoContext(ctx, "receiver deleted", "source", r.id, "receiver", r.name)
	return reconcile.Result{RequeueAfter: stuckAfter}, nil
}

// deleteExactly deletes the object that was read, never a namesake.
func (r *receiverStep) deleteExactly(ctx context.Context, object client.Object) error {
	uid := object.GetUID()
	err := r.client.Delete(ctx, object, client.Preconditions{UID: &uid})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete %T %s: %w", object, client.ObjectKeyFromObject(object), err)
	}
	return nil
}

// awaitDeletion waits for a Receiver to go; notification-controller has a
// finalizer on it, and it alone may take that off.
func (r *receiverStep) awaitDeletion() (reconcile.Result, error) {
	r.setHook(r.id, r.uid, nil)
	since := time.Since(r.receiver.DeletionTimestamp.Time)
	if since >= stuckAfter {
		r.reportStuck(r.id, r.key(), r.receiver.UID)
		return reconcile.Result{RequeueAfter: jitter(resyncReceivers)}, nil
	}
	return reconcile.Result{RequeueAfter: stuckAfter - since + time.Second}, nil
}

// annotate asks Flux for a reconciliation by annotating the source itself.
// The uid makes sure that a deleted source is not made again.
func (c *Controller) annotate(ctx context.Context, id tidelock.SourceID, uid types.UID) error {
	kind, source, _ := parseID(id)
	select {
	case c.annotating <- struct{}{}:
		defer func() { <-c.annotating }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, annotateTimeout)
	defer cancel()
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(kind.GroupVersionKind)
	object.SetNamespace(source.Namespace)
	object.SetName(source.Name)
	object.SetUID(uid)
	object.SetAnnotations(map[string]string{meta.ReconcileRequestAnnotation: requestStamp(time.Now())})
	// Whoever asked last for a reconciliation holds the annotation, so it has
	// to be taken.
	err := c.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), client.FieldOwner(fieldManager), client.ForceOwnership)
	if err != nil {
		return fmt.Errorf("annotate the source: %w", err)
	}
	return nil
}

const (
	annotateTimeout = 10 * time.Second

	// annotateSlots bounds the annotations under way at a time.
	annotateSlots = 16
)

// requestStamp is a value that no request had before.
func requestStamp(now time.Time) string { return now.UTC().Format(time.RFC3339Nano) }
