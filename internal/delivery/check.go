package delivery

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
)

const (
	// maxFindings bounds what is said of one application.
	maxFindings = 100
	// maxManifest is the size of a file, in bytes, above which it is not taken
	// for manifests, and of what one document may stand for.
	maxManifest = 8 << 20
	// largeManifest is the size from which only one file is parsed at a time,
	// whoever's it is: that can take more than a hundred times as much memory.
	largeManifest = 1 << 20
)

// parsingLarge is held while a large file is parsed.
var parsingLarge sync.Mutex

// check looks at the files of an application as they would be published. Which
// of its findings are warnings, and which are left out, is up to the policy.
func check(files []artifact.File, app Application) []tidelock.Finding {
	c := &checker{app: app, objects: map[string]string{}, left: maxSize}
	c.survey(files)
	for _, f := range files {
		if c.full() {
			break
		}
		c.file(f)
	}
	return c.findings
}

// A checker looks at the files of one application.
type checker struct {
	app      Application
	charts   []string // directories whose YAML are templates and values
	overlays []string // directories of which a kustomization is in charge
	objects  map[string]string
	findings []tidelock.Finding
	left     int // of what all documents may stand for

	path string // of the file that is looked at, from the root of the repository
}

func (c *checker) full() bool { return len(c.findings) >= maxFindings }

func (c *checker) find(check Check, line int, format string, args ...any) {
	action := c.app.Policy[check]
	if action == Ignore || c.full() {
		return
	}
	if c.app.Build != BuildNone {
		line = 0 // of a file that nobody wrote
	}
	c.findings = append(c.findings, tidelock.Finding{
		Check: string(check), Path: c.path, Line: line, Message: shorten(fmt.Sprintf(format, args...)), Warning: action == Warn,
	})
}

// survey finds directories in which not every YAML file is a manifest.
func (c *checker) survey(files []artifact.File) {
	for _, f := range files {
		switch path.Base(f.Path) {
		case "Chart.yaml":
			c.charts = append(c.charts, path.Dir(f.Path))
		case "kustomization.yaml", "kustomization.yml", "Kustomization":
			c.overlays = append(c.overlays, path.Dir(f.Path))
		}
	}
}

func within(dirs []string, name string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool { return dir == "." || strings.HasPrefix(name, dir+"/") })
}

func (c *checker) file(f artifact.File) {
	c.path = path.Join(c.app.Path, f.Path)
	if c.app.Build != BuildNone {
		c.path = c.app.Path
	}
	c.tokens(f.Content)
	ext := path.Ext(f.Path)
	if ext != ".yaml" && ext != ".yml" || within(c.charts, f.Path) {
		return
	}
	if len(f.Content) > maxManifest {
		c.find(CheckSyntax, 0, "the file is larger than %d MiB, too large for manifests", maxManifest>>20)
		return
	}
	if len(f.Content) > largeManifest {
		parsingLarge.Lock()
		defer parsingLarge.Unlock()
	}
	overlaid := within(c.overlays, f.Path)
	decoder := yaml.NewDecoder(bytes.NewReader(f.Content))
	for !c.full() {
		var document yaml.Node
		err := decoder.Decode(&document)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			c.syntax(err)
			return
		}
		if len(document.Content) > 0 {
			c.document(document.Content[0], overlaid)
		}
	}
}

func (c *checker) syntax(err error) {
	line, text := 0, strings.TrimPrefix(err.Error(), "yaml: ")
	if several, ok := errors.AsType[*yaml.TypeError](err); ok && len(several.Errors) > 0 {
		text = several.Errors[0]
	}
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = m[2]
	}
	c.find(CheckSyntax, line, "%s", text)
}

// document looks at one document. Below a kustomization, patches and other
// files without a kind may stand beside the manifests, and the same object
// more than once.
func (c *checker) document(node *yaml.Node, overlaid bool) {
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return
	}
	var value any
	if err := node.Decode(&value); err != nil { // refuses aliases that stand for too many nodes
		c.syntax(err)
		return
	}
	// The texts that aliases stand for are the same memory here, but would not
	// be wherever the document is written again.
	limit := min(maxManifest, c.left)
	size := extent(value, limit)
	if c.left -= size; size > limit {
		c.find(CheckSyntax, node.Line, "the document stands for too much: aliases may not make more than %d MiB of it, and %d MiB of the application", maxManifest>>20, maxSize>>20)
		return
	}
	c.value(node, value, overlaid, false)
}

