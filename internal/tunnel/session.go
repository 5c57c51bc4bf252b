package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"github.com/hashicorp/yamux"
)

const (
	// DefaultHeartbeat is how often a session asks the peer for a sign of life.
	DefaultHeartbeat = 15 * time.Second
	// DefaultSilence is how long a session lives without a byte from the peer.
	DefaultSilence = 40 * time.Second
	// DrainLimit is how long Drain waits for streams in flight.
	DrainLimit = 10 * time.Second

	// streamWindow bounds what a stream may have in flight. At 50 ms of delay
	// it allows 80 MB/s; yamux's own 256 KiB would allow 5.
	streamWindow = 4 << 20
	// streamBacklog is how many streams may wait to be accepted.
	streamBacklog = 256
	// How many streams the peer may have open at once; one that opens more is
	// broken or hostile, and loses the session. An agent needs one.
	maxAgentStreams  = 16
	maxServerStreams = 4096
)

// closeLimit is how long a closed stream waits for the peer to close too
// before it is reset. The reset frees a peer that is blocked writing to it,
// but also drops what a slow peer has not read yet. Tests shorten it.
var closeLimit = 10 * time.Second

var (
	// ErrSilent ends a session whose peer sent nothing for too long.
	ErrSilent = errors.New("the peer is silent")
	// ErrDraining refuses a new stream because the session is winding up.
	ErrDraining = errors.New("the tunnel is draining")
)

// A CloseError ends a session that one side closed on purpose.
type CloseError struct {
	Peer   bool   // the other side closed it
	Reason string // as given to Close
}

func (e *CloseError) Error() string {
	who := "closed"
	if e.Peer {
		who = "closed by the peer"
	}
	if e.Reason == "" {
		return who
	}
	return who + ": " + e.Reason
}

// A Session is one live tunnel. It ends when either side closes it, when the
// connection breaks or when the peer falls silent; everything open on it then
// fails. All methods may be called from any goroutine.
type Session struct {
	mux  *yamux.Session
	wire *wire
	log  *slog.Logger

	rtt        roundTrips
	goroutines sync.WaitGroup // heartbeat, watchdog, watcher and opens in flight
	endOnce    sync.Once
	drainOnce  sync.Once
	draining   chan struct{}
	done       chan struct{}
	err        error // readable once done is closed

	maxPeers int // how many streams the peer may have open

	mu      sync.Mutex
	ended   bool // no goroutine may start any more
	streams map[*stream]struct{}
	peers   int           // how many of streams the peer opened
	idle    chan struct{} // closed while no stream is open
	servers []*http.Server
	clients []*http.Transport
}

type sessionConfig struct {
	heartbeat time.Duration
	silence   time.Duration
	log       *slog.Logger
}

func (c *sessionConfig) setDefaults() {
	if c.heartbeat <= 0 {
		c.heartbeat = DefaultHeartbeat
	}
	if c.silence <= 0 {
		c.silence = DefaultSilence
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
}

// newSession takes over a WebSocket; the side that dialled is yamux's client.
func newSession(ws *websocket.Conn, raw *rawConn, dialled bool, c sessionConfig) (*Session, error) {
	c.setDefaults()
	w := newWire(ws, raw)
	config := &yamux.Config{
		AcceptBacklog:          streamBacklog,
		EnableKeepAlive:        false,
		KeepAliveInterval:      c.heartbeat, // unused, but checked
		ConnectionWriteTimeout: c.silence,
		MaxStreamWindowSize:    streamWindow,
		StreamCloseTimeout:     closeLimit,
		StreamOpenTimeout:      0, // the heartbeat decides what is dead
		Logger:                 muxLogger{c.log},
	}
	newMux, maxPeers := yamux.Server, maxAgentStreams
	if dialled {
		newMux, maxPeers = yamux.Client, maxServerStreams
	}
	mux, err := newMux(w, config)
	if err != nil {
		w.cut()
		return nil, fmt.Errorf("start multiplexing: %w", err)
	}
	s := &Session{
		mux:      mux,
		wire:     w,
		log:      c.log,
		draining: make(chan struct{}),
		done:     make(chan struct{}),
		maxPeers: maxPeers,
		streams:  map[*stream]struct{}{},
		idle:     make(chan struct{}),
	}
	close(s.idle)
	s.goroutines.Go(func() { s.beat(c.heartbeat) })
	s.goroutines.Go(func() { s.watchSilence(c.silence) })
	s.goroutines.Go(func() {
		<-mux.CloseChan()
		s.end(func() error {
			mux.Close() // the reader's last word is in
			return w.failure()
		})
	})
	return s, nil
}

// beat asks the peer for a sign of life, at once and then regularly. Whether
// the answer came is judged by watchSilence alone, which counts any byte.
func (s *Session) beat(every time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		if rtt, err := s.mux.Ping(); err == nil {
			s.rtt.add(rtt)
		}
		select {
		case <-ticker.C:
		case <-s.mux.CloseChan():
			return
		}
	}
}

func (s *Session) watchSilence(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			left := limit - time.Since(s.LastSeen())
			if left <= 0 {
				s.end(func() error {
					s.wire.cut()
					return fmt.Errorf("%w: no byte for %v", ErrSilent, limit)
				})
				return
			}
			timer.Reset(left)
		case <-s.mux.CloseChan():
			return
		}
	}
}

// end tears the session down; hangUp hangs up and says why. Only the first
// call has any effect, and all return when it is done.
func (s *Session) end(hangUp func() error) {
	s.endOnce.Do(func() {
		s.mu.Lock()
		s.ended = true
		clients := slices.Clone(s.clients)
		s.mu.Unlock()
		s.err = hangUp()
		s.mux.Close()
		s.drainOnce.Do(func() { close(s.draining) })
		close(s.done)
		for _, c := range clients {
			c.CloseIdleConnections()
		}
		s.log.Debug("tunnel closed", "reason", s.err)
	})
}

