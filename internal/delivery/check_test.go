package delivery_test

import (
	"slices"
	"strings"
	"testing"

	"tidelock.dev/internal/delivery"
)

const deployment = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: shop
spec:
  replicas: 2
  selector: {matchLabels: {app: shop}}
  template:
    metadata: {labels: {app: shop}}
    spec:
      containers:
      - name: shop
        image: shop:1.0
`

func TestCheckFinds(t *testing.T) {
	const secret = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: pass\n"
	for name, test := range map[string]struct {
		content string
		want    []string
	}{
		"good":                   {deployment + "---\n# only a comment\n---\n" + configMap, nil},
		"unknown kinds":          {"apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: x}\nspec: {any: [1]}\n", nil},
		"not YAML":               {"a: [\n", []string{"a.yaml:1: "}},
		"tab":                    {"kind: A\n\tb: c\n", []string{"a.yaml:2: found a tab character"}},
		"key twice":              {configMap + "kind: Other\n", []string{`a.yaml:7: mapping key "kind" already defined at line 2`}},
		"no kind":                {"a: b\n", []string{"a.yaml:1: the document has no apiVersion and kind"}},
		"a list":                 {"- a\n", []string{"a.yaml:1: the document has no apiVersion and kind"}},
		"second without version": {configMap + "---\nkind: Service\n", []string{"a.yaml:8: the document has no apiVersion"}},
		"no name":                {"apiVersion: v1\nkind: ConfigMap\n", []string{"a.yaml:1: the ConfigMap has no metadata.name"}},
		"generated name":         {"apiVersion: v1\nkind: Pod\nmetadata: {generateName: x-}\n", []string{"a.yaml:1: the Pod has generateName"}},
		"unknown field":          {strings.Replace(deployment, "replicas", "replica", 1), []string{`a.yaml:6: Deployment shop: unknown field "spec.replica"`}},
		"unknown field in a list": {strings.Replace(deployment, "image", "imagee", 1),
			[]string{`a.yaml:13: Deployment shop: unknown field "spec.template.spec.containers[0].imagee"`}},
		"wrong type":        {strings.Replace(deployment, "replicas: 2", "replicas: two", 1), []string{"a.yaml:6: Deployment shop: "}},
		"to be substituted": {strings.Replace(deployment, "replicas: 2", "replicas: ${replicas}", 1), nil},
		"twice":             {configMap + "---\n" + configMap, []string{"a.yaml:8: ConfigMap settings is in app/a.yaml:1 already"}},
		"in two namespaces": {configMap + "---\n" + strings.Replace(configMap, "name: settings", "name: settings\n  namespace: other", 1), nil},
		"twice in a list":   {"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n", []string{"a.yaml:5: ConfigMap a is in app/a.yaml:4 already"}},
		"secret":            {secret + "data:\n  password: aHVudGVyMg==\n", []string{`a.yaml:6: Secret pass holds "password" in clear`}},
		"secret as text":    {secret + "stringData:\n  password: hunter2\n", []string{`a.yaml:6: Secret pass holds "password" in clear`}},
		"empty secret":      {secret + "data:\n  password: \"\"\n", nil},
		"filled in":         {secret + "stringData:\n  password: ${PASSWORD}\n", nil},
		"encrypted":         {secret + "data:\n  password: ENC[AES256_GCM,data:x]\nsops:\n  version: 3.9.0\n", nil},
		"token":             {configMap + "  token: glpat-" + strings.Repeat("x", 20) + "\n", []string{"a.yaml:7: this looks like a GitLab token in clear"}},
		"private key":       {configMap + "  pem: |\n    -----BEGIN EC PRIVATE KEY-----\n", []string{"a.yaml:8: this looks like a private key in clear"}},
		"certificate":       {configMap + "  crt: |\n    -----BEGIN CERTIFICATE-----\n", nil},
		"bomb":              {bomb, []string{"a.yaml: document contains excessive aliasing"}},
		"itself":            {"a: &a [*a]\n", []string{"a.yaml: anchor 'a' value contains itself"}},
		"key of numbers":    {"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {1: a}\n", []string{"a.yaml:1: ConfigMap x: "}},
		"binary":            {"\x00\x01\x02", []string{"a.yaml: control characters are not allowed"}},
		"large":             {strings.Repeat("#", 8<<20+1), []string{"a.yaml: the file is larger than 8 MiB"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := mk(t, map[string]string{"app/a.yaml": test.content}, "")
			if len(p.Findings) != len(test.want) {
				t.Fatalf("got findings %q, want %q", p.Findings, test.want)
			}
			for i, want := range test.want {
				if got := p.Findings[i].String(); !strings.HasPrefix(got, "app/"+want) {
					t.Errorf("got %q, want %q", got, want)
				}
				if strings.Contains(p.Findings[i].Message, "hunter2") || strings.Contains(p.Findings[i].Message, "xxxxx") {
					t.Errorf("the finding tells the secret: %s", p.Findings[i])
				}
			}
			if p.Refused() != (len(test.want) > 0) {
				t.Errorf("got refused %v with findings %q", p.Refused(), p.Findings)
			}
		})
	}
}

func TestCheckKnowsWhatIsNotAManifest(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"a chart": {
			"app/chart/Chart.yaml":             "name: a\n",
			"app/chart/values.yaml":            "a: b\n",
			"app/chart/templates/x.yaml":       "{{ if .Values.a }}\na: b\n{{ end }}",
			"app/chart/charts/b/templates.yml": "{{ nothing }}",
		},
		"a kustomization": {
			"app/kustomization.yaml": "resources: [a.yaml]\n",
			"app/a.yaml":             configMap,
			"app/patch.yaml":         configMap,
			"app/values.yaml":        "a: b\n",
			"app/patch6902.yaml":     "- op: remove\n  path: /data\n",
		},
		"other files": {"app/dashboard.json": "{", "app/script.sh": "kind: x: y: z"},
	} {
		if p := mk(t, files, ""); len(p.Findings) > 0 {
			t.Errorf("%s: got %q", name, p.Findings)
		}
	}
}

// Whatever looks like a token is found where it stands, once, and named.
func TestCheckKnowsTokens(t *testing.T) {
	for token, name := range map[string]string{
		"-----BEGIN PRIVATE KEY-----":                "a private key",
		"-----BEGIN RSA PRIVATE KEY-----":            "a private key",
		"AKIA" + strings.Repeat("A", 16):             "an AWS access key",
		"ASIA" + strings.Repeat("A", 16):             "an AWS access key",
		"ghp_" + strings.Repeat("a", 36):             "a GitHub token",
		"github_pat_" + strings.Repeat("a", 40):      "a GitHub token",
		"gldt-" + strings.Repeat("a", 20):            "a GitLab token",
		"xoxb-" + strings.Repeat("1", 20):            "a Slack token",
		"AIza" + strings.Repeat("a", 35):             "a Google API key",
		"sk_live_" + strings.Repeat("a", 20):         "a payment key",
		"rk_live_" + strings.Repeat("a", 20):         "a payment key",
		"npm_" + strings.Repeat("a", 36):             "an npm token",
		"hvs." + strings.Repeat("a", 24):             "a Vault token",
		"AGE-SECRET-KEY-1" + strings.Repeat("A", 50): "an age key",
	} {
		content := "light and glue\r\n" + token + "\r\nno " + token[:len(token)-1] + "\n  both: " + token + " " + token
		p := mk(t, map[string]string{"app/notes.txt": content}, "")
		var got []string
		for _, f := range p.Findings {
			got = append(got, f.String())
		}
		says := ": this looks like " + name + " in clear"
		if want := []string{"app/notes.txt:2" + says, "app/notes.txt:4" + says, "app/notes.txt:4" + says}; !slices.Equal(got, want) {
			t.Errorf("%s: got findings %q, want %q", token, got, want)
		}
	}
}

func TestCheckObeysThePolicy(t *testing.T) {
	files := map[string]string{"app/a.yaml": strings.Replace(deployment, "replicas", "replica", 1)}
	warned := mk(t, files, "  checks: {schema: warn}\n")
	if len(warned.Findings) != 1 || !warned.Findings[0].Warning || warned.Refused() || len(warned.Layer.Content) == 0 {
		t.Errorf("got findings %q, refused %v", warned.Findings, warned.Refused())
	}
	if ignored := mk(t, files, "  checks: {schema: ignore}\n"); len(ignored.Findings) > 0 {
		t.Errorf("got findings %q", ignored.Findings)
	}
}

func TestCheckSaysOnlySoMuch(t *testing.T) {
	p := mk(t, map[string]string{"app/a.yaml": strings.Repeat("a: b\n---\n", 5000)}, "")
	if len(p.Findings) != 100 {
		t.Errorf("got %d findings, want 100", len(p.Findings))
	}
}

func FuzzMake(f *testing.F) {
	f.Add(deployment + "---\n" + configMap)
	f.Add(bomb)
	f.Add("kind: List\napiVersion: v1\nitems: &a [*a]\n")
	f.Fuzz(func(t *testing.T, content string) {
		p, err := delivery.Make(t.Context(), tree(t, map[string]string{"app/a.yaml": "# " + content, "app/b.yaml": content + "\n"}), application(t, ""))
		if err != nil {
			t.Fatal(err)
		}
		if p.Refused() != (len(p.Layer.Content) == 0) {
			t.Errorf("got refused %v and a layer of %d bytes", p.Refused(), len(p.Layer.Content))
		}
	})
}
