//go:build unix && !linux

package supervisor

import "syscall"

// childAttributes gives a child its own process group. Only Linux can end it
// together with us.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}

// birth and bootID are unknown here, so leftovers are never recognised and
// never touched.
func birth(int) uint64 { return 0 }

func bootID() string { return "" }
