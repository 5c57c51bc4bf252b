package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
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
	"tidelock.dev/playground/manifest"
)

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
		if err == nil && state == "quiet" {
			err = quiet(object)
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

// quiet reports that Flux may fetch a source once more by itself, and then
// whatever was pushed meanwhile: it does 750 ms after it has first seen it, and
// for every request that it has not handled.
func quiet(source *unstructured.Unstructured) error {
	handled, _, err := unstructured.NestedString(source.Object, "status", "lastHandledReconcileAt")
	if err != nil {
		return err
	}
	if asked := source.GetAnnotations()[meta.ReconcileRequestAnnotation]; asked != handled {
		return fmt.Errorf("Flux was asked at %q, and has handled %q", asked, handled)
	}
	if age := time.Since(source.GetCreationTimestamp().Time); age < 3*time.Second {
		return fmt.Errorf("it is only %s old", age)
	}
	return nil
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
	want, ok := map[string]string{"live": "True", "quiet": "True", "failed": "False", "running": "Unknown", "is": ""}[state]
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
