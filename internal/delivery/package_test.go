package delivery_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/delivery"
)

// tree writes a working tree. Content that begins with "-> " makes a symbolic
// link.
func tree(t *testing.T, files map[string]string) *delivery.Dir {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		target, isLink := strings.CutPrefix(content, "-> ")
		err := error(nil)
		if isLink {
			err = os.Symlink(target, file)
		} else {
			err = os.WriteFile(file, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	opened, err := delivery.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { opened.Close() })
	return opened
}

// application is what a delivery.yaml says of an application at "app".
func application(t *testing.T, lines string) delivery.Application {
	t.Helper()
	config, findings := delivery.ParseConfig([]byte("applications:\n- name: app\n  path: app\n" + lines))
	if len(findings) > 0 {
		t.Fatal(findings)
	}
	return config.Applications[0]
}

func mk(t *testing.T, files map[string]string, lines string) delivery.Package {
	t.Helper()
	p, err := delivery.Make(t.Context(), tree(t, files), application(t, lines))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// names lists the files in a layer.
func names(t *testing.T, p delivery.Package) []string {
	t.Helper()
	unpacked, err := gzip.NewReader(bytes.NewReader(p.Layer.Content))
	if err != nil {
		t.Fatal(err, p.Findings)
	}
	var found []string
	for archive := tar.NewReader(unpacked); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, h.Name)
	}
}

const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  key: value\n"

func TestMakePacksWhatIsNotIgnored(t *testing.T) {
	p := mk(t, map[string]string{
		"app/a.yaml":               configMap,
		"app/README.md":            "read me",
		"app/docs/guide.md":        "guide",
		"app/sub/.sourceignore":    "*.tmp\n!keep.tmp\n",
		"app/sub/x.tmp":            "x",
		"app/sub/keep.tmp":         "x",
		"app/other.tmp":            "x",
		"app/.gitignore":           "x",
		"app/ignored/link":         "-> /etc/passwd",
		"elsewhere/not-packed.txt": "x",
	}, "  ignore: |\n    /ignored/\n    # a comment\n    *.md\n    !/docs/*.md\n")
	if want := []string{"a.yaml", "docs/guide.md", "other.tmp", "sub/keep.tmp"}; !slices.Equal(names(t, p), want) {
		t.Errorf("got %q, want %q", names(t, p), want)
	}
	if p.Refused() {
		t.Errorf("got findings %v", p.Findings)
	}
}

