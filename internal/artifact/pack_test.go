package artifact_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
)

var files = []artifact.File{
	{Path: "deployment.yaml", Content: []byte("kind: Deployment\n")},
	{Path: "hooks/run.sh", Content: []byte("#!/bin/sh\n"), Executable: true},
	{Path: "a/very/" + strings.Repeat("long/", 30) + "way/" + strings.Repeat("n", 120) + "ümläut.yaml", Content: []byte("x")},
	{Path: "empty"},
	{Path: "large.yaml", Content: lines(20_000)},
}

// lines is text that compresses as manifests do.
func lines(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "  key-%d: %x\n", i, int64(i)*int64(i)*7919)
	}
	return b.Bytes()
}

// These digests hold on every machine and for every release: a change of one
// makes every application of every user look changed.
const (
	wantLayer    = "sha256:58da4857708bf4850b918d477850584f77ceb4d098cd6e26572f3a965db32856"
	wantDiff     = "sha256:09c4909f1bcca6618c4b8c60802eecdfc70469460dd136df69a6a4510187ae2f"
	wantManifest = "sha256:8f389f0022abbeedd67d093fc34995ea8cfe87957a9818fc2eeb2fee561c9687"
)

func TestPackIsReproducible(t *testing.T) {
	layer := pack(t, files...)
	backwards := slices.Clone(files)
	slices.Reverse(backwards)
	if again := pack(t, backwards...); !bytes.Equal(again.Content, layer.Content) {
		t.Error("the order of the files changes the layer")
	}
	if layer.Digest != wantLayer || layer.DiffID != wantDiff {
		t.Errorf("got layer %s of tar %s, want %s of %s", layer.Digest, layer.DiffID, wantLayer, wantDiff)
	}
	if got := image(t, layer).Digest; got != wantManifest {
		t.Errorf("got manifest %s, want %s", got, wantManifest)
	}
}

func TestPackTellsFilesApart(t *testing.T) {
	seen := map[tidelock.Digest]string{}
	for name, files := range map[string][]artifact.File{
		"one":        {{Path: "a", Content: []byte("1")}},
		"content":    {{Path: "a", Content: []byte("2")}},
		"path":       {{Path: "b", Content: []byte("1")}},
		"executable": {{Path: "a", Content: []byte("1"), Executable: true}},
		"more":       {{Path: "a", Content: []byte("1")}, {Path: "b"}},
	} {
		digest := pack(t, files...).Digest
		if other := seen[digest]; other != "" {
			t.Errorf("%s and %s have the same digest", name, other)
		}
		seen[digest] = name
	}
}

