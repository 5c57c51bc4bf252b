package forge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"tidelock.dev"
)

// rolloutStore is what the rules remember of commits on their way into
// clusters.
type rolloutStore interface {
	// LockAgent keeps others from moving an agent's rollouts until the
	// transaction of ctx ends. No such agent is NotFound.
	LockAgent(context.Context, tidelock.AgentID) error
	// LiveRollouts lists, of some appliers of an agent or of all for nil, the
	// rollouts that are not done, the newest, and those of commits of a
	// project, in order of applier and turn.
	LiveRollouts(ctx context.Context, agent tidelock.AgentID, appliers []tidelock.ObjectID, project tidelock.ProjectID, commits []tidelock.CommitID) ([]tidelock.Rollout, error)
	// SaveRollouts writes by agent, applier, project and commit. What a report
	// wrote, Status, Deployment and Environment, stays as it is. UpdatedAt
	// grows with every change. No such agent or project is NotFound.
	SaveRollouts(context.Context, ...tidelock.Rollout) ([]tidelock.Rollout, error)
	// RolloutsReported writes Status, Deployment and Environment, and
	// ReportedAt of those whose UpdatedAt is still the given one.
	RolloutsReported(ctx context.Context, at time.Time, reported ...tidelock.Rollout) error
	// Rollouts lists newest first.
	Rollouts(context.Context, tidelock.RolloutFilter, tidelock.Page) ([]tidelock.Rollout, int, error)

	// UnplannedPushes lists, oldest first, pushes of a project after the last
	// one that was planned.
	UnplannedPushes(ctx context.Context, project tidelock.ProjectID, limit int) ([]tidelock.Push, error)
	// PushPlanned notes that all pushes of a project up to one are planned.
	PushPlanned(context.Context, tidelock.ProjectID, tidelock.PushID) error
	// PushedCommits finds the last push that brought each of some commits to a
	// branch or tag.
	PushedCommits(context.Context, tidelock.ProjectID, []tidelock.CommitID) (map[tidelock.CommitID]tidelock.PushID, error)
	// CommitOfDigest is the commit from which an artifact of a project was
	// made; "" when none is known.
	CommitOfDigest(context.Context, tidelock.ProjectID, tidelock.Digest) (tidelock.CommitID, error)

	// Followers lists agents with a source that is served from a project, or
	// with a rollout of it that is not done.
	Followers(context.Context, tidelock.ProjectID) ([]tidelock.AgentID, error)
	// AgentsUnderWay lists agents with rollouts that are pending or running.
	AgentsUnderWay(context.Context) ([]tidelock.AgentID, error)
	// UnsettledProjects lists projects with pushes that are not planned, or
	// with rollouts that are not done or not reported.
	UnsettledProjects(context.Context) ([]tidelock.ProjectID, error)
	// FollowedProjects lists projects that sources lead to.
	FollowedProjects(context.Context) ([]tidelock.ProjectID, error)
	RolloutSum(context.Context) (tidelock.RolloutSum, error)
}

const (
	// planBatch is how many pushes are planned in one go.
	planBatch = 200
	// moveBatch is the rollouts of how many appliers are moved in one
	// transaction: others want to write meanwhile.
	moveBatch = 500
	// maxStale is how often one look at what decides may be out of date before
	// it could be acted upon.
	maxStale = 10
	// maxRevision bounds what is taken for a revision.
	maxRevision = 2048
)

// Rollouts lists how commits of a project went in clusters, newest first, to
// its members, as Announcements does.
func (f *Forge) Rollouts(ctx context.Context, p Principal, project tidelock.Project, filter tidelock.RolloutFilter, page tidelock.Page) ([]tidelock.Rollout, int, error) {
	if err := f.Allow(ctx, p, ReadDelivery, OnProject(project)); err != nil {
		return nil, 0, err
	}
	filter.Project = project.ID
	return f.store.Rollouts(ctx, filter, page)
}

