package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"tidelock.dev"
)

const (
	rolloutColumns = `r.id, r.agent_id, COALESCE(a.name, ''), r.applier, r.source, r.project_id, r.commit_id, r.digest, r.ref, r.push_id,
		COALESCE(p.trace, ''), r.environment, r.state, r.reason, r.message, r.newest, r.turn, r.pending_at, r.running_at, r.applied_at,
		r.healthy_at, r.finished_at, r.reported_at, r.updated_at, r.status_id, r.deployment_id`
	rolloutTables = `rollouts r LEFT JOIN agents a ON a.id = r.agent_id LEFT JOIN pushes p ON p.id = r.push_id`
	openRollout   = `state IN ('pending', 'running', 'unknown')`
)

func scanRollout(row scanner) (r tidelock.Rollout, err error) {
	err = row.Scan(&r.ID, &r.Agent, &r.AgentName, &r.Applier, &r.Source, &r.Project, &r.Commit, &r.Digest, &r.Ref, &r.Push,
		&r.Trace, &r.Environment, &r.State, &r.Reason, &r.Message, &r.Newest, &r.Turn, (*instant)(&r.PendingAt), (*instant)(&r.RunningAt),
		(*instant)(&r.AppliedAt), (*instant)(&r.HealthyAt), (*instant)(&r.FinishedAt), (*instant)(&r.ReportedAt),
		(*instant)(&r.UpdatedAt), &r.Status, &r.Deployment)
	return r, err
}

// LockAgent must be called inside Atomically.
func (db *DB) LockAgent(ctx context.Context, id tidelock.AgentID) error {
	return db.write(ctx, func(s session) error {
		var locked tidelock.AgentID
		if err := s.row(ctx, `SELECT id FROM agents WHERE id = ?`+s.lockRow, id).Scan(&locked); err != nil {
			return readError("agent", err)
		}
		return nil
	})
}

const (
	// No row comes of both halves. With UNION ALL, SQLite would not sort them,
	// and not take the indexes that hold nothing else.
	selectLiveRollouts = `
		SELECT ` + rolloutColumns + ` FROM ` + rolloutTables + `
		WHERE r.agent_id = ?%[1]s AND r.` + openRollout + ` AND NOT r.newest
		UNION
		SELECT ` + rolloutColumns + ` FROM ` + rolloutTables + `
		WHERE r.agent_id = ?%[1]s AND r.newest`
	selectRolloutsOfCommits = `
		SELECT ` + rolloutColumns + ` FROM ` + rolloutTables + `
		WHERE r.agent_id = ?%[1]s AND r.project_id = ? AND r.commit_id IN %[2]s`
)

