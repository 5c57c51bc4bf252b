// Package supervisor keeps the playground's child processes running. It owns
// their order, their restarts, their log files and a record of them in one
// state folder, which it holds locked, so that there is one supervisor per
// folder. It knows nothing of what the processes are.
//
//	s, err := supervisor.Open(supervisor.Config{Dir: dir, Log: log})
//	err = s.Start(ctx, etcd)                 // returns when etcd is ready
//	err = s.Start(ctx, scheduler, controllers)
//	…
//	err = s.Close()                          // in reverse order
//
// A process that exits by itself is started again with back-off. One that was
// killed with [Supervisor.Kill] stays down until [Supervisor.Restart].
//
// On Linux the kernel kills every child when the supervisor dies, however it
// dies; what survives nevertheless is found through the record and ended by
// the next Open.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"
)

// A Process is a command to keep running.
type Process struct {
	Name string // unique in its supervisor; also names the log file
	Path string
	Args []string
	Env  []string // the whole environment
	Dir  string   // working directory; default the supervisor's

	// Ready reports nil once the process does its work. It is called again and
	// again until then, each time with a short deadline. Nil means that a
	// started process is ready.
	Ready func(context.Context) error

	// Grace is the time between SIGTERM and SIGKILL; default 10 s.
	Grace time.Duration
}

// Backoff is the pause before a crashed process is started again: it doubles
// from Min to Max, and falls back to Min once a process ran for Reset.
type Backoff struct {
	Min, Max, Reset time.Duration // defaults 500 ms, 30 s and 1 min
}

// Config says how a Supervisor works.
type Config struct {
	Dir      string       // state folder, created with mode 0700; required
	Log      *slog.Logger // required
	LogLimit int64        // bytes per log file before it is turned over once; default 8 MiB
	Backoff  Backoff
}

// A Supervisor runs processes. Its methods may be called from any goroutine.
type Supervisor struct {
	config Config
	log    *slog.Logger
	lock   *lockFile
	forks  chan func()
	forker sync.WaitGroup

	mu       sync.Mutex
	children []*child // in the order of their start
	batches  int
	closed   bool

	recordMu sync.Mutex
}

// Open takes the state folder and ends processes that an earlier supervisor
// of this folder left behind. A folder that another supervisor holds is an
// error that matches [ErrBusy].
func Open(config Config) (*Supervisor, error) {
	if config.LogLimit == 0 {
		config.LogLimit = 8 << 20
	}
	b := &config.Backoff
	b.Min = defaultTo(b.Min, 500*time.Millisecond)
	b.Max = defaultTo(b.Max, 30*time.Second)
	b.Reset = defaultTo(b.Reset, time.Minute)

	if err := os.MkdirAll(filepath.Join(config.Dir, "logs"), 0o700); err != nil {
		return nil, fmt.Errorf("make state folder: %w", err)
	}
	lock, err := acquire(filepath.Join(config.Dir, lockName))
	if err != nil {
		return nil, err
	}
	s := &Supervisor{config: config, log: config.Log, lock: lock, forks: make(chan func())}
	if err := s.reapLeftovers(); err != nil {
		return nil, errors.Join(err, lock.release())
	}
	s.forker.Go(s.fork)
	s.record()
	return s, nil
}

func defaultTo(d, standard time.Duration) time.Duration {
	if d == 0 {
		return standard
	}
	return d
}

// fork starts all children from one thread that lives as long as they do: the
// kernel's parent-death signal is sent when the thread that forked ends, not
// when the process does.
func (s *Supervisor) fork() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for f := range s.forks {
		f()
	}
}

