package why_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"tidelock.dev"
	"tidelock.dev/playground/e2e/why"
)

// The corpus is one: it can be read, and there is enough of everything.
func TestCorpus(t *testing.T) {
	cases, err := why.Read(os.DirFS("../testdata/why"))
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[why.Kind]int{}
	codes := map[tidelock.CauseCode]int{}
	for _, c := range cases {
		kinds[c.Kind]++
		codes[c.Expect]++
	}
	if kinds[why.Fault] < 48 || kinds[why.Control] < 10 || kinds[why.Double] < 8 {
		t.Errorf("got %v, want at least 48 faults, 10 controls and 8 doubles", kinds)
	}
	t.Logf("%d cases: %v of %d codes: %v", len(cases), kinds, len(codes), codes)
}

func TestReadRefuses(t *testing.T) {
	const good = "# About.\nkind: fault\nexpect: forbidden\nsetup: git\n\npush next\n\n-- next/a.yaml --\na\n"
	change := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for name, test := range map[string]struct{ text, want string }{
		"good":              {good, ""},
		"unknown key":       {change("setup:", "stup:"), `x.txtar:4: unknown key "stup"`},
		"no key":            {change("kind: fault", "fault"), `x.txtar:2: "fault" is neither`},
		"unknown kind":      {change("kind: fault", "kind: fun"), `kind is "fun"`},
		"unknown verb":      {change("push next", "push next\nfrobnicate x"), `x.txtar:7: unknown verb "frobnicate"`},
		"too many words":    {change("push next", "push a b c"), "x.txtar:6: push takes 1 to 2 words, got 3"},
		"no such folder":    {change("push next", "push later"), "there is no such file"},
		"no such setup":     {change("setup: git", "setup: svn"), "read setup"},
		"nothing about":     {change("# About.\n", ""), "what it is about"},
		"nothing expected":  {change("expect: forbidden\n", ""), "expects nothing"},
		"calm fault":        {change("forbidden", "live"), "a fault cannot expect live"},
		"blaming control":   {change("fault", "control"), "a control cannot expect forbidden"},
		"double of one":     {change("fault", "double"), `a case has "also" when it is a double`},
		"fault of two":      {change("expect:", "also: quota_exceeded\nexpect:"), `a case has "also" when it is a double`},
		"stops twice":       {change("push next", "stop agent\nstop agent"), "may stop one process"},
		"a file twice":      {good + "-- next/a.yaml --\n", "stands twice"},
		"a path that leads": {good + "-- ../a.yaml --\n", "is no path"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := why.Read(fstest.MapFS{
				"x.txtar":         {Data: []byte(test.text)},
				"setup/git.txtar": {Data: []byte("trust\n")},
			})
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	c := &why.Case{
		Kind: why.Double, Expect: tidelock.CauseForbidden, Object: "Kustomization/a/b",
		Evidence: []string{"deployer"}, Also: []tidelock.CauseCode{tidelock.CauseQuota},
	}
	good := func() tidelock.Verdict {
		return tidelock.Verdict{
			Code: tidelock.CauseForbidden, Object: "Kustomization/a/b", Sentence: "deployer may not",
			Also: []tidelock.Verdict{{Code: tidelock.CauseQuota}},
		}
	}
	live := tidelock.Verdict{Code: tidelock.CauseNone}
	other, elsewhere, silent, alone := good(), good(), good(), good()
	other.Code, elsewhere.Object, silent.Sentence, alone.Also = tidelock.CauseQuota, "Kustomization/a/c", "nobody may", nil
	for name, test := range map[string]struct {
		answers []tidelock.Verdict
		want    string
	}{
		"right":            {[]tidelock.Verdict{good()}, ""},
		"live elsewhere":   {[]tidelock.Verdict{live, good()}, ""},
		"no answer":        {nil, "no answer"},
		"another":          {[]tidelock.Verdict{other}, "named quota_exceeded"},
		"two":              {[]tidelock.Verdict{good(), other}, "named, too"},
		"another object":   {[]tidelock.Verdict{elsewhere}, "Kustomization/a/c"},
		"without evidence": {[]tidelock.Verdict{silent}, `"deployer"`},
		"without the rest": {[]tidelock.Verdict{alone}, "does not name quota_exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.Judge(test.answers)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

var update = flag.Bool("update", false, "rewrite the table of the documentation")

// The documentation lists all cases.
func TestDocumentation(t *testing.T) {
	cases, err := why.Read(os.DirFS("../testdata/why"))
	if err != nil {
		t.Fatal(err)
	}
	const path, mark = "../../../docs/why-corpus.md", "-update -->\n"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, table, ok := strings.Cut(string(text), mark)
	if !ok {
		t.Fatalf("%s has no mark %q", path, mark)
	}
	want := documented(cases)
	if *update {
		if err := os.WriteFile(path, []byte(before+mark+want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if table != want {
		t.Errorf("%s does not list the cases as they are: make golden", path)
	}
}

func documented(cases []*why.Case) string {
	var b strings.Builder
	for _, kind := range []why.Kind{why.Fault, why.Double, why.Control} {
		rows, count := "", 0
		for _, c := range cases {
			if c.Kind != kind {
				continue
			}
			count++
			expect := string(c.Expect)
			for _, also := range c.Also {
				expect += ", also " + string(also)
			}
			note := ""
			if c.Simulated != "" {
				note = " Simulated by " + c.Simulated + "."
			}
			if c.Soak {
				note += " Only in make soak."
			}
			rows += fmt.Sprintf("| `%s` | %s | %s%s |\n", c.Name, expect, c.About, note)
		}
		fmt.Fprintf(&b, "\n### %d %ss\n\n| case | cause | about |\n|---|---|---|\n%s", count, kind, rows)
	}
	return b.String()
}
