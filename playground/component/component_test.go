package component_test

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"tidelock.dev/playground/component"
)

// modules makes a playground/components whose kube builds in a second.
func modules(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "kube", "go.mod"), "module example.org/kube\n\ngo 1.26\n")
	write(t, filepath.Join(dir, "kube", "go.sum"), "")
	write(t, filepath.Join(dir, "kube", "main.go"), "package main\n\nfunc main() { println(\"one\") }\n")
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A steps records what a cache says of its builds.
type steps struct {
	mu   sync.Mutex
	said []component.Step
}

func (s *steps) add(e component.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, e.Step)
}

func (s *steps) count(step component.Step) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, said := range s.said {
		if said == step {
			n++
		}
	}
	return n
}

func ensure(t *testing.T, dir, modules string, s *steps) component.Built {
	t.Helper()
	c := component.Cache{Dir: dir, Modules: modules, Progress: s.add}
	set, err := c.Ensure(t.Context(), component.Kube)
	if err != nil {
		t.Fatal(err)
	}
	return set[component.Kube]
}

func output(t *testing.T, b component.Built) string {
	t.Helper()
	out, err := exec.Command(b.Binary()).CombinedOutput()
	if err != nil {
		t.Fatalf("run %s: %v", b.Binary(), err)
	}
	return strings.TrimSpace(string(out))
}

func TestBuiltOnceAndAgainWhenItChanges(t *testing.T) {
	cache, source := t.TempDir(), modules(t)
	var s steps
	first := ensure(t, cache, source, &s)
	if got := output(t, first); got != "one" {
		t.Errorf("the binary says %q, want one", got)
	}
	if again := ensure(t, cache, source, &s); again != first || s.count(component.Done) != 1 || s.count(component.Found) != 1 {
		t.Errorf("unchanged: got %v after steps %v, want %v found", again, s.said, first)
	}

	write(t, filepath.Join(source, "kube", "main_test.go"), "package main\n")
	write(t, filepath.Join(source, "kube", "README"), "not part of the build\n")
	if again := ensure(t, cache, source, &s); again != first {
		t.Errorf("a file that is not built changed the place to %v", again)
	}

	for _, change := range []struct{ file, text string }{
		{"main.go", "package main\n\nfunc main() { println(\"two\") }\n"},
		{"go.sum", "\n"},
		{"go.mod", "module example.org/kube\n\ngo 1.26.0\n"},
	} {
		before := ensure(t, cache, source, &s)
		write(t, filepath.Join(source, "kube", change.file), change.text)
		if after := ensure(t, cache, source, &s); after == before {
			t.Errorf("a changed %s is built in the old place", change.file)
		} else if got := output(t, after); got != "two" {
			t.Errorf("after a change of %s the binary says %q", change.file, got)
		}
	}
	if got := output(t, first); got != "one" {
		t.Errorf("the old binary now says %q", got)
	}
}

func TestSideBySideBuildsOnce(t *testing.T) {
	cache, source := t.TempDir(), modules(t)
	var s steps
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { ensure(t, cache, source, &s) })
	}
	wg.Wait()
	if built, found := s.count(component.Done), s.count(component.Found); built != 1 || found != 3 {
		t.Errorf("got %d builds and %d found, want 1 and 3; steps %v", built, found, s.said)
	}
}

func TestFailedBuildSaysWhyAndLeavesNothing(t *testing.T) {
	cache, source := t.TempDir(), modules(t)
	write(t, filepath.Join(source, "kube", "main.go"), "package main\n\nfunc main() { undefinedThing() }\n")
	var s steps
	c := component.Cache{Dir: cache, Modules: source, Progress: s.add}
	_, err := c.Ensure(t.Context(), component.Kube)
	if err == nil || !strings.Contains(err.Error(), "undefinedThing") {
		t.Errorf("got %v, want what the compiler said", err)
	}
	if s.count(component.Failed) != 1 {
		t.Errorf("got steps %v, want a failure", s.said)
	}
	if left := folders(t, cache); len(left) != 0 {
		t.Errorf("the cache holds %v", left)
	}
}

