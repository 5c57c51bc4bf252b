package agentrpc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/labels"
)

// DefaultWebhookReceiverURL is where Flux's notification-controller listens
// unless an agent's configuration says otherwise.
const DefaultWebhookReceiverURL = "http://webhook-receiver.flux-system.svc.cluster.local"

const (
	// ConfigLimit is the size, in bytes, above which a configuration is refused.
	ConfigLimit = 128 << 10
	// maxConfigNodes bounds what a configuration's aliases may expand to.
	maxConfigNodes = 10_000
	// maxWarnings bounds what is said about one file.
	maxWarnings = 50
)

// A Config is an agent's configuration, .gitlab/agents/<name>/config.yaml of
// its configuration project. The zero value is the empty file and stands for
// all defaults. Configs are compared with ==.
type Config struct {
	LogLevel string // observability.logging.level: debug, info, warn, error, or "" when it is not said
	Flux     FluxConfig
}

// A FluxConfig is the section "flux".
type FluxConfig struct {
	// WebhookReceiverURL is as written: an http or https URL, or the path of
	// a service proxy of the Kubernetes API; "" for the default.
	WebhookReceiverURL string
	// Selector is a Kubernetes label selector; only sources that match are
	// served. "" matches all.
	Selector string
}

// ReceiverURL is the base of the receiver's address, without a slash at its
// end. If viaAPI, it is a path on the Kubernetes API server.
func (c FluxConfig) ReceiverURL() (base string, viaAPI bool) {
	if c.WebhookReceiverURL == "" {
		return DefaultWebhookReceiverURL, false
	}
	return strings.TrimRight(c.WebhookReceiverURL, "/"), strings.HasPrefix(c.WebhookReceiverURL, "/")
}

// ParseConfig reads a configuration file. It is strict: a key it does not
// know, a value of the wrong type and a second document are errors that name
// the key and the line. Keys that GitLab's agent knows and this one does not
// are accepted with any value, and each is warned of.
func ParseConfig(text []byte) (Config, []string, error) {
	if len(text) > ConfigLimit {
		return Config{}, nil, fmt.Errorf("the file is larger than %d bytes", ConfigLimit)
	}
	root, err := parseDocument(text)
	if err != nil || root == nil {
		return Config{}, nil, err
	}
	var c Config
	p := &configParser{}
	p.section("", root, map[string]func(string, *yaml.Node){
		"observability": func(path string, n *yaml.Node) {
			p.section(path, n, map[string]func(string, *yaml.Node){
				"logging": func(path string, n *yaml.Node) {
					p.section(path, n, map[string]func(string, *yaml.Node){
						"level":      func(path string, n *yaml.Node) { c.LogLevel = p.level(path, n) },
						"grpc_level": p.unsupported,
					})
				},
			})
		},
		"flux": func(path string, n *yaml.Node) {
			p.section(path, n, map[string]func(string, *yaml.Node){
				"webhook_receiver_url":          func(path string, n *yaml.Node) { c.Flux.WebhookReceiverURL = p.receiverURL(path, n) },
				"selector":                      func(path string, n *yaml.Node) { c.Flux.Selector = p.selector(path, n) },
				"enable_project_reconciliation": p.unsupported,
			})
		},
		"gitops":             p.unsupported,
		"ci_access":          p.unsupported,
		"user_access":        p.unsupported,
		"container_scanning": p.unsupported,
		"starboard":          p.unsupported,
		"remote_development": p.unsupported,
		"receptive":          p.unsupported,
	})
	if p.err != nil {
		return Config{}, p.warnings, p.err
	}
	return c, p.warnings, nil
}

// parseDocument reads the one document of a file; nil when it is empty. It
// never expands aliases, it only counts what they would expand to.
func parseDocument(text []byte) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	var document yaml.Node
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, yamlError(err)
	}
	var second yaml.Node
	switch err := decoder.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, yamlError(err)
	default:
		return nil, fmt.Errorf("line %d: only one document is allowed", second.Line)
	}
	if err := checkExpansion(&document); err != nil {
		return nil, err
	}
	if len(document.Content) == 0 {
		return nil, nil
	}
	return document.Content[0], nil
}

// yamlError drops the library's name from its message.
func yamlError(err error) error {
	return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
}

// checkExpansion refuses documents whose aliases stand for far more than what
// is written, or for themselves.
func checkExpansion(document *yaml.Node) error {
	const visiting = -1
	sizes := map[*yaml.Node]int{}
	var size func(*yaml.Node) (int, error)
	size = func(n *yaml.Node) (int, error) {
		switch known, seen := sizes[n]; {
		case known == visiting:
			return 0, fmt.Errorf("line %d: anchor %q contains itself", n.Line, n.Anchor)
		case seen:
			return known, nil
		}
		sizes[n] = visiting
		total := 1
		children := n.Content
		if n.Kind == yaml.AliasNode {
			children = []*yaml.Node{n.Alias}
		}
		for _, child := range children {
			add, err := size(child)
			if err != nil {
				return 0, err
			}
			total += add
			if total > maxConfigNodes {
				return 0, fmt.Errorf("line %d: the file stands for more than %d values", child.Line, maxConfigNodes)
			}
		}
		sizes[n] = total
		return total, nil
	}
	_, err := size(document)
	return err
}

