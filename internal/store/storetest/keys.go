package storetest

import (
	"time"

	"tidelock.dev"
)

func (w world) key(user tidelock.UserID, fingerprint string) tidelock.Key {
	w.Helper()
	k, err := w.CreateKey(w.Context(), tidelock.Key{User: user, Title: "t", Public: "ssh-ed25519 x", Fingerprint: fingerprint})
	w.ok(err)
	return k
}

func (w world) deployKey(h tidelock.Holder, fingerprint string, canPush bool) tidelock.DeployKey {
	w.Helper()
	k, err := w.EnableDeployKey(w.Context(), tidelock.DeployKey{
		Key: tidelock.Key{Title: "d", Public: "ssh-ed25519 x", Fingerprint: fingerprint}, Holder: h, CanPush: canPush})
	w.ok(err)
	return k
}

var keyTests = []test{
	{"are read as they were made", func(w world) {
		ada := w.user("ada")
		want := tidelock.Key{User: ada.ID, Title: "laptop", Public: "ssh-ed25519 AAAA ada", Fingerprint: "SHA256:a+/B", Creator: 7,
			CreatedAt: at(0), ExpiresAt: at(time.Hour), LastUsed: at(time.Minute)}
		made, err := w.CreateKey(w.Context(), want)
		w.ok(err)
		want.ID = made.ID
		equal(w, made, want)
		read, err := w.Key(w.Context(), made.ID)
		w.ok(err)
		equal(w, read, want)
		read, err = w.KeyByFingerprint(w.Context(), "SHA256:a+/B")
		w.ok(err)
		equal(w, read, want)
		_, err = w.KeyByFingerprint(w.Context(), "sha256:a+/b")
		w.kind(err, tidelock.NotFound)
		_, err = w.Key(w.Context(), 99)
		w.kind(err, tidelock.NotFound)
		w.kind(w.DeleteKey(w.Context(), 99), tidelock.NotFound)
		w.ok(w.DeleteKey(w.Context(), made.ID))
		_, err = w.Key(w.Context(), made.ID)
		w.kind(err, tidelock.NotFound)
	}},

	{"have one owner", func(w world) {
		ada, site := w.user("ada"), w.site()
		w.key(ada.ID, "one")
		h := tidelock.Holder{Project: site.ID}
		w.deployKey(h, "two", false)
		_, err := w.CreateKey(w.Context(), tidelock.Key{User: ada.ID, Fingerprint: "one"})
		w.taken(err, "fingerprint_sha256")
		_, err = w.CreateKey(w.Context(), tidelock.Key{User: ada.ID, Fingerprint: "two"})
		w.taken(err, "fingerprint_sha256")
		_, err = w.EnableDeployKey(w.Context(), tidelock.DeployKey{Key: tidelock.Key{Fingerprint: "one"}, Holder: h})
		w.taken(err, "fingerprint_sha256")
		_, err = w.CreateKey(w.Context(), tidelock.Key{User: 99, Fingerprint: "three"})
		w.kind(err, tidelock.NotFound)
	}},

	{"are listed by what they are", func(w world) {
		ada, bob, site := w.user("ada"), w.user("bob"), w.site()
		a, _ := w.key(ada.ID, "a"), w.key(bob.ID, "b")
		d := w.deployKey(tidelock.Holder{Project: site.ID}, "d", false)
		keys, total, err := w.Keys(w.Context(), tidelock.KeyFilter{User: ada.ID}, everything)
		w.ok(err)
		equal(w, total, 1)
		equal(w, keys[0].ID, a.ID)
		keys, _, err = w.Keys(w.Context(), tidelock.KeyFilter{Deploy: true}, everything)
		w.ok(err)
		equal(w, len(keys), 1)
		equal(w, keys[0].ID, d.ID)
		_, total, err = w.Keys(w.Context(), tidelock.KeyFilter{}, tidelock.Page{Number: 2, PerPage: 2})
		w.ok(err)
		equal(w, total, 3)
	}},

	{"are touched once a minute", func(w world) {
		k := w.key(w.user("ada").ID, "a")
		for _, use := range []struct{ after, kept time.Duration }{
			{0, 0}, {30 * time.Second, 0}, {time.Minute, time.Minute}, {-time.Hour, time.Minute},
		} {
			w.ok(w.TouchKey(w.Context(), k.ID, start.Add(use.after)))
			got, err := w.Key(w.Context(), k.ID)
			w.ok(err)
			equal(w, got.LastUsed, at(use.kept))
		}
		w.kind(w.TouchKey(w.Context(), 99, start), tidelock.NotFound)
	}},

	{"live until they expire, are deleted, or their user is blocked", func(w world) {
		eve, err := w.CreateUser(w.Context(), tidelock.User{Username: "eve", Blocked: true})
		w.ok(err)
		good, blocked := w.key(w.user("ada").ID, "a"), w.key(eve.ID, "b")
		deploy := w.deployKey(tidelock.Holder{Project: w.site().ID}, "d", false)
		expires, err := w.CreateKey(w.Context(), tidelock.Key{User: good.User, Fingerprint: "e", ExpiresAt: start})
		w.ok(err)
		ids := []tidelock.KeyID{good.ID, blocked.ID, deploy.ID, expires.ID, 99}
		live, err := w.LiveKeys(w.Context(), ids, start.Add(-time.Second))
		w.ok(err)
		equal(w, live, []tidelock.KeyID{good.ID, deploy.ID, expires.ID})
		live, err = w.LiveKeys(w.Context(), ids, start)
		w.ok(err)
		equal(w, live, []tidelock.KeyID{good.ID, deploy.ID})
		live, err = w.LiveKeys(w.Context(), nil, start)
		w.ok(err)
		equal(w, live, []tidelock.KeyID{})
	}},

	{"for deploying are enabled in each place anew", func(w world) {
		group := w.group(0, "team")
		site, shop := w.project(group.ID, "site"), w.project(group.ID, "shop")
		inSite := w.deployKey(tidelock.Holder{Project: site.ID}, "d", true)
		inGroup, err := w.EnableDeployKey(w.Context(), tidelock.DeployKey{
			Key:    tidelock.Key{ID: inSite.ID, Title: "in the group", Public: inSite.Public, Fingerprint: "d", CreatedAt: inSite.CreatedAt},
			Holder: tidelock.Holder{Namespace: group.ID}, EnabledAt: at(time.Hour)})
		w.ok(err)
		read, err := w.DeployKey(w.Context(), inSite.ID, inGroup.Holder)
		w.ok(err)
		equal(w, read, inGroup)
		read, err = w.DeployKey(w.Context(), inSite.ID, inSite.Holder)
		w.ok(err)
		equal(w, read, inSite)
		_, err = w.DeployKey(w.Context(), inSite.ID, tidelock.Holder{Project: shop.ID})
		w.kind(err, tidelock.NotFound)
		_, err = w.EnableDeployKey(w.Context(), inSite)
		w.taken(err, "deploy_key")
		_, err = w.EnableDeployKey(w.Context(), tidelock.DeployKey{Key: tidelock.Key{ID: 99}, Holder: inSite.Holder})
		w.kind(err, tidelock.NotFound)

		inSite.Title, inSite.CanPush = "renamed", false
		w.ok(w.UpdateDeployKey(w.Context(), inSite))
		listed, total, err := w.DeployKeys(w.Context(), inSite.Holder, everything)
		w.ok(err)
		equal(w, total, 1)
		equal(w, listed, []tidelock.DeployKey{inSite})
		all, err := w.Enabled(w.Context(), inSite.ID, 99)
		w.ok(err)
		equal(w, len(all), 2)

		w.ok(w.DisableDeployKey(w.Context(), inSite.ID, inSite.Holder))
		w.kind(w.DisableDeployKey(w.Context(), inSite.ID, inSite.Holder), tidelock.NotFound)
		_, err = w.Key(w.Context(), inSite.ID)
		w.ok(err)
		w.ok(w.DisableDeployKey(w.Context(), inSite.ID, inGroup.Holder))
		_, err = w.Key(w.Context(), inSite.ID)
		w.kind(err, tidelock.NotFound)
	}},

	{"for deploying open what is below", func(w world) {
		top := w.group(0, "top")
		sub := w.group(top.ID, "sub")
		site, other := w.project(sub.ID, "site"), w.project(w.group(0, "other").ID, "site")
		reads, pushes := w.deployKey(tidelock.Holder{Namespace: top.ID}, "r", false), w.deployKey(tidelock.Holder{Namespace: sub.ID}, "p", true)
		_, err := w.EnableDeployKey(w.Context(), tidelock.DeployKey{Key: tidelock.Key{ID: pushes.ID}, Holder: tidelock.Holder{Namespace: top.ID}})
		w.ok(err)
		for _, c := range []struct {
			key        tidelock.KeyID
			in         tidelock.Holder
			pull, push bool
		}{
			{reads.ID, tidelock.Holder{Project: site.ID}, true, false},
			{reads.ID, tidelock.Holder{Namespace: sub.ID}, true, false},
			{reads.ID, tidelock.Holder{Project: other.ID}, false, false},
			{pushes.ID, tidelock.Holder{Project: site.ID}, true, true},
			{pushes.ID, tidelock.Holder{Namespace: top.ID}, true, false},
			{99, tidelock.Holder{Project: site.ID}, false, false},
		} {
			pull, push, err := w.KeyRights(w.Context(), c.key, c.in)
			w.ok(err)
			equal(w, []bool{pull, push}, []bool{c.pull, c.push})
		}
	}},

	{"for deploying go with the last place that has them", func(w world) {
		group := w.group(0, "team")
		site := w.project(group.ID, "site")
		k := w.deployKey(tidelock.Holder{Project: site.ID}, "d", false)
		g := w.deployKey(tidelock.Holder{Namespace: group.ID}, "g", false)
		mine := w.key(w.user("ada").ID, "mine")
		w.ok(w.DeleteProject(w.Context(), site.ID))
		_, err := w.Key(w.Context(), k.ID)
		w.kind(err, tidelock.NotFound)
		w.ok(w.DeleteNamespace(w.Context(), group.ID))
		_, err = w.Key(w.Context(), g.ID)
		w.kind(err, tidelock.NotFound)
		_, err = w.Key(w.Context(), mine.ID)
		w.ok(err)
	}},

	{"for deploying may push to protected branches that name them", func(w world) {
		site := w.site()
		one := w.deployKey(tidelock.Holder{Project: site.ID}, "1", true)
		two := w.deployKey(tidelock.Holder{Project: site.ID}, "2", true)
		made, err := w.ProtectBranch(w.Context(), tidelock.ProtectedBranch{
			Project: site.ID, Pattern: "release/*", PushLevel: tidelock.Maintainer, Keys: []tidelock.KeyID{one.ID, two.ID}})
		w.ok(err)
		all, err := w.ProtectedBranches(w.Context(), site.ID)
		w.ok(err)
		equal(w, all[len(all)-1], made)
		equal(w, all[0].Keys, []tidelock.KeyID(nil)) // that of the default branch
		// Also when the key lives on elsewhere, and comes back.
		_, err = w.EnableDeployKey(w.Context(), tidelock.DeployKey{Key: one.Key, Holder: tidelock.Holder{Namespace: w.group(0, "elsewhere").ID}})
		w.ok(err)
		w.ok(w.DisableDeployKey(w.Context(), one.ID, one.Holder))
		_, err = w.EnableDeployKey(w.Context(), one)
		w.ok(err)
		all, err = w.ProtectedBranches(w.Context(), site.ID)
		w.ok(err)
		equal(w, all[len(all)-1].Keys, []tidelock.KeyID{two.ID})
		_, err = w.ProtectBranch(w.Context(), tidelock.ProtectedBranch{Project: site.ID, Pattern: "x", Keys: []tidelock.KeyID{99}})
		w.kind(err, tidelock.NotFound)
	}},

	{"are remembered by pushes", func(w world) {
		site := w.site()
		push, err := w.RecordPush(w.Context(), tidelock.Push{Project: site.ID, Key: 7,
			Updates: []tidelock.RefUpdate{{Ref: "refs/heads/main", New: "1", Commit: "1"}}})
		w.ok(err)
		read, err := w.Push(w.Context(), push.ID)
		w.ok(err)
		equal(w, read.Key, tidelock.KeyID(7))
	}},
}
