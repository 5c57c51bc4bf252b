package registry_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

// TestS3 does in a bucket what is done on a disk, among it what needs several
// parts of an object. The end-to-end tests run it beside a real service.
func TestS3(t *testing.T) {
	endpoint := os.Getenv("TIDELOCK_TEST_S3")
	if endpoint == "" {
		t.Skip("set TIDELOCK_TEST_S3 to the URL of a service that speaks S3, with the bucket \"images\" and the key test/testtest")
	}
	r, _ := open(t, func(c *registry.Config) {
		c.Dir = ""
		c.S3 = &registry.S3Config{
			Endpoint: endpoint, Bucket: "images", Prefix: time.Now().Format("20060102150405.000000"), PathStyle: true,
			AccessKey: "test", SecretKey: tidelock.NewSecret("testtest"),
		}
	})
	site := registry.Repo(1, "site")
	random := make([]byte, 24<<20)
	rand.NewChaCha8([32]byte{}).Read(random)
	for _, size := range []int{0, 1, 5 << 20, 10<<20 + 1, len(random)} {
		want := random[:size]
		part, err := r.PutBlob(t.Context(), site, tidelock.DigestOf(want), bytes.NewReader(want))
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if got := content(t, r, site, part.Digest); got != string(want) {
			t.Errorf("%d bytes came back as other %d", size, len(got))
		}
	}
	// In pieces, of which some are too small for a part of their own.
	u, err := r.StartUpload(t.Context(), site, "ada", "")
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	for _, size := range []int{3, 6 << 20, 1 << 20, 12 << 20, 100} {
		piece := random[100 : 100+size]
		if err := u.Append(t.Context(), bytes.NewReader(piece)); err != nil {
			t.Fatal(err)
		}
		want = append(want, piece...)
	}
	part, err := u.Commit(t.Context(), tidelock.DigestOf(want))
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, r, site, part.Digest); got != string(want) {
		t.Error("what was sent in pieces came back as something else")
	}
	in, _, err := r.Blob(t.Context(), site, part.Digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{7 << 20, 10, int64(len(want)) - 5} {
		five := make([]byte, 5)
		if _, err := in.Seek(at, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(in, five); err != nil || !bytes.Equal(five, want[at:at+5]) {
			t.Errorf("from %d: got %x, %v", at, five, err)
		}
	}
	if end, err := in.Seek(0, io.SeekEnd); err != nil || end != int64(len(want)) {
		t.Errorf("got the end %d, %v", end, err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}

	_, err = r.PutBlob(t.Context(), site, tidelock.DigestOf([]byte("x")), bytes.NewReader(random))
	wantCode(t, "a wrong digest", err, registry.DigestInvalid)
	if u, err = r.StartUpload(t.Context(), site, "ada", ""); err != nil {
		t.Fatal(err)
	}
	if err := u.Append(t.Context(), bytes.NewReader(random)); err != nil {
		t.Fatal(err)
	}
	if err := u.Cancel(t.Context()); err != nil {
		t.Errorf("cancel: %v", err)
	}

	sum, err := r.PutManifest(t.Context(), site, "", []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	if mediaType, body, err := r.Manifest(t.Context(), site, sum); err != nil || mediaType != tidelock.MediaTypeIndex || string(body) != manifest {
		t.Errorf("got %s %s, %v", mediaType, body, err)
	}
	if size, err := r.Mount(t.Context(), registry.Repo(2, ""), site, part.Digest); err != nil || size != part.Size {
		t.Errorf("mount: got %d, %v", size, err)
	}
	if err := r.RemoveBlob(t.Context(), site, part.Digest); err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveManifest(t.Context(), site, sum); err != nil {
		t.Fatal(err)
	}
	_, err = r.StatBlob(t.Context(), site, part.Digest)
	wantCode(t, "a removed blob", err, registry.BlobUnknown)
	if swept, err := r.Sweep(t.Context(), false); err != nil || swept != (registry.Swept{Blobs: 1, Bytes: int64(len(manifest))}) {
		t.Errorf("sweep: got %+v, %v", swept, err)
	}
	if got := content(t, r, registry.Repo(2, ""), part.Digest); got != string(want) {
		t.Error("the mounted blob is not what it was")
	}
}
