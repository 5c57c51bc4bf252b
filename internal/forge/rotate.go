package forge

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidelock.dev"
)

// rotatedTokenLife is how long a rotated token is good when nobody says; it is
// GitLab's default.
const rotatedTokenLife = 7 * 24 * time.Hour

// tokenFamilyStore is what the rules remember of rotations.
type tokenFamilyStore interface {
	// RotateToken revokes a token and stores, by the hash of its secret, the
	// one that takes its place, in the same family; the membership that its
	// bot has by it lasts as long as the new one. A token that was revoked is
	// a Conflict, so that of several rotations one succeeds.
	RotateToken(ctx context.Context, old tidelock.TokenID, next tidelock.Token, hash string) (tidelock.Token, error)
	// RevokeFamily revokes a token that was not rotated from another, and all
	// that were rotated from it, and returns how many were not revoked before.
	RevokeFamily(ctx context.Context, first tidelock.TokenID) (int, error)
}

// AuthenticateToRotate is Authenticate for requests to rotate a token. Whoever
// offers one that was revoked may have stolen it, or was robbed: all that was
// rotated from it is revoked, and both have to ask for a new one.
func (f *Forge) AuthenticateToRotate(ctx context.Context, secret tidelock.Secret, from string) (Principal, error) {
	p, err := f.Authenticate(ctx, secret)
	if tidelock.KindOf(err) != tidelock.Unauthenticated {
		return p, err
	}
	token, lookErr := f.store.TokenByHash(ctx, hashOf(secret))
	switch {
	case tidelock.KindOf(lookErr) == tidelock.NotFound:
		return Principal{}, err
	case lookErr != nil:
		return Principal{}, fmt.Errorf("look up a token: %w", lookErr)
	case token.Revoked:
		if err := f.revokeFamily(ctx, Principal{}.Via(from), token); err != nil {
			return Principal{}, err
		}
	}
	return Principal{}, err
}

// RotatePersonalToken replaces a personal token of the caller, or anybody's for
// an administrator, by one that differs in its secret and expiry alone; the old
// one ends. A zero expiry is a week from now.
func (f *Forge) RotatePersonalToken(ctx context.Context, p Principal, id tidelock.TokenID, expires time.Time) (tidelock.Token, tidelock.Secret, error) {
	token, err := f.personalToken(ctx, p, id, RotateOwnToken)
	if err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	return f.rotate(ctx, p, token, expires)
}

// RotateTokenOf replaces an access token of a project or group likewise. Its
// bot, and what the bot is a member of, stay.
func (f *Forge) RotateTokenOf(ctx context.Context, p Principal, t Target, kind tidelock.TokenKind, id tidelock.TokenID, expires time.Time) (tidelock.Token, tidelock.Secret, error) {
	token, err := f.tokenOf(ctx, p, t, kind, id, t.pick(ManageTokens, ManageGroupTokens))
	if err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	if p.Token != nil && p.Token.Kind != tidelock.PersonalToken {
		return tidelock.Token{}, tidelock.Secret{}, tidelock.Errorf(tidelock.Denied, "a %s token can rotate only itself; use a personal token", p.Token.Kind)
	}
	// The answer is as good as the bot: whoever gets it must have its level.
	if err := f.mayGive(ctx, p, t, token.Level); err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	if err := f.mayTake(ctx, p, t, token.User); err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	return f.rotate(ctx, p, token, expires)
}

// RotateSelf replaces the very token that the caller used, which must be of a
// kind. For a project or group token, idOrPath must name what it was made for;
// nothing else is looked up.
func (f *Forge) RotateSelf(ctx context.Context, p Principal, kind tidelock.TokenKind, idOrPath string, expires time.Time) (tidelock.Token, tidelock.Secret, error) {
	if err := f.Allow(ctx, p, RotateSelf, OnForge); err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	if p.Token == nil || p.Token.Kind != kind {
		return tidelock.Token{}, tidelock.Secret{}, tidelock.Errorf(tidelock.Invalid, "only a %s token can rotate itself here", kind)
	}
	on, err := f.holderOf(ctx, *p.Token)
	if err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	if on.place() != onForge && !on.named(idOrPath) {
		return tidelock.Token{}, tidelock.Secret{}, on.notFound()
	}
	return f.rotate(ctx, p, *p.Token, expires)
}

