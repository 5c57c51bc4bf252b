package ociserver_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/ociserver"
)

const pullSite = "repository:people/site:pull"

// bearing sends a request with a bearer token.
func (w *world) bearing(token, method, path string) answer {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), method, w.server.URL+path, nil)
	must(w.t, err)
	r.Header.Set("Authorization", "Bearer "+token)
	return w.send(r)
}

func TestTokenEndpoint(t *testing.T) {
	w := newWorld(t, options{})
	_, deploy, err := w.CreateDeployToken(t.Context(), w.root, forge.OnProject(w.site), forge.NewToken{
		Name: "d", Username: "deployer", Scopes: []tidelock.Scope{tidelock.ScopeReadRegistry}})
	must(t, err)
	_, bot, err := w.CreateAccessToken(t.Context(), w.root, forge.OnGroup(w.group), forge.NewToken{
		Name: "b", Scopes: []tidelock.Scope{tidelock.ScopeReadRegistry}, Level: tidelock.Reporter})
	must(t, err)
	agent, err := w.CreateAgent(t.Context(), w.root, w.site, "cluster")
	must(t, err)
	_, agentToken, err := w.CreateAgentToken(t.Context(), w.root, w.site, agent.ID, "t", "")
	must(t, err)
	const path = "/jwt/auth?service=container_registry"
	for _, tt := range []struct {
		name, username, password, method, path string
		status                                 int
	}{
		{"personal token", "x", w.reporter, "GET", path + "&scope=" + pullSite, 200},
		{"group token", "x", bot.Reveal(), "GET", path + "&scope=" + pullSite, 200},
		{"deploy token", "deployer", deploy.Reveal(), "GET", path + "&scope=" + pullSite, 200},
		{"deploy token of another name", "somebody", deploy.Reveal(), "GET", path, 401},
		{"agent", "agent", agentToken.Reveal(), "GET", path + "&scope=" + pullSite, 200},
		{"without a scope", "x", w.reporter, "GET", path, 200},
		{"other parameters", "x", w.reporter, "GET", path + "&account=x&client_id=docker&offline_token=true", 200},
		{"nobody, public", "", "", "GET", path + "&scope=repository:people/open:pull", 200},
		{"nobody, public, push too", "", "", "GET", path + "&scope=repository:people/open:push,pull", 200},
		{"nobody, private", "", "", "GET", path + "&scope=" + pullSite, 403},
		{"nobody, nothing", "", "", "GET", path + "&scope=repository:people/none:pull", 403},
		{"job token", "gitlab-ci-token", "64_abc", "GET", path, 401},
		{"wrong token", "x", "glpat-wrongwrongwrongwrong", "GET", path, 401},
		{"wrong agent", "x", "glagent-wrongwrong", "GET", path, 401},
		{"no user name", "", w.reporter, "GET", path, 401},
		{"password", "root", "hunter2", "GET", path, 401},
		{"POST", "x", w.reporter, "POST", path, 404},
		{"HEAD", "x", w.reporter, "HEAD", path, 404},
		{"another service", "x", w.reporter, "GET", "/jwt/auth?service=dependency_proxy", 404},
		{"two services", "x", w.reporter, "GET", path + "&service=x", 404},
		{"no service", "x", w.reporter, "GET", "/jwt/auth", 404},
		{"too many scopes", "x", w.reporter, "GET", path + strings.Repeat("&scope="+pullSite, 11), 400},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, w.server.URL+tt.path, nil)
		must(t, err)
		if tt.username+tt.password != "" {
			r.SetBasicAuth(tt.username, tt.password)
		}
		got := w.send(r)
		if got.status != tt.status {
			t.Errorf("%s: got %d %s, want %d", tt.name, got.status, got.body, tt.status)
		}
		if got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: a cache may keep the answer: %v", tt.name, got.header)
		}
		if tt.password != "" && strings.Contains(got.body, tt.password) {
			t.Errorf("%s: the answer repeats the credential", tt.name)
		}
		if got.status != http.StatusOK {
			continue
		}
		var given struct {
			Token     string    `json:"token"`
			ExpiresIn int       `json:"expires_in"`
			IssuedAt  time.Time `json:"issued_at"`
		}
		must(t, json.Unmarshal([]byte(got.body), &given))
		if given.Token == "" || given.ExpiresIn != 300 || time.Since(given.IssuedAt) > time.Minute {
			t.Errorf("%s: got %s", tt.name, got.body)
		}
	}
	hidden := w.do("", "GET", path+"&scope="+pullSite, nil)
	missing := w.do("", "GET", path+"&scope=repository:people/none:pull", nil)
	if hidden.body != missing.body {
		t.Errorf("a private project answers %q, a missing one %q", hidden.body, missing.body)
	}
	if got := w.do("", "GET", path+"&scope="+pullSite, nil, "Authorization", "Bearer "+w.bearer(w.reporter, pullSite)); got.status != 401 {
		t.Errorf("a token for a token: got %d", got.status)
	}
}

