package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"tidelock.dev"
	"tidelock.dev/internal/signing"
)

// A rawManifest is pushed as it is.
type rawManifest []byte

func (m rawManifest) RawManifest() ([]byte, error)        { return m, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// TryPushRaw pushes blobs and then a manifest as it is, under a tag or, when
// that is "", by its digest.
func (i *Image) TryPushRaw(tag string, manifest []byte, blobs ...[]byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, blob := range blobs {
		if err := i.pusher.Upload(ctx, i.repo, static.NewLayer(blob, "application/octet-stream")); err != nil {
			return fmt.Errorf("upload a blob of %s: %w", i.Path, err)
		}
	}
	if tag == "" {
		return i.pusher.Push(ctx, i.repo.Digest(string(tidelock.DigestOf(manifest))), rawManifest(manifest))
	}
	return i.pusher.Push(ctx, i.repo.Tag(tag), rawManifest(manifest))
}

// Sign pushes a signature of an artifact, as "cosign sign" does with a key.
func (i *Image) Sign(signer *signing.Signer, a Artifact) {
	i.forge.t.Helper()
	s, err := signer.Sign(i.repo.Name(), i.Subject(a), nil)
	if err != nil {
		i.forge.t.Fatal(err)
	}
	var blobs [][]byte
	for _, b := range s.Blobs {
		blobs = append(blobs, b.Body)
	}
	if err := i.TryPushRaw(s.Tag, s.Manifest, blobs...); err != nil {
		i.forge.t.Fatal(err)
	}
}

// Attach pushes a report of a type that refers to an artifact.
func (i *Image) Attach(reportType, text string, a Artifact) {
	i.forge.t.Helper()
	type descriptor struct {
		MediaType string          `json:"mediaType"`
		Digest    tidelock.Digest `json:"digest"`
		Size      int64           `json:"size"`
	}
	report, empty, subject := []byte(text), []byte("{}"), i.Subject(a)
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": tidelock.MediaTypeManifest, "artifactType": reportType,
		"config":  descriptor{"application/vnd.oci.empty.v1+json", tidelock.DigestOf(empty), int64(len(empty))},
		"layers":  []descriptor{{reportType, tidelock.DigestOf(report), int64(len(report))}},
		"subject": descriptor{subject.MediaType, subject.Digest, subject.Size},
	})
	if err != nil {
		i.forge.t.Fatal(err)
	}
	if err := i.TryPushRaw("", manifest, report, empty); err != nil {
		i.forge.t.Fatal(err)
	}
}

// Subject is what a signature or report of an artifact refers to.
func (i *Image) Subject(a Artifact) tidelock.Artifact {
	i.forge.t.Helper()
	body, err := a.image.RawManifest()
	if err != nil {
		i.forge.t.Fatal(err)
	}
	return tidelock.Artifact{MediaType: tidelock.MediaTypeManifest, Digest: tidelock.Digest(a.Digest), Size: int64(len(body))}
}
