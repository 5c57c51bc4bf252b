package ociserver_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/limit"
	"tidelock.dev/internal/ociserver"
	"tidelock.dev/internal/registry"
)

func TestPaths(t *testing.T) {
	w := newWorld(t, options{})
	sum := w.pushArtifact(w.developer, "people/site", "latest", "layer")
	w.pushArtifact(w.developer, "people/other", "latest", "layer")
	long := "people/" + strings.Repeat("a", 250)
	for _, tt := range []struct {
		path, code string
		status     int
	}{
		{"people/site/manifests/latest", "", 200},
		{"people/other/manifests/latest", "", 200}, // the project is people/Other
		{"people/site/manifests/" + strings.Replace(string(sum), ":", "%3A", 1), "", 200},
		{"people/Other/manifests/latest", "NAME_INVALID", 400},
		{"PEOPLE/site/manifests/latest", "NAME_INVALID", 400},
		{"people//site/manifests/latest", "NAME_INVALID", 400},
		{"people/site//manifests/latest", "NAME_INVALID", 400},
		{"people/./site/manifests/latest", "NAME_INVALID", 400},
		{"people/x/../site/manifests/latest", "NAME_INVALID", 400},
		{"../people/site/manifests/latest", "NAME_INVALID", 400},
		{"people/%2e%2e/people/site/manifests/latest", "NAME_INVALID", 400},
		{"people%2fsite/manifests/latest", "NAME_INVALID", 400},
		{"people/site%2fmanifests%2flatest", "NAME_INVALID", 400},
		{"people/site%00/manifests/latest", "NAME_INVALID", 400},
		{"people/sit%65/manifests/latest", "NAME_INVALID", 400},
		{"people/site/_layers/manifests/latest", "NAME_INVALID", 400},
		{"people/-site/manifests/latest", "NAME_INVALID", 400},
		{"people/site./manifests/latest", "NAME_INVALID", 400},
		{long + "/manifests/latest", "NAME_INVALID", 400},
		{"people/manifests/latest", "NAME_INVALID", 400},
		{"manifests/latest", "NAME_INVALID", 400},
		{"people/site/manifests/", "MANIFEST_UNKNOWN", 404},
		{"people/site/manifests/-x", "MANIFEST_UNKNOWN", 404},
		{"people/site/manifests/none", "MANIFEST_UNKNOWN", 404},
		{"people/site/manifests/sha256:abc", "MANIFEST_UNKNOWN", 404},
		{"people/site/manifests/../../other/manifests/latest", "NAME_INVALID", 400},
		{"people/site/blobs/latest", "DIGEST_INVALID", 400},
		{"people/site/blobs/sha256:../../../../registry.key", "UNSUPPORTED", 404},
		{"people/site/blobs/sha256:" + strings.Repeat("A", 64), "DIGEST_INVALID", 400},
		{"people/site/blobs/sha256:" + strings.Repeat("0", 64), "BLOB_UNKNOWN", 404},
		{"people/site/referrers/latest", "DIGEST_INVALID", 400},
		{"people/site/tags/list/", "UNSUPPORTED", 404},
		{"people/site/tags", "UNSUPPORTED", 404},
		{"people/site", "UNSUPPORTED", 404},
		{"_catalog", "UNSUPPORTED", 405},
		{"people/site/blobs/uploads/../../../other/blobs/uploads/x", "NAME_INVALID", 400},
		{"people/site/blobs/uploads/none", "BLOB_UPLOAD_UNKNOWN", 404},
		{"people/site/blobs/uploads/..", "BLOB_UPLOAD_UNKNOWN", 404},
	} {
		// Not through the client, which would clean the path.
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/v2/"+tt.path, nil)
		r.SetBasicAuth("x", w.developer)
		rec := httptest.NewRecorder()
		w.server.Config.Handler.ServeHTTP(rec, r)
		w.want(tt.path, answer{rec.Code, rec.Header(), rec.Body.String()}, tt.status, tt.code)
	}
	for method, path := range map[string]string{
		"PUT": "people/site/blobs/sha256:" + strings.Repeat("0", 64), "POST": "people/site/manifests/latest", "DELETE": "people/site/tags/list", "TRACE": "",
	} {
		got := w.do(w.developer, method, "/v2/"+path, nil)
		w.want(method+" "+path, got, http.StatusMethodNotAllowed, "UNSUPPORTED")
	}
	for path, want := range map[string]bool{"/v2": true, "/v2/": true, "/v2/x": true, "/jwt/auth": true, "/v20": false, "/jwt/auth/": false, "/x/v2/": false, "/%762/": false} {
		if got := ociserver.Matches(httptest.NewRequestWithContext(t.Context(), "GET", path, nil)); got != want {
			t.Errorf("Matches(%s) = %t, want %t", path, got, want)
		}
	}
}