func TestMakeRefuses(t *testing.T) {
	kustomize, helm := "  build: kustomize\n", "  build: helm\n"
	chart := "apiVersion: v2\nname: shop\nversion: 1.0.0\n"
	for name, test := range map[string]struct {
		files map[string]string
		lines string
		want  string
	}{
		"no directory":             {map[string]string{"other/a.yaml": configMap}, "", "app: the application's path is not in the repository"},
		"file":                     {map[string]string{"app": "x"}, "", "app: the application's path is not a directory"},
		"link to a directory":      {map[string]string{"app": "-> /etc"}, "", "app: the application's path is a symbolic link"},
		"nothing left":             {map[string]string{"app/a.md": "x"}, "  ignore: '*'\n", "app: no files are left to package"},
		"link":                     {map[string]string{"app/a.yaml": configMap, "app/l": "-> a.yaml"}, "", "app/l: a symbolic link cannot be packaged"},
		"link outside":             {map[string]string{"app/l": "-> ../../../etc/passwd"}, "", "app/l: a symbolic link cannot be packaged"},
		"link to nothing":          {map[string]string{"app/l": "-> /nowhere"}, "", "app/l: a symbolic link cannot be packaged"},
		"huge file":                {map[string]string{"app/a.bin": strings.Repeat("x", 20<<20+1)}, "", "app/a.bin: the file is larger than 20 MiB"},
		"large pointer":            {map[string]string{"app/a.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"}, "", "app/a.bin: the file is kept by Git LFS"},
		"deep":                     {map[string]string{"app/" + strings.Repeat("d/", 70) + "a": "x"}, "", "nested deeper than 64"},
		"kustomization outside":    {map[string]string{"app/kustomization.yaml": "resources: [../../secret.yaml]"}, kustomize, "app: kustomize: "},
		"kustomization by a link":  {map[string]string{"app/kustomization.yaml": "resources: [l.yaml]", "app/l.yaml": "-> /etc/passwd"}, kustomize, "app: kustomize: app/l.yaml: symbolic links are not followed"},
		"kustomization through":    {map[string]string{"app/kustomization.yaml": "resources: [l/base]", "app/l": "-> ../base", "base/kustomization.yaml": "resources: []"}, kustomize, "app: "},
		"kustomization is a link":  {map[string]string{"app/kustomization.yaml": "-> /etc/hosts"}, kustomize, "app: kustomize: app/kustomization.yaml: symbolic links are not followed"},
		"kustomization of git":     {map[string]string{"app/kustomization.yaml": "resources: [../.git/config]"}, kustomize, "app: kustomize: "},
		"remote kustomization":     {map[string]string{"app/kustomization.yaml": "resources: ['http://127.0.0.1:1/a.yaml']"}, kustomize, "app: kustomize: "},
		"no kustomization":         {map[string]string{"app/a.yaml": configMap}, kustomize, "app: kustomize: "},
		"no chart":                 {map[string]string{"app/a.yaml": configMap}, helm, "app: helm: Chart.yaml file is missing"},
		"no values":                {map[string]string{"app/Chart.yaml": chart}, helm + "  helm: {values: [none.yaml]}\n", "app/none.yaml: the values file is not in the repository"},
		"chart bomb":               {map[string]string{"app/Chart.yaml": chart, "app/templates/a.yaml": "{{ repeat 1000000000 \"x\" }}"}, helm, "app: helm: "},
		"link in a chart":          {map[string]string{"app/Chart.yaml": chart, "app/Chart.lock": "-> /etc/passwd"}, helm, "app/Chart.lock: a symbolic link cannot be packaged"},
		"secret of a chart":        {map[string]string{"app/Chart.yaml": chart, "app/templates/a.yaml": "apiVersion: v1\nkind: Secret\nmetadata: {name: x}\nstringData: {a: b}\n"}, helm, `app: Secret x holds "a" in clear`},
		"field of a kustomization": {map[string]string{"app/kustomization.yaml": "resources: [a.yaml]", "app/a.yaml": configMap + "extra: 1\n"}, kustomize, `app: ConfigMap settings: unknown field "extra"`},
	} {
		t.Run(name, func(t *testing.T) {
			p := mk(t, test.files, test.lines)
			if !p.Refused() || len(p.Layer.Content) > 0 {
				t.Fatalf("got a layer of %d bytes and findings %v", len(p.Layer.Content), p.Findings)
			}
			if got := p.Findings[0].String(); !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestMakeWatchesWhatIsReadOutside(t *testing.T) {
	p := mk(t, map[string]string{
		"app/kustomization.yaml":     "resources: [../base, own]\npatches: [{path: ../env/prod/patch.yaml}]\n",
		"app/own/kustomization.yaml": "resources: [a.yaml]\n",
		"app/own/a.yaml":             strings.ReplaceAll(configMap, "settings", "own"),
		"base/kustomization.yaml":    "resources: [a.yaml]\n",
		"base/a.yaml":                configMap,
		"env/prod/patch.yaml":        configMap,
		"unused/a.yaml":              configMap,
	}, "  build: kustomize\n")
	if p.Refused() {
		t.Fatal(p.Findings)
	}
	for _, want := range []string{"base", "env/prod"} {
		if !slices.Contains(p.Watched, want) {
			t.Errorf("%q is not watched, only %q", want, p.Watched)
		}
	}
	for _, dir := range p.Watched {
		if strings.HasPrefix(dir, "app") || strings.HasPrefix(dir, "unused") {
			t.Errorf("%q is watched", dir)
		}
	}
	if got := names(t, p); !slices.Equal(got, []string{"manifests.yaml"}) {
		t.Errorf("got files %q", got)
	}
}

func TestReadConfigOfATree(t *testing.T) {
	_, _, err := delivery.ReadConfig(tree(t, map[string]string{"a": ""}))
	if tidelock.KindOf(err) != tidelock.NotFound {
		t.Errorf("got error %v without a file", err)
	}
	for name, content := range map[string]string{"link": "-> /etc/passwd", "large": strings.Repeat("#", 300<<10)} {
		if _, findings, err := delivery.ReadConfig(tree(t, map[string]string{".tidelock/delivery.yaml": content})); len(findings) != 1 || err != nil {
			t.Errorf("%s: got %v, %v", name, findings, err)
		}
	}
}
