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
	fmt.Fprintf(out, `
  console     %s
  clone       %s
  kubeconfig  %s
  variables   . %s

Try it:

  git clone %s-c http.sslCAInfo=%s %s
  cd deployment && sed -i.bak s/hello/goodbye/ %s && git commit -qm Goodbye %s && git push
  %s --kubeconfig %s -n %s get configmap %s -o yaml

`,
		facts.URL, clone, facts.Kubeconfig, stack.Quote(filepath.Join(at.state, "env")),
		identity(ctx), stack.Quote(facts.CAFile), stack.Quote(clone),
		sample.GreetingFile, sample.GreetingFile,
		stack.Quote(facts.Kubectl), stack.Quote(facts.Kubeconfig), sample.DemoNamespace, sample.GreetingName)
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
