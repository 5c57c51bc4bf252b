package forge_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// deafStore is a store whose audit log can be made to refuse.
type deafStore struct {
	forge.Store
	deaf bool
}

var errDeaf = errors.New("the audit log cannot be written")

func (s *deafStore) SaveAuditEvent(ctx context.Context, e tidelock.AuditEvent) error {
	if s.deaf {
		return errDeaf
	}
	return s.Store.SaveAuditEvent(ctx, e)
}

// state is everything that says who may do what, as text.
func (w *world) state() string {
	w.t.Helper()
	ctx := w.t.Context()
	var b strings.Builder
	add := func(what string, v any, err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatalf("read %s: %v", what, err)
		}
		fmt.Fprintf(&b, "%s %+v\n", what, v)
	}
	users, _, err := w.store.Users(ctx, tidelock.UserFilter{}, tidelock.Page{})
	add("users", users, err)
	tokens, _, err := w.store.Tokens(ctx, tidelock.TokenFilter{}, tidelock.Page{})
	add("tokens", tokens, err)
	groups, _, err := w.store.Namespaces(ctx, tidelock.NamespaceFilter{}, tidelock.Page{})
	add("namespaces", groups, err)
	projects, _, err := w.store.Projects(ctx, tidelock.ProjectFilter{}, tidelock.Page{})
	add("projects", projects, err)
	agents, _, err := w.store.Agents(ctx, tidelock.AgentFilter{}, tidelock.Page{})
	add("agents", agents, err)
	for _, a := range agents {
		tokens, err := w.store.AgentTokens(ctx, a.ID)
		add("agent tokens", tokens, err)
	}
	holders := []tidelock.Holder{}
	for _, g := range groups {
		holders = append(holders, tidelock.Holder{Namespace: g.ID})
	}
	for _, p := range projects {
		holders = append(holders, tidelock.Holder{Project: p.ID})
		branches, err := w.store.ProtectedBranches(ctx, p.ID)
		add("branches", branches, err)
		grants, err := w.store.Grants(ctx, p.ID)
		add("grants", grants, err)
		shares, err := w.store.Shares(ctx, p.ID)
		add("shares", shares, err)
	}
	for _, h := range holders {
		members, _, err := w.store.Members(ctx, h, tidelock.Page{})
		add("members", members, err)
		variables, _, err := w.store.Variables(ctx, tidelock.VariableFilter{Holder: h}, tidelock.Page{})
		add("variables", variables, err)
		for _, v := range variables {
			add("value", v.Value.Reveal(), nil)
		}
	}
	return b.String()
}