// PlanRollouts makes rollouts of what was pushed to a project, and moves all of
// its rollouts to where they should be by what is known now. It may run at any
// time, and twice.
func (f *Forge) PlanRollouts(ctx context.Context, project tidelock.ProjectID) error {
	for {
		pushes, err := f.store.UnplannedPushes(ctx, project, planBatch)
		if err != nil {
			return fmt.Errorf("list pushes of project %d: %w", project, err)
		}
		agents, err := f.store.Followers(ctx, project)
		if err != nil {
			return fmt.Errorf("list the agents that follow project %d: %w", project, err)
		}
		var failed error
		for _, agent := range agents {
			if err := f.advance(ctx, advance{project: project, agent: agent}); err != nil {
				failed = errors.Join(failed, fmt.Errorf("plan rollouts of project %d for agent %d: %w", project, agent, err))
			}
		}
		if failed != nil || len(pushes) == 0 {
			return failed
		}
		if err := f.store.PushPlanned(ctx, project, pushes[len(pushes)-1].ID); err != nil {
			return fmt.Errorf("note planned pushes of project %d: %w", project, err)
		}
		if len(pushes) < planBatch {
			return nil
		}
	}
}

// An advance moves rollouts of one agent in one project.
type advance struct {
	project tidelock.ProjectID
	agent   tidelock.AgentID
	objects []tidelock.ObjectID // appliers, and sources of appliers, to look at; nil for all
	live    bool                // the agent told of the objects just now
}

// errStale says that what was read before a transaction is not so any more.
var errStale = errors.New("something changed meanwhile, again and again")

// advance looks first and locks the agent only if there is something to write.
func (f *Forge) advance(ctx context.Context, a advance) error {
	project, err := f.store.Project(ctx, a.project)
	if err == nil {
		var agent tidelock.Agent
		if agent, err = f.store.Agent(ctx, a.agent); err == nil {
			return f.advanceAgent(ctx, a, project, agent)
		}
	}
	if tidelock.KindOf(err) == tidelock.NotFound {
		return nil // deleted, and its rollouts with it
	}
	return err
}

// advanceAgent looks anew when something changed before it could write, and
// then only at the appliers that it has to move: who changed something sees to
// what follows from that. It ends after maxStale such looks, with an error, so
// that whoever called tries again later.
func (f *Forge) advanceAgent(ctx context.Context, a advance, project tidelock.Project, agent tidelock.Agent) error {
	for stale := 0; ; {
		view, err := f.view(ctx, a, project, agent)
		if err != nil {
			return err
		}
		if err := f.interpret(ctx, &view); err != nil {
			return err
		}
		changed, err := f.move(ctx, view)
		if err != nil || len(changed) == 0 {
			return err
		}
		appliers := appliersOf(changed)
		if len(appliers) > moveBatch {
			for a.objects = range slices.Chunk(appliers, moveBatch) {
				if err := f.advanceAgent(ctx, a, project, agent); err != nil {
					return err
				}
			}
			return nil
		}
		err = f.store.Atomically(ctx, func(ctx context.Context) error {
			if err := f.store.LockAgent(ctx, agent.ID); err != nil {
				return err
			}
			again, err := f.view(ctx, a, project, agent)
			if err != nil {
				return err
			}
			if !again.like(view) {
				return errStale
			}
			if changed, err = f.move(ctx, view); err != nil {
				return err
			}
			changed, err = f.store.SaveRollouts(ctx, changed...)
			return err
		})
		switch {
		case errors.Is(err, errStale) && stale < maxStale:
			stale++
			a.objects = appliers
			continue
		case tidelock.KindOf(err) == tidelock.NotFound: // deleted meanwhile
			return nil
		case err != nil:
			return err
		}
		f.rolloutsChanged(changed)
		return nil
	}
}

func appliersOf(rollouts []tidelock.Rollout) []tidelock.ObjectID {
	var appliers []tidelock.ObjectID
	for _, r := range rollouts {
		appliers = append(appliers, r.Applier)
	}
	slices.Sort(appliers)
	return slices.Compact(appliers)
}

