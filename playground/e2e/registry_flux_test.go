package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/e2e"
)

// TestFluxProviderOfArtifacts lets the flux program push what Flux applies, and
// Flux's Provider tell of the commit from which it was made. It can only if the
// artifact's revision has the whole id of the commit. As TestFluxProvider, it
// has the machine to itself.
func TestFluxProviderOfArtifacts(t *testing.T) {
	r := newImageHost(t)
	ns := r.Cluster.Namespace(t)
	r.Trust(ns)
	r.PullSecret(ns, "pull", r.deployReader.user, r.deployReader.password)
	names := map[string]string{"personal": newProvider(t, r.Forge, ns, "provider", r.project.URL, newMember(r.Forge, "projects", r.project.ID, 40), "shop")}

	s := r.shell(t).dockerConfig(r.developer)
	push := func(value string, idLength int) (commit, digest string) {
		files := e2e.ConfigMap("shop", value)
		commit = r.project.Push("main", files)
		for name, text := range files {
			s.write(filepath.Join("artifact", name), text)
		}
		s.must("flux", "push", "artifact", "oci://"+r.image+"/shop:latest", "--path", "artifact", "--source", r.project.URL, "--revision", "main@sha1:"+commit[:idLength])
		return commit, s.must("crane", "digest", r.image+"/shop:latest")
	}

	first, _ := push("one", 40)
	source := r.ImageSource(ns, "shop", r.Image("team/web-shop/shop"), &sourcev1.OCIRepositoryRef{Tag: "latest"}, func(o *sourcev1.OCIRepository) {
		o.Spec.SecretRef = &meta.LocalObjectReference{Name: "pull"}
		o.Spec.Interval = metav1.Duration{Duration: time.Second} // no agent wakes it here
	})
	r.ApplyImage(ns, "shop")
	waitStatuses(t, r.Forge, r.project, first, names, "success")

	second, digest := push("two", 8)
	r.WaitRevision(source, digest, soon)
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		var applied kustomizev1.Kustomization
		if err := r.Cluster.Client.Get(ctx, client.ObjectKey{Namespace: ns, Name: "shop"}, &applied); err != nil {
			return err
		}
		if !strings.HasSuffix(applied.Status.LastAppliedRevision, digest) {
			return fmt.Errorf("applied %s, want %s", applied.Status.LastAppliedRevision, digest)
		}
		return nil
	})

	third, _ := push("three", 40)
	waitStatuses(t, r.Forge, r.project, third, names, "success")
	var statuses []struct{ Name string }
	r.Call(http.MethodGet, fmt.Sprintf("projects/%d/repository/commits/%s/statuses", r.project.ID, second), nil, &statuses)
	if len(statuses) != 0 {
		t.Errorf("the commit of a short revision has statuses %+v, which Flux cannot know", statuses)
	}
}
