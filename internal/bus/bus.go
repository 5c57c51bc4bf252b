// Package bus rings the bell: it carries the events of the vocabulary between
// the parts of one server, and between servers. It is NATS underneath: a
// server inside this process without a listener, or a cluster by URL.
//
// The contract:
//
//   - An event is a hint to look again. It may be lost or repeated; the record
//     is in the store.
//   - Events of one type from one publisher arrive in the order published.
//   - Publish does not wait for subscribers. A subscriber that falls behind by
//     more than [QueueSize] events loses its oldest ones.
//   - Whoever calls [Bus.OnLag] is told after events may have been lost, by a
//     full queue or by a cut connection, and must then re-read everything.
package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// QueueSize is how many events wait for one subscription.
const QueueSize = 4096

const (
	startTimeout = 10 * time.Second
	flushTimeout = 2 * time.Second
)

// Config says where the bus runs.
type Config struct {
	URL string       // of a NATS cluster, such as "nats://a:4222,nats://b:4222"; "" runs one in this process
	Log *slog.Logger // required
}

// A Bus carries events. Its functions are safe for concurrent use.
type Bus struct {
	log    *slog.Logger
	server *server.Server // nil with an external cluster
	conn   *nats.Conn
	late   atomic.Bool   // the first connection was made after Open
	lag    chan struct{} // holds at most one "events may have been lost"
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu            sync.Mutex
	closed        bool
	subscriptions []*Subscription
	handlers      map[*func()]bool
}

// Open starts the in-process bus or connects to the cluster. A cluster that
// cannot be reached is not an error: it is dialled until it answers, and
// [Bus.Healthy] says so meanwhile.
func Open(ctx context.Context, config Config) (*Bus, error) {
	b := &Bus{
		log:      config.Log,
		lag:      make(chan struct{}, 1),
		handlers: make(map[*func()]bool),
	}
	options := []nats.Option{
		nats.Name("tidelock"),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, 250*time.Millisecond),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.FlusherTimeout(flushTimeout),
		// Without a connection Publish must fail rather than keep the event
		// in memory, where a crash would lose it after the publisher had
		// been told that it was sent.
		nats.ReconnectBufSize(-1),
		nats.RetryOnFailedConnect(true),
		nats.ConnectHandler(func(*nats.Conn) {
			if b.late.Load() {
				b.log.Info("bus connected")
				b.missed()
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) {
			b.log.Info("bus reconnected")
			b.missed()
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				b.log.Warn("bus disconnected", "error", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			b.log.Warn("bus reported an error", "error", err)
			b.missed()
		}),
	}
	url := config.URL
	if url == "" {
		ns, err := startServer(config.Log)
		if err != nil {
			return nil, err
		}
		b.server = ns
		options = append(options, nats.InProcessServer(ns))
	}
	conn, err := nats.Connect(url, options...)
	if err != nil {
		b.stopServer()
		return nil, fmt.Errorf("connect to the bus: %w", err) // the URL may hold a password
	}
	b.conn = conn
	if !conn.IsConnected() {
		b.late.Store(true)
		b.log.Warn("bus cannot be reached yet", "error", conn.LastError())
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.stop = stop
	b.wg.Go(func() { b.tellLag(run) })
	return b, nil
}

func startServer(log *slog.Logger) (*server.Server, error) {
	ns, err := server.NewServer(&server.Options{
		ServerName:      "tidelock",
		DontListen:      true,
		NoSigs:          true,
		NoSystemAccount: true,
	})
	if err != nil {
		return nil, fmt.Errorf("make the in-process bus: %w", err)
	}
	ns.SetLogger(natsLogger{log}, log.Enabled(context.Background(), slog.LevelDebug), false)
	ns.Start()
	if !ns.ReadyForConnections(startTimeout) {
		ns.Shutdown()
		return nil, fmt.Errorf("start the in-process bus: not ready after %v", startTimeout)
	}
	return ns, nil
}

func (b *Bus) stopServer() {
	if b.server != nil {
		b.server.Shutdown()
		b.server.WaitForShutdown()
	}
}

// Close sends what was published, waits until no subscriber is running and
// stops the in-process server. It is safe to call more than once.
func (b *Bus) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	subscriptions := b.subscriptions
	b.subscriptions = nil
	b.mu.Unlock()

	var err error
	if b.conn.IsConnected() {
		if flushErr := b.conn.FlushTimeout(flushTimeout); flushErr != nil {
			err = fmt.Errorf("flush the bus: %w", flushErr)
		}
	}
	for _, s := range subscriptions {
		s.Close()
	}
	b.stop()
	b.wg.Wait()
	b.conn.Close()
	b.stopServer()
	return err
}

// Healthy returns nil while events can flow, and otherwise says why not.
func (b *Bus) Healthy() error {
	if b.conn.IsConnected() {
		return nil
	}
	if err := b.conn.LastError(); err != nil {
		return fmt.Errorf("reach the bus: %w", err)
	}
	return errors.New("the bus is not connected")
}

// Publish tells every subscriber of E, in this process and in others. It does
// not wait for them. An error means that nobody may have heard.
func Publish[E any](b *Bus, event E) error {
	data, err := json.Marshal(event)
	if err != nil {
		return fmt.Errorf("encode event %s: %w", subject[E](), err)
	}
	if err := b.conn.Publish(subject[E](), data); err != nil {
		return fmt.Errorf("publish %s: %w", subject[E](), err)
	}
	return nil
}

// subject is the name under which events of a type travel.
func subject[E any]() string { return "tidelock." + reflect.TypeFor[E]().Name() }

// OnLag has fn called after events may have been lost: a subscription's queue
// was full, or the connection was cut and is back. Calls are one at a time, by
// a goroutine of the bus, and losses in quick succession make one call. A call
// that has begun may still be running when cancel returns.
func (b *Bus) OnLag(fn func()) (cancel func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := &fn
	b.handlers[key] = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.handlers, key)
	}
}

