package server

import (
	"errors"
	"fmt"
	"net"
	"strconv"
)

// listen opens an address. The host "localhost" stands for 127.0.0.1 and,
// where the machine has it, ::1 on the same port.
func listen(address string) ([]net.Listener, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", address, err)
	}
	if host != "localhost" {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("listen on %q: %w", address, err)
		}
		return []net.Listener{l}, nil
	}
	// A port that is free on one of the two may be taken on the other; only
	// one that we chose ourselves can be chosen again.
	const attempts = 10
	for attempt := 1; ; attempt++ {
		v4, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			return nil, fmt.Errorf("listen on %q: %w", address, err)
		}
		v6, err := net.Listen("tcp6", net.JoinHostPort("::1", strconv.Itoa(portOf(v4))))
		switch {
		case err == nil:
			return []net.Listener{v4, v6}, nil
		case !hasIPv6Loopback():
			return []net.Listener{v4}, nil
		case port != "0" || attempt == attempts:
			return nil, errors.Join(fmt.Errorf("listen on %q: %w", address, err), v4.Close())
		}
		if err := v4.Close(); err != nil {
			return nil, fmt.Errorf("listen on %q: %w", address, err)
		}
	}
}

func hasIPv6Loopback() bool {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
