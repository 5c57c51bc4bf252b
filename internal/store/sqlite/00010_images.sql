-- +goose Up

-- An image is made with the first blob that is uploaded to it.
CREATE TABLE images (
	id         INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	name       TEXT    NOT NULL, -- below the project's path, in lower case
	created_at INTEGER NOT NULL,
	UNIQUE (project_id, name)
) STRICT;

CREATE TABLE artifacts (
	image_id    INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE,
	digest      TEXT    NOT NULL,
	media_type  TEXT    NOT NULL,
	type        TEXT    NOT NULL,
	size        INTEGER NOT NULL,
	subject     TEXT    NOT NULL,
	annotations TEXT    NOT NULL, -- a JSON object
	commit_id   TEXT    NOT NULL,
	pushed_by   INTEGER NOT NULL,
	token_id    INTEGER NOT NULL,
	pushed_at   INTEGER NOT NULL,
	seen_at     INTEGER NOT NULL, -- when it was last pushed
	PRIMARY KEY (image_id, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX artifacts_subject ON artifacts (image_id, subject) WHERE subject <> '';
CREATE INDEX artifacts_commit ON artifacts (commit_id) WHERE commit_id <> '';

-- What the manifest of an artifact names.
CREATE TABLE artifact_parts (
	image_id   INTEGER NOT NULL,
	digest     TEXT    NOT NULL,
	position   INTEGER NOT NULL,
	part       TEXT    NOT NULL,
	media_type TEXT    NOT NULL,
	size       INTEGER NOT NULL,
	manifest   INTEGER NOT NULL,
	PRIMARY KEY (image_id, digest, position),
	FOREIGN KEY (image_id, digest) REFERENCES artifacts (image_id, digest) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX artifact_parts_part ON artifact_parts (image_id, part);

-- The blobs that an image has, named by an artifact or not yet.
CREATE TABLE image_blobs (
	image_id INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE,
	digest   TEXT    NOT NULL,
	size     INTEGER NOT NULL,
	seen_at  INTEGER NOT NULL, -- when it was last uploaded, or asked for before a push
	PRIMARY KEY (image_id, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE image_tags (
	image_id INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE,
	name     TEXT    NOT NULL,
	digest   TEXT    NOT NULL,
	push_id  INTEGER NOT NULL,
	moved_at INTEGER NOT NULL,
	PRIMARY KEY (image_id, name),
	FOREIGN KEY (image_id, digest) REFERENCES artifacts (image_id, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_tags_digest ON image_tags (image_id, digest);

-- What a push did to an image, if it was one of a manifest. It outlives the
-- image.
CREATE TABLE push_artifacts (
	push_id    INTEGER NOT NULL PRIMARY KEY REFERENCES pushes (id) ON DELETE CASCADE,
	image_id   INTEGER NOT NULL,
	tag        TEXT    NOT NULL,
	old_digest TEXT    NOT NULL,
	new_digest TEXT    NOT NULL,
	commit_id  TEXT    NOT NULL
) STRICT;
CREATE INDEX push_artifacts_commit ON push_artifacts (commit_id) WHERE commit_id <> '';

-- Levels of 0 make the tags immutable.
CREATE TABLE tag_rules (
	id           INTEGER PRIMARY KEY AUTOINCREMENT,
	project_id   INTEGER NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
	pattern      TEXT    NOT NULL,
	push_level   INTEGER NOT NULL,
	delete_level INTEGER NOT NULL,
	UNIQUE (project_id, pattern)
) STRICT;
INSERT INTO tag_rules (project_id, pattern, push_level, delete_level)
SELECT id, '^v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(_[0-9A-Za-z.-]+)?$', 0, 0 FROM projects;

CREATE TABLE image_settings (
	project_id     INTEGER NOT NULL PRIMARY KEY REFERENCES projects (id) ON DELETE CASCADE,
	quota          INTEGER NOT NULL, -- bytes; 0 is the default, below 0 none
	retain         INTEGER NOT NULL,
	every          INTEGER NOT NULL, -- microseconds
	keep_newest    INTEGER NOT NULL,
	older_than     INTEGER NOT NULL, -- microseconds
	keep_pattern   TEXT    NOT NULL,
	remove_pattern TEXT    NOT NULL,
	next_at        INTEGER NOT NULL
) STRICT;
CREATE INDEX image_settings_due ON image_settings (next_at) WHERE retain;
