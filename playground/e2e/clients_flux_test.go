package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	notificationv1 "github.com/fluxcd/notification-controller/api/v1"
	notificationv1beta3 "github.com/fluxcd/notification-controller/api/v1beta3"
	"github.com/fluxcd/pkg/apis/meta"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/e2e"
)

// create makes objects in the cluster.
func create(t *testing.T, f *e2e.Forge, objects ...client.Object) {
	t.Helper()
	for _, o := range objects {
		if err := f.Cluster.Client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}

// newProvider makes a Provider of type gitlab that signs in with a token, and
// an Alert that tells it of a Kustomization. It returns the name of the commit
// status that Flux will post.
func newProvider(t *testing.T, f *e2e.Forge, ns, name, address, token, kustomization string) string {
	t.Helper()
	named := metav1.ObjectMeta{Name: name, Namespace: ns}
	provider := &notificationv1beta3.Provider{ObjectMeta: named, Spec: notificationv1beta3.ProviderSpec{
		Type: notificationv1beta3.GitLabProvider, Address: address,
		SecretRef:     &meta.LocalObjectReference{Name: name},
		CertSecretRef: &meta.LocalObjectReference{Name: "forge"},
	}}
	create(t, f,
		&corev1.Secret{ObjectMeta: named, StringData: map[string]string{"token": token}},
		provider,
		&notificationv1beta3.Alert{ObjectMeta: named, Spec: notificationv1beta3.AlertSpec{
			ProviderRef:  meta.LocalObjectReference{Name: name},
			EventSources: []notificationv1.CrossNamespaceObjectReference{{Kind: "Kustomization", Name: kustomization}},
		}},
	)
	return fmt.Sprintf("kustomization/%s/%.8s", kustomization, provider.UID)
}

// Flux's Provider of type gitlab tells of a Kustomization by commit statuses,
// with every kind of token that may post one. It does so once, and not at all
// when it is too busy: the test has the machine to itself.
func TestFluxProvider(t *testing.T) {
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true})
	ns := f.Cluster.Namespace(t)
	p := f.Project("team/site", "private")
	good := p.Push("main", e2e.ConfigMap("site", "one"))
	f.Trust(ns, "root", f.Token)

	made := func(path string, in map[string]any) string {
		var out struct{ Token string }
		f.Call(http.MethodPost, fmt.Sprintf("projects/%d/%s", p.ID, path), in, &out)
		return out.Token
	}
	// The branch is protected: developers may not change its pipelines.
	tokens := map[string]string{
		"personal": newMember(f, "projects", p.ID, 40),
		"project":  made("access_tokens", map[string]any{"name": "flux", "scopes": []string{"api"}, "access_level": 40, "expires_at": time.Now().AddDate(0, 1, 0).Format(time.DateOnly)}),
		"deploy":   made("deploy_tokens", map[string]any{"name": "flux", "scopes": []string{"api"}}),
	}
	names := map[string]string{}
	for kind, token := range tokens {
		address := p.URL
		if kind == "project" { // Flux's documentation recommends the number
			address = fmt.Sprintf("%s/%d", f.URL, p.ID)
		}
		names[kind] = newProvider(t, f, ns, kind, address, token, "site")
	}
	f.Source(ns, "site", p, e2e.Branch("main"))
	f.Apply(ns, "site")
	waitStatuses(t, f, p, good, names, "success")

	bad := p.Push("main", map[string]string{"deploy/site.yaml": "apiVersion: v1\nkind: NoSuchKind\nmetadata: {name: site}\n"})
	f.Cluster.Wake(t, ns, "site")
	waitStatuses(t, f, p, bad, names, "failed")

	var pipelines []struct{ SHA, Status, Source string }
	f.Call(http.MethodGet, fmt.Sprintf("projects/%d/pipelines?sha=%s", p.ID, bad), nil, &pipelines)
	if len(pipelines) != 1 || pipelines[0].Status != "failed" || pipelines[0].Source != "external" {
		t.Errorf("pipelines of the commit: got %+v, want a failed external one", pipelines)
	}
}

// waitStatuses waits until a commit has a status of each name in a state, and
// no others.
func waitStatuses(t *testing.T, f *e2e.Forge, p *e2e.Project, commit string, names map[string]string, state string) {
	t.Helper()
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		var list []struct {
			SHA, Name, Status, Description string
		}
		if err := f.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/repository/commits/%s/statuses", p.ID, commit), nil, &list); err != nil {
			return err
		}
		var posted []string
		for _, s := range list {
			if s.Status == state && s.SHA == commit && s.Description != "" {
				posted = append(posted, s.Name)
			}
		}
		for kind, name := range names {
			if !slices.Contains(posted, name) {
				return fmt.Errorf("no status %q, %s by the %s token, of %s; there are %+v", name, state, kind, commit, list)
			}
		}
		if len(list) != len(names) {
			return fmt.Errorf("statuses of %s: got %+v, want %d", commit, list, len(names))
		}
		return nil
	})
}

