package tidelock

import "time"

type (
	UserID      int64
	NamespaceID int64
)

// A User is a person, or the bot behind a project or group access token.
type User struct {
	ID        UserID
	Username  string // unique without regard to case
	Name      string
	Email     string
	Admin     bool
	Bot       bool
	Blocked   bool        // a blocked user's tokens are refused
	Namespace NamespaceID // the user's own namespace; 0 for bots
	CreatedAt time.Time
}

// A NamespaceKind tells a group from the namespace that every user has.
type NamespaceKind string

const (
	GroupNamespace NamespaceKind = "group"
	UserNamespace  NamespaceKind = "user"
)

// A Namespace holds projects and, if it is a group, further groups.
type Namespace struct {
	ID          NamespaceID
	Kind        NamespaceKind
	Parent      NamespaceID // 0 at the top
	Path        string      // one segment
	FullPath    string      // segments joined by "/"; unique without regard to case, projects included
	Name        string
	FullName    string // names joined by " / "
	Description string
	Visibility  Visibility
	Owner       UserID // the user of a user namespace; 0 for groups
	CreatedAt   time.Time
}

// An AccessLevel is what a member may do, in GitLab's numbers.
type AccessLevel int

const (
	NoAccess   AccessLevel = 0
	Guest      AccessLevel = 10
	Planner    AccessLevel = 15
	Reporter   AccessLevel = 20
	Developer  AccessLevel = 30
	Maintainer AccessLevel = 40
	Owner      AccessLevel = 50
)

func (l AccessLevel) String() string {
	switch l {
	case NoAccess:
		return "no access"
	case Guest:
		return "guest"
	case Planner:
		return "planner"
	case Reporter:
		return "reporter"
	case Developer:
		return "developer"
	case Maintainer:
		return "maintainer"
	case Owner:
		return "owner"
	}
	return "unknown"
}

// Valid reports whether l can be given to a member.
func (l AccessLevel) Valid() bool {
	switch l {
	case Guest, Planner, Reporter, Developer, Maintainer, Owner:
		return true
	}
	return false
}

// A Holder is what a member belongs to or a token is made for: exactly one of
// its fields is set.
type Holder struct {
	Project   ProjectID
	Namespace NamespaceID
}

// A Member gives a user an access level in a project or a group; a group's
// members have it in everything below the group.
type Member struct {
	Holder
	User      UserID
	Level     AccessLevel
	ExpiresAt time.Time // zero for never
	CreatedAt time.Time
}

// A Visibility says who may see a project or group, in GitLab's numbers.
type Visibility int

const (
	Private      Visibility = 0  // members
	InternalOnly Visibility = 10 // everyone signed in
	Public       Visibility = 20 // everyone
)

func (v Visibility) String() string {
	switch v {
	case InternalOnly:
		return "internal"
	case Public:
		return "public"
	}
	return "private"
}

// ParseVisibility reads GitLab's word for a visibility.
func ParseVisibility(s string) (Visibility, error) {
	switch s {
	case "private":
		return Private, nil
	case "internal":
		return InternalOnly, nil
	case "public":
		return Public, nil
	}
	return Private, FieldErrorf(Invalid, "visibility", "does not have a valid value")
}

// A Page asks for part of a list: pages count from 1, and PerPage 0 asks for
// everything.
type Page struct {
	Number  int
	PerPage int
}
