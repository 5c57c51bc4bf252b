package signing

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"tidelock.dev"
)

// Names of cosign's.
const (
	MediaTypePayload    = "application/vnd.dev.cosign.simplesigning.v1+json"
	AnnotationSignature = "dev.cosignproject.cosign/signature"

	// TypeSignature is the artifactType of signatures that are found as
	// referrers; cosign 2 finds them by their tag unless told otherwise.
	TypeSignature = "application/vnd.dev.cosign.artifact.sig.v1+json"

	mediaTypeConfig = "application/vnd.oci.image.config.v1+json"
	payloadType     = "cosign container image signature"
)

const tagSuffix = ".sig"

// Tag is the tag of an image under which cosign looks for the signatures of an
// artifact.
func Tag(subject tidelock.Digest) string {
	return strings.Replace(string(subject), ":", "-", 1) + tagSuffix
}

// SubjectOf reads such a tag: whose signatures are under it.
func SubjectOf(tag string) (tidelock.Digest, bool) {
	name, ok := strings.CutSuffix(tag, tagSuffix)
	if !ok {
		return "", false
	}
	digest := tidelock.Digest(strings.Replace(name, "-", ":", 1))
	return digest, tidelock.ValidDigest(digest) == nil
}

// A Blob is a part of a signature that is to be pushed before its manifest.
type Blob struct {
	Digest tidelock.Digest
	Body   []byte
}

// A Signature is what is to be pushed so that clients find an artifact signed:
// the blobs, and then the manifest under the tag.
type Signature struct {
	Tag       string
	MediaType string // of the manifest
	Manifest  []byte
	Digest    tidelock.Digest // of the manifest
	Blobs     []Blob
}

// Sign signs an artifact, of which the digest, media type and size count. The
// image is its name as clients write it, with the host and without a tag.
// Signatures of others in the present manifest under the tag, nil for none,
// are kept; one of the same key is not repeated. The same question always has
// the same answer, so that signing again changes nothing.
func (s *Signer) Sign(image string, subject tidelock.Artifact, present []byte) (Signature, error) {
	if err := tidelock.ValidDigest(subject.Digest); err != nil {
		return Signature{}, err
	}
	body, err := json.Marshal(payload{Critical: critical{
		Identity: identity{image}, Image: imageDigest{string(subject.Digest)}, Type: payloadType,
	}})
	if err != nil {
		return Signature{}, fmt.Errorf("encode what is signed: %w", err)
	}
	s.mu.RLock()
	key := s.key
	s.mu.RUnlock()
	sum := sha256.Sum256(body)
	// Without a source of randomness the signature is that of RFC 6979.
	signed, err := key.Sign(nil, sum[:], crypto.SHA256)
	if err != nil {
		return Signature{}, fmt.Errorf("sign %s: %w", subject.Digest, err)
	}

	m := manifest{SchemaVersion: 2, MediaType: tidelock.MediaTypeManifest, ArtifactType: TypeSignature}
	if present != nil {
		if m, err = parseManifest(present); err != nil {
			return Signature{}, fmt.Errorf("add to the signatures of %s: %w", subject.Digest, err)
		}
	}
	m.Subject = &descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}
	layer := descriptor{
		MediaType: MediaTypePayload, Digest: tidelock.DigestOf(body), Size: int64(len(body)),
		Annotations: map[string]string{AnnotationSignature: base64.StdEncoding.EncodeToString(signed)},
	}
	repeats := func(d descriptor) bool {
		return d.Digest == layer.Digest && goodSignature(&key.PublicKey, body, d.Annotations[AnnotationSignature])
	}
	if slices.ContainsFunc(m.Layers, repeats) && present != nil {
		return Signature{
			Tag: Tag(subject.Digest), MediaType: m.MediaType, Manifest: present, Digest: tidelock.DigestOf(present),
			Blobs: []Blob{{layer.Digest, body}},
		}, nil
	}
	if len(m.Layers) >= maxSignatures {
		return Signature{}, tidelock.Errorf(tidelock.Conflict, "%s has %d signatures already, and none of this server; delete the tag %s", subject.Digest, len(m.Layers), Tag(subject.Digest))
	}
	m.Layers = append(m.Layers, layer)
	// A config such as that of an image names the layers in order.
	var config imageConfig
	config.RootFS.Type = "layers"
	for _, l := range m.Layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.Digest)
	}
	configBody, err := json.Marshal(config)
	if err != nil {
		return Signature{}, fmt.Errorf("encode the config of a signature: %w", err)
	}
	m.Config = descriptor{MediaType: mediaTypeConfig, Digest: tidelock.DigestOf(configBody), Size: int64(len(configBody))}
	manifestBody, err := json.Marshal(m)
	if err != nil {
		return Signature{}, fmt.Errorf("encode the manifest of a signature: %w", err)
	}
	return Signature{
		Tag: Tag(subject.Digest), MediaType: m.MediaType, Manifest: manifestBody, Digest: tidelock.DigestOf(manifestBody),
		Blobs: []Blob{{layer.Digest, body}, {m.Config.Digest, configBody}},
	}, nil
}

