package agentserver

import (
	"context"
	"fmt"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A lookup answers where sources should be, for one batch: what many of them
// share is asked once.
type lookup struct {
	forge    *forge.Forge
	agent    tidelock.Agent
	projects map[string]found
	heads    map[headKey]wanted
}

type found struct {
	project tidelock.ProjectID // 0 when there is none
	served  bool
}

type headKey struct {
	project tidelock.ProjectID
	spec    tidelock.RefSpec
}

func newLookup(f *forge.Forge, agent tidelock.Agent) *lookup {
	return &lookup{forge: f, agent: agent, projects: map[string]found{}, heads: map[headKey]wanted{}}
}

// find says where a source should be now. Which project its URL means is
// decided by the path every time: an old path leads to the renamed project
// until another one takes it.
func (l *lookup) find(ctx context.Context, it item) (wanted, error) {
	p, err := l.project(ctx, it.path)
	if err != nil || !p.served {
		return wanted{project: p.project}, err
	}
	key := headKey{p.project, it.spec}
	if w, ok := l.heads[key]; ok {
		return w, nil
	}
	w := wanted{project: p.project, served: true}
	head, err := l.forge.Resolve(ctx, p.project, it.spec)
	switch kind := tidelock.KindOf(err); {
	case err == nil:
		w.settled, w.head = true, head
	case kind == tidelock.NotFound:
		w.settled, w.gone, w.reason = true, true, err.Error()
	case kind == tidelock.Invalid: // nothing to announce, ever
		w.reason = err.Error()
	default:
		return wanted{}, err
	}
	l.heads[key] = w
	return w, nil
}

func (l *lookup) project(ctx context.Context, path string) (found, error) {
	if path == "" {
		return found{}, nil
	}
	if p, ok := l.projects[path]; ok {
		return p, nil
	}
	var p found
	project, err := l.forge.ProjectByPath(ctx, path)
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
	case err != nil:
		return found{}, fmt.Errorf("find project %q: %w", path, err)
	default:
		p.project = project.ID
		if p.served, err = l.forge.AgentMayServe(ctx, l.agent, project); err != nil {
			return found{}, fmt.Errorf("decide whether agent %d may be told of project %d: %w", l.agent.ID, project.ID, err)
		}
	}
	l.projects[path] = p
	return p, nil
}
