package agentserver

import (
	"context"
	"errors"
	"fmt"

	"tidelock.dev"
	"tidelock.dev/internal/forge"
)

// A lookup answers where sources should be, for one batch: what many of them
// share is asked once.
type lookup struct {
	forge    *forge.Forge
	agent    tidelock.Agent
	projects map[pathKey]found
	heads    map[headKey]wanted
}

type pathKey struct {
	image bool // path is of an image and not of a project
	path  string
}

type found struct {
	project tidelock.ProjectID // 0 when there is none
	image   string             // the name of an image below it
	served  bool
}

type headKey struct {
	project tidelock.ProjectID
	image   string
	kind    tidelock.SourceKind
	spec    tidelock.RefSpec
}

func newLookup(f *forge.Forge, agent tidelock.Agent) *lookup {
	return &lookup{forge: f, agent: agent, projects: map[pathKey]found{}, heads: map[headKey]wanted{}}
}

// find says where a source should be now. Which project its URL means is
// decided by the path every time: an old path leads to the renamed project
// until another one takes it.
func (l *lookup) find(ctx context.Context, it item) (wanted, error) {
	p, err := l.project(ctx, it.kind, it.path)
	if err != nil || !p.served {
		return wanted{project: p.project}, err
	}
	key := headKey{p.project, p.image, it.kind, it.spec}
	if w, ok := l.heads[key]; ok {
		return w, nil
	}
	w := wanted{project: p.project, served: true}
	head, err := l.resolve(ctx, key)
	held, waits := errors.AsType[*forge.HoldError](err)
	switch kind := tidelock.KindOf(err); {
	case err == nil:
		w.settled, w.head = true, head
	case waits:
		w.settled, w.held, w.head, w.reason = true, true, head, held.Error()
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

func (l *lookup) resolve(ctx context.Context, key headKey) (tidelock.Head, error) {
	if key.kind.OfImage() {
		return l.forge.ResolveImage(ctx, key.project, key.image, key.kind, key.spec)
	}
	return l.forge.Resolve(ctx, key.project, key.spec)
}

func (l *lookup) project(ctx context.Context, kind tidelock.SourceKind, path string) (found, error) {
	if path == "" {
		return found{}, nil
	}
	key := pathKey{kind.OfImage(), path}
	if p, ok := l.projects[key]; ok {
		return p, nil
	}
	p, project, err := l.lead(ctx, key)
	switch {
	case tidelock.KindOf(err) == tidelock.NotFound:
	case err != nil:
		return found{}, fmt.Errorf("find the project of %q: %w", path, err)
	default:
		if p.served, err = l.forge.AgentMayServe(ctx, l.agent, project); err != nil {
			return found{}, fmt.Errorf("decide whether agent %d may be told of project %d: %w", l.agent.ID, project.ID, err)
		}
	}
	l.projects[key] = p
	return p, nil
}

// lead follows a path to a project.
func (l *lookup) lead(ctx context.Context, key pathKey) (p found, project tidelock.Project, err error) {
	if key.image {
		project, p.image, err = l.forge.ProjectOfImage(ctx, key.path)
	} else {
		project, err = l.forge.ProjectByPath(ctx, key.path)
	}
	p.project = project.ID
	return p, project, err
}
