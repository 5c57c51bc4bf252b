package tidelock_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestHostileInputsAreTested looks for every test that SECURITY.md names.
func TestHostileInputsAreTested(t *testing.T) {
	rows := namedTests(t, "SECURITY.md", `H\d+`)
	if len(rows) != 21 {
		t.Errorf("SECURITY.md has %d rows of hostile inputs, want H1 to H15, H17 to H21 and H30", len(rows))
	}
}

// TestTrapsAreTested looks for every test that docs/clients.md names beside a
// trap. A trap may wait until what it is about is built.
func TestTrapsAreTested(t *testing.T) {
	rows := namedTests(t, "docs/clients.md", "`[a-z0-9]+-[a-z0-9-]+`")
	if len(rows) != 34 {
		t.Errorf("docs/clients.md has %d traps, want 34", len(rows))
	}
}

// namedTests looks for the tests that a file names in the last column of its
// rows with some heading, each after its folder or, for a script, alone. It
// returns the headings, no two of which are equal.
func namedTests(t *testing.T, file, heading string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\| (`+heading+`) \|.*\|(.*)\|$`).FindAllStringSubmatch(string(text), -1) {
		if rows[row[1]] {
			t.Errorf("%s has %s twice", file, row[1])
		}
		rows[row[1]] = true
		tests, later, _ := strings.Cut(row[2], "when ")
		var dir string
		named := 0
		for word := range strings.FieldsSeq(strings.ReplaceAll(tests, ";", " ")) {
			quoted := strings.Trim(word, "`")
			switch {
			case strings.HasSuffix(quoted, ".txtar"):
				named++
				if _, err := os.Stat(filepath.Join("cmd/tidelock/testdata/script", quoted)); err != nil {
					t.Errorf("%s: %v", row[1], err)
				}
			case quoted != word:
				dir = quoted
			default:
				named++
				if !hasTest(t, dir, word) {
					t.Errorf("%s: %s has no %s", row[1], dir, word)
				}
			}
		}
		if named == 0 && later == "" {
			t.Errorf("%s names no test", row[1])
		}
	}
	return rows
}

// hasTest reports whether a folder has a test or, for "Test/some_part", one
// with such a part.
func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
	name, part, _ := strings.Cut(name, "/")
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "\nfunc "+name+"(") {
			return part == "" || strings.Contains(string(text), `t.Run("`+strings.ReplaceAll(part, "_", " ")+`"`)
		}
	}
	return false
}
