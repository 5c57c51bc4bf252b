package agentserver

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
)

const (
	maxSources  = 20_000  // of one agent
	maxSourceID = 600     // a kind, a namespace and a name of Kubernetes
	maxText     = 2048    // a URL, a ref, a revision
	maxNumber   = 1 << 53 // far from overflow, whatever an agent says
	maxExcuse   = 1024    // a message of a Progress
	maxSpan     = 30 * 24 * time.Hour
	maxAttempts = 1 << 20
)

// A source is what a stream knows of one Flux source of its agent.
type source struct {
	id        tidelock.SourceID
	uid       string
	url       string
	path      string // of a project or an image, in lower case; "" when the URL is not ours
	spec      tidelock.RefSpec
	artifact  string            // what Flux has, as it writes it
	revision  tidelock.Revision // the same, read
	suspended bool
	version   int // counts changes of the above

	project tidelock.ProjectID // where the URL leads, whether or not the agent may be told of it

	// The last answer, and whether its Resolution has been sent.
	answered bool
	served   bool
	servedAs tidelock.ProjectID
	wanted   wanted // where it should be, as of then

	// The last announcement that the agent has or that is on its way.
	number int64 // only grows
	told   bool
	goal   tidelock.Goal // none with told: the ref is gone
	sentAt time.Time     // zero when it came before this stream

	delivered int64                  // the number that the agent named last, as its digest has it
	record    *tidelock.Announcement // of number; nil when nothing is known of it
	traced    hopSet                 // of record

	unrecorded *agentrpc.Progress // the last one while there was no record; nil for none
}

// pathOf finds out which project or image the URL of a source names; "" when it
// lies under none of the forge's, or the kind is not known.
func pathOf(urls tidelock.URLSet, kind tidelock.SourceKind, url string) (path string) {
	switch {
	case kind.OfImage():
		path, _ = urls.ImagePath(url)
	case kind == tidelock.GitRepository:
		path, _ = urls.ProjectPath(url)
	}
	return strings.ToLower(path)
}

// mayLeadTo reports whether the source may follow a project of a path, or an
// image below it.
func (s *source) mayLeadTo(project string) bool {
	below, ok := strings.CutPrefix(s.path, project)
	return ok && (below == "" || below[0] == '/' && s.id.Kind().OfImage())
}

// answer notes where the source should be, and reports whether what the agent
// is told of the source as such is new.
func (s *source) answer(w wanted) (isNew bool) {
	as := w.project
	if !w.served {
		as = 0
	}
	isNew = !s.answered || s.served != w.served || s.servedAs != as
	s.answered, s.served, s.servedAs, s.wanted = true, w.served, as, w
	return isNew
}

// A wanted is where a source should be.
type wanted struct {
	project tidelock.ProjectID // 0 when the URL leads nowhere
	served  bool
	settled bool // whether head and gone mean anything
	head    tidelock.Head
	gone    bool   // nothing matches the spec
	held    bool   // head is not to be announced yet
	reason  string // why head is not known, or held
}

// due reports whether an announcement of w has to be made.
func (s *source) due(w wanted) bool {
	switch {
	case !w.served || !w.settled || w.held:
		return false
	case w.gone:
		if s.told {
			return !s.goal.None()
		}
		return !s.revision.None() // something was there once
	case s.told && s.goal.Same(w.head.Goal()):
		return false
	case s.told && s.goal.None():
		return true // it is back
	}
	// An unfinished announcement of something else has to be replaced even if
	// Flux is at the head: the agent would go on asking for the old one.
	return !s.revision.Meets(w.head.Goal()) || s.unfinished()
}

// overtaken reports whether Flux came by itself to something else than what
// was announced last. A tag that then moves back is to be announced again.
func (s *source) overtaken(w wanted) bool {
	return s.told && !s.goal.None() && !s.unfinished() && w.settled && !w.gone &&
		!s.goal.Same(w.head.Goal()) && s.revision.Meets(w.head.Goal())
}

func (s *source) unfinished() bool { return s.record != nil && unfinished(s.record.State) }

func unfinished(state tidelock.AnnouncementState) bool {
	switch state {
	case tidelock.Converged, tidelock.Gone, tidelock.Closed:
		return false
	}
	return true
}

