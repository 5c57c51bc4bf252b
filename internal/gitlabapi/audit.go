package gitlabapi

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

func (a *API) auditRoutes() []route {
	return []route{
		{get, "/audit_events", a.listAudit(onWhole)},
		{get, "/audit_events/:event_id", a.showAudit(onWhole)},
		{get, "/projects/:id/audit_events", a.listAudit(onProject)},
		{get, "/projects/:id/audit_events/:event_id", a.showAudit(onProject)},
		{get, "/groups/:id/audit_events", a.listAudit(onGroup)},
		{get, "/groups/:id/audit_events/:event_id", a.showAudit(onGroup)},
	}
}

var readAudit = acts{forge.ReadProjectAudit, forge.ReadGroupAudit}

// onWhole is the place of what concerns the forge as a whole.
func onWhole(a *API, r *request, _ acts) (forge.Target, error) {
	return forge.OnForge, a.forge.Allow(r.ctx(), r.by, forge.Oversee, forge.OnForge)
}

// An auditShape is an audit event. GitLab spreads what happened over fields
// that differ by event; here it is always in custom_message.
type auditShape struct {
	ID         tidelock.AuditID `json:"id"`
	AuthorID   tidelock.UserID  `json:"author_id"`
	EntityID   int64            `json:"entity_id"`
	EntityType string           `json:"entity_type"`
	EventName  string           `json:"event_name"`
	Details    auditDetails     `json:"details"`
	CreatedAt  stamp            `json:"created_at"`
}

type auditDetails struct {
	CustomMessage string            `json:"custom_message"`
	AuthorName    string            `json:"author_name"`
	TargetDetails string            `json:"target_details"`
	IPAddress     string            `json:"ip_address"`
	EntityPath    string            `json:"entity_path"`
	EventName     string            `json:"event_name"`
	TokenID       *tidelock.TokenID `json:"token_id"`
	Detail        string            `json:"detail"`
}

func auditEventShape(e tidelock.AuditEvent) auditShape {
	name := strings.ReplaceAll(e.Act, " ", "_")
	message := e.Act
	if e.Subject != "" {
		message += ": " + e.Subject
	}
	if e.Detail != "" {
		message += ", " + e.Detail
	}
	shape := auditShape{
		ID: e.ID, AuthorID: e.User, EntityID: 1, EntityType: "Gitlab::Audit::InstanceScope", EventName: name, CreatedAt: stamp(e.At),
		Details: auditDetails{
			CustomMessage: message, AuthorName: e.Name, TargetDetails: e.Subject, IPAddress: e.From,
			EntityPath: e.Path, EventName: name, TokenID: orNull(e.Token), Detail: e.Detail,
		},
	}
	switch {
	case e.Project != 0:
		shape.EntityID, shape.EntityType = int64(e.Project), "Project"
	case e.Namespace != 0:
		shape.EntityID, shape.EntityType = int64(e.Namespace), "Group"
	}
	return shape
}

func (a *API) listAudit(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, readAudit)
		if err != nil {
			return err
		}
		filter := tidelock.AuditFilter{Span: r.span("created"), User: tidelock.UserID(r.number("author_id"))}
		page := r.page()
		keyset := r.word("pagination", "offset", "keyset") == "keyset"
		if keyset {
			filter.IDBefore = tidelock.AuditID(r.number("cursor"))
			page.Number = 1
		}
		if err := r.err(); err != nil {
			return err
		}
		events, total, err := a.forge.AuditLog(r.ctx(), r.by, target, filter, page)
		if err != nil {
			return err
		}
		shapes := each(events, auditEventShape)
		if !keyset {
			return writePage(a, w, r, page, shapes, total)
		}
		var next url.Values
		if total > len(events) && len(events) > 0 {
			next = url.Values{"cursor": {strconv.FormatInt(int64(events[len(events)-1].ID), 10)}}
		}
		return writeKeyset(a, w, r, page.PerPage, shapes, next)
	}
}

func (a *API) showAudit(in place) handler {
	return func(w http.ResponseWriter, r *request) error {
		target, err := in(a, r, readAudit)
		if err != nil {
			return err
		}
		n, err := id[tidelock.AuditID](r, "event_id")
		if err != nil {
			return err
		}
		event, err := a.forge.AuditEvent(r.ctx(), r.by, target, n)
		if err != nil {
			return err
		}
		return ok(w, auditEventShape(event))
	}
}
