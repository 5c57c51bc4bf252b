package webhook_test

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/webhook"
)

func newGuard(t testing.TB, c webhook.GuardConfig) *webhook.Guard {
	t.Helper()
	guard, err := webhook.NewGuard(c)
	must(t, err)
	return guard
}

// TestH10URLs are URLs that lead to this machine, to its neighbours or to a
// metadata service, in every notation that something might understand.
func TestH10URLs(t *testing.T) {
	guard := newGuard(t, webhook.GuardConfig{})
	for _, refused := range []string{
		// loopback
		"http://127.0.0.1", "http://127.0.0.1:9292/hook", "https://127.1.2.3", "http://[::1]", "http://[::1]:80/x",
		"http://localhost", "http://LOCALHOST", "http://localhost.", "http://a.localhost", "http://a.b.LocalHost.",
		// as a number, in octal, in hexadecimal, short
		"http://2130706433", "http://0x7f000001", "http://0x7f.1", "http://0177.0.0.1", "http://017700000001", "http://127.1", "http://127.0.1",
		"http://0", "http://127.0.0.1.", "http://127.000.000.001", "http://1.2.3.4.5", "http://a.0x7f", "http://a.1",
		// written as IPv6
		"http://[::ffff:127.0.0.1]", "http://[::ffff:7f00:1]", "http://[::127.0.0.1]", "http://[64:ff9b::127.0.0.1]", "http://[64:ff9b::7f00:1]",
		"http://[64:ff9b:1::127.0.0.1]", "http://[2002:7f00:1::]", "http://[2001:0:7f00:1::]", "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]",
		"http://[::ffff:0:127.0.0.1]", "http://[fe80::5efe:127.0.0.1]", "http://[2001:db8::5efe:127.0.0.1]", "http://[::1%25lo]", "http://[fe80::1%25eth0]",
		// link-local, metadata
		"http://169.254.169.254/latest/meta-data/", "http://[fe80::1]", "http://[::ffff:169.254.169.254]", "http://[64:ff9b::a9fe:a9fe]",
		"http://[fd00:ec2::254]", "http://100.100.100.200", "http://168.63.129.16", "http://192.0.0.192",
		// unspecified, multicast, reserved
		"http://0.0.0.0", "http://[::]", "http://0.1.2.3", "http://224.0.0.1", "http://[ff02::1]", "http://255.255.255.255", "http://240.0.0.1", "http://[fec0::1]",
		// what one parser reads otherwise than another
		"http://example.com\\@127.0.0.1", "http://127.0.0.1#@example.com", "http://example.com@127.0.0.1", "http://user:p@ss@127.0.0.1",
		"http://①②⑦.0.0.1", "http://127。0。0。1", "http://ⓛocalhost", "http://exa\u00admple.com", "http://example.com%00.internal", "http://ex%61mple.com:80:80",
		"http:///127.0.0.1", "http:127.0.0.1", "//127.0.0.1", "http://", "http://:80", "http://example.com:", "http://example.com:0", "http://example.com:65536",
		"http://example.com:http", "http://[::1", "http://[]", "http://-a.example", "http://a..example", "http://.example", "http://example.com/ x", "http://example.com/\r\nHost: x",
		"http://example.com/\t", "http://example.com#f", "ftp://example.com", "file:///etc/passwd", "gopher://example.com", "javascript:alert(1)", "", "example.com",
		"http://" + strings.Repeat("a.", 200) + "example", "http://example.com/" + strings.Repeat("x", 3000),
	} {
		u, err := tidelock.ParseHookURL(refused)
		if err == nil {
			err = guard.CheckURL(u)
		}
		if err == nil {
			t.Errorf("%q was let through", refused)
		} else if tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("%q: got kind %v, want invalid", refused, tidelock.KindOf(err))
		}
	}
	for _, taken := range []string{
		"http://example.com", "https://example.com:8443/a/b?c=d", "https://user:pass@example.com/x", "https://ci.example./", "http://10.0.0.1", "http://192.168.1.1:9000",
		"http://[2001:db8::1]/", "http://[fd12::1]", "http://8.8.8.8", "http://xn--bcher-kva.example", "http://a_b.svc.cluster.local/hook/0123", "http://1e100.net", "http://localhost.example.com",
		"http://[64:ff9b::8.8.8.8]", "http://[2002:808:808::]", "https://example.com/?", "https://EXAMPLE.com",
	} {
		u, err := tidelock.ParseHookURL(taken)
		if err == nil {
			err = guard.CheckURL(u)
		}
		if err != nil {
			t.Errorf("%q was refused: %v", taken, err)
		}
	}
}

