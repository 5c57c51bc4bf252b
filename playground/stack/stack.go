// Package stack starts the whole playground in its order: the Tidelock server
// first, so that the forge is usable while the rest is built, then Kubernetes,
// Flux and the agent, and the sample that ties them together. It knows how the
// parts are joined; each part is a package of its own.
package stack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/component"
	"tidelock.dev/playground/controlplane"
	"tidelock.dev/playground/fluxsystem"
	"tidelock.dev/playground/port"
	"tidelock.dev/playground/sample"
	"tidelock.dev/playground/supervisor"
)

// Config says what to start and where.
type Config struct {
	Root       string // the clone of Tidelock
	State      string // state folder; survives
	Supervisor *supervisor.Supervisor
	Log        *slog.Logger

	// Kubeconfig is of the user's own cluster, with Flux installed, to use
	// instead of ours. Host is then the name under which that cluster reaches
	// this machine.
	Kubeconfig string
	Host       string // default localhost

	// Report is told of each step. It is called from one goroutine at a time.
	Report func(Event)
}

// An Event is a step of the start.
type Event struct {
	Step    string        `json:"step"`
	State   State         `json:"state"`
	Elapsed time.Duration `json:"elapsed"`
	Note    string        `json:"note,omitempty"`
}

// A State is where a step is.
type State string

const (
	Begun   State = "begun"
	Working State = "working" // told every second of a long step
	Done    State = "done"
	Found   State = "found" // nothing had to be done
	Failed  State = "failed"
)

// Facts are what a running playground tells others: where things are. They
// hold no secrets, only the names of files that do.
type Facts struct {
	Ready       bool   `json:"ready"`
	URL         string `json:"url"`
	SSHURL      string `json:"ssh_url"`
	CAFile      string `json:"ca_file"`
	TokenFile   string `json:"token_file"`
	CloneToken  string `json:"clone_token_file"`
	Kubeconfig  string `json:"kubeconfig"`
	Kubectl     string `json:"kubectl"`
	ReceiverURL string `json:"receiver_url"`
	Tidelock    string `json:"tidelock"`
	OwnCluster  bool   `json:"own_cluster"` // ours, not the user's
}

const factsName = "playground.json"

// ReadFacts reads what the playground of a state folder last said.
func ReadFacts(state string) (Facts, error) {
	var f Facts
	text, err := os.ReadFile(filepath.Join(state, factsName))
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	if err != nil {
		return f, fmt.Errorf("read what the playground says of itself: %w", err)
	}
	return f, nil
}

// Forge opens the playground's forge as its administrator.
func (f Facts) Forge() (*sample.Forge, error) { return sample.Open(f.URL, f.TokenFile, f.CAFile) }

// REST opens the playground's cluster.
func (f Facts) REST() (*rest.Config, error) { return clientcmd.BuildConfigFromFlags("", f.Kubeconfig) }

// A Stack is a playground that is being started, or runs.
type Stack struct {
	config Config
	ports  *port.Book
	facts  Facts

	forge   *sample.Forge
	set     component.Set
	cluster *rest.Config
	client  client.Client
	expires time.Time // of the agent's right to the cluster
}

// Start starts everything and returns when the sample is applied. Whatever it
// started before an error still runs under the supervisor.
func Start(ctx context.Context, config Config) (*Stack, error) {
	if config.Host == "" {
		config.Host = "localhost"
	}
	ports, err := port.Open(filepath.Join(config.State, "ports.json"))
	if err != nil {
		return nil, err
	}
	s := &Stack{config: config, ports: ports}
	s.facts.OwnCluster = config.Kubeconfig == ""
	s.facts.Tidelock = filepath.Join(config.Root, "bin", "tidelock")
	if err := s.publish(); err != nil { // nothing of the last start counts
		return nil, err
	}
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"build tidelock", s.build},
		{"server", s.startServer},
		{"sample projects", s.createProjects},
		{"", s.buildComponents}, // reports its own steps
		{"Kubernetes", s.startCluster},
		{"Flux", s.startFlux},
		{"agent", s.startAgent},
		{"sample", s.applySample},
	}
	for _, step := range steps {
		if err := s.step(ctx, step.name, step.do); err != nil {
			return nil, err
		}
	}
	s.facts.Ready = true
	return s, s.publish()
}

