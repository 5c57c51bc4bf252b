package signing_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/signing"
)

const image = "localhost:8443/team/shop"

var subject = tidelock.Artifact{
	Digest:    "sha256:" + tidelock.Digest(strings.Repeat("a", 64)),
	MediaType: tidelock.MediaTypeManifest,
	Size:      812,
}

// blobs is a registry's, in memory.
type blobs map[tidelock.Digest][]byte

func (b blobs) fetch(_ context.Context, d tidelock.Digest) (io.ReadCloser, error) {
	body, ok := b[d]
	if !ok {
		return nil, tidelock.Errorf(tidelock.NotFound, "there is no blob %s", d)
	}
	return io.NopCloser(bytes.NewReader(body)), nil
}

func (b blobs) add(s signing.Signature) {
	for _, blob := range s.Blobs {
		b[blob.Digest] = blob.Body
	}
}

func open(t *testing.T, dir string) *signing.Signer {
	t.Helper()
	s, err := signing.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sign(t *testing.T, s *signing.Signer, present []byte) signing.Signature {
	t.Helper()
	signature, err := s.Sign(image, subject, present)
	if err != nil {
		t.Fatal(err)
	}
	return signature
}

func digest(body []byte) tidelock.Digest {
	return tidelock.Digest(fmt.Sprintf("sha256:%x", sha256.Sum256(body)))
}

func TestKeyIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "signing")
	first := open(t, dir).Keys()
	info, err := os.Stat(filepath.Join(dir, "cosign.key"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("the private key has mode %v, want 0600", info.Mode())
	}
	again := open(t, dir).Keys()
	if len(first) != 1 || len(again) != 1 || first[0].PEM() != again[0].PEM() || !first[0].RetiredAt.IsZero() {
		t.Errorf("keys are %v and after a restart %v, want one, the same", first, again)
	}
	parsed, err := signing.ParsePublicKeys([]byte(first[0].PEM()))
	if err != nil || len(parsed) != 1 || parsed[0].ID != first[0].ID {
		t.Errorf("the key read again is %v, %v", parsed, err)
	}
}

func TestSignedIsVerified(t *testing.T) {
	s := open(t, t.TempDir())
	signature := sign(t, s, nil)
	if want := "sha256-" + strings.Repeat("a", 64) + ".sig"; signature.Tag != want {
		t.Errorf("the tag is %q, want %q", signature.Tag, want)
	}
	if d, ok := signing.SubjectOf(signature.Tag); !ok || d != subject.Digest {
		t.Errorf("the tag %q is of %q, %v", signature.Tag, d, ok)
	}
	stored := blobs{}
	stored.add(signature)
	got, err := signing.Verify(t.Context(), s.Keys(), subject.Digest, signature.Manifest, stored.fetch)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Reference != image || got[0].Subject != subject.Digest || got[0].Key.ID != s.Keys()[0].ID {
		t.Errorf("verified %+v", got)
	}

	if again := sign(t, s, nil); !bytes.Equal(again.Manifest, signature.Manifest) {
		t.Errorf("signing again gives\n%s, want\n%s", again.Manifest, signature.Manifest)
	}
	if kept := sign(t, s, signature.Manifest); !bytes.Equal(kept.Manifest, signature.Manifest) {
		t.Errorf("signing what is signed gives\n%s, want it as it was", kept.Manifest)
	}
}

