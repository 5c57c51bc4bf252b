package gitlabapi

import (
	"cmp"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
	"tidelock.dev/internal/gitrepo"
)

func (a *API) pipelineRoutes() []route {
	return []route{
		{get, "/projects/:id/pipelines", a.listPipelines},
		{get, "/projects/:id/pipelines/latest", a.showLatestPipeline},
		{get, "/projects/:id/pipelines/:pipeline_id", a.showPipeline},
		{del, "/projects/:id/pipelines/:pipeline_id", a.deletePipeline},
		{get, "/projects/:id/pipelines/:pipeline_id/jobs", a.listPipelineJobs},
		{get, "/projects/:id/jobs", a.listJobs},
		{get, "/projects/:id/jobs/:job_id", a.showJob},
	}
}

// A pipelineBasic is a pipeline as its jobs name it; lists add its name, and
// one alone how it went.
type pipelineBasic struct {
	ID        tidelock.PipelineID  `json:"id"`
	IID       int64                `json:"iid"`
	ProjectID tidelock.ProjectID   `json:"project_id"`
	SHA       tidelock.CommitID    `json:"sha"`
	Ref       string               `json:"ref"`
	Status    tidelock.StatusState `json:"status"`
	Source    string               `json:"source"`
	CreatedAt stamp                `json:"created_at"`
	UpdatedAt stamp                `json:"updated_at"`
	WebURL    string               `json:"web_url"`
}

type pipelineShape struct {
	pipelineBasic
	Name *string `json:"name"`
}

type pipelineAlone struct {
	pipelineShape
	BeforeSHA      string         `json:"before_sha"`
	Tag            bool           `json:"tag"`
	YAMLErrors     *string        `json:"yaml_errors"`
	User           *userShape     `json:"user"`
	StartedAt      stamp          `json:"started_at"`
	FinishedAt     stamp          `json:"finished_at"`
	CommittedAt    stamp          `json:"committed_at"`
	Duration       *int64         `json:"duration"`
	QueuedDuration *int64         `json:"queued_duration"`
	Coverage       *string        `json:"coverage"`
	DetailedStatus detailedStatus `json:"detailed_status"`
	Archived       bool           `json:"archived"`
}

type detailedStatus struct {
	Icon         string  `json:"icon"`
	Text         string  `json:"text"`
	Label        string  `json:"label"`
	Group        string  `json:"group"`
	Tooltip      string  `json:"tooltip"`
	HasDetails   bool    `json:"has_details"`
	DetailsPath  string  `json:"details_path"`
	Illustration *string `json:"illustration"`
	Favicon      *string `json:"favicon"`
}

// statusWords are GitLab's texts and labels for states whose own name would
// not do.
var statusWords = map[tidelock.StatusState][2]string{
	tidelock.StatusSuccess: {"Passed", "passed"},
}

func (a *API) pipelineShape(p tidelock.Project, l tidelock.Pipeline) pipelineShape {
	return pipelineShape{pipelineBasic: a.pipelineBasic(p, l)}
}

func (a *API) pipelineBasic(p tidelock.Project, l tidelock.Pipeline) pipelineBasic {
	return pipelineBasic{
		ID: l.ID, IID: l.IID, ProjectID: l.Project, SHA: l.Commit, Ref: l.Ref, Status: l.State, Source: l.Source,
		CreatedAt: stamp(l.CreatedAt), UpdatedAt: stamp(l.UpdatedAt), WebURL: a.pipelineURL(p, l.ID),
	}
}

func (a *API) pipelineURL(p tidelock.Project, id tidelock.PipelineID) string {
	return a.webURL(p.FullPath, "-/pipelines", strconv.FormatInt(int64(id), 10))
}

func (a *API) pipelineAlone(r *request, p tidelock.Project, l tidelock.Pipeline) (pipelineAlone, error) {
	user, err := a.authors(r).of(l.By, l.Token)
	if err != nil {
		return pipelineAlone{}, err
	}
	state := string(l.State)
	words, ok := statusWords[l.State]
	if !ok {
		words = [2]string{strings.ToUpper(state[:1]) + state[1:], state}
	}
	shape := pipelineAlone{
		pipelineShape: a.pipelineShape(p, l),
		BeforeSHA:     strings.Repeat("0", len(l.Commit)), Tag: l.Tag, User: user,
		StartedAt: stamp(l.StartedAt), FinishedAt: stamp(l.FinishedAt),
		DetailedStatus: detailedStatus{
			Icon: "status_" + state, Text: words[0], Label: words[1], Group: state, Tooltip: words[1], HasDetails: true,
			DetailsPath: path.Join("/", a.url.Path, p.FullPath, "-/pipelines", strconv.FormatInt(int64(l.ID), 10)),
		},
	}
	if !l.StartedAt.IsZero() {
		shape.QueuedDuration = new(int64(l.StartedAt.Sub(l.CreatedAt) / time.Second))
		if l.State.Done() {
			shape.Duration = new(int64(l.Duration / time.Second))
		}
	}
	if l.Coverage != nil {
		shape.Coverage = new(strconv.FormatFloat(*l.Coverage, 'f', 2, 64))
	}
	return shape, nil
}

