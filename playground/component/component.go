// Package component builds what the playground and its tests run, etcd,
// Kubernetes, KWOK, Flux, and clients of the forge that nobody here wrote, and
// keeps the results in the user's cache folder. It owns the list of components
// and the cache; it starts nothing.
//
// A component is built from one of the modules below playground/components,
// whose go.sum pins every byte. Its place in the cache is named by a hash of
// that module, of the build's flags and of the Go version, so that a fresh
// clone on the same machine builds nothing and a changed version never meets
// an old binary.
package component

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// A Name names a component.
type Name string

const (
	Kube                   Name = "kube" // etcd, kube-apiserver, kube-controller-manager and kube-scheduler in one binary
	Kubectl                Name = "kubectl"
	KWOK                   Name = "kwok"
	SourceController       Name = "source-controller"
	KustomizeController    Name = "kustomize-controller"
	HelmController         Name = "helm-controller"
	NotificationController Name = "notification-controller"
	ReflectorController    Name = "image-reflector-controller"
	Bootstrap              Name = "bootstrap" // the code behind flux bootstrap gitlab
	Flux                   Name = "flux"      // the program
	Helm                   Name = "helm"
	Crane                  Name = "crane"
	ORAS                   Name = "oras"
	Cosign                 Name = "cosign"
	Conformance            Name = "conformance" // the OCI distribution specification's own test
	VersityGW              Name = "versitygw"   // a service that speaks S3
)

// All lists the components in the order in which they are built: those that
// share a module, and so compiled packages, follow each other.
func All() []Name {
	names := make([]Name, len(recipes))
	for i, r := range recipes {
		names[i] = r.name
	}
	return names
}

// Cluster lists the components of a cluster with Flux. The others are clients
// that the tests drive, and a part of Flux that many installations do without.
func Cluster() []Name {
	return slices.DeleteFunc(All(), func(n Name) bool {
		return n == Bootstrap || n == ReflectorController || n == Conformance || n == VersityGW || slices.Contains(RegistryClients(), n)
	})
}

// RegistryClients lists the programs that push to registries and pull from them.
func RegistryClients() []Name { return []Name{Flux, Helm, Crane, ORAS, Cosign} }

// A recipe says how a component is built. Any change of it changes the hash.
type recipe struct {
	name    Name
	module  string   // folder below playground/components
	pkg     string   // what to build
	ldflags []string // beside -s -w
	source  string   // the Go module that files are copied from
	files   []string // patterns below the source module; copied flat, beside the binary
	lacks   []string // files that the source module embeds but does not ship; built empty
}

// kubernetesFlags tell Kubernetes its version; without them kubectl cannot
// parse what the server says of itself.
var kubernetesFlags = []string{
	"-X k8s.io/component-base/version.gitVersion=v1.34.4",
	"-X k8s.io/component-base/version.gitMajor=1",
	"-X k8s.io/component-base/version.gitMinor=34",
}

var recipes = []recipe{
	{name: Kube, module: "kube", pkg: ".", ldflags: kubernetesFlags},
	{name: Kubectl, module: "kube", pkg: "k8s.io/kubernetes/cmd/kubectl", ldflags: kubernetesFlags},
	flux(SourceController, "kube"),
	flux(KustomizeController, "kube"),
	flux(HelmController, "kube"),
	flux(NotificationController, "notification"),
	flux(ReflectorController, "reflector"),
	{name: Bootstrap, module: "bootstrap", pkg: "."},
	{
		name: Flux, module: "clients", pkg: "github.com/fluxcd/flux2/v2/cmd/flux", ldflags: []string{"-X main.VERSION=2.7.5"},
		// What flux install applies. Flux generates it for a release, so it is
		// not part of the module; no other command reads it.
		source: "github.com/fluxcd/flux2/v2", lacks: []string{"cmd/flux/manifests/none.yaml"},
	},
	{name: Helm, module: "clients", pkg: "helm.sh/helm/v3/cmd/helm", ldflags: []string{"-X helm.sh/helm/v3/internal/version.version=v3.19.5"}},
	{name: Crane, module: "oci", pkg: "github.com/google/go-containerregistry/cmd/crane"},
	{name: ORAS, module: "oci", pkg: "oras.land/oras/cmd/oras"},
	{name: Cosign, module: "cosign", pkg: "github.com/sigstore/cosign/v2/cmd/cosign"},
	{name: Conformance, module: "conformance", pkg: "github.com/opencontainers/distribution-spec/conformance"},
	{name: VersityGW, module: "s3", pkg: "github.com/versity/versitygw/cmd/versitygw"},
	{
		name: KWOK, module: "kwok", pkg: "sigs.k8s.io/kwok/cmd/kwok",
		source: "sigs.k8s.io/kwok",
		files: []string{
			"kustomize/stage/node/fast/node-initialize.yaml",
			"kustomize/stage/node/heartbeat/node-heartbeat.yaml",
			"kustomize/stage/pod/fast/pod-*.yaml",
		},
	},
}

func flux(name Name, module string) recipe {
	path := "github.com/fluxcd/" + string(name)
	return recipe{name: name, module: module, pkg: path, source: path, files: []string{"config/crd/bases/*.yaml"}}
}

func recipeOf(name Name) (recipe, error) {
	i := slices.IndexFunc(recipes, func(r recipe) bool { return r.name == name })
	if i < 0 {
		return recipe{}, fmt.Errorf("no component %q", name)
	}
	return recipes[i], nil
}

// A Built component is a folder that holds its binary and the YAML files its
// module ships: Flux's CRDs, KWOK's stages.
type Built struct {
	Name Name
	Dir  string
}

// Binary is the path of the executable.
func (b Built) Binary() string { return filepath.Join(b.Dir, string(b.Name)) }

// Manifests lists the YAML files, sorted.
func (b Built) Manifests() ([]string, error) {
	return filepath.Glob(filepath.Join(b.Dir, "*.yaml"))
}

// hash names a build: module files, recipe, platform and Go version.
func (r recipe) hash(moduleDir, goVersion string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s/%s\n%q\n", goVersion, runtime.GOOS, runtime.GOARCH, r)
	entries, err := os.ReadDir(moduleDir)
	if err != nil {
		return "", fmt.Errorf("read module of %s: %w", r.name, err)
	}
	for _, e := range entries {
		name := e.Name()
		ours := r.pkg == "." && strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
		if name != "go.mod" && name != "go.sum" && !ours {
			continue
		}
		if err := hashFile(h, filepath.Join(moduleDir, name)); err != nil {
			return "", fmt.Errorf("hash module of %s: %w", r.name, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:20], nil
}

func hashFile(h io.Writer, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintf(h, "%s %d\n", filepath.Base(path), info.Size())
	_, err = io.Copy(h, file)
	return err
}
