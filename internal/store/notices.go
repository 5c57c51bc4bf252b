package store

import (
	"context"
	"database/sql"
	"errors"
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
	selectStateBefore = `
		SELECT state, reason, message, newest
		FROM rollouts
		WHERE agent_id = ? AND applier = ? AND project_id = ? AND commit_id = ?`
	insertNotice = `
		INSERT INTO notices (project_id, agent_id, applier, commit_id, ref, state, reason, message, at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`
)

// noteSyncs writes a notice of every rollout that fails, or fails for another
// reason, and of every one that succeeds where one had failed, if an
// integration of its project wants to know. It is called before the rollouts
// are written, in the same transaction, so that neither is lost without the
// other.
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
		if known, err := s.isNoted(ctx, r); err != nil || known {
			if err != nil {
				return err
			}
			continue
		}
		_, err := s.exec(ctx, insertNotice, r.Project, r.Agent, r.Applier, r.Commit, []byte(r.Ref), r.State, r.Reason, r.Message, orNow(r.UpdatedAt))
		if err != nil {
			return s.writeError("notice", "agent or project", err)
		}
	}
	return nil
}

// isNoted reports whether a rollout that failed or succeeded says nothing new.
func (s session) isNoted(ctx context.Context, r tidelock.Rollout) (bool, error) {
	var before tidelock.Rollout
	err := s.row(ctx, selectStateBefore, r.Agent, r.Applier, r.Project, r.Commit).Scan(&before.State, &before.Reason, &before.Message, &before.Newest)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, fmt.Errorf("read a rollout: %w", err)
	}
	if r.State == tidelock.RolloutFailed {
		return before.State == r.State && (!r.Newest || before.Reason == r.Reason && before.Message == r.Message), nil
	}
	if before.State == r.State && before.Newest {
		return true, nil
	}
	var broken int
	if err := s.row(ctx, countBroken, r.Project, r.Agent, r.Applier, r.Project, r.Agent, r.Applier).Scan(&broken); err != nil {
		return false, fmt.Errorf("count what failed: %w", err)
	}
	return broken == 0, nil
}

// The environment is that of the rollout by now: it is known only when it was
// reported.
const selectNotices = `
	SELECT n.id, n.project_id, n.agent_id, n.applier, n.commit_id, n.ref, COALESCE(r.environment, ''), n.state, n.reason, n.message, n.at
	FROM notices n LEFT JOIN rollouts r
		ON r.agent_id = n.agent_id AND r.applier = n.applier AND r.project_id = n.project_id AND r.commit_id = n.commit_id
	WHERE n.id > ?
	ORDER BY n.id
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