// A token serves for what it was asked for, as long as who asked may.
func TestTokenScopes(t *testing.T) {
	w := newWorld(t, options{})
	w.pushArtifact(w.developer, "people/site", "latest", "layer")
	w.pushArtifact(w.developer, "people/other", "latest", "layer")
	w.pushArtifact(w.developer, "people/open", "latest", "layer")
	const uploads = "/v2/people/site/blobs/uploads/"
	both := []string{"repository:people/site:pull,push", "repository:people/other:pull"}
	for _, tt := range []struct {
		name, token string
		scopes      []string
		method      string
		path        string
		status      int
	}{
		{"pull", w.developer, []string{pullSite}, "GET", "/v2/people/site/manifests/latest", 200},
		{"the base", w.developer, nil, "GET", "/v2/", 200},
		{"the base, nobody", "", []string{"repository:people/open:pull"}, "GET", "/v2/", 200},
		{"no scope", w.developer, nil, "GET", "/v2/people/site/manifests/latest", 401},
		{"another image", w.developer, []string{pullSite}, "GET", "/v2/people/other/manifests/latest", 401},
		{"an image below", w.developer, []string{pullSite}, "GET", "/v2/people/site/web/manifests/latest", 401},
		{"push with pull", w.developer, []string{pullSite}, "POST", uploads, 401},
		{"push", w.developer, both, "POST", uploads, 202},
		{"the second scope", w.developer, both, "GET", "/v2/people/other/manifests/latest", 200},
		{"scopes with a space", w.developer, []string{strings.Join(both, " ")}, "GET", "/v2/people/other/manifests/latest", 200},
		{"everything", w.developer, []string{"repository:people/site:*"}, "POST", uploads, 202},
		{"asked for more than one may", w.reporter, []string{"repository:people/site:pull,push"}, "GET", "/v2/people/site/manifests/latest", 200},
		{"push without the right", w.reporter, []string{"repository:people/site:pull,push"}, "POST", uploads, 403},
		{"invisible", w.outsider, []string{pullSite}, "GET", "/v2/people/site/manifests/latest", 404},
		{"missing", w.outsider, []string{"repository:people/none:pull"}, "GET", "/v2/people/none/manifests/latest", 404},
		{"nobody, public", "", []string{"repository:people/open:pull"}, "GET", "/v2/people/open/manifests/latest", 200},
		{"nobody, push", "", []string{"repository:people/open:pull,push"}, "POST", "/v2/people/open/blobs/uploads/", 401},
	} {
		got := w.bearing(w.bearer(tt.token, tt.scopes...), tt.method, tt.path)
		if got.status != tt.status {
			t.Errorf("%s: got %d %s, want %d", tt.name, got.status, got.body, tt.status)
		}
		challenge := got.header.Get("Www-Authenticate")
		if (challenge != "") != (tt.status == 401) {
			t.Errorf("%s: status %d with challenge %q", tt.name, got.status, challenge)
		}
		if challenge != "" && (!strings.Contains(challenge, `error="insufficient_scope"`) || !strings.Contains(challenge, `scope="repository:people/`)) {
			t.Errorf("%s: got challenge %s", tt.name, challenge)
		}
	}
}

