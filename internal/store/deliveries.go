package store

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"tidelock.dev"
)

const selectHookEvents = `
	SELECT id, project_id, kind, push_id, pipeline_id, deployment_id, state, at
	FROM hook_events
	WHERE id > ?
	ORDER BY id
	LIMIT ?`

func scanHookEvent(row scanner) (e tidelock.HookEvent, err error) {
	err = row.Scan(&e.ID, &e.Project, &e.Kind, &e.Push, &e.Pipeline, &e.Deployment, &e.State, (*instant)(&e.At))
	return e, err
}

func (db *DB) HookEvents(ctx context.Context, after tidelock.HookEventID, limit int) ([]tidelock.HookEvent, error) {
	return many(ctx, db.point(ctx), "hook events", scanHookEvent, selectHookEvents, after, limit)
}

const (
	deleteHookEvent = `DELETE FROM hook_events WHERE id = ?`
	insertDelivery  = `
		INSERT INTO hook_deliveries (hook_id, kind, lane, uuid, event, body, test, state, tries, next_at, leased_until, created_at,
			sent_at, took, url, request, status, response, answer, error)
		SELECT h.id, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?
		FROM hooks h
		WHERE h.id = ?
		RETURNING id`
	// giveUpOldest ends what waits beyond a number for one hook.
	giveUpOldest = `
		UPDATE hook_deliveries
		SET state = 'failed', error = ?
		WHERE state = 'waiting' AND hook_id = ? AND id <= (
			SELECT id FROM hook_deliveries
			WHERE state = 'waiting' AND hook_id = ?
			ORDER BY id DESC LIMIT 1 OFFSET ?)`
)

func (s session) insertDelivery(ctx context.Context, d *tidelock.Delivery) error {
	d.CreatedAt = orNow(d.CreatedAt)
	request, response, err := headerTexts(d.Attempt)
	if err != nil {
		return err
	}
	a := d.Attempt
	rows, err := many(ctx, s, "delivery", func(row scanner) (id tidelock.DeliveryID, err error) {
		err = row.Scan(&id)
		return id, err
	}, insertDelivery, d.Kind, []byte(d.Ref), d.UUID, d.Event, d.Body, d.Test, d.State, d.Tries, d.NextAt, d.CreatedAt,
		a.At, a.Took.Microseconds(), a.URL, request, a.Status, response, a.Answer, a.Error, d.Hook)
	if err != nil {
		return err
	}
	if len(rows) == 1 {
		d.ID = rows[0]
	}
	return nil
}

func headerTexts(a tidelock.Attempt) (request, response string, err error) {
	for text, headers := range map[*string]map[string]string{&request: a.Request, &response: a.Response} {
		if headers == nil {
			headers = map[string]string{}
		}
		encoded, err := json.Marshal(headers)
		if err != nil {
			return "", "", fmt.Errorf("write headers of a delivery: %w", err)
		}
		*text = string(encoded)
	}
	return request, response, nil
}

// ExpandHookEvent does not wait for the disk: an event that comes back after a
// power failure is expanded again.
func (db *DB) ExpandHookEvent(ctx context.Context, id tidelock.HookEventID, deliveries []tidelock.Delivery, most int) error {
	return db.note(ctx, func(s session) error {
		n, err := s.exec(ctx, deleteHookEvent, id)
		if err != nil {
			return fmt.Errorf("remove hook event: %w", err)
		}
		if n == 0 {
			return nil // another server was faster
		}
		hooks := map[tidelock.HookID]bool{}
		for _, d := range deliveries {
			d.State = tidelock.DeliveryWaiting
			if err := s.insertDelivery(ctx, &d); err != nil {
				return err
			}
			hooks[d.Hook] = true
		}
		for hook := range hooks {
			reason := fmt.Sprintf("given up: more than %d newer deliveries wait for this hook", most)
			if _, err := s.exec(ctx, giveUpOldest, reason, hook, hook, most); err != nil {
				return fmt.Errorf("give up deliveries: %w", err)
			}
		}
		return nil
	})
}

