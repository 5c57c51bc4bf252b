package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
)

// An Image is one of the forge's registry, pushed to over HTTP with a client
// that knows nothing of the forge.
type Image struct {
	Path string // below the registry's host
	URL  string // as a source names it

	forge  *Forge
	repo   name.Repository
	pusher *remote.Pusher
}

// Image names an image of a project, which is made with the first push.
func (f *Forge) Image(path string) *Image {
	f.t.Helper()
	server, err := url.Parse(f.URL)
	if err != nil {
		f.t.Fatal(err)
	}
	repo, err := name.NewRepository(server.Host + "/" + path)
	if err != nil {
		f.t.Fatal(err)
	}
	transport := f.web.Transport.(*http.Transport).Clone()
	transport.DisableKeepAlives = false
	f.t.Cleanup(transport.CloseIdleConnections)
	pusher, err := remote.NewPusher(remote.WithTransport(transport), remote.WithAuth(&authn.Basic{Username: "root", Password: f.Token}))
	if err != nil {
		f.t.Fatal(err)
	}
	return &Image{Path: path, URL: "oci://" + repo.Name(), forge: f, repo: repo, pusher: pusher}
}

// An Artifact is what can be pushed to an [Image].
type Artifact struct {
	Digest string
	image  v1.Image
}

// Manifests packs files in the form in which Flux takes them. A commit is that
// from which they were made; "" is none.
func (f *Forge) Manifests(files map[string]string, commit string) Artifact {
	f.t.Helper()
	source := artifact.Source{URL: f.URL, Created: time.Unix(0, 0)}
	if commit != "" {
		source.Revision = artifact.Revision("main", tidelock.CommitID(commit))
	}
	made, err := artifact.New(f.pack(files), source)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.artifact(content{made.Config, made.Manifest, static.NewLayer(made.Layer, tidelock.MediaTypeFluxContent)})
}

// Chart packs a Helm chart of a version with one template.
func (f *Forge) Chart(name, version string) Artifact {
	f.t.Helper()
	return f.ChartOf(name, version, map[string]string{
		"templates/configmap.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\ndata:\n  value: {{ .Chart.Version | quote }}\n",
	})
}

// ChartOf packs a Helm chart of a version with the given files, all but its
// Chart.yaml.
func (f *Forge) ChartOf(name, version string, files map[string]string) Artifact {
	f.t.Helper()
	// JSON is YAML, so the same text is the chart's file and its config.
	config := fmt.Appendf(nil, `{"apiVersion":"v2","name":%q,"version":%q}`, name, version)
	all := map[string]string{name + "/Chart.yaml": string(config)}
	for path, text := range files {
		all[name+"/"+path] = text
	}
	packed := f.pack(all)
	const layerType = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": tidelock.MediaTypeManifest,
		"config": map[string]any{"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": tidelock.DigestOf(config), "size": len(config)},
		"layers": []any{map[string]any{"mediaType": layerType, "digest": packed.Digest, "size": len(packed.Content)}},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return f.artifact(content{config, manifest, static.NewLayer(packed.Content, layerType)})
}

func (f *Forge) pack(files map[string]string) artifact.Layer {
	f.t.Helper()
	var list []artifact.File
	for path, text := range files {
		list = append(list, artifact.File{Path: path, Content: []byte(text)})
	}
	layer, err := artifact.Pack(list)
	if err != nil {
		f.t.Fatal(err)
	}
	return layer
}

func (f *Forge) artifact(c content) Artifact {
	f.t.Helper()
	image, err := partial.CompressedToImage(c)
	if err != nil {
		f.t.Fatal(err)
	}
	return Artifact{string(tidelock.DigestOf(c.manifest)), image}
}

// content is an image of one layer, as its bytes are.
type content struct {
	config, manifest []byte
	layer            v1.Layer
}

func (c content) RawConfigFile() ([]byte, error)                         { return c.config, nil }
func (c content) RawManifest() ([]byte, error)                           { return c.manifest, nil }
func (c content) MediaType() (types.MediaType, error)                    { return types.OCIManifestSchema1, nil }
func (c content) LayerByDigest(v1.Hash) (partial.CompressedLayer, error) { return c.layer, nil }

// Push pushes an artifact under a tag, or by its digest alone when the tag is
// "", and returns the digest.
func (i *Image) Push(tag string, a Artifact) (digest string) {
	i.forge.t.Helper()
	if err := i.TryPush(context.Background(), tag, a); err != nil {
		i.forge.t.Fatal(err)
	}
	return a.Digest
}

