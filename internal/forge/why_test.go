package forge_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
)

// asked is a world in which an agent that is connected follows a private
// project by GitRepository/flux-system/site, which follows main.
type asked struct {
	*world
	project tidelock.Project
	agent   tidelock.Agent
	files   map[string]bool // on main
}

func newAsked(t testing.TB) *asked {
	t.Helper()
	w := &asked{world: newWorld(t), files: map[string]bool{}}
	w.project = w.world.project(w.group("team", tidelock.Private), "site", tidelock.Private)
	config := w.world.project(w.group("ops", tidelock.Private), "infra", tidelock.Private)
	agent, err := w.CreateAgent(t.Context(), w.root, config, "prod")
	if err != nil {
		t.Fatal(err)
	}
	w.agent = agent
	if _, err := w.GrantAgent(t.Context(), w.root, w.project, agent.ID); err != nil {
		t.Fatal(err)
	}
	w.connect()
	return w
}

func (w *asked) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *asked) connect() {
	w.t.Helper()
	w.must(w.SaveAgentSession(w.t.Context(), tidelock.AgentSession{
		Agent: w.agent.ID, Instance: "i", Server: "s", ConnectedAt: w.clock, LastSeen: w.clock,
	}))
}

// write commits files to a branch, "main" for "", and lets a minute pass in
// which the agent stays connected.
func (w *asked) write(branch string, files map[string]string) tidelock.CommitID {
	w.t.Helper()
	n := forge.NewCommit{Branch: branch, Message: "change"}
	if branch == "" {
		n.Branch = "main"
	} else {
		n.StartBranch = "main"
	}
	for name, content := range files {
		kind := gitrepo.CreateFile
		if w.files[name] {
			kind = gitrepo.UpdateFile
		}
		if n.Branch == "main" {
			w.files[name] = true
		}
		n.Changes = append(n.Changes, gitrepo.Change{Kind: kind, Path: name, Content: []byte(content)})
	}
	commit, err := w.Commit(w.t.Context(), w.root, w.project, n)
	w.must(err)
	w.clock = w.clock.Add(time.Minute)
	w.connect()
	return commit
}

const (
	siteSource  = tidelock.SourceID("GitRepository/flux-system/site")
	siteApplier = tidelock.ObjectID("Kustomization/flux-system/site")
)

// fetched has the source have a commit, and appliers see what they are given.
func (w *asked) fetched(commit tidelock.CommitID, seen ...tidelock.Observation) {
	w.t.Helper()
	revision := "main@sha1:" + string(commit)
	w.must(w.store.SaveAgentSources(w.t.Context(), w.agent.ID, []tidelock.AgentSource{{
		Agent: w.agent.ID, Source: siteSource, Project: w.project.ID, Ref: "refs/heads/main", Spec: tidelock.RefSpec{Branch: "main"},
		Wanted: commit, Revision: revision, State: tidelock.Converged, Since: w.clock, UpdatedAt: w.clock,
	}}, nil))
	seen = append(seen, tidelock.Observation{Object: tidelock.ObjectID(siteSource), State: tidelock.ObservedReady, Revision: revision})
	for i := range seen {
		seen[i].Since, seen[i].UpdatedAt = w.clock.Add(-40*time.Second), w.clock.Add(-40*time.Second)
	}
	w.must(w.store.SaveObservations(w.t.Context(), w.agent.ID, seen, nil))
}

// applying is an applier that applied and attempted commits.
func applying(applied, attempted tidelock.CommitID, change func(*tidelock.Observation)) tidelock.Observation {
	o := tidelock.Observation{
		Object: siteApplier, Source: siteSource, State: tidelock.ObservedReady, Path: "./deploy", Namespace: "shop",
		Health: tidelock.HealthHealthy, Objects: 2,
	}
	if applied != "" {
		o.Revision = "main@sha1:" + string(applied)
	}
	if attempted != "" {
		o.Attempted = "main@sha1:" + string(attempted)
	}
	if change != nil {
		change(&o)
	}
	return o
}