func (f *Forge) rolloutsChanged(changed []tidelock.Rollout) {
	events := map[tidelock.RolloutChanged]bool{}
	for _, r := range changed {
		events[tidelock.RolloutChanged{Project: r.Project, Commit: r.Commit}] = true
	}
	for e := range events {
		publish(f, e)
	}
}

// A view is all that decides how rollouts of an agent in a project stand.
type view struct {
	advance
	served   bool // the agent may be told of the project
	pushes   []tidelock.Push
	sources  map[tidelock.SourceID]tidelock.AgentSource
	seen     map[tidelock.ObjectID]tidelock.Observation // of the sources
	appliers []tidelock.Observation
	heads    map[tidelock.SourceID]wish

	// Made of the above by interpret.
	cargoes  map[tidelock.SourceID]map[string]cargo
	arrivals map[tidelock.SourceID][]arrival // of pushes that are not planned
	kept     map[tidelock.ObjectID]string    // what keptCharts found
}

// A wish is what a source should have now.
type wish struct {
	arrival
	known bool
	gone  bool
	held  string
}

// like reports whether two views were of the same facts.
func (v view) like(w view) bool {
	same := func(a, b tidelock.Observation) bool {
		return a.UpdatedAt.Equal(b.UpdatedAt) && a.Object == b.Object && a.Project == b.Project
	}
	return v.served == w.served && maps.Equal(v.sources, w.sources) && maps.EqualFunc(v.seen, w.seen, same) &&
		slices.EqualFunc(v.appliers, w.appliers, same) && maps.Equal(v.heads, w.heads) &&
		slices.EqualFunc(v.pushes, w.pushes, func(a, b tidelock.Push) bool { return a.ID == b.ID })
}

// about are the appliers whose rollouts a view decides; nil for all.
func (v view) about() []tidelock.ObjectID {
	if v.objects == nil {
		return nil
	}
	about := slices.Clone(v.objects)
	for _, o := range v.appliers {
		about = append(about, o.Object)
	}
	return slices.DeleteFunc(about, func(id tidelock.ObjectID) bool { return !id.Applies() })
}

// view reads it. What the sources should have is read before the pushes, so
// that the pushes that led there are among them.
func (f *Forge) view(ctx context.Context, a advance, project tidelock.Project, agent tidelock.Agent) (v view, err error) {
	v = view{advance: a, sources: map[tidelock.SourceID]tidelock.AgentSource{}, seen: map[tidelock.ObjectID]tidelock.Observation{}, heads: map[tidelock.SourceID]wish{}}
	if v.served, err = f.AgentMayReport(ctx, agent, project); err != nil || !v.served {
		return v, err
	}
	all, err := f.store.AgentSources(ctx, agent.ID)
	if err != nil {
		return v, err
	}
	for _, s := range all {
		if s.Project == project.ID {
			v.sources[s.Source] = s
		}
	}
	if err := f.viewObservations(ctx, &v); err != nil {
		return v, err
	}
	wishes := map[wishKey]wish{}
	for _, o := range v.appliers {
		if _, known := v.heads[o.Source]; known {
			continue
		}
		s := v.sources[o.Source]
		key := wishKey{s.Source.Kind(), s.Image, s.Spec}
		w, known := wishes[key]
		if !known {
			if w, err = f.wish(ctx, project, s); err != nil {
				return v, err
			}
			wishes[key] = w
		}
		v.heads[o.Source] = w
	}
	v.pushes, err = f.store.UnplannedPushes(ctx, project.ID, planBatch)
	return v, err
}

type wishKey struct {
	kind  tidelock.SourceKind
	image tidelock.ImageID
	spec  tidelock.RefSpec
}

