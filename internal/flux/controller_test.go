package flux

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"tidelock.dev"
)

// newController makes a Controller that is told by the test what Flux shows,
// and whose calls go to a receiver of the test. No cluster answers it.
func newController(t testing.TB, receiver string) *Controller {
	t.Helper()
	c, err := New(Config{REST: &rest.Config{Host: "http://127.0.0.1:1"}, Agent: 1, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Configure(Settings{WebhookURL: receiver}); err != nil {
		t.Fatal(err)
	}
	c.SetForge(func(kind tidelock.SourceKind, url string) bool {
		return strings.HasPrefix(url, map[bool]string{false: "https://forge.example/", true: "oci://forge.example/"}[kind.OfImage()])
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var group sync.WaitGroup
	c.running, c.synced = true, true
	group.Go(func() { c.dispatch(ctx) })
	t.Cleanup(func() {
		cancel()
		group.Wait()
	})
	return c
}

func repository(name string, change ...func(*sourcev1.GitRepository)) *sourcev1.GitRepository {
	repo := &sourcev1.GitRepository{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid of " + name), Generation: 1},
		Spec:       sourcev1.GitRepositorySpec{URL: "https://user:secret@forge.example/team/" + name},
		Status:     sourcev1.GitRepositoryStatus{Artifact: &meta.Artifact{Revision: revision(commitA), Digest: "sha256:x"}},
	}
	for _, f := range change {
		f(repo)
	}
	return repo
}

// take returns what the feed has, which has to be there already; it is empty if
// there is nothing.
func take[K comparable, V any](t *testing.T, f *Feed[K, V]) Changes[K, V] {
	t.Helper()
	changes, _, err := f.take()
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

func TestControllerFeed(t *testing.T) {
	c := newController(t, "")
	c.observed(gitRepository, repository("site"))
	c.observed(gitRepository, repository("foreign", func(r *sourcev1.GitRepository) { r.Spec.URL = "https://other.example/team/site" }))
	f := c.Subscribe()
	set := take(t, f)
	if !set.Complete || len(set.Upserts) != 1 || set.Upserts[0].ID != "GitRepository/ns/site" {
		t.Fatalf("got %+v, want site only", set)
	}
	if s := set.Upserts[0]; s.URL != "https://forge.example/team/site" || s.UID != "uid of site" || s.Revision != revision(commitA) {
		t.Errorf("got %+v", s)
	}

	c.observed(gitRepository, repository("site", func(r *sourcev1.GitRepository) {
		r.Annotations = map[string]string{meta.ReconcileRequestAnnotation: "x"}
		r.Generation++
	}))
	if changes := take(t, f); len(changes.Upserts) != 0 {
		t.Errorf("got %+v, want nothing: it matters to nobody", changes)
	}
	for name, change := range map[string]func(*sourcev1.GitRepository){
		"suspended": func(r *sourcev1.GitRepository) { r.Spec.Suspend = true },
		"ref":       func(r *sourcev1.GitRepository) { r.Spec.Reference = &sourcev1.GitRepositoryRef{SemVer: "1.x"} },
		"revision":  func(r *sourcev1.GitRepository) { r.Status.Artifact.Revision = revision(commitB) },
		"uid":       func(r *sourcev1.GitRepository) { r.UID = "other" },
		"url":       func(r *sourcev1.GitRepository) { r.Spec.URL = "https://forge.example/team/moved" },
	} {
		c.observed(gitRepository, repository("site", change))
		if changes := take(t, f); changes.Complete || len(changes.Upserts) != 1 {
			t.Errorf("%s: got %+v, want one source", name, changes)
		}
		c.observed(gitRepository, repository("site"))
		take(t, f)
	}

	// Numbers are of this object, and are told with the whole set.
	c.Announce(Announcement{Source: "GitRepository/ns/site", Number: 9, Goal: tidelock.Goal{Commit: commitA}})
	c.Resend()
	if set := take(t, f); !set.Complete || set.Upserts[0].LastNumber != 9 || set.Upserts[0].LastCommit != commitA || len(set.Progress) != 1 {
		t.Errorf("got %+v", set)
	}

	// Another URL, a selector, a deletion: it is gone.
	c.observed(gitRepository, repository("site", func(r *sourcev1.GitRepository) { r.Spec.URL = "https://other.example/team/site" }))
	if changes := take(t, f); !slices.Equal(changes.Removals, []tidelock.SourceID{"GitRepository/ns/site"}) {
		t.Errorf("moved away: got %+v", changes)
	}
	c.observed(gitRepository, repository("site"))
	take(t, f)
	if err := c.Configure(Settings{Selector: "team=blue"}); err != nil {
		t.Fatal(err)
	}
	if changes := take(t, f); len(changes.Removals) != 1 || len(c.Sources()) != 0 {
		t.Errorf("selected away: got %+v", changes)
	}
	if c.Announce(Announcement{Source: "GitRepository/ns/site", Number: 10, Goal: tidelock.Goal{Commit: commitB}}) {
		t.Error("an announcement of a source that is not ours was taken")
	}
	if err := c.Configure(Settings{}); err != nil {
		t.Fatal(err)
	}
	if changes := take(t, f); len(changes.Upserts) != 1 || changes.Upserts[0].LastNumber != 0 {
		t.Errorf("selected again: got %+v", changes)
	}
	now := metav1.Now()
	c.observed(gitRepository, repository("site", func(r *sourcev1.GitRepository) { r.DeletionTimestamp = &now }))
	if changes := take(t, f); len(changes.Removals) != 1 {
		t.Errorf("deleted: got %+v", changes)
	}

	if c.Subscribe(); true {
		if _, _, err := f.take(); err != ErrFeedEnded {
			t.Errorf("two feeds at a time: %v", err)
		}
	}
}

// TestFollowingAnotherRefAsksAnew changes a source's ref while its announcement
// is under way; the whole set, sent to a server that was away, must not claim
// that the source was told what it is to have.
func TestFollowingAnotherRefAsksAnew(t *testing.T) {
	c := newController(t, "")
	c.observed(gitRepository, repository("site"))
	c.Announce(Announcement{Source: "GitRepository/ns/site", Number: 4, Goal: tidelock.Goal{Commit: commitB}})
	told := func() Source {
		t.Helper()
		return take(t, c.Subscribe()).Upserts[0]
	}
	if s := told(); s.LastNumber != 4 || s.LastCommit != commitB {
		t.Errorf("announced: told %d %s", s.LastNumber, s.LastCommit)
	}
	c.observed(gitRepository, repository("site", func(r *sourcev1.GitRepository) { r.Spec.URL = "https://forge.example/team/site" }))
	if s := told(); s.LastNumber != 4 || s.LastCommit != commitB {
		t.Errorf("another user in the URL: told %d %s", s.LastNumber, s.LastCommit)
	}
	named := func(r *sourcev1.GitRepository) { r.Spec.Reference = &sourcev1.GitRepositoryRef{Name: "refs/heads/x"} }
	c.observed(gitRepository, repository("site", named))
	if s := told(); s.LastNumber != 4 || s.LastCommit != "" {
		t.Errorf("another ref: told %d %s, want the number alone", s.LastNumber, s.LastCommit)
	}
	c.observed(gitRepository, repository("site", named, func(r *sourcev1.GitRepository) { r.Status.Artifact.Revision = revision(commitB) }))
	if s := told(); s.LastNumber != 4 || s.LastCommit != commitB {
		t.Errorf("another ref with the same commit: told %d %s", s.LastNumber, s.LastCommit)
	}
}

// TestOversizedSourcesAreLeftOut makes what somebody with a namespace of their
// own could make to have the server refuse the whole agent.
func TestOversizedSourcesAreLeftOut(t *testing.T) {
	c := newController(t, "")
	feed := c.Subscribe()
	long := strings.Repeat("x", 4096)
	c.observed(gitRepository, repository("good"))
	for name, change := range map[string]func(*sourcev1.GitRepository){
		"url":      func(r *sourcev1.GitRepository) { r.Spec.URL += long },
		"branch":   func(r *sourcev1.GitRepository) { r.Spec.Reference = &sourcev1.GitRepositoryRef{Branch: long} },
		"tag":      func(r *sourcev1.GitRepository) { r.Spec.Reference = &sourcev1.GitRepositoryRef{Tag: long} },
		"semver":   func(r *sourcev1.GitRepository) { r.Spec.Reference = &sourcev1.GitRepositoryRef{SemVer: long} },
		"name":     func(r *sourcev1.GitRepository) { r.Spec.Reference = &sourcev1.GitRepositoryRef{Name: long} },
		"commit":   func(r *sourcev1.GitRepository) { r.Spec.Reference = &sourcev1.GitRepositoryRef{Commit: long} },
		"revision": func(r *sourcev1.GitRepository) { r.Status.Artifact.Revision = long },
	} {
		c.observed(gitRepository, repository(name, change))
	}
	if changes := take(t, feed); len(changes.Upserts) != 1 || changes.Upserts[0].ID != "GitRepository/ns/good" {
		t.Errorf("told of %d sources, want the good one alone", len(changes.Upserts))
	}
	c.observed(gitRepository, repository("good", func(r *sourcev1.GitRepository) { r.Spec.URL += long }))
	if changes := take(t, feed); len(changes.Removals) != 1 {
		t.Errorf("grown too long: told %+v, want its removal", changes)
	}
	c.observed(gitRepository, repository("good"))
	if changes := take(t, feed); len(changes.Upserts) != 1 {
		t.Errorf("repaired: told %+v, want it back", changes)
	}
}

func TestControllerRefusesBadSettings(t *testing.T) {
	c := newController(t, "http://receiver.example")
	for _, settings := range []Settings{{Selector: "a in ("}, {WebhookURL: "/api/v1/secrets"}} {
		if err := c.Configure(settings); tidelock.KindOf(err) != tidelock.Invalid {
			t.Errorf("%+v: got %v", settings, err)
		}
	}
	if c.endpoint.base != "http://receiver.example" {
		t.Errorf("the good setting went: %s", c.endpoint.base)
	}
}

// An announcement leaves as a call within a few milliseconds, whatever else
// the agent serves.
func TestControllerIsQuick(t *testing.T) {
	const sources, rounds = 2000, 200
	receiver := serve(t, func(http.ResponseWriter, *http.Request) {})
	c := newController(t, receiver)
	for i := range sources {
		name := fmt.Sprint("site-", i)
		c.observed(gitRepository, repository(name))
		c.setHook(gitRepository.id(types.NamespacedName{Namespace: "ns", Name: name}), types.UID("uid of "+name), testHook)
	}
	f := c.Subscribe()
	take(t, f)
	var called []time.Duration
	for i := range rounds {
		id := tidelock.SourceID(fmt.Sprint("GitRepository/ns/site-", i))
		if !c.Announce(Announcement{Source: id, Number: 1, Goal: tidelock.Goal{Commit: commitB}}) {
			t.Fatalf("%s is not ours", id)
		}
		for {
			changes, err := f.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if len(changes.Progress) == 1 && changes.Progress[0].Answered > 0 {
				called = append(called, changes.Progress[0].Called)
				break
			}
		}
	}
	slices.Sort(called)
	t.Logf("arrival to call, %d sources: p50 %s, p99 %s", sources, called[rounds/2], called[rounds*99/100])
	if called[rounds/2] > 5*time.Millisecond {
		t.Errorf("p50 is %s, want at most 5 ms", called[rounds/2])
	}
}
