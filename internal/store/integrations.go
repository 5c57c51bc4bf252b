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
	integrationColumns = `i.id, h.project_id, h.integration, h.id, h.sealed, i.username, i.channel,
		i.pipeline_events, i.pipeline_channel, i.deployment_events, i.deployment_channel, i.only_broken, i.branches, i.unused_events,
		h.failures, h.held_until, h.created_at, i.updated_at`
	fromIntegrations = ` FROM integrations i JOIN hooks h ON h.id = i.hook_id `

	selectIntegration  = `SELECT ` + integrationColumns + fromIntegrations + `WHERE h.project_id = ? AND h.integration = ?`
	selectIntegrations = `SELECT ` + integrationColumns + fromIntegrations + `WHERE h.project_id = ? AND h.integration <> '' ORDER BY i.id`
)

func (db *DB) scanIntegration(row scanner) (i tidelock.Integration, err error) {
	var sealed []byte
	var unused string
	err = row.Scan(&i.ID, &i.Project, &i.Kind, &i.Hook, &sealed, &i.Username, &i.Channel,
		&i.Pipelines, &i.PipelineChannel, &i.Deployments, &i.DeploymentChannel, &i.OnlyBroken, &i.Branches, &unused,
		&i.Failures, (*instant)(&i.HeldUntil), (*instant)(&i.CreatedAt), (*instant)(&i.UpdatedAt))
	if err != nil {
		return i, err
	}
	i.Unused = strings.Fields(unused)
	hook := tidelock.Hook{ID: i.Hook}
	if err := db.openHook(&hook, sealed); err != nil {
		return i, err
	}
	i.URL = tidelock.NewSecret(hook.URL)
	return i, nil
}

func (db *DB) Integration(ctx context.Context, project tidelock.ProjectID, kind tidelock.IntegrationKind) (tidelock.Integration, error) {
	return one(ctx, db.point(ctx), "integration", db.scanIntegration, selectIntegration, project, kind)
}

func (db *DB) Integrations(ctx context.Context, project tidelock.ProjectID) ([]tidelock.Integration, error) {
	return many(ctx, db.point(ctx), "integrations", db.scanIntegration, selectIntegrations, project)
}

const (
	selectIntegrationHook = `SELECT id FROM hooks WHERE project_id = ? AND integration = ?`
	insertIntegrationHook = `
		INSERT INTO hooks (project_id, integration, sealed, name, description,
			push_events, tag_push_events, pipeline_events, deployment_events, unused_events,
			branch_filter, branch_match, skip_verify, created_at, failures, held_until)
		VALUES (?, ?, ?, '', '', ?, ?, ?, ?, '', '', ?, ?, ?, 0, 0)
		RETURNING id`
	setIntegrationHook = `UPDATE hooks SET sealed = ?, failures = 0, held_until = 0 WHERE id = ?`
	upsertIntegration  = `
		INSERT INTO integrations (hook_id, username, channel, pipeline_events, pipeline_channel,
			deployment_events, deployment_channel, only_broken, branches, unused_events, updated_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (hook_id) DO UPDATE
		SET username = excluded.username, channel = excluded.channel,
			pipeline_events = excluded.pipeline_events, pipeline_channel = excluded.pipeline_channel,
			deployment_events = excluded.deployment_events, deployment_channel = excluded.deployment_channel,
			only_broken = excluded.only_broken, branches = excluded.branches,
			unused_events = excluded.unused_events, updated_at = excluded.updated_at`
)

func (db *DB) SaveIntegration(ctx context.Context, i tidelock.Integration) (tidelock.Integration, error) {
	err := db.write(ctx, func(s session) error {
		var locked tidelock.ProjectID
		if err := s.row(ctx, lockProject+s.lockRow, i.Project).Scan(&locked); err != nil {
			return readError("project", err)
		}
		var hook tidelock.HookID
		err := s.row(ctx, selectIntegrationHook, i.Project, i.Kind).Scan(&hook)
		if errors.Is(err, sql.ErrNoRows) {
			err = s.row(ctx, insertIntegrationHook, i.Project, i.Kind, []byte{}, false, false, false, false,
				tidelock.AllBranches, false, orNow(i.CreatedAt)).Scan(&hook)
		}
		if err != nil {
			return fmt.Errorf("write the hook of an integration: %w", err)
		}
		sealed, err := db.sealHook(tidelock.Hook{ID: hook, URL: i.URL.Reveal()})
		if err != nil {
			return err
		}
		if err := s.change(ctx, "integration", setIntegrationHook, sealed, hook); err != nil {
			return err
		}
		_, err = s.exec(ctx, upsertIntegration, hook, i.Username, i.Channel, i.Pipelines, i.PipelineChannel,
			i.Deployments, i.DeploymentChannel, i.OnlyBroken, i.Branches, strings.Join(i.Unused, " "), orNow(i.UpdatedAt))
		if err != nil {
			return s.writeError("integration", "hook", err)
		}
		i, err = one(ctx, s, "integration", db.scanIntegration, selectIntegration, i.Project, i.Kind)
		return err
	})
	return whole(i, err)
}

// The integration goes with its hook.
const deleteIntegration = `DELETE FROM hooks WHERE project_id = ? AND integration = ? AND integration <> ''`

func (db *DB) DeleteIntegration(ctx context.Context, project tidelock.ProjectID, kind tidelock.IntegrationKind) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "integration", deleteIntegration, project, kind) })
}
