package ociserver_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// The library of crane, Flux and cosign pushes, lists, pulls, mounts and
// deletes.
func TestClient(t *testing.T) {
	w := newWorld(t, options{})
	ctx := t.Context()
	site := w.image("people/site/web")
	by := []remote.Option{remote.WithContext(ctx), remote.WithAuth(as(w.developer))}
	image, err := random.Image(300_000, 3)
	must(t, err)
	for _, tag := range []string{"latest", "1.0.0", "main"} {
		must(t, remote.Write(site.Tag(tag), image, by...))
	}
	digest, err := image.Digest()
	must(t, err)

	pulled, err := remote.Image(site.Tag("latest"), by...)
	must(t, err)
	must(t, validate.Image(pulled))
	head, err := remote.Head(site.Digest(digest.String()), by...)
	must(t, err)
	if head.Digest != digest || head.Size == 0 || head.MediaType == "" {
		t.Errorf("got %+v", head)
	}
	listed, err := remote.List(site, by...)
	must(t, err)
	if want := []string{"1.0.0", "latest", "main"}; !slices.Equal(listed, want) {
		t.Errorf("got tags %q, want %q", listed, want)
	}

	// An index, and what is attached to it.
	index, err := random.Index(1000, 2, 2)
	must(t, err)
	must(t, remote.WriteIndex(site.Tag("many"), index, by...))
	desc, err := remote.Head(site.Tag("many"), by...)
	must(t, err)
	config := mutate.ConfigMediaType(empty.Image, "application/example+json")
	attached, ok := mutate.Subject(config, v1.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}).(v1.Image)
	if !ok {
		t.Fatal("no image with a subject")
	}
	sum, err := attached.Digest()
	must(t, err)
	must(t, remote.Write(site.Digest(sum.String()), attached, by...))
	found, err := remote.Referrers(site.Digest(desc.Digest.String()), by...)
	must(t, err)
	about, err := found.IndexManifest()
	must(t, err)
	if len(about.Manifests) != 1 || about.Manifests[0].Digest != sum || about.Manifests[0].ArtifactType != "application/example+json" {
		t.Errorf("got referrers %+v", about.Manifests)
	}

	// The blobs are mounted, not sent again, where both images may be read.
	other := w.image("people/other/copy")
	log := &requestLog{in: http.DefaultTransport}
	must(t, remote.Write(other.Tag("latest"), pulled, append(by, remote.WithTransport(log))...))
	if sent := log.bodies.Load(); sent > 10_000 {
		t.Errorf("the copy sent %d bytes", sent)
	}
	pulled, err = remote.Image(other.Tag("latest"), by...)
	must(t, err)
	must(t, validate.Image(pulled))

	must(t, remote.Delete(site.Tag("main"), by...))
	if _, err := remote.Head(site.Tag("main"), by...); !isStatus(err, http.StatusNotFound) {
		t.Errorf("a deleted tag: got %v", err)
	}
	if _, err := remote.Head(site.Tag("latest"), by...); err != nil {
		t.Errorf("another tag: %v", err)
	}
}

func isStatus(err error, status int) bool {
	e, ok := errors.AsType[*transport.Error](err)
	return ok && e.StatusCode == status
}

// Who may do what, as the library's users see it.
func TestRights(t *testing.T) {
	w := newWorld(t, options{})
	small, err := random.Image(100, 1)
	must(t, err)
	for _, path := range []string{"people/site", "people/open"} {
		must(t, remote.Write(w.image(path).Tag("latest"), small, remote.WithAuth(as(w.developer))))
	}
	for _, tt := range []struct {
		who, token, image string
		pull, push        bool
	}{
		{"nobody", "", "people/site", false, false},
		{"nobody", "", "people/none", false, false},
		{"nobody", "", "people/open", true, false},
		{"outsider", w.outsider, "people/site", false, false},
		{"outsider", w.outsider, "people/open", true, false},
		{"reporter", w.reporter, "people/site", true, false},
		{"developer", w.developer, "people/site", true, true},
		{"developer", w.developer, "people/none", false, false},
	} {
		repo, auth := w.image(tt.image), remote.WithAuth(as(tt.token))
		if _, err := remote.Get(repo.Tag("latest"), auth); (err == nil) != tt.pull {
			t.Errorf("%s pulls %s: %v", tt.who, tt.image, err)
		}
		if err := remote.Write(repo.Tag("new"), small, auth); (err == nil) != tt.push {
			t.Errorf("%s pushes %s: %v", tt.who, tt.image, err)
		}
	}
}

func TestLayersOfEverySize(t *testing.T) {
	w := newWorld(t, options{})
	for _, size := range []int{0, 1, 256<<10 - 1, 256 << 10, 256<<10 + 1, 3 << 20} {
		content := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		digest := w.push(w.developer, "people/site", string(content))
		got := w.do(w.developer, "GET", "/v2/people/site/blobs/"+digest, nil)
		if got.status != http.StatusOK || got.body != string(content) {
			t.Errorf("%d bytes: got %d and %d bytes", size, got.status, len(got.body))
		}
		// Of a body whose length nobody knows beforehand.
		started := w.do(w.developer, "POST", "/v2/people/site/blobs/uploads/", nil)
		at := started.header.Get("Location")
		patched := w.do(w.developer, "PATCH", at, io.MultiReader(bytes.NewReader(content)))
		w.want("patch", patched, http.StatusAccepted, "")
		w.want("put", w.do(w.developer, "PUT", patched.header.Get("Location")+"?digest="+digest, nil), http.StatusCreated, "")
	}
}

