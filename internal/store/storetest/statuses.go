package storetest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidelock.dev"
)

func (w world) pipeline(project tidelock.ProjectID, commit tidelock.CommitID, ref string) tidelock.Pipeline {
	w.Helper()
	p, err := w.CreatePipeline(w.Context(), tidelock.Pipeline{
		Project: project, Commit: commit, Ref: ref, Source: tidelock.ExternalSource, State: tidelock.StatusCreated, CreatedAt: start, UpdatedAt: start,
	})
	w.ok(err)
	return p
}

func (w world) status(p tidelock.Pipeline, name string, state tidelock.StatusState) tidelock.Status {
	w.Helper()
	s, err := w.CreateStatus(w.Context(), tidelock.Status{
		Project: p.Project, Pipeline: p.ID, Commit: p.Commit, Ref: p.Ref, Tag: p.Tag,
		Stage: tidelock.ExternalStage, Name: name, State: state, CreatedAt: start, UpdatedAt: start,
	})
	w.ok(err)
	return s
}

func pipelineIIDs(w world) func([]tidelock.Pipeline, int, error) string {
	return names(w, func(p tidelock.Pipeline) string { return fmt.Sprint(p.IID) })
}

func statusNames(w world) func([]tidelock.Status, int, error) string {
	return names(w, func(s tidelock.Status) string { return s.Name + "=" + string(s.State) })
}

