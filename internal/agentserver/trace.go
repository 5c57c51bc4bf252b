package agentserver

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"tidelock.dev"
)

// A hop is a part of an announcement's way that is one span in the trace of
// its push.
type hop struct {
	name     string
	from, to time.Time // to is zero until the hop has ended
}

// hopsOf cuts the way of an announcement into hops. Flux may have fetched
// before it says that it handled the request, and before the receiver's answer
// arrives, so a hop begins at the last of the times before its end.
func hopsOf(a tidelock.Announcement) []hop {
	return []hop{
		hopTo("announce", a.AnnouncedAt, a.AcceptedAt),
		hopTo("call receiver", a.AnsweredAt, a.CalledAt),
		hopTo("reconcile", a.HandledAt, a.AnsweredAt, a.CalledAt, a.AnnouncedAt),
		hopTo("fetch", a.FetchedAt, a.AnsweredAt, a.CalledAt, a.AnnouncedAt),
	}
}

// hopTo begins at the first of the given times that is known and not later
// than the end; a hop of unknown beginning takes no time.
func hopTo(name string, end time.Time, begins ...time.Time) hop {
	for _, begin := range begins {
		if !begin.IsZero() && !begin.After(end) {
			return hop{name, begin, end}
		}
	}
	return hop{name, end, end}
}

// A hopSet has a bit for each hop, by its place in hopsOf.
type hopSet uint8

// tracedBefore says which hops of a record from before this stream have been
// traced. In doubt they have: a trace may lack a hop, but has none twice.
func tracedBefore(a tidelock.Announcement) (done hopSet) {
	if unfinished(a.State) && a.State != tidelock.Failed && a.HandledAt.IsZero() {
		return 0
	}
	for i, h := range hopsOf(a) {
		if !h.to.IsZero() {
			done |= 1 << i
		}
	}
	return done
}

// trace tells, once a source's announcement has converged or failed, which way
// it took: one span for each hop that has ended, each once, under the trace of
// the push. What converges after it failed adds the hops that were missing.
// It never waits.
func (s *Server) trace(src *source) {
	a := src.record
	switch a.State {
	case tidelock.Converged, tidelock.Failed, tidelock.Gone:
	default:
		return
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": a.Trace})
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return
	}
	for i, h := range hopsOf(*a) {
		if h.to.IsZero() || src.traced&(1<<i) != 0 {
			continue
		}
		src.traced |= 1 << i
		_, span := s.tracer.Start(ctx, h.name, trace.WithTimestamp(h.from), trace.WithAttributes(
			attribute.Int64("tidelock.project", int64(a.Project)),
			attribute.Int64("tidelock.agent", int64(a.Agent)),
			attribute.String("tidelock.source", string(a.Source)),
			attribute.String("tidelock.commit", string(a.Commit)),
			attribute.Int64("tidelock.number", a.Number),
			attribute.String("tidelock.via", a.Via),
			attribute.Int("tidelock.attempts", a.Attempts),
		))
		if a.Digest != "" {
			span.SetAttributes(attribute.String("tidelock.digest", string(a.Digest)))
		}
		if a.State == tidelock.Failed && h.name == "reconcile" {
			span.SetStatus(codes.Error, a.Message)
		}
		span.End(trace.WithTimestamp(h.to))
	}
}
