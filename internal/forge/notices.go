package forge

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

// noticeStore is what waits to be told to integrations. SaveRollouts writes
// a notice, in its transaction, of each rollout that fails, for another cause
// too, and of each that succeeds where one had failed; only if an integration
// of the project is active.
type noticeStore interface {
	// Notices lists those after one, oldest first.
	Notices(ctx context.Context, after tidelock.NoticeID, limit int) ([]tidelock.Notice, error)
	// Told lists what an integration told of each applier.
	Told(context.Context, tidelock.IntegrationID) ([]tidelock.Told, error)
	// Tell removes notices, remembers what was told and makes deliveries that
	// wait. If one of the notices is gone, it is a Conflict and nothing is done.
	// Integrations, hooks and agents that are gone are left out.
	Tell(context.Context, []tidelock.NoticeID, []tidelock.Told, []tidelock.Delivery) error
}

const (
	noticesAtOnce = 5000
	// maxCauses is for how many causes one commit is said to fail in one
	// applier: texts that differ with every try must not flood a channel.
	maxCauses = 5
	// maxCauseText is how much of a text counts.
	maxCauseText = 4 << 10
	// calm is how long a failure that came back after it had recovered, of the
	// same commit and by the same cause, must last to be told again.
	calm = time.Hour
)

// A Sync is how a commit went in one applier.
type Sync struct {
	AgentName   string // of the cluster
	Applier     tidelock.ObjectID
	Environment string
	Reason      string
	Message     string
	Failed      time.Duration // how long it had failed before; 0 in one that fails
}

// A SyncMessage tells one integration what one commit did.
type SyncMessage struct {
	Integration tidelock.Integration
	Failed      []Sync
	Recovered   []Sync
}

// SyncNews is what is to be told of one commit of a project, and what there
// is to remember once it was.
type SyncNews struct {
	Project  tidelock.Project
	ID       tidelock.CommitID
	Commit   gitrepo.Commit // zero when it is gone
	Messages []SyncMessage

	notices []tidelock.NoticeID
	told    []tidelock.Told
}

// News makes messages of notices: one for all that a commit did within a
// window after the first of it. A failure that the same commit got over in
// that time is not told. Next is when there will be more; zero when nothing
// waits. What cannot be read now is in err, and does not hold up other
// projects.
func (f *Forge) News(ctx context.Context, now time.Time, window time.Duration) (news []SyncNews, next time.Time, err error) {
	notices, err := f.store.Notices(ctx, 0, noticesAtOnce)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("list notices: %w", err)
	}
	type subject struct {
		project tidelock.ProjectID
		commit  tidelock.CommitID
	}
	groups := map[subject][]tidelock.Notice{}
	newest := map[spot]tidelock.Notice{}
	var order []subject
	for _, n := range notices {
		newest[spot{n.Agent, n.Applier}] = n
		s := subject{n.Project, n.Commit}
		if groups[s] == nil {
			order = append(order, s)
		}
		groups[s] = append(groups[s], n)
	}
	wait := func(until time.Time) {
		if next.IsZero() || until.Before(next) {
			next = until
		}
	}
	readers := map[tidelock.ProjectID]*newsReader{}
	for _, s := range order {
		group := groups[s]
		if due := group[0].At.Add(window); due.After(now) {
			wait(due)
			continue
		}
		reader := readers[s.project]
		if reader == nil {
			reader = &newsReader{f: f, now: now, newest: newest}
			readers[s.project] = reader
			reader.err = reader.read(ctx, s.project)
		}
		if reader.err == nil {
			var one SyncNews
			var until time.Time
			if one, until, reader.err = reader.news(ctx, s.commit, group); !until.IsZero() {
				wait(until)
			}
			if reader.err == nil && len(one.notices) > 0 {
				news = append(news, one)
			}
		}
		if reader.err != nil {
			err = cmp.Or(err, fmt.Errorf("read what is to be told of project %d: %w", s.project, reader.err))
			wait(now.Add(window))
		}
	}
	return news, next, err
}

// Tell remembers that news were told, and makes the deliveries that tell them.
// It is a Conflict if another server was faster.
func (f *Forge) Tell(ctx context.Context, n SyncNews, deliveries []tidelock.Delivery) error {
	return f.store.Tell(ctx, n.notices, n.told, deliveries)
}

// A newsReader makes news of one project, of one commit after the other.
type newsReader struct {
	f   *Forge
	now time.Time
	err error

	newest       map[spot]tidelock.Notice // of all that wait
	project      tidelock.Project
	integrations []tidelock.Integration
	told         map[tidelock.IntegrationID]map[spot]tidelock.Told
	agents       map[tidelock.AgentID]string
	wants        func(tidelock.Branches, tidelock.RefName) bool
}

// A spot is where a commit goes: an applier of a cluster.
type spot struct {
	agent   tidelock.AgentID
	applier tidelock.ObjectID
}

