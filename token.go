package tidelock

import (
	"cmp"
	"log/slog"
	"slices"
	"time"
)

type TokenID int64

// A TokenKind is one of GitLab's four kinds of token that this forge issues;
// agents' tokens are apart, see AgentToken.
type TokenKind string

const (
	PersonalToken TokenKind = "personal" // acts as its user
	ProjectToken  TokenKind = "project"  // acts as a bot that is a member of one project
	GroupToken    TokenKind = "group"    // acts as a bot that is a member of one group
	DeployToken   TokenKind = "deploy"   // acts for nobody, on one project or group
)

// A Scope is what a token may be used for, in GitLab's words.
type Scope string

const (
	ScopeAPI             Scope = "api"
	ScopeReadAPI         Scope = "read_api"
	ScopeReadUser        Scope = "read_user"
	ScopeReadRepository  Scope = "read_repository"
	ScopeWriteRepository Scope = "write_repository"
	ScopeReadRegistry    Scope = "read_registry"
	ScopeWriteRegistry   Scope = "write_registry"
	ScopeK8sProxy        Scope = "k8s_proxy"
	ScopeSelfRotate      Scope = "self_rotate"
	ScopeAdminMode       Scope = "admin_mode"
	ScopeSudo            Scope = "sudo"
)

// A Token is a credential without its secret, of which only a hash is kept.
type Token struct {
	ID        TokenID
	Family    TokenID // the first of the tokens it was rotated from; 0 when it was not
	Kind      TokenKind
	Name      string
	User      UserID // who it acts as; 0 for deploy tokens
	Holder           // what a project, group or deploy token is for; zero for personal ones
	Username  string // deploy tokens: the user name to give with it
	Level     AccessLevel
	Scopes    []Scope
	Creator   UserID
	CreatedAt time.Time
	ExpiresAt time.Time // zero for never
	LastUsed  time.Time // zero for never; written at most once a minute
	Revoked   bool
}

// Line is the id by which a token and all that were rotated from it are known.
func (t Token) Line() TokenID { return cmp.Or(t.Family, t.ID) }

// Has reports whether the token carries any of the scopes.
func (t Token) Has(scopes ...Scope) bool {
	return slices.ContainsFunc(scopes, func(s Scope) bool { return slices.Contains(t.Scopes, s) })
}

// Active reports whether the token is good at a time.
func (t Token) Active(now time.Time) bool {
	return !t.Revoked && (t.ExpiresAt.IsZero() || now.Before(t.ExpiresAt))
}

// A Secret is the clear text of a credential. It prints as a placeholder, in
// logs and in formatted text alike; Reveal is the only way to its value.
type Secret struct{ value string }

// NewSecret wraps a clear text.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal returns the clear text.
func (s Secret) Reveal() string { return s.value }

func (s Secret) String() string       { return "[secret]" }
func (s Secret) GoString() string     { return "[secret]" }
func (s Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }
