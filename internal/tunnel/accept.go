package tunnel

import (
	"bufio"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

// An AcceptConfig tunes the server's end; its zero value is good.
type AcceptConfig struct {
	HeartbeatEvery time.Duration // default DefaultHeartbeat
	SilenceLimit   time.Duration // default DefaultSilence
	Log            *slog.Logger  // default none
}

// Accept upgrades a request to a tunnel. The caller has already decided that
// it may. On error the answer has been written. The session outlives the
// handler; the caller closes it.
func Accept(w http.ResponseWriter, r *http.Request, c AcceptConfig) (*Session, error) {
	h := &hijacker{ResponseWriter: w}
	ws, err := websocket.Accept(h, r, nil)
	if err != nil {
		return nil, fmt.Errorf("accept tunnel: %w", err)
	}
	// The listener's limits were for a request; the heartbeat takes over.
	h.raw.SetDeadline(time.Time{})
	return newSession(ws, h.raw, false, sessionConfig{
		heartbeat: c.HeartbeatEvery, silence: c.SilenceLimit, log: c.Log,
	})
}

// A hijacker notes the connection that the WebSocket library takes over.
type hijacker struct {
	http.ResponseWriter
	raw *rawConn
}

func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.raw = newRawConn(conn)
	return h.raw, rw, nil
}
