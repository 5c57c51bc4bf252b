package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fluxcd/pkg/apis/meta"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"tidelock.dev"
	"tidelock.dev/playground/e2e"
	"tidelock.dev/playground/e2e/why"
	"tidelock.dev/playground/fluxsystem"
	"tidelock.dev/playground/manifest"
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

// A whyCase is a case that is being played in a namespace and a project of
// its own.
type whyCase struct {
	*why.Case
	world    *whyWorld
	ns       string
	p        *e2e.Project
	words    map[string]string // that stand in scripts and files as $WORD
	tokens   map[string]int64
	versions map[string]string // of the kinds that were applied
	wide     []*unstructured.Unstructured
	left     []why.Step
	stray    func() error // ends the looking of a control that is never-blocking

	wrong    error
	took     time.Duration // the slowest answer
	sentence string
}

// begin makes the case's world and plays its script up to where it stops
// something.
func (c *whyCase) begin(ctx context.Context) error {
	visibility := "public"
	if c.Private {
		visibility = "private"
	}
	var err error
	if c.p, err = c.world.TryProject(ctx, whyGroup+"/"+c.Name, visibility); err != nil {
		return err
	}
	if !c.Private { // anybody's agent is told of it, and only a granted one may report
		if err := c.p.TryGrant(ctx); err != nil {
			return err
		}
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: c.ns}}
	if err := c.world.Cluster.Client.Create(ctx, ns); err != nil {
		return err
	}
	ca, err := os.ReadFile(c.world.CAFile)
	if err != nil {
		return err
	}
	block := func(text string) string { return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ") }
	server, err := url.Parse(c.world.URL)
	if err != nil {
		return err
	}
	c.words = map[string]string{
		"NS": c.ns, "PATH": c.p.Path, "PROJECT": fmt.Sprint(c.p.ID), "AGENT": fmt.Sprint(c.world.AgentID),
		"REPO": c.p.URL, "HOST": server.Host, "CA": block(string(ca)), "OTHERHOST": c.world.other, "OTHERCA": block(c.world.otherCA),
		"OCI": "oci://" + server.Host + "/" + c.p.Path + "/app", "CHARTS": "oci://" + server.Host + "/" + c.p.Path,
	}
	c.left = c.Steps
	return c.play(ctx)
}

// play plays the script until its end or until it stops something.
func (c *whyCase) play(ctx context.Context) error {
	for len(c.left) > 0 {
		step := c.left[0]
		c.left = c.left[1:]
		if step.Verb == "stop" {
			return nil
		}
		args := make([]string, len(step.Args))
		for i, arg := range step.Args {
			args[i] = c.expand(arg)
		}
		if err := c.step(ctx, step.Verb, args); err != nil {
			return fmt.Errorf("%s: %w", step, err)
		}
		last := !slices.ContainsFunc(c.left, func(s why.Step) bool { return s.Verb == "push" })
		if c.Always && last && c.stray == nil {
			c.watch(ctx)
		}
	}
	return nil
}

