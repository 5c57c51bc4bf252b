package forge

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidelock.dev"
)

const (
	defaultTokenLife = 365 * 24 * time.Hour
	longestTokenLife = 400 * 24 * time.Hour
)

// scopesOf are the scopes that a kind of token may carry.
var scopesOf = map[tidelock.TokenKind][]tidelock.Scope{
	tidelock.PersonalToken: anyScope,
	tidelock.ProjectToken: {tidelock.ScopeAPI, tidelock.ScopeReadAPI, tidelock.ScopeReadRepository, tidelock.ScopeWriteRepository,
		tidelock.ScopeReadRegistry, tidelock.ScopeWriteRegistry, tidelock.ScopeK8sProxy, tidelock.ScopeSelfRotate},
	tidelock.GroupToken: {tidelock.ScopeAPI, tidelock.ScopeReadAPI, tidelock.ScopeReadRepository, tidelock.ScopeWriteRepository,
		tidelock.ScopeReadRegistry, tidelock.ScopeWriteRegistry, tidelock.ScopeK8sProxy, tidelock.ScopeSelfRotate},
	// With api, a deploy token may read and post statuses, and nothing else.
	tidelock.DeployToken: {tidelock.ScopeAPI, tidelock.ScopeReadRepository, tidelock.ScopeReadRegistry, tidelock.ScopeWriteRegistry},
}

// NewToken is what is said of a token to create.
type NewToken struct {
	Name      string
	Scopes    []tidelock.Scope
	ExpiresAt time.Time            // access tokens: default a year from now, at most 400 days; deploy tokens: default never
	Level     tidelock.AccessLevel // project and group tokens; default Maintainer
	Username  string               // deploy tokens; default gitlab+deploy-token-<id>
}

func (n NewToken) check(kind tidelock.TokenKind, now time.Time) error {
	if err := checkName("name", n.Name); err != nil {
		return err
	}
	if len(n.Scopes) == 0 {
		return tidelock.FieldErrorf(tidelock.Invalid, "scopes", "can't be blank")
	}
	for _, s := range n.Scopes {
		if !slices.Contains(scopesOf[kind], s) {
			return tidelock.FieldErrorf(tidelock.Invalid, "scopes", "can only contain available scopes: %q is not one for a %s token", s, kind)
		}
	}
	return checkExpiry(kind, n.ExpiresAt, now)
}

// checkExpiry refuses an end that is past or too far away; zero is none.
func checkExpiry(kind tidelock.TokenKind, expires, now time.Time) error {
	if !expires.IsZero() && !expires.After(now) {
		return tidelock.FieldErrorf(tidelock.Invalid, "expires_at", "must be in the future")
	}
	if kind != tidelock.DeployToken && expires.After(now.Add(longestTokenLife)) {
		return tidelock.FieldErrorf(tidelock.Invalid, "expires_at", "must be before %s", now.Add(longestTokenLife).Format(time.DateOnly))
	}
	return nil
}

// build makes the row of a new token.
func (n NewToken) build(kind tidelock.TokenKind, now time.Time) tidelock.Token {
	expires := n.ExpiresAt
	if expires.IsZero() && kind != tidelock.DeployToken {
		expires = now.Add(defaultTokenLife).Truncate(24 * time.Hour)
	}
	scopes := slices.Clone(n.Scopes)
	slices.Sort(scopes)
	return tidelock.Token{
		Kind: kind, Name: n.Name, Scopes: slices.Compact(scopes),
		Username: n.Username, Level: n.Level, CreatedAt: now, ExpiresAt: expires,
	}
}

// CreatePersonalToken makes a token that acts as a user: by an administrator
// for anybody, by everybody for themselves but then without any scope that
// the calling token does not have itself.
func (f *Forge) CreatePersonalToken(ctx context.Context, p Principal, user tidelock.UserID, n NewToken) (tidelock.Token, tidelock.Secret, error) {
	if p.User == nil || p.User.ID != user {
		if err := f.Allow(ctx, p, Administer, OnForge); err != nil {
			return tidelock.Token{}, tidelock.Secret{}, err
		}
	} else {
		if err := f.Allow(ctx, p, ManageOwnToken, OnForge); err != nil {
			return tidelock.Token{}, tidelock.Secret{}, err
		}
		for _, s := range n.Scopes {
			if p.Token != nil && !p.Token.Has(tidelock.ScopeAPI, s) {
				return tidelock.Token{}, tidelock.Secret{}, &ScopeError{Action: ManageOwnToken, Need: []tidelock.Scope{tidelock.ScopeAPI, s}}
			}
		}
	}
	owner, err := f.store.User(ctx, user)
	if err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	if owner.Bot {
		return tidelock.Token{}, tidelock.Secret{}, tidelock.Errorf(tidelock.Invalid, "a bot's token is made with its project or group")
	}
	return f.issuePersonalToken(ctx, owner, p, n)
}

