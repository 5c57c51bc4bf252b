// Package artifact is the form in which Flux takes manifests from a registry:
// one layer, a gzipped tar of files, and an OCI manifest that says from where
// they came. It is pure: the server and the command line make the same bytes
// of the same files, and neither clock nor machine changes them.
package artifact

import (
	"encoding/json"
	"fmt"
	"time"

	"tidelock.dev"
)

// A Source says from where an artifact was made. All of it is part of the
// artifact's digest, so Created is the time of the commit and not of the
// packaging.
type Source struct {
	URL      string // of the repository, for people to follow
	Revision string // such as "main@sha1:<40 hex>", see Revision
	Created  time.Time
	Extra    map[string]string // further annotations; the three above win
}

// Revision names a commit under a branch or tag in Flux's words; a commit of
// 64 digits is one of a SHA-256 repository.
func Revision(ref string, commit tidelock.CommitID) string {
	algorithm := "sha1"
	if len(commit) == 64 {
		algorithm = "sha256"
	}
	if ref == "" {
		return algorithm + ":" + string(commit)
	}
	return ref + "@" + algorithm + ":" + string(commit)
}

// An Image is an artifact ready to be pushed: its blobs, and the manifest
// that names them.
type Image struct {
	Config   []byte
	Layer    []byte
	Manifest []byte
	Digest   tidelock.Digest // of Manifest
}

// New makes an artifact of a packed layer. Equal arguments give equal bytes.
func New(layer Layer, from Source) (Image, error) {
	config, err := json.Marshal(imageConfig{RootFS: rootFS{Type: "layers", DiffIDs: []tidelock.Digest{layer.DiffID}}})
	if err != nil {
		return Image{}, fmt.Errorf("write an image config: %w", err)
	}
	annotations := map[string]string{}
	for name, value := range from.Extra {
		annotations[name] = value
	}
	annotations[tidelock.AnnotationCreated] = from.Created.UTC().Format(time.RFC3339)
	annotations[tidelock.AnnotationRevision] = from.Revision
	annotations[tidelock.AnnotationSource] = from.URL
	manifest, err := json.Marshal(imageManifest{
		SchemaVersion: 2,
		MediaType:     tidelock.MediaTypeManifest,
		Config:        descriptor{MediaType: tidelock.MediaTypeFluxConfig, Size: len(config), Digest: tidelock.DigestOf(config)},
		Layers:        []descriptor{{MediaType: tidelock.MediaTypeFluxContent, Size: len(layer.Content), Digest: layer.Digest}},
		Annotations:   annotations,
	})
	if err != nil {
		return Image{}, fmt.Errorf("write an image manifest: %w", err)
	}
	return Image{Config: config, Layer: layer.Content, Manifest: manifest, Digest: tidelock.DigestOf(manifest)}, nil
}

// imageManifest and imageConfig are those of the OCI image specification, as
// far as an artifact needs them. The empty fields of the config are required
// by readers that take it for an image of a container.
type imageManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations"`
}

type descriptor struct {
	MediaType string          `json:"mediaType"`
	Size      int             `json:"size"`
	Digest    tidelock.Digest `json:"digest"`
}

type imageConfig struct {
	Architecture string   `json:"architecture"`
	OS           string   `json:"os"`
	Config       struct{} `json:"config"`
	RootFS       rootFS   `json:"rootfs"`
}

type rootFS struct {
	Type    string            `json:"type"`
	DiffIDs []tidelock.Digest `json:"diff_ids"`
}