// viewObservations reads what is seen of the appliers that are to be looked
// at, and of their sources.
func (f *Forge) viewObservations(ctx context.Context, v *view) error {
	named := map[tidelock.ObjectID]bool{}
	filter := tidelock.ObservationFilter{Agent: v.agent, Project: v.project}
	if v.objects != nil {
		filter.Objects = v.objects
		for _, id := range v.objects {
			named[id] = true
			if !id.Applies() {
				filter.Objects = nil // what applies it is found among all
			}
		}
	}
	found, err := f.store.Observations(ctx, filter)
	if err != nil {
		return err
	}
	var missing []tidelock.ObjectID
	for _, o := range found {
		switch {
		case !o.Object.Applies():
			v.seen[o.Object] = o
		case v.objects == nil || named[o.Object] || named[tidelock.ObjectID(o.Source)]:
			v.appliers = append(v.appliers, o)
		}
	}
	for _, o := range v.appliers {
		if id := tidelock.ObjectID(o.Source); v.seen[id].Object == "" && !slices.Contains(missing, id) {
			missing = append(missing, id)
		}
	}
	if filter.Objects == nil || len(missing) == 0 {
		return nil
	}
	filter.Objects = missing
	if found, err = f.store.Observations(ctx, filter); err != nil {
		return err
	}
	for _, o := range found {
		v.seen[o.Object] = o
	}
	return nil
}

// wish finds what a source should have now.
func (f *Forge) wish(ctx context.Context, project tidelock.Project, s tidelock.AgentSource) (w wish, err error) {
	var head tidelock.Head
	switch kind := s.Source.Kind(); {
	case kind == tidelock.ImageRepository:
		return wish{}, nil
	case kind.OfImage():
		if s.Image == 0 {
			return wish{}, nil
		}
		image, err := f.store.Image(ctx, s.Image)
		if tidelock.KindOf(err) == tidelock.NotFound {
			return wish{gone: true}, nil
		}
		if err != nil {
			return wish{}, err
		}
		head, err = f.ResolveImage(ctx, project.ID, image.Name, kind, s.Spec)
		if held, waits := errors.AsType[*HoldError](err); waits {
			w.held, err = held.Error(), nil
		}
		if err != nil {
			return wishless(err)
		}
		if head.Commit == "" {
			if head.Commit, err = f.store.CommitOfDigest(ctx, project.ID, head.Digest); err != nil {
				return wish{}, err
			}
		}
	default:
		if head, err = f.Resolve(ctx, project.ID, s.Spec); err != nil {
			return wishless(err)
		}
	}
	w.arrival = arrival{commit: head.Commit, digest: head.Digest, ref: head.Ref, push: head.Push, at: head.MovedAt}
	w.known = head.Commit != ""
	return w, nil
}

func wishless(err error) (wish, error) {
	switch tidelock.KindOf(err) {
	case tidelock.NotFound:
		return wish{gone: true}, nil
	case tidelock.Invalid:
		return wish{}, nil
	}
	return wish{}, err
}

// interpret finds the commits behind revisions, and what pushes meant for each
// source. It may ask Git, so it is not for transactions.
func (f *Forge) interpret(ctx context.Context, v *view) error {
	v.cargoes, v.arrivals = map[tidelock.SourceID]map[string]cargo{}, map[tidelock.SourceID][]arrival{}
	texts := map[tidelock.SourceID][]string{}
	for _, o := range v.appliers {
		t := append(texts[o.Source], o.Revision, o.Attempted, v.seen[tidelock.ObjectID(o.Source)].Revision)
		for _, out := range o.Outcomes {
			t = append(t, out.Revision)
		}
		texts[o.Source] = t
	}
	own, err := f.ownCommits(ctx, v.project, texts)
	if err != nil {
		return fmt.Errorf("find the commits of revisions: %w", err)
	}
	shared := map[cargoKey]cargo{}
	for id, list := range texts {
		cargoes := map[string]cargo{}
		for _, text := range slices.Compact(slices.Sorted(slices.Values(list))) {
			key := cargoKey{id.Kind(), v.sources[id].Image, text}
			c, known := shared[key]
			if !known {
				if c, err = f.cargoOf(ctx, v.project, v.sources[id], text, own); err != nil {
					return fmt.Errorf("find the commit of revision %q: %w", text, err)
				}
				shared[key] = c
			}
			cargoes[text] = c
		}
		v.cargoes[id] = cargoes
		for _, push := range v.pushes {
			list, err := f.arrivalsOf(ctx, push, v.sources[id])
			if err != nil {
				return fmt.Errorf("find what push %d means to %s: %w", push.ID, id, err)
			}
			v.arrivals[id] = append(v.arrivals[id], list...)
		}
	}
	v.kept, err = f.keptCharts(ctx, *v)
	return err
}