// step runs one step and reports it, every second while it lasts.
func (s *Stack) step(ctx context.Context, name string, do func(context.Context) error) error {
	if name == "" {
		return do(ctx)
	}
	began := time.Now()
	report := func(state State, note string) {
		s.config.Report(Event{Step: name, State: state, Elapsed: time.Since(began), Note: note})
	}
	report(Begun, "")
	result := make(chan error, 1)
	go func() { result <- do(ctx) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			report(Working, "")
		case err := <-result:
			if err != nil {
				report(Failed, err.Error())
				return err
			}
			report(Done, "")
			return nil
		}
	}
}

// publish writes the facts and, once there is something to say, the file of
// variables for scripts.
func (s *Stack) publish() error {
	text, err := json.MarshalIndent(s.facts, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(s.config.State, factsName), text); err != nil {
		return fmt.Errorf("write what the playground says of itself: %w", err)
	}
	if s.facts.URL == "" {
		return nil
	}
	env, err := s.facts.environment()
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(s.config.State, "env"), env); err != nil {
		return fmt.Errorf("write the variables for scripts: %w", err)
	}
	return nil
}

func replaceFile(path string, text []byte) error {
	next := path + ".next"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

func (s *Stack) createProjects(ctx context.Context) error {
	if err := s.forge.CreateProjects(ctx); err != nil {
		return err
	}
	var err error
	if s.facts.CloneToken, err = s.forge.CloneToken(ctx, filepath.Join(s.config.State, "tokens")); err != nil {
		return err
	}
	return s.publish()
}

// BuildEvent tells a component's build as a step of the start.
func BuildEvent(e component.Event) Event {
	states := map[component.Step]State{
		component.Found: Found, component.Awaiting: Working, component.Building: Working,
		component.Done: Done, component.Failed: Failed,
	}
	return Event{Step: "build " + string(e.Component), State: states[e.Step], Elapsed: e.Elapsed, Note: e.Note}
}

func (s *Stack) buildComponents(ctx context.Context) error {
	dir, err := component.DefaultDir()
	if err != nil {
		return err
	}
	cache := component.Cache{
		Dir: dir, Modules: filepath.Join(s.config.Root, "playground", "components"),
		Progress: func(e component.Event) { s.config.Report(BuildEvent(e)) },
	}
	wanted := []component.Name{component.Kubectl}
	if s.facts.OwnCluster {
		wanted = component.Cluster()
	}
	if s.set, err = cache.Ensure(ctx, wanted...); err != nil {
		return err
	}
	s.facts.Kubectl = filepath.Join(s.config.Root, "bin", "kubectl")
	if err := os.Remove(s.facts.Kubectl); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace bin/kubectl: %w", err)
	}
	if err := os.Symlink(s.set[component.Kubectl].Binary(), s.facts.Kubectl); err != nil {
		return fmt.Errorf("link kubectl: %w", err)
	}
	return nil
}

func (s *Stack) startCluster(ctx context.Context) (err error) {
	if s.facts.OwnCluster {
		plane, err := controlplane.Start(ctx, controlplane.Config{
			Dir: filepath.Join(s.config.State, "controlplane"), Components: s.set,
			Log: s.config.Log, Supervisor: s.config.Supervisor,
		})
		if err != nil {
			return err
		}
		s.cluster, s.facts.Kubeconfig = plane.REST(), plane.Kubeconfig()
	} else {
		s.facts.Kubeconfig = s.config.Kubeconfig
		if s.cluster, err = s.facts.REST(); err != nil {
			return fmt.Errorf("read the kubeconfig of your cluster: %w", err)
		}
	}
	if s.client, err = client.New(s.cluster, client.Options{}); err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	return s.publish()
}

// serviceProxy reaches Flux's receivers in a cluster that we are not in.
const serviceProxy = "/api/v1/namespaces/flux-system/services/http:webhook-receiver:80/proxy"

func (s *Stack) startFlux(ctx context.Context) error {
	if s.facts.OwnCluster {
		flux, err := fluxsystem.Start(ctx, fluxsystem.Config{
			Dir: filepath.Join(s.config.State, "flux"), Components: s.set, Cluster: s.cluster,
			Log: s.config.Log, Supervisor: s.config.Supervisor,
		})
		if err != nil {
			return err
		}
		s.facts.ReceiverURL = flux.ReceiverURL()
	} else {
		if err := fluxsystem.Installed(ctx, s.client); err != nil {
			return err
		}
		s.facts.ReceiverURL = serviceProxy
	}
	return s.publish()
}

func (s *Stack) applySample(ctx context.Context) error {
	if err := s.forge.ApplySources(ctx, s.client); err != nil {
		return err
	}
	return sample.AwaitReady(ctx, s.client)
}