// expand replaces the case's words, longest first.
func (c *whyCase) expand(text string) string {
	words := slices.Sorted(maps.Keys(c.words))
	slices.Reverse(words)
	pairs := make([]string, 0, 2*len(words))
	for _, word := range words {
		pairs = append(pairs, "$"+word, c.words[word])
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

func (c *whyCase) folder(name string) map[string]string {
	files := c.Folder(name)
	for path, text := range files {
		files[path] = c.expand(text)
	}
	return files
}

func (c *whyCase) step(ctx context.Context, verb string, args []string) error {
	switch verb {
	case "trust":
		return c.trust(ctx, args)
	case "token":
		return c.token(ctx, args[0])
	case "revoke":
		return c.world.API(ctx, http.MethodDelete, fmt.Sprintf("projects/%d/deploy_tokens/%d", c.p.ID, c.tokens[args[0]]), nil, nil)
	case "push":
		return c.push(ctx, args[0], append(args[1:], "main")[0])
	case "git":
		out, err := c.p.TryGit(ctx, args...)
		c.words["OUT"] = out
		return err
	case "image":
		image := c.world.Image(c.p.Path + "/app")
		return image.TryPush(ctx, args[0], c.world.Manifests(c.folder(args[1]), c.words["COMMIT"]))
	case "chart":
		image := c.world.Image(c.p.Path + "/site")
		return image.TryPush(ctx, args[0], c.world.ChartOf("site", args[0], c.folder(args[1])))
	case "apply":
		return c.apply(ctx, args[0])
	case "refuse":
		return c.refuse(ctx, args[0])
	case "patch":
		return c.patch(ctx, args[0], args[1])
	case "delete":
		object, err := c.object(args[0])
		if err != nil {
			return err
		}
		return c.world.Cluster.Client.Delete(ctx, object)
	case "api":
		var in any
		if len(args) > 2 {
			in = json.RawMessage(args[2])
		}
		return c.world.API(ctx, args[0], args[1], in, nil)
	case "agent":
		start, ok := c.world.agents[args[0]]
		if !ok {
			return fmt.Errorf("there is no agent %q", args[0])
		}
		start()
		return nil
	case "answer":
		return c.answer(ctx, tidelock.CauseCode(args[0]))
	case "wait":
		return c.wait(ctx, args[0], args[1], strings.Join(args[2:], " "))
	}
	return fmt.Errorf("nobody plays the verb %q", verb)
}

// trust makes the Secret "forge" that sources name.
func (c *whyCase) trust(ctx context.Context, token []string) error {
	ca, err := os.ReadFile(c.world.CAFile)
	if err != nil {
		return err
	}
	data := map[string][]byte{"ca.crt": ca}
	if len(token) > 0 {
		data["username"] = []byte(c.words["USER_"+strings.ToUpper(token[0])])
		data["password"] = []byte(c.words["PASSWORD_"+strings.ToUpper(token[0])])
	}
	return c.world.Cluster.Client.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "forge", Namespace: c.ns}, Data: data})
}

func (c *whyCase) token(ctx context.Context, name string) error {
	var made struct {
		ID       int64  `json:"id"`
		Username string `json:"username"`
		Token    string `json:"token"`
	}
	err := c.world.API(ctx, http.MethodPost, fmt.Sprintf("projects/%d/deploy_tokens", c.p.ID),
		map[string]any{"name": name, "scopes": []string{"read_repository", "read_registry"}}, &made)
	c.tokens[name] = made.ID
	c.words["USER_"+strings.ToUpper(name)], c.words["PASSWORD_"+strings.ToUpper(name)] = made.Username, made.Token
	return err
}

// push commits a folder's files and pushes them. $COMMIT is the commit then,
// and so is the folder's name in capitals.
func (c *whyCase) push(ctx context.Context, folder, branch string) error {
	if err := c.p.TryCommit(ctx, branch, c.folder(folder)); err != nil {
		return err
	}
	commit, err := c.p.TryGit(ctx, "rev-parse", "HEAD")
	if err != nil {
		return err
	}
	c.words["COMMIT"], c.words[strings.ToUpper(folder)] = commit, commit
	_, err = c.p.TryGit(ctx, "push", "--quiet", "--force", "origin", branch)
	return err
}

func (c *whyCase) apply(ctx context.Context, file string) error {
	objects, err := manifest.Parse([]byte(c.expand(c.Files[file])))
	if err != nil {
		return err
	}
	for _, o := range objects {
		namespaced, err := c.world.Cluster.Client.IsObjectNamespaced(o)
		if err != nil {
			return err
		}
		if namespaced && o.GetNamespace() == "" {
			o.SetNamespace(c.ns)
		} else if !namespaced {
			c.wide = append(c.wide, o)
		}
		c.versions[o.GetKind()] = o.GetAPIVersion()
		// A definition of a moment ago may not be served yet, a policy's
		// namespace not be known: the cluster is eventually consistent.
		if err := manifest.Apply(ctx, c.world.Cluster.Client, o); err != nil {
			return err
		}
	}
	return nil
}

// refuse waits until the cluster would refuse a file.
func (c *whyCase) refuse(ctx context.Context, file string) error {
	ctx, cancel := context.WithTimeout(ctx, whyStep)
	defer cancel()
	objects, err := manifest.Parse([]byte(c.expand(c.Files[file])))
	if err != nil {
		return err
	}
	for _, o := range objects {
		o.SetNamespace(c.ns)
		for {
			err := c.world.Cluster.Client.Create(ctx, o.DeepCopy(), client.DryRunAll)
			if apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s is still taken, or fails otherwise: %w", o.GetName(), cmp.Or(err, ctx.Err()))
			case <-time.After(whyPolling):
			}
		}
	}
	return nil
}

