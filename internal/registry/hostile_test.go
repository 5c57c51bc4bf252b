package registry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

// What an image has stays there while others push the same: a config of "{}"
// is in most artifacts.
func TestPushedTwiceStaysThere(t *testing.T) {
	r, _ := open(t)
	site := registry.Repo(1, "")
	part, err := r.PutBlob(t.Context(), site, "", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	var pushing sync.WaitGroup
	for range 4 {
		pushing.Go(func() {
			for range 100 {
				if _, err := r.PutBlob(t.Context(), site, "", strings.NewReader("{}")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		pushing.Wait()
		close(done)
	}()
	for {
		if _, err := r.StatBlob(t.Context(), site, part.Digest); err != nil {
			t.Fatalf("while others push it: %v", err)
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

const (
	hostileConfig = `{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}`
	hostileLayer  = `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0}`
)

// TestH13ManifestsOfTwoMinds has manifests that one reader would take for
// something else than the next.
func TestH13ManifestsOfTwoMinds(t *testing.T) {
	image, index := tidelock.MediaTypeManifest, tidelock.MediaTypeIndex
	for _, test := range []struct{ name, mediaType, body string }{
		{"an image with manifests", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[` + hostileLayer + `],"manifests":[]}`},
		{"an image with null manifests", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[],"manifests":null}`},
		{"an index with layers", index, `{"schemaVersion":2,"manifests":[],"layers":[` + hostileLayer + `]}`},
		{"an index with a config", index, `{"schemaVersion":2,"manifests":[],"config":` + hostileConfig + `}`},
		{"an index sent as an image", image, `{"schemaVersion":2,"manifests":[]}`},
		{"an image sent as an index", index, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[]}`},
		{"a body of another type than it was sent as", image, `{"schemaVersion":2,"mediaType":"` + index + `","config":` + hostileConfig + `,"layers":[]}`},
		{"no type that is a manifest's", "application/json", `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[]}`},
		{"schema 1", image, `{"schemaVersion":1,"name":"x","tag":"y","fsLayers":[],"history":[]}`},
		{"schema 1 in disguise", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[],"fsLayers":[]}`},
		{"layers twice", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[],"layers":[` + hostileLayer + `]}`},
		{"layers again in capitals", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[],"Layers":[` + hostileLayer + `]}`},
		{"layers in capitals alone", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"LAYERS":[` + hostileLayer + `]}`},
		{"manifests in capitals", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[],"Manifests":[` + hostileConfig + `]}`},
		{"a long s", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layer` + "\u017f" + `":[` + hostileLayer + `]}`},
		{"an escaped key", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[],"\u006cayers":[` + hostileLayer + `]}`},
		{"a digest twice", image, `{"schemaVersion":2,"config":` + strings.Replace(hostileConfig, `"size"`, `"Digest":"sha256:`+strings.Repeat("0", 64)+`","size"`, 1) + `,"layers":[]}`},
		{"a second document", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[]}{"schemaVersion":2}`},
		{"not an object", image, `[{"schemaVersion":2}]`},
		{"nothing", image, ``},
		{"null", image, `null`},
		{"a size below zero", image, `{"schemaVersion":2,"config":` + strings.Replace(hostileConfig, `"size":2`, `"size":-2`, 1) + `,"layers":[]}`},
		{"a size that overflows", image, `{"schemaVersion":2,"config":` + strings.Replace(hostileConfig, `"size":2`, `"size":9223372036854775808`, 1) + `,"layers":[]}`},
		{"a size with a fraction", image, `{"schemaVersion":2,"config":` + strings.Replace(hostileConfig, `"size":2`, `"size":2.5`, 1) + `,"layers":[]}`},
		{"a digest with a path", image, `{"schemaVersion":2,"config":` + strings.Replace(hostileConfig, `sha256:4413`, `sha256:../../4413`, 1) + `,"layers":[]}`},
		{"a digest in capitals", image, `{"schemaVersion":2,"config":` + strings.Replace(hostileConfig, `44136fa3`, `44136FA3`, 1) + `,"layers":[]}`},
		{"a digest of an unknown algorithm", image, `{"schemaVersion":2,"config":` + strings.Replace(hostileConfig, `sha256:`, `md5:`, 1) + `,"layers":[]}`},
		{"no config", image, `{"schemaVersion":2,"layers":[]}`},
		{"a deep config", image, `{"schemaVersion":2,"config":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `,"layers":[]}`},
		{"a deep unknown field", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[],"x":` + strings.Repeat(`{"x":`, 500_000) + `1` + strings.Repeat("}", 500_000) + `}`},
		{"many parts", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[` + strings.TrimSuffix(strings.Repeat(hostileLayer+",", 2000), ",") + `]}`},
		{"many annotations", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[],"annotations":{` + manyAnnotations(200_000) + `}}`},
		{"an annotation that is no text", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[],"annotations":{"a":{}}}`},
		{"a media type that is a header", image, `{"schemaVersion":2,"config":` + strings.Replace(hostileConfig, `+json"`, `+json\r\nX-Evil: 1"`, 1) + `,"layers":[]}`},
		{"text that is not UTF-8", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[],"annotations":{"a":"` + "\xff" + `"}}`},
		{"more than 4 MiB", image, `{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[]}` + strings.Repeat(" ", 4<<20)},
	} {
		t.Run(test.name, func(t *testing.T) {
			artifact, err := registry.ParseManifest(test.mediaType, []byte(test.body))
			problem, ok := errors.AsType[*registry.Problem](err)
			if !ok || problem.Code != registry.ManifestInvalid {
				t.Fatalf("got %+v and %v, want it refused as %s", artifact, err, registry.ManifestInvalid)
			}
			if len(problem.Error()) > 1000 || strings.ContainsAny(problem.Error(), "\r\n\x00") {
				t.Errorf("the refusal repeats too much: %.2000q", problem.Error())
			}
		})
	}
}

