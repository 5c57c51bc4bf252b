package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"tidelock.dev"
)

// LockProject keeps other transactions out of the same project's pipelines
// and deployments.
func (db *DB) LockProject(ctx context.Context, project tidelock.ProjectID) error {
	return db.write(ctx, func(s session) error {
		var locked tidelock.ProjectID
		if err := s.row(ctx, lockProject+s.lockRow, project).Scan(&locked); err != nil {
			return readError("project", err)
		}
		return nil
	})
}

const (
	nextPipeline = `
		INSERT INTO project_counters (project_id, pipelines, deployments)
		VALUES (?, 1, 0)
		ON CONFLICT (project_id) DO UPDATE SET pipelines = project_counters.pipelines + 1
		RETURNING pipelines`
	insertPipeline = `
		INSERT INTO pipelines (project_id, iid, commit_id, ref, tag, source, state, made_by, token_id,
			created_at, updated_at, started_at, finished_at, duration, coverage)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		RETURNING id`
)

func (db *DB) CreatePipeline(ctx context.Context, p tidelock.Pipeline) (tidelock.Pipeline, error) {
	p.CreatedAt = orNow(p.CreatedAt)
	p = keptPipeline(p)
	err := db.write(ctx, func(s session) error {
		if err := s.row(ctx, nextPipeline, p.Project).Scan(&p.IID); err != nil {
			return s.writeError("number of pipeline", "project", err)
		}
		err := s.row(ctx, insertPipeline, p.Project, p.IID, p.Commit, []byte(p.Ref), p.Tag, p.Source, p.State, p.By, p.Token,
			p.CreatedAt, p.UpdatedAt, p.StartedAt, p.FinishedAt, p.Duration.Microseconds(), p.Coverage).Scan(&p.ID)
		if err != nil {
			return s.writeError("pipeline", "project", err)
		}
		return s.notePipeline(ctx, p, tidelock.StatusCreated)
	})
	return whole(p, err)
}

func keptPipeline(p tidelock.Pipeline) tidelock.Pipeline {
	p.UpdatedAt = orNow(p.UpdatedAt)
	p.StartedAt, p.FinishedAt = kept(p.StartedAt), kept(p.FinishedAt)
	p.Duration = p.Duration.Truncate(time.Microsecond)
	return p
}

// notePipeline leaves word for hooks of the state that a pipeline reached.
func (s session) notePipeline(ctx context.Context, p tidelock.Pipeline, before tidelock.StatusState) error {
	if p.State == before {
		return nil
	}
	return s.noteHookEvent(ctx, tidelock.HookEvent{
		Project: p.Project, Kind: tidelock.HookPipeline, Pipeline: p.ID, State: string(p.State), At: p.UpdatedAt,
	})
}

const (
	selectPipelineState = `SELECT state FROM pipelines WHERE id = ?`
	updatePipeline      = `
		UPDATE pipelines
		SET state = ?, updated_at = ?, started_at = ?, finished_at = ?, duration = ?, coverage = ?
		WHERE id = ?`
)

func (db *DB) SavePipeline(ctx context.Context, p tidelock.Pipeline) error {
	p = keptPipeline(p)
	return db.write(ctx, func(s session) error {
		var before tidelock.StatusState
		if err := s.row(ctx, selectPipelineState+s.lockRow, p.ID).Scan(&before); err != nil {
			return readError("pipeline", err)
		}
		if err := s.change(ctx, "pipeline", updatePipeline, p.State, p.UpdatedAt, p.StartedAt, p.FinishedAt,
			p.Duration.Microseconds(), p.Coverage, p.ID); err != nil {
			return err
		}
		return s.notePipeline(ctx, p, before)
	})
}

const (
	pipelineColumns = `p.id, p.project_id, p.iid, p.commit_id, p.ref, p.tag, p.source, p.state, p.made_by, p.token_id,
	p.created_at, p.updated_at, p.started_at, p.finished_at, p.duration, p.coverage`
	selectPipeline = `SELECT ` + pipelineColumns + ` FROM pipelines p WHERE p.id = ?`
)

