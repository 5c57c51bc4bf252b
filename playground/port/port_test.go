package port_test

import (
	"net"
	"path/filepath"
	"strconv"
	"testing"

	"tidelock.dev/playground/port"
)

func open(t *testing.T, path string) *port.Book {
	t.Helper()
	b, err := port.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func ask(t *testing.T, b *port.Book, name string) int {
	t.Helper()
	p, err := b.Port(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPortsAreRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "ports.json")
	b := open(t, path)
	server, agent := ask(t, b, "server"), ask(t, b, "agent")
	if server == agent {
		t.Errorf("two names got the same port %d", server)
	}
	again := open(t, path)
	if got := ask(t, again, "server"); got != server {
		t.Errorf("server: got %d, want the remembered %d", got, server)
	}
	if got := ask(t, again, "agent"); got != agent {
		t.Errorf("agent: got %d, want the remembered %d", got, agent)
	}
}

// A port that somebody took meanwhile is given up, whichever loopback address
// it was taken on.
func TestTakenPortIsReplaced(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1", "0.0.0.0"} {
		b := open(t, filepath.Join(t.TempDir(), "ports.json"))
		p := ask(t, b, "server")
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(p)))
		if err != nil {
			t.Logf("this machine cannot listen on %s: %v", host, err)
			continue
		}
		defer l.Close()
		if got := ask(t, b, "server"); got == p {
			t.Errorf("with a listener on %s: got the taken port %d", host, p)
		}
	}
}

// What one book gave is not given by another, though nobody listens there yet.
func TestBooksShareNothing(t *testing.T) {
	one, other := open(t, filepath.Join(t.TempDir(), "ports.json")), open(t, filepath.Join(t.TempDir(), "ports.json"))
	given := map[int]bool{}
	for i := range 400 {
		given[ask(t, one, strconv.Itoa(i))] = true
	}
	for i := range 400 {
		if p := ask(t, other, strconv.Itoa(i)); given[p] {
			t.Fatalf("both books gave port %d", p)
		}
	}
}

func TestBrokenBookIsReported(t *testing.T) {
	if _, err := port.Open(t.TempDir()); err == nil {
		t.Error("a folder was read as a book")
	}
}
