package delivery_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/servertest"
)

// A repository is a delivery repository on a real server.
type repository struct {
	t *testing.T
	*servertest.Server
	*servertest.Project
}

func newRepository(t *testing.T) repository {
	s := servertest.Start(t)
	return repository{t, s, s.Project("team/delivery", tidelock.Private)}
}

type build struct {
	Ref, Commit, Application, Status, Image, Digest, Layer string
	PushID                                                 int64 `json:"push_id"`
	Tags                                                   []string
	Findings                                               []struct {
		Check, Level, Path, Message string
		Line                        int
	}
}

// builds lists what came of a commit under a ref, once it was delivered.
func (r repository) builds(ref tidelock.RefName, commit tidelock.CommitID, want int) []build {
	r.t.Helper()
	var got []build
	r.Eventually(fmt.Sprintf("%d builds of %s at %s", want, ref, commit), func() bool {
		r.Call(r.Token, http.MethodGet, fmt.Sprintf("projects/%d/deliveries?per_page=100&ref=%s&commit=%s", r.ID, url.QueryEscape(string(ref)), commit), nil, &got)
		return len(got) >= want
	})
	if len(got) != want {
		r.t.Fatalf("got %d builds, want %d: %+v", len(got), want, got)
	}
	slices.SortFunc(got, func(a, b build) int { return strings.Compare(a.Application, b.Application) })
	return got
}

type manifest struct {
	Config, Layer struct{ Digest string }
	Layers        []struct{ MediaType, Digest string }
	Annotations   map[string]string
}

