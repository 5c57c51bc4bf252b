package gitserver

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A connection is one client over SSH, from the moment it is let in.
type connection struct {
	ssh     *SSH
	raw     net.Conn
	address string
	closing sync.Once

	mu       sync.Mutex
	key      tidelock.KeyID // that is proven; 0 before
	sessions int
	leaving  bool // close when no session is left
	idle     *time.Timer
}

// serve does all that there is to do with a connection.
func (h *SSH) serve(ctx context.Context, raw net.Conn, address string) {
	c := &connection{ssh: h, raw: raw, address: address}
	h.mu.Lock()
	h.conns[c] = struct{}{}
	h.mu.Unlock()
	defer func() {
		c.close()
		h.mu.Lock()
		delete(h.conns, c)
		h.mu.Unlock()
	}()

	proven, channels, requests, err := c.shakeHands()
	if err != nil {
		h.door.fail(address)
		h.metrics.handshake("failed")
		h.git.log.DebugContext(ctx, "SSH handshake failed", "from", address, "error", err)
		return
	}
	// Who it is comes from what the finished handshake permits, and from
	// nothing that was seen on the way there.
	fingerprint := proven.Permissions.Extensions[fingerprintExtension]
	principal, err := h.git.forge.AuthenticateKey(ctx, fingerprint)
	if err != nil {
		h.door.fail(address)
		h.metrics.handshake("revoked")
		return
	}
	key := principal.Key.ID
	defer h.door.leave(key)
	if !h.door.prove(address, key) {
		h.metrics.refuse(doorKey)
		h.git.log.WarnContext(ctx, "SSH connection refused: its key has too many", "key", key, "from", address)
		return
	}
	h.metrics.handshake("proven")
	c.prove(key)

	ctx, lost := context.WithCancel(ctx)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer lost()
	serving.Go(func() { ssh.DiscardRequests(requests) }) // no forwarding
	for offered := range channels {
		switch {
		case offered.ChannelType() != "session":
			_ = offered.Reject(ssh.Prohibited, "only git is served here: nothing is forwarded")
		case !c.begin():
			_ = offered.Reject(ssh.ResourceShortage, "this connection has too many sessions")
		default:
			serving.Go(func() {
				defer c.end()
				c.serveSession(ctx, offered, fingerprint)
			})
		}
	}
}

// shakeHands lets the client prove who it is.
func (c *connection) shakeHands() (*ssh.ServerConn, <-chan ssh.NewChannel, <-chan *ssh.Request, error) {
	if err := c.raw.SetDeadline(time.Now().Add(c.ssh.handshake)); err != nil {
		return nil, nil, nil, err
	}
	proven, channels, requests, err := ssh.NewServerConn(c.raw, c.ssh.config)
	if err != nil {
		return nil, nil, nil, err
	}
	if proven.Permissions == nil {
		return nil, nil, nil, errors.Join(errors.New("the handshake permits nothing"), proven.Close())
	}
	return proven, channels, requests, c.raw.SetDeadline(time.Time{})
}

// prove notes whose connection it is. From here on it is closed when it does
// nothing.
func (c *connection) prove(key tidelock.KeyID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.key = key
	c.idle = time.AfterFunc(c.ssh.git.idle, c.close)
}

func (c *connection) keyID() tidelock.KeyID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.key
}

// begin counts a session in, unless there are too many.
func (c *connection) begin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leaving || c.sessions >= c.ssh.sessions {
		return false
	}
	c.sessions++
	c.idle.Stop()
	return true
}

func (c *connection) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions--; c.sessions > 0 {
		return
	}
	if c.leaving {
		c.close()
		return
	}
	c.idle.Reset(c.ssh.git.idle)
}

// leave closes the connection as soon as it has no sessions.
func (c *connection) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = true
	if c.sessions == 0 {
		c.close()
	}
}

// close cuts the connection; what waits for it ends.
func (c *connection) close() {
	c.closing.Do(func() { _ = c.raw.Close() })
}

// welcome is what somebody is told who wants a shell.
func welcome(p forge.Principal) string {
	if p.User != nil {
		return "Welcome to Tidelock, @" + p.User.Username + "!"
	}
	return "Welcome to Tidelock! This is a deploy key."
}
