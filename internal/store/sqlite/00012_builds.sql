-- +goose Up

-- The commit of each branch and tag that was last looked at for something to
-- package.
CREATE TABLE delivered_heads (
	project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	ref        BLOB    NOT NULL,
	commit_id  TEXT    NOT NULL,
	at         INTEGER NOT NULL,
	PRIMARY KEY (project_id, ref)
) STRICT, WITHOUT ROWID;

CREATE TABLE builds (
	id          INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id  INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	ref         BLOB    NOT NULL,
	commit_id   TEXT    NOT NULL,
	application TEXT    NOT NULL,
	state       TEXT    NOT NULL,
	image       TEXT    NOT NULL,
	tags        TEXT    NOT NULL, -- a JSON array
	digest      TEXT    NOT NULL,
	layer       TEXT    NOT NULL,
	inputs      TEXT    NOT NULL,
	watched     TEXT    NOT NULL, -- a JSON array
	findings    TEXT    NOT NULL, -- a JSON array
	push_id     INTEGER NOT NULL,
	created_at  INTEGER NOT NULL,
	duration    INTEGER NOT NULL, -- microseconds
	latest      INTEGER NOT NULL  -- no newer one of its ref and application
) STRICT;
CREATE INDEX builds_application ON builds (project_id, ref, application, id);
CREATE INDEX builds_commit ON builds (project_id, commit_id, id);
CREATE INDEX builds_digest ON builds (digest) WHERE digest <> '';
