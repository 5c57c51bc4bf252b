package gitlabapi

import (
	"net/http"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
)

// surface names this API to limits.
const surface = "api"

// maxBody is how much of a request's body is read, unless its route is
// listed in large.
const maxBody = 1 << 20

// A largeRoute is one whose requests may be large, or cost much to answer. Of
// these one caller may have only a few running.
type largeRoute struct {
	// maxBody counts for callers that may do the action; others have the limit
	// of every route, so that strangers cannot make us read so much. 0: that
	// of every route.
	maxBody int64
	action  forge.Action
}

// large are the large routes by method and pattern. Of others, a request may
// turn out to be large when it is known what it asks for: see hold.
var large = map[string]largeRoute{
	post + " /projects/:id/repository/commits":          {maxBody: 64 << 20, action: forge.WriteCode},
	post + " /projects/:id/repository/files/:file_path": {maxBody: 64 << 20, action: forge.WriteCode},
	put + " /projects/:id/repository/files/:file_path":  {maxBody: 64 << 20, action: forge.WriteCode},
	get + " /projects/:id/repository/archive":           {},
	get + " /projects/:id/repository/archive.tar.gz":    {},
	get + " /projects/:id/repository/archive.tar":       {},
	get + " /projects/:id/repository/archive.zip":       {},
	get + " /projects/:id/repository/compare":           {},
	get + " /projects/:id/repository/commits/:sha/diff": {},

	del + " /projects/:id/registry/repositories/:repository_id/tags": {},
	post + " /projects/:id/registry/retention":                       {},
	post + " /projects/:id/registry/collect":                         {},
	post + " /registry/collect":                                      {},
}

// admit counts the request, and tells the client how it stands.
func (a *API) admit(w http.ResponseWriter, r *http.Request, by forge.Principal) error {
	reading, err := a.limits.Admit(surface, by.Allowance(r.RemoteAddr))
	reading.Tell(w.Header())
	return err
}

// enter bounds the body of a request to a route and, where its requests are
// large, how many of them the caller has running, until the request leaves.
func (a *API) enter(w http.ResponseWriter, in *request, to route) error {
	most := int64(maxBody)
	if l, ok := large[to.method+" "+to.pattern]; ok {
		if err := a.hold(in); err != nil {
			return err
		}
		if l.maxBody > 0 && in.by.User != nil {
			if _, err := a.project(in, l.action); err == nil {
				most = l.maxBody
			}
		}
	}
	if in.Body != nil {
		in.Body = http.MaxBytesReader(w, in.Body, most)
	}
	return nil
}

// hold makes a request one of the large ones that its caller has running.
func (a *API) hold(in *request) error {
	release, err := a.limits.Hold(surface, in.by.Allowance(in.RemoteAddr))
	if err == nil {
		in.release = release
	}
	return err
}

// leave ends a request.
func (r *request) leave() {
	if r.release != nil {
		r.release()
	}
}

// smallFile is the size, in bytes, up to which the reading of a file is not a
// large request.
const smallFile = 1 << 20

// anyFile reads a file of up to maxFile bytes, by a function that refuses with
// TooLarge what is larger than it is told.
func anyFile[T any](a *API, in *request, read func(most int64) (T, error)) (T, error) {
	file, err := read(smallFile)
	if tidelock.KindOf(err) != tidelock.TooLarge {
		return file, err
	}
	if err := a.hold(in); err != nil {
		return file, err
	}
	return read(maxFile)
}

// errTooMany tells a client that it asked too much, and how long to wait.
func errTooMany(w http.ResponseWriter, e *limit.Exceeded) *statusError {
	e.Tell(w.Header())
	return &statusError{status: http.StatusTooManyRequests, body: errorBody{
		Message: map[string]string{"error": e.Error()},
	}}
}
