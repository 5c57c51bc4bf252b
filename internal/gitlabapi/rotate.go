package gitlabapi

import (
	"net/http"

	"tidelock.dev"
)

// rotateRoutes replace access tokens by new ones. Whoever offers a token that
// was revoked to one of them ends its whole family: see authenticate.
func (a *API) rotateRoutes() []route {
	return []route{
		{post, "/personal_access_tokens/self/rotate", a.rotateSelf(tidelock.PersonalToken)},
		{post, "/personal_access_tokens/:token_id/rotate", a.rotatePersonalToken},
		{post, "/projects/:id/access_tokens/self/rotate", a.rotateSelf(tidelock.ProjectToken)},
		{post, "/projects/:id/access_tokens/:token_id/rotate", a.rotateToken(onProject)},
		{post, "/groups/:id/access_tokens/self/rotate", a.rotateSelf(tidelock.GroupToken)},
		{post, "/groups/:id/access_tokens/:token_id/rotate", a.rotateToken(onGroup)},
	}
}

func (a *API) rotateSelf(kind tidelock.TokenKind) handler {
	return func(w http.ResponseWriter, r *request) error {
		expires := r.date("expires_at")
		if err := r.err(); err != nil {
			return err
		}
		token, secret, err := a.forge.RotateSelf(r.ctx(), r.by, kind, r.arg("id"), expires)
		if err != nil {
			return err
		}
		return ok(w, a.newTokenShape(token, secret))
	}
}

func (a *API) rotatePersonalToken(w http.ResponseWriter, r *request) error {
	n, err := id[tidelock.TokenID](r, "token_id")
	if err != nil {
		return err
	}
	expires := r.date("expires_at")
	if err := r.err(); err != nil {
		return err
	}
	token, secret, err := a.forge.RotatePersonalToken(r.ctx(), r.by, n, expires)
	if err != nil {
		return err
	}
	return ok(w, a.newTokenShape(token, secret))
}

func (a *API) rotateToken(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, manageTokens)
		if err != nil {
			return err
		}
		n, err := id[tidelock.TokenID](r, "token_id")
		if err != nil {
			return err
		}
		expires := r.date("expires_at")
		if err := r.err(); err != nil {
			return err
		}
		token, secret, err := a.forge.RotateTokenOf(r.ctx(), r.by, target, accessKind(target), n, expires)
		if err != nil {
			return err
		}
		return ok(w, a.newTokenShape(token, secret))
	}
}
