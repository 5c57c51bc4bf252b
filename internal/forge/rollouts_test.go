package forge_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// rolloutTests are stories of one applier. A line does something, or begins
// with "=" and says what rollouts there are then: the commits in order of
// turn, each with its state, "*" for the newest and, of its message, a part.
var rolloutTests = []struct{ name, story string }{
	{"a good commit", `
		push A
		= A pending*
		fetched A
		= A running*
		sees attempted=A state=progressing message=applying
		= A running* applying
		sees applied=A state=ready health=healthy message=Applied
		= A success* Applied`},

	{"one seen before it was planned", `
		land A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		plan
		= A success*`},

	{"a commit from before the agent was there", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"what is done stays so while it is looked at again", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		sees state=progressing
		= A success*
		sees state=unknown
		= A success*
		sees state=blocked message=waits
		= A success*
		sees state=ready health=progressing
		= A success*
		sees state=ready health=healthy
		= A success*`},

	{"a failure of the newer one while the older one is live", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		push B
		= A success, B pending*
		fetched B
		= A success, B running*
		sees attempted=B state=failed message=no:such:kind
		= A success, B failed* no:such:kind`},

	{"a failure before the applier looked at the newer one", `
		push A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		push B
		fetched B
		sees state=stalled message=access:denied
		= A success, B failed* access:denied`},

	{"a late failure of the older one is not one of the newer one", `
		push A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		push B
		sees state=failed message=webhook:down
		= A success, B pending*
		fetched B
		= A success, B running*
		sees attempted=B applied=B state=ready message=ok
		= A success, B success*`},

	{"a failure of the older one is not one of the newer one", `
		push A
		fetched A
		sees attempted=A state=failed message=boom
		= A failed* boom
		push B
		fetched B
		sees state=failed message=boom
		= A failed boom, B running*
		sees attempted=B applied=B state=ready message=ok
		= A failed boom, B success*`},

	{"repaired by trying again", `
		push A
		sees attempted=A state=failed message=boom
		= A failed* boom
		sees state=progressing message=again
		= A failed* boom
		sees applied=A state=ready health=healthy
		= A success*`},

	{"a later failure of the same commit, and its repair", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		= A success*
		sees state=failed message=webhook:down
		= A failed* webhook:down
		sees state=ready message=
		= A success*`},

	{"an older commit is frozen", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		push B
		sees attempted=B applied=B state=ready health=healthy
		sees attempted=A applied=A state=failed message=late
		= A success, B success*`},

	{"pushes that come at once", `
		land A
		land B
		land C
		plan
		= A superseded superseded by C, B superseded, C pending*
		plan
		= A superseded, B superseded, C pending*
		sees attempted=C applied=C state=ready health=healthy
		= A superseded, B superseded, C success*`},

	{"one that was applied although a newer one was there", `
		land A
		land B
		plan
		= A superseded, B pending*
		sees attempted=A state=progressing
		= A superseded, B pending*
		sees applied=A state=ready health=healthy
		= A success, B pending*
		sees attempted=B state=progressing outcomes=B:progressing,A:ready
		= A success, B running*`},

	{"one that is overtaken while it runs", `
		push A
		sees attempted=A state=progressing
		push B
		= A running, B pending*
		sees attempted=B state=progressing outcomes=B:progressing,A:progressing
		= A superseded superseded by B, B running*`},

	{"revisions that came and went while nobody listened", `
		land A
		land B
		land C
		sees attempted=C applied=C state=ready health=healthy outcomes=C:ready,B:failed:boom,A:ready
		plan
		= A success, B failed boom, C success*`},

	{"back to an older commit by force", `
		push A
		sees attempted=A applied=A state=ready health=healthy outcomes=A:ready
		push B
		sees attempted=B applied=B state=ready health=healthy outcomes=B:ready,A:ready
		= A success, B success*
		force A
		= B success, A pending*
		fetched A
		= B success, A running*
		sees attempted=A applied=A state=ready outcomes=A:ready,B:ready
		= B success, A success*`},

	{"back before it was noticed", `
		push A
		sees attempted=A applied=A state=ready health=healthy outcomes=A:ready
		land B
		force A
		plan
		= B superseded, A success*`},

	{"an older time does not count for a commit that came again", `
		push A
		sees attempted=A applied=A state=ready health=healthy outcomes=A:ready
		push B
		sees attempted=B applied=B state=ready health=healthy outcomes=B:ready,A:ready
		force A
		push C
		sees attempted=C applied=C state=ready health=healthy outcomes=C:ready,B:ready,A:ready
		= B success, A superseded, C success*`},

	{"a branch that is deleted", `
		follow branch=next
		push A refs/heads/next
		= A pending*
		delete refs/heads/next
		= A superseded* was removed`},

	{"a branch that is deleted when Flux has the commit", `
		follow branch=next
		push A refs/heads/next
		fetched A
		delete refs/heads/next
		= A running*
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"other branches do not matter", `
		push A refs/heads/other
		push B
		= B pending*`},

	{"a tag", `
		follow tag=live
		push A
		=
		push B refs/tags/live
		= B pending*`},

	{"versions", `
		follow semver=>=1.0.0 <2
		push A refs/tags/v1.0.0
		= A pending*
		land B refs/tags/v1.1.0
		land C refs/tags/v0.9.0
		land D refs/tags/v2.0.0
		land E refs/tags/v1.0.5
		land F refs/tags/v1.2.0
		plan
		= A superseded, B superseded, F pending*`},

	{"a fixed commit", `
		push A
		push A2 refs/heads/keep
		push B
		sees attempted=B applied=B state=ready health=healthy
		follow commit=A2
		plan
		= A superseded, B success, A2 pending*
		push C
		= A superseded, B success, A2 pending*
		sees attempted=A2 applied=A2 state=ready health=healthy
		= A superseded, B success, A2 success*`},

	{"another branch is followed", `
		push A refs/heads/next
		push B
		sees attempted=B applied=B state=ready health=healthy
		= B success*
		follow branch=next
		plan
		= B success, A pending*`},

	{"a commit that the project does not have", `
		push A
		fetched X
		sees attempted=X applied=X state=ready health=healthy
		= A pending*`},

	{"revisions that are none", `
		push A
		sees attempted=raw:main@sha1:xyz applied=raw:../../etc state=ready health=healthy
		= A pending*`},

	{"suspended", `
		push A
		sees suspended=yes state=ready
		= A pending* Kustomization/flux-system/apps is suspended
		fetched A
		= A running* is suspended
		sees suspended=no attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"a suspended source", `
		fetched suspended=yes
		push A
		= A pending* GitRepository/flux-system/site is suspended`},

	{"a dependency that is not ready", `
		push A
		fetched A
		sees state=blocked message=dependency:not:ready
		= A running* dependency:not:ready
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"a dependency that is not there", `
		push A
		fetched A
		sees state=blocked lacks=shop/nobody
		= A failed* dependency 'shop/nobody' not found
		sees state=blocked message=dependency:not:ready
		= A running* dependency:not:ready
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"a source that cannot fetch", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		push B
		announce B failed authentication:required
		= A success, B failed* GitRepository/flux-system/site: authentication:required
		announce B converged
		fetched B
		= A success, B running*`},

	{"a source that says that it cannot fetch", `
		push A
		wait 1s
		fetched state=failed message=no:route
		= A failed* no:route`},

	{"a source that had failed before", `
		fetched state=failed message=no:route
		wait 1s
		push A
		= A pending*
		wait 2m
		= A failed* no:route
		fetched A state=ready
		= A running*`},

	{"health that takes its time", `
		push A
		sees attempted=A applied=A state=ready health=progressing unhealthy=web timeout=2m
		= A running* waits for health: apps/Deployment shop/web is progressing
		wait 1m
		= A running*
		wait 1m
		= A failed* not healthy after 2m0s: apps/Deployment shop/web
		sees health=healthy
		= A success*`},

	{"health that fails", `
		push A
		sees attempted=A applied=A state=ready health=failed unhealthy=web
		= A failed* apps/Deployment shop/web is failed: ImagePullBackOff
		push B
		sees attempted=B applied=B state=ready health=healthy
		= A failed, B success*`},

	{"health that is lost later", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		wait 1h
		sees health=progressing unhealthy=web timeout=2m
		= A success*
		wait 1m
		sees health=healthy
		wait 1h
		sees health=progressing unhealthy=web timeout=2m
		wait 3m
		= A failed* not healthy after 2m0s`},

	{"health that is lost while it is looked at again", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		wait 1h
		sees health=progressing unhealthy=web timeout=2m
		wait 1m
		sees state=progressing
		sees state=ready health=missing unhealthy=web
		= A success*
		wait 1m
		= A failed* not healthy after 2m0s`},

	{"health of what was applied long ago", `
		push A
		wait 1h
		sees attempted=A applied=A state=ready health=progressing unhealthy=web timeout=5m outcomes=A:ready brought=50m
		= A running* waits for health: apps/Deployment shop/web is progressing
		wait 4m
		= A running*
		wait 1m
		= A failed* not healthy after 5m0s`},

	{"health of what was applied while the agent was away", `
		push A
		sees attempted=A applied=A state=ready health=progressing unhealthy=web timeout=5m
		leave
		wait 2m
		doubt
		= A unknown*
		push B
		wait 1h
		come
		restart attempted=B applied=B outcomes=B:ready,A:ready brought=50m
		= A success, B running* waits for health
		wait 5m
		= A success, B failed* not healthy after 5m0s`},

	{"health after an agent began anew", `
		push A
		sees attempted=A applied=A state=ready health=progressing unhealthy=web timeout=5m
		leave
		wait 2m
		doubt
		= A unknown*
		wait 1h
		come
		restart
		= A running* waits for health
		wait 4m
		= A running*
		wait 1m
		= A failed* not healthy after 5m0s`},

	{"no health is known", `
		push A
		sees attempted=A applied=A state=ready health=unknown
		= A success*`},

	{"an agent that is away and comes back", `
		push A
		sees attempted=A state=progressing
		leave
		doubt
		= A running*
		wait 59s
		doubt
		= A running*
		wait 2s
		doubt
		= A unknown* not connected
		plan
		= A unknown*
		push B
		= A unknown, B pending*
		doubt
		= A unknown, B unknown*
		come
		doubt
		= A unknown, B unknown*
		sees attempted=B applied=B state=ready health=healthy outcomes=B:ready,A:ready
		= A success, B success*`},

	{"what is done does not become unknown", `
		push A
		sees attempted=A applied=A state=ready health=healthy
		leave
		wait 10m
		doubt
		= A success*`},

	{"a grant that is taken back and given again", `
		push A
		sees attempted=A state=progressing
		revoke
		= A unknown* may no longer be told
		grant
		= A running*`},

	{"a source that is not served any more", `
		push A
		sees attempted=A state=progressing
		follow project=none
		plan
		= A unknown*
		follow
		plan
		= A running*`},

	{"a source that leads to another project", `
		push A
		sees attempted=A state=progressing
		follow project=other
		plan
		= A superseded* another project`},

	{"an applier that is removed", `
		push A
		sees attempted=A state=progressing
		remove
		= A superseded* Kustomization/flux-system/apps was removed
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"an applier that is made anew has applied nothing", `
		push A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		= A success*
		remove
		= A success*
		sees attempted=raw: applied=raw: state=unknown health=unknown
		= A running*
		sees state=blocked message=dependency:not:ready
		= A running* dependency:not:ready
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"a cluster that is made anew", `
		push A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		leave
		come
		fetched raw: state=unknown
		sees attempted=raw: applied=raw: state=blocked health=unknown message=Source:not:ready
		= A pending*
		fetched A state=ready
		sees state=blocked lacks=shop/nobody
		= A failed* dependency 'shop/nobody' not found
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},

	{"an applier that is not in the whole set", `
		push A
		sees attempted=A state=progressing
		set
		= A superseded* was removed`},

	{"words that come twice, late and out of order", `
		push A
		sees attempted=A state=progressing
		sees applied=A state=ready health=healthy
		sees attempted=A state=progressing
		= A success*
		push B
		sees attempted=B applied=B state=ready health=healthy
		sees attempted=A applied=A state=ready health=healthy
		sees attempted=B applied=B state=ready health=healthy
		= A success, B success*`},

	{"a release whose chart is of another source", `
		applier HelmRelease/shop/web
		push A
		fetched A
		sees attempted=A applied=A state=ready health=healthy
		= A success*`},
}

