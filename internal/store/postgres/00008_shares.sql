-- +goose Up

-- A share makes the members of a group members of a project, up to a level.
CREATE TABLE shares (
	project_id   BIGINT  NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	namespace_id BIGINT  NOT NULL REFERENCES namespaces (id) ON DELETE CASCADE,
	level        BIGINT  NOT NULL,
	expires_at   BIGINT  NOT NULL,
	created_at   BIGINT  NOT NULL,
	PRIMARY KEY (project_id, namespace_id)
);
CREATE INDEX shares_namespace ON shares (namespace_id);
