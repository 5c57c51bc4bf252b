package registry_test

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/storage"
	"github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

func open(t *testing.T, change ...func(*registry.Config)) (*registry.Registry, string) {
	t.Helper()
	c := registry.Config{Dir: filepath.Join(t.TempDir(), "registry"), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, f := range change {
		f(&c)
	}
	r, err := registry.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return r, c.Dir
}

// files are those below a folder.
func files(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			all = append(all, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return all
}

func content(t *testing.T, r *registry.Registry, name registry.Name, digest tidelock.Digest) string {
	t.Helper()
	in, size, err := r.Blob(t.Context(), name, digest)
	if err != nil {
		t.Fatalf("open %s of %s: %v", digest, name, err)
	}
	defer in.Close()
	got, err := io.ReadAll(in)
	if err != nil || int64(len(got)) != size {
		t.Fatalf("read %d bytes of %d, %v", len(got), size, err)
	}
	return string(got)
}

func wantCode(t *testing.T, what string, err error, code registry.Code) {
	t.Helper()
	problem, ok := errors.AsType[*registry.Problem](err)
	if !ok || problem.Code != code {
		t.Errorf("%s: got %v, want a problem %s", what, err, code)
	}
}

func sha512Of(text string) tidelock.Digest {
	sum := sha512.Sum512([]byte(text))
	return tidelock.Digest("sha512:" + hex.EncodeToString(sum[:]))
}

func TestBlobsBelongToImages(t *testing.T) {
	r, _ := open(t)
	site, other := registry.Repo(1, ""), registry.Repo(1, "other")
	for _, want := range []tidelock.Digest{"", tidelock.DigestOf([]byte("hello")), sha512Of("hello")} {
		part, err := r.PutBlob(t.Context(), site, want, strings.NewReader("hello"))
		if err != nil || part.Size != 5 || want != "" && part.Digest != want {
			t.Fatalf("put %q: got %+v, %v", want, part, err)
		}
		if got := content(t, r, site, part.Digest); got != "hello" {
			t.Errorf("got %q", got)
		}
		_, err = r.StatBlob(t.Context(), other, part.Digest)
		wantCode(t, "another image's blob", err, registry.BlobUnknown)
		_, _, err = r.Manifest(t.Context(), site, part.Digest)
		wantCode(t, "a blob as a manifest", err, registry.ManifestUnknown)
	}
	digest := tidelock.DigestOf([]byte("hello"))
	_, err := r.Mount(t.Context(), registry.Repo(2, ""), other, digest)
	wantCode(t, "mount from where it is not", err, registry.BlobUnknown)
	if size, err := r.Mount(t.Context(), other, site, digest); err != nil || size != 5 {
		t.Errorf("mount: got %d, %v", size, err)
	}
	if err := r.RemoveBlob(t.Context(), site, digest); err != nil {
		t.Fatal(err)
	}
	if got := content(t, r, other, digest); got != "hello" {
		t.Errorf("the mounted blob holds %q", got)
	}
	_, err = r.StatBlob(t.Context(), site, digest)
	wantCode(t, "a removed blob", err, registry.BlobUnknown)
	if err := r.RemoveBlob(t.Context(), site, digest); err != nil {
		t.Errorf("remove twice: %v", err)
	}
}

func TestWrongContentIsNotKept(t *testing.T) {
	r, dir := open(t, func(c *registry.Config) { c.MaxBlob = 10 })
	site := registry.Repo(1, "")
	digest := tidelock.DigestOf([]byte("hello"))
	for name, tc := range map[string]struct {
		want    tidelock.Digest
		content io.Reader
		code    registry.Code
	}{
		"another digest":      {digest, strings.NewReader("hullo"), registry.DigestInvalid},
		"another, by SHA-512": {sha512Of("hello"), strings.NewReader("hullo"), registry.DigestInvalid},
		"no known algorithm":  {"md5:5d41402abc4b2a76b9719d911017c592", strings.NewReader("hello"), registry.DigestInvalid},
		"too much":            {"", strings.NewReader("hello, hello"), registry.SizeInvalid},
	} {
		_, err := r.PutBlob(t.Context(), site, tc.want, tc.content)
		wantCode(t, name, err, tc.code)
	}
	broken := errors.New("the line is cut")
	if _, err := r.PutBlob(t.Context(), site, "", io.MultiReader(strings.NewReader("hel"), errReader{broken})); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if left := files(t, dir); len(left) > 0 {
		t.Errorf("there are left %q", left)
	}
	if _, err := r.PutBlob(t.Context(), site, "", strings.NewReader("0123456789")); err != nil {
		t.Errorf("the largest blob: %v", err)
	}
	if part, err := r.PutBlob(t.Context(), site, "", strings.NewReader("")); err != nil || part.Size != 0 || content(t, r, site, part.Digest) != "" {
		t.Errorf("the empty blob: %+v, %v", part, err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestUploadInPieces(t *testing.T) {
	r, dir := open(t, func(c *registry.Config) { c.MaxUploads = 2 })
	site := registry.Repo(1, "")
	u, err := r.StartUpload(t.Context(), site, "ada", "")
	if err != nil {
		t.Fatal(err)
	}
	for i, piece := range []string{"he", "", "llo"} {
		at, err := u.Size()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.AppendAt(t.Context(), at+1, strings.NewReader(piece)); i > 0 {
			wantCode(t, "a gap", err, registry.RangeInvalid)
		}
		if _, err := u.AppendAt(t.Context(), at, strings.NewReader(piece)); err != nil {
			t.Fatal(err)
		}
	}
	for what, find := range map[string]func() (*registry.Upload, error){
		"another image": func() (*registry.Upload, error) { return r.Upload(registry.Repo(2, ""), "ada", u.ID) },
		"another owner": func() (*registry.Upload, error) { return r.Upload(site, "bob", u.ID) },
		"another id":    func() (*registry.Upload, error) { return r.Upload(site, "ada", "../x") },
	} {
		_, err := find()
		wantCode(t, what, err, registry.BlobUploadUnknown)
	}
	if _, err := r.StartUpload(t.Context(), site, "ada", "sha512"); err != nil {
		t.Fatal(err)
	}
	_, err = r.StartUpload(t.Context(), site, "ada", "")
	wantCode(t, "too many", err, registry.TooManyRequests)
	if _, err := r.StartUpload(t.Context(), site, "bob", ""); err != nil {
		t.Errorf("somebody else: %v", err)
	}
	again, err := r.Upload(site, "ada", u.ID)
	if err != nil || again != u {
		t.Fatalf("got %v, %v", again, err)
	}
	part, err := u.Commit(t.Context(), tidelock.DigestOf([]byte("hello")))
	if err != nil || part.Size != 5 || content(t, r, site, part.Digest) != "hello" {
		t.Errorf("got %+v, %v", part, err)
	}
	_, err = u.Commit(t.Context(), part.Digest)
	wantCode(t, "twice", err, registry.BlobUploadUnknown)
	_, err = r.Upload(site, "ada", u.ID)
	wantCode(t, "afterwards", err, registry.BlobUploadUnknown)
	u, err = r.StartUpload(t.Context(), site, "ada", "")
	if err != nil {
		t.Fatalf("one less: %v", err)
	}
	if err := u.Append(t.Context(), strings.NewReader("gone")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(u.Cancel(t.Context()), u.Cancel(t.Context())); err != nil {
		t.Fatal(err)
	}
	if left := files(t, filepath.Join(dir, "uploads")); len(left) > 0 {
		t.Errorf("there are left %q", left)
	}
}

func TestOneRequestWorksOnAnUpload(t *testing.T) {
	r, _ := open(t)
	u, err := r.StartUpload(t.Context(), registry.Repo(1, ""), "ada", "")
	if err != nil {
		t.Fatal(err)
	}
	in, out := io.Pipe()
	var appending sync.WaitGroup
	appending.Go(func() {
		if err := u.Append(t.Context(), in); err != nil {
			t.Error(err)
		}
	})
	if _, err := out.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "append", u.Append(t.Context(), strings.NewReader("x")), registry.BlobUploadInvalid)
	_, err = u.Commit(t.Context(), "")
	wantCode(t, "commit", err, registry.BlobUploadInvalid)
	out.Close()
	appending.Wait()
	if part, err := u.Commit(t.Context(), ""); err != nil || part.Size != 1<<20 {
		t.Errorf("got %+v, %v", part, err)
	}
}

func TestAbandonedUploadsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, dir := open(t, func(c *registry.Config) { c.UploadTimeout = time.Hour })
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go r.Run(ctx)
		site := registry.Repo(1, "")
		u, err := r.StartUpload(ctx, site, "ada", "")
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Append(ctx, strings.NewReader("hello")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Minute)
		if _, err := r.Upload(site, "ada", u.ID); err != nil {
			t.Fatalf("an upload at work: %v", err)
		}
		time.Sleep(50 * time.Minute)
		if _, err := r.Upload(site, "ada", u.ID); err != nil {
			t.Fatalf("an upload that was asked for: %v", err)
		}
		time.Sleep(80 * time.Minute)
		_, err = r.Upload(site, "ada", u.ID)
		wantCode(t, "an abandoned upload", err, registry.BlobUploadUnknown)
		if left := files(t, dir); len(left) > 0 {
			t.Errorf("there are left %q", left)
		}
	})
}

func TestUploadsEndWithTheProcess(t *testing.T) {
	r, dir := open(t)
	u, err := r.StartUpload(t.Context(), registry.Repo(1, ""), "ada", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := u.Append(t.Context(), strings.NewReader("hello")); err != nil {
		t.Fatal(err)
	}
	part, err := r.PutBlob(t.Context(), registry.Repo(1, ""), "", strings.NewReader("kept"))
	if err != nil {
		t.Fatal(err)
	}
	r, _ = open(t, func(c *registry.Config) { c.Dir = dir })
	if left := files(t, filepath.Join(dir, "uploads")); len(left) > 0 {
		t.Errorf("there are left %q", left)
	}
	if got := content(t, r, registry.Repo(1, ""), part.Digest); got != "kept" {
		t.Errorf("got %q", got)
	}
}

const manifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`

func TestManifests(t *testing.T) {
	r, dir := open(t)
	site := registry.Repo(1, "site")
	for range 2 {
		digest, err := r.PutManifest(t.Context(), site, tidelock.MediaTypeIndex, []byte(manifest))
		if err != nil || digest != tidelock.DigestOf([]byte(manifest)) {
			t.Fatalf("got %s, %v", digest, err)
		}
		mediaType, body, err := r.Manifest(t.Context(), site, digest)
		if err != nil || mediaType != tidelock.MediaTypeIndex || string(body) != manifest {
			t.Fatalf("got %s %s, %v", mediaType, body, err)
		}
	}
	digest := tidelock.DigestOf([]byte(manifest))
	_, _, err := r.Manifest(t.Context(), registry.Repo(1, ""), digest)
	wantCode(t, "another image's", err, registry.ManifestUnknown)
	_, err = r.StatBlob(t.Context(), site, digest)
	wantCode(t, "a manifest as a blob", err, registry.BlobUnknown)
	if err := r.PutManifestAs(t.Context(), site, sha512Of(manifest), "", []byte(manifest)); err != nil {
		t.Fatal(err)
	}
	if _, body, err := r.Manifest(t.Context(), site, sha512Of(manifest)); err != nil || string(body) != manifest {
		t.Errorf("by SHA-512: got %s, %v", body, err)
	}
	wantCode(t, "a wrong digest", r.PutManifestAs(t.Context(), site, tidelock.DigestOf([]byte("x")), "", []byte(manifest)), registry.DigestInvalid)
	if err := r.RemoveManifest(t.Context(), site, digest); err != nil {
		t.Fatal(err)
	}
	_, _, err = r.Manifest(t.Context(), site, digest)
	wantCode(t, "a removed one", err, registry.ManifestUnknown)

	// Bytes that the medium lost or changed are not handed out.
	digest, err = r.PutManifest(t.Context(), site, "", []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	hash := strings.TrimPrefix(string(digest), "sha256:")
	data := filepath.Join(dir, "docker/registry/v2/blobs/sha256", hash[:2], hash, "data")
	if err := os.WriteFile(data, bytes.Repeat([]byte(" "), len(manifest)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err = r.Manifest(t.Context(), site, digest); err == nil || tidelock.KindOf(err) != tidelock.Internal {
		t.Errorf("changed bytes: got %v", err)
	}
}

// A link that a crash cut short is as good as none, and is made again.
func TestTornLinks(t *testing.T) {
	r, dir := open(t)
	site := registry.Repo(1, "")
	part, err := r.PutBlob(t.Context(), site, "", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	hash := strings.TrimPrefix(string(part.Digest), "sha256:")
	link := filepath.Join(dir, "docker/registry/v2/repositories/p1/_layers/sha256", hash, "link")
	if err := os.Truncate(link, 10); err != nil {
		t.Fatal(err)
	}
	_, err = r.StatBlob(t.Context(), site, part.Digest)
	wantCode(t, "a torn link", err, registry.BlobUnknown)
	if _, err := r.PutBlob(t.Context(), site, part.Digest, strings.NewReader("hello")); err != nil {
		t.Fatal(err)
	}
	if got := content(t, r, site, part.Digest); got != "hello" {
		t.Errorf("got %q", got)
	}
}

func TestSweep(t *testing.T) {
	r, _ := open(t)
	site := registry.Repo(1, "site")
	var parts []tidelock.Part
	for _, text := range []string{"one", "three", "seven"} {
		part, err := r.PutBlob(t.Context(), site, "", strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part)
	}
	digest, err := r.PutManifest(t.Context(), site, "", []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	if swept, err := r.Sweep(t.Context(), false); err != nil || swept != (registry.Swept{}) {
		t.Errorf("got %+v, %v", swept, err)
	}
	if _, err := r.Mount(t.Context(), registry.Repo(2, ""), site, parts[1].Digest); err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		if err := r.RemoveBlob(t.Context(), site, part.Digest); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.RemoveManifest(t.Context(), site, digest); err != nil {
		t.Fatal(err)
	}
	want := registry.Swept{Blobs: 3, Bytes: int64(len("one") + len("seven") + len(manifest))}
	for _, dry := range []bool{true, false} {
		if swept, err := r.Sweep(t.Context(), dry); err != nil || swept != want {
			t.Errorf("dry %t: got %+v, %v, want %+v", dry, swept, err, want)
		}
	}
	if swept, err := r.Sweep(t.Context(), false); err != nil || swept != (registry.Swept{}) {
		t.Errorf("again: got %+v, %v", swept, err)
	}
	if got := content(t, r, registry.Repo(2, ""), parts[1].Digest); got != "three" {
		t.Errorf("got %q", got)
	}
}

// While blobs come, go and come again, no sweep takes one that an image has.
func TestSweepWhileOthersPush(t *testing.T) {
	r, _ := open(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var pushing sync.WaitGroup
	for worker := range 4 {
		name := registry.Repo(tidelock.ProjectID(worker+1), "")
		pushing.Go(func() {
			for ctx.Err() == nil {
				for _, text := range []string{"a", "b", "c"} {
					part, err := r.PutBlob(t.Context(), name, "", strings.NewReader(text))
					if err != nil {
						t.Error(err)
						return
					}
					if got := content(t, r, name, part.Digest); got != text {
						t.Errorf("got %q, want %q", got, text)
					}
					if err := r.RemoveBlob(t.Context(), name, part.Digest); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for range 20 {
		if _, err := r.Sweep(t.Context(), false); err != nil {
			t.Error(err)
		}
	}
	stop()
	pushing.Wait()
}

// What is kept can be read with distribution's own storage.
func TestLayoutIsThatOfDistribution(t *testing.T) {
	r, dir := open(t)
	name := registry.Repo(7, "web/site")
	part, err := r.PutBlob(t.Context(), name, "", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	sum, err := r.PutManifest(t.Context(), name, "", []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := storage.NewRegistry(t.Context(), filesystem.New(filesystem.DriverParameters{RootDirectory: dir, MaxThreads: 25}))
	if err != nil {
		t.Fatal(err)
	}
	named, err := reference.WithName(string(name))
	if err != nil {
		t.Fatal(err)
	}
	image, err := theirs.Repository(t.Context(), named)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := image.Blobs(t.Context()).Get(t.Context(), digest.Digest(part.Digest)); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	manifests, err := image.Manifests(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, err := manifests.Get(t.Context(), digest.Digest(sum))
	if err != nil {
		t.Fatal(err)
	}
	if _, body, err := m.Payload(); err != nil || string(body) != manifest {
		t.Errorf("got %s, %v", body, err)
	}
	var found []string
	err = theirs.(distribution.RepositoryEnumerator).Enumerate(t.Context(), func(name string) error {
		found = append(found, name)
		return nil
	})
	if err != nil || len(found) != 1 || found[0] != string(name) {
		t.Errorf("got %q, %v", found, err)
	}
}