func TestPackUnpacksByTar(t *testing.T) {
	unpacked, err := gzip.NewReader(bytes.NewReader(pack(t, files...).Content))
	if err != nil {
		t.Fatal(err)
	}
	if !unpacked.ModTime.IsZero() || unpacked.Name != "" {
		t.Errorf("the header has time %v and name %q, want none", unpacked.ModTime, unpacked.Name)
	}
	got := map[string]artifact.File{}
	for archive := tar.NewReader(unpacked); ; {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.ModTime.Unix() != 0 {
			t.Errorf("%s belongs to %d:%d %q and has time %v", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
		got[h.Name] = artifact.File{Path: h.Name, Executable: h.Mode == 0o755, Content: content}
	}
	if len(got) != len(files) {
		t.Errorf("got %d files, want %d", len(got), len(files))
	}
	for _, want := range files {
		if f := got[want.Path]; f.Executable != want.Executable || !bytes.Equal(f.Content, want.Content) {
			t.Errorf("%s came out as %+v", want.Path, f)
		}
	}
}

func TestPackRefuses(t *testing.T) {
	many := make([]artifact.File, artifact.MaxFiles+1)
	for i := range many {
		many[i].Path = fmt.Sprint(i)
	}
	for name, files := range map[string][]artifact.File{
		"nothing":            {},
		"no path":            {{Path: ""}},
		"parent":             {{Path: "../etc/passwd"}},
		"parent inside":      {{Path: "a/../../b"}},
		"absolute":           {{Path: "/etc/passwd"}},
		"not clean":          {{Path: "a//b"}},
		"directory":          {{Path: "a/"}},
		"here":               {{Path: "."}},
		"backslash":          {{Path: `a\..\b`}},
		"zero":               {{Path: "a\x00b"}},
		"not text":           {{Path: "a\xff"}},
		"twice":              {{Path: "a"}, {Path: "a"}},
		"file and directory": {{Path: "a"}, {Path: "a.b"}, {Path: "a/b"}},
		"deep":               {{Path: strings.Repeat("a/", 64) + "b"}},
		"long":               {{Path: strings.Repeat("a", 1025)}},
		"many":               many,
		"large":              {{Path: "a", Content: make([]byte, artifact.MaxSize)}, {Path: "b", Content: []byte("x")}},
	} {
		_, err := artifact.Pack(files)
		want := tidelock.Invalid
		if name == "many" || name == "large" {
			want = tidelock.TooLarge
		}
		if tidelock.KindOf(err) != want {
			t.Errorf("%s: got error %v, want kind %v", name, err, want)
		}
	}
}

func TestNewNamesItsParts(t *testing.T) {
	layer := pack(t, files...)
	made := image(t, layer)
	var m struct {
		SchemaVersion int
		MediaType     string
		Config        struct{ MediaType, Digest string }
		Layers        []struct {
			MediaType, Digest string
			Size              int
		}
		Annotations map[string]string
	}
	if err := json.Unmarshal(made.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	if m.SchemaVersion != 2 || m.MediaType != tidelock.MediaTypeManifest {
		t.Errorf("got version %d of %q", m.SchemaVersion, m.MediaType)
	}
	if m.Config.MediaType != tidelock.MediaTypeFluxConfig || m.Config.Digest != string(tidelock.DigestOf(made.Config)) {
		t.Errorf("got config %+v", m.Config)
	}
	if len(m.Layers) != 1 || m.Layers[0].MediaType != tidelock.MediaTypeFluxContent ||
		m.Layers[0].Digest != string(layer.Digest) || m.Layers[0].Size != len(layer.Content) {
		t.Errorf("got layers %+v", m.Layers)
	}
	for name, want := range map[string]string{
		"org.opencontainers.image.created":  "2026-03-01T10:00:00Z",
		"org.opencontainers.image.revision": "main@sha1:" + commit,
		"org.opencontainers.image.source":   "https://localhost/team/delivery.git",
		"org.opencontainers.image.title":    "shop",
	} {
		if got := m.Annotations[name]; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestRevision(t *testing.T) {
	for _, c := range []struct{ ref, commit, want string }{
		{"main", commit, "main@sha1:" + commit},
		{"feature/x", commit, "feature/x@sha1:" + commit},
		{"", commit, "sha1:" + commit},
		{"main", strings.Repeat("a", 64), "main@sha256:" + strings.Repeat("a", 64)},
	} {
		if got := artifact.Revision(c.ref, tidelock.CommitID(c.commit)); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
	}
}

const commit = "0123456789abcdef0123456789abcdef01234567"

func image(t *testing.T, layer artifact.Layer) artifact.Image {
	t.Helper()
	made, err := artifact.New(layer, artifact.Source{
		URL:      "https://localhost/team/delivery.git",
		Revision: artifact.Revision("main", commit),
		Created:  time.Date(2026, 3, 1, 12, 0, 0, 0, time.FixedZone("", 2*60*60)),
		Extra:    map[string]string{tidelock.AnnotationTitle: "shop", tidelock.AnnotationRevision: "forged"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func pack(t *testing.T, files ...artifact.File) artifact.Layer {
	t.Helper()
	layer, err := artifact.Pack(files)
	if err != nil {
		t.Fatal(err)
	}
	return layer
}
