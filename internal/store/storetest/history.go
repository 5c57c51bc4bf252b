package storetest

import (
	"fmt"
	"time"

	"tidelock.dev"
)

// prune removes what is older than a moment, in batches, and says how many.
func (w world) prune(sort tidelock.HistorySort, before time.Duration, limit int) int {
	w.Helper()
	total := 0
	for after := int64(0); ; {
		next, removed, err := w.PruneHistory(w.Context(), sort, start.Add(before), after, limit)
		w.ok(err)
		total += removed
		if next == 0 {
			return total
		}
		if next <= after {
			w.Fatalf("pruning goes from %d on to %d", after, next)
		}
		after = next
	}
}

// pushAt records a push of one branch at a moment, announced and planned.
func (w world) pushAt(project tidelock.ProjectID, name, commit string, after time.Duration) tidelock.Push {
	w.Helper()
	p, err := w.RecordPush(w.Context(), tidelock.Push{Project: project, At: start.Add(after), Updates: []tidelock.RefUpdate{update(name, "", commit)}})
	w.ok(err)
	w.ok(w.MarkAnnounced(w.Context(), p.ID))
	w.ok(w.PushPlanned(w.Context(), project, p.ID))
	return p
}

var historyTests = []test{
	{"of pushes keeps those of heads and what is to be told", func(w world) {
		site, other := w.site(), w.project(w.group(0, "others").ID, "site")
		const hour = time.Hour
		w.pushAt(site.ID, "main", "c1", 0)
		w.pushAt(site.ID, "main", "c2", 1*hour)
		deleted := w.pushAt(site.ID, "dev", "c3", 2*hour)
		w.pushAt(site.ID, "dev", "", 3*hour)
		head := w.pushAt(site.ID, "main", "c4", 4*hour)
		w.pushAt(other.ID, "main", "d1", 0)
		otherHead := w.pushAt(other.ID, "main", "d2", hour)
		late, err := w.RecordPush(w.Context(), tidelock.Push{Project: other.ID, At: start, Updates: []tidelock.RefUpdate{update("x", "", "d3")}})
		w.ok(err)
		_, err = w.RecordPush(w.Context(), tidelock.Push{Project: other.ID, At: start, Updates: []tidelock.RefUpdate{update("x", "", "d4")}})
		w.ok(err)
		left := func() string {
			return names(w, pushID)(w.Pushes(w.Context(), tidelock.PushFilter{}, everything))
		}

		equal(w, w.prune(tidelock.HistoryPushes, 0, 100), 0) // nothing is that old
		equal(w, w.prune(tidelock.HistoryPushes, 2*hour, 1), 3)
		if _, err := w.Push(w.Context(), deleted.ID); err != nil {
			w.Fatalf("a push that is not old enough: %v", err)
		}
		equal(w, w.prune(tidelock.HistoryPushes, 24*hour, 100), 2)
		equal(w, left(), fmt.Sprintf("%d %d %d %d", late.ID+1, late.ID, otherHead.ID, head.ID)) // two are not announced
		w.ok(w.MarkAnnounced(w.Context(), late.ID))
		equal(w, w.prune(tidelock.HistoryPushes, 24*hour, 100), 0) // and not planned
		w.ok(w.PushPlanned(w.Context(), other.ID, late.ID))
		equal(w, w.prune(tidelock.HistoryPushes, 24*hour, 100), 1)
		got, err := w.Head(w.Context(), site.ID, branch("main"))
		w.ok(err)
		equal(w, got.Push, head.ID)
	}},

	{"of pushes keeps those of tags of images", func(w world) {
		site := w.site()
		image := w.image(site.ID, "api")
		for _, d := range []tidelock.Digest{"sha256:a", "sha256:b"} {
			w.artifact(tidelock.Artifact{Image: image.ID, Digest: d})
		}
		w.tag(image, "latest", "sha256:a")
		w.tag(image, "latest", "sha256:b")
		stays := w.tag(image, "stable", "sha256:a")
		pushes, _, err := w.Pushes(w.Context(), tidelock.PushFilter{}, everything)
		w.ok(err)
		for _, p := range pushes {
			w.ok(w.MarkAnnounced(w.Context(), p.ID))
			w.ok(w.PushPlanned(w.Context(), site.ID, p.ID))
		}
		w.prune(tidelock.HistoryPushes, 1e6*time.Hour, 100)
		equal(w, names(w, pushID)(w.Pushes(w.Context(), tidelock.PushFilter{}, everything)), fmt.Sprintf("%d %d", stays.ID, stays.ID-1))
	}},

	{"of pushes keeps those of which something is left", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		rolled, told, built := w.pushAt(site.ID, "main", "c1", 0), w.pushAt(site.ID, "main", "c2", 0), w.pushAt(site.ID, "main", "c3", 0)
		w.pushAt(site.ID, "main", "c4", 0)
		w.pushAt(site.ID, "main", "c5", 0)
		_, err := w.SaveRollouts(w.Context(), tidelock.Rollout{
			Agent: agent.ID, Applier: "Kustomization/a/b", Project: site.ID, Commit: "c1", Push: rolled.ID, State: tidelock.RolloutSuccess, Newest: true, Turn: 1,
		})
		w.ok(err)
		w.ok(w.SaveAnnouncements(w.Context(), tidelock.Announcement{Agent: agent.ID, Source: source, Number: 1, Project: site.ID, Push: told.ID, State: tidelock.Converged}))
		_, err = w.RecordBuilds(w.Context(), tidelock.Head{Project: site.ID, Ref: branch("main"), Commit: "c3"}, []tidelock.Build{
			{Application: "api", State: tidelock.StatusSuccess, Push: built.ID},
		})
		w.ok(err)
		equal(w, w.prune(tidelock.HistoryPushes, 24*time.Hour, 100), 1)
		for _, p := range []tidelock.Push{rolled, told, built} {
			if _, err := w.Push(w.Context(), p.ID); err != nil {
				w.Errorf("push %d: %v", p.ID, err)
			}
		}
	}},

	{"of rollouts keeps what is current of each applier", func(w world) {
		site := w.site()
		agent := w.agent(site.ID, "prod")
		n := 0
		save := func(applier string, state tidelock.RolloutState, newest, reported bool) tidelock.RolloutID {
			n++
			saved, err := w.SaveRollouts(w.Context(), tidelock.Rollout{
				Agent: agent.ID, Applier: tidelock.ObjectID("Kustomization/a/" + applier), Project: site.ID, Commit: tidelock.CommitID(fmt.Sprint("c", n)),
				State: state, Newest: newest, Turn: int64(n), UpdatedAt: start,
			})
			w.ok(err)
			if reported {
				w.ok(w.RolloutsReported(w.Context(), start, saved...))
			}
			return saved[0].ID
		}
		var old []tidelock.RolloutID
		unreported := save("busy", tidelock.RolloutSuperseded, false, false)
		doubtful := save("busy", tidelock.RolloutUnknown, false, true)
		for range 25 {
			old = append(old, save("busy", tidelock.RolloutSuperseded, false, true))
		}
		save("quiet", tidelock.RolloutSuperseded, false, true)
		save("quiet", tidelock.RolloutSuccess, true, true)
		save("broken", tidelock.RolloutSuccess, false, true)
		live := save("broken", tidelock.RolloutSuccess, false, true)
		for range 22 {
			save("broken", tidelock.RolloutFailed, false, true)
		}
		equal(w, w.prune(tidelock.HistoryRollouts, -time.Hour, 100), 0)
		equal(w, w.prune(tidelock.HistoryRollouts, time.Hour, 2), 5+1+2)
		got, total, err := w.Rollouts(w.Context(), tidelock.RolloutFilter{Agent: agent.ID, Applier: "Kustomization/a/busy"}, everything)
		w.ok(err)
		equal(w, total, 22)
		equal(w, got[len(got)-1].ID, unreported)
		equal(w, got[len(got)-2].ID, doubtful)
		equal(w, got[len(got)-3].ID, old[5])
		_, total, err = w.Rollouts(w.Context(), tidelock.RolloutFilter{Agent: agent.ID, Applier: "Kustomization/a/quiet"}, everything)
		w.ok(err)
		equal(w, total, 2)
		got, total, err = w.Rollouts(w.Context(), tidelock.RolloutFilter{Agent: agent.ID, Applier: "Kustomization/a/broken"}, everything)
		w.ok(err)
		equal(w, total, 21)
		equal(w, got[len(got)-1].ID, live) // which the cluster still has
	}},

	{"of announcements keeps the latest of each source", func(w world) {
		agent := w.agent(w.site().ID, "prod")
		for n := range int64(3) {
			a := announcement(agent.ID, source, n+1, tidelock.Converged)
			a.SentAt = start.Add(time.Duration(n) * time.Hour)
			w.ok(w.SaveAnnouncements(w.Context(), a))
		}
		equal(w, w.prune(tidelock.HistoryAnnouncements, time.Hour, 100), 1)
		equal(w, w.prune(tidelock.HistoryAnnouncements, 24*time.Hour, 100), 1)
		equal(w, names(w, numbered)(w.Announcements(w.Context(), tidelock.AnnouncementFilter{}, everything)), "3:converged")
	}},

	{"of builds keeps the newest, and the last that did not fail", func(w world) {
		site := w.site()
		for i, state := range []tidelock.StatusState{tidelock.StatusSuccess, tidelock.StatusFailed, tidelock.StatusSuccess, tidelock.StatusFailed, tidelock.StatusFailed} {
			_, err := w.RecordBuilds(w.Context(), tidelock.Head{Project: site.ID, Ref: branch("main"), Commit: tidelock.CommitID(fmt.Sprint("c", i+1))}, []tidelock.Build{
				{Application: "api", State: state, CreatedAt: start.Add(time.Duration(i) * time.Hour)},
			})
			w.ok(err)
		}
		commits := func() string {
			return names(w, func(b tidelock.Build) string { return string(b.Commit) })(w.Builds(w.Context(), tidelock.BuildFilter{Project: site.ID}, everything))
		}
		equal(w, w.prune(tidelock.HistoryBuilds, time.Hour, 100), 1)
		equal(w, commits(), "c5 c4 c3 c2")
		equal(w, w.prune(tidelock.HistoryBuilds, 24*time.Hour, 100), 2)
		equal(w, commits(), "c5 c3")
	}},
}
