package forge_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// followed is a world in which an agent's appliers follow a project. Its
// commits are a history: base, one and two on main, side beside one.
type followed struct {
	*world
	project              tidelock.Project
	agent                tidelock.Agent
	base, one, two, side tidelock.CommitID
	turn                 int64
}

func newFollowed(t testing.TB) *followed {
	t.Helper()
	w := &followed{world: newWorld(t)}
	w.project = w.site()
	w.base = w.child("", "refs/heads/main", "base")
	w.one = w.child(w.base, "refs/heads/main", "one")
	w.two = w.child(w.one, "refs/heads/main", "two")
	w.side = w.child(w.base, "refs/heads/side", "side")
	agent, err := w.CreateAgent(t.Context(), w.root, w.project, "prod")
	if err != nil {
		t.Fatal(err)
	}
	w.agent = agent
	w.seen("a", "b", "c")
	return w
}

// child pushes a commit with a parent to a ref.
func (w *followed) child(parent tidelock.CommitID, ref tidelock.RefName, message string) tidelock.CommitID {
	w.t.Helper()
	w.git(w.project, "hash-object", "-t", "tree", "-w", "/dev/null")
	args := []string{"commit-tree", "4b825dc642cb6eb9a060e54bf8d69288fbee4904", "-m", message}
	if parent != "" {
		args = append(args, "-p", string(parent))
	}
	id := w.git(w.project, args...)
	w.git(w.project, "update-ref", string(ref), id)
	if _, err := w.Pushed(w.t.Context(), w.project.ID, w.root, []tidelock.RefName{ref}); err != nil {
		w.t.Fatal(err)
	}
	return tidelock.CommitID(id)
}

func applierID(name string) tidelock.ObjectID {
	return tidelock.ObjectID("Kustomization/flux-system/" + name)
}

func sourceID(name string) tidelock.SourceID {
	return tidelock.SourceID("GitRepository/flux-system/" + name)
}

// seen has the agent see appliers of sources of the project.
func (w *followed) seen(names ...string) {
	w.t.Helper()
	var sources []tidelock.AgentSource
	var observations []tidelock.Observation
	for _, name := range names {
		sources = append(sources, tidelock.AgentSource{Agent: w.agent.ID, Source: sourceID(name), Project: w.project.ID, State: tidelock.Converged})
		observations = append(observations, tidelock.Observation{Agent: w.agent.ID, Object: applierID(name), Source: sourceID(name), State: tidelock.ObservedReady})
	}
	if err := w.store.SaveAgentSources(w.t.Context(), w.agent.ID, sources, nil); err != nil {
		w.t.Fatal(err)
	}
	if err := w.store.SaveObservations(w.t.Context(), w.agent.ID, observations, nil); err != nil {
		w.t.Fatal(err)
	}
}

// roll saves a rollout that came after those before it. What it does not say
// is that it goes to production by main.
func (w *followed) roll(name string, commit tidelock.CommitID, state tidelock.RolloutState, change func(*tidelock.Rollout)) tidelock.Rollout {
	w.t.Helper()
	w.turn++
	r := tidelock.Rollout{
		Agent: w.agent.ID, Applier: applierID(name), Source: sourceID(name), Project: w.project.ID, Commit: commit, Ref: "refs/heads/main",
		Environment: "production", State: state, Newest: true, Turn: w.turn, PendingAt: w.clock, UpdatedAt: w.clock,
	}
	before, _, err := w.store.Rollouts(w.t.Context(), tidelock.RolloutFilter{Agent: r.Agent, Applier: r.Applier, Newest: true}, tidelock.Page{})
	if err != nil {
		w.t.Fatal(err)
	}
	if change != nil {
		change(&r)
	}
	saved := []tidelock.Rollout{r}
	for _, b := range before {
		if b.Commit != r.Commit {
			b.Newest = false
			saved = append(saved, b)
		}
	}
	saved, err = w.store.SaveRollouts(w.t.Context(), saved...)
	if err != nil {
		w.t.Fatal(err)
	}
	return saved[len(saved)-1]
}

