package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"tidelock.dev/playground/component"
	"tidelock.dev/playground/stack"
)

func newBuildCommand(at *place) *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build what the playground runs, into your cache folder",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := component.DefaultDir()
			if err != nil {
				return err
			}
			shown := newProgress(cmd.OutOrStdout())
			cache := component.Cache{
				Dir: dir, Modules: filepath.Join(at.root, "playground", "components"),
				Progress: func(e component.Event) { shown.show(stack.BuildEvent(e)) },
			}
			_, err = cache.Ensure(cmd.Context())
			return err
		},
	}
}
