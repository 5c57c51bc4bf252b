package server_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"

	"tidelock.dev"
)

// registryVerbs are what is asked of the registry for each row: the image
// "site/matrix" of the place, which holds a manifest with the tag "kept".
var registryVerbs = map[string]struct{ method, reference, scope string }{
	"pull":   {http.MethodGet, "kept", "pull"},
	"push":   {http.MethodPut, "kept", "pull,push"},
	"delete": {http.MethodDelete, "absent", "delete"},
}

// checkRegistry asks one question of the registry: with the token itself, and
// with one that is asked for at /jwt/auth.
func (p *place) checkRegistry(n *tally, i int, c caller) {
	want := p.want(n.row, c)
	verb := registryVerbs[n.row.route]
	image := strings.ToLower(p.name) + "/site/matrix"
	path := "/v2/" + image + "/manifests/" + verb.reference
	var body []byte
	if verb.method == http.MethodPut {
		body = p.manifest
	}
	with := p.credential(p, c)
	carriers := []string{"Basic", "a token for the image"}
	for at, name := range carriers {
		header := http.Header{"Content-Type": {tidelock.MediaTypeManifest}}
		if at == 0 {
			basic(header, with)
		} else {
			bearer, status := p.registryToken(with, image, verb.scope)
			if c.kind == "" && status == http.StatusForbidden && want.status == http.StatusUnauthorized {
				continue // nobody is given no token for what it may not do
			}
			if status != http.StatusOK {
				n.t.Fatalf("a token of the registry for %s: got %d", c, status)
			}
			header.Set("Authorization", "Bearer "+bearer)
		}
		got := p.send(verb.method, path, header, body, i)
		n.cells++
		if v := judgeRegistry(got); v.status != want.status || (v.why == "hidden") != (want.why == "hidden") {
			if n.wrong++; n.wrong <= mayBeWrong {
				n.t.Errorf("%s by %s in %s: got %d %s, want %d %s", n.row, c, name, got.status, got.body, want.status, want.why)
			}
		}
	}
}

// judgeRegistry reads a verdict off an answer of the registry.
func judgeRegistry(got reply) verdict {
	var told struct {
		Errors []struct{ Code string }
	}
	_ = json.Unmarshal(got.body, &told) // a manifest has no such field
	if len(told.Errors) > 0 && told.Errors[0].Code == "NAME_UNKNOWN" {
		return verdict{got.status, "hidden"}
	}
	return verdict{got.status, ""}
}

func basic(header http.Header, with credential) {
	if with.secret != "" {
		r := http.Request{Header: header}
		r.SetBasicAuth(with.username, with.secret)
	}
}

// registryToken asks for a token as clients of the registry do.
func (m *matrix) registryToken(with credential, image, verbs string) (token string, status int) {
	header := http.Header{}
	basic(header, with)
	query := url.Values{"service": {"container_registry"}, "scope": {"repository:" + image + ":" + verbs}}
	got := m.send(http.MethodGet, "/jwt/auth?"+query.Encode(), header, nil, 0)
	var told struct{ Token string }
	_ = json.Unmarshal(got.body, &told) // it is empty, then
	return told.Token, got.status
}

// send calls the server's handler.
func (m *matrix) send(method, path string, header http.Header, body []byte, _ int) reply {
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	for name, values := range header {
		r.Header[name] = values
	}
	w := httptest.NewRecorder()
	m.handler.ServeHTTP(w, r)
	return reply{w.Code, w.Body.Bytes()}
}

// makeImage fills the registry of the place's project.
func (p *place) makeImage() {
	p.t.Helper()
	header := http.Header{}
	basic(header, credential{username: "root", secret: p.Token})
	image := "/v2/" + strings.ToLower(p.name) + "/site/matrix"
	content := []byte("{}")
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(content))
	if got := p.send(http.MethodPost, image+"/blobs/uploads/?digest="+digest, header, content, 0); got.status != http.StatusCreated {
		p.t.Fatalf("upload a blob: got %d %s", got.status, got.body)
	}
	p.manifest = fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":%q,"size":2},"layers":[]}`,
		tidelock.MediaTypeManifest, digest)
	header.Set("Content-Type", tidelock.MediaTypeManifest)
	if got := p.send(http.MethodPut, image+"/manifests/kept", header, p.manifest, 0); got.status != http.StatusCreated {
		p.t.Fatalf("push a manifest: got %d %s", got.status, got.body)
	}
}
