package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tidelock.dev/playground/stack"
	"tidelock.dev/playground/supervisor"
)

func newUpCommand(at *place) *cobra.Command {
	var kubeconfig, host string
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start the playground, and leave it running",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kubeconfig != "" && host == "" {
				return misusef("your cluster must reach the forge on this machine; name the machine as the cluster knows it with --host")
			}
			return up(cmd.Context(), *at, kubeconfig, host, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "use this cluster, with Flux installed, instead of ours")
	cmd.Flags().StringVar(&host, "host", "", "name under which clients reach this machine (default localhost)")
	return cmd
}

func up(ctx context.Context, at place, kubeconfig, host string, out io.Writer) error {
	switch record, err := supervisor.Read(at.state); {
	case err == nil:
		facts, err := stack.ReadFacts(at.state)
		if err != nil {
			return err
		}
		if !facts.Ready {
			return notReadyf("the playground is being started by process %d; \"make down\" ends it", record.PID)
		}
		fmt.Fprintln(out, "The playground is running already.")
		return printSummary(ctx, out, at, facts)
	case !errors.Is(err, supervisor.ErrNotRunning):
		return err
	}
	if err := os.MkdirAll(at.state, 0o700); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	began := time.Now()
	if err := startSupervisor(ctx, at, kubeconfig, host, out); err != nil {
		return err
	}
	facts, err := stack.ReadFacts(at.state)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nThe playground is ready after %s.\n", elapsed(time.Since(began)))
	return printSummary(ctx, out, at, facts)
}

// startSupervisor leaves a process that keeps the playground running, detached
// from the terminal, and shows what it does until it is ready. An interruption
// ends that process, and with it all that it began.
func startSupervisor(ctx context.Context, at place, kubeconfig, host string, out io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	logPath := filepath.Join(at.state, "playground.log")
	logFile, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer logFile.Close()
	events, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer events.Close()

	args := []string{"supervise", "--root", at.root, "--state", at.state}
	if kubeconfig != "" {
		absolute, err := filepath.Abs(kubeconfig)
		if err != nil {
			return err
		}
		args = append(args, "--kubeconfig", absolute)
	}
	if host != "" {
		args = append(args, "--host", host)
	}
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{w} // descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start supervisor: %w", err)
	}
	stopWatching := context.AfterFunc(ctx, func() {
		fmt.Fprintln(out, "\nStopping what was begun …")
		_ = cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended
	})
	defer stopWatching()

	shown := newProgress(out)
	failure := ""
	decoder := json.NewDecoder(events)
	for {
		var e stack.Event
		if err := decoder.Decode(&e); err != nil {
			break // it has ended
		}
		if e.Step == readyStep {
			if !stopWatching() {
				break // too late: it is being stopped
			}
			return cmd.Process.Release()
		}
		if ctx.Err() == nil {
			shown.show(e)
		}
		if e.State == stack.Failed {
			failure = e.Note
		}
	}
	err = cmd.Wait()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case failure != "":
		return fmt.Errorf("%s\n(all that was begun is stopped; more is in %s)", failure, logPath)
	case err != nil:
		return fmt.Errorf("the supervisor ended early: %w; see %s", err, logPath)
	}
	return fmt.Errorf("the supervisor ended early; see %s", logPath)
}
