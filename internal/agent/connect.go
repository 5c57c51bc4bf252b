package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/client-go/discovery"
	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/flux"
	"tidelock.dev/internal/tunnel"
)

const (
	reconnectFirst = time.Second // doubles
	reconnectMax   = 30 * time.Second
	refusedAgain   = 30 * time.Second // after a token was refused, and up to twice that

	dialTimeout     = 30 * time.Second
	registerTimeout = 30 * time.Second
	drainTimeout    = 2 * time.Second

	// rpcURL fills the Host header of calls inside the tunnel.
	rpcURL = "http://agent-server"
)

// errFatal wraps what no reconnect can mend.
type errFatal struct{ error }

func (e errFatal) Unwrap() error { return e.error }

// stayConnected holds a session open, one after the other, until ctx is done.
func (a *Agent) stayConnected(ctx context.Context) error {
	for failures := 0; ctx.Err() == nil; {
		registered, err := a.connect(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if fatal, ok := errors.AsType[errFatal](err); ok {
			return fatal.error
		}
		failures++
		if registered {
			failures = 1
		}
		wait := reconnectAfter(err, failures)
		switch {
		case tidelock.KindOf(err) == tidelock.Unauthenticated:
			a.log.ErrorContext(ctx, "token refused", "error", err, "again_in", wait)
		case registered:
			a.log.WarnContext(ctx, "connection lost", "error", err, "again_in", wait)
		default:
			a.log.WarnContext(ctx, "cannot connect", "error", err, "again_in", wait)
		}
		pause(ctx, wait)
	}
	return nil
}

// reconnectAfter is how long to wait after a number of failures in a row.
func reconnectAfter(err error, failures int) time.Duration {
	if tidelock.KindOf(err) == tidelock.Unauthenticated {
		return refusedAgain + rand.N(refusedAgain)
	}
	wait := min(reconnectFirst<<min(failures-1, 10), reconnectMax)
	wait = wait/2 + rand.N(wait/2+1)
	if refused, ok := errors.AsType[*tunnel.RefusedError](err); ok {
		wait = max(wait, refused.RetryAfter)
	}
	return wait
}

// connect dials, registers and serves the session until it ends. It reports
// whether the server had taken us in.
func (a *Agent) connect(ctx context.Context) (registered bool, err error) {
	defer func() { a.setSession(nil, err) }()
	session, err := a.dial(ctx)
	if err != nil {
		a.metrics.connects.WithLabelValues("failed").Inc()
		return false, err
	}
	defer session.Close("the agent is done with it")
	client := session.Client()
	conn := &connection{
		Agent:         a,
		session:       session,
		sessions:      agentrpc.NewSessionServiceClient(client, rpcURL),
		configuration: agentrpc.NewConfigurationServiceClient(client, rpcURL),
		announcements: agentrpc.NewAnnouncementServiceClient(client, rpcURL),
		observations: connect.NewClient[agentrpc.ObserveRequest, agentrpc.ObserveResponse](
			client, rpcURL+agentrpc.ObservationServiceObserveProcedure),
	}
	leading, _ := a.leading.load()
	if err := conn.register(ctx, leading); err != nil {
		a.metrics.connects.WithLabelValues("failed").Inc()
		return false, err
	}
	a.metrics.connects.WithLabelValues("ok").Inc()
	a.setSession(session, nil)
	return true, conn.serve(ctx, leading)
}

func (a *Agent) setSession(session *tunnel.Session, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.session = session
	a.connectError = ""
	if err != nil {
		a.connectError = err.Error()
	}
}

func (a *Agent) dial(ctx context.Context) (*tunnel.Session, error) {
	token, err := a.token()
	if err != nil {
		return nil, err
	}
	trust, err := a.trust()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return tunnel.Dial(ctx, tunnel.DialConfig{
		URL:    a.url,
		Header: http.Header{"Authorization": {"Bearer " + token.Reveal()}},
		TLS:    trust,
		Proxy:  a.config.Proxy,
		Log:    a.log.With("component", "tunnel"),
	})
}

func (a *Agent) token() (tidelock.Secret, error) {
	if a.config.TokenFile == "" {
		return a.config.Token, nil
	}
	text, err := os.ReadFile(a.config.TokenFile)
	if err != nil {
		return tidelock.Secret{}, fmt.Errorf("read token: %w", err)
	}
	token := strings.TrimSpace(string(text))
	if token == "" {
		return tidelock.Secret{}, fmt.Errorf("read token: %s is empty", a.config.TokenFile)
	}
	return tidelock.NewSecret(token), nil
}

// trust is the system's roots and the ones in CAFile.
func (a *Agent) trust() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if a.config.CAFile == "" {
		return config, nil
	}
	pem, err := os.ReadFile(a.config.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read CA: %w", err)
	}
	if config.RootCAs, err = x509.SystemCertPool(); err != nil {
		config.RootCAs = x509.NewCertPool()
	}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read CA: %s has no certificate in it", a.config.CAFile)
	}
	return config, nil
}

