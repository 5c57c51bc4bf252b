package forge_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/seal"
	"tidelock.dev/internal/store"
	"tidelock.dev/internal/store/storetest"
)

// post posts a status and returns it.
func (w *world) post(by forge.Principal, project tidelock.Project, commit tidelock.CommitID, name string, state tidelock.StatusState) tidelock.Status {
	w.t.Helper()
	s, err := w.PostStatus(w.t.Context(), by, project, string(commit), forge.NewStatus{Name: name, State: state})
	if err != nil {
		w.t.Fatalf("post %s=%s: %v", name, state, err)
	}
	return s
}

// pipelineOf reads the only pipeline of a commit.
func (w *world) pipelineOf(project tidelock.Project, commit tidelock.CommitID) tidelock.Pipeline {
	w.t.Helper()
	pipelines, _, err := w.Pipelines(w.t.Context(), w.root, project, tidelock.PipelineFilter{Commit: commit}, tidelock.Page{})
	if err != nil || len(pipelines) != 1 {
		w.t.Fatalf("pipelines of %s: %v, %v; want one", commit, pipelines, err)
	}
	return pipelines[0]
}

// statusTable is what becomes of a status that is in one state (left) when
// another is posted (top), by GitLab's state machine: "=" moves the same row
// on, "+" makes a new row, and an event that GitLab refuses is an error. States
// that have ended are never moved.
const statusTable = `
before   | pending | running | success | failed | canceled | skipped
none     | +       | +       | +       | +      | +        | +
pending  | enqueue | =       | =       | =      | =        | =
running  | enqueue | run     | =       | =      | =        | skip
success  | +       | +       | +       | +      | +        | +
failed   | +       | +       | +       | +      | +        | +
canceled | +       | +       | +       | +      | +        | +
skipped  | +       | +       | +       | +      | +        | +
`

func TestStatusMachine(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	lines := strings.Split(strings.TrimSpace(statusTable), "\n")
	cells := func(line string) []string {
		var out []string
		for c := range strings.SplitSeq(line, "|") {
			out = append(out, strings.TrimSpace(c))
		}
		return out
	}
	states := cells(lines[0])[1:]
	for _, line := range lines[1:] {
		row := cells(line)
		for i, want := range row[1:] {
			before, posted := tidelock.StatusState(row[0]), tidelock.StatusState(states[i])
			name := fmt.Sprintf("from %s to %s", before, posted)
			var first tidelock.Status
			if before != "none" {
				first = w.post(w.root, project, commit, name, before)
			}
			w.clock = w.clock.Add(time.Minute)
			got, err := w.PostStatus(t.Context(), w.root, project, string(commit), forge.NewStatus{Name: name, State: posted})
			switch {
			case want == "=" || want == "+":
				if err != nil || got.State != posted || (got.ID == first.ID) != (want == "=") {
					t.Errorf("%s: got status %d in state %s (was %d), %v; want %s", name, got.ID, got.State, first.ID, err, want)
				}
				if ended := posted.Done() && posted != tidelock.StatusSkipped; ended == got.FinishedAt.IsZero() || (posted == tidelock.StatusRunning) && !got.StartedAt.Equal(w.clock) {
					t.Errorf("%s: started at %v, finished at %v", name, got.StartedAt, got.FinishedAt)
				}
			default:
				words := fmt.Sprintf("Cannot transition status via :%s from :%s (Reason(s): Status cannot transition via %q)", want, before, want)
				if tidelock.KindOf(err) != tidelock.Invalid || err.Error() != words {
					t.Errorf("%s: got %v, want %q", name, err, words)
				}
			}
		}
	}
}

// compositeTable is GitLab's summary of several statuses.
const compositeTable = `
success                         | success
failed                          | failed
skipped                         | skipped
canceled                        | canceled
pending                         | pending
running                         | running
success skipped                 | success
success failed                  | failed
skipped failed                  | failed
canceled failed                 | failed
canceled success                | canceled
canceled skipped                | canceled
pending skipped                 | pending
pending success                 | running
pending failed                  | running
running success                 | running
running failed canceled skipped | running
pending canceled                | running
`

