// Package webhook tells receivers outside what happened in a project: it makes
// deliveries of the events that the store has noted, sends them to the URLs of
// hooks, and tries again until they were taken or given up.
//
// A delivery is sent at least once, whatever dies in between: the event is a
// row written with the fact, it is replaced by deliveries in one transaction,
// and a delivery waits until an attempt was recorded. A repetition carries the
// same Idempotency-Key. Deliveries of one hook that tell of one ref keep their
// order while the earlier ones fail less than three times; a receiver that is
// slow or down delays nobody else's.
//
// It does not decide who may have a hook, that is forge's; where hooks may
// lead is its [Guard]'s.
//
//	worker, err := webhook.New(webhook.Config{Forge: f, Guard: guard, Log: log, ExternalURL: u})
//	err = worker.Run(ctx)
package webhook

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

const (
	perHook  = 4    // deliveries on their way to one hook at once
	atOnce   = 64   // to all of them
	maxWait  = 1000 // deliveries that wait for one hook
	yield    = 3    // failures after which a delivery holds up later ones no more
	expandBy = 100  // events read at once

	maxTries      = 8 // the last about an hour after the first
	maxRefusals   = 4 // answers that say that trying again will hardly help
	maxDelay      = 30 * time.Minute
	maxRetryAfter = time.Hour

	holdFrom = 4 // failures in a row
	maxHold  = 10 * time.Minute

	keepDeliveries = 100 // of one hook
	keepFor        = 7 * 24 * time.Hour

	lookAgain = 30 * time.Second
	tidyEvery = 10 * time.Minute
	stopGrace = 2 * time.Second
)

// Config is what a Worker is made of.
type Config struct {
	Forge       *forge.Forge // required
	Guard       *Guard       // required
	Log         *slog.Logger // required
	ExternalURL *url.URL     // required: where people and clients reach the server
	SSHURL      *url.URL     // where git over SSH is served; nil when it is not
	Version     string       // of the build, for User-Agent

	// Timeout bounds one call, from looking up the name to the end of the
	// answer.
	Timeout time.Duration // default 10s
	// Retry is how long after the first failure a delivery is sent again; each
	// further wait is three times as long.
	Retry time.Duration // default 5s

	// Window is how long syncs of one commit that fail, or recover, are
	// gathered into one message.
	Window time.Duration // default 10s

	Metrics prometheus.Registerer // default: not registered anywhere

	// Now is the clock.
	Now func() time.Time // default time.Now
}

// A Worker sends deliveries. It is safe for concurrent use.
type Worker struct {
	Config
	log     *slog.Logger
	outbox  forge.Outbox
	caller  *caller
	links   links
	metrics *metrics
	wake    chan struct{} // holds at most one "look again"
	heard   chan struct{} // the same, about syncs
	slots   chan struct{} // one for each delivery on its way
	tests   chan struct{} // one for each call that somebody waits for

	// stuck are the projects with an event that could not be expanded when Run
	// last tried.
	stuck map[tidelock.ProjectID]tidelock.HookEventID
}

