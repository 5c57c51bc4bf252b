package forge_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// signIn is what Authenticate says of a secret.
func (w *world) signIn(s tidelock.Secret) string {
	_, err := w.Authenticate(w.t.Context(), s)
	return answer(err)
}

func (w *world) personal(user tidelock.User, scopes ...tidelock.Scope) (tidelock.Token, tidelock.Secret) {
	w.t.Helper()
	token, secret, err := w.CreatePersonalToken(w.t.Context(), w.root, user.ID, forge.NewToken{Name: "laptop", Scopes: scopes})
	if err != nil {
		w.t.Fatal(err)
	}
	return token, secret
}

func TestRotation(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	ada := w.user("ada")
	first, secret := w.personal(ada, tidelock.ScopeAPI)
	second, next, err := w.RotatePersonalToken(ctx, as(ada), first.ID, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	if want := w.clock.AddDate(0, 0, 7).Truncate(24 * time.Hour); !second.ExpiresAt.Equal(want) || second.Name != first.Name || second.User != ada.ID || second.Line() != first.ID {
		t.Errorf("the new token is %+v, want it as before until %s", second, want)
	}
	if got := w.signIn(secret) + " " + w.signIn(next); got != "401 y" {
		t.Errorf("the old and the new token: got %s, want 401 y", got)
	}
	for name, expires := range map[string]time.Time{"past": w.clock.Add(-time.Hour), "too far": w.clock.AddDate(2, 0, 0)} {
		if _, _, err := w.RotatePersonalToken(ctx, as(ada), second.ID, expires); tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("an end that is %s: %v", name, err)
		}
	}
	eve := w.user("eve")
	if _, _, err := w.RotatePersonalToken(ctx, as(eve), second.ID, time.Time{}); answer(err) != "404" {
		t.Errorf("by somebody else: %v", err)
	}
	if w.signIn(next) != "y" {
		t.Error("what was refused ended the token")
	}
	w.clock = w.clock.AddDate(0, 0, 8)
	if _, _, err := w.RotatePersonalToken(ctx, as(ada), second.ID, time.Time{}); answer(err) != "401" {
		t.Errorf("an expired token: %v", err)
	}
}

// Offering a token that was rotated ends what came of it, once: by the secret
// and by the id alike, and even if it was only the oldest of a line.
func TestReuseEndsTheFamily(t *testing.T) {
	for _, tc := range []struct {
		name  string
		reuse func(w *world, first tidelock.Token, secret tidelock.Secret) error
	}{
		{"the secret", func(w *world, _ tidelock.Token, secret tidelock.Secret) error {
			_, err := w.AuthenticateToRotate(w.t.Context(), secret, "203.0.113.7:1")
			return err
		}},
		{"the id", func(w *world, first tidelock.Token, _ tidelock.Secret) error {
			_, _, err := w.RotatePersonalToken(w.t.Context(), w.root.Via("203.0.113.7:1"), first.ID, time.Time{})
			return err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			ada := w.user("ada")
			first, secret := w.personal(ada, tidelock.ScopeAPI)
			_, other := w.personal(ada, tidelock.ScopeAPI)
			last, lastSecret := first, secret
			for range 3 {
				var err error
				if last, lastSecret, err = w.RotatePersonalToken(t.Context(), as(ada), last.ID, time.Time{}); err != nil {
					t.Fatal(err)
				}
			}
			if got := w.signIn(secret); got != "401" { // using it, but not to rotate, is only refused
				t.Errorf("signing in with a rotated token: %s", got)
			}
			if got := w.signIn(lastSecret); got != "y" {
				t.Fatalf("the newest token: %s", got)
			}
			for range 2 {
				if err := tc.reuse(w, first, secret); answer(err) != "401" {
					t.Errorf("rotating it again: %v", err)
				}
			}
			if got := w.signIn(lastSecret) + " " + w.signIn(other); got != "401 y" {
				t.Errorf("the newest of the line and another token: got %s, want 401 y", got)
			}
			var noted []string
			for _, e := range w.audit(tidelock.AuditFilter{}) {
				if e.Act == "token family revoked" {
					noted = append(noted, e.From+" "+e.Subject)
				}
			}
			if want := fmt.Sprintf(`203.0.113.7 personal token %d "laptop"`, first.ID); len(noted) != 1 || noted[0] != want {
				t.Errorf("the audit log tells of %q, want once %q", noted, want)
			}
		})
	}
}

