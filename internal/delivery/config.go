package delivery

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
)

// ConfigPath is the file that names the applications of a repository. One
// without it is not a delivery repository.
const ConfigPath = ".tidelock/delivery.yaml"

const (
	// maxConfig is the size, in bytes, above which the file is refused.
	maxConfig = 256 << 10

	maxApplications = 500
	maxBranches     = 100
	maxIgnore       = 1000 // lines
	maxNameLength   = 63
)

// Settings are a delivery.yaml that holds no mistake.
type Settings struct {
	Branches     []string // patterns as of protected branches; empty for the default branch alone
	Trigger      bool     // the default branch moves tags that clusters follow
	Applications []Application
}

// An Application is one part of a delivery repository that becomes an image.
type Application struct {
	Name   string
	Path   string // a directory from the root of the repository; "." is the root
	Image  string // below the project
	Tags   []TagRule
	Ignore []string // lines as of .gitignore
	Build  Builder
	Helm   Helm   // for BuildHelm
	Policy Policy // of each check
}

// A TagRule says which tags an application's artifacts get.
type TagRule string

const (
	TagLatest TagRule = "latest" // on the default branch
	TagBranch TagRule = "branch" // the name of the branch, with "-" for what a tag cannot hold
	TagCommit TagRule = "commit" // the first eight digits
	TagSemVer TagRule = "semver" // for Git tags that are versions
)

// A Builder makes an application's manifests of its files.
type Builder string

const (
	BuildNone      Builder = "none" // the files as they are
	BuildKustomize Builder = "kustomize"
	BuildHelm      Builder = "helm"
)

// Helm is how a chart is rendered.
type Helm struct {
	Release   string
	Namespace string
	Values    []string // files, from the application's path; later ones win
}

// A Policy says what the findings of each check do.
type Policy map[Check]Action

// An Action is what a finding does.
type Action string

const (
	Fail   Action = "fail"
	Warn   Action = "warn"
	Ignore Action = "ignore"
)

// A Check is one of the things that are looked at before an application is
// published.
type Check string

const (
	CheckSyntax     Check = "syntax"     // every document can be parsed
	CheckObjects    Check = "objects"    // every object has a kind and a name
	CheckSchema     Check = "schema"     // fields of known kinds exist and have the right type
	CheckDuplicates Check = "duplicates" // no object stands twice
	CheckSecrets    Check = "secrets"    // no secret is in clear

	// These two are not up to a policy.
	checkConfig Check = "config" // of delivery.yaml
	checkBuild  Check = "build"  // of the files: links, sizes, and what the builder says
)

// defaultPolicy refuses what a cluster would refuse, and what nobody wants to
// have published.
var defaultPolicy = Policy{CheckSyntax: Fail, CheckObjects: Fail, CheckSchema: Fail, CheckDuplicates: Fail, CheckSecrets: Fail}

// configFile is the file as it is written. Pointers tell what was left out.
type configFile struct {
	Branches     []string          `yaml:"branches"`
	Trigger      *bool             `yaml:"trigger"`
	Checks       map[string]string `yaml:"checks"`
	Applications []applicationFile `yaml:"applications"`
}

type applicationFile struct {
	Name   string            `yaml:"name"`
	Path   string            `yaml:"path"`
	Image  string            `yaml:"image"`
	Tags   []string          `yaml:"tags"`
	Ignore string            `yaml:"ignore"`
	Build  string            `yaml:"build"`
	Helm   *helmFile         `yaml:"helm"`
	Checks map[string]string `yaml:"checks"`
}

type helmFile struct {
	Release   string   `yaml:"release"`
	Namespace string   `yaml:"namespace"`
	Values    []string `yaml:"values"`
}

// ParseConfig reads a delivery.yaml. It is strict: an unknown key, a value of
// the wrong type and a second document are mistakes. The findings name each
// mistake with its line; with any, nothing may be built.
func ParseConfig(text []byte) (Settings, []tidelock.Finding) {
	if len(text) > maxConfig {
		return Settings{}, []tidelock.Finding{configFinding(0, "the file is larger than %d KiB", maxConfig>>10)}
	}
	var file configFile
	var root yaml.Node
	if findings := decode(text, &file, &root); len(findings) > 0 {
		return Settings{}, findings
	}
	p := &configParser{root: &root}
	config := p.config(file)
	if len(p.findings) > 0 {
		return Settings{}, p.findings
	}
	return config, nil
}