// TryPush is Push that may fail.
func (i *Image) TryPush(ctx context.Context, tag string, a Artifact) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var ref name.Reference = i.repo.Tag(tag)
	if tag == "" {
		ref = i.repo.Digest(a.Digest)
	}
	if err := i.pusher.Push(ctx, ref, a.image); err != nil {
		return fmt.Errorf("push %s: %w", ref, err)
	}
	return nil
}

// Delete removes a tag.
func (i *Image) Delete(tag string) {
	i.forge.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := i.pusher.Delete(ctx, i.repo.Tag(tag)); err != nil {
		i.forge.t.Fatal(err)
	}
}

// PullSecret makes a Secret with which Flux may pull from the forge.
func (f *Forge) PullSecret(namespace, name, username, password string) {
	f.t.Helper()
	server, err := url.Parse(f.URL)
	if err != nil {
		f.t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{"auths": map[string]any{server.Host: map[string]string{
		"auth": base64.StdEncoding.EncodeToString([]byte(username + ":" + password)),
	}}})
	if err != nil {
		f.t.Fatal(err)
	}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Type:       corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: config},
	}
	if err := f.Cluster.Client.Create(context.Background(), secret); err != nil {
		f.t.Fatal(err)
	}
}

// DeployToken makes a deploy token of a project.
func (p *Project) DeployToken(scopes ...string) (username, token string) {
	p.forge.t.Helper()
	var made struct {
		Username string `json:"username"`
		Token    string `json:"token"`
	}
	p.forge.Call(http.MethodPost, fmt.Sprintf("projects/%d/deploy_tokens", p.ID), map[string]any{"name": "e2e", "scopes": scopes}, &made)
	return made.Username, made.Token
}

// ImageSource makes an OCIRepository that only its Receiver wakes within the
// hour.
func (f *Forge) ImageSource(namespace, name string, i *Image, ref *sourcev1.OCIRepositoryRef, change ...func(*sourcev1.OCIRepository)) *sourcev1.OCIRepository {
	f.t.Helper()
	source := &sourcev1.OCIRepository{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: sourcev1.OCIRepositorySpec{
			URL: i.URL, Reference: ref, CertSecretRef: &meta.LocalObjectReference{Name: "forge"},
			Interval: metav1.Duration{Duration: time.Hour}, Timeout: &metav1.Duration{Duration: 20 * time.Second},
		},
	}
	for _, c := range change {
		c(source)
	}
	if err := f.Cluster.Client.Create(context.Background(), source); err != nil {
		f.t.Fatal(err)
	}
	return source
}

// ChartSource makes a HelmRepository of the folder that an image's path is in,
// and a HelmChart of the image, that only their Receiver wakes within the hour.
func (f *Forge) ChartSource(namespace, name string, i *Image, version string) *sourcev1.HelmChart {
	f.t.Helper()
	folder, chart := i.URL[:strings.LastIndexByte(i.URL, '/')], i.URL[strings.LastIndexByte(i.URL, '/')+1:]
	repository := &sourcev1.HelmRepository{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: sourcev1.HelmRepositorySpec{
			URL: folder, Type: sourcev1.HelmRepositoryTypeOCI, CertSecretRef: &meta.LocalObjectReference{Name: "forge"},
			Interval: metav1.Duration{Duration: time.Hour},
		},
	}
	source := &sourcev1.HelmChart{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
		Spec: sourcev1.HelmChartSpec{
			Chart: chart, Version: version, Interval: metav1.Duration{Duration: time.Hour},
			SourceRef: sourcev1.LocalHelmChartSourceReference{Kind: sourcev1.HelmRepositoryKind, Name: name},
		},
	}
	for _, object := range []client.Object{repository, source} {
		if err := f.Cluster.Client.Create(context.Background(), object); err != nil {
			f.t.Fatal(err)
		}
	}
	return source
}

// WaitRevision waits until a source's artifact has a revision that ends with a
// text: a digest, or the version of a chart.
func (f *Forge) WaitRevision(source sourcev1.Source, suffix string, within time.Duration) {
	f.t.Helper()
	object := source.(interface {
		client.Object
		GetConditions() []metav1.Condition
	})
	Eventually(f.t, within, func(ctx context.Context) error {
		if err := f.Cluster.Client.Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
			return err
		}
		if a := source.GetArtifact(); a == nil || !strings.HasSuffix(a.Revision, suffix) {
			return fmt.Errorf("%s has artifact %v, want %s; conditions %v", object.GetName(), a, suffix, object.GetConditions())
		}
		return nil
	})
}
