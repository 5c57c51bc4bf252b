package forge

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/bus"
)

// A LiveState says whether a commit is live.
type LiveState string

const (
	LiveWaiting    LiveState = "waiting"    // on its way
	LiveLive       LiveState = "live"       // it, or a newer commit that contains it, is applied and healthy
	LiveFailed     LiveState = "failed"     // somewhere it could not be applied, or is not healthy
	LiveSuperseded LiveState = "superseded" // somewhere a commit that does not contain it took its place
	LiveUnknown    LiveState = "unknown"    // nothing deploys it, or nobody tells
)

// Done reports whether waiting on is of no use, as far as can be told.
func (s LiveState) Done() bool {
	return s == LiveLive || s == LiveFailed || s == LiveSuperseded
}

// Live is how one commit stands in one environment, or in all of them.
type Live struct {
	Commit      tidelock.CommitID
	Environment string // "" for all
	State       LiveState
	Message     string             // one line for people
	Descendant  tidelock.CommitID  // the newer commit by which it is live; "" for none
	Rollouts    []tidelock.Rollout // that decide State: one for each applier, worst first
	Version     string             // differs when anything of this does
}

// maxLiveRollouts bounds what one answer is decided by.
const maxLiveRollouts = 5000

// Live tells how a commit stands in an environment, or in all when that is "".
// A revision is the id of a commit, in full or short, or a branch or tag. A
// full id that the forge does not know gives LiveUnknown: it may be pushed yet.
//
// What was not packaged into an artifact failed; until packaging is done the
// commit is on its way. Every applier counts that has the commit, or a newer one that contains it, or
// should have it because it follows a branch or tag with it.
func (f *Forge) Live(ctx context.Context, p Principal, project tidelock.Project, rev, environment string) (Live, error) {
	if err := f.Allow(ctx, p, ReadDelivery, OnProject(project)); err != nil {
		return Live{}, err
	}
	l := Live{Commit: tidelock.CommitID(rev), Environment: environment}
	commit, err := f.repos.Repo(project.ID).Commit(ctx, rev)
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound && tidelock.ValidCommit(l.Commit) == nil:
		l.State, l.Message = LiveUnknown, fmt.Sprintf("no commit %s was pushed to %s", shortID(l.Commit), project.FullPath)
		return l.versioned(), nil
	case err != nil:
		return Live{}, err
	}
	l.Commit = commit.ID
	var all bool
	if l.Rollouts, all, err = f.deciding(ctx, project, l.Commit, environment); err != nil {
		return Live{}, err
	}
	l.decide()
	if l.State == LiveLive && !all {
		l.State, l.Message = LiveUnknown, fmt.Sprintf("more than %d places follow the project, too many to say that it is live in all", maxLiveRollouts)
	}
	if l.State == LiveFailed || l.State == LiveSuperseded {
		return l.versioned(), nil
	}
	refused, err := f.notPackaged(ctx, project.ID, l.Commit)
	if err != nil {
		return Live{}, err
	}
	if refused != "" {
		l.State, l.Message = LiveFailed, refused
		return l.versioned(), nil
	}
	coming, err := f.coming(ctx, project.ID, l.Commit)
	if err != nil {
		return Live{}, err
	}
	if coming != "" {
		l.State, l.Message = LiveWaiting, coming
	}
	return l.versioned(), nil
}

// notPackaged says what of a commit was not made into an artifact, and of no
// newer commit that contains it either; "" for nothing.
func (f *Forge) notPackaged(ctx context.Context, project tidelock.ProjectID, commit tidelock.CommitID) (string, error) {
	failed, _, err := f.store.Builds(ctx, tidelock.BuildFilter{Project: project, Commit: commit, State: tidelock.StatusFailed}, tidelock.Page{Number: 1, PerPage: maxTrunk})
	if err != nil {
		return "", fmt.Errorf("list builds of commit %s: %w", commit, err)
	}
	last := map[tidelock.RefName][]tidelock.Build{}
	for _, b := range failed {
		if last[b.Ref] == nil {
			if last[b.Ref], err = f.store.LastBuilds(ctx, project, b.Ref); err != nil {
				return "", fmt.Errorf("list builds of %s: %w", b.Ref, err)
			}
		}
		mended := false
		for _, later := range last[b.Ref] {
			if b.Application != "" && later.Application != b.Application || later.ID < b.ID {
				continue // where the file that names them all was at fault, any will do
			}
			has, err := f.contains(ctx, project, later.Commit, commit)
			if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
				return "", err
			}
			mended = mended || has
		}
		if !mended {
			return oneLine(cmp.Or(b.Application, deliveryFile) + " was not packaged: " + packaged(b).Message), nil
		}
	}
	return "", nil
}

