-- +goose Up

-- A name stands once in each stage of a pipeline, so that what is posted from
-- outside never takes the place of a job of the forge's own.
DROP INDEX statuses_latest;
CREATE UNIQUE INDEX statuses_latest ON statuses (pipeline_id, stage, name) WHERE latest;
