package forge

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"tidelock.dev"
)

// statusStore is what the rules remember of statuses and their pipelines.
type statusStore interface {
	// LockProject, inside Atomically, makes every other transaction that locks
	// the same project wait until this one has ended.
	LockProject(context.Context, tidelock.ProjectID) error

	// CreatePipeline gives the pipeline the next number in its project; a
	// number is never used again. It and SavePipeline leave word for hooks
	// when the state changes, from StatusCreated to begin with.
	CreatePipeline(context.Context, tidelock.Pipeline) (tidelock.Pipeline, error)
	// SavePipeline writes the state, the times, the duration and the coverage.
	SavePipeline(context.Context, tidelock.Pipeline) error
	Pipeline(context.Context, tidelock.PipelineID) (tidelock.Pipeline, error)
	// Pipelines lists newest first unless the filter says otherwise.
	Pipelines(context.Context, tidelock.PipelineFilter, tidelock.Page) ([]tidelock.Pipeline, int, error)
	// DeletePipeline removes a pipeline and its statuses.
	DeletePipeline(context.Context, tidelock.PipelineID) error

	// CreateStatus adds a status to its pipeline, as the latest of its name in
	// its stage; the one before it stays, but is not the latest any more.
	CreateStatus(context.Context, tidelock.Status) (tidelock.Status, error)
	// SaveStatus writes the state, what was said with it, and the times.
	SaveStatus(context.Context, tidelock.Status) error
	Status(context.Context, tidelock.StatusID) (tidelock.Status, error)
	Statuses(context.Context, tidelock.StatusFilter, tidelock.Page) ([]tidelock.Status, int, error)
}

const (
	// maxStatuses is how many statuses one pipeline takes, replaced ones
	// included. Then the next one begins another pipeline.
	maxStatuses = 1000
	// maxStatusText bounds the name, the target URL and the description, in
	// characters as GitLab counts.
	maxStatusText = 255
)

// NewStatus is what somebody says of a commit. Texts that are nil leave those
// of a status that is updated.
type NewStatus struct {
	State       tidelock.StatusState // not StatusCreated
	Name        string               // default "default"
	Ref         string               // short name of a branch or tag; "" lets the forge choose
	Pipeline    tidelock.PipelineID  // 0: the newest one of the commit and Ref, or a new one
	TargetURL   *string
	Description *string
	Coverage    *float64
}

func (n NewStatus) check() error {
	if utf8.RuneCountInString(n.Name) > maxStatusText {
		return tooLong("name", maxStatusText)
	}
	if n.Description != nil && utf8.RuneCountInString(*n.Description) > maxStatusText {
		return tooLong("description", maxStatusText)
	}
	if n.TargetURL != nil {
		if err := checkWebURL("target_url", *n.TargetURL); err != nil {
			return err
		}
	}
	if n.Ref != "" && (len(n.Ref) > maxStatusText || tidelock.ValidRef(tidelock.BranchRef(n.Ref)) != nil) {
		return tidelock.FieldErrorf(tidelock.Invalid, "ref", "is not the name of a branch or tag")
	}
	return nil
}

func tooLong(field string, characters int) error {
	return tidelock.FieldErrorf(tidelock.Invalid, field, "is too long (maximum is %d characters)", characters)
}

// checkWebURL refuses what people could not follow, or what a browser would
// run; "" is no URL.
func checkWebURL(field, value string) error {
	if value == "" {
		return nil
	}
	if utf8.RuneCountInString(value) > maxStatusText {
		return tooLong(field, maxStatusText)
	}
	u, err := url.Parse(value)
	switch {
	case err != nil:
		return tidelock.FieldErrorf(tidelock.Invalid, field, "is blocked: URI is invalid")
	case u.Scheme != "http" && u.Scheme != "https":
		return tidelock.FieldErrorf(tidelock.Invalid, field, "is blocked: Only allowed schemes are http, https")
	case u.Hostname() == "":
		return tidelock.FieldErrorf(tidelock.Invalid, field, "is blocked: Hostname or IP address invalid")
	case strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return tidelock.FieldErrorf(tidelock.Invalid, field, "is blocked: URI is invalid")
	}
	return nil
}