// missed notes that events may have been lost. It never blocks.
func (b *Bus) missed() {
	select {
	case b.lag <- struct{}{}:
	default: // said already and not yet heard
	}
}

func (b *Bus) tellLag(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.lag:
		}
		b.mu.Lock()
		handlers := make([]func(), 0, len(b.handlers))
		for fn := range b.handlers {
			handlers = append(handlers, *fn)
		}
		b.mu.Unlock()
		for _, fn := range handlers {
			fn()
		}
	}
}

// A Subscription calls a function for each event of a type.
type Subscription struct {
	bus  *Bus
	nats *nats.Subscription
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// Subscribe has fn called for every event of type E, in order, in one
// goroutine that belongs to the subscription. While fn runs, up to [QueueSize]
// events wait; beyond that the oldest are dropped and [Bus.OnLag] is told.
func Subscribe[E any](b *Bus, fn func(E)) (*Subscription, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, fmt.Errorf("subscribe to %s: the bus is closed", subject[E]())
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Subscription{bus: b, stop: stop}
	q := newQueue[E](QueueSize)
	var err error
	s.nats, err = b.conn.Subscribe(subject[E](), func(m *nats.Msg) {
		var event E
		if err := json.Unmarshal(m.Data, &event); err != nil {
			b.log.Warn("event cannot be read", "subject", m.Subject, "error", err)
			b.missed()
			return
		}
		if dropped := q.push(event); dropped {
			b.missed()
		}
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("subscribe to %s: %w", subject[E](), err)
	}
	s.wg.Go(func() {
		for {
			event, ok := q.pop(ctx)
			if !ok {
				return
			}
			fn(event)
		}
	})
	b.subscriptions = append(b.subscriptions, s)
	return s, nil
}

// Close ends the subscription and waits until its function is not running;
// events still queued are dropped. It must not be called from that function.
func (s *Subscription) Close() {
	_ = s.nats.Unsubscribe() // fails only if it is gone already
	s.stop()
	s.wg.Wait()
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	s.bus.subscriptions = slices.DeleteFunc(s.bus.subscriptions, func(o *Subscription) bool { return o == s })
}