// TestBothOrNeither holds every act that changes who may do what against a log
// that cannot be written: then nothing may have changed. With a log that can,
// something has, and one event says so.
func TestBothOrNeither(t *testing.T) {
	log := &deafStore{}
	w := newWorldWith(t, func(s forge.Store) forge.Store { log.Store = s; return log })
	ctx := t.Context()
	root := w.root.Via("203.0.113.7:4711")
	team, dev := w.group("team", tidelock.Private), w.group("dev", tidelock.Private)
	site, shop := w.project(team, "site", tidelock.Private), w.project(team, "shop", tidelock.Private)
	onSite, onTeam := forge.OnProject(site), forge.OnGroup(team)
	ada, bob := w.user("ada"), w.user("bob")
	agent, err := w.CreateAgent(ctx, w.root, site, "prod")
	if err != nil {
		t.Fatal(err)
	}
	personal, _ := w.personal(ada, tidelock.ScopeAPI)
	readAPI := forge.NewToken{Name: "x", Scopes: []tidelock.Scope{tidelock.ScopeReadAPI}}
	access, _, err := w.CreateAccessToken(ctx, w.root, onSite, readAPI)
	if err != nil {
		t.Fatal(err)
	}
	deploy, _, err := w.CreateDeployToken(ctx, w.root, onTeam, forge.NewToken{Name: "x", Scopes: []tidelock.Scope{tidelock.ScopeReadRepository}})
	if err != nil {
		t.Fatal(err)
	}
	agentToken, _, err := w.CreateAgentToken(ctx, w.root, site, agent.ID, "one", "")
	if err != nil {
		t.Fatal(err)
	}

	var rotated tidelock.Token
	for _, act := range []struct {
		want string // what the log says of it
		do   func() error
	}{
		{"user created", func() error { _, err := w.CreateUser(ctx, root, forge.NewUser{Username: "eve"}); return err }},
		{"user blocked", func() error { _, err := w.EditUser(ctx, root, bob.ID, forge.UserEdit{Blocked: new(true)}); return err }},
		{"user unblocked", func() error { _, err := w.EditUser(ctx, root, bob.ID, forge.UserEdit{Blocked: new(false)}); return err }},
		{"user edited", func() error { _, err := w.EditUser(ctx, root, bob.ID, forge.UserEdit{Admin: new(true)}); return err }},
		{"group created", func() error { _, err := w.CreateGroup(ctx, root, forge.NewGroup{Path: "new"}); return err }},
		{"group edited", func() error { _, err := w.EditGroup(ctx, root, "new", forge.GroupEdit{Path: new("newer")}); return err }},
		{"group deleted", func() error { return w.DeleteGroup(ctx, root, "newer") }},
		{"project created", func() error { _, err := w.CreateProject(ctx, root, forge.NewProject{Path: "page"}); return err }},
		{"project edited", func() error {
			_, err := w.EditProject(ctx, root, "root/page", forge.ProjectEdit{Archived: new(true)})
			return err
		}},
		{"project transferred", func() error { _, err := w.TransferProject(ctx, root, "root/page", "dev"); return err }},
		{"project deleted", func() error { return w.DeleteProject(ctx, root, "dev/page") }},
		{"member set", func() error {
			_, err := w.SetMember(ctx, root, onTeam, ada.ID, tidelock.Developer, time.Time{})
			return err
		}},
		{"member set", func() error {
			_, err := w.AddMember(ctx, root, onSite, ada.ID, tidelock.Developer, time.Time{})
			return err
		}},
		{"member set", func() error { _, err := w.EditMember(ctx, root, onSite, ada.ID, tidelock.Guest, nil); return err }},
		{"member removed", func() error { return w.RemoveMember(ctx, root, onTeam, ada.ID) }},
		{"project shared", func() error {
			_, err := w.ShareProject(ctx, root, site, dev.ID, tidelock.Developer, time.Time{})
			return err
		}},
		{"share ended", func() error { return w.UnshareProject(ctx, root, site, dev.ID) }},
		{"branch protected", func() error {
			_, err := w.ProtectBranch(ctx, root, "team/site", tidelock.ProtectedBranch{Pattern: "release/*", PushLevel: tidelock.Maintainer})
			return err
		}},
		{"branch unprotected", func() error { return w.UnprotectBranch(ctx, root, "team/site", "release/*") }},
		{"token created", func() error { _, _, err := w.CreatePersonalToken(ctx, root, ada.ID, readAPI); return err }},
		{"token created", func() error { _, _, err := w.CreateAccessToken(ctx, root, onSite, readAPI); return err }},
		{"token created", func() error {
			_, _, err := w.CreateDeployToken(ctx, root, onSite, forge.NewToken{Name: "y", Scopes: []tidelock.Scope{tidelock.ScopeReadRepository}})
			return err
		}},
		{"token rotated", func() (err error) {
			made, _, err := w.RotatePersonalToken(ctx, root, personal.ID, time.Time{})
			if err == nil {
				rotated = made
			}
			return err
		}},
		{"token revoked", func() error { return w.RevokePersonalToken(ctx, root, rotated.ID) }},
		{"token rotated", func() (err error) {
			_, _, err = w.RotateTokenOf(ctx, root, onSite, tidelock.ProjectToken, access.ID, time.Time{})
			return err
		}},
		{"token family revoked", func() error {
			_, _, err := w.RotateTokenOf(ctx, root, onSite, tidelock.ProjectToken, access.ID, time.Time{})
			if answer(err) == "401" {
				return nil // refused, as it should be
			}
			return err
		}},
		{"token revoked", func() error { return w.RevokeTokenOf(ctx, root, onTeam, tidelock.DeployToken, deploy.ID) }},
		{"variable created", func() error {
			_, err := w.CreateVariable(ctx, root, onSite, tidelock.Variable{Key: "A", Value: tidelock.NewSecret("topsecret")})
			return err
		}},
		{"variable edited", func() error {
			_, err := w.EditVariable(ctx, root, onSite, "A", nil, forge.VariableEdit{Value: new(tidelock.NewSecret("topsecret2"))})
			return err
		}},
		{"variable deleted", func() error { return w.DeleteVariable(ctx, root, onSite, "A", nil) }},
		{"agent created", func() error { _, err := w.CreateAgent(ctx, root, shop, "test"); return err }},
		{"agent token created", func() error { _, _, err := w.CreateAgentToken(ctx, root, site, agent.ID, "two", ""); return err }},
		{"agent token revoked", func() error { return w.RevokeAgentToken(ctx, root, site, agent.ID, agentToken.ID) }},
		{"agent granted", func() error { _, err := w.GrantAgent(ctx, root, shop, agent.ID); return err }},
		{"grant revoked", func() error { return w.RevokeGrant(ctx, root, shop, agent.ID) }},
		{"agent deleted", func() error { return w.DeleteAgent(ctx, root, site, agent.ID) }},
	} {
		t.Run(act.want, func(t *testing.T) {
			before, length := w.state(), len(w.audit(tidelock.AuditFilter{}))
			log.deaf = true
			err := act.do()
			log.deaf = false
			if !errors.Is(err, errDeaf) {
				t.Errorf("without a log: got %v, want %v", err, errDeaf)
			}
			if after := w.state(); after != before {
				t.Errorf("without a log it was done all the same:\n%s", changedLines(before, after))
			}
			if err := act.do(); err != nil {
				t.Fatalf("with a log: %v", err)
			}
			if w.state() == before {
				t.Error("with a log nothing was done")
			}
			events := w.audit(tidelock.AuditFilter{})
			if len(events) != length+1 {
				t.Fatalf("the log has %d new events, want 1", len(events)-length)
			}
			e := events[0]
			if e.Act != act.want || e.From != "203.0.113.7" || e.User != root.User.ID || e.Name != "root" || e.Subject == "" {
				t.Errorf("the event is %+v, want %q by root from 203.0.113.7", e, act.want)
			}
			if text := e.Subject + e.Detail; strings.Contains(text, "topsecret") || strings.Contains(text, "glpat-") {
				t.Errorf("the event holds a secret: %q", text)
			}
		})
	}
}

// changedLines are the lines of after that are not in before.
func changedLines(before, after string) string {
	known := strings.Split(before, "\n")
	var changed []string
	for line := range strings.SplitSeq(after, "\n") {
		if !slices.Contains(known, line) {
			changed = append(changed, line)
		}
	}
	return strings.Join(changed, "\n")
}

// What was refused is not in the audit log: nobody may fill it.
func TestRefusalsAreNotAudited(t *testing.T) {
	w := newWorld(t)
	team := w.group("team", tidelock.Public)
	site := w.project(team, "site", tidelock.Public)
	eve := w.user("eve")
	before := len(w.audit(tidelock.AuditFilter{}))
	for name, err := range map[string]error{
		"delete":  w.DeleteProject(t.Context(), as(eve), "team/site"),
		"member":  w.RemoveMember(t.Context(), as(eve), forge.OnGroup(team), w.root.User.ID),
		"token":   w.RevokePersonalToken(t.Context(), as(eve), 1),
		"unknown": w.DeleteVariable(t.Context(), w.root, forge.OnProject(site), "NONE", nil),
	} {
		if err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	if after := len(w.audit(tidelock.AuditFilter{})); after != before {
		t.Errorf("the log has %d new events", after-before)
	}
}
