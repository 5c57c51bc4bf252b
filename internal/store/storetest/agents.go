package storetest

import (
	"fmt"
	"time"

	"tidelock.dev"
)

func agentName(a tidelock.Agent) string { return a.Name }

var agentTests = []test{
	{"are made, read and removed", func(w world) {
		site := w.site()
		made, err := w.CreateAgent(w.Context(), tidelock.Agent{Project: site.ID, Name: "prod", Creator: 7, CreatedAt: start})
		w.ok(err)
		equal(w, made, tidelock.Agent{ID: made.ID, Project: site.ID, Name: "prod", Creator: 7, CreatedAt: at(0)})
		read, err := w.Agent(w.Context(), made.ID)
		w.ok(err)
		equal(w, read, made)
		w.ok(w.DeleteAgent(w.Context(), made.ID))
		w.kind(w.DeleteAgent(w.Context(), made.ID), tidelock.NotFound)
		_, err = w.Agent(w.Context(), made.ID)
		w.kind(err, tidelock.NotFound)
	}},

	{"have a name of their own in their project", func(w world) {
		site := w.site()
		w.agent(site.ID, "prod")
		_, err := w.CreateAgent(w.Context(), tidelock.Agent{Project: site.ID, Name: "prod"})
		w.taken(err, "name")
		w.agent(w.project(site.Namespace, "other").ID, "prod")
		_, err = w.CreateAgent(w.Context(), tidelock.Agent{Project: 99, Name: "prod"})
		w.kind(err, tidelock.NotFound)
	}},

	{"are listed by filter", func(w world) {
		site := w.site()
		other := w.project(site.Namespace, "other")
		for _, name := range []string{"prod", "test", "dev"} {
			w.agent(site.ID, name)
		}
		w.agent(other.ID, "prod")
		for _, tt := range []struct {
			filter tidelock.AgentFilter
			want   string
		}{
			{tidelock.AgentFilter{}, "prod test dev prod"},
			{tidelock.AgentFilter{Project: site.ID}, "prod test dev"},
			{tidelock.AgentFilter{Name: "prod"}, "prod prod"},
			{tidelock.AgentFilter{Project: other.ID, Name: "test"}, ""},
		} {
			equal(w, names(w, agentName)(w.Agents(w.Context(), tt.filter, everything)), tt.want)
		}
		paged(w, 4, func(a tidelock.Agent) string { return fmt.Sprint(a.ID) }, func(p tidelock.Page) ([]tidelock.Agent, int, error) {
			return w.Agents(w.Context(), tidelock.AgentFilter{}, p)
		})
	}},

	{"have tokens", func(w world) {
		agent := w.agent(w.site().ID, "prod")
		made, err := w.CreateAgentToken(w.Context(), tidelock.AgentToken{Agent: agent.ID, Name: "first", Description: "d", Creator: 7, CreatedAt: start}, "hash")
		w.ok(err)
		equal(w, made, tidelock.AgentToken{ID: made.ID, Agent: agent.ID, Name: "first", Description: "d", Creator: 7, CreatedAt: at(0)})
		read, err := w.AgentToken(w.Context(), made.ID)
		w.ok(err)
		equal(w, read, made)
		read, err = w.AgentTokenByHash(w.Context(), "hash")
		w.ok(err)
		equal(w, read, made)

		for _, tt := range []struct{ touch, want time.Duration }{
			{0, 0}, {59 * time.Second, 0}, {time.Minute, time.Minute}, {-time.Hour, time.Minute},
		} {
			w.ok(w.TouchAgentToken(w.Context(), made.ID, start.Add(tt.touch)))
			read, err := w.AgentToken(w.Context(), made.ID)
			w.ok(err)
			equal(w, read.LastUsed, at(tt.want))
		}

		_, err = w.AgentToken(w.Context(), 99)
		w.kind(err, tidelock.NotFound)
		_, err = w.AgentTokenByHash(w.Context(), "HASH")
		w.kind(err, tidelock.NotFound)
		w.kind(w.RevokeAgentToken(w.Context(), 99), tidelock.NotFound)
		w.kind(w.TouchAgentToken(w.Context(), 99, start), tidelock.NotFound)
		_, err = w.CreateAgentToken(w.Context(), tidelock.AgentToken{Agent: 99}, "other")
		w.kind(err, tidelock.NotFound)
	}},

	{"have at most two active tokens", func(w world) {
		agent, other := w.agent(w.site().ID, "prod"), w.agent(w.project(w.group(0, "crew").ID, "site").ID, "prod")
		create := func(agent tidelock.AgentID, hash string) (tidelock.AgentToken, error) {
			return w.CreateAgentToken(w.Context(), tidelock.AgentToken{Agent: agent, Name: hash}, hash)
		}
		one, err := create(agent.ID, "one")
		w.ok(err)
		two, err := create(agent.ID, "two")
		w.ok(err)
		_, err = create(agent.ID, "three")
		w.kind(err, tidelock.Invalid)
		_, err = create(other.ID, "four")
		w.ok(err)

		w.ok(w.RevokeAgentToken(w.Context(), one.ID))
		w.ok(w.RevokeAgentToken(w.Context(), one.ID))
		three, err := create(agent.ID, "three")
		w.ok(err)
		active, err := w.AgentTokens(w.Context(), agent.ID)
		w.ok(err)
		equal(w, active, []tidelock.AgentToken{two, three})
		revoked, err := w.AgentTokenByHash(w.Context(), "one")
		w.ok(err)
		equal(w, revoked.Revoked, true)

		live, err := w.LiveAgentTokens(w.Context(), []tidelock.AgentTokenID{three.ID, 99, one.ID, two.ID, two.ID})
		w.ok(err)
		equal(w, live, []tidelock.AgentTokenID{two.ID, three.ID})
		for _, ids := range [][]tidelock.AgentTokenID{nil, {}, {one.ID}} {
			live, err := w.LiveAgentTokens(w.Context(), ids)
			w.ok(err)
			equal(w, live, []tidelock.AgentTokenID{})
		}
		many := make([]tidelock.AgentTokenID, 40_000)
		for i := range many {
			many[i] = tidelock.AgentTokenID(i + 1)
		}
		live, err = w.LiveAgentTokens(w.Context(), many)
		w.ok(err)
		equal(w, len(live), 3)
	}},

	{"have at most two active tokens when many are made at once", func(w world) {
		agent := w.agent(w.site().ID, "prod")
		errs := together(8, func(i int) error {
			_, err := w.CreateAgentToken(w.Context(), tidelock.AgentToken{Agent: agent.ID}, fmt.Sprint(i))
			return err
		})
		equal(w, succeeded(errs), 2)
		for _, err := range errs {
			if err != nil {
				w.kind(err, tidelock.Invalid)
			}
		}
		active, err := w.AgentTokens(w.Context(), agent.ID)
		w.ok(err)
		equal(w, len(active), 2)
	}},

	{"have a configuration", func(w world) {
		agent := w.agent(w.site().ID, "prod")
		config, err := w.AgentConfig(w.Context(), agent.ID)
		w.ok(err)
		equal(w, config, tidelock.AgentConfig{Agent: agent.ID})
		for _, want := range []tidelock.AgentConfig{
			{Agent: agent.ID, Good: "flux: {}\n", GoodCommit: "c1", Commit: "c2", Error: "line 1", Warnings: []string{`a "quoted"`, "ünsupported"}, CheckedAt: at(0)},
			{Agent: agent.ID, Good: "", GoodCommit: "c3", Commit: "c3", CheckedAt: at(time.Hour)},
		} {
			w.ok(w.SaveAgentConfig(w.Context(), want))
			config, err := w.AgentConfig(w.Context(), agent.ID)
			w.ok(err)
			equal(w, config, want)
		}
		w.kind(w.SaveAgentConfig(w.Context(), tidelock.AgentConfig{Agent: 99}), tidelock.NotFound)
		// Text that is no text is repaired, not refused: its error must show.
		w.ok(w.SaveAgentConfig(w.Context(), tidelock.AgentConfig{Agent: agent.ID, Error: "bad \x00 \xff", Warnings: []string{"\x00"}}))
		config, err = w.AgentConfig(w.Context(), agent.ID)
		w.ok(err)
		equal(w, config.Error, "bad \uFFFD \uFFFD")
	}},

	{"are granted projects", func(w world) {
		site := w.site()
		one, two := w.agent(site.ID, "one"), w.agent(site.ID, "two")
		other := w.project(site.Namespace, "other")
		granted := func(agent tidelock.AgentID, want bool) {
			w.Helper()
			got, err := w.Granted(w.Context(), agent, other.ID)
			w.ok(err)
			equal(w, got, want)
		}
		granted(one.ID, false)
		first := tidelock.Grant{Project: other.ID, Agent: one.ID, By: 7, CreatedAt: at(0)}
		w.ok(w.Grant(w.Context(), tidelock.Grant{Project: other.ID, Agent: two.ID, By: 7, CreatedAt: at(time.Hour)}))
		w.ok(w.Grant(w.Context(), first))
		again := first
		again.By, again.CreatedAt = 8, at(time.Minute)
		w.ok(w.Grant(w.Context(), again))
		granted(one.ID, true)
		granted(99, false)
		grants, err := w.Grants(w.Context(), other.ID)
		w.ok(err)
		equal(w, grants, []tidelock.Grant{first, {Project: other.ID, Agent: two.ID, By: 7, CreatedAt: at(time.Hour)}})
		third := w.project(site.Namespace, "third")
		w.ok(w.Grant(w.Context(), tidelock.Grant{Project: third.ID, Agent: one.ID, By: 7, CreatedAt: at(0)}))
		grants, err = w.GrantsTo(w.Context(), one.ID)
		w.ok(err)
		equal(w, grants, []tidelock.Grant{first, {Project: third.ID, Agent: one.ID, By: 7, CreatedAt: at(0)}})

		w.ok(w.RevokeGrant(w.Context(), other.ID, one.ID))
		w.kind(w.RevokeGrant(w.Context(), other.ID, one.ID), tidelock.NotFound)
		granted(one.ID, false)
		w.ok(w.DeleteAgent(w.Context(), two.ID))
		grants, err = w.Grants(w.Context(), other.ID)
		w.ok(err)
		equal(w, grants, []tidelock.Grant{})
		w.kind(w.Grant(w.Context(), tidelock.Grant{Project: 99, Agent: one.ID}), tidelock.NotFound)
		w.kind(w.Grant(w.Context(), tidelock.Grant{Project: other.ID, Agent: 99}), tidelock.NotFound)
	}},

	{"have sessions", func(w world) {
		site := w.site()
		one, two := w.agent(site.ID, "one"), w.agent(site.ID, "two")
		full := tidelock.AgentSession{
			Agent: one.ID, Instance: "i1", Server: "s1", Token: 3, Version: "v1.2.3", Commit: "abc", PodNamespace: "ns", PodName: "pod",
			KubernetesVersion: "v1.34.4", Leader: true, ConnectedAt: at(0), LastSeen: at(time.Second),
		}
		small := func(agent tidelock.AgentID, instance, server string, connected time.Duration) tidelock.AgentSession {
			return tidelock.AgentSession{Agent: agent, Instance: instance, Server: server, ConnectedAt: at(connected), LastSeen: at(connected)}
		}
		sessions := func(agent tidelock.AgentID, want ...tidelock.AgentSession) {
			w.Helper()
			got, err := w.AgentSessions(w.Context(), agent)
			w.ok(err)
			equal(w, got, append([]tidelock.AgentSession{}, want...))
		}
		second, third := small(one.ID, "i2", "s1", time.Minute), small(two.ID, "i1", "s2", time.Hour)
		for _, s := range []tidelock.AgentSession{third, second, full} {
			w.ok(w.SaveAgentSession(w.Context(), s))
		}
		sessions(0, full, second, third)
		sessions(one.ID, full, second)
		sessions(99)

		full.LastSeen, full.Leader = at(2*time.Minute), false
		w.ok(w.SaveAgentSession(w.Context(), full))
		sessions(one.ID, full, second)

		// The instance moves to another server, which its old one notices late.
		moved := small(one.ID, "i1", "s2", 3*time.Minute)
		w.ok(w.SaveAgentSession(w.Context(), moved))
		full.LastSeen = at(4 * time.Minute)
		w.ok(w.SaveAgentSession(w.Context(), full))
		w.ok(w.RemoveAgentSession(w.Context(), one.ID, "i1", "s1"))
		sessions(one.ID, moved, second)
		w.ok(w.RemoveAgentSession(w.Context(), one.ID, "i1", "s2"))
		w.ok(w.RemoveAgentSession(w.Context(), one.ID, "i1", "s2"))
		sessions(one.ID, second)

		w.ok(w.RemoveStaleSessions(w.Context(), second.LastSeen))
		sessions(0, second, third)
		w.ok(w.RemoveStaleSessions(w.Context(), third.LastSeen))
		sessions(0, third)
		w.ok(w.DeleteAgent(w.Context(), two.ID))
		sessions(0)
		w.kind(w.SaveAgentSession(w.Context(), third), tidelock.NotFound)
	}},

	{"were connected last at a time", func(w world) {
		site := w.site()
		one, two := w.agent(site.ID, "one"), w.agent(site.ID, "two")
		presence := func(agent tidelock.AgentID, want ...tidelock.AgentPresence) {
			w.Helper()
			got, err := w.AgentPresence(w.Context(), agent)
			w.ok(err)
			equal(w, got, append([]tidelock.AgentPresence{}, want...))
		}
		presence(one.ID)
		session := tidelock.AgentSession{Agent: one.ID, Instance: "i1", Server: "s1", ConnectedAt: at(0), LastSeen: at(time.Second)}
		w.ok(w.SaveAgentSession(w.Context(), session))
		presence(one.ID, tidelock.AgentPresence{Agent: one.ID, LastSeen: at(time.Second)})
		left := tidelock.AgentPresence{Agent: one.ID, LastSeen: at(time.Minute), Left: "no heartbeat"}
		w.ok(w.SaveAgentPresence(w.Context(), left))
		w.ok(w.SaveAgentSession(w.Context(), session)) // late
		presence(0, left)
		other := tidelock.AgentPresence{Agent: two.ID, LastSeen: at(0), Left: "stopped"}
		w.ok(w.SaveAgentPresence(w.Context(), other))
		presence(0, left, other)

		session.LastSeen = at(time.Hour)
		w.ok(w.SaveAgentSession(w.Context(), session))
		w.ok(w.RemoveAgentSession(w.Context(), one.ID, "i1", "s1"))
		presence(one.ID, tidelock.AgentPresence{Agent: one.ID, LastSeen: at(time.Hour)})
		w.ok(w.DeleteAgent(w.Context(), one.ID))
		presence(0, other)
		w.kind(w.SaveAgentPresence(w.Context(), left), tidelock.NotFound)
	}},
}
