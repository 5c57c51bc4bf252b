package forge_test

import (
	"fmt"
	"testing"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"tidelock.dev"
)

// traceparent is how others are told to go on from a span.
func traceparent(s tracetest.SpanStub) string {
	return fmt.Sprintf("00-%s-%s-%s", s.SpanContext.TraceID(), s.SpanContext.SpanID(), s.SpanContext.TraceFlags())
}

func TestTraceOfPush(t *testing.T) {
	w := newWorld(t)
	site := w.site()
	received := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled})
	recorded := func() tracetest.SpanStub {
		t.Helper()
		spans := w.spans.GetSpans()
		w.spans.Reset()
		if len(spans) != 1 || spans[0].Name != "record push" {
			t.Fatalf("got spans %v, want one that records the push", spans)
		}
		return spans[0]
	}
	traceOf := func(ref tidelock.RefName) string {
		t.Helper()
		head, err := w.Resolve(t.Context(), site.ID, tidelock.RefSpec{Name: string(ref)})
		if err != nil {
			t.Fatal(err)
		}
		return head.Trace
	}

	w.commit(site, "refs/heads/main", "one")
	push, err := w.Pushed(trace.ContextWithSpanContext(t.Context(), received), site.ID, w.root, []tidelock.RefName{"refs/heads/main"})
	if err != nil {
		t.Fatal(err)
	}
	span := recorded()
	if !span.Parent.Equal(received) {
		t.Errorf("recorded under %v, want %v", span.Parent, received)
	}
	if want := traceparent(span); push.Trace != want || traceOf("refs/heads/main") != want {
		t.Errorf("the push has trace %q, its head %q, want %q", push.Trace, traceOf("refs/heads/main"), want)
	}

	// Found by comparison: nothing received it.
	w.commit(site, "refs/heads/lost", "two")
	if _, err := w.Compare(t.Context(), site.ID); err != nil {
		t.Fatal(err)
	}
	span = recorded()
	if span.Parent.IsValid() || span.SpanContext.TraceID() == received.TraceID() {
		t.Errorf("recorded under %v, want a trace of its own", span.Parent)
	}
	if got, want := traceOf("refs/heads/lost"), traceparent(span); got != want {
		t.Errorf("the head has trace %q, want %q", got, want)
	}

	// What finds nothing is no push.
	if _, err := w.Compare(t.Context(), site.ID); err != nil {
		t.Fatal(err)
	}
	if spans := w.spans.GetSpans(); len(spans) != 0 {
		t.Errorf("a comparison that finds nothing left spans %v", spans)
	}
}
