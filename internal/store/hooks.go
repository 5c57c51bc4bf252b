package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"tidelock.dev"
)

var errNoSeal = errors.New("the store was opened without a key to seal with")

// hookSecrets is what is sealed of a hook.
type hookSecrets struct {
	URL     string
	Token   string            `json:",omitempty"`
	Headers map[string]string `json:",omitempty"`
}

// sealHook hides the secrets of a hook that has its id.
func (db *DB) sealHook(h tidelock.Hook) ([]byte, error) {
	if db.box == nil {
		return nil, errNoSeal
	}
	secrets := hookSecrets{URL: h.URL, Token: h.Token.Reveal()}
	for _, header := range h.Headers {
		if secrets.Headers == nil {
			secrets.Headers = map[string]string{}
		}
		secrets.Headers[header.Name] = header.Value.Reveal()
	}
	text, err := json.Marshal(secrets)
	if err != nil {
		return nil, fmt.Errorf("seal hook %d: %w", h.ID, err)
	}
	return db.box.Seal(hookPurpose(h.ID), string(text)), nil
}

func hookPurpose(id tidelock.HookID) string { return fmt.Sprint("hook ", id) }

func (db *DB) openHook(h *tidelock.Hook, sealed []byte) error {
	if db.box == nil {
		return errNoSeal
	}
	text, err := db.box.Open(hookPurpose(h.ID), sealed)
	if err != nil {
		return err
	}
	var secrets hookSecrets
	if err := json.Unmarshal([]byte(text), &secrets); err != nil {
		return fmt.Errorf("open hook %d: %w", h.ID, err)
	}
	h.URL, h.Token = secrets.URL, tidelock.NewSecret(secrets.Token)
	for _, name := range slices.Sorted(maps.Keys(secrets.Headers)) {
		h.Headers = append(h.Headers, tidelock.HookHeader{Name: name, Value: tidelock.NewSecret(secrets.Headers[name])})
	}
	return nil
}

const (
	hookColumns = `h.id, h.project_id, h.sealed, h.name, h.description,
		h.push_events, h.tag_push_events, h.pipeline_events, h.deployment_events, h.unused_events,
		h.branch_filter, h.branch_match, h.skip_verify, h.created_at, h.failures, h.held_until, h.integration`

	insertHook = `
		INSERT INTO hooks (project_id, sealed, name, description,
			push_events, tag_push_events, pipeline_events, deployment_events, unused_events,
			branch_filter, branch_match, skip_verify, created_at, failures, held_until)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0)
		RETURNING id`
	setHookSecrets = `UPDATE hooks SET sealed = ? WHERE id = ?`
	countHooks     = `SELECT COUNT(*) FROM hooks WHERE project_id = ? AND integration = ''`
)

func (db *DB) scanHook(row scanner) (h tidelock.Hook, err error) {
	var sealed []byte
	var wants [4]bool // in the order of tidelock.HookKinds
	var unused string
	err = row.Scan(&h.ID, &h.Project, &sealed, &h.Name, &h.Description,
		&wants[0], &wants[1], &wants[2], &wants[3], &unused,
		&h.BranchFilter, &h.BranchMatch, &h.SkipVerify, (*instant)(&h.CreatedAt), &h.Failures, (*instant)(&h.HeldUntil), &h.Integration)
	if err != nil {
		return h, err
	}
	for i, kind := range tidelock.HookKinds {
		if wants[i] {
			h.Kinds = append(h.Kinds, kind)
		}
	}
	h.Unused = strings.Fields(unused)
	return h, db.openHook(&h, sealed)
}

// CreateHook refuses one more than max of a project.
func (db *DB) CreateHook(ctx context.Context, h tidelock.Hook, max int) (tidelock.Hook, error) {
	h.CreatedAt = orNow(h.CreatedAt)
	err := db.write(ctx, func(s session) error {
		var locked tidelock.ProjectID
		if err := s.row(ctx, lockProject+s.lockRow, h.Project).Scan(&locked); err != nil {
			return readError("project", err)
		}
		var n int
		if err := s.row(ctx, countHooks, h.Project).Scan(&n); err != nil {
			return fmt.Errorf("count hooks: %w", err)
		}
		if n >= max {
			return tidelock.Errorf(tidelock.Invalid, "Maximum number of project webhooks (%d) exceeded", max)
		}
		err := s.row(ctx, insertHook, h.Project, []byte{}, h.Name, h.Description,
			h.Wants(tidelock.HookPush), h.Wants(tidelock.HookTagPush), h.Wants(tidelock.HookPipeline), h.Wants(tidelock.HookDeployment),
			strings.Join(h.Unused, " "), h.BranchFilter, h.BranchMatch, h.SkipVerify, h.CreatedAt).Scan(&h.ID)
		if err != nil {
			return s.writeError("hook", "project", err)
		}
		sealed, err := db.sealHook(h)
		if err != nil {
			return err
		}
		if err := s.change(ctx, "hook", setHookSecrets, sealed, h.ID); err != nil {
			return err
		}
		h, err = one(ctx, s, "hook", db.scanHook, selectHook, h.ID)
		return err
	})
	return whole(h, err)
}

