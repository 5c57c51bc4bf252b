// Package server is what "tidelock server" runs: the composition root. It
// opens the data folder, the database, the bus and the listeners, wires the
// surfaces to the rules, and starts and stops everything in order. It decides
// nothing about what is asked; that is forge's.
//
//	s, err := server.New(ctx, server.Config{DataDir: dir, Log: log})
//	err = s.Run(ctx) // until ctx is done; then drains
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tidelock.dev/internal/agentserver"
	"tidelock.dev/internal/bus"
	"tidelock.dev/internal/console"
	"tidelock.dev/internal/delivery"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitlabapi"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/gitserver"
	"tidelock.dev/internal/limit"
	"tidelock.dev/internal/ociserver"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/rollout"
	"tidelock.dev/internal/seal"
	"tidelock.dev/internal/signing"
	"tidelock.dev/internal/stage"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/webhook"
)

var _ forge.Store = (*store.DB)(nil)

const (
	readHeaderTimeout = 10 * time.Second
	requestTimeout    = 5 * time.Minute // for a body to come, and for an answer to go
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// A Server is everything that one process serves.
type Server struct {
	config    Config
	log       *slog.Logger
	external  *url.URL
	authority *authority // nil with a given certificate
	cert      *certificate
	closers   []closer

	bus      *bus.Bus
	repos    *gitrepo.Disk
	forge    *forge.Forge
	limits   *limit.Guard
	agents   *agentserver.Server
	hooks    *webhook.Worker
	packer   *delivery.Packer
	rollouts *rollout.Loop
	git      *gitserver.Server
	content  *registry.Registry
	images   *ociserver.Server
	api      *gitlabapi.API
	console  *console.Console

	https  []net.Listener
	http   []net.Listener
	scrape []net.Listener // metrics alone

	sshListeners []net.Listener
	ssh          *gitSSH // nil without listeners

	metrics  http.Handler
	requests *requestMetrics
	proxies  []netip.Prefix // whose X-Forwarded-For counts
	stopping atomic.Bool
	aborted  atomic.Bool
}

type closer struct {
	what  string
	close func() error
}

// New opens everything: when it returns, the listeners accept connections and
// the first start's work is done. The caller runs the server or closes it.
func New(ctx context.Context, c Config) (_ *Server, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.withDefaults()
	log := slog.New(logHandler{c.Log.Handler()})
	s := &Server{config: c, log: log.With("component", "server")}
	if s.proxies, err = trustedProxies(c.TrustedProxies); err != nil {
		return nil, err // Validate has seen them
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()

	if err := s.openFolder(); err != nil {
		return nil, err
	}
	if err := s.openListeners(); err != nil {
		return nil, err
	}
	if err := s.openCertificate(); err != nil {
		return nil, err
	}
	if err := s.openSSHKey(); err != nil {
		return nil, err
	}
	if err := s.openParts(ctx, log); err != nil {
		return nil, err
	}
	if err := s.firstStart(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// onClose notes what Close has to do, last first.
func (s *Server) onClose(what string, close func() error) {
	s.closers = append(s.closers, closer{what, close})
}

// Close lets go of everything that New opened. Run does it by itself.
func (s *Server) Close() error {
	var err error
	for i := len(s.closers) - 1; i >= 0; i-- {
		c := s.closers[i]
		if closeErr := c.close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("close %s: %w", c.what, closeErr))
		}
	}
	s.closers = nil
	return err
}

func (s *Server) openFolder() error {
	if err := os.MkdirAll(s.config.DataDir, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	lock, err := lockFolder(s.config.DataDir)
	if err != nil {
		return err
	}
	s.onClose("the data folder", lock.release)
	return checkRestored(s.config.DataDir)
}

func (s *Server) openListeners() error {
	for _, l := range []struct {
		flag, address string
		opened        *[]net.Listener
	}{
		{"listen", s.config.Listen, &s.https},
		{"http-listen", s.config.HTTPListen, &s.http},
		{"metrics-listen", s.config.MetricsListen, &s.scrape},
		{"ssh-listen", s.config.SSHListen, &s.sshListeners},
	} {
		if l.address == "" {
			continue
		}
		opened, err := listen(l.address)
		if err != nil {
			return fmt.Errorf("--%s: %w", l.flag, err)
		}
		*l.opened = opened
		for _, o := range opened {
			s.onClose("a listener", func() error {
				if err := o.Close(); !errors.Is(err, net.ErrClosed) {
					return err
				}
				return nil // the HTTP server has closed it already
			})
		}
	}
	external := s.config.ExternalURL
	if external == "" {
		external = "https://" + net.JoinHostPort("localhost", strconv.Itoa(portOf(s.https[0])))
	}
	u, err := url.Parse(external)
	if err != nil {
		return fmt.Errorf("parse the external URL: %w", err)
	}
	s.external = u
	return nil
}

func (s *Server) openCertificate() (err error) {
	load := fromFiles(s.config.TLSCert, s.config.TLSKey)
	if s.config.TLSCert == "" {
		s.authority, err = openAuthority(filepath.Join(s.config.DataDir, "tls"), s.hosts(), time.Now())
		if err != nil {
			return err
		}
		load = s.authority.load
	}
	s.cert, err = newCertificate(s.log, load)
	return err
}

// hosts are the names and addresses that clients may use for this server.
func (s *Server) hosts() []string {
	hosts := []string{s.external.Hostname(), "localhost", "127.0.0.1", "::1"}
	for _, alias := range s.config.URLAliases {
		if u, err := url.Parse(alias); err == nil {
			hosts = append(hosts, u.Hostname())
		}
	}
	if addr, ok := s.https[0].Addr().(*net.TCPAddr); ok && !addr.IP.IsUnspecified() {
		hosts = append(hosts, addr.IP.String())
	}
	return hosts
}

// openParts makes the parts, each from what stands before it.
func (s *Server) openParts(ctx context.Context, log *slog.Logger) error {
	c := s.config
	collected := prometheus.NewRegistry()
	collected.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.metrics = promhttp.HandlerFor(collected, promhttp.HandlerOpts{Registry: collected})
	s.requests = newRequestMetrics(collected)

	tracing, err := openTracing(ctx, c, s.log)
	if err != nil {
		return err
	}
	s.onClose("tracing", func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return tracing.shutdown(ctx)
	})

	box, err := seal.Open(filepath.Join(c.DataDir, "secret.key"))
	if err != nil {
		return err
	}
	db, err := store.Open(ctx, store.Config{URL: databaseOr(c.DatabaseURL, c.DataDir), Seal: box, Log: log})
	if err != nil {
		return err
	}
	s.onClose("the store", db.Close)

	s.bus, err = bus.Open(ctx, bus.Config{URL: c.NATSURL, Log: log.With("component", "bus")})
	if err != nil {
		return err
	}
	s.onClose("the bus", s.bus.Close)

	s.repos, err = gitrepo.Open(ctx, gitrepo.Config{
		Dir: filepath.Join(c.DataDir, "repositories"), Log: log, MaxInputSize: c.MaxPushSize,
	})
	if err != nil {
		return err
	}
	content, err := s.openRegistry(ctx, log)
	if err != nil {
		return err
	}
	signer, err := signing.Open(filepath.Join(c.DataDir, "signing"))
	if err != nil {
		return err
	}
	guard, err := s.newGuard()
	if err != nil {
		return err
	}
	s.forge, err = forge.New(forge.Config{
		Store: db, Repos: s.repos, Registry: content, Signer: signer, ImageQuota: c.RegistryQuota, Bus: s.bus, Log: log, Tracer: tracing.provider, CheckHookURL: guard.CheckURL,
		ExternalURL: s.external, HistoryKeep: c.HistoryKeep, Metrics: collected,
	})
	if err != nil {
		return err
	}
	ssh, err := s.sshURL()
	if err != nil {
		return err
	}
	s.limits = limit.NewGuard(limit.Config{
		User: c.RateLimitUser, Anonymous: c.RateLimitAnonymous, SignIn: c.RateLimitSignIn, Metrics: collected,
	})
	s.git = gitserver.New(gitserver.Config{
		Forge: s.forge, Repos: s.repos, Log: log, Limits: s.limits, Metrics: collected, Tracer: tracing.provider,
	})
	s.hooks, err = webhook.New(webhook.Config{
		Forge: s.forge, Guard: guard, Log: log, ExternalURL: s.external, SSHURL: ssh, Version: c.Version, Metrics: collected,
	})
	if err != nil {
		return err
	}
	if err := s.openImages(content, collected, log); err != nil {
		return err
	}
	s.packer, err = delivery.New(delivery.Config{
		Forge: s.forge, Repos: s.repos, Registry: content, Log: log, ExternalURL: s.external, Metrics: collected, Tracer: tracing.provider,
	})
	if err != nil {
		return err
	}
	s.openSSH()
	s.api, err = gitlabapi.New(gitlabapi.Config{
		Forge: s.forge, Repos: s.repos, Log: log, ExternalURL: s.external, SSHURL: ssh, KnownHosts: s.KnownHosts(),
		Revision: c.Commit, AgentVersion: c.Version, Limits: s.limits, Hooks: s.hooks,
	})
	if err != nil {
		return err
	}
	s.agents, err = agentserver.New(agentserver.Config{
		Forge: s.forge, Log: log, Version: c.Version, ForgeURLs: s.forgeURLs(), Metrics: collected,
		Tracer: tracing.provider, DisableResync: c.DisableResync, Limits: s.limits,
	})
	if err != nil {
		return err
	}
	s.rollouts, err = rollout.New(rollout.Config{Forge: s.forge, Log: log, Metrics: collected, Tracer: tracing.provider})
	if err != nil {
		return err
	}
	s.console, err = console.New(console.Config{
		Forge: s.forge, Log: log, Root: s.external.Path, Host: s.external.Host, Version: c.Version, Limits: s.limits,
	})
	return err
}

// forgeURLs are all the URLs under which a source may name this forge.
func (s *Server) forgeURLs() []string {
	urls := append([]string{s.external.String()}, s.config.URLAliases...)
	if ssh, err := s.sshURL(); err == nil && ssh != nil {
		urls = append(urls, ssh.String())
	}
	return urls
}

// URL is where clients reach the server, without a trailing slash.
func (s *Server) URL() string { return s.external.String() }

// HTTPURL is the base of the plain listener, "" without one.
func (s *Server) HTTPURL() string {
	if len(s.http) == 0 {
		return ""
	}
	return "http://" + net.JoinHostPort("localhost", strconv.Itoa(portOf(s.http[0]))) + s.external.Path
}

// CAFile is what clients need to trust the server; "" when its certificate was
// given.
func (s *Server) CAFile() string {
	if s.authority == nil {
		return ""
	}
	return s.authority.certFile()
}

// TokenFile holds the administrator's first token, until somebody removes it.
func (s *Server) TokenFile() string { return filepath.Join(s.config.DataDir, "root.token") }

// Run serves until ctx is done, then stops in this order: it accepts nothing
// new and lets requests in flight, such as pushes, finish; it drains the
// agents' connections and writes what they last said; it closes the bus and
// the store. Nothing is left running when it returns.
func (s *Server) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.Close()) }()
	stopNotice := context.AfterFunc(ctx, func() {
		s.stopping.Store(true)
		s.forge.EndWaits()
		s.log.Info("stopping")
	})
	defer stopNotice()
	s.log.InfoContext(ctx, "serving", "url", s.URL(), "listen", addresses(s.https), "http", addresses(s.http), "ssh", s.SSHURL(), "ca", s.CAFile(), "data", s.config.DataDir)
	return stage.Run(ctx,
		stage.Stage{s.forge.Run, s.repos.Maintain, s.content.Run, s.cert.Run},
		stage.Stage{s.rollouts.Run},
		stage.Stage{s.agents.Run, s.hooks.Run, s.packer.Run},
		stage.Stage{s.serve, s.serveSSH},
	)
}

