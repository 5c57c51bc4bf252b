package ociserver_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"tidelock.dev"
	"tidelock.dev/internal/bus"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
	"tidelock.dev/internal/limit"
	"tidelock.dev/internal/ociserver"
	"tidelock.dev/internal/registry"
	"tidelock.dev/internal/seal"
	"tidelock.dev/internal/store"
)

// A world is a registry over a real forge, store and disk, with two private
// projects, people/site and people/Other, a public one, people/open, and
// somebody of every sort.
type world struct {
	*forge.Forge
	t       testing.TB
	content *registry.Registry
	server  *httptest.Server
	keyFile string
	clock   atomic.Int64 // how far the registry's clock is ahead
	root    forge.Principal
	group   tidelock.Namespace
	site    tidelock.Project

	maintainer, developer, reporter, outsider string // tokens
}

type options struct {
	maxBlob    int64
	maxUploads int
	quota      int64
	idle       time.Duration
	limits     *limit.Guard
}

func newWorld(t testing.TB, o options) *world {
	t.Helper()
	if test, ok := t.(*testing.T); ok {
		test.Parallel()
	}
	ctx := t.Context()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	dir := t.TempDir()
	box, err := seal.New(make([]byte, 32))
	must(t, err)
	db, err := store.Open(ctx, store.Config{URL: "sqlite:" + filepath.Join(dir, "tidelock.db"), Seal: box, Log: log})
	must(t, err)
	repos, err := gitrepo.Open(ctx, gitrepo.Config{Dir: filepath.Join(dir, "repositories"), Log: log})
	must(t, err)
	content, err := registry.Open(ctx, registry.Config{Dir: filepath.Join(dir, "registry"), MaxBlob: o.maxBlob, MaxUploads: o.maxUploads, Log: log})
	must(t, err)
	hints, err := bus.Open(ctx, bus.Config{Log: log})
	must(t, err)
	t.Cleanup(func() {
		hints.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, content: content, keyFile: filepath.Join(dir, "registry.key")}
	w.Forge, err = forge.New(forge.Config{Store: db, Repos: repos, Registry: content, Bus: hints, Log: log, ImageQuota: o.quota})
	must(t, err)
	key, err := ociserver.OpenKey(w.keyFile)
	must(t, err)
	w.server = httptest.NewUnstartedServer(nil)
	external := &url.URL{Scheme: "http", Host: w.server.Listener.Addr().String()}
	images, err := ociserver.New(ociserver.Config{
		Forge: w.Forge, Registry: content, Key: key, URL: external, Log: log, Idle: o.idle, Limits: o.limits,
		Now: func() time.Time { return time.Now().Add(time.Duration(w.clock.Load())) },
	})
	must(t, err)
	w.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !ociserver.Matches(r) {
			http.Error(rw, "not the registry's", http.StatusTeapot)
			return
		}
		images.ServeHTTP(rw, r)
	})
	w.server.Start()
	t.Cleanup(w.server.Close)

	root, err := w.Bootstrap(ctx, "root")
	must(t, err)
	w.root = forge.Principal{User: &root}
	w.group, err = w.CreateGroup(ctx, w.root, forge.NewGroup{Path: "people", Visibility: tidelock.Public})
	must(t, err)
	w.site = w.project("site", tidelock.Private)
	w.project("Other", tidelock.Private)
	w.project("open", tidelock.Public)
	w.maintainer = w.person("maintainer", tidelock.Maintainer)
	w.developer = w.person("developer", tidelock.Developer)
	w.reporter = w.person("reporter", tidelock.Reporter)
	w.outsider = w.person("outsider", tidelock.NoAccess)
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) project(path string, v tidelock.Visibility) tidelock.Project {
	w.t.Helper()
	project, err := w.CreateProject(w.t.Context(), w.root, forge.NewProject{Namespace: w.group.ID, Path: path, Visibility: v})
	must(w.t, err)
	return project
}

// person makes a user with a level in the group, and returns a token that may
// do with images what the user may.
func (w *world) person(name string, level tidelock.AccessLevel) string {
	w.t.Helper()
	user, err := w.CreateUser(w.t.Context(), w.root, forge.NewUser{Username: name})
	must(w.t, err)
	if level != tidelock.NoAccess {
		_, err = w.SetMember(w.t.Context(), w.root, forge.OnGroup(w.group), user.ID, level, time.Time{})
		must(w.t, err)
	}
	return w.token(user.ID, tidelock.ScopeWriteRegistry)
}

