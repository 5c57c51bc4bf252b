package e2e_test

import (
	"cmp"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev/playground/e2e"
	"tidelock.dev/playground/e2e/why"
	"tidelock.dev/playground/fluxsystem"
)

// whyGroup is that of the agent's configuration project, so that the agent may
// report about public projects there.
const whyGroup = "ops"

const (
	whyWanted   = 0.95             // share of cases with the right answer
	whyAtOnce   = 12               // cases that are played at a time
	whyStep     = 2 * time.Minute  // for what a script waits for
	whySettle   = 75 * time.Second // from what happened in the cluster to the right answer
	whyRounds   = 3                // every answer is asked for so often, and must be right each time
	whyCommands = 8                // of so many cases one is asked for with the command line, too
	whyPolling  = 250 * time.Millisecond
)

// The cases of the corpus happen in a real cluster, all of them beside each
// other, and tidelock why names their causes. TIDELOCK_WHY, a regular
// expression, chooses cases by name.
func TestWhyCorpus(t *testing.T) {
	testWhy(t, func(c *why.Case) bool { return !c.Soak })
}

// TestSoakWhyCorpus plays those cases, too, that take long.
func TestSoakWhyCorpus(t *testing.T) {
	if os.Getenv("TIDELOCK_SOAK") == "" {
		t.Skip("set TIDELOCK_SOAK to run it")
	}
	testWhy(t, func(*why.Case) bool { return true })
}

func testWhy(t *testing.T, chosen func(*why.Case) bool) {
	cases, err := why.Read(os.DirFS("testdata/why"))
	if err != nil {
		t.Fatal(err)
	}
	named, err := regexp.Compile(os.Getenv("TIDELOCK_WHY"))
	if err != nil {
		t.Fatal(err)
	}
	w := newWhyWorld(t)
	for _, c := range cases {
		if chosen(c) && named.MatchString(c.Name) {
			w.cases = append(w.cases, &whyCase{Case: c, world: w, ns: "why-" + c.Name, tokens: map[string]int64{}, versions: map[string]string{}})
		}
	}
	// What takes long begins first.
	slices.SortStableFunc(w.cases, func(a, b *whyCase) int { return cmp.Compare(b.Slow, a.Slow) })
	w.play()
	w.report()
}

// A whyWorld is what all cases share.
type whyWorld struct {
	*e2e.Forge
	t       *testing.T
	other   string // a URL of the forge's behind which is a server of another name
	otherCA string // that it is trusted by
	began   time.Time
	cases   []*whyCase
	agents  map[string]func() // start the others than the one of most cases

	mu    sync.Mutex
	times []time.Duration // of all answers
}

func newWhyWorld(t *testing.T) *whyWorld {
	t.Helper()
	c := e2e.Cluster(t)
	w := &whyWorld{t: t}
	w.other, w.otherCA = newOtherHost(t)
	w.Forge = e2e.StartForge(t, e2e.ForgeConfig{
		ServerFlags: []string{"--url-alias", w.other, "--url-alias", "https://forge.invalid", "--url-alias", "https://localhost:1"},
		AgentConfig: "flux:\n  webhook_receiver_url: " + c.Flux.ReceiverURL() + "\n  selector: tidelock.dev/trigger notin (none, previous, away)\n",
	})
	w.agents = map[string]func(){
		previousAgent: sync.OnceFunc(func() { w.startAgent(previousAgent, previousBinary(t)) }),
		awayAgent:     sync.OnceFunc(func() { w.startAgent(awayAgent, e2e.Binary(t)) }),
	}
	t.Cleanup(w.clean)
	return w
}

// Agents beside the one that serves most cases.
const (
	previousAgent = "previous" // of the last release
	awayAgent     = "away"     // stopped at the beginning, as it is missed only after a minute
)

func (w *whyWorld) startAgent(name, binary string) {
	w.Configure(name, "flux:\n  webhook_receiver_url: "+w.Cluster.Flux.ReceiverURL()+"\n  selector: tidelock.dev/trigger="+name+"\n")
	w.StartAgent(name, name, binary)
}

// play plays and judges all cases. Those that stop what all of them share come
// last, and none is restarted, as what is judged later does not need it.
func (w *whyWorld) play() {
	w.began = time.Now()
	away := w.without(awayAgent)
	w.each(away, (*whyCase).begin)
	w.stop(awayAgent)
	w.each(slices.DeleteFunc(slices.Clone(w.cases), func(c *whyCase) bool { return c.Stops() == awayAgent }), (*whyCase).begin)
	w.log("played")
	w.judge(append(away, w.without("")...))
	w.log("judged")
	var slow []*whyCase // a controller is missed only after a while
	for _, process := range []string{fluxsystem.Kustomize, fluxsystem.Helm} {
		slow = append(slow, w.stop(process)...)
	}
	// Not before the others: without it, controllers that have something to
	// tell are busy for half a minute.
	w.judge(w.stop(fluxsystem.Notification))
	slow = append(slow, w.stop(fluxsystem.Source)...)
	w.judge(slow)
	w.log("judged what was stopped")
}

