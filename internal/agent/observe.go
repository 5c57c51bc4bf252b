package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/flux"
	"tidelock.dev/internal/health"
)

const (
	// observeEvery is the least time between messages: what changes meanwhile is
	// told once.
	observeEvery = 40 * time.Millisecond

	// maxObserveRequest bounds a message, in bytes.
	maxObserveRequest = 256 << 10
)

// observe runs one stream of observations until it fails or ctx is done.
func (c *connection) observe(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	stream, err := c.observations.CallClientStream(ctx).Conn()
	if err != nil {
		return err
	}
	if err := stream.Send(nil); err != nil && !errors.Is(err, io.EOF) { // the headers, so that an answer can come
		return err
	}
	feed := c.flux().SubscribeObservations()

	var group sync.WaitGroup
	group.Go(func() {
		// That the server ended the stream is told why by its answer.
		if err := c.sendObservations(ctx, stream, feed); !errors.Is(err, io.EOF) {
			stop(err)
		}
	})
	// The server answers only to end the stream, and says why.
	err = stream.Receive(&agentrpc.ObserveResponse{})
	if err == nil || errors.Is(err, io.EOF) {
		err = errors.New("the server ended it")
	}
	stop(err)
	group.Wait()
	return errors.Join(context.Cause(ctx), ignoreEnd(stream.CloseRequest()), ignoreEnd(stream.CloseResponse()))
}

// sendObservations sends what the feed says.
func (c *connection) sendObservations(ctx context.Context, stream connect.StreamingClientConn, feed *flux.ObservationFeed) error {
	for {
		observations, err := feed.Next(ctx)
		if err != nil {
			return err
		}
		for _, m := range observeRequests(observations, time.Now()) {
			if err := stream.Send(m); err != nil {
				return fmt.Errorf("send observations: %w", err)
			}
		}
		c.metrics.observations.Add(float64(len(observations.Upserts) + len(observations.Removals)))
		pause(ctx, observeEvery)
	}
}

// observeRequests puts observations into messages of bounded size. Their times
// become spans back from now.
func observeRequests(o flux.Observations, now time.Time) (requests []*agentrpc.ObserveRequest) {
	m := &agentrpc.ObserveRequest{Begin: o.Complete}
	size := 0
	room := func(n int) {
		if size += n; size > maxObserveRequest && size > n {
			requests = append(requests, m)
			m, size = &agentrpc.ObserveRequest{}, n
		}
	}
	const overhead = 16 // of a field, and of the message
	for _, upsert := range o.Upserts {
		observation := observationMessage(upsert, now)
		room(proto.Size(observation) + overhead)
		m.Upserts = append(m.Upserts, observation)
	}
	for _, id := range o.Removals {
		room(len(id) + overhead)
		m.Removals = append(m.Removals, string(id))
	}
	m.End = o.Complete
	return append(requests, m)
}

var observedMessage = map[tidelock.ObservedState]agentrpc.Observation_ObservedState{
	tidelock.ObservedUnknown:     agentrpc.Observation_OBSERVED_STATE_UNSPECIFIED,
	tidelock.ObservedProgressing: agentrpc.Observation_OBSERVED_STATE_PROGRESSING,
	tidelock.ObservedBlocked:     agentrpc.Observation_OBSERVED_STATE_BLOCKED,
	tidelock.ObservedReady:       agentrpc.Observation_OBSERVED_STATE_READY,
	tidelock.ObservedFailed:      agentrpc.Observation_OBSERVED_STATE_FAILED,
	tidelock.ObservedStalled:     agentrpc.Observation_OBSERVED_STATE_STALLED,
}

var healthMessage = map[tidelock.Health]agentrpc.Observation_Health{
	tidelock.HealthUnknown:     agentrpc.Observation_HEALTH_UNSPECIFIED,
	tidelock.HealthHealthy:     agentrpc.Observation_HEALTH_HEALTHY,
	tidelock.HealthProgressing: agentrpc.Observation_HEALTH_PROGRESSING,
	tidelock.HealthFailed:      agentrpc.Observation_HEALTH_FAILED,
	tidelock.HealthMissing:     agentrpc.Observation_HEALTH_MISSING,
}

func observationMessage(o tidelock.Observation, now time.Time) *agentrpc.Observation {
	m := &agentrpc.Observation{
		Object:      string(o.Object),
		Uid:         o.UID,
		Suspended:   o.Suspended,
		State:       observedMessage[o.State],
		Reason:      o.Reason,
		Message:     o.Message,
		Revision:    o.Revision,
		Interval:    spanMessage(o.Interval),
		Requested:   o.Requested,
		Since:       ago(o.Since, now),
		Attempted:   o.Attempted,
		Source:      string(o.Source),
		Path:        o.Path,
		Chart:       o.Chart,
		Namespace:   o.Namespace,
		Environment: o.Environment,
		Timeout:     spanMessage(o.Timeout),
		Health:      healthMessage[o.Health],
		Objects:     int32(o.Objects),
	}
	for _, id := range o.DependsOn {
		m.DependsOn = append(m.DependsOn, string(id))
	}
	for _, u := range o.Unhealthy {
		m.Unhealthy = append(m.Unhealthy, &agentrpc.ObjectHealth{
			Kind: u.Kind, Namespace: u.Namespace, Name: u.Name,
			Health: healthMessage[u.Health], Reason: u.Reason, Message: u.Message, Pod: u.Pod,
		})
	}
	for _, out := range o.Outcomes {
		m.Outcomes = append(m.Outcomes, &agentrpc.Outcome{
			Revision: out.Revision, State: observedMessage[out.State], Reason: out.Reason, Message: out.Message,
			Health:    healthMessage[out.Health],
			Attempted: ago(out.AttemptedAt, now), Applied: ago(out.AppliedAt, now),
			Healthy: ago(out.HealthyAt, now), Failed: ago(out.FailedAt, now),
		})
	}
	return m
}

// ago is the span from t to now, unset for the zero time.
func ago(t, now time.Time) *durationpb.Duration {
	if t.IsZero() {
		return nil
	}
	return durationpb.New(max(now.Sub(t), 0))
}

// watchHealth makes who follows the objects that the controller's appliers
// bring, and has each tell the other.
func (a *Agent) watchHealth(controller *flux.Controller) (*health.Watcher, error) {
	watcher, err := health.New(health.Config{
		REST:    a.config.REST,
		Log:     a.log.With("component", "health"),
		Metrics: a.registry,
		Notify:  func(owner string) { controller.HealthChanged(tidelock.ObjectID(owner)) },
	})
	if err != nil {
		return nil, err
	}
	controller.SetHealth(healthOf{watcher})
	return watcher, nil
}

// healthOf is a health.Watcher in the words of internal/flux.
type healthOf struct{ watcher *health.Watcher }

func (h healthOf) Follow(owner tidelock.ObjectID, refs []flux.ObjectRef) {
	objects := make([]health.Ref, len(refs))
	for i, ref := range refs {
		objects[i] = health.Ref(ref)
	}
	h.watcher.Follow(string(owner), objects)
}

func (h healthOf) Refresh(owner tidelock.ObjectID) { h.watcher.Refresh(string(owner)) }
func (h healthOf) Forget(owner tidelock.ObjectID)  { h.watcher.Forget(string(owner)) }

func (h healthOf) Health(owner tidelock.ObjectID) flux.HealthReport {
	report := h.watcher.Health(string(owner))
	return flux.HealthReport{Health: report.Health, Unhealthy: report.Unhealthy, Settled: report.Settled}
}
