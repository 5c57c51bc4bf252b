package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/component"
	"tidelock.dev/playground/e2e"
	"tidelock.dev/playground/supervisor"
)

// A fleet is a group of a forge, owned by a user of its own, into whose project
// "fleet" clusters are bootstrapped.
type fleet struct {
	*e2e.Forge
	token   string // the owner's
	program string
}

func newFleet(t *testing.T, flags ...string) fleet {
	t.Helper()
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true, ServerFlags: flags})
	set, err := component.Default(t.Context(), component.Bootstrap)
	if err != nil {
		t.Fatal(err)
	}
	var group struct{ ID int64 }
	f.Call(http.MethodPost, "groups", map[string]any{"name": "Platform", "path": "platform"}, &group)
	return fleet{f, newMember(f, "groups", group.ID, 50), set[component.Bootstrap].Binary()}
}

// newMember makes a user, a member of a group or project, and returns a
// personal token with the scope api.
func newMember(f *e2e.Forge, kind string, id int64, level int) string {
	name := fmt.Sprintf("member-%s-%d-%d", kind, id, level)
	var user struct{ ID int64 }
	f.Call(http.MethodPost, "users", map[string]any{
		"username": name, "name": name, "email": name + "@example.org", "reset_password": true,
	}, &user)
	f.Call(http.MethodPost, fmt.Sprintf("%s/%d/members", kind, id), map[string]any{"user_id": user.ID, "access_level": level}, nil)
	var made struct{ Token string }
	f.Call(http.MethodPost, fmt.Sprintf("users/%d/personal_access_tokens", user.ID), map[string]any{"name": "e2e", "scopes": []string{"api"}}, &made)
	return made.Token
}

// bootstrap runs the code behind flux bootstrap gitlab to its end, which comes
// when the cluster's Flux has fetched and applied what it pushed. A cluster is
// a namespace here: each gets its own sync configuration in it.
func (f fleet) bootstrap(t *testing.T, ns string, flags ...string) string {
	t.Helper()
	address, err := url.Parse(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	args := append([]string{
		"-kubeconfig", f.Cluster.Plane.Kubeconfig(), "-namespace", ns, "-manifests", componentManifests(t, ns),
		"-hostname", address.Host, "-ca-file", f.CAFile,
		"-owner", "platform", "-repository", "fleet", "-path", "clusters/" + ns, "-timeout", "90s",
	}, flags...)
	cmd := exec.CommandContext(t.Context(), f.program, args...)
	cmd.Env = append(supervisor.Environment(t.TempDir()), "GITLAB_TOKEN="+f.token)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("bootstrap %s: %v\n%s", strings.Join(flags, " "), err, out)
	}
	return string(out)
}

