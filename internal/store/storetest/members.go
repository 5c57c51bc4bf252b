package storetest

import (
	"fmt"
	"time"

	"tidelock.dev"
)

var memberTests = []test{
	{"are added, changed and removed", func(w world) {
		ada, bob := w.user("ada"), w.user("bob")
		site := w.site()
		for _, h := range []tidelock.Holder{{Project: site.ID}, {Namespace: site.Namespace}} {
			first := tidelock.Member{Holder: h, User: bob.ID, Level: tidelock.Developer, CreatedAt: start}
			w.ok(w.SetMember(w.Context(), first))
			w.member(h, ada.ID, tidelock.Guest)
			first.Level, first.ExpiresAt, first.CreatedAt = tidelock.Maintainer, start.Add(time.Hour), start.Add(time.Minute)
			w.ok(w.SetMember(w.Context(), first))

			members, total, err := w.Members(w.Context(), h, everything)
			w.ok(err)
			equal(w, total, 2)
			equal(w, members[0].User, ada.ID)
			equal(w, members[1], tidelock.Member{Holder: h, User: bob.ID, Level: tidelock.Maintainer, ExpiresAt: at(time.Hour), CreatedAt: at(0)})

			w.ok(w.RemoveMember(w.Context(), h, bob.ID))
			w.kind(w.RemoveMember(w.Context(), h, bob.ID), tidelock.NotFound)
			members, _, err = w.Members(w.Context(), h, everything)
			w.ok(err)
			equal(w, len(members), 1)
		}
	}},

	{"need a user and a holder that exist", func(w world) {
		ada, site := w.user("ada"), w.site()
		for _, m := range []tidelock.Member{
			{Holder: tidelock.Holder{Project: site.ID}, User: 99},
			{Holder: tidelock.Holder{Project: 99}, User: ada.ID},
			{Holder: tidelock.Holder{Namespace: site.Namespace}, User: 99},
			{Holder: tidelock.Holder{Namespace: 99}, User: ada.ID},
		} {
			m.Level = tidelock.Guest
			w.kind(w.SetMember(w.Context(), m), tidelock.NotFound)
			w.kind(w.RemoveMember(w.Context(), m.Holder, m.User), tidelock.NotFound)
		}
		for _, h := range []tidelock.Holder{{}, {Project: site.ID, Namespace: site.Namespace}} {
			if err := w.SetMember(w.Context(), tidelock.Member{Holder: h, User: ada.ID, Level: tidelock.Guest}); err == nil {
				w.Fatalf("made a member of %+v", h)
			}
		}
	}},

	{"are listed in pages", func(w world) {
		site := w.site()
		for i := range 5 {
			w.member(tidelock.Holder{Project: site.ID}, w.user(fmt.Sprint("user", i)).ID, tidelock.Guest)
		}
		paged(w, 5, func(m tidelock.Member) string { return fmt.Sprint(m.User) }, func(p tidelock.Page) ([]tidelock.Member, int, error) {
			return w.Members(w.Context(), tidelock.Holder{Project: site.ID}, p)
		})
	}},

	{"have the highest level that they are given", func(w world) {
		ada, bob := w.user("ada"), w.user("bob")
		top := w.group(0, "top")
		mid := w.group(top.ID, "mid")
		low := w.group(mid.ID, "low")
		site, own := w.project(low.ID, "site"), w.project(ada.Namespace, "own")
		member := func(h tidelock.Holder, level tidelock.AccessLevel, expires time.Time) {
			w.ok(w.SetMember(w.Context(), tidelock.Member{Holder: h, User: ada.ID, Level: level, ExpiresAt: expires}))
		}
		level := func(user tidelock.UserID, h tidelock.Holder, at time.Time, want tidelock.AccessLevel) {
			w.Helper()
			got, err := w.AccessLevel(w.Context(), user, h, at)
			w.ok(err)
			if got != want {
				w.Fatalf("got level %v in %+v, want %v", got, h, want)
			}
		}
		inSite, inLow := tidelock.Holder{Project: site.ID}, tidelock.Holder{Namespace: low.ID}
		inMid, inTop := tidelock.Holder{Namespace: mid.ID}, tidelock.Holder{Namespace: top.ID}

		level(ada.ID, inSite, start, tidelock.NoAccess)
		member(inMid, tidelock.Reporter, time.Time{})
		level(ada.ID, inSite, start, tidelock.Reporter)
		level(ada.ID, inLow, start, tidelock.Reporter)
		level(ada.ID, inMid, start, tidelock.Reporter)
		level(ada.ID, inTop, start, tidelock.NoAccess)
		level(bob.ID, inSite, start, tidelock.NoAccess)
		level(0, inSite, start, tidelock.NoAccess)

		member(inSite, tidelock.Guest, time.Time{})
		level(ada.ID, inSite, start, tidelock.Reporter)
		member(inSite, tidelock.Maintainer, start)
		level(ada.ID, inSite, start.Add(-time.Microsecond), tidelock.Maintainer)
		level(ada.ID, inSite, start, tidelock.Reporter)
		level(ada.ID, inLow, start.Add(-time.Hour), tidelock.Reporter)
		member(inTop, tidelock.Owner, start.Add(time.Hour))
		level(ada.ID, inSite, start, tidelock.Owner)
		level(ada.ID, inSite, start.Add(2*time.Hour), tidelock.Reporter)

		level(ada.ID, tidelock.Holder{Project: own.ID}, start, tidelock.Owner)
		level(ada.ID, tidelock.Holder{Namespace: ada.Namespace}, start, tidelock.Owner)
		level(bob.ID, tidelock.Holder{Project: own.ID}, start, tidelock.NoAccess)
		for _, h := range []tidelock.Holder{{}, {Project: 99}, {Namespace: 99}} {
			level(ada.ID, h, start, tidelock.NoAccess)
		}
	}},
}

var branchTests = []test{
	{"are protected and unprotected", func(w world) {
		site := w.site()
		made, err := w.ProtectBranch(w.Context(), tidelock.ProtectedBranch{
			Project: site.ID, Pattern: "release/*", PushLevel: tidelock.NoAccess, MergeLevel: tidelock.Developer, AllowForce: true,
		})
		w.ok(err)
		branches, err := w.ProtectedBranches(w.Context(), site.ID)
		w.ok(err)
		equal(w, len(branches), 2)
		equal(w, branches[0].Pattern, "main")
		equal(w, branches[1], made)

		w.ok(w.UnprotectBranch(w.Context(), site.ID, "main"))
		w.kind(w.UnprotectBranch(w.Context(), site.ID, "main"), tidelock.NotFound)
		branches, err = w.ProtectedBranches(w.Context(), site.ID)
		w.ok(err)
		equal(w, branches, []tidelock.ProtectedBranch{made})
	}},

	{"are protected once, and by their exact name", func(w world) {
		site := w.site()
		_, err := w.ProtectBranch(w.Context(), tidelock.ProtectedBranch{Project: site.ID, Pattern: "main"})
		w.taken(err, "name")
		_, err = w.ProtectBranch(w.Context(), tidelock.ProtectedBranch{Project: site.ID, Pattern: "Main"})
		w.ok(err)
		_, err = w.ProtectBranch(w.Context(), tidelock.ProtectedBranch{Project: 99, Pattern: "main"})
		w.kind(err, tidelock.NotFound)
	}},

	{"of a project that does not exist are none", func(w world) {
		branches, err := w.ProtectedBranches(w.Context(), 99)
		w.ok(err)
		equal(w, branches, []tidelock.ProtectedBranch{})
	}},
}