// A delivery is one of a hook's, as the forge tells of it.
type delivery struct {
	Trigger  string
	Status   string `json:"response_status"`
	State    string
	Attempts int
}

// Flux's Receiver of type gitlab is called by the forge's webhooks: a push is
// fetched at once by a source that otherwise looks once an hour, and a call
// that the Receiver refuses is made again.
func TestFluxReceiver(t *testing.T) {
	t.Parallel()
	cluster := e2e.Cluster(t)
	receivers, err := url.Parse(cluster.Flux.ReceiverURL())
	if err != nil {
		t.Fatal(err)
	}
	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true, ServerFlags: []string{"--webhook-allow", receivers.Host}})
	ns := cluster.Namespace(t)
	p := f.Project("team/site", "private")
	first := p.Push("main", e2e.ConfigMap("site", "one"))
	f.Trust(ns, "root", f.Token)
	f.Source(ns, "site", p, e2e.Branch("main"))
	f.WaitFetched(ns, "site", first, soon)

	named := metav1.ObjectMeta{Name: "site", Namespace: ns}
	create(t, f,
		&corev1.Secret{ObjectMeta: named, StringData: map[string]string{"token": "receiver-secret"}},
		&notificationv1.Receiver{ObjectMeta: named, Spec: notificationv1.ReceiverSpec{
			Type: notificationv1.GitLabReceiver, Events: []string{"Push Hook", "Tag Push Hook"},
			SecretRef: meta.LocalObjectReference{Name: "site"},
			Resources: []notificationv1.CrossNamespaceObjectReference{{APIVersion: "source.toolkit.fluxcd.io/v1", Kind: "GitRepository", Name: "site"}},
		}},
	)
	path := ""
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		receiver := &notificationv1.Receiver{}
		if err := cluster.Client.Get(ctx, client.ObjectKey{Namespace: ns, Name: "site"}, receiver); err != nil {
			return err
		}
		if path = receiver.Status.WebhookPath; path == "" {
			return fmt.Errorf("the receiver has no address: %v", receiver.Status.Conditions)
		}
		return nil
	})
	hooks := fmt.Sprintf("projects/%d/hooks", p.ID)
	var hook struct{ ID int64 }
	f.Call(http.MethodPost, hooks, map[string]any{"url": receivers.JoinPath(path).String(), "token": "receiver-secret", "push_events": true, "tag_push_events": true}, &hook)
	one := fmt.Sprintf("%s/%d", hooks, hook.ID)
	newest := func(ctx context.Context) (d delivery, err error) {
		var list []delivery
		if err = f.API(ctx, http.MethodGet, one+"/events", nil, &list); err == nil && len(list) > 0 {
			d = list[0]
		}
		return d, err
	}
	waitDelivery := func(want delivery) {
		t.Helper()
		e2e.Eventually(t, soon, func(ctx context.Context) error {
			if got, err := newest(ctx); err != nil || got != want {
				return fmt.Errorf("the newest delivery is %+v (%v), want %+v", got, err, want)
			}
			return nil
		})
	}

	second := p.Push("main", e2e.ConfigMap("site", "two"))
	f.WaitFetched(ns, "site", second, soon)
	waitDelivery(delivery{"push_hooks", "200", "delivered", 1})

	p.Git("tag", "v1")
	p.Git("push", "--quiet", "origin", "v1")
	waitDelivery(delivery{"tag_push_hooks", "200", "delivered", 1})

	f.Call(http.MethodPut, one, map[string]any{"token": "another-secret"}, nil)
	third := p.Push("main", e2e.ConfigMap("site", "three"))
	waitDelivery(delivery{"push_hooks", "400", "waiting", 1})
	source, err := cluster.GitRepository(t.Context(), ns, "site")
	if err != nil {
		t.Fatal(err)
	}
	if got := source.Status.Artifact.Revision; got != "main@sha1:"+second {
		t.Errorf("with a wrong token the source went to %s", got)
	}
	f.Call(http.MethodPut, one, map[string]any{"token": "receiver-secret"}, nil)
	f.WaitFetched(ns, "site", third, soon)
	waitDelivery(delivery{"push_hooks", "200", "delivered", 2})
}
