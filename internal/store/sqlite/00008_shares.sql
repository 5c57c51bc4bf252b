-- +goose Up

-- A share makes the members of a group members of a project, up to a level.
CREATE TABLE shares (
	project_id   INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	namespace_id INTEGER NOT NULL REFERENCES namespaces (id) ON DELETE CASCADE,
	level        INTEGER NOT NULL,
	expires_at   INTEGER NOT NULL,
	created_at   INTEGER NOT NULL,
	PRIMARY KEY (project_id, namespace_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX shares_namespace ON shares (namespace_id);
