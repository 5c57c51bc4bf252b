package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/spf13/cobra"

	"tidelock.dev/playground/stack"
	"tidelock.dev/playground/supervisor"
)

// readyStep is the last event of a start that succeeded.
const readyStep = "ready"

// newSuperviseCommand is what "up" leaves running. It tells its events, as
// lines of JSON, to descriptor 3.
func newSuperviseCommand(at *place) *cobra.Command {
	var kubeconfig, host string
	cmd := &cobra.Command{
		Use:    "supervise",
		Short:  "Start the playground and keep it running in the foreground",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return supervise(cmd.Context(), *at, kubeconfig, host, tellDescriptor(3))
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "")
	cmd.Flags().StringVar(&host, "host", "", "")
	return cmd
}

func supervise(ctx context.Context, at place, kubeconfig, host string, tell func(stack.Event)) (err error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := supervisor.Open(supervisor.Config{Dir: at.state, Log: log.With("component", "supervisor")})
	if err != nil {
		tell(stack.Event{Step: "supervisor", State: stack.Failed, Note: err.Error()})
		return err
	}
	defer func() {
		log.Info("stopping")
		err = errors.Join(err, s.Close())
	}()
	running, err := stack.Start(ctx, stack.Config{
		Root: at.root, State: at.state, Supervisor: s, Log: log,
		Kubeconfig: kubeconfig, Host: host, Report: tell,
	})
	if err != nil {
		return fmt.Errorf("start the playground: %w", err)
	}
	log.Info("the playground is ready")
	tell(stack.Event{Step: readyStep, State: stack.Done})

	var keeper sync.WaitGroup
	keeper.Go(func() { running.Run(ctx) })
	<-ctx.Done()
	keeper.Wait()
	return nil
}

// tellDescriptor writes events to an inherited descriptor. Once nobody reads
// them, for the reader has seen "ready" or died, they are dropped.
func tellDescriptor(fd uintptr) func(stack.Event) {
	var mu sync.Mutex
	file := os.NewFile(fd, "events")
	return func(e stack.Event) {
		mu.Lock()
		defer mu.Unlock()
		if file == nil {
			return
		}
		if err := json.NewEncoder(file).Encode(e); err != nil || e.Step == readyStep {
			file.Close()
			file = nil
		}
	}
}