func TestChallenge(t *testing.T) {
	w := newWorld(t, options{})
	realm := `Bearer realm="` + w.server.URL + `/jwt/auth",service="container_registry"`
	for _, tt := range []struct{ method, path, want string }{
		{"GET", "/v2/", realm},
		{"GET", "/v2", realm},
		{"GET", "/v2/people/site/manifests/latest", realm + `,scope="repository:people/site:pull"`},
		{"GET", "/v2/people/none/manifests/latest", realm + `,scope="repository:people/none:pull"`},
		{"GET", "/v2/none/none/tags/list", realm + `,scope="repository:none/none:pull"`},
		{"POST", "/v2/people/site/blobs/uploads/", realm + `,scope="repository:people/site:pull,push"`},
		{"DELETE", "/v2/people/site/manifests/latest", realm + `,scope="repository:people/site:delete"`},
	} {
		got := w.do("", tt.method, tt.path, nil)
		if got.status != 401 || got.header.Get("Www-Authenticate") != tt.want || got.code() != "UNAUTHORIZED" {
			t.Errorf("%s %s: got %d %s with %s, want %s", tt.method, tt.path, got.status, got.body, got.header.Get("Www-Authenticate"), tt.want)
		}
	}
	// The realm is where the client asked, whatever that is called.
	r, err := http.NewRequestWithContext(t.Context(), "GET", w.server.URL+"/v2/", nil)
	must(t, err)
	r.Host = "forge.localhost:5000"
	if got := w.send(r).header.Get("Www-Authenticate"); !strings.Contains(got, `realm="http://forge.localhost:5000/jwt/auth"`) {
		t.Errorf("got %s", got)
	}
}

// What becomes of a credential counts at once, and not when the token made
// with it expires.
func TestRevokedAtOnce(t *testing.T) {
	w := newWorld(t, options{})
	w.pushArtifact(w.developer, "people/site", "latest", "layer")
	const path = "/v2/people/site/manifests/latest"
	ctx := t.Context()
	agent, err := w.CreateAgent(ctx, w.root, w.site, "cluster")
	must(t, err)
	made, agentSecret, err := w.CreateAgentToken(ctx, w.root, w.site, agent.ID, "t", "")
	must(t, err)
	user, err := w.CreateUser(ctx, w.root, forge.NewUser{Username: "ada"})
	must(t, err)
	_, err = w.SetMember(ctx, w.root, forge.OnGroup(w.group), user.ID, tidelock.Reporter, time.Time{})
	must(t, err)
	token, secret, err := w.CreatePersonalToken(ctx, w.root, user.ID, forge.NewToken{Name: "t", Scopes: []tidelock.Scope{tidelock.ScopeReadRegistry}})
	must(t, err)

	byToken, byAgent := w.bearer(secret.Reveal(), pullSite), w.bearer(agentSecret.Reveal(), pullSite)
	for who, bearer := range map[string]string{"user": byToken, "agent": byAgent} {
		w.want(who, w.bearing(bearer, "GET", path), 200, "")
	}
	must(t, w.RemoveMember(ctx, w.root, forge.OnGroup(w.group), user.ID))
	w.want("no member any more", w.bearing(byToken, "GET", path), 404, "NAME_UNKNOWN")
	must(t, w.RevokePersonalToken(ctx, w.root, token.ID))
	w.want("a revoked token", w.bearing(byToken, "GET", path), 401, "UNAUTHORIZED")
	w.want("the same by Basic", w.do(secret.Reveal(), "GET", path, nil), 401, "UNAUTHORIZED")
	must(t, w.RevokeAgentToken(ctx, w.root, w.site, agent.ID, made.ID))
	w.want("a revoked agent", w.bearing(byAgent, "GET", path), 401, "UNAUTHORIZED")
}

