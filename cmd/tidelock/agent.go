package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	gitlab "gitlab.com/gitlab-org/api/client-go"
)

func newAgentCommand(env *environment) *cobra.Command {
	cmd := parent("agent", "Run an agent; register, look at and manage agents", `
An agent connects a cluster to the forge. It belongs to its configuration
project, and is named <project>/<name>.`)
	var source sourceFlags
	managed := []*cobra.Command{
		newAgentRegisterCommand(env, &source),
		newAgentListCommand(env, &source),
		newAgentShowCommand(env, &source),
		newAgentTokenCommand(env, &source),
		newAgentGrantCommand(env, &source),
		newAgentRevokeCommand(env, &source),
		newAgentGrantsCommand(env, &source),
		newAgentManifestCommand(env, &source),
	}
	for _, sub := range managed {
		source.add(sub) // "run" has flags of its own for what it connects to
	}
	cmd.AddCommand(newAgentRunCommand(env))
	cmd.AddCommand(managed...)
	return cmd
}

// agent connects to the server and finds the agent that a reference names.
func (f *sourceFlags) agent(ctx context.Context, env *environment, reference string) (*connection, answer[gitlab.Agent], error) {
	c, err := f.connect(env)
	if err != nil {
		return nil, answer[gitlab.Agent]{}, err
	}
	agent, err := findAgent(ctx, c, reference)
	return c, agent, err
}

// findAgent finds an agent by "<project>/<name>" or "<project>/<id>".
func findAgent(ctx context.Context, c *connection, reference string) (answer[gitlab.Agent], error) {
	i := strings.LastIndex(reference, "/")
	if i <= 0 || i == len(reference)-1 {
		return answer[gitlab.Agent]{}, misusef("%q does not name an agent; give <project>/<name>, such as team/infra/production", reference)
	}
	project, name := reference[:i], reference[i+1:]
	agents, err := list[gitlab.Agent](ctx, c, at("projects/%s/cluster_agents", project), nil, 0)
	if err != nil {
		return answer[gitlab.Agent]{}, fmt.Errorf("agents of project %q: %w", project, err)
	}
	id, _ := strconv.ParseInt(name, 10, 64)
	for _, a := range agents {
		if a.value.Name == name {
			return a, nil
		}
	}
	for _, a := range agents { // a name made of digits goes before an id
		if a.value.ID == id {
			return a, nil
		}
	}
	return answer[gitlab.Agent]{}, fmt.Errorf(`project %q has no agent %q; register it with "tidelock agent register %s %s"`, project, name, project, name)
}

// agentPath is an agent's place in the API.
func agentPath(a gitlab.Agent) string {
	return fmt.Sprintf("projects/%d/cluster_agents/%d", a.ConfigProject.ID, a.ID)
}

func newAgentRegisterCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var tokenName, tokenFile string
	cmd := &cobra.Command{
		Use:   "register <project> <name>",
		Short: "Register an agent, if needed, and print a token for it once",
		Long: `Register an agent in its configuration project, unless it exists, and make a
token for it. The token is printed alone on standard output, or written to
--token-file, and never shown again. An agent has at most two active tokens.`,
		Example: `  tidelock agent register team/infra production
  tidelock agent register team/infra production --token-file agent.token`,
		Args: arguments("<project>", "<name>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			agent, created, err := ensureAgent(ctx, c, args[0], args[1])
			if err != nil {
				return err
			}
			token, err := createAgentToken(ctx, c, agent.value, tokenName)
			if err != nil {
				return err
			}
			if output.json() && tokenFile == "" {
				return printJSON(env.stdout, map[string]any{"agent": agent.raw, "token": token.raw})
			}
			if created {
				fmt.Fprintf(env.stderr, "tidelock: agent %s/%s is registered with id %d\n", plain(args[0]), plain(args[1]), agent.value.ID)
			}
			return printSecret(env, "table", tokenFile, token.value.Token, nil)
		},
	}
	cmd.Flags().StringVar(&tokenName, "token-name", "", "name of the token (default: the agent's)")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "write the token to this file, for your eyes only, instead of printing it")
	output.add(cmd)
	return cmd
}

