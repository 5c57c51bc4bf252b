package main

import (
	"cmp"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"tidelock.dev"
	manifest "tidelock.dev/deploy/agent"
)

// defaultImage is where the released agent is published.
const defaultImage = "ghcr.io/tidelock/tidelock"

func newAgentManifestCommand(env *environment, source *sourceFlags) *cobra.Command {
	var values manifest.Values
	var tokenFile string
	cmd := &cobra.Command{
		Use:   "manifest <project>/<agent>",
		Short: "Print what installs the agent in a cluster",
		Long: `Print the manifests that install the agent in a cluster, ready for kubectl
apply. They hold a token: one made for this, or that of --token-file. The
server's URL and CA are those that this command itself uses.`,
		Example: `  tidelock agent manifest team/infra/production | kubectl apply -f -
  tidelock agent manifest team/infra/production --server-url https://forge.example > agent.yaml`,
		Args: arguments("<project>/<agent>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, agent, err := source.agent(cmd.Context(), env, args[0])
			if err != nil {
				return err
			}
			values.AgentName = agent.value.Name
			values.ServerURL = cmp.Or(values.ServerURL, c.source.URL)
			values.Image = cmp.Or(values.Image, defaultImage+":"+buildVersion())
			if c.source.CAFile != "" {
				if values.CA, err = os.ReadFile(c.source.CAFile); err != nil {
					return fmt.Errorf("read the CA: %w", err)
				}
			}
			if tokenFile != "" {
				values.Token, err = readToken(env, tokenFile)
			} else {
				var token answer[newToken]
				token, err = createAgentToken(cmd.Context(), c, agent.value, "manifest")
				values.Token = tidelock.NewSecret(token.value.Token)
			}
			if err != nil {
				return err
			}
			if err := manifest.Render(env.stdout, values); err != nil {
				return misusef("%v", err)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&values.Namespace, "namespace", "tidelock-agent", "namespace to install into; it is made")
	flags.StringVar(&values.ServerURL, "server-url", "", "URL of the forge as the cluster reaches it (default: the one used here)")
	flags.StringVar(&values.Image, "image", "", "image that holds the command tidelock (default "+defaultImage+":<version>)")
	flags.IntVar(&values.Replicas, "replicas", manifest.DefaultReplicas, "one leads, the others stand by")
	flags.StringVar(&tokenFile, "token-file", "", `use the agent's token in this file; "-" reads standard input`)
	return cmd
}
