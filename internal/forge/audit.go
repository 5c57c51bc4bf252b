package forge

import (
	"context"
	"fmt"

	"tidelock.dev"
)

// auditStore is what the rules remember of changes of access.
type auditStore interface {
	// SaveAuditEvent appends an event; there is no way to change or remove one.
	SaveAuditEvent(context.Context, tidelock.AuditEvent) error
	// AuditEvents lists newest first.
	AuditEvents(context.Context, tidelock.AuditFilter, tidelock.Page) ([]tidelock.AuditEvent, int, error)
}

// A change is what the audit log says of an act. Its fields are those of
// tidelock.AuditEvent.
type change struct {
	act     string
	on      Target
	subject string
	detail  string
}

// audited does an act and notes it in the audit log, both or neither. The act
// returns what to note, because only then the id of a new thing is known; it
// must pass on the context it is given, and may run more than once.
func (f *Forge) audited(ctx context.Context, p Principal, act func(context.Context) (change, error)) error {
	return f.store.Atomically(ctx, func(ctx context.Context) error {
		c, err := act(ctx)
		if err != nil {
			return err
		}
		event := tidelock.AuditEvent{
			At: f.now().UTC(), From: p.From, Act: c.act, Path: c.on.fullPath(), Subject: c.subject, Detail: c.detail,
		}
		event.User, event.Token = p.ids()
		if p.User != nil {
			event.Name = p.User.Username
		}
		if c.on.place() != onForge {
			event.Holder = c.on.holder()
		}
		if err := f.store.SaveAuditEvent(ctx, event); err != nil {
			return fmt.Errorf("note in the audit log that %s: %w", c.act, err)
		}
		return nil
	})
}
