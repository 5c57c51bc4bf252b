package forge

import (
	"context"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"tidelock.dev"
)

// ancestries remembers which commit contains which. It never changes, so that
// nothing has to be forgotten but for room.
type ancestries struct {
	mu    sync.Mutex
	known *simplelru.LRU[ancestry, bool]
}

type ancestry struct {
	project          tidelock.ProjectID
	commit, ancestor tidelock.CommitID
}

const mostAncestries = 1 << 14

func (a *ancestries) get(key ancestry) (has, known bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known == nil {
		return false, false
	}
	return a.known.Get(key)
}

func (a *ancestries) put(key ancestry, has bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known == nil {
		known, err := simplelru.NewLRU[ancestry, bool](mostAncestries, nil)
		if err != nil {
			panic(err) // only a size below one is refused
		}
		a.known = known
	}
	a.known.Add(key, has)
}

// contains reports whether an ancestor is in the history of a commit, or is
// the commit.
func (f *Forge) contains(ctx context.Context, project tidelock.ProjectID, commit, ancestor tidelock.CommitID) (bool, error) {
	if commit == ancestor {
		return true, nil
	}
	key := ancestry{project, commit, ancestor}
	if has, known := f.ancestries.get(key); known {
		return has, nil
	}
	has, err := f.repos.Repo(project).Contains(ctx, commit, ancestor)
	if err != nil {
		return false, err
	}
	f.ancestries.put(key, has)
	return has, nil
}
