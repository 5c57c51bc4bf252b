// Package why reads the corpus that tidelock why is judged by: files, each of
// which breaks something in a real cluster and says which cause must be named,
// or leaves all well and says that none may be. It owns their form; a test
// plays them.
//
// A case is a txtar archive. Its comment is a header, a blank line, and a
// script of one step a line:
//
//	# What this is about, in a sentence.
//	kind: fault
//	expect: immutable_field
//	evidence: spec.selector
//	setup: git
//
//	push changed
//	wait Kustomization/site failed $COMMIT
//
//	-- changed/deploy/web.yaml --
//	…
//
// A setup is an archive, too; its comment is a script only. Its steps come
// before those of the case, and the case's files hide its files.
package why

import (
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/tools/txtar"

	"tidelock.dev"
)

// A Kind says what a case is for.
type Kind string

const (
	Fault   Kind = "fault"   // one thing is wrong
	Control Kind = "control" // nothing is: no answer may name a blocking cause
	Double  Kind = "double"  // two things are wrong; Expect blocks first
)

// A Case is one file of the corpus.
type Case struct {
	Name      string
	About     string
	Kind      Kind
	Expect    tidelock.CauseCode
	Evidence  []string             // each must be in the answer
	Object    tidelock.ObjectID    // the answer's; "" when any will do
	Also      []tidelock.CauseCode // in the answer's Also
	Simulated string               // who plays what is not real: "KWOK"
	Private   bool                 // the project is
	Ask       string               // the revision to ask for; "" is the last commit pushed
	Always    bool                 // of a control: no answer since the last push may name a blocking cause
	Slow      time.Duration        // how long it takes, if long, until it shows
	Soak      bool                 // too slow, or too like another, for every day
	Steps     []Step
	Files     map[string]string
}

// A Step is a line of a script.
type Step struct {
	At   string // file and line, for errors
	Verb string
	Args []string
}

func (s Step) String() string { return s.At + ": " + s.Verb + " " + strings.Join(s.Args, " ") }

// verbs says how many words each takes. The last word of one that ends in …
// is the rest of the line.
var verbs = map[string]struct {
	least, most int
	rest        bool
}{
	"trust":  {0, 1, false}, // [TOKEN]: Secret "forge" with the authority, and with a token's name and secret
	"token":  {1, 1, false}, // NAME: make a deploy token that may read
	"revoke": {1, 1, false}, // NAME
	"push":   {1, 2, false}, // FOLDER [BRANCH]: commit the files below the folder and push
	"git":    {1, 9, false}, // ARGUMENTS: in the clone
	"image":  {2, 2, false}, // TAG FOLDER: push an artifact of $COMMIT to $OCI
	"chart":  {2, 2, false}, // VERSION FOLDER: push a chart to $CHARTS/site
	"apply":  {1, 1, false}, // FILE: to the cluster
	"refuse": {1, 1, false}, // FILE: wait until the cluster would not take it, as policies need a moment
	"patch":  {2, 2, true},  // OBJECT JSON: merge
	"delete": {1, 1, false}, // OBJECT
	"api":    {2, 3, true},  // METHOD PATH [JSON]: of the forge
	"wait":   {2, 3, true},  // OBJECT live|quiet|failed|running|is|gone [TEXT in its status]
	"agent":  {1, 1, false}, // previous|away: start another agent, for sources with the label tidelock.dev/trigger of that value
	"answer": {1, 1, false}, // CODE: wait until tidelock why names it
	"stop":   {1, 1, false}, // PROCESS: that cases share; the rest of the script is played later
}

// Read reads all cases of a folder of files "*.txtar"; setups are in its
// folder "setup".
func Read(dir fs.FS) ([]*Case, error) {
	names, err := fs.Glob(dir, "*.txtar")
	if err != nil {
		return nil, err
	}
	var cases []*Case
	for _, name := range names {
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return nil, fmt.Errorf("read case: %w", err)
		}
		c, err := parse(name, text, dir)
		if err != nil {
			return nil, err
		}
		cases = append(cases, c)
	}
	return cases, nil
}

