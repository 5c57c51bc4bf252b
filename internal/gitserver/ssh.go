package gitserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// SSHConfig is what git over SSH is made of.
type SSHConfig struct {
	Listeners []net.Listener // required
	HostKey   ssh.Signer     // required

	// Handshake is how long a client may take to prove who it is.
	Handshake time.Duration // default 10s

	// Grace is how long sessions in flight may take once Run is told to stop.
	Grace time.Duration // default 30s

	// Recheck is how often it is asked whether the keys of live connections
	// are still good.
	Recheck time.Duration // default 3s

	Limits SSHLimits
}

// SSHLimits bound what clients can take of the server.
type SSHLimits struct {
	Connections int // in all; default 1000
	PerKey      int // of one key; default 100
	Unproven    int // that have not proven who they are yet, in all; default 128
	PerAddress  int // of those, from one address; default 32
	Sessions    int // of one connection at a time; default 10

	// Failures is how many failed handshakes one address has in hand; it gets
	// another one every two seconds.
	Failures int // default 30
}

func (l SSHLimits) withDefaults() SSHLimits {
	for _, f := range []struct {
		limit *int
		value int
	}{
		{&l.Connections, 1000}, {&l.PerKey, 100}, {&l.Unproven, 128}, {&l.PerAddress, 32}, {&l.Sessions, 10}, {&l.Failures, 30},
	} {
		if *f.limit <= 0 {
			*f.limit = f.value
		}
	}
	return l
}

// SSHUser is the user name that everybody gives; who it is says the key.
const SSHUser = "git"

// An SSH is the listener of git over SSH. It carries the same fetches and
// pushes as the Server it belongs to, and nothing else: no shell, no terminal,
// no files, no forwarding.
type SSH struct {
	git       *Server
	listeners []net.Listener
	config    *ssh.ServerConfig
	handshake time.Duration
	grace     time.Duration
	recheck   time.Duration
	sessions  int
	door      *door
	metrics   *sshMetrics

	serving sync.WaitGroup

	mu    sync.Mutex
	conns map[*connection]struct{}
}

// NewSSH makes the SSH side of a server. It panics when a required part is
// missing.
func NewSSH(git *Server, c SSHConfig) *SSH {
	if git == nil || len(c.Listeners) == 0 || c.HostKey == nil {
		panic("gitserver: Server, Listeners and HostKey are required")
	}
	for _, f := range []struct {
		set   *time.Duration
		value time.Duration
	}{{&c.Handshake, 10 * time.Second}, {&c.Grace, 30 * time.Second}, {&c.Recheck, 3 * time.Second}} {
		if *f.set <= 0 {
			*f.set = f.value
		}
	}
	c.Limits = c.Limits.withDefaults()
	h := &SSH{
		git: git, listeners: c.Listeners, handshake: c.Handshake, grace: c.Grace, recheck: c.Recheck,
		sessions: c.Limits.Sessions, door: newDoor(c.Limits), conns: map[*connection]struct{}{},
	}
	h.metrics = newSSHMetrics(git.registerer, h.door)
	h.config = &ssh.ServerConfig{
		ServerVersion:           "SSH-2.0-Tidelock",
		PublicKeyAuthAlgorithms: forge.KeyAlgorithms,
		MaxAuthTries:            10, // an agent offers every key it has
		PublicKeyCallback:       h.offered,
		BannerCallback:          banner,
	}
	h.config.Ciphers = ciphers
	h.config.AddHostKey(c.HostKey)
	return h
}

// banner tells those who give a wrong user name, before they are refused.
func banner(c ssh.ConnMetadata) string {
	if c.User() == SSHUser {
		return ""
	}
	return "Tidelock: the user name is \"" + SSHUser + "\"; your key says who you are\r\n"
}

var errWrongUser = errors.New("the user name is not " + SSHUser)

const fingerprintExtension = "tidelock-fingerprint"

