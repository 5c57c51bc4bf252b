-- +goose Up

CREATE TABLE protected_tags (
	id           INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id   INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	pattern      TEXT    NOT NULL,
	create_level INTEGER NOT NULL,
	UNIQUE (project_id, pattern)
) STRICT;
