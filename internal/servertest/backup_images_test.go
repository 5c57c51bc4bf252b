package servertest_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/backup"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/server"
	"tidelock.dev/internal/servertest"
)

// Images are in a backup, with everything that was acknowledged of them.
func TestBackupHasImages(t *testing.T) {
	s := servertest.Start(t)
	s.Project("team/site", tidelock.Private)
	client := s.OCI("root", s.Token)
	digest, _, err := client.Push(t.Context(), "team/site/web", "1.0.0", []byte("the layer"))
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if _, err := backup.Create(t.Context(), server.Data(s.DataDir, ""), &archive, backup.Options{Version: "test"}); err != nil {
		t.Fatal(err)
	}
	token := s.Token
	s.Stop()

	summary, err := backup.Verify(t.Context(), server.Data("", ""), bytes.NewReader(archive.Bytes()), backup.Options{})
	if err != nil || len(summary.Lost) != 0 {
		t.Fatalf("got %v, %v", summary, err)
	}
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := server.Restore(t.Context(), dir, "", bytes.NewReader(archive.Bytes()), backup.Options{}); err != nil {
		t.Fatal(err)
	}
	// The first token is not in the backup; it is put there for the helpers.
	if err := os.WriteFile(filepath.Join(dir, "root.token"), []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	restored := servertest.Start(t, func(c *server.Config) { c.DataDir = dir })
	client = restored.OCI("root", token)
	for path, want := range map[string]string{
		"team/site/web/manifests/1.0.0":                                         string(servertest.ManifestOf([]byte("{}"), []byte("the layer"))),
		"team/site/web/manifests/" + string(digest):                             string(servertest.ManifestOf([]byte("{}"), []byte("the layer"))),
		"team/site/web/blobs/" + string(tidelock.DigestOf([]byte("the layer"))): "the layer",
	} {
		got, err := client.Do(t.Context(), http.MethodGet, path, nil)
		if err != nil || got.Status != http.StatusOK || got.Body != want {
			t.Errorf("%s: got %d %s, %v", path, got.Status, got.Body, err)
		}
	}
}

// What images should have and a backup does not is named when it is verified
// and when it is restored; the rest is restored.
func TestBackupTellsOfLostContent(t *testing.T) {
	s := servertest.Start(t)
	s.Project("team/site", tidelock.Private)
	digest, _, err := s.OCI("root", s.Token).Push(t.Context(), "team/site/web", "1.0.0", []byte("the layer"))
	if err != nil {
		t.Fatal(err)
	}
	file := func(digest tidelock.Digest) string {
		_, data := registry.FilesOf("", digest, false)
		return registry.FilePath(filepath.Join(s.DataDir, "registry"), data)
	}
	layer := tidelock.DigestOf([]byte("the layer"))
	if err := os.Remove(file(layer)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file(digest), []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if _, err := backup.Create(t.Context(), server.Data(s.DataDir, ""), &archive, backup.Options{Version: "test"}); err != nil {
		t.Fatal(err)
	}
	verified, err := backup.Verify(t.Context(), server.Data("", ""), bytes.NewReader(archive.Bytes()), backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	restored, err := server.Restore(t.Context(), filepath.Join(t.TempDir(), "data"), "", bytes.NewReader(archive.Bytes()), backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, summary := range []backup.Summary{verified, restored} {
		text := summary.String()
		if len(summary.Lost) != 2 || !strings.Contains(text, string(layer)+` of image "web" of project`) || !strings.Contains(text, string(digest)) {
			t.Errorf("got %s", text)
		}
	}
}