// Whatever the user set to loosen go.sum does not reach the build.
func TestUnpinnedDependencyIsRefused(t *testing.T) {
	t.Setenv("GOFLAGS", "-mod=mod")
	t.Setenv("GONOSUMDB", "*")
	cache, source := t.TempDir(), modules(t)
	write(t, filepath.Join(source, "kube", "go.mod"), "module example.org/kube\n\ngo 1.26\n\nrequire golang.org/x/sync v0.24.0\n")
	write(t, filepath.Join(source, "kube", "main.go"), "package main\n\nimport _ \"golang.org/x/sync/errgroup\"\n\nfunc main() {}\n")
	c := component.Cache{Dir: cache, Modules: source}
	if _, err := c.Ensure(t.Context(), component.Kube); err == nil || !strings.Contains(err.Error(), "go.sum") {
		t.Errorf("got %v, want a refusal for want of a go.sum entry", err)
	}
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	cache, source := t.TempDir(), modules(t)
	ctx, cancel := context.WithCancel(t.Context())
	c := component.Cache{Dir: cache, Modules: source, Progress: func(e component.Event) {
		if e.Step == component.Building {
			cancel()
		}
	}}
	if _, err := c.Ensure(ctx, component.Kube); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want a cancellation", err)
	}
	if left := folders(t, cache); len(left) != 0 {
		t.Errorf("the cache holds %v", left)
	}
}

// A release of flux has manifests that its module lacks and its program
// embeds: the module cannot be built as it is, but a copy can.
func TestModuleThatLacksWhatItEmbeds(t *testing.T) {
	const module = "github.com/fluxcd/flux2/v2"
	proxy := filepath.Join(t.TempDir(), "github.com", "fluxcd", "flux2", "v2", "@v")
	goMod := "module " + module + "\n\ngo 1.26\n"
	write(t, filepath.Join(proxy, "v2.7.5.info"), `{"Version":"v2.7.5"}`)
	write(t, filepath.Join(proxy, "v2.7.5.mod"), goMod)
	zipped(t, filepath.Join(proxy, "v2.7.5.zip"), map[string]string{
		module + "@v2.7.5/go.mod": goMod,
		module + "@v2.7.5/cmd/flux/main.go": "package main\n\nimport \"embed\"\n\n//go:embed manifests/*.yaml\nvar files embed.FS\n\n" +
			"var VERSION string\n\nfunc main() { all, _ := files.ReadDir(\"manifests\"); println(VERSION, len(all)) }\n",
	})
	t.Setenv("GOPROXY", "file://"+strings.TrimSuffix(proxy, "/"+module+"/@v"))
	t.Setenv("GOSUMDB", "off")
	t.Setenv("GOMODCACHE", t.TempDir())
	source := modules(t)
	write(t, filepath.Join(source, "clients", "go.mod"), "module example.org/clients\n\ngo 1.26\n\nrequire "+module+" v2.7.5\n")
	sum := exec.Command("go", "mod", "download", "-modcacherw", module) // so that the test can remove it
	sum.Dir = filepath.Join(source, "clients")
	sum.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off")
	if out, err := sum.CombinedOutput(); err != nil {
		t.Fatalf("fill go.sum: %v\n%s", err, out)
	}

	c := component.Cache{Dir: t.TempDir(), Modules: source}
	set, err := c.Ensure(t.Context(), component.Flux)
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, set[component.Flux]); got != "2.7.5 1" {
		t.Errorf("the program says %q, want its version and one manifest", got)
	}
	if entries := folders(t, set[component.Flux].Dir); len(entries) != 0 {
		t.Errorf("beside the program lie %v, want nothing of its source", entries)
	}
}

// zipped writes a zip file of texts by name.
func zipped(t *testing.T, path string, files map[string]string) {
	t.Helper()
	var buffer bytes.Buffer
	z := zip.NewWriter(&buffer)
	for name, text := range files {
		w, err := z.Create(name)
		if err == nil {
			_, err = io.WriteString(w, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, path, buffer.String())
}

func folders(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestFindModules(t *testing.T) {
	here, err := component.FindModules(".")
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(here) != "components" {
		t.Errorf("found %q", here)
	}
	if _, err := component.FindModules(t.TempDir()); err == nil {
		t.Error("found modules outside of a clone")
	}
}

func TestListsOfComponents(t *testing.T) {
	cluster := []component.Name{
		component.Kube, component.Kubectl, component.SourceController, component.KustomizeController, component.HelmController,
		component.NotificationController, component.KWOK,
	}
	if got := component.Cluster(); !slices.Equal(got, cluster) {
		t.Errorf("a cluster needs %v, want %v", got, cluster)
	}
	clients := []component.Name{component.Flux, component.Helm, component.Crane, component.ORAS, component.Cosign}
	if got := component.RegistryClients(); !slices.Equal(got, clients) {
		t.Errorf("clients of registries are %v, want %v", got, clients)
	}
	all := slices.Insert(slices.Clone(cluster), slices.Index(cluster, component.KWOK), append(append([]component.Name{component.ReflectorController, component.Bootstrap}, clients...), component.Conformance, component.VersityGW)...)
	if got := component.All(); !slices.Equal(got, all) {
		t.Errorf("all components are %v, want %v", got, all)
	}
}