func TestPipelineSumsUp(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	for i, line := range strings.Split(strings.TrimSpace(compositeTable), "\n") {
		given, want, _ := strings.Cut(line, "|")
		states := strings.Fields(given)
		for range len(states) { // in every rotation: the order must not matter
			states = append(states[1:], states[0])
			ref := fmt.Sprintf("%d-%s", i, states[0])
			for _, s := range states {
				_, err := w.PostStatus(t.Context(), w.root, project, string(commit), forge.NewStatus{Name: s, State: tidelock.StatusState(s), Ref: ref})
				if err != nil {
					t.Fatal(err)
				}
			}
			got, _, err := w.Pipelines(t.Context(), w.root, project, tidelock.PipelineFilter{Ref: ref}, tidelock.Page{})
			if err != nil || len(got) != 1 || string(got[0].State) != strings.TrimSpace(want) {
				t.Errorf("statuses %v: the pipeline is %+v, %v; want %s", states, got, err, want)
			}
		}
	}
}

func TestPipelineTimes(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	start := w.clock
	after := func(d time.Duration) { w.clock = start.Add(d) }

	w.post(w.root, project, commit, "a", tidelock.StatusPending)
	if p := w.pipelineOf(project, commit); p.State != tidelock.StatusPending || !p.CreatedAt.Equal(start) || !p.StartedAt.IsZero() || p.IID != 1 ||
		p.Source != "external" || p.Ref != "main" || p.By != w.root.User.ID {
		t.Errorf("a pending pipeline is %+v", p)
	}
	after(10 * time.Second)
	w.post(w.root, project, commit, "a", tidelock.StatusRunning)
	after(20 * time.Second)
	w.post(w.root, project, commit, "b", tidelock.StatusRunning)
	after(40 * time.Second)
	w.post(w.root, project, commit, "a", tidelock.StatusSuccess)
	if p := w.pipelineOf(project, commit); p.State != tidelock.StatusRunning || !p.StartedAt.Equal(start.Add(10*time.Second)) || !p.FinishedAt.IsZero() {
		t.Errorf("a running pipeline is %+v", p)
	}
	after(50 * time.Second)
	w.post(w.root, project, commit, "b", tidelock.StatusFailed)
	p := w.pipelineOf(project, commit)
	if p.State != tidelock.StatusFailed || !p.FinishedAt.Equal(w.clock) || p.Duration != 40*time.Second {
		t.Errorf("a pipeline that ran from 10 s to 50 s is %+v", p)
	}
	after(100 * time.Second)
	w.post(w.root, project, commit, "b", tidelock.StatusRunning) // tried again
	if p := w.pipelineOf(project, commit); p.State != tidelock.StatusRunning || !p.FinishedAt.IsZero() || !p.StartedAt.Equal(start.Add(10*time.Second)) {
		t.Errorf("a pipeline that runs again is %+v", p)
	}
	after(105 * time.Second)
	w.post(w.root, project, commit, "b", tidelock.StatusSuccess)
	if p := w.pipelineOf(project, commit); p.State != tidelock.StatusSuccess || p.Duration != 35*time.Second {
		t.Errorf("30 s and then 5 s make %+v", p)
	}
}

func TestCoverageIsTheMean(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	for name, coverage := range map[string]float64{"a": 50, "b": 75} {
		_, err := w.PostStatus(t.Context(), w.root, project, string(commit), forge.NewStatus{Name: name, State: tidelock.StatusSuccess, Coverage: &coverage})
		if err != nil {
			t.Fatal(err)
		}
	}
	w.post(w.root, project, commit, "c", tidelock.StatusSuccess)
	if p := w.pipelineOf(project, commit); p.Coverage == nil || *p.Coverage != 62.5 {
		t.Errorf("coverage is %v, want 62.5", p.Coverage)
	}
}