// Open makes a new stream to the peer. It does not wait for the peer to
// accept it.
func (s *Session) Open(ctx context.Context) (net.Conn, error) {
	select {
	case <-s.draining:
		return nil, fmt.Errorf("open stream: %w", ErrDraining)
	default:
	}
	type opened struct {
		conn *yamux.Stream
		err  error
	}
	result := make(chan opened)
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return nil, fmt.Errorf("open stream: %w", net.ErrClosed)
	}
	// yamux blocks, without a context, while too many streams are unanswered.
	s.goroutines.Go(func() {
		conn, err := s.mux.OpenStream()
		select {
		case result <- opened{conn, err}:
		case <-ctx.Done():
			if err == nil {
				conn.Close()
			}
		}
	})
	s.mu.Unlock()
	select {
	case o := <-result:
		if errors.Is(o.err, yamux.ErrRemoteGoAway) {
			o.err = ErrDraining
		}
		if o.err != nil {
			return nil, fmt.Errorf("open stream: %w", o.err)
		}
		return s.adopt(o.conn, false), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("open stream: %w", ctx.Err())
	}
}

// Accept waits for a stream that the peer opens. Whoever calls it gets them
// all: use it, or ServeHTTP1, or ServeHTTP2. After the session's end it
// returns an error that wraps net.ErrClosed.
func (s *Session) Accept() (net.Conn, error) { return s.accept(context.Background()) }

func (s *Session) accept(ctx context.Context) (net.Conn, error) {
	conn, err := s.mux.AcceptStreamWithContext(ctx)
	if err != nil {
		if ctx.Err() == nil {
			<-s.done // who accepts may Close now, and must not forestall the peer's reason
		}
		return nil, fmt.Errorf("accept stream: %w", errors.Join(net.ErrClosed, err))
	}
	st := s.adopt(conn, true)
	s.mu.Lock()
	tooMany := s.peers > s.maxPeers
	s.mu.Unlock()
	if tooMany {
		s.end(func() error {
			s.wire.hangUp(websocket.StatusPolicyViolation, "too many streams")
			return &CloseError{Reason: "too many streams"}
		})
		return nil, fmt.Errorf("accept stream: %w", net.ErrClosed)
	}
	return st, nil
}

// RTT is a recent time of a round trip to the peer, the shortest of the last
// few so that a busy moment does not count; 0 before the first.
func (s *Session) RTT() time.Duration { return s.rtt.shortest() }

// LastSeen is when the last byte came from the peer.
func (s *Session) LastSeen() time.Time { return s.wire.raw.lastSeen() }

// Done is closed when the session has ended.
func (s *Session) Done() <-chan struct{} { return s.done }

// Draining is closed when this side has begun to drain or the session has
// ended; long answers should come to an end.
func (s *Session) Draining() <-chan struct{} { return s.draining }

// Err says why the session ended; it is nil while the session lives.
func (s *Session) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Close ends the session, tells the peer why (in at most 120 bytes), and
// waits for the session's goroutines. Streams in flight are cut. It may be
// called more than once.
func (s *Session) Close(reason string) {
	s.end(func() error {
		s.wire.hangUp(websocket.StatusGoingAway, reason)
		return &CloseError{Reason: reason}
	})
	s.goroutines.Wait()
}

// Drain refuses new streams in both directions, lets those in flight finish,
// at most DrainLimit or until ctx is done, and then closes the session.
func (s *Session) Drain(ctx context.Context, reason string) {
	ctx, cancel := context.WithTimeout(ctx, DrainLimit)
	defer cancel()
	s.drainOnce.Do(func() { close(s.draining) })
	if err := s.mux.GoAway(); err == nil {
		s.mu.Lock()
		servers, clients := slices.Clone(s.servers), slices.Clone(s.clients)
		s.mu.Unlock()
		var shutdowns sync.WaitGroup
		for _, server := range servers {
			shutdowns.Go(func() { server.Shutdown(ctx) })
		}
		s.awaitIdle(ctx, clients)
		shutdowns.Wait()
	}
	s.Close(reason)
}

// awaitIdle waits until no stream is open. An HTTP client keeps its stream
// until it is told, when its last answer is in, that it may go.
func (s *Session) awaitIdle(ctx context.Context, clients []*http.Transport) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		for _, client := range clients {
			client.CloseIdleConnections()
		}
		s.mu.Lock()
		idle := s.idle
		s.mu.Unlock()
		select {
		case <-idle:
			return
		case <-s.done:
			return
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// roundTrips remembers the last few round trip times.
type roundTrips struct {
	next atomic.Uint32
	last [4]atomic.Int64
}

func (r *roundTrips) add(d time.Duration) {
	r.last[(r.next.Add(1)-1)%uint32(len(r.last))].Store(int64(max(d, 1)))
}

func (r *roundTrips) shortest() time.Duration {
	var shortest time.Duration
	for i := range r.last {
		if d := time.Duration(r.last[i].Load()); d > 0 && (shortest == 0 || d < shortest) {
			shortest = d
		}
	}
	return shortest
}

// muxLogger passes what yamux has to say on at debug level: it calls ordinary
// ends of a connection errors.
type muxLogger struct{ log *slog.Logger }

func (l muxLogger) Print(v ...any) { l.log.Debug("yamux", "text", fmt.Sprint(v...)) }
func (l muxLogger) Printf(format string, v ...any) {
	l.log.Debug("yamux", "text", fmt.Sprintf(format, v...))
}
func (l muxLogger) Println(v ...any) { l.log.Debug("yamux", "text", fmt.Sprint(v...)) }
