package gitserver_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tidelock.dev"
)

// create is the beginning of a request that creates a branch.
func create(head tidelock.CommitID, branch string) []byte {
	return pkt(zero+" "+string(head)+" refs/heads/"+branch+"\x00 report-status side-band-64k", "")
}

func TestBadPacks(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", "origin", "main")
	head := w.commit(work, "a", "1")
	good := w.packOf(work, head)
	flipped := bytes.Clone(good)
	flipped[len(flipped)/2] ^= 0x10
	incomplete := w.pipe(work, string(head)+"\n", "pack-objects", "--stdout", "-q") // the commit, without its tree

	for name, tt := range map[string]struct {
		head tidelock.CommitID
		pack []byte
	}{
		"nothing":        {head, nil},
		"garbage":        {head, []byte("this is no pack")},
		"long garbage":   {head, bytes.Repeat([]byte("PACK"), 1<<20)},
		"only a header":  {head, good[:12]},
		"cut":            {head, good[:len(good)-30]},
		"flipped":        {head, flipped},
		"an empty pack":  {head, w.pipe(work, "", "pack-objects", "--stdout", "-q")},
		"without a tree": {head, incomplete},
		"another commit": {tidelock.CommitID(strings.Repeat("1", 40)), good},
		"zip":            {head, []byte("\x1f\x8b\x08\x00\x00\x00")},
	} {
		response, answer := w.post("people/site", "git-receive-pack", append(create(tt.head, "bad"), tt.pack...),
			http.Header{"Private-Token": {w.developer.token}})
		if response.StatusCode != 200 || !strings.Contains(answer, "ng refs/heads/bad ") {
			t.Errorf("%s: answer %d %q, want the ref refused", name, response.StatusCode, answer)
		}
		if got := w.head("refs/heads/bad"); got != "" {
			t.Errorf("%s: the branch is at %s", name, got)
		}
	}
	w.intact()
}

