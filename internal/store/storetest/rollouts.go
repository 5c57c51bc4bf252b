package storetest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"tidelock.dev"
)

func observed(agent tidelock.AgentID, object tidelock.ObjectID, source tidelock.SourceID, state tidelock.ObservedState, when time.Time) tidelock.Observation {
	return tidelock.Observation{
		Agent: agent, Object: object, Source: source, State: state, Health: tidelock.HealthUnknown, Since: when, UpdatedAt: when,
	}
}

const kustomization tidelock.ObjectID = "Kustomization/flux-system/apps"

// leads lets a source of an agent lead to a project.
func (w world) leads(agent tidelock.AgentID, source tidelock.SourceID, project tidelock.ProjectID) {
	w.Helper()
	s := agentSource(agent, source, tidelock.Converged, at(0))
	s.Project = project
	w.ok(w.SaveAgentSources(w.Context(), agent, []tidelock.AgentSource{s}, nil))
}

var observationTests = []test{
	{"are read as they were saved, in order, with the project of their source", func(w world) {
		site := w.site()
		one, two := w.agent(site.ID, "one"), w.agent(site.ID, "two")
		w.leads(one.ID, source, site.ID)
		full := tidelock.Observation{
			Agent: one.ID, Object: kustomization, UID: "u", Project: site.ID, Suspended: true, State: tidelock.ObservedFailed, Reason: "Bad",
			Message: "no \u00e9 \"<b>\"", Revision: "main@sha1:c1", Interval: time.Minute, Requested: true, Attempted: "main@sha1:c2", Source: source,
			Path: "./apps", Namespace: "shop", Environment: "production", DependsOn: []tidelock.ObjectID{"Kustomization/a/b"}, Timeout: time.Hour,
			Health: tidelock.HealthFailed, Objects: 3, Unhealthy: []tidelock.ObjectHealth{{Kind: "Pod", Name: "p", Health: tidelock.HealthFailed}},
			Outcomes: []tidelock.Outcome{{Revision: "main@sha1:c2", State: tidelock.ObservedFailed, AttemptedAt: at(0), FailedAt: at(time.Second)}},
			Since:    at(1), UpdatedAt: at(time.Second),
		}
		itself := observed(one.ID, tidelock.ObjectID(source), "", tidelock.ObservedReady, at(0))
		itself.Project = site.ID
		strange := observed(one.ID, "HelmRelease/a/b", "GitRepository/never/was", tidelock.ObservedReady, at(0))
		other := observed(two.ID, kustomization, source, tidelock.ObservedReady, at(0)) // whose source is not served
		w.ok(w.SaveObservations(w.Context(), one.ID, nil, nil))
		w.ok(w.SaveObservations(w.Context(), one.ID, []tidelock.Observation{full, strange, itself}, nil))
		w.ok(w.SaveObservations(w.Context(), two.ID, []tidelock.Observation{other}, nil))
		read := func(f tidelock.ObservationFilter, want ...tidelock.Observation) {
			w.Helper()
			got, err := w.Observations(w.Context(), f)
			w.ok(err)
			equal(w, got, append([]tidelock.Observation{}, want...))
		}
		read(tidelock.ObservationFilter{}, itself, strange, full, other)
		read(tidelock.ObservationFilter{Agent: one.ID}, itself, strange, full)
		read(tidelock.ObservationFilter{Project: site.ID}, itself, full)
		read(tidelock.ObservationFilter{Source: source}, full, other)
		read(tidelock.ObservationFilter{Agent: one.ID, Objects: []tidelock.ObjectID{kustomization, "Kustomization/no/no", kustomization}}, full)
		read(tidelock.ObservationFilter{Objects: []tidelock.ObjectID{}})

		many := make([]tidelock.ObjectID, 250)
		for i := range many {
			many[i] = kustomization
		}
		read(tidelock.ObservationFilter{Agent: two.ID, Objects: append(many, "HelmRelease/a/b")}, other)

		w.leads(one.ID, source, 0)
		w.leads(two.ID, source, site.ID)
		other.Project = site.ID
		read(tidelock.ObservationFilter{Project: site.ID}, other)
		w.ok(w.SaveObservations(w.Context(), one.ID, nil, []tidelock.ObjectID{kustomization, "HelmRelease/no/no"}))
		itself.Project = 0
		read(tidelock.ObservationFilter{Agent: one.ID}, itself, strange)
		w.ok(w.DeleteAgent(w.Context(), two.ID))
		read(tidelock.ObservationFilter{Agent: two.ID})
		w.ok(w.SaveObservations(w.Context(), two.ID, []tidelock.Observation{other}, nil)) // a late word
		read(tidelock.ObservationFilter{Agent: two.ID})
	}},

	{"say since when they are in a state", func(w world) {
		agent := w.agent(w.site().ID, "prod")
		save := func(state tidelock.ObservedState, health tidelock.Health, when, want time.Time) {
			w.Helper()
			o := observed(agent.ID, kustomization, source, state, when)
			o.Health = health
			w.ok(w.SaveObservations(w.Context(), agent.ID, []tidelock.Observation{o}, nil))
			o.Since = want
			got, err := w.Observations(w.Context(), tidelock.ObservationFilter{Agent: agent.ID})
			w.ok(err)
			equal(w, got, []tidelock.Observation{o})
		}
		save(tidelock.ObservedReady, tidelock.HealthProgressing, at(0), at(0))
		save(tidelock.ObservedReady, tidelock.HealthProgressing, at(time.Minute), at(0))
		save(tidelock.ObservedReady, tidelock.HealthHealthy, at(time.Hour), at(time.Hour))
		save(tidelock.ObservedFailed, tidelock.HealthHealthy, at(2*time.Hour), at(2*time.Hour))
	}},

	{"are saved by two at once", func(w world) {
		agent := w.agent(w.site().ID, "prod")
		for _, err := range together(8, func(i int) error {
			set := []tidelock.Observation{
				observed(agent.ID, kustomization, source, tidelock.ObservedReady, at(0)),
				observed(agent.ID, "HelmRelease/a/b", source, tidelock.ObservedReady, at(0)),
			}
			if i%2 == 0 {
				slices.Reverse(set)
			}
			return w.SaveObservations(w.Context(), agent.ID, set, []tidelock.ObjectID{"HelmRelease/a/c"})
		}) {
			w.ok(err)
		}
		got, err := w.Observations(w.Context(), tidelock.ObservationFilter{})
		w.ok(err)
		equal(w, len(got), 2)
	}},
}

