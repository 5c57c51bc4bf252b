// Package controlplane runs a real Kubernetes control plane without containers:
// etcd, kube-apiserver, kube-controller-manager and kube-scheduler as child
// processes on loopback, and KWOK, which plays one node, so that Deployments
// become ready. It owns their flags, certificates, ports and data; it does
// not build them (see package component).
//
//	plane, err := controlplane.Start(ctx, controlplane.Config{Dir: dir, Components: set, Log: log})
//	defer plane.Stop()
//	client, err := kubernetes.NewForConfig(plane.REST())
//
// Everything speaks TLS under the plane's own authority, and RBAC is on, so
// that what works here has the rights it needs elsewhere.
package controlplane

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"tidelock.dev/playground/component"
	"tidelock.dev/playground/port"
	"tidelock.dev/playground/supervisor"
)

// Names of the processes, for [ControlPlane.Kill] and [ControlPlane.Restart].
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	KWOK              = "kwok"
)

// NodeName is the node that KWOK plays.
const NodeName = "playground"

const (
	serviceRange = "10.96.0.0/16"
	serviceIP    = "10.96.0.1" // the first of it: the service "kubernetes"
	issuer       = "https://kubernetes.default.svc.cluster.local"
)

//go:embed stages.yaml
var stages []byte // of pods that ask for trouble

// Config says what to run and where. Components needs kube and kwok.
type Config struct {
	Dir        string // state folder; what it holds survives restarts
	Components component.Set
	Log        *slog.Logger

	// Supervisor runs the processes. Nil makes one in Dir that Stop closes.
	Supervisor *supervisor.Supervisor

	// Expendable says that the data may be lost with the machine: etcd does
	// not wait for the disk.
	Expendable bool
}

// A ControlPlane is a running control plane.
type ControlPlane struct {
	config  Config
	owned   bool // we made the supervisor
	names   []string
	rest    *rest.Config
	address string // of kube-apiserver
	ca      *authority
}

