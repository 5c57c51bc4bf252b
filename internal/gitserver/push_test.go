package gitserver_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitserver"
)

func TestPush(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	check := func(name tidelock.RefName, want tidelock.CommitID) {
		t.Helper()
		if got := w.head(name); got != want {
			t.Errorf("%s is at %q on disk, want %q", name, got, want)
		}
		if got := w.recorded(name); got != want {
			t.Errorf("%s is at %q in the store, want %q", name, got, want)
		}
	}

	for _, protocol := range []string{"0", "1", "2"} {
		want := w.commit(work, "a", "protocol "+protocol)
		w.git(work, "-c", "protocol.version="+protocol, "push", "-q", "origin", "main")
		check("refs/heads/main", want)
	}
	head := w.head("refs/heads/main")

	w.git(work, "tag", "-a", "v1", "-m", "one")
	w.git(work, "tag", "light")
	w.git(work, "push", "-q", "origin", "--tags", "main:refs/heads/feature/x", "main:refs/heads/other")
	check("refs/heads/feature/x", head)
	check("refs/tags/light", head)
	check("refs/tags/v1", tidelock.CommitID(w.git(work, "rev-parse", "v1")))
	if tag, err := w.store.Head(t.Context(), w.project.ID, "refs/tags/v1"); err != nil || tag.Commit != head {
		t.Errorf("the commit behind v1 is %s, %v, want %s", tag.Commit, err, head)
	}

	w.git(work, "push", "-q", "origin", ":refs/heads/other", ":light")
	check("refs/heads/other", "")
	check("refs/tags/light", "")

	first := tidelock.CommitID(w.git(work, "rev-list", "--max-parents=0", "HEAD"))
	w.git(work, "push", "-q", "--force", "origin", string(first)+":refs/heads/feature/x")
	check("refs/heads/feature/x", first)

	pushes, total, err := w.store.Pushes(t.Context(), tidelock.PushFilter{Project: w.project.ID}, tidelock.Page{})
	if err != nil || total != 6 {
		t.Fatalf("%d pushes are recorded, %v, want 6", total, err)
	}
	if p := pushes[0]; p.By != w.maintainer.user.ID || p.Token == 0 || len(p.Updates) != 1 || p.Updates[0].Old != head || p.Updates[0].New != first {
		t.Errorf("the last push is %+v", p)
	}
	w.intact()
}

// What everybody pushes through a work day goes through a shallow clone too.
func TestPushFromShallowClone(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	w.commit(work, "a", "1")
	w.commit(work, "a", "2")
	w.git(work, "push", "-q", "origin", "main")
	shallow := filepath.Join(t.TempDir(), "shallow")
	w.git(".", "clone", "-q", "--depth=1", w.url(w.maintainer), shallow)
	want := w.commit(shallow, "b", "3")
	w.git(shallow, "push", "-q", "origin", "main")
	if got := w.head("refs/heads/main"); got != want {
		t.Errorf("main is at %s, want %s", got, want)
	}
	w.intact()
}

func TestPushOptions(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", "-o", "ci.skip", "-o", "x=y z", "origin", "main")
	w.refusedGit([]string{"413"}, work, append([]string{"push", "-q", "origin", "main:refs/heads/x"}, repeat("-o", "a", 101)...)...)
	w.intact()
}

func repeat(flag, value string, times int) (args []string) {
	for range times {
		args = append(args, flag, value)
	}
	return args
}

