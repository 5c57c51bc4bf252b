package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newRootCommand(env *environment) *cobra.Command {
	root := parent("tidelock", "Keep clusters showing the face of their Git repository", `
Tidelock is a forge for Git repositories that tells Flux in your clusters of
every push at once, through connections that the clusters' agents make.`)
	root.Example = `  tidelock server                       # serve on https://localhost:8443
  tidelock agent register team/infra production
  tidelock agent show team/infra/production`
	root.SetIn(env.stdin)
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return misusef("%v; see %q", err, cmd.CommandPath()+" --help")
	})
	root.AddCommand(
		newServerCommand(env),
		newBackupCommand(env),
		newAgentCommand(env),
		newContextCommand(env),
		newProjectCommand(env),
		newGroupCommand(env),
		newUserCommand(env),
		newTokenCommand(env),
		newKeyCommand(env),
		newHookCommand(env),
		newNotifyCommand(env),
		newAuditCommand(env),
		newPushCommand(env),
		newRolloutsCommand(env),
		newArtifactCommand(env),
		newImageCommand(env),
		newDeliveryCommand(env),
		newWaitCommand(env),
		newTraceCommand(env),
		newWhyCommand(env),
		newBenchCommand(env),
		newVersionCommand(env),
		newExitCodesTopic(),
	)
	return root
}

// parent is a command that only holds others.
func parent(use, short, long string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Long:  strings.TrimSpace(long),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return misusef("there is no command %q; see %q", cmd.CommandPath()+" "+args[0], cmd.CommandPath()+" --help")
		},
		Args: cobra.ArbitraryArgs,
	}
}

// arguments checks their number and names them when it is wrong.
func arguments(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		if len(names) == 0 {
			return misusef("%q takes no arguments, but got %q", cmd.CommandPath(), args[0])
		}
		return misusef("%q takes %s, but got %d of %d; see %q", cmd.CommandPath(),
			strings.Join(names, " "), len(args), len(names), cmd.CommandPath()+" --help")
	}
}

func newExitCodesTopic() *cobra.Command {
	return &cobra.Command{
		Use:   "exit-codes",
		Short: "What the exit code says",
		Long: fmt.Sprintf(`Tidelock exits with

  %-4d done
  %-4d failed: what was asked for could not be done
  %-4d misused: the command line or the configuration cannot work
  %-4d not ready yet: there is no server, or what was asked cannot be told now; try again
  %-4d interrupted before it was done`, exitDone, exitFailed, exitMisused, exitNotReady, exitInterrupted),
	}
}
