package storetest

import (
	"fmt"
	"time"

	"tidelock.dev"
)

var shareTests = []test{
	{"are made, listed and ended", func(w world) {
		site, shop := w.site(), w.project(w.group(0, "market").ID, "shop")
		dev, ops := w.group(0, "dev"), w.group(0, "ops")
		made := tidelock.Share{Project: site.ID, Group: dev.ID, Level: tidelock.Developer, ExpiresAt: start.Add(time.Hour), CreatedAt: start}
		got, err := w.CreateShare(w.Context(), made)
		w.ok(err)
		made.ExpiresAt, made.CreatedAt = at(time.Hour), at(0)
		equal(w, got, made)
		for _, share := range []tidelock.Share{
			{Project: site.ID, Group: ops.ID, Level: tidelock.Guest, CreatedAt: at(0)},
			{Project: shop.ID, Group: ops.ID, Level: tidelock.Guest, CreatedAt: at(0)},
		} {
			_, err := w.CreateShare(w.Context(), share)
			w.ok(err)
		}
		shares, err := w.Shares(w.Context(), site.ID)
		w.ok(err)
		equal(w, len(shares), 2)
		equal(w, shares[0], made)
		shares, err = w.Shares(w.Context(), shop.ID, site.ID)
		w.ok(err)
		equal(w, len(shares), 3)
		for _, none := range [][]tidelock.ProjectID{nil, {99}} {
			shares, err = w.Shares(w.Context(), none...)
			w.ok(err)
			equal(w, shares, []tidelock.Share{})
		}

		w.ok(w.DeleteShare(w.Context(), site.ID, dev.ID))
		w.kind(w.DeleteShare(w.Context(), site.ID, dev.ID), tidelock.NotFound)
		w.ok(w.DeleteNamespace(w.Context(), ops.ID))
		shares, err = w.Shares(w.Context(), site.ID, shop.ID)
		w.ok(err)
		equal(w, shares, []tidelock.Share{})
	}},

	{"are made once, between what exists", func(w world) {
		site, dev := w.site(), w.group(0, "dev")
		share := tidelock.Share{Project: site.ID, Group: dev.ID, Level: tidelock.Developer}
		errs := together(4, func(int) error {
			_, err := w.CreateShare(w.Context(), share)
			return err
		})
		equal(w, succeeded(errs), 1)
		for _, err := range errs {
			if err != nil {
				w.kind(err, tidelock.Conflict)
				equal(w, err.Error(), "already shared with this group")
			}
		}
		for _, share := range []tidelock.Share{{Project: 99, Group: dev.ID}, {Project: site.ID, Group: 99}} {
			_, err := w.CreateShare(w.Context(), share)
			w.kind(err, tidelock.NotFound)
		}
	}},

	{"give the lower of two levels, until either ends", func(w world) {
		top := w.group(0, "top")
		dev := w.group(top.ID, "dev")
		site := w.site()
		ada, bob, eve := w.user("ada"), w.user("bob"), w.user("eve")
		w.member(tidelock.Holder{Namespace: dev.ID}, ada.ID, tidelock.Owner)
		w.member(tidelock.Holder{Namespace: top.ID}, bob.ID, tidelock.Reporter)
		w.ok(w.SetMember(w.Context(), tidelock.Member{
			Holder: tidelock.Holder{Namespace: dev.ID}, User: eve.ID, Level: tidelock.Developer, ExpiresAt: start.Add(time.Minute),
		}))
		_, err := w.CreateShare(w.Context(), tidelock.Share{Project: site.ID, Group: dev.ID, Level: tidelock.Maintainer, ExpiresAt: start.Add(time.Hour)})
		w.ok(err)

		level := func(user tidelock.UserID, h tidelock.Holder, at time.Time, want tidelock.AccessLevel) {
			w.Helper()
			got, err := w.AccessLevel(w.Context(), user, h, at)
			w.ok(err)
			if got != want {
				w.Fatalf("got level %v, want %v", got, want)
			}
		}
		inSite := tidelock.Holder{Project: site.ID}
		level(ada.ID, inSite, start, tidelock.Maintainer)
		level(bob.ID, inSite, start, tidelock.Reporter)
		level(eve.ID, inSite, start, tidelock.Developer)
		level(eve.ID, inSite, start.Add(time.Minute), tidelock.NoAccess)
		level(ada.ID, inSite, start.Add(time.Hour), tidelock.NoAccess)
		level(ada.ID, tidelock.Holder{Namespace: site.Namespace}, start, tidelock.NoAccess)

		// A membership of their own counts if it is more.
		w.member(inSite, bob.ID, tidelock.Developer)
		level(bob.ID, inSite, start, tidelock.Developer)
	}},

	{"show projects in lists to the members of the group", func(w world) {
		top := w.group(0, "top")
		dev := w.group(top.ID, "dev")
		team := w.group(0, "team")
		site := w.project(team.ID, "site")
		w.project(team.ID, "secret")
		past := w.project(team.ID, "past")
		w.project(dev.ID, "own")
		ada, bob := w.user("ada"), w.user("bob")
		w.member(tidelock.Holder{Namespace: top.ID}, ada.ID, tidelock.Developer)
		for _, share := range []tidelock.Share{
			{Project: site.ID, Group: dev.ID, Level: tidelock.Reporter},
			{Project: past.ID, Group: dev.ID, Level: tidelock.Reporter, ExpiresAt: start},
		} {
			_, err := w.CreateShare(w.Context(), share)
			w.ok(err)
		}
		for _, tt := range []struct {
			filter tidelock.ProjectFilter
			want   string
		}{
			{tidelock.ProjectFilter{VisibleTo: &tidelock.Viewer{User: ada.ID}}, "team/site top/dev/own"},
			{tidelock.ProjectFilter{VisibleTo: &tidelock.Viewer{User: bob.ID}}, ""},
			{tidelock.ProjectFilter{VisibleTo: &tidelock.Viewer{}}, ""},
			{tidelock.ProjectFilter{Member: ada.ID}, "team/site top/dev/own"},
			{tidelock.ProjectFilter{Member: ada.ID, MinLevel: tidelock.Reporter}, "team/site top/dev/own"},
			{tidelock.ProjectFilter{Member: ada.ID, MinLevel: tidelock.Developer}, "top/dev/own"},
			{tidelock.ProjectFilter{Member: ada.ID, MinLevel: tidelock.Maintainer}, ""},
			{tidelock.ProjectFilter{SharedWith: dev.ID}, "team/site"},
			{tidelock.ProjectFilter{SharedWith: top.ID}, ""},
			{tidelock.ProjectFilter{Namespace: dev.ID}, "top/dev/own"},
			{tidelock.ProjectFilter{Namespace: dev.ID, WithShared: true}, "team/site top/dev/own"},
			{tidelock.ProjectFilter{Below: top.ID, WithShared: true}, "team/site top/dev/own"},
			{tidelock.ProjectFilter{Namespace: top.ID, WithShared: true}, ""},
		} {
			w.Logf("filter %+v", tt.filter)
			equal(w, names(w, projectPath)(w.Projects(w.Context(), tt.filter, everything)), tt.want)
		}
		_, n, err := w.Namespaces(w.Context(), tidelock.NamespaceFilter{VisibleTo: &tidelock.Viewer{User: ada.ID}, Kind: tidelock.GroupNamespace}, everything)
		w.ok(err)
		equal(w, fmt.Sprint(n), "2") // not the group of the shared project
	}},
}