func TestProtectedBranches(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	first := w.commit(work, "a", "1")
	head := w.commit(work, "a", "2")
	w.git(work, "push", "-q", "origin", "main", "main:refs/heads/open")
	w.git(work, "remote", "set-url", "origin", w.url(w.developer))
	w.git(work, "commit", "-q", "--amend", "-m", "rewritten")
	rewritten := tidelock.CommitID(w.git(work, "rev-parse", "HEAD"))

	t.Run("a developer may not push to it", func(t *testing.T) {
		w.refusedGit([]string{
			"remote: Tidelock: refs/heads/main: you may not push to this protected branch",
			"! [remote rejected] ", "main -> main (you may not push to this protected branch)",
		}, work, "push", "-f", "origin", "main")
	})
	t.Run("nor with something else first", func(t *testing.T) { // the right to push is asked for every ref
		w.refusedGit([]string{
			"main -> main (you may not push to this protected branch)",
			"main -> new (another ref of the push was refused)",
		}, work, "push", "-f", "origin", "main:refs/heads/new", "main:refs/heads/open", "main")
		if w.head("refs/heads/new") != "" || w.head("refs/heads/open") != head {
			t.Error("the other refs of a refused push have moved")
		}
	})
	t.Run("nor atomically", func(t *testing.T) {
		w.refusedGit([]string{"you may not push to this protected branch"}, work, "push", "--atomic", "-f", "origin", "main:refs/heads/new", "main")
	})
	t.Run("nor without side-band", func(t *testing.T) {
		for _, capabilities := range []string{" report-status", ""} {
			body := append(pkt(string(head)+" "+string(rewritten)+" refs/heads/main\x00"+capabilities, ""), w.packOf(work, rewritten)...)
			response, answer := w.post("people/site", "git-receive-pack", body, http.Header{"Private-Token": {w.developer.token}})
			if !strings.Contains(answer, "you may not push to this protected branch") || (capabilities == "") != (response.StatusCode == 403) {
				t.Errorf("answer %d: %q", response.StatusCode, answer)
			}
		}
	})
	t.Run("nor delete it", func(t *testing.T) {
		w.refusedGit([]string{"main (the default branch cannot be deleted)"}, work, "push", "origin", ":main")
	})
	t.Run("a maintainer may not force it", func(t *testing.T) {
		w.git(work, "remote", "set-url", "origin", w.url(w.maintainer))
		w.refusedGit([]string{"! [remote rejected]", "main -> main (non-fast-forward)"}, work, "push", "-f", "origin", "main")
		w.refusedGit([]string{"non-fast-forward"}, work, "push", "--atomic", "-f", "origin", "main", string(first)+":refs/heads/new")
		if w.head("refs/heads/new") != "" {
			t.Error("an atomic push went half through")
		}
	})
	t.Run("nor with a false old value", func(t *testing.T) {
		for _, old := range []string{zero, string(first), string(rewritten)} {
			body := append(pkt(old+" "+string(rewritten)+" refs/heads/main\x00 report-status", ""), w.packOf(work, rewritten)...)
			w.post("people/site", "git-receive-pack", body, http.Header{"Private-Token": {w.maintainer.token}})
		}
	})
	t.Run("nor delete it", func(t *testing.T) {
		w.refusedGit([]string{"main (the default branch cannot be deleted)"}, work, "push", "origin", ":main")
	})
	if got := w.head("refs/heads/main"); got != head {
		t.Errorf("main is at %s, want %s", got, head)
	}
	t.Run("an open branch may be forced", func(t *testing.T) {
		w.git(work, "push", "-q", "-f", "origin", "main:refs/heads/open")
		if got := w.recorded("refs/heads/open"); got != rewritten {
			t.Errorf("open is at %s, want %s", got, rewritten)
		}
	})
	w.intact()
}

func TestPushNames(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	head := w.commit(work, "a", "1")
	pack := w.packOf(work, head)
	for _, name := range []string{
		"HEAD", "main", "refs/heads/", "refs/heads/../../config", "refs/heads/a/../../../HEAD", "refs/../config", "/etc/passwd",
		"refs/heads/-x", "refs/heads/--upload-pack=x", "-x", "refs/heads/a.lock", "refs/heads/.a", "refs/heads/a b", "refs/heads/a:b",
		"refs/heads/a\x01", "refs/heads/a\x1b[31m", "refs/heads/a\nb", "refs/heads/a\u009b", "refs/heads/\xff", "refs/heads/HEAD",
		"refs/heads/" + strings.Repeat("x", 300), "refs/merge-requests/1/head", "refs/tidelock/x",
	} {
		body := append(pkt(zero+" "+string(head)+" "+name+"\x00 report-status", ""), pack...)
		response, answer := w.post("people/site", "git-receive-pack", body, http.Header{"Private-Token": {w.maintainer.token}})
		if response.StatusCode != 400 && !strings.Contains(answer, "ng "+name+" ") {
			t.Errorf("%q: answer %d %q, want it refused", name, response.StatusCode, answer)
		}
	}
	if refs, err := w.repo().Refs(t.Context()); err != nil || len(refs) != 0 {
		t.Errorf("refs are now %v, %v, want none", refs, err)
	}
	w.intact()
}