// TestSignatureOfOthersIsKept adds to what "cosign sign" has pushed before.
func TestSignatureOfOthersIsKept(t *testing.T) {
	theirs, ours := open(t, t.TempDir()), open(t, t.TempDir())
	stored := blobs{}
	first := sign(t, theirs, nil)
	stored.add(first)
	both := sign(t, ours, first.Manifest)
	stored.add(both)
	for name, keys := range map[string][]signing.PublicKey{"theirs": theirs.Keys(), "ours": ours.Keys()} {
		if got, err := signing.Verify(t.Context(), keys, subject.Digest, both.Manifest, stored.fetch); err != nil || len(got) != 1 {
			t.Errorf("by the key %s: %v, %v; want one signature", name, got, err)
		}
	}
	stranger := open(t, t.TempDir())
	_, err := signing.Verify(t.Context(), stranger.Keys(), subject.Digest, both.Manifest, stored.fetch)
	if tidelock.KindOf(err) != tidelock.Denied || !strings.Contains(err.Error(), "none of 2 signatures is good") {
		t.Errorf("by a stranger's key: %v", err)
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	old := sign(t, s, nil)
	stored := blobs{}
	stored.add(old)
	now := time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)
	rotation, err := s.NewRotation()
	if err != nil {
		t.Fatal(err)
	}
	late, err := s.NewRotation()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second changes nothing
		if err := s.Rotate(rotation, now); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Rotate(late, now); tidelock.KindOf(err) != tidelock.Conflict {
		t.Errorf("a rotation that came second: %v, want a conflict", err)
	}
	for name, s := range map[string]*signing.Signer{"at once": s, "after a restart": open(t, dir)} {
		keys := s.Keys()
		if len(keys) != 2 || keys[0].ID != rotation.New.ID || keys[1].ID != rotation.Old.ID {
			t.Fatalf("%s: keys are %v", name, keys)
		}
		if want := now.Truncate(time.Second); !keys[1].RetiredAt.Equal(want) || !keys[0].RetiredAt.IsZero() {
			t.Errorf("%s: retired at %v and %v, want never and %v", name, keys[0].RetiredAt, keys[1].RetiredAt, want)
		}
		if _, err := signing.Verify(t.Context(), keys, subject.Digest, old.Manifest, stored.fetch); err != nil {
			t.Errorf("%s: what the old key signed: %v", name, err)
		}
		fresh := sign(t, s, nil)
		stored.add(fresh)
		if _, err := signing.Verify(t.Context(), keys[1:], subject.Digest, fresh.Manifest, stored.fetch); tidelock.KindOf(err) != tidelock.Denied {
			t.Errorf("%s: what the new key signed, by the old one: %v", name, err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "cosign.key"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("the new key: %v, %v; want mode 0600", info.Mode(), err)
	}
}

// TestRotationCutShort starts a server that died between the two writes.
func TestRotationCutShort(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	before, err := os.ReadFile(filepath.Join(dir, "cosign.key"))
	if err != nil {
		t.Fatal(err)
	}
	rotation, err := s.NewRotation()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Rotate(rotation, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cosign.key"), before, 0o600); err != nil {
		t.Fatal(err)
	}
	if keys := open(t, dir).Keys(); len(keys) != 1 || keys[0].ID != rotation.Old.ID {
		t.Errorf("keys are %v, want the old one alone", keys)
	}
}

// A forgery is a signature by hand, of whatever one likes.
type forgery struct {
	payload   string
	signed    string // what the key signs, when not the payload
	mediaType string
	size      int
	schema    int
}

func (f forgery) build(t *testing.T, key *ecdsa.PrivateKey, stored blobs) []byte {
	t.Helper()
	if f.signed == "" {
		f.signed = f.payload
	}
	if f.mediaType == "" {
		f.mediaType = signing.MediaTypePayload
	}
	if f.schema == 0 {
		f.schema = 2
	}
	sum := sha256.Sum256([]byte(f.signed))
	signature, err := key.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	body := []byte(f.payload)
	stored[digest(body)] = body
	m, err := json.Marshal(map[string]any{
		"schemaVersion": f.schema, "mediaType": tidelock.MediaTypeManifest,
		"config": map[string]any{"mediaType": "x", "digest": digest(nil), "size": 0},
		"layers": []any{map[string]any{
			"mediaType": f.mediaType, "digest": digest(body), "size": len(body) + f.size,
			"annotations": map[string]string{signing.AnnotationSignature: base64.StdEncoding.EncodeToString(signature)},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestForgeries(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := publicKeys(t, &key.PublicKey)
	good := `{"critical":{"identity":{"docker-reference":"` + image + `"},"image":{"docker-manifest-digest":"` + string(subject.Digest) + `"},"type":"cosign container image signature"},"optional":null}`
	other := strings.Replace(good, strings.Repeat("a", 64), strings.Repeat("b", 64), 1)

	stored := blobs{}
	if got, err := signing.Verify(t.Context(), keys, subject.Digest, forgery{payload: good}.build(t, key, stored), stored.fetch); err != nil || len(got) != 1 {
		t.Fatalf("a signature without fault: %v, %v", got, err)
	}
	for name, c := range map[string]struct {
		forgery forgery
		want    string
	}{
		"of another artifact":        {forgery{payload: other}, "it is the signature of"},
		"of other bytes":             {forgery{payload: good, signed: other}, "made with another key"},
		"of another type":            {forgery{payload: strings.Replace(good, "cosign container image", "atomic container", 1)}, "of type"},
		"without a type":             {forgery{payload: strings.Replace(good, `,"type":"cosign container image signature"`, "", 1)}, "of type"},
		"with the digest twice":      {forgery{payload: strings.Replace(other, `"image":`, `"image":{"docker-manifest-digest":"`+string(subject.Digest)+`"},"image":`, 1)}, "twice"},
		"with the digest in capital": {forgery{payload: strings.Replace(other, `"image":`, `"Image":{"docker-manifest-digest":"`+string(subject.Digest)+`"},"image":`, 1)}, "twice"},
		"with more after it":         {forgery{payload: good + good}, "cannot be read"},
		"of a digest cut short":      {forgery{payload: strings.Replace(good, strings.Repeat("a", 64), strings.Repeat("a", 63), 1)}, "it is the signature of"},
		"of no JSON":                 {forgery{payload: "sha256"}, "cannot be read"},
		"of another media type":      {forgery{payload: good, mediaType: "application/vnd.dsse.envelope.v1+json"}, "is not a signature"},
		"with a size too large":      {forgery{payload: good, size: 1}, "is not what"},
		"with a size too small":      {forgery{payload: good, size: -1}, "is not what"},
		"of a huge payload":          {forgery{payload: good + strings.Repeat(" ", 64<<10)}, "more than"},
		"in an old schema":           {forgery{payload: good, schema: 1}, "schema version"},
	} {
		t.Run(name, func(t *testing.T) {
			stored := blobs{}
			_, err := signing.Verify(t.Context(), keys, subject.Digest, c.forgery.build(t, key, stored), stored.fetch)
			if tidelock.KindOf(err) != tidelock.Denied || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it denied with %q", err, c.want)
			}
		})
	}
}

func TestBadManifests(t *testing.T) {
	s := open(t, t.TempDir())
	signature := sign(t, s, nil)
	stored := blobs{}
	stored.add(signature)
	text := string(signature.Manifest)
	layers := text[strings.Index(text, `"layers":[`)+len(`"layers":[`) : strings.Index(text, `],"subject"`)]
	for name, c := range map[string]struct{ manifest, want string }{
		"empty":               {"", "cannot be read"},
		"not JSON":            {"sha256", "cannot be read"},
		"an index":            {strings.Replace(text, "image.manifest", "image.index", 1), "cannot hold signatures"},
		"no layers":           {strings.Replace(text, layers, "", 1), "there is no signature"},
		"layers twice":        {strings.Replace(text, `"layers":[`, `"layers":[],"layers":[`, 1), "twice"},
		"too many":            {strings.Replace(text, layers, strings.Repeat(layers+",", 64)+layers, 1), "at most 64"},
		"too large":           {text + strings.Repeat(" ", 1<<20), "at most"},
		"a path as a digest":  {strings.Replace(text, `"`+string(signature.Blobs[0].Digest)+`"`, `"sha256:../../etc/passwd"`, 1), "is not a digest"},
		"deep":                {`{"layers":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, "nested"},
		"a blob that is gone": {strings.Replace(text, string(signature.Blobs[0].Digest), string(digest([]byte("gone"))), 1), "there is no blob"},
		"no base64":           {strings.Replace(text, `"dev.cosignproject.cosign/signature":"`, `"dev.cosignproject.cosign/signature":"*`, 1), "another key"},
	} {
		t.Run(name, func(t *testing.T) {
			if name != "empty" && name != "not JSON" && c.manifest == text {
				t.Fatal("the manifest was not changed")
			}
			_, err := signing.Verify(t.Context(), s.Keys(), subject.Digest, []byte(c.manifest), stored.fetch)
			if tidelock.KindOf(err) != tidelock.Denied || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it denied with %q", err, c.want)
			}
		})
	}
	if _, err := signing.Verify(t.Context(), nil, subject.Digest, signature.Manifest, stored.fetch); tidelock.KindOf(err) != tidelock.Denied {
		t.Errorf("without a key: %v", err)
	}
}

// TestCheck keeps a good signature from being pushed as one of something else:
// Flux would take it.
func TestCheck(t *testing.T) {
	s := open(t, t.TempDir())
	signature := sign(t, s, nil)
	stored := blobs{}
	stored.add(signature)
	if err := signing.Check(t.Context(), subject.Digest, signature.Manifest, stored.fetch); err != nil {
		t.Error(err)
	}
	evil := "sha256:" + tidelock.Digest(strings.Repeat("e", 64))
	if err := signing.Check(t.Context(), evil, signature.Manifest, stored.fetch); tidelock.KindOf(err) != tidelock.Invalid {
		t.Errorf("a signature of something else: %v, want it refused", err)
	}
	if err := signing.Check(t.Context(), subject.Digest, signature.Manifest, blobs{}.fetch); tidelock.KindOf(err) != tidelock.Invalid {
		t.Errorf("a signature of nobody knows what: %v, want it refused", err)
	}
}

func TestBadKeys(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	good := open(t, dir).Keys()[0].PEM()
	private, err := os.ReadFile(filepath.Join(dir, "cosign.key"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ text, want string }{
		"empty":         {"", "public keys alone"},
		"no PEM":        {"hello", "public keys alone"},
		"more after it": {good + "hello", "public keys alone"},
		"private":       {string(private), "PRIVATE KEY"},
		"RSA":           {publicPEM(t, &rsaKey.PublicKey), "other than ECDSA"},
		"P-384":         {publicPEM(t, &p384.PublicKey), "only P-256"},
		"cut":           {"-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n", "broken"},
		"too many":      {strings.Repeat(good, 33), "at most 32"},
		"too large":     {strings.Repeat(good, 1000), "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := signing.ParsePublicKeys([]byte(c.text)); tidelock.KindOf(err) != tidelock.Invalid || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it refused with %q", err, c.want)
			}
		})
	}
	for name, text := range map[string]string{"an empty file": "", "a public key": good} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "cosign.key"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := signing.Open(dir); err == nil || !strings.Contains(err.Error(), "restore it from a backup") {
			t.Errorf("%s as the private key: %v", name, err)
		}
	}
}

func publicPEM(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func publicKeys(t *testing.T, key *ecdsa.PublicKey) []signing.PublicKey {
	t.Helper()
	keys, err := signing.ParsePublicKeys([]byte(publicPEM(t, key)))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// FuzzVerify gives Verify manifests and payloads of all kinds. Nothing that the
// key did not sign is ever taken for signed.
func FuzzVerify(f *testing.F) {
	s, err := signing.Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	signature, err := s.Sign(image, subject, nil)
	if err != nil {
		f.Fatal(err)
	}
	real := blobs{}
	real.add(signature)
	f.Add(signature.Manifest, signature.Blobs[0].Body)
	f.Add(signature.Manifest, signature.Blobs[1].Body)
	f.Add([]byte(`{"schemaVersion":2,"layers":[{}]}`), []byte(`{}`))
	keys := s.Keys()
	f.Fuzz(func(t *testing.T, manifest, payload []byte) {
		stored := maps.Clone(real)
		stored[digest(payload)] = payload
		got, err := signing.Verify(t.Context(), keys, subject.Digest, manifest, stored.fetch)
		if (err == nil) != (len(got) > 0) {
			t.Fatalf("%d signatures and the error %v", len(got), err)
		}
		for _, v := range got {
			if v.Subject != subject.Digest || v.Reference != image {
				t.Fatalf("took %+v for signed", v)
			}
		}
		// Whatever it is, it is no signature of something else.
		other := "sha256:" + tidelock.Digest(strings.Repeat("c", 64))
		if got, err := signing.Verify(t.Context(), keys, other, manifest, stored.fetch); err == nil {
			t.Fatalf("took %+v for a signature of %s", got, other)
		}
		_, _ = s.Sign(image, subject, manifest)
		_, _ = signing.ParsePublicKeys(payload)
	})
}
