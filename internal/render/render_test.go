package render_test

import (
	"path"
	"slices"
	"strings"
	"testing"

	"tidelock.dev"
	"tidelock.dev/internal/render"
)

// repository is files by path.
type repository map[string]string

func (r repository) IsDir(p string) (bool, error) {
	if _, ok := r[p]; ok {
		return false, nil
	}
	for name := range r {
		if p == "." || strings.HasPrefix(name, p+"/") {
			return true, nil
		}
	}
	return false, tidelock.Errorf(tidelock.NotFound, "nothing at %q", p)
}

func (r repository) Read(p string) ([]byte, error) {
	content, ok := r[p]
	if !ok {
		return nil, tidelock.Errorf(tidelock.NotFound, "no file at %q", p)
	}
	return []byte(content), nil
}

func (r repository) List(dir string) ([]string, error) {
	var names []string
	for name := range r {
		if rest, ok := strings.CutPrefix(path.Join("/", name), path.Join("/", dir)+"/"); ok {
			first, _, _ := strings.Cut(rest, "/")
			names = append(names, first)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

const configMap = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  key: value\n"

func TestKustomize(t *testing.T) {
	out, err := render.Kustomize(t.Context(), repository{
		"apps/shop/kustomization.yaml": "resources: [../base]\nnamePrefix: shop-\npatches:\n- path: ../../shared/patch.yaml\n  target: {kind: ConfigMap}\n",
		"apps/base/kustomization.yaml": "resources: [settings.yaml]\nconfigMapGenerator:\n- name: made\n  files: [note.txt]\n",
		"apps/base/settings.yaml":      configMap,
		"apps/base/note.txt":           "hello",
		"shared/patch.yaml":            "- op: add\n  path: /data/more\n  value: yes please\n",
	}, "apps/shop")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name: shop-settings", "more: yes please", "name: shop-made-", "note.txt: hello"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
}

func TestKustomizeRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		files repository
		want  string
	}{
		"nothing":          {repository{"apps/shop/a.yaml": configMap}, "kustomization"},
		"outside":          {repository{"apps/shop/kustomization.yaml": "resources: [../../../etc/passwd]"}, "out of the repository"},
		"outside and back": {repository{"apps/shop/kustomization.yaml": "resources: [../../../../../../../etc/passwd]"}, "out of the repository"},
		"absolute":         {repository{"apps/shop/kustomization.yaml": "resources: [/etc/passwd]"}, "out of the repository"},
		"remote file":      {repository{"apps/shop/kustomization.yaml": "resources: ['https://127.0.0.1:1/base.yaml']"}, "nothing is fetched"},
		"remote base":      {repository{"apps/shop/kustomization.yaml": "resources: ['https://127.0.0.1:1/team/base.git?ref=main']"}, "nothing is fetched"},
		"git base":         {repository{"apps/shop/kustomization.yaml": "resources: ['git@127.0.0.1:team/base.git']"}, ""},
		"helm charts":      {repository{"apps/shop/kustomization.yaml": "helmCharts: [{name: a, repo: 'https://127.0.0.1:1', version: '1.0.0'}]"}, "helm"},
		"cycle": {repository{
			"apps/shop/kustomization.yaml":  "resources: [../other]",
			"apps/other/kustomization.yaml": "resources: [../shop]",
		}, "cycle"},
		"plugin": {repository{
			"apps/shop/kustomization.yaml": "generators: [exec.yaml]",
			"apps/shop/exec.yaml":          "apiVersion: example.com/v1\nkind: Run\nmetadata:\n  name: run\n  annotations:\n    config.kubernetes.io/function: |\n      exec: {path: /bin/true}\n",
		}, ""},
		"alias bomb": {repository{"apps/shop/kustomization.yaml": bomb}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := render.Kustomize(t.Context(), test.files, "apps/shop")
			if kind := tidelock.KindOf(err); kind != tidelock.Invalid && kind != tidelock.TooLarge {
				t.Fatalf("got %q and error %v of kind %v", out, err, kind)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %q, want one with %q", err, test.want)
			}
			if strings.Contains(err.Error(), "/repository") {
				t.Errorf("the error speaks of our paths: %v", err)
			}
		})
	}
}

var bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" +
	"d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n" +
	"g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\ni: &i [*h,*h,*h,*h,*h,*h,*h,*h,*h]\nresources: *i\n"

func chart(template string, more ...render.File) render.Chart {
	return render.Chart{Release: "shop", Namespace: "store", Files: append([]render.File{
		{Path: "Chart.yaml", Content: []byte("apiVersion: v2\nname: shop\nversion: 1.0.0\n")},
		{Path: "values.yaml", Content: []byte("size: small\n")},
		{Path: "templates/a.yaml", Content: []byte(template)},
	}, more...)}
}