// why asks as root, and wants one verdict of a code that says something.
func (w *asked) why(rev, environment string, want tidelock.CauseCode, says string) tidelock.Verdict {
	w.t.Helper()
	verdicts, err := w.Why(w.t.Context(), w.root, w.project, rev, environment)
	w.must(err)
	if len(verdicts) != 1 {
		w.t.Fatalf("got %d verdicts, want one: %v", len(verdicts), verdicts)
	}
	v := verdicts[0]
	text := v.Sentence + "\n" + v.Next
	for _, e := range v.Evidence {
		text += "\n" + e.Where + ": " + e.What
	}
	if v.Code != want || !strings.Contains(text, says) {
		w.t.Errorf("got %s, want %s that says %q:\n%s", v.Code, want, says, text)
	}
	return v
}

func TestWhyOnTheWay(t *testing.T) {
	t.Parallel()
	w := newAsked(t)
	first := w.write("", map[string]string{"deploy/a.yaml": "a: 1\n", "README.md": "one"})
	w.why(strings.Repeat("1", 40), "", tidelock.CauseCommitUnknown, "11111111")
	if _, err := w.Why(t.Context(), w.root, w.project, "nope", ""); tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("an unknown branch: got %v, want NotFound", err)
	}
	w.why("main", "", tidelock.CauseNoSource, "team/site")

	w.fetched(first)
	w.why("main", "", tidelock.CauseNoApplier, "nothing applies")
	w.fetched(first, applying(first, first, nil))
	v := w.why(string(first[:9]), "", tidelock.CauseNone, "2 objects are healthy")
	if v.Commit != first || v.Environment != "prod/shop" || v.Object != siteApplier || v.AgentName != "prod" {
		t.Errorf("it is about %+v", v)
	}

	// A push that nobody was told of yet.
	second := w.write("", map[string]string{"deploy/a.yaml": "a: 2\n"})
	w.why("main", "", tidelock.CauseUnknown, "not announced")
	w.why(string(first), "", tidelock.CauseNone, "")
	w.must(w.store.SaveAnnouncements(t.Context(), tidelock.Announcement{
		Agent: w.agent.ID, Source: siteSource, Number: 1, Project: w.project.ID, Ref: "refs/heads/main", Commit: second,
		State: tidelock.Failed, Message: "authentication required", SentAt: w.clock, AnnouncedAt: w.clock, AnsweredAt: w.clock, HandledAt: w.clock, Attempts: 1,
	}))
	w.must(w.store.SaveObservations(t.Context(), w.agent.ID, []tidelock.Observation{{
		Object: tidelock.ObjectID(siteSource), State: tidelock.ObservedFailed, Reason: "GitOperationFailed", Message: "unable to clone: authentication required",
	}}, nil))
	w.why("main", "", tidelock.CauseCredentialRefused, "authentication required")

	w.write("feature", map[string]string{"x": "y"})
	w.why("feature", "", tidelock.CauseNotOnWatchedRef, "branch feature")
}

// child makes a commit beside another, which no branch has.
func (w *asked) child(parent, like tidelock.CommitID) string {
	return w.git(w.project, "commit-tree", string(like)+"^{tree}", "-p", string(parent), "-m", "beside")
}

func TestWhySuperseded(t *testing.T) {
	t.Parallel()
	w := newAsked(t)
	first := w.write("", map[string]string{"deploy/a.yaml": "a: 1\n"})
	second := w.write("", map[string]string{"deploy/a.yaml": "a: 2\n"})
	w.fetched(first, applying(first, first, nil))
	w.must(w.store.SaveAnnouncements(t.Context(), tidelock.Announcement{
		Agent: w.agent.ID, Source: siteSource, Number: 1, Project: w.project.ID, Ref: "refs/heads/main", Commit: second, State: tidelock.Delivered, SentAt: w.clock,
	}))
	beside := tidelock.CommitID(w.child(first, first))
	w.git(w.project, "update-ref", "refs/heads/main", string(beside))
	_, err := w.Pushed(t.Context(), w.project.ID, w.root, []tidelock.RefName{"refs/heads/main"})
	w.must(err)
	w.clock = w.clock.Add(time.Minute)
	w.connect()
	w.why(string(second), "", tidelock.CauseSuperseded, string(beside[:8]))
	w.why(string(first), "", tidelock.CauseNone, "")
	w.fetched(beside, applying(beside, beside, nil))
	w.why(string(first), "", tidelock.CauseOlder, string(beside))
}

