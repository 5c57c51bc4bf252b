package server_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"tidelock.dev"
	"tidelock.dev/internal/server"
	"tidelock.dev/internal/servertest"
)

// A registryWorld is a server with a private project, people around it, and an
// artifact.
type registryWorld struct {
	*servertest.Server
	t       *testing.T
	site    *servertest.Project
	image   string
	root    *servertest.OCI
	digest  tidelock.Digest // of latest and 1.0.0
	layer   []byte
	members map[tidelock.AccessLevel]servertest.User
}

func newRegistryWorld(t *testing.T, options ...servertest.Option) *registryWorld {
	t.Helper()
	w := &registryWorld{Server: servertest.Start(t, options...), t: t, image: "team/site", layer: []byte("what is in the layer"), members: map[tidelock.AccessLevel]servertest.User{}}
	w.site = w.Project("team/site", tidelock.Private)
	w.root = w.OCI("root", w.Token)
	for level, name := range map[tidelock.AccessLevel]string{
		tidelock.Guest: "guest", tidelock.Reporter: "reporter", tidelock.Developer: "developer", tidelock.Maintainer: "maintainer",
	} {
		w.members[level] = w.User(name)
		w.site.Member(w.members[level], level)
	}
	w.digest = w.push(w.root, w.image, "latest", w.layer)
	w.push(w.root, w.image, "1.0.0", w.layer)
	return w
}

func (w *registryWorld) as(level tidelock.AccessLevel) *servertest.OCI {
	return w.OCI(w.members[level].Username, w.members[level].Token)
}

func (w *registryWorld) push(c *servertest.OCI, image, tag string, layer []byte) tidelock.Digest {
	w.t.Helper()
	digest, _, err := c.Push(w.t.Context(), image, tag, layer)
	if err != nil {
		w.t.Fatalf("push %s:%s: %v", image, tag, err)
	}
	return digest
}

func (w *registryWorld) do(c *servertest.OCI, method, path string, body []byte, header ...string) servertest.Response {
	w.t.Helper()
	var in io.Reader
	if body != nil {
		in = bytes.NewReader(body)
	}
	answer, err := c.Do(w.t.Context(), method, path, in, header...)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer
}

// wantRefused fails unless an answer is one of the client's errors, with a
// code of the specification.
func (w *registryWorld) wantRefused(what string, got servertest.Response, code string) {
	w.t.Helper()
	var body struct {
		Errors []struct{ Code, Message string }
	}
	switch {
	case got.Status < 400 || got.Status >= 500:
		w.t.Errorf("%s: got %d %.500s, want it refused", what, got.Status, got.Body)
	case json.Unmarshal([]byte(got.Body), &body) != nil || len(body.Errors) == 0 || body.Errors[0].Message == "":
		w.t.Errorf("%s: got %d %.500q, which says no reason", what, got.Status, got.Body)
	case code != "" && body.Errors[0].Code != code:
		w.t.Errorf("%s: got %d %.500q, want %s", what, got.Status, got.Body, code)
	}
}

// wantAt fails unless a tag points at a digest; "" is for one that is not
// there.
func (w *registryWorld) wantAt(image, tag string, want tidelock.Digest) {
	w.t.Helper()
	got := w.do(w.root, http.MethodHead, image+"/manifests/"+tag, nil)
	if at := tidelock.Digest(got.Header.Get("Docker-Content-Digest")); at != want || (want == "") != (got.Status == http.StatusNotFound) {
		w.t.Errorf("%s:%s: got %d, at %q, want %q", image, tag, got.Status, at, want)
	}
}

// files is how many bytes lie in the registry's folder.
func (w *registryWorld) stored() (total int64) {
	w.t.Helper()
	err := filepath.WalkDir(filepath.Join(w.DataDir, "registry"), func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return total
}

// A version that was pushed stays what it was, whoever tries and however many.
func TestH13ImmutableTag(t *testing.T) {
	w := newRegistryWorld(t)
	if _, answer, err := w.root.Push(t.Context(), w.image, "1.0.0", []byte("something else")); err == nil {
		t.Error("a version was moved")
	} else {
		w.wantRefused("move a version", answer, "DENIED")
	}
	w.wantAt(w.image, "1.0.0", w.digest)
	w.push(w.root, w.image, "1.0.0", w.layer) // the same again is no move
	w.wantRefused("delete a version", w.do(w.root, http.MethodDelete, w.image+"/manifests/1.0.0", nil), "DENIED")
	w.wantRefused("delete what a version points at", w.do(w.root, http.MethodDelete, w.image+"/manifests/"+string(w.digest), nil), "DENIED")
	w.wantAt(w.image, "1.0.0", w.digest)

	var (
		racing  sync.WaitGroup
		mu      sync.Mutex
		winners []tidelock.Digest
	)
	for i := range 50 {
		racing.Go(func() {
			digest, answer, err := w.root.Push(t.Context(), w.image, "2.0.0", fmt.Appendf(nil, "content %d", i))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				winners = append(winners, digest)
				return
			}
			w.wantRefused("lose the race for a version", answer, "DENIED")
		})
	}
	racing.Wait()
	if len(winners) != 1 {
		t.Fatalf("%d of 50 pushers made the version, want 1", len(winners))
	}
	w.wantAt(w.image, "2.0.0", winners[0])
}

