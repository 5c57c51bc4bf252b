package servertest_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/backup"
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

	if _, err := backup.Verify(t.Context(), server.Data("", ""), bytes.NewReader(archive.Bytes()), backup.Options{}); err != nil {
		t.Fatal(err)
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
