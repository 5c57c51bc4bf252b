package supervisor_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidelock.dev/playground/supervisor"
)

// The test binary doubles as a supervisor to be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SUPERVISOR_TEST_DIR"); dir != "" {
		superviseUntilKilled(dir)
		return
	}
	os.Exit(m.Run())
}

func superviseUntilKilled(dir string) {
	s, err := supervisor.Open(supervisor.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		err = s.Start(context.Background(), shell("sleeper", "exec sleep 600"), shell("parent", "sleep 600 & wait"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	fmt.Println("started")
	<-ctx.Done()
	if err := s.Close(); err != nil {
		os.Exit(1)
	}
	fmt.Println("closed")
}

func open(t *testing.T, dir string) *supervisor.Supervisor {
	t.Helper()
	s, err := supervisor.Open(supervisor.Config{
		Dir: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), LogLimit: 4096,
		Backoff: supervisor.Backoff{Min: 20 * time.Millisecond, Max: 200 * time.Millisecond, Reset: time.Minute},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func shell(name, script string) supervisor.Process {
	return supervisor.Process{
		Name: name, Path: "/bin/sh", Args: []string{"-c", script},
		Env: []string{"PATH=" + os.Getenv("PATH")}, Grace: 5 * time.Second,
	}
}

// fileExists is a probe: a process is ready when it has written a file.
func fileExists(path string) func(context.Context) error {
	return func(context.Context) error {
		_, err := os.Stat(path)
		return err
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func statusOf(t *testing.T, s *supervisor.Supervisor, name string) supervisor.Status {
	t.Helper()
	for _, p := range s.Status() {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("no status of %q", name)
	return supervisor.Status{}
}

func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(text), ") Z ")
}

func TestStartWaitsUntilReady(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	flag := filepath.Join(dir, "ready")
	p := shell("slow", "sleep 0.2; touch "+flag+"; exec sleep 600")
	p.Ready = fileExists(flag)
	if err := s.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(flag); err != nil {
		t.Error("Start returned before the process was ready")
	}
	if got := statusOf(t, s, "slow"); got.State != supervisor.Running || !alive(got.PID) {
		t.Errorf("got %+v, want it running", got)
	}
}

func TestStartFailsWithTheEndOfTheLog(t *testing.T) {
	s := open(t, t.TempDir())
	never := func(context.Context) error { return errors.New("never") }
	good, bad := shell("good", "exec sleep 600"), shell("bad", "echo 'no stages found'; exit 3")
	good.Ready, bad.Ready = never, never
	err := s.Start(t.Context(), good, bad)
	for _, want := range []string{"start bad", "exit status 3", "no stages found"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to say %q", err, want)
		}
	}
	if left := s.Status(); len(left) != 0 {
		t.Errorf("a failed start left %v", left)
	}
}

func TestStartGivesUpWithItsContext(t *testing.T) {
	s := open(t, t.TempDir())
	p := shell("deaf", "exec sleep 600")
	p.Ready = func(context.Context) error { return errors.New("never") }
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.Start(ctx, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want a deadline", err)
	}
}

func TestNamesAreUnique(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Start(t.Context(), shell("one", "exec sleep 600")); err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context(), shell("one", "exec sleep 600")); err == nil {
		t.Error("a second process of the same name was started")
	}
	if got := statusOf(t, s, "one"); !alive(got.PID) {
		t.Error("the first process did not survive the refused second")
	}
}

// A crash is followed by a restart, a second one by a longer pause, and both
// by a line in the status.
func TestCrashedProcessIsRestartedWithBackoff(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	births := filepath.Join(dir, "births")
	if err := s.Start(t.Context(), shell("crasher", "date +%s%N >> "+births+"; exit 7")); err != nil {
		t.Fatal(err)
	}
	var times []int64
	eventually(t, "five starts", func() bool {
		text, _ := os.ReadFile(births)
		times = nil
		for line := range strings.Lines(string(text)) {
			n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
			if err == nil {
				times = append(times, n)
			}
		}
		return len(times) >= 5
	})
	for i, atLeast := range []time.Duration{20, 40, 80, 160} {
		if pause := time.Duration(times[i+1] - times[i]); pause < atLeast*time.Millisecond {
			t.Errorf("pause %d was %s, want at least %s", i+1, pause, atLeast*time.Millisecond)
		}
	}
	if got := statusOf(t, s, "crasher"); got.Restarts < 4 || got.LastExit != "exit status 7" || got.LastExitAt.IsZero() {
		t.Errorf("got %+v, want 4 restarts after exit status 7", got)
	}
}

func TestKilledFromOutsideComesBack(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Start(t.Context(), shell("victim", "exec sleep 600")); err != nil {
		t.Fatal(err)
	}
	before := statusOf(t, s, "victim").PID
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another process", func() bool {
		got := statusOf(t, s, "victim")
		return got.State == supervisor.Running && got.PID != before
	})
	if got := statusOf(t, s, "victim"); got.LastExit != "signal: killed" || got.Restarts != 1 {
		t.Errorf("got %+v, want one restart after being killed", got)
	}
}

func TestKillHoldsDownUntilRestart(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	births := filepath.Join(dir, "births")
	if err := s.Start(t.Context(), shell("held", "echo >> "+births+"; exec sleep 600")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first start", func() bool { return fileExists(births)(t.Context()) == nil })
	pid := statusOf(t, s, "held").PID
	if err := s.Kill("held"); err != nil {
		t.Fatal(err)
	}
	if alive(pid) {
		t.Error("Kill returned while the process lives")
	}
	time.Sleep(100 * time.Millisecond) // five times the first pause: time enough to come back wrongly
	if got := statusOf(t, s, "held"); got.State != supervisor.Stopped || got.PID != 0 {
		t.Errorf("got %+v, want it stopped", got)
	}
	if err := s.Kill("held"); err != nil {
		t.Errorf("a second Kill: %v", err)
	}
	if err := s.Restart(t.Context(), "held"); err != nil {
		t.Fatal(err)
	}
	if got := statusOf(t, s, "held"); got.State != supervisor.Running || !alive(got.PID) {
		t.Errorf("got %+v, want it running", got)
	}
}

func TestRestartReplacesARunningProcess(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Start(t.Context(), shell("one", "exec sleep 600")); err != nil {
		t.Fatal(err)
	}
	before := statusOf(t, s, "one").PID
	for range 5 {
		if err := s.Restart(t.Context(), "one"); err != nil {
			t.Fatal(err)
		}
		after := statusOf(t, s, "one").PID
		if after == before || alive(before) || !alive(after) {
			t.Errorf("restart went from %d to %d", before, after)
		}
		before = after
	}
}

// Processes stop in the reverse order of their start, those of one Start side
// by side, and one that does not listen is killed after its grace.
func TestCloseStopsInReverse(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	record := filepath.Join(dir, "order")
	leaving := func(name string) supervisor.Process {
		up := filepath.Join(dir, name+".up")
		p := shell(name, "trap 'echo "+name+" >> "+record+"; exit 0' TERM; touch "+up+"; while :; do sleep 0.01; done")
		p.Ready = fileExists(up)
		return p
	}
	deaf := shell("deaf", "trap '' TERM; touch "+filepath.Join(dir, "deaf.up")+"; while :; do sleep 0.01; done")
	deaf.Ready, deaf.Grace = fileExists(filepath.Join(dir, "deaf.up")), 200*time.Millisecond
	for _, batch := range [][]supervisor.Process{{leaving("first")}, {leaving("second"), deaf}, {leaving("third")}} {
		if err := s.Start(t.Context(), batch...); err != nil {
			t.Fatal(err)
		}
	}
	pid := statusOf(t, s, "deaf").PID
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(record)
	if got, want := strings.Fields(string(text)), "third second first"; strings.Join(got, " ") != want {
		t.Errorf("stopped %v, want %s", got, want)
	}
	if alive(pid) {
		t.Error("the process that ignores SIGTERM lives")
	}
	if err := s.Start(t.Context(), shell("late", "exit 0")); err == nil {
		t.Error("a closed supervisor started a process")
	}
}

// What a process started ends with it, also when it crashes.
func TestGrandchildrenEndToo(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	file := filepath.Join(dir, "grandchild")
	p := shell("parent", "sleep 600 & echo $! > "+file+".next; mv "+file+".next "+file+"; wait")
	p.Ready = fileExists(file)
	if err := s.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(file)
	grandchild, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Kill("parent"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "end of the grandchild", func() bool { return !alive(grandchild) })
}

func TestOneSupervisorPerFolder(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if _, err := supervisor.Open(supervisor.Config{Dir: dir, Log: slog.New(slog.DiscardHandler)}); !errors.Is(err, supervisor.ErrBusy) {
		t.Errorf("second Open: got %v, want ErrBusy", err)
	}
	if err := s.Start(t.Context(), shell("one", "exec sleep 600")); err != nil {
		t.Fatal(err)
	}
	record, err := supervisor.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if record.PID != os.Getpid() || len(record.Processes) != 1 || record.Processes[0].State != supervisor.Running {
		t.Errorf("others read %+v, want our number and one running process", record)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := supervisor.Read(dir); !errors.Is(err, supervisor.ErrNotRunning) {
		t.Errorf("Read after Close: got %v, want ErrNotRunning", err)
	}
	open(t, dir)
}

func TestReadOfAnEmptyFolder(t *testing.T) {
	if _, err := supervisor.Read(t.TempDir()); !errors.Is(err, supervisor.ErrNotRunning) {
		t.Errorf("got %v, want ErrNotRunning", err)
	}
}

// A log never exceeds twice its limit, and what was written last is kept.
func TestLogIsTurnedOver(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir) // limit 4096
	flag := filepath.Join(dir, "done")
	p := shell("chatty", "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; touch "+flag+"; exec sleep 600")
	p.Ready = fileExists(flag)
	if err := s.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the last line", func() bool {
		text, _ := os.ReadFile(s.LogPath("chatty"))
		return strings.HasSuffix(string(text), "line 1999\n")
	})
	for _, path := range []string{s.LogPath("chatty"), s.LogPath("chatty") + ".1"} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 4096 || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has %d bytes and mode %v, want at most 4096 and 0600", filepath.Base(path), info.Size(), info.Mode())
		}
	}
}