func scanPipeline(row scanner) (p tidelock.Pipeline, err error) {
	var duration int64
	err = row.Scan(&p.ID, &p.Project, &p.IID, &p.Commit, &p.Ref, &p.Tag, &p.Source, &p.State, &p.By, &p.Token,
		(*instant)(&p.CreatedAt), (*instant)(&p.UpdatedAt), (*instant)(&p.StartedAt), (*instant)(&p.FinishedAt), &duration, &p.Coverage)
	p.Duration = time.Duration(duration) * time.Microsecond
	return p, err
}

func (db *DB) Pipeline(ctx context.Context, id tidelock.PipelineID) (tidelock.Pipeline, error) {
	return one(ctx, db.point(ctx), "pipeline", scanPipeline, selectPipeline, id)
}

var pipelineOrders = map[string]string{
	"": `p.id`, "id": `p.id`, "status": `p.state`, "ref": `p.ref`, "updated_at": `p.updated_at`, "user_id": `p.made_by`,
}

func (db *DB) Pipelines(ctx context.Context, f tidelock.PipelineFilter, p tidelock.Page) ([]tidelock.Pipeline, int, error) {
	order, ok := pipelineOrders[f.OrderBy]
	if !ok {
		return nil, 0, tidelock.Errorf(tidelock.Invalid, "pipelines cannot be ordered by %q", f.OrderBy)
	}
	direction := ` DESC`
	if f.Ascending {
		direction = ``
	}
	l := list{columns: pipelineColumns, from: `pipelines p`, order: order + direction + `, p.id` + direction}
	if f.Project != 0 {
		l.filter(`p.project_id = ?`, f.Project)
	}
	if f.Commit != "" {
		l.filter(`p.commit_id = ?`, f.Commit)
	}
	if f.Ref != "" {
		l.filter(`p.ref = ?`, []byte(f.Ref))
	}
	if f.Tag != nil {
		l.filter(`p.tag = ?`, *f.Tag)
	}
	if f.Source != "" {
		l.filter(`p.source = ?`, f.Source)
	}
	l.states(`p.state`, f.States)
	if f.Username != "" {
		l.filter(`p.made_by IN (SELECT u.id FROM users u WHERE u.username_key = ?)`, fold(f.Username))
	}
	l.between(`p.updated_at`, f.UpdatedAfter, f.UpdatedBefore)
	l.between(`p.created_at`, f.CreatedAfter, f.CreatedBefore)
	if f.LatestOfRefs {
		l.filter(`NOT EXISTS (
			SELECT 1 FROM pipelines n
			WHERE n.project_id = p.project_id AND n.ref = p.ref AND n.tag = p.tag AND n.id > p.id)`)
	}
	return pageOf(ctx, db, "pipelines", l, p, scanPipeline)
}

// states keeps rows whose column holds one of the states; none keeps all.
func (l *list) states(column string, states []tidelock.StatusState) {
	if len(states) == 0 {
		return
	}
	args := make([]any, len(states))
	for i, s := range states {
		args[i] = s
	}
	l.filter(column+` IN (?`+strings.Repeat(`, ?`, len(states)-1)+`)`, args...)
}

// between keeps rows whose column holds a time after one and before another;
// zero times are no limits.
func (l *list) between(column string, after, before time.Time) {
	if !after.IsZero() {
		l.filter(column+` > ?`, after)
	}
	if !before.IsZero() {
		l.filter(column+` < ? AND `+column+` <> 0`, before)
	}
}

const deletePipeline = `DELETE FROM pipelines WHERE id = ?`

func (db *DB) DeletePipeline(ctx context.Context, id tidelock.PipelineID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "pipeline", deletePipeline, id) })
}

const (
	retireStatus = `UPDATE statuses SET latest = FALSE WHERE pipeline_id = ? AND stage = ? AND name = ? AND latest`
	insertStatus = `
		INSERT INTO statuses (project_id, pipeline_id, stage, name, state, target_url, description, coverage, allow_failure,
			latest, made_by, token_id, created_at, updated_at, started_at, finished_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, TRUE, ?, ?, ?, ?, ?, ?)
		RETURNING id`
)

