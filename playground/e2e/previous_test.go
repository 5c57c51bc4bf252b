package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tidelock.dev/playground/e2e"
)

// An agent of the previous build works with this server, and the reverse.
func TestPreviousBuild(t *testing.T) {
	t.Parallel()
	previous := previousBinary(t)
	for name, config := range map[string]e2e.ForgeConfig{
		"agent":  {AgentBinary: previous},
		"server": {ServerBinary: previous},
	} {
		t.Run(name, func(t *testing.T) {
			f := e2e.StartForge(t, config)
			ns := f.Cluster.Namespace(t)
			p := f.Project("team/site", "public")
			first := p.Push("main", e2e.ConfigMap("site", "one"))
			f.Trust(ns)
			f.Source(ns, "site", p, e2e.Branch("main"))
			f.WaitFetched(ns, "site", first, soon)
			f.WaitServed(ns, "site")
			second := p.Push("main", e2e.ConfigMap("site", "two"))
			f.WaitFetched(ns, "site", second, soon)
			waitAnnouncement(t, f, p, second, "converged")
			f.Kill(e2e.Server)
			f.Restart(e2e.Server)
			third := p.Push("main", e2e.ConfigMap("site", "three"))
			f.WaitFetched(ns, "site", third, soon)
		})
	}
}

var previous struct {
	once sync.Once
	path string
	skip string
	err  error
}

// previousBinary builds the commit that the file previous-build names, which is
// moved forward with each release.
func previousBinary(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("TIDELOCK_PREVIOUS"); path != "" {
		return path
	}
	dir := e2e.Cluster(t).Dir
	previous.once.Do(func() {
		text, err := os.ReadFile("previous-build")
		if err != nil {
			previous.err = err
			return
		}
		commit := strings.TrimSpace(string(text))
		if exec.Command("git", "cat-file", "-e", commit+"^{commit}").Run() != nil {
			previous.skip = "this clone does not have commit " + commit + "; set TIDELOCK_PREVIOUS to a binary of it"
			return
		}
		tree := filepath.Join(dir, "previous")
		if previous.err = os.Mkdir(tree, 0o700); previous.err != nil {
			return
		}
		archive := exec.Command("sh", "-c", `git -C ../.. archive "$0" | tar -x -C "$1"`, commit, tree)
		if out, err := archive.CombinedOutput(); err != nil {
			t.Logf("%s", out)
			previous.err = err
			return
		}
		previous.path = filepath.Join(dir, "tidelock-previous")
		previous.err = e2e.BuildTidelock(tree, previous.path)
	})
	if previous.skip != "" {
		t.Skip(previous.skip)
	}
	if previous.err != nil {
		t.Fatal(previous.err)
	}
	return previous.path
}
