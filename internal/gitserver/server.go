// Package gitserver is git over HTTP and SSH: it reads the credential, asks
// forge who may do what, parses the commands of a push and has forge decide
// each ref before git runs, streams packs to and from gitrepo, and tells forge
// what a push did before the client hears "ok".
//
// It decides nothing itself, and runs no git. Protocol versions 0 to 2 are
// served; the dumb protocol is refused.
//
//	git := gitserver.New(gitserver.Config{Forge: f, Repos: disk, Log: log})
//	if gitserver.Matches(r) {
//		git.ServeHTTP(w, r)
//	}
package gitserver

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/limit"
)

// Config is what a Server is made of.
type Config struct {
	Forge *forge.Forge  // required
	Repos *gitrepo.Disk // required
	Log   *slog.Logger  // required

	// Idle is how long a client may send or take nothing in the middle of a
	// request before it is cut.
	Idle time.Duration // default 1m

	// Longest bounds one fetch or push from its beginning to its end.
	Longest time.Duration // default 1h

	// Limits says how much each caller may ask.
	Limits *limit.Guard // default: as much as they like

	Metrics prometheus.Registerer // default: not registered anywhere
	Tracer  trace.TracerProvider  // default: nothing is traced
}

// A Server answers git's requests over HTTP.
type Server struct {
	forge   *forge.Forge
	repos   *gitrepo.Disk
	limits  *limit.Guard
	turns   *turns
	log     *slog.Logger
	idle    time.Duration
	longest time.Duration
	metrics *metrics
	tracer  trace.Tracer

	registerer prometheus.Registerer
}

var _ http.Handler = (*Server)(nil)

// New makes a Server. It panics when a required part is missing.
func New(c Config) *Server {
	if c.Forge == nil || c.Repos == nil || c.Log == nil {
		panic("gitserver: Forge, Repos and Log are required")
	}
	if c.Tracer == nil {
		c.Tracer = noop.NewTracerProvider()
	}
	s := &Server{
		forge:   c.Forge,
		repos:   c.Repos,
		limits:  c.Limits,
		turns:   newTurns(c.Repos.MaxPacks()),
		log:     c.Log.With("component", "gitserver"),
		idle:    c.Idle,
		longest: c.Longest,
		metrics: newMetrics(c.Metrics),
		tracer:  c.Tracer.Tracer("tidelock.dev/internal/gitserver"),

		registerer: c.Metrics,
	}
	if s.idle <= 0 {
		s.idle = time.Minute
	}
	if s.longest <= 0 {
		s.longest = time.Hour
	}
	return s
}

// ServeHTTP answers a request for which Matches is true.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := s.serve(w, r); err != nil {
		s.writeError(w, r, err)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	route, err := parseRoute(r)
	if err != nil {
		return err
	}
	principal, err := s.admit(w, r)
	if err != nil {
		return err
	}
	principal = principal.Via(r.RemoteAddr)
	project, err := s.forge.ProjectAt(r.Context(), principal, route.project, route.service.action())
	if err != nil {
		return hideFrom(principal, err)
	}
	release, err := s.turns.take(r.Context(), principal.Allowance(r.RemoteAddr))
	if err != nil {
		return err
	}
	defer release()
	// Nothing about a repository may be kept by a cache on the way.
	w.Header().Set("Cache-Control", "no-cache, max-age=0, must-revalidate")
	w.Header().Set("Expires", "Fri, 01 Jan 1980 00:00:00 GMT")
	w.Header().Set("Pragma", "no-cache")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	switch {
	case route.advertise && route.service == uploadPack:
		return s.advertiseUpload(w, r, project)
	case route.advertise:
		return s.advertiseReceive(w, r, project)
	case route.service == uploadPack:
		return s.upload(w, r, project)
	default:
		return s.receiveHTTP(w, r, principal, project)
	}
}

func (s *Server) receiveHTTP(w http.ResponseWriter, r *http.Request, principal forge.Principal, project tidelock.Project) error {
	x := s.exchange(w, r, receivePack.resultType())
	body, err := x.request(r, s.maxPush())
	if err != nil {
		return err
	}
	return s.receive(r.Context(), x, body, principal, project)
}

// hideFrom makes what does not exist, or may not be seen, look to an
// anonymous client like everything else that needs a credential.
func hideFrom(p forge.Principal, err error) error {
	if p.Anonymous() && (tidelock.KindOf(err) == tidelock.NotFound || tidelock.KindOf(err) == tidelock.Denied) {
		return tidelock.Errorf(tidelock.Unauthenticated, "sign in with a user name and an access token")
	}
	return err
}

// A statusError is an error of the HTTP request itself.
type statusError struct {
	code    int
	message string
}

func (e *statusError) Error() string { return e.message }

// writeError answers a request that failed before anything was answered. Git
// shows the text to its user.
func (s *Server) writeError(w http.ResponseWriter, r *http.Request, err error) {
	code, message := http.StatusInternalServerError, err.Error()
	if e, ok := errors.AsType[*statusError](err); ok {
		code = e.code
	}
	if e, ok := errors.AsType[*tidelock.Error](err); ok {
		message = e.Error() // without what it is wrapped in, or joined with
	}
	switch tidelock.KindOf(err) {
	case tidelock.Invalid:
		code = http.StatusBadRequest
	case tidelock.Unauthenticated:
		code = http.StatusUnauthorized
		w.Header().Set("WWW-Authenticate", `Basic realm="Tidelock", charset="UTF-8"`)
	case tidelock.Denied:
		code = http.StatusForbidden
	case tidelock.NotFound:
		code = http.StatusNotFound
		message = "there is no such project, or you may not see it"
	case tidelock.Conflict:
		code = http.StatusConflict
	case tidelock.TooLarge:
		code = http.StatusRequestEntityTooLarge
	case tidelock.Unavailable:
		code = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "5")
	}
	if e, ok := errors.AsType[*limit.Exceeded](err); ok {
		code, message = http.StatusTooManyRequests, tooMany(e)
		e.Tell(w.Header())
	}
	if code == http.StatusInternalServerError {
		if r.Context().Err() != nil {
			return // nobody is there to be told
		}
		id := cmp.Or(w.Header().Get("X-Request-Id"), rand.Text())
		s.log.ErrorContext(r.Context(), "request failed", "request", id, "method", r.Method, "path", r.URL.Path, "error", err)
		message = fmt.Sprintf("internal error; tell your administrator the request %s", id)
	}
	s.metrics.refused.WithLabelValues(http.StatusText(code)).Inc()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, message+"\n") // a client that is gone misses nothing
}