// Start returns a control plane that answers and whose node is ready. The
// same folder gives the same cluster, on the same ports if they are still
// free.
func Start(ctx context.Context, config Config) (plane *ControlPlane, err error) {
	p := &ControlPlane{config: config}
	if config.Supervisor == nil {
		s, err := supervisor.Open(supervisor.Config{Dir: config.Dir, Log: config.Log})
		if err != nil {
			return nil, fmt.Errorf("start control plane: %w", err)
		}
		p.config.Supervisor, p.owned = s, true
	}
	defer func() {
		if err != nil {
			plane, err = nil, errors.Join(fmt.Errorf("start control plane: %w", err), p.Stop())
		}
	}()
	if p.ca, err = openAuthority(filepath.Join(config.Dir, "pki")); err != nil {
		return nil, err
	}
	book, err := port.Open(filepath.Join(config.Dir, "ports.json"))
	if err != nil {
		return nil, err
	}
	addresses := map[string]string{}
	for _, name := range []string{Etcd, "etcd-peer", APIServer, ControllerManager, Scheduler, KWOK} {
		if addresses[name], err = book.Addr(name); err != nil {
			return nil, err
		}
	}
	p.address = addresses[APIServer]
	if err := p.issueCertificates(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(p.stagesFile(), stages, 0o600); err != nil {
		return nil, fmt.Errorf("write the stages of pods: %w", err)
	}
	for _, batch := range p.processes(addresses) {
		for _, process := range batch {
			p.names = append(p.names, process.Name)
		}
		if err := p.config.Supervisor.Start(ctx, batch...); err != nil {
			return nil, err
		}
	}
	return p, p.addNode(ctx)
}

// issueCertificates writes a certificate for every actor, and a kubeconfig for
// those that speak to the apiserver.
func (p *ControlPlane) issueCertificates() error {
	actors := []struct {
		name, user string
		groups     []string
		kubeconfig bool
	}{
		{"etcd", "etcd", nil, false},
		{"apiserver", "kube-apiserver", nil, false},
		{"admin", "playground-admin", []string{"system:masters"}, true},
		{"controller-manager", "system:kube-controller-manager", nil, true},
		{"scheduler", "system:kube-scheduler", nil, true},
		{"kwok", "playground-kwok", []string{"system:masters"}, true},
	}
	for _, a := range actors {
		if err := p.ca.issue(a.name, a.user, a.groups...); err != nil {
			return err
		}
		if !a.kubeconfig {
			continue
		}
		if err := p.writeCertKubeconfig(a.name); err != nil {
			return err
		}
	}
	if _, err := loadOrMakeKey(p.ca.path("serviceaccount.key")); err != nil {
		return err
	}
	var err error
	if p.rest, err = clientcmd.BuildConfigFromFlags("", p.Kubeconfig()); err != nil {
		return fmt.Errorf("read own kubeconfig: %w", err)
	}
	// Tests and the playground itself must not wait for client-go's five
	// requests per second; the apiserver has its own fairness.
	p.rest.QPS, p.rest.Burst = 200, 400
	p.rest.UserAgent = "tidelock-playground"
	return nil
}

// processes lists what to run, in batches that start one after the other.
func (p *ControlPlane) processes(addresses map[string]string) [][]supervisor.Process {
	kube := p.config.Components[component.Kube].Binary()
	port := func(name string) string {
		_, port, _ := net.SplitHostPort(addresses[name])
		return port
	}
	etcd := []string{
		"etcd",
		"--data-dir=" + filepath.Join(p.config.Dir, "etcd"),
		"--listen-client-urls=https://" + addresses[Etcd],
		"--listen-peer-urls=https://" + addresses["etcd-peer"],
		"--cert-file=" + p.ca.path("etcd.crt"),
		"--key-file=" + p.ca.path("etcd.key"),
		"--trusted-ca-file=" + p.ca.path("ca.crt"),
	}
	if p.config.Expendable {
		etcd = append(etcd, "--unsafe-no-fsync")
	}
	apiserver := []string{
		APIServer,
		"--etcd-servers=https://" + addresses[Etcd],
		"--etcd-cafile=" + p.ca.path("ca.crt"),
		"--etcd-certfile=" + p.ca.path("apiserver.crt"),
		"--etcd-keyfile=" + p.ca.path("apiserver.key"),
		"--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1",
		"--secure-port=" + port(APIServer),
		"--tls-cert-file=" + p.ca.path("apiserver.crt"),
		"--tls-private-key-file=" + p.ca.path("apiserver.key"),
		"--client-ca-file=" + p.ca.path("ca.crt"),
		"--authorization-mode=Node,RBAC",
		"--service-account-issuer=" + issuer,
		"--service-account-key-file=" + p.ca.path("serviceaccount.key"),
		"--service-account-signing-key-file=" + p.ca.path("serviceaccount.key"),
		"--service-cluster-ip-range=" + serviceRange,
		"--allow-privileged=true",
		// Endpoints may not be loopback addresses, and nobody here could use
		// the service "kubernetes" anyway.
		"--endpoint-reconciler-type=none",
		// The rest only leaves an idle machine idle.
		"--etcd-count-metric-poll-period=0",
		"--etcd-db-metric-poll-interval=0",
		"--enable-priority-and-fairness=false",
		"--feature-gates=APIServerIdentity=false",
		"--profiling=false",
	}
	manager := append(p.delegated("controller-manager", port(ControllerManager)),
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--service-account-private-key-file="+p.ca.path("serviceaccount.key"),
		"--root-ca-file="+p.ca.path("ca.crt"),
		"--cluster-signing-cert-file="+p.ca.path("ca.crt"),
		"--cluster-signing-key-file="+p.ca.path("ca.key"),
		"--kube-api-qps=200", "--kube-api-burst=400",
		"--profiling=false",
		// What needs a cloud, a network plugin or disks has nothing to do here.
		"--controllers=*,-cloud-node-lifecycle-controller,-node-ipam-controller,-node-route-controller,"+
			"-service-lb-controller,-persistentvolume-attach-detach-controller,-persistentvolume-expander-controller",
	)
	scheduler := append(p.delegated("scheduler", port(Scheduler)),
		"--leader-elect=false",
		"--kube-api-qps=200", "--kube-api-burst=400",
		"--profiling=false",
	)
	kwok := []string{
		"--kubeconfig=" + p.ca.path("kwok.kubeconfig"),
		"--manage-all-nodes=true",
		"--server-address=" + addresses[KWOK],
		"--node-lease-duration-seconds=40",
	}
	ordinary, _ := p.config.Components[component.KWOK].Manifests()
	for _, file := range append(ordinary, p.stagesFile()) {
		kwok = append(kwok, "--config="+file)
	}
	environment := supervisor.Environment(p.config.Dir)
	return [][]supervisor.Process{
		{{
			Name: Etcd, Path: kube, Args: etcd, Env: environment,
			Ready: p.probe("https://"+addresses[Etcd]+"/health", "apiserver"),
		}},
		{{
			Name: APIServer, Path: kube, Args: apiserver, Env: environment,
			Ready: p.probe("https://"+p.address+"/readyz", "admin"),
		}},
		{
			{
				Name: ControllerManager, Path: kube, Args: append([]string{ControllerManager}, manager...), Env: environment,
				Ready: p.probe("https://"+addresses[ControllerManager]+"/healthz", "admin"),
			},
			{
				Name: Scheduler, Path: kube, Args: append([]string{Scheduler}, scheduler...), Env: environment,
				Ready: p.probe("https://"+addresses[Scheduler]+"/healthz", "admin"),
			},
			{
				Name: KWOK, Path: p.config.Components[component.KWOK].Binary(), Args: kwok, Env: environment,
				Ready: p.probe("http://"+addresses[KWOK]+"/healthz", "admin"),
			},
		},
	}
}

// delegated lists the flags of a component that asks the apiserver who its
// own callers are.
func (p *ControlPlane) delegated(name, port string) []string {
	kubeconfig := p.ca.path(name + ".kubeconfig")
	return []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1",
		"--secure-port=" + port,
		"--tls-cert-file=" + p.ca.path(name+".crt"),
		"--tls-private-key-file=" + p.ca.path(name+".key"),
		"--client-ca-file=" + p.ca.path("ca.crt"),
	}
}

func (p *ControlPlane) stagesFile() string { return filepath.Join(p.config.Dir, "stages.yaml") }

// REST returns a configuration with an administrator's rights.
func (p *ControlPlane) REST() *rest.Config { return rest.CopyConfig(p.rest) }

// Kubeconfig is the path of the administrator's kubeconfig.
func (p *ControlPlane) Kubeconfig() string { return p.ca.path("admin.kubeconfig") }

// Kill ends a process at once and keeps it down until Restart.
func (p *ControlPlane) Kill(name string) error { return p.config.Supervisor.Kill(name) }

// Restart starts a process anew and returns when it is ready.
func (p *ControlPlane) Restart(ctx context.Context, name string) error {
	return p.config.Supervisor.Restart(ctx, name)
}

// Stop ends the control plane; its state stays in the folder.
func (p *ControlPlane) Stop() error {
	err := p.config.Supervisor.Stop(p.names...)
	p.names = nil
	if p.owned {
		err = errors.Join(err, p.config.Supervisor.Close())
	}
	return err
}