const (
	// A delivery may be sent when its time has come, its hook is not held and
	// nobody else sends it, and when all before it in its lane were sent or
	// have failed so often that it no longer waits for them. Of each hook only
	// some are sent at once, and only one while its calls fail.
	unblocked = `
		WHERE d.state = 'waiting' AND NOT EXISTS (
			SELECT 1 FROM hook_deliveries before
			WHERE before.hook_id = d.hook_id AND before.lane = d.lane AND before.state = 'waiting'
				AND before.id < d.id AND before.tries < ?)`
	claimable = `
		SELECT due.id FROM (
			SELECT d.id AS id, ROW_NUMBER() OVER (PARTITION BY d.hook_id ORDER BY d.id) AS turn,
				(CASE WHEN h.failures = 0 THEN ? ELSE 1 END) - COALESCE(busy.leased, 0) AS room
			FROM hook_deliveries d JOIN hooks h ON h.id = d.hook_id LEFT JOIN (
				SELECT hook_id, COUNT(*) AS leased FROM hook_deliveries
				WHERE state = 'waiting' AND leased_until > ?
				GROUP BY hook_id) AS busy ON busy.hook_id = d.hook_id` + unblocked + `
				AND d.next_at <= ? AND d.leased_until <= ? AND h.held_until <= ?) AS due
		WHERE due.turn <= due.room
		ORDER BY due.turn, due.id
		LIMIT ?`
	leaseDeliveries = `
		UPDATE hook_deliveries
		SET leased_until = ?
		WHERE state = 'waiting' AND leased_until <= ? AND id IN (%s)
		RETURNING ` + deliveryColumns
	deliveryColumns = `id, hook_id, kind, lane, uuid, event, body, test, state, tries, next_at, created_at,
		sent_at, took, url, request, status, response, answer, error`
)

func scanDelivery(row scanner) (d tidelock.Delivery, err error) {
	var took int64
	var request, response string
	a := &d.Attempt
	err = row.Scan(&d.ID, &d.Hook, &d.Kind, &d.Ref, &d.UUID, &d.Event, &d.Body, &d.Test, &d.State, &d.Tries,
		(*instant)(&d.NextAt), (*instant)(&d.CreatedAt), (*instant)(&a.At), &took, &a.URL, &request, &a.Status, &response, &a.Answer, &a.Error)
	if err != nil {
		return d, err
	}
	a.Took = time.Duration(took) * time.Microsecond
	if err := json.Unmarshal([]byte(request), &a.Request); err != nil {
		return d, fmt.Errorf("read request headers: %w", err)
	}
	if err := json.Unmarshal([]byte(response), &a.Response); err != nil {
		return d, fmt.Errorf("read response headers: %w", err)
	}
	return d, nil
}

// ClaimDeliveries does not wait for the disk: a lease that is lost lets a
// delivery be sent twice, which it may. What to lease is found before the
// transaction, because looking through thousands takes a while; what somebody
// else leased since then is left to them.
func (db *DB) ClaimDeliveries(ctx context.Context, c tidelock.Claim) ([]tidelock.Delivery, error) {
	ids, err := many(ctx, db.point(ctx), "due deliveries", func(row scanner) (id tidelock.DeliveryID, err error) {
		err = row.Scan(&id)
		return id, err
	}, claimable, c.PerHook, c.Now, c.Yield, c.Now, c.Now, c.Now, c.Limit)
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	var claimed []tidelock.Delivery
	err = db.note(ctx, func(s session) error {
		claimed, err = many(ctx, s, "due deliveries", scanDelivery, fmt.Sprintf(leaseDeliveries, s.in), c.Until, c.Now, idList(ids))
		return err
	})
	slices.SortFunc(claimed, func(a, b tidelock.Delivery) int { return cmp.Compare(a.ID, b.ID) })
	return whole(claimed, err)
}

const selectNextDelivery = `
	SELECT COALESCE(MIN(CASE
		WHEN d.leased_until > d.next_at AND d.leased_until > h.held_until THEN d.leased_until
		WHEN h.held_until > d.next_at THEN h.held_until
		ELSE d.next_at END), 0)
	FROM hook_deliveries d JOIN hooks h ON h.id = d.hook_id` + unblocked