// A supervisor that is killed takes its children with it.
func TestNoOrphans(t *testing.T) {
	dir := t.TempDir()
	processes, kill := startSupervisor(t, dir)
	kill()
	for _, p := range processes {
		eventually(t, p.Name+" to end with its supervisor", func() bool { return !alive(p.PID) })
	}
	open(t, dir) // the folder is free again
}

// A supervisor that is asked to end does so in good order.
func TestTerminate(t *testing.T) {
	dir := t.TempDir()
	if err := supervisor.Terminate(t.Context(), dir); !errors.Is(err, supervisor.ErrNotRunning) {
		t.Errorf("without a supervisor: got %v, want ErrNotRunning", err)
	}
	processes, _ := startSupervisor(t, dir)
	if err := supervisor.Terminate(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		eventually(t, p.Name+" to end with its supervisor", func() bool { return !alive(p.PID) })
	}
}

// startSupervisor runs a supervisor in a process of its own.
func startSupervisor(t *testing.T, dir string) (processes []supervisor.Status, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "SUPERVISOR_TEST_DIR="+dir)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waited := make(chan struct{})
	go func() { cmd.Wait(); close(waited) }()
	kill = func() { cmd.Process.Kill(); <-waited }
	t.Cleanup(kill)
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatalf("the supervisor did not start: %v", err)
	}
	record, err := supervisor.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(record.Processes) != 2 {
		t.Fatalf("got processes %v, want two", record.Processes)
	}
	return record.Processes, kill
}

