package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"tidelock.dev/playground/sample"
	"tidelock.dev/playground/stack"
)

// printSummary says where everything is, and three lines to try that work as
// pasted.
func printSummary(ctx context.Context, out io.Writer, at place, facts stack.Facts) error {
	clone, err := cloneURL(facts)
	if err != nil {
		return err
	}
	// The clone keeps the CA in its own configuration, which a variable of the
	// user's would override.
	trust := ""
	if os.Getenv("GIT_SSL_CAINFO") != "" {
		trust = "GIT_SSL_CAINFO=" + stack.Quote(facts.CAFile) + " "
	}
	fmt.Fprintf(out, `
  console     %s
  clone       %s
  ssh         %s
  kubeconfig  %s
  variables   . %s

Try it:

  %sgit clone %s-c http.sslCAInfo=%s %s
  cd deployment && sed -i.bak 's/%s: .*/%s: goodbye/' %s && git commit -qm Goodbye %s && %sgit push
  %s --kubeconfig %s -n %s wait --for=jsonpath='{.data.%s}'=goodbye configmap/%s

`,
		facts.URL, clone, facts.SSHURL, facts.Kubeconfig, stack.Quote(filepath.Join(at.state, "env")),
		trust, identity(ctx), stack.Quote(facts.CAFile), stack.Quote(clone),
		sample.GreetingKey, sample.GreetingKey, sample.ByGit.File, sample.ByGit.File, trust,
		stack.Quote(facts.Kubectl), stack.Quote(facts.Kubeconfig), sample.ByGit.Namespace, sample.GreetingKey, sample.GreetingName)
	return nil
}

// cloneURL carries a token that can read and push the deployment project only.
func cloneURL(facts stack.Facts) (string, error) {
	token, err := os.ReadFile(facts.CloneToken)
	if err != nil {
		return "", fmt.Errorf("read the token for cloning: %w", err)
	}
	u, err := url.Parse(facts.URL)
	if err != nil {
		return "", err
	}
	u.User = url.UserPassword("playground", strings.TrimSpace(string(token)))
	return u.JoinPath(sample.Deployment + ".git").String(), nil
}

// identity lets git commit where nobody has told it who they are.
func identity(ctx context.Context) string {
	if err := exec.CommandContext(ctx, "git", "var", "GIT_AUTHOR_IDENT").Run(); err == nil {
		return ""
	}
	return "-c user.name=You -c user.email=you@example.org "
}
