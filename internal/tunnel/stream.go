package tunnel

import (
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

// maxWrite is the largest piece a stream puts on the wire at once: big enough
// to be cheap, small enough that nobody waits long behind it.
const maxWrite = 32 << 10

// A stream is a yamux stream with the manners of a net.Conn: Close ends both
// directions and wakes readers and writers, and large writes are cut up.
type stream struct {
	*yamux.Stream
	session *Session
	peer    bool // the peer opened it
	closed  atomic.Bool
}

func (s *Session) adopt(conn *yamux.Stream, peer bool) *stream {
	st := &stream{Stream: conn, session: s, peer: peer}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) == 0 {
		s.idle = make(chan struct{})
	}
	s.streams[st] = struct{}{}
	if peer {
		s.peers++
	}
	return st
}

func (s *Session) release(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	if st.peer {
		s.peers--
	}
	if len(s.streams) == 0 {
		close(s.idle)
	}
}

func (st *stream) Read(p []byte) (int, error) {
	if st.closed.Load() {
		return 0, net.ErrClosed
	}
	n, err := st.Stream.Read(p)
	return n, st.explain(err)
}

func (st *stream) Write(p []byte) (int, error) {
	var written int
	for {
		if st.closed.Load() {
			return written, net.ErrClosed
		}
		piece := p[written:min(written+maxWrite, len(p))]
		n, err := st.Stream.Write(piece)
		written += n
		if err != nil || written == len(p) {
			return written, st.explain(err)
		}
	}
}

// Close ends the stream in both directions; data already written still
// arrives. The bytes of the goodbye are on the wire when it returns.
func (st *stream) Close() error {
	if st.closed.Swap(true) {
		return nil
	}
	err := st.Stream.Close()
	st.Stream.SetDeadline(time.Unix(1, 0)) // wakes whoever is blocked
	st.session.release(st)
	return err
}

// explain turns the deadline that Close sets into what it means.
func (st *stream) explain(err error) error {
	if err != nil && st.closed.Load() {
		return net.ErrClosed
	}
	if errors.Is(err, yamux.ErrSessionShutdown) {
		if end := st.session.Err(); end != nil {
			return end
		}
	}
	return err
}
