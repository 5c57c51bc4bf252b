package main

import (
	"net/http"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"tidelock.dev"
)

// A serverInfo is how a server is reached, and by what it is known.
type serverInfo struct {
	URL        string `json:"url"`
	API        string `json:"api"`
	Agents     string `json:"agents"`
	CAFile     string `json:"ca_file"` // "" for the system's authorities
	SSH        string `json:"ssh"`     // "" when git over SSH is not served
	KnownHosts string `json:"known_hosts"`
	SigningKey string `json:"signing_key"` // the id of the key in use; "" when nothing is signed
}

func newServerInfoCommand(env *environment) *cobra.Command {
	var source sourceFlags
	var output outputFlag
	cmd := &cobra.Command{
		Use:   "info",
		Short: "Show how a server is reached, and by what it is known",
		Long: `Show how a server is reached, and by what it is known: its URLs, the file of
the certificate authority that this command trusts, the line of its SSH host
key for a file known_hosts, and the key that it signs artifacts with, which
"tidelock artifact key" prints.`,
		Example: `  tidelock server info
  tidelock server info -o json | jq -r .known_hosts >> ~/.ssh/known_hosts`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := source.connect(env)
			if err != nil {
				return err
			}
			type metadata struct {
				KAS struct {
					URL string `json:"externalUrl"`
				} `json:"kas"`
				SSH struct {
					URL        string `json:"url"`
					KnownHosts string `json:"knownHosts"`
				} `json:"ssh"`
			}
			told, err := call[metadata](cmd.Context(), c, http.MethodGet, "metadata", nil)
			if err != nil {
				return err
			}
			url := strings.TrimRight(c.source.URL, "/")
			info := serverInfo{
				URL: url, API: url + "/api/v4", Agents: told.value.KAS.URL, CAFile: c.source.CAFile,
				SSH: told.value.SSH.URL, KnownHosts: told.value.SSH.KnownHosts,
			}
			keys, err := c.source.signingKeys(cmd.Context())
			if err != nil && tidelock.KindOf(err) != tidelock.NotFound { // an older server signs nothing
				return err
			}
			for _, k := range keys {
				if k.InUse {
					info.SigningKey = k.ID
				}
			}
			if info.CAFile != "" {
				if absolute, err := filepath.Abs(info.CAFile); err == nil {
					info.CAFile = absolute
				}
			}
			if output.json() {
				return printJSON(env.stdout, info)
			}
			t := newTable(env.stdout)
			t.row("URL", info.URL)
			t.row("API", info.API)
			t.row("Agents", info.Agents)
			t.row("CA file", orDash(info.CAFile))
			t.row("SSH", orDash(info.SSH))
			t.row("known_hosts", orDash(info.KnownHosts))
			t.row("Signing key", orDash(info.SigningKey))
			return t.flush()
		},
	}
	source.add(cmd)
	output.add(cmd)
	return cmd
}
