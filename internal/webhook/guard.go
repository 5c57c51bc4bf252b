package webhook

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tidelock.dev"
)

// A Guard decides which addresses hooks may call. Loopback, link-local and
// other addresses that mean "here" are refused, whatever name or notation
// leads to them, and so is this server itself; what the operator names is let
// through. What counts is the address that is dialled, after all names were
// resolved, so a name that changes its mind gains nothing.
type Guard struct {
	nets        []netip.Prefix
	hosts       []string // "name" or "name:port", lower case
	denyPrivate bool
	own         []netip.AddrPort
}

// GuardConfig is what the operator says of where hooks may lead.
type GuardConfig struct {
	// Allow lists what may be called although it is refused by default:
	// addresses, networks such as 10.0.0.0/8, and hosts, with or without a port.
	Allow []string
	// DenyPrivate refuses private networks too (RFC 1918 and unique local
	// addresses).
	DenyPrivate bool
	// Own are the addresses that this server listens on.
	Own []net.Addr
}

// NewGuard reads what the operator says.
func NewGuard(c GuardConfig) (*Guard, error) {
	g := &Guard{denyPrivate: c.DenyPrivate}
	for _, text := range c.Allow {
		if err := g.allow(strings.ToLower(strings.TrimSpace(text))); err != nil {
			return nil, err
		}
	}
	for _, addr := range c.Own {
		if tcp, ok := addr.(*net.TCPAddr); ok {
			own := tcp.AddrPort()
			g.own = append(g.own, netip.AddrPortFrom(own.Addr().Unmap().WithZone(""), own.Port()))
		}
	}
	return g, nil
}

func (g *Guard) allow(text string) error {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		g.nets = append(g.nets, prefix.Masked())
		return nil
	}
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		addr = addr.Unmap()
		g.nets = append(g.nets, netip.PrefixFrom(addr, addr.BitLen()))
		return nil
	}
	if u, err := tidelock.ParseHookURL("http://" + text); err != nil || u.Host != text {
		return fmt.Errorf("%q is neither a network such as 10.0.0.0/8, an address, nor a host with or without a port", text)
	}
	g.hosts = append(g.hosts, text)
	return nil
}

// named reports whether the operator allows a host by its name.
func (g *Guard) named(host, port string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return slices.Contains(g.hosts, host) || slices.Contains(g.hosts, net.JoinHostPort(host, port))
}

// CheckURL refuses a URL that can be seen to lead where it must not, so that
// people hear of it early. That it passes means little: Dial decides.
func (g *Guard) CheckURL(u *url.URL) error {
	port := portOf(u)
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if g.named(host, port) {
		return nil
	}
	blocked := func(reason string) error {
		return tidelock.FieldErrorf(tidelock.Invalid, "url", "is blocked: %s; the operator may allow it with --webhook-allow", reason)
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		if g.allowed(netip.AddrFrom4([4]byte{127, 0, 0, 1})) || g.allowed(netip.IPv6Loopback()) {
			return nil
		}
		return blocked("requests to localhost are not allowed")
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return blocked("the port is not a number")
		}
		if reason := g.refuse(netip.AddrPortFrom(addr, uint16(n))); reason != "" {
			return blocked(reason)
		}
	}
	return nil
}

func portOf(u *url.URL) string {
	if port := u.Port(); port != "" {
		return port
	}
	if u.Scheme == "https" {
		return "443"
	}
	return "80"
}

// A RefusedError says that an address may not be called.
type RefusedError struct{ reason string }

func (e *RefusedError) Error() string { return e.reason }

const dialTimeout = 5 * time.Second

// Dial connects to a host and port, if what it turns out to be may be called.
func (g *Guard) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: dialTimeout, KeepAlive: -1}
	if host, port, err := net.SplitHostPort(address); err != nil || !g.named(host, port) {
		dialer.ControlContext = g.control
	}
	return dialer.DialContext(ctx, network, address)
}

// control is asked for every address that a name has led to, between making
// the socket and connecting it.
func (g *Guard) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil || !strings.HasPrefix(network, "tcp") {
		return &RefusedError{"not an address of TCP"}
	}
	if reason := g.refuse(to); reason != "" {
		return &RefusedError{reason}
	}
	return nil
}

