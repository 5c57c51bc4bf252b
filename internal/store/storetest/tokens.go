package storetest

import (
	"fmt"
	"time"

	"tidelock.dev"
)

func tokenName(t tidelock.Token) string { return t.Name }

var tokenTests = []test{
	{"are read as they were made", func(w world) {
		ada, site := w.user("ada"), w.site()
		for i, made := range []tidelock.Token{
			{Kind: tidelock.PersonalToken, Name: "mine", User: ada.ID, Scopes: []tidelock.Scope{tidelock.ScopeAPI, tidelock.ScopeReadUser}, Creator: ada.ID,
				CreatedAt: at(0), ExpiresAt: at(time.Hour), LastUsed: at(time.Minute)},
			{Kind: tidelock.DeployToken, Name: "deploy", Holder: tidelock.Holder{Project: site.ID}, Username: "gitlab+deploy-token-1", CreatedAt: at(0)},
			{Kind: tidelock.GroupToken, Name: "group", Holder: tidelock.Holder{Namespace: site.Namespace}, Level: tidelock.Maintainer,
				Scopes: []tidelock.Scope{tidelock.ScopeAPI}, CreatedAt: at(0), Revoked: true},
		} {
			hash := fmt.Sprint("hash", i)
			token, err := w.CreateToken(w.Context(), made, hash, nil)
			w.ok(err)
			made.ID = token.ID
			equal(w, token, made)
			read, err := w.Token(w.Context(), token.ID)
			w.ok(err)
			equal(w, read, made)
			read, err = w.TokenByHash(w.Context(), hash)
			w.ok(err)
			equal(w, read, made)
		}
	}},

	{"that do not exist are not found", func(w world) {
		_, err := w.Token(w.Context(), 1)
		w.kind(err, tidelock.NotFound)
		_, err = w.TokenByHash(w.Context(), "")
		w.kind(err, tidelock.NotFound)
		w.kind(w.RevokeToken(w.Context(), 1), tidelock.NotFound)
		w.kind(w.TouchToken(w.Context(), 1, start), tidelock.NotFound)
	}},

	{"are found by their exact hash", func(w world) {
		_, err := w.CreateToken(w.Context(), tidelock.Token{Kind: tidelock.PersonalToken, User: w.user("ada").ID}, "aB", nil)
		w.ok(err)
		for _, hash := range []string{"ab", "AB", "aB ", "a%"} {
			_, err := w.TokenByHash(w.Context(), hash)
			w.kind(err, tidelock.NotFound)
		}
	}},

	{"need a user and a holder that exist", func(w world) {
		for _, t := range []tidelock.Token{
			{Kind: tidelock.PersonalToken, User: 99},
			{Kind: tidelock.DeployToken, Holder: tidelock.Holder{Project: 99}},
			{Kind: tidelock.DeployToken, Holder: tidelock.Holder{Namespace: 99}},
		} {
			_, err := w.CreateToken(w.Context(), t, "hash", nil)
			w.kind(err, tidelock.NotFound)
		}
		_, err := w.CreateToken(w.Context(), tidelock.Token{Holder: tidelock.Holder{Project: 99}, Level: tidelock.Guest}, "hash",
			&tidelock.User{Username: "bot"})
		w.kind(err, tidelock.NotFound)
		_, err = w.UserByName(w.Context(), "bot") // made, and unmade
		w.kind(err, tidelock.NotFound)
	}},

	{"bring a bot", func(w world) {
		site := w.site()
		holder := tidelock.Holder{Project: site.ID}
		bot := tidelock.User{Username: "project_1_bot", Name: "ci"}
		token, err := w.CreateToken(w.Context(), tidelock.Token{
			Kind: tidelock.ProjectToken, Name: "ci", Holder: holder, Level: tidelock.Developer, CreatedAt: start, ExpiresAt: start.Add(time.Hour),
		}, "hash", &bot)
		w.ok(err)
		equal(w, bot, tidelock.User{Username: "project_1_bot", Name: "ci"}) // not ours to change
		user, err := w.User(w.Context(), token.User)
		w.ok(err)
		equal(w, user, tidelock.User{ID: token.User, Username: "project_1_bot", Name: "ci", Bot: true, CreatedAt: user.CreatedAt})
		level, err := w.AccessLevel(w.Context(), token.User, holder, start)
		w.ok(err)
		equal(w, level, tidelock.Developer)
		read, err := w.TokenByHash(w.Context(), "hash")
		w.ok(err)
		equal(w, read, token)

		_, err = w.CreateToken(w.Context(), tidelock.Token{Kind: tidelock.ProjectToken, Holder: holder, Level: tidelock.Developer}, "hash2", &bot)
		w.taken(err, "username")
	}},

	{"are revoked once and for all", func(w world) {
		token, err := w.CreateToken(w.Context(), tidelock.Token{Kind: tidelock.PersonalToken, User: w.user("ada").ID}, "hash", nil)
		w.ok(err)
		w.ok(w.RevokeToken(w.Context(), token.ID))
		w.ok(w.RevokeToken(w.Context(), token.ID))
		read, err := w.TokenByHash(w.Context(), "hash")
		w.ok(err)
		equal(w, read.Revoked, true)
	}},

	{"note their use once a minute", func(w world) {
		token, err := w.CreateToken(w.Context(), tidelock.Token{Kind: tidelock.PersonalToken, User: w.user("ada").ID}, "hash", nil)
		w.ok(err)
		for _, tt := range []struct{ touch, want time.Duration }{
			{0, 0}, {59 * time.Second, 0}, {60 * time.Second, 60 * time.Second}, {-time.Hour, 60 * time.Second}, {time.Hour, time.Hour},
		} {
			w.ok(w.TouchToken(w.Context(), token.ID, start.Add(tt.touch)))
			read, err := w.Token(w.Context(), token.ID)
			w.ok(err)
			equal(w, read.LastUsed, at(tt.want))
		}
	}},

	{"are listed by filter", func(w world) {
		ada, site := w.user("ada"), w.site()
		for i, t := range []tidelock.Token{
			{Name: "p1", Kind: tidelock.PersonalToken, User: ada.ID},
			{Name: "p2", Kind: tidelock.PersonalToken, User: ada.ID, ExpiresAt: start},
			{Name: "d1", Kind: tidelock.DeployToken, Holder: tidelock.Holder{Project: site.ID}, ExpiresAt: start.Add(time.Hour)},
			{Name: "d2", Kind: tidelock.DeployToken, Holder: tidelock.Holder{Namespace: site.Namespace}, Revoked: true},
		} {
			_, err := w.CreateToken(w.Context(), t, fmt.Sprint(i), nil)
			w.ok(err)
		}
		yes, no := true, false
		for _, tt := range []struct {
			filter tidelock.TokenFilter
			want   string
		}{
			{tidelock.TokenFilter{}, "p1 p2 d1 d2"},
			{tidelock.TokenFilter{Kind: tidelock.DeployToken}, "d1 d2"},
			{tidelock.TokenFilter{User: ada.ID}, "p1 p2"},
			{tidelock.TokenFilter{Holder: tidelock.Holder{Project: site.ID}}, "d1"},
			{tidelock.TokenFilter{Holder: tidelock.Holder{Namespace: site.Namespace}}, "d2"},
			{tidelock.TokenFilter{Active: &yes, Now: start}, "p1 d1"},
			{tidelock.TokenFilter{Active: &yes, Now: start.Add(-time.Second)}, "p1 p2 d1"},
			{tidelock.TokenFilter{Active: &no, Now: start}, "p2 d2"},
			{tidelock.TokenFilter{Active: &yes}, "p1"}, // now
		} {
			w.Logf("filter %+v", tt.filter)
			equal(w, names(w, tokenName)(w.Tokens(w.Context(), tt.filter, everything)), tt.want)
		}
		paged(w, 4, tokenName, func(p tidelock.Page) ([]tidelock.Token, int, error) {
			return w.Tokens(w.Context(), tidelock.TokenFilter{}, p)
		})
	}},
}
