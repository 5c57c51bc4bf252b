package forge

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"tidelock.dev"
	"tidelock.dev/internal/registry"
)

// usages remember how many bytes the images of projects have, because counting
// a project with many blobs takes longer than taking one more. One of a project
// is read and changed while counting is held for it.
type usages struct {
	mu sync.Mutex
	of map[tidelock.ProjectID]usage
}

type usage struct {
	bytes int64
	at    time.Time // when they were counted
}

const (
	usageLife  = time.Minute
	mostUsages = 10_000
)

func (u *usages) get(project tidelock.ProjectID, now time.Time) (int64, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	known, ok := u.of[project]
	return known.bytes, ok && now.Sub(known.at) < usageLife
}

func (u *usages) set(project tidelock.ProjectID, bytes int64, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.of == nil || len(u.of) >= mostUsages {
		u.of = map[tidelock.ProjectID]usage{}
	}
	u.of[project] = usage{bytes, now}
}

func (u *usages) add(project tidelock.ProjectID, bytes int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if known, ok := u.of[project]; ok {
		known.bytes += bytes
		u.of[project] = known
	}
}

func (u *usages) forget(project tidelock.ProjectID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.of, project)
}

// ImageRoom is how many bytes the images of a project may still grow by.
func (f *Forge) ImageRoom(ctx context.Context, project tidelock.Project) (int64, error) {
	quota, err := f.imageQuotaOf(ctx, project.ID)
	if err != nil || quota < 0 {
		return math.MaxInt64, err
	}
	if used, ok := f.usages.get(project.ID, f.now()); ok {
		return max(0, quota-used), nil
	}
	defer f.counting.lock(project.ID)()
	return f.roomLeft(ctx, project.ID, quota)
}

// roomLeft is called with counting held.
func (f *Forge) roomLeft(ctx context.Context, project tidelock.ProjectID, quota int64) (int64, error) {
	used, ok := f.usages.get(project, f.now())
	if !ok {
		now := f.now()
		var err error
		if used, err = f.store.ImageUsage(ctx, project); err != nil {
			return 0, fmt.Errorf("count the images of project %d: %w", project, err)
		}
		f.usages.set(project, used, now)
	}
	return max(0, quota-used), nil
}

// takeRoom refuses content for which a project has no room, and otherwise lets
// nobody else have the same room until done is called; it is told whether the
// content was recorded. What an image of the project has already needs no
// room.
func (f *Forge) takeRoom(ctx context.Context, project tidelock.Project, content []tidelock.Part) (done func(recorded bool), err error) {
	quota, err := f.imageQuotaOf(ctx, project.ID)
	if err != nil || quota < 0 || len(content) == 0 {
		return func(bool) {}, err
	}
	unlock := f.counting.lock(project.ID)
	defer func() {
		if err != nil {
			unlock()
		}
	}()
	digests := make([]tidelock.Digest, len(content))
	for i, p := range content {
		digests[i] = p.Digest
	}
	there, err := f.store.ContentIn(ctx, project.ID, digests)
	if err != nil {
		return nil, fmt.Errorf("look for content in project %d: %w", project.ID, err)
	}
	var need int64
	for _, p := range content {
		if !there[p.Digest] {
			need += p.Size
		}
	}
	room, err := f.roomLeft(ctx, project.ID, quota)
	if err != nil {
		return nil, err
	}
	if need > room {
		return nil, registry.Errorf(tidelock.TooLarge, registry.Denied,
			"the images of %s may hold %d bytes and this does not fit; remove images, or ask an administrator for a larger quota", project.FullPath, quota)
	}
	return func(recorded bool) {
		if recorded {
			f.usages.add(project.ID, need)
		}
		unlock()
	}, nil
}

// freeRoom makes what was removed from a project's images free at once. It is
// called after the removal, with counting not held.
func (f *Forge) freeRoom(project tidelock.ProjectID) {
	// Who counts right now may have counted what was there before.
	defer f.counting.lock(project)()
	f.usages.forget(project)
}

// imageQuotaOf is how many bytes the images of a project may have; below 0 is
// no limit.
func (f *Forge) imageQuotaOf(ctx context.Context, project tidelock.ProjectID) (int64, error) {
	settings, err := f.imageSettings(ctx, project)
	if err != nil {
		return 0, err
	}
	if settings.Quota != 0 {
		return settings.Quota, nil
	}
	if f.imageQuota > 0 {
		return f.imageQuota, nil
	}
	return -1, nil
}
