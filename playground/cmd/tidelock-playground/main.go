// Command tidelock-playground runs Tidelock with a real Kubernetes control
// plane and real Flux on one machine, without containers or root.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"tidelock.dev/playground/component"
)

// Exit codes are those of the tidelock command.
const (
	exitFailed      = 1
	exitMisused     = 2
	exitNotReady    = 3
	exitInterrupted = 130
)

// A coded error ends the command with an exit code of its own.
type codedError struct {
	code int
	error
}

func (e codedError) Unwrap() error { return e.error }

// notReadyf makes an error that a later try may not meet.
func notReadyf(format string, args ...any) error {
	return codedError{exitNotReady, fmt.Errorf(format, args...)}
}

// misusef makes an error about the command line.
func misusef(format string, args ...any) error {
	return codedError{exitMisused, fmt.Errorf(format, args...)}
}

func main() {
	// The terminal's end is an interruption too.
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "tidelock-playground: interrupted")
		return exitInterrupted
	}
	fmt.Fprintln(stderr, "tidelock-playground:", err)
	if coded, ok := errors.AsType[codedError](err); ok {
		return coded.code
	}
	return exitFailed
}

// place is where the clone and the state folder are.
type place struct{ root, state string }

func newRootCommand() *cobra.Command {
	var at place
	root := &cobra.Command{
		Use:           "tidelock-playground",
		Short:         "Tidelock, Kubernetes and Flux on one machine",
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return at.find()
		},
	}
	root.PersistentFlags().StringVar(&at.root, "root", "", "clone of Tidelock (default: the one around the current folder)")
	root.PersistentFlags().StringVar(&at.state, "state", "", "state folder (default <root>/.playground)")
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return misusef("%w", err) })
	root.AddCommand(
		newUpCommand(&at), newDownCommand(&at), newStatusCommand(&at), newDemoCommand(&at),
		newBuildCommand(&at), newSuperviseCommand(&at),
	)
	return root
}

func (p *place) find() error {
	if p.root == "" {
		modules, err := component.FindModules(".")
		if err != nil {
			return err
		}
		p.root = filepath.Dir(filepath.Dir(modules))
	}
	var err error
	if p.root, err = filepath.Abs(p.root); err != nil {
		return err
	}
	if p.state == "" {
		p.state = filepath.Join(p.root, ".playground")
	}
	p.state, err = filepath.Abs(p.state)
	return err
}