func (db *DB) NextDelivery(ctx context.Context, yield int) (time.Time, error) {
	var next instant
	if err := db.point(ctx).row(ctx, selectNextDelivery, yield).Scan(&next); err != nil {
		return time.Time{}, fmt.Errorf("read the next delivery: %w", err)
	}
	return time.Time(next), nil
}

const (
	saveAttempt = `
		UPDATE hook_deliveries
		SET state = ?, tries = ?, next_at = ?, leased_until = 0,
			sent_at = ?, took = ?, url = ?, request = ?, status = ?, response = ?, answer = ?, error = ?
		WHERE id = ?`
	selectFailures = `SELECT failures FROM hooks WHERE id = ?`
	setFailures    = `UPDATE hooks SET failures = ?, held_until = ? WHERE id = ?`
)

// SaveAttempt does not wait for the disk: a delivery whose success is
// forgotten is sent again.
func (db *DB) SaveAttempt(ctx context.Context, d tidelock.Delivery, hold func(failures int) time.Duration) (tidelock.Delivery, error) {
	err := db.note(ctx, func(s session) error {
		if d.ID == 0 {
			if err := s.insertDelivery(ctx, &d); err != nil {
				return err
			}
			if d.ID == 0 {
				return notFound("hook")
			}
		} else {
			request, response, err := headerTexts(d.Attempt)
			if err != nil {
				return err
			}
			a := d.Attempt
			err = s.change(ctx, "delivery", saveAttempt, d.State, d.Tries, d.NextAt,
				a.At, a.Took.Microseconds(), a.URL, request, a.Status, response, a.Answer, a.Error, d.ID)
			if err != nil {
				return err
			}
		}
		return s.countFailure(ctx, d, hold)
	})
	return whole(d, err)
}

func (s session) countFailure(ctx context.Context, d tidelock.Delivery, hold func(failures int) time.Duration) error {
	var failures int
	if err := s.row(ctx, selectFailures+s.lockRow, d.Hook).Scan(&failures); err != nil {
		return readError("hook", err)
	}
	var held time.Time
	switch {
	case d.Attempt.Delivered():
		if failures == 0 {
			return nil
		}
		failures = 0
	case hold == nil:
		return nil
	default:
		failures++
		if wait := hold(failures); wait > 0 {
			held = d.Attempt.At.Add(wait)
		}
	}
	return s.change(ctx, "hook", setFailures, failures, held, d.Hook)
}

const selectDelivery = `SELECT ` + deliveryColumns + ` FROM hook_deliveries WHERE id = ?`

func (db *DB) Delivery(ctx context.Context, id tidelock.DeliveryID) (tidelock.Delivery, error) {
	return one(ctx, db.point(ctx), "delivery", scanDelivery, selectDelivery, id)
}

func (db *DB) Deliveries(ctx context.Context, f tidelock.DeliveryFilter, p tidelock.Page) ([]tidelock.Delivery, int, error) {
	l := list{columns: deliveryColumns, from: `hook_deliveries`, order: `id DESC`}
	l.filter(`hook_id = ? AND tries > 0`, f.Hook)
	if f.FromStatus != 0 || f.ToStatus != 0 {
		l.filter(`status BETWEEN ? AND ?`, f.FromStatus, f.ToStatus)
	}
	return pageOf(ctx, db, "deliveries", l, p, scanDelivery)
}

const trimDeliveries = `
	DELETE FROM hook_deliveries
	WHERE state <> 'waiting' AND (created_at < ? OR id IN (
		SELECT id FROM (
			SELECT id, ROW_NUMBER() OVER (PARTITION BY hook_id ORDER BY id DESC) AS age
			FROM hook_deliveries
			WHERE state <> 'waiting') AS kept
		WHERE age > ?))`

func (db *DB) TrimDeliveries(ctx context.Context, before time.Time, keep int) error {
	return db.note(ctx, func(s session) error {
		if _, err := s.exec(ctx, trimDeliveries, before, keep); err != nil {
			return fmt.Errorf("remove old deliveries: %w", err)
		}
		return nil
	})
}
