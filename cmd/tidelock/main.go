// Command tidelock is the whole product in one binary: the server, the agent
// and the client of both. Each command is one file here that turns flags into
// a typed value and makes one call.
//
// Rules of its output:
//
//   - what was asked for goes to stdout, and nothing else does;
//   - progress, warnings and errors go to stderr, each line "tidelock: …";
//   - with --output json stdout is one JSON document;
//   - text that others wrote is shown without control characters.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	env := &environment{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		getenv: os.Getenv, configDir: os.UserConfigDir,
	}
	os.Exit(run(ctx, env, os.Args[1:]))
}

// environment is all that a command knows of the process it runs in.
type environment struct {
	stdin     io.Reader
	stdout    io.Writer
	stderr    io.Writer
	getenv    func(string) string
	configDir func() (string, error)
}

// warnf tells of something that does not stop the command.
func (e *environment) warnf(format string, args ...any) {
	fmt.Fprintf(e.stderr, "tidelock: %s\n", plain(fmt.Sprintf(format, args...)))
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, env *environment, args []string) int {
	root := newRootCommand(env)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	for _, line := range errorLines(err) {
		fmt.Fprintf(env.stderr, "tidelock: %s\n", plain(line))
	}
	return exitCode(ctx, err)
}
