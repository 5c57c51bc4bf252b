package forge

import (
	"context"
	"fmt"
	"strings"

	"tidelock.dev"
)

// buildStore is what the rules remember of packaging delivery repositories.
type buildStore interface{ BuildLog }

// A BuildLog is what came of packaging, and what is still to be packaged. It
// is the store's, for the part of the server that packages.
type BuildLog interface {
	// UndeliveredHeads lists branches and tags whose commit is not the one for
	// which RecordBuilds was last called; project 0 is all projects.
	UndeliveredHeads(ctx context.Context, project tidelock.ProjectID, limit int) ([]tidelock.Head, error)
	// RecordBuilds writes builds of a head, and that its commit is delivered.
	// It keeps the newest 100 of an application under one ref, and the last
	// one that succeeded.
	RecordBuilds(context.Context, tidelock.Head, []tidelock.Build) ([]tidelock.Build, error)
	// LastBuilds lists the newest build of each application under a ref that
	// did not fail.
	LastBuilds(context.Context, tidelock.ProjectID, tidelock.RefName) ([]tidelock.Build, error)
	// Builds lists newest first.
	Builds(context.Context, tidelock.BuildFilter, tidelock.Page) ([]tidelock.Build, int, error)
	// ForgetDelivered forgets what was delivered of refs that are gone.
	ForgetDelivered(context.Context) error

	Push(context.Context, tidelock.PushID) (tidelock.Push, error)
}

// BuildLog is what is still to be packaged, and what came of the rest.
func (f *Forge) BuildLog() BuildLog { return f.store }

// Builds lists what came of packaging the applications of a project, newest
// first.
func (f *Forge) Builds(ctx context.Context, p Principal, project tidelock.Project, filter tidelock.BuildFilter, page tidelock.Page) ([]tidelock.Build, int, error) {
	if err := f.Allow(ctx, p, ReadHistory, OnProject(project)); err != nil {
		return nil, 0, err
	}
	filter.Project = project.ID
	return f.store.Builds(ctx, filter, page)
}

// PostOwnStatus is PostStatus by the forge itself, about what it did because
// of a commit.
func (f *Forge) PostOwnStatus(ctx context.Context, project tidelock.Project, commit tidelock.CommitID, n NewStatus) (tidelock.Status, error) {
	if err := n.check(); err != nil {
		return tidelock.Status{}, err
	}
	ref, err := f.statusRef(ctx, project, commit, n)
	if err != nil {
		return tidelock.Status{}, err
	}
	return f.postStatus(ctx, Principal{}, project, commit, ref, n, func(tidelock.Pipeline) error { return nil })
}

// AbandonOwnStatuses cancels what the forge itself left pending or running
// under a branch or tag, on commits other than the head: whoever would have
// moved it on is gone. The names are a prefix and what begins with it and "/".
func (f *Forge) AbandonOwnStatuses(ctx context.Context, project tidelock.Project, head tidelock.Head, prefix, why string) error {
	name, isTag := head.Ref.Tag()
	if !isTag {
		name, _ = head.Ref.Branch()
	}
	open := []tidelock.StatusState{tidelock.StatusPending, tidelock.StatusRunning}
	pipelines, _, err := f.store.Pipelines(ctx, tidelock.PipelineFilter{Project: project.ID, Ref: name, Tag: &isTag, States: open}, tidelock.Page{Number: 1, PerPage: 100})
	if err != nil {
		return fmt.Errorf("list pipelines of %s: %w", head.Ref, err)
	}
	for _, pipeline := range pipelines {
		if pipeline.Commit == head.Commit {
			continue
		}
		statuses, _, err := f.store.Statuses(ctx, tidelock.StatusFilter{Project: project.ID, Pipeline: pipeline.ID, Stage: tidelock.ExternalStage, Latest: true, States: open}, tidelock.Page{})
		if err != nil {
			return fmt.Errorf("list statuses of pipeline %d: %w", pipeline.ID, err)
		}
		for _, s := range statuses {
			if s.By != 0 || s.Token != 0 || s.Name != prefix && !strings.HasPrefix(s.Name, prefix+"/") {
				continue
			}
			_, err := f.postStatus(ctx, Principal{}, project, pipeline.Commit, statusRef{name, isTag}, NewStatus{
				State: tidelock.StatusCanceled, Name: s.Name, Ref: name, Pipeline: pipeline.ID, Description: &why,
			}, func(tidelock.Pipeline) error { return nil })
			if err != nil {
				return fmt.Errorf("cancel status %d: %w", s.ID, err)
			}
		}
	}
	return nil
}

// MayPublish reports, before anything is stored, why rules keep PublishArtifact
// from moving the tags of a manifest.
func (f *Forge) MayPublish(ctx context.Context, project tidelock.Project, m ManifestPush, cause tidelock.Push) error {
	if err := checkImageName(m.Image); err != nil {
		return err
	}
	for _, tag := range m.Tags {
		if err := checkTag(tag); err != nil {
			return err
		}
	}
	level, err := f.publisherLevel(ctx, project, m.Ref, cause)
	if err != nil {
		return err
	}
	return f.mayMoveTags(ctx, project, m, m.Digest, level)
}
