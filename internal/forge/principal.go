package forge

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"time"

	"tidelock.dev"
)

// A Principal is who asks. The zero value is anonymous; a deploy token has
// only Token set, a deploy key only Key, the SSH key of a person User and Key,
// and the agent of a cluster only Agent.
type Principal struct {
	User  *tidelock.User
	Token *tidelock.Token
	Key   *tidelock.Key
	Agent *tidelock.Agent

	// From is the network address that the request came from, for the audit
	// log; it decides nothing.
	From string
}

// Anonymous reports whether no credential was given.
func (p Principal) Anonymous() bool {
	return p.User == nil && p.Token == nil && p.Key == nil && p.Agent == nil
}

func (p Principal) admin() bool { return p.User != nil && p.User.Admin }

// Via returns the principal as it came from a network address, with or without
// a port, such as http.Request.RemoteAddr.
func (p Principal) Via(address string) Principal {
	p.From = address
	if host, _, err := net.SplitHostPort(address); err == nil {
		p.From = host
	}
	return p
}

// ids are what a push remembers of who made it.
func (p Principal) ids() (tidelock.UserID, tidelock.TokenID) {
	var user tidelock.UserID
	var token tidelock.TokenID
	if p.User != nil {
		user = p.User.ID
	}
	if p.Token != nil {
		token = p.Token.ID
	}
	return user, token
}

// key is the SSH key that a push was made with, 0 for none.
func (p Principal) key() tidelock.KeyID {
	if p.Key == nil {
		return 0
	}
	return p.Key.ID
}

// Prefixes of credentials, as GitLab has them.
const (
	prefixAccess = "glpat-" // personal, project and group access tokens
	prefixDeploy = "gldt-"
	prefixAgent  = "glagent-"
)

func newSecret(prefix string, length int) tidelock.Secret {
	const alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-" // 64: no modulo bias
	random := make([]byte, length)
	rand.Read(random) // never fails: crypto/rand ends the program instead
	for i, b := range random {
		random[i] = alphabet[b&63]
	}
	return tidelock.NewSecret(prefix + string(random))
}

// hashOf is what is stored of a credential. Credentials are long and random,
// so a plain hash cannot be searched backwards.
func hashOf(s tidelock.Secret) string {
	sum := sha256.Sum256([]byte(s.Reveal()))
	return hex.EncodeToString(sum[:])
}

func errBadCredential() error {
	return tidelock.Errorf(tidelock.Unauthenticated, "the credential is not valid: it is wrong, expired or revoked")
}

// Authenticate finds who a personal, project, group or deploy token stands
// for. A wrong, expired or revoked one is Unauthenticated.
func (f *Forge) Authenticate(ctx context.Context, secret tidelock.Secret) (Principal, error) {
	value := secret.Reveal()
	if !strings.HasPrefix(value, prefixAccess) && !strings.HasPrefix(value, prefixDeploy) {
		return Principal{}, errBadCredential()
	}
	token, err := f.store.TokenByHash(ctx, hashOf(secret))
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
		return Principal{}, errBadCredential()
	case err != nil:
		return Principal{}, fmt.Errorf("look up a token: %w", err)
	}
	return f.bearer(ctx, token)
}

// bearer is who a token stands for, if it still does.
func (f *Forge) bearer(ctx context.Context, token tidelock.Token) (Principal, error) {
	now := f.now()
	if token.Revoked {
		return Principal{}, tidelock.Errorf(tidelock.Unauthenticated, "Token was revoked. You have to re-authorize from the user.")
	}
	if !token.Active(now) {
		return Principal{}, tidelock.Errorf(tidelock.Unauthenticated, "Token is expired. You can either do re-authorization or token refresh.")
	}
	p := Principal{Token: &token}
	if token.User != 0 {
		user, err := f.store.User(ctx, token.User)
		if err != nil {
			return Principal{}, fmt.Errorf("read the user of token %d: %w", token.ID, err)
		}
		if user.Blocked {
			return Principal{}, tidelock.Errorf(tidelock.Unauthenticated, "the user is blocked")
		}
		p.User = &user
	}
	if now.Sub(token.LastUsed) >= time.Minute {
		f.later(func(ctx context.Context) error { return f.store.TouchToken(ctx, token.ID, now) })
	}
	return p, nil
}

// AuthenticateBasic finds who a user name and password stand for, by GitLab's
// rules for git over HTTP: an access token goes with any user name, a deploy
// token only with its own. Neither name nor password is anonymous.
func (f *Forge) AuthenticateBasic(ctx context.Context, username string, password tidelock.Secret) (Principal, error) {
	if username == "" && password.Reveal() == "" {
		return Principal{}, nil
	}
	if username == "" {
		return Principal{}, errBadCredential()
	}
	p, err := f.Authenticate(ctx, password)
	if err != nil {
		return Principal{}, err
	}
	if p.Token.Kind == tidelock.DeployToken && p.Token.Username != username {
		return Principal{}, errBadCredential()
	}
	return p, nil
}

// AuthenticateAgent finds the agent that a token stands for.
func (f *Forge) AuthenticateAgent(ctx context.Context, secret tidelock.Secret) (tidelock.Agent, tidelock.AgentToken, error) {
	if !strings.HasPrefix(secret.Reveal(), prefixAgent) {
		return tidelock.Agent{}, tidelock.AgentToken{}, errBadCredential()
	}
	token, err := f.store.AgentTokenByHash(ctx, hashOf(secret))
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
		return tidelock.Agent{}, tidelock.AgentToken{}, errBadCredential()
	case err != nil:
		return tidelock.Agent{}, tidelock.AgentToken{}, fmt.Errorf("look up an agent's token: %w", err)
	case token.Revoked:
		return tidelock.Agent{}, tidelock.AgentToken{}, errBadCredential()
	}
	agent, err := f.store.Agent(ctx, token.Agent)
	if err != nil {
		return tidelock.Agent{}, tidelock.AgentToken{}, fmt.Errorf("read the agent of token %d: %w", token.ID, err)
	}
	if now := f.now(); now.Sub(token.LastUsed) >= time.Minute {
		f.later(func(ctx context.Context) error { return f.store.TouchAgentToken(ctx, token.ID, now) })
	}
	return agent, token, nil
}

// later leaves a write that nobody waits for to Run. When too many wait, it
// is dropped: the next use of the token asks again.
func (f *Forge) later(write func(context.Context) error) {
	select {
	case f.touches <- write:
	default:
	}
}
