package delivery

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/artifact"
	"tidelock.dev/internal/render"
)

// ReadConfig reads the delivery.yaml of a tree. None is of kind NotFound, and
// means that the tree is not one of a delivery repository.
func ReadConfig(tree Tree) (Settings, []tidelock.Finding, error) {
	e, err := tree.Entry(ConfigPath)
	if err != nil {
		return Settings{}, nil, err
	}
	if e.Type != "blob" || e.Mode == linkMode {
		return Settings{}, []tidelock.Finding{configFinding(0, "it is not a file")}, nil
	}
	text, err := tree.Content(e, maxConfig)
	if tidelock.KindOf(err) == tidelock.TooLarge {
		text, err = make([]byte, maxConfig+1), nil
	}
	if err != nil {
		return Settings{}, nil, err
	}
	config, findings := ParseConfig(text)
	return config, findings, nil
}

// A Package is an application that is ready to be published, unless one of its
// findings is no warning.
type Package struct {
	Layer    artifact.Layer
	Watched  []string // directories outside the application's path that it was made from, too
	Findings []tidelock.Finding
}

// Refused reports whether the package must not be published.
func (p Package) Refused() bool {
	return slices.ContainsFunc(p.Findings, func(f tidelock.Finding) bool { return !f.Warning })
}

// Make builds, checks and packs an application of a tree. What is wrong with
// the files is in the package's findings; an error says that it could not be
// found out.
func Make(ctx context.Context, tree Tree, app Application) (Package, error) {
	var p Package
	files, err := p.build(ctx, tree, app)
	if err == nil {
		p.Findings = append(p.Findings, check(files, app)...)
		if !p.Refused() {
			p.Layer, err = artifact.Pack(files)
		}
	}
	if wrong, ok := errors.AsType[problem](err); ok {
		p.Findings = append(p.Findings, wrong.finding)
		return p, nil
	}
	switch kind := tidelock.KindOf(err); {
	case err == nil:
		return p, nil
	case ctx.Err() == nil && (kind == tidelock.Invalid || kind == tidelock.TooLarge || kind == tidelock.NotFound):
		p.Findings = append(p.Findings, tidelock.Finding{Check: string(checkBuild), Path: app.Path, Message: shorten(err.Error())})
		return p, nil
	}
	return p, fmt.Errorf("package application %q: %w", app.Name, err)
}

// rendered is the one file of an application that was built. No kustomization
// is needed to apply it.
const rendered = "manifests.yaml"

func (p *Package) build(ctx context.Context, tree Tree, app Application) ([]artifact.File, error) {
	switch app.Build {
	case BuildKustomize:
		w := &watcher{tree: tree, top: app.Path, watched: map[string]bool{}}
		manifests, err := render.Kustomize(ctx, w, app.Path)
		p.Watched = slices.Sorted(maps.Keys(w.watched))
		return []artifact.File{{Path: rendered, Content: manifests}}, builderError(app, err)
	case BuildHelm:
		files, err := collect(tree, app)
		if err != nil {
			return nil, err
		}
		w := &watcher{tree: tree, top: app.Path, watched: map[string]bool{}}
		chart := render.Chart{Release: app.Helm.Release, Namespace: app.Helm.Namespace}
		for _, f := range files {
			chart.Files = append(chart.Files, render.File{Path: f.Path, Content: f.Content})
		}
		for _, name := range app.Helm.Values {
			content, err := w.Read(name)
			p.Watched = slices.Sorted(maps.Keys(w.watched))
			if tidelock.KindOf(err) == tidelock.NotFound {
				return nil, problemf(checkBuild, name, "the values file is not in the repository")
			}
			if err != nil {
				return nil, err
			}
			chart.Values = append(chart.Values, render.File{Path: name, Content: content})
		}
		manifests, unstable, err := render.Helm(ctx, chart)
		if unstable {
			p.Findings = append(p.Findings, tidelock.Finding{Check: string(checkBuild), Path: app.Path, Warning: true,
				Message: "the chart gives something else each time it is rendered, such as a random password or the time: set the values that decide it"})
		}
		return []artifact.File{{Path: rendered, Content: manifests}}, builderError(app, err)
	}
	return collect(tree, app)
}

// builderError says which builder did not like the application.
func builderError(app Application, err error) error {
	switch tidelock.KindOf(err) {
	case tidelock.Invalid, tidelock.TooLarge:
		if err != nil {
			return problemf(checkBuild, app.Path, "%s: %s", app.Build, strings.TrimSpace(err.Error()))
		}
	}
	return err
}

// Inputs stands for all that an application's package is made from: the
// settings, the files below its path, and those in the watched directories. It
// reads no file.
func Inputs(tree Tree, app Application, watched []string) (tidelock.Digest, error) {
	settings, err := json.Marshal(app)
	if err != nil {
		return "", fmt.Errorf("write application %q: %w", app.Name, err)
	}
	sum := sha256.New()
	fmt.Fprintf(sum, "%d\n%s\n", format, settings)
	e, err := tree.Entry(app.Path)
	if err != nil && !absent(err) {
		return "", err
	}
	fmt.Fprintf(sum, "%s %s\n", e.Mode, e.ID)
	seen := 0
	for _, dir := range watched {
		if seen > maxSeen {
			break // they have grown; Make will say so
		}
		entries, err := tree.Dir(dir)
		if err != nil && !absent(err) {
			return "", err
		}
		seen += 1 + len(entries)
		fmt.Fprintf(sum, "%q\n", dir)
		for _, e := range entries {
			if e.Type == "tree" {
				fmt.Fprintf(sum, "%q/\n", e.Name) // what is below counts only when it is watched, too
				continue
			}
			fmt.Fprintf(sum, "%q %s %s\n", e.Name, e.Mode, e.ID)
		}
	}
	return tidelock.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil))), nil
}

// format counts the changes of what Make makes of the same files; with a new
// one all applications are packaged again.
const format = 1

// absent reports whether nothing can be made of what is at a path.
func absent(err error) bool {
	kind := tidelock.KindOf(err)
	return kind == tidelock.NotFound || kind == tidelock.Invalid || kind == tidelock.TooLarge
}