// deliveryFile names the applications of a repository that is packaged.
const deliveryFile = ".tidelock/delivery.yaml"

// maxComing bounds what is looked at of what has not come to clusters yet.
const maxComing = 100

// coming says what is still to be done with a commit before all the rollouts
// that it will have are there; "" for nothing.
func (f *Forge) coming(ctx context.Context, project tidelock.ProjectID, commit tidelock.CommitID) (string, error) {
	heads, err := f.store.UndeliveredHeads(ctx, project, maxComing)
	if err != nil {
		return "", fmt.Errorf("list heads to package of project %d: %w", project, err)
	}
	for _, h := range heads {
		has, err := f.contains(ctx, project, h.Commit, commit)
		if err == nil && has {
			has, err = f.repos.Repo(project).Exists(ctx, h.Commit, deliveryFile)
		}
		if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			return "", err
		}
		if has {
			return shortID(h.Commit) + " is being packaged", nil
		}
	}
	pushes, err := f.store.UnplannedPushes(ctx, project, maxComing)
	if err != nil {
		return "", fmt.Errorf("list pushes of project %d: %w", project, err)
	}
	for _, p := range pushes {
		var brought []tidelock.CommitID
		for _, u := range p.Updates {
			brought = append(brought, u.Commit)
		}
		if p.Artifact != nil {
			brought = append(brought, p.Artifact.Commit)
		}
		for _, c := range brought {
			has, err := f.contains(ctx, project, c, commit)
			if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
				return "", err
			}
			if has {
				return "it was pushed just now", nil
			}
		}
	}
	return "", nil
}