// IssueBootstrapToken makes the administrator's first token; the operator's
// hold on the data folder is the authority.
func (f *Forge) IssueBootstrapToken(ctx context.Context, user tidelock.User) (tidelock.Token, tidelock.Secret, error) {
	return f.issuePersonalToken(ctx, user, Principal{User: &user}, NewToken{
		Name: "first token of the administrator",
		Scopes: []tidelock.Scope{tidelock.ScopeAPI, tidelock.ScopeReadRepository, tidelock.ScopeWriteRepository,
			tidelock.ScopeReadRegistry, tidelock.ScopeWriteRegistry, tidelock.ScopeK8sProxy},
	})
}

func (f *Forge) issuePersonalToken(ctx context.Context, owner tidelock.User, by Principal, n NewToken) (tidelock.Token, tidelock.Secret, error) {
	now := f.now().UTC()
	if err := n.check(tidelock.PersonalToken, now); err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	token := n.build(tidelock.PersonalToken, now)
	token.User = owner.ID
	token.Level, token.Username = tidelock.NoAccess, ""
	return f.issue(ctx, token, by, prefixAccess, nil)
}

// CreateAccessToken makes a project or group access token: a bot user that is
// a member of the target at the token's level.
func (f *Forge) CreateAccessToken(ctx context.Context, p Principal, t Target, n NewToken) (tidelock.Token, tidelock.Secret, error) {
	kind, noun := tidelock.ProjectToken, "project"
	if t.Group != nil {
		kind, noun = tidelock.GroupToken, "group"
		if t.Group.Kind != tidelock.GroupNamespace {
			return tidelock.Token{}, tidelock.Secret{}, errNoGroup()
		}
	}
	if err := f.Allow(ctx, p, t.pick(ManageTokens, ManageGroupTokens), t); err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	if p.Token != nil && p.Token.Kind != tidelock.PersonalToken {
		return tidelock.Token{}, tidelock.Secret{}, tidelock.Errorf(tidelock.Denied, "a %s token can be made only with a personal token", noun)
	}
	if n.Level == tidelock.NoAccess {
		n.Level = tidelock.Maintainer
	}
	if !n.Level.Valid() {
		return tidelock.Token{}, tidelock.Secret{}, tidelock.FieldErrorf(tidelock.Invalid, "access_level", "is not included in the list")
	}
	if err := f.mayGive(ctx, p, t, n.Level); err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	now := f.now().UTC()
	if err := n.check(kind, now); err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	n.Username = ""
	token := n.build(kind, now)
	token.Holder = t.holder()
	random := make([]byte, 16)
	rand.Read(random)
	id := int64(token.Holder.Project) + int64(token.Holder.Namespace) // one of them is 0
	bot := &tidelock.User{
		Username: fmt.Sprintf("%s_%d_bot_%s", noun, id, hex.EncodeToString(random)),
		Name:     n.Name, Bot: true, CreatedAt: now,
	}
	return f.issue(ctx, token, p, prefixAccess, bot)
}

// CreateDeployToken makes a deploy token for a project or a group.
func (f *Forge) CreateDeployToken(ctx context.Context, p Principal, t Target, n NewToken) (tidelock.Token, tidelock.Secret, error) {
	if t.Group != nil && t.Group.Kind != tidelock.GroupNamespace {
		return tidelock.Token{}, tidelock.Secret{}, errNoGroup()
	}
	if err := f.Allow(ctx, p, t.pick(ManageTokens, ManageGroupTokens), t); err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	now := f.now().UTC()
	if err := n.check(tidelock.DeployToken, now); err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	if n.Username == "" {
		random := make([]byte, 6)
		rand.Read(random)
		n.Username = "gitlab+deploy-token-" + hex.EncodeToString(random)
	}
	if err := checkName("username", n.Username); err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	token := n.build(tidelock.DeployToken, now)
	token.Holder = t.holder()
	token.Level = tidelock.NoAccess
	return f.issue(ctx, token, p, prefixDeploy, nil)
}

