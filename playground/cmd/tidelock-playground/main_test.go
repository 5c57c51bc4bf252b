package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidelock.dev/playground/sample"
	"tidelock.dev/playground/stack"
	"tidelock.dev/playground/supervisor"
)

// The test binary doubles as the command, which starts itself.
func TestMain(m *testing.M) {
	if os.Getenv("PLAYGROUND_TEST_COMMAND") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A playground is one state folder, and a user with nothing configured.
type playground struct {
	t     *testing.T
	state string
	home  string
	cache string
}

func newPlayground(t *testing.T) *playground {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a whole playground; run without -short")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	p := &playground{t: t, state: filepath.Join(t.TempDir(), "a state"), home: t.TempDir(), cache: cache}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := supervisor.Terminate(ctx, p.state); err != nil && !errors.Is(err, supervisor.ErrNotRunning) {
			t.Errorf("stop the playground: %v", err)
		}
	})
	return p
}

// environment is of a user whose home is empty, and whose variables point
// elsewhere.
func (p *playground) environment() []string {
	goCache, err := exec.Command("go", "env", "GOCACHE", "GOMODCACHE").Output()
	if err != nil {
		p.t.Fatal(err)
	}
	lines := strings.Fields(string(goCache))
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + p.home, "XDG_CACHE_HOME=" + p.cache,
		"GOCACHE=" + lines[0], "GOMODCACHE=" + lines[1], "GOPROXY=" + os.Getenv("GOPROXY"), "GOFLAGS=-buildvcs=false",
		"KUBECONFIG=/nowhere", "TIDELOCK_URL=https://elsewhere.example", "TIDELOCK_TOKEN=glpat-of-someone-else",
		"GIT_CONFIG_NOSYSTEM=1",
	}
}

func (p *playground) command(args ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.CommandContext(p.t.Context(), self, append(args, "--state", p.state)...)
	cmd.Env = append(p.environment(), "PLAYGROUND_TEST_COMMAND=1")
	return cmd
}

// run runs the command and returns what it printed and its exit code.
func (p *playground) run(args ...string) (output string, code int) {
	p.t.Helper()
	out, err := p.command(args...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return string(out), 0
}

func (p *playground) mustRun(args ...string) string {
	p.t.Helper()
	out, code := p.run(args...)
	if code != 0 {
		p.t.Fatalf("%s: exit code %d\n%s", args[0], code, out)
	}
	return out
}

// processes counts what runs with the state folder on its command line.
func (p *playground) processes() []string {
	var found []string
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range entries {
		text, _ := os.ReadFile(path)
		if bytes.Contains(text, []byte(p.state)) {
			found = append(found, string(bytes.ReplaceAll(text, []byte{0}, []byte{' '})))
		}
	}
	return found
}

type report struct {
	Running   bool
	Ready     bool
	URL       string
	Processes []supervisor.Status
}

func (p *playground) status() report {
	p.t.Helper()
	var r report
	if err := json.Unmarshal([]byte(p.mustRun("status", "-o", "json")), &r); err != nil {
		p.t.Fatal(err)
	}
	return r
}

// One playground goes through a user's day.
func TestPlayground(t *testing.T) {
	p := newPlayground(t)

	if out, code := p.run("status"); code != exitNotReady || !strings.Contains(out, "make up") {
		t.Errorf("status before the first up: exit code %d, %q; want %d and what to do", code, out, exitNotReady)
	}
	if out, code := p.run("demo"); code != exitNotReady || !strings.Contains(out, "make up") {
		t.Errorf("demo before the first up: exit code %d, %q; want %d and what to do", code, out, exitNotReady)
	}
	if out := p.mustRun("down"); !strings.Contains(out, "not running") {
		t.Errorf("down before the first up: %q", out)
	}

	t.Run("an interrupted up leaves nothing running", func(t *testing.T) {
		p.interrupt(t, "Kubernetes")
	})

	out := p.mustRun("up")
	t.Log(out)
	if again := p.mustRun("up"); !strings.Contains(again, "running already") {
		t.Errorf("second up: %q", again)
	}
	running := p.status()
	if !running.Running || !running.Ready || len(running.Processes) != 11 {
		t.Errorf("got status %+v, want 11 processes", running)
	}

	t.Run("the three printed lines work as pasted", func(t *testing.T) {
		_, lines, found := strings.Cut(out, "Try it:")
		if !found {
			t.Fatal("up printed no lines to try")
		}
		cmd := exec.CommandContext(t.Context(), "sh", "-e")
		cmd.Dir = t.TempDir()
		cmd.Env = p.environment()
		cmd.Stdin = strings.NewReader(lines)
		if text, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(text), "condition met") {
			t.Errorf("%v\n%s", err, text)
		}
	})

	t.Run("the variables belong together", func(t *testing.T) {
		script := ". " + stack.Quote(filepath.Join(p.state, "env")) + `
			git ls-remote "https://root:$TIDELOCK_TOKEN@${TIDELOCK_URL#https://}/sample/app.git" HEAD
			echo "$KUBECONFIG"`
		cmd := exec.CommandContext(t.Context(), "sh", "-ec", script)
		cmd.Env = p.environment()
		text, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(text), "HEAD") || !strings.Contains(string(text), p.state) {
			t.Errorf("%v\n%s", err, text)
		}
		if info, err := os.Stat(filepath.Join(p.state, "env")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the file with the token: mode %v, error %v; want 0600", info.Mode(), err)
		}
	})

	t.Run("the context has a name", func(t *testing.T) {
		path := filepath.Join(p.home, ".config", "tidelock", "config.yaml")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"playground", running.URL, filepath.Join(p.state, "server")} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s lacks %q", path, want)
			}
		}
	})

	t.Run("the demo prints every hop", func(t *testing.T) {
		out := p.mustRun("demo")
		t.Log(out)
		for _, hop := range []string{"accepted", "announced", "called", "answered", "fetched", "applied"} {
			if n := len(regexp.MustCompile(`(?m)^ *`+hop+` +-?\d+\.\d ms`).FindAllString(out, -1)); n != 2 {
				t.Errorf("%d times of %s, want one of each way", n, hop)
			}
		}
		if strings.Count(out, "through its receiver") != 2 {
			t.Error("Flux was not triggered through its receivers")
		}
	})

	t.Run("a crashed component comes back and is named", func(t *testing.T) {
		victim := find(t, running.Processes, "kube-scheduler")
		if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		var now supervisor.Status
		for deadline := time.Now().Add(30 * time.Second); now.Restarts == 0 || now.State != supervisor.Running; {
			if time.Now().After(deadline) {
				t.Fatalf("got %+v, want it back", now)
			}
			now = find(t, p.status().Processes, "kube-scheduler")
		}
		if now.PID == victim.PID || !strings.Contains(now.LastExit, "killed") {
			t.Errorf("got %+v, want another process after one that was killed", now)
		}
		if out := p.mustRun("status"); !regexp.MustCompile(`kube-scheduler .* 1 +signal: killed, `).MatchString(out) {
			t.Errorf("the table does not tell of the crash:\n%s", out)
		}
	})

	t.Run("down stops all and up brings it back", func(t *testing.T) {
		forge := p.forge(t)
		config := map[string]string{agentConfig: "observability:\n  logging:\n    level: debug\nflux:\n  webhook_receiver_url: http://127.0.0.1:1\n"}
		if _, err := forge.Push(t.Context(), sample.Agents, "Ask for more", config); err != nil {
			t.Fatal(err)
		}
		p.mustRun("down")
		if left := p.processes(); len(left) > 0 {
			t.Errorf("after down there are\n%s", strings.Join(left, "\n"))
		}
		// What else is lost is made anew.
		if err := os.RemoveAll(filepath.Join(p.state, "tokens")); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		p.mustRun("up")
		t.Logf("second start took %s", time.Since(began).Round(time.Millisecond))
		if again := p.status(); again.URL != running.URL {
			t.Errorf("second start serves %s, the first %s", again.URL, running.URL)
		}
		if out := p.mustRun("demo"); strings.Count(out, "through its receiver") != 2 {
			t.Errorf("Flux was not triggered through its receivers:\n%s", out)
		}
		tree, err := forge.Clone(t.Context(), sample.Agents)
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Remove()
		text, err := os.ReadFile(filepath.Join(tree.Dir, agentConfig))
		if err != nil || !strings.Contains(string(text), "level: debug") || strings.Contains(string(text), "127.0.0.1:1\n") {
			t.Errorf("the configuration is %q, error %v; want the user's level and the true receiver", text, err)
		}
	})
}