// As go-git pushes: no side-band, no agent, one command.
func TestPlainPush(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	head := w.commit(work, "a", "1")
	auth := http.Header{"Private-Token": {w.maintainer.token}}

	r, err := http.NewRequestWithContext(t.Context(), "GET", w.server.URL+"/people/site.git/info/refs?service=git-receive-pack", nil)
	must(t, err)
	r.Header = auth.Clone()
	_, answer := w.do(r)
	lines := strings.Split(answer, "\x00")
	if !strings.HasSuffix(lines[0], zero+" capabilities^{}") {
		t.Errorf("an empty repository is advertised as %q", answer)
	}
	for _, capability := range []string{"report-status", "delete-refs", "ofs-delta", "side-band-64k", "atomic"} {
		if !strings.Contains(lines[1], capability) {
			t.Errorf("an empty repository is advertised without %s", capability)
		}
	}

	body := append(pkt(zero+" "+string(head)+" refs/heads/main\x00report-status", ""), w.packOf(work, head)...)
	response, answer := w.post("people/site.git", "git-receive-pack", body, auth)
	if want := string(pkt("unpack ok\n", "ok refs/heads/main\n", "")); response.StatusCode != 200 || answer != want {
		t.Errorf("answer %d %q, want %q", response.StatusCode, answer, want)
	}
	body = pkt(string(head)+" "+zero+" refs/heads/main\x00report-status", "")
	if _, answer = w.post("people/site.git", "git-receive-pack", body, auth); !strings.Contains(answer, "ng refs/heads/main the default branch cannot be deleted\n") {
		t.Errorf("deleting: %q", answer)
	}
	// A client may try whether it may push, before it sends a large pack.
	response, answer = w.post("people/site.git", "git-receive-pack", pkt(""), auth)
	if response.StatusCode != 200 || answer != "" || response.Header.Get("Content-Type") != "application/x-git-receive-pack-result" {
		t.Errorf("answer to a probe: %d %q %v", response.StatusCode, answer, response.Header)
	}
	if response, _ = w.post("people/site.git", "git-receive-pack", pkt(""), nil); response.StatusCode != 401 {
		t.Errorf("answer to an anonymous probe: %d, want 401", response.StatusCode)
	}
}

// Our advertisement offers what the git that serves the push can do, in the
// words of that git.
func TestAdvertisementIsGits(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	for i := range 20 {
		w.commit(work, "a", fmt.Sprint(i))
		w.git(work, "tag", "-a", fmt.Sprintf("v%d", i), "-m", "x")
	}
	w.git(work, "push", "-q", "origin", "main", "main:refs/heads/a/b", "--tags")
	w.git(w.repo().Path(), "pack-refs", "--all")
	w.commit(work, "a", "loose")
	w.git(work, "push", "-q", "origin", "main")

	git := w.git(w.repo().Path(), "-c", "receive.advertisePushOptions=true", "receive-pack", "--http-backend-info-refs", ".")
	r, err := http.NewRequestWithContext(t.Context(), "GET", w.server.URL+"/people/site.git/info/refs?service=git-receive-pack", nil)
	must(t, err)
	r.Header.Set("Private-Token", w.maintainer.token)
	_, ours := w.do(r)
	// git prints an object and a name per line, the capabilities on the first.
	parse := func(s string) (refs []string, capabilities map[string]bool) {
		capabilities = map[string]bool{}
		for line := range strings.Lines(s) {
			line, words, _ := strings.Cut(strings.TrimSpace(line), "\x00")
			for _, c := range strings.Fields(words) {
				capabilities[c] = true
			}
			if len(line) > 44 && !strings.Contains(line, "service=") {
				refs = append(refs, strings.TrimPrefix(line, "0000")[4:])
			}
		}
		return refs, capabilities
	}
	_, ours, _ = strings.Cut(ours, "0000")
	gitRefs, gitCapabilities := parse(git)
	refs, capabilities := parse(ours)
	if strings.Join(refs, "\n") != strings.Join(gitRefs, "\n") {
		t.Errorf("ours advertises\n%s\ngit\n%s", strings.Join(refs, "\n"), strings.Join(gitRefs, "\n"))
	}
	for c := range capabilities {
		if !gitCapabilities[c] && c != "agent=tidelock" {
			t.Errorf("ours offers %q, git does not: %v", c, gitCapabilities)
		}
	}
	for c := range gitCapabilities {
		if !capabilities[c] && !strings.HasPrefix(c, "agent=") {
			t.Errorf("git offers %q, ours does not", c)
		}
	}
}

// A large push is a chunked request, and git tells how it goes meanwhile.
func TestBigPush(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	base := make([]byte, 8<<10)
	for i := range 300 { // alike, so that there are deltas to resolve
		if i%10 == 0 {
			rand.Read(base)
		}
		base[i]++
		must(t, os.WriteFile(filepath.Join(work, fmt.Sprint(i)), base, 0o644))
	}
	w.git(work, "add", "-A")
	w.git(work, "commit", "-q", "-m", "big")
	out := w.git(work, "-c", "http.postBuffer=65536", "push", "--verbose", "--progress", "origin", "main")
	for _, want := range []string{"POST git-receive-pack (chunked)", "remote: Resolving deltas: 100%"} {
		if !strings.Contains(out, want) {
			t.Errorf("git shows\n%s\nwant %q", out, want)
		}
	}
	dir := filepath.Join(t.TempDir(), "clone")
	w.git(".", "clone", "-q", w.url(person{}), dir)
	if got, want := w.git(dir, "rev-parse", "HEAD"), w.git(work, "rev-parse", "HEAD"); got != want {
		t.Errorf("the clone is at %s, want %s", got, want)
	}
	w.intact()
}

