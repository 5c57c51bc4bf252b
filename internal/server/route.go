package server

import (
	"net/http"
	"net/url"
	"path"
	"strings"

	"tidelock.dev/internal/agentserver"
	"tidelock.dev/internal/gitlabapi"
	"tidelock.dev/internal/gitserver"
	"tidelock.dev/internal/ociserver"
)

// maxURL has room for the longest path of a file, escaped.
const maxURL = 16 << 10

// ServeHTTP answers everything that arrives on the main listeners.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r, ok := s.belowRoot(s.fromClient(r))
	if !ok {
		s.observed(w, r, "none", http.HandlerFunc(s.outsideRoot))
		return
	}
	surface, handler := s.route(r)
	if len(r.URL.Path)+len(r.URL.RawPath)+len(r.URL.RawQuery) > maxURL {
		handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "the address is too long", http.StatusRequestURITooLong)
		})
	}
	s.observed(w, r, surface, handler)
}

// route picks the surface by the path as the client escaped it; paths are
// never cleaned or redirected here, because git and the API take them
// literally.
func (s *Server) route(r *http.Request) (surface string, handler http.Handler) {
	switch path := r.URL.EscapedPath(); {
	case path == "/-/healthz":
		return "health", http.HandlerFunc(s.health)
	case path == "/-/readyz":
		return "health", http.HandlerFunc(s.ready)
	case path == "/-/metrics":
		return "metrics", http.HandlerFunc(s.metricsForTheTrusted)
	case path == gitlabapi.Prefix || strings.HasPrefix(path, gitlabapi.Prefix+"/"):
		return "api", s.api
	case strings.HasPrefix(path, agentserver.Path):
		return "agent", s.agents
	case ociserver.Matches(r):
		return "registry", s.images
	case gitserver.Matches(r):
		return "git", s.git
	}
	if unclean(r.URL.Path) && r.Method != http.MethodGet && r.Method != http.MethodHead {
		return "none", http.NotFoundHandler() // the console's mux would redirect to what may be the API
	}
	return "console", s.console
}

// unclean reports whether a mux would lead a path elsewhere.
func unclean(p string) bool {
	cleaned := path.Clean(p)
	return cleaned != p && cleaned+"/" != p
}

// belowRoot takes the path of the external URL off the request's. The paths
// for probes are found without it too, and those of registry clients only
// without it: to them an image's name follows the host.
func (s *Server) belowRoot(r *http.Request) (*http.Request, bool) {
	root := s.external.Path
	if root == "" {
		return r, true
	}
	switch r.URL.Path {
	case "/-/healthz", "/-/readyz", "/-/metrics":
		return r, true
	}
	if ociserver.Matches(r) {
		return r, true
	}
	path, ok := strings.CutPrefix(r.URL.Path, root)
	if !ok || !strings.HasPrefix(path, "/") {
		return r, false
	}
	raw := strings.TrimPrefix(r.URL.RawPath, root)
	if r.URL.RawPath != "" && raw == r.URL.RawPath {
		return r, false // the root itself was escaped oddly
	}
	below := new(http.Request)
	*below = *r
	below.URL = new(url.URL)
	*below.URL = *r.URL
	below.URL.Path, below.URL.RawPath = path, raw
	return below, true
}

func (s *Server) outsideRoot(w http.ResponseWriter, r *http.Request) {
	if path := r.URL.Path; r.Method == http.MethodGet && (path == "/" || path == s.external.Path) {
		http.Redirect(w, r, s.external.Path+"/", http.StatusFound)
		return
	}
	http.NotFound(w, r)
}

// scrapeOnly is what the metrics listener serves.
func (s *Server) scrapeOnly(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/-/metrics", "/metrics":
		s.metrics.ServeHTTP(w, r)
	case "/-/healthz":
		s.health(w, r)
	case "/-/readyz":
		s.ready(w, r)
	default:
		http.NotFound(w, r)
	}
}
