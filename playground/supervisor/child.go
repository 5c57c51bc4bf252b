package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// A State is where a process is in its life.
type State string

const (
	Starting State = "starting" // it runs and is not ready yet
	Running  State = "running"
	Waiting  State = "waiting" // it crashed; the next start is delayed
	Stopped  State = "stopped" // it was asked to be down
)

// A Status is what is known of a process.
type Status struct {
	Name       string    `json:"name"`
	State      State     `json:"state"`
	PID        int       `json:"pid,omitempty"`
	Born       uint64    `json:"born,omitempty"` // the kernel's start time of PID, which tells it from a later owner of the number
	Since      time.Time `json:"since"`
	Restarts   int       `json:"restarts"`
	LastExit   string    `json:"last_exit,omitempty"`
	LastExitAt time.Time `json:"last_exit_at,omitzero"`
}

const (
	probeEvery     = 50 * time.Millisecond
	probeTimeout   = 2 * time.Second
	startAttempts  = 3
	standardGrace  = 10 * time.Second
	outputDeadline = 2 * time.Second // for grandchildren that keep the output open
)

// A child is one process with the goroutine that keeps it running.
type child struct {
	supervisor *Supervisor
	spec       Process
	batch      int // processes of one Start share it, and are stopped side by side
	output     *logFile
	cancel     context.CancelFunc
	done       chan struct{} // closed when the goroutine has ended

	mu        sync.Mutex
	held      bool // asked to be down
	epoch     int  // counts how often that was asked
	process   *os.Process
	status    Status
	everReady bool
	failures  int           // exits since the last time it was ready
	changed   chan struct{} // closed and replaced when any of the above changes
}

func newChild(s *Supervisor, p Process, batch int) (*child, error) {
	if p.Grace == 0 {
		p.Grace = standardGrace
	}
	output, err := openLog(s.LogPath(p.Name), s.config.LogLimit)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &child{
		supervisor: s, spec: p, batch: batch, output: output, cancel: cancel,
		done:    make(chan struct{}),
		changed: make(chan struct{}),
		status:  Status{Name: p.Name, State: Starting, Since: time.Now()},
	}
	go func() {
		defer close(c.done)
		c.run(ctx)
	}()
	return c, nil
}

// run starts the process again and again until ctx ends.
func (c *child) run(ctx context.Context) {
	backoff := c.supervisor.config.Backoff
	delay := backoff.Min
	for {
		epoch, err := c.awaitRelease(ctx)
		if err != nil {
			return
		}
		began := time.Now()
		c.once(ctx)
		if time.Since(began) >= backoff.Reset {
			delay = backoff.Min
		}
		crashed := c.update(func() bool {
			if c.epoch != epoch {
				return false
			}
			c.status.State, c.status.Since = Waiting, time.Now()
			return true
		})
		if crashed {
			c.supervisor.log.Warn("process ended, starting it again",
				"process", c.spec.Name, "exit", c.snapshot().LastExit, "delay", delay)
			crashed = c.pause(ctx, delay, epoch)
		}
		if crashed {
			delay = min(2*delay, backoff.Max)
		} else {
			delay = backoff.Min
		}
	}
}

// pause waits for d and reports whether it could do so undisturbed: until ctx
// ends or someone asks for the process to go down or to start anew.
func (c *child) pause(ctx context.Context, d time.Duration, epoch int) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		c.mu.Lock()
		changed, now := c.changed, c.epoch
		c.mu.Unlock()
		if now != epoch {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			c.update(func() bool { c.status.Restarts++; return true })
			return true
		case <-changed:
		}
	}
}

// once runs the process from its start to its end.
func (c *child) once(ctx context.Context) {
	cmd := exec.Command(c.spec.Path, c.spec.Args...)
	cmd.Env, cmd.Dir = c.spec.Env, c.spec.Dir
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would mean ours
	}
	cmd.Stdout, cmd.Stderr = c.output, c.output
	cmd.WaitDelay = outputDeadline
	cmd.SysProcAttr = childAttributes()

	started, err := c.start(cmd)
	if err != nil {
		c.update(func() bool {
			c.failures++
			c.status.LastExit, c.status.LastExitAt = err.Error(), time.Now()
			return true
		})
	}
	if !started {
		return
	}
	probing, stopProbing := context.WithCancel(ctx)
	var prober sync.WaitGroup
	prober.Go(func() { c.probe(probing) })

	err = cmd.Wait()
	stopProbing()
	prober.Wait()
	if errors.Is(err, exec.ErrWaitDelay) {
		// Something of its group still holds the output.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	c.update(func() bool {
		c.process = nil
		c.failures++
		c.status.PID, c.status.Born = 0, 0
		c.status.State, c.status.Since = Stopped, time.Now()
		c.status.LastExit, c.status.LastExitAt = exitText(cmd.ProcessState, err), time.Now()
		return true
	})
}