// start begins an upload and returns where it goes on.
func (w *world) start(token, image string) string {
	w.t.Helper()
	got := w.do(token, "POST", "/v2/"+image+"/blobs/uploads/", nil)
	w.want("begin an upload", got, http.StatusAccepted, "")
	location := got.header.Get("Location")
	if !strings.HasPrefix(location, "/v2/"+image+"/blobs/uploads/") {
		w.t.Fatalf("got location %q", location)
	}
	return location
}

// An upload is its image's and its owner's.
func TestUploadsOfOthers(t *testing.T) {
	w := newWorld(t, options{})
	at := w.start(w.developer, "people/site")
	w.want("patch", w.do(w.developer, "PATCH", at, strings.NewReader("hel")), http.StatusAccepted, "")
	elsewhere := strings.Replace(at, "people/site", "people/other", 1)
	digest := "?digest=" + string(tidelock.DigestOf([]byte("hello")))
	for _, tt := range []struct {
		name, token, path string
		status            int
		code              string
	}{
		{"under another image", w.developer, elsewhere, 404, "BLOB_UPLOAD_UNKNOWN"},
		{"by somebody else who may push", w.maintainer, at, 404, "BLOB_UPLOAD_UNKNOWN"},
		{"by somebody who may only pull", w.reporter, at, 403, "DENIED"},
		{"by an outsider", w.outsider, at, 404, "NAME_UNKNOWN"},
		{"by nobody", "", at, 401, "UNAUTHORIZED"},
		{"with another id", w.developer, at[:len(at)-1] + "_", 404, "BLOB_UPLOAD_UNKNOWN"},
	} {
		for _, method := range []string{"GET", "PATCH", "PUT", "DELETE"} {
			w.want(method+" "+tt.name, w.do(tt.token, method, tt.path+digest, strings.NewReader("lo")), tt.status, tt.code)
		}
	}
	got := w.do(w.developer, "GET", at, nil)
	if got.status != http.StatusNoContent || got.header.Get("Range") != "0-2" || got.header.Get("Location") != at {
		t.Errorf("got %d %v", got.status, got.header)
	}
	w.want("finish", w.do(w.developer, "PUT", at+digest, strings.NewReader("lo")), http.StatusCreated, "")
	w.want("finish twice", w.do(w.developer, "PUT", at+digest, nil), http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
	w.want("cancel afterwards", w.do(w.developer, "DELETE", at, nil), http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN")
}

func TestContentRange(t *testing.T) {
	w := newWorld(t, options{})
	at := w.start(w.developer, "people/site")
	patch := func(what, body, rng string, status int, code, told string) {
		t.Helper()
		got := w.do(w.developer, "PATCH", at, strings.NewReader(body), "Content-Range", rng, "Content-Type", "application/octet-stream")
		w.want(what, got, status, code)
		if got.header.Get("Range") != told {
			t.Errorf("%s: told the range %q, want %q", what, got.header.Get("Range"), told)
		}
	}
	patch("the first", "hello", "0-4", 202, "", "0-4")
	patch("again", "hello", "0-4", 416, "RANGE_INVALID", "0-4")
	patch("a gap", "x", "7-7", 416, "RANGE_INVALID", "0-4")
	patch("another length", "xyz", "5-5", 400, "SIZE_INVALID", "")
	patch("nonsense", "x", "five", 400, "BLOB_UPLOAD_INVALID", "")
	patch("backwards", "x", "6-5", 400, "SIZE_INVALID", "")
	patch("too long a number", "x", "99999999999999999999-99999999999999999999", 400, "BLOB_UPLOAD_INVALID", "")
	w.want("another type", w.do(w.developer, "PATCH", at, strings.NewReader("x"), "Content-Type", "text/plain"), 400, "BLOB_UPLOAD_INVALID")
	patch("the next", ", you", "5-9", 202, "", "0-9")
	digest := string(tidelock.DigestOf([]byte("hello, you")))
	w.want("no digest", w.do(w.developer, "PUT", at, nil), 400, "DIGEST_INVALID")
	w.want("half a digest", w.do(w.developer, "PUT", at+"?digest=sha256:abc", nil), 400, "DIGEST_INVALID")
	w.want("finish", w.do(w.developer, "PUT", at+"?digest="+digest, nil), 201, "")
	if got := w.do(w.developer, "GET", "/v2/people/site/blobs/"+digest, nil); got.body != "hello, you" {
		t.Errorf("got %q", got.body)
	}
}

func TestWrongDigest(t *testing.T) {
	w := newWorld(t, options{})
	digest := string(tidelock.DigestOf([]byte("hello")))
	w.want("at once", w.do(w.developer, "POST", "/v2/people/site/blobs/uploads/?digest="+digest, strings.NewReader("hullo")), 400, "DIGEST_INVALID")
	at := w.start(w.developer, "people/site")
	w.want("in the end", w.do(w.developer, "PUT", at+"?digest="+digest, strings.NewReader("hullo")), 400, "DIGEST_INVALID")
	w.want("and the upload is gone", w.do(w.developer, "GET", at, nil), 404, "BLOB_UPLOAD_UNKNOWN")
	w.want("nothing is kept", w.do(w.developer, "HEAD", "/v2/people/site/blobs/"+digest, nil), 404, "")
	w.want("nor under what it is", w.do(w.developer, "HEAD", "/v2/people/site/blobs/"+string(tidelock.DigestOf([]byte("hullo"))), nil), 404, "")
}

// What may not be read cannot be mounted, and whoever tries learns nothing.
func TestMount(t *testing.T) {
	w := newWorld(t, options{})
	ctx := t.Context()
	secret := w.push(w.developer, "people/other", "secret")
	own := w.push(w.developer, "people/open", "public")
	// Mallory may push to a project of her own, and see nothing else.
	user, err := w.CreateUser(ctx, w.root, forge.NewUser{Username: "mallory"})
	must(t, err)
	_, err = w.SetMember(ctx, w.root, forge.OnProject(w.project("hers", tidelock.Private)), user.ID, tidelock.Maintainer, time.Time{})
	must(t, err)
	mallory := w.token(user.ID, tidelock.ScopeWriteRegistry)

	mount := func(digest, from string) string {
		return "/v2/people/hers/blobs/uploads/?mount=" + digest + "&from=" + from
	}
	none := "sha256:" + strings.Repeat("0", 64)
	for name, path := range map[string]string{
		"a private project":  mount(secret, "people/other"),
		"no project":         mount(secret, "people/none"),
		"not in there":       mount(secret, "people/open"),
		"no blob":            mount(none, "people/open"),
		"no digest":          mount("x", "people/open"),
		"tricks in the name": mount(own, "people/hers/../open"),
		"capitals":           mount(own, "people/Open"),
		"no source":          "/v2/people/hers/blobs/uploads/?mount=" + own,
	} {
		got := w.do(mallory, "POST", path, nil)
		if got.status != http.StatusAccepted || got.body != "" {
			t.Errorf("%s: got %d %s, want a plain upload", name, got.status, got.body)
		}
	}
	w.want("not mounted", w.do(mallory, "HEAD", "/v2/people/hers/blobs/"+secret, nil), 404, "")
	// A token for one image alone cannot be used to read another.
	r, err := http.NewRequestWithContext(ctx, "POST", w.server.URL+mount(own, "people/open"), nil)
	must(t, err)
	r.Header.Set("Authorization", "Bearer "+w.bearer(mallory, "repository:people/hers:pull,push"))
	w.want("without the scope", w.send(r), 202, "")
	r.Header.Set("Authorization", "Bearer "+w.bearer(mallory, "repository:people/hers:pull,push", "repository:people/open:pull"))
	w.want("with the scope", w.send(r), 201, "")
	got := w.do(mallory, "POST", mount(own, "people/open"), nil)
	if got.status != http.StatusCreated || got.header.Get("Location") != "/v2/people/hers/blobs/"+own || got.header.Get("Docker-Content-Digest") != own {
		t.Errorf("got %d %v", got.status, got.header)
	}
	if got := w.do(mallory, "GET", "/v2/people/hers/blobs/"+own, nil); got.body != "public" {
		t.Errorf("got %q", got.body)
	}
}

func TestLimits(t *testing.T) {
	w := newWorld(t, options{maxBlob: 1000, maxUploads: 3})
	at := w.start(w.developer, "people/site")
	big := strings.Repeat("x", 1001)
	w.want("with a length", w.do(w.developer, "PATCH", at, strings.NewReader(big)), 413, "SIZE_INVALID")
	at = w.start(w.developer, "people/site")
	w.want("without one", w.do(w.developer, "PATCH", at, io.MultiReader(strings.NewReader(big))), 413, "SIZE_INVALID")
	at = w.start(w.developer, "people/site")
	for range 2 {
		w.want("half", w.do(w.developer, "PATCH", at, strings.NewReader(big[:500])), 202, "")
	}
	w.want("one byte more", w.do(w.developer, "PATCH", at, strings.NewReader("x")), 413, "SIZE_INVALID")
	w.want("at once", w.do(w.developer, "POST", "/v2/people/site/blobs/uploads/?digest="+string(tidelock.DigestOf([]byte(big))), strings.NewReader(big)), 413, "SIZE_INVALID")

	manifests := "/v2/people/site/manifests/latest"
	huge := bytes.Repeat([]byte(" "), registry.MaxManifest+1)
	w.want("a manifest with a length", w.do(w.developer, "PUT", manifests, bytes.NewReader(huge)), 413, "MANIFEST_INVALID")
	w.want("a manifest without one", w.do(w.developer, "PUT", manifests, io.MultiReader(bytes.NewReader(huge))), 413, "MANIFEST_INVALID")

	var last answer
	for range 10 {
		if last = w.do(w.maintainer, "POST", "/v2/people/site/blobs/uploads/", nil); last.status != http.StatusAccepted {
			break
		}
	}
	w.want("too many uploads", last, http.StatusTooManyRequests, "TOOMANYREQUESTS")
	if last.header.Get("Retry-After") == "" {
		t.Errorf("got headers %v", last.header)
	}
}

func TestQuota(t *testing.T) {
	w := newWorld(t, options{quota: 1000})
	w.push(w.developer, "people/site", strings.Repeat("a", 600))
	for name, body := range map[string]io.Reader{
		"with a length": strings.NewReader(strings.Repeat("b", 500)),
		"without one":   io.MultiReader(strings.NewReader(strings.Repeat("b", 500))),
	} {
		at := w.start(w.developer, "people/site")
		w.want(name, w.do(w.developer, "PATCH", at, body), 413, "DENIED")
	}
	w.push(w.developer, "people/site", strings.Repeat("c", 400))
	w.want("nothing is left", w.do(w.developer, "POST", "/v2/people/site/blobs/uploads/", nil), 413, "DENIED")
	w.push(w.developer, "people/other", strings.Repeat("d", 900))
}

// A client that is refused gets to read why, although it sends its whole body
// before it reads anything, or never sends it.
func TestRefusedBody(t *testing.T) {
	const promised = 8 << 20 // much more than the kernel keeps
	for name, tt := range map[string]struct {
		idle time.Duration
		sent int
	}{
		"all of it":  {time.Minute, promised},
		"some of it": {time.Second, 1000},
		"nothing":    {time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, options{quota: 1000, idle: tt.idle})
			at := w.start(w.developer, "people/site")
			conn, err := net.Dial("tcp", w.host())
			must(t, err)
			defer conn.Close()
			must(t, conn.SetDeadline(time.Now().Add(30*time.Second)))

			r, err := http.NewRequestWithContext(t.Context(), "PATCH", w.server.URL+at, nil)
			must(t, err)
			r.SetBasicAuth("anybody", w.developer)
			head := fmt.Sprintf("PATCH %s HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\nContent-Length: %d\r\n\r\n",
				at, w.host(), r.Header.Get("Authorization"), promised)
			_, err = conn.Write(append([]byte(head), make([]byte, tt.sent)...))
			must(t, err)
			response, err := http.ReadResponse(bufio.NewReader(conn), r)
			must(t, err)
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			must(t, err)
			w.want(name, answer{response.StatusCode, response.Header, string(body)}, 413, "DENIED")
		})
	}
}

