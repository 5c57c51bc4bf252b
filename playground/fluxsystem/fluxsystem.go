// Package fluxsystem runs Flux, unmodified, beside a cluster instead of in it:
// it applies Flux's CRDs and rights, and keeps its four controllers running
// as processes of this machine. Each controller is its own ServiceAccount of
// namespace flux-system, as in an ordinary installation.
//
//	flux, err := fluxsystem.Start(ctx, fluxsystem.Config{Dir: dir, Components: set, Cluster: plane.REST(), Log: log})
//	defer flux.Stop()
//	flux.ReceiverURL() // what a Receiver's status.webhookPath is appended to
package fluxsystem

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/component"
	"tidelock.dev/playground/controlplane"
	"tidelock.dev/playground/manifest"
	"tidelock.dev/playground/port"
	"tidelock.dev/playground/supervisor"
)

// Names of the processes, for [System.Kill] and [System.Restart].
const (
	Source       = string(component.SourceController)
	Kustomize    = string(component.KustomizeController)
	Helm         = string(component.HelmController)
	Notification = string(component.NotificationController)
	Reflector    = string(component.ReflectorController) // see [System.AddReflector]
)

// Namespace is where Flux believes it runs.
const Namespace = "flux-system"

//go:embed rbac.yaml
var rbac []byte

// Config says what to run, where and against which cluster. Components needs
// the four controllers.
type Config struct {
	Dir        string // state folder; artifacts are kept in it
	Components component.Set
	Cluster    *rest.Config // an administrator of the cluster
	Log        *slog.Logger

	// Supervisor runs the processes. Nil makes one in Dir that Stop closes.
	Supervisor *supervisor.Supervisor

	// WithoutCRDs leaves the CRDs out, for tests of what comes late; see
	// [System.ApplyCRDs]. The controllers crash and are restarted until then,
	// so Start does not wait for them.
	WithoutCRDs bool
}

// A System is a running Flux.
type System struct {
	config   Config
	owned    bool // we made the supervisor
	names    []string
	client   client.Client
	events   string
	receiver string
}

// Start returns a Flux whose controllers all say that they are ready.
func Start(ctx context.Context, config Config) (system *System, err error) {
	f := &System{config: config}
	if f.client, err = client.New(config.Cluster, client.Options{}); err != nil {
		return nil, fmt.Errorf("start Flux: %w", err)
	}
	if config.Supervisor == nil {
		s, err := supervisor.Open(supervisor.Config{Dir: config.Dir, Log: config.Log})
		if err != nil {
			return nil, fmt.Errorf("start Flux: %w", err)
		}
		f.config.Supervisor, f.owned = s, true
	}
	defer func() {
		if err != nil {
			system, err = nil, errors.Join(fmt.Errorf("start Flux: %w", err), f.Stop())
		}
	}()
	objects, err := manifest.Parse(rbac)
	if err != nil {
		return nil, err
	}
	if err := manifest.Apply(ctx, f.client, objects...); err != nil {
		return nil, err
	}
	if !config.WithoutCRDs {
		if err := f.ApplyCRDs(ctx); err != nil {
			return nil, err
		}
	}
	processes, err := f.processes(ctx)
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		f.names = append(f.names, p.Name)
	}
	return f, f.config.Supervisor.Start(ctx, processes...)
}

// ApplyCRDs applies the definitions of Flux's kinds.
func (f *System) ApplyCRDs(ctx context.Context) error {
	for _, name := range controllers {
		if err := f.applyCRDs(ctx, f.config.Components[name]); err != nil {
			return err
		}
	}
	return nil
}

func (f *System) applyCRDs(ctx context.Context, built component.Built) error {
	paths, err := built.Manifests()
	if err != nil {
		return err
	}
	if len(paths) == 0 {
		return fmt.Errorf("component %s brings no CRDs", built.Name)
	}
	objects, err := manifest.ReadFiles(paths...)
	if err != nil {
		return err
	}
	return manifest.Apply(ctx, f.client, objects...)
}

// AddReflector adds image-reflector-controller, which few installations of
// Flux have, and returns when it is ready. It may be added once.
func (f *System) AddReflector(ctx context.Context, built component.Built) error {
	if err := f.applyCRDs(ctx, built); err != nil {
		return err
	}
	book, err := f.ports()
	if err != nil {
		return err
	}
	tags := filepath.Join(f.config.Dir, "tags")
	p, err := f.process(ctx, built, book, "--events-addr=http://"+f.events+"/", "--storage-path="+tags)
	if err != nil {
		return err
	}
	f.names = append(f.names, p.Name)
	return f.config.Supervisor.Start(ctx, p)
}

