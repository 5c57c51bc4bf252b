package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tidelock.dev/playground/stack"
	"tidelock.dev/playground/supervisor"
)

func newStatusCommand(at *place) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what runs, since when, and what crashed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return status(*at, output, cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func status(at place, output string, out io.Writer) error {
	record, err := supervisor.Read(at.state)
	running := err == nil
	if err != nil && !errors.Is(err, supervisor.ErrNotRunning) {
		return err
	}
	facts, err := stack.ReadFacts(at.state)
	if err != nil {
		return err
	}
	if !running {
		record.PID, record.Processes = 0, nil // what was true once
		facts.Ready = false
	}
	switch output {
	case "json":
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(struct {
			Running   bool                `json:"running"`
			Ready     bool                `json:"ready"`
			PID       int                 `json:"pid,omitempty"`
			URL       string              `json:"url,omitempty"`
			Processes []supervisor.Status `json:"processes"`
		}{running, facts.Ready, record.PID, facts.URL, append([]supervisor.Status{}, record.Processes...)})
	case "table":
	default:
		return misusef("--output is table or json, not %q", output)
	}
	if !running {
		return notReadyf("the playground is not running; start it with \"make up\"")
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "COMPONENT\tPID\tSTATE\tSINCE\tRESTARTS\tLAST EXIT")
	troubled := 0
	for _, p := range record.Processes {
		pid, last := "-", "-"
		if p.PID != 0 {
			pid = fmt.Sprint(p.PID)
		}
		if p.LastExit != "" {
			last = fmt.Sprintf("%s, %s ago", p.LastExit, age(p.LastExitAt))
		}
		if p.State != supervisor.Running {
			troubled++
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\n", p.Name, pid, p.State, age(p.Since), p.Restarts, last)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	switch {
	case !facts.Ready:
		return notReadyf("the playground is still starting")
	case troubled > 0:
		return notReadyf("%d of %d components do not run; their logs are in %s/logs", troubled, len(record.Processes), at.state)
	}
	return nil
}

func age(at time.Time) string { return time.Since(at).Round(time.Second).String() }