// pipe runs a client's git on some input and returns its output as it is.
func (w *world) pipe(dir, input string, args ...string) []byte {
	w.t.Helper()
	cmd := clientGit(w.t, dir, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.Output()
	must(w.t, err)
	return out
}

// Trees that would write outside of a checkout never get in.
func TestMaliciousTrees(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	blob := strings.TrimSpace(string(w.pipe(work, "x", "hash-object", "-w", "--stdin")))
	for _, name := range []string{"..", ".", ".git", ".GIT", "git~1", "a/b", ""} {
		raw, err := hex.DecodeString(blob)
		must(t, err)
		tree := strings.TrimSpace(string(w.pipe(work, "100644 "+name+"\x00"+string(raw),
			"hash-object", "-w", "--stdin", "-t", "tree", "--literally")))
		commit := strings.TrimSpace(string(w.pipe(work, "tree "+tree+"\nauthor A <a@example.com> 1700000000 +0000\ncommitter A <a@example.com> 1700000000 +0000\n\nx\n",
			"hash-object", "-w", "--stdin", "-t", "commit")))
		pack := w.pipe(work, commit+"\n"+tree+"\n"+blob+"\n", "pack-objects", "--stdout", "-q")
		_, answer := w.post("people/site", "git-receive-pack", append(create(tidelock.CommitID(commit), "evil"), pack...),
			http.Header{"Private-Token": {w.developer.token}})
		if !strings.Contains(answer, "ng refs/heads/evil ") || w.head("refs/heads/evil") != "" {
			t.Errorf("a tree with %q is taken: %q", name, answer)
		}
	}
	w.intact()
}

func TestPackOverTheLimit(t *testing.T) {
	w := newWorld(t, options{maxInput: 1 << 20})
	work := w.work(w.developer)
	content := make([]byte, 3<<20)
	rand.Read(content)
	must(t, os.WriteFile(filepath.Join(work, "big"), content, 0o644))
	w.git(work, "add", "big")
	w.git(work, "commit", "-q", "-m", "big")
	for _, buffer := range []string{"65536", "104857600"} { // in chunks, and at once
		w.refusedGit([]string{"pack exceeds maximum allowed size (1024.00 KiB)", "[remote rejected]"},
			work, "-c", "http.postBuffer="+buffer, "push", "origin", "main:refs/heads/big")
	}
	// A client that says how much too much it has is stopped at once.
	r := w.ask("POST", "people/site/git-receive-pack", "")
	r.Body = io.NopCloser(io.LimitReader(endless{}, 1<<30))
	r.ContentLength = 1 << 30
	r.Header.Set("Private-Token", w.developer.token)
	response, err := w.server.Client().Do(r)
	if err == nil { // or it is cut while it still sends
		response.Body.Close()
		if response.StatusCode != 413 {
			t.Errorf("answer to a gigabyte: %d, want 413", response.StatusCode)
		}
	}
	// One that does not is cut some time after the limit.
	r = w.ask("POST", "people/site/git-receive-pack", "")
	sent := &counter{in: io.MultiReader(bytes.NewReader(create(tidelock.CommitID(strings.Repeat("1", 40)), "big")), endless{})}
	r.Body, r.ContentLength = io.NopCloser(sent), -1
	r.Header.Set("Private-Token", w.developer.token)
	if response, err := w.server.Client().Do(r); err == nil {
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	if sent.n.Load() > 200<<20 {
		t.Errorf("the server took %d MiB of an endless push", sent.n.Load()>>20)
	}
	if w.head("refs/heads/big") != "" {
		t.Error("the branch exists")
	}
	w.intact()
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

type counter struct {
	in io.Reader
	n  atomic.Int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// raw opens a connection and sends the head of a push in chunks, and the
// first chunk.
func (w *world) raw(service string, first []byte) net.Conn {
	w.t.Helper()
	conn := w.dial()
	_, err := fmt.Fprintf(conn, "POST /people/site.git/%s HTTP/1.1\r\nHost: x\r\nPrivate-Token: %s\r\n"+
		"Content-Type: application/x-%s-request\r\nTransfer-Encoding: chunked\r\n\r\n", service, w.maintainer.token, service)
	must(w.t, err)
	sendChunk(w.t, conn, first)
	return conn
}

func (w *world) dial() net.Conn {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.server.Listener.Addr().String())
	must(w.t, err)
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

func sendChunk(t testing.TB, conn net.Conn, data []byte) {
	t.Helper()
	_, err := fmt.Fprintf(conn, "%x\r\n%s\r\n", len(data), data)
	must(t, err)
}

// A client that stalls is cut, wherever it stalls.
func TestStallingClients(t *testing.T) {
	w := newWorld(t, options{idle: 200 * time.Millisecond})
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", "origin", "main")
	head := w.commit(work, "a", "1")
	pack := w.packOf(work, head)
	request := create(head, "stalled")
	for name, tt := range map[string]struct {
		service string
		sent    []byte
	}{
		"in the first line":     {"git-receive-pack", request[:10]},
		"after the commands":    {"git-receive-pack", request},
		"within the pack":       {"git-receive-pack", append(bytes.Clone(request), pack[:len(pack)/2]...)},
		"before any want":       {"git-upload-pack", []byte("00")},
		"between want and done": {"git-upload-pack", pkt("want " + string(w.head("refs/heads/main")) + " ofs-delta\n")},
	} {
		sized := w.dial()
		_, err := fmt.Fprintf(sized, "POST /people/site.git/%s HTTP/1.1\r\nHost: x\r\nPrivate-Token: %s\r\n"+
			"Content-Type: application/x-%s-request\r\nContent-Length: 100000\r\n\r\n%s", tt.service, w.maintainer.token, tt.service, tt.sent)
		must(t, err)
		for _, conn := range []net.Conn{w.raw(tt.service, tt.sent), sized} {
			must(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
			if answer, err := io.ReadAll(conn); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: the client still is connected; it was told %q", name, answer)
			}
			if w.head("refs/heads/stalled") != "" {
				t.Errorf("%s: the branch exists", name)
			}
		}
	}
	w.intact()
}

// A client that is never silent, but never done, is cut as well.
func TestClientThatDribbles(t *testing.T) {
	w := newWorld(t, options{idle: 10 * time.Second, longest: 500 * time.Millisecond})
	for name, sent := range map[string][]byte{
		"before the commands": []byte("00"),
		"in the pack":         create(tidelock.CommitID(strings.Repeat("1", 40)), "slow"),
	} {
		conn := w.raw("git-receive-pack", sent)
		started := time.Now()
		for time.Since(started) < 8*time.Second {
			if _, err := conn.Write([]byte("1\r\n0\r\n")); err != nil {
				break
			}
			must(t, conn.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
			if _, err := conn.Read(make([]byte, 1000)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
		}
		if took := time.Since(started); took > 5*time.Second {
			t.Errorf("%s: the client still was connected after %v", name, took)
		}
	}
	w.intact()
}

// A client that reads nothing of a large answer is cut too.
func TestClientThatDoesNotRead(t *testing.T) {
	w := newWorld(t, options{idle: 200 * time.Millisecond})
	work := w.work(w.maintainer)
	content := make([]byte, 12<<20)
	rand.Read(content)
	must(t, os.WriteFile(filepath.Join(work, "big"), content, 0o644))
	w.git(work, "add", "big")
	w.git(work, "commit", "-q", "-m", "big")
	w.git(work, "push", "-q", "origin", "main")
	conn := w.raw("git-upload-pack", pkt("want "+string(w.head("refs/heads/main"))+" ofs-delta\n", "", "done\n"))
	_, err := fmt.Fprint(conn, "0\r\n\r\n")
	must(t, err)
	must(t, conn.(*net.TCPConn).SetReadBuffer(4096))
	w.eventually("the connection is cut", func() error {
		// Only writing tells that the other side is gone, without reading.
		if _, err := conn.Write([]byte("x")); err == nil {
			return errors.New("still open")
		}
		return nil
	})
	w.intact()
}

// One caller cannot have all that serves clients: others go on, and he himself
// once one of his ends.
func TestH2OneCallersShare(t *testing.T) {
	w := newWorld(t, options{maxPacks: 4, idle: 5 * time.Second})
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", "origin", "main")
	var stalled []net.Conn
	for range 8 {
		stalled = append(stalled, w.raw("git-upload-pack", []byte("00")))
	}
	other := w.urlOf("people/site.git", "x", w.developer.token)
	began := time.Now()
	for range 3 {
		w.git(".", "ls-remote", other)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("somebody else waited %v", took)
	}
	for _, c := range stalled {
		c.Close()
	}
	w.git(work, "fetch", "-q", "origin")
}

// A client that leaves in the middle of its pack has pushed nothing.
func TestClientLeavesMidPack(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", "origin", "main")
	head := w.commit(work, "a", "1")
	pack := w.packOf(work, head)
	for i := range 5 {
		conn := w.raw("git-receive-pack", append(create(head, "left"), pack[:len(pack)*i/5]...))
		conn.Close()
	}
	w.intact()
	if w.head("refs/heads/left") != "" {
		t.Error("the branch exists")
	}
}

// A client that leaves once its pack is there has pushed: git finishes, and
// the push is recorded.
func TestClientLeavesAfterPack(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", "origin", "main")
	for i, end := range []string{"0\r\n\r\n", ""} { // with and without the end of the request
		head := w.commit(work, "a", fmt.Sprint(i))
		branch := fmt.Sprintf("left-%d", i)
		conn := w.raw("git-receive-pack", append(create(head, branch), w.packOf(work, head)...))
		_, err := io.WriteString(conn, end)
		must(t, err)
		conn.Close()
		w.eventually("the push is recorded", func() error {
			if got := w.recorded(tidelock.BranchRef(branch)); got != head {
				return fmt.Errorf("%s is recorded at %q, want %s", branch, got, head)
			}
			return nil
		})
	}
	w.intact()
}

func TestGarbageFetches(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", "origin", "main")
	head := string(w.head("refs/heads/main"))
	secret := string(w.commit(work, "secret", "x"))
	for name, body := range map[string][]byte{
		"nothing":       nil,
		"text":          []byte("hello there"),
		"a bad length":  []byte("zzzz"),
		"length one":    []byte("0001"),
		"length three":  []byte("0003"),
		"cut":           []byte("0032want 1"),
		"not a want":    pkt("have "+head+"\n", "", "done\n"),
		"a bad want":    pkt("want xyz\n", "", "done\n"),
		"missing":       pkt("want "+secret+"\n", "", "done\n"),
		"deepen minus":  pkt("want "+head+"\n", "deepen -1", "", "done\n"),
		"deepen words":  pkt("want "+head+"\n", "deepen x", "", "done\n"),
		"a bad shallow": pkt("want "+head+"\n", "shallow x", "", "done\n"),
		"a bad filter":  pkt("want "+head+" filter\n", "filter sparse:path=/etc/passwd", "", "done\n"),
	} {
		for _, protocol := range []string{"", "version=1", "version=2"} {
			response, answer := w.post("people/site", "git-upload-pack", body, http.Header{"Git-Protocol": {protocol}})
			if response.StatusCode != 400 && response.StatusCode != 200 || strings.Contains(answer, "PACK") {
				t.Errorf("%s in %q: answer %d %q", name, protocol, response.StatusCode, answer)
			}
		}
	}
	w.intact()
}

func TestGarbagePushes(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	head := string(w.commit(work, "a", "1"))
	command := zero + " " + head + " refs/heads/x"
	many := make([]string, 0, 10_002)
	for i := range 10_001 {
		many = append(many, fmt.Sprintf("%s %s refs/heads/x%d", zero, head, i))
	}
	long := make([]string, 0, 300)
	for i := range 200 {
		long = append(long, fmt.Sprintf("%s %s refs/heads/%s%d", zero, head, strings.Repeat("x", 65_000), i))
	}
	for name, tt := range map[string]struct {
		body []byte
		want int
	}{
		"text":                {[]byte("hello there"), 400},
		"a bad length":        {[]byte("+0ff"), 400},
		"too long a line":     {[]byte("ffff" + strings.Repeat("x", 0xffff)), 400},
		"cut":                 {[]byte("0080" + command), 400},
		"no end":              {pkt(command + "\x00 report-status"), 400},
		"an empty line":       {append([]byte("0004"), pkt(command, "")...), 400},
		"short":               {pkt("x\x00 report-status", ""), 400},
		"no ref":              {pkt(zero+" "+head+" ", ""), 400},
		"not hexadecimal":     {pkt(strings.Repeat("g", 40)+" "+head+" refs/heads/x", ""), 400},
		"upper case":          {pkt(zero+" "+strings.ToUpper(head)+" refs/heads/x", ""), 400},
		"nothing to nothing":  {pkt(zero+" "+zero+" refs/heads/x", ""), 400},
		"the same ref twice":  {pkt(command+"\x00 report-status", command, ""), 400},
		"late capabilities":   {pkt(command+"\x00 report-status", zero+" "+head+" refs/heads/y\x00 atomic", ""), 400},
		"another hash":        {pkt(command+"\x00 report-status object-format=sha256", ""), 400},
		"a signed push":       {pkt("push-cert\x00 report-status\n", "certificate version 0.1\n", ""), 400},
		"a bad shallow":       {pkt("shallow x", command, ""), 400},
		"too many refs":       {pkt(append(many, "")...), 413},
		"too long refs":       {pkt(append(long, "")...), 413},
		"options without end": {append(pkt(command+"\x00 report-status push-options", ""), pkt("a")...), 400},
		"an option too long":  {append(pkt(command+"\x00 report-status push-options", ""), pkt(strings.Repeat("x", 5000), "")...), 413},
		"a delimiter":         {[]byte("0001"), 400},
	} {
		response, answer := w.post("people/site", "git-receive-pack", tt.body, http.Header{"Private-Token": {w.developer.token}})
		if response.StatusCode != tt.want {
			t.Errorf("%s: answer %d %.200q, want %d", name, response.StatusCode, answer, tt.want)
		}
	}
	if refs, err := w.repo().Refs(t.Context()); err != nil || len(refs) != 0 {
		t.Errorf("refs are now %v, %v, want none", refs, err)
	}
	w.intact()
}

// Pushing and leaving again and again costs no goroutine, process or file.
func TestManyLeavingClients(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", "origin", "main")
	head := w.commit(work, "a", "1")
	pack := w.packOf(work, head)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 20 {
		one, stop := context.WithTimeout(ctx, 3*time.Millisecond)
		r, err := http.NewRequestWithContext(one, "POST", w.server.URL+"/people/site/git-receive-pack", bytes.NewReader(append(create(head, "x"), pack...)))
		must(t, err)
		r.Header.Set("Content-Type", "application/x-git-receive-pack-request")
		r.Header.Set("Private-Token", w.maintainer.token)
		if response, err := w.server.Client().Do(r); err == nil {
			response.Body.Close()
		}
		stop()
	}
	w.eventually("what is on disk is recorded", func() error {
		if on, in := w.head("refs/heads/x"), w.recorded("refs/heads/x"); on != in {
			return fmt.Errorf("on disk %q, recorded %q", on, in)
		}
		return nil
	})
	w.intact()
}

// A slow push has its own limits, not those that the listener has for others.
func TestListenersLimitsAreForOthers(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP 1.1": false, "HTTP 2": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, options{http2: http2, listener: 300 * time.Millisecond})
			work := w.work(w.maintainer)
			head := w.commit(work, "a", "1")
			body, slowly := io.Pipe()
			go func() {
				slowly.Write(create(head, "slow"))
				for part := range slices.Chunk(w.packOf(work, head), 50) {
					time.Sleep(200 * time.Millisecond)
					slowly.Write(part)
				}
				time.Sleep(500 * time.Millisecond)
				slowly.Close()
			}()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.server.URL+"/people/site.git/git-receive-pack", body)
			must(t, err)
			r.Header.Set("Content-Type", "application/x-git-receive-pack-request")
			r.Header.Set("Private-Token", w.maintainer.token)
			response, err := w.server.Client().Do(r)
			must(t, err)
			answer, err := io.ReadAll(response.Body)
			response.Body.Close()
			if err != nil || !strings.Contains(string(answer), "ok refs/heads/slow") {
				t.Errorf("answer %d %q, %v", response.StatusCode, answer, err)
			}
		})
	}
}
