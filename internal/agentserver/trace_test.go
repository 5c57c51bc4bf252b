package agentserver_test

import (
	"log/slog"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/durationpb"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/agentserver"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitserver"
)

// A traced world pushes with a real git client and keeps the spans.
type traced struct {
	*world
	spans *tracetest.InMemoryExporter
	git   *httptest.Server
	token tidelock.Secret
}

func newTraced(t *testing.T) *traced {
	t.Helper()
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	w := newWorldWith(t, agentserver.Config{Tracer: provider})
	log := slog.New(slog.NewTextHandler(w.log, nil))
	git := httptest.NewServer(gitserver.New(gitserver.Config{Forge: w.Forge, Repos: w.repos, Log: log, Tracer: provider}))
	t.Cleanup(git.Close)
	_, token, err := w.CreatePersonalToken(t.Context(), w.root, w.root.User.ID, forge.NewToken{
		Name: "git", Scopes: []tidelock.Scope{tidelock.ScopeWriteRepository},
	})
	check(t, err)
	return &traced{w, spans, git, token}
}

// gitPush pushes a new commit to a project's branch main.
func (w *traced) gitPush(project tidelock.Project) tidelock.CommitID {
	w.t.Helper()
	u, err := url.Parse(w.git.URL)
	check(w.t, err)
	u.User = url.UserPassword("root", w.token.Reveal())
	dir := w.t.TempDir()
	run := func(args ...string) string {
		w.t.Helper()
		cmd := exec.CommandContext(w.t.Context(), "git", append([]string{"-C", dir, "-c", "user.name=Ada", "-c", "user.email=ada@example.com"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			w.t.Fatalf("git %s: %v\n%s", args[0], err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("init", "-q", "-b", "main")
	run("commit", "-q", "--allow-empty", "-m", "push")
	run("push", "-q", u.JoinPath(project.FullPath+".git").String(), "main")
	return tidelock.CommitID(run("rev-parse", "main"))
}

// trace lists the names of a trace's spans, sorted, and gives each by name.
func (w *traced) trace(id trace.TraceID) (names []string, byName map[string]tracetest.SpanStub) {
	byName = map[string]tracetest.SpanStub{}
	for _, s := range w.spans.GetSpans() {
		if s.SpanContext.TraceID() == id {
			names = append(names, s.Name)
			byName[s.Name] = s
		}
	}
	slices.Sort(names)
	return names, byName
}

// awaitTrace waits for exactly these spans.
func (w *traced) awaitTrace(id trace.TraceID, want ...string) map[string]tracetest.SpanStub {
	w.t.Helper()
	var names []string
	var byName map[string]tracetest.SpanStub
	for end := time.Now().Add(deadline); !slices.Equal(names, want); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("the trace has %q, want %q", names, want)
		}
		names, byName = w.trace(id)
	}
	return byName
}

// traceOf reads what an announcement says of the trace of its push.
func traceOf(t *testing.T, m *agentrpc.Announcement) (trace.TraceID, string) {
	t.Helper()
	parts := strings.Split(m.GetTraceparent(), "-")
	if len(parts) != 4 || parts[0] != "00" || parts[3] != "01" {
		t.Fatalf("announced with traceparent %q", m.GetTraceparent())
	}
	id, err := trace.TraceIDFromHex(parts[1])
	check(t, err)
	return id, parts[2]
}

func ms(n int) *durationpb.Duration { return durationpb.New(time.Duration(n) * time.Millisecond) }

func TestTraceFromPushToConverged(t *testing.T) {
	w := newTraced(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	a := w.connect(r, "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	commit := w.gitPush(site)
	m := a.wants(siteID, commit)
	id, parent := traceOf(t, m)
	a.delivered(m)
	a.progress(&agentrpc.Progress{
		SourceId: siteID, Number: 1, State: agentrpc.Progress_STATE_CONVERGED,
		Called: ms(1), Answered: ms(5), Handled: ms(900), Fetched: ms(800), Via: agentrpc.Progress_VIA_RECEIVER, Attempts: 1,
	})
	all := []string{"announce", "call receiver", "fetch", "git push", "reconcile", "record push"}
	spans := w.awaitTrace(id, all...)

	push, record := spans["git push"], spans["record push"]
	if push.Parent.IsValid() {
		t.Errorf("the push has the parent %v, want none", push.Parent.SpanID())
	}
	if got, want := record.Parent.SpanID(), push.SpanContext.SpanID(); got != want {
		t.Errorf("the record has the parent %s, want the push %s", got, want)
	}
	if got := record.SpanContext.SpanID().String(); got != parent {
		t.Errorf("announced under %s, want the record %s", parent, got)
	}
	known := w.awaitState(r.ID, siteID, 1, tidelock.Converged)
	after := func(n int) time.Time { return known.AnnouncedAt.Add(time.Duration(n) * time.Millisecond) }
	want := []attribute.KeyValue{
		attribute.Int64("tidelock.project", int64(site.ID)), attribute.Int64("tidelock.agent", int64(r.ID)),
		attribute.String("tidelock.source", siteID), attribute.String("tidelock.commit", string(commit)),
		attribute.Int64("tidelock.number", 1), attribute.String("tidelock.via", "receiver"), attribute.Int("tidelock.attempts", 1),
	}
	for _, hop := range []struct {
		name     string
		from, to time.Time
	}{
		{"announce", known.AcceptedAt, known.AnnouncedAt},
		{"call receiver", after(1), after(5)},
		{"reconcile", after(5), after(900)},
		{"fetch", after(5), after(800)},
	} {
		s := spans[hop.name]
		if got := s.Parent.SpanID().String(); got != parent {
			t.Errorf("%s has the parent %s, want %s", hop.name, got, parent)
		}
		// The record is kept in microseconds.
		if s.StartTime.Sub(hop.from).Abs() > 2*time.Microsecond || s.EndTime.Sub(hop.to).Abs() > 2*time.Microsecond {
			t.Errorf("%s is from %v to %v, want from %v to %v", hop.name, s.StartTime, s.EndTime, hop.from, hop.to)
		}
		if !slices.Equal(s.Attributes, want) {
			t.Errorf("%s has %v, want %v", hop.name, s.Attributes, want)
		}
		if s.Status.Code != codes.Unset {
			t.Errorf("%s has the status %v", hop.name, s.Status)
		}
	}
}

// TestTraceHasNoHopTwice has an announcement fail before it converges, and its
// agent repeat itself, to this server and to the next.
func TestTraceHasNoHopTwice(t *testing.T) {
	w := newTraced(t)
	site := w.project("site", tidelock.Public)
	r := w.register("a")
	a := w.connect(r, "one").announce(source(siteID, site))
	a.served(siteID, site.ID)
	commit := w.gitPush(site)
	m := a.wants(siteID, commit)
	id, _ := traceOf(t, m)
	a.delivered(m)
	failed := &agentrpc.Progress{
		SourceId: siteID, Number: 1, State: agentrpc.Progress_STATE_FAILED, Message: "cannot clone",
		Called: ms(1), Answered: ms(5), Handled: ms(700), Attempts: 1,
	}
	converged := &agentrpc.Progress{
		SourceId: siteID, Number: 1, State: agentrpc.Progress_STATE_CONVERGED,
		Called: ms(1), Answered: ms(5), Handled: ms(900), Fetched: ms(900), Attempts: 2,
	}
	untilFailed := []string{"announce", "call receiver", "git push", "reconcile", "record push"}
	all := []string{"announce", "call receiver", "fetch", "git push", "reconcile", "record push"}

	if names, _ := w.trace(id); slices.Contains(names, "announce") {
		t.Errorf("traced before it came to anything: %q", names)
	}
	a.progress(failed)
	a.progress(failed)
	spans := w.awaitTrace(id, untilFailed...)
	if got := spans["reconcile"].Status; got.Code != codes.Error || got.Description != "cannot clone" {
		t.Errorf("the failed hop has the status %v", got)
	}

	// The next server has it from the record.
	w.awaitState(r.ID, siteID, 1, tidelock.Failed)
	w.stop()
	w.start()
	a = w.connect(r, "one").announce(with(source(siteID, site), "", 1, commit))
	a.served(siteID, site.ID)
	a.progress(failed)
	a.progress(converged)
	w.awaitTrace(id, all...)
	a.progress(failed) // Flux went back
	a.progress(converged)
	a.quiet()
	w.awaitTrace(id, all...)

	w.awaitState(r.ID, siteID, 1, tidelock.Converged)
	w.stop()
	w.start()
	a = w.connect(r, "one").announce(with(source(siteID, site), commit, 1, commit))
	a.served(siteID, site.ID)
	a.progress(converged)
	a.quiet()
	w.awaitTrace(id, all...)
}