// deciding picks, of every applier that counts, the rollout that says how the
// commit stands there: one that succeeded with it in its history, or else the
// newest. Of an applier that still has to see the commit it is one that is
// made up here, and pending. All reports whether none was left out for want of
// room.
func (f *Forge) deciding(ctx context.Context, project tidelock.Project, commit tidelock.CommitID, environment string) (deciding []tidelock.Rollout, all bool, err error) {
	page := tidelock.Page{Number: 1, PerPage: maxLiveRollouts}
	newest, total, err := f.store.Rollouts(ctx, tidelock.RolloutFilter{Project: project.ID, Newest: true}, page)
	if err != nil {
		return nil, false, fmt.Errorf("list the newest rollouts of project %d: %w", project.ID, err)
	}
	own, _, err := f.store.Rollouts(ctx, tidelock.RolloutFilter{Project: project.ID, Commit: commit}, page)
	if err != nil {
		return nil, false, fmt.Errorf("list rollouts of commit %s: %w", commit, err)
	}
	ownOf := map[placeID]tidelock.Rollout{}
	for _, r := range own {
		ownOf[placeID{r.Agent, r.Applier}] = r
	}
	there, err := f.appliers(ctx, project.ID)
	if err != nil {
		return nil, false, err
	}
	refs := sync.OnceValues(func() ([]tidelock.RefName, error) {
		refs, err := f.repos.Repo(project.ID).RefsContaining(ctx, commit)
		if tidelock.KindOf(err) == tidelock.NotFound {
			err = nil
		}
		return refs, err
	})
	live := sync.OnceValues(func() (map[placeID]tidelock.Rollout, error) { return f.lastSuccesses(ctx, project.ID) })
	spoils := sync.OnceValues(func() (map[placeID]int64, error) { return f.lastSpoils(ctx, project.ID) })
	for _, r := range newest {
		if environment != "" && r.Environment != "" && r.Environment != environment {
			continue // of one that has none yet it is not known where it will be
		}
		place := placeID{r.Agent, r.Applier}
		if !there[place] && r.State != tidelock.RolloutUnknown {
			continue // the applier is gone from its cluster
		}
		has, err := f.contains(ctx, project.ID, r.Commit, commit)
		if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			return nil, false, err
		}
		mine, hadIt := ownOf[place]
		switch {
		case has && wasApplied(r): // it is what runs there
		case has && r.State != tidelock.RolloutSuccess && r.Commit != commit:
			before, err := live()
			if err != nil {
				return nil, false, err
			}
			last, ok := before[place]
			if !ok {
				break
			}
			has, err := f.contains(ctx, project.ID, last.Commit, commit)
			if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
				return nil, false, err
			}
			spoilt, err := spoils()
			if err != nil {
				return nil, false, err
			}
			if has && spoilt[place] < last.Turn {
				r = last
			}
		case has:
		case hadIt:
			mine.State, mine.Message = tidelock.RolloutSuperseded, fmt.Sprintf("%s took its place, which does not contain it", shortID(r.Commit))
			r = mine
		default:
			follow, err := refs()
			if err != nil {
				return nil, false, err
			}
			if !slices.Contains(follow, r.Ref) {
				continue
			}
			r = tidelock.Rollout{
				Agent: r.Agent, AgentName: r.AgentName, Applier: r.Applier, Source: r.Source, Project: r.Project, Commit: commit, Ref: r.Ref,
				Environment: r.Environment,
				State:       tidelock.RolloutPending,
			}
		}
		deciding = append(deciding, r)
	}
	rank := []tidelock.RolloutState{
		tidelock.RolloutFailed, tidelock.RolloutSuperseded, tidelock.RolloutUnknown, tidelock.RolloutRunning, tidelock.RolloutPending, tidelock.RolloutSuccess,
	}
	slices.SortFunc(deciding, func(a, b tidelock.Rollout) int {
		return cmp.Or(cmp.Compare(slices.Index(rank, a.State), slices.Index(rank, b.State)),
			cmp.Compare(a.Environment, b.Environment), cmp.Compare(a.AgentName, b.AgentName), cmp.Compare(a.Agent, b.Agent), cmp.Compare(a.Applier, b.Applier))
	})
	return deciding, total <= maxLiveRollouts, nil
}

// A placeID names an applier across agents.
type placeID struct {
	agent   tidelock.AgentID
	applier tidelock.ObjectID
}

// appliers are those that agents see in their clusters.
func (f *Forge) appliers(ctx context.Context, project tidelock.ProjectID) (map[placeID]bool, error) {
	observations, err := f.ObservationsOf(ctx, tidelock.ObservationFilter{Project: project})
	if err != nil {
		return nil, fmt.Errorf("list observations of project %d: %w", project, err)
	}
	there := map[placeID]bool{}
	for _, o := range observations {
		if o.Object.Applies() {
			there[placeID{o.Agent, o.Object}] = true
		}
	}
	return there, nil
}

// lastSuccesses are, of each applier whose newest rollout is unfinished or
// failed, the one before it that succeeded last: that is live still.
func (f *Forge) lastSuccesses(ctx context.Context, project tidelock.ProjectID) (map[placeID]tidelock.Rollout, error) {
	before, _, err := f.store.Rollouts(ctx, tidelock.RolloutFilter{Project: project, LastSuccess: true}, tidelock.Page{Number: 1, PerPage: maxLiveRollouts})
	if err != nil {
		return nil, fmt.Errorf("list what is live of project %d: %w", project, err)
	}
	live := make(map[placeID]tidelock.Rollout, len(before))
	for _, r := range before {
		live[placeID{r.Agent, r.Applier}] = r
	}
	return live, nil
}