// show tells how things stand with the source; when it came to that is the
// caller's to say. What is not served looks the same whether or not there is
// such a project.
func (s *source) show(agent tidelock.AgentID) tidelock.AgentSource {
	a := tidelock.AgentSource{Agent: agent, Source: s.id, Revision: s.artifact, Suspended: s.suspended}
	w := s.wanted
	if !w.served {
		a.State, a.Message, a.Refused = tidelock.NotServed, "the URL leads to no project that the agent may be told of", w.project
		return a
	}
	goal := w.head.Goal()
	a.Project, a.Ref, a.Wanted, a.Digest = w.project, goal.Ref, goal.Commit, goal.Digest
	a.Spec, a.Image = s.spec, w.head.Image
	if goal.None() {
		a.Ref = refOf(s.id.Kind(), s.spec)
	}
	current := s.record != nil && s.record.State != tidelock.Closed && s.record.Goal().Same(goal)
	switch {
	case s.revision.Meets(goal):
		a.State = tidelock.Converged
	case w.held:
		a.State, a.Message = tidelock.Held, w.reason
	case !goal.None() && s.suspended:
		a.State = tidelock.Parked
		if current {
			a.Message = s.record.Message
		}
	case current:
		a.State, a.Message = s.record.State, s.record.Message
	case goal.None():
		a.State, a.Message = tidelock.Unresolved, excuse(w.reason)
	case s.told && s.goal.Same(goal):
		a.State = tidelock.Delivered // so the agent says
	default:
		a.State = tidelock.Sent // it is about to be
	}
	return a
}

// recall makes up the record of an announcement that the agent has and the
// store does not: the server that sent it ended before it was written. It
// reports whether it did.
func (s *source) recall(agent tidelock.AgentID, w wanted, now time.Time) bool {
	goal := w.head.Goal()
	if s.record != nil || !s.told || s.number == 0 || s.delivered != s.number ||
		!w.served || !w.settled || w.gone || w.held || !s.goal.Same(goal) {
		return false
	}
	a := s.announcement(agent, w, now)
	a.State, a.AnnouncedAt = tidelock.Delivered, now
	if state, known := states[s.unrecorded.GetState()]; known && s.unrecorded.GetNumber() == s.number {
		a.State, a.Message = state, excuse(s.unrecorded.GetMessage())
	}
	if s.revision.Meets(goal) {
		a.State, a.Message = tidelock.Converged, ""
	}
	s.record, s.traced = &a, tracedBefore(a)
	return true
}

// announce moves the source on to its next number.
func (s *source) announce(agent tidelock.AgentID, w wanted, now time.Time) tidelock.Announcement {
	s.number++
	s.told, s.goal, s.sentAt = true, w.head.Goal(), now
	a := s.announcement(agent, w, now)
	s.record, s.traced = &a, 0
	return a
}

// announcement is the record of the source's number, sent to bring it to w.
func (s *source) announcement(agent tidelock.AgentID, w wanted, now time.Time) tidelock.Announcement {
	a := tidelock.Announcement{
		Agent: agent, Source: s.id, Number: s.number, Project: w.project,
		State: tidelock.Sent, SentAt: now,
	}
	if w.gone {
		a.Ref = refOf(s.id.Kind(), s.spec)
	} else {
		a.Ref, a.Commit, a.Digest = w.head.Ref, w.head.Commit, w.head.Digest
		a.Push, a.Trace, a.AcceptedAt = w.head.Push, w.head.Trace, w.head.MovedAt
	}
	return a
}

// refOf names the ref of a spec that resolves to none.
func refOf(kind tidelock.SourceKind, spec tidelock.RefSpec) tidelock.RefName {
	switch {
	case spec.Commit != "" || spec.Digest != "":
		return ""
	case spec.Name != "":
		return tidelock.RefName(spec.Name)
	case spec.SemVer != "":
		return tidelock.TagRef("*")
	case spec.Tag != "":
		return tidelock.TagRef(spec.Tag)
	case spec.Branch != "":
		return tidelock.BranchRef(spec.Branch)
	}
	switch kind {
	case tidelock.OCIRepository:
		return tidelock.TagRef("latest")
	case tidelock.HelmChart, tidelock.ImageRepository:
		return tidelock.TagRef("*")
	}
	return tidelock.BranchRef("master")
}

// change takes over what the agent says of a source. In a complete set its
// word on what it was told counts, too: it may have lost some of it. So it
// does when it names less than it had confirmed before.
func (s *source) change(m *agentrpc.Source, path string, complete bool) {
	s.version++
	if s.uid != m.GetUid() {
		// Another object of the same name: what the old one was told is void.
		s.uid, s.told, s.goal, s.delivered = m.GetUid(), false, tidelock.Goal{}, 0
		complete = true
	}
	ref := m.GetRef()
	spec := tidelock.RefSpec{
		Branch: ref.GetBranch(), Tag: ref.GetTag(), SemVer: ref.GetSemver(), SemVerFilter: ref.GetSemverFilter(),
		Name: ref.GetName(), Commit: ref.GetCommit(), Digest: ref.GetDigest(),
	}
	if s.url != m.GetUrl() || s.spec != spec {
		// The agent does not act any more on what it was told for the old ones.
		s.told, s.goal = false, tidelock.Goal{}
	}
	s.url, s.path, s.spec = m.GetUrl(), path, spec
	s.artifact, s.revision = m.GetRevision(), tidelock.ParseRevision(s.id.Kind(), m.GetRevision())
	s.suspended = m.GetSuspended()

	last := m.GetLastNumber()
	if complete || last > s.number || last < s.delivered {
		s.told, s.sentAt = last > 0, time.Time{}
		s.goal = tidelock.Goal{Commit: tidelock.CommitID(m.GetLastCommit()), Digest: tidelock.Digest(m.GetLastDigest())}
	}
	s.delivered = last
	s.number = max(s.number, last)
	if s.record != nil && s.record.Number != s.number {
		s.record = nil
	}
	if complete && s.told && s.record != nil && s.record.State == tidelock.Converged && !s.revision.None() && !s.revision.Meets(s.goal) {
		// While nobody listened, Flux went on from there by itself.
		s.told, s.goal = false, tidelock.Goal{}
	}
}