func (c *checker) value(node *yaml.Node, value any, overlaid, listed bool) {
	fields, _ := value.(map[string]any)
	kind, _ := fields["kind"].(string)
	version, _ := fields["apiVersion"].(string)
	if kind == "" || version == "" {
		if !overlaid {
			c.find(CheckObjects, node.Line, "the document has no %s: every document of a file of manifests is an object", missing(kind, version))
		}
		return
	}
	items, isList := fields["items"].([]any)
	if isList && strings.HasSuffix(kind, "List") {
		if listed {
			c.find(CheckObjects, node.Line, "a %s is in another list, where only objects can be", kind)
			return
		}
		nodes := child(node, "items")
		for i := range items {
			if item := child(nodes, i); item != nil && !c.full() {
				c.value(item, items[i], overlaid, true)
			}
		}
		return
	}
	o := object{node: node, fields: fields, version: version, kind: kind}
	o.metadata, _ = fields["metadata"].(map[string]any)
	o.name, _ = o.metadata["name"].(string)
	o.namespace, _ = o.metadata["namespace"].(string)
	if strings.HasPrefix(version, "kustomize.config.k8s.io/") {
		return // not an object but how to make some
	}
	c.identity(o, overlaid)
	c.secret(o)
	if !overlaid {
		c.schema(o)
	}
}

// extent is how much a value stands for, in bytes of its texts and one for
// everything else. It stops counting above a limit.
func extent(value any, limit int) int {
	size := 1
	switch value := value.(type) {
	case string:
		size += len(value)
	case []any:
		for _, item := range value {
			if size += extent(item, limit-size); size > limit {
				break
			}
		}
	case map[string]any:
		for name, item := range value {
			if size += len(name) + extent(item, limit-size); size > limit {
				break
			}
		}
	case map[any]any:
		for name, item := range value {
			if size += extent(name, limit-size); size > limit {
				break
			}
			if size += extent(item, limit-size); size > limit {
				break
			}
		}
	}
	return size
}

func missing(kind, version string) string {
	switch {
	case kind != "":
		return "apiVersion"
	case version != "":
		return "kind"
	}
	return "apiVersion and kind"
}

// An object is a document that says what it is.
type object struct {
	node                           *yaml.Node
	fields, metadata               map[string]any
	version, kind, namespace, name string
}

func (o object) String() string {
	if o.namespace == "" {
		return o.kind + " " + o.name
	}
	return o.kind + " " + o.namespace + "/" + o.name
}

func (o object) encrypted() bool { return o.fields["sops"] != nil }

func (c *checker) identity(o object, overlaid bool) {
	if o.name == "" {
		if generated, _ := o.metadata["generateName"].(string); generated != "" {
			c.find(CheckObjects, o.node.Line, "the %s has generateName, which cannot be applied: give it a name", o.kind)
		} else {
			c.find(CheckObjects, o.node.Line, "the %s has no metadata.name", o.kind)
		}
		return
	}
	if overlaid {
		return
	}
	group, _, found := strings.Cut(o.version, "/")
	if !found {
		group = ""
	}
	key := strings.Join([]string{group, o.kind, o.namespace, o.name}, "\x00")
	here := c.path + ":" + strconv.Itoa(o.node.Line)
	if c.app.Build != BuildNone {
		here = "the manifests"
	}
	if before, twice := c.objects[key]; twice {
		c.find(CheckDuplicates, o.node.Line, "%s is in %s already", o, before)
		return
	}
	c.objects[key] = here
}

// strict decodes the kinds that Kubernetes itself has and knows no others.
var strict = sync.OnceValue(func() runtime.Decoder {
	return serializer.NewSerializerWithOptions(serializer.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, serializer.SerializerOptions{Strict: true})
})

// schema looks for fields that do not exist and values of the wrong type. What
// a later substitution will fill in cannot be known.
func (c *checker) schema(o object) {
	if c.app.Policy[CheckSchema] == Ignore || o.encrypted() {
		return
	}
	version, err := schema.ParseGroupVersion(o.version)
	if err != nil || !scheme.Scheme.Recognizes(version.WithKind(o.kind)) {
		return
	}
	text, err := json.Marshal(o.fields)
	if err != nil { // such as a key that is not a string
		c.find(CheckSchema, o.node.Line, "%s: %v", o, err)
		return
	}
	if bytes.Contains(text, []byte("${")) {
		return
	}
	_, _, err = strict().Decode(text, nil, nil)
	if err == nil {
		return
	}
	problems := []error{err}
	if several, ok := runtime.AsStrictDecodingError(err); ok {
		problems = several.Errors()
	}
	for _, problem := range problems {
		c.find(CheckSchema, o.line(problem.Error()), "%s: %s", o, strings.TrimPrefix(problem.Error(), "json: "))
	}
}

