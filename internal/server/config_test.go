package server

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
)

func TestValidate(t *testing.T) {
	good := Config{DataDir: "/data", Log: slog.New(slog.DiscardHandler)}
	for _, tc := range []struct {
		name   string
		change func(*Config)
		want   []string // a part of each problem, in order; none when all is well
	}{
		{"zero value", func(c *Config) {}, nil},
		{"everything", func(c *Config) {
			c.Listen, c.HTTPListen, c.MetricsListen = "[::]:443", "127.0.0.1:80", "0.0.0.0:9090"
			c.ExternalURL, c.URLAliases = "https://forge.example/tide/", []string{"http://localhost:80", "https://old.example"}
			c.SSHURL, c.TLSCert, c.TLSKey = "ssh://git@forge.example:2222", "a", "b"
			c.DatabaseURL, c.NATSURL, c.OTLPEndpoint = "postgres://ada:secret@db/tide", "nats://a:4222,nats://b:4222", "http://localhost:4318"
		}, nil},
		{"database by socket", func(c *Config) { c.DatabaseURL = "postgres:///tide?host=/run/postgresql" }, nil},
		{"no folder", func(c *Config) { c.DataDir = "" }, []string{"--data-dir: "}},
		{"folder that depends on where it is started", func(c *Config) { c.DataDir = "data" }, []string{"--data-dir: "}},
		{"name to listen on", func(c *Config) { c.Listen = "forge.example:443" }, []string{"--listen: "}},
		{"port out of range", func(c *Config) { c.Listen = "127.0.0.1:70000" }, []string{"--listen: "}},
		{"plain HTTP for everybody", func(c *Config) { c.HTTPListen = ":80" }, []string{"--insecure-http-any"}},
		{"plain HTTP for everybody, on purpose", func(c *Config) { c.HTTPListen, c.InsecureHTTPAny = ":80", true }, nil},
		{"external address", func(c *Config) { c.ExternalURL = "https://[::1]:8443" }, []string{"must name a host"}},
		{"external query", func(c *Config) { c.ExternalURL = "https://forge.example/?a=b" }, []string{"query"}},
		{"external dots", func(c *Config) { c.ExternalURL = "https://forge.example/a/../b" }, []string{"not plain"}},
		{"external escapes", func(c *Config) { c.ExternalURL = "https://forge.example/a%2fb" }, []string{"not plain"}},
		{"alias with a password", func(c *Config) { c.URLAliases = []string{"https://ada:secret@forge.example"} }, []string{"--url-alias: "}},
		{"key without certificate", func(c *Config) { c.TLSKey = "key.pem" }, []string{"--tls-cert: "}},
		{"unknown database", func(c *Config) { c.DatabaseURL = "mysql://ada:secret@db/tide" }, []string{"--database-url: "}},
		{"garbage with a password", func(c *Config) { c.NATSURL = "nats://ada:secret@bus:port" }, []string{"--nats-url: "}},
		{"several", func(c *Config) {
			c.Listen, c.SSHURL, c.MaxPushSize = "x", "git@forge.example", -1
		}, []string{"--listen: ", "--ssh-url: ", "--git-max-push-size: "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := good
			tc.change(&c)
			err := c.Validate()
			var got []string
			if e, ok := errors.AsType[*ConfigError](err); ok {
				got = e.Problems
			} else if err != nil {
				t.Fatalf("got %v, want a *ConfigError", err)
			}
			if len(got) != len(tc.want) {
				t.Fatalf("got %q, want %d problems", got, len(tc.want))
			}
			for i, want := range tc.want {
				if !strings.Contains(got[i], want) || !strings.HasPrefix(got[i], "--") {
					t.Errorf("got %q, want it to hold %q", got[i], want)
				}
				if strings.Contains(got[i], "secret") {
					t.Errorf("got %q, which repeats a password", got[i])
				}
			}
		})
	}
}