// manifest reads what a tag points at; nil when it points at nothing.
func (r repository) manifest(image, tag string) (m *manifest, digest string) {
	r.t.Helper()
	response, err := r.OCI("root", r.Token).Do(r.t.Context(), http.MethodGet, "team/delivery/"+image+"/manifests/"+tag, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	if response.Status == http.StatusNotFound {
		return nil, ""
	}
	if response.Status != http.StatusOK {
		r.t.Fatalf("GET %s:%s: %d %s", image, tag, response.Status, response.Body)
	}
	m = &manifest{}
	if err := json.Unmarshal([]byte(response.Body), m); err != nil {
		r.t.Fatal(err)
	}
	return m, response.Header.Get("Docker-Content-Digest")
}

// statuses are those of a commit by name: "state: description".
func (r repository) statuses(commit tidelock.CommitID) map[string]string {
	r.t.Helper()
	var list []struct{ Name, Status, Description string }
	r.Call(r.Token, http.MethodGet, fmt.Sprintf("projects/%d/repository/commits/%s/statuses?per_page=100", r.ID, commit), nil, &list)
	found := map[string]string{}
	for _, s := range list {
		found[s.Name] = s.Status + ": " + s.Description
	}
	return found
}

func settings(apps ...string) string {
	var b strings.Builder
	b.WriteString("applications:\n")
	for _, app := range apps {
		fmt.Fprintf(&b, "- name: %s\n  path: apps/%s\n", app, app)
	}
	return b.String()
}

const main = tidelock.RefName("refs/heads/main")

func TestOnlyWhatChangedIsPackaged(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	first := r.Push("main", ".tidelock/delivery.yaml", settings("cart", "shop"), "apps/cart/a.yaml", configMap, "apps/shop/a.yaml", configMap, "README.md", "one")
	builds := r.builds(main, first, 2)
	shop := builds[1]
	if shop.Status != "success" || shop.Image != "team/delivery/shop" || !slices.Equal(shop.Tags, []string{"latest", "main", string(first[:8])}) {
		t.Errorf("got %+v", shop)
	}
	m, digest := r.manifest("shop", "latest")
	if digest != shop.Digest || m.Layers[0].Digest != shop.Layer || m.Layers[0].MediaType != tidelock.MediaTypeFluxContent {
		t.Errorf("got digest %s and %+v, want %s and layer %s", digest, m, shop.Digest, shop.Layer)
	}
	var commit struct {
		Created string `json:"committed_date"`
	}
	r.Call(r.Token, http.MethodGet, fmt.Sprintf("projects/%d/repository/commits/%s", r.ID, first), nil, &commit)
	for name, want := range map[string]string{
		tidelock.AnnotationRevision: "main@sha1:" + string(first),
		tidelock.AnnotationSource:   r.URL + "/team/delivery",
	} {
		if m.Annotations[name] != want {
			t.Errorf("got %s %q, want %q", name, m.Annotations[name], want)
		}
	}
	if m.Annotations[tidelock.AnnotationCreated][:10] != commit.Created[:10] {
		t.Errorf("got created %q of a commit at %q", m.Annotations[tidelock.AnnotationCreated], commit.Created)
	}
	if got := r.statuses(first)["delivery/shop"]; !strings.HasPrefix(got, "success: "+shop.Digest+" as latest, main") {
		t.Errorf("got status %q", got)
	}
	if m, _ := r.manifest("shop", strings.Replace(shop.Digest, ":", "-", 1)+".sig"); m == nil {
		t.Error("the artifact is not signed")
	}

	// Another file: nothing is packaged.
	second := r.Push("main", "README.md", "two")
	// One application: it alone is.
	third := r.Push("main", "apps/shop/a.yaml", strings.ReplaceAll(configMap, "value", "new"))
	changed := r.builds(main, third, 1)[0]
	if changed.Application != "shop" || changed.Digest == shop.Digest {
		t.Errorf("got %+v", changed)
	}
	if got := r.statuses(second); len(got) > 0 {
		t.Errorf("got statuses %v of a commit that changed no application", got)
	}
	if _, digest := r.manifest("cart", "latest"); digest != builds[0].Digest {
		t.Errorf("cart moved to %s", digest)
	}

	// Back again: the same files are the same layer, of another commit.
	fourth := r.Push("main", "apps/shop/a.yaml", configMap)
	back := r.builds(main, fourth, 1)[0]
	if back.Layer != shop.Layer || back.Digest == shop.Digest {
		t.Errorf("got %+v after %+v", back, shop)
	}

	// Another check policy looks at the files again, but publishes nothing.
	fifth := r.Push("main", ".tidelock/delivery.yaml", settings("cart", "shop")+"  checks: {schema: warn}\n")
	skipped := r.builds(main, fifth, 1)[0]
	if skipped.Status != "skipped" || skipped.Digest != back.Digest {
		t.Errorf("got %+v", skipped)
	}
	if got := r.statuses(fifth)["delivery/shop"]; got != "success: nothing new, still "+back.Digest {
		t.Errorf("got status %q", got)
	}
}

func TestBranchesAndReleases(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	text := "branches: [main, 'feature/*']\ntrigger: false\n" + settings("cart", "shop")
	first := r.Push("main", ".tidelock/delivery.yaml", text, "apps/cart/a.yaml", configMap, "apps/shop/a.yaml", configMap)
	state := r.builds(main, first, 2)[1]
	if !slices.Equal(state.Tags, []string{string(first[:8])}) {
		t.Errorf("got tags %q of a default branch that only keeps state", state.Tags)
	}
	feature := r.Push("feature/new", "apps/shop/a.yaml", strings.ReplaceAll(configMap, "value", "new"))
	onFeature := r.builds("refs/heads/feature/new", feature, 2)[1]
	if !slices.Equal(onFeature.Tags, []string{"feature-new", string(feature[:8])}) {
		t.Errorf("got tags %q of a branch", onFeature.Tags)
	}
	other := r.Push("other", "apps/shop/a.yaml", strings.ReplaceAll(configMap, "value", "other"))

	// A release of one application is the artifact that the branch got.
	r.Project.MustGit("tag", "shop/v1.2.3", string(first))
	r.Project.MustGit("tag", "v2.0.0", string(other))
	r.Project.MustGit("tag", "not-a-version", string(other))
	r.Project.MustGit("push", "--quiet", "origin", "shop/v1.2.3", "v2.0.0", "not-a-version")
	released := r.builds("refs/tags/shop/v1.2.3", first, 1)[0]
	if released.Digest != state.Digest || !slices.Equal(released.Tags, []string{"v1.2.3"}) {
		t.Errorf("got %+v, want the artifact %s", released, state.Digest)
	}
	if _, digest := r.manifest("shop", "v1.2.3"); digest != state.Digest {
		t.Errorf("shop:v1.2.3 is %s", digest)
	}
	all := r.builds("refs/tags/v2.0.0", other, 2)
	if all[0].Digest == "" || all[1].Status != "success" || all[1].Digest == state.Digest {
		t.Errorf("got %+v", all)
	}
	if m, _ := r.manifest("shop", "v2.0.0"); m.Annotations[tidelock.AnnotationRevision] != "v2.0.0@sha1:"+string(other) {
		t.Errorf("got revision %q", m.Annotations[tidelock.AnnotationRevision])
	}
	var none []build
	r.Call(r.Token, http.MethodGet, fmt.Sprintf("projects/%d/deliveries?commit=%s&ref=refs/heads/other", r.ID, other), nil, &none)
	if len(none) > 0 {
		t.Errorf("got %+v of a branch that is not delivered", none)
	}

	// A tag that moves is refused where it was released, and shown.
	r.Project.MustGit("tag", "--force", "shop/v1.2.3", string(other))
	r.Project.MustGit("push", "--quiet", "--force", "origin", "shop/v1.2.3")
	moved := r.builds("refs/tags/shop/v1.2.3", other, 1)[0]
	if moved.Status != "failed" || len(moved.Findings) == 0 || moved.Digest != "" {
		t.Errorf("got %+v", moved)
	}
	if _, digest := r.manifest("shop", "v1.2.3"); digest != state.Digest {
		t.Errorf("shop:v1.2.3 moved to %s", digest)
	}
	if got := r.statuses(other)["delivery/shop"]; !strings.HasPrefix(got, "failed: ") || !strings.Contains(got, "v1.2.3") {
		t.Errorf("got status %q", got)
	}
}

// A branch that is named almost like another one does not move its tag.
func TestBranchesKeepTheirTags(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	text := "branches: ['*']\n" + settings("shop")
	first := r.Push("main", ".tidelock/delivery.yaml", text, "apps/shop/a.yaml", configMap)
	mainBuild := r.builds(main, first, 1)[0]
	for _, name := range []string{"+main", "@main", strings.Repeat("a", 129)} {
		r.Project.MustGit("push", "--quiet", "origin", string(first)+":refs/heads/"+name)
		got := r.builds(tidelock.RefName("refs/heads/"+name), first, 1)[0]
		if !slices.Equal(got.Tags, []string{string(first[:8])}) {
			t.Errorf("branch %q: got tags %q", name, got.Tags)
		}
	}
	if _, digest := r.manifest("shop", "main"); digest != mainBuild.Digest {
		t.Errorf("shop:main moved to %s", digest)
	}
}

func TestMistakesAreShownAndNothingIsPublished(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	first := r.Push("main", ".tidelock/delivery.yaml", settings("cart", "shop"), "apps/cart/a.yaml", configMap, "apps/shop/a.yaml", configMap)
	before := r.builds(main, first, 2)

	broken := r.Push("main", ".tidelock/delivery.yaml", settings("cart", "shop")+"imagine: true\n", "apps/shop/a.yaml", strings.ReplaceAll(configMap, "value", "new"))
	b := r.builds(main, broken, 1)[0]
	if b.PushID == 0 {
		t.Errorf("got no push of %+v", b)
	}
	if b.Status != "failed" || b.Application != "" || b.Findings[0].Line != 6 || b.Findings[0].Path != ".tidelock/delivery.yaml" {
		t.Errorf("got %+v", b)
	}
	if got := r.statuses(broken); len(got) != 1 || got["delivery"] != `failed: .tidelock/delivery.yaml:6: unknown key "imagine"` {
		t.Errorf("got statuses %q", got)
	}

	// One application is refused, the other is not.
	if err := os.Symlink("/etc/passwd", filepath.Join(r.Dir(), "apps/cart/link")); err != nil {
		t.Fatal(err)
	}
	second := r.Push("main", ".tidelock/delivery.yaml", settings("cart", "shop"), "apps/cart/b.yaml", "a: [\n")
	mended := r.builds(main, second, 3)
	if mended[0].Application != "" || mended[0].Status != "success" {
		t.Errorf("got %+v of delivery.yaml after it was mended", mended[0])
	}
	if cart := mended[1]; cart.Status != "failed" || cart.Digest != "" || len(cart.Tags) > 0 || cart.Findings[0].Path != "apps/cart/link" {
		t.Errorf("got %+v", cart)
	}
	if mended[2].Status != "success" {
		t.Errorf("got %+v", mended[2])
	}
	if got := r.statuses(second)["delivery/cart"]; !strings.HasPrefix(got, "failed: apps/cart/link: a symbolic link cannot be packaged") {
		t.Errorf("got status %q", got)
	}
	if _, digest := r.manifest("cart", "latest"); digest != before[0].Digest {
		t.Errorf("cart moved to %s", digest)
	}
	if m, _ := r.manifest("cart", string(second[:8])); m != nil {
		t.Errorf("half of cart was published: %+v", m)
	}
}

func TestBuilders(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	text := "applications:\n- {name: shop, path: apps/shop, build: kustomize}\n- {name: cart, path: apps/cart, build: helm, helm: {values: [../../env/cart.yaml]}}\n"
	first := r.Push("main", ".tidelock/delivery.yaml", text,
		"apps/shop/kustomization.yaml", "resources: [../../base]\nnamePrefix: shop-\n",
		"base/kustomization.yaml", "resources: [a.yaml]\n", "base/a.yaml", configMap,
		"apps/cart/Chart.yaml", "apiVersion: v2\nname: cart\nversion: 1.0.0\n",
		"apps/cart/templates/a.yaml", configMap+"  size: {{ .Values.size }}\n", "env/cart.yaml", "size: large\n")
	for _, b := range r.builds(main, first, 2) {
		if b.Status != "success" {
			t.Errorf("got %+v", b)
		}
	}
	// What lies outside the application's path is watched.
	second := r.Push("main", "base/a.yaml", strings.ReplaceAll(configMap, "value", "new"))
	if b := r.builds(main, second, 1)[0]; b.Application != "shop" || b.Status != "success" {
		t.Errorf("got %+v", b)
	}
	third := r.Push("main", "env/cart.yaml", "size: small\n")
	if b := r.builds(main, third, 1)[0]; b.Application != "cart" || b.Status != "success" {
		t.Errorf("got %+v", b)
	}
	// A file that nothing uses is looked at, and found to change nothing.
	fourth := r.Push("main", "env/unused.yaml", "a: b\n")
	if b := r.builds(main, fourth, 1)[0]; b.Application != "cart" || b.Status != "skipped" {
		t.Errorf("got %+v", b)
	}
}

// What was said of a commit whose packaging was cut off does not stay said
// when a newer one takes its place.
func TestNoCommitIsRunningForEver(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	r.Push("main", ".tidelock/delivery.yaml", settings("shop"), "apps/shop/a.yaml", configMap)
	r.builds(main, r.Project.Head(), 1)
	store := filepath.Join(r.DataDir, "registry")
	breakStore := func() {
		if err := os.Rename(store, store+".away"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(store, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mendStore := func() {
		if err := os.Remove(store); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(store+".away", store); err != nil {
			t.Fatal(err)
		}
	}
	pushCut := func(text string) tidelock.CommitID {
		commit := r.Push("main", "apps/shop/a.yaml", strings.ReplaceAll(configMap, "value", text))
		r.Eventually("a status of "+text, func() bool { return strings.HasPrefix(r.statuses(commit)["delivery/shop"], "running") })
		return commit
	}
	breakStore()
	second := pushCut("second")
	third := pushCut("third")
	r.Kill()
	mendStore()
	r.Start()
	breakStore() // it has to find out by itself what was left
	fourth := pushCut("fourth")
	mendStore()
	r.builds(main, fourth, 1)
	for name, commit := range map[string]tidelock.CommitID{"second": second, "third": third} {
		if got := r.statuses(commit)["delivery/shop"]; !strings.HasPrefix(got, "canceled: ") && !strings.HasPrefix(got, "success: ") {
			t.Errorf("%s: got status %q", name, got)
		}
	}
}

func TestWhatWasPushedWhileNobodyListenedIsDelivered(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	r.Push("main", ".tidelock/delivery.yaml", settings("shop"), "apps/shop/a.yaml", configMap)
	r.Kill()
	// A commit that reaches the disk while the server is down.
	work := r.Dir()
	if err := os.WriteFile(filepath.Join(work, "apps/shop/a.yaml"), []byte(strings.ReplaceAll(configMap, "value", "late")), 0o644); err != nil {
		t.Fatal(err)
	}
	r.Project.MustGit("commit", "--quiet", "--all", "--message", "late")
	bare, err := filepath.Glob(filepath.Join(r.DataDir, "repositories", "*", "*.git"))
	if err != nil || len(bare) != 1 {
		bare, _ = filepath.Glob(filepath.Join(r.DataDir, "repositories", "*"))
	}
	if out, err := exec.CommandContext(t.Context(), "git", "-C", work, "push", "--quiet", bare[0], "main").CombinedOutput(); err != nil {
		t.Fatalf("push: %v\n%s", err, out)
	}
	late := tidelock.CommitID(strings.TrimSpace(r.Project.MustGit("rev-parse", "HEAD")))
	r.Start()
	if b := r.builds(main, late, 1)[0]; b.Status != "success" {
		t.Errorf("got %+v", b)
	}
}
