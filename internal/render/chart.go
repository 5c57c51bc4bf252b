package render

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/ignore"
	"sigs.k8s.io/yaml"
)

// renderChart renders twice, because a chart that gives something else each
// time looks changed with every push.
func renderChart(c Chart) (manifests []byte, unstable bool, err error) {
	first, err := renderOnce(c)
	if err != nil {
		return nil, false, err
	}
	second, err := renderOnce(c)
	return first, !bytes.Equal(first, second), err
}

func renderOnce(c Chart) ([]byte, error) {
	loaded, err := load(c.Files)
	if err != nil {
		return nil, err
	}
	values := map[string]any{}
	for _, file := range c.Values {
		given := map[string]any{}
		if err := yaml.Unmarshal(file.Content, &given); err != nil {
			return nil, fmt.Errorf("values file %s: %w", file.Path, err)
		}
		values = chartutil.MergeTables(given, values)
	}
	if err := chartutil.ProcessDependenciesWithMerge(loaded, values); err != nil {
		return nil, fmt.Errorf("dependencies: %w", err)
	}
	options := chartutil.ReleaseOptions{Name: c.Release, Namespace: c.Namespace, Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(loaded, values, options, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	rendered, err := engine.Render(loaded, all) // no DNS, and lookup finds nothing
	if err != nil {
		return nil, err
	}
	return join(loaded, rendered)
}

// load reads a chart, its .helmignore obeyed, and requires what it depends on
// to be there: nothing is fetched.
func load(files []File) (*chart.Chart, error) {
	rules := ignore.Empty()
	for _, f := range files {
		if f.Path == ignore.HelmIgnore {
			parsed, err := ignore.Parse(bytes.NewReader(f.Content))
			if err != nil {
				return nil, fmt.Errorf(".helmignore: %w", err)
			}
			rules = parsed
		}
	}
	rules.AddDefaults()
	var kept []*loader.BufferedFile
	for _, f := range files {
		if !ignored(rules, f) {
			kept = append(kept, &loader.BufferedFile{Name: f.Path, Data: bytes.TrimPrefix(f.Content, []byte("\ufeff"))})
		}
	}
	loaded, err := loader.LoadFiles(kept)
	if err != nil {
		return nil, err
	}
	if loaded.Metadata.Type != "" && loaded.Metadata.Type != "application" {
		return nil, fmt.Errorf("a chart of type %q cannot be rendered", loaded.Metadata.Type)
	}
	return loaded, complete(loaded)
}

// complete refuses a chart that lacks what it depends on, or whose schema
// lies elsewhere.
func complete(c *chart.Chart) error {
	if err := localSchema(c.Schema); err != nil {
		return fmt.Errorf("values.schema.json of chart %s: %w", c.Name(), err)
	}
	for _, needed := range c.Metadata.Dependencies {
		if needed == nil {
			return errors.New("a dependency in Chart.yaml is empty")
		}
		if !slices.ContainsFunc(c.Dependencies(), func(d *chart.Chart) bool { return d.Name() == needed.Name }) {
			return fmt.Errorf("chart %q, a dependency, is not in charts/: vendor it with \"helm dependency build\", nothing is fetched", needed.Name)
		}
	}
	for _, d := range c.Dependencies() {
		if err := complete(d); err != nil {
			return err
		}
	}
	return nil
}

// localSchema refuses references to anything but the schema itself.
func localSchema(schema []byte) error {
	if len(schema) == 0 {
		return nil
	}
	var document any
	if err := json.Unmarshal(schema, &document); err != nil {
		return err
	}
	var check func(any) error
	check = func(value any) error {
		switch value := value.(type) {
		case map[string]any:
			for key, inner := range value {
				to, ok := inner.(string)
				if ok && (key == "$ref" || key == "$dynamicRef" || key == "$recursiveRef") && !strings.HasPrefix(to, "#") {
					return fmt.Errorf("reference to %q leads out of it", to)
				}
				if err := check(inner); err != nil {
					return err
				}
			}
		case []any:
			for _, inner := range value {
				if err := check(inner); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return check(document)
}

func ignored(rules *ignore.Rules, f File) bool {
	for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
		if rules.Ignore(dir, entry{path.Base(dir), true}) {
			return true
		}
	}
	return rules.Ignore(f.Path, entry{path.Base(f.Path), false})
}

// join puts CRDs first and then the templates in order of their names, as
// documents of one file. Partials, notes and tests are left out.
func join(c *chart.Chart, rendered map[string]string) ([]byte, error) {
	var out bytes.Buffer
	add := func(name, text string) error {
		if strings.TrimSpace(text) == "" {
			return nil
		}
		fmt.Fprintf(&out, "---\n# Source: %s\n%s\n", name, strings.TrimPrefix(strings.TrimSpace(text), "---\n"))
		if out.Len() > MaxOutput {
			return fmt.Errorf("the manifests are larger than %d MiB", MaxOutput>>20)
		}
		return nil
	}
	for _, crd := range c.CRDObjects() {
		if err := add(crd.Filename, string(crd.File.Data)); err != nil {
			return nil, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rendered)) {
		base := path.Base(name)
		if strings.HasPrefix(base, "_") || strings.HasSuffix(base, "NOTES.txt") || strings.Contains(name, "/templates/tests/") {
			continue
		}
		if err := add(name, rendered[name]); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}