func TestH13BadManifests(t *testing.T) {
	w := newRegistryWorld(t)
	absent := []byte("a layer that nobody pushed")
	w.wantRefused("a layer that is missing", w.put("bad", tidelock.MediaTypeManifest, servertest.ManifestOf([]byte("{}"), absent)), "MANIFEST_BLOB_UNKNOWN")
	other := w.Project("team/other", tidelock.Private)
	w.push(w.root, other.Path, "latest", absent)
	w.wantRefused("a layer that another project has", w.put("bad", tidelock.MediaTypeManifest, servertest.ManifestOf([]byte("{}"), absent)), "MANIFEST_BLOB_UNKNOWN")
	before := w.stored()

	index := func(digest tidelock.Digest, size int) []byte {
		return fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
			tidelock.MediaTypeIndex, tidelock.MediaTypeManifest, digest, size)
	}
	w.wantRefused("an index of what is missing", w.put("bad", tidelock.MediaTypeIndex, index(tidelock.DigestOf(absent), 7)), "MANIFEST_BLOB_UNKNOWN")
	w.wantRefused("an index of a blob", w.put("bad", tidelock.MediaTypeIndex, index(tidelock.DigestOf(w.layer), len(w.layer))), "MANIFEST_BLOB_UNKNOWN")
	body := servertest.ManifestOf([]byte("{}"), w.layer)
	w.wantRefused("a size that is not the blob's", w.put("bad", tidelock.MediaTypeManifest,
		bytes.Replace(body, fmt.Appendf(nil, `"size":%d`, len(w.layer)), []byte(`"size":1`), 1)), "MANIFEST_INVALID")
	w.wantRefused("another digest than the body's", w.put(string(tidelock.DigestOf(absent)), tidelock.MediaTypeManifest, body), "DIGEST_INVALID")
	w.wantRefused("an image sent as an index", w.put("bad", tidelock.MediaTypeIndex, body), "MANIFEST_INVALID")
	w.wantRefused("an image with manifests", w.put("bad", tidelock.MediaTypeManifest,
		bytes.Replace(body, []byte(`"layers"`), []byte(`"manifests":[],"layers"`), 1)), "MANIFEST_INVALID")
	w.wantRefused("layers twice", w.put("bad", tidelock.MediaTypeManifest,
		bytes.Replace(body, []byte(`"layers"`), []byte(`"Layers":[],"layers"`), 1)), "MANIFEST_INVALID")
	w.wantRefused("much too deep", w.put("bad", tidelock.MediaTypeManifest,
		append(append([]byte(`{"schemaVersion":2,"x":`), bytes.Repeat([]byte(`[`), 1<<20)...), bytes.Repeat([]byte(`]`), 1<<20)...)), "MANIFEST_INVALID")
	w.wantRefused("5 MiB", w.put("bad", tidelock.MediaTypeManifest, append(body, bytes.Repeat([]byte(" "), 5<<20)...)), "")
	w.wantRefused("no type", w.put("bad", "", body[:len(body)-1]), "")
	for _, tag := range []string{".hidden", "-flag", "a%20b", "a%0d%0aX-Evil:%201", strings.Repeat("a", 129), "a%00", "ä", "a+b"} {
		w.wantRefused("the tag "+tag, w.put(tag, tidelock.MediaTypeManifest, body), "")
	}
	w.wantAt(w.image, "bad", "")
	if after := w.stored(); after != before {
		t.Errorf("what was refused left %d bytes", after-before)
	}
}

func (w *registryWorld) put(reference, mediaType string, body []byte) servertest.Response {
	w.t.Helper()
	answer, err := w.root.PutManifest(w.t.Context(), w.image, reference, mediaType, body)
	if err != nil {
		w.t.Fatalf("push %q: %v", reference, err)
	}
	return answer
}

