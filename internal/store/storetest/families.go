package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidelock.dev"
)

var familyTests = []test{
	{"grow by rotation", func(w world) {
		site := w.site()
		holder := tidelock.Holder{Project: site.ID}
		first, err := w.CreateToken(w.Context(), tidelock.Token{
			Kind: tidelock.ProjectToken, Name: "ci", Holder: holder, Level: tidelock.Developer, Scopes: []tidelock.Scope{tidelock.ScopeAPI},
			CreatedAt: at(0), ExpiresAt: at(time.Hour),
		}, "hash0", &tidelock.User{Username: "bot"})
		w.ok(err)
		last := first
		for i := range 3 {
			next := last
			next.ID, next.ExpiresAt = 0, at(time.Duration(i+2)*time.Hour)
			made, err := w.RotateToken(w.Context(), last.ID, next, fmt.Sprint("hash", i+1))
			w.ok(err)
			next.ID, next.Family = made.ID, first.ID
			equal(w, made, next)
			read, err := w.TokenByHash(w.Context(), fmt.Sprint("hash", i+1))
			w.ok(err)
			equal(w, read, made)
			old, err := w.Token(w.Context(), last.ID)
			w.ok(err)
			equal(w, old.Revoked, true)
			last = made
		}
		// The bot is the same, and a member for as long as the newest.
		equal(w, last.User, first.User)
		for _, tt := range []struct {
			at   time.Time
			want tidelock.AccessLevel
		}{{at(4*time.Hour - time.Second), tidelock.Developer}, {at(4 * time.Hour), tidelock.NoAccess}} {
			level, err := w.AccessLevel(w.Context(), first.User, holder, tt.at)
			w.ok(err)
			equal(w, level, tt.want)
		}

		_, err = w.RotateToken(w.Context(), first.ID, first, "another")
		w.kind(err, tidelock.Conflict)
		_, err = w.RotateToken(w.Context(), 99, first, "another")
		w.kind(err, tidelock.NotFound)
		_, err = w.TokenByHash(w.Context(), "another")
		w.kind(err, tidelock.NotFound)

		equal(w, names(w, tokenName)(w.Tokens(w.Context(), tidelock.TokenFilter{Family: first.ID}, everything)), "ci ci ci ci")
		n, err := w.RevokeFamily(w.Context(), first.ID)
		w.ok(err)
		equal(w, n, 1)
		n, err = w.RevokeFamily(w.Context(), first.ID)
		w.ok(err)
		equal(w, n, 0)
		_, err = w.RevokeFamily(w.Context(), 99)
		w.kind(err, tidelock.NotFound)
	}},

	{"have one heir, whoever asks at once", func(w world) {
		ada := w.user("ada")
		token, err := w.CreateToken(w.Context(), tidelock.Token{Kind: tidelock.PersonalToken, User: ada.ID}, "hash", nil)
		w.ok(err)
		errs := together(8, func(i int) error {
			_, err := w.RotateToken(w.Context(), token.ID, token, fmt.Sprint("hash", i))
			return err
		})
		equal(w, succeeded(errs), 1)
		for _, err := range errs {
			if err != nil {
				w.kind(err, tidelock.Conflict)
			}
		}
	}},

	{"end whole, also while they grow", func(w world) {
		ada := w.user("ada")
		for round := range 5 {
			first, err := w.CreateToken(w.Context(), tidelock.Token{Kind: tidelock.PersonalToken, User: ada.ID}, fmt.Sprint("first", round), nil)
			w.ok(err)
			second, err := w.RotateToken(w.Context(), first.ID, first, fmt.Sprint("second", round))
			w.ok(err)
			errs := together(2, func(i int) error {
				if i == 0 {
					_, err := w.RotateToken(w.Context(), second.ID, second, fmt.Sprint("third", round))
					if tidelock.KindOf(err) == tidelock.Conflict {
						return nil
					}
					return err
				}
				_, err := w.RevokeFamily(w.Context(), first.ID)
				return err
			})
			w.ok(errors.Join(errs...))
			no := false
			equal(w, names(w, tokenName)(w.Tokens(w.Context(), tidelock.TokenFilter{Family: first.ID, Revoked: &no}, everything)), "")
		}
	}},

	{"and others are listed by what clients filter by", func(w world) {
		ada := w.user("ada")
		for i, t := range []tidelock.Token{
			{Name: "Old", CreatedAt: at(0), LastUsed: at(time.Hour), ExpiresAt: at(9 * time.Hour)},
			{Name: "unused", CreatedAt: at(time.Hour), ExpiresAt: at(8 * time.Hour), Revoked: true},
			{Name: "new", CreatedAt: at(2 * time.Hour), LastUsed: at(2 * time.Hour)},
		} {
			t.Kind, t.User = tidelock.PersonalToken, ada.ID
			_, err := w.CreateToken(w.Context(), t, fmt.Sprint(i), nil)
			w.ok(err)
		}
		yes, no := true, false
		for _, tt := range []struct {
			filter tidelock.TokenFilter
			want   string
		}{
			{tidelock.TokenFilter{Revoked: &yes}, "unused"},
			{tidelock.TokenFilter{Revoked: &no}, "Old new"},
			{tidelock.TokenFilter{Search: "OLD"}, "Old"},
			{tidelock.TokenFilter{Search: "%"}, ""},
			{tidelock.TokenFilter{Created: tidelock.Span{Since: at(time.Hour)}}, "unused new"},
			{tidelock.TokenFilter{Created: tidelock.Span{Before: at(time.Hour)}}, "Old"},
			{tidelock.TokenFilter{Used: tidelock.Span{Before: at(2 * time.Hour)}}, "Old"},
			{tidelock.TokenFilter{Used: tidelock.Span{Since: at(2 * time.Hour)}}, "new"},
			{tidelock.TokenFilter{Expires: tidelock.Span{Before: at(9 * time.Hour)}}, "unused"},
			{tidelock.TokenFilter{OrderBy: "name"}, "new Old unused"},
			{tidelock.TokenFilter{OrderBy: "created_at", Descending: true}, "new unused Old"},
			{tidelock.TokenFilter{OrderBy: "expires_at"}, "new unused Old"},
			{tidelock.TokenFilter{OrderBy: "last_used_at", Descending: true}, "new Old unused"},
		} {
			w.Logf("filter %+v", tt.filter)
			equal(w, names(w, tokenName)(w.Tokens(w.Context(), tt.filter, everything)), tt.want)
		}
		_, _, err := w.Tokens(w.Context(), tidelock.TokenFilter{OrderBy: "hash"}, everything)
		w.kind(err, tidelock.Invalid)
	}},
}

