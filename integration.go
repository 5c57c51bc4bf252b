package tidelock

import (
	"net/url"
	"time"
)

type (
	IntegrationID int64
	NoticeID      int64
)

// An IntegrationKind says whom an integration tells, in GitLab's words.
type IntegrationKind string

// Slack is any endpoint that takes Slack's incoming webhooks, such as
// Mattermost's and Rocket.Chat's.
const Slack IntegrationKind = "slack"

// A Branches says of which branches somebody wants to hear. Tags are always
// told of.
type Branches string

const (
	EveryBranch        Branches = "all"
	DefaultBranch      Branches = "default"
	ProtectedBranches  Branches = "protected"
	DefaultOrProtected Branches = "default_and_protected"
)

// An Integration tells a chat of a project's syncs that failed, and of those
// that recovered. There is at most one of a kind in a project.
type Integration struct {
	ID       IntegrationID
	Project  ProjectID
	Kind     IntegrationKind
	Hook     HookID // by which it is called
	URL      Secret // whoever knows it may write there
	Username string // under which messages appear; "" leaves it to the receiver
	Channel  string // "" leaves it to the receiver

	Pipelines         bool   // tells of the syncs that are jobs of a pipeline
	PipelineChannel   string // instead of Channel
	Deployments       bool   // tells of the syncs that are deployments: they are the same
	DeploymentChannel string
	OnlyBroken        bool // leaves out what recovered
	Branches          Branches
	// Unused are further kinds of events that it asks for and that never are
	// told, such as "push"; they are kept so that clients read what they wrote.
	Unused []string

	Failures  int       // calls in a row that failed
	HeldUntil time.Time // see Hook
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Active reports whether there is anything that it tells.
func (i Integration) Active() bool { return i.Pipelines || i.Deployments }

// To is the channel that messages go to; "" leaves it to the receiver.
func (i Integration) To() string {
	switch {
	case i.Pipelines && i.PipelineChannel != "":
		return i.PipelineChannel
	case i.Deployments && i.DeploymentChannel != "":
		return i.DeploymentChannel
	}
	return i.Channel
}

// Host is where it calls, as people may see it.
func (i Integration) Host() string {
	u, err := url.Parse(i.URL.Reveal())
	if err != nil {
		return ""
	}
	return u.Host
}

// A Notice says that a rollout failed or succeeded. It is written with that
// fact, and removed when it was told or is not worth telling.
type Notice struct {
	ID          NoticeID
	Project     ProjectID
	Agent       AgentID
	Applier     ObjectID
	Commit      CommitID
	Ref         RefName // "" when unknown
	Environment string
	State       RolloutState // RolloutFailed or RolloutSuccess
	Reason      string
	Message     string
	At          time.Time
}

// Told is what an integration last told of one applier.
type Told struct {
	Integration IntegrationID
	Agent       AgentID
	Applier     ObjectID
	Commit      CommitID
	Causes      []string  // for which the commit was said to have failed
	FailedAt    time.Time // since when it is known to fail; zero when it recovered
	At          time.Time // when it was told
}
