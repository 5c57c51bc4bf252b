-- +goose Up

-- When an agent was connected last, on any of its connections.
CREATE TABLE agent_presence (
	agent_id  BIGINT NOT NULL PRIMARY KEY REFERENCES agents (id) ON DELETE CASCADE,
	last_seen BIGINT NOT NULL,
	left_why  TEXT   NOT NULL -- why its last connection ended; '' while it lasts, or when nobody knows
);
INSERT INTO agent_presence (agent_id, last_seen, left_why)
SELECT agent_id, MAX(last_seen), '' FROM agent_sessions GROUP BY agent_id;

-- The project that the URL of a source names, although the agent may not be
-- told of it; 0 when it is served, or names none.
ALTER TABLE agent_sources ADD COLUMN refused BIGINT NOT NULL DEFAULT 0;
CREATE INDEX agent_sources_project ON agent_sources (project_id) WHERE project_id <> 0;
CREATE INDEX agent_sources_refused ON agent_sources (refused) WHERE refused <> 0;
