package forge_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// window is how long what one commit does is gathered in these tests.
const window = 10 * time.Second

// A chat is a project whose syncs are told, and a cluster of it.
type chat struct {
	*world
	project tidelock.Project
	agent   tidelock.Agent
}

func newChat(t *testing.T, fields forge.IntegrationFields) *chat {
	t.Helper()
	w := newWorld(t)
	c := &chat{world: w, project: w.project(w.group("team", tidelock.Private), "site", tidelock.Private)}
	agent, err := w.store.CreateAgent(t.Context(), tidelock.Agent{Project: c.project.ID, Name: "prod"})
	if err != nil {
		t.Fatal(err)
	}
	c.agent = agent
	url := tidelock.NewSecret("https://chat.example/s3cret")
	fields.URL = &url
	if _, err := w.SaveIntegration(t.Context(), w.root, c.project, tidelock.Slack, fields); err != nil {
		t.Fatal(err)
	}
	return c
}

// sync saves how commits went, each as "applier commit state message", with a
// branch behind an @ of the commit.
func (c *chat) sync(states ...string) {
	c.t.Helper()
	var rollouts []tidelock.Rollout
	for _, state := range states {
		f := strings.SplitN(state, " ", 4)
		commit, branch, _ := strings.Cut(f[1], "@")
		r := tidelock.Rollout{
			Agent: c.agent.ID, Applier: tidelock.ObjectID("Kustomization/flux-system/" + f[0]), Source: "GitRepository/flux-system/site",
			Project: c.project.ID, Commit: tidelock.CommitID(strings.Repeat(commit, 20)), State: tidelock.RolloutState(f[2]), Newest: true, UpdatedAt: c.clock,
		}
		if branch != "" {
			r.Ref = tidelock.RefName(branch)
		}
		if len(f) == 4 {
			r.Reason, r.Message, _ = strings.Cut(f[3], ": ")
		}
		older, _, err := c.store.Rollouts(c.t.Context(), tidelock.RolloutFilter{Agent: r.Agent, Applier: r.Applier, Newest: true}, tidelock.Page{})
		if err != nil {
			c.t.Fatal(err)
		}
		for _, o := range older {
			if o.Commit != r.Commit {
				o.Newest = false
				rollouts = append(rollouts, o)
			}
		}
		rollouts = append(rollouts, r)
	}
	if _, err := c.store.SaveRollouts(c.t.Context(), rollouts...); err != nil {
		c.t.Fatal(err)
	}
}

// told tells what is due.
func (c *chat) told() string {
	c.t.Helper()
	news, _, err := c.News(c.t.Context(), c.clock.Add(time.Millisecond), window) // what is written twice at a time is told a little later
	if err != nil {
		c.t.Fatal(err)
	}
	var said []string
	list := func(what string, id tidelock.CommitID, syncs []forge.Sync) {
		var names []string
		for _, s := range syncs {
			_, _, name := s.Applier.Split()
			if s.Failed != 0 {
				name += fmt.Sprint(" after ", s.Failed.Round(time.Second))
			}
			names = append(names, name)
		}
		if len(names) > 0 {
			slices.Sort(names)
			said = append(said, fmt.Sprintf("%s %s: %s", id[:2], what, strings.Join(names, ", ")))
		}
	}
	for _, n := range news {
		for _, m := range n.Messages {
			list("failed", n.ID, m.Failed)
			list("recovered", n.ID, m.Recovered)
		}
		if err := c.Tell(c.t.Context(), n, nil); err != nil {
			c.t.Fatal(err)
		}
	}
	return strings.Join(said, "; ")
}

// A moment is what happened some time after the one before, and what is told
// then.
type moment struct {
	after time.Duration
	syncs []string
	told  string
}