// New makes a Worker. It does nothing until Run.
func New(c Config) (*Worker, error) {
	if c.Forge == nil || c.Guard == nil || c.Log == nil || c.ExternalURL == nil {
		return nil, errors.New("webhook: Forge, Guard, Log and ExternalURL are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Timeout = cmp.Or(c.Timeout, 10*time.Second)
	c.Retry = cmp.Or(c.Retry, 5*time.Second)
	c.Window = cmp.Or(c.Window, 10*time.Second)
	instance := strings.TrimRight(c.ExternalURL.String(), "/")
	w := &Worker{
		Config: c, log: c.Log.With("component", "webhook"), outbox: c.Forge.Outbox(),
		caller: newCaller(c.Guard, c.Timeout, instance, "Tidelock/"+cmp.Or(c.Version, "devel"), c.Now),
		links:  links{external: *c.ExternalURL, ssh: c.SSHURL},
		wake:   make(chan struct{}, 1), heard: make(chan struct{}, 1), slots: make(chan struct{}, atOnce), tests: make(chan struct{}, atOnce),
	}
	w.metrics = newMetrics(c.Metrics, func() int { return len(w.slots) })
	return w, nil
}

func (w *Worker) ring() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *Worker) hear() {
	select {
	case w.heard <- struct{}{}:
	default:
	}
}

// Run sends what is due until ctx is done. Deliveries on their way then get
// two seconds to come to an end, and are sent again by the next one otherwise.
func (w *Worker) Run(ctx context.Context) error {
	defer w.caller.close()
	pushed, err := forge.Subscribe(w.Forge, func(tidelock.Pushed) { w.ring() })
	if err != nil {
		return fmt.Errorf("hear of pushes: %w", err)
	}
	defer pushed.Close()
	due, err := forge.Subscribe(w.Forge, func(tidelock.HooksDue) { w.ring() })
	if err != nil {
		return fmt.Errorf("hear of hooks that are due: %w", err)
	}
	defer due.Close()
	rolled, err := forge.Subscribe(w.Forge, func(tidelock.RolloutChanged) { w.hear() })
	if err != nil {
		return fmt.Errorf("hear of rollouts: %w", err)
	}
	defer rolled.Close()
	defer w.Forge.OnLag(func() { w.ring(); w.hear() })()

	sending, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopGrace, cut) })()
	wg.Go(func() { w.tellNews(ctx) })

	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	w.tidy(ctx)
	for {
		again := w.look(ctx, sending, &wg)
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-w.wake:
		case <-timer.C:
		case <-tidy.C:
			w.tidy(ctx)
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// look expands what was noted and begins to send what is due. It returns how
// long nothing more will be, unless somebody rings.
func (w *Worker) look(ctx, sending context.Context, wg *sync.WaitGroup) time.Duration {
	again := lookAgain
	if !w.expandAll(ctx) {
		again = retryExpand
	}
	for {
		free := cap(w.slots) - len(w.slots)
		if free == 0 {
			return again // whoever ends rings
		}
		deliveries, err := w.outbox.ClaimDeliveries(ctx, w.claim(free))
		if err != nil {
			w.warn(ctx, "deliveries not read", err)
			return retryStore
		}
		for _, d := range deliveries {
			w.slots <- struct{}{} // there is room: only this goroutine takes slots
			wg.Go(func() {
				defer w.ring()
				defer func() { <-w.slots }()
				w.deliver(sending, d)
			})
		}
		if len(deliveries) < free {
			break
		}
	}
	next, err := w.outbox.NextDelivery(ctx, yield)
	if err != nil {
		w.warn(ctx, "deliveries not read", err)
		return retryStore
	}
	if next.IsZero() {
		return again
	}
	// What is due and was not claimed waits for another one to end, which rings,
	// or has become due just now.
	return min(max(next.Sub(w.Now()), 250*time.Millisecond), again)
}

const (
	retryStore  = time.Second
	retryExpand = 5 * time.Second
)

func (w *Worker) claim(limit int) tidelock.Claim {
	now := w.Now().UTC()
	return tidelock.Claim{Now: now, Until: now.Add(2*w.Timeout + stopGrace), Limit: limit, PerHook: perHook, Yield: yield}
}

func (w *Worker) warn(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		w.log.WarnContext(ctx, what, "error", err)
	}
}

func (w *Worker) tidy(ctx context.Context) {
	if err := w.outbox.TrimDeliveries(ctx, w.Now().Add(-keepFor), keepDeliveries); err != nil {
		w.warn(ctx, "old deliveries not removed", err)
	}
}

// deliver makes one attempt and writes down what came of it.
func (w *Worker) deliver(ctx context.Context, d tidelock.Delivery) {
	hook, err := w.outbox.Hook(ctx, d.Hook)
	if err != nil {
		if tidelock.KindOf(err) != tidelock.NotFound { // a hook takes its deliveries with it
			w.warn(ctx, "hook not read", err)
		}
		return // it comes again when the lease ends
	}
	attempt, wait := w.caller.call(ctx, hook, d)
	hold := w.hold
	if cut := ctx.Err() != nil && attempt.Status == 0; cut {
		d.NextAt, hold = w.Now().UTC(), nil // not the receiver's fault: it counts for nothing
	} else {
		w.metrics.called(attempt)
		d.Attempt = attempt
		d.Tries++
		w.judge(&d, wait)
	}
	saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if _, err := w.outbox.SaveAttempt(saving, d, hold); err != nil && tidelock.KindOf(err) != tidelock.NotFound {
		w.warn(saving, "delivery not recorded: it will be sent again", err)
		return
	}
	switch d.State {
	case tidelock.DeliveryDone:
		w.log.DebugContext(ctx, "hook called", "project", hook.Project, "hook", hook.ID, "delivery", d.ID, "status", attempt.Status, "took", attempt.Took)
	case tidelock.DeliveryFailed:
		w.metrics.givenUp.Inc()
		w.log.WarnContext(ctx, "delivery given up", "project", hook.Project, "hook", hook.ID, "delivery", d.ID, "tries", d.Tries, "status", attempt.Status)
	default:
		w.log.DebugContext(ctx, "delivery failed", "project", hook.Project, "hook", hook.ID, "delivery", d.ID, "tries", d.Tries, "status", attempt.Status)
	}
}

