package forge

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"tidelock.dev"
)

// What one timeline tells at most.
const (
	maxPlaces        = 1000
	maxTrunk         = 200 // pushes, and builds
	maxAnnouncements = 2 * maxPlaces
)

// Timeline tells how one commit went from its push into clusters. It is named
// by its id, in full or short, or by a branch or tag. Who may not read
// deliveries is not told of places.
func (f *Forge) Timeline(ctx context.Context, p Principal, project tidelock.Project, rev string) (tidelock.Timeline, error) {
	if err := f.Allow(ctx, p, ReadHistory, OnProject(project)); err != nil {
		return tidelock.Timeline{}, err
	}
	found, err := f.repos.Repo(project.ID).Commit(ctx, rev)
	missing := tidelock.KindOf(err) == tidelock.NotFound && tidelock.ValidCommit(tidelock.CommitID(rev)) == nil
	if err != nil && !missing {
		return tidelock.Timeline{}, err
	}
	commit := found.ID
	if missing { // from the repository; what happened to it may be remembered
		commit = tidelock.CommitID(rev)
	}
	pushes, listErr := f.pushesOf(ctx, project.ID, commit)
	if listErr != nil {
		return tidelock.Timeline{}, listErr
	}
	if missing && len(pushes) == 0 {
		return tidelock.Timeline{}, err
	}
	t := tidelock.Timeline{
		Project: project.ID, Commit: commit,
		Title: found.Title, Author: found.Author.Name, AuthoredAt: found.Author.When,
	}
	if len(pushes) == 0 {
		if t.Carrier, err = f.carrying(ctx, project.ID, commit); err != nil {
			return tidelock.Timeline{}, err
		}
		if commit = cmp.Or(t.Carrier, commit); t.Carrier != "" {
			if pushes, err = f.pushesOf(ctx, project.ID, commit); err != nil {
				return tidelock.Timeline{}, err
			}
		}
	}
	builds, _, err := f.store.Builds(ctx, tidelock.BuildFilter{Project: project.ID, Commit: commit}, tidelock.Page{Number: 1, PerPage: maxTrunk})
	if err != nil {
		return tidelock.Timeline{}, fmt.Errorf("list builds of commit %s: %w", commit, err)
	}
	trunk := newTrunk(commit, pushes, builds)
	t.AcceptedAt, t.Hops = trunk.began(), trunk.hops()

	switch err := f.Allow(ctx, p, ReadDelivery, OnProject(project)); {
	case unseen(err):
		t.Hidden = true
		return t, nil
	case err != nil:
		return tidelock.Timeline{}, err
	}
	t.Places, t.More, err = f.places(ctx, project.ID, commit, trunk)
	if err != nil {
		return tidelock.Timeline{}, err
	}
	return t, nil
}

// pushesOf lists the newest pushes of a commit, and of artifacts made of it.
func (f *Forge) pushesOf(ctx context.Context, project tidelock.ProjectID, commit tidelock.CommitID) ([]tidelock.Push, error) {
	pushes, _, err := f.store.Pushes(ctx, tidelock.PushFilter{Project: project, Commit: commit}, tidelock.Page{Number: 1, PerPage: maxTrunk})
	if err != nil {
		return nil, fmt.Errorf("list pushes of commit %s: %w", commit, err)
	}
	return pushes, nil
}

// What is looked through for the push that brought a commit which was never
// the newest of one.
const (
	carrierPushes = 1000
	carrierRefs   = 5
)

// carrying finds the newest commit of the first push that brought a commit
// among others; "" when none is remembered.
func (f *Forge) carrying(ctx context.Context, project tidelock.ProjectID, commit tidelock.CommitID) (tidelock.CommitID, error) {
	refs, err := f.repos.Repo(project).RefsContaining(ctx, commit)
	if err != nil || len(refs) == 0 {
		return "", err
	}
	refs = refs[:min(len(refs), carrierRefs)]
	pushes, _, err := f.store.Pushes(ctx, tidelock.PushFilter{Project: project}, tidelock.Page{Number: 1, PerPage: carrierPushes})
	if err != nil {
		return "", fmt.Errorf("list pushes of project %d: %w", project, err)
	}
	type head struct {
		push   tidelock.PushID
		commit tidelock.CommitID
	}
	var first head
	for _, ref := range refs {
		var heads []head // oldest first
		for _, p := range slices.Backward(pushes) {
			for _, u := range p.Updates {
				if u.Ref == ref && u.Commit != "" {
					heads = append(heads, head{p.ID, u.Commit})
				}
			}
		}
		// Heads go forward: once one of them has the commit, those after it have it too.
		var failed error
		i, _ := slices.BinarySearchFunc(heads, true, func(h head, _ bool) int {
			has, err := f.contains(ctx, project, h.commit, commit)
			if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
				failed = err
			}
			if has {
				return 1
			}
			return -1
		})
		if failed != nil {
			return "", failed
		}
		if i < len(heads) && (first.push == 0 || heads[i].push < first.push) {
			first = heads[i]
		}
	}
	return first.commit, nil
}