var (
	namedField = regexp.MustCompile(`unknown field "([^"]+)"`)
	goField    = regexp.MustCompile(`Go struct field [^ ]*?\.([a-z][A-Za-z0-9.]*) of`)
	pathStep   = regexp.MustCompile(`[^.\[\]]+`)
)

// line finds the line of the field of which an error speaks.
func (o object) line(text string) int {
	line := o.node.Line
	m := namedField.FindStringSubmatch(text)
	if m == nil {
		m = goField.FindStringSubmatch(text)
	}
	if m == nil {
		return line
	}
	node := o.node
	for _, step := range pathStep.FindAllString(m[1], -1) {
		next := key(node, step)
		if index, err := strconv.Atoi(step); err == nil && node.Kind == yaml.SequenceNode {
			next = child(node, index)
			if next != nil {
				line, node = next.Line, next
				continue
			}
		}
		if next == nil {
			return line
		}
		line = next.Line
		if node = child(node, step); node == nil {
			return line
		}
	}
	return line
}

// key is the node of a key, which may stand on another line than its value.
func key(node *yaml.Node, name string) *yaml.Node {
	for i := 0; node.Kind == yaml.MappingNode && i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == name {
			return node.Content[i]
		}
	}
	return nil
}

// secret finds Secrets that anybody who can pull the artifact could read.
func (c *checker) secret(o object) {
	if o.kind != "Secret" || o.version != "v1" || o.encrypted() {
		return
	}
	for _, field := range []string{"data", "stringData"} {
		values, _ := o.fields[field].(map[string]any)
		for _, name := range slices.Sorted(maps.Keys(values)) {
			text, _ := values[name].(string)
			if text == "" || placeholder.MatchString(text) {
				continue
			}
			line := o.node.Line
			if k := key(child(o.node, field), name); k != nil {
				line = k.Line
			}
			c.find(CheckSecrets, line, "%s holds %q in clear: encrypt it with SOPS, or let something in the cluster make it", o, name)
			break
		}
	}
}

// placeholder is filled in by Flux.
var placeholder = regexp.MustCompile(`^\$\{[^}]*\}$`)

// tokens are secrets that are known by how they begin.
var tokens = regexp.MustCompile(`-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----` +
	`|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b` +
	`|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bgithub_pat_[A-Za-z0-9_]{40,}` +
	`|\bgl(?:pat|dt|agent|rt|ptt|ft)-[A-Za-z0-9_-]{20,}` +
	`|\bxox[abprs]-[A-Za-z0-9-]{20,}` +
	`|\bAIza[0-9A-Za-z_-]{35}` +
	`|\b[rs]k_live_[0-9A-Za-z]{20,}` +
	`|\bnpm_[A-Za-z0-9]{36}\b` +
	`|\bhvs\.[A-Za-z0-9_-]{24,}` +
	`|\bAGE-SECRET-KEY-1[0-9A-Z]{50,}`)

type tokenName struct{ prefix, name string }

// tokenNames has every beginning that tokens knows.
var tokenNames = []tokenName{
	{"-----BEGIN", "a private key"}, {"AKIA", "an AWS access key"}, {"ASIA", "an AWS access key"},
	{"gh", "a GitHub token"}, {"github_pat_", "a GitHub token"}, {"gl", "a GitLab token"}, {"xox", "a Slack token"},
	{"AIza", "a Google API key"}, {"sk_live_", "a payment key"}, {"rk_live_", "a payment key"}, {"npm_", "an npm token"},
	{"hvs.", "a Vault token"}, {"AGE-SECRET-KEY", "an age key"},
}

// tokens looks for secrets in a file of any kind, and never repeats them. None
// is longer than a line, and only lines that have the beginning of one are
// looked at closely.
func (c *checker) tokens(content []byte) {
	if c.app.Policy[CheckSecrets] == Ignore {
		return
	}
	number := 0
	for line := range bytes.Lines(content) {
		number++
		if c.full() {
			return
		}
		if !slices.ContainsFunc(tokenNames, func(t tokenName) bool { return bytes.Contains(line, []byte(t.prefix)) }) {
			continue
		}
		for _, found := range tokens.FindAllIndex(line, maxFindings) {
			i := slices.IndexFunc(tokenNames, func(t tokenName) bool { return bytes.HasPrefix(line[found[0]:], []byte(t.prefix)) })
			c.find(CheckSecrets, number, "this looks like %s in clear", tokenNames[i].name)
		}
	}
}