func TestStatusRef(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	first := w.pushed(project, "refs/heads/main", "first")
	w.git(project, "branch", "aaa", string(first))
	if _, err := w.Pushed(t.Context(), project.ID, w.root, []tidelock.RefName{"refs/heads/aaa"}); err != nil {
		t.Fatal(err)
	}
	second := tidelock.CommitID(w.git(project, "commit-tree", string(first)+"^{tree}", "-p", string(first), "-m", "second"))
	w.git(project, "update-ref", "refs/heads/main", string(second))
	if _, err := w.Pushed(t.Context(), project.ID, w.root, []tidelock.RefName{"refs/heads/main"}); err != nil {
		t.Fatal(err)
	}
	feature := w.pushed(project, "refs/heads/feature/x", "feature")
	tagged := w.pushed(project, "refs/tags/v1", "tagged")
	lost := w.pushed(project, "refs/heads/lost", "lost")
	w.git(project, "update-ref", "-d", "refs/heads/lost")
	if _, err := w.Pushed(t.Context(), project.ID, w.root, []tidelock.RefName{"refs/heads/lost"}); err != nil {
		t.Fatal(err)
	}

	for _, tt := range []struct {
		name   string
		commit tidelock.CommitID
		ref    string
		want   string
		tag    bool
	}{
		{"the default branch's history before another branch's head", first, "", "main", false},
		{"its head", second, "", "main", false},
		{"another branch", feature, "", "feature/x", false},
		{"a tag when there is no branch", tagged, "", "v1", true},
		{"the ref that is asked for", first, "aaa", "aaa", false},
		{"a tag that is asked for", first, "v1", "v1", true},
		{"a branch that is gone", first, "gone", "gone", false},
	} {
		s, err := w.PostStatus(t.Context(), w.root, project, string(tt.commit), forge.NewStatus{State: tidelock.StatusSuccess, Ref: tt.ref})
		if err != nil || s.Ref != tt.want || s.Tag != tt.tag || s.Name != "default" || s.Commit != tt.commit {
			t.Errorf("%s: got %q (tag %t), %v; want %q", tt.name, s.Ref, s.Tag, err, tt.want)
		}
	}
	// The newest pipeline of the commit decides from then on.
	if s := w.post(w.root, project, first, "x", tidelock.StatusSuccess); s.Ref != "gone" {
		t.Errorf("a status without ref went to %q, not to the newest pipeline", s.Ref)
	}
	for rev, want := range map[string]string{
		string(lost):            "References for commit Not Found",
		strings.Repeat("0", 40): "Commit Not Found",
		"nope":                  "Commit Not Found",
		"--help":                "Commit Not Found",
	} {
		_, err := w.PostStatus(t.Context(), w.root, project, rev, forge.NewStatus{State: tidelock.StatusSuccess})
		if tidelock.KindOf(err) != tidelock.NotFound || err.Error() != want {
			t.Errorf("status of %s: %v, want %q", rev, err, want)
		}
	}
}

func TestStatusesOfOthersAreNotMovedOn(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	other := as(w.user("ada"))
	w.member(forge.OnProject(project), *other.User, tidelock.Maintainer)

	mine := w.post(w.root, project, commit, "ci", tidelock.StatusRunning)
	theirs := w.post(other, project, commit, "ci", tidelock.StatusRunning)
	if mine.ID == theirs.ID {
		t.Error("ada moved on a status of root")
	}
	tokens := map[string]forge.Principal{}
	for _, name := range []string{"one", "two"} {
		token, _, err := w.CreateDeployToken(t.Context(), w.root, forge.OnProject(project), forge.NewToken{Name: name, Scopes: []tidelock.Scope{tidelock.ScopeAPI}})
		if err != nil {
			t.Fatal(err)
		}
		tokens[name] = forge.Principal{Token: &token}
	}
	one := w.post(tokens["one"], project, commit, "flux", tidelock.StatusRunning)
	if one.By != 0 || one.Token != tokens["one"].Token.ID {
		t.Errorf("a status by deploy token %d says %+v", tokens["one"].Token.ID, one)
	}
	if again := w.post(tokens["one"], project, commit, "flux", tidelock.StatusSuccess); again.ID != one.ID {
		t.Error("a deploy token did not move on its own status")
	}
	two := w.post(tokens["one"], project, commit, "flux 2", tidelock.StatusRunning)
	if again := w.post(tokens["two"], project, commit, "flux 2", tidelock.StatusSuccess); again.ID == two.ID {
		t.Error("a deploy token moved on a status of another")
	}
}

func TestStatusOfProtectedBranch(t *testing.T) {
	w := newWorld(t)
	project := w.site() // its default branch is for maintainers
	commit := w.pushed(project, "refs/heads/main", "first")
	side := w.pushed(project, "refs/heads/side", "side")
	developer, maintainer := w.user("dev"), w.user("main")
	w.member(forge.OnProject(project), developer, tidelock.Developer)
	w.member(forge.OnProject(project), maintainer, tidelock.Maintainer)
	token := tidelock.Token{ID: 1, Kind: tidelock.DeployToken, Holder: tidelock.Holder{Project: project.ID}, Scopes: []tidelock.Scope{tidelock.ScopeAPI}}
	for _, tt := range []struct {
		by     forge.Principal
		commit tidelock.CommitID
		want   string
	}{
		{as(developer), side, "y"},
		{as(developer), commit, "403"},
		{as(maintainer), commit, "y"},
		{forge.Principal{Token: &token}, commit, "y"},
		{w.root, commit, "y"},
	} {
		_, err := w.PostStatus(t.Context(), tt.by, project, string(tt.commit), forge.NewStatus{State: tidelock.StatusSuccess})
		if got := answer(err); got != tt.want {
			t.Errorf("status of %s by %v: got %s (%v), want %s", tt.commit, tt.by, got, err, tt.want)
		}
	}
	if _, total, _ := w.Pipelines(t.Context(), w.root, project, tidelock.PipelineFilter{}, tidelock.Page{}); total != 2 {
		t.Errorf("%d pipelines, want 2: what was refused must leave nothing behind", total)
	}
}

