package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/e2e"
)

// soon is how long the tests give a push to arrive. It takes a fraction of a
// second; a test machine may be busy. Polling intervals are an hour.
const soon = 30 * time.Second

// A site is a forge with one project, granted to the agent if it is private,
// and a served source of it that has its first commit.
type site struct {
	*e2e.Forge
	ns    string
	p     *e2e.Project
	first string
}

func newSite(t *testing.T, visibility string) site {
	t.Helper()
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	s := site{Forge: f, ns: f.Cluster.Namespace(t), p: f.Project("team/site", visibility)}
	var credentials []string
	if visibility == "private" {
		s.p.Grant()
		credentials = []string{"root", f.Token}
	}
	s.first = s.p.Push("main", e2e.ConfigMap("site", "one"))
	f.Trust(s.ns, credentials...)
	f.Source(s.ns, "site", s.p, e2e.Branch("main"))
	f.WaitFetched(s.ns, "site", s.first, soon)
	f.WaitServed(s.ns, "site")
	return s
}

// A push reaches the cluster through real Flux, and the agent caused it.
func TestPushIsApplied(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	ns := f.Cluster.Namespace(t)
	p := f.Project("team/site", "public")
	p.Push("main", e2e.ConfigMap("site", "one"))
	f.Trust(ns)
	f.Source(ns, "site", p, e2e.Branch("main"))
	f.Apply(ns, "site")
	waitConfigMap(t, f, ns, "site", "one")
	f.WaitServed(ns, "site")

	commit := p.Push("main", e2e.ConfigMap("site", "two"))
	waitConfigMap(t, f, ns, "site", "two")
	a := waitAnnouncement(t, f, p, commit, "converged")
	if a.Via != "receiver" || a.CalledAt == nil || a.HandledAt == nil || a.FetchedAt == nil {
		t.Errorf("announcement: got %+v, want every hop, by the receiver", a)
	}
	if a.Source != "GitRepository/"+ns+"/site" || a.Ref != "refs/heads/main" {
		t.Errorf("announcement of %s %s, want this source's main", a.Source, a.Ref)
	}
}

// Drift comes back by Flux's own interval, and both actors are seen.
func TestDriftIsRepaired(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	ns := f.Cluster.Namespace(t)
	p := f.Project("team/site", "public")
	p.Push("main", map[string]string{
		"deploy/a.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: edited\ndata:\n  value: git\n",
		"deploy/b.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: deleted\ndata:\n  value: git\n",
	})
	f.Trust(ns)
	f.Source(ns, "site", p, e2e.Branch("main"))
	f.ApplyEvery(ns, "site", 2*time.Second)
	waitConfigMapKey(t, f, ns, "edited", "value", "git")
	waitConfigMapKey(t, f, ns, "deleted", "value", "git")

	edited := &corev1.ConfigMap{}
	key := client.ObjectKey{Namespace: ns, Name: "edited"}
	if err := f.Cluster.Client.Get(t.Context(), key, edited); err != nil {
		t.Fatal(err)
	}
	edited.Data = map[string]string{"value": "hand", "mine": "hand"}
	if err := f.Cluster.Client.Update(t.Context(), edited, client.FieldOwner("a-hand")); err != nil {
		t.Fatal(err)
	}
	if err := f.Cluster.Client.Delete(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "deleted"}}); err != nil {
		t.Fatal(err)
	}
	waitConfigMapKey(t, f, ns, "edited", "value", "git")
	waitConfigMapKey(t, f, ns, "deleted", "value", "git")
	if err := f.Cluster.Client.Get(t.Context(), key, edited); err != nil {
		t.Fatal(err)
	}
	managers := map[string]bool{}
	for _, m := range edited.ManagedFields {
		managers[m.Manager] = true
	}
	if !managers["kustomize-controller"] || !managers["a-hand"] {
		t.Errorf("managers of the object: got %v, want kustomize-controller and a-hand", managers)
	}
	if edited.Data["mine"] != "hand" {
		t.Errorf("a field that Git does not name: got %q, want it left alone", edited.Data["mine"])
	}
}

