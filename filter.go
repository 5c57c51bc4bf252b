package tidelock

import "time"

// A UserFilter narrows a list of users; zero fields do not.
type UserFilter struct {
	Username string // exact, without regard to case
	Search   string // in username or name
	NoBots   bool
}

// A NamespaceFilter narrows a list of namespaces; zero fields do not.
type NamespaceFilter struct {
	Kind        NamespaceKind
	Parent      NamespaceID // direct children of
	Descendants NamespaceID // anything below
	TopLevel    bool
	Search      string // in path or name
	// VisibleTo keeps what the viewer may see; nil keeps all.
	VisibleTo *Viewer
}

// A ProjectFilter narrows a list of projects; zero fields do not.
type ProjectFilter struct {
	Namespace  NamespaceID // directly inside
	Below      NamespaceID // inside it or anything below
	WithShared bool        // with Namespace or Below: also what is shared with them
	SharedWith NamespaceID // shared with exactly this group
	Search     string      // in path or name
	Visibility *Visibility
	Archived   *bool
	Member     UserID      // has any access level
	MinLevel   AccessLevel // with Member
	Owner      UserID      // in this user's own namespace
	IDAfter    ProjectID
	OrderBy    string // id (default), name, path, created_at, updated_at
	Descending bool
	VisibleTo  *Viewer // nil keeps all
}

// A Viewer is whom a list is made for: anonymous sees what is public, a user
// also what is internal or what it is a member of (by a group above too).
type Viewer struct {
	User UserID // 0: anonymous
}

// A TokenFilter narrows a list of tokens; zero fields do not.
type TokenFilter struct {
	Kind    TokenKind
	User    UserID
	Holder  Holder
	Active  *bool
	Now     time.Time // for Active
	Revoked *bool
	Family  TokenID // it and all that were rotated from it
	Search  string  // in the name

	// A token that was never used, or never expires, is outside all spans of
	// that kind.
	Created, Used, Expires Span

	OrderBy    string // id (default), name, created_at, last_used_at, expires_at
	Descending bool
}

// A VariableFilter narrows the list of a holder's variables; zero fields do
// not.
type VariableFilter struct {
	Holder
	Key   string
	Scope *string // exact
}

// A Span is a stretch of time; a zero end is open.
type Span struct {
	Since  time.Time // at or after
	Before time.Time
}

// A PushFilter narrows a list of pushes; zero fields do not.
type PushFilter struct {
	Project   ProjectID
	Commit    CommitID // some update's New or Commit, or that of the artifact
	VisibleTo *Viewer
}

// An AgentFilter narrows a list of agents; zero fields do not.
type AgentFilter struct {
	Project ProjectID
	Name    string // exact
}

// An AnnouncementFilter narrows a list of announcements; zero fields do not.
type AnnouncementFilter struct {
	Agent   AgentID
	Source  SourceID
	Project ProjectID
	Commit  CommitID
	Digest  Digest
	Push    PushID
	Latest  bool // only the newest number of each source
}
