package artifact_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
)

// folder writes files; one whose content begins with "->" is a link.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		full := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(content, "->"); ok {
			if err := os.Symlink(target, full); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestCollect(t *testing.T) {
	for name, c := range map[string]struct {
		files  map[string]string
		ignore []string
		want   []string
	}{
		"all but what is Git's": {
			map[string]string{"a.yaml": "", "b/c.yaml": "", ".git/config": "", "b/.gitignore": "*", ".gitattributes": "", ".sourceignore": ""},
			nil, []string{"a.yaml", "b/c.yaml"},
		},
		"but for patterns": {
			map[string]string{"a.yaml": "", "a.txt": "", "docs/b.yaml": "", "x/docs/c.yaml": ""},
			[]string{"*.txt", "/docs/"}, []string{"a.yaml", "x/docs/c.yaml"},
		},
		"but for a file of rules, there and below": {
			map[string]string{"a.txt": "", "b/.sourceignore": "# notes\n*.txt\n!keep.txt\n", "b/a.txt": "", "b/c/d.txt": "", "b/keep.txt": "", "e/a.txt": ""},
			nil, []string{"a.txt", "b/keep.txt", "e/a.txt"},
		},
		"ignored links": {
			map[string]string{"a.yaml": "", "link": "->a.yaml", "up": "->../.."},
			[]string{"link", "up"}, []string{"a.yaml"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := artifact.Collect(folder(t, c.files), c.ignore)
			if err != nil {
				t.Fatal(err)
			}
			var paths []string
			for _, f := range got {
				paths = append(paths, f.Path)
			}
			slices.Sort(paths)
			if !slices.Equal(paths, c.want) {
				t.Errorf("got %v, want %v", paths, c.want)
			}
		})
	}
}

func TestCollectRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"a link out":         {map[string]string{"a.yaml": "", "link": "->/etc/passwd"}, "is a link"},
		"a link to a folder": {map[string]string{"a.yaml": "", "link": "->/etc"}, "is a link"},
		"nothing":            {map[string]string{".gitignore": ""}, "no files"},
	} {
		if _, err := artifact.Collect(folder(t, c.files), nil); tidelock.KindOf(err) != tidelock.Invalid || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want it refused with %q", name, err, c.want)
		}
	}
	if _, err := artifact.Collect(filepath.Join(t.TempDir(), "missing"), nil); err == nil {
		t.Error("took a folder that is not there")
	}
}

func TestCollectOneFile(t *testing.T) {
	dir := folder(t, map[string]string{"app.yaml": "kind: ConfigMap\n"})
	got, err := artifact.Collect(filepath.Join(dir, "app.yaml"), nil)
	if err != nil || len(got) != 1 || got[0].Path != "app.yaml" || string(got[0].Content) != "kind: ConfigMap\n" {
		t.Errorf("got %v, %v", got, err)
	}
}