// Should children survive nevertheless, the next supervisor of the folder ends
// them, and nothing that merely has the number of one.
func TestLeftoversAreReaped(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("only Linux tells processes apart well enough")
	}
	dir := t.TempDir()
	leftover, stranger := detached(t), detached(t)
	record := supervisor.Record{
		PID:  1 << 22, // nobody
		Boot: bootID(t),
		Processes: []supervisor.Status{
			{Name: "leftover", PID: leftover, Born: born(t, leftover)},
			{Name: "stranger", PID: stranger, Born: born(t, stranger) - 1},
		},
	}
	writeRecord(t, dir, record)
	open(t, dir)
	if alive(leftover) {
		t.Error("the leftover lives")
	}
	if !alive(stranger) {
		t.Error("a process that was not ours was ended")
	}
}

func TestProbeIsCalledAgainAfterRestart(t *testing.T) {
	s := open(t, t.TempDir())
	var calls int
	p := shell("one", "exec sleep 600")
	p.Ready = func(context.Context) error {
		calls++ // one probe runs at a time
		if calls%3 != 0 {
			return errors.New("not yet")
		}
		return nil
	}
	if err := s.Start(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := s.Restart(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if calls != 6 {
		t.Errorf("got %d calls of the probe, want 3 for each start", calls)
	}
}
