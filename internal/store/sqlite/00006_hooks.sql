-- +goose Up

-- A hook's URL, token and headers may be credentials. They are sealed
-- together, as one JSON object.
CREATE TABLE hooks (
	id                INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id        INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	sealed            BLOB    NOT NULL,
	name              TEXT    NOT NULL,
	description       TEXT    NOT NULL,
	push_events       INTEGER NOT NULL,
	tag_push_events   INTEGER NOT NULL,
	pipeline_events   INTEGER NOT NULL,
	deployment_events INTEGER NOT NULL,
	unused_events     TEXT    NOT NULL, -- words separated by spaces
	branch_filter     TEXT    NOT NULL,
	branch_match      TEXT    NOT NULL,
	skip_verify       INTEGER NOT NULL,
	created_at        INTEGER NOT NULL,
	failures          INTEGER NOT NULL,
	held_until        INTEGER NOT NULL
) STRICT;
CREATE INDEX hooks_project ON hooks (project_id, id);

-- What happened and was not made into deliveries yet. A row is written in the
-- transaction of the fact.
CREATE TABLE hook_events (
	id            INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id    INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	kind          TEXT    NOT NULL,
	push_id       INTEGER NOT NULL,
	pipeline_id   INTEGER NOT NULL,
	deployment_id INTEGER NOT NULL,
	state         TEXT    NOT NULL,
	at            INTEGER NOT NULL
) STRICT;
CREATE INDEX hook_events_project ON hook_events (project_id);

-- A delivery is leased while somebody sends it. Its lane is the ref that it
-- tells of: deliveries of one hook and lane keep their order.
CREATE TABLE hook_deliveries (
	id           INTEGER PRIMARY KEY AUTOINCREMENT,
	hook_id      INTEGER NOT NULL REFERENCES hooks (id) ON DELETE CASCADE,
	kind         TEXT    NOT NULL,
	lane         BLOB    NOT NULL,
	uuid         TEXT    NOT NULL,
	event        TEXT    NOT NULL,
	body         BLOB    NOT NULL,
	test         INTEGER NOT NULL,
	state        TEXT    NOT NULL,
	tries        INTEGER NOT NULL,
	next_at      INTEGER NOT NULL,
	leased_until INTEGER NOT NULL,
	created_at   INTEGER NOT NULL,
	sent_at      INTEGER NOT NULL,
	took         INTEGER NOT NULL, -- microseconds
	url          TEXT    NOT NULL,
	request      TEXT    NOT NULL, -- headers, a JSON object
	status       INTEGER NOT NULL,
	response     TEXT    NOT NULL, -- headers, a JSON object
	answer       TEXT    NOT NULL,
	error        TEXT    NOT NULL
) STRICT;
CREATE INDEX hook_deliveries_hook ON hook_deliveries (hook_id, id);
CREATE INDEX hook_deliveries_waiting ON hook_deliveries (hook_id, lane, id) WHERE state = 'waiting';
CREATE INDEX hook_deliveries_due ON hook_deliveries (next_at) WHERE state = 'waiting';
CREATE INDEX hook_deliveries_created ON hook_deliveries (created_at);
