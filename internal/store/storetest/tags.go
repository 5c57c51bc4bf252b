package storetest

import (
	"tidelock.dev"
)

var protectionTests = []test{
	{"of a branch is changed in place", func(w world) {
		site := w.site()
		_, err := w.ProtectBranch(w.Context(), tidelock.ProtectedBranch{Project: site.ID, Pattern: "release/*"})
		w.ok(err)
		changed, err := w.UpdateProtectedBranch(w.Context(), tidelock.ProtectedBranch{
			Project: site.ID, Pattern: "main", PushLevel: tidelock.Developer, MergeLevel: tidelock.NoAccess, AllowForce: true,
		})
		w.ok(err)
		branches, err := w.ProtectedBranches(w.Context(), site.ID)
		w.ok(err)
		equal(w, len(branches), 2)
		equal(w, branches[0], changed)
		equal(w, branches[0].PushLevel, tidelock.Developer)
		equal(w, branches[1].AllowForce, false)
		_, err = w.UpdateProtectedBranch(w.Context(), tidelock.ProtectedBranch{Project: site.ID, Pattern: "Main"})
		w.kind(err, tidelock.NotFound)
	}},

	{"of tags comes and goes", func(w world) {
		site := w.site()
		none, err := w.ProtectedTags(w.Context(), site.ID)
		w.ok(err)
		equal(w, none, []tidelock.ProtectedTag{})
		first, err := w.ProtectTag(w.Context(), tidelock.ProtectedTag{Project: site.ID, Pattern: "v*", CreateLevel: tidelock.Maintainer})
		w.ok(err)
		second, err := w.ProtectTag(w.Context(), tidelock.ProtectedTag{Project: site.ID, Pattern: "V*", CreateLevel: tidelock.NoAccess})
		w.ok(err)
		_, err = w.ProtectTag(w.Context(), tidelock.ProtectedTag{Project: site.ID, Pattern: "v*"})
		w.taken(err, "name")
		_, err = w.ProtectTag(w.Context(), tidelock.ProtectedTag{Project: 99, Pattern: "v*"})
		w.kind(err, tidelock.NotFound)
		tags, err := w.ProtectedTags(w.Context(), site.ID)
		w.ok(err)
		equal(w, tags, []tidelock.ProtectedTag{first, second})

		w.ok(w.UnprotectTag(w.Context(), site.ID, "v*"))
		w.kind(w.UnprotectTag(w.Context(), site.ID, "v*"), tidelock.NotFound)
		tags, err = w.ProtectedTags(w.Context(), site.ID)
		w.ok(err)
		equal(w, tags, []tidelock.ProtectedTag{second})
		w.ok(w.DeleteProject(w.Context(), site.ID))
		tags, err = w.ProtectedTags(w.Context(), site.ID)
		w.ok(err)
		equal(w, tags, []tidelock.ProtectedTag{})
	}},
}