func TestWhyAgentOffline(t *testing.T) {
	t.Parallel()
	w := newAsked(t)
	first := w.write("", map[string]string{"deploy/a.yaml": "a: 1\n"})
	w.fetched(first, applying(first, first, nil))
	if since, err := w.AgentAway(t.Context(), w.agent.ID); err != nil || !since.IsZero() {
		t.Errorf("it is connected: got %v, %v", since, err)
	}
	last := w.clock
	w.must(w.store.RemoveAgentSession(t.Context(), w.agent.ID, "i", "s"))
	w.must(w.AgentLeft(t.Context(), tidelock.AgentSession{Agent: w.agent.ID, LastSeen: last}, "no heartbeat for 40s"))
	if since, err := w.AgentAway(t.Context(), w.agent.ID); err != nil || !since.Equal(last) {
		t.Errorf("it left at %v: got %v, %v", last, since, err)
	}
	w.clock = w.clock.Add(time.Hour)
	w.why(string(first), "", tidelock.CauseNone, "not connected since")
	_, err := w.Commit(t.Context(), w.root, w.project, forge.NewCommit{Branch: "main", Message: "x", Changes: []gitrepo.Change{{Kind: gitrepo.CreateFile, Path: "deploy/b.yaml", Content: []byte("b")}}})
	w.must(err)
	v := w.why("main", "", tidelock.CauseAgentOffline, "no heartbeat for 40s")
	if !v.Since.Equal(last) {
		t.Errorf("since %v, want %v", v.Since, last)
	}

	other, err := w.CreateAgent(t.Context(), w.root, w.project, "never")
	w.must(err)
	if since, err := w.AgentAway(t.Context(), other.ID); err != nil || !since.Equal(other.CreatedAt) {
		t.Errorf("it never came: got %v, %v", since, err)
	}
}