func TestH10Allowed(t *testing.T) {
	tests := []struct {
		allow   string
		url     string
		allowed bool
	}{
		{"127.0.0.0/8", "http://127.0.0.1:9292", true},
		{"127.0.0.0/8", "http://localhost:9292", true},
		{"127.0.0.0/8", "http://[::ffff:127.0.0.1]", true},
		{"127.0.0.0/8", "http://[::1]", false},
		{"127.0.0.0/8", "http://169.254.169.254", false},
		{"127.0.0.2", "http://127.0.0.2", true},
		{"127.0.0.2", "http://127.0.0.1", false},
		{"::1", "http://[::1]:80", true},
		{"[::1]", "http://localhost", true},
		{"localhost", "http://localhost:1234", true},
		{"localhost", "http://LOCALHOST.", true},
		{"localhost", "http://127.0.0.1", false},
		{"localhost:9292", "http://localhost:9292", true},
		{"localhost:9292", "http://localhost:9293", false},
		{"localhost:80", "http://localhost", true},
		{"localhost:443", "http://localhost", false},
		{"localhost:443", "https://localhost", true},
		{"Receiver.Localhost", "http://receiver.localhost", true},
	}
	for _, tt := range tests {
		guard := newGuard(t, webhook.GuardConfig{Allow: []string{tt.allow}})
		u, err := tidelock.ParseHookURL(tt.url)
		must(t, err)
		if err := guard.CheckURL(u); (err == nil) != tt.allowed {
			t.Errorf("with %s, %s: got %v, want allowed %t", tt.allow, tt.url, err, tt.allowed)
		}
	}
	for _, wrong := range []string{"", "10.0.0.0/33", "http://a", "a b", "user@host", "host/path", "host:99999", "*", "0x7f.1"} {
		if _, err := webhook.NewGuard(webhook.GuardConfig{Allow: []string{wrong}}); err == nil {
			t.Errorf("--webhook-allow %q was taken", wrong)
		}
	}
	private := newGuard(t, webhook.GuardConfig{DenyPrivate: true})
	for _, refused := range []string{"http://10.0.0.1", "http://172.16.0.1", "http://192.168.0.1", "http://[fd12::1]", "http://100.64.0.1", "http://[64:ff9b::10.0.0.1]"} {
		u, err := tidelock.ParseHookURL(refused)
		must(t, err)
		if private.CheckURL(u) == nil {
			t.Errorf("%s was let through although private networks are denied", refused)
		}
	}
}

// TestH10Dial connects for real: what is dialled is checked, whatever the name
// was, also for a server that listens on this machine's own address.
func TestH10Dial(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	must(t, err)
	dial := func(c webhook.GuardConfig, host string) error {
		conn, err := newGuard(t, c).Dial(t.Context(), "tcp", net.JoinHostPort(host, port))
		if err == nil {
			conn.Close()
		}
		return err
	}
	for _, host := range []string{"127.0.0.1", "localhost", "localhost.", "::ffff:127.0.0.1", "0.0.0.0", "0", "2130706433", "0x7f.1", "127.1"} {
		if err := dial(webhook.GuardConfig{}, host); err == nil {
			t.Errorf("%s was connected to", host)
		}
	}
	refused, ok := errors.AsType[*webhook.RefusedError](dial(webhook.GuardConfig{}, "localhost"))
	if !ok || !strings.Contains(refused.Error(), "loopback") {
		t.Errorf("localhost: got %v, want a refusal that names loopback", refused)
	}
	for _, allow := range []string{"127.0.0.1", "localhost", "localhost:" + port} {
		if err := dial(webhook.GuardConfig{Allow: []string{allow, "::1"}}, "localhost"); err != nil {
			t.Errorf("localhost with %s allowed: %v", allow, err)
		}
	}
}