func TestH13WrongDigest(t *testing.T) {
	w := newRegistryWorld(t)
	before := w.stored()
	content := []byte("not what the digest says")
	for _, digest := range []string{
		string(tidelock.DigestOf([]byte("other"))), "sha256:abc", "md5:" + strings.Repeat("0", 32), "sha256:../../../../etc/passwd", "",
		"SHA256:" + strings.Repeat("0", 64), "sha512:" + strings.Repeat("0", 128),
	} {
		started := w.do(w.root, http.MethodPost, w.image+"/blobs/uploads/", nil)
		location, err := w.root.Location(started)
		if err != nil {
			t.Fatal(err)
		}
		query := location.Query()
		query.Set("digest", digest)
		location.RawQuery = query.Encode()
		got := w.do(w.root, http.MethodPut, location.String(), content, "Content-Type", "application/octet-stream")
		w.wantRefused(fmt.Sprintf("the digest %q", digest), got, "DIGEST_INVALID")
		w.do(w.root, http.MethodDelete, location.String(), nil) // some refusals leave the upload as it was
	}
	if got := w.do(w.root, http.MethodHead, w.image+"/blobs/"+string(tidelock.DigestOf(content)), nil); got.Status != http.StatusNotFound {
		t.Errorf("what was refused is there: %d", got.Status)
	}
	if after := w.stored(); after != before {
		t.Errorf("what was refused left %d bytes", after-before)
	}
}

// What somebody may not see gives the same answer as what is not there, by
// every way to it.
func TestH13AcrossProjects(t *testing.T) {
	w := newRegistryWorld(t)
	stranger := w.User("stranger")
	theirs := w.OCI("stranger", stranger.Token)
	own := w.Project("theirs/own", tidelock.Private)
	own.Member(stranger, tidelock.Maintainer)
	layer := string(tidelock.DigestOf(w.layer))

	for _, who := range []*servertest.OCI{theirs, w.OCI("", "")} {
		for _, path := range []string{"/blobs/" + layer, "/manifests/latest", "/manifests/" + string(w.digest), "/tags/list", "/referrers/" + string(w.digest)} {
			for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodDelete} {
				hidden := w.do(who, method, w.image+path, nil)
				missing := w.do(who, method, "team/nothing"+path, nil)
				if hidden.Status != missing.Status || strings.ReplaceAll(hidden.Body, w.image, "team/nothing") != missing.Body {
					t.Errorf("%s %s as %q: hidden is %d %q, missing %d %q", method, path, who.Username, hidden.Status, hidden.Body, missing.Status, missing.Body)
				}
				if hidden.Status < 400 || hidden.Status >= 500 {
					t.Errorf("%s %s as %q: got %d", method, path, who.Username, hidden.Status)
				}
			}
		}
	}
	// Content that is there in another project is not content of this one.
	if got := w.do(theirs, http.MethodGet, own.Path+"/blobs/"+layer, nil); got.Status != http.StatusNotFound {
		t.Errorf("a blob of another project: got %d", got.Status)
	}
	// With a password and not a token, so that no scope stands in the way.
	mount := func(who *servertest.OCI, from string) servertest.Response {
		basic := base64.StdEncoding.EncodeToString([]byte(who.Username + ":" + who.Password))
		return w.do(who, http.MethodPost, own.Path+"/blobs/uploads/?mount="+layer+"&from="+from, nil, "Authorization", "Basic "+basic)
	}
	for _, from := range []string{w.image, "team/nothing", "", "../site", url.QueryEscape(w.image + "/../site")} {
		if got := mount(theirs, from); got.Status == http.StatusCreated {
			t.Errorf("a blob was mounted from %q by somebody who may not see it", from)
		}
	}
	if got := w.do(theirs, http.MethodHead, own.Path+"/blobs/"+layer, nil); got.Status != http.StatusNotFound {
		t.Errorf("a mount that was refused made the blob visible: %d", got.Status)
	}
	if got := mount(w.root, w.image); got.Status != http.StatusCreated {
		t.Errorf("the administrator may mount: got %d %s", got.Status, got.Body)
	}
	// An upload is its beginner's, in the image that it was begun for.
	started := w.do(w.root, http.MethodPost, w.image+"/blobs/uploads/", nil)
	location, err := w.root.Location(started)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := strings.Replace(location.String(), w.image, own.Path, 1)
	if got := w.do(theirs, http.MethodPatch, elsewhere, []byte("x")); got.Status < 400 {
		t.Errorf("somebody else's upload went on: %d", got.Status)
	}
}