// lastSpoils are the turns of the last rollouts of each applier that were
// applied and not well: what had succeeded before them is not live any more.
func (f *Forge) lastSpoils(ctx context.Context, project tidelock.ProjectID) (map[placeID]int64, error) {
	ended, _, err := f.store.Rollouts(ctx, tidelock.RolloutFilter{
		Project: project, States: []tidelock.RolloutState{tidelock.RolloutFailed, tidelock.RolloutSuperseded},
	}, tidelock.Page{Number: 1, PerPage: maxLiveRollouts})
	if err != nil {
		return nil, fmt.Errorf("list what failed of project %d: %w", project, err)
	}
	spoils := map[placeID]int64{}
	for _, r := range ended {
		if place := (placeID{r.Agent, r.Applier}); wasApplied(r) {
			spoils[place] = max(spoils[place], r.Turn)
		}
	}
	return spoils, nil
}

// wasApplied reports whether a rollout's objects came into the cluster,
// whatever became of them.
func wasApplied(r tidelock.Rollout) bool {
	return !r.AppliedAt.IsZero() || r.Reason == "HealthCheckFailed"
}

// decide sums up the rollouts, of which the worst comes first.
func (l *Live) decide() {
	if len(l.Rollouts) == 0 {
		l.State, l.Message = LiveUnknown, "nothing deploys this commit"
		if l.Environment != "" {
			l.Message += " to " + l.Environment
		}
		return
	}
	worst := l.Rollouts[0]
	live := 0
	for _, r := range l.Rollouts {
		if r.State == tidelock.RolloutSuccess {
			live++
			if r.Commit != l.Commit {
				l.Descendant = r.Commit
			}
		}
	}
	l.State = map[tidelock.RolloutState]LiveState{
		tidelock.RolloutFailed: LiveFailed, tidelock.RolloutSuperseded: LiveSuperseded, tidelock.RolloutUnknown: LiveUnknown,
		tidelock.RolloutSuccess: LiveLive,
	}[worst.State]
	switch l.State {
	case LiveLive:
		l.Message = fmt.Sprintf("live in %s", counted(live, "place"))
		if l.Descendant != "" {
			l.Message += ", in " + shortID(l.Descendant) + ", which contains it"
		}
		return
	case "":
		l.State = LiveWaiting
		l.Message = fmt.Sprintf("live in %d of %s", live, counted(len(l.Rollouts), "place"))
	case LiveUnknown:
		l.Message = fmt.Sprintf("nobody tells of %s", worst.JobName())
	default:
		l.Message = fmt.Sprintf("%s %s", worst.JobName(), worst.State)
	}
	if worst.Message != "" {
		l.Message += ": " + oneLine(worst.Message)
	} else if l.State == LiveWaiting {
		l.Message += fmt.Sprintf("; %s is %s", worst.JobName(), worst.State)
	}
}

// counted is a number with its noun.
func counted(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// oneLine is the beginning of a text, without line breaks.
func oneLine(text string) string {
	return tidelock.Printable(strings.Join(strings.Fields(text), " "), 500)
}

func shortID(commit tidelock.CommitID) string { return string(commit[:min(8, len(commit))]) }

// versioned fills in the version.
func (l Live) versioned() Live {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00%s\x00%s\x00", l.Commit, l.State, l.Message, l.Descendant)
	for _, r := range l.Rollouts {
		fmt.Fprintf(h, "%d\x00%s\x00%s\x00%s\x00%s\x00%s\x00", r.Agent, r.Applier, r.Commit, r.State, r.Reason, r.Message)
	}
	l.Version = strconv.FormatUint(h.Sum64(), 36)
	return l
}

// How often somebody who waits looks again although nothing called for it, and
// how often at most.
const (
	liveSlow  = 5 * time.Second
	livePause = 100 * time.Millisecond
)

// AwaitLive is Live, but it waits until the answer has another version than
// one that was seen before, for as long as it may. At most as many may wait as
// the caller lets in.
func (f *Forge) AwaitLive(ctx context.Context, p Principal, project tidelock.Project, rev, environment, seen string, wait time.Duration) (Live, error) {
	woken, leave := f.waiters.join(project.ID)
	defer leave()
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	slow := time.NewTicker(liveSlow)
	defer slow.Stop()
	for {
		l, err := f.Live(ctx, p, project, rev, environment)
		if err != nil || l.Version != seen {
			return l, err
		}
		select {
		case <-ctx.Done():
			return l, ctx.Err()
		case <-f.waiters.over:
			return l, nil
		case <-deadline.C:
			return l, nil
		case <-slow.C:
		case <-woken:
			select { // more may come with it
			case <-time.After(livePause):
			case <-ctx.Done():
			}
		}
	}
}

// EndWaits answers everybody who waits, now and from now on, so that they do
// not hold up the end of the server. It is safe to call more than once.
func (f *Forge) EndWaits() { f.waiters.end() }

// waiters are woken when something of their project changed.
type waiters struct {
	over chan struct{} // closed when nobody is to wait any more

	mu    sync.Mutex
	ended bool
	rooms map[tidelock.ProjectID]map[chan struct{}]struct{}
}

func newWaiters() *waiters {
	return &waiters{over: make(chan struct{}), rooms: map[tidelock.ProjectID]map[chan struct{}]struct{}{}}
}

// join returns a channel that holds a token while something may have changed.
func (w *waiters) join(project tidelock.ProjectID) (woken <-chan struct{}, leave func()) {
	me := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.rooms[project] == nil {
		w.rooms[project] = map[chan struct{}]struct{}{}
	}
	w.rooms[project][me] = struct{}{}
	return me, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.rooms[project], me)
		if len(w.rooms[project]) == 0 {
			delete(w.rooms, project)
		}
	}
}