func (w *world) token(user tidelock.UserID, scopes ...tidelock.Scope) string {
	w.t.Helper()
	_, secret, err := w.CreatePersonalToken(w.t.Context(), w.root, user, forge.NewToken{Name: "test", Scopes: scopes})
	must(w.t, err)
	return secret.Reveal()
}

// host is where the registry is.
func (w *world) host() string { return strings.TrimPrefix(w.server.URL, "http://") }

// image is the name of an image for go-containerregistry.
func (w *world) image(path string) name.Repository {
	w.t.Helper()
	repo, err := name.NewRepository(w.host()+"/"+path, name.Insecure)
	must(w.t, err)
	return repo
}

func as(token string) authn.Authenticator {
	if token == "" {
		return authn.Anonymous
	}
	return &authn.Basic{Username: "anybody", Password: token}
}

// An answer is what came of a request.
type answer struct {
	status int
	header http.Header
	body   string
}

// code is that of the answer's problem.
func (a answer) code() string {
	var problem struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal([]byte(a.body), &problem) != nil || len(problem.Errors) != 1 {
		return "no problem: " + a.body
	}
	return problem.Errors[0].Code
}

// do sends a request with the token as the password; headers come in pairs.
func (w *world) do(token, method, path string, body io.Reader, header ...string) answer {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+path, body)
	must(w.t, err)
	if token != "" {
		r.SetBasicAuth("anybody", token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return w.send(r)
}

func (w *world) send(r *http.Request) answer {
	w.t.Helper()
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(r)
	must(w.t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		w.t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(text)}
}

// want checks status and code of an answer; code "" is for no problem.
func (w *world) want(what string, got answer, status int, code string) {
	w.t.Helper()
	if got.status != status || code != "" && got.code() != code {
		w.t.Errorf("%s: got %d %s, want %d %s", what, got.status, got.body, status, code)
	}
}

// push puts a blob into an image and returns its digest.
func (w *world) push(token, image, content string) string {
	w.t.Helper()
	digest := string(tidelock.DigestOf([]byte(content)))
	got := w.do(token, "POST", "/v2/"+image+"/blobs/uploads/?digest="+digest, strings.NewReader(content))
	w.want("push a blob to "+image, got, http.StatusCreated, "")
	return digest
}

// manifest is one of an image, with a config and layers that are blobs.
func manifest(layers ...string) []byte {
	descriptor := func(mediaType, content string) map[string]any {
		return map[string]any{"mediaType": mediaType, "digest": tidelock.DigestOf([]byte(content)), "size": len(content)}
	}
	list := []any{}
	for _, l := range layers {
		list = append(list, descriptor(tidelock.MediaTypeFluxContent, l))
	}
	text, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": tidelock.MediaTypeManifest,
		"config": descriptor(tidelock.MediaTypeFluxConfig, "{}"), "layers": list,
	})
	if err != nil {
		panic(err)
	}
	return text
}

// pushArtifact pushes an artifact with its blobs under a tag or digest.
func (w *world) pushArtifact(token, image, reference string, layers ...string) tidelock.Digest {
	w.t.Helper()
	for _, blob := range append([]string{"{}"}, layers...) {
		w.push(token, image, blob)
	}
	body := manifest(layers...)
	got := w.do(token, "PUT", "/v2/"+image+"/manifests/"+reference, bytes.NewReader(body), "Content-Type", tidelock.MediaTypeManifest)
	w.want(fmt.Sprintf("push %s:%s", image, reference), got, http.StatusCreated, "")
	return tidelock.DigestOf(body)
}

// bearer asks for a token with scopes as clients do.
func (w *world) bearer(token string, scopes ...string) string {
	w.t.Helper()
	query := url.Values{"service": {"container_registry"}, "scope": scopes}
	got := w.do(token, "GET", "/jwt/auth?"+query.Encode(), nil)
	w.want("get a token", got, http.StatusOK, "")
	var given struct{ Token string }
	must(w.t, json.Unmarshal([]byte(got.body), &given))
	return given.Token
}
