package render

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// confine lets this process have no more files than it has, which are its
// pipes, and no more memory and time than a rendering may need.
func confine() error {
	for resource, limit := range map[int]uint64{
		unix.RLIMIT_NOFILE: 3,
		unix.RLIMIT_DATA:   maxMemory,
		unix.RLIMIT_CPU:    maxSeconds,
		unix.RLIMIT_FSIZE:  0,
		unix.RLIMIT_CORE:   0,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("limit resource %d: %w", resource, err)
		}
	}
	return nil
}

// overtime reports whether a process was ended for its use of the processor.
func overtime(state *os.ProcessState) bool {
	status, ok := state.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && (status.Signal() == syscall.SIGXCPU || status.Signal() == syscall.SIGKILL)
}