// stateWords are all states that GitLab knows; some never occur here.
var stateWords = []string{
	"created", "waiting_for_resource", "preparing", "pending", "running", "success", "failed",
	"canceling", "canceled", "skipped", "manual", "scheduled",
}

// pipelineFilter reads which pipelines are wanted.
func (p *params) pipelineFilter() tidelock.PipelineFilter {
	filter := tidelock.PipelineFilter{
		Ref: p.text("ref"), Commit: tidelock.CommitID(p.text("sha")), Source: p.text("source"), Username: p.text("username"),
		UpdatedAfter: p.when("updated_after"), UpdatedBefore: p.when("updated_before"),
		CreatedAfter: p.when("created_after"), CreatedBefore: p.when("created_before"),
		OrderBy:   p.word("order_by", "id", "status", "ref", "updated_at", "user_id"),
		Ascending: p.word("sort", "desc", "asc") == "asc",
	}
	if state := p.word("status", append([]string{""}, stateWords...)...); state != "" {
		filter.States = []tidelock.StatusState{tidelock.StatusState(state)}
	}
	switch scope := p.word("scope", "", "running", "pending", "finished", "branches", "tags"); scope {
	case "running", "pending":
		filter.States = narrow(filter.States, tidelock.StatusState(scope))
	case "finished":
		filter.States = narrow(filter.States, tidelock.StatusSuccess, tidelock.StatusFailed, tidelock.StatusCanceled)
	case "branches", "tags":
		filter.Tag, filter.LatestOfRefs = new(scope == "tags"), true
	}
	return filter
}

// narrow keeps those of the states that are wanted too; nothing said is all,
// and nothing left is a state that nothing has.
func narrow(states []tidelock.StatusState, wanted ...tidelock.StatusState) []tidelock.StatusState {
	if len(states) == 0 {
		return wanted
	}
	kept := slices.DeleteFunc(slices.Clone(states), func(s tidelock.StatusState) bool { return !slices.Contains(wanted, s) })
	if len(kept) == 0 {
		return []tidelock.StatusState{"none"}
	}
	return kept
}

func (a *API) listPipelines(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadPipelines)
	if err != nil {
		return err
	}
	filter, page := r.pipelineFilter(), r.page()
	if err := r.err(); err != nil {
		return err
	}
	pipelines, total, err := a.forge.Pipelines(r.ctx(), r.by, project, filter, page)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, each(pipelines, func(l tidelock.Pipeline) pipelineShape { return a.pipelineShape(project, l) }), total)
}

func (a *API) showLatestPipeline(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadPipelines)
	if err != nil {
		return err
	}
	ref := r.text("ref")
	if err := r.err(); err != nil {
		return err
	}
	pipeline, err := a.forge.LatestPipeline(r.ctx(), r.by, project, ref)
	if err != nil {
		return err
	}
	return a.writePipeline(w, r, project, pipeline)
}

func (a *API) writePipeline(w http.ResponseWriter, r *request, project tidelock.Project, pipeline tidelock.Pipeline) error {
	shape, err := a.pipelineAlone(r, project, pipeline)
	if err != nil {
		return err
	}
	return ok(w, shape)
}

func (a *API) showPipeline(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.PipelineID](a, r, forge.ReadPipelines, "pipeline_id")
	if err != nil {
		return err
	}
	pipeline, err := a.forge.Pipeline(r.ctx(), r.by, project, n)
	if err != nil {
		return err
	}
	return a.writePipeline(w, r, project, pipeline)
}

func (a *API) deletePipeline(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.PipelineID](a, r, forge.DeletePipeline, "pipeline_id")
	if err != nil {
		return err
	}
	if err := a.forge.DeletePipeline(r.ctx(), r.by, project, n); err != nil {
		return err
	}
	return gone(w)
}

// A jobShape is a status as a job: nothing here runs it, so it has neither a
// runner nor artifacts.
type jobShape struct {
	ID             tidelock.StatusID    `json:"id"`
	Status         tidelock.StatusState `json:"status"`
	Stage          string               `json:"stage"`
	Name           string               `json:"name"`
	Ref            string               `json:"ref"`
	Tag            bool                 `json:"tag"`
	Coverage       *float64             `json:"coverage"`
	AllowFailure   bool                 `json:"allow_failure"`
	CreatedAt      stamp                `json:"created_at"`
	StartedAt      stamp                `json:"started_at"`
	FinishedAt     stamp                `json:"finished_at"`
	ErasedAt       stamp                `json:"erased_at"`
	Duration       *float64             `json:"duration"`
	QueuedDuration *float64             `json:"queued_duration"`
	User           *userShape           `json:"user"`
	Commit         *commitShape         `json:"commit"`
	Pipeline       pipelineBasic        `json:"pipeline"`
	FailureReason  string               `json:"failure_reason,omitempty"`
	WebURL         string               `json:"web_url"`
	Artifacts      []struct{}           `json:"artifacts"`
	Runner         *struct{}            `json:"runner"`
	RunnerManager  *struct{}            `json:"runner_manager"`
	ExpireAt       stamp                `json:"artifacts_expire_at"`
	Archived       bool                 `json:"archived"`
	TagList        []string             `json:"tag_list"`
}

