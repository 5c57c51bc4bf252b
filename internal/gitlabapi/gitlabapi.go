// Package gitlabapi answers /api/v4: the part of GitLab's REST API that
// unmodified GitLab clients need, and a few routes of our own under the same
// envelope. It owns routes, parameters, JSON shapes, pagination and error
// bodies; GitLab's names live here and nowhere deeper.
//
// It decides nothing: a handler reads the request, calls one method of forge
// named after the act, and writes what came back. docs/gitlab-compat.md says
// what is supported and where we differ on purpose; a test holds it and the
// route table together.
package gitlabapi

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/limit"
)

// Prefix is where the handler expects to be served.
const Prefix = "/api/v4"

// Config is what the API is made of.
type Config struct {
	Forge       *forge.Forge  // required
	Repos       *gitrepo.Disk // required
	Log         *slog.Logger  // required
	ExternalURL *url.URL      // required: where people and clients reach the server

	// SSHURL is where git over SSH is served, such as ssh://git@host:2222;
	// nil when it is not.
	SSHURL *url.URL

	// KnownHosts is the line by which SSH clients know the server.
	KnownHosts string // "" when git over SSH is not served here

	// Version is what GET /version says. Clients read it as GitLab's version,
	// to know what they may ask for, so it is not Tidelock's own.
	Version  string // default "18.5.0"
	Revision string // default "tidelock"

	// AgentVersion is what GET /metadata says of the agent server.
	AgentVersion string // default Version

	// Hooks calls hooks while somebody waits.
	Hooks HookCaller // default: they can be neither tested nor called again

	// Limits says how much each caller may ask.
	Limits *limit.Guard // default: as much as they like

	// Now is the clock.
	Now func() time.Time // default time.Now
}

// An API serves /api/v4. It is safe for concurrent use.
type API struct {
	forge  *forge.Forge
	repos  *gitrepo.Disk
	limits *limit.Guard
	hooks  HookCaller
	log    *slog.Logger
	now    func() time.Time
	url    url.URL // without a trailing slash
	ssh    *url.URL
	meta   metadata
	routes *node
}

// New makes the handler of everything below Prefix.
func New(c Config) (*API, error) {
	if c.Forge == nil || c.Repos == nil || c.Log == nil || c.ExternalURL == nil {
		return nil, errors.New("gitlabapi: Forge, Repos, Log and ExternalURL are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Hooks == nil {
		c.Hooks = noHooks{}
	}
	a := &API{
		forge: c.Forge, repos: c.Repos, hooks: c.Hooks, limits: c.Limits, now: c.Now, ssh: c.SSHURL,
		log: c.Log.With("component", "gitlabapi"),
		url: *c.ExternalURL,
	}
	a.url.Path, a.url.RawPath = strings.TrimRight(a.url.Path, "/"), ""
	a.meta = newMetadata(a.url, cmp.Or(c.Version, "18.5.0"), cmp.Or(c.Revision, "tidelock"), c.AgentVersion)
	if c.SSHURL != nil && c.KnownHosts != "" {
		a.meta.SSH = &sshServer{URL: c.SSHURL.String(), KnownHosts: c.KnownHosts}
	}
	a.routes = newTree(a.table())
	return a, nil
}

// ServeHTTP routes on the escaped path, so that "group%2Fproject" stays one
// segment whatever an outer mux has done to the decoded one. It never
// redirects.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := w.Header().Get("X-Request-Id")
	if id == "" {
		id = rand.Text()
		w.Header().Set("X-Request-Id", id)
	}
	// Clients cache by RFC 7234; a list must never be served stale after a
	// change under another URL.
	w.Header().Set("Cache-Control", "max-age=0, private, must-revalidate")
	w.Header().Set("X-Content-Type-Options", "nosniff")

	out := &tracked{ResponseWriter: w}
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			a.log.ErrorContext(r.Context(), "handler panicked",
				"request", id, "method", r.Method, "panic", panicText(p), "stack", string(debug.Stack()))
			if out.wrote {
				panic(http.ErrAbortHandler)
			}
			writeJSON(out, http.StatusInternalServerError, errorBody{Message: "500 Internal Server Error"})
		}
	}()
	if err := a.serve(out, r); err != nil {
		a.writeError(out, r, err)
	}
}

func (a *API) serve(w http.ResponseWriter, r *http.Request) error {
	route, args, err := a.routes.find(r.Method, strings.TrimPrefix(r.URL.EscapedPath(), Prefix))
	if err != nil {
		return err
	}
	by, err := a.authenticate(r, route)
	if err != nil {
		return err
	}
	if err := a.admit(w, r, by); err != nil {
		return err
	}
	in := &request{Request: r, by: by.Via(r.RemoteAddr), args: args}
	defer in.leave()
	if err := a.enter(w, in, route); err != nil {
		return err
	}
	if err := in.read(); err != nil {
		return err
	}
	if r.Header.Get("Sudo") != "" || in.has("sudo") {
		return errSudo // done as the caller, it would be another act than was meant
	}
	return route.handle(w, in)
}

// panicText is what may be logged of a panic: the runtime's own words, but of
// other values only the type, because they could hold what a client sent.
func panicText(p any) string {
	if e, ok := p.(runtime.Error); ok {
		return e.Error()
	}
	return fmt.Sprintf("%T", p)
}

// tracked remembers whether an answer was begun.
type tracked struct {
	http.ResponseWriter
	wrote bool
}

func (t *tracked) WriteHeader(status int) {
	t.wrote = true
	t.ResponseWriter.WriteHeader(status)
}

func (t *tracked) Write(p []byte) (int, error) {
	t.wrote = true
	return t.ResponseWriter.Write(p)
}

func (t *tracked) Unwrap() http.ResponseWriter { return t.ResponseWriter }