// componentManifests makes a folder to build the components from. flux embeds
// Flux's own manifests there. In the playground the controllers run beside the
// cluster and the definitions of their kinds are in it, from the same modules,
// so a stand-in of each Deployment is left, whose pods the simulated node runs:
// the bootstrap applies them, commits them and waits for their health.
func componentManifests(t *testing.T, ns string) string {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n", ns)
	for _, name := range []string{"source-controller", "kustomize-controller", "helm-controller", "notification-controller"} {
		text += fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec: {containers: [{name: manager, image: "ghcr.io/fluxcd/%[1]s"}]}
`, name, ns)
	}
	for name, text := range map[string]string{"components.yaml": text, "kustomization.yaml": "resources: [components.yaml]\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// head is the newest commit of the fleet's project.
func (f fleet) head() string {
	var commits []struct{ ID string }
	f.Call(http.MethodGet, "projects/platform%2Ffleet/repository/commits?per_page=1", nil, &commits)
	return commits[0].ID
}

// secret reads what the bootstrap gave the cluster to sign in with.
func (f fleet) secret(t *testing.T, ns string) map[string][]byte {
	t.Helper()
	secret := &corev1.Secret{}
	if err := f.Cluster.Client.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: ns}, secret); err != nil {
		t.Fatal(err)
	}
	return secret.Data
}

// follows fails the test unless a push to a bootstrapped cluster's folder
// arrives in the cluster, fetched with the secret that the bootstrap made.
func (f fleet) follows(t *testing.T, ns, urlPrefix string) {
	t.Helper()
	key := client.ObjectKey{Namespace: ns, Name: ns}
	source, err := f.Cluster.GitRepository(t.Context(), ns, ns)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(source.Spec.URL, urlPrefix) || source.Spec.SecretRef == nil || source.Spec.SecretRef.Name != ns {
		t.Errorf("the source reads %s with %v, want %s… with the secret that was made", source.Spec.URL, source.Spec.SecretRef, urlPrefix)
	}
	value := f.head() // anything that is new each time
	commit := f.write(t, "clusters/"+ns+"/site.yaml", fmt.Sprintf("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: site, namespace: %s}\ndata: {value: %q}\n", ns, value))
	f.Cluster.Wake(t, ns, ns)
	f.WaitFetched(ns, ns, commit, soon)
	waitConfigMap(t, f.Forge, ns, "site", value)
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		applied := &kustomizev1.Kustomization{}
		if err := f.Cluster.Client.Get(ctx, key, applied); err != nil {
			return err
		}
		if want := "main@sha1:" + commit; applied.Status.LastAppliedRevision != want {
			return fmt.Errorf("applied %s, want %s", applied.Status.LastAppliedRevision, want)
		}
		return nil
	})
}

// write pushes a file to the fleet's project as its owner would, from a clone
// over HTTPS; it returns the commit.
func (f fleet) write(t *testing.T, name, text string) string {
	t.Helper()
	clone := t.TempDir()
	run := func(args ...string) string {
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = clone
		cmd.Env = gitEnvironment(f.Forge, f.token)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %s: %v\n%s", args[0], err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("clone", "--quiet", f.URL+"/platform/fleet.git", ".")
	path := filepath.Join(clone, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run("add", "--all")
	run("commit", "--quiet", "--message=change")
	run("push", "--quiet", "origin", "HEAD")
	return run("rev-parse", "HEAD")
}

// flux bootstrap gitlab --token-auth makes the project, brings the cluster
// under it, and changes nothing when it runs again.
func TestFluxBootstrapWithAToken(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	f.Call(http.MethodPost, "groups", map[string]any{"name": "Friends", "path": "friends", "visibility": "internal"}, nil)
	ns := f.Cluster.Namespace(t)
	first := f.bootstrap(t, ns, "-token-auth", "-team", "friends")
	head := f.head()
	second := f.bootstrap(t, ns, "-token-auth", "-team", "friends", "-reconcile")
	if got := f.head(); got != head {
		t.Errorf("the second run committed %s, want nothing; it said:\n%s", got, second)
	}
	if strings.Contains(first+second, "warning:") {
		t.Errorf("the runs warn:\n%s\n%s", first, second)
	}
	var project struct {
		Visibility    string
		DefaultBranch string `json:"default_branch"`
		Shared        []struct {
			Path  string `json:"group_full_path"`
			Level int    `json:"group_access_level"`
		} `json:"shared_with_groups"`
	}
	f.Call(http.MethodGet, "projects/platform%2Ffleet", nil, &project)
	if project.Visibility != "private" || project.DefaultBranch != "main" {
		t.Errorf("the project that was made: got %+v, want a private one with main", project)
	}
	if len(project.Shared) != 1 || project.Shared[0].Path != "friends" || project.Shared[0].Level != 40 {
		t.Errorf("the project is shared with %+v, want friends as maintainers", project.Shared)
	}
	if secret := f.secret(t, ns); string(secret["username"]) != "git" || string(secret["password"]) != f.token || len(secret["ca.crt"]) == 0 {
		t.Errorf("the secret has %d entries, want user git, the token and the CA", len(secret))
	}
	f.follows(t, ns, "https://localhost:")
}

// flux bootstrap gitlab --personal works in a user's namespace, and a group of
// its own below another one is an owner too.
func TestFluxBootstrapOfOtherOwners(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	var group, child struct{ ID int64 }
	var self struct{ Username string }
	f.Call(http.MethodGet, "groups/platform", nil, &group)
	f.Call(http.MethodPost, "groups", map[string]any{"name": "Edge", "path": "Edge", "parent_id": group.ID}, &child)
	curl(t, f.Forge, "user", "--oauth2-bearer", f.token).decode(t, &self)
	for owner, flags := range map[string][]string{
		self.Username:   {"-personal", "-token-auth"},
		"platform/Edge": {"-deploy-token-auth"},
	} {
		ns := f.Cluster.Namespace(t)
		f.bootstrap(t, ns, append(flags, "-owner", owner)...)
		source, err := f.Cluster.GitRepository(t.Context(), ns, ns)
		if err != nil {
			t.Fatal(err)
		}
		if want := f.URL + "/" + owner + "/fleet.git"; source.Spec.URL != want || source.Status.Artifact == nil {
			t.Errorf("the source reads %s, want %s", source.Spec.URL, want)
		}
	}
}

// A deployToken is what the forge tells of one.
type deployToken struct {
	ID       int64
	Name     string
	Username string
	Revoked  bool
	Scopes   []string
}

// flux bootstrap gitlab --deploy-token-auth keeps one deploy token per cluster
// and renews it on every run.
func TestFluxBootstrapWithADeployToken(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	ns := f.Cluster.Namespace(t)
	tokens := func() []deployToken {
		var list []deployToken
		f.Call(http.MethodGet, "projects/platform%2Ffleet/deploy_tokens?active=true", nil, &list)
		return list
	}
	f.bootstrap(t, ns, "-deploy-token-auth")
	first, old, head := tokens(), f.secret(t, ns), f.head()
	f.bootstrap(t, ns, "-deploy-token-auth")
	second, secret := tokens(), f.secret(t, ns)
	if got := f.head(); got != head {
		t.Errorf("the second run committed %s, want nothing", got)
	}
	if len(first) != 1 || len(second) != 1 || first[0].Name != second[0].Name || first[0].ID == second[0].ID {
		t.Fatalf("deploy tokens: first %+v, then %+v; want one of the same name, renewed", first, second)
	}
	if string(secret["username"]) != second[0].Username || string(old["password"]) == string(secret["password"]) {
		t.Errorf("the cluster signs in as %s, want %s with another secret than before", secret["username"], second[0].Username)
	}
	f.follows(t, ns, "https://localhost:")

	_, err := lsRemote(t, f.Forge, "platform/fleet", string(old["username"]), string(old["password"]))
	if err == nil {
		t.Error("the deploy token of the first run still reads")
	}
	if out, err := lsRemote(t, f.Forge, "platform/fleet", string(secret["username"]), string(secret["password"])); err != nil {
		t.Errorf("the deploy token of the second run does not read: %v\n%s", err, out)
	}
}

// lsRemote lists a project's refs over HTTPS as a user with a password.
func lsRemote(t *testing.T, f *e2e.Forge, project, user, password string) (string, error) {
	t.Helper()
	address, err := url.Parse(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	address.User = url.UserPassword(user, password)
	cmd := exec.CommandContext(t.Context(), "git", "ls-remote", address.JoinPath(project+".git").String())
	cmd.Env = gitEnvironment(f, "")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// gitEnvironment is that of a git which trusts the forge and knows nobody, or
// the owner of a token.
func gitEnvironment(f *e2e.Forge, token string) []string {
	env := append(supervisor.Environment(f.Dir),
		"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0", "GIT_SSL_CAINFO="+f.CAFile,
		"GIT_AUTHOR_NAME=Test", "GIT_AUTHOR_EMAIL=test@example.org", "GIT_COMMITTER_NAME=Test", "GIT_COMMITTER_EMAIL=test@example.org")
	if token != "" {
		env = append(env, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=Authorization: Bearer "+token)
	}
	return env
}

// flux bootstrap gitlab without further flags makes an SSH key, which becomes a
// deploy key of the project; a run with a key of one's own replaces it.
func TestFluxBootstrapWithADeployKey(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	ns := f.Cluster.Namespace(t)
	ssh := strings.TrimPrefix(f.SSHURL, "ssh://git@")
	keys := func() []deployKey {
		var list []deployKey
		f.Call(http.MethodGet, "projects/platform%2Ffleet/deploy_keys", nil, &list)
		return list
	}
	f.bootstrap(t, ns, "-ssh-hostname", ssh)
	first, head, made := keys(), f.head(), f.secret(t, ns)
	f.bootstrap(t, ns, "-ssh-hostname", ssh)
	if second := keys(); len(first) != 1 || !slices.Equal(first, second) || first[0].CanPush {
		t.Fatalf("deploy keys: first %+v, then %+v; want the same one, which cannot push", first, second)
	}
	if got := f.head(); got != head {
		t.Errorf("the second run committed %s, want nothing", got)
	}
	if !strings.HasPrefix(string(made["identity.pub"]), first[0].Key[:40]) || len(made["known_hosts"]) == 0 {
		t.Error("the secret lacks the key or the host's")
	}
	f.follows(t, ns, f.SSHURL+"/platform/fleet")

	own := newKey(t)
	f.bootstrap(t, ns, "-ssh-hostname", ssh, "-private-key-file", own)
	third := keys()
	if len(third) != 1 || third[0].Title != first[0].Title || third[0].ID == first[0].ID {
		t.Fatalf("deploy keys: first %+v, then %+v; want one of the same title, replaced", first, third)
	}
	f.follows(t, ns, f.SSHURL+"/platform/fleet")
}

// A deployKey is what the forge tells of one.
type deployKey struct {
	ID      int64
	Title   string
	Key     string
	CanPush bool `json:"can_push"`
}
