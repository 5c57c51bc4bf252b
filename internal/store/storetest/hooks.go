package storetest

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"tidelock.dev"
)

// hook makes a hook that is called for some kinds of events.
func (w world) hook(project tidelock.ProjectID, kinds ...tidelock.HookKind) tidelock.Hook {
	w.Helper()
	h, err := w.CreateHook(w.Context(), tidelock.Hook{
		Project: project, URL: "https://ci.example/x", Kinds: kinds, BranchMatch: tidelock.BranchWildcard,
	}, 100)
	w.ok(err)
	return h
}

// sealed compares hooks with their secrets.
func sealed(w world, got, want tidelock.Hook) {
	w.Helper()
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b tidelock.Secret) bool { return a.Reveal() == b.Reveal() })); diff != "" {
		w.Fatalf("got other than wanted (-want +got):\n%s", diff)
	}
}

// waiting makes one delivery to each hook by way of an event, due at once.
func (w world) waiting(project tidelock.ProjectID, ref string, hooks ...tidelock.HookID) {
	w.Helper()
	w.push(project, fmt.Sprintf("%s=%d", ref, time.Now().UnixNano()))
	events, err := w.HookEvents(w.Context(), 0, 100)
	w.ok(err)
	if len(events) != 1 {
		w.Fatalf("got %d events, want 1", len(events))
	}
	var deliveries []tidelock.Delivery
	for _, h := range hooks {
		deliveries = append(deliveries, tidelock.Delivery{
			Hook: h, Kind: tidelock.HookPush, Ref: branch(ref), UUID: fmt.Sprintf("%s for %d", ref, h), Event: "e", Body: []byte(`{}`), NextAt: at(0), CreatedAt: at(0),
		})
	}
	w.ok(w.ExpandHookEvent(w.Context(), events[0].ID, deliveries, 1000))
}

func claim(now time.Duration) tidelock.Claim {
	return tidelock.Claim{Now: at(now), Until: at(now + time.Minute), Limit: 100, PerHook: 2, Yield: 3}
}

func (w world) claimed(c tidelock.Claim) string {
	w.Helper()
	deliveries, err := w.ClaimDeliveries(w.Context(), c)
	w.ok(err)
	return uuids(deliveries)
}

func uuids(deliveries []tidelock.Delivery) string {
	var all []string
	for _, d := range deliveries {
		all = append(all, d.UUID)
	}
	return strings.Join(all, ", ")
}

func never(int) time.Duration { return 0 }

// fail saves an attempt that nobody answered.
func (w world) fail(d tidelock.Delivery, next time.Duration, hold func(int) time.Duration) {
	w.Helper()
	d.Tries++
	d.NextAt, d.Attempt = at(next), tidelock.Attempt{At: at(0), Error: "no answer"}
	_, err := w.SaveAttempt(w.Context(), d, hold)
	w.ok(err)
}