// A configParser walks the nodes and keeps the first error and all warnings.
type configParser struct {
	err      error
	warnings []string
}

func (p *configParser) failf(n *yaml.Node, format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("line %d: "+format, append([]any{n.Line}, args...)...)
	}
}

// section reads a mapping; null stands for an empty one.
func (p *configParser) section(path string, n *yaml.Node, keys map[string]func(string, *yaml.Node)) {
	n = resolveAlias(n)
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		what := path
		if what == "" {
			what = "the file"
		}
		p.failf(n, "%s must be a mapping, not %s", what, kindName(n))
		return
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := resolveAlias(n.Content[i]), n.Content[i+1]
		name := key.Value
		if path != "" {
			name = path + "." + key.Value
		}
		read, known := keys[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode:
			p.failf(n.Content[i], "a key must be a string, not %s", kindName(key))
		case !known:
			p.failf(n.Content[i], "unknown key %q", shorten(name))
		case lines[key.Value] != 0:
			p.failf(n.Content[i], "%s is already set on line %d", name, lines[key.Value])
		default:
			lines[key.Value] = n.Content[i].Line
			read(name, value)
		}
	}
}

func (p *configParser) unsupported(path string, _ *yaml.Node) {
	if len(p.warnings) < maxWarnings {
		p.warnings = append(p.warnings, path+" is not supported yet")
	}
}

// text reads a string; null stands for "".
func (p *configParser) text(path string, n *yaml.Node) string {
	n = resolveAlias(n)
	if isNull(n) {
		return ""
	}
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		p.failf(n, "%s must be a string, not %s", path, kindName(n))
		return ""
	}
	return n.Value
}

func (p *configParser) level(path string, n *yaml.Node) string {
	text := p.text(path, n)
	switch text {
	case "", "debug", "info", "warn", "error":
		return text
	}
	p.failf(n, "%s must be debug, info, warn or error, not %q", path, shorten(text))
	return ""
}

// Level is the level that the configuration asks for, or otherwise when it
// does not say.
func (c Config) Level(otherwise slog.Level) slog.Level {
	level := otherwise
	if c.LogLevel != "" && level.UnmarshalText([]byte(c.LogLevel)) != nil {
		return otherwise
	}
	return level
}

func (p *configParser) receiverURL(path string, n *yaml.Node) string {
	text := p.text(path, n)
	if text == "" {
		return ""
	}
	if err := checkReceiverURL(text); err != nil {
		p.failf(n, "%s %q %v", path, shorten(text), err)
	}
	return text
}

var serviceProxy = regexp.MustCompile(`^/api/v1/namespaces/[^/]+/services/[^/]+/proxy(/.*)?$`)

// checkReceiverURL is strict about service proxies, because requests to them
// carry the agent's Kubernetes credentials: nothing in the path may lead
// anywhere but where it says.
func checkReceiverURL(text string) error {
	if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\\' }) {
		return errors.New("contains a space, a backslash or a control character")
	}
	if strings.HasPrefix(text, "/") {
		switch {
		case strings.Contains(text, "..") || strings.Contains(text, "//") || strings.ContainsAny(text, "%?#"),
			slices.Contains(strings.Split(text, "/"), "."):
			return errors.New(`must not contain "..", "//", "/./", "%", "?" or "#"`)
		case !serviceProxy.MatchString(text):
			return errors.New("is not of the form /api/v1/namespaces/<namespace>/services/<service>/proxy")
		}
		return nil
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return errors.New("is not a URL")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Opaque != "":
		return errors.New("is neither an http or https URL nor a service proxy's path")
	case u.User != nil:
		return errors.New("must not contain credentials")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return errors.New("must not contain a query or a fragment")
	}
	return nil
}

func (p *configParser) selector(path string, n *yaml.Node) string {
	text := p.text(path, n)
	if _, err := labels.Parse(text); err != nil {
		p.failf(n, "%s %q is not a label selector: %v", path, shorten(text), err)
	}
	return text
}

func resolveAlias(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!int", "!!float":
		return "a number"
	case "!!bool":
		return "a boolean"
	case "!!null":
		return "null"
	case "!!str":
		return "a string"
	}
	return "a " + shorten(n.Tag) + " value"
}

// shorten keeps a stranger's text short in messages.
func shorten(text string) string {
	if len(text) <= 100 {
		return text
	}
	return strings.ToValidUTF8(text[:100], "") + "…"
}
