package gitlabapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
)

type live struct {
	SHA, State, Message, Version string
	Environment, Descendant      *string
	Rollouts                     []rollout
}

type hop struct {
	Hop, State, Message string
	At                  *time.Time
	After, Took         *float64
	PushID              *int64 `json:"push_id"`
	Refs                []string
}

type timeline struct {
	SHA        string
	Title      *string
	AuthorName *string `json:"author_name"`
	Carrier    *string
	AcceptedAt *time.Time `json:"accepted_at"`
	WebURL     string     `json:"web_url"`
	Hops       []hop
	Places     []struct {
		Agent, Source               string
		Applier, Environment, State *string
		Hops                        []hop
	}
	Hidden bool `json:"places_hidden"`
}

// clientLive asks whether a commit is live, and how it came there; no client
// but ours knows the routes.
func clientLive(t *testing.T, w *world) {
	ctx := t.Context()
	project := w.project(w.group("live", tidelock.Public), "site", tidelock.Public)
	commit := w.push(project, map[string]string{"README.md": "one"})
	route := fmt.Sprintf("/projects/%d/repository/commits/", project.ID)

	var fresh live
	w.ask(http.MethodGet, route+string(commit)+"/live", "", http.StatusOK, &fresh)
	if fresh.State != "waiting" || fresh.Message != "it was pushed just now" {
		t.Errorf("before anybody looked at the push it is %+v", fresh)
	}
	must(t, w.forge.PlanRollouts(ctx, project.ID))
	var nobody live
	w.ask(http.MethodGet, route+string(commit)+"/live", "", http.StatusOK, &nobody)
	if nobody.SHA != string(commit) || nobody.State != "unknown" || nobody.Environment != nil || nobody.Rollouts == nil || nobody.Message != "nothing deploys this commit" {
		t.Errorf("nobody follows it, and it is %+v", nobody)
	}

	agent, err := w.forge.CreateAgent(ctx, w.root, project, "prod")
	must(t, err)
	const source = tidelock.SourceID("GitRepository/flux-system/site")
	must(t, w.forge.SaveAgentSources(ctx, agent.ID, []tidelock.AgentSource{{
		Agent: agent.ID, Source: source, Project: project.ID, Ref: "refs/heads/main", Spec: tidelock.RefSpec{Branch: "main"}, State: tidelock.Converged,
	}}, nil))
	revision := "main@sha1:" + string(commit)
	observe := func(state tidelock.ObservedState, outcome tidelock.Outcome) {
		t.Helper()
		outcome.Revision, outcome.State = revision, state
		applied := ""
		if state == tidelock.ObservedReady {
			applied = revision
		}
		must(t, w.forge.Observe(ctx, agent, []tidelock.Observation{{
			Agent: agent.ID, Object: tidelock.ObjectID(source), Project: project.ID, State: tidelock.ObservedReady, Revision: revision,
		}, {
			Agent: agent.ID, Object: "Kustomization/flux-system/shop", Project: project.ID, Source: source, Namespace: "apps", State: state,
			Revision: applied, Attempted: revision, Health: outcome.Health, Outcomes: []tidelock.Outcome{outcome},
		}}, nil, false))
		must(t, w.forge.PlanRollouts(ctx, project.ID))
		must(t, w.forge.ReportRollouts(ctx, project.ID))
	}
	began := time.Now()
	observe(tidelock.ObservedProgressing, tidelock.Outcome{AttemptedAt: began, Health: tidelock.HealthUnknown})
	var waiting live
	w.ask(http.MethodGet, route+"main/live?environment=prod%2Fapps", "", http.StatusOK, &waiting)
	if waiting.SHA != string(commit) || waiting.State != "waiting" || len(waiting.Rollouts) != 1 || waiting.Rollouts[0].State != "running" || waiting.Environment == nil {
		t.Fatalf("while it is applied it is %+v", waiting)
	}

	// Somebody waits until it is healthy.
	answers := make(chan live, 1)
	go func() {
		var l live
		w.ask(http.MethodGet, route+string(commit)+"/live?environment=prod%2Fapps&wait=55&version="+url.QueryEscape(waiting.Version), "", http.StatusOK, &l)
		answers <- l
	}()
	observe(tidelock.ObservedReady, tidelock.Outcome{AttemptedAt: began, AppliedAt: time.Now(), HealthyAt: time.Now(), Health: tidelock.HealthHealthy})
	var last live
	for last = range answers {
		if last.State == "live" {
			break
		}
		if last.Version == waiting.Version { // what changed meanwhile may have changed back
			t.Fatalf("the wait ended with %+v", last)
		}
		go func() {
			var l live
			w.ask(http.MethodGet, route+string(commit)+"/live?environment=prod%2Fapps&wait=55&version="+url.QueryEscape(last.Version), "", http.StatusOK, &l)
			answers <- l
		}()
		waiting = last
	}
	if last.Message != "live in 1 place" || last.Rollouts[0].Applier != "Kustomization/flux-system/shop" {
		t.Errorf("in the end it is %+v", last)
	}

	for _, query := range []string{"?wait=56", "?wait=-1", "?wait=soon"} {
		w.ask(http.MethodGet, route+string(commit)+"/live"+query, "", http.StatusBadRequest, nil)
	}
	w.ask(http.MethodGet, route+"nope/live", "", http.StatusNotFound, nil)
	var unknown live
	w.ask(http.MethodGet, route+strings.Repeat("1", 40)+"/live", "", http.StatusOK, &unknown)
	if unknown.State != "unknown" || !strings.HasPrefix(unknown.Message, "no commit 11111111") {
		t.Errorf("a commit that was not pushed is %+v", unknown)
	}

	var way timeline
	w.ask(http.MethodGet, route+"main/timeline", "", http.StatusOK, &way)
	if way.SHA != string(commit) || way.Title == nil || way.AuthorName == nil || way.Carrier != nil || way.AcceptedAt == nil || way.Hidden ||
		way.WebURL != w.url+"/live/site/-/commit/"+string(commit)+"/timeline" || len(way.Hops) != 1 || way.Hops[0].PushID == nil || way.Hops[0].Refs[0] != "refs/heads/main" {
		t.Errorf("the timeline is %+v", way)
	}
	if len(way.Places) != 1 || *way.Places[0].State != "success" || *way.Places[0].Environment != "prod/apps" || way.Places[0].Agent != "prod" {
		t.Fatalf("the places are %+v", way.Places)
	}
	words := ""
	for _, h := range way.Places[0].Hops {
		if h.State != "done" || h.At == nil || h.After == nil || h.Took == nil || *h.After < 0 || *h.Took < 0 {
			t.Errorf("a hop is %+v", h)
		}
		words += h.Hop + " "
	}
	if words != "accepted fetched applied healthy reported " {
		t.Errorf("the hops are %s", words)
	}
	w.ask(http.MethodGet, route+"nope/timeline", "", http.StatusNotFound, nil)
}
