-- +goose Up

-- What is past goes when it is old and nothing needs it any more.
CREATE INDEX rollouts_turn ON rollouts (agent_id, applier, turn);
CREATE INDEX builds_push ON builds (push_id);

-- Which of its hops are in the trace of its push: 1 reported, 2 applied,
-- 4 healthy. One that failed may become healthy later.
ALTER TABLE rollouts ADD COLUMN traced INTEGER NOT NULL DEFAULT 0;
CREATE INDEX rollouts_untraced ON rollouts (project_id, reported_at) WHERE traced = 0 AND reported_at <> 0;
CREATE INDEX rollouts_half_traced ON rollouts (project_id) WHERE traced > 0 AND traced < 4 AND healthy_at <> 0;
