package ociserver_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// Whatever is asked is answered without an error of ours, without a header of
// the caller's making, and within bounds.
func FuzzRequests(f *testing.F) {
	w := newWorld(f, options{})
	digest := w.pushArtifact(w.developer, "people/site", "latest", "layer")
	for _, path := range []string{
		"people/site/manifests/latest", "people/site/manifests/" + string(digest), "people/site/tags/list", "people/site/blobs/uploads/",
		"people/site/blobs/" + string(digest), "people/site/referrers/" + string(digest), "_catalog", "people/Other/tags/list", "../x", "people//site/tags/list",
	} {
		f.Add("GET", path, "n=1&last=latest", "")
	}
	f.Add("POST", "people/site/blobs/uploads/", "mount="+string(digest)+"&from=people/open", "")
	f.Add("PUT", "people/site/manifests/x", "tag=y&tag=z", string(manifest("layer")))
	f.Add("GET", "people/site/tags/list", "n=-1&last=%00", "")
	f.Add("GET", "people/site/referrers/"+string(digest), "artifactType=a%0d%0ab&last=x", "")
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		switch method {
		case "GET", "HEAD", "POST", "PUT", "PATCH":
		default:
			return // deleting would leave nothing to ask for
		}
		r := httptest.NewRequest(method, "/v2/", bytes.NewReader([]byte(body)))
		r.URL = &url.URL{Path: "/v2/" + path, RawQuery: query}
		if unescaped, err := url.PathUnescape("/v2/" + path); err == nil {
			r.URL.Path, r.URL.RawPath = unescaped, "/v2/"+path
		}
		r.SetBasicAuth("x", w.developer)
		answer := httptest.NewRecorder()
		w.server.Config.Handler.ServeHTTP(answer, r)
		if answer.Code >= 500 || answer.Code < 200 {
			t.Errorf("%s %q?%q: got %d %s", method, path, query, answer.Code, answer.Body)
		}
		if answer.Body.Len() > 8<<20 {
			t.Errorf("%s %q?%q: got %d bytes", method, path, query, answer.Body.Len())
		}
		for name, values := range answer.Header() {
			if strings.ContainsAny(name+strings.Join(values, ""), "\r\n") {
				t.Errorf("%s %q?%q: the header %q is %q", method, path, query, name, values)
			}
		}
	})
}

// Nothing but a token that the server made is one.
func FuzzTokens(f *testing.F) {
	w := newWorld(f, options{})
	w.pushArtifact(w.developer, "people/site", "latest", "layer")
	given := w.bearer(w.reporter, pullSite)
	f.Add(given)
	f.Add(given[:len(given)-1])
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Add("..")
	f.Add("")
	f.Fuzz(func(t *testing.T, token string) {
		r := httptest.NewRequest(http.MethodGet, "/v2/people/site/manifests/latest", nil)
		r.Header.Set("Authorization", "Bearer "+token)
		answer := httptest.NewRecorder()
		w.server.Config.Handler.ServeHTTP(answer, r)
		if made := strings.TrimSpace(token) == given; answer.Code != http.StatusUnauthorized && !(made && answer.Code == http.StatusOK) {
			t.Errorf("%q: got %d %s", token, answer.Code, answer.Body)
		}
	})
}
