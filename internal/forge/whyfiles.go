package forge

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/explain"
	"tidelock.dev/internal/gitrepo"
)

// What is read of a repository for one path of an applier.
const (
	maxLookEntries = 2000
	maxLookFile    = 1 << 20
	maxLookBytes   = 16 << 20
	maxLookBroken  = 5
)

// A look is what was found below a path at a commit.
type look struct {
	untouched bool
	there     bool
	broken    []tidelock.Finding
}

// look looks once at each path, and at few of them.
func (w *inquiry) look(key string, at func() (look, error)) (look, error) {
	if l, known := w.looks[key]; known || len(w.looks) >= maxWhyPaths {
		return l, nil
	}
	l, err := at()
	switch tidelock.KindOf(err) {
	case tidelock.NotFound, tidelock.TooLarge: // then nothing is known of it
		l, err = look{}, nil
	}
	w.looks[key] = l
	return l, err
}

// has reports whether the commit has something at the path of an applier.
func (w *inquiry) has(ctx context.Context, o *tidelock.Observation) (bool, error) {
	below := cleanPath(o.Path)
	if below == "." {
		return true, nil
	}
	l, err := w.look("there "+below, func() (look, error) {
		there, err := w.f.repos.Repo(w.project.ID).Exists(ctx, w.base.Commit, below)
		return look{there: there}, err
	})
	return l.there, err
}

// untouched reports whether the commit is known to change manifests, and none
// that a Kustomization applies. Whatever may reach beyond its path leaves that
// open, and who changes a README does not wait for it in a cluster.
func (w *inquiry) untouched(ctx context.Context, o *tidelock.Observation) (bool, error) {
	below := cleanPath(o.Path)
	if kind, _, _ := o.Object.Split(); kind != tidelock.Kustomization || below == "." {
		return false, nil
	}
	if !w.knows {
		commit, err := w.f.repos.Repo(w.project.ID).Commit(ctx, string(w.base.Commit))
		if err != nil {
			return false, err
		}
		changed, _, err := w.f.repos.Repo(w.project.ID).Changed(ctx, gitrepo.CommitRange{
			To: commit.ID, Without: commit.Parents[:min(len(commit.Parents), 1)], Newest: 1,
		})
		if err != nil {
			return false, fmt.Errorf("read what commit %s changes: %w", commit.ID, err)
		}
		for _, c := range changed {
			w.changed = slices.Concat(w.changed, c.Added, c.Modified, c.Removed)
		}
		w.knows = true
	}
	if !slices.ContainsFunc(w.changed, looksApplied) || slices.ContainsFunc(w.changed, func(name string) bool {
		return isBelow(name, below) || path.Base(name) == ".sourceignore"
	}) {
		return false, nil
	}
	l, err := w.look("alone "+below, func() (look, error) {
		alone, err := w.standsAlone(ctx, below)
		return look{untouched: alone}, err
	})
	return l.untouched, err
}

// looksApplied reports whether a file may be meant for a cluster. Words, code
// and the settings of tools are not.
func looksApplied(name string) bool {
	switch path.Ext(name) {
	case ".yaml", ".yml", ".json", ".tpl":
	default:
		if path.Base(name) != "Kustomization" {
			return false
		}
	}
	return !slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return strings.HasPrefix(part, ".") })
}

// standsAlone reports whether nothing below a path of the commit reaches
// beyond it.
func (w *inquiry) standsAlone(ctx context.Context, below string) (alone bool, err error) {
	err = w.f.repos.Repo(w.project.ID).View(ctx, w.base.Commit, func(v *gitrepo.View) error {
		alone = true
		return walk(v, below, func(e gitrepo.TreeEntry) error {
			switch {
			case e.Mode == "120000" || e.Type == "commit":
				alone = false
			case slices.Contains([]string{"kustomization.yaml", "kustomization.yml", "Kustomization"}, e.Name):
				content, err := v.Content(e, maxLookFile)
				if err != nil {
					return err
				}
				alone = alone && !strings.Contains(string(content), "..") && !strings.Contains(string(content), "://") && !strings.Contains(string(content), "github.com")
			}
			return nil
		})
	})
	return alone, err
}

// broken finds the files that keep a Kustomization from being built: the one
// that the message names or, where it names none and is about reading, any.
func (w *inquiry) broken(ctx context.Context, s tidelock.AgentSource, o *tidelock.Observation) ([]tidelock.Finding, error) {
	named, reading := explain.FileOf(o)
	if named == "" && !reading {
		return nil, nil
	}
	c, err := w.cargo(ctx, s, o.Attempted)
	if err != nil || c.commit == "" {
		return nil, err
	}
	below := cleanPath(o.Path)
	l, err := w.look("broken "+string(c.commit)+" "+below+" "+named, func() (l look, err error) {
		left := int64(maxLookBytes)
		err = w.f.repos.Repo(w.project.ID).View(ctx, c.commit, func(v *gitrepo.View) error {
			check := func(e gitrepo.TreeEntry) error {
				if ext := path.Ext(e.Name); ext != ".yaml" && ext != ".yml" || e.Type != "blob" || len(l.broken) >= maxLookBroken {
					return nil
				}
				content, err := v.Content(e, min(maxLookFile, left))
				if err != nil {
					return err
				}
				left -= int64(len(content))
				if finding, ok := explain.CheckYAML(e.Path, content); !ok {
					l.broken = append(l.broken, finding)
				}
				return nil
			}
			if named == "" {
				return walk(v, below, check)
			}
			e, err := v.Entry(named)
			if err != nil {
				return err
			}
			return check(e)
		})
		return l, err
	})
	return l.broken, err
}

// walk visits the files below a directory, and fails when there are too many.
func walk(v *gitrepo.View, dir string, visit func(gitrepo.TreeEntry) error) error {
	left := maxLookEntries
	var in func(string) error
	in = func(dir string) error {
		entries, err := v.Dir(dir)
		if err != nil {
			return err
		}
		if left -= len(entries); left < 0 {
			return tidelock.Errorf(tidelock.TooLarge, "too many files are below %q", dir)
		}
		for _, e := range entries {
			if e.Type == "tree" {
				err = in(e.Path)
			} else {
				err = visit(e)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	return in(dir)
}

// cleanPath is spec.path as a path in the repository; "." is all of it.
func cleanPath(p string) string {
	if p = path.Clean("/" + p); p == "/" {
		return "."
	}
	return p[1:]
}