// named reports whether an id or full path is the target's.
func (t Target) named(idOrPath string) bool {
	if id, ok := number(idOrPath); ok {
		return t.holder() == tidelock.Holder{Project: tidelock.ProjectID(id)} || t.holder() == tidelock.Holder{Namespace: tidelock.NamespaceID(id)}
	}
	return strings.EqualFold(strings.Trim(idOrPath, "/"), t.fullPath())
}

func (f *Forge) rotate(ctx context.Context, p Principal, old tidelock.Token, expires time.Time) (tidelock.Token, tidelock.Secret, error) {
	now := f.now().UTC()
	if old.Revoked {
		if err := f.revokeFamily(ctx, p, old); err != nil {
			return tidelock.Token{}, tidelock.Secret{}, err
		}
		return tidelock.Token{}, tidelock.Secret{}, errSpent()
	}
	if !old.Active(now) {
		return tidelock.Token{}, tidelock.Secret{}, tidelock.Errorf(tidelock.Unauthenticated, "the token has expired; make a new one")
	}
	if expires.IsZero() {
		expires = now.Add(rotatedTokenLife).Truncate(24 * time.Hour)
	}
	if err := checkExpiry(old.Kind, expires, now); err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	on, err := f.holderOf(ctx, old)
	if err != nil {
		return tidelock.Token{}, tidelock.Secret{}, err
	}
	next := old
	next.ID, next.CreatedAt, next.ExpiresAt, next.LastUsed = 0, now, expires, time.Time{}
	next.Creator, _ = p.ids()
	secret := newSecret(prefixAccess, 32)
	var made tidelock.Token
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		if made, err = f.store.RotateToken(ctx, old.ID, next, hashOf(secret)); err != nil {
			return change{}, err
		}
		return change{act: "token rotated", on: on, subject: tokenSubject(old), detail: fmt.Sprintf("now token %d, %s", made.ID, tokenDetail(made))}, nil
	})
	if tidelock.KindOf(err) == tidelock.Conflict { // another rotation was faster: no reuse, both began with a good token
		return tidelock.Token{}, tidelock.Secret{}, errSpent()
	}
	if err != nil {
		return tidelock.Token{}, tidelock.Secret{}, fmt.Errorf("rotate token %d: %w", old.ID, err)
	}
	f.log.InfoContext(ctx, "token rotated", "token", old.ID, "now", made.ID, "by", next.Creator)
	return made, secret, nil
}

// revokeFamily ends what is left of a revoked token's family.
func (f *Forge) revokeFamily(ctx context.Context, p Principal, token tidelock.Token) error {
	on, err := f.holderOf(ctx, token)
	if err != nil {
		return err
	}
	// Most often nothing is left; then nothing changes, and nothing is noted.
	live, _, err := f.store.Tokens(ctx, tidelock.TokenFilter{Family: token.Line(), Revoked: new(false)}, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil || len(live) == 0 {
		return err
	}
	var revoked int
	err = f.audited(ctx, p, func(ctx context.Context) (change, error) {
		var err error
		if revoked, err = f.store.RevokeFamily(ctx, token.Line()); err != nil {
			return change{}, err
		}
		return change{
			act: "token family revoked", on: on, subject: tokenSubject(token),
			detail: fmt.Sprintf("it was rotated or revoked, and used again to rotate; revoked %d", revoked),
		}, nil
	})
	if err != nil {
		return fmt.Errorf("revoke the family of token %d: %w", token.ID, err)
	}
	f.log.WarnContext(ctx, "token used again after it was rotated", "token", token.ID, "revoked", revoked, "from", p.From)
	return nil
}

func errSpent() error {
	return tidelock.Errorf(tidelock.Unauthenticated, "the token was revoked; make a new one")
}
