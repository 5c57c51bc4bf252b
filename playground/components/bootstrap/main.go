// Bootstrap drives the code behind `flux bootstrap gitlab` as a library. The
// flux program itself cannot be built from its module, which lacks the
// manifests that it embeds; so they are given as a folder here. Its flags have
// flux's names and meaning.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/fluxcd/flux2/v2/pkg/bootstrap"
	"github.com/fluxcd/flux2/v2/pkg/bootstrap/provider"
	"github.com/fluxcd/flux2/v2/pkg/manifestgen"
	"github.com/fluxcd/flux2/v2/pkg/manifestgen/install"
	"github.com/fluxcd/flux2/v2/pkg/manifestgen/sourcesecret"
	"github.com/fluxcd/flux2/v2/pkg/manifestgen/sync"
	kustomizev1 "github.com/fluxcd/kustomize-controller/api/v1"
	"github.com/fluxcd/pkg/git"
	"github.com/fluxcd/pkg/git/gogit"
	runclient "github.com/fluxcd/pkg/runtime/client"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/runtime"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"

	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

type options struct {
	kubeconfig, namespace, manifests      string
	hostname, sshHostname, caFile         string
	owner, repository, branch, path, team string
	visibility, privateKeyFile            string
	tokenAuth, deployTokenAuth            bool
	personal, reconcile, readWriteKey     bool
	timeout                               time.Duration
}

