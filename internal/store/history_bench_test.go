package store_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"tidelock.dev"
)

// BenchmarkPruneHistory removes a batch of pushes with a rollout each, and
// tells how long a writer may have to wait for it.
func BenchmarkPruneHistory(b *testing.B) {
	for _, batch := range []int{50, 200, 1000} {
		b.Run(fmt.Sprint(batch), func(b *testing.B) {
			db := open(b, "sqlite:"+filepath.Join(b.TempDir(), "tidelock.db"))
			ctx := b.Context()
			must := func(err error) {
				if err != nil {
					b.Fatal(err)
				}
			}
			group, err := db.CreateNamespace(ctx, tidelock.Namespace{Path: "team", Name: "Team"}, 0)
			must(err)
			project, err := db.CreateProject(ctx, tidelock.Project{Namespace: group.ID, Path: "site", Name: "Site", DefaultBranch: "main"})
			must(err)
			agent, err := db.CreateAgent(ctx, tidelock.Agent{Project: project.ID, Name: "prod"})
			must(err)
			old := time.Now().Add(-1000 * time.Hour)
			n := 0
			fill := func() {
				var rollouts []tidelock.Rollout
				for range batch + 25 {
					n++
					commit := tidelock.CommitID(fmt.Sprintf("%040x", n))
					push, err := db.RecordPush(ctx, tidelock.Push{Project: project.ID, At: old, Updates: []tidelock.RefUpdate{{Ref: "refs/heads/main", New: commit, Commit: commit}}})
					must(err)
					must(db.MarkAnnounced(ctx, push.ID))
					rollouts = append(rollouts, tidelock.Rollout{
						Agent: agent.ID, Applier: "Kustomization/a/b", Project: project.ID, Commit: commit, Push: push.ID,
						State: tidelock.RolloutSuperseded, Turn: int64(n), ReportedAt: old, UpdatedAt: old,
					})
				}
				_, err := db.SaveRollouts(ctx, rollouts...)
				must(err)
				must(db.PushPlanned(ctx, project.ID, tidelock.PushID(n)))
			}
			longest := time.Duration(0)
			for b.Loop() {
				b.StopTimer()
				fill()
				b.StartTimer()
				for _, sort := range []tidelock.HistorySort{tidelock.HistoryRollouts, tidelock.HistoryPushes} {
					began := time.Now()
					_, removed, err := db.PruneHistory(ctx, sort, time.Now().Add(-time.Hour), 0, batch)
					must(err)
					if removed < batch/2 {
						b.Fatalf("removed %d %s of %d", removed, sort, batch)
					}
					longest = max(longest, time.Since(began))
				}
			}
			b.ReportMetric(float64(longest.Microseconds())/1000, "longest-ms")
		})
	}
}