// start forks the process unless it is held, and reports whether it did. The
// decision and the fork are one step, so that a process that was killed does
// not come up behind its killer's back.
func (c *child) start(cmd *exec.Cmd) (started bool, err error) {
	done := make(chan struct{})
	c.supervisor.forks <- func() {
		defer close(done)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.held {
			return
		}
		if err = cmd.Start(); err != nil {
			return
		}
		started = true
		c.process = cmd.Process
		c.status.State, c.status.Since = Starting, time.Now()
		c.status.PID, c.status.Born = cmd.Process.Pid, birth(cmd.Process.Pid)
		c.notify()
	}
	<-done
	c.supervisor.record()
	return started, err
}

func (c *child) probe(ctx context.Context) {
	for c.spec.Ready != nil {
		attempt, cancel := context.WithTimeout(ctx, probeTimeout)
		err := c.spec.Ready(attempt)
		cancel()
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(probeEvery):
		}
	}
	c.update(func() bool {
		if ctx.Err() != nil || c.held {
			return false
		}
		c.everReady, c.failures = true, 0
		c.status.State, c.status.Since = Running, time.Now()
		return true
	})
}

func exitText(state *os.ProcessState, err error) string {
	if state != nil {
		return state.String()
	}
	return err.Error()
}

// awaitReady waits until the process is ready.
func (c *child) awaitReady(ctx context.Context) error {
	for {
		c.mu.Lock()
		changed, status, held := c.changed, c.status, c.held
		hopeless := !c.everReady && c.failures >= startAttempts
		c.mu.Unlock()
		switch {
		case status.State == Running:
			return nil
		case held:
			return fmt.Errorf("start %s: it was asked to be down meanwhile", c.spec.Name)
		case hopeless:
			return fmt.Errorf("start %s: %s; its log ends with:\n%s", c.spec.Name, status.LastExit, c.output.tail(2048))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start %s: %w; its log is %s", c.spec.Name, context.Cause(ctx), c.output.path)
		case <-c.done:
			return fmt.Errorf("start %s: it was stopped meanwhile", c.spec.Name)
		case <-changed:
		}
	}
}

// awaitRelease waits until the process may run, and returns the epoch in which
// it may.
func (c *child) awaitRelease(ctx context.Context) (epoch int, err error) {
	for {
		c.mu.Lock()
		changed, held, epoch := c.changed, c.held, c.epoch
		c.mu.Unlock()
		if err := ctx.Err(); err != nil || !held {
			return epoch, err
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// awaitGone waits until no process runs.
func (c *child) awaitGone() {
	for {
		c.mu.Lock()
		changed, process := c.changed, c.process
		c.mu.Unlock()
		if process == nil {
			return
		}
		<-changed
	}
}

// hold asks the process to be down; it does not end it.
func (c *child) hold() {
	c.update(func() bool {
		c.held = true
		c.epoch++
		return true
	})
}

// release lets a held process start anew.
func (c *child) release() {
	c.update(func() bool {
		if !c.held {
			return false
		}
		c.held, c.everReady, c.failures = false, false, 0
		c.status.State, c.status.Since = Starting, time.Now()
		c.status.Restarts++
		return true
	})
}

// signal reaches the whole process group, so that what a child started ends
// with it.
func (c *child) signal(sig os.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process != nil {
		// An error means that it has ended already. Its number cannot come
		// round to someone else in the moment until we notice.
		_ = syscall.Kill(-c.process.Pid, sig.(syscall.Signal))
	}
}

// terminate asks the process to end, insists after its grace, and returns
// when it is gone.
func (c *child) terminate() {
	c.signal(syscall.SIGTERM)
	timer := time.AfterFunc(c.spec.Grace, func() {
		c.supervisor.log.Warn("process did not end in time, killing it", "process", c.spec.Name, "grace", c.spec.Grace)
		c.signal(os.Kill)
	})
	defer timer.Stop()
	c.awaitGone()
}

// end terminates the process and the goroutine that restarts it.
func (c *child) end() error {
	c.hold()
	c.terminate()
	c.cancel()
	<-c.done
	return c.output.Close()
}

// update applies change, which reports whether it changed anything.
func (c *child) update(change func() bool) bool {
	c.mu.Lock()
	changed := change()
	if changed {
		c.notify()
	}
	c.mu.Unlock()
	if changed {
		c.supervisor.record()
	}
	return changed
}

// notify wakes everyone who waits for a change; c.mu is held.
func (c *child) notify() {
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *child) snapshot() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}
