package rollout

import (
	"cmp"
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"tidelock.dev"
)

// traceBatch is how many rollouts are put into traces in one go.
const traceBatch = 100

// trace tells, once rollouts of a project are reported, how they went after
// Flux had the commit: one span for each hop under the trace of the push, each
// once.
func (l *Loop) trace(ctx context.Context, project tidelock.ProjectID) error {
	if l.tracer == nil {
		return nil
	}
	for {
		claimed, err := l.Forge.ClaimTraces(ctx, project, traceBatch)
		if err != nil {
			return err
		}
		for _, r := range claimed {
			l.traceRollout(r)
		}
		if len(claimed) < traceBatch {
			return nil
		}
	}
}

func (l *Loop) traceRollout(r tidelock.TracedRollout) {
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": r.Trace})
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return
	}
	for _, hop := range r.Hops {
		name, from, to := span(r.Rollout, hop)
		if from.IsZero() || from.After(to) {
			from = to // nobody saw the beginning, or it was told late
		}
		_, span := l.tracer.Start(ctx, name, trace.WithTimestamp(from), trace.WithAttributes(
			attribute.Int64("tidelock.project", int64(r.Project)),
			attribute.Int64("tidelock.agent", int64(r.Agent)),
			attribute.String("tidelock.applier", string(r.Applier)),
			attribute.String("tidelock.source", string(r.Source)),
			attribute.String("tidelock.commit", string(r.Commit)),
			attribute.String("tidelock.environment", r.Environment),
			attribute.String("tidelock.state", string(r.State)),
		))
		if r.Digest != "" {
			span.SetAttributes(attribute.String("tidelock.digest", string(r.Digest)))
		}
		if hop == tidelock.HopReported && r.State == tidelock.RolloutFailed {
			span.SetStatus(codes.Error, r.Message)
		}
		span.End(trace.WithTimestamp(to))
	}
}

// span is the name of a hop's span, and from when to when it is.
func span(r tidelock.Rollout, hop tidelock.HopKind) (name string, from, to time.Time) {
	switch hop {
	case tidelock.HopApplied:
		return "apply", r.RunningAt, r.AppliedAt
	case tidelock.HopHealthy:
		return "become healthy", r.AppliedAt, r.HealthyAt
	}
	return "report", cmp.Or(r.FinishedAt, r.HealthyAt, r.AppliedAt), r.ReportedAt
}
