package gitlabapi

import (
	"net/http"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A tokenShape is a personal, project or group access token. Secret is set
// only in the answer that made it.
type tokenShape struct {
	ID          tidelock.TokenID      `json:"id"`
	Name        string                `json:"name"`
	Description *string               `json:"description"`
	Revoked     bool                  `json:"revoked"`
	CreatedAt   stamp                 `json:"created_at"`
	Scopes      []tidelock.Scope      `json:"scopes"`
	UserID      tidelock.UserID       `json:"user_id"`
	LastUsedAt  stamp                 `json:"last_used_at"`
	Active      bool                  `json:"active"`
	ExpiresAt   day                   `json:"expires_at"`
	AccessLevel *tidelock.AccessLevel `json:"access_level,omitempty"`
	Secret      string                `json:"token,omitempty"`
}

func (a *API) tokenShape(t tidelock.Token) tokenShape {
	return tokenShape{
		ID: t.ID, Name: t.Name, Revoked: t.Revoked, CreatedAt: stamp(t.CreatedAt), Scopes: list(t.Scopes),
		UserID: t.User, LastUsedAt: stamp(t.LastUsed), Active: t.Active(a.now()), ExpiresAt: day(t.ExpiresAt),
		AccessLevel: orNull(t.Level),
	}
}

func (a *API) newTokenShape(t tidelock.Token, secret tidelock.Secret) tokenShape {
	shape := a.tokenShape(t)
	shape.Secret = secret.Reveal()
	return shape
}

// newToken reads what all tokens are made from. Access tokens expire on a day.
func (p *params) newToken() forge.NewToken {
	p.need("name", "scopes")
	return forge.NewToken{Name: p.text("name"), Scopes: p.scopes("scopes"), ExpiresAt: p.date("expires_at")}
}

// tokenFilter reads which access tokens are wanted, and in which order.
func (p *params) tokenFilter() tidelock.TokenFilter {
	f := tidelock.TokenFilter{
		Revoked: given(p, "revoked", p.flag), Search: p.text("search"),
		Created: p.span("created"), Used: p.span("last_used"), Expires: p.span("expires"),
	}
	switch p.word("state", "", "active", "inactive") {
	case "active":
		f.Active = new(true)
	case "inactive":
		f.Active = new(false)
	}
	order, direction, _ := cutLast(p.word("sort", "id_asc", "created_asc", "created_desc", "expires_asc", "expires_desc",
		"last_used_asc", "last_used_desc", "name_asc", "name_desc"), "_")
	f.OrderBy, f.Descending = tokenOrders[order], direction == "desc"
	return f
}

var tokenOrders = map[string]string{
	"id": "id", "created": "created_at", "expires": "expires_at", "last_used": "last_used_at", "name": "name",
}

// cutLast is strings.Cut around the last sep.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// span reads a stretch of time of something, such as created_after and
// created_before.
func (p *params) span(name string) tidelock.Span {
	return tidelock.Span{Since: p.when(name + "_after"), Before: p.when(name + "_before")}
}

func (a *API) listPersonalTokens(w http.ResponseWriter, r *request) error {
	caller, err := r.user()
	if err != nil {
		return err
	}
	user := tidelock.UserID(r.number("user_id"))
	if user == 0 && !caller.Admin {
		user = caller.ID
	}
	filter, page := r.tokenFilter(), r.page()
	if err := r.err(); err != nil {
		return err
	}
	tokens, total, err := a.forge.PersonalTokens(r.ctx(), r.by, user, filter, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(tokens, a.tokenShape), total)
}

// showOwnToken describes the very token that was used, whatever its scopes.
func (a *API) showOwnToken(w http.ResponseWriter, r *request) error {
	if _, err := r.user(); err != nil {
		return err
	}
	if r.by.Token == nil {
		return errUnauthorized
	}
	return ok(w, a.tokenShape(*r.by.Token))
}

func (a *API) revokeOwnToken(w http.ResponseWriter, r *request) error {
	if err := a.forge.RevokeSelf(r.ctx(), r.by); err != nil {
		return err
	}
	return gone(w)
}

func (a *API) showPersonalToken(w http.ResponseWriter, r *request) error {
	n, err := id[tidelock.TokenID](r, "token_id")
	if err != nil {
		return err
	}
	token, err := a.forge.PersonalTokenByID(r.ctx(), r.by, n)
	if err != nil {
		return err
	}
	return ok(w, a.tokenShape(token))
}

func (a *API) revokePersonalToken(w http.ResponseWriter, r *request) error {
	n, err := id[tidelock.TokenID](r, "token_id")
	if err != nil {
		return err
	}
	if err := a.forge.RevokePersonalToken(r.ctx(), r.by, n); err != nil {
		return err
	}
	return gone(w)
}

// createOwnToken makes a token for the caller. GitLab takes only scopes here
// that open neither its API nor repositories.
func (a *API) createOwnToken(w http.ResponseWriter, r *request) error {
	caller, err := r.user()
	if err != nil {
		return err
	}
	if err := a.forge.Allow(r.ctx(), r.by, forge.ManageOwnToken, forge.OnForge); err != nil {
		return err
	}
	token := r.newToken()
	for _, s := range token.Scopes {
		if s != tidelock.ScopeK8sProxy && s != tidelock.ScopeSelfRotate {
			r.note("scopes", "does not have a valid value")
		}
	}
	return a.writeNewPersonalToken(w, r, caller.ID, token)
}

func (a *API) createPersonalToken(w http.ResponseWriter, r *request) error {
	if err := a.forge.Allow(r.ctx(), r.by, forge.Administer, forge.OnForge); err != nil {
		return err
	}
	user, err := id[tidelock.UserID](r, "user_id")
	if err != nil {
		return err
	}
	return a.writeNewPersonalToken(w, r, user, r.newToken())
}

func (a *API) writeNewPersonalToken(w http.ResponseWriter, r *request, user tidelock.UserID, n forge.NewToken) error {
	if err := r.err(); err != nil {
		return err
	}
	token, secret, err := a.forge.CreatePersonalToken(r.ctx(), r.by, user, n)
	if err != nil {
		return missing("User", err)
	}
	return created(w, a.newTokenShape(token, secret))
}

// accessKind is the kind of access token that a target has.
func accessKind(t forge.Target) tidelock.TokenKind {
	if t.Group != nil {
		return tidelock.GroupToken
	}
	return tidelock.ProjectToken
}

// deployKind is the kind of deploy token that any target has.
func deployKind(forge.Target) tidelock.TokenKind { return tidelock.DeployToken }

func (a *API) listAccessTokens(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, readAccess)
		if err != nil {
			return err
		}
		filter, page := r.tokenFilter(), r.page()
		if err := r.err(); err != nil {
			return err
		}
		tokens, total, err := a.forge.TokensOf(r.ctx(), r.by, target, accessKind(target), filter, page)
		if err != nil {
			return err
		}
		return writePage(a, w, r, page, each(tokens, a.tokenShape), total)
	}
}

