package storetest

import (
	"fmt"
	"time"

	"tidelock.dev"
)

var buildTests = []test{
	{"follow heads", func(w world) {
		site, other := w.site(), w.project(w.group(0, "elsewhere").ID, "other")
		push := w.push(site.ID, "main=c1", "dev=c1")
		w.push(other.ID, "main=c9")

		all, err := w.UndeliveredHeads(w.Context(), 0, 10)
		w.ok(err)
		equal(w, refsOf(all), []string{"refs/heads/dev", "refs/heads/main", "refs/heads/main"})
		some, err := w.UndeliveredHeads(w.Context(), 0, 1)
		w.ok(err)
		equal(w, len(some), 1)
		heads, err := w.UndeliveredHeads(w.Context(), site.ID, 10)
		w.ok(err)
		equal(w, refsOf(heads), []string{"refs/heads/dev", "refs/heads/main"})
		equal(w, heads[1].Commit, tidelock.CommitID("c1"))
		equal(w, heads[1].Push, push.ID)

		none, err := w.RecordBuilds(w.Context(), heads[1], nil)
		w.ok(err)
		equal(w, none, []tidelock.Build{})
		heads, err = w.UndeliveredHeads(w.Context(), site.ID, 10)
		w.ok(err)
		equal(w, refsOf(heads), []string{"refs/heads/dev"})

		w.push(site.ID, "main=c2", "dev=")
		heads, err = w.UndeliveredHeads(w.Context(), site.ID, 10)
		w.ok(err)
		equal(w, refsOf(heads), []string{"refs/heads/main"})

		// A branch that is gone is forgotten, and new when it comes again.
		_, err = w.RecordBuilds(w.Context(), heads[0], nil)
		w.ok(err)
		w.push(site.ID, "main=")
		w.ok(w.ForgetDelivered(w.Context()))
		w.push(site.ID, "main=c2")
		heads, err = w.UndeliveredHeads(w.Context(), site.ID, 10)
		w.ok(err)
		equal(w, refsOf(heads), []string{"refs/heads/main"})

		_, err = w.RecordBuilds(w.Context(), tidelock.Head{Project: 99, Ref: "refs/heads/main", Commit: "c1"}, nil)
		w.kind(err, tidelock.NotFound)
	}},

	{"are found by what they are of", func(w world) {
		site := w.site()
		head := tidelock.Head{Project: site.ID, Ref: "refs/heads/\xffmain", Commit: "c1"}
		first, err := w.RecordBuilds(w.Context(), head, []tidelock.Build{
			{Application: "shop", State: tidelock.StatusSuccess, Image: "store/shop", Tags: []string{"latest", "main"}, Digest: "sha256:1",
				Layer: "sha256:2", Inputs: "sha256:3", Watched: []string{"base"}, Push: 7, CreatedAt: start, Duration: 1500*time.Millisecond + 7,
				Findings: []tidelock.Finding{{Check: "schema", Path: "a.yaml", Line: 3, Message: "odd", Warning: true}}},
			{Application: "cart", State: tidelock.StatusFailed},
		})
		w.ok(err)
		shop := first[0]
		equal(w, shop.CreatedAt, at(0))
		equal(w, shop.Duration, 1500*time.Millisecond)
		equal(w, []any{shop.Project, shop.Ref, shop.Commit}, []any{head.Project, head.Ref, head.Commit})

		head.Commit = "c2"
		second, err := w.RecordBuilds(w.Context(), head, []tidelock.Build{
			{Application: "shop", State: tidelock.StatusFailed},
			{Application: "cart", State: tidelock.StatusSkipped, Digest: "sha256:4"},
		})
		w.ok(err)
		last, err := w.LastBuilds(w.Context(), site.ID, head.Ref)
		w.ok(err)
		equal(w, last, []tidelock.Build{second[1], shop})
		none, err := w.LastBuilds(w.Context(), site.ID, "refs/heads/other")
		w.ok(err)
		equal(w, none, []tidelock.Build{})

		for _, c := range []struct {
			filter tidelock.BuildFilter
			want   []tidelock.Build
		}{
			{tidelock.BuildFilter{}, []tidelock.Build{second[1], second[0], first[1], shop}},
			{tidelock.BuildFilter{Commit: "c1"}, []tidelock.Build{first[1], shop}},
			{tidelock.BuildFilter{Application: "shop"}, []tidelock.Build{second[0], shop}},
			{tidelock.BuildFilter{Digest: "sha256:1"}, []tidelock.Build{shop}},
			{tidelock.BuildFilter{State: tidelock.StatusFailed}, []tidelock.Build{second[0], first[1]}},
			{tidelock.BuildFilter{LatestOfApplications: true}, []tidelock.Build{second[1], second[0]}},
			{tidelock.BuildFilter{Ref: "refs/heads/other"}, []tidelock.Build{}},
		} {
			c.filter.Project = site.ID
			got, total, err := w.Builds(w.Context(), c.filter, everything)
			w.ok(err)
			equal(w, got, c.want)
			equal(w, total, len(c.want))
		}
		got, total, err := w.Builds(w.Context(), tidelock.BuildFilter{Project: site.ID}, tidelock.Page{Number: 2, PerPage: 3})
		w.ok(err)
		equal(w, got, []tidelock.Build{shop})
		equal(w, total, 4)

		w.ok(w.DeleteProject(w.Context(), site.ID))
		got, _, err = w.Builds(w.Context(), tidelock.BuildFilter{Project: site.ID}, everything)
		w.ok(err)
		equal(w, got, []tidelock.Build{})
	}},

	{"are kept within bounds, but never without a success", func(w world) {
		site := w.site()
		for i := range 110 {
			state := tidelock.StatusFailed
			if i == 0 {
				state = tidelock.StatusSuccess
			}
			head := tidelock.Head{Project: site.ID, Ref: "refs/heads/main", Commit: tidelock.CommitID(fmt.Sprintf("c%d", i))}
			_, err := w.RecordBuilds(w.Context(), head, []tidelock.Build{{Application: "shop", State: state}})
			w.ok(err)
		}
		all, _, err := w.Builds(w.Context(), tidelock.BuildFilter{Project: site.ID}, everything)
		w.ok(err)
		equal(w, len(all), 101)
		last, err := w.LastBuilds(w.Context(), site.ID, "refs/heads/main")
		w.ok(err)
		equal(w, len(last), 1)
		equal(w, last[0].Commit, tidelock.CommitID("c0"))
	}},
}

func refsOf(heads []tidelock.Head) []string {
	var refs []string
	for _, h := range heads {
		refs = append(refs, string(h.Ref))
	}
	return refs
}
