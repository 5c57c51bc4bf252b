package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/e2e"
)

// images is a forge whose agent dials through a link, with a namespace, a
// public project and a private one.
type images struct {
	*e2e.Forge
	ns     string
	open   *e2e.Project
	secret *e2e.Project
}

// Pushes of artifacts reach the cluster through real Flux. All parts share one
// forge; each has an image and sources of its own.
func TestArtifactTriggers(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{Link: true})
	w := images{Forge: f, ns: f.Cluster.Namespace(t), open: f.Project("team/open", "public"), secret: f.Project("team/secret", "private")}
	f.Trust(w.ns)
	for _, part := range []struct {
		name string
		run  func(images, *testing.T)
	}{
		{"tag", images.byTag},
		{"semver", images.bySemVer},
		{"digest", images.byDigest},
		{"others", images.others},
		{"chart", images.chart},
		{"suspended", images.suspended},
		{"gone", images.gone},
		{"private", images.private},
		{"renamed", images.renamed},
		{"cut", images.cut},
		{"killed", images.killed},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(w, t) })
	}
}

// source makes an OCIRepository of an image and waits until the agent serves it.
func (w images) source(name string, i *e2e.Image, ref *sourcev1.OCIRepositoryRef, change ...func(*sourcev1.OCIRepository)) *sourcev1.OCIRepository {
	source := w.ImageSource(w.ns, name, i, ref, change...)
	w.WaitServed(w.ns, name)
	return source
}

func (w images) manifests(name, value string) e2e.Artifact {
	return w.Manifests(e2e.ConfigMap(name, value), "")
}

// announced waits for an announcement of an artifact in a state.
func (w images) announced(t *testing.T, p *e2e.Project, source, digest, state string) e2e.Announcement {
	t.Helper()
	var found e2e.Announcement
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		list, err := w.Announcements(ctx, p, url.Values{"source": {w.id(source)}, "digest": {digest}})
		if err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(a e2e.Announcement) bool { return a.State == state })
		if i < 0 {
			return fmt.Errorf("announcements of %s: %+v, want one that is %s", digest, list, state)
		}
		found = list[i]
		return nil
	})
	return found
}

// id completes the id of a source of the world's namespace.
func (w images) id(source string) string {
	kind, name, ok := strings.Cut(source, "/")
	if !ok {
		kind, name = sourcev1.OCIRepositoryKind, source
	}
	return kind + "/" + w.ns + "/" + name
}

