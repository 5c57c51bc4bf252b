package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"testing"

	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev"
	"tidelock.dev/deploy/agent"
	"tidelock.dev/playground/controlplane"
)

var agentAccess struct {
	once                  sync.Once
	namespace, kubeconfig string
	err                   error
}

// AgentAccess applies the agent's manifests, rights and all, once per run, and
// returns the namespace and a kubeconfig of the ServiceAccount that they make.
func (s *System) AgentAccess(t testing.TB) (namespace, kubeconfig string) {
	t.Helper()
	agentAccess.once.Do(func() {
		agentAccess.namespace = "tidelock-agent"
		agentAccess.kubeconfig = filepath.Join(s.Dir, "agent.kubeconfig")
		agentAccess.err = s.applyAgentAccess(context.Background())
	})
	if agentAccess.err != nil {
		t.Fatal(agentAccess.err)
	}
	return agentAccess.namespace, agentAccess.kubeconfig
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

// applyAgentAccess applies what an operator would, less the Deployment, whose
// image nobody here runs, and its token.
func (s *System) applyAgentAccess(ctx context.Context) error {
	var text bytes.Buffer
	if err := agent.Render(&text, agent.Values{
		Namespace: agentAccess.namespace, AgentName: "test", ServerURL: "https://localhost",
		Token: tidelock.NewSecret("unused"), Image: "tidelock",
	}); err != nil {
		return err
	}
	documents := yaml.NewYAMLOrJSONDecoder(&text, 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := documents.Decode(o); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("read the agent's manifests: %w", err)
		}
		if kind := o.GetKind(); kind == "" || kind == "Deployment" || kind == "Secret" {
			continue
		}
		if err := s.Client.Patch(ctx, o, client.Apply, client.FieldOwner("e2e"), client.ForceOwnership); err != nil {
			return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	_, err := controlplane.WriteServiceAccountKubeconfig(ctx, s.REST(), agentAccess.namespace, agent.ServiceAccount, agentAccess.kubeconfig)
	return err
}
