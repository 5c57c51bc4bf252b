package main

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"tidelock.dev"
)

// A whyRow is what keeps a commit from being live, as our own route tells it.
type whyRow struct {
	SHA      string       `json:"sha"`
	Verdicts []verdictRow `json:"verdicts"`
}

type verdictRow struct {
	Environment string             `json:"environment"`
	Code        tidelock.CauseCode `json:"code"`
	Blocking    bool               `json:"blocking"`
	Sentence    string             `json:"sentence"`
	Next        string             `json:"next"`
	Evidence    []struct {
		Where string     `json:"where"`
		What  string     `json:"what"`
		At    *time.Time `json:"at"`
	} `json:"evidence"`
	Also []verdictRow `json:"also"`
}

func newWhyCommand(env *environment) *cobra.Command {
	var source sourceFlags
	var output outputFlag
	var about commitFlags
	var environment string
	cmd := &cobra.Command{
		Use:   "why [commit]",
		Short: "Say why a commit is not live",
		Long: `Say what keeps a commit from being live: for each environment the one thing that
has to change before anything else can matter, with the evidence for it and what
to do next. Other causes that would still be there are told after it.

The exit code is 0 when nothing is wrong (it is live, or on its way), 1 when
something is in the way, and 3 when it cannot be told.

` + whichCommit,
		Example: `  tidelock why
  tidelock why 1a2b3c4d --project team/site --environment production
  tidelock why main --project team/site -o json`,
		Args: atMostOneCommit,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			project, commit, err := about.find(cmd.Context(), env, c.source, args)
			if err != nil {
				return err
			}
			query := struct {
				Environment string `url:"environment,omitempty"`
			}{environment}
			found, err := call[whyRow](cmd.Context(), c, http.MethodGet, at("projects/%s/repository/commits/%s/why", project, commit), query)
			if err != nil {
				return err
			}
			if output.json() {
				if err := printJSON(env.stdout, found.raw); err != nil {
					return err
				}
			} else {
				for i, v := range found.value.Verdicts {
					if i > 0 {
						fmt.Fprintln(env.stdout)
					}
					v.print(env.stdout)
				}
			}
			return found.value.result()
		},
	}
	cmd.Flags().StringVar(&environment, "environment", "", "only this environment (default: all that it goes to)")
	about.add(cmd)
	source.add(cmd)
	output.add(cmd)
	return cmd
}

// result makes the exit code.
func (w whyRow) result() error {
	unknown := len(w.Verdicts) == 0
	for _, v := range w.Verdicts {
		switch {
		case v.Blocking && v.Environment == "":
			return fmt.Errorf("%s is not live", short(w.SHA))
		case v.Blocking:
			return fmt.Errorf("%s is not live in %s", short(w.SHA), v.Environment)
		}
		unknown = unknown || v.Code == tidelock.CauseUnknown
	}
	if unknown {
		return tidelock.Errorf(tidelock.Unavailable, "it cannot be told whether %s is live", short(w.SHA))
	}
	return nil
}

func (v verdictRow) print(out io.Writer) {
	where := ""
	if v.Environment != "" {
		where = plain(v.Environment) + ": "
	}
	fmt.Fprintf(out, "%s%s (%s)\n", where, plain(v.Sentence), plain(string(v.Code)))
	for _, e := range v.Evidence {
		fmt.Fprintf(out, "  %s: %s", plain(e.Where), plain(e.What))
		if e.At != nil {
			fmt.Fprintf(out, " (%s)", ago(e.At))
		}
		fmt.Fprintln(out)
	}
	for _, also := range v.Also {
		fmt.Fprintf(out, "Also: %s (%s)\n", plain(also.Sentence), plain(string(also.Code)))
	}
	if v.Next != "" {
		fmt.Fprintf(out, "Next: %s\n", plain(v.Next))
	}
}
