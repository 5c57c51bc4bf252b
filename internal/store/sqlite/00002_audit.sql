-- +goose Up

-- An audit event references nothing, because it outlives what it names.
CREATE TABLE audit_events (
	id           INTEGER PRIMARY KEY AUTOINCREMENT,
	at           INTEGER NOT NULL,
	user_id      INTEGER NOT NULL,
	name         TEXT    NOT NULL,
	token_id     INTEGER NOT NULL,
	from_address TEXT    NOT NULL,
	act          TEXT    NOT NULL,
	project_id   INTEGER NOT NULL,
	namespace_id INTEGER NOT NULL,
	path         TEXT    NOT NULL,
	subject      TEXT    NOT NULL,
	detail       TEXT    NOT NULL
) STRICT;
CREATE INDEX audit_events_project ON audit_events (project_id, id);
CREATE INDEX audit_events_namespace ON audit_events (namespace_id, id);
CREATE INDEX audit_events_at ON audit_events (at);