// Of rotations at once one wins, and the losers do not end what it made.
func TestRotationAtOnce(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada")
	_, secret := w.personal(ada, tidelock.ScopeAPI)
	p, err := w.Authenticate(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won []tidelock.Secret
	for range 8 {
		wg.Go(func() {
			_, next, err := w.RotateSelf(t.Context(), p, tidelock.PersonalToken, "", time.Time{})
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, next)
			} else if answer(err) != "401" {
				t.Errorf("a loser is told %v", err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d of 8 rotations won, want 1", len(won))
	}
	if got := w.signIn(won[0]); got != "y" {
		t.Errorf("the winner's token: %s", got)
	}
}

// A maintainer must not get at an owner's bot by rotating its token.
func TestRotationDoesNotEscalate(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	group := w.group("team", tidelock.Private)
	site := forge.OnProject(w.project(group, "site", tidelock.Private))
	ada := w.user("ada")
	w.member(site, ada, tidelock.Maintainer)
	create := func(level tidelock.AccessLevel) (tidelock.Token, tidelock.Secret) {
		token, secret, err := w.CreateAccessToken(ctx, w.root, site, forge.NewToken{Name: "bot", Scopes: []tidelock.Scope{tidelock.ScopeAPI, tidelock.ScopeSelfRotate}, Level: level})
		if err != nil {
			t.Fatal(err)
		}
		return token, secret
	}
	owners, _ := create(tidelock.Owner)
	if _, _, err := w.RotateTokenOf(ctx, as(ada), site, tidelock.ProjectToken, owners.ID, time.Time{}); answer(err) != "403" {
		t.Errorf("an owner's token by a maintainer: %v", err)
	}
	maintainers, secret := create(tidelock.Maintainer)
	bot, err := w.Authenticate(ctx, secret)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.RotateTokenOf(ctx, bot, site, tidelock.ProjectToken, maintainers.ID, time.Time{}); answer(err) != "403" {
		t.Errorf("a bot by id: %v", err)
	}
	w.member(site, *bot.User, tidelock.Owner) // promoted since
	if _, _, err := w.RotateTokenOf(ctx, as(ada), site, tidelock.ProjectToken, maintainers.ID, time.Time{}); answer(err) != "403" {
		t.Errorf("the token of a bot that was made an owner: %v", err)
	}
	w.member(site, *bot.User, tidelock.Reporter) // and demoted
	next, _, err := w.RotateTokenOf(ctx, as(ada), site, tidelock.ProjectToken, maintainers.ID, w.clock.AddDate(0, 3, 0))
	if err != nil {
		t.Fatal(err)
	}
	if level, err := w.Level(ctx, as(*bot.User), site); err != nil || level != tidelock.Reporter || next.User != bot.User.ID {
		t.Errorf("after its rotation the bot has %v, %v: want what it was given", level, err)
	}
}

func TestShares(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	team, dev, hidden := w.group("team", tidelock.Private), w.group("dev", tidelock.Private), w.group("hidden", tidelock.Private)
	project := w.project(team, "site", tidelock.Private)
	site := forge.OnProject(project)
	lead, ada, bob := w.user("lead"), w.user("ada"), w.user("bob")
	w.member(site, lead, tidelock.Maintainer)
	w.member(forge.OnGroup(dev), ada, tidelock.Owner)
	w.member(forge.OnGroup(hidden), bob, tidelock.Developer)

	share := func(by tidelock.User, with tidelock.Namespace, level tidelock.AccessLevel, expires time.Time) string {
		_, err := w.ShareProject(ctx, as(by), project, with.ID, level, expires)
		return answer(err)
	}
	for _, tc := range []struct {
		name string
		got  string
		want string
	}{
		{"with a group that is not seen", share(lead, dev, tidelock.Developer, time.Time{}), "404"},
		{"by somebody who does not see the project", share(ada, dev, tidelock.Developer, time.Time{}), "404"},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.name, tc.got, tc.want)
		}
	}
	w.member(forge.OnGroup(dev), lead, tidelock.Guest)
	if got := share(lead, dev, tidelock.Owner, time.Time{}); got != "403" {
		t.Errorf("giving more than one has: %s", got)
	}
	if got := share(lead, dev, tidelock.Developer, w.clock.Add(time.Hour)); got != "y" {
		t.Fatalf("sharing: %s", got)
	}
	if got := answer(w.Allow(ctx, as(ada), forge.PushCode, site)) + answer(w.Allow(ctx, as(ada), forge.EditProject, site)); got != "y403" {
		t.Errorf("an owner of the group pushes and edits: got %s, want y403", got)
	}
	if got := answer(w.Allow(ctx, as(ada), forge.ReadGroup, forge.OnGroup(team))); got != "404" {
		t.Errorf("the group of the project: %s", got)
	}

	// What is shared with a group that is not seen is not told of, nor are its
	// members; those who answer for the members see both.
	if _, err := w.ShareProject(ctx, w.root, project, hidden.ID, tidelock.Reporter, time.Time{}); err != nil {
		t.Fatal(err)
	}
	for who, want := range map[*tidelock.User]string{&ada: "dev; ada lead root", &lead: "dev; ada bob lead root", w.root.User: "dev hidden; ada bob lead root"} {
		shared, err := w.SharedGroups(ctx, as(*who), project.ID)
		if err != nil {
			t.Fatal(err)
		}
		var groups, users []string
		for _, s := range shared[project.ID] {
			groups = append(groups, s.With.Path)
		}
		members, err := w.AllMembers(ctx, as(*who), site)
		if err != nil {
			t.Fatal(err)
		}
		names := map[tidelock.UserID]string{ada.ID: "ada", bob.ID: "bob", lead.ID: "lead", w.root.User.ID: "root"}
		for _, name := range []string{"ada", "bob", "lead", "root"} {
			for _, m := range members {
				if names[m.User] == name {
					users = append(users, name)
				}
			}
		}
		if got := strings.Join(groups, " ") + "; " + strings.Join(users, " "); got != want {
			t.Errorf("%s sees %q, want %q", who.Username, got, want)
		}
	}

	// A maintainer cannot end what an owner gave beyond a maintainer's reach.
	top := w.group("top", tidelock.Public)
	if _, err := w.ShareProject(ctx, w.root, project, top.ID, tidelock.Owner, time.Time{}); err != nil {
		t.Fatal(err)
	}
	if err := w.UnshareProject(ctx, as(lead), project, top.ID); answer(err) != "403" {
		t.Errorf("a maintainer ends an owner's share: %v", err)
	}

	w.clock = w.clock.Add(time.Hour)
	if got := answer(w.Allow(ctx, as(ada), forge.ReadProject, site)); got != "404" {
		t.Errorf("after the end of the share: %s", got)
	}
	if err := w.UnshareProject(ctx, as(lead), project, dev.ID); err != nil {
		t.Error(err)
	}
}

func TestGroupsKeepAnOwner(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	team := w.group("team", tidelock.Private) // root is its owner
	on := forge.OnGroup(team)
	ada, eve := w.user("ada"), w.user("eve")
	root := w.root.User.ID
	set := func(user tidelock.UserID, level tidelock.AccessLevel) string {
		_, err := w.SetMember(ctx, w.root, on, user, level, time.Time{})
		return answer(err)
	}
	if got := set(root, tidelock.Maintainer) + answer(w.RemoveMember(ctx, w.root, on, root)); got != "403403" {
		t.Errorf("the last owner is lowered and removed: got %s, want 403403", got)
	}
	if level, err := w.Level(ctx, w.root, on); err != nil || level != tidelock.Owner {
		t.Errorf("the last owner has %v, %v", level, err)
	}
	w.member(on, ada, tidelock.Owner)
	w.member(on, eve, tidelock.Developer)
	if _, err := w.EditUser(ctx, w.root, ada.ID, forge.UserEdit{Blocked: new(true)}); err != nil {
		t.Fatal(err)
	}
	if err := w.RemoveMember(ctx, w.root, on, root); answer(err) != "403" {
		t.Errorf("only a blocked owner would be left: %v", err)
	}
	if _, err := w.EditUser(ctx, w.root, ada.ID, forge.UserEdit{Blocked: new(false)}); err != nil {
		t.Fatal(err)
	}
	if err := w.RemoveMember(ctx, w.root, on, root); err != nil {
		t.Errorf("with another owner: %v", err)
	}

	// An owner of the group above is enough, and two cannot end each other.
	sub, err := w.CreateGroup(ctx, w.root, forge.NewGroup{Parent: team.ID, Path: "sub"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.RemoveMember(ctx, as(ada), forge.OnGroup(sub), root); err != nil {
		t.Errorf("below a group with an owner: %v", err)
	}
	w.member(on, eve, tidelock.Owner)
	var wg sync.WaitGroup
	for _, pair := range [][2]tidelock.User{{ada, eve}, {eve, ada}} {
		wg.Go(func() { _ = w.RemoveMember(ctx, as(pair[0]), on, pair[1].ID) })
	}
	wg.Wait()
	members, _, err := w.Members(ctx, w.root, on, tidelock.Page{})
	if err != nil || len(members) == 0 {
		t.Errorf("two owners removed each other: %v, %v", members, err)
	}
}

// What a blocked user holds stops at once, and starts again with the user.
func TestBlockedUsers(t *testing.T) {
	w := newWorld(t)
	ada := w.user("ada")
	_, secret := w.personal(ada, tidelock.ScopeAPI, tidelock.ScopeReadRepository)
	basic := func() string {
		_, err := w.AuthenticateBasic(t.Context(), "ada", secret)
		return answer(err)
	}
	for _, tc := range []struct {
		blocked bool
		want    string
	}{{true, "401 401"}, {false, "y y"}} {
		if _, err := w.EditUser(t.Context(), w.root, ada.ID, forge.UserEdit{Blocked: &tc.blocked}); err != nil {
			t.Fatal(err)
		}
		if got := w.signIn(secret) + " " + basic(); got != tc.want {
			t.Errorf("blocked %t: got %s, want %s", tc.blocked, got, tc.want)
		}
	}
	for name, e := range map[string]forge.UserEdit{"blocks": {Blocked: new(true)}, "demotes": {Admin: new(false)}} {
		if _, err := w.EditUser(t.Context(), w.root, w.root.User.ID, e); answer(err) != "403" {
			t.Errorf("an administrator %s itself: %v", name, err)
		}
	}
	if _, err := w.EditUser(t.Context(), as(ada), ada.ID, forge.UserEdit{Admin: new(true)}); answer(err) != "403" {
		t.Errorf("a user promotes itself: %v", err)
	}
}

func (w *world) audit(filter tidelock.AuditFilter) []tidelock.AuditEvent {
	w.t.Helper()
	events, _, err := w.AuditLog(w.t.Context(), w.root, forge.OnForge, filter, tidelock.Page{})
	if err != nil {
		w.t.Fatal(err)
	}
	return events
}

// Of two administrators who demote or block each other at once, one stays:
// what counts is who they are when it is written, not when they signed in.
func TestLastAdministratorStays(t *testing.T) {
	for name, e := range map[string]forge.UserEdit{"demoted": {Admin: new(false)}, "blocked": {Blocked: new(true)}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			ada := w.user("ada")
			ada, err := w.EditUser(t.Context(), w.root, ada.ID, forge.UserEdit{Admin: new(true)})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.EditUser(t.Context(), as(ada), w.root.User.ID, e); err != nil {
				t.Fatalf("the first: %v", err)
			}
			if _, err := w.EditUser(t.Context(), w.root, ada.ID, e); tidelock.KindOf(err) != tidelock.Denied {
				t.Errorf("the second: got %v, want it denied", err)
			}
			if _, err := w.EditUser(t.Context(), w.root, ada.ID, forge.UserEdit{Name: new("Eve")}); tidelock.KindOf(err) != tidelock.Denied {
				t.Errorf("another change by who is no administrator any more: got %v, want it denied", err)
			}
		})
	}
}
