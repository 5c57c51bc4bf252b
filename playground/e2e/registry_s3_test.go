package e2e_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"tidelock.dev/playground/component"
	"tidelock.dev/playground/e2e"
	"tidelock.dev/playground/port"
	"tidelock.dev/playground/supervisor"
)

// startS3 starts a service that speaks S3 and has the bucket "images".
func startS3(t *testing.T, binary string) (host string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "buckets", "images"), 0o755); err != nil {
		t.Fatal(err)
	}
	book, err := port.Open(filepath.Join(dir, "ports.json"))
	if err != nil {
		t.Fatal(err)
	}
	if host, err = book.Addr("s3"); err != nil {
		t.Fatal(err)
	}
	processes, err := supervisor.Open(supervisor.Config{Dir: filepath.Join(dir, "processes"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := processes.Close(); err != nil {
			t.Errorf("stop the S3 service: %v", err)
		}
	})
	err = processes.Start(t.Context(), supervisor.Process{
		Name: "s3", Path: binary,
		Args: []string{"--port", host, "--quiet", "posix", filepath.Join(dir, "buckets")},
		Env:  supervisor.Environment(dir, "ROOT_ACCESS_KEY=test", "ROOT_SECRET_KEY=testtest"),
		Ready: func(ctx context.Context) error {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/", nil)
			if err != nil {
				return err
			}
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				return err
			}
			return answer.Body.Close()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return host
}

// With its content in a bucket the registry works as with a disk, and keeps
// nothing of it in its own folder.
func TestRegistryInS3(t *testing.T) {
	t.Parallel()
	set, err := component.Default(t.Context(), component.VersityGW, component.Crane)
	if err != nil {
		t.Fatal(err)
	}
	host := startS3(t, set[component.VersityGW].Binary())
	t.Run("package", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), "go", "test", "./internal/registry", "-count=1", "-run=^TestS3$")
		cmd.Dir = "../.."
		cmd.Env = append(os.Environ(), "TIDELOCK_TEST_S3=http://"+host)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})

	f := e2e.StartForge(t, e2e.ForgeConfig{NoAgent: true, ServerFlags: []string{
		"--registry-url", "s3://test:testtest@" + host + "/images/forge?tls=false",
	}})
	f.Project("team/site", "private")
	address, err := url.Parse(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	crane := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), set[component.Crane].Binary(), args...)
		cmd.Dir, cmd.Env = dir, append(supervisor.Environment(dir), "SSL_CERT_FILE="+f.CAFile)
		out, err := cmd.Output()
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("crane %s: %v\n%s", args[0], err, exit.Stderr)
		}
		return string(out)
	}
	layer := make([]byte, 30<<20) // several parts of an object
	rand.NewChaCha8([32]byte{}).Read(layer)
	if err := os.WriteFile(filepath.Join(dir, "layer"), layer, 0o600); err != nil {
		t.Fatal(err)
	}
	image := address.Host + "/team/site/web"
	crane("auth", "login", address.Host, "-u", "root", "-p", f.Token)
	crane("append", "--oci-empty-base", "-f", "layer", "-t", image+":1.0.0")
	crane("tag", image+":1.0.0", "latest")
	crane("copy", image+":latest", address.Host+"/team/site/copy:latest")
	digest := crane("digest", image+":1.0.0")

	f.Kill(e2e.Server) // what was acknowledged is there afterwards
	f.Restart(e2e.Server)
	for _, copied := range []string{image, address.Host + "/team/site/copy"} {
		if got := crane("digest", copied+":latest"); got != digest {
			t.Errorf("%s is %s, want %s", copied, got, digest)
		}
		var manifest struct{ Layers []struct{ Digest string } }
		if err := json.Unmarshal([]byte(crane("manifest", copied+":latest")), &manifest); err != nil || len(manifest.Layers) != 1 {
			t.Fatalf("got %+v, %v", manifest, err)
		}
		blob := crane("blob", copied+"@"+manifest.Layers[0].Digest)
		if unzipped, err := gzip.NewReader(strings.NewReader(blob)); err == nil {
			text, err := io.ReadAll(unzipped)
			if err != nil {
				t.Fatal(err)
			}
			blob = string(text)
		}
		if blob != string(layer) {
			t.Errorf("the layer of %s, of %d bytes, is not what was pushed", copied, len(blob))
		}
	}
	if left, err := os.ReadDir(filepath.Join(f.Dir, "data", "registry")); err == nil {
		t.Errorf("the data folder holds %v", left)
	}
}