// Only the sources whose head changed are woken.
func TestOtherRefsCauseNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t, "public")
	f, ns, p, first := s.Forge, s.ns, s.p, s.first
	before := settled(t, f, ns, "site")

	p.Push("topic", e2e.ConfigMap("site", "topic"))
	p.Git("tag", "v1.0.0")
	p.Git("push", "--quiet", "origin", "v1.0.0")
	// A later push that does concern the source shows that the others were seen.
	second := p.Push("main", e2e.ConfigMap("site", "two"))
	f.WaitFetched(ns, "site", second, soon)
	waitAnnouncement(t, f, p, second, "converged")
	list, err := f.Announcements(t.Context(), p, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		if a.Commit != first && a.Commit != second {
			t.Errorf("announced %s of %s, which no source follows", a.Commit, a.Ref)
		}
	}
	source := settled(t, f, ns, "site")
	if got := source.Annotations[meta.ReconcileRequestAnnotation]; got == before.Annotations[meta.ReconcileRequestAnnotation] {
		t.Errorf("requestedAt did not change with the push to main: %q", got)
	}
}

// Each form of spec.ref follows what Flux would fetch.
func TestRefForms(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	ns := f.Cluster.Namespace(t)
	p := f.Project("team/site", "public")
	base := p.Push("main", e2e.ConfigMap("site", "base"))
	p.Git("push", "--quiet", "origin", "main:master")
	tag := func(name string, annotated bool) string {
		commit := p.Commit("main", e2e.ConfigMap("site", name))
		if annotated {
			p.Git("tag", "--annotate", "--message="+name, name)
		} else {
			p.Git("tag", name)
		}
		p.Git("push", "--quiet", "origin", name)
		return commit
	}
	v1 := tag("v1.0.0", false)
	f.Trust(ns)
	later := p.Commit("main", e2e.ConfigMap("site", "later")) // not pushed yet
	sources := map[string]struct {
		ref   *sourcev1.GitRepositoryRef
		first string
	}{
		"branch": {e2e.Branch("main"), base},
		"noref":  {nil, base},
		"tag":    {&sourcev1.GitRepositoryRef{Tag: "v1.0.0"}, v1},
		"semver": {&sourcev1.GitRepositoryRef{SemVer: ">=1.0.0"}, v1},
		"name":   {&sourcev1.GitRepositoryRef{Name: "refs/heads/main"}, base},
		"commit": {&sourcev1.GitRepositoryRef{Commit: later}, ""},
	}
	for name, s := range sources {
		f.Source(ns, name, p, s.ref)
	}
	for name, s := range sources {
		if s.first != "" {
			f.WaitFetched(ns, name, s.first, soon)
		}
		f.WaitServed(ns, name)
	}

	p.Git("push", "--quiet", "origin", "main")
	f.WaitFetched(ns, "branch", later, soon)
	f.WaitFetched(ns, "name", later, soon)
	f.WaitFetched(ns, "commit", later, soon)
	p.Git("push", "--quiet", "origin", "main:master")
	f.WaitFetched(ns, "noref", later, soon)
	v2 := tag("v2.0.0", true)
	f.WaitFetched(ns, "semver", v2, soon)
	p.Git("tag", "--force", "v1.0.0", later)
	p.Git("push", "--quiet", "--force", "origin", "v1.0.0")
	f.WaitFetched(ns, "tag", later, soon)
}

// An includer is woken once what it includes has its new artifact.
func TestIncludes(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	ns := f.Cluster.Namespace(t)
	inner, outer := f.Project("team/inner", "public"), f.Project("team/outer", "public")
	inner.Push("main", e2e.ConfigMap("inner", "one"))
	outer.Push("main", e2e.ConfigMap("outer", "one"))
	f.Trust(ns)
	f.Source(ns, "inner", inner, e2e.Branch("main"))
	f.Source(ns, "outer", outer, e2e.Branch("main"), func(s *sourcev1.GitRepository) {
		s.Spec.Include = []sourcev1.GitRepositoryInclude{{GitRepositoryRef: meta.LocalObjectReference{Name: "inner"}, ToPath: "included"}}
	})
	f.WaitServed(ns, "inner")
	f.WaitServed(ns, "outer")
	commit := inner.Push("main", e2e.ConfigMap("inner", "two"))
	f.WaitFetched(ns, "inner", commit, soon)
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		s, err := f.Cluster.GitRepository(ctx, ns, "outer")
		if err != nil {
			return err
		}
		for _, a := range s.Status.IncludedArtifacts {
			if strings.HasSuffix(a.Revision, commit) {
				return nil
			}
		}
		return fmt.Errorf("outer includes %v, want %s", s.Status.IncludedArtifacts, commit)
	})
}