var statusTests = []test{
	{"a pipeline is read as it was saved", func(w world) {
		site := w.site()
		want := tidelock.Pipeline{
			Project: site.ID, Commit: "c1", Ref: "v\xff", Tag: true, Source: "external", State: tidelock.StatusRunning,
			By: 7, Token: 8, CreatedAt: start, UpdatedAt: start.Add(time.Second), StartedAt: start.Add(time.Minute),
		}
		made, err := w.CreatePipeline(w.Context(), want)
		w.ok(err)
		want.ID, want.IID = made.ID, 1
		want.CreatedAt, want.UpdatedAt, want.StartedAt = at(0), at(time.Second), at(time.Minute)
		equal(w, made, want)
		got, err := w.Pipeline(w.Context(), made.ID)
		w.ok(err)
		equal(w, got, want)

		coverage := 98.25
		want.State, want.FinishedAt, want.UpdatedAt = tidelock.StatusSuccess, at(time.Hour), at(time.Hour)
		want.Duration, want.Coverage = 1500*time.Millisecond, &coverage
		w.ok(w.SavePipeline(w.Context(), want))
		got, err = w.Pipeline(w.Context(), made.ID)
		w.ok(err)
		equal(w, got, want)
	}},
	{"pipelines count within their project, and never a number twice", func(w world) {
		site := w.site()
		shop := w.project(site.Namespace, "shop")
		first, second := w.pipeline(site.ID, "c1", "main"), w.pipeline(site.ID, "c2", "main")
		elsewhere := w.pipeline(shop.ID, "c1", "main")
		w.ok(w.DeletePipeline(w.Context(), second.ID))
		third := w.pipeline(site.ID, "c2", "main")
		equal(w, []int64{first.IID, second.IID, third.IID, elsewhere.IID}, []int64{1, 2, 3, 1})
		w.kind(w.DeletePipeline(w.Context(), second.ID), tidelock.NotFound)
		_, err := w.Pipeline(w.Context(), second.ID)
		w.kind(err, tidelock.NotFound)
		w.kind(w.SavePipeline(w.Context(), second), tidelock.NotFound)
		_, err = w.CreatePipeline(w.Context(), tidelock.Pipeline{Project: 4711})
		w.kind(err, tidelock.NotFound)
	}},
	{"pipelines are filtered and ordered", func(w world) {
		site := w.site()
		ada := w.user("Ada")
		make := func(commit tidelock.CommitID, ref string, tag bool, state tidelock.StatusState, by tidelock.UserID, updated time.Duration) {
			_, err := w.CreatePipeline(w.Context(), tidelock.Pipeline{
				Project: site.ID, Commit: commit, Ref: ref, Tag: tag, State: state, Source: "external", By: by,
				CreatedAt: start.Add(updated), UpdatedAt: start.Add(updated),
			})
			w.ok(err)
		}
		make("c1", "main", false, tidelock.StatusSuccess, ada.ID, 3*time.Hour)
		make("c1", "v1", true, tidelock.StatusFailed, 0, 2*time.Hour)
		make("c2", "main", false, tidelock.StatusRunning, ada.ID, time.Hour)
		make("c3", "feature", false, tidelock.StatusSkipped, 0, 4*time.Hour)
		w.pipeline(w.project(site.Namespace, "shop").ID, "c1", "main")
		yes, no := true, false
		for filter, want := range map[*tidelock.PipelineFilter]string{
			{}:                                    "4 3 2 1",
			{Ascending: true}:                     "1 2 3 4",
			{Commit: "c1"}:                        "2 1",
			{Ref: "main"}:                         "3 1",
			{Ref: "main", LatestOfRefs: true}:     "3",
			{LatestOfRefs: true, Tag: &no}:        "4 3",
			{LatestOfRefs: true, Tag: &yes}:       "2",
			{Username: "ADA"}:                     "3 1",
			{Source: "push"}:                      "",
			{OrderBy: "updated_at"}:               "4 1 2 3",
			{OrderBy: "status", Ascending: true}:  "2 3 4 1",
			{OrderBy: "ref", Ascending: true}:     "4 1 3 2",
			{UpdatedAfter: start.Add(time.Hour)}:  "4 2 1",
			{UpdatedBefore: start.Add(time.Hour)}: "",
			{CreatedBefore: start.Add(2*time.Hour + time.Second)}:                           "3 2",
			{States: []tidelock.StatusState{tidelock.StatusFailed, tidelock.StatusRunning}}: "3 2",
		} {
			filter.Project = site.ID
			if got := pipelineIIDs(w)(w.Pipelines(w.Context(), *filter, everything)); got != want {
				w.Errorf("pipelines %+v: got %q, want %q", *filter, got, want)
			}
		}
		_, _, err := w.Pipelines(w.Context(), tidelock.PipelineFilter{OrderBy: "id; DROP TABLE users"}, everything)
		w.kind(err, tidelock.Invalid)
		paged(w, 4, func(p tidelock.Pipeline) string { return fmt.Sprint(p.ID) }, func(p tidelock.Page) ([]tidelock.Pipeline, int, error) {
			return w.Pipelines(w.Context(), tidelock.PipelineFilter{Project: site.ID}, p)
		})
	}},
	{"a status is read as it was saved", func(w world) {
		p := w.pipeline(w.site().ID, "c1", "main")
		coverage := 0.5
		want := tidelock.Status{
			Project: p.Project, Pipeline: p.ID, Commit: "c1", Ref: "main", Stage: "external", Name: "Flux ✓", State: tidelock.StatusRunning,
			TargetURL: "https://ci.example/1", Description: "working", Coverage: &coverage, AllowFailure: true, By: 3, Token: 4,
			CreatedAt: start, UpdatedAt: start, StartedAt: start.Add(time.Second),
		}
		made, err := w.CreateStatus(w.Context(), want)
		w.ok(err)
		want.ID, want.Latest = made.ID, true
		want.CreatedAt, want.UpdatedAt, want.StartedAt = at(0), at(0), at(time.Second)
		equal(w, made, want)
		want.State, want.Description, want.Coverage = tidelock.StatusFailed, "broken", nil
		want.FinishedAt, want.UpdatedAt = at(time.Minute), at(time.Minute)
		w.ok(w.SaveStatus(w.Context(), want))
		got, err := w.Status(w.Context(), made.ID)
		w.ok(err)
		equal(w, got, want)
		w.kind(w.SaveStatus(w.Context(), tidelock.Status{ID: 4711}), tidelock.NotFound)
		_, err = w.Status(w.Context(), 4711)
		w.kind(err, tidelock.NotFound)
		_, err = w.CreateStatus(w.Context(), tidelock.Status{Project: p.Project, Pipeline: 4711, Name: "x"})
		w.kind(err, tidelock.NotFound)
	}},
	{"the newest status of a name in a pipeline is the latest", func(w world) {
		site := w.site()
		main, tag := w.pipeline(site.ID, "c1", "main"), w.pipeline(site.ID, "c1", "v1")
		other := w.pipeline(site.ID, "c2", "main")
		w.status(main, "a", tidelock.StatusFailed)
		w.status(main, "b", tidelock.StatusSuccess)
		w.status(main, "a", tidelock.StatusSuccess)
		w.status(tag, "a", tidelock.StatusRunning)
		w.status(other, "a", tidelock.StatusPending)
		for filter, want := range map[*tidelock.StatusFilter]string{
			{Commit: "c1"}:                             "a=failed b=success a=success a=running",
			{Commit: "c1", Latest: true}:               "b=success a=success a=running",
			{Commit: "c1", Latest: true, Name: "a"}:    "a=success a=running",
			{Commit: "c1", Latest: true, Ref: "main"}:  "b=success a=success",
			{Commit: "c1", Stage: "external"}:          "a=failed b=success a=success a=running",
			{Commit: "c1", Stage: "build"}:             "",
			{Commit: "c0"}:                             "",
			{Pipeline: tag.ID}:                         "a=running",
			{Descending: true}:                         "a=pending a=running a=success b=success a=failed",
			{OrderBy: "pipeline_id", Descending: true}: "a=pending a=running a=success b=success a=failed",
			{States: []tidelock.StatusState{tidelock.StatusPending, tidelock.StatusFailed}}: "a=failed a=pending",
		} {
			filter.Project = site.ID
			if got := statusNames(w)(w.Statuses(w.Context(), *filter, everything)); got != want {
				w.Errorf("statuses %+v: got %q, want %q", *filter, got, want)
			}
		}
		_, _, err := w.Statuses(w.Context(), tidelock.StatusFilter{OrderBy: "name"}, everything)
		w.kind(err, tidelock.Invalid)
		w.ok(w.DeletePipeline(w.Context(), main.ID))
		equal(w, statusNames(w)(w.Statuses(w.Context(), tidelock.StatusFilter{Project: site.ID, Commit: "c1"}, everything)), "a=running")
		w.ok(w.DeleteProject(w.Context(), site.ID))
		equal(w, statusNames(w)(w.Statuses(w.Context(), tidelock.StatusFilter{}, everything)), "")
	}},
	{"a name stands once in each stage of a pipeline", func(w world) {
		p := w.pipeline(w.site().ID, "c1", "main")
		own := tidelock.Status{Project: p.Project, Pipeline: p.ID, Stage: tidelock.DeployStage, Name: "a", State: tidelock.StatusRunning}
		made, err := w.CreateStatus(w.Context(), own)
		w.ok(err)
		w.status(p, "a", tidelock.StatusSuccess)
		w.status(p, "a", tidelock.StatusFailed)
		latest := tidelock.StatusFilter{Project: p.Project, Pipeline: p.ID, Latest: true}
		equal(w, statusNames(w)(w.Statuses(w.Context(), latest, everything)), "a=running a=failed")
		_, err = w.CreateStatus(w.Context(), own)
		w.ok(err)
		equal(w, statusNames(w)(w.Statuses(w.Context(), latest, everything)), "a=failed a=running")
		got, err := w.Status(w.Context(), made.ID)
		w.ok(err)
		equal(w, got.Latest, false)
	}},
	{"who locks a project in a transaction is alone with it", func(w world) {
		site := w.site()
		errs := together(50, func(i int) error {
			return w.Atomically(w.Context(), func(ctx context.Context) error {
				if err := w.LockProject(ctx, site.ID); err != nil {
					return err
				}
				found, _, err := w.Pipelines(ctx, tidelock.PipelineFilter{Project: site.ID, Commit: "c1"}, tidelock.Page{Number: 1, PerPage: 1})
				if err != nil {
					return err
				}
				var p tidelock.Pipeline
				if len(found) > 0 {
					p = found[0]
				} else if p, err = w.CreatePipeline(ctx, tidelock.Pipeline{Project: site.ID, Commit: "c1", Ref: "main", State: tidelock.StatusCreated}); err != nil {
					return err
				}
				_, err = w.CreateStatus(ctx, tidelock.Status{Project: site.ID, Pipeline: p.ID, Name: fmt.Sprint("check ", i%5), State: tidelock.StatusSuccess})
				return err
			})
		})
		for _, err := range errs {
			w.ok(err)
		}
		if got := pipelineIIDs(w)(w.Pipelines(w.Context(), tidelock.PipelineFilter{Project: site.ID}, everything)); got != "1" {
			w.Errorf("50 at once made the pipelines %q, want one", got)
		}
		all := statusNames(w)(w.Statuses(w.Context(), tidelock.StatusFilter{Project: site.ID}, everything))
		latest := statusNames(w)(w.Statuses(w.Context(), tidelock.StatusFilter{Project: site.ID, Latest: true}, everything))
		if n, l := strings.Count(all, "check"), strings.Count(latest, "check"); n != 50 || l != 5 {
			w.Errorf("%d statuses, %d of them latest; want 50 and 5", n, l)
		}
		w.kind(w.Atomically(w.Context(), func(ctx context.Context) error { return w.LockProject(ctx, 4711) }), tidelock.NotFound)
	}},
}
