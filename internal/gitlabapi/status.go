package gitlabapi

import (
	"errors"
	"math"
	"net/http"
	"strconv"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func (a *API) statusRoutes() []route {
	return []route{
		{get, "/projects/:id/repository/commits/:sha/statuses", a.listStatuses},
		{post, "/projects/:id/statuses/:sha", a.postStatus},
	}
}

type statusShape struct {
	ID           tidelock.StatusID    `json:"id"`
	SHA          tidelock.CommitID    `json:"sha"`
	Ref          string               `json:"ref"`
	Status       tidelock.StatusState `json:"status"`
	Name         string               `json:"name"`
	TargetURL    *string              `json:"target_url"`
	Description  *string              `json:"description"`
	CreatedAt    stamp                `json:"created_at"`
	StartedAt    stamp                `json:"started_at"`
	FinishedAt   stamp                `json:"finished_at"`
	AllowFailure bool                 `json:"allow_failure"`
	Coverage     *float64             `json:"coverage"`
	PipelineID   tidelock.PipelineID  `json:"pipeline_id"`
	Author       *userShape           `json:"author"`
}

func (a *API) statusShape(s tidelock.Status, author *userShape) statusShape {
	return statusShape{
		ID: s.ID, SHA: s.Commit, Ref: s.Ref, Status: s.State, Name: s.Name,
		TargetURL: orNull(s.TargetURL), Description: orNull(s.Description),
		CreatedAt: stamp(s.CreatedAt), StartedAt: stamp(s.StartedAt), FinishedAt: stamp(s.FinishedAt),
		AllowFailure: s.AllowFailure, Coverage: s.Coverage, PipelineID: s.Pipeline, Author: author,
	}
}

// authors finds the users behind what a list shows, each once.
type authors struct {
	a     *API
	r     *request
	users map[tidelock.UserID]*userShape
	by    map[tidelock.TokenID]*userShape
}

func (a *API) authors(r *request) *authors {
	return &authors{a: a, r: r, users: map[tidelock.UserID]*userShape{}, by: map[tidelock.TokenID]*userShape{}}
}

// of is who did something: a user or, if there is none, the deploy token that
// was used, in the shape of a user without an id. It is nil when neither is
// there any more.
func (s *authors) of(user tidelock.UserID, token tidelock.TokenID) (*userShape, error) {
	if user == 0 {
		return remember(s.by, token, func() (*userShape, error) {
			t, err := s.a.forge.TokenByID(s.r.ctx(), token)
			if err != nil {
				return nil, err
			}
			return &userShape{Username: t.Username, Name: t.Name, State: "active", WebURL: s.a.webURL()}, nil
		})
	}
	return remember(s.users, user, func() (*userShape, error) {
		u, err := s.a.forge.UserByID(s.r.ctx(), user)
		if err != nil {
			return nil, err
		}
		shape := s.a.userShape(u)
		return &shape, nil
	})
}

func remember[ID comparable](known map[ID]*userShape, id ID, read func() (*userShape, error)) (*userShape, error) {
	if shape, ok := known[id]; ok || id == *new(ID) {
		return shape, nil
	}
	shape, err := read()
	if tidelock.KindOf(err) == tidelock.NotFound {
		shape, err = nil, nil
	}
	known[id] = shape
	return shape, err
}

// shapes shapes a list whose elements name who did them.
func shapes[In, Out any](items []In, shape func(In) (Out, error)) ([]Out, error) {
	out := make([]Out, len(items))
	for i, item := range items {
		var err error
		if out[i], err = shape(item); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (a *API) listStatuses(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadStatuses)
	if err != nil {
		return err
	}
	filter := tidelock.StatusFilter{
		Ref: r.text("ref"), Stage: r.text("stage"), Name: r.text("name"),
		Pipeline: tidelock.PipelineID(r.number("pipeline_id")), Latest: !r.flag("all"),
		OrderBy: r.word("order_by", "id", "pipeline_id"), Descending: r.word("sort", "asc", "desc") == "desc",
	}
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	statuses, total, err := a.forge.Statuses(r.ctx(), r.by, project, r.arg("sha"), filter, page)
	if err != nil {
		return err
	}
	by := a.authors(r)
	list, err := shapes(statuses, func(s tidelock.Status) (statusShape, error) {
		author, err := by.of(s.By, s.Token)
		return a.statusShape(s, author), err
	})
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, list, total)
}

func (a *API) postStatus(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.PostStatus)
	if err != nil {
		return err
	}
	name := r.text("name")
	if !r.has("name") {
		name = r.text("context")
	}
	status := forge.NewStatus{
		State: tidelock.StatusState(r.oneOf("state", "pending", "running", "success", "failed", "canceled", "skipped")),
		Name:  name, Ref: r.text("ref"), Pipeline: tidelock.PipelineID(r.number("pipeline_id")),
		TargetURL: given(&r.params, "target_url", r.text), Description: given(&r.params, "description", r.text),
		Coverage: given(&r.params, "coverage", r.decimal),
	}
	if err := r.err(); err != nil {
		return err
	}
	posted, err := a.forge.PostStatus(r.ctx(), r.by, project, r.arg("sha"), status)
	if e, ok := errors.AsType[*tidelock.Error](err); ok && e.Kind == tidelock.TooLarge {
		return &statusError{status: http.StatusUnprocessableEntity, body: errorBody{Message: e.Message}}
	}
	if err != nil {
		return plainly(err)
	}
	author, err := a.authors(r).of(posted.By, posted.Token)
	if err != nil {
		return err
	}
	return created(w, a.statusShape(posted, author))
}

// decimal reads a number that may have a fraction; absent and empty are 0.
func (p *params) decimal(name string) float64 {
	text := p.text(name)
	if text == "" {
		return 0
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsInf(n, 0) || math.IsNaN(n) {
		p.note(name, "is invalid")
		return 0
	}
	return n
}