// A suspended source waits, and is woken the moment it is resumed.
func TestSuspended(t *testing.T) {
	t.Parallel()
	s := newSite(t, "public")
	f, ns, p := s.Forge, s.ns, s.p
	patch(t, f, ns, "site", `{"spec":{"suspend":true}}`)
	second := p.Push("main", e2e.ConfigMap("site", "two"))
	waitAnnouncement(t, f, p, second, "parked")
	patch(t, f, ns, "site", `{"spec":{"suspend":false}}`)
	f.WaitFetched(ns, "site", second, soon)
	waitAnnouncement(t, f, p, second, "converged")
}

// A source whose credentials are broken is woken when they are repaired, not
// an hour later.
func TestBrokenCredentialsRepaired(t *testing.T) {
	t.Parallel()
	s := newSite(t, "private")
	f, ns, p := s.Forge, s.ns, s.p

	f.Trust(ns, "root", "glpat-wrong")
	second := p.Push("main", e2e.ConfigMap("site", "two"))
	waitAnnouncement(t, f, p, second, "failed")
	f.Trust(ns, "root", f.Token)
	f.WaitFetched(ns, "site", second, soon)
}

// A private project is announced only to agents that were granted it, from
// the moment of the grant to the moment it is taken back.
func TestPrivateGrantRevoke(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	ns := f.Cluster.Namespace(t)
	p := f.Project("team/secret", "private")
	first := p.Push("main", e2e.ConfigMap("site", "one"))
	f.Trust(ns, "root", f.Token)
	f.Source(ns, "site", p, e2e.Branch("main"))
	f.WaitFetched(ns, "site", first, soon)
	// A public source beside it shows that the agent is awake.
	control := f.Project("team/control", "public")
	control.Push("main", e2e.ConfigMap("control", "one"))
	f.Source(ns, "control", control, e2e.Branch("main"))
	f.WaitServed(ns, "control")

	hidden := p.Push("main", e2e.ConfigMap("site", "two"))
	f.WaitFetched(ns, "control", control.Push("main", e2e.ConfigMap("control", "two")), soon)
	if n, err := f.Cluster.ReadyReceivers(t.Context(), ns, "site"); err != nil || n != 0 {
		t.Errorf("receivers of a project that was not granted: got %d, %v; want none", n, err)
	}
	if list, err := f.Announcements(t.Context(), p, nil); err != nil || len(list) != 0 {
		t.Errorf("announcements of a project that was not granted: got %v, %v; want none", list, err)
	}

	p.Grant()
	f.WaitFetched(ns, "site", hidden, soon) // what was missed is announced at once
	f.WaitServed(ns, "site")

	f.Call(http.MethodDelete, fmt.Sprintf("projects/%d/agent_grants/%d", p.ID, f.AgentID), nil, nil)
	e2e.Eventually(t, 10*time.Second, func(ctx context.Context) error {
		n, err := f.Cluster.ReadyReceivers(ctx, ns, "site")
		if err == nil && n != 0 {
			err = fmt.Errorf("%d receivers after the grant was taken back", n)
		}
		return err
	})
	unseen := p.Push("main", e2e.ConfigMap("site", "three"))
	f.WaitFetched(ns, "control", control.Push("main", e2e.ConfigMap("control", "three")), soon)
	list, err := f.Announcements(t.Context(), p, url.Values{"commit": {unseen}})
	if err != nil || len(list) != 0 {
		t.Errorf("announcements after the grant was taken back: got %v, %v; want none", list, err)
	}
}