func TestNews(t *testing.T) {
	at := func(after time.Duration, syncs ...string) moment { return moment{after: after, syncs: syncs} }
	tell := func(after time.Duration, told string) moment { return moment{after: after, told: told} }
	for _, tt := range []struct {
		name    string
		fields  forge.IntegrationFields
		moments []moment
	}{
		{"a failure is told once, and its recovery", forge.IntegrationFields{}, []moment{
			at(0, "x c1 running", "x c1 failed Build: no such file"),
			tell(9*time.Second, ""), tell(time.Second, "c1 failed: x"), tell(time.Minute, ""),
			at(time.Minute, "x c1 running", "x c1 failed Build: no such file"), tell(time.Minute, ""),
			at(time.Minute, "x c2 running"), tell(time.Minute, ""),
			at(5*time.Minute, "x c2 success"), tell(10*time.Second, "c2 recovered: x after 10m10s"),
			at(time.Second, "x c2 success"), tell(time.Minute, ""),
			at(time.Second, "x c3 success"), tell(time.Minute, ""),
		}},
		{"another cause and another commit are told", forge.IntegrationFields{}, []moment{
			at(0, "x c1 failed Build: no such file"), tell(window, "c1 failed: x"),
			at(0, "x c1 failed Health: Deployment a/b is not ready"), tell(window, "c1 failed: x"),
			at(0, "x c1 failed Build: no such file"), tell(window, ""),
			at(0, "x c2 failed Build: no such file"), tell(window, "c2 failed: x"),
			at(0, "x c3 success"), tell(window, "c3 recovered: x after 40s"),
		}},
		{"a cause is the same whatever differs between tries", forge.IntegrationFields{}, []moment{
			at(0, "x c1 failed Health: timeout after 30s waiting for [Pod/a-5f7d status 1, Pod/b status 2] at 2026-11-23T07:00:00Z"),
			tell(window, "c1 failed: x"),
			at(0, "x c1 failed Health: timeout after 31s waiting for [Pod/b status 4, Pod/a-77cc status 2] at 2026-11-23T08:00:01Z"), tell(window, ""),
		}},
		{"texts that always differ do not flood", forge.IntegrationFields{}, []moment{
			at(0, "x c1 failed Odd: a"), tell(window, "c1 failed: x"), at(0, "x c1 failed Odd: b"), tell(window, "c1 failed: x"),
			at(0, "x c1 failed Odd: c"), tell(window, "c1 failed: x"), at(0, "x c1 failed Odd: d"), tell(window, "c1 failed: x"),
			at(0, "x c1 failed Odd: e"), tell(window, "c1 failed: x"), at(0, "x c1 failed Odd: f"), tell(window, ""),
			at(0, "x c1 failed Odd: g"), tell(window, ""), at(0, "x c2 success"), tell(window, "c2 recovered: x after 1m10s"),
		}},
		{"one commit in many places is one message", forge.IntegrationFields{}, []moment{
			at(0, "x c1 failed Build: a"), at(4*time.Second, "y c1 failed Build: a", "z c1 failed Build: b"), at(5*time.Second, "w c2 failed Build: a"),
			tell(time.Second, "c1 failed: x, y, z"), tell(8*time.Second, ""), tell(time.Second, "c2 failed: w"),
			at(0, "x c3 success", "y c3 success", "w c3 success"),
			tell(window, "c3 recovered: w after 10s, x after 19s, y after 15s"),
		}},
		{"what is over at once is not told", forge.IntegrationFields{}, []moment{
			at(0, "x c1 failed Build: a"), at(3*time.Second, "x c1 success"), tell(time.Minute, ""),
			at(0, "x c2 failed Build: a"), at(3*time.Second, "x c3 success"), tell(7*time.Second, "c2 failed: x"), tell(3*time.Second, "c3 recovered: x after 3s"),
		}},
		{"what comes and goes is told while it lasts", forge.IntegrationFields{}, []moment{
			at(0, "x c1 failed Health: a"), tell(window, "c1 failed: x"), at(0, "x c1 success"), tell(window, "c1 recovered: x after 10s"),
			at(0, "x c1 failed Health: a"), tell(window, ""), at(0, "x c1 success"), tell(window, ""),
			at(0, "x c1 failed Health: a"), tell(30*time.Minute, ""), tell(time.Hour, "c1 failed: x"),
			at(0, "x c2 success"), tell(window, "c2 recovered: x after 1h30m0s"),
		}},
		{"what waited is forgotten when another commit came", forge.IntegrationFields{}, []moment{
			at(0, "x c1 failed Health: a"), tell(window, "c1 failed: x"), at(0, "x c1 success"), tell(window, "c1 recovered: x after 10s"),
			at(0, "x c1 failed Health: a"), tell(window, ""), at(0, "x c2 success"), tell(window, ""), tell(2*time.Hour, ""),
		}},
		{"only what is broken", forge.IntegrationFields{OnlyBroken: new(true)}, []moment{
			at(0, "x c1 failed Build: a"), tell(window, "c1 failed: x"), at(0, "x c2 success"), tell(window, ""),
			at(0, "x c3 failed Build: a"), tell(window, "c3 failed: x"),
		}},
		{"only the default branch, and tags", forge.IntegrationFields{Branches: new(tidelock.DefaultBranch)}, []moment{
			at(0, "x c1@refs/heads/main failed Build: a", "y c2@refs/heads/dev failed Build: a", "z c3@refs/tags/v1 failed Build: a", "w c4 failed Build: a"),
			tell(window, "c1 failed: x; c3 failed: z; c4 failed: w"),
			at(0, "y c5@refs/heads/dev success"), tell(window, ""),
		}},
		{"only protected branches", forge.IntegrationFields{Branches: new(tidelock.ProtectedBranches)}, []moment{
			at(0, "x c1@refs/heads/main failed Build: a", "y c2@refs/heads/dev failed Build: a"), tell(window, "c1 failed: x"),
		}},
		{"nothing", forge.IntegrationFields{Pipelines: new(false), Deployments: new(false)}, []moment{
			at(0, "x c1 failed Build: a"), tell(window, ""),
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newChat(t, tt.fields)
			for i, m := range tt.moments {
				c.clock = c.clock.Add(m.after)
				if len(m.syncs) > 0 {
					for _, s := range m.syncs {
						c.sync(s)
					}
					continue
				}
				if got := c.told(); got != m.told {
					t.Fatalf("moment %d: got %q, want %q", i, got, m.told)
				}
				// Whoever looks again, such as after a restart, tells nothing again.
				if again := c.told(); again != "" {
					t.Fatalf("moment %d: told again %q", i, again)
				}
			}
		})
	}
}

