package flux

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"tidelock.dev"
)

// secretPoll is how often the Secret of a source that fails is looked at.
const secretPoll = 5 * time.Second

// dispatch makes the calls that tracks want and wakes tracks in time. A track
// has one call under way at most, so there are never more than sources.
func (c *Controller) dispatch(ctx context.Context) {
	var calls sync.WaitGroup
	defer calls.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		ready, next := c.due(time.Now())
		for _, job := range ready {
			calls.Go(func() { c.perform(ctx, job) })
		}
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-c.bell:
		case <-timer.C:
		}
	}
}

// due wakes the tracks whose time has come, and returns the calls to be made
// and the next deadline.
func (c *Controller) due(now time.Time) (ready []call, next time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.tracks {
		if t.armed.IsZero() {
			continue
		}
		if !now.Before(t.armed) {
			t.wake(now)
			c.follow(t)
		}
		if !t.armed.IsZero() && (next.IsZero() || t.armed.Before(next)) {
			next = t.armed
		}
	}
	if due := c.revisit(now); !due.IsZero() && (next.IsZero() || due.Before(next)) {
		next = due
	}
	ready, c.calls = c.calls, nil
	return ready, next
}

// perform makes one call and hands its outcome to the track.
func (c *Controller) perform(ctx context.Context, job call) {
	c.mu.Lock()
	ep := c.endpoint
	c.mu.Unlock()

	usable, probe := false, false
	if job.hook != nil {
		usable, probe = ep.usable(time.Now())
	}
	o := c.trigger(ctx, ep, usable, job)
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	if t := c.tracks[job.source]; t != nil {
		t.end(job, o, time.Now())
		c.follow(t)
	}
	c.mu.Unlock()

	if probe {
		_, err := ep.post(ctx, job.hook, job.body(), job.idempotencyKey())
		ep.record(err, time.Now())
		if err == nil {
			c.log.InfoContext(ctx, "the receivers' endpoint is back")
		}
	}
}

// trigger asks Flux to fetch: through the Receiver if that works, and
// otherwise by annotation.
func (c *Controller) trigger(ctx context.Context, ep *endpoint, usable bool, job call) (o outcome) {
	var silent error // why the receiver did not do
	switch {
	case usable:
		o = ep.poke(ctx, job.hook, job.body(), job.idempotencyKey())
		c.metrics.triggered(ViaReceiver, o.err)
		if o.err == nil || ctx.Err() != nil {
			return o
		}
		c.log.WarnContext(ctx, "receiver did not take the call; annotating the source", "source", job.source, "attempts", o.attempts, "error", o.err)
		if _, answered := errors.AsType[statusError](o.err); answered {
			c.doubt(job.source)
		}
		silent = o.err
	case job.hook != nil:
		silent = errEndpointDown
	}
	if o.called.IsZero() {
		o.called = time.Now()
	}
	o.via = ViaAnnotation
	o.attempts++
	o.err = c.annotate(ctx, job.source, job.uid)
	o.answered = time.Now()
	c.metrics.triggered(ViaAnnotation, o.err)
	if o.err != nil && ctx.Err() == nil {
		c.log.WarnContext(ctx, "source could not be annotated", "source", job.source, "error", o.err)
	}
	if o.err != nil && silent != nil {
		o.err = fmt.Errorf("the webhook receiver did not take the call (%w), and the source could not be annotated: %w", silent, o.err)
	}
	return o
}

// errEndpointDown stands for calls that are not made, after others failed.
var errEndpointDown = errors.New("its address has not answered lately")

// doubt has a Receiver and its Secret looked at again.
func (c *Controller) doubt(id tidelock.SourceID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.keys, id)
	c.lookAgain(id)
}

// pollSecrets looks at the Secrets of failing sources, since a Secret that
// was repaired sends us no event.
func (c *Controller) pollSecrets(ctx context.Context) {
	for pause(ctx, secretPoll) {
		versions := make(map[types.NamespacedName]string)
		for id, secrets := range c.failing() {
			version, err := c.secretVersions(ctx, secrets, versions)
			if err != nil {
				c.log.DebugContext(ctx, "secret of a failing source cannot be read", "source", id, "error", err)
				continue
			}
			c.mu.Lock()
			if t := c.tracks[id]; t != nil {
				t.secretSeen(version, time.Now())
				c.follow(t)
			}
			c.mu.Unlock()
		}
	}
}

