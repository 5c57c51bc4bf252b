package forge

import (
	"context"
	"time"

	"tidelock.dev"
)

// Store is what the rules remember. Each method is one act and one
// transaction. A missing row is an error of kind NotFound, a broken
// uniqueness a FieldError of kind Conflict naming the attribute ("path",
// "username", "name") with the text "has already been taken". Names and paths
// are compared without regard to case and kept as given. Times are UTC, to
// the microsecond; a CreatedAt, UpdatedAt or push's At left zero is now. Lists
// come in order of id, with the total count before paging, and are never nil.
// Ids ascend and are never used again.
//
// Its conformance suite is internal/store/storetest.
type Store interface {
	protectionStore
	auditStore
	environmentStore
	statusStore
	hookStore
	integrationStore
	tokenFamilyStore
	shareStore
	variableStore
	userStore
	keyStore
	imageStore
	blobStore
	reportRuleStore
	buildStore
	observationStore
	rolloutStore
	historyStore
	traceStore

	// Atomically makes all writes that fn does with the context it is given
	// one transaction, and lets its reads see them. fn may run more than once,
	// and must neither start goroutines with that context nor wait for anything
	// but the store.
	Atomically(ctx context.Context, fn func(context.Context) error) error

	// CreateUser makes the user and, unless it is a bot, its namespace, whose
	// path is the username. Paths of namespaces and projects share one space.
	CreateUser(context.Context, tidelock.User) (tidelock.User, error)
	User(context.Context, tidelock.UserID) (tidelock.User, error)
	UserByName(ctx context.Context, username string) (tidelock.User, error)
	Users(context.Context, tidelock.UserFilter, tidelock.Page) ([]tidelock.User, int, error)

	// CreateNamespace makes a group; FullPath and FullName are derived from
	// the parent. The creator becomes its Owner.
	CreateNamespace(context.Context, tidelock.Namespace, tidelock.UserID) (tidelock.Namespace, error)
	Namespace(context.Context, tidelock.NamespaceID) (tidelock.Namespace, error)
	NamespaceByPath(ctx context.Context, fullPath string) (tidelock.Namespace, error)
	Namespaces(context.Context, tidelock.NamespaceFilter, tidelock.Page) ([]tidelock.Namespace, int, error)
	// UpdateNamespace writes the path, name, description and visibility, and
	// the derived paths and names of everything below; every project below
	// keeps its old path as a redirect.
	UpdateNamespace(context.Context, tidelock.Namespace) (tidelock.Namespace, error)
	// DeleteNamespace removes an empty group with its members, tokens and
	// their bots; it is a Conflict while a group or project is inside, and for
	// the namespace of a user.
	DeleteNamespace(context.Context, tidelock.NamespaceID) error

	// CreateProject makes a project; FullPath and FullName are derived from
	// the namespace. The creator becomes its Owner, unless 0. A protected
	// branch row for the default branch (push and merge: Maintainer) is made
	// with it.
	CreateProject(context.Context, tidelock.Project) (tidelock.Project, error)
	Project(context.Context, tidelock.ProjectID) (tidelock.Project, error)
	// ProjectByPath finds a project by its full path or, when no project has
	// that path now, by one it had before.
	ProjectByPath(ctx context.Context, fullPath string) (tidelock.Project, error)
	Projects(context.Context, tidelock.ProjectFilter, tidelock.Page) ([]tidelock.Project, int, error)
	// UpdateProject writes everything but id, namespace, creator and
	// creation; a changed path leaves a redirect behind.
	UpdateProject(context.Context, tidelock.Project) (tidelock.Project, error)
	// MoveProject puts a project into another namespace and leaves a redirect
	// behind.
	MoveProject(context.Context, tidelock.ProjectID, tidelock.NamespaceID) (tidelock.Project, error)
	// DeleteProject removes the row and all that hangs on it, its agents and
	// the bots of its tokens included. What agents of other projects were told
	// of it stays, so that the numbers of a source never start again.
	DeleteProject(context.Context, tidelock.ProjectID) error

	SetMember(context.Context, tidelock.Member) error // adds or changes
	RemoveMember(context.Context, tidelock.Holder, tidelock.UserID) error
	// Members lists the members of exactly the holder, not of its parents.
	Members(context.Context, tidelock.Holder, tidelock.Page) ([]tidelock.Member, int, error)
	// AccessLevel is the highest level a user has in the holder, by itself
	// or by a group above it, at a time; the owner of a user namespace has
	// Owner in it. NoAccess when none; never NotFound.
	AccessLevel(context.Context, tidelock.UserID, tidelock.Holder, time.Time) (tidelock.AccessLevel, error)

	ProtectedBranches(context.Context, tidelock.ProjectID) ([]tidelock.ProtectedBranch, error)
	ProtectBranch(context.Context, tidelock.ProtectedBranch) (tidelock.ProtectedBranch, error)
	UnprotectBranch(ctx context.Context, project tidelock.ProjectID, pattern string) error

	// CreateToken stores a token by the hash of its secret. When bot is not
	// nil, it is created first, made a member of the token's holder at the
	// token's level, and becomes the token's User.
	CreateToken(ctx context.Context, t tidelock.Token, hash string, bot *tidelock.User) (tidelock.Token, error)
	Token(context.Context, tidelock.TokenID) (tidelock.Token, error)
	TokenByHash(ctx context.Context, hash string) (tidelock.Token, error)
	Tokens(context.Context, tidelock.TokenFilter, tidelock.Page) ([]tidelock.Token, int, error)
	RevokeToken(context.Context, tidelock.TokenID) error
	// TouchToken records a use, at most one a minute.
	TouchToken(context.Context, tidelock.TokenID, time.Time) error

	// RecordPush writes the push, unannounced, and moves the heads it names.
	// An update whose head is already where it says writes nothing; a push of
	// only such updates is not stored and has id 0. Each update's Old is
	// replaced by the head's object before it, so that history has no gaps.
	RecordPush(context.Context, tidelock.Push) (tidelock.Push, error)
	Unannounced(ctx context.Context, limit int) ([]tidelock.Push, error) // oldest first
	MarkAnnounced(context.Context, ...tidelock.PushID) error
	// Heads lists a project's heads in order of ref name.
	Heads(context.Context, tidelock.ProjectID) ([]tidelock.Head, error)
	Head(context.Context, tidelock.ProjectID, tidelock.RefName) (tidelock.Head, error)
	Push(context.Context, tidelock.PushID) (tidelock.Push, error)
	// Pushes lists newest first.
	Pushes(context.Context, tidelock.PushFilter, tidelock.Page) ([]tidelock.Push, int, error)

	CreateAgent(context.Context, tidelock.Agent) (tidelock.Agent, error)
	Agent(context.Context, tidelock.AgentID) (tidelock.Agent, error)
	Agents(context.Context, tidelock.AgentFilter, tidelock.Page) ([]tidelock.Agent, int, error)
	DeleteAgent(context.Context, tidelock.AgentID) error

	// CreateAgentToken refuses a third active token with kind Invalid.
	CreateAgentToken(ctx context.Context, t tidelock.AgentToken, hash string) (tidelock.AgentToken, error)
	AgentToken(context.Context, tidelock.AgentTokenID) (tidelock.AgentToken, error)
	AgentTokenByHash(ctx context.Context, hash string) (tidelock.AgentToken, error)
	AgentTokens(context.Context, tidelock.AgentID) ([]tidelock.AgentToken, error) // active ones
	// LiveAgentTokens returns those of the ids that exist and are not revoked.
	LiveAgentTokens(context.Context, []tidelock.AgentTokenID) ([]tidelock.AgentTokenID, error)
	RevokeAgentToken(context.Context, tidelock.AgentTokenID) error
	TouchAgentToken(context.Context, tidelock.AgentTokenID, time.Time) error

	AgentConfig(context.Context, tidelock.AgentID) (tidelock.AgentConfig, error) // the zero value with the id if never saved
	SaveAgentConfig(context.Context, tidelock.AgentConfig) error

	Grant(context.Context, tidelock.Grant) error // again: no error, nothing changes
	RevokeGrant(context.Context, tidelock.ProjectID, tidelock.AgentID) error
	Grants(context.Context, tidelock.ProjectID) ([]tidelock.Grant, error)
	GrantsTo(context.Context, tidelock.AgentID) ([]tidelock.Grant, error) // in order of project
	Granted(context.Context, tidelock.AgentID, tidelock.ProjectID) (bool, error)

	// SaveAgentSession writes by agent and instance, unless that instance has
	// a session with a later ConnectedAt, and that the agent was seen.
	SaveAgentSession(context.Context, tidelock.AgentSession) error
	// RemoveAgentSession removes a session that the server still holds; none
	// is no error.
	RemoveAgentSession(ctx context.Context, agent tidelock.AgentID, instance, server string) error
	// RemoveStaleSessions removes sessions not seen since a time.
	RemoveStaleSessions(ctx context.Context, before time.Time) error
	AgentSessions(ctx context.Context, agent tidelock.AgentID) ([]tidelock.AgentSession, error) // 0: of all agents

	// SaveAgentPresence writes unless the agent was seen later.
	SaveAgentPresence(context.Context, tidelock.AgentPresence) error
	// AgentPresence holds nothing for an agent that was never seen. 0: of all
	// agents, in order of id.
	AgentPresence(ctx context.Context, agent tidelock.AgentID) ([]tidelock.AgentPresence, error)

	// SaveAnnouncements writes each by agent, source and number, and closes
	// older unfinished numbers of the same source: those that have not
	// converged and are not gone. It keeps the newest 100 numbers of a source,
	// and drops those of agents that do not exist.
	SaveAnnouncements(context.Context, ...tidelock.Announcement) error
	// Announcements lists newest first; AcceptedAt is taken from the push.
	Announcements(context.Context, tidelock.AnnouncementFilter, tidelock.Page) ([]tidelock.Announcement, int, error)

	// SaveAgentSources writes sources of one agent and removes others; Since
	// stays while the state does. Those of an agent that does not exist are
	// dropped.
	SaveAgentSources(ctx context.Context, agent tidelock.AgentID, upserts []tidelock.AgentSource, removals []tidelock.SourceID) error
	AgentSources(context.Context, tidelock.AgentID) ([]tidelock.AgentSource, error) // in order of source
	// SourcesOfProject lists, at most limit, those of all agents that lead to a
	// project, also the refused, in order of agent and source.
	SourcesOfProject(ctx context.Context, project tidelock.ProjectID, limit int) ([]tidelock.AgentSource, error)

	// Ping reports whether the store can be read.
	Ping(context.Context) error
}
