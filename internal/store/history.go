package store

import (
	"context"
	"fmt"
	"time"

	"tidelock.dev"
)

// prunable says, of each sort of record, in which table it is and which rows
// may go; ? is the time.
var prunable = map[tidelock.HistorySort]struct{ table, free string }{
	tidelock.HistoryRollouts: {`rollouts`, `
		x.updated_at < ? AND NOT x.newest AND x.reported_at <> 0 AND x.state IN ('success', 'failed', 'superseded')
		AND x.turn < (
			SELECT k.turn FROM rollouts k
			WHERE k.agent_id = x.agent_id AND k.applier = x.applier
			ORDER BY k.turn DESC LIMIT 1 OFFSET 19)
		AND (x.state <> 'success' OR EXISTS (
			SELECT 1 FROM rollouts k
			WHERE k.agent_id = x.agent_id AND k.applier = x.applier AND k.turn > x.turn AND k.state = 'success'))`},
	tidelock.HistoryAnnouncements: {`announcements`, `x.sent_at < ? AND NOT x.latest`},
	tidelock.HistoryBuilds: {`builds`, `
		x.created_at < ? AND NOT x.latest
		AND x.id <> (
			SELECT COALESCE(MAX(k.id), 0) FROM builds k
			WHERE k.project_id = x.project_id AND k.ref = x.ref AND k.application = x.application AND k.state IN ('success', 'skipped'))`},
	tidelock.HistoryPushes: {`pushes`, `
		x.pushed_at < ? AND x.announced
		AND x.id <= (SELECT COALESCE(MAX(k.push_id), 0) FROM planned_pushes k WHERE k.project_id = x.project_id)
		AND NOT EXISTS (
			SELECT 1 FROM push_updates u
			JOIN heads k ON k.project_id = x.project_id AND k.ref = u.ref AND k.push_id = x.id
			WHERE u.push_id = x.id)
		AND NOT EXISTS (
			SELECT 1 FROM push_artifacts u
			JOIN image_tags k ON k.image_id = u.image_id AND k.name = u.tag AND k.push_id = x.id
			WHERE u.push_id = x.id)
		AND NOT EXISTS (SELECT 1 FROM rollouts k WHERE k.push_id = x.id AND k.push_id <> 0)
		AND NOT EXISTS (SELECT 1 FROM announcements k WHERE k.push_id = x.id)
		AND NOT EXISTS (SELECT 1 FROM builds k WHERE k.push_id = x.id)
		AND NOT EXISTS (SELECT 1 FROM hook_events k WHERE k.project_id = x.project_id AND k.push_id = x.id)`},
}

const (
	selectPrunable = `SELECT x.id FROM %s AS x WHERE x.id > ? AND %s ORDER BY x.id LIMIT ?`
	deletePrunable = `DELETE FROM %s AS x WHERE x.id IN (%s) AND %s`
)

// PruneHistory looks for rows without holding up those who write, and asks
// again of each whether it may go when it removes it.
func (db *DB) PruneHistory(ctx context.Context, sort tidelock.HistorySort, before time.Time, after int64, limit int) (next int64, removed int, err error) {
	p := prunable[sort]
	ids, err := many(ctx, db.point(ctx), "old "+p.table, scanID[int64], fmt.Sprintf(selectPrunable, p.table, p.free), after, before, limit)
	if err != nil || len(ids) == 0 {
		return 0, 0, err
	}
	err = db.write(ctx, func(s session) error {
		n, err := s.exec(ctx, fmt.Sprintf(deletePrunable, p.table, s.in, p.free), idList(ids), before)
		if err != nil {
			return fmt.Errorf("remove old %s: %w", p.table, err)
		}
		removed = int(n)
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	if len(ids) == limit {
		next = ids[len(ids)-1]
	}
	return next, removed, nil
}
