package storetest

import (
	"fmt"
	"time"

	"tidelock.dev"
)

func fullPath(n tidelock.Namespace) string { return n.FullPath }

var namespaceTests = []test{
	{"are read as they were made", func(w world) {
		ada := w.user("ada")
		team, err := w.CreateNamespace(w.Context(), tidelock.Namespace{
			Kind: tidelock.GroupNamespace, Path: "Team", Name: "The Team", Description: "ours", Visibility: tidelock.InternalOnly, CreatedAt: start,
		}, ada.ID)
		w.ok(err)
		equal(w, team, tidelock.Namespace{
			ID: team.ID, Kind: tidelock.GroupNamespace, Path: "Team", FullPath: "Team", Name: "The Team", FullName: "The Team",
			Description: "ours", Visibility: tidelock.InternalOnly, CreatedAt: at(0),
		})
		web, err := w.CreateNamespace(w.Context(), tidelock.Namespace{Parent: team.ID, Path: "web", Name: "Web"}, ada.ID)
		w.ok(err)
		equal(w, [2]string{web.FullPath, web.FullName}, [2]string{"Team/web", "The Team / Web"})

		for _, n := range []tidelock.Namespace{team, web} {
			read, err := w.Namespace(w.Context(), n.ID)
			w.ok(err)
			equal(w, read, n)
			members, _, err := w.Members(w.Context(), tidelock.Holder{Namespace: n.ID}, everything)
			w.ok(err)
			equal(w, members, []tidelock.Member{{
				Holder: tidelock.Holder{Namespace: n.ID}, User: ada.ID, Level: tidelock.Owner, CreatedAt: n.CreatedAt,
			}})
		}
		for _, path := range []string{"Team/web", "team/web", "TEAM/WEB"} {
			read, err := w.NamespaceByPath(w.Context(), path)
			w.ok(err)
			equal(w, read, web)
		}
	}},

	{"need a parent that exists", func(w world) {
		_, err := w.CreateNamespace(w.Context(), tidelock.Namespace{Parent: 77, Path: "web"}, 0)
		w.kind(err, tidelock.NotFound)
	}},

	{"have unique paths, which projects share", func(w world) {
		team, crew := w.group(0, "team"), w.group(0, "crew")
		w.group(team.ID, "web")
		w.project(team.ID, "site")
		for _, path := range []string{"web", "WEB", "Site"} {
			_, err := w.CreateNamespace(w.Context(), tidelock.Namespace{Parent: team.ID, Path: path}, 0)
			w.taken(err, "path")
		}
		w.group(crew.ID, "web")
	}},

	{"that do not exist are not found", func(w world) {
		w.site()
		_, err := w.Namespace(w.Context(), 99)
		w.kind(err, tidelock.NotFound)
		for _, path := range []string{"", "nobody", "team/site", "team/", "/team", "te%m", "a\x00", "\xff"} {
			_, err = w.NamespaceByPath(w.Context(), path)
			w.kind(err, tidelock.NotFound)
		}
		_, err = w.UpdateNamespace(w.Context(), tidelock.Namespace{ID: 99, Path: "x"})
		w.kind(err, tidelock.NotFound)
		w.kind(w.DeleteNamespace(w.Context(), 99), tidelock.NotFound)
	}},

	{"are listed by filter", func(w world) {
		ada := w.user("ada")
		team := w.group(0, "team")
		web := w.group(team.ID, "Web_x")
		w.group(web.ID, "deep")
		w.group(0, "crew")
		for _, tt := range []struct {
			filter tidelock.NamespaceFilter
			want   string
		}{
			{tidelock.NamespaceFilter{}, "ada team team/Web_x team/Web_x/deep crew"},
			{tidelock.NamespaceFilter{Kind: tidelock.GroupNamespace}, "team team/Web_x team/Web_x/deep crew"},
			{tidelock.NamespaceFilter{Kind: tidelock.UserNamespace}, "ada"},
			{tidelock.NamespaceFilter{Parent: team.ID}, "team/Web_x"},
			{tidelock.NamespaceFilter{Descendants: team.ID}, "team/Web_x team/Web_x/deep"},
			{tidelock.NamespaceFilter{Descendants: ada.Namespace}, ""},
			{tidelock.NamespaceFilter{TopLevel: true}, "ada team crew"},
			{tidelock.NamespaceFilter{TopLevel: true, Kind: tidelock.GroupNamespace, Search: "CREW"}, "crew"},
			{tidelock.NamespaceFilter{Search: "_X"}, "team/Web_x"},
			{tidelock.NamespaceFilter{Search: "group deep"}, "team/Web_x/deep"},
			{tidelock.NamespaceFilter{Search: "team/web"}, ""},
		} {
			w.Logf("filter %+v", tt.filter)
			equal(w, names(w, fullPath)(w.Namespaces(w.Context(), tt.filter, everything)), tt.want)
		}
	}},

	{"are listed in pages", func(w world) {
		for i := range 5 {
			w.group(0, fmt.Sprint("group", i))
		}
		paged(w, 5, fullPath, func(p tidelock.Page) ([]tidelock.Namespace, int, error) {
			return w.Namespaces(w.Context(), tidelock.NamespaceFilter{}, p)
		})
	}},

	{"are listed as far as the viewer may see", func(w world) {
		ada, bob := w.user("ada"), w.user("bob")
		group := func(parent tidelock.NamespaceID, path string, v tidelock.Visibility) tidelock.NamespaceID {
			n, err := w.CreateNamespace(w.Context(), tidelock.Namespace{Parent: parent, Path: path, Visibility: v}, 0)
			w.ok(err)
			return n.ID
		}
		group(0, "public", tidelock.Public)
		group(0, "internal", tidelock.InternalOnly)
		secret := group(0, "secret", tidelock.Private)
		inner := group(secret, "inner", tidelock.Private)
		group(inner, "most", tidelock.Private)
		expired := group(0, "expired", tidelock.Private)
		w.member(tidelock.Holder{Namespace: inner}, ada.ID, tidelock.Guest)
		w.ok(w.SetMember(w.Context(), tidelock.Member{
			Holder: tidelock.Holder{Namespace: expired}, User: ada.ID, Level: tidelock.Owner, ExpiresAt: time.Now().Add(-time.Second),
		}))
		for _, tt := range []struct {
			viewer tidelock.UserID
			want   string
		}{
			{0, "ada bob public"},
			{ada.ID, "ada bob public internal secret/inner secret/inner/most"},
			{bob.ID, "ada bob public internal"},
		} {
			filter := tidelock.NamespaceFilter{VisibleTo: &tidelock.Viewer{User: tt.viewer}}
			equal(w, names(w, fullPath)(w.Namespaces(w.Context(), filter, everything)), tt.want)
		}
	}},

	{"carry a new path to everything below", func(w world) {
		top := w.group(0, "Öre_m") // not bytes, and _ matches anything in LIKE
		team := w.group(top.ID, "team")
		sub := w.group(team.ID, "sub")
		w.group(sub.ID, "empty")
		site, deep := w.project(team.ID, "Site"), w.project(sub.ID, "deep")
		beside := []tidelock.Project{
			w.project(w.group(top.ID, "team2").ID, "site"),
			w.project(w.group(0, "Örexm").ID, "site"),
			w.project(top.ID, "team-site"),
		}

		change := team
		change.Path, change.Name, change.Description, change.Visibility = "Crew", "The Crew", "renamed", tidelock.Public
		change.Parent, change.Kind, change.FullPath = 0, tidelock.UserNamespace, "nonsense" // not its to write
		crew, err := w.UpdateNamespace(w.Context(), change)
		w.ok(err)
		equal(w, crew, tidelock.Namespace{
			ID: team.ID, Kind: tidelock.GroupNamespace, Parent: top.ID, Path: "Crew", FullPath: "Öre_m/Crew",
			Name: "The Crew", FullName: "Group Öre_m / The Crew", Description: "renamed", Visibility: tidelock.Public, CreatedAt: team.CreatedAt,
		})

		for path, want := range map[string][2]string{
			"öre_m/crew":           {"Öre_m/Crew", "Group Öre_m / The Crew"},
			"öre_m/crew/sub":       {"Öre_m/Crew/sub", "Group Öre_m / The Crew / Group sub"},
			"öre_m/crew/sub/empty": {"Öre_m/Crew/sub/empty", "Group Öre_m / The Crew / Group sub / Group empty"},
		} {
			n, err := w.NamespaceByPath(w.Context(), path)
			w.ok(err)
			equal(w, [2]string{n.FullPath, n.FullName}, want)
		}
		for _, gone := range []string{"öre_m/team", "öre_m/team/sub", "öre_m/team/sub/empty"} {
			_, err := w.NamespaceByPath(w.Context(), gone)
			w.kind(err, tidelock.NotFound)
		}
		// Projects are found by both paths.
		for path, want := range map[string]tidelock.Project{
			"öre_m/crew/site": site, "öre_m/team/site": site,
			"öre_m/crew/sub/deep": deep, "öre_m/team/sub/deep": deep,
		} {
			p, err := w.ProjectByPath(w.Context(), path)
			w.ok(err)
			equal(w, p.ID, want.ID)
		}
		p, err := w.Project(w.Context(), deep.ID)
		w.ok(err)
		equal(w, [2]string{p.FullPath, p.FullName}, [2]string{"Öre_m/Crew/sub/deep", "Group Öre_m / The Crew / Group sub / Project deep"})
		for _, want := range beside {
			p, err := w.ProjectByPath(w.Context(), want.FullPath)
			w.ok(err)
			equal(w, p, want)
		}
	}},

	{"change the case of a path in place", func(w world) {
		site := w.site()
		team, err := w.NamespaceByPath(w.Context(), "team")
		w.ok(err)
		team.Path = "TEAM"
		_, err = w.UpdateNamespace(w.Context(), team)
		w.ok(err)
		p, err := w.ProjectByPath(w.Context(), "team/site")
		w.ok(err)
		equal(w, [2]any{p.ID, p.FullPath}, [2]any{site.ID, "TEAM/site"})
	}},

	{"go there and back", func(w world) {
		site := w.site()
		team, err := w.NamespaceByPath(w.Context(), "team")
		w.ok(err)
		for _, path := range []string{"crew", "team", "crew", "gang"} {
			team.Path = path
			_, err = w.UpdateNamespace(w.Context(), team)
			w.ok(err)
			for _, lookup := range []string{"team/site", path + "/site"} {
				p, err := w.ProjectByPath(w.Context(), lookup)
				w.ok(err)
				equal(w, [2]any{p.ID, p.FullPath}, [2]any{site.ID, path + "/site"})
			}
		}
	}},

	{"do not move onto a path that is taken", func(w world) {
		site := w.site()
		w.group(0, "crew")
		w.user("ada")
		team, err := w.NamespaceByPath(w.Context(), "team")
		w.ok(err)
		for _, path := range []string{"crew", "Ada"} {
			change := team
			change.Path, change.Description = path, "changed"
			_, err = w.UpdateNamespace(w.Context(), change)
			w.taken(err, "path")
		}
		read, err := w.Namespace(w.Context(), team.ID)
		w.ok(err)
		equal(w, read, team)
		p, err := w.ProjectByPath(w.Context(), "team/site")
		w.ok(err)
		equal(w, p, site)
	}},

	{"move over the redirects of others", func(w world) {
		// team/site becomes old/site and leaves a redirect, which another
		// group that becomes team takes over with its own site.
		site := w.site()
		team, err := w.NamespaceByPath(w.Context(), "team")
		w.ok(err)
		team.Path = "old"
		_, err = w.UpdateNamespace(w.Context(), team)
		w.ok(err)
		crew := w.group(0, "crew")
		other := w.project(crew.ID, "Site")
		crew.Path = "Team"
		_, err = w.UpdateNamespace(w.Context(), crew)
		w.ok(err)
		for path, want := range map[string]tidelock.ProjectID{"team/site": other.ID, "crew/site": other.ID, "old/site": site.ID} {
			p, err := w.ProjectByPath(w.Context(), path)
			w.ok(err)
			equal(w, p.ID, want)
		}
	}},

	{"renamed while projects are made in them leave no path behind", func(w world) {
		team := w.group(0, "team")
		sub := w.group(team.ID, "sub")
		errs := together(8, func(i int) error {
			if i%2 == 0 {
				_, err := w.CreateProject(w.Context(), tidelock.Project{Namespace: sub.ID, Path: fmt.Sprint("p", i)})
				return err
			}
			change := team
			change.Path = fmt.Sprint("team", i)
			_, err := w.UpdateNamespace(w.Context(), change)
			return err
		})
		for _, err := range errs {
			w.ok(err)
		}
		team, err := w.Namespace(w.Context(), team.ID)
		w.ok(err)
		projects, _, err := w.Projects(w.Context(), tidelock.ProjectFilter{Below: team.ID}, everything)
		w.ok(err)
		equal(w, len(projects), 4)
		for _, p := range projects {
			equal(w, p.FullPath, team.FullPath+"/sub/"+p.Path)
			found, err := w.ProjectByPath(w.Context(), p.FullPath)
			w.ok(err)
			equal(w, found, p)
		}
	}},

	{"are removed when empty, with members and tokens", func(w world) {
		ada := w.user("ada")
		team, err := w.CreateNamespace(w.Context(), tidelock.Namespace{Path: "team"}, ada.ID)
		w.ok(err)
		sub := w.group(team.ID, "sub")
		site := w.project(sub.ID, "site")
		token, err := w.CreateToken(w.Context(), tidelock.Token{
			Kind: tidelock.GroupToken, Holder: tidelock.Holder{Namespace: team.ID}, Level: tidelock.Developer,
		}, "hash", &tidelock.User{Username: "group_bot"})
		w.ok(err)

		w.kind(w.DeleteNamespace(w.Context(), team.ID), tidelock.Conflict)
		w.kind(w.DeleteNamespace(w.Context(), sub.ID), tidelock.Conflict)
		w.ok(w.DeleteProject(w.Context(), site.ID))
		w.ok(w.DeleteNamespace(w.Context(), sub.ID))
		w.ok(w.DeleteNamespace(w.Context(), team.ID))

		_, err = w.Namespace(w.Context(), team.ID)
		w.kind(err, tidelock.NotFound)
		_, err = w.NamespaceByPath(w.Context(), "team")
		w.kind(err, tidelock.NotFound)
		_, err = w.Token(w.Context(), token.ID)
		w.kind(err, tidelock.NotFound)
		_, err = w.User(w.Context(), token.User)
		w.kind(err, tidelock.NotFound)
		equal(w, names(w, func(m tidelock.Member) string { return "member" })(w.Members(w.Context(), tidelock.Holder{Namespace: team.ID}, everything)), "")
		again := w.group(0, "team")
		if again.ID <= sub.ID {
			w.Fatalf("got id %d again, after %d", again.ID, sub.ID)
		}
	}},

	{"of users stay", func(w world) {
		ada := w.user("ada")
		w.kind(w.DeleteNamespace(w.Context(), ada.Namespace), tidelock.Conflict)
	}},
}
