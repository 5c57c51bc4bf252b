package storetest

import (
	"fmt"
	"strings"
	"time"

	"tidelock.dev"
)

func projectPath(p tidelock.Project) string { return p.FullPath }

var projectTests = []test{
	{"are read as they were made", func(w world) {
		ada, team := w.user("ada"), w.group(0, "Team")
		made, err := w.CreateProject(w.Context(), tidelock.Project{
			Namespace: team.ID, Path: "Site", Name: "The Site", Description: "our site", Visibility: tidelock.InternalOnly,
			DefaultBranch: "trunk", Archived: true, Creator: ada.ID, CreatedAt: start, UpdatedAt: start.Add(time.Hour),
		})
		w.ok(err)
		equal(w, made, tidelock.Project{
			ID: made.ID, Namespace: team.ID, Path: "Site", FullPath: "Team/Site", Name: "The Site", FullName: "Group Team / The Site",
			Description: "our site", Visibility: tidelock.InternalOnly,
			DefaultBranch: "trunk", Archived: true, Creator: ada.ID, CreatedAt: at(0), UpdatedAt: at(time.Hour),
		})
		read, err := w.Project(w.Context(), made.ID)
		w.ok(err)
		equal(w, read, made)
		for _, path := range []string{"Team/Site", "team/site", "TEAM/SITE"} {
			read, err := w.ProjectByPath(w.Context(), path)
			w.ok(err)
			equal(w, read, made)
		}
		members, _, err := w.Members(w.Context(), tidelock.Holder{Project: made.ID}, everything)
		w.ok(err)
		equal(w, members, []tidelock.Member{{Holder: tidelock.Holder{Project: made.ID}, User: ada.ID, Level: tidelock.Owner, CreatedAt: at(0)}})
		branches, err := w.ProtectedBranches(w.Context(), made.ID)
		w.ok(err)
		equal(w, len(branches), 1)
		equal(w, branches[0], tidelock.ProtectedBranch{
			ID: branches[0].ID, Project: made.ID, Pattern: "trunk", PushLevel: tidelock.Maintainer, MergeLevel: tidelock.Maintainer,
		})
	}},

	{"without a creator have no member", func(w world) {
		site := w.site()
		_, n, err := w.Members(w.Context(), tidelock.Holder{Project: site.ID}, everything)
		w.ok(err)
		equal(w, n, 0)
		equal(w, site.UpdatedAt, site.CreatedAt)
		if since := time.Since(site.CreatedAt); since < 0 || since > time.Minute {
			w.Fatalf("got creation %v ago, want now", since)
		}
	}},

	{"need a namespace that exists", func(w world) {
		for _, n := range []tidelock.NamespaceID{0, 99} {
			_, err := w.CreateProject(w.Context(), tidelock.Project{Namespace: n, Path: "site"})
			w.kind(err, tidelock.NotFound)
		}
	}},

	{"have unique paths, which groups share", func(w world) {
		ada, team := w.user("ada"), w.group(0, "team")
		w.project(team.ID, "Site")
		w.group(team.ID, "sub")
		for _, path := range []string{"Site", "sITE", "SUB"} {
			_, err := w.CreateProject(w.Context(), tidelock.Project{Namespace: team.ID, Path: path})
			w.taken(err, "path")
		}
		w.project(ada.Namespace, "site")
		equal(w, names(w, projectPath)(w.Projects(w.Context(), tidelock.ProjectFilter{}, everything)), "team/Site ada/site")
	}},

	{"with one path made at once become one", func(w world) {
		team := w.group(0, "team")
		errs := together(8, func(int) error {
			_, err := w.CreateProject(w.Context(), tidelock.Project{Namespace: team.ID, Path: "site"})
			return err
		})
		equal(w, succeeded(errs), 1)
		for _, err := range errs {
			if err != nil {
				w.taken(err, "path")
			}
		}
	}},

	{"that do not exist are not found", func(w world) {
		w.site()
		_, err := w.Project(w.Context(), 99)
		w.kind(err, tidelock.NotFound)
		for _, path := range []string{"", "team", "site", "team/site/", "team/site.git", "team/s%te", "team/s_te", "te\x00", "\xff"} {
			_, err := w.ProjectByPath(w.Context(), path)
			w.kind(err, tidelock.NotFound)
		}
		_, err = w.UpdateProject(w.Context(), tidelock.Project{ID: 99, Path: "x"})
		w.kind(err, tidelock.NotFound)
		w.kind(w.DeleteProject(w.Context(), 99), tidelock.NotFound)
	}},

	{"are written as a whole", func(w world) {
		ada := w.user("ada")
		site := w.site()
		change := tidelock.Project{
			ID: site.ID, Namespace: ada.Namespace, Path: "Page", Name: "The Page", Description: "d", Visibility: tidelock.Public,
			DefaultBranch: "dev", Archived: true, Creator: ada.ID, CreatedAt: start, UpdatedAt: start,
		}
		want := change
		want.Namespace, want.Creator, want.CreatedAt, want.UpdatedAt = site.Namespace, site.Creator, site.CreatedAt, at(0)
		want.FullPath, want.FullName = "team/Page", "Group team / The Page"
		got, err := w.UpdateProject(w.Context(), change)
		w.ok(err)
		equal(w, got, want)
		read, err := w.Project(w.Context(), site.ID)
		w.ok(err)
		equal(w, read, want)
	}},

	{"keep their old paths until others take them", func(w world) {
		site := w.site()
		rename := func(p tidelock.Project, path string) {
			w.Helper()
			p.Path = path
			_, err := w.UpdateProject(w.Context(), p)
			w.ok(err)
		}
		leads := func(path string, to tidelock.Project) {
			w.Helper()
			p, err := w.ProjectByPath(w.Context(), path)
			w.ok(err)
			equal(w, p.ID, to.ID)
		}
		rename(site, "page")
		rename(site, "Book")
		for _, path := range []string{"team/site", "team/page", "team/book"} {
			leads(path, site)
		}
		rename(site, "Page") // over its own redirect
		leads("team/page", site)
		leads("team/book", site)

		// A new project, a renamed project and a group take paths over.
		second := w.project(site.Namespace, "SITE")
		leads("team/site", second)
		rename(second, "book")
		leads("team/book", second)
		leads("team/site", second)
		w.group(site.Namespace, "site")
		_, err := w.ProjectByPath(w.Context(), "team/site")
		w.kind(err, tidelock.NotFound)
		leads("team/page", site)

		// A redirect is no path of its own: it neither keeps a project from a
		// new one nor outlives it.
		w.ok(w.DeleteProject(w.Context(), second.ID))
		_, err = w.ProjectByPath(w.Context(), "team/book")
		w.kind(err, tidelock.NotFound)
	}},

	{"move to another namespace and keep their old path", func(w world) {
		site := w.site()
		ada := w.user("ada")
		got, err := w.MoveProject(w.Context(), site.ID, ada.Namespace)
		w.ok(err)
		equal(w, got.FullPath, "ada/site")
		equal(w, got.Namespace, ada.Namespace)
		for _, path := range []string{"ada/site", "team/site"} {
			read, err := w.ProjectByPath(w.Context(), path)
			w.ok(err)
			equal(w, read, got)
		}
		level, err := w.AccessLevel(w.Context(), ada.ID, tidelock.Holder{Project: site.ID}, at(0))
		w.ok(err)
		equal(w, level, tidelock.Owner)
		other := w.project(site.Namespace, "site") // takes the old path
		_, err = w.MoveProject(w.Context(), site.ID, site.Namespace)
		w.taken(err, "path")
		_, err = w.MoveProject(w.Context(), other.ID, 9999)
		w.kind(err, tidelock.NotFound)
		_, err = w.MoveProject(w.Context(), 9999, site.Namespace)
		w.kind(err, tidelock.NotFound)
	}},

	{"change the case of a path in place", func(w world) {
		site := w.site()
		site.Path = "SITE"
		got, err := w.UpdateProject(w.Context(), site)
		w.ok(err)
		equal(w, got.FullPath, "team/SITE")
		read, err := w.ProjectByPath(w.Context(), "team/site")
		w.ok(err)
		equal(w, read, got)
	}},

	{"do not move onto a path that is taken", func(w world) {
		site := w.site()
		w.project(site.Namespace, "page")
		change := site
		change.Path, change.Description = "PAGE", "changed"
		_, err := w.UpdateProject(w.Context(), change)
		w.taken(err, "path")
		read, err := w.ProjectByPath(w.Context(), "team/site")
		w.ok(err)
		equal(w, read, site)
	}},

	{"are listed by filter", func(w world) {
		ada := w.user("ada")
		team := w.group(0, "team")
		sub := w.group(team.ID, "sub")
		for i, p := range []tidelock.Project{
			{Namespace: team.ID, Path: "b", Name: "Zebra", Visibility: tidelock.Public},
			{Namespace: sub.ID, Path: "A_1", Name: "yak", Archived: true},
			{Namespace: ada.Namespace, Path: "c", Name: "Übel", Visibility: tidelock.InternalOnly},
			{Namespace: ada.Namespace, Path: "d", Name: "yak"},
		} {
			p.CreatedAt, p.UpdatedAt = start.Add(time.Duration(10-i)*time.Hour), start.Add(time.Duration(i%2)*time.Hour)
			_, err := w.CreateProject(w.Context(), p)
			w.ok(err)
		}
		public, yes, no := tidelock.Public, true, false
		first, err := w.ProjectByPath(w.Context(), "team/b")
		w.ok(err)
		for _, tt := range []struct {
			filter tidelock.ProjectFilter
			want   string
		}{
			{tidelock.ProjectFilter{}, "team/b team/sub/A_1 ada/c ada/d"},
			{tidelock.ProjectFilter{Descending: true}, "ada/d ada/c team/sub/A_1 team/b"},
			{tidelock.ProjectFilter{OrderBy: "id"}, "team/b team/sub/A_1 ada/c ada/d"},
			{tidelock.ProjectFilter{OrderBy: "path"}, "team/sub/A_1 team/b ada/c ada/d"},
			{tidelock.ProjectFilter{OrderBy: "name"}, "team/sub/A_1 ada/d team/b ada/c"},
			{tidelock.ProjectFilter{OrderBy: "name", Descending: true}, "ada/c team/b ada/d team/sub/A_1"},
			{tidelock.ProjectFilter{OrderBy: "created_at"}, "ada/d ada/c team/sub/A_1 team/b"},
			{tidelock.ProjectFilter{OrderBy: "updated_at"}, "team/b ada/c team/sub/A_1 ada/d"},
			{tidelock.ProjectFilter{Namespace: team.ID}, "team/b"},
			{tidelock.ProjectFilter{Below: team.ID}, "team/b team/sub/A_1"},
			{tidelock.ProjectFilter{Below: sub.ID}, "team/sub/A_1"},
			{tidelock.ProjectFilter{Search: "_"}, "team/sub/A_1"},
			{tidelock.ProjectFilter{Search: "ZEB"}, "team/b"},
			{tidelock.ProjectFilter{Search: strings.Repeat("z", 60_000)}, ""},
			{tidelock.ProjectFilter{Search: "üB"}, "ada/c"},
			{tidelock.ProjectFilter{Search: "team"}, ""},
			{tidelock.ProjectFilter{Visibility: &public}, "team/b"},
			{tidelock.ProjectFilter{Archived: &yes}, "team/sub/A_1"},
			{tidelock.ProjectFilter{Archived: &no}, "team/b ada/c ada/d"},
			{tidelock.ProjectFilter{Owner: ada.ID}, "ada/c ada/d"},
			{tidelock.ProjectFilter{Owner: 99}, ""},
			{tidelock.ProjectFilter{IDAfter: first.ID}, "team/sub/A_1 ada/c ada/d"},
			{tidelock.ProjectFilter{IDAfter: first.ID, Search: "yak", Descending: true}, "ada/d team/sub/A_1"},
		} {
			w.Logf("filter %+v", tt.filter)
			equal(w, names(w, projectPath)(w.Projects(w.Context(), tt.filter, everything)), tt.want)
		}
		_, _, err = w.Projects(w.Context(), tidelock.ProjectFilter{OrderBy: "id; DROP TABLE projects"}, everything)
		w.kind(err, tidelock.Invalid)
	}},

	{"are listed in pages", func(w world) {
		team := w.group(0, "team")
		for i := range 7 {
			w.project(team.ID, fmt.Sprint("p", i))
		}
		for _, order := range []string{"", "name", "created_at"} {
			paged(w, 7, projectPath, func(p tidelock.Page) ([]tidelock.Project, int, error) {
				return w.Projects(w.Context(), tidelock.ProjectFilter{Below: team.ID, OrderBy: order, Descending: order == "name"}, p)
			})
		}
	}},

	{"are listed as far as the viewer may see", func(w world) {
		ada, bob, eve := w.user("ada"), w.user("bob"), w.user("eve")
		project := func(n tidelock.NamespaceID, path string, v tidelock.Visibility) tidelock.ProjectID {
			p, err := w.CreateProject(w.Context(), tidelock.Project{Namespace: n, Path: path, Visibility: v})
			w.ok(err)
			return p.ID
		}
		team := w.group(0, "team")
		sub := w.group(team.ID, "sub")
		public := project(team.ID, "public", tidelock.Public)
		internal := project(team.ID, "internal", tidelock.InternalOnly)
		private := project(team.ID, "private", tidelock.Private)
		inner := project(sub.ID, "inner", tidelock.Private)
		own := project(ada.Namespace, "own", tidelock.Private)
		w.member(tidelock.Holder{Project: private}, ada.ID, tidelock.Guest)
		w.member(tidelock.Holder{Namespace: team.ID}, bob.ID, tidelock.Reporter)
		for _, h := range []tidelock.Holder{{Namespace: team.ID}, {Project: private}} {
			w.ok(w.SetMember(w.Context(), tidelock.Member{Holder: h, User: eve.ID, Level: tidelock.Owner, ExpiresAt: time.Now().Add(-time.Second)}))
		}
		for _, id := range []tidelock.ProjectID{public, internal, private, inner, own} {
			w.push(id, "main=1")
		}
		for _, tt := range []struct {
			viewer tidelock.UserID
			want   string
		}{
			{0, "team/public"},
			{ada.ID, "team/public team/internal team/private ada/own"},
			{bob.ID, "team/public team/internal team/private team/sub/inner"},
			{eve.ID, "team/public team/internal"},
		} {
			viewer := &tidelock.Viewer{User: tt.viewer}
			projects, n, err := w.Projects(w.Context(), tidelock.ProjectFilter{VisibleTo: viewer}, everything)
			equal(w, names(w, projectPath)(projects, n, err), tt.want)
			// Pushes are seen where their project is.
			pushes, n, err := w.Pushes(w.Context(), tidelock.PushFilter{VisibleTo: viewer}, everything)
			w.ok(err)
			equal(w, [2]int{n, len(pushes)}, [2]int{len(projects), len(projects)})
			for i, p := range pushes {
				equal(w, p.Project, projects[n-1-i].ID)
			}
		}
	}},

	{"are listed by membership", func(w world) {
		ada := w.user("ada")
		team := w.group(0, "team")
		sub := w.group(team.ID, "sub")
		site, inner, own := w.project(team.ID, "site"), w.project(sub.ID, "inner"), w.project(ada.Namespace, "own")
		w.project(w.group(0, "other").ID, "site")
		w.member(tidelock.Holder{Namespace: team.ID}, ada.ID, tidelock.Reporter)
		w.member(tidelock.Holder{Project: inner.ID}, ada.ID, tidelock.Maintainer)
		w.member(tidelock.Holder{Project: site.ID}, ada.ID, tidelock.Guest) // less than by the group
		for _, tt := range []struct {
			level tidelock.AccessLevel
			want  string
		}{
			{tidelock.NoAccess, "team/site team/sub/inner ada/own"},
			{tidelock.Reporter, "team/site team/sub/inner ada/own"},
			{tidelock.Developer, "team/sub/inner ada/own"},
			{tidelock.Owner, "ada/own"},
			{tidelock.Owner + 1, ""},
		} {
			filter := tidelock.ProjectFilter{Member: ada.ID, MinLevel: tt.level}
			equal(w, names(w, projectPath)(w.Projects(w.Context(), filter, everything)), tt.want)
			for _, p := range []tidelock.Project{site, inner, own} {
				level, err := w.AccessLevel(w.Context(), ada.ID, tidelock.Holder{Project: p.ID}, time.Now())
				w.ok(err)
				_, n, err := w.Projects(w.Context(), tidelock.ProjectFilter{Member: ada.ID, MinLevel: level, Search: p.Name}, everything)
				w.ok(err)
				equal(w, n, 1)
			}
		}
	}},

	{"take along all that hangs on them", func(w world) {
		ada := w.user("ada")
		site := w.site()
		holder := tidelock.Holder{Project: site.ID}
		w.member(holder, ada.ID, tidelock.Developer)
		push := w.push(site.ID, "main=1")
		token, err := w.CreateToken(w.Context(), tidelock.Token{Kind: tidelock.ProjectToken, Holder: holder, Level: tidelock.Developer}, "hash",
			&tidelock.User{Username: "bot"})
		w.ok(err)
		agent := w.agent(site.ID, "prod")
		agentToken, err := w.CreateAgentToken(w.Context(), tidelock.AgentToken{Agent: agent.ID}, "agent hash")
		w.ok(err)
		w.ok(w.SaveAgentConfig(w.Context(), tidelock.AgentConfig{Agent: agent.ID, Good: "x"}))
		w.ok(w.SaveAgentSession(w.Context(), tidelock.AgentSession{Agent: agent.ID, Instance: "i", ConnectedAt: start, LastSeen: start}))
		other := w.project(site.Namespace, "other")
		w.ok(w.Grant(w.Context(), tidelock.Grant{Project: other.ID, Agent: agent.ID}))
		stranger := w.agent(other.ID, "stranger")
		w.ok(w.Grant(w.Context(), tidelock.Grant{Project: site.ID, Agent: stranger.ID}))
		told := tidelock.Announcement{Agent: stranger.ID, Source: "GitRepository/a/b", Number: 7, Project: site.ID, Push: push.ID, State: tidelock.Sent}
		w.ok(w.SaveAnnouncements(w.Context(), told))

		w.ok(w.DeleteProject(w.Context(), site.ID))

		for what, err := range map[string]error{
			"project":       second(w.Project(w.Context(), site.ID)),
			"path":          second(w.ProjectByPath(w.Context(), "team/site")),
			"push":          second(w.Push(w.Context(), push.ID)),
			"head":          second(w.Head(w.Context(), site.ID, "refs/heads/main")),
			"token":         second(w.Token(w.Context(), token.ID)),
			"token by hash": second(w.TokenByHash(w.Context(), "hash")),
			"bot":           second(w.User(w.Context(), token.User)),
			"agent":         second(w.Agent(w.Context(), agent.ID)),
			"agent token":   second(w.AgentToken(w.Context(), agentToken.ID)),
		} {
			w.Log(what)
			w.kind(err, tidelock.NotFound)
		}
		grants, err := w.Grants(w.Context(), other.ID)
		w.ok(err)
		equal(w, len(grants), 0)
		granted, err := w.Granted(w.Context(), stranger.ID, site.ID)
		w.ok(err)
		equal(w, granted, false)
		sessions, err := w.AgentSessions(w.Context(), 0)
		w.ok(err)
		equal(w, len(sessions), 0)
		config, err := w.AgentConfig(w.Context(), agent.ID)
		w.ok(err)
		equal(w, config, tidelock.AgentConfig{Agent: agent.ID})
		unannounced, err := w.Unannounced(w.Context(), 10)
		w.ok(err)
		equal(w, len(unannounced), 0)
		// What others were told of it stays, or their numbers would start
		// again below those that the agents have.
		kept, _, err := w.Announcements(w.Context(), tidelock.AnnouncementFilter{Agent: stranger.ID}, everything)
		w.ok(err)
		equal(w, kept, []tidelock.Announcement{told})

		again := w.project(site.Namespace, "site")
		if again.ID <= other.ID {
			w.Fatalf("got id %d again, after %d", again.ID, other.ID)
		}
	}},

	{"never give their id to another", func(w world) {
		site := w.site()
		w.ok(w.DeleteProject(w.Context(), site.ID))
		again := w.project(site.Namespace, "site")
		if again.ID <= site.ID {
			w.Fatalf("got id %d after %d was deleted", again.ID, site.ID)
		}
	}},
}

func second[T any](_ T, err error) error { return err }
