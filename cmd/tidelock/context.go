package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"tidelock.dev"
)

func newContextCommand(env *environment) *cobra.Command {
	cmd := parent("context", "Keep servers by name", `
A context is a server's URL, an access token and its CA under one name. They
are kept in your configuration folder, and commands use the current one unless
the environment (TIDELOCK_URL, TIDELOCK_TOKEN, TIDELOCK_CA_FILE) or flags name
a server. The three always come from one place together. In a CI/CD job without
any of these the server is that of the job (CI_SERVER_URL), and the token that
of GITLAB_TOKEN.`)
	cmd.AddCommand(newContextListCommand(env), newContextUseCommand(env), newContextSetCommand(env))
	return cmd
}

func newContextListCommand(env *environment) *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the contexts; tokens are not shown",
		Example: "  tidelock context list",
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			contexts, err := loadContexts(env)
			if err != nil {
				return err
			}
			type row struct {
				Name    string `json:"name"`
				Current bool   `json:"current"`
				URL     string `json:"url"`
				CAFile  string `json:"ca_file"`
			}
			rows := []row{}
			for _, c := range contexts.Contexts {
				rows = append(rows, row{c.Name, c.Name == contexts.Current, c.URL, c.CAFile})
			}
			if output.json() {
				return printJSON(env.stdout, rows)
			}
			t := newTable(env.stdout, "CURRENT", "NAME", "URL", "CA FILE")
			for _, r := range rows {
				mark := ""
				if r.Current {
					mark = "*"
				}
				t.row(mark, r.Name, r.URL, orDash(r.CAFile))
			}
			return t.flush()
		},
	}
	output.add(cmd)
	return cmd
}

func newContextUseCommand(env *environment) *cobra.Command {
	return &cobra.Command{
		Use:     "use <name>",
		Short:   "Make a context the current one",
		Example: "  tidelock context use home",
		Args:    arguments("<name>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			contexts, err := loadContexts(env)
			if err != nil {
				return err
			}
			if _, ok := contexts.find(args[0]); !ok {
				return misusef(`there is no context %q; "tidelock context list" shows them`, args[0])
			}
			contexts.Current = args[0]
			return contexts.save()
		},
	}
}

func newContextSetCommand(env *environment) *cobra.Command {
	var url, tokenFile, caFile string
	var use bool
	cmd := &cobra.Command{
		Use:   "set <name>",
		Short: "Add a context, or replace it as a whole",
		Long: `Add a context, or replace it as a whole. The token is read from a file, or
from standard input, so that it does not appear in the list of processes. The
first context becomes the current one.`,
		Example: `  tidelock context set home --url https://localhost:8443 \
    --token-file ~/.local/share/tidelock/root.token \
    --ca-file ~/.local/share/tidelock/tls/ca.crt`,
		Args: arguments("<name>"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s := contextSetting{Name: args[0], URL: strings.TrimRight(url, "/")}
			if err := (source{URL: s.URL, from: "--url"}).check(); err != nil {
				return err
			}
			if tokenFile != "" {
				token, err := readToken(env, tokenFile)
				if err != nil {
					return err
				}
				s.Token = token.Reveal()
			}
			if caFile != "" {
				absolute, err := filepath.Abs(caFile)
				if err != nil {
					return fmt.Errorf("find %s: %w", caFile, err)
				}
				s.CAFile = absolute
				if _, err := (source{CAFile: absolute, from: "--ca-file"}).httpClient(); err != nil {
					return err
				}
			}
			contexts, err := loadContexts(env)
			if err != nil {
				return err
			}
			contexts.set(s)
			if use || contexts.Current == "" {
				contexts.Current = s.Name
			}
			return contexts.save()
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&url, "url", "", "URL of the server (required)")
	flags.StringVar(&tokenFile, "token-file", "", `file that holds an access token; "-" reads standard input`)
	flags.StringVar(&caFile, "ca-file", "", "certificate authority of the server")
	flags.BoolVar(&use, "use", false, "make it the current context")
	return cmd
}

// readToken reads one line from a file or, for "-", from standard input.
func readToken(env *environment, name string) (tidelock.Secret, error) {
	in := env.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return tidelock.Secret{}, fmt.Errorf("read the token: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, 4<<10))
	if err != nil {
		return tidelock.Secret{}, fmt.Errorf("read the token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return tidelock.Secret{}, misusef("%s does not hold one token", name)
	}
	return tidelock.NewSecret(token), nil
}
