package forge

import (
	"context"
	"fmt"

	"tidelock.dev"
)

// Pipelines lists a project's pipelines, newest first unless the filter says
// otherwise.
func (f *Forge) Pipelines(ctx context.Context, p Principal, project tidelock.Project, filter tidelock.PipelineFilter, page tidelock.Page) ([]tidelock.Pipeline, int, error) {
	if err := f.Allow(ctx, p, ReadPipelines, OnProject(project)); err != nil {
		return nil, 0, err
	}
	filter.Project = project.ID
	return f.store.Pipelines(ctx, filter, page)
}

// Pipeline reads one pipeline of a project.
func (f *Forge) Pipeline(ctx context.Context, p Principal, project tidelock.Project, id tidelock.PipelineID) (tidelock.Pipeline, error) {
	return f.pipeline(ctx, p, project, id, ReadPipelines)
}

func (f *Forge) pipeline(ctx context.Context, p Principal, project tidelock.Project, id tidelock.PipelineID, a Action) (tidelock.Pipeline, error) {
	if err := f.Allow(ctx, p, a, OnProject(project)); err != nil {
		return tidelock.Pipeline{}, err
	}
	pipeline, err := f.store.Pipeline(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && pipeline.Project != project.ID) {
		err = tidelock.Errorf(tidelock.NotFound, "Pipeline Not Found")
	}
	if err != nil {
		return tidelock.Pipeline{}, err
	}
	return pipeline, nil
}

// LatestPipeline reads the newest pipeline of the commit that a branch or tag
// points at now; "" is the default branch.
func (f *Forge) LatestPipeline(ctx context.Context, p Principal, project tidelock.Project, ref string) (tidelock.Pipeline, error) {
	if err := f.Allow(ctx, p, ReadPipelines, OnProject(project)); err != nil {
		return tidelock.Pipeline{}, err
	}
	if ref == "" {
		ref = project.DefaultBranch
	}
	none := tidelock.Errorf(tidelock.NotFound, "Pipeline Not Found")
	named, err := f.namedRef(ctx, project, ref)
	if err != nil {
		return tidelock.Pipeline{}, err
	}
	full := tidelock.BranchRef(ref)
	if named.tag {
		full = tidelock.TagRef(ref)
	}
	head, err := f.store.Head(ctx, project.ID, full)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Pipeline{}, none
	}
	if err != nil {
		return tidelock.Pipeline{}, fmt.Errorf("read %s of project %d: %w", full, project.ID, err)
	}
	newest, _, err := f.store.Pipelines(ctx, tidelock.PipelineFilter{
		Project: project.ID, Commit: head.Commit, Ref: ref, Tag: &named.tag,
	}, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil {
		return tidelock.Pipeline{}, err
	}
	if len(newest) == 0 || head.Commit == "" {
		return tidelock.Pipeline{}, none
	}
	return newest[0], nil
}

// PipelineOf reads the newest pipeline of a commit, for those who may read
// pipelines; false when there is none, or when the caller may not.
func (f *Forge) PipelineOf(ctx context.Context, p Principal, project tidelock.Project, commit tidelock.CommitID) (tidelock.Pipeline, bool, error) {
	err := f.Allow(ctx, p, ReadPipelines, OnProject(project))
	if kind := tidelock.KindOf(err); err != nil && (kind == tidelock.Denied || kind == tidelock.Unauthenticated) {
		return tidelock.Pipeline{}, false, nil
	}
	if err != nil {
		return tidelock.Pipeline{}, false, err
	}
	newest, _, err := f.store.Pipelines(ctx, tidelock.PipelineFilter{Project: project.ID, Commit: commit}, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil || len(newest) == 0 {
		return tidelock.Pipeline{}, false, err
	}
	return newest[0], true, nil
}

// DeletePipeline removes a pipeline and its statuses.
func (f *Forge) DeletePipeline(ctx context.Context, p Principal, project tidelock.Project, id tidelock.PipelineID) error {
	pipeline, err := f.pipeline(ctx, p, project, id, DeletePipeline)
	if err != nil {
		return err
	}
	err = f.store.DeletePipeline(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return tidelock.Errorf(tidelock.NotFound, "Pipeline Not Found")
	}
	if err != nil {
		return err
	}
	by, _ := p.ids()
	f.log.InfoContext(ctx, "pipeline deleted", "project", project.ID, "pipeline", id, "by", by)
	publish(f, tidelock.StatusChanged{Project: project.ID, Commit: pipeline.Commit})
	return nil
}

// Jobs lists the jobs of a project, or of one pipeline of it: here these are
// the statuses that were posted from outside.
func (f *Forge) Jobs(ctx context.Context, p Principal, project tidelock.Project, filter tidelock.StatusFilter, page tidelock.Page) ([]tidelock.Status, int, error) {
	if filter.Pipeline != 0 {
		if _, err := f.pipeline(ctx, p, project, filter.Pipeline, ReadPipelines); err != nil {
			return nil, 0, err
		}
	} else if err := f.Allow(ctx, p, ReadPipelines, OnProject(project)); err != nil {
		return nil, 0, err
	}
	filter.Project = project.ID
	return f.store.Statuses(ctx, filter, page)
}

// Job reads one job of a project.
func (f *Forge) Job(ctx context.Context, p Principal, project tidelock.Project, id tidelock.StatusID) (tidelock.Status, error) {
	if err := f.Allow(ctx, p, ReadPipelines, OnProject(project)); err != nil {
		return tidelock.Status{}, err
	}
	job, err := f.store.Status(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && job.Project != project.ID) {
		err = tidelock.Errorf(tidelock.NotFound, "Job Not Found")
	}
	if err != nil {
		return tidelock.Status{}, err
	}
	return job, nil
}