func (f *Forge) issue(ctx context.Context, token tidelock.Token, by Principal, prefix string, bot *tidelock.User) (tidelock.Token, tidelock.Secret, error) {
	token.Creator, _ = by.ids()
	secret := newSecret(prefix, 32)
	on, err := f.holderOf(ctx, token)
	if err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	var made tidelock.Token
	err = f.audited(ctx, by, func(ctx context.Context) (change, error) {
		var err error
		if made, err = f.store.CreateToken(ctx, token, hashOf(secret), bot); err != nil {
			return change{}, fmt.Errorf("store a %s token: %w", token.Kind, err)
		}
		return change{act: "token created", on: on, subject: tokenSubject(made), detail: tokenDetail(made)}, nil
	})
	if err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	token = made
	f.log.InfoContext(ctx, "token created", "token", token.ID, "kind", token.Kind, "by", token.Creator)
	return token, secret, nil
}

// PersonalTokens lists a user's personal tokens: their own, or anybody's for
// an administrator (user 0: of everybody).
func (f *Forge) PersonalTokens(ctx context.Context, p Principal, user tidelock.UserID, filter tidelock.TokenFilter, page tidelock.Page) ([]tidelock.Token, int, error) {
	action := Oversee
	if p.User != nil && p.User.ID == user {
		action = ReadOwnTokens
	}
	if err := f.Allow(ctx, p, action, OnForge); err != nil {
		return nil, 0, err
	}
	filter.Kind, filter.User, filter.Holder, filter.Now = tidelock.PersonalToken, user, tidelock.Holder{}, f.now()
	return f.store.Tokens(ctx, filter, page)
}

// TokensOf lists the access or deploy tokens of a project or group.
func (f *Forge) TokensOf(ctx context.Context, p Principal, t Target, kind tidelock.TokenKind, filter tidelock.TokenFilter, page tidelock.Page) ([]tidelock.Token, int, error) {
	if err := f.Allow(ctx, p, readTokens(t, kind), t); err != nil {
		return nil, 0, err
	}
	filter.Kind, filter.User, filter.Holder, filter.Now = kind, 0, t.holder(), f.now()
	return f.store.Tokens(ctx, filter, page)
}

// DeployTokens lists all deploy tokens, for an administrator.
func (f *Forge) DeployTokens(ctx context.Context, p Principal, active *bool, page tidelock.Page) ([]tidelock.Token, int, error) {
	if err := f.Allow(ctx, p, Oversee, OnForge); err != nil {
		return nil, 0, err
	}
	return f.store.Tokens(ctx, tidelock.TokenFilter{Kind: tidelock.DeployToken, Active: active, Now: f.now()}, page)
}

// TokenOf reads one token of a project or group.
func (f *Forge) TokenOf(ctx context.Context, p Principal, t Target, kind tidelock.TokenKind, id tidelock.TokenID) (tidelock.Token, error) {
	return f.tokenOf(ctx, p, t, kind, id, readTokens(t, kind))
}

// readTokens is the action of seeing tokens of a kind.
func readTokens(t Target, kind tidelock.TokenKind) Action {
	if kind == tidelock.GroupToken {
		return ReadGroupBots
	}
	return t.pick(ReadTokens, ReadGroupTokens)
}

func (f *Forge) tokenOf(ctx context.Context, p Principal, t Target, kind tidelock.TokenKind, id tidelock.TokenID, a Action) (tidelock.Token, error) {
	if err := f.Allow(ctx, p, a, t); err != nil {
		return tidelock.Token{}, err
	}
	token, err := f.store.Token(ctx, id)
	if err == nil && (token.Kind != kind || token.Holder != t.holder()) {
		err = errNoToken()
	}
	if tidelock.KindOf(err) == tidelock.NotFound {
		err = errNoToken()
	}
	if err != nil {
		return tidelock.Token{}, err
	}
	return token, nil
}

