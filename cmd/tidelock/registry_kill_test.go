package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/servertest"
)

// Artifacts are pushed by several clients while the server is killed and
// started again, connections are cut, and the agent comes and goes. In the end
// every accepted manifest is there with all its blobs, every tag is where its
// pusher left it, and the agent has been told; what was never accepted was
// announced to nobody.
func TestKilledServerKeepsArtifacts(t *testing.T) {
	w := newKillWorld(t, killSeed(t, killRunSeed))
	w.run(killPushes)
	w.mustSettle(time.Minute)
}

// The control: with the same seed, and without looking again after a gap, the
// agent is not told of a push.
func TestKilledServerControl(t *testing.T) {
	w := newKillWorld(t, killSeed(t, killRunSeed), "--disable-resync")
	w.run(killPushes / 4)
	if err := w.settled(5 * time.Second); err == nil {
		t.Fatalf("seed %d: nothing was lost without resync; the kills test nothing", w.seed)
	} else {
		t.Logf("lost, as it should be: %v", err)
	}
}

// TestSoakKilledServer is the same for 10,000 pushes, with new seeds.
func TestSoakKilledServer(t *testing.T) {
	if os.Getenv("TIDELOCK_SOAK") == "" {
		t.Skip("set TIDELOCK_SOAK, or run make soak")
	}
	for done := 0; done < soakPushes && !t.Failed(); done += soakPushes / 10 {
		seed := killSeed(t, newKillSeed)
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			w := newKillWorld(t, seed)
			w.run(soakPushes / 10)
			w.mustSettle(3 * time.Minute)
		})
	}
}

const (
	killPushes = 200
	soakPushes = 10_000
	killImages = 4
	pushers    = 6
)

var killRunSeed = sync.OnceValue(newKillSeed)

func newKillSeed() uint64 { return uint64(time.Now().UnixNano()) }

// killSeed is TIDELOCK_SEED, or one that otherwise gives; it is printed.
func killSeed(t *testing.T, otherwise func() uint64) uint64 {
	t.Helper()
	seed := otherwise()
	if text := os.Getenv("TIDELOCK_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("TIDELOCK_SEED: %v", err)
		}
	}
	fmt.Printf("%s: seed %d (set TIDELOCK_SEED to repeat it)\n", t.Name(), seed)
	return seed
}

// A killWorld is a server that is killed, clients that push to it, and an
// agent that listens.
type killWorld struct {
	t      *testing.T
	seed   uint64
	random *rand.Rand // of the faults alone
	server *serverProcess
	agent  *lightAgent
	tags   []*pushedTag
	images []string

	mu      sync.Mutex
	pushed  int
	failure error // the first that no fault excuses
	kills   int
}

// A pushedTag is what its one pusher knows of a tag.
type pushedTag struct {
	image, tag string

	mu       sync.Mutex
	attempts []*pushAttempt
}

type pushAttempt struct {
	manifest tidelock.Digest
	blobs    []tidelock.Digest
	outcome  pushOutcome
}

type pushOutcome string

const (
	unanswered pushOutcome = "unanswered" // it may have been accepted
	accepted   pushOutcome = "accepted"
	refused    pushOutcome = "refused"
)

func newKillWorld(t *testing.T, seed uint64, serverFlags ...string) *killWorld {
	t.Helper()
	w := &killWorld{t: t, seed: seed, random: rand.New(rand.NewPCG(seed, 0))}
	w.server = startServerProcess(t, serverFlags...)
	c := w.server.connection()
	group, err := c.createGroup(t.Context(), "team")
	if err != nil {
		t.Fatal(err)
	}
	for i := range killImages / 2 {
		if _, err := c.createProject(t.Context(), group, fmt.Sprintf("site-%d", i)); err != nil {
			t.Fatal(err)
		}
		// The project's own image, and one below it.
		w.images = append(w.images, fmt.Sprintf("team/site-%d", i), fmt.Sprintf("team/site-%d/app", i))
	}
	for i := range pushers {
		for j, name := range []string{"latest", "main"} {
			w.tags = append(w.tags, &pushedTag{image: w.images[(i+j)%len(w.images)], tag: fmt.Sprintf("%s-%d", name, i)})
		}
	}
	w.agent = startLightAgent(t, w.server, c, group, w.tags)
	return w
}

