package store

import (
	"context"
	"database/sql"
	"errors"

	"tidelock.dev"
)

const reportRuleColumns = `r.id, r.project_id, r.type, r.public_key, r.creator_id, r.created_at`

func scanReportRule(row scanner) (r tidelock.ReportRule, err error) {
	err = row.Scan(&r.ID, &r.Project, &r.Type, &r.Key, &r.Creator, (*instant)(&r.CreatedAt))
	return r, err
}

const (
	selectReportRules = `SELECT ` + reportRuleColumns + ` FROM report_rules r WHERE r.project_id = ? ORDER BY r.id`
	insertReportRule  = `
		INSERT INTO report_rules (project_id, type, public_key, creator_id, created_at)
		VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (project_id, type) DO NOTHING
		RETURNING id`
	deleteReportRule = `DELETE FROM report_rules WHERE project_id = ? AND id = ?`
)

func (db *DB) ReportRules(ctx context.Context, project tidelock.ProjectID) ([]tidelock.ReportRule, error) {
	return many(ctx, db.point(ctx), "report rules", scanReportRule, selectReportRules, project)
}

// AddReportRule makes a rule for a type that has none yet.
func (db *DB) AddReportRule(ctx context.Context, r tidelock.ReportRule) (tidelock.ReportRule, error) {
	r.CreatedAt = orNow(r.CreatedAt)
	err := db.write(ctx, func(s session) error {
		err := s.row(ctx, insertReportRule, r.Project, r.Type, r.Key, r.Creator, r.CreatedAt).Scan(&r.ID)
		if errors.Is(err, sql.ErrNoRows) {
			return taken("artifact_type")
		}
		return s.writeError("report rule", "project", err)
	})
	return whole(r, err)
}

func (db *DB) RemoveReportRule(ctx context.Context, project tidelock.ProjectID, id int64) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "report rule", deleteReportRule, project, id) })
}
