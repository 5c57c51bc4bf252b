package gitserver

import (
	"net"
	"syscall"
)

// A quickConn acknowledges at once what it reads. OpenSSH's client leaves
// Nagle's algorithm on, so that each of its small packets waits for the
// acknowledgement of the one before, which Linux delays by 40 ms: a fetch would
// spend most of its time so.
type quickConn struct {
	net.Conn
	raw syscall.RawConn
}

func quick(conn net.Conn) net.Conn {
	if tcp, ok := conn.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			return quickConn{conn, raw}
		}
	}
	return conn
}

func (c quickConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	// The kernel forgets it as it likes; that it cannot be set only costs time.
	_ = c.raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1)
	})
	return n, err
}