// checkSource refuses what no honest agent sends. It bounds what we keep.
func checkSource(m *agentrpc.Source) error {
	switch {
	case !validSourceID(m.GetId()):
		return fmt.Errorf("%q is not the id of a source", shorten(m.GetId()))
	case m.GetLastNumber() < 0 || m.GetLastNumber() > maxNumber:
		return fmt.Errorf("source %s: the number %d is out of range", m.GetId(), m.GetLastNumber())
	case m.GetLastCommit() != "" && tidelock.ValidCommit(tidelock.CommitID(m.GetLastCommit())) != nil:
		return fmt.Errorf("source %s: the last commit is not a commit", m.GetId())
	case m.GetLastDigest() != "" && tidelock.ValidDigest(tidelock.Digest(m.GetLastDigest())) != nil:
		return fmt.Errorf("source %s: the last digest is not a digest", m.GetId())
	}
	ref := m.GetRef()
	for _, text := range []string{
		m.GetUid(), m.GetUrl(), m.GetRevision(), ref.GetBranch(), ref.GetTag(), ref.GetSemver(), ref.GetSemverFilter(),
		ref.GetName(), ref.GetCommit(), ref.GetDigest(),
	} {
		if len(text) > maxText {
			return fmt.Errorf("source %s: a text of %d bytes is too long", m.GetId(), len(text))
		}
	}
	return nil
}

// validSourceID accepts "Kind/namespace/name", of kinds yet to come, too.
func validSourceID(id string) bool {
	parts := strings.Split(id, "/")
	return len(parts) == 3 && len(id) <= maxSourceID && !slices.Contains(parts, "") &&
		!strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// progress writes what the agent reports into the record of its number. Spans
// count from when the agent had the announcement.
func (s *source) progress(p *agentrpc.Progress, now time.Time, roundTrip time.Duration) tidelock.Announcement {
	a := s.record
	if a.AnnouncedAt.IsZero() {
		a.AnnouncedAt = now.Add(-roundTrip / 2)
		if a.AnnouncedAt.Before(a.SentAt) {
			a.AnnouncedAt = a.SentAt
		}
	}
	a.State = states[p.GetState()]
	if a.Goal().None() && a.State == tidelock.Delivered {
		a.State = tidelock.Gone // that was all there was to say
	}
	a.Message = excuse(p.GetMessage())
	for _, at := range []struct {
		field *time.Time
		span  *durationpb.Duration
	}{
		{&a.CalledAt, p.GetCalled()},
		{&a.AnsweredAt, p.GetAnswered()},
		{&a.HandledAt, p.GetHandled()},
		{&a.FetchedAt, p.GetFetched()},
	} {
		if at.span != nil {
			*at.field = a.AnnouncedAt.Add(min(max(at.span.AsDuration(), 0), maxSpan))
		}
	}
	switch p.GetVia() {
	case agentrpc.Progress_VIA_RECEIVER:
		a.Via = "receiver"
	case agentrpc.Progress_VIA_ANNOTATION:
		a.Via = "annotation"
	}
	a.Attempts = int(min(max(p.GetAttempts(), 0), maxAttempts))
	return *a
}

var states = map[agentrpc.Progress_State]tidelock.AnnouncementState{
	agentrpc.Progress_STATE_DELIVERED: tidelock.Delivered,
	agentrpc.Progress_STATE_PARKED:    tidelock.Parked,
	agentrpc.Progress_STATE_HANDLED:   tidelock.Handled,
	agentrpc.Progress_STATE_FAILED:    tidelock.Failed,
	agentrpc.Progress_STATE_CONVERGED: tidelock.Converged,
	agentrpc.Progress_STATE_GONE:      tidelock.Gone,
}

// excuse bounds a message that is kept and shown.
func excuse(text string) string { return said(text, maxExcuse) }

// shorten keeps a stranger's text short in messages.
func shorten(text string) string {
	if len(text) <= 100 {
		return text
	}
	return strings.ToValidUTF8(text[:100], "") + "…"
}