func (db *DB) CreateStatus(ctx context.Context, t tidelock.Status) (tidelock.Status, error) {
	t.CreatedAt, t.Latest = orNow(t.CreatedAt), true
	t = keptStatus(t)
	err := db.write(ctx, func(s session) error {
		if _, err := s.exec(ctx, retireStatus, t.Pipeline, t.Stage, t.Name); err != nil {
			return fmt.Errorf("retire status: %w", err)
		}
		err := s.row(ctx, insertStatus, t.Project, t.Pipeline, t.Stage, t.Name, t.State, t.TargetURL, t.Description, t.Coverage, t.AllowFailure,
			t.By, t.Token, t.CreatedAt, t.UpdatedAt, t.StartedAt, t.FinishedAt).Scan(&t.ID)
		return s.writeError("status", "pipeline", err)
	})
	return whole(t, err)
}

func keptStatus(t tidelock.Status) tidelock.Status {
	t.UpdatedAt = orNow(t.UpdatedAt)
	t.StartedAt, t.FinishedAt = kept(t.StartedAt), kept(t.FinishedAt)
	return t
}

const updateStatus = `
	UPDATE statuses
	SET state = ?, target_url = ?, description = ?, coverage = ?, updated_at = ?, started_at = ?, finished_at = ?
	WHERE id = ?`

func (db *DB) SaveStatus(ctx context.Context, t tidelock.Status) error {
	t = keptStatus(t)
	return db.write(ctx, func(s session) error {
		return s.change(ctx, "status", updateStatus, t.State, t.TargetURL, t.Description, t.Coverage, t.UpdatedAt, t.StartedAt, t.FinishedAt, t.ID)
	})
}

const (
	statusColumns = `t.id, t.project_id, t.pipeline_id, p.commit_id, p.ref, p.tag, t.stage, t.name, t.state, t.target_url, t.description,
	t.coverage, t.allow_failure, t.latest, t.made_by, t.token_id, t.created_at, t.updated_at, t.started_at, t.finished_at`
	statusTables = `statuses t JOIN pipelines p ON p.id = t.pipeline_id`
	selectStatus = `SELECT ` + statusColumns + ` FROM ` + statusTables + ` WHERE t.id = ?`
)

func scanStatus(row scanner) (t tidelock.Status, err error) {
	err = row.Scan(&t.ID, &t.Project, &t.Pipeline, &t.Commit, &t.Ref, &t.Tag, &t.Stage, &t.Name, &t.State, &t.TargetURL, &t.Description,
		&t.Coverage, &t.AllowFailure, &t.Latest, &t.By, &t.Token,
		(*instant)(&t.CreatedAt), (*instant)(&t.UpdatedAt), (*instant)(&t.StartedAt), (*instant)(&t.FinishedAt))
	return t, err
}

func (db *DB) Status(ctx context.Context, id tidelock.StatusID) (tidelock.Status, error) {
	return one(ctx, db.point(ctx), "status", scanStatus, selectStatus, id)
}

var statusOrders = map[string]string{"": `t.id`, "id": `t.id`, "pipeline_id": `t.pipeline_id`}

func (db *DB) Statuses(ctx context.Context, f tidelock.StatusFilter, p tidelock.Page) ([]tidelock.Status, int, error) {
	order, ok := statusOrders[f.OrderBy]
	if !ok {
		return nil, 0, tidelock.Errorf(tidelock.Invalid, "statuses cannot be ordered by %q", f.OrderBy)
	}
	direction := ``
	if f.Descending {
		direction = ` DESC`
	}
	l := list{columns: statusColumns, from: statusTables, order: order + direction + `, t.id` + direction}
	// The project is named where the narrower filter is, so that its index is
	// taken and not that of all statuses of the project.
	switch {
	case f.Project == 0:
	case f.Commit != "", f.Pipeline != 0:
		l.filter(`p.project_id = ?`, f.Project)
	default:
		l.filter(`t.project_id = ?`, f.Project)
	}
	if f.Commit != "" {
		l.filter(`p.commit_id = ?`, f.Commit)
	}
	if f.Pipeline != 0 {
		l.filter(`t.pipeline_id = ?`, f.Pipeline)
	}
	if f.Ref != "" {
		l.filter(`p.ref = ?`, []byte(f.Ref))
	}
	if f.Stage != "" {
		l.filter(`t.stage = ?`, f.Stage)
	}
	if f.Name != "" {
		l.filter(`t.name = ?`, f.Name)
	}
	l.states(`t.state`, f.States)
	if f.Latest {
		l.filter(`t.latest`)
	}
	return pageOf(ctx, db, "statuses", l, p, scanStatus)
}