func (w *whyWorld) log(what string) {
	w.t.Logf("%s after %s", what, time.Since(w.began).Round(time.Millisecond))
}

// without returns the cases that stop a process.
func (w *whyWorld) without(process string) (cases []*whyCase) {
	for _, c := range w.cases {
		if c.Stops() == process {
			cases = append(cases, c)
		}
	}
	return cases
}

// stop stops a process, unless no case wants that, and plays the rest of those
// that do.
func (w *whyWorld) stop(process string) []*whyCase {
	w.t.Helper()
	cases := w.without(process)
	if len(cases) == 0 {
		return nil
	}
	if process == awayAgent {
		w.Kill(process)
	} else {
		if err := w.Cluster.Flux.Kill(process); err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := w.Cluster.Flux.Restart(ctx, process); err != nil {
				w.t.Error(err)
			}
		})
	}
	w.each(cases, (*whyCase).play)
	w.log("played without the " + process)
	return cases
}

// each calls do for all cases, whyAtOnce at a time.
func (w *whyWorld) each(cases []*whyCase, do func(*whyCase, context.Context) error) {
	var group sync.WaitGroup
	slots := make(chan struct{}, whyAtOnce)
	for _, c := range cases {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if c.wrong != nil {
				return
			}
			if err := do(c, w.t.Context()); err != nil {
				c.wrong = fmt.Errorf("it could not be played: %w", err)
			}
		})
	}
	group.Wait()
}

// judge waits until each case's answer is right, or will not be; then all are
// asked for again, one after the other, and those answers count.
func (w *whyWorld) judge(cases []*whyCase) {
	ctx, cancel := context.WithTimeout(w.t.Context(), whySettle)
	defer cancel()
	var group sync.WaitGroup
	for _, c := range cases {
		group.Go(func() { c.settle(ctx) })
	}
	group.Wait()
	for range whyRounds {
		for _, c := range cases {
			if c.wrong == nil {
				c.count(w.t.Context())
			}
		}
	}
	for i, c := range cases {
		if c.wrong == nil && i%whyCommands == 0 {
			c.wrong = c.command(w.t.Context())
		}
	}
}

// clean removes what cases made in the cluster. It does not wait: the cluster
// has nothing better to do.
func (w *whyWorld) clean() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, c := range w.cases {
		var objects []client.Object
		for _, o := range c.wide {
			objects = append(objects, o)
		}
		objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: c.ns}})
		for _, o := range objects {
			if err := w.Cluster.Client.Delete(ctx, o); client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
				w.t.Error(err)
			}
		}
	}
}

// report prints the table and fails when too much is wrong.
func (w *whyWorld) report() {
	kinds := map[why.Kind]int{}
	right := 0
	var table, wrong strings.Builder
	for _, c := range w.cases {
		kinds[c.Kind]++
		verdict := "right"
		if c.wrong != nil {
			verdict = "WRONG"
			fmt.Fprintf(&wrong, "%s (%s): want %s; %v\n", c.Name, c.Kind, c.Expect, c.wrong)
			if c.Kind == why.Control {
				w.t.Errorf("control %s: %v", c.Name, c.wrong)
			}
		} else {
			right++
		}
		simulated := ""
		if c.Simulated != "" {
			simulated = " (simulated by " + c.Simulated + ")"
		}
		fmt.Fprintf(&table, "%-5s  %-7s  %-36s  %-21s %5.0f ms  %s%s\n", verdict, c.Kind, c.Name, c.Expect,
			float64(c.took.Microseconds())/1000, c.sentence, simulated)
	}
	share := float64(right) / float64(len(w.cases))
	slices.Sort(w.times)
	w.t.Logf("\n%s%d cases: %d faults, %d controls, %d doubles; %d right (%.1f %%, wanted %.0f %%)", table.String(), len(w.cases),
		kinds[why.Fault], kinds[why.Control], kinds[why.Double], right, 100*share, 100*whyWanted)
	if n := len(w.times); n > 0 {
		w.t.Logf("%d answers: p50 %s, p99 %s, max %s (p99 wanted: 1s)", n, w.times[n/2].Round(100*time.Microsecond),
			w.times[n*99/100].Round(100*time.Microsecond), w.times[n-1].Round(100*time.Microsecond))
	}
	if wrong.Len() > 0 {
		w.t.Logf("wrong:\n%s", wrong.String())
	}
	if share < whyWanted {
		w.t.Errorf("%.1f %% of the answers are right, want %.0f %%", 100*share, 100*whyWanted)
	}
}

// newOtherHost serves TLS on an address of this machine that its certificate
// does not name, though it is trusted.
func newOtherHost(t *testing.T) (address, ca string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	_ = server.Listener.Close()
	server.Listener = listener
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	block := &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}
	return "https://" + listener.Addr().String(), string(pem.EncodeToMemory(block))
}
