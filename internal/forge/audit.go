package forge

import (
	"context"
	"fmt"
	"strings"

	"tidelock.dev"
)

// auditStore is what the rules remember of changes of access.
type auditStore interface {
	// SaveAuditEvent appends an event; there is no way to change or remove one.
	SaveAuditEvent(context.Context, tidelock.AuditEvent) error
	AuditEvent(context.Context, tidelock.AuditID) (tidelock.AuditEvent, error)
	// AuditEvents lists newest first.
	AuditEvents(context.Context, tidelock.AuditFilter, tidelock.Page) ([]tidelock.AuditEvent, int, error)
}

// AuditLog lists what changed of who may do what, newest first: everything for
// an administrator, or what was changed of exactly one project or group.
func (f *Forge) AuditLog(ctx context.Context, p Principal, t Target, filter tidelock.AuditFilter, page tidelock.Page) ([]tidelock.AuditEvent, int, error) {
	if err := f.mayAudit(ctx, p, t); err != nil {
		return nil, 0, err
	}
	filter.Holder = tidelock.Holder{}
	if t.place() != onForge {
		filter.Holder = t.holder()
	}
	return f.store.AuditEvents(ctx, filter, page)
}

// AuditEvent reads one event of such a list.
func (f *Forge) AuditEvent(ctx context.Context, p Principal, t Target, id tidelock.AuditID) (tidelock.AuditEvent, error) {
	if err := f.mayAudit(ctx, p, t); err != nil {
		return tidelock.AuditEvent{}, err
	}
	event, err := f.store.AuditEvent(ctx, id)
	if tidelock.KindOf(err) == tidelock.NotFound || (err == nil && t.place() != onForge && event.Holder != t.holder()) {
		return tidelock.AuditEvent{}, tidelock.Errorf(tidelock.NotFound, "Audit Event Not Found")
	}
	return event, err
}

func (f *Forge) mayAudit(ctx context.Context, p Principal, t Target) error {
	if t.place() == onForge {
		return f.Allow(ctx, p, Oversee, t)
	}
	return f.Allow(ctx, p, t.pick(ReadProjectAudit, ReadGroupAudit), t)
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

// differences tells what changed, of triples of a name and its value before
// and after.
func differences(triples ...string) string {
	var changed []string
	for i := 0; i+2 < len(triples); i += 3 {
		switch name, before, after := triples[i], triples[i+1], triples[i+2]; {
		case before == after:
		case before == "":
			changed = append(changed, fmt.Sprintf("%s %q", name, after))
		default:
			changed = append(changed, fmt.Sprintf("%s %q to %q", name, before, after))
		}
	}
	return strings.Join(changed, ", ")
}

// changedOnly stands for a long value in differences.
func changedOnly(before, after string) string {
	if before == after {
		return ""
	}
	return "changed"
}
