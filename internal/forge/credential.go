package forge

import (
	"context"
	"fmt"

	"tidelock.dev"
)

// A Credential names that with which somebody signed in: the id of a token,
// never the secret. The zero value is nobody's.
type Credential struct {
	Token      tidelock.TokenID
	AgentToken tidelock.AgentTokenID
}

// Recall finds who a credential stands for now that was good before. One that
// was revoked or has expired since, or whose user was blocked, is
// Unauthenticated.
func (f *Forge) Recall(ctx context.Context, c Credential) (Principal, error) {
	switch {
	case c.Token != 0:
		token, err := f.store.Token(ctx, c.Token)
		if tidelock.KindOf(err) == tidelock.NotFound {
			return Principal{}, errBadCredential()
		}
		if err != nil {
			return Principal{}, fmt.Errorf("read token %d: %w", c.Token, err)
		}
		return f.bearer(ctx, token)
	case c.AgentToken != 0:
		token, err := f.store.AgentToken(ctx, c.AgentToken)
		if tidelock.KindOf(err) == tidelock.NotFound || err == nil && token.Revoked {
			return Principal{}, errBadCredential()
		}
		if err != nil {
			return Principal{}, fmt.Errorf("read an agent's token %d: %w", c.AgentToken, err)
		}
		agent, err := f.store.Agent(ctx, token.Agent)
		if tidelock.KindOf(err) == tidelock.NotFound {
			return Principal{}, errBadCredential()
		}
		if err != nil {
			return Principal{}, fmt.Errorf("read the agent of token %d: %w", token.ID, err)
		}
		return Principal{Agent: &agent}, nil
	}
	return Principal{}, nil
}
