package gitlabapi_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"tidelock.dev/internal/gitlabapi"
)

// TestEveryRouteIsDocumented holds the table of docs/gitlab-compat.md and the
// route table together.
func TestEveryRouteIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/gitlab-compat.md")
	must(t, err)
	row := regexp.MustCompile("(?m)^\\| `([A-Z]+) (/[^`]*)` \\|(.*)\\|$")
	documented := map[string]bool{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		route := m[1] + " " + m[2]
		if documented[route] {
			t.Errorf("%s has two rows", route)
		}
		documented[route] = true
		if cells := strings.Split(m[3], "|"); len(cells) != 2 || strings.TrimSpace(cells[0]) == "" {
			t.Errorf("%s: its row says nothing", route)
		}
	}
	for _, route := range gitlabapi.Routes() {
		if !documented[route] {
			t.Errorf("%s has no row in docs/gitlab-compat.md", route)
		}
		delete(documented, route)
	}
	for route := range documented {
		t.Errorf("docs/gitlab-compat.md has a row for %s, which is no route", route)
	}
}
