package store

import (
	"context"
	"fmt"
	"strings"

	"tidelock.dev"
)

const (
	countTellers = `
		SELECT COUNT(*)
		FROM integrations i JOIN hooks h ON h.id = i.hook_id
		WHERE h.project_id = ? AND h.integration <> '' AND (i.pipeline_events OR i.deployment_events)`
	// countBroken counts what says that an applier failed and did not recover:
	// what was told, and what is not told yet.
	countBroken = `
		SELECT (
			SELECT COUNT(*)
			FROM told_syncs t JOIN integrations i ON i.id = t.integration_id JOIN hooks h ON h.id = i.hook_id
			WHERE h.project_id = ? AND t.agent_id = ? AND t.applier = ? AND t.failed_at <> 0) + (
			SELECT COUNT(*)
			FROM notices
			WHERE project_id = ? AND agent_id = ? AND applier = ?)`
	// The same failure is noted once while it waits to be told.
	insertNotice = `
		INSERT INTO notices (project_id, agent_id, applier, commit_id, ref, environment, state, reason, message, at)
		SELECT p.id, a.id, ?, ?, ?, ?, ?, ?, ?, ?
		FROM projects p, agents a
		WHERE p.id = ? AND a.id = ? AND NOT EXISTS (
			SELECT 1
			FROM notices n
			WHERE n.project_id = p.id AND n.agent_id = a.id AND n.applier = ? AND n.commit_id = ? AND n.state = ? AND n.reason = ? AND n.message = ?
				AND n.id = (SELECT MAX(id) FROM notices WHERE project_id = p.id AND agent_id = a.id AND applier = ?))`
)

// noteSyncs writes a notice of every rollout that failed, and of every one
// that succeeded where one had failed, if an integration of its project wants
// to know. It belongs into the transaction that writes the rollouts, so that
// neither is lost without the other. What it notes again is not told again.
func (s session) noteSyncs(ctx context.Context, rollouts []tidelock.Rollout) error {
	tellers := map[tidelock.ProjectID]int{}
	for _, r := range rollouts {
		if r.State != tidelock.RolloutFailed && (r.State != tidelock.RolloutSuccess || !r.Newest) {
			continue
		}
		n, ok := tellers[r.Project]
		if !ok {
			if err := s.row(ctx, countTellers, r.Project).Scan(&n); err != nil {
				return fmt.Errorf("count integrations: %w", err)
			}
			tellers[r.Project] = n
		}
		if n == 0 {
			continue
		}
		if r.State == tidelock.RolloutSuccess {
			var broken int
			if err := s.row(ctx, countBroken, r.Project, r.Agent, r.Applier, r.Project, r.Agent, r.Applier).Scan(&broken); err != nil {
				return fmt.Errorf("count what failed: %w", err)
			}
			if broken == 0 {
				continue
			}
		}
		_, err := s.exec(ctx, insertNotice, r.Applier, r.Commit, []byte(r.Ref), r.Environment, r.State, r.Reason, r.Message, orNow(r.UpdatedAt),
			r.Project, r.Agent, r.Applier, r.Commit, r.State, r.Reason, r.Message, r.Applier)
		if err != nil {
			return fmt.Errorf("write notice: %w", err)
		}
	}
	return nil
}

const selectNotices = `
	SELECT id, project_id, agent_id, applier, commit_id, ref, environment, state, reason, message, at
	FROM notices
	WHERE id > ?
	ORDER BY id
	LIMIT ?`

func scanNotice(row scanner) (n tidelock.Notice, err error) {
	var ref []byte
	err = row.Scan(&n.ID, &n.Project, &n.Agent, &n.Applier, &n.Commit, &ref, &n.Environment, &n.State, &n.Reason, &n.Message, (*instant)(&n.At))
	n.Ref = tidelock.RefName(ref)
	return n, err
}

func (db *DB) Notices(ctx context.Context, after tidelock.NoticeID, limit int) ([]tidelock.Notice, error) {
	return many(ctx, db.point(ctx), "notices", scanNotice, selectNotices, after, limit)
}

const selectTold = `
	SELECT integration_id, agent_id, applier, commit_id, causes, failed_at, at
	FROM told_syncs
	WHERE integration_id = ?
	ORDER BY agent_id, applier`

func scanTold(row scanner) (t tidelock.Told, err error) {
	var causes string
	err = row.Scan(&t.Integration, &t.Agent, &t.Applier, &t.Commit, &causes, (*instant)(&t.FailedAt), (*instant)(&t.At))
	t.Causes = strings.Fields(causes)
	return t, err
}

func (db *DB) Told(ctx context.Context, id tidelock.IntegrationID) ([]tidelock.Told, error) {
	return many(ctx, db.point(ctx), "what was told", scanTold, selectTold, id)
}

const (
	deleteNotices = `DELETE FROM notices WHERE id IN (%s)`
	// An integration or an agent that is gone leaves nothing to remember.
	upsertTold = `
		INSERT INTO told_syncs (integration_id, agent_id, applier, commit_id, causes, failed_at, at)
		SELECT i.id, a.id, ?, ?, ?, ?, ?
		FROM integrations i, agents a
		WHERE i.id = ? AND a.id = ?
		ON CONFLICT (integration_id, agent_id, applier) DO UPDATE
		SET commit_id = excluded.commit_id, causes = excluded.causes, failed_at = excluded.failed_at, at = excluded.at`
)

func (db *DB) Tell(ctx context.Context, notices []tidelock.NoticeID, told []tidelock.Told, deliveries []tidelock.Delivery) error {
	return db.write(ctx, func(s session) error {
		n, err := s.exec(ctx, fmt.Sprintf(deleteNotices, s.in), idList(notices))
		if err != nil {
			return fmt.Errorf("remove notices: %w", err)
		}
		if n != int64(len(notices)) {
			return tidelock.Errorf(tidelock.Conflict, "the notices were told by another server")
		}
		for _, t := range told {
			_, err := s.exec(ctx, upsertTold, t.Applier, t.Commit, strings.Join(t.Causes, " "), t.FailedAt, t.At, t.Integration, t.Agent)
			if err != nil {
				return s.writeError("what was told", "integration", err)
			}
		}
		for _, d := range deliveries {
			d.State = tidelock.DeliveryWaiting
			if err := s.insertDelivery(ctx, &d); err != nil {
				return err
			}
		}
		return nil
	})
}
