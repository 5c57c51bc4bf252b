package gitlabapi

import (
	"net/http"

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

// large are the large routes by method and pattern.
var large = map[string]largeRoute{
	post + " /projects/:id/repository/commits":             {maxBody: 64 << 20, action: forge.WriteCode},
	post + " /projects/:id/repository/files/:file_path":    {maxBody: 64 << 20, action: forge.WriteCode},
	put + " /projects/:id/repository/files/:file_path":     {maxBody: 64 << 20, action: forge.WriteCode},
	get + " /projects/:id/repository/archive":              {},
	get + " /projects/:id/repository/archive.tar.gz":       {},
	get + " /projects/:id/repository/archive.tar":          {},
	get + " /projects/:id/repository/archive.zip":          {},
	get + " /projects/:id/repository/compare":              {},
	get + " /projects/:id/repository/commits/:sha/diff":    {},
	get + " /projects/:id/repository/files/:file_path/raw": {},
	get + " /projects/:id/repository/blobs/:sha/raw":       {},
}

// admit counts the request, and tells the client how it stands.
func (a *API) admit(w http.ResponseWriter, r *http.Request, by forge.Principal) error {
	reading, err := a.limits.Admit(surface, by.Allowance(r.RemoteAddr))
	reading.Tell(w.Header())
	return err
}

// enter bounds the body of a request to a route and, where its requests are
// large, how many of them the caller has running, until leave is called.
func (a *API) enter(w http.ResponseWriter, in *request, to route) (leave func(), err error) {
	most := int64(maxBody)
	leave = func() {}
	if l, ok := large[to.method+" "+to.pattern]; ok {
		if leave, err = a.limits.Hold(surface, in.by.Allowance(in.RemoteAddr)); err != nil {
			return nil, err
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
	return leave, nil
}

// errTooMany tells a client that it asked too much, and how long to wait.
func errTooMany(w http.ResponseWriter, e *limit.Exceeded) *statusError {
	e.Tell(w.Header())
	return &statusError{status: http.StatusTooManyRequests, body: errorBody{
		Message: map[string]string{"error": e.Error()},
	}}
}
