//go:build !linux

package gitrepo

import (
	"os"
	"os/exec"
)

// Elsewhere than on Linux only the command itself is stopped; its children
// end when their pipes do.

func inOwnGroup(*exec.Cmd) {}

func stopGroup(cmd *exec.Cmd, now bool) {
	if now {
		_ = cmd.Process.Kill()
		return
	}
	_ = cmd.Process.Signal(os.Interrupt)
}

func beNice(*exec.Cmd) {}