var hookTests = []test{
	{"are kept whole, and changed", func(w world) {
		site := w.site()
		want := tidelock.Hook{
			Project: site.ID, URL: "https://user:pass@ci.example/x?key=1", Name: "ci", Description: "tells the CI",
			Kinds: []tidelock.HookKind{tidelock.HookPush, tidelock.HookDeployment}, Unused: []string{"issues", "note"},
			BranchFilter: "release/*", BranchMatch: tidelock.BranchWildcard, Token: tidelock.NewSecret("s3cret"),
			Headers:    []tidelock.HookHeader{{Name: "A", Value: tidelock.NewSecret("1")}, {Name: "B", Value: tidelock.NewSecret("2")}},
			SkipVerify: true, CreatedAt: start,
		}
		made, err := w.CreateHook(w.Context(), want, 100)
		w.ok(err)
		want.ID, want.CreatedAt = made.ID, at(0)
		sealed(w, made, want)
		read, err := w.Hook(w.Context(), made.ID)
		w.ok(err)
		sealed(w, read, want)

		want.URL, want.Name, want.Description, want.Kinds = "http://other.example", "", "", []tidelock.HookKind{tidelock.HookTagPush, tidelock.HookPipeline}
		want.Token, want.Headers, want.Unused = tidelock.Secret{}, nil, []string{}
		want.BranchFilter, want.BranchMatch, want.SkipVerify = "", tidelock.AllBranches, false
		changed, err := w.UpdateHook(w.Context(), want)
		w.ok(err)
		sealed(w, changed, want)

		w.ok(w.DeleteHook(w.Context(), made.ID))
		_, err = w.Hook(w.Context(), made.ID)
		w.kind(err, tidelock.NotFound)
		w.kind(w.DeleteHook(w.Context(), made.ID), tidelock.NotFound)
		_, err = w.UpdateHook(w.Context(), want)
		w.kind(err, tidelock.NotFound)
	}},

	{"are listed by project, as many as may be", func(w world) {
		site, other := w.site(), w.project(w.group(0, "crew").ID, "site")
		w.hook(other.ID, tidelock.HookPush)
		for range 5 {
			w.hook(site.ID, tidelock.HookPush)
		}
		paged(w, 5, func(h tidelock.Hook) string { return fmt.Sprint(h.ID) }, func(p tidelock.Page) ([]tidelock.Hook, int, error) {
			return w.Hooks(w.Context(), site.ID, p)
		})
		_, err := w.CreateHook(w.Context(), tidelock.Hook{Project: site.ID, URL: "https://ci.example"}, 5)
		w.kind(err, tidelock.Invalid)
		_, err = w.CreateHook(w.Context(), tidelock.Hook{Project: 999, URL: "https://ci.example"}, 5)
		w.kind(err, tidelock.NotFound)
		w.ok(w.DeleteProject(w.Context(), site.ID))
		hooks, _, err := w.Hooks(w.Context(), site.ID, everything)
		w.ok(err)
		equal(w, len(hooks), 0)
	}},

	{"hear only of what they want to know", func(w world) {
		site, other := w.site(), w.project(w.group(0, "crew").ID, "site")
		noted := func() (all []tidelock.HookEvent) {
			w.Helper()
			all, err := w.HookEvents(w.Context(), 0, 100)
			w.ok(err)
			return all
		}
		w.push(site.ID, "main=c1")
		equal(w, len(noted()), 0)
		w.hook(site.ID, tidelock.HookTagPush)
		w.push(site.ID, "main=c2")
		w.push(other.ID, "main=c2")
		equal(w, len(noted()), 0)
		w.hook(site.ID, tidelock.HookPush)
		push, err := w.RecordPush(w.Context(), tidelock.Push{Project: site.ID, At: start, Updates: []tidelock.RefUpdate{
			update("main", "", "c3"), update("dev", "", "c3"), {Ref: tidelock.TagRef("v1"), New: "c3", Commit: "c3"}, {Ref: "refs/notes/commits", New: "c4"},
		}})
		w.ok(err)
		events := noted()
		equal(w, events, []tidelock.HookEvent{
			{ID: events[0].ID, Project: site.ID, Kind: tidelock.HookPush, Push: push.ID, At: at(0)},
			{ID: events[1].ID, Project: site.ID, Kind: tidelock.HookTagPush, Push: push.ID, At: at(0)},
		})
		_, err = w.RecordPush(w.Context(), tidelock.Push{Project: site.ID, Updates: []tidelock.RefUpdate{update("main", "", "c3")}})
		w.ok(err)
		equal(w, len(noted()), 2) // nothing moved
	}},

	{"get deliveries instead of an event, once", func(w world) {
		site := w.site()
		hook, gone := w.hook(site.ID, tidelock.HookPush), w.hook(site.ID, tidelock.HookPush)
		w.ok(w.DeleteHook(w.Context(), gone.ID))
		w.push(site.ID, "main=c1")
		events, err := w.HookEvents(w.Context(), 0, 100)
		w.ok(err)
		want := tidelock.Delivery{
			Hook: hook.ID, Kind: tidelock.HookPush, Ref: "refs/heads/\xff", UUID: "u", Event: "e", Body: []byte(`{"a":1}`),
			State: tidelock.DeliveryWaiting, NextAt: at(0), CreatedAt: at(0),
		}
		lost := want
		lost.Hook = gone.ID
		for range 2 {
			w.ok(w.ExpandHookEvent(w.Context(), events[0].ID, []tidelock.Delivery{want, lost}, 1000))
		}
		left, err := w.HookEvents(w.Context(), 0, 100)
		w.ok(err)
		equal(w, left, []tidelock.HookEvent{})
		deliveries, err := w.ClaimDeliveries(w.Context(), claim(0))
		w.ok(err)
		want.ID, want.Attempt.Request, want.Attempt.Response = deliveries[0].ID, map[string]string{}, map[string]string{}
		equal(w, deliveries, []tidelock.Delivery{want})
	}},

	{"have what is due claimed by one at a time", func(w world) {
		site := w.site()
		hook := w.hook(site.ID, tidelock.HookPush)
		w.waiting(site.ID, "main", hook.ID)
		next, err := w.NextDelivery(w.Context(), 3)
		w.ok(err)
		equal(w, next, at(0))
		equal(w, w.claimed(claim(-time.Second)), "") // not yet
		name := fmt.Sprint("main for ", hook.ID)
		won := together(8, func(int) error {
			deliveries, err := w.ClaimDeliveries(w.Context(), claim(0))
			if err == nil && len(deliveries) == 0 {
				err = fmt.Errorf("nothing claimed")
			}
			return err
		})
		equal(w, succeeded(won), 1)
		next, err = w.NextDelivery(w.Context(), 3)
		w.ok(err)
		equal(w, next, at(time.Minute)) // when the lease ends
		equal(w, w.claimed(claim(59*time.Second)), "")
		equal(w, w.claimed(claim(60*time.Second)), name) // whoever had it died
	}},

	{"are told of one ref in order, while the earlier does not fail for long", func(w world) {
		site := w.site()
		hook := w.hook(site.ID, tidelock.HookPush)
		w.waiting(site.ID, "main", hook.ID)
		w.waiting(site.ID, "main", hook.ID)
		w.waiting(site.ID, "dev", hook.ID)
		first, err := w.ClaimDeliveries(w.Context(), claim(0))
		w.ok(err)
		equal(w, uuids(first), fmt.Sprintf("main for %d, dev for %[1]d", hook.ID))
		dev, main := first[1], first[0]
		dev.State, dev.Tries, dev.Attempt = tidelock.DeliveryDone, 1, tidelock.Attempt{At: at(0), Status: 200}
		_, err = w.SaveAttempt(w.Context(), dev, never)
		w.ok(err)
		for tries := range 3 {
			main.Tries = tries
			w.fail(main, time.Hour, never)
			got := w.claimed(claim(0))
			if want := map[bool]string{true: "main for " + fmt.Sprint(hook.ID)}[tries == 2]; got != want {
				w.Fatalf("after %d failures: got %q, want %q", tries+1, got, want)
			}
		}
	}},

	{"that are slow get no more than their share", func(w world) {
		site := w.site()
		slow, quick := w.hook(site.ID, tidelock.HookPush), w.hook(site.ID, tidelock.HookPush)
		for i := range 5 {
			w.waiting(site.ID, fmt.Sprint("b", i), slow.ID)
		}
		w.waiting(site.ID, "main", quick.ID)
		limited := claim(0)
		limited.Limit = 2
		equal(w, w.claimed(limited), fmt.Sprintf("b0 for %d, main for %d", slow.ID, quick.ID))
		equal(w, w.claimed(claim(0)), fmt.Sprintf("b1 for %d", slow.ID))
		equal(w, w.claimed(claim(0)), "")
	}},

	{"that fail are held, until a success or a change", func(w world) {
		site := w.site()
		hook := w.hook(site.ID, tidelock.HookPush)
		for i := range 4 {
			w.waiting(site.ID, fmt.Sprint("b", i), hook.ID)
		}
		hold := func(failures int) time.Duration { return time.Duration(failures-1) * time.Hour }
		deliveries, err := w.ClaimDeliveries(w.Context(), claim(0))
		w.ok(err)
		equal(w, len(deliveries), 2)
		w.fail(deliveries[0], time.Minute, hold)
		w.fail(deliveries[1], time.Minute, hold)
		read, err := w.Hook(w.Context(), hook.ID)
		w.ok(err)
		equal(w, [2]any{read.Failures, read.HeldUntil}, [2]any{2, at(time.Hour)})
		equal(w, w.claimed(claim(time.Minute)), "")
		next, err := w.NextDelivery(w.Context(), 3)
		w.ok(err)
		equal(w, next, at(time.Hour))

		probe, err := w.ClaimDeliveries(w.Context(), claim(time.Hour))
		w.ok(err)
		equal(w, uuids(probe), fmt.Sprint("b0 for ", hook.ID)) // one alone
		probe[0].State, probe[0].Tries, probe[0].Attempt = tidelock.DeliveryDone, 2, tidelock.Attempt{At: at(0), Status: 204}
		_, err = w.SaveAttempt(w.Context(), probe[0], hold)
		w.ok(err)
		equal(w, len(strings.Split(w.claimed(claim(time.Hour)), ", ")), 2)

		w.fail(deliveries[1], time.Minute, func(int) time.Duration { return time.Hour })
		_, err = w.UpdateHook(w.Context(), hook)
		w.ok(err)
		read, err = w.Hook(w.Context(), hook.ID)
		w.ok(err)
		equal(w, [2]any{read.Failures, read.HeldUntil}, [2]any{0, time.Time{}})
	}},

	{"keep what was sent to them", func(w world) {
		site := w.site()
		hook := w.hook(site.ID, tidelock.HookPush)
		want := tidelock.Delivery{
			Hook: hook.ID, Kind: tidelock.HookPush, Ref: branch("main"), UUID: "u", Event: "e", Body: []byte(`{}`), Test: true,
			State: tidelock.DeliveryFailed, Tries: 1, CreatedAt: at(0), NextAt: at(time.Second),
			Attempt: tidelock.Attempt{
				At: at(0), Took: 1500 * time.Microsecond, URL: "https://ci.example", Status: 500, Answer: "no", Error: "e",
				Request: map[string]string{"A": "1"}, Response: map[string]string{"B": "2"},
			},
		}
		made, err := w.SaveAttempt(w.Context(), want, nil)
		w.ok(err)
		want.ID = made.ID
		equal(w, made, want)
		read, err := w.Delivery(w.Context(), made.ID)
		w.ok(err)
		equal(w, read, want)
		held, err := w.Hook(w.Context(), hook.ID)
		w.ok(err)
		equal(w, held.Failures, 0) // without a hold it counts for nothing

		for status := range 3 {
			d := want
			d.ID, d.UUID, d.Attempt.Status = 0, fmt.Sprint("s", status), 200+200*status
			_, err := w.SaveAttempt(w.Context(), d, never)
			w.ok(err)
		}
		w.waiting(site.ID, "main", hook.ID) // not tried yet
		list := func(from, to int) string {
			w.Helper()
			found, total, err := w.Deliveries(w.Context(), tidelock.DeliveryFilter{Hook: hook.ID, FromStatus: from, ToStatus: to}, everything)
			w.ok(err)
			equal(w, total, len(found))
			return uuids(found)
		}
		equal(w, list(0, 0), "s2, s1, s0, u")
		equal(w, list(400, 499), "s1")
		equal(w, list(500, 500), "u")
		paged(w, 4, func(d tidelock.Delivery) string { return d.UUID }, func(p tidelock.Page) ([]tidelock.Delivery, int, error) {
			return w.Deliveries(w.Context(), tidelock.DeliveryFilter{Hook: hook.ID}, p)
		})

		w.ok(w.TrimDeliveries(w.Context(), at(-time.Hour), 2))
		equal(w, list(0, 0), "s2, s1")
		w.ok(w.TrimDeliveries(w.Context(), at(time.Hour), 2))
		equal(w, list(0, 0), "")
		equal(w, w.claimed(claim(time.Hour)), fmt.Sprint("main for ", hook.ID)) // what waits is not old

		_, err = w.SaveAttempt(w.Context(), tidelock.Delivery{Hook: 999, UUID: "u"}, never)
		w.kind(err, tidelock.NotFound)
		_, err = w.SaveAttempt(w.Context(), tidelock.Delivery{ID: 999, Hook: hook.ID}, never)
		w.kind(err, tidelock.NotFound)
		_, err = w.Delivery(w.Context(), 999)
		w.kind(err, tidelock.NotFound)
	}},

	{"give up the oldest when too many wait", func(w world) {
		site := w.site()
		hook := w.hook(site.ID, tidelock.HookPush)
		w.push(site.ID, "main=c1")
		events, err := w.HookEvents(w.Context(), 0, 100)
		w.ok(err)
		var deliveries []tidelock.Delivery
		for i := range 5 {
			deliveries = append(deliveries, tidelock.Delivery{Hook: hook.ID, UUID: fmt.Sprint(i), Ref: branch(fmt.Sprint(i)), Body: []byte(`{}`), NextAt: at(0)})
		}
		w.ok(w.ExpandHookEvent(w.Context(), events[0].ID, deliveries, 3))
		c := claim(0)
		c.PerHook = 10
		equal(w, w.claimed(c), "2, 3, 4")
	}},
}
