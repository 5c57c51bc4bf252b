package forge_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A watchedStore lets a test see, and stand between, what the forge asks of its
// store.
type watchedStore struct {
	forge.Store
	pushedCommits atomic.Int32
	presence      func() // called once an agent's presence was read
	most          int    // rollouts that were saved in one go
	stuck         tidelock.AgentID
	locking       func(context.Context) // called in a transaction that moves rollouts
}

func (s *watchedStore) LockAgent(ctx context.Context, agent tidelock.AgentID) error {
	if agent == s.stuck {
		return errors.New("out of order")
	}
	if s.locking != nil {
		s.locking(ctx)
	}
	return s.Store.LockAgent(ctx, agent)
}

func (s *watchedStore) PushedCommits(ctx context.Context, p tidelock.ProjectID, c []tidelock.CommitID) (map[tidelock.CommitID]tidelock.PushID, error) {
	s.pushedCommits.Add(1)
	return s.Store.PushedCommits(ctx, p, c)
}

func (s *watchedStore) AgentPresence(ctx context.Context, agent tidelock.AgentID) ([]tidelock.AgentPresence, error) {
	found, err := s.Store.AgentPresence(ctx, agent)
	if then := s.presence; then != nil {
		s.presence = nil
		then()
	}
	return found, err
}

func (s *watchedStore) SaveRollouts(ctx context.Context, rollouts ...tidelock.Rollout) ([]tidelock.Rollout, error) {
	s.most = max(s.most, len(rollouts))
	return s.Store.SaveRollouts(ctx, rollouts...)
}

func newWatchedStory(t *testing.T) (*story, *watchedStore) {
	watched := &watchedStore{}
	return newStoryIn(newWorldWith(t, func(s forge.Store) forge.Store { watched.Store = s; return watched })), watched
}

// An agent may say that it saw any number of commits. They are looked up
// together, and those that the project does not have hide no other.
func TestRolloutsOfManyCommits(t *testing.T) {
	t.Parallel()
	s, watched := newWatchedStory(t)
	s.line("push A")
	// A commit that no push ended with, but that is in the repository.
	inner := s.git(s.site, "commit-tree", string(s.commits["A"])+"^{tree}", "-p", string(s.commits["A"]), "-m", "inner")
	outer := s.git(s.site, "commit-tree", string(s.commits["A"])+"^{tree}", "-p", inner, "-m", "outer")
	s.git(s.site, "update-ref", "refs/heads/main", outer)
	_, err := s.Pushed(t.Context(), s.site.ID, s.root, []tidelock.RefName{"refs/heads/main"})
	s.ok(err)
	tree := s.git(s.site, "rev-parse", inner+"^{tree}")

	var appliers []tidelock.Observation
	for i := range 40 {
		o := s.applier
		o.Object = tidelock.ObjectID(fmt.Sprintf("Kustomization/flux-system/app-%d", i))
		o.State, o.Health = tidelock.ObservedReady, tidelock.HealthHealthy
		o.Attempted, o.Revision = "main@sha1:"+inner, "main@sha1:"+inner
		for j := range 8 {
			o.Outcomes = append(o.Outcomes, tidelock.Outcome{Revision: fmt.Sprintf("main@sha1:%040x", 100*i+j), State: tidelock.ObservedFailed})
		}
		o.Outcomes[0].Revision = "main@sha1:" + tree
		o.Outcomes[1].Revision = "main@sha1:" + strings.Repeat("x", 40)
		appliers = append(appliers, o)
	}
	watched.pushedCommits.Store(0)
	s.ok(s.Observe(t.Context(), s.agent, appliers, nil, false))
	if n := watched.pushedCommits.Load(); n > 10 {
		t.Errorf("the store was asked %d times for commits", n)
	}
	rollouts, _, err := s.Rollouts(t.Context(), s.root, s.site, tidelock.RolloutFilter{Applier: appliers[7].Object}, tidelock.Page{})
	s.ok(err)
	var states []string
	for _, r := range rollouts {
		states = append(states, fmt.Sprint(r.Commit == tidelock.CommitID(inner), r.Commit == tidelock.CommitID(outer), " ", r.State))
	}
	if len(states) == 0 || !strings.Contains(strings.Join(states, ";"), "true false success") {
		t.Errorf("the rollouts are %q, want that what is applied was found", states)
	}
}

// An agent that comes back while it is doubted tells only once how its rollouts
// are.
func TestDoubtOfAnAgentThatComesBack(t *testing.T) {
	t.Parallel()
	s, watched := newWatchedStory(t)
	for _, line := range []string{"push A", "sees attempted=A state=progressing", "leave"} {
		s.line(line)
	}
	s.clock = s.clock.Add(10 * time.Minute)
	watched.presence = func() {
		s.come()
		s.line("sees attempted=A state=progressing")
	}
	s.line("doubt")
	s.line("= A running*")
}