// arrivalsOf says what a push meant for a source: which commits became what it
// should have.
func (f *Forge) arrivalsOf(ctx context.Context, push tidelock.Push, s tidelock.AgentSource) (list []arrival, err error) {
	if !s.Source.Kind().OfImage() {
		for _, u := range push.Updates {
			if u.Commit == "" {
				continue
			}
			follows, err := f.followsRef(ctx, push, u, s.Spec)
			if err != nil {
				return nil, err
			}
			if follows {
				list = append(list, arrival{commit: u.Commit, ref: u.Ref, push: push.ID, at: push.At})
			}
		}
		return list, nil
	}
	u := push.Artifact
	if u == nil || u.New == "" || u.Image != s.Image {
		return nil, nil
	}
	follows, err := f.followsTag(ctx, push, s)
	if err != nil || !follows {
		return nil, err
	}
	commit := u.Commit
	if commit == "" {
		commit, err = f.store.CommitOfDigest(ctx, push.Project, u.New)
	}
	if err != nil || commit == "" {
		return nil, err
	}
	return []arrival{{commit: commit, digest: u.New, ref: tidelock.TagRef(u.Tag), push: push.ID, at: push.At}}, nil
}

// followsRef reports whether a source of a spec had to go where a push moved a
// ref. Later pushes do not count.
func (f *Forge) followsRef(ctx context.Context, push tidelock.Push, u tidelock.RefUpdate, spec tidelock.RefSpec) (bool, error) {
	switch {
	case spec.Commit != "":
		return false, nil
	case spec.Name != "":
		return u.Ref == tidelock.RefName(spec.Name), nil
	case spec.SemVer != "":
		if _, isTag := u.Ref.Tag(); !isTag {
			return false, nil
		}
		heads, err := f.store.Heads(ctx, push.Project)
		if err != nil {
			return false, err
		}
		best, err := tagsWithin(asOf(heads, push, tidelock.Head{Ref: u.Ref, Object: u.New, Commit: u.Commit, Push: push.ID}), spec.SemVer)
		if tidelock.KindOf(err) == tidelock.NotFound || tidelock.KindOf(err) == tidelock.Invalid {
			return false, nil
		}
		return slices.ContainsFunc(best, func(h tidelock.Head) bool { return h.Ref == u.Ref }), err
	case spec.Tag != "":
		return u.Ref == tidelock.TagRef(spec.Tag), nil
	}
	return u.Ref == tidelock.BranchRef(cmp.Or(spec.Branch, "master")), nil
}

// followsTag is followsRef for a source of an image.
func (f *Forge) followsTag(ctx context.Context, push tidelock.Push, s tidelock.AgentSource) (bool, error) {
	u := push.Artifact
	moved := tidelock.Head{Image: u.Image, Ref: tidelock.TagRef(u.Tag), Commit: u.Commit, Digest: u.New, Push: push.ID}
	var pick func([]tidelock.Head) (tidelock.Head, error)
	switch {
	case u.Tag == "" || s.Source.Kind() == tidelock.ImageRepository:
		return false, nil
	case s.Source.Kind() == tidelock.HelmChart:
		pick = func(heads []tidelock.Head) (tidelock.Head, error) { return chartAmong(heads, s.Spec.SemVer) }
	case s.Spec.Digest != "":
		return false, nil
	case s.Spec.SemVer != "":
		pick = func(heads []tidelock.Head) (tidelock.Head, error) {
			return versionAmong(heads, s.Spec.SemVer, s.Spec.SemVerFilter)
		}
	default:
		return u.Tag == cmp.Or(s.Spec.Tag, "latest"), nil
	}
	heads, err := f.store.TagHeads(ctx, u.Image)
	if err != nil {
		return false, err
	}
	best, err := pick(asOf(heads, push, moved))
	if tidelock.KindOf(err) == tidelock.NotFound || tidelock.KindOf(err) == tidelock.Invalid {
		return false, nil
	}
	return best.Ref == moved.Ref, err
}

