package gitrepo

import (
	"os/exec"
	"syscall"
)

// inOwnGroup lets the command and its children be stopped together, and asks
// git to stop when this process dies: nobody would record what it does.
func inOwnGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

func stopGroup(cmd *exec.Cmd, now bool) {
	signal := syscall.SIGTERM
	if now {
		signal = syscall.SIGKILL
	}
	_ = syscall.Kill(-cmd.Process.Pid, signal) // it may have ended by itself
}

// beNice gives way to the processes that somebody waits for.
func beNice(cmd *exec.Cmd) {
	_ = syscall.Setpriority(syscall.PRIO_PGRP, cmd.Process.Pid, 10)
}