const selectHook = `SELECT ` + hookColumns + ` FROM hooks h WHERE h.id = ?`

func (db *DB) Hook(ctx context.Context, id tidelock.HookID) (tidelock.Hook, error) {
	return one(ctx, db.point(ctx), "hook", db.scanHook, selectHook, id)
}

func (db *DB) Hooks(ctx context.Context, project tidelock.ProjectID, p tidelock.Page) ([]tidelock.Hook, int, error) {
	l := list{columns: hookColumns, from: `hooks h`, order: `h.id`}
	l.filter(`h.project_id = ? AND h.integration = ''`, project)
	return pageOf(ctx, db, "hooks", l, p, db.scanHook)
}

const (
	updateHook = `
		UPDATE hooks
		SET sealed = ?, name = ?, description = ?,
			push_events = ?, tag_push_events = ?, pipeline_events = ?, deployment_events = ?, unused_events = ?,
			branch_filter = ?, branch_match = ?, skip_verify = ?, failures = 0, held_until = 0
		WHERE id = ?`
	deleteHook = `DELETE FROM hooks WHERE id = ?`
)

func (db *DB) UpdateHook(ctx context.Context, h tidelock.Hook) (tidelock.Hook, error) {
	err := db.write(ctx, func(s session) error {
		sealed, err := db.sealHook(h)
		if err != nil {
			return err
		}
		err = s.change(ctx, "hook", updateHook, sealed, h.Name, h.Description,
			h.Wants(tidelock.HookPush), h.Wants(tidelock.HookTagPush), h.Wants(tidelock.HookPipeline), h.Wants(tidelock.HookDeployment),
			strings.Join(h.Unused, " "), h.BranchFilter, h.BranchMatch, h.SkipVerify, h.ID)
		if err != nil {
			return err
		}
		h, err = one(ctx, s, "hook", db.scanHook, selectHook, h.ID)
		return err
	})
	return whole(h, err)
}

func (db *DB) DeleteHook(ctx context.Context, id tidelock.HookID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "hook", deleteHook, id) })
}

var countWanting = map[tidelock.HookKind]string{
	tidelock.HookPush:       countHooks + ` AND push_events`,
	tidelock.HookTagPush:    countHooks + ` AND tag_push_events`,
	tidelock.HookPipeline:   countHooks + ` AND pipeline_events`,
	tidelock.HookDeployment: countHooks + ` AND deployment_events`,
}

const insertHookEvent = `
	INSERT INTO hook_events (project_id, kind, push_id, pipeline_id, deployment_id, state, at)
	VALUES (?, ?, ?, ?, ?, ?, ?)`

// noteHookEvent writes an event if any hook of the project wants to know of
// its kind. It belongs into the transaction of what happened, so that neither
// is lost without the other.
func (s session) noteHookEvent(ctx context.Context, e tidelock.HookEvent) error {
	text, ok := countWanting[e.Kind]
	if !ok {
		return fmt.Errorf("note hook event: no hook knows the kind %q", e.Kind)
	}
	var wanting int
	if err := s.row(ctx, text, e.Project).Scan(&wanting); err != nil {
		return fmt.Errorf("count hooks: %w", err)
	}
	if wanting == 0 {
		return nil
	}
	if _, err := s.exec(ctx, insertHookEvent, e.Project, e.Kind, e.Push, e.Pipeline, e.Deployment, e.State, orNow(e.At)); err != nil {
		return s.writeError("hook event", "project", err)
	}
	return nil
}

// notePush notes the branches and the tags that a push moved.
func (s session) notePush(ctx context.Context, p tidelock.Push) error {
	for _, kind := range []tidelock.HookKind{tidelock.HookPush, tidelock.HookTagPush} {
		if !slices.ContainsFunc(p.Updates, func(u tidelock.RefUpdate) bool { return u.HookKind() == kind }) {
			continue
		}
		if err := s.noteHookEvent(ctx, tidelock.HookEvent{Project: p.Project, Kind: kind, Push: p.ID, At: p.At}); err != nil {
			return err
		}
	}
	return nil
}
