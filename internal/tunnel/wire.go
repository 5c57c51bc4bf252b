package tunnel

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

const (
	// maxMessage bounds a WebSocket message. A frame of ours is 32 KiB; the
	// rest is room for peers that cut larger pieces.
	maxMessage = 1 << 20
	// hangUpLimit is how long a peer may take to answer our goodbye.
	hangUpLimit = time.Second
	// maxReason is what fits into a WebSocket close frame.
	maxReason = 120
)

// A rawConn is the connection below the WebSocket. It notes when a byte came,
// and can be cut without ceremony.
type rawConn struct {
	net.Conn
	seen atomic.Int64 // nanoseconds since start
}

// start is the zero of rawConn's clock; differences to it are monotonic.
var start = time.Now()

func newRawConn(conn net.Conn) *rawConn {
	r := &rawConn{Conn: conn}
	r.seen.Store(int64(time.Since(start)))
	return r
}

func (r *rawConn) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	if n > 0 {
		r.seen.Store(int64(time.Since(start)))
	}
	return n, err
}

func (r *rawConn) lastSeen() time.Time { return start.Add(time.Duration(r.seen.Load())) }

// cut closes the connection below TLS: a TLS close first tries to send a
// goodbye, and would wait on a peer that does not read.
func (r *rawConn) cut() {
	if c, ok := r.Conn.(*tls.Conn); ok {
		c.NetConn().Close()
		return
	}
	r.Conn.Close()
}

// A wire makes a byte stream of a WebSocket's binary messages. yamux reads it
// from one goroutine and writes it from another.
type wire struct {
	ws     *websocket.Conn
	raw    *rawConn
	reader io.Reader // the rest of the current message
	pings  pingGuard // the reader's
	held   []byte    // a data header that waits for its body

	mu  sync.Mutex
	err error // what ended reading or writing; a goodbye, or the first
}

func newWire(ws *websocket.Conn, raw *rawConn) *wire {
	ws.SetReadLimit(maxMessage)
	return &wire{ws: ws, raw: raw}
}

// Read blocks without a context: cut and hangUp end it.
func (w *wire) Read(p []byte) (int, error) {
	for {
		if w.reader == nil {
			kind, r, err := w.ws.Reader(context.Background())
			if err != nil {
				return 0, w.fail(err)
			}
			if kind != websocket.MessageBinary {
				err := w.fail(errors.New("a text message on a binary tunnel"))
				w.hangUp(websocket.StatusUnsupportedData, err.Error())
				return 0, err
			}
			w.reader = r
		}
		n, err := w.reader.Read(p)
		if err == io.EOF {
			w.reader, err = nil, nil
		}
		if err != nil {
			return n, w.fail(err)
		}
		if err := w.pings.follow(p[:n]); err != nil {
			return 0, w.fail(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// Write sends one message. yamux writes a frame's header and its body apart;
// the header of a frame with a body waits for it, so that both travel in one
// message, one TLS record and one packet.
func (w *wire) Write(p []byte) (int, error) {
	switch {
	case len(w.held) > 0:
		w.held = append(w.held, p...)
		err := w.ws.Write(context.Background(), websocket.MessageBinary, w.held)
		w.held = w.held[:0]
		if err != nil {
			return 0, w.fail(err)
		}
		return len(p), nil
	case len(p) == muxHeaderSize && p[1] == muxTypeData && binary.BigEndian.Uint32(p[8:]) > 0:
		w.held = append(w.held, p...)
		return len(p), nil
	}
	if err := w.ws.Write(context.Background(), websocket.MessageBinary, p); err != nil {
		return 0, w.fail(err)
	}
	return len(p), nil
}

func (w *wire) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	// Between the goodbye's arrival and its being noted here, a write may
	// fail because of it.
	if goodbye := websocket.CloseStatus(err) != -1; w.err == nil || goodbye && websocket.CloseStatus(w.err) == -1 {
		w.err = err
	}
	return err
}

// failure says, after the end, what ended it: a peer's goodbye or a break.
func (w *wire) failure() error {
	w.cut()
	w.mu.Lock()
	err := w.err
	w.mu.Unlock()
	if goodbye, ok := errors.AsType[websocket.CloseError](err); ok {
		return &CloseError{Peer: true, Reason: goodbye.Reason}
	}
	if err == nil {
		return errors.New("the peer broke the protocol")
	}
	return fmt.Errorf("connection lost: %w", err)
}

// hangUp says goodbye and waits a moment for the answer.
func (w *wire) hangUp(code websocket.StatusCode, reason string) {
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	timer := time.AfterFunc(hangUpLimit, w.raw.cut)
	defer timer.Stop()
	w.ws.Close(code, reason)
}

// cut breaks the connection without a goodbye.
func (w *wire) cut() {
	w.raw.cut()
	w.ws.CloseNow()
}

// Close is for yamux; the session has hung up or cut before.
func (w *wire) Close() error {
	w.cut()
	return nil
}
