package forge

import (
	"context"
	"fmt"

	"go.yaml.in/yaml/v3"

	"tidelock.dev"
	"tidelock.dev/internal/gitrepo"
)

const (
	// reasonVersionKept is of commits that change a chart and not its version.
	reasonVersionKept = "ChartVersionKept"
	// maxChartFile bounds the Chart.yaml that is read, in bytes.
	maxChartFile = 1 << 20
	// maxChartVersion bounds the version that is shown, in bytes.
	maxChartVersion = 100
)

// keptCharts finds, for appliers whose chart Flux packages only when its
// version changes, what is wrong with the commit that each has: Flux says of a
// commit that changes the chart and keeps the version that all is well, and
// has what was packaged before.
func (f *Forge) keptCharts(ctx context.Context, v view) (kept map[tidelock.ObjectID]string, err error) {
	kept = map[tidelock.ObjectID]string{}
	for _, o := range v.appliers {
		commit := v.cargoes[o.Source][o.Revision].commit
		if o.Chart == "" || commit == "" {
			continue
		}
		before, err := f.lastApplied(ctx, v, o.Object)
		if err != nil {
			return nil, fmt.Errorf("find what %s had before: %w", o.Object, err)
		}
		if before == "" || before == commit {
			continue
		}
		version, err := f.keptVersion(ctx, v.project, o.Chart, before, commit)
		if err != nil {
			return nil, fmt.Errorf("compare chart %s of %s and %s: %w", o.Chart, before, commit, err)
		}
		if version != "" {
			kept[o.Object] = fmt.Sprintf("the chart in %s changed since %s and is still version %s, so Flux did not package it again: raise the version, or set reconcileStrategy: Revision",
				o.Chart, short(before), version)
		}
	}
	return kept, nil
}

// lastApplied is the commit that an applier really applied last; "" for none.
func (f *Forge) lastApplied(ctx context.Context, v view, applier tidelock.ObjectID) (tidelock.CommitID, error) {
	last, _, err := f.store.Rollouts(ctx,
		tidelock.RolloutFilter{Agent: v.agent, Applier: applier, Project: v.project, Applied: true}, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil || len(last) == 0 {
		return "", err
	}
	return last[0].Commit, nil
}

// keptVersion is the version of a chart that two commits have in common though
// the chart is another one; "" where that is not so, or not known.
func (f *Forge) keptVersion(ctx context.Context, project tidelock.ProjectID, folder string, before, after tidelock.CommitID) (string, error) {
	was, err := f.chartAt(ctx, project, before, folder)
	if err != nil || was.version == "" {
		return "", err
	}
	is, err := f.chartAt(ctx, project, after, folder)
	if err != nil || is.tree == was.tree || is.version != was.version {
		return "", err
	}
	return is.version, nil
}

// A chartState is a chart as a commit has it; zero when it has none that can
// be read.
type chartState struct {
	tree    tidelock.CommitID
	version string
}

func (f *Forge) chartAt(ctx context.Context, project tidelock.ProjectID, commit tidelock.CommitID, folder string) (c chartState, err error) {
	folder = cleanPath(folder)
	err = f.repos.Repo(project).View(ctx, commit, func(v *gitrepo.View) error {
		tree, err := v.Entry(folder)
		if err != nil {
			return err
		}
		file, err := v.Entry(cleanPath(folder + "/Chart.yaml"))
		if err != nil {
			return err
		}
		content, err := v.Content(file, maxChartFile)
		if err != nil {
			return err
		}
		var chart struct {
			Version string `yaml:"version"`
		}
		if yaml.Unmarshal(content, &chart) == nil {
			c = chartState{tree.ID, tidelock.Printable(chart.Version, maxChartVersion)}
		}
		return nil
	})
	switch tidelock.KindOf(err) {
	case tidelock.NotFound, tidelock.TooLarge, tidelock.Invalid:
		return chartState{}, nil // Flux has something to say of it, or nobody
	}
	return c, err
}