func TestBadStatuses(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	long := strings.Repeat("é", 256)
	text := func(s string) *string { return &s }
	for field, n := range map[string]forge.NewStatus{
		"name":        {Name: long},
		"description": {Description: &long},
		"ref":         {Ref: "a..b"},
		"state":       {State: "created"},
		"target_url":  {TargetURL: text("https://ci.example/" + long)},
	} {
		if n.State == "" {
			n.State = tidelock.StatusSuccess
		}
		_, err := w.PostStatus(t.Context(), w.root, project, string(commit), n)
		if e, ok := errors.AsType[*tidelock.Error](err); !ok || e.Kind != tidelock.Invalid || e.Field != field {
			t.Errorf("bad %s: got %v", field, err)
		}
	}
	_, err := w.PostStatus(t.Context(), w.root, project, string(commit), forge.NewStatus{State: tidelock.StatusSuccess, Pipeline: 4711})
	if tidelock.KindOf(err) != tidelock.NotFound || err.Error() != "Pipeline for pipeline_id, sha and ref Not Found" {
		t.Errorf("a pipeline that is not there: %v", err)
	}
	if _, total, _ := w.Pipelines(t.Context(), w.root, project, tidelock.PipelineFilter{}, tidelock.Page{}); total != 0 {
		t.Errorf("bad statuses made %d pipelines", total)
	}
}

// What a page will show as a link leads to the web, and runs nothing.
func TestH12OnlyWebAddresses(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	for _, bad := range []string{"javascript:alert(1)", "data:text/html,x", "ftp://x", "//x", "/x", "https://", "https:///x", "http://a b", "https://x/\n", "x"} {
		_, err := w.PostStatus(t.Context(), w.root, project, string(commit), forge.NewStatus{State: tidelock.StatusSuccess, TargetURL: &bad})
		if e, ok := errors.AsType[*tidelock.Error](err); !ok || e.Field != "target_url" {
			t.Errorf("target_url %q: got %v", bad, err)
		}
	}
	for _, good := range []string{"", "http://ci.example", "https://ci.example:8443/a?b=c#d"} {
		if _, err := w.PostStatus(t.Context(), w.root, project, string(commit), forge.NewStatus{State: tidelock.StatusSuccess, TargetURL: &good}); err != nil {
			t.Errorf("target_url %q: got %v", good, err)
		}
	}
}

// A revision is a name, never an option or an expression that git would run.
func TestH5RevisionIsNoOption(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	w.pushed(project, "refs/heads/main", "first")
	for _, rev := range []string{"--upload-pack=touch /tmp/x", "-x", "main..main", "main^{/first}", "main@{1}", ":/first", "main:", "", "refs/heads/*"} {
		_, err := w.PostStatus(t.Context(), w.root, project, rev, forge.NewStatus{State: tidelock.StatusSuccess})
		if tidelock.KindOf(err) != tidelock.NotFound {
			t.Errorf("status of %q: got %v, want not found", rev, err)
		}
	}
	for _, ref := range []string{"-x", "--help", "a b", "a..b", "a\x00b", "HEAD", "a:b", "../x"} {
		_, err := w.PostStatus(t.Context(), w.root, project, "main", forge.NewStatus{State: tidelock.StatusSuccess, Ref: ref})
		if e, ok := errors.AsType[*tidelock.Error](err); !ok || e.Field != "ref" {
			t.Errorf("status under ref %q: got %v", ref, err)
		}
	}
}

