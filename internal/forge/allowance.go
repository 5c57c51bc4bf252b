package forge

import "tidelock.dev/internal/limit"

// Allowance says with whose requests the principal's are counted when they are
// limited: a user's all together, those of a deploy token, deploy key or agent by
// itself, and anonymous ones with others from the same address.
func (p Principal) Allowance(remote string) limit.Key {
	switch {
	case p.User != nil:
		return limit.User(p.User.ID)
	case p.Token != nil:
		return limit.Token(p.Token.ID)
	case p.Key != nil:
		return limit.SSHKey(int64(p.Key.ID))
	case p.Agent != nil:
		return limit.Agent(p.Agent.ID)
	}
	return limit.Address(remote)
}
