package e2e

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"tidelock.dev/playground/port"
)

// A Link is a TCP connection's way that can be cut and made slow.
type Link struct {
	t     testing.TB
	proxy *toxiproxy.Proxy
	URL   string // what to dial instead
	to    string
	addr  string
}

// NewLink stands between a client and a URL of localhost.
func NewLink(t testing.TB, address string) *Link {
	t.Helper()
	target, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	l := &Link{t: t, to: "localhost:" + target.Port()}
	// Not a port that the system hands out: while the link is cut, any
	// connection might be given it.
	book, err := port.Open(filepath.Join(t.TempDir(), "ports.json"))
	if err != nil {
		t.Fatal(err)
	}
	if l.addr, err = book.Addr("link"); err != nil {
		t.Fatal(err)
	}
	_, number, _ := strings.Cut(l.addr, ":")
	l.URL = "https://localhost:" + number
	l.open()
	t.Cleanup(l.Cut)
	return l
}

func (l *Link) open() {
	l.t.Helper()
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	l.proxy = toxiproxy.NewProxy(server, "link", l.addr, l.to)
	if err := l.proxy.Start(); err != nil {
		l.t.Fatal(err)
	}
}

// Cut ends every connection and refuses new ones.
func (l *Link) Cut() {
	if l.proxy != nil {
		l.proxy.Stop()
		l.proxy = nil
	}
}

// Mend lets connections through again.
func (l *Link) Mend() {
	l.t.Helper()
	if l.proxy == nil {
		l.open()
	}
}

// Delay holds back what the server sends, by milliseconds.
func (l *Link) Delay(milliseconds int) {
	l.t.Helper()
	toxic := fmt.Sprintf(`{"name":"delay","type":"latency","stream":"downstream","attributes":{"latency":%d}}`, milliseconds)
	if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		l.t.Fatal(err)
	}
}

// Silence swallows what both sides send and closes nothing, as a firewall does
// that forgot the connection.
func (l *Link) Silence() {
	l.t.Helper()
	for _, stream := range []string{"downstream", "upstream"} {
		toxic := fmt.Sprintf(`{"name":"silence-%s","type":"timeout","stream":%q,"attributes":{"timeout":0}}`, stream, stream)
		if _, err := l.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			l.t.Fatal(err)
		}
	}
}
