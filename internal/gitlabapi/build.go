package gitlabapi

import (
	"net/http"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// buildRoutes are ours: what came of packaging a delivery repository.
func (a *API) buildRoutes() []route {
	return []route{
		{get, "/projects/:id/deliveries", a.listBuilds},
	}
}

type findingShape struct {
	Check   string  `json:"check"`
	Level   string  `json:"level"` // fail, warn
	Path    *string `json:"path"`
	Line    *int    `json:"line"`
	Message string  `json:"message"`
}

type buildShape struct {
	ID          tidelock.BuildID     `json:"id"`
	Ref         tidelock.RefName     `json:"ref"`
	Commit      tidelock.CommitID    `json:"commit"`
	Application *string              `json:"application"` // null for .tidelock/delivery.yaml itself
	Status      tidelock.StatusState `json:"status"`
	Image       *string              `json:"image"` // its path, as clients write it after the host
	Tags        []string             `json:"tags"`
	Digest      *tidelock.Digest     `json:"digest"`
	Layer       *tidelock.Digest     `json:"layer"`
	Findings    []findingShape       `json:"findings"`
	PushID      *tidelock.PushID     `json:"push_id"`
	CreatedAt   exact                `json:"created_at"`
	Duration    float64              `json:"duration"` // seconds since the push
}

func newBuildShape(project tidelock.Project, b tidelock.Build) buildShape {
	shape := buildShape{
		ID: b.ID, Ref: b.Ref, Commit: b.Commit, Application: orNull(b.Application), Status: b.State,
		Tags: list(b.Tags), Digest: orNull(b.Digest), Layer: orNull(b.Layer), PushID: orNull(b.Push),
		CreatedAt: exact(b.CreatedAt), Duration: b.Duration.Seconds(),
		Findings: each(b.Findings, func(f tidelock.Finding) findingShape {
			level := "fail"
			if f.Warning {
				level = "warn"
			}
			return findingShape{Check: f.Check, Level: level, Path: orNull(f.Path), Line: orNull(f.Line), Message: f.Message}
		}),
	}
	if b.Application != "" {
		shape.Image = orNull(tidelock.Image{Name: b.Image}.Path(project))
	}
	return shape
}

func (a *API) listBuilds(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadHistory)
	if err != nil {
		return err
	}
	filter := tidelock.BuildFilter{
		Ref: tidelock.RefName(r.text("ref")), Commit: tidelock.CommitID(r.text("commit")),
		Application: r.text("application"), Digest: tidelock.Digest(r.text("digest")),
		LatestOfApplications: r.flag("latest"),
	}
	if r.has("status") {
		filter.State = tidelock.StatusState(r.oneOf("status", "success", "failed", "skipped"))
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	builds, total, err := a.forge.Builds(r.ctx(), r.by, project, filter, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(builds, func(b tidelock.Build) buildShape { return newBuildShape(project, b) }), total)
}