// run pushes while one fault after another happens. It ends with a push that
// is made while the agent is away, and with everything running again.
func (w *killWorld) run(pushes int) {
	w.t.Helper()
	done := make(chan struct{})
	var busy sync.WaitGroup
	for i := range pushers {
		random := rand.New(rand.NewPCG(w.seed, uint64(i+1)))
		own := w.tags[2*i : 2*i+2]
		busy.Go(func() { w.push(random, own, pushes) })
	}
	go func() {
		busy.Wait()
		close(done)
	}()
	for pushing := true; pushing; {
		select {
		case <-done:
			pushing = false
		case <-time.After(time.Duration(20+w.random.IntN(200)) * time.Millisecond):
			w.fault()
		}
	}
	if w.failure != nil {
		w.t.Fatalf("seed %d: %v", w.seed, w.failure)
	}
	w.agent.leave()
	last := w.newPush(rand.New(rand.NewPCG(w.seed, 99)), w.tags[0])
	if got, err := last.send(w.t.Context(), w.server.oci); err != nil {
		w.t.Fatalf("seed %d: the last push: got %d, %v", w.seed, got.Status, err)
	}
	last.note(accepted)
	w.agent.join()
	w.t.Logf("seed %d: %d pushes, %d kills, %d announcements", w.seed, w.pushed, w.kills, w.agent.count())
}

// fault breaks one thing and mends it.
func (w *killWorld) fault() {
	w.t.Helper()
	wait := func(most int) { time.Sleep(time.Duration(w.random.IntN(most)) * time.Millisecond) }
	switch w.random.IntN(6) {
	case 0, 1, 2:
		w.kills++
		w.server.kill()
		wait(200)
		w.server.start()
	case 3:
		w.agent.cut()
	case 4:
		w.agent.leave()
		wait(1000)
		w.agent.join()
	case 5:
		w.agent.forget()
	}
}

// push pushes to tags of its own until all pushers together have pushed
// enough.
func (w *killWorld) push(random *rand.Rand, tags []*pushedTag, pushes int) {
	for n := 0; ; n++ {
		w.mu.Lock()
		w.pushed++
		over := w.pushed > pushes || w.failure != nil
		w.mu.Unlock()
		if over {
			return
		}
		time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
		tag := tags[random.IntN(len(tags))]
		err := w.pushUntilAnswered(random, w.newPush(random, tag))
		if err == nil && random.IntN(8) == 0 {
			err = w.tryRefused(random, tag.image, fmt.Sprintf("1.%d.%d", random.Uint32(), n))
		}
		if err != nil {
			w.mu.Lock()
			if w.failure == nil {
				w.failure = err
			}
			w.mu.Unlock()
			return
		}
	}
}