func (a *API) createAccessToken(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, manageTokens)
		if err != nil {
			return err
		}
		token := r.newToken()
		token.Level = r.level("access_level")
		if err := r.err(); err != nil {
			return err
		}
		made, secret, err := a.forge.CreateAccessToken(r.ctx(), r.by, target, token)
		if err != nil {
			return err
		}
		return created(w, a.newTokenShape(made, secret))
	}
}

// showToken answers with one token of a kind, in the shape of that kind.
func showToken[Shape any](a *API, in place, read acts, kind func(forge.Target) tidelock.TokenKind, shape func(tidelock.Token) Shape) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, read)
		if err != nil {
			return err
		}
		n, err := id[tidelock.TokenID](r, "token_id")
		if err != nil {
			return err
		}
		token, err := a.forge.TokenOf(r.ctx(), r.by, target, kind(target), n)
		if err != nil {
			return err
		}
		return ok(w, shape(token))
	}
}

func (a *API) revokeToken(in place, kind func(forge.Target) tidelock.TokenKind) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, manageTokens)
		if err != nil {
			return err
		}
		n, err := id[tidelock.TokenID](r, "token_id")
		if err != nil {
			return err
		}
		if err := a.forge.RevokeTokenOf(r.ctx(), r.by, target, kind(target), n); err != nil {
			return err
		}
		return gone(w)
	}
}

// A deployShape is a deploy token.
type deployShape struct {
	ID        tidelock.TokenID `json:"id"`
	Name      string           `json:"name"`
	Username  string           `json:"username"`
	ExpiresAt stamp            `json:"expires_at"`
	Scopes    []tidelock.Scope `json:"scopes"`
	Revoked   bool             `json:"revoked"`
	Expired   bool             `json:"expired"`
	Secret    string           `json:"token,omitempty"`
}

func (a *API) deployShape(t tidelock.Token) deployShape {
	return deployShape{
		ID: t.ID, Name: t.Name, Username: t.Username, ExpiresAt: stamp(t.ExpiresAt), Scopes: list(t.Scopes),
		Revoked: t.Revoked, Expired: !t.ExpiresAt.IsZero() && !a.now().Before(t.ExpiresAt),
	}
}

// activeDeploy reads GitLab's other spelling of active.
func (p *params) activeDeploy() *bool { return given(p, "active", p.flag) }

func (a *API) listAllDeployTokens(w http.ResponseWriter, r *request) error {
	active, page := r.activeDeploy(), r.page()
	if err := r.err(); err != nil {
		return err
	}
	tokens, total, err := a.forge.DeployTokens(r.ctx(), r.by, active, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(tokens, a.deployShape), total)
}

func (a *API) listDeployTokens(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, readDeploy)
		if err != nil {
			return err
		}
		active, page := r.activeDeploy(), r.page()
		if err := r.err(); err != nil {
			return err
		}
		tokens, total, err := a.forge.TokensOf(r.ctx(), r.by, target, tidelock.DeployToken, tidelock.TokenFilter{Active: active}, page)
		if err != nil {
			return err
		}
		return writePage(a, w, r, page, each(tokens, a.deployShape), total)
	}
}

func (a *API) createDeployToken(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, manageTokens)
		if err != nil {
			return err
		}
		token := r.newToken()
		token.Username, token.ExpiresAt = r.text("username"), r.when("expires_at")
		if err := r.err(); err != nil {
			return err
		}
		made, secret, err := a.forge.CreateDeployToken(r.ctx(), r.by, target, token)
		if err != nil {
			return err
		}
		shape := a.deployShape(made)
		shape.Secret = secret.Reveal()
		return created(w, shape)
	}
}