var controllers = []component.Name{
	component.SourceController, component.KustomizeController, component.HelmController, component.NotificationController,
}

func (f *System) ports() (*port.Book, error) {
	return port.Open(filepath.Join(f.config.Dir, "flux-ports.json"))
}

func (f *System) processes(ctx context.Context) ([]supervisor.Process, error) {
	book, err := f.ports()
	if err != nil {
		return nil, err
	}
	addr := func(name string) string {
		a, e := book.Addr(name)
		if err == nil {
			err = e
		}
		return a
	}
	storage := addr("storage")
	f.events, f.receiver = addr("events"), addr("receiver")
	if err != nil {
		return nil, err
	}
	artifacts := filepath.Join(f.config.Dir, "artifacts")
	own := map[component.Name][]string{
		component.SourceController:       {"--storage-path=" + artifacts, "--storage-addr=" + storage, "--storage-adv-addr=" + storage},
		component.NotificationController: {"--events-addr=" + f.events, "--receiverAddr=" + f.receiver},
	}
	var processes []supervisor.Process
	for _, name := range controllers {
		args := own[name]
		if name != component.NotificationController {
			args = append(args, "--events-addr=http://"+f.events+"/")
		}
		p, err := f.process(ctx, f.config.Components[name], book, args...)
		if err != nil {
			return nil, err
		}
		if f.config.WithoutCRDs {
			p.Ready = nil
		}
		processes = append(processes, p)
	}
	return processes, os.MkdirAll(artifacts, 0o700)
}

// process describes a controller that acts as its own ServiceAccount.
func (f *System) process(ctx context.Context, built component.Built, book *port.Book, args ...string) (supervisor.Process, error) {
	name := string(built.Name)
	health, err := book.Addr(name + "-health")
	if err != nil {
		return supervisor.Process{}, err
	}
	metrics, err := book.Addr(name + "-metrics")
	if err != nil {
		return supervisor.Process{}, err
	}
	home := filepath.Join(f.config.Dir, "home", name)
	if err := os.MkdirAll(home, 0o700); err != nil {
		return supervisor.Process{}, fmt.Errorf("make home of %s: %w", name, err)
	}
	kubeconfig := filepath.Join(home, "kubeconfig")
	if _, err := controlplane.WriteServiceAccountKubeconfig(ctx, f.config.Cluster, Namespace, name, kubeconfig); err != nil {
		return supervisor.Process{}, err
	}
	return supervisor.Process{
		Grace: 5 * time.Second, // kustomize-controller waits for health checks otherwise
		Name:  name, Path: built.Binary(),
		Args:  append([]string{"--health-addr=" + health, "--metrics-addr=" + metrics, "--log-level=info"}, args...),
		Env:   supervisor.Environment(home, "KUBECONFIG="+kubeconfig, "RUNTIME_NAMESPACE="+Namespace),
		Ready: ready("http://" + health + "/readyz"),
	}, nil
}

// Installed reports what is wrong with the Flux of a cluster that is not ours,
// nil if it can serve as the playground's.
func Installed(ctx context.Context, c client.Client) error {
	for _, name := range []string{
		"gitrepositories.source.toolkit.fluxcd.io", "kustomizations.kustomize.toolkit.fluxcd.io", "receivers.notification.toolkit.fluxcd.io",
	} {
		definition := &metav1.PartialObjectMetadata{}
		definition.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
		err := c.Get(ctx, client.ObjectKey{Name: name}, definition)
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("the cluster has no Flux (%s is missing); install it, then try again", name)
		}
		if err != nil {
			return fmt.Errorf("look for Flux in the cluster: %w", err)
		}
	}
	return nil
}

// ready asks a controller whether it works. Controllers listen for this only
// once their caches are filled.
func ready(url string) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s", url, resp.Status)
		}
		return nil
	}
}

// ReceiverURL is the base of the addresses that Receivers listen on.
func (f *System) ReceiverURL() string { return "http://" + f.receiver }

// Client returns a client with an administrator's rights, for untyped objects.
func (f *System) Client() client.Client { return f.client }

// Kill ends a controller at once and keeps it down until Restart.
func (f *System) Kill(name string) error { return f.config.Supervisor.Kill(name) }

// Restart starts a controller anew and returns when it is ready.
func (f *System) Restart(ctx context.Context, name string) error {
	return f.config.Supervisor.Restart(ctx, name)
}

// Stop ends the controllers; their objects stay in the cluster.
func (f *System) Stop() error {
	err := f.config.Supervisor.Stop(f.names...)
	f.names = nil
	if f.owned {
		err = errors.Join(err, f.config.Supervisor.Close())
	}
	return err
}
