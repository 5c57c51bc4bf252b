package main

import (
	"cmp"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// A rolloutRow is one commit's way through one applier as our own route tells
// it.
type rolloutRow struct {
	Agent       string     `json:"agent"`
	Applier     string     `json:"applier"`
	SHA         string     `json:"sha"`
	Ref         string     `json:"ref"`
	Environment string     `json:"environment"`
	State       string     `json:"state"`
	Message     string     `json:"message"`
	FinishedAt  *time.Time `json:"finished_at"`
	UpdatedAt   *time.Time `json:"updated_at"`
}

func newRolloutsCommand(env *environment) *cobra.Command {
	var source sourceFlags
	var output outputFlag
	var limit limitFlag
	var query struct {
		Commit      string `url:"sha,omitempty"`
		Environment string `url:"environment,omitempty"`
		State       string `url:"state,omitempty"`
		Applier     string `url:"applier,omitempty"`
		Newest      bool   `url:"newest,omitempty"`
	}
	cmd := &cobra.Command{
		Use:   "rollouts <project>",
		Short: "List how far commits came in clusters, newest first",
		Long: `List how far the commits of a project came in clusters: one line for each
commit and each Flux object that applies it. It is pending until Flux has the
commit, running while Flux applies it or its objects are not healthy yet, and
ends with success, failed, or superseded by a newer commit; unknown says that
the agent cannot be asked.`,
		Example: `  tidelock rollouts team/site --newest
  tidelock rollouts team/site --commit $(git rev-parse HEAD) -o json
  tidelock rollouts team/site --environment production --state failed`,
		Args: arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			if query.Commit != "" {
				// A branch or a short name is as good as the commit.
				found, err := call[struct {
					ID string `json:"id"`
				}](cmd.Context(), c, http.MethodGet, at("projects/%s/repository/commits/%s", args[0], query.Commit), nil)
				if err != nil {
					return err
				}
				query.Commit = found.value.ID
			}
			rollouts, err := list[rolloutRow](cmd.Context(), c, at("projects/%s/rollouts", args[0]), query, int(limit))
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, rawOf(rollouts))
			}
			t := newTable(env.stdout, "COMMIT", "REF", "AGENT", "OBJECT", "ENVIRONMENT", "STATE", "WHEN", "MESSAGE")
			for _, item := range rollouts {
				r := item.value
				t.row(short(r.SHA), orDash(shortRef(r.Ref)), r.Agent, r.Applier, orDash(r.Environment), r.State, ago(cmp.Or(r.FinishedAt, r.UpdatedAt)), oneLine(r.Message))
			}
			return t.flush()
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&query.Commit, "commit", "", "only of this commit; a branch or tag is its head")
	flags.StringVar(&query.Environment, "environment", "", "only to this environment")
	flags.StringVar(&query.State, "state", "", "only in this state: pending, running, success, failed, superseded or unknown")
	flags.StringVar(&query.Applier, "object", "", "only through this object, such as Kustomization/flux-system/apps")
	flags.BoolVar(&query.Newest, "newest", false, "only the newest commit of each object")
	limit.add(cmd, 50, "how many to list")
	source.add(cmd)
	output.add(cmd)
	return cmd
}
