package gitlabapi_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
)

type verdict struct {
	Code, Sentence            string
	Blocking                  bool
	Environment, Next, Object *string
	Agent                     *string
	AgentID                   *int64 `json:"agent_id"`
	Since                     *time.Time
	Evidence                  []struct {
		Where, What string
		At          *time.Time
	}
	Also []verdict
}

type whyAnswer struct {
	SHA         string
	Environment *string
	Blocked     bool
	Verdicts    []verdict
}

// clientWhy asks what keeps a commit from being live; no client but ours knows
// the route.
func clientWhy(t *testing.T, w *world) {
	ctx := t.Context()
	project := w.project(w.group("why", tidelock.Public), "site", tidelock.Public)
	commit := w.push(project, map[string]string{"README.md": "one"})
	route := fmt.Sprintf("/projects/%d/repository/commits/", project.ID)
	ask := func(rest string) (a whyAnswer) {
		t.Helper()
		w.ask(http.MethodGet, route+rest, "", http.StatusOK, &a)
		if len(a.Verdicts) == 0 || a.Verdicts[0].Evidence == nil || a.Verdicts[0].Also == nil {
			t.Fatalf("%s: got %+v", rest, a)
		}
		return a
	}
	a := ask("main/why")
	if v := a.Verdicts[0]; a.SHA != string(commit) || !a.Blocked || a.Environment != nil || v.Code != "no_source" || !v.Blocking || v.Next == nil || v.Object != nil || v.Environment != nil {
		t.Errorf("nothing follows it, and it is %+v", a)
	}
	a = ask(strings.Repeat("1", 40) + "/why?environment=production")
	if v := a.Verdicts[0]; v.Code != "commit_unknown" || a.Environment == nil || v.Environment == nil || *v.Environment != "production" {
		t.Errorf("a commit that was not pushed is %+v", a)
	}
	w.ask(http.MethodGet, route+"nope/why", "", http.StatusNotFound, nil)

	agent, err := w.forge.CreateAgent(ctx, w.root, project, "prod")
	must(t, err)
	must(t, w.forge.SaveAgentSession(ctx, tidelock.AgentSession{Agent: agent.ID, Instance: "i", ConnectedAt: time.Now(), LastSeen: time.Now()}))
	const source = tidelock.SourceID("GitRepository/flux-system/site")
	revision := "main@sha1:" + string(commit)
	must(t, w.forge.SaveAgentSources(ctx, agent.ID, []tidelock.AgentSource{{
		Agent: agent.ID, Source: source, Project: project.ID, Ref: "refs/heads/main", Spec: tidelock.RefSpec{Branch: "main"}, Revision: revision, State: tidelock.Converged,
	}}, nil))
	must(t, w.forge.Observe(ctx, agent, []tidelock.Observation{
		{Agent: agent.ID, Object: tidelock.ObjectID(source), State: tidelock.ObservedReady, Revision: revision},
		{
			Agent: agent.ID, Object: "Kustomization/flux-system/shop", Source: source, Namespace: "apps", State: tidelock.ObservedFailed,
			Reason: "ReconciliationFailed", Message: "<b>field</b> is immutable\x1b[31m", Attempted: revision,
		},
	}, nil, false))
	a = ask("main/why")
	v := a.Verdicts[0]
	if !a.Blocked || v.Code != "immutable_field" || *v.Environment != "prod/apps" || *v.Object != "Kustomization/flux-system/shop" || *v.Agent != "prod" ||
		*v.AgentID != int64(agent.ID) || v.Since == nil || strings.Contains(v.Sentence, "\x1b") || !strings.Contains(v.Sentence, "<b>field</b> is immutable") {
		t.Errorf("it cannot be applied, and it is %+v", v)
	}
	if a = ask("main/why?environment=elsewhere"); a.Blocked || a.Verdicts[0].Code != "unknown" {
		t.Errorf("where it does not go it is %+v", a)
	}
}
