package gitlabapi

import (
	"context"
	"net/http"
	"strconv"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A request is one call: who makes it, what its path names, and what it says
// beside that.
type request struct {
	*http.Request
	by   forge.Principal
	args map[string]string // by the names in the route's pattern
	params

	release func() // of a large request; nil for others
}

func (r *request) ctx() context.Context { return r.Context() }

// arg is a named segment of the path.
func (r *request) arg(name string) string { return r.args[name] }

// id is a named segment of the path that has to be a positive number.
func id[ID ~int64](r *request, name string) (ID, error) {
	n, err := strconv.ParseInt(r.args[name], 10, 64)
	if err != nil || n <= 0 {
		return 0, &paramError{[]string{name + " is invalid"}}
	}
	return ID(n), nil
}

// user is who calls; routes that are about the caller begin with it.
func (r *request) user() (tidelock.User, error) {
	switch {
	case r.by.User != nil:
		return *r.by.User, nil
	case r.by.Token != nil:
		return tidelock.User{}, errNoUser
	}
	return tidelock.User{}, errUnauthorized
}
