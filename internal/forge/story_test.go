package forge_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
)

// A story is a project, an agent that may be told of it, and one source and one
// applier in the agent's cluster.
type story struct {
	*world
	site, other tidelock.Project
	agent       tidelock.Agent
	commits     map[string]tidelock.CommitID
	labels      map[tidelock.CommitID]string
	source      tidelock.AgentSource
	fetched     tidelock.Observation
	applier     tidelock.Observation
}

func newStory(t *testing.T) *story { return newStoryIn(newWorld(t)) }

func newStoryIn(w *world) *story {
	t := w.t
	group := w.group("team", tidelock.Private)
	s := &story{
		world: w, site: w.project(group, "site", tidelock.Private), other: w.project(group, "other", tidelock.Private),
		commits: map[string]tidelock.CommitID{}, labels: map[tidelock.CommitID]string{},
	}
	ops := w.project(group, "ops", tidelock.Private)
	var err error
	s.agent, err = w.CreateAgent(t.Context(), w.root, ops, "prod")
	s.ok(err)
	for _, p := range []tidelock.Project{s.site, s.other} {
		_, err = w.GrantAgent(t.Context(), w.root, p, s.agent.ID)
		s.ok(err)
	}
	s.source = tidelock.AgentSource{
		Agent: s.agent.ID, Source: "GitRepository/flux-system/site", Project: s.site.ID,
		Spec: tidelock.RefSpec{Branch: "main"}, State: tidelock.Converged, Since: w.clock, UpdatedAt: w.clock,
	}
	s.fetched = tidelock.Observation{Object: "GitRepository/flux-system/site", State: tidelock.ObservedReady, Health: tidelock.HealthUnknown}
	s.applier = tidelock.Observation{
		Object: "Kustomization/flux-system/apps", Source: s.source.Source, State: tidelock.ObservedUnknown, Health: tidelock.HealthUnknown,
	}
	s.come()
	s.follow()
	s.observe()
	s.commits["X"] = tidelock.CommitID(strings.Repeat("f00d", 10))
	return s
}

func (s *story) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) come() {
	s.ok(s.SaveAgentSession(s.t.Context(), tidelock.AgentSession{Agent: s.agent.ID, Instance: "one", Server: "server", ConnectedAt: s.clock, LastSeen: s.clock}))
}

func (s *story) follow() {
	s.ok(s.SaveAgentSources(s.t.Context(), s.agent.ID, []tidelock.AgentSource{s.source}, nil))
}

// observe tells of the source and the applier as they are now.
func (s *story) observe() {
	s.t.Helper()
	s.ok(s.Observe(s.t.Context(), s.agent, []tidelock.Observation{s.fetched}, nil, false))
	s.ok(s.Observe(s.t.Context(), s.agent, []tidelock.Observation{s.applier}, nil, false))
}

func (s *story) plan() {
	s.t.Helper()
	s.ok(s.PlanRollouts(s.t.Context(), s.site.ID))
}

func (s *story) line(line string) {
	s.t.Helper()
	ctx := s.t.Context()
	verb, rest, _ := strings.Cut(line, " ")
	words := strings.Fields(rest)
	word := func(i int, other string) string {
		if i < len(words) {
			return words[i]
		}
		return other
	}
	s.clock = s.clock.Add(time.Millisecond)
	switch verb {
	case "push", "land":
		ref := tidelock.RefName(word(1, "refs/heads/main"))
		id := s.pushed(s.site, ref, words[0])
		s.commits[words[0]], s.labels[id] = id, words[0]
		if verb == "push" {
			s.plan()
		}
	case "force":
		ref := tidelock.RefName(word(1, "refs/heads/main"))
		s.git(s.site, "update-ref", string(ref), string(s.commits[words[0]]))
		_, err := s.Pushed(ctx, s.site.ID, s.root, []tidelock.RefName{ref})
		s.ok(err)
		s.plan()
	case "delete":
		s.git(s.site, "update-ref", "-d", words[0])
		_, err := s.Pushed(ctx, s.site.ID, s.root, []tidelock.RefName{tidelock.RefName(words[0])})
		s.ok(err)
		s.plan()
	case "plan":
		s.plan()
	case "follow":
		s.setSource(rest)
		s.follow()
	case "announce":
		s.source.Wanted, s.source.State, s.source.Message = s.commits[words[0]], tidelock.AnnouncementState(words[1]), word(2, "")
		s.follow()
		s.plan()
	case "applier":
		s.ok(s.Observe(ctx, s.agent, nil, []tidelock.ObjectID{s.applier.Object}, false))
		s.applier.Object = tidelock.ObjectID(words[0])
		s.observe()
	case "fetched":
		s.change(&s.fetched, words)
		s.ok(s.Observe(ctx, s.agent, []tidelock.Observation{s.fetched}, nil, false))
	case "sees":
		s.change(&s.applier, words)
		s.ok(s.Observe(ctx, s.agent, []tidelock.Observation{s.applier}, nil, false))
	case "restart": // the agent begins anew, and tells of everything
		s.change(&s.applier, words)
		s.applier.Since = s.clock
		s.ok(s.Observe(ctx, s.agent, []tidelock.Observation{s.fetched, s.applier}, nil, true))
	case "remove":
		s.ok(s.Observe(ctx, s.agent, nil, []tidelock.ObjectID{s.applier.Object}, false))
	case "set":
		s.ok(s.Observe(ctx, s.agent, []tidelock.Observation{s.fetched}, nil, true))
	case "wait":
		d, err := time.ParseDuration(words[0])
		s.ok(err)
		s.clock = s.clock.Add(d)
		s.plan()
	case "leave":
		session := tidelock.AgentSession{Agent: s.agent.ID, Instance: "one", Server: "server", LastSeen: s.clock}
		s.ok(s.RemoveAgentSession(ctx, session))
		s.ok(s.AgentLeft(ctx, session, "cut off"))
	case "come":
		s.come()
	case "doubt":
		s.ok(s.DoubtRollouts(ctx, time.Minute, time.Time{}))
	case "grant":
		_, err := s.GrantAgent(ctx, s.root, s.site, s.agent.ID)
		s.ok(err)
		s.plan()
	case "revoke":
		s.ok(s.RevokeGrant(ctx, s.root, s.site, s.agent.ID))
		s.plan()
	case "=":
		s.want(rest)
	default:
		s.t.Fatalf("the story goes on with %q", line)
	}
}