// Who may do less than an act needs does not get it done by another way.
func TestH13Bypass(t *testing.T) {
	w := newRegistryWorld(t)
	extra := w.push(w.root, w.image, "extra", []byte("extra"))
	username, readOnly := w.site.DeployToken(tidelock.ScopeReadRegistry)
	reader := w.OCI(username, readOnly)
	narrow := w.members[tidelock.Maintainer]
	for what, who := range map[string]*servertest.OCI{
		"a guest": w.as(tidelock.Guest), "a reporter": w.as(tidelock.Reporter), "a deploy token that reads": reader,
		"a maintainer's token that reads": w.OCI(narrow.Username, w.PersonalToken(narrow.ID, tidelock.ScopeReadRegistry)),
		"a maintainer's token for code":   w.OCI(narrow.Username, w.PersonalToken(narrow.ID, tidelock.ScopeWriteRepository)),
		"nobody":                          w.OCI("", ""),
	} {
		for _, act := range []struct{ method, path string }{
			{http.MethodDelete, "/manifests/extra"}, {http.MethodDelete, "/manifests/" + string(extra)},
			{http.MethodDelete, "/blobs/" + string(tidelock.DigestOf([]byte("extra")))},
			{http.MethodPost, "/blobs/uploads/"},
			{http.MethodPost, "/blobs/uploads/?mount=" + string(tidelock.DigestOf(w.layer)) + "&from=" + w.image},
		} {
			w.wantRefused(what+": "+act.method+" "+act.path, w.do(who, act.method, w.image+act.path, nil), "")
		}
		answer, err := who.PutManifest(t.Context(), w.image, "latest", tidelock.MediaTypeManifest, servertest.ManifestOf([]byte("{}"), []byte("extra")))
		if err != nil {
			t.Fatal(err)
		}
		w.wantRefused(what+": push", answer, "")
	}
	w.wantAt(w.image, "latest", w.digest)
	w.wantAt(w.image, "extra", extra)
}

// Tokens that the server did not make, or not for this, are nobody's.
func TestH13ForgedTokens(t *testing.T) {
	w := newRegistryWorld(t)
	given := w.jwt(w.as(tidelock.Reporter), "pull")
	if got := w.with(given, http.MethodGet, w.image+"/manifests/latest"); got.Status != http.StatusOK {
		t.Fatalf("the true token: got %d %s", got.Status, got.Body)
	}
	var claims jwt.MapClaims
	parsed, _, err := jwt.NewParser().ParseUnverified(given, &claims)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	jwk := map[string]any{"kty": "EC", "crv": "P-256",
		"x": encode(key.X.FillBytes(make([]byte, 32))), "y": encode(key.Y.FillBytes(make([]byte, 32)))}
	sign := func(method jwt.SigningMethod, key any, header map[string]any, change map[string]any) string {
		all := maps.Clone(claims)
		maps.Copy(all, change)
		token := jwt.NewWithClaims(method, all)
		for _, name := range []string{"kid", "typ"} {
			if v, ok := parsed.Header[name]; ok {
				token.Header[name] = v
			}
		}
		maps.Copy(token.Header, header)
		signed, err := token.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	parts := strings.Split(given, ".")
	later := map[string]any{"exp": time.Now().Add(24 * time.Hour).Unix()}
	for name, token := range map[string]string{
		"no algorithm":                 sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil, nil),
		"no algorithm, in capitals":    encode([]byte(`{"alg":"NONE","typ":"JWT"}`)) + "." + parts[1] + ".",
		"no signature":                 parts[0] + "." + parts[1] + ".",
		"the first half":               parts[0] + "." + parts[1],
		"an empty key":                 sign(jwt.SigningMethodHS256, []byte{}, nil, nil),
		"a guessed key":                sign(jwt.SigningMethodHS256, []byte("secret"), nil, nil),
		"another key":                  sign(jwt.SigningMethodES256, key, nil, nil),
		"another key, which it brings": sign(jwt.SigningMethodES256, key, map[string]any{"jwk": jwk}, nil),
		"a key from elsewhere":         sign(jwt.SigningMethodES256, key, map[string]any{"jku": "https://evil.example/keys", "x5u": "https://evil.example/cert"}, nil),
		"a certificate that it brings": sign(jwt.SigningMethodES256, key, map[string]any{"x5c": []string{"MIIB"}}, nil),
		"a key that is a file":         sign(jwt.SigningMethodHS256, []byte{}, map[string]any{"kid": "../../../../dev/null"}, nil),
		"a key by SQL":                 sign(jwt.SigningMethodHS256, []byte("x"), map[string]any{"kid": "' UNION SELECT 'x' --"}, nil),
		"critical extensions":          sign(jwt.SigningMethodHS256, []byte("x"), map[string]any{"crit": []string{"b64"}, "b64": false}, nil),
		"other claims, same signature": parts[0] + "." + encode(changed(t, claims, later)) + "." + parts[2],
		"another algorithm's name":     encode([]byte(`{"alg":"HS512","typ":"JWT"}`)) + "." + parts[1] + "." + parts[2],
		"many dots":                    strings.Repeat(".", 100_000)[:50_000],
		"a deep header":                encode([]byte(strings.Repeat(`{"a":`, 5000)+"1"+strings.Repeat("}", 5000))) + "." + parts[1] + "." + parts[2],
		"nothing":                      "",
		"a word":                       "nothing",
	} {
		got := w.with(token, http.MethodGet, w.image+"/manifests/latest")
		if got.Status != http.StatusUnauthorized && !(len(token) > 10_000 && got.Status == http.StatusRequestHeaderFieldsTooLarge) {
			t.Errorf("%s: got %d %.200s, want 401", name, got.Status, got.Body)
		}
	}
	// It is a token of the registry alone.
	for _, path := range []string{"/api/v4/user", "/api/v4/projects"} {
		if got := w.Do(http.MethodGet, path, "", nil, "Authorization", "Bearer "+given); got.Status != http.StatusUnauthorized {
			t.Errorf("%s with a token of the registry: got %d", path, got.Status)
		}
	}
}

