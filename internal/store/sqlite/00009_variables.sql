-- +goose Up

-- The value of a variable is sealed for its holder, key and scope.
CREATE TABLE variables (
	id           INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id   INTEGER REFERENCES projects (id) ON DELETE CASCADE,
	namespace_id INTEGER REFERENCES namespaces (id) ON DELETE CASCADE,
	key          TEXT    NOT NULL,
	scope        TEXT    NOT NULL,
	value        BLOB    NOT NULL,
	kind         TEXT    NOT NULL,
	protected    INTEGER NOT NULL,
	masked       INTEGER NOT NULL,
	hidden       INTEGER NOT NULL,
	raw          INTEGER NOT NULL,
	description  TEXT    NOT NULL,
	UNIQUE (project_id, key, scope),
	UNIQUE (namespace_id, key, scope),
	CHECK ((namespace_id IS NULL) <> (project_id IS NULL))
) STRICT;