const agentConfig = ".gitlab/agents/playground/config.yaml"

func (p *playground) forge(t *testing.T) *sample.Forge {
	t.Helper()
	facts, err := stack.ReadFacts(p.state)
	if err != nil {
		t.Fatal(err)
	}
	forge, err := facts.Forge()
	if err != nil {
		t.Fatal(err)
	}
	return forge
}

func find(t *testing.T, all []supervisor.Status, name string) supervisor.Status {
	t.Helper()
	for _, s := range all {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("no process %q in %v", name, all)
	return supervisor.Status{}
}

// interrupt presses Ctrl-C while up is at a step.
func (p *playground) interrupt(t *testing.T, step string) {
	cmd := p.command("up")
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	var said strings.Builder
	lines := bufio.NewReader(io.TeeReader(read, &said))
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("up ended before %q:\n%s", step, said.String())
		}
		if strings.Contains(line, step) {
			break
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, lines)
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != exitInterrupted {
		t.Errorf("got %v, want exit code %d\n%s", err, exitInterrupted, said.String())
	}
	if left := p.processes(); len(left) > 0 {
		t.Errorf("what was begun still runs:\n%s", strings.Join(left, "\n"))
	}
}

func TestMisuse(t *testing.T) {
	for _, args := range [][]string{
		{"up", "--kubeconfig", "somewhere"},
		{"up", "--no-such-flag"},
		{"status", "-o", "yaml", "--state", t.TempDir()},
	} {
		var stderr strings.Builder
		if code := run(t.Context(), args, io.Discard, &stderr); code != exitMisused {
			t.Errorf("%v: exit code %d, want %d: %s", args, code, exitMisused, stderr.String())
		}
	}
}

// Without a terminal a step is a line when it begins and one when it ends,
// and nothing in between.
func TestProgressWithoutTerminal(t *testing.T) {
	var out strings.Builder
	p := newProgress(&out)
	for _, e := range []stack.Event{
		{Step: "build kube", State: stack.Working},
		{Step: "build kube", State: stack.Working, Elapsed: time.Second},
		{Step: "build kube", State: stack.Done, Elapsed: 605 * time.Second},
		{Step: "build kwok", State: stack.Found},
		{Step: "Flux", State: stack.Begun},
		{Step: "Flux", State: stack.Failed, Elapsed: 1500 * time.Millisecond, Note: "long text"},
	} {
		p.show(e)
	}
	want := `  …  build kube
  ok build kube                        10m5s
  ok build kwok                         0.0s  in the cache
  …  Flux
  !! Flux                               1.5s  failed
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