func changed(t *testing.T, claims jwt.MapClaims, change map[string]any) []byte {
	t.Helper()
	all := maps.Clone(claims)
	maps.Copy(all, change)
	body, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// jwt gets a token for the world's image.
func (w *registryWorld) jwt(c *servertest.OCI, actions string) string {
	w.t.Helper()
	challenge := w.with("", http.MethodGet, w.image+"/manifests/latest").Header.Get("WWW-Authenticate")
	if i := strings.Index(challenge, `,scope=`); i >= 0 {
		challenge = challenge[:i]
	}
	token, refused, err := c.Token(w.t.Context(), challenge+fmt.Sprintf(`,scope="repository:%s:%s"`, w.image, actions))
	if err != nil || token == "" {
		w.t.Fatalf("ask for a token: %d %s, %v", refused.Status, refused.Body, err)
	}
	return token
}

// with makes a request with just this token.
func (w *registryWorld) with(token, method, path string) servertest.Response {
	w.t.Helper()
	var header []string
	if token != "" {
		header = []string{"Authorization", "Bearer " + token}
	}
	return w.Do(method, "/v2/"+path, "", nil, header...)
}

// A token of the registry says who asked; what that one may do is asked with
// every request.
func TestH13Revocation(t *testing.T) {
	w := newRegistryWorld(t)
	gone := func(what, token, method, path string) {
		t.Helper()
		if got := w.with(token, method, path); got.Status != http.StatusUnauthorized && got.Status != http.StatusForbidden && got.Status != http.StatusNotFound {
			t.Errorf("%s: got %d %.200s", what, got.Status, got.Body)
		}
	}
	works := func(what, token string) {
		t.Helper()
		if got := w.with(token, http.MethodGet, w.image+"/manifests/latest"); got.Status != http.StatusOK {
			t.Fatalf("%s: got %d %.200s", what, got.Status, got.Body)
		}
	}
	manifest := w.image + "/manifests/latest"

	reporter := w.members[tidelock.Reporter]
	member := w.jwt(w.as(tidelock.Reporter), "pull")
	works("a member", member)
	w.Call(w.Token, http.MethodDelete, fmt.Sprintf("projects/%d/members/%d", w.site.ID, reporter.ID), nil, nil)
	gone("who is no member any more", member, http.MethodGet, manifest)

	developer := w.members[tidelock.Developer]
	secret := w.PersonalToken(developer.ID, tidelock.ScopeAPI)
	personal := w.jwt(w.OCI(developer.Username, secret), "pull,push")
	works("a personal token", personal)
	w.Call(secret, http.MethodDelete, "personal_access_tokens/self", nil, nil)
	gone("a personal token that was revoked", personal, http.MethodGet, manifest)
	gone("a personal token that was revoked, pushing", personal, http.MethodPost, w.image+"/blobs/uploads/")

	username, password := w.site.DeployToken(tidelock.ScopeReadRegistry)
	deploy := w.jwt(w.OCI(username, password), "pull")
	works("a deploy token", deploy)
	var tokens []struct{ ID int64 }
	w.Call(w.Token, http.MethodGet, fmt.Sprintf("projects/%d/deploy_tokens", w.site.ID), nil, &tokens)
	for _, token := range tokens {
		w.Call(w.Token, http.MethodDelete, fmt.Sprintf("projects/%d/deploy_tokens/%d", w.site.ID, token.ID), nil, nil)
	}
	gone("a deploy token that was revoked", deploy, http.MethodGet, manifest)

	blocked := w.jwt(w.as(tidelock.Developer), "pull")
	works("a developer", blocked)
	w.Call(w.Token, http.MethodPost, fmt.Sprintf("users/%d/block", developer.ID), nil, nil)
	gone("who is blocked", blocked, http.MethodGet, manifest)

	lowered := w.jwt(w.as(tidelock.Maintainer), "pull,push,delete")
	works("a maintainer", lowered)
	w.Call(w.Token, http.MethodPut, fmt.Sprintf("projects/%d/members/%d", w.site.ID, w.members[tidelock.Maintainer].ID), map[string]any{"access_level": 20}, nil)
	works("a reporter", lowered)
	gone("who was a maintainer, pushing", lowered, http.MethodPost, w.image+"/blobs/uploads/")
	gone("who was a maintainer, deleting", lowered, http.MethodDelete, manifest)

	// A token that was asked for pulls does not push.
	if got := w.with(w.jwt(w.root, "pull"), http.MethodPost, w.image+"/blobs/uploads/"); got.Status != http.StatusUnauthorized && got.Status != http.StatusForbidden {
		t.Errorf("a token for pulls: began an upload with %d", got.Status)
	}
}

// Lists are answered in pages, whatever is asked for.
func TestH13Exhaustion(t *testing.T) {
	w := newRegistryWorld(t)
	for _, query := range []string{
		"n=1000000000", "n=99999999999999999999999", "n=-1", "n=0", "n=x", "n=1&n=2", "n=", "last=" + strings.Repeat("x", 30_000),
		"last=%00", "last=%ff", "last=" + url.QueryEscape("'; DROP TABLE image_tags; --"), "n=1&last=../../", "n=1%0d%0aX-Evil:1",
	} {
		for _, path := range []string{"_catalog", w.image + "/tags/list", w.image + "/referrers/" + string(w.digest)} {
			got := w.do(w.root, http.MethodGet, path+"?"+query, nil)
			if got.Status >= 500 || len(got.Body) > 1<<20 || got.Header.Get("X-Evil") != "" {
				t.Errorf("%s?%.60s: got %d and %d bytes", path, query, got.Status, len(got.Body))
			}
		}
	}
	for _, path := range []string{
		"../v2/", "team%2fsite/tags/list", "team/../../site/tags/list", "%2e%2e/%2e%2e/etc/passwd", "TEAM/SITE/tags/list/",
		strings.Repeat("a/", 3000) + "tags/list", strings.Repeat("a", 9000) + "/tags/list", "team/site%00/tags/list", "team/site\x7f/tags/list",
		"team//site/tags/list", "team/site/manifests/", "team/site/manifests/sha256:", "team/site/blobs/sha256:..%2f..%2f", "team/site/blobs/uploads/..%2f..",
		"team/site/blobs/uploads/" + strings.Repeat("x", 5000), "team/site%0d%0aX-Evil:%201/tags/list", "_uploads/x/tags/list", "p1/tags/list",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete, "PROPFIND"} {
			r, err := http.NewRequestWithContext(t.Context(), method, w.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.URL.Opaque = "//" + r.URL.Host + "/v2/" + strings.ReplaceAll(path, "\x7f", "%7f")
			r.SetBasicAuth("root", w.Token)
			got, err := w.Client().Do(r)
			if err != nil {
				t.Fatalf("%s %.60s: %v", method, path, err)
			}
			got.Body.Close()
			if got.StatusCode >= 500 && got.StatusCode != http.StatusNotImplemented || got.Header.Get("X-Evil") != "" {
				t.Errorf("%s %.60q: got %d %v", method, path, got.StatusCode, got.Header)
			}
		}
	}
}

// No credential, be it good, bad or made on the way, is in the log.
func TestH13SecretsAreNotLogged(t *testing.T) {
	var log lockedLog
	w := newRegistryWorld(t, func(c *server.Config) {
		c.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	token := w.jwt(w.as(tidelock.Reporter), "pull")
	w.with(token, http.MethodGet, w.image+"/manifests/latest")
	w.with(token+"x", http.MethodGet, w.image+"/manifests/latest")
	const wrong = "glpat-wrong-but-nearly-right"
	basic := base64.StdEncoding.EncodeToString([]byte("reporter:" + wrong))
	for _, path := range []string{"/v2/", "/v2/" + w.image + "/manifests/latest", "/jwt/auth?service=x&scope=repository:" + w.image + ":pull"} {
		w.Do(http.MethodGet, path, "", nil, "Authorization", "Basic "+basic)
		w.Do(http.MethodGet, path, "", nil, "Authorization", "Bearer "+wrong)
		w.Do(http.MethodGet, path, wrong, nil)
	}
	w.Do(http.MethodGet, "/jwt/auth?account=reporter&password="+wrong+"&service=x", "", nil)
	w.Do(http.MethodPost, "/jwt/auth", "", strings.NewReader("grant_type=password&username=reporter&password="+wrong+"&service=x"), "Content-Type", "application/x-www-form-urlencoded")
	username, deploy := w.site.DeployToken(tidelock.ScopeReadRegistry)
	w.do(w.OCI(username, deploy), http.MethodGet, w.image+"/manifests/latest", nil)

	text := log.String()
	if !strings.Contains(text, w.image) {
		t.Error("the log says nothing of the registry; this tests nothing")
	}
	secrets := map[string]string{
		"the administrator's token": w.Token, "a deploy token": deploy, "a wrong password": wrong, "a header": basic,
		"a token of the registry": token, "its signature": token[strings.LastIndexByte(token, '.')+1:],
	}
	for _, user := range w.members {
		secrets["the token of "+user.Username] = user.Token
	}
	for what, secret := range secrets {
		for line := range strings.Lines(text) {
			if strings.Contains(line, secret) {
				t.Errorf("%s is in the log: %s", what, strings.ReplaceAll(line, secret, "<here>"))
				break
			}
		}
	}
}

type lockedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// What does not fit into a project's quota is refused as soon as that is known,
// is not kept, and takes no room from what does fit.
func TestH13Quota(t *testing.T) {
	const quota = 1 << 20
	w := newRegistryWorld(t, func(c *server.Config) { c.RegistryQuota = quota })
	w.push(w.root, w.image, "warm", []byte("so that there is a token for pushes"))
	before := w.stored()
	const huge = 1 << 30
	digest := string(tidelock.DigestOf([]byte("nobody reads so far")))
	for name, send := range map[string]func(*zeros, string) (servertest.Response, error){
		"one request": func(body *zeros, _ string) (servertest.Response, error) {
			return w.root.Do(t.Context(), http.MethodPost, w.image+"/blobs/uploads/?digest="+digest, io.NopCloser(body), "Content-Type", "application/octet-stream")
		},
		"a PATCH": func(body *zeros, location string) (servertest.Response, error) {
			return w.root.Do(t.Context(), http.MethodPatch, location, io.NopCloser(body), "Content-Type", "application/octet-stream")
		},
		"a PUT": func(body *zeros, location string) (servertest.Response, error) {
			return w.root.Do(t.Context(), http.MethodPut, location+"?digest="+digest, io.NopCloser(body), "Content-Type", "application/octet-stream")
		},
		"a PATCH of a known length": func(body *zeros, location string) (servertest.Response, error) {
			return w.sized(http.MethodPatch, location, body)
		},
		"a PUT of a known length": func(body *zeros, location string) (servertest.Response, error) {
			return w.sized(http.MethodPut, location+"?digest="+digest, body)
		},
	} {
		started := w.do(w.root, http.MethodPost, w.image+"/blobs/uploads/", nil)
		location, err := w.root.Location(started)
		if err != nil {
			t.Fatal(err)
		}
		body := &zeros{left: huge}
		answer, err := send(body, location.String())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		w.wantRefused(name, answer, "DENIED")
		if body.taken > 64*quota {
			t.Errorf("%s: %d bytes were taken before it was refused", name, body.taken)
		}
		if after := w.stored(); after != before {
			t.Errorf("%s: left %d bytes on the disk", name, after-before)
		}
	}

	// Many at once that fit one by one.
	var pushing sync.WaitGroup
	var mu sync.Mutex
	kept := 0
	for i := range 8 {
		pushing.Go(func() {
			content := bytes.Repeat([]byte{byte(i)}, quota*2/5)
			_, err := w.root.PutBlob(t.Context(), w.image, content)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				kept++
			}
		})
	}
	pushing.Wait()
	if kept != 2 {
		t.Errorf("%d layers of 40 %% of the quota were kept, want 2", kept)
	}
	w.wantAt(w.image, "latest", w.digest)
}

// What an operator watches of the registry is counted.
func TestRegistryMetrics(t *testing.T) {
	w := newRegistryWorld(t, func(c *server.Config) { c.RegistryQuota = 1 << 20 })
	w.do(w.root, http.MethodGet, w.image+"/blobs/"+string(tidelock.DigestOf(w.layer)), nil)
	if _, err := w.root.PutBlob(t.Context(), w.image, make([]byte, 2<<20)); err == nil {
		t.Error("a layer over the quota was taken")
	}
	text := w.Do(http.MethodGet, "/-/metrics", w.Token, nil).Body
	for _, want := range []string{
		"tidelock_registry_pushes_total 2", `tidelock_registry_refused_total{code="QUOTA"} 1`,
		fmt.Sprintf("tidelock_registry_sent_bytes_total %d", len(w.layer)),
		"tidelock_registry_received_bytes_total", "tidelock_registry_freed_bytes_total", "tidelock_registry_collected_artifacts_total",
	} {
		if !strings.Contains(text, "\n"+want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
}

// sized sends a body and says how long it is.
func (w *registryWorld) sized(method, location string, body *zeros) (servertest.Response, error) {
	r, err := http.NewRequestWithContext(w.t.Context(), method, location, body)
	if err != nil {
		return servertest.Response{}, err
	}
	r.ContentLength = body.left
	r.SetBasicAuth(w.root.Username, w.root.Password)
	r.Header.Set("Content-Type", "application/octet-stream")
	answer, err := w.Client().Do(r)
	if err != nil {
		return servertest.Response{}, err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return servertest.Response{Status: answer.StatusCode, Header: answer.Header, Body: string(text)}, err
}

// A list of what is attached to an artifact comes in pages, which together hold
// everything once.
func TestH13ManyReferrers(t *testing.T) {
	w := newRegistryWorld(t)
	n, filler := 60, strings.Repeat("x", 100<<10)
	if os.Getenv("TIDELOCK_SOAK") != "" {
		n, filler = 10_000, "x"
	}
	subject := servertest.ManifestOf([]byte("{}"), w.layer)
	want := map[string]bool{}
	for i := range n {
		body := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":"application/vnd.test","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},"layers":[],`+
			`"subject":{"mediaType":%q,"digest":%q,"size":%d},"annotations":{"n":"%d","filler":%q}}`,
			tidelock.MediaTypeManifest, tidelock.DigestOf([]byte("{}")), tidelock.MediaTypeManifest, w.digest, len(subject), i, filler)
		digest := string(tidelock.DigestOf(body))
		if got := w.put(digest, tidelock.MediaTypeManifest, body); got.Status != http.StatusCreated {
			t.Fatalf("attach %d: got %d %.500s", i, got.Status, got.Body)
		}
		want[digest] = true
	}
	pages := 0
	for path := w.image + "/referrers/" + string(w.digest) + "?n=1000000"; path != ""; pages++ {
		got := w.do(w.root, http.MethodGet, path, nil)
		var index struct {
			Manifests []struct{ Digest string }
		}
		if got.Status != http.StatusOK || json.Unmarshal([]byte(got.Body), &index) != nil || len(index.Manifests) == 0 {
			t.Fatalf("page %d: got %d and %d bytes", pages, got.Status, len(got.Body))
		}
		if len(got.Body) > 4<<20 {
			t.Errorf("page %d has %d bytes", pages, len(got.Body))
		}
		for _, m := range index.Manifests {
			if !want[m.Digest] {
				t.Fatalf("page %d has %s, which is not attached or was on an earlier page", pages, m.Digest)
			}
			delete(want, m.Digest)
		}
		next, _, _ := strings.Cut(strings.TrimPrefix(got.Header.Get("Link"), "<"), ">")
		path = next
	}
	if len(want) > 0 {
		t.Errorf("%d of %d are on no page", len(want), n)
	}
	if n < 10_000 && pages < 2 {
		t.Errorf("%d MiB came in one page", n*len(filler)>>20)
	}
}

// zeros is a body that never has to be anywhere. It counts what was taken.
type zeros struct {
	left, taken int64
}

func (z *zeros) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.left)
	clear(p[:n])
	z.left -= n
	z.taken += n
	return int(n), nil
}