func ensureAgent(ctx context.Context, c *connection, project, name string) (agent answer[gitlab.Agent], created bool, err error) {
	path := at("projects/%s/cluster_agents", project)
	agents, err := list[gitlab.Agent](ctx, c, path, nil, 0)
	if err != nil {
		return agent, false, fmt.Errorf("project %q: %w", project, err)
	}
	for _, a := range agents {
		if a.value.Name == name {
			return a, false, nil
		}
	}
	agent, err = call[gitlab.Agent](ctx, c, http.MethodPost, path, &gitlab.RegisterAgentOptions{Name: &name})
	return agent, true, err
}

func createAgentToken(ctx context.Context, c *connection, agent gitlab.Agent, name string) (answer[newToken], error) {
	if name == "" {
		name = agent.Name
	}
	return call[newToken](ctx, c, http.MethodPost, agentPath(agent)+"/tokens", &gitlab.CreateAgentTokenOptions{Name: &name})
}

func newAgentTokenCommand(env *environment, source *sourceFlags) *cobra.Command {
	cmd := parent("token", "List, create and revoke an agent's tokens", `
An agent has at most two active tokens, so that one can replace the other.
Revoking one ends the connections that use it within seconds.`)
	cmd.AddCommand(newAgentTokenListCommand(env, source), newAgentTokenCreateCommand(env, source), newAgentTokenRevokeCommand(env, source))
	return cmd
}

func newAgentTokenListCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "list <project>/<agent>",
		Short:   "List an agent's active tokens",
		Example: "  tidelock agent token list team/infra/production",
		Args:    arguments("<project>/<agent>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, agent, err := source.agent(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			tokens, err := list[gitlab.AgentToken](cmd.Context(), c, agentPath(agent.value)+"/tokens", nil, 0)
			if err != nil {
				return err
			}
			return printList(env, output, tokens, []string{"ID", "NAME", "STATUS", "CREATED"}, func(t gitlab.AgentToken) []string {
				return []string{fmt.Sprint(t.ID), t.Name, t.Status, ago(t.CreatedAt)}
			})
		},
	}
	output.add(cmd)
	return cmd
}

func newAgentTokenCreateCommand(env *environment, source *sourceFlags) *cobra.Command {
	var output outputFlag
	var name, tokenFile string
	cmd := &cobra.Command{
		Use:     "create <project>/<agent>",
		Short:   "Create a token and print it; it is never shown again",
		Example: "  tidelock agent token create team/infra/production --token-file next.token",
		Args:    arguments("<project>/<agent>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, agent, err := source.agent(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			token, err := createAgentToken(cmd.Context(), c, agent.value, name)
			if err != nil {
				return err
			}
			return printSecret(env, output, tokenFile, token.value.Token, token.raw)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of the token (default: the agent's)")
	cmd.Flags().StringVar(&tokenFile, "token-file", "", "write it to this file, for your eyes only, instead of printing it")
	output.add(cmd)
	return cmd
}

func newAgentTokenRevokeCommand(env *environment, source *sourceFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke <project>/<agent> <id>",
		Short:   "Revoke a token; connections that use it end within seconds",
		Example: "  tidelock agent token revoke team/infra/production 3",
		Args:    arguments("<project>/<agent>", "<id>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil {
				return misusef(`%q is not the id of a token; see "tidelock agent token list"`, args[1])
			}
			c, agent, err := source.agent(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			return send(cmd.Context(), c, http.MethodDelete, fmt.Sprintf("%s/tokens/%d", agentPath(agent.value), id), nil)
		},
	}
}

func newAgentGrantCommand(env *environment, source *sourceFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "grant <project>/<agent> <project>",
		Short: "Let an agent be told of a private project's pushes",
		Long: `Let an agent be told of the pushes to a project that is neither public nor the
agent's own. It takes a maintainer of the project.`,
		Example: "  tidelock agent grant team/infra/production team/secrets",
		Args:    arguments("<project>/<agent>", "<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, agent, err := source.agent(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			return send(cmd.Context(), c, http.MethodPost, at("projects/%s/agent_grants", args[1]), map[string]int64{"agent_id": agent.value.ID})
		},
	}
}

func newAgentRevokeCommand(env *environment, source *sourceFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "revoke <project>/<agent> <project>",
		Aliases: []string{"ungrant"},
		Short:   "Take a grant back; announcements stop within seconds",
		Example: "  tidelock agent revoke team/infra/production team/secrets",
		Args:    arguments("<project>/<agent>", "<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, agent, err := source.agent(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			return send(cmd.Context(), c, http.MethodDelete, at("projects/%s/agent_grants/%d", args[1], agent.value.ID), nil)
		},
	}
}