// A jobWriter shapes jobs of one project, and reads what they share once.
type jobWriter struct {
	a         *API
	r         *request
	project   tidelock.Project
	repo      *gitrepo.Repo
	authors   *authors
	pipelines map[tidelock.PipelineID]tidelock.Pipeline
	commits   map[tidelock.CommitID]*commitShape
}

func (a *API) jobs(r *request, p tidelock.Project) *jobWriter {
	return &jobWriter{
		a: a, r: r, project: p, repo: a.repos.Repo(p.ID), authors: a.authors(r),
		pipelines: map[tidelock.PipelineID]tidelock.Pipeline{}, commits: map[tidelock.CommitID]*commitShape{},
	}
}

func (j *jobWriter) shape(s tidelock.Status) (jobShape, error) {
	user, err := j.authors.of(s.By, s.Token)
	if err != nil {
		return jobShape{}, err
	}
	pipeline, ok := j.pipelines[s.Pipeline]
	if !ok {
		if pipeline, err = j.a.forge.Pipeline(j.r.ctx(), j.r.by, j.project, s.Pipeline); err != nil {
			return jobShape{}, err
		}
		j.pipelines[s.Pipeline] = pipeline
	}
	commit, ok := j.commits[s.Commit]
	if !ok {
		read, err := j.repo.Commit(j.r.ctx(), string(s.Commit))
		if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
			return jobShape{}, err
		}
		if err == nil { // or it was forced away and is gone
			commit = new(j.a.commitShape(j.project, read))
		}
		j.commits[s.Commit] = commit
	}
	shape := jobShape{
		ID: s.ID, Status: s.State, Stage: s.Stage, Name: s.Name, Ref: s.Ref, Tag: s.Tag, Coverage: s.Coverage, AllowFailure: s.AllowFailure,
		CreatedAt: stamp(s.CreatedAt), StartedAt: stamp(s.StartedAt), FinishedAt: stamp(s.FinishedAt), User: user, Commit: commit,
		Pipeline:  j.a.pipelineBasic(j.project, pipeline),
		WebURL:    cmp.Or(s.TargetURL, j.a.pipelineURL(j.project, pipeline.ID)),
		Artifacts: []struct{}{}, TagList: []string{},
	}
	if s.State == tidelock.StatusFailed {
		shape.FailureReason = "api_failure"
	}
	if !s.StartedAt.IsZero() {
		until := s.FinishedAt
		if until.IsZero() {
			until = j.a.now()
		}
		shape.Duration = new(until.Sub(s.StartedAt).Seconds())
		shape.QueuedDuration = new(s.StartedAt.Sub(s.CreatedAt).Seconds())
	}
	return shape, nil
}

func (a *API) listPipelineJobs(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.PipelineID](a, r, forge.ReadPipelines, "pipeline_id")
	if err != nil {
		return err
	}
	return a.writeJobs(w, r, project, tidelock.StatusFilter{Pipeline: n, Latest: !r.flag("include_retried")})
}

func (a *API) listJobs(w http.ResponseWriter, r *request) error {
	project, err := a.project(r, forge.ReadPipelines)
	if err != nil {
		return err
	}
	return a.writeJobs(w, r, project, tidelock.StatusFilter{})
}

func (a *API) writeJobs(w http.ResponseWriter, r *request, project tidelock.Project, filter tidelock.StatusFilter) error {
	for _, word := range r.list("scope") {
		state := tidelock.StatusState(word)
		switch {
		case !slices.Contains(stateWords, word):
			r.note("scope", "does not have a valid value")
		case !slices.Contains(filter.States, state):
			filter.States = append(filter.States, state)
		}
	}
	filter.Descending = true
	page := r.page()
	if err := r.err(); err != nil {
		return err
	}
	jobs, total, err := a.forge.Jobs(r.ctx(), r.by, project, filter, page)
	if err != nil {
		return err
	}
	list, err := shapes(jobs, a.jobs(r, project).shape)
	if err != nil {
		return err
	}
	return writePage(a, w, r, page, list, total)
}

func (a *API) showJob(w http.ResponseWriter, r *request) error {
	project, n, err := inProject[tidelock.StatusID](a, r, forge.ReadPipelines, "job_id")
	if err != nil {
		return err
	}
	job, err := a.forge.Job(r.ctx(), r.by, project, n)
	if err != nil {
		return err
	}
	shape, err := a.jobs(r, project).shape(job)
	if err != nil {
		return err
	}
	return ok(w, shape)
}
