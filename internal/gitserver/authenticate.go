package gitserver

import (
	"net/http"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// inQuery are the names under which other interfaces take a token from the
// query. Queries end up in logs, so here none is.
var inQuery = []string{"private_token", "access_token", "job_token", "token"}

// authenticate finds who sends a request: by Basic or Bearer authorization or
// by GitLab's PRIVATE-TOKEN header, of which there may be one.
func (s *Server) authenticate(r *http.Request) (forge.Principal, error) {
	for _, name := range inQuery {
		if r.URL.Query().Has(name) {
			return forge.Principal{}, tidelock.Errorf(tidelock.Invalid,
				"a token in the address is not accepted, because addresses are logged; give it as the password")
		}
	}
	authorization, private := r.Header.Values("Authorization"), r.Header.Values("Private-Token")
	switch {
	case len(authorization)+len(private) == 0:
		return forge.Principal{}, nil
	case len(authorization)+len(private) > 1:
		return forge.Principal{}, tidelock.Errorf(tidelock.Invalid, "the request carries more than one credential")
	case len(private) == 1:
		return s.forge.Authenticate(r.Context(), tidelock.NewSecret(private[0]))
	}
	if username, password, ok := r.BasicAuth(); ok {
		return s.forge.AuthenticateBasic(r.Context(), username, tidelock.NewSecret(password))
	}
	scheme, token, _ := strings.Cut(authorization[0], " ")
	if strings.EqualFold(scheme, "Bearer") {
		return s.forge.Authenticate(r.Context(), tidelock.NewSecret(strings.TrimSpace(token)))
	}
	return forge.Principal{}, tidelock.Errorf(tidelock.Unauthenticated, "the authorization is neither Basic nor Bearer")
}
