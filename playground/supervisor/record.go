package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	lockName   = "supervisor.lock"
	recordName = "supervisor.json"
)

// ErrBusy says that another supervisor holds the state folder.
var ErrBusy = errors.New("another supervisor runs here")

// ErrNotRunning says that no supervisor holds the state folder.
var ErrNotRunning = errors.New("no supervisor runs here")

// A Record is what a supervisor writes about itself for others to read.
type Record struct {
	PID       int       `json:"pid"`
	Boot      string    `json:"boot,omitempty"` // tells this run of the machine from others
	Processes []Status  `json:"processes"`
	WrittenAt time.Time `json:"written_at"`
}

// record writes the state of all processes, for Read and for the next Open.
// What cannot be written is logged: the processes matter more.
func (s *Supervisor) record() {
	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	r := Record{PID: os.Getpid(), Boot: bootID(), Processes: s.Status(), WrittenAt: time.Now()}
	text, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = replaceFile(filepath.Join(s.config.Dir, recordName), text)
	}
	if err != nil {
		s.log.Warn("state of the processes not recorded", "error", err)
	}
}

func replaceFile(path string, text []byte) error {
	next := path + ".next"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// Read tells what the supervisor of a folder last wrote. Without a live
// supervisor the error matches ErrNotRunning, and the record is what the last
// one left.
func Read(dir string) (Record, error) {
	var r Record
	text, err := os.ReadFile(filepath.Join(dir, recordName))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("read state of the processes: %w", err)
	}
	if _, err := holder(dir); err != nil {
		return r, err
	}
	return r, nil
}

// Terminate asks the supervisor of a folder to end, and returns when it has
// given the folder free.
func Terminate(ctx context.Context, dir string) error {
	pid, err := holder(dir)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("end supervisor %d: %w", pid, err)
	}
	for {
		if _, err := holder(dir); errors.Is(err, ErrNotRunning) {
			return nil
		} else if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for supervisor %d to end: %w", pid, context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// A lockFile is a file with an exclusive lock, and the holder's process id in
// it. The kernel gives the lock free when its holder dies.
type lockFile struct{ file *os.File }

func acquire(path string) (*lockFile, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %q: %w", path, ErrBusy)
		}
		return nil, fmt.Errorf("lock %q: %w", path, err)
	}
	l := &lockFile{file}
	if err := l.write(strconv.Itoa(os.Getpid())); err != nil {
		return nil, errors.Join(fmt.Errorf("write lock: %w", err), l.release())
	}
	return l, nil
}

func (l *lockFile) write(text string) error {
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	_, err := l.file.WriteAt([]byte(text), 0)
	return err
}

func (l *lockFile) release() error { return l.file.Close() }

// holder returns the process id of the live supervisor of a folder.
func holder(dir string) (int, error) {
	file, err := os.Open(filepath.Join(dir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, ErrNotRunning
	}
	if err != nil {
		return 0, fmt.Errorf("open lock: %w", err)
	}
	defer file.Close()
	// A holder writes its number right after it has locked, so an empty file
	// is worth another look.
	for range 20 {
		err = syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
		if err == nil {
			return 0, ErrNotRunning
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return 0, fmt.Errorf("look at lock: %w", err)
		}
		text := make([]byte, 32)
		n, _ := file.ReadAt(text, 0)
		if pid, err := strconv.Atoi(string(bytes.TrimSpace(text[:n]))); err == nil {
			return pid, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return 0, errors.New("the lock is held by a process that does not say who it is")
}

// reapLeftovers ends processes that the last supervisor of this folder
// recorded and that still live. A process counts as ours only if number,
// start time and boot of the machine agree.
func (s *Supervisor) reapLeftovers() error {
	text, err := os.ReadFile(filepath.Join(s.config.Dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read state of the processes: %w", err)
	}
	var last Record
	if err := json.Unmarshal(text, &last); err != nil {
		s.log.Warn("record of earlier processes is unreadable", "error", err)
		return nil
	}
	if last.Boot == "" || last.Boot != bootID() {
		return nil
	}
	for _, p := range last.Processes {
		if p.PID <= 1 || p.Born == 0 || birth(p.PID) != p.Born {
			continue
		}
		s.log.Warn("ending a process that an earlier supervisor left", "process", p.Name, "pid", p.PID)
		if err := endLeftover(p); err != nil {
			return err
		}
	}
	return nil
}

func endLeftover(p Status) error {
	deadline := time.Now().Add(standardGrace)
	for sig := syscall.SIGTERM; birth(p.PID) == p.Born; time.Sleep(20 * time.Millisecond) {
		if err := syscall.Kill(-p.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("end leftover %s (%d): %w", p.Name, p.PID, err)
		}
		switch {
		case sig == syscall.SIGTERM && time.Now().After(deadline):
			sig = syscall.SIGKILL
			deadline = time.Now().Add(standardGrace)
		case time.Now().After(deadline):
			return fmt.Errorf("leftover %s (%d) does not end", p.Name, p.PID)
		}
	}
	return nil
}