// decode reads the one document of a file into its struct and, for the line
// numbers, as nodes. The library refuses aliases that stand for far more than
// what is written.
func decode(text []byte, file *configFile, root *yaml.Node) []tidelock.Finding {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	err := decoder.Decode(file)
	if err == nil {
		if next := decoder.Decode(new(yaml.Node)); !errors.Is(next, io.EOF) {
			return []tidelock.Finding{configFinding(0, "only one document is allowed")}
		}
		err = yaml.Unmarshal(text, root)
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return []tidelock.Finding{configFinding(0, "the file is empty; name the applications")}
	}
	var findings []tidelock.Finding
	if several, ok := errors.AsType[*yaml.TypeError](err); ok {
		for _, text := range several.Errors[:min(len(several.Errors), maxFindings)] {
			findings = append(findings, yamlFinding(text))
		}
		return findings
	}
	return append(findings, yamlFinding(err.Error()))
}

var (
	yamlLine     = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.*)$`)
	unknownField = regexp.MustCompile(`^field (.*) not found in type .*$`)
	wrongType    = regexp.MustCompile("^cannot unmarshal (!!\\w+)(?: `.*`)? into (.*)$")
)

// yamlFinding turns a message of the library into one that speaks of the file
// and not of our types.
func yamlFinding(text string) tidelock.Finding {
	line := 0
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = m[2]
	}
	text = strings.TrimPrefix(text, "yaml: ")
	if m := unknownField.FindStringSubmatch(text); m != nil {
		text = fmt.Sprintf("unknown key %q", shorten(m[1]))
	}
	if m := wrongType.FindStringSubmatch(text); m != nil {
		text = fmt.Sprintf("expected %s, not %s", typeNames(m[2]), tagNames[m[1]])
	}
	return configFinding(line, "%s", shorten(text))
}

var tagNames = map[string]string{
	"!!map": "a mapping", "!!seq": "a list", "!!str": "a string", "!!int": "a number",
	"!!float": "a number", "!!bool": "a boolean", "!!null": "null", "!!timestamp": "a time", "!!binary": "binary data",
}

func typeNames(goType string) string {
	switch {
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	case goType == "string":
		return "a string"
	case goType == "bool":
		return "a boolean"
	}
	return "a mapping"
}

func configFinding(line int, format string, args ...any) tidelock.Finding {
	return tidelock.Finding{Check: string(checkConfig), Path: ConfigPath, Line: line, Message: fmt.Sprintf(format, args...)}
}

// shorten keeps a stranger's text short in messages.
func shorten(text string) string {
	const limit = 300
	if len(text) > limit {
		text = text[:limit] + "…"
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// A configParser collects all mistakes of a file.
type configParser struct {
	root     *yaml.Node
	findings []tidelock.Finding
}

// failf reports a mistake at the place to which the keys and indexes lead, or
// as near as the file goes.
func (p *configParser) failf(place []any, format string, args ...any) {
	node := p.root
	if node.Kind == yaml.DocumentNode && len(node.Content) > 0 {
		node = node.Content[0]
	}
	line := node.Line
	for _, step := range place {
		node = child(node, step)
		if node == nil {
			break
		}
		line = node.Line
	}
	if len(p.findings) < maxFindings {
		p.findings = append(p.findings, configFinding(line, format, args...))
	}
}

func child(node *yaml.Node, step any) *yaml.Node {
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	switch step := step.(type) {
	case int:
		if node.Kind == yaml.SequenceNode && step < len(node.Content) {
			return node.Content[step]
		}
	case string:
		for i := 0; node.Kind == yaml.MappingNode && i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == step {
				return node.Content[i+1]
			}
		}
	}
	return nil
}

func (p *configParser) config(file configFile) Settings {
	config := Settings{Branches: file.Branches, Trigger: file.Trigger == nil || *file.Trigger}
	if len(file.Branches) > maxBranches {
		p.failf([]any{"branches"}, "more than %d branches", maxBranches)
		return Settings{}
	}
	for i, pattern := range file.Branches {
		if pattern == "" || len(pattern) > 255 {
			p.failf([]any{"branches", i}, "branch %q is not the name of a branch, nor a pattern with *", shorten(pattern))
		}
	}
	if len(file.Applications) == 0 {
		p.failf([]any{"applications"}, "no applications are named")
	}
	if len(file.Applications) > maxApplications {
		p.failf([]any{"applications"}, "more than %d applications", maxApplications)
		return Settings{}
	}
	policy := p.policy([]any{"checks"}, defaultPolicy, file.Checks)
	names, images := map[string]bool{}, map[string]string{}
	for i, written := range file.Applications {
		app := p.application(i, written, policy)
		switch other, taken := images[app.Image]; {
		case names[app.Name]:
			p.failf([]any{"applications", i, "name"}, "another application has the name %q already", app.Name)
		case taken && app.Image != "":
			p.failf([]any{"applications", i, "image"}, "application %q has the image %q already", other, app.Image)
		}
		names[app.Name], images[app.Image] = true, app.Name
		config.Applications = append(config.Applications, app)
	}
	return config
}

var (
	applicationName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	imageName       = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)?$`)
)