func TestWhyLooksAtFiles(t *testing.T) {
	t.Parallel()
	w := newAsked(t)
	first := w.write("", map[string]string{"deploy/kustomization.yaml": "resources: [a.yaml]\n", "deploy/a.yaml": "a: 1\n", "deploy/sub/ok.yaml": "b: 1\n"})
	bad := w.write("", map[string]string{"deploy/sub/ok.yaml": "a: 1\nb: 2\nc: d: e\n"})
	failing := func(message string) tidelock.Observation {
		return applying(first, bad, func(o *tidelock.Observation) {
			o.State, o.Reason, o.Message = tidelock.ObservedFailed, "BuildFailed", message
		})
	}
	w.fetched(bad, failing("kustomize build failed: MalformedYAMLError: yaml: something"))
	w.why("main", "", tidelock.CauseBuildFailed, "deploy/sub/ok.yaml:3")
	w.fetched(bad, failing("failed to decode Kubernetes YAML from /tmp/kustomization-1/deploy/a.yaml: missing Resource metadata"))
	w.why("main", "", tidelock.CauseBuildFailed, "deploy/a.yaml")
	w.fetched(bad, failing("accumulating resources from '../../../../etc/passwd.yaml': yaml: bad"))
	w.why("main", "", tidelock.CauseBuildFailed, "passwd")
	w.fetched(bad, failing("recovered from kustomize build panic"))
	w.why("main", "", tidelock.CauseBuildFailed, "panic")

	words := w.write("", map[string]string{"README.md": "words", ".gitlab-ci.yml": "a: 1\n"})
	w.fetched(words, applying(words, words, nil))
	w.why("main", "", tidelock.CauseNone, "") // nobody expects to see them
	docs := w.write("", map[string]string{"elsewhere/a.yaml": "a: 1\n"})
	w.fetched(docs, applying(docs, docs, nil))
	w.why("main", "", tidelock.CausePathNotTouched, "./deploy")
	w.why(string(bad), "", tidelock.CauseOlder, "")
	gone := applying(first, first, func(o *tidelock.Observation) {
		o.State, o.Reason, o.Message, o.Path, o.Suspended = tidelock.ObservedFailed, "ArtifactFailed", "kustomization path not found: stat /tmp/x", "./missing", false
	})
	w.fetched(first, gone)
	w.must(w.store.SaveAgentSources(t.Context(), w.agent.ID, []tidelock.AgentSource{{
		Agent: w.agent.ID, Source: siteSource, Project: w.project.ID, Ref: "refs/heads/main", Spec: tidelock.RefSpec{Branch: "main"},
		Revision: "main@sha1:" + string(first), Suspended: true, State: tidelock.Parked,
	}}, nil))
	if v := w.why("main", "", tidelock.CauseSourceSuspended, ""); len(v.Also) != 1 || v.Also[0].Code != tidelock.CausePathNotFound {
		t.Errorf("also: got %v, want the path that is missing", v.Also)
	}
	for _, path := range []string{"", "./", "/", ".", "../..", "missing"} {
		w.fetched(docs, applying(docs, docs, func(o *tidelock.Observation) { o.Path = path }))
		w.why("main", "", tidelock.CauseNone, "")
	}
	w.write("", map[string]string{"deploy/kustomization.yaml": "resources: [../base]\n"})
	reaching := w.write("", map[string]string{"base/x.yaml": "x: 1\n"})
	w.fetched(reaching, applying(reaching, reaching, nil))
	w.why("main", "", tidelock.CauseNone, "")
}

