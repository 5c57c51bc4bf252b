// Package ociserver is the OCI registry over HTTP: /v2/ as the OCI
// distribution specification has it, and /jwt/auth, where clients get the
// tokens for it as they do from GitLab. It reads names, credentials and bodies;
// forge decides, and registry keeps the content.
//
//	images, err := ociserver.New(ociserver.Config{Forge: f, Registry: content, Key: key, URL: url, Log: log})
//	if ociserver.Matches(r) {
//		images.ServeHTTP(w, r)
//	}
package ociserver

import (
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
	"tidelock.dev/internal/registry"
)

// Config is what a Server is made of.
type Config struct {
	Forge    *forge.Forge       // required
	Registry *registry.Registry // required
	Key      *Key               // required: signs tokens
	URL      *url.URL           // required: how clients reach the forge
	Log      *slog.Logger       // required

	// Idle is how long a client may send or take nothing in the middle of a
	// request before it is cut.
	Idle time.Duration // default 1m

	// Limits says how much each caller may ask.
	Limits *limit.Guard // default: as much as they like

	Metrics prometheus.Registerer // default: none

	Now func() time.Time // default time.Now
}

// A Server answers the requests of registry clients.
type Server struct {
	forge    *forge.Forge
	registry *registry.Registry
	key      *Key
	url      *url.URL
	log      *slog.Logger
	limits   *limit.Guard
	metrics  *metrics
	idle     time.Duration
	now      func() time.Time
}

var _ http.Handler = (*Server)(nil)

// New makes a Server.
func New(c Config) (*Server, error) {
	if c.Forge == nil || c.Registry == nil || c.Key == nil || c.URL == nil || c.Log == nil {
		return nil, errors.New("ociserver: Forge, Registry, Key, URL and Log are required")
	}
	if c.Idle <= 0 {
		c.Idle = time.Minute
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Server{
		forge: c.Forge, registry: c.Registry, key: c.Key, url: c.URL, log: c.Log.With("component", "ociserver"),
		limits: c.Limits, metrics: newMetrics(c.Metrics), idle: c.Idle, now: c.Now,
	}, nil
}

const (
	base     = "/v2"
	authPath = "/jwt/auth"
	surface  = "registry"
)

// Matches reports whether a request is of a registry's client. Their paths
// begin at the root of the host, wherever else the forge may be.
func Matches(r *http.Request) bool {
	path := r.URL.EscapedPath()
	return path == base || strings.HasPrefix(path, base+"/") || path == authPath
}

// ServeHTTP answers a request for which Matches is true.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Nothing here is a page, whatever somebody uploaded.
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "private, no-cache")
	if r.URL.EscapedPath() == authPath {
		if err := s.issue(w, r); err != nil {
			s.writeError(w, r, err)
		}
		return
	}
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if err := s.serve(w, r); err != nil {
		s.writeError(w, r, err)
	}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	to, err := parseRoute(r)
	if err != nil {
		return err
	}
	by, err := s.admit(w, r)
	if err != nil {
		return s.challenged(r, to, by, err)
	}
	q := &request{Server: s, w: w, r: r, route: to, by: by}
	return s.challenged(r, to, by, q.serve())
}

// A request is one that names an image, on its way through the server.
type request struct {
	*Server
	w http.ResponseWriter
	r *http.Request
	route
	by caller

	// Set by open.
	project tidelock.Project
	image   string // below the project
}

func (q *request) serve() error {
	if q.what == aBase {
		return q.ping()
	}
	act, ok := acts[q.what][q.r.Method]
	if !ok {
		return q.notAllowed()
	}
	if err := q.open(act.verb); err != nil {
		return err
	}
	return act.do(q)
}

// An act is what a request does, and the verb that a token must carry for it.
type act struct {
	verb string
	do   func(*request) error
}

const (
	pull   = "pull"
	push   = "push"
	remove = "delete"
)

// acts are all that can be asked about an image.
var acts = map[what]map[string]act{
	aBlob: {
		http.MethodHead:   {pull, (*request).readBlob},
		http.MethodGet:    {pull, (*request).readBlob},
		http.MethodDelete: {remove, (*request).deleteBlob},
	},
	uploads: {
		http.MethodPost: {push, (*request).startUpload},
	},
	anUpload: {
		http.MethodGet:    {push, (*request).uploadStatus},
		http.MethodHead:   {push, (*request).uploadStatus},
		http.MethodPatch:  {push, (*request).appendUpload},
		http.MethodPut:    {push, (*request).finishUpload},
		http.MethodDelete: {push, (*request).cancelUpload},
	},
	aManifest: {
		http.MethodHead:   {pull, (*request).readManifest},
		http.MethodGet:    {pull, (*request).readManifest},
		http.MethodPut:    {push, (*request).pushManifest},
		http.MethodDelete: {remove, (*request).deleteManifest},
	},
	tags: {
		http.MethodGet: {pull, (*request).listTags},
	},
	referrers: {
		http.MethodGet: {pull, (*request).listReferrers},
	},
}

// rights are the actions that verbs stand for.
var rights = map[string]forge.Action{pull: forge.PullImage, push: forge.PushImage, remove: forge.DeleteImage}

// open finds the image, for somebody who may do what a verb says.
func (q *request) open(verb string) (err error) {
	if !q.by.asked(q.name, verb) {
		return &needsScope{verb}
	}
	q.project, q.image, err = q.forge.ProjectOfImage(q.r.Context(), q.name)
	if err != nil {
		return err
	}
	return q.forge.Allow(q.r.Context(), q.by.Principal, rights[verb], forge.OnProject(q.project))
}

// stored is the image's name in storage.
func (q *request) stored() registry.Name { return registry.Repo(q.project.ID, q.image) }

// ping answers by what clients find out that this is a registry, and whether
// their credential is good.
func (q *request) ping() error {
	if q.r.Method != http.MethodGet && q.r.Method != http.MethodHead {
		return q.notAllowed()
	}
	if !q.by.signedIn {
		return tidelock.Errorf(tidelock.Unauthenticated, "sign in, or ask for a token to read what is public")
	}
	writeJSON(q.w, http.StatusOK, struct{}{})
	return nil
}

func (q *request) notAllowed() error {
	for method := range acts[q.what] {
		q.w.Header().Add("Allow", method)
	}
	return &statusError{http.StatusMethodNotAllowed, registry.Unsupported, "this cannot be done by " + q.r.Method}
}