func TestBadManifests(t *testing.T) {
	w := newWorld(t, options{})
	w.push(w.developer, "people/site", "{}")
	good := manifest("layer")
	put := func(reference, mediaType string, body []byte) answer {
		return w.do(w.developer, "PUT", "/v2/people/site/manifests/"+reference, bytes.NewReader(body), "Content-Type", mediaType)
	}
	w.want("a layer that is not there", put("latest", tidelock.MediaTypeManifest, good), 400, "MANIFEST_BLOB_UNKNOWN")
	w.push(w.developer, "people/other", "layer")
	w.want("nor in another image", put("latest", tidelock.MediaTypeManifest, good), 400, "MANIFEST_BLOB_UNKNOWN")
	w.push(w.developer, "people/site", "layer")
	for name, tt := range map[string]struct {
		reference, mediaType string
		body                 []byte
		code                 string
	}{
		"another digest":     {"sha256:" + strings.Repeat("0", 64), tidelock.MediaTypeManifest, good, "DIGEST_INVALID"},
		"half a digest":      {"sha256:abc", tidelock.MediaTypeManifest, good, "DIGEST_INVALID"},
		"a bad tag":          {"-latest", tidelock.MediaTypeManifest, good, "TAG_INVALID"},
		"another type":       {"latest", tidelock.MediaTypeIndex, good, "MANIFEST_INVALID"},
		"no type of that":    {"latest", "text/plain", good, "MANIFEST_INVALID"},
		"a broken type":      {"latest", ";;", good, "MANIFEST_INVALID"},
		"not JSON":           {"latest", tidelock.MediaTypeManifest, []byte("hello"), "MANIFEST_INVALID"},
		"nothing":            {"latest", tidelock.MediaTypeManifest, nil, "MANIFEST_INVALID"},
		"two things at once": {"latest", tidelock.MediaTypeManifest, bytes.Replace(good, []byte(`{`), []byte(`{"manifests":[],`), 1), "MANIFEST_INVALID"},
		"a key twice":        {"latest", tidelock.MediaTypeManifest, bytes.Replace(good, []byte(`{`), []byte(`{"layers":[],`), 1), "MANIFEST_INVALID"},
	} {
		got := put(tt.reference, tt.mediaType, tt.body)
		w.want(name, got, 400, tt.code)
	}
	w.want("nothing was published", w.do(w.developer, "GET", "/v2/people/site/tags/list", nil), 200, "")
	if got := w.do(w.developer, "GET", "/v2/people/site/tags/list", nil); got.body != `{"name":"people/site","tags":[]}` {
		t.Errorf("got %s", got.body)
	}
	got := put("latest", tidelock.MediaTypeManifest+"; charset=utf-8", good)
	w.want("with a parameter", got, 201, "")
	if want := "/v2/people/site/manifests/" + string(tidelock.DigestOf(good)); got.header.Get("Location") != want {
		t.Errorf("got location %q, want %q", got.header.Get("Location"), want)
	}
}

