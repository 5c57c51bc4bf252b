package tidelock

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

const maxHookURL = 2048

// ParseHookURL reads the URL of a hook. It takes only URLs that every parser
// reads alike, so that what is checked is what is called: http or https, in
// printable ASCII, with a plain host name or an address in its usual form.
// Whether that host may be called is another question.
func ParseHookURL(text string) (*url.URL, error) {
	wrong := func(format string, args ...any) (*url.URL, error) {
		return nil, FieldErrorf(Invalid, "url", format, args...)
	}
	if len(text) > maxHookURL {
		return wrong("is longer than %d bytes", maxHookURL)
	}
	for _, c := range []byte(text) {
		if c <= ' ' || c >= 0x7f {
			return wrong("must be ASCII without spaces; write international names in their xn-- form, and escape others with %%")
		}
	}
	if strings.ContainsAny(text, `\"<>^{}|`+"`") {
		return wrong("has a character that must be escaped with %%")
	}
	u, err := url.Parse(text)
	if err != nil {
		return wrong("is not a URL") // the parser's words repeat it
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return wrong("must begin with http:// or https://")
	case u.Opaque != "" || u.Host == "":
		return wrong("names no host")
	case u.Fragment != "" || strings.Contains(text, "#"):
		return wrong("must not have a fragment")
	case strings.HasSuffix(u.Host, ":"):
		return wrong("has a colon without a port")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return wrong("has no port between 1 and 65535")
		}
	}
	if !plainHost(u.Hostname()) {
		return wrong("has a host that is neither a name nor an address in its usual form")
	}
	return u, nil
}

// plainHost reports whether a host is an IP address as it is usually written,
// or a name that nothing takes for an address, such as 0x7f.1 or 2130706433.
func plainHost(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Zone() == ""
	}
	if len(host) > 253 {
		return false
	}
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-") {
			return false
		}
		for _, c := range label {
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	last := strings.ToLower(labels[len(labels)-1])
	return last[0] < '0' || last[0] > '9'
}
