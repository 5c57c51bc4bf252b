package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"tidelock.dev/playground/supervisor"
)

// downTimeout is longer than all processes' grace together.
const downTimeout = 90 * time.Second

func newDownCommand(at *place) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the playground; its state is kept",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), downTimeout)
			defer cancel()
			err := supervisor.Terminate(ctx, at.state)
			if errors.Is(err, supervisor.ErrNotRunning) {
				fmt.Fprintln(cmd.OutOrStdout(), "The playground is not running.")
				return nil
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "The playground is stopped. Its state stays in %s.\n", at.state)
			return nil
		},
	}
}