var ownerTests = []test{
	{"are those who can act", func(w world) {
		top := w.group(0, "top")
		team := w.group(top.ID, "team")
		has := func(id tidelock.NamespaceID, want bool) {
			w.Helper()
			got, err := w.HasOwner(w.Context(), id, start)
			w.ok(err)
			equal(w, got, want)
		}
		has(team.ID, false)
		inTeam, inTop := tidelock.Holder{Namespace: team.ID}, tidelock.Holder{Namespace: top.ID}
		w.member(inTeam, w.user("ada").ID, tidelock.Maintainer)
		w.ok(w.SetMember(w.Context(), tidelock.Member{Holder: inTeam, User: w.user("past").ID, Level: tidelock.Owner, ExpiresAt: start}))
		blocked, err := w.CreateUser(w.Context(), tidelock.User{Username: "blocked", Blocked: true})
		w.ok(err)
		w.member(inTeam, blocked.ID, tidelock.Owner)
		bot, err := w.CreateUser(w.Context(), tidelock.User{Username: "bot", Bot: true})
		w.ok(err)
		w.member(inTeam, bot.ID, tidelock.Owner)
		has(team.ID, false)
		w.member(inTop, w.user("bob").ID, tidelock.Owner)
		has(team.ID, true)
		has(top.ID, true)
		_, err = w.HasOwner(w.Context(), 99, start)
		w.kind(err, tidelock.NotFound)
	}},
}