// A renamed project is followed by its id; a privatized and a deleted one lose
// their receivers.
func TestRenamedPrivatizedDeleted(t *testing.T) {
	t.Parallel()
	s := newSite(t, "public")
	f, ns, p := s.Forge, s.ns, s.p

	f.Call(http.MethodPut, fmt.Sprintf("projects/%d", p.ID), map[string]any{"path": "renamed"}, nil)
	second := p.Push("main", e2e.ConfigMap("site", "two")) // by the old URL
	f.WaitFetched(ns, "site", second, soon)

	gone := func() {
		t.Helper()
		e2e.Eventually(t, 15*time.Second, func(ctx context.Context) error {
			n, err := f.Cluster.ReadyReceivers(ctx, ns, "site")
			if err == nil && n != 0 {
				err = fmt.Errorf("%d receivers are left", n)
			}
			return err
		})
	}
	f.Call(http.MethodPut, fmt.Sprintf("projects/%d", p.ID), map[string]any{"visibility": "private"}, nil)
	gone()
	f.Call(http.MethodPut, fmt.Sprintf("projects/%d", p.ID), map[string]any{"visibility": "public"}, nil)
	f.WaitServed(ns, "site")
	f.Call(http.MethodDelete, fmt.Sprintf("projects/%d", p.ID), nil, nil)
	gone()
}

// A ref that moves away and back ends where it is, however fast it went.
func TestMovedBackAndForth(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	ns := f.Cluster.Namespace(t)
	p := f.Project("team/site", "public")
	f.Call(http.MethodDelete, fmt.Sprintf("projects/%d/protected_branches/main", p.ID), nil, nil)
	a := p.Push("main", e2e.ConfigMap("site", "a"))
	f.Trust(ns)
	f.Source(ns, "site", p, e2e.Branch("main"))
	f.WaitFetched(ns, "site", a, soon)
	f.WaitServed(ns, "site")
	b := p.Push("main", e2e.ConfigMap("site", "b"))
	for range 3 {
		p.Git("push", "--quiet", "--force", "origin", a+":refs/heads/main")
		p.Git("push", "--quiet", "--force", "origin", b+":refs/heads/main")
	}
	p.Git("push", "--quiet", "--force", "origin", a+":refs/heads/main")
	f.WaitFetched(ns, "site", a, soon)
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		list, err := f.Announcements(ctx, p, nil)
		if err != nil {
			return err
		}
		if len(list) == 0 || list[0].Commit != a || list[0].State != "converged" {
			return fmt.Errorf("newest announcement: %+v", list)
		}
		return nil
	})
}

// Two agents in one cluster each keep Receivers of their own; both may trigger.
func TestTwoAgents(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	ns := f.Cluster.Namespace(t)
	p := f.Project("team/site", "public")
	first := p.Push("main", e2e.ConfigMap("site", "one"))
	f.Configure("second", f.ReceiverConfig())
	f.StartAgent("agent-2", "second", e2e.Binary(t))
	f.Trust(ns)
	f.Source(ns, "site", p, e2e.Branch("main"))
	f.WaitFetched(ns, "site", first, soon)
	both := func(want int) {
		t.Helper()
		e2e.Eventually(t, soon, func(ctx context.Context) error {
			n, err := f.Cluster.ReadyReceivers(ctx, ns, "site")
			if err == nil && n != want {
				err = fmt.Errorf("%d receivers, want %d", n, want)
			}
			return err
		})
	}
	both(2)
	second := p.Push("main", e2e.ConfigMap("site", "two"))
	f.WaitFetched(ns, "site", second, soon)
	// A selector divides the work: the second agent lets go of its own only.
	f.Configure("second", f.ReceiverConfig()+"  selector: tidelock.dev/second=yes\n")
	both(1)
	third := p.Push("main", e2e.ConfigMap("site", "three"))
	f.WaitFetched(ns, "site", third, soon)
}