// offered decides whether a key would do. The client has not proven yet that
// it is its own, may never do so, and may offer others: what is returned here
// counts only when the handshake ends with this very key, and nothing else is
// kept.
func (h *SSH) offered(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
	if c.User() != SSHUser {
		return nil, errWrongUser
	}
	if err := forge.CheckKey(key); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.handshake)
	defer cancel()
	fingerprint := ssh.FingerprintSHA256(key)
	if _, err := h.git.forge.KnowsKey(ctx, fingerprint); err != nil {
		if tidelock.KindOf(err) == tidelock.Internal {
			h.git.log.ErrorContext(ctx, "key not looked up", "error", err)
		}
		return nil, err
	}
	return &ssh.Permissions{Extensions: map[string]string{fingerprintExtension: fingerprint}}, nil
}

// Run serves until ctx is done, then lets sessions in flight finish, for Grace
// at most. Nothing is left running when it returns.
func (h *SSH) Run(ctx context.Context) error {
	// Connections outlive ctx by the grace that they are given.
	live, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var accepting sync.WaitGroup
	failed := make(chan error, len(h.listeners))
	for _, l := range h.listeners {
		accepting.Go(func() {
			if err := h.accept(ctx, live, l); err != nil {
				failed <- err
			}
		})
	}
	rechecking := make(chan struct{})
	go func() {
		defer close(rechecking)
		h.recheckKeys(live)
	}()

	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	for _, l := range h.listeners {
		if closeErr := l.Close(); closeErr != nil && !errors.Is(closeErr, net.ErrClosed) {
			err = errors.Join(err, closeErr)
		}
	}
	accepting.Wait()
	h.drain()
	cut()
	h.Cut()
	h.serving.Wait()
	<-rechecking
	return err
}

// accept takes connections until ctx is done.
func (h *SSH) accept(ctx, live context.Context, l net.Listener) error {
	pause := time.Duration(0)
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			if err == nil {
				conn.Close()
			}
			return nil
		case err != nil:
			// Most likely no file descriptor is free. It passes.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			h.git.log.WarnContext(ctx, "SSH connection not accepted", "error", err, "pause", pause)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		address := addressOf(conn)
		if reason := h.door.knock(address); reason != "" {
			h.metrics.refuse(reason)
			h.git.log.DebugContext(ctx, "SSH connection refused", "from", address, "reason", reason)
			conn.Close()
			continue
		}
		h.serving.Go(func() { h.serve(live, quick(conn), address) })
	}
}

// addressOf is where a connection comes from, without the port.
func addressOf(c net.Conn) string {
	host, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		return c.RemoteAddr().String()
	}
	return host
}

// drain ends idle connections now, and waits for the others.
func (h *SSH) drain() {
	for _, c := range h.all() {
		c.leave()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.serving.Wait()
	}()
	timer := time.NewTimer(h.grace)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		h.git.log.Warn("SSH sessions cut off", "after", h.grace)
		h.Cut()
		<-done
	}
}

// Cut closes every connection at once. Pushes that are all here are taken in
// nevertheless.
func (h *SSH) Cut() {
	for _, c := range h.all() {
		c.close()
	}
}

func (h *SSH) all() []*connection {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := make([]*connection, 0, len(h.conns))
	for c := range h.conns {
		list = append(list, c)
	}
	return list
}

// recheckKeys closes the connections of keys that are good no more: deleted,
// expired, or of a user who was blocked.
func (h *SSH) recheckKeys(ctx context.Context) {
	tick := time.NewTicker(h.recheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := h.closeRevoked(ctx); err != nil && ctx.Err() == nil {
			h.git.log.WarnContext(ctx, "SSH keys not looked at again", "error", err)
		}
	}
}

func (h *SSH) closeRevoked(ctx context.Context) error {
	// Read once: a connection that signs in while the store is asked was not
	// asked about.
	keys := map[*connection]tidelock.KeyID{}
	var ids []tidelock.KeyID
	for _, c := range h.all() {
		id := c.keyID()
		if id == 0 {
			continue
		}
		keys[c] = id
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	live, err := h.git.forge.LiveKeys(ctx, ids)
	if err != nil {
		return fmt.Errorf("look at keys again: %w", err)
	}
	for c, id := range keys {
		if !slices.Contains(live, id) {
			h.git.log.InfoContext(ctx, "SSH connection cut: its key is good no more", "key", id)
			c.close()
		}
	}
	return nil
}
