package gitserver

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A service is one of the two things that git does over the network.
type service string

const (
	uploadPack  service = "git-upload-pack"  // fetch
	receivePack service = "git-receive-pack" // push
)

func (s service) action() forge.Action {
	if s == receivePack {
		return forge.PushCode
	}
	return forge.PullCode
}

func (s service) requestType() string       { return "application/x-" + string(s) + "-request" }
func (s service) resultType() string        { return "application/x-" + string(s) + "-result" }
func (s service) advertisementType() string { return "application/x-" + string(s) + "-advertisement" }

const infoRefs = "/info/refs"

// Matches reports whether a request is git's. It goes by the path as it was
// sent: cleaning it, or decoding it first, would let it mean two things.
func Matches(r *http.Request) bool {
	path := r.URL.EscapedPath()
	if strings.Contains(path, "/-/") {
		return false
	}
	for _, end := range []string{infoRefs, "/" + string(uploadPack), "/" + string(receivePack)} {
		if strings.HasSuffix(path, end) {
			return true
		}
	}
	return false
}

// A route is what a request asks for.
type route struct {
	project   string // its path, without .git
	service   service
	advertise bool // which refs there are, before anything is moved
}

// parseRoute reads a request line and nothing else. The service, and so the
// right that is needed, comes from one place in it; a request that names
// another service elsewhere is refused.
func parseRoute(r *http.Request) (route, error) {
	var to route
	path := r.URL.EscapedPath()
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return to, tidelock.Errorf(tidelock.Invalid, "the query of the request is malformed")
	}
	named := query["service"]

	if before, ok := strings.CutSuffix(path, infoRefs); ok {
		path, to.advertise = before, true
		switch {
		case len(named) == 0:
			return to, &statusError{http.StatusForbidden, "git's dumb protocol is not supported; use git 1.6.6 or newer"}
		case len(named) > 1:
			return to, tidelock.Errorf(tidelock.Invalid, "the request names more than one service")
		}
		to.service = service(named[0])
		if to.service != uploadPack && to.service != receivePack {
			return to, &statusError{http.StatusForbidden, "this service is not offered"}
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			return to, &statusError{http.StatusMethodNotAllowed, "use GET"}
		}
	} else {
		slash := strings.LastIndexByte(path, '/')
		to.service = service(path[slash+1:])
		path = path[:slash]
		if r.Method != http.MethodPost {
			return to, &statusError{http.StatusMethodNotAllowed, "use POST"}
		}
		if slices.ContainsFunc(named, func(name string) bool { return name != string(to.service) }) {
			return to, tidelock.Errorf(tidelock.Invalid, "the request names two services")
		}
		if got := r.Header.Get("Content-Type"); got != to.service.requestType() {
			return to, &statusError{http.StatusUnsupportedMediaType, "the content type must be " + to.service.requestType()}
		}
	}
	to.project = projectPath(path)
	return to, nil
}

// projectPath reads the path of a project out of that of a request. For what
// cannot be one it is empty, which no project is called, so that the answer
// is that of any project that does not exist.
func projectPath(escaped string) string {
	path := strings.TrimSuffix(strings.TrimPrefix(escaped, "/"), ".git")
	segments := strings.Split(path, "/")
	if len(segments) < 2 || len(path) > 4096 {
		return ""
	}
	// No character of a path needs to be escaped, so none may be.
	for _, segment := range segments {
		if !isSegment(segment) {
			return ""
		}
	}
	return path
}

func isSegment(s string) bool {
	if s == "" || s == "." || s[0] == '-' || strings.Contains(s, "..") {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '_' && c != '-' && c != '.' {
			return false
		}
	}
	return true
}