// PostStatus says how one check of a commit stands. A status of that name
// which the same caller left pending or running is moved on; otherwise a new
// one becomes the latest. It belongs to the newest pipeline of the commit, and
// makes one if there is none. Calls about one project take turns.
func (f *Forge) PostStatus(ctx context.Context, p Principal, project tidelock.Project, rev string, n NewStatus) (tidelock.Status, error) {
	if err := f.Allow(ctx, p, PostStatus, OnProject(project)); err != nil {
		return tidelock.Status{}, err
	}
	if n.Name == "" {
		n.Name = "default"
	}
	if err := n.check(); err != nil {
		return tidelock.Status{}, err
	}
	commit, err := f.commitAt(ctx, project, rev)
	if err != nil {
		return tidelock.Status{}, err
	}
	ref, err := f.statusRef(ctx, project, commit, n)
	if err != nil {
		return tidelock.Status{}, err
	}
	mayTouch, err := f.statusGuard(ctx, p, project)
	if err != nil {
		return tidelock.Status{}, err
	}
	return f.postStatus(ctx, p, project, commit, ref, n, mayTouch)
}

// postStatus posts for somebody who may, to a commit and a ref that are known.
func (f *Forge) postStatus(ctx context.Context, p Principal, project tidelock.Project, commit tidelock.CommitID, ref statusRef, n NewStatus, mayTouch func(tidelock.Pipeline) error) (tidelock.Status, error) {
	var status tidelock.Status
	var moved bool
	err := f.store.Atomically(ctx, func(ctx context.Context) error {
		if err := f.store.LockProject(ctx, project.ID); err != nil {
			return err
		}
		poster := poster{f: f, by: p, project: project, commit: commit, now: f.now().UTC()}
		pipeline, err := poster.pipeline(ctx, ref, n, mayTouch)
		if err != nil {
			return err
		}
		if status, err = poster.post(ctx, pipeline, n); err != nil {
			return err
		}
		moved, err = poster.sumUp(ctx, pipeline)
		return err
	})
	if err != nil {
		return tidelock.Status{}, err
	}
	publish(f, tidelock.StatusChanged{Project: project.ID, Commit: commit})
	if moved {
		publish(f, tidelock.HooksDue{Project: project.ID})
	}
	return status, nil
}

// commitAt finds a commit by object name, branch or tag.
func (f *Forge) commitAt(ctx context.Context, project tidelock.Project, rev string) (tidelock.CommitID, error) {
	commit, err := f.repos.Repo(project.ID).Commit(ctx, rev)
	if tidelock.KindOf(err) == tidelock.NotFound {
		return "", tidelock.Errorf(tidelock.NotFound, "Commit Not Found")
	}
	if err != nil {
		return "", fmt.Errorf("read commit %.100q of project %d: %w", rev, project.ID, err)
	}
	return commit.ID, nil
}

// A statusRef is the branch or tag under which statuses of a commit stand.
type statusRef struct {
	name string
	tag  bool
}

