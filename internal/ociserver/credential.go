package ociserver

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
)

// A caller is who sends a request.
type caller struct {
	forge.Principal
	credential forge.Credential
	signedIn   bool // something was given and is good, if only a token for nobody

	// scopes are what the request's token was asked for; with any other
	// credential they are nil, and everything was.
	scopes []scope
	bearer bool // with a token of ours
}

// asked reports whether the caller asked for a verb on an image when it got
// its token. That says nothing of whether it may.
func (c caller) asked(name, verb string) bool {
	return !c.bearer || slices.ContainsFunc(c.scopes, func(s scope) bool { return s.covers(name, verb) })
}

// owner is the word under which the caller's uploads are kept.
func (c caller) owner() string {
	switch {
	case c.User != nil:
		return fmt.Sprintf("user/%d", c.User.ID)
	case c.Token != nil:
		return fmt.Sprintf("token/%d", c.Token.ID)
	}
	return "nobody"
}

// admit finds who sends a request, and counts it.
func (s *Server) admit(w http.ResponseWriter, r *http.Request) (caller, error) {
	by, err := limit.SignIn(s.limits, surface, r.RemoteAddr, r.Header.Get("Authorization"), func() (caller, error) {
		return s.authenticate(r)
	})
	if err != nil {
		return by, err
	}
	by.Principal = by.Via(r.RemoteAddr)
	reading, err := s.limits.Admit(surface, by.Allowance(r.RemoteAddr))
	reading.Tell(w.Header())
	return by, err
}

// authenticate reads the credential of a request, of which there may be one.
func (s *Server) authenticate(r *http.Request) (caller, error) {
	given := r.Header.Values("Authorization")
	switch len(given) {
	case 0:
		return caller{}, nil
	case 1:
	default:
		return caller{}, tidelock.Errorf(tidelock.Invalid, "the request carries more than one credential")
	}
	if username, password, ok := r.BasicAuth(); ok {
		return s.signIn(r, username, tidelock.NewSecret(password))
	}
	scheme, token, _ := strings.Cut(given[0], " ")
	token = strings.TrimSpace(token)
	switch {
	case !strings.EqualFold(scheme, "Bearer"):
		return caller{}, tidelock.Errorf(tidelock.Unauthenticated, "the authorization is neither Basic nor Bearer")
	case strings.HasPrefix(token, "glpat-"), strings.HasPrefix(token, "glagent-"):
		// "flux push artifact --creds <token>" sends it as it is.
		return s.signIn(r, "token", tidelock.NewSecret(token))
	}
	return s.recognize(r, token)
}

// signIn finds who a user name and a password stand for.
func (s *Server) signIn(r *http.Request, username string, password tidelock.Secret) (caller, error) {
	if username == "gitlab-ci-token" && !strings.HasPrefix(password.Reveal(), "gl") {
		return caller{}, tidelock.Errorf(tidelock.Unauthenticated,
			"this forge runs no jobs and gives out no job tokens; use a project access token or a deploy token")
	}
	if strings.HasPrefix(password.Reveal(), "glagent-") {
		agent, token, err := s.forge.AuthenticateAgent(r.Context(), password)
		if err != nil {
			return caller{}, err
		}
		return caller{
			Principal: forge.Principal{Agent: &agent}, signedIn: true,
			credential: forge.Credential{AgentToken: token.ID},
		}, nil
	}
	p, err := s.forge.AuthenticateBasic(r.Context(), username, password)
	if err != nil {
		return caller{}, err
	}
	if p.Token == nil {
		return caller{}, nil // neither name nor password
	}
	return caller{Principal: p, signedIn: true, credential: forge.Credential{Token: p.Token.ID}}, nil
}

// recognize finds who got a token of ours, and what for. What became of the
// credential since then counts.
func (s *Server) recognize(r *http.Request, token string) (caller, error) {
	claims, err := s.key.verify(token, s.issuer(), s.now())
	if err != nil {
		return caller{}, err
	}
	p, err := s.forge.Recall(r.Context(), claims.credential)
	if err != nil {
		return caller{}, err
	}
	return caller{Principal: p, credential: claims.credential, signedIn: true, scopes: claims.scopes, bearer: true}, nil
}

// needsScope says that the caller's token was asked for something else.
type needsScope struct{ verb string }

func (e *needsScope) Error() string {
	return fmt.Sprintf("the token was not asked for the right to %s this image", e.verb)
}

// Unwrap gives the error its kind.
func (e *needsScope) Unwrap() error {
	return tidelock.Errorf(tidelock.Unauthenticated, "%s", e.Error())
}

// A challenge is an error that tells the client where to get a token, and for
// what.
type challenge struct {
	header string
	err    error
}

func (c *challenge) Error() string { return c.err.Error() }
func (c *challenge) Unwrap() error { return c.err }

// challenged adds a challenge to an error that another token may mend. What
// may not be seen and what does not exist look alike: to somebody who did not
// sign in, like all that needs it.
func (s *Server) challenged(r *http.Request, to route, by caller, err error) error {
	kind := tidelock.KindOf(err)
	if err == nil {
		return nil
	}
	if by.Anonymous() && to.name != "" && (kind == tidelock.NotFound && unseen(err) || kind == tidelock.Denied) {
		kind, err = tidelock.Unauthenticated, tidelock.Errorf(tidelock.Unauthenticated, "sign in with a user name and an access token")
	}
	if kind != tidelock.Unauthenticated {
		return err
	}
	if _, ok := errors.AsType[*limit.Exceeded](err); ok {
		return err
	}
	header := fmt.Sprintf("Bearer realm=%q,service=%q", s.origin(r)+authPath, service)
	if to.name != "" {
		header += fmt.Sprintf(",scope=%q", "repository:"+to.name+":"+verbsFor(to.what, r.Method))
	}
	switch _, scoped := errors.AsType[*needsScope](err); {
	case scoped || by.signedIn && to.name != "":
		header += `,error="insufficient_scope"`
	case r.Header.Get("Authorization") != "":
		header += `,error="invalid_token"`
	}
	return &challenge{header, err}
}

// verbsFor are what a token is to be asked for to send a request again.
func verbsFor(w what, method string) string {
	switch acts[w][method].verb {
	case push:
		return pull + "," + push
	case remove:
		return remove
	}
	return pull
}

// origin is the scheme and host under which the client reached the server, so
// that it is never sent elsewhere with its password.
func (s *Server) origin(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil || strings.EqualFold(r.Host, s.url.Host) && s.url.Scheme == "https" {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

func (s *Server) issuer() string { return s.url.Scheme + "://" + s.url.Host }
