package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// A grantRow is a grant as our own route tells it. The agent's name is missing
// when the caller may not see the agent.
type grantRow struct {
	AgentID      int64      `json:"agent_id"`
	AgentName    string     `json:"agent_name"`
	AgentProject string     `json:"agent_project"`
	Project      string     `json:"project"`
	CreatedAt    *time.Time `json:"created_at"`
}

func (g grantRow) agent() string {
	if g.AgentName == "" {
		return fmt.Sprintf("agent %d", g.AgentID)
	}
	return g.AgentProject + "/" + g.AgentName
}

func newAgentGrantsCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "grants <project>",
		Short:   "List the agents that a project was granted to",
		Long:    `List the agents that a project was granted to. What an agent was granted is part of "tidelock agent show".`,
		Example: "  tidelock agent grants team/secrets",
		Args:    arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			grants, err := list[grantRow](cmd.Context(), c, at("projects/%s/agent_grants", args[0]), nil, 0)
			if err != nil {
				return err
			}
			return printList(env, output, grants, []string{"ID", "AGENT", "GRANTED"}, func(g grantRow) []string {
				return []string{fmt.Sprint(g.AgentID), g.agent(), ago(g.CreatedAt)}
			})
		},
	}
	output.add(cmd)
	return cmd
}