func TestLive(t *testing.T) {
	const (
		pending    = tidelock.RolloutPending
		running    = tidelock.RolloutRunning
		success    = tidelock.RolloutSuccess
		failed     = tidelock.RolloutFailed
		unknown    = tidelock.RolloutUnknown
		superseded = tidelock.RolloutSuperseded
		sick       = tidelock.RolloutState("failed after it was applied")
	)
	type step struct {
		applier, commit string
		state           tidelock.RolloutState
		environment     string // default production
		ref             tidelock.RefName
	}
	for _, tc := range []struct {
		name        string
		steps       []step
		environment string
		want        forge.LiveState
		message     string
		descendant  string
		rollouts    int
	}{
		{name: "nobody follows it", want: forge.LiveUnknown, message: "nothing deploys this commit"},
		{
			name: "nobody follows it there", steps: []step{{"a", "one", success, "", ""}}, environment: "staging",
			want: forge.LiveUnknown, message: "nothing deploys this commit to staging",
		},
		{name: "planned", steps: []step{{"a", "one", pending, "", ""}}, want: forge.LiveWaiting, message: "live in 0 of 1 place; flux/prod/flux-system/a is pending", rollouts: 1},
		{name: "not planned yet", steps: []step{{"a", "base", success, "", ""}}, want: forge.LiveWaiting, message: "live in 0 of 1 place; flux/prod/flux-system/a is pending", rollouts: 1},
		{
			name: "in part", steps: []step{{"a", "one", success, "", ""}, {"b", "one", running, "", ""}},
			want: forge.LiveWaiting, message: "live in 1 of 2 places; flux/prod/flux-system/b is running", rollouts: 2,
		},
		{name: "live", steps: []step{{"a", "one", success, "", ""}, {"b", "one", success, "staging", ""}}, want: forge.LiveLive, message: "live in 2 places", rollouts: 2},
		{
			name: "failed", steps: []step{{"a", "one", success, "", ""}, {"b", "one", failed, "", ""}, {"c", "one", running, "", ""}},
			want: forge.LiveFailed, message: "flux/prod/flux-system/b failed: what is wrong", rollouts: 3,
		},
		{
			name: "failed elsewhere", steps: []step{{"a", "one", success, "", ""}, {"b", "one", failed, "staging", ""}}, environment: "production",
			want: forge.LiveLive, message: "live in 1 place", rollouts: 1,
		},
		{
			name: "a place that has no environment yet counts", steps: []step{{"a", "one", success, "", ""}, {"b", "one", pending, "-", ""}}, environment: "production",
			want: forge.LiveWaiting, message: "live in 1 of 2 places; flux/prod/flux-system/b is pending", rollouts: 2,
		},
		{
			name: "in a newer commit", steps: []step{{"a", "one", superseded, "", ""}, {"a", "two", success, "", ""}},
			want: forge.LiveLive, message: "live in 1 place, in TWO, which contains it", descendant: "two", rollouts: 1,
		},
		{name: "a newer commit is coming", steps: []step{{"a", "one", success, "", ""}, {"a", "two", running, "", ""}}, want: forge.LiveLive, message: "live in 1 place", rollouts: 1},
		{name: "a newer commit failed", steps: []step{{"a", "one", success, "", ""}, {"a", "two", failed, "", ""}}, want: forge.LiveLive, message: "live in 1 place", rollouts: 1},
		{
			name: "a newer commit was applied and is not healthy", steps: []step{{"a", "one", success, "", ""}, {"a", "two", sick, "", ""}},
			want: forge.LiveFailed, message: "flux/prod/flux-system/a failed: what is wrong", rollouts: 1,
		},
		{
			name: "it comes again after another took its place", steps: []step{{"a", "one", success, "", ""}, {"a", "side", success, "", ""}, {"a", "two", running, "", ""}},
			want: forge.LiveWaiting, message: "live in 0 of 1 place; flux/prod/flux-system/a is running", rollouts: 1,
		},
		{
			name: "a newer commit was applied and is not healthy", steps: []step{{"a", "one", success, "", ""}, {"a", "two", sick, "", ""}},
			want: forge.LiveFailed, message: "flux/prod/flux-system/a failed: what is wrong", rollouts: 1,
		},
		{
			name: "it comes again after another took its place", steps: []step{{"a", "one", success, "", ""}, {"a", "side", success, "", ""}, {"a", "two", running, "", ""}},
			want: forge.LiveWaiting, message: "live in 0 of 1 place; flux/prod/flux-system/a is running", rollouts: 1,
		},
		{
			name: "a newer commit may repair it", steps: []step{{"a", "one", failed, "", ""}, {"a", "two", running, "", ""}},
			want: forge.LiveWaiting, message: "live in 0 of 1 place; flux/prod/flux-system/a is running", rollouts: 1,
		},
		{
			name: "another took its place", steps: []step{{"a", "one", success, "", ""}, {"a", "side", success, "", ""}},
			want: forge.LiveSuperseded, message: "flux/prod/flux-system/a superseded: SIDE took its place, which does not contain it", rollouts: 1,
		},
		{
			name: "another follows other refs", steps: []step{{"a", "one", success, "", ""}, {"b", "side", failed, "", "refs/heads/side"}},
			want: forge.LiveLive, message: "live in 1 place", rollouts: 1,
		},
		{
			name: "nobody tells", steps: []step{{"a", "one", success, "", ""}, {"b", "one", unknown, "", ""}},
			want: forge.LiveUnknown, message: "nobody tells of flux/prod/flux-system/b: what is wrong", rollouts: 2,
		},
		{name: "the applier is gone", steps: []step{{"gone", "one", failed, "", ""}, {"a", "one", success, "", ""}}, want: forge.LiveLive, message: "live in 1 place", rollouts: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newFollowed(t)
			commits := map[string]tidelock.CommitID{"base": w.base, "one": w.one, "two": w.two, "side": w.side}
			for _, s := range tc.steps {
				w.roll(s.applier, commits[s.commit], s.state, func(r *tidelock.Rollout) {
					switch s.environment {
					case "":
					case "-":
						r.Environment = ""
					default:
						r.Environment = s.environment
					}
					if s.ref != "" {
						r.Ref = s.ref
					}
					if s.state == sick {
						r.State, r.AppliedAt = failed, w.clock
					}
					if r.State == failed || r.State == unknown {
						r.Message = "what is\nwrong"
					}
				})
			}
			w.planned()
			got, err := w.Live(t.Context(), w.root, w.project, string(w.one), tc.environment)
			if err != nil {
				t.Fatal(err)
			}
			message := strings.NewReplacer("TWO", string(w.two[:8]), "SIDE", string(w.side[:8])).Replace(tc.message)
			if got.Commit != w.one || got.State != tc.want || got.Message != message || got.Descendant != commits[tc.descendant] || len(got.Rollouts) != tc.rollouts {
				t.Errorf("got %+v, want %s, %q", got, tc.want, message)
			}
		})
	}
}

