package server

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// tracing is where spans go: to a collector, or nowhere.
type tracing struct {
	provider trace.TracerProvider
	shutdown func(context.Context) error // sends what is still queued
}

func openTracing(ctx context.Context, c Config, log *slog.Logger) (tracing, error) {
	if c.OTLPEndpoint == "" {
		return tracing{noop.NewTracerProvider(), func(context.Context) error { return nil }}, nil
	}
	exporter, err := otlptracehttp.New(ctx, otlptracehttp.WithEndpointURL(strings.TrimRight(c.OTLPEndpoint, "/")+"/v1/traces"))
	if err != nil {
		return tracing{}, fmt.Errorf("open the trace exporter: %w", err)
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(loggedExporter{exporter, log}),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "tidelock"),
			attribute.String("service.version", c.Version),
		)),
	)
	return tracing{provider, provider.Shutdown}, nil
}

// loggedExporter reports to our log what the SDK would print on its own.
type loggedExporter struct {
	sdktrace.SpanExporter
	log *slog.Logger
}

func (e loggedExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.log.WarnContext(ctx, "traces not exported", "spans", len(spans), "error", err)
	}
	return nil
}
