package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// maxFile bounds small files that are named on the command line.
const maxFile = 64 << 10

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

func (k signingKeyRow) retiredAt() time.Time {
	at, _ := time.Parse(time.RFC3339, k.RetiredAt) // none for null
	return at
}

func newArtifactKeyCommand(env *environment, flags *artifactFlags) *cobra.Command {
	var output outputFlag
	var all bool
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Print the public key by which the server's artifacts are verified",
		Long: `Print the public key by which artifacts that the server packaged are verified,
in PEM. A Secret that holds it lets Flux verify them, too. While a key is being
rotated, the Secret holds the old key and the new one, each under a name of its
own that ends in ".pub".`,
		Example: `  tidelock artifact key > cosign.pub
  kubectl --namespace flux-system create secret generic cosign-pub --from-file cosign.pub`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := flags.source(env)
			if err != nil {
				return err
			}
			keys, err := s.signingKeys(cmd.Context())
			if err != nil {
				return err
			}
			if output.json() {
				return printJSON(env.stdout, keys)
			}
			for _, k := range keys {
				if all || k.InUse {
					fmt.Fprint(env.stdout, k.PublicKey)
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also those that were retired")
	output.add(cmd)
	return cmd
}

func newServerRotateKeyCommand(env *environment) *cobra.Command {
	var source sourceFlags
	cmd := &cobra.Command{
		Use:   "rotate-signing-key",
		Short: "Sign with a new key from now on",
		Long: `Sign what the server packages with a new key from now on. The old public key
stays listed, and what it signed stays good until you take the key out of the
Secrets and files that name it. Give the new one to everybody before the next
push: Flux refuses what is signed by a key that it was not given.`,
		Example: "  tidelock server rotate-signing-key",
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			keys, err := c.source.signingKeys(cmd.Context())
			if err != nil {
				return err
			}
			for _, k := range keys {
				if !k.InUse {
					continue
				}
				made, err := call[signingKeyRow](cmd.Context(), c, http.MethodPost, "signing_keys/rotate", map[string]string{"id": k.ID})
				if err != nil {
					return err
				}
				fmt.Fprint(env.stdout, made.value.PublicKey)
				return nil
			}
			return fmt.Errorf("the server at %s signs nothing", c.source.URL)
		},
	}
	source.add(cmd)
	return cmd
}

// A reportRuleRow is a rule as our own route tells it.
type reportRuleRow struct {
	ID        int64     `json:"id"`
	Type      string    `json:"artifact_type"`
	Key       string    `json:"public_key"`
	CreatedAt time.Time `json:"created_at"`
}

func newArtifactRuleCommand(env *environment, flags *artifactFlags) *cobra.Command {
	cmd := parent("rule", "Hold artifacts until a report is attached", `
A rule of a project holds the announcement of its artifacts until a report of a
type, such as a scanner's, is attached to them: agents are told of an artifact
when the report is pushed. Flux's own interval still passes; to keep Flux from
what was not reported, let it verify signatures.`)
	cmd.AddCommand(newArtifactRuleListCommand(env, flags), newArtifactRuleAddCommand(env, flags), newArtifactRuleRemoveCommand(env, flags))
	return cmd
}

func newArtifactRuleListCommand(env *environment, flags *artifactFlags) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "list <project>",
		Short:   "List the reports that a project's artifacts need",
		Example: "  tidelock artifact rule list team/shop",
		Args:    arguments("<project>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := flags.connect(env)
			if err != nil {
				return err
			}
			rules, err := list[reportRuleRow](cmd.Context(), c, at("projects/%s/registry/report_rules", args[0]), nil, 0)
			if err != nil {
				return err
			}
			return printList(env, output, rules, []string{"ID", "REPORT", "SIGNED", "SINCE"}, func(r reportRuleRow) []string {
				signed := "no"
				if r.Key != "" {
					signed = "yes"
				}
				return []string{strconv.FormatInt(r.ID, 10), r.Type, signed, ago(&r.CreatedAt)}
			})
		},
	}
	output.add(cmd)
	return cmd
}

func newArtifactRuleAddCommand(env *environment, flags *artifactFlags) *cobra.Command {
	var keyFile string
	cmd := &cobra.Command{
		Use:   "add <project> <type>",
		Short: "Hold artifacts until a report of a type is attached",
		Example: `  tidelock artifact rule add team/shop application/sarif+json
  tidelock artifact rule add team/shop application/sarif+json --key scanner.pub`,
		Args: arguments("<project>", "<type>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := flags.connect(env)
			if err != nil {
				return err
			}
			body := map[string]string{"artifact_type": args[1]}
			if keyFile != "" {
				key, err := readBounded(keyFile)
				if err != nil {
					return fmt.Errorf("read the public key: %w", err)
				}
				body["public_key"] = string(key)
			}
			made, err := call[reportRuleRow](cmd.Context(), c, http.MethodPost, at("projects/%s/registry/report_rules", args[0]), body)
			if err != nil {
				return err
			}
			fmt.Fprintf(env.stdout, "%s waits for %s (id %d)\n", plain(args[0]), plain(made.value.Type), made.value.ID)
			return nil
		},
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "file of the public key that must have signed the report")
	return cmd
}

func newArtifactRuleRemoveCommand(env *environment, flags *artifactFlags) *cobra.Command {
	return &cobra.Command{
		Use:     "remove <project> <id>",
		Short:   "Announce artifacts without a report",
		Example: "  tidelock artifact rule remove team/shop 3",
		Args:    arguments("<project>", "<id>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil {
				return misusef("%q is not an id; %q shows them", args[1], "tidelock artifact rule list "+args[0])
			}
			c, err := flags.connect(env)
			if err != nil {
				return err
			}
			return send(cmd.Context(), c, http.MethodDelete, at("projects/%s/registry/report_rules/%d", args[0], id), nil)
		},
	}
}