// planned notes that what was pushed has been planned.
func (w *followed) planned() {
	w.t.Helper()
	pushes, _, err := w.Pushes(w.t.Context(), w.root, w.project, tidelock.Page{Number: 1, PerPage: 1})
	if err == nil {
		err = w.store.PushPlanned(w.t.Context(), w.project.ID, pushes[0].ID)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// What is still to be packaged or planned keeps a commit from being live, so
// that nobody goes on before the last place is known.
func TestLiveOfWhatIsComing(t *testing.T) {
	w := newFollowed(t)
	blob := w.git(w.project, "hash-object", "-t", "blob", "-w", "/dev/null")
	w.git(w.project, "update-index", "--add", "--cacheinfo", "100644,"+blob+",.tidelock/delivery.yaml")
	tree := w.git(w.project, "write-tree")
	three := tidelock.CommitID(w.git(w.project, "commit-tree", tree, "-m", "three", "-p", string(w.two)))
	w.git(w.project, "update-ref", "refs/heads/main", string(three))
	if _, err := w.Pushed(t.Context(), w.project.ID, w.root, []tidelock.RefName{"refs/heads/main"}); err != nil {
		t.Fatal(err)
	}
	w.roll("a", three, tidelock.RolloutSuccess, nil)
	is := func(commit tidelock.CommitID, state forge.LiveState, message string) {
		t.Helper()
		l, err := w.Live(t.Context(), w.root, w.project, string(commit), "")
		if err != nil || l.State != state || l.Message != message {
			t.Errorf("got %s %q, %v, want %s %q", l.State, l.Message, err, state, message)
		}
	}
	deliver := func(commit tidelock.CommitID, builds ...tidelock.Build) {
		t.Helper()
		_, err := w.store.RecordBuilds(t.Context(), tidelock.Head{Project: w.project.ID, Ref: "refs/heads/main", Commit: commit}, builds)
		if err != nil {
			t.Fatal(err)
		}
	}
	is(three, forge.LiveWaiting, string(three[:8])+" is being packaged")
	deliver(three, tidelock.Build{Application: "api", State: tidelock.StatusSuccess})
	is(three, forge.LiveWaiting, "it was pushed just now")
	w.planned()
	is(three, forge.LiveLive, "live in 1 place")

	four := w.child(three, "refs/heads/main", "four")
	w.roll("a", four, tidelock.RolloutSuccess, nil)
	w.planned()
	deliver(four, tidelock.Build{Application: "api", State: tidelock.StatusFailed, Findings: []tidelock.Finding{{Path: "api/a.yaml", Line: 3, Message: "no"}, {Message: "only a warning", Warning: true}}})
	is(four, forge.LiveFailed, "api was not packaged: api/a.yaml:3: no")
	is(three, forge.LiveLive, "live in 1 place, in "+string(four[:8])+", which contains it")
	five := w.child(four, "refs/heads/main", "five")
	w.roll("a", five, tidelock.RolloutSuccess, nil)
	w.planned()
	deliver(five, tidelock.Build{Application: "web", State: tidelock.StatusSuccess})
	is(four, forge.LiveFailed, "api was not packaged: api/a.yaml:3: no")
	deliver(five, tidelock.Build{Application: "api", State: tidelock.StatusSuccess})
	is(four, forge.LiveLive, "live in 1 place, in "+string(five[:8])+", which contains it")
}

func TestLiveOfRevisions(t *testing.T) {
	w := newFollowed(t)
	w.roll("a", w.two, tidelock.RolloutSuccess, nil)
	for rev, want := range map[string]tidelock.CommitID{
		"main": w.two, string(w.two[:10]): w.two, string(w.base): w.base, "side": w.side,
	} {
		if got, err := w.Live(t.Context(), w.root, w.project, rev, ""); err != nil || got.Commit != want {
			t.Errorf("%s: got %+v, %v", rev, got, err)
		}
	}
	unknown := strings.Repeat("1", 40)
	got, err := w.Live(t.Context(), w.root, w.project, unknown, "")
	if err != nil || got.State != forge.LiveUnknown || got.Message != "no commit 11111111 was pushed to team/site" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := w.Live(t.Context(), w.root, w.project, "nope", ""); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("got %v, want NotFound", err)
	}
	stranger := as(w.user("eve"))
	if _, err := w.Live(t.Context(), stranger, w.project, "main", ""); tidelock.KindOf(err) != tidelock.Denied {
		t.Errorf("somebody who may not read deliveries: got %v", err)
	}
}

func TestAwaitLive(t *testing.T) {
	w := newFollowed(t)
	w.run()
	w.planned()
	r := w.roll("a", w.one, tidelock.RolloutRunning, nil)
	ctx := t.Context()
	first, err := w.AwaitLive(ctx, w.root, w.project, string(w.one), "", "", time.Hour)
	if err != nil || first.State != forge.LiveWaiting {
		t.Fatalf("got %+v, %v", first, err)
	}
	same, err := w.AwaitLive(ctx, w.root, w.project, string(w.one), "", first.Version, 0)
	if err != nil || same.Version != first.Version {
		t.Fatalf("got %+v, %v", same, err)
	}

	type answer struct {
		live forge.Live
		err  error
	}
	await := func(ctx context.Context, seen string) <-chan answer {
		answers := make(chan answer, 1)
		go func() {
			l, err := w.AwaitLive(ctx, w.root, w.project, string(w.one), "", seen, time.Hour)
			answers <- answer{l, err}
		}()
		return answers
	}
	news := await(ctx, first.Version)
	r.State, r.HealthyAt = tidelock.RolloutSuccess, w.clock
	if _, err := w.store.SaveRollouts(ctx, r); err != nil {
		t.Fatal(err)
	}
	w.child(w.side, "refs/heads/side", "a push, of which the bus tells")
	live := <-news
	if live.err != nil || live.live.State != forge.LiveLive {
		t.Fatalf("got %+v", live)
	}

	gone, leave := context.WithCancel(ctx)
	left := await(gone, live.live.Version)
	leave()
	if a := <-left; !errors.Is(a.err, context.Canceled) {
		t.Errorf("a client that left: got %+v", a)
	}
	last := await(ctx, live.live.Version)
	w.EndWaits()
	w.EndWaits()
	if a := <-last; a.err != nil || a.live.Version != live.live.Version {
		t.Errorf("at the end: got %+v", a)
	}
}

func TestTimeline(t *testing.T) {
	w := newFollowed(t)
	ctx := t.Context()
	at := func(after time.Duration) time.Time { return w.clock.Add(after) }
	pushes, _, err := w.Pushes(ctx, w.root, w.project, tidelock.Page{})
	if err != nil {
		t.Fatal(err)
	}
	byCommit := map[tidelock.CommitID]tidelock.Push{}
	for _, p := range pushes {
		byCommit[p.Updates[0].Commit] = p
	}
	announce := func(name string, n int64, a tidelock.Announcement) {
		t.Helper()
		a.Agent, a.Source, a.Number, a.Project, a.Ref = w.agent.ID, sourceID(name), n, w.project.ID, "refs/heads/main"
		a.Push = byCommit[a.Commit].ID
		if err := w.store.SaveAnnouncements(ctx, a); err != nil {
			t.Fatal(err)
		}
	}
	announce("a", 1, tidelock.Announcement{
		Commit: w.one, State: tidelock.Converged, SentAt: at(1), AnnouncedAt: at(10 * time.Millisecond), CalledAt: at(20 * time.Millisecond),
		HandledAt: at(300 * time.Millisecond), FetchedAt: at(200 * time.Millisecond),
	})
	announce("b", 1, tidelock.Announcement{
		Commit: w.one, State: tidelock.Converged, AnnouncedAt: at(400 * time.Millisecond), CalledAt: at(500 * time.Millisecond), FetchedAt: at(200 * time.Millisecond),
	})
	announce("c", 1, tidelock.Announcement{Commit: w.one, State: tidelock.Failed, Message: "no route", AnnouncedAt: at(time.Second), HandledAt: at(2 * time.Second)})
	done := w.roll("a", w.one, tidelock.RolloutSuccess, func(r *tidelock.Rollout) {
		r.Push, r.RunningAt, r.AppliedAt, r.HealthyAt, r.FinishedAt = byCommit[w.one].ID, at(250*time.Millisecond), at(600*time.Millisecond), at(2*time.Second), at(2*time.Second)
	})
	if err := w.store.RolloutsReported(ctx, at(2100*time.Millisecond), done); err != nil {
		t.Fatal(err)
	}
	w.roll("b", w.one, tidelock.RolloutFailed, func(r *tidelock.Rollout) { // the cluster told of it late
		r.Push, r.RunningAt, r.AppliedAt, r.FinishedAt = byCommit[w.one].ID, at(100*time.Millisecond), at(150*time.Millisecond), at(50*time.Millisecond)
		r.Message, r.Environment = "Deployment shop/web: image pull", "staging"
	})

	got, err := w.Timeline(ctx, w.root, w.project, string(w.one))
	if err != nil {
		t.Fatal(err)
	}
	if got.Commit != w.one || got.Title != "one" || got.Carrier != "" || got.Hidden || got.More != 0 || !got.AcceptedAt.Equal(byCommit[w.one].At) || len(got.Hops) != 1 {
		t.Errorf("got %+v", got)
	}
	want := map[string]string{
		"Kustomization/flux-system/a": "accepted done 0s, announced done 10ms, triggered done 20ms, fetched done 200ms, applied done 600ms, healthy done 2s, reported done 2.1s",
		"Kustomization/flux-system/b": "accepted done 0s, fetched done 200ms, applied done 200ms, healthy failed 200ms",
		"":                            "accepted done 0s, announced done 1s, triggered done 2s, fetched failed 2s",
	}
	for _, p := range got.Places {
		var words []string
		for _, h := range p.Hops {
			words = append(words, fmt.Sprintf("%s %s %s", h.Kind, h.State, h.After))
		}
		if text := strings.Join(words, ", "); text != want[string(p.Applier)] || p.AgentName != "prod" {
			t.Errorf("%s: got %s\nwant %s", p.Applier, text, want[string(p.Applier)])
		}
	}
	if len(got.Places) != 3 {
		t.Errorf("got %d places, want 3", len(got.Places))
	}

	// Of a commit that came with others, what is known of the newest is told.
	middle := w.git(w.project, "commit-tree", "4b825dc642cb6eb9a060e54bf8d69288fbee4904", "-m", "middle", "-p", string(w.two))
	top := w.child(tidelock.CommitID(middle), "refs/heads/main", "top")
	w.child(top, "refs/heads/main", "later")
	carried, err := w.Timeline(ctx, w.root, w.project, middle)
	if err != nil || carried.Carrier != top || carried.Commit != tidelock.CommitID(middle) || len(carried.Hops) != 1 {
		t.Errorf("got %+v, %v, want what came with %s", carried, err, top)
	}

	// One push may bring each branch another commit.
	w.git(w.project, "update-ref", "refs/heads/x", string(w.base))
	w.git(w.project, "update-ref", "refs/heads/y", string(w.side))
	if _, err := w.Pushed(ctx, w.project.ID, w.root, []tidelock.RefName{"refs/heads/x", "refs/heads/y"}); err != nil {
		t.Fatal(err)
	}
	beside, err := w.Timeline(ctx, w.root, w.project, string(w.base))
	if err != nil || len(beside.Hops) != 2 || fmt.Sprint(beside.Hops[1].Refs) != "[refs/heads/x]" {
		t.Errorf("got %+v, %v, want that it was pushed to main and to x", beside.Hops, err)
	}
	w.git(w.project, "update-ref", "-d", "refs/heads/y")

	// What was pushed is remembered when the repository no longer has it.
	w.git(w.project, "update-ref", "-d", "refs/heads/side")
	w.git(w.project, "reflog", "expire", "--expire=all", "--all")
	w.git(w.project, "-c", "gc.cruftPacks=false", "gc", "--quiet", "--prune=now")
	if gone, err := w.Timeline(ctx, w.root, w.project, string(w.side)); err != nil || gone.Title != "" || len(gone.Hops) != 2 {
		t.Errorf("got %+v, %v, want what is remembered", gone, err)
	}
	for _, rev := range []string{strings.Repeat("1", 40), "nope", "a\x00b", "\xff"} {
		if _, err := w.Timeline(ctx, w.root, w.project, rev); tidelock.KindOf(err) != tidelock.NotFound {
			t.Errorf("%q: got %v, want NotFound", rev, err)
		}
	}

	public, err := w.Timeline(ctx, forge.Principal{}, w.project, string(w.one))
	if err != nil || !public.Hidden || len(public.Places) != 0 || len(public.Hops) != 1 {
		t.Errorf("got %+v, %v, want no places", public, err)
	}
}

// What was live is not so any more when a newer commit was applied and failed,
// although yet another one is on its way.
func TestLiveBeneathABrokenCommit(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		state tidelock.RolloutState
		how   func(*tidelock.Rollout)
		want  forge.LiveState
	}{
		{"applied and unhealthy", tidelock.RolloutFailed, func(r *tidelock.Rollout) { r.AppliedAt = r.PendingAt }, forge.LiveWaiting},
		{"applied before anybody saw it", tidelock.RolloutFailed, func(r *tidelock.Rollout) { r.Reason = "HealthCheckFailed" }, forge.LiveWaiting},
		{"overtaken after it was applied", tidelock.RolloutSuperseded, func(r *tidelock.Rollout) { r.AppliedAt = r.PendingAt }, forge.LiveWaiting},
		{"never applied", tidelock.RolloutFailed, nil, forge.LiveLive},
	} {
		w := newFollowed(t)
		three := w.child(w.two, "refs/heads/main", "three")
		w.seen("a")
		w.roll("a", w.one, tidelock.RolloutSuccess, nil)
		w.roll("a", w.two, tt.state, tt.how)
		w.roll("a", three, tidelock.RolloutPending, nil)
		w.planned()
		if got, err := w.Live(t.Context(), w.root, w.project, string(w.one), ""); err != nil || got.State != tt.want {
			t.Errorf("%s: got %s, %q, %v, want %s", tt.name, got.State, got.Message, err, tt.want)
		}
	}
	for _, tt := range []struct {
		name  string
		state tidelock.RolloutState
		how   func(*tidelock.Rollout)
		want  forge.LiveState
	}{
		{"its health check failed", tidelock.RolloutFailed, func(r *tidelock.Rollout) { r.Reason = "HealthCheckFailed" }, forge.LiveFailed},
		{"it is applied and not healthy yet", tidelock.RolloutRunning, func(r *tidelock.Rollout) { r.AppliedAt = r.PendingAt }, forge.LiveWaiting},
		{"nobody tells of it any more", tidelock.RolloutUnknown, func(r *tidelock.Rollout) { r.AppliedAt = r.PendingAt }, forge.LiveUnknown},
	} {
		w := newFollowed(t)
		w.seen("a")
		w.roll("a", w.one, tidelock.RolloutSuccess, nil)
		w.roll("a", w.two, tt.state, tt.how)
		w.planned()
		if got, err := w.Live(t.Context(), w.root, w.project, string(w.one), ""); err != nil || got.State != tt.want {
			t.Errorf("%s: got %s, %q, %v, want %s", tt.name, got.State, got.Message, err, tt.want)
		}
	}
}

