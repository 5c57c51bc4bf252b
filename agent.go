package tidelock

import "time"

type (
	AgentID      int64
	AgentTokenID int64
)

// An Agent is a cluster's connection to the forge. It belongs to its
// configuration project, whose default branch holds
// .gitlab/agents/<name>/config.yaml.
type Agent struct {
	ID        AgentID
	Project   ProjectID // the configuration project
	Name      string    // an RFC 1123 label, at most 63 bytes, unique in its project
	Creator   UserID
	CreatedAt time.Time
}

// An AgentToken authenticates an agent. Only its hash is kept; an agent has
// at most two active ones, so that one can replace the other.
type AgentToken struct {
	ID          AgentTokenID
	Agent       AgentID
	Name        string
	Description string
	Creator     UserID
	CreatedAt   time.Time
	LastUsed    time.Time // zero for never; written at most once a minute
	Revoked     bool
}

// An AgentConfig is what the server knows of an agent's configuration file.
// Good is the last text that was valid ("" for the empty configuration);
// Error says what is wrong with the newest one, "" when nothing is.
type AgentConfig struct {
	Agent      AgentID
	Good       string
	GoodCommit CommitID
	Commit     CommitID // the newest commit looked at
	Error      string
	Warnings   []string // such as keys that are not supported yet
	CheckedAt  time.Time
}

// A Grant lets an agent be told of a project that is neither public nor the
// agent's own. Maintainers of the project give and revoke it.
type Grant struct {
	Project   ProjectID
	Agent     AgentID
	By        UserID
	CreatedAt time.Time
}

// An AgentSession is one live connection of one replica of an agent.
type AgentSession struct {
	Agent             AgentID
	Instance          string // random, made once per agent process
	Server            string // the server that holds it; random, made once per server process
	Token             AgentTokenID
	Version           string
	Commit            string
	PodNamespace      string
	PodName           string
	KubernetesVersion string
	Leader            bool
	ConnectedAt       time.Time
	LastSeen          time.Time
}

// An AgentPresence is when an agent was connected last, by any replica.
type AgentPresence struct {
	Agent    AgentID
	LastSeen time.Time
	Left     string // why the last connection ended; "" while it lasts, or when nobody knows
}

// An AgentSource is what the server knows of one Flux source of an agent,
// whether or not anything was ever announced of it.
type AgentSource struct {
	Agent     AgentID
	Source    SourceID
	Project   ProjectID // 0 when not served
	Spec      RefSpec   // zero when not served
	Image     ImageID   // of sources of images; 0 when not served, or not there
	Ref       RefName   // what spec.ref resolved to; "" when not served
	Wanted    CommitID  // the head of Ref; "" when nothing is there, or not known of an artifact
	Digest    Digest    // the artifact behind Ref, of sources of images
	Revision  string    // status.artifact.revision, as Flux writes it
	Suspended bool
	State     AnnouncementState
	Message   string    // what is wrong; "" for nothing
	Since     time.Time // when State changed last
	UpdatedAt time.Time // when anything of this changed last

	// Refused is the project that the URL names although the agent may not be
	// told of it, 0 for none. It is for the project's side alone: whoever reads
	// the agent must not learn that there is such a project.
	Refused ProjectID
}

// An AnnouncementState is how far the latest announcement of a source came,
// or why there is none.
type AnnouncementState string

const (
	Sent      AnnouncementState = "sent"      // written to the stream, or waiting for one
	Delivered AnnouncementState = "delivered" // the agent has it
	Parked    AnnouncementState = "parked"    // the source is suspended; it waits
	Handled   AnnouncementState = "handled"   // Flux has acted on our request
	Failed    AnnouncementState = "failed"    // Flux has acted and could not; tried again with back-off
	Converged AnnouncementState = "converged" // the artifact is the head
	Gone      AnnouncementState = "gone"      // the ref was deleted; said once
	Closed    AnnouncementState = "closed"    // a newer one took its place

	// Of sources only.
	NotServed  AnnouncementState = "not served" // its URL leads to no project that the agent may be told of
	Unresolved AnnouncementState = "unresolved" // nothing matches its ref
	Held       AnnouncementState = "held"       // the artifact waits for a report that a rule of its project wants
)

// Goal is what the source should have; none when it is gone.
func (a Announcement) Goal() Goal { return Goal{Ref: a.Ref, Commit: a.Commit, Digest: a.Digest} }

// An Announcement tells an agent that the head of a source's ref changed.
// Numbers count per agent and source, and a newer one closes older ones.
// All times are on the server's clock; zero means not yet.
type Announcement struct {
	Agent   AgentID
	Source  SourceID
	Number  int64
	Project ProjectID
	Ref     RefName
	Commit  CommitID // empty when gone, or not known of an artifact
	Digest  Digest   // of an artifact; empty for a commit, or when gone
	Push    PushID   // what moved the head; 0 when unknown
	Trace   string   // of Push

	State   AnnouncementState
	Message string // why it is parked, failed or closed

	AcceptedAt  time.Time // the push was recorded; zero when Push is
	SentAt      time.Time // the server wrote it
	AnnouncedAt time.Time // the agent had it
	CalledAt    time.Time // the first request to the receiver left the agent
	AnsweredAt  time.Time // the receiver answered it
	HandledAt   time.Time // Flux acted on it
	FetchedAt   time.Time // the source's artifact showed the commit
	Via         string    // "receiver" or "annotation"; what triggered last
	Attempts    int
}