// A trunk is what happened to a commit before it went to any place.
type trunk struct {
	commit tidelock.CommitID
	pushes []tidelock.Push  // oldest first
	builds []tidelock.Build // oldest first
}

func newTrunk(commit tidelock.CommitID, pushes []tidelock.Push, builds []tidelock.Build) trunk {
	t := trunk{commit, slices.Clone(pushes), slices.Clone(builds)}
	slices.SortFunc(t.pushes, func(a, b tidelock.Push) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(t.builds, func(a, b tidelock.Build) int { return cmp.Compare(a.ID, b.ID) })
	return t
}

// began is when the first push was recorded.
func (t trunk) began() time.Time {
	if len(t.pushes) == 0 {
		return time.Time{}
	}
	return t.pushes[0].At
}

func (t trunk) hops() []tidelock.Hop {
	hops := []tidelock.Hop{}
	for _, p := range t.pushes {
		h := tidelock.Hop{Kind: tidelock.HopAccepted, State: tidelock.HopDone, At: p.At, Push: p.ID, By: p.By}
		if a := p.Artifact; a != nil {
			if a.New == "" {
				continue // a tag that was removed brought nothing
			}
			h.Image, h.Tag, h.Digest = a.Image, a.Tag, a.New
		}
		for _, u := range p.Updates {
			if u.Commit == t.commit { // others went with it to theirs
				h.Refs = append(h.Refs, u.Ref)
			}
		}
		hops = append(hops, h)
	}
	for _, b := range t.builds {
		hops = append(hops, packaged(b))
	}
	slices.SortStableFunc(hops, func(a, b tidelock.Hop) int { return a.At.Compare(b.At) })
	return timed(hops, t.began())
}

// packaged is the hop that a build was.
func packaged(b tidelock.Build) tidelock.Hop {
	h := tidelock.Hop{
		Kind: tidelock.HopPackaged, State: tidelock.HopDone, At: b.CreatedAt, Push: b.Push,
		Refs: []tidelock.RefName{b.Ref}, Digest: b.Digest, Application: b.Application,
	}
	switch b.State {
	case tidelock.StatusFailed:
		h.State = tidelock.HopFailed
		var words []string
		for _, finding := range b.Findings {
			if !finding.Warning {
				words = append(words, finding.String())
			}
		}
		h.Message = clip(strings.Join(words, "; "))
	case tidelock.StatusSkipped:
		h.State = tidelock.HopSkipped
	}
	return h
}

// clip bounds a message that may hold what others wrote.
func clip(message string) string { return tidelock.Printable(message, 4<<10) }

// timed says of each hop how long it was after the beginning, and after the
// hop before it.
func timed(hops []tidelock.Hop, began time.Time) []tidelock.Hop {
	before := began
	for i, h := range hops {
		if h.At.IsZero() {
			continue
		}
		if !began.IsZero() {
			hops[i].After = max(0, h.At.Sub(began))
		}
		if !before.IsZero() {
			hops[i].Took = max(0, h.At.Sub(before))
		}
		before = h.At
	}
	return hops
}

// push is the one with an id.
func (t trunk) push(id tidelock.PushID) (tidelock.Push, bool) {
	i := slices.IndexFunc(t.pushes, func(p tidelock.Push) bool { return p.ID == id })
	if i < 0 {
		return tidelock.Push{}, false
	}
	return t.pushes[i], true
}

// build is the one that made an artifact; of several the last that was done by
// the time of its push.
func (t trunk) build(digest tidelock.Digest) (tidelock.Build, bool) {
	for _, b := range slices.Backward(t.builds) {
		if digest != "" && b.Digest == digest && b.State == tidelock.StatusSuccess {
			return b, true
		}
	}
	return tidelock.Build{}, false
}

// places tells, of everything that a commit was announced to or rolled out by,
// how far it came there.
func (f *Forge) places(ctx context.Context, project tidelock.ProjectID, commit tidelock.CommitID, t trunk) (places []tidelock.Place, more int, err error) {
	announcements, err := f.announcedOf(ctx, project, commit, t)
	if err != nil {
		return nil, 0, err
	}
	rollouts, total, err := f.store.Rollouts(ctx, tidelock.RolloutFilter{Project: project, Commit: commit}, tidelock.Page{Number: 1, PerPage: maxPlaces})
	if err != nil {
		return nil, 0, fmt.Errorf("list rollouts of commit %s: %w", commit, err)
	}
	applied := map[sourceOf]bool{}
	for _, r := range rollouts {
		source := sourceOf{r.Agent, r.Source}
		applied[source] = true
		places = append(places, placeOf(t, announcements[source].of(r.Push), &r))
	}
	for source, list := range announcements {
		if !applied[source] {
			places = append(places, placeOf(t, list.of(0), nil))
		}
	}
	names := map[tidelock.AgentID]string{}
	for i, p := range places {
		name, known := names[p.Agent]
		if !known {
			switch agent, err := f.store.Agent(ctx, p.Agent); {
			case err == nil:
				name = agent.Name
			case tidelock.KindOf(err) != tidelock.NotFound:
				return nil, 0, fmt.Errorf("read agent %d: %w", p.Agent, err)
			}
			names[p.Agent] = name
		}
		places[i].AgentName = name
	}
	slices.SortFunc(places, func(a, b tidelock.Place) int {
		return cmp.Or(cmp.Compare(a.Environment, b.Environment), cmp.Compare(a.AgentName, b.AgentName), cmp.Compare(a.Agent, b.Agent),
			cmp.Compare(a.Applier, b.Applier), cmp.Compare(a.Source, b.Source))
	})
	shown := min(len(places), maxPlaces)
	return places[:shown:shown], len(places) - shown + total - len(rollouts), nil
}

// A sourceOf names a source across agents.
type sourceOf struct {
	agent  tidelock.AgentID
	source tidelock.SourceID
}

// announced are announcements of one commit to one source, newest first.
type announced []tidelock.Announcement

// of picks the one that a push caused, or else the newest; nil for none.
func (list announced) of(push tidelock.PushID) *tidelock.Announcement {
	if len(list) == 0 {
		return nil
	}
	for i, a := range list {
		if push != 0 && a.Push == push {
			return &list[i]
		}
	}
	return &list[0]
}

// announcedOf lists what was announced of a commit, and of artifacts made of
// it that do not name it.
func (f *Forge) announcedOf(ctx context.Context, project tidelock.ProjectID, commit tidelock.CommitID, t trunk) (map[sourceOf]announced, error) {
	filters := []tidelock.AnnouncementFilter{{Project: project, Commit: commit}}
	var digests []tidelock.Digest
	for _, b := range t.builds {
		if b.Digest != "" && !slices.Contains(digests, b.Digest) {
			digests = append(digests, b.Digest)
			filters = append(filters, tidelock.AnnouncementFilter{Project: project, Digest: b.Digest})
		}
	}
	found := map[sourceOf]announced{}
	for _, filter := range filters {
		list, _, err := f.store.Announcements(ctx, filter, tidelock.Page{Number: 1, PerPage: maxAnnouncements})
		if err != nil {
			return nil, fmt.Errorf("list announcements of commit %s: %w", commit, err)
		}
		for _, a := range list {
			if filter.Digest != "" && a.Commit == commit {
				continue // seen already
			}
			source := sourceOf{a.Agent, a.Source}
			found[source] = append(found[source], a)
		}
	}
	for _, list := range found {
		slices.SortFunc(list, func(a, b tidelock.Announcement) int { return cmp.Compare(b.Number, a.Number) })
	}
	return found, nil
}

// placeOf merges what is known of one place; a or r may be nil, not both.
func placeOf(t trunk, a *tidelock.Announcement, r *tidelock.Rollout) tidelock.Place {
	var p tidelock.Place
	var push tidelock.PushID
	if a != nil {
		p = tidelock.Place{Agent: a.Agent, Source: a.Source, Ref: a.Ref, Digest: a.Digest, Message: a.Message}
		push, p.AcceptedAt = a.Push, a.AcceptedAt
	}
	if r != nil {
		p = tidelock.Place{
			Agent: r.Agent, AgentName: r.AgentName, Source: r.Source, Applier: r.Applier, Environment: r.Environment, Ref: r.Ref, Digest: r.Digest,
			Rollout: r.ID, State: r.State, Newest: r.Newest, Message: r.Message, AcceptedAt: p.AcceptedAt,
		}
		push = cmp.Or(r.Push, push)
	}
	var hops []tidelock.Hop
	build, packagedHere := t.build(p.Digest)
	if packagedHere {
		push = cmp.Or(build.Push, push) // of the commit, not of the artifact
	}
	if pushed, ok := t.push(push); ok {
		p.AcceptedAt = pushed.At
	}
	if !p.AcceptedAt.IsZero() {
		hops = append(hops, tidelock.Hop{Kind: tidelock.HopAccepted, State: tidelock.HopDone, At: p.AcceptedAt, Push: push})
	}
	if packagedHere {
		hops = append(hops, packaged(build))
	}
	p.Hops = timed(append(hops, stepsOf(a, r, p.AcceptedAt)...), p.AcceptedAt)
	return p
}

// stepsOf are the hops from the announcement on. What tells of an announcement
// and what tells of a rollout come by different ways, so that one may be later
// than what follows from it: then it is as late as that.
func stepsOf(a *tidelock.Announcement, r *tidelock.Rollout, accepted time.Time) []tidelock.Hop {
	times := map[tidelock.HopKind]time.Time{}
	if a != nil {
		times[tidelock.HopAnnounced] = a.AnnouncedAt
		times[tidelock.HopTriggered] = cmp.Or(a.CalledAt, a.HandledAt)
		times[tidelock.HopFetched] = a.FetchedAt
	}
	if r != nil {
		times[tidelock.HopFetched] = cmp.Or(times[tidelock.HopFetched], r.RunningAt)
		times[tidelock.HopApplied] = r.AppliedAt
		times[tidelock.HopHealthy] = r.HealthyAt
	}
	var hops []tidelock.Hop
	last := accepted
	next := tidelock.HopAnnounced // after the last one that is done
	for i, kind := range onTheWay {
		at := times[kind]
		if at.IsZero() {
			continue
		}
		if kind == tidelock.HopAnnounced || kind == tidelock.HopTriggered {
			if fetched := times[tidelock.HopFetched]; !fetched.IsZero() && at.After(fetched) {
				continue // Flux had found it by itself
			}
		}
		if at.Before(last) {
			at = last
		}
		last = at
		hops = append(hops, tidelock.Hop{Kind: kind, State: tidelock.HopDone, At: at})
		next = ""
		if i+1 < len(onTheWay) {
			next = onTheWay[i+1]
		}
	}
	if open, ok := openHop(next, a, r); ok {
		if !open.At.IsZero() && open.At.Before(last) {
			open.At = last
		}
		last = cmp.Or(open.At, last)
		hops = append(hops, open)
	}
	if r != nil && r.State.Done() && !r.ReportedAt.IsZero() {
		at := r.ReportedAt
		if at.Before(last) {
			at = last
		}
		hops = append(hops, tidelock.Hop{Kind: tidelock.HopReported, State: tidelock.HopDone, At: at})
	}
	return hops
}

// onTheWay are the hops between the push and the report.
var onTheWay = []tidelock.HopKind{
	tidelock.HopAnnounced, tidelock.HopTriggered, tidelock.HopFetched, tidelock.HopApplied, tidelock.HopHealthy,
}

// openHop is the hop that a place has not come past; next is the one after
// those that are done.
func openHop(next tidelock.HopKind, a *tidelock.Announcement, r *tidelock.Rollout) (tidelock.Hop, bool) {
	if r == nil {
		return openAnnouncement(next, *a)
	}
	h := tidelock.Hop{Kind: next, Message: clip(r.Message)}
	switch r.State {
	case tidelock.RolloutPending, tidelock.RolloutRunning:
		h.State = tidelock.HopWaiting
	case tidelock.RolloutUnknown:
		h.State = tidelock.HopUnknown
	case tidelock.RolloutSuperseded:
		h.State, h.At = tidelock.HopSuperseded, r.FinishedAt
	case tidelock.RolloutFailed:
		h.State, h.At = tidelock.HopFailed, r.FinishedAt
		switch next { // whatever nobody saw, Flux has come to this
		case tidelock.HopAnnounced, tidelock.HopTriggered:
			h.Kind = tidelock.HopFetched
		case "":
			h.Kind = tidelock.HopHealthy // it was, and is no longer
		}
	default:
		return h, false
	}
	return h, h.Kind != ""
}

// openAnnouncement is openHop where nothing is known to apply the source.
func openAnnouncement(next tidelock.HopKind, a tidelock.Announcement) (tidelock.Hop, bool) {
	h := tidelock.Hop{Kind: next, Message: clip(a.Message)}
	switch a.State {
	case tidelock.Sent, tidelock.Delivered, tidelock.Parked, tidelock.Handled:
		h.State = tidelock.HopWaiting
	case tidelock.Closed:
		h.State = tidelock.HopSuperseded
	case tidelock.Failed:
		h.Kind, h.State, h.At = tidelock.HopFetched, tidelock.HopFailed, a.HandledAt
	default:
		return h, false
	}
	return h, a.FetchedAt.IsZero()
}