// Abort makes Run, once its context is done, cut every connection instead of
// draining: the nearest to a crash that a test can have inside its process.
func (s *Server) Abort() { s.aborted.Store(true) }

func addresses(listeners []net.Listener) string {
	words := make([]string, len(listeners))
	for i, l := range listeners {
		words[i] = l.Addr().String()
	}
	return strings.Join(words, " ")
}

// serve answers on all listeners until ctx is done, then waits for requests
// in flight.
func (s *Server) serve(ctx context.Context) error {
	type accepting struct {
		server *http.Server
		serve  func(net.Listener) error
		on     []net.Listener
	}
	tlsServer := s.newHTTPServer(s)
	tlsServer.TLSConfig = s.cert.config()
	plainServer := s.newHTTPServer(s)
	scrapeServer := s.newHTTPServer(http.HandlerFunc(s.scrapeOnly))
	all := []accepting{
		{tlsServer, func(l net.Listener) error { return tlsServer.ServeTLS(l, "", "") }, s.https},
		{plainServer, plainServer.Serve, s.http},
		{scrapeServer, scrapeServer.Serve, s.scrape},
	}
	var services stage.Stage
	for _, a := range all {
		for _, l := range a.on {
			services = append(services, func(ctx context.Context) error {
				stopped := make(chan error, 1)
				go func() { stopped <- a.serve(l) }()
				select {
				case err := <-stopped:
					return fmt.Errorf("serve on %s: %w", l.Addr(), err)
				case <-ctx.Done():
				}
				err := s.drain(ctx, a.server)
				<-stopped // http.ErrServerClosed
				return err
			})
		}
	}
	return stage.Run(ctx, services)
}

// drain lets requests in flight finish, but not for ever.
func (s *Server) drain(ctx context.Context, server *http.Server) error {
	if s.aborted.Load() {
		return server.Close()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.config.ShutdownTimeout)
	defer cancel()
	err := server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.WarnContext(ctx, "requests cut off", "after", s.config.ShutdownTimeout)
		err = server.Close()
	}
	if err != nil {
		return fmt.Errorf("stop serving: %w", err)
	}
	return nil
}

func (s *Server) newHTTPServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		// A client that sends, or takes, nothing more must not hold a
		// connection for ever. Git and agents, which may take their time, put
		// limits of their own in the place of these.
		ReadTimeout:  requestTimeout,
		WriteTimeout: requestTimeout,
		ErrorLog:     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		HTTP2:        &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
}
