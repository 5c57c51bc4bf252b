package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	gitlab "gitlab.com/gitlab-org/api/client-go"
	"go.yaml.in/yaml/v3"

	"tidelock.dev"
)

// A source is where commands that ask a server find it. Its parts come from
// one place together: the command line and environment, or one context; never
// a part from each, and never a file of the current folder.
type source struct {
	URL    string
	Token  tidelock.Secret
	CAFile string
	from   string // for messages: "the environment", `context "home"`
}

func (s source) caHint() string {
	switch {
	case strings.HasPrefix(s.from, "context"):
		return `"tidelock context set --ca-file"`
	case s.from == "the CI/CD job":
		return "CI_SERVER_TLS_CA_FILE"
	}
	return "TIDELOCK_CA_FILE or --ca-file"
}

// sourceFlags choose the source; they belong to every command that asks.
type sourceFlags struct {
	context, url, token, caFile string
}

func (f *sourceFlags) add(cmd *cobra.Command) {
	flags := cmd.PersistentFlags()
	flags.StringVar(&f.context, "context", "", "use this context instead of the current one")
	flags.StringVar(&f.url, "url", "", "URL of the server (env TIDELOCK_URL)")
	flags.StringVar(&f.token, "token", "", "access token (better: env TIDELOCK_TOKEN, which others cannot list)")
	flags.StringVar(&f.caFile, "ca-file", "", "certificate authority of the server (env TIDELOCK_CA_FILE)")
}

// source picks one place for all parts.
func (f *sourceFlags) source(env *environment) (source, error) {
	or := func(flag, variable string) string {
		if flag != "" {
			return flag
		}
		return env.getenv(variable)
	}
	given := f.url != "" || f.token != "" || f.caFile != ""
	if f.context != "" && given {
		return source{}, misusef("--context cannot be combined with --url, --token or --ca-file")
	}
	if f.context == "" {
		s := source{
			URL:    or(f.url, "TIDELOCK_URL"),
			Token:  tidelock.NewSecret(or(f.token, "TIDELOCK_TOKEN")),
			CAFile: or(f.caFile, "TIDELOCK_CA_FILE"),
			from:   "the environment",
		}
		if given {
			s.from = "the command line"
		}
		if s.URL != "" {
			return s, s.check()
		}
		if s.Token.Reveal() != "" || s.CAFile != "" {
			return source{}, misusef("a token or CA is given without a URL; set TIDELOCK_URL too, or none of them")
		}
	}
	contexts, err := loadContexts(env)
	if err != nil {
		return source{}, err
	}
	name := f.context
	if name == "" {
		name = contexts.Current
	}
	if s := jobSource(env); name == "" && s.URL != "" {
		return s, s.check()
	}
	if name == "" {
		return source{}, misusef(`no server is named; set TIDELOCK_URL and TIDELOCK_TOKEN, or keep them with "tidelock context set"`)
	}
	c, ok := contexts.find(name)
	if !ok {
		return source{}, misusef(`there is no context %q; "tidelock context list" shows them`, name)
	}
	caFile := c.CAFile
	if caFile != "" && !filepath.IsAbs(caFile) {
		caFile = filepath.Join(filepath.Dir(contexts.path), caFile)
	}
	s := source{URL: c.URL, Token: tidelock.NewSecret(c.Token), CAFile: caFile, from: fmt.Sprintf("context %q", name)}
	return s, s.check()
}

// jobSource is the server of the CI/CD job that the command runs in, in the
// variables that GitLab has for it; none outside of one, or without a token,
// because that of the job itself cannot ask.
func jobSource(env *environment) source {
	token := env.getenv("GITLAB_TOKEN")
	if token == "" {
		return source{}
	}
	return source{
		URL: strings.TrimRight(env.getenv("CI_SERVER_URL"), "/"), Token: tidelock.NewSecret(token), CAFile: env.getenv("CI_SERVER_TLS_CA_FILE"),
		from: "the CI/CD job",
	}
}

