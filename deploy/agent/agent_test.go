package agent_test

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"tidelock.dev"
	"tidelock.dev/deploy/agent"
)

var update = flag.Bool("update", false, "write golden files")

func values() agent.Values {
	return agent.Values{
		Namespace: "tidelock-agent",
		AgentName: "production",
		ServerURL: "https://forge.example",
		Token:     tidelock.NewSecret("glagent-secret"),
		Image:     "registry.example/tidelock:1.2.3",
	}
}

func render(t *testing.T, v agent.Values) string {
	t.Helper()
	var text bytes.Buffer
	if err := agent.Render(&text, v); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

// decode reads the manifests as an API server would, strictly.
func decode(t *testing.T, text string) []runtime.Object {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewYAMLReader(bufio.NewReader(strings.NewReader(text)))
	var objects []runtime.Object
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		object, _, err := decoder.Decode(document, nil, nil)
		if err != nil {
			t.Fatalf("decode: %v\n%s", err, document)
		}
		objects = append(objects, object)
	}
}

// find returns the one object of a type.
func find[T runtime.Object](t *testing.T, objects []runtime.Object) T {
	t.Helper()
	var found []T
	for _, object := range objects {
		if o, ok := object.(T); ok {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("got %d objects of %T, want 1", len(found), *new(T))
	}
	return found[0]
}

func TestRenderGolden(t *testing.T) {
	got := render(t, values())
	golden := filepath.Join("testdata", "manifest.golden.yaml")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the manifests differ from %s; run go test -update and look at the difference:\n%s", golden, got)
	}
	decode(t, got)
}

func TestRenderValues(t *testing.T) {
	v := values()
	v.CA = certificate(t)
	v.Replicas = 3
	v.ServerURL = `https://forge.example/"sub": {x}, - y`
	objects := decode(t, render(t, v))

	secret := find[*corev1.Secret](t, objects)
	if got := string(secret.Data["token"]); got != "glagent-secret" {
		t.Errorf("token: got %q", got)
	}
	if got := secret.Data["ca.crt"]; !bytes.Equal(got, v.CA) {
		t.Errorf("ca.crt: got %q, want %q", got, v.CA)
	}
	deployment := find[*appsv1.Deployment](t, objects)
	if *deployment.Spec.Replicas != 3 {
		t.Errorf("replicas: got %d, want 3", *deployment.Spec.Replicas)
	}
	args := deployment.Spec.Template.Spec.Containers[0].Args
	for _, want := range []string{"--server-url=" + v.ServerURL, "--ca-file=/etc/tidelock/ca.crt", "--token-file=/etc/tidelock/token"} {
		if !slices.Contains(args, want) {
			t.Errorf("args: %q lack %q", args, want)
		}
	}
	for _, arg := range args {
		if strings.Contains(arg, "glagent-") {
			t.Errorf("the token is in the arguments: %q", arg)
		}
	}
}

// A hostile or careless value must not change the shape of the manifests.
func TestRenderRefusesBadValues(t *testing.T) {
	for name, spoil := range map[string]func(*agent.Values){
		"namespace with a line break": func(v *agent.Values) { v.Namespace = "x\n---\nkind: Secret" },
		"namespace in capitals":       func(v *agent.Values) { v.Namespace = "Agents" },
		"empty namespace":             func(v *agent.Values) { v.Namespace = "" },
		"agent name with a quote":     func(v *agent.Values) { v.AgentName = `a"b` },
		"empty agent name":            func(v *agent.Values) { v.AgentName = "" },
		"image with a space":          func(v *agent.Values) { v.Image = "a b" },
		"no image":                    func(v *agent.Values) { v.Image = "" },
		"no token":                    func(v *agent.Values) { v.Token = tidelock.Secret{} },
		"URL of another scheme":       func(v *agent.Values) { v.ServerURL = "file:///etc/passwd" },
		"URL with credentials":        func(v *agent.Values) { v.ServerURL = "https://me:secret@forge.example" },
		"no URL":                      func(v *agent.Values) { v.ServerURL = "" },
		"CA that is none":             func(v *agent.Values) { v.CA = []byte("hello") },
		"CA with a private key":       func(v *agent.Values) { v.CA = append(certificate(t), privateKey(t)...) },
		"negative replicas":           func(v *agent.Values) { v.Replicas = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			v := values()
			spoil(&v)
			var text bytes.Buffer
			err := agent.Render(&text, v)
			if err == nil || text.Len() > 0 {
				t.Fatalf("got %v and %d bytes, want an error and none", err, text.Len())
			}
			if strings.Contains(err.Error(), "glagent") || strings.Contains(err.Error(), "me:secret") {
				t.Errorf("the error tells a secret: %v", err)
			}
		})
	}
}

func TestRights(t *testing.T) {
	objects := decode(t, render(t, values()))
	for _, rule := range find[*rbacv1.ClusterRole](t, objects).Rules {
		all := slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs)
		if slices.Contains(all, "*") {
			t.Errorf("wildcard in %v", rule)
		}
		if slices.Contains(rule.Resources, "secrets") && (slices.Contains(rule.Verbs, "list") || slices.Contains(rule.Verbs, "watch")) {
			t.Errorf("secrets can be listed: %v", rule)
		}
		if slices.ContainsFunc(rule.Verbs, func(v string) bool { return !slices.Contains(readVerbs, v) }) && !slices.ContainsFunc(rule.APIGroups, isFlux) &&
			!slices.Contains(rule.Resources, "secrets") && !slices.Contains(rule.Resources, "services/proxy") {
			t.Errorf("more than Flux's objects and the agent's own can be changed: %v", rule)
		}
		if slices.Contains(rule.Resources, "services/proxy") && len(rule.ResourceNames) == 0 {
			t.Errorf("any service can be called: %v", rule)
		}
	}
}

var readVerbs = []string{"get", "list", "watch"}

func isFlux(group string) bool { return strings.HasSuffix(group, ".toolkit.fluxcd.io") }

func TestPodIsRestricted(t *testing.T) {
	pod := find[*appsv1.Deployment](t, decode(t, render(t, values()))).Spec.Template.Spec
	c := pod.Containers[0].SecurityContext
	if !*pod.SecurityContext.RunAsNonRoot || *c.AllowPrivilegeEscalation || !*c.ReadOnlyRootFilesystem ||
		!slices.Equal(c.Capabilities.Drop, []corev1.Capability{"ALL"}) {
		t.Errorf("got %+v and %+v", pod.SecurityContext, c)
	}
}

func certificate(t *testing.T) []byte {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "forge"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func privateKey(t *testing.T) []byte {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
