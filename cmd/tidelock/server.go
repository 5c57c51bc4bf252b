package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"tidelock.dev/internal/server"
)

func newServerCommand(env *environment) *cobra.Command {
	var config server.Config
	var logs logging
	var configFile string
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Serve Git, the API, the console and the agents",
		Long: `Serve Git, the API, the console and the agents on one port.

Without flags everything is kept in one folder, and HTTPS is served on
https://localhost:8443 with a certificate authority made on first start. The
first start also writes an access token of the administrator "root" to the
file root.token in that folder.

Every flag can be set by an environment variable (--listen by TIDELOCK_LISTEN)
or in a YAML file named by --config (listen: …). Flags win over the
environment, and that over the file.`,
		Example: `  tidelock server
  tidelock server --data-dir /var/lib/tidelock --listen :443 --external-url https://forge.example
  tidelock server --config /etc/tidelock.yaml`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, args []string) error {
			if configFile == "" {
				configFile = env.getenv("TIDELOCK_CONFIG")
			}
			err := settings{flags: cmd.Flags(), prefix: serverVariables, getenv: env.getenv, file: configFile}.apply()
			return runServer(cmd, env, config, logs, err)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&configFile, "config", "", "YAML file with settings by the names of these flags")
	flags.StringVar(&config.DataDir, "data-dir", "", "folder of everything that is kept (default ~/.local/share/tidelock)")
	flags.StringVar(&config.Listen, "listen", "localhost:8443", "address of HTTPS; localhost is 127.0.0.1 and ::1")
	flags.StringVar(&config.HTTPListen, "http-listen", "", "address of the same without TLS, loopback only")
	flags.BoolVar(&config.InsecureHTTPAny, "insecure-http-any", false, "let --http-listen be any address; tokens can then be read on the way")
	flags.StringVar(&config.ExternalURL, "external-url", "", "how clients reach the server (default https://localhost:<port>)")
	flags.StringSliceVar(&config.URLAliases, "url-alias", nil, "another URL that leads here; may be given more than once")
	flags.StringVar(&config.SSHListen, "ssh-listen", "localhost:2222", "address of Git over SSH; none serves none")
	flags.StringVar(&config.SSHURL, "ssh-url", "", "URL that Git over SSH is reached by (default ssh://git@<host of the external URL>:<port>)")
	flags.StringVar(&config.TLSCert, "tls-cert", "", "certificate file (default: a CA made on first start)")
	flags.StringVar(&config.TLSKey, "tls-key", "", "key file of the certificate")
	flags.StringVar(&config.DatabaseURL, "database-url", "", "PostgreSQL, such as postgres://user@host/name (default: SQLite in the data folder)")
	flags.StringVar(&config.NATSURL, "nats-url", "", "NATS cluster that carries hints (default: inside the process)")
	flags.StringVar(&config.MetricsListen, "metrics-listen", "", "address that serves metrics and probes alone, to whoever asks")
	flags.StringVar(&config.OTLPEndpoint, "otlp-endpoint", "", "OpenTelemetry collector for traces, such as http://localhost:4318")
	flags.StringSliceVar(&config.TrustedProxies, "trusted-proxy", nil, "address or network of a proxy whose X-Forwarded-For names the client; may be given more than once")
	flags.IntVar(&config.RateLimitUser, "rate-limit-user", 18_000, "requests a minute of one user, deploy token or deploy key; 0 for any number")
	flags.IntVar(&config.RateLimitAnonymous, "rate-limit-anonymous", 1_800, "requests a minute of one address without a credential; 0 for any number")
	flags.IntVar(&config.RateLimitSignIn, "rate-limit-sign-in", 60, "credentials a minute that are not valid, of one address; 0 for any number")
	flags.StringVar(&config.RegistryURL, "registry-url", "", "bucket for the content of images, such as s3://key:secret@host/bucket?region=name (default: in the data folder)")
	flags.Int64Var(&config.RegistryQuota, "registry-quota", 0, "bytes that the images of one project may have; 0 for any number")
	flags.Int64Var(&config.MaxBlobSize, "registry-max-blob-size", 10<<30, "largest layer of an image, in bytes")
	flags.Int64Var(&config.MaxPushSize, "git-max-push-size", 1<<30, "largest pack of one push, in bytes")
	flags.DurationVar(&config.HistoryKeep, "history-keep", 90*24*time.Hour, "how long pushes and what became of them are remembered; 0 for ever")
	flags.DurationVar(&config.ShutdownTimeout, "shutdown-timeout", 0, "how long requests may take to finish at the end (default 30s)")
	flags.StringSliceVar(&config.WebhookAllow, "webhook-allow", nil, "network, address or host that webhooks may call although it is loopback, link-local or the like; may be given more than once")
	flags.BoolVar(&config.WebhookDenyPrivate, "webhook-deny-private", false, "let webhooks call no private networks (RFC 1918, fc00::/7)")
	flags.BoolVar(&config.DisableResync, "disable-resync", false, "never compare, only hear; for tests that show what comparing is for")
	if err := flags.MarkHidden("disable-resync"); err != nil {
		panic(err) // the flag is defined a line above
	}
	logs.add(flags)
	cmd.AddCommand(newServerInfoCommand(env), newServerRotateKeyCommand(env))
	return cmd
}

// runServer reports every problem of the configuration at once, or serves.
func runServer(cmd *cobra.Command, env *environment, config server.Config, logs logging, settingsErr error) error {
	if config.DataDir == "" {
		dir, err := defaultDataDir(env)
		if err != nil {
			return err
		}
		config.DataDir = dir
	} else if absolute, err := filepath.Abs(config.DataDir); err == nil {
		config.DataDir = absolute
	}
	if config.SSHListen == "none" {
		config.SSHListen = ""
	}
	log, _ := logs.logger(env.stderr)
	config.Log, config.Version, config.Commit = log, buildVersion(), buildCommit()

	var problems []string
	if e, ok := errors.AsType[*settingsError](settingsErr); ok {
		problems = append(problems, e.problems...)
	}
	problems = append(problems, logs.problems()...)
	if e, ok := errors.AsType[*server.ConfigError](config.Validate()); ok {
		problems = append(problems, e.Problems...)
	}
	if problems != nil {
		return &settingsError{problems}
	}
	ctx := cmd.Context()
	s, err := server.New(ctx, config)
	if err != nil {
		return err
	}
	return s.Run(ctx)
}

func defaultDataDir(env *environment) (string, error) {
	if dir := env.getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "tidelock"), nil
	}
	home := env.getenv("HOME")
	if home == "" {
		return "", fmt.Errorf("there is no home folder to keep data in; name one with --data-dir")
	}
	return filepath.Join(home, ".local", "share", "tidelock"), nil
}
