package e2e_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	imagev1 "github.com/fluxcd/image-reflector-controller/api/v1"
	"github.com/google/go-containerregistry/pkg/registry"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev"
	"tidelock.dev/internal/flux"
	"tidelock.dev/playground/component"
	"tidelock.dev/playground/e2e"
)

// newTagStore is an artifactStore that does not list its tags while it is broken.
func newTagStore(t *testing.T) (store artifactStore, broken *atomic.Bool) {
	t.Helper()
	broken = new(atomic.Bool)
	tags := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	return artifactStore{strings.TrimPrefix(serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken.Load() && strings.HasSuffix(r.URL.Path, "/tags/list") {
			http.Error(w, "not now", http.StatusForbidden)
			return
		}
		tags.ServeHTTP(w, r)
	})), "http://")}, broken
}

// reflectorArrives adds image-reflector-controller when the agent is there
// already; a push of a tag has it read the tags, and the agent tells a scan that
// failed from one that did not.
func reflectorArrives(t *testing.T, c *e2e.System, a *fluxAgent, store artifactStore, broken *atomic.Bool) {
	ns := c.Namespace(t)
	store.pushManifests(t, "team/site", "1.0.0", "one")
	set, err := component.Default(t.Context(), component.ReflectorController)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Flux.AddReflector(t.Context(), set[component.ReflectorController]); err != nil {
		t.Fatal(err)
	}
	repo := &imagev1.ImageRepository{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "site"},
		Spec:       imagev1.ImageRepositorySpec{Image: store.host + "/team/site", Interval: hourly, Insecure: true},
	}
	if err := c.Client.Create(t.Context(), repo); err != nil {
		t.Fatal(err)
	}
	id := tidelock.SourceID("ImageRepository/" + ns + "/site")
	e2e.Eventually(t, 25*time.Second, func(context.Context) error {
		if s, ok := a.source(id); !ok || s.URL != store.url("team/site") {
			return fmt.Errorf("source is %+v", s)
		}
		return nil
	})
	a.SetServed(id, true)
	if r := awaitReceivers(t, c, ns, 1)[0].Spec.Resources[0]; r.Kind != "ImageRepository" || r.APIVersion != "image.toolkit.fluxcd.io/v1" {
		t.Errorf("the receiver is of %+v", r)
	}

	var last tidelock.Goal
	p := a.pushGoalUntilVia(t, id, flux.ViaReceiver, func(i int) tidelock.Goal {
		last = store.pushManifests(t, "team/site", fmt.Sprintf("1.1.%d", i), "two")
		return last
	})
	t.Logf("called %s, answered %s, fetched %s", p.Called, p.Answered, p.Fetched)
	hasTag := func(goal tidelock.Goal) {
		t.Helper()
		if err := c.Client.Get(t.Context(), client.ObjectKeyFromObject(repo), repo); err != nil {
			t.Fatal(err)
		}
		tag, _ := goal.Ref.Tag()
		if scan := repo.Status.LastScanResult; scan == nil || !slices.Contains(scan.LatestTags, tag) {
			t.Errorf("scanned %+v, want %s in it", scan, tag)
		}
		e2e.Eventually(t, 5*time.Second, func(context.Context) error {
			if s, _ := a.source(id); s.Revision != tag+"@"+string(goal.Digest) {
				return fmt.Errorf("told %q, want %s", s.Revision, tag)
			}
			return nil
		})
	}
	hasTag(last)

	broken.Store(true)
	goal := store.pushManifests(t, "team/site", "1.2.0", "three")
	n := a.announceGoal(t, id, goal)
	if p := a.await(t, id, n, tidelock.Failed, 20*time.Second); !strings.Contains(p.Message, "scan failed") {
		t.Errorf("message: got %q, want Flux's reason", p.Message)
	}
	broken.Store(false)
	a.await(t, id, n, tidelock.Converged, 20*time.Second)
	hasTag(goal)
}
