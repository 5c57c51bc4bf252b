package health

import (
	"log/slog"
	"slices"
	"testing"

	"k8s.io/client-go/rest"
	"tidelock.dev"
)

// Whoever has read a report is told when it is another one by then, even if it
// is again the one that he was told of before.
func TestToldAfterRead(t *testing.T) {
	t.Parallel()
	w, err := New(Config{REST: &rest.Config{Host: "http://unused.example"}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Notify: func(string) {}})
	if err != nil {
		t.Fatal(err)
	}
	ref := Ref{Version: "v1", Kind: "ConfigMap", Namespace: "shop", Name: "settings"}
	w.Follow("apps", []Ref{ref})
	set := func(f *finding) {
		w.mu.Lock()
		defer w.mu.Unlock()
		o := w.object(ref)
		o.answered = o.asked
		w.settle(o, f, nil)
	}
	told := func() bool { return slices.Contains(w.changed(), "apps") }
	gone := &finding{Health: tidelock.HealthMissing, Reason: ReasonNotFound}

	set(gone)
	if !told() {
		t.Error("not told that it is missing")
	}
	if set(gone); told() {
		t.Error("told again, though nothing is new")
	}
	set(nil)
	if r := w.Health("apps"); r.Health != tidelock.HealthHealthy {
		t.Errorf("got %+v, want healthy", r)
	}
	if told() {
		t.Error("told what was read already")
	}
	set(nil)
	set(gone)
	set(nil)
	w.Health("apps")
	if set(gone); !told() {
		t.Error("not told that it is missing again")
	}
}