// wake wakes those of a project; of all projects for 0. It never blocks.
func (w *waiters) wake(project tidelock.ProjectID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, room := range w.rooms {
		if project != 0 && id != project {
			continue
		}
		for waiter := range room {
			select {
			case waiter <- struct{}{}:
			default: // has not looked since it was woken before
			}
		}
	}
}

func (w *waiters) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.ended = true
		close(w.over)
	}
}

// runWaiters wakes waiters by what the bus tells, until ctx is done. Without
// it they look again on their slow timers.
func (f *Forge) runWaiters(ctx context.Context) {
	subscriptions := make([]*bus.Subscription, 0, 2)
	for _, subscribe := range []func() (*bus.Subscription, error){
		func() (*bus.Subscription, error) {
			return bus.Subscribe(f.bus, func(e tidelock.RolloutChanged) { f.waiters.wake(e.Project) })
		},
		func() (*bus.Subscription, error) {
			return bus.Subscribe(f.bus, func(e tidelock.Pushed) { f.waiters.wake(e.Project) })
		},
	} {
		s, err := subscribe()
		if err != nil {
			f.log.WarnContext(ctx, "those who wait for commits look again slowly", "error", err)
			continue
		}
		subscriptions = append(subscriptions, s)
	}
	cancel := f.bus.OnLag(func() { f.waiters.wake(0) })
	defer cancel()
	<-ctx.Done()
	for _, s := range subscriptions {
		s.Close()
	}
}

// ancestries remembers which commit contains which. It never changes, so that
// nothing has to be forgotten but for room: then all of it.
type ancestries struct {
	mu    sync.Mutex
	known map[ancestry]bool
}

type ancestry struct {
	project          tidelock.ProjectID
	commit, ancestor tidelock.CommitID
}

const mostAncestries = 1 << 14

func (a *ancestries) get(key ancestry) (has, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	has, known = a.known[key]
	return has, known
}

func (a *ancestries) put(key ancestry, has bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known == nil || len(a.known) >= mostAncestries {
		a.known = map[ancestry]bool{}
	}
	a.known[key] = has
}

// contains reports whether an ancestor is in the history of a commit, or is
// the commit.
func (f *Forge) contains(ctx context.Context, project tidelock.ProjectID, commit, ancestor tidelock.CommitID) (bool, error) {
	if commit == ancestor {
		return true, nil
	}
	key := ancestry{project, commit, ancestor}
	if has, known := f.ancestries.get(key); known {
		return has, nil
	}
	has, err := f.repos.Repo(project).Contains(ctx, commit, ancestor)
	if err != nil {
		return false, err
	}
	f.ancestries.put(key, has)
	return has, nil
}
