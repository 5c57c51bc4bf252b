package server

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// H11: nobody but a proxy that the operator named says who the client is.
func TestH11TrustedProxy(t *testing.T) {
	for _, tc := range []struct {
		name    string
		proxies []string
		peer    string
		header  []string
		want    string
	}{
		{"no proxy", nil, "203.0.113.7:4711", nil, "203.0.113.7:4711"},
		{"forged, nobody is trusted", nil, "203.0.113.7:4711", []string{"127.0.0.1"}, "203.0.113.7:4711"},
		{"forged past the proxy", []string{"10.0.0.0/8"}, "203.0.113.7:4711", []string{"10.0.0.1"}, "203.0.113.7:4711"},
		{"through the proxy", []string{"10.0.0.0/8"}, "10.1.2.3:4711", []string{"203.0.113.7"}, "203.0.113.7:0"},
		{"forged through the proxy", []string{"10.0.0.0/8"}, "10.1.2.3:4711", []string{"127.0.0.1, 203.0.113.7"}, "203.0.113.7:0"},
		{"forged in a header of its own", []string{"10.0.0.0/8"}, "10.1.2.3:4711", []string{"127.0.0.1", "203.0.113.7"}, "203.0.113.7:0"},
		{"two proxies", []string{"10.0.0.0/8", "192.0.2.1"}, "10.1.2.3:4711", []string{"127.0.0.1, 203.0.113.7, 192.0.2.1"}, "203.0.113.7:0"},
		{"trusted ones only", []string{"10.0.0.0/8"}, "10.1.2.3:4711", []string{"10.0.0.9, 10.0.0.8"}, "10.0.0.9:0"},
		{"no header", []string{"10.0.0.0/8"}, "10.1.2.3:4711", nil, "10.1.2.3:4711"},
		{"an empty header", []string{"10.0.0.0/8"}, "10.1.2.3:4711", []string{""}, "10.1.2.3:4711"},
		{"words", []string{"10.0.0.0/8"}, "10.1.2.3:4711", []string{"203.0.113.7, unknown"}, "10.1.2.3:4711"},
		{"a hop with a port", []string{"10.0.0.0/8"}, "10.1.2.3:4711", []string{"203.0.113.7:99"}, "203.0.113.7:0"},
		{"IPv6", []string{"fd00::/8"}, "[fd00::1]:4711", []string{"2001:db8::7"}, "[2001:db8::7]:0"},
		{"IPv6 with a port", []string{"fd00::/8"}, "[fd00::1]:4711", []string{"[2001:db8::7]:99"}, "[2001:db8::7]:0"},
		{"IPv4 inside IPv6", []string{"10.0.0.0/8"}, "[::ffff:10.1.2.3]:4711", []string{"::ffff:203.0.113.7"}, "203.0.113.7:0"},
		{"a network of IPv4 inside IPv6", []string{"::ffff:10.0.0.0/104"}, "10.1.2.3:4711", []string{"203.0.113.7"}, "203.0.113.7:0"},
		{"a zone", []string{"fe80::1"}, "[fe80::1%eth0]:4711", []string{"203.0.113.7"}, "203.0.113.7:0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			proxies, err := trustedProxies(tc.proxies)
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.RemoteAddr = tc.peer
			for _, h := range tc.header {
				r.Header.Add("X-Forwarded-For", h)
			}
			for _, name := range []string{"Forwarded", "X-Real-Ip", "X-Client-Ip", "True-Client-Ip"} {
				r.Header.Set(name, "198.51.100.1")
			}
			if got := (&Server{proxies: proxies}).fromClient(r).RemoteAddr; got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
			if r.RemoteAddr != tc.peer {
				t.Errorf("the connection's own request says %s now", r.RemoteAddr)
			}
		})
	}
	for _, wrong := range []string{"proxy.example", "10.0.0.0/33", ""} {
		if _, err := trustedProxies([]string{wrong}); err == nil {
			t.Errorf("%q was taken for a proxy", wrong)
		}
	}
}
