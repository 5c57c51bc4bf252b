package server

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// trustedProxies reads addresses and networks, such as 10.0.0.0/8.
func trustedProxies(list []string) ([]netip.Prefix, error) {
	var trusted []netip.Prefix
	for _, text := range list {
		prefix, err := netip.ParsePrefix(text)
		if addr, single := netip.ParseAddr(text); single == nil {
			addr = addr.Unmap().WithZone("")
			prefix, err = addr.Prefix(addr.BitLen())
		}
		if err != nil {
			return nil, err
		}
		if inside := prefix.Bits() - 96; prefix.Addr().Is4In6() && inside >= 0 {
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), inside)
		}
		trusted = append(trusted, prefix.Masked())
	}
	return trusted, nil
}

// fromClient returns the request with RemoteAddr naming the client, which is
// the peer of the connection unless that is a proxy the operator trusts. Then
// it is the last hop in X-Forwarded-For, from the right, that is none of
// these: whatever stands before it could have been written by anybody.
// Surfaces read RemoteAddr for the audit log and for limits, and nothing else.
func (s *Server) fromClient(r *http.Request) *http.Request {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !s.trusts(peer.Addr()) {
		return r
	}
	client := peer.Addr()
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && s.trusts(client); i-- {
		hop, ok := parseHop(hops[i])
		if !ok {
			break // what a trusted proxy saw cannot be told: it is the client
		}
		client = hop
	}
	if client == peer.Addr() {
		return r
	}
	r = r.WithContext(r.Context()) // a copy: net/http keeps using its own
	r.RemoteAddr = net.JoinHostPort(client.String(), "0")
	return r
}

func (s *Server) trusts(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	for _, prefix := range s.proxies {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// parseHop reads an element of X-Forwarded-For; some proxies add the port.
func parseHop(text string) (netip.Addr, bool) {
	text = strings.TrimSpace(text)
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return addr.Unmap().WithZone(""), true
	}
	both, err := netip.ParseAddrPort(text)
	return both.Addr().Unmap().WithZone(""), err == nil
}