func goodSignature(key *ecdsa.PublicKey, body []byte, text string) bool {
	signature, err := base64.StdEncoding.Strict().DecodeString(text)
	sum := sha256.Sum256(body)
	return err == nil && ecdsa.VerifyASN1(key, sum[:], signature)
}

// The JSON of a signature. The order of the fields is that of cosign.
type (
	payload struct {
		Critical critical       `json:"critical"`
		Optional map[string]any `json:"optional"`
	}
	critical struct {
		Identity identity    `json:"identity"`
		Image    imageDigest `json:"image"`
		Type     string      `json:"type"`
	}
	identity struct {
		Reference string `json:"docker-reference"`
	}
	imageDigest struct {
		Digest string `json:"docker-manifest-digest"`
	}

	manifest struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		ArtifactType  string            `json:"artifactType,omitempty"`
		Config        descriptor        `json:"config"`
		Layers        []descriptor      `json:"layers"`
		Subject       *descriptor       `json:"subject,omitempty"`
		Annotations   map[string]string `json:"annotations,omitempty"`
	}
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      tidelock.Digest   `json:"digest"`
		Size        int64             `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	imageConfig struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		RootFS       struct {
			Type    string            `json:"type"`
			DiffIDs []tidelock.Digest `json:"diff_ids"`
		} `json:"rootfs"`
		Config struct{} `json:"config"`
	}
)

// Bounds of what is verified.
const (
	maxManifest   = 1 << 20
	maxSignatures = 64
	maxPayload    = 64 << 10
)

// parseManifest reads the manifest of signatures; those of Docker's media type
// are cosign's too.
func parseManifest(body []byte) (manifest, error) {
	var m manifest
	if len(body) > maxManifest {
		return m, tidelock.Errorf(tidelock.Invalid, "a manifest of signatures has at most %d bytes", maxManifest)
	}
	if err := decode(body, &m); err != nil {
		return m, tidelock.Errorf(tidelock.Invalid, "the manifest of signatures cannot be read: %v", err)
	}
	switch {
	case m.SchemaVersion != 2:
		return m, tidelock.Errorf(tidelock.Invalid, "the manifest of signatures has the schema version %d, not 2", m.SchemaVersion)
	case m.MediaType == "": // allowed by OCI
		m.MediaType = tidelock.MediaTypeManifest
	case m.MediaType != tidelock.MediaTypeManifest && m.MediaType != "application/vnd.docker.distribution.manifest.v2+json":
		return m, tidelock.Errorf(tidelock.Invalid, "a manifest of type %q cannot hold signatures", m.MediaType)
	}
	if len(m.Layers) > maxSignatures {
		return m, tidelock.Errorf(tidelock.Invalid, "there are %d signatures; at most %d are looked at", len(m.Layers), maxSignatures)
	}
	return m, nil
}

// decode reads one JSON value and nothing after it, in which no object names a
// member twice: readers differ on which of the two counts.
func decode(body []byte, into any) error {
	if err := checkMembers(json.NewDecoder(bytes.NewReader(body)), 0); err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

const maxDepth = 32

// checkMembers walks one value. Members whose names differ only in case count
// as the same, because the decoder takes one for the other.
func checkMembers(d *json.Decoder, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("it is nested deeper than %d", maxDepth)
	}
	token, err := d.Token()
	if err != nil {
		return fmt.Errorf("it is not JSON")
	}
	switch token {
	case json.Delim('['):
		for d.More() {
			if err := checkMembers(d, depth+1); err != nil {
				return err
			}
		}
		_, err = d.Token()
	case json.Delim('{'):
		seen := map[string]bool{}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return fmt.Errorf("it is not JSON")
			}
			text, _ := name.(string)
			folded := strings.ToLower(strings.ToUpper(text))
			if seen[folded] {
				return fmt.Errorf("it names %q twice", text)
			}
			seen[folded] = true
			if err := checkMembers(d, depth+1); err != nil {
				return err
			}
		}
		_, err = d.Token()
	}
	if err != nil {
		return fmt.Errorf("it is not JSON")
	}
	return nil
}
