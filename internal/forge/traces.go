package forge

import (
	"context"
	"fmt"
	"time"

	"tidelock.dev"
)

// traceStore is how the rules remember which hops of rollouts are in the
// traces of their pushes.
type traceStore interface {
	// ClaimTraces returns hops of a project's rollouts that are done and were
	// reported after a time, of at most limit rollouts; each hop once, whoever
	// asks. A rollout of which no trace is known is not among them.
	ClaimTraces(ctx context.Context, project tidelock.ProjectID, after time.Time, limit int) ([]tidelock.TracedRollout, error)
}

// traceable is for how long after it was reported a rollout goes into a trace:
// when tracing is turned on, the past is not told.
const traceable = time.Hour

// ClaimTraces returns what has to go into traces now, for the server's own
// use. Nothing is returned twice: a trace may lack a hop after a crash, but
// has none twice.
func (f *Forge) ClaimTraces(ctx context.Context, project tidelock.ProjectID, limit int) ([]tidelock.TracedRollout, error) {
	claimed, err := f.store.ClaimTraces(ctx, project, f.now().Add(-traceable), limit)
	if err != nil {
		return nil, fmt.Errorf("claim traces of project %d: %w", project, err)
	}
	return claimed, nil
}
