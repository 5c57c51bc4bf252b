package tidelock

import (
	"net/url"
	"regexp"
	"time"
)

type (
	HookID      int64
	HookEventID int64
	DeliveryID  int64
)

// A HookKind is a kind of event that hooks are called for, in GitLab's words.
type HookKind string

const (
	HookPush       HookKind = "push"     // a branch was made, moved or deleted
	HookTagPush    HookKind = "tag_push" // a tag was
	HookPipeline   HookKind = "pipeline"
	HookDeployment HookKind = "deployment"

	// HookSync is what integrations are called for; no other hook asks for it.
	HookSync HookKind = "sync"
)

// HookKinds lists all kinds that hooks may ask for.
var HookKinds = []HookKind{HookPush, HookTagPush, HookPipeline, HookDeployment}

// HookKind is the kind of event that the update is; "" for refs that are
// neither branches nor tags.
func (u RefUpdate) HookKind() HookKind {
	if _, ok := u.Ref.Branch(); ok {
		return HookPush
	}
	if _, ok := u.Ref.Tag(); ok {
		return HookTagPush
	}
	return ""
}

// A BranchMatch says how the branch filter of a hook is read.
type BranchMatch string

const (
	AllBranches    BranchMatch = "all_branches" // there is no filter
	BranchWildcard BranchMatch = "wildcard"     // a name, in which * stands for anything
	BranchRegex    BranchMatch = "regex"        // RE2, anywhere in the name
)

// A Hook is a URL that is called when something happens in a project. Its
// URL, token and headers may be credentials: they are sealed where they are
// kept, and never logged.
type Hook struct {
	ID          HookID
	Project     ProjectID
	URL         string // called exactly as it is; user info becomes Basic authentication
	Name        string
	Description string

	Kinds []HookKind // what it is called for, in the order of HookKinds
	// Unused are further kinds that it asks for and that never happen here,
	// such as "issues"; they are kept so that clients read what they wrote.
	Unused       []string
	BranchFilter string // of pushes to branches; "" with AllBranches
	BranchMatch  BranchMatch

	Token      Secret       // sent as X-Gitlab-Token; empty for none
	Headers    []HookHeader // sent with every call, in order of name
	SkipVerify bool         // takes any certificate of an https URL

	CreatedAt time.Time

	// Failures counts the calls in a row that failed. After some of them the
	// hook is left alone until HeldUntil, and deliveries wait; any change of
	// the hook ends that.
	Failures  int
	HeldUntil time.Time // zero for not held

	// Integration is whose hook it is; "" for one of the project's own.
	Integration IntegrationKind
}

// Wants reports whether the hook is called for a kind of event.
func (h Hook) Wants(kind HookKind) bool {
	for _, k := range h.Kinds {
		if k == kind {
			return true
		}
	}
	return false
}

// WantsBranch reports whether the hook's filter lets a branch through.
func (h Hook) WantsBranch(branch string) bool {
	switch {
	case h.BranchFilter == "" || h.BranchMatch == AllBranches:
		return true
	case h.BranchMatch == BranchRegex:
		match, err := regexp.MatchString(h.BranchFilter, branch)
		return match && err == nil // it was compiled before it was kept
	}
	return matchWildcard(h.BranchFilter, branch)
}

// ShownURL is the hook's URL as people may see it: user info is masked, and of
// an integration all but the host.
func (h Hook) ShownURL() string {
	u, err := url.Parse(h.URL)
	if err != nil {
		return ""
	}
	if h.Integration != "" {
		return u.Scheme + "://" + u.Host + "/xxxxx"
	}
	if u.User != nil {
		u.User = url.User("xxxxx")
		return u.String()
	}
	return h.URL
}

// A HookHeader is a header that a hook's owner adds to its calls.
type HookHeader struct {
	Name  string
	Value Secret
}

// A HookEvent says that something happened of which hooks may want to know.
// It is written with the fact itself, and replaced by deliveries soon after.
type HookEvent struct {
	ID         HookEventID
	Project    ProjectID
	Kind       HookKind
	Push       PushID       // of pushes
	Pipeline   PipelineID   // of pipelines
	Deployment DeploymentID // of deployments
	State      string       // the pipeline or deployment had reached then
	At         time.Time
}

// A DeliveryState says how far a delivery is.
type DeliveryState string

const (
	DeliveryWaiting DeliveryState = "waiting" // to be sent, or sent again
	DeliveryDone    DeliveryState = "delivered"
	DeliveryFailed  DeliveryState = "failed" // given up
)

// A Delivery is one body on its way to one hook. It is sent at least once.
type Delivery struct {
	ID      DeliveryID
	Hook    HookID
	Kind    HookKind
	Ref     RefName // what it tells of; those of one hook and ref keep their order while they can
	UUID    string  // the same on every attempt, so that receivers can tell repetitions
	Event   string  // the UUID of the event, the same for all hooks
	Body    []byte  // JSON
	Test    bool    // asked for by somebody, not by an event
	State   DeliveryState
	Tries   int
	NextAt  time.Time // when it is tried next, while it waits
	Attempt Attempt   // the last one

	CreatedAt time.Time
}

// An Attempt is one call of a hook and what came of it.
type Attempt struct {
	At       time.Time // zero: there was none yet
	Took     time.Duration
	URL      string            // as shown to people: without user info
	Request  map[string]string // headers as sent, credentials redacted
	Status   int               // 0: no answer
	Response map[string]string // headers as received
	Answer   string            // the beginning of the body
	Error    string            // what went wrong; "" for an answer, whatever it says
}

// Delivered reports whether the receiver took what was sent.
func (a Attempt) Delivered() bool { return a.Error == "" && a.Status >= 200 && a.Status <= 299 }

// A Claim asks for deliveries that are due, to send them.
type Claim struct {
	Now   time.Time
	Until time.Time // when others may have what was claimed and not come to an end
	Limit int
	// PerHook bounds what is on its way to one hook at once; to one that fails
	// it is 1.
	PerHook int
	// Yield is how often a delivery must have failed before later ones of its
	// ref no longer wait for it.
	Yield int
}

// A DeliveryFilter narrows a list of deliveries; zero fields do not.
type DeliveryFilter struct {
	Hook       HookID
	FromStatus int // of the last answer; both ends are included
	ToStatus   int
}
