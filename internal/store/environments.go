package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"tidelock.dev"
)

const (
	environmentColumns = `e.id, e.project_id, e.name, e.slug, e.description, e.external_url, e.state, e.tier, COALESCE(e.agent_id, 0),
	e.kubernetes_namespace, e.flux_resource_path, e.created_at, e.updated_at`

	selectEnvironment       = `SELECT ` + environmentColumns + ` FROM environments e WHERE e.id = ?`
	selectEnvironmentByName = `SELECT ` + environmentColumns + ` FROM environments e WHERE e.project_id = ? AND e.name = ?`
)

func scanEnvironment(row scanner) (e tidelock.Environment, err error) {
	err = row.Scan(&e.ID, &e.Project, &e.Name, &e.Slug, &e.Description, &e.ExternalURL, &e.State, &e.Tier, &e.Agent,
		&e.KubernetesNamespace, &e.FluxResourcePath, (*instant)(&e.CreatedAt), (*instant)(&e.UpdatedAt))
	return e, err
}

const insertEnvironment = `
	INSERT INTO environments (project_id, name, name_key, slug, description, external_url, state, tier, agent_id,
		kubernetes_namespace, flux_resource_path, created_at, updated_at)
	VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
	ON CONFLICT DO NOTHING
	RETURNING id`

func (db *DB) CreateEnvironment(ctx context.Context, e tidelock.Environment) (tidelock.Environment, error) {
	e.CreatedAt = orNow(e.CreatedAt)
	e.UpdatedAt = orNow(e.UpdatedAt)
	err := db.write(ctx, func(s session) error {
		err := s.row(ctx, insertEnvironment, e.Project, e.Name, fold(e.Name), e.Slug, e.Description, e.ExternalURL, e.State, e.Tier,
			orNull(e.Agent), e.KubernetesNamespace, e.FluxResourcePath, e.CreatedAt, e.UpdatedAt).Scan(&e.ID)
		if errors.Is(err, sql.ErrNoRows) {
			return taken("name")
		}
		return s.writeError("environment", "project or agent", err)
	})
	return whole(e, err)
}

const updateEnvironment = `
	UPDATE environments
	SET description = ?, external_url = ?, state = ?, tier = ?, agent_id = ?, kubernetes_namespace = ?, flux_resource_path = ?, updated_at = ?
	WHERE id = ?`

func (db *DB) SaveEnvironment(ctx context.Context, e tidelock.Environment) error {
	return db.write(ctx, func(s session) error {
		n, err := s.exec(ctx, updateEnvironment, e.Description, e.ExternalURL, e.State, e.Tier,
			orNull(e.Agent), e.KubernetesNamespace, e.FluxResourcePath, orNow(e.UpdatedAt), e.ID)
		if err == nil && n == 0 {
			return notFound("environment")
		}
		return s.writeError("environment", "agent", err)
	})
}

func (db *DB) Environment(ctx context.Context, id tidelock.EnvironmentID) (tidelock.Environment, error) {
	return one(ctx, db.point(ctx), "environment", scanEnvironment, selectEnvironment, id)
}

func (db *DB) EnvironmentByName(ctx context.Context, project tidelock.ProjectID, name string) (tidelock.Environment, error) {
	return one(ctx, db.point(ctx), "environment", scanEnvironment, selectEnvironmentByName, project, name)
}

func (db *DB) Environments(ctx context.Context, f tidelock.EnvironmentFilter, p tidelock.Page) ([]tidelock.Environment, int, error) {
	l := list{columns: environmentColumns, from: `environments e`, order: `e.id`}
	if f.Project != 0 {
		l.filter(`e.project_id = ?`, f.Project)
	}
	if f.Name != "" {
		l.filter(`e.name = ?`, f.Name)
	}
	if f.State != "" {
		l.filter(`e.state = ?`, f.State)
	}
	if f.Agent != 0 {
		l.filter(`e.agent_id = ?`, f.Agent)
	}
	l.search(f.Search, `e.name_key`)
	return pageOf(ctx, db, "environments", l, p, scanEnvironment)
}

const deleteEnvironment = `DELETE FROM environments WHERE id = ?`

func (db *DB) DeleteEnvironment(ctx context.Context, id tidelock.EnvironmentID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "environment", deleteEnvironment, id) })
}

const (
	nextDeployment = `
		INSERT INTO project_counters (project_id, pipelines, deployments)
		VALUES (?, 0, 1)
		ON CONFLICT (project_id) DO UPDATE SET deployments = project_counters.deployments + 1
		RETURNING deployments`
	insertDeployment = `
		INSERT INTO deployments (project_id, iid, environment_id, ref, tag, commit_id, state, made_by, created_at, updated_at, finished_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		RETURNING id`
)

func (db *DB) CreateDeployment(ctx context.Context, d tidelock.Deployment) (tidelock.Deployment, error) {
	d.CreatedAt, d.UpdatedAt, d.FinishedAt = orNow(d.CreatedAt), orNow(d.UpdatedAt), kept(d.FinishedAt)
	err := db.write(ctx, func(s session) error {
		if err := s.row(ctx, nextDeployment, d.Project).Scan(&d.IID); err != nil {
			return s.writeError("number of deployment", "project", err)
		}
		err := s.row(ctx, insertDeployment, d.Project, d.IID, d.Environment, []byte(d.Ref), d.Tag, d.Commit, d.State, d.By,
			d.CreatedAt, d.UpdatedAt, d.FinishedAt).Scan(&d.ID)
		if err != nil {
			return s.writeError("deployment", "environment", err)
		}
		return s.noteDeployment(ctx, d, tidelock.DeploymentCreated)
	})
	return whole(d, err)
}