func TestRollouts(t *testing.T) {
	for _, tt := range rolloutTests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newStory(t)
			for line := range strings.Lines(strings.TrimSpace(tt.story)) {
				if line = strings.TrimSpace(line); line != "" {
					s.line(line)
				}
			}
		})
	}
}

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

// Rollouts are for members of the project, as announcements are.
func TestRolloutsAreForMembers(t *testing.T) {
	s := newStory(t)
	s.line("push A")
	guest := s.user("guest")
	for _, tt := range []struct {
		level tidelock.AccessLevel
		want  tidelock.Kind
	}{{tidelock.NoAccess, tidelock.NotFound}, {tidelock.Guest, tidelock.Denied}, {tidelock.Reporter, tidelock.Internal}} {
		if tt.level != tidelock.NoAccess {
			s.member(forge.OnProject(s.site), guest, tt.level)
		}
		_, _, err := s.Rollouts(t.Context(), as(guest), s.site, tidelock.RolloutFilter{}, tidelock.Page{})
		if err == nil != (tt.want == tidelock.Internal) || err != nil && tidelock.KindOf(err) != tt.want {
			t.Errorf("with level %v rollouts are answered with %v", tt.level, err)
		}
		_, err = s.Observations(t.Context(), as(guest), s.site, tidelock.ObservationFilter{})
		if err == nil != (tt.want == tidelock.Internal) || err != nil && tidelock.KindOf(err) != tt.want {
			t.Errorf("with level %v observations are answered with %v", tt.level, err)
		}
	}
}