func TestPipelineOfAnotherProjectIsNotFound(t *testing.T) {
	w := newWorld(t)
	group := w.group("team", tidelock.Private)
	site, shop := w.project(group, "site", tidelock.Private), w.project(group, "shop", tidelock.Private)
	commit := w.pushed(site, "refs/heads/main", "first")
	status := w.post(w.root, site, commit, "ci", tidelock.StatusRunning)
	for what, err := range map[string]error{
		"read":   second(w.Pipeline(t.Context(), w.root, shop, status.Pipeline)),
		"delete": w.DeletePipeline(t.Context(), w.root, shop, status.Pipeline),
		"job":    second(w.Job(t.Context(), w.root, shop, status.ID)),
	} {
		if tidelock.KindOf(err) != tidelock.NotFound {
			t.Errorf("%s across projects: %v, want not found", what, err)
		}
	}
	if _, _, err := w.Jobs(t.Context(), w.root, shop, tidelock.StatusFilter{Pipeline: status.Pipeline}, tidelock.Page{}); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("jobs across projects: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// A full pipeline takes no new status, but what runs in it can end.
func TestPipelineIsBounded(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	running := w.post(w.root, project, commit, "long", tidelock.StatusRunning)
	err := w.store.Atomically(t.Context(), func(ctx context.Context) error {
		for i := range 999 {
			_, err := w.store.CreateStatus(ctx, tidelock.Status{Project: project.ID, Pipeline: running.Pipeline, Name: fmt.Sprint(i % 7), State: tidelock.StatusSuccess})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if done := w.post(w.root, project, commit, "long", tidelock.StatusSuccess); done.ID != running.ID {
		t.Error("what ran in a full pipeline could not end there")
	}
	_, err = w.PostStatus(t.Context(), w.root, project, string(commit), forge.NewStatus{State: tidelock.StatusSuccess, Pipeline: running.Pipeline})
	if tidelock.KindOf(err) != tidelock.TooLarge || err.Error() != "The number of jobs has exceeded the limit" {
		t.Errorf("one more status: %v", err)
	}
	if next := w.post(w.root, project, commit, "x", tidelock.StatusSuccess); next.Pipeline == running.Pipeline {
		t.Error("one more status went into a full pipeline")
	}
}

func openPostgres(t *testing.T) func(forge.Store) forge.Store {
	return func(forge.Store) forge.Store {
		box, err := seal.New(make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		db, err := store.Open(t.Context(), store.Config{URL: storetest.Postgres(t), Seal: box})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
}

// Many posts at once make one pipeline and lose nothing, on either engine.
func TestConcurrentStatuses(t *testing.T) {
	engines := map[string]func(forge.Store) forge.Store{
		"SQLite":     func(s forge.Store) forge.Store { return s },
		"PostgreSQL": openPostgres(t),
	}
	for name, engine := range engines {
		t.Run(name, func(t *testing.T) {
			w := newWorldWith(t, engine)
			project := w.site()
			commit := w.pushed(project, "refs/heads/main", "first")
			const posts, checks = 50, 10
			errs := make([]error, posts)
			var wg sync.WaitGroup
			for i := range posts {
				wg.Go(func() {
					state := []tidelock.StatusState{tidelock.StatusFailed, tidelock.StatusSuccess}[i%2]
					_, errs[i] = w.PostStatus(t.Context(), w.root, project, string(commit), forge.NewStatus{Name: fmt.Sprint(i % checks), State: state})
				})
			}
			wg.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			p := w.pipelineOf(project, commit)
			all, _, err := w.Statuses(t.Context(), w.root, project, string(commit), tidelock.StatusFilter{}, tidelock.Page{})
			if err != nil || len(all) != posts {
				t.Errorf("%d statuses of %d are there, %v", len(all), posts, err)
			}
			latest := slices.DeleteFunc(all, func(s tidelock.Status) bool { return !s.Latest })
			if len(latest) != checks {
				t.Errorf("%d latest statuses, want %d", len(latest), checks)
			}
			if p.State != tidelock.StatusFailed {
				t.Errorf("the pipeline is %s, want failed: half of the checks ended so", p.State)
			}
		})
	}
}

// Hooks are told once of each state that a pipeline or deployment reaches, in
// order, and never of what was refused.
func TestStatusesAreToldToHooks(t *testing.T) {
	w := newWorld(t)
	project := w.site()
	commit := w.pushed(project, "refs/heads/main", "first")
	_, err := w.CreateHook(t.Context(), w.root, project, forge.HookFields{
		URL: ptr("https://hooks.example/x"), Kinds: map[string]bool{"push": false, "pipeline": true, "deployment": true},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.post(w.root, project, commit, "a", tidelock.StatusPending)
	w.post(w.root, project, commit, "a", tidelock.StatusRunning)
	w.post(w.root, project, commit, "b", tidelock.StatusSuccess) // still running
	w.post(w.root, project, commit, "a", tidelock.StatusSuccess)
	w.post(w.root, project, commit, "a", tidelock.StatusSuccess) // again
	w.deploy(project, "prod", commit, tidelock.DeploymentSuccess)
	events, err := w.store.HookEvents(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range events {
		got = append(got, string(e.Kind)+" "+e.State)
	}
	want := []string{"pipeline pending", "pipeline running", "pipeline success", "deployment success"}
	if !slices.Equal(got, want) {
		t.Errorf("hooks are told of %q, want %q", got, want)
	}
}

func ptr[T any](v T) *T { return &v }
