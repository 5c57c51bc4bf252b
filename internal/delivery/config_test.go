package delivery_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"tidelock.dev/internal/delivery"
)

func TestParseConfig(t *testing.T) {
	config, findings := delivery.ParseConfig([]byte(`
branches: [main, "release/*"]
trigger: false
checks: {schema: warn}
applications:
  - name: shop
    path: ./apps/shop/
  - name: cart
    path: apps/cart
    image: store/cart
    tags: [commit]
    build: helm
    helm:
      release: basket
      values: [values.yaml, ../../env/prod.yaml]
    ignore: |
      *.md
      !README.md
    checks: {schema: fail, secrets: ignore}
`))
	if len(findings) > 0 {
		t.Fatal(findings)
	}
	if config.Trigger || !reflect.DeepEqual(config.Branches, []string{"main", "release/*"}) || len(config.Applications) != 2 {
		t.Errorf("got %+v", config)
	}
	shop, cart := config.Applications[0], config.Applications[1]
	if shop.Path != "apps/shop" || shop.Image != "shop" || shop.Build != delivery.BuildNone || len(shop.Tags) != 4 ||
		shop.Policy[delivery.CheckSchema] != delivery.Warn || shop.Policy[delivery.CheckSecrets] != delivery.Fail {
		t.Errorf("got %+v", shop)
	}
	want := delivery.Helm{Release: "basket", Namespace: "default", Values: []string{"apps/cart/values.yaml", "env/prod.yaml"}}
	if cart.Image != "store/cart" || !reflect.DeepEqual(cart.Helm, want) || len(cart.Ignore) != 3 ||
		cart.Policy[delivery.CheckSchema] != delivery.Fail || cart.Policy[delivery.CheckSecrets] != delivery.Ignore {
		t.Errorf("got %+v", cart)
	}
}

func TestParseConfigNamesMistakes(t *testing.T) {
	app := func(lines string) string {
		return "applications:\n  - name: shop\n    path: apps/shop\n" + lines
	}
	for name, test := range map[string]struct {
		text string
		want string // line and beginning of the message
	}{
		"empty":              {"", "0: the file is empty"},
		"comment":            {"# nothing\n", "0: the file is empty"},
		"broken":             {"applications: [", "1: did not find expected node content"},
		"no mapping":         {"- a\n", "1: expected a mapping, not a list"},
		"unknown key":        {app("imagee: x\n"), "4: unknown key \"imagee\""},
		"unknown inner key":  {app("    imagee: x\n"), "4: unknown key \"imagee\""},
		"key twice":          {app("    path: b\n"), "4: mapping key \"path\" already defined at line 3"},
		"wrong type":         {app("    tags: latest\n"), "4: expected a list, not a string"},
		"trigger":            {"trigger: perhaps\n" + app(""), "1: expected a boolean, not a string"},
		"two documents":      {app("---\na: b\n"), "0: only one document is allowed"},
		"bomb":               {bomb, "1: unknown key \"a0\""},
		"large":              {strings.Repeat("#", 257<<10), "0: the file is larger than 256 KiB"},
		"none":               {"branches: [main]\n", "1: no applications are named"},
		"no name":            {"applications:\n  - path: a\n", "2: name \"\" is not a word"},
		"name":               {"applications:\n  - name: Shop_1\n    path: a\n", "2: name \"Shop_1\" is not a word"},
		"no path":            {"applications:\n  - name: a\n", "2: path \"\" is not a directory"},
		"parent path":        {"applications:\n  - name: a\n    path: apps/../../b\n", "3: path \"apps/../../b\" is not a directory of the repository"},
		"absolute path":      {"applications:\n  - name: a\n    path: /etc\n", "3: path \"/etc\" is not"},
		"backslash":          {"applications:\n  - name: a\n    path: '..\\x'\n", "3: path "},
		"image":              {app("    image: ../other\n"), "4: image \"../other\" is not a name below the project"},
		"deep image":         {app("    image: a/b/c\n"), "4: image \"a/b/c\" is not"},
		"tag rule":           {app("    tags: [latest, nightly]\n"), "4: tag rule \"nightly\" is none of"},
		"build":              {app("    build: make\n"), "4: build \"make\" is none of"},
		"helm without build": {app("    helm: {release: a}\n"), "4: helm is set but build is not helm"},
		"values outside":     {app("    build: helm\n    helm:\n      values:\n      - ../../../etc/passwd\n"), "7: values file \"../../../etc/passwd\" is not in the repository"},
		"release":            {app("    build: helm\n    helm:\n      release: A B\n"), "6: release \"A B\" is not a name"},
		"check":              {app("    checks:\n      spelling: fail\n"), "5: check \"spelling\" is none of"},
		"built-in check":     {app("    checks: {build: ignore}\n"), "4: check \"build\" is none of"},
		"action":             {app("    checks:\n      schema: perhaps\n"), "5: \"perhaps\" is none of fail, warn and ignore"},
		"same name":          {app("  - name: shop\n    path: b\n"), "4: another application has the name \"shop\" already"},
		"same image":         {app("  - name: other\n    path: b\n    image: shop\n"), "6: application \"shop\" has the image \"shop\" already"},
		"branch":             {"branches: ['']\n" + app(""), "1: branch \"\" is not"},
		"many":               {"applications:\n" + strings.Repeat("- {name: a, path: b}\n", 501), "2: more than 500 applications"},
		"long":               {app("    image: " + strings.Repeat("x", 300) + "\n"), "4: image "},
		"null":               {"null\n", "1: no applications are named"},
	} {
		t.Run(name, func(t *testing.T) {
			config, findings := delivery.ParseConfig([]byte(test.text))
			if len(findings) == 0 {
				t.Fatalf("got %+v and no finding", config)
			}
			f := findings[0]
			if got := fmt.Sprintf("%d: %s", f.Line, f.Message); !strings.HasPrefix(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if f.Path != ".tidelock/delivery.yaml" || f.Warning || len(config.Applications) > 0 {
				t.Errorf("got finding %+v and config %+v", f, config)
			}
		})
	}
}

func TestParseConfigNamesAllMistakes(t *testing.T) {
	_, findings := delivery.ParseConfig([]byte("applications:\n- name: A\n  path: ..\n  build: x\n"))
	if len(findings) != 3 {
		t.Errorf("got %v, want 3 findings", findings)
	}
	_, findings = delivery.ParseConfig([]byte("x: 1\ny: 2\ntrigger: []\n"))
	if len(findings) != 3 {
		t.Errorf("got %v, want 3 findings", findings)
	}
}

var bomb = func() string {
	var b strings.Builder
	b.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 9; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 9), ","))
	}
	return b.String() + "branches: *a8\n"
}()

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("applications:\n- name: a\n  path: b\n  build: helm\n  helm: {values: [a]}\n"))
	f.Add([]byte(bomb))
	f.Add([]byte("applications: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		config, findings := delivery.ParseConfig(text)
		if (len(findings) == 0) != (len(config.Applications) > 0) {
			t.Errorf("got %d findings and %d applications", len(findings), len(config.Applications))
		}
		for _, app := range config.Applications {
			if strings.HasPrefix(app.Path, "..") || strings.HasPrefix(app.Path, "/") {
				t.Errorf("path %q leads outside", app.Path)
			}
		}
	})
}
