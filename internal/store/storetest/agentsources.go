package storetest

import (
	"time"

	"tidelock.dev"
)

func agentSource(agent tidelock.AgentID, source tidelock.SourceID, state tidelock.AnnouncementState, since time.Time) tidelock.AgentSource {
	return tidelock.AgentSource{Agent: agent, Source: source, State: state, Since: since, UpdatedAt: since}
}

var agentSourceTests = []test{
	{"are read as they were saved, in order", func(w world) {
		one, two := w.agent(w.site().ID, "one"), w.agent(w.project(w.group(0, "ops").ID, "infra").ID, "two")
		full := tidelock.AgentSource{
			Agent: one.ID, Source: source, Project: 7, Ref: "refs/heads/m\xffin", Wanted: "c1", Digest: "sha256:d1", Revision: "main@sha1:c0",
			Spec: tidelock.RefSpec{SemVer: ">=1", SemVerFilter: "^v"}, Image: 9,
			Suspended: true, State: tidelock.Parked, Message: "suspended", Since: at(1), UpdatedAt: at(time.Second),
		}
		first, upper := agentSource(one.ID, "GitRepository/a/b", tidelock.Sent, at(0)), agentSource(one.ID, "GitRepository/B/b", tidelock.Sent, at(0))
		other := agentSource(two.ID, source, tidelock.NotServed, at(0))
		w.ok(w.SaveAgentSources(w.Context(), one.ID, nil, nil))
		w.ok(w.SaveAgentSources(w.Context(), one.ID, []tidelock.AgentSource{full, first, upper}, nil))
		w.ok(w.SaveAgentSources(w.Context(), two.ID, []tidelock.AgentSource{other}, nil))
		read := func(agent tidelock.AgentID, want ...tidelock.AgentSource) {
			w.Helper()
			got, err := w.AgentSources(w.Context(), agent)
			w.ok(err)
			equal(w, got, append([]tidelock.AgentSource{}, want...))
		}
		read(one.ID, upper, first, full)
		read(two.ID, other)
		w.ok(w.SaveAgentSources(w.Context(), one.ID, nil, []tidelock.SourceID{source, "GitRepository/never/was"}))
		read(one.ID, upper, first)
		read(two.ID, other)
		w.ok(w.DeleteAgent(w.Context(), two.ID))
		read(two.ID)
		// A late word on an agent that is no more.
		w.ok(w.SaveAgentSources(w.Context(), two.ID, []tidelock.AgentSource{other}, []tidelock.SourceID{"GitRepository/a/b"}))
		read(two.ID)
		read(one.ID, upper, first)
	}},

	{"are found by the project that they lead to", func(w world) {
		site := w.site()
		one, two := w.agent(site.ID, "one"), w.agent(site.ID, "two")
		served := agentSource(one.ID, source, tidelock.Converged, at(0))
		served.Project = 7
		refused := agentSource(two.ID, source, tidelock.NotServed, at(0))
		refused.Refused = 7
		elsewhere := agentSource(two.ID, "GitRepository/a/b", tidelock.NotServed, at(0))
		w.ok(w.SaveAgentSources(w.Context(), one.ID, []tidelock.AgentSource{served}, nil))
		w.ok(w.SaveAgentSources(w.Context(), two.ID, []tidelock.AgentSource{elsewhere, refused}, nil))
		found := func(project tidelock.ProjectID, limit int, want ...tidelock.AgentSource) {
			w.Helper()
			got, err := w.SourcesOfProject(w.Context(), project, limit)
			w.ok(err)
			equal(w, got, append([]tidelock.AgentSource{}, want...))
		}
		found(7, 10, served, refused)
		found(7, 1, served)
		found(8, 10)

		refused.State, refused.Project, refused.Refused, refused.Since = tidelock.Sent, 7, 0, at(time.Second)
		refused.UpdatedAt = refused.Since
		w.ok(w.SaveAgentSources(w.Context(), two.ID, []tidelock.AgentSource{refused}, nil))
		found(7, 10, served, refused)
	}},

	{"say since when they are in a state", func(w world) {
		agent := w.agent(w.site().ID, "prod")
		save := func(state tidelock.AnnouncementState, message string, when, want time.Time) {
			w.Helper()
			s := agentSource(agent.ID, source, state, when)
			s.Message = message
			w.ok(w.SaveAgentSources(w.Context(), agent.ID, []tidelock.AgentSource{s}, nil))
			s.Since = want
			got, err := w.AgentSources(w.Context(), agent.ID)
			w.ok(err)
			equal(w, got, []tidelock.AgentSource{s})
		}
		save(tidelock.Failed, "no route", at(0), at(0))
		save(tidelock.Failed, "no host", at(time.Minute), at(0))
		save(tidelock.Converged, "", at(time.Hour), at(time.Hour))
		save(tidelock.Failed, "no host", at(2*time.Hour), at(2*time.Hour))
	}},

	{"are saved by two at once", func(w world) {
		agent := w.agent(w.site().ID, "prod")
		for _, err := range together(8, func(i int) error {
			set := []tidelock.AgentSource{
				agentSource(agent.ID, source, tidelock.Sent, at(0)),
				agentSource(agent.ID, "GitRepository/a/b", tidelock.Sent, at(0)),
			}
			if i%2 == 0 {
				set[0], set[1] = set[1], set[0]
			}
			return w.SaveAgentSources(w.Context(), agent.ID, set, []tidelock.SourceID{"GitRepository/a/c"})
		}) {
			w.ok(err)
		}
		got, err := w.AgentSources(w.Context(), agent.ID)
		w.ok(err)
		equal(w, len(got), 2)
	}},
}