// A bad configuration file changes nothing but what is told of it.
func TestBadConfigurationKeepsTheLastGood(t *testing.T) {
	t.Parallel()
	s := newSite(t, "public")
	f, ns, p := s.Forge, s.ns, s.p
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'i'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	for i, bad := range []struct{ name, text, says string }{
		{"unknown key", "flux:\n  webhook_receiver_uri: http://x\n", "webhook_receiver_uri"},
		{"wrong type", "flux: [1]\n", "line 1"},
		{"1 MB", "# " + strings.Repeat("x", 1<<20) + "\n", "131072"},
		{"alias bomb", bomb, ""},
	} {
		f.Configure("test", bad.text)
		e2e.Eventually(t, 10*time.Second, func(ctx context.Context) error {
			var status struct {
				Configuration struct {
					Error string `json:"error"`
				} `json:"configuration"`
			}
			path := fmt.Sprintf("projects/%d/cluster_agents/%d/status", f.AgentProject().ID, f.AgentID)
			if err := f.API(ctx, http.MethodGet, path, nil, &status); err != nil {
				return err
			}
			if status.Configuration.Error == "" || !strings.Contains(status.Configuration.Error, bad.says) {
				return fmt.Errorf("%s: error %q, want one that names %q", bad.name, status.Configuration.Error, bad.says)
			}
			return nil
		})
		commit := p.Push("main", e2e.ConfigMap("site", fmt.Sprint("bad", i)))
		f.WaitFetched(ns, "site", commit, soon)
	}
	// An agent that restarts under a bad file has the last good one too: once it
	// has looked at its Receivers again, it uses the URL that only that names.
	f.Restart(e2e.Agent)
	via := ""
	for i := 0; i < 5 && via != "receiver"; i++ {
		commit := p.Push("main", e2e.ConfigMap("site", fmt.Sprint("restarted", i)))
		f.WaitFetched(ns, "site", commit, soon)
		via = waitAnnouncement(t, f, p, commit, "converged").Via
	}
	if via != "receiver" {
		t.Errorf("via %q after the restart, want the receiver of the last good configuration", via)
	}
}

// A revoked token ends the session within 5 s.
func TestRevokedToken(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	base := fmt.Sprintf("projects/%d/cluster_agents/%d", f.AgentProject().ID, f.AgentID)
	var tokens []struct {
		ID int64 `json:"id"`
	}
	f.Call(http.MethodGet, base+"/tokens", nil, &tokens)
	for _, token := range tokens {
		f.Call(http.MethodDelete, fmt.Sprintf("%s/tokens/%d", base, token.ID), nil, nil)
	}
	e2e.Eventually(t, 5*time.Second, func(ctx context.Context) error {
		var status struct {
			Connections []any `json:"connections"`
		}
		err := f.API(ctx, http.MethodGet, base+"/status", nil, &status)
		if err == nil && len(status.Connections) != 0 {
			err = fmt.Errorf("%d connections", len(status.Connections))
		}
		return err
	})
}

func waitConfigMap(t *testing.T, f *e2e.Forge, ns, name, value string) {
	t.Helper()
	waitConfigMapKey(t, f, ns, name, "value", value)
}

func waitConfigMapKey(t *testing.T, f *e2e.Forge, ns, name, key, value string) {
	t.Helper()
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		found := &corev1.ConfigMap{}
		err := f.Cluster.Client.Get(ctx, client.ObjectKey{Namespace: ns, Name: name}, found)
		if apierrors.IsNotFound(err) {
			source, _ := f.Cluster.GitRepository(ctx, ns, "site")
			return fmt.Errorf("%w; source: %v", err, source.Status.Conditions)
		}
		if err == nil && found.Data[key] != value {
			err = fmt.Errorf("%s holds %v, want %s", name, found.Data, value)
		}
		return err
	})
}

func waitAnnouncement(t *testing.T, f *e2e.Forge, p *e2e.Project, commit, state string) e2e.Announcement {
	t.Helper()
	var found e2e.Announcement
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		list, err := f.Announcements(ctx, p, url.Values{"commit": {commit}})
		if err != nil {
			return err
		}
		for _, a := range list {
			if a.State == state {
				found = a
				return nil
			}
		}
		return fmt.Errorf("announcements of %s: %+v, want one that is %s", commit, list, state)
	})
	return found
}

func patch(t *testing.T, f *e2e.Forge, ns, name, text string) {
	t.Helper()
	source := &sourcev1.GitRepository{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	if err := f.Cluster.Client.Patch(t.Context(), source, client.RawPatch("application/merge-patch+json", []byte(text))); err != nil {
		t.Fatal(err)
	}
}

// settled waits until Flux has acted on every request there is.
func settled(t *testing.T, f *e2e.Forge, ns, name string) *sourcev1.GitRepository {
	t.Helper()
	var found *sourcev1.GitRepository
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		source, err := f.Cluster.GitRepository(ctx, ns, name)
		if err != nil {
			return err
		}
		if source.Status.LastHandledReconcileAt != source.Annotations[meta.ReconcileRequestAnnotation] {
			return fmt.Errorf("handled %q, requested %q", source.Status.LastHandledReconcileAt, source.Annotations[meta.ReconcileRequestAnnotation])
		}
		found = source
		return nil
	})
	return found
}