// TestNewsOfTwoServers tells a notice once although two look at it.
func TestNewsOfTwoServers(t *testing.T) {
	c := newChat(t, forge.IntegrationFields{})
	c.sync("x c1 failed Build: a")
	c.clock = c.clock.Add(window)
	one, _, err := c.News(t.Context(), c.clock, window)
	if err != nil || len(one) != 1 {
		t.Fatalf("got %v, %v, want one commit", one, err)
	}
	two, _, err := c.News(t.Context(), c.clock, window)
	if err != nil || len(two) != 1 {
		t.Fatalf("got %v, %v, want one commit", two, err)
	}
	if err := c.Tell(t.Context(), one[0], nil); err != nil {
		t.Error(err)
	}
	if err := c.Tell(t.Context(), two[0], nil); tidelock.KindOf(err) != tidelock.Conflict {
		t.Errorf("the second to tell: got %v, want a conflict", err)
	}
}

// TestNewsWait says when to look again.
func TestNewsWait(t *testing.T) {
	c := newChat(t, forge.IntegrationFields{})
	if news, next, err := c.News(t.Context(), c.clock, window); len(news) != 0 || !next.IsZero() || err != nil {
		t.Fatalf("got %v, %s, %v, want nothing, never", news, next, err)
	}
	began := c.clock
	c.sync("x c1 failed Build: a")
	c.clock = c.clock.Add(3 * time.Second)
	if news, next, err := c.News(t.Context(), c.clock, window); len(news) != 0 || !next.Equal(began.Add(window)) || err != nil {
		t.Fatalf("got %v, %s, %v, want nothing before %s", news, next, err, began.Add(window))
	}
}