// asOf are heads as they were after a push, as far as that can be told.
func asOf(heads []tidelock.Head, push tidelock.Push, moved tidelock.Head) []tidelock.Head {
	then := []tidelock.Head{moved}
	for _, h := range heads {
		if h.Ref != moved.Ref && h.Push <= push.ID {
			then = append(then, h)
		}
	}
	return then
}

// move makes of a view what the rollouts should be, and returns those that are
// not so.
func (f *Forge) move(ctx context.Context, v view) ([]tidelock.Rollout, error) {
	var commits []tidelock.CommitID
	for id, cargoes := range v.cargoes {
		for _, c := range cargoes {
			commits = append(commits, c.commit)
		}
		for _, a := range v.arrivals[id] {
			commits = append(commits, a.commit)
		}
		commits = append(commits, v.heads[id].commit)
	}
	commits = slices.DeleteFunc(commits, func(c tidelock.CommitID) bool { return c == "" })
	known, err := f.store.LiveRollouts(ctx, v.agent, v.about(), v.project, commits)
	if err != nil {
		return nil, fmt.Errorf("read rollouts of agent %d: %w", v.agent, err)
	}
	byApplier := map[tidelock.ObjectID][]tidelock.Rollout{}
	for _, r := range known {
		byApplier[r.Applier] = append(byApplier[r.Applier], r)
	}
	now := f.now().UTC().Truncate(time.Microsecond)
	var changed []tidelock.Rollout
	for _, o := range v.appliers {
		t := newTrack(v.agent, o.Object, o.Source, v.project, now, byApplier[o.Object])
		for _, a := range v.arrivals[o.Source] {
			t.pushed(a)
		}
		want := v.heads[o.Source]
		// Behind a full batch there are more pushes to look at first.
		settled := want.known && len(v.pushes) < planBatch
		if settled {
			t.wants(want.arrival)
		}
		s := sight{
			applier: o, follows: v.sources[o.Source], live: v.live, wanted: settled,
			gone: want.gone, held: want.held, kept: v.kept[o.Object], cargoes: v.cargoes[o.Source],
		}
		if source, ok := v.seen[tidelock.ObjectID(o.Source)]; ok {
			s.source = &source
		}
		t.see(s)
		changed = append(changed, t.changes()...)
		delete(byApplier, o.Object)
	}
	left, err := f.leave(ctx, v, byApplier, now)
	return append(changed, left...), err
}

