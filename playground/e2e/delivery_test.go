package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/e2e"
)

// A delivered application as the forge tells of it.
type delivered struct {
	Commit      string    `json:"commit"`
	Application string    `json:"application"`
	Status      string    `json:"status"`
	Digest      string    `json:"digest"`
	Tags        []string  `json:"tags"`
	CreatedAt   time.Time `json:"created_at"`
	Duration    float64   `json:"duration"`
	Findings    []struct {
		Message string `json:"message"`
	} `json:"findings"`
}

// A push to a delivery repository of 20 applications that changes one makes
// one artifact, wakes one OCIRepository, and one Kustomization is applied.
func TestDeliveryRepository(t *testing.T) {
	t.Parallel()
	const count, pushes = 20, 10
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	ns := f.Cluster.Namespace(t)
	f.Trust(ns)
	p := f.Project("team/delivery", "public")

	name := func(i int) string { return fmt.Sprintf("app-%02d", i) }
	files := map[string]string{}
	change := func(i int, value string) {
		for path, text := range e2e.ConfigMap(name(i), value) {
			files["apps/"+name(i)+"/"+path] = text
		}
	}
	var settings strings.Builder
	settings.WriteString("applications:\n")
	for i := range count {
		fmt.Fprintf(&settings, "- {name: %s, path: apps/%s}\n", name(i), name(i))
		change(i, "first")
	}
	files[".tidelock/delivery.yaml"] = settings.String()
	first := p.Push("main", files)
	for _, d := range awaitDelivered(t, f, p, first, count) {
		if d.Status != "success" {
			t.Fatalf("got %+v", d)
		}
	}
	for i := range count {
		f.ImageSource(ns, name(i), f.Image("team/delivery/"+name(i)), nil)
		f.ApplyImage(ns, name(i))
	}
	for i := range count {
		waitConfigMap(t, f, ns, name(i), "first")
		f.WaitServed(ns, name(i))
	}
	applied := appliedRevisions(t, f, ns)
	if len(applied) != count {
		t.Fatalf("got %d Kustomizations, want %d", len(applied), count)
	}
	announcedBefore, err := f.Announcements(t.Context(), p, nil)
	if err != nil {
		t.Fatal(err)
	}

	var packaged, called, live []time.Duration
	for n := range pushes {
		i := (7 * n) % count
		value := fmt.Sprintf("push %d", n)
		clear(files)
		change(i, value)
		commit := p.Commit("main", files)
		began := time.Now()
		p.Git("push", "--quiet", "origin", "main")
		waitConfigMap(t, f, ns, name(i), value)
		live = append(live, time.Since(began))

		builds := awaitDelivered(t, f, p, commit, 1)
		if len(builds) != 1 || builds[0].Application != name(i) || builds[0].Status != "success" {
			t.Fatalf("got builds %+v, want one of %s", builds, name(i))
		}
		a := awaitAnnounced(t, f, p, builds[0].Digest)
		if a.Source != "OCIRepository/"+ns+"/"+name(i) || a.Via != "receiver" || a.Commit != commit {
			t.Errorf("got announcement %+v", a)
		}
		packaged = append(packaged, time.Duration(builds[0].Duration*float64(time.Second)))
		called = append(called, a.CalledAt.Sub(*a.AcceptedAt))
		t.Logf("%s: packaged in %s; then announced after %s, called after %s, fetched after %s; applied %s after git push began", name(i),
			packaged[n].Round(time.Millisecond), a.AnnouncedAt.Sub(*a.AcceptedAt).Round(100*time.Microsecond), called[n].Round(100*time.Microsecond),
			a.FetchedAt.Sub(*a.AcceptedAt).Round(time.Millisecond), live[n].Round(time.Millisecond))

		// Nothing but the one Kustomization has another revision.
		now := appliedRevisions(t, f, ns)
		for k, revision := range now {
			if moved := revision != applied[k]; moved != (k == name(i)) {
				t.Errorf("Kustomization %s: had %s, has %s after a push to %s", k, applied[k], revision, name(i))
			}
		}
		applied = now
	}
	announced, err := f.Announcements(t.Context(), p, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(announced) - len(announcedBefore); got != pushes {
		t.Errorf("got %d announcements for %d pushes", got, pushes)
	}
	for _, times := range [][]time.Duration{packaged, called, live} {
		slices.Sort(times)
	}
	t.Logf("median of %d pushes: push accepted to artifact in the registry %s, then receiver called after %s; git push to applied %s",
		pushes, packaged[pushes/2].Round(time.Millisecond), called[pushes/2].Round(100*time.Microsecond), live[pushes/2].Round(time.Millisecond))
}

func awaitDelivered(t *testing.T, f *e2e.Forge, p *e2e.Project, commit string, want int) (list []delivered) {
	t.Helper()
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		err := f.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/deliveries?per_page=100&commit=%s", p.ID, commit), nil, &list)
		if err == nil && len(list) < want {
			err = fmt.Errorf("got %d applications delivered of commit %s, want %d", len(list), commit, want)
		}
		return err
	})
	return list
}

// awaitAnnounced waits until an artifact has arrived at the one source that
// follows it.
func awaitAnnounced(t *testing.T, f *e2e.Forge, p *e2e.Project, digest string) (found e2e.Announcement) {
	t.Helper()
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		list, err := f.Announcements(ctx, p, map[string][]string{"digest": {digest}})
		if err != nil {
			return err
		}
		if len(list) != 1 || list[0].State != "converged" || list[0].CalledAt == nil || list[0].FetchedAt == nil {
			return fmt.Errorf("got announcements %+v of %s, want one that has converged", list, digest)
		}
		found = list[0]
		return nil
	})
	return found
}

// appliedRevisions are those of all Kustomizations by name.
func appliedRevisions(t *testing.T, f *e2e.Forge, ns string) map[string]string {
	t.Helper()
	found := map[string]string{}
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		list := &kustomizev1.KustomizationList{}
		if err := f.Cluster.Client.List(ctx, list, client.InNamespace(ns)); err != nil {
			return err
		}
		sources := &sourcev1.OCIRepositoryList{}
		if err := f.Cluster.Client.List(ctx, sources, client.InNamespace(ns)); err != nil {
			return err
		}
		fetched := map[string]string{}
		for _, s := range sources.Items {
			if s.Status.Artifact != nil {
				fetched[s.Name] = s.Status.Artifact.Revision
			}
		}
		for _, k := range list.Items {
			if k.Status.LastAppliedRevision == "" || k.Status.LastAppliedRevision != fetched[k.Name] {
				return fmt.Errorf("Kustomization %s has applied %q of %q", k.Name, k.Status.LastAppliedRevision, fetched[k.Name])
			}
			found[k.Name] = k.Status.LastAppliedRevision
		}
		return nil
	})
	return found
}