func (g *Guard) allowed(addr netip.Addr) bool {
	return slices.ContainsFunc(g.nets, func(n netip.Prefix) bool { return n.Contains(addr) })
}

// refuse says why an address may not be called, "" if it may.
func (g *Guard) refuse(to netip.AddrPort) string {
	addr := to.Addr().Unmap().WithZone("")
	if g.allowed(addr) {
		return ""
	}
	for _, a := range append(embedded(addr), addr) {
		if reason := g.refuseAddr(a, to.Port()); reason != "" {
			return reason
		}
	}
	return ""
}

func (g *Guard) refuseAddr(addr netip.Addr, port uint16) string {
	switch {
	case addr.IsLoopback():
		return "requests to loopback addresses are not allowed"
	case addr.IsUnspecified():
		return "requests to the unspecified address are not allowed"
	case addr.IsLinkLocalUnicast():
		return "requests to link-local addresses are not allowed"
	case addr.IsMulticast():
		return "requests to multicast addresses are not allowed"
	case slices.ContainsFunc(special, func(n netip.Prefix) bool { return n.Contains(addr) }):
		return "requests to reserved addresses are not allowed"
	case g.denyPrivate && (addr.IsPrivate() || shared.Contains(addr)):
		return "requests to private networks are not allowed"
	case g.isOwn(addr, port):
		return "requests to this server itself are not allowed"
	}
	return ""
}

var (
	// special are blocks that no receiver is in, but metadata services, relays
	// and the host itself are.
	special = prefixes(
		"0.0.0.0/8", "192.0.0.0/24", "192.88.99.0/24", "240.0.0.0/4",
		"100.100.100.200/32", "168.63.129.16/32", "fd00:ec2::/32", "fd20:ce::254/128", // metadata of clouds outside the link-local block
		"fec0::/10", "100::/64", "5f00::/16",
	)
	shared = netip.MustParsePrefix("100.64.0.0/10")

	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour  = netip.MustParsePrefix("2002::/16")
	teredo     = netip.MustParsePrefix("2001::/32")
	compatible = netip.MustParsePrefix("::/96")
	translated = netip.MustParsePrefix("::ffff:0:0:0/96")
)

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		list[i] = netip.MustParsePrefix(text)
	}
	return list
}

// embedded returns the IPv4 addresses that an IPv6 address may be translated
// or tunnelled to on its way.
func embedded(addr netip.Addr) []netip.Addr {
	if !addr.Is6() {
		return nil
	}
	b := addr.As16()
	v4 := func(at int) netip.Addr { return netip.AddrFrom4([4]byte(b[at : at+4])) }
	switch {
	case nat64.Contains(addr), translated.Contains(addr):
		return []netip.Addr{v4(12)}
	case nat64Local.Contains(addr): // where in it depends on how long the prefix in use is
		return []netip.Addr{v4(12), netip.AddrFrom4([4]byte{b[6], b[7], b[9], b[10]}), netip.AddrFrom4([4]byte{b[7], b[9], b[10], b[11]}), v4(9)}
	case sixToFour.Contains(addr):
		return []netip.Addr{v4(2)}
	case teredo.Contains(addr):
		var client [4]byte
		binary.BigEndian.PutUint32(client[:], ^binary.BigEndian.Uint32(b[12:]))
		return []netip.Addr{v4(4), netip.AddrFrom4(client)}
	case compatible.Contains(addr) && !addr.IsLoopback() && !addr.IsUnspecified():
		return []netip.Addr{v4(12)}
	case binary.BigEndian.Uint32(b[8:])&^0x02000000 == 0x00005efe: // ISATAP
		return []netip.Addr{v4(12)}
	}
	return nil
}

// isOwn reports whether this server listens there, also on all addresses.
func (g *Guard) isOwn(addr netip.Addr, port uint16) bool {
	for _, own := range g.own {
		if own.Port() != port {
			continue
		}
		if own.Addr() == addr {
			return true
		}
		if own.Addr().IsUnspecified() && isLocal(addr) {
			return true
		}
	}
	return false
}

// isLocal reports whether an address is one of this machine's.
func isLocal(addr netip.Addr) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return true // better refused than looped
	}
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Unmap() == addr {
			return true
		}
	}
	return false
}
