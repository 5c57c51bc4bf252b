package main

import (
	"bytes"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	reference "github.com/google/go-containerregistry/pkg/name"

	"tidelock.dev/internal/artifact"
)

// runWith runs a command with an environment of its own and no contexts.
func runWith(t *testing.T, variables map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv("HOME", t.TempDir()) // docker's configuration
	var out, errs bytes.Buffer
	env := &environment{
		stdin: strings.NewReader(""), stdout: &out, stderr: &errs,
		getenv:    func(name string) string { return variables[name] },
		configDir: func() (string, error) { return t.TempDir(), nil },
	}
	code = run(t.Context(), env, args)
	return code, out.String(), errs.String()
}

// A thief is a server that notes every credential it is sent.
type thief struct {
	*httptest.Server
	stolen atomic.Int64
}

func newThief(t *testing.T) *thief {
	s := &thief{}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			s.stolen.Add(1)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"token":"x"}`))
	}))
	t.Cleanup(s.Close)
	return s
}

func caOf(t *testing.T, s *httptest.Server) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.crt")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func hostOf(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// H14: a registry that wants the token to be sent elsewhere does not get it
// there, be it for a token of its own, by a redirect or without encryption.
func TestTokenStaysWithItsRegistry(t *testing.T) {
	thief := newThief(t)
	plain := httptest.NewServer(thief.Config.Handler)
	defer plain.Close()
	for name, c := range map[string]struct {
		code   int // a redirect may be followed, without the token
		answer http.HandlerFunc
	}{
		"a realm elsewhere": {exitFailed, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+thief.URL+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}},
		"a realm in the clear": {exitFailed, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+plain.URL+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		}},
		"a redirect": {exitDone, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/" && r.Header.Get("Authorization") == "" {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			http.Redirect(w, r, thief.URL+r.URL.Path, http.StatusTemporaryRedirect)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			registry := httptest.NewTLSServer(c.answer)
			defer registry.Close()
			variables := map[string]string{
				"TIDELOCK_URL": registry.URL, "TIDELOCK_TOKEN": "glpat-secret", "TIDELOCK_CA_FILE": caOf(t, registry),
			}
			code, _, stderr := runWith(t, variables, "artifact", "list", "oci://"+hostOf(t, registry.URL)+"/team/shop")
			if code != c.code || strings.Count(stderr, "\n") != c.code || strings.Contains(stderr, "glpat-secret") {
				t.Errorf("exit code %d and %q, want %d and one line of an error, without the token", code, stderr, c.code)
			}
			if n := thief.stolen.Load(); n != 0 {
				t.Errorf("the token was sent elsewhere %d times", n)
			}
		})
	}
}

// The token of one server is not for the registry of another.
func TestTokenIsForItsServer(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	named := map[string]string{"TIDELOCK_URL": "https://forge.example", "TIDELOCK_TOKEN": "glpat-secret"}
	job := map[string]string{"CI_REGISTRY": "forge.example", "CI_JOB_TOKEN": "glcbt-secret"}
	for name, c := range map[string]struct {
		variables map[string]string
		flags     sourceFlags
		host      string
		want      string // the password
	}{
		"its own":                   {named, sourceFlags{}, "forge.example", "glpat-secret"},
		"in other letters":          {named, sourceFlags{}, "Forge.example", "glpat-secret"},
		"another":                   {named, sourceFlags{}, "evil.example", ""},
		"another port":              {named, sourceFlags{}, "forge.example:8443", ""},
		"a longer name":             {named, sourceFlags{}, "forge.example.evil.example", ""},
		"of a job":                  {job, sourceFlags{}, "forge.example", "glcbt-secret"},
		"of a job, another":         {job, sourceFlags{}, "evil.example", ""},
		"said on the command line":  {nil, sourceFlags{token: "glpat-given"}, "any.example", "glpat-given"},
		"said there for one server": {nil, sourceFlags{token: "glpat-given", url: "https://forge.example"}, "any.example", ""},
	} {
		t.Run(name, func(t *testing.T) {
			env := &environment{
				getenv:    func(name string) string { return c.variables[name] },
				configDir: func() (string, error) { return t.TempDir(), nil },
			}
			f := artifactFlags{sourceFlags: c.flags}
			s, err := f.registrySource(env, c.host)
			if err != nil {
				t.Fatal(err)
			}
			ref, err := reference.ParseReference(strings.ToLower(c.host) + "/team/shop:latest")
			if err != nil {
				t.Fatal(err)
			}
			auth, err := f.credential(env, s, ref)
			if err != nil {
				t.Fatal(err)
			}
			got, err := auth.Authorization()
			if err != nil || got.Password != c.want {
				t.Errorf("%s is asked with %q, %v; want %q", c.host, got.Password, err, c.want)
			}
		})
	}
}

// A registry that gives something else than what it named is not believed.
func TestPullOfLies(t *testing.T) {
	layer, err := artifact.Pack([]artifact.File{{Path: "app.yaml", Content: []byte("kind: ConfigMap\n")}})
	if err != nil {
		t.Fatal(err)
	}
	made, err := artifact.New(layer, artifact.Source{})
	if err != nil {
		t.Fatal(err)
	}
	other, err := artifact.Pack([]artifact.File{{Path: "app.yaml", Content: []byte("kind: Evil\n")}})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		manifest []byte
		layer    []byte
		want     string
	}{
		"another layer":     {made.Manifest, other.Content, "layer"},
		"a layer cut short": {made.Manifest, layer.Content[:100], "layer"},
		"no manifest":       {[]byte("hello"), layer.Content, "manifest"},
		"members twice":     {bytes.Replace(made.Manifest, []byte(`{`), []byte(`{"schemaVersion":2,`), 1), layer.Content, "manifest"},
		"an index":          {[]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`), layer.Content, ""},
	} {
		t.Run(name, func(t *testing.T) {
			registry := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.Contains(r.URL.Path, "/manifests/"):
					w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
					_, _ = w.Write(c.manifest)
				case strings.Contains(r.URL.Path, "/blobs/"):
					_, _ = w.Write(c.layer)
				}
			}))
			defer registry.Close()
			dir := filepath.Join(t.TempDir(), "out")
			variables := map[string]string{"TIDELOCK_URL": registry.URL, "TIDELOCK_CA_FILE": caOf(t, registry)}
			code, stdout, stderr := runWith(t, variables, "artifact", "pull", "oci://"+hostOf(t, registry.URL)+"/team/shop:latest", "--dir", dir)
			t.Log(stderr)
			if code != exitFailed || stdout != "" || !strings.Contains(stderr, "tidelock: ") || !strings.Contains(stderr, c.want) {
				t.Errorf("exit code %d, %q and %q; want 1 and why", code, stdout, stderr)
			}
			if _, err := os.Stat(dir); err == nil {
				t.Error("there is a folder")
			}
		})
	}
}

func TestWithoutCredentials(t *testing.T) {
	for remote, want := range map[string]string{
		"https://ada:s3cret@forge.example/team/shop.git":    "https://forge.example/team/shop.git",
		"https://glpat-x@forge.example/team/shop.git":       "https://forge.example/team/shop.git",
		"ssh://git:s3cret@forge.example:2222/team/shop.git": "ssh://git@forge.example:2222/team/shop.git",
		"git@forge.example:team/shop.git":                   "git@forge.example:team/shop.git",
		"https://a:%zz@forge.example/x":                     "",
		"/srv/git/shop.git":                                 "/srv/git/shop.git",
		"":                                                  "",
	} {
		if got := withoutCredentials(remote); got != want {
			t.Errorf("%q becomes %q, want %q", remote, got, want)
		}
	}
}
