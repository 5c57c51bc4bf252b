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
	text, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| (H\d+) \|.*\|(.*)\|$`).FindAllStringSubmatch(string(text), -1)
	if len(rows) != 12 {
		t.Errorf("SECURITY.md has %d rows of hostile inputs, want H1 to H12", len(rows))
	}
	for _, row := range rows {
		var dir string
		named := 0
		for word := range strings.FieldsSeq(strings.ReplaceAll(row[2], ";", " ")) {
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
		if named == 0 {
			t.Errorf("%s names no test", row[1])
		}
	}
}

func hasTest(t *testing.T, dir, name string) bool {
	t.Helper()
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
			return true
		}
	}
	return false
}
