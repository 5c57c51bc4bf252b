package agentserver_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/agentrpc"
	"tidelock.dev/internal/agentserver"
	"tidelock.dev/internal/forge"
)

const configPath = ".gitlab/agents/a/config.yaml"

// A watch is one configuration stream.
type watch struct {
	t     *testing.T
	heard chan *agentrpc.WatchResponse
}

func (c *client) watch() *watch {
	c.t.Helper()
	stream, err := c.configs.Watch(c.t.Context(), &agentrpc.WatchRequest{})
	check(c.t, err)
	w := &watch{t: c.t, heard: make(chan *agentrpc.WatchResponse, 100)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for stream.Receive() {
			w.heard <- stream.Msg()
		}
	}()
	c.t.Cleanup(func() {
		c.tunnel.Close("test over")
		<-done
		stream.Close()
	})
	return w
}

func (w *watch) next() *agentrpc.WatchResponse {
	w.t.Helper()
	select {
	case m := <-w.heard:
		return m
	case <-time.After(deadline):
		w.t.Fatalf("heard nothing for %v", deadline)
		return nil
	}
}

func TestConfiguration(t *testing.T) {
	w := newWorld(t)
	r := w.register("a")
	one := w.connect(r, "one").watch()
	if m := one.next(); m.GetYaml() != "" || m.GetError() != "" || m.GetCommit() != "" {
		t.Errorf("without a file: %v", m)
	}
	const good = "flux:\n  selector: a=b\n"
	commit := w.push(r.project, "main", configPath, good)
	m := one.next()
	if m.GetYaml() != good || m.GetCommit() != string(commit) || m.GetError() != "" {
		t.Errorf("heard %v", m)
	}

	// Not the file.
	w.push(r.project, "main", "README.md", "hello")
	w.push(r.project, "other", configPath, "flux: {}\n")

	// A bad file leaves the last good one in force, also for whoever comes now.
	bad := w.push(r.project, "main", configPath, "flux:\n  selectr: a=b\n")
	two := w.connect(r, "two").watch()
	for _, watch := range []*watch{one, two} {
		m := watch.next()
		if m.GetYaml() != good || m.GetCommit() != string(commit) || m.GetError() != `line 2: unknown key "flux.selectr"` {
			t.Errorf("heard %v", m)
		}
	}
	known, err := w.AgentConfig(t.Context(), r.ID)
	check(t, err)
	if known.Good != good || known.GoodCommit != commit || known.Commit != bad || !strings.Contains(known.Error, "unknown key") || known.CheckedAt.IsZero() {
		t.Errorf("recorded %+v", known)
	}
	if !w.logged("agent's configuration is wrong") {
		t.Error("nothing was logged")
	}
	w.stop()
	w.start()
	one = w.connect(r, "one").watch()
	if m := one.next(); m.GetYaml() != good || m.GetError() == "" {
		t.Errorf("after a restart: %v", m)
	}

	w.push(r.project, "main", configPath, strings.Repeat("# very long\n", 100_000))
	if m := one.next(); m.GetYaml() != good || !strings.Contains(m.GetError(), "larger than 131072 bytes") {
		t.Errorf("of a huge file: %v", m)
	}
	w.push(r.project, "main", configPath, "ci_access: {}\n")
	if m := one.next(); m.GetYaml() != "ci_access: {}\n" || m.GetError() != "" || !slices.Equal(m.GetWarnings(), []string{"ci_access is not supported yet"}) {
		t.Errorf("of a file with a warning: %v", m)
	}
	branch := "other"
	_, err = w.EditProject(t.Context(), w.root, "team/config-a", forge.ProjectEdit{DefaultBranch: &branch})
	check(t, err)
	if m := one.next(); m.GetYaml() != "flux: {}\n" || m.GetError() != "" {
		t.Errorf("of another default branch: %v", m)
	}
}

func TestConfigurationOfAnAgentThatIsAway(t *testing.T) {
	w := newWorld(t)
	r := w.register("a")
	w.push(r.project, "main", configPath, "nonsense: 1\n")
	var known tidelock.AgentConfig
	eventually(t, "the error to be known", func() bool {
		var err error
		known, err = w.AgentConfig(t.Context(), r.ID)
		check(t, err)
		return known.Error == `line 1: unknown key "nonsense"`
	})
	if known.Good != "" {
		t.Errorf("recorded %+v", known)
	}
}

func TestConfigurationIsComparedSlowly(t *testing.T) {
	w := newWorldWith(t, agentserver.Config{CompareEvery: 50 * time.Millisecond})
	r := w.register("a")
	one := w.connect(r, "one").watch()
	one.next()
	// Recorded by a server that died before it rang the bus.
	w.git(r.project, "commit refs/heads/main\ncommitter A <a@b> 1 +0000\ndata 1\nx\nM 100644 inline "+configPath+"\ndata 9\nflux: {}\n\n", "fast-import", "--quiet")
	commit := tidelock.CommitID(w.git(r.project, "", "rev-parse", "refs/heads/main"))
	_, err := w.faults.Store.RecordPush(t.Context(), tidelock.Push{Project: r.project.ID, At: time.Now(), Updates: []tidelock.RefUpdate{
		{Ref: "refs/heads/main", New: commit, Commit: commit},
	}})
	check(t, err)
	if m := one.next(); m.GetYaml() != "flux: {}\n" {
		t.Errorf("heard %v", m)
	}
}

// TestConfigurationFoundByAnotherServer has the record change under a server
// that saw nothing change in Git.
func TestConfigurationFoundByAnotherServer(t *testing.T) {
	w := newWorldWith(t, agentserver.Config{CompareEvery: 50 * time.Millisecond})
	r := w.register("a")
	one := w.connect(r, "one").watch()
	one.next()
	known, err := w.AgentConfig(t.Context(), r.ID)
	check(t, err)
	known.Good = "flux: {}\n"
	check(t, w.SaveAgentConfig(t.Context(), known))
	if m := one.next(); m.GetYaml() != "flux: {}\n" {
		t.Errorf("heard %v", m)
	}
}
