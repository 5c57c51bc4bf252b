// Package agent is the cluster's end of the connection to a forge. It dials
// out, and nothing dials in: it tells the agent server which Flux sources the
// cluster has, takes announcements of pushes and hands them to internal/flux,
// which does all work in the cluster. What Flux and internal/health see there
// it tells the server, too.
//
// Every replica holds a tunnel; one of them, the leader, watches Flux and
// opens the streams of announcements and observations. Losing the server never
// stops what was announced from being brought about.
//
//	a, err := agent.New(agent.Config{ServerURL: "https://forge.example", Token: token, …})
//	err = a.Run(ctx)
package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
	"tidelock.dev"
	"tidelock.dev/internal/flux"
	"tidelock.dev/internal/health"
	"tidelock.dev/internal/stage"
	"tidelock.dev/internal/tunnel"
)

// tunnelPath is where a forge takes agents, below its external URL.
const tunnelPath = "/-/kubernetes-agent/"

// Config is what an Agent is made of.
type Config struct {
	ServerURL string          // required; the forge's URL, or that of its agent endpoint
	Token     tidelock.Secret // required unless TokenFile is set
	TokenFile string          // read at every connect, so that a new token needs no restart
	CAFile    string          // PEM, trusted beside the system's roots; read at every connect

	// Proxy chooses the HTTP proxy of the tunnel; nothing else uses one.
	Proxy func(*http.Request) (*url.URL, error) // default http.ProxyFromEnvironment

	REST           *rest.Config // required; the cluster and the agent's credentials in it
	LeaseNamespace string       // where the leader's Lease is; default PodNamespace
	PodName        string       // default the host's name
	PodNamespace   string

	Version string
	Commit  string

	ListenAddr string         // of /healthz, /readyz and /metrics; "" for none
	Log        *slog.Logger   // required
	Level      *slog.LevelVar // of Log, set by the agent's configuration; default none

	// Handler answers what the server asks through the tunnel.
	Handler http.Handler // default none: everything is 404
}

// Validate reports all problems at once.
func (c Config) Validate() error {
	var problems []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			problems = append(problems, tidelock.Errorf(tidelock.Invalid, format, args...))
		}
	}
	_, err := tunnelURL(c.ServerURL)
	require(err == nil, "--server-url %q: %v", c.ServerURL, err)
	require(c.Token.Reveal() != "" || c.TokenFile != "", "--token or --token-file is required")
	require(c.REST != nil, "a cluster is required: run inside one, or give --kubeconfig")
	require(c.LeaseNamespace != "" || c.PodNamespace != "", "--lease-namespace is required outside a cluster")
	return errors.Join(problems...)
}

// tunnelURL is the WebSocket address for a forge's URL.
func tunnelURL(text string) (string, error) {
	if text == "" {
		return "", errors.New("is required")
	}
	u, err := url.Parse(text)
	if err != nil {
		return "", errors.New("is not a URL")
	}
	switch u.Scheme {
	case "https", "wss":
		u.Scheme = "wss"
	case "http", "ws":
		u.Scheme = "ws"
	default:
		return "", errors.New("must begin with https:// or wss://")
	}
	switch {
	case u.Host == "":
		return "", errors.New("has no host")
	case u.User != nil:
		return "", errors.New("must not hold credentials")
	case u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("must not have a query or fragment")
	}
	path := strings.TrimSuffix(u.Path, "/") + "/"
	if !strings.HasSuffix(path, tunnelPath) {
		path = strings.TrimSuffix(path, "/") + tunnelPath
	}
	u.Path = path
	return u.String(), nil
}

// An Agent is one replica.
type Agent struct {
	config    Config
	log       *slog.Logger
	url       string
	instance  string // random, one per process
	baseLevel slog.Level
	listener  net.Listener // nil for none
	registry  *prometheus.Registry
	metrics   *metrics
	discovery *discovery.DiscoveryClient

	identified chan struct{} // closed once identity and controller are set
	leading    *watched[bool]

	mu                sync.Mutex
	identity          identity
	controller        *flux.Controller
	health            *health.Watcher // of what the controller follows; set with it
	session           *tunnel.Session // nil while not connected
	connectError      string          // why not, for people
	kubernetesVersion string
}

