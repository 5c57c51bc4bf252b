package stack

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"tidelock.dev"
	"tidelock.dev/deploy/agent"

	"tidelock.dev/playground/controlplane"
	"tidelock.dev/playground/manifest"
	"tidelock.dev/playground/sample"
	"tidelock.dev/playground/supervisor"
)

// Names of the processes that are Tidelock itself.
const (
	Server = "tidelock-server"
	Agent  = "tidelock-agent"
)

// AgentNamespace is where the agent's ServiceAccount and Lease are. It is not
// the usual one, so that an agent that lives in the user's cluster already is
// left alone.
const AgentNamespace = "tidelock-playground"

// build makes bin/tidelock of the clone.
func (s *Stack) build(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", s.facts.Tidelock, "./cmd/tidelock")
	cmd.Dir = s.config.Root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("build tidelock: %w\n%s", err, bytes.TrimSpace(out))
	}
	return nil
}

// ServerProcess serves a forge from dir on two ports of this machine, under a
// host name.
func ServerProcess(tidelock, dir, host string, port, sshPort int) (p supervisor.Process, url string) {
	url = fmt.Sprintf("https://%s:%d", host, port)
	address := "localhost"
	if host != "localhost" { // someone else is to reach it
		address = ""
	}
	return supervisor.Process{
		Name: Server, Path: tidelock,
		Args: []string{
			"server", "--data-dir", dir, "--listen", fmt.Sprintf("%s:%d", address, port), "--external-url", url,
			"--ssh-listen", fmt.Sprintf("%s:%d", address, sshPort), "--shutdown-timeout", "5s",
			"--webhook-allow", "127.0.0.0/8,::1", // Flux's receivers are processes of this machine
		},
		Env: supervisor.Environment(dir),
		Ready: func(ctx context.Context) error {
			return answers(ctx, fmt.Sprintf("https://localhost:%d/-/readyz", port), CAFile(dir))
		},
	}, url
}

// CAFile and TokenFile are where a server of dir writes its authority and its
// administrator's token.
func CAFile(dir string) string    { return filepath.Join(dir, "tls", "ca.crt") }
func TokenFile(dir string) string { return filepath.Join(dir, "root.token") }

func (s *Stack) startServer(ctx context.Context) error {
	port, err := s.ports.Port("server")
	if err != nil {
		return err
	}
	sshPort, err := s.ports.Port("ssh")
	if err != nil {
		return err
	}
	dir := filepath.Join(s.config.State, "server")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the server's folder: %w", err)
	}
	process, url := ServerProcess(s.facts.Tidelock, dir, s.config.Host, port, sshPort)
	if err := s.config.Supervisor.Start(ctx, process); err != nil {
		return err
	}
	s.facts.URL, s.facts.CAFile, s.facts.TokenFile = url, CAFile(dir), TokenFile(dir)
	s.facts.SSHURL = fmt.Sprintf("ssh://git@%s:%d", s.config.Host, sshPort)
	if s.forge, err = s.facts.Forge(); err != nil {
		return err
	}
	s.nameContext(ctx)
	return s.publish()
}

// nameContext lets the user's own tidelock command find the server by name.
// It is a convenience: a home folder that cannot be written costs only that.
func (s *Stack) nameContext(ctx context.Context) {
	cmd := exec.CommandContext(ctx, s.facts.Tidelock, "context", "set", "playground",
		"--url", s.facts.URL, "--token-file", s.facts.TokenFile, "--ca-file", s.facts.CAFile)
	if out, err := cmd.CombinedOutput(); err != nil {
		s.config.Log.Warn("the context playground was not written", "error", err, "output", string(bytes.TrimSpace(out)))
	}
}

// AgentProcess runs an agent outside of its cluster.
func AgentProcess(tidelock, dir, serverURL, tokenFile, caFile, kubeconfig, listen string) supervisor.Process {
	return supervisor.Process{
		Name: Agent, Path: tidelock,
		Args: []string{
			"agent", "run", "--server-url", serverURL, "--token-file", tokenFile, "--ca-file", caFile,
			"--kubeconfig", kubeconfig, "--lease-namespace", AgentNamespace, "--listen", listen,
		},
		Env:   supervisor.Environment(dir),
		Ready: func(ctx context.Context) error { return answers(ctx, "http://"+listen+"/readyz", "") },
	}
}

func (s *Stack) startAgent(ctx context.Context) error {
	dir := filepath.Join(s.config.State, "agent")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the agent's folder: %w", err)
	}
	if err := s.forge.Configure(ctx, s.facts.ReceiverURL); err != nil {
		return err
	}
	tokenFile, err := s.forge.RegisterAgent(ctx, filepath.Join(s.config.State, "tokens"))
	if err != nil {
		return err
	}
	rights, err := agentRights(s.facts.URL, tokenFile)
	if err != nil {
		return err
	}
	if err := manifest.Apply(ctx, s.client, rights...); err != nil {
		return err
	}
	if err := s.renewAgent(ctx); err != nil {
		return err
	}
	listen, err := s.ports.Addr("agent")
	if err != nil {
		return err
	}
	return s.config.Supervisor.Start(ctx, AgentProcess(
		s.facts.Tidelock, dir, s.facts.URL, tokenFile, s.facts.CAFile, s.agentKubeconfig(), listen))
}

// agentRights are what an installed agent has, without the Deployment that
// would run it, and without what only the Deployment needs.
func agentRights(serverURL, tokenFile string) ([]*unstructured.Unstructured, error) {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return nil, fmt.Errorf("read the agent's token: %w", err)
	}
	var text bytes.Buffer
	err = agent.Render(&text, agent.Values{
		Namespace: AgentNamespace, AgentName: sample.AgentName, ServerURL: serverURL,
		Token: tidelock.NewSecret(strings.TrimSpace(string(token))), Image: "tidelock",
	})
	if err != nil {
		return nil, err
	}
	objects, err := manifest.Parse(text.Bytes())
	if err != nil {
		return nil, err
	}
	wanted := []string{"Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
	return slices.DeleteFunc(objects, func(o *unstructured.Unstructured) bool {
		return !slices.Contains(wanted, o.GetKind())
	}), nil
}

func (s *Stack) agentKubeconfig() string {
	return filepath.Join(s.config.State, "agent", "kubeconfig")
}

func (s *Stack) renewAgent(ctx context.Context) (err error) {
	s.expires, err = controlplane.WriteServiceAccountKubeconfig(ctx, s.cluster, AgentNamespace, agent.ServiceAccount, s.agentKubeconfig())
	return err
}

// Run keeps the agent's right to the cluster fresh until ctx ends. Clusters
// give such rights for an hour to a year.
func (s *Stack) Run(ctx context.Context) {
	const retry = time.Minute
	for {
		pause := max(time.Until(s.expires)*4/5, retry)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if err := s.renewAgent(ctx); err != nil && ctx.Err() == nil {
			s.config.Log.Warn("the agent's right to the cluster was not renewed", "error", err, "expires", s.expires)
		}
	}
}

// answers reports nil if url answers 200; ca may be "" for plain HTTP.
func answers(ctx context.Context, url, ca string) error {
	transport := &http.Transport{DialContext: (&net.Dialer{}).DialContext, DisableKeepAlives: true}
	if ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return errors.New("the CA file holds no certificate")
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, resp.Status)
	}
	return nil
}
