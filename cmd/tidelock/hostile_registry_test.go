package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/servertest"
)

// A hostileRegistry answers clients as it likes, and has a friend elsewhere
// that writes down all that is sent to it.
type hostileRegistry struct {
	t      *testing.T
	server *httptest.Server
	friend *httptest.Server
	answer func(w http.ResponseWriter, r *http.Request) // "" stands for an honest one
	sent   atomic.Int64                                 // bytes of endless answers

	mu    sync.Mutex
	heard strings.Builder
}

const hostileSecret = "glpat-that-belongs-to-the-registry"

func newHostileRegistry(t *testing.T) *hostileRegistry {
	t.Helper()
	h := &hostileRegistry{t: t}
	h.friend = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		h.mu.Lock()
		defer h.mu.Unlock()
		fmt.Fprintf(&h.heard, "%s %s %v %s\n", r.Method, r.URL, r.Header, body)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"token":"from-elsewhere"}`)
	}))
	t.Cleanup(h.friend.Close)
	h.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.answer(w, r) }))
	t.Cleanup(h.server.Close)
	return h
}

// run runs a command of a client that trusts both and has a secret for the
// registry.
func (h *hostileRegistry) run(docker bool, args ...string) (output string, err error) {
	h.t.Helper()
	home := h.t.TempDir()
	ca := filepath.Join(home, "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: h.server.Certificate().Raw})
	config := fmt.Sprintf(`{"auths":{%q:{"auth":%q,"identitytoken":%q}}}`, h.host(), base64.StdEncoding.EncodeToString([]byte("user:x")), hostileSecret)
	for path, text := range map[string][]byte{ca: block, filepath.Join(home, "config.json"): []byte(config)} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			h.t.Fatal(err)
		}
	}
	h.t.Chdir(home)
	h.t.Setenv("DOCKER_CONFIG", home)
	variables := map[string]string{"TIDELOCK_URL": h.server.URL, "TIDELOCK_CA_FILE": ca}
	if !docker {
		variables["TIDELOCK_TOKEN"] = hostileSecret
	}
	code, stdout, stderr := runWith(h.t, variables, args...)
	if code != exitDone {
		err = fmt.Errorf("exit code %d", code)
	}
	return stdout + stderr, err
}

func (h *hostileRegistry) host() string { return strings.TrimPrefix(h.server.URL, "https://") }

// endless sends until the client has enough, or a gibibyte.
func (h *hostileRegistry) endless(w http.ResponseWriter) {
	piece := bytes.Repeat([]byte(" "), 1<<16)
	for range 1 << 14 {
		n, err := w.Write(piece)
		h.sent.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// A registry does not get a client to send its token elsewhere.
func TestH14TokenStaysAtHome(t *testing.T) {
	challenge := func(realm string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="x",scope="repository:team/site:pull"`, realm))
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	for _, tt := range []struct {
		name   string
		docker bool
		answer func(h *hostileRegistry) func(http.ResponseWriter, *http.Request)
	}{
		{"a realm elsewhere", false, func(h *hostileRegistry) func(http.ResponseWriter, *http.Request) {
			return challenge(h.friend.URL + "/token")
		}},
		{"a realm elsewhere, for an identity token", true, func(h *hostileRegistry) func(http.ResponseWriter, *http.Request) {
			return challenge(h.friend.URL + "/token")
		}},
		{"a realm without encryption", false, func(h *hostileRegistry) func(http.ResponseWriter, *http.Request) {
			return challenge("http://" + strings.TrimPrefix(h.friend.URL, "https://"))
		}},
		{"a realm that leads on", false, func(h *hostileRegistry) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/token" {
					http.Redirect(w, r, h.friend.URL+"/token", http.StatusTemporaryRedirect)
					return
				}
				challenge(h.server.URL+"/token")(w, r)
			}
		}},
		{"a redirect of everything", false, func(h *hostileRegistry) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/v2/" {
					w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				http.Redirect(w, r, h.friend.URL+r.URL.Path, http.StatusTemporaryRedirect)
			}
		}},
		{"an upload that goes on elsewhere", false, func(h *hostileRegistry) func(http.ResponseWriter, *http.Request) {
			return func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/v2/":
					w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
				case r.Method == http.MethodPost:
					w.Header().Set("Location", h.friend.URL+"/upload")
					w.WriteHeader(http.StatusAccepted)
				default:
					w.WriteHeader(http.StatusNotFound)
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHostileRegistry(t)
			h.answer = tt.answer(h)
			artifact := "oci://" + h.host() + "/team/site:latest"
			if out, err := h.run(tt.docker, "artifact", "pull", artifact, "--dir", "out"); err == nil {
				t.Errorf("it was pulled: %s", out)
			}
			source := t.TempDir()
			if err := os.WriteFile(filepath.Join(source, "app.yaml"), []byte("kind: ConfigMap\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			// Content may go elsewhere, if that is where the registry keeps it.
			out, err := h.run(tt.docker, "artifact", "push", source, artifact, "--source", "https://x.example/y", "--revision", "main@sha1:"+strings.Repeat("0", 40))
			t.Logf("push: %v: %s", err, out)
			h.mu.Lock()
			defer h.mu.Unlock()
			for what, secret := range map[string]string{
				"the token": hostileSecret, "the token as a password": base64.StdEncoding.EncodeToString([]byte("oauth2:" + hostileSecret)),
			} {
				if strings.Contains(h.heard.String(), secret) {
					t.Errorf("%s was sent elsewhere:\n%s", what, h.heard.String())
				}
			}
		})
	}
}

