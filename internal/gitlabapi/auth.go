package gitlabapi

import (
	"net/http"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
)

// authenticate reads a request's credential and asks the forge whose it is.
// The first carrier that is there decides, in GitLab's order, so that a bad
// token is never covered by a good one behind it. No credential is anonymous;
// one of a sort that we do not take is refused, not ignored.
func (a *API) authenticate(r *http.Request, to route) (forge.Principal, error) {
	secret, ok, err := credential(r)
	if err != nil || !ok {
		return forge.Principal{}, err
	}
	by, err := limit.SignIn(a.limits, surface, r.RemoteAddr, secret.Reveal(), func() (forge.Principal, error) {
		if strings.HasSuffix(to.pattern, "/rotate") {
			return a.forge.AuthenticateToRotate(r.Context(), secret, r.RemoteAddr)
		}
		return a.forge.Authenticate(r.Context(), secret)
	})
	if err != nil {
		return forge.Principal{}, err
	}
	// A deploy token is for git and the registry. With api it comes in here
	// too; the forge lets it do with statuses what GitLab promises, and no more.
	if by.User == nil && !by.Token.Has(tidelock.ScopeAPI) {
		return forge.Principal{}, errUnauthorized
	}
	return by, nil
}

// secretParams are the query's carriers of credentials; they are never
// repeated in a Link.
var secretParams = []string{"private_token", "access_token", "job_token"}

func credential(r *http.Request) (tidelock.Secret, bool, error) {
	query := r.URL.Query()
	if v := r.Header.Get("Private-Token"); v != "" {
		return tidelock.NewSecret(v), true, nil
	}
	if v := query.Get("private_token"); v != "" {
		return tidelock.NewSecret(v), true, nil
	}
	if v := r.Header.Get("Authorization"); v != "" {
		scheme, value, _ := strings.Cut(v, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return tidelock.Secret{}, false, errUnauthorized
		}
		return tidelock.NewSecret(strings.TrimSpace(value)), true, nil
	}
	if v := query.Get("access_token"); v != "" {
		return tidelock.NewSecret(v), true, nil
	}
	if r.Header.Get("Job-Token") != "" || query.Get("job_token") != "" {
		return tidelock.Secret{}, false, errUnauthorized
	}
	return tidelock.Secret{}, false, nil
}