func (db *DB) LiveRollouts(ctx context.Context, agent tidelock.AgentID, appliers []tidelock.ObjectID, project tidelock.ProjectID, commits []tidelock.CommitID) ([]tidelock.Rollout, error) {
	commits = slices.Compact(slices.Sorted(slices.Values(commits)))
	byID := map[tidelock.RolloutID]tidelock.Rollout{}
	err := db.read(ctx, func(s session) error {
		if appliers == nil {
			return s.liveRollouts(ctx, byID, "", []any{agent}, project, commits)
		}
		for some := range slices.Chunk(slices.Compact(slices.Sorted(slices.Values(appliers))), batch) {
			of := append([]any{agent}, anys(some)...)
			if err := s.rarely().liveRollouts(ctx, byID, ` AND r.applier IN `+tuples(1, len(some)), of, project, commits); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return slices.SortedFunc(maps.Values(byID), func(a, b tidelock.Rollout) int {
		return cmp.Or(cmp.Compare(a.Applier, b.Applier), cmp.Compare(a.Turn, b.Turn), cmp.Compare(a.ID, b.ID))
	}), nil
}

// liveRollouts adds what LiveRollouts finds of an agent, the first of args, or
// of those of its appliers that a condition picks with the others.
func (s session) liveRollouts(ctx context.Context, found map[tidelock.RolloutID]tidelock.Rollout, condition string, args []any, project tidelock.ProjectID, commits []tidelock.CommitID) error {
	read := func(s session, text string, args []any) error {
		list, err := many(ctx, s, "rollouts", scanRollout, text, args...)
		for _, r := range list {
			found[r.ID] = r
		}
		return err
	}
	if err := read(s, fmt.Sprintf(selectLiveRollouts, condition), slices.Concat(args, args)); err != nil {
		return err
	}
	for some := range slices.Chunk(commits, batch) {
		text := fmt.Sprintf(selectRolloutsOfCommits, condition, tuples(1, len(some)))
		if err := read(s.rarely(), text, slices.Concat(args, []any{project}, anys(some))); err != nil {
			return err
		}
	}
	return nil
}

// anys are arguments for tuples.
func anys[T any](items []T) []any {
	args := make([]any, len(items))
	for i, item := range items {
		args[i] = item
	}
	return args
}

const (
	// What a report wrote is not overwritten: status_id, deployment_id and
	// environment are its own.
	upsertRollout = `
		INSERT INTO rollouts (agent_id, applier, source, project_id, commit_id, digest, ref, push_id, environment, state, reason, message,
			turn, newest, pending_at, running_at, applied_at, healthy_at, finished_at, reported_at, updated_at, status_id, deployment_id)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (agent_id, applier, project_id, commit_id) DO UPDATE
		SET source = excluded.source, digest = excluded.digest, ref = excluded.ref, push_id = excluded.push_id, state = excluded.state,
			reason = excluded.reason, message = excluded.message, turn = excluded.turn, newest = excluded.newest,
			pending_at = excluded.pending_at, running_at = excluded.running_at, applied_at = excluded.applied_at,
			healthy_at = excluded.healthy_at, finished_at = excluded.finished_at, reported_at = excluded.reported_at,
			updated_at = CASE WHEN excluded.updated_at > rollouts.updated_at THEN excluded.updated_at ELSE rollouts.updated_at + 1 END
		RETURNING id, updated_at, status_id, deployment_id, environment`
)

// SaveRollouts writes those that are the newest last: there is only one of an
// applier at a time.
func (db *DB) SaveRollouts(ctx context.Context, given ...tidelock.Rollout) ([]tidelock.Rollout, error) {
	if len(given) == 0 {
		return nil, nil
	}
	sorted := slices.SortedStableFunc(slices.Values(given), func(a, b tidelock.Rollout) int {
		rank := func(r tidelock.Rollout) int {
			if r.Newest {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(a.Agent, b.Agent), cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Applier, b.Applier), cmp.Compare(a.Turn, b.Turn))
	})
	var saved []tidelock.Rollout
	err := db.write(ctx, func(s session) error {
		saved = slices.Clone(sorted)
		if err := s.noteSyncs(ctx, saved); err != nil {
			return err
		}
		for i := range saved {
			r := &saved[i]
			r.UpdatedAt = orNow(r.UpdatedAt)
			err := s.row(ctx, upsertRollout, r.Agent, r.Applier, r.Source, r.Project, r.Commit, r.Digest, []byte(r.Ref), r.Push, r.Environment,
				r.State, r.Reason, r.Message, r.Turn, r.Newest, r.PendingAt, r.RunningAt, r.AppliedAt, r.HealthyAt, r.FinishedAt, r.ReportedAt,
				r.UpdatedAt, r.Status, r.Deployment).Scan(&r.ID, (*instant)(&r.UpdatedAt), &r.Status, &r.Deployment, &r.Environment)
			if err != nil {
				return s.writeError("rollout", "agent or project", err)
			}
		}
		return nil
	})
	return whole(saved, err)
}

const markReported = `
	UPDATE rollouts
	SET status_id = ?, deployment_id = ?, environment = ?, reported_at = CASE WHEN updated_at = ? THEN ? ELSE reported_at END
	WHERE id = ?`

func (db *DB) RolloutsReported(ctx context.Context, at time.Time, reported ...tidelock.Rollout) error {
	sorted := slices.SortedFunc(slices.Values(reported), func(a, b tidelock.Rollout) int { return cmp.Compare(a.ID, b.ID) })
	return db.write(ctx, func(s session) error {
		for _, r := range sorted {
			if _, err := s.exec(ctx, markReported, r.Status, r.Deployment, r.Environment, r.UpdatedAt, orNow(at), r.ID); err != nil {
				return fmt.Errorf("mark rollout %d reported: %w", r.ID, err)
			}
		}
		return nil
	})
}

const lastSuccess = `
	r.id IN (
		SELECT (
			SELECT k.id FROM rollouts k
			WHERE k.agent_id = n.agent_id AND k.applier = n.applier AND k.state = 'success'
			ORDER BY k.turn DESC LIMIT 1)
		FROM rollouts n
		WHERE n.project_id = ? AND n.newest AND n.state <> 'success')`

func (db *DB) Rollouts(ctx context.Context, f tidelock.RolloutFilter, p tidelock.Page) ([]tidelock.Rollout, int, error) {
	l := list{columns: rolloutColumns, from: rolloutTables, order: `r.id DESC`}
	if f.Agent != 0 {
		l.filter(`r.agent_id = ?`, f.Agent)
	}
	if f.Applier != "" {
		l.filter(`r.applier = ?`, f.Applier)
	}
	if f.Source != "" {
		l.filter(`r.source = ?`, f.Source)
	}
	if f.Project != 0 {
		l.filter(`r.project_id = ?`, f.Project)
	}
	if f.Commit != "" {
		l.filter(`r.commit_id = ?`, f.Commit)
	}
	if f.Push != 0 {
		l.filter(`r.push_id = ?`, f.Push)
	}
	if f.Environment != "" {
		l.filter(`r.environment = ?`, f.Environment)
	}
	if len(f.States) > 0 {
		l.filter(`r.state IN `+tuples(1, len(f.States)), anys(f.States)...)
	}
	if f.Newest {
		l.filter(`r.newest`)
	}
	if f.LastSuccess {
		l.filter(lastSuccess, f.Project)
	}
	if f.Applied {
		l.filter(`r.applied_at <> 0`)
		l.order = `r.turn DESC, r.id DESC`
	}
	if f.Unreported {
		l.filter(`r.reported_at = 0`)
	}
	return pageOf(ctx, db, "rollouts", l, p, scanRollout)
}

const (
	selectPlannedPush = `SELECT push_id FROM planned_pushes WHERE project_id = ?`
	upsertPlannedPush = `
		INSERT INTO planned_pushes (project_id, push_id)
		VALUES (?, ?)
		ON CONFLICT (project_id) DO UPDATE
		SET push_id = excluded.push_id
		WHERE planned_pushes.push_id < excluded.push_id`
	selectPushesAfter = `
		SELECT ` + pushColumns + `
		FROM ` + fromPushes + `
		WHERE p.project_id = ? AND p.id > ?
		ORDER BY p.id
		LIMIT ?`
)

func (db *DB) UnplannedPushes(ctx context.Context, project tidelock.ProjectID, limit int) ([]tidelock.Push, error) {
	var pushes []tidelock.Push
	err := db.read(ctx, func(s session) error {
		var planned tidelock.PushID
		err := s.row(ctx, selectPlannedPush, project).Scan(&planned)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("read the planned push of project %d: %w", project, err)
		}
		if pushes, err = many(ctx, s, "pushes", scanPush, selectPushesAfter, project, planned, limit); err != nil {
			return err
		}
		return s.readUpdates(ctx, pushes)
	})
	return whole(pushes, err)
}

// PushPlanned does not wait for the disk: to plan a push again changes nothing.
func (db *DB) PushPlanned(ctx context.Context, project tidelock.ProjectID, push tidelock.PushID) error {
	err := db.note(ctx, func(s session) error {
		_, err := s.exec(ctx, upsertPlannedPush, project, push)
		return s.writeError("planned push", "project", err)
	})
	if tidelock.KindOf(err) == tidelock.NotFound {
		return nil // the project was deleted meanwhile
	}
	return err
}

const (
	selectCommitPushes = `
		SELECT u.new_commit, MAX(u.push_id)
		FROM push_updates u JOIN pushes p ON p.id = u.push_id
		WHERE p.project_id = ? AND u.new_commit IN %s
		GROUP BY u.new_commit`
	// What an artifact says itself goes before what is known of its packaging.
	selectCommitOfDigest = `
		SELECT a.commit_id
		FROM images i JOIN artifacts a ON a.image_id = i.id
		WHERE i.project_id = ? AND a.digest = ? AND a.commit_id <> ''
		LIMIT 1`
	selectCommitOfBuild = `
		SELECT commit_id
		FROM builds
		WHERE project_id = ? AND digest = ? AND state = 'success'
		ORDER BY id DESC
		LIMIT 1`
	selectFollowers = `
		SELECT agent_id FROM agent_sources WHERE project_id = ?
		UNION
		SELECT agent_id FROM rollouts WHERE project_id = ? AND ` + openRollout + `
		ORDER BY agent_id`
	selectAgentsUnderWay   = `SELECT DISTINCT agent_id FROM rollouts WHERE ` + openRollout + ` AND state <> 'unknown' ORDER BY agent_id`
	selectUnsettledProject = `
		SELECT project_id FROM rollouts WHERE ` + openRollout + `
		UNION
		SELECT project_id FROM rollouts WHERE reported_at = 0
		UNION
		SELECT j.id
		FROM projects j LEFT JOIN planned_pushes q ON q.project_id = j.id
		WHERE EXISTS (SELECT 1 FROM pushes p WHERE p.project_id = j.id AND p.id > COALESCE(q.push_id, 0))
		ORDER BY project_id`
	selectFollowed = `SELECT DISTINCT project_id FROM agent_sources WHERE project_id <> 0 ORDER BY project_id`
)

func (db *DB) PushedCommits(ctx context.Context, project tidelock.ProjectID, commits []tidelock.CommitID) (map[tidelock.CommitID]tidelock.PushID, error) {
	type pushed struct {
		commit tidelock.CommitID
		push   tidelock.PushID
	}
	found := map[tidelock.CommitID]tidelock.PushID{}
	for some := range slices.Chunk(commits, batch) {
		list, err := many(ctx, db.point(ctx).rarely(), "pushes of commits", func(row scanner) (p pushed, err error) {
			err = row.Scan(&p.commit, &p.push)
			return p, err
		}, fmt.Sprintf(selectCommitPushes, tuples(1, len(some))), append([]any{project}, anys(some)...)...)
		if err != nil {
			return nil, err
		}
		for _, p := range list {
			found[p.commit] = p.push
		}
	}
	return found, nil
}

func (db *DB) CommitOfDigest(ctx context.Context, project tidelock.ProjectID, digest tidelock.Digest) (tidelock.CommitID, error) {
	for _, text := range []string{selectCommitOfDigest, selectCommitOfBuild} {
		var commit tidelock.CommitID
		err := db.point(ctx).row(ctx, text, project, digest).Scan(&commit)
		if err == nil || !errors.Is(err, sql.ErrNoRows) {
			return commit, err
		}
	}
	return "", nil
}

func scanID[ID ~int64](row scanner) (id ID, err error) {
	err = row.Scan(&id)
	return id, err
}

func (db *DB) Followers(ctx context.Context, project tidelock.ProjectID) ([]tidelock.AgentID, error) {
	return many(ctx, db.point(ctx), "agents", scanID[tidelock.AgentID], selectFollowers, project, project)
}

func (db *DB) AgentsUnderWay(ctx context.Context) ([]tidelock.AgentID, error) {
	return many(ctx, db.point(ctx), "agents", scanID[tidelock.AgentID], selectAgentsUnderWay)
}

func (db *DB) UnsettledProjects(ctx context.Context) ([]tidelock.ProjectID, error) {
	return many(ctx, db.point(ctx), "projects", scanID[tidelock.ProjectID], selectUnsettledProject)
}

func (db *DB) FollowedProjects(ctx context.Context) ([]tidelock.ProjectID, error) {
	return many(ctx, db.point(ctx), "projects", scanID[tidelock.ProjectID], selectFollowed)
}

const (
	countNewest     = `SELECT state, COUNT(*) FROM rollouts WHERE newest GROUP BY state`
	countUnreported = `SELECT COUNT(*), COALESCE(MIN(updated_at), 0) FROM rollouts WHERE reported_at = 0`
)

func (db *DB) RolloutSum(ctx context.Context) (tidelock.RolloutSum, error) {
	sum := tidelock.RolloutSum{Newest: map[tidelock.RolloutState]int{}}
	err := db.read(ctx, func(s session) error {
		type count struct {
			state tidelock.RolloutState
			n     int
		}
		counts, err := many(ctx, s, "rollouts", func(row scanner) (c count, err error) {
			err = row.Scan(&c.state, &c.n)
			return c, err
		}, countNewest)
		if err != nil {
			return err
		}
		for _, c := range counts {
			sum.Newest[c.state] = c.n
		}
		if err := s.row(ctx, countUnreported).Scan(&sum.Unreported, (*instant)(&sum.OldestUnreported)); err != nil {
			return fmt.Errorf("count rollouts: %w", err)
		}
		return nil
	})
	return whole(sum, err)
}
