-- +goose Up

-- What a source follows: its spec.ref, a JSON object, and the image, 0 for one
-- of Git or one that is not there. Only of sources that are served.
ALTER TABLE agent_sources ADD COLUMN spec TEXT NOT NULL DEFAULT '{}';
ALTER TABLE agent_sources ADD COLUMN image_id INTEGER NOT NULL DEFAULT 0;

-- What an agent sees of an object of Flux's. It belongs to the project of its
-- source in agent_sources, and is written anew whenever its agent connects.
CREATE TABLE observations (
	agent_id   INTEGER NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
	object     TEXT    NOT NULL,
	source     TEXT    NOT NULL, -- of an applier what it applies, of a source the object itself
	state      TEXT    NOT NULL,
	health     TEXT    NOT NULL,
	body       TEXT    NOT NULL, -- all of it, a JSON object
	since      INTEGER NOT NULL, -- when state or health changed last
	updated_at INTEGER NOT NULL,
	PRIMARY KEY (agent_id, object)
) STRICT, WITHOUT ROWID;
CREATE INDEX observations_source ON observations (agent_id, source);

CREATE TABLE rollouts (
	id            INTEGER PRIMARY KEY AUTOINCREMENT,
	agent_id      INTEGER NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
	applier       TEXT    NOT NULL,
	source        TEXT    NOT NULL,
	project_id    INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	commit_id     TEXT    NOT NULL,
	digest        TEXT    NOT NULL,
	ref           BLOB    NOT NULL,
	push_id       INTEGER NOT NULL,
	environment   TEXT    NOT NULL,
	state         TEXT    NOT NULL,
	reason        TEXT    NOT NULL,
	message       TEXT    NOT NULL,
	turn          INTEGER NOT NULL, -- of its applier: what came later has a greater one
	newest        INTEGER NOT NULL,
	pending_at    INTEGER NOT NULL,
	running_at    INTEGER NOT NULL,
	applied_at    INTEGER NOT NULL,
	healthy_at    INTEGER NOT NULL,
	finished_at   INTEGER NOT NULL,
	reported_at   INTEGER NOT NULL, -- 0 when what is written to the commit is not the present state
	updated_at    INTEGER NOT NULL, -- grows with every change
	status_id     INTEGER NOT NULL,
	deployment_id INTEGER NOT NULL,
	UNIQUE (agent_id, applier, project_id, commit_id)
) STRICT;
CREATE UNIQUE INDEX rollouts_newest ON rollouts (agent_id, applier) WHERE newest;
CREATE INDEX rollouts_open ON rollouts (agent_id, applier) WHERE state IN ('pending', 'running', 'unknown');
CREATE INDEX rollouts_project ON rollouts (project_id, id);
CREATE INDEX rollouts_commit ON rollouts (project_id, commit_id, id);
CREATE INDEX rollouts_push ON rollouts (push_id) WHERE push_id <> 0;
CREATE INDEX rollouts_unreported ON rollouts (project_id, id) WHERE reported_at = 0;

-- Up to which push of a project rollouts were made. Pushes from before there
-- were any are left alone.
CREATE TABLE planned_pushes (
	project_id INTEGER NOT NULL PRIMARY KEY REFERENCES projects (id) ON DELETE CASCADE,
	push_id    INTEGER NOT NULL
) STRICT;
INSERT INTO planned_pushes (project_id, push_id)
SELECT project_id, MAX(id) FROM pushes GROUP BY project_id;