// honestBut serves one artifact of a layer, and lets some requests be answered
// otherwise.
func (h *hostileRegistry) honestBut(layer []byte, otherwise func(http.ResponseWriter, *http.Request) bool) {
	config := []byte("{}")
	manifest := servertest.ManifestOf(config, layer)
	h.answer = func(w http.ResponseWriter, r *http.Request) {
		switch {
		case otherwise != nil && otherwise(w, r):
		case r.URL.Path == "/v2/":
			w.WriteHeader(http.StatusOK)
		case strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", tidelock.MediaTypeManifest)
			w.Header().Set("Docker-Content-Digest", string(tidelock.DigestOf(manifest)))
			w.Write(manifest)
		case strings.HasSuffix(r.URL.Path, string(tidelock.DigestOf(layer))):
			w.Write(layer)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}
}

func packed(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	a := tar.NewWriter(z)
	for _, entry := range entries {
		content := []byte("content")
		if entry.Typeflag != tar.TypeReg {
			content = nil
		}
		entry.Size, entry.Mode = int64(len(content)), 0o644
		if err := a.WriteHeader(&entry); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// A layer that is not what it should be leaves nothing behind, and an answer
// without end is not read for ever.
func TestH19HostilePulls(t *testing.T) {
	bomb := packedBomb(t)
	good := packed(t, tar.Header{Name: "app.yaml", Typeflag: tar.TypeReg})
	on := func(part string, f func(http.ResponseWriter)) func(*hostileRegistry) func(http.ResponseWriter, *http.Request) bool {
		return func(*hostileRegistry) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, part) && r.URL.Path != "/v2/" {
					f(w)
					return true
				}
				return false
			}
		}
	}
	for _, tt := range []struct {
		name      string
		layer     []byte
		otherwise func(*hostileRegistry) func(http.ResponseWriter, *http.Request) bool
		endless   string
	}{
		{name: "a path that leads up", layer: packed(t, tar.Header{Name: "../evil", Typeflag: tar.TypeReg})},
		{name: "a path of the whole system", layer: packed(t, tar.Header{Name: "/tmp/evil", Typeflag: tar.TypeReg})},
		{name: "a link and what is behind it", layer: packed(t, tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "/"}, tar.Header{Name: "x/evil", Typeflag: tar.TypeReg})},
		{name: "a hard link", layer: packed(t, tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"})},
		{name: "a device", layer: packed(t, tar.Header{Name: "x", Typeflag: tar.TypeBlock})},
		{name: "a file twice", layer: packed(t, tar.Header{Name: "x", Typeflag: tar.TypeReg}, tar.Header{Name: "./x", Typeflag: tar.TypeReg})},
		{name: "a bomb", layer: bomb},
		{name: "no gzip", layer: []byte("something else altogether")},
		{name: "another layer", layer: good, otherwise: on("/blobs/", func(w http.ResponseWriter) { w.Write(bytes.ToUpper(good)) })},
		{name: "half a layer", layer: good, otherwise: on("/blobs/", func(w http.ResponseWriter) { w.Write(good[:len(good)/2]) })},
		{name: "an endless layer", layer: good, endless: "/blobs/"},
		{name: "an endless manifest", layer: good, endless: "/manifests/"},
		{name: "a manifest that is none", layer: good, otherwise: on("/manifests/", func(w http.ResponseWriter) { w.Write([]byte("<html>")) })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHostileRegistry(t)
			var otherwise func(http.ResponseWriter, *http.Request) bool
			if tt.endless != "" {
				tt.otherwise = on(tt.endless, func(w http.ResponseWriter) {
					w.Header().Set("Content-Type", tidelock.MediaTypeManifest)
					h.endless(w)
				})
			}
			if tt.otherwise != nil {
				otherwise = tt.otherwise(h)
			}
			h.honestBut(tt.layer, otherwise)
			dir := filepath.Join(t.TempDir(), "out")
			out, err := h.run(false, "artifact", "pull", "oci://"+h.host()+"/team/site:latest", "--dir", dir)
			if err == nil {
				t.Errorf("it was pulled: %s", out)
			}
			t.Log(err)
			if _, err := os.Lstat(dir); !os.IsNotExist(err) {
				t.Errorf("it left something behind: %v", err)
			}
			if sent := h.sent.Load(); sent > 64<<20 {
				t.Errorf("%d MiB were read of an answer without end", sent>>20)
			}
		})
	}
	h := newHostileRegistry(t)
	h.honestBut(good, nil)
	if out, err := h.run(false, "artifact", "pull", "oci://"+h.host()+"/team/site:latest", "--dir", "out"); err != nil {
		t.Errorf("an honest registry: %v: %s", err, out)
	}
}

// packedBomb is an archive of one file of a gibibyte that takes a mebibyte. It
// repeats one member of gzip, so that it is quickly made.
func packedBomb(t *testing.T) []byte {
	t.Helper()
	var header bytes.Buffer
	err := tar.NewWriter(&header).WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	const piece = 16 << 20
	return slices.Concat(zipped(t, header.Bytes()), bytes.Repeat(zipped(t, make([]byte, piece)), 1<<30/piece))
}

func zipped(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
