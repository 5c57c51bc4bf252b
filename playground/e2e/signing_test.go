package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fluxcd/pkg/apis/meta"
	sourcev1 "github.com/fluxcd/source-controller/api/v1"
	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/internal/signing"
	"tidelock.dev/playground/e2e"
)

// signed is a forge that packages and signs, and a namespace whose sources
// take only what is signed.
type signed struct {
	*e2e.Forge
	ns      string
	project *e2e.Project
}

// TestSignatures lets Flux verify, with the public keys that the server tells.
func TestSignatures(t *testing.T) {
	t.Parallel()
	f := e2e.StartForge(t, e2e.ForgeConfig{})
	w := signed{f, f.Cluster.Namespace(t), f.Project("team/signed", "public")}
	f.Trust(w.ns)
	t.Run("packaged", w.packaged)
	t.Run("refused", w.refused)
	t.Run("reported", w.reported)
}

type signingKey struct {
	ID        string `json:"id"`
	PublicKey string `json:"public_key"`
}

// trust makes a Secret of public keys.
func (w signed) trust(t *testing.T, name string, keys ...string) {
	t.Helper()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: w.ns}, Data: map[string][]byte{}}
	for i, key := range keys {
		secret.Data[fmt.Sprintf("key-%d.pub", i)] = []byte(key)
	}
	err := w.Cluster.Client.Create(t.Context(), secret)
	if err != nil {
		err = w.Cluster.Client.Update(t.Context(), secret)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// verifying makes a source trust the keys of a Secret alone.
func verifying(secret string) func(*sourcev1.OCIRepository) {
	return func(o *sourcev1.OCIRepository) {
		o.Spec.Verify = &sourcev1.OCIRepositoryVerification{Provider: "cosign", SecretRef: &meta.LocalObjectReference{Name: secret}}
	}
}

// waitRefused waits until Flux has refused a revision for want of a signature.
func (w signed) waitRefused(t *testing.T, source *sourcev1.OCIRepository, digest string) {
	t.Helper()
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		if err := w.Cluster.Client.Get(ctx, client.ObjectKeyFromObject(source), source); err != nil {
			return err
		}
		c := apimeta.FindStatusCondition(source.Status.Conditions, sourcev1.SourceVerifiedCondition)
		if c == nil || c.Status != metav1.ConditionFalse || c.Reason != sourcev1.VerificationError {
			return fmt.Errorf("%s has conditions %v, want it not verified", source.Name, source.Status.Conditions)
		}
		if a := source.Status.Artifact; a != nil && strings.HasSuffix(a.Revision, digest) {
			t.Fatalf("Flux took %s, which is not signed", a.Revision)
		}
		return nil
	})
}

