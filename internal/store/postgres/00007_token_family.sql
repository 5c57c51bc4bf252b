-- +goose Up

-- A family is the first of the tokens that a token was rotated from, 0 for
-- one that was not.
ALTER TABLE tokens ADD COLUMN family_id BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tokens ADD COLUMN name_key TEXT COLLATE "C" NOT NULL DEFAULT '';
UPDATE tokens SET name_key = LOWER(name);
CREATE INDEX tokens_family ON tokens (family_id) WHERE family_id <> 0;
