package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// A registryToken is what a token for the registry says to those who look into
// it. Clients do not.
type registryToken struct {
	Issuer   string   `json:"iss"`
	Audience []string `json:"aud"`
	Subject  string   `json:"sub"`
	ID       string   `json:"jti"`
	Expires  int64    `json:"exp"`
	Begins   int64    `json:"nbf"`
	Issued   int64    `json:"iat"`
	Access   []struct {
		Type, Name string
		Actions    []string
	}
}

// asked writes what a token was asked for as clients do.
func (r registryToken) asked() string {
	var scopes []string
	for _, a := range r.Access {
		scopes = append(scopes, a.Type+":"+a.Name+":"+strings.Join(a.Actions, ","))
	}
	return strings.Join(scopes, " ")
}

// jwt asks for a token as docker login does, by hand.
func (r *imageHost) jwt(t *testing.T, query, credentials string, more ...string) reply {
	t.Helper()
	if credentials != "" {
		more = append(more, "--user", credentials)
	}
	return curl(t, r.Forge, r.URL+"/jwt/auth"+query, more...)
}

func readToken(t *testing.T, answer reply) registryToken {
	t.Helper()
	var given struct{ Token string }
	answer.decode(t, &given)
	parts := strings.Split(given.Token, ".")
	if len(parts) != 3 {
		t.Fatalf("the token is %q, want a JWT", given.Token)
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	var token registryToken
	if err := json.Unmarshal(text, &token); err != nil {
		t.Fatalf("claims %s: %v", text, err)
	}
	return token
}

// refusal is the code and message of a registry's answer.
func refusal(t *testing.T, answer reply) (code, message string) {
	t.Helper()
	var body struct {
		Errors []struct{ Code, Message string }
	}
	answer.decode(t, &body)
	if len(body.Errors) != 1 {
		t.Fatalf("got %s, want one error", answer.body)
	}
	return body.Errors[0].Code, body.Errors[0].Message
}

// TestRegistryTokens makes the calls of docker login, pull and push at
// GET /jwt/auth by hand.
func TestRegistryTokens(t *testing.T) {
	t.Parallel()
	r := newImageHost(t)
	r.Project("open/site", "public")
	developer := r.developer.user + ":" + r.developer.password
	const service = "?service=container_registry"

	t.Run("login", func(t *testing.T) {
		answer := wantStatus(t, "login", r.jwt(t, service+"&account=dev&client_id=docker&offline_token=true", developer), 200)
		same(t, "type", answer.header.Get("Content-Type"), "application/json")
		var fields map[string]any
		answer.decode(t, &fields)
		for _, name := range []string{"token", "expires_in", "issued_at"} {
			if fields[name] == nil {
				t.Errorf("the answer lacks %s: %v", name, fields)
			}
		}
		if fields["refresh_token"] != nil {
			t.Error("a refresh_token makes clients use OAuth's flow, which is not served")
		}
		if _, err := time.Parse(time.RFC3339, fmt.Sprint(fields["issued_at"])); err != nil {
			t.Error(err)
		}
		token := readToken(t, answer)
		if token.Issuer == "" || token.Subject == "" || token.ID == "" || !slices.Equal(token.Audience, []string{"container_registry"}) {
			t.Errorf("the token says %+v", token)
		}
		if life := token.Expires - token.Issued; life != 300 || token.Begins > token.Issued {
			t.Errorf("the token lasts %d s from %d on, want 300 s and from %d", life, token.Begins, token.Issued)
		}
	})

	t.Run("scopes", func(t *testing.T) {
		for name, c := range map[string]struct{ query, want string }{
			"none":              {"", ""},
			"one":               {"&scope=repository:team/web-shop:pull,push", "repository:team/web-shop:pull,push"},
			"in flux's order":   {"&scope=repository:team/web-shop:push,pull", "repository:team/web-shop:pull,push"},
			"escaped":           {"&scope=repository%3Ateam%2Fweb-shop%3Apull", "repository:team/web-shop:pull"},
			"repeated":          {"&scope=repository:team/web-shop:pull&scope=repository:open/site:pull", "repository:team/web-shop:pull repository:open/site:pull"},
			"by a space":        {"&scope=repository:team/web-shop:pull%20repository:open/site:pull", "repository:team/web-shop:pull repository:open/site:pull"},
			"by a plus":         {"&scope=repository:team/web-shop:pull+repository:open/site:pull", "repository:team/web-shop:pull repository:open/site:pull"},
			"of an image below": {"&scope=repository:team/web-shop/a/b:pull", "repository:team/web-shop/a/b:pull"},
			"delete":            {"&scope=repository:team/web-shop:delete", "repository:team/web-shop:delete"},
			"everything":        {"&scope=repository:team/web-shop:*", "repository:team/web-shop:*"},
			"of another type":   {"&scope=registry:catalog:*&scope=repository:team/web-shop:pull", "repository:team/web-shop:pull"},
			"broken":            {"&scope=repository&scope=:::&scope=repository:team/web-shop:fly", ""},
		} {
			answer := wantStatus(t, name, r.jwt(t, service+c.query, developer), 200)
			same(t, name, readToken(t, answer).asked(), c.want)
		}
	})

	t.Run("credentials", func(t *testing.T) {
		const ask = service + "&scope=repository:team/web-shop:pull"
		for name, credentials := range map[string]string{
			"personal token":                      developer,
			"personal token, any user":            "personal-access-token:" + r.developer.password,
			"personal token, as oauth2":           "oauth2:" + r.developer.password,
			"project token, any user":             "anything:" + r.projectToken.password,
			"deploy token":                        r.deployReader.user + ":" + r.deployReader.password,
			"token of somebody who is no member":  "root:" + r.Token,
			"deploy token that pushes":            r.deployPusher.user + ":" + r.deployPusher.password,
			"personal token of a reporter, to do": r.reporter.user + ":" + r.reporter.password,
		} {
			answer := wantStatus(t, name, r.jwt(t, ask, credentials), 200)
			var given struct{ Token string }
			answer.decode(t, &given)
			wantStatus(t, name+", ping", curl(t, r.Forge, r.URL+"/v2/", "--oauth2-bearer", given.Token), 200)
			// The image is not there yet, which is told to those who may see it.
			wantStatus(t, name+", pull", curl(t, r.Forge, r.URL+"/v2/team/web-shop/tags/list", "--oauth2-bearer", given.Token), 404)
		}
		for name, credentials := range map[string]string{
			"wrong token":                      "dev:glpat-wrong",
			"no token":                         "dev:",
			"deploy token, another user":       "somebody:" + r.deployReader.password,
			"job token where there are no job": "gitlab-ci-token:nonsense",
		} {
			answer := wantStatus(t, name, r.jwt(t, ask, credentials), 401)
			if code, message := refusal(t, answer); code != "UNAUTHORIZED" || !strings.HasPrefix(message, "HTTP Basic: Access denied") {
				t.Errorf("%s: got %s %q, want GitLab's", name, code, message)
			}
		}
	})

	t.Run("nobody", func(t *testing.T) {
		answer := wantStatus(t, "public", r.jwt(t, service+"&scope=repository:open/site:pull", ""), 200)
		same(t, "public", readToken(t, answer).asked(), "repository:open/site:pull")
		// A token says what it was asked for. It gives no right to it.
		answer = wantStatus(t, "public, to push", r.jwt(t, service+"&scope=repository:open/site:pull,push", ""), 200)
		var given struct{ Token string }
		answer.decode(t, &given)
		push := wantStatus(t, "push", curl(t, r.Forge, r.URL+"/v2/open/site/blobs/uploads/", "--request", "POST", "--oauth2-bearer", given.Token), 401)
		if code, message := refusal(t, push); code != "UNAUTHORIZED" || !strings.HasPrefix(message, "sign in") {
			t.Errorf("push: got %s %q, want to be told to sign in", code, message)
		}
		for name, scope := range map[string]string{"private": "team/web-shop:pull", "not there": "team/none:pull", "only to push": "open/site:push"} {
			answer := wantStatus(t, name, r.jwt(t, service+"&scope=repository:"+scope, ""), 403)
			if code, message := refusal(t, answer); code != "DENIED" || !strings.HasPrefix(message, "access forbidden") {
				t.Errorf("%s: got %s %q, want GitLab's", name, code, message)
			}
		}
	})

	t.Run("not served", func(t *testing.T) {
		for name, answer := range map[string]reply{
			"POST":            r.jwt(t, "", "", "--request", "POST", "--data", "service=container_registry&grant_type=password"),
			"another service": r.jwt(t, "?service=notary", developer),
			"no service":      r.jwt(t, "", developer),
		} {
			wantStatus(t, name, answer, 404)
		}
		wantStatus(t, "list of everything", curl(t, r.Forge, r.URL+"/v2/_catalog", "--user", developer), 405)
	})

	t.Run("on the wire", func(t *testing.T) {
		r.fill(t, r.image)
		v2 := r.URL + "/v2/team/web-shop/"
		get := wantStatus(t, "GET", curl(t, r.Forge, v2+"manifests/v1", "--user", developer), 200)
		head := wantStatus(t, "HEAD", curl(t, r.Forge, v2+"manifests/v1", "--head", "--user", developer), 200)
		for _, name := range []string{"Content-Type", "Content-Length", "Docker-Content-Digest"} {
			if head.header.Get(name) == "" || head.header.Get(name) != get.header.Get(name) {
				t.Errorf("HEAD: %s is %q, and %q of GET", name, head.header.Get(name), get.header.Get(name))
			}
		}
		same(t, "length", head.header.Get("Content-Length"), fmt.Sprint(len(get.body)))
		wantStatus(t, "HEAD of what is missing", curl(t, r.Forge, v2+"manifests/none", "--head", "--user", developer), 404)

		begun := wantStatus(t, "upload", curl(t, r.Forge, v2+"blobs/uploads/", "--request", "POST", "--user", developer), 202)
		location := begun.header.Get("Location")
		if !strings.HasPrefix(location, "/v2/team/web-shop/blobs/uploads/") && !strings.HasPrefix(location, v2+"blobs/uploads/") {
			t.Errorf("Location: %q, want one below the image, on the same host", location)
		}
		same(t, "range of nothing", begun.header.Get("Range"), "0-0")

		// The challenge says what to ask a token for.
		for name, c := range map[string]struct {
			method, path, scope string
		}{
			"pull":   {"GET", "manifests/v1", "pull"},
			"push":   {"PUT", "manifests/v1", "pull,push"},
			"upload": {"POST", "blobs/uploads/", "pull,push"},
			"delete": {"DELETE", "manifests/v1", "delete"},
		} {
			answer := wantStatus(t, name, curl(t, r.Forge, v2+c.path, "--request", c.method), 401)
			same(t, name, answer.header.Get("Www-Authenticate"),
				fmt.Sprintf(`Bearer realm="%s/jwt/auth",service="container_registry",scope="repository:team/web-shop:%s"`, r.URL, c.scope))
			if code, _ := refusal(t, answer); code != "UNAUTHORIZED" {
				t.Errorf("%s: got code %s", name, code)
			}
		}
		var given struct{ Token string }
		r.jwt(t, service+"&scope=repository:team/web-shop:pull", developer).decode(t, &given)
		narrow := wantStatus(t, "a token for less", curl(t, r.Forge, v2+"blobs/uploads/", "--request", "POST", "--oauth2-bearer", given.Token), 401)
		if challenge := narrow.header.Get("Www-Authenticate"); !strings.HasSuffix(challenge, `scope="repository:team/web-shop:pull,push",error="insufficient_scope"`) {
			t.Errorf("a token for less: got challenge %s", challenge)
		}
		// What became of who asked counts at once, and not in five minutes.
		wantStatus(t, "before", curl(t, r.Forge, v2+"tags/list", "--oauth2-bearer", given.Token), 200)
		var user []struct{ ID int64 }
		r.Call(http.MethodGet, "users?username=dev", nil, &user)
		r.Call(http.MethodDelete, fmt.Sprintf("projects/%d/members/%d", r.project.ID, user[0].ID), nil, nil)
		wantStatus(t, "no member any more", curl(t, r.Forge, v2+"tags/list", "--oauth2-bearer", given.Token), 404)
	})
}
