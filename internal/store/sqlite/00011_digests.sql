-- +goose Up

-- The digest of an artifact, '' for a commit.
ALTER TABLE announcements ADD COLUMN digest TEXT NOT NULL DEFAULT '';
ALTER TABLE agent_sources ADD COLUMN digest TEXT NOT NULL DEFAULT '';