// When SQL fails between git and the record, the client is warned, and the
// push is found by the comparison of refs with heads.
func TestPushNotRecorded(t *testing.T) {
	w := newWorld(t, options{})
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error)
	go func() { ran <- w.Run(ctx) }()
	defer func() {
		stop()
		must(t, <-ran)
	}()
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", "origin", "main")
	head := w.commit(work, "a", "1")

	w.store.broken.Store(true)
	out := w.git(work, "push", "origin", "main")
	if !strings.Contains(out, "remote: warning: the push is stored, but not announced yet") {
		t.Errorf("git shows\n%s\nwant a warning", out)
	}
	if got := w.head("refs/heads/main"); got != head {
		t.Errorf("main is at %s, want %s", got, head)
	}
	if got := w.recorded("refs/heads/main"); got == head {
		t.Fatal("the push is recorded although the store is broken")
	}
	w.store.broken.Store(false)
	w.eventually("the push is recorded", func() error {
		if w.recorded("refs/heads/main") != head {
			return errors.New("not yet")
		}
		return nil
	})
}

// The client hears "ok" only after the push is recorded.
func TestReportWaitsForTheRecord(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	for i := range 5 {
		head := w.commit(work, "a", fmt.Sprint(i))
		w.git(work, "push", "-q", "origin", "main")
		if got := w.recorded("refs/heads/main"); got != head {
			t.Fatalf("after push %d the store has %s, want %s", i, got, head)
		}
	}
}

func TestConcurrentPushes(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	w.git(work, "push", "-q", "origin", "main")
	const clients = 6
	var pushing sync.WaitGroup
	dirs := t.TempDir()
	for i := range clients {
		pushing.Go(func() {
			dir := filepath.Join(dirs, fmt.Sprint(i))
			for _, args := range [][]string{
				{"clone", "-q", w.url(w.maintainer), dir},
				{"-C", dir, "commit", "-q", "--allow-empty", "-m", fmt.Sprint(i)},
				{"-C", dir, "push", "-q", "origin", "HEAD:refs/heads/main", fmt.Sprintf("HEAD:refs/heads/b%d", i)},
			} {
				// Not all can win main, which is told to them.
				if out, err := w.tryGit(".", args...); err != nil && args[2] != "push" {
					t.Errorf("git %v: %v: %s", args, err, out)
				}
			}
		})
	}
	pushing.Wait()
	for i := range clients {
		name := tidelock.BranchRef(fmt.Sprintf("b%d", i))
		if w.head(name) == "" || w.head(name) != w.recorded(name) {
			t.Errorf("%s: on disk %q, recorded %q", name, w.head(name), w.recorded(name))
		}
	}
	if w.head("refs/heads/main") != w.recorded("refs/heads/main") {
		t.Errorf("main: on disk %q, recorded %q", w.head("refs/heads/main"), w.recorded("refs/heads/main"))
	}
	w.intact()
}

func TestDeployTokenAndArchivedProjectCannotPush(t *testing.T) {
	w := newWorld(t, options{})
	work := w.work(w.maintainer)
	_, secret, err := w.CreateDeployToken(t.Context(), w.root, forge.OnProject(w.project), forge.NewToken{
		Name: "d", Username: "deployer", Scopes: []tidelock.Scope{tidelock.ScopeReadRepository}})
	must(t, err)
	w.refusedGit([]string{"this kind of token cannot push code", "403"}, work, "push", "-q", w.urlOf("people/site.git", "deployer", secret.Reveal()), "main")
	if !gitserver.Matches(mustRequest(t, "GET", w.server.URL+"/people/site.git/info/refs")) {
		t.Error("info/refs is not git's")
	}
	archived := true
	_, err = w.EditProject(t.Context(), w.root, "people/site", forge.ProjectEdit{Archived: &archived})
	must(t, err)
	w.refusedGit([]string{"archived", "403"}, work, "push", "-q", "origin", "main")
}

func mustRequest(t testing.TB, method, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(nil))
	must(t, err)
	return r
}
