package main

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"tidelock.dev"
	"tidelock.dev/internal/agent"
)

// agentRunOptions are the flags of "agent run" that are not the agent's own.
type agentRunOptions struct {
	config     agent.Config
	logs       logging
	configFile string
	token      string
	kubeconfig string
	context    string
}

func newAgentRunCommand(env *environment) *cobra.Command {
	var options agentRunOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Connect a cluster to the forge and stay connected",
		Long: `Connect a cluster to the forge and stay connected. Inside a cluster the agent
uses its service account, elsewhere a kubeconfig. It only dials out.

Every flag can be set by an environment variable (--server-url by
TIDELOCK_AGENT_SERVER_URL) or in a YAML file named by --config.`,
		Example: `  tidelock agent run --server-url https://forge.example --token-file agent.token
  tidelock agent run --server-url https://localhost:8443 --ca-file ca.crt \
    --token-file agent.token --kubeconfig ~/.kube/config --lease-namespace flux-system`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			file := cmp.Or(options.configFile, env.getenv("TIDELOCK_AGENT_CONFIG"))
			err := settings{flags: cmd.Flags(), prefix: agentVariables, getenv: env.getenv, file: file}.apply()
			return runAgent(cmd, env, options, err)
		},
	}
	flags := cmd.Flags()
	c := &options.config
	flags.StringVar(&options.configFile, "config", "", "YAML file with settings by the names of these flags")
	flags.StringVar(&c.ServerURL, "server-url", "", "URL of the forge (required)")
	flags.StringVar(&options.token, "token", "", "the agent's token (better: --token-file)")
	flags.StringVar(&c.TokenFile, "token-file", "", "file with the agent's token; it is read again at every connect")
	flags.StringVar(&c.CAFile, "ca-file", "", "certificate authority of the forge, trusted beside the system's")
	flags.StringVar(&options.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster (default: the service account, else $KUBECONFIG)")
	flags.StringVar(&options.context, "context", "", "context of the kubeconfig")
	flags.StringVar(&c.LeaseNamespace, "lease-namespace", "", "namespace of the Lease that elects a leader (default: the pod's)")
	flags.StringVar(&c.PodName, "pod-name", "", "name of this replica (default: the host's)")
	flags.StringVar(&c.PodNamespace, "pod-namespace", "", "namespace of this replica")
	flags.StringVar(&c.ListenAddr, "listen", "", "address of /healthz, /readyz and /metrics (default: none)")
	options.logs.add(flags)
	return cmd
}

// runAgent reports every problem of the configuration at once, or runs.
func runAgent(cmd *cobra.Command, env *environment, o agentRunOptions, settingsErr error) error {
	var problems []string
	if e, ok := errors.AsType[*settingsError](settingsErr); ok {
		problems = append(problems, e.problems...)
	}
	problems = append(problems, o.logs.problems()...)
	cluster, err := o.cluster(env)
	if err != nil {
		problems = append(problems, fmt.Sprintf("--kubeconfig: %v", err))
		cluster = &rest.Config{} // that problem is told; look for others
	}
	c := o.config
	c.REST, c.Token = cluster, tidelock.NewSecret(o.token)
	c.Version, c.Commit = buildVersion(), buildCommit()
	c.Log, c.Level = o.logs.logger(env.stderr)
	for _, problem := range each(c.Validate()) {
		problems = append(problems, problem.Error())
	}
	if problems != nil {
		return &settingsError{problems}
	}
	// The Kubernetes libraries speak through a logger of the whole process.
	klog.SetSlogLogger(c.Log.With("component", "kubernetes"))
	a, err := agent.New(c)
	if err != nil {
		return err
	}
	return a.Run(cmd.Context())
}

// each takes joined errors apart.
func each(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	if err == nil {
		return nil
	}
	return []error{err}
}

// cluster is how the Kubernetes API is reached: as the named kubeconfig says,
// else as the service account, else as the usual kubeconfig says.
func (o agentRunOptions) cluster(env *environment) (*rest.Config, error) {
	if o.kubeconfig == "" && o.context == "" {
		config, err := rest.InClusterConfig()
		if !errors.Is(err, rest.ErrNotInCluster) {
			return config, err
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
		&clientcmd.ConfigOverrides{CurrentContext: o.context}).ClientConfig()
}