var changeTests = []test{
	{"of users are written, or not", func(w world) {
		ada := w.user("ada")
		changed, err := w.ChangeUser(w.Context(), ada.ID, func(u *tidelock.User) error {
			u.Name, u.Email, u.Admin, u.Blocked = "Ada L.", "ada@example.com", true, true
			u.Username, u.Bot = "other", true // not to be changed
			return nil
		})
		w.ok(err)
		read, err := w.User(w.Context(), ada.ID)
		w.ok(err)
		equal(w, read.Username, "ada")
		equal(w, read.Bot, false)
		changed.Username, changed.Bot = "ada", false
		equal(w, read, changed)
		equal(w, names(w, username)(w.Users(w.Context(), tidelock.UserFilter{Search: "ada l"}, everything)), "ada")

		stop := errors.New("stop")
		_, err = w.ChangeUser(w.Context(), ada.ID, func(u *tidelock.User) error { u.Blocked = false; return stop })
		if !errors.Is(err, stop) {
			w.Fatalf("got %v, want %v", err, stop)
		}
		_, err = w.ChangeUser(w.Context(), 99, func(*tidelock.User) error { return nil })
		w.kind(err, tidelock.NotFound)
		read, err = w.User(w.Context(), ada.ID)
		w.ok(err)
		equal(w, read.Blocked, true)
	}},

	{"of administrators take turns", func(w world) {
		// Each takes the other's role, unless the own was taken before.
		users := []tidelock.User{w.user("ada"), w.user("bob")}
		for _, u := range append(users, w.user("eve")) {
			_, err := w.ChangeUser(w.Context(), u.ID, func(u *tidelock.User) error {
				u.Admin, u.Blocked = true, u.Username == "eve"
				return nil
			})
			w.ok(err)
		}
		won := together(2, func(i int) error {
			return w.Atomically(w.Context(), func(ctx context.Context) error {
				admins, err := w.Administrators(ctx)
				if err == nil && !slices.Contains(admins, users[i].ID) {
					err = errors.New("no administrator any more")
				}
				if err != nil {
					return err
				}
				_, err = w.ChangeUser(ctx, users[1-i].ID, func(u *tidelock.User) error { u.Admin = false; return nil })
				return err
			})
		})
		equal(w, succeeded(won), 1)
		left, err := w.Administrators(w.Context())
		w.ok(err)
		equal(w, len(left), 1)
	}},
}