// object names an object of the case's namespace, such as
// "Kustomization/site"; "Kind/namespace/name" is one of another.
func (c *whyCase) object(id string) (*unstructured.Unstructured, error) {
	parts := strings.Split(id, "/")
	ns := c.ns
	if len(parts) == 3 {
		ns, parts = parts[1], []string{parts[0], parts[2]}
	}
	if len(parts) != 2 {
		return nil, fmt.Errorf("%q names no object", id)
	}
	version, ok := c.versions[parts[0]]
	if !ok {
		version, ok = map[string]string{
			"Secret": "v1", "ConfigMap": "v1", "Pod": "v1", "Namespace": "v1", "Service": "v1", "Deployment": "apps/v1", "ReplicaSet": "apps/v1",
			"HelmChart": "source.toolkit.fluxcd.io/v1",
		}[parts[0]]
	}
	if !ok {
		return nil, fmt.Errorf("the case has applied no %s", parts[0])
	}
	group, err := schema.ParseGroupVersion(version)
	if err != nil {
		return nil, err
	}
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(group.WithKind(parts[0]))
	object.SetName(parts[1])
	if parts[0] != "Namespace" {
		object.SetNamespace(ns)
	}
	return object, nil
}

func (c *whyCase) patch(ctx context.Context, id, text string) error {
	object, err := c.object(id)
	if err != nil {
		return err
	}
	if !json.Valid([]byte(text)) {
		return fmt.Errorf("%s is no JSON", text)
	}
	return c.world.Cluster.Client.Patch(ctx, object, client.RawPatch("application/merge-patch+json", []byte(text)))
}