func TestH10OwnAddress(t *testing.T) {
	address := func(text string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(text)) }
	guard := newGuard(t, webhook.GuardConfig{Own: []net.Addr{address("192.0.2.7:8443"), address("[::]:8080")}})
	check := func(text string) error {
		u, err := url.Parse(text)
		must(t, err)
		return guard.CheckURL(u)
	}
	if check("https://192.0.2.7:8443/api") == nil {
		t.Error("the server's own address was let through")
	}
	if err := check("https://192.0.2.7:443/"); err != nil {
		t.Errorf("another port of the same address: %v", err)
	}
	addrs, err := net.InterfaceAddrs()
	must(t, err)
	for _, a := range addrs {
		if ip := a.(*net.IPNet).IP; ip.IsGlobalUnicast() && check("http://"+net.JoinHostPort(ip.String(), "8080")) == nil {
			t.Errorf("%s, on which the server listens among all, was let through", ip)
		}
	}
}

// FuzzHookURL holds what is accepted against the address that it leads to, as
// net/url and the resolver of the system see it.
func FuzzHookURL(f *testing.F) {
	for _, seed := range []string{
		"http://example.com/x", "https://user:pass@example.com:8443/a?b=c", "http://127.0.0.1", "http://0x7f.1", "http://[::1]", "http://[::ffff:7f00:1]",
		"http://localhost.", "http://a@b@127.0.0.1", "http://[64:ff9b::7f00:1]", "http://2130706433", "http://127.0.0.1%2eexample.com", "http://[fe80::1%25lo]",
		"http://10.1.1.1:80", "HTTP://EXAMPLE.COM", "http://ex\u2024ample", "http://[2002:7f00:1::]:1", "http:/\\127.0.0.1", "http://0", "http://a.0x0",
	} {
		f.Add(seed)
	}
	guard, err := webhook.NewGuard(webhook.GuardConfig{})
	must(f, err)
	f.Fuzz(func(t *testing.T, text string) {
		u, err := tidelock.ParseHookURL(text)
		if err != nil {
			if tidelock.KindOf(err) != tidelock.Invalid {
				t.Fatalf("%q: kind %v", text, tidelock.KindOf(err))
			}
			return
		}
		if guard.CheckURL(u) != nil {
			return
		}
		again, err := tidelock.ParseHookURL(u.String())
		if err != nil || again.Hostname() != u.Hostname() || again.Port() != u.Port() || again.Scheme != u.Scheme {
			t.Fatalf("%q is read as %q, and that as %v (%v)", text, u, again, err)
		}
		// What the C library takes for an address without asking anybody.
		host := strings.TrimSuffix(u.Hostname(), ".")
		if addr, err := netip.ParseAddr(host); err == nil {
			if addr = addr.Unmap(); addr.IsLoopback() || addr.IsUnspecified() || addr.IsLinkLocalUnicast() || addr.IsMulticast() {
				t.Fatalf("%q leads to %s", text, addr)
			}
			return
		}
		last := host[strings.LastIndexByte(host, '.')+1:]
		if last == "" || last[0] >= '0' && last[0] <= '9' || strings.EqualFold(last, "localhost") {
			t.Fatalf("%q has a host that may be taken for an address", text)
		}
	})
}

// Names are looked up while a hook waits, not for ever.
func TestDialTimesOut(t *testing.T) {
	began := time.Now()
	_, err := newGuard(t, webhook.GuardConfig{}).Dial(t.Context(), "tcp", "receiver.invalid:80")
	if err == nil {
		t.Fatal("a name that does not exist was connected to")
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}