func (s *story) setSource(text string) {
	key, value, _ := strings.Cut(text, "=")
	s.source.Project = s.site.ID
	switch key {
	case "":
	case "branch":
		s.source.Spec = tidelock.RefSpec{Branch: value}
	case "tag":
		s.source.Spec = tidelock.RefSpec{Tag: value}
	case "semver":
		s.source.Spec = tidelock.RefSpec{SemVer: value}
	case "commit":
		s.source.Spec = tidelock.RefSpec{Commit: string(s.commits[value])}
	case "project":
		s.source.Project = map[string]tidelock.ProjectID{"none": 0, "other": s.other.ID}[value]
	default:
		s.t.Fatalf("the source is said to have %q", text)
	}
}

// change writes words such as "state=ready" into an observation; a word alone
// is the commit that a source has.
func (s *story) change(o *tidelock.Observation, words []string) {
	s.t.Helper()
	before := *o
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			key, value = "applied", word
		}
		switch key {
		case "applied":
			o.Revision = s.revision(value)
		case "attempted":
			o.Attempted = s.revision(value)
		case "state":
			o.State = tidelock.ObservedState(value)
		case "health":
			o.Health, o.Unhealthy = tidelock.Health(value), nil
		case "chart":
			o.Chart = value
		case "message":
			o.Message = value
		case "lacks":
			o.Reason, o.Message = "DependencyNotReady", "dependency '"+value+"' not found: none"
		case "suspended":
			o.Suspended = value == "yes"
		case "timeout":
			d, err := time.ParseDuration(value)
			s.ok(err)
			o.Timeout = d
		case "unhealthy":
			o.Unhealthy = []tidelock.ObjectHealth{{Kind: "apps/Deployment", Namespace: "shop", Name: value, Health: o.Health, Reason: "ImagePullBackOff"}}
		case "outcomes":
			o.Outcomes = nil
			for text := range strings.SplitSeq(value, ",") {
				part := strings.SplitN(text, ":", 3)
				outcome := tidelock.Outcome{Revision: s.revision(part[0]), State: tidelock.ObservedState(part[1]), Health: tidelock.HealthUnknown, AttemptedAt: s.clock}
				if len(part) == 3 {
					outcome.Message = part[2]
				}
				o.Outcomes = append(o.Outcomes, outcome)
			}
		case "brought": // so long ago, the last
			d, err := time.ParseDuration(value)
			s.ok(err)
			o.Outcomes[0].AppliedAt = s.clock.Add(-d)
		default:
			s.t.Fatalf("an observation is said to have %q", word)
		}
	}
	if o.State != before.State || o.Health != before.Health || o.Since.IsZero() {
		o.Since = s.clock
	}
}

func (s *story) revision(label string) string {
	if raw, ok := strings.CutPrefix(label, "raw:"); ok {
		return raw
	}
	id, ok := s.commits[label]
	if !ok {
		s.t.Fatalf("there is no commit %q", label)
	}
	return "main@sha1:" + string(id)
}

// want compares the rollouts with what a line says of them.
func (s *story) want(text string) {
	s.t.Helper()
	rollouts, _, err := s.Rollouts(s.t.Context(), s.root, s.site, tidelock.RolloutFilter{Applier: s.applier.Object}, tidelock.Page{})
	s.ok(err)
	slices.SortFunc(rollouts, func(a, b tidelock.Rollout) int { return cmp.Or(cmp.Compare(a.Turn, b.Turn), cmp.Compare(a.ID, b.ID)) })
	var have []string
	for _, r := range rollouts {
		star := ""
		if r.Newest {
			star = "*"
		}
		have = append(have, strings.TrimSpace(fmt.Sprintf("%s %s%s %s", s.labels[r.Commit], r.State, star, r.Message)))
		if r.State.Done() == r.FinishedAt.IsZero() {
			s.t.Errorf("a rollout in state %s is finished at %v", r.State, r.FinishedAt)
		}
		if r.State == tidelock.RolloutSuccess && r.RunningAt.IsZero() {
			s.t.Errorf("the rollout of %s succeeded and never ran", s.labels[r.Commit])
		}
	}
	var wanted []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			wanted = append(wanted, part)
		}
	}
	same := slices.EqualFunc(have, wanted, func(have, want string) bool {
		h, w := strings.SplitN(have, " ", 3), strings.SplitN(want, " ", 3)
		for commit, label := range s.labels { // messages name commits
			if len(h) == 3 {
				h[2] = strings.ReplaceAll(h[2], string(commit)[:8], label)
			}
		}
		return h[0] == w[0] && h[1] == w[1] && (len(w) < 3 || len(h) == 3 && strings.Contains(h[2], w[2]))
	})
	if !same {
		s.t.Fatalf("the rollouts are %q, want %q", have, wanted)
	}
}