func TestDelete(t *testing.T) {
	w := newWorld(t, options{})
	sum := w.pushArtifact(w.developer, "people/site", "latest", "layer")
	layer := string(tidelock.DigestOf([]byte("layer")))
	for _, path := range []string{"manifests/latest", "manifests/" + string(sum), "blobs/" + layer} {
		path = "/v2/people/site/" + path
		w.want("by a reporter", w.do(w.reporter, "DELETE", path, nil), 403, "DENIED")
		w.want("by an outsider", w.do(w.outsider, "DELETE", path, nil), 404, "NAME_UNKNOWN")
		w.want("by nobody", w.do("", "DELETE", path, nil), 401, "UNAUTHORIZED")
	}
	w.want("a blob in use", w.do(w.developer, "DELETE", "/v2/people/site/blobs/"+layer, nil), 409, "DENIED")
	w.want("the artifact", w.do(w.developer, "DELETE", "/v2/people/site/manifests/"+string(sum), nil), 202, "")
	w.want("its tag", w.do(w.developer, "HEAD", "/v2/people/site/manifests/latest", nil), 404, "")
	w.want("again", w.do(w.developer, "DELETE", "/v2/people/site/manifests/"+string(sum), nil), 404, "MANIFEST_UNKNOWN")
	w.want("the blob", w.do(w.developer, "DELETE", "/v2/people/site/blobs/"+layer, nil), 202, "")
	w.want("that is gone", w.do(w.developer, "HEAD", "/v2/people/site/blobs/"+layer, nil), 404, "")
	w.want("again", w.do(w.developer, "DELETE", "/v2/people/site/blobs/"+layer, nil), 404, "BLOB_UNKNOWN")
	w.want("and is missed", w.do(w.developer, "PUT", "/v2/people/site/manifests/latest", bytes.NewReader(manifest("layer")), "Content-Type", tidelock.MediaTypeManifest), 400, "MANIFEST_BLOB_UNKNOWN")
}

