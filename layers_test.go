package tidelock_test

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// layer orders our packages: a package imports only packages of smaller
// numbers. Every package has a row; a new one needs a noun and a reason.
// Tests may look upward.
var layer = map[string]int{
	"": 0, // the vocabulary

	"internal/agentrpc": 1,
	"internal/artifact": 1,
	"internal/bus":      1,
	"internal/explain":  1,
	"internal/flux":     1,
	"internal/gitrepo":  1,
	"internal/health":   1,
	"internal/limit":    1,
	"internal/registry": 1,
	"internal/render":   1,
	"internal/seal":     1,
	"internal/signing":  1,
	"internal/stage":    1,
	"internal/tunnel":   1,
	"deploy/agent":      1,

	"internal/forge": 2,
	"internal/store": 2,

	"internal/agent":           3,
	"internal/agentserver":     3,
	"internal/backup":          3,
	"internal/delivery":        3,
	"internal/gitlabapi":       3,
	"internal/gitserver":       3,
	"internal/ociserver":       3,
	"internal/rollout":         3,
	"internal/store/storetest": 3,
	"internal/webhook":         3,

	"internal/console": 4,

	"internal/server": 5,

	"internal/servertest": 6,
	"cmd/tidelock":        7,
}

// only names the packages that may import, directly, anything under a prefix.
var only = map[string][]string{
	"github.com/fluxcd/":                     {"internal/flux", "internal/health"},
	"sigs.k8s.io/controller-runtime":         {"internal/flux", "internal/agent"},
	"github.com/nats-io/":                    {"internal/bus"},
	"github.com/hashicorp/yamux":             {"internal/tunnel"},
	"github.com/coder/websocket":             {"internal/tunnel"},
	"modernc.org/sqlite":                     {"internal/store"},
	"github.com/jackc/pgx/":                  {"internal/store", "internal/store/storetest"},
	"github.com/hashicorp/golang-lru/":       {"internal/limit"},
	"github.com/distribution/":               {"internal/registry", "cmd/tidelock"},
	"github.com/go-git/":                     {"internal/artifact", "internal/delivery"}, // its reading of .gitignore
	"github.com/golang-jwt/":                 {"internal/ociserver"},
	"github.com/google/go-containerregistry": {"cmd/tidelock"},
	"database/sql":                           {"internal/store", "internal/store/storetest"},
	"github.com/spf13/cobra":                 {"cmd/tidelock"},
	"gitlab.com/gitlab-org/api/client-go":    {"cmd/tidelock"},
	"helm.sh/helm/":                          {"internal/render"},
	"sigs.k8s.io/kustomize/":                 {"internal/render"},
	"os/exec":                                {"internal/gitrepo", "internal/render", "internal/store/storetest", "internal/servertest", "cmd/tidelock"},
}

// serverSide is what has no business in a cluster.
var serverSide = []string{
	"internal/forge", "internal/store", "internal/bus", "internal/gitrepo", "internal/registry",
	"internal/gitserver", "internal/gitlabapi", "internal/agentserver", "internal/delivery", "internal/ociserver",
	"internal/webhook", "internal/rollout", "internal/explain", "internal/console", "internal/server",
	"github.com/nats-io", "modernc.org/sqlite", "github.com/jackc/pgx",
}

// clusterSide is what has no business in the server.
var clusterSide = []string{
	"internal/flux", "internal/health", "internal/agent", "github.com/fluxcd", "sigs.k8s.io/controller-runtime",
}

// never lists what a package must not reach, however long the way.
var never = map[string][]string{
	"internal/agent":      serverSide,
	"internal/flux":       append([]string{"internal/agent"}, serverSide...),
	"internal/health":     append([]string{"internal/agent"}, serverSide...),
	"internal/tunnel":     serverSide,
	"internal/agentrpc":   append(slices.Clone(clusterSide), serverSide...),
	"internal/server":     clusterSide,
	"internal/servertest": clusterSide,
	"deploy/agent":        append(slices.Clone(clusterSide), serverSide...),
}

const module = "tidelock.dev"

// listed is the part of "go list -json" that the rules need.
type listed struct {
	ImportPath string
	Doc        string
	GoFiles    []string
	Imports    []string
	Deps       []string
}

// name is the package's row: its path below the module.
func (p listed) name() string { return row(p.ImportPath) }

func row(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, module), "/")
}

func ours(path string) bool {
	return path == module || strings.HasPrefix(path, module+"/")
}

// under reports whether path is prefix or below it; a prefix that names one
// of our rows is below the module.
func under(path, prefix string) bool {
	if _, ok := layer[strings.TrimSuffix(prefix, "/")]; ok {
		prefix = module + "/" + prefix
	}
	prefix = strings.TrimSuffix(prefix, "/")
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

func packages(t *testing.T) []listed {
	t.Helper()
	// "go test" caches a result until a file that the test has looked at
	// changes, and it cannot see what "go list" looks at.
	for _, root := range []string{".", "cmd", "deploy", "internal"} {
		noteFiles(t, root)
	}
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Doc,GoFiles,Imports,Deps", "./...")
	out, err := cmd.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) > 0 {
			all = append(all, p)
		}
	}
}

func noteFiles(t *testing.T, root string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && root == "." && path != "." {
			return fs.SkipDir
		}
		if strings.HasSuffix(path, ".go") {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLayers(t *testing.T) {
	for _, p := range packages(t) {
		mine, ok := layer[p.name()]
		if !ok {
			t.Errorf("%s has no row in layers_test.go", p.ImportPath)
			continue
		}
		if p.Doc == "" {
			t.Errorf("%s has no doc comment", p.ImportPath)
		}
		for _, to := range p.Imports {
			switch theirs, known := layer[row(to)]; {
			case ours(to) && !known:
				t.Errorf("%s imports %s, which has no row", p.ImportPath, to)
			case ours(to) && mine <= theirs:
				t.Errorf("%s (layer %d) must not import %s (layer %d)", p.ImportPath, mine, to, theirs)
			case mine == 0 && strings.Contains(strings.Split(to, "/")[0], "."):
				t.Errorf("%s is the vocabulary: it must not import %s", p.ImportPath, to)
			}
			for _, prefix := range slices.Sorted(maps.Keys(only)) {
				if under(to, prefix) && !slices.Contains(only[prefix], p.name()) {
					t.Errorf("%s must not import %s: only %s may", p.ImportPath, to, strings.Join(only[prefix], ", "))
				}
			}
		}
	}
}

func TestNeverReached(t *testing.T) {
	for _, p := range packages(t) {
		for _, dep := range p.Deps {
			if under(dep, module+"/playground") {
				t.Errorf("%s reaches %s: the playground imports us, never the reverse", p.ImportPath, dep)
			}
			for _, prefix := range never[p.name()] {
				if under(dep, prefix) {
					t.Errorf("%s reaches %s, which it must never", p.ImportPath, dep)
				}
			}
		}
	}
}