func (s source) check() error {
	u, err := url.Parse(s.URL)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil {
		return misusef("the URL of %s is not like https://forge.example", s.from)
	}
	return nil
}

// httpClient trusts the source's CA, beside the system's.
func (s source) httpClient() (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the CA of %s: %w", s.from, err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, misusef("the CA file of %s, %s, holds no certificate", s.from, s.CAFile)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &http.Client{Transport: transport, CheckRedirect: stayHere}, nil
}

// stayHere refuses redirects to another server: a token's own header, unlike
// Authorization, would go along.
func stayHere(next *http.Request, before []*http.Request) error {
	if first := before[0].URL; next.URL.Scheme != first.Scheme || next.URL.Host != first.Host || len(before) > 5 {
		return http.ErrUseLastResponse
	}
	return nil
}

// A connection is a client of one server.
type connection struct {
	*gitlab.Client
	source source
}

func (f *sourceFlags) connect(env *environment) (*connection, error) {
	s, err := f.source(env)
	if err != nil {
		return nil, err
	}
	return s.connect()
}

func (s source) connect() (*connection, error) {
	httpClient, err := s.httpClient()
	if err != nil {
		return nil, err
	}
	client, err := gitlab.NewClient(s.Token.Reveal(),
		gitlab.WithBaseURL(s.URL), gitlab.WithHTTPClient(httpClient),
		gitlab.WithUserAgent("tidelock/"+buildVersion()), gitlab.WithCustomRetryMax(2))
	if err != nil {
		return nil, fmt.Errorf("make a client for %s: %w", s.URL, err)
	}
	return &connection{client, s}, nil
}

// contexts is the file that keeps sources by name.
type contexts struct {
	path string

	Current  string           `yaml:"current-context"`
	Contexts []contextSetting `yaml:"contexts"`
}

type contextSetting struct {
	Name   string `yaml:"name"`
	URL    string `yaml:"url"`
	Token  string `yaml:"token,omitempty"`
	CAFile string `yaml:"ca_file,omitempty"`
}

func loadContexts(env *environment) (*contexts, error) {
	dir, err := env.configDir()
	if err != nil {
		return nil, fmt.Errorf("find the configuration folder: %w", err)
	}
	c := &contexts{path: filepath.Join(dir, "tidelock", "config.yaml")}
	data, err := os.ReadFile(c.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, nil
	case err != nil:
		return nil, fmt.Errorf("read the contexts: %w", err)
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(data)))
	decoder.KnownFields(true)
	if err := decoder.Decode(c); err != nil && len(strings.TrimSpace(string(data))) > 0 {
		return nil, misusef("%s cannot be read: %s", c.path, strings.ReplaceAll(strings.TrimPrefix(err.Error(), "yaml: "), "\n", ""))
	}
	if info, err := os.Stat(c.path); err == nil && info.Mode().Perm()&0o077 != 0 {
		env.warnf("%s holds tokens and others can read it; run: chmod 600 %s", c.path, c.path)
	}
	return c, nil
}

func (c *contexts) find(name string) (contextSetting, bool) {
	i := slices.IndexFunc(c.Contexts, func(s contextSetting) bool { return s.Name == name })
	if i < 0 {
		return contextSetting{}, false
	}
	return c.Contexts[i], true
}

func (c *contexts) set(s contextSetting) {
	for i := range c.Contexts {
		if c.Contexts[i].Name == s.Name {
			c.Contexts[i] = s
			return
		}
	}
	c.Contexts = append(c.Contexts, s)
}

// save replaces the file in one step, for its owner's eyes only.
func (c *contexts) save() error {
	data, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the contexts: %w", err)
	}
	return writeSecretFile(c.path, data)
}

// writeSecretFile replaces a file in one step; only its owner may read it.
func writeSecretFile(path string, data []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
