package health

import (
	"log/slog"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// A watch may tell of what is over: that an object went which has come back
// since, and was read.
func TestLateNews(t *testing.T) {
	t.Parallel()
	w, err := New(Config{REST: &rest.Config{Host: "http://unused.example"}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Notify: func(string) {}})
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []Ref{
		{Version: "v1", Kind: "ConfigMap", Namespace: "shop", Name: "x"},
		{Group: "apps", Version: "v1", Kind: "Deployment", Namespace: "shop", Name: "x"},
	} {
		w.Follow("apps", []Ref{ref})
		w.mu.Lock()
		o := w.object(ref)
		o.answered, o.have = o.asked, "10"
		w.settle(o, nil, nil)
		at := func(version string) *metav1.PartialObjectMetadata {
			return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "x", ResourceVersion: version}}
		}
		for _, test := range []struct {
			version string
			want    tidelock.Health
		}{
			{"9", tidelock.HealthHealthy},
			{"11", tidelock.HealthMissing},
		} {
			w.vanished(o.kind, at(test.version))
			if got := o.finding().Health; got != test.want {
				t.Errorf("%s went at version %s, and was read at 10: got %s, want %s", o.kind.name, test.version, got, test.want)
			}
		}
		w.mu.Unlock()
	}
}
