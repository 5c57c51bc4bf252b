package agent_test

import (
	"errors"
	"slices"
	"testing"

	"connectrpc.com/connect"
)

// A stream of observations begins with the whole set, and is opened again when
// the connection was lost, and when the server ended it although there was
// nothing to send.
func TestAgentObserves(t *testing.T) {
	f, k := newForge(t), newKube(t)
	f.refusal = connect.NewError(connect.CodeUnavailable, errors.New("not now"))
	r := start(t, f, k)
	sets := func(n int) func() bool {
		return func() bool {
			return heard(f, func() bool {
				return len(f.observed) == n && f.observing == 1 && f.observed[n-1].Begin && f.observed[n-1].End
			})
		}
	}
	eventually(t, "the first set, after a refusal", sets(1))
	if !r.log.has("not now") {
		t.Error("it was not logged why the server ended the stream")
	}
	f.cut()
	eventually(t, "the second set", sets(2))
	if err := r.stop(); err != nil {
		t.Errorf("stopped with %v", err)
	}
	eventually(t, "the end of the stream", func() bool { return heard(f, func() bool { return f.observing == 0 }) })
}

// A server that does not know of observations is served as before.
func TestAgentWithAnOlderServer(t *testing.T) {
	f, k := newForge(t), newKube(t)
	f.refusal = connect.NewError(connect.CodeUnimplemented, errors.New("unknown service"))
	r := start(t, f, k)
	eventually(t, "the server's ignorance", func() bool { return r.log.has("unknown service") })
	eventually(t, "the set of sources", func() bool { return heard(f, func() bool { return len(f.sources) == 1 && f.streams == 1 }) })
	if !r.log.has("again_in=5m") || slices.ContainsFunc([]bool{r.Status().Connected, r.Status().Leader}, func(ok bool) bool { return !ok }) {
		t.Errorf("status: %+v", r.Status())
	}
}
