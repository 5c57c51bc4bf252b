-- +goose Up

-- The hook by which an integration is called is no hook of its project: it has
-- no kinds, and only the integration leads to it.
ALTER TABLE hooks ADD COLUMN integration TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX hooks_integration ON hooks (project_id, integration) WHERE integration <> '';

CREATE TABLE integrations (
	id                 INTEGER PRIMARY KEY AUTOINCREMENT,
	hook_id            INTEGER NOT NULL UNIQUE REFERENCES hooks (id) ON DELETE CASCADE,
	username           TEXT    NOT NULL,
	channel            TEXT    NOT NULL,
	pipeline_events    INTEGER NOT NULL,
	pipeline_channel   TEXT    NOT NULL,
	deployment_events  INTEGER NOT NULL,
	deployment_channel TEXT    NOT NULL,
	only_broken        INTEGER NOT NULL,
	branches           TEXT    NOT NULL,
	unused_events      TEXT    NOT NULL, -- words separated by spaces
	updated_at         INTEGER NOT NULL
) STRICT;

-- Syncs that failed or recovered and were not told yet. A row is written in the
-- transaction of the rollout.
CREATE TABLE notices (
	id          INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id  INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	agent_id    INTEGER NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
	applier     TEXT    NOT NULL,
	commit_id   TEXT    NOT NULL,
	ref         BLOB    NOT NULL,
	state       TEXT    NOT NULL,
	reason      TEXT    NOT NULL,
	message     TEXT    NOT NULL,
	at          INTEGER NOT NULL
) STRICT;
CREATE INDEX notices_applier ON notices (project_id, agent_id, applier);
CREATE INDEX notices_agent ON notices (agent_id);

-- What was last told of an applier, so that it is told once.
CREATE TABLE told_syncs (
	integration_id INTEGER NOT NULL REFERENCES integrations (id) ON DELETE CASCADE,
	agent_id       INTEGER NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
	applier        TEXT    NOT NULL,
	commit_id      TEXT    NOT NULL,
	causes         TEXT    NOT NULL, -- words separated by spaces
	failed_at      INTEGER NOT NULL, -- 0 when it recovered
	at             INTEGER NOT NULL,
	PRIMARY KEY (integration_id, agent_id, applier)
) STRICT;
CREATE INDEX told_syncs_agent ON told_syncs (agent_id);
