-- +goose Up

CREATE TABLE keys (
	id          INTEGER PRIMARY KEY AUTOINCREMENT,
	user_id     INTEGER REFERENCES users (id) ON DELETE CASCADE, -- none for a deploy key
	title       TEXT    NOT NULL,
	public      TEXT    NOT NULL,
	fingerprint TEXT    NOT NULL UNIQUE,
	creator_id  INTEGER NOT NULL,
	created_at  INTEGER NOT NULL,
	expires_at  INTEGER NOT NULL,
	last_used   INTEGER NOT NULL
) STRICT;
CREATE INDEX keys_user ON keys (user_id);

-- Where a deploy key is enabled. A deploy key that is enabled nowhere is
-- removed by the program.
CREATE TABLE deploy_keys (
	key_id       INTEGER NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
	project_id   INTEGER REFERENCES projects (id) ON DELETE CASCADE,
	namespace_id INTEGER REFERENCES namespaces (id) ON DELETE CASCADE,
	title        TEXT    NOT NULL,
	can_push     INTEGER NOT NULL,
	enabled_at   INTEGER NOT NULL,
	UNIQUE (key_id, project_id),
	UNIQUE (key_id, namespace_id),
	CHECK ((namespace_id IS NULL) <> (project_id IS NULL))
) STRICT;
CREATE INDEX deploy_keys_project ON deploy_keys (project_id);
CREATE INDEX deploy_keys_namespace ON deploy_keys (namespace_id);

-- Deploy keys that a protected branch lets push to it.
CREATE TABLE protected_branch_keys (
	branch_id INTEGER NOT NULL REFERENCES protected_branches (id) ON DELETE CASCADE,
	key_id    INTEGER NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
	PRIMARY KEY (branch_id, key_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX protected_branch_keys_key ON protected_branch_keys (key_id);

ALTER TABLE pushes ADD COLUMN key_id INTEGER NOT NULL DEFAULT 0;