// leave ends rollouts of appliers that are not seen to follow the project any
// more.
func (f *Forge) leave(ctx context.Context, v view, byApplier map[tidelock.ObjectID][]tidelock.Rollout, now time.Time) (changed []tidelock.Rollout, err error) {
	var left []tidelock.ObjectID
	for applier, rollouts := range byApplier {
		open := func(r tidelock.Rollout) bool { return r.Project == v.project && !r.State.Done() }
		if slices.ContainsFunc(rollouts, open) {
			left = append(left, applier)
		}
	}
	if len(left) == 0 {
		return nil, nil
	}
	slices.Sort(left)
	found, err := f.store.Observations(ctx, tidelock.ObservationFilter{Agent: v.agent, Objects: left})
	if err != nil {
		return nil, fmt.Errorf("read observations of agent %d: %w", v.agent, err)
	}
	seen := map[tidelock.ObjectID]tidelock.Observation{}
	for _, o := range found {
		seen[o.Object] = o
	}
	for _, applier := range left {
		t := newTrack(v.agent, applier, "", v.project, now, byApplier[applier])
		o, exists := seen[applier]
		for _, r := range t.rollouts {
			switch {
			case r.Project != v.project || r.State.Done():
			case !v.served || exists && o.Project == 0:
				t.become(r, tidelock.RolloutUnknown, reasonNotServed, "the agent may no longer be told of this project, or its source does not lead to it now")
			case exists && o.Project == v.project: // of a source that is not looked at now
			case exists:
				t.become(r, tidelock.RolloutSuperseded, reasonSuperseded, string(o.Source)+" leads to another project now")
			default:
				t.become(r, tidelock.RolloutSuperseded, reasonSuperseded, string(applier)+" was removed")
			}
		}
		changed = append(changed, t.changes()...)
	}
	return changed, nil
}

// DoubtRollouts makes those unknown that are not done and whose agent has been
// away for a time. Before the server listened, nobody was away.
func (f *Forge) DoubtRollouts(ctx context.Context, silence time.Duration, listening time.Time) error {
	agents, err := f.store.AgentsUnderWay(ctx)
	if err != nil {
		return fmt.Errorf("list agents with rollouts: %w", err)
	}
	silent := func(ctx context.Context, id tidelock.AgentID) (bool, error) {
		since, err := f.AgentAway(ctx, id)
		if err != nil || since.IsZero() {
			return false, err
		}
		if listening.After(since) {
			since = listening
		}
		return f.now().Sub(since) >= silence, nil
	}
	for _, id := range agents {
		away, err := silent(ctx, id)
		if err == nil && away {
			err = f.doubt(ctx, id, silent)
		}
		if err != nil && tidelock.KindOf(err) != tidelock.NotFound { // else it was deleted
			return fmt.Errorf("doubt rollouts of agent %d: %w", id, err)
		}
	}
	return nil
}

// doubt makes all rollouts of an agent unknown that are not done, if it is
// silent still: one that has come back in between tells only once how they are.
func (f *Forge) doubt(ctx context.Context, agent tidelock.AgentID, silent func(context.Context, tidelock.AgentID) (bool, error)) error {
	var changed []tidelock.Rollout
	err := f.store.Atomically(ctx, func(ctx context.Context) error {
		changed = nil
		if err := f.store.LockAgent(ctx, agent); err != nil {
			return err
		}
		if away, err := silent(ctx, agent); err != nil || !away {
			return err
		}
		known, err := f.store.LiveRollouts(ctx, agent, nil, 0, nil)
		if err != nil {
			return err
		}
		t := newTrack(agent, "", "", 0, f.now().UTC().Truncate(time.Microsecond), known)
		for _, r := range t.rollouts {
			if !r.State.Done() && r.State != tidelock.RolloutUnknown {
				t.become(r, tidelock.RolloutUnknown, reasonAway, "the agent is not connected")
			}
		}
		changed, err = f.store.SaveRollouts(ctx, t.changes()...)
		return err
	})
	if err != nil {
		return err
	}
	f.rolloutsChanged(changed)
	return nil
}

// UnsettledProjects lists projects of which something may be left to do, for
// the server's own use; followed adds all that sources lead to.
func (f *Forge) UnsettledProjects(ctx context.Context, followed bool) ([]tidelock.ProjectID, error) {
	projects, err := f.store.UnsettledProjects(ctx)
	if err != nil || !followed {
		return projects, err
	}
	more, err := f.store.FollowedProjects(ctx)
	return slices.Compact(slices.Sorted(slices.Values(append(projects, more...)))), err
}

// RolloutSum counts all rollouts, for the server's own use.
func (f *Forge) RolloutSum(ctx context.Context) (tidelock.RolloutSum, error) {
	return f.store.RolloutSum(ctx)
}