// statusRef is the ref that was asked for, or that of the commit's newest
// pipeline, or one that holds the commit: the default branch first.
func (f *Forge) statusRef(ctx context.Context, project tidelock.Project, commit tidelock.CommitID, n NewStatus) (statusRef, error) {
	if n.Ref != "" {
		return f.namedRef(ctx, project, n.Ref)
	}
	before, _, err := f.store.Pipelines(ctx, tidelock.PipelineFilter{Project: project.ID, Commit: commit}, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil {
		return statusRef{}, fmt.Errorf("list pipelines of commit %s: %w", commit, err)
	}
	if len(before) > 0 {
		return statusRef{before[0].Ref, before[0].Tag}, nil
	}
	repo := f.repos.Repo(project.ID)
	ref, found, err := repo.Containing(ctx, commit, project.DefaultBranch)
	if err == nil && !found {
		ref, found, err = repo.Containing(ctx, commit, "")
	}
	switch {
	case err != nil:
		return statusRef{}, fmt.Errorf("look for refs with commit %s in project %d: %w", commit, project.ID, err)
	case !found:
		return statusRef{}, tidelock.Errorf(tidelock.NotFound, "References for commit Not Found")
	}
	if tag, ok := ref.Tag(); ok {
		return statusRef{tag, true}, nil
	}
	branch, _ := ref.Branch()
	return statusRef{branch, false}, nil
}

// namedRef tells a tag from a branch. A name that is neither is taken for a
// branch that is gone by now, as GitLab does.
func (f *Forge) namedRef(ctx context.Context, project tidelock.Project, name string) (statusRef, error) {
	_, err := f.store.Head(ctx, project.ID, tidelock.BranchRef(name))
	if tidelock.KindOf(err) == tidelock.NotFound {
		_, err = f.store.Head(ctx, project.ID, tidelock.TagRef(name))
		if err == nil {
			return statusRef{name, true}, nil
		}
	}
	if err != nil && tidelock.KindOf(err) != tidelock.NotFound {
		return statusRef{}, fmt.Errorf("read ref %q of project %d: %w", name, project.ID, err)
	}
	return statusRef{name, false}, nil
}

// statusGuard reads who may change the pipelines of which branch: those of a
// protected one only who may push or merge to it, as in GitLab. A deploy token
// has no role, and is trusted with all branches of its project.
func (f *Forge) statusGuard(ctx context.Context, p Principal, project tidelock.Project) (func(tidelock.Pipeline) error, error) {
	level, err := f.level(ctx, p, OnProject(project))
	if err != nil {
		return nil, err
	}
	protected, err := f.store.ProtectedBranches(ctx, project.ID)
	if err != nil {
		return nil, fmt.Errorf("list protected branches of project %d: %w", project.ID, err)
	}
	return func(pipeline tidelock.Pipeline) error {
		if p.admin() || p.User == nil || pipeline.Tag {
			return nil
		}
		guarded := false
		for _, b := range protected {
			if !b.Matches(pipeline.Ref) {
				continue
			}
			guarded = true
			for _, need := range []tidelock.AccessLevel{b.PushLevel, b.MergeLevel} {
				if need != tidelock.NoAccess && level >= need {
					return nil
				}
			}
		}
		if guarded {
			return tidelock.Errorf(tidelock.Denied, "you may not change pipelines of the protected branch %q: it needs the right to push or merge to it", pipeline.Ref)
		}
		return nil
	}, nil
}

// A poster posts one status inside a transaction that has locked the project.
type poster struct {
	f       *Forge
	by      Principal
	project tidelock.Project
	commit  tidelock.CommitID
	now     time.Time
}

// pipeline finds or makes the one that a status goes to.
func (o poster) pipeline(ctx context.Context, ref statusRef, n NewStatus, mayTouch func(tidelock.Pipeline) error) (tidelock.Pipeline, error) {
	pipeline, err := o.match(ctx, ref, n)
	if err != nil {
		return tidelock.Pipeline{}, err
	}
	full := false
	if pipeline.ID != 0 {
		if full, err = o.full(ctx, pipeline, n); err != nil {
			return tidelock.Pipeline{}, err
		}
		if full && n.Pipeline != 0 {
			return tidelock.Pipeline{}, tidelock.Errorf(tidelock.TooLarge, "The number of jobs has exceeded the limit")
		}
	}
	user, token := o.by.ids()
	if pipeline.ID == 0 || full {
		pipeline = tidelock.Pipeline{
			Project: o.project.ID, Commit: o.commit, Ref: ref.name, Tag: ref.tag,
			Source: tidelock.ExternalSource, State: tidelock.StatusCreated,
			By: user, Token: token, CreatedAt: o.now, UpdatedAt: o.now,
		}
	}
	if err := mayTouch(pipeline); err != nil || pipeline.ID != 0 {
		return pipeline, err
	}
	return o.f.store.CreatePipeline(ctx, pipeline)
}

// match finds the pipeline that was asked for, or else the newest one of the
// commit, and of the ref if one was named. None is the zero value.
func (o poster) match(ctx context.Context, ref statusRef, n NewStatus) (tidelock.Pipeline, error) {
	if n.Pipeline != 0 {
		pipeline, err := o.f.store.Pipeline(ctx, n.Pipeline)
		if err == nil && (pipeline.Project != o.project.ID || pipeline.Commit != o.commit || (n.Ref != "" && pipeline.Ref != n.Ref)) ||
			tidelock.KindOf(err) == tidelock.NotFound {
			err = tidelock.Errorf(tidelock.NotFound, "Pipeline for pipeline_id, sha and ref Not Found")
		}
		if err != nil {
			return tidelock.Pipeline{}, err
		}
		return pipeline, nil
	}
	filter := tidelock.PipelineFilter{Project: o.project.ID, Commit: o.commit}
	if n.Ref != "" {
		filter.Ref, filter.Tag = ref.name, &ref.tag
	}
	newest, _, err := o.f.store.Pipelines(ctx, filter, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil || len(newest) == 0 {
		return tidelock.Pipeline{}, err
	}
	return newest[0], nil
}

// full reports whether a pipeline has no place for another status. One that
// would only be moved on needs none.
func (o poster) full(ctx context.Context, pipeline tidelock.Pipeline, n NewStatus) (bool, error) {
	_, total, err := o.f.store.Statuses(ctx, tidelock.StatusFilter{Project: o.project.ID, Pipeline: pipeline.ID}, tidelock.Page{Number: 1, PerPage: 1})
	if err != nil || total < maxStatuses {
		return false, err
	}
	open, err := o.open(ctx, pipeline, n.Name)
	return open.ID == 0, err
}

// open finds what the caller left pending or running under a name; none is the
// zero value.
func (o poster) open(ctx context.Context, pipeline tidelock.Pipeline, name string) (tidelock.Status, error) {
	latest, _, err := o.f.store.Statuses(ctx, tidelock.StatusFilter{
		Project: o.project.ID, Pipeline: pipeline.ID, Stage: tidelock.ExternalStage, Name: name, Latest: true,
		States: []tidelock.StatusState{tidelock.StatusPending, tidelock.StatusRunning},
	}, tidelock.Page{})
	if err != nil {
		return tidelock.Status{}, err
	}
	user, token := o.by.ids()
	for _, s := range latest {
		if s.By == user && (user != 0 || s.Token == token) {
			return s, nil
		}
	}
	return tidelock.Status{}, nil
}

func (o poster) post(ctx context.Context, pipeline tidelock.Pipeline, n NewStatus) (tidelock.Status, error) {
	status, err := o.open(ctx, pipeline, n.Name)
	if err != nil {
		return tidelock.Status{}, err
	}
	if status.ID == 0 {
		user, token := o.by.ids()
		status = tidelock.Status{
			Project: o.project.ID, Pipeline: pipeline.ID, Commit: pipeline.Commit, Ref: pipeline.Ref, Tag: pipeline.Tag,
			Stage: tidelock.ExternalStage, Name: n.Name, State: tidelock.StatusCreated,
			By: user, Token: token, CreatedAt: o.now,
		}
	}
	if err := move(&status, n.State, o.now); err != nil {
		return tidelock.Status{}, err
	}
	set(&status.TargetURL, n.TargetURL)
	set(&status.Description, n.Description)
	if n.Coverage != nil {
		status.Coverage = n.Coverage
	}
	status.UpdatedAt = o.now
	if status.ID == 0 {
		return o.f.store.CreateStatus(ctx, status)
	}
	return status, o.f.store.SaveStatus(ctx, status)
}

// A step is one of GitLab's transitions of a status.
type step struct {
	event string
	from  []tidelock.StatusState
	to    tidelock.StatusState
}

var (
	stepEnqueue = step{"enqueue", []tidelock.StatusState{tidelock.StatusCreated, tidelock.StatusSkipped}, tidelock.StatusPending}
	stepRun     = step{"run", []tidelock.StatusState{tidelock.StatusPending}, tidelock.StatusRunning}
	stepSkip    = step{"skip", []tidelock.StatusState{tidelock.StatusCreated, tidelock.StatusPending}, tidelock.StatusSkipped}

	unfinished = []tidelock.StatusState{tidelock.StatusCreated, tidelock.StatusPending, tidelock.StatusRunning}

	stepSuccess = step{"success", unfinished, tidelock.StatusSuccess}
	stepDrop    = step{"drop", unfinished, tidelock.StatusFailed}
	stepCancel  = step{"cancel", unfinished, tidelock.StatusCanceled}
)

// steps are what a wanted state asks of a status. All but the last are
// skipped where they do not apply.
var steps = map[tidelock.StatusState][]step{
	tidelock.StatusPending:  {stepEnqueue},
	tidelock.StatusRunning:  {stepEnqueue, stepRun},
	tidelock.StatusSuccess:  {stepSuccess},
	tidelock.StatusFailed:   {stepDrop},
	tidelock.StatusCanceled: {stepCancel},
	tidelock.StatusSkipped:  {stepSkip},
}

// move brings a status to a wanted state, or says in GitLab's words why it
// cannot.
func move(s *tidelock.Status, wanted tidelock.StatusState, now time.Time) error {
	path, ok := steps[wanted]
	if !ok {
		return tidelock.FieldErrorf(tidelock.Invalid, "state", "does not have a valid value")
	}
	for i, step := range path {
		if !slices.Contains(step.from, s.State) {
			if i < len(path)-1 {
				continue
			}
			return tidelock.Errorf(tidelock.Invalid, "Cannot transition status via :%s from :%s (Reason(s): Status cannot transition via %q)", step.event, s.State, step.event)
		}
		s.State = step.to
		switch step.to {
		case tidelock.StatusRunning:
			s.StartedAt = now
		case tidelock.StatusSuccess, tidelock.StatusFailed, tidelock.StatusCanceled:
			s.FinishedAt = now
		}
	}
	return nil
}

// sumUp derives a pipeline from its latest statuses, and reports whether that
// brought it into another state.
func (o poster) sumUp(ctx context.Context, pipeline tidelock.Pipeline) (moved bool, err error) {
	latest, _, err := o.f.store.Statuses(ctx, tidelock.StatusFilter{Project: o.project.ID, Pipeline: pipeline.ID, Latest: true}, tidelock.Page{})
	if err != nil {
		return false, err
	}
	state := composite(latest)
	moved = state != pipeline.State
	switch {
	case state == tidelock.StatusRunning && pipeline.StartedAt.IsZero():
		pipeline.StartedAt = o.now
	case !moved:
	case state == tidelock.StatusSuccess, state == tidelock.StatusFailed, state == tidelock.StatusCanceled:
		pipeline.FinishedAt = o.now
	}
	if !state.Done() {
		pipeline.FinishedAt = time.Time{}
	}
	pipeline.State, pipeline.UpdatedAt = state, o.now
	pipeline.Duration = 0
	if !pipeline.StartedAt.IsZero() {
		pipeline.Duration = busy(latest, o.now)
	}
	pipeline.Coverage = mean(latest)
	return moved, o.f.store.SavePipeline(ctx, pipeline)
}

// composite is GitLab's summary of statuses; the order of its cases matters.
// A failure that is allowed counts as a success with a warning.
func composite(statuses []tidelock.Status) tidelock.StatusState {
	const warned tidelock.StatusState = "success with warnings"
	found := map[tidelock.StatusState]bool{}
	for _, s := range statuses {
		state := s.State
		if s.AllowFailure && (state == tidelock.StatusFailed || state == tidelock.StatusCanceled) {
			state = warned
		}
		found[state] = true
	}
	onlyOf := func(states ...tidelock.StatusState) bool {
		for s := range found {
			if !slices.Contains(states, s) {
				return false
			}
		}
		return len(found) > 0
	}
	switch {
	case len(found) == 0:
		return tidelock.StatusCreated
	case onlyOf(tidelock.StatusSkipped):
		return tidelock.StatusSkipped
	case onlyOf(tidelock.StatusSuccess, tidelock.StatusSkipped, warned):
		return tidelock.StatusSuccess
	case onlyOf(tidelock.StatusCreated, warned):
		return tidelock.StatusCreated
	case onlyOf(tidelock.StatusCanceled, tidelock.StatusSuccess, tidelock.StatusSkipped, warned):
		return tidelock.StatusCanceled
	case onlyOf(tidelock.StatusPending, tidelock.StatusCreated, tidelock.StatusSkipped, warned):
		return tidelock.StatusPending
	case found[tidelock.StatusRunning], found[tidelock.StatusPending], found[tidelock.StatusCreated]:
		return tidelock.StatusRunning
	}
	return tidelock.StatusFailed
}

// busy is how long at least one of the statuses was running.
func busy(statuses []tidelock.Status, now time.Time) time.Duration {
	ran := []tidelock.Status{}
	for _, s := range statuses {
		if s.StartedAt.IsZero() {
			continue
		}
		if s.FinishedAt.IsZero() {
			s.FinishedAt = now
		}
		ran = append(ran, s)
	}
	slices.SortFunc(ran, func(a, b tidelock.Status) int { return a.StartedAt.Compare(b.StartedAt) })
	var total time.Duration
	var until time.Time
	for _, s := range ran {
		from := s.StartedAt
		if from.Before(until) {
			from = until
		}
		if s.FinishedAt.After(from) {
			total += s.FinishedAt.Sub(from)
			until = s.FinishedAt
		}
	}
	return total
}

// mean is the coverage of a pipeline; nil when no status tells any.
func mean(statuses []tidelock.Status) *float64 {
	sum, n := 0.0, 0
	for _, s := range statuses {
		if s.Coverage != nil {
			sum, n = sum+*s.Coverage, n+1
		}
	}
	if n == 0 {
		return nil
	}
	sum /= float64(n)
	return &sum
}

// Statuses lists the statuses of a commit, oldest first unless the filter says
// otherwise. A known commit without any has an empty list.
func (f *Forge) Statuses(ctx context.Context, p Principal, project tidelock.Project, rev string, filter tidelock.StatusFilter, page tidelock.Page) ([]tidelock.Status, int, error) {
	if err := f.Allow(ctx, p, ReadStatuses, OnProject(project)); err != nil {
		return nil, 0, err
	}
	commit, err := f.commitAt(ctx, project, rev)
	if err != nil {
		return nil, 0, err
	}
	filter.Project, filter.Commit = project.ID, commit
	return f.store.Statuses(ctx, filter, page)
}

// TokenByID reads a token, for the server's own use: what a deploy token posted
// is shown under its name.
func (f *Forge) TokenByID(ctx context.Context, id tidelock.TokenID) (tidelock.Token, error) {
	return f.store.Token(ctx, id)
}