// packaged pushes a delivery repository: the server packages it and signs what
// it packaged, before and after its key was rotated.
func (w signed) packaged(t *testing.T) {
	var keys []signingKey
	w.Call(http.MethodGet, "signing_keys", nil, &keys)
	w.trust(t, "server", keys[0].PublicKey)
	image := w.Image("team/signed/web")
	deliver := func(value string) string {
		t.Helper()
		files := map[string]string{".tidelock/delivery.yaml": "applications:\n- name: web\n  path: web\n"}
		for name, text := range e2e.ConfigMap("signed", value) {
			files["web/"+name] = text
		}
		return w.project.Push("main", files)
	}
	deliver("1")
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		return w.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/registry/artifacts/latest?image=web", w.project.ID), nil, nil)
	})
	source := w.ImageSource(w.ns, "signed", image, nil, verifying("server"))
	w.WaitServed(w.ns, "signed")
	w.ApplyImage(w.ns, "signed")
	waitConfigMap(t, w.Forge, w.ns, "signed", "1")
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		if err := w.Cluster.Client.Get(ctx, client.ObjectKeyFromObject(source), source); err != nil {
			return err
		}
		if !apimeta.IsStatusConditionTrue(source.Status.Conditions, sourcev1.SourceVerifiedCondition) {
			return fmt.Errorf("conditions are %v, want it verified", source.Status.Conditions)
		}
		return nil
	})
	deliver("2")
	waitConfigMap(t, w.Forge, w.ns, "signed", "2")

	// Who has the old key alone takes nothing that the new one signed.
	var next signingKey
	w.Call(http.MethodPost, "signing_keys/rotate", map[string]string{"id": keys[0].ID}, &next)
	deliver("3")
	shown := w.artifact(t, "web", "latest", func(a artifactShown) error {
		if !slices.Equal(a.SignedBy, []string{next.ID}) {
			return fmt.Errorf("latest is signed by %v, want %s", a.SignedBy, next.ID)
		}
		return nil
	})
	w.waitRefused(t, source, shown.Digest)
	w.trust(t, "server", keys[0].PublicKey, next.PublicKey)
	deliver("4")
	waitConfigMap(t, w.Forge, w.ns, "signed", "4")

	// The command line verifies the same, with the server's keys and a file's.
	old := filepath.Join(t.TempDir(), "old.pub")
	if err := os.WriteFile(old, []byte(keys[0].PublicKey), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := w.tidelock(t, "artifact", "verify", image.URL+":latest"); err != nil || !strings.Contains(out, "is signed") {
		t.Errorf("tidelock artifact verify: %v\n%s", err, out)
	}
	if out, err := w.tidelock(t, "artifact", "verify", image.URL+":latest", "--key", old); err == nil || !strings.Contains(out, "made with another key") {
		t.Errorf("tidelock artifact verify with the old key: %v\n%s", err, out)
	}
}

// tidelock runs the command as the administrator.
func (w signed) tidelock(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), e2e.Binary(t), args...)
	cmd.Env = append(os.Environ(), "TIDELOCK_URL="+w.URL, "TIDELOCK_TOKEN="+w.Token, "TIDELOCK_CA_FILE="+w.CAFile)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

type artifactShown struct {
	Digest   string   `json:"digest"`
	SignedBy []string `json:"signed_by"`
	Attached []struct {
		Digest string `json:"digest"`
		Type   string `json:"artifact_type"`
	} `json:"attached"`
	Held *struct {
		Message string `json:"message"`
	} `json:"held"`
}

// artifact waits until an artifact is as it should be.
func (w signed) artifact(t *testing.T, image, reference string, check func(artifactShown) error) (shown artifactShown) {
	t.Helper()
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		shown = artifactShown{}
		path := fmt.Sprintf("projects/%d/registry/artifacts/%s?image=%s", w.project.ID, reference, image)
		if err := w.API(ctx, http.MethodGet, path, nil, &shown); err != nil {
			return err
		}
		return check(shown)
	})
	return shown
}

// refused pushes what is not signed, what a stranger signed, and a good
// signature under the tag of something else.
func (w signed) refused(t *testing.T) {
	ours, err := signing.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := signing.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w.trust(t, "ours", ours.Keys()[0].PEM())

	plain := w.Image("team/signed/plain")
	unsigned := plain.Push("latest", w.Manifests(e2e.ConfigMap("plain", "1"), ""))
	w.waitRefused(t, w.ImageSource(w.ns, "plain", plain, nil, verifying("ours")), unsigned)

	image := w.Image("team/signed/other")
	other := w.Manifests(e2e.ConfigMap("other", "1"), "")
	image.Sign(stranger, other)
	image.Push("latest", other)
	source := w.ImageSource(w.ns, "other", image, nil, verifying("ours"))
	w.waitRefused(t, source, other.Digest)

	// One good signature beside a stranger's is enough.
	w.WaitServed(w.ns, "other")
	w.ApplyImage(w.ns, "other")
	good := w.Manifests(e2e.ConfigMap("other", "2"), "")
	image.Sign(ours, good)
	image.Push("latest", good)
	waitConfigMap(t, w.Forge, w.ns, "other", "2")

	evil := w.Manifests(e2e.ConfigMap("other", "evil"), "")
	body, blobs := signatureOf(t, ours, image, good)
	tag := "sha256-" + strings.TrimPrefix(evil.Digest, "sha256:") + ".sig"
	if err := image.TryPushRaw(tag, body, blobs...); err == nil || !strings.Contains(err.Error(), "cannot be a signature of") {
		t.Errorf("a signature of another artifact was answered with %v, want it refused", err)
	}
	image.Push("latest", evil)
	w.waitRefused(t, source, evil.Digest)
}