// A client that stops sending, or sends next to nothing, is let go of; one that
// is only slow is not.
func TestSlowClients(t *testing.T) {
	w := newWorld(t, options{idle: 300 * time.Millisecond})
	at := w.start(w.developer, "people/site")
	conn, err := net.Dial("tcp", w.host())
	must(t, err)
	defer conn.Close()
	r, err := http.NewRequest("PATCH", w.server.URL+at, nil)
	must(t, err)
	r.SetBasicAuth("x", w.developer)
	fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: %s\r\nAuthorization: %s\r\nContent-Length: 1000\r\n\r\nhello", at, w.host(), r.Header.Get("Authorization"))
	must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	got, err := http.ReadResponse(bufio.NewReader(conn), r)
	must(t, err)
	got.Body.Close()
	if got.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a client that stopped: got %d", got.StatusCode)
	}

	at = w.start(w.developer, "people/site")
	in, out := io.Pipe()
	go func() {
		slowly := time.NewTicker(100 * time.Millisecond)
		defer slowly.Stop()
		for range 8 {
			<-slowly.C
			_, _ = out.Write(make([]byte, 10<<10))
		}
		out.Close()
	}()
	w.want("a slow one", w.do(w.developer, "PATCH", at, in), 202, "")
}

func TestReferrersInPages(t *testing.T) {
	w := newWorld(t, options{})
	subject := w.pushArtifact(w.developer, "people/site", "latest", "layer")
	for i := range 4 {
		var m map[string]any
		must(t, json.Unmarshal(manifest(), &m))
		m["artifactType"] = []string{"application/a", "application/b"}[i%2]
		m["subject"] = map[string]any{"mediaType": tidelock.MediaTypeManifest, "digest": subject, "size": len(manifest("layer"))}
		m["annotations"] = map[string]string{"n": strings.Repeat(fmt.Sprint(i), 100)}
		body, err := json.Marshal(m)
		must(t, err)
		got := w.do(w.developer, "PUT", "/v2/people/site/manifests/"+string(tidelock.DigestOf(body)), bytes.NewReader(body), "Content-Type", tidelock.MediaTypeManifest)
		w.want("attach", got, 201, "")
		if got.header.Get("Oci-Subject") != string(subject) {
			t.Errorf("got headers %v", got.header)
		}
	}
	count := func(query string) (int, answer) {
		got := w.do(w.reporter, "GET", "/v2/people/site/referrers/"+string(subject)+query, nil)
		w.want(query, got, 200, "")
		var index struct {
			MediaType string
			Manifests []struct{ ArtifactType string }
		}
		must(t, json.Unmarshal([]byte(got.body), &index))
		if index.MediaType != tidelock.MediaTypeIndex || got.header.Get("Content-Type") != tidelock.MediaTypeIndex {
			t.Errorf("%s: got %v %s", query, got.header, got.body)
		}
		return len(index.Manifests), got
	}
	if n, got := count(""); n != 4 || got.header.Get("Oci-Filters-Applied") != "" || got.header.Get("Link") != "" {
		t.Errorf("got %d, %v", n, got.header)
	}
	if n, got := count("?artifactType=application/a"); n != 2 || got.header.Get("Oci-Filters-Applied") != "artifactType" {
		t.Errorf("got %d, %v", n, got.header)
	}
	if n, _ := count("?artifactType=application/none"); n != 0 {
		t.Errorf("got %d", n)
	}
	none := w.do(w.reporter, "GET", "/v2/people/site/none/referrers/"+string(subject), nil)
	if none.status != 200 || !strings.Contains(none.body, `"manifests":[]`) {
		t.Errorf("no image: got %d %s", none.status, none.body)
	}
	w.want("an outsider", w.do(w.outsider, "GET", "/v2/people/site/referrers/"+string(subject), nil), 404, "NAME_UNKNOWN")
}