// noteDeployment leaves word for hooks of the state that a deployment reached.
func (s session) noteDeployment(ctx context.Context, d tidelock.Deployment, before tidelock.DeploymentState) error {
	if d.State == before {
		return nil
	}
	return s.noteHookEvent(ctx, tidelock.HookEvent{
		Project: d.Project, Kind: tidelock.HookDeployment, Deployment: d.ID, State: string(d.State), At: d.UpdatedAt,
	})
}

const (
	selectDeploymentState = `SELECT state FROM deployments WHERE id = ?`
	updateDeployment      = `UPDATE deployments SET state = ?, updated_at = ?, finished_at = ? WHERE id = ?`
)

func (db *DB) SaveDeployment(ctx context.Context, d tidelock.Deployment) error {
	d.UpdatedAt, d.FinishedAt = orNow(d.UpdatedAt), kept(d.FinishedAt)
	return db.write(ctx, func(s session) error {
		var before tidelock.DeploymentState
		if err := s.row(ctx, selectDeploymentState+s.lockRow, d.ID).Scan(&before); err != nil {
			return readError("deployment", err)
		}
		if err := s.change(ctx, "deployment", updateDeployment, d.State, d.UpdatedAt, d.FinishedAt, d.ID); err != nil {
			return err
		}
		return s.noteDeployment(ctx, d, before)
	})
}

const (
	deploymentColumns = `d.id, d.project_id, d.iid, d.environment_id, d.ref, d.tag, d.commit_id, d.state, d.made_by,
	d.created_at, d.updated_at, d.finished_at`
	selectDeployment      = `SELECT ` + deploymentColumns + ` FROM deployments d WHERE d.id = ?`
	selectLastDeployments = `
		SELECT ` + deploymentColumns + `
		FROM deployments d
		WHERE d.id IN (
			SELECT l.id
			FROM (
				SELECT s.id, ROW_NUMBER() OVER (PARTITION BY s.environment_id ORDER BY s.finished_at DESC, s.id DESC) AS place
				FROM deployments s
				WHERE s.environment_id IN (%s) AND s.state = 'success') l
			WHERE l.place = 1)
		ORDER BY d.environment_id`
)

func scanDeployment(row scanner) (d tidelock.Deployment, err error) {
	err = row.Scan(&d.ID, &d.Project, &d.IID, &d.Environment, &d.Ref, &d.Tag, &d.Commit, &d.State, &d.By,
		(*instant)(&d.CreatedAt), (*instant)(&d.UpdatedAt), (*instant)(&d.FinishedAt))
	return d, err
}

func (db *DB) Deployment(ctx context.Context, id tidelock.DeploymentID) (tidelock.Deployment, error) {
	return one(ctx, db.point(ctx), "deployment", scanDeployment, selectDeployment, id)
}

func (db *DB) LastDeployments(ctx context.Context, environments ...tidelock.EnvironmentID) ([]tidelock.Deployment, error) {
	return many(ctx, db.point(ctx), "deployments", scanDeployment, fmt.Sprintf(selectLastDeployments, db.in), idList(environments))
}

var deploymentOrders = map[string]string{
	"": `d.id`, "id": `d.id`, "iid": `d.iid`, "created_at": `d.created_at`, "updated_at": `d.updated_at`,
	"finished_at": `d.finished_at`, "ref": `d.ref`,
}

func (db *DB) Deployments(ctx context.Context, f tidelock.DeploymentFilter, p tidelock.Page) ([]tidelock.Deployment, int, error) {
	order, ok := deploymentOrders[f.OrderBy]
	if !ok {
		return nil, 0, tidelock.Errorf(tidelock.Invalid, "deployments cannot be ordered by %q", f.OrderBy)
	}
	direction := ``
	if f.Descending {
		direction = ` DESC`
	}
	l := list{columns: deploymentColumns, from: `deployments d`, order: order + direction + `, d.id` + direction}
	if f.Project != 0 {
		l.filter(`d.project_id = ?`, f.Project)
	}
	if f.Environment != "" {
		l.filter(`d.environment_id IN (SELECT e.id FROM environments e WHERE e.project_id = d.project_id AND e.name = ?)`, f.Environment)
	}
	if f.EnvironmentID != 0 {
		l.filter(`d.environment_id = ?`, f.EnvironmentID)
	}
	if f.Commit != "" {
		l.filter(`d.commit_id = ?`, f.Commit)
	}
	if f.State != "" {
		l.filter(`d.state = ?`, f.State)
	}
	l.between(`d.updated_at`, f.UpdatedAfter, f.UpdatedBefore)
	l.between(`d.finished_at`, f.FinishedAfter, f.FinishedBefore)
	return pageOf(ctx, db, "deployments", l, p, scanDeployment)
}

const deleteDeployment = `DELETE FROM deployments WHERE id = ?`

func (db *DB) DeleteDeployment(ctx context.Context, id tidelock.DeploymentID) error {
	return db.write(ctx, func(s session) error { return s.change(ctx, "deployment", deleteDeployment, id) })
}
