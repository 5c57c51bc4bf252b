package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/e2e"
)

// A repository is a bare one, served by git http-backend, and a working tree
// to push from.
type repository struct {
	url  string
	tree string
}

func newRepository(t *testing.T) repository {
	t.Helper()
	root := t.TempDir()
	bare := filepath.Join(root, "site.git")
	r := repository{tree: filepath.Join(root, "tree")}
	git(t, root, "init", "--quiet", "--bare", "--initial-branch=main", bare)
	git(t, root, "init", "--quiet", "--initial-branch=main", r.tree)
	git(t, r.tree, "remote", "add", "origin", bare)

	execPath, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(execPath)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root},
	})
	t.Cleanup(server.Close)
	r.url = server.URL + "/site.git"
	return r
}

// push commits files and pushes them; it returns the commit.
func (r repository) push(t *testing.T, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(r.tree, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	git(t, r.tree, "add", "--all")
	git(t, r.tree, "commit", "--quiet", "--message=change")
	git(t, r.tree, "push", "--quiet", "origin", "main")
	return git(t, r.tree, "rev-parse", "HEAD")
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(),
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=Test", "GIT_AUTHOR_EMAIL=test@example.org",
		"GIT_COMMITTER_NAME=Test", "GIT_COMMITTER_EMAIL=test@example.org")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

const siteManifests = `
apiVersion: v1
kind: ConfigMap
metadata: {name: site}
data: {greeting: %s}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: site}
spec:
  replicas: 2
  selector: {matchLabels: {app: site}}
  template:
    metadata: {labels: {app: site}}
    spec: {containers: [{name: site, image: "example.org/site:1"}]}
`

// The playground's Flux brings a repository into the cluster, and follows it
// when it is asked to.
func TestFluxAppliesARepository(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	ns := c.Namespace(t)
	repo := newRepository(t)
	first := repo.push(t, map[string]string{"site.yaml": fmt.Sprintf(siteManifests, "hello")})

	source := &sourcev1.GitRepository{
		ObjectMeta: metav1.ObjectMeta{Name: "site", Namespace: ns},
		Spec: sourcev1.GitRepositorySpec{
			URL: repo.url, Interval: metav1.Duration{Duration: time.Hour},
			Reference: &sourcev1.GitRepositoryRef{Branch: "main"},
		},
	}
	site := &kustomizev1.Kustomization{
		ObjectMeta: metav1.ObjectMeta{Name: "site", Namespace: ns},
		Spec: kustomizev1.KustomizationSpec{
			Interval: metav1.Duration{Duration: time.Hour}, Prune: true, Wait: true, TargetNamespace: ns,
			SourceRef: kustomizev1.CrossNamespaceSourceReference{Kind: sourcev1.GitRepositoryKind, Name: "site"},
		},
	}
	for _, object := range []client.Object{source, site} {
		if err := c.Client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	e2e.Eventually(t, 30*time.Second, func(ctx context.Context) error {
		if err := c.Client.Get(ctx, client.ObjectKeyFromObject(site), site); err != nil {
			return err
		}
		if want := "main@sha1:" + first; site.Status.LastAppliedRevision != want {
			return fmt.Errorf("applied %q, want %q", site.Status.LastAppliedRevision, want)
		}
		return nil
	})
	var deployment appsv1.Deployment
	if err := c.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "site"}, &deployment); err != nil {
		t.Fatal(err)
	}
	if deployment.Status.ReadyReplicas != 2 {
		t.Errorf("the Kustomization waited, but %d replicas are ready, want 2", deployment.Status.ReadyReplicas)
	}

	repo.push(t, map[string]string{"site.yaml": fmt.Sprintf(siteManifests, "hello-again")})
	request := client.RawPatch("application/merge-patch+json",
		fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"now"}}}`, meta.ReconcileRequestAnnotation))
	pushed := time.Now()
	if err := c.Client.Patch(t.Context(), source, request); err != nil {
		t.Fatal(err)
	}
	e2e.Eventually(t, 30*time.Second, func(ctx context.Context) error {
		var greeting corev1.ConfigMap
		if err := c.Client.Get(ctx, client.ObjectKey{Namespace: ns, Name: "site"}, &greeting); err != nil {
			return err
		}
		if got := greeting.Data["greeting"]; got != "hello-again" {
			return fmt.Errorf("greeting is %q", got)
		}
		return nil
	})
	t.Logf("annotation to applied: %s", time.Since(pushed).Round(time.Millisecond))
}

// The address that Receivers listen on answers, so a webhook can be sent.
func TestFluxReceiverAnswers(t *testing.T) {
	t.Parallel()
	c := e2e.Cluster(t)
	resp, err := http.Post(c.Flux.ReceiverURL()+"/hook/unknown", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("unknown hook: got %s, want 404", resp.Status)
	}
}