// A connection is one session and the services called on it.
type connection struct {
	*Agent
	session       *tunnel.Session
	sessions      agentrpc.SessionServiceClient
	configuration agentrpc.ConfigurationServiceClient
	announcements agentrpc.AnnouncementServiceClient

	// Not the generated client: it does not let us hear that the server ended
	// the stream before there is something to send.
	observations *connect.Client[agentrpc.ObserveRequest, agentrpc.ObserveResponse]
}

// register introduces this replica, and learns who it is.
func (c *connection) register(ctx context.Context, leading bool) error {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	answer, err := c.sessions.Register(ctx, &agentrpc.RegisterRequest{
		Instance:          c.instance,
		Version:           c.config.Version,
		Commit:            c.config.Commit,
		PodNamespace:      c.config.PodNamespace,
		PodName:           c.config.PodName,
		KubernetesVersion: c.clusterVersion(ctx),
		Leader:            leading,
	})
	if err != nil {
		return fmt.Errorf("register: %w", kindly(err))
	}
	urls, err := tidelock.ParseURLSet(answer.ForgeUrls...)
	if err != nil {
		return fmt.Errorf("register: the server's URLs: %w", err)
	}
	id := identity{agent: tidelock.AgentID(answer.AgentId), name: answer.AgentName}
	if len(answer.ForgeUrls) > 0 {
		id.forge = answer.ForgeUrls[0]
	}
	if err := c.identify(id, urls); err != nil {
		return errFatal{err}
	}
	c.log.InfoContext(ctx, "registered", "agent", id.name, "agent_id", id.agent,
		"project", answer.ProjectPath, "server_version", answer.ServerVersion, "leader", leading)
	return nil
}

// serve runs everything that lives on the session, until it ends or ctx does.
func (c *connection) serve(ctx context.Context, leading bool) error {
	own, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var group, requests sync.WaitGroup
	requests.Go(func() {
		if err := c.session.ServeHTTP1(c.config.Handler); err != nil {
			stop(err)
		}
	})
	group.Go(func() { c.repeat(own, "configuration", c.watchConfiguration) })
	group.Go(func() { stop(c.lead(own, leading)) })

	var err error
	select {
	case <-own.Done():
		err = context.Cause(own)
	case <-c.session.Done():
		err = c.session.Err()
	}
	stop(err)
	group.Wait()
	if ctx.Err() != nil {
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		c.session.Drain(drain, "the agent is stopping")
		cancel()
	}
	c.session.Close("the agent is done with it")
	requests.Wait()
	return err
}

// lead announces and observes while this replica is the leader, and tells the
// server of every change of that.
func (c *connection) lead(ctx context.Context, told bool) error {
	for ctx.Err() == nil {
		leading, changed := c.leading.load()
		if leading != told {
			if err := c.register(ctx, leading); err != nil {
				return err
			}
			told = leading
		}
		term, end := context.WithCancel(ctx)
		var work sync.WaitGroup
		if leading {
			work.Go(func() { c.repeat(term, "announcement", c.announce) })
			work.Go(func() { c.repeat(term, "observation", c.observe) })
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
		end()
		work.Wait()
	}
	return ctx.Err()
}

// repeat keeps a stream open, with a pause after each failure.
func (c *connection) repeat(ctx context.Context, name string, stream func(context.Context) error) {
	for failures := 1; ctx.Err() == nil; failures++ {
		began := time.Now()
		err := stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > reconnectMax {
			failures = 1
		}
		if errors.Is(err, flux.ErrFeedEnded) {
			continue // the term is over, or another one has begun
		}
		wait := reconnectAfter(nil, failures)
		if connect.CodeOf(err) == connect.CodeUnimplemented {
			wait = 5 * time.Minute // an older server
		}
		c.log.WarnContext(ctx, "stream ended", "stream", name, "error", kindly(err), "again_in", wait)
		pause(ctx, wait)
	}
}

// kindly gives an RPC's error the kind that its code stands for.
func kindly(err error) error {
	rpc, ok := errors.AsType[*connect.Error](err)
	if !ok {
		return err
	}
	kind := tidelock.Internal
	switch rpc.Code() {
	case connect.CodeUnauthenticated:
		kind = tidelock.Unauthenticated
	case connect.CodePermissionDenied:
		kind = tidelock.Denied
	case connect.CodeNotFound:
		kind = tidelock.NotFound
	case connect.CodeUnavailable:
		kind = tidelock.Unavailable
	case connect.CodeInvalidArgument:
		kind = tidelock.Invalid
	default:
		return err
	}
	return tidelock.Errorf(kind, "%s", rpc.Message())
}

// serverVersion asks with a context, which the discovery client does not.
func serverVersion(ctx context.Context, client *discovery.DiscoveryClient) (string, error) {
	body, err := client.RESTClient().Get().AbsPath("/version").Do(ctx).Raw()
	if err != nil {
		return "", err
	}
	var info version.Info
	if err := json.Unmarshal(body, &info); err != nil {
		return "", fmt.Errorf("read the API server's version: %w", err)
	}
	return info.GitVersion, nil
}

// pause waits for d or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