func signatureOf(t *testing.T, signer *signing.Signer, image *e2e.Image, a e2e.Artifact) (body []byte, blobs [][]byte) {
	t.Helper()
	s, err := signer.Sign(strings.TrimPrefix(image.URL, "oci://"), image.Subject(a), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range s.Blobs {
		blobs = append(blobs, b.Body)
	}
	return s.Manifest, blobs
}

// reported holds an artifact until a scanner's report is attached to it.
func (w signed) reported(t *testing.T) {
	image := w.Image("team/signed/scanned")
	first := image.Push("latest", w.Manifests(e2e.ConfigMap("scanned", "1"), ""))
	source := w.ImageSource(w.ns, "scanned", image, nil)
	w.WaitServed(w.ns, "scanned")
	w.ApplyImage(w.ns, "scanned")
	waitConfigMap(t, w.Forge, w.ns, "scanned", "1")

	var rule struct {
		ID int64 `json:"id"`
	}
	rules := fmt.Sprintf("projects/%d/registry/report_rules", w.project.ID)
	w.Call(http.MethodPost, rules, map[string]string{"artifact_type": "application/sarif+json"}, &rule)
	next := w.Manifests(e2e.ConfigMap("scanned", "2"), "")
	image.Push("latest", next)
	id := "OCIRepository/" + w.ns + "/scanned"
	state := func(ctx context.Context) (string, string, error) {
		var sources []struct {
			Source  string `json:"source"`
			State   string `json:"state"`
			Message string `json:"message"`
			Digest  string `json:"digest"`
		}
		agents := w.AgentProject()
		var list []struct {
			ID int64 `json:"id"`
		}
		if err := w.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/cluster_agents", agents.ID), nil, &list); err != nil || len(list) == 0 {
			return "", "", errors.Join(err, errors.New("no agent"))
		}
		if err := w.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/cluster_agents/%d/sources", agents.ID, list[0].ID), nil, &sources); err != nil {
			return "", "", err
		}
		for _, s := range sources {
			if s.Source == id && s.Digest == next.Digest {
				return s.State, s.Message, nil
			}
		}
		text, _ := json.Marshal(sources)
		return "", "", fmt.Errorf("sources are %s, want %s with %s", text, id, next.Digest)
	}
	e2e.Eventually(t, soon, func(ctx context.Context) error {
		is, message, err := state(ctx)
		if err == nil && (is != "held" || !strings.HasPrefix(message, "waits for a report of type application/sarif+json since 20")) {
			err = fmt.Errorf("the source is %q, %q; want it held", is, message)
		}
		return err
	})
	if err := w.Cluster.Client.Get(t.Context(), client.ObjectKeyFromObject(source), source); err != nil {
		t.Fatal(err)
	}
	if a := source.Status.Artifact; a == nil || !strings.HasSuffix(a.Revision, first) {
		t.Errorf("the source has %v, want %s still", a, first)
	}
	w.artifact(t, "scanned", "latest", func(a artifactShown) error {
		if a.Held == nil {
			return errors.New("the artifact is not shown as held")
		}
		return nil
	})

	image.Attach("application/sarif+json", `{"runs":[]}`, next)
	waitConfigMap(t, w.Forge, w.ns, "scanned", "2")
	w.artifact(t, "scanned", "latest", func(a artifactShown) error {
		if a.Held != nil || len(a.Attached) != 1 || a.Attached[0].Type != "application/sarif+json" {
			return fmt.Errorf("the artifact is %+v, want it with its report", a)
		}
		return nil
	})

	// Without the rule, what waits is announced.
	image.Push("latest", w.Manifests(e2e.ConfigMap("scanned", "3"), ""))
	w.Call(http.MethodDelete, fmt.Sprintf("%s/%d", rules, rule.ID), nil, nil)
	waitConfigMap(t, w.Forge, w.ns, "scanned", "3")
}