func TestWhyEnvironments(t *testing.T) {
	t.Parallel()
	w := newAsked(t)
	first := w.write("", map[string]string{"deploy/a.yaml": "a: 1\n"})
	named := applying(first, first, func(o *tidelock.Observation) {
		o.Object, o.Environment, o.Suspended, o.Revision = "Kustomization/flux-system/named", "review/login", true, ""
	})
	w.fetched(first, applying(first, first, nil), named)
	verdicts, err := w.Why(t.Context(), w.root, w.project, "main", "")
	w.must(err)
	var got []string
	for _, v := range verdicts {
		got = append(got, v.Environment+" "+string(v.Code))
	}
	if want := []string{"prod/shop live", "review/login applier_suspended"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	w.why("main", "review/login", tidelock.CauseApplierSuspended, "")
	w.why("main", "nowhere", tidelock.CauseUnknown, "nowhere")

	_, err = w.store.CreateEnvironment(t.Context(), tidelock.Environment{
		Project: w.project.ID, Name: "production", Slug: "production", Agent: w.agent.ID, State: tidelock.EnvironmentAvailable, Tier: tidelock.TierProduction,
		FluxResourcePath: "kustomize.toolkit.fluxcd.io/v1/namespaces/flux-system/kustomizations/site",
	})
	w.must(err)
	w.why("main", "production", tidelock.CauseNone, "")
}

// What an outsider must not learn.
func TestWhyKeepsToItself(t *testing.T) {
	t.Parallel()
	w := newAsked(t)
	first := w.write("", map[string]string{"deploy/a.yaml": "a: 1\n"})
	reporter, guest, stranger := w.user("reporter"), w.user("guest"), w.user("stranger")
	w.member(forge.OnProject(w.project), reporter, tidelock.Reporter)
	w.member(forge.OnProject(w.project), guest, tidelock.Guest)
	for _, c := range []struct {
		by   tidelock.User
		want tidelock.Kind
	}{{guest, tidelock.Denied}, {stranger, tidelock.NotFound}} {
		if _, err := w.Why(t.Context(), as(c.by), w.project, "main", ""); tidelock.KindOf(err) != c.want {
			t.Errorf("%s: got %v, want %s", c.by.Username, err, c.want)
		}
	}

	// A dependency that another project owns is known by its name only.
	secret := w.world.project(w.group("secret", tidelock.Private), "core", tidelock.Private)
	w.must(w.store.SaveAgentSources(t.Context(), w.agent.ID, []tidelock.AgentSource{{
		Agent: w.agent.ID, Source: "GitRepository/flux-system/core", Project: secret.ID, State: tidelock.Converged,
	}}, nil))
	waits := applying("", "", func(o *tidelock.Observation) {
		o.State, o.Reason, o.Message = tidelock.ObservedBlocked, "DependencyNotReady", "dependency 'flux-system/core' is not ready"
		o.DependsOn = []tidelock.ObjectID{"Kustomization/flux-system/core"}
	})
	w.fetched(first, waits, tidelock.Observation{
		Object: "Kustomization/flux-system/core", Source: "GitRepository/flux-system/core", State: tidelock.ObservedFailed,
		Reason: "ReconciliationFailed", Message: "a secret of secret/core",
	})
	verdicts, err := w.Why(t.Context(), as(reporter), w.project, "main", "")
	w.must(err)
	if text := fmt.Sprint(verdicts); len(verdicts) != 1 || verdicts[0].Code != tidelock.CauseDependencyNotReady || strings.Contains(text, "a secret") || strings.Contains(text, "secret/core") {
		t.Errorf("it tells of another project: %s", text)
	}

	// An agent that was not granted the project has a name for those who may read it.
	w.must(w.RevokeGrant(t.Context(), w.root, w.project, w.agent.ID))
	w.must(w.store.SaveAgentSources(t.Context(), w.agent.ID, []tidelock.AgentSource{{
		Agent: w.agent.ID, Source: siteSource, State: tidelock.NotServed, Refused: w.project.ID,
	}}, nil))
	w.why("main", "", tidelock.CauseNotServed, "tidelock agent grant ops/infra/prod team/site")
	verdicts, err = w.Why(t.Context(), as(reporter), w.project, "main", "")
	w.must(err)
	if text := fmt.Sprint(verdicts); len(verdicts) != 1 || verdicts[0].Code != tidelock.CauseNotServed || strings.Contains(text, "prod") || strings.Contains(text, "GitRepository") {
		t.Errorf("it names an agent that the caller may not read: %s", text)
	}
	config, err := w.store.ProjectByPath(t.Context(), "ops/infra")
	w.must(err)
	sources, err := w.AgentSources(t.Context(), w.root, config, w.agent.ID)
	w.must(err)
	for _, s := range sources {
		if s.Refused != 0 {
			t.Errorf("whoever reads the agent learns that %s leads to project %d", s.Source, s.Refused)
		}
	}
}

func TestWhyOfArtifacts(t *testing.T) {
	t.Parallel()
	w := newAsked(t)
	ctx := t.Context()
	first := w.write("", map[string]string{"shop/a.yaml": "a: 1\n"})
	artifact := w.mustPush(w.project, "shop", "one", "latest")
	image, err := w.store.ImageByName(ctx, w.project.ID, "shop")
	w.must(err)
	const source = tidelock.SourceID("OCIRepository/flux-system/shop")
	revision := "latest@" + string(artifact.Digest)
	build := func(commit tidelock.CommitID, state tidelock.StatusState, digest tidelock.Digest, findings ...tidelock.Finding) {
		t.Helper()
		head, err := w.store.Head(ctx, w.project.ID, "refs/heads/main")
		w.must(err)
		builds := []tidelock.Build{}
		if state != "" {
			builds = append(builds, tidelock.Build{
				Project: w.project.ID, Ref: "refs/heads/main", Commit: commit, Application: "shop", Image: "shop", State: state, Digest: digest,
				Findings: findings, CreatedAt: w.clock,
			})
		}
		_, err = w.store.RecordBuilds(ctx, head, builds)
		w.must(err)
	}
	see := func(change func(*tidelock.AgentSource, *tidelock.Observation)) {
		t.Helper()
		s := tidelock.AgentSource{
			Agent: w.agent.ID, Source: source, Project: w.project.ID, Image: image.ID, Spec: tidelock.RefSpec{Tag: "latest"}, Ref: "refs/tags/latest",
			Digest: artifact.Digest, Revision: revision, State: tidelock.Converged, Since: w.clock, UpdatedAt: w.clock,
		}
		o := tidelock.Observation{
			Object: siteApplier, Source: source, State: tidelock.ObservedReady, Revision: revision, Attempted: revision, Since: w.clock, UpdatedAt: w.clock,
		}
		if change != nil {
			change(&s, &o)
		}
		w.must(w.store.SaveAgentSources(ctx, w.agent.ID, []tidelock.AgentSource{s}, nil))
		w.must(w.store.SaveObservations(ctx, w.agent.ID, []tidelock.Observation{o, {
			Object: tidelock.ObjectID(source), State: tidelock.ObservedReady, Revision: revision, Since: w.clock, UpdatedAt: w.clock,
		}}, nil))
	}
	build(first, tidelock.StatusSuccess, artifact.Digest)
	see(nil)
	w.why("main", "", tidelock.CauseNone, revision)

	second := w.write("", map[string]string{"README.md": "words"})
	w.why("main", "", tidelock.CauseUnknown, "not packaged")
	build(second, "", "")
	w.why("main", "", tidelock.CausePathNotTouched, "application shop")

	third := w.write("", map[string]string{"shop/a.yaml": "a: b: c\n"})
	build(third, tidelock.StatusFailed, "", tidelock.Finding{Path: "shop/a.yaml", Line: 1, Message: "mapping values are not allowed"})
	w.why("main", "", tidelock.CauseBuildFailed, "shop/a.yaml:1: mapping values are not allowed")
	w.why(string(first), "", tidelock.CauseNone, "")

	fourth := w.write("", map[string]string{"shop/a.yaml": "a: 4\n"})
	made := w.mustPush(w.project, "shop", "four", "latest")
	build(fourth, tidelock.StatusSuccess, made.Digest)
	_, err = w.AddReportRule(ctx, w.root, w.project.FullPath, tidelock.ReportRule{Type: "application/sarif+json"})
	w.must(err)
	w.why("main", "", tidelock.CauseHeld, "application/sarif+json")
}

// BenchmarkWhy asks about the newest commit of a project that many appliers
// follow, of which some fail and some wait for others.
func BenchmarkWhy(b *testing.B) {
	w := newAsked(b)
	var commits []tidelock.CommitID
	for i := range 20 {
		commits = append(commits, w.write("", map[string]string{"deploy/a.yaml": fmt.Sprintf("a: %d\n", i)}))
	}
	head := commits[len(commits)-1]
	const appliers = 1000
	var seen []tidelock.Observation
	for i := range appliers {
		seen = append(seen, applying(commits[i%len(commits)], head, func(o *tidelock.Observation) {
			o.Object = tidelock.ObjectID(fmt.Sprintf("Kustomization/flux-system/app-%04d", i))
			o.Namespace, o.Path = fmt.Sprintf("team-%d", i%50), fmt.Sprintf("./deploy/app-%04d", i)
			switch i % 4 {
			case 1:
				o.State, o.Reason, o.Message = tidelock.ObservedFailed, "ReconciliationFailed", strings.Repeat("Deployment/shop/web dry-run failed (Forbidden): ", 80)
			case 2:
				o.State, o.Reason = tidelock.ObservedBlocked, "DependencyNotReady"
				o.Message = fmt.Sprintf("dependency 'flux-system/app-%04d' is not ready", i-1)
			}
		}))
	}
	w.fetched(head, seen...)
	var took []time.Duration
	for b.Loop() {
		began := time.Now()
		verdicts, err := w.Why(b.Context(), w.root, w.project, "main", "")
		if err != nil || len(verdicts) != 50 {
			b.Fatalf("got %d verdicts, %v", len(verdicts), err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
