package store

import (
	"context"
	"fmt"
	"time"

	"tidelock.dev"
)

// The bits of rollouts.traced.
const (
	tracedReported = 1 << iota
	tracedApplied
	tracedHealthy
)

const (
	selectUntraced = `
		SELECT r.traced, ` + rolloutColumns + `
		FROM ` + rolloutTables + `
		WHERE r.project_id = ? AND r.traced = 0 AND r.reported_at > ? AND r.reported_at <> 0
			AND r.state IN ('success', 'failed', 'superseded') AND p.trace <> ''
		ORDER BY r.reported_at, r.id
		LIMIT ?`
	selectHalfTraced = `
		SELECT r.traced, ` + rolloutColumns + `
		FROM ` + rolloutTables + `
		WHERE r.project_id = ? AND r.traced > 0 AND r.traced < 4 AND r.healthy_at <> 0 AND r.reported_at > ?
			AND r.state = 'success' AND p.trace <> ''
		LIMIT ?`
	markTraced = `UPDATE rollouts SET traced = ? WHERE id = ? AND traced = ?`
)

// ClaimTraces does not wait for the disk.
func (db *DB) ClaimTraces(ctx context.Context, project tidelock.ProjectID, after time.Time, limit int) ([]tidelock.TracedRollout, error) {
	type row struct {
		tidelock.Rollout
		traced int
	}
	scan := func(from scanner) (r row, err error) {
		r.Rollout, err = scanRollout(prefixed{from, &r.traced})
		return r, err
	}
	var due []row
	for _, text := range []string{selectUntraced, selectHalfTraced} {
		found, err := many(ctx, db.point(ctx), "rollouts to trace", scan, text, project, after, limit-len(due))
		if err != nil {
			return nil, err
		}
		if due = append(due, found...); len(due) >= limit {
			break
		}
	}
	if len(due) == 0 {
		return nil, nil
	}
	var claimed []tidelock.TracedRollout
	err := db.note(ctx, func(s session) error {
		claimed = nil
		for _, r := range due {
			traced, hops := r.traced, []tidelock.HopKind(nil)
			for _, h := range []struct {
				bit  int
				at   time.Time
				kind tidelock.HopKind
			}{
				{tracedApplied, r.AppliedAt, tidelock.HopApplied},
				{tracedHealthy, r.HealthyAt, tidelock.HopHealthy},
				{tracedReported, r.ReportedAt, tidelock.HopReported},
			} {
				if traced&h.bit == 0 && !h.at.IsZero() {
					traced, hops = traced|h.bit, append(hops, h.kind)
				}
			}
			n, err := s.exec(ctx, markTraced, traced, r.ID, r.traced)
			if err != nil {
				return fmt.Errorf("mark rollout %d traced: %w", r.ID, err)
			}
			if n == 1 { // and nobody else was faster
				claimed = append(claimed, tidelock.TracedRollout{Rollout: r.Rollout, Hops: hops})
			}
		}
		return nil
	})
	return whole(claimed, err)
}

// prefixed is a row with a column before those that its reader knows.
type prefixed struct {
	row   scanner
	first any
}

func (p prefixed) Scan(dest ...any) error { return p.row.Scan(append([]any{p.first}, dest...)...) }
