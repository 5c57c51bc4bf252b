package server

import (
	"cmp"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidelock.dev/internal/gitserver"
	"tidelock.dev/internal/webhook"
)

// Config is everything a server can be told. Its zero value, with a folder, is
// good: SQLite and repositories in the folder, HTTPS on port 8443 of loopback
// with a certificate of its own making.
type Config struct {
	DataDir string // required: --data-dir

	// Listen is where HTTPS is served. The host "localhost" stands for
	// 127.0.0.1 and ::1 together.
	Listen string // --listen, default "localhost:8443"

	// HTTPListen serves the same without TLS. It must be loopback unless
	// InsecureHTTPAny, because tokens cross it in the clear.
	HTTPListen      string // --http-listen, default none
	InsecureHTTPAny bool   // --insecure-http-any

	// ExternalURL is how clients reach the server; it names a host, never an
	// address, and may have a path.
	ExternalURL string   // --external-url, default https://localhost:<port>
	URLAliases  []string // --url-alias: other URLs that lead here

	// SSHListen is where git is served over SSH.
	SSHListen string // --ssh-listen, default none; the command's is localhost:2222
	SSHURL    string // --ssh-url: what git over SSH is reached by, default ssh://git@<external host>:<port>

	TLSCert string // --tls-cert, default: a CA made on first start
	TLSKey  string // --tls-key

	DatabaseURL string // --database-url, default: SQLite in DataDir
	NATSURL     string // --nats-url, default: a bus inside the process

	// MetricsListen serves /-/metrics alone, without asking who reads. Without
	// it they are on the main listener, for local callers and administrators.
	MetricsListen string // --metrics-listen
	OTLPEndpoint  string // --otlp-endpoint: where traces go, such as http://localhost:4318

	// TrustedProxies are addresses and networks whose X-Forwarded-For says who
	// the client is; from anybody else it means nothing.
	TrustedProxies []string // --trusted-proxy, default none

	// How many requests a minute callers may make, 0 for any number: one user,
	// deploy token or deploy key; one address without a credential; one
	// address with credentials that are not valid.
	RateLimitUser      int // --rate-limit-user
	RateLimitAnonymous int // --rate-limit-anonymous
	RateLimitSignIn    int // --rate-limit-sign-in

	// RegistryURL is where the content of images is kept, if not in DataDir: a
	// bucket, as s3://<access key>:<secret key>@<host>/<bucket>/<prefix>?region=….
	RegistryURL   string // --registry-url, default: in DataDir
	RegistryQuota int64  // --registry-quota: bytes that the images of one project may have, default any number
	MaxBlobSize   int64  // --registry-max-blob-size in bytes, default 10 GiB

	// HistoryKeep is for how long pushes, announcements, rollouts and builds
	// are remembered that nothing needs any more; 0 for ever.
	HistoryKeep time.Duration // --history-keep

	MaxPushSize     int64         // --git-max-push-size in bytes, default 1 GiB
	ShutdownTimeout time.Duration // --shutdown-timeout for requests in flight, default 30s

	// Hooks may not call loopback, link-local and the like, unless the operator
	// says so: networks, addresses, and hosts with or without a port.
	WebhookAllow       []string // --webhook-allow
	WebhookDenyPrivate bool     // --webhook-deny-private: nor private networks

	// DisableResync leaves only live events to tell agents of a push. It
	// exists for the test that shows that comparing is needed.
	DisableResync bool // --disable-resync, hidden

	Log     *slog.Logger // required
	Version string       // of the build
	Commit  string
}

const (
	defaultListen          = "localhost:8443"
	defaultMaxPushSize     = 1 << 30
	defaultMaxBlobSize     = 10 << 30
	defaultShutdownTimeout = 30 * time.Second
)

func (c Config) withDefaults() Config {
	c.Listen = cmp.Or(c.Listen, defaultListen)
	c.MaxPushSize = cmp.Or(c.MaxPushSize, defaultMaxPushSize)
	c.MaxBlobSize = cmp.Or(c.MaxBlobSize, defaultMaxBlobSize)
	c.ShutdownTimeout = cmp.Or(c.ShutdownTimeout, defaultShutdownTimeout)
	c.Version = cmp.Or(c.Version, "devel")
	c.ExternalURL = strings.TrimRight(c.ExternalURL, "/")
	c.URLAliases = slices.Clone(c.URLAliases)
	for i, alias := range c.URLAliases {
		c.URLAliases[i] = strings.TrimRight(alias, "/")
	}
	return c
}

// A ConfigError lists everything that is wrong with a configuration.
type ConfigError struct {
	Problems []string // each names the flag to change
}

func (e *ConfigError) Error() string {
	return "bad configuration: " + strings.Join(e.Problems, "; ")
}