func parse(name string, text []byte, dir fs.FS) (*Case, error) {
	archive := txtar.Parse(text)
	c := &Case{Name: strings.TrimSuffix(path.Base(name), ".txtar"), Files: map[string]string{}}
	header, script, _ := strings.Cut(string(archive.Comment), "\n\n")
	var about []string
	lines := strings.Split(header, "\n")
	for i, line := range lines {
		at := fmt.Sprintf("%s:%d", name, i+1)
		if comment, ok := strings.CutPrefix(line, "#"); ok {
			about = append(about, strings.TrimSpace(comment))
			continue
		}
		key, value, ok := strings.Cut(line, ": ")
		if !ok {
			return nil, fmt.Errorf("%s: %q is neither a comment nor \"key: value\"", at, line)
		}
		if err := c.set(key, strings.TrimSpace(value), dir); err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
	}
	c.About = strings.Join(about, " ")
	steps, err := parseScript(name, len(lines)+2, script)
	if err != nil {
		return nil, err
	}
	c.Steps = append(c.Steps, steps...)
	if err := addFiles(c.Files, name, archive); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func (c *Case) set(key, value string, dir fs.FS) error {
	switch key {
	case "kind":
		c.Kind = Kind(value)
	case "expect":
		c.Expect = tidelock.CauseCode(value)
	case "evidence":
		c.Evidence = append(c.Evidence, value)
	case "object":
		c.Object = tidelock.ObjectID(value)
	case "also":
		c.Also = append(c.Also, tidelock.CauseCode(value))
	case "simulated":
		c.Simulated = value
	case "project":
		if value != "private" {
			return fmt.Errorf("project is %q; say nothing or private", value)
		}
		c.Private = true
	case "ask":
		c.Ask = value
	case "never-blocking":
		if value != "since the last push" {
			return fmt.Errorf("never-blocking is %q; say nothing or \"since the last push\"", value)
		}
		c.Always = true
	case "slow":
		var err error
		c.Slow, err = time.ParseDuration(value)
		return err
	case "only":
		if value != "soak" {
			return fmt.Errorf("only is %q; say nothing or soak", value)
		}
		c.Soak = true
	case "setup":
		return c.setUp(value, dir)
	default:
		return fmt.Errorf("unknown key %q", key)
	}
	return nil
}

func (c *Case) setUp(setup string, dir fs.FS) error {
	name := "setup/" + setup + ".txtar"
	text, err := fs.ReadFile(dir, name)
	if err != nil {
		return fmt.Errorf("read setup: %w", err)
	}
	archive := txtar.Parse(text)
	steps, err := parseScript(name, 1, string(archive.Comment))
	if err != nil {
		return err
	}
	c.Steps = append(c.Steps, steps...)
	return addFiles(c.Files, name, archive)
}

func addFiles(files map[string]string, name string, archive *txtar.Archive) error {
	own := map[string]bool{}
	for _, f := range archive.Files {
		if own[f.Name] || !fs.ValidPath(f.Name) {
			return fmt.Errorf("%s: file %q stands twice, or is no path", name, f.Name)
		}
		own[f.Name] = true
		files[f.Name] = string(f.Data)
	}
	return nil
}

// parseScript reads steps; first is the number of the script's first line.
func parseScript(name string, first int, script string) ([]Step, error) {
	var steps []Step
	for i, line := range strings.Split(script, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		at := fmt.Sprintf("%s:%d", name, first+i)
		verb, rest, _ := strings.Cut(line, " ")
		takes, ok := verbs[verb]
		if !ok {
			return nil, fmt.Errorf("%s: unknown verb %q; there are %s", at, verb, strings.Join(slices.Sorted(maps.Keys(verbs)), ", "))
		}
		args := strings.Fields(rest)
		if takes.rest && len(args) > takes.most {
			args = strings.SplitN(strings.TrimSpace(rest), " ", takes.most)
		}
		if len(args) < takes.least || len(args) > takes.most {
			return nil, fmt.Errorf("%s: %s takes %d to %d words, got %d", at, verb, takes.least, takes.most, len(args))
		}
		steps = append(steps, Step{At: at, Verb: verb, Args: args})
	}
	return steps, nil
}

// check finds what no single line shows.
func (c *Case) check() error {
	answer := tidelock.Verdict{Code: c.Expect}
	switch {
	case c.About == "":
		return fmt.Errorf("the case does not say what it is about")
	case c.Kind != Fault && c.Kind != Control && c.Kind != Double:
		return fmt.Errorf("kind is %q; it is %s, %s or %s", c.Kind, Fault, Control, Double)
	case c.Expect == "":
		return fmt.Errorf("the case expects nothing")
	case answer.Blocking() == (c.Kind == Control):
		return fmt.Errorf("a %s cannot expect %s", c.Kind, c.Expect)
	case (c.Kind == Double) != (len(c.Also) > 0):
		return fmt.Errorf("a case has \"also\" when it is a %s", Double)
	case c.Always && c.Kind != Control:
		return fmt.Errorf("only a control can be never-blocking")
	}
	stopped := false
	for _, s := range c.Steps {
		if s.Verb == "stop" && stopped {
			return fmt.Errorf("%s: a case may stop one process", s.At)
		}
		stopped = stopped || s.Verb == "stop"
		file := func(folder string) bool {
			for name := range c.Files {
				if strings.HasPrefix(name, folder+"/") {
					return true
				}
			}
			return false
		}
		switch {
		case (s.Verb == "apply" || s.Verb == "refuse") && c.Files[s.Args[0]] == "",
			s.Verb == "push" && !file(s.Args[0]),
			(s.Verb == "image" || s.Verb == "chart") && !file(s.Args[1]):
			return fmt.Errorf("%s: there is no such file", s)
		}
	}
	return nil
}

// Folder returns the files below a folder, by their paths in it.
func (c *Case) Folder(name string) map[string]string {
	files := map[string]string{}
	for path, text := range c.Files {
		if below, ok := strings.CutPrefix(path, name+"/"); ok {
			files[below] = text
		}
	}
	return files
}

// Stops names the process that the case stops; "" is none.
func (c *Case) Stops() string {
	for _, s := range c.Steps {
		if s.Verb == "stop" {
			return s.Args[0]
		}
	}
	return ""
}

// Judge compares the answers for the case's commit, one for each place, with
// what is expected. The error says what is wrong with them.
func (c *Case) Judge(answers []tidelock.Verdict) error {
	if len(answers) == 0 {
		return fmt.Errorf("there is no answer")
	}
	first := answers[0]
	for _, other := range answers[1:] {
		if other.Blocking() && !first.Blocking() {
			first = other
		}
	}
	if first.Code != c.Expect {
		return fmt.Errorf("named %s", Told(first))
	}
	for _, other := range answers {
		if other.Blocking() && other.Code != c.Expect {
			return fmt.Errorf("named, too, %s", Told(other))
		}
	}
	if c.Object != "" && first.Object != c.Object {
		return fmt.Errorf("named it of %q, want %q", first.Object, c.Object)
	}
	text := Told(first)
	for _, want := range c.Evidence {
		if !strings.Contains(text, want) {
			return fmt.Errorf("does not tell of %q: %s", want, text)
		}
	}
	for _, want := range c.Also {
		if !slices.ContainsFunc(first.Also, func(v tidelock.Verdict) bool { return v.Code == want }) {
			return fmt.Errorf("does not name %s, too: %s", want, text)
		}
	}
	return nil
}

// Told is everything that an answer says, in one line.
func Told(v tidelock.Verdict) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s", v.Code)
	if v.Object != "" {
		fmt.Fprintf(&b, " of %s", v.Object)
	}
	fmt.Fprintf(&b, ": %s", v.Sentence)
	if v.Next != "" {
		fmt.Fprintf(&b, " → %s", v.Next)
	}
	for _, e := range v.Evidence {
		fmt.Fprintf(&b, " | %s: %s", e.Where, e.What)
	}
	for _, also := range v.Also {
		fmt.Fprintf(&b, " | also %s of %s", also.Code, also.Object)
	}
	return b.String()
}