func TestRanges(t *testing.T) {
	w := newWorld(t, options{})
	digest := w.push(w.developer, "people/site", "0123456789")
	for given, want := range map[string]struct {
		status int
		body   string
	}{
		"bytes=2-4": {http.StatusPartialContent, "234"},
		"bytes=7-":  {http.StatusPartialContent, "789"},
		"bytes=-2":  {http.StatusPartialContent, "89"},
		"bytes=20-": {http.StatusRequestedRangeNotSatisfiable, ""},
		"lines=2-4": {http.StatusRequestedRangeNotSatisfiable, ""},
	} {
		got := w.do(w.developer, "GET", "/v2/people/site/blobs/"+digest, nil, "Range", given)
		if got.status != want.status || want.body != "" && got.body != want.body {
			t.Errorf("%s: got %d %q, want %d %q", given, got.status, got.body, want.status, want.body)
		}
	}
	got := w.do(w.developer, "GET", "/v2/people/site/blobs/"+digest, nil, "If-None-Match", `"`+digest+`"`)
	w.want("known content", got, http.StatusNotModified, "")
}

// HEAD answers without a body what GET answers with one.
func TestHead(t *testing.T) {
	w := newWorld(t, options{})
	sum := w.pushArtifact(w.developer, "people/site", "latest", "layer")
	none := strings.Repeat("0", 64)
	for _, path := range []string{
		"manifests/latest", "manifests/" + string(sum), "manifests/none", "manifests/sha256:" + none,
		"blobs/sha256:" + none, "blobs/" + w.push(w.developer, "people/site", "layer"),
	} {
		for _, token := range []string{w.developer, "", w.outsider} {
			get := w.do(token, "GET", "/v2/people/site/"+path, nil)
			head := w.do(token, "HEAD", "/v2/people/site/"+path, nil)
			if head.status != get.status || head.body != "" {
				t.Errorf("HEAD %s: got %d %q, GET %d", path, head.status, head.body, get.status)
			}
			for _, name := range []string{"Content-Type", "Content-Length", "Docker-Content-Digest", "Www-Authenticate", "Docker-Distribution-Api-Version"} {
				if head.header.Get(name) != get.header.Get(name) {
					t.Errorf("%s of %s: HEAD %q, GET %q", name, path, head.header.Get(name), get.header.Get(name))
				}
			}
			if get.header.Get("Docker-Distribution-Api-Version") != "registry/2.0" {
				t.Errorf("%s: got headers %v", path, get.header)
			}
		}
	}
}

func TestTagPages(t *testing.T) {
	w := newWorld(t, options{})
	for _, tag := range []string{"c", "a", "b", "latest", "B"} {
		w.pushArtifact(w.developer, "people/site", tag, "layer")
	}
	list := "/v2/people/site/tags/list"
	for path, want := range map[string]struct{ body, link string }{
		list:                      {`{"name":"people/site","tags":["B","a","b","c","latest"]}`, ""},
		list + "?n=2":             {`{"name":"people/site","tags":["B","a"]}`, `</v2/people/site/tags/list?last=a&n=2>; rel="next"`},
		list + "?n=2&last=b":      {`{"name":"people/site","tags":["c","latest"]}`, ""},
		list + "?n=0":             {`{"name":"people/site","tags":[]}`, ""},
		list + "?last=latest":     {`{"name":"people/site","tags":[]}`, ""},
		list + "?n=100000&last=b": {`{"name":"people/site","tags":["c","latest"]}`, ""},
	} {
		got := w.do(w.developer, "GET", path, nil)
		if got.status != http.StatusOK || got.body != want.body || got.header.Get("Link") != want.link {
			t.Errorf("%s: got %d %s and link %q, want %s and %q", path, got.status, got.body, got.header.Get("Link"), want.body, want.link)
		}
	}
	w.want("n=-1", w.do(w.developer, "GET", list+"?n=-1", nil), http.StatusBadRequest, "PAGINATION_NUMBER_INVALID")
	w.want("no image", w.do(w.developer, "GET", "/v2/people/site/none/tags/list", nil), http.StatusNotFound, "NAME_UNKNOWN")
}

// What is asked for without its content is told as with it.
func TestHeadOfManifest(t *testing.T) {
	w := newWorld(t, options{})
	digest := w.pushArtifact(w.developer, "people/site", "latest", "layer")
	for _, reference := range []string{"latest", string(digest)} {
		path := "/v2/people/site/manifests/" + reference
		get, head := w.do(w.reporter, "GET", path, nil), w.do(w.reporter, "HEAD", path, nil)
		w.want(path, get, 200, "")
		w.want(path, head, 200, "")
		for _, name := range []string{"Content-Type", "Content-Length", "Docker-Content-Digest", "Etag"} {
			if get.header.Get(name) == "" || get.header.Get(name) != head.header.Get(name) {
				t.Errorf("%s: %s is %q, and without content %q", reference, name, get.header.Get(name), head.header.Get(name))
			}
		}
		if head.body != "" || get.header.Get("Content-Length") != fmt.Sprint(len(get.body)) {
			t.Errorf("%s: got %d bytes, and without content %d", reference, len(get.body), len(head.body))
		}
	}
	if got := w.do(w.reporter, "HEAD", "/v2/people/site/manifests/none", nil); got.status != 404 {
		t.Errorf("no such tag: got %d", got.status)
	}
}