// digests lists what was announced of a source, oldest first.
func (w images) digests(t *testing.T, p *e2e.Project, source string) (list []string) {
	t.Helper()
	announcements, err := w.Announcements(t.Context(), p, url.Values{"source": {w.id(source)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range slices.Backward(announcements) {
		list = append(list, a.Digest)
	}
	return list
}

func (w images) patch(t *testing.T, object client.Object, text string) {
	t.Helper()
	if err := w.Cluster.Client.Patch(t.Context(), object, client.RawPatch("application/merge-patch+json", []byte(text))); err != nil {
		t.Fatal(err)
	}
}

// byTag pushes one artifact after another under one tag, and prints how long
// each hop took.
func (w images) byTag(t *testing.T) {
	image := w.Image("team/open/web")
	first := image.Push("latest", w.manifests("web", "0"))
	source := w.source("web", image, nil)
	w.WaitRevision(source, first, soon)
	w.ApplyImage(w.ns, "web")
	waitConfigMap(t, w.Forge, w.ns, "web", "0")

	var pushed, applied []time.Duration
	for i := range 5 {
		value := fmt.Sprint(i + 1)
		artifact := w.manifests("web", value)
		began := time.Now()
		digest := image.Push("latest", artifact)
		pushed = append(pushed, time.Since(began))
		waitConfigMap(t, w.Forge, w.ns, "web", value)
		applied = append(applied, time.Since(began))
		a := w.announced(t, w.open, "web", digest, "converged")
		if a.Via != "receiver" || a.Ref != "refs/tags/latest" || a.Commit != "" {
			t.Errorf("announced %+v, want latest, by the receiver", a)
		}
		since := func(at *time.Time) string {
			if at == nil {
				return "never"
			}
			return at.Sub(*a.AcceptedAt).Round(100 * time.Microsecond).String()
		}
		t.Logf("pushed in %s; after it was accepted: announced %s, called %s, answered %s, handled %s, fetched %s; applied %s after the push began",
			pushed[i].Round(time.Millisecond), since(a.AnnouncedAt), since(a.CalledAt), since(a.AnsweredAt), since(a.HandledAt), since(a.FetchedAt),
			applied[i].Round(time.Millisecond))
	}
	slices.Sort(pushed)
	slices.Sort(applied)
	t.Logf("median: pushed in %s, applied %s after the push began", pushed[2].Round(time.Millisecond), applied[2].Round(time.Millisecond))
}

// bySemVer follows ranges, with a filter and without.
func (w images) bySemVer(t *testing.T) {
	image := w.Image("team/open/api")
	first := image.Push("1.0.0", w.manifests("api", "1.0.0"))
	candidate := image.Push("1.1.0-rc.1", w.manifests("api", "1.1.0-rc.1"))
	releases := w.source("api-releases", image, &sourcev1.OCIRepositoryRef{SemVer: "1.x"})
	candidates := w.source("api-candidates", image, &sourcev1.OCIRepositoryRef{SemVer: ">=1.0.0-0", SemverFilter: ".*-rc.*"})
	w.WaitRevision(releases, first, soon)
	w.WaitRevision(candidates, candidate, soon)

	image.Push("2.0.0", w.manifests("api", "2.0.0"))
	image.Push("0.9.0", w.manifests("api", "0.9.0"))
	release := image.Push("1.1.0", w.manifests("api", "1.1.0"))
	w.WaitRevision(releases, "1.1.0@"+release, soon)
	next := image.Push("1.2.0-rc.1", w.manifests("api", "1.2.0-rc.1"))
	w.WaitRevision(candidates, "1.2.0-rc.1@"+next, soon)
	w.announced(t, w.open, "api-releases", release, "converged")
	w.announced(t, w.open, "api-candidates", next, "converged")
	for source, want := range map[string]string{"api-releases": release, "api-candidates": next} {
		if got := w.digests(t, w.open, source); len(got) == 0 || slices.ContainsFunc(got, func(d string) bool { return d != want && d != first && d != candidate }) {
			t.Errorf("%s was told of %v, want %s alone", source, got, want)
		}
	}
}

// byDigest follows one artifact that arrives later than the source, and is
// told of nothing else, ever.
func (w images) byDigest(t *testing.T) {
	image := w.Image("team/open/pinned")
	image.Push("latest", w.manifests("pinned", "before"))
	awaited := w.manifests("pinned", "awaited")
	source := w.source("pinned", image, &sourcev1.OCIRepositoryRef{Digest: awaited.Digest})
	image.Push("latest", w.manifests("pinned", "other"))
	image.Push("", awaited) // without any tag
	w.WaitRevision(source, awaited.Digest, soon)
	w.announced(t, w.open, "pinned", awaited.Digest, "converged")
	image.Push("latest", awaited) // nothing new
	image.Push("latest", w.manifests("pinned", "after"))
	control := w.control(t)
	control()
	if got := w.digests(t, w.open, "pinned"); !slices.Equal(got, []string{awaited.Digest}) {
		t.Errorf("the source was told of %v, want %s once", got, awaited.Digest)
	}
}

// control returns what makes sure that the agent has been told of all pushes
// so far: a push to another image of the project arrives.
func (w images) control(t *testing.T) (push func()) {
	t.Helper()
	name := strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")) + "-control"
	image := w.Image("team/open/control/" + name)
	source := w.source(name, image, nil)
	return func() {
		t.Helper()
		digest := image.Push("latest", w.manifests(name, time.Now().String()))
		w.WaitRevision(source, digest, soon)
	}
}

// others pushes what no source follows.
func (w images) others(t *testing.T) {
	image := w.Image("team/open/quiet")
	first := image.Push("latest", w.manifests("quiet", "one"))
	source := w.source("quiet", image, nil)
	w.WaitRevision(source, first, soon)
	control := w.control(t)
	before := w.digests(t, w.open, "quiet")
	requested := source.Annotations[meta.ReconcileRequestAnnotation]

	image.Push("nightly", w.manifests("quiet", "two"))
	image.Push("latest-2", w.manifests("quiet", "one")) // another tag of the same
	w.Image("team/open/quiet/below").Push("latest", w.manifests("quiet", "three"))
	w.Image("team/open").Push("latest", w.manifests("quiet", "four"))
	w.open.Push("latest", e2e.ConfigMap("quiet", "five")) // a branch of that name
	control()
	if got := w.digests(t, w.open, "quiet"); !slices.Equal(got, before) {
		t.Errorf("the source was told of %v, before of %v", got, before)
	}
	w.WaitRevision(source, first, soon)
	if got := source.Annotations[meta.ReconcileRequestAnnotation]; got != requested {
		t.Errorf("the source was woken at %q, before at %q", got, requested)
	}
}

// chart follows the newest version of a chart.
func (w images) chart(t *testing.T) {
	image := w.Image("team/open/charts/podinfo")
	image.Push("1.0.0", w.Chart("podinfo", "1.0.0"))
	source := w.ChartSource(w.ns, "podinfo", image, "^1.0.0")
	w.WaitRevision(source, "1.0.0", soon)
	w.WaitServed(w.ns, "podinfo")

	began := time.Now()
	image.Push("2.0.0", w.Chart("podinfo", "2.0.0")) // out of range
	digest := image.Push("1.1.0", w.Chart("podinfo", "1.1.0"))
	w.WaitRevision(source, "1.1.0", soon)
	t.Logf("fetched %s after the push began", time.Since(began).Round(time.Millisecond))
	a := w.announced(t, w.open, "HelmChart/podinfo", digest, "converged")
	if a.Ref != "refs/tags/1.1.0" {
		t.Errorf("announced %+v, want version 1.1.0", a)
	}
}

func (w images) suspended(t *testing.T) {
	image := w.Image("team/open/sleepy")
	first := image.Push("latest", w.manifests("sleepy", "one"))
	source := w.source("sleepy", image, nil)
	w.WaitRevision(source, first, soon)
	w.patch(t, source, `{"spec":{"suspend":true}}`)
	second := image.Push("latest", w.manifests("sleepy", "two"))
	w.announced(t, w.open, "sleepy", second, "parked")
	w.patch(t, source, `{"spec":{"suspend":false}}`)
	w.WaitRevision(source, second, soon)
	w.announced(t, w.open, "sleepy", second, "converged")
}

// gone removes the tag that a source follows, and makes it again.
func (w images) gone(t *testing.T) {
	image := w.Image("team/open/fleeting")
	first := image.Push("latest", w.manifests("fleeting", "one"))
	source := w.source("fleeting", image, nil)
	w.WaitRevision(source, first, soon)
	image.Delete("latest")
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		list, err := w.Announcements(ctx, w.open, url.Values{"source": {w.id("fleeting")}})
		if err == nil && (len(list) == 0 || list[0].State != "gone" || list[0].Digest != "") {
			err = fmt.Errorf("announced %+v, want gone at last", list)
		}
		return err
	})
	second := image.Push("latest", w.manifests("fleeting", "two"))
	w.WaitRevision(source, second, soon)
	w.announced(t, w.open, "fleeting", second, "converged")
}

// private follows an image of a private project from the grant to its
// revocation. Before, it looks like one that does not exist.
func (w images) private(t *testing.T) {
	image := w.Image("team/secret/app")
	first := image.Push("latest", w.manifests("secret", "one"))
	username, token := w.secret.DeployToken("read_registry")
	w.PullSecret(w.ns, "pull", username, token)
	pull := func(s *sourcev1.OCIRepository) { s.Spec.SecretRef = &meta.LocalObjectReference{Name: "pull"} }
	source := w.ImageSource(w.ns, "secret", image, nil, pull)
	w.WaitRevision(source, first, soon) // Flux may, the agent may not
	w.ImageSource(w.ns, "nowhere", w.Image("team/nowhere/app"), nil, pull)
	control := w.control(t)

	image.Push("latest", w.manifests("secret", "two"))
	control()
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		hidden, err := w.shown(ctx, "secret")
		if err != nil {
			return err
		}
		absent, err := w.shown(ctx, "nowhere")
		if err != nil {
			return err
		}
		if hidden.State != "not served" || hidden.Message != absent.Message || hidden.State != absent.State || hidden.ProjectID != 0 || hidden.Digest != "" || hidden.Ref != "" {
			return fmt.Errorf("a private project is shown as %+v, and none as %+v", hidden, absent)
		}
		return nil
	})
	if n, err := w.Cluster.ReadyReceivers(t.Context(), w.ns, "secret"); err != nil || n != 0 {
		t.Errorf("receivers of a project that was not granted: got %d, %v; want none", n, err)
	}
	if got := w.digests(t, w.secret, "secret"); len(got) != 0 {
		t.Errorf("announced %v of a project that was not granted", got)
	}

	grant := fmt.Sprintf("projects/%d/agent_grants", w.secret.ID)
	w.Call(http.MethodPost, grant, map[string]any{"agent_id": w.AgentID}, nil)
	second := w.manifests("secret", "two").Digest
	w.WaitRevision(source, second, soon) // what was missed is announced at once
	w.WaitServed(w.ns, "secret")
	third := image.Push("latest", w.manifests("secret", "three"))
	w.WaitRevision(source, third, soon)
	w.announced(t, w.secret, "secret", third, "converged")

	w.Call(http.MethodDelete, fmt.Sprintf("%s/%d", grant, w.AgentID), nil, nil)
	e2e.Eventually(t, 5*time.Second, func(ctx context.Context) error {
		s, err := w.shown(ctx, "secret")
		if err == nil && s.State != "not served" {
			err = fmt.Errorf("shown as %+v after the grant was taken back", s)
		}
		return err
	})
	before := w.digests(t, w.secret, "secret")
	image.Push("latest", w.manifests("secret", "four"))
	control()
	if got := w.digests(t, w.secret, "secret"); !slices.Equal(got, before) {
		t.Errorf("announced %v after the grant was taken back, before %v", got, before)
	}
}