func auditAct(e tidelock.AuditEvent) string { return e.Act }

var auditTests = []test{
	{"are kept whole, newest first, and outlive what they name", func(w world) {
		site := w.site()
		made := tidelock.AuditEvent{
			At: start, User: 7, Name: "ada", Token: 8, From: "203.0.113.7", Act: "first", Holder: tidelock.Holder{Project: site.ID},
			Path: "team/site", Subject: `token 9 "x"`, Detail: "scopes api",
		}
		w.ok(w.SaveAuditEvent(w.Context(), made))
		w.ok(w.SaveAuditEvent(w.Context(), tidelock.AuditEvent{At: start.Add(time.Hour), Act: "second", Holder: tidelock.Holder{Namespace: site.Namespace}}))
		w.ok(w.SaveAuditEvent(w.Context(), tidelock.AuditEvent{At: start.Add(2 * time.Hour), Act: "third"}))
		w.ok(w.DeleteProject(w.Context(), site.ID))
		events, total, err := w.AuditEvents(w.Context(), tidelock.AuditFilter{}, everything)
		w.ok(err)
		equal(w, total, 3)
		made.ID, made.At = events[2].ID, at(0)
		equal(w, events[2], made)
		one, err := w.AuditEvent(w.Context(), made.ID)
		w.ok(err)
		equal(w, one, made)
		_, err = w.AuditEvent(w.Context(), 99)
		w.kind(err, tidelock.NotFound)
		for _, tt := range []struct {
			filter tidelock.AuditFilter
			want   string
		}{
			{tidelock.AuditFilter{}, "third second first"},
			{tidelock.AuditFilter{Holder: tidelock.Holder{Project: site.ID}}, "first"},
			{tidelock.AuditFilter{Holder: tidelock.Holder{Namespace: site.Namespace}}, "second"},
			{tidelock.AuditFilter{User: 7}, "first"},
			{tidelock.AuditFilter{Span: tidelock.Span{Since: start.Add(time.Hour)}}, "third second"},
			{tidelock.AuditFilter{Span: tidelock.Span{Before: start.Add(time.Hour)}}, "first"},
			{tidelock.AuditFilter{IDBefore: events[0].ID}, "second first"},
		} {
			w.Logf("filter %+v", tt.filter)
			equal(w, names(w, auditAct)(w.AuditEvents(w.Context(), tt.filter, everything)), tt.want)
		}
		paged(w, 3, auditAct, func(p tidelock.Page) ([]tidelock.AuditEvent, int, error) {
			return w.AuditEvents(w.Context(), tidelock.AuditFilter{}, p)
		})
	}},
}
