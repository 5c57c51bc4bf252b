package storetest

import (
	"fmt"
	"slices"
	"time"

	"tidelock.dev"
)

func branch(name string) tidelock.RefName { return tidelock.BranchRef(name) }

func update(name, old, new string) tidelock.RefUpdate {
	return tidelock.RefUpdate{Ref: branch(name), Old: tidelock.CommitID(old), New: tidelock.CommitID(new), Commit: tidelock.CommitID(new)}
}

func pushID(p tidelock.Push) string { return fmt.Sprint(p.ID) }

var pushTests = []test{
	{"move heads", func(w world) {
		site := w.site()
		tag := tidelock.RefUpdate{Ref: tidelock.TagRef("v1"), New: "ta9", Commit: "c1"}
		push, err := w.RecordPush(w.Context(), tidelock.Push{
			Project: site.ID, By: 7, Token: 8, At: start, Announced: true, Trace: "00-a-b-01",
			Updates: []tidelock.RefUpdate{update("main", "invented", "c1"), tag},
		})
		w.ok(err)
		equal(w, push, tidelock.Push{ID: push.ID, Project: site.ID, By: 7, Token: 8, At: at(0), Trace: "00-a-b-01", Updates: []tidelock.RefUpdate{update("main", "", "c1"), tag}})
		if push.ID == 0 {
			w.Fatal("got no id")
		}
		read, err := w.Push(w.Context(), push.ID)
		w.ok(err)
		equal(w, read, push)

		heads, err := w.Heads(w.Context(), site.ID)
		w.ok(err)
		want := []tidelock.Head{
			{Project: site.ID, Ref: branch("main"), Object: "c1", Commit: "c1", Push: push.ID, MovedAt: at(0), Trace: push.Trace},
			{Project: site.ID, Ref: tidelock.TagRef("v1"), Object: "ta9", Commit: "c1", Push: push.ID, MovedAt: at(0), Trace: push.Trace},
		}
		equal(w, heads, want)
		head, err := w.Head(w.Context(), site.ID, tidelock.TagRef("v1"))
		w.ok(err)
		equal(w, head, want[1])
	}},

	{"give what they move their trace", func(w world) {
		site := w.site()
		traced := func(trace string, updates ...tidelock.RefUpdate) {
			w.Helper()
			_, err := w.RecordPush(w.Context(), tidelock.Push{Project: site.ID, Trace: trace, Updates: updates})
			w.ok(err)
		}
		traced("first", update("main", "", "c1"), update("dev", "", "c1"))
		traced("second", update("main", "", "c2"))
		traced("third", update("main", "", "c2")) // moves nothing
		want := []string{"first", "second"}       // dev, main
		heads, err := w.Heads(w.Context(), site.ID)
		w.ok(err)
		equal(w, []string{heads[0].Trace, heads[1].Trace}, want)
		traced("", update("main", "", "c3"))
		head, err := w.Head(w.Context(), site.ID, branch("main"))
		w.ok(err)
		equal(w, head.Trace, "")
	}},

	{"that move nothing are not stored", func(w world) {
		site := w.site()
		w.push(site.ID, "main=c1")
		for _, branches := range [][]string{{"main=c1"}, {"main=c1", "gone="}, {"gone="}, {}} {
			push := w.push(site.ID, branches...)
			equal(w, push.ID, 0)
			equal(w, len(push.Updates), 0)
		}
		_, n, err := w.Pushes(w.Context(), tidelock.PushFilter{}, everything)
		w.ok(err)
		equal(w, n, 1)
		// Of a push that moves something, only that is stored.
		push := w.push(site.ID, "main=c1", "dev=c2", "gone=")
		equal(w, push.Updates, []tidelock.RefUpdate{update("dev", "", "c2")})
	}},

	{"leave no gaps in history", func(w world) {
		site := w.site()
		w.push(site.ID, "main=c1", "dev=d1")
		for _, tt := range []struct {
			push string
			want tidelock.RefUpdate
		}{
			{"main=c2", update("main", "c1", "c2")},
			{"main=c1", update("main", "c2", "c1")}, // forced back
			{"main=", update("main", "c1", "")},
			{"main=c3", update("main", "", "c3")},
		} {
			equal(w, w.push(site.ID, tt.push).Updates, []tidelock.RefUpdate{tt.want})
			head, err := w.Head(w.Context(), site.ID, branch("main"))
			if tt.want.New == "" {
				w.kind(err, tidelock.NotFound)
				continue
			}
			w.ok(err)
			equal(w, head.Object, tt.want.New)
		}
		heads, err := w.Heads(w.Context(), site.ID)
		w.ok(err)
		equal(w, len(heads), 2)
	}},

	{"may name a ref twice", func(w world) {
		site := w.site()
		push := w.push(site.ID, "main=c1", "main=c2", "dev=d1", "dev=")
		equal(w, push.Updates, []tidelock.RefUpdate{
			update("main", "", "c1"), update("main", "c1", "c2"), update("dev", "", "d1"), update("dev", "d1", ""),
		})
		heads, err := w.Heads(w.Context(), site.ID)
		w.ok(err)
		equal(w, len(heads), 1)
		equal(w, heads[0].Object, "c2")
	}},

	{"may be large", func(w world) {
		site := w.site()
		const n = 1234
		var branches []string
		for i := range n {
			branches = append(branches, fmt.Sprintf("b%04d=c%d", i, i))
		}
		push := w.push(site.ID, branches...)
		read, err := w.Push(w.Context(), push.ID)
		w.ok(err)
		equal(w, read, push)
		heads, err := w.Heads(w.Context(), site.ID)
		w.ok(err)
		equal(w, len(heads), n)
		for i, h := range heads {
			equal(w, [2]string{string(h.Ref), string(h.Object)}, [2]string{fmt.Sprintf("refs/heads/b%04d", i), fmt.Sprint("c", i)})
		}
		for i := range branches {
			branches[i] = fmt.Sprintf("b%04d=", i)
		}
		equal(w, len(w.push(site.ID, branches...).Updates), n)
		heads, err = w.Heads(w.Context(), site.ID)
		w.ok(err)
		equal(w, heads, []tidelock.Head{})
	}},

	{"take refs as bytes", func(w world) {
		site := w.site()
		refs := []tidelock.RefName{"refs/heads/B", "refs/heads/a", "refs/heads/a-b", "refs/heads/a/b", "refs/heads/b", "refs/heads/\u00e9", "refs/heads/\xff\xfe"}
		shuffled := []int{4, 0, 6, 2, 5, 1, 3}
		push := tidelock.Push{Project: site.ID, At: start}
		for _, i := range shuffled {
			push.Updates = append(push.Updates, tidelock.RefUpdate{Ref: refs[i], New: "c1", Commit: "c1"})
		}
		push, err := w.RecordPush(w.Context(), push)
		w.ok(err)
		read, err := w.Push(w.Context(), push.ID)
		w.ok(err)
		equal(w, read, push)
		heads, err := w.Heads(w.Context(), site.ID)
		w.ok(err)
		var got []tidelock.RefName
		for _, h := range heads {
			got = append(got, h.Ref)
			head, err := w.Head(w.Context(), site.ID, h.Ref)
			w.ok(err)
			equal(w, head, h)
		}
		equal(w, got, refs)
		_, err = w.Head(w.Context(), site.ID, "refs/heads/A")
		w.kind(err, tidelock.NotFound)
	}},

	{"made at once form one chain for each ref", func(w world) {
		one, two := w.site(), w.project(w.group(0, "crew").ID, "site")
		const writers, each = 8, 20
		errs := together(writers, func(i int) error {
			project := one.ID
			if i%2 == 1 {
				project = two.ID
			}
			for n := range each {
				object := fmt.Sprintf("w%d-%d", i, n)
				_, err := w.RecordPush(w.Context(), tidelock.Push{Project: project, Updates: []tidelock.RefUpdate{
					update("main", "", object), update(fmt.Sprint("own", i), "", object),
				}})
				if err != nil {
					return err
				}
			}
			return nil
		})
		for _, err := range errs {
			w.ok(err)
		}
		for _, project := range []tidelock.ProjectID{one.ID, two.ID} {
			pushes, n, err := w.Pushes(w.Context(), tidelock.PushFilter{Project: project}, everything)
			w.ok(err)
			equal(w, n, writers/2*each)
			slices.Reverse(pushes)
			heads := map[tidelock.RefName]tidelock.CommitID{}
			for _, p := range pushes {
				for _, u := range p.Updates {
					equal(w, u.Old, heads[u.Ref])
					heads[u.Ref] = u.New
				}
			}
			stored, err := w.Heads(w.Context(), project)
			w.ok(err)
			equal(w, len(stored), 1+writers/2)
			for _, h := range stored {
				equal(w, h.Object, heads[h.Ref])
			}
		}
	}},

	{"need a project that exists", func(w world) {
		_, err := w.RecordPush(w.Context(), tidelock.Push{Project: 99, Updates: []tidelock.RefUpdate{update("main", "", "c1")}})
		w.kind(err, tidelock.NotFound)
		_, err = w.Push(w.Context(), 1)
		w.kind(err, tidelock.NotFound)
		_, err = w.Head(w.Context(), 99, "refs/heads/main")
		w.kind(err, tidelock.NotFound)
		heads, err := w.Heads(w.Context(), 99)
		w.ok(err)
		equal(w, heads, []tidelock.Head{})
	}},

	{"wait to be announced, oldest first", func(w world) {
		site := w.site()
		var ids []tidelock.PushID
		for i := range 5 {
			ids = append(ids, w.push(site.ID, fmt.Sprint("main=c", i)).ID)
		}
		waiting := func(limit int) (got []tidelock.PushID) {
			w.Helper()
			pushes, err := w.Unannounced(w.Context(), limit)
			w.ok(err)
			if pushes == nil {
				w.Fatal("got a nil list, want an empty one")
			}
			for _, p := range pushes {
				got = append(got, p.ID)
				equal(w, len(p.Updates), 1)
				equal(w, p.Announced, false)
			}
			return got
		}
		equal(w, waiting(10), ids)
		equal(w, waiting(2), ids[:2])
		w.ok(w.MarkAnnounced(w.Context(), ids[3], ids[0], 99))
		w.ok(w.MarkAnnounced(w.Context(), ids[0]))
		w.ok(w.MarkAnnounced(w.Context()))
		equal(w, waiting(10), []tidelock.PushID{ids[1], ids[2], ids[4]})
		push, err := w.Push(w.Context(), ids[0])
		w.ok(err)
		equal(w, push.Announced, true)
		w.ok(w.MarkAnnounced(w.Context(), ids...))
		equal(w, len(waiting(10)), 0)
	}},

	{"marked at once are marked", func(w world) {
		site := w.site()
		var ids []tidelock.PushID
		for i := range 20 {
			ids = append(ids, w.push(site.ID, fmt.Sprint("main=c", i)).ID)
		}
		for _, err := range together(8, func(i int) error {
			mine := slices.Clone(ids)
			if i%2 == 0 {
				slices.Reverse(mine)
			}
			return w.MarkAnnounced(w.Context(), mine...)
		}) {
			w.ok(err)
		}
		pushes, err := w.Unannounced(w.Context(), 100)
		w.ok(err)
		equal(w, len(pushes), 0)
	}},

	{"are listed newest first", func(w world) {
		site := w.site()
		other := w.project(site.Namespace, "other")
		var ids []string
		for i := range 6 {
			project := site.ID
			if i == 2 {
				project = other.ID
			}
			ids = append(ids, pushID(w.push(project, fmt.Sprint("main=c", i), fmt.Sprint("dev=d", i))))
		}
		tagged, err := w.RecordPush(w.Context(), tidelock.Push{
			Project: site.ID, Updates: []tidelock.RefUpdate{{Ref: tidelock.TagRef("v1"), New: "ta9", Commit: "c1"}},
		})
		w.ok(err)
		for _, tt := range []struct {
			filter tidelock.PushFilter
			want   string
		}{
			{tidelock.PushFilter{Project: other.ID}, ids[2]},
			{tidelock.PushFilter{Commit: "d4"}, ids[4]},
			{tidelock.PushFilter{Commit: "c1"}, pushID(tagged) + " " + ids[1]},
			{tidelock.PushFilter{Commit: "ta9"}, pushID(tagged)},
			{tidelock.PushFilter{Commit: "c1", Project: other.ID}, ""},
			{tidelock.PushFilter{Project: 99}, ""},
		} {
			w.Logf("filter %+v", tt.filter)
			equal(w, names(w, pushID)(w.Pushes(w.Context(), tt.filter, everything)), tt.want)
		}
		paged(w, 6, pushID, func(p tidelock.Page) ([]tidelock.Push, int, error) {
			pushes, n, err := w.Pushes(w.Context(), tidelock.PushFilter{Project: site.ID}, p)
			for _, p := range pushes {
				if len(p.Updates) == 0 {
					w.Fatalf("got push %d without updates", p.ID)
				}
			}
			return pushes, n, err
		})
	}},

	{"without a time happen now", func(w world) {
		push, err := w.RecordPush(w.Context(), tidelock.Push{Project: w.site().ID, Updates: []tidelock.RefUpdate{update("main", "", "c1")}})
		w.ok(err)
		if since := time.Since(push.At); since < 0 || since > time.Minute {
			w.Fatalf("got a push %v ago, want now", since)
		}
	}},
}
