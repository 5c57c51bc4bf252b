package store

import (
	"context"

	"tidelock.dev"
)

const insertAuditEvent = `
	INSERT INTO audit_events (at, user_id, name, token_id, from_address, act, project_id, namespace_id, path, subject, detail)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`

func (db *DB) SaveAuditEvent(ctx context.Context, e tidelock.AuditEvent) error {
	return db.write(ctx, func(s session) error {
		_, err := s.exec(ctx, insertAuditEvent, orNow(e.At), e.User, e.Name, e.Token, e.From, e.Act,
			e.Project, e.Namespace, e.Path, e.Subject, e.Detail)
		return s.writeError("audit event", "", err)
	})
}

const auditColumns = `a.id, a.at, a.user_id, a.name, a.token_id, a.from_address, a.act, a.project_id, a.namespace_id, a.path, a.subject, a.detail`

func scanAuditEvent(row scanner) (e tidelock.AuditEvent, err error) {
	err = row.Scan(&e.ID, (*instant)(&e.At), &e.User, &e.Name, &e.Token, &e.From, &e.Act,
		&e.Project, &e.Namespace, &e.Path, &e.Subject, &e.Detail)
	return e, err
}

const selectAuditEvent = `SELECT ` + auditColumns + ` FROM audit_events a WHERE a.id = ?`

func (db *DB) AuditEvent(ctx context.Context, id tidelock.AuditID) (tidelock.AuditEvent, error) {
	return one(ctx, db.point(ctx), "audit event", scanAuditEvent, selectAuditEvent, id)
}

func (db *DB) AuditEvents(ctx context.Context, f tidelock.AuditFilter, p tidelock.Page) ([]tidelock.AuditEvent, int, error) {
	l := list{columns: auditColumns, from: `audit_events a`, order: `a.id DESC`}
	if f.Holder.Project != 0 {
		l.filter(`a.project_id = ?`, f.Holder.Project)
	}
	if f.Holder.Namespace != 0 {
		l.filter(`a.namespace_id = ?`, f.Holder.Namespace)
	}
	if f.User != 0 {
		l.filter(`a.user_id = ?`, f.User)
	}
	l.span(f.Span, `a.at`)
	if f.IDBefore != 0 {
		l.filter(`a.id < ?`, f.IDBefore)
	}
	return pageOf(ctx, db, "audit events", l, p, scanAuditEvent)
}