func main() {
	ctrllog.SetLogger(logr.Discard())
	var o options
	flags := flag.NewFlagSet("bootstrap", flag.ExitOnError) // controller-runtime keeps flags of its own in the usual set
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "path of a kubeconfig")
	flags.StringVar(&o.namespace, "namespace", "flux-system", "where the components and the sync configuration go")
	flags.StringVar(&o.manifests, "manifests", "", "folder that kustomize builds the components from")
	flags.StringVar(&o.hostname, "hostname", "", "host and port of the forge")
	flags.StringVar(&o.sshHostname, "ssh-hostname", "", "host and port of its SSH")
	flags.StringVar(&o.caFile, "ca-file", "", "certificates to trust")
	flags.StringVar(&o.owner, "owner", "", "group or user")
	flags.StringVar(&o.repository, "repository", "", "name of the project")
	flags.StringVar(&o.branch, "branch", "main", "branch to commit to")
	flags.StringVar(&o.path, "path", "", "folder of the cluster in the project")
	flags.StringVar(&o.team, "team", "", "group that is to maintain the project")
	flags.StringVar(&o.visibility, "visibility", "private", "of the project")
	flags.StringVar(&o.privateKeyFile, "private-key-file", "", "SSH key to use instead of a new one")
	flags.BoolVar(&o.tokenAuth, "token-auth", false, "give the personal token to the cluster")
	flags.BoolVar(&o.deployTokenAuth, "deploy-token-auth", false, "make a deploy token for the cluster")
	flags.BoolVar(&o.personal, "personal", false, "the owner is a user")
	flags.BoolVar(&o.reconcile, "reconcile", false, "change a project that exists to what is asked for")
	flags.BoolVar(&o.readWriteKey, "read-write-key", false, "let the deploy key push")
	flags.DurationVar(&o.timeout, "timeout", 2*time.Minute, "how long to wait")
	_ = flags.Parse(os.Args[1:]) // exits by itself

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if err := run(ctx, o, os.Getenv("GITLAB_TOKEN")); err != nil {
		fmt.Fprintln(os.Stderr, "bootstrap:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, token string) error {
	ca, err := os.ReadFile(o.caFile)
	if err != nil {
		return fmt.Errorf("read the CA: %w", err)
	}
	forge, err := provider.BuildGitProvider(provider.Config{
		Provider: provider.GitProviderGitLab, Hostname: "https://" + o.hostname, Token: token, CaBundle: ca,
	})
	if err != nil {
		return fmt.Errorf("make the forge's client: %w", err)
	}

	clone, err := manifestgen.MkdirTempAbs("", "bootstrap-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(clone)
	work, err := manifestgen.MkdirTempAbs("", "bootstrap-manifests-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	auth := &git.AuthOptions{Transport: git.HTTPS, Username: o.owner, Password: token, CAFile: ca}
	repository, err := gogit.NewClient(clone, auth, gogit.WithDiskStorage(), gogit.WithFallbackToDefaultKnownHosts())
	if err != nil {
		return fmt.Errorf("make git's client: %w", err)
	}

	cluster := genericclioptions.NewConfigFlags(false)
	cluster.KubeConfig, cluster.Namespace = &o.kubeconfig, &o.namespace
	kube, err := newClient(cluster)
	if err != nil {
		return fmt.Errorf("make the cluster's client: %w", err)
	}
	secret, err := o.secret(token, ca)
	if err != nil {
		return err
	}

	wiring := []bootstrap.GitProviderOption{
		bootstrap.WithProviderRepository(o.owner, o.repository, o.personal),
		bootstrap.WithProviderVisibility(o.visibility),
		bootstrap.WithBranch(o.branch),
		bootstrap.WithBootstrapTransportType("https"),
		bootstrap.WithSignature("Flux", ""),
		bootstrap.WithReadWriteKeyPermissions(o.readWriteKey),
		bootstrap.WithKubeconfig(cluster, &runclient.Options{QPS: 100, Burst: 300}),
		bootstrap.WithLogger(journal{}),
	}
	if o.team != "" {
		wiring = append(wiring, bootstrap.WithProviderTeamPermissions(map[string]string{o.team: "maintain"}))
	}
	if o.sshHostname != "" {
		wiring = append(wiring, bootstrap.WithSSHHostname(o.sshHostname))
	}
	if o.tokenAuth || o.deployTokenAuth {
		wiring = append(wiring, bootstrap.WithSyncTransportType("https"))
	}
	if o.deployTokenAuth {
		wiring = append(wiring, bootstrap.WithDeployTokenAuth())
	}
	if o.reconcile {
		wiring = append(wiring, bootstrap.WithReconcile())
	}
	b, err := bootstrap.NewGitProviderBootstrapper(repository, forge, kube, wiring...)
	if err != nil {
		return err
	}

	components := install.MakeDefaultOptions()
	components.BaseURL, components.Namespace, components.TargetPath = o.manifests, o.namespace, o.path
	components.Version, components.Timeout = "v2.7.5", o.timeout
	components.ComponentsExtra = nil
	config := sync.MakeDefaultOptions()
	config.Name, config.Namespace, config.Secret = o.namespace, o.namespace, o.namespace
	config.Branch, config.TargetPath = o.branch, o.path
	const poll = 200 * time.Millisecond
	return bootstrap.Run(ctx, b, work, components, secret, config, poll, o.timeout)
}

// secret says what the cluster's source is to sign in with. A deploy token is
// made later, by the bootstrap itself.
func (o options) secret(token string, ca []byte) (sourcesecret.Options, error) {
	s := sourcesecret.MakeDefaultOptions()
	s.Name, s.Namespace, s.TargetPath = o.namespace, o.namespace, o.path
	switch {
	case o.tokenAuth && o.deployTokenAuth:
		return s, errors.New("-token-auth and -deploy-token-auth exclude each other")
	case o.tokenAuth:
		s.Username, s.Password, s.CACrt = "git", token, ca
	case o.deployTokenAuth:
		s.CACrt = ca
	default:
		pair, err := sourcesecret.LoadKeyPairFromPath(o.privateKeyFile, "")
		if err != nil {
			return s, fmt.Errorf("read the SSH key: %w", err)
		}
		s.Keypair, s.PrivateKeyAlgorithm = pair, sourcesecret.Ed25519PrivateKeyAlgorithm
		s.SSHHostname = o.hostname
		if o.sshHostname != "" {
			s.SSHHostname = o.sshHostname
		}
	}
	return s, nil
}

func newClient(cluster *genericclioptions.ConfigFlags) (client.Client, error) {
	scheme := runtime.NewScheme()
	utilruntime.Must(clientgoscheme.AddToScheme(scheme))
	utilruntime.Must(sourcev1.AddToScheme(scheme))
	utilruntime.Must(kustomizev1.AddToScheme(scheme))
	config, err := cluster.ToRESTConfig()
	if err != nil {
		return nil, err
	}
	return client.New(config, client.Options{Scheme: scheme})
}

// journal prints what the bootstrap says it does.
type journal struct{}

func (journal) Actionf(format string, a ...any)   { say("do", format, a) }
func (journal) Generatef(format string, a ...any) { say("make", format, a) }
func (journal) Waitingf(format string, a ...any)  { say("wait", format, a) }
func (journal) Successf(format string, a ...any)  { say("done", format, a) }
func (journal) Warningf(format string, a ...any)  { say("warning", format, a) }
func (journal) Failuref(format string, a ...any)  { say("failed", format, a) }

func say(kind, format string, a []any) {
	fmt.Printf("%s: %s\n", kind, fmt.Sprintf(format, a...))
}