// Validate returns nil or a *ConfigError with every problem there is.
func (c Config) Validate() error {
	c = c.withDefaults()
	var found problems
	if c.DataDir == "" {
		found.add("data-dir", "name a folder for the data")
	} else if !filepath.IsAbs(c.DataDir) {
		found.add("data-dir", "%q is not an absolute path", c.DataDir)
	}
	found.check("listen", checkAddress(c.Listen))
	if c.HTTPListen != "" {
		found.check("http-listen", checkAddress(c.HTTPListen))
		if host, _, err := net.SplitHostPort(c.HTTPListen); err == nil && !isLoopback(host) && !c.InsecureHTTPAny {
			found.add("http-listen", "%q is not a loopback address, and without TLS tokens can be read on the way; use 127.0.0.1 or add --insecure-http-any", c.HTTPListen)
		}
	}
	if c.MetricsListen != "" {
		found.check("metrics-listen", checkAddress(c.MetricsListen))
	}
	if c.ExternalURL != "" {
		found.check("external-url", checkExternalURL(c.ExternalURL))
	}
	for _, alias := range c.URLAliases {
		found.check("url-alias", checkBaseURL(alias))
	}
	if c.SSHListen != "" {
		found.check("ssh-listen", checkAddress(c.SSHListen))
	}
	if c.SSHURL != "" {
		found.check("ssh-url", checkSSHURL(c.SSHURL))
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		found.add("tls-cert", "goes together with --tls-key: give both or neither")
	}
	if c.DatabaseURL != "" {
		found.check("database-url", checkURL(c.DatabaseURL, "postgres", "postgresql", "sqlite"))
	}
	for server := range strings.SplitSeq(c.NATSURL, ",") {
		if c.NATSURL != "" {
			found.check("nats-url", checkURL(strings.TrimSpace(server), "nats", "tls", "ws", "wss"))
		}
	}
	if c.OTLPEndpoint != "" {
		found.check("otlp-endpoint", checkURL(c.OTLPEndpoint, "http", "https"))
	}
	for _, proxy := range c.TrustedProxies {
		if _, err := trustedProxies([]string{proxy}); err != nil {
			found.add("trusted-proxy", "%q is neither an address nor a network such as 10.0.0.0/8", proxy)
		}
	}
	for _, l := range []struct {
		flag      string
		perMinute int
	}{
		{"rate-limit-user", c.RateLimitUser},
		{"rate-limit-anonymous", c.RateLimitAnonymous},
		{"rate-limit-sign-in", c.RateLimitSignIn},
	} {
		if l.perMinute < 0 {
			found.add(l.flag, "must not be negative; 0 sets no limit")
		}
	}
	for _, allowed := range c.WebhookAllow {
		_, err := webhook.NewGuard(webhook.GuardConfig{Allow: []string{allowed}})
		found.check("webhook-allow", err)
	}
	if c.RegistryURL != "" {
		_, err := parseBucket(c.RegistryURL)
		found.check("registry-url", err)
	}
	if c.RegistryQuota < 0 {
		found.add("registry-quota", "must not be negative; 0 sets no limit")
	}
	if c.MaxBlobSize < 0 {
		found.add("registry-max-blob-size", "must not be negative")
	}
	if c.MaxPushSize < 0 {
		found.add("git-max-push-size", "must not be negative")
	}
	if c.HistoryKeep < 0 {
		found.add("history-keep", "must not be negative; 0 keeps everything")
	}
	if c.ShutdownTimeout < 0 {
		found.add("shutdown-timeout", "must not be negative")
	}
	if c.Log == nil {
		found = append(found, "Log is required")
	}
	if len(found) > 0 {
		return &ConfigError{Problems: found}
	}
	return nil
}

type problems []string

func (p *problems) add(flag, format string, args ...any) {
	*p = append(*p, "--"+flag+": "+fmt.Sprintf(format, args...))
}

func (p *problems) check(flag string, err error) {
	if err != nil {
		p.add(flag, "%v", err)
	}
}

func checkAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%q is not host:port", address)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q has no port between 0 and 65535", address)
	}
	if host != "" && host != "localhost" {
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("%q does not begin with an IP address or localhost", address)
		}
	}
	return nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

// checkExternalURL refuses addresses: registry clients and certificates both
// go by host names.
func checkExternalURL(raw string) error {
	if err := checkBaseURL(raw); err != nil {
		return err
	}
	u, _ := url.Parse(raw)
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		return fmt.Errorf("%q must name a host, not an IP address; for one machine use https://localhost:<port>", raw)
	}
	return nil
}

func checkBaseURL(raw string) error {
	if err := checkURL(raw, "https", "http"); err != nil {
		return err
	}
	u, _ := url.Parse(raw)
	switch {
	case u.User != nil:
		return fmt.Errorf("%q must not hold a user or password", u.Redacted())
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return fmt.Errorf("%q must not have a query or fragment", raw)
	case u.Path != "" && (u.RawPath != "" || path.Clean(u.Path) != u.Path):
		return fmt.Errorf("%q has a path that is not plain", raw)
	}
	return nil
}

func checkSSHURL(raw string) error {
	if err := checkURL(raw, "ssh"); err != nil {
		return err
	}
	u, _ := url.Parse(raw)
	switch _, hasPassword := u.User.Password(); {
	case hasPassword || u.User.Username() != "" && u.User.Username() != gitserver.SSHUser:
		return fmt.Errorf("%q has a user other than %s", u.Redacted(), gitserver.SSHUser)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q has more than a host and a port", raw)
	}
	return nil
}

// checkURL never repeats what it cannot parse: it may hold a password.
func checkURL(raw string, schemes ...string) error {
	u, err := url.Parse(raw)
	if err != nil {
		return fmt.Errorf("is not a URL")
	}
	if !slices.Contains(schemes, u.Scheme) {
		return fmt.Errorf("%q does not begin with %s", u.Redacted(), strings.Join(prefixes(schemes), " or "))
	}
	// A file needs no host, and PostgreSQL may be reached by a socket.
	if u.Host == "" && !slices.Contains([]string{"sqlite", "postgres", "postgresql"}, u.Scheme) {
		return fmt.Errorf("%q names no host", u.Redacted())
	}
	return nil
}

func prefixes(schemes []string) []string {
	out := make([]string, len(schemes))
	for i, s := range schemes {
		out[i] = s + "://"
	}
	return out
}
