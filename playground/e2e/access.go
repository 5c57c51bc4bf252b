package e2e

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev"
	"tidelock.dev/deploy/agent"
	"tidelock.dev/playground/controlplane"
	"tidelock.dev/playground/manifest"
)

// access is that of the agents of a cluster.
type access struct {
	once       sync.Once
	kubeconfig string
	err        error
}

const agentNamespace = "tidelock-agent"

// AgentAccess applies the agent's manifests, rights and all, once per cluster,
// and returns the namespace and a kubeconfig of the ServiceAccount that they
// make.
func (s *System) AgentAccess(t testing.TB) (namespace, kubeconfig string) {
	t.Helper()
	s.access.once.Do(func() {
		s.access.kubeconfig = filepath.Join(s.Dir, "agent.kubeconfig")
		s.access.err = s.applyAgentAccess(context.Background())
	})
	if s.access.err != nil {
		t.Fatal(s.access.err)
	}
	return agentNamespace, s.access.kubeconfig
}

// ReadyReceivers counts the ready Receivers of a source that an agent keeps.
func (s *System) ReadyReceivers(ctx context.Context, namespace, source string) (int, error) {
	list := &notificationv1.ReceiverList{}
	if err := s.Client.List(ctx, list, client.InNamespace(namespace)); err != nil {
		return 0, fmt.Errorf("list receivers: %w", err)
	}
	n := 0
	for _, r := range list.Items {
		if len(r.Spec.Resources) != 1 || r.Spec.Resources[0].Name != source || r.Status.WebhookPath == "" {
			continue
		}
		for _, c := range r.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				n++
			}
		}
	}
	return n, nil
}

// applyAgentAccess applies what an operator would. The simulated node runs the
// Deployment's pods, so no agent comes of it.
func (s *System) applyAgentAccess(ctx context.Context) error {
	var text bytes.Buffer
	if err := agent.Render(&text, agent.Values{
		Namespace: agentNamespace, AgentName: "test", ServerURL: "https://localhost",
		Token: tidelock.NewSecret("unused"), Image: "tidelock", Replicas: 1,
	}); err != nil {
		return err
	}
	objects, err := manifest.Parse(text.Bytes())
	if err != nil {
		return err
	}
	if err := manifest.Apply(ctx, s.Client, objects...); err != nil {
		return err
	}
	_, err = controlplane.WriteServiceAccountKubeconfig(ctx, s.REST(), agentNamespace, agent.ServiceAccount, s.access.kubeconfig)
	return err
}