// Start runs processes side by side and returns when all are ready. A process
// that ends three times before it was ever ready fails the start, and its
// error carries the end of its log. After an error none of these processes is
// left.
func (s *Supervisor) Start(ctx context.Context, processes ...Process) error {
	s.mu.Lock()
	s.batches++
	batch := s.batches
	s.mu.Unlock()
	started := make([]*child, 0, len(processes))
	names := make([]string, 0, len(processes))
	for _, p := range processes {
		c, err := s.add(p, batch)
		if err != nil {
			return errors.Join(err, s.Stop(names...))
		}
		started, names = append(started, c), append(names, p.Name)
	}
	// All are waited for even if one fails early: a name must not be stopped
	// while its error is still being composed from its log.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(started))
	var wg sync.WaitGroup
	for i, c := range started {
		wg.Go(func() {
			if errs[i] = c.awaitReady(ctx); errs[i] != nil {
				cancel()
			}
		})
	}
	wg.Wait()
	if err := firstCause(errs); err != nil {
		return errors.Join(err, s.Stop(names...))
	}
	s.record() // whoever reads after Start sees what Start saw
	return nil
}

// firstCause prefers an error of a process over the cancellations it caused.
func firstCause(errs []error) error {
	var cancelled error
	for _, err := range errs {
		switch {
		case err == nil:
		case errors.Is(err, context.Canceled):
			cancelled = err
		default:
			return err
		}
	}
	return cancelled
}

func (s *Supervisor) add(p Process, batch int) (*child, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.New("start process: the supervisor is closed")
	}
	if slices.ContainsFunc(s.children, func(c *child) bool { return c.spec.Name == p.Name }) {
		return nil, fmt.Errorf("start process: there is a %q already", p.Name)
	}
	c, err := newChild(s, p, batch)
	if err != nil {
		return nil, err
	}
	s.children = append(s.children, c)
	return c, nil
}

func (s *Supervisor) child(name string) (*child, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.children {
		if c.spec.Name == name {
			return c, nil
		}
	}
	return nil, fmt.Errorf("no process %q", name)
}

// Kill ends a process at once, as a crash of the machine would, and keeps it
// down until Restart. It returns when the process is gone.
func (s *Supervisor) Kill(name string) error {
	c, err := s.child(name)
	if err != nil {
		return err
	}
	c.hold()
	c.signal(os.Kill)
	c.awaitGone()
	return nil
}

// Restart ends a process in good order, if it runs, starts it again and
// returns when it is ready.
func (s *Supervisor) Restart(ctx context.Context, name string) error {
	c, err := s.child(name)
	if err != nil {
		return err
	}
	c.hold()
	c.terminate()
	c.release()
	return c.awaitReady(ctx)
}

// Stop ends the named processes and forgets them: the last started first, those
// of one Start side by side.
func (s *Supervisor) Stop(names ...string) error {
	s.mu.Lock()
	var going []*child
	s.children = slices.DeleteFunc(s.children, func(c *child) bool {
		if slices.Contains(names, c.spec.Name) {
			going = append(going, c)
			return true
		}
		return false
	})
	s.mu.Unlock()
	errs := make([]error, len(going))
	var wg sync.WaitGroup
	for i, c := range slices.Backward(going) {
		if i+1 < len(going) && going[i+1].batch != c.batch {
			wg.Wait()
		}
		wg.Go(func() { errs[i] = c.end() })
	}
	wg.Wait()
	s.record()
	return errors.Join(errs...)
}

// Close stops all processes in reverse order and gives the folder free. It is
// safe to call more than once.
func (s *Supervisor) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	names := make([]string, len(s.children))
	for i, c := range s.children {
		names[i] = c.spec.Name
	}
	s.mu.Unlock()

	err := s.Stop(names...)
	close(s.forks)
	s.forker.Wait()
	return errors.Join(err, s.lock.release())
}

// LogPath names the log file of a process.
func (s *Supervisor) LogPath(name string) string {
	return filepath.Join(s.config.Dir, "logs", name+".log")
}

// Status lists the processes in the order of their start.
func (s *Supervisor) Status() []Status {
	s.mu.Lock()
	children := slices.Clone(s.children)
	s.mu.Unlock()
	all := make([]Status, len(children))
	for i, c := range children {
		all[i] = c.snapshot()
	}
	return all
}
