package signing_test

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"testing"

	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/payload"
)

// TestSigstoreVerifies does with sigstore's own code what cosign and Flux do
// with a key.
func TestSigstoreVerifies(t *testing.T) {
	s := open(t, t.TempDir())
	ours := sign(t, s, nil)
	stored := blobs{}
	stored.add(ours)
	var manifest struct {
		Layers []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	if err := json.Unmarshal(ours.Manifest, &manifest); err != nil {
		t.Fatal(err)
	}
	key, err := cryptoutils.UnmarshalPEMToPublicKey([]byte(s.Keys()[0].PEM()))
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := signature.LoadVerifier(key, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString(manifest.Layers[0].Annotations["dev.cosignproject.cosign/signature"])
	if err != nil {
		t.Fatal(err)
	}
	body := ours.Blobs[0].Body
	if err := verifier.VerifySignature(bytes.NewReader(raw), bytes.NewReader(body)); err != nil {
		t.Error(err)
	}
	var claim payload.Cosign
	if err := json.Unmarshal(body, &claim); err != nil {
		t.Fatal(err)
	}
	if claim.Image.DigestStr() != string(subject.Digest) || claim.Image.Context().Name() != image {
		t.Errorf("sigstore reads %s", claim.Image)
	}
	again, err := json.Marshal(payload.Cosign{Image: claim.Image})
	if err != nil || !bytes.Equal(again, body) {
		t.Errorf("sigstore writes %s, %v, want %s", again, err, body)
	}
}
