package store_test

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/seal"
	"tidelock.dev/internal/store"
)

// withStore runs a benchmark on each engine, with a project to push to.
func withStore(b *testing.B, run func(*testing.B, *store.DB, tidelock.Project)) {
	for _, engine := range engines {
		b.Run(engine.name, func(b *testing.B) {
			box, err := seal.New(make([]byte, 32))
			if err != nil {
				b.Fatal(err)
			}
			db, err := store.Open(b.Context(), store.Config{URL: engine.url(b), Seal: box})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { db.Close() })
			ada, err := db.CreateUser(b.Context(), tidelock.User{Username: "ada"})
			if err != nil {
				b.Fatal(err)
			}
			site, err := db.CreateProject(b.Context(), tidelock.Project{Namespace: ada.Namespace, Path: "site"})
			if err != nil {
				b.Fatal(err)
			}
			run(b, db, site)
		})
	}
}

func push(project tidelock.ProjectID, ref, object string) tidelock.Push {
	return tidelock.Push{Project: project, Updates: []tidelock.RefUpdate{
		{Ref: tidelock.BranchRef(ref), New: tidelock.CommitID(object), Commit: tidelock.CommitID(object)},
	}}
}

func BenchmarkRecordPush(b *testing.B) {
	withStore(b, func(b *testing.B, db *store.DB, site tidelock.Project) {
		for i := 0; b.Loop(); i++ {
			if _, err := db.RecordPush(b.Context(), push(site.ID, "main", strconv.Itoa(i+1))); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkRecordPushParallel is 8 clients on 8 branches, each push marked
// announced as the server does.
func BenchmarkRecordPushParallel(b *testing.B) {
	withStore(b, func(b *testing.B, db *store.DB, site tidelock.Project) {
		var clients, pushes atomic.Int64
		b.SetParallelism(4)
		b.RunParallel(func(pb *testing.PB) {
			branch := fmt.Sprint("b", clients.Add(1))
			for pb.Next() {
				p, err := db.RecordPush(b.Context(), push(site.ID, branch, fmt.Sprint(pushes.Add(1))))
				if err != nil {
					b.Error(err)
					return
				}
				if err := db.MarkAnnounced(b.Context(), p.ID); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
}

func BenchmarkHead(b *testing.B) {
	withStore(b, func(b *testing.B, db *store.DB, site tidelock.Project) {
		if _, err := db.RecordPush(b.Context(), push(site.ID, "main", "c1")); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := db.Head(b.Context(), site.ID, "refs/heads/main"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkTokenByHash(b *testing.B) {
	withStore(b, func(b *testing.B, db *store.DB, site tidelock.Project) {
		if _, err := db.CreateToken(b.Context(), tidelock.Token{Kind: tidelock.DeployToken, Holder: tidelock.Holder{Project: site.ID}}, "hash", nil); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if _, err := db.TokenByHash(b.Context(), "hash"); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAccessLevel(b *testing.B) {
	withStore(b, func(b *testing.B, db *store.DB, site tidelock.Project) {
		for b.Loop() {
			if _, err := db.AccessLevel(b.Context(), 1, tidelock.Holder{Project: site.ID}, site.CreatedAt); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkSaveAnnouncements saves one announcement to each of 100 sources.
func BenchmarkSaveAnnouncements(b *testing.B) {
	withStore(b, func(b *testing.B, db *store.DB, site tidelock.Project) {
		agent, err := db.CreateAgent(b.Context(), tidelock.Agent{Project: site.ID, Name: "prod"})
		if err != nil {
			b.Fatal(err)
		}
		for n := int64(1); b.Loop(); n++ {
			batch := make([]tidelock.Announcement, 100)
			for i := range batch {
				batch[i] = tidelock.Announcement{Agent: agent.ID, Source: tidelock.SourceID(fmt.Sprint("GitRepository/a/", i)), Number: n, State: tidelock.Sent}
			}
			if err := db.SaveAnnouncements(b.Context(), batch...); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkClaimDeliveries claims and gives back while as many deliveries wait
// for 10 hooks as may, each of a branch of its own.
func BenchmarkClaimDeliveries(b *testing.B) {
	withStore(b, func(b *testing.B, db *store.DB, site tidelock.Project) {
		const most = 1000
		for i := range 10 {
			hook, err := db.CreateHook(b.Context(), tidelock.Hook{Project: site.ID, URL: "https://ci.example", Kinds: tidelock.HookKinds}, 10)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := db.RecordPush(b.Context(), push(site.ID, "main", fmt.Sprint(i))); err != nil {
				b.Fatal(err)
			}
			deliveries := make([]tidelock.Delivery, most)
			for i := range deliveries {
				deliveries[i] = tidelock.Delivery{Hook: hook.ID, Kind: tidelock.HookPush, Ref: tidelock.BranchRef(fmt.Sprint(i)), Body: []byte(`{}`), NextAt: site.CreatedAt}
			}
			if err := db.ExpandHookEvent(b.Context(), tidelock.HookEventID(i+1), deliveries, most); err != nil {
				b.Fatal(err)
			}
		}
		for now := site.CreatedAt; b.Loop(); now = now.Add(time.Second) {
			claimed, err := db.ClaimDeliveries(b.Context(), tidelock.Claim{Now: now, Until: now.Add(time.Second), Limit: 64, PerHook: 4, Yield: 3})
			if err != nil || len(claimed) != 40 {
				b.Fatalf("got %d, %v; want 40", len(claimed), err)
			}
		}
	})
}