// Tokens that this registry did not make, or not for now, open nothing.
func TestForgedTokens(t *testing.T) {
	w := newWorld(t, options{})
	w.pushArtifact(w.developer, "people/site", "latest", "layer")
	const path = "/v2/people/site/manifests/latest"
	good := w.bearer(w.developer, pullSite)
	w.want("a good token", w.bearing(good, "GET", path), 200, "")

	text, err := os.ReadFile(w.keyFile)
	must(t, err)
	block, _ := pem.Decode(text)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	must(t, err)
	key := parsed.(ed25519.PrivateKey)
	public, theirs, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)

	claims := jwt.MapClaims{}
	_, _, err = jwt.NewParser().ParseUnverified(good, claims)
	must(t, err)
	with := func(changes ...any) jwt.MapClaims {
		changed := maps.Clone(claims)
		for i := 0; i < len(changes); i += 2 {
			if name := changes[i].(string); changes[i+1] == nil {
				delete(changed, name)
			} else {
				changed[name] = changes[i+1]
			}
		}
		return changed
	}
	sign := func(method jwt.SigningMethod, key any, claims jwt.MapClaims, header ...any) string {
		t.Helper()
		token := jwt.NewWithClaims(method, claims)
		for i := 0; i < len(header); i += 2 {
			token.Header[header[i].(string)] = header[i+1]
		}
		signed, err := token.SignedString(key)
		must(t, err)
		return signed
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	jwk := map[string]any{"kty": "OKP", "crv": "Ed25519", "x": base64.RawURLEncoding.EncodeToString(public)}
	now := time.Now().Unix()
	ed := jwt.SigningMethodEdDSA
	w.want("signed anew as it was", w.bearing(sign(ed, key, with()), "GET", path), 200, "")
	head, payload, _ := strings.Cut(good, ".")
	payload, signature, _ := strings.Cut(payload, ".")
	_ = head
	for name, token := range map[string]string{
		"alg none":                    sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, with()),
		"alg none, good signature":    base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + payload + "." + signature,
		"alg NONE":                    base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"NONE"}`)) + "." + payload + ".",
		"HS256 with the public key":   sign(jwt.SigningMethodHS256, []byte(key.Public().(ed25519.PublicKey)), with()),
		"HS256 with the PEM":          sign(jwt.SigningMethodHS256, publicPEM, with()),
		"RS256":                       sign(jwt.SigningMethodRS256, rsaKey, with()),
		"another key":                 sign(ed, theirs, with()),
		"another key, given as jwk":   sign(ed, theirs, with(), "jwk", jwk),
		"another key, by jku":         sign(ed, theirs, with(), "jku", w.server.URL+"/keys"),
		"another key, by x5u":         sign(ed, theirs, with(), "x5u", w.server.URL+"/cert"),
		"another key, by x5c":         sign(ed, theirs, with(), "x5c", []string{base64.StdEncoding.EncodeToString(der)}),
		"another key, by kid":         sign(ed, theirs, with(), "kid", "../../etc/passwd"),
		"our key, with jwk":           sign(ed, key, with(), "jwk", jwk),
		"our key, with kid":           sign(ed, key, with(), "kid", "1' OR '1'='1"),
		"our key, critical extension": sign(ed, key, with(), "crit", []string{"b64"}, "b64", false),
		"expired":                     sign(ed, key, with("exp", now-1)),
		"without an end":              sign(ed, key, with("exp", nil)),
		"not yet valid":               sign(ed, key, with("nbf", now+60)),
		"without a beginning":         sign(ed, key, with("nbf", nil)),
		"made in the future":          sign(ed, key, with("iat", now+60)),
		"another audience":            sign(ed, key, with("aud", "gitlab")),
		"no audience":                 sign(ed, key, with("aud", nil)),
		"another issuer":              sign(ed, key, with("iss", "https://evil.example")),
		"no issuer":                   sign(ed, key, with("iss", nil)),
		"no subject":                  sign(ed, key, with("sub", nil)),
		"another token's id":          sign(ed, theirs, with("sub", "token/1")),
		"an id that is not":           sign(ed, key, with("sub", "token/999999")),
		"a negative id":               sign(ed, key, with("sub", "token/-1")),
		"a subject of another sort":   sign(ed, key, with("sub", "user/1")),
		"other claims, old signature": head + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"token/1"}`)) + "." + signature,
		"cut off":                     good[:len(good)-4],
		"no signature":                head + "." + payload + ".",
		"more parts":                  good + ".x",
		"padded":                      good + "=",
		"huge":                        strings.Repeat("a", 17<<10),
		"nothing":                     "",
		"a deploy token":              "gldt-abcdefghijklmnopqrst",
		"not a token":                 "hello",
	} {
		got := w.bearing(token, "GET", path)
		w.want(name, got, 401, "UNAUTHORIZED")
		if challenge := got.header.Get("Www-Authenticate"); !strings.HasSuffix(challenge, `error="invalid_token"`) {
			t.Errorf("%s: got challenge %s", name, challenge)
		}
		if token != "" && strings.Contains(got.body, token) {
			t.Errorf("%s: the answer repeats the token", name)
		}
	}
	w.clock.Store(int64(6 * time.Minute))
	w.want("after six minutes", w.bearing(good, "GET", path), 401, "UNAUTHORIZED")
}

