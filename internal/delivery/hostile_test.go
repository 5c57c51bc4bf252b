package delivery_test

import (
	"fmt"
	"path"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/delivery"
	"tidelock.dev/internal/gitrepo"
)

func TestCheckBoundsWhatAliasesStandFor(t *testing.T) {
	text := strings.Repeat("x", 1<<20)
	var object strings.Builder
	fmt.Fprintf(&object, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  a: &a %s\n", text)
	for i := range 50 {
		fmt.Fprintf(&object, "  b%d: *a\n", i)
	}
	for name, file := range map[string]string{
		"one object": object.String(),
		"one list": "apiVersion: v1\nkind: ConfigMapList\nx: &a {apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {a: " + text + "}}\n" +
			"items: [" + strings.Repeat("*a, ", 50) + "]\n",
		"many documents": strings.Repeat("apiVersion: example.org/v1\nkind: A\nmetadata: {name: a}\na: &a "+text[:10<<10]+
			"\nb: ["+strings.Repeat("*a, ", 700)+"]\n---\n", 15),
	} {
		t.Run(name, func(t *testing.T) {
			p := mk(t, map[string]string{"app/a.yaml": file}, "  checks: {duplicates: ignore}\n")
			if !p.Refused() || !strings.Contains(fmt.Sprint(p.Findings), "stands for too much") {
				t.Errorf("got findings %.1000q", p.Findings)
			}
		})
	}
}

func TestCheckTakesNoListsOfLists(t *testing.T) {
	const lists = 200
	p := mk(t, map[string]string{
		"app/a.yaml": strings.Repeat("{apiVersion: v1, kind: List, items: [", lists) + strings.Repeat("]}", lists),
	}, "")
	if len(p.Findings) != 1 || !strings.Contains(p.Findings[0].Message, "in another list") {
		t.Errorf("got findings %.1000q", p.Findings)
	}
}

// A bomb is a tree whose every directory holds ten more, as a handful of
// objects of Git can make it, and at the bottom a file that is ignored.
type bombTree struct{ depth int }

func (b bombTree) Entry(name string) (gitrepo.TreeEntry, error) {
	e := gitrepo.TreeEntry{Type: "tree", Mode: "040000", Name: path.Base(name), Path: name}
	if name == "." || strings.Count(name, "/") < b.depth {
		return e, nil
	}
	return e, tidelock.Errorf(tidelock.NotFound, "nothing is at %q", name)
}

func (b bombTree) Dir(name string) ([]gitrepo.TreeEntry, error) {
	if _, err := b.Entry(name); err != nil {
		return nil, err
	}
	if strings.Count(name, "/") == b.depth-1 {
		return []gitrepo.TreeEntry{{Type: "blob", Mode: "100644", Name: ".gitignore", Path: path.Join(name, ".gitignore")}}, nil
	}
	var entries []gitrepo.TreeEntry
	for i := range 10 {
		entries = append(entries, gitrepo.TreeEntry{Type: "tree", Mode: "040000", Name: fmt.Sprint(i), Path: path.Join(name, fmt.Sprint(i))})
	}
	return entries, nil
}

func (bombTree) Content(gitrepo.TreeEntry, int64) ([]byte, error) { return nil, nil }

func TestMakeBoundsWhatItWalksThrough(t *testing.T) {
	for _, lines := range []string{"", "  build: helm\n"} {
		p, err := delivery.Make(t.Context(), bombTree{9}, application(t, lines))
		if err != nil {
			t.Fatal(err)
		}
		if !p.Refused() || !strings.Contains(p.Findings[0].Message, "more than 100000 files and directories") {
			t.Errorf("%q: got findings %q", lines, p.Findings)
		}
	}
}

func TestMakeBoundsIgnoreRules(t *testing.T) {
	rules := strings.Repeat("x*y*z\n", 900)
	for name, test := range map[string]struct {
		files   map[string]string
		refused bool
	}{
		"side by side": {map[string]string{"app/a/.sourceignore": rules, "app/b/.sourceignore": rules, "app/c/.sourceignore": rules, "app/a.yaml": configMap}, false},
		"nested":       {map[string]string{"app/a/.sourceignore": rules, "app/a/b/.sourceignore": rules, "app/a/b/c/.sourceignore": rules, "app/a.yaml": configMap}, true},
		"long":         {map[string]string{"app/.sourceignore": strings.Repeat(strings.Repeat("*a", 500)+"\n", 100), "app/a.yaml": configMap}, true},
	} {
		p := mk(t, test.files, "")
		if p.Refused() != test.refused || test.refused && !strings.Contains(p.Findings[0].Message, "ignore rules") {
			t.Errorf("%s: got findings %q", name, p.Findings)
		}
	}
}

func TestConfigSaysOnlySoMuch(t *testing.T) {
	var text strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&text, "k%d: 1\n", i)
	}
	if _, findings := delivery.ParseConfig([]byte(text.String())); len(findings) != 100 {
		t.Errorf("got %d findings, want 100", len(findings))
	}
}