// A commit is not called live in all places if not all could be looked at.
func TestLiveInTooManyPlaces(t *testing.T) {
	t.Parallel()
	const most = 5000
	w := newFollowed(t)
	names := make([]string, most+1)
	rollouts := make([]tidelock.Rollout, len(names))
	for i := range names {
		names[i] = fmt.Sprint("many-", i)
		rollouts[i] = tidelock.Rollout{
			Agent: w.agent.ID, Applier: applierID(names[i]), Source: sourceID("many"), Project: w.project.ID, Commit: w.two, Ref: "refs/heads/main",
			State: tidelock.RolloutSuccess, Newest: true, Turn: 1, UpdatedAt: w.clock,
		}
	}
	w.seen(names...)
	w.planned()
	for _, tt := range []struct {
		places int
		want   forge.LiveState
	}{{most, forge.LiveLive}, {most + 1, forge.LiveUnknown}} {
		if _, err := w.store.SaveRollouts(t.Context(), rollouts[:tt.places]...); err != nil {
			t.Fatal(err)
		}
		if got, err := w.Live(t.Context(), w.root, w.project, string(w.two), ""); err != nil || got.State != tt.want {
			t.Errorf("in %d places: got %s, %q, %v, want %s", tt.places, got.State, got.Message, err, tt.want)
		}
	}
}
