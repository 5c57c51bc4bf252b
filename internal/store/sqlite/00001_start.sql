-- +goose Up

-- Times are microseconds since 1970 in UTC, and 0 stands for "none" or
-- "never". A column that ends in _key holds its neighbour folded to lower
-- case by the program, so that both engines compare and sort alike.
-- AUTOINCREMENT keeps the id of a deleted row from being used again, because
-- folders on disk are named by ids. Refs are bytes, because Git allows names
-- that are not UTF-8.

CREATE TABLE users (
	id           INTEGER PRIMARY KEY AUTOINCREMENT,
	username     TEXT    NOT NULL,
	username_key TEXT    NOT NULL UNIQUE,
	name         TEXT    NOT NULL,
	name_key     TEXT    NOT NULL,
	email        TEXT    NOT NULL,
	admin        INTEGER NOT NULL,
	bot          INTEGER NOT NULL,
	blocked      INTEGER NOT NULL,
	created_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE namespaces (
	id          INTEGER PRIMARY KEY AUTOINCREMENT,
	kind        TEXT    NOT NULL,
	parent_id   INTEGER REFERENCES namespaces (id),
	path        TEXT    NOT NULL,
	path_key    TEXT    NOT NULL,
	full_path   TEXT    NOT NULL,
	name        TEXT    NOT NULL,
	name_key    TEXT    NOT NULL,
	full_name   TEXT    NOT NULL,
	description TEXT    NOT NULL,
	visibility  INTEGER NOT NULL,
	owner_id    INTEGER UNIQUE REFERENCES users (id),
	created_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX namespaces_parent ON namespaces (parent_id);

CREATE TABLE projects (
	id             INTEGER PRIMARY KEY AUTOINCREMENT,
	namespace_id   INTEGER NOT NULL REFERENCES namespaces (id),
	path           TEXT    NOT NULL,
	path_key       TEXT    NOT NULL,
	full_path      TEXT    NOT NULL,
	name           TEXT    NOT NULL,
	name_key       TEXT    NOT NULL,
	full_name      TEXT    NOT NULL,
	description    TEXT    NOT NULL,
	visibility     INTEGER NOT NULL,
	default_branch TEXT    NOT NULL,
	archived       INTEGER NOT NULL,
	creator_id     INTEGER NOT NULL,
	created_at     INTEGER NOT NULL,
	updated_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX projects_namespace ON projects (namespace_id);

-- A route says what a full path, folded to lower case, leads to. A redirect
-- is a path that a project had before, and yields to any new current route.
CREATE TABLE routes (
	path_key     TEXT    NOT NULL PRIMARY KEY,
	namespace_id INTEGER REFERENCES namespaces (id) ON DELETE CASCADE,
	project_id   INTEGER REFERENCES projects (id) ON DELETE CASCADE,
	redirect     INTEGER NOT NULL,
	CHECK ((namespace_id IS NULL) <> (project_id IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX routes_namespace ON routes (namespace_id);
CREATE INDEX routes_project ON routes (project_id);

CREATE TABLE members (
	user_id      INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
	project_id   INTEGER REFERENCES projects (id) ON DELETE CASCADE,
	namespace_id INTEGER REFERENCES namespaces (id) ON DELETE CASCADE,
	level        INTEGER NOT NULL,
	expires_at   INTEGER NOT NULL,
	created_at   INTEGER NOT NULL,
	UNIQUE (user_id, project_id),
	UNIQUE (user_id, namespace_id),
	CHECK ((namespace_id IS NULL) <> (project_id IS NULL))
) STRICT;
CREATE INDEX members_project ON members (project_id);
CREATE INDEX members_namespace ON members (namespace_id);

CREATE TABLE protected_branches (
	id          INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id  INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	pattern     TEXT    NOT NULL,
	push_level  INTEGER NOT NULL,
	merge_level INTEGER NOT NULL,
	allow_force INTEGER NOT NULL,
	UNIQUE (project_id, pattern)
) STRICT;

CREATE TABLE tokens (
	id           INTEGER PRIMARY KEY AUTOINCREMENT,
	hash         TEXT    NOT NULL UNIQUE,
	kind         TEXT    NOT NULL,
	name         TEXT    NOT NULL,
	user_id      INTEGER REFERENCES users (id) ON DELETE CASCADE,
	project_id   INTEGER REFERENCES projects (id) ON DELETE CASCADE,
	namespace_id INTEGER REFERENCES namespaces (id) ON DELETE CASCADE,
	username     TEXT    NOT NULL,
	level        INTEGER NOT NULL,
	scopes       TEXT    NOT NULL, -- words separated by spaces
	creator_id   INTEGER NOT NULL,
	created_at   INTEGER NOT NULL,
	expires_at   INTEGER NOT NULL,
	last_used    INTEGER NOT NULL,
	revoked      INTEGER NOT NULL
) STRICT;
CREATE INDEX tokens_user ON tokens (user_id);
CREATE INDEX tokens_project ON tokens (project_id);
CREATE INDEX tokens_namespace ON tokens (namespace_id);

CREATE TABLE pushes (
	id         INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	pushed_by  INTEGER NOT NULL,
	token_id   INTEGER NOT NULL,
	pushed_at  INTEGER NOT NULL,
	announced  INTEGER NOT NULL,
	trace      TEXT    NOT NULL -- W3C traceparent
) STRICT;
CREATE INDEX pushes_project ON pushes (project_id, id);
CREATE INDEX pushes_unannounced ON pushes (id) WHERE NOT announced;

CREATE TABLE push_updates (
	push_id    INTEGER NOT NULL REFERENCES pushes (id) ON DELETE CASCADE,
	position   INTEGER NOT NULL,
	ref        BLOB    NOT NULL,
	old_object TEXT    NOT NULL,
	new_object TEXT    NOT NULL,
	new_commit TEXT    NOT NULL,
	PRIMARY KEY (push_id, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX push_updates_object ON push_updates (new_object);
CREATE INDEX push_updates_commit ON push_updates (new_commit);

CREATE TABLE heads (
	project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	ref        BLOB    NOT NULL,
	object     TEXT    NOT NULL,
	commit_id  TEXT    NOT NULL,
	push_id    INTEGER NOT NULL,
	moved_at   INTEGER NOT NULL,
	PRIMARY KEY (project_id, ref)
) STRICT, WITHOUT ROWID;

CREATE TABLE agents (
	id         INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	name       TEXT    NOT NULL,
	name_key   TEXT    NOT NULL,
	creator_id INTEGER NOT NULL,
	created_at INTEGER NOT NULL,
	UNIQUE (project_id, name_key)
) STRICT;

CREATE TABLE agent_tokens (
	id          INTEGER PRIMARY KEY AUTOINCREMENT,
	agent_id    INTEGER NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
	hash        TEXT    NOT NULL UNIQUE,
	name        TEXT    NOT NULL,
	description TEXT    NOT NULL,
	creator_id  INTEGER NOT NULL,
	created_at  INTEGER NOT NULL,
	last_used   INTEGER NOT NULL,
	revoked     INTEGER NOT NULL
) STRICT;
CREATE INDEX agent_tokens_agent ON agent_tokens (agent_id);

CREATE TABLE agent_configs (
	agent_id    INTEGER NOT NULL PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE,
	good        TEXT    NOT NULL,
	good_commit TEXT    NOT NULL,
	commit_id   TEXT    NOT NULL,
	error       TEXT    NOT NULL,
	warnings    TEXT    NOT NULL, -- a JSON list of strings
	checked_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE grants (
	project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	agent_id   INTEGER NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
	granted_by INTEGER NOT NULL,
	created_at INTEGER NOT NULL,
	PRIMARY KEY (project_id, agent_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX grants_agent ON grants (agent_id);

CREATE TABLE agent_sessions (
	agent_id           INTEGER NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
	instance           TEXT    NOT NULL,
	server             TEXT    NOT NULL,
	token_id           INTEGER NOT NULL,
	version            TEXT    NOT NULL,
	build_commit       TEXT    NOT NULL,
	pod_namespace      TEXT    NOT NULL,
	pod_name           TEXT    NOT NULL,
	kubernetes_version TEXT    NOT NULL,
	leader             INTEGER NOT NULL,
	connected_at       INTEGER NOT NULL,
	last_seen          INTEGER NOT NULL,
	PRIMARY KEY (agent_id, instance)
) STRICT, WITHOUT ROWID;

-- An announcement belongs to its agent alone and outlives the project and
-- the push it tells of, so that the numbers of a source never start again.
CREATE TABLE announcements (
	id           INTEGER PRIMARY KEY AUTOINCREMENT,
	agent_id     INTEGER NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
	source       TEXT    NOT NULL,
	number       INTEGER NOT NULL,
	latest       INTEGER NOT NULL, -- no newer number of this source
	project_id   INTEGER NOT NULL,
	ref          BLOB    NOT NULL,
	commit_id    TEXT    NOT NULL,
	push_id      INTEGER NOT NULL,
	state        TEXT    NOT NULL,
	message      TEXT    NOT NULL,
	sent_at      INTEGER NOT NULL,
	announced_at INTEGER NOT NULL,
	called_at    INTEGER NOT NULL,
	answered_at  INTEGER NOT NULL,
	handled_at   INTEGER NOT NULL,
	fetched_at   INTEGER NOT NULL,
	via          TEXT    NOT NULL,
	attempts     INTEGER NOT NULL,
	UNIQUE (agent_id, source, number)
) STRICT;
CREATE INDEX announcements_latest ON announcements (agent_id, id) WHERE latest;
CREATE INDEX announcements_project ON announcements (project_id, id);
CREATE INDEX announcements_push ON announcements (push_id);

-- An agent source is shown, and written anew whenever its agent connects.
CREATE TABLE agent_sources (
	agent_id   INTEGER NOT NULL REFERENCES agents (id) ON DELETE CASCADE,
	source     TEXT    NOT NULL,
	project_id INTEGER NOT NULL,
	ref        BLOB    NOT NULL,
	wanted     TEXT    NOT NULL,
	revision   TEXT    NOT NULL,
	suspended  INTEGER NOT NULL,
	state      TEXT    NOT NULL,
	message    TEXT    NOT NULL,
	since      INTEGER NOT NULL,
	updated_at INTEGER NOT NULL,
	PRIMARY KEY (agent_id, source)
) STRICT, WITHOUT ROWID;