// wait waits until an object is in a state and its status has a text.
func (c *whyCase) wait(ctx context.Context, id, state, text string) error {
	object, err := c.object(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, whyStep)
	defer cancel()
	for {
		err := c.world.Cluster.Client.Get(ctx, client.ObjectKeyFromObject(object), object)
		if ctx.Err() == nil {
			err = inState(object, err, state, text)
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			status, _ := json.Marshal(object.Object["status"])
			return fmt.Errorf("not within %s: %w; its status: %s", whyStep, err, status)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func inState(object *unstructured.Unstructured, err error, state, text string) error {
	if state == "gone" {
		if err == nil {
			return errors.New("it is there")
		}
		return client.IgnoreNotFound(err)
	}
	if err != nil {
		return err
	}
	status, err := json.Marshal(object.Object["status"])
	if err != nil {
		return err
	}
	if !strings.Contains(string(status), text) {
		return fmt.Errorf("its status does not have %q", text)
	}
	want, ok := map[string]string{"live": "True", "failed": "False", "running": "Unknown", "is": ""}[state]
	if !ok {
		return fmt.Errorf("no object is ever %q", state)
	}
	if want == "" {
		return nil
	}
	conditions, _, err := unstructured.NestedSlice(object.Object, "status", "conditions")
	if err != nil {
		return err
	}
	for _, each := range conditions {
		condition, _ := each.(map[string]any)
		generation, _ := condition["observedGeneration"].(int64)
		if condition["type"] != meta.ReadyCondition || generation != object.GetGeneration() {
			continue
		}
		if condition["status"] != want {
			return fmt.Errorf("it is %s: %s", condition["status"], condition["message"])
		}
		return nil
	}
	return errors.New("it does not say if it is ready")
}

// A whyAnswer is a verdict as the API tells it.
type whyAnswer struct {
	Environment string             `json:"environment"`
	Object      tidelock.ObjectID  `json:"object"`
	Code        tidelock.CauseCode `json:"code"`
	Sentence    string             `json:"sentence"`
	Next        string             `json:"next"`
	Evidence    []struct {
		Where string `json:"where"`
		What  string `json:"what"`
	} `json:"evidence"`
	Also []whyAnswer `json:"also"`
}

func (a whyAnswer) verdict() tidelock.Verdict {
	v := tidelock.Verdict{Environment: a.Environment, Object: a.Object, Code: a.Code, Sentence: a.Sentence, Next: a.Next}
	for _, e := range a.Evidence {
		v.Evidence = append(v.Evidence, tidelock.Evidence{Where: e.Where, What: e.What})
	}
	for _, also := range a.Also {
		v.Also = append(v.Also, also.verdict())
	}
	return v
}

func (c *whyCase) revision() string {
	if c.Ask != "" {
		return c.expand(c.Ask)
	}
	return c.words["COMMIT"]
}

// ask asks once. It gives how long the answer took, too.
func (c *whyCase) ask(ctx context.Context) ([]tidelock.Verdict, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var answer struct {
		Verdicts []whyAnswer `json:"verdicts"`
	}
	began := time.Now()
	err := c.world.API(ctx, http.MethodGet, fmt.Sprintf("projects/%d/repository/commits/%s/why", c.p.ID, url.PathEscape(c.revision())), nil, &answer)
	took := time.Since(began)
	var verdicts []tidelock.Verdict
	for _, a := range answer.Verdicts {
		verdicts = append(verdicts, a.verdict())
	}
	return verdicts, took, err
}

// answer waits until a cause is named.
func (c *whyCase) answer(ctx context.Context, code tidelock.CauseCode) error {
	ctx, cancel := context.WithTimeout(ctx, whyStep)
	defer cancel()
	for {
		answers, _, err := c.ask(ctx)
		if err == nil && len(answers) > 0 && answers[0].Code == code {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %v, error %w", whyStep, answers, err)
		case <-time.After(whyPolling):
		}
	}
}

func (c *whyCase) judge(answers []tidelock.Verdict) error {
	here := *c.Case
	here.Object = tidelock.ObjectID(c.expand(string(here.Object)))
	here.Evidence = nil
	for _, text := range c.Evidence {
		here.Evidence = append(here.Evidence, c.expand(text))
	}
	return here.Judge(answers)
}

// settle waits until the case's answer is right. It is not an error when that
// does not happen: count says so.
func (c *whyCase) settle(ctx context.Context) {
	if c.wrong != nil {
		return
	}
	for {
		answers, _, err := c.ask(ctx)
		if err == nil && c.judge(answers) == nil {
			break
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(whyPolling):
		}
	}
	if c.stray != nil {
		c.wrong = c.stray()
	}
}

// count asks once more, and this answer counts.
func (c *whyCase) count(ctx context.Context) {
	answers, took, err := c.ask(ctx)
	if err == nil {
		err = c.judge(answers)
	}
	c.wrong = err
	c.took = max(c.took, took)
	if len(answers) > 0 {
		c.sentence = answers[0].Sentence
	}
	c.world.mu.Lock()
	defer c.world.mu.Unlock()
	c.world.times = append(c.world.times, took)
}

// watch asks all the time, until stray is called, which returns what was
// blamed in the meantime.
func (c *whyCase) watch(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	blamed := make(chan error, 1)
	go func() {
		var first error
		for ctx.Err() == nil {
			answers, _, err := c.ask(ctx)
			for _, a := range answers {
				if err == nil && first == nil && a.Blocking() {
					first = fmt.Errorf("on its way, named %s", why.Told(a))
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(2 * whyPolling):
			}
		}
		blamed <- first
	}()
	c.stray = sync.OnceValue(func() error {
		cancel()
		return <-blamed
	})
	c.world.t.Cleanup(func() { _ = c.stray() })
}

// command asks with the command line, which has to say the same as the API.
func (c *whyCase) command(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, e2e.Binary(c.world.t), "why", c.revision(), "--project", c.p.Path)
	cmd.Env = append(os.Environ(), "TIDELOCK_URL="+c.world.URL, "TIDELOCK_TOKEN="+c.world.Token, "TIDELOCK_CA_FILE="+c.world.CAFile)
	out, err := cmd.CombinedOutput()
	code := 1
	switch verdict := (tidelock.Verdict{Code: c.Expect}); {
	case c.Expect == tidelock.CauseUnknown:
		code = 3
	case !verdict.Blocking():
		code = 0
	}
	if got := cmd.ProcessState.ExitCode(); got != code || !strings.Contains(string(out), fmt.Sprintf(" (%s)\n", c.Expect)) {
		return fmt.Errorf("tidelock why: exit code %d, want %d and %s; %w\n%s", got, code, c.Expect, err, out)
	}
	return nil
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
