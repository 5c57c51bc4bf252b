package storetest

import (
	"fmt"

	"tidelock.dev"
)

func username(u tidelock.User) string { return u.Username }

var userTests = []test{
	{"are read as they were made", func(w world) {
		made, err := w.CreateUser(w.Context(), tidelock.User{
			Username: "Ada", Name: "Ada L.", Email: "ada@example.com", Admin: true, Blocked: true, CreatedAt: start,
		})
		w.ok(err)
		equal(w, made, tidelock.User{
			ID: made.ID, Username: "Ada", Name: "Ada L.", Email: "ada@example.com", Admin: true, Blocked: true,
			Namespace: made.Namespace, CreatedAt: at(0),
		})
		if made.ID == 0 || made.Namespace == 0 {
			w.Fatalf("got ids %d and %d, want some", made.ID, made.Namespace)
		}
		read, err := w.User(w.Context(), made.ID)
		w.ok(err)
		equal(w, read, made)
		for _, name := range []string{"Ada", "ada", "ADA"} {
			read, err := w.UserByName(w.Context(), name)
			w.ok(err)
			equal(w, read, made)
		}
	}},

	{"have a namespace of their own", func(w world) {
		u := w.user("Ada")
		n, err := w.Namespace(w.Context(), u.Namespace)
		w.ok(err)
		equal(w, n, tidelock.Namespace{
			ID: u.Namespace, Kind: tidelock.UserNamespace, Path: "Ada", FullPath: "Ada", Name: u.Name, FullName: u.Name,
			Visibility: tidelock.Public, Owner: u.ID, CreatedAt: u.CreatedAt,
		})
	}},

	{"that are bots have no namespace", func(w world) {
		u, err := w.CreateUser(w.Context(), tidelock.User{Username: "robot", Bot: true})
		w.ok(err)
		equal(w, u.Namespace, 0)
		read, err := w.User(w.Context(), u.ID)
		w.ok(err)
		equal(w, read, u)
		_, err = w.NamespaceByPath(w.Context(), "robot")
		w.kind(err, tidelock.NotFound)
		_, err = w.CreateUser(w.Context(), tidelock.User{Username: "Robot"})
		w.taken(err, "username")
	}},

	{"have unique names, which groups share", func(w world) {
		w.user("ada")
		w.user("Ödön")
		w.group(0, "team")
		for _, name := range []string{"ada", "ADA", "ödÖn", "Team"} {
			_, err := w.CreateUser(w.Context(), tidelock.User{Username: name})
			w.taken(err, "username")
		}
		_, err := w.CreateNamespace(w.Context(), tidelock.Namespace{Path: "Ada"}, 0)
		w.taken(err, "path")
		// What was refused left nothing behind.
		equal(w, names(w, username)(w.Users(w.Context(), tidelock.UserFilter{}, everything)), "ada Ödön")
	}},

	{"with one name made at once become one", func(w world) {
		errs := together(8, func(int) error {
			_, err := w.CreateUser(w.Context(), tidelock.User{Username: "ada"})
			return err
		})
		equal(w, succeeded(errs), 1)
		for _, err := range errs {
			if err != nil {
				w.taken(err, "username")
			}
		}
	}},

	{"that do not exist are not found", func(w world) {
		_, err := w.User(w.Context(), 1)
		w.kind(err, tidelock.NotFound)
		for _, name := range []string{"", "ada", "a\x00b", "\xff", "%"} {
			_, err = w.UserByName(w.Context(), name)
			w.kind(err, tidelock.NotFound)
		}
	}},

	{"are listed by filter", func(w world) {
		for _, u := range []tidelock.User{
			{Username: "ada", Name: "Ada Lovelace"},
			{Username: "bob_1", Name: "100% Bob"},
			{Username: "Robot", Name: `Bot of ada\x`, Bot: true},
		} {
			_, err := w.CreateUser(w.Context(), u)
			w.ok(err)
		}
		for _, tt := range []struct {
			filter tidelock.UserFilter
			want   string
		}{
			{tidelock.UserFilter{}, "ada bob_1 Robot"},
			{tidelock.UserFilter{NoBots: true}, "ada bob_1"},
			{tidelock.UserFilter{Username: "ROBOT"}, "Robot"},
			{tidelock.UserFilter{Username: "ROBOT", NoBots: true}, ""},
			{tidelock.UserFilter{Username: "bob"}, ""},
			{tidelock.UserFilter{Search: "ADA"}, "ada Robot"},
			{tidelock.UserFilter{Search: "lace"}, "ada"},
			{tidelock.UserFilter{Search: "%"}, "bob_1"},
			{tidelock.UserFilter{Search: "_"}, "bob_1"},
			{tidelock.UserFilter{Search: `\`}, "Robot"},
			{tidelock.UserFilter{Search: "a%a"}, ""},
			{tidelock.UserFilter{Search: "'"}, ""},
		} {
			w.Logf("filter %+v", tt.filter)
			equal(w, names(w, username)(w.Users(w.Context(), tt.filter, everything)), tt.want)
		}
	}},

	{"are listed in pages", func(w world) {
		for i := range 5 {
			w.user(fmt.Sprint("user", i))
		}
		paged(w, 5, username, func(p tidelock.Page) ([]tidelock.User, int, error) {
			return w.Users(w.Context(), tidelock.UserFilter{Search: "user"}, p)
		})
	}},
}