// failing returns the failing sources and the Secrets they need.
func (c *Controller) failing() map[tidelock.SourceID][]types.NamespacedName {
	c.mu.Lock()
	defer c.mu.Unlock()
	secrets := make(map[tidelock.SourceID][]types.NamespacedName)
	for id, t := range c.tracks {
		if !t.failing() {
			continue
		}
		_, source, _ := parseID(id)
		for _, name := range t.seen.secretNames() {
			secrets[id] = append(secrets[id], types.NamespacedName{Namespace: source.Namespace, Name: name})
		}
	}
	return secrets
}

// secretVersions reads the versions of some Secrets, except those that are
// known already.
func (c *Controller) secretVersions(ctx context.Context, secrets []types.NamespacedName, known map[types.NamespacedName]string) (string, error) {
	var versions []string
	for _, secret := range secrets {
		version, ok := known[secret]
		if !ok {
			var err error
			if version, err = c.secretVersion(ctx, secret); err != nil {
				return "", fmt.Errorf("read secret %s: %w", secret, err)
			}
			known[secret] = version
		}
		versions = append(versions, version)
	}
	return strings.Join(versions, " "), nil
}

// secretVersion reads the version of a Secret, without its content; a missing
// one has a version too.
func (c *Controller) secretVersion(ctx context.Context, key types.NamespacedName) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, annotateTimeout)
	defer cancel()
	var secret metav1.PartialObjectMetadata
	secret.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
	if err := c.client.Get(ctx, key, &secret); client.IgnoreNotFound(err) != nil {
		return "", err
	}
	return string(secret.UID) + "/" + secret.ResourceVersion, nil
}

// What follows is what reconciliations ask of and tell the Controller.

type wish int

const (
	undecided wish = iota
	wantReceiver
	wantNoReceiver
)

// wish says what a source is to have; false if there is no such source.
func (c *Controller) wish(id tidelock.SourceID) (w wish, uid types.UID, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.tracks[id]
	if t == nil {
		return undecided, "", false
	}
	served, known := c.resolutions[id]
	switch {
	case c.matches == nil:
		w = undecided
	case !t.ours:
		w = wantNoReceiver
	case !known:
		w = undecided
	case served:
		w = wantReceiver
	default:
		w = wantNoReceiver
	}
	return w, t.seen.uid, true
}

func (c *Controller) setHook(id tidelock.SourceID, uid types.UID, h *hook) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.tracks[id]; t != nil && t.seen.uid == uid {
		t.hook = h
	}
}

// rememberedKey returns the key of a source's Receiver unless it was read too
// long ago.
func (c *Controller) rememberedKey(id tidelock.SourceID, uid types.UID) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.keys[id]
	if !ok || k.uid != uid || time.Since(k.readAt) > resyncReceivers/2 {
		return nil
	}
	return k.key
}

func (c *Controller) rememberKey(id tidelock.SourceID, uid types.UID, key []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys[id] = receiverKey{uid: uid, key: key, readAt: time.Now()}
	delete(c.cleaned, id)
	delete(c.foreign, id)
}

func (c *Controller) forgetKey(id tidelock.SourceID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.keys, id)
}

// firstForeign reports whether it is news that the Secret's name is taken.
func (c *Controller) firstForeign(id tidelock.SourceID, uid types.UID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.foreign[id]
	c.foreign[id] = uid
	return before != uid
}

// mayNudge reports whether a Receiver may be asked to be looked at, which is
// once in a while: each time it fails, it tells us.
func (c *Controller) mayNudge(id tidelock.SourceID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.nudged[id]) < awaitReceiver {
		return false
	}
	c.nudged[id] = now
	return true
}

// clean reports whether a source that is to have no Secret of ours is known
// to have none. One that never belonged to the forge is taken to be clean.
func (c *Controller) clean(id tidelock.SourceID, uid types.UID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, made := c.keys[id]; made {
		return false
	}
	if _, resolved := c.resolutions[id]; !resolved {
		return true
	}
	return c.cleaned[id] == uid
}

func (c *Controller) setClean(id tidelock.SourceID, uid types.UID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cleaned[id] = uid
}

// reportStuck says once that a Receiver's deletion waits for its finalizer.
func (c *Controller) reportStuck(id tidelock.SourceID, receiver types.NamespacedName, uid types.UID) {
	c.mu.Lock()
	before := c.stuck[receiver]
	c.stuck[receiver] = uid
	c.mu.Unlock()
	if before != uid {
		c.log.Warn("deletion of a receiver waits for notification-controller", "source", id, "receiver", receiver)
	}
}

func (c *Controller) unstuck(receiver types.NamespacedName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.stuck, receiver)
}
