-- +goose Up

-- What a project's pipelines and deployments are numbered with inside it.
CREATE TABLE project_counters (
	project_id  INTEGER NOT NULL PRIMARY KEY REFERENCES projects (id) ON DELETE CASCADE,
	pipelines   INTEGER NOT NULL,
	deployments INTEGER NOT NULL
) STRICT;

CREATE TABLE pipelines (
	id          INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id  INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	iid         INTEGER NOT NULL,
	commit_id   TEXT    NOT NULL,
	ref         BLOB    NOT NULL,
	tag         INTEGER NOT NULL,
	source      TEXT    NOT NULL,
	state       TEXT    NOT NULL,
	made_by     INTEGER NOT NULL,
	token_id    INTEGER NOT NULL,
	created_at  INTEGER NOT NULL,
	updated_at  INTEGER NOT NULL,
	started_at  INTEGER NOT NULL,
	finished_at INTEGER NOT NULL,
	duration    INTEGER NOT NULL, -- microseconds
	coverage    REAL,
	UNIQUE (project_id, iid)
) STRICT;
CREATE INDEX pipelines_commit ON pipelines (project_id, commit_id, id);
CREATE INDEX pipelines_ref ON pipelines (project_id, ref, id);

CREATE TABLE statuses (
	id            INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id    INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	pipeline_id   INTEGER NOT NULL REFERENCES pipelines (id) ON DELETE CASCADE,
	stage         TEXT    NOT NULL,
	name          TEXT    NOT NULL,
	state         TEXT    NOT NULL,
	target_url    TEXT    NOT NULL,
	description   TEXT    NOT NULL,
	coverage      REAL,
	allow_failure INTEGER NOT NULL,
	latest        INTEGER NOT NULL, -- no newer one of this name in its pipeline
	made_by       INTEGER NOT NULL,
	token_id      INTEGER NOT NULL,
	created_at    INTEGER NOT NULL,
	updated_at    INTEGER NOT NULL,
	started_at    INTEGER NOT NULL,
	finished_at   INTEGER NOT NULL
) STRICT;
CREATE INDEX statuses_project ON statuses (project_id, id);
CREATE INDEX statuses_pipeline ON statuses (pipeline_id, id);
CREATE UNIQUE INDEX statuses_latest ON statuses (pipeline_id, name) WHERE latest;

CREATE TABLE environments (
	id                   INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id           INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	name                 TEXT    NOT NULL,
	name_key             TEXT    NOT NULL,
	slug                 TEXT    NOT NULL,
	description          TEXT    NOT NULL,
	external_url         TEXT    NOT NULL,
	state                TEXT    NOT NULL,
	tier                 TEXT    NOT NULL,
	agent_id             INTEGER REFERENCES agents (id) ON DELETE SET NULL,
	kubernetes_namespace TEXT    NOT NULL,
	flux_resource_path   TEXT    NOT NULL,
	created_at           INTEGER NOT NULL,
	updated_at           INTEGER NOT NULL,
	UNIQUE (project_id, name),
	UNIQUE (project_id, slug)
) STRICT;
CREATE INDEX environments_agent ON environments (agent_id);

CREATE TABLE deployments (
	id             INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id     INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	iid            INTEGER NOT NULL,
	environment_id INTEGER NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
	ref            BLOB    NOT NULL,
	tag            INTEGER NOT NULL,
	commit_id      TEXT    NOT NULL,
	state          TEXT    NOT NULL,
	made_by        INTEGER NOT NULL,
	created_at     INTEGER NOT NULL,
	updated_at     INTEGER NOT NULL,
	finished_at    INTEGER NOT NULL,
	UNIQUE (project_id, iid)
) STRICT;
CREATE INDEX deployments_environment ON deployments (environment_id, id);