// going is a rollout of a commit.
func going(agent tidelock.Agent, project tidelock.ProjectID, commit tidelock.CommitID, state tidelock.RolloutState, turn int64) tidelock.Rollout {
	return tidelock.Rollout{
		Agent: agent.ID, AgentName: agent.Name, Applier: kustomization, Source: source, Project: project, Commit: commit, State: state, Turn: turn,
		UpdatedAt: at(0),
	}
}

func (w world) saveRollouts(given ...tidelock.Rollout) []tidelock.Rollout {
	w.Helper()
	saved, err := w.SaveRollouts(w.Context(), given...)
	w.ok(err)
	slices.SortFunc(saved, func(a, b tidelock.Rollout) int { return cmp.Compare(a.Turn, b.Turn) })
	return saved
}

func (w world) rollouts(f tidelock.RolloutFilter) []tidelock.Rollout {
	w.Helper()
	found, total, err := w.Rollouts(w.Context(), f, everything)
	w.ok(err)
	equal(w, total, len(found))
	return found
}

var rolloutTests = []test{
	{"are read as they were saved, newest first", func(w world) {
		site := w.site()
		agent, other := w.agent(site.ID, "prod"), w.agent(site.ID, "test")
		push := w.push(site.ID, "main=c1")
		full := tidelock.Rollout{
			Agent: agent.ID, AgentName: "prod", Applier: kustomization, Source: source, Project: site.ID, Commit: "c1", Digest: "sha256:d",
			Ref: "refs/heads/m\xffin", Push: push.ID, Trace: push.Trace, Environment: "production", State: tidelock.RolloutFailed, Reason: "Bad",
			Message: "no", Newest: true, Turn: 64, PendingAt: at(1), RunningAt: at(2), AppliedAt: at(3000), HealthyAt: at(4000), FinishedAt: at(5000),
			ReportedAt: at(6000), UpdatedAt: at(time.Second), Status: 3, Deployment: 4,
		}
		saved := w.saveRollouts(full)[0]
		full.ID = saved.ID
		equal(w, w.rollouts(tidelock.RolloutFilter{}), []tidelock.Rollout{full})
		elsewhere := w.saveRollouts(going(other, site.ID, "c1", tidelock.RolloutPending, 1))[0]
		second := w.saveRollouts(going(agent, site.ID, "c2", tidelock.RolloutRunning, 32))[0]
		for _, tt := range []struct {
			filter tidelock.RolloutFilter
			want   []tidelock.Rollout
		}{
			{tidelock.RolloutFilter{Project: site.ID}, []tidelock.Rollout{second, elsewhere, full}},
			{tidelock.RolloutFilter{Agent: agent.ID}, []tidelock.Rollout{second, full}},
			{tidelock.RolloutFilter{Commit: "c1"}, []tidelock.Rollout{elsewhere, full}},
			{tidelock.RolloutFilter{Push: push.ID}, []tidelock.Rollout{full}},
			{tidelock.RolloutFilter{Environment: "production"}, []tidelock.Rollout{full}},
			{tidelock.RolloutFilter{States: []tidelock.RolloutState{tidelock.RolloutRunning, tidelock.RolloutFailed}}, []tidelock.Rollout{second, full}},
			{tidelock.RolloutFilter{Newest: true}, []tidelock.Rollout{full}},
			{tidelock.RolloutFilter{Unreported: true, Source: source, Applier: kustomization}, []tidelock.Rollout{second, elsewhere}},
			{tidelock.RolloutFilter{Project: site.ID + 1}, []tidelock.Rollout{}},
		} {
			equal(w, w.rollouts(tt.filter), tt.want)
		}
		page, total, err := w.Rollouts(w.Context(), tidelock.RolloutFilter{}, tidelock.Page{Number: 2, PerPage: 2})
		w.ok(err)
		equal(w, page, []tidelock.Rollout{full})
		equal(w, total, 3)
	}},

	{"are found by what succeeded last where the newest did not", func(w world) {
		site, other := w.site(), w.project(w.group(0, "others").ID, "site")
		save := func(agent tidelock.Agent, project tidelock.ProjectID, commit tidelock.CommitID, state tidelock.RolloutState, turn int64, newest bool) tidelock.Rollout {
			r := going(agent, project, commit, state, turn)
			r.Newest = newest
			return w.saveRollouts(r)[0]
		}
		broken, fine, fresh, moved := w.agent(site.ID, "broken"), w.agent(site.ID, "fine"), w.agent(site.ID, "fresh"), w.agent(site.ID, "moved")
		again := save(broken, site.ID, "c1", tidelock.RolloutSuccess, 3, false) // it came back after c2
		save(broken, site.ID, "c2", tidelock.RolloutSuccess, 2, false)
		save(broken, site.ID, "c3", tidelock.RolloutFailed, 4, true)
		save(fine, site.ID, "c1", tidelock.RolloutSuccess, 1, false)
		save(fine, site.ID, "c3", tidelock.RolloutSuccess, 2, true)
		save(fresh, site.ID, "c3", tidelock.RolloutRunning, 1, true)
		save(moved, site.ID, "c1", tidelock.RolloutSuccess, 1, false)
		save(moved, other.ID, "d1", tidelock.RolloutSuccess, 2, false)
		save(moved, site.ID, "c3", tidelock.RolloutFailed, 3, true)
		equal(w, w.rollouts(tidelock.RolloutFilter{Project: site.ID, LastSuccess: true}), []tidelock.Rollout{again})
	}},

	{"that were applied, the last first", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		back := going(agent, site.ID, "c1", tidelock.RolloutSuperseded, 3) // it came back after c2
		back.AppliedAt = at(0)
		before := going(agent, site.ID, "c2", tidelock.RolloutSuccess, 2)
		before.AppliedAt = at(0)
		back, before = w.saveRollouts(back)[0], w.saveRollouts(before)[0]
		w.saveRollouts(going(agent, site.ID, "c3", tidelock.RolloutFailed, 4))
		equal(w, w.rollouts(tidelock.RolloutFilter{Agent: agent.ID, Applier: kustomization, Project: site.ID, Applied: true}), []tidelock.Rollout{back, before})
	}},

	{"are one for each agent, applier, project and commit", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		for _, err := range together(8, func(i int) error {
			return w.Atomically(w.Context(), func(ctx context.Context) error {
				if err := w.LockAgent(ctx, agent.ID); err != nil {
					return err
				}
				r := going(agent, site.ID, "c1", tidelock.RolloutPending, 64)
				r.Newest = true
				_, err := w.SaveRollouts(ctx, r)
				return err
			})
		}) {
			w.ok(err)
		}
		before := w.rollouts(tidelock.RolloutFilter{})
		equal(w, len(before), 1)
		// The next one takes its place as the newest, in whatever order they come.
		first, next := before[0], going(agent, site.ID, "c2", tidelock.RolloutPending, 128)
		first.Newest, next.Newest = false, true
		w.saveRollouts(next, first)
		newest := w.rollouts(tidelock.RolloutFilter{Newest: true})
		equal(w, len(newest), 1)
		equal(w, newest[0].Commit, tidelock.CommitID("c2"))
		if _, err := w.SaveRollouts(w.Context(), going(agent, site.ID+1, "c1", tidelock.RolloutPending, 1)); tidelock.KindOf(err) != tidelock.NotFound {
			w.Errorf("a rollout of no project is saved with %v", err)
		}
		w.ok(w.DeleteAgent(w.Context(), agent.ID))
		equal(w, w.rollouts(tidelock.RolloutFilter{}), []tidelock.Rollout{})
		if _, err := w.SaveRollouts(w.Context(), next); tidelock.KindOf(err) != tidelock.NotFound {
			w.Errorf("a rollout of no agent is saved with %v", err)
		}
		if err := w.Atomically(w.Context(), func(ctx context.Context) error { return w.LockAgent(ctx, agent.ID) }); tidelock.KindOf(err) != tidelock.NotFound {
			w.Errorf("an agent that was deleted is locked with %v", err)
		}
	}},

	{"are reported as they were when that began", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		r := w.saveRollouts(going(agent, site.ID, "c1", tidelock.RolloutRunning, 64))[0]
		reported := r
		reported.Status, reported.Deployment, reported.Environment = 7, 8, "prod/shop"
		w.ok(w.RolloutsReported(w.Context(), at(time.Minute), reported))
		got := w.rollouts(tidelock.RolloutFilter{})[0]
		reported.ReportedAt = at(time.Minute)
		equal(w, got, reported)

		moved := r // by somebody who has not seen the report, at the same moment
		moved.State = tidelock.RolloutSuccess
		moved = w.saveRollouts(moved)[0]
		if !moved.UpdatedAt.After(r.UpdatedAt) || moved.Status != 7 || moved.Deployment != 8 || moved.Environment != "prod/shop" {
			w.Errorf("after it moved on it is %+v", moved)
		}
		// A report of what it was before does not count for what it is now.
		w.ok(w.RolloutsReported(w.Context(), at(time.Hour), reported))
		equal(w, len(w.rollouts(tidelock.RolloutFilter{Unreported: true})), 1)
		sum, err := w.RolloutSum(w.Context())
		w.ok(err)
		equal(w, sum, tidelock.RolloutSum{Newest: map[tidelock.RolloutState]int{}, Unreported: 1, OldestUnreported: moved.UpdatedAt})
		w.ok(w.RolloutsReported(w.Context(), at(time.Hour), moved))
		equal(w, len(w.rollouts(tidelock.RolloutFilter{Unreported: true})), 0)
		sum, err = w.RolloutSum(w.Context())
		w.ok(err)
		equal(w, sum, tidelock.RolloutSum{Newest: map[tidelock.RolloutState]int{}})
		w.ok(w.RolloutsReported(w.Context(), at(0)))
	}},

	{"that matter are found", func(w world) {
		site := w.site()
		shop := w.project(site.Namespace, "shop")
		agent, other := w.agent(site.ID, "prod"), w.agent(site.ID, "test")
		newest := going(agent, site.ID, "c4", tidelock.RolloutSuccess, 4)
		newest.Newest = true
		saved := w.saveRollouts(
			going(agent, site.ID, "c1", tidelock.RolloutSuccess, 1),
			going(agent, site.ID, "c2", tidelock.RolloutFailed, 2),
			going(agent, shop.ID, "c3", tidelock.RolloutUnknown, 3),
			newest,
		)
		elsewhere := w.saveRollouts(going(other, site.ID, "c1", tidelock.RolloutPending, 1))
		beside := going(agent, site.ID, "c1", tidelock.RolloutSuccess, 1)
		beside.Applier = "HelmRelease/shop/web"
		beside = w.saveRollouts(beside)[0]
		moving := going(agent, site.ID, "c2", tidelock.RolloutRunning, 2)
		moving.Applier, moving.Newest = beside.Applier, true
		moving = w.saveRollouts(moving)[0]
		live := func(appliers []tidelock.ObjectID, project tidelock.ProjectID, commits []tidelock.CommitID, want ...tidelock.Rollout) {
			w.Helper()
			got, err := w.LiveRollouts(w.Context(), agent.ID, appliers, project, commits)
			w.ok(err)
			equal(w, got, want)
		}
		live(nil, 0, nil, moving, saved[2], saved[3])
		live(nil, site.ID, []tidelock.CommitID{"c1", "c9", "c1", "c4"}, beside, moving, saved[0], saved[2], saved[3])
		live(nil, shop.ID, []tidelock.CommitID{"c1"}, moving, saved[2], saved[3])
		live([]tidelock.ObjectID{}, site.ID, []tidelock.CommitID{"c1"})
		live([]tidelock.ObjectID{"HelmRelease/a/b"}, site.ID, []tidelock.CommitID{"c1"})
		live([]tidelock.ObjectID{beside.Applier, "HelmRelease/a/b"}, site.ID, []tidelock.CommitID{"c1"}, beside, moving)
		some, commits := []tidelock.ObjectID{kustomization, kustomization}, []tidelock.CommitID{"c1"}
		for i := range 250 { // more than one query holds
			some = append(some, tidelock.ObjectID(fmt.Sprint("Kustomization/a/", i)))
			commits = append(commits, tidelock.CommitID(fmt.Sprint("z", i)))
		}
		live(append(some, beside.Applier), site.ID, append(commits, "c2"), beside, moving, saved[0], saved[1], saved[2], saved[3])
		beside.ReportedAt = at(0)
		moving.State, moving.ReportedAt = tidelock.RolloutSuperseded, at(0)
		w.saveRollouts(beside, moving)

		agents, err := w.AgentsUnderWay(w.Context())
		w.ok(err)
		equal(w, agents, []tidelock.AgentID{other.ID})
		w.leads(other.ID, source, shop.ID)
		agents, err = w.Followers(w.Context(), shop.ID)
		w.ok(err)
		equal(w, agents, []tidelock.AgentID{agent.ID, other.ID})
		agents, err = w.Followers(w.Context(), site.ID)
		w.ok(err)
		equal(w, agents, []tidelock.AgentID{other.ID})
		followed, err := w.FollowedProjects(w.Context())
		w.ok(err)
		equal(w, followed, []tidelock.ProjectID{shop.ID})

		unsettled := func(want ...tidelock.ProjectID) {
			w.Helper()
			got, err := w.UnsettledProjects(w.Context())
			w.ok(err)
			equal(w, got, want)
		}
		unsettled(site.ID, shop.ID)
		for _, r := range append(saved, elsewhere...) {
			r.State, r.ReportedAt = tidelock.RolloutSuperseded, at(0)
			w.saveRollouts(r)
		}
		unsettled([]tidelock.ProjectID{}...)
	}},

	{"are made of pushes once", func(w world) {
		site := w.site()
		planned := func(want ...tidelock.PushID) {
			w.Helper()
			pushes, err := w.UnplannedPushes(w.Context(), site.ID, 2)
			w.ok(err)
			got := []tidelock.PushID{}
			for _, p := range pushes {
				got = append(got, p.ID)
				if len(p.Updates) == 0 {
					w.Errorf("push %d comes without its updates", p.ID)
				}
			}
			equal(w, got, append([]tidelock.PushID{}, want...))
		}
		planned()
		one, two, three := w.push(site.ID, "main=c1"), w.push(site.ID, "main=c2"), w.push(site.ID, "main=c1", "next=c3")
		planned(one.ID, two.ID)
		unsettled, err := w.UnsettledProjects(w.Context())
		w.ok(err)
		equal(w, unsettled, []tidelock.ProjectID{site.ID})
		w.ok(w.PushPlanned(w.Context(), site.ID, two.ID))
		w.ok(w.PushPlanned(w.Context(), site.ID, one.ID)) // by somebody who is late
		planned(three.ID)
		w.ok(w.PushPlanned(w.Context(), site.ID, three.ID))
		planned()
		w.ok(w.PushPlanned(w.Context(), site.ID+1, three.ID)) // of a project that is gone

		pushed, err := w.PushedCommits(w.Context(), site.ID, []tidelock.CommitID{"c1", "c2", "c3", "c4"})
		w.ok(err)
		equal(w, pushed, map[tidelock.CommitID]tidelock.PushID{"c1": three.ID, "c2": two.ID, "c3": three.ID})
		pushed, err = w.PushedCommits(w.Context(), w.project(site.Namespace, "shop").ID, []tidelock.CommitID{"c1"})
		w.ok(err)
		equal(w, pushed, map[tidelock.CommitID]tidelock.PushID{})
	}},
}
