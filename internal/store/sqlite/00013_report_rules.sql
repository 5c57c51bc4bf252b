-- +goose Up

-- Which reports the artifacts of a project need before they are announced.
CREATE TABLE report_rules (
	id         INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	type       TEXT    NOT NULL,
	public_key TEXT    NOT NULL, -- in PEM; '' when reports need no signature
	creator_id INTEGER NOT NULL,
	created_at INTEGER NOT NULL,
	UNIQUE (project_id, type)
) STRICT;
