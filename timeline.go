package tidelock

import "time"

// A HopKind names a step on a commit's way from a push into a cluster.
type HopKind string

// The hops, in the order in which they come about.
const (
	HopAccepted  HopKind = "accepted"  // the forge recorded the push
	HopPackaged  HopKind = "packaged"  // an artifact was made of it
	HopAnnounced HopKind = "announced" // the agent had word of it
	HopTriggered HopKind = "triggered" // the agent asked Flux to look
	HopFetched   HopKind = "fetched"   // the source had it
	HopApplied   HopKind = "applied"   // the applier had brought it into the cluster
	HopHealthy   HopKind = "healthy"   // and all that it brought was healthy
	HopReported  HopKind = "reported"  // the end was written to the commit
)

// HopKinds are all of them, in order.
var HopKinds = []HopKind{
	HopAccepted, HopPackaged, HopAnnounced, HopTriggered, HopFetched, HopApplied, HopHealthy, HopReported,
}

// A HopState is what became of a hop.
type HopState string

const (
	HopDone       HopState = "done"
	HopWaiting    HopState = "waiting"    // it is the next to come
	HopFailed     HopState = "failed"     // it was tried, and Message says why it could not be
	HopSuperseded HopState = "superseded" // another commit came before it
	HopUnknown    HopState = "unknown"    // nobody tells whether it came about
	HopSkipped    HopState = "skipped"    // there was nothing to do
)

// A Hop is one step. All times are on the server's clock.
type Hop struct {
	Kind    HopKind
	State   HopState
	At      time.Time     // zero for not yet
	After   time.Duration // since the commit was accepted, for this place
	Took    time.Duration // since the hop before
	Message string        // bounded, printable

	// Of accepted and packaged.
	Push        PushID
	By          UserID // who pushed; 0 when unknown
	Refs        []RefName
	Image       ImageID // that the push moved a tag of; 0 for a push of commits
	Tag         string
	Digest      Digest // of the artifact
	Application string // that was packaged
}

// A Place is where a commit goes: one applier of one agent, or, where nothing
// is known to apply it yet, one source.
type Place struct {
	Agent       AgentID
	AgentName   string
	Source      SourceID
	Applier     ObjectID // "" where only the source is known
	Environment string
	Ref         RefName
	Digest      Digest // of the artifact that carries the commit; "" for Git
	Rollout     RolloutID
	State       RolloutState // "" without an applier
	Newest      bool         // the applier knows no later commit
	Message     string
	AcceptedAt  time.Time
	Hops        []Hop // in order of time
}

// At is when a hop was done; zero when it was not.
func (p Place) At(kind HopKind) time.Time {
	for _, h := range p.Hops {
		if h.Kind == kind && h.State == HopDone {
			return h.At
		}
	}
	return time.Time{}
}

// A Timeline is the way of one commit, as far as it is remembered.
type Timeline struct {
	Project ProjectID
	Commit  CommitID

	Title      string // of the commit's message; "" when the repository has it no longer
	Author     string
	AuthoredAt time.Time

	// Carrier is the newest commit of the push that brought Commit, when it
	// is another one: what follows is told of it.
	Carrier CommitID

	AcceptedAt time.Time // of the first push; zero when none is remembered
	Hops       []Hop     // every push and packaging, in order of time
	Places     []Place   // in order of environment, agent and object
	More       int       // places beyond those listed
	Hidden     bool      // the asker may not see places
}

// A TracedRollout is a rollout of which hops have to go into the trace of its
// push.
type TracedRollout struct {
	Rollout
	Hops []HopKind // applied, healthy, reported: those that came about
}

// A HistorySort is a sort of record of what happened.
type HistorySort string

// The sorts in the order in which they are forgotten: a push stays for as long
// as something tells of it.
const (
	HistoryRollouts      HistorySort = "rollouts"
	HistoryAnnouncements HistorySort = "announcements"
	HistoryBuilds        HistorySort = "builds"
	HistoryPushes        HistorySort = "pushes"
)