func TestKeyIsKept(t *testing.T) {
	w := newWorld(t, options{})
	info, err := os.Stat(w.keyFile)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode is %v", info.Mode())
	}
	if _, err := ociserver.OpenKey(w.keyFile); err != nil {
		t.Error(err)
	}
	must(t, os.WriteFile(w.keyFile, []byte("nonsense"), 0o600))
	if _, err := ociserver.OpenKey(w.keyFile); err == nil {
		t.Error("nonsense is taken for a key")
	}
}

func TestCredentials(t *testing.T) {
	w := newWorld(t, options{})
	w.pushArtifact(w.developer, "people/site", "latest", "layer")
	ask := func(values ...string) answer {
		r, err := http.NewRequestWithContext(context.Background(), "GET", w.server.URL+"/v2/people/site/manifests/latest", nil)
		must(t, err)
		r.Header["Authorization"] = values
		return w.send(r)
	}
	basic := func(pair string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair)) }
	for _, tt := range []struct {
		name   string
		values []string
		status int
	}{
		{"Basic", []string{basic("x:" + w.reporter)}, 200},
		{"the token as bearer", []string{"Bearer " + w.reporter}, 200},
		{"lower case", []string{"bearer " + w.reporter}, 200},
		{"both", []string{basic("x:" + w.reporter), "Bearer " + w.reporter}, 400},
		{"no user name", []string{basic(":" + w.reporter)}, 401},
		{"not Basic", []string{"Basic !"}, 401},
		{"another scheme", []string{"Digest " + w.reporter}, 401},
		{"a job token", []string{basic("gitlab-ci-token:abc")}, 401},
		{"a project token under that name", []string{basic("gitlab-ci-token:" + w.reporter)}, 200},
		{"empty", []string{""}, 401},
	} {
		w.want(tt.name, ask(tt.values...), tt.status, "")
	}
	if got := ask(basic("gitlab-ci-token:abc")); !strings.Contains(got.body, "no job tokens") {
		t.Errorf("a job token: got %s", got.body)
	}
	if got := w.do("", "GET", "/v2/people/site/manifests/latest?"+url.Values{"private_token": {w.reporter}}.Encode(), nil); got.status != 401 {
		t.Errorf("a token in the address: got %s", fmt.Sprint(got.status))
	}
}