// An identity is who the server says we are.
type identity struct {
	agent tidelock.AgentID
	name  string
	forge string // its first URL
}

// New opens the listener and makes an Agent that does nothing before Run.
func New(config Config) (*Agent, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config.LeaseNamespace = cmp.Or(config.LeaseNamespace, config.PodNamespace)
	if config.PodName == "" {
		config.PodName, _ = os.Hostname()
	}
	if config.Proxy == nil {
		config.Proxy = http.ProxyFromEnvironment
	}
	if config.Handler == nil {
		config.Handler = http.NotFoundHandler()
	}
	config.REST = withoutProxy(config.REST)
	u, err := tunnelURL(config.ServerURL)
	if err != nil {
		return nil, err
	}
	discovery, err := discovery.NewDiscoveryClientForConfig(config.REST)
	if err != nil {
		return nil, fmt.Errorf("make a Kubernetes client: %w", err)
	}
	a := &Agent{
		config:       config,
		log:          config.Log,
		url:          u,
		instance:     rand.Text(),
		registry:     prometheus.NewRegistry(),
		discovery:    discovery,
		identified:   make(chan struct{}),
		leading:      newWatched(false),
		connectError: "not connected yet",
	}
	if config.Level != nil {
		a.baseLevel = config.Level.Level()
	}
	a.metrics = newMetrics(a)
	if config.ListenAddr != "" {
		if a.listener, err = net.Listen("tcp", config.ListenAddr); err != nil {
			return nil, fmt.Errorf("listen: %w", err)
		}
	}
	return a, nil
}

// withoutProxy keeps the environment's proxy away from the API server.
func withoutProxy(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	if config.Proxy == nil {
		config.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	}
	return config
}

// Addr is where /healthz, /readyz and /metrics are; "" for nowhere.
func (a *Agent) Addr() string {
	if a.listener == nil {
		return ""
	}
	return a.listener.Addr().String()
}

// Run connects and stays connected until ctx is done, and then winds up
// within a few seconds. It returns early only if going on makes no sense.
func (a *Agent) Run(ctx context.Context) error {
	a.log.InfoContext(ctx, "agent started", "server", a.url, "instance", a.instance, "version", a.config.Version)
	err := stage.Run(ctx,
		stage.Stage{a.serveStatus},
		stage.Stage{a.stayConnected},
		stage.Stage{a.elect},
	)
	a.log.InfoContext(context.WithoutCancel(ctx), "agent stopped")
	return err
}

// identify notes who we are, and makes the Flux controller the first time.
func (a *Agent) identify(id identity, urls tidelock.URLSet) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.controller != nil && a.identity.agent != id.agent {
		return fmt.Errorf("the token is now one of agent %d, and this process began as agent %d", id.agent, a.identity.agent)
	}
	if a.controller == nil {
		controller, err := flux.New(flux.Config{
			REST:    a.config.REST,
			Agent:   id.agent,
			Forge:   id.forge,
			Log:     a.log.With("component", "flux"),
			Metrics: a.registry,
		})
		if err != nil {
			return err
		}
		if a.health, err = a.watchHealth(controller); err != nil {
			return err
		}
		a.identity, a.controller = id, controller
		close(a.identified)
	}
	a.controller.SetForge(func(kind tidelock.SourceKind, url string) bool { return isOurs(urls, kind, url) })
	return nil
}

// isOurs reports whether a source's URL is one of the forge's, of its
// repositories or of its registry.
func isOurs(urls tidelock.URLSet, kind tidelock.SourceKind, url string) (ours bool) {
	if kind.OfImage() {
		_, ours = urls.ImagePath(url)
	} else {
		_, ours = urls.ProjectPath(url)
	}
	return ours
}

// flux returns the controller; it is nil before the first registration.
func (a *Agent) flux() *flux.Controller {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.controller
}

// clusterVersion returns the API server's version, empty if it does not say.
func (a *Agent) clusterVersion(ctx context.Context) string {
	a.mu.Lock()
	version := a.kubernetesVersion
	a.mu.Unlock()
	if version != "" {
		return version
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	info, err := serverVersion(ctx, a.discovery)
	if err != nil {
		a.log.DebugContext(ctx, "the API server did not tell its version", "error", err)
		return ""
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kubernetesVersion = info
	return info
}
