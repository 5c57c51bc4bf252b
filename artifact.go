package tidelock

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
)

type (
	ImageID int64

	// A Digest names content by its hash, such as "sha256:<64 hex>"; the empty
	// string stands for "none".
	Digest string
)

// DigestOf is the digest of content under SHA-256, which all registries know.
func DigestOf(content []byte) Digest {
	sum := sha256.Sum256(content)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// ValidDigest refuses what is not a full digest in lower-case hexadecimal, of
// one of the two algorithms that the OCI specification registers.
func ValidDigest(d Digest) error {
	algorithm, hash, _ := strings.Cut(string(d), ":")
	if (algorithm == "sha256" && len(hash) == 64 || algorithm == "sha512" && len(hash) == 128) && isHex(hash) {
		return nil
	}
	return Errorf(Invalid, "%q is not a digest such as sha256:<64 hexadecimal digits>", string(d))
}

// An Image is a repository of the registry: a name at or below a project, with
// artifacts of any media type and tags that point at them.
type Image struct {
	ID        ImageID
	Project   ProjectID
	Name      string // below the project's path, in lower case; "" for the project's own
	CreatedAt time.Time
}

// Path is the name under which clients know the image.
func (i Image) Path(project Project) string {
	path := strings.ToLower(project.FullPath)
	if i.Name == "" {
		return path
	}
	return path + "/" + i.Name
}

// An Artifact is one manifest of an image and what it names. It never changes.
type Artifact struct {
	Image       ImageID
	Digest      Digest
	MediaType   string // of the manifest
	Type        string // artifactType, or else the media type of the config; "" for an index without either
	Size        int64  // of the manifest alone, in bytes
	Subject     Digest // what it is attached to; "" for nothing. It need not be there
	Annotations map[string]string
	Parts       []Part   // config, layers, or the manifests of an index, in order
	Commit      CommitID // from which it was made; "" when it does not say
	By          UserID   // 0 when unknown: a deploy token, or the server itself
	Token       TokenID
	PushedAt    time.Time
}

// A Part is a descriptor in an artifact's manifest.
type Part struct {
	Digest    Digest
	MediaType string
	Size      int64
	Manifest  bool // another artifact of the image, and not a blob
}

// TotalSize is that of the artifact and all its parts, in bytes. Those of an
// index are not looked into.
func (a Artifact) TotalSize() int64 {
	total := a.Size
	for _, p := range a.Parts {
		total += p.Size
	}
	return total
}

// A Tag is a name of an image that points at an artifact now.
type Tag struct {
	Image   ImageID
	Name    string
	Digest  Digest
	Push    PushID // which moved it here
	MovedAt time.Time
}

// An ArtifactUpdate is what a push of a manifest changed. Old is empty when
// the tag was made, New when it was removed; Tag is empty when the manifest
// was pushed by its digest alone.
type ArtifactUpdate struct {
	Image  ImageID
	Tag    string
	Old    Digest
	New    Digest
	Commit CommitID // from which New was made; "" when unknown
}

// An ImageFilter narrows a list of images; zero fields do not.
type ImageFilter struct {
	Project ProjectID
	Below   NamespaceID // of projects in a group or anything below
	Viewer  *Viewer     // with Below: of projects that it may see; nil keeps all
	Empty   bool        // also those that hold no artifact yet

	// MinLevel is what a viewer needs in a project that is not visible to it
	// anyway.
	MinLevel AccessLevel
}

// An ArtifactFilter narrows a list of artifacts; zero fields do not.
type ArtifactFilter struct {
	Image   ImageID
	Subject Digest // attached to it
	Type    string // with Subject
}

// Content is an artifact as garbage collection sees it.
type Content struct {
	Artifact Artifact // its parts are only other artifacts
	Tags     []Tag
	SeenAt   time.Time // when it was last pushed
}

// Annotations that this forge reads and writes; the names are those of the OCI
// image specification.
const (
	AnnotationCreated  = "org.opencontainers.image.created"
	AnnotationRevision = "org.opencontainers.image.revision"
	AnnotationSource   = "org.opencontainers.image.source"
	AnnotationTitle    = "org.opencontainers.image.title"
)

// Media types of the artifacts that Flux makes and reads.
const (
	MediaTypeFluxConfig  = "application/vnd.cncf.flux.config.v1+json"
	MediaTypeFluxContent = "application/vnd.cncf.flux.content.v1.tar+gzip"
	MediaTypeManifest    = "application/vnd.oci.image.manifest.v1+json"
	MediaTypeIndex       = "application/vnd.oci.image.index.v1+json"
)

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}