func (r *newsReader) read(ctx context.Context, id tidelock.ProjectID) (err error) {
	if r.project, err = r.f.store.Project(ctx, id); err != nil {
		return err
	}
	all, err := r.f.store.Integrations(ctx, id)
	if err != nil {
		return err
	}
	r.told, r.agents = map[tidelock.IntegrationID]map[spot]tidelock.Told{}, map[tidelock.AgentID]string{}
	for _, i := range all {
		if !i.Active() {
			continue
		}
		told, err := r.f.store.Told(ctx, i.ID)
		if err != nil {
			return err
		}
		r.integrations, r.told[i.ID] = append(r.integrations, i), map[spot]tidelock.Told{}
		for _, t := range told {
			r.told[i.ID][spot{t.Agent, t.Applier}] = t
		}
	}
	protected, err := r.f.store.ProtectedBranches(ctx, id)
	if err != nil {
		return err
	}
	r.wants = func(branches tidelock.Branches, ref tidelock.RefName) bool {
		branch, ok := ref.Branch()
		if !ok {
			return true
		}
		isDefault := branch == r.project.DefaultBranch
		isProtected := slices.ContainsFunc(protected, func(b tidelock.ProtectedBranch) bool { return b.Matches(branch) })
		switch branches {
		case tidelock.DefaultBranch:
			return isDefault
		case tidelock.ProtectedBranches:
			return isProtected
		case tidelock.DefaultOrProtected:
			return isDefault || isProtected
		}
		return true
	}
	return nil
}

// news says what is to be told of one commit, and when there will be more of
// it; zero for not before something else happens.
func (r *newsReader) news(ctx context.Context, commit tidelock.CommitID, notices []tidelock.Notice) (SyncNews, time.Time, error) {
	news := SyncNews{Project: r.project, ID: commit}
	var until time.Time
	last := map[spot]tidelock.Notice{}
	since := map[spot]time.Time{} // when what fails began to
	var places []spot
	for _, n := range notices {
		at := spot{n.Agent, n.Applier}
		if _, ok := last[at]; !ok {
			places = append(places, at)
		}
		if n.State != tidelock.RolloutFailed {
			delete(since, at)
		} else if since[at].IsZero() {
			since[at] = n.At
		}
		last[at] = n
		news.notices = append(news.notices, n.ID)
	}
	for _, i := range r.integrations {
		message := SyncMessage{Integration: i}
		for _, at := range places {
			n := last[at]
			before, known := r.told[i.ID][at]
			if !r.wants(i.Branches, n.Ref) {
				continue
			}
			sync, err := r.sync(ctx, n)
			if err != nil {
				return SyncNews{}, time.Time{}, err
			}
			after := tidelock.Told{Integration: i.ID, Agent: n.Agent, Applier: n.Applier, Commit: commit, At: r.now}
			if n.State == tidelock.RolloutSuccess {
				if !known || before.FailedAt.IsZero() {
					continue
				}
				sync.Failed = n.At.Sub(before.FailedAt)
				after.Causes = before.Causes
				if before.Commit != commit {
					after.Causes = nil
				}
				if !i.OnlyBroken {
					message.Recovered = append(message.Recovered, sync)
				}
			} else {
				cause := causeOf(n)
				if after.FailedAt = before.FailedAt; after.FailedAt.IsZero() {
					after.FailedAt = since[at]
				}
				if before.Commit == commit {
					after.Causes = before.Causes
					again := slices.Contains(before.Causes, cause) || len(before.Causes) >= maxCauses
					switch {
					case again && !before.FailedAt.IsZero():
						continue
					case again && r.now.Before(before.At.Add(calm)) && r.newest[at].Commit != commit:
						continue // something else took its place
					case again && r.now.Before(before.At.Add(calm)):
						until = earliest(until, before.At.Add(calm))
						news.notices = slices.DeleteFunc(news.notices, func(id tidelock.NoticeID) bool { return id == n.ID })
						continue
					case !again:
						after.Causes = append(slices.Clone(before.Causes), cause)
					}
				} else {
					after.Causes = []string{cause}
				}
				message.Failed = append(message.Failed, sync)
			}
			r.told[i.ID][at] = after
			news.told = append(news.told, after)
		}
		if len(message.Failed)+len(message.Recovered) > 0 {
			news.Messages = append(news.Messages, message)
		}
	}
	if len(news.Messages) > 0 {
		var err error
		news.Commit, err = r.f.repos.Repo(r.project.ID).Commit(ctx, string(commit))
		if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			return SyncNews{}, time.Time{}, err
		}
	}
	return news, until, nil
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

func (r *newsReader) sync(ctx context.Context, n tidelock.Notice) (Sync, error) {
	name, ok := r.agents[n.Agent]
	if !ok {
		agent, err := r.f.store.Agent(ctx, n.Agent)
		if err != nil { // an agent takes its notices with it
			return Sync{}, err
		}
		name = agent.Name
		r.agents[n.Agent] = name
	}
	return Sync{AgentName: name, Applier: n.Applier, Environment: n.Environment, Reason: n.Reason, Message: n.Message}, nil
}

// varying is what differs between two tries that fail alike: numbers, times,
// and ids in hexadecimal.
var varying = regexp.MustCompile(`[0-9a-f]*[0-9][0-9a-z]*`)

// causeOf names the cause of a failure, such that two tries that fail alike
// have the same: what varies is left out, and so is the order of what failed.
func causeOf(n tidelock.Notice) string {
	words := strings.FieldsFunc(varying.ReplaceAllString(strings.ToLower(n.Message[:min(len(n.Message), maxCauseText)]), " "), func(r rune) bool { return !unicode.IsLetter(r) })
	slices.Sort(words)
	sum := sha256.Sum256([]byte(n.Reason + "\x00" + strings.Join(slices.Compact(words), " ")))
	return hex.EncodeToString(sum[:6])
}