// A shownSource is how the forge says things stand with a source.
type shownSource struct {
	Source    string `json:"source"`
	ProjectID int64  `json:"project_id"`
	Ref       string `json:"ref"`
	Digest    string `json:"digest"`
	State     string `json:"state"`
	Message   string `json:"message"`
}

func (w images) shown(ctx context.Context, source string) (shownSource, error) {
	var list []shownSource
	path := fmt.Sprintf("projects/%d/cluster_agents/%d/sources?per_page=100", w.AgentProject().ID, w.AgentID)
	if err := w.API(ctx, http.MethodGet, path, nil, &list); err != nil {
		return shownSource{}, err
	}
	i := slices.IndexFunc(list, func(s shownSource) bool { return s.Source == w.id(source) })
	if i < 0 {
		return shownSource{}, errors.New("the forge knows nothing of " + source)
	}
	return list[i], nil
}

// renamed follows a project by its old path.
func (w images) renamed(t *testing.T) {
	project := w.Project("team/before", "public")
	image := w.Image("team/before/app")
	first := image.Push("latest", w.manifests("renamed", "one"))
	source := w.source("renamed", image, nil)
	w.WaitRevision(source, first, soon)
	w.Call(http.MethodPut, fmt.Sprintf("projects/%d", project.ID), map[string]any{"path": "after"}, nil)
	second := w.Image("team/after/app").Push("latest", w.manifests("renamed", "two"))
	w.WaitRevision(source, second, soon)
	w.announced(t, project, "renamed", second, "converged")
}

// cut breaks the agent's connection; what was pushed meanwhile arrives with
// the next one, and of many pushes only the last.
func (w images) cut(t *testing.T) {
	image := w.Image("team/open/remote")
	first := image.Push("latest", w.manifests("remote", "one"))
	source := w.source("remote", image, nil)
	w.WaitRevision(source, first, soon)
	w.Link.Cut()
	image.Push("latest", w.manifests("remote", "two"))
	last := image.Push("latest", w.manifests("remote", "three"))
	w.Link.Mend()
	w.WaitRevision(source, last, soon)
	w.announced(t, w.open, "remote", last, "converged")
}

// killed ends the server right after a push was accepted.
func (w images) killed(t *testing.T) {
	image := w.Image("team/open/robust")
	first := image.Push("latest", w.manifests("robust", "one"))
	source := w.source("robust", image, nil)
	w.WaitRevision(source, first, soon)
	second := image.Push("latest", w.manifests("robust", "two"))
	w.Kill(e2e.Server)
	w.Restart(e2e.Server)
	w.WaitRevision(source, second, soon)
	w.announced(t, w.open, "robust", second, "converged")
}
