// Package port gives the playground's components free loopback ports and
// remembers them in a file, so that addresses survive a restart. It only
// chooses numbers; whoever asks binds them.
package port

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// Ports are taken from below the range the kernel gives to outgoing
// connections, so that none of those sits on a remembered port.
const (
	first = 20000
	last  = 31999
)

// given has the path of the book to which this process gave a port: who asked
// may not listen on it yet, or for a moment not.
var given sync.Map

// A Book holds the ports of one state folder. Its methods may be called from
// any goroutine.
type Book struct {
	path string

	mu    sync.Mutex
	ports map[string]int
}

// Open reads the book at path; a missing file is an empty book.
func Open(path string) (*Book, error) {
	b := &Book{path: path, ports: map[string]int{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ports: %w", err)
	}
	if err := json.Unmarshal(text, &b.ports); err != nil {
		return nil, fmt.Errorf("read ports from %q: %w", path, err)
	}
	return b, nil
}

// Port returns the port remembered for name, or a new one if there is none or
// somebody else has it now. Ask before the component runs: its own listener
// counts as somebody else.
func (b *Book) Port(name string) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.ports[name]; ok && free(p) {
		return p, nil
	}
	taken := map[int]bool{}
	for _, p := range b.ports {
		taken[p] = true
	}
	const span = last - first + 1
	start := rand.IntN(span)
	for i := range span {
		p := first + (start+i)%span
		if taken[p] || !free(p) {
			continue
		}
		if owner, ok := given.LoadOrStore(p, b.path); ok && owner != b.path {
			continue
		}
		b.ports[name] = p
		return p, b.write()
	}
	return 0, fmt.Errorf("no free port between %d and %d for %s", first, last, name)
}

// Addr returns Port as an address on 127.0.0.1.
func (b *Book) Addr(name string) (string, error) {
	p, err := b.Port(name)
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(p)), err
}

func (b *Book) write() error {
	text, err := json.MarshalIndent(b.ports, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(b.path), 0o700)
	}
	if err == nil {
		err = os.WriteFile(b.path, text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("remember ports: %w", err)
	}
	return nil
}

// free reports whether p can be bound on both loopback addresses. A machine
// without IPv6 has only one.
func free(p int) bool {
	for _, host := range []string{"127.0.0.1", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(p)))
		if err == nil {
			l.Close()
		} else if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EACCES) {
			return false
		}
	}
	return true
}