// RevokeTokenOf ends a token of a project or group; it cannot be undone.
func (f *Forge) RevokeTokenOf(ctx context.Context, p Principal, t Target, kind tidelock.TokenKind, id tidelock.TokenID) error {
	token, err := f.tokenOf(ctx, p, t, kind, id, t.pick(ManageTokens, ManageGroupTokens))
	if err != nil {
		return err
	}
	return f.revoke(ctx, p, token)
}

// PersonalTokenByID reads one personal token: the caller's own, or anybody's
// for an administrator.
func (f *Forge) PersonalTokenByID(ctx context.Context, p Principal, id tidelock.TokenID) (tidelock.Token, error) {
	return f.personalToken(ctx, p, id, ReadOwnTokens)
}

// RevokePersonalToken ends a personal token of the caller, or anybody's for an
// administrator.
func (f *Forge) RevokePersonalToken(ctx context.Context, p Principal, id tidelock.TokenID) error {
	token, err := f.personalToken(ctx, p, id, RevokeOwnToken)
	if err != nil {
		return err
	}
	return f.revoke(ctx, p, token)
}

// RevokeSelf ends the very token that the caller used, whatever its scopes.
func (f *Forge) RevokeSelf(ctx context.Context, p Principal) error {
	if p.Token == nil {
		return tidelock.Errorf(tidelock.Unauthenticated, "401 Unauthorized")
	}
	if p.User == nil {
		return &ScopeError{Action: RevokeOwnToken}
	}
	return f.revoke(ctx, p, *p.Token)
}

func (f *Forge) personalToken(ctx context.Context, p Principal, id tidelock.TokenID, a Action) (tidelock.Token, error) {
	if err := f.Allow(ctx, p, a, OnForge); err != nil {
		return tidelock.Token{}, err
	}
	token, err := f.store.Token(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && token.Kind != tidelock.PersonalToken) {
		return tidelock.Token{}, errNoToken()
	}
	if err != nil {
		return tidelock.Token{}, err
	}
	if token.User != p.User.ID && !p.admin() {
		return tidelock.Token{}, errNoToken()
	}
	return token, nil
}

func (f *Forge) revoke(ctx context.Context, p Principal, token tidelock.Token) error {
	if token.Revoked {
		return errNoToken()
	}
	on, err := f.holderOf(ctx, token)
	if err != nil {
		return err
	}
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		return change{act: "token revoked", on: on, subject: tokenSubject(token)}, f.store.RevokeToken(ctx, token.ID)
	})
	if err != nil {
		return err
	}
	by, _ := p.ids()
	f.log.InfoContext(ctx, "token revoked", "token", token.ID, "kind", token.Kind, "by", by)
	return nil
}

func errNoToken() error { return tidelock.Errorf(tidelock.NotFound, "Token Not Found") }

// holderOf is what the audit log says a token was for: its project or group,
// and the forge for personal ones.
func (f *Forge) holderOf(ctx context.Context, t tidelock.Token) (Target, error) {
	switch {
	case t.Project != 0:
		project, err := f.store.Project(ctx, t.Project)
		if err != nil {
			return Target{}, fmt.Errorf("read the project of a token: %w", err)
		}
		return OnProject(project), nil
	case t.Namespace != 0:
		group, err := f.store.Namespace(ctx, t.Namespace)
		if err != nil {
			return Target{}, fmt.Errorf("read the group of a token: %w", err)
		}
		return OnGroup(group), nil
	}
	return OnForge, nil
}

func tokenSubject(t tidelock.Token) string {
	return fmt.Sprintf("%s token %d %q", t.Kind, t.ID, t.Name)
}

func tokenDetail(t tidelock.Token) string {
	words := make([]string, len(t.Scopes))
	for i, s := range t.Scopes {
		words[i] = string(s)
	}
	detail := "scopes " + strings.Join(words, " ")
	if t.Level != tidelock.NoAccess {
		detail += ", role " + t.Level.String()
	}
	if t.Kind == tidelock.PersonalToken {
		detail += fmt.Sprintf(", for user %d", t.User)
	}
	return detail + ", expires " + expiry(t.ExpiresAt)
}

// expiry is a day, or "never".
func expiry(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.UTC().Format(time.DateOnly)
}