func file(path, content string) render.File {
	return render.File{Path: path, Content: []byte(content)}
}

func TestHelm(t *testing.T) {
	c := chart("kind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}\n  namespace: {{ .Release.Namespace }}\ndata:\n  size: {{ .Values.size }}\n  sub: {{ .Values.sub.key }}\n",
		file("crds/crd.yaml", "kind: CustomResourceDefinition\n"),
		file("templates/NOTES.txt", "read me"),
		file("templates/tests/t.yaml", "kind: Pod\n"),
		file("templates/ignored.yaml", "kind: Ignored\n"),
		file(".helmignore", "templates/ignored.yaml\n"),
		file("charts/sub/Chart.yaml", "apiVersion: v2\nname: sub\nversion: 1.0.0\n"),
		file("charts/sub/values.yaml", "key: of the chart\n"),
		file("charts/sub/templates/s.yaml", "kind: Sub\n"),
	)
	c.Values = []render.File{file("a.yaml", "size: medium\n"), file("b.yaml", "size: large\n")}
	out, unstable, err := render.Helm(t.Context(), c)
	if err != nil || unstable {
		t.Fatal(err, unstable)
	}
	for _, want := range []string{"kind: CustomResourceDefinition", "name: shop", "namespace: store", "size: large", "sub: of the chart", "kind: Sub"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is missing in:\n%s", want, out)
		}
	}
	for _, unwanted := range []string{"read me", "kind: Pod", "Ignored"} {
		if strings.Contains(string(out), unwanted) {
			t.Errorf("%q is in:\n%s", unwanted, out)
		}
	}
}

func TestHelmNoticesChance(t *testing.T) {
	_, unstable, err := render.Helm(t.Context(), chart("password: {{ randAlphaNum 20 }}\n"))
	if err != nil || !unstable {
		t.Errorf("got unstable %v, error %v; want true", unstable, err)
	}
}

func TestHelmRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		chart render.Chart
		want  string
	}{
		"no chart":            {render.Chart{}, "Chart.yaml"},
		"endless loop":        {chart("{{ range until 1000000000 }}{{ end }}"), ""},
		"slow loop":           {chart("{{ range $i := until 30000 }}{{ range $j := until 30000 }}{{ end }}{{ end }}"), "not done after"},
		"endless text":        {chart("{{ define \"x\" }}{{ repeat 1000000 \"xxxxxxxxxx\" }}{{ end }}{{ range until 1000 }}{{ include \"x\" . }}{{ end }}"), "more than"},
		"large text":          {chart("{{ repeat 30000000 \"x\" }}"), "MiB"},
		"recursion":           {chart("{{ define \"x\" }}{{ include \"x\" . }}{{ end }}{{ include \"x\" . }}"), "nested"},
		"missing dependency":  {chart("a: b", file("Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.0.0\ndependencies: [{name: redis, version: 1.x, repository: 'https://127.0.0.1:1'}]\n")), "nothing is fetched"},
		"schema of a file":    {chart("a: b", file("values.schema.json", `{"$ref": "file:///etc/passwd"}`)), "leads out"},
		"schema recursion":    {chart("a: b", file("values.schema.json", `{"$ref": "#"}`)), ""},
		"values":              {chart("a: b", file("values.schema.json", `{"properties": {"size": {"type": "number"}}}`)), "size"},
		"required":            {chart("a: {{ required \"say how large\" .Values.none }}"), "say how large"},
		"fail":                {chart("{{ fail \"no\" }}"), "no"},
		"broken template":     {chart("{{ .Values"), "templates/a.yaml"},
		"values bomb":         {chart("a: b", file("values.yaml", bomb)), ""},
		"library":             {chart("a: b", file("Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.0.0\ntype: library\n")), "library"},
		"subchart is no tar":  {chart("a: b", file("charts/x.tgz", "no archive")), "x.tgz"},
		"file of the server":  {chart("a: {{ .Files.Get \"/etc/passwd\" }}{{ fail \"empty\" }}"), "empty"},
		"names of the server": {chart("a: {{ getHostByName \"localhost\" | quote }}{{ fail \"none\" }}"), "none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, _, err := render.Helm(t.Context(), test.chart)
			if kind := tidelock.KindOf(err); kind != tidelock.Invalid && kind != tidelock.TooLarge {
				t.Fatalf("got %d bytes and error %v of kind %v", len(out), err, kind)
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got error %q, want one with %q", err, test.want)
			}
		})
	}
}

func BenchmarkKustomize(b *testing.B) {
	files := repository{"app/kustomization.yaml": "resources: [a.yaml]", "app/a.yaml": configMap}
	for b.Loop() {
		if _, err := render.Kustomize(b.Context(), files, "app"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHelm(b *testing.B) {
	c := chart("kind: ConfigMap\n")
	for b.Loop() {
		if _, _, err := render.Helm(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}
