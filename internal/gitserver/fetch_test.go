package gitserver_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestClone(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	first := w.commit(work, "a", "1")
	second := w.commit(work, "a", "2")
	w.git(work, "tag", "-a", "v1", "-m", "one", string(first))
	w.git(work, "tag", "light", string(first))
	w.git(work, "push", "-q", "origin", "main", "main:refs/heads/feature/x", "--tags")

	for _, protocol := range []string{"0", "1", "2"} {
		for _, path := range []string{"people/site.git", "people/site"} {
			dir := filepath.Join(t.TempDir(), "clone")
			w.git(".", "-c", "protocol.version="+protocol, "clone", "-q", w.urlOf(path, "", ""), dir)
			if got := w.git(dir, "rev-parse", "HEAD"); got != string(second) {
				t.Errorf("protocol %s of %s: HEAD is %s, want %s", protocol, path, got, second)
			}
			if got := w.git(dir, "rev-parse", "v1^{commit}"); got != string(first) {
				t.Errorf("protocol %s of %s: v1 is %s, want %s", protocol, path, got, first)
			}
			if got := w.git(dir, "branch", "--show-current"); got != "main" {
				t.Errorf("protocol %s of %s: on branch %q, want main", protocol, path, got)
			}
		}
		shallow := filepath.Join(t.TempDir(), "shallow")
		w.git(".", "-c", "protocol.version="+protocol, "clone", "-q", "--depth=1", w.url(person{}), shallow)
		if got := w.git(shallow, "rev-list", "--count", "HEAD"); got != "1" {
			t.Errorf("protocol %s: a shallow clone has %s commits, want 1", protocol, got)
		}
		w.git(shallow, "-c", "protocol.version="+protocol, "fetch", "-q", "--unshallow")
		if got := w.git(shallow, "rev-list", "--count", "HEAD"); got != "3" {
			t.Errorf("protocol %s: after unshallow there are %s commits, want 3", protocol, got)
		}
	}

	clone := filepath.Join(t.TempDir(), "clone")
	w.git(".", "clone", "-q", "--filter=blob:none", w.url(person{}), clone)
	third := w.commit(work, "b", "3")
	w.git(work, "push", "-q", "origin", "main")
	w.git(clone, "pull", "-q")
	if got := w.git(clone, "rev-parse", "HEAD"); got != string(third) {
		t.Errorf("after a pull HEAD is %s, want %s", got, third)
	}
	if got := w.git(".", "ls-remote", w.url(person{}), "refs/tags/v1^{}"); !strings.HasPrefix(got, string(first)) {
		t.Errorf("ls-remote shows %q behind v1, want %s", got, first)
	}
}

func TestCloneEmpty(t *testing.T) {
	w := newWorld(t, options{})
	for _, protocol := range []string{"0", "2"} {
		dir := filepath.Join(t.TempDir(), "empty")
		w.git(".", "-c", "protocol.version="+protocol, "clone", "-q", w.url(person{}), dir)
	}
}

func TestHTTP2(t *testing.T) {
	w := newWorld(t, options{http2: true})
	work := w.work(w.maintainer)
	w.git(work, "-c", "http.version=HTTP/2", "push", "-q", "origin", "main")
	dir := filepath.Join(t.TempDir(), "clone")
	w.git(".", "-c", "http.version=HTTP/2", "clone", "-q", w.url(person{}), dir)
}

// A round of negotiation with many commits is compressed by git.
func TestFetchCompressed(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", "origin", "main")
	clone := filepath.Join(t.TempDir(), "clone")
	w.git(".", "clone", "-q", w.url(person{}), clone)
	w.commit(work, "b", "3")
	w.git(work, "push", "-q", "origin", "main")
	var commits strings.Builder
	for range 100 { // of its own, which the server does not have
		commits.WriteString("commit refs/heads/own\ncommitter A <a@example.com> 2000000000 +0000\ndata 1\nx\n")
	}
	load := clientGit(t, clone, "fast-import", "--quiet")
	load.Stdin = strings.NewReader(commits.String())
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("fast-import: %v: %s", err, out)
	}
	cmd := clientGit(t, clone, "fetch")
	cmd.Env = append(cmd.Env, "GIT_TRACE_CURL=1", "GIT_TRACE_CURL_NO_DATA=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("fetch: %v: %s", err, out)
	}
	if !bytes.Contains(bytes.ToLower(out), []byte("content-encoding: gzip")) {
		t.Error("the request was not compressed, so the test says nothing")
	}
}

