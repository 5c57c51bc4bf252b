package registry

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"tidelock.dev"
)

// Limits of a manifest.
const (
	MaxManifest    = 4 << 20 // bytes
	maxParts       = 1000
	maxAnnotations = 128 << 10 // bytes that are remembered, keys and values together
	maxFields      = 10_000    // of one object
)

// Media types of Docker's manifests, which say the same as OCI's.
const (
	mediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	mediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var (
	imageTypes = []string{tidelock.MediaTypeManifest, mediaTypeDockerManifest}
	indexTypes = []string{tidelock.MediaTypeIndex, mediaTypeDockerList}
)

var mediaType = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}$`)

// ValidMediaType reports whether a text is a media type as RFC 6838 has it,
// without parameters: what the OCI specification wants for an artifactType.
func ValidMediaType(text string) bool { return mediaType.MatchString(text) }

// ParseManifest reads a manifest of an image, or an index of others, that is
// given as a media type; when that is empty, the manifest must tell. It fills
// Digest, MediaType, Type, Size, Parts, Subject and Annotations of the artifact;
// of very many or very long annotations only some.
//
// What two readers could understand differently is refused: keys that are
// repeated, a media type that contradicts the one that was given, an image
// that is an index, too.
func ParseManifest(mediaType string, body []byte) (tidelock.Artifact, error) {
	if len(body) > MaxManifest {
		return tidelock.Artifact{}, errManifestSize()
	}
	if !utf8.Valid(body) {
		return tidelock.Artifact{}, errManifest("is not UTF-8")
	}
	m, err := readStruct(body, manifestKeys)
	if err != nil {
		return tidelock.Artifact{}, errManifest("is not valid: %v", err)
	}
	p := parser{fields: m}
	a := p.manifest(mediaType)
	if p.err != nil {
		return tidelock.Artifact{}, p.err
	}
	a.Digest, a.Size = tidelock.DigestOf(body), int64(len(body))
	return a, nil
}

// mediaTypeOf is that of a manifest which was accepted once.
func mediaTypeOf(body []byte) string {
	a, err := ParseManifest("", body)
	if err != nil {
		return tidelock.MediaTypeManifest
	}
	return a.MediaType
}

func errManifest(format string, args ...any) error {
	return Errorf(tidelock.Invalid, ManifestInvalid, "the manifest "+format, args...)
}

// A parser reads the fields of one object and keeps the first error.
type parser struct {
	fields map[string]json.RawMessage
	err    error
}

func (p *parser) fail(format string, args ...any) {
	if p.err == nil {
		p.err = errManifest(format, args...)
	}
}

// has reports whether a field is there and not null.
func (p *parser) has(name string) bool {
	raw, ok := p.fields[name]
	return ok && !bytes.Equal(raw, []byte("null"))
}

// read decodes a field, if it is there.
func (p *parser) read(name string, to any) {
	if !p.has(name) {
		return
	}
	if err := json.Unmarshal(p.fields[name], to); err != nil {
		p.fail("has a field %q of the wrong type", name)
	}
}

func (p *parser) manifest(given string) (a tidelock.Artifact) {
	var version int
	if p.read("schemaVersion", &version); version != 2 {
		p.fail("has not the schemaVersion 2")
	}
	var told string
	p.read("mediaType", &told)
	switch {
	case given == "" && told == "" && p.has("manifests"):
		given = tidelock.MediaTypeIndex
	case given == "" && told == "":
		given = tidelock.MediaTypeManifest
	case given == "":
		given = told
	case told != "" && told != given:
		p.fail("says that it is %q, but it was sent as %q", told, given)
	}
	a.MediaType = given
	p.read("artifactType", &a.Type)
	if a.Type != "" && !ValidMediaType(a.Type) {
		p.fail("has an artifactType that is not a media type: %.100q", a.Type)
	}
	switch {
	case slices.Contains(imageTypes, given):
		p.refuse("manifests", "fsLayers", "history", "signatures")
		config := p.descriptor("config", p.fields["config"])
		a.Parts = append([]tidelock.Part{config}, p.descriptors("layers")...)
		if a.Type == "" {
			a.Type = config.MediaType
		}
	case slices.Contains(indexTypes, given):
		p.refuse("config", "layers", "fsLayers", "history", "signatures")
		if !p.has("manifests") {
			p.fail("is an index without the field %q", "manifests")
		}
		a.Parts = p.descriptors("manifests")
		for i, part := range a.Parts {
			a.Parts[i].Manifest = slices.Contains(imageTypes, part.MediaType) || slices.Contains(indexTypes, part.MediaType)
		}
	default:
		p.fail("is of the media type %.100q, which is not one of %s", given, slices.Concat(imageTypes, indexTypes))
	}
	if p.has("subject") {
		a.Subject = p.descriptor("subject", p.fields["subject"]).Digest
	}
	a.Annotations = p.annotations()
	return a
}

// refuse names fields that would make another kind of manifest of this one.
func (p *parser) refuse(names ...string) {
	for _, name := range names {
		if _, ok := p.fields[name]; ok {
			p.fail("has a field %q, which belongs to another kind of manifest", name)
		}
	}
}

func (p *parser) descriptors(name string) []tidelock.Part {
	var list []json.RawMessage
	if p.read(name, &list); len(list) >= maxParts {
		p.fail("has more than %d parts", maxParts)
		return nil
	}
	parts := make([]tidelock.Part, 0, len(list))
	for _, raw := range list {
		parts = append(parts, p.descriptor(name, raw))
	}
	return parts
}

func (p *parser) descriptor(name string, raw json.RawMessage) (part tidelock.Part) {
	if p.err != nil {
		return part
	}
	fields, err := readStruct(raw, descriptorKeys)
	if err != nil {
		p.fail("has no valid descriptor in %q: %v", name, err)
		return part
	}
	d := parser{fields: fields}
	size := int64(-1)
	d.read("mediaType", &part.MediaType)
	d.read("digest", &part.Digest)
	d.read("size", &size)
	part.Size = size
	switch {
	case d.err != nil:
		p.fail("has a descriptor in %q with a field of the wrong type", name)
	case !ValidMediaType(part.MediaType):
		p.fail("has a descriptor in %q without a valid mediaType: %.100q", name, part.MediaType)
	case tidelock.ValidDigest(part.Digest) != nil:
		p.fail("has a descriptor in %q without a valid digest: %.150q", name, string(part.Digest))
	case size < 0:
		p.fail("has a descriptor in %q without a valid size", name)
	}
	return part
}

func (p *parser) annotations() map[string]string {
	if !p.has("annotations") || p.err != nil {
		return nil
	}
	fields, err := readObject(p.fields["annotations"])
	if err != nil {
		p.fail("has annotations that are not valid: %v", err)
		return nil
	}
	// A manifest may be all annotations. What its record keeps of them has to
	// be small, because records are listed: what is known by a name that
	// everybody uses goes first.
	names := slices.SortedFunc(maps.Keys(fields), func(a, b string) int {
		known := func(name string) int {
			if strings.HasPrefix(name, "org.opencontainers.") {
				return 0
			}
			return 1
		}
		return cmp.Or(known(a)-known(b), strings.Compare(a, b))
	})
	all, size := map[string]string{}, 0
	for _, name := range names {
		var value *string
		if json.Unmarshal(fields[name], &value) != nil || value == nil {
			p.fail("has an annotation %.100q that is not a string", name)
			return nil
		}
		if more := len(name) + len(*value); size+more <= maxAnnotations {
			all[name] = *value
			size += more
		}
	}
	return all
}

// The keys that some reader of a manifest or descriptor gives a meaning to.
var (
	manifestKeys = []string{
		"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations",
		"name", "tag", "architecture", "fsLayers", "history", "signatures",
	}
	descriptorKeys = []string{"mediaType", "digest", "size", "urls", "annotations", "data", "platform", "artifactType"}
)

// readStruct is readObject for an object that many readers know by a struct of
// Go's, into which "Layers" goes as well as "layers".
func readStruct(raw []byte, keys []string) (map[string]json.RawMessage, error) {
	fields, err := readObject(raw)
	if err != nil {
		return nil, err
	}
	for name := range fields {
		for _, key := range keys {
			if name != key && strings.EqualFold(name, key) {
				return nil, fmt.Errorf("it has a key that some take for %q", key)
			}
		}
	}
	return fields, nil
}

// readObject reads a JSON object whose keys are all different, and nothing
// after it. Unlike a struct's, keys are told apart by case.
func readObject(raw []byte) (map[string]json.RawMessage, error) {
	in := json.NewDecoder(bytes.NewReader(raw))
	if start, err := in.Token(); err != nil || start != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	fields := map[string]json.RawMessage{}
	for in.More() {
		key, err := in.Token()
		if err != nil {
			return nil, errors.New("it is not valid JSON")
		}
		name, ok := key.(string)
		if !ok {
			return nil, errors.New("it is not valid JSON")
		}
		var value json.RawMessage
		if err := in.Decode(&value); err != nil {
			return nil, errors.New("it is not valid JSON")
		}
		if _, twice := fields[name]; twice {
			return nil, errors.New("it has a key twice")
		}
		if fields[name] = value; len(fields) > maxFields {
			return nil, errors.New("it has too many keys")
		}
	}
	if _, err := in.Token(); err != nil {
		return nil, errors.New("it is not valid JSON")
	}
	if _, err := in.Token(); err != io.EOF {
		return nil, errors.New("there is something after it")
	}
	return fields, nil
}