// pushUntilAnswered pushes as a person would: again after an error, or, now
// and then, never again.
func (w *killWorld) pushUntilAnswered(random *rand.Rand, p *preparedPush) error {
	for end := time.Now().Add(time.Minute); ; {
		ctx, cancel := context.WithCancel(w.t.Context())
		if random.IntN(8) == 0 { // the client's connection is cut
			ctx, cancel = context.WithTimeout(w.t.Context(), time.Duration(random.IntN(40))*time.Millisecond)
		}
		answer, err := p.send(ctx, w.server.oci)
		cancel()
		switch {
		case err == nil:
			p.note(accepted)
			return nil
		case answer.Status == http.StatusInternalServerError,
			answer.Status >= 400 && answer.Status < 500 && p.reachedManifest:
			return fmt.Errorf("push %s:%s: %w", p.tag.image, p.tag.tag, err)
		}
		if time.Now().After(end) {
			return fmt.Errorf("push %s:%s for a minute: %w", p.tag.image, p.tag.tag, err)
		}
		if random.IntN(3) == 0 {
			return nil // it gives up, and does not know
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// tryRefused pushes a version and then something else under the same one, and
// a manifest whose layer is missing. Neither may be accepted.
func (w *killWorld) tryRefused(random *rand.Rand, image, version string) error {
	tag := &pushedTag{image: image, tag: version}
	w.mu.Lock()
	w.tags = append(w.tags, tag)
	w.mu.Unlock()
	first := w.newPush(random, tag)
	if err := w.pushUntilAnswered(random, first); err != nil {
		return err
	}
	missing := w.newPush(random, &pushedTag{image: image, tag: "missing"})
	if answer, err := w.server.oci.PutManifest(w.t.Context(), image, "missing", tidelock.MediaTypeManifest, missing.manifest); err == nil && answer.Status < 400 {
		return fmt.Errorf("a manifest without its layer was accepted: %d %s", answer.Status, answer.Body)
	}
	if first.attempt.outcome != accepted {
		return nil // then it may be free
	}
	second := w.newPush(random, tag)
	answer, err := second.send(w.t.Context(), w.server.oci)
	if err == nil {
		return fmt.Errorf("%s:%s moved from %s to %s: %d", image, version, first.attempt.manifest, second.attempt.manifest, answer.Status)
	}
	second.note(refused)
	return nil
}

// A preparedPush is an artifact and where it shall go.
type preparedPush struct {
	tag             *pushedTag
	attempt         *pushAttempt
	config, layer   []byte
	manifest        []byte
	chunked         bool
	reachedManifest bool
}

func (w *killWorld) newPush(random *rand.Rand, tag *pushedTag) *preparedPush {
	layer := make([]byte, 1+random.IntN(16<<10))
	for i := range layer {
		layer[i] = byte(random.Uint32())
	}
	config := []byte("{}") // often the same for all, as clients do
	if random.IntN(2) == 0 {
		config = fmt.Appendf(nil, `{"n":%d}`, random.Uint64())
	}
	p := &preparedPush{tag: tag, config: config, layer: layer, chunked: random.IntN(2) == 0}
	p.manifest = servertest.ManifestOf(config, layer)
	p.attempt = &pushAttempt{
		manifest: tidelock.DigestOf(p.manifest), outcome: unanswered,
		blobs: []tidelock.Digest{tidelock.DigestOf(config), tidelock.DigestOf(layer)},
	}
	tag.mu.Lock()
	defer tag.mu.Unlock()
	tag.attempts = append(tag.attempts, p.attempt)
	return p
}

func (p *preparedPush) note(o pushOutcome) {
	p.tag.mu.Lock()
	defer p.tag.mu.Unlock()
	p.attempt.outcome = o
}

// send pushes the artifact once; anything but 201 is an error.
func (p *preparedPush) send(ctx context.Context, c *servertest.OCI) (servertest.Response, error) {
	p.reachedManifest = false
	for _, blob := range [][]byte{p.config, p.layer} {
		put := c.PutBlob
		if p.chunked {
			put = func(ctx context.Context, image string, content []byte) (servertest.Response, error) {
				return putInPieces(ctx, c, image, content)
			}
		}
		if answer, err := put(ctx, p.tag.image, blob); err != nil {
			return answer, err
		}
	}
	p.reachedManifest = true
	answer, err := c.PutManifest(ctx, p.tag.image, p.tag.tag, tidelock.MediaTypeManifest, p.manifest)
	if err == nil && answer.Status != http.StatusCreated {
		err = fmt.Errorf("push a manifest: got %d %s", answer.Status, answer.Body)
	}
	return answer, err
}

// putInPieces uploads a blob with two PATCHes and a PUT.
func putInPieces(ctx context.Context, c *servertest.OCI, image string, content []byte) (servertest.Response, error) {
	answer, err := c.Do(ctx, http.MethodPost, image+"/blobs/uploads/", nil)
	want := http.StatusAccepted
	for _, piece := range [][]byte{content[:len(content)/2], content[len(content)/2:], nil} {
		if err != nil || answer.Status != want {
			break
		}
		location, lost := c.Location(answer)
		if lost != nil {
			return answer, lost
		}
		if piece != nil {
			answer, err = c.Do(ctx, http.MethodPatch, location.String(), bytes.NewReader(piece), "Content-Type", "application/octet-stream")
			continue
		}
		query := location.Query()
		query.Set("digest", string(tidelock.DigestOf(content)))
		location.RawQuery = query.Encode()
		answer, err = c.Do(ctx, http.MethodPut, location.String(), nil)
		want = http.StatusCreated
	}
	if err == nil && answer.Status != want {
		err = fmt.Errorf("upload a blob in pieces: got %d %s", answer.Status, answer.Body)
	}
	return answer, err
}

func (w *killWorld) mustSettle(within time.Duration) {
	w.t.Helper()
	if err := w.settled(within); err != nil {
		w.t.Fatalf("seed %d: %v", w.seed, err)
	}
	if err := w.check(); err != nil {
		w.t.Fatalf("seed %d: %v", w.seed, err)
	}
}

// settled waits until the agent has been told of where every tag is.
func (w *killWorld) settled(within time.Duration) error {
	for end := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		var missing []error
		for _, tag := range w.tags {
			if err := w.tagSettled(tag); err != nil {
				missing = append(missing, fmt.Errorf("%s:%s: %w", tag.image, tag.tag, err))
			}
		}
		if len(missing) == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %s: %w", within, errors.Join(missing...))
		}
	}
}

func (w *killWorld) tagSettled(tag *pushedTag) error {
	head, err := w.server.oci.Do(w.t.Context(), http.MethodHead, tag.image+"/manifests/"+tag.tag, nil)
	if err != nil {
		return err
	}
	at := tidelock.Digest(head.Header.Get("Docker-Content-Digest"))
	if head.Status != http.StatusOK && head.Status != http.StatusNotFound {
		return fmt.Errorf("asked where it is: %d", head.Status)
	}
	if may := tag.mayBeAt(); !slices.Contains(may, at) {
		return fmt.Errorf("is at %q, want one of %q", at, may)
	}
	if !w.agent.follows(tag) {
		return nil
	}
	if has := w.agent.has(tag); has != at {
		return fmt.Errorf("is at %q, and the agent has %q", at, has)
	}
	return nil
}

// mayBeAt are the digests that the tag may be at in the end: what was accepted
// last, and what was pushed without an answer since the one accepted before
// that, because it may have arrived late.
func (tag *pushedTag) mayBeAt() []tidelock.Digest {
	tag.mu.Lock()
	defer tag.mu.Unlock()
	var may []tidelock.Digest
	acceptances := 0
	for _, a := range slices.Backward(tag.attempts) {
		if a.outcome == accepted {
			if acceptances++; acceptances == 2 {
				return may
			}
			may = append(may, a.manifest)
		}
		if a.outcome == unanswered {
			may = append(may, a.manifest)
		}
	}
	if acceptances == 0 {
		may = append(may, "") // it may not be there
	}
	return may
}

// check reads everything that was ever pushed.
func (w *killWorld) check() error {
	known := map[tidelock.Digest]pushOutcome{}
	for _, tag := range w.tags {
		for _, a := range tag.attempts {
			known[a.manifest] = a.outcome
			if err := w.checkAttempt(tag, a); err != nil {
				return fmt.Errorf("%s:%s, %s %s: %w", tag.image, tag.tag, a.outcome, a.manifest, err)
			}
		}
	}
	for digest := range w.agent.heard() {
		if outcome := known[digest]; outcome != accepted && outcome != unanswered {
			return fmt.Errorf("the agent was told of %s, which was %s", digest, outcome)
		}
	}
	return nil
}

func (w *killWorld) checkAttempt(tag *pushedTag, a *pushAttempt) error {
	there, err := w.read(tag.image + "/manifests/" + string(a.manifest))
	if err != nil {
		return err
	}
	if !there && a.outcome == accepted {
		return errors.New("it is gone")
	}
	if there && a.outcome == refused {
		return errors.New("it was refused and is there")
	}
	if _, told := w.agent.heard()[a.manifest]; told && !there {
		return errors.New("the agent was told of it, and it is not there")
	}
	for _, blob := range a.blobs {
		whole, err := w.read(tag.image + "/blobs/" + string(blob))
		if err != nil {
			return err
		}
		if there && !whole {
			return fmt.Errorf("it is there without its blob %s", blob)
		}
	}
	return nil
}

// read reports whether something is there; it must be what its digest says.
func (w *killWorld) read(path string) (bool, error) {
	answer, err := w.server.oci.Do(w.t.Context(), http.MethodGet, path, nil, "Accept", "*/*")
	if err != nil {
		return false, err
	}
	switch answer.Status {
	case http.StatusOK:
		want := path[strings.LastIndex(path, "/")+1:]
		if got := tidelock.DigestOf([]byte(answer.Body)); string(got) != want {
			return false, fmt.Errorf("%s is %s", path, got)
		}
		return true, nil
	case http.StatusNotFound:
		return false, nil
	}
	return false, fmt.Errorf("%s: got %d %s", path, answer.Status, answer.Body)
}

// A serverProcess is "tidelock server", which may be killed.
type serverProcess struct {
	t     *testing.T
	dir   string
	url   string
	flags []string
	roots *x509.CertPool
	oci   *servertest.OCI
	cmd   *exec.Cmd
	log   *os.File
}

func startServerProcess(t *testing.T, flags ...string) *serverProcess {
	t.Helper()
	p := &serverProcess{t: t, dir: t.TempDir()}
	port := quietPort(t)
	p.url = fmt.Sprintf("https://localhost:%d", port)
	p.flags = append([]string{
		"server", "--data-dir", p.dir, "--listen", fmt.Sprintf("localhost:%d", port), "--ssh-listen", "none",
		"--rate-limit-user", "0", "--rate-limit-anonymous", "0", "--rate-limit-sign-in", "0",
	}, flags...)
	var err error
	if p.log, err = os.Create(filepath.Join(t.TempDir(), "server.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		p.log.Close()
		if text, err := os.ReadFile(p.log.Name()); err == nil && t.Failed() {
			t.Logf("the end of the server's log:\n%s", text[max(0, len(text)-12<<10):])
		}
	})
	p.start()
	token, err := os.ReadFile(filepath.Join(p.dir, "root.token"))
	if err != nil {
		t.Fatal(err)
	}
	p.oci.Username, p.oci.Password = "root", strings.TrimSpace(string(token))
	return p
}

// quietPort is one that the system gives to no connection of its own, because
// while the server is down any might get it.
func quietPort(t *testing.T) int {
	t.Helper()
	for range 100 {
		port := 20_000 + rand.IntN(10_000)
		if l, err := net.Listen("tcp", fmt.Sprintf("localhost:%d", port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}

// start starts the server and waits until it is ready.
func (p *serverProcess) start() {
	p.t.Helper()
	p.cmd = exec.Command("tidelock", p.flags...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = p.ready(); err == nil {
			return
		}
	}
	p.t.Fatalf("the server is not ready after 30 s: %v", err)
}

func (p *serverProcess) ready() error {
	if p.roots == nil {
		pem, err := os.ReadFile(filepath.Join(p.dir, "tls", "ca.crt"))
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return errors.New("no certificate yet")
		}
		p.roots = roots
		// HTTP/1, so that whoever gives up cuts a connection and not a stream.
		p.oci = &servertest.OCI{URL: p.url, HTTP: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: roots}, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
			MaxIdleConnsPerHost: pushers,
		}}}
	}
	answer, err := p.oci.HTTP.Get(p.url + "/-/readyz")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return errors.New(answer.Status)
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// kill ends the process at once.
func (p *serverProcess) kill() {
	if p.cmd == nil {
		return
	}
	p.cmd.Process.Kill()
	p.cmd.Wait() // "signal: killed"
	p.cmd = nil
}

func (p *serverProcess) connection() *connection {
	p.t.Helper()
	c, err := source{URL: p.url, CAFile: filepath.Join(p.dir, "tls", "ca.crt"), Token: tidelock.NewSecret(p.oci.Password), from: "the test"}.connect()
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}