func (p *configParser) application(i int, file applicationFile, policy Policy) Application {
	at := func(keys ...any) []any { return append([]any{"applications", i}, keys...) }
	app := Application{Name: file.Name, Image: file.Image}
	if !applicationName.MatchString(file.Name) || len(file.Name) > maxNameLength {
		p.failf(at("name"), "name %q is not a word of at most %d lower-case letters, digits and dashes", shorten(file.Name), maxNameLength)
	}
	if file.Image == "" {
		app.Image = file.Name
	} else if !imageName.MatchString(file.Image) || len(file.Image) > 255 {
		p.failf(at("image"), "image %q is not a name below the project, such as %q, of one or two parts", shorten(file.Image), "shop")
	}
	if directory, ok := inside(".", file.Path); !ok || file.Path == "" {
		p.failf(at("path"), "path %q is not a directory of the repository; write it from the root, such as \"apps/shop\"", shorten(file.Path))
	} else {
		app.Path = directory
	}
	if len(file.Tags) == 0 {
		app.Tags = []TagRule{TagLatest, TagBranch, TagCommit, TagSemVer}
	}
	for j, rule := range file.Tags {
		switch TagRule(rule) {
		case TagLatest, TagBranch, TagCommit, TagSemVer:
			app.Tags = append(app.Tags, TagRule(rule))
		default:
			p.failf(at("tags", j), "tag rule %q is none of latest, branch, commit and semver", shorten(rule))
		}
	}
	if app.Ignore = strings.Split(file.Ignore, "\n"); len(app.Ignore) > maxIgnore {
		p.failf(at("ignore"), "more than %d lines", maxIgnore)
	}
	app.Policy = p.policy(at("checks"), policy, file.Checks)
	app.Build = Builder(file.Build)
	switch app.Build {
	case "":
		app.Build = BuildNone
	case BuildNone, BuildKustomize, BuildHelm:
	default:
		p.failf(at("build"), "build %q is none of none, kustomize and helm", shorten(file.Build))
	}
	if file.Helm != nil && app.Build != BuildHelm {
		p.failf(at("helm"), "helm is set but build is not helm")
	}
	if app.Build == BuildHelm {
		app.Helm = p.helm(at, app, file.Helm)
	}
	return app
}

func (p *configParser) helm(at func(...any) []any, app Application, file *helmFile) Helm {
	h := Helm{Release: app.Name, Namespace: "default"}
	if file == nil {
		return h
	}
	for key, field := range map[string]struct {
		written string
		set     *string
	}{"release": {file.Release, &h.Release}, "namespace": {file.Namespace, &h.Namespace}} {
		if field.written == "" {
			continue
		}
		if !applicationName.MatchString(field.written) || len(field.written) > maxNameLength {
			p.failf(at("helm", key), "%s %q is not a name that Kubernetes takes", key, shorten(field.written))
		}
		*field.set = field.written
	}
	for j, name := range file.Values {
		values, ok := inside(app.Path, name)
		if !ok || artifact.ValidPath(values) != nil {
			p.failf(at("helm", "values", j), "values file %q is not in the repository", shorten(name))
		}
		h.Values = append(h.Values, values)
	}
	return h
}

// policy is the one above it, changed by what is written.
func (p *configParser) policy(place []any, above Policy, written map[string]string) Policy {
	policy := Policy{}
	for check, action := range above {
		policy[check] = action
	}
	for _, name := range slices.Sorted(maps.Keys(written)) {
		action := Action(written[name])
		switch {
		case above[Check(name)] == "":
			p.failf(append(place, name), "check %q is none of syntax, objects, schema, duplicates and secrets", shorten(name))
		case action != Fail && action != Warn && action != Ignore:
			p.failf(append(place, name), "%q is none of fail, warn and ignore", shorten(string(action)))
		default:
			policy[Check(name)] = action
		}
	}
	return policy
}

// inside resolves a relative path against a directory of the repository, and
// reports whether it stays in the repository.
func inside(dir, name string) (string, bool) {
	if path.IsAbs(name) || strings.ContainsAny(name, "\\\x00") {
		return "", false
	}
	clean := path.Clean(path.Join(dir, name))
	if clean == ".." || strings.HasPrefix(clean, "../") {
		return "", false
	}
	return clean, true
}