// However many are attached to one artifact, and however long they are, a page
// of them is short and all pages together have each once.
func TestManyReferrers(t *testing.T) {
	w := newWorld(t, options{})
	subject := w.pushArtifact(w.developer, "people/site", "latest", "layer")
	const attached = 60
	for i := range attached {
		var m map[string]any
		must(t, json.Unmarshal(manifest(), &m))
		m["subject"] = map[string]any{"mediaType": tidelock.MediaTypeManifest, "digest": subject, "size": len(manifest("layer"))}
		m["annotations"] = map[string]string{"n": strings.Repeat("x", 100_000) + fmt.Sprint(i)}
		body, err := json.Marshal(m)
		must(t, err)
		got := w.do(w.developer, "PUT", "/v2/people/site/manifests/"+string(tidelock.DigestOf(body)), bytes.NewReader(body), "Content-Type", tidelock.MediaTypeManifest)
		w.want("attach", got, 201, "")
	}
	found := map[string]bool{}
	pages := 0
	for path := "/v2/people/site/referrers/" + string(subject); path != ""; pages++ {
		got := w.do(w.reporter, "GET", path, nil)
		w.want(path, got, 200, "")
		var index struct{ Manifests []struct{ Digest string } }
		must(t, json.Unmarshal([]byte(got.body), &index))
		if len(got.body) > 3<<20 || len(index.Manifests) == 0 || pages > attached {
			t.Fatalf("page %d has %d bytes and %d of them", pages, len(got.body), len(index.Manifests))
		}
		for _, m := range index.Manifests {
			if found[m.Digest] {
				t.Errorf("%s is listed twice", m.Digest)
			}
			found[m.Digest] = true
		}
		path, _, _ = strings.Cut(strings.TrimPrefix(got.header.Get("Link"), "<"), ">")
	}
	if len(found) != attached || pages < 3 {
		t.Errorf("%d pages had %d, want at least 3 with %d", pages, len(found), attached)
	}
	// A page after one that was deleted meanwhile goes on behind it.
	got := w.do(w.reporter, "GET", "/v2/people/site/referrers/"+string(subject)+"?last=sha256:ffff", nil)
	if got.status != 200 || !strings.Contains(got.body, `"manifests":[]`) {
		t.Errorf("after the last: got %d with %d bytes", got.status, len(got.body))
	}
}

func TestRequestsAreLimited(t *testing.T) {
	w := newWorld(t, options{limits: limit.NewGuard(limit.Config{User: 5, Anonymous: 5, SignIn: 5})})
	for name, token := range map[string]string{"user": w.developer, "nobody": "", "a guess": "glpat-wrong"} {
		for _, path := range []string{"/v2/", "/jwt/auth?service=container_registry"} {
			var got answer
			for range 20 {
				if got = w.do(token, "GET", path, nil); got.status == http.StatusTooManyRequests {
					break
				}
			}
			w.want(name+" at "+path, got, 429, "TOOMANYREQUESTS")
			if got.header.Get("Retry-After") == "" {
				t.Errorf("%s: got %v", name, got.header)
			}
		}
	}
}