func manyAnnotations(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"%d":"",`, i)
	}
	return strings.TrimSuffix(b.String(), ",")
}

// What is accepted means the same to another reader, which tells keys apart
// less strictly.
func FuzzParseManifest(f *testing.F) {
	image, index := tidelock.MediaTypeManifest, tidelock.MediaTypeIndex
	for _, body := range []string{
		`{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[` + hostileLayer + `]}`,
		`{"schemaVersion":2,"mediaType":"` + image + `","artifactType":"a/b","config":` + hostileConfig + `,"layers":[],"subject":` + hostileConfig + `,"annotations":{"a":"b"}}`,
		`{"schemaVersion":2,"config":` + hostileConfig + `,"layers":[],"Layers":[` + hostileLayer + `]}`,
		`{"schemaVersion":2,"mediaType":"` + index + `","manifests":[` + strings.Replace(hostileConfig, "application/vnd.oci.empty.v1+json", image, 1) + `]}`,
	} {
		f.Add("", []byte(body))
		f.Add(image, []byte(body))
		f.Add(index, []byte(body))
	}
	f.Fuzz(func(t *testing.T, mediaType string, body []byte) {
		artifact, err := registry.ParseManifest(mediaType, body)
		if err != nil {
			if tidelock.KindOf(err) != tidelock.Invalid && tidelock.KindOf(err) != tidelock.TooLarge {
				t.Fatalf("refused as %v: %v", tidelock.KindOf(err), err)
			}
			return
		}
		if artifact.Digest != tidelock.DigestOf(body) || artifact.Size != int64(len(body)) {
			t.Errorf("%s of %d bytes, want %s of %d", artifact.Digest, artifact.Size, tidelock.DigestOf(body), len(body))
		}
		var theirs []v1.Descriptor
		var subject *v1.Descriptor
		if artifact.MediaType == tidelock.MediaTypeManifest {
			m, err := v1.ParseManifest(bytes.NewReader(body))
			if err != nil {
				return // it is stricter elsewhere
			}
			theirs, subject = append([]v1.Descriptor{m.Config}, m.Layers...), m.Subject
		} else if artifact.MediaType == tidelock.MediaTypeIndex {
			m, err := v1.ParseIndexManifest(bytes.NewReader(body))
			if err != nil {
				return
			}
			theirs, subject = m.Manifests, m.Subject
		} else {
			return
		}
		if len(theirs) != len(artifact.Parts) {
			t.Fatalf("%d parts, another reader sees %d", len(artifact.Parts), len(theirs))
		}
		for i, part := range artifact.Parts {
			if string(part.Digest) != theirs[i].Digest.String() || part.Size != theirs[i].Size || part.MediaType != string(theirs[i].MediaType) {
				t.Errorf("part %d is %+v, another reader sees %+v", i, part, theirs[i])
			}
		}
		if (subject != nil) != (artifact.Subject != "") || subject != nil && subject.Digest.String() != string(artifact.Subject) {
			t.Errorf("attached to %q, another reader sees %v", artifact.Subject, subject)
		}
		again, err := json.Marshal(artifact.Annotations)
		if err != nil || len(again) > 10<<20 {
			t.Errorf("annotations of %d bytes: %v", len(again), err)
		}
	})
}
