package bus_test

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"tidelock.dev"
	"tidelock.dev/internal/bus"
)

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

func open(t *testing.T, url string) *bus.Bus {
	t.Helper()
	b, err := bus.Open(t.Context(), bus.Config{URL: url, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func subscribe[E any](t *testing.T, b *bus.Bus, fn func(E)) *bus.Subscription {
	t.Helper()
	s, err := bus.Subscribe(b, fn)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// receive fails the test if nothing comes out of c in time.
func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatalf("waited 10 s for %s", what)
		panic("unreachable")
	}
}

// waitFor polls until ok reports true.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited 10 s for %s", what)
		case <-tick.C:
		}
	}
}

func TestEventsArriveInOrderAndByType(t *testing.T) {
	b := open(t, "")
	pushes := make(chan tidelock.Pushed, 100)
	agents := make(chan tidelock.AgentChanged, 100)
	subscribe(t, b, func(e tidelock.Pushed) { pushes <- e })
	subscribe(t, b, func(e tidelock.AgentChanged) { agents <- e })

	for i := range 50 {
		if err := bus.Publish(b, tidelock.Pushed{Project: 7, Push: tidelock.PushID(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := bus.Publish(b, tidelock.AgentChanged{Agent: 3}); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		want := tidelock.Pushed{Project: 7, Push: tidelock.PushID(i)}
		if got := receive(t, pushes, "a push"); got != want {
			t.Fatalf("event %d: got %+v, want %+v", i, got, want)
		}
	}
	if got := receive(t, agents, "an agent"); got.Agent != 3 {
		t.Errorf("got %+v, want agent 3", got)
	}
	if err := b.Healthy(); err != nil {
		t.Errorf("got %v, want a healthy bus", err)
	}
}

func TestOverflowDropsTheOldestAndSaysSo(t *testing.T) {
	b := open(t, "")
	lagged := make(chan struct{}, 1)
	release := make(chan struct{})
	got := make(chan tidelock.PushID, 2*bus.QueueSize)
	subscribe(t, b, func(e tidelock.Pushed) {
		<-release
		got <- e.Push
	})
	cancel := b.OnLag(func() {
		select {
		case lagged <- struct{}{}:
		default:
		}
	})
	defer cancel()

	const extra = 100
	for i := range bus.QueueSize + extra {
		if err := bus.Publish(b, tidelock.Pushed{Push: tidelock.PushID(i)}); err != nil {
			t.Fatal(err)
		}
	}
	receive(t, lagged, "the lag to be told")
	// From here on at least one is lost, and never the newest.
	close(release)
	var last tidelock.PushID
	count := 0
	for last != bus.QueueSize+extra-1 {
		id := receive(t, got, "an event")
		if count > 0 && id <= last {
			t.Fatalf("got %d after %d", id, last)
		}
		last = id
		count++
	}
	if count >= bus.QueueSize+extra {
		t.Errorf("got all %d events, want some dropped", count)
	}
}

func TestCloseWaitsForTheSubscriber(t *testing.T) {
	b := open(t, "")
	entered, release := make(chan struct{}), make(chan struct{})
	running := true
	s := subscribe(t, b, func(tidelock.Pushed) {
		close(entered)
		<-release
		running = false
	})
	if err := bus.Publish(b, tidelock.Pushed{}); err != nil {
		t.Fatal(err)
	}
	receive(t, entered, "the subscriber")
	closed := make(chan struct{})
	go func() {
		s.Close()
		close(closed)
	}()
	select {
	case <-closed:
		t.Fatal("closed while the subscriber was running")
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	receive(t, closed, "Close")
	if running {
		t.Error("Close returned before the subscriber did")
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("second Close: got %v, want no error", err)
	}
	if _, err := bus.Subscribe(b, func(tidelock.Pushed) {}); err == nil {
		t.Error("subscribed to a closed bus")
	}
	if err := bus.Publish(b, tidelock.Pushed{}); err == nil {
		t.Error("published to a closed bus")
	}
}

// startNATS runs a NATS server on loopback; port 0 picks a free one.
func startNATS(t *testing.T, port int) (ns *server.Server, listening int) {
	t.Helper()
	if port == 0 {
		port = server.RANDOM_PORT
	}
	ns, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	if !ns.ReadyForConnections(10 * time.Second) {
		t.Fatal("NATS is not ready")
	}
	t.Cleanup(ns.Shutdown)
	return ns, ns.Addr().(*net.TCPAddr).Port
}

func TestTwoServersAndAReconnect(t *testing.T) {
	ns, port := startNATS(t, 0)
	url := ns.ClientURL()
	here, there := open(t, url), open(t, url)
	heard := make(chan tidelock.AccessChanged, 10)
	subscribe(t, there, func(e tidelock.AccessChanged) { heard <- e })

	// A subscription reaches the other server a moment later than ours.
	waitFor(t, "an event to cross", func() bool {
		if err := bus.Publish(here, tidelock.AccessChanged{Project: 1}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-heard:
			return true
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})

	lagged := make(chan struct{}, 10)
	there.OnLag(func() { lagged <- struct{}{} })
	ns.Shutdown()
	ns.WaitForShutdown()
	waitFor(t, "both to notice", func() bool { return here.Healthy() != nil && there.Healthy() != nil })
	if err := bus.Publish(here, tidelock.AccessChanged{Project: 2}); err == nil {
		t.Error("published without a connection")
	}

	startNATS(t, port)
	receive(t, lagged, "the lag to be told")
	waitFor(t, "both to be back", func() bool { return here.Healthy() == nil && there.Healthy() == nil })
	for len(heard) > 0 {
		<-heard
	}
	waitFor(t, "an event to cross again", func() bool {
		if err := bus.Publish(here, tidelock.AccessChanged{Project: 3}); err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-heard:
			return e.Project == 3
		case <-time.After(20 * time.Millisecond):
			return false
		}
	})
}

func TestOpenBeforeTheClusterIsThere(t *testing.T) {
	ns, port := startNATS(t, 0)
	url := ns.ClientURL()
	ns.Shutdown()
	ns.WaitForShutdown()

	b := open(t, url)
	if b.Healthy() == nil {
		t.Error("healthy without a cluster")
	}
	lagged := make(chan struct{}, 10)
	b.OnLag(func() { lagged <- struct{}{} })
	heard := make(chan struct{}, 10)
	subscribe(t, b, func(tidelock.Pushed) { heard <- struct{}{} })

	startNATS(t, port)
	receive(t, lagged, "the lag to be told")
	if err := bus.Publish(b, tidelock.Pushed{}); err != nil {
		t.Fatal(err)
	}
	receive(t, heard, "an event")
}

func TestGarbageIsSkipped(t *testing.T) {
	b := open(t, "")
	heard := make(chan tidelock.Pushed, 1)
	subscribe(t, b, func(e tidelock.Pushed) { heard <- e })
	// Another type of the same name, as an older server might send it.
	type Pushed struct{ Project string }
	if err := bus.Publish(b, Pushed{Project: "not a number"}); err != nil {
		t.Fatal(err)
	}
	if err := bus.Publish(b, tidelock.Pushed{Project: 4}); err != nil {
		t.Fatal(err)
	}
	if got := receive(t, heard, "the good event"); got.Project != 4 {
		t.Errorf("got %+v, want project 4", got)
	}
}