// What many appliers do at once keeps nobody from writing for long.
func TestRolloutsOfManyAppliers(t *testing.T) {
	t.Parallel()
	s, watched := newWatchedStory(t)
	const many = 1100
	appliers := make([]tidelock.Observation, many)
	for i := range appliers {
		appliers[i] = s.applier
		appliers[i].Object = tidelock.ObjectID(fmt.Sprintf("Kustomization/flux-system/app-%d", i))
	}
	s.ok(s.Observe(t.Context(), s.agent, appliers, nil, true))
	for _, step := range []struct {
		state tidelock.RolloutState
		do    func()
	}{
		{tidelock.RolloutPending, func() { s.line("push A") }},
		{tidelock.RolloutSuperseded, func() { s.ok(s.Observe(t.Context(), s.agent, nil, nil, true)) }},
	} {
		step.do()
		_, n, err := s.Rollouts(t.Context(), s.root, s.site, tidelock.RolloutFilter{States: []tidelock.RolloutState{step.state}}, tidelock.Page{Number: 1, PerPage: 1})
		s.ok(err)
		if n != many || watched.most > 500 {
			t.Errorf("%d rollouts are %s, and %d were saved in one go", n, step.state, watched.most)
		}
	}
	left, err := s.ObservationsOf(t.Context(), tidelock.ObservationFilter{Agent: s.agent.ID})
	s.ok(err)
	if len(left) != 0 {
		t.Errorf("%d observations are left of none", len(left))
	}
}

// An agent whose rollouts cannot be moved keeps no other waiting, and is made
// up for.
func TestPlanWhenOneAgentFails(t *testing.T) {
	t.Parallel()
	s, watched := newWatchedStory(t)
	first := s.agent
	var err error
	s.agent, err = s.CreateAgent(t.Context(), s.root, s.site, "second")
	s.ok(err)
	s.source.Agent = s.agent.ID
	s.come()
	s.follow()
	s.observe()
	s.line("land A")
	want := func(agents int) {
		t.Helper()
		_, n, err := s.Rollouts(t.Context(), s.root, s.site, tidelock.RolloutFilter{Commit: s.commits["A"]}, tidelock.Page{})
		s.ok(err)
		if n != agents {
			t.Errorf("%d agents have the commit to come, want %d", n, agents)
		}
	}
	watched.stuck = first.ID
	if err := s.PlanRollouts(t.Context(), s.site.ID); err == nil {
		t.Error("nobody is told of the agent that could not be planned for")
	}
	want(1)
	watched.stuck = 0
	s.plan()
	want(2)
}

// Whatever changes meanwhile, rollouts are moved or it is told that they are
// not; what others do does not matter for long.
func TestRolloutsWhileAgentsTell(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		changes tidelock.ObjectID
		want    tidelock.RolloutState
	}{
		{"of another applier", "Kustomization/flux-system/other", tidelock.RolloutRunning},
		{"of this one", "Kustomization/flux-system/apps", tidelock.RolloutPending},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, watched := newWatchedStory(t)
			other := s.applier
			other.Object = "Kustomization/flux-system/other"
			s.ok(s.Observe(t.Context(), s.agent, []tidelock.Observation{other}, nil, false))
			s.line("push A")
			seen := s.applier
			seen.State, seen.Attempted, seen.UpdatedAt = tidelock.ObservedProgressing, s.revision("A"), s.clock
			s.ok(s.store.SaveObservations(t.Context(), s.agent.ID, []tidelock.Observation{seen}, nil))

			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			tries := 0
			watched.locking = func(in context.Context) {
				if tries++; tries > 50 {
					cancel()
				}
				o := seen
				o.Object, o.UpdatedAt = tt.changes, s.clock.Add(time.Duration(tries)*time.Second)
				if err := s.store.SaveObservations(in, s.agent.ID, []tidelock.Observation{o}, nil); err != nil {
					t.Error(err)
				}
			}
			err := s.PlanRollouts(ctx, s.site.ID)
			if ctx.Err() != nil || (err == nil) != (tt.want == tidelock.RolloutRunning) {
				t.Errorf("after %d tries it ended with %v", tries, err)
			}
			watched.locking = nil
			got, _, err := s.Rollouts(t.Context(), s.root, s.site, tidelock.RolloutFilter{Applier: s.applier.Object}, tidelock.Page{})
			s.ok(err)
			if len(got) != 1 || got[0].State != tt.want {
				t.Errorf("got %+v, want it %s", got, tt.want)
			}
		})
	}
}