// judge says what follows from the last attempt of a delivery.
func (w *Worker) judge(d *tidelock.Delivery, wait time.Duration) {
	tries := maxTries
	if s := d.Attempt.Status; s >= 300 && s <= 499 && s != http.StatusRequestTimeout && s != http.StatusTooManyRequests {
		tries = maxRefusals
	}
	switch {
	case d.Attempt.Delivered():
		d.State = tidelock.DeliveryDone
	case d.Tries >= tries:
		d.State = tidelock.DeliveryFailed
	default:
		d.State = tidelock.DeliveryWaiting
		d.NextAt = d.Attempt.At.Add(max(wait, w.backoff(d.Tries)))
	}
}

// backoff is how long to wait after so many tries: three times as long as
// before, give or take a fifth, so that what failed together does not come
// back together.
func (w *Worker) backoff(tries int) time.Duration {
	delay := w.Retry
	for range tries - 1 {
		delay = min(3*delay, maxDelay)
	}
	return delay*4/5 + rand.N(max(delay*2/5, 1))
}

// hold is how long a hook is left alone after so many failures in a row.
func (w *Worker) hold(failures int) time.Duration {
	if failures < holdFrom {
		return 0
	}
	delay := 12 * w.Retry // a minute
	for range failures - holdFrom {
		delay = min(2*delay, maxHold)
	}
	return delay
}

// Test calls a hook once with a sample made of what is in the project, while
// the caller waits, and keeps that among its deliveries.
func (w *Worker) Test(ctx context.Context, p forge.Principal, project tidelock.Project, id tidelock.HookID, kind tidelock.HookKind) (tidelock.Attempt, error) {
	hook, err := w.Forge.HookFor(ctx, p, project, id, forge.ManageHooks)
	if err != nil {
		return tidelock.Attempt{}, err
	}
	facts, err := w.Forge.HookSample(ctx, p, project, kind)
	if err != nil {
		return tidelock.Attempt{}, err
	}
	bodies, err := w.bodies(ctx, tidelock.HookEvent{Project: project.ID, Kind: kind, At: w.Now().UTC()}, facts)
	if err != nil {
		return tidelock.Attempt{}, err
	}
	if len(bodies) == 0 {
		return tidelock.Attempt{}, tidelock.Errorf(tidelock.Invalid, "there is nothing to test the hook with")
	}
	return w.callNow(ctx, hook, tidelock.Delivery{
		Kind: kind, Ref: bodies[0].ref, Body: bodies[0].text, UUID: newUUID(), Event: newUUID(),
	})
}

// Resend sends a delivery once more, as it was, while the caller waits. It
// keeps its Idempotency-Key.
func (w *Worker) Resend(ctx context.Context, p forge.Principal, project tidelock.Project, id tidelock.HookID, delivery tidelock.DeliveryID) (tidelock.Attempt, error) {
	hook, d, err := w.Forge.DeliveryFor(ctx, p, project, id, delivery, forge.ManageHooks)
	if err != nil {
		return tidelock.Attempt{}, err
	}
	return w.callNow(ctx, hook, tidelock.Delivery{Kind: d.Kind, Ref: d.Ref, Body: d.Body, UUID: d.UUID, Event: d.Event})
}

func (w *Worker) callNow(ctx context.Context, hook tidelock.Hook, d tidelock.Delivery) (tidelock.Attempt, error) {
	select {
	case w.tests <- struct{}{}:
		defer func() { <-w.tests }()
	default:
		return tidelock.Attempt{}, tidelock.Errorf(tidelock.Unavailable, "too many hooks are being tested; try again")
	}
	d.Hook, d.Test, d.Tries, d.State = hook.ID, true, 1, tidelock.DeliveryFailed
	d.Attempt, _ = w.caller.call(ctx, hook, d)
	w.metrics.called(d.Attempt)
	if d.Attempt.Delivered() {
		d.State = tidelock.DeliveryDone
	}
	saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	_, err := w.outbox.SaveAttempt(saving, d, nil)
	w.ring() // a success may have ended the hook's being held
	return d.Attempt, err
}
