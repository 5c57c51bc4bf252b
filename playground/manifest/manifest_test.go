package manifest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidelock.dev/playground/manifest"
)

func TestParse(t *testing.T) {
	const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\n"
	for _, test := range []struct {
		name, text, want, problem string
	}{
		{name: "empty"},
		{name: "only comments", text: "# nothing\n---\n# nothing\n"},
		{name: "one", text: configMap, want: "ConfigMap/one"},
		{name: "several", text: "---\n" + configMap + "---\n# a comment\n---\n" + strings.Replace(configMap, "one", "two", 1) + "---\n", want: "ConfigMap/one ConfigMap/two"},
		{name: "separator inside of a text", text: configMap + "data:\n  text: |\n    a\n    --- b\n", want: "ConfigMap/one"},
		{name: "JSON", text: `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"s"}}`, want: "Secret/s"},
		{name: "no name", text: "kind: ConfigMap\n", problem: "no kind or no name"},
		{name: "no kind", text: "metadata: {name: x}\n", problem: "no kind or no name"},
		{name: "not a map", text: "- a\n", problem: "parse YAML"},
		{name: "broken", text: "a: [\n", problem: "parse YAML"},
	} {
		t.Run(test.name, func(t *testing.T) {
			objects, err := manifest.Parse([]byte(test.text))
			if test.problem != "" {
				if err == nil || !strings.Contains(err.Error(), test.problem) {
					t.Fatalf("got error %v, want one about %q", err, test.problem)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range objects {
				got = append(got, o.GetKind()+"/"+o.GetName())
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("got %v, want %s", got, test.want)
			}
		})
	}
}

func TestReadFilesNamesTheBrokenOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "broken.yaml")
	if err := os.WriteFile(path, []byte("kind: X\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := manifest.ReadFiles(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want the name of the file", err)
	}
	if _, err := manifest.ReadFiles(path + ".missing"); err == nil {
		t.Error("a missing file was read")
	}
}