func TestFetchAnswers(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	head := w.commit(work, "a", "1")
	w.git(work, "push", "-q", "origin", "main")

	get := func(path, protocol string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", w.server.URL+path, nil)
		must(t, err)
		if protocol != "" {
			r.Header.Set("Git-Protocol", protocol)
		}
		return w.do(r)
	}
	// Without a Git-Protocol header, as go-git asks.
	response, body := get("/people/site.git/info/refs?service=git-upload-pack", "")
	if want := "001e# service=git-upload-pack\n0000"; !strings.HasPrefix(body, want) {
		t.Errorf("the answer starts with %.60q, want %q", body, want)
	}
	if !strings.Contains(body, string(head)+" HEAD\x00") || !strings.Contains(body, " symref=HEAD:refs/heads/main") {
		t.Errorf("the answer does not tell HEAD: %.300q", body)
	}
	if got, want := response.Header.Get("Content-Type"), "application/x-git-upload-pack-advertisement"; got != want {
		t.Errorf("content type is %q, want %q", got, want)
	}
	if got, want := response.Header.Get("Cache-Control"), "no-cache, max-age=0, must-revalidate"; got != want {
		t.Errorf("cache control is %q, want %q", got, want)
	}
	if _, body := get("/people/site.git/info/refs?service=git-upload-pack", "version=2"); !strings.HasPrefix(body, "000eversion 2\n") {
		t.Errorf("version 2 starts with %.60q", body)
	}
	// A header that is not a version is not passed on.
	if _, body := get("/people/site.git/info/refs?service=git-upload-pack", "version=2:x=y"); !strings.HasPrefix(body, "001e#") {
		t.Errorf("a strange Git-Protocol is answered with %.60q", body)
	}

	// As go-git fetches: one round, shallow, without side-band.
	request := pkt("want "+string(head)+" shallow ofs-delta\n", "deepen 1", "", "done\n")
	response, body = w.post("people/site.git", "git-upload-pack", request, nil)
	if response.StatusCode != 200 || !strings.HasPrefix(body, "0035shallow "+string(head)+"00000008NAK\nPACK") &&
		!strings.HasPrefix(body, "0034shallow "+string(head)+"00000008NAK\nPACK") {
		t.Errorf("answer %d: %.120q", response.StatusCode, body)
	}
}

func TestCompressedRequests(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	head := w.commit(work, "a", "1")
	w.git(work, "push", "-q", "origin", "main")
	var request bytes.Buffer
	z := gzip.NewWriter(&request)
	z.Write(pkt("want "+string(head)+" ofs-delta\n", "", "done\n"))
	z.Close()
	if response, body := w.post("people/site.git", "git-upload-pack", request.Bytes(), http.Header{"Content-Encoding": {"gzip"}}); response.StatusCode != 200 || !strings.Contains(body, "PACK") {
		t.Errorf("answer to gzip: %d %.100q", response.StatusCode, body)
	}
	if response, body := w.post("people/site.git", "git-upload-pack", []byte("not gzip"), http.Header{"Content-Encoding": {"gzip"}}); response.StatusCode != 400 {
		t.Errorf("answer to a false gzip: %d %q", response.StatusCode, body)
	}
	if response, body := w.post("people/site.git", "git-upload-pack", nil, http.Header{"Content-Encoding": {"br"}}); response.StatusCode != 400 {
		t.Errorf("answer to another encoding: %d %q", response.StatusCode, body)
	}
	// 256 MiB of zeros in 256 KiB: a client that sends a bomb is not heard out.
	// One member of gzip is repeated, so that it is quickly made.
	request.Reset()
	z, _ = gzip.NewWriterLevel(&request, gzip.BestCompression)
	z.Write(make([]byte, 1<<20))
	z.Close()
	bomb := bytes.Repeat(request.Bytes(), 256)
	for service, want := range map[string]int{"git-upload-pack": 413, "git-receive-pack": 400} {
		response, body := w.post("people/site.git", service, bomb, http.Header{
			"Content-Encoding": {"gzip"}, "Private-Token": {w.developer.token}})
		if response.StatusCode != want {
			t.Errorf("answer of %s to a bomb: %d %q, want %d", service, response.StatusCode, body, want)
		}
	}
	w.intact()
}

// post sends a request to a service.
func (w *world) post(project, service string, body []byte, header http.Header) (*http.Response, string) {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), "POST", w.server.URL+"/"+project+"/"+service, bytes.NewReader(body))
	must(w.t, err)
	for name, values := range header {
		r.Header[name] = values
	}
	if r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/x-"+service+"-request")
	}
	return w.do(r)
}

func (w *world) do(r *http.Request) (*http.Response, string) {
	w.t.Helper()
	response, err := w.server.Client().Do(r)
	must(w.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(w.t, err)
	return response, string(body)
}

func TestMain(m *testing.M) {
	// The forge may run inside a git hook; its tests may too.
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "GIT_") {
			os.Unsetenv(name)
		}
	}
	os.Exit(m.Run())
}
